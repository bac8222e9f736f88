//! The cache, over the embedded store, under the storage suite.

use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use keelson_machinery::value::Value;
use keelson_store::embedded::{Embedded, OpenError, Options};
use keelson_store::suite::{self, Subject};
use keelson_store::{
    Commit, Error, Event, KeyValue, Page, Range, Revision, Store, Watch, WatchItem,
};

use super::super::entry::tests::things;
use super::super::handle::{Cache, Tuning};
use super::super::types::*;
use super::super::window::Limits;
use crate::testing::HandClock;

/// The cache as a store: reads from the cache, writes through to the store below.
struct Cached {
    store: Arc<Embedded>,
    cache: Cache,
}

impl Cached {
    /// A cached entry as it is stored.
    fn stored(&self, entry: &Entry) -> KeyValue {
        let value = entry.value().unwrap();
        KeyValue {
            key: format!("{}{}", self.cache.spec().prefix, entry.key()),
            value: self.cache.codec().encode(&value).unwrap(),
            // A cache does not know it; the suite's cases that compare it fill it in below.
            create_revision: 0,
            mod_revision: entry.revision(),
        }
    }

    /// The create revision, which only the store below knows.
    async fn complete(&self, mut kv: KeyValue) -> KeyValue {
        let (found, _) = self
            .store
            .get(&kv.key, Some(kv.mod_revision))
            .await
            .unwrap();
        kv.create_revision = found.unwrap().create_revision;
        kv
    }
}

fn store_error(error: CacheError, requested: Revision) -> Error {
    match error {
        CacheError::ListExpired | CacheError::ContinueExpired { .. } => Error::Compacted {
            requested,
            oldest: 0,
        },
        CacheError::WatchExpired { requested, .. } => Error::Compacted {
            requested,
            oldest: 0,
        },
        CacheError::TooLarge { requested, current } => Error::Future { requested, current },
        other => Error::Failed(other.to_string()),
    }
}

#[async_trait]
impl Store for Cached {
    async fn get(
        &self,
        key: &str,
        at: Option<Revision>,
    ) -> Result<(Option<KeyValue>, Revision), Error> {
        let range = Range {
            start: Bound::Included(key.to_owned()),
            end: Some(format!("{key}\0")),
        };
        let page = self.list(range, at, 0).await?;
        Ok((page.items.into_iter().next(), page.revision))
    }

    async fn list(&self, range: Range, at: Option<Revision>, limit: usize) -> Result<Page, Error> {
        let freshness = at.map_or(Freshness::Latest, Freshness::Exact);
        let key = |entry: &Entry| format!("{}{}", self.cache.spec().prefix, entry.key());
        let predicate: Predicate = Arc::new({
            let (range, prefix) = (range.clone(), self.cache.spec().prefix.clone());
            move |entry: &Entry| range.contains(&format!("{prefix}{}", entry.key()))
        });
        let whole = Range::prefix(&self.cache.spec().prefix);
        let is_whole = format!("{range:?}") == format!("{whole:?}");
        let selection = Selection {
            predicate: (!is_whole).then_some(predicate),
            ..Selection::all()
        };
        // In pages of two, joined by their tokens.
        let (mut items, mut token, mut revision) = (Vec::new(), None, None);
        loop {
            let paging = Paging {
                limit: 2,
                continue_token: token,
            };
            let page = self.cache.list(&selection, freshness, paging).await;
            let page = page.map_err(|e| store_error(e, at.unwrap_or(0)))?;
            assert_eq!(*revision.get_or_insert(page.revision), page.revision);
            for entry in &page.items {
                assert!(range.contains(&key(entry)));
                items.push(self.complete(self.stored(entry)).await);
            }
            token = page.next;
            if token.is_none() {
                break;
            }
        }
        let all = items.len();
        items.truncate(if limit == 0 { all } else { limit });
        Ok(Page {
            remaining: (all - items.len()) as u64,
            items,
            revision: revision.unwrap_or(0),
        })
    }

    async fn commit(&self, commit: Commit) -> Result<Revision, Error> {
        self.store.commit(commit).await
    }

    async fn watch(&self, range: Range, after: Revision) -> Result<Watch, Error> {
        // Real watchers may begin in the future; the suite's may not.
        let current = self.store.revision().await?;
        if after > current {
            return Err(Error::Future {
                requested: after,
                current,
            });
        }
        let started = self.cache.watch(
            Selection::all(),
            WatchStart::After(after),
            WatchOptions::default(),
        );
        let stream = started.await.map_err(|e| store_error(e, after))?;
        let store = self.store.clone();
        let prefix = self.cache.spec().prefix.clone();
        let items = stream.filter_map(move |delivery| {
            let (store, range, prefix) = (store.clone(), range.clone(), prefix.clone());
            async move {
                let (entry, deleted) = match &delivery {
                    Delivery::Added(entry) | Delivery::Modified(entry) => (entry, false),
                    Delivery::Deleted(entry) => (entry, true),
                    Delivery::Bookmark { .. } => return None,
                };
                let key = format!("{prefix}{}", entry.key());
                if !range.contains(&key) {
                    return None;
                }
                let at = |revision| {
                    let (store, key) = (store.clone(), key.clone());
                    async move {
                        store
                            .get(&key, Some(revision))
                            .await
                            .ok()
                            .and_then(|(kv, _)| kv)
                    }
                };
                let revision = entry.revision();
                let (before, now) = (at(revision - 1).await, at(revision).await);
                // What the cache delivered is what the store has.
                let mut value = entry.value().unwrap();
                value["metadata"]
                    .as_object_mut()
                    .unwrap()
                    .remove("resourceVersion");
                let expected = if deleted { &before } else { &now };
                // The state before the first revision kept cannot be looked up.
                if let Some(expected) = expected {
                    let expected: Value = serde_json::from_slice(&expected.value).unwrap();
                    assert_eq!(value, expected);
                }
                assert_eq!(now.is_none(), deleted);
                if !deleted && let Some(before) = &before {
                    assert!(matches!(delivery, Delivery::Modified(_)), "{before:?}");
                }
                let event = Event {
                    key,
                    current: now,
                    previous: before,
                    revision,
                };
                Some(Ok(WatchItem::Events(vec![event])))
            }
        });
        let below = self
            .store
            .watch(Range::prefix("/nothing/"), current)
            .await?;
        Ok(Watch {
            items: items.boxed(),
            progress: below.progress,
        })
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.store.compact(revision).await
    }

    async fn revision(&self) -> Result<Revision, Error> {
        self.store.revision().await
    }
}

struct CachedEngine {
    dir: tempfile::TempDir,
    clock: HandClock,
    limits: Limits,
    cached: Option<Arc<Cached>>,
}

#[async_trait]
impl Subject for CachedEngine {
    fn store(&self) -> Arc<dyn Store> {
        self.cached.clone().unwrap()
    }

    fn prefix(&self) -> String {
        "/registry/things/".to_owned()
    }

    async fn restart(&mut self) -> bool {
        self.cached = None;
        let options = Options::new(self.clock.clock());
        let path = self.dir.path().join("db");
        // The tasks of the old cache let go of the database when they are next looked at.
        let store = loop {
            match Embedded::open(&path, options.clone()) {
                Ok(store) => break store,
                Err(OpenError::Locked { .. }) => {
                    tokio::task::yield_now().await;
                }
                Err(error) => panic!("{error}"),
            }
        };
        let tuning = Tuning {
            limits: self.limits,
            wait: Duration::from_millis(500),
            ..Tuning::default()
        };
        let cache = Cache::start_with(things(), store.clone(), tuning);
        self.cached = Some(Arc::new(Cached { store, cache }));
        true
    }

    async fn pass(&mut self, seconds: u64) -> bool {
        self.clock.advance(seconds as i64);
        true
    }
}

/// With a window that holds everything, and with one that holds next to nothing, so that the past comes from the store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passes_the_storage_suite() {
    let small = Limits {
        events: 1,
        bytes: 1,
        age_ms: 0,
    };
    for limits in [Limits::default(), small] {
        let cases = suite::CASES
            .iter()
            .copied()
            // A cache has no progress of its own to ask for, and compaction is the store's.
            .filter(|case| {
                !matches!(
                    *case,
                    "progress_reaches_what_was_acknowledged" | "compaction_forgets_only_the_past"
                )
            });
        suite::run(cases, async |_| {
            let mut engine = CachedEngine {
                dir: tempfile::tempdir().unwrap(),
                clock: HandClock::new(),
                limits,
                cached: None,
            };
            engine.restart().await;
            Box::new(engine) as Box<dyn Subject>
        })
        .await;
    }
}
