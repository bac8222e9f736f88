//! Rows and columns for `kubectl get`.

use keelson_machinery::clock::Clock;
use keelson_machinery::meta;
use serde_json::{Value, json};

use crate::registry::Served;

/// The column definitions and one row (without its object) for each object.
pub fn rows(served: &Served, objects: &[Value], clock: &Clock) -> (Value, Vec<Value>) {
    let _ = (served, clock);
    let columns = json!([
        {"name": "Name", "type": "string", "format": "name", "description": "Name must be unique within a namespace.", "priority": 0},
        {"name": "Created At", "type": "date", "format": "", "description": "When the object was created.", "priority": 0},
    ]);
    let rows = objects
        .iter()
        .map(|object| json!({"cells": [meta::name(object), meta::creation_timestamp(object)]}))
        .collect();
    (columns, rows)
}
