//! Defaults that depend on other members. Each function gets a value of the type it is registered for.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use keelson_machinery::quantity::Quantity;
use keelson_machinery::value::{self, Object, Value};
use serde_json::json;

use super::{for_items, put, put_number};

/// `SetDefaults_Pod`: what holds for pods only, and not for templates.
pub fn pod(pod: &mut Value) {
    for list in ["containers", "initContainers"] {
        for_items(pod, &["spec", list], requests_from_limits);
    }
    if value::get(pod, &["spec", "resources"]).is_some() {
        pod_level_huge_pages(pod);
        pod_level_requests(pod);
    }
    if value::get_bool(pod, &["spec", "hostNetwork"]) == Some(true) {
        for list in ["containers", "initContainers"] {
            for_items(pod, &["spec", list], |container| {
                for_items(container, &["ports"], |port| {
                    if let Some(number) = value::get_i64(port, &["containerPort"]) {
                        put_number(port, &["hostPort"], number);
                    }
                });
            });
        }
    }
}

/// What is limited but not requested is requested.
fn requests_from_limits(container: &mut Value) {
    let Some(limits) = value::get_object(container, &["resources", "limits"]).cloned() else {
        return;
    };
    for (name, amount) in limits {
        if value::get(container, &["resources", "requests", &name]).is_none() {
            value::set(container, &["resources", "requests", &name], amount);
        }
    }
}

const HUGE_PAGES: &str = "hugepages-";

/// `defaultHugePagePodLimits`: a pod that says something of its resources is limited to the huge pages of its
/// containers.
fn pod_level_huge_pages(pod: &mut Value) {
    let given = |list: &str| value::get_object(pod, &["spec", "resources", list]);
    if given("limits").is_none_or(Object::is_empty)
        && given("requests").is_none_or(Object::is_empty)
    {
        return;
    }
    for (name, amount) in of_all_containers(pod, "limits") {
        if name.starts_with(HUGE_PAGES)
            && value::get(pod, &["spec", "resources", "requests", &name]).is_none()
        {
            put(
                pod,
                &["spec", "resources", "limits", &name],
                amount.to_string(),
            );
        }
    }
}

/// `defaultPodRequests`: a pod with limits requests what its containers do, and else what its limits are.
fn pod_level_requests(pod: &mut Value) {
    let limits = match value::get_object(pod, &["spec", "resources", "limits"]) {
        Some(limits) if !limits.is_empty() => limits.clone(),
        _ => return,
    };
    for (name, amount) in of_all_containers(pod, "requests") {
        if matches!(name.as_str(), "cpu" | "memory") {
            put(
                pod,
                &["spec", "resources", "requests", &name],
                amount.to_string(),
            );
        }
    }
    for (name, amount) in limits {
        if matches!(name.as_str(), "cpu" | "memory") || name.starts_with(HUGE_PAGES) {
            put(pod, &["spec", "resources", "requests", &name], amount);
        }
    }
}

type Amounts = Vec<(String, Quantity)>;

fn combine(into: &mut Amounts, more: &Amounts, join: impl Fn(&mut Quantity, Quantity)) {
    for (name, amount) in more {
        match into.iter_mut().find(|(present, _)| present == name) {
            Some((_, present)) => join(present, *amount),
            None => into.push((name.clone(), *amount)),
        }
    }
}

/// What the containers of a pod need together (upstream `AggregateContainerRequests`, `AggregateContainerLimits`).
fn of_all_containers(pod: &Value, list: &str) -> Amounts {
    let amounts = |container: &Value| -> Amounts {
        value::get_object(container, &["resources", list])
            .into_iter()
            .flatten()
            .filter_map(|(name, amount)| {
                Some((name.clone(), Quantity::parse(amount.as_str()?).ok()?))
            })
            .collect()
    };
    let larger = |present: &mut Quantity, other: Quantity| {
        if other > *present {
            *present = other;
        }
    };
    let mut total = Amounts::new();
    for container in value::items(pod, &["spec", "containers"]) {
        combine(&mut total, &amounts(container), Quantity::add);
    }
    let mut sidecars = Amounts::new();
    let mut initial = Amounts::new();
    for container in value::items(pod, &["spec", "initContainers"]) {
        let own = amounts(container);
        let mut needed = sidecars.clone();
        combine(&mut needed, &own, Quantity::add);
        if value::get_str(container, &["restartPolicy"]) == Some("Always") {
            combine(&mut total, &own, Quantity::add);
            sidecars = needed.clone();
        }
        combine(&mut initial, &needed, larger);
    }
    combine(&mut total, &initial, larger);
    total
}

/// `SetDefaults_Volume`: a volume without a source is an empty directory.
pub fn volume(volume: &mut Value) {
    let bare = volume.as_object().is_some_and(|members| {
        members
            .iter()
            .all(|(name, member)| name == "name" || member.is_null())
    });
    if bare {
        value::set(volume, &["emptyDir"], json!({}));
    }
    if value::get(volume, &["image"]).is_some() {
        let policy = pull_policy(value::str_or_empty(volume, &["image", "reference"]));
        put(volume, &["image", "pullPolicy"], policy);
    }
}

/// `SetDefaults_Container`: images that may change under their name are always pulled.
pub fn container(container: &mut Value) {
    if value::str_or_empty(container, &["imagePullPolicy"]).is_empty() {
        let policy = pull_policy(value::str_or_empty(container, &["image"]));
        value::set(container, &["imagePullPolicy"], policy);
    }
}

fn pull_policy(image: &str) -> &'static str {
    match image_tag(image) {
        "latest" => "Always",
        _ => "IfNotPresent",
    }
}

/// The tag of an image reference: `latest` when it names neither tag nor digest, nothing when it is no reference
/// (upstream `parsers.ParseImageName`).
pub fn image_tag(image: &str) -> &str {
    let (named, digest) = match image.split_once('@') {
        Some((named, digest)) => (named, digest),
        None => (image, ""),
    };
    let last_slash = named.rfind('/').map_or(0, |at| at + 1);
    let (name, tag) = match named[last_slash..].find(':') {
        Some(at) => (&named[..last_slash + at], &named[last_slash + at + 1..]),
        None => (named, ""),
    };
    // The first part may be a host, which alone may have capitals.
    let path = match name.split_once('/') {
        Some((host, path))
            if host.contains(['.', ':']) || host == "localhost" || host != host.to_lowercase() =>
        {
            path
        }
        _ => name,
    };
    let fit = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b))
            && part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.ends_with(|c: char| c.is_ascii_alphanumeric())
    };
    if !path.split('/').all(fit) {
        return "";
    }
    if tag.is_empty() && digest.is_empty() {
        return "latest";
    }
    tag
}

/// `SetDefaults_ReplicationController`: selector and labels follow the template.
pub fn replication_controller(object: &mut Value) {
    let labels = value::get(object, &["spec", "template", "metadata", "labels"]).cloned();
    if let Some(labels) = labels {
        if value::get_object(object, &["spec", "selector"]).is_none_or(Object::is_empty) {
            value::set(object, &["spec", "selector"], labels.clone());
        }
        if value::get_object(object, &["metadata", "labels"]).is_none_or(Object::is_empty) {
            value::set(object, &["metadata", "labels"], labels);
        }
    }
}

/// `SetDefaults_NodeStatus`: all of the capacity is allocatable unless the kubelet says otherwise.
pub fn node_status(status: &mut Value) {
    if value::get(status, &["allocatable"]).is_none()
        && let Some(capacity) = value::get(status, &["capacity"]).cloned()
    {
        value::set(status, &["allocatable"], capacity);
    }
}

/// `SetDefaults_LimitRangeItem`: what is a maximum is a default, what is a default is a default request.
pub fn limit_range_item(limit: &mut Value) {
    if value::str_or_empty(limit, &["type"]) != "Container" {
        return;
    }
    for (from, to) in [
        ("max", "default"),
        ("default", "defaultRequest"),
        ("min", "defaultRequest"),
    ] {
        for (name, amount) in value::get_object(limit, &[from])
            .cloned()
            .unwrap_or_default()
        {
            put(limit, &[to, &name], amount);
        }
    }
}

/// `stringData` is written into `data`, and never read back (upstream `Convert_v1_Secret_To_core_Secret`).
pub fn secret(secret: &mut Value) {
    if let Some(Value::Object(texts)) = value::remove(secret, &["stringData"]) {
        for (name, text) in texts {
            let text = text.as_str().unwrap_or_default();
            value::set(secret, &["data", &name], STANDARD.encode(text));
        }
    }
}

/// Strategies of Deployments and DaemonSets: a rolling update has its parameters.
pub fn rolling_update(strategy: &mut Value) {
    if value::str_or_empty(strategy, &["type"]) == "RollingUpdate" {
        put(strategy, &["rollingUpdate"], json!({}));
    }
}

/// A StatefulSet that names no strategy gets one with parameters; one that names it keeps to what it says.
pub fn stateful_set_strategy(strategy: &mut Value) {
    if value::str_or_empty(strategy, &["type"]).is_empty() {
        value::set(strategy, &["type"], "RollingUpdate");
        put(strategy, &["rollingUpdate"], json!({}));
    }
}

/// Claim templates carry their kind (upstream `Convert_apps_StatefulSetSpec_To_v1_StatefulSetSpec`).
pub fn stateful_set_spec(spec: &mut Value) {
    for_items(spec, &["volumeClaimTemplates"], |claim| {
        value::set(claim, &["apiVersion"], "v1");
        value::set(claim, &["kind"], "PersistentVolumeClaim");
    });
}

/// `SetDefaults_Job`.
pub fn job(job: &mut Value) {
    let count = |field: &str| value::get_i64(job, &["spec", field]);
    if count("parallelism").is_none() {
        if count("completions").is_none() {
            value::set(job, &["spec", "completions"], 1);
        }
        value::set(job, &["spec", "parallelism"], 1);
    }
    let per_index = value::get(job, &["spec", "backoffLimitPerIndex"]).is_some();
    let backoff = if per_index { i64::from(i32::MAX) } else { 6 };
    put(job, &["spec", "backoffLimit"], backoff);
    let replacement = match value::get(job, &["spec", "podFailurePolicy"]) {
        Some(_) => "Failed",
        None => "TerminatingOrFailed",
    };
    put(job, &["spec", "podReplacementPolicy"], replacement);
    if value::get_object(job, &["metadata", "labels"]).is_none_or(Object::is_empty)
        && let Some(labels) = value::get(job, &["spec", "template", "metadata", "labels"]).cloned()
    {
        value::set(job, &["metadata", "labels"], labels);
    }
}

/// `SetDefaults_HorizontalPodAutoscalerBehavior`: who says something about scaling gets the rest filled in.
pub fn autoscaler_behavior(behavior: &mut Value) {
    let percent = json!({"type": "Percent", "value": 100, "periodSeconds": 15});
    let pods = json!({"type": "Pods", "value": 4, "periodSeconds": 15});
    put(behavior, &["scaleUp", "stabilizationWindowSeconds"], 0);
    put(behavior, &["scaleUp", "policies"], json!([pods, percent]));
    put(behavior, &["scaleDown", "policies"], json!([percent]));
    for side in ["scaleUp", "scaleDown"] {
        put(behavior, &[side, "selectPolicy"], "Max");
    }
}

/// `SetDefaults_NetworkPolicy`: which directions a policy is about.
pub fn network_policy_spec(spec: &mut Value) {
    if value::items(spec, &["policyTypes"]).is_empty() {
        let types = if value::items(spec, &["egress"]).is_empty() {
            json!(["Ingress"])
        } else {
            json!(["Ingress", "Egress"])
        };
        value::set(spec, &["policyTypes"], types);
    }
}

/// `SetDefaults_Subject`: users and groups are of the RBAC group.
pub fn subject(subject: &mut Value) {
    if matches!(value::str_or_empty(subject, &["kind"]), "User" | "Group") {
        put(subject, &["apiGroup"], "rbac.authorization.k8s.io");
    }
}

/// `SetDefaults_ExactDeviceRequest`, `SetDefaults_DeviceSubRequest`: one device.
pub fn device_request(request: &mut Value) {
    if value::str_or_empty(request, &["allocationMode"]) == "ExactCount" {
        put_number(request, &["count"], 1);
    }
}

/// `SetDefaults_CustomResourceDefinition`.
pub fn custom_resource_definition(definition: &mut Value) {
    let kind = value::str_or_empty(definition, &["spec", "names", "kind"]).to_string();
    put(
        definition,
        &["spec", "names", "singular"],
        kind.to_lowercase(),
    );
    if !kind.is_empty() {
        put(
            definition,
            &["spec", "names", "listKind"],
            format!("{kind}List"),
        );
    }
    if value::items(definition, &["status", "storedVersions"]).is_empty() {
        let stored = value::items(definition, &["spec", "versions"])
            .iter()
            .find(|version| value::get_bool(version, &["storage"]) == Some(true))
            .and_then(|version| value::get(version, &["name"]))
            .cloned();
        if let Some(stored) = stored {
            value::set(definition, &["status", "storedVersions"], json!([stored]));
        }
    }
}

/// Amounts have no finer digits than thousandths (upstream `SetDefaults_ResourceList`).
pub fn round_amounts(amounts: &mut Value) {
    const MILLI: i32 = -3;
    let Some(amounts) = amounts.as_object_mut() else {
        return;
    };
    for amount in amounts.values_mut() {
        // Most amounts cannot have fine digits, and are not parsed.
        let rounded = amount
            .as_str()
            .filter(|text| text.contains(['.', 'n', 'u', 'e', 'E']))
            .and_then(|text| Quantity::parse(text).ok())
            .and_then(|mut quantity| (!quantity.round_up_to(MILLI)).then_some(quantity));
        if let Some(rounded) = rounded {
            *amount = Value::from(rounded.to_string());
        }
    }
}
