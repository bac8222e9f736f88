//! What is behind a persistent volume claim: hostPath and local volumes. The checks are those that upstream's
//! `desiredStateOfWorldPopulator` makes before it lets a pod have a claim.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Volume};
use kube::api::Api;
use parking_lot::Mutex;

use super::host_path;
use crate::podutil;

/// How long the API may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A directory or file of the node that a claim stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    /// Where it is.
    pub path: PathBuf,
    /// The type that a hostPath is checked for; `Directory` for a local volume.
    pub kind: String,
    /// Whether the pod may only read it.
    pub read_only: bool,
    /// Whether it is given to the pod's group.
    pub owned: bool,
}

/// The claims of the node's pods. A claim that was found bound once stays so for its pod.
pub struct Claims {
    client: Option<kube::Client>,
    /// By pod uid and volume name.
    known: Mutex<HashMap<(String, String), Backing>>,
}

/// The name of the claim that a volume uses; `None` for a volume of another sort. The claim of an ephemeral volume is named after
/// the pod and the volume.
pub fn claim_name(pod: &Pod, v: &Volume) -> Option<String> {
    match (&v.persistent_volume_claim, &v.ephemeral) {
        (Some(source), _) => Some(source.claim_name.clone()),
        (None, Some(_)) => Some(format!("{}-{}", podutil::name(pod), v.name)),
        (None, None) => None,
    }
}

/// What a claim and its volume come to.
fn judge(
    pod: &Pod,
    v: &Volume,
    claim: &PersistentVolumeClaim,
    volume: &PersistentVolume,
) -> Result<Backing, String> {
    let title = format!(
        "{}/{}",
        podutil::namespace(pod),
        claim.metadata.name.as_deref().unwrap_or_default()
    );
    let own = volume.metadata.name.as_deref().unwrap_or_default();
    let spec = volume
        .spec
        .as_ref()
        .ok_or_else(|| format!("PV {own} has no spec"))?;
    let holder = spec.claim_ref.as_ref().and_then(|r| r.uid.as_deref());
    if holder.is_none() || holder != claim.metadata.uid.as_deref() {
        return Err(format!(
            "error processing PVC {title}: PV {own} is bound to another claim"
        ));
    }
    let asked = claim.spec.as_ref().and_then(|s| s.volume_mode.as_deref());
    if asked == Some("Block") || spec.volume_mode.as_deref() == Some("Block") {
        return Err("block volumes are not supported by this kubelet".to_owned());
    }
    let source = v.persistent_volume_claim.as_ref();
    let read_only = source.and_then(|s| s.read_only) == Some(true);
    if let Some(s) = &spec.host_path {
        return Ok(Backing {
            path: PathBuf::from(&s.path),
            kind: s.type_.clone().unwrap_or_default(),
            read_only,
            owned: false,
        });
    }
    if let Some(s) = &spec.local {
        return Ok(Backing {
            path: PathBuf::from(&s.path),
            kind: "Directory".to_owned(),
            read_only,
            owned: true,
        });
    }
    Err(format!(
        "the type of PersistentVolume {own:?} is not supported by this kubelet"
    ))
}

/// Whether a claim may be used by the pod.
fn usable(pod: &Pod, v: &Volume, claim: &PersistentVolumeClaim) -> Result<String, String> {
    if claim.metadata.deletion_timestamp.is_some() {
        return Err("PVC is being deleted".to_owned());
    }
    if v.ephemeral.is_some() {
        let ours = claim
            .metadata
            .owner_references
            .iter()
            .flatten()
            .any(|o| o.controller == Some(true) && o.uid == podutil::uid(pod));
        if !ours {
            return Err(format!(
                "PVC {}/{} was not created for pod {}/{} (pod is not owner)",
                podutil::namespace(pod),
                claim.metadata.name.as_deref().unwrap_or_default(),
                podutil::namespace(pod),
                podutil::name(pod),
            ));
        }
    }
    let bound = claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
    claim
        .spec
        .as_ref()
        .and_then(|s| s.volume_name.clone())
        .filter(|name| bound && !name.is_empty())
        .ok_or_else(|| "PVC is not bound".to_owned())
}

impl Claims {
    /// Nothing known yet.
    pub fn new(client: Option<kube::Client>) -> Self {
        Claims {
            client,
            known: Mutex::new(HashMap::new()),
        }
    }

    /// Forgets the claims of a pod.
    pub fn forget(&self, uid: &str) {
        self.known.lock().retain(|(of, _), _| of != uid);
    }

    /// What is behind the claim `name`, which volume `v` of the pod uses; checked to be there and of its kind.
    ///
    /// # Errors
    /// Why the pod cannot have it.
    pub async fn resolve(&self, pod: &Pod, v: &Volume, name: &str) -> Result<Backing, String> {
        let key = (podutil::uid(pod).to_owned(), v.name.clone());
        let known = self.known.lock().get(&key).cloned();
        let backing = match known {
            Some(backing) => backing,
            None => {
                let found = tokio::time::timeout(TIMEOUT, self.find(pod, v, name))
                    .await
                    .map_err(|_| "the API server did not answer in time".to_owned())??;
                self.known.lock().insert(key, found.clone());
                found
            }
        };
        host_path::check(&backing.path, &backing.kind)?;
        Ok(backing)
    }

    async fn find(&self, pod: &Pod, v: &Volume, name: &str) -> Result<Backing, String> {
        let client = self
            .client
            .clone()
            .ok_or("persistent volume claims need an API server")?;
        let space = podutil::namespace(pod);
        let failed = |e: kube::Error| format!("error processing PVC {space}/{name}: {e}");
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), space);
        let claim = claims
            .get(name)
            .await
            .map_err(|e| failed(e).replacen(": ", ": failed to fetch PVC from API server: ", 1))?;
        let volume_name = usable(pod, v, &claim)
            .map_err(|e| format!("error processing PVC {space}/{name}: {e}"))?;
        let volumes: Api<PersistentVolume> = Api::all(client);
        let volume = volumes.get(&volume_name).await.map_err(failed)?;
        judge(pod, v, &claim, &volume)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn check(volume: Value, claim: Value, backed: Value, want: Result<(&str, &str, bool), &str>) {
        let pod: Pod = serde_json::from_value(
            json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"}}),
        )
        .unwrap();
        let v: Volume = serde_json::from_value(volume.clone()).unwrap();
        let claim: PersistentVolumeClaim = serde_json::from_value(claim.clone()).unwrap();
        let pv: PersistentVolume = serde_json::from_value(backed.clone()).unwrap();
        let got = usable(&pod, &v, &claim).and_then(|_| judge(&pod, &v, &claim, &pv));
        match (&got, want) {
            (Ok(b), Ok((path, kind, read_only))) => {
                let got = (b.path.to_str(), b.kind.as_str(), b.read_only);
                assert_eq!(got, (Some(path), kind, read_only));
            }
            (Err(e), Err(part)) => assert!(e.contains(part), "{e}"),
            _ => panic!("{volume} {claim:?} {backed}: {got:?}"),
        }
    }

    #[test]
    fn only_a_bound_claim_of_the_right_volume_is_used() {
        let v = json!({"name": "v", "persistentVolumeClaim": {"claimName": "c"}});
        let claim = |phase: &str| json!({"metadata": {"name": "c", "uid": "cu"}, "spec": {"volumeName": "pv"}, "status": {"phase": phase}});
        let pv = |source: Value, uid: &str| {
            let mut pv = json!({"metadata": {"name": "pv"}, "spec": {"claimRef": {"uid": uid}}});
            for (k, field) in source.as_object().unwrap() {
                pv["spec"][k] = field.clone();
            }
            pv
        };
        let host = json!({"hostPath": {"path": "/data", "type": "DirectoryOrCreate"}});
        let found = Ok(("/data", "DirectoryOrCreate", false));
        check(v.clone(), claim("Bound"), pv(host.clone(), "cu"), found);
        check(
            v.clone(),
            claim("Pending"),
            pv(host.clone(), "cu"),
            Err("PVC is not bound"),
        );
        check(
            v.clone(),
            claim("Bound"),
            pv(host.clone(), "other"),
            Err("bound to another claim"),
        );
        let mut going = claim("Bound");
        going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        check(
            v.clone(),
            going,
            pv(host.clone(), "cu"),
            Err("PVC is being deleted"),
        );
        let nfs = json!({"nfs": {"server": "s", "path": "/"}});
        check(
            v.clone(),
            claim("Bound"),
            pv(nfs, "cu"),
            Err("not supported"),
        );
        let block = json!({"volumeMode": "Block", "local": {"path": "/dev/x"}});
        check(
            v.clone(),
            claim("Bound"),
            pv(block, "cu"),
            Err("block volumes"),
        );
        let local = json!({"local": {"path": "/disk"}});
        let read_only =
            json!({"name": "v", "persistentVolumeClaim": {"claimName": "c", "readOnly": true}});
        check(
            read_only,
            claim("Bound"),
            pv(local, "cu"),
            Ok(("/disk", "Directory", true)),
        );
        // An ephemeral volume's claim must be the pod's own.
        let ephemeral = json!({"name": "v", "ephemeral": {}});
        let mut own = claim("Bound");
        check(
            ephemeral.clone(),
            own.clone(),
            pv(host.clone(), "cu"),
            Err("pod is not owner"),
        );
        own["metadata"]["ownerReferences"] = json!([{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u", "controller": true}]);
        check(ephemeral, own, pv(host, "cu"), found);
    }
}
