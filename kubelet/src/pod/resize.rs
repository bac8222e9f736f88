//! Resizing the containers of a running pod (upstream `pkg/kubelet/allocation` and `doPodResizeAction`).
//!
//! What a pod's spec asks for is a *wish*; what the node has granted is its *allocation*, and by that the pod is run: the spec that
//! workers see has the allocated resources in it. What the runtime enforces is *in force*, and [`super::sync`] brings it in line.
//! None of this is kept on disk: `allocatedResources` and `resources` in the API's container statuses tell a restarted kubelet
//! how far it had come.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    Container, ContainerStatus, Pod, PodStatus, ResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use parking_lot::Mutex;
use serde::Serialize;

use super::observed::{Observed, RunState};
use crate::fields::NodeFacts;
use crate::podutil;
use crate::resources;

/// The resources that can be changed in a running container.
const RESIZABLE: [&str; 2] = ["cpu", "memory"];

/// Resources by container name.
pub type Amounts = BTreeMap<String, ResourceRequirements>;

/// Why a wish is not fulfilled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// `Deferred` for now, `Infeasible` for good.
    pub reason: &'static str,
    /// In words.
    pub message: String,
}

/// What is to be done about a running container whose allocation is not in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resize {
    /// Tell the runtime.
    InPlace,
    /// Its resize policy asks for a restart.
    Restart,
}

/// What the API is told about a resize.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// A wish that is not fulfilled.
    pub pending: Option<Pending>,
    /// An allocation that is not in force; with what went wrong, if something did.
    pub in_progress: Option<Option<String>>,
    /// What is in force by container id.
    pub in_force: HashMap<String, ResourceRequirements>,
}

/// The outcome of [`Allocations::settle`] that is worth an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The wish became the allocation.
    Started,
    /// The wish waits, for another reason than before.
    Pending(Pending),
}

#[derive(Debug)]
struct Held {
    amounts: Amounts,
    pending: Option<Pending>,
}

/// The allocations of all pods, by uid.
#[derive(Debug, Default)]
pub struct Allocations(Mutex<HashMap<String, Held>>);

impl Allocations {
    /// The pods of which a wish waits for room.
    pub fn deferred(&self) -> Vec<String> {
        self.0
            .lock()
            .iter()
            .filter(|(_, h)| h.pending.as_ref().is_some_and(|p| p.reason == "Deferred"))
            .map(|(uid, _)| uid.clone())
            .collect()
    }

    /// Why the wish of the pod is not fulfilled.
    pub fn pending(&self, uid: &str) -> Option<Pending> {
        self.0.lock().get(uid).and_then(|h| h.pending.clone())
    }

    /// Forgets a pod.
    pub fn forget(&self, uid: &str) {
        self.0.lock().remove(uid);
    }

    /// Weighs the wish of `pod` against what `others` have and returns the pod as it is to be run. A pod that was not known
    /// starts from what its status says; one that is at its end, or has not begun, gets no more and no less than it has.
    pub fn settle(
        &self,
        pod: &Pod,
        others: &dyn Fn() -> Vec<Arc<Pod>>,
        node: &NodeFacts,
    ) -> (Pod, Option<Change>) {
        let uid = podutil::uid(pod);
        let mut all = self.0.lock();
        let held = all.entry(uid.to_owned()).or_insert_with(|| Held {
            amounts: from_status(pod),
            pending: None,
        });
        let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
        if pod.metadata.deletion_timestamp.is_some() || podutil::is_terminal_phase(phase) {
            held.pending = None;
            return (with(pod, &held.amounts), None);
        }
        let change = match judge(pod, &held.amounts, others, node) {
            Ok(false) => {
                held.pending = None;
                None
            }
            Ok(true) => {
                held.amounts = amounts(pod);
                held.pending = None;
                Some(Change::Started)
            }
            Err(pending) => {
                let told = held.pending.as_ref() == Some(&pending);
                held.pending = Some(pending.clone());
                (!told).then_some(Change::Pending(pending))
            }
        };
        (with(pod, &held.amounts), change)
    }
}

fn all_containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    podutil::init_containers(pod)
        .iter()
        .chain(podutil::containers(pod))
}

/// What a pod's spec says of each container.
pub fn amounts(pod: &Pod) -> Amounts {
    all_containers(pod)
        .map(|c| (c.name.clone(), c.resources.clone().unwrap_or_default()))
        .collect()
}

/// The pod with these resources in its containers.
pub fn with(pod: &Pod, amounts: &Amounts) -> Pod {
    let mut pod = pod.clone();
    let Some(spec) = &mut pod.spec else {
        return pod;
    };
    for c in spec
        .init_containers
        .iter_mut()
        .flatten()
        .chain(&mut spec.containers)
    {
        if let Some(held) = amounts.get(&c.name)
            && !same(c.resources.as_ref(), held)
        {
            c.resources = Some(held.clone());
        }
    }
    pod
}

/// Whether two say the same of processors and memory.
fn same(a: Option<&ResourceRequirements>, b: &ResourceRequirements) -> bool {
    RESIZABLE.iter().all(|name| {
        resources::request(a, name) == resources::request(Some(b), name)
            && resources::limit(a, name) == resources::limit(Some(b), name)
    })
}

type List = BTreeMap<String, Quantity>;

/// `of` with processors and memory as in `held`.
fn overlay(of: Option<&List>, held: Option<&List>) -> Option<List> {
    let mut list = of.cloned().unwrap_or_default();
    for name in RESIZABLE {
        match held.and_then(|h| h.get(name)) {
            Some(amount) => {
                list.insert(name.to_owned(), amount.clone());
            }
            None => {
                list.remove(name);
            }
        }
    }
    (!list.is_empty()).then_some(list)
}

/// What was allocated according to the pod's status; for containers that never ran, what the spec says.
fn from_status(pod: &Pod) -> Amounts {
    let mut amounts = amounts(pod);
    let status = pod.status.as_ref();
    for s in status
        .iter()
        .flat_map(|s| {
            s.container_statuses
                .iter()
                .chain(&s.init_container_statuses)
        })
        .flatten()
    {
        let (Some(held), Some(in_force)) = (amounts.get_mut(&s.name), &s.resources) else {
            continue;
        };
        if s.container_id.as_deref().is_none_or(str::is_empty) {
            continue;
        }
        held.requests = overlay(held.requests.as_ref(), s.allocated_resources.as_ref());
        held.limits = overlay(held.limits.as_ref(), in_force.limits.as_ref());
    }
    amounts
}

/// Whether the wish differs from what is held and can be fulfilled.
fn judge(
    pod: &Pod,
    held: &Amounts,
    others: &dyn Fn() -> Vec<Arc<Pod>>,
    node: &NodeFacts,
) -> Result<bool, Pending> {
    let differs = all_containers(pod).any(|c| {
        held.get(&c.name)
            .is_none_or(|h| !same(c.resources.as_ref(), h))
    });
    if !differs {
        return Ok(false);
    }
    let infeasible = |message: String| Pending {
        reason: "Infeasible",
        message,
    };
    if podutil::is_static(pod) {
        return Err(infeasible(
            "In-place resize of static-pods is not supported".to_owned(),
        ));
    }
    let now = with(pod, held);
    if resources::qos(&now) != resources::qos(pod) {
        return Err(infeasible(
            "Pod QOS Class may not change as a result of resizing".to_owned(),
        ));
    }
    let room = [
        ("cpu", node.allocatable_cpu),
        ("memory", node.allocatable_memory),
    ];
    for (name, capacity) in room {
        let requested = resources::pod_total(pod, name, resources::request);
        // Giving something back is always possible.
        if requested <= resources::pod_total(&now, name, resources::request) {
            continue;
        }
        if requested > capacity {
            return Err(infeasible(format!(
                "Node didn't have enough capacity: {name}, requested: {requested}, capacity: {capacity}"
            )));
        }
        let used: i64 = others()
            .iter()
            .filter(|p| podutil::uid(p) != podutil::uid(pod))
            .map(|p| resources::pod_total(p, name, resources::request))
            .sum();
        if requested > capacity.saturating_sub(used) {
            return Err(Pending {
                reason: "Deferred",
                message: format!(
                    "Node didn't have enough resource: {name}, requested: {requested}, used: {used}, capacity: {capacity}"
                ),
            });
        }
    }
    Ok(true)
}

/// The containers that a resize can reach while they run: regular ones and sidecars.
fn resizable(pod: &Pod) -> impl Iterator<Item = &Container> {
    all_containers(pod).filter(|c| {
        podutil::is_sidecar(c) || podutil::containers(pod).iter().any(|r| r.name == c.name)
    })
}

/// Which running containers do not have in force what `pod`, the pod as allocated, says; by container id.
pub fn wanted(
    pod: &Pod,
    observed: &Observed,
    in_force: &HashMap<String, ResourceRequirements>,
) -> HashMap<String, Resize> {
    let mut out = HashMap::new();
    for c in resizable(pod) {
        let Some(seen) = observed
            .latest(&c.name)
            .filter(|s| s.state == RunState::Running)
        else {
            continue;
        };
        let Some(now) = in_force.get(&seen.id) else {
            continue;
        };
        if same(c.resources.as_ref(), now) {
            continue;
        }
        let r = c.resources.as_ref();
        let restarts = |name: &str| {
            c.resize_policy
                .iter()
                .flatten()
                .any(|p| p.resource_name == name && p.restart_policy == "RestartContainer")
        };
        let changed = |of: fn(Option<&ResourceRequirements>, &str) -> Option<i64>, name: &str| {
            of(r, name) != of(Some(now), name)
        };
        // What is asked for of memory reaches no kernel, so that a change of it restarts nothing.
        let cpu = changed(resources::request, "cpu") || changed(resources::limit, "cpu");
        let memory = changed(resources::limit, "memory");
        let how = if cpu && restarts("cpu") || memory && restarts("memory") {
            Resize::Restart
        } else {
            Resize::InPlace
        };
        out.insert(seen.id.clone(), how);
    }
    out
}

/// Notes what is in force in containers that were not known yet: what the status said of that very container, or else what is
/// allocated, with which it was just made. Containers that are gone are forgotten.
pub fn learn(
    in_force: &mut HashMap<String, ResourceRequirements>,
    pod: &Pod,
    observed: &Observed,
    status: &PodStatus,
) {
    in_force.retain(|id, _| observed.containers.iter().any(|s| s.id == *id));
    let reported = |id: &str| -> Option<&ContainerStatus> {
        status
            .container_statuses
            .iter()
            .chain(&status.init_container_statuses)
            .flatten()
            .find(|s| {
                s.container_id
                    .as_deref()
                    .and_then(|full| full.split_once("://"))
                    .is_some_and(|(_, own)| own == id)
            })
    };
    for c in resizable(pod) {
        let Some(seen) = observed.latest(&c.name) else {
            continue;
        };
        if seen.state == RunState::Running && !in_force.contains_key(&seen.id) {
            let known = reported(&seen.id).and_then(|s| s.resources.clone());
            let known = known.or_else(|| c.resources.clone()).unwrap_or_default();
            in_force.insert(seen.id.clone(), known);
        }
    }
}

#[derive(Serialize)]
struct Summary<'a> {
    #[serde(rename = "initContainers", skip_serializing_if = "Vec::is_empty")]
    init: Vec<Part<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    containers: Vec<Part<'a>>,
    generation: i64,
    #[serde(skip_serializing_if = "str::is_empty")]
    error: &'a str,
}

#[derive(Serialize)]
struct Part<'a> {
    name: &'a str,
    resources: Option<&'a ResourceRequirements>,
}

/// An event's message: what happened, and the resources it is about (upstream `podResizeMessage`).
pub fn message(pod: &Pod, what: &str, error: &str) -> String {
    fn parts(list: &[Container]) -> Vec<Part<'_>> {
        list.iter()
            .map(|c| Part {
                name: &c.name,
                resources: c.resources.as_ref(),
            })
            .collect()
    }
    let summary = Summary {
        init: parts(podutil::init_containers(pod)),
        containers: parts(podutil::containers(pod)),
        generation: pod.metadata.generation.unwrap_or(0),
        error,
    };
    match serde_json::to_string(&summary) {
        Ok(text) => format!("{what}: {text}"),
        Err(_) => what.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::observed::Seen;
    use super::*;
    use serde_json::{Value, json};

    fn node() -> NodeFacts {
        NodeFacts {
            allocatable_cpu: 1000,
            allocatable_memory: 1 << 30,
            ..NodeFacts::default()
        }
    }

    fn pod(uid: &str, cpu: &str, limit: &str, status: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"uid": uid, "name": uid, "generation": 2},
            "spec": {"containers": [{"name": "a", "resources": {"requests": {"cpu": cpu, "memory": "64Mi"}, "limits": {"cpu": limit, "memory": "128Mi"}}}]},
            "status": status,
        }))
        .unwrap()
    }

    fn cpu(p: &Pod) -> (Option<i64>, Option<i64>) {
        let r = podutil::containers(p)[0].resources.as_ref();
        (resources::request(r, "cpu"), resources::limit(r, "cpu"))
    }

    #[test]
    fn wishes_become_allocations_where_there_is_room() {
        let a = Allocations::default();
        let other = || vec![Arc::new(pod("o", "500m", "500m", json!({})))];
        let step = |request: &str, limit: &str, want: (i64, i64), change: Option<&str>| {
            let (run, got) = a.settle(&pod("p", request, limit, json!({})), &other, &node());
            assert_eq!(cpu(&run), (Some(want.0), Some(want.1)), "{request}");
            let got = got.map(|c| match c {
                Change::Started => "started".to_owned(),
                Change::Pending(p) => p.reason.to_owned(),
            });
            assert_eq!(got.as_deref(), change, "{request}");
        };
        step("100m", "900m", (100, 900), None);
        step("200m", "900m", (200, 900), Some("started"));
        step("501m", "900m", (200, 900), Some("Deferred"));
        // Told once.
        step("501m", "900m", (200, 900), None);
        step("1001m", "2", (200, 900), Some("Infeasible"));
        step("0.5", "900m", (500, 900), Some("started"));
        assert_eq!(a.pending("p"), None);
    }

    #[test]
    fn a_restarted_kubelet_goes_on_from_the_status() {
        let status = json!({"phase": "Running", "containerStatuses": [{"name": "a", "image": "", "imageID": "", "ready": true, "restartCount": 0,
            "containerID": "containerd://c1", "allocatedResources": {"cpu": "700m", "memory": "64Mi"},
            "resources": {"requests": {"cpu": "700m", "memory": "64Mi"}, "limits": {"cpu": "900m", "memory": "128Mi"}}}]});
        let a = Allocations::default();
        let other = || vec![Arc::new(pod("o", "300m", "500m", json!({})))];
        // The wish does not fit; what is allocated stays.
        let (run, change) = a.settle(&pod("p", "800m", "900m", status.clone()), &other, &node());
        assert_eq!(cpu(&run), (Some(700), Some(900)));
        assert!(matches!(change, Some(Change::Pending(p)) if p.reason == "Deferred"));
        assert_eq!(a.deferred(), ["p"]);
        // Once there is room, it is.
        let (run, change) = a.settle(&pod("p", "800m", "900m", status), &Vec::new, &node());
        assert_eq!(cpu(&run), (Some(800), Some(900)));
        assert_eq!(change, Some(Change::Started));
    }

    fn seen(id: &str) -> Observed {
        Observed {
            sandboxes: Vec::new(),
            containers: vec![Seen {
                id: id.to_owned(),
                name: "a".to_owned(),
                sandbox_id: String::new(),
                state: RunState::Running,
                created_at: None,
                started_at: None,
                finished_at: None,
                exit_code: 0,
                reason: String::new(),
                message: String::new(),
                image: String::new(),
                image_ref: String::new(),
                restart_count: 0,
                hash: String::new(),
                user: None,
                annotations: Default::default(),
            }],
        }
    }

    #[test]
    fn what_is_in_force_is_brought_in_line() {
        let check = |policy: Value, change: &dyn Fn(&mut Pod), want: Option<Resize>| {
            let mut p = pod("p", "100m", "200m", json!({}));
            p.spec.as_mut().unwrap().containers[0].resize_policy =
                serde_json::from_value(policy).unwrap();
            let mut in_force = HashMap::new();
            learn(&mut in_force, &p, &seen("c1"), &PodStatus::default());
            assert_eq!(wanted(&p, &seen("c1"), &in_force), HashMap::new());
            change(&mut p);
            assert_eq!(wanted(&p, &seen("c1"), &in_force).get("c1").copied(), want);
            // A new container was made with what is allocated.
            learn(&mut in_force, &p, &seen("c2"), &PodStatus::default());
            assert_eq!(wanted(&p, &seen("c2"), &in_force), HashMap::new());
        };
        let set = |list: &'static str, name: &'static str, amount: &'static str| {
            move |p: &mut Pod| {
                let r = p.spec.as_mut().unwrap().containers[0]
                    .resources
                    .as_mut()
                    .unwrap();
                let list = if list == "requests" {
                    &mut r.requests
                } else {
                    &mut r.limits
                };
                list.as_mut()
                    .unwrap()
                    .insert(name.into(), Quantity(amount.into()));
            }
        };
        let restart = json!([{"resourceName": "memory", "restartPolicy": "RestartContainer"}]);
        check(
            json!(null),
            &set("requests", "cpu", "150m"),
            Some(Resize::InPlace),
        );
        check(json!(null), &set("requests", "cpu", "0.1"), None);
        check(
            restart.clone(),
            &set("limits", "cpu", "300m"),
            Some(Resize::InPlace),
        );
        check(
            restart.clone(),
            &set("requests", "memory", "65Mi"),
            Some(Resize::InPlace),
        );
        check(
            restart,
            &set("limits", "memory", "129Mi"),
            Some(Resize::Restart),
        );
    }

    #[test]
    fn a_container_of_an_earlier_kubelet_has_what_its_status_says() {
        let p = pod("p", "300m", "400m", json!({}));
        let status: PodStatus = serde_json::from_value(json!({"containerStatuses": [{"name": "a", "image": "", "imageID": "",
            "ready": true, "restartCount": 0, "containerID": "containerd://c1",
            "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"cpu": "400m", "memory": "128Mi"}}}]}))
        .unwrap();
        let mut in_force = HashMap::new();
        learn(&mut in_force, &p, &seen("c1"), &status);
        assert_eq!(
            wanted(&p, &seen("c1"), &in_force).get("c1"),
            Some(&Resize::InPlace)
        );
    }

    #[test]
    fn messages_name_the_resources() {
        let text = message(&pod("p", "1", "2", json!({})), "Pod resize started", "");
        assert_eq!(
            text,
            r#"Pod resize started: {"containers":[{"name":"a","resources":{"limits":{"cpu":"2","memory":"128Mi"},"requests":{"cpu":"1","memory":"64Mi"}}}],"generation":2}"#
        );
    }
}
