//! What makes a schema structural (upstream `schema.ValidateStructural`).

use std::collections::BTreeMap;

use keelson_machinery::status::field::{FieldError, Path};
use keelson_machinery::structural;
use keelson_machinery::value::{self, Object, Value};
use serde_json::json;

/// What keeps a schema from being structural, sorted by the texts.
pub fn violations(schema: &Value, path: &Path) -> Vec<FieldError> {
    let mut found = Vec::new();
    invariants(schema, Level::Root, path, &mut found);
    complete(schema, Some(schema), path, path, &mut found);
    let mut by_text: BTreeMap<String, FieldError> = BTreeMap::new();
    for error in found {
        by_text.insert(error.to_string(), error);
    }
    by_text.into_values().collect()
}

#[derive(Clone, Copy, PartialEq)]
enum Level {
    Root,
    Item,
    Field,
}

fn flag(schema: &Value, name: &str) -> bool {
    value::get_bool(schema, &[name]) == Some(true)
}

fn text<'a>(schema: &'a Value, name: &str) -> &'a str {
    value::str_or_empty(schema, &[name])
}

/// A schema below, where one stands.
fn below<'a>(schema: &'a Value, name: &str) -> Option<&'a Value> {
    schema.get(name).filter(|below| below.is_object())
}

fn properties(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value::get_object(schema, &["properties"])
        .into_iter()
        .flatten()
}

fn has_additional(schema: &Value) -> bool {
    schema
        .get("additionalProperties")
        .is_some_and(|additional| !additional.is_null())
}

const EMBEDDED: &str = "x-kubernetes-embedded-resource";
const PRESERVE: &str = "x-kubernetes-preserve-unknown-fields";
const INT_OR_STRING: &str = "x-kubernetes-int-or-string";

fn invariants(schema: &Value, level: Level, path: &Path, found: &mut Vec<FieldError>) {
    let kind = text(schema, "type");
    if kind == "array" && below(schema, "items").is_none() {
        found.push(FieldError::required(
            &path.child("items"),
            "must be specified",
        ));
    }
    if let Some(items) = below(schema, "items") {
        invariants(items, Level::Item, &path.child("items"), found);
    }
    for (name, property) in properties(schema) {
        let path = path.child("properties").key(name);
        invariants(property, Level::Field, &path, found);
    }
    if has_additional(schema) {
        let path = path.child("additionalProperties");
        if level == Level::Root {
            found.push(FieldError::forbidden(&path, "must not be used at the root"));
        }
        if let Some(additional) = below(schema, "additionalProperties") {
            invariants(additional, Level::Field, &path, found);
        }
    }
    let (embedded, preserve) = (flag(schema, EMBEDDED), flag(schema, PRESERVE));
    let int_or_string = flag(schema, INT_OR_STRING);
    for (set, name) in [(preserve, PRESERVE), (embedded, EMBEDDED)] {
        if int_or_string && set {
            found.push(FieldError::invalid(
                &path.child(name),
                true,
                "must be false if x-kubernetes-int-or-string is true",
            ));
        }
    }
    let either = json!([{"type": "integer"}, {"type": "string"}]);
    let skip_any_of = schema.get("anyOf") == Some(&either);
    let skip_first = value::items(schema, &["allOf"])
        .first()
        .is_some_and(|first| first.get("anyOf") == Some(&either));
    value_validation(schema, skip_any_of, skip_first, path, found);

    let type_path = path.child("type");
    if embedded && kind != "object" {
        let why = "must be object if x-kubernetes-embedded-resource is true";
        found.push(match kind {
            "" => FieldError::required(&type_path, why),
            other => FieldError::invalid(&type_path, other, why),
        });
    } else if kind.is_empty() && !int_or_string && !preserve {
        found.push(FieldError::required(
            &type_path,
            match level {
                Level::Root => "must not be empty at the root",
                Level::Item => "must not be empty for specified array items",
                Level::Field => "must not be empty for specified object fields",
            },
        ));
    }
    if embedded && has_additional(schema) {
        found.push(FieldError::forbidden(
            &path.child("additionalProperties"),
            "must not be used if x-kubernetes-embedded-resource is set",
        ));
    }
    if level == Level::Root && !kind.is_empty() && kind != "object" {
        found.push(FieldError::invalid(
            &type_path,
            kind,
            "must be object at the root",
        ));
    }
    let check_metadata = level == Level::Root || embedded;
    for name in ["kind", "apiVersion"] {
        if let Some(property) = value::get(schema, &["properties", name])
            && check_metadata
            && text(property, "type") != "string"
        {
            found.push(FieldError::invalid(
                &path.child("properties").key(name).child("type"),
                text(property, "type"),
                "must be string",
            ));
        }
    }
    if let Some(metadata) = value::get(schema, &["properties", "metadata"]) {
        let path = path.child("properties").key("metadata");
        metadata_invariants(metadata, check_metadata, level, &path, found);
    }
    if embedded && !preserve && properties(schema).next().is_none() {
        found.push(FieldError::required(
            &path.child("properties"),
            "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields",
        ));
    }
}

fn metadata_invariants(
    metadata: &Value,
    check: bool,
    level: Level,
    path: &Path,
    found: &mut Vec<FieldError>,
) {
    let kind = text(metadata, "type");
    if check && kind != "object" {
        found.push(FieldError::invalid(
            &path.child("type"),
            kind,
            "must be object",
        ));
    }
    if level != Level::Root {
        return;
    }
    let names_only = properties(metadata).all(|(name, _)| name == "name" || name == "generateName");
    let other = metadata
        .as_object()
        .into_iter()
        .flatten()
        .any(|(name, member)| {
            !matches!(name.as_str(), "type" | "default" | "properties") && !value::is_empty(member)
        });
    if !names_only || other {
        found.push(FieldError::forbidden(
            path,
            "must not specify anything other than name and generateName, but metadata is implicitly specified",
        ));
    }
}

fn value_validation(
    schema: &Value,
    skip_any_of: bool,
    skip_first_all_of: bool,
    path: &Path,
    found: &mut Vec<FieldError>,
) {
    for name in ["anyOf", "allOf", "oneOf"] {
        if name == "anyOf" && skip_any_of {
            continue;
        }
        for (index, nested) in value::items(schema, &[name]).iter().enumerate() {
            let skip = name == "allOf" && skip_first_all_of && index == 0;
            nested_validation(nested, skip, &path.child(name).index(index), found);
        }
    }
    if let Some(not) = below(schema, "not") {
        nested_validation(not, false, &path.child("not"), found);
    }
    let pattern = text(schema, "pattern");
    if !pattern.is_empty()
        && let Err(why) = structural::compile(pattern)
    {
        found.push(FieldError::invalid(
            &path.child("pattern"),
            pattern,
            format!("must be a valid regular expression, but isn't: {why}"),
        ));
    }
}

/// Members that may not stand below `allOf` and its like, with the words for each.
const FORBIDDEN_BELOW: &[(&str, &str)] = &[
    ("type", "must be empty to be structural"),
    ("default", "must be undefined to be structural"),
    ("title", "must be empty to be structural"),
    ("description", "must be empty to be structural"),
    ("nullable", "must be false to be structural"),
    (PRESERVE, "must be false to be structural"),
    (EMBEDDED, "must be false to be structural"),
    (INT_OR_STRING, "must be false to be structural"),
    (
        "x-kubernetes-list-map-keys",
        "must be empty to be structural",
    ),
    (
        "x-kubernetes-list-type",
        "must be undefined to be structural",
    ),
    (
        "x-kubernetes-map-type",
        "must be undefined to be structural",
    ),
    ("x-kubernetes-validations", "must be empty to be structural"),
];

fn nested_validation(schema: &Value, skip_any_of: bool, path: &Path, found: &mut Vec<FieldError>) {
    value_validation(schema, skip_any_of, false, path, found);
    if let Some(items) = below(schema, "items") {
        nested_validation(items, false, &path.child("items"), found);
    }
    for (name, property) in properties(schema) {
        let path = path.child("properties").key(name);
        nested_validation(property, false, &path, found);
    }
    for (name, why) in FORBIDDEN_BELOW {
        let stands = match schema.get(*name) {
            None | Some(Value::Null | Value::Bool(false)) => false,
            Some(Value::Bool(true)) => true,
            Some(member) => *name == "default" || !value::is_empty(member),
        };
        if stands {
            found.push(FieldError::forbidden(&path.child(name), *why));
        }
    }
    if has_additional(schema) {
        found.push(FieldError::forbidden(
            &path.child("additionalProperties"),
            "must be undefined to be structural",
        ));
    }
    if value::get(schema, &["properties", "metadata"]).is_some() {
        found.push(FieldError::forbidden(
            &path.child("properties").key("metadata"),
            "must not be specified in a nested context",
        ));
    }
}

/// Every field that a value validation names must stand outside of it, too.
fn complete(
    validation: &Value,
    schema: Option<&Value>,
    path: &Path,
    named_in: &Path,
    found: &mut Vec<FieldError>,
) {
    let Some(schema) = schema else {
        found.push(FieldError::required(
            path,
            format!("because it is defined in {named_in}"),
        ));
        return;
    };
    if let Some(not) = below(validation, "not") {
        complete_nested(not, schema, path, &named_in.child("not"), found);
    }
    for name in ["allOf", "anyOf", "oneOf"] {
        for (index, nested) in value::items(validation, &[name]).iter().enumerate() {
            let named_in = named_in.child(name).index(index);
            complete_nested(nested, schema, path, &named_in, found);
        }
    }
}

fn complete_nested(
    validation: &Value,
    schema: &Value,
    path: &Path,
    named_in: &Path,
    found: &mut Vec<FieldError>,
) {
    complete(validation, Some(schema), path, named_in, found);
    if let Some(items) = below(validation, "items") {
        let (path, named_in) = (path.child("items"), named_in.child("items"));
        match below(schema, "items") {
            Some(schema) => complete_nested(items, schema, &path, &named_in, found),
            None => found.push(FieldError::required(
                &path,
                format!("because it is defined in {named_in}"),
            )),
        }
    }
    let empty = Object::new();
    let known = value::get_object(schema, &["properties"]).unwrap_or(&empty);
    for (name, property) in properties(validation) {
        let path = path.child("properties").key(name);
        let named_in = named_in.child("properties").key(name);
        match known.get(name) {
            Some(schema) => complete_nested(property, schema, &path, &named_in, found),
            None => found.push(FieldError::required(
                &path,
                format!("because it is defined in {named_in}"),
            )),
        }
    }
}
