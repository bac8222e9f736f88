//! `delete` and `deletecollection`.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{StreamExt, TryStreamExt};
use http::StatusCode;
use keelson_machinery::status::ApiError;
use keelson_machinery::value::Value;

use super::call::{Admission, Call};
use super::options::{ListOptions, delete_options};
use super::respond::{self, Item, ListHead};
use super::{list, selection};
use crate::admission::Operation;
use crate::body::Response;
use crate::cache::types::{Entry, Freshness, Paging};
use crate::registry::conversion;
use crate::registry::delete::{self as registry, DeleteAdmission, Deleted};
use crate::registry::store::cache_error;
use crate::registry::strategy::DeleteOptions;

/// How many objects of a collection are deleted at the same time.
const COLLECTION_WORKERS: usize = 16;

/// Deletes the object that the call names.
pub async fn delete(call: &mut Call, body: &Bytes) -> Result<Response, ApiError> {
    let output = call.output()?;
    let (options, object) = delete_options(&call.parts.headers, &call.query, body)?;
    let served = call.served.clone();
    let mut admission = DeleteCheck(Admission::new(
        call,
        Operation::Delete,
        &served.row.kind,
        object,
        options.dry_run,
    ));
    let deleted = registry::delete(
        &call.server.storage,
        &call.context(&served, options.dry_run),
        &call.group_resource(),
        call.namespace(),
        &call.info.name,
        &options,
        &mut admission,
    )
    .await?;
    call.warnings.extend(admission.0.into_warnings());
    // Only clients that ask in the old way get to know that it takes longer.
    let stays_code = match options.orphan_dependents {
        Some(false) => StatusCode::ACCEPTED,
        _ => StatusCode::OK,
    };
    let shows_object = served.strategy.returns_deleted_object(&served.row);
    let (stored, code, shows_object) = match deleted {
        Deleted::Gone(stored) => (stored, StatusCode::OK, shows_object),
        Deleted::Marked(stored) => (stored, stays_code, true),
        Deleted::AlreadyDeleting(stored) => (stored, stays_code, shows_object),
    };
    if shows_object {
        return respond::object(call, &output, code, Item::from(&stored));
    }
    respond::deleted_status(call, &output, code, &stored.object)
}

struct DeleteCheck(Admission);

#[async_trait]
impl DeleteAdmission for DeleteCheck {
    async fn validate(&mut self, object: &Arc<Value>) -> Result<(), ApiError> {
        self.0.admit_without_object(Some(object.clone())).await?;
        self.0.validate(None, Some(object.clone())).await
    }
}

/// Deletes all objects that the call selects, and answers with the list of them.
pub async fn delete_collection(call: &mut Call, body: &Bytes) -> Result<Response, ApiError> {
    let output = call.output()?;
    let list_options = ListOptions::read(&call.query, false)?;
    let (options, object) = delete_options(&call.parts.headers, &call.query, body)?;
    let served = call.served.clone();
    let page = if list_options.limit > 0 || !list_options.continue_token.is_empty() {
        list::page(call, &list_options)
            .await?
            .map_err(|e| cache_error(&e))?
    } else {
        let selection = selection::selection(call, &list_options)?;
        call.server
            .storage
            .caches
            .cache(&served.storage_resource())
            .map_err(|e| cache_error(&e))?
            .list(&selection, Freshness::Latest, Paging::default())
            .await
            .map_err(|e| cache_error(&e))?
    };
    let call_ref = &*call;
    let deletions: Vec<_> = page
        .items
        .iter()
        .map(|entry| delete_one(call_ref, entry.clone(), &options, &object))
        .collect();
    // In the order of the list; what others deleted meanwhile is left out.
    let results: Vec<Option<Value>> = futures::stream::iter(deletions)
        .buffered(COLLECTION_WORKERS)
        .try_collect()
        .await?;
    let objects = results.into_iter().flatten().collect();
    let head = ListHead {
        resource_version: page.revision.to_string(),
        next: page.next,
        remaining: page.remaining,
    };
    respond::list_of_values(call, &output, &head, objects)
}

/// Deletes one object of a collection; `None` when it is gone already.
fn delete_one<'a>(
    call: &'a Call,
    entry: Arc<Entry>,
    options: &'a DeleteOptions,
    object: &'a Value,
) -> BoxFuture<'a, Result<Option<Value>, ApiError>> {
    Box::pin(async move {
        let served = &call.served;
        let mut check = DeleteCheck(Admission::new(
            call,
            Operation::Delete,
            &served.row.kind,
            object.clone(),
            options.dry_run,
        ));
        let result = registry::delete(
            &call.server.storage,
            &call.context(served, options.dry_run),
            &call.group_resource(),
            entry.namespace(),
            entry.name(),
            options,
            &mut check,
        )
        .await;
        match result {
            Ok(
                Deleted::Gone(stored) | Deleted::Marked(stored) | Deleted::AlreadyDeleting(stored),
            ) => {
                let shown = conversion::from_storage(served, Value::clone(&stored.object))?;
                Ok(Some(shown))
            }
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    })
}
