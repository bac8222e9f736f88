//! The default plugins, one file per plugin.

pub mod balanced_allocation;
pub mod default_preemption;
pub mod image_locality;
pub mod inter_pod_affinity;
pub mod node_affinity;
pub mod node_name;
pub mod node_ports;
pub mod node_resources_fit;
pub mod node_unschedulable;
pub mod pod_topology_spread;
pub mod priority_sort;
pub mod scheduling_gates;
pub mod taint_toleration;
pub mod volume_binding;

use std::sync::Arc;

use crate::framework::Framework;

/// The default profile: which plugins, in which order, with which weights (`getDefaultPlugins`).
pub fn default_framework(scheduler_name: &str) -> Framework {
    let taints = Arc::new(taint_toleration::TaintToleration);
    let affinity = Arc::new(node_affinity::NodeAffinity);
    let fit = Arc::new(node_resources_fit::NodeResourcesFit);
    let spread = Arc::new(pod_topology_spread::PodTopologySpread);
    let pods = Arc::new(inter_pod_affinity::InterPodAffinity);
    Framework::new(scheduler_name)
        .pre_enqueue(Arc::new(scheduling_gates::SchedulingGates))
        .filter(Arc::new(node_unschedulable::NodeUnschedulable))
        .filter(Arc::new(node_name::NodeName))
        .filter(taints.clone())
        .filter(affinity.clone())
        .filter(Arc::new(node_ports::NodePorts))
        .filter(fit.clone())
        .filter(Arc::new(volume_binding::VolumeBinding))
        .filter(spread.clone())
        .filter(pods.clone())
        .score(3, taints)
        .score(2, affinity)
        .score(1, fit)
        .score(2, spread)
        .score(2, pods)
        .score(1, Arc::new(balanced_allocation::BalancedAllocation))
        .score(1, Arc::new(image_locality::ImageLocality))
        .post_filter(Arc::new(default_preemption::DefaultPreemption::default()))
}

/// Scales scores so that the highest becomes the maximum; `reverse` makes the lowest the best (`helper.DefaultNormalizeScore`).
pub(crate) fn normalize(scores: &mut [i64], reverse: bool) {
    use crate::framework::MAX_NODE_SCORE;
    let highest = scores.iter().copied().max().unwrap_or(0);
    for score in scores {
        let scaled = if highest == 0 {
            0
        } else {
            MAX_NODE_SCORE * *score / highest
        };
        *score = if reverse {
            MAX_NODE_SCORE - scaled
        } else {
            scaled
        };
    }
}
