//! The node's status: a pure function of what is known (upstream `pkg/kubelet/nodestatus`).

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeFeatures,
    NodeRuntimeHandler, NodeRuntimeHandlerFeatures, NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::machine::{FsUsage, Machine};
use crate::config::KubeletConfiguration;
use crate::cri;
use crate::podutil;
use crate::resources;

/// The version that the kubelet says it is.
pub const VERSION: &str = "v1.36.2";
/// Upstream's limit of names for one image.
const MAX_NAMES: usize = 5;

/// All that a status is made from.
pub struct Inputs<'a> {
    /// The configuration file.
    pub config: &'a KubeletConfiguration,
    /// The node's name.
    pub name: &'a str,
    /// Its addresses.
    pub ips: &'a [String],
    /// The machine.
    pub machine: &'a Machine,
    /// The file system of pods.
    pub fs: FsUsage,
    /// Free memory.
    pub memory_available: i64,
    /// Processes and threads: the most there may be, and how many more there could be now.
    pub pids: (i64, i64),
    /// The runtime's images.
    pub images: &'a [cri::Image],
    /// `name://version` of the runtime.
    pub runtime_version: &'a str,
    /// The runtime's handlers and features.
    pub runtime: Option<&'a cri::StatusResponse>,
    /// What is wrong, for `Ready`.
    pub errors: &'a [String],
    /// Now.
    pub now: Timestamp,
}

/// Capacity and allocatable, in the units of [`resources`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Milli-cores.
    pub cpu: i64,
    /// Bytes.
    pub memory: i64,
    /// Bytes.
    pub storage: i64,
    /// Pods.
    pub pods: i64,
}

impl Amounts {
    fn list(&self) -> BTreeMap<String, Quantity> {
        let memory = if self.memory % 1024 == 0 {
            format!("{}Ki", self.memory / 1024)
        } else {
            self.memory.to_string()
        };
        let storage = if self.storage % 1024 == 0 {
            format!("{}Ki", self.storage / 1024)
        } else {
            self.storage.to_string()
        };
        [
            ("cpu", resources::format_milli(self.cpu)),
            ("memory", memory),
            ("ephemeral-storage", storage),
            ("pods", self.pods.to_string()),
            ("hugepages-1Gi", "0".to_owned()),
            ("hugepages-2Mi", "0".to_owned()),
        ]
        .into_iter()
        .map(|(k, v)| (k.to_owned(), Quantity(v)))
        .collect()
    }
}

/// A hard eviction threshold: an amount, or a part of the whole.
pub fn threshold(config: &KubeletConfiguration, signal: &str, whole: i64) -> i64 {
    let default = match signal {
        "memory.available" => "100Mi",
        "nodefs.available" => "10%",
        "nodefs.inodesFree" => "5%",
        _ => "0",
    };
    // With any threshold given, the defaults are off (upstream mergeDefaultEvictionSettings).
    let text = match config.eviction_hard.get(signal) {
        Some(t) => t.as_str(),
        None if config.eviction_hard.is_empty() => default,
        None => return 0,
    };
    match text.strip_suffix('%') {
        Some(p) => p
            .trim()
            .parse::<f64>()
            .map_or(0, |p| (whole as f64 * p / 100.0) as i64),
        None => resources::value(&Quantity(text.to_owned())),
    }
}

/// What the node has, and what pods may have of it.
pub fn amounts(
    config: &KubeletConfiguration,
    machine: &Machine,
    fs: FsUsage,
) -> (Amounts, Amounts) {
    let mut pods = i64::from(config.max_pods);
    if config.pods_per_core > 0 {
        pods = pods.min(machine.cores * i64::from(config.pods_per_core));
    }
    let capacity = Amounts {
        cpu: machine.cores * 1000,
        memory: machine.memory,
        storage: fs.capacity,
        pods,
    };
    let reserved = |name: &str| -> i64 {
        [&config.system_reserved, &config.kube_reserved]
            .iter()
            .filter_map(|m| m.get(name))
            .map(|v| {
                let q = Quantity(v.clone());
                if name == "cpu" {
                    resources::milli(&q)
                } else {
                    resources::value(&q)
                }
            })
            .sum()
    };
    let allocatable = Amounts {
        cpu: (capacity.cpu - reserved("cpu")).max(0),
        memory: (capacity.memory
            - reserved("memory")
            - threshold(config, "memory.available", capacity.memory))
        .max(0),
        storage: (capacity.storage
            - reserved("ephemeral-storage")
            - threshold(config, "nodefs.available", capacity.storage))
        .max(0),
        pods,
    };
    (capacity, allocatable)
}

/// The node's status. Transition times are those of `old` where nothing changed. The second value are the
/// reasons of events about changed conditions.
pub fn status(i: &Inputs<'_>, old: &NodeStatus) -> (NodeStatus, Vec<&'static str>) {
    let (capacity, allocatable) = amounts(i.config, i.machine, i.fs);
    let mut events = Vec::new();
    let mut addresses: Vec<NodeAddress> = i
        .ips
        .iter()
        .map(|ip| NodeAddress {
            type_: "InternalIP".to_owned(),
            address: ip.clone(),
        })
        .collect();
    addresses.push(NodeAddress {
        type_: "Hostname".to_owned(),
        address: i.name.to_owned(),
    });

    let under = |free: i64, signal: &str, whole: i64| free < threshold(i.config, signal, whole);
    let memory_short = under(i.memory_available, "memory.available", capacity.memory);
    let disk_short = under(i.fs.available, "nodefs.available", i.fs.capacity)
        || (i.fs.inodes > 0 && under(i.fs.inodes_free, "nodefs.inodesFree", i.fs.inodes));
    let before = old.conditions.as_deref().unwrap_or_default();
    let mut conditions = Vec::new();
    let mut add = |kind: &str, on: bool, reason: &str, message: String| -> bool {
        let last = before.iter().find(|c| c.type_ == kind);
        let value = if on { "True" } else { "False" };
        let changed = last.is_none_or(|c| c.status != value);
        conditions.push(NodeCondition {
            type_: kind.to_owned(),
            status: value.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_heartbeat_time: Some(podutil::time(i.now)),
            last_transition_time: if changed {
                Some(podutil::time(i.now))
            } else {
                last.and_then(|c| c.last_transition_time.clone())
            },
        });
        changed
    };
    let (reason, message, event) = if memory_short {
        (
            "KubeletHasInsufficientMemory",
            "kubelet has insufficient memory available",
            "NodeHasInsufficientMemory",
        )
    } else {
        (
            "KubeletHasSufficientMemory",
            "kubelet has sufficient memory available",
            "NodeHasSufficientMemory",
        )
    };
    if add("MemoryPressure", memory_short, reason, message.to_owned()) {
        events.push(event);
    }
    let (reason, message, event) = if disk_short {
        (
            "KubeletHasDiskPressure",
            "kubelet has disk pressure",
            "NodeHasDiskPressure",
        )
    } else {
        (
            "KubeletHasNoDiskPressure",
            "kubelet has no disk pressure",
            "NodeHasNoDiskPressure",
        )
    };
    if add("DiskPressure", disk_short, reason, message.to_owned()) {
        events.push(event);
    }
    let pid_short = under(i.pids.1, "pid.available", i.pids.0);
    let (reason, message, event) = if pid_short {
        (
            "KubeletHasInsufficientPID",
            "kubelet has insufficient PID available",
            "NodeHasInsufficientPID",
        )
    } else {
        (
            "KubeletHasSufficientPID",
            "kubelet has sufficient PID available",
            "NodeHasSufficientPID",
        )
    };
    if add("PIDPressure", pid_short, reason, message.to_owned()) {
        events.push(event);
    }
    let was_known = before.iter().any(|c| c.type_ == "Ready");
    let ready_changed = match i.errors {
        [] => add(
            "Ready",
            true,
            "KubeletReady",
            "kubelet is posting ready status".to_owned(),
        ),
        [one] => add("Ready", false, "KubeletNotReady", one.clone()),
        many => add(
            "Ready",
            false,
            "KubeletNotReady",
            format!("[{}]", many.join(", ")),
        ),
    };
    if ready_changed && was_known {
        events.push(if i.errors.is_empty() {
            "NodeReady"
        } else {
            "NodeNotReady"
        });
    }

    let mut images: Vec<&cri::Image> = i.images.iter().collect();
    images.sort_by_key(|img| std::cmp::Reverse(img.size));
    let limit = usize::try_from(i.config.node_status_max_images).unwrap_or(usize::MAX);
    let images = images
        .into_iter()
        .take(limit)
        .map(|img| ContainerImage {
            names: Some(
                img.repo_digests
                    .iter()
                    .chain(&img.repo_tags)
                    .take(MAX_NAMES)
                    .cloned()
                    .collect(),
            ),
            size_bytes: i64::try_from(img.size).ok(),
        })
        .collect();
    let handlers = i.runtime.map(|r| {
        r.runtime_handlers
            .iter()
            .map(|h| NodeRuntimeHandler {
                name: Some(h.name.clone()),
                features: h.features.as_ref().map(|f| NodeRuntimeHandlerFeatures {
                    recursive_read_only_mounts: Some(f.recursive_read_only_mounts),
                    user_namespaces: Some(f.user_namespaces),
                }),
            })
            .collect::<Vec<_>>()
    });
    let status = NodeStatus {
        addresses: Some(addresses),
        allocatable: Some(allocatable.list()),
        capacity: Some(capacity.list()),
        conditions: Some(conditions),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint {
                port: i32::from(i.config.port),
            }),
        }),
        features: i
            .runtime
            .and_then(|r| r.features.as_ref())
            .map(|f| NodeFeatures {
                supplemental_groups_policy: Some(f.supplemental_groups_policy),
            }),
        images: Some(images),
        node_info: Some(NodeSystemInfo {
            architecture: i.machine.arch.to_owned(),
            boot_id: i.machine.boot_id.clone(),
            container_runtime_version: i.runtime_version.to_owned(),
            kernel_version: i.machine.kernel.clone(),
            kube_proxy_version: String::new(),
            kubelet_version: VERSION.to_owned(),
            machine_id: i.machine.machine_id.clone(),
            operating_system: "linux".to_owned(),
            os_image: i.machine.os_image.clone(),
            swap: None,
            system_uuid: i.machine.system_uuid.clone(),
        }),
        runtime_handlers: handlers.filter(|h| !h.is_empty()),
        ..NodeStatus::default()
    };
    (status, events)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_and_amounts() {
        let mut config = KubeletConfiguration::default();
        config.system_reserved.insert("cpu".into(), "500m".into());
        let machine = Machine {
            cores: 2,
            memory: 4 << 30,
            ..Machine::default()
        };
        let fs = FsUsage {
            capacity: 1000,
            available: 500,
            inodes: 0,
            inodes_free: 0,
        };
        let make = |errors: &[String], memory_available: i64, old: &NodeStatus, at: i64| {
            status(
                &Inputs {
                    config: &config,
                    name: "n",
                    ips: &["1.1.1.1".to_owned()],
                    machine: &machine,
                    fs,
                    memory_available,
                    pids: (1000, 50),
                    images: &[],
                    runtime_version: "containerd://1.6.20",
                    runtime: None,
                    errors,
                    now: Timestamp::from_second(at).unwrap(),
                },
                old,
            )
        };
        let (first, events) = make(
            &["a".into(), "b".into()],
            1 << 30,
            &NodeStatus::default(),
            1,
        );
        let ready = first
            .conditions
            .as_ref()
            .unwrap()
            .iter()
            .find(|c| c.type_ == "Ready")
            .unwrap();
        assert_eq!(
            (ready.status.as_str(), ready.message.as_deref()),
            ("False", Some("[a, b]"))
        );
        assert_eq!(
            events,
            [
                "NodeHasSufficientMemory",
                "NodeHasNoDiskPressure",
                "NodeHasSufficientPID"
            ]
        );
        let (second, events) = make(&[], 1 << 20, &first, 5);
        assert_eq!(events, ["NodeHasInsufficientMemory", "NodeReady"]);
        let disk = second
            .conditions
            .as_ref()
            .unwrap()
            .iter()
            .find(|c| c.type_ == "DiskPressure")
            .unwrap();
        assert_eq!(
            disk.last_transition_time,
            Some(podutil::time(Timestamp::from_second(1).unwrap()))
        );
        let amount =
            |m: &Option<BTreeMap<String, Quantity>>, k: &str| m.as_ref().unwrap()[k].0.clone();
        assert_eq!(amount(&second.allocatable, "cpu"), "1500m");
        assert_eq!(amount(&second.capacity, "memory"), "4194304Ki");
        assert_eq!(
            amount(&second.allocatable, "memory"),
            format!("{}Ki", 4194304 - 100 * 1024)
        );
        assert_eq!(amount(&second.allocatable, "ephemeral-storage"), "900");
    }

    #[test]
    fn a_node_short_of_processes_says_so() {
        let mut config = KubeletConfiguration::default();
        let check = |config: &KubeletConfiguration, left: i64, want: (&str, &str, &str)| {
            let (status, events) = status(
                &Inputs {
                    config,
                    name: "n",
                    ips: &[],
                    machine: &Machine::default(),
                    fs: FsUsage::default(),
                    memory_available: 1 << 30,
                    pids: (1000, left),
                    images: &[],
                    runtime_version: "containerd://1.6.20",
                    runtime: None,
                    errors: &[],
                    now: Timestamp::UNIX_EPOCH,
                },
                &NodeStatus::default(),
            );
            let conditions = status.conditions.unwrap();
            let pids = conditions
                .iter()
                .find(|c| c.type_ == "PIDPressure")
                .unwrap();
            let reason = pids.reason.as_deref().unwrap();
            assert_eq!((pids.status.as_str(), reason), (want.0, want.1), "{left}");
            assert!(events.contains(&want.2), "{events:?}");
        };
        let enough = ("False", "KubeletHasSufficientPID", "NodeHasSufficientPID");
        let short = (
            "True",
            "KubeletHasInsufficientPID",
            "NodeHasInsufficientPID",
        );
        check(&config, 1, enough);
        config
            .eviction_hard
            .insert("pid.available".into(), "10%".into());
        check(&config, 99, short);
        check(&config, 100, enough);
    }
}
