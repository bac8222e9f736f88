//! From the writer to the watchers: who is interested in a key, and the bounded queue of each.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use async_trait::async_trait;
use futures::task::AtomicWaker;
use parking_lot::Mutex;

use super::layout::event_bytes;
use crate::{Error, Event, Range, Revision, WatchItem, WatchProgress};

/// How much a watcher may leave in its queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueLimits {
    pub events: usize,
    pub bytes: usize,
}

/// All watchers of a store.
pub(super) struct Fanout {
    watchers: Mutex<Watchers>,
    /// All events up to this revision are in the queues. Written after them, read before looking into a queue: a
    /// watcher whose queue is then empty has seen everything up to it.
    published: AtomicU64,
    limits: QueueLimits,
}

#[derive(Default)]
struct Watchers {
    next_id: u64,
    /// Those that watch all keys below a path, by that path with its slash: a change finds them by the paths above
    /// its key, however many others there are.
    below: HashMap<String, Vec<Arc<Queue>>>,
    /// Those with any other range.
    others: Vec<Arc<Queue>>,
    closed: bool,
}

impl Fanout {
    pub fn new(published: Revision, limits: QueueLimits) -> Self {
        Fanout {
            watchers: Mutex::default(),
            published: AtomicU64::new(published),
            limits,
        }
    }

    /// The newest revision all watchers have been told of.
    pub fn published(&self) -> Revision {
        self.published.load(Ordering::Acquire)
    }

    /// Adds a watcher of `range` for events after `after`. The queue gets those not yet published; the ones up to the
    /// returned revision have to be read from the log.
    pub fn register(self: &Arc<Self>, range: Range, after: Revision) -> (Registration, Revision) {
        let mut watchers = self.watchers.lock();
        let live_after = self.published();
        watchers.next_id += 1;
        let queue = Arc::new(Queue {
            id: watchers.next_id,
            after,
            state: Mutex::new(QueueState {
                end: watchers.closed.then_some(End::Closed),
                ..QueueState::default()
            }),
            waker: AtomicWaker::new(),
            last_queued: AtomicU64::new(live_after.max(after)),
            range,
        });
        match queue.path() {
            Some(path) => watchers
                .below
                .entry(path.to_owned())
                .or_default()
                .push(queue.clone()),
            None => watchers.others.push(queue.clone()),
        }
        let registration = Registration {
            fanout: self.clone(),
            queue,
        };
        (registration, live_after)
    }

    /// Queues events (in order of revision) for all who watch their keys, then declares `revision` published.
    pub fn publish(&self, events: &[Event], revision: Revision) {
        let watchers = self.watchers.lock();
        for event in events {
            let mut offer = |queue: &Arc<Queue>| queue.push(event, self.limits);
            for (at, _) in event.key.match_indices('/') {
                if let Some(queues) = watchers.below.get(&event.key[..=at]) {
                    queues.iter().for_each(&mut offer);
                }
            }
            watchers
                .others
                .iter()
                .filter(|q| q.range.contains(&event.key))
                .for_each(&mut offer);
        }
        self.published.store(revision, Ordering::Release);
    }

    /// Ends all watches; later ones end at once.
    pub fn close(&self) {
        let mut watchers = self.watchers.lock();
        watchers.closed = true;
        for queue in watchers
            .below
            .values()
            .flatten()
            .chain(watchers.others.iter())
        {
            queue.state.lock().end.get_or_insert(End::Closed);
            queue.waker.wake();
        }
    }

    fn remove(&self, queue: &Queue) {
        let mut watchers = self.watchers.lock();
        match queue.path() {
            Some(path) => {
                if let Some(queues) = watchers.below.get_mut(path) {
                    queues.retain(|q| q.id != queue.id);
                    if queues.is_empty() {
                        watchers.below.remove(path);
                    }
                }
            }
            None => watchers.others.retain(|q| q.id != queue.id),
        }
    }
}

/// Keeps a watcher registered.
pub(super) struct Registration {
    fanout: Arc<Fanout>,
    pub queue: Arc<Queue>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.fanout.remove(&self.queue);
    }
}

impl Registration {
    /// The next item; `None` when the store was closed.
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<Option<Result<WatchItem, Error>>> {
        self.queue.waker.register(cx.waker());
        let published = self.fanout.published();
        let mut state = self.queue.state.lock();
        if let Some(End::Lagged) = state.end {
            return Poll::Ready(Some(Err(Error::Lagged)));
        }
        if !state.events.is_empty() {
            state.bytes = 0;
            let events: Vec<Event> = std::mem::take(&mut state.events).into();
            return Poll::Ready(Some(Ok(WatchItem::Events(events))));
        }
        if let Some(End::Closed) = state.end {
            return Poll::Ready(None);
        }
        if state.progress_wanted {
            state.progress_wanted = false;
            return Poll::Ready(Some(Ok(WatchItem::Progress(published))));
        }
        Poll::Pending
    }
}

/// The events that wait for one watcher.
pub(super) struct Queue {
    id: u64,
    range: Range,
    after: Revision,
    state: Mutex<QueueState>,
    waker: AtomicWaker,
    /// What the consumer has to reach to have seen all that was acknowledged.
    last_queued: AtomicU64,
}

#[derive(Default)]
struct QueueState {
    events: VecDeque<Event>,
    bytes: usize,
    progress_wanted: bool,
    end: Option<End>,
}

#[derive(Clone, Copy)]
enum End {
    Lagged,
    Closed,
}

impl Queue {
    /// The path all keys of the range lie below, if it is such a range.
    fn path(&self) -> Option<&str> {
        let std::ops::Bound::Included(start) = &self.range.start else {
            return None;
        };
        let below = start.ends_with('/') && self.range.end == Range::prefix(start).end;
        below.then_some(start)
    }

    fn push(&self, event: &Event, limits: QueueLimits) {
        if event.revision <= self.after {
            return;
        }
        let mut state = self.state.lock();
        // Also when the event finds no room: then nobody may take the watcher for up to date.
        self.last_queued.store(event.revision, Ordering::Release);
        if state.end.is_some() {
            return;
        }
        let bytes = event_bytes(event);
        // One event always fits, however large.
        let full = state.events.len() >= limits.events
            || (state.bytes + bytes > limits.bytes && !state.events.is_empty());
        if full {
            state.events = VecDeque::new();
            state.bytes = 0;
            state.end = Some(End::Lagged);
        } else {
            state.bytes += bytes;
            state.events.push_back(event.clone());
        }
        drop(state);
        self.waker.wake();
    }
}

#[async_trait]
impl WatchProgress for Queue {
    async fn freshness(&self) -> Result<Revision, Error> {
        Ok(self.last_queued.load(Ordering::Acquire))
    }

    fn request(&self) {
        self.state.lock().progress_wanted = true;
        self.waker.wake();
    }
}
