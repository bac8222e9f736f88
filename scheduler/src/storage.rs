//! Claims, volumes and storage classes, as far as scheduling looks at them.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as WireQuantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_machinery::quantity::Quantity;

use crate::labels::{Labels, NodeSelector, Selector};

/// The older form of a class's name on claims and volumes.
const CLASS: &str = "volume.beta.kubernetes.io/storage-class";
/// On claims: the binding is complete.
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// What a class says when its volumes are made by hand.
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

/// What a claim asks for and what it has.
#[derive(Debug, Clone, PartialEq)]
pub struct Claim {
    /// `metadata.uid`.
    pub uid: String,
    /// Its class; empty for none.
    pub class: String,
    /// `spec.volumeName`.
    pub volume: String,
    /// Whether the binding to that volume is complete.
    pub complete: bool,
    /// Whether its volume is gone.
    pub lost: bool,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// The uid of its controller.
    pub owner: Option<String>,
    access_modes: Vec<String>,
    mode: String,
    bytes: i64,
    selector: Option<Selector>,
}

/// A persistent volume.
#[derive(Debug, Clone, PartialEq)]
pub struct Volume {
    /// The claim that holds it, or that it is promised to: `namespace/name`, and the uid where one is given.
    pub claim: Option<(String, String)>,
    /// The nodes that can reach it; `None` for all.
    pub nodes: Option<NodeSelector>,
    class: String,
    access_modes: Vec<String>,
    mode: String,
    bytes: i64,
    labels: Labels,
    usable: bool,
}

/// A storage class.
#[derive(Debug, Clone, PartialEq)]
pub struct Class {
    /// Whether its claims wait for a pod that uses them.
    pub waits: bool,
    provisioner: String,
    topologies: Vec<Vec<(String, Vec<String>)>>,
}

/// All of them, by name; claims by `namespace/name`.
#[derive(Debug, Default)]
pub struct Storage {
    /// The claims.
    pub claims: HashMap<String, Claim>,
    /// The volumes.
    pub volumes: BTreeMap<String, Volume>,
    /// The classes.
    pub classes: HashMap<String, Class>,
}

fn class_of(meta: &ObjectMeta, named: Option<&String>) -> String {
    let note = meta.annotations.as_ref().and_then(|a| a.get(CLASS));
    note.or(named).cloned().unwrap_or_default()
}

fn bytes(amount: Option<&WireQuantity>) -> i64 {
    amount
        .and_then(|q| Quantity::parse(&q.0).ok())
        .map_or(0, |q| q.value())
}

fn mode(text: Option<&String>) -> String {
    text.cloned().unwrap_or_else(|| "Filesystem".to_owned())
}

impl Claim {
    /// From the API's form.
    pub fn from_api(claim: &PersistentVolumeClaim) -> Self {
        let (meta, spec) = (&claim.metadata, claim.spec.as_ref());
        let requests = spec.and_then(|s| s.resources.as_ref()?.requests.as_ref());
        Claim {
            uid: meta.uid.clone().unwrap_or_default(),
            class: class_of(meta, spec.and_then(|s| s.storage_class_name.as_ref())),
            volume: spec.and_then(|s| s.volume_name.clone()).unwrap_or_default(),
            complete: meta
                .annotations
                .as_ref()
                .is_some_and(|a| a.contains_key(BIND_COMPLETED)),
            lost: claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Lost"),
            deleting: meta.deletion_timestamp.is_some(),
            owner: meta
                .owner_references
                .iter()
                .flatten()
                .find(|o| o.controller == Some(true))
                .map(|o| o.uid.clone()),
            access_modes: spec
                .and_then(|s| s.access_modes.clone())
                .unwrap_or_default(),
            mode: mode(spec.and_then(|s| s.volume_mode.as_ref())),
            bytes: bytes(requests.and_then(|r| r.get("storage"))),
            selector: spec
                .and_then(|s| s.selector.as_ref())
                .map(|s| Selector::from_api(Some(s))),
        }
    }
}

impl Volume {
    /// From the API's form.
    pub fn from_api(volume: &PersistentVolume) -> Self {
        let (meta, spec) = (&volume.metadata, volume.spec.as_ref());
        let available =
            volume.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Available");
        let claim = spec.and_then(|s| s.claim_ref.as_ref()).map(|r| {
            let of = |text: &Option<String>| text.clone().unwrap_or_default();
            (format!("{}/{}", of(&r.namespace), of(&r.name)), of(&r.uid))
        });
        Volume {
            nodes: spec
                .and_then(|s| s.node_affinity.as_ref()?.required.as_ref())
                .map(NodeSelector::from_api),
            class: class_of(meta, spec.and_then(|s| s.storage_class_name.as_ref())),
            access_modes: spec
                .and_then(|s| s.access_modes.clone())
                .unwrap_or_default(),
            mode: mode(spec.and_then(|s| s.volume_mode.as_ref())),
            bytes: bytes(spec.and_then(|s| s.capacity.as_ref()?.get("storage"))),
            labels: meta.labels.clone().unwrap_or_default(),
            usable: meta.deletion_timestamp.is_none() && (available || claim.is_some()),
            claim,
        }
    }

    /// Whether a claim could have it, wherever the pod runs.
    fn suits(&self, key: &str, claim: &Claim) -> bool {
        let promised = match &self.claim {
            None => false,
            Some((of, uid)) if of == key && (uid.is_empty() || *uid == claim.uid) => true,
            Some(_) => return false,
        };
        let fits = self.usable && self.mode == claim.mode && self.bytes >= claim.bytes;
        fits && (promised
            || self.class == claim.class
                && claim
                    .access_modes
                    .iter()
                    .all(|m| self.access_modes.contains(m))
                && claim
                    .selector
                    .as_ref()
                    .is_none_or(|s| s.matches(&self.labels)))
    }

    /// Whether pods on the node can reach it.
    pub fn reaches(&self, node: &str, labels: &Labels) -> bool {
        self.nodes.as_ref().is_none_or(|n| n.matches(node, labels))
    }
}

impl Class {
    /// From the API's form.
    pub fn from_api(class: &StorageClass) -> Self {
        let terms = class.allowed_topologies.iter().flatten();
        Class {
            waits: class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"),
            provisioner: class.provisioner.clone(),
            topologies: terms
                .map(|term| {
                    let all = term.match_label_expressions.iter().flatten();
                    all.map(|e| (e.key.clone(), e.values.clone())).collect()
                })
                .collect(),
        }
    }

    /// Whether a volume can be made for pods on a node with these labels.
    pub fn provisions(&self, labels: &Labels) -> bool {
        let holds = |(key, values): &(String, Vec<String>)| {
            labels.get(key).is_some_and(|v| values.contains(v))
        };
        self.provisioner != NO_PROVISIONER
            && (self.topologies.is_empty()
                || self.topologies.iter().any(|term| term.iter().all(holds)))
    }
}

impl Storage {
    /// The volume for a claim on a node: one that is promised to it, or else the smallest that suits and is not in `taken`.
    pub fn find(
        &self,
        key: &str,
        claim: &Claim,
        node: &str,
        labels: &Labels,
        taken: &[&str],
    ) -> Option<&str> {
        self.volumes
            .iter()
            .filter(|(name, v)| {
                v.suits(key, claim) && v.reaches(node, labels) && !taken.contains(&name.as_str())
            })
            .min_by_key(|(name, v)| (v.claim.is_none(), v.bytes, name.as_str()))
            .map(|(name, _)| name.as_str())
    }
}
