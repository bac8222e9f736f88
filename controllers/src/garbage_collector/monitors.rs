//! One metadata informer per resource, started and stopped as resources come and go.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use keelson_runtime::informer::{Event, Informer, InformerConfig, Metadata};
use kube::api::ObjectMeta;
use kube::discovery::ApiResource;
use tokio::sync::Notify;

use super::Collector;
use super::graph::Node;
use super::resources::{Resource, Resources};
use crate::Context;

/// How often discovery is asked again (upstream: 30 s).
const RESYNC: Duration = Duration::from_secs(30);
/// After a change of the custom resources, how long to gather more such changes.
const SETTLE: Duration = Duration::from_millis(300);
/// How long collecting waits for one resource that cannot be listed.
const SYNC_LIMIT: Duration = Duration::from_secs(30);

pub(super) struct Monitors {
    collector: Arc<Collector>,
    context: Context,
    running: HashMap<(String, String), (Resource, Informer<Metadata>)>,
}

impl Monitors {
    pub(super) fn new(collector: Arc<Collector>, context: Context) -> Self {
        Monitors {
            collector,
            context,
            running: HashMap::new(),
        }
    }

    /// Starts what is new, stops what is gone.
    pub(super) fn follow_resources(&mut self) {
        let wanted = self.collector.resources.read().clone();
        let version = |resource: &Resource| resource.api.api_version.clone();
        let gone: Vec<_> = self
            .running
            .iter()
            .filter(|(key, (resource, _))| {
                wanted.watched.get(*key).map(version) != Some(version(resource))
            })
            .map(|(key, _)| key.clone())
            .collect();
        for key in gone {
            if let Some((resource, informer)) = self.running.remove(&key) {
                informer.stop();
                let looks = self
                    .collector
                    .graph
                    .lock()
                    .remove_kind(&resource.api.api_version, &resource.api.kind);
                self.collector.look(looks);
            }
        }
        for (key, resource) in &wanted.watched {
            if !self.running.contains_key(key) {
                let informer = self.start(resource);
                self.running
                    .insert(key.clone(), (resource.clone(), informer));
            }
        }
    }

    fn start(&self, resource: &Resource) -> Informer<Metadata> {
        let config = InformerConfig {
            transform: Some(Arc::new(|object: &mut Metadata| {
                object.metadata = reduced(std::mem::take(&mut object.metadata));
            })),
            ..InformerConfig::default()
        };
        let informer = Informer::start_metadata(
            self.collector.client.clone(),
            &resource.api,
            config,
            self.context.clock.clone(),
            self.context.shutdown.child_token(),
        );
        let collector = self.collector.clone();
        let api = resource.api.clone();
        informer.on_event(move |event| {
            let looks = match event {
                Event::Added { object, .. } | Event::Updated { new: object, .. } => {
                    let Some(node) = Node::of(&api.api_version, &api.kind, &object.metadata) else {
                        return;
                    };
                    let mut graph = collector.graph.lock();
                    // A name that was taken over within one gap of the watch: the old object is gone.
                    let mut looks = match event {
                        Event::Updated { old, .. } if old.metadata.uid != object.metadata.uid => {
                            let old = old.metadata.uid.as_deref().unwrap_or_default();
                            graph.remove(old)
                        }
                        _ => Vec::new(),
                    };
                    looks.extend(graph.upsert(node));
                    looks
                }
                Event::Deleted { object } => match &object.metadata.uid {
                    Some(uid) => collector.graph.lock().remove(uid),
                    None => return,
                },
            };
            collector.look(looks);
        });
        informer
    }

    /// Waits until each informer has its first list, or is slow.
    pub(super) async fn wait_synced(&self) {
        for (resource, informer) in self.running.values() {
            let waited = tokio::time::timeout(SYNC_LIMIT, informer.wait_synced()).await;
            if waited.is_err() {
                tracing::warn!(
                    resource = resource.api.plural,
                    "garbage collection begins without this resource"
                );
            }
        }
    }

    /// Follows discovery until shutdown: every 30 seconds, and soon after a custom resource came or went.
    pub(super) async fn run(mut self) {
        let changed = Arc::new(Notify::new());
        // Only their coming and going matters, and definitions are large.
        let definitions = Informer::start_metadata(
            self.collector.client.clone(),
            &ApiResource::erase::<CustomResourceDefinition>(&()),
            InformerConfig {
                transform: Some(Arc::new(|object: &mut Metadata| {
                    object.metadata = reduced(std::mem::take(&mut object.metadata));
                })),
                ..InformerConfig::default()
            },
            self.context.clock.clone(),
            self.context.shutdown.child_token(),
        );
        let notify = changed.clone();
        definitions.on_event(move |event| {
            if !matches!(event, Event::Added { initial: true, .. }) {
                notify.notify_one();
            }
        });
        let shutdown = self.context.shutdown.clone();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(RESYNC) => {}
                () = changed.notified() => tokio::time::sleep(SETTLE).await,
            }
            match Resources::discover(&self.collector.client).await {
                Ok(resources) => {
                    *self.collector.resources.write() = resources;
                    self.follow_resources();
                }
                Err(error) => tracing::warn!(%error, "discovery for garbage collection"),
            }
        }
    }
}

/// Only what the graph reads.
fn reduced(meta: ObjectMeta) -> ObjectMeta {
    ObjectMeta {
        name: meta.name,
        namespace: meta.namespace,
        uid: meta.uid,
        resource_version: meta.resource_version,
        deletion_timestamp: meta.deletion_timestamp,
        finalizers: meta.finalizers,
        owner_references: meta.owner_references,
        ..ObjectMeta::default()
    }
}
