//! Deployments: a change of annotations is a new generation (upstream `pkg/registry/apps/deployment`).

use keelson_machinery::meta;
use keelson_machinery::value::{self, Value};

use crate::registry::generic;
use crate::registry::strategy::{Context, Strategy};

/// Strategy of Deployments.
pub struct Deployment;

impl Strategy for Deployment {
    fn prepare_for_update(&self, context: &Context<'_>, object: &mut Value, old: &Value) {
        generic::prepare_for_update(context, object, old);
        if context.subresource == "status" {
            match value::get(old, &["metadata", "labels"]).cloned() {
                Some(labels) => meta::set(object, "labels", labels),
                None => meta::remove(object, "labels").is_some(),
            };
            return;
        }
        let annotations = ["metadata", "annotations"];
        let changed = !value::semantic_eq(
            value::get(object, &annotations),
            value::get(old, &annotations),
        );
        let generation = meta::generation(old);
        if changed && meta::generation(object) == generation {
            meta::set(object, "generation", generation + 1);
        }
    }
}
