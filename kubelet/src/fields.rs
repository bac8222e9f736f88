//! The downward API: fields and resources of a pod as text, for environment variables and files
//! (upstream `pkg/fieldpath` and `resource.ExtractContainerResourceValue`).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, ObjectFieldSelector, Pod, ResourceFieldSelector};

use crate::podutil;
use crate::resources;

/// What is known about the node that a pod may ask for.
#[derive(Clone, Debug, Default)]
pub struct NodeFacts {
    /// The node's name.
    pub name: String,
    /// Its addresses.
    pub host_ips: Vec<String>,
    /// What containers may use, for limits that are not set: milli-cores.
    pub allocatable_cpu: i64,
    /// Bytes of memory.
    pub allocatable_memory: i64,
    /// Bytes of ephemeral storage.
    pub allocatable_storage: i64,
}

/// Go's `%q` of a string, as far as labels and annotations need it.
fn quote(s: &str) -> String {
    let mut out = String::with_capacity(s.len() + 2);
    out.push('"');
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => {
                out.push_str(&format!("\\x{:02x}", c as u32))
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn format_map(m: &Option<BTreeMap<String, String>>) -> String {
    m.iter()
        .flatten()
        .map(|(k, v)| format!("{k}={}", quote(v)))
        .collect::<Vec<_>>()
        .join("\n")
}

/// A field of a pod. `pod_ips` are those of its sandbox, which may be newer than its status.
pub fn field(
    f: &ObjectFieldSelector,
    pod: &Pod,
    node: &NodeFacts,
    pod_ips: &[String],
) -> Result<String, String> {
    let path = f.field_path.as_str();
    if let Some((map, key)) = path.strip_suffix("']").and_then(|p| p.split_once("['")) {
        let found = match map {
            "metadata.labels" => &pod.metadata.labels,
            "metadata.annotations" => &pod.metadata.annotations,
            _ => return Err(format!("fieldPath {path:?} does not support subscript")),
        };
        return Ok(found
            .as_ref()
            .and_then(|m| m.get(key))
            .cloned()
            .unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => podutil::name(pod).to_owned(),
        "metadata.namespace" => podutil::namespace(pod).to_owned(),
        "metadata.uid" => podutil::uid(pod).to_owned(),
        "metadata.labels" => format_map(&pod.metadata.labels),
        "metadata.annotations" => format_map(&pod.metadata.annotations),
        "spec.nodeName" => podutil::spec(pod)
            .node_name
            .clone()
            .unwrap_or_else(|| node.name.clone()),
        "spec.serviceAccountName" => podutil::spec(pod)
            .service_account_name
            .clone()
            .unwrap_or_default(),
        "status.hostIP" => node.host_ips.first().cloned().unwrap_or_default(),
        "status.hostIPs" => node.host_ips.join(","),
        "status.podIP" | "status.podIPs" => {
            let ips = if podutil::is_host_network(pod) {
                &node.host_ips
            } else {
                pod_ips
            };
            if path == "status.podIP" {
                ips.first().cloned().unwrap_or_default()
            } else {
                ips.join(",")
            }
        }
        _ => return Err(format!("unsupported fieldPath: {path}")),
    })
}

/// A request or limit of a container, in units of the selector's divisor, rounded up.
pub fn resource(
    f: &ResourceFieldSelector,
    container: &Container,
    node: &NodeFacts,
) -> Result<String, String> {
    let r = container.resources.as_ref();
    let (kind, name) = f
        .resource
        .split_once('.')
        .ok_or_else(|| format!("unsupported container resource : {}", f.resource))?;
    let of = match kind {
        "limits" => resources::limit(r, name),
        "requests" => resources::request(r, name),
        _ => return Err(format!("unsupported container resource : {}", f.resource)),
    };
    let fallback = match (kind, name) {
        ("limits", "cpu") => node.allocatable_cpu,
        ("limits", "memory") => node.allocatable_memory,
        ("limits", "ephemeral-storage") => node.allocatable_storage,
        (_, "cpu" | "memory" | "ephemeral-storage") => 0,
        (_, n) if n.starts_with("hugepages-") => 0,
        _ => return Err(format!("unsupported container resource : {}", f.resource)),
    };
    let amount = match of {
        Some(0) | None => fallback,
        Some(n) => n,
    };
    let divisor = match &f.divisor {
        None => 0,
        Some(q) if name == "cpu" => resources::milli(q),
        Some(q) => resources::value(q),
    };
    let divisor = match divisor {
        0 if name == "cpu" => 1000,
        0 => 1,
        n => n,
    };
    Ok((amount / divisor + i64::from(amount % divisor != 0)).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_and_resources() {
        let pod: Pod = serde_yaml_ng::from_str(
            "metadata: {name: p, namespace: n, uid: u, labels: {b: 'x\"y', a: '1'}}\n\
             spec: {containers: [{name: c, resources: {limits: {cpu: 1500m}, requests: {memory: 10Mi}}}]}",
        )
        .unwrap();
        let node = NodeFacts {
            name: "node".into(),
            host_ips: vec!["1.2.3.4".into()],
            allocatable_cpu: 2000,
            allocatable_memory: 1 << 30,
            allocatable_storage: 0,
        };
        let get = |p: &str| {
            let f = ObjectFieldSelector {
                field_path: p.into(),
                api_version: None,
            };
            field(&f, &pod, &node, &["10.0.0.1".into(), "fd::1".into()])
        };
        for (path, want) in [
            ("metadata.labels", "a=\"1\"\nb=\"x\\\"y\""),
            ("metadata.labels['b']", "x\"y"),
            ("metadata.annotations['none']", ""),
            ("spec.nodeName", "node"),
            ("status.podIPs", "10.0.0.1,fd::1"),
            ("status.hostIP", "1.2.3.4"),
        ] {
            assert_eq!(get(path).as_deref(), Ok(want), "{path}");
        }
        assert!(get("spec.hostname").is_err());
        let c = &podutil::containers(&pod)[0];
        for (name, divisor, want) in [
            ("limits.cpu", None, "2"),
            ("limits.cpu", Some("1m"), "1500"),
            ("requests.memory", Some("1Mi"), "10"),
            ("limits.memory", Some("1Mi"), "1024"),
            ("requests.cpu", None, "0"),
        ] {
            let f: ResourceFieldSelector =
                serde_json::from_value(serde_json::json!({"resource": name, "divisor": divisor}))
                    .unwrap();
            assert_eq!(
                resource(&f, c, &node).as_deref(),
                Ok(want),
                "{name} {divisor:?}"
            );
        }
    }
}
