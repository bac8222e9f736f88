//! Replication controllers: pods outlive them unless the client says otherwise
//! (upstream `pkg/registry/core/replicationcontroller`).

use crate::registry::strategy::{GarbageCollection, Strategy};

/// Strategy of replication controllers.
pub struct ReplicationController;

impl Strategy for ReplicationController {
    fn garbage_collection(&self) -> GarbageCollection {
        GarbageCollection::Orphan
    }
}
