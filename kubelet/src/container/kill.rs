//! Ending containers: hook, grace, order (upstream `killContainer`).

use std::collections::HashSet;
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod};
use tokio::sync::watch;
use tracing::{info, warn};

use super::{hooks, labels};
use crate::cri::CriError;
use crate::events::Severity;
use crate::pod::observed::{Observed, Seen};
use crate::pod::plan::KillReason;
use crate::podutil;
use crate::shared::Shared;

/// Even without grace a container gets this long to end by itself, in seconds.
const MINIMUM_GRACE: i64 = 2;

/// How long a container of a pod may take, in seconds (upstream `setTerminationGracePeriod`).
pub fn grace_period(pod: &Pod, container: &Container, reason: KillReason) -> i64 {
    if let Some(n) = pod.metadata.deletion_grace_period_seconds {
        return n;
    }
    let Some(of_pod) = podutil::spec(pod).termination_grace_period_seconds else {
        return MINIMUM_GRACE;
    };
    let probe = match reason {
        KillReason::StartupProbe => container.startup_probe.as_ref(),
        KillReason::LivenessProbe => container.liveness_probe.as_ref(),
        KillReason::FailedPostStartHook | KillReason::Other => None,
    };
    probe
        .and_then(|p| p.termination_grace_period_seconds)
        .unwrap_or(of_pod)
}

/// The order in which the containers of a pod with sidecars end: sidecars after all regular ones, the last first.
struct Ordering {
    /// Names in the order of their start.
    sidecars: Vec<String>,
    regular: Vec<String>,
    ended: watch::Sender<HashSet<String>>,
}

impl Ordering {
    fn new(pod: &Pod, running: &[&Seen]) -> Self {
        let runs = |name: &str| running.iter().any(|s| s.name == name);
        Ordering {
            sidecars: podutil::init_containers(pod)
                .iter()
                .filter(|c| podutil::is_sidecar(c) && runs(&c.name))
                .map(|c| c.name.clone())
                .collect(),
            regular: podutil::containers(pod)
                .iter()
                .filter(|c| runs(&c.name))
                .map(|c| c.name.clone())
                .collect(),
            ended: watch::Sender::new(HashSet::new()),
        }
    }

    async fn wait_for_turn(&self, name: &str) {
        let Some(at) = self.sidecars.iter().position(|s| s == name) else {
            return;
        };
        let before: Vec<&String> = self
            .regular
            .iter()
            .chain(&self.sidecars[at + 1..])
            .collect();
        let mut ended = self.ended.subscribe();
        // The sender lives as long as `self`.
        let _ = ended
            .wait_for(|e| before.iter().all(|b| e.contains(*b)))
            .await;
    }

    fn note_end(&self, name: &str) {
        self.ended.send_modify(|e| {
            e.insert(name.to_owned());
        });
    }
}

/// What is needed to end one container.
struct Target<'a> {
    pod: Option<&'a Pod>,
    container: Option<Container>,
    seen: &'a Seen,
    pod_ip: &'a str,
    grace: i64,
    pre_stop: Option<LifecycleHandler>,
}

async fn end(
    shared: &Shared,
    t: Target<'_>,
    message: &str,
    order: Option<&Ordering>,
) -> Result<(), CriError> {
    if let Some(pod) = t.pod {
        let message = if message.is_empty() {
            format!("Stopping container {}", t.seen.name)
        } else {
            message.to_owned()
        };
        shared
            .recorder
            .container(pod, &t.seen.name, Severity::Normal, "Killing", message);
    }
    let began = tokio::time::Instant::now();
    let left = |grace: i64| {
        Duration::from_secs(u64::try_from(grace).unwrap_or(0)).saturating_sub(began.elapsed())
    };
    if let (Some(hook), true) = (&t.pre_stop, t.grace > 0) {
        let empty = Pod::default();
        let container = t.container.clone().unwrap_or_else(|| Container {
            name: t.seen.name.clone(),
            ..Container::default()
        });
        let pod = t.pod.unwrap_or(&empty);
        let work = hooks::run(
            &*shared.runtime,
            pod,
            &container,
            &t.seen.id,
            t.pod_ip,
            hook,
        );
        match tokio::time::timeout(left(t.grace), work).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                warn!(container = %t.seen.name, %error, "a preStop hook failed");
                // The message stays out of the event: a hook's output may hold secrets.
                if let Some(pod) = t.pod {
                    shared.recorder.container(
                        pod,
                        &t.seen.name,
                        Severity::Warning,
                        "FailedPreStopHook",
                        "PreStopHook failed",
                    );
                }
            }
            Err(_) => {
                info!(container = %t.seen.name, "a preStop hook did not end within the grace period")
            }
        }
    }
    if let (Some(order), true) = (order, t.grace > 0) {
        let _ = tokio::time::timeout(left(t.grace), order.wait_for_turn(&t.seen.name)).await;
    }
    let grace = left(t.grace).max(Duration::from_secs(MINIMUM_GRACE as u64));
    let result = match shared.runtime.stop_container(&t.seen.id, grace).await {
        Err(e) if e.is_not_found() => Ok(()),
        r => r,
    };
    if result.is_ok()
        && let Some(order) = order
    {
        order.note_end(&t.seen.name);
    }
    result
}

fn target<'a>(
    pod: &'a Pod,
    seen: &'a Seen,
    pod_ip: &'a str,
    reason: KillReason,
    grace: Option<i64>,
) -> Target<'a> {
    match podutil::find_container(pod, &seen.name) {
        Some(c) => Target {
            grace: grace.unwrap_or_else(|| grace_period(pod, &c, reason)),
            pre_stop: c.lifecycle.as_ref().and_then(|l| l.pre_stop.clone()),
            container: Some(c),
            pod: Some(pod),
            seen,
            pod_ip,
        },
        None => {
            let r = labels::remembered(&seen.annotations);
            Target {
                grace: grace.or(r.grace).unwrap_or(MINIMUM_GRACE),
                pre_stop: r.pre_stop,
                container: None,
                pod: Some(pod),
                seen,
                pod_ip,
            }
        }
    }
}

/// Ends one container of a pod.
pub async fn container(
    shared: &Shared,
    pod: &Pod,
    seen: &Seen,
    pod_ip: &str,
    message: &str,
    reason: KillReason,
) -> Result<(), CriError> {
    end(
        shared,
        target(pod, seen, pod_ip, reason, None),
        message,
        None,
    )
    .await
}

/// Ends all containers of a pod, together but for the order that sidecars need, and then its sandboxes. `grace`
/// overrides the pod's own. Without a pod, what the containers' annotations remember is used.
pub async fn all(
    shared: &Shared,
    pod: Option<&Pod>,
    observed: &Observed,
    grace: Option<i64>,
) -> Result<(), CriError> {
    let running: Vec<&Seen> = observed.running().collect();
    let pod_ip = observed
        .ips()
        .first()
        .map(String::as_str)
        .unwrap_or_default();
    let order = pod
        .filter(|p| podutil::has_sidecar(p))
        .map(|p| Ordering::new(p, &running));
    let ends = running.iter().map(|seen| {
        let t = match pod {
            Some(pod) => target(pod, seen, pod_ip, KillReason::Other, grace),
            None => {
                let r = labels::remembered(&seen.annotations);
                Target {
                    grace: grace.or(r.grace).unwrap_or(MINIMUM_GRACE),
                    pre_stop: r.pre_stop,
                    container: None,
                    pod: None,
                    seen,
                    pod_ip,
                }
            }
        };
        end(shared, t, "", order.as_ref())
    });
    let mut failed = join_all(ends)
        .await
        .into_iter()
        .filter_map(Result::err)
        .collect::<Vec<_>>();
    for s in &observed.sandboxes {
        match shared.runtime.stop_pod_sandbox(&s.id).await {
            Ok(()) => {}
            Err(e) if e.is_not_found() => {}
            Err(e) => failed.push(e),
        }
    }
    match failed.into_iter().next() {
        Some(e) => Err(e),
        None => Ok(()),
    }
}
