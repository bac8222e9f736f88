//! Endpoint slices: a change of labels is a new generation (upstream `pkg/registry/discovery/endpointslice`).

use keelson_machinery::meta;
use keelson_machinery::value::{self, Value};

use super::defaults::for_items;
use super::generic;
use super::strategy::{Context, Strategy};

/// Strategy of endpoint slices.
pub struct EndpointSlice;

impl Strategy for EndpointSlice {
    fn prepare_for_create(&self, context: &Context<'_>, object: &mut Value) {
        generic::prepare_for_create(context, object);
        drop_topology(object);
    }

    fn prepare_for_update(&self, context: &Context<'_>, object: &mut Value, old: &Value) {
        if object.get("endpoints") != old.get("endpoints") {
            drop_topology(object);
        }
        generic::prepare_for_update(context, object, old);
        let labels = ["metadata", "labels"];
        let generation = meta::generation(old);
        if meta::generation(object) == generation
            && !value::semantic_eq(value::get(object, &labels), value::get(old, &labels))
        {
            meta::set(object, "generation", generation + 1);
        }
    }
}

/// `discovery.k8s.io/v1` takes no topology of the older version (upstream `dropTopologyOnV1`).
fn drop_topology(object: &mut Value) {
    for_items(object, &["endpoints"], |endpoint| {
        value::remove(endpoint, &["deprecatedTopology"]);
    });
}
