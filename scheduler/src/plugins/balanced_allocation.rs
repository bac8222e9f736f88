//! `NodeResourcesBalancedAllocation`: nodes on which the pod evens out the use of CPU and memory rank higher.

use crate::framework::{MAX_NODE_SCORE, NodeScorer, Plugin, ScorePlugin};
use crate::node::NodeInfo;
use crate::pod::PendingPod;
use crate::resources::Resource;
use crate::snapshot::Snapshot;

/// The plugin.
pub struct BalancedAllocation;

impl Plugin for BalancedAllocation {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }
}

impl ScorePlugin for BalancedAllocation {
    fn pre_score<'s>(
        &self,
        _snapshot: &'s Snapshot,
        pod: &'s PendingPod,
        _feasible: &[&'s NodeInfo],
    ) -> Option<Box<dyn NodeScorer + 's>> {
        let wanted = &pod.info.requests.requests;
        // A pod that asks for neither would be drawn to one node again and again.
        (wanted.milli_cpu != 0 || wanted.memory != 0)
            .then(|| Box::new(Scorer(wanted)) as Box<dyn NodeScorer + 's>)
    }
}

struct Scorer<'s>(&'s Resource);

impl<'s> NodeScorer for Scorer<'s> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let have = &node.spec().allocatable;
        let before = [
            (node.requested.milli_cpu, have.milli_cpu),
            (node.requested.memory, have.memory),
        ];
        let after = [
            (before[0].0 + self.0.milli_cpu, have.milli_cpu),
            (before[1].0 + self.0.memory, have.memory),
        ];
        // By how much the balance improves, around three quarters.
        MAX_NODE_SCORE / 2 + (MAX_NODE_SCORE / 2 + balance(&after) - balance(&before)) / 2
    }
}

/// From half (one resource used up, the other idle) to [`MAX_NODE_SCORE`] (both used alike).
fn balance(parts: &[(i64, i64); 2]) -> i64 {
    let share =
        |(used, have): (i64, i64)| (have != 0).then(|| (used as f64 / have as f64).min(1.0));
    let deviation = match (share(parts[0]), share(parts[1])) {
        (Some(a), Some(b)) => ((a - b) / 2.0).abs(),
        _ => 0.0,
    };
    ((1.0 - deviation) * MAX_NODE_SCORE as f64) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn balances() {
        for (parts, want) in [
            ([(0, 10), (0, 10)], 100),
            ([(10, 10), (0, 10)], 50),
            ([(5, 10), (10, 10)], 75),
            ([(20, 10), (10, 10)], 100),
            ([(5, 0), (5, 10)], 100),
        ] {
            assert_eq!(balance(&parts), want, "{parts:?}");
        }
    }
}
