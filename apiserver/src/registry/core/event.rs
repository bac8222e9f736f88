//! Events: forgotten after a time, and no part of garbage collection (upstream `pkg/registry/core/event`).

use keelson_machinery::value::Value;

use crate::registry::strategy::{Context, GarbageCollection, Strategy};

/// Strategy of events.
pub struct Event {
    /// Seconds until an event is forgotten, counted from its last change.
    pub ttl_seconds: u64,
}

impl Strategy for Event {
    fn garbage_collection(&self) -> GarbageCollection {
        GarbageCollection::Unsupported
    }

    fn ttl_seconds(&self, _: &Context<'_>, _: &Value) -> Option<u64> {
        Some(self.ttl_seconds)
    }
}
