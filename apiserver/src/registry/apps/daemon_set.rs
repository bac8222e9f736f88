//! DaemonSets: the generation of the template, which `apps/v1` carries as an annotation
//! (upstream `pkg/registry/apps/daemonset`, `Convert_apps_DaemonSet_To_v1_DaemonSet`).

use keelson_machinery::meta;
use keelson_machinery::value::{self, Value};

use crate::registry::generic;
use crate::registry::strategy::{Context, Strategy};

/// Strategy of DaemonSets.
pub struct DaemonSet;

const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

fn template_generation(object: &Value) -> i64 {
    meta::annotation(object, TEMPLATE_GENERATION)
        .and_then(|text| text.parse().ok())
        .unwrap_or(0)
}

fn set_template_generation(object: &mut Value, generation: i64) {
    let path = ["metadata", "annotations", TEMPLATE_GENERATION];
    value::set(object, &path, generation.to_string());
}

impl Strategy for DaemonSet {
    fn prepare_for_create(&self, context: &Context<'_>, object: &mut Value) {
        generic::prepare_for_create(context, object);
        let generation = template_generation(object).max(1);
        set_template_generation(object, generation);
    }

    fn prepare_for_update(&self, context: &Context<'_>, object: &mut Value, old: &Value) {
        generic::prepare_for_update(context, object, old);
        let template = ["spec", "template"];
        let changed = value::get(object, &template) != value::get(old, &template);
        set_template_generation(object, template_generation(old) + i64::from(changed));
    }
}
