//! `pods/eviction`: deletes a pod if its disruption budget allows it
//! (upstream `pkg/registry/core/pod/storage.EvictionREST`).

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use http::StatusCode;
use jiff::Timestamp;
use keelson_machinery::meta::{self, GroupResource};
use keelson_machinery::selector::LabelSelector;
use keelson_machinery::status::{ApiError, Reason};
use keelson_machinery::time;
use keelson_machinery::value::{self, Value};

use super::{admit, decode_kind};
use crate::admission::Operation;
use crate::body::Response;
use crate::codec::Output;
use crate::reader::ObjectReader;
use crate::registry::conditions::set_condition;
use crate::registry::delete::{self, DeleteAdmission};
use crate::registry::store;
use crate::registry::strategy::DeleteOptions;
use crate::verbs::call::Admission;
use crate::verbs::options::WriteOptions;
use crate::verbs::{Call, respond};

/// How often a conflict with another writer of the pod is tolerated (upstream `EvictionsRetry`).
const ATTEMPTS: usize = 20;

/// The most pods whose eviction a budget may have pending (upstream `MaxDisruptedPodSize`).
const MAX_DISRUPTED_PODS: usize = 2000;

/// `POST pods/NAME/eviction`.
pub async fn evict(call: &mut Call, body: &Bytes) -> Result<Response, ApiError> {
    let output = call.output_without_table()?;
    let options = WriteOptions::read(&call.query, "CreateOptions", false)?;
    let mut eviction = decode_kind(
        call,
        body,
        "policy",
        "v1",
        "Eviction",
        options.field_validation,
    )?;
    store::ensure_namespace(&call.info.namespace, &mut eviction)?;
    if meta::name(&eviction) != call.info.name {
        return Err(ApiError::bad_request(
            "name in URL does not match name in Eviction object",
        ));
    }
    let admission = Admission::new(
        call,
        Operation::Create,
        "Eviction",
        options.object.clone(),
        options.dry_run,
    );
    let eviction = admit(call, admission, eviction).await?;
    let delete_options = read_delete_options(&eviction, options.dry_run);

    let mut attempt = 0;
    loop {
        attempt += 1;
        match evict_once(call, &delete_options).await {
            Err(error)
                if error.is_conflict()
                    && delete_options.precondition_resource_version.is_none()
                    && attempt < ATTEMPTS => {}
            Err(error) => return Err(error),
            Ok(()) => break,
        }
    }
    let mut status = keelson_machinery::status::success(None);
    status["code"] = 201.into();
    let output = Output {
        convert: None,
        ..output
    };
    respond::meta_value(call, &output, StatusCode::CREATED, &status)
}

fn read_delete_options(eviction: &Value, dry_run: bool) -> DeleteOptions {
    let text = |path: &[&str]| {
        value::get_str(eviction, path)
            .filter(|t| !t.is_empty())
            .map(str::to_string)
    };
    DeleteOptions {
        grace_period_seconds: value::get_i64(eviction, &["deleteOptions", "gracePeriodSeconds"]),
        precondition_uid: text(&["deleteOptions", "preconditions", "uid"]),
        precondition_resource_version: text(&["deleteOptions", "preconditions", "resourceVersion"]),
        propagation_policy: text(&["deleteOptions", "propagationPolicy"]),
        orphan_dependents: value::get_bool(eviction, &["deleteOptions", "orphanDependents"]),
        dry_run: dry_run || !value::items(eviction, &["deleteOptions", "dryRun"]).is_empty(),
    }
}

async fn evict_once(call: &Call, asked: &DeleteOptions) -> Result<(), ApiError> {
    let pods = GroupResource::new("", "pods");
    let (namespace, name) = (call.info.namespace.as_str(), call.info.name.as_str());
    let pod = store::read_latest(&call.server.storage, &call.served, &pods, namespace, name)
        .await?
        .ok_or_else(|| ApiError::not_found(&pods, name))?
        .object;
    let mut options = asked.clone();
    if needs_no_budget(&pod) {
        let pending = meta::deletion_timestamp(&pod).is_none()
            && value::str_or_empty(&pod, &["status", "phase"]) == "Pending";
        // A pending pod may become ready meanwhile, and then its budget counts.
        if pending && options.precondition_resource_version.is_none() {
            options.precondition_resource_version = Some(meta::resource_version(&pod).to_string());
        }
        return mark_and_delete(call, &options).await;
    }
    let budgets = budgets_of(call, &pod).await?;
    match budgets.as_slice() {
        [] => mark_and_delete(call, &options).await,
        [budget] => {
            if !is_ready(&pod) && unhealthy_may_go(budget) {
                if options.precondition_resource_version.is_none() {
                    options.precondition_resource_version =
                        Some(meta::resource_version(&pod).to_string());
                }
            } else {
                take_from_budget(call, meta::name(budget), name, options.dry_run).await?;
            }
            mark_and_delete(call, &options).await
        }
        _ => Err(ApiError::new(
            500,
            Reason::Unknown,
            "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
        )),
    }
}

/// Pods that are over, or have not begun, disturb nothing (upstream `canIgnorePDB`).
fn needs_no_budget(pod: &Value) -> bool {
    meta::deletion_timestamp(pod).is_some()
        || matches!(
            value::str_or_empty(pod, &["status", "phase"]),
            "Succeeded" | "Failed" | "Pending"
        )
}

fn is_ready(pod: &Value) -> bool {
    value::items(pod, &["status", "conditions"])
        .iter()
        .any(|c| {
            value::str_or_empty(c, &["type"]) == "Ready"
                && value::str_or_empty(c, &["status"]) == "True"
        })
}

fn unhealthy_may_go(budget: &Value) -> bool {
    let number = |name: &str| value::get_i64(budget, &["status", name]).unwrap_or(0);
    value::str_or_empty(budget, &["spec", "unhealthyPodEvictionPolicy"]) == "AlwaysAllow"
        || (number("currentHealthy") >= number("desiredHealthy") && number("desiredHealthy") > 0)
}

async fn budgets_of(call: &Call, pod: &Value) -> Result<Vec<Arc<Value>>, ApiError> {
    let resource = GroupResource::new("policy", "poddisruptionbudgets");
    let all = call
        .server
        .storage
        .caches
        .list(&resource, Some(&call.info.namespace))
        .await?;
    let labels = meta::labels(pod);
    Ok(all
        .into_iter()
        .filter(|budget| {
            LabelSelector::from_value(value::get(budget, &["spec", "selector"]))
                .is_ok_and(|selector| selector.matches(labels))
        })
        .collect())
}

/// Takes one disruption from the budget, and tells its controller whom it is for (upstream `checkAndDecrement`).
async fn take_from_budget(
    call: &Call,
    budget: &str,
    pod: &str,
    dry_run: bool,
) -> Result<(), ApiError> {
    let resource = GroupResource::new("policy", "poddisruptionbudgets");
    let table = call.server.registry.table();
    let served = table
        .storage(&resource)
        .ok_or_else(ApiError::no_such_resource)?;
    let now = call.server.storage.clock.now();
    store::edit(
        &call.server.storage,
        &call.context(served, dry_run),
        &resource,
        &call.info.namespace,
        budget,
        |budget| decrement(budget, pod, now),
    )
    .await?;
    Ok(())
}

fn decrement(budget: &Value, pod: &str, now: Timestamp) -> Result<Value, ApiError> {
    const VIOLATES: &str = "Cannot evict pod as it would violate the pod's disruption budget.";
    const CAUSE: &str = "DisruptionBudget";
    let name = meta::name(budget);
    let number = |field: &str| value::get_i64(budget, &["status", field]).unwrap_or(0);
    let at = GroupResource::new("policy", "poddisruptionbudget");
    if number("observedGeneration") < meta::generation(budget) {
        return Err(ApiError::too_many_requests(VIOLATES, 10).with_cause(
            CAUSE,
            format!("The disruption budget {name} is still being processed by the server."),
            "",
        ));
    }
    if number("disruptionsAllowed") < 0 {
        return Err(ApiError::forbidden(
            &at,
            name,
            "pdb disruptions allowed is negative",
        ));
    }
    let pending = value::get_object(budget, &["status", "disruptedPods"]).map_or(0, |p| p.len());
    if pending > MAX_DISRUPTED_PODS {
        return Err(ApiError::forbidden(
            &at,
            name,
            "DisruptedPods map too big - too many evictions not confirmed by PDB controller",
        ));
    }
    if number("disruptionsAllowed") == 0 {
        let condition = value::items(budget, &["status", "conditions"])
            .iter()
            .find(|c| value::str_or_empty(c, &["type"]) == "DisruptionAllowed")
            .filter(|c| value::str_or_empty(c, &["status"]) == "False");
        let said = |field: &str| condition.map_or("", |c| value::str_or_empty(c, &[field]));
        let (reason, message) = (said("reason"), said("message"));
        let why = if reason == "SyncFailed" && !message.is_empty() {
            format!(
                "The disruption budget {name} does not allow evicting pods currently because it failed sync: {message}"
            )
        } else if number("currentHealthy") <= number("desiredHealthy") {
            format!(
                "The disruption budget {name} needs {} healthy pods and has {} currently",
                number("desiredHealthy"),
                number("currentHealthy")
            )
        } else if !message.is_empty() {
            format!(
                "The disruption budget {name} does not allow evicting pods currently ({reason}): {message}"
            )
        } else {
            format!("The disruption budget {name} does not allow evicting pods currently")
        };
        return Err(ApiError::too_many_requests(VIOLATES, 0).with_cause(CAUSE, why, ""));
    }
    let left = number("disruptionsAllowed") - 1;
    let mut next = budget.clone();
    value::set(&mut next, &["status", "disruptionsAllowed"], left);
    if left == 0 {
        set_condition(
            &mut next,
            "DisruptionAllowed",
            "False",
            "InsufficientPods",
            "",
            now,
        );
        // A metav1.Condition has no probe time, and always a message and a generation.
        if let Some(conditions) =
            value::get_mut(&mut next, &["status", "conditions"]).and_then(Value::as_array_mut)
        {
            for condition in conditions {
                if value::str_or_empty(condition, &["type"]) == "DisruptionAllowed" {
                    value::remove(condition, &["lastProbeTime"]);
                    value::set(condition, &["message"], "");
                    value::set(condition, &["observedGeneration"], meta::generation(budget));
                }
            }
        }
    }
    value::set(
        &mut next,
        &["status", "disruptedPods", pod],
        time::format(now),
    );
    Ok(next)
}

/// Says in the pod's status why it goes, and deletes it (upstream `addConditionAndDeletePod`).
async fn mark_and_delete(call: &Call, options: &DeleteOptions) -> Result<(), ApiError> {
    let pods = GroupResource::new("", "pods");
    let context = call.context(&call.served, options.dry_run);
    let (namespace, name) = (call.info.namespace.as_str(), call.info.name.as_str());
    let mut options = options.clone();
    if !options.dry_run {
        let now = call.server.storage.clock.now();
        let marked = store::edit(
            &call.server.storage,
            &context,
            &pods,
            namespace,
            name,
            |pod| {
                delete::check_preconditions(&context, pod, &options)?;
                let mut pod = pod.clone();
                set_condition(
                    &mut pod,
                    "DisruptionTarget",
                    "True",
                    "EvictionByEvictionAPI",
                    "Eviction API: evicting",
                    now,
                );
                Ok(pod)
            },
        )
        .await?;
        if options.precondition_resource_version.is_some() {
            options.precondition_resource_version =
                Some(meta::resource_version(&marked.object).to_string());
        }
    }
    delete::delete(
        &call.server.storage,
        &context,
        &pods,
        namespace,
        name,
        &options,
        &mut AlreadyAdmitted,
    )
    .await?;
    Ok(())
}

/// The eviction itself has passed admission.
struct AlreadyAdmitted;

#[async_trait]
impl DeleteAdmission for AlreadyAdmitted {
    async fn validate(&mut self, _: &Arc<Value>) -> Result<(), ApiError> {
        Ok(())
    }
}
