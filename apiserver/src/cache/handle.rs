//! The asynchronous face of a cache: the task that feeds its core from the store, reads that wait until the cache is
//! as new as they ask, and the streams of watchers.

use std::collections::VecDeque;
use std::ops::Bound;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt};
use imbl::OrdSet;
use keelson_store::{self as store, KeyValue, Range, Revision, Store, WatchItem, WatchProgress};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};

use super::core::{Core, Sink, delivery, inconsistent, page};
use super::entry::Builder;
use super::stream::{Initial, Watching};
use super::token::Token;
use super::types::{
    CacheError, CacheSpec, Delivery, Entry, Freshness, ListPage, Paging, Selection, StorageCodec,
    WatchOptions, WatchStart,
};
use super::window::{ByKey, Event, Limits, Snapshot};

/// How often a waiting read asks the store for progress again.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// Deliveries that may wait for a watcher before it is ended. They are shared with the cache and other watchers.
const WATCH_QUEUE: usize = 8192;
/// Keys read from the store at a time when a cache starts.
const LIST_PAGE: usize = 250;
/// Pauses between attempts to read the store, from the first to the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// The times and sizes of a cache that tests set otherwise.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tuning {
    pub limits: Limits,
    /// How long a read waits for a revision (upstream's `blockTimeout`).
    pub wait: Duration,
    /// How often an idle watcher gets a bookmark (upstream's `bookmarkFrequency`).
    pub bookmark: Duration,
    /// How often the feeding task trims, and asks for progress on behalf of watchers.
    pub housekeeping: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Tuning {
            limits: Limits::default(),
            wait: Duration::from_secs(3),
            bookmark: Duration::from_secs(60),
            housekeeping: Duration::from_secs(25),
        }
    }
}

/// A stream of deliveries. Its end means: watch again from the last revision seen (the watcher was too slow, the
/// cache lost the store, or the resource is gone).
pub type WatchStream = BoxStream<'static, Delivery>;

pub(super) struct Queue(mpsc::Sender<Delivery>);

impl Sink for Queue {
    fn offer(&self, delivery: Delivery) -> bool {
        self.0.try_send(delivery).is_ok()
    }
}

/// How far the cache is.
#[derive(Clone, Copy, Default)]
pub(super) struct Reached {
    pub revision: Revision,
    /// Whether a watch of the store is running.
    live: bool,
    closed: bool,
}

pub(super) struct Inner {
    pub(super) builder: Builder,
    pub(super) tuning: Tuning,
    store: Arc<dyn Store>,
    pub(super) core: Mutex<Core<Queue>>,
    /// The newest state; stored after its changes were offered to watchers. `None` before the first list.
    present: ArcSwapOption<Snapshot>,
    pub(super) reached: watch::Sender<Reached>,
    progress: Mutex<Option<Arc<dyn WatchProgress>>>,
    /// Why the last attempt to read the store failed.
    failure: Mutex<Option<CacheError>>,
}

/// The cache of one resource. Dropping it stops feeding it.
pub struct Cache {
    inner: Arc<Inner>,
    feeder: tokio::task::JoinHandle<()>,
}

impl Drop for Cache {
    fn drop(&mut self) {
        self.close();
    }
}

impl Cache {
    /// Starts a cache; must be called within a tokio runtime. Reads wait until it has its first list.
    pub fn start(spec: CacheSpec, store: Arc<dyn Store>) -> Self {
        Self::start_with(spec, store, Tuning::default())
    }

    pub(super) fn start_with(spec: CacheSpec, store: Arc<dyn Store>, tuning: Tuning) -> Self {
        let builder = Builder::new(spec);
        let inner = Arc::new(Inner {
            core: Mutex::new(Core::new(tuning.limits, builder.indexed())),
            builder,
            tuning,
            store,
            present: ArcSwapOption::empty(),
            reached: watch::Sender::new(Reached::default()),
            progress: Mutex::new(None),
            failure: Mutex::new(None),
        });
        let feeder = tokio::spawn(feed(inner.clone()));
        Cache { inner, feeder }
    }

    /// Stops the cache and ends its watchers.
    pub fn close(&self) {
        self.feeder.abort();
        self.inner.reached.send_modify(|r| r.closed = true);
        self.inner.core.lock().end_watchers();
    }

    /// What it caches.
    pub fn spec(&self) -> &CacheSpec {
        self.inner.builder.spec()
    }

    /// The resource's storage format.
    pub fn codec(&self) -> &Arc<dyn StorageCodec> {
        &self.spec().codec
    }

    /// The entry that a stored state makes: for writers that got a newer state from the store than the cache has.
    pub fn entry(&self, stored: &KeyValue) -> Result<Arc<Entry>, CacheError> {
        self.inner.builder.entry(stored)
    }

    /// The store's key of an object; `namespace` is empty for cluster-scoped resources.
    pub fn key(&self, namespace: &str, name: &str) -> String {
        let prefix = &self.spec().prefix;
        match namespace {
            "" => format!("{prefix}{name}"),
            namespace => format!("{prefix}{namespace}/{name}"),
        }
    }

    /// One object; `None` when it does not exist.
    pub async fn get(
        &self,
        namespace: &str,
        name: &str,
        freshness: Freshness,
    ) -> Result<Option<Arc<Entry>>, CacheError> {
        let snapshot = self.inner.fresh(freshness).await?;
        let found = match namespace {
            "" => snapshot.get(name),
            namespace => snapshot.get(&format!("{namespace}/{name}")),
        };
        Ok(found.cloned())
    }

    /// A list, or one page of it. The freshness is not used with a continue token, which says itself what to show.
    pub async fn list(
        &self,
        selection: &Selection,
        freshness: Freshness,
        paging: Paging,
    ) -> Result<ListPage, CacheError> {
        let inner = &self.inner;
        let token = match &paging.continue_token {
            Some(text) => Some(Token::decode(text)?),
            None => None,
        };
        let freshness = match &token {
            None => freshness,
            Some(Token {
                revision: Some(revision),
                ..
            }) => Freshness::Exact(*revision),
            Some(Token { revision: None, .. }) => Freshness::Latest,
        };
        let start = token.as_ref().map(|t| t.start.as_str());
        let indexed = inner.builder.indexed();
        let Freshness::Exact(revision) = freshness else {
            // The pages after an inconsistent one all show the revision of that one.
            let snapshot = inner.fresh(freshness).await?;
            return Ok(page(&snapshot, selection, indexed, paging.limit, start));
        };
        inner.ready().await?;
        inner.wait_for(revision).await?;
        let recent = inner.core.lock().at(revision);
        if let Some(snapshot) = recent {
            return Ok(page(&snapshot, selection, indexed, paging.limit, start));
        }
        let old = inner.page_from_store(selection, revision, paging.limit, start);
        match (old.await, &token) {
            (Ok(page), _) => Ok(page),
            (Err(ReadError::Store(store::Error::Compacted { .. })), Some(token)) => {
                Err(inconsistent(token))
            }
            (Err(ReadError::Store(store::Error::Compacted { .. })), None) => {
                Err(CacheError::ListExpired)
            }
            (Err(error), _) => Err(error.into()),
        }
    }

    /// Changes, from where `start` says, for as long as the watcher keeps up.
    pub async fn watch(
        &self,
        selection: Selection,
        start: WatchStart,
        options: WatchOptions,
    ) -> Result<WatchStream, CacheError> {
        let inner = &self.inner;
        let selection = Arc::new(selection);
        let (sender, receiver) = mpsc::channel(WATCH_QUEUE);
        let mut watching = Watching {
            subscription: None,
            live: receiver,
            pending: VecDeque::new(),
            initial: None,
            store_past: None,
            initial_end: None,
            bookmarks: options
                .bookmarks
                .then(|| Box::pin(tokio::time::sleep(inner.tuning.bookmark))),
            newest: 0,
        };
        match start {
            WatchStart::State(freshness) => {
                inner.fresh(freshness).await?;
                let mut core = inner.core.lock();
                let snapshot = core.present().clone();
                let revision = snapshot.revision;
                let (id, _) = core.subscribe(selection.clone(), revision, Queue(sender));
                drop(core);
                watching.subscribe(inner, id);
                watching.newest = revision;
                watching.initial = Some(Initial::new(snapshot, selection));
                watching.initial_end = options.initial_events_end.then_some(revision);
            }
            WatchStart::After(after) => {
                inner.ready().await?;
                let (id, past) =
                    inner
                        .core
                        .lock()
                        .subscribe(selection.clone(), after, Queue(sender));
                watching.subscribe(inner, id);
                watching.newest = after;
                match past {
                    Ok(past) => watching.pending = past.into(),
                    Err(until) => {
                        let past = inner.past_from_store(selection, after, until).await?;
                        watching.store_past = Some(past);
                    }
                }
            }
        }
        if inner.reached.borrow().closed {
            return Err(CacheError::NoResource);
        }
        Ok(stream::unfold(watching, |mut watching| async move {
            let delivery = watching.next().await?;
            Some((delivery, watching))
        })
        .boxed())
    }

    /// Waits until the cache has reached `revision`.
    pub async fn wait_for(&self, revision: Revision) -> Result<(), CacheError> {
        self.inner.wait_for(revision).await
    }

    /// The revision the cache has reached; 0 before its first list.
    pub fn revision(&self) -> Revision {
        self.inner.reached.borrow().revision
    }

    /// How many watchers it has.
    pub fn watcher_count(&self) -> usize {
        self.inner.core.lock().watcher_count()
    }
}

impl Inner {
    fn range(&self) -> Range {
        Range::prefix(&self.builder.spec().prefix)
    }

    /// The newest state, once there is one.
    async fn ready(&self) -> Result<Arc<Snapshot>, CacheError> {
        if self.reached.borrow().closed {
            return Err(CacheError::NoResource);
        }
        if let Some(present) = self.present.load_full() {
            return Ok(present);
        }
        let mut reached = self.reached.subscribe();
        let ready = tokio::time::timeout(
            self.tuning.wait,
            reached.wait_for(|r| r.revision > 0 || r.closed),
        );
        // The sender lives as long as `self`: what can go wrong is that time runs out.
        let _ = ready.await;
        match self.present.load_full() {
            Some(present) => Ok(present),
            None if self.reached.borrow().closed => Err(CacheError::NoResource),
            None => Err(self.failure.lock().clone().unwrap_or(CacheError::NotReady)),
        }
    }

    /// A state at least as new as asked.
    async fn fresh(&self, freshness: Freshness) -> Result<Arc<Snapshot>, CacheError> {
        let wanted = match freshness {
            Freshness::Any => 0,
            Freshness::NotOlderThan(revision) | Freshness::Exact(revision) => revision,
            Freshness::Latest => self.latest().await?,
        };
        let present = self.ready().await?;
        if present.revision >= wanted {
            return Ok(present);
        }
        self.wait_for(wanted).await?;
        self.ready().await
    }

    /// The revision that holds everything acknowledged before the call.
    async fn latest(&self) -> Result<Revision, CacheError> {
        let running = || self.progress.lock().clone();
        let progress = match running() {
            Some(progress) => progress,
            None => {
                let mut reached = self.reached.subscribe();
                let live = reached.wait_for(|r| r.live || r.closed);
                let _ = tokio::time::timeout(self.tuning.wait, live).await;
                match running() {
                    Some(progress) => progress,
                    None if self.reached.borrow().closed => return Err(CacheError::NoResource),
                    None => {
                        let failure = self.failure.lock().clone();
                        return Err(failure.unwrap_or(CacheError::NotReady));
                    }
                }
            }
        };
        progress.freshness().await.map_err(store_error)
    }

    async fn wait_for(&self, revision: Revision) -> Result<(), CacheError> {
        let mut reached = self.reached.subscribe();
        let wait = async {
            loop {
                let now = *reached.borrow_and_update();
                if now.closed {
                    return Err(CacheError::NoResource);
                }
                if now.revision >= revision {
                    return Ok(());
                }
                if let Some(progress) = self.progress.lock().as_ref() {
                    progress.request();
                }
                // Whether it changed or not: look, and ask again.
                let _ = tokio::time::timeout(ASK_AGAIN, reached.changed()).await;
            }
        };
        match tokio::time::timeout(self.tuning.wait, wait).await {
            Ok(result) => result,
            Err(_) => Err(CacheError::TooLarge {
                requested: revision,
                current: self.reached.borrow().revision,
            }),
        }
    }

    /// One page at a revision the cache no longer remembers, from the store's history. Reads no more than the page.
    async fn page_from_store(
        &self,
        selection: &Selection,
        revision: Revision,
        limit: usize,
        start: Option<&str>,
    ) -> Result<ListPage, ReadError> {
        let indexed = self.builder.indexed();
        let mut below = self.builder.spec().prefix.to_string();
        if let Some(namespace) = &selection.namespace {
            below = format!("{below}{namespace}/");
        }
        let mut range = Range::prefix(&below);
        if let Some(start) = start {
            range.start = Bound::Included(format!("{below}{start}"));
        }
        let (mut objects, mut matching, mut unread) = (OrdSet::new(), 0, 0);
        // One more than the page holds, to know that it is not the last.
        while limit == 0 || matching <= limit {
            let want = if limit == 0 {
                LIST_PAGE
            } else {
                limit.min(LIST_PAGE) + 1
            };
            let stored = self.store.list(range.clone(), Some(revision), want).await?;
            for stored in &stored.items {
                let entry = self.builder.entry(stored)?;
                matching += usize::from(selection.matches(&entry, indexed));
                objects.insert(ByKey(entry));
            }
            unread = stored.remaining;
            match stored.items.last() {
                Some(last) if unread > 0 => range.start = Bound::Excluded(last.key.clone()),
                _ => break,
            }
        }
        let snapshot = Snapshot { revision, objects };
        let mut page = page(&snapshot, selection, indexed, limit, start);
        page.remaining = page.remaining.map(|read| read + unread);
        Ok(page)
    }

    /// Reads all objects from the store, in pages that show one revision.
    async fn read_all(&self) -> Result<(Vec<Arc<Entry>>, Revision), ReadError> {
        let (mut entries, mut range, mut at) = (Vec::new(), self.range(), None);
        loop {
            let page = self.store.list(range.clone(), at, LIST_PAGE).await?;
            at = Some(page.revision);
            for stored in &page.items {
                entries.push(self.builder.entry(stored)?);
            }
            match page.items.last() {
                Some(last) if page.remaining > 0 => {
                    range.start = Bound::Excluded(last.key.clone());
                }
                _ => return Ok((entries, page.revision)),
            }
            tokio::task::yield_now().await;
        }
    }

    /// What happened after `after` up to `until`, from the store's log: for watchers that come back after longer than
    /// the cache remembers, or after a restart.
    async fn past_from_store(
        self: &Arc<Self>,
        selection: Arc<Selection>,
        after: Revision,
        until: Revision,
    ) -> Result<WatchStream, CacheError> {
        let expired = || CacheError::WatchExpired {
            requested: after,
            oldest: until,
        };
        let mut watch = match self.store.watch(self.range(), after).await {
            Ok(watch) => watch,
            Err(store::Error::Compacted { .. }) => return Err(expired()),
            Err(error) => return Err(store_error(error)),
        };
        watch.progress.request();
        // The first item tells whether the store still knows; some engines say so in the stream only.
        let first = tokio::time::timeout(self.tuning.wait, watch.items.next()).await;
        let first = match first {
            Ok(Some(Ok(first))) => first,
            Ok(Some(Err(store::Error::Compacted { .. }))) => return Err(expired()),
            Ok(Some(Err(error))) => return Err(store_error(error)),
            Ok(None) | Err(_) => return Err(CacheError::NotReady),
        };
        let items = stream::iter([Ok(first)]).chain(watch.items);
        let inner = self.clone();
        let (progress, indexed) = (watch.progress, self.builder.indexed());
        let state = (items, progress, false);
        let past = stream::unfold(state, move |(mut items, progress, done)| {
            let (inner, selection) = (inner.clone(), selection.clone());
            async move {
                if done {
                    return None;
                }
                progress.request();
                let (mut deliveries, done) = match items.next().await? {
                    Ok(WatchItem::Progress(revision)) => (Vec::new(), revision >= until),
                    Ok(WatchItem::Events(events)) => {
                        let done = events.last().is_some_and(|e| e.revision >= until);
                        let mut deliveries = Vec::new();
                        for event in events.iter().take_while(|e| e.revision <= until) {
                            match inner.deliver(event, &selection, indexed) {
                                Ok(delivery) => deliveries.extend(delivery),
                                Err(error) => {
                                    tracing::error!(%error, "a watch of the past has failed");
                                    return None;
                                }
                            }
                        }
                        (deliveries, done)
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a watch of the past has failed");
                        return None;
                    }
                };
                if done {
                    // Tells a past that is complete from one that failed.
                    deliveries.push(Delivery::Bookmark {
                        revision: until,
                        initial_events_end: false,
                    });
                }
                Some((stream::iter(deliveries), (items, progress, done)))
            }
        });
        Ok(past.flatten().boxed())
    }

    fn deliver(
        &self,
        event: &store::Event,
        selection: &Selection,
        indexed: Option<usize>,
    ) -> Result<Option<Delivery>, CacheError> {
        let entry = |stored: &Option<KeyValue>| {
            let stored = stored.as_ref();
            stored.map(|s| self.builder.entry(s)).transpose()
        };
        let event = Event::new(
            event.revision,
            entry(&event.current)?,
            entry(&event.previous)?,
        );
        Ok(delivery(&event, selection, indexed))
    }

    /// Makes the core's newest state the one readers see.
    fn publish(&self, core: &Core<Queue>) {
        let present = core.present().clone();
        let revision = present.revision;
        self.present.store(Some(Arc::new(present)));
        self.reached.send_modify(|r| {
            r.revision = revision;
            r.live = true;
        });
    }
}

/// Why reading from the store failed.
enum ReadError {
    Store(store::Error),
    Corrupt(CacheError),
}

impl From<store::Error> for ReadError {
    fn from(error: store::Error) -> Self {
        ReadError::Store(error)
    }
}

impl From<CacheError> for ReadError {
    fn from(error: CacheError) -> Self {
        ReadError::Corrupt(error)
    }
}

impl From<ReadError> for CacheError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Store(error) => store_error(error),
            ReadError::Corrupt(error) => error,
        }
    }
}

fn store_error(error: store::Error) -> CacheError {
    CacheError::Store(error.to_string())
}

/// Feeds the cache for ever.
async fn feed(inner: Arc<Inner>) {
    let epoch = Instant::now();
    let mut pause = BACKOFF.0;
    loop {
        let before = inner.reached.borrow().revision;
        let fed = AssertUnwindSafe(feed_once(&inner, epoch))
            .catch_unwind()
            .await;
        let error = match fed {
            Ok(Ok(never)) => match never {},
            Ok(Err(error)) => error,
            // Should reading have such a flaw, readers must not be left with a state that grows old in silence.
            Err(_panic) => store::Error::Failed("reading the store panicked".to_owned()).into(),
        };
        *inner.progress.lock() = None;
        inner.reached.send_modify(|r| r.live = false);
        if inner.reached.borrow().revision > before {
            pause = BACKOFF.0;
        }
        let error = CacheError::from(error);
        let resource = &inner.builder.spec().resource;
        tracing::warn!(%resource, %error, "the cache reads the store anew");
        *inner.failure.lock() = Some(error);
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(BACKOFF.1);
    }
}

/// One list and one watch, until that fails.
async fn feed_once(inner: &Inner, epoch: Instant) -> Result<std::convert::Infallible, ReadError> {
    let (entries, revision) = inner.read_all().await?;
    let mut watch = inner.store.watch(inner.range(), revision).await?;
    {
        let mut core = inner.core.lock();
        core.reset(entries, revision);
        // Before readers see the state: who sees it may ask for the latest.
        *inner.progress.lock() = Some(watch.progress.clone());
        *inner.failure.lock() = None;
        inner.publish(&core);
    }
    let mut housekeeping = tokio::time::interval(inner.tuning.housekeeping);
    housekeeping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let item = tokio::select! {
            item = watch.items.next() => item,
            _ = housekeeping.tick() => {
                let mut core = inner.core.lock();
                core.trim(epoch.elapsed().as_millis() as u64);
                if core.watcher_count() > 0 {
                    // Bookmarks of a quiet resource have to move on too.
                    watch.progress.request();
                }
                continue;
            }
        };
        match item {
            Some(Ok(WatchItem::Events(events))) => {
                // Decoded before the lock is taken.
                let mut changes = Vec::with_capacity(events.len());
                for event in &events {
                    let current = event.current.as_ref();
                    let current = current.map(|c| inner.builder.entry(c)).transpose()?;
                    changes.push((event, current));
                }
                let now = epoch.elapsed().as_millis() as u64;
                let prefix = inner.builder.spec().prefix.len();
                let mut core = inner.core.lock();
                for (event, current) in changes {
                    core.apply(&event.key[prefix..], current, event.revision, now);
                }
                inner.publish(&core);
            }
            Some(Ok(WatchItem::Progress(revision))) => {
                let mut core = inner.core.lock();
                core.progress(revision);
                inner.publish(&core);
            }
            Some(Err(error)) => return Err(error.into()),
            None => {
                return Err(store::Error::Failed("the store was closed".to_owned()).into());
            }
        }
    }
}
