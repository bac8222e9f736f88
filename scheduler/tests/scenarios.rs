//! Whole decisions: a cluster and a pod go in, the node or the message comes out.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use keelson_scheduler::labels::Labels;
use keelson_scheduler::plugins::default_framework;
use keelson_scheduler::plugins::volume_binding::VolumeWrite;
use keelson_scheduler::queue::Backoff;
use keelson_scheduler::scheduler::{Action, Scheduler};
use keelson_scheduler::storage::{Claim, Class, Volume};
use serde_json::{Value, json};
use tokio::time::Instant;

fn merged(mut base: Value, over: Value) -> Value {
    match (&mut base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                let old = base.remove(&key).unwrap_or(Value::Null);
                base.insert(key, merged(old, value));
            }
        }
        (_, over) => return over,
    }
    base
}

/// A node with 4 CPUs, 8 GiB and room for 10 pods in zone `z<last digit modulo 2>`.
fn node(name: &str, over: Value) -> Node {
    let zone = format!("z{}", name.bytes().last().unwrap() % 2);
    let base = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": zone}},
        "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "10"}}});
    serde_json::from_value(merged(base, over)).unwrap()
}

fn pod(name: &str, over: Value) -> Pod {
    let base = json!({
        "metadata": {"name": name, "namespace": "ns", "uid": name, "labels": {"app": name.split('-').next()}},
        "spec": {"schedulerName": "default-scheduler", "containers": [{"name": "c"}]}});
    serde_json::from_value(merged(base, over)).unwrap()
}

fn asks(cpu: &str) -> Value {
    json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}})
}

fn on(node: &str) -> Value {
    json!({"spec": {"nodeName": node}})
}

fn both(a: Value, b: Value) -> Value {
    merged(a, b)
}

fn cluster(nodes: Vec<Node>, pods: Vec<Pod>, now: Instant) -> Scheduler {
    let mut scheduler = Scheduler::new(
        default_framework("default-scheduler"),
        Backoff::default(),
        1,
    );
    scheduler.namespace_applied("ns", Labels::new(), now);
    for node in &nodes {
        scheduler.node_applied(node, now);
    }
    for pod in &pods {
        scheduler.pod_applied(pod, now);
    }
    scheduler
}

/// What became of the next pod: `on NODE`, or what the user is told.
fn outcome(scheduler: &mut Scheduler, now: Instant) -> String {
    let Some(attempt) = scheduler.schedule_one(now) else {
        return "nothing to do".to_owned();
    };
    for action in attempt.actions {
        match action {
            Action::Bind { node, .. } => return format!("on {node}"),
            Action::ReportFailure { message, .. } => return message,
            Action::PatchStatus { .. } | Action::Preempt { .. } => {}
        }
    }
    "nothing said".to_owned()
}

#[test]
fn one_pod() {
    let affinity =
        |kind: &str, rule: &str, value: Value| json!({"spec": {"affinity": {kind: {rule: value}}}});
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
    let near = |app: &str, key: &str| json!({"labelSelector": {"matchLabels": {"app": app}}, "topologyKey": key});
    let spread = |key: &str, when: &str| {
        json!({"spec": {"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": when,
            "labelSelector": {"matchLabels": {"app": "web"}}}]}})
    };
    let name_is = |names: &[&str]| {
        affinity(
            "nodeAffinity",
            REQUIRED,
            json!({"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": names}]}]}),
        )
    };
    let tainted =
        |effect: &str| json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": effect}]}});
    let zone = "topology.kubernetes.io/zone";
    let host = "kubernetes.io/hostname";
    let hopeless = |n: usize| {
        format!(
            " preemption: 0/{n} nodes are available: {n} Preemption is not helpful for scheduling."
        )
    };
    let no_victims = |n: usize| {
        format!(
            " preemption: 0/{n} nodes are available: {n} No preemption victims found for incoming pod."
        )
    };

    type Case = (&'static str, Vec<Node>, Vec<Pod>, Pod, String);
    let cases: Vec<Case> = vec![
        ("no nodes", vec![], vec![], pod("web-1", json!({})), "no nodes available to schedule pods".into()),
        ("fits", vec![node("n1", json!({}))], vec![], pod("web-1", asks("1")), "on n1".into()),
        (
            "too big for any",
            vec![node("n1", json!({})), node("n2", json!({}))],
            vec![],
            pod("web-1", asks("5")),
            format!("0/2 nodes are available: 2 Insufficient cpu.{}", hopeless(2)),
        ),
        (
            "full",
            vec![node("n1", json!({}))],
            vec![pod("old-1", both(asks("3"), on("n1")))],
            pod("web-1", asks("2")),
            format!("0/1 nodes are available: 1 Insufficient cpu.{}", no_victims(1)),
        ),
        (
            "the emptier node",
            vec![node("n1", json!({})), node("n2", json!({}))],
            vec![pod("old-1", both(asks("2"), on("n1")))],
            pod("web-1", asks("1")),
            "on n2".into(),
        ),
        (
            "cordoned and tainted",
            vec![node("n1", json!({"spec": {"unschedulable": true}})), node("n2", tainted("NoSchedule")), node("n3", tainted("NoExecute"))],
            vec![],
            pod("web-1", json!({})),
            format!("0/3 nodes are available: 1 node(s) were unschedulable, 2 node(s) had untolerated taint(s).{}", hopeless(3)),
        ),
        (
            "tolerated",
            vec![node("n1", tainted("NoSchedule"))],
            vec![],
            pod("web-1", json!({"spec": {"tolerations": [{"key": "k", "operator": "Exists"}]}})),
            "on n1".into(),
        ),
        (
            "soft taints repel",
            vec![node("n1", tainted("PreferNoSchedule")), node("n2", json!({}))],
            vec![],
            pod("web-1", json!({})),
            "on n2".into(),
        ),
        (
            "node selector",
            vec![node("n1", json!({}))],
            vec![],
            pod("web-1", json!({"spec": {"nodeSelector": {"disk": "ssd"}}})),
            format!("0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.{}", hopeless(1)),
        ),
        ("by name", vec![node("n1", json!({})), node("n2", json!({}))], vec![], pod("web-1", name_is(&["n2"])), "on n2".into()),
        (
            "by name, but full",
            vec![node("n1", json!({})), node("n2", json!({}))],
            vec![pod("old-1", both(asks("4"), on("n2")))],
            pod("web-1", both(name_is(&["n2"]), asks("1"))),
            "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) didn't satisfy plugin(s) [NodeAffinity]. preemption: 0/2 nodes are available: 1 No preemption victims found for incoming pod, 1 Preemption is not helpful for scheduling.".into(),
        ),
        (
            "preferred node",
            vec![node("n1", json!({})), node("n2", json!({"metadata": {"labels": {"disk": "ssd"}}}))],
            vec![],
            pod("web-1", affinity("nodeAffinity", PREFERRED, json!([{"weight": 1, "preference": {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]}}]))),
            "on n2".into(),
        ),
        (
            "host port taken",
            vec![node("n1", json!({}))],
            vec![pod("old-1", both(on("n1"), json!({"spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]}})))],
            pod("web-1", json!({"spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80, "hostIP": "10.0.0.1"}]}]}})),
            format!("0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports.{}", no_victims(1)),
        ),
        (
            "near another pod",
            vec![node("n1", json!({})), node("n2", json!({}))],
            vec![pod("db-1", on("n2"))],
            pod("web-1", affinity("podAffinity", REQUIRED, json!([near("db", host)]))),
            "on n2".into(),
        ),
        (
            "near nobody there",
            vec![node("n1", json!({}))],
            vec![],
            pod("web-1", affinity("podAffinity", REQUIRED, json!([near("db", host)]))),
            format!("0/1 nodes are available: 1 node(s) didn't match pod affinity rules.{}", hopeless(1)),
        ),
        (
            "the first among its own kind",
            vec![node("n1", json!({}))],
            vec![],
            pod("web-1", affinity("podAffinity", REQUIRED, json!([near("web", zone)]))),
            "on n1".into(),
        ),
        (
            "away from another pod",
            vec![node("n1", json!({})), node("n2", json!({}))],
            vec![pod("web-0", on("n2"))],
            pod("web-1", affinity("podAntiAffinity", REQUIRED, json!([near("web", host)]))),
            "on n1".into(),
        ),
        (
            "others want to be away",
            vec![node("n1", json!({})), node("n3", json!({}))],
            vec![pod("db-1", both(on("n1"), affinity("podAntiAffinity", REQUIRED, json!([near("web", zone)]))))],
            pod("web-1", json!({})),
            format!("0/2 nodes are available: 2 node(s) didn't satisfy existing pods anti-affinity rules.{}", no_victims(2)),
        ),
        (
            "prefers company",
            vec![node("n1", json!({})), node("n2", json!({}))],
            vec![pod("db-1", on("n1"))],
            pod("web-1", affinity("podAffinity", PREFERRED, json!([{"weight": 100, "podAffinityTerm": near("db", host)}]))),
            "on n1".into(),
        ),
        (
            "spread hard",
            vec![node("n1", json!({})), node("n2", json!({}))],
            vec![pod("web-0", on("n1"))],
            pod("web-1", spread(zone, "DoNotSchedule")),
            "on n2".into(),
        ),
        (
            "spread without the label",
            vec![node("n1", json!({}))],
            vec![],
            pod("web-1", spread("rack", "DoNotSchedule")),
            format!("0/1 nodes are available: 1 node(s) didn't match pod topology spread constraints (missing required label).{}", hopeless(1)),
        ),
        (
            "spread full domain",
            vec![node("n1", json!({})), node("n2", json!({"spec": {"unschedulable": true}}))],
            vec![pod("web-0", on("n1"))],
            pod("web-1", spread(zone, "DoNotSchedule")),
            "0/2 nodes are available: 1 node(s) didn't match pod topology spread constraints, 1 node(s) were unschedulable. preemption: 0/2 nodes are available: 1 No preemption victims found for incoming pod, 1 Preemption is not helpful for scheduling.".into(),
        ),
        (
            "spread soft",
            vec![node("n1", json!({})), node("n2", json!({}))],
            vec![pod("web-0", on("n1")), pod("old-1", both(asks("100m"), on("n2")))],
            pod("web-1", spread(host, "ScheduleAnyway")),
            "on n2".into(),
        ),
        (
            "images draw",
            vec![node("n1", json!({})), node("n2", json!({"status": {"images": [{"names": ["big:1"], "sizeBytes": 900_000_000}]}}))],
            vec![],
            pod("web-1", json!({"spec": {"containers": [{"name": "c", "image": "big:1"}]}})),
            "on n2".into(),
        ),
        (
            "another scheduler's",
            vec![node("n1", json!({}))],
            vec![],
            pod("web-1", json!({"spec": {"schedulerName": "mine"}})),
            "nothing to do".into(),
        ),
        (
            "never preempts",
            vec![node("n1", json!({}))],
            vec![pod("old-1", both(asks("3"), on("n1")))],
            pod("web-1", both(asks("2"), json!({"spec": {"priority": 5, "preemptionPolicy": "Never"}}))),
            "0/1 nodes are available: 1 Insufficient cpu. preemption: not eligible due to preemptionPolicy=Never.".into(),
        ),
    ];
    for (name, nodes, pods, incoming, want) in cases {
        let now = Instant::now();
        let mut scheduler = cluster(nodes, pods, now);
        scheduler.pod_applied(&incoming, now);
        assert_eq!(outcome(&mut scheduler, now), want, "{name}");
    }
}

#[test]
fn preemption_takes_the_least() {
    let now = Instant::now();
    let with_priority = |p: i32| json!({"spec": {"priority": p}});
    let mut scheduler = cluster(
        vec![node("n1", json!({})), node("n2", json!({}))],
        vec![
            pod("a-1", both(both(asks("2"), on("n1")), with_priority(1))),
            pod("b-1", both(both(asks("2"), on("n1")), with_priority(3))),
            pod("c-1", both(both(asks("4"), on("n2")), with_priority(2))),
        ],
        now,
    );
    scheduler.pod_applied(&pod("vip-1", both(asks("2"), with_priority(9))), now);
    let attempt = scheduler.schedule_one(now).unwrap();
    let mut seen = Vec::new();
    for action in &attempt.actions {
        match action {
            Action::Preempt { node, victims, .. } => {
                seen.push(format!(
                    "{} leave {node}",
                    victims
                        .iter()
                        .map(|v| v.name.as_str())
                        .collect::<Vec<_>>()
                        .join(" ")
                ));
            }
            Action::PatchStatus {
                condition: Some(c),
                nominated_node,
                ..
            } => {
                seen.push(format!(
                    "{} {} nominated to {nominated_node:?}",
                    c.status, c.reason
                ));
            }
            Action::ReportFailure { message, .. } => seen.push(message.clone()),
            Action::Bind { .. } | Action::PatchStatus { .. } => seen.push("unexpected".to_owned()),
        }
    }
    assert_eq!(
        seen,
        [
            "a-1 leave n1",
            "0/2 nodes are available: 2 Insufficient cpu.",
            "False Unschedulable nominated to Some(\"n1\")"
        ]
    );
    // While the victim is leaving, a lesser pod does not take its place; once it is gone, the preemptor does.
    scheduler.pod_deleted("a-1", now);
    scheduler.pod_applied(&pod("late-1", asks("2")), now);
    let later = now + Duration::from_secs(2);
    assert_eq!(outcome(&mut scheduler, later), "on n1");
    assert!(
        outcome(&mut scheduler, later).starts_with("0/2 nodes are available: 2 Insufficient cpu.")
    );
}

#[test]
fn a_failed_binding_gives_the_room_back() {
    let now = Instant::now();
    let mut scheduler = cluster(vec![node("n1", json!({}))], vec![], now);
    scheduler.pod_applied(&pod("web-1", asks("3")), now);
    scheduler.pod_applied(&pod("web-2", asks("3")), now);
    assert_eq!(outcome(&mut scheduler, now), "on n1");
    assert!(
        outcome(&mut scheduler, now).starts_with("0/1 nodes are available: 1 Insufficient cpu.")
    );
    let actions = scheduler.bind_failed("web-1", "the apiserver is away", now);
    assert!(matches!(&actions[0], Action::ReportFailure { message, .. }
        if message == "running Bind plugin \"DefaultBinder\": the apiserver is away"));
    assert_eq!(outcome(&mut scheduler, now), "on n1");
    // The one whose binding failed waits out its back-off and finds no room then.
    assert_eq!(outcome(&mut scheduler, now), "nothing to do");
    assert!(
        outcome(&mut scheduler, now + Duration::from_secs(1))
            .starts_with("0/1 nodes are available")
    );
}

#[test]
fn the_same_condition_is_written_once() {
    let now = Instant::now();
    let mut scheduler = cluster(
        vec![node("n1", json!({}))],
        vec![pod("old-1", both(asks("3"), on("n1")))],
        now,
    );
    scheduler.pod_applied(&pod("web-1", asks("2")), now);
    let patches = |actions: &[Action]| {
        actions
            .iter()
            .filter(|a| matches!(a, Action::PatchStatus { .. }))
            .count()
    };
    assert_eq!(patches(&scheduler.schedule_one(now).unwrap().actions), 1);
    scheduler.pod_applied(&pod("old-2", both(asks("1"), on("n1"))), now);
    scheduler.pod_deleted("old-2", now);
    assert_eq!(patches(&scheduler.schedule_one(now).unwrap().actions), 0);
}

#[test]
fn a_deployment_spreads_over_hosts_by_default() {
    let now = Instant::now();
    let mut scheduler = cluster(
        (1..=4).map(|i| node(&format!("n{i}"), json!({}))).collect(),
        vec![],
        now,
    );
    let selector = Labels::from([("app".to_owned(), "web".to_owned())]);
    scheduler
        .snapshot_mut()
        .sources
        .services
        .entry("ns".into())
        .or_default()
        .insert("web".into(), selector);
    let mut nodes = BTreeSet::new();
    for i in 0..4 {
        scheduler.pod_applied(&pod(&format!("web-{i}"), json!({})), now);
        nodes.insert(outcome(&mut scheduler, now));
    }
    assert_eq!(nodes.len(), 4, "{nodes:?}");
}

#[test]
fn a_missed_deletion_is_found_by_the_next_list() {
    let now = Instant::now();
    let mut scheduler = cluster(
        vec![node("n1", json!({}))],
        vec![pod("old-1", both(asks("4"), on("n1")))],
        now,
    );
    scheduler.pod_applied(&pod("web-1", asks("1")), now);
    assert!(outcome(&mut scheduler, now).starts_with("0/1"));
    scheduler.pods_listed(&["web-1".to_owned()].into(), now);
    assert_eq!(outcome(&mut scheduler, now), "on n1");
}

/// A claim of `ns` in class `slow` (bound at once) or `local` (with its first consumer).
fn claim(name: &str, over: Value) -> Claim {
    let base = json!({"metadata": {"name": name, "namespace": "ns", "uid": name},
        "spec": {"storageClassName": "local", "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    Claim::from_api(&serde_json::from_value(merged(base, over)).unwrap())
}

fn volume(node: &str, size: &str, over: Value) -> Volume {
    let base = json!({"metadata": {"name": "v"}, "status": {"phase": "Available"}, "spec": {
        "storageClassName": "local", "accessModes": ["ReadWriteOnce"], "capacity": {"storage": size},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
            {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}}}});
    Volume::from_api(&serde_json::from_value(merged(base, over)).unwrap())
}

#[test]
fn pods_go_where_their_volumes_are() {
    let now = Instant::now();
    let bound = |volume: &str| json!({"metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}}, "spec": {"volumeName": volume}});
    let check = |claims: &[(&str, Value)], volumes: &[(&str, Volume)], want: &str| {
        let nodes = vec![node("n1", json!({})), node("n2", json!({}))];
        let mut scheduler = cluster(nodes, vec![], now);
        let storage = &mut scheduler.snapshot_mut().storage;
        for (name, mode, provisioner) in [
            ("slow", "Immediate", "kubernetes.io/no-provisioner"),
            (
                "local",
                "WaitForFirstConsumer",
                "kubernetes.io/no-provisioner",
            ),
            ("disk", "WaitForFirstConsumer", "example.com/disk"),
        ] {
            let class = json!({"metadata": {"name": name}, "provisioner": provisioner, "volumeBindingMode": mode,
                "allowedTopologies": [{"matchLabelExpressions": [{"key": "kubernetes.io/hostname", "values": ["n2"]}]}]});
            let class = Class::from_api(&serde_json::from_value(class).unwrap());
            storage.classes.insert(name.to_owned(), class);
        }
        for (name, over) in claims {
            storage
                .claims
                .insert(format!("ns/{name}"), claim(name, over.clone()));
        }
        for (name, v) in volumes {
            storage.volumes.insert((*name).to_owned(), v.clone());
        }
        let uses: Vec<Value> = ["c", "d"]
            .iter()
            .take(claims.len().max(1))
            .map(|c| json!({"name": c, "persistentVolumeClaim": {"claimName": c}}))
            .collect();
        scheduler.pod_applied(&pod("web-1", json!({"spec": {"volumes": uses}})), now);
        let attempt = scheduler.schedule_one(now).unwrap();
        let got = attempt.actions.iter().find_map(|action| match action {
            Action::Bind { node, volumes, .. } => {
                let writes = volumes.iter().map(|w| match w {
                    VolumeWrite::Promise { volume, claim, .. } => format!(" {claim}={volume}"),
                    VolumeWrite::Select { claim, .. } => format!(" {claim}=made"),
                });
                Some(format!("{node}{}", writes.collect::<String>()))
            }
            Action::ReportFailure { message, .. } => Some(message.clone()),
            _ => None,
        });
        let got = got.unwrap();
        assert!(got.starts_with(want), "{claims:?}: {got}");
    };
    let no = "0/2 nodes are available: ";
    check(
        &[],
        &[],
        &format!("{no}persistentvolumeclaim \"c\" not found"),
    );
    let slow = json!({"spec": {"storageClassName": "slow"}});
    check(
        &[("c", slow)],
        &[],
        &format!("{no}pod has unbound immediate PersistentVolumeClaims"),
    );
    check(
        &[("c", bound("v"))],
        &[("v", volume("n2", "1Gi", json!({})))],
        "n2",
    );
    check(
        &[("c", bound("v")), ("d", bound("w"))],
        &[
            ("v", volume("n2", "1Gi", json!({}))),
            ("w", volume("n1", "1Gi", json!({}))),
        ],
        &format!("{no}2 node(s) didn't match PersistentVolume's node affinity"),
    );
    // The first consumer chooses: the smallest that fits, each once, and only what is free.
    let small = || volume("n1", "1Gi", json!({}));
    check(
        &[("c", json!({}))],
        &[("big", volume("n1", "9Gi", json!({}))), ("small", small())],
        "n1 c=small",
    );
    check(
        &[("c", json!({})), ("d", json!({}))],
        &[("v1", small()), ("v2", volume("n2", "1Gi", json!({})))],
        &format!("{no}2 node(s) didn't find available persistent volumes to bind"),
    );
    check(
        &[("c", json!({})), ("d", json!({}))],
        &[("v1", small()), ("v2", small())],
        "n1 c=v1 d=v2",
    );
    let held = json!({"spec": {"claimRef": {"namespace": "ns", "name": "other", "uid": "x"}}});
    check(
        &[("c", json!({}))],
        &[("v", volume("n1", "1Gi", held))],
        &format!("{no}2 node(s) didn't find available persistent volumes to bind"),
    );
    check(
        &[("c", json!({"spec": {"storageClassName": "disk"}}))],
        &[],
        "n2 c=made",
    );
}
