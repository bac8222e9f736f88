//! `DefaultPreemption`: when no node has room, finds one where removing less important pods makes room.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;

use crate::algorithm::fit_message;
use crate::framework::{
    Code, Diagnosis, FailedCycle, Filters, Plugin, PostFilter, PostFilterPlugin, Rejection,
};
use crate::labels::Selector;
use crate::node::NodeInfo;
use crate::nominator::Nominator;
use crate::pod::{PendingPod, PodInfo};
use crate::snapshot::Snapshot;

/// The plugin with its arguments (`DefaultPreemptionArgs`).
pub struct DefaultPreemption {
    /// The least share of nodes looked at, in percent.
    pub min_candidate_nodes_percentage: usize,
    /// The least number of nodes looked at.
    pub min_candidate_nodes_absolute: usize,
}

impl Default for DefaultPreemption {
    fn default() -> Self {
        DefaultPreemption {
            min_candidate_nodes_percentage: 10,
            min_candidate_nodes_absolute: 100,
        }
    }
}

impl Plugin for DefaultPreemption {
    fn name(&self) -> &'static str {
        "DefaultPreemption"
    }
}

/// A node and who would have to leave it, the most important first.
#[derive(Debug, Clone)]
struct Candidate {
    node: Arc<str>,
    victims: Vec<Arc<PodInfo>>,
    violations: usize,
}

impl PostFilterPlugin for DefaultPreemption {
    fn post_filter(&self, cycle: &FailedCycle<'_>) -> PostFilter {
        if let Err(why) = may_preempt(cycle) {
            return PostFilter::Unchanged(format!("preemption: {why}"));
        }
        let (candidates, statuses) = self.candidates(cycle);
        match pick(candidates) {
            Some(best) => PostFilter::Preempt {
                node: best.node,
                victims: best.victims,
            },
            None => {
                let absent = Rejection::unresolvable("Preemption is not helpful for scheduling");
                let diagnosis = Diagnosis {
                    rejected: statuses,
                    absent: Some(absent),
                    ..Diagnosis::default()
                };
                let message = fit_message(cycle.snapshot.node_count(), &diagnosis);
                PostFilter::Hopeless(format!("preemption: {message}"))
            }
        }
    }
}

/// Whether the pod may preempt at all, and has not already done so (`PodEligibleToPreemptOthers`).
fn may_preempt(cycle: &FailedCycle<'_>) -> Result<(), &'static str> {
    let pod = cycle.pod;
    if pod.never_preempts {
        return Err("not eligible due to preemptionPolicy=Never.");
    }
    let nominated = cycle
        .nominator
        .node_of(&pod.info.uid)
        .or(pod.info.nominated_node.as_deref());
    let Some(node) = nominated.and_then(|name| cycle.snapshot.node_by_name(name)) else {
        return Ok(());
    };
    let hopeless = cycle
        .diagnosis
        .rejected
        .iter()
        .any(|(index, r)| *index == node.index && r.code == Code::UnschedulableAndUnresolvable);
    let leaving = node
        .pods
        .iter()
        .any(|p| p.preempted && p.priority < pod.info.priority);
    if !hopeless && leaving {
        return Err("not eligible due to a terminating pod on the nominated node.");
    }
    Ok(())
}

impl DefaultPreemption {
    fn candidates(&self, cycle: &FailedCycle<'_>) -> (Vec<Candidate>, Vec<(usize, Rejection)>) {
        let preemptible = |r: &Rejection| r.code == Code::Unschedulable;
        let mut potential: Vec<usize> = cycle
            .diagnosis
            .rejected
            .iter()
            .filter(|(_, r)| preemptible(r))
            .map(|(i, _)| *i)
            .collect();
        if cycle.diagnosis.absent.as_ref().is_some_and(preemptible) {
            let tried: std::collections::HashSet<usize> =
                cycle.diagnosis.rejected.iter().map(|(i, _)| *i).collect();
            potential.extend(
                cycle
                    .snapshot
                    .nodes()
                    .map(|n| n.index)
                    .filter(|i| !tried.contains(i)),
            );
        }
        let mut statuses = Vec::new();
        let Ok(filters) = cycle.framework.run_pre_filter(cycle.snapshot, cycle.pod) else {
            return (Vec::new(), statuses);
        };
        if potential.is_empty() {
            return (Vec::new(), statuses);
        }
        let wanted = (potential.len() * self.min_candidate_nodes_percentage / 100)
            .max(self.min_candidate_nodes_absolute)
            .min(potential.len());
        let offset = (cycle.seed % potential.len() as u64) as usize;
        let mut good = Vec::new();
        let mut violating = Vec::new();
        for step in 0..potential.len() {
            let index = potential[(offset + step) % potential.len()];
            let node = cycle.snapshot.node(index);
            match victims_on(
                cycle.snapshot,
                cycle.pod,
                node,
                filters.duplicate(),
                cycle.nominator,
            ) {
                Ok(candidate) if candidate.violations == 0 => good.push(candidate),
                Ok(candidate) => violating.push(candidate),
                Err(rejection) => statuses.push((index, rejection)),
            }
            // Enough are known once there are this many, of which at least one harms no budget.
            if !good.is_empty() && good.len() + violating.len() >= wanted {
                break;
            }
        }
        good.extend(violating);
        (good, statuses)
    }
}

/// The fewest and least important pods that must leave `node` for `pod` to fit (`SelectVictimsOnNode`).
fn victims_on(
    snapshot: &Snapshot,
    pod: &PendingPod,
    node: &NodeInfo,
    mut filters: Filters<'_>,
    nominator: &Nominator,
) -> Result<Candidate, Rejection> {
    let mut node = node.clone();
    let mut potential: Vec<Arc<PodInfo>> = node
        .pods
        .iter()
        .filter(|p| p.priority < pod.info.priority)
        .cloned()
        .collect();
    if potential.is_empty() {
        return Err(Rejection::unresolvable(
            "No preemption victims found for incoming pod",
        ));
    }
    for victim in &potential {
        node.remove_pod(&victim.uid);
        filters.remove_pod(victim, &node);
    }
    filters
        .run_with_nominated(pod, &node, nominator)
        .map_err(|(_, rejection)| rejection)?;

    potential.sort_by_key(|p| importance(p));
    let (violating, harmless) = split_by_budgets(snapshot, &potential);
    let mut victims = Vec::new();
    let mut violations = 0;
    // The most important are given the first chance to stay.
    for (candidates, harmful) in [(&violating, true), (&harmless, false)] {
        for victim in candidates {
            node.add_pod(victim.clone());
            filters.add_pod(victim, &node);
            if filters.run_with_nominated(pod, &node, nominator).is_err() {
                node.remove_pod(&victim.uid);
                filters.remove_pod(victim, &node);
                victims.push(victim.clone());
                violations += usize::from(harmful);
            }
        }
    }
    victims.sort_by_key(|p| importance(p));
    if victims.is_empty() {
        return Err(Rejection::unresolvable(
            "No preemption victims found for incoming pod",
        ));
    }
    Ok(Candidate {
        node: node.name.clone(),
        victims,
        violations,
    })
}

/// Sorts more important pods first: by priority, then by how long they run (`util.MoreImportantPod`).
fn importance(pod: &PodInfo) -> (std::cmp::Reverse<i32>, Timestamp) {
    (
        std::cmp::Reverse(pod.priority),
        pod.start_time.unwrap_or(Timestamp::MAX),
    )
}

type Pods = Vec<Arc<PodInfo>>;

/// Those whose eviction would break a disruption budget, and the rest (`filterPodsWithPDBViolation`).
fn split_by_budgets(snapshot: &Snapshot, pods: &[Arc<PodInfo>]) -> (Pods, Pods) {
    let mut allowed: BTreeMap<&str, i32> = BTreeMap::new();
    let budgets: Vec<_> = snapshot
        .budgets
        .iter()
        .map(|(key, budget)| {
            let left = budget
                .status
                .as_ref()
                .and_then(|s| s.disruptions_allowed)
                .unwrap_or(0);
            allowed.insert(key, left);
            let selector =
                Selector::from_api(budget.spec.as_ref().and_then(|s| s.selector.as_ref()));
            (key.as_str(), budget, selector)
        })
        .collect();
    let (mut violating, mut harmless) = (Vec::new(), Vec::new());
    for pod in pods {
        let mut violates = false;
        for (key, budget, selector) in &budgets {
            let same_namespace =
                budget.metadata.namespace.as_deref() == Some(pod.namespace.as_str());
            if pod.labels.is_empty()
                || !same_namespace
                || selector.is_everything()
                || !selector.matches(&pod.labels)
            {
                continue;
            }
            let already_counted = budget
                .status
                .as_ref()
                .and_then(|s| s.disrupted_pods.as_ref())
                .is_some_and(|d| d.contains_key(&pod.name));
            if already_counted {
                continue;
            }
            if let Some(left) = allowed.get_mut(key) {
                *left -= 1;
                violates |= *left < 0;
            }
        }
        if violates {
            violating.push(pod.clone())
        } else {
            harmless.push(pod.clone())
        }
    }
    (violating, harmless)
}

/// The least harmful candidate (`pickOneNodeForPreemption`): fewest broken budgets, lowest top priority, lowest sum of
/// priorities, fewest pods, and the latest start of the most important victims.
fn pick(candidates: Vec<Candidate>) -> Option<Candidate> {
    candidates.into_iter().min_by_key(|c| {
        let top = c.victims.first().map_or(i32::MIN, |v| v.priority);
        let sum: i64 = c
            .victims
            .iter()
            .map(|v| i64::from(v.priority) + i64::from(i32::MAX) + 1)
            .sum();
        let earliest_of_top = c
            .victims
            .iter()
            .filter(|v| v.priority == top)
            .map(|v| v.start_time.unwrap_or(Timestamp::MAX))
            .min();
        (
            c.violations,
            top,
            sum,
            c.victims.len(),
            std::cmp::Reverse(earliest_of_top),
        )
    })
}
