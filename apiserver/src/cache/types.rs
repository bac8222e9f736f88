//! The vocabulary of the cache: what its callers pass in and get back.

use std::sync::Arc;

use bytes::Bytes;
use keelson_machinery::status::ApiError;
use keelson_machinery::value::Value;
use keelson_store::Revision;

use crate::reader::GroupResource;

/// How stored bytes and objects turn into each other for one resource.
///
/// The value is in the storage version. Stored bytes carry no resourceVersion: the revision of the key is the one.
pub trait StorageCodec: Send + Sync + 'static {
    /// Stored bytes to an object; `metadata.resourceVersion` is not yet set.
    fn decode(&self, stored: &[u8]) -> Result<Value, String>;
    /// An object to stored bytes. Removes `metadata.resourceVersion`.
    fn encode(&self, object: &Value) -> Result<Bytes, String>;
    /// Gives an object about to be written the form in which it will be read back.
    fn settle(&self, object: &mut Value) {
        let _ = object;
    }
    /// An object to stored bytes, and to compact JSON when that is at hand; neither has a resourceVersion. The write
    /// is about to happen: what is needed to read these bytes back may be kept for [`StorageCodec::to_json`].
    fn encode_both(&self, object: &Value) -> Result<(Bytes, Option<Bytes>), String> {
        let stored = self.encode(object)?;
        let json = stored.starts_with(b"{").then(|| stored.clone());
        Ok((stored, json))
    }
    /// Stored bytes to compact JSON, without resourceVersion. Overridden where the stored bytes are that already.
    fn to_json(&self, stored: &Bytes) -> Result<Bytes, String> {
        let value = self.decode(stored)?;
        serde_json::to_vec(&value)
            .map(Bytes::from)
            .map_err(|e| e.to_string())
    }
}

/// A field that field selectors of a resource may name, and where its value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldSpec {
    /// The selector's name for it, such as `spec.nodeName`.
    pub label: Arc<str>,
    /// Where it stands in the object; the first path that leads to a non-empty scalar wins.
    pub paths: Vec<Vec<Arc<str>>>,
    /// The value when none of the paths leads anywhere (`""`, `"false"`, `"0"`).
    pub default: Arc<str>,
    /// Whether watchers that ask for one value of the field are found by that value (`spec.nodeName`). At most one per
    /// resource.
    pub indexed: bool,
}

/// Everything a cache has to know of its resource.
#[derive(Clone)]
pub struct CacheSpec {
    /// The resource.
    pub resource: GroupResource,
    /// Key prefix in the store, with the slash at its end (`/registry/pods/`). What follows is `namespace/name`, or
    /// `name` for cluster-scoped resources.
    pub prefix: Arc<str>,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// Fields beyond `metadata.name` and `metadata.namespace` that selectors may use; see `fields::builtin`.
    pub fields: Arc<[FieldSpec]>,
    /// The storage format.
    pub codec: Arc<dyn StorageCodec>,
}

/// Finds the spec of a resource; implemented by the registry (built-in resources and CRDs).
pub trait CacheSpecs: Send + Sync + 'static {
    /// `None` when no such resource is served.
    fn spec(&self, resource: &GroupResource) -> Option<CacheSpec>;
}

/// What selectors can see of an object. There is one for each cached object, so it is one text with marks in it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Facts {
    /// Key and value of each label, sorted by key, then the values of the fields in the order of `CacheSpec::fields`.
    text: Box<str>,
    /// Where each of them ends.
    ends: Box<[u32]>,
    labels: u32,
}

impl Facts {
    /// Labels must be sorted by key.
    pub(super) fn new<'a>(
        labels: impl Iterator<Item = (&'a str, &'a str)>,
        fields: impl Iterator<Item = &'a str>,
    ) -> Self {
        let (mut text, mut ends) = (String::new(), Vec::new());
        let mut put = |part: &str| {
            text.push_str(part);
            // Objects are far below 4 GiB.
            ends.push(text.len() as u32);
        };
        let mut count = 0;
        for (key, value) in labels {
            put(key);
            put(value);
            count += 1;
        }
        fields.for_each(put);
        Facts {
            text: text.into(),
            ends: ends.into(),
            labels: count,
        }
    }

    fn part(&self, at: usize) -> Option<&str> {
        let end = *self.ends.get(at)? as usize;
        let start = at
            .checked_sub(1)
            .map_or(0, |before| self.ends[before] as usize);
        self.text.get(start..end)
    }

    fn label_at(&self, at: usize) -> Option<(&str, &str)> {
        Some((self.part(2 * at)?, self.part(2 * at + 1)?))
    }

    /// All labels, sorted by key.
    pub fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        (0..self.labels as usize).filter_map(|at| self.label_at(at))
    }

    /// One label.
    pub fn label(&self, key: &str) -> Option<&str> {
        // A handful: looking through them is quicker than searching.
        self.labels().find(|(k, _)| *k == key).map(|(_, v)| v)
    }

    /// The value of the field at `index` in `CacheSpec::fields`.
    pub fn field(&self, index: usize) -> Option<&str> {
        self.part(2 * self.labels as usize + index)
    }
}

/// One state of one object.
#[derive(Clone, Debug)]
pub struct Entry {
    /// `namespace/name`, or `name` for cluster-scoped resources.
    pub(super) key: Box<str>,
    /// Length of the namespace in `key`; 0 for cluster-scoped.
    pub(super) namespace_len: u16,
    /// Revision of this state.
    pub(super) revision: Revision,
    /// Compact JSON in the storage version, resourceVersion included.
    pub(super) json: Bytes,
    /// Where in `json` the digits of the resourceVersion stand.
    pub(super) revision_at: (u32, u8),
    pub(super) facts: Facts,
}

impl Entry {
    /// Namespace; empty for cluster-scoped resources.
    pub fn namespace(&self) -> &str {
        &self.key[..self.namespace_len as usize]
    }

    /// Name.
    pub fn name(&self) -> &str {
        match self.namespace_len {
            0 => &self.key,
            n => &self.key[n as usize + 1..],
        }
    }

    /// `namespace/name`, or `name` for cluster-scoped resources.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The object's resourceVersion; guards a commit of its next state ([`keelson_store::Expect::ModRevision`]).
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The object as compact JSON in the storage version, resourceVersion included. Shared, never copied.
    pub fn json(&self) -> &Bytes {
        &self.json
    }

    /// What selectors can see.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Decodes the object.
    pub fn value(&self) -> Result<Value, CacheError> {
        serde_json::from_slice(&self.json).map_err(|e| CacheError::Corrupt {
            key: self.key.to_string(),
            reason: e.to_string(),
        })
    }
}

/// A predicate on an entry, made from label and field selectors.
pub type Predicate = Arc<dyn Fn(&Entry) -> bool + Send + Sync>;

/// Which objects of a resource a list or watch is about.
#[derive(Clone, Default)]
pub struct Selection {
    /// Only this namespace.
    pub namespace: Option<String>,
    /// Only this name (`metadata.name=` in the field selector).
    pub name: Option<String>,
    /// Only objects whose indexed field (see [`FieldSpec::indexed`]) has this value: lets a watch be found by it. The
    /// predicate, if it says the same, need not be asked twice, but may.
    pub indexed: Option<String>,
    /// Everything else selectors ask for.
    pub predicate: Option<Predicate>,
}

impl Selection {
    /// Everything.
    pub fn all() -> Self {
        Self::default()
    }

    /// Everything in a namespace.
    pub fn namespace(namespace: &str) -> Self {
        Selection {
            namespace: Some(namespace.to_owned()),
            ..Self::default()
        }
    }
}

/// How new the state has to be that answers a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Whatever is there (`resourceVersion=0`).
    Any,
    /// At least everything acknowledged before the call (`resourceVersion` unset).
    Latest,
    /// At least this revision.
    NotOlderThan(Revision),
    /// The state at exactly this revision. For lists only; a get treats it as `NotOlderThan`.
    Exact(Revision),
}

/// Which part of a list is wanted.
#[derive(Clone, Debug, Default)]
pub struct Paging {
    /// At most so many items; 0 means all.
    pub limit: usize,
    /// The client's continue token; when set, the freshness of the call is not used.
    pub continue_token: Option<String>,
}

/// One page of a list.
#[derive(Clone, Debug)]
pub struct ListPage {
    /// In key order.
    pub items: Vec<Arc<Entry>>,
    /// The list's resourceVersion.
    pub revision: Revision,
    /// Token of the next page (`metadata.continue`); `None` on the last.
    pub next: Option<String>,
    /// How many objects follow (`metadata.remainingItemCount`); unknown when a predicate, name or indexed value selects.
    pub remaining: Option<u64>,
}

/// Where a watch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchStart {
    /// With all present objects as `Added`, then what follows.
    State(Freshness),
    /// With what happened after this revision.
    After(Revision),
}

/// Further wishes of a watcher.
#[derive(Clone, Copy, Debug, Default)]
pub struct WatchOptions {
    /// Send a bookmark about once a minute (`allowWatchBookmarks`).
    pub bookmarks: bool,
    /// Send a bookmark marked as the end of the initial events (`sendInitialEvents`).
    pub initial_events_end: bool,
}

/// What a watcher gets.
#[derive(Clone, Debug)]
pub enum Delivery {
    /// The object came into the selection.
    Added(Arc<Entry>),
    /// The object changed within it.
    Modified(Arc<Entry>),
    /// The object was deleted or left the selection: its last state within it, with the revision of the change.
    Deleted(Arc<Entry>),
    /// Everything up to this revision has been delivered.
    Bookmark {
        /// The revision.
        revision: Revision,
        /// Whether this closes the initial events (annotation `k8s.io/initial-events-end: "true"`).
        initial_events_end: bool,
    },
}

/// What can go wrong with a read. Becomes a `Status` by [`CacheError::to_api`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CacheError {
    /// A list at a revision that is no longer kept.
    #[error("The resourceVersion for the provided list is too old.")]
    ListExpired,
    /// A continued list whose revision is no longer kept; carries a token to go on inconsistently.
    #[error(
        "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list."
    )]
    ContinueExpired {
        /// Goes on after the last key, in the newest state.
        token: String,
    },
    /// A watch from a revision that is no longer kept.
    #[error("too old resource version: {requested} ({oldest})")]
    WatchExpired {
        /// The revision asked for.
        requested: Revision,
        /// The oldest revision a watch may start from.
        oldest: Revision,
    },
    /// The revision asked for was not reached in time.
    #[error("Too large resource version: {requested}, current: {current}")]
    TooLarge {
        /// The revision asked for.
        requested: Revision,
        /// How far the cache is.
        current: Revision,
    },
    /// A continue token that makes no sense.
    #[error("{0}")]
    BadToken(String),
    /// The cache has not yet read its first list, or lost the store.
    #[error("storage is (re)initializing")]
    NotReady,
    /// No such resource is served (any more).
    #[error("the server could not find the requested resource")]
    NoResource,
    /// Stored bytes do not decode.
    #[error("stored object {key} does not decode: {reason}")]
    Corrupt {
        /// Its key.
        key: String,
        /// What the decoder said.
        reason: String,
    },
    /// The store failed.
    #[error("{0}")]
    Store(String),
}

impl CacheError {
    /// The error as clients see it (`k8s.io/apiserver/pkg/storage/errors`).
    pub fn to_api(&self) -> ApiError {
        let message = self.to_string();
        match self {
            CacheError::ListExpired | CacheError::WatchExpired { .. } => {
                ApiError::resource_expired(message)
            }
            CacheError::ContinueExpired { .. } => ApiError::resource_expired(message),
            CacheError::TooLarge { .. } => ApiError::timeout(message, 1).with_cause(
                "ResourceVersionTooLarge",
                "Too large resource version",
                "",
            ),
            CacheError::BadToken(_) => ApiError::bad_request(message),
            CacheError::NotReady => ApiError::too_many_requests(message, 1),
            CacheError::NoResource => ApiError::no_such_resource(),
            CacheError::Corrupt { .. } | CacheError::Store(_) => ApiError::internal(message),
        }
    }
}

impl Selection {
    /// Whether the entry is meant; `indexed` is the position of the resource's indexed field.
    pub(super) fn matches(&self, entry: &Entry, indexed: Option<usize>) -> bool {
        if let Some(namespace) = &self.namespace
            && entry.namespace() != namespace
        {
            return false;
        }
        if let Some(name) = &self.name
            && entry.name() != name
        {
            return false;
        }
        if let Some(value) = &self.indexed
            && indexed.and_then(|at| entry.facts().field(at)) != Some(value)
        {
            return false;
        }
        self.predicate.as_ref().is_none_or(|holds| holds(entry))
    }

    /// Whether nothing but the namespace selects.
    pub(super) fn is_plain(&self) -> bool {
        self.name.is_none() && self.indexed.is_none() && self.predicate.is_none()
    }
}
