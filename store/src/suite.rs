//! The one suite of storage tests: every engine and the cache pass it. It knows nothing of what it tests beyond the
//! [`Store`] trait and the [`Subject`] that makes one.
//!
//! Each case gets a store of its own and works below the subject's prefix with values that are small JSON objects, so
//! that layers which look into values can be tested too.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;

use crate::{Commit, Error, Event, Expect, KeyValue, Range, Revision, Store, Watch, WatchItem};

/// Something that offers a store, made anew for each case.
#[async_trait]
pub trait Subject: Send {
    /// The store.
    fn store(&self) -> Arc<dyn Store>;
    /// Below which keys may be written; ends with a slash. Nothing is there at first.
    fn prefix(&self) -> String;
    /// Stops the store and opens it again with what it held. `false` when this subject cannot.
    async fn restart(&mut self) -> bool;
    /// Lets time pass as the store sees it. `false` when this subject cannot, or keys never expire in it.
    async fn pass(&mut self, seconds: u64) -> bool;
}

/// Everything a case needs at hand.
struct Case {
    subject: Box<dyn Subject>,
}

/// How long a case waits for something that has to come.
const PATIENCE: Duration = Duration::from_secs(20);

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        /// The names of all cases.
        pub const CASES: &[&str] = &[$(stringify!($name)),*];

        /// Runs the cases, each on a subject of its own. Panics at the first that fails, naming it.
        pub async fn run<F>(cases: impl IntoIterator<Item = &'static str>, mut make: F)
        where
            F: AsyncFnMut(&'static str) -> Box<dyn Subject>,
        {
            let mut count = 0;
            for name in cases {
                eprintln!("storage suite: {name}");
                let case = Case { subject: make(name).await };
                let run = async {
                    match name {
                        $(stringify!($name) => $name(case).await,)*
                        other => panic!("storage suite: there is no case {other}"),
                    }
                };
                tokio::time::timeout(PATIENCE * 3, run)
                    .await
                    .unwrap_or_else(|_| panic!("storage suite: {name} took too long"));
                count += 1;
            }
            eprintln!("storage suite: {count} cases passed");
        }
    };
}

cases!(
    guards_hold,
    one_of_many_creators_wins,
    counters_lose_no_increment,
    history_agrees_with_a_model,
    pages_join_up,
    odd_ranges,
    watch_sees_every_change_once_in_order,
    watch_starts_at_every_revision,
    watch_is_confined_to_its_range,
    progress_reaches_what_was_acknowledged,
    the_future_is_refused,
    compaction_forgets_only_the_past,
    keys_expire,
    everything_survives_a_restart,
);

impl Case {
    fn store(&self) -> Arc<dyn Store> {
        self.subject.store()
    }

    /// The key of a short name such as `ns/a`.
    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.subject.prefix())
    }

    fn range(&self) -> Range {
        Range::prefix(&self.subject.prefix())
    }

    async fn try_put(
        &self,
        name: &str,
        expect: Expect,
        value: Option<Bytes>,
        ttl_seconds: Option<u64>,
    ) -> Result<Revision, Error> {
        let key = self.key(name);
        let commit = Commit {
            key,
            expect,
            value,
            ttl_seconds,
        };
        self.store().commit(commit).await
    }

    async fn create(&self, name: &str, n: u64) -> Revision {
        self.try_put(name, Expect::Absent, Some(value(name, n)), None)
            .await
            .unwrap()
    }

    async fn update(&self, name: &str, at: Revision, n: u64) -> Revision {
        self.try_put(name, Expect::ModRevision(at), Some(value(name, n)), None)
            .await
            .unwrap()
    }

    async fn delete(&self, name: &str, at: Revision) -> Revision {
        self.try_put(name, Expect::ModRevision(at), None, None)
            .await
            .unwrap()
    }

    async fn present(&self, name: &str) -> Option<KeyValue> {
        self.store().get(&self.key(name), None).await.unwrap().0
    }

    /// Waits until the watch has delivered `count` events, and no more of them.
    async fn events(&self, watch: &mut Watch, count: usize) -> Vec<Event> {
        let events = self.some_events(watch, count).await;
        assert_eq!(events.len(), count, "more events than changes: {events:?}");
        events
    }

    /// Waits until the watch has delivered at least `count` events.
    async fn some_events(&self, watch: &mut Watch, count: usize) -> Vec<Event> {
        let mut events = Vec::new();
        while events.len() < count {
            match next(watch).await {
                WatchItem::Events(more) => events.extend(more),
                WatchItem::Progress(_) => {}
            }
        }
        events
    }
}

/// The next item of a watch that must not fail or end.
async fn next(watch: &mut Watch) -> WatchItem {
    tokio::time::timeout(PATIENCE, watch.items.next())
        .await
        .expect("the watch is silent")
        .expect("the watch ended")
        .expect("the watch failed")
}

/// A value for the key of this short name.
fn value(name: &str, n: u64) -> Bytes {
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    Bytes::from(format!(
        r#"{{"metadata":{{"name":"{name}","namespace":"{namespace}"}},"n":{n}}}"#
    ))
}

/// The state of one key in the model.
type Present = BTreeMap<String, KeyValue>;

/// What happened, as the suite recorded it.
#[derive(Default)]
struct Model {
    /// State after each revision, with the state before all as the first.
    states: Vec<(Revision, Present)>,
    events: Vec<Event>,
}

impl Model {
    fn now(&self) -> &Present {
        &self.states.last().expect("a model has a first state").1
    }

    /// Records a change that was acknowledged.
    fn record(&mut self, key: &str, value: Option<Bytes>, revision: Revision) {
        let mut state = self.now().clone();
        let previous = state.remove(key);
        let current = value.map(|value| KeyValue {
            key: key.to_owned(),
            value,
            create_revision: previous.as_ref().map_or(revision, |p| p.create_revision),
            mod_revision: revision,
        });
        if let Some(current) = &current {
            state.insert(key.to_owned(), current.clone());
        }
        self.states.push((revision, state));
        self.events.push(Event {
            key: key.to_owned(),
            current,
            previous,
            revision,
        });
    }
}

/// Makes `changes` changes to a few keys, in an order drawn from `seed`.
async fn random_history(case: &Case, seed: u64, changes: usize) -> Model {
    let start = case.store().revision().await.unwrap();
    let mut model = Model {
        states: vec![(start, Present::new())],
        ..Model::default()
    };
    let mut random = seed;
    let mut draw = |below: u64| {
        // xorshift64: enough to mix, and the same on every machine.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    const NAMES: [&str; 9] = [
        "a/a", "a/b", "a/b-c", "a/b.c", "a/c", "b/a", "b/aa", "ba/a", "c/z",
    ];
    for n in 0..changes as u64 {
        let name = NAMES[draw(NAMES.len() as u64) as usize];
        let key = case.key(name);
        let present = model.now().get(&key).map(|kv| kv.mod_revision);
        let (expect, new) = match present {
            None => (Expect::Absent, Some(value(name, n))),
            Some(at) if draw(4) == 0 => (Expect::ModRevision(at), None),
            Some(at) => (Expect::ModRevision(at), Some(value(name, n))),
        };
        let revision = case
            .try_put(name, expect, new.clone(), None)
            .await
            .unwrap_or_else(|e| panic!("seed {seed}, change {n} of {name}: {e}"));
        model.record(&key, new, revision);
    }
    model
}

fn conflict(result: Result<Revision, Error>) -> Option<KeyValue> {
    match result {
        Err(Error::Conflict { current }) => current,
        other => panic!("expected a conflict, got {other:?}"),
    }
}

fn same_events(got: &[Event], expected: &[Event]) {
    let view = |events: &[Event]| -> Vec<_> {
        events
            .iter()
            .map(|e| {
                (
                    e.revision,
                    e.key.clone(),
                    e.current.clone(),
                    e.previous.clone(),
                )
            })
            .collect()
    };
    assert_eq!(view(got), view(expected));
}

async fn guards_hold(case: Case) {
    let before = case.store().revision().await.unwrap();
    assert!(before > 0, "0 means no revision");
    // What does not exist can neither be updated nor deleted.
    let update = case
        .try_put(
            "n/a",
            Expect::ModRevision(before),
            Some(value("n/a", 0)),
            None,
        )
        .await;
    assert_eq!(conflict(update), None);
    let delete = case
        .try_put("n/a", Expect::ModRevision(before), None, None)
        .await;
    assert_eq!(conflict(delete), None);
    let nothing = case.try_put("n/a", Expect::Absent, None, None).await;
    assert_eq!(conflict(nothing), None);

    let created = case.create("n/a", 1).await;
    assert!(created > before);
    let kv = case.present("n/a").await.unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision), (created, created));
    assert_eq!(kv.value, value("n/a", 1));

    // A conflict says what is there and changes nothing.
    let again = case
        .try_put("n/a", Expect::Absent, Some(value("n/a", 2)), None)
        .await;
    assert_eq!(conflict(again).as_ref(), Some(&kv));
    let stale = case
        .try_put(
            "n/a",
            Expect::ModRevision(before),
            Some(value("n/a", 2)),
            None,
        )
        .await;
    assert_eq!(conflict(stale).as_ref(), Some(&kv));
    assert_eq!(case.present("n/a").await.as_ref(), Some(&kv));

    let updated = case.update("n/a", created, 3).await;
    let kv = case.present("n/a").await.unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision), (created, updated));
    let stale = case
        .try_put("n/a", Expect::ModRevision(created), None, None)
        .await;
    assert_eq!(conflict(stale).as_ref(), Some(&kv));

    let deleted = case.delete("n/a", updated).await;
    assert!(deleted > updated);
    assert_eq!(case.present("n/a").await, None);
    let reborn = case.create("n/a", 4).await;
    let kv = case.present("n/a").await.unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision), (reborn, reborn));
}

async fn one_of_many_creators_wins(case: Case) {
    let attempts = (0..64).map(|n| {
        let value = value("n/a", n);
        let case = &case;
        async move {
            (
                n,
                case.try_put("n/a", Expect::Absent, Some(value), None).await,
            )
        }
    });
    let results = futures::future::join_all(attempts).await;
    let (won, lost): (Vec<_>, Vec<_>) = results.into_iter().partition(|(_, r)| r.is_ok());
    assert_eq!(won.len(), 1);
    let winner = case.present("n/a").await.unwrap();
    assert_eq!(winner.value, value("n/a", won[0].0));
    for (_, result) in lost {
        assert_eq!(conflict(result).as_ref(), Some(&winner));
    }
}

async fn counters_lose_no_increment(case: Case) {
    const WORKERS: u64 = 8;
    const EACH: u64 = 10;
    let first = case.create("n/counter", 0).await;
    let work = (0..WORKERS).map(|_| {
        let case = &case;
        async move {
            for _ in 0..EACH {
                let mut kv = case.present("n/counter").await.unwrap();
                loop {
                    let text = std::str::from_utf8(&kv.value).unwrap();
                    let n: u64 = text
                        .rsplit_once("\"n\":")
                        .and_then(|(_, n)| n.trim_end_matches('}').parse().ok())
                        .unwrap();
                    let expect = Expect::ModRevision(kv.mod_revision);
                    let next = Some(value("n/counter", n + 1));
                    match case.try_put("n/counter", expect, next, None).await {
                        Ok(_) => break,
                        failed => kv = conflict(failed).unwrap(),
                    }
                }
            }
        }
    });
    futures::future::join_all(work).await;
    let kv = case.present("n/counter").await.unwrap();
    assert_eq!(kv.value, value("n/counter", WORKERS * EACH));
    assert_eq!(kv.create_revision, first);
}

async fn history_agrees_with_a_model(case: Case) {
    let model = random_history(&case, 0x9E37_79B9, 120).await;
    let store = case.store();
    for (revision, state) in &model.states {
        let page = store.list(case.range(), Some(*revision), 0).await.unwrap();
        let expected: Vec<_> = state.values().cloned().collect();
        assert_eq!(page.items, expected, "list at {revision}");
        assert_eq!((page.revision, page.remaining), (*revision, 0));
        for key in model.now().keys().chain(state.keys()) {
            let (kv, at) = store.get(key, Some(*revision)).await.unwrap();
            assert_eq!(kv.as_ref(), state.get(key), "{key} at {revision}");
            assert_eq!(at, *revision);
        }
    }
    let now = store.list(case.range(), None, 0).await.unwrap();
    assert_eq!(now.items, model.now().values().cloned().collect::<Vec<_>>());
}

async fn pages_join_up(case: Case) {
    let model = random_history(&case, 0xDEAD_BEEF, 60).await;
    let store = case.store();
    let picks = [model.states.len() / 2, model.states.len() - 1];
    for (revision, state) in picks.map(|at| &model.states[at]) {
        for limit in 1..=state.len() + 1 {
            let (mut range, mut keys) = (case.range(), Vec::new());
            loop {
                let page = store
                    .list(range.clone(), Some(*revision), limit)
                    .await
                    .unwrap();
                assert!(page.items.len() <= limit);
                keys.extend(page.items.iter().map(|kv| kv.key.clone()));
                let left = (state.len() - keys.len()) as u64;
                assert_eq!(page.remaining, left, "limit {limit} at {revision}");
                if left == 0 {
                    break;
                }
                range.start = Bound::Excluded(keys.last().unwrap().clone());
            }
            assert_eq!(keys, state.keys().cloned().collect::<Vec<_>>());
        }
    }
}

async fn odd_ranges(case: Case) {
    let mut created = Vec::new();
    for name in ["a/a", "a/b", "a0/a", "b/a"] {
        created.push((name, case.create(name, 0).await));
    }
    let key = |name: &str| case.key(name);
    let end = |name: &str| Some(case.key(name));
    let table = [
        (Bound::Included(key("a/")), end("a0"), vec!["a/a", "a/b"]),
        (Bound::Included(key("a/b")), end("b"), vec!["a/b", "a0/a"]),
        (Bound::Excluded(key("a/b")), end("b"), vec!["a0/a"]),
        (Bound::Included(key("a/b\0")), end("b"), vec!["a0/a"]),
        (Bound::Excluded(key("a/b\0")), end("b"), vec!["a0/a"]),
        (
            Bound::Included(key("a/a")),
            end("a/b\0"),
            vec!["a/a", "a/b"],
        ),
        (Bound::Included(key("a/b")), end("a/b\0"), vec!["a/b"]),
        (Bound::Included(key("a/b")), end("a/b"), vec![]),
        (Bound::Included(key("b")), end("a"), vec![]),
        (Bound::Excluded(key("a/a")), end("a/a"), vec![]),
        (Bound::Included(key("zz")), end("zzz"), vec![]),
    ];
    let check = async |at: Option<Revision>| {
        for (start, end, expected) in &table {
            let range = Range {
                start: start.clone(),
                end: end.clone(),
            };
            let page = case.store().list(range.clone(), at, 0).await.unwrap();
            let got: Vec<_> = page.items.iter().map(|kv| kv.key.clone()).collect();
            let expected: Vec<_> = expected.iter().map(|name| key(name)).collect();
            assert_eq!(got, expected, "{range:?} at {at:?}");
        }
    };
    check(None).await;
    // The same at an old revision, when all of it is past.
    let old = case.store().revision().await.unwrap();
    for (name, revision) in created {
        case.update(name, revision, 1).await;
    }
    check(Some(old)).await;
}

async fn watch_sees_every_change_once_in_order(case: Case) {
    const WRITERS: usize = 8;
    const EACH: u64 = 25;
    let store = case.store();
    let start = store.revision().await.unwrap();
    let mut early = store.watch(case.range(), start).await.unwrap();
    let work = (0..WRITERS).map(|w| {
        let case = &case;
        async move {
            let name = format!("w/{w}");
            let mut done = Vec::new();
            for n in 0..EACH {
                let revision = match done.last() {
                    None => case.create(&name, n).await,
                    Some(at) => case.update(&name, *at, n).await,
                };
                done.push(revision);
            }
            done
        }
    });
    // A second watcher joins in the middle of it all.
    let joins = async {
        let first = case.some_events(&mut early, 1).await;
        (first, store.watch(case.range(), start).await.unwrap())
    };
    let (acknowledged, (mut first, mut late)) =
        futures::join!(futures::future::join_all(work), joins);
    let mut acknowledged: Vec<_> = acknowledged.into_iter().flatten().collect();
    acknowledged.sort_unstable();
    let count = acknowledged.len();
    assert_eq!(count, WRITERS * EACH as usize);

    let all = case.events(&mut late, count).await;
    let revisions: Vec<_> = all.iter().map(|e| e.revision).collect();
    assert_eq!(revisions, acknowledged);
    let rest = case.events(&mut early, count - first.len()).await;
    first.extend(rest);
    same_events(&first, &all);
    // Each change follows the one before it of the same key.
    let mut last: BTreeMap<&str, &KeyValue> = BTreeMap::new();
    for event in &all {
        assert_eq!(
            event.previous.as_ref(),
            last.get(event.key.as_str()).copied()
        );
        let current = event.current.as_ref().unwrap();
        assert_eq!(current.mod_revision, event.revision);
        last.insert(&event.key, current);
    }
}

async fn watch_starts_at_every_revision(case: Case) {
    let model = random_history(&case, 0xC0FFEE, 60).await;
    for (at, (revision, _)) in model.states.iter().enumerate().step_by(7) {
        let mut watch = case.store().watch(case.range(), *revision).await.unwrap();
        let expected = &model.events[at..];
        let got = case.events(&mut watch, expected.len()).await;
        same_events(&got, expected);
    }
    // And goes on live, whether or not there was a past to tell.
    let newest = model.states.last().unwrap().0;
    let mut watch = case.store().watch(case.range(), newest).await.unwrap();
    let created = case.create("live/a", 1).await;
    let deleted = case.delete("live/a", created).await;
    let got = case.events(&mut watch, 2).await;
    assert_eq!(
        got.iter().map(|e| e.revision).collect::<Vec<_>>(),
        [created, deleted]
    );
    assert!(got[0].previous.is_none() && got[1].current.is_none());
    assert_eq!(got[1].previous, got[0].current);
}

async fn watch_is_confined_to_its_range(case: Case) {
    let start = case.store().revision().await.unwrap();
    let below = Range::prefix(&case.key("a/"));
    let part = Range {
        start: Bound::Excluded(case.key("a/a")),
        end: Some(case.key("b/b")),
    };
    let mut live_below = case.store().watch(below.clone(), start).await.unwrap();
    let mut live_part = case.store().watch(part.clone(), start).await.unwrap();
    for name in ["a/a", "a/b", "a0/a", "b/a", "b/b"] {
        case.create(name, 0).await;
    }
    let mut past_below = case.store().watch(below, start).await.unwrap();
    let mut past_part = case.store().watch(part, start).await.unwrap();
    for (watch, expected) in [
        (&mut live_below, vec!["a/a", "a/b"]),
        (&mut past_below, vec!["a/a", "a/b"]),
        (&mut live_part, vec!["a/b", "a0/a", "b/a"]),
        (&mut past_part, vec!["a/b", "a0/a", "b/a"]),
    ] {
        let got = case.events(watch, expected.len()).await;
        let got: Vec<_> = got.into_iter().map(|e| e.key).collect();
        let expected: Vec<_> = expected.into_iter().map(|n| case.key(n)).collect();
        assert_eq!(got, expected);
    }
}

async fn progress_reaches_what_was_acknowledged(case: Case) {
    let start = case.store().revision().await.unwrap();
    let mut watch = case
        .store()
        .watch(Range::prefix(&case.key("a/")), start)
        .await
        .unwrap();
    // A change in the range: the watch gets there by itself.
    let created = case.create("a/a", 0).await;
    assert!(watch.progress.freshness().await.unwrap() >= created);
    let mut reached = start;
    while reached < created {
        match next(&mut watch).await {
            WatchItem::Events(events) => reached = events.last().unwrap().revision,
            WatchItem::Progress(revision) => reached = revision,
        }
    }
    // A change elsewhere: it gets there when asked.
    let elsewhere = case.create("b/a", 0).await;
    while reached < elsewhere {
        watch.progress.request();
        match next(&mut watch).await {
            WatchItem::Events(events) => panic!("nothing changed here: {events:?}"),
            WatchItem::Progress(revision) => {
                assert!(revision >= reached, "progress goes back");
                reached = revision;
            }
        }
    }
    assert!(watch.progress.freshness().await.unwrap() >= created);
}

async fn the_future_is_refused(case: Case) {
    let created = case.create("a/a", 0).await;
    let future = case.store().revision().await.unwrap() + 100;
    let refused = |error: Option<Error>| match error {
        Some(Error::Future { requested, current }) => {
            assert_eq!(requested, future);
            assert!(current >= created);
        }
        other => panic!("expected a refusal, got {other:?}"),
    };
    let store = case.store();
    refused(store.get(&case.key("a/a"), Some(future)).await.err());
    refused(store.list(case.range(), Some(future), 0).await.err());
    refused(store.watch(case.range(), future).await.err());
    refused(store.compact(future).await.err());
}

async fn compaction_forgets_only_the_past(case: Case) {
    let model = random_history(&case, 0xFACE_B00C, 80).await;
    let store = case.store();
    let middle = model.states.len() / 2;
    let at = model.states[middle].0;
    // A watch that is under way is not disturbed.
    let mut running = store.watch(case.range(), at).await.unwrap();
    store.compact(at).await.unwrap();
    case.create("z/after", 1).await;

    let too_old = |error: Option<Error>, asked: Revision| match error {
        Some(Error::Compacted { requested, oldest }) => {
            assert_eq!(requested, asked);
            assert!(
                oldest == at || oldest == 0,
                "oldest {oldest}, compacted to {at}"
            );
        }
        other => panic!("expected a refusal of {asked}, got {other:?}"),
    };
    for (revision, _) in &model.states[..middle] {
        let revision = *revision;
        too_old(
            store.get(&case.key("a/a"), Some(revision)).await.err(),
            revision,
        );
        too_old(
            store.list(case.range(), Some(revision), 0).await.err(),
            revision,
        );
    }
    // Not the one right before: whether the change at the compacted revision itself is still told is left open (etcd
    // tells it).
    let before = model.states[middle - 2].0;
    let refused = match store.watch(case.range(), before).await {
        Err(error) => Some(error),
        // etcd says so in the stream.
        Ok(mut watch) => tokio::time::timeout(PATIENCE, watch.items.next())
            .await
            .expect("the watch is silent")
            .and_then(Result::err),
    };
    too_old(refused, before);
    too_old(store.compact(at).await.err(), at);

    for (revision, state) in &model.states[middle..] {
        let page = store.list(case.range(), Some(*revision), 0).await.unwrap();
        assert_eq!(
            page.items,
            state.values().cloned().collect::<Vec<_>>(),
            "list at {revision}"
        );
    }
    let mut watch = store.watch(case.range(), at).await.unwrap();
    let expected = &model.events[middle..];
    for watch in [&mut watch, &mut running] {
        let got = case.events(watch, expected.len() + 1).await;
        same_events(&got[..expected.len()], expected);
    }
}

async fn keys_expire(mut case: Case) {
    let start = case.store().revision().await.unwrap();
    let ttl = |name: &'static str, seconds| {
        let case = &case;
        async move {
            case.try_put(name, Expect::Absent, Some(value(name, 0)), Some(seconds))
                .await
                .unwrap()
        }
    };
    ttl("t/short", 2).await;
    ttl("t/long", 3600).await;
    let kept = ttl("t/kept", 2).await;
    let renewed = ttl("t/renewed", 2).await;
    case.update("t/kept", kept, 1).await;
    case.try_put(
        "t/renewed",
        Expect::ModRevision(renewed),
        Some(value("t/renewed", 1)),
        Some(3600),
    )
    .await
    .unwrap();
    let mut watch = case.store().watch(case.range(), start).await.unwrap();
    case.events(&mut watch, 6).await;
    if !case.subject.pass(6).await {
        eprintln!(
            "storage suite: keys_expire left out: time cannot be moved, or keys do not expire"
        );
        return;
    }
    let gone = case.events(&mut watch, 1).await;
    assert_eq!(gone[0].key, case.key("t/short"));
    assert!(gone[0].current.is_none() && gone[0].previous.is_some());
    assert_eq!(case.present("t/short").await, None);
    for name in ["t/long", "t/kept", "t/renewed"] {
        assert!(case.present(name).await.is_some(), "{name} is gone");
    }
    // A key that expired can be made again.
    case.create("t/short", 1).await;
}

async fn everything_survives_a_restart(mut case: Case) {
    let model = random_history(&case, 0x5EED, 60).await;
    let newest = case.store().revision().await.unwrap();
    if !case.subject.restart().await {
        eprintln!("storage suite: everything_survives_a_restart left out: the subject cannot");
        return;
    }
    let store = case.store();
    assert!(store.revision().await.unwrap() >= newest);
    for (revision, state) in model.states.iter().step_by(5) {
        let page = store.list(case.range(), Some(*revision), 0).await.unwrap();
        assert_eq!(page.items, state.values().cloned().collect::<Vec<_>>());
    }
    for at in [0, model.states.len() / 2] {
        let mut watch = store.watch(case.range(), model.states[at].0).await.unwrap();
        let expected = &model.events[at..];
        let got = case.events(&mut watch, expected.len()).await;
        same_events(&got, expected);
    }
    let after = case.create("z/after", 1).await;
    assert!(after > newest);
}
