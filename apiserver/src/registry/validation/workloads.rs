//! Workloads: templates and their selectors, strategies, jobs (upstream `pkg/apis/{apps,batch,autoscaling,policy}/validation`).

use keelson_machinery::int_or_string::IntOrString;
use keelson_machinery::meta::{self, names};
use keelson_machinery::selector::LabelSelector;
use keelson_machinery::status::field::{FieldError, Path};
use keelson_machinery::value::{self, Object, Value};
use serde_json::json;

use super::{At, Found, has, refuse, text};

/// A StatefulSet's claims are volumes of its pods, by their names: the set with these volumes in its template.
pub fn with_claim_volumes(object: &Value, type_name: &str) -> Option<Value> {
    let claims = value::items(object, &["spec", "volumeClaimTemplates"]);
    if type_name != "apps.v1.StatefulSet" || claims.is_empty() {
        return None;
    }
    let name = |claim: &Value| value::str_or_empty(claim, &["metadata", "name"]).to_string();
    let mut volumes: Vec<Value> = claims
        .iter()
        .map(|claim| json!({"name": name(claim), "persistentVolumeClaim": {"claimName": name(claim)}}))
        .collect();
    let path = ["spec", "template", "spec", "volumes"];
    for volume in value::items(object, &path) {
        if !claims
            .iter()
            .any(|claim| name(claim) == text(volume, "name"))
        {
            volumes.push(volume.clone());
        }
    }
    let mut object = object.clone();
    value::set(&mut object, &path, Value::Array(volumes));
    Some(object)
}

/// `ValidatePodTemplateSpec`, what is not the pod's spec.
pub fn template(template: &Value, at: &At<'_>, found: &mut Found) {
    if let Some(labels) = meta::labels(template) {
        found.extend(meta::validate::validate_labels(labels, &at.child("labels")));
    }
    if let Some(annotations) = meta::annotations(template) {
        found.extend(meta::validate::validate_annotations(
            annotations,
            &at.child("annotations"),
        ));
    }
    if !value::items(template, &["spec", "ephemeralContainers"]).is_empty() {
        found.push(FieldError::forbidden(
            &at.child("spec.ephemeralContainers"),
            "ephemeral containers not allowed in pod template",
        ));
    }
}

const NO_MATCH: &str = "`selector` does not match template `labels`";

fn template_labels(spec: &Value) -> Option<&Object> {
    value::get_object(spec, &["template", "metadata", "labels"])
}

fn wrong_labels(spec: &Value, at: &At<'_>) -> FieldError {
    let labels = template_labels(spec).map_or(Value::Null, |labels| Value::Object(labels.clone()));
    FieldError::invalid(&at.child("template.metadata.labels"), labels, NO_MATCH)
}

fn is_hollow(selector: &Value) -> bool {
    value::get_object(selector, &["matchLabels"]).is_none_or(Object::is_empty)
        && value::items(selector, &["matchExpressions"]).is_empty()
}

/// The selector of a workload is there, selects something, and selects the template.
fn selector(spec: &Value, kind: &str, required: bool, at: &At<'_>, found: &mut Found) {
    let path = at.child("selector");
    let given = value::get(spec, &["selector"]);
    match given {
        None if required => found.push(FieldError::required(&path, "")),
        None => {}
        Some(selector) if is_hollow(selector) => found.push(FieldError::invalid(
            &path,
            selector.clone(),
            format!("empty selector is invalid for {kind}"),
        )),
        Some(_) => {}
    }
    match LabelSelector::from_value(given) {
        Ok(selector) if given.is_some_and(is_hollow) => drop(selector),
        Ok(selector) => {
            if given.is_some() && !selector.matches(template_labels(spec)) {
                found.push(wrong_labels(spec, at));
            }
        }
        Err(_) => found.push(FieldError::invalid(
            &path,
            given.cloned().unwrap_or_default(),
            "invalid label selector",
        )),
    }
}

/// Pods of most workloads are started again for ever.
fn runs_for_ever(spec: &Value, kind: &str, at: &At<'_>, found: &mut Found) {
    let policy = value::str_or_empty(spec, &["template", "spec", "restartPolicy"]);
    if policy != "Always" {
        found.push(FieldError::not_supported(
            &at.child("template.spec.restartPolicy"),
            policy,
            &["Always"],
        ));
    }
    if value::get(spec, &["template", "spec", "activeDeadlineSeconds"]).is_some() {
        found.push(FieldError::forbidden(
            &at.child("template.spec.activeDeadlineSeconds"),
            format!("activeDeadlineSeconds in {kind} is not Supported"),
        ));
    }
}

/// `ValidateReplicationControllerSpec`.
pub fn replication_controller(spec: &Value, at: &At<'_>, found: &mut Found) {
    if !has(spec, "template") {
        return;
    }
    let wanted = value::get_object(spec, &["selector"]);
    if !LabelSelector::from_set(wanted).matches(template_labels(spec)) {
        found.push(wrong_labels(spec, at));
    }
    runs_for_ever(spec, "ReplicationController", at, found);
}

/// `ValidateReplicaSetSpec`.
pub fn replica_set(spec: &Value, at: &At<'_>, found: &mut Found) {
    selector(spec, "replicaset", true, at, found);
    runs_for_ever(spec, "ReplicaSet", at, found);
}

/// `ValidateDeploymentSpec`.
pub fn deployment(spec: &Value, at: &At<'_>, found: &mut Found) {
    selector(spec, "deployment", true, at, found);
    // The template is checked as that of its ReplicaSets.
    runs_for_ever(spec, "ReplicaSet", at, found);
    let deadline = value::get_i64(spec, &["progressDeadlineSeconds"]);
    let ready = value::get_i64(spec, &["minReadySeconds"]).unwrap_or(0);
    if let Some(deadline) = deadline.filter(|deadline| *deadline <= ready) {
        found.push(FieldError::invalid(
            &at.child("progressDeadlineSeconds"),
            deadline,
            "must be greater than minReadySeconds",
        ));
    }
}

/// A number that is not negative, or a percentage.
fn int_or_percent(given: &Value, path: &Path, found: &mut Found) {
    match given {
        Value::String(percent) => refuse(found, path, percent, names::percent(percent)),
        Value::Number(number) if number.as_i64().is_some_and(|n| n < 0) => {
            found.push(FieldError::invalid(path, given.clone(), super::NEGATIVE));
        }
        _ => {}
    }
}

fn percent_of(given: &Value) -> Option<i64> {
    let percent = given.as_str()?;
    names::percent(percent)
        .is_empty()
        .then(|| percent.trim_end_matches('%').parse().ok())?
}

fn at_most_all(given: &Value, path: &Path, found: &mut Found) {
    if percent_of(given).is_some_and(|percent| percent > 100) {
        found.push(FieldError::invalid(
            path,
            given.clone(),
            "must not be greater than 100%",
        ));
    }
}

fn amount(given: Option<&Value>) -> i64 {
    let Some(given) = given else {
        return 0;
    };
    percent_of(given)
        .or_else(|| IntOrString::from_value(given).map(|number| number.int_value()))
        .unwrap_or(0)
}

/// `ValidateDeploymentStrategy`.
pub fn deployment_strategy(strategy: &Value, at: &At<'_>, found: &mut Found) {
    let rolling = value::get(strategy, &["rollingUpdate"]);
    match text(strategy, "type") {
        "Recreate" if rolling.is_some() => found.push(FieldError::forbidden(
            &at.child("rollingUpdate"),
            "may not be specified when strategy `type` is 'Recreate'",
        )),
        "Recreate" => {}
        "RollingUpdate" => {
            let Some(rolling) = rolling else {
                found.push(FieldError::required(
                    &at.child("rollingUpdate"),
                    "this should be defaulted and never be nil",
                ));
                return;
            };
            let unavailable = value::get(rolling, &["maxUnavailable"]);
            let surge = value::get(rolling, &["maxSurge"]);
            let path = at.child("rollingUpdate").child("maxUnavailable");
            for (given, name) in [(unavailable, "maxUnavailable"), (surge, "maxSurge")] {
                if let Some(given) = given {
                    int_or_percent(given, &at.child("rollingUpdate").child(name), found);
                }
            }
            if amount(unavailable) == 0 && amount(surge) == 0 {
                found.push(FieldError::invalid(
                    &path,
                    unavailable.cloned().unwrap_or_default(),
                    "may not be 0 when `maxSurge` is 0",
                ));
            }
            if let Some(unavailable) = unavailable {
                at_most_all(unavailable, &path, found);
            }
        }
        _ => found.push(FieldError::not_supported(
            &at.path(),
            strategy.clone(),
            &["Recreate", "RollingUpdate"],
        )),
    }
}

/// `ValidateDaemonSetSpec`.
pub fn daemon_set(spec: &Value, at: &At<'_>, found: &mut Found) {
    selector(spec, "daemonset", false, at, found);
    runs_for_ever(spec, "DaemonSet", at, found);
}

/// `ValidateDaemonSetUpdateStrategy`.
pub fn daemon_set_strategy(strategy: &Value, at: &At<'_>, found: &mut Found) {
    match text(strategy, "type") {
        "OnDelete" => return,
        "RollingUpdate" => {}
        _ => {
            found.push(FieldError::not_supported(
                &at.path(),
                strategy.clone(),
                &["RollingUpdate", "OnDelete"],
            ));
            return;
        }
    }
    let Some(rolling) = value::get(strategy, &["rollingUpdate"]) else {
        found.push(FieldError::required(&at.child("rollingUpdate"), ""));
        return;
    };
    for name in ["maxUnavailable", "maxSurge"] {
        if let Some(given) = value::get(rolling, &[name]) {
            let path = at.child("rollingUpdate").child(name);
            int_or_percent(given, &path, found);
            at_most_all(given, &path, found);
        }
    }
    let surge = value::get(rolling, &["maxSurge"]);
    match (
        amount(value::get(rolling, &["maxUnavailable"])) != 0,
        amount(surge) != 0,
    ) {
        (true, true) => found.push(FieldError::invalid(
            &at.child("rollingUpdate.maxSurge"),
            surge.cloned().unwrap_or_default(),
            "may not be set when maxUnavailable is non-zero",
        )),
        (false, false) => found.push(FieldError::required(
            &at.child("rollingUpdate.maxUnavailable"),
            "cannot be 0 when maxSurge is 0",
        )),
        _ => {}
    }
}

/// `ValidateStatefulSetSpec`.
pub fn stateful_set(spec: &Value, at: &At<'_>, found: &mut Found) {
    match text(spec, "podManagementPolicy") {
        "OrderedReady" | "Parallel" => {}
        "" => found.push(FieldError::required(&at.child("podManagementPolicy"), "")),
        other => found.push(FieldError::invalid(
            &at.child("podManagementPolicy"),
            other,
            "must be 'OrderedReady' or 'Parallel'",
        )),
    }
    let strategy = value::get(spec, &["updateStrategy"]).unwrap_or(&Value::Null);
    let rolling = value::get(strategy, &["rollingUpdate"]);
    match text(strategy, "type") {
        "" => found.push(FieldError::required(&at.child("updateStrategy"), "")),
        "RollingUpdate" => {}
        "OnDelete" => {
            if let Some(rolling) = rolling {
                found.push(FieldError::invalid(
                    &at.child("updateStrategy.rollingUpdate"),
                    rolling.clone(),
                    "only allowed for updateStrategy 'RollingUpdate'",
                ));
            }
        }
        _ => found.push(FieldError::invalid(
            &at.child("updateStrategy"),
            strategy.clone(),
            "must be 'RollingUpdate' or 'OnDelete'",
        )),
    }
    selector(spec, "statefulset", true, at, found);
    runs_for_ever(spec, "StatefulSet", at, found);
}

/// Upstream `validateGeneratedSelector`, and the longest host name of an indexed job.
pub fn job(job: &Value, at: &At<'_>, found: &mut Found) {
    if value::get_bool(job, &["spec", "manualSelector"]) != Some(true) {
        let labels = value::get_object(job, &["spec", "template", "metadata", "labels"]);
        let label = |key: &str| labels.and_then(|l| l.get(key)).and_then(Value::as_str);
        let path = at.child("spec.template.metadata").child("labels");
        for (key, wanted) in [
            ("controller-uid", meta::uid(job)),
            ("job-name", meta::name(job)),
            ("batch.kubernetes.io/controller-uid", meta::uid(job)),
            ("batch.kubernetes.io/job-name", meta::name(job)),
        ] {
            match label(key) {
                None => found.push(FieldError::required(
                    &path.key(key),
                    format!("must be '{wanted}'"),
                )),
                Some(given) if given != wanted => found.push(FieldError::invalid(
                    &path.key(key),
                    labels.cloned().map(Value::Object).unwrap_or_default(),
                    format!("must be '{wanted}'"),
                )),
                Some(_) => {}
            }
        }
    }
    let completions = value::get_i64(job, &["spec", "completions"]).unwrap_or(0);
    if value::get_str(job, &["spec", "completionMode"]) == Some("Indexed") && completions > 0 {
        let name = meta::name(job);
        let host = format!("{name}-{}", completions - 1);
        if !names::dns1123_label(&host).is_empty() {
            found.push(FieldError::invalid(
                &at.child("metadata.name"),
                name,
                format!("will not able to create pod with invalid DNS label: {host}"),
            ));
        }
    }
    // Templates of cron jobs have no selector yet.
    if let Some(spec) = value::get(job, &["spec"]) {
        let path = at.child("spec");
        let selector = value::get(spec, &["selector"]);
        if selector.is_none() {
            found.push(FieldError::required(&path.child("selector"), ""));
        } else if LabelSelector::from_value(selector)
            .is_ok_and(|selector| !selector.matches(template_labels(spec)))
        {
            let labels = template_labels(spec).cloned().map(Value::Object);
            found.push(FieldError::invalid(
                &path.child("template").child("metadata").child("labels"),
                labels.unwrap_or_default(),
                NO_MATCH,
            ));
        }
    }
}

/// `validateJobSpec`.
pub fn job_spec(spec: &Value, at: &At<'_>, found: &mut Found) {
    let number = |name: &str| value::get_i64(spec, &[name]);
    if text(spec, "completionMode") == "Indexed" {
        if number("completions").is_none() {
            found.push(FieldError::required(
                &at.child("completions"),
                "when completion mode is Indexed",
            ));
        }
        if let Some(many) = number("parallelism").filter(|many| *many > 100_000) {
            found.push(FieldError::invalid(
                &at.child("parallelism"),
                many,
                "must be less than or equal to 100000 when completion mode is Indexed",
            ));
        }
        if let (Some(failed), Some(all)) = (number("maxFailedIndexes"), number("completions"))
            && failed > all
        {
            found.push(FieldError::invalid(
                &at.child("maxFailedIndexes"),
                failed,
                "must be less than or equal to completions",
            ));
        }
    } else {
        for name in ["backoffLimitPerIndex", "maxFailedIndexes"] {
            if let Some(given) = number(name) {
                found.push(FieldError::invalid(
                    &at.child(name),
                    given,
                    "requires indexed completion mode",
                ));
            }
        }
        if let Some(policy) = value::get(spec, &["successPolicy"]) {
            found.push(FieldError::invalid(
                &at.child("successPolicy"),
                policy.clone(),
                "requires indexed completion mode",
            ));
        }
    }
    if number("maxFailedIndexes").is_some() && number("backoffLimitPerIndex").is_none() {
        found.push(FieldError::required(
            &at.child("backoffLimitPerIndex"),
            "when maxFailedIndexes is specified",
        ));
    }
    let failure = has(spec, "podFailurePolicy");
    if let Some(policy) = value::get_str(spec, &["podReplacementPolicy"]) {
        let valid: &[&str] = if failure {
            &["Failed"]
        } else {
            &["Failed", "TerminatingOrFailed"]
        };
        if !valid.contains(&policy) {
            found.push(FieldError::not_supported(
                &at.child("podReplacementPolicy"),
                policy,
                valid,
            ));
        }
    }
    let path = at.child("template.spec.restartPolicy");
    match value::str_or_empty(spec, &["template", "spec", "restartPolicy"]) {
        "Always" | "" => found.push(FieldError::required(
            &path,
            "valid values: \"OnFailure\", \"Never\"",
        )),
        "Never" => {}
        "OnFailure" if failure => found.push(FieldError::invalid(
            &path,
            "OnFailure",
            "only \"Never\" is supported when podFailurePolicy is specified",
        )),
        "OnFailure" => {}
        other => found.push(FieldError::not_supported(
            &path,
            other,
            &["OnFailure", "Never"],
        )),
    }
}

/// Cron jobs append eleven characters to their names for those of their jobs.
pub fn cron_job_name(job: &Value, at: &At<'_>, found: &mut Found) {
    const MAX_NAME: usize = 63 - 11;
    let name = meta::name(job);
    if name.len() > MAX_NAME {
        found.push(FieldError::invalid(
            &at.child("metadata.name"),
            name,
            format!("must be no more than {MAX_NAME} characters"),
        ));
    }
}

/// `validateCronJobSpec`.
pub fn cron_job(spec: &Value, at: &At<'_>, found: &mut Found) {
    let schedule = text(spec, "schedule");
    if schedule.contains("TZ") {
        found.push(FieldError::invalid(
            &at.child("schedule"),
            schedule,
            "cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
        ));
    } else if !schedule.is_empty()
        && !schedule.starts_with('@')
        && schedule.split_whitespace().count() != 5
    {
        // Upstream hands on what its cron parser says.
        let count = schedule.split_whitespace().count();
        found.push(FieldError::invalid(
            &at.child("schedule"),
            schedule,
            format!(
                "expected exactly 5 fields, found {count}: [{}]",
                schedule.split_whitespace().collect::<Vec<_>>().join(" ")
            ),
        ));
    }
    let path = at.child("timeZone");
    match value::get_str(spec, &["timeZone"]) {
        None => {}
        Some("") => found.push(FieldError::invalid(
            &path,
            "",
            "timeZone must be nil or non-empty string",
        )),
        Some(zone) if zone.eq_ignore_ascii_case("local") => found.push(FieldError::invalid(
            &path,
            zone,
            "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones",
        )),
        Some(zone) if keelson_machinery::time::zone(zone).is_none() => found.push(
            FieldError::invalid(&path, zone, format!("unknown time zone {zone}")),
        ),
        Some(_) => {}
    }
    if value::get(spec, &["jobTemplate", "spec", "manualSelector"]) == Some(&Value::Bool(true)) {
        found.push(FieldError::not_supported(
            &at.child("jobTemplate.spec.manualSelector"),
            true,
            &["nil", "false"],
        ));
    }
}

/// `validateHorizontalPodAutoscalerSpec`.
pub fn autoscaler(spec: &Value, at: &At<'_>, found: &mut Found) {
    let least = value::get_i64(spec, &["minReplicas"]);
    let most = value::get_i64(spec, &["maxReplicas"]).unwrap_or(0);
    if let Some(least) = least.filter(|least| *least < 1) {
        found.push(FieldError::invalid(
            &at.child("minReplicas"),
            least,
            "must be greater than or equal to 1",
        ));
    }
    if most < 1 {
        found.push(FieldError::invalid(
            &at.child("maxReplicas"),
            most,
            super::NOT_POSITIVE,
        ));
    }
    if least.is_some_and(|least| most < least) {
        found.push(FieldError::invalid(
            &at.child("maxReplicas"),
            most,
            "must be greater than or equal to `minReplicas`",
        ));
    }
}

/// `ValidatePodDisruptionBudgetSpec`.
pub fn disruption_budget(spec: &Value, at: &At<'_>, found: &mut Found) {
    if has(spec, "minAvailable") && has(spec, "maxUnavailable") {
        found.push(FieldError::invalid(
            &at.path(),
            spec.clone(),
            "minAvailable and maxUnavailable cannot be both set",
        ));
    }
    for name in ["minAvailable", "maxUnavailable"] {
        if let Some(given) = value::get(spec, &[name]) {
            int_or_percent(given, &at.child(name), found);
            at_most_all(given, &at.child(name), found);
        }
    }
    let policy = value::get_str(spec, &["unhealthyPodEvictionPolicy"]);
    if let Some(policy) = policy.filter(|p| !["AlwaysAllow", "IfHealthyBudget"].contains(p)) {
        found.push(FieldError::not_supported(
            &at.child("unhealthyPodEvictionPolicy"),
            policy,
            &["AlwaysAllow", "IfHealthyBudget"],
        ));
    }
}
