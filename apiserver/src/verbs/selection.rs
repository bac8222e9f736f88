//! Label and field selectors of a list or watch as a [`Selection`] of the cache.

use keelson_machinery::selector::{FieldSelector, LabelSelector};
use keelson_machinery::status::ApiError;

use super::Call;
use super::options::ListOptions;
use crate::cache::types::{CacheSpecs, Selection};

/// Builds the selection of a call. A name in the request (the old watch of one object) selects like one in the field
/// selector, and must not contradict it.
pub fn selection(call: &Call, options: &ListOptions) -> Result<Selection, ApiError> {
    let bad_request = |e: &dyn std::fmt::Display| ApiError::bad_request(e.to_string());
    let labels = match options.label_selector.as_deref() {
        None => LabelSelector::everything(),
        Some(text) => LabelSelector::parse(text).map_err(|e| bad_request(&e))?,
    };
    let fields = match options.field_selector.as_deref() {
        None => FieldSelector::everything(),
        Some(text) => FieldSelector::parse(text).map_err(|e| bad_request(&e))?,
    };
    if let Some(custom) = &call.served.custom
        && let Some(unknown) = fields
            .requirements()
            .iter()
            .find(|requirement| !custom.is_selectable(&requirement.field))
    {
        return Err(ApiError::bad_request(format!(
            "field label not supported: {}",
            unknown.field
        )));
    }
    let spec = call
        .server
        .registry
        .spec(&call.served.storage_resource())
        .ok_or_else(ApiError::no_such_resource)?;
    let name = call.info.name.as_str();
    if !name.is_empty() && !fields.is_everything() && fields.exact("metadata.name") != Some(name) {
        return Err(ApiError::bad_request(
            "fieldSelector metadata.name doesn't match requested name",
        ));
    }
    let namespace = Some(call.namespace()).filter(|namespace| !namespace.is_empty());
    let mut selection = Selection::new(&spec, &call.info.group, namespace, &labels, &fields)
        .map_err(ApiError::bad_request)?;
    if !name.is_empty() {
        selection.name = Some(name.to_string());
    }
    Ok(selection)
}
