//! Shared informers: one list and one watch per resource and process, however many components read it.
//!
//! An [`Informer`] lists a resource in pages, then watches from the revision of that list. Its [`Store`] holds each object
//! once. Handlers see every change in the order of the server, with the old and the new object, after the store has it.
//! A watch that ends is resumed from the last revision seen, bookmarks included, so nothing is missed or told twice; a
//! revision that the server has forgotten (410) leads to a new list, whose difference to the store is told as
//! additions, updates and deletions. There is no periodic resync.
//!
//! ```no_run
//! # use keelson_runtime::informer::{Event, InformerFactory};
//! # use k8s_openapi::api::core::v1::Pod;
//! # async fn example(factory: InformerFactory) {
//! let pods = factory.informer::<Pod>();
//! pods.on_event(|event| if let Event::Updated { old, new } = event { let _ = (old, new); });
//! pods.wait_synced().await;
//! let here = pods.store().list_namespace("default");
//! # }
//! ```

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt::Debug;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::serde::de::DeserializeOwned;
use keelson_machinery::clock::Clock;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::{ObjectList, PartialObjectMeta};
use kube::discovery::ApiResource;
use kube::{Api, Client, Resource};
use parking_lot::Mutex;
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::backoff::{Backoff, jitter};
use crate::key::ObjectKey;
use crate::store::Store;

/// Objects per page of a list (client-go `pager.defaultPageSize`).
const PAGE: u32 = 500;
/// A server that neither sends nor closes for this much longer than the watch may last is gone.
const SILENCE: Duration = Duration::from_secs(10);

/// A change that a handler is told of.
#[derive(Debug)]
pub enum Event<K> {
    /// An object that the store did not have; `initial` when it was there before the handler was.
    Added {
        /// The object.
        object: Arc<K>,
        /// Whether this is part of the first list or of the replay to a new handler.
        initial: bool,
    },
    /// An object that changed.
    Updated {
        /// As it was in the store.
        old: Arc<K>,
        /// As it is now.
        new: Arc<K>,
    },
    /// An object that is gone: its last state, or the last state known when the deletion itself was missed.
    Deleted {
        /// The object.
        object: Arc<K>,
    },
}

impl<K> Event<K> {
    /// The object as it is now, or as it last was.
    pub fn object(&self) -> &Arc<K> {
        match self {
            Event::Added { object, .. } | Event::Deleted { object } => object,
            Event::Updated { new, .. } => new,
        }
    }
}

impl<K> Clone for Event<K> {
    fn clone(&self) -> Self {
        match self {
            Event::Added { object, initial } => Event::Added {
                object: object.clone(),
                initial: *initial,
            },
            Event::Updated { old, new } => Event::Updated {
                old: old.clone(),
                new: new.clone(),
            },
            Event::Deleted { object } => Event::Deleted {
                object: object.clone(),
            },
        }
    }
}

type Handler<K> = Box<dyn Fn(&Event<K>) + Send + Sync>;
type Transform<K> = Arc<dyn Fn(&mut K) + Send + Sync>;

/// What an informer reads and keeps.
pub struct InformerConfig<K> {
    /// Only objects that match this label selector; empty for all.
    pub labels: String,
    /// Only objects that match this field selector; empty for all.
    pub fields: String,
    /// Drops `metadata.managedFields`, which are often half of an object. On by default; a component that sends
    /// whole objects back must not rely on them anyway, since an update without them keeps the server's.
    pub strip_managed_fields: bool,
    /// A further reduction of each object before it is stored.
    pub transform: Option<Transform<K>>,
}

impl<K> Default for InformerConfig<K> {
    fn default() -> Self {
        InformerConfig {
            labels: String::new(),
            fields: String::new(),
            strip_managed_fields: true,
            transform: None,
        }
    }
}

impl<K> Clone for InformerConfig<K> {
    fn clone(&self) -> Self {
        InformerConfig {
            labels: self.labels.clone(),
            fields: self.fields.clone(),
            strip_managed_fields: self.strip_managed_fields,
            transform: self.transform.clone(),
        }
    }
}

/// What can be listed and watched.
trait Source<K>: Send + Sync + 'static {
    fn list(&self, params: &ListParams) -> impl Future<Output = kube::Result<ObjectList<K>>> + Send
    where
        K: Clone;
    fn watch(
        &self,
        params: &WatchParams,
        version: &str,
    ) -> impl Future<Output = kube::Result<BoxStream<'static, kube::Result<WatchEvent<K>>>>> + Send;
    fn url(&self) -> &str;
}

struct Whole<K>(Api<K>);

impl<K> Source<K> for Whole<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    async fn list(&self, params: &ListParams) -> kube::Result<ObjectList<K>> {
        self.0.list(params).await
    }
    async fn watch(
        &self,
        params: &WatchParams,
        version: &str,
    ) -> kube::Result<BoxStream<'static, kube::Result<WatchEvent<K>>>> {
        Ok(self.0.watch(params, version).await?.boxed())
    }
    fn url(&self) -> &str {
        self.0.resource_url()
    }
}

/// The metadata of an object of any resource.
pub type Metadata = PartialObjectMeta<kube::core::DynamicObject>;

struct MetadataOnly(Api<kube::core::DynamicObject>);

impl Source<Metadata> for MetadataOnly {
    async fn list(&self, params: &ListParams) -> kube::Result<ObjectList<Metadata>> {
        self.0.list_metadata(params).await
    }
    async fn watch(
        &self,
        params: &WatchParams,
        version: &str,
    ) -> kube::Result<BoxStream<'static, kube::Result<WatchEvent<Metadata>>>> {
        Ok(self.0.watch_metadata(params, version).await?.boxed())
    }
    fn url(&self) -> &str {
        self.0.resource_url()
    }
}

/// A handle to a shared informer. Clones share it; it runs until its factory's token (or its own) is cancelled.
pub struct Informer<K> {
    shared: Arc<Shared<K>>,
}

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Informer {
            shared: self.shared.clone(),
        }
    }
}

struct Shared<K> {
    store: Store<K>,
    /// Held while a change goes into the store and out to the handlers, so that a handler added meanwhile neither
    /// misses a change nor gets one twice.
    handlers: Mutex<Vec<Handler<K>>>,
    synced: watch::Sender<bool>,
    stop: CancellationToken,
}

impl<K: Resource + 'static> Informer<K> {
    /// The local copy. Before [`wait_synced`](Informer::wait_synced) returned it may lack objects.
    pub fn store(&self) -> &Store<K> {
        &self.shared.store
    }

    /// Adds a handler. It is first told of everything in the store (`Added`, `initial`), then of each change. Handlers run
    /// on the informer's task: they must only note what to do (enqueue a key) and not add handlers to the same informer.
    pub fn on_event(&self, handler: impl Fn(&Event<K>) + Send + Sync + 'static) {
        let mut handlers = self.shared.handlers.lock();
        for object in self.shared.store.list() {
            call(
                &handler,
                &Event::Added {
                    object,
                    initial: true,
                },
            );
        }
        handlers.push(Box::new(handler));
    }

    /// Whether the first list is complete in the store and told to the handlers.
    pub fn has_synced(&self) -> bool {
        *self.shared.synced.borrow()
    }

    /// Waits for the first list to be complete. Returns false when the informer was stopped before that.
    pub async fn wait_synced(&self) -> bool {
        let mut synced = self.shared.synced.subscribe();
        tokio::select! {
            result = synced.wait_for(|s| *s) => result.is_ok(),
            () = self.shared.stop.cancelled() => self.has_synced(),
        }
    }

    /// Stops this informer; its store stays readable.
    pub fn stop(&self) {
        self.shared.stop.cancel();
    }
}

fn call<K>(handler: &(dyn Fn(&Event<K>) + Send + Sync), event: &Event<K>) {
    if std::panic::catch_unwind(AssertUnwindSafe(|| handler(event))).is_err() {
        tracing::error!("an event handler panicked; the change stays in the store");
    }
}

impl<K> Informer<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    /// Starts an informer of its own on `api`, apart from any factory.
    pub fn start(
        api: Api<K>,
        config: InformerConfig<K>,
        clock: Clock,
        stop: CancellationToken,
    ) -> Self {
        start(Whole(api), config, clock, stop)
    }
}

impl Informer<Metadata> {
    /// Starts an informer on the metadata of any resource (`as=PartialObjectMetadata`).
    pub fn start_metadata(
        client: Client,
        resource: &ApiResource,
        config: InformerConfig<Metadata>,
        clock: Clock,
        stop: CancellationToken,
    ) -> Self {
        start(
            MetadataOnly(Api::all_with(client, resource)),
            config,
            clock,
            stop,
        )
    }
}

fn start<K, S>(
    source: S,
    config: InformerConfig<K>,
    clock: Clock,
    stop: CancellationToken,
) -> Informer<K>
where
    K: Resource + Clone + Debug + Send + Sync + 'static,
    S: Source<K>,
{
    let shared = Arc::new(Shared {
        store: Store::default(),
        handlers: Mutex::new(Vec::new()),
        synced: watch::Sender::new(false),
        stop: stop.clone(),
    });
    let reflector = Reflector {
        source,
        config,
        clock,
        shared: shared.clone(),
    };
    tokio::spawn(async move { stop.run_until_cancelled(reflector.run()).await });
    Informer { shared }
}

#[derive(Debug, Error)]
enum ReflectError {
    #[error("list: {0}")]
    List(#[source] kube::Error),
    #[error("watch: {0}")]
    Watch(#[source] kube::Error),
    #[error("watch: {0}")]
    Server(#[source] Box<kube::core::Status>),
    #[error("the server named no resourceVersion")]
    NoVersion,
    #[error("the server went silent")]
    Silent,
    #[error("very short watch: it ended without an event")]
    Short,
}

impl ReflectError {
    /// Whether the revision is too old for the server, so that only a new list helps.
    fn expired(&self) -> bool {
        match self {
            ReflectError::List(kube::Error::Api(s)) | ReflectError::Watch(kube::Error::Api(s)) => {
                s.code == 410
            }
            ReflectError::Server(s) => s.code == 410 || s.reason == "Expired" || s.reason == "Gone",
            _ => false,
        }
    }
}

struct Reflector<K, S> {
    source: S,
    config: InformerConfig<K>,
    clock: Clock,
    shared: Arc<Shared<K>>,
}

impl<K, S> Reflector<K, S>
where
    K: Resource + Clone + Debug + Send + Sync + 'static,
    S: Source<K>,
{
    async fn run(self) {
        let mut backoff = Backoff::reflector(self.clock.clone());
        loop {
            match self.list_all().await {
                Ok((objects, version)) => {
                    backoff.reset();
                    self.replace(objects);
                    self.shared.synced.send_replace(true);
                    self.follow(version, &mut backoff).await;
                }
                Err(error) => self.pause(&error, &mut backoff).await,
            }
        }
    }

    async fn pause(&self, error: &ReflectError, backoff: &mut Backoff) {
        let wait = backoff.next_wait();
        tracing::warn!(resource = self.source.url(), %error, ?wait, "informer: trying again");
        tokio::time::sleep(wait).await;
    }

    /// Every page of one consistent list, and its revision. A token that expired between pages (410) restarts without pages.
    async fn list_all(&self) -> Result<(Vec<Arc<K>>, String), ReflectError> {
        let mut params = ListParams::default().limit(PAGE);
        if !self.config.labels.is_empty() {
            params = params.labels(&self.config.labels);
        }
        if !self.config.fields.is_empty() {
            params = params.fields(&self.config.fields);
        }
        let mut objects = Vec::new();
        loop {
            let page = match self.source.list(&params).await {
                Ok(page) => page,
                Err(error) => {
                    let error = ReflectError::List(error);
                    if error.expired() && params.continue_token.is_some() {
                        objects.clear();
                        params.continue_token = None;
                        params.limit = None;
                        continue;
                    }
                    return Err(error);
                }
            };
            objects.extend(page.items.into_iter().map(|object| self.reduce(object)));
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => {
                    let version = page.metadata.resource_version.filter(|v| !v.is_empty());
                    return Ok((objects, version.ok_or(ReflectError::NoVersion)?));
                }
            }
        }
    }

    fn reduce(&self, mut object: K) -> Arc<K> {
        if self.config.strip_managed_fields {
            object.meta_mut().managed_fields = None;
        }
        if let Some(transform) = &self.config.transform {
            transform(&mut object);
        }
        Arc::new(object)
    }

    /// Watches from `version` until the server has forgotten the revision.
    async fn follow(&self, mut version: String, backoff: &mut Backoff) {
        loop {
            match self.watch(&mut version).await {
                Ok(()) => backoff.reset(),
                Err(error) if error.expired() => {
                    tracing::info!(resource = self.source.url(), %error, "informer: listing again");
                    return;
                }
                Err(error) => self.pause(&error, backoff).await,
            }
        }
    }

    /// One watch, until it ends. `version` is always the last revision that is in the store.
    async fn watch(&self, version: &mut String) -> Result<(), ReflectError> {
        // Spread over some minutes, so that the watches of a process do not all end at once (client-go minWatchTimeout);
        // kube refuses 295 s and more.
        let spread = jitter(&self.clock, Duration::from_secs(80)).as_secs() as u32;
        let seconds = 210 + spread;
        let mut params = WatchParams::default().timeout(seconds);
        if !self.config.labels.is_empty() {
            params = params.labels(&self.config.labels);
        }
        if !self.config.fields.is_empty() {
            params = params.fields(&self.config.fields);
        }
        let begun = Instant::now();
        let mut seen = false;
        let mut stream = self
            .source
            .watch(&params, version)
            .await
            .map_err(ReflectError::Watch)?;
        let limit = Duration::from_secs(u64::from(seconds)) + SILENCE;
        loop {
            let event = tokio::time::timeout(limit, stream.try_next())
                .await
                .map_err(|_| ReflectError::Silent)?
                .map_err(ReflectError::Watch)?;
            let Some(event) = event else { break };
            seen = true;
            match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    let object = self.reduce(object);
                    let new = object.meta().resource_version.clone();
                    *version = new
                        .filter(|v| !v.is_empty())
                        .ok_or(ReflectError::NoVersion)?;
                    self.apply(object, false);
                }
                WatchEvent::Deleted(object) => {
                    let object = self.reduce(object);
                    let new = object.meta().resource_version.clone();
                    *version = new
                        .filter(|v| !v.is_empty())
                        .ok_or(ReflectError::NoVersion)?;
                    self.delete(object);
                }
                WatchEvent::Bookmark(bookmark) => {
                    *version = bookmark.metadata.resource_version;
                }
                WatchEvent::Error(status) => return Err(ReflectError::Server(status)),
            }
        }
        if !seen && begun.elapsed() < Duration::from_secs(1) {
            return Err(ReflectError::Short);
        }
        Ok(())
    }

    fn apply(&self, new: Arc<K>, initial: bool) {
        let handlers = self.shared.handlers.lock();
        let event = match self.shared.store.insert(new.clone()) {
            Some(old) => Event::Updated { old, new },
            None => Event::Added {
                object: new,
                initial,
            },
        };
        handlers.iter().for_each(|handler| call(handler, &event));
    }

    fn delete(&self, object: Arc<K>) {
        let handlers = self.shared.handlers.lock();
        if self
            .shared
            .store
            .remove(&ObjectKey::of(object.meta()))
            .is_some()
        {
            let event = Event::Deleted { object };
            handlers.iter().for_each(|handler| call(handler, &event));
        }
    }

    /// Makes the store equal to a list, telling only the differences.
    fn replace(&self, objects: Vec<Arc<K>>) {
        let initial = !*self.shared.synced.borrow();
        let mut gone: HashMap<ObjectKey, ()> = self
            .shared
            .store
            .keys()
            .into_iter()
            .map(|k| (k, ()))
            .collect();
        let mut changed = Vec::with_capacity(objects.len());
        for object in objects {
            let key = ObjectKey::of(object.meta());
            let same = self.shared.store.get(&key).is_some_and(|old| {
                old.meta().resource_version == object.meta().resource_version
                    && old.meta().uid == object.meta().uid
            });
            gone.remove(&key);
            if !same {
                changed.push(object);
            }
        }
        for key in gone.into_keys() {
            if let Some(object) = self.shared.store.get(&key) {
                self.delete(object);
            }
        }
        for object in changed {
            self.apply(object, initial);
        }
    }
}

/// Makes and shares the informers of a process (client-go `SharedInformerFactory`). They start when first asked for.
#[derive(Clone)]
pub struct InformerFactory {
    client: Client,
    clock: Clock,
    stop: CancellationToken,
    informers: Arc<Mutex<HashMap<TypeId, Shareable>>>,
}

struct Shareable {
    informer: Box<dyn Any + Send + Sync>,
    synced: watch::Receiver<bool>,
}

impl InformerFactory {
    /// Informers that read with `client` until `stop` is cancelled.
    pub fn new(client: Client, clock: Clock, stop: CancellationToken) -> Self {
        InformerFactory {
            client,
            clock,
            stop,
            informers: Arc::default(),
        }
    }

    /// The one informer of resource `K` over all namespaces, started now if nobody asked before.
    pub fn informer<K>(&self) -> Informer<K>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        self.informer_with(InformerConfig::default)
    }

    /// As [`informer`](InformerFactory::informer) with a configuration, which only the first caller decides. For another
    /// selection of the same resource, start an [`Informer`] of its own.
    pub fn informer_with<K>(&self, config: impl FnOnce() -> InformerConfig<K>) -> Informer<K>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        let mut informers = self.informers.lock();
        if let Some(known) = informers
            .get(&TypeId::of::<K>())
            .and_then(|known| known.informer.downcast_ref::<Informer<K>>())
        {
            return known.clone();
        }
        let informer = Informer::start(
            Api::all(self.client.clone()),
            config(),
            self.clock.clone(),
            self.stop.child_token(),
        );
        informers.insert(
            TypeId::of::<K>(),
            Shareable {
                synced: informer.shared.synced.subscribe(),
                informer: Box::new(informer.clone()),
            },
        );
        informer
    }

    /// Waits until every informer asked for so far has its first list. False when stopped before that.
    pub async fn wait_synced(&self) -> bool {
        let waiting: Vec<_> = self
            .informers
            .lock()
            .values()
            .map(|known| known.synced.clone())
            .collect();
        for mut synced in waiting {
            let done = self
                .stop
                .run_until_cancelled(synced.wait_for(|synced| *synced))
                .await;
            if !matches!(done, Some(Ok(_))) {
                return false;
            }
        }
        true
    }

    /// The clock that the informers use.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }
}
