//! `NodeResourcesFit`: what the pod asks for is free on the node; emptier nodes rank higher (`LeastAllocated`).

use crate::event::{ClusterEvent, EventKind, EventMask};
use crate::framework::{
    Code, FilterPlugin, MAX_NODE_SCORE, NodeFilter, NodeScorer, Plugin, PreFilter, Rejection,
    ScorePlugin,
};
use crate::node::{NodeInfo, NodeSpec};
use crate::pod::PendingPod;
use crate::resources::{PodRequests, Resource};
use crate::snapshot::Snapshot;

/// The plugin.
pub struct NodeResourcesFit;

impl Plugin for NodeResourcesFit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn events(&self) -> EventMask {
        EventMask::of(&[
            EventKind::AssignedPodDelete,
            EventKind::AssignedPodScaleDown,
            EventKind::PodUpdate,
            EventKind::NodeAdd,
            EventKind::NodeUpdateAllocatable,
        ])
    }

    fn hint(&self, pod: &PendingPod, event: &ClusterEvent<'_>) -> bool {
        let wanted = &pod.info.requests.requests;
        match event {
            ClusterEvent::Node(_, name, old, Some(new)) => {
                check(wanted, &NodeInfo::empty(name, (*new).clone())).is_ok()
                    && old.is_none_or(|old| grew(wanted, old, new))
            }
            _ => true,
        }
    }
}

/// Whether a node now has more of anything that is wanted.
fn grew(wanted: &Resource, old: &NodeSpec, new: &NodeSpec) -> bool {
    let (a, b) = (&old.allocatable, &new.allocatable);
    b.pods > a.pods
        || (wanted.milli_cpu > 0 && b.milli_cpu > a.milli_cpu)
        || (wanted.memory > 0 && b.memory > a.memory)
        || (wanted.ephemeral_storage > 0 && b.ephemeral_storage > a.ephemeral_storage)
        || wanted
            .scalar
            .iter()
            .any(|(name, amount)| *amount > 0 && b.scalar(name) > a.scalar(name))
}

impl FilterPlugin for NodeResourcesFit {
    fn pre_filter<'s>(&self, _snapshot: &'s Snapshot, pod: &'s PendingPod) -> PreFilter<'s> {
        PreFilter::Run(Box::new(Filter(&pod.info.requests.requests)))
    }
}

struct Filter<'s>(&'s Resource);

impl<'s> NodeFilter for Filter<'s> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        check(self.0, node)
    }

    fn boxed_clone<'a>(&self) -> Box<dyn NodeFilter + 'a>
    where
        Self: 'a,
    {
        Box::new(Filter(self.0))
    }
}

/// Whether the node has room; otherwise everything that it lacks (`fitsRequest`).
pub fn check(wanted: &Resource, node: &NodeInfo) -> Result<(), Rejection> {
    let allocatable = &node.spec().allocatable;
    let used = &node.requested;
    let mut reasons: Vec<std::borrow::Cow<'static, str>> = Vec::new();
    let mut never = false;
    if node.pods.len() as i64 + 1 > allocatable.pods {
        reasons.push("Too many pods".into());
    }
    if !wanted.is_zero() {
        let mut lacks = |want: i64, have: i64, taken: i64| {
            let lacking = want > 0 && want > have - taken;
            never |= lacking && want > have;
            lacking
        };
        if lacks(wanted.milli_cpu, allocatable.milli_cpu, used.milli_cpu) {
            reasons.push("Insufficient cpu".into());
        }
        if lacks(wanted.memory, allocatable.memory, used.memory) {
            reasons.push("Insufficient memory".into());
        }
        if lacks(
            wanted.ephemeral_storage,
            allocatable.ephemeral_storage,
            used.ephemeral_storage,
        ) {
            reasons.push("Insufficient ephemeral-storage".into());
        }
        for (name, want) in &wanted.scalar {
            if lacks(*want, allocatable.scalar(name), used.scalar(name)) {
                reasons.push(format!("Insufficient {name}").into());
            }
        }
    }
    if reasons.is_empty() {
        return Ok(());
    }
    let code = if never {
        Code::UnschedulableAndUnresolvable
    } else {
        Code::Unschedulable
    };
    Err(Rejection { code, reasons })
}

impl ScorePlugin for NodeResourcesFit {
    fn pre_score<'s>(
        &self,
        _snapshot: &'s Snapshot,
        pod: &'s PendingPod,
        _feasible: &[&'s NodeInfo],
    ) -> Option<Box<dyn NodeScorer + 's>> {
        Some(Box::new(Scorer(&pod.info.requests)))
    }
}

struct Scorer<'s>(&'s PodRequests);

impl<'s> NodeScorer for Scorer<'s> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let have = &node.spec().allocatable;
        let parts = [
            (
                node.non_zero_milli_cpu + self.0.non_zero_milli_cpu,
                have.milli_cpu,
            ),
            (node.non_zero_memory + self.0.non_zero_memory, have.memory),
        ];
        let known = parts.iter().filter(|(_, have)| *have > 0);
        let (sum, count) = known.fold((0, 0), |(sum, count), (want, have)| {
            (sum + least_requested(*want, *have), count + 1)
        });
        if count == 0 { 0 } else { sum / count }
    }
}

/// How much is left, from 0 (nothing) to [`MAX_NODE_SCORE`] (all).
fn least_requested(requested: i64, capacity: i64) -> i64 {
    if requested > capacity {
        0
    } else {
        (capacity - requested) * MAX_NODE_SCORE / capacity
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use crate::pod::PodInfo;
    use k8s_openapi::api::core::v1::{Node, Pod};
    use serde_json::json;

    #[test]
    fn what_a_node_lacks() {
        for (name, wanted, want) in [
            ("fits", json!({"cpu": "1", "memory": "1Gi"}), Ok(())),
            ("asks nothing", json!({}), Ok(())),
            (
                "cpu taken",
                json!({"cpu": "3"}),
                Err((Code::Unschedulable, "Insufficient cpu")),
            ),
            (
                "cpu never",
                json!({"cpu": "5"}),
                Err((Code::UnschedulableAndUnresolvable, "Insufficient cpu")),
            ),
            (
                "two",
                json!({"cpu": "3", "memory": "8Gi"}),
                Err((
                    Code::UnschedulableAndUnresolvable,
                    "Insufficient cpu, Insufficient memory",
                )),
            ),
            (
                "extended",
                json!({"example.com/gpu": "1"}),
                Err((
                    Code::UnschedulableAndUnresolvable,
                    "Insufficient example.com/gpu",
                )),
            ),
        ] {
            let api: Node = serde_json::from_value(json!({
                "status": {"allocatable": {"cpu": "4", "memory": "4Gi", "pods": "10"}}}))
            .unwrap();
            let mut node = NodeInfo::empty("n", NodeSpec::from_node(&api));
            let pod = |requests: serde_json::Value| -> PodInfo {
                let pod: Pod = serde_json::from_value(
                    json!({"spec": {"containers": [{"name": "a", "resources": {"requests": requests}}]}}),
                )
                .unwrap();
                PodInfo::from_pod(&pod)
            };
            node.add_pod(Arc::new(pod(json!({"cpu": "2"}))));
            let got = check(&pod(wanted).requests.requests, &node)
                .map_err(|r| (r.code, r.reasons.join(", ")));
            assert_eq!(got, want.map_err(|(c, r)| (c, r.to_owned())), "{name}");
        }
    }

    #[test]
    fn emptier_nodes_score_higher() {
        for (requested, capacity, want) in [
            (0, 100, 100),
            (50, 100, 50),
            (100, 100, 0),
            (101, 100, 0),
            (1, 3, 66),
        ] {
            assert_eq!(
                least_requested(requested, capacity),
                want,
                "{requested}/{capacity}"
            );
        }
    }
}
