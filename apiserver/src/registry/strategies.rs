//! Which resource has which [`Strategy`]: one line for each that is not plain.

use std::sync::Arc;

use super::core;
use super::strategy::Strategy;

/// The plain strategy: all defaults.
pub struct Plain;

impl Strategy for Plain {}

/// The strategy of a group and resource.
pub fn lookup(group: &str, resource: &str) -> Arc<dyn Strategy> {
    match (group, resource) {
        ("", "namespaces") => Arc::new(core::namespace::Namespace),
        ("", "pods") => Arc::new(core::pod::Pod),
        _ => Arc::new(Plain),
    }
}
