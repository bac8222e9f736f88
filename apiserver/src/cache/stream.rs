//! The stream of one watcher: what is past, then what comes, with bookmarks in between.

use std::collections::VecDeque;
use std::ops::Bound;
use std::sync::Arc;

use futures::StreamExt;
use keelson_store::Revision;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::core::WatcherId;
use super::handle::{Inner, WatchStream};
use super::types::{Delivery, Entry, Selection};
use super::window::Snapshot;

/// Keeps a watcher subscribed.
pub(super) struct Subscription {
    inner: Arc<Inner>,
    id: WatcherId,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.inner.core.lock().unsubscribe(self.id);
    }
}

/// The objects of a snapshot that a selection means, a few at a time.
pub(super) struct Initial {
    snapshot: Snapshot,
    selection: Arc<Selection>,
    last: Option<Arc<Entry>>,
}

impl Initial {
    pub fn new(snapshot: Snapshot, selection: Arc<Selection>) -> Self {
        Initial {
            snapshot,
            selection,
            last: None,
        }
    }

    /// Adds the next deliveries to `out`; `false` when there are no more.
    fn fill(&mut self, indexed: Option<usize>, out: &mut VecDeque<Delivery>) -> bool {
        const LOOKED_AT: usize = 1024;
        let namespace = self.selection.namespace.as_deref();
        let first = namespace.map_or(String::new(), |n| format!("{n}/"));
        let start = match &self.last {
            Some(last) => Bound::Excluded(last.key()),
            None => Bound::Included(first.as_str()),
        };
        let mut last = None;
        let mut looked_at = 0;
        for entry in self.snapshot.from(start, namespace).take(LOOKED_AT) {
            looked_at += 1;
            last = Some(entry.clone());
            if self.selection.matches(entry, indexed) {
                out.push_back(Delivery::Added(entry.clone()));
            }
        }
        self.last = last;
        looked_at == LOOKED_AT
    }
}

/// The state of one watcher's stream.
pub(super) struct Watching {
    pub subscription: Option<Subscription>,
    pub live: mpsc::Receiver<Delivery>,
    /// Deliveries that come before everything else.
    pub pending: VecDeque<Delivery>,
    pub initial: Option<Initial>,
    pub store_past: Option<WatchStream>,
    /// Revision of the bookmark that closes the initial events, until it is sent.
    pub initial_end: Option<Revision>,
    pub bookmarks: Option<std::pin::Pin<Box<tokio::time::Sleep>>>,
    /// Newest revision delivered.
    pub newest: Revision,
}

impl Watching {
    pub fn subscribe(&mut self, inner: &Arc<Inner>, id: WatcherId) {
        self.subscription = Some(Subscription {
            inner: inner.clone(),
            id,
        });
    }

    pub async fn next(&mut self) -> Option<Delivery> {
        let delivery = self.next_unnoted().await?;
        self.newest = match &delivery {
            // Initial objects come in key order.
            Delivery::Added(entry) | Delivery::Modified(entry) | Delivery::Deleted(entry) => {
                self.newest.max(entry.revision())
            }
            Delivery::Bookmark { revision, .. } => *revision,
        };
        Some(delivery)
    }

    async fn next_unnoted(&mut self) -> Option<Delivery> {
        let inner = self.subscription.as_ref()?.inner.clone();
        loop {
            if let Some(delivery) = self.pending.pop_front() {
                return Some(delivery);
            }
            if let Some(initial) = &mut self.initial {
                if !initial.fill(inner.builder.indexed(), &mut self.pending) {
                    self.initial = None;
                }
                continue;
            }
            if let Some(past) = &mut self.store_past {
                match past.next().await {
                    Some(Delivery::Bookmark { .. }) => self.store_past = None,
                    Some(delivery) => return Some(delivery),
                    // The past has a hole: the watcher must not go on.
                    None => return None,
                }
                continue;
            }
            if let Some(revision) = self.initial_end.take() {
                return Some(Delivery::Bookmark {
                    revision,
                    initial_events_end: true,
                });
            }
            let Some(timer) = &mut self.bookmarks else {
                return self.live.recv().await;
            };
            tokio::select! {
                biased;
                delivery = self.live.recv() => return delivery,
                () = timer.as_mut() => {
                    timer.as_mut().reset(Instant::now() + inner.tuning.bookmark);
                    // Everything up to this revision was queued before it was published.
                    let revision = inner.reached.borrow().revision;
                    match self.live.try_recv() {
                        Ok(delivery) => return Some(delivery),
                        Err(mpsc::error::TryRecvError::Disconnected) => return None,
                        Err(mpsc::error::TryRecvError::Empty) => {}
                    }
                    if revision > self.newest {
                        return Some(Delivery::Bookmark { revision, initial_events_end: false });
                    }
                }
            }
        }
    }
}
