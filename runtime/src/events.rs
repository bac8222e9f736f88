//! Recording events: what `kubectl describe` shows under "Events".
//!
//! [`Recorder::event`] never waits and never fails: it puts the event on a bounded queue, and a task folds repeats together
//! and writes. Two forms, as the component uses upstream: [`Form::Core`] (`v1` Events with a count; client-go
//! `tools/record`) and [`Form::EventsV1`] (`events.k8s.io/v1` with a series; client-go `tools/events`).

use std::time::Duration;

use k8s_openapi::api::core::v1::{Event as CoreEvent, EventSource, ObjectReference};
use k8s_openapi::api::events::v1::{Event as SeriesEvent, EventSeries};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, Time};
use keelson_machinery::clock::Clock;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::events::correlate::{CoreCorrelator, CoreWrite, SeriesCorrelator, SeriesWrite};

pub mod correlate;

/// Events that may wait to be written (client-go `maxQueuedEvents`); further ones are dropped.
const QUEUE: usize = 1000;
/// Attempts to reach the server with one event (client-go `maxTriesPerEvent`).
const TRIES: usize = 12;
/// Between attempts (client-go `defaultSleepDuration`).
const RETRY_WAIT: Duration = Duration::from_secs(10);
/// How often finished series are written out and forgotten (client-go `finishTime`).
const SERIES_TICK: Duration = Duration::from_secs(360);

/// Whether an event tells of ordinary work or of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    /// Ordinary.
    Normal,
    /// Trouble.
    Warning,
}

impl EventType {
    /// The wire form.
    pub fn as_str(self) -> &'static str {
        match self {
            EventType::Normal => "Normal",
            EventType::Warning => "Warning",
        }
    }
}

/// Which API the events are written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `v1` Events: controllers, kubelet.
    Core,
    /// `events.k8s.io/v1` Events: scheduler, proxy.
    EventsV1,
}

/// One thing that happened.
#[derive(Clone, Debug)]
pub struct Happening {
    /// The object it is about.
    pub regarding: ObjectReference,
    /// Another object that plays a part (`events.k8s.io` only).
    pub related: Option<ObjectReference>,
    /// Normal or Warning.
    pub kind: EventType,
    /// Why: one word in CamelCase.
    pub reason: String,
    /// What was done: one word in CamelCase (`events.k8s.io` only).
    pub action: String,
    /// For people.
    pub message: String,
    /// Annotations of the event.
    pub annotations: std::collections::BTreeMap<String, String>,
}

/// Records events for one component. Clones share its queue.
#[derive(Clone)]
pub struct Recorder {
    queue: Option<mpsc::Sender<Happening>>,
}

/// A reference to `object` as events carry it.
pub fn reference<K: Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    let meta = object.meta();
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}

impl Recorder {
    /// A recorder that writes with `client` until `stop`. `component` is the event's source (for example
    /// `deployment-controller`); `host` the node name, or empty where upstream gives none.
    pub fn new(
        client: Client,
        clock: Clock,
        form: Form,
        component: &str,
        host: &str,
        stop: CancellationToken,
    ) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let writer = Writer {
            client,
            clock,
            component: component.to_owned(),
            host: host.to_owned(),
        };
        tokio::spawn(async move {
            match form {
                Form::Core => stop.run_until_cancelled(writer.core(receiver)).await,
                Form::EventsV1 => stop.run_until_cancelled(writer.series(receiver)).await,
            }
        });
        Recorder {
            queue: Some(sender),
        }
    }

    /// A recorder that drops everything.
    pub fn discard() -> Self {
        Recorder { queue: None }
    }

    /// Records something that is as it should be.
    pub fn normal(&self, regarding: &ObjectReference, reason: &str, message: impl Into<String>) {
        self.event(regarding, EventType::Normal, reason, message);
    }

    /// Records trouble.
    pub fn warning(&self, regarding: &ObjectReference, reason: &str, message: impl Into<String>) {
        self.event(regarding, EventType::Warning, reason, message);
    }

    /// Records an event without action or related object.
    pub fn event(
        &self,
        regarding: &ObjectReference,
        kind: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        self.record(Happening {
            regarding: regarding.clone(),
            related: None,
            kind,
            reason: reason.to_owned(),
            action: String::new(),
            message: message.into(),
            annotations: Default::default(),
        });
    }

    /// Records an event in full.
    pub fn record(&self, happening: Happening) {
        if let Some(queue) = &self.queue
            && let Err(error) = queue.try_send(happening)
        {
            tracing::warn!(%error, "event dropped");
        }
    }
}

struct Writer {
    client: Client,
    clock: Clock,
    component: String,
    host: String,
}

/// The namespace an event lives in: that of its object, `default` for cluster-scoped ones.
fn namespace_of(reference: &ObjectReference) -> String {
    match reference.namespace.as_deref() {
        None | Some("") => "default".to_owned(),
        Some(namespace) => namespace.to_owned(),
    }
}

/// `<object>.<nanoseconds in hex>` (client-go `util.GenerateEventName`).
fn event_name(reference: &ObjectReference, clock: &Clock) -> String {
    let nanos = clock.now().as_nanosecond();
    format!(
        "{}.{nanos:x}",
        reference.name.as_deref().unwrap_or_default()
    )
}

impl Writer {
    async fn core(self, mut queue: mpsc::Receiver<Happening>) {
        let mut correlator = CoreCorrelator::default();
        while let Some(happening) = queue.recv().await {
            let now = self.clock.now();
            let event = CoreEvent {
                metadata: ObjectMeta {
                    name: Some(event_name(&happening.regarding, &self.clock)),
                    namespace: Some(namespace_of(&happening.regarding)),
                    annotations: (!happening.annotations.is_empty())
                        .then_some(happening.annotations),
                    ..Default::default()
                },
                involved_object: happening.regarding,
                reason: Some(happening.reason),
                message: Some(happening.message),
                source: Some(EventSource {
                    component: Some(self.component.clone()),
                    host: (!self.host.is_empty()).then(|| self.host.clone()),
                }),
                reporting_component: Some(self.component.clone()),
                reporting_instance: Some(self.host.clone()),
                first_timestamp: Some(Time(now)),
                last_timestamp: Some(Time(now)),
                count: Some(1),
                type_: Some(happening.kind.as_str().to_owned()),
                ..Default::default()
            };
            match correlator.observe(event, now) {
                CoreWrite::Drop => {}
                CoreWrite::Create(event) => self.create_core(&mut correlator, event).await,
                CoreWrite::Count(event) => {
                    let patch = json!({
                        "count": event.count, "lastTimestamp": event.last_timestamp, "message": event.message,
                    });
                    if !self.patch::<CoreEvent>(&event.metadata, &patch).await {
                        // Expired meanwhile: it is a new event again, with its count so far.
                        self.create_core(&mut correlator, event).await;
                    }
                }
            }
        }
    }

    async fn create_core(&self, correlator: &mut CoreCorrelator, mut event: CoreEvent) {
        event.metadata.resource_version = None;
        if let Some(stored) = self.create(&event.metadata, &event).await {
            correlator.stored(&stored);
        }
    }

    async fn series(self, mut queue: mpsc::Receiver<Happening>) {
        let mut correlator = SeriesCorrelator::default();
        let mut tick = tokio::time::interval(SERIES_TICK);
        loop {
            let writes = tokio::select! {
                happening = queue.recv() => match happening {
                    None => return,
                    Some(happening) => vec![correlator.observe(self.series_event(happening), self.clock.now())],
                },
                _ = tick.tick() => correlator.finish(self.clock.now()),
            };
            for write in writes {
                match write {
                    SeriesWrite::Nothing => {}
                    SeriesWrite::Create(event) => {
                        self.create(&event.metadata, &*event).await;
                    }
                    SeriesWrite::Series(mut event) => {
                        let patch = json!({ "series": event.series });
                        if !self.patch::<SeriesEvent>(&event.metadata, &patch).await {
                            event.metadata.resource_version = None;
                            self.create(&event.metadata, &*event).await;
                        }
                    }
                }
            }
        }
    }

    fn series_event(&self, happening: Happening) -> SeriesEvent {
        SeriesEvent {
            metadata: ObjectMeta {
                name: Some(event_name(&happening.regarding, &self.clock)),
                namespace: Some(namespace_of(&happening.regarding)),
                annotations: (!happening.annotations.is_empty()).then_some(happening.annotations),
                ..Default::default()
            },
            event_time: Some(MicroTime(self.clock.now())),
            reporting_controller: Some(self.component.clone()),
            reporting_instance: Some(format!("{}-{}", self.component, self.host)),
            action: Some(happening.action),
            reason: Some(happening.reason),
            regarding: Some(happening.regarding),
            related: happening.related,
            note: Some(happening.message),
            type_: Some(happening.kind.as_str().to_owned()),
            series: None::<EventSeries>,
            ..Default::default()
        }
    }

    fn api<E>(&self, meta: &ObjectMeta) -> Api<E>
    where
        E: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(
            self.client.clone(),
            meta.namespace.as_deref().unwrap_or("default"),
        )
    }

    /// Creates an event. What the server refuses is logged and dropped; what cannot reach it is tried again.
    async fn create<E>(&self, meta: &ObjectMeta, event: &E) -> Option<E>
    where
        E: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + serde::Serialize
            + serde::de::DeserializeOwned,
    {
        let api = self.api::<E>(meta);
        for _ in 0..TRIES {
            match api.create(&PostParams::default(), event).await {
                Ok(stored) => return Some(stored),
                Err(kube::Error::Api(status)) => {
                    // Events of a namespace on its way out are not missed by anybody.
                    let leaving = status
                        .details
                        .iter()
                        .flat_map(|d| &d.causes)
                        .any(|c| c.reason == "NamespaceTerminating");
                    if status.code != 409 && status.code != 404 && !leaving {
                        tracing::warn!(event = meta.name, %status, "the server refused an event");
                    }
                    return None;
                }
                Err(error) => {
                    tracing::debug!(%error, "event not written, trying again");
                    tokio::time::sleep(RETRY_WAIT).await;
                }
            }
        }
        None
    }

    /// Patches an event. False when it does not exist (any more).
    async fn patch<E>(&self, meta: &ObjectMeta, patch: &serde_json::Value) -> bool
    where
        E: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned,
    {
        let api = self.api::<E>(meta);
        let name = meta.name.as_deref().unwrap_or_default();
        for _ in 0..TRIES {
            match api
                .patch(name, &PatchParams::default(), &Patch::Strategic(patch))
                .await
            {
                Ok(_) => return true,
                Err(kube::Error::Api(status)) if status.code == 404 => return false,
                Err(kube::Error::Api(status)) => {
                    tracing::warn!(event = meta.name, %status, "the server refused an event");
                    return true;
                }
                Err(error) => {
                    tracing::debug!(%error, "event not written, trying again");
                    tokio::time::sleep(RETRY_WAIT).await;
                }
            }
        }
        true
    }
}
