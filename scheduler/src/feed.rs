//! What happens in the API, as a stream of [`Input`]s for the state machine. Objects are handed over and not kept: the
//! scheduler holds only the parts that it needs.

use std::collections::HashSet;
use std::fmt::Debug;

use futures::TryStreamExt;
use k8s_openapi::api::apps::v1::{ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{
    Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, ReplicationController, Service,
};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// An object of one of the kinds that are watched.
#[derive(Debug)]
pub enum Object {
    /// A pod.
    Pod(Box<Pod>),
    /// A node.
    Node(Box<Node>),
    /// A namespace.
    Namespace(Box<Namespace>),
    /// A service.
    Service(Box<Service>),
    /// A replication controller.
    ReplicationController(Box<ReplicationController>),
    /// A replica set.
    ReplicaSet(Box<ReplicaSet>),
    /// A stateful set.
    StatefulSet(Box<StatefulSet>),
    /// A disruption budget.
    Budget(Box<PodDisruptionBudget>),
    /// A claim.
    Claim(Box<PersistentVolumeClaim>),
    /// A persistent volume.
    Volume(Box<PersistentVolume>),
    /// A storage class.
    Class(Box<StorageClass>),
}

/// The kinds that are watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Pods; identified by uid.
    Pod,
    /// Nodes.
    Node,
    /// Namespaces.
    Namespace,
    /// Services; like all that follow identified by `namespace/name`.
    Service,
    /// Replication controllers.
    ReplicationController,
    /// Replica sets.
    ReplicaSet,
    /// Stateful sets.
    StatefulSet,
    /// Disruption budgets.
    Budget,
    /// Claims.
    Claim,
    /// Persistent volumes.
    Volume,
    /// Storage classes.
    Class,
}

/// All kinds that must be listed once before the first pod is placed.
pub const KINDS: [Kind; 11] = [
    Kind::Pod,
    Kind::Node,
    Kind::Namespace,
    Kind::Service,
    Kind::ReplicationController,
    Kind::ReplicaSet,
    Kind::StatefulSet,
    Kind::Budget,
    Kind::Claim,
    Kind::Volume,
    Kind::Class,
];

/// Something that happened.
#[derive(Debug)]
pub enum Input {
    /// An object was added or changed.
    Applied(Object),
    /// An object is gone.
    Deleted(Kind, String),
    /// A list is complete: of this kind there is nothing but these.
    Listed(Kind, HashSet<String>),
}

/// Starts watching everything; ends with `shutdown` or when the receiver is gone.
pub fn start(client: &Client, inputs: mpsc::Sender<Input>, shutdown: &CancellationToken) {
    let all = watcher::Config::default().any_semantic();
    let unfinished = all
        .clone()
        .fields("status.phase!=Succeeded,status.phase!=Failed");
    let by_uid = |pod: &Pod| pod.metadata.uid.clone().unwrap_or_default();
    let c = || client.clone();
    let i = || inputs.clone();
    spawn(
        Api::all(c()),
        unfinished,
        Kind::Pod,
        by_uid,
        |o| Object::Pod(Box::new(o)),
        i(),
        shutdown,
    );
    spawn(
        Api::all(c()),
        all.clone(),
        Kind::Node,
        key,
        |o| Object::Node(Box::new(o)),
        i(),
        shutdown,
    );
    spawn(
        Api::all(c()),
        all.clone(),
        Kind::Namespace,
        key,
        |o| Object::Namespace(Box::new(o)),
        i(),
        shutdown,
    );
    spawn(
        Api::all(c()),
        all.clone(),
        Kind::Service,
        key,
        |o| Object::Service(Box::new(o)),
        i(),
        shutdown,
    );
    let controller = |o| Object::ReplicationController(Box::new(o));
    spawn(
        Api::all(c()),
        all.clone(),
        Kind::ReplicationController,
        key,
        controller,
        i(),
        shutdown,
    );
    spawn(
        Api::all(c()),
        all.clone(),
        Kind::ReplicaSet,
        key,
        |o| Object::ReplicaSet(Box::new(o)),
        i(),
        shutdown,
    );
    spawn(
        Api::all(c()),
        all.clone(),
        Kind::StatefulSet,
        key,
        |o| Object::StatefulSet(Box::new(o)),
        i(),
        shutdown,
    );
    spawn(
        Api::all(c()),
        all.clone(),
        Kind::Claim,
        key,
        |o| Object::Claim(Box::new(o)),
        i(),
        shutdown,
    );
    spawn(
        Api::all(c()),
        all.clone(),
        Kind::Volume,
        key,
        |o| Object::Volume(Box::new(o)),
        i(),
        shutdown,
    );
    spawn(
        Api::all(c()),
        all.clone(),
        Kind::Class,
        key,
        |o| Object::Class(Box::new(o)),
        i(),
        shutdown,
    );
    spawn(
        Api::all(c()),
        all,
        Kind::Budget,
        key,
        |o| Object::Budget(Box::new(o)),
        i(),
        shutdown,
    );
}

/// `namespace/name`, or the name alone for what has no namespace.
pub fn key<K: Resource>(object: &K) -> String {
    match object.namespace() {
        Some(namespace) => format!("{namespace}/{}", object.name_any()),
        None => object.name_any(),
    }
}

fn spawn<K>(
    api: Api<K>,
    config: watcher::Config,
    kind: Kind,
    id: fn(&K) -> String,
    wrap: fn(K) -> Object,
    inputs: mpsc::Sender<Input>,
    shutdown: &CancellationToken,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let shutdown = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = feed(api, config, kind, id, wrap, inputs) => {}
        }
    });
}

async fn feed<K>(
    api: Api<K>,
    config: watcher::Config,
    kind: Kind,
    id: fn(&K) -> String,
    wrap: fn(K) -> Object,
    inputs: mpsc::Sender<Input>,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let stream = watcher(api, config).default_backoff();
    tokio::pin!(stream);
    let mut listed = HashSet::new();
    loop {
        let input = match stream.try_next().await {
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(?kind, error = %error, "watch failed; trying again");
                continue;
            }
            Ok(Some(watcher::Event::Init)) => {
                listed.clear();
                continue;
            }
            Ok(Some(watcher::Event::InitApply(object))) => {
                listed.insert(id(&object));
                Input::Applied(wrap(object))
            }
            Ok(Some(watcher::Event::InitDone)) => Input::Listed(kind, std::mem::take(&mut listed)),
            Ok(Some(watcher::Event::Apply(object))) => Input::Applied(wrap(object)),
            Ok(Some(watcher::Event::Delete(object))) => Input::Deleted(kind, id(&object)),
        };
        if inputs.send(input).await.is_err() {
            return;
        }
    }
}
