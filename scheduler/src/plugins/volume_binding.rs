//! `VolumeBinding`: a pod goes where its volumes can be reached. Claims whose class waits for their first consumer get their
//! volume, or the node for which one is to be made, together with the pod.

use crate::event::{EventKind, EventMask};
use crate::framework::{Code, FilterPlugin, NodeFilter, Plugin, PreFilter, Rejection};
use crate::labels::Labels;
use crate::node::NodeInfo;
use crate::pod::PendingPod;
use crate::snapshot::Snapshot;
use crate::storage::{Claim, Storage};

/// The plugin.
pub struct VolumeBinding;

/// What has to be written before the pod may be bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeWrite {
    /// The volume is promised to the claim.
    Promise {
        /// `PersistentVolume` by name.
        volume: String,
        /// The claim's name.
        claim: String,
        /// And uid.
        uid: String,
    },
    /// A volume is to be made where the pod goes.
    Select {
        /// The claim's name.
        claim: String,
        /// And uid.
        uid: String,
    },
}

impl VolumeWrite {
    /// The claim that it is about.
    pub fn claim(&self) -> &str {
        match self {
            VolumeWrite::Promise { claim, .. } | VolumeWrite::Select { claim, .. } => claim,
        }
    }
}

/// A claim of the pod.
struct Need<'s> {
    name: &'s str,
    key: String,
    claim: &'s Claim,
}

fn reject(reason: String) -> Rejection {
    Rejection {
        code: Code::UnschedulableAndUnresolvable,
        reasons: vec![reason.into()],
    }
}

/// The pod's claims, all of them usable.
fn needs<'s>(storage: &'s Storage, pod: &'s PendingPod) -> Result<Vec<Need<'s>>, Rejection> {
    let mut all = Vec::with_capacity(pod.claims.len());
    let mut waiting = false;
    for wanted in &pod.claims {
        let name = wanted.name.as_str();
        let key = format!("{}/{name}", pod.info.namespace);
        let Some(claim) = storage.claims.get(&key) else {
            return Err(reject(if wanted.ephemeral {
                format!(
                    "waiting for ephemeral volume controller to create the persistentvolumeclaim {name:?}"
                )
            } else {
                format!("persistentvolumeclaim {name:?} not found")
            }));
        };
        if claim.lost {
            let volume = &claim.volume;
            return Err(reject(format!(
                "persistentvolumeclaim {name:?} bound to non-existent persistentvolume {volume:?}"
            )));
        }
        if claim.deleting {
            return Err(reject(format!(
                "persistentvolumeclaim {name:?} is being deleted"
            )));
        }
        if wanted.ephemeral && claim.owner.as_deref() != Some(pod.info.uid.as_str()) {
            return Err(reject(format!(
                "PVC {key} was not created for pod {} (pod is not owner)",
                pod.info.key()
            )));
        }
        let delayed = storage.classes.get(&claim.class).is_some_and(|c| c.waits);
        // One that names its volume is the binder's, whatever its class.
        waiting |= !claim.complete && (!delayed || !claim.volume.is_empty());
        all.push(Need { name, key, claim });
    }
    if waiting {
        return Err(Rejection::unresolvable(
            "pod has unbound immediate PersistentVolumeClaims",
        ));
    }
    Ok(all)
}

/// What is to be written for these claims when the pod goes to the node, or why it cannot go there.
fn place(
    storage: &Storage,
    needs: &[Need<'_>],
    node: &str,
    labels: &Labels,
) -> Result<Vec<VolumeWrite>, Rejection> {
    let mut writes = Vec::new();
    let mut taken: Vec<&str> = Vec::new();
    for need in needs {
        if need.claim.complete {
            let Some(volume) = storage.volumes.get(&need.claim.volume) else {
                let volume = &need.claim.volume;
                return Err(reject(format!("persistentvolume {volume:?} not found")));
            };
            if !volume.reaches(node, labels) {
                return Err(Rejection::unresolvable(
                    "node(s) didn't match PersistentVolume's node affinity",
                ));
            }
            continue;
        }
        let (claim, uid) = (need.name.to_owned(), need.claim.uid.clone());
        if let Some(volume) = storage.find(&need.key, need.claim, node, labels, &taken) {
            taken.push(volume);
            writes.push(VolumeWrite::Promise {
                volume: volume.to_owned(),
                claim,
                uid,
            });
            continue;
        }
        let class = storage.classes.get(&need.claim.class);
        if !class.is_some_and(|c| c.provisions(labels)) {
            return Err(Rejection::unresolvable(
                "node(s) didn't find available persistent volumes to bind",
            ));
        }
        writes.push(VolumeWrite::Select { claim, uid });
    }
    Ok(writes)
}

/// What has to be written for the pod's claims before it is bound to `node`, for which the filter has passed.
pub fn writes(snapshot: &Snapshot, pod: &PendingPod, node: &str) -> Vec<VolumeWrite> {
    let Some(info) = snapshot.node_by_name(node) else {
        return Vec::new();
    };
    needs(&snapshot.storage, pod)
        .and_then(|needs| place(&snapshot.storage, &needs, node, &info.spec().labels))
        .unwrap_or_default()
}

impl Plugin for VolumeBinding {
    fn name(&self) -> &'static str {
        "VolumeBinding"
    }

    fn events(&self) -> EventMask {
        EventMask::of(&[
            EventKind::StorageUpdate,
            EventKind::NodeAdd,
            EventKind::NodeUpdateLabel,
        ])
    }
}

impl FilterPlugin for VolumeBinding {
    fn pre_filter<'s>(&self, snapshot: &'s Snapshot, pod: &'s PendingPod) -> PreFilter<'s> {
        if pod.claims.is_empty() {
            return PreFilter::Skip;
        }
        match needs(&snapshot.storage, pod) {
            Ok(_) => PreFilter::Run(Box::new(Filter {
                storage: &snapshot.storage,
                pod,
            })),
            Err(rejection) => PreFilter::Reject(rejection),
        }
    }
}

struct Filter<'s> {
    storage: &'s Storage,
    pod: &'s PendingPod,
}

impl<'s> NodeFilter for Filter<'s> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        let needs = needs(self.storage, self.pod)?;
        place(self.storage, &needs, &node.name, &node.spec().labels).map(drop)
    }

    fn boxed_clone<'a>(&self) -> Box<dyn NodeFilter + 'a>
    where
        Self: 'a,
    {
        Box::new(Filter {
            storage: self.storage,
            pod: self.pod,
        })
    }
}
