//! Claims, volumes and classes of their attributes that are in use outlive their deletion: admission puts a finalizer on each, and
//! these controllers take it off once nobody uses the object (upstream `pvcprotection`, `pvprotection`, `vacprotection`).

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_runtime::ObjectKey;
use keelson_runtime::controller::{Action, Controller};
use keelson_runtime::informer::{Event, Informer};
use keelson_runtime::workqueue::WorkQueue;
use kube::api::{ListParams, PostParams};
use kube::{Api, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::common::pods::node_name;
use crate::common::{controller_of, enqueue_all, name, namespace, uid};
use crate::error::{Error, ignore_not_found, is_conflict};
use crate::{Context, synced};

/// On claims.
const CLAIM_FINALIZER: &str = "kubernetes.io/pvc-protection";
/// On volumes.
const VOLUME_FINALIZER: &str = "kubernetes.io/pv-protection";
/// On classes of volume attributes.
const CLASS_FINALIZER: &str = "kubernetes.io/vac-protection";
/// The index of claims and volumes by the classes of attributes that they name.
const BY_ATTRIBUTES: &str = "attributes";
/// The index of pods by the claims that they name.
const BY_CLAIM: &str = "claims";

/// What is to become of an object's finalizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    /// As it is.
    Keep,
    /// It is missing.
    Add,
    /// It goes, provided that nobody uses the object.
    RemoveUnlessUsed,
}

fn plan(meta: &ObjectMeta, finalizer: &str) -> Plan {
    let has = meta.finalizers.iter().flatten().any(|f| f == finalizer);
    match (meta.deletion_timestamp.is_some(), has) {
        (true, true) => Plan::RemoveUnlessUsed,
        (false, false) => Plan::Add,
        (true, false) | (false, true) => Plan::Keep,
    }
}

/// The names of the claims that a pod mentions; those of its ephemeral volumes are named after pod and volume.
fn claims_of(pod: &Pod) -> Vec<String> {
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    volumes
        .filter_map(|v| match (&v.persistent_volume_claim, &v.ephemeral) {
            (Some(source), _) => Some(source.claim_name.clone()),
            (None, Some(_)) => Some(format!("{}-{}", name(&pod.metadata), v.name)),
            (None, None) => None,
        })
        .collect()
}

/// Whether a pod keeps a claim in use (upstream `podUsesPVC`). A pod without a node does not: the kubelet does not start one whose
/// claim is being deleted. An ephemeral claim is only that of the pod that owns it, and only until that has shut down.
fn uses(pod: &Pod, claim: &PersistentVolumeClaim) -> bool {
    if node_name(pod).is_empty() {
        return false;
    }
    let shut_down = pod.metadata.deletion_timestamp.is_some()
        && pod.metadata.deletion_grace_period_seconds == Some(0);
    let own = || controller_of(&claim.metadata).is_some_and(|o| o.uid == uid(&pod.metadata));
    let wanted = name(&claim.metadata);
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    let mut volumes = volumes.filter(|v| match (&v.persistent_volume_claim, &v.ephemeral) {
        (Some(source), _) => source.claim_name == wanted,
        (None, Some(_)) => {
            !shut_down && own() && format!("{}-{}", name(&pod.metadata), v.name) == wanted
        }
        (None, None) => false,
    });
    volumes.next().is_some()
}

/// Whether a claim holds a volume.
fn is_bound(volume: &PersistentVolume) -> bool {
    volume.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound")
}

/// Writes the finalizers, provided that the object is as it was read. An update and no patch: the controllers' roles have no more.
async fn write<K>(api: &Api<K>, object: &K, finalizers: Vec<String>) -> Result<Action, Error>
where
    K: Resource + Clone + Serialize + DeserializeOwned + std::fmt::Debug,
{
    let mut changed = object.clone();
    changed.meta_mut().finalizers = Some(finalizers);
    match api
        .replace(name(object.meta()), &PostParams::default(), &changed)
        .await
    {
        Err(error) if is_conflict(&error) => Ok(Action::Retry),
        result => ignore_not_found(result).map(|()| Action::Done),
    }
}

async fn add<K>(api: &Api<K>, object: &K, finalizer: &str) -> Result<Action, Error>
where
    K: Resource + Clone + Serialize + DeserializeOwned + std::fmt::Debug,
{
    let had = object.meta().finalizers.iter().flatten().cloned();
    write(api, object, had.chain([finalizer.to_owned()]).collect()).await
}

async fn remove<K>(api: &Api<K>, object: &K, finalizer: &str) -> Result<Action, Error>
where
    K: Resource + Clone + Serialize + DeserializeOwned + std::fmt::Debug,
{
    let had = object.meta().finalizers.iter().flatten().cloned();
    write(api, object, had.filter(|f| f != finalizer).collect()).await
}

/// The controller of claims.
pub mod claims {
    use super::*;

    /// Runs until the context's shutdown.
    ///
    /// # Errors
    /// None; what fails is tried again.
    pub async fn run(context: Context) -> anyhow::Result<()> {
        let claims = context.informers.informer::<PersistentVolumeClaim>();
        let pods = context.informers.informer::<Pod>();
        pods.store().add_index(BY_CLAIM, |pod: &Pod| {
            let space = namespace(&pod.metadata);
            let all = claims_of(pod).into_iter();
            all.map(|claim| format!("{space}/{claim}")).collect()
        });
        let queue: Arc<WorkQueue<ObjectKey>> = WorkQueue::new("pvcprotection", &context.metrics);
        enqueue_all(&claims, &queue);
        pods.on_event({
            let queue = queue.clone();
            move |event| {
                let mut seen = vec![event.object()];
                if let Event::Updated { old, .. } = event {
                    seen.push(old);
                }
                for pod in seen {
                    for claim in claims_of(pod) {
                        queue.add(ObjectKey::new(namespace(&pod.metadata), claim));
                    }
                }
            }
        });
        synced!(claims, pods);
        let client = context.client("pvc-protection-controller");
        Controller::new("persistentvolumeclaim-protection-controller", queue)
            .run(context.shutdown.clone(), move |key: ObjectKey| {
                let (client, claims, pods) = (client.clone(), claims.clone(), pods.clone());
                async move {
                    let Some(claim) = claims.store().get(&key) else {
                        return Ok(Action::Done);
                    };
                    let api: Api<PersistentVolumeClaim> =
                        Api::namespaced(client.clone(), &key.namespace);
                    match plan(&claim.metadata, CLAIM_FINALIZER) {
                        Plan::Keep => Ok(Action::Done),
                        Plan::Add => add(&api, &*claim, CLAIM_FINALIZER).await,
                        Plan::RemoveUnlessUsed => {
                            let known = pods.store().by_index(BY_CLAIM, &key.to_string());
                            if known.iter().any(|pod| uses(pod, &claim)) {
                                return Ok(Action::Done);
                            }
                            // The informer may be behind, and what goes with a claim is data: the server's word counts.
                            let live: Api<Pod> = Api::namespaced(client, &key.namespace);
                            let live = live.list(&ListParams::default()).await?;
                            if live.items.iter().any(|pod| uses(pod, &claim)) {
                                return Ok(Action::Done);
                            }
                            remove(&api, &*claim, CLAIM_FINALIZER).await
                        }
                    }
                }
            })
            .await;
        Ok(())
    }
}

/// The controller of volumes.
pub mod volumes {
    use super::*;

    /// Runs until the context's shutdown.
    ///
    /// # Errors
    /// None; what fails is tried again.
    pub async fn run(context: Context) -> anyhow::Result<()> {
        let volumes = context.informers.informer::<PersistentVolume>();
        let queue: Arc<WorkQueue<ObjectKey>> = WorkQueue::new("pvprotection", &context.metrics);
        enqueue_all(&volumes, &queue);
        synced!(volumes);
        let client = context.client("pv-protection-controller");
        Controller::new("persistentvolume-protection-controller", queue)
            .run(context.shutdown.clone(), move |key: ObjectKey| {
                let (client, volumes) = (client.clone(), volumes.clone());
                async move {
                    let Some(volume) = volumes.store().get(&key) else {
                        return Ok(Action::Done);
                    };
                    let api: Api<PersistentVolume> = Api::all(client);
                    match plan(&volume.metadata, VOLUME_FINALIZER) {
                        Plan::Keep => Ok(Action::Done),
                        Plan::Add => add(&api, &*volume, VOLUME_FINALIZER).await,
                        Plan::RemoveUnlessUsed if is_bound(&volume) => Ok(Action::Done),
                        Plan::RemoveUnlessUsed => remove(&api, &*volume, VOLUME_FINALIZER).await,
                    }
                }
            })
            .await;
        Ok(())
    }
}

/// The classes of volume attributes that a claim has, asks for, or is being changed to.
fn attributes_of_claim(claim: &PersistentVolumeClaim) -> Vec<String> {
    let status = claim.status.as_ref();
    let target = status
        .and_then(|s| s.modify_volume_status.as_ref())
        .and_then(|m| m.target_volume_attributes_class_name.clone());
    let asked = claim
        .spec
        .as_ref()
        .and_then(|s| s.volume_attributes_class_name.clone());
    let current = status.and_then(|s| s.current_volume_attributes_class_name.clone());
    let all = asked.into_iter().chain(current).chain(target);
    all.filter(|name| !name.is_empty()).collect()
}

/// The class of volume attributes that a volume has.
fn attributes_of_volume(volume: &PersistentVolume) -> Vec<String> {
    let own = volume
        .spec
        .as_ref()
        .and_then(|s| s.volume_attributes_class_name.clone());
    own.into_iter().filter(|name| !name.is_empty()).collect()
}

/// The controller of classes of volume attributes (upstream `vacprotection`).
pub mod classes {
    use super::*;

    /// Asks for every class that an object names, or named.
    fn follow<K: Resource + 'static>(
        informer: &Informer<K>,
        queue: &Arc<WorkQueue<ObjectKey>>,
        names: fn(&K) -> Vec<String>,
    ) {
        let queue = queue.clone();
        informer.on_event(move |event| {
            let old = match event {
                Event::Updated { old, .. } => names(old),
                Event::Added { .. } | Event::Deleted { .. } => Vec::new(),
            };
            for class in names(event.object()).into_iter().chain(old) {
                queue.add(ObjectKey::cluster(class));
            }
        });
    }

    /// Runs until the context's shutdown.
    ///
    /// # Errors
    /// None; what fails is tried again.
    pub async fn run(context: Context) -> anyhow::Result<()> {
        let classes = context.informers.informer::<VolumeAttributesClass>();
        let claims = context.informers.informer::<PersistentVolumeClaim>();
        let volumes = context.informers.informer::<PersistentVolume>();
        claims.store().add_index(BY_ATTRIBUTES, attributes_of_claim);
        volumes
            .store()
            .add_index(BY_ATTRIBUTES, attributes_of_volume);
        let queue: Arc<WorkQueue<ObjectKey>> = WorkQueue::new("vacprotection", &context.metrics);
        enqueue_all(&classes, &queue);
        follow(&claims, &queue, attributes_of_claim);
        follow(&volumes, &queue, attributes_of_volume);
        synced!(classes, claims, volumes);
        let client = context.client("volumeattributesclass-protection-controller");
        Controller::new("volumeattributesclass-protection-controller", queue)
            .run(context.shutdown.clone(), move |key: ObjectKey| {
                let (client, classes) = (client.clone(), classes.clone());
                let (claims, volumes) = (claims.clone(), volumes.clone());
                async move {
                    let Some(class) = classes.store().get(&key) else {
                        return Ok(Action::Done);
                    };
                    let api: Api<VolumeAttributesClass> = Api::all(client);
                    let used = || {
                        !claims.store().by_index(BY_ATTRIBUTES, &key.name).is_empty()
                            || !volumes
                                .store()
                                .by_index(BY_ATTRIBUTES, &key.name)
                                .is_empty()
                    };
                    match plan(&class.metadata, CLASS_FINALIZER) {
                        Plan::Keep => Ok(Action::Done),
                        Plan::Add => add(&api, &*class, CLASS_FINALIZER).await,
                        Plan::RemoveUnlessUsed if used() => Ok(Action::Done),
                        Plan::RemoveUnlessUsed => remove(&api, &*class, CLASS_FINALIZER).await,
                    }
                }
            })
            .await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn finalizers_come_and_go() {
        let check = |meta: Value, want: Plan| {
            let meta: ObjectMeta = serde_json::from_value(meta.clone()).unwrap();
            assert_eq!(plan(&meta, CLAIM_FINALIZER), want, "{meta:?}");
        };
        let at = "2026-01-01T00:00:00Z";
        check(json!({}), Plan::Add);
        check(json!({"finalizers": ["other"]}), Plan::Add);
        check(json!({"finalizers": [CLAIM_FINALIZER]}), Plan::Keep);
        check(
            json!({"deletionTimestamp": at, "finalizers": ["other"]}),
            Plan::Keep,
        );
        let leaving = json!({"deletionTimestamp": at, "finalizers": [CLAIM_FINALIZER]});
        check(leaving, Plan::RemoveUnlessUsed);
    }

    #[test]
    fn who_keeps_a_claim_in_use() {
        let claim = |own: &str, owner: Value| -> PersistentVolumeClaim {
            serde_json::from_value(json!({"metadata": {"name": own, "ownerReferences": owner}}))
                .unwrap()
        };
        let check = |pod: Value, claim: &PersistentVolumeClaim, want: bool| {
            let pod: Pod = serde_json::from_value(pod).unwrap();
            assert_eq!(uses(&pod, claim), want, "{pod:?}");
        };
        let named = |node: &str| {
            json!({"metadata": {"name": "p", "uid": "u"}, "spec": {"nodeName": node, "containers": [],
                "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]}})
        };
        let data = claim("data", json!([]));
        check(named("n"), &data, true);
        check(named(""), &data, false);
        check(named("n"), &claim("other", json!([])), false);
        // One that has ended counts until it is gone.
        let mut ended = named("n");
        ended["status"] = json!({"phase": "Succeeded"});
        check(ended, &data, true);
        let mut own = named("n");
        own["spec"]["volumes"] = json!([{"name": "v", "ephemeral": {}}]);
        let owner = |uid: &str| json!([{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid, "controller": true}]);
        check(own.clone(), &claim("p-v", owner("u")), true);
        check(own.clone(), &claim("p-v", owner("other")), false);
        own["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        own["metadata"]["deletionGracePeriodSeconds"] = json!(0);
        check(own, &claim("p-v", owner("u")), false);
    }

    #[test]
    fn which_attributes_are_in_use() {
        let claim: PersistentVolumeClaim = serde_json::from_value(json!({"spec": {"volumeAttributesClassName": "gold"},
            "status": {"currentVolumeAttributesClassName": "silver",
                "modifyVolumeStatus": {"status": "Pending", "targetVolumeAttributesClassName": "bronze"}}}))
        .unwrap();
        assert_eq!(attributes_of_claim(&claim), ["gold", "silver", "bronze"]);
        assert!(attributes_of_claim(&PersistentVolumeClaim::default()).is_empty());
        let volume: PersistentVolume =
            serde_json::from_value(json!({"spec": {"volumeAttributesClassName": "gold"}})).unwrap();
        assert_eq!(attributes_of_volume(&volume), ["gold"]);
    }
}
