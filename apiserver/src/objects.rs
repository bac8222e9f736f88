//! A short hand for reading stored objects from filters: names in, object or a proper error out.

use std::sync::Arc;

use futures::StreamExt;
use keelson_machinery::status::ApiError;
use keelson_machinery::value::Value;
use tokio_util::sync::CancellationToken;

use crate::reader::{Change, GroupResource, ObjectReader};

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

/// Feeds every change of `resources` to `apply` (with the index of the resource) until `shutdown`, or until the
/// streams end. `synced` turns true once the present state of all of them has been delivered.
pub async fn follow(
    objects: Objects,
    resources: Vec<GroupResource>,
    synced: tokio::sync::watch::Sender<bool>,
    shutdown: CancellationToken,
    mut apply: impl FnMut(usize, Change) + Send,
) {
    let mut waiting: Vec<bool> = vec![true; resources.len()];
    let tagged = |(index, resource): (usize, &GroupResource)| {
        objects
            .0
            .changes(resource)
            .map(move |change| (index, change))
            .boxed()
    };
    let mut changes = futures::stream::select_all(resources.iter().enumerate().map(tagged));
    while let Some(Some((index, change))) = shutdown.run_until_cancelled(changes.next()).await {
        if !matches!(change, Change::Synced) {
            apply(index, change);
        } else if std::mem::take(&mut waiting[index]) && !waiting.contains(&true) {
            synced.send_replace(true);
        }
    }
}
