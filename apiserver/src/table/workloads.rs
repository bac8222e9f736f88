//! Cells of workloads and what scales and schedules them.

use keelson_machinery::meta::{self, GroupKind, GroupVersion};
use keelson_machinery::selector::LabelSelector;
use keelson_machinery::time;
use keelson_machinery::value::Value;

use super::cell::{Context, at, condition, int, items, text};
use super::parse_time;

pub(super) fn ready_replicas(object: &Value, _: &Context) -> Value {
    let ready = int(object, "status.readyReplicas");
    format!("{ready}/{}", int(object, "spec.replicas")).into()
}

pub(super) fn deployment_selector(object: &Value, _: &Context) -> Value {
    match LabelSelector::from_value(at(object, "spec.selector")) {
        Ok(selector) => selector.to_string().into(),
        Err(_) => "<invalid>".into(),
    }
}

pub(super) fn revision_controller(object: &Value, _: &Context) -> Value {
    let Some(owner) = meta::controller_of(object) else {
        return "<none>".into();
    };
    let version = GroupVersion::parse(&owner.api_version).unwrap_or_default();
    let kind = GroupKind::new(version.group, owner.kind).to_string();
    format!("{}/{}", kind.to_lowercase(), owner.name).into()
}

pub(super) fn suspended(object: &Value, _: &Context) -> Value {
    match at(object, "spec.suspend").and_then(Value::as_bool) {
        Some(true) => "True",
        Some(false) => "False",
        None => "<unset>",
    }
    .into()
}

pub(super) fn job_status(job: &Value, _: &Context) -> Value {
    let holds = |kind: &str| {
        condition(job, "status.conditions", kind).is_some_and(|c| text(c, "status") == "True")
    };
    let deleted = meta::deletion_timestamp(job).is_some();
    [
        ("Complete", holds("Complete")),
        ("Failed", holds("Failed")),
        ("Terminating", deleted),
        ("Suspended", holds("Suspended")),
        ("FailureTarget", holds("FailureTarget")),
        ("SuccessCriteriaMet", holds("SuccessCriteriaMet")),
    ]
    .into_iter()
    .find_map(|(status, holds)| holds.then_some(status))
    .unwrap_or("Running")
    .into()
}

pub(super) fn job_completions(job: &Value, _: &Context) -> Value {
    let done = int(job, "status.succeeded");
    let parallelism = int(job, "spec.parallelism");
    match at(job, "spec.completions").and_then(Value::as_i64) {
        Some(wanted) => format!("{done}/{wanted}"),
        None if parallelism > 1 => format!("{done}/1 of {parallelism}"),
        None => format!("{done}/1"),
    }
    .into()
}

pub(super) fn job_duration(job: &Value, context: &Context) -> Value {
    let Some(start) = parse_time(text(job, "status.startTime")) else {
        return "".into();
    };
    let end = parse_time(text(job, "status.completionTime")).unwrap_or(context.now);
    time::human_duration(time::nanos_between(start, end)).into()
}

pub(super) fn hpa_reference(hpa: &Value, _: &Context) -> Value {
    let kind = text(hpa, "spec.scaleTargetRef.kind");
    format!("{kind}/{}", text(hpa, "spec.scaleTargetRef.name")).into()
}

pub(super) fn hpa_min(hpa: &Value, _: &Context) -> Value {
    match at(hpa, "spec.minReplicas") {
        Some(min) => min.to_string().into(),
        None => "<unset>".into(),
    }
}

pub(super) fn hpa_metrics(hpa: &Value, _: &Context) -> Value {
    const MAX: usize = 2;
    let statuses = items(hpa, "status.currentMetrics");
    let mut list: Vec<String> = items(hpa, "spec.metrics")
        .iter()
        .enumerate()
        .map(|(i, spec)| metric(spec, statuses.get(i)))
        .collect();
    // autoscaling/v1 knows the processor only.
    if let Some(target) = at(hpa, "spec.targetCPUUtilizationPercentage") {
        let current = percent(at(hpa, "status.currentCPUUtilizationPercentage"));
        let current = current.unwrap_or_else(|| "<unknown>".to_owned());
        list.insert(0, format!("cpu: {current}/{target}%"));
    }
    match list.len() {
        0 => "<none>".into(),
        n if n > MAX => format!("{} + {} more...", list[..MAX].join(", "), n - MAX).into(),
        _ => list.join(", ").into(),
    }
}

fn percent(value: Option<&Value>) -> Option<String> {
    Some(format!("{}%", value?.as_i64()?))
}

/// One metric as `current/target` (upstream `formatHPAMetrics`).
fn metric(spec: &Value, status: Option<&Value>) -> String {
    const UNKNOWN: &str = "<unknown>";
    let (member, named, averaged) = match text(spec, "type") {
        "External" => ("external", false, true),
        "Pods" => ("pods", false, false),
        "Object" => ("object", false, true),
        "Resource" => ("resource", true, false),
        "ContainerResource" => ("containerResource", true, false),
        _ => return "<unknown type>".to_owned(),
    };
    let empty = Value::Null;
    let spec = at(spec, member).unwrap_or(&empty);
    let status = status.and_then(|status| at(status, member));
    let target = |name: &str| at(spec, &format!("target.{name}"));
    let current = |name: &str| status.and_then(|status| at(status, &format!("current.{name}")));
    let quantity = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
    // A quantity that was never set prints as zero where its holder exists.
    let current_or_zero = |name: &str| match status {
        None => UNKNOWN.to_owned(),
        Some(_) => quantity(current(name)).unwrap_or_else(|| "0".to_owned()),
    };
    if named {
        let name = text(spec, "name");
        return match quantity(target("averageValue")) {
            Some(target) => format!("{name}: {}/{target}", current_or_zero("averageValue")),
            None => {
                let current = percent(current("averageUtilization"));
                let current = current.unwrap_or_else(|| UNKNOWN.to_owned());
                let target = percent(target("averageUtilization"));
                let target = target.unwrap_or_else(|| "<auto>".to_owned());
                format!("{name}: {current}/{target}")
            }
        };
    }
    let average = quantity(target("averageValue"));
    if !averaged {
        let target = average.unwrap_or_else(|| "0".to_owned());
        return format!("{}/{target}", current_or_zero("averageValue"));
    }
    match average {
        Some(target) => {
            let current = quantity(current("averageValue"));
            let current = current.unwrap_or_else(|| UNKNOWN.to_owned());
            format!("{current}/{target} (avg)")
        }
        None => {
            let target = quantity(target("value")).unwrap_or_else(|| "0".to_owned());
            format!("{}/{target}", current_or_zero("value"))
        }
    }
}

pub(super) fn pod_group_policy(group: &Value, _: &Context) -> Value {
    match at(group, "spec.schedulingPolicy.gang") {
        Some(_) => "Gang",
        None => "Basic",
    }
    .into()
}

pub(super) fn pod_group_status(group: &Value, _: &Context) -> Value {
    // Of several conditions of one type upstream's map keeps the last.
    let last = |kind: &str| {
        items(group, "status.conditions")
            .iter()
            .rev()
            .find(|condition| text(condition, "type") == kind)
    };
    if let Some(disruption) = last("DisruptionTarget") {
        return text(disruption, "reason").into();
    }
    match last("PodGroupScheduled") {
        Some(scheduled) if text(scheduled, "status") == "True" => "Scheduled",
        Some(_) => "Unschedulable",
        None => "Pending",
    }
    .into()
}
