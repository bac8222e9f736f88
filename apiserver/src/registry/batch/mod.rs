//! Jobs and cron jobs: defaults (upstream `pkg/apis/batch/v1/defaults.go`) and the selector that the server makes
//! (`pkg/registry/batch/job`).

use keelson_machinery::meta;
use keelson_machinery::value::{self, Value};
use serde_json::json;

use super::core::pod_defaults;
use super::defaults::{for_items, put};
use super::generic;
use super::strategy::{Context, Strategy};

/// Strategy of jobs.
pub struct Job;

const CONTROLLER_UID: &str = "batch.kubernetes.io/controller-uid";
const JOB_NAME: &str = "batch.kubernetes.io/job-name";

impl Strategy for Job {
    fn default(&self, object: &mut Value) {
        let count = |field: &str| value::get_i64(object, &["spec", field]);
        match (count("completions"), count("parallelism")) {
            (None, None) => {
                value::set(object, &["spec", "completions"], 1);
                value::set(object, &["spec", "parallelism"], 1);
            }
            (Some(_), None) => {
                value::set(object, &["spec", "parallelism"], 1);
            }
            (_, Some(_)) => {}
        }
        let per_index = value::get(object, &["spec", "backoffLimitPerIndex"]).is_some();
        let backoff = if per_index { i64::from(i32::MAX) } else { 6 };
        put(object, &["spec", "backoffLimit"], backoff);
        put(object, &["spec", "completionMode"], "NonIndexed");
        put(object, &["spec", "suspend"], false);
        put(object, &["spec", "manualSelector"], false);
        let replacement = match value::get(object, &["spec", "podFailurePolicy"]) {
            Some(_) => "Failed",
            None => "TerminatingOrFailed",
        };
        put(object, &["spec", "podReplacementPolicy"], replacement);
        for_items(object, &["spec", "podFailurePolicy", "rules"], |rule| {
            for_items(rule, &["onPodConditions"], |pattern| {
                put(pattern, &["status"], "True");
            });
        });
        pod_defaults::template(object);
        if value::get_object(object, &["metadata", "labels"]).is_none_or(|l| l.is_empty())
            && let Some(labels) =
                value::get(object, &["spec", "template", "metadata", "labels"]).cloned()
        {
            value::set(object, &["metadata", "labels"], labels);
        }
    }

    fn prepare_for_create(&self, context: &Context<'_>, object: &mut Value) {
        generic::prepare_for_create(context, object);
        if value::get_bool(object, &["spec", "manualSelector"]) != Some(true) {
            make_selector(object);
        }
    }
}

/// Labels the pods of a job by its uid and selects them by that (upstream `generateSelector`).
fn make_selector(object: &mut Value) {
    let (name, uid) = (
        meta::name(object).to_string(),
        meta::uid(object).to_string(),
    );
    for (label, text) in [
        (JOB_NAME, &name),
        (CONTROLLER_UID, &uid),
        ("job-name", &name),
        ("controller-uid", &uid),
    ] {
        // A label of the client's own stays, for validation to judge.
        put(
            object,
            &["spec", "template", "metadata", "labels", label],
            text.as_str(),
        );
    }
    put(
        object,
        &["spec", "selector", "matchLabels", CONTROLLER_UID],
        json!(uid),
    );
}

/// `SetDefaults_CronJob`.
pub fn cron_job(object: &mut Value) {
    put(object, &["spec", "concurrencyPolicy"], "Allow");
    put(object, &["spec", "suspend"], false);
    put(object, &["spec", "successfulJobsHistoryLimit"], 3);
    put(object, &["spec", "failedJobsHistoryLimit"], 1);
    pod_defaults::spec(object, &["spec", "jobTemplate", "spec", "template", "spec"]);
}
