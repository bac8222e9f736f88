//! The cache against models: its core without a runtime (`model`), and the whole of it, over the embedded store, under
//! the store's own suite (`suite`); here, what callers can rely on beyond that.

mod model;
mod suite;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use keelson_machinery::clock::Clock;
use keelson_store::embedded::{Embedded, Options};
use keelson_store::{Commit, Expect, KeyValue, Revision, Store};

use super::caches::Caches;
use super::entry::tests::{Json, things};
use super::handle::{Cache, Tuning, WatchStream};
use super::types::*;
use super::window::Limits;
use crate::reader::{Change, GroupResource, ObjectReader};

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

/// While an object makes the reader panic there are errors, not old states; then the cache goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flaw_in_reading_is_told_and_passes() {
    let at = Fixture::new();
    let cache = at.cache();
    at.put("ns/a", Expect::Absent, 1).await;
    let read = || cache.get("ns", "a", Freshness::Latest);
    assert!(read().await.unwrap().is_some());
    let flaw = Commit {
        key: "/registry/things/ns/flaw".to_owned(),
        expect: Expect::Absent,
        value: Some(Bytes::from_static(b"flaw")),
        ttl_seconds: None,
    };
    let flawed = at.store.commit(flaw).await.unwrap();
    assert!(read().await.is_err());
    at.delete("ns/flaw", flawed).await;
    let passed = async { while read().await.is_err() {} };
    let limit = Duration::from_secs(20);
    tokio::time::timeout(limit, passed)
        .await
        .expect("readable again");
    assert!(read().await.unwrap().is_some());
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
