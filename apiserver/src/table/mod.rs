//! Objects as rows of a `meta.k8s.io` Table, with the columns and cells of upstream's printers
//! (`pkg/printers/internalversion/printers.go`). Pure: from a resource, its objects and the time to a Table.
//!
//! What a cell shows stands in [`printers`] as data; only what is no plain field is a function, in the modules by topic.

mod cell;
mod config;
mod network;
mod pod;
mod printers;
mod storage;
mod workloads;

use jiff::Timestamp;
use keelson_machinery::catalog::{Column, Resource, columns};
use keelson_machinery::status::ApiError;
use keelson_machinery::status::field::{FieldError, Path};
use keelson_machinery::value::{self, Object, Value};
use keelson_machinery::{meta, time};
use serde_json::json;

use cell::{Cell, Context};
use printers::Printer;

/// Marks the bookmark that ends the initial events of a watch (upstream `InitialEventsAnnotationKey`).
pub const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// What each row carries of its object (`includeObject`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IncludeObject {
    /// Nothing.
    None,
    /// Its metadata, as a PartialObjectMetadata.
    #[default]
    Metadata,
    /// All of it.
    Object,
}

impl IncludeObject {
    /// Reads the query parameter; absent and empty mean [`IncludeObject::Metadata`].
    pub fn parse(text: Option<&str>) -> Result<Self, ApiError> {
        match text.unwrap_or_default() {
            "" | "Metadata" => Ok(IncludeObject::Metadata),
            "None" => Ok(IncludeObject::None),
            "Object" => Ok(IncludeObject::Object),
            other => {
                let error = FieldError::invalid(
                    &Path::new("includeObject"),
                    other,
                    "must be 'Metadata', 'Object', 'None', or empty",
                );
                Err(ApiError::bad_request(format!(
                    "Unable to convert to Table as requested: {error}"
                )))
            }
        }
    }
}

/// How a Table is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// What each row carries of its object.
    pub include: IncludeObject,
    /// Leave out the column definitions: every event of a watch but the first.
    pub no_headers: bool,
    /// `meta.k8s.io/v1` or `meta.k8s.io/v1beta1`, as the client asked.
    pub api_version: &'static str,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            include: IncludeObject::default(),
            no_headers: false,
            api_version: "meta.k8s.io/v1",
        }
    }
}

/// The Table of a list of `resource` (or of its `subresource`). `list_metadata` is the list's own `metadata`.
pub fn of_list<'a>(
    resource: &Resource,
    subresource: Option<&str>,
    objects: impl IntoIterator<Item = &'a Value>,
    list_metadata: Object,
    now: Timestamp,
    options: &Options,
) -> Value {
    let printer = printers::of(resource, subresource);
    let context = Context { now };
    let rows: Vec<Value> = objects
        .into_iter()
        .map(|object| row(printer, resource, object, &context, options))
        .collect();
    // A Go slice that was never made is null; without headers upstream leaves the columns so.
    let columns = match options.no_headers {
        true => Value::Null,
        false => printer_columns(printer).map(definition).collect(),
    };
    let mut metadata = list_metadata;
    metadata.retain(|name, value| {
        matches!(
            name.as_str(),
            "resourceVersion" | "continue" | "remainingItemCount"
        ) && !value::is_empty(value)
    });
    json!({
        "kind": "Table",
        "apiVersion": options.api_version,
        "metadata": metadata,
        "columnDefinitions": columns,
        "rows": rows,
    })
}

/// The Table of one object: an answer to `get`, or the object of a watch event.
pub fn of_object(
    resource: &Resource,
    subresource: Option<&str>,
    object: &Value,
    now: Timestamp,
    options: &Options,
) -> Value {
    let mut metadata = Object::new();
    let version = meta::resource_version(object);
    if !version.is_empty() {
        metadata.insert("resourceVersion".to_owned(), version.into());
    }
    of_list(resource, subresource, [object], metadata, now, options)
}

/// `object` cut down to its metadata; `api_version` is that of `meta.k8s.io` which the client asked for.
pub fn partial_metadata(object: &Value, api_version: &str) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": api_version,
        "metadata": object.get("metadata").cloned().unwrap_or_else(|| json!({})),
    })
}

fn row(
    printer: &Printer,
    resource: &Resource,
    object: &Value,
    context: &Context,
    options: &Options,
) -> Value {
    let cells: Vec<Value> = printer
        .cells
        .iter()
        .map(|cell| cell.show(object, context))
        .collect();
    let mut row = json!({ "cells": cells });
    if let Some(conditions) = (printer.conditions)(object) {
        value::set(&mut row, &["conditions"], conditions);
    }
    // The end of the initial events of a watch is told by an annotation, which a row must not lose.
    let tells = value::get(object, &["metadata", "annotations", INITIAL_EVENTS_END]).is_some();
    let included = match options.include {
        IncludeObject::None if !tells => Value::Null,
        IncludeObject::None => partial_metadata(object, options.api_version),
        IncludeObject::Metadata => partial_metadata(object, options.api_version),
        IncludeObject::Object => {
            let mut whole = object.clone();
            // Items of stored lists do without their type; a row stands alone.
            if value::get(&whole, &["kind"]).is_none() {
                value::set(&mut whole, &["kind"], resource.kind.as_str());
                value::set(&mut whole, &["apiVersion"], resource.api_version());
            }
            whole
        }
    };
    value::set(&mut row, &["object"], included);
    row
}

fn printer_columns(printer: &Printer) -> impl Iterator<Item = &'static Column> {
    let facts = columns(printer.columns).unwrap_or_default();
    facts.iter().chain(printer.more_columns)
}

fn definition(column: &Column) -> Value {
    json!({
        "name": column.name,
        "type": column.kind,
        "format": column.format,
        "description": "",
        "priority": column.priority,
    })
}

/// The time since `timestamp` as tables show it; `<unknown>` for none.
fn since(timestamp: Option<&str>, now: Timestamp) -> String {
    match timestamp.and_then(parse_time) {
        Some(then) => time::human_duration(time::nanos_between(then, now)),
        None => "<unknown>".to_owned(),
    }
}

/// The time since a timestamp in a column of dates; `<invalid>` for what is none.
pub fn age(text: &str, now: Timestamp) -> String {
    match parse_time(text) {
        Some(_) => since(Some(text), now),
        None => "<invalid>".to_owned(),
    }
}

/// Reads a Time or a MicroTime.
fn parse_time(text: &str) -> Option<Timestamp> {
    time::parse(text).ok()
}

#[cfg(test)]
mod tests;
