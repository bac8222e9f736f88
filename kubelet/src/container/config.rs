//! From a pod to what the runtime is told: the sandbox's configuration and a container's.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, Pod};

use super::{labels, security};
use crate::cri;
use crate::network::{dns, hosts};
use crate::podutil;
use crate::resources;

/// What configurations depend on besides the pod.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where pods' logs are.
    pub pod_logs_dir: PathBuf,
    /// The kubelet's own directory.
    pub root_dir: PathBuf,
    /// The cluster's DNS.
    pub dns: dns::Cluster,
    /// The node's resolver file.
    pub resolv_conf: PathBuf,
    /// Whether CPU limits become quotas...
    pub cpu_cfs_quota: bool,
    /// ...over this period, in microseconds.
    pub cpu_period_us: i64,
    /// Whether seccomp is on by default.
    pub seccomp_default: bool,
    /// The node's memory.
    pub memory_capacity: i64,
    /// Whether the node runs on cgroup v2.
    pub cgroup_v2: bool,
}

/// The directory of a pod's logs.
pub fn pod_logs_dir(root: &Path, namespace: &str, name: &str, uid: &str) -> PathBuf {
    root.join(format!("{namespace}_{name}_{uid}"))
}

/// A sandbox's configuration, and warnings for events.
pub fn sandbox(
    s: &Settings,
    pod: &Pod,
    attempt: u32,
    cgroup_parent: String,
) -> Result<(cri::PodSandboxConfig, dns::Warnings), String> {
    let spec = podutil::spec(pod);
    // What would change what a pod may do, and is not there, must not be passed over in silence.
    if spec.host_users == Some(false) {
        return Err(format!(
            "pod {:?} wants a user namespace of its own, which this kubelet does not support",
            podutil::describe(pod)
        ));
    }
    if spec.resource_claims.as_ref().is_some_and(|c| !c.is_empty()) {
        return Err("resource claims are not supported by this kubelet".to_owned());
    }
    let dns = dns::settings(pod, &s.dns, &s.resolv_conf)?;
    let hostname = if podutil::is_host_network(pod) {
        String::new()
    } else {
        let (name, domain) = hosts::name_and_domain(pod, &s.dns.domain)?;
        hosts::kernel_name(&name, &domain, spec.set_hostname_as_fqdn == Some(true))?
    };
    let mut port_mappings = Vec::new();
    let with_ports = podutil::containers(pod).iter().chain(
        podutil::init_containers(pod)
            .iter()
            .filter(|c| podutil::is_sidecar(c)),
    );
    for p in with_ports.flat_map(|c| c.ports.iter().flatten()) {
        port_mappings.push(cri::PortMapping {
            protocol: match p.protocol.as_deref() {
                Some("UDP") => cri::Protocol::Udp,
                Some("SCTP") => cri::Protocol::Sctp,
                _ => cri::Protocol::Tcp,
            } as i32,
            container_port: p.container_port,
            host_port: p.host_port.unwrap_or(0),
            host_ip: p.host_ip.clone().unwrap_or_default(),
        });
    }
    let sc = spec.security_context.as_ref();
    let own = |n: Option<i64>| n.map(|value| cri::Int64Value { value });
    let linux = cri::LinuxPodSandboxConfig {
        cgroup_parent,
        security_context: Some(cri::LinuxSandboxSecurityContext {
            namespace_options: Some(security::namespaces(pod)),
            privileged: security::has_privileged(pod),
            seccomp: Some(cri::SecurityProfile {
                profile_type: cri::ProfileType::RuntimeDefault as i32,
                localhost_ref: String::new(),
            }),
            run_as_user: own(sc.and_then(|s| s.run_as_user)),
            run_as_group: own(sc.and_then(|s| s.run_as_group)),
            supplemental_groups: security::supplemental_groups(pod),
            supplemental_groups_policy: security::groups_policy(pod)?,
            ..Default::default()
        }),
        sysctls: sc
            .and_then(|s| s.sysctls.as_ref())
            .into_iter()
            .flatten()
            .map(|x| (x.name.replace('/', "."), x.value.clone()))
            .collect(),
        overhead: Some(cri::LinuxContainerResources::default()),
        resources: Some(linux_resources(
            s,
            resources::pod_total(pod, "cpu", resources::request),
            resources::pod_total(pod, "cpu", resources::limit),
            resources::pod_total(pod, "memory", resources::limit),
        )),
    };
    let config = cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: podutil::name(pod).to_owned(),
            uid: podutil::uid(pod).to_owned(),
            namespace: podutil::namespace(pod).to_owned(),
            attempt,
        }),
        hostname,
        log_directory: pod_logs_dir(
            &s.pod_logs_dir,
            podutil::namespace(pod),
            podutil::name(pod),
            podutil::uid(pod),
        )
        .to_string_lossy()
        .into_owned(),
        dns_config: Some(dns.config),
        port_mappings,
        labels: labels::sandbox_labels(pod),
        annotations: podutil::map(&pod.metadata.annotations),
        linux: Some(linux),
    };
    Ok((config, dns.warnings))
}

fn linux_resources(
    s: &Settings,
    cpu_request: i64,
    cpu_limit: i64,
    memory_limit: i64,
) -> cri::LinuxContainerResources {
    let request = if cpu_request == 0 {
        cpu_limit
    } else {
        cpu_request
    };
    let mut r = cri::LinuxContainerResources {
        cpu_shares: resources::milli_to_shares(request),
        memory_limit_in_bytes: memory_limit,
        ..Default::default()
    };
    if s.cpu_cfs_quota {
        r.cpu_period = s.cpu_period_us;
        r.cpu_quota = resources::milli_to_quota(cpu_limit, s.cpu_period_us);
    }
    r
}

/// The resources of one container.
pub fn container_resources(s: &Settings, pod: &Pod, c: &Container) -> cri::LinuxContainerResources {
    let r = c.resources.as_ref();
    let cpu_limit = resources::limit(r, "cpu").unwrap_or(0);
    let request = resources::request(r, "cpu").unwrap_or(cpu_limit);
    let mut out = linux_resources(s, 0, cpu_limit, resources::limit(r, "memory").unwrap_or(0));
    out.cpu_shares = resources::milli_to_shares(request);
    out.oom_score_adj = resources::oom_score_adj(pod, c, s.memory_capacity);
    // Without swap for containers: the swap limit equals the memory limit.
    out.memory_swap_limit_in_bytes = out.memory_limit_in_bytes;
    if s.cgroup_v2 {
        out.unified
            .insert("memory.oom.group".to_owned(), "1".to_owned());
    }
    for (name, q) in r.and_then(|r| r.limits.as_ref()).into_iter().flatten() {
        if let Some(size) = name.strip_prefix("hugepages-") {
            out.hugepage_limits.push(cri::HugepageLimit {
                page_size: format!("{}B", size.trim_end_matches('i')),
                limit: u64::try_from(resources::value(q)).unwrap_or(0),
            });
        }
    }
    out
}

/// What a container's configuration is made of besides its definition.
pub struct Parts {
    /// How often it was restarted before.
    pub restart_count: u32,
    /// The image by digest.
    pub image_ref: String,
    /// The user of the image.
    pub image_user: security::ImageUser,
    /// The environment.
    pub env: Vec<(String, String)>,
    /// All mounts.
    pub mounts: Vec<cri::Mount>,
    /// The container whose processes an ephemeral container sees.
    pub target: Option<String>,
}

/// A container's configuration.
pub fn container(
    s: &Settings,
    pod: &Pod,
    c: &Container,
    p: Parts,
) -> Result<cri::ContainerConfig, String> {
    security::verify_non_root(pod, c, &p.image_user)?;
    if c.volume_devices.as_ref().is_some_and(|d| !d.is_empty()) {
        return Err("block volumes are not supported by this kubelet".to_owned());
    }
    let mut context = security::context(pod, c, &p.image_user, s.seccomp_default, &s.root_dir)?;
    if let (Some(target), Some(ns)) = (p.target, context.namespace_options.as_mut())
        && ns.pid == cri::NamespaceMode::Container as i32
    {
        ns.pid = cri::NamespaceMode::Target as i32;
        ns.target_id = target;
    }
    let expand = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter()
            .flatten()
            .map(|x| {
                super::expand::expand(x, |name| {
                    p.env
                        .iter()
                        .find(|(n, _)| n == name)
                        .map(|(_, v)| v.as_str())
                })
            })
            .collect()
    };
    let stop_signal = c
        .lifecycle
        .as_ref()
        .and_then(|l| l.stop_signal.as_deref())
        .map(|name| signal(name).ok_or_else(|| format!("unsupported stop signal {name:?}")))
        .transpose()?
        .unwrap_or(cri::Signal::RuntimeDefault);
    Ok(cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata {
            name: c.name.clone(),
            attempt: p.restart_count,
        }),
        image: Some(cri::ImageSpec {
            image: p.image_ref,
            user_specified_image: c.image.clone().unwrap_or_default(),
            ..Default::default()
        }),
        command: expand(&c.command),
        args: expand(&c.args),
        working_dir: c.working_dir.clone().unwrap_or_default(),
        envs: p
            .env
            .iter()
            .map(|(k, v)| cri::KeyValue {
                key: k.clone(),
                value: v.clone().into_bytes(),
            })
            .collect(),
        mounts: p.mounts,
        labels: labels::container_labels(pod, c),
        annotations: labels::container_annotations(pod, c, p.restart_count),
        log_path: format!("{}/{}.log", c.name, p.restart_count),
        stdin: c.stdin.unwrap_or(false),
        stdin_once: c.stdin_once.unwrap_or(false),
        tty: c.tty.unwrap_or(false),
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(container_resources(s, pod, c)),
            security_context: Some(context),
        }),
        stop_signal: stop_signal as i32,
        ..Default::default()
    })
}

/// A signal by its name.
fn signal(name: &str) -> Option<cri::Signal> {
    (1..=65)
        .filter_map(|n| cri::Signal::try_from(n).ok())
        .find(|s| format!("{s:?}").eq_ignore_ascii_case(name))
}
