//! The embedded engine under the suite, and what only it can show: failing media, locks, damage, laggards.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use keelson_machinery::clock::{Clock, Source};

use super::medium::Medium;
use super::{Embedded, OpenError, Options};
use crate::suite::{self, Subject};
use crate::{Commit, Error, Expect, Range, Revision, Store, WatchItem};

/// A clock that stands still until it is moved.
#[derive(Clone)]
struct Hands(Arc<AtomicI64>);

impl Source for Hands {
    fn now(&self) -> jiff::Timestamp {
        jiff::Timestamp::from_second(self.0.load(Ordering::SeqCst)).unwrap()
    }

    fn fill_random(&self, buf: &mut [u8]) {
        buf.fill(4);
    }
}

fn hands() -> Hands {
    Hands(Arc::new(AtomicI64::new(1_800_000_000)))
}

fn options(hands: &Hands) -> Options {
    Options {
        min_free_bytes: 0,
        ..Options::new(Clock::from_source(hands.clone()))
    }
}

fn put(key: &str, value: &str) -> Commit {
    Commit {
        key: key.to_owned(),
        expect: Expect::Absent,
        value: Some(Bytes::copy_from_slice(value.as_bytes())),
        ttl_seconds: None,
    }
}

struct Engine {
    dir: tempfile::TempDir,
    hands: Hands,
    store: Option<Arc<Embedded>>,
}

impl Engine {
    fn path(&self) -> PathBuf {
        self.dir.path().join("new/store.redb")
    }
}

#[async_trait]
impl Subject for Engine {
    fn store(&self) -> Arc<dyn Store> {
        self.store.clone().unwrap()
    }

    fn prefix(&self) -> String {
        "/registry/things/".to_owned()
    }

    async fn restart(&mut self) -> bool {
        self.store = None;
        self.store = Some(Embedded::open(self.path(), options(&self.hands)).unwrap());
        true
    }

    async fn pass(&mut self, seconds: u64) -> bool {
        self.hands.0.fetch_add(seconds as i64, Ordering::SeqCst);
        true
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passes_the_suite() {
    suite::run(suite::CASES.iter().copied(), async |_| {
        let mut engine = Engine {
            dir: tempfile::tempdir().unwrap(),
            hands: hands(),
            store: None,
        };
        engine.restart().await;
        Box::new(engine) as Box<dyn Subject>
    })
    .await;
}

/// A full disk, at every byte of a transaction: refused, nothing half-applied, and on again when there is room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn survives_a_full_disk() {
    let dir = tempfile::tempdir().unwrap();
    let medium = Medium::new(dir.path().join("db"), 1 << 20);
    let faults = medium.faults.clone();
    let hands = hands();
    let store = Embedded::open_on(medium, options(&hands)).unwrap();
    let everything = || Range::prefix("/");
    let start = store.revision().await.unwrap();
    let mut watch = store.watch(everything(), start).await.unwrap();
    let mut acknowledged = Vec::new();
    let long = "x".repeat(20_000);
    for (round, room) in [0, 1, 4096, 5000, 12_000, 20_000, 30_000, 60_000]
        .into_iter()
        .enumerate()
    {
        let key = |n: usize| format!("/k/{round}-{n}");
        acknowledged.push((key(0), store.commit(put(&key(0), &long)).await.unwrap()));
        faults.room.store(room, Ordering::SeqCst);
        faults.full.store(true, Ordering::SeqCst);
        let mut refused = Vec::new();
        for n in 1..40 {
            match store.commit(put(&key(n), &long)).await {
                Ok(revision) => acknowledged.push((key(n), revision)),
                Err(Error::Unwritable(_)) => {
                    refused.push(n);
                    if refused.len() == 3 {
                        break;
                    }
                }
                Err(other) => panic!("room {room}: {other:?}"),
            }
        }
        assert_eq!(refused.len(), 3, "room {room} sufficed for everything");
        faults.full.store(false, Ordering::SeqCst);
        // Reads work, and show exactly what was acknowledged.
        let mut tries = 0;
        let page = loop {
            // Opening the database again is tried once a second.
            hands.0.fetch_add(1, Ordering::SeqCst);
            let _ = store.commit(put("/k/probe", "")).await;
            match store.list(Range::prefix("/k/"), None, 0).await {
                Ok(page) => break page,
                Err(_) if tries < 100 => tries += 1,
                Err(error) => panic!("room {room}: {error}"),
            }
        };
        let mut got: Vec<_> = page
            .items
            .iter()
            .filter(|kv| kv.key != "/k/probe")
            .map(|kv| (kv.key.clone(), kv.mod_revision))
            .collect();
        got.sort_by_key(|(_, revision)| *revision);
        assert_eq!(got, acknowledged, "room {room}");
        for n in refused {
            let revision = store.commit(put(&key(n), &long)).await.unwrap();
            acknowledged.push((key(n), revision));
        }
    }
    // The watcher has seen each of them once, in order.
    let mut seen = Vec::new();
    while seen.len() < acknowledged.len() {
        if let WatchItem::Events(events) = watch.items.next().await.unwrap().unwrap() {
            let events = events.into_iter().filter(|e| e.key != "/k/probe");
            seen.extend(events.map(|e| (e.key, e.revision)));
        }
    }
    assert_eq!(seen, acknowledged);
}

/// A panic while writing costs the batch at hand, not the store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn goes_on_after_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    let medium = Medium::new(dir.path().join("db"), 1 << 20);
    let faults = medium.faults.clone();
    let hands = hands();
    let store = Embedded::open_on(medium, options(&hands)).unwrap();
    let before = store.commit(put("/k/before", "")).await.unwrap();
    let mut watch = store.watch(Range::prefix("/k/"), before).await.unwrap();
    faults.flaw.store(true, Ordering::SeqCst);
    let during = store.commit(put("/k/during", "")).await;
    assert!(matches!(during, Err(Error::Failed(_))), "{during:?}");
    faults.flaw.store(false, Ordering::SeqCst);
    let mut tries = 0;
    while store.commit(put("/k/after", "")).await.is_err() {
        // Opening the database again is tried once a second.
        hands.0.fetch_add(1, Ordering::SeqCst);
        tries += 1;
        assert!(tries < 1000, "does not recover");
    }
    assert!(store.get("/k/before", None).await.unwrap().0.is_some());
    match watch.items.next().await.unwrap().unwrap() {
        WatchItem::Events(events) => assert_eq!(events[0].key, "/k/after"),
        other => panic!("{other:?}"),
    }
}

/// A sync that fails leaves the outcome open until the database is opened again: an answer of success or refusal must
/// agree with what is there afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_agree_with_the_disk_after_a_failed_sync() {
    let dir = tempfile::tempdir().unwrap();
    let medium = Medium::new(dir.path().join("db"), 1 << 20);
    let faults = medium.faults.clone();
    let hands = hands();
    let store = Embedded::open_on(medium, options(&hands)).unwrap();
    store.commit(put("/k/before", "")).await.unwrap();
    faults.sync.store(true, Ordering::SeqCst);
    let during = store.commit(put("/k/during", "")).await;
    faults.sync.store(false, Ordering::SeqCst);
    let mut tries = 0;
    while store
        .commit(put(&format!("/k/after{tries}"), ""))
        .await
        .is_err()
    {
        hands.0.fetch_add(1, Ordering::SeqCst);
        tries += 1;
        assert!(tries < 1000, "does not recover");
    }
    assert!(store.get("/k/before", None).await.unwrap().0.is_some());
    let there = store.get("/k/during", None).await.unwrap().0.is_some();
    match during {
        Ok(_) => assert!(there),
        Err(Error::Unwritable(_)) => assert!(!there),
        Err(Error::Failed(_)) => {}
        Err(other) => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn refuses_what_it_cannot_open() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let open = || Embedded::open(&path, options(&hands()));
    let store = open().unwrap();
    assert!(matches!(open().err(), Some(OpenError::Locked { .. })));
    for n in 0..200 {
        store
            .commit(put(&format!("/k/{n}"), &"v".repeat(500)))
            .await
            .unwrap();
    }
    drop(store);

    let intact = std::fs::read(&path).unwrap();
    let io = Embedded::open("/proc/no/such", options(&hands())).err();
    assert!(matches!(io, Some(OpenError::Io { .. })), "{io:?}");
    for (name, damage) in [
        ("text", b"this is not a database".to_vec()),
        ("short", intact[..intact.len() / 3].to_vec()),
        ("no header", [&[0u8; 4096][..], &intact[4096..]].concat()),
    ] {
        std::fs::write(&path, damage).unwrap();
        match open().err() {
            Some(OpenError::Corrupt { path: named, .. }) => assert_eq!(named, path),
            other => panic!("{name}: {other:?}"),
        }
    }
    std::fs::write(&path, intact).unwrap();
    assert_eq!(
        open()
            .unwrap()
            .list(Range::prefix("/k/"), None, 0)
            .await
            .unwrap()
            .items
            .len(),
        200
    );
}

#[tokio::test]
async fn drops_watchers_that_lag() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        watch_queue_events: 10,
        ..options(&hands())
    };
    let store = Embedded::open(dir.path().join("db"), options).unwrap();
    let start = store.revision().await.unwrap();
    let mut lagging = store.watch(Range::prefix("/"), start).await.unwrap();
    let mut reading = store.watch(Range::prefix("/"), start).await.unwrap();
    for n in 0..11 {
        store.commit(put(&format!("/k/{n}"), "")).await.unwrap();
        assert!(
            matches!(reading.items.next().await, Some(Ok(WatchItem::Events(e))) if e.len() == 1)
        );
    }
    assert!(matches!(
        lagging.items.next().await,
        Some(Err(Error::Lagged))
    ));
    assert!(lagging.items.next().await.is_none());
    // It may start again where it was.
    let mut again = store.watch(Range::prefix("/"), start).await.unwrap();
    let Some(Ok(WatchItem::Events(events))) = again.items.next().await else {
        panic!("no events");
    };
    assert_eq!(events.len(), 11);
    drop(store);
    // Closing the store ends its watches.
    assert!(matches!(
        again.items.next().await,
        Some(Ok(WatchItem::Progress(_)))
    ));
    assert!(again.items.next().await.is_none());
    assert!(reading.items.next().await.is_none());
}

/// History goes by age and by size, without being asked, and never takes the present with it.
#[tokio::test]
async fn forgets_old_history() {
    let dir = tempfile::tempdir().unwrap();
    let hands = hands();
    let options = Options {
        history_bytes: 100_000,
        ..options(&hands)
    };
    let path = dir.path().join("db");
    let store = Embedded::open(&path, options.clone()).unwrap();
    let first = store.commit(put("/k/stays", "")).await.unwrap();
    let mut last = store.commit(put("/k/changes", "")).await.unwrap();
    let commit = |at: Revision| Commit {
        expect: Expect::ModRevision(at),
        ..put("/k/changes", &"x".repeat(10_000))
    };
    // By size: eleven old values of 10 kB are more than 100 kB.
    for _ in 0..30 {
        last = store.commit(commit(last)).await.unwrap();
    }
    let old = store.get("/k/changes", Some(first + 1)).await;
    assert!(matches!(old, Err(Error::Compacted { .. })), "{old:?}");
    let recent = store.get("/k/changes", Some(last - 5)).await.unwrap().0;
    assert_eq!(recent.unwrap().mod_revision, last - 5);
    // By age.
    hands.0.fetch_add(20, Ordering::SeqCst);
    last = store.commit(commit(last)).await.unwrap();
    hands.0.fetch_add(290, Ordering::SeqCst);
    let edge = last;
    while store.get("/k/changes", Some(edge - 2)).await.is_ok() {
        last = store.commit(commit(last)).await.unwrap();
    }
    assert!(store.get("/k/changes", Some(edge)).await.is_ok());
    assert_eq!(
        store
            .get("/k/stays", None)
            .await
            .unwrap()
            .0
            .unwrap()
            .mod_revision,
        first
    );
    drop(store);
    let store = Embedded::open(&path, options).unwrap();
    assert!(matches!(
        store.watch(Range::prefix("/"), edge - 2).await.err(),
        Some(Error::Compacted { .. })
    ));
    assert!(store.watch(Range::prefix("/"), edge).await.is_ok());
}
