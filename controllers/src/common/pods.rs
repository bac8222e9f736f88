//! Questions about a pod that several controllers ask (upstream `api/v1/pod` and `controller_utils.go`).

use std::cmp::Ordering;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodCondition, Taint, Toleration};

use super::{annotations, created, name, uid};

/// Annotation that says which pods to delete first.
pub const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// The phase, empty when unset.
pub fn phase(pod: &Pod) -> &str {
    pod.status
        .as_ref()
        .and_then(|s| s.phase.as_deref())
        .unwrap_or_default()
}

/// The node, empty when not yet bound.
pub fn node_name(pod: &Pod) -> &str {
    pod.spec
        .as_ref()
        .and_then(|s| s.node_name.as_deref())
        .unwrap_or_default()
}

/// A condition by type.
pub fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status
        .as_ref()?
        .conditions
        .as_ref()?
        .iter()
        .find(|c| c.type_ == kind)
}

/// Whether all containers are done for good.
pub fn is_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Whether it is being deleted.
pub fn is_deleting(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Neither done nor being deleted (`IsPodActive`).
pub fn is_active(pod: &Pod) -> bool {
    !is_terminal(pod) && !is_deleting(pod)
}

/// Being deleted but not yet done (`IsPodTerminating`).
pub fn is_terminating(pod: &Pod) -> bool {
    !is_terminal(pod) && is_deleting(pod)
}

/// Whether the Ready condition holds.
pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|c| c.status == "True")
}

/// Since when it is ready.
pub fn ready_since(pod: &Pod) -> Option<Timestamp> {
    condition(pod, "Ready")
        .filter(|c| c.status == "True")
        .and_then(|c| c.last_transition_time.as_ref())
        .map(|t| t.0)
}

/// Ready for at least `min_ready` seconds (`IsPodAvailable`).
pub fn is_available(pod: &Pod, min_ready: i32, now: Timestamp) -> bool {
    if !is_ready(pod) {
        return false;
    }
    min_ready == 0
        || ready_since(pod).is_some_and(|since| {
            now.duration_since(since) >= SignedDuration::from_secs(i64::from(min_ready))
        })
}

/// Whether a toleration covers a taint (upstream `Toleration.ToleratesTaint`; an unknown operator covers nothing).
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let of = |text: &Option<String>| text.clone().unwrap_or_default();
    let (effect, key) = (of(&toleration.effect), of(&toleration.key));
    (effect.is_empty() || effect == taint.effect)
        && (key.is_empty() || key == taint.key)
        && match toleration.operator.as_deref() {
            None | Some("" | "Equal") => of(&toleration.value) == of(&taint.value),
            Some("Exists") => true,
            Some(_) => false,
        }
}

/// How often the containers restarted, the most of one container; regular ones and sidecars apart.
fn restarts(pod: &Pod) -> i32 {
    pod.status
        .as_ref()
        .and_then(|s| s.container_statuses.as_ref())
        .into_iter()
        .flatten()
        .map(|c| c.restart_count)
        .max()
        .unwrap_or(0)
}

fn deletion_cost(pod: &Pod) -> i32 {
    annotations(&pod.metadata)
        .get(DELETION_COST)
        .and_then(|cost| cost.parse().ok())
        .unwrap_or(0)
}

fn phase_rank(pod: &Pod) -> u8 {
    match phase(pod) {
        "Pending" => 0,
        "Unknown" | "" => 1,
        _ => 2,
    }
}

/// Ages compare by their order of magnitude, so that which pod goes is not always the newest
/// (`ActivePodsWithRanks`, LogarithmicScaleDown).
fn log_age(since: Option<Timestamp>, now: Timestamp) -> i64 {
    match since {
        None => -1,
        Some(since) => {
            let nanos = now.duration_since(since).as_nanos();
            if nanos <= 0 {
                0
            } else {
                (nanos as f64).log2() as i64
            }
        }
    }
}

/// Which of two pods a scale-down deletes first: `Less` for the left one. `crowd` is how many pods of the same
/// owner share its node.
pub fn deletion_order(
    a: &Pod,
    a_crowd: usize,
    b: &Pod,
    b_crowd: usize,
    now: Timestamp,
) -> Ordering {
    let assigned = |p: &Pod| !node_name(p).is_empty();
    assigned(a)
        .cmp(&assigned(b))
        .then(phase_rank(a).cmp(&phase_rank(b)))
        .then(is_ready(a).cmp(&is_ready(b)))
        .then(deletion_cost(a).cmp(&deletion_cost(b)))
        .then(b_crowd.cmp(&a_crowd))
        .then_with(|| {
            if is_ready(a) && is_ready(b) {
                // Ready for a shorter time goes first; an unknown time counts as just now.
                log_age(ready_since(a), now).cmp(&log_age(ready_since(b), now))
            } else {
                Ordering::Equal
            }
        })
        .then(restarts(b).cmp(&restarts(a)))
        .then_with(|| log_age(created(&a.metadata), now).cmp(&log_age(created(&b.metadata), now)))
        .then_with(|| uid(&a.metadata).cmp(uid(&b.metadata)))
        .then_with(|| name(&a.metadata).cmp(name(&b.metadata)))
}
