//! Slices that were written and that the informer has not shown yet. A plan made before it does would write them again.

use std::collections::HashMap;
use std::time::Duration;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_runtime::ObjectKey;
use keelson_runtime::store::Store;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::common::name;

/// How long a slice that was written is waited for: it may have been deleted before it was ever seen.
pub const UNSEEN_FOR: Duration = Duration::from_secs(5);

/// The slices waited for, per owner, by name with the revision to see and since when (upstream `EndpointSliceTracker`).
#[derive(Debug, Default)]
pub struct Unseen(Mutex<HashMap<ObjectKey, HashMap<String, (u64, Instant)>>>);

fn revision(meta: &ObjectMeta) -> u64 {
    meta.resource_version
        .as_deref()
        .and_then(|v| v.parse().ok())
        .unwrap_or(0)
}

impl Unseen {
    /// The informer showed this slice, or that it is gone.
    pub fn saw(&self, owner: &ObjectKey, slice: &EndpointSlice, gone: bool) {
        let mut all = self.0.lock();
        let Some(waiting) = all.get_mut(owner) else {
            return;
        };
        let own = name(&slice.metadata);
        let shown = |(wanted, _): &(u64, Instant)| revision(&slice.metadata) >= *wanted;
        if gone || waiting.get(own).is_some_and(shown) {
            waiting.remove(own);
        }
        if waiting.is_empty() {
            all.remove(owner);
        }
    }

    /// Whether slices of that owner are still to be seen; what was waited for in vain is forgotten.
    pub fn waits(&self, owner: &ObjectKey) -> bool {
        let mut all = self.0.lock();
        let Some(waiting) = all.get_mut(owner) else {
            return false;
        };
        waiting.retain(|_, (_, since)| since.elapsed() < UNSEEN_FOR);
        if waiting.is_empty() {
            all.remove(owner);
            return false;
        }
        true
    }

    /// A slice was written, as the server answered it; `store` is the informer's.
    pub fn wrote(&self, owner: &ObjectKey, slice: &EndpointSlice, store: &Store<EndpointSlice>) {
        let version = revision(&slice.metadata);
        // Under the lock that the event handler takes: the event cannot pass between the look and the note.
        let mut all = self.0.lock();
        let seen = store
            .get(&ObjectKey::of(&slice.metadata))
            .is_some_and(|s| revision(&s.metadata) >= version);
        if !seen {
            all.entry(owner.clone())
                .or_default()
                .insert(name(&slice.metadata).to_owned(), (version, Instant::now()));
        }
    }

    /// The owner is gone.
    pub fn forget(&self, owner: &ObjectKey) {
        self.0.lock().remove(owner);
    }
}
