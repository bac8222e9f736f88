//! A pod's status, computed from its spec, what the runtime has of it, and what was reported last
//! (upstream `generateAPIPodStatus`). A pure function.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, ContainerUser, HostIP, LinuxContainerUser, Pod, PodIP,
    PodStatus, VolumeMountStatus,
};

use super::conditions;
use crate::pod::observed::{Observed, RunState, Seen};
use crate::pod::plan;
use crate::pod::resize::View;
use crate::podutil;
use crate::probe::{Kind, Outcome};
use crate::resources;

/// Why a container could not be started the last time: the reason and message of its `waiting` state.
pub type StartFailures = HashMap<String, (String, String)>;

/// What the probes know; see [`crate::probe::Probes`].
pub trait ProbeView {
    /// The last verdict on the container with that id.
    fn outcome(&self, container_id: &str, kind: Kind) -> Option<Outcome>;
    /// Whether such a probe is being run for the container of that name.
    fn is_probed(&self, uid: &str, container: &str, kind: Kind) -> bool;
    /// When this kubelet began to run, to tell its own restart from a container's.
    fn began(&self) -> jiff::Timestamp;
}

/// What a status is computed from.
pub struct Inputs<'a> {
    /// The pod as the API has it.
    pub pod: &'a Pod,
    /// What the runtime has.
    pub observed: &'a Observed,
    /// The status reported last, or else the API's.
    pub old: &'a PodStatus,
    /// Failed starts by container.
    pub failures: &'a StartFailures,
    /// The runtime's name, as in `containerd://id`.
    pub runtime: &'a str,
    /// The node's addresses.
    pub host_ips: &'a [String],
    /// Whether no container will be started any more.
    pub terminal: bool,
    /// The probes' verdicts.
    pub probes: &'a dyn ProbeView,
    /// Resizes under way, and what is in force.
    pub resize: &'a View,
}

/// The status of a pod.
pub fn generate(i: &Inputs<'_>) -> PodStatus {
    let pod = i.pod;
    let api = pod.status.clone().unwrap_or_default();
    // A pod whose sandbox is gone keeps the address that it had.
    let had: Vec<String> = match i.observed.sandboxes.iter().any(|s| s.ready) {
        true => Vec::new(),
        false => i
            .old
            .pod_ips
            .iter()
            .flatten()
            .map(|p| p.ip.clone())
            .collect(),
    };
    let ips = match i.observed.ips() {
        [] => had.as_slice(),
        now => now,
    };
    let ephemeral: Vec<Container> = podutil::ephemeral_containers(pod)
        .iter()
        .map(podutil::ephemeral_as_container)
        .collect();
    let mut s = PodStatus {
        pod_ip: ips.first().cloned(),
        pod_ips: (!ips.is_empty()).then(|| ips.iter().map(|ip| PodIP { ip: ip.clone() }).collect()),
        qos_class: Some(resources::qos(pod).as_str().to_owned()),
        container_statuses: Some(statuses(
            i,
            podutil::containers(pod),
            &i.old.container_statuses,
            false,
        )),
        init_container_statuses: Some(statuses(
            i,
            podutil::init_containers(pod),
            &i.old.init_container_statuses,
            true,
        ))
        .filter(|l| !l.is_empty()),
        ephemeral_container_statuses: Some(statuses(
            i,
            &ephemeral,
            &i.old.ephemeral_container_statuses,
            false,
        ))
        .filter(|l| !l.is_empty()),
        resource_claim_statuses: api.resource_claim_statuses.clone(),
        nominated_node_name: api.nominated_node_name.clone(),
        observed_generation: pod.metadata.generation,
        ..PodStatus::default()
    };
    if podutil::is_terminal_phase(i.old.phase.as_deref())
        && i.old.container_statuses.is_none()
        && i.observed.containers.is_empty()
    {
        // The pod was refused: none of its containers is waiting for anything.
        s.container_statuses = None;
        s.init_container_statuses = None;
    }
    let mut all = s.container_statuses.clone().unwrap_or_default();
    all.extend(s.init_container_statuses.clone().unwrap_or_default());

    let active = podutil::containers(pod)
        .iter()
        .filter_map(|c| i.observed.latest(&c.name))
        .any(|c| matches!(c.state, RunState::Running | RunState::Exited) && c.started_at.is_some());
    let mut phase = self::phase(pod, &all, i.terminal, active).to_owned();
    // A terminal phase is never left, whoever noted it first: a pod past its deadline has failed, however well its
    // containers then end.
    let noted = [api.phase.as_deref(), i.old.phase.as_deref()]
        .into_iter()
        .flatten()
        .find(|p| podutil::is_terminal_phase(Some(p)));
    if let Some(noted) = noted {
        phase = noted.to_owned();
    }
    if i.old.phase.as_deref() == Some(&phase) {
        s.reason = i.old.reason.clone().or(api.reason.clone());
        s.message = i.old.message.clone().or(api.message.clone());
    }

    apply_probes(i, &mut s);

    let mut list: Vec<_> = api
        .conditions
        .iter()
        .flatten()
        .filter(|c| !conditions::is_ours(&c.type_))
        .cloned()
        .collect();
    if let Some(c) = i
        .old
        .conditions
        .as_deref()
        .and_then(|c| podutil::condition(c, "DisruptionTarget"))
    {
        list.retain(|x| x.type_ != c.type_);
        list.push(c.clone());
    }
    let mut all = s.init_container_statuses.clone().unwrap_or_default();
    all.extend(s.container_statuses.clone().unwrap_or_default());
    let (needs_sandbox, _, _) = plan::sandbox_changed(pod, i.observed);
    list.push(conditions::make(
        pod,
        "PodReadyToStartContainers",
        !needs_sandbox,
        "",
        String::new(),
    ));
    list.push(conditions::initialized(pod, i.old, &all, &phase));
    let ready = conditions::ready(pod, &list, &all, &phase);
    list.push(ready);
    list.push(conditions::containers_ready(pod, &all, &phase));
    list.push(conditions::make(
        pod,
        "PodScheduled",
        true,
        "",
        String::new(),
    ));
    list.extend(conditions::resizes(pod, i.resize));
    s.conditions = Some(list);

    if let Some(first) = i.host_ips.first() {
        s.host_ip = Some(first.clone());
        s.host_ips = Some(
            i.host_ips
                .iter()
                .map(|ip| HostIP { ip: ip.clone() })
                .collect(),
        );
        if podutil::is_host_network(pod) && s.pod_ip.is_none() {
            s.pod_ip = Some(first.clone());
            s.pod_ips = Some(
                i.host_ips
                    .iter()
                    .map(|ip| PodIP { ip: ip.clone() })
                    .collect(),
            );
        }
    }
    s.phase = Some(phase);
    s
}

/// The states of a container's status, of which exactly one is set.
fn waiting(reason: &str, message: &str) -> ContainerState {
    ContainerState {
        waiting: Some(ContainerStateWaiting {
            reason: (!reason.is_empty()).then(|| reason.to_owned()),
            message: (!message.is_empty()).then(|| message.to_owned()),
        }),
        ..ContainerState::default()
    }
}

fn terminated(reason: &str, message: &str, exit_code: i32) -> ContainerState {
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            exit_code,
            ..ContainerStateTerminated::default()
        }),
        ..ContainerState::default()
    }
}

fn is_terminated(s: &Option<ContainerState>) -> bool {
    s.as_ref().is_some_and(|s| s.terminated.is_some())
}

fn is_running(s: &Option<ContainerState>) -> bool {
    s.as_ref().is_some_and(|s| s.running.is_some())
}

fn convert(
    i: &Inputs<'_>,
    c: &Container,
    seen: &Seen,
    old: Option<&ContainerStatus>,
) -> ContainerStatus {
    let id = format!("{}://{}", i.runtime, seen.id);
    let mut s = ContainerStatus {
        name: seen.name.clone(),
        restart_count: seen.restart_count,
        image: seen.image.clone(),
        image_id: seen.image_ref.clone(),
        container_id: Some(id.clone()),
        volume_mounts: volume_mounts(c),
        resources: i
            .resize
            .in_force
            .get(&seen.id)
            .cloned()
            .or_else(|| c.resources.clone()),
        allocated_resources: c.resources.as_ref().and_then(|r| r.requests.clone()),
        user: seen.user.as_ref().map(|u| ContainerUser {
            linux: Some(LinuxContainerUser {
                uid: u.uid,
                gid: u.gid,
                supplemental_groups: Some(u.supplemental_groups.clone()),
            }),
        }),
        last_state: Some(ContainerState::default()),
        ..ContainerStatus::default()
    };
    if let Some(old) = old {
        s.restart_count = s.restart_count.max(old.restart_count);
        if old.container_id.as_deref() != Some(&id) && is_terminated(&old.state) {
            s.last_state = old.state.clone();
        } else if is_terminated(&old.last_state) {
            s.last_state = old.last_state.clone();
        }
    }
    s.state = Some(match seen.state {
        RunState::Running => ContainerState {
            running: Some(ContainerStateRunning {
                started_at: seen.started_at.map(podutil::time),
            }),
            ..ContainerState::default()
        },
        RunState::Created => waiting("", ""),
        RunState::Exited => ContainerState {
            terminated: Some(ContainerStateTerminated {
                exit_code: seen.exit_code,
                reason: (!seen.reason.is_empty()).then(|| seen.reason.clone()),
                message: (!seen.message.is_empty()).then(|| seen.message.clone()),
                started_at: seen.started_at.map(podutil::time),
                finished_at: seen.finished_at.map(podutil::time),
                container_id: Some(id),
                signal: None,
            }),
            ..ContainerState::default()
        },
        RunState::Unknown => match old {
            Some(old) if is_running(&old.state) => {
                s.restart_count = old.restart_count + 1;
                terminated(
                    "ContainerStatusUnknown",
                    "The container could not be located when the pod was terminated",
                    137,
                )
            }
            _ => waiting("", ""),
        },
    });
    if seen.state == RunState::Running
        && let Some(old) = old
        && old.container_id == s.container_id
    {
        s.started = old.started;
    }
    s
}

fn volume_mounts(c: &Container) -> Option<Vec<VolumeMountStatus>> {
    let mounts: Vec<_> = c
        .volume_mounts
        .iter()
        .flatten()
        .map(|m| VolumeMountStatus {
            name: m.name.clone(),
            mount_path: m.mount_path.clone(),
            read_only: m.read_only,
            recursive_read_only: (m.read_only == Some(true)).then(|| "Disabled".to_owned()),
            volume_status: None,
        })
        .collect();
    (!mounts.is_empty()).then_some(mounts)
}

fn statuses(
    i: &Inputs<'_>,
    containers: &[Container],
    previous: &Option<Vec<ContainerStatus>>,
    is_init: bool,
) -> Vec<ContainerStatus> {
    let pod = i.pod;
    let previous = previous.as_deref().unwrap_or_default();
    let has_init = !podutil::init_containers(pod).is_empty();
    let default_reason = if has_init {
        "PodInitializing"
    } else {
        "ContainerCreating"
    };
    let default_wait = waiting(default_reason, "");
    let mut out = Vec::with_capacity(containers.len());
    for c in containers {
        let old = podutil::status_of(previous, &c.name);
        let mut runs = i.observed.containers.iter().filter(|s| s.name == c.name);
        let mut s = match runs.next() {
            Some(latest) => {
                let mut s = convert(i, c, latest, old);
                if let Some(before) = runs.next() {
                    s.last_state = convert(i, c, before, old).state;
                }
                s
            }
            None => unseen(pod, c, old, &default_wait, default_reason),
        };
        let latest = i.observed.latest(&c.name);
        if is_init && latest.is_some_and(|l| l.state == RunState::Exited && l.exit_code == 0) {
            out.push(s);
            continue;
        }
        if is_init
            && latest.is_none()
            && !podutil::is_sidecar(c)
            && plan::any_regular_created(pod, i.observed)
            && s.state.as_ref().is_some_and(|s| s.waiting.is_some())
        {
            s.state = Some(terminated(
                "Completed",
                "Unable to get init container status from container runtime and pod has been initialized, treat it as exited normally",
                0,
            ));
            out.push(s);
            continue;
        }
        // What will be started next is waiting; the reason is that of the last failed start.
        if plan::should_start(pod, c, i.observed)
            && let Some((reason, message)) = i.failures.get(&c.name)
        {
            if is_terminated(&s.state) {
                s.last_state = s.state.take();
            }
            s.state = Some(waiting(reason, message));
        }
        out.push(s);
    }
    if !is_init {
        out.sort_by(|a, b| a.name.cmp(&b.name));
    }
    out
}

/// The status of a container that the runtime does not have: not made yet, or lost.
fn unseen(
    pod: &Pod,
    c: &Container,
    old: Option<&ContainerStatus>,
    default_wait: &ContainerState,
    default_reason: &str,
) -> ContainerStatus {
    let mut s = ContainerStatus {
        name: c.name.clone(),
        image: c.image.clone().unwrap_or_default(),
        state: Some(default_wait.clone()),
        last_state: Some(ContainerState::default()),
        volume_mounts: volume_mounts(c),
        ..ContainerStatus::default()
    };
    let Some(old) = old else { return s };
    if is_terminated(&old.state) {
        return old.clone();
    }
    s.restart_count = old.restart_count;
    s.last_state = old.last_state.clone().or(s.last_state);
    let still_default = s
        .state
        .as_ref()
        .and_then(|x| x.waiting.as_ref())
        .is_some_and(|w| w.reason.as_deref() == Some(default_reason));
    if is_running(&old.state) && still_default && !is_terminated(&s.last_state) {
        // It ran, and is gone: saying "waiting" alone would put the pod back to Pending.
        s.last_state = Some(terminated(
            "ContainerStatusUnknown",
            "The container could not be located when the pod was deleted.  The container used to be Running",
            137,
        ));
        if pod.metadata.deletion_timestamp.is_none() {
            s.restart_count += 1;
        }
    }
    s
}

/// The phase (upstream `getPhase`).
pub fn phase(
    pod: &Pod,
    info: &[ContainerStatus],
    terminal: bool,
    has_initialized: bool,
) -> &'static str {
    let spec = podutil::spec(pod);
    let ended = |s: &Option<ContainerState>| {
        s.as_ref()
            .and_then(|s| s.terminated.as_ref())
            .map(|t| t.exit_code)
    };
    let (mut pending_init, mut pending_sidecars, mut failed_for_good) = (0, 0, 0);
    let (mut unknown, mut running, mut waiting, mut stopped, mut stopped_for_good, mut succeeded) =
        (0, 0, 0, 0, 0, 0);
    for c in podutil::init_containers(pod) {
        let status = podutil::status_of(info, &c.name);
        let state = status.and_then(|s| s.state.as_ref());
        if podutil::is_sidecar(c) {
            match (status, state) {
                (None, _) => unknown += 1,
                (Some(s), Some(st)) if st.running.is_some() => {
                    if s.started != Some(true) {
                        pending_sidecars += 1;
                    }
                    running += 1;
                }
                (_, Some(st)) if st.terminated.is_some() => {}
                (Some(s), Some(st)) if st.waiting.is_some() => {
                    if !is_terminated(&s.last_state) {
                        pending_sidecars += 1;
                        waiting += 1;
                    }
                }
                _ => {
                    pending_sidecars += 1;
                    unknown += 1;
                }
            }
            continue;
        }
        let code = match status {
            None => None,
            Some(s) if is_terminated(&s.state) => ended(&s.state),
            Some(s) if state.is_some_and(|st| st.waiting.is_some()) => ended(&s.last_state),
            Some(_) => None,
        };
        match code {
            None => pending_init += 1,
            Some(0) => {}
            Some(code) => failed_for_good += usize::from(!podutil::should_restart(pod, c, code)),
        }
    }
    for c in &spec.containers {
        let Some(s) = podutil::status_of(info, &c.name) else {
            unknown += 1;
            continue;
        };
        let state = s.state.clone().unwrap_or_default();
        if state.running.is_some() {
            running += 1;
        } else if let Some(code) = ended(&s.state) {
            stopped += 1;
            stopped_for_good += usize::from(!podutil::should_restart(pod, c, code));
            succeeded += usize::from(code == 0);
        } else if state.waiting.is_some() {
            match ended(&s.last_state) {
                Some(code) => {
                    stopped += 1;
                    stopped_for_good += usize::from(!podutil::should_restart(pod, c, code));
                }
                None => waiting += 1,
            }
        } else {
            unknown += 1;
        }
    }
    if failed_for_good > 0 {
        return "Failed";
    }
    if pending_init > 0 || (pending_sidecars > 0 && !has_initialized) || waiting > 0 {
        return "Pending";
    }
    let all_succeeded = if stopped == succeeded {
        "Succeeded"
    } else {
        "Failed"
    };
    if running > 0 && unknown == 0 {
        "Running"
    } else if running == 0 && stopped > 0 && unknown == 0 {
        if terminal && !podutil::is_static(pod) {
            all_succeeded
        } else if stopped != stopped_for_good {
            "Running"
        } else {
            all_succeeded
        }
    } else {
        "Pending"
    }
}

/// Sets `started` and `ready` (upstream `prober.manager.UpdatePodStatus`).
fn apply_probes(i: &Inputs<'_>, s: &mut PodStatus) {
    let uid = podutil::uid(i.pod);
    let old = |name: &str| {
        let find = |l: &Option<Vec<ContainerStatus>>| {
            l.as_deref()
                .and_then(|l| podutil::status_of(l, name))
                .cloned()
        };
        find(&i.old.container_statuses).or_else(|| find(&i.old.init_container_statuses))
    };
    let judge = |c: &mut ContainerStatus| {
        let id = c
            .container_id
            .as_deref()
            .and_then(|x| x.split("://").nth(1))
            .unwrap_or_default()
            .to_owned();
        let running_since = c
            .state
            .as_ref()
            .and_then(|x| x.running.as_ref())
            .map(|r| r.started_at.as_ref());
        let Some(since) = running_since else {
            c.started = Some(false);
            c.ready = false;
            return;
        };
        // A container from before this kubelet keeps its verdict until a probe of this kubelet speaks.
        let adopted = since.is_some_and(|t| t.0 < i.probes.began());
        let before = old(&c.name).filter(|o| adopted && o.container_id == c.container_id);
        let started = match i.probes.outcome(&id, Kind::Startup) {
            Some(o) => o == Outcome::Success,
            None if before.as_ref().is_some_and(|o| o.started == Some(true)) => true,
            None => !i.probes.is_probed(uid, &c.name, Kind::Startup),
        };
        c.started = Some(started);
        c.ready = started
            && match i.probes.outcome(&id, Kind::Readiness) {
                Some(o) => o == Outcome::Success,
                None if before.as_ref().is_some_and(|o| o.ready) => true,
                None => !i.probes.is_probed(uid, &c.name, Kind::Readiness),
            };
    };
    for c in s.container_statuses.iter_mut().flatten() {
        judge(c);
    }
    for c in s.init_container_statuses.iter_mut().flatten() {
        let sidecar = podutil::init_containers(i.pod)
            .iter()
            .any(|x| x.name == c.name && podutil::is_sidecar(x));
        judge(c);
        if !sidecar {
            c.ready = c
                .state
                .as_ref()
                .and_then(|x| x.terminated.as_ref())
                .is_some_and(|t| t.exit_code == 0);
        }
    }
}
