//! Namespaces: the `kubernetes` finalizer in the spec, and the Terminating phase
//! (upstream `pkg/registry/core/namespace`).

use keelson_machinery::value::{self, Value};

use crate::registry::generic;
use crate::registry::strategy::{Context, Strategy};

/// Strategy of namespaces.
pub struct Namespace;

/// The finalizer that the namespace controller removes when the content is gone.
const KUBERNETES: &str = "kubernetes";

impl Strategy for Namespace {
    fn default(&self, object: &mut Value) {
        let name = value::str_or_empty(object, &["metadata", "name"]).to_string();
        if !name.is_empty() {
            value::set(
                object,
                &["metadata", "labels", "kubernetes.io/metadata.name"],
                name,
            );
        }
    }

    fn prepare_for_create(&self, _: &Context<'_>, object: &mut Value) {
        value::set(object, &["status"], serde_json::json!({"phase": "Active"}));
        let mut finalizers = value::items(object, &["spec", "finalizers"]).to_vec();
        if !finalizers.iter().any(|f| f == KUBERNETES) {
            finalizers.push(KUBERNETES.into());
        }
        value::set(object, &["spec", "finalizers"], Value::Array(finalizers));
        // With a generated name the label could not be set before.
        self.default(object);
    }

    fn prepare_for_update(&self, context: &Context<'_>, object: &mut Value, old: &Value) {
        match context.subresource {
            "status" => generic::keep_all_but_status(object, old),
            "finalize" => {
                generic::keep_member(object, old, "status");
            }
            _ => {
                generic::keep_member(object, old, "status");
                let kept = value::get(old, &["spec", "finalizers"]).cloned();
                match kept {
                    Some(kept) => {
                        value::set(object, &["spec", "finalizers"], kept);
                    }
                    None => {
                        value::remove(object, &["spec", "finalizers"]);
                    }
                }
            }
        }
    }

    fn holds_deletion(&self, object: &Value) -> bool {
        !value::items(object, &["spec", "finalizers"]).is_empty()
    }

    fn deletion_begins(&self, object: &mut Value) {
        value::set(object, &["status", "phase"], "Terminating");
        value::remove(object, &["metadata", "deletionGracePeriodSeconds"]);
    }
}
