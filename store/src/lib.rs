//! Storage: the [`Store`] trait (a small MVCC key-value protocol, shaped after etcd v3's) and its engines.
//! Knows nothing of API objects: keys are paths such as `/registry/pods/default/a`, values are bytes.

pub mod embedded;
pub mod etcd;
#[cfg(any(test, feature = "suite"))]
#[allow(clippy::missing_panics_doc)]
pub mod suite;

use std::ops::Bound;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

/// A point in the history of a store. Every committed transaction gets the next one; 0 means "none".
pub type Revision = u64;

/// One stored key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// The whole key.
    pub key: String,
    /// The value as it was committed.
    pub value: Bytes,
    /// Revision at which the key last came into being.
    pub create_revision: Revision,
    /// Revision of the last change to the key.
    pub mod_revision: Revision,
}

/// What must hold of a key for a [`Commit`] to go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The key does not exist.
    Absent,
    /// The key exists and was last changed at this revision.
    ModRevision(Revision),
}

/// A guarded change of one key.
#[derive(Clone, Debug)]
pub struct Commit {
    /// The key to change.
    pub key: String,
    /// The guard.
    pub expect: Expect,
    /// The new value; `None` deletes the key.
    pub value: Option<Bytes>,
    /// Time to live in seconds, after which the store deletes the key by itself (events). `None`: for ever.
    pub ttl_seconds: Option<u64>,
}

/// A half-open range of keys in byte order.
#[derive(Clone, Debug)]
pub struct Range {
    /// First key (inclusive or exclusive).
    pub start: Bound<String>,
    /// End of the range, exclusive; `None` means no end.
    pub end: Option<String>,
}

impl Range {
    /// All keys that begin with `prefix` (`clientv3.GetPrefixRangeEnd`).
    pub fn prefix(prefix: &str) -> Self {
        // Keys are UTF-8, and no UTF-8 text holds the byte 0xff: the last character counted up by one bounds the
        // range. Prefixes end in '/' in practice, which becomes '0'.
        let mut end = prefix.to_owned();
        let mut bound = None;
        while let Some(last) = end.pop() {
            if let Some(next) = ((last as u32 + 1)..=0x10_ffff).find_map(char::from_u32) {
                end.push(next);
                bound = Some(end);
                break;
            }
        }
        Range {
            start: Bound::Included(prefix.to_owned()),
            end: bound,
        }
    }

    /// Whether `key` lies in the range.
    pub fn contains(&self, key: &str) -> bool {
        let after_start = match &self.start {
            Bound::Included(start) => key >= start.as_str(),
            Bound::Excluded(start) => key > start.as_str(),
            Bound::Unbounded => true,
        };
        after_start && self.end.as_deref().is_none_or(|end| key < end)
    }
}

/// One page of a range.
#[derive(Clone, Debug)]
pub struct Page {
    /// In key order.
    pub items: Vec<KeyValue>,
    /// The revision at which the page was read.
    pub revision: Revision,
    /// How many keys of the range follow this page.
    pub remaining: u64,
}

/// One change of one key.
#[derive(Clone, Debug)]
pub struct Event {
    /// The key.
    pub key: String,
    /// The new state; `None` when the key was deleted.
    pub current: Option<KeyValue>,
    /// The state before; `None` when the key was created.
    pub previous: Option<KeyValue>,
    /// Revision of the change.
    pub revision: Revision,
}

/// What a watch delivers.
#[derive(Clone, Debug)]
pub enum WatchItem {
    /// Changes in the watched range in order of revision; those of one revision are never split over two items.
    Events(Vec<Event>),
    /// No change up to and including this revision is still to come.
    Progress(Revision),
}

/// What can go wrong. No decision is ever made on a message text.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The guard of a commit did not hold; carries what is there now.
    #[error("the key's state is not the expected one")]
    Conflict {
        /// The key's present state; `None` when it does not exist.
        current: Option<KeyValue>,
    },
    /// The revision asked for is older than the last compaction.
    #[error("revision {requested} has been compacted; the oldest one kept is {oldest}")]
    Compacted {
        /// The revision that was asked for.
        requested: Revision,
        /// The oldest revision that can still be read.
        oldest: Revision,
    },
    /// The revision asked for has not happened yet.
    #[error("revision {requested} is in the future; the current one is {current}")]
    Future {
        /// The revision that was asked for.
        requested: Revision,
        /// The newest revision.
        current: Revision,
    },
    /// A watcher did not keep up and was dropped; it must list and watch again.
    #[error("the watcher fell behind and was dropped")]
    Lagged,
    /// The medium refuses writes (full or read-only disk, etcd quota). Nothing was changed.
    #[error("the store takes no writes: {0}")]
    Unwritable(String),
    /// The medium failed in another way. Whether a commit happened is unknown.
    #[error("the store failed: {0}")]
    Failed(String),
}

/// A running watch.
pub struct Watch {
    /// The changes, in order. Ends after an error.
    pub items: BoxStream<'static, Result<WatchItem, Error>>,
    /// Asks how far the watch has to get.
    pub progress: Arc<dyn WatchProgress>,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watch")
    }
}

/// Questions about one running watch, asked by those who wait for its consumer to catch up.
#[async_trait]
pub trait WatchProgress: Send + Sync + 'static {
    /// A revision such that a consumer which has taken all items up to it has seen every change of the watched range
    /// that was acknowledged before this call. The watch delivers an item that reaches it without further asking.
    ///
    /// Cheap for the embedded engine (the revision of the last change queued for this watch); for etcd a linearizable
    /// read and a progress request.
    async fn freshness(&self) -> Result<Revision, Error>;
    /// Asks the watch to deliver [`WatchItem::Progress`] with the newest revision as soon as it can, though nothing
    /// changed in its range. Calls that come before the answer are merged.
    fn request(&self);
}

/// What every engine offers. All engines and the cache pass the same suite.
///
/// Guarantees: commits are atomic and durable before they are acknowledged; revisions grow by one per
/// commit; a watch delivers every change exactly once, in order, with no gap, or ends with an error.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The key's state at `at`, or now. Returns the revision read at.
    async fn get(
        &self,
        key: &str,
        at: Option<Revision>,
    ) -> Result<(Option<KeyValue>, Revision), Error>;
    /// Up to `limit` keys of `range` (0: all) at `at`, or now.
    async fn list(&self, range: Range, at: Option<Revision>, limit: usize) -> Result<Page, Error>;
    /// Applies one guarded change and returns its revision. Deleting a key that does not exist is a conflict.
    /// Once polled, the change may happen even if the future is dropped.
    async fn commit(&self, commit: Commit) -> Result<Revision, Error>;
    /// All changes of `range` after revision `after`, which must not be older than the last compaction nor lie in the
    /// future. Items wait in a bounded queue: a consumer that lets it overflow gets [`Error::Lagged`].
    async fn watch(&self, range: Range, after: Revision) -> Result<Watch, Error>;
    /// Forgets all history before `revision` (values at it stay readable, and a watch may still start after it).
    async fn compact(&self, revision: Revision) -> Result<(), Error>;
    /// The newest revision.
    async fn revision(&self) -> Result<Revision, Error>;
}
