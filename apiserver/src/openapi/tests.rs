//! Our documents beside the published ones.

use std::path::PathBuf;

use super::*;

/// The published documents, or `None`, with the reason printed, where the facts are not at hand.
fn facts() -> Option<PathBuf> {
    let shared = std::env::var_os("KEELSON_SHARED").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared")),
        PathBuf::from,
    );
    let dir = shared.join("facts/v1.36/openapi-v3");
    if dir.is_dir() {
        return Some(dir);
    }
    println!("skipped: no {}", dir.display());
    None
}

/// Takes out of a published document what ours leaves out: prose, unions (which no client reads), CBOR and
/// sharding (which we do not serve). A reference that stands in `allOf` only for the prose beside it stands alone.
fn trimmed(value: Value, in_properties: bool) -> Value {
    match value {
        Value::Object(members)
            if members.contains_key("allOf")
                && members
                    .keys()
                    .all(|name| matches!(name.as_str(), "allOf" | "description")) =>
        {
            members["allOf"][0].clone()
        }
        Value::Object(members) => members
            .into_iter()
            .filter(|(name, value)| {
                let prose = name == "description" && value.is_string() && !in_properties;
                !prose && !name.contains("cbor") && name != "x-kubernetes-unions"
            })
            .map(|(name, value)| {
                let below = name == "properties";
                (name, trimmed(value, below))
            })
            .collect::<Object>()
            .into(),
        Value::Array(items) => {
            let mut items: Vec<Value> = items
                .into_iter()
                .filter(|item| item["name"] != "shardSelector")
                .map(|item| trimmed(item, false))
                .collect();
            // The order of required members and of parameters says nothing.
            if items
                .iter()
                .all(|item| item.is_string() || item.get("in").is_some())
            {
                items.sort_by_key(Value::to_string);
            }
            items.into()
        }
        other => other,
    }
}

/// Where two documents differ, as paths with both values.
fn differences(path: &str, ours: &Value, theirs: &Value, out: &mut Vec<String>) {
    match (ours, theirs) {
        (Value::Object(a), Value::Object(b)) => {
            let names: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
            for name in names {
                let path = format!("{path} > {name}");
                match (a.get(name), b.get(name)) {
                    (Some(a), Some(b)) => differences(&path, a, b, out),
                    (Some(_), None) => out.push(format!("{path}: only ours")),
                    // Declared on fields that Go leaves out when empty: it changes nothing.
                    (None, Some(zero)) if name == "default" && zero.as_str() == Some("") => {}
                    (None, Some(zero)) if name == "default" && zero.as_i64() == Some(0) => {}
                    (None, _) => out.push(format!("{path}: only theirs")),
                }
            }
        }
        (a, b) if a == b => {}
        (a, b) => out.push(format!("{path}: {a} but published {b}")),
    }
}

#[test]
fn documents_equal_the_published_ones() {
    let Some(dir) = facts() else { return };
    let openapi = OpenApi::new("unversioned");
    let catalog = Catalog::builtin();
    let index = openapi.index(catalog);
    let mut out = Vec::new();
    let mut compared = 0;
    for path in index["paths"].as_object().expect("paths").keys() {
        let file = dir.join(format!("{}_openapi.json", path.replace('/', "__")));
        let Ok(text) = std::fs::read(&file) else {
            out.push(format!("{path}: not published"));
            continue;
        };
        let theirs: Value = serde_json::from_slice(&text).expect("JSON");
        let document = openapi
            .document(catalog, path)
            .expect("in the index")
            .expect("builds");
        let ours: Value =
            serde_json::from_slice(&document.identity().expect("gzip")).expect("JSON");
        let (ours, theirs) = (trimmed(ours, false), trimmed(theirs, false));
        differences(path, &ours, &theirs, &mut out);
        compared += 1;
    }
    assert!(
        out.is_empty(),
        "{} differences:\n{}",
        out.len(),
        out.join("\n")
    );
    assert!(compared > 50, "{compared} documents compared");
}

#[test]
fn paths_to_documents() {
    let openapi = OpenApi::new("v1.36.2");
    let catalog = Catalog::builtin();
    for (path, found) in [
        ("api/v1", true),
        ("apis/apps/v1/", true),
        ("apis/apps", true),
        ("version", true),
        ("apis/nothing/v1", false),
        ("api/v1/pods", false),
        ("", false),
    ] {
        assert_eq!(openapi.document(catalog, path).is_some(), found, "{path}");
    }
    let index = openapi.index(catalog);
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"]
        .as_str()
        .expect("text");
    let document = openapi
        .document(catalog, "apis/apps/v1")
        .expect("found")
        .expect("builds");
    assert_eq!(
        url,
        format!("/openapi/v3/apis/apps/v1?hash={}", document.hash)
    );
}

fn foreign_members(path: &str, schema: &Value, out: &mut Vec<String>) {
    for (name, member) in schema.as_object().into_iter().flatten() {
        let below = format!("{path}.{name}");
        match name.as_str() {
            "properties" => {
                for (name, property) in member.as_object().into_iter().flatten() {
                    foreign_members(&format!("{below}.{name}"), property, out);
                }
            }
            "items" | "additionalProperties" => foreign_members(&below, member, out),
            name if v2_proto::schema_knows(name) && name != "allOf" => {}
            _ => out.push(below),
        }
    }
}

#[test]
fn version_2_has_all_group_versions() {
    let document = OpenApi::new("v1.36.2")
        .v2(Catalog::builtin(), Form::Json)
        .expect("builds");
    let got: Value = serde_json::from_slice(&document.identity().expect("gzip")).expect("JSON");
    let text = got.to_string();
    assert!(!text.contains("#/components"));
    // Schemas have none of what version 2 does not know; a schema for schemas has properties of these names.
    let mut foreign = Vec::new();
    for (name, schema) in got["definitions"].as_object().expect("definitions") {
        foreign_members(name, schema, &mut foreign);
    }
    assert!(foreign.is_empty(), "{foreign:?}");
    let schema = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";
    assert!(got["definitions"][schema]["properties"]["oneOf"].is_object());
    assert_eq!(
        got["definitions"]["io.k8s.api.core.v1.TCPSocketAction"]["properties"]["port"],
        json!({"$ref": "#/definitions/io.k8s.apimachinery.pkg.util.intstr.IntOrString"})
    );
    assert_eq!(
        got["definitions"]["io.k8s.apimachinery.pkg.util.intstr.IntOrString"],
        json!({"type": "string", "format": "int-or-string"})
    );
    let post = &got["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments"]["post"];
    assert_eq!(post["consumes"], json!(["*/*"]));
    assert_eq!(
        post["produces"],
        json!([
            "application/json",
            "application/vnd.kubernetes.protobuf",
            "application/yaml"
        ])
    );
    assert!(got["definitions"]["io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions"]["x-kubernetes-group-version-kind"].as_array().expect("list").len() > 20);
}
