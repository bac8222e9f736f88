//! `ImageLocality`: nodes that already hold the pod's images rank higher.

use std::collections::HashMap;

use crate::framework::{MAX_NODE_SCORE, NodeScorer, Plugin, ScorePlugin};
use crate::node::NodeInfo;
use crate::pod::PendingPod;
use crate::snapshot::Snapshot;

const MEBIBYTE: i64 = 1024 * 1024;
/// Below this many bytes an image does not matter (`minThreshold`).
const MIN_THRESHOLD: i64 = 23 * MEBIBYTE;
/// Above this many bytes per container it matters no more (`maxContainerThreshold`).
const MAX_CONTAINER_THRESHOLD: i64 = 1000 * MEBIBYTE;

/// The plugin.
pub struct ImageLocality;

impl Plugin for ImageLocality {
    fn name(&self) -> &'static str {
        "ImageLocality"
    }
}

impl ScorePlugin for ImageLocality {
    fn pre_score<'s>(
        &self,
        snapshot: &'s Snapshot,
        pod: &'s PendingPod,
        _feasible: &[&'s NodeInfo],
    ) -> Option<Box<dyn NodeScorer + 's>> {
        let images: Vec<_> = pod
            .images
            .iter()
            .filter_map(|name| snapshot.image(name))
            .collect();
        if images.is_empty() {
            return None;
        }
        Some(Box::new(Scorer {
            images,
            total_nodes: snapshot.node_count(),
            containers: pod.container_count as i64,
        }))
    }
}

struct Scorer<'s> {
    images: Vec<&'s HashMap<usize, i64>>,
    total_nodes: usize,
    containers: i64,
}

impl<'s> NodeScorer for Scorer<'s> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let sum = self.images.iter().filter_map(|nodes| {
            let size = *nodes.get(&node.index)?;
            // An image that few nodes hold counts less, so that pods are not all drawn to those few.
            let spread = nodes.len() as f64 / self.total_nodes as f64;
            Some((size as f64 * spread) as i64)
        });
        priority(sum.sum(), self.containers)
    }
}

fn priority(sum: i64, containers: i64) -> i64 {
    let max = MAX_CONTAINER_THRESHOLD * containers.max(1);
    MAX_NODE_SCORE * (sum.clamp(MIN_THRESHOLD, max) - MIN_THRESHOLD) / (max - MIN_THRESHOLD)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priorities() {
        for (sum, containers, want) in [
            (0, 1, 0),
            (MIN_THRESHOLD, 1, 0),
            (MAX_CONTAINER_THRESHOLD, 1, 100),
            (MAX_CONTAINER_THRESHOLD * 9, 2, 100),
            (MAX_CONTAINER_THRESHOLD, 2, 49),
        ] {
            assert_eq!(priority(sum, containers), want, "{sum} {containers}");
        }
    }
}
