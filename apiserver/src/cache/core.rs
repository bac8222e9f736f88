//! The state machine of one resource's cache: changes in, snapshots and deliveries out. No I/O, no clock, no runtime.

use std::collections::HashMap;
use std::ops::Bound;
use std::sync::Arc;

use keelson_store::Revision;

use super::token::Token;
use super::types::{CacheError, Delivery, Entry, ListPage, Selection};
use super::window::{ByKey, Event, Limits, Snapshot, Window};

/// Where deliveries of one watcher go.
pub(super) trait Sink {
    /// Takes a delivery without waiting; `false` when it cannot, which ends the watcher.
    fn offer(&self, delivery: Delivery) -> bool;
}

/// Names a watcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WatcherId(u64);

/// The cache of one resource.
pub(super) struct Core<S> {
    window: Window,
    limits: Limits,
    watchers: Watchers<S>,
}

impl<S: Sink> Core<S> {
    /// A cache that knows nothing; `indexed` is the position of the resource's indexed field.
    pub fn new(limits: Limits, indexed: Option<usize>) -> Self {
        Core {
            window: Window::new(Snapshot::default(), limits),
            limits,
            watchers: Watchers::new(indexed),
        }
    }

    /// The newest state.
    pub fn present(&self) -> &Snapshot {
        self.window.present()
    }

    /// Starts anew from a list. What happened before is unknown: watchers end, to begin again.
    pub fn reset(&mut self, entries: Vec<Arc<Entry>>, revision: Revision) {
        let present = Snapshot {
            revision,
            objects: entries.into_iter().map(ByKey).collect(),
        };
        self.window = Window::new(present, self.limits);
        self.end_watchers();
    }

    /// Ends all watchers.
    pub fn end_watchers(&mut self) {
        self.watchers.clear();
    }

    /// How many watchers there are.
    pub fn watcher_count(&self) -> usize {
        self.watchers.len()
    }

    /// Takes a change: the state the key has now, or that it has none. Changes come in order of revision.
    pub fn apply(
        &mut self,
        key: &str,
        current: Option<Arc<Entry>>,
        revision: Revision,
        now_ms: u64,
    ) {
        let previous = self.present().get(key).cloned();
        let event = Arc::new(Event::new(revision, current, previous));
        self.window.push(event.clone(), now_ms);
        self.watchers.dispatch(&event);
    }

    /// Nothing changed up to `revision`.
    pub fn progress(&mut self, revision: Revision) {
        self.window.progress(revision);
    }

    /// Forgets what is too old.
    pub fn trim(&mut self, now_ms: u64) {
        self.window.trim(now_ms);
    }

    /// The state at `revision`, if it is still known.
    pub fn at(&self, revision: Revision) -> Option<Snapshot> {
        self.window.at(revision)
    }

    /// Adds a watcher for everything after `after`. Returns its name and what of that is past, or, if not all of it is
    /// known any more, what is after `Err`'s revision.
    pub fn subscribe(
        &mut self,
        selection: Arc<Selection>,
        after: Revision,
        sink: S,
    ) -> (WatcherId, Result<Vec<Delivery>, Revision>) {
        let present = self.present().revision;
        let indexed = self.watchers.indexed;
        let backlog = match self.window.since(after) {
            Some(events) => Ok(events
                .filter_map(|event| delivery(event, &selection, indexed))
                .collect()),
            None => Err(present),
        };
        let id = self.watchers.add(selection, after.max(present), sink);
        (id, backlog)
    }

    /// Removes a watcher, if it is still there.
    pub fn unsubscribe(&mut self, id: WatcherId) {
        self.watchers.remove(id);
    }
}

/// What an event means to who watches `selection`.
pub(super) fn delivery(
    event: &Event,
    selection: &Selection,
    indexed: Option<usize>,
) -> Option<Delivery> {
    let matching = |entry: &Option<Arc<Entry>>| {
        entry
            .as_ref()
            .filter(|entry| selection.matches(entry, indexed))
            .cloned()
    };
    match (matching(&event.previous), matching(&event.current)) {
        (None, None) => None,
        (None, Some(current)) => Some(Delivery::Added(current)),
        (Some(_), Some(current)) => Some(Delivery::Modified(current)),
        (Some(_), None) => event.gone().map(Delivery::Deleted),
    }
}

struct Watcher<S> {
    id: u64,
    /// Events up to here were handed over when the watcher was added, or are not wanted.
    after: Revision,
    selection: Arc<Selection>,
    sink: S,
}

/// Which watchers an event is offered to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Scope {
    All,
    Namespace(Box<str>),
    Key(Box<str>),
    Indexed(Box<str>),
}

/// The watchers, found by what they watch: an event costs nothing for those it cannot concern.
struct Watchers<S> {
    next_id: u64,
    indexed: Option<usize>,
    scopes: HashMap<u64, Scope>,
    all: Vec<Watcher<S>>,
    by_namespace: HashMap<Box<str>, Vec<Watcher<S>>>,
    by_key: HashMap<Box<str>, Vec<Watcher<S>>>,
    by_index: HashMap<Box<str>, Vec<Watcher<S>>>,
}

impl<S: Sink> Watchers<S> {
    fn new(indexed: Option<usize>) -> Self {
        Watchers {
            next_id: 0,
            indexed,
            scopes: HashMap::new(),
            all: Vec::new(),
            by_namespace: HashMap::new(),
            by_key: HashMap::new(),
            by_index: HashMap::new(),
        }
    }

    fn len(&self) -> usize {
        self.scopes.len()
    }

    fn clear(&mut self) {
        *self = Watchers {
            next_id: self.next_id,
            ..Self::new(self.indexed)
        };
    }

    /// The narrowest scope that holds all of a selection.
    fn scope(selection: &Selection) -> Scope {
        match (&selection.namespace, &selection.name) {
            (Some(namespace), Some(name)) => {
                return Scope::Key(format!("{namespace}/{name}").into());
            }
            // Of cluster-scoped objects the key; for a name in all namespaces no key has this form, see `dispatch`.
            (None, Some(name)) => return Scope::Key(name.as_str().into()),
            _ => {}
        }
        match (&selection.indexed, &selection.namespace) {
            (Some(value), _) => Scope::Indexed(value.as_str().into()),
            (None, Some(namespace)) => Scope::Namespace(namespace.as_str().into()),
            (None, None) => Scope::All,
        }
    }

    fn add(&mut self, selection: Arc<Selection>, after: Revision, sink: S) -> WatcherId {
        self.next_id += 1;
        let id = self.next_id;
        let scope = Self::scope(&selection);
        let watcher = Watcher {
            id,
            after,
            selection,
            sink,
        };
        let bucket = match &scope {
            Scope::All => &mut self.all,
            Scope::Namespace(at) => self.by_namespace.entry(at.clone()).or_default(),
            Scope::Key(at) => self.by_key.entry(at.clone()).or_default(),
            Scope::Indexed(at) => self.by_index.entry(at.clone()).or_default(),
        };
        bucket.push(watcher);
        self.scopes.insert(id, scope);
        WatcherId(id)
    }

    fn remove(&mut self, id: WatcherId) {
        let Some(scope) = self.scopes.remove(&id.0) else {
            return;
        };
        let (map, at) = match scope {
            Scope::All => {
                self.all.retain(|w| w.id != id.0);
                return;
            }
            Scope::Namespace(at) => (&mut self.by_namespace, at),
            Scope::Key(at) => (&mut self.by_key, at),
            Scope::Indexed(at) => (&mut self.by_index, at),
        };
        if let Some(bucket) = map.get_mut(&at) {
            bucket.retain(|w| w.id != id.0);
            if bucket.is_empty() {
                map.remove(&at);
            }
        }
    }

    fn dispatch(&mut self, event: &Event) {
        let Some(entry) = event.current.as_ref().or(event.previous.as_ref()) else {
            return;
        };
        let mut ended = Vec::new();
        let mut offer = |bucket: Option<&mut Vec<Watcher<S>>>, indexed| {
            for watcher in bucket.into_iter().flatten() {
                if event.revision <= watcher.after {
                    continue;
                }
                if let Some(delivery) = delivery(event, &watcher.selection, indexed)
                    && !watcher.sink.offer(delivery)
                {
                    ended.push(WatcherId(watcher.id));
                }
            }
        };
        let indexed = self.indexed;
        offer(Some(&mut self.all), indexed);
        offer(self.by_namespace.get_mut(entry.namespace()), indexed);
        offer(self.by_key.get_mut(entry.key()), indexed);
        if !entry.namespace().is_empty() {
            // Watchers of a name in all namespaces.
            offer(self.by_key.get_mut(entry.name()), indexed);
        }
        if let Some(field) = indexed {
            let value = |entry: &Option<Arc<Entry>>| {
                let entry = entry.as_ref()?;
                entry.facts().field(field).map(str::to_owned)
            };
            let (now, before) = (value(&event.current), value(&event.previous));
            if let Some(now) = &now {
                offer(self.by_index.get_mut(now.as_str()), indexed);
            }
            if let Some(before) = &before
                && now.as_ref() != Some(before)
            {
                offer(self.by_index.get_mut(before.as_str()), indexed);
            }
        }
        for id in ended {
            self.remove(id);
        }
    }
}

/// One page of a list from a snapshot, from `start` on (relative to the namespace, if one is selected).
pub(super) fn page(
    snapshot: &Snapshot,
    selection: &Selection,
    indexed: Option<usize>,
    limit: usize,
    start: Option<&str>,
) -> ListPage {
    let mut page = ListPage {
        items: Vec::new(),
        revision: snapshot.revision,
        next: None,
        remaining: None,
    };
    let namespace = selection.namespace.as_deref();
    // One object, if it can be only one.
    if let (Some(namespace), Some(name), None) = (namespace, &selection.name, start) {
        let found = snapshot.get(&format!("{namespace}/{name}"));
        let found = found.filter(|entry| selection.matches(entry, indexed));
        page.items.extend(found.cloned());
        return page;
    }
    // Of cluster-scoped objects the name is the key.
    if let (None, Some(name), None) = (namespace, &selection.name, start)
        && let Some(found) = snapshot.get(name)
    {
        page.items
            .extend(selection.matches(found, indexed).then(|| found.clone()));
        return page;
    }
    let prefix = namespace.map_or(String::new(), |n| format!("{n}/"));
    let start = format!("{prefix}{}", start.unwrap_or(""));
    let mut rest = snapshot.from(Bound::Included(&start), namespace);
    let limit = if limit == 0 { usize::MAX } else { limit };
    // The page is full when one more object is found to follow it.
    let mut more = false;
    for entry in rest.by_ref() {
        if !selection.matches(entry, indexed) {
            continue;
        }
        if page.items.len() == limit {
            more = true;
            break;
        }
        page.items.push(entry.clone());
    }
    if more && let Some(last) = page.items.last() {
        let last = &last.key()[prefix.len()..];
        page.next = Some(Token::after(last, Some(snapshot.revision)).encode());
        page.remaining = selection.is_plain().then(|| 1 + rest.count() as u64);
    }
    page
}

/// The token that goes on with an expired list in the newest state.
pub(super) fn inconsistent(token: &Token) -> CacheError {
    let token = Token {
        revision: None,
        start: token.start.clone(),
    };
    CacheError::ContinueExpired {
        token: token.encode(),
    }
}
