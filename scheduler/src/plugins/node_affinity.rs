//! `NodeAffinity`: node selector, required and preferred node affinity.

use std::collections::BTreeSet;

use super::normalize;
use crate::event::{ClusterEvent, EventKind, EventMask};
use crate::framework::{
    FilterPlugin, NodeFilter, NodeScorer, Plugin, PreFilter, Rejection, ScorePlugin,
};
use crate::node::NodeInfo;
use crate::pod::PendingPod;
use crate::snapshot::Snapshot;

/// The plugin.
pub struct NodeAffinity;

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn events(&self) -> EventMask {
        EventMask::of(&[EventKind::NodeAdd, EventKind::NodeUpdateLabel])
    }

    fn hint(&self, pod: &PendingPod, event: &ClusterEvent<'_>) -> bool {
        match event {
            ClusterEvent::Node(_, name, old, Some(new)) => {
                pod.allows_node(name, &new.labels)
                    && old.is_none_or(|o| !pod.allows_node(name, &o.labels))
            }
            _ => true,
        }
    }
}

impl FilterPlugin for NodeAffinity {
    fn pre_filter<'s>(&self, _snapshot: &'s Snapshot, pod: &'s PendingPod) -> PreFilter<'s> {
        if pod.node_selector.is_none() && pod.required_node.is_none() {
            return PreFilter::Skip;
        }
        let filter = Box::new(Filter(pod));
        let terms = pod
            .required_node
            .as_ref()
            .map(|r| r.terms.as_slice())
            .unwrap_or_default();
        if terms.is_empty() {
            return PreFilter::Run(filter);
        }
        // Terms are alternatives: only when each is confined to nodes by name is the pod confined to their union.
        let mut names = BTreeSet::new();
        for term in terms {
            match term.node_names() {
                None => return PreFilter::Run(filter),
                Some(of_term) => names.extend(of_term.into_iter().map(str::to_owned)),
            }
        }
        if names.is_empty() {
            return PreFilter::Reject(Rejection::unresolvable("pod affinity terms conflict"));
        }
        PreFilter::RunOn(filter, names)
    }
}

struct Filter<'s>(&'s PendingPod);

impl<'s> NodeFilter for Filter<'s> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        if self.0.allows_node(&node.name, &node.spec().labels) {
            return Ok(());
        }
        Err(Rejection::unresolvable(
            "node(s) didn't match Pod's node affinity/selector",
        ))
    }

    fn boxed_clone<'a>(&self) -> Box<dyn NodeFilter + 'a>
    where
        Self: 'a,
    {
        Box::new(Filter(self.0))
    }
}

impl ScorePlugin for NodeAffinity {
    fn pre_score<'s>(
        &self,
        _snapshot: &'s Snapshot,
        pod: &'s PendingPod,
        _feasible: &[&'s NodeInfo],
    ) -> Option<Box<dyn NodeScorer + 's>> {
        (!pod.preferred_nodes.is_empty()).then(|| Box::new(Scorer(pod)) as Box<dyn NodeScorer + 's>)
    }
}

struct Scorer<'s>(&'s PendingPod);

impl<'s> NodeScorer for Scorer<'s> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let labels = &node.spec().labels;
        self.0
            .preferred_nodes
            .iter()
            .filter(|(_, term)| term.matches(&node.name, labels))
            .map(|(w, _)| w)
            .sum()
    }

    fn normalize(&self, _nodes: &[&NodeInfo], scores: &mut [i64]) {
        normalize(scores, false);
    }
}
