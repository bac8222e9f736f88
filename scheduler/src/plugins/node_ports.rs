//! `NodePorts`: host ports are free on the node.

use crate::event::{ClusterEvent, EventKind, EventMask};
use crate::framework::{FilterPlugin, NodeFilter, Plugin, PreFilter, Rejection};
use crate::node::NodeInfo;
use crate::pod::{HostPort, PendingPod};
use crate::snapshot::Snapshot;

/// The plugin.
pub struct NodePorts;

impl Plugin for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }

    fn events(&self) -> EventMask {
        EventMask::of(&[EventKind::AssignedPodDelete, EventKind::NodeAdd])
    }

    fn hint(&self, pod: &PendingPod, event: &ClusterEvent<'_>) -> bool {
        match event {
            ClusterEvent::Pod(_, gone) => pod
                .info
                .host_ports
                .iter()
                .any(|want| gone.host_ports.iter().any(|had| had.conflicts(want))),
            _ => true,
        }
    }
}

impl FilterPlugin for NodePorts {
    fn pre_filter<'s>(&self, _snapshot: &'s Snapshot, pod: &'s PendingPod) -> PreFilter<'s> {
        if pod.info.host_ports.is_empty() {
            return PreFilter::Skip;
        }
        PreFilter::Run(Box::new(Filter(&pod.info.host_ports)))
    }
}

struct Filter<'s>(&'s [HostPort]);

impl<'s> NodeFilter for Filter<'s> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        if self
            .0
            .iter()
            .any(|want| node.used_ports.iter().any(|used| used.conflicts(want)))
        {
            return Err(Rejection::unschedulable(
                "node(s) didn't have free ports for the requested pod ports",
            ));
        }
        Ok(())
    }

    fn boxed_clone<'a>(&self) -> Box<dyn NodeFilter + 'a>
    where
        Self: 'a,
    {
        Box::new(Filter(self.0))
    }
}
