//! `list`: the objects of a resource, from one snapshot, page by page.

use keelson_machinery::status::ApiError;

use super::Call;
use super::get::parse_revision;
use super::options::ListOptions;
use super::respond::{self, ListHead};
use super::selection::selection;
use crate::body::Response;
use crate::cache::types::{CacheError, Freshness, ListPage, Paging};
use crate::extensions::conversion;
use crate::registry::store::cache_error;

/// Answers with the list.
pub async fn list(call: &mut Call) -> Result<Response, ApiError> {
    let output = call.output()?;
    let options = ListOptions::read(&call.query, false)?;
    let page = match page(call, &options).await? {
        Ok(page) => page,
        Err(CacheError::ContinueExpired { token }) => {
            // The one error whose Status carries list metadata: a token to go on inconsistently.
            let error = ApiError::resource_expired(
                CacheError::ContinueExpired {
                    token: token.clone(),
                }
                .to_string(),
            );
            let mut status = error.to_value();
            status["metadata"] = serde_json::json!({ "continue": token });
            return Ok(respond::status(&output, error.code, &status, 0));
        }
        Err(error) => return Err(cache_error(&error)),
    };
    let head = ListHead {
        resource_version: page.revision.to_string(),
        next: page.next,
        remaining: page.remaining,
    };
    if let Some(custom) = call.served.custom.clone()
        && !page
            .items
            .iter()
            .all(|entry| conversion::is_ready(&call.served, entry))
    {
        let objects = conversion::entries_to_working(&custom, &page.items).await?;
        return respond::list_of_values(call, &output, &head, objects);
    }
    respond::list(call, &output, &head, &page.items)
}

/// Reads a page. The outer error is the client's, the inner one the cache's.
pub async fn page(
    call: &Call,
    options: &ListOptions,
) -> Result<Result<ListPage, CacheError>, ApiError> {
    let selection = selection(call, options)?;
    let freshness = freshness(options)?;
    let paging = Paging {
        limit: usize::try_from(options.limit).unwrap_or(0),
        continue_token: Some(options.continue_token.clone()).filter(|token| !token.is_empty()),
    };
    if paging.continue_token.is_some() && !matches!(options.resource_version.as_str(), "" | "0") {
        return Err(ApiError::bad_request(
            "specifying resource version is not allowed when using continue",
        ));
    }
    let cache = match call
        .server
        .storage
        .caches
        .cache(&call.served.storage_resource())
    {
        Ok(cache) => cache,
        Err(error) => return Ok(Err(error)),
    };
    Ok(cache.list(&selection, freshness, paging).await)
}

/// How fresh a list must be, by `resourceVersion` and `resourceVersionMatch`.
fn freshness(options: &ListOptions) -> Result<Freshness, ApiError> {
    let text = options.resource_version.as_str();
    Ok(match (text, options.resource_version_match.as_str()) {
        ("", _) => Freshness::Latest,
        ("0", _) => Freshness::Any,
        (text, "Exact") => Freshness::Exact(parse_revision(text)?),
        // Unset: upstream reads exactly for pages, at least so new otherwise.
        (text, "") if options.limit > 0 => Freshness::Exact(parse_revision(text)?),
        (text, _) => Freshness::NotOlderThan(parse_revision(text)?),
    })
}
