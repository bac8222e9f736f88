//! The parts of a pod that scheduling looks at, taken out of the API object once.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Pod, PodAffinityTerm, Taint as ApiTaint, Toleration as ApiToleration, TopologySpreadConstraint,
};

use crate::labels::{Labels, NodeSelector, NodeTerm, Selector};
use crate::resources::{PodRequests, pod_requests};

/// What other pods' decisions need to know of a pod, pending or placed.
#[derive(Debug, Clone, PartialEq)]
pub struct PodInfo {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.labels`.
    pub labels: Labels,
    /// `spec.nodeName`, or the node that the pod is assumed to run on.
    pub node_name: Option<String>,
    /// `status.nominatedNodeName`.
    pub nominated_node: Option<String>,
    /// `spec.priority`, 0 when absent.
    pub priority: i32,
    /// What it asks for.
    pub requests: PodRequests,
    /// The host ports that it takes.
    pub host_ports: Vec<HostPort>,
    /// Required affinity to other pods.
    pub required_affinity: Vec<AffinityTerm>,
    /// Required anti-affinity to other pods.
    pub required_anti_affinity: Vec<AffinityTerm>,
    /// Preferred affinity with weights.
    pub preferred_affinity: Vec<(i64, AffinityTerm)>,
    /// Preferred anti-affinity with weights.
    pub preferred_anti_affinity: Vec<(i64, AffinityTerm)>,
    /// `status.startTime`.
    pub start_time: Option<Timestamp>,
    /// Whether `metadata.deletionTimestamp` is set.
    pub terminating: bool,
    /// Whether it is being removed by a scheduler's preemption.
    pub preempted: bool,
    /// `metadata.resourceVersion`.
    pub resource_version: String,
}

/// A host port with its address and protocol.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// The host address; `0.0.0.0` is every address.
    pub ip: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// The port.
    pub port: i32,
}

impl HostPort {
    /// Whether both cannot be had on one node.
    pub fn conflicts(&self, other: &HostPort) -> bool {
        const ANY: &str = "0.0.0.0";
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || self.ip == ANY || other.ip == ANY)
    }
}

/// A compiled `v1.PodAffinityTerm`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AffinityTerm {
    /// Namespaces named outright (the pod's own when neither these nor a selector are given).
    pub namespaces: BTreeSet<String>,
    /// Namespaces selected by their labels; `Nothing` when absent.
    pub namespace_selector: Selector,
    /// The pods meant.
    pub selector: Selector,
    /// The node label that makes up a domain.
    pub topology_key: String,
}

impl AffinityTerm {
    fn from_api(term: &PodAffinityTerm, pod_namespace: &str) -> Self {
        let mut namespaces: BTreeSet<String> = term.namespaces.iter().flatten().cloned().collect();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.insert(pod_namespace.to_owned());
        }
        AffinityTerm {
            namespaces,
            namespace_selector: Selector::from_api(term.namespace_selector.as_ref()),
            selector: Selector::from_api(term.label_selector.as_ref()),
            topology_key: term.topology_key.clone(),
        }
    }

    /// Whether the term means `pod`, whose namespace carries `namespace_labels`.
    pub fn matches(&self, pod: &PodInfo, namespace_labels: &Labels) -> bool {
        (self.namespaces.contains(&pod.namespace)
            || self.namespace_selector.matches(namespace_labels))
            && self.selector.matches(&pod.labels)
    }
}

/// A taint's effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// New pods must tolerate it.
    NoSchedule,
    /// New pods had better tolerate it.
    PreferNoSchedule,
    /// New pods must tolerate it, and running ones are evicted.
    NoExecute,
}

impl Effect {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "NoSchedule" => Some(Effect::NoSchedule),
            "PreferNoSchedule" => Some(Effect::PreferNoSchedule),
            "NoExecute" => Some(Effect::NoExecute),
            _ => None,
        }
    }
}

/// A node's taint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taint {
    /// Its key.
    pub key: String,
    /// Its value, possibly empty.
    pub value: String,
    /// Its effect.
    pub effect: Effect,
}

impl Taint {
    /// From the API form; `None` for an effect that does not exist.
    pub fn from_api(taint: &ApiTaint) -> Option<Self> {
        Some(Taint {
            key: taint.key.clone(),
            value: taint.value.clone().unwrap_or_default(),
            effect: Effect::parse(&taint.effect)?,
        })
    }
}

/// A pod's toleration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Toleration {
    key: String,
    exists: bool,
    value: String,
    /// The effect tolerated; `None` is every effect.
    pub effect: Option<Effect>,
}

impl Toleration {
    fn from_api(toleration: &ApiToleration) -> Option<Self> {
        let exists = match toleration.operator.as_deref() {
            None | Some("") | Some("Equal") => false,
            Some("Exists") => true,
            // Numeric comparison operators are behind a feature that is off by default.
            Some(_) => return None,
        };
        let effect = match toleration.effect.as_deref() {
            None | Some("") => None,
            Some(text) => Some(Effect::parse(text)?),
        };
        Some(Toleration {
            key: toleration.key.clone().unwrap_or_default(),
            exists,
            value: toleration.value.clone().unwrap_or_default(),
            effect,
        })
    }

    /// Whether it tolerates `taint` (`v1.Toleration.ToleratesTaint`).
    pub fn tolerates(&self, taint: &Taint) -> bool {
        self.effect.is_none_or(|e| e == taint.effect)
            && (self.key.is_empty() || self.key == taint.key)
            && (self.exists || self.value == taint.value)
    }
}

/// A topology spread constraint, compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpreadConstraint {
    /// How uneven the spread may be.
    pub max_skew: i64,
    /// The node label that makes up a domain.
    pub topology_key: String,
    /// The pods counted.
    pub selector: Selector,
    /// With fewer domains than this the least full one counts as empty.
    pub min_domains: i64,
    /// Whether nodes outside the pod's node affinity are left out of the count.
    pub honor_affinity: bool,
    /// Whether nodes whose taints the pod does not tolerate are left out of the count.
    pub honor_taints: bool,
    /// `DoNotSchedule` rather than `ScheduleAnyway`.
    pub hard: bool,
}

impl SpreadConstraint {
    fn from_api(constraint: &TopologySpreadConstraint, pod_labels: &Labels) -> Self {
        let mut selector = Selector::from_api(constraint.label_selector.as_ref());
        let by_key: Labels = constraint
            .match_label_keys
            .iter()
            .flatten()
            .filter_map(|key| Some((key.clone(), pod_labels.get(key)?.clone())))
            .collect();
        if !by_key.is_empty() {
            selector = selector.and(Selector::from_labels(&by_key));
        }
        SpreadConstraint {
            max_skew: i64::from(constraint.max_skew),
            topology_key: constraint.topology_key.clone(),
            selector,
            min_domains: i64::from(constraint.min_domains.unwrap_or(1)),
            honor_affinity: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
            honor_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
            hard: constraint.when_unsatisfiable != "ScheduleAnyway",
        }
    }
}

/// The `PodScheduled` condition as it stands in the API.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScheduledCondition {
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// Its reason.
    pub reason: String,
    /// Its message.
    pub message: String,
    /// The generation it was written for.
    pub observed_generation: Option<i64>,
}

/// A pod that waits for a node: what placing it needs besides its [`PodInfo`].
#[derive(Debug, Clone, PartialEq)]
pub struct PendingPod {
    /// What it has in common with placed pods.
    pub info: Arc<PodInfo>,
    /// `spec.schedulerName`.
    pub scheduler_name: String,
    /// `spec.nodeSelector`, compiled; `None` when absent.
    pub node_selector: Option<Selector>,
    /// Required node affinity.
    pub required_node: Option<NodeSelector>,
    /// Preferred node affinity with weights.
    pub preferred_nodes: Vec<(i64, NodeTerm)>,
    /// `spec.tolerations`.
    pub tolerations: Vec<Toleration>,
    /// `spec.topologySpreadConstraints`.
    pub spread: Vec<SpreadConstraint>,
    /// Images of all containers and image volumes, with a tag each.
    pub images: Vec<String>,
    /// How many containers there are, init containers included.
    pub container_count: usize,
    /// `spec.schedulingGates`, by name.
    pub gates: Vec<String>,
    /// The claims of its volumes.
    pub claims: Vec<PodClaim>,
    /// Whether `spec.preemptionPolicy` is `Never`.
    pub never_preempts: bool,
    /// The controlling owner: API version, kind, name.
    pub owner: Option<(String, String, String)>,
    /// The `PodScheduled` condition, if any.
    pub condition: Option<ScheduledCondition>,
    /// `metadata.generation`.
    pub generation: Option<i64>,
}

/// A claim that a pod uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodClaim {
    /// Its name; that of an ephemeral volume is made of those of pod and volume.
    pub name: String,
    /// Whether it is made for this pod alone.
    pub ephemeral: bool,
}

impl PodClaim {
    fn of(pod: &str, volume: &k8s_openapi::api::core::v1::Volume) -> Option<Self> {
        match (&volume.persistent_volume_claim, &volume.ephemeral) {
            (Some(source), _) => Some(PodClaim {
                name: source.claim_name.clone(),
                ephemeral: false,
            }),
            (None, Some(_)) => Some(PodClaim {
                name: format!("{pod}-{}", volume.name),
                ephemeral: true,
            }),
            (None, None) => None,
        }
    }
}

impl PodInfo {
    /// Takes the scheduling view out of an API object.
    pub fn from_pod(pod: &Pod) -> Self {
        let meta = &pod.metadata;
        let namespace = meta.namespace.clone().unwrap_or_default();
        let affinity = pod.spec.as_ref().and_then(|s| s.affinity.as_ref());
        let with = affinity.and_then(|a| a.pod_affinity.as_ref());
        let apart = affinity.and_then(|a| a.pod_anti_affinity.as_ref());
        let required = |terms: Option<&Vec<PodAffinityTerm>>| -> Vec<AffinityTerm> {
            terms
                .into_iter()
                .flatten()
                .map(|t| AffinityTerm::from_api(t, &namespace))
                .collect()
        };
        let non_empty = |text: Option<&String>| text.filter(|t| !t.is_empty()).cloned();
        let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
        let terminating = meta.deletion_timestamp.is_some();
        PodInfo {
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            labels: meta.labels.clone().unwrap_or_default(),
            node_name: non_empty(pod.spec.as_ref().and_then(|s| s.node_name.as_ref())),
            nominated_node: non_empty(
                pod.status
                    .as_ref()
                    .and_then(|s| s.nominated_node_name.as_ref()),
            ),
            priority: pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0),
            requests: pod_requests(pod),
            host_ports: host_ports(pod),
            required_affinity: required(with.and_then(|a| {
                a.required_during_scheduling_ignored_during_execution
                    .as_ref()
            })),
            required_anti_affinity: required(apart.and_then(|a| {
                a.required_during_scheduling_ignored_during_execution
                    .as_ref()
            })),
            preferred_affinity: with
                .and_then(|a| {
                    a.preferred_during_scheduling_ignored_during_execution
                        .as_ref()
                })
                .into_iter()
                .flatten()
                .map(|w| {
                    (
                        i64::from(w.weight),
                        AffinityTerm::from_api(&w.pod_affinity_term, &namespace),
                    )
                })
                .collect(),
            preferred_anti_affinity: apart
                .and_then(|a| {
                    a.preferred_during_scheduling_ignored_during_execution
                        .as_ref()
                })
                .into_iter()
                .flatten()
                .map(|w| {
                    (
                        i64::from(w.weight),
                        AffinityTerm::from_api(&w.pod_affinity_term, &namespace),
                    )
                })
                .collect(),
            start_time: pod
                .status
                .as_ref()
                .and_then(|s| s.start_time.as_ref())
                .map(|t| t.0),
            terminating,
            preempted: terminating
                && conditions.into_iter().flatten().any(|c| {
                    c.type_ == "DisruptionTarget"
                        && c.status == "True"
                        && c.reason.as_deref() == Some("PreemptionByScheduler")
                }),
            resource_version: meta.resource_version.clone().unwrap_or_default(),
            namespace,
        }
    }

    /// `namespace/name`, as upstream prints pods.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// The same pod, assumed to run on `node`.
    pub fn assumed_on(&self, node: &str) -> Self {
        PodInfo {
            node_name: Some(node.to_owned()),
            nominated_node: None,
            ..self.clone()
        }
    }
}

impl PendingPod {
    /// Takes the scheduling view out of an API object.
    pub fn from_pod(pod: &Pod) -> Self {
        let info = PodInfo::from_pod(pod);
        let spec = pod.spec.as_ref();
        let node_affinity = spec
            .and_then(|s| s.affinity.as_ref())
            .and_then(|a| a.node_affinity.as_ref());
        let init = spec
            .and_then(|s| s.init_containers.as_deref())
            .unwrap_or_default();
        let containers = spec.map(|s| s.containers.as_slice()).unwrap_or_default();
        let volumes = spec.and_then(|s| s.volumes.as_deref()).unwrap_or_default();
        let images = init
            .iter()
            .chain(containers)
            .filter_map(|c| c.image.as_deref())
            .chain(
                volumes
                    .iter()
                    .filter_map(|v| v.image.as_ref()?.reference.as_deref()),
            )
            .map(normalized_image)
            .collect();
        PendingPod {
            scheduler_name: spec
                .and_then(|s| s.scheduler_name.clone())
                .unwrap_or_default(),
            node_selector: spec
                .and_then(|s| s.node_selector.as_ref())
                .map(Selector::from_labels),
            required_node: node_affinity
                .and_then(|a| {
                    a.required_during_scheduling_ignored_during_execution
                        .as_ref()
                })
                .map(NodeSelector::from_api),
            preferred_nodes: node_affinity
                .and_then(|a| {
                    a.preferred_during_scheduling_ignored_during_execution
                        .as_ref()
                })
                .into_iter()
                .flatten()
                .filter(|p| p.weight != 0)
                .map(|p| (i64::from(p.weight), NodeTerm::from_api(&p.preference)))
                .collect(),
            tolerations: spec
                .and_then(|s| s.tolerations.as_ref())
                .into_iter()
                .flatten()
                .filter_map(Toleration::from_api)
                .collect(),
            spread: spec
                .and_then(|s| s.topology_spread_constraints.as_ref())
                .into_iter()
                .flatten()
                .map(|c| SpreadConstraint::from_api(c, &info.labels))
                .collect(),
            images,
            container_count: init.len() + containers.len(),
            gates: spec
                .and_then(|s| s.scheduling_gates.as_ref())
                .into_iter()
                .flatten()
                .map(|g| g.name.clone())
                .collect(),
            claims: volumes
                .iter()
                .filter_map(|v| PodClaim::of(&info.name, v))
                .collect(),
            never_preempts: spec.and_then(|s| s.preemption_policy.as_deref()) == Some("Never"),
            owner: pod
                .metadata
                .owner_references
                .iter()
                .flatten()
                .find(|o| o.controller == Some(true))
                .map(|o| (o.api_version.clone(), o.kind.clone(), o.name.clone())),
            condition: pod
                .status
                .as_ref()
                .and_then(|s| s.conditions.as_ref())
                .and_then(|c| c.iter().find(|c| c.type_ == "PodScheduled"))
                .map(|c| ScheduledCondition {
                    status: c.status.clone(),
                    reason: c.reason.clone().unwrap_or_default(),
                    message: c.message.clone().unwrap_or_default(),
                    observed_generation: c.observed_generation,
                }),
            generation: pod.metadata.generation,
            info: Arc::new(info),
        }
    }

    /// Whether node selector and required node affinity allow a node.
    pub fn allows_node(&self, name: &str, labels: &Labels) -> bool {
        self.node_selector
            .as_ref()
            .is_none_or(|s| s.matches(labels))
            && self
                .required_node
                .as_ref()
                .is_none_or(|s| s.matches(name, labels))
    }

    /// Whether all taints that keep pods away are tolerated.
    pub fn tolerates_all(&self, taints: &[Taint]) -> bool {
        taints
            .iter()
            .filter(|t| t.effect != Effect::PreferNoSchedule)
            .all(|t| {
                self.tolerations
                    .iter()
                    .any(|toleration| toleration.tolerates(t))
            })
    }
}

/// An image name with its tag; `latest` when it has none (`imagelocality.normalizedImageName`).
pub fn normalized_image(name: &str) -> String {
    if name.rfind(':') <= name.rfind('/') {
        format!("{name}:latest")
    } else {
        name.to_owned()
    }
}

fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let Some(spec) = &pod.spec else {
        return Vec::new();
    };
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|c| c.restart_policy.as_deref() == Some("Always"));
    spec.containers
        .iter()
        .chain(sidecars)
        .flat_map(|c| c.ports.iter().flatten())
        .filter_map(|p| {
            Some(HostPort {
                port: p.host_port.filter(|port| *port > 0)?,
                ip: p
                    .host_ip
                    .clone()
                    .filter(|ip| !ip.is_empty())
                    .unwrap_or_else(|| "0.0.0.0".to_owned()),
                protocol: p
                    .protocol
                    .clone()
                    .filter(|p| !p.is_empty())
                    .unwrap_or_else(|| "TCP".to_owned()),
            })
        })
        .collect()
}
