//! Between the versions of a built-in resource. Most versions differ only in name; those that differ in shape have a
//! function of their own. Custom resources are handled in the version of the request and pass through here unchanged.

use keelson_machinery::schema;
use keelson_machinery::status::ApiError;
use keelson_machinery::value::{self, Value};

use super::Served;
use crate::codec::body::set_type_meta;

/// Whether the JSON of both versions is the same but for `apiVersion`.
pub fn same_shape(served: &Served) -> bool {
    served.is_working_version()
        || !matches!(
            (
                served.row.group.as_str(),
                served.row.resource.as_str(),
                served.row.version.as_str()
            ),
            ("autoscaling", "horizontalpodautoscalers", _) | ("events.k8s.io", "events", _)
        )
}

/// An object as the client sent it, in the storage version.
pub fn to_storage(served: &Served, mut object: Value) -> Result<Value, ApiError> {
    if served.is_working_version() {
        return Ok(object);
    }
    match (
        served.row.group.as_str(),
        served.row.resource.as_str(),
        served.row.version.as_str(),
    ) {
        ("events.k8s.io", "events", _) => rename(&mut object, EVENT_NAMES, Direction::ToStorage),
        ("autoscaling", "horizontalpodautoscalers", "v1") => hpa_v1_to_v2(&mut object),
        _ => {}
    }
    set_type_meta(
        &mut object,
        &served.row.storage.kind,
        &served.storage_api_version(),
    );
    Ok(object)
}

/// A stored object in the version of the request.
pub fn from_storage(served: &Served, mut object: Value) -> Result<Value, ApiError> {
    if served.is_working_version() {
        return Ok(object);
    }
    match (
        served.row.group.as_str(),
        served.row.resource.as_str(),
        served.row.version.as_str(),
    ) {
        ("events.k8s.io", "events", _) => rename(&mut object, EVENT_NAMES, Direction::FromStorage),
        ("autoscaling", "horizontalpodautoscalers", "v1") => hpa_v2_to_v1(&mut object),
        _ => {}
    }
    // What is always written may differ between versions.
    if !same_shape(served) {
        schema::normalize(&mut object, served.object_type);
    }
    set_type_meta(&mut object, &served.row.kind, &served.api_version());
    Ok(object)
}

/// A stored object of an older version of its kind, in the version that is stored now; `apiVersion` is left to the
/// caller.
pub fn between_stored(object: &mut Value, group: &str, version: &str) {
    match (group, version) {
        ("events.k8s.io", _) => rename(object, EVENT_NAMES, Direction::ToStorage),
        ("autoscaling", "v1") => hpa_v1_to_v2(object),
        _ => {}
    }
}

enum Direction {
    ToStorage,
    FromStorage,
}

/// `events.k8s.io/v1` names and the stored core `v1` names of the same fields.
const EVENT_NAMES: &[(&str, &str)] = &[
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

fn rename(object: &mut Value, names: &[(&str, &str)], direction: Direction) {
    let Some(members) = object.as_object_mut() else {
        return;
    };
    for (served, stored) in names {
        let (from, to) = match direction {
            Direction::ToStorage => (served, stored),
            Direction::FromStorage => (stored, served),
        };
        if let Some(member) = members.remove(*from) {
            members.insert((*to).to_string(), member);
        }
    }
}

/// Annotations in which `autoscaling/v1` carries what it has no fields for.
const HPA_METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const HPA_BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const HPA_CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const HPA_CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";

fn take_annotation(object: &mut Value, name: &str) -> Option<Value> {
    let annotations = value::get_mut(object, &["metadata", "annotations"])?.as_object_mut()?;
    let text = annotations.remove(name)?;
    let parsed = serde_json::from_str(text.as_str()?).ok();
    if annotations.is_empty() {
        value::remove(object, &["metadata", "annotations"]);
    }
    parsed
}

fn put_annotation(object: &mut Value, name: &str, content: &Value) {
    value::set(
        object,
        &["metadata", "annotations", name],
        Value::from(content.to_string()),
    );
}

fn cpu_metric(percent: Value, current: bool) -> Value {
    let (key, field) = if current {
        ("current", "averageUtilization")
    } else {
        ("target", "averageUtilization")
    };
    let mut target = serde_json::json!({ field: percent });
    if !current {
        target["type"] = "Utilization".into();
    }
    serde_json::json!({"type": "Resource", "resource": {"name": "cpu", key: target}})
}

fn hpa_v1_to_v2(object: &mut Value) {
    let mut metrics = Vec::new();
    if let Some(percent) = value::remove(object, &["spec", "targetCPUUtilizationPercentage"]) {
        metrics.push(cpu_metric(percent, false));
    }
    if let Some(Value::Array(more)) = take_annotation(object, HPA_METRICS) {
        metrics.extend(more);
    }
    if !metrics.is_empty() {
        value::set(object, &["spec", "metrics"], Value::Array(metrics));
    }
    if let Some(behavior) = take_annotation(object, HPA_BEHAVIOR) {
        value::set(object, &["spec", "behavior"], behavior);
    }
    let mut current = Vec::new();
    if let Some(percent) = value::remove(object, &["status", "currentCPUUtilizationPercentage"]) {
        current.push(cpu_metric(percent, true));
    }
    if let Some(Value::Array(more)) = take_annotation(object, HPA_CURRENT_METRICS) {
        current.extend(more);
    }
    if !current.is_empty() {
        value::set(object, &["status", "currentMetrics"], Value::Array(current));
    }
    if let Some(conditions) = take_annotation(object, HPA_CONDITIONS) {
        value::set(object, &["status", "conditions"], conditions);
    }
}

/// Splits the first cpu utilization metric off a list of metrics.
fn split_cpu(metrics: Option<Value>, side: &str) -> (Option<Value>, Vec<Value>) {
    let Some(Value::Array(metrics)) = metrics else {
        return (None, Vec::new());
    };
    let mut percent = None;
    let mut others = Vec::new();
    for metric in metrics {
        let found = (value::get_str(&metric, &["type"]) == Some("Resource")
            && value::get_str(&metric, &["resource", "name"]) == Some("cpu")
            && percent.is_none())
        .then(|| value::get(&metric, &["resource", side, "averageUtilization"]).cloned())
        .flatten();
        match found {
            Some(found) => percent = Some(found),
            None => others.push(metric),
        }
    }
    (percent, others)
}

fn hpa_v2_to_v1(object: &mut Value) {
    let (percent, others) = split_cpu(value::remove(object, &["spec", "metrics"]), "target");
    if let Some(percent) = percent {
        value::set(object, &["spec", "targetCPUUtilizationPercentage"], percent);
    }
    if !others.is_empty() {
        put_annotation(object, HPA_METRICS, &Value::Array(others));
    }
    if let Some(behavior) = value::remove(object, &["spec", "behavior"]) {
        put_annotation(object, HPA_BEHAVIOR, &behavior);
    }
    let (percent, others) = split_cpu(
        value::remove(object, &["status", "currentMetrics"]),
        "current",
    );
    if let Some(percent) = percent {
        value::set(
            object,
            &["status", "currentCPUUtilizationPercentage"],
            percent,
        );
    }
    if !others.is_empty() {
        put_annotation(object, HPA_CURRENT_METRICS, &Value::Array(others));
    }
    if let Some(conditions) = value::remove(object, &["status", "conditions"]) {
        put_annotation(object, HPA_CONDITIONS, &conditions);
    }
}
