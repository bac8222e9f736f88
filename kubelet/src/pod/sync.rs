//! One look at a pod: observe, report, and carry out the plan (upstream `SyncPod` and `SyncTerminatingPod`).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod, PodStatus, ResourceRequirements, Secret};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::observed::{self, Observed, RunState};
use super::plan::{self, Plan};
use super::resize;
use crate::cgroup;
use crate::config::format_go_duration;
use crate::container::{self, config, kill, start};
use crate::events::Severity;
use crate::image::Failure;
use crate::podutil;
use crate::probe::Kind;
use crate::shared::Shared;
use crate::status::generate::ProbeView;
use crate::status::{self, Inputs, StartFailures};

/// What came of a look at a pod.
#[derive(Debug)]
pub enum Outcome {
    /// All was done that can be done now; look again after this time, or when something happens.
    Done(Option<Duration>),
    /// Something was started or ended: look again at once.
    Changed,
    /// The pod has come to its end.
    Terminal,
    /// It did not work; try again after this time.
    Failed(String, Duration),
}

/// Upstream's `backOffPeriod` for a sync that failed.
const RETRY: Duration = Duration::from_secs(10);
/// For a network that is not ready yet.
const NETWORK_RETRY: Duration = Duration::from_secs(1);
/// For volumes that cannot be made ready; something changes them sooner.
const MOUNT_RETRY: Duration = Duration::from_secs(5);

/// What a worker remembers between looks.
#[derive(Debug, Default)]
pub struct Memory {
    /// Why containers could not be started the last time.
    pub failures: StartFailures,
    /// The volumes that were made ready.
    pub volumes: crate::volume::Mounts,
    /// Volume failures that were told in an event, so that each is told once.
    pub mount_errors: Vec<String>,
    /// How often mounting has failed in a row.
    pub mount_tries: u32,
    /// The resources in force by container id.
    pub in_force: HashMap<String, ResourceRequirements>,
    /// Why the last resize did not work.
    pub resize_error: Option<String>,
}

/// Computes the status of a pod from what was observed.
pub fn pod_status(
    shared: &Shared,
    pod: &Pod,
    observed: &Observed,
    memory: &Memory,
    terminal: bool,
) -> PodStatus {
    let old = last_status(shared, pod);
    let resizing = !terminal && !resize::wanted(pod, observed, &memory.in_force).is_empty();
    let view = resize::View {
        pending: shared
            .allocations
            .pending(podutil::uid(pod))
            .filter(|_| !terminal),
        in_progress: resizing.then(|| memory.resize_error.clone()),
        in_force: memory.in_force.clone(),
    };
    let host_ips = shared.node.read().host_ips.clone();
    status::generate(&Inputs {
        pod,
        observed,
        old: &old,
        failures: &memory.failures,
        runtime: &shared.runtime_name,
        host_ips: &host_ips,
        terminal,
        probes: &*shared.probes,
        resize: &view,
    })
}

/// The status that was reported last, or else the API's.
fn last_status(shared: &Shared, pod: &Pod) -> PodStatus {
    shared
        .status
        .get(podutil::uid(pod))
        .or_else(|| pod.status.clone())
        .unwrap_or_default()
}

/// Asks for a probe now where a container waits for its first verdict.
fn trigger_probes(shared: &Shared, pod: &Pod, status: &PodStatus) {
    for c in status
        .container_statuses
        .iter()
        .flatten()
        .chain(status.init_container_statuses.iter().flatten())
    {
        if c.started == Some(true)
            && !c.ready
            && shared
                .probes
                .is_probed(podutil::uid(pod), &c.name, Kind::Readiness)
        {
            shared.probes.trigger_readiness(podutil::uid(pod), &c.name);
        }
    }
}

/// Looks at a pod that shall run. `stop` says that it is to end: what is slow is given up then.
pub async fn sync(
    shared: &Shared,
    pod: &Arc<Pod>,
    memory: &mut Memory,
    stop: &CancellationToken,
) -> Outcome {
    let uid = podutil::uid(pod);
    let observed = match observed::observe(&*shared.runtime, uid).await {
        Ok(o) => o,
        Err(e) => return Outcome::Failed(format!("error determining status: {e}"), NETWORK_RETRY),
    };
    let before = last_status(shared, pod);
    resize::learn(&mut memory.in_force, pod, &observed, &before);
    let status = pod_status(shared, pod, &observed, memory, false);
    let resizing = |status: &PodStatus| {
        let conditions = status.conditions.as_deref().unwrap_or_default();
        podutil::condition(conditions, "PodResizeInProgress").is_some()
    };
    if resizing(&before) && !resizing(&status) {
        let text = resize::message(pod, "Pod resize completed", "");
        shared
            .recorder
            .pod(pod, Severity::Normal, "ResizeCompleted", text);
    }
    let terminal = podutil::is_terminal_phase(status.phase.as_deref());
    let running = status
        .container_statuses
        .iter()
        .flatten()
        .any(|c| c.state.as_ref().is_some_and(|s| s.running.is_some()));
    shared.status.set(pod, status.clone());
    if terminal {
        return Outcome::Terminal;
    }
    trigger_probes(shared, pod, &status);
    if let Some(left) = deadline(shared, pod, &status)
        && left.is_zero()
    {
        let mut status = status;
        status.phase = Some("Failed".to_owned());
        status.reason = Some("DeadlineExceeded".to_owned());
        status.message =
            Some("Pod was active on the node longer than the specified deadline".to_owned());
        shared.recorder.pod(
            pod,
            Severity::Normal,
            "DeadlineExceeded",
            "Pod was active on the node longer than the specified deadline",
        );
        shared.status.set(pod, status);
        return Outcome::Terminal;
    }
    let network = shared.health.read().network.clone();
    if let Some(e) = network.filter(|_| !podutil::is_host_network(pod)) {
        let message = format!("network is not ready: {e}");
        shared
            .recorder
            .pod(pod, Severity::Warning, "NetworkNotReady", message.clone());
        return Outcome::Failed(message, NETWORK_RETRY * 5);
    }
    if let Some(o) = prepare(shared, pod, &observed, running).await {
        return o;
    }
    let ips = observed.ips().to_vec();
    let node = shared.node.read().clone();
    let (volumes, errors) = shared.volumes.set_up(pod, &node, &ips).await;
    // A volume that was ready once stays so, even if it cannot be brought up to date.
    memory.volumes.extend(volumes);
    if errors.is_empty() {
        memory.mount_errors.clear();
        memory.mount_tries = 0;
    } else {
        let messages: Vec<String> = errors.iter().map(ToString::to_string).collect();
        memory.mount_tries = memory.mount_tries.saturating_add(1);
        // Once when it begins, then now and again while it lasts.
        if messages != memory.mount_errors || memory.mount_tries.is_multiple_of(12) {
            for m in &messages {
                shared
                    .recorder
                    .pod(pod, Severity::Warning, "FailedMount", m.clone());
            }
        }
        let missing = errors
            .iter()
            .any(|e| !memory.volumes.contains_key(&e.volume));
        memory.mount_errors.clone_from(&messages);
        if missing && !running {
            return Outcome::Failed(messages.join("; "), MOUNT_RETRY);
        }
        warn!(pod = %podutil::describe(pod), errors = %messages.join("; "), "volumes could not be brought up to date");
    }
    let volumes = memory.volumes.clone();
    shared.probes.add_pod(pod);
    let resizes = resize::wanted(pod, &observed, &memory.in_force);
    let probed = |id: &str, kind| shared.probes.outcome(id, kind);
    let plan = plan::plan(pod, &observed, &probed, &resizes);
    let left = deadline(shared, pod, &status)
        .into_iter()
        .chain((!memory.mount_errors.is_empty()).then_some(MOUNT_RETRY))
        .min();
    if plan.is_empty() {
        return Outcome::Done(left);
    }
    debug!(pod = %podutil::describe(pod), ?plan, "a pod's plan");
    match execute(shared, pod, &observed, &plan, &volumes, memory, stop).await {
        Outcome::Done(next) => Outcome::Done(next.into_iter().chain(left).min()),
        other => other,
    }
}

/// The time that `activeDeadlineSeconds` leaves.
fn deadline(shared: &Shared, pod: &Pod, status: &PodStatus) -> Option<Duration> {
    let seconds = podutil::spec(pod).active_deadline_seconds?;
    let start = shared
        .status
        .get(podutil::uid(pod))
        .and_then(|s| s.start_time)
        .or_else(|| status.start_time.clone())?;
    let gone = shared.clock.now().duration_since(start.0).as_secs();
    Some(Duration::from_secs(
        u64::try_from(seconds - gone).unwrap_or(0),
    ))
}

/// Makes what a pod needs on the node before anything of it can run.
async fn prepare(
    shared: &Shared,
    pod: &Pod,
    observed: &Observed,
    running: bool,
) -> Option<Outcome> {
    if !shared.cgroups.exists(pod) {
        if running {
            // Somebody took the cgroup away from under the containers.
            if let Err(e) = kill::all(shared, Some(pod), observed, None).await {
                return Some(Outcome::Failed(e.to_string(), RETRY));
            }
        }
        let s = &shared.settings;
        let limits = cgroup::pod_limits(
            pod,
            s.cpu_cfs_quota.then_some(s.cpu_period_us),
            shared.config.file.pod_pids_limit,
        );
        if let Err(e) = shared.cgroups.create_pod(pod, &limits) {
            let message = format!("unable to ensure pod container exists: {e}");
            shared.recorder.pod(
                pod,
                Severity::Warning,
                "FailedCreatePodContainer",
                message.clone(),
            );
            return Some(Outcome::Failed(message, RETRY));
        }
    }
    let dir = shared.config.pod_dir(podutil::uid(pod));
    for d in [dir.clone(), dir.join("volumes"), dir.join("plugins")] {
        if let Err(e) = std::fs::create_dir_all(&d) {
            let message = format!("error making pod data directories: {e}");
            shared
                .recorder
                .pod(pod, Severity::Warning, "Failed", message.clone());
            return Some(Outcome::Failed(message, RETRY));
        }
    }
    None
}

/// The pull secrets of a pod that can be had; a missing one is told and skipped, as upstream does.
async fn pull_secrets(shared: &Shared, pod: &Pod) -> Vec<Arc<Secret>> {
    let mut out = Vec::new();
    for r in podutil::spec(pod)
        .image_pull_secrets
        .iter()
        .flatten()
        .filter(|r| !r.name.is_empty())
    {
        match shared
            .objects
            .secret(podutil::uid(pod), podutil::namespace(pod), &r.name)
            .await
        {
            Ok(s) => out.push(s),
            Err(error) => {
                warn!(pod = %podutil::describe(pod), secret = %r.name, %error, "a pull secret cannot be had");
                shared.recorder.pod(
                    pod,
                    Severity::Warning,
                    "FailedToRetrieveImagePullSecret",
                    format!(
                        "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                        r.name
                    ),
                );
            }
        }
    }
    out
}

async fn execute(
    shared: &Shared,
    pod: &Arc<Pod>,
    observed: &Observed,
    plan: &Plan,
    volumes: &crate::volume::Mounts,
    memory: &mut Memory,
    stop: &CancellationToken,
) -> Outcome {
    let mut changed = false;
    if plan.create_sandbox && plan.sandbox_id.is_some() {
        shared.recorder.pod(
            pod,
            Severity::Normal,
            "SandboxChanged",
            "Pod sandbox changed, it will be killed and re-created.",
        );
    }
    if plan.kill_pod {
        if (!observed.sandboxes.is_empty() || observed.running().next().is_some())
            && let Err(e) = kill::all(shared, Some(pod), observed, None).await
        {
            return Outcome::Failed(format!("error killing pod: {e}"), RETRY);
        }
        if plan.create_sandbox {
            remove_init_containers(shared, pod, observed, true).await;
        }
    } else {
        let ip = observed
            .ips()
            .first()
            .map(String::as_str)
            .unwrap_or_default();
        for k in &plan.kill {
            let Some(seen) = observed.containers.iter().find(|s| s.id == k.id) else {
                continue;
            };
            if let Err(e) = kill::container(shared, pod, seen, ip, &k.message, k.reason).await {
                return Outcome::Failed(e.to_string(), RETRY);
            }
            changed = true;
        }
    }
    let mut next: Option<Duration> = None;
    // Also when a container ends because of its resize: the pod around the next one has other limits.
    let resizing = !resize::wanted(pod, observed, &memory.in_force).is_empty();
    if resizing && !plan.kill_pod {
        match container::resize::apply(shared, pod, observed, &plan.resize, &mut memory.in_force)
            .await
        {
            Ok(()) => {
                memory.resize_error = None;
                changed |= !plan.resize.is_empty();
            }
            Err(error) => {
                if memory.resize_error.as_ref() != Some(&error) {
                    let text = resize::message(pod, "Pod resize error", &error);
                    shared
                        .recorder
                        .pod(pod, Severity::Warning, "ResizeError", text);
                }
                memory.resize_error = Some(error);
                let status = pod_status(shared, pod, observed, memory, false);
                shared.status.set(pod, status);
                next = Some(RETRY);
            }
        }
    }
    if plan.start.is_empty()
        && plan.init.is_empty()
        && plan.ephemeral.is_empty()
        && !plan.create_sandbox
    {
        return if changed || plan.kill_pod && observed.running().next().is_some() {
            Outcome::Changed
        } else {
            Outcome::Done(next)
        };
    }
    remove_init_containers(shared, pod, observed, false).await;
    let (sandbox, warnings) = match config::sandbox(
        &shared.settings,
        pod,
        plan.attempt,
        shared.cgroups.parent(pod),
    ) {
        Ok(x) => x,
        Err(e) => {
            let message = format!("Failed to create pod sandbox: {e}");
            shared.recorder.pod(
                pod,
                Severity::Warning,
                "FailedCreatePodSandBox",
                message.clone(),
            );
            return Outcome::Failed(message, RETRY);
        }
    };
    let mut ips = observed.ips().to_vec();
    let mut sandbox_id = plan.sandbox_id.clone().unwrap_or_default();
    if plan.create_sandbox {
        for (reason, message) in warnings {
            shared.recorder.pod(pod, Severity::Warning, reason, message);
        }
        match create_sandbox(shared, pod, &sandbox).await {
            Ok((id, new_ips)) => {
                sandbox_id = id;
                ips = new_ips;
                // The address is told before slow pulls.
                if let Ok(fresh) = observed::observe(&*shared.runtime, podutil::uid(pod)).await {
                    shared
                        .status
                        .set(pod, pod_status(shared, pod, &fresh, memory, false));
                }
            }
            Err(o) => return o,
        }
    }
    // The runtime's answer may lack the address of a pod on the node's network.
    if podutil::is_host_network(pod) {
        ips = shared.node.read().host_ips.clone();
    }
    let secrets = pull_secrets(shared, pod).await;
    let ctx = start::Context {
        shared,
        pod,
        observed,
        sandbox_id: &sandbox_id,
        sandbox: &sandbox,
        pod_ips: &ips,
        volumes,
        secrets: &secrets,
        stop,
    };
    let mut note =
        |memory: &mut Memory, c: &Container, result: Result<String, Failure>| match result {
            Ok(id) => {
                memory.failures.remove(&c.name);
                let made_with = c.resources.clone().unwrap_or_default();
                memory.in_force.insert(id, made_with);
                changed = true;
                true
            }
            Err(f) => {
                let wait = f.retry.unwrap_or(RETRY);
                next = Some(next.map_or(wait, |n| n.min(wait)));
                memory
                    .failures
                    .insert(c.name.clone(), (f.reason.to_owned(), f.message));
                false
            }
        };
    for i in plan.ephemeral.iter().take_while(|_| !stop.is_cancelled()) {
        let e = &podutil::ephemeral_containers(pod)[*i];
        let c = podutil::ephemeral_as_container(e);
        let r = ctx.start(&c, e.target_container_name.as_deref()).await;
        note(memory, &c, r);
    }
    let mut go_on = true;
    for i in plan.init.iter().take_while(|_| !stop.is_cancelled()) {
        let c = &podutil::init_containers(pod)[*i];
        let r = match in_backoff(shared, pod, c, observed) {
            Some(f) => Err(f),
            None => ctx.start(c, None).await,
        };
        if !note(memory, c, r) && !podutil::is_sidecar(c) {
            go_on = false;
            break;
        }
    }
    if go_on {
        for i in plan.start.iter().take_while(|_| !stop.is_cancelled()) {
            let c = &podutil::containers(pod)[*i];
            let r = match in_backoff(shared, pod, c, observed) {
                Some(f) => Err(f),
                None => ctx.start(c, None).await,
            };
            note(memory, c, r);
        }
    }
    // What was noted of failures is shown right away.
    if let Ok(fresh) = observed::observe(&*shared.runtime, podutil::uid(pod)).await {
        let status = pod_status(shared, pod, &fresh, memory, false);
        shared.status.set(pod, status);
    }
    if changed {
        Outcome::Changed
    } else {
        Outcome::Done(next)
    }
}

async fn create_sandbox(
    shared: &Shared,
    pod: &Pod,
    sandbox: &crate::cri::PodSandboxConfig,
) -> Result<(String, Vec<String>), Outcome> {
    let failed = |e: String| {
        shared.recorder.pod(
            pod,
            Severity::Warning,
            "FailedCreatePodSandBox",
            format!("Failed to create pod sandbox: {e}"),
        );
        Outcome::Failed(format!("Failed to create pod sandbox: {e}"), RETRY)
    };
    std::fs::create_dir_all(&sandbox.log_directory).map_err(|e| failed(e.to_string()))?;
    let handler = runtime_handler(shared, pod).await.map_err(failed)?;
    let id = shared
        .runtime
        .run_pod_sandbox(sandbox.clone(), &handler)
        .await
        .map_err(|e| failed(e.to_string()))?;
    info!(pod = %podutil::describe(pod), sandbox = %id, "created a sandbox");
    let observed = observed::observe(&*shared.runtime, podutil::uid(pod))
        .await
        .map_err(|e| {
            shared.recorder.pod(
                pod,
                Severity::Warning,
                "FailedPodSandBoxStatus",
                format!("Unable to get pod sandbox status: {e}"),
            );
            Outcome::Failed(e.to_string(), RETRY)
        })?;
    Ok((id, observed.ips().to_vec()))
}

/// The runtime handler of the pod's runtime class.
async fn runtime_handler(shared: &Shared, pod: &Pod) -> Result<String, String> {
    let Some(name) = podutil::spec(pod)
        .runtime_class_name
        .as_deref()
        .filter(|n| !n.is_empty())
    else {
        return Ok(String::new());
    };
    let client = shared
        .client
        .clone()
        .ok_or("a runtime class needs an API server")?;
    let api: kube::Api<k8s_openapi::api::node::v1::RuntimeClass> = kube::Api::all(client);
    match api.get_opt(name).await {
        Ok(Some(c)) => Ok(c.handler),
        Ok(None) => Err(format!(
            "failed to get sandbox runtime: RuntimeClass.node.k8s.io {name:?} not found"
        )),
        Err(e) => Err(format!("failed to get sandbox runtime: {e}")),
    }
}

/// Whether a container must wait before it is started again (upstream `doBackOff`).
fn in_backoff(
    shared: &Shared,
    pod: &Pod,
    c: &k8s_openapi::api::core::v1::Container,
    observed: &Observed,
) -> Option<Failure> {
    let ended = observed
        .containers
        .iter()
        .find(|s| s.name == c.name && s.state == RunState::Exited)?;
    let since = ended.finished_at?;
    let key = format!(
        "{}/{}/{}",
        podutil::uid(pod),
        c.name,
        podutil::container_hash(c)
    );
    let now = shared.clock.now();
    if let Some((left, whole)) = shared.crash_backoff.remaining_since(&key, since, now) {
        let whose = podutil::describe(pod);
        shared.recorder.container(
            pod,
            &c.name,
            Severity::Warning,
            "BackOff",
            format!(
                "Back-off restarting failed container {} in pod {whose}",
                c.name
            ),
        );
        return Some(Failure {
            reason: "CrashLoopBackOff",
            message: format!(
                "back-off {} restarting failed container={} pod={whose}",
                format_go_duration(whole),
                c.name
            ),
            retry: Some(left),
        });
    }
    shared.crash_backoff.next(&key, since, now);
    None
}

/// Removes ended init containers from the runtime: all but the newest of each name, or all of them before a new
/// sandbox runs them again.
async fn remove_init_containers(shared: &Shared, pod: &Pod, observed: &Observed, all: bool) {
    for c in podutil::init_containers(pod) {
        let of_name = observed.containers.iter().filter(|s| s.name == c.name);
        for s in of_name
            .skip(usize::from(!all))
            .filter(|s| all || s.state == RunState::Exited)
        {
            if let Err(error) = shared.runtime.remove_container(&s.id).await {
                warn!(container = %c.name, id = %s.id, %error, "could not remove an init container");
            }
        }
    }
}

/// Ends a pod: its containers within their grace, then the sandbox, then the last status.
pub async fn terminate(
    shared: &Shared,
    pod: &Arc<Pod>,
    memory: &Memory,
    grace: Option<i64>,
) -> Result<(), String> {
    let uid = podutil::uid(pod);
    let observed = observed::observe(&*shared.runtime, uid)
        .await
        .map_err(|e| format!("error determining status: {e}"))?;
    let status = pod_status(shared, pod, &observed, memory, false);
    shared.status.set(pod, status);
    shared.probes.stop_restarting(uid);
    if let Err(e) = kill::all(shared, Some(pod), &observed, grace).await {
        shared.recorder.pod(
            pod,
            Severity::Warning,
            "FailedKillPod",
            format!("error killing pod: {e}"),
        );
        return Err(format!("error killing pod: {e}"));
    }
    shared.probes.remove_pod(uid);
    let stopped = observed::observe(&*shared.runtime, uid)
        .await
        .map_err(|e| format!("unable to read pod status prior to final pod termination: {e}"))?;
    let running: Vec<&str> = stopped
        .containers
        .iter()
        .filter(|s| s.state == RunState::Running)
        .map(|s| s.id.as_str())
        .collect();
    if !running.is_empty() {
        return Err(format!(
            "detected running containers after a successful KillPod, CRI violation: {running:?}"
        ));
    }
    let last = pod_status(shared, pod, &stopped, memory, true);
    shared.status.set(pod, last);
    Ok(())
}

/// Takes away what an ended pod has on the node; afterwards its API object may be deleted.
pub async fn clean_up(shared: &Shared, pod: &Arc<Pod>) -> Result<(), String> {
    let uid = podutil::uid(pod);
    shared.volumes.tear_down(uid).await?;
    shared.objects.forget(uid);
    shared
        .cgroups
        .remove_pod(uid)
        .await
        .map_err(|e| e.to_string())?;
    shared.status.finish(pod);
    Ok(())
}

/// Takes away all that is left of a pod that is no more: containers, sandboxes, directories, logs.
pub async fn remove(
    shared: &Shared,
    uid: &str,
    logs: Option<std::path::PathBuf>,
) -> Result<(), String> {
    let observed = observed::observe(&*shared.runtime, uid)
        .await
        .map_err(|e| e.to_string())?;
    for c in &observed.containers {
        shared
            .runtime
            .remove_container(&c.id)
            .await
            .map_err(|e| e.to_string())?;
    }
    for s in &observed.sandboxes {
        shared
            .runtime
            .stop_pod_sandbox(&s.id)
            .await
            .map_err(|e| e.to_string())?;
        shared
            .runtime
            .remove_pod_sandbox(&s.id)
            .await
            .map_err(|e| e.to_string())?;
    }
    shared.volumes.remove_pod_dir(uid).await?;
    shared
        .cgroups
        .remove_pod(uid)
        .await
        .map_err(|e| e.to_string())?;
    shared.crash_backoff.forget_prefix(&format!("{uid}/"));
    shared.images.forget(uid);
    shared.allocations.forget(uid);
    shared.objects.forget(uid);
    shared.probes.remove_pod(uid);
    if let Some(dir) = logs
        && let Err(error) = std::fs::remove_dir_all(&dir)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        warn!(dir = %dir.display(), %error, "could not delete a pod's logs");
    }
    Ok(())
}
