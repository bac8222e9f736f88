//! Cells of nodes, events, access rules and the server's own configuration.

use std::collections::BTreeSet;

use keelson_machinery::meta::{self, GroupResource};
use keelson_machinery::value::Value;
use keelson_machinery::{text as go_text, time};

use super::cell::{Context, at, condition, first_three, int, items, or, text};
use super::since;

pub(super) fn created_at(object: &Value, _: &Context) -> Value {
    // Go's zero time, for objects that were never created.
    let created = meta::creation_timestamp(object);
    created.unwrap_or("0001-01-01T00:00:00Z").into()
}

pub(super) fn config_map_data(object: &Value, _: &Context) -> Value {
    let count = |path| {
        at(object, path)
            .and_then(Value::as_object)
            .map_or(0, |o| o.len())
    };
    (count("data") + count("binaryData")).into()
}

pub(super) fn node_status(node: &Value, _: &Context) -> Value {
    // Of several conditions of one type upstream's map keeps the last.
    let ready = items(node, "status.conditions")
        .iter()
        .rev()
        .find(|condition| text(condition, "type") == "Ready");
    let status = match ready.map(|condition| text(condition, "status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    };
    match at(node, "spec.unschedulable").and_then(Value::as_bool) {
        Some(true) => format!("{status},SchedulingDisabled").into(),
        _ => status.into(),
    }
}

/// Upstream `findNodeRoles`.
pub(super) fn node_roles(node: &Value, _: &Context) -> Value {
    let mut roles = BTreeSet::new();
    for (key, value) in meta::labels(node).into_iter().flatten() {
        let value = value.as_str().unwrap_or_default();
        match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => roles.insert(role),
            None if key == "kubernetes.io/role" => roles.insert(value),
            None => false,
        };
    }
    roles.remove("");
    let roles: Vec<&str> = roles.into_iter().collect();
    or(roles.join(","), "<none>").into()
}

fn node_address(node: &Value, kind: &str) -> Value {
    condition(node, "status.addresses", kind)
        .map_or("<none>", |address| text(address, "address"))
        .into()
}

pub(super) fn node_internal_ip(node: &Value, _: &Context) -> Value {
    node_address(node, "InternalIP")
}

pub(super) fn node_external_ip(node: &Value, _: &Context) -> Value {
    node_address(node, "ExternalIP")
}

fn node_info(node: &Value, field: &str) -> String {
    let info = text(node, &format!("status.nodeInfo.{field}"));
    or(info.to_owned(), "<unknown>")
}

pub(super) fn node_os(node: &Value, _: &Context) -> Value {
    node_info(node, "osImage").into()
}

pub(super) fn node_kernel(node: &Value, _: &Context) -> Value {
    let kernel = node_info(node, "kernelVersion");
    match text(node, "status.nodeInfo.architecture") {
        "" => kernel.into(),
        architecture => format!("{kernel} ({architecture})").into(),
    }
}

pub(super) fn node_runtime(node: &Value, _: &Context) -> Value {
    node_info(node, "containerRuntimeVersion").into()
}

/// A field of an event, which core/v1 and events.k8s.io/v1 name differently.
fn event<'a>(object: &'a Value, core: &str, events: &str) -> Option<&'a Value> {
    at(object, core).or_else(|| at(object, events))
}

fn event_text<'a>(object: &'a Value, core: &str, events: &str) -> &'a str {
    event(object, core, events)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn first_seen(object: &Value) -> Option<&str> {
    event(object, "firstTimestamp", "deprecatedFirstTimestamp")
        .or_else(|| at(object, "eventTime"))
        .and_then(Value::as_str)
}

pub(super) fn event_first_seen(object: &Value, context: &Context) -> Value {
    since(first_seen(object), context.now).into()
}

pub(super) fn event_last_seen(object: &Value, context: &Context) -> Value {
    let last = match at(object, "series") {
        Some(series) => at(series, "lastObservedTime").and_then(Value::as_str),
        None => event(object, "lastTimestamp", "deprecatedLastTimestamp")
            .and_then(Value::as_str)
            .or_else(|| first_seen(object)),
    };
    since(last, context.now).into()
}

pub(super) fn event_count(object: &Value, _: &Context) -> Value {
    let count = match at(object, "series") {
        Some(series) => int(series, "count"),
        // An event of the newer kind that happened once has no count.
        None => event(object, "count", "deprecatedCount")
            .and_then(Value::as_i64)
            .filter(|count| *count != 0)
            .unwrap_or(1),
    };
    count.into()
}

pub(super) fn event_object(object: &Value, _: &Context) -> Value {
    let kind = event_text(object, "involvedObject.kind", "regarding.kind").to_lowercase();
    match event_text(object, "involvedObject.name", "regarding.name") {
        "" => kind.into(),
        name => format!("{kind}/{name}").into(),
    }
}

pub(super) fn event_subobject(object: &Value, _: &Context) -> Value {
    event_text(object, "involvedObject.fieldPath", "regarding.fieldPath").into()
}

pub(super) fn event_source(object: &Value, _: &Context) -> Value {
    let first = |a: &str, b: &str| or(a.to_owned(), b);
    // The two versions also differ in the name of the controller's field.
    let controller = event_text(object, "reportingComponent", "reportingController");
    let component = first(
        event_text(object, "source.component", "deprecatedSource.component"),
        controller,
    );
    let instance = first(
        event_text(object, "source.host", "deprecatedSource.host"),
        text(object, "reportingInstance"),
    );
    match instance.as_str() {
        "" => component.into(),
        instance => format!("{component}, {instance}").into(),
    }
}

pub(super) fn event_message(object: &Value, _: &Context) -> Value {
    event_text(object, "message", "note").trim().into()
}

fn healthy(component: &Value) -> Option<&Value> {
    condition(component, "conditions", "Healthy")
}

pub(super) fn component_status(component: &Value, _: &Context) -> Value {
    match healthy(component).map(|condition| text(condition, "status")) {
        Some("True") => "Healthy",
        Some(_) => "Unhealthy",
        None => "Unknown",
    }
    .into()
}

pub(super) fn component_message(component: &Value, _: &Context) -> Value {
    healthy(component)
        .map_or("", |condition| text(condition, "message"))
        .into()
}

pub(super) fn component_error(component: &Value, _: &Context) -> Value {
    healthy(component)
        .map_or("", |condition| text(condition, "error"))
        .into()
}

fn quota(object: &Value, limits: bool) -> Value {
    let empty = Default::default();
    let hard = at(object, "status.hard")
        .and_then(Value::as_object)
        .unwrap_or(&empty);
    let used = at(object, "status.used");
    let mut names: Vec<&String> = hard
        .keys()
        .filter(|name| name.starts_with("limits.") == limits)
        .collect();
    names.sort_unstable();
    let shown = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or("0").to_owned();
    let cells: Vec<String> = names
        .into_iter()
        .map(|name| {
            let used = shown(used.and_then(|used| used.get(name)));
            format!("{name}: {used}/{}", shown(hard.get(name)))
        })
        .collect();
    cells.join(", ").into()
}

pub(super) fn quota_requests(object: &Value, _: &Context) -> Value {
    quota(object, false)
}

pub(super) fn quota_limits(object: &Value, _: &Context) -> Value {
    quota(object, true)
}

pub(super) fn role_ref(binding: &Value, _: &Context) -> Value {
    let kind = text(binding, "roleRef.kind");
    format!("{kind}/{}", text(binding, "roleRef.name")).into()
}

/// The subjects of one kind (upstream `rbac.SubjectsStrings`).
pub(super) fn subjects(binding: &Value, kind: &str) -> Value {
    let subjects: Vec<String> = items(binding, "subjects")
        .iter()
        .filter(|subject| text(subject, "kind") == kind)
        .map(|subject| match kind {
            "ServiceAccount" => format!("{}/{}", text(subject, "namespace"), text(subject, "name")),
            _ => text(subject, "name").to_owned(),
        })
        .collect();
    subjects.join(", ").into()
}

pub(super) fn signer_name(object: &Value, _: &Context) -> Value {
    or(text(object, "spec.signerName").to_owned(), "<none>").into()
}

pub(super) fn csr_duration(request: &Value, _: &Context) -> Value {
    match at(request, "spec.expirationSeconds").and_then(Value::as_i64) {
        Some(seconds) => time::human_duration(seconds.saturating_mul(1_000_000_000)).into(),
        None => "<none>".into(),
    }
}

pub(super) fn csr_status(request: &Value, _: &Context) -> Value {
    let has = |kind: &str| condition(request, "status.conditions", kind).is_some();
    let mut status = if has("Denied") {
        "Denied".to_owned()
    } else if has("Approved") {
        "Approved".to_owned()
    } else {
        "Pending".to_owned()
    };
    if has("Failed") {
        status.push_str(",Failed");
    }
    if !text(request, "status.certificate").is_empty() {
        status.push_str(",Issued");
    }
    status.into()
}

pub(super) fn pod_certificate_state(request: &Value, _: &Context) -> Value {
    items(request, "status.conditions")
        .iter()
        .rev()
        .map(|condition| text(condition, "type"))
        .find(|kind| matches!(*kind, "Issued" | "Denied" | "Failed"))
        .unwrap_or("Pending")
        .into()
}

pub(super) fn param_kind(policy: &Value, _: &Context) -> Value {
    match at(policy, "spec.paramKind") {
        Some(kind) => format!("{}/{}", text(kind, "apiVersion"), text(kind, "kind")).into(),
        None => "<unset>".into(),
    }
}

pub(super) fn param_ref(binding: &Value, _: &Context) -> Value {
    let Some(param) = at(binding, "spec.paramRef") else {
        return "<unset>".into();
    };
    match (text(param, "namespace"), text(param, "name")) {
        (_, "") => match at(param, "selector") {
            Some(selector) => go_selector(selector).into(),
            None => "<unset>".into(),
        },
        ("", name) => format!("*/{name}").into(),
        (namespace, name) => format!("{namespace}/{name}").into(),
    }
}

/// A LabelSelector as Go's generated `String` prints it.
fn go_selector(selector: &Value) -> String {
    let mut labels = String::new();
    for (key, value) in at(selector, "matchLabels")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        labels.push_str(&format!("{key}: {},", go_text::go_value(value)));
    }
    let mut expressions = String::new();
    for item in items(selector, "matchExpressions") {
        let values: Vec<&str> = items(item, "values")
            .iter()
            .filter_map(Value::as_str)
            .collect();
        expressions.push_str(&format!(
            "LabelSelectorRequirement{{Key:{},Operator:{},Values:{},}},",
            text(item, "key"),
            text(item, "operator"),
            go_text::go_slice(&values)
        ));
    }
    format!(
        "&LabelSelector{{MatchLabels:map[string]string{{{labels}}},MatchExpressions:[]LabelSelectorRequirement{{{expressions}}},}}"
    )
}

pub(super) fn api_service_target(service: &Value, _: &Context) -> Value {
    match at(service, "spec.service") {
        Some(target) => format!("{}/{}", text(target, "namespace"), text(target, "name")).into(),
        None => "Local".into(),
    }
}

pub(super) fn api_service_available(service: &Value, _: &Context) -> Value {
    let Some(condition) = condition(service, "status.conditions", "Available") else {
        return "Unknown".into();
    };
    match (text(condition, "status"), text(condition, "reason")) {
        (status @ "True", _) | (status, "") => status.into(),
        (status, reason) => format!("{status} ({reason})").into(),
    }
}

pub(super) fn flow_schema_dangling(schema: &Value, _: &Context) -> Value {
    condition(schema, "status.conditions", "Dangling")
        .map_or("?", |condition| text(condition, "status"))
        .into()
}

pub(super) fn storage_versions(version: &Value, _: &Context) -> Value {
    let list: Vec<String> = items(version, "status.storageVersions")
        .iter()
        .map(|server| {
            let id = text(server, "apiServerID");
            format!("{id}={}", text(server, "encodingVersion"))
        })
        .collect();
    first_three(&list).into()
}

pub(super) fn migration_resource(migration: &Value, _: &Context) -> Value {
    GroupResource::new(
        text(migration, "spec.resource.group"),
        text(migration, "spec.resource.resource"),
    )
    .to_string()
    .into()
}

pub(super) fn migration_status(migration: &Value, _: &Context) -> Value {
    items(migration, "status.conditions")
        .iter()
        .rev()
        .filter(|condition| text(condition, "status") == "True")
        .map(|condition| text(condition, "type"))
        .find(|kind| matches!(*kind, "Running" | "Failed" | "Succeeded"))
        .unwrap_or("Unknown")
        .into()
}
