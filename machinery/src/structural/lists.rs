//! Lists whose items must differ, or differ by their keys (upstream `schema/listtype`).

use std::collections::HashMap;

use serde_json::json;

use super::{Additional, ListKind, Structural};
use crate::status::field::{FieldError, Path};
use crate::value::Value;

/// Finds items that occur again in sets, and keys that occur again in maps.
pub fn validate_lists(value: &Value, schema: &Structural, path: &Path) -> Vec<FieldError> {
    let mut found = Vec::new();
    walk(value, schema, path, &mut found);
    found
}

fn walk(value: &Value, schema: &Structural, path: &Path, found: &mut Vec<FieldError>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                if let Some(property) = schema.properties.get(name.as_str()) {
                    if !member.is_array() && !member.is_object() {
                        continue;
                    }
                    walk(member, property, &path.child(name), found);
                } else if let Some(Additional::Schema(below)) = &schema.additional {
                    walk(member, below, &path.key(name), found);
                }
            }
        }
        Value::Array(items) => {
            match schema.list {
                ListKind::Set => {
                    let keys: Vec<Value> = items.clone();
                    for index in repeated(&keys) {
                        found.push(FieldError::duplicate(
                            &path.index(index),
                            items[index].clone(),
                        ));
                    }
                }
                ListKind::Map => validate_map(items, schema, path, found),
                ListKind::Atomic => {}
            }
            if let Some(below) = &schema.items {
                for (index, item) in items.iter().enumerate() {
                    walk(item, below, &path.index(index), found);
                }
            }
        }
        _ => {}
    }
}

fn validate_map(items: &[Value], schema: &Structural, path: &Path, found: &mut Vec<FieldError>) {
    if let Some((index, item)) = items
        .iter()
        .enumerate()
        .find(|(_, item)| !item.is_object() && !item.is_null())
    {
        found.push(FieldError::invalid(
            &path.index(index),
            item.clone(),
            "must be an object for an array of list-type map",
        ));
        return;
    }
    let keys: Vec<Value> = items
        .iter()
        .map(|item| {
            let mut key = json!({});
            for name in &schema.list_keys {
                if let Some(value) = item.get(&**name) {
                    key[&**name] = value.clone();
                }
            }
            key
        })
        .collect();
    for index in repeated(&keys) {
        found.push(FieldError::duplicate(
            &path.index(index),
            keys[index].clone(),
        ));
    }
}

/// Where values occur for the second time; further occurrences are not told.
fn repeated(values: &[Value]) -> Vec<usize> {
    let mut seen: HashMap<String, usize> = HashMap::with_capacity(values.len());
    let mut out = Vec::new();
    for (index, value) in values.iter().enumerate() {
        let times = seen.entry(value.to_string()).or_default();
        *times += 1;
        if *times == 2 {
            out.push(index);
        }
    }
    out
}
