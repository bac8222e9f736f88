//! Amounts of resources as plain integers, and what a pod asks for (`k8s.io/component-helpers/resource.PodRequests`).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use keelson_machinery::quantity::Quantity as Amount;

/// What a container that names no CPU request counts for in scoring, in millicores (`DefaultMilliCPURequest`).
pub const DEFAULT_MILLI_CPU: i64 = 100;
/// What a container that names no memory request counts for in scoring, in bytes (`DefaultMemoryRequest`).
pub const DEFAULT_MEMORY: i64 = 200 * 1024 * 1024;

/// Amounts of each resource. CPU is in millicores, everything else in its own unit (bytes or pieces).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resource {
    /// CPU, in millicores.
    pub milli_cpu: i64,
    /// Memory, in bytes.
    pub memory: i64,
    /// Local ephemeral storage, in bytes.
    pub ephemeral_storage: i64,
    /// How many pods (only in a node's allocatable).
    pub pods: i64,
    /// Extended resources, huge pages and attachable volumes, by name.
    pub scalar: Vec<(String, i64)>,
}

impl Resource {
    /// From an API resource list.
    pub fn from_list(list: &BTreeMap<String, Quantity>) -> Self {
        let mut resource = Resource::default();
        for (name, quantity) in list {
            resource.set(name, quantity);
        }
        resource
    }

    fn set(&mut self, name: &str, quantity: &Quantity) {
        match name {
            "cpu" => self.milli_cpu = quantity_milli(quantity),
            "memory" => self.memory = quantity_value(quantity),
            "ephemeral-storage" => self.ephemeral_storage = quantity_value(quantity),
            "pods" => self.pods = quantity_value(quantity),
            _ if is_scalar(name) => *self.scalar_mut(name) = quantity_value(quantity),
            _ => {}
        }
    }

    /// The amount of a scalar resource, 0 when absent.
    pub fn scalar(&self, name: &str) -> i64 {
        self.scalar
            .iter()
            .find(|(n, _)| n == name)
            .map_or(0, |(_, v)| *v)
    }

    fn scalar_mut(&mut self, name: &str) -> &mut i64 {
        let at = match self.scalar.iter().position(|(n, _)| n == name) {
            Some(at) => at,
            None => {
                self.scalar.push((name.to_owned(), 0));
                self.scalar.len() - 1
            }
        };
        &mut self.scalar[at].1
    }

    /// Adds `sign` times `other`.
    pub fn add(&mut self, other: &Resource, sign: i64) {
        self.milli_cpu += sign * other.milli_cpu;
        self.memory += sign * other.memory;
        self.ephemeral_storage += sign * other.ephemeral_storage;
        for (name, amount) in &other.scalar {
            *self.scalar_mut(name) += sign * amount;
        }
    }

    /// Raises each amount to at least that of `other`.
    pub fn max(&mut self, other: &Resource) {
        self.milli_cpu = self.milli_cpu.max(other.milli_cpu);
        self.memory = self.memory.max(other.memory);
        self.ephemeral_storage = self.ephemeral_storage.max(other.ephemeral_storage);
        for (name, amount) in &other.scalar {
            let mine = self.scalar_mut(name);
            *mine = (*mine).max(*amount);
        }
    }

    /// Whether nothing that limits a node is asked for.
    pub fn is_zero(&self) -> bool {
        self.milli_cpu == 0
            && self.memory == 0
            && self.ephemeral_storage == 0
            && self.scalar.is_empty()
    }
}

/// Whether a name is neither of the native resources but one the scheduler counts (`schedutil.IsScalarResourceName`).
fn is_scalar(name: &str) -> bool {
    name.contains('/') || name.starts_with("hugepages-") || name.starts_with("attachable-volumes-")
}

/// A quantity in its unit, rounded up. A malformed one, which the API refuses, counts as 0.
fn quantity_value(quantity: &Quantity) -> i64 {
    Amount::parse(&quantity.0).map_or(0, |q| q.value())
}

/// A quantity in thousandths, rounded up.
fn quantity_milli(quantity: &Quantity) -> i64 {
    Amount::parse(&quantity.0).map_or(0, |q| q.milli_value())
}

/// What a pod is counted for on a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodRequests {
    /// What it asks for.
    pub requests: Resource,
    /// CPU in millicores, with the default for containers that ask none; used in scoring.
    pub non_zero_milli_cpu: i64,
    /// Memory in bytes, with the default for containers that ask none; used in scoring.
    pub non_zero_memory: i64,
}

/// Sums up what a pod asks for: containers run together with the sidecars, other init containers one at a time
/// beside the sidecars started before them, plus the overhead; requests at pod level, where given, win for CPU, memory and huge pages.
pub fn pod_requests(pod: &Pod) -> PodRequests {
    let requests = aggregate(pod, false);
    let non_zero = aggregate(pod, true);
    PodRequests {
        requests,
        non_zero_milli_cpu: non_zero.milli_cpu,
        non_zero_memory: non_zero.memory,
    }
}

fn aggregate(pod: &Pod, fill_defaults: bool) -> Resource {
    let Some(spec) = &pod.spec else {
        return Resource::default();
    };
    let status = pod.status.as_ref();
    let empty: &[ContainerStatus] = &[];
    let container_statuses = status
        .and_then(|s| s.container_statuses.as_deref())
        .unwrap_or(empty);
    let init_statuses = status
        .and_then(|s| s.init_container_statuses.as_deref())
        .unwrap_or(empty);
    let resize_infeasible = status.and_then(|s| s.conditions.as_ref()).is_some_and(|c| {
        c.iter()
            .any(|c| c.type_ == "PodResizePending" && c.reason.as_deref() == Some("Infeasible"))
    });

    let mut total = Resource::default();
    for container in &spec.containers {
        total.add(
            &container_requests(
                container,
                container_statuses,
                resize_infeasible,
                fill_defaults,
            ),
            1,
        );
    }
    let mut sidecars = Resource::default();
    let mut init_peak = Resource::default();
    for container in spec.init_containers.iter().flatten() {
        let is_sidecar = container.restart_policy.as_deref() == Some("Always");
        let statuses = if is_sidecar { init_statuses } else { empty };
        let mut requests =
            container_requests(container, statuses, resize_infeasible, fill_defaults);
        if is_sidecar {
            total.add(&requests, 1);
            sidecars.add(&requests, 1);
            requests = sidecars.clone();
        } else {
            requests.add(&sidecars, 1);
        }
        init_peak.max(&requests);
    }
    total.max(&init_peak);

    // Pod-level requests replace the sums for the resources that they may name.
    for (name, quantity) in spec
        .resources
        .iter()
        .flat_map(|r| r.requests.iter().flatten())
    {
        if name == "cpu" || name == "memory" || name.starts_with("hugepages-") {
            total.set(name, quantity);
        }
    }
    if let Some(overhead) = &spec.overhead {
        total.add(&Resource::from_list(overhead), 1);
    }
    total
}

/// A container's requests; for one that is being resized the larger of what is asked, allocated and in force.
fn container_requests(
    container: &Container,
    statuses: &[ContainerStatus],
    resize_infeasible: bool,
    fill_defaults: bool,
) -> Resource {
    let spec = container
        .resources
        .as_ref()
        .and_then(|r| r.requests.as_ref());
    let mut requests = spec.map(Resource::from_list).unwrap_or_default();
    if let Some(status) = statuses.iter().find(|s| s.name == container.name)
        && let Some(actual) = status.resources.as_ref().and_then(|r| r.requests.as_ref())
    {
        if resize_infeasible {
            requests = Resource::from_list(actual);
        } else {
            requests.max(&Resource::from_list(actual));
        }
        if let Some(allocated) = &status.allocated_resources {
            requests.max(&Resource::from_list(allocated));
        }
    }
    if fill_defaults {
        if !spec.is_some_and(|s| s.contains_key("cpu")) {
            requests.milli_cpu = requests.milli_cpu.max(DEFAULT_MILLI_CPU);
        }
        if !spec.is_some_and(|s| s.contains_key("memory")) {
            requests.memory = requests.memory.max(DEFAULT_MEMORY);
        }
    }
    requests
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn requests_of_pods() {
        let container = |cpu: &str| json!({"name": cpu, "resources": {"requests": {"cpu": cpu}}});
        let sidecar = |cpu: &str| json!({"name": cpu, "restartPolicy": "Always", "resources": {"requests": {"cpu": cpu}}});
        for (name, spec, cpu, non_zero) in [
            (
                "containers sum",
                json!({"containers": [container("1"), container("500m")]}),
                1500,
                1500,
            ),
            (
                "init containers peak",
                json!({"containers": [container("1")], "initContainers": [container("2"), container("1")]}),
                2000,
                2000,
            ),
            (
                "sidecar runs beside all",
                json!({"containers": [container("1")], "initContainers": [sidecar("1")]}),
                2000,
                2000,
            ),
            (
                "init beside an earlier sidecar",
                json!({"containers": [container("1")], "initContainers": [sidecar("1"), container("3")]}),
                4000,
                4000,
            ),
            (
                "init before the sidecar",
                json!({"containers": [container("1")], "initContainers": [container("3"), sidecar("1")]}),
                3000,
                3000,
            ),
            (
                "overhead",
                json!({"containers": [container("1")], "overhead": {"cpu": "250m"}}),
                1250,
                1250,
            ),
            (
                "pod level",
                json!({"containers": [container("1")], "resources": {"requests": {"cpu": "3"}}, "overhead": {"cpu": "1"}}),
                4000,
                4000,
            ),
            (
                "none asked",
                json!({"containers": [{"name": "a"}, {"name": "b"}]}),
                0,
                200,
            ),
        ] {
            let pod: Pod = serde_json::from_value(json!({"spec": spec})).unwrap();
            let got = pod_requests(&pod);
            assert_eq!(
                (got.requests.milli_cpu, got.non_zero_milli_cpu),
                (cpu, non_zero),
                "{name}"
            );
        }
    }

    #[test]
    fn requests_during_resize() {
        let status = |infeasible: bool| {
            json!({"containerStatuses": [{"name": "a", "image": "", "imageID": "", "ready": true, "restartCount": 0, "resources": {"requests": {"cpu": "2"}}}],
                   "conditions": if infeasible { json!([{"type": "PodResizePending", "status": "True", "reason": "Infeasible"}]) } else { json!([]) }})
        };
        for (spec_cpu, infeasible, want) in
            [("1", false, 2000), ("3", false, 3000), ("3", true, 2000)]
        {
            let pod: Pod = serde_json::from_value(json!({
                "spec": {"containers": [{"name": "a", "resources": {"requests": {"cpu": spec_cpu}}}]}, "status": status(infeasible)}))
            .unwrap();
            assert_eq!(
                pod_requests(&pod).requests.milli_cpu,
                want,
                "{spec_cpu} {infeasible}"
            );
        }
    }
}
