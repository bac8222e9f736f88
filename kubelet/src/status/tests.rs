//! Statuses from observations, each case one line.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::generate::{Inputs, ProbeView, StartFailures, generate};
use crate::pod::observed::{Observed, RunState, Sandbox, Seen};
use crate::pod::resize::{Pending, View};
use crate::probe::{Kind, Outcome};

/// Probes that say what `said` says (`container:kind`, all of them successes) and run for what `run` names.
struct Probes {
    said: &'static str,
    run: &'static str,
}

impl ProbeView for Probes {
    fn outcome(&self, id: &str, kind: Kind) -> Option<Outcome> {
        let key = format!("{}:{kind}", id.trim_start_matches("id-"));
        self.said
            .split_whitespace()
            .any(|s| s == key)
            .then_some(Outcome::Success)
    }

    fn is_probed(&self, _: &str, container: &str, kind: Kind) -> bool {
        let key = format!("{container}:{kind}");
        self.run.split_whitespace().any(|s| s == key)
    }

    fn began(&self) -> Timestamp {
        Timestamp::from_second(50).unwrap()
    }
}

fn at(seconds: i64) -> Option<Timestamp> {
    Timestamp::from_second(seconds).ok()
}

/// `name:state[:exit]`, newest first; `-` for no sandbox at all.
fn observed(text: &str) -> Observed {
    let mut o = Observed::default();
    if text == "-" {
        return o;
    }
    o.sandboxes.push(Sandbox {
        id: "s".into(),
        attempt: 0,
        ready: true,
        created_at: 0,
        host_network: false,
        ips: vec!["10.0.0.1".into()],
    });
    for s in text.split_whitespace() {
        let parts: Vec<&str> = s.split(':').collect();
        let state = match parts[1] {
            "r" => RunState::Running,
            "e" => RunState::Exited,
            "c" => RunState::Created,
            _ => RunState::Unknown,
        };
        o.containers.push(Seen {
            id: format!("id-{}", parts[0]),
            name: parts[0].into(),
            sandbox_id: "s".into(),
            state,
            created_at: at(100),
            started_at: at(100),
            finished_at: at(200),
            exit_code: parts.get(2).map_or(0, |x| x.parse().unwrap()),
            reason: if parts.get(2).is_some_and(|x| *x != "0") {
                "Error"
            } else {
                "Completed"
            }
            .into(),
            message: String::new(),
            image: "i".into(),
            image_ref: "i".into(),
            restart_count: 0,
            hash: String::new(),
            user: None,
            annotations: BTreeMap::new(),
        });
    }
    o
}

fn state(c: &ContainerStatus) -> String {
    let s = c.state.clone().unwrap_or_default();
    let what = if let Some(w) = s.waiting {
        format!("waiting({})", w.reason.unwrap_or_default())
    } else if s.running.is_some() {
        "running".to_owned()
    } else {
        format!("ended({})", s.terminated.map_or(-1, |t| t.exit_code))
    };
    let ready = if c.ready { "+" } else { "-" };
    let last = c
        .last_state
        .as_ref()
        .and_then(|l| l.terminated.as_ref())
        .map_or(String::new(), |t| format!("<{}", t.exit_code));
    format!("{}{ready}{what}{last}", c.name)
}

/// The status as `phase [init...] container... True-conditions`.
fn show(s: &PodStatus) -> String {
    let mut out = s.phase.clone().unwrap_or_default();
    for c in s
        .init_container_statuses
        .iter()
        .flatten()
        .chain(s.container_statuses.iter().flatten())
    {
        out.push(' ');
        out.push_str(&state(c));
    }
    let on: Vec<&str> = s
        .conditions
        .iter()
        .flatten()
        .filter(|c| c.status == "True" && c.type_ != "PodScheduled")
        .map(|c| match c.type_.as_str() {
            "PodReadyToStartContainers" => "S",
            "Initialized" => "I",
            "Ready" => "R",
            "ContainersReady" => "C",
            other => other,
        })
        .collect();
    format!("{out} {}", on.concat())
}

#[derive(Default)]
struct Case {
    spec: &'static str,
    seen: &'static str,
    old: &'static str,
    failures: &'static str,
    said: &'static str,
    run: &'static str,
    terminal: bool,
    resize: View,
}

fn check(c: Case, want: &str) {
    let pod: Pod =
        serde_yaml_ng::from_str(&format!("{{metadata: {{uid: u}}, spec: {}}}", c.spec)).unwrap();
    let old: PodStatus =
        serde_yaml_ng::from_str(if c.old.is_empty() { "{}" } else { c.old }).unwrap();
    let failures: StartFailures = c
        .failures
        .split_whitespace()
        .filter_map(|f| f.split_once(':'))
        .map(|(name, reason)| (name.to_owned(), (reason.to_owned(), "m".to_owned())))
        .collect();
    let status = generate(&Inputs {
        pod: &pod,
        observed: &observed(c.seen),
        old: &old,
        failures: &failures,
        runtime: "containerd",
        host_ips: &["1.1.1.1".to_owned()],
        terminal: c.terminal,
        probes: &Probes {
            said: c.said,
            run: c.run,
        },
        resize: &c.resize,
    });
    assert_eq!(
        show(&status).trim(),
        want,
        "{} / {} / {}",
        c.spec,
        c.seen,
        c.old
    );
}

const TWO: &str = "{containers: [{name: a}, {name: b}]}";
const NEVER: &str = "{restartPolicy: Never, containers: [{name: a}, {name: b}]}";
const INIT: &str =
    "{initContainers: [{name: i}, {name: s, restartPolicy: Always}], containers: [{name: a}]}";

#[test]
fn phases_of_regular_containers() {
    let case = |spec, seen| Case {
        spec,
        seen,
        ..Case::default()
    };
    check(
        case(TWO, "-"),
        "Pending a-waiting(ContainerCreating) b-waiting(ContainerCreating) I",
    );
    check(
        case(TWO, ""),
        "Pending a-waiting(ContainerCreating) b-waiting(ContainerCreating) SI",
    );
    check(
        case(TWO, "a:r"),
        "Pending a+running b-waiting(ContainerCreating) SI",
    );
    check(case(TWO, "a:r b:r"), "Running a+running b+running SIRC");
    check(case(TWO, "a:e:1 b:r"), "Running a-ended(1) b+running SI");
    check(
        case(NEVER, "a:e:0 b:e:0"),
        "Succeeded a-ended(0) b-ended(0) SI",
    );
    check(
        case(NEVER, "a:e:0 b:e:2"),
        "Failed a-ended(0) b-ended(2) SI",
    );
    check(case(NEVER, "a:e:0 b:r"), "Running a-ended(0) b+running SI");
    // All have ended, but will be started again, unless the pod is at its end.
    check(case(TWO, "a:e:0 b:e:0"), "Running a-ended(0) b-ended(0) SI");
    check(
        Case {
            terminal: true,
            ..case(TWO, "a:e:0 b:e:137")
        },
        "Failed a-ended(0) b-ended(137) SI",
    );
}

#[test]
fn failures_and_the_past() {
    let one = "{containers: [{name: a}]}";
    check(
        Case {
            spec: one,
            seen: "a:e:3",
            failures: "a:CrashLoopBackOff",
            ..Case::default()
        },
        "Running a-waiting(CrashLoopBackOff)<3 SI",
    );
    check(
        Case {
            spec: one,
            seen: "",
            failures: "a:ErrImagePull",
            ..Case::default()
        },
        "Pending a-waiting(ErrImagePull) SI",
    );
    // A container that ran and is gone from the runtime does not take the pod back to Pending.
    let ran = "{phase: Running, containerStatuses: [{name: a, image: i, imageID: i, ready: true, restartCount: 0, state: {running: {}}}]}";
    check(
        Case {
            spec: one,
            seen: "",
            old: ran,
            ..Case::default()
        },
        "Running a-waiting(ContainerCreating)<137 SI",
    );
    // A terminal phase is never left; a refused pod has no containers that wait.
    check(
        Case {
            spec: one,
            seen: "-",
            old: "{phase: Failed, reason: OutOfcpu}",
            ..Case::default()
        },
        "Failed I",
    );
    // Nor by containers that end well once the kubelet has judged the pod.
    check(
        Case {
            spec: "{restartPolicy: Never, containers: [{name: a}]}",
            seen: "a:e:0",
            old: "{phase: Failed, reason: DeadlineExceeded}",
            terminal: true,
            ..Case::default()
        },
        "Failed a-ended(0) SI",
    );
}

#[test]
fn init_containers_and_probes() {
    let case = |seen| Case {
        spec: INIT,
        seen,
        ..Case::default()
    };
    let w = "waiting(PodInitializing)";
    check(case("i:r"), &format!("Pending i-running s-{w} a-{w} S"));
    check(
        case("s:r i:e:0"),
        &format!("Pending i+ended(0) s+running a-{w} SI"),
    );
    check(
        case("a:r s:r i:e:0"),
        "Running i+ended(0) s+running a+running SIRC",
    );
    // Lost init containers of a pod that runs have done their work.
    check(
        case("a:r s:r"),
        "Running i+ended(0) s+running a+running SIRC",
    );
    let never = "{restartPolicy: Never, initContainers: [{name: i}], containers: [{name: a}]}";
    check(
        Case {
            spec: never,
            seen: "i:e:1",
            ..Case::default()
        },
        &format!("Failed i-ended(1) a-{w} S"),
    );

    let one = "{containers: [{name: a}]}";
    let probed = |said, run| Case {
        spec: one,
        seen: "a:r",
        said,
        run,
        ..Case::default()
    };
    check(probed("", "a:Startup a:Readiness"), "Running a-running SI");
    check(
        probed("a:Startup", "a:Startup a:Readiness"),
        "Running a-running SI",
    );
    check(
        probed("a:Startup a:Readiness", "a:Startup a:Readiness"),
        "Running a+running SIRC",
    );
    // A readiness gate holds back the pod, not its containers.
    let gate = "{containers: [{name: a}], readinessGates: [{conditionType: x}]}";
    check(
        Case {
            spec: gate,
            seen: "a:r",
            ..Case::default()
        },
        "Running a+running SIC",
    );
}

#[test]
fn resizes_are_told_until_they_are_in_force() {
    let pod: Pod = serde_yaml_ng::from_str(
        "{metadata: {uid: u, generation: 3}, spec: {containers: [{name: a, resources: {requests: {cpu: 200m}}}]}}",
    )
    .unwrap();
    let in_force: ResourceRequirements =
        serde_yaml_ng::from_str("{requests: {cpu: 100m}}").unwrap();
    let seen = observed("a:r");
    let check = |resize: View, conditions: &[(&str, &str)], cpu: &str| {
        let status = generate(&Inputs {
            pod: &pod,
            observed: &seen,
            old: &PodStatus::default(),
            failures: &StartFailures::default(),
            runtime: "containerd",
            host_ips: &[],
            terminal: false,
            probes: &Probes { said: "", run: "" },
            resize: &resize,
        });
        let told: Vec<_> = status
            .conditions
            .iter()
            .flatten()
            .filter(|c| c.type_.starts_with("PodResize"))
            .map(|c| (c.type_.as_str(), c.reason.as_deref().unwrap_or_default()))
            .collect();
        assert_eq!(told, conditions);
        let c = &status.container_statuses.as_ref().unwrap()[0];
        let request = |list: Option<&std::collections::BTreeMap<String, Quantity>>| {
            list.and_then(|l| l.get("cpu")).map(|q| q.0.clone())
        };
        // What is allocated is told apart from what is in force.
        assert_eq!(
            request(c.allocated_resources.as_ref()).as_deref(),
            Some("200m")
        );
        let now = c.resources.as_ref().and_then(|r| r.requests.as_ref());
        assert_eq!(request(now).as_deref(), Some(cpu));
    };
    let id = seen.containers[0].id.clone();
    let under_way = View {
        in_progress: Some(None),
        in_force: [(id, in_force)].into(),
        ..View::default()
    };
    check(under_way.clone(), &[("PodResizeInProgress", "")], "100m");
    let failed = View {
        in_progress: Some(Some("no".into())),
        pending: Some(Pending {
            reason: "Deferred",
            message: "full".into(),
        }),
        ..under_way
    };
    let both = [
        ("PodResizePending", "Deferred"),
        ("PodResizeInProgress", "Error"),
    ];
    check(failed, &both, "100m");
    check(View::default(), &[], "200m");
}
