//! Which resource has which [`Strategy`]: one line for each that is not plain.

use std::sync::Arc;

use super::core;
use super::core::allocator::Allocator;
use super::strategy::Strategy;

/// What strategies share with the server.
pub struct Settings {
    /// Service addresses and node ports.
    pub services: Arc<Allocator>,
    /// Seconds after which events are forgotten.
    pub event_ttl_seconds: u64,
}

/// The plain strategy: all defaults.
pub struct Plain;

impl Strategy for Plain {}

/// The strategy of a group and resource.
pub fn lookup(group: &str, resource: &str, settings: &Settings) -> Arc<dyn Strategy> {
    match (group, resource) {
        ("", "events") => Arc::new(core::event::Event {
            ttl_seconds: settings.event_ttl_seconds,
        }),
        ("", "namespaces") => Arc::new(core::namespace::Namespace),
        ("", "pods") => Arc::new(core::pod::Pod),
        ("", "services") => Arc::new(core::service::Service {
            allocator: settings.services.clone(),
        }),
        _ => Arc::new(Plain),
    }
}
