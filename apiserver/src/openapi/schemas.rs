//! Component schemas: a type of the table as upstream's OpenAPI shows it.

use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

use keelson_machinery::catalog::{Catalog, Resource};
use keelson_machinery::schema::{Cardinality, Field, Kind, ListType, MapType, Schema, Type};
use keelson_machinery::value::{Object, Value};
use serde_json::json;

use crate::extensions::publish;

/// Where references to schemas point.
pub(super) const PREFIX: &str = "#/components/schemas/";

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";

/// The name of a kind's schema: that of its type, or for a custom resource the reversed group before version and
/// kind (`com.example.v1.Widget`).
pub(super) fn name_of(row: &Resource) -> String {
    match &row.type_name {
        Some(name) => name.clone(),
        None => custom_name(row, &row.kind),
    }
}

/// The name of the schema of a list of a kind.
pub(super) fn list_name_of(row: &Resource) -> String {
    match &row.type_name {
        Some(name) => {
            let package = name.strip_suffix(&row.kind).unwrap_or(name);
            format!("{package}{}", row.list_kind)
        }
        None => custom_name(row, &row.list_kind),
    }
}

fn custom_name(row: &Resource, kind: &str) -> String {
    let mut steps: Vec<&str> = row.group.split('.').collect();
    steps.reverse();
    format!("{}.{}.{kind}", steps.join("."), row.version)
}

/// The schemas of a custom resource and of a list of it, by name; references in them begin with `prefix`.
pub(super) fn custom(row: &Resource, prefix: &str) -> [(String, Value); 2] {
    let schema = row.schema.as_ref().and_then(|schema| (schema.make)());
    let name = custom_name(row, &row.kind);
    let list = publish::list(row, &name, prefix);
    [
        (name, publish::kind(row, schema, prefix)),
        (custom_name(row, &row.list_kind), list),
    ]
}

/// A reference to the schema of this name.
pub(super) fn reference(name: &str) -> Value {
    json!({ "$ref": format!("{PREFIX}{name}") })
}

/// Collects the schemas of one document.
pub(super) struct Components {
    group: String,
    version: String,
    custom: BTreeMap<String, Value>,
    out: Object,
}

impl Components {
    /// For the document of a group version.
    pub fn new(group: &str, version: &str) -> Self {
        Components {
            group: group.to_owned(),
            version: version.to_owned(),
            custom: BTreeMap::new(),
            out: Object::new(),
        }
    }

    /// Makes the schemas of a custom resource known.
    pub fn custom(&mut self, row: &Resource) {
        if row.type_name.is_none() {
            self.custom.extend(custom(row, PREFIX));
        }
    }

    /// Adds every schema that `value` refers to, and those that these refer to.
    pub fn referenced_by(&mut self, value: &Value) {
        match value {
            Value::Object(members) => {
                for (name, value) in members {
                    match value.as_str().and_then(|text| text.strip_prefix(PREFIX)) {
                        Some(schema) if name == "$ref" => self.add(schema),
                        _ => self.referenced_by(value),
                    }
                }
            }
            Value::Array(items) => items.iter().for_each(|item| self.referenced_by(item)),
            _ => {}
        }
    }

    /// Adds the schema of this name, and those that it refers to.
    fn add(&mut self, name: &str) {
        if self.out.contains_key(name) {
            return;
        }
        let schema = match self.custom.remove(name) {
            Some(schema) => schema,
            None => schema(name, &[(&self.group, &self.version)]),
        };
        self.out.insert(name.to_owned(), schema.clone());
        self.referenced_by(&schema);
    }

    /// The schemas by name.
    pub fn finish(self) -> Object {
        self.out
    }
}

/// The schema of a type by name. `served` are the group versions whose document it stands in: meta kinds, which
/// every group version registers, list those.
pub(super) fn schema(name: &str, served: &[(&str, &str)]) -> Value {
    if let Some(known) = by_hand(name) {
        return known;
    }
    let Some(kind) = Schema::builtin().lookup(name) else {
        // The name came from our own tables; an object of any shape is the honest answer for a gap in them.
        return json!({"type": "object"});
    };
    let mut out = object(kind);
    let kinds = kinds(kind, served);
    if !kinds.is_empty() {
        out["x-kubernetes-group-version-kind"] = Value::Array(kinds);
    }
    out
}

/// Types that are no plain objects in JSON.
fn by_hand(name: &str) -> Option<Value> {
    let short = name
        .strip_prefix("io.k8s.apimachinery.pkg.")
        .or_else(|| name.strip_prefix("io.k8s.apiextensions-apiserver.pkg.apis."))?;
    Some(match short {
        "api.resource.Quantity" => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
        "util.intstr.IntOrString" => {
            json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
        }
        "apis.meta.v1.Time" | "apis.meta.v1.MicroTime" => {
            json!({"type": "string", "format": "date-time"})
        }
        "apis.meta.v1.Duration" => json!({"type": "string"}),
        "runtime.RawExtension" | "apis.meta.v1.FieldsV1" | "apis.meta.v1.Patch" => {
            json!({"type": "object"})
        }
        "apiextensions.v1.JSON"
        | "apiextensions.v1.JSONSchemaPropsOrArray"
        | "apiextensions.v1.JSONSchemaPropsOrBool"
        | "apiextensions.v1.JSONSchemaPropsOrStringArray" => json!({}),
        "version.Info" => version_info(),
        _ => return None,
    })
}

fn version_info() -> Value {
    const ALWAYS: [&str; 9] = [
        "major",
        "minor",
        "gitVersion",
        "gitCommit",
        "gitTreeState",
        "buildDate",
        "goVersion",
        "compiler",
        "platform",
    ];
    let mut properties = Object::new();
    for name in ALWAYS {
        properties.insert(name.to_owned(), json!({"type": "string", "default": ""}));
    }
    for name in [
        "emulationMajor",
        "emulationMinor",
        "minCompatibilityMajor",
        "minCompatibilityMinor",
    ] {
        properties.insert(name.to_owned(), json!({"type": "string"}));
    }
    json!({"type": "object", "required": ALWAYS, "properties": properties})
}

/// The kinds that `kind` is registered as.
fn kinds(kind: &Type, served: &[(&str, &str)]) -> Vec<Value> {
    let entry = |group: &str, version: &str| json!({"group": group, "version": version, "kind": kind.short_name()});
    if let Some(short) = kind.name().strip_prefix(META) {
        let everywhere = matches!(short, "DeleteOptions" | "WatchEvent");
        if !everywhere && !kind.has_type_meta() {
            return Vec::new();
        }
        let mut all = vec![("", "v1")];
        if everywhere {
            all.extend(served.iter().filter(|gv| **gv != ("", "v1")));
        }
        return all.into_iter().map(|(g, v)| entry(g, v)).collect();
    }
    if !kind.has_type_meta() {
        return Vec::new();
    }
    let Some((package, _)) = kind.name().rsplit_once('.') else {
        return Vec::new();
    };
    let Some((package, version)) = package.rsplit_once('.') else {
        return Vec::new();
    };
    match group_of(package) {
        Some(group) => vec![entry(group, version)],
        None => Vec::new(),
    }
}

/// The API group whose types live in a package, versions left aside.
fn group_of(package: &str) -> Option<&'static str> {
    static GROUPS: LazyLock<HashMap<&str, &str>> = LazyLock::new(|| {
        let rows = Catalog::builtin().rows().iter();
        rows.filter_map(|row| {
            let (package, _kind) = row.type_name.as_deref()?.rsplit_once('.')?;
            let (package, _version) = package.rsplit_once('.')?;
            Some((package, row.group.as_str()))
        })
        .collect()
    });
    GROUPS.get(package).copied()
}

fn object(kind: &'static Type) -> Value {
    let mut properties = Object::new();
    if kind.has_type_meta() {
        for name in ["apiVersion", "kind"] {
            properties.insert(name.to_owned(), json!({"type": "string"}));
        }
    }
    let mut required: Vec<(u32, &str)> = Vec::new();
    for field in kind.fields() {
        properties.insert(field.json_name.to_owned(), property(field));
        if field.required {
            required.push((field.number, field.json_name));
        }
    }
    let mut out = json!({"type": "object"});
    if !properties.is_empty() {
        out["properties"] = Value::Object(properties);
    }
    if !required.is_empty() {
        required.sort_unstable();
        out["required"] = required.into_iter().map(|(_, name)| name).collect();
    }
    if let Some(map) = kind.map_type() {
        out["x-kubernetes-map-type"] = map_type(map).into();
    }
    out
}

fn map_type(map: MapType) -> &'static str {
    match map {
        MapType::Atomic => "atomic",
        MapType::Granular => "granular",
    }
}

fn property(field: &'static Field) -> Value {
    let mut out = match field.cardinality {
        Cardinality::Optional => optional(field),
        Cardinality::Repeated => json!({"type": "array", "items": single(field.kind)}),
        Cardinality::Map => json!({"type": "object", "additionalProperties": single(field.kind)}),
    };
    if let Some(list) = field.list_type {
        out["x-kubernetes-list-type"] = match list {
            ListType::Atomic => "atomic",
            ListType::Set => "set",
            ListType::Map => "map",
        }
        .into();
        if list == ListType::Map {
            out["x-kubernetes-list-map-keys"] = json!(field.list_keys);
        }
    }
    if let Some(map) = field.map_type {
        out["x-kubernetes-map-type"] = map_type(map).into();
    }
    if let Some(strategy) = field.patch_strategy {
        out["x-kubernetes-patch-strategy"] = strategy.into();
    }
    if let Some(key) = field.merge_key {
        out["x-kubernetes-patch-merge-key"] = key.into();
    }
    out
}

/// A field of one value: references stand in `allOf`, so that a default can stand beside.
fn optional(field: &'static Field) -> Value {
    let mut out = single(field.kind);
    let refers = out.get("$ref").is_some();
    if refers {
        out = json!({"allOf": [out]});
    }
    let default = match (&field.default, field.kind) {
        (Some(declared), _) => Some(declared.clone()),
        (None, _) if field.pointer => None,
        (None, Kind::Message(_)) => Some(json!({})),
        (None, _) if !field.always => None,
        (None, Kind::String) => Some("".into()),
        (None, Kind::Bool) => Some(false.into()),
        (None, Kind::Int32 | Kind::Int64 | Kind::Double) => Some(0.into()),
        (None, _) => None,
    };
    if let Some(default) = default {
        out["default"] = default;
    }
    out
}

/// One value of a kind.
fn single(kind: Kind) -> Value {
    let named = |name: &str| reference(&format!("io.k8s.apimachinery.pkg.{name}"));
    match kind {
        Kind::String => json!({"type": "string"}),
        Kind::Bool => json!({"type": "boolean"}),
        Kind::Int32 => json!({"type": "integer", "format": "int32"}),
        Kind::Int64 => json!({"type": "integer", "format": "int64"}),
        Kind::Double => json!({"type": "number", "format": "double"}),
        Kind::Bytes => json!({"type": "string", "format": "byte"}),
        Kind::Message(message) => reference(message.name()),
        Kind::Items(_) => json!({"type": "array", "items": {"type": "string"}}),
        Kind::Quantity => named("api.resource.Quantity"),
        Kind::IntOrString => named("util.intstr.IntOrString"),
        Kind::Time => named("apis.meta.v1.Time"),
        Kind::MicroTime => named("apis.meta.v1.MicroTime"),
        Kind::Duration => named("apis.meta.v1.Duration"),
        Kind::RawExtension => named("runtime.RawExtension"),
        Kind::FieldsV1 => named("apis.meta.v1.FieldsV1"),
        Kind::Json => reference("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON"),
        Kind::SchemaOrArray(kind) | Kind::SchemaOrBool(kind) | Kind::SchemaOrStrings(kind) => {
            reference(kind.name())
        }
    }
}
