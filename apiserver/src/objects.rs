//! A short hand for reading stored objects from filters: names in, object or a proper error out.

use std::sync::Arc;

use keelson_machinery::status::ApiError;
use keelson_machinery::value::Value;

use crate::reader::{GroupResource, ObjectReader};

/// A cheap handle to an [`ObjectReader`].
#[derive(Clone)]
pub struct Objects(pub Arc<dyn ObjectReader>);

impl Objects {
    /// The object, or `None` when it does not exist.
    pub async fn find(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Value>>, ApiError> {
        self.0
            .get(&GroupResource::new(group, resource), namespace, name)
            .await
    }

    /// The object, or 404.
    pub async fn get(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Arc<Value>, ApiError> {
        self.find(group, resource, namespace, name)
            .await?
            .ok_or_else(|| ApiError::not_found(&GroupResource::new(group, resource), name))
    }

    /// All objects, or those of one namespace.
    pub async fn list(
        &self,
        group: &str,
        resource: &str,
        namespace: Option<&str>,
    ) -> Result<Vec<Arc<Value>>, ApiError> {
        self.0
            .list(&GroupResource::new(group, resource), namespace)
            .await
    }
}
