//! `NodeName`: a pod that names its node runs there only. The queue holds only pods without a node name, so in the
//! scheduler itself it has nothing to say; it stands for checks of pods that bring one.

use crate::event::{EventKind, EventMask};
use crate::framework::{FilterPlugin, NodeFilter, Plugin, PreFilter, Rejection};
use crate::node::NodeInfo;
use crate::pod::PendingPod;
use crate::snapshot::Snapshot;

/// The plugin.
pub struct NodeName;

impl Plugin for NodeName {
    fn name(&self) -> &'static str {
        "NodeName"
    }

    fn events(&self) -> EventMask {
        EventMask::of(&[EventKind::NodeAdd])
    }
}

impl FilterPlugin for NodeName {
    fn pre_filter<'s>(&self, _snapshot: &'s Snapshot, pod: &'s PendingPod) -> PreFilter<'s> {
        match &pod.info.node_name {
            None => PreFilter::Skip,
            Some(name) => PreFilter::Run(Box::new(Filter(name))),
        }
    }
}

struct Filter<'s>(&'s str);

impl<'s> NodeFilter for Filter<'s> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        if *node.name == *self.0 {
            return Ok(());
        }
        Err(Rejection::unresolvable(
            "node(s) didn't match the requested node name",
        ))
    }

    fn boxed_clone<'a>(&self) -> Box<dyn NodeFilter + 'a>
    where
        Self: 'a,
    {
        Box::new(Filter(self.0))
    }
}
