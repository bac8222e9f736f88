//! What to write for a DaemonSet: a pure function of it, the nodes and its pods.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod};

use super::nodes::{Fit, add_tolerations, fit, pin, target};
use crate::common::pod_control::pod_from_template;
use crate::common::pods::{is_available, is_deleting, is_ready, phase};
use crate::common::{controller_reference, created, labels, name};
use crate::deployment::scale::resolve;

/// Says which revision a pod is of.
pub const REVISION_HASH: &str = "controller-revision-hash";
/// The older form of the same.
pub const GENERATION: &str = "pod-template-generation";
/// Pods made or deleted in one pass.
const BURST: usize = 250;

/// What one pass should do.
#[derive(Debug, Default)]
pub struct Plan {
    /// Names of nodes that get a pod.
    pub create: Vec<String>,
    /// Pods to end.
    pub delete: Vec<Arc<Pod>>,
    /// Those of them that failed: they go with an event, and not too often.
    pub failed: Vec<Arc<Pod>>,
    /// The status as it now is.
    pub status: DaemonSetStatus,
}

/// The pod for a node.
pub fn pod(set: &DaemonSet, node: &str, hash: &str) -> Pod {
    let template = set
        .spec
        .as_ref()
        .map(|s| s.template.clone())
        .unwrap_or_default();
    let mut pod = pod_from_template(&template, name(&set.metadata), controller_reference(set));
    let spec = pod.spec.get_or_insert_default();
    add_tolerations(spec);
    pin(spec, node);
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(REVISION_HASH.to_owned(), hash.to_owned());
    if let Some(generation) = template_generation(set) {
        labels.insert(GENERATION.to_owned(), generation.to_string());
    }
    pod
}

fn template_generation(set: &DaemonSet) -> Option<i64> {
    set.metadata
        .annotations
        .as_ref()?
        .get("deprecated.daemonset.template.generation")?
        .parse()
        .ok()
}

/// Whether a pod runs the current template (`IsPodUpdated`).
fn is_updated(set: &DaemonSet, pod: &Pod, hash: &str) -> bool {
    let labels = labels(&pod.metadata);
    labels.get(REVISION_HASH).map(String::as_str) == Some(hash)
        || template_generation(set)
            .is_some_and(|g| labels.get(GENERATION).map(String::as_str) == Some(&g.to_string()))
}

struct Place<'a> {
    node: &'a str,
    fit: Fit,
    pods: Vec<&'a Arc<Pod>>,
}

/// Plans one pass. `may_manage` is false while earlier writes are not all seen: then only the status is told.
pub fn plan(
    set: &DaemonSet,
    hash: &str,
    nodes: &[Arc<Node>],
    pods: &[Arc<Pod>],
    may_manage: bool,
    now: Timestamp,
) -> Plan {
    let Some(spec) = set.spec.as_ref() else {
        return Plan::default();
    };
    let mut pod_spec = spec.template.spec.clone().unwrap_or_default();
    add_tolerations(&mut pod_spec);
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    let mut by_node: BTreeMap<&str, Vec<&Arc<Pod>>> = BTreeMap::new();
    for pod in pods {
        by_node
            .entry(target(pod).unwrap_or_default())
            .or_default()
            .push(pod);
    }
    let mut places: Vec<_> = nodes
        .iter()
        .map(|node| {
            let own = name(&node.metadata);
            let mut pods = by_node.remove(own).unwrap_or_default();
            pods.sort_by_key(|p| (created(&p.metadata), name(&p.metadata)));
            Place {
                node: own,
                fit: fit(&pod_spec, node),
                pods,
            }
        })
        .collect();
    places.sort_by_key(|p| p.node);
    let mut plan = Plan {
        status: status(set, hash, &places, min_ready, now),
        ..Default::default()
    };
    if !may_manage || set.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let desired = plan.status.desired_number_scheduled;
    let rolling = spec.update_strategy.as_ref();
    let is_rolling = rolling.and_then(|s| s.type_.as_deref()) != Some("OnDelete");
    let numbers = rolling.and_then(|s| s.rolling_update.as_ref());
    let surge = numbers
        .and_then(|n| n.max_surge.as_ref())
        .map_or(0, |v| resolve(v, desired, true));
    let mut unavailable = numbers
        .and_then(|n| n.max_unavailable.as_ref())
        .map_or(1, |v| resolve(v, desired, true));
    if surge == 0 && unavailable == 0 {
        unavailable = 1;
    }
    let surging = is_rolling && surge > 0;
    for place in &places {
        manage(set, hash, place, surging, min_ready, now, &mut plan);
    }
    // Pods of nodes that are gone are the pod collector's; those that name no node at all are passed over, as upstream does.
    if is_rolling && plan.create.is_empty() && plan.delete.is_empty() && plan.failed.is_empty() {
        let step = Step {
            set,
            hash,
            min_ready,
            now,
        };
        if surge > 0 {
            step.surge(&places, surge, &mut plan);
        } else {
            step.replace(&places, unavailable, &mut plan);
        }
    }
    plan.create.truncate(BURST);
    plan.delete.truncate(BURST);
    plan
}

/// One pod on each node that should have one, none elsewhere (`podsShouldBeOnNode`).
fn manage(
    set: &DaemonSet,
    hash: &str,
    place: &Place<'_>,
    surging: bool,
    min_ready: i32,
    now: Timestamp,
    plan: &mut Plan,
) {
    if !place.fit.stay {
        plan.delete.extend(
            place
                .pods
                .iter()
                .filter(|p| !is_deleting(p))
                .map(|p| (*p).clone()),
        );
        return;
    }
    let mut alive = Vec::new();
    for pod in &place.pods {
        if is_deleting(pod) {
            continue;
        }
        match phase(pod) {
            // It has a restart policy of Always: whoever ended it, it must come back.
            "Failed" => plan.failed.push((*pod).clone()),
            "Succeeded" => plan.delete.push((*pod).clone()),
            _ => alive.push(*pod),
        }
    }
    if alive.is_empty() {
        // One that is on its way out is waited for, unless another may come beside it.
        let leaving = place.pods.iter().any(|p| is_deleting(p));
        let failed = plan.failed.iter().any(|f| target(f) == Some(place.node));
        if place.fit.run && !failed && (!leaving || surging) {
            plan.create.push(place.node.to_owned());
        }
        return;
    }
    if alive.len() < 2 {
        return;
    }
    let (new, old): (Vec<&Arc<Pod>>, Vec<&Arc<Pod>>) = alive
        .iter()
        .copied()
        .partition(|p| is_updated(set, p, hash));
    if surging && !old.is_empty() && !new.is_empty() {
        // The old one stays until the new one is available.
        if new.iter().any(|p| is_available(p, min_ready, now)) {
            plan.delete.extend(old.into_iter().cloned());
        }
        plan.delete.extend(new.into_iter().skip(1).cloned());
        return;
    }
    // More than one for no reason: the oldest stays, an assigned one before one that is not.
    let mut sorted = alive;
    sorted.sort_by_key(|p| (!is_ready(p), created(&p.metadata)));
    plan.delete
        .extend(sorted.into_iter().skip(1).map(|p| (*p).clone()));
}

struct Step<'a> {
    set: &'a DaemonSet,
    hash: &'a str,
    min_ready: i32,
    now: Timestamp,
}

impl Step<'_> {
    fn available(&self, pod: &Pod) -> bool {
        !is_deleting(pod) && is_available(pod, self.min_ready, self.now)
    }

    /// The old and the new pod of a place.
    fn pair<'a>(&self, place: &Place<'a>) -> (Option<&'a Arc<Pod>>, Option<&'a Arc<Pod>>) {
        let alive = || place.pods.iter().filter(|p| !is_deleting(p)).copied();
        let new = alive().find(|p| is_updated(self.set, p, self.hash));
        let old = alive().find(|p| !is_updated(self.set, p, self.hash));
        (old, new)
    }

    /// Old pods go, as many as may be unavailable; those that are so anyway go first and cost nothing.
    fn replace(&self, places: &[Place<'_>], most: i32, plan: &mut Plan) {
        let mut unavailable = 0;
        let mut broken = Vec::new();
        let mut candidates = Vec::new();
        for place in places.iter().filter(|p| p.fit.run) {
            match self.pair(place) {
                (_, Some(new)) => {
                    if !self.available(new) {
                        unavailable += 1;
                    }
                }
                (Some(old), None) => {
                    if self.available(old) {
                        candidates.push(old.clone());
                    } else {
                        unavailable += 1;
                        broken.push(old.clone());
                    }
                }
                (None, None) => unavailable += 1,
            }
        }
        let room = usize::try_from(most - unavailable).unwrap_or(0);
        plan.delete.extend(broken);
        plan.delete.extend(candidates.into_iter().take(room));
    }

    /// New pods come beside the old ones, as many as may; an old one goes when its successor is available.
    fn surge(&self, places: &[Place<'_>], most: i32, plan: &mut Plan) {
        let mut surging = 0;
        let mut candidates = Vec::new();
        let mut urgent = Vec::new();
        for place in places.iter().filter(|p| p.fit.run) {
            match self.pair(place) {
                (Some(old), Some(new)) => {
                    if self.available(new) {
                        plan.delete.push(old.clone());
                    } else {
                        surging += 1;
                    }
                }
                (Some(old), None) if self.available(old) => candidates.push(place.node.to_owned()),
                (Some(_), None) => urgent.push(place.node.to_owned()),
                _ => {}
            }
        }
        let room = usize::try_from(most - surging).unwrap_or(0);
        // Where the old one does not work anyway, nothing is lost by a second one.
        plan.create.extend(urgent);
        plan.create.extend(candidates.into_iter().take(room));
    }
}

fn status(
    set: &DaemonSet,
    hash: &str,
    places: &[Place<'_>],
    min_ready: i32,
    now: Timestamp,
) -> DaemonSetStatus {
    let old = set.status.clone().unwrap_or_default();
    let mut new = DaemonSetStatus {
        observed_generation: set.metadata.generation,
        collision_count: old.collision_count,
        conditions: old.conditions,
        ..Default::default()
    };
    let (mut updated, mut available) = (0, 0);
    for place in places {
        let scheduled = !place.pods.is_empty();
        if !place.fit.run {
            if scheduled {
                new.number_misscheduled += 1;
            }
            continue;
        }
        new.desired_number_scheduled += 1;
        if !scheduled {
            continue;
        }
        new.current_number_scheduled += 1;
        let alive = || place.pods.iter().filter(|p| !is_deleting(p));
        if alive().any(|p| is_ready(p)) {
            new.number_ready += 1;
        }
        if alive().any(|p| is_available(p, min_ready, now)) {
            available += 1;
        }
        if alive().any(|p| is_updated(set, p, hash)) {
            updated += 1;
        }
    }
    new.updated_number_scheduled = Some(updated).filter(|n| *n > 0);
    new.number_available = Some(available).filter(|n| *n > 0);
    new.number_unavailable = Some(new.desired_number_scheduled - available).filter(|n| *n > 0);
    new
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn set(strategy: serde_json::Value) -> DaemonSet {
        serde_json::from_value(json!({
            "metadata": {"name": "d", "namespace": "ns", "uid": "d", "generation": 2},
            "spec": {"selector": {"matchLabels": {"app": "d"}}, "updateStrategy": strategy,
                "template": {"metadata": {"labels": {"app": "d"}}, "spec": {"containers": []}}},
        }))
        .unwrap()
    }

    fn nodes(n: usize) -> Vec<Arc<Node>> {
        (0..n)
            .map(|i| {
                Arc::new(
                    serde_json::from_value(json!({"metadata": {"name": format!("n{i}")}})).unwrap(),
                )
            })
            .collect()
    }

    fn running(set: &DaemonSet, node: &str, hash: &str, ready: bool, phase: &str) -> Arc<Pod> {
        let mut pod = pod(set, node, hash);
        pod.metadata.name = Some(format!("{node}-{hash}"));
        pod.metadata.uid = pod.metadata.name.clone();
        pod.spec.as_mut().unwrap().node_name = Some(node.into());
        pod.status = serde_json::from_value(json!({"phase": phase,
            "conditions": [{"type": "Ready", "status": if ready {"True"} else {"False"}}]}))
        .unwrap();
        Arc::new(pod)
    }

    fn names(pods: &[Arc<Pod>]) -> Vec<&str> {
        pods.iter().map(|p| name(&p.metadata)).collect()
    }

    #[test]
    fn one_on_every_node() {
        let set = set(json!({}));
        let now = Timestamp::UNIX_EPOCH;
        let first = plan(&set, "v1", &nodes(3), &[], true, now);
        assert_eq!(first.create, ["n0", "n1", "n2"]);
        assert_eq!(plan(&set, "v1", &nodes(3), &[], false, now).create.len(), 0);
        let pods = [
            running(&set, "n0", "v1", true, "Running"),
            running(&set, "n1", "v1", false, "Failed"),
            running(&set, "gone", "v1", true, "Running"),
        ];
        let second = plan(&set, "v1", &nodes(3), &pods, true, now);
        assert_eq!(
            (second.create, names(&second.failed)),
            (vec!["n2".to_string()], vec!["n1-v1"])
        );
        let s = second.status;
        assert_eq!(
            (
                s.desired_number_scheduled,
                s.current_number_scheduled,
                s.number_ready,
                s.number_available,
                s.number_unavailable
            ),
            (3, 2, 1, Some(1), Some(2))
        );
    }

    #[test]
    fn rolling_within_what_may_be_unavailable() {
        let now = Timestamp::UNIX_EPOCH;
        let set = set(json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 2}}));
        let mut pods: Vec<_> = (0..4)
            .map(|i| running(&set, &format!("n{i}"), "v1", true, "Running"))
            .collect();
        let first = plan(&set, "v2", &nodes(4), &pods, true, now);
        assert_eq!(names(&first.delete), ["n0-v1", "n1-v1"]);
        pods[0] = running(&set, "n0", "v2", false, "Running");
        let second = plan(&set, "v2", &nodes(4), &pods, true, now);
        assert_eq!(names(&second.delete), ["n1-v1"]);
        pods[3] = running(&set, "n3", "v1", false, "Running");
        let third = plan(&set, "v2", &nodes(4), &pods, true, now);
        assert_eq!(names(&third.delete), ["n3-v1"], "what is broken goes first");
    }

    #[test]
    fn surging_brings_the_new_before_the_old_goes() {
        let now = Timestamp::UNIX_EPOCH;
        let set = set(
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}),
        );
        let mut pods: Vec<_> = (0..2)
            .map(|i| running(&set, &format!("n{i}"), "v1", true, "Running"))
            .collect();
        let first = plan(&set, "v2", &nodes(2), &pods, true, now);
        assert_eq!(
            (first.create, first.delete.len()),
            (vec!["n0".to_string()], 0)
        );
        pods.push(running(&set, "n0", "v2", false, "Running"));
        let second = plan(&set, "v2", &nodes(2), &pods, true, now);
        assert_eq!((second.create.len(), second.delete.len()), (0, 0));
        pods[2] = running(&set, "n0", "v2", true, "Running");
        let third = plan(&set, "v2", &nodes(2), &pods, true, now);
        assert_eq!(names(&third.delete), ["n0-v1"]);
    }
}
