//! Rules for the schemas of definitions (upstream `ValidateCustomResourceDefinitionOpenAPISchema`,
//! `schema/defaulting.ValidateDefaults`).

use std::collections::HashSet;

use keelson_machinery::status::field::{FieldError, Path};
use keelson_machinery::structural::{self, Additional, ListKind, Malformed, Structural};
use keelson_machinery::value::{self, Value};

use super::structural_rules;
use crate::extensions::rules;

/// Types that a schema may name, in the order of messages.
const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];

/// What may be said at the root of a schema when there is a status subresource, in upstream's order and spelling.
const ROOT_MEMBERS: &[(&str, &str)] = &[
    ("description", "Description"),
    ("type", "Type"),
    ("format", "Format"),
    ("title", "Title"),
    ("maximum", "Maximum"),
    ("exclusiveMaximum", "ExclusiveMaximum"),
    ("minimum", "Minimum"),
    ("exclusiveMinimum", "ExclusiveMinimum"),
    ("maxLength", "MaxLength"),
    ("minLength", "MinLength"),
    ("pattern", "Pattern"),
    ("maxItems", "MaxItems"),
    ("minItems", "MinItems"),
    ("uniqueItems", "UniqueItems"),
    ("multipleOf", "MultipleOf"),
    ("required", "Required"),
    ("items", "Items"),
    ("properties", "Properties"),
    ("externalDocs", "ExternalDocs"),
    ("example", "Example"),
    (
        "x-kubernetes-preserve-unknown-fields",
        "XPreserveUnknownFields",
    ),
    ("x-kubernetes-validations", "XValidations"),
];

/// Which of the rules hold for an update: what an old definition broke may stay broken.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The schema must be structural.
    pub structural: bool,
    /// Types must be known.
    pub known_types: bool,
    /// Defaults hold nothing that would be pruned.
    pub pruned_defaults: bool,
    /// Items of sets are atomic.
    pub atomic_sets: bool,
    /// Keys of maps are always there.
    pub map_keys: bool,
}

/// Calls `holds` for the schema and all below it until it says yes.
pub fn any_schema(schema: &Value, holds: &mut dyn FnMut(&Value) -> bool) -> bool {
    if holds(schema) {
        return true;
    }
    let Some(members) = schema.as_object() else {
        return false;
    };
    for (name, member) in members {
        let found = match (name.as_str(), member) {
            ("items" | "not" | "additionalProperties" | "additionalItems", Value::Object(_)) => {
                any_schema(member, holds)
            }
            ("allOf" | "anyOf" | "oneOf" | "items", Value::Array(all)) => {
                all.iter().any(|below| any_schema(below, holds))
            }
            ("properties" | "patternProperties" | "definitions", Value::Object(all)) => {
                all.values().any(|below| any_schema(below, holds))
            }
            _ => false,
        };
        if found {
            return true;
        }
    }
    false
}

/// What is wrong with the schema of a version. `status` tells whether there is a status subresource.
pub fn validate(schema: &Value, status: bool, options: &Options, path: &Path) -> Vec<FieldError> {
    let mut found = Vec::new();
    if status {
        root_members(schema, path, &mut found);
    }
    if value::get_bool(schema, &["nullable"]) == Some(true) {
        found.push(FieldError::forbidden(
            &path.child("nullable"),
            "nullable cannot be true at the root",
        ));
    }
    if options.structural {
        let violations = structural_rules::violations(schema, path);
        if violations.is_empty() {
            defaults(schema, options, path, &mut found);
        }
        found.extend(violations);
    }
    let place = Place {
        path: path.clone(),
        root: true,
        inside_metadata: false,
        no_defaults: None,
    };
    node(schema, options, &place, &mut found);
    // Expressions about a schema that is wrong would be told wrong things.
    if found.is_empty() && options.structural {
        let compiled = Structural::parse_root(schema);
        rule_faults(&compiled, schema, true, None, path, &mut found);
    }
    found
}

/// A rule as Go prints it.
fn shown_rule(rule: &Value) -> String {
    let text = |name: &str| rule.get(name).cloned().unwrap_or_else(|| "".into());
    let pointer = |name: &str| rule.get(name).cloned().unwrap_or_default();
    format!(
        r#"{{"Rule":{},"Message":{},"MessageExpression":{},"Reason":{},"FieldPath":{},"OptionalOldSelf":{}}}"#,
        text("rule"),
        text("message"),
        text("messageExpression"),
        pointer("reason"),
        text("fieldPath"),
        pointer("optionalOldSelf"),
    )
}

/// Expressions that cannot be compiled, or compare with an old value where there is none. `apart` is the list whose
/// items cannot be told apart between two states.
fn rule_faults(
    compiled: &Structural,
    schema: &Value,
    root: bool,
    apart: Option<&Path>,
    path: &Path,
    found: &mut Vec<FieldError>,
) {
    if !compiled.has_rules() {
        return;
    }
    let own = value::items(schema, &["x-kubernetes-validations"]);
    for (index, faults) in rules::faults(compiled, root).into_iter().enumerate() {
        let path = path.child("x-kubernetes-validations").index(index);
        let rule = own.get(index).cloned().unwrap_or_default();
        let refuse = |name: &str, why: String| {
            FieldError::invalid_as_text(&path.child(name), shown_rule(&rule), why)
        };
        found.extend(faults.rule.map(|why| refuse("rule", why)));
        found.extend(faults.message.map(|why| refuse("messageExpression", why)));
        let optional = value::get_bool(&rule, &["optionalOldSelf"]);
        if let (true, Some(apart)) = (faults.transition, apart) {
            found.push(FieldError::invalid(
                &path.child("rule"),
                value::str_or_empty(&rule, &["rule"]),
                format!(
                    "oldSelf cannot be used on the uncorrelatable portion of the schema within {apart}"
                ),
            ));
        } else if let (false, Some(optional)) = (faults.transition, optional) {
            found.push(FieldError::invalid(
                &path.child("optionalOldSelf"),
                optional,
                "may not be set if oldSelf is not used in rule",
            ));
        }
    }
    if let (Some(below), Some(items)) = (&compiled.items, schema.get("items")) {
        let apart = match compiled.list {
            ListKind::Map => apart,
            ListKind::Atomic | ListKind::Set => apart.or(Some(path)),
        };
        let at = path.child("items");
        rule_faults(below, items, below.embedded, apart, &at, found);
    }
    for (name, below) in &compiled.properties {
        if let Some(property) = value::get(schema, &["properties", &**name]) {
            let at = path.child("properties").key(name);
            rule_faults(below, property, below.embedded, apart, &at, found);
        }
    }
    if let (Some(Additional::Schema(below)), Some(additional)) =
        (&compiled.additional, schema.get("additionalProperties"))
    {
        let at = path.child("additionalProperties");
        rule_faults(below, additional, below.embedded, apart, &at, found);
    }
}

fn root_members(schema: &Value, path: &Path, found: &mut Vec<FieldError>) {
    for (name, member) in schema.as_object().into_iter().flatten() {
        if value::is_empty(member) || *member == Value::Bool(false) {
            continue;
        }
        if name == "type" {
            if member != "object" {
                found.push(FieldError::invalid(
                    &path.child("type"),
                    member.clone(),
                    "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled",
                ));
                return;
            }
        } else if !ROOT_MEMBERS.iter().any(|(known, _)| known == name) {
            let allowed: Vec<&str> = ROOT_MEMBERS.iter().map(|(_, go)| *go).collect();
            found.push(FieldError::invalid(
                path,
                schema.clone(),
                format!(
                    "only [{}] fields are allowed at the root of the schema if the status subresource is enabled",
                    allowed.join(" ")
                ),
            ));
            return;
        }
    }
}

/// Where a schema stands, and what may therefore not be in it.
#[derive(Clone)]
struct Place {
    path: Path,
    root: bool,
    inside_metadata: bool,
    no_defaults: Option<String>,
}

impl Place {
    fn at(&self, path: Path) -> Place {
        Place {
            path,
            root: false,
            ..self.clone()
        }
    }
}

/// Members that no schema may have.
const UNSUPPORTED: [&str; 5] = [
    "additionalItems",
    "patternProperties",
    "definitions",
    "dependencies",
    "$ref",
];

fn node(schema: &Value, options: &Options, place: &Place, found: &mut Vec<FieldError>) {
    let path = &place.path;
    let text = |name: &str| value::str_or_empty(schema, &[name]);
    let kind = text("type");
    if options.known_types && !kind.is_empty() && !TYPES.contains(&kind) {
        found.push(FieldError::not_supported(&path.child("type"), kind, &TYPES));
    }
    if schema
        .get("default")
        .is_some_and(|default| !default.is_null())
        && let Some(reason) = &place.no_defaults
    {
        found.push(FieldError::forbidden(
            &path.child("default"),
            format!("must not be set {reason}"),
        ));
    }
    if !text("id").is_empty() {
        found.push(FieldError::forbidden(
            &path.child("id"),
            "id is not supported",
        ));
    }
    for name in UNSUPPORTED {
        if schema
            .get(name)
            .is_some_and(|member| !value::is_empty(member))
        {
            found.push(FieldError::forbidden(
                &path.child(name),
                format!("{name} is not supported"),
            ));
        }
    }
    if kind == "null" {
        found.push(FieldError::forbidden(
            &path.child("type"),
            "type cannot be set to null, use nullable as an alternative",
        ));
    }
    let items = schema.get("items");
    if items.is_some_and(Value::is_array) {
        found.push(FieldError::forbidden(
            &path.child("items"),
            "items must be a schema object and not an array",
        ));
    }
    let flag = |name: &str| value::get_bool(schema, &[name]);
    if place.inside_metadata && flag("x-kubernetes-embedded-resource") == Some(true) {
        found.push(FieldError::forbidden(
            &path.child("x-kubernetes-embedded-resource"),
            "must not be used inside of resource meta",
        ));
    }
    if flag("uniqueItems") == Some(true) {
        found.push(FieldError::forbidden(
            &path.child("uniqueItems"),
            "uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
        ));
    }
    let properties = value::get_object(schema, &["properties"]);
    if let Some(additional) = schema.get("additionalProperties").filter(|a| !a.is_null()) {
        let at = path.child("additionalProperties");
        if properties.is_some_and(|p| !p.is_empty()) && *additional != Value::Bool(true) {
            found.push(FieldError::forbidden(
                &at,
                "additionalProperties and properties are mutual exclusive",
            ));
        }
        let mut below = place.at(at);
        if place.inside_metadata {
            below.no_defaults =
                Some("inside additionalProperties applying to object metadata".to_string());
        }
        if additional.is_object() {
            node(additional, options, &below, found);
        }
    }
    let embedded = flag("x-kubernetes-embedded-resource") == Some(true);
    for (name, property) in properties.into_iter().flatten() {
        let mut below = place.at(path.child("properties").key(name));
        let meta = matches!(name.as_str(), "metadata" | "kind" | "apiVersion");
        if meta && (place.root || embedded) {
            below.inside_metadata = true;
            if place.root {
                below.no_defaults = Some(format!("in top-level {name}"));
            }
        }
        node(property, options, &below, found);
    }
    if let Some(not) = schema.get("not").filter(|not| not.is_object()) {
        node(not, options, &place.at(path.child("not")), found);
    }
    for name in ["allOf", "oneOf", "anyOf"] {
        for (index, nested) in value::items(schema, &[name]).iter().enumerate() {
            let below = place.at(path.child(name).index(index));
            node(nested, options, &below, found);
        }
    }
    if let Some(items) = items.filter(|items| items.is_object()) {
        node(items, options, &place.at(path.child("items")), found);
    }
    if flag("x-kubernetes-preserve-unknown-fields") == Some(false) {
        found.push(FieldError::invalid(
            &path.child("x-kubernetes-preserve-unknown-fields"),
            false,
            "must be true or undefined",
        ));
    }
    map_type(schema, kind, path, found);
    list_type(schema, kind, options, path, found);
    expressions(schema, path, found);
}

fn must_be(found: &mut Vec<FieldError>, path: &Path, kind: &str, why: &str) {
    found.push(match kind {
        "" => FieldError::required(path, why),
        other => FieldError::invalid(path, other, why),
    });
}

fn map_type(schema: &Value, kind: &str, path: &Path, found: &mut Vec<FieldError>) {
    let Some(map) = value::get_str(schema, &["x-kubernetes-map-type"]) else {
        return;
    };
    if kind != "object" {
        let why = "must be object if x-kubernetes-map-type is specified";
        must_be(found, &path.child("type"), kind, why);
    }
    if !matches!(map, "atomic" | "granular") {
        found.push(FieldError::not_supported(
            &path.child("x-kubernetes-map-type"),
            map,
            &["atomic", "granular"],
        ));
    }
}

/// Whether the items of a set can be told apart by nothing but themselves, and the member that is wrong otherwise.
fn set_item_fault(items: &Value) -> Option<(&'static str, Value)> {
    let list = items.get("x-kubernetes-list-type").cloned();
    match value::str_or_empty(items, &["type"]) {
        "array" if list.as_ref().is_some_and(|list| list != "atomic") => {
            Some(("x-kubernetes-list-type", list.unwrap_or_default()))
        }
        "object" if items.get("x-kubernetes-map-type") != Some(&Value::from("atomic")) => {
            Some(("x-kubernetes-map-type", list.unwrap_or_default()))
        }
        _ => None,
    }
}

fn list_type(
    schema: &Value,
    kind: &str,
    options: &Options,
    path: &Path,
    found: &mut Vec<FieldError>,
) {
    let list = value::get_str(schema, &["x-kubernetes-list-type"]);
    let items = schema.get("items").filter(|items| items.is_object());
    if list.is_some() && kind != "array" {
        let why = "must be array if x-kubernetes-list-type is specified";
        must_be(found, &path.child("type"), kind, why);
    } else if options.atomic_sets
        && list == Some("set")
        && let Some((name, shown)) = items.and_then(set_item_fault)
    {
        found.push(FieldError::invalid(
            &path.child("items").child(name),
            shown,
            "must be atomic as item of a list with x-kubernetes-list-type=set",
        ));
    }
    if let Some(list) = list
        && !matches!(list, "atomic" | "set" | "map")
    {
        found.push(FieldError::not_supported(
            &path.child("x-kubernetes-list-type"),
            list,
            &["atomic", "set", "map"],
        ));
    }
    let keys = value::items(schema, &["x-kubernetes-list-map-keys"]);
    if !keys.is_empty() && list != Some("map") {
        let why = "must be map if x-kubernetes-list-map-keys is non-empty";
        let at = path.child("x-kubernetes-list-type");
        must_be(found, &at, list.unwrap_or_default(), why);
    }
    if list == Some("map") {
        map_keys(schema, keys, items, path, found);
    }
    if options.map_keys {
        found.extend(unsteady_keys(schema, path));
    }
}

fn map_keys(
    schema: &Value,
    keys: &[Value],
    items: Option<&Value>,
    path: &Path,
    found: &mut Vec<FieldError>,
) {
    let keys_path = path.child("x-kubernetes-list-map-keys");
    let items_path = path.child("items");
    if keys.is_empty() {
        found.push(FieldError::required(
            &keys_path,
            "must not be empty if x-kubernetes-list-type is map",
        ));
    }
    let Some(items) = items else {
        found.push(match schema.get("items").filter(|i| !i.is_null()) {
            None => FieldError::required(
                &items_path,
                "must have a schema if x-kubernetes-list-type is map",
            ),
            Some(items) => FieldError::invalid(
                &items_path,
                items.clone(),
                "must only have a single schema if x-kubernetes-list-type is map",
            ),
        });
        return;
    };
    let kind = value::str_or_empty(items, &["type"]);
    if kind != "object" {
        found.push(FieldError::invalid(
            &items_path.child("type"),
            kind,
            "must be object if parent array's x-kubernetes-list-type is map",
        ));
        return;
    }
    let mut seen = HashSet::new();
    for key in keys.iter().filter_map(Value::as_str) {
        match value::get(items, &["properties", key]) {
            Some(property) => {
                if matches!(value::str_or_empty(property, &["type"]), "array" | "object") {
                    found.push(FieldError::invalid(
                        &items_path.child("properties").key(key).child("type"),
                        kind,
                        "must be a scalar type if parent array's x-kubernetes-list-type is map",
                    ));
                }
            }
            None => found.push(FieldError::invalid(
                &keys_path,
                Value::Array(keys.to_vec()),
                "entries must all be names of item properties",
            )),
        }
        if !seen.insert(key) {
            found.push(FieldError::invalid(
                &keys_path,
                Value::Array(keys.to_vec()),
                "must not contain duplicate entries",
            ));
        }
    }
}

/// Keys that an item may lack (upstream `validateMapListKeysMapSet`).
fn unsteady_keys(schema: &Value, path: &Path) -> Vec<FieldError> {
    let mut found = Vec::new();
    let list = value::str_or_empty(schema, &["x-kubernetes-list-type"]);
    let Some(items) = schema.get("items").filter(|items| items.is_object()) else {
        return found;
    };
    if !matches!(list, "set" | "map") {
        return found;
    }
    let path = path.child("items");
    if value::get_bool(items, &["nullable"]) == Some(true) {
        found.push(FieldError::forbidden(
            &path.child("nullable"),
            format!("cannot be nullable when x-kubernetes-list-type is {list}"),
        ));
    }
    if list == "set" {
        return found;
    }
    let required = value::items(items, &["required"]);
    for key in value::items(schema, &["x-kubernetes-list-map-keys"]) {
        let name = key.as_str().unwrap_or_default();
        let Some(property) = value::get(items, &["properties", name]) else {
            continue;
        };
        let path = path.child("properties").key(name);
        if !required.contains(key) && property.get("default").is_none_or(Value::is_null) {
            found.push(FieldError::required(
                &path.child("default"),
                "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property",
            ));
        }
        if value::get_bool(property, &["nullable"]) == Some(true) {
            found.push(FieldError::forbidden(
                &path.child("nullable"),
                "this property is in x-kubernetes-list-map-keys, so it cannot be nullable",
            ));
        }
    }
    found
}

/// The forms of `x-kubernetes-validations`; the expressions themselves are looked at by [`rule_faults`].
fn expressions(schema: &Value, path: &Path, found: &mut Vec<FieldError>) {
    const REASONS: [&str; 4] = [
        "FieldValueDuplicate",
        "FieldValueForbidden",
        "FieldValueInvalid",
        "FieldValueRequired",
    ];
    let rules = value::items(schema, &["x-kubernetes-validations"]);
    for (index, rule) in rules.iter().enumerate() {
        let path = path.child("x-kubernetes-validations").index(index);
        let text = |name: &str| value::str_or_empty(rule, &[name]);
        let breaks = |text: &str| text.contains(['\n', '\r']);
        let (expression, message) = (text("rule").trim(), text("message").trim());
        if expression.is_empty() {
            found.push(FieldError::required(
                &path.child("rule"),
                "rule is not specified",
            ));
        } else if !text("message").is_empty() && message.is_empty() {
            found.push(FieldError::invalid(
                &path.child("message"),
                text("message"),
                "must be non-empty if specified",
            ));
        } else if breaks(message) {
            found.push(FieldError::invalid(
                &path.child("message"),
                text("message"),
                "must not contain line breaks",
            ));
        } else if breaks(expression) && message.is_empty() {
            found.push(FieldError::required(
                &path.child("message"),
                "message must be specified if rule contains line breaks",
            ));
        }
        if !text("messageExpression").is_empty() && text("messageExpression").trim().is_empty() {
            found.push(FieldError::required(
                &path.child("messageExpression"),
                "messageExpression must be non-empty if specified",
            ));
        }
        if let Some(reason) = value::get_str(rule, &["reason"])
            && !REASONS.contains(&reason)
        {
            found.push(FieldError::not_supported(
                &path.child("reason"),
                reason,
                &REASONS,
            ));
        }
        let field = text("fieldPath");
        let at = path.child("fieldPath");
        if !field.is_empty() && field.trim().is_empty() {
            found.push(FieldError::invalid(
                &at,
                field,
                "must be non-empty if specified",
            ));
        }
        if breaks(field) {
            found.push(FieldError::invalid(
                &at,
                field,
                "must not contain line breaks",
            ));
        }
        if !field.is_empty() && at_field_path(schema, field, true).is_none() {
            found.push(FieldError::invalid(&at, field, "must be a valid path"));
        }
    }
}

/// The schema of what stands at a path such as `.spec.list['a.b']` (upstream `cel.ValidFieldPath`); `None` for a
/// path that is none, or leads nowhere.
pub fn at_field_path<'a>(schema: &'a Value, path: &str, brackets: bool) -> Option<&'a Value> {
    let mut schema = schema;
    let mut rest = path;
    let mut any = false;
    while !rest.is_empty() {
        let name: String;
        if let Some(after) = rest.strip_prefix('.') {
            let end = after.find(['.', '[']).unwrap_or(after.len());
            name = after[..end].to_string();
            rest = &after[end..];
        } else if let Some(after) = rest.strip_prefix("['") {
            if !brackets {
                return None;
            }
            let end = after.find("']")?;
            name = after[..end].replace("\\'", "'");
            rest = &after[end + 2..];
        } else {
            return None;
        }
        if name.is_empty() {
            return None;
        }
        any = true;
        schema = match value::get(schema, &["properties", name.as_str()]) {
            Some(property) => property,
            None => schema
                .get("additionalProperties")
                .filter(|additional| additional.is_object())?,
        };
    }
    any.then_some(schema)
}

/// Defaults must be what they are defaults of.
fn defaults(schema: &Value, options: &Options, path: &Path, found: &mut Vec<FieldError>) {
    if any_schema(schema, &mut |node| {
        node.get("default")
            .is_some_and(|default| !default.is_null())
    }) {
        defaults_at(schema, true, options, path, found);
    }
}

fn defaults_at(
    schema: &Value,
    root: bool,
    options: &Options,
    path: &Path,
    found: &mut Vec<FieldError>,
) {
    if let Some(default) = schema.get("default").filter(|default| !default.is_null()) {
        let at = path.child("default");
        let compiled = Structural::parse(schema);
        let mut pruned = default.clone();
        structural::prune(&mut pruned, &compiled, false);
        if options.pruned_defaults && pruned != *default {
            found.push(FieldError::invalid(
                &at,
                default.clone(),
                "must not have unknown fields",
            ));
        }
        let mut coerced = default.clone();
        match structural::coerce(&mut coerced, &compiled, Malformed::Refuse) {
            Err(mut error) => {
                error.field = format!("{at}.{}", error.field);
                found.push(error);
            }
            Ok(_) => {
                let embedded = structural::validate_embedded(&coerced, &compiled, &at);
                if embedded.is_empty() {
                    found.extend(structural::validate(&compiled, default, &at));
                } else {
                    found.extend(embedded);
                }
            }
        }
    }
    if let Some(items) = schema.get("items").filter(|items| items.is_object()) {
        defaults_at(items, false, options, &path.child("items"), found);
    }
    let embedded = value::get_bool(schema, &["x-kubernetes-embedded-resource"]) == Some(true);
    for (name, property) in value::get_object(schema, &["properties"])
        .into_iter()
        .flatten()
    {
        // Those of metadata are forbidden at the root, and typed elsewhere.
        if (root || embedded) && matches!(name.as_str(), "metadata" | "kind" | "apiVersion") {
            continue;
        }
        let path = path.child("properties").key(name);
        defaults_at(property, false, options, &path, found);
    }
}

/// The rules that an old definition kept, which therefore hold for the new one.
pub fn kept_by(schemas: &[&Value]) -> Options {
    let any = |holds: &mut dyn FnMut(&Value) -> bool| {
        schemas.iter().any(|schema| any_schema(schema, holds))
    };
    let unpruned = || {
        schemas.iter().any(|schema| {
            let mut found = Vec::new();
            let options = Options {
                structural: true,
                known_types: false,
                pruned_defaults: true,
                atomic_sets: false,
                map_keys: false,
            };
            defaults(schema, &options, &Path::root(), &mut found);
            found
                .iter()
                .any(|error| error.detail == "must not have unknown fields")
        })
    };
    Options {
        structural: schemas
            .iter()
            .all(|schema| structural_rules::violations(schema, &Path::root()).is_empty()),
        known_types: !any(&mut |node| {
            let kind = value::str_or_empty(node, &["type"]);
            !kind.is_empty() && !TYPES.contains(&kind)
        }),
        pruned_defaults: !unpruned(),
        atomic_sets: !any(&mut |node| {
            value::str_or_empty(node, &["x-kubernetes-list-type"]) == "set"
                && node.get("items").and_then(set_item_fault).is_some()
        }),
        map_keys: !any(&mut |node| !unsteady_keys(node, &Path::root()).is_empty()),
    }
}
