//! Makes the claims of pods' generic ephemeral volumes; they go with the pod that owns them (upstream `volume/ephemeral`).

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_runtime::ObjectKey;
use keelson_runtime::controller::{Action, Controller};
use keelson_runtime::events::reference;
use keelson_runtime::informer::Event;
use keelson_runtime::workqueue::WorkQueue;
use kube::Api;
use kube::api::PostParams;

use crate::common::pod_control::reason;
use crate::common::{controller_of, controller_reference, name, namespace, uid};
use crate::error::{Error, is_already_exists, is_namespace_terminating};
use crate::{Context, synced};

fn ephemeral(pod: &Pod) -> impl Iterator<Item = &Volume> {
    pod.spec
        .iter()
        .flat_map(|s| s.volumes.iter().flatten())
        .filter(|v| v.ephemeral.is_some())
}

fn claim_name(pod: &Pod, volume: &Volume) -> String {
    format!("{}-{}", name(&pod.metadata), volume.name)
}

/// Whether a claim of the right name is the pod's own (upstream `VolumeIsForPod`).
fn check_owner(pod: &Pod, claim: &PersistentVolumeClaim) -> Result<(), String> {
    let own = controller_of(&claim.metadata).is_some_and(|o| o.uid == uid(&pod.metadata));
    let space = namespace(&pod.metadata);
    own.then_some(()).ok_or_else(|| {
        format!(
            "PVC {space}/{} was not created for pod {space}/{} (pod is not owner)",
            name(&claim.metadata),
            name(&pod.metadata)
        )
    })
}

/// The claim of a volume.
fn claim_of(pod: &Pod, volume: &Volume) -> PersistentVolumeClaim {
    let template = volume
        .ephemeral
        .as_ref()
        .and_then(|e| e.volume_claim_template.clone());
    let meta = template.as_ref().and_then(|t| t.metadata.clone());
    let meta = meta.unwrap_or_default();
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(claim_name(pod, volume)),
            namespace: pod.metadata.namespace.clone(),
            annotations: meta.annotations,
            labels: meta.labels,
            owner_references: Some(vec![controller_reference(pod)]),
            ..ObjectMeta::default()
        },
        spec: template.map(|t| t.spec),
        status: None,
    }
}

/// Runs until the context's shutdown.
///
/// # Errors
/// None; what fails is tried again.
pub async fn run(context: Context) -> anyhow::Result<()> {
    let pods = context.informers.informer::<Pod>();
    let claims = context.informers.informer::<PersistentVolumeClaim>();
    let queue: Arc<WorkQueue<ObjectKey>> = WorkQueue::new("ephemeral_volume", &context.metrics);
    // A pod's volumes do not change.
    pods.on_event({
        let queue = queue.clone();
        move |event| {
            if let Event::Added { object, .. } = event
                && object.metadata.deletion_timestamp.is_none()
                && ephemeral(object).next().is_some()
            {
                queue.add(ObjectKey::of(&object.metadata));
            }
        }
    });
    // A claim that somebody deleted comes again.
    claims.on_event({
        let queue = queue.clone();
        move |event| {
            if let Event::Deleted { object } = event
                && let Some(owner) = controller_of(&object.metadata)
                && owner.kind == "Pod"
            {
                queue.add(ObjectKey::new(namespace(&object.metadata), &owner.name));
            }
        }
    });
    synced!(pods, claims);
    let client = context.client("ephemeral-volume-controller");
    let recorder = context.recorder(&client, "ephemeral_volume");
    Controller::new("ephemeral-volume-controller", queue)
        .workers(5)
        .run(context.shutdown.clone(), move |key: ObjectKey| {
            let (client, pods, claims) = (client.clone(), pods.clone(), claims.clone());
            let recorder = recorder.clone();
            async move {
                let found = pods.store().get(&key);
                let Some(pod) = found.filter(|p| p.metadata.deletion_timestamp.is_none()) else {
                    return Ok(Action::Done);
                };
                let api: Api<PersistentVolumeClaim> = Api::namespaced(client, &key.namespace);
                for volume in ephemeral(&pod) {
                    let own = claim_name(&pod, volume);
                    let known = claims.store().get_parts(&key.namespace, &own);
                    let failed = match known {
                        Some(claim) => check_owner(&pod, &claim).err(),
                        None => match api
                            .create(&PostParams::default(), &claim_of(&pod, volume))
                            .await
                        {
                            Ok(_) => None,
                            // The informer is behind, or it is somebody else's: the next look tells.
                            Err(error) if is_already_exists(&error) => return Ok(Action::Retry),
                            Err(error) if is_namespace_terminating(&error) => None,
                            Err(error) => Some(format!("create PVC {own}: {}", reason(&error))),
                        },
                    };
                    if let Some(why) = failed {
                        let text = format!("ephemeral volume {}: {why}", volume.name);
                        recorder.warning(&reference(&*pod), "FailedBinding", text.clone());
                        return Err(Error::Object(text));
                    }
                }
                Ok(Action::Done)
            }
        })
        .await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_claim_belongs_to_its_pod() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "spec": {"containers": [],
            "volumes": [{"name": "plain", "emptyDir": {}}, {"name": "v", "ephemeral": {"volumeClaimTemplate": {
                "metadata": {"labels": {"a": "b"}}, "spec": {"storageClassName": "fast"}}}}]}}))
        .unwrap();
        let all: Vec<_> = ephemeral(&pod).map(|v| claim_of(&pod, v)).collect();
        let [claim] = all.as_slice() else {
            panic!("{all:?}");
        };
        assert_eq!(name(&claim.metadata), "p-v");
        assert_eq!(json!(claim.metadata.labels), json!({"a": "b"}));
        assert_eq!(json!(claim.spec), json!({"storageClassName": "fast"}));
        assert_eq!(check_owner(&pod, claim), Ok(()));
        let mut other = claim.clone();
        other.metadata.owner_references = None;
        let refused = check_owner(&pod, &other).unwrap_err();
        assert_eq!(
            refused,
            "PVC ns/p-v was not created for pod ns/p (pod is not owner)"
        );
    }
}
