//! What a controller has done but not yet seen in its informers (upstream `ControllerExpectations`).
//!
//! Between a create and the moment the informer shows it, a plan would create again. So a key whose writes are not all
//! seen yet is not planned. If they are not seen for 5 minutes, something was missed and planning goes on.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use keelson_runtime::ObjectKey;
use parking_lot::Mutex;
use tokio::time::Instant;

const TIMEOUT: Duration = Duration::from_secs(300);

#[derive(Debug)]
struct Expected {
    creations: i64,
    /// By uid, since a deletion may be seen twice: when it begins and when it ends.
    deletions: HashSet<String>,
    since: Instant,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Expectations {
    keys: Mutex<HashMap<ObjectKey, Expected>>,
}

impl Expectations {
    /// Whether everything expected of `key` was seen, or waited for long enough.
    pub fn satisfied(&self, key: &ObjectKey) -> bool {
        match self.keys.lock().get(key) {
            None => true,
            Some(e) => (e.creations <= 0 && e.deletions.is_empty()) || e.since.elapsed() > TIMEOUT,
        }
    }

    /// Expects these, from now on and nothing else.
    pub fn expect(
        &self,
        key: &ObjectKey,
        creations: usize,
        deletions: impl IntoIterator<Item = String>,
    ) {
        self.keys.lock().insert(
            key.clone(),
            Expected {
                creations: i64::try_from(creations).unwrap_or(i64::MAX),
                deletions: deletions.into_iter().collect(),
                since: Instant::now(),
            },
        );
    }

    /// A creation was seen, or will not happen.
    pub fn created(&self, key: &ObjectKey) {
        if let Some(e) = self.keys.lock().get_mut(key) {
            e.creations -= 1;
        }
    }

    /// A deletion was seen, or will not happen.
    pub fn deleted(&self, key: &ObjectKey, uid: &str) {
        if let Some(e) = self.keys.lock().get_mut(key) {
            e.deletions.remove(uid);
        }
    }

    /// The owner itself is gone.
    pub fn forget(&self, key: &ObjectKey) {
        self.keys.lock().remove(key);
    }
}
