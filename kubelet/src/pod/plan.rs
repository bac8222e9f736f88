//! What to do about a pod: a pure function of what is wanted, what the runtime has and what the probes say
//! (upstream `kuberuntime.computePodActions`).

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{Container, Pod};

use super::observed::{Observed, RunState, Sandbox, Seen};
use super::resize::Resize;
use crate::podutil;
use crate::probe::{Kind, Outcome};

/// Why a container is ended; decides on its grace period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KillReason {
    /// Its startup probe failed.
    StartupProbe,
    /// Its liveness probe failed.
    LivenessProbe,
    /// Its postStart hook failed.
    FailedPostStartHook,
    /// Anything else.
    Other,
}

/// A container to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kill {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// For the event.
    pub message: String,
    /// Why.
    pub reason: KillReason,
}

/// What is to be done, in the order of the fields. Indices are into the pod's lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// End all containers and the sandbox.
    pub kill_pod: bool,
    /// End these containers.
    pub kill: Vec<Kill>,
    /// Bring what is in force in these running containers in line; by id.
    pub resize: Vec<String>,
    /// Make a new sandbox...
    pub create_sandbox: bool,
    /// ...with this number...
    pub attempt: u32,
    /// ...or use this one. With `create_sandbox` set, the one that is replaced.
    pub sandbox_id: Option<String>,
    /// Start these ephemeral containers.
    pub ephemeral: Vec<usize>,
    /// Start these init containers.
    pub init: Vec<usize>,
    /// Start these regular containers.
    pub start: Vec<usize>,
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        !self.kill_pod
            && !self.create_sandbox
            && self.kill.is_empty()
            && self.resize.is_empty()
            && self.ephemeral.is_empty()
            && self.init.is_empty()
            && self.start.is_empty()
    }
}

/// Running containers that are to be resized, by id.
pub type Resizes = HashMap<String, Resize>;

/// What a probe last said of a container, by its id.
pub type Probed<'a> = &'a dyn Fn(&str, Kind) -> Option<Outcome>;

/// Whether the pod needs a new sandbox, with the number it gets and the sandbox in question
/// (upstream `PodSandboxChanged`).
pub fn sandbox_changed(pod: &Pod, observed: &Observed) -> (bool, u32, Option<String>) {
    let Some(newest) = observed.sandboxes.first() else {
        return (true, 0, None);
    };
    let fresh = |s: &Sandbox, id: Option<String>| (true, s.attempt + 1, id);
    if observed.sandboxes.iter().filter(|s| s.ready).count() > 1 || !newest.ready {
        return fresh(newest, Some(newest.id.clone()));
    }
    if newest.host_network != podutil::is_host_network(pod) {
        return fresh(newest, None);
    }
    if !newest.host_network && newest.ips.is_empty() {
        return fresh(newest, Some(newest.id.clone()));
    }
    (false, newest.attempt, Some(newest.id.clone()))
}

/// Whether a container that does not run is to be started (upstream `ShouldContainerBeRestarted`).
pub fn should_start(pod: &Pod, container: &Container, observed: &Observed) -> bool {
    if pod.metadata.deletion_timestamp.is_some() {
        return false;
    }
    match observed.latest(&container.name) {
        None => true,
        Some(s) => match s.state {
            RunState::Running => false,
            RunState::Unknown | RunState::Created => true,
            RunState::Exited => podutil::should_restart(pod, container, s.exit_code),
        },
    }
}

/// Whether any regular container was ever made.
pub fn any_regular_created(pod: &Pod, observed: &Observed) -> bool {
    podutil::containers(pod)
        .iter()
        .any(|c| observed.latest(&c.name).is_some())
}

fn init_failed(s: &Seen) -> bool {
    s.reason == "OOMKilled"
        || (s.state == RunState::Exited && s.exit_code != 0)
        || s.state == RunState::Unknown
}

/// Computes what to do about `pod`.
pub fn plan(pod: &Pod, observed: &Observed, probed: Probed<'_>, resizes: &Resizes) -> Plan {
    let (create, attempt, sandbox_id) = sandbox_changed(pod, observed);
    let mut plan = Plan {
        kill_pod: create,
        create_sandbox: create,
        attempt,
        sandbox_id,
        ..Plan::default()
    };
    if create {
        plan_sandbox(pod, observed, &mut plan);
        return plan;
    }
    for (i, c) in podutil::ephemeral_containers(pod).iter().enumerate() {
        // Ephemeral containers run once.
        if observed.latest(&c.name).is_none() {
            plan.ephemeral.push(i);
        }
    }
    let initialized = plan_init(pod, observed, probed, &mut plan);
    if plan.kill_pod || !initialized {
        return plan;
    }
    plan_regular(pod, observed, probed, &mut plan);
    plan_resizes(pod, observed, resizes, &mut plan);
    plan
}

fn plan_sandbox(pod: &Pod, observed: &Observed, plan: &mut Plan) {
    let never = podutil::restart_policy(pod) == "Never";
    // All was run once and is not to be run again: no sandbox just to end it.
    if never && plan.attempt != 0 && !observed.containers.is_empty() {
        plan.create_sandbox = false;
        return;
    }
    let start: Vec<usize> = podutil::containers(pod)
        .iter()
        .enumerate()
        .filter(|(_, c)| {
            let policy = c
                .restart_policy
                .as_deref()
                .unwrap_or(podutil::restart_policy(pod));
            let succeeded = observed
                .latest(&c.name)
                .is_some_and(|s| s.state == RunState::Exited && s.exit_code == 0);
            !(policy == "OnFailure" && succeeded)
        })
        .map(|(i, _)| i)
        .collect();
    if start.is_empty() && any_regular_created(pod, observed) {
        plan.create_sandbox = false;
        return;
    }
    if podutil::init_containers(pod).is_empty() {
        plan.start = start;
    } else {
        plan.init = vec![0];
    }
}

/// Plans the init containers; returns whether the regular ones may be looked at. The list is read from its end,
/// because ended init containers may be gone from the runtime: the last one that is known decides
/// (upstream `computeInitContainerActions`).
fn plan_init(pod: &Pod, observed: &Observed, probed: Probed<'_>, plan: &mut Plan) -> bool {
    let inits = podutil::init_containers(pod);
    if inits.is_empty() {
        return true;
    }
    let mut pod_initialized = podutil::containers(pod).iter().any(|c| {
        observed
            .latest(&c.name)
            .is_some_and(|s| matches!(s.state, RunState::Created | RunState::Running))
    });
    let mut previously = pod_initialized;
    for i in (0..inits.len()).rev() {
        let c = &inits[i];
        let sidecar = podutil::is_sidecar(c);
        let last = i == inits.len() - 1;
        let Some(seen) = observed.latest(&c.name) else {
            if previously && sidecar {
                plan.init.push(i);
            }
            continue;
        };
        if previously && !sidecar {
            continue;
        }
        match seen.state {
            RunState::Created => plan.init.push(i),
            RunState::Running if sidecar => {
                if sidecar_initialized(c, seen, i, probed, plan) {
                    if last {
                        pod_initialized = true;
                    } else if !previously {
                        plan.init.push(i + 1);
                    }
                    keep_sidecar(c, seen, i, probed, plan);
                }
            }
            RunState::Running => {}
            RunState::Exited if sidecar => plan.init.push(i),
            RunState::Exited => {
                if init_failed(seen) {
                    if !should_start(pod, c, observed) {
                        plan.kill_pod = true;
                        plan.init.clear();
                        return false;
                    }
                    plan.init.push(i);
                } else if last {
                    pod_initialized = true;
                } else {
                    plan.init.push(i + 1);
                }
            }
            RunState::Unknown => {
                let policy = c
                    .restart_policy
                    .as_deref()
                    .unwrap_or(podutil::restart_policy(pod));
                if !sidecar && policy == "Never" {
                    plan.kill_pod = true;
                    plan.init.clear();
                    return false;
                }
                plan.kill.push(Kill {
                    id: seen.id.clone(),
                    name: c.name.clone(),
                    message:
                        "Init container is in \"unknown\" state, try killing it before restart"
                            .to_owned(),
                    reason: KillReason::Other,
                });
                plan.init.push(i);
            }
        }
        previously = true;
    }
    if !previously {
        plan.init.push(0);
    }
    plan.init.reverse();
    pod_initialized
}

/// Whether a running sidecar is past its startup probe. One that failed it is ended and started again.
fn sidecar_initialized(
    c: &Container,
    seen: &Seen,
    i: usize,
    probed: Probed<'_>,
    plan: &mut Plan,
) -> bool {
    if c.startup_probe.is_none() {
        return true;
    }
    match probed(&seen.id, Kind::Startup) {
        Some(Outcome::Success) => true,
        Some(Outcome::Failure) => {
            plan.kill.push(Kill {
                id: seen.id.clone(),
                name: c.name.clone(),
                message: format!("Init container {} failed startup probe", c.name),
                reason: KillReason::StartupProbe,
            });
            plan.init.push(i);
            false
        }
        Some(Outcome::Unknown) | None => false,
    }
}

fn keep_sidecar(c: &Container, seen: &Seen, i: usize, probed: Probed<'_>, plan: &mut Plan) {
    let (message, reason) = if !seen.hash.is_empty() && seen.hash != podutil::container_hash(c) {
        (
            format!("Init container {} definition changed", c.name),
            KillReason::Other,
        )
    } else if c.liveness_probe.is_some()
        && probed(&seen.id, Kind::Liveness) == Some(Outcome::Failure)
    {
        (
            format!("Init container {} failed liveness probe", c.name),
            KillReason::LivenessProbe,
        )
    } else {
        return;
    };
    plan.kill.push(Kill {
        id: seen.id.clone(),
        name: c.name.clone(),
        message,
        reason,
    });
    plan.init.push(i);
}

fn plan_regular(pod: &Pod, observed: &Observed, probed: Probed<'_>, plan: &mut Plan) {
    let mut kept = 0;
    for (i, c) in podutil::containers(pod).iter().enumerate() {
        let running = match observed.latest(&c.name) {
            Some(s) if s.state == RunState::Running => s,
            other => {
                if should_start(pod, c, observed) {
                    plan.start.push(i);
                    if let Some(s) = other.filter(|s| s.state == RunState::Unknown) {
                        plan.kill.push(Kill {
                            id: s.id.clone(),
                            name: c.name.clone(),
                            message:
                                "Container is in \"unknown\" state, try killing it before restart"
                                    .to_owned(),
                            reason: KillReason::Other,
                        });
                    }
                }
                continue;
            }
        };
        let mut restart = c
            .restart_policy
            .as_deref()
            .unwrap_or(podutil::restart_policy(pod))
            != "Never";
        let (mut message, reason) = if changed(c, running) {
            restart = true;
            (
                format!("Container {} definition changed", c.name),
                KillReason::Other,
            )
        } else if probed(&running.id, Kind::Liveness) == Some(Outcome::Failure) {
            (
                format!("Container {} failed liveness probe", c.name),
                KillReason::LivenessProbe,
            )
        } else if probed(&running.id, Kind::Startup) == Some(Outcome::Failure) {
            (
                format!("Container {} failed startup probe", c.name),
                KillReason::StartupProbe,
            )
        } else {
            kept += 1;
            continue;
        };
        if restart {
            message.push_str(", will be restarted");
            plan.start.push(i);
        }
        plan.kill.push(Kill {
            id: running.id.clone(),
            name: c.name.clone(),
            message,
            reason,
        });
    }
    if kept == 0 && plan.start.is_empty() {
        plan.kill_pod = true;
        // Sidecars alone do not keep a pod alive.
        plan.init.clear();
    }
}

/// Plans what is in force for the containers that stay as they are; those whose policy says so start anew instead.
fn plan_resizes(pod: &Pod, observed: &Observed, resizes: &Resizes, plan: &mut Plan) {
    if plan.kill_pod {
        return;
    }
    let sidecars = podutil::init_containers(pod).iter().enumerate();
    let sidecars = sidecars.filter(|(_, c)| podutil::is_sidecar(c));
    let regular = podutil::containers(pod).iter().enumerate();
    for (i, c, sidecar) in sidecars
        .map(|(i, c)| (i, c, true))
        .chain(regular.map(|(i, c)| (i, c, false)))
    {
        let Some(seen) = observed.latest(&c.name) else {
            continue;
        };
        let Some(how) = resizes.get(&seen.id) else {
            continue;
        };
        // One that ends anyway comes back with what is allocated.
        if plan.kill.iter().any(|k| k.id == seen.id) {
            continue;
        }
        match how {
            Resize::InPlace => plan.resize.push(seen.id.clone()),
            Resize::Restart => {
                plan.kill.push(Kill {
                    id: seen.id.clone(),
                    name: c.name.clone(),
                    message: format!("Container {} resize requires restart", c.name),
                    reason: KillReason::Other,
                });
                let list = if sidecar {
                    &mut plan.init
                } else {
                    &mut plan.start
                };
                list.push(i);
                list.sort_unstable();
            }
        }
    }
}

fn changed(c: &Container, seen: &Seen) -> bool {
    !seen.hash.is_empty() && seen.hash != podutil::container_hash(c)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;

    /// `seen` is a list of `name:state[:exit]`, newest first, with state one of c r e u; `probes` of `name:kind:result`.
    fn check(spec: &str, sandbox: &str, seen: &str, probes: &str, want: &str) {
        check_resizes(spec, sandbox, seen, probes, &Resizes::new(), want);
    }

    fn check_resizes(
        spec: &str,
        sandbox: &str,
        seen: &str,
        probes: &str,
        resizes: &Resizes,
        want: &str,
    ) {
        let pod: Pod = serde_yaml_ng::from_str(&format!("spec: {spec}")).unwrap();
        let mut observed = Observed::default();
        for (n, s) in sandbox.split_whitespace().enumerate() {
            observed.sandboxes.push(Sandbox {
                id: format!("s{n}"),
                attempt: 0,
                ready: s == "ready",
                created_at: -(n as i64),
                host_network: false,
                ips: vec!["10.0.0.1".into()],
            });
        }
        for s in seen.split_whitespace() {
            let mut parts = s.split(':');
            let name = parts.next().unwrap().to_owned();
            let state = match parts.next().unwrap() {
                "c" => RunState::Created,
                "r" => RunState::Running,
                "e" => RunState::Exited,
                _ => RunState::Unknown,
            };
            observed.containers.push(Seen {
                id: format!("id-{name}"),
                name,
                sandbox_id: "s0".into(),
                state,
                created_at: None,
                started_at: None,
                finished_at: None,
                exit_code: parts.next().map_or(0, |x| x.parse().unwrap()),
                reason: String::new(),
                message: String::new(),
                image: String::new(),
                image_ref: String::new(),
                restart_count: 0,
                hash: String::new(),
                user: None,
                annotations: Default::default(),
            });
        }
        let probed = |id: &str, kind: Kind| {
            let result = probes.split_whitespace().find_map(|p| {
                p.strip_prefix(&format!("{}:{}:", id.trim_start_matches("id-"), kind))
            })?;
            Some(if result == "ok" {
                Outcome::Success
            } else {
                Outcome::Failure
            })
        };
        let p = plan(&pod, &observed, &probed, resizes);
        let mut got = String::new();
        if p.kill_pod {
            got.push_str("killpod ");
        }
        for k in &p.kill {
            write!(got, "kill={} ", k.name).unwrap();
        }
        if !p.resize.is_empty() {
            write!(got, "resize{:?} ", p.resize).unwrap();
        }
        if p.create_sandbox {
            write!(got, "sandbox{} ", p.attempt).unwrap();
        }
        for (what, list) in [
            ("eph", &p.ephemeral),
            ("init", &p.init),
            ("start", &p.start),
        ] {
            if !list.is_empty() {
                write!(got, "{what}{list:?} ").unwrap();
            }
        }
        assert_eq!(got.trim(), want, "{spec} / {sandbox} / {seen} / {probes}");
    }

    #[test]
    fn sandbox_and_restart_policy() {
        let two = "{containers: [{name: a}, {name: b}]}";
        check(two, "", "", "", "killpod sandbox0 start[0, 1]");
        check(two, "ready", "", "", "start[0, 1]");
        check(two, "ready", "a:r b:r", "", "");
        check(two, "ready", "a:e:0 b:r", "", "start[0]");
        check(
            two,
            "dead",
            "a:e:1 b:e:1",
            "",
            "killpod sandbox1 start[0, 1]",
        );
        check(
            two,
            "ready ready",
            "a:r b:r",
            "",
            "killpod sandbox1 start[0, 1]",
        );
        check(two, "ready", "a:u b:r", "", "kill=a start[0]");
        let never = "{restartPolicy: Never, containers: [{name: a}, {name: b}]}";
        check(never, "ready", "a:e:1 b:r", "", "");
        check(never, "ready", "a:e:1 b:e:0", "", "killpod");
        check(never, "dead", "a:e:1", "", "killpod");
        check(never, "dead", "", "", "killpod sandbox1 start[0, 1]");
        let fail = "{restartPolicy: OnFailure, containers: [{name: a}, {name: b}]}";
        check(fail, "ready", "a:e:1 b:e:0", "", "start[0]");
        check(fail, "ready", "a:e:0 b:e:0", "", "killpod");
        check(fail, "dead", "a:e:0 b:e:3", "", "killpod sandbox1 start[1]");
        check(fail, "dead", "a:e:0 b:e:0", "", "killpod");
        let rule = "{restartPolicy: Never, containers: [{name: a, restartPolicy: Never, restartPolicyRules: \
            [{action: Restart, exitCodes: {operator: In, values: [42]}}]}]}";
        check(rule, "ready", "a:e:42", "", "start[0]");
        check(rule, "ready", "a:e:1", "", "killpod");
    }

    #[test]
    fn init_containers() {
        let two = "{initContainers: [{name: i}, {name: j}], containers: [{name: a}]}";
        check(two, "", "", "", "killpod sandbox0 init[0]");
        check(two, "ready", "", "", "init[0]");
        check(two, "ready", "i:r", "", "");
        check(two, "ready", "i:e:0", "", "init[1]");
        check(two, "ready", "i:e:1", "", "init[0]");
        check(two, "ready", "j:e:0 i:e:0", "", "start[0]");
        check(two, "ready", "j:c i:e:0", "", "init[1]");
        // What has run is remembered by the last one, even when the first is gone.
        check(two, "ready", "j:e:0", "", "start[0]");
        check(two, "ready", "a:r", "", "");
        let never = "{restartPolicy: Never, initContainers: [{name: i}], containers: [{name: a}]}";
        check(never, "ready", "i:e:1", "", "killpod");
    }

    #[test]
    fn sidecars() {
        let s = "{initContainers: [{name: s, restartPolicy: Always}, {name: j}], containers: [{name: a}]}";
        check(s, "ready", "s:r", "", "init[1]");
        check(s, "ready", "j:e:0 s:r", "", "start[0]");
        check(s, "ready", "a:r j:e:0 s:e:1", "", "init[0]");
        check(s, "ready", "a:r j:e:0", "", "init[0]");
        let p = "{initContainers: [{name: s, restartPolicy: Always, startupProbe: {}, livenessProbe: {}}], containers: [{name: a}]}";
        check(p, "ready", "s:r", "", "");
        check(p, "ready", "s:r", "s:Startup:bad", "kill=s init[0]");
        check(p, "ready", "s:r", "s:Startup:ok", "start[0]");
        check(
            p,
            "ready",
            "a:r s:r",
            "s:Startup:ok s:Liveness:bad",
            "kill=s init[0]",
        );
        let n = "{restartPolicy: Never, initContainers: [{name: s, restartPolicy: Always}], containers: [{name: a}]}";
        check(n, "ready", "a:e:0 s:r", "", "killpod");
    }

    #[test]
    fn probes_and_ephemeral() {
        let one = "{containers: [{name: a}], ephemeralContainers: [{name: e}]}";
        check(one, "ready", "a:r", "a:Liveness:ok", "eph[0]");
        check(
            one,
            "ready",
            "a:r e:e:1",
            "a:Liveness:bad",
            "kill=a start[0]",
        );
        check(one, "ready", "a:r e:r", "a:Startup:bad", "kill=a start[0]");
        let never = "{restartPolicy: Never, containers: [{name: a}, {name: b}]}";
        check(never, "ready", "a:r b:r", "a:Liveness:bad", "kill=a");
    }

    #[test]
    fn resizes() {
        let two = "{initContainers: [{name: s, restartPolicy: Always}], containers: [{name: a}, {name: b}]}";
        let check =
            |sandbox: &str, seen: &str, probes: &str, how: &[(&str, Resize)], want: &str| {
                let resizes = how.iter().map(|(id, how)| ((*id).to_owned(), *how));
                check_resizes(two, sandbox, seen, probes, &resizes.collect(), want);
            };
        let all = "a:r b:r s:r";
        let (place, restart) = (Resize::InPlace, Resize::Restart);
        check(
            "ready",
            all,
            "",
            &[("id-a", place), ("id-s", place)],
            r#"resize["id-s", "id-a"]"#,
        );
        check(
            "ready",
            all,
            "",
            &[("id-b", restart), ("id-a", place)],
            r#"kill=b resize["id-a"] start[1]"#,
        );
        check("ready", all, "", &[("id-s", restart)], "kill=s init[0]");
        // What is killed for another reason is not resized, nor is anything of a pod that ends.
        check(
            "ready",
            all,
            "a:Liveness:bad",
            &[("id-a", restart)],
            "kill=a start[0]",
        );
        check(
            "dead",
            all,
            "",
            &[("id-a", place)],
            "killpod sandbox1 init[0]",
        );
    }
}
