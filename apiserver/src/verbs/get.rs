//! `get`: one object.

use keelson_machinery::status::ApiError;
use keelson_store::Revision;

use super::Call;
use super::respond::{self, Item};
use crate::body::Response;
use crate::cache::types::Freshness;
use crate::registry::store::cache_error;

/// Answers with the object.
pub async fn get(call: &mut Call) -> Result<Response, ApiError> {
    let output = call.output()?;
    let item = read(call).await?;
    respond::object(call, &output, http::StatusCode::OK, item)
}

/// Reads the object that the call names, as fresh as its `resourceVersion` asks.
pub async fn read(call: &Call) -> Result<Item, ApiError> {
    let freshness = match call.query.text("resourceVersion") {
        None => Freshness::Latest,
        Some("0") => Freshness::Any,
        Some(text) => Freshness::NotOlderThan(parse_revision(text)?),
    };
    let cache = call
        .server
        .storage
        .caches
        .cache(&call.served.storage_resource())
        .map_err(|e| cache_error(&e))?;
    let entry = cache
        .get(call.namespace(), &call.info.name, freshness)
        .await
        .map_err(|e| cache_error(&e))?
        .ok_or_else(|| ApiError::not_found(&call.group_resource(), &call.info.name))?;
    Item::of_entry(&call.served, &entry).await
}

/// A client's resourceVersion as a revision; the error is worded as upstream's `ParseResourceVersion`.
pub fn parse_revision(text: &str) -> Result<Revision, ApiError> {
    use keelson_machinery::meta::GroupKind;
    use keelson_machinery::status::field::{FieldError, Path};
    text.parse().map_err(|_| {
        ApiError::invalid(
            &GroupKind::default(),
            "",
            vec![FieldError::invalid(
                &Path::new("resourceVersion"),
                text,
                format!("strconv.ParseUint: parsing {text:?}: invalid syntax"),
            )],
        )
    })
}
