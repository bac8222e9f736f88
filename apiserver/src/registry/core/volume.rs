//! Persistent volumes: born pending, and the time of their last change of phase is kept
//! (upstream `pkg/registry/core/persistentvolume`).

use keelson_machinery::time;
use keelson_machinery::value::{self, Value};
use serde_json::json;

use crate::registry::generic;
use crate::registry::strategy::{Context, Strategy};

/// Strategy of persistent volumes.
pub struct PersistentVolume;

const SINCE: [&str; 2] = ["status", "lastPhaseTransitionTime"];
const PHASE: [&str; 2] = ["status", "phase"];

impl Strategy for PersistentVolume {
    fn prepare_for_create(&self, context: &Context<'_>, object: &mut Value) {
        let now = time::format(context.clock.now());
        value::set(
            object,
            &["status"],
            json!({"phase": "Pending", "lastPhaseTransitionTime": now}),
        );
    }

    fn prepare_for_update(&self, context: &Context<'_>, object: &mut Value, old: &Value) {
        generic::prepare_for_update(context, object, old);
        if context.subresource != "status" {
            return;
        }
        let since = value::get(object, &SINCE);
        let same_phase = value::get(object, &PHASE) == value::get(old, &PHASE);
        if same_phase && since.is_none() {
            if let Some(kept) = value::get(old, &SINCE).cloned() {
                value::set(object, &SINCE, kept);
            }
        } else if !same_phase && (since.is_none() || since == value::get(old, &SINCE)) {
            value::set(object, &SINCE, time::format(context.clock.now()));
        }
    }
}
