//! How the server's own filters (authorizers, admission plugins, authenticators) read stored objects:
//! from the same cache that answers clients, without a request.

use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;
pub use keelson_machinery::meta::GroupResource;
use keelson_machinery::status::ApiError;
use keelson_machinery::value::Value;

/// A change of a stored object, as [`ObjectReader::changes`] delivers it.
#[derive(Clone, Debug)]
pub enum Change {
    /// The object exists in this state (sent for every object at first, then for each create and update).
    Applied(Arc<Value>),
    /// The object is gone; carries its last state.
    Deleted(Arc<Value>),
    /// All objects that existed when the stream began have been delivered.
    Synced,
}

/// Read access to stored objects in their storage version. A failed read is an error, never "not found".
#[async_trait]
pub trait ObjectReader: Send + Sync + 'static {
    /// The object, or `None` when it does not exist. `namespace` is empty for cluster-scoped resources.
    async fn get(
        &self,
        resource: &GroupResource,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Value>>, ApiError>;
    /// All objects, or those of one namespace.
    async fn list(
        &self,
        resource: &GroupResource,
        namespace: Option<&str>,
    ) -> Result<Vec<Arc<Value>>, ApiError>;
    /// Present state, then every change, for ever; resumes by itself after a lost watch (then `Synced` comes again,
    /// and objects that vanished in between are reported as `Deleted`).
    fn changes(&self, resource: &GroupResource) -> BoxStream<'static, Change>;
}
