//! Cells of services and what belongs to them.

use std::collections::BTreeSet;

use keelson_machinery::meta::{self, GroupResource};
use keelson_machinery::selector::LabelSelector;
use keelson_machinery::value::Value;

use super::cell::{Context, at, first_three, int, items, or, text};

pub(super) fn cluster_ip(service: &Value, _: &Context) -> Value {
    let first = items(service, "spec.clusterIPs").first();
    first.and_then(Value::as_str).unwrap_or("<none>").into()
}

/// Upstream `getServiceExternalIP`.
pub(super) fn external_ip(service: &Value, _: &Context) -> Value {
    let mut ips: Vec<&str> = items(service, "spec.externalIPs")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    match text(service, "spec.type") {
        "ClusterIP" | "NodePort" => or(ips.join(","), "<none>"),
        "LoadBalancer" => {
            let balancer = load_balancer(service);
            if !balancer.is_empty() {
                ips.insert(0, &balancer);
            }
            or(ips.join(","), "<pending>")
        }
        "ExternalName" => text(service, "spec.externalName").to_owned(),
        _ => "<unknown>".to_owned(),
    }
    .into()
}

fn load_balancer(object: &Value) -> String {
    let points: BTreeSet<&str> = items(object, "status.loadBalancer.ingress")
        .iter()
        .map(|point| match text(point, "ip") {
            "" => text(point, "hostname"),
            ip => ip,
        })
        .filter(|point| !point.is_empty())
        .collect();
    points.into_iter().collect::<Vec<_>>().join(",")
}

pub(super) fn service_ports(service: &Value, _: &Context) -> Value {
    let ports: Vec<String> = items(service, "spec.ports")
        .iter()
        .map(|port| {
            let (number, protocol) = (int(port, "port"), text(port, "protocol"));
            match int(port, "nodePort") {
                node if node > 0 => format!("{number}:{node}/{protocol}"),
                _ => format!("{number}/{protocol}"),
            }
        })
        .collect();
    or(ports.join(","), "<none>").into()
}

/// Upstream `formatEndpoints`.
pub(super) fn endpoints(object: &Value, _: &Context) -> Value {
    let subsets = items(object, "subsets");
    if subsets.is_empty() {
        return "<none>".into();
    }
    let mut list = Vec::new();
    for subset in subsets {
        let ports = items(subset, "ports");
        let ips = items(subset, "addresses").iter().map(|a| text(a, "ip"));
        if ports.is_empty() {
            list.extend(ips.map(str::to_owned));
            continue;
        }
        for port in ports {
            let port = int(port, "port");
            list.extend(ips.clone().map(|ip| match ip.contains(':') {
                true => format!("[{ip}]:{port}"),
                false => format!("{ip}:{port}"),
            }));
        }
    }
    // No address at all is the empty text here, unlike in the other lists.
    match list.is_empty() {
        true => "".into(),
        false => first_three(&list).into(),
    }
}

pub(super) fn slice_ports(slice: &Value, _: &Context) -> Value {
    let ports: Vec<String> = items(slice, "ports")
        .iter()
        .map(|port| match (at(port, "port"), at(port, "name")) {
            (Some(number), _) => number.to_string(),
            (None, Some(name)) => name.as_str().unwrap_or_default().to_owned(),
            (None, None) => "*".to_owned(),
        })
        .collect();
    first_three(&ports).into()
}

pub(super) fn slice_endpoints(slice: &Value, _: &Context) -> Value {
    let addresses: Vec<String> = items(slice, "endpoints")
        .iter()
        .flat_map(|endpoint| items(endpoint, "addresses"))
        .filter_map(|address| address.as_str().map(str::to_owned))
        .collect();
    first_three(&addresses).into()
}

/// Upstream `formatHosts`: the count of more includes rules without a host.
pub(super) fn ingress_hosts(ingress: &Value, _: &Context) -> Value {
    const MAX: usize = 3;
    let rules = items(ingress, "spec.rules");
    let mut list = Vec::new();
    let mut more = false;
    for rule in rules {
        more |= list.len() == MAX;
        let host = text(rule, "host");
        if !more && !host.is_empty() {
            list.push(host);
        }
    }
    if list.is_empty() {
        return "*".into();
    }
    let shown = list.join(",");
    match more {
        true => format!("{shown} + {} more...", rules.len() - MAX).into(),
        false => shown.into(),
    }
}

pub(super) fn ingress_address(ingress: &Value, _: &Context) -> Value {
    load_balancer(ingress).into()
}

pub(super) fn ingress_ports(ingress: &Value, _: &Context) -> Value {
    match items(ingress, "spec.tls").is_empty() {
        true => "80",
        false => "80, 443",
    }
    .into()
}

pub(super) fn ingress_class_name(class: &Value, _: &Context) -> Value {
    let name = meta::name(class);
    match meta::annotation(class, "ingressclass.kubernetes.io/is-default-class") {
        Some("true") => format!("{name} (default)").into(),
        _ => name.into(),
    }
}

pub(super) fn ingress_class_parameters(class: &Value, _: &Context) -> Value {
    let Some(parameters) = at(class, "spec.parameters") else {
        return "<none>".into();
    };
    let mut out = text(parameters, "kind").to_owned();
    if let Some(group) = at(parameters, "apiGroup").and_then(Value::as_str) {
        out.push('.');
        out.push_str(group);
    }
    format!("{out}/{}", text(parameters, "name")).into()
}

pub(super) fn policy_selector(policy: &Value, _: &Context) -> Value {
    // The selector is no pointer upstream: absent, it selects everything.
    let empty = Value::Object(Default::default());
    let selector = at(policy, "spec.podSelector").unwrap_or(&empty);
    match LabelSelector::from_value(Some(selector)) {
        Ok(selector) => or(selector.to_string(), "<none>").into(),
        Err(_) => "<error>".into(),
    }
}

pub(super) fn ip_parent(address: &Value, _: &Context) -> Value {
    let Some(parent) = at(address, "spec.parentRef") else {
        return "<none>".into();
    };
    let resource = GroupResource::new(text(parent, "group"), text(parent, "resource"));
    let mut out = resource.to_string().to_lowercase();
    for part in [text(parent, "namespace"), text(parent, "name")] {
        if !part.is_empty() {
            out.push('/');
            out.push_str(part);
        }
    }
    out.into()
}
