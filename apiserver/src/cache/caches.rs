//! One cache per resource, made when somebody first asks for it; and the server's own filters as its readers.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use keelson_machinery::status::ApiError;
use keelson_machinery::value::Value;
use keelson_store::Store;
use parking_lot::Mutex;

use super::handle::{Cache, Tuning, WatchStream};
use super::types::{
    CacheError, CacheSpecs, Delivery, Entry, Freshness, Paging, Selection, WatchOptions, WatchStart,
};
use crate::reader::{Change, GroupResource, ObjectReader};

/// How long a reader of changes waits before it tries a resource again that cannot be read.
const RETRY: Duration = Duration::from_millis(500);

/// How long reads that have begun may go on in a cache that is no longer to be used.
const RETIREMENT: Duration = Duration::from_secs(1);

/// The caches of all resources.
pub struct Caches {
    store: Arc<dyn Store>,
    specs: Arc<dyn CacheSpecs>,
    tuning: Tuning,
    caches: Mutex<HashMap<GroupResource, Arc<Cache>>>,
    /// For streams that outlive the call that made them.
    me: Weak<Caches>,
}

impl Caches {
    /// No cache yet; `specs` knows the resources.
    pub fn new(store: Arc<dyn Store>, specs: Arc<dyn CacheSpecs>) -> Arc<Self> {
        Self::tuned(store, specs, Tuning::default())
    }

    pub(super) fn tuned(
        store: Arc<dyn Store>,
        specs: Arc<dyn CacheSpecs>,
        tuning: Tuning,
    ) -> Arc<Self> {
        Arc::new_cyclic(|me| Caches {
            store,
            specs,
            tuning,
            caches: Mutex::default(),
            me: me.clone(),
        })
    }

    /// The store below.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The cache of a resource, started now if it is not yet. Must be called within a tokio runtime.
    pub fn cache(&self, resource: &GroupResource) -> Result<Arc<Cache>, CacheError> {
        let mut caches = self.caches.lock();
        if let Some(cache) = caches.get(resource) {
            return Ok(cache.clone());
        }
        let spec = self.specs.spec(resource).ok_or(CacheError::NoResource)?;
        let cache = Arc::new(Cache::start_with(spec, self.store.clone(), self.tuning));
        caches.insert(resource.clone(), cache.clone());
        Ok(cache)
    }

    /// Forgets the cache of a resource that is no longer served, or served in another way; its watchers end. The next
    /// use starts a new one.
    pub fn remove(&self, resource: &GroupResource) {
        let removed = self.caches.lock().remove(resource);
        if let Some(cache) = removed {
            cache.close();
        }
    }

    /// Forgets the cache of a resource that is read in another way from now on. Who has begun to read may finish;
    /// watchers end soon.
    pub fn retire(&self, resource: &GroupResource) {
        let removed = self.caches.lock().remove(resource);
        if let Some(cache) = removed {
            tokio::spawn(async move {
                tokio::time::sleep(RETIREMENT).await;
                cache.close();
            });
        }
    }

    /// Forgets all caches.
    pub fn close(&self) {
        for (_, cache) in self.caches.lock().drain() {
            cache.close();
        }
    }
}

fn value(entry: &Entry) -> Result<Arc<Value>, ApiError> {
    entry.value().map(Arc::new).map_err(|e| e.to_api())
}

#[async_trait]
impl ObjectReader for Caches {
    async fn get(
        &self,
        resource: &GroupResource,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Value>>, ApiError> {
        let cache = self.cache(resource).map_err(|e| e.to_api())?;
        let found = cache.get(namespace, name, Freshness::Latest).await;
        let found = found.map_err(|e| e.to_api())?;
        found.map(|entry| value(&entry)).transpose()
    }

    async fn list(
        &self,
        resource: &GroupResource,
        namespace: Option<&str>,
    ) -> Result<Vec<Arc<Value>>, ApiError> {
        let cache = self.cache(resource).map_err(|e| e.to_api())?;
        let selection = namespace.map_or_else(Selection::all, Selection::namespace);
        let page = cache
            .list(&selection, Freshness::Latest, Paging::default())
            .await
            .map_err(|e| e.to_api())?;
        page.items.iter().map(|entry| value(entry)).collect()
    }

    fn changes(&self, resource: &GroupResource) -> BoxStream<'static, Change> {
        let changes = Changes {
            caches: self.me.clone(),
            resource: resource.clone(),
            watch: None,
            known: HashMap::new(),
            unconfirmed: None,
            pending: VecDeque::new(),
        };
        stream::unfold(changes, |mut changes| async move {
            let change = changes.next().await?;
            Some((change, changes))
        })
        .boxed()
    }
}

/// The state of one stream of changes.
struct Changes {
    caches: Weak<Caches>,
    resource: GroupResource,
    watch: Option<WatchStream>,
    /// What the reader believes to exist.
    known: HashMap<Box<str>, Arc<Entry>>,
    /// While a new watch delivers its initial objects: those of `known` that have not come yet.
    unconfirmed: Option<HashMap<Box<str>, Arc<Entry>>>,
    pending: VecDeque<Change>,
}

impl Changes {
    /// The next change; `None` when the caches are gone.
    async fn next(&mut self) -> Option<Change> {
        loop {
            if let Some(change) = self.pending.pop_front() {
                return Some(change);
            }
            let Some(watch) = &mut self.watch else {
                let caches = self.caches.upgrade()?;
                match Self::open(&caches, &self.resource).await {
                    Ok(watch) => {
                        self.watch = Some(watch);
                        self.unconfirmed = Some(std::mem::take(&mut self.known));
                    }
                    Err(error) => {
                        tracing::debug!(resource = %self.resource, %error, "cannot be read yet");
                        drop(caches);
                        tokio::time::sleep(RETRY).await;
                    }
                }
                continue;
            };
            match watch.next().await {
                Some(delivery) => self.take(delivery),
                None => {
                    self.watch = None;
                    // Cut short: what has not come is still believed to exist.
                    self.known
                        .extend(self.unconfirmed.take().into_iter().flatten());
                }
            }
        }
    }

    async fn open(caches: &Caches, resource: &GroupResource) -> Result<WatchStream, CacheError> {
        let options = WatchOptions {
            bookmarks: false,
            initial_events_end: true,
        };
        let start = WatchStart::State(Freshness::Latest);
        let cache = caches.cache(resource)?;
        cache.watch(Selection::all(), start, options).await
    }

    fn take(&mut self, delivery: Delivery) {
        let applied = match delivery {
            Delivery::Added(entry) | Delivery::Modified(entry) => {
                let before = self
                    .unconfirmed
                    .as_mut()
                    .and_then(|unconfirmed| unconfirmed.remove(entry.key()));
                self.known.insert(entry.key().into(), entry.clone());
                // Told already, before the watch was lost.
                if before.is_some_and(|before| before.revision() == entry.revision()) {
                    return;
                }
                value(&entry).map(Change::Applied)
            }
            Delivery::Deleted(entry) => {
                self.known.remove(entry.key());
                value(&entry).map(Change::Deleted)
            }
            Delivery::Bookmark { .. } => {
                let vanished = self.unconfirmed.take().into_iter().flatten();
                for (_, entry) in vanished {
                    match value(&entry) {
                        Ok(object) => self.pending.push_back(Change::Deleted(object)),
                        Err(error) => tracing::error!(%error, "a cached object does not decode"),
                    }
                }
                Ok(Change::Synced)
            }
        };
        match applied {
            Ok(change) => self.pending.push_back(change),
            // Cached JSON was scanned whole when it came; this would be a flaw of the scanner.
            Err(error) => tracing::error!(%error, "a cached object does not decode"),
        }
    }
}
