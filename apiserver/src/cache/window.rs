//! The recent past of one resource: its events, and the state at each of their revisions.
//!
//! Events are kept in segments, each with the state before its first event. A state is a persistent set that shares
//! all but the changed nodes with the next, so a segment costs little beyond its events; the state at any revision
//! is its segment's, with at most a segment's events applied. What is too old, or too much, goes by whole segments.

use std::borrow::Borrow;
use std::collections::VecDeque;
use std::ops::Bound;
use std::sync::{Arc, OnceLock};

use imbl::OrdSet;
use keelson_store::Revision;

use super::types::Entry;

/// An entry in key order.
#[derive(Clone, Debug)]
pub(super) struct ByKey(pub Arc<Entry>);

impl Borrow<str> for ByKey {
    fn borrow(&self) -> &str {
        self.0.key()
    }
}

impl PartialEq for ByKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.key() == other.0.key()
    }
}

impl Eq for ByKey {}

impl PartialOrd for ByKey {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ByKey {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.key().cmp(other.0.key())
    }
}

/// All objects of a resource at one revision. Cloning is cheap.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshot {
    /// Nothing changed between the last change in here and this revision.
    pub revision: Revision,
    pub objects: OrdSet<ByKey>,
}

impl Snapshot {
    pub fn get(&self, key: &str) -> Option<&Arc<Entry>> {
        self.objects.get(key).map(|found| &found.0)
    }

    /// Entries from `start` on, to the end of the namespace if one is given.
    pub fn from<'a>(
        &'a self,
        start: Bound<&'a str>,
        namespace: Option<&'a str>,
    ) -> impl Iterator<Item = &'a Arc<Entry>> {
        self.objects
            .range::<_, str>((start, Bound::Unbounded))
            .map(|found| &found.0)
            .take_while(move |entry| namespace.is_none_or(|n| entry.namespace() == n))
    }

    fn apply(&mut self, event: &Event) {
        match (&event.current, &event.previous) {
            (Some(current), _) => {
                self.objects.insert(ByKey(current.clone()));
            }
            (None, Some(previous)) => {
                self.objects.remove(previous.key());
            }
            (None, None) => {}
        }
        self.revision = event.revision;
    }
}

/// One change of one object.
#[derive(Debug)]
pub(super) struct Event {
    pub revision: Revision,
    pub current: Option<Arc<Entry>>,
    pub previous: Option<Arc<Entry>>,
    gone: OnceLock<Arc<Entry>>,
}

impl Event {
    pub fn new(
        revision: Revision,
        current: Option<Arc<Entry>>,
        previous: Option<Arc<Entry>>,
    ) -> Self {
        Event {
            revision,
            current,
            previous,
            gone: OnceLock::new(),
        }
    }

    /// The state before with the revision of this change: what those see for whom the object is gone. Made for the
    /// first of them, shared by the others.
    pub fn gone(&self) -> Option<Arc<Entry>> {
        let previous = self.previous.as_ref()?;
        let gone = self
            .gone
            .get_or_init(|| Arc::new(previous.at_revision(self.revision)));
        Some(gone.clone())
    }

    /// Bytes this event keeps in memory that the present state does not.
    fn held(&self) -> usize {
        const FIXED: usize = 256;
        FIXED + self.previous.as_ref().map_or(0, |p| p.json.len() + FIXED)
    }
}

/// How much past is kept: the newest segment always, older ones while they are within all of these.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub events: usize,
    pub bytes: usize,
    pub age_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            events: 100_000,
            // Upstream keeps 75 s (`eventFreshDuration`) whatever its size. Here the store's log serves those who come
            // back later, so that the window only has to be large enough to make that rare.
            bytes: 4 << 20,
            age_ms: 75_000,
        }
    }
}

/// Events in a segment.
const SEGMENT: usize = 64;

struct Segment {
    /// State before the first event.
    base: Snapshot,
    events: Vec<Arc<Event>>,
    bytes: usize,
    /// When the last event came.
    touched_ms: u64,
}

/// The recent past, up to the present.
pub(super) struct Window {
    present: Snapshot,
    segments: VecDeque<Segment>,
    events: usize,
    bytes: usize,
    limits: Limits,
}

impl Window {
    /// A window that begins with `present`.
    pub fn new(present: Snapshot, limits: Limits) -> Self {
        Window {
            present,
            segments: VecDeque::new(),
            events: 0,
            bytes: 0,
            limits,
        }
    }

    /// The newest state.
    pub fn present(&self) -> &Snapshot {
        &self.present
    }

    /// All changes after this revision are known.
    pub fn oldest(&self) -> Revision {
        self.segments
            .front()
            .map_or(self.present.revision, |s| s.base.revision)
    }

    /// Nothing changed up to `revision`.
    pub fn progress(&mut self, revision: Revision) {
        self.present.revision = self.present.revision.max(revision);
    }

    /// Adds a change, which must be newer than all before.
    pub fn push(&mut self, event: Arc<Event>, now_ms: u64) {
        let full = self
            .segments
            .back()
            .is_none_or(|s| s.events.len() >= SEGMENT);
        if full {
            self.segments.push_back(Segment {
                base: self.present.clone(),
                events: Vec::with_capacity(8),
                bytes: 0,
                touched_ms: now_ms,
            });
        }
        self.present.apply(&event);
        let held = event.held();
        if let Some(segment) = self.segments.back_mut() {
            segment.touched_ms = now_ms;
            segment.bytes += held;
            segment.events.push(event);
        }
        self.events += 1;
        self.bytes += held;
        self.trim(now_ms);
    }

    /// Forgets what is too old or too much.
    pub fn trim(&mut self, now_ms: u64) {
        while let Some(first) = self.segments.front() {
            let aged = now_ms.saturating_sub(first.touched_ms) > self.limits.age_ms;
            let much = self.events > self.limits.events || self.bytes > self.limits.bytes;
            if !aged && (!much || self.segments.len() == 1) {
                return;
            }
            self.events -= first.events.len();
            self.bytes -= first.bytes;
            self.segments.pop_front();
        }
    }

    /// The state at `revision`; `None` when it is no longer known, or not yet.
    pub fn at(&self, revision: Revision) -> Option<Snapshot> {
        if revision > self.present.revision || revision < self.oldest() {
            return None;
        }
        let after = self
            .segments
            .partition_point(|s| s.base.revision <= revision);
        let Some(segment) = after.checked_sub(1).map(|at| &self.segments[at]) else {
            return Some(self.present.clone());
        };
        let mut state = segment.base.clone();
        for event in segment.events.iter().take_while(|e| e.revision <= revision) {
            state.apply(event);
        }
        state.revision = revision;
        Some(state)
    }

    /// All changes after `revision`; `None` when some of them are no longer known.
    pub fn since(&self, revision: Revision) -> Option<impl Iterator<Item = &Arc<Event>>> {
        if revision < self.oldest() {
            return None;
        }
        let first = self
            .segments
            .partition_point(|s| s.base.revision <= revision)
            .saturating_sub(1);
        let events = self.segments.range(first..).flat_map(|s| &s.events);
        Some(events.skip_while(move |e| e.revision <= revision))
    }
}
