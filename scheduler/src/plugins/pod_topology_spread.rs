//! `PodTopologySpread`: pods of a kind spread over the values of a node label.
//!
//! The number of matching pods per node comes from [`Snapshot::count_matching`], which follows each change, so a decision
//! sums small integers per node and never looks at other pods.

use std::sync::Arc;

use crate::event::{ClusterEvent, EventKind, EventMask};
use crate::framework::{
    FilterPlugin, MAX_NODE_SCORE, NodeFilter, NodeScorer, Plugin, PreFilter, Rejection, ScorePlugin,
};
use crate::labels::{Labels, Selector};
use crate::node::NodeInfo;
use crate::pod::{PendingPod, PodInfo, SpreadConstraint};
use crate::snapshot::{NO_VALUE, PodPredicate, Snapshot, Topology};

const HOSTNAME: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

/// The plugin.
pub struct PodTopologySpread;

impl Plugin for PodTopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }

    fn events(&self) -> EventMask {
        EventMask::of(&[
            EventKind::AssignedPodAdd,
            EventKind::AssignedPodUpdateLabel,
            EventKind::AssignedPodDelete,
            EventKind::PodUpdate,
            EventKind::NodeAdd,
            EventKind::NodeDelete,
            EventKind::NodeUpdateLabel,
            EventKind::NodeUpdateTaint,
        ])
    }

    fn hint(&self, pod: &PendingPod, event: &ClusterEvent<'_>) -> bool {
        match event {
            // A label change may take a pod out of a selector that it was in, so only the namespace decides then.
            ClusterEvent::Pod(EventKind::AssignedPodUpdateLabel, other) => {
                other.namespace == pod.info.namespace
            }
            ClusterEvent::Pod(_, other) => {
                other.namespace == pod.info.namespace
                    && pod.spread.iter().any(|c| c.selector.matches(&other.labels))
            }
            _ => true,
        }
    }
}

fn has_all_keys(constraints: &[SpreadConstraint], labels: &Labels) -> bool {
    constraints
        .iter()
        .all(|c| labels.contains_key(&c.topology_key))
}

/// Whether a node counts for a constraint.
fn included(constraint: &SpreadConstraint, pod: &PendingPod, node: &NodeInfo) -> bool {
    (!constraint.honor_affinity || pod.allows_node(&node.name, &node.spec().labels))
        && (!constraint.honor_taints || pod.tolerates_all(&node.spec().taints))
}

impl FilterPlugin for PodTopologySpread {
    fn pre_filter<'s>(&self, snapshot: &'s Snapshot, pod: &'s PendingPod) -> PreFilter<'s> {
        let constraints: Vec<SpreadConstraint> =
            pod.spread.iter().filter(|c| c.hard).cloned().collect();
        if constraints.is_empty() {
            return PreFilter::Skip;
        }
        let mut domains: Vec<Domains> = constraints
            .into_iter()
            .map(|constraint| {
                let topology = snapshot.topology(&constraint.topology_key);
                let predicate =
                    PodPredicate::in_namespace(&pod.info.namespace, constraint.selector.clone());
                Domains {
                    per_node: snapshot.count_matching(&predicate),
                    own: i64::from(constraint.selector.matches(&pod.info.labels)),
                    counts: vec![None; topology.values],
                    least: 0,
                    topology,
                    constraint,
                }
            })
            .collect();
        let keep_all = domains.iter().all(|d| d.topology.values > 0);
        for node in snapshot.nodes().filter(|_| keep_all) {
            if domains
                .iter()
                .any(|d| d.topology.value_of[node.index] == NO_VALUE)
            {
                continue;
            }
            for domain in &mut domains {
                if included(&domain.constraint, pod, node) {
                    let value = domain.topology.value_of[node.index] as usize;
                    let count = i64::from(domain.per_node[node.index]);
                    *domain.counts[value].get_or_insert(0) += count;
                }
            }
        }
        for domain in &mut domains {
            domain.settle();
        }
        PreFilter::Run(Box::new(Filter {
            snapshot,
            pod,
            domains,
        }))
    }
}

/// One constraint with the pods counted per value of its label.
#[derive(Clone)]
struct Domains {
    constraint: SpreadConstraint,
    topology: Arc<Topology>,
    per_node: Arc<Vec<u32>>,
    /// 1 when the pod itself will count.
    own: i64,
    /// By value; `None` where no eligible node carries it.
    counts: Vec<Option<i64>>,
    /// The lowest count that the skew is measured from.
    least: i64,
}

impl Domains {
    fn settle(&mut self) {
        let known = self.counts.iter().flatten();
        let domains = known.clone().count() as i64;
        self.least = if domains < self.constraint.min_domains {
            0
        } else {
            known.copied().min().unwrap_or(0)
        };
    }
}

struct Filter<'s> {
    snapshot: &'s Snapshot,
    pod: &'s PendingPod,
    domains: Vec<Domains>,
}

impl<'s> Filter<'s> {
    fn count(&mut self, other: &PodInfo, node: &NodeInfo, step: i64) {
        if other.namespace != self.pod.info.namespace
            || !self
                .domains
                .iter()
                .all(|d| node.spec().labels.contains_key(&d.constraint.topology_key))
        {
            return;
        }
        for domain in &mut self.domains {
            let value = domain
                .topology
                .value_of
                .get(node.index)
                .copied()
                .unwrap_or(NO_VALUE);
            if value != NO_VALUE
                && domain.constraint.selector.matches(&other.labels)
                && included(&domain.constraint, self.pod, node)
            {
                *domain.counts[value as usize].get_or_insert(0) += step;
                domain.settle();
            }
        }
    }
}

impl<'s> NodeFilter for Filter<'s> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        for domain in &self.domains {
            let value = domain
                .topology
                .value_of
                .get(node.index)
                .copied()
                .unwrap_or(NO_VALUE);
            if value == NO_VALUE {
                return Err(Rejection::unresolvable(
                    "node(s) didn't match pod topology spread constraints (missing required label)",
                ));
            }
            let here = domain.counts[value as usize].unwrap_or(0);
            if here + domain.own - domain.least > domain.constraint.max_skew {
                return Err(Rejection::unschedulable(
                    "node(s) didn't match pod topology spread constraints",
                ));
            }
        }
        Ok(())
    }

    fn add_pod(&mut self, pod: &PodInfo, node: &NodeInfo) {
        self.count(pod, node, 1);
    }

    fn remove_pod(&mut self, pod: &PodInfo, node: &NodeInfo) {
        self.count(pod, node, -1);
    }

    fn boxed_clone<'a>(&self) -> Box<dyn NodeFilter + 'a>
    where
        Self: 'a,
    {
        Box::new(Filter {
            snapshot: self.snapshot,
            pod: self.pod,
            domains: self.domains.clone(),
        })
    }
}

/// The constraints that pods get which bring none: spread over hosts and zones, if anything tells which pods are of a kind.
fn default_constraints(snapshot: &Snapshot, pod: &PendingPod) -> Vec<SpreadConstraint> {
    let selector = fellows(snapshot, pod);
    if selector.is_everything() || selector == Selector::Nothing {
        return Vec::new();
    }
    [(HOSTNAME, 3), (ZONE, 5)]
        .into_iter()
        .map(|(key, max_skew)| SpreadConstraint {
            max_skew,
            topology_key: key.to_owned(),
            selector: selector.clone(),
            min_domains: 1,
            honor_affinity: true,
            honor_taints: false,
            hard: false,
        })
        .collect()
}

/// What the services that select the pod, and its owner, select (`helper.DefaultSelector`).
fn fellows(snapshot: &Snapshot, pod: &PendingPod) -> Selector {
    let mut labels = Labels::new();
    for service in snapshot
        .sources
        .services
        .get(&pod.info.namespace)
        .into_iter()
        .flat_map(|s| s.values())
    {
        if Selector::from_labels(service).matches(&pod.info.labels) {
            labels.extend(service.iter().map(|(k, v)| (k.clone(), v.clone())));
        }
    }
    let selector = Selector::from_labels(&labels);
    let Some((api_version, kind, name)) = &pod.owner else {
        return selector;
    };
    let kind = match (api_version.as_str(), kind.as_str()) {
        ("v1", "ReplicationController") => "ReplicationController",
        ("apps/v1", "ReplicaSet") => "ReplicaSet",
        ("apps/v1", "StatefulSet") => "StatefulSet",
        _ => return selector,
    };
    let key = (kind, pod.info.namespace.clone(), name.clone());
    match snapshot.sources.owners.get(&key) {
        Some(of_owner) => selector.and(of_owner.clone()),
        None => selector,
    }
}

impl ScorePlugin for PodTopologySpread {
    fn pre_score<'s>(
        &self,
        snapshot: &'s Snapshot,
        pod: &'s PendingPod,
        feasible: &[&'s NodeInfo],
    ) -> Option<Box<dyn NodeScorer + 's>> {
        // Nodes without a zone still spread over hosts, unless the pod itself asks for more.
        let all_keys = !pod.spread.is_empty();
        let constraints: Vec<SpreadConstraint> = if all_keys {
            pod.spread.iter().filter(|c| !c.hard).cloned().collect()
        } else {
            default_constraints(snapshot, pod)
        };
        if constraints.is_empty() {
            return None;
        }
        let ignored: Vec<bool> = feasible
            .iter()
            .map(|n| all_keys && !has_all_keys(&constraints, &n.spec().labels))
            .collect();
        let counted_nodes = ignored.iter().filter(|i| !**i).count();
        let mut ignored_nodes: Vec<usize> = feasible
            .iter()
            .zip(&ignored)
            .filter(|(_, i)| **i)
            .map(|(n, _)| n.index)
            .collect();
        ignored_nodes.sort_unstable();

        let mut parts = Vec::with_capacity(constraints.len());
        for constraint in &constraints {
            let predicate =
                PodPredicate::in_namespace(&pod.info.namespace, constraint.selector.clone());
            let per_node = snapshot.count_matching(&predicate);
            let topology = snapshot.topology(&constraint.topology_key);
            let by_host = constraint.topology_key == HOSTNAME;
            let mut counts = Vec::new();
            let mut domains = counted_nodes;
            if !by_host {
                // Only domains of feasible nodes matter. Those without the label share one more domain.
                counts = vec![None; topology.values];
                let mut without = false;
                for (node, _) in feasible.iter().zip(&ignored).filter(|(_, i)| !**i) {
                    match topology.value_of[node.index] {
                        NO_VALUE => without = true,
                        value => counts[value as usize] = Some(0i64),
                    }
                }
                domains = counts.iter().flatten().count() + usize::from(without);
                let plain = !constraint.honor_taints
                    && (!constraint.honor_affinity
                        || (pod.node_selector.is_none() && pod.required_node.is_none()));
                for node in snapshot.nodes() {
                    let value = topology.value_of[node.index];
                    if value == NO_VALUE || per_node[node.index] == 0 {
                        continue;
                    }
                    if let Some(count) = &mut counts[value as usize]
                        && (!all_keys || has_all_keys(&constraints, &node.spec().labels))
                        && (plain || included(constraint, pod, node))
                    {
                        *count += i64::from(per_node[node.index]);
                    }
                }
            }
            parts.push(Part {
                max_skew: constraint.max_skew,
                by_host,
                per_node,
                topology,
                counts: counts.into_iter().map(|c| c.unwrap_or(0)).collect(),
                weight: ((domains + 2) as f64).ln(),
            });
        }
        Some(Box::new(Scorer {
            parts,
            ignored_nodes,
        }))
    }
}

struct Part {
    max_skew: i64,
    by_host: bool,
    per_node: Arc<Vec<u32>>,
    topology: Arc<Topology>,
    counts: Vec<i64>,
    /// More domains make each pod in one weigh more, so that constraints with few domains do not drown the others.
    weight: f64,
}

struct Scorer {
    parts: Vec<Part>,
    /// Indexes of nodes that lack a label, in order.
    ignored_nodes: Vec<usize>,
}

impl Scorer {
    fn is_ignored(&self, node: &NodeInfo) -> bool {
        self.ignored_nodes.binary_search(&node.index).is_ok()
    }
}

impl NodeScorer for Scorer {
    fn score(&self, node: &NodeInfo) -> i64 {
        if self.is_ignored(node) {
            return 0;
        }
        let mut score = 0.0;
        for part in &self.parts {
            let value = part.topology.value_of[node.index];
            if value == NO_VALUE {
                continue;
            }
            let count = if part.by_host {
                i64::from(part.per_node[node.index])
            } else {
                part.counts[value as usize]
            };
            score += count as f64 * part.weight + (part.max_skew - 1) as f64;
        }
        score.round() as i64
    }

    fn normalize(&self, nodes: &[&NodeInfo], scores: &mut [i64]) {
        let ranked = || {
            nodes
                .iter()
                .zip(scores.iter())
                .filter(|(n, _)| !self.is_ignored(n))
                .map(|(_, s)| *s)
        };
        let (least, most) = (ranked().min().unwrap_or(0), ranked().max().unwrap_or(0));
        for (node, score) in nodes.iter().zip(scores.iter_mut()) {
            *score = if self.is_ignored(node) {
                0
            } else if most == 0 {
                MAX_NODE_SCORE
            } else {
                MAX_NODE_SCORE * (most + least - *score) / most
            };
        }
    }
}
