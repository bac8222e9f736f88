//! Cells of pods (upstream `printPod`).

use jiff::Timestamp;
use keelson_machinery::meta;
use keelson_machinery::value::Value;
use serde_json::json;

use super::cell::{Context, at, condition, int, items, or, text};
use super::{parse_time, since};

/// What is read off a pod's containers in one pass.
struct Summary {
    ready: usize,
    total: usize,
    reason: String,
    restarts: i64,
    last_restart: Option<Timestamp>,
}

pub(super) fn ready(pod: &Value, _: &Context) -> Value {
    let Summary { ready, total, .. } = summary(pod);
    format!("{ready}/{total}").into()
}

pub(super) fn status(pod: &Value, _: &Context) -> Value {
    summary(pod).reason.into()
}

pub(super) fn restarts(pod: &Value, context: &Context) -> Value {
    let Summary {
        restarts,
        last_restart,
        ..
    } = summary(pod);
    match last_restart {
        Some(last) if restarts != 0 => {
            let ago = since(Some(&last.to_string()), context.now);
            format!("{restarts} ({ago} ago)").into()
        }
        _ => restarts.to_string().into(),
    }
}

pub(super) fn ip(pod: &Value, _: &Context) -> Value {
    let first = items(pod, "status.podIPs").first();
    let ip = first.map_or("", |entry| text(entry, "ip"));
    or(ip.to_owned(), "<none>").into()
}

pub(super) fn node(pod: &Value, _: &Context) -> Value {
    or(text(pod, "spec.nodeName").to_owned(), "<none>").into()
}

pub(super) fn nominated_node(pod: &Value, _: &Context) -> Value {
    or(text(pod, "status.nominatedNodeName").to_owned(), "<none>").into()
}

pub(super) fn readiness_gates(pod: &Value, _: &Context) -> Value {
    let gates = items(pod, "spec.readinessGates");
    if gates.is_empty() {
        return "<none>".into();
    }
    let passed = gates
        .iter()
        .filter(|gate| is_true(pod, text(gate, "conditionType")))
        .count();
    format!("{passed}/{}", gates.len()).into()
}

/// The condition of a finished pod's row, by which kubectl can hide it.
pub(super) fn conditions(pod: &Value) -> Option<Value> {
    let phase = text(pod, "status.phase");
    let message = match phase {
        "Succeeded" => "The pod has completed successfully.",
        "Failed" => "The pod failed.",
        _ => return None,
    };
    Some(json!([{"type": "Completed", "status": "True", "reason": phase, "message": message}]))
}

fn is_true(pod: &Value, kind: &str) -> bool {
    condition(pod, "status.conditions", kind).is_some_and(|c| text(c, "status") == "True")
}

fn last_end(container: &Value) -> Option<Timestamp> {
    parse_time(text(container, "lastState.terminated.finishedAt"))
}

fn summary(pod: &Value) -> Summary {
    let phase = text(pod, "status.phase");
    let mut reason = text(pod, "status.reason");
    if reason.is_empty() {
        reason = phase;
    }
    let mut reason = reason.to_owned();
    let gated = items(pod, "status.conditions").iter().any(|condition| {
        text(condition, "type") == "PodScheduled" && text(condition, "reason") == "SchedulingGated"
    });
    if gated {
        reason = "SchedulingGated".to_owned();
    }
    let init_containers = items(pod, "spec.initContainers");
    let restartable = |name: &str| {
        init_containers
            .iter()
            .any(|c| text(c, "name") == name && text(c, "restartPolicy") == "Always")
    };
    let sidecars = init_containers
        .iter()
        .filter(|c| text(c, "restartPolicy") == "Always")
        .count();
    let mut out = Summary {
        ready: 0,
        total: items(pod, "spec.containers").len() + sidecars,
        reason,
        restarts: 0,
        last_restart: None,
    };
    let mut sidecar_restarts = 0;
    let mut sidecar_last = None;
    let mut initializing = false;
    for (i, container) in items(pod, "status.initContainerStatuses")
        .iter()
        .enumerate()
    {
        let sidecar = restartable(text(container, "name"));
        let restarts = int(container, "restartCount");
        out.restarts += restarts;
        out.last_restart = out.last_restart.max(last_end(container));
        if sidecar {
            sidecar_restarts += restarts;
            sidecar_last = sidecar_last.max(last_end(container));
        }
        let terminated = at(container, "state.terminated");
        let waiting = text(container, "state.waiting.reason");
        let started = at(container, "started").and_then(Value::as_bool) == Some(true);
        match terminated {
            Some(end) if int(end, "exitCode") == 0 => continue,
            _ if sidecar && started => {
                if at(container, "ready").and_then(Value::as_bool) == Some(true) {
                    out.ready += 1;
                }
                continue;
            }
            Some(end) => out.reason = format!("Init:{}", end_reason(end)),
            None if !matches!(waiting, "" | "PodInitializing") => {
                out.reason = format!("Init:{waiting}");
            }
            None => out.reason = format!("Init:{i}/{}", init_containers.len()),
        }
        initializing = true;
        break;
    }
    if !initializing || is_true(pod, "Initialized") {
        out.restarts = sidecar_restarts;
        out.last_restart = sidecar_last;
        main_containers(pod, &mut out);
    }
    if meta::deletion_timestamp(pod).is_some() {
        if text(pod, "status.reason") == "NodeLost" {
            out.reason = "Unknown".to_owned();
        } else if !matches!(phase, "Failed" | "Succeeded") {
            out.reason = "Terminating".to_owned();
        }
    }
    out
}

fn main_containers(pod: &Value, out: &mut Summary) {
    let mut running = false;
    let mut error_reason = String::new();
    for container in items(pod, "status.containerStatuses").iter().rev() {
        out.restarts += int(container, "restartCount");
        out.last_restart = out.last_restart.max(last_end(container));
        let waiting = text(container, "state.waiting.reason");
        if !waiting.is_empty() {
            out.reason = waiting.to_owned();
        } else if let Some(end) = at(container, "state.terminated") {
            out.reason = end_reason(end);
            if int(end, "exitCode") != 0 {
                error_reason.clone_from(&out.reason);
            }
        } else if at(container, "ready").and_then(Value::as_bool) == Some(true)
            && at(container, "state.running").is_some()
        {
            running = true;
            out.ready += 1;
        }
    }
    // One container still running outweighs others that completed.
    if out.reason == "Completed" {
        if running && is_true(pod, "Ready") {
            out.reason = "Running".to_owned();
        } else if !error_reason.is_empty() {
            out.reason = error_reason;
        } else if running {
            out.reason = "NotReady".to_owned();
        }
    }
}

fn end_reason(end: &Value) -> String {
    let reason = text(end, "reason");
    let signal = int(end, "signal");
    if !reason.is_empty() {
        reason.to_owned()
    } else if signal != 0 {
        format!("Signal:{signal}")
    } else {
        format!("ExitCode:{}", int(end, "exitCode"))
    }
}
