//! A node as scheduling sees it: what it offers, what the pods on it have taken.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;

use crate::labels::Labels;
use crate::pod::{Effect, HostPort, PodInfo, Taint, normalized_image};
use crate::resources::Resource;

/// What the API object says of a node.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodeSpec {
    /// `metadata.labels`.
    pub labels: Labels,
    /// `spec.taints`.
    pub taints: Vec<Taint>,
    /// `spec.unschedulable`.
    pub unschedulable: bool,
    /// `status.allocatable`.
    pub allocatable: Resource,
    /// The images on it with their sizes in bytes, by every name.
    pub images: Vec<(String, i64)>,
}

impl NodeSpec {
    /// Takes the scheduling view out of an API object.
    pub fn from_node(node: &Node) -> Self {
        let spec = node.spec.as_ref();
        let status = node.status.as_ref();
        let mut images = Vec::new();
        for image in status.and_then(|s| s.images.as_ref()).into_iter().flatten() {
            for name in image.names.iter().flatten() {
                images.push((normalized_image(name), image.size_bytes.unwrap_or(0)));
            }
        }
        NodeSpec {
            labels: node.metadata.labels.clone().unwrap_or_default(),
            taints: spec
                .and_then(|s| s.taints.as_ref())
                .into_iter()
                .flatten()
                .filter_map(Taint::from_api)
                .collect(),
            unschedulable: spec.and_then(|s| s.unschedulable).unwrap_or(false),
            allocatable: status
                .and_then(|s| s.allocatable.as_ref())
                .map(Resource::from_list)
                .unwrap_or_default(),
            images,
        }
    }

    /// The zone as upstream's node tree keys it: region and zone, from the current or the former labels.
    pub fn zone(&self) -> String {
        let label = |keys: [&str; 2]| {
            keys.iter()
                .find_map(|k| self.labels.get(*k))
                .cloned()
                .unwrap_or_default()
        };
        let region = label([
            "failure-domain.beta.kubernetes.io/region",
            "topology.kubernetes.io/region",
        ]);
        let zone = label([
            "failure-domain.beta.kubernetes.io/zone",
            "topology.kubernetes.io/zone",
        ]);
        if region.is_empty() && zone.is_empty() {
            String::new()
        } else {
            format!("{region}:\u{0}:{zone}")
        }
    }
}

/// A node with the pods on it. Sums are kept as pods come and go, so that a decision never walks the pods.
#[derive(Debug, Clone, Default)]
pub struct NodeInfo {
    /// Its place in the [`crate::snapshot::Snapshot`]; stable while the node lives.
    pub index: usize,
    /// Its name.
    pub name: Arc<str>,
    /// What the API says of it; `None` while only its pods are known.
    pub spec: Option<NodeSpec>,
    /// Whether any taint is `PreferNoSchedule`.
    pub has_soft_taints: bool,
    /// The pods on it, assumed ones included.
    pub pods: Vec<Arc<PodInfo>>,
    /// What they ask for.
    pub requested: Resource,
    /// CPU in millicores with defaults for those that ask none.
    pub non_zero_milli_cpu: i64,
    /// Memory in bytes with defaults for those that ask none.
    pub non_zero_memory: i64,
    /// The host ports taken.
    pub used_ports: Vec<HostPort>,
}

impl NodeInfo {
    /// A node at place `index` of which nothing is known yet.
    pub fn new(index: usize, name: &str) -> Self {
        NodeInfo {
            index,
            name: name.into(),
            ..NodeInfo::default()
        }
    }

    /// A node without pods, for asking whether a pod would fit at all.
    pub fn empty(name: &str, spec: NodeSpec) -> Self {
        let mut node = NodeInfo::new(usize::MAX, name);
        node.set_spec(spec);
        node
    }

    /// What the API says of the node, or nothing at all where it does not know it.
    pub fn spec(&self) -> &NodeSpec {
        static UNKNOWN: NodeSpec = NodeSpec {
            labels: Labels::new(),
            taints: Vec::new(),
            unschedulable: false,
            allocatable: Resource {
                milli_cpu: 0,
                memory: 0,
                ephemeral_storage: 0,
                pods: 0,
                scalar: Vec::new(),
            },
            images: Vec::new(),
        };
        self.spec.as_ref().unwrap_or(&UNKNOWN)
    }

    /// A label of the node.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.spec().labels.get(key).map(String::as_str)
    }

    /// Replaces what the API says of the node.
    pub fn set_spec(&mut self, spec: NodeSpec) {
        self.has_soft_taints = spec
            .taints
            .iter()
            .any(|t| t.effect == Effect::PreferNoSchedule);
        self.spec = Some(spec);
    }

    /// Counts a pod in.
    pub fn add_pod(&mut self, pod: Arc<PodInfo>) {
        self.account(&pod, 1);
        self.used_ports.extend(pod.host_ports.iter().cloned());
        self.pods.push(pod);
    }

    /// Counts a pod out; `None` when it is not here.
    pub fn remove_pod(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let at = self.pods.iter().position(|p| p.uid == uid)?;
        let pod = self.pods.swap_remove(at);
        self.account(&pod, -1);
        for port in &pod.host_ports {
            if let Some(at) = self.used_ports.iter().position(|p| p == port) {
                self.used_ports.swap_remove(at);
            }
        }
        Some(pod)
    }

    fn account(&mut self, pod: &PodInfo, sign: i64) {
        self.requested.add(&pod.requests.requests, sign);
        self.non_zero_milli_cpu += sign * pod.requests.non_zero_milli_cpu;
        self.non_zero_memory += sign * pod.requests.non_zero_memory;
    }
}
