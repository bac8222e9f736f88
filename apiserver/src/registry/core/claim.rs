//! Persistent volume claims: born pending; the two ways to name a data source follow each other
//! (upstream `pkg/registry/core/persistentvolumeclaim`, `pkg/api/persistentvolumeclaim`).

use keelson_machinery::value::{self, Value};
use serde_json::json;

use crate::registry::generic;
use crate::registry::strategy::{Context, Strategy};

/// Strategy of persistent volume claims.
pub struct PersistentVolumeClaim;

impl Strategy for PersistentVolumeClaim {
    fn prepare_for_create(&self, _: &Context<'_>, object: &mut Value) {
        value::set(object, &["status"], json!({"phase": "Pending"}));
        data_sources(object, None);
    }

    fn prepare_for_update(&self, context: &Context<'_>, object: &mut Value, old: &Value) {
        generic::prepare_for_update(context, object, old);
        if context.subresource.is_empty() {
            data_sources(object, Some(old));
        }
    }
}

const SOURCE: [&str; 2] = ["spec", "dataSource"];
const SOURCE_REF: [&str; 2] = ["spec", "dataSourceRef"];

/// Drops what `dataSource` never allowed, and makes `dataSource` and `dataSourceRef` agree where one is absent.
fn data_sources(object: &mut Value, old: Option<&Value>) {
    let in_use = old.is_some_and(|old| {
        value::get(old, &SOURCE).is_some() || value::get(old, &SOURCE_REF).is_some()
    });
    let reference = value::get(object, &SOURCE_REF).cloned();
    if !in_use
        && reference.is_none()
        && let Some(source) = value::get(object, &SOURCE)
    {
        let known = matches!(
            (
                value::str_or_empty(source, &["apiGroup"]),
                value::str_or_empty(source, &["kind"])
            ),
            ("", "PersistentVolumeClaim") | ("snapshot.storage.k8s.io", "VolumeSnapshot")
        );
        if !known {
            value::remove(object, &SOURCE);
        }
    }
    match (value::get(object, &SOURCE).cloned(), reference) {
        (Some(source), None) => {
            value::set(object, &SOURCE_REF, source);
        }
        (None, Some(mut reference))
            if value::str_or_empty(&reference, &["namespace"]).is_empty() =>
        {
            value::remove(&mut reference, &["namespace"]);
            value::set(object, &SOURCE, reference);
        }
        _ => {}
    }
}
