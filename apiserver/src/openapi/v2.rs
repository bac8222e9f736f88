//! `/openapi/v2`: all group versions in one Swagger 2.0 document, turned from the version 3 form.

use keelson_machinery::catalog::Catalog;
use keelson_machinery::value::{Object, Value};
use serde_json::json;

use super::{paths, schemas, v2_proto};

/// The document of all of `catalog`.
pub(super) fn document(catalog: &Catalog, version: &str) -> Value {
    let mut all = paths::version();
    all.extend(paths::core_versions());
    all.extend(paths::groups());
    let mut served: Vec<(String, String)> = Vec::new();
    let mut components = schemas::Components::new("", "v1");
    for group in catalog.groups() {
        if !group.name.is_empty() {
            all.extend(paths::group(&group.name));
        }
        for version in group.versions {
            let rows: Vec<_> = catalog
                .group_version(&group.name, &version)
                .cloned()
                .collect();
            for row in &rows {
                components.custom(row);
            }
            all.extend(paths::group_version(&group.name, &version, &rows));
            served.push((group.name.clone(), version));
        }
    }
    let mut paths = Value::Object(all);
    components.referenced_by(&paths);
    let served: Vec<(&str, &str)> = served
        .iter()
        .map(|(group, version)| (group.as_str(), version.as_str()))
        .collect();
    let mut definitions = components.finish();
    for (name, schema) in &mut definitions {
        if name.ends_with(".meta.v1.DeleteOptions") || name.ends_with(".meta.v1.WatchEvent") {
            *schema = schemas::schema(name, &served);
        }
        turn_schema(schema);
    }
    // Custom schemas say more than version 2 has words for; what is left out is their own matter.
    for row in catalog.rows().iter().filter(|row| row.type_name.is_none()) {
        definitions.extend(schemas::custom(row, "#/definitions/"));
    }
    if let Some(paths) = paths.as_object_mut() {
        for item in paths.values_mut() {
            turn_item(item);
        }
    }
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": version},
        "paths": paths,
        "definitions": definitions,
        "securityDefinitions": {"BearerToken": {
            "description": "Bearer Token authentication",
            "type": "apiKey",
            "name": "authorization",
            "in": "header",
        }},
        "security": [{"BearerToken": []}],
    })
}

/// Version 2 has no `oneOf`, no single-reference `allOf`, and keeps no implied defaults.
fn turn_schema(schema: &mut Value) {
    match schema {
        Value::Object(members) => {
            if members.remove("oneOf").is_some() {
                members.insert("type".to_owned(), "string".into());
            }
            if let Some(Value::Array(mut parts)) = members.remove("allOf") {
                if let Some(Value::Object(part)) = parts.pop() {
                    members.extend(part);
                }
                // Beside a reference nothing else may stand but extensions.
                members.remove("default");
            }
            if members.get("default").is_some_and(implied) {
                members.remove("default");
            }
            if let Some(Value::String(target)) = members.get_mut("$ref") {
                *target = target.replace(schemas::PREFIX, "#/definitions/");
            }
            members.retain(|name, _| v2_proto::schema_knows(name));
            for (name, value) in members {
                match name.as_str() {
                    // Names chosen by the type's author, each with a schema.
                    "properties" => {
                        let properties = value.as_object_mut().into_iter();
                        properties
                            .flat_map(Object::values_mut)
                            .for_each(turn_schema);
                    }
                    "items" | "additionalProperties" => turn_schema(value),
                    _ => {}
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(turn_schema),
        _ => {}
    }
}

fn implied(default: &Value) -> bool {
    match default {
        Value::String(text) => text.is_empty(),
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::Bool(yes) => !yes,
        Value::Object(members) => members.is_empty(),
        _ => false,
    }
}

fn turn_item(item: &mut Value) {
    let Some(members) = item.as_object_mut() else {
        return;
    };
    for (name, value) in members {
        if name == "parameters" {
            turn_parameters(value);
        } else {
            turn_operation(value);
        }
    }
}

fn turn_parameters(parameters: &mut Value) {
    for parameter in parameters.as_array_mut().into_iter().flatten() {
        if let Some(parameter) = parameter.as_object_mut()
            && let Some(Value::Object(schema)) = parameter.remove("schema")
        {
            parameter.extend(schema);
        }
    }
}

fn turn_operation(operation: &mut Value) {
    let Some(members) = operation.as_object_mut() else {
        return;
    };
    let mut parameters = match members.remove("parameters") {
        Some(mut parameters) => {
            turn_parameters(&mut parameters);
            match parameters {
                Value::Array(parameters) => parameters,
                _ => Vec::new(),
            }
        }
        None => Vec::new(),
    };
    let mut consumes = vec![Value::from("*/*")];
    if let Some(mut body) = members.remove("requestBody") {
        let required = body.get("required").cloned();
        if let Some(Value::Object(content)) = body.get_mut("content").map(Value::take) {
            consumes = content.keys().map(|kind| kind.as_str().into()).collect();
            let schema = content.into_iter().find_map(|(_, mut media)| {
                let mut schema = media.get_mut("schema").map(Value::take)?;
                turn_schema(&mut schema);
                Some(schema)
            });
            let mut parameter = json!({"name": "body", "in": "body", "schema": schema});
            if let Some(required) = required {
                parameter["required"] = required;
            }
            parameters.push(parameter);
        }
    }
    if !parameters.is_empty() {
        members.insert("parameters".to_owned(), parameters.into());
    }
    let mut produces: Vec<Value> = Vec::new();
    for answer in members
        .get_mut("responses")
        .and_then(Value::as_object_mut)
        .into_iter()
        .flat_map(Object::values_mut)
    {
        let Some(answer) = answer.as_object_mut() else {
            continue;
        };
        let Some(Value::Object(content)) = answer.remove("content") else {
            continue;
        };
        for (kind, mut media) in content {
            if !produces.iter().any(|known| *known == kind.as_str()) {
                produces.push(kind.into());
            }
            if let Some(mut schema) = media.get_mut("schema").map(Value::take) {
                turn_schema(&mut schema);
                answer.insert("schema".to_owned(), schema);
            }
        }
    }
    members.insert("consumes".to_owned(), consumes.into());
    members.insert("produces".to_owned(), produces.into());
    members.insert("schemes".to_owned(), json!(["https"]));
}
