//! `NodeUnschedulable`: cordoned nodes take only pods that tolerate it.

use crate::event::{ClusterEvent, EventKind, EventMask};
use crate::framework::{FilterPlugin, NodeFilter, Plugin, PreFilter, Rejection};
use crate::node::NodeInfo;
use crate::pod::{Effect, PendingPod, Taint};
use crate::snapshot::Snapshot;

/// The plugin.
pub struct NodeUnschedulable;

impl Plugin for NodeUnschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
    }

    fn events(&self) -> EventMask {
        EventMask::of(&[
            EventKind::NodeAdd,
            EventKind::NodeUpdateTaint,
            EventKind::PodUpdate,
        ])
    }

    fn hint(&self, _pod: &PendingPod, event: &ClusterEvent<'_>) -> bool {
        match event {
            ClusterEvent::Node(_, _, _, Some(node)) => !node.unschedulable,
            _ => true,
        }
    }
}

impl FilterPlugin for NodeUnschedulable {
    fn pre_filter<'s>(&self, _snapshot: &'s Snapshot, pod: &'s PendingPod) -> PreFilter<'s> {
        let cordon = Taint {
            key: "node.kubernetes.io/unschedulable".to_owned(),
            value: String::new(),
            effect: Effect::NoSchedule,
        };
        if pod.tolerations.iter().any(|t| t.tolerates(&cordon)) {
            PreFilter::Skip
        } else {
            PreFilter::Run(Box::new(Filter))
        }
    }
}

struct Filter;

impl NodeFilter for Filter {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        if node.spec().unschedulable {
            return Err(Rejection::unresolvable("node(s) were unschedulable"));
        }
        Ok(())
    }

    fn boxed_clone<'a>(&self) -> Box<dyn NodeFilter + 'a>
    where
        Self: 'a,
    {
        Box::new(Filter)
    }
}
