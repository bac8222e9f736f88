//! Services, ingresses, network policies, endpoint slices (upstream `ValidateService`, `pkg/apis/networking/validation`).

use std::collections::HashSet;
use std::net::IpAddr;

use keelson_machinery::meta::ip::{parse_ip_sloppy, valid_cidr_legacy, valid_ip, valid_ip_legacy};
use keelson_machinery::meta::names;
use keelson_machinery::status::field::{FieldError, Path};
use keelson_machinery::value::{self, Value};

use super::{At, Found, has, refuse, text};

/// `validateService`; what the allocator refuses is refused there.
pub fn service(spec: &Value, at: &At<'_>, found: &mut Found) {
    let kind = text(spec, "type");
    let ports = value::items(spec, &["ports"]);
    let headless = text(spec, "clusterIP") == "None";
    if ports.is_empty() && !headless && kind != "ExternalName" {
        found.push(FieldError::required(&at.child("ports"), ""));
    }
    if headless && matches!(kind, "LoadBalancer" | "NodePort") {
        found.push(FieldError::invalid(
            &at.child("clusterIPs").index(0),
            "None",
            format!("may not be set to 'None' for {kind} services"),
        ));
    }
    if kind == "ExternalName" {
        for (name, set) in [
            (
                "clusterIPs",
                !value::items(spec, &["clusterIPs"]).is_empty(),
            ),
            (
                "ipFamilies",
                !value::items(spec, &["ipFamilies"]).is_empty(),
            ),
            ("ipFamilyPolicy", has(spec, "ipFamilyPolicy")),
        ] {
            if set {
                found.push(FieldError::forbidden(
                    &at.child(name),
                    "may not be set for ExternalName services",
                ));
            }
        }
        let name = text(spec, "externalName");
        let name = name.strip_suffix('.').unwrap_or(name);
        if name.is_empty() {
            found.push(FieldError::required(&at.child("externalName"), ""));
        } else {
            refuse(
                found,
                &at.child("externalName"),
                name,
                names::dns1123_subdomain(name),
            );
        }
    }
    service_ports(ports, kind, &at.child("ports"), found);
    if text(spec, "sessionAffinity") == "ClientIP"
        && let Some(seconds) = value::get_i64(
            spec,
            &["sessionAffinityConfig", "clientIP", "timeoutSeconds"],
        )
        && !(1..=86_400).contains(&seconds)
    {
        found.push(FieldError::invalid(
            &at.child("sessionAffinityConfig.clientIP.timeoutSeconds"),
            seconds,
            "must be greater than 0 and less than or equal to 86400",
        ));
    }
    for (index, address) in value::items(spec, &["externalIPs"]).iter().enumerate() {
        let path = at.child("externalIPs").index(index);
        let address = address.as_str().unwrap_or_default();
        match valid_ip_legacy(&path, address, &[]) {
            Some(error) => found.push(error),
            None => endpoint_address(address, &path, found),
        }
    }
    let ranges = value::items(spec, &["loadBalancerSourceRanges"]);
    let path = at.child("LoadBalancerSourceRanges");
    if !ranges.is_empty() && kind != "LoadBalancer" {
        found.push(FieldError::forbidden(
            &path,
            "may only be used when `type` is 'LoadBalancer'",
        ));
    }
    for (index, range) in ranges.iter().enumerate() {
        let range = range.as_str().unwrap_or_default().trim();
        found.extend(valid_cidr_legacy(&path.index(index), range, &[]));
    }
    if has(spec, "allocateLoadBalancerNodePorts") && kind != "LoadBalancer" {
        found.push(FieldError::forbidden(
            &at.child("allocateLoadBalancerNodePorts"),
            "may only be used when `type` is 'LoadBalancer'",
        ));
    }
    if let Some(class) = value::get_str(spec, &["loadBalancerClass"]) {
        let path = at.child("loadBalancerClass");
        if kind == "LoadBalancer" {
            refuse(found, &path, class, names::qualified_name(class));
        } else {
            found.push(FieldError::forbidden(
                &path,
                "may only be used when `type` is 'LoadBalancer'",
            ));
        }
    }
    let external = text(spec, "externalTrafficPolicy");
    if !external.is_empty() && !["Cluster", "Local"].contains(&external) {
        found.push(FieldError::not_supported(
            &at.child("externalTrafficPolicy"),
            external,
            &["Cluster", "Local"],
        ));
    }
    let internal = text(spec, "internalTrafficPolicy");
    if !internal.is_empty() && !["Cluster", "Local"].contains(&internal) {
        found.push(FieldError::not_supported(
            &at.child("internalTrafficPolicy"),
            internal,
            &["Cluster", "Local"],
        ));
    }
}

fn service_ports(ports: &[Value], kind: &str, list: &Path, found: &mut Found) {
    let mut seen = HashSet::new();
    let mut node_ports = HashSet::new();
    let mut numbers = HashSet::new();
    for (index, port) in ports.iter().enumerate() {
        let path = list.index(index);
        let (name, protocol) = (text(port, "name"), text(port, "protocol"));
        if name.is_empty() {
            if ports.len() > 1 {
                found.push(FieldError::required(&path.child("name"), ""));
            }
        } else {
            refuse(found, &path.child("name"), name, names::dns1123_label(name));
            if !seen.insert(name) {
                found.push(FieldError::duplicate(&path.child("name"), name));
            }
        }
        if let Some(protocol) = value::get_str(port, &["appProtocol"]) {
            let path = path.child("appProtocol");
            refuse(found, &path, protocol, names::qualified_name(protocol));
        }
        let node_port = value::get_i64(port, &["nodePort"]).unwrap_or(0);
        if node_port != 0 {
            if kind == "ClusterIP" {
                found.push(FieldError::forbidden(
                    &path.child("nodePort"),
                    "may not be used when `type` is 'ClusterIP'",
                ));
            }
            if !node_ports.insert((protocol, node_port)) {
                found.push(FieldError::duplicate(&path.child("nodePort"), node_port));
            }
        }
        let number = value::get_i64(port, &["port"]).unwrap_or(0);
        if !numbers.insert((protocol, number)) {
            let shown = serde_json::json!({"port": number, "protocol": protocol});
            found.push(FieldError::duplicate(&path, shown));
        }
    }
}

/// `ValidateEndpointIP`: endpoints are not on the node itself, nor on its link.
fn endpoint_address(address: &str, path: &Path, found: &mut Found) {
    let Some(ip) = parse_ip_sloppy(address) else {
        return;
    };
    let (link, multicast) = match ip {
        IpAddr::V4(ip) => (ip.is_link_local(), ip.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(ip) => (
            ip.is_unicast_link_local(),
            ip.segments()[0] & 0xff0f == 0xff02,
        ),
    };
    let words = if ip.is_unspecified() {
        format!("may not be unspecified ({address})")
    } else if ip.is_loopback() {
        "may not be in the loopback range (127.0.0.0/8, ::1/128)".to_string()
    } else if link {
        "may not be in the link-local range (169.254.0.0/16, fe80::/10)".to_string()
    } else if multicast {
        "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".to_string()
    } else {
        return;
    };
    found.push(FieldError::invalid(path, address, words));
}

/// `validateEndpointSubsets`.
pub fn endpoint_subset(subset: &Value, at: &At<'_>, found: &mut Found) {
    let lists = ["addresses", "notReadyAddresses"];
    if lists
        .iter()
        .all(|list| value::items(subset, &[list]).is_empty())
    {
        found.push(FieldError::required(
            &at.path(),
            "must specify `addresses` or `notReadyAddresses`",
        ));
    }
    for list in lists {
        for (index, address) in value::items(subset, &[list]).iter().enumerate() {
            let path = at.child(list).index(index).child("ip");
            endpoint_address(text(address, "ip"), &path, found);
        }
    }
    let ports = value::items(subset, &["ports"]);
    for (index, port) in ports.iter().enumerate() {
        let path = at.child("ports").index(index).child("name");
        let name = text(port, "name");
        if !name.is_empty() {
            refuse(found, &path, name, names::dns1123_label(name));
        } else if ports.len() > 1 {
            found.push(FieldError::required(&path, ""));
        }
    }
}

/// `ValidateIngressSpec`.
pub fn ingress(spec: &Value, at: &At<'_>, found: &mut Found) {
    if value::items(spec, &["rules"]).is_empty() && !has(spec, "defaultBackend") {
        found.push(FieldError::invalid(
            &at.path(),
            Value::from(value::items(spec, &["rules"])),
            "either `defaultBackend` or `rules` must be specified",
        ));
    }
    for (index, tls) in value::items(spec, &["tls"]).iter().enumerate() {
        let path = at.child("tls").index(index);
        for (index, host) in value::items(tls, &["hosts"]).iter().enumerate() {
            host_name(
                host.as_str().unwrap_or_default(),
                &path.child("hosts").index(index),
                found,
            );
        }
        let secret = text(tls, "secretName");
        if !secret.is_empty() {
            refuse(
                found,
                &path.child("secretName"),
                secret,
                names::dns1123_subdomain(secret),
            );
        }
    }
}

fn host_name(host: &str, path: &Path, found: &mut Found) {
    let broken = if host.contains('*') {
        names::wildcard_dns1123_subdomain(host)
    } else {
        names::dns1123_subdomain(host)
    };
    refuse(found, path, host, broken);
}

/// `validateIngressRules`.
pub fn ingress_rule(rule: &Value, at: &At<'_>, found: &mut Found) {
    let host = text(rule, "host");
    if host.is_empty() {
        return;
    }
    let path = at.child("host");
    if parse_ip_sloppy(host).is_some() {
        found.push(FieldError::invalid(
            &path,
            host,
            "must be a DNS name, not an IP address",
        ));
    }
    host_name(host, &path, found);
}

/// `validateHTTPIngressPath`.
pub fn ingress_path(path: &Value, at: &At<'_>, found: &mut Found) {
    let given = text(path, "path");
    let path = match value::get_str(path, &["pathType"]) {
        None => {
            found.push(FieldError::required(
                &at.child("pathType"),
                "pathType must be specified",
            ));
            return;
        }
        Some(kind @ ("Exact" | "Prefix" | "ImplementationSpecific")) => {
            let path = at.child("path");
            let absolute = given.starts_with('/');
            if !absolute && (kind != "ImplementationSpecific" || !given.is_empty()) {
                found.push(FieldError::invalid(
                    &path,
                    given,
                    "must be an absolute path",
                ));
            }
            if kind == "ImplementationSpecific" {
                return;
            }
            path
        }
        Some(other) => {
            found.push(FieldError::not_supported(
                &at.child("pathType"),
                other,
                &["Exact", "ImplementationSpecific", "Prefix"],
            ));
            return;
        }
    };
    for part in ["//", "/./", "/../", "%2f", "%2F"] {
        if given.contains(part) {
            found.push(FieldError::invalid(
                &path,
                given,
                format!("must not contain '{part}'"),
            ));
        }
    }
    for end in ["/..", "/."] {
        if given.ends_with(end) {
            found.push(FieldError::invalid(
                &path,
                given,
                format!("cannot end with '{end}'"),
            ));
        }
    }
}

/// `validateIngressBackend`.
pub fn ingress_backend(backend: &Value, at: &At<'_>, found: &mut Found) {
    let service = value::get(backend, &["service"]);
    let service = match (service, has(backend, "resource")) {
        (Some(_), true) => {
            found.push(FieldError::invalid(
                &at.path(),
                "",
                "cannot set both resource and service backends",
            ));
            return;
        }
        (None, true) => return,
        (None, false) => {
            found.push(FieldError::invalid(
                &at.path(),
                "",
                "resource or service backend is required",
            ));
            return;
        }
        (Some(service), false) => service,
    };
    let name = text(service, "name");
    if name.is_empty() {
        found.push(FieldError::required(&at.child("service.name"), ""));
    } else {
        refuse(
            found,
            &at.child("service.name"),
            name,
            names::dns1123_label(name),
        );
    }
    let name = value::str_or_empty(service, &["port", "name"]);
    let number = value::get_i64(service, &["port", "number"]).unwrap_or(0);
    match (name.is_empty(), number) {
        (true, 0) => {
            found.push(FieldError::required(
                &at.path(),
                "port name or number is required",
            ));
        }
        (false, 0) => refuse(
            found,
            &at.child("service.port.name"),
            name,
            names::port_name(name),
        ),
        (true, number) => {
            for message in names::port_number(number) {
                let path = at.child("service.port.number");
                found.push(FieldError::invalid(&path, number, message));
            }
        }
        (false, _) => found.push(FieldError::invalid(
            &at.path(),
            "",
            "cannot set both port name & port number",
        )),
    }
}

/// `ValidateNetworkPolicyPort`.
pub fn policy_port(port: &Value, at: &At<'_>, found: &mut Found) {
    let end = value::get_i64(port, &["endPort"]);
    let path = at.child("endPort");
    match value::get(port, &["port"]) {
        Some(Value::String(name)) => {
            if let Some(end) = end {
                found.push(FieldError::invalid(
                    &path,
                    end,
                    "may not be specified when `port` is non-numeric",
                ));
            }
            refuse(found, &at.child("port"), name, names::port_name(name));
        }
        Some(number) => {
            let number = number.as_i64().unwrap_or(0);
            for message in names::port_number(number) {
                found.push(FieldError::invalid(&at.child("port"), number, message));
            }
            if let Some(end) = end {
                if end < number {
                    found.push(FieldError::invalid(
                        &path,
                        number,
                        "must be greater than or equal to `port`",
                    ));
                }
                for message in names::port_number(end) {
                    found.push(FieldError::invalid(&path, end, message));
                }
            }
        }
        None => {
            if let Some(end) = end {
                found.push(FieldError::invalid(
                    &path,
                    end,
                    "may not be specified when `port` is not specified",
                ));
            }
        }
    }
}

/// `ValidateNetworkPolicyPeer`.
pub fn policy_peer(peer: &Value, at: &At<'_>, found: &mut Found) {
    let block = value::get(peer, &["ipBlock"]);
    let selects = has(peer, "podSelector") || has(peer, "namespaceSelector");
    if block.is_none() && !selects {
        found.push(FieldError::required(&at.path(), "must specify a peer"));
    }
    if block.is_some() && selects {
        found.push(FieldError::forbidden(
            &at.path(),
            "may not specify both ipBlock and another peer",
        ));
    }
    let Some(block) = block else {
        return;
    };
    let range = text(block, "cidr");
    if !range.is_empty() {
        found.extend(valid_cidr_legacy(&at.child("ipBlock.cidr"), range, &[]));
    }
    for (index, except) in value::items(block, &["except"]).iter().enumerate() {
        let path = at.child("ipBlock.except").index(index);
        found.extend(valid_cidr_legacy(
            &path,
            except.as_str().unwrap_or_default(),
            &[],
        ));
    }
}

/// `ValidateNetworkPolicySpec`.
pub fn policy_spec(spec: &Value, at: &At<'_>, found: &mut Found) {
    let types = value::items(spec, &["policyTypes"]);
    if types.len() > 2 {
        found.push(FieldError::invalid(
            &at.child("policyTypes"),
            Value::from(types),
            "may not specify more than two policyTypes",
        ));
        return;
    }
    for (index, kind) in types.iter().enumerate() {
        let kind = kind.as_str().unwrap_or_default();
        if !["Ingress", "Egress"].contains(&kind) {
            found.push(FieldError::not_supported(
                &at.child("policyTypes").index(index),
                kind,
                &["Ingress", "Egress"],
            ));
        }
    }
}

/// `validateEndpoints` and `validatePorts` of endpoint slices.
pub fn endpoint_slice(slice: &Value, at: &At<'_>, found: &mut Found) {
    let endpoints = value::items(slice, &["endpoints"]);
    if endpoints.len() > 1000 {
        found.push(FieldError::too_many(
            &at.child("endpoints"),
            endpoints.len(),
            1000,
        ));
        return;
    }
    let kind = text(slice, "addressType");
    for (index, endpoint) in endpoints.iter().enumerate() {
        let addresses = value::items(endpoint, &["addresses"]);
        let list = at.child("endpoints").index(index).child("addresses");
        if addresses.len() > 100 {
            found.push(FieldError::too_many(&list, addresses.len(), 100));
        }
        for (index, address) in addresses.iter().enumerate() {
            let (address, path) = (address.as_str().unwrap_or_default(), list.index(index));
            if kind == "FQDN" {
                refuse(found, &path, address, names::dns1123_subdomain(address));
                continue;
            }
            if let Some(error) = valid_ip(&path, address) {
                found.push(error);
                continue;
            }
            endpoint_address(address, &path, found);
            let six = address.contains(':');
            if six != (kind == "IPv6") && matches!(kind, "IPv4" | "IPv6") {
                found.push(FieldError::invalid(
                    &path,
                    address,
                    format!("must be an {kind} address"),
                ));
            }
        }
    }
    let ports = value::items(slice, &["ports"]);
    if ports.len() > 20_000 {
        found.push(FieldError::too_many(
            &at.child("ports"),
            ports.len(),
            20_000,
        ));
    }
    let mut seen = HashSet::new();
    for (index, port) in ports.iter().enumerate() {
        let path = at.child("ports").index(index).child("name");
        let name = text(port, "name");
        if !name.is_empty() {
            refuse(found, &path, name, names::dns1123_label(name));
        }
        if !seen.insert(name) {
            found.push(FieldError::duplicate(&path, name));
        }
    }
}
