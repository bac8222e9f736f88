//! What is written for a pod's volumes before the pod itself is bound (upstream `BindPodVolumes`).

use std::time::Duration;

use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::time::Instant;

use super::describe;
use crate::plugins::volume_binding::VolumeWrite;
use crate::storage::Claim;

/// On claims: where their volume is to be made.
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// On volumes: a user did not make this promise.
const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// How long the binder or a provisioner may take (`VolumeBindingArgs.BindTimeoutSeconds`).
const LIMIT: Duration = Duration::from_secs(600);
/// Between looks at the claims; the longest of growing waits.
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// Carries out `writes` and waits until all their claims are bound.
pub(super) async fn write(
    client: &Client,
    namespace: &str,
    node: &str,
    writes: &[VolumeWrite],
) -> Result<(), String> {
    if writes.is_empty() {
        return Ok(());
    }
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    for write in writes {
        match write {
            VolumeWrite::Promise { volume, claim, uid } => {
                let volumes: Api<PersistentVolume> = Api::all(client.clone());
                let found = volumes.get(volume).await.map_err(|e| describe(&e))?;
                if let Some(new) = promised(found, namespace, claim, uid)? {
                    // On the version that was read: whoever comes second tries again.
                    volumes
                        .replace(volume, &PostParams::default(), &new)
                        .await
                        .map_err(|e| describe(&e))?;
                }
            }
            VolumeWrite::Select { claim, uid } => {
                let patch = Patch::Merge(json!({"metadata": {
                    "uid": uid, "annotations": {SELECTED_NODE: node},
                }}));
                claims
                    .patch(claim, &PatchParams::default(), &patch)
                    .await
                    .map_err(|e| describe(&e))?;
            }
        }
    }
    let end = Instant::now() + LIMIT;
    let mut wait = Duration::from_millis(50);
    for write in writes {
        loop {
            let claim = claims.get(write.claim()).await.map_err(|e| describe(&e))?;
            if is_bound(&claim, write, node)? {
                break;
            }
            if Instant::now() >= end {
                return Err("binding volumes: context deadline exceeded".to_owned());
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }
    Ok(())
}

/// The volume promised to the claim; `None` when it is already.
fn promised(
    mut volume: PersistentVolume,
    namespace: &str,
    claim: &str,
    uid: &str,
) -> Result<Option<PersistentVolume>, String> {
    let own = volume.metadata.name.clone().unwrap_or_default();
    let spec = volume.spec.get_or_insert_default();
    let mut ours = true;
    if let Some(r) = &spec.claim_ref {
        let of = |text: &Option<String>| text.clone().unwrap_or_default();
        if of(&r.namespace) != namespace || of(&r.name) != claim {
            return Err(format!(
                "volume {own:?} already bound to a different claim."
            ));
        }
        match of(&r.uid) {
            known if known == uid => return Ok(None),
            known if known.is_empty() => ours = false,
            _ => {
                return Err(format!(
                    "volume {own:?} already bound to a different claim."
                ));
            }
        }
    }
    spec.claim_ref = Some(ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("PersistentVolumeClaim".to_owned()),
        namespace: Some(namespace.to_owned()),
        name: Some(claim.to_owned()),
        uid: Some(uid.to_owned()),
        ..ObjectReference::default()
    });
    if ours {
        let notes = volume.metadata.annotations.get_or_insert_default();
        notes.insert(BOUND_BY_CONTROLLER.to_owned(), "yes".to_owned());
    }
    Ok(Some(volume))
}

/// Whether the claim has its volume; an error when it never will have this one.
fn is_bound(
    claim: &PersistentVolumeClaim,
    write: &VolumeWrite,
    node: &str,
) -> Result<bool, String> {
    let now = Claim::from_api(claim);
    let (VolumeWrite::Promise { uid, .. } | VolumeWrite::Select { uid, .. }) = write;
    let own = write.claim();
    if now.uid != *uid || now.deleting {
        return Err(format!("claim {own:?} is being deleted or is another one"));
    }
    if now.complete && !now.volume.is_empty() {
        return match write {
            VolumeWrite::Promise { volume, .. } if now.volume != *volume => Err(format!(
                "claim {own:?} got another volume: {:?}",
                now.volume
            )),
            _ => Ok(true),
        };
    }
    let selected = claim
        .metadata
        .annotations
        .as_ref()
        .and_then(|a| a.get(SELECTED_NODE));
    if matches!(write, VolumeWrite::Select { .. }) && selected.map(String::as_str) != Some(node) {
        // The provisioner gave up on this node.
        return Err(format!(
            "provisioning failed for PVC {own:?}: selectedNode annotation reset"
        ));
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn a_volume_is_promised_once() {
        let check = |reference: Value, want: Result<bool, ()>| {
            let volume: PersistentVolume = serde_json::from_value(
                json!({"metadata": {"name": "v"}, "spec": {"claimRef": reference}}),
            )
            .unwrap();
            let got = promised(volume, "ns", "c", "u");
            assert_eq!(
                got.clone().map(|v| v.is_some()).map_err(drop),
                want,
                "{reference}"
            );
            if let Ok(Some(v)) = got {
                let uid = v.spec.and_then(|s| s.claim_ref).and_then(|r| r.uid);
                assert_eq!(uid.as_deref(), Some("u"));
            }
        };
        check(json!(null), Ok(true));
        check(json!({"namespace": "ns", "name": "c"}), Ok(true));
        check(
            json!({"namespace": "ns", "name": "c", "uid": "u"}),
            Ok(false),
        );
        check(
            json!({"namespace": "ns", "name": "c", "uid": "earlier"}),
            Err(()),
        );
        check(json!({"namespace": "ns", "name": "other"}), Err(()));
    }

    #[test]
    fn what_is_waited_for() {
        let promise = VolumeWrite::Promise {
            volume: "v".into(),
            claim: "c".into(),
            uid: "u".into(),
        };
        let select = VolumeWrite::Select {
            claim: "c".into(),
            uid: "u".into(),
        };
        let check = |notes: Value, volume: &str, write: &VolumeWrite, want: Result<bool, ()>| {
            let claim: PersistentVolumeClaim = serde_json::from_value(json!({
                "metadata": {"name": "c", "uid": "u", "annotations": notes}, "spec": {"volumeName": volume}}))
            .unwrap();
            assert_eq!(
                is_bound(&claim, write, "n").map_err(drop),
                want,
                "{claim:?}"
            );
        };
        let complete = json!({"pv.kubernetes.io/bind-completed": "yes"});
        check(json!({}), "", &promise, Ok(false));
        check(complete.clone(), "v", &promise, Ok(true));
        check(complete.clone(), "w", &promise, Err(()));
        check(complete, "w", &select, Ok(true));
        check(json!({SELECTED_NODE: "n"}), "", &select, Ok(false));
        check(json!({SELECTED_NODE: "m"}), "", &select, Err(()));
    }
}
