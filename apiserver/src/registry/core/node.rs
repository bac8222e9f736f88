//! Nodes: the status comes from the kubelet, also at the creation (upstream `pkg/registry/core/node`).

use keelson_machinery::value::Value;

use crate::registry::strategy::{Context, Strategy};

/// Strategy of nodes.
pub struct Node;

impl Strategy for Node {
    fn prepare_for_create(&self, _: &Context<'_>, _: &mut Value) {}
}
