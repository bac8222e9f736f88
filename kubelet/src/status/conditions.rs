//! The conditions of a pod that the kubelet owns (upstream `pkg/kubelet/status/generate.go`).

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodCondition, PodStatus};

use crate::pod::resize::View;
use crate::podutil;

/// Whether the kubelet owns conditions of that type (upstream `types.PodConditionByKubelet`).
pub fn is_ours(kind: &str) -> bool {
    matches!(
        kind,
        "PodScheduled"
            | "Ready"
            | "Initialized"
            | "ContainersReady"
            | "PodReadyToStartContainers"
            | "PodResizePending"
            | "PodResizeInProgress"
            | "AllContainersRestarting"
    )
}

/// The conditions that come and go with resizes.
pub const RESIZES: [&str; 2] = ["PodResizePending", "PodResizeInProgress"];

/// A condition without times; those are set where it is compared with the last one.
pub fn make(pod: &Pod, kind: &str, status: bool, reason: &str, message: String) -> PodCondition {
    PodCondition {
        type_: kind.to_owned(),
        status: if status { "True" } else { "False" }.to_owned(),
        reason: (!reason.is_empty()).then(|| reason.to_owned()),
        message: (!message.is_empty()).then_some(message),
        observed_generation: pod.metadata.generation,
        last_probe_time: None,
        last_transition_time: None,
    }
}

/// `PodResizePending` and `PodResizeInProgress`, where they hold.
pub fn resizes(pod: &Pod, view: &View) -> Vec<PodCondition> {
    let pending = view.pending.as_ref();
    let pending = pending.map(|p| make(pod, RESIZES[0], true, p.reason, p.message.clone()));
    let progress = view.in_progress.as_ref().map(|error| match error {
        Some(error) => make(pod, RESIZES[1], true, "Error", error.clone()),
        None => make(pod, RESIZES[1], true, "", String::new()),
    });
    pending.into_iter().chain(progress).collect()
}

fn list(names: &[&str]) -> String {
    format!("[{}]", names.join(" "))
}

/// `ContainersReady`, and what `Ready` starts from.
pub fn containers_ready(pod: &Pod, statuses: &[ContainerStatus], phase: &str) -> PodCondition {
    let (mut unknown, mut unready) = (Vec::new(), Vec::new());
    let relevant = podutil::init_containers(pod)
        .iter()
        .filter(|c| podutil::is_sidecar(c))
        .chain(podutil::containers(pod));
    for c in relevant {
        match podutil::status_of(statuses, &c.name) {
            Some(s) if s.ready => {}
            Some(_) => unready.push(c.name.as_str()),
            None => unknown.push(c.name.as_str()),
        }
    }
    let kind = "ContainersReady";
    if phase == "Succeeded" && unknown.is_empty() {
        return make(pod, kind, false, "PodCompleted", String::new());
    }
    if phase == "Failed" {
        return make(pod, kind, false, "PodFailed", String::new());
    }
    let mut messages = Vec::new();
    if !unknown.is_empty() {
        messages.push(format!(
            "containers with unknown status: {}",
            list(&unknown)
        ));
    }
    if !unready.is_empty() {
        messages.push(format!(
            "containers with unready status: {}",
            list(&unready)
        ));
    }
    if messages.is_empty() {
        make(pod, kind, true, "", String::new())
    } else {
        make(pod, kind, false, "ContainersNotReady", messages.join(", "))
    }
}

/// `Ready`: all containers, and the readiness gates among `others`.
pub fn ready(
    pod: &Pod,
    others: &[PodCondition],
    statuses: &[ContainerStatus],
    phase: &str,
) -> PodCondition {
    let base = containers_ready(pod, statuses, phase);
    if base.status != "True" {
        return PodCondition {
            type_: "Ready".to_owned(),
            ..base
        };
    }
    let mut messages = Vec::new();
    for gate in podutil::spec(pod).readiness_gates.iter().flatten() {
        match podutil::condition(others, &gate.condition_type) {
            None => messages.push(format!(
                "corresponding condition of pod readiness gate {:?} does not exist.",
                gate.condition_type
            )),
            Some(c) if c.status != "True" => messages.push(format!(
                "the status of pod readiness gate {:?} is not \"True\", but {}",
                gate.condition_type, c.status
            )),
            Some(_) => {}
        }
    }
    if messages.is_empty() {
        make(pod, "Ready", true, "", String::new())
    } else {
        make(
            pod,
            "Ready",
            false,
            "ReadinessGatesNotReady",
            messages.join(", "),
        )
    }
}

/// `Initialized`.
pub fn initialized(
    pod: &Pod,
    old: &PodStatus,
    statuses: &[ContainerStatus],
    phase: &str,
) -> PodCondition {
    let kind = "Initialized";
    let (mut unknown, mut incomplete) = (Vec::new(), Vec::new());
    for c in podutil::init_containers(pod) {
        match podutil::status_of(statuses, &c.name) {
            None => unknown.push(c.name.as_str()),
            Some(s) => {
                let done = if podutil::is_sidecar(c) {
                    s.started == Some(true)
                } else {
                    s.ready
                };
                if !done {
                    incomplete.push(c.name.as_str());
                }
            }
        }
    }
    if phase == "Succeeded" && unknown.is_empty() {
        return make(pod, kind, true, "PodCompleted", String::new());
    }
    let regular_started = podutil::containers(pod)
        .iter()
        .filter_map(|c| podutil::status_of(statuses, &c.name))
        .filter_map(|s| s.state.as_ref())
        .any(|s| s.running.is_some() || s.terminated.is_some());
    let was = old
        .conditions
        .as_deref()
        .and_then(|c| podutil::condition(c, kind))
        .is_some_and(|c| c.status == "True");
    if regular_started || (unknown.is_empty() && incomplete.is_empty()) || was {
        return make(pod, kind, true, "", String::new());
    }
    let mut messages = Vec::new();
    if !unknown.is_empty() {
        messages.push(format!(
            "containers with unknown status: {}",
            list(&unknown)
        ));
    }
    if !incomplete.is_empty() {
        messages.push(format!(
            "containers with incomplete status: {}",
            list(&incomplete)
        ));
    }
    make(
        pod,
        kind,
        false,
        "ContainersNotInitialized",
        messages.join(", "),
    )
}
