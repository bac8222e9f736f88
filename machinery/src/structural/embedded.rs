//! Objects within objects: their kind, apiVersion and metadata are those of every object (upstream
//! `schema/objectmeta`).

use super::Structural;
use crate::codec::json::decode_value;
use crate::codec::{StrictError, Strictness};
use crate::meta::{self, GroupVersion, names};
use crate::schema::{Schema, Type};
use crate::status::field::{FieldError, MAX_FINDINGS, Path};
use crate::value::{self, Value};

/// What to do with metadata that have the wrong type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Say so.
    Refuse,
    /// Leave them out: what was stored long ago stays readable.
    Drop,
}

fn object_meta() -> Option<&'static Type> {
    Schema::builtin().lookup("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta")
}

/// Brings the metadata of one object into their typed form. Returns the names of unknown fields below `metadata`.
pub fn coerce_metadata(
    object: &mut Value,
    malformed: Malformed,
) -> Result<Vec<StrictError>, String> {
    let Some(of) = object_meta() else {
        return Ok(Vec::new());
    };
    let Some(metadata) = object.get_mut("metadata") else {
        return Ok(Vec::new());
    };
    match decode_value(metadata, of, Strictness::Strict) {
        Ok((typed, unknown)) => {
            *metadata = typed;
            Ok(unknown)
        }
        Err(error) if malformed == Malformed::Refuse => Err(error.to_string()),
        Err(_) => {
            let Value::Object(members) = metadata.take() else {
                *metadata = Value::Object(value::Object::new());
                return Ok(Vec::new());
            };
            let mut kept = value::Object::new();
            for (name, member) in members {
                let mut alone = value::Object::new();
                alone.insert(name, member);
                let alone = Value::Object(alone);
                if let Ok((Value::Object(typed), _)) = decode_value(&alone, of, Strictness::Lenient)
                {
                    kept.extend(typed);
                }
            }
            *metadata = Value::Object(kept);
            Ok(Vec::new())
        }
    }
}

/// Brings the metadata of all objects embedded below `value` into their typed form; the root's are not looked at.
/// Returns the paths of unknown fields.
pub fn coerce(
    value: &mut Value,
    schema: &Structural,
    malformed: Malformed,
) -> Result<Vec<String>, FieldError> {
    let mut unknown = Vec::new();
    if has_embedded_below(schema) {
        walk(value, schema, &Path::root(), true, malformed, &mut unknown)?;
    }
    unknown.sort();
    Ok(unknown)
}

fn has_embedded_below(schema: &Structural) -> bool {
    below(schema).any(|node| node.embedded || has_embedded_below(node))
}

fn below(schema: &Structural) -> impl Iterator<Item = &Structural> {
    let additional = match &schema.additional {
        Some(super::Additional::Schema(schema)) => Some(&**schema),
        _ => None,
    };
    schema
        .properties
        .values()
        .chain(schema.items.as_deref())
        .chain(additional)
}

fn walk(
    value: &mut Value,
    schema: &Structural,
    path: &Path,
    root: bool,
    malformed: Malformed,
    unknown: &mut Vec<String>,
) -> Result<(), FieldError> {
    if schema.embedded && !root && value.is_object() {
        for name in ["apiVersion", "kind"] {
            if let Some(found) = value.get(name)
                && !found.is_string()
            {
                if malformed == Malformed::Refuse {
                    return Err(FieldError::invalid(
                        &path.child(name),
                        found.clone(),
                        "must be a string",
                    ));
                }
                value::remove(value, &[name]);
            }
        }
        let shown = value.get("metadata").cloned();
        match coerce_metadata(value, malformed) {
            Ok(_) if unknown.len() >= MAX_FINDINGS => {}
            Ok(found) => unknown.extend(found.into_iter().filter_map(|error| match error {
                StrictError::Unknown(name) => Some(format!("{path}.metadata.{name}")),
                StrictError::Duplicate(_) | StrictError::Yaml(_) => None,
            })),
            Err(why) => {
                return Err(FieldError::invalid(
                    &path.child("metadata"),
                    shown.unwrap_or_default(),
                    why,
                ));
            }
        }
    }
    match value {
        Value::Object(members) => {
            for (name, member) in members.iter_mut() {
                if let Some(property) = schema.properties.get(name.as_str()) {
                    let path = path.child(name);
                    walk(member, property, &path, false, malformed, unknown)?;
                } else if let Some(below) = schema.member(name) {
                    let path = path.key(name);
                    walk(member, below, &path, false, malformed, unknown)?;
                }
            }
        }
        Value::Array(items) => {
            if let Some(below) = &schema.items {
                for (index, item) in items.iter_mut().enumerate() {
                    let path = path.index(index);
                    walk(item, below, &path, false, malformed, unknown)?;
                }
            }
        }
        _ => {}
    }
    Ok(())
}

/// Checks kind, apiVersion and metadata of the objects embedded below `value`; the root's are not looked at.
pub fn validate_embedded(value: &Value, schema: &Structural, path: &Path) -> Vec<FieldError> {
    let mut found = Vec::new();
    if has_embedded_below(schema) {
        check(value, schema, path, true, &mut found);
    }
    found
}

fn check(value: &Value, schema: &Structural, path: &Path, root: bool, found: &mut Vec<FieldError>) {
    match value {
        Value::Object(members) => {
            if schema.embedded && !root {
                check_object(value, path, found);
            }
            for (name, member) in members {
                if let Some(property) = schema.properties.get(name.as_str()) {
                    check(member, property, &path.child(name), false, found);
                } else if let Some(below) = schema.member(name) {
                    check(member, below, &path.key(name), false, found);
                }
            }
        }
        Value::Array(items) => {
            if let Some(below) = &schema.items {
                for (index, item) in items.iter().enumerate() {
                    check(item, below, &path.index(index), false, found);
                }
            }
        }
        _ => {}
    }
}

fn check_object(object: &Value, path: &Path, found: &mut Vec<FieldError>) {
    for name in ["apiVersion", "kind"] {
        let path = path.child(name);
        match object.get(name) {
            None => found.push(FieldError::required(&path, "")),
            Some(Value::String(text)) if text.is_empty() => {
                found.push(FieldError::invalid(&path, "", "must not be empty"));
            }
            Some(Value::String(text)) if name == "apiVersion" => {
                if let Err(error) = GroupVersion::parse(text) {
                    found.push(FieldError::invalid(&path, text.as_str(), error.to_string()));
                }
            }
            Some(Value::String(text)) => {
                let errors = names::dns1035_label(&text.to_lowercase());
                if !errors.is_empty() {
                    found.push(FieldError::invalid(
                        &path,
                        text.as_str(),
                        format!(
                            "may have mixed case, but should otherwise match: {}",
                            errors.join(",")
                        ),
                    ));
                }
            }
            Some(other) => {
                found.push(FieldError::invalid(
                    &path,
                    other.clone(),
                    "must be a string",
                ));
            }
        }
    }
    if object.get("metadata").is_some() {
        let mut named = object.clone();
        if meta::name(&named).is_empty() {
            meta::set(&mut named, "name", "fakename");
        }
        let namespaced = !meta::namespace(&named).is_empty();
        found.extend(meta::validate_object_meta(
            &named,
            namespaced,
            names::path_segment,
            &path.child("metadata"),
        ));
    }
}
