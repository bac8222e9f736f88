//! Jobs: the selector that the server makes (upstream `pkg/registry/batch/job`).

use keelson_machinery::meta;
use keelson_machinery::value::{self, Value};

use crate::registry::defaults::put;
use crate::registry::generic;
use crate::registry::strategy::{Context, GarbageCollection, Strategy};

/// Strategy of jobs.
pub struct Job;

const CONTROLLER_UID: &str = "batch.kubernetes.io/controller-uid";
const JOB_NAME: &str = "batch.kubernetes.io/job-name";

impl Strategy for Job {
    fn prepare_for_create(&self, context: &Context<'_>, object: &mut Value) {
        generic::prepare_for_create(context, object);
        if value::get_bool(object, &["spec", "manualSelector"]) != Some(true) {
            make_selector(object);
        }
    }

    fn garbage_collection(&self) -> GarbageCollection {
        GarbageCollection::Orphan
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
        uid,
    );
}
