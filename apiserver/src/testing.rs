//! Stand-ins for the tests of this crate: a clock that is set by hand, and stored objects in memory with the same
//! contract as the cache's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use keelson_machinery::clock::{Clock, Source};
use keelson_machinery::meta;
use keelson_machinery::status::ApiError;
use keelson_machinery::value::Value;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::objects::Objects;
use crate::reader::{Change, GroupResource, ObjectReader};

/// When tests begin, in Unix seconds.
pub(crate) const START: i64 = 1_790_000_000;

/// A clock that stands still until it is set; its random source counts.
#[derive(Clone, Default)]
pub(crate) struct HandClock(Arc<(AtomicI64, AtomicU64)>);

impl HandClock {
    pub(crate) fn new() -> Self {
        let clock = HandClock::default();
        clock.0.0.store(START, Ordering::SeqCst);
        clock
    }

    pub(crate) fn advance(&self, seconds: i64) {
        self.0.0.fetch_add(seconds, Ordering::SeqCst);
    }

    pub(crate) fn clock(&self) -> Clock {
        Clock::from_source(self.clone())
    }
}

impl Source for HandClock {
    fn now(&self) -> jiff::Timestamp {
        jiff::Timestamp::from_second(self.0.0.load(Ordering::SeqCst)).expect("in range")
    }

    fn fill_random(&self, buf: &mut [u8]) {
        for byte in buf {
            *byte = self.0.1.fetch_add(1, Ordering::SeqCst) as u8;
        }
    }
}

type Key = (GroupResource, String, String);

#[derive(Default)]
struct State {
    objects: BTreeMap<Key, Arc<Value>>,
    watchers: Vec<(GroupResource, mpsc::UnboundedSender<Change>)>,
    failing: bool,
}

/// Stored objects in memory.
#[derive(Clone, Default)]
pub(crate) struct Memory(Arc<Mutex<State>>);

impl Memory {
    pub(crate) fn objects(&self) -> Objects {
        Objects(Arc::new(self.clone()))
    }

    /// Stores an object, new or changed, under its `metadata`.
    pub(crate) fn put(&self, group: &str, resource: &str, object: Value) {
        let mut state = self.0.lock();
        let at = GroupResource::new(group, resource);
        let object = Arc::new(object);
        let key = (
            at.clone(),
            meta::namespace(&object).to_owned(),
            meta::name(&object).to_owned(),
        );
        state.objects.insert(key, object.clone());
        Self::tell(&mut state, &at, &Change::Applied(object));
    }

    /// Deletes an object that must exist.
    pub(crate) fn delete(&self, group: &str, resource: &str, namespace: &str, name: &str) {
        let mut state = self.0.lock();
        let at = GroupResource::new(group, resource);
        let object = state
            .objects
            .remove(&(at.clone(), namespace.to_owned(), name.to_owned()))
            .expect("exists");
        Self::tell(&mut state, &at, &Change::Deleted(object));
    }

    /// From now on every read fails.
    pub(crate) fn fail(&self) {
        self.0.lock().failing = true;
    }

    fn tell(state: &mut State, at: &GroupResource, change: &Change) {
        state
            .watchers
            .retain(|(watched, sender)| watched != at || sender.send(change.clone()).is_ok());
    }

    fn check(state: &State) -> Result<(), ApiError> {
        if state.failing {
            Err(ApiError::internal("the store failed"))
        } else {
            Ok(())
        }
    }
}

#[async_trait]
impl ObjectReader for Memory {
    async fn get(
        &self,
        resource: &GroupResource,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Value>>, ApiError> {
        let state = self.0.lock();
        Self::check(&state)?;
        Ok(state
            .objects
            .get(&(resource.clone(), namespace.to_owned(), name.to_owned()))
            .cloned())
    }

    async fn list(
        &self,
        resource: &GroupResource,
        namespace: Option<&str>,
    ) -> Result<Vec<Arc<Value>>, ApiError> {
        let state = self.0.lock();
        Self::check(&state)?;
        let wanted = |(at, in_namespace, _): &Key| {
            at == resource && namespace.is_none_or(|namespace| namespace == in_namespace)
        };
        Ok(state
            .objects
            .iter()
            .filter(|(key, _)| wanted(key))
            .map(|(_, object)| object.clone())
            .collect())
    }

    fn changes(&self, resource: &GroupResource) -> BoxStream<'static, Change> {
        let mut state = self.0.lock();
        let (sender, receiver) = mpsc::unbounded_channel();
        for (_, object) in state
            .objects
            .iter()
            .filter(|((at, _, _), _)| at == resource)
        {
            sender
                .send(Change::Applied(object.clone()))
                .expect("receiver is here");
        }
        sender.send(Change::Synced).expect("receiver is here");
        state.watchers.push((resource.clone(), sender));
        UnboundedReceiverStream::new(receiver).boxed()
    }
}
