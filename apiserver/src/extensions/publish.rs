//! The schemas of custom resources as OpenAPI documents show them (upstream
//! `apiextensions-apiserver/pkg/controller/openapi/builder`).

use keelson_machinery::catalog::Resource;
use keelson_machinery::value::{self, Object, Value};
use serde_json::json;

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";

const API_VERSION: &str = "APIVersion defines the versioned schema of this representation of an object. Servers should convert recognized schemas to the latest internal value, and may reject unrecognized values. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources";
const KIND: &str = "Kind is a string value representing the REST resource this object represents. Servers may infer this from the endpoint the client submits requests to. Cannot be updated. In CamelCase. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";
const OBJECT_META: &str = "Standard object's metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";
const LIST_META: &str = "Standard list metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";

fn with_type_meta(properties: &mut Object) {
    let text = |description: &str| json!({"type": "string", "description": description});
    properties.insert("apiVersion".to_string(), text(API_VERSION));
    properties.insert("kind".to_string(), text(KIND));
}

/// Where references of version 2 documents point.
const VERSION_2: &str = "#/definitions/";

fn reference(prefix: &str, name: &str, description: &str) -> Value {
    let target = format!("{prefix}{META}{name}");
    match prefix {
        VERSION_2 => json!({"$ref": target, "description": description}),
        _ => json!({"allOf": [{"$ref": target}], "description": description}),
    }
}

/// The schema of a kind: that of its definition, with the metadata of every object. `prefix` is where references
/// point.
pub fn kind(row: &Resource, schema: Option<Value>, prefix: &str) -> Value {
    let mut out = match schema {
        Some(schema) if schema.is_object() => schema,
        _ => json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}),
    };
    let preserves = value::get_bool(&out, &["x-kubernetes-preserve-unknown-fields"]) == Some(true);
    if prefix == VERSION_2 && preserves {
        // Clients of that form take all fields for known as soon as one is.
        let selectable = out.get("x-kubernetes-selectable-fields").cloned();
        out = json!({"type": "object"});
        if let Some(selectable) = selectable {
            out["x-kubernetes-selectable-fields"] = selectable;
        }
        return with_kind(out, row);
    }
    embedded(&mut out, prefix);
    if prefix == VERSION_2 {
        simplify(&mut out);
    }
    if let Some(properties) = value::object_at(&mut out, &["properties"]) {
        with_type_meta(properties);
        properties.insert(
            "metadata".to_string(),
            reference(prefix, "ObjectMeta", OBJECT_META),
        );
    }
    with_kind(out, row)
}

fn with_kind(mut schema: Value, row: &Resource) -> Value {
    schema["x-kubernetes-group-version-kind"] =
        json!([{"group": row.group, "version": row.version, "kind": row.kind}]);
    schema
}

/// Objects within objects have metadata, too.
fn embedded(schema: &mut Value, prefix: &str) {
    let is_embedded = value::get_bool(schema, &["x-kubernetes-embedded-resource"]) == Some(true);
    let Some(members) = schema.as_object_mut() else {
        return;
    };
    for (name, member) in members.iter_mut() {
        match (name.as_str(), member) {
            ("properties", Value::Object(properties)) => {
                properties.values_mut().for_each(|p| embedded(p, prefix));
            }
            ("items" | "additionalProperties", below @ Value::Object(_)) => {
                embedded(below, prefix);
            }
            _ => {}
        }
    }
    if is_embedded && let Some(properties) = value::object_at(schema, &["properties"]) {
        with_type_meta(properties);
        properties.insert(
            "metadata".to_string(),
            reference(prefix, "ObjectMeta", OBJECT_META),
        );
    }
}

/// The schema of a list of a kind, whose items are the schema `item`.
pub fn list(row: &Resource, item: &str, prefix: &str) -> Value {
    let mut properties = Object::new();
    with_type_meta(&mut properties);
    properties.insert(
        "metadata".to_string(),
        reference(prefix, "ListMeta", LIST_META),
    );
    properties.insert(
        "items".to_string(),
        json!({
            "type": "array",
            "description": format!(
                "List of {}. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md",
                row.resource
            ),
            "items": {"$ref": format!("{prefix}{item}")},
        }),
    );
    json!({
        "type": "object",
        "description": format!("{} is a list of {}", row.list_kind, row.kind),
        "required": ["items"],
        "properties": properties,
        "x-kubernetes-group-version-kind":
            [{"group": row.group, "version": row.version, "kind": row.list_kind}],
    })
}

/// The form of version 2 documents, which know fewer words (upstream `ToStructuralOpenAPIV2`): what clients of that
/// form would stumble over is left out.
fn simplify(schema: &mut Value) {
    let Some(members) = schema.as_object_mut() else {
        return;
    };
    let flag = |members: &Object, name: &str| members.get(name) == Some(&Value::Bool(true));
    let preserve = flag(members, "x-kubernetes-preserve-unknown-fields");
    let int_or_string = flag(members, "x-kubernetes-int-or-string");
    let nullable = flag(members, "nullable");
    for name in ["allOf", "oneOf", "anyOf", "not", "nullable"] {
        members.remove(name);
    }
    if members.get("items").is_some_and(|items| !items.is_object()) {
        members.remove("items");
    }
    if nullable || int_or_string {
        members.remove("type");
    }
    if preserve || nullable {
        members.remove("items");
        members.remove("properties");
    }
    let kind = members.get("type").and_then(Value::as_str);
    if (kind == Some("array") && !members.contains_key("items"))
        || (kind == Some("object") && preserve)
    {
        members.remove("type");
    }
    let nullables: Vec<String> = members
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter(|(_, property)| property.get("nullable") == Some(&Value::Bool(true)))
        .map(|(name, _)| name.clone())
        .collect();
    if let Some(Value::Array(required)) = members.get_mut("required") {
        required.retain(|name| !nullables.iter().any(|n| *name == n.as_str()));
        if required.is_empty() {
            members.remove("required");
        }
    }
    for (name, member) in members.iter_mut() {
        match (name.as_str(), member) {
            ("properties", Value::Object(properties)) => {
                properties.values_mut().for_each(simplify);
            }
            ("items" | "additionalProperties", below @ Value::Object(_)) => simplify(below),
            _ => {}
        }
    }
}
