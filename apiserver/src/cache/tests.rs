//! The cache against models: its core without a runtime, and the whole of it, over the embedded store, under the
//! store's own suite.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use keelson_machinery::clock::Clock;
use keelson_machinery::value::Value;
use keelson_store::embedded::{Embedded, Options};
use keelson_store::suite::{self, Subject};
use keelson_store::{
    Commit, Error, Event, Expect, KeyValue, Page, Range, Revision, Store, Watch, WatchItem,
};
use proptest::prelude::*;

use super::caches::Caches;
use super::core::{Core, Sink, page};
use super::entry::Builder;
use super::entry::tests::{Json, things};
use super::handle::{Cache, Tuning, WatchStream};
use super::types::*;
use super::window::Limits;
use crate::reader::{Change, GroupResource, ObjectReader};
use crate::testing::HandClock;

/// What a watcher got, as text: kind, key, revision.
#[derive(Clone, Default)]
struct Notes {
    taken: Rc<RefCell<Vec<String>>>,
    /// How many more are taken.
    room: Rc<RefCell<usize>>,
}

fn note(delivery: &Delivery) -> String {
    let line = |kind: &str, entry: &Entry| {
        let value = entry.value().unwrap();
        // The object says the same as the entry.
        let revision = value["metadata"]["resourceVersion"].as_str().unwrap();
        assert_eq!(revision, entry.revision().to_string());
        format!("{kind} {} {} {}", entry.key(), entry.revision(), value["n"])
    };
    match delivery {
        Delivery::Added(entry) => line("ADDED", entry),
        Delivery::Modified(entry) => line("MODIFIED", entry),
        Delivery::Deleted(entry) => line("DELETED", entry),
        Delivery::Bookmark {
            revision,
            initial_events_end,
        } => format!("BOOKMARK {revision} {initial_events_end}"),
    }
}

impl Sink for Notes {
    fn offer(&self, delivery: Delivery) -> bool {
        let mut room = self.room.borrow_mut();
        if *room == 0 {
            return false;
        }
        *room -= 1;
        self.taken.borrow_mut().push(note(&delivery));
        true
    }
}

fn stored(key: &str, revision: Revision, label: u8, node: u8, n: u64) -> KeyValue {
    KeyValue {
        key: format!("/registry/things/{key}"),
        value: Bytes::from(format!(
            r#"{{"metadata":{{"labels":{{"l":"{label}"}}}},"n":{n},"spec":{{"nodeName":"{node}"}}}}"#
        )),
        create_revision: revision,
        mod_revision: revision,
    }
}

/// One change of the random history: which key, deleted or not, its label and its node.
type Step = (usize, bool, u8, u8);

const KEYS: [&str; 6] = ["a/x", "a/y", "a-b/x", "b/x", "b/y", "c/x"];

fn selections() -> Vec<(&'static str, Selection)> {
    let labelled: Predicate = Arc::new(|entry| entry.facts().label("l") == Some("1"));
    let base = Selection::all;
    let some = |s: &str| Some(s.to_owned());
    vec![
        ("all", base()),
        ("namespace", Selection::namespace("a")),
        (
            "label",
            Selection {
                predicate: Some(labelled.clone()),
                ..base()
            },
        ),
        (
            "namespace and label",
            Selection {
                namespace: some("b"),
                predicate: Some(labelled),
                ..base()
            },
        ),
        (
            "one object",
            Selection {
                namespace: some("a"),
                name: some("x"),
                ..base()
            },
        ),
        (
            "a name anywhere",
            Selection {
                name: some("x"),
                ..base()
            },
        ),
        (
            "node",
            Selection {
                indexed: some("1"),
                ..base()
            },
        ),
        (
            "node in a namespace",
            Selection {
                indexed: some("1"),
                namespace: some("b"),
                ..base()
            },
        ),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any history: every watcher, whenever it starts and whatever it selects, gets what comparing the state before
    /// and after each change says it should; every revision in the window lists as it was; and a watcher that starts
    /// late gets the same as one that was there.
    #[test]
    fn the_core_agrees_with_a_model(
        steps in prop::collection::vec((0..KEYS.len(), prop::bool::weighted(0.3), 0..2u8, 0..3u8), 1..200),
        limit in 1usize..5,
    ) {
        let builder = Builder::new(things());
        let limits = Limits { events: 100, ..Limits::default() };
        let mut core: Core<Notes> = Core::new(limits, builder.indexed());
        core.reset(Vec::new(), 10);
        let selections = selections();
        let mut live = Vec::new();
        for (_, selection) in &selections {
            let notes = Notes { room: Rc::new(RefCell::new(usize::MAX)), ..Notes::default() };
            let (_, past) = core.subscribe(Arc::new(selection.clone()), 10, notes.clone());
            prop_assert!(past.is_ok_and(|p| p.is_empty()));
            live.push(notes);
        }
        // Revisions are those of the whole store: there are gaps.
        let mut states: Vec<(Revision, BTreeMap<String, Arc<Entry>>)> = vec![(10, BTreeMap::new())];
        let mut expected: Vec<Vec<(Revision, String)>> = vec![Vec::new(); selections.len()];
        for (n, (key, delete, label, node)) in steps.iter().copied().enumerate() {
            let step: Step = (key, delete, label, node);
            let revision = states.last().unwrap().0 + 1 + (n as u64 % 3);
            let mut state = states.last().unwrap().1.clone();
            let key = KEYS[step.0];
            let previous = state.get(key).cloned();
            if step.1 && previous.is_none() {
                continue;
            }
            let current = (!step.1).then(|| builder.entry(&stored(key, revision, label, node, n as u64)).unwrap());
            match &current {
                Some(current) => state.insert(key.to_owned(), current.clone()),
                None => state.remove(key),
            };
            core.apply(key, current.clone(), revision, n as u64);
            states.push((revision, state));
            for ((_, selection), expected) in selections.iter().zip(&mut expected) {
                let matches = |e: &Option<Arc<Entry>>| e.as_ref().is_some_and(|e| selection.matches(e, builder.indexed()));
                let n_of = |e: &Option<Arc<Entry>>| e.as_ref().unwrap().value().unwrap()["n"].clone();
                let line = match (matches(&previous), matches(&current)) {
                    (false, false) => continue,
                    (false, true) => format!("ADDED {key} {revision} {}", n_of(&current)),
                    (true, true) => format!("MODIFIED {key} {revision} {}", n_of(&current)),
                    (true, false) => format!("DELETED {key} {revision} {}", n_of(&previous)),
                };
                expected.push((revision, line));
            }
        }
        for (((name, selection), notes), expected) in selections.iter().zip(&live).zip(&expected) {
            let lines: Vec<_> = expected.iter().map(|(_, l)| l.clone()).collect();
            prop_assert_eq!(&*notes.taken.borrow(), &lines, "{}", name);
            // Late watchers: from each revision.
            for (after, _) in states.iter().step_by(9) {
                let (id, past) = core.subscribe(Arc::new(selection.clone()), *after, Notes::default());
                core.unsubscribe(id);
                let lines: Vec<_> = expected.iter().filter(|(r, _)| r > after).map(|(_, l)| l.clone()).collect();
                match past {
                    Ok(past) => prop_assert_eq!(past.iter().map(note).collect::<Vec<_>>(), lines),
                    Err(_) => prop_assert!(core.at(*after).is_none()),
                }
            }
        }
        // Lists, whole and paged, at every revision the window knows, and at those between.
        let newest = states.last().unwrap().0;
        let mut known = 0;
        for at in 10..=newest {
            let state = &states.iter().rev().find(|(r, _)| *r <= at).unwrap().1;
            let Some(snapshot) = core.at(at) else { continue };
            known += 1;
            for (name, selection) in &selections {
                let wanted: Vec<_> = state.values().filter(|e| selection.matches(e, builder.indexed())).map(|e| (e.key().to_owned(), e.revision())).collect();
                let all = page(&snapshot, selection, builder.indexed(), 0, None);
                let view = |items: &[Arc<Entry>]| items.iter().map(|e| (e.key().to_owned(), e.revision())).collect::<Vec<_>>();
                prop_assert_eq!(view(&all.items), wanted.clone(), "{} at {}", name, at);
                prop_assert!(all.next.is_none());
                let (mut got, mut start) = (Vec::new(), None::<String>);
                loop {
                    let part = page(&snapshot, selection, builder.indexed(), limit, start.as_deref());
                    prop_assert!(part.items.len() <= limit);
                    got.extend(view(&part.items));
                    if let Some(remaining) = part.remaining {
                        prop_assert_eq!(remaining as usize, wanted.len() - got.len());
                    }
                    match part.next {
                        None => break,
                        Some(next) => start = Some(super::token::Token::decode(&next).unwrap().start),
                    }
                }
                prop_assert_eq!(got, wanted, "{} at {} in pages of {}", name, at, limit);
            }
        }
        prop_assert!(known > 0 && core.at(newest + 1).is_none());
        if states.len() > 300 {
            prop_assert!(core.at(10).is_none(), "the window is bounded");
        }
    }
}

#[test]
fn the_window_forgets_by_size_and_age() {
    let builder = Builder::new(things());
    for (limits, kept_at_least, kept_at_most) in [
        (
            Limits {
                events: 200,
                ..Limits::default()
            },
            137,
            200,
        ),
        (
            Limits {
                bytes: 64 * 1024,
                ..Limits::default()
            },
            1,
            200,
        ),
        (
            Limits {
                age_ms: 100,
                ..Limits::default()
            },
            1,
            170,
        ),
    ] {
        let mut core: Core<Notes> = Core::new(limits, None);
        core.reset(Vec::new(), 1);
        for revision in 2..=1000 {
            let entry = builder
                .entry(&stored("a/x", revision, 0, 0, revision))
                .unwrap();
            core.apply("a/x", Some(entry), revision, revision);
        }
        let kept = (1..=1000).filter(|r| core.at(*r).is_some()).count();
        assert!(
            (kept_at_least..=kept_at_most).contains(&kept),
            "{limits:?} keeps {kept}"
        );
        // With time the rest goes too; the present stays.
        core.trim(10_000_000);
        assert!(core.at(999).is_none());
        assert_eq!(core.at(1000).unwrap().objects.len(), 1);
    }
}

#[test]
fn slow_watchers_end_and_others_go_on() {
    let builder = Builder::new(things());
    let mut core: Core<Notes> = Core::new(Limits::default(), None);
    core.reset(Vec::new(), 1);
    let watcher = |room| Notes {
        room: Rc::new(RefCell::new(room)),
        ..Notes::default()
    };
    let (slow, quick) = (watcher(3), watcher(100));
    for notes in [&slow, &quick] {
        let (_, past) = core.subscribe(Arc::new(Selection::all()), 1, notes.clone());
        assert!(past.is_ok_and(|p| p.is_empty()));
    }
    for revision in 2..=11 {
        let entry = builder.entry(&stored("a/x", revision, 0, 0, 0)).unwrap();
        core.apply("a/x", Some(entry), revision, 0);
    }
    assert_eq!(slow.taken.borrow().len(), 3);
    assert_eq!(quick.taken.borrow().len(), 10);
    assert_eq!(core.watcher_count(), 1);
}

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
                Err(keelson_store::embedded::OpenError::Locked { .. }) => {
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

struct OneSpec;

impl CacheSpecs for OneSpec {
    fn spec(&self, resource: &GroupResource) -> Option<CacheSpec> {
        (resource.resource == "things").then(things)
    }
}

struct Fixture {
    _dir: tempfile::TempDir,
    store: Arc<Embedded>,
    caches: Arc<Caches>,
    things: GroupResource,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = Options::new(Clock::system());
        let store = Embedded::open(dir.path().join("db"), options).unwrap();
        // Short, so that tests need not wait long for what takes that long.
        let tuning = Tuning {
            limits: Limits::default(),
            wait: Duration::from_secs(1),
            bookmark: Duration::from_millis(100),
            housekeeping: Duration::from_millis(30),
        };
        Fixture {
            _dir: dir,
            caches: Caches::tuned(store.clone(), Arc::new(OneSpec), tuning),
            store,
            things: GroupResource::new("", "things"),
        }
    }

    fn cache(&self) -> Arc<Cache> {
        self.caches.cache(&self.things).unwrap()
    }

    async fn put(&self, key: &str, expect: Expect, n: u64) -> Revision {
        let kv = stored(key, 0, 1, 1, n);
        let commit = Commit {
            key: kv.key,
            expect,
            value: Some(kv.value),
            ttl_seconds: None,
        };
        self.store.commit(commit).await.unwrap()
    }

    async fn delete(&self, key: &str, at: Revision) -> Revision {
        let commit = Commit {
            key: format!("/registry/things/{key}"),
            expect: Expect::ModRevision(at),
            value: None,
            ttl_seconds: None,
        };
        self.store.commit(commit).await.unwrap()
    }
}

async fn take(stream: &mut WatchStream, count: usize) -> Vec<String> {
    let mut notes = Vec::new();
    while notes.len() < count {
        let next = tokio::time::timeout(Duration::from_secs(20), stream.next()).await;
        let delivery = next.expect("the watch is silent").expect("the watch ended");
        notes.push(note(&delivery));
    }
    notes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_follow_writes() {
    let at = Fixture::new();
    let cache = at.cache();
    for n in 0..200 {
        let key = format!("ns/{n}");
        let created = at.put(&key, Expect::Absent, n).await;
        let name = n.to_string();
        let found = cache.get("ns", &name, Freshness::Latest).await.unwrap();
        assert_eq!(found.unwrap().revision(), created);
        // A change elsewhere, then a read that names its revision.
        let elsewhere = Commit {
            key: format!("/registry/others/{n}"),
            expect: Expect::Absent,
            value: Some(Bytes::from_static(b"{}")),
            ttl_seconds: None,
        };
        let elsewhere = at.store.commit(elsewhere).await.unwrap();
        let page = cache
            .list(
                &Selection::all(),
                Freshness::NotOlderThan(elsewhere),
                Paging::default(),
            )
            .await
            .unwrap();
        assert!(page.revision >= elsewhere && page.items.len() == n as usize + 1);
        let deleted = at.delete(&key, created).await;
        let gone = cache
            .get("ns", &name, Freshness::NotOlderThan(deleted))
            .await
            .unwrap();
        assert!(gone.is_none());
        at.put(&key, Expect::Absent, n).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn says_what_it_cannot_serve() {
    let at = Fixture::new();
    let cache = at.cache();
    let none = at.caches.cache(&GroupResource::new("", "nothings"));
    assert_eq!(none.err(), Some(CacheError::NoResource));
    let future = Freshness::NotOlderThan(1000);
    let late = cache.get("ns", "a", future).await.err().unwrap();
    assert_eq!(
        late.to_string(),
        "Too large resource version: 1000, current: 1"
    );
    let status = late.to_api().to_value();
    assert_eq!(status["code"], 504);
    assert_eq!(
        status["details"]["causes"][0]["reason"],
        "ResourceVersionTooLarge"
    );
    assert_eq!(status["details"]["retryAfterSeconds"], 1);

    let mut last = at.put("ns/a", Expect::Absent, 0).await;
    let first = last;
    at.put("ns/b", Expect::Absent, 0).await;
    let paging = |continue_token| Paging {
        limit: 1,
        continue_token,
    };
    let page = cache
        .list(&Selection::all(), Freshness::Latest, paging(None))
        .await
        .unwrap();
    assert_eq!((page.remaining, page.items.len()), (Some(1), 1));
    for n in 0..10_000 / 64 {
        last = at.put("ns/a", Expect::ModRevision(last), n).await;
    }
    at.store.compact(last).await.unwrap();
    // The cache still remembers what the store has forgotten; a new one does not.
    let again = cache
        .list(
            &Selection::all(),
            Freshness::Exact(first),
            Paging::default(),
        )
        .await
        .unwrap();
    assert_eq!((again.revision, again.items.len()), (first, 1));
    at.caches.remove(&at.things);
    assert_eq!(
        cache.get("ns", "a", Freshness::Any).await.err(),
        Some(CacheError::NoResource)
    );
    let cache = at.cache();
    let expired = cache
        .list(&Selection::all(), Freshness::Latest, paging(page.next))
        .await
        .err()
        .unwrap();
    let CacheError::ContinueExpired { token } = &expired else {
        panic!("{expired:?}");
    };
    assert_eq!(expired.to_api().to_value()["code"], 410);
    let rest = cache
        .list(
            &Selection::all(),
            Freshness::Any,
            paging(Some(token.clone())),
        )
        .await
        .unwrap();
    assert_eq!(rest.items[0].key(), "ns/b");
    assert_eq!(
        cache
            .list(
                &Selection::all(),
                Freshness::Exact(first),
                Paging::default()
            )
            .await
            .err(),
        Some(CacheError::ListExpired)
    );
    let watch = cache
        .watch(
            Selection::all(),
            WatchStart::After(first),
            WatchOptions::default(),
        )
        .await;
    assert!(
        matches!(watch.err(), Some(CacheError::WatchExpired { requested, .. }) if requested == first)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_begin_and_are_marked() {
    let at = Fixture::new();
    let cache = at.cache();
    let a = at.put("ns/a", Expect::Absent, 1).await;
    let b = at.put("ns/b", Expect::Absent, 2).await;
    let options = WatchOptions {
        bookmarks: true,
        initial_events_end: true,
    };
    let start = WatchStart::State(Freshness::Latest);
    let mut watch = cache.watch(Selection::all(), start, options).await.unwrap();
    assert_eq!(
        take(&mut watch, 3).await,
        [
            format!("ADDED ns/a {a} 1"),
            format!("ADDED ns/b {b} 2"),
            format!("BOOKMARK {b} true")
        ]
    );
    let deleted = at.delete("ns/a", a).await;
    assert_eq!(
        take(&mut watch, 1).await,
        [format!("DELETED ns/a {deleted} 1")]
    );
    // Changes elsewhere move an idle watcher's bookmarks on.
    let mut elsewhere = 0;
    for n in 0..3 {
        let commit = Commit {
            key: format!("/registry/others/{n}"),
            expect: Expect::Absent,
            value: Some(Bytes::from_static(b"{}")),
            ttl_seconds: None,
        };
        elsewhere = at.store.commit(commit).await.unwrap();
    }
    assert_eq!(
        take(&mut watch, 1).await,
        [format!("BOOKMARK {elsewhere} false")]
    );
    // From the future: what comes before it is not delivered.
    let mut later = cache
        .watch(
            Selection::all(),
            WatchStart::After(elsewhere + 1),
            WatchOptions::default(),
        )
        .await
        .unwrap();
    at.put("ns/c", Expect::Absent, 1).await;
    let d = at.put("ns/d", Expect::Absent, 1).await;
    assert_eq!(take(&mut later, 1).await, [format!("ADDED ns/d {d} 1")]);
    drop(later);
    assert_eq!(cache.watcher_count(), 1);
    at.caches.remove(&at.things);
    take(&mut watch, 2).await;
    assert!(watch.next().await.is_none());
}

#[tokio::test]
async fn a_damaged_object_is_an_error_not_an_empty_list() {
    let at = Fixture::new();
    at.put("ns/a", Expect::Absent, 1).await;
    let commit = Commit {
        key: "/registry/things/ns/b".to_owned(),
        expect: Expect::Absent,
        value: Some(Bytes::from_static(b"\x00garbage")),
        ttl_seconds: None,
    };
    at.store.commit(commit).await.unwrap();
    let listed = at
        .cache()
        .list(&Selection::all(), Freshness::Any, Paging::default())
        .await;
    assert!(
        matches!(listed.as_ref().err(), Some(CacheError::Corrupt { key, .. }) if key == "/registry/things/ns/b"),
        "{listed:?}"
    );
}

#[tokio::test]
async fn filters_read_and_follow() {
    let at = Fixture::new();
    let a = at.put("ns/a", Expect::Absent, 1).await;
    let reader: &dyn ObjectReader = &*at.caches;
    let found = reader.get(&at.things, "ns", "a").await.unwrap().unwrap();
    assert_eq!(found["metadata"]["resourceVersion"], a.to_string());
    assert!(reader.get(&at.things, "ns", "b").await.unwrap().is_none());
    assert_eq!(reader.list(&at.things, Some("ns")).await.unwrap().len(), 1);
    assert_eq!(
        reader.list(&at.things, Some("other")).await.unwrap().len(),
        0
    );
    let unknown = GroupResource::new("", "nothings");
    assert_eq!(reader.list(&unknown, None).await.err().unwrap().code, 404);

    let mut changes = reader.changes(&at.things);
    let mut next = async || {
        let change = tokio::time::timeout(Duration::from_secs(20), changes.next()).await;
        match change.expect("silent").expect("ended") {
            Change::Applied(object) => format!("applied {}", object["n"]),
            Change::Deleted(object) => format!("deleted {}", object["n"]),
            Change::Synced => "synced".to_owned(),
        }
    };
    assert_eq!([next().await, next().await], ["applied 1", "synced"]);
    let b = at.put("ns/b", Expect::Absent, 2).await;
    assert_eq!(next().await, "applied 2");
    // The cache starts anew, and meanwhile an object goes and another changes.
    at.caches.remove(&at.things);
    at.delete("ns/a", a).await;
    at.put("ns/b", Expect::ModRevision(b), 3).await;
    assert_eq!(next().await, "applied 3");
    assert_eq!([next().await, next().await], ["deleted 1", "synced"]);
}

/// Keeps the codec of the fixtures honest: what it stores carries no resourceVersion.
#[test]
fn stored_values_carry_no_revision() {
    let object = serde_json::json!({"metadata": {"name": "a", "resourceVersion": "5"}});
    let stored = Json.encode(&object).unwrap();
    assert_eq!(&stored[..], br#"{"metadata":{"name":"a"}}"#);
}
