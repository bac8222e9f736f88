//! Who owns the claims of a StatefulSet's pods: what `persistentVolumeClaimRetentionPolicy` asks for.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use keelson_runtime::events::{Recorder, reference};
use keelson_runtime::informer::Informer;
use kube::api::PostParams;
use kube::{Api, Client};

use super::plan::{claim_name, claim_templates, in_range, ordinal};
use crate::common::{controller_of, controller_reference, name, namespace, owners, uid};
use crate::error::{Error, ignore_not_found};

/// Whether claims go when scaled down, and when the set is deleted.
fn policy(set: &StatefulSet) -> (bool, bool) {
    let policy = set
        .spec
        .as_ref()
        .and_then(|spec| spec.persistent_volume_claim_retention_policy.as_ref());
    let deletes = |text: Option<&str>| text == Some("Delete");
    (
        deletes(policy.and_then(|policy| policy.when_scaled.as_deref())),
        deletes(policy.and_then(|policy| policy.when_deleted.as_deref())),
    )
}

/// The owners that a claim of `pod` should have, and whether a strange controller is in the way (upstream
/// `updateClaimOwnerRefForSetAndPod`).
fn wanted_owners(
    set: &StatefulSet,
    pod: &Pod,
    claim: &PersistentVolumeClaim,
) -> (Vec<OwnerReference>, bool) {
    let ours = |owner: &OwnerReference| {
        owner.kind == "StatefulSet" && owner.name == name(&set.metadata)
            || owner.kind == "Pod" && owner.name == name(&pod.metadata)
    };
    let mut kept: Vec<OwnerReference> = owners(&claim.metadata)
        .iter()
        .filter(|owner| !ours(owner))
        .cloned()
        .collect();
    let strange = controller_of(&claim.metadata).is_some_and(|owner| !ours(owner));
    if strange {
        return (kept, true);
    }
    let scaled_down = ordinal(set, pod).is_none_or(|number| !in_range(set, number));
    match policy(set) {
        (true, _) if scaled_down => kept.push(controller_reference(pod)),
        (_, true) => kept.push(controller_reference(set)),
        _ => {}
    }
    (kept, false)
}

/// Brings the owners of a pod's claims in line with the policy.
pub async fn keep_owners(
    client: &Client,
    known: &Informer<PersistentVolumeClaim>,
    recorder: &Recorder,
    set: &StatefulSet,
    pod: &Pod,
) -> Result<(), Error> {
    let space = namespace(&set.metadata);
    let Some(number) = ordinal(set, pod) else {
        return Ok(());
    };
    let api: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), space);
    for template in claim_templates(set) {
        let own = claim_name(set, template, number);
        let Some(claim) = known.store().get_parts(space, &own) else {
            continue;
        };
        let (wanted, strange) = wanted_owners(set, pod, &claim);
        if wanted == owners(&claim.metadata) {
            continue;
        }
        if strange {
            recorder.warning(
                &reference(set),
                "ConflictingController",
                format!("PersistentVolumeClaim {own} has a conflicting OwnerReference that acts as a manging controller, the retention policy is ignored for this claim"),
            );
        }
        // An update and no patch: the controller's role has no more.
        let mut changed = (*claim).clone();
        changed.metadata.owner_references = Some(wanted);
        ignore_not_found(api.replace(&own, &PostParams::default(), &changed).await)?;
    }
    Ok(())
}

/// Whether a claim of this ordinal is about to go with an earlier pod of the same name (upstream `PodClaimIsStale`).
pub fn is_stale(
    known: &Informer<PersistentVolumeClaim>,
    set: &StatefulSet,
    pod: &Pod,
    number: i32,
) -> bool {
    policy(set).0
        && claim_templates(set).iter().any(|template| {
            known
                .store()
                .get_parts(namespace(&set.metadata), &claim_name(set, template, number))
                .is_some_and(|claim| {
                    owners(&claim.metadata).iter().any(|owner| {
                        owner.kind == "Pod"
                            && owner.name == name(&pod.metadata)
                            && owner.uid != uid(&pod.metadata)
                    })
                })
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_policy_decides_who_owns_a_claim() {
        let cases = [
            ("Retain", "Retain", "web-0", ""),
            ("Retain", "Delete", "web-0", "StatefulSet"),
            ("Retain", "Delete", "web-5", "StatefulSet"),
            ("Delete", "Retain", "web-0", ""),
            ("Delete", "Retain", "web-5", "Pod"),
            ("Delete", "Delete", "web-0", "StatefulSet"),
            ("Delete", "Delete", "web-5", "Pod"),
        ];
        for (scaled, deleted, pod, expected) in cases {
            let set: StatefulSet = serde_json::from_value(json!({
                "metadata": {"name": "web", "uid": "s"},
                "spec": {"replicas": 1, "selector": {}, "template": {},
                    "persistentVolumeClaimRetentionPolicy": {"whenScaled": scaled, "whenDeleted": deleted}},
            }))
            .unwrap();
            let pod: Pod =
                serde_json::from_value(json!({"metadata": {"name": pod, "uid": "p"}})).unwrap();
            let claim = |controller: serde_json::Value| -> PersistentVolumeClaim {
                serde_json::from_value(json!({"metadata": {"ownerReferences": controller}}))
                    .unwrap()
            };
            let (wanted, _) = wanted_owners(&set, &pod, &claim(json!([])));
            let kinds: Vec<&str> = wanted.iter().map(|owner| owner.kind.as_str()).collect();
            assert_eq!(kinds.join(" "), expected, "{scaled} {deleted} {pod:?}");
            let other = json!([{"apiVersion": "v1", "kind": "X", "name": "x", "uid": "x", "controller": true}]);
            assert!(wanted_owners(&set, &pod, &claim(other)).1);
        }
    }
}
