//! `InterPodAffinity`: pods that want to be near, or away from, other pods.
//!
//! The terms of placed pods come from an index of distinct terms ([`Snapshot::required_anti_terms`],
//! [`Snapshot::scoring_terms`]); the pods that an incoming pod's own terms mean come as counts per node.

use std::sync::Arc;

use crate::event::{ClusterEvent, EventKind, EventMask};
use crate::framework::{
    FilterPlugin, MAX_NODE_SCORE, NodeFilter, NodeScorer, Plugin, PreFilter, Rejection, ScorePlugin,
};
use crate::node::NodeInfo;
use crate::pod::{AffinityTerm, PendingPod, PodInfo};
use crate::snapshot::{NO_VALUE, PodPredicate, Snapshot, Topology};

/// The plugin.
pub struct InterPodAffinity;

impl Plugin for InterPodAffinity {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }

    fn events(&self) -> EventMask {
        EventMask::of(&[
            EventKind::AssignedPodAdd,
            EventKind::AssignedPodUpdateLabel,
            EventKind::AssignedPodDelete,
            EventKind::PodUpdate,
            EventKind::NodeAdd,
            EventKind::NodeUpdateLabel,
            EventKind::NamespaceUpdate,
        ])
    }

    fn hint(&self, pod: &PendingPod, event: &ClusterEvent<'_>) -> bool {
        let ours = &pod.info;
        match event {
            ClusterEvent::Pod(EventKind::AssignedPodAdd, other) => {
                // A newcomer helps only where it is wanted near.
                ours.required_affinity
                    .iter()
                    .any(|t| t.selector.matches(&other.labels))
            }
            ClusterEvent::Pod(EventKind::AssignedPodDelete, other) => {
                // One who leaves helps when either side kept the other away.
                !other.required_anti_affinity.is_empty()
                    || ours
                        .required_anti_affinity
                        .iter()
                        .any(|t| t.selector.matches(&other.labels))
            }
            _ => true,
        }
    }
}

/// Counts per value of one node label.
#[derive(Clone)]
struct Counts<'s> {
    key: &'s str,
    topology: Arc<Topology>,
    per_value: Vec<i64>,
}

impl<'s> Counts<'s> {
    fn new(snapshot: &Snapshot, key: &'s str) -> Self {
        let topology = snapshot.topology(key);
        Counts {
            key,
            per_value: vec![0; topology.values],
            topology,
        }
    }

    fn add(&mut self, index: usize, amount: i64) {
        let value = self
            .topology
            .value_of
            .get(index)
            .copied()
            .unwrap_or(NO_VALUE);
        if value != NO_VALUE {
            self.per_value[value as usize] += amount;
        }
    }

    /// The count of the node's domain; `None` when the node has no such label.
    fn at(&self, index: usize) -> Option<i64> {
        match self
            .topology
            .value_of
            .get(index)
            .copied()
            .unwrap_or(NO_VALUE)
        {
            NO_VALUE => None,
            value => Some(self.per_value[value as usize]),
        }
    }
}

fn counts_for<'c, 's>(
    all: &'c mut Vec<Counts<'s>>,
    snapshot: &Snapshot,
    key: &'s str,
) -> &'c mut Counts<'s> {
    let at = match all.iter().position(|c| c.key == key) {
        Some(at) => at,
        None => {
            all.push(Counts::new(snapshot, key));
            all.len() - 1
        }
    };
    &mut all[at]
}

impl FilterPlugin for InterPodAffinity {
    fn pre_filter<'s>(&self, snapshot: &'s Snapshot, pod: &'s PendingPod) -> PreFilter<'s> {
        let info: &'s PodInfo = &pod.info;
        let labels = snapshot.namespace_labels(&info.namespace);
        let mut existing_anti = Vec::new();
        for (term, nodes) in snapshot.required_anti_terms() {
            if term.matches(info, labels) {
                let counts = counts_for(&mut existing_anti, snapshot, &term.topology_key);
                for (node, count) in nodes {
                    counts.add(*node, *count);
                }
            }
        }
        if existing_anti.is_empty()
            && info.required_affinity.is_empty()
            && info.required_anti_affinity.is_empty()
        {
            return PreFilter::Skip;
        }
        let mut affinity = Vec::new();
        if !info.required_affinity.is_empty() {
            let per_node = snapshot.count_matching(&PodPredicate::all_of(&info.required_affinity));
            for term in &info.required_affinity {
                add_all(
                    counts_for(&mut affinity, snapshot, &term.topology_key),
                    &per_node,
                );
            }
        }
        let mut anti_affinity = Vec::new();
        for term in &info.required_anti_affinity {
            let per_node =
                snapshot.count_matching(&PodPredicate::all_of(std::slice::from_ref(term)));
            add_all(
                counts_for(&mut anti_affinity, snapshot, &term.topology_key),
                &per_node,
            );
        }
        PreFilter::Run(Box::new(Filter {
            snapshot,
            pod: info,
            existing_anti,
            affinity,
            anti_affinity,
        }))
    }
}

fn add_all(counts: &mut Counts<'_>, per_node: &[u32]) {
    for (node, count) in per_node.iter().enumerate().filter(|(_, c)| **c > 0) {
        counts.add(node, i64::from(*count));
    }
}

#[derive(Clone)]
struct Filter<'s> {
    snapshot: &'s Snapshot,
    pod: &'s PodInfo,
    /// Placed pods that want to be away from this one.
    existing_anti: Vec<Counts<'s>>,
    /// Placed pods that this one must be near.
    affinity: Vec<Counts<'s>>,
    /// Placed pods that this one must be away from.
    anti_affinity: Vec<Counts<'s>>,
}

impl<'s> Filter<'s> {
    fn update(&mut self, other: &PodInfo, node: &NodeInfo, step: i64) {
        let own_labels = self.snapshot.namespace_labels(&self.pod.namespace);
        for term in &other.required_anti_affinity {
            if term.matches(self.pod, own_labels)
                && let Some(counts) = self
                    .existing_anti
                    .iter_mut()
                    .find(|c| c.key == term.topology_key)
            {
                counts.add(node.index, step);
            }
        }
        let labels = self.snapshot.namespace_labels(&other.namespace);
        if !self.pod.required_affinity.is_empty()
            && self
                .pod
                .required_affinity
                .iter()
                .all(|t| t.matches(other, labels))
        {
            for term in &self.pod.required_affinity {
                counts_for(&mut self.affinity, self.snapshot, &term.topology_key)
                    .add(node.index, step);
            }
        }
        for term in self
            .pod
            .required_anti_affinity
            .iter()
            .filter(|t| t.matches(other, labels))
        {
            counts_for(&mut self.anti_affinity, self.snapshot, &term.topology_key)
                .add(node.index, step);
        }
    }

    fn affinity_holds(&self, node: &NodeInfo) -> bool {
        let mut near = true;
        for term in &self.pod.required_affinity {
            match self
                .affinity
                .iter()
                .find(|c| c.key == term.topology_key)
                .and_then(|c| c.at(node.index))
            {
                None => return false,
                Some(count) => near &= count > 0,
            }
        }
        // The first of a series that wants to be among its own kind has nobody to be near yet.
        near || (self
            .affinity
            .iter()
            .all(|c| c.per_value.iter().all(|v| *v == 0))
            && self.means_itself())
    }

    fn means_itself(&self) -> bool {
        let labels = self.snapshot.namespace_labels(&self.pod.namespace);
        self.pod
            .required_affinity
            .iter()
            .all(|t| t.matches(self.pod, labels))
    }
}

impl<'s> NodeFilter for Filter<'s> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        if !self.affinity_holds(node) {
            return Err(Rejection::unresolvable(
                "node(s) didn't match pod affinity rules",
            ));
        }
        let crowded = |counts: &[Counts<'_>]| {
            counts
                .iter()
                .any(|c| c.at(node.index).is_some_and(|n| n > 0))
        };
        if crowded(&self.anti_affinity) {
            return Err(Rejection::unschedulable(
                "node(s) didn't match pod anti-affinity rules",
            ));
        }
        if crowded(&self.existing_anti) {
            return Err(Rejection::unschedulable(
                "node(s) didn't satisfy existing pods anti-affinity rules",
            ));
        }
        Ok(())
    }

    fn add_pod(&mut self, pod: &PodInfo, node: &NodeInfo) {
        self.update(pod, node, 1);
    }

    fn remove_pod(&mut self, pod: &PodInfo, node: &NodeInfo) {
        self.update(pod, node, -1);
    }

    fn boxed_clone<'a>(&self) -> Box<dyn NodeFilter + 'a>
    where
        Self: 'a,
    {
        Box::new(self.clone())
    }
}

impl ScorePlugin for InterPodAffinity {
    fn pre_score<'s>(
        &self,
        snapshot: &'s Snapshot,
        pod: &'s PendingPod,
        _feasible: &[&'s NodeInfo],
    ) -> Option<Box<dyn NodeScorer + 's>> {
        let info: &'s PodInfo = &pod.info;
        let labels = snapshot.namespace_labels(&info.namespace);
        let mut parts: Vec<Counts<'s>> = Vec::new();
        let attract = info.preferred_affinity.iter().map(|(w, t)| (*w, t));
        let repel = info.preferred_anti_affinity.iter().map(|(w, t)| (-w, t));
        for (weight, term) in attract.chain(repel) {
            let one: &'s AffinityTerm = term;
            let per_node =
                snapshot.count_matching(&PodPredicate::all_of(std::slice::from_ref(one)));
            let counts = counts_for(&mut parts, snapshot, &one.topology_key);
            for (node, count) in per_node.iter().enumerate().filter(|(_, c)| **c > 0) {
                counts.add(node, weight * i64::from(*count));
            }
        }
        for (term, nodes) in snapshot.scoring_terms() {
            if term.matches(info, labels) {
                let counts = counts_for(&mut parts, snapshot, &term.topology_key);
                for (node, (weight, _)) in nodes {
                    counts.add(*node, *weight);
                }
            }
        }
        if parts.iter().all(|c| c.per_value.iter().all(|v| *v == 0)) {
            return None;
        }
        Some(Box::new(Scorer(parts)))
    }
}

struct Scorer<'s>(Vec<Counts<'s>>);

impl<'s> NodeScorer for Scorer<'s> {
    fn score(&self, node: &NodeInfo) -> i64 {
        self.0.iter().filter_map(|c| c.at(node.index)).sum()
    }

    fn normalize(&self, _nodes: &[&NodeInfo], scores: &mut [i64]) {
        let least = scores.iter().copied().min().unwrap_or(0);
        let span = scores.iter().copied().max().unwrap_or(0) - least;
        for score in scores {
            *score = if span > 0 {
                (MAX_NODE_SCORE as f64 * ((*score - least) as f64 / span as f64)) as i64
            } else {
                0
            };
        }
    }
}
