//! Small questions about a pod, answered in one place.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Container, ContainerStatus, EphemeralContainer, ObjectReference, Pod, PodCondition, PodSpec,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use sha2::{Digest, Sha256};

/// Where a pod came from (`file` or `api`).
pub const CONFIG_SOURCE: &str = "kubernetes.io/config.source";
/// The fingerprint of a static pod.
pub const CONFIG_HASH: &str = "kubernetes.io/config.hash";
/// On the API object that shows a static pod: the static pod's fingerprint.
pub const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";
/// When the kubelet first saw the pod.
pub const CONFIG_SEEN: &str = "kubernetes.io/config.seen";

static NO_SPEC: PodSpec = empty_spec();

const fn empty_spec() -> PodSpec {
    PodSpec {
        active_deadline_seconds: None,
        affinity: None,
        automount_service_account_token: None,
        containers: Vec::new(),
        dns_config: None,
        dns_policy: None,
        enable_service_links: None,
        ephemeral_containers: None,
        host_aliases: None,
        host_ipc: None,
        host_network: None,
        host_pid: None,
        host_users: None,
        hostname: None,
        hostname_override: None,
        image_pull_secrets: None,
        init_containers: None,
        node_name: None,
        node_selector: None,
        os: None,
        overhead: None,
        preemption_policy: None,
        priority: None,
        priority_class_name: None,
        readiness_gates: None,
        resource_claims: None,
        resources: None,
        restart_policy: None,
        runtime_class_name: None,
        scheduler_name: None,
        scheduling_gates: None,
        scheduling_group: None,
        security_context: None,
        service_account: None,
        service_account_name: None,
        set_hostname_as_fqdn: None,
        share_process_namespace: None,
        subdomain: None,
        termination_grace_period_seconds: None,
        tolerations: None,
        topology_spread_constraints: None,
        volumes: None,
    }
}

/// The spec; an object without one has an empty one.
pub fn spec(pod: &Pod) -> &PodSpec {
    pod.spec.as_ref().unwrap_or(&NO_SPEC)
}

/// `metadata.uid`.
pub fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// `metadata.name`.
pub fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

/// `metadata.namespace`.
pub fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or("default")
}

/// `name_namespace(uid)`, as pods are named in messages (upstream `format.Pod`).
pub fn describe(pod: &Pod) -> String {
    format!("{}_{}({})", name(pod), namespace(pod), uid(pod))
}

/// An annotation's value.
pub fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata
        .annotations
        .as_ref()?
        .get(key)
        .map(String::as_str)
}

/// Whether the pod was read from the static pod directory.
pub fn is_static(pod: &Pod) -> bool {
    annotation(pod, CONFIG_SOURCE).is_some_and(|s| s != "api")
}

/// Whether the API object only shows a static pod.
pub fn is_mirror(pod: &Pod) -> bool {
    annotation(pod, CONFIG_MIRROR).is_some()
}

/// Whether the pod must not be pushed out of memory (upstream `types.IsNodeCriticalPod`).
pub fn is_node_critical(pod: &Pod) -> bool {
    spec(pod).priority_class_name.as_deref() == Some("system-node-critical") || is_static(pod)
}

/// The regular containers.
pub fn containers(pod: &Pod) -> &[Container] {
    &spec(pod).containers
}

/// The init containers, sidecars among them.
pub fn init_containers(pod: &Pod) -> &[Container] {
    spec(pod).init_containers.as_deref().unwrap_or_default()
}

/// The ephemeral containers.
pub fn ephemeral_containers(pod: &Pod) -> &[EphemeralContainer] {
    spec(pod)
        .ephemeral_containers
        .as_deref()
        .unwrap_or_default()
}

/// An ephemeral container in the shape of a regular one.
pub fn ephemeral_as_container(e: &EphemeralContainer) -> Container {
    Container {
        args: e.args.clone(),
        command: e.command.clone(),
        env: e.env.clone(),
        env_from: e.env_from.clone(),
        image: e.image.clone(),
        image_pull_policy: e.image_pull_policy.clone(),
        lifecycle: e.lifecycle.clone(),
        liveness_probe: e.liveness_probe.clone(),
        name: e.name.clone(),
        ports: e.ports.clone(),
        readiness_probe: e.readiness_probe.clone(),
        resize_policy: e.resize_policy.clone(),
        resources: e.resources.clone(),
        restart_policy: e.restart_policy.clone(),
        restart_policy_rules: e.restart_policy_rules.clone(),
        security_context: e.security_context.clone(),
        startup_probe: e.startup_probe.clone(),
        stdin: e.stdin,
        stdin_once: e.stdin_once,
        termination_message_path: e.termination_message_path.clone(),
        termination_message_policy: e.termination_message_policy.clone(),
        tty: e.tty,
        volume_devices: e.volume_devices.clone(),
        volume_mounts: e.volume_mounts.clone(),
        working_dir: e.working_dir.clone(),
    }
}

/// The container of that name, of whichever sort.
pub fn find_container(pod: &Pod, name: &str) -> Option<Container> {
    containers(pod)
        .iter()
        .chain(init_containers(pod))
        .find(|c| c.name == name)
        .cloned()
        .or_else(|| {
            ephemeral_containers(pod)
                .iter()
                .find(|c| c.name == name)
                .map(ephemeral_as_container)
        })
}

/// Whether an init container keeps running beside the regular ones.
pub fn is_sidecar(c: &Container) -> bool {
    c.restart_policy.as_deref() == Some("Always")
}

/// Whether any init container is a sidecar.
pub fn has_sidecar(pod: &Pod) -> bool {
    init_containers(pod).iter().any(is_sidecar)
}

/// Whether the pod uses the node's network.
pub fn is_host_network(pod: &Pod) -> bool {
    spec(pod).host_network == Some(true)
}

/// `spec.restartPolicy`, or its default.
pub fn restart_policy(pod: &Pod) -> &str {
    spec(pod).restart_policy.as_deref().unwrap_or("Always")
}

/// Whether a container that ended with `exit_code` is started again (upstream `podutil.ContainerShouldRestart`).
pub fn should_restart(pod: &Pod, container: &Container, exit_code: i32) -> bool {
    for rule in container.restart_policy_rules.iter().flatten() {
        let Some(on) = &rule.exit_codes else { continue };
        let listed = on.values.iter().flatten().any(|v| *v == exit_code);
        let matches = match on.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        };
        if matches && (rule.action == "Restart" || rule.action == "RestartAllContainers") {
            return true;
        }
    }
    match container
        .restart_policy
        .as_deref()
        .unwrap_or(restart_policy(pod))
    {
        "Never" => false,
        "OnFailure" => exit_code != 0,
        _ => true,
    }
}

/// The port behind a number or a name in one of the container's ports.
pub fn resolve_port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(n) => *n,
        IntOrString::String(name) => match container
            .ports
            .iter()
            .flatten()
            .find(|p| p.name.as_deref() == Some(name))
        {
            Some(p) => p.container_port,
            None => name
                .parse()
                .map_err(|_| format!("couldn't find port: {name}"))?,
        },
    };
    match u16::try_from(number) {
        Ok(n) if n > 0 => Ok(n),
        _ => Err(format!("invalid port number: {number}")),
    }
}

/// The status of a container by name.
pub fn status_of<'a>(statuses: &'a [ContainerStatus], name: &str) -> Option<&'a ContainerStatus> {
    statuses.iter().find(|s| s.name == name)
}

/// A condition by type.
pub fn condition<'a>(conditions: &'a [PodCondition], kind: &str) -> Option<&'a PodCondition> {
    conditions.iter().find(|c| c.type_ == kind)
}

/// Whether the phase is `Succeeded` or `Failed`.
pub fn is_terminal_phase(phase: Option<&str>) -> bool {
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// A reference to the pod, for events.
pub fn reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: pod.metadata.name.clone(),
        namespace: Some(namespace(pod).to_owned()),
        uid: pod.metadata.uid.clone(),
        resource_version: pod.metadata.resource_version.clone(),
        field_path: None,
    }
}

/// A reference to a container within the pod, for events.
pub fn container_reference(pod: &Pod, container: &str) -> ObjectReference {
    let list = if containers(pod).iter().any(|c| c.name == container) {
        "containers"
    } else if init_containers(pod).iter().any(|c| c.name == container) {
        "initContainers"
    } else {
        "ephemeralContainers"
    };
    ObjectReference {
        field_path: Some(format!("spec.{list}{{{container}}}")),
        ..reference(pod)
    }
}

/// A fingerprint of a container's definition. Only the image may change in a running pod, so that it decides
/// (upstream `kubecontainer.HashContainer` picks the same two fields).
pub fn container_hash(c: &Container) -> String {
    let mut h = Sha256::new();
    h.update(c.name.as_bytes());
    h.update([0]);
    h.update(c.image.as_deref().unwrap_or_default().as_bytes());
    h.finalize()[..4]
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

/// The labels or annotations of an object as a plain map.
pub fn map(m: &Option<BTreeMap<String, String>>) -> BTreeMap<String, String> {
    m.clone().unwrap_or_default()
}

/// A time in whole seconds, as the API keeps it.
pub fn time(t: jiff::Timestamp) -> k8s_openapi::apimachinery::pkg::apis::meta::v1::Time {
    let whole = jiff::Timestamp::from_second(t.as_second()).unwrap_or(t);
    k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(whole)
}
