//! Between the versions of a custom resource (upstream `apiextensions-apiserver/pkg/apiserver/conversion`).

use std::sync::Arc;

use keelson_machinery::status::ApiError;
use keelson_machinery::structural;
use keelson_machinery::value::{self, Value};

use super::Custom;
use super::definition::{Conversion, Shared};
use super::webhook::Webhook;
use crate::cache::types::Entry;
use crate::registry::Served;
use crate::registry::store::cache_error;

/// Converts objects of one definition.
pub enum Converter {
    /// Versions differ only in name.
    None,
    /// A webhook converts.
    Webhook(Arc<Webhook>),
}

impl Converter {
    /// The converter that a definition asks for; `webhooks` makes clients.
    pub fn new(definition: &Shared, webhooks: &super::webhook::Webhooks) -> Converter {
        match &definition.conversion {
            Conversion::None => Converter::None,
            Conversion::Webhook {
                client,
                review_versions,
            } => Converter::Webhook(Arc::new(Webhook::new(
                webhooks.clone(),
                definition.name.clone(),
                client.clone(),
                review_versions.clone(),
            ))),
        }
    }
}

/// Objects in the version `to` of their definition. Those that are in it already stay as they are.
pub async fn convert(
    custom: &Custom,
    mut objects: Vec<Value>,
    to: &str,
) -> Result<Vec<Value>, ApiError> {
    let wanted = format!("{}/{to}", custom.definition.group);
    let other = |object: &Value| value::str_or_empty(object, &["apiVersion"]) != wanted;
    if !objects.iter().any(other) {
        return Ok(objects);
    }
    for object in &objects {
        let api_version = value::str_or_empty(object, &["apiVersion"]);
        let known = api_version
            .strip_prefix(custom.definition.group.as_str())
            .and_then(|rest| rest.strip_prefix('/'))
            .is_some_and(|from| custom.definition.versions.iter().any(|v| v.name == from));
        if !known {
            return Err(ApiError::internal(format!(
                "request to convert CR from an invalid group/version: {api_version}"
            )));
        }
    }
    let changed: Vec<bool> = objects.iter().map(other).collect();
    match &*custom.converter {
        Converter::None => {
            for object in &mut objects {
                value::set(object, &["apiVersion"], wanted.as_str());
            }
        }
        Converter::Webhook(webhook) => {
            objects = webhook.convert(objects, &wanted).await?;
        }
    }
    if let Some(schema) = custom.definition.schema(to)
        && !custom.definition.preserve_unknown
    {
        for (object, _) in objects
            .iter_mut()
            .zip(changed)
            .filter(|(_, changed)| *changed)
        {
            structural::prune(object, schema, false);
            structural::drop_nulls(object, schema);
        }
    }
    Ok(objects)
}

/// One object in the version of `served`, when it is a custom resource; others stay in the storage version.
pub async fn to_working(served: &Served, object: Value) -> Result<Value, ApiError> {
    let Some(custom) = &served.custom else {
        return Ok(object);
    };
    one(convert(custom, vec![object], &custom.version).await?)
}

/// One object in the version that is stored.
pub async fn to_stored(served: &Served, object: Value) -> Result<Value, ApiError> {
    let Some(custom) = &served.custom else {
        return Ok(object);
    };
    one(convert(custom, vec![object], &custom.definition.storage_version).await?)
}

fn one(objects: Vec<Value>) -> Result<Value, ApiError> {
    objects
        .into_iter()
        .next()
        .ok_or_else(|| ApiError::internal("a conversion lost its object"))
}

/// Whether an entry's bytes are what clients of `served` get, but for what all versions of built-in kinds share.
pub fn is_ready(served: &Served, entry: &Entry) -> bool {
    match &served.custom {
        Some(custom) => custom.is_in_version(entry.json()),
        None => true,
    }
}

/// Objects of entries in the version of `served`; only for custom resources.
pub async fn entries_to_working(
    custom: &Custom,
    entries: &[Arc<Entry>],
) -> Result<Vec<Value>, ApiError> {
    let mut objects = Vec::with_capacity(entries.len());
    for entry in entries {
        objects.push(entry.value().map_err(|e| cache_error(&e))?);
    }
    convert(custom, objects, &custom.version).await
}
