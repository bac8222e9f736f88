//! `TaintToleration`: nodes with taints that the pod does not tolerate are out, or rank lower.

use super::normalize;
use crate::event::{ClusterEvent, EventKind, EventMask};
use crate::framework::{
    FilterPlugin, NodeFilter, NodeScorer, Plugin, PreFilter, Rejection, ScorePlugin,
};
use crate::node::NodeInfo;
use crate::pod::{Effect, PendingPod};
use crate::snapshot::Snapshot;

/// The plugin.
pub struct TaintToleration;

impl Plugin for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn events(&self) -> EventMask {
        EventMask::of(&[
            EventKind::NodeAdd,
            EventKind::NodeUpdateTaint,
            EventKind::PodUpdate,
        ])
    }

    fn hint(&self, pod: &PendingPod, event: &ClusterEvent<'_>) -> bool {
        match event {
            ClusterEvent::Node(_, _, old, Some(new)) => {
                old.is_none_or(|o| !pod.tolerates_all(&o.taints)) && pod.tolerates_all(&new.taints)
            }
            _ => true,
        }
    }
}

impl FilterPlugin for TaintToleration {
    fn pre_filter<'s>(&self, _snapshot: &'s Snapshot, pod: &'s PendingPod) -> PreFilter<'s> {
        PreFilter::Run(Box::new(Filter(pod)))
    }
}

struct Filter<'s>(&'s PendingPod);

impl<'s> NodeFilter for Filter<'s> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        let taints = &node.spec().taints;
        if taints.is_empty() || self.0.tolerates_all(taints) {
            return Ok(());
        }
        Err(Rejection::unresolvable("node(s) had untolerated taint(s)"))
    }

    fn boxed_clone<'a>(&self) -> Box<dyn NodeFilter + 'a>
    where
        Self: 'a,
    {
        Box::new(Filter(self.0))
    }
}

impl ScorePlugin for TaintToleration {
    fn pre_score<'s>(
        &self,
        snapshot: &'s Snapshot,
        pod: &'s PendingPod,
        _feasible: &[&'s NodeInfo],
    ) -> Option<Box<dyn NodeScorer + 's>> {
        snapshot
            .any_soft_taints()
            .then(|| Box::new(Scorer(pod)) as Box<dyn NodeScorer + 's>)
    }
}

struct Scorer<'s>(&'s PendingPod);

impl<'s> NodeScorer for Scorer<'s> {
    fn score(&self, node: &NodeInfo) -> i64 {
        if !node.has_soft_taints {
            return 0;
        }
        let soft = |effect| effect == Effect::PreferNoSchedule;
        let untolerated = node.spec().taints.iter().filter(|taint| {
            soft(taint.effect)
                && !self
                    .0
                    .tolerations
                    .iter()
                    .any(|t| t.effect.is_none_or(soft) && t.tolerates(taint))
        });
        untolerated.count() as i64
    }

    fn normalize(&self, _nodes: &[&NodeInfo], scores: &mut [i64]) {
        normalize(scores, true);
    }
}
