//! Choosing a node for one pod: filter, score, pick. Pure over the snapshot.

use std::collections::BTreeMap;

use crate::framework::{Code, Diagnosis, Framework, PluginSet, Rejection, bracketed};
use crate::node::NodeInfo;
use crate::nominator::Nominator;
use crate::pod::PendingPod;
use crate::snapshot::Snapshot;

/// With fewer nodes than this all are looked at (`minFeasibleNodesToFind`).
const MIN_FEASIBLE_NODES: usize = 100;
/// The least share of nodes that the adaptive choice comes to, in percent (`minFeasibleNodesPercentageToFind`).
const MIN_FEASIBLE_PERCENTAGE: usize = 5;

/// A source of random numbers that can be replayed from its seed (xorshift64*).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Starts from `seed`.
    pub fn new(seed: u64) -> Self {
        Random(seed | 1)
    }

    /// The next number.
    pub fn next_number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
}

/// A node found for a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selected {
    /// Its name.
    pub node: String,
    /// How many nodes were looked at.
    pub evaluated: usize,
    /// How many of them would do.
    pub feasible: usize,
}

/// Why no node was found.
#[derive(Debug, Clone)]
pub enum Failure {
    /// There are no nodes (`ErrNoNodesAvailable`).
    NoNodes,
    /// None fits (`framework.FitError`).
    Unfit(Diagnosis),
}

/// How many feasible nodes suffice among `all` (`numFeasibleNodesToFind`).
pub fn feasible_nodes_to_find(percentage: u32, all: usize) -> usize {
    if all < MIN_FEASIBLE_NODES {
        return all;
    }
    let percentage = match percentage as usize {
        0 => 50usize
            .saturating_sub(all / 125)
            .max(MIN_FEASIBLE_PERCENTAGE),
        set => set,
    };
    (all * percentage / 100).max(MIN_FEASIBLE_NODES).min(all)
}

/// The scheduling algorithm with what it keeps from pod to pod.
#[derive(Debug)]
pub struct Algorithm {
    next_start: usize,
    random: Random,
}

impl Algorithm {
    /// Starts with a seed for choices among equals.
    pub fn new(seed: u64) -> Self {
        Algorithm {
            next_start: 0,
            random: Random::new(seed),
        }
    }

    /// A random number, for decisions beside it.
    pub fn random(&mut self) -> u64 {
        self.random.next_number()
    }

    /// Finds a node for `pod`. The snapshot's order must be fresh.
    pub fn schedule(
        &mut self,
        snapshot: &Snapshot,
        framework: &Framework,
        nominator: &Nominator,
        pod: &PendingPod,
    ) -> Result<Selected, Failure> {
        if snapshot.node_count() == 0 {
            return Err(Failure::NoNodes);
        }
        let (feasible, diagnosis) = self.feasible(snapshot, framework, nominator, pod)?;
        let evaluated = feasible.len() + diagnosis.rejected.len();
        match feasible.as_slice() {
            [] => Err(Failure::Unfit(diagnosis)),
            [only] => Ok(Selected {
                node: only.name.to_string(),
                evaluated,
                feasible: 1,
            }),
            many => {
                let scores = framework.run_score(snapshot, pod, many);
                let best = self.pick_best(&scores);
                Ok(Selected {
                    node: many[best].name.to_string(),
                    evaluated,
                    feasible: many.len(),
                })
            }
        }
    }

    fn feasible<'s>(
        &mut self,
        snapshot: &'s Snapshot,
        framework: &Framework,
        nominator: &Nominator,
        pod: &'s PendingPod,
    ) -> Result<(Vec<&'s NodeInfo>, Diagnosis), Failure> {
        let filters = framework
            .run_pre_filter(snapshot, pod)
            .map_err(Failure::Unfit)?;
        let mut diagnosis = Diagnosis {
            plugins: filters.only_by,
            ..Diagnosis::default()
        };

        // Where preemption made room, the pod most likely fits, and only there.
        let nominated = nominator
            .node_of(&pod.info.uid)
            .or(pod.info.nominated_node.as_deref());
        if let Some(node) = nominated.and_then(|name| snapshot.node_by_name(name))
            && filters.run_with_nominated(pod, node, nominator).is_ok()
        {
            return Ok((vec![node], diagnosis));
        }

        let mut feasible = Vec::new();
        let mut try_node = |node: &'s NodeInfo, feasible: &mut Vec<&'s NodeInfo>| match filters
            .run_with_nominated(pod, node, nominator)
        {
            Ok(()) => feasible.push(node),
            Err((plugin, rejection)) => {
                diagnosis.plugins.insert(plugin);
                diagnosis.rejected.push((node.index, rejection));
            }
        };
        if let Some(only) = &filters.only {
            for node in only.iter().filter_map(|name| snapshot.node_by_name(name)) {
                try_node(node, &mut feasible);
            }
            let names = bracketed(&framework.names(filters.only_by));
            diagnosis.absent = Some(Rejection {
                code: Code::UnschedulableAndUnresolvable,
                reasons: vec![format!("node(s) didn't satisfy plugin(s) {names}").into()],
            });
        } else {
            let all = snapshot.node_count();
            let wanted = feasible_nodes_to_find(framework.percentage_of_nodes_to_score, all);
            let mut processed = 0;
            while processed < all && feasible.len() < wanted {
                try_node(
                    snapshot.node_at((self.next_start + processed) % all),
                    &mut feasible,
                );
                processed += 1;
            }
            self.next_start = (self.next_start + processed) % all;
        }
        Ok((feasible, diagnosis))
    }

    /// The place of the highest score; among equals each is as likely.
    fn pick_best(&mut self, scores: &[i64]) -> usize {
        let (mut best, mut equals) = (0, 0u64);
        for (i, score) in scores.iter().enumerate() {
            if equals == 0 || *score > scores[best] {
                (best, equals) = (i, 1);
            } else if *score == scores[best] {
                equals += 1;
                if self.random.next_number().is_multiple_of(equals) {
                    best = i;
                }
            }
        }
        best
    }
}

/// What the user is told when no node fits (`FitError.Error`).
pub fn fit_message(all_nodes: usize, diagnosis: &Diagnosis) -> String {
    let mut message = format!("0/{all_nodes} nodes are available:");
    if let Some(pre_filter) = &diagnosis.pre_filter_message {
        if !pre_filter.is_empty() {
            message.push_str(&format!(" {pre_filter}."));
        }
    } else {
        let mut histogram: BTreeMap<&str, usize> = BTreeMap::new();
        for reason in diagnosis.rejected.iter().flat_map(|(_, r)| &r.reasons) {
            *histogram.entry(reason).or_default() += 1;
        }
        let absent = all_nodes.saturating_sub(diagnosis.rejected.len());
        if absent > 0 {
            for reason in diagnosis.absent.iter().flat_map(|r| &r.reasons) {
                *histogram.entry(reason).or_default() += absent;
            }
        }
        let mut lines: Vec<String> = histogram
            .iter()
            .map(|(reason, count)| format!("{count} {reason}"))
            .collect();
        lines.sort_unstable();
        if !lines.is_empty() {
            message.push_str(&format!(" {}.", lines.join(", ")));
        }
    }
    if !diagnosis.post_filter_message.is_empty() {
        message.push_str(&format!(" {}", diagnosis.post_filter_message));
    }
    message
}

/// The message of [`Failure`] and who is to blame.
pub fn describe(all_nodes: usize, failure: &Failure) -> (String, PluginSet) {
    match failure {
        Failure::NoNodes => (
            "no nodes available to schedule pods".to_owned(),
            PluginSet::default(),
        ),
        Failure::Unfit(diagnosis) => (fit_message(all_nodes, diagnosis), diagnosis.plugins),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_many_nodes_are_looked_at() {
        for (percentage, all, want) in [
            (0, 10, 10),
            (0, 99, 99),
            (0, 100, 100),
            (0, 1000, 420),
            (0, 5000, 500),
            (0, 6000, 300),
            (40, 1000, 400),
            (40, 200, 100),
            (100, 1000, 1000),
        ] {
            assert_eq!(
                feasible_nodes_to_find(percentage, all),
                want,
                "{percentage}% of {all}"
            );
        }
    }

    #[test]
    fn messages() {
        let rejected = |reasons: &[&'static str]| Rejection {
            code: Code::Unschedulable,
            reasons: reasons.iter().map(|r| (*r).into()).collect(),
        };
        let cases = [
            (
                3,
                Diagnosis {
                    rejected: vec![
                        (0, rejected(&["Insufficient cpu"])),
                        (1, rejected(&["node(s) had untolerated taint(s)"])),
                        (2, rejected(&["node(s) had untolerated taint(s)"])),
                    ],
                    ..Diagnosis::default()
                },
                "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) had untolerated taint(s).",
            ),
            (
                2,
                Diagnosis {
                    pre_filter_message: Some("pod affinity terms conflict".into()),
                    ..Diagnosis::default()
                },
                "0/2 nodes are available: pod affinity terms conflict.",
            ),
            (
                5,
                Diagnosis {
                    rejected: vec![(0, rejected(&["Too many pods", "Insufficient cpu"]))],
                    absent: Some(rejected(&[
                        "node(s) didn't satisfy plugin(s) [NodeAffinity]",
                    ])),
                    post_filter_message: "preemption: nothing.".into(),
                    ..Diagnosis::default()
                },
                "0/5 nodes are available: 1 Insufficient cpu, 1 Too many pods, 4 node(s) didn't satisfy plugin(s) [NodeAffinity]. preemption: nothing.",
            ),
        ];
        for (nodes, diagnosis, want) in cases {
            assert_eq!(fit_message(nodes, &diagnosis), want);
        }
    }

    #[test]
    fn equals_share_the_choice() {
        let mut algorithm = Algorithm::new(7);
        let mut seen = [0; 4];
        for _ in 0..3000 {
            seen[algorithm.pick_best(&[5, 9, 9, 9])] += 1;
        }
        assert_eq!(seen[0], 0);
        assert!(
            seen[1..].iter().all(|n| (800..1200).contains(n)),
            "{seen:?}"
        );
    }
}
