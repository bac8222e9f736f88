//! Tables of custom resources: the columns of their definition, read by JSON path (upstream
//! `registry/customresource/tableconvertor`).

use jiff::Timestamp;
use keelson_machinery::jsonpath::JsonPath;
use keelson_machinery::meta;
use keelson_machinery::value::{self, Object, Value};
use serde_json::json;

use super::definition::{Column, Version};
use crate::table::{self, IncludeObject, Options};

/// What upstream's documents say of `metadata.name`.
const NAME: &str = "Name must be unique within a namespace. Is required when creating resources, although some resources may allow a client to request the generation of an appropriate name automatically. Name is primarily intended for creation idempotence and configuration definition. Cannot be updated. More info: https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names";

/// The columns beside the name.
#[derive(Debug, Default)]
pub struct Columns(Vec<(Column, JsonPath)>);

impl Columns {
    /// Those of a version; the age when it has none of its own. A path that cannot be read ends them, as upstream.
    pub fn of(version: &Version) -> Columns {
        let own = &version.additional_printer_columns;
        let age = [Column {
            name: "Age".to_string(),
            kind: "date".to_string(),
            format: String::new(),
            description: "CreationTimestamp is a timestamp representing the server time when this object was created. It is not guaranteed to be set in happens-before order across separate operations. Clients may not set this value. It is represented in RFC3339 form and is in UTC.\n\nPopulated by the system. Read-only. Null for lists. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata".to_string(),
            priority: 0,
            json_path: ".metadata.creationTimestamp".to_string(),
        }];
        let columns = if own.is_empty() { &age[..] } else { own };
        let readable = columns
            .iter()
            .map_while(|column| Some((column.clone(), JsonPath::parse(&column.json_path).ok()?)));
        Columns(readable.collect())
    }

    /// The Table of `objects`.
    pub fn table(
        &self,
        objects: &[Value],
        metadata: Object,
        now: Timestamp,
        options: &Options,
    ) -> Value {
        let columns = match options.no_headers {
            true => Value::Null,
            false => self.definitions(),
        };
        let rows: Vec<Value> = objects
            .iter()
            .map(|object| self.row(object, now, options))
            .collect();
        json!({
            "kind": "Table",
            "apiVersion": options.api_version,
            "metadata": metadata,
            "columnDefinitions": columns,
            "rows": rows,
        })
    }

    fn definitions(&self) -> Value {
        let mut all = vec![json!({
            "name": "Name", "type": "string", "format": "name", "description": NAME, "priority": 0,
        })];
        for (column, _) in &self.0 {
            let description = match column.description.as_str() {
                "" => format!(
                    "Custom resource definition column (in JSONPath format): {}",
                    column.json_path
                ),
                own => own.to_string(),
            };
            all.push(json!({
                "name": column.name,
                "type": column.kind,
                "format": column.format,
                "description": description,
                "priority": column.priority,
            }));
        }
        Value::Array(all)
    }

    fn row(&self, object: &Value, now: Timestamp, options: &Options) -> Value {
        let mut cells = vec![Value::from(meta::name(object))];
        for (column, path) in &self.0 {
            let found = path.find(object).unwrap_or_default();
            cells.push(
                found
                    .first()
                    .map_or(Value::Null, |found| cell(&column.kind, found, now)),
            );
        }
        let included = match options.include {
            IncludeObject::None => Value::Null,
            IncludeObject::Metadata => table::partial_metadata(object, options.api_version),
            IncludeObject::Object => object.clone(),
        };
        let mut row = json!({ "cells": cells });
        value::set(&mut row, &["object"], included);
        row
    }
}

/// What a cell of a type shows of a value; null when it is of another type.
fn cell(kind: &str, found: &Value, now: Timestamp) -> Value {
    match (kind, found) {
        (_, Value::Null) if kind != "string" => Value::Null,
        ("string", Value::String(text)) => text.as_str().into(),
        ("string", Value::Null) => Value::Null,
        ("string", other) => keelson_machinery::text::go_json(other).into(),
        ("integer", Value::Number(number)) => match number.as_i64() {
            Some(whole) => whole.into(),
            None => number.as_f64().map_or(Value::Null, |n| (n as i64).into()),
        },
        ("number", Value::Number(_)) | ("boolean", Value::Bool(_)) => found.clone(),
        ("date", Value::String(text)) => table::age(text, now).into(),
        _ => Value::Null,
    }
}
