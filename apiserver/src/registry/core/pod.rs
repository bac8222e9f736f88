//! Pods: graceful deletion, what each subresource may change (upstream `pkg/registry/core/pod`).

use keelson_machinery::quantity::Quantity;
use keelson_machinery::status::field::{FieldError, Path};
use keelson_machinery::value::{self, Value};

use crate::registry::generic;
use crate::registry::strategy::{Context, DeleteOptions, Strategy};
use crate::registry::validation;

/// Strategy of pods.
pub struct Pod;

impl Strategy for Pod {
    fn prepare_for_create(&self, _: &Context<'_>, object: &mut Value) {
        value::set(object, &["metadata", "generation"], 1);
        let mut status = serde_json::json!({"phase": "Pending", "qosClass": qos_class(object)});
        if !value::items(object, &["spec", "schedulingGates"]).is_empty() {
            status["conditions"] = serde_json::json!([{
                "type": "PodScheduled",
                "status": "False",
                "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates",
            }]);
        }
        value::set(object, &["status"], status);
    }

    fn validate(&self, context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut found = validation::object(object, context.served.storage_type);
        let spec = Path::new("spec");
        if !value::items(object, &["spec", "ephemeralContainers"]).is_empty() {
            found.push(FieldError::forbidden(
                &spec.child("ephemeralContainers"),
                "cannot be set on create",
            ));
        }
        if !value::str_or_empty(object, &["spec", "nodeName"]).is_empty()
            && !value::items(object, &["spec", "schedulingGates"]).is_empty()
        {
            found.push(FieldError::forbidden(
                &spec.child("nodeName"),
                "cannot be set until all schedulingGates have been cleared",
            ));
        }
        found
    }

    fn validate_update(
        &self,
        context: &Context<'_>,
        object: &Value,
        old: &Value,
    ) -> Vec<FieldError> {
        if context.subresource == "status" {
            return Vec::new();
        }
        let mut found = validation::object(object, context.served.storage_type);
        found.extend(validation::changes(
            "",
            "pods",
            context.subresource,
            object,
            old,
        ));
        found
    }

    fn prepare_for_update(&self, context: &Context<'_>, object: &mut Value, old: &Value) {
        match context.subresource {
            "status" => {
                keep_status_metadata(object, old);
                generic::keep_member(object, old, "spec");
                if value::str_or_empty(object, &["status", "qosClass"]).is_empty()
                    && let Some(kept) = value::get(old, &["status", "qosClass"]).cloned()
                {
                    value::set(object, &["status", "qosClass"], kept);
                }
                keep_observed_generation(object, old);
            }
            "ephemeralcontainers" => {
                let added = value::get(object, &["spec", "ephemeralContainers"]).cloned();
                generic::keep_member(object, old, "spec");
                generic::keep_member(object, old, "status");
                generic::reset_object_meta_for_status(object, old);
                if let Some(added) = added {
                    value::set(object, &["spec", "ephemeralContainers"], added);
                }
                generic::bump_generation_if_changed(object, old);
            }
            "resize" => {
                resize(object, old);
                generic::bump_generation_if_changed(object, old);
            }
            _ => {
                generic::keep_member(object, old, "status");
                generic::bump_generation_if_changed(object, old);
            }
        }
    }

    fn graceful_delete_seconds(&self, object: &Value, options: &DeleteOptions) -> Option<i64> {
        let asked = options
            .grace_period_seconds
            .or_else(|| value::get_i64(object, &["spec", "terminationGracePeriodSeconds"]))
            .unwrap_or(0);
        let phase = value::str_or_empty(object, &["status", "phase"]);
        let unscheduled = value::str_or_empty(object, &["spec", "nodeName"]).is_empty();
        if unscheduled || matches!(phase, "Failed" | "Succeeded") {
            return Some(0);
        }
        // Negative periods count as one second.
        Some(if asked < 0 { 1 } else { asked })
    }
}

/// A status update cannot touch owners or undo a deletion; other metadata follows the request, as upstream allows.
fn keep_status_metadata(object: &mut Value, old: &Value) {
    let kept = value::get(old, &["metadata", "ownerReferences"]).cloned();
    match kept {
        Some(kept) => {
            value::set(object, &["metadata", "ownerReferences"], kept);
        }
        None => {
            value::remove(object, &["metadata", "ownerReferences"]);
        }
    }
    value::remove(object, &["metadata", "deletionTimestamp"]);
}

/// Clients that do not know `observedGeneration` must not clear it (upstream `preserveOldObservedGeneration`).
fn keep_observed_generation(object: &mut Value, old: &Value) {
    if value::get_i64(object, &["status", "observedGeneration"]).unwrap_or(0) == 0
        && let Some(kept) = value::get(old, &["status", "observedGeneration"]).cloned()
    {
        value::set(object, &["status", "observedGeneration"], kept);
    }
    let old_conditions = value::items(old, &["status", "conditions"]).to_vec();
    let Some(conditions) =
        value::get_mut(object, &["status", "conditions"]).and_then(Value::as_array_mut)
    else {
        return;
    };
    for condition in conditions {
        if value::get_i64(condition, &["observedGeneration"]).unwrap_or(0) != 0 {
            continue;
        }
        let kept = old_conditions
            .iter()
            .find(|c| c.get("type") == condition.get("type"))
            .and_then(|c| c.get("observedGeneration"));
        if let Some(kept) = kept {
            let kept = kept.clone();
            value::set(condition, &["observedGeneration"], kept);
        }
    }
}

/// Keeps everything but the resources and resize policies of the containers (upstream `dropNonResizeUpdates`).
fn resize(object: &mut Value, old: &Value) {
    let mut spec = match value::get(old, &["spec"]) {
        Some(spec) => spec.clone(),
        None => return,
    };
    for list in ["containers", "initContainers"] {
        let new_items = value::items(object, &["spec", list]);
        let old_len = value::items(old, &["spec", list]).len();
        if new_items.len() != old_len {
            // Adding and removing containers is left to validation to refuse.
            return;
        }
        let Some(kept) = value::get_mut(&mut spec, &[list]).and_then(Value::as_array_mut) else {
            continue;
        };
        for (kept, new) in kept.iter_mut().zip(new_items) {
            if kept.get("name") != new.get("name") {
                return;
            }
            for name in ["resources", "resizePolicy"] {
                generic::keep_member(kept, new, name);
            }
        }
    }
    value::set(object, &["spec"], spec);
    generic::keep_member(object, old, "status");
    generic::reset_object_meta_for_status(object, old);
}

/// The quality-of-service class (upstream `qos.ComputePodQOS`).
pub fn qos_class(pod: &Value) -> &'static str {
    let mut any = false;
    let mut guaranteed = true;
    let containers = value::items(pod, &["spec", "initContainers"])
        .iter()
        .chain(value::items(pod, &["spec", "containers"]));
    let pod_level = value::get(pod, &["spec"]).filter(|spec| {
        spec.get("resources")
            .is_some_and(|r| r.get("limits").is_some() || r.get("requests").is_some())
    });
    let holders: Vec<&Value> = match pod_level {
        Some(spec) => vec![spec],
        None => containers.collect(),
    };
    for holder in holders {
        for name in ["cpu", "memory"] {
            let amount = |list: &str| {
                value::get(holder, &["resources", list, name]).filter(|q| !is_zero_quantity(q))
            };
            let (limit, request) = (amount("limits"), amount("requests"));
            any |= limit.is_some() || request.is_some();
            let equal = match (limit, request) {
                (Some(limit), Some(request)) => same_quantity(limit, request),
                (Some(_), None) => true,
                _ => false,
            };
            guaranteed &= equal;
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

fn quantity(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(text) => Quantity::parse(text).ok(),
        Value::Number(number) => Quantity::parse(&number.to_string()).ok(),
        _ => None,
    }
}

fn is_zero_quantity(value: &Value) -> bool {
    quantity(value).is_none_or(|q| q.is_zero())
}

fn same_quantity(a: &Value, b: &Value) -> bool {
    quantity(a) == quantity(b)
}
