//! Pods and what their specs consist of (upstream `ValidatePodCreate`, `ValidatePodSpec`).

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use keelson_machinery::meta::{self, names};
use keelson_machinery::status::field::{FieldError, Path};
use keelson_machinery::value::{self, Value};

use super::{At, Found, has, refuse, text};

/// `ValidatePodCreate`, what holds for pods and not for templates.
pub fn pod(pod: &Value, at: &At<'_>, found: &mut Found) {
    let spec = at.child("spec");
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for (index, container) in value::items(pod, &["spec", list]).iter().enumerate() {
            let image = text(container, "image");
            if image.trim().len() != image.len() {
                found.push(FieldError::invalid(
                    &spec.child(list).index(index).child("image"),
                    image,
                    "must not have leading or trailing whitespace",
                ));
            }
        }
    }
    if value::str_or_empty(pod, &["spec", "serviceAccountName"]).is_empty() {
        let volumes = value::items(pod, &["spec", "volumes"]);
        for (at, volume) in volumes.iter().enumerate() {
            let path = spec.child("volumes").index(at).child("projected");
            let sources = value::items(volume, &["projected", "sources"]);
            for (at, source) in sources.iter().enumerate() {
                if has(source, "serviceAccountToken") {
                    found.push(FieldError::forbidden(
                        &path.child("sources").index(at).child("serviceAccountToken"),
                        "must not be specified when serviceAccountName is not set",
                    ));
                }
            }
        }
    }
    host_ports_on_host_network(pod, &spec, found);
}

/// Upstream `validatePodHostNetworkDeps` for pods.
fn host_ports_on_host_network(pod: &Value, spec: &Path, found: &mut Found) {
    if value::get_bool(pod, &["spec", "hostNetwork"]) != Some(true) {
        return;
    }
    for (index, container) in value::items(pod, &["spec", "containers"])
        .iter()
        .enumerate()
    {
        let ports = spec.child("containers").index(index).child("ports");
        for (index, port) in value::items(container, &["ports"]).iter().enumerate() {
            let number = |name: &str| value::get_i64(port, &[name]).unwrap_or(0);
            if number("hostPort") != number("containerPort") {
                found.push(FieldError::invalid(
                    &ports.index(index).child("hostPort"),
                    number("hostPort"),
                    "must match `containerPort` when `hostNetwork` is true",
                ));
            }
        }
    }
}

/// `ValidatePodSpec`, as far as it takes the whole of the spec.
pub fn pod_spec(spec: &Value, at: &At<'_>, found: &mut Found) {
    let volumes = volumes(spec, at, found);
    let mut names: HashSet<&str> = HashSet::new();
    let mut containers_with_names = HashSet::new();
    let mut host_ports = HashSet::new();
    for (list, items) in lists(spec) {
        for (index, container) in items.iter().enumerate() {
            let path = at.child(list).index(index);
            let name = text(container, "name");
            if !name.is_empty() && !names.insert(name) {
                found.push(FieldError::duplicate(&path.child("name"), name));
            }
            if list != "ephemeralContainers" {
                containers_with_names.insert(name);
            }
            mounts(container, &volumes, &path, found);
            if list == "initContainers" {
                host_ports.clear();
            }
            if list != "ephemeralContainers" {
                unique_host_ports(container, &path, &mut host_ports, found);
            }
        }
    }
    init_containers(spec, at, found);
    ephemeral_containers(spec, at, &containers_with_names, found);
    dns(spec, at, found);
    sysctls(spec, at, found);
    gates(spec, at, found);
    spread(spec, at, found);
    for (index, alias) in value::items(spec, &["hostAliases"]).iter().enumerate() {
        let path = at.child("hostAliases").index(index).child("hostnames");
        for (index, host) in value::items(alias, &["hostnames"]).iter().enumerate() {
            let host = host.as_str().unwrap_or_default();
            refuse(
                found,
                &path.index(index),
                host,
                names::dns1123_subdomain(host),
            );
        }
    }
    let flag = |name: &str| value::get_bool(spec, &[name]) == Some(true);
    if flag("shareProcessNamespace") && flag("hostPID") {
        found.push(FieldError::invalid(
            &at.child("securityContext.shareProcessNamespace"),
            true,
            "ShareProcessNamespace and HostPID cannot both be enabled",
        ));
    }
    if value::get_bool(spec, &["hostUsers"]) == Some(false) {
        for (set, name) in [
            (flag("hostNetwork"), "hostNetwork"),
            (flag("hostPID"), "HostPID"),
            (flag("hostIPC"), "HostIPC"),
        ] {
            if set {
                found.push(FieldError::forbidden(
                    &at.child(name),
                    "when `hostUsers` is false",
                ));
            }
        }
    }
}

/// Longest name of a sysctl (`SysctlMaxLength`).
const LONGEST_SYSCTL: usize = 253;

/// `IsValidSysctlName`: segments between dots or slashes.
fn is_sysctl_name(name: &str) -> bool {
    let edge = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    name.len() <= LONGEST_SYSCTL
        && name.split(['.', '/']).all(|segment| {
            let bytes = segment.as_bytes();
            bytes.first().copied().is_some_and(edge)
                && bytes.last().copied().is_some_and(edge)
                && bytes.iter().all(|b| edge(*b) || matches!(b, b'-' | b'_'))
        })
}

/// `validateSysctls`.
fn sysctls(spec: &Value, at: &At<'_>, found: &mut Found) {
    let mut names = HashSet::new();
    let all = value::items(spec, &["securityContext", "sysctls"]);
    for (index, sysctl) in all.iter().enumerate() {
        let path = at
            .child("securityContext.sysctls")
            .index(index)
            .child("name");
        let name = text(sysctl, "name");
        if name.is_empty() {
            found.push(FieldError::required(&path, ""));
        } else if !is_sysctl_name(name) {
            found.push(FieldError::invalid(
                &path,
                name,
                "must have at most 253 characters and match regex \
                 ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$",
            ));
        } else if !names.insert(name) {
            found.push(FieldError::duplicate(&path, name));
        }
    }
}

fn lists(spec: &Value) -> [(&'static str, &[Value]); 3] {
    ["containers", "initContainers", "ephemeralContainers"]
        .map(|list| (list, value::items(spec, &[list])))
}

/// The volumes by name, the first of each; names that occur twice are reported.
fn volumes<'a>(spec: &'a Value, at: &At<'_>, found: &mut Found) -> HashMap<&'a str, &'a Value> {
    let mut volumes: HashMap<&str, &Value> = HashMap::new();
    for (index, volume) in value::items(spec, &["volumes"]).iter().enumerate() {
        let name = text(volume, "name");
        match volumes.entry(name) {
            Entry::Vacant(place) => drop(place.insert(volume)),
            Entry::Occupied(_) if name.is_empty() => {}
            Entry::Occupied(_) => found.push(FieldError::duplicate(
                &at.child("volumes").index(index).child("name"),
                name,
            )),
        }
    }
    volumes
}

/// `ValidateVolumeMounts` and `ValidateVolumeDevices`.
fn mounts(container: &Value, volumes: &HashMap<&str, &Value>, path: &Path, found: &mut Found) {
    let devices = value::items(container, &["volumeDevices"]);
    let of_devices = |name: &'static str| -> HashSet<&str> {
        devices.iter().map(|device| text(device, name)).collect()
    };
    let (device_names, device_paths) = (of_devices("name"), of_devices("devicePath"));
    let list = path.child("volumeMounts");
    let mut seen = HashSet::new();
    let privileged = value::get_bool(container, &["securityContext", "privileged"]) == Some(true);
    for (index, mount) in value::items(container, &["volumeMounts"])
        .iter()
        .enumerate()
    {
        let path = list.index(index);
        let (name, target) = (text(mount, "name"), text(mount, "mountPath"));
        if name.is_empty() {
            found.push(FieldError::required(&path.child("name"), ""));
        }
        if !volumes.contains_key(name) {
            found.push(FieldError::not_found(&path.child("name"), name));
        }
        if target.is_empty() {
            found.push(FieldError::required(&path.child("mountPath"), ""));
        }
        if !seen.insert(target) {
            found.push(FieldError::invalid(
                &path.child("mountPath"),
                target,
                "must be unique",
            ));
        }
        if device_names.contains(name) {
            found.push(FieldError::invalid(
                &path.child("name"),
                name,
                "must not already exist in volumeDevices",
            ));
        }
        if device_paths.contains(target) {
            found.push(FieldError::invalid(
                &path.child("mountPath"),
                target,
                "must not already exist as a path in volumeDevices",
            ));
        }
        // Upstream names these without the index of the mount.
        for name in ["subPath", "subPathExpr"] {
            super::storage::descending_path(text(mount, name), &list.child(name), found);
        }
        if !text(mount, "subPath").is_empty() && !text(mount, "subPathExpr").is_empty() {
            found.push(FieldError::invalid(
                &path.child("subPathExpr"),
                text(mount, "subPathExpr"),
                "subPathExpr and subPath are mutually exclusive",
            ));
        }
        match value::get_str(mount, &["mountPropagation"]) {
            None | Some("HostToContainer" | "None") => {}
            Some("Bidirectional") if privileged => {}
            Some("Bidirectional") => found.push(FieldError::forbidden(
                &list.child("mountPropagation"),
                "Bidirectional mount propagation is available only to privileged containers",
            )),
            Some(other) => found.push(FieldError::not_supported(
                &list.child("mountPropagation"),
                other,
                &["Bidirectional", "HostToContainer", "None"],
            )),
        }
    }
    let list = path.child("volumeDevices");
    for (index, device) in devices.iter().enumerate() {
        let path = list.index(index);
        let name = text(device, "name");
        match volumes.get(name) {
            None => found.push(FieldError::not_found(&path.child("name"), name)),
            Some(volume) if !has(volume, "persistentVolumeClaim") && !has(volume, "ephemeral") => {
                found.push(FieldError::invalid(
                    &path.child("name"),
                    name,
                    "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode",
                ));
            }
            Some(_) => {}
        }
        if text(device, "devicePath").is_empty() {
            found.push(FieldError::required(&path.child("devicePath"), ""));
        }
    }
}

fn unique_host_ports(
    container: &Value,
    path: &Path,
    seen: &mut HashSet<String>,
    found: &mut Found,
) {
    for (index, port) in value::items(container, &["ports"]).iter().enumerate() {
        let number = value::get_i64(port, &["hostPort"]).unwrap_or(0);
        let key = format!(
            "{}/{}/{number}",
            text(port, "protocol"),
            text(port, "hostIP")
        );
        if number != 0 && !seen.insert(key.clone()) {
            found.push(FieldError::duplicate(
                &path.child("ports").index(index).child("hostPort"),
                key,
            ));
        }
    }
}

/// `validateInitContainers`: only sidecars live long enough to be probed.
fn init_containers(spec: &Value, at: &At<'_>, found: &mut Found) {
    for (index, container) in value::items(spec, &["initContainers"]).iter().enumerate() {
        if text(container, "restartPolicy") == "Always" {
            continue;
        }
        let path = at.child("initContainers").index(index);
        for name in [
            "lifecycle",
            "livenessProbe",
            "readinessProbe",
            "startupProbe",
        ] {
            if has(container, name) {
                found.push(FieldError::forbidden(
                    &path.child(name),
                    "may not be set for init containers without restartPolicy=Always",
                ));
            }
        }
    }
}

/// Members that upstream forbids to ephemeral containers.
const NOT_EPHEMERAL: &[&str] = &[
    "ports",
    "livenessProbe",
    "readinessProbe",
    "startupProbe",
    "lifecycle",
    "resizePolicy",
];

fn ephemeral_containers(spec: &Value, at: &At<'_>, others: &HashSet<&str>, found: &mut Found) {
    const FORBIDDEN: &str = "cannot be set for an Ephemeral Container";
    for (index, container) in value::items(spec, &["ephemeralContainers"])
        .iter()
        .enumerate()
    {
        let path = at.child("ephemeralContainers").index(index);
        let target = text(container, "targetContainerName");
        if !target.is_empty() && !others.contains(target) {
            found.push(FieldError::not_found(
                &path.child("targetContainerName"),
                target,
            ));
        }
        for name in NOT_EPHEMERAL {
            if value::get(container, &[name]).is_some_and(|member| !value::is_empty(member)) {
                found.push(FieldError::forbidden(&path.child(name), FORBIDDEN));
            }
        }
        if value::get_object(container, &["resources"]).is_some_and(|r| !r.is_empty()) {
            found.push(FieldError::forbidden(&path.child("resources"), FORBIDDEN));
        }
        for (index, mount) in value::items(container, &["volumeMounts"])
            .iter()
            .enumerate()
        {
            for name in ["subPath", "subPathExpr"] {
                if !text(mount, name).is_empty() {
                    found.push(FieldError::forbidden(
                        &path.child("volumeMounts").index(index).child(name),
                        FORBIDDEN,
                    ));
                }
            }
        }
    }
}

/// `validatePodDNSConfig`.
fn dns(spec: &Value, at: &At<'_>, found: &mut Found) {
    let path = at.child("dnsConfig");
    let config = value::get(spec, &["dnsConfig"]);
    if text(spec, "dnsPolicy") == "None" {
        if config.is_none() {
            found.push(FieldError::required(
                &path,
                "must provide `dnsConfig` when `dnsPolicy` is None",
            ));
        } else if value::items(spec, &["dnsConfig", "nameservers"]).is_empty() {
            found.push(FieldError::required(
                &path.child("nameservers"),
                "must provide at least one DNS nameserver when `dnsPolicy` is None",
            ));
        }
    }
    let Some(config) = config else {
        return;
    };
    let servers = value::items(config, &["nameservers"]);
    if servers.len() > 3 {
        found.push(FieldError::invalid(
            &path.child("nameservers"),
            Value::from(servers),
            "must not have more than 3 nameservers",
        ));
    }
    for (index, server) in servers.iter().enumerate() {
        let path = path.child("nameservers").index(index);
        found.extend(meta::ip::valid_ip_legacy(
            &path,
            server.as_str().unwrap_or_default(),
            &[],
        ));
    }
    let searches = value::items(config, &["searches"]);
    if searches.len() > 32 {
        found.push(FieldError::invalid(
            &path.child("searches"),
            Value::from(searches),
            "must not have more than 32 search paths",
        ));
    }
    for (index, search) in searches.iter().enumerate() {
        let search = search.as_str().unwrap_or_default();
        if search == "." {
            continue;
        }
        let search = search.strip_suffix('.').unwrap_or(search);
        let path = path.child("searches").index(index);
        refuse(
            found,
            &path,
            search,
            names::dns1123_subdomain_with_underscore(search),
        );
    }
}

fn gates(spec: &Value, at: &At<'_>, found: &mut Found) {
    let mut seen = HashSet::new();
    for (index, gate) in value::items(spec, &["schedulingGates"]).iter().enumerate() {
        let path = at.child("schedulingGates").index(index);
        let name = text(gate, "name");
        refuse(found, &path, name, names::qualified_name(name));
        if !seen.insert(name) {
            found.push(FieldError::duplicate(&path, name));
        }
    }
}

/// `validateTopologySpreadConstraints`: a topology is spread over once in each way.
fn spread(spec: &Value, at: &At<'_>, found: &mut Found) {
    let mut seen = HashSet::new();
    let constraints = value::items(spec, &["topologySpreadConstraints"]);
    for (index, constraint) in constraints.iter().enumerate() {
        let path = at.child("topologySpreadConstraints").index(index);
        let (key, action) = (
            text(constraint, "topologyKey"),
            text(constraint, "whenUnsatisfiable"),
        );
        if !seen.insert((key, action)) {
            found.push(FieldError::duplicate(
                &path.child("{topologyKey, whenUnsatisfiable}"),
                format!("{{{key}, {action}}}"),
            ));
        }
        if let Some(domains) = value::get_i64(constraint, &["minDomains"]) {
            if domains <= 0 {
                found.push(FieldError::invalid(
                    &path.child("minDomains"),
                    domains,
                    super::NOT_POSITIVE,
                ));
            }
            if action != "DoNotSchedule" {
                found.push(FieldError::invalid(
                    &path.child("minDomains"),
                    domains,
                    "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not ScheduleAnyway",
                ));
            }
        }
    }
}

/// `validateContainerCommon`, as far as it takes more than one member: ports, probes, privileges.
pub fn container(container: &Value, at: &At<'_>, found: &mut Found) {
    let mut seen = HashSet::new();
    for (index, port) in value::items(container, &["ports"]).iter().enumerate() {
        let path = at.child("ports").index(index).child("name");
        let name = text(port, "name");
        if name.is_empty() {
            continue;
        }
        let broken = names::port_name(name);
        if broken.is_empty() && !seen.insert(name) {
            found.push(FieldError::duplicate(&path, name));
        }
        refuse(found, &path, name, broken);
    }
    for name in ["livenessProbe", "startupProbe"] {
        if let Some(threshold) = value::get_i64(container, &[name, "successThreshold"])
            && threshold != 1
        {
            found.push(FieldError::invalid(
                &at.child(name).child("successThreshold"),
                threshold,
                "must be 1",
            ));
        }
    }
    if let Some(seconds) = value::get(
        container,
        &["readinessProbe", "terminationGracePeriodSeconds"],
    ) {
        found.push(FieldError::invalid(
            &at.child("readinessProbe.terminationGracePeriodSeconds"),
            seconds.clone(),
            "must not be set for readinessProbes",
        ));
    }
    let flag = |name: &str| value::get_bool(container, &["securityContext", name]);
    if flag("allowPrivilegeEscalation") == Some(false) && flag("privileged") == Some(true) {
        found.push(FieldError::invalid(
            &at.child("securityContext"),
            value::get(container, &["securityContext"])
                .cloned()
                .unwrap_or_default(),
            "cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
        ));
    }
}

/// Field paths that an environment variable may show.
const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// Resources of a container that an environment variable may show.
const ENV_RESOURCES: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

/// `validateEnvVarValueFrom`.
pub fn env_var(variable: &Value, at: &At<'_>, found: &mut Found) {
    let Some(source) = value::get(variable, &["valueFrom"]) else {
        return;
    };
    let path = at.child("valueFrom");
    if let Some(field) = value::get_str(source, &["fieldRef", "fieldPath"]) {
        env_field(field, &path.child("fieldRef"), found);
    } else if has(source, "fieldRef") {
        found.push(FieldError::required(
            &path.child("fieldRef").child("fieldPath"),
            "",
        ));
    }
    if has(source, "resourceFieldRef") {
        let resource = value::str_or_empty(source, &["resourceFieldRef", "resource"]);
        let path = path.child("resourceFieldRef").child("resource");
        let huge = ["limits.hugepages-", "requests.hugepages-"];
        if resource.is_empty() {
            found.push(FieldError::required(&path, ""));
        } else if !ENV_RESOURCES.contains(&resource)
            && !huge.iter().any(|prefix| resource.starts_with(prefix))
        {
            found.push(FieldError::not_supported(&path, resource, ENV_RESOURCES));
        }
    }
    let sources = [
        "fieldRef",
        "resourceFieldRef",
        "configMapKeyRef",
        "secretKeyRef",
        "fileKeyRef",
    ]
    .iter()
    .filter(|name| has(source, name))
    .count();
    let words = match sources {
        0 => {
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`"
        }
        _ if !text(variable, "value").is_empty() => {
            "may not be specified when `value` is not empty"
        }
        1 => return,
        _ => "may not have more than one field specified at a time",
    };
    found.push(FieldError::invalid(&path, "", words));
}

fn env_field(field: &str, path: &Path, found: &mut Found) {
    let subscript = field
        .strip_suffix("']")
        .and_then(|rest| rest.split_once("['"));
    match subscript {
        Some(("metadata.annotations", key)) => {
            let key = key.to_lowercase();
            refuse(found, path, &key, names::qualified_name(&key));
        }
        Some(("metadata.labels", key)) => refuse(found, path, key, names::qualified_name(key)),
        Some((other, _)) => {
            found.push(FieldError::invalid(
                path,
                other,
                "does not support subscript",
            ));
        }
        None if field.is_empty() => found.push(FieldError::required(&path.child("fieldPath"), "")),
        None if ENV_FIELDS.contains(&field) => {}
        // What upstream's downward API knows, but not for variables.
        None if matches!(
            field,
            "metadata.annotations" | "metadata.labels" | "spec.restartPolicy" | "status.phase"
        ) =>
        {
            found.push(FieldError::not_supported(
                &path.child("fieldPath"),
                field,
                ENV_FIELDS,
            ));
        }
        None => found.push(FieldError::invalid(
            &path.child("fieldPath"),
            field,
            format!("error converting fieldPath: field label not supported: {field}"),
        )),
    }
}

/// `ValidateEnvFrom`.
pub fn env_from(source: &Value, at: &At<'_>, found: &mut Found) {
    let words = match (has(source, "configMapRef"), has(source, "secretRef")) {
        (false, false) => "must specify one of: `configMapRef` or `secretRef`",
        (true, true) => "may not have more than one field specified at a time",
        _ => return,
    };
    // Upstream names the list.
    let path = at.parent.map_or_else(|| at.path(), At::path);
    found.push(FieldError::invalid(&path, "", words));
}

/// `validateHandler`: exactly one way to probe or to hook.
pub fn handler(handler: &Value, at: &At<'_>, found: &mut Found) {
    let given: Vec<&str> = ["exec", "httpGet", "tcpSocket", "grpc", "sleep"]
        .into_iter()
        .filter(|name| has(handler, name))
        .collect();
    match given.split_first() {
        None => found.push(FieldError::required(
            &at.path(),
            "must specify a handler type",
        )),
        Some((_, more)) => {
            for name in more {
                found.push(FieldError::forbidden(
                    &at.child(name),
                    "may not specify more than 1 handler type",
                ));
            }
        }
    }
    for header in value::items(handler, &["httpGet", "httpHeaders"]) {
        let name = text(header, "name");
        refuse(
            found,
            &at.child("httpGet.httpHeaders"),
            name,
            names::http_header_name(name),
        );
    }
}

const EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// `ValidateTolerations`.
pub fn toleration(toleration: &Value, at: &At<'_>, found: &mut Found) {
    let (key, operator) = (text(toleration, "key"), text(toleration, "operator"));
    let (content, effect) = (text(toleration, "value"), text(toleration, "effect"));
    if !key.is_empty() {
        refuse(found, &at.child("key"), key, names::qualified_name(key));
    } else if operator != "Exists" {
        found.push(FieldError::invalid(
            &at.child("operator"),
            operator,
            "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
        ));
    }
    if has(toleration, "tolerationSeconds") && effect != "NoExecute" {
        found.push(FieldError::invalid(
            &at.child("effect"),
            effect,
            "effect must be 'NoExecute' when `tolerationSeconds` is set",
        ));
    }
    match operator {
        "" | "Equal" => {
            let broken = names::label_value(content);
            if !broken.is_empty() {
                found.push(FieldError::invalid(
                    &at.child("operator"),
                    content,
                    broken.join(";"),
                ));
            }
        }
        "Exists" if !content.is_empty() => found.push(FieldError::invalid(
            &at.child("operator"),
            content,
            "value must be empty when `operator` is 'Exists'",
        )),
        "Exists" => {}
        other => found.push(FieldError::not_supported(
            &at.child("operator"),
            other,
            &["Equal", "Exists"],
        )),
    }
    if !effect.is_empty() && !EFFECTS.contains(&effect) {
        found.push(FieldError::not_supported(
            &at.child("effect"),
            effect,
            EFFECTS,
        ));
    }
}

/// `ValidateNodeSelectorRequirement`; those on fields say so by their key.
pub fn node_selector_requirement(requirement: &Value, at: &At<'_>, found: &mut Found) {
    let key = text(requirement, "key");
    let values = value::items(requirement, &["values"]);
    let path = at.child("values");
    if key == "metadata.name" {
        if values.len() != 1 {
            found.push(FieldError::required(
                &path,
                "must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
            ));
        }
        return;
    }
    match text(requirement, "operator") {
        "In" | "NotIn" if values.is_empty() => found.push(FieldError::required(
            &path,
            "must be specified when `operator` is 'In' or 'NotIn'",
        )),
        "Exists" | "DoesNotExist" if !values.is_empty() => found.push(FieldError::forbidden(
            &path,
            "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
        )),
        "Gt" | "Lt" if values.len() != 1 => found.push(FieldError::required(
            &path,
            "must be specified single value when `operator` is 'Lt' or 'Gt'",
        )),
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        other => found.push(FieldError::invalid(
            &at.child("operator"),
            other,
            "not a valid selector operator",
        )),
    }
    refuse(found, &at.child("key"), key, names::qualified_name(key));
}
