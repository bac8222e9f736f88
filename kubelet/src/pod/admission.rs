//! Whether the node can take a pod (upstream `lifecycle.predicateAdmitHandler`). A pure function.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use crate::config::KubeletConfiguration;
use crate::container::security;
use crate::fields::NodeFacts;
use crate::podutil;
use crate::resources;

/// Why a pod is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// For `status.reason`.
    pub reason: String,
    /// For people.
    pub message: String,
}

fn refusal(reason: &str, message: impl Into<String>) -> Option<Refusal> {
    Some(Refusal {
        reason: reason.to_owned(),
        message: message.into(),
    })
}

/// Judges a new pod beside those that hold resources already.
pub fn refuse(
    pod: &Pod,
    others: &[Arc<Pod>],
    node: &NodeFacts,
    config: &KubeletConfiguration,
) -> Option<Refusal> {
    if let Some(message) = security::forbidden_sysctl(pod, &config.allowed_unsafe_sysctls) {
        return refusal("SysctlForbidden", message);
    }
    if podutil::spec(pod)
        .os
        .as_ref()
        .is_some_and(|o| o.name != "linux")
    {
        return refusal(
            "PodOSNotSupported",
            "Failed to admit pod as the OS field doesn't match node OS",
        );
    }
    let out_of = |resource: &str, requested: i64, used: i64, capacity: i64| {
        refusal(
            &format!("OutOf{resource}"),
            format!(
                "Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, capacity: {capacity}"
            ),
        )
    };
    let limit = i64::from(config.max_pods);
    let count = others.len() as i64;
    if count + 1 > limit {
        return out_of("pods", 1, count, limit);
    }
    for (name, capacity) in [
        ("cpu", node.allocatable_cpu),
        ("memory", node.allocatable_memory),
        ("ephemeral-storage", node.allocatable_storage),
    ] {
        let requested = resources::pod_total(pod, name, resources::request);
        if requested == 0 || capacity == 0 {
            continue;
        }
        let used: i64 = others
            .iter()
            .map(|p| resources::pod_total(p, name, resources::request))
            .sum();
        if requested > capacity - used {
            return out_of(name, requested, used, capacity);
        }
    }
    let ports = |p: &Pod| -> Vec<(String, String, i32)> {
        podutil::containers(p)
            .iter()
            .flat_map(|c| c.ports.iter().flatten())
            .filter_map(|p| {
                let port = p.host_port.filter(|n| *n > 0)?;
                let ip = p
                    .host_ip
                    .clone()
                    .filter(|i| !i.is_empty())
                    .unwrap_or_else(|| "0.0.0.0".to_owned());
                Some((
                    ip,
                    p.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                    port,
                ))
            })
            .collect()
    };
    let wanted = ports(pod);
    let any = |ip: &str| ip == "0.0.0.0" || ip == "::";
    let taken = others
        .iter()
        .flat_map(|o| ports(o))
        .any(|(ip, protocol, port)| {
            wanted.iter().any(|(i, pr, po)| {
                *po == port && *pr == protocol && (*i == ip || any(i) || any(&ip))
            })
        });
    if taken {
        return refusal(
            "NodePorts",
            "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports",
        );
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals() {
        let node = NodeFacts {
            allocatable_cpu: 1000,
            allocatable_memory: 1 << 30,
            ..NodeFacts::default()
        };
        let read = |t: &str| -> Pod { serde_yaml_ng::from_str(&format!("spec: {t}")).unwrap() };
        let other = Arc::new(read(
            "{containers: [{name: a, ports: [{containerPort: 1, hostPort: 80}], resources: {requests: {cpu: 600m}}}]}",
        ));
        let mut config = KubeletConfiguration::default();
        let check = |config: &KubeletConfiguration, t: &str, want: Option<&str>| {
            let got = refuse(&read(t), std::slice::from_ref(&other), &node, config);
            assert_eq!(got.as_ref().map(|r| r.reason.as_str()), want, "{t} {got:?}");
        };
        check(&config, "{containers: [{name: b}]}", None);
        check(
            &config,
            "{containers: [{name: b, resources: {requests: {cpu: 400m}}}]}",
            None,
        );
        check(
            &config,
            "{containers: [{name: b, resources: {requests: {cpu: 500m}}}]}",
            Some("OutOfcpu"),
        );
        check(
            &config,
            "{containers: [{name: b, resources: {requests: {memory: 2Gi}}}]}",
            Some("OutOfmemory"),
        );
        check(
            &config,
            "{containers: [{name: b, ports: [{containerPort: 9, hostPort: 80}]}]}",
            Some("NodePorts"),
        );
        check(
            &config,
            "{containers: [{name: b, ports: [{containerPort: 9, hostPort: 80, protocol: UDP}]}]}",
            None,
        );
        check(
            &config,
            "{containers: [], securityContext: {sysctls: [{name: kernel.msgmax, value: '1'}]}}",
            Some("SysctlForbidden"),
        );
        config.allowed_unsafe_sysctls = vec!["kernel.msg*".into()];
        check(
            &config,
            "{containers: [], securityContext: {sysctls: [{name: kernel.msgmax, value: '1'}]}}",
            None,
        );
        config.max_pods = 1;
        check(&config, "{containers: [{name: b}]}", Some("OutOfpods"));
    }
}
