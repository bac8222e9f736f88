//! JSON merge patch (RFC 7386).

use super::{PatchError, json_type};
use crate::value::{Object, Value};

/// Applies `patch`, an object, to `document`: null deletes, objects are merged, all else replaces.
pub fn merge_patch(mut document: Value, patch: &Value) -> Result<Value, PatchError> {
    let patch = match patch {
        Value::Object(patch) => patch,
        Value::Null => return Err(PatchError::Malformed("Invalid JSON Patch".to_owned())),
        other => {
            return Err(PatchError::Malformed(format!(
                "error decoding patch: json: cannot unmarshal {} into Go value of type map[string]interface {{}}",
                json_type(other)
            )));
        }
    };
    match &mut document {
        Value::Object(members) => {
            merge(members, patch);
            Ok(document)
        }
        _ => Ok(pruned(&Value::Object(patch.clone()))),
    }
}

fn merge(document: &mut Object, patch: &Object) {
    for (key, value) in patch {
        match (document.get_mut(key), value) {
            (_, Value::Null) => {
                document.remove(key);
            }
            (Some(Value::Object(members)), Value::Object(patch)) => merge(members, patch),
            // Upstream takes a list or scalar that replaces an object as it is, nulls within included.
            (Some(Value::Object(_)), other) => {
                document.insert(key.clone(), other.clone());
            }
            (_, other) => {
                document.insert(key.clone(), pruned(other));
            }
        }
    }
}

/// `value` without members that are null; null items of lists stay.
fn pruned(value: &Value) -> Value {
    match value {
        Value::Object(members) => members
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key.clone(), pruned(value)))
            .collect::<Object>()
            .into(),
        Value::Array(items) => items.iter().map(pruned).collect(),
        other => other.clone(),
    }
}
