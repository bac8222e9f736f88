//! Ownership and merging, as data: a sequence of writes, then the object or the error.

use serde_json::json;

use super::*;
use crate::schema::Schema;
use crate::value::{self, Value};

fn object_type(kind: &str) -> &'static crate::schema::Type {
    let (group, version) = if kind == "Deployment" {
        ("apps", "v1")
    } else {
        ("", "v1")
    };
    Schema::builtin().lookup_kind(group, version, kind).unwrap()
}

/// One step of a case: who, whether by apply (and by force), and the configuration or the next state.
enum Step {
    Update(&'static str, Value),
    Apply(&'static str, Value),
    Force(&'static str, Value),
}
use Step::{Apply, Force, Update};

fn full(kind: &str, body: Value) -> Value {
    let mut object = body;
    object["kind"] = kind.into();
    object["apiVersion"] = if kind == "Deployment" {
        "apps/v1"
    } else {
        "v1"
    }
    .into();
    object
}

fn run(kind: &str, steps: Vec<Step>) -> Result<Value, crate::status::ApiError> {
    let shape = Shape::Object(object_type(kind));
    run_shape(kind, shape, steps)
}

fn run_shape(
    kind: &str,
    shape: Shape<'_>,
    steps: Vec<Step>,
) -> Result<Value, crate::status::ApiError> {
    let ignored = Set::default();
    let mut live = full(kind, shape.zero());
    for (at, step) in steps.into_iter().enumerate() {
        let now = format!("2026-01-01T00:00:{at:02}Z");
        let write = |manager| Write {
            shape,
            api_version: if kind == "Deployment" {
                "apps/v1"
            } else {
                "v1"
            },
            subresource: "",
            manager,
            ignored: &ignored,
            now: &now,
        };
        live = match step {
            Update(manager, new) => {
                let mut new = full(kind, new);
                track(&live, &mut new, &write(manager));
                new
            }
            Apply(manager, config) => apply(&live, &full(kind, config), &write(manager), false)?,
            Force(manager, config) => apply(&live, &full(kind, config), &write(manager), true)?,
        };
        value::set(&mut live, &["metadata", "uid"], "u");
    }
    Ok(live)
}

fn owners(object: &Value) -> Vec<(String, Value)> {
    value::items(object, &["metadata", "managedFields"])
        .iter()
        .map(|e| {
            (
                format!(
                    "{}/{}",
                    e["manager"].as_str().unwrap_or(""),
                    e["operation"].as_str().unwrap_or("")
                ),
                e["fieldsV1"].clone(),
            )
        })
        .collect()
}

#[test]
fn merging() {
    let cm = |data: Value| json!({"metadata": {"name": "x"}, "data": data});
    let ports = |ports: Value| json!({"spec": {"ports": ports}});
    for (name, kind, at, steps, want) in [
        (
            "add",
            "ConfigMap",
            "/data",
            vec![
                Apply("a", cm(json!({"k": "1"}))),
                Apply("b", cm(json!({"l": "2"}))),
            ],
            json!({"k": "1", "l": "2"}),
        ),
        (
            "remove own",
            "ConfigMap",
            "/data",
            vec![
                Apply("a", cm(json!({"k": "1", "l": "2"}))),
                Apply("a", cm(json!({"l": "2"}))),
            ],
            json!({"l": "2"}),
        ),
        (
            "shared stays",
            "ConfigMap",
            "/data",
            vec![
                Apply("a", cm(json!({"k": "1"}))),
                Apply("b", cm(json!({"k": "1"}))),
                Apply("a", cm(json!({}))),
            ],
            json!({"k": "1"}),
        ),
        (
            "last owner removes",
            "ConfigMap",
            "/data",
            vec![
                Apply("a", cm(json!({"k": "1", "z": "1"}))),
                Apply("b", cm(json!({"k": "1"}))),
                Apply("a", cm(json!({"z": "1"}))),
                Apply("b", cm(json!({"z": "1"}))),
            ],
            json!({"z": "1"}),
        ),
        (
            "force",
            "ConfigMap",
            "/data",
            vec![
                Apply("a", cm(json!({"k": "1"}))),
                Force("b", cm(json!({"k": "2"}))),
            ],
            json!({"k": "2"}),
        ),
        (
            "list by keys with a default",
            "Service",
            "/spec/ports",
            vec![
                Apply("a", ports(json!([{"port": 80, "name": "http"}]))),
                Apply("b", ports(json!([{"port": 443, "protocol": "TCP"}]))),
                Apply(
                    "a",
                    ports(json!([{"port": 80, "protocol": "TCP", "name": "web"}])),
                ),
            ],
            json!([{"port": 80, "protocol": "TCP", "name": "web"}, {"port": 443, "protocol": "TCP"}]),
        ),
        (
            "item removed",
            "Service",
            "/spec/ports",
            vec![
                Apply("a", ports(json!([{"port": 80}, {"port": 81}]))),
                Apply("a", ports(json!([{"port": 81}]))),
            ],
            json!([{"port": 81}]),
        ),
        (
            "set",
            "Pod",
            "/metadata/finalizers",
            vec![
                Apply("a", json!({"metadata": {"finalizers": ["x/a", "x/b"]}})),
                Apply("b", json!({"metadata": {"finalizers": ["x/c"]}})),
                Apply("a", json!({"metadata": {"finalizers": ["x/b"]}})),
            ],
            json!(["x/b", "x/c"]),
        ),
        (
            "atomic list",
            "Pod",
            "/spec/containers/0/args",
            vec![
                Apply(
                    "a",
                    json!({"spec": {"containers": [{"name": "c", "args": ["1", "2"]}]}}),
                ),
                Apply(
                    "a",
                    json!({"spec": {"containers": [{"name": "c", "args": ["3"]}]}}),
                ),
            ],
            json!(["3"]),
        ),
        (
            "others' fields of an item stay",
            "Pod",
            "/spec/containers",
            vec![
                Apply(
                    "a",
                    json!({"spec": {"containers": [{"name": "c", "image": "i"}]}}),
                ),
                Apply(
                    "b",
                    json!({"spec": {"containers": [{"name": "c", "tty": true}]}}),
                ),
                Apply("a", json!({"spec": {"nodeName": "n"}})),
            ],
            json!([{"name": "c", "tty": true}]),
        ),
    ] {
        let object = run(kind, steps).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(object.pointer(at), Some(&want), "{name}: {object}");
    }
}

#[test]
fn conflicts() {
    let replicas = |n: i64| json!({"spec": {"replicas": n}});
    for (name, steps, want) in [
        (
            "update then apply",
            vec![
                Update("kubectl-client-side-apply", replicas(1)),
                Apply("me", replicas(2)),
            ],
            "Apply failed with 1 conflict: conflict with \"kubectl-client-side-apply\" using apps/v1: .spec.replicas",
        ),
        (
            "two appliers",
            vec![Apply("a", replicas(1)), Apply("b", replicas(2))],
            "Apply failed with 1 conflict: conflict with \"a\": .spec.replicas",
        ),
        (
            "several",
            vec![
                Apply(
                    "a",
                    json!({"spec": {"replicas": 1, "paused": true, "template": {"spec": {"containers": [{"name": "c", "image": "i"}]}}}}),
                ),
                Apply(
                    "b",
                    json!({"spec": {"replicas": 2, "template": {"spec": {"containers": [{"name": "c", "image": "j"}]}}}}),
                ),
            ],
            "Apply failed with 2 conflicts: conflicts with \"a\":\n- .spec.replicas\n- .spec.template.spec.containers[name=\"c\"].image",
        ),
        (
            "unknown field",
            vec![Apply(
                "a",
                json!({"metadata": {"name": "d", "namespace": "ns"}, "spec": {"nope": 1}}),
            )],
            "failed to create typed patch object (ns/d; apps/v1, Kind=Deployment): .spec.nope: field not declared in schema",
        ),
        (
            "managed fields",
            vec![Apply("a", json!({"metadata": {"managedFields": [{}]}}))],
            "metadata.managedFields must be nil",
        ),
    ] {
        let error = run("Deployment", steps)
            .err()
            .unwrap_or_else(|| panic!("{name}: no error"));
        assert_eq!(error.message, want, "{name}");
    }
}

#[test]
fn ownership() {
    let object = run("Deployment", vec![
        Update("kubectl-create", json!({"metadata": {"name": "d", "labels": {"app": "d"}}, "spec": {"replicas": 1, "template": {"spec": {"containers": [
            {"name": "c", "image": "i", "ports": [{"containerPort": 80, "protocol": "TCP"}], "resources": {}}]}}}})),
        Update("scaler", json!({"metadata": {"name": "d", "labels": {"app": "d"}}, "spec": {"replicas": 3, "template": {"spec": {"containers": [
            {"name": "c", "image": "i", "ports": [{"containerPort": 80, "protocol": "TCP"}], "resources": {}}]}}}})),
    ]).unwrap();
    let container = json!({".": {}, "f:name": {}, "f:image": {}, "f:resources": {},
        "f:ports": {".": {}, "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}, "f:protocol": {}}}});
    assert_eq!(
        owners(&object),
        [
            (
                "kubectl-create/Update".to_string(),
                json!({"f:metadata": {"f:labels": {".": {}, "f:app": {}}},
            "f:spec": {"f:template": {"f:spec": {"f:containers": {"k:{\"name\":\"c\"}": container}}}}})
            ),
            (
                "scaler/Update".to_string(),
                json!({"f:spec": {"f:replicas": {}}})
            ),
        ]
    );
}

#[test]
fn fields_form_round_trips() {
    for text in [
        r#"{"f:spec":{"f:ports":{".":{},"k:{\"containerPort\":80,\"protocol\":\"TCP\"}":{".":{},"f:name":{}}}}}"#,
        r#"{"f:metadata":{"f:finalizers":{".":{},"v:\"x/y\"":{}}},"i:3":{}}"#,
        r#"{}"#,
    ] {
        let set = Set::from_fields(&serde_json::from_str(text).unwrap()).unwrap();
        assert_eq!(set.to_fields().to_string(), text);
    }
    for bad in [
        r#"{"x":{}}"#,
        r#"{"fspec":{}}"#,
        r#"{"k:[]":{}}"#,
        r#"{"i:x":{}}"#,
        r#"{"f:a":1}"#,
    ] {
        assert!(
            Set::from_fields(&serde_json::from_str(bad).unwrap()).is_err(),
            "{bad}"
        );
    }
}

#[test]
fn update_managers_are_capped() {
    let steps = (0..14)
        .map(|n| {
            let data: value::Object = (0..=n).map(|k| (format!("k{k:02}"), json!("v"))).collect();
            Update(
                Box::leak(format!("m{n:02}").into_boxed_str()),
                json!({"data": data}),
            )
        })
        .collect();
    let names: Vec<String> = owners(&run("ConfigMap", steps).unwrap())
        .into_iter()
        .map(|o| o.0)
        .collect();
    assert_eq!(names.len(), 10, "{names:?}");
    assert_eq!(names[0], "ancient-changes/Update");
}

#[test]
fn custom_resources_merge_by_their_schema() {
    let schema = crate::structural::Structural::parse_root(&json!({
        "type": "object",
        "properties": {"spec": {"type": "object", "properties": {
            "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port", "protocol"],
                "items": {"type": "object", "properties": {
                    "port": {"type": "integer"},
                    "protocol": {"type": "string", "default": "TCP"},
                    "name": {"type": "string"}}}},
            "plain": {"type": "array", "items": {"type": "string"}},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}
        }}}
    }));
    let shape = Shape::Custom(&schema);
    let steps = |second: Value| {
        vec![
            Apply(
                "a",
                json!({"metadata": {"name": "x"}, "spec": {"ports": [{"port": 80, "name": "a"}], "plain": ["1"], "free": {"x": {"y": 1}}}}),
            ),
            Apply("b", json!({"metadata": {"name": "x"}, "spec": second})),
        ]
    };
    let merged = run_shape(
        "Widget",
        shape,
        steps(json!({"ports": [{"port": 81}], "free": {"x": {"z": 2}}})),
    )
    .unwrap();
    assert_eq!(
        merged["spec"],
        json!({"ports": [{"port": 80, "name": "a"}, {"port": 81}], "plain": ["1"], "free": {"x": {"y": 1, "z": 2}}})
    );
    assert_eq!(
        owners(&merged)[1].1["f:spec"]["f:ports"],
        json!({"k:{\"port\":81,\"protocol\":\"TCP\"}": {".": {}, "f:port": {}}})
    );
    let conflict = run_shape("Widget", shape, steps(json!({"plain": ["2"]}))).unwrap_err();
    assert_eq!(
        conflict.message,
        "Apply failed with 1 conflict: conflict with \"a\": .spec.plain"
    );
    let wrong = run_shape("Widget", shape, steps(json!({"typo": 1}))).unwrap_err();
    assert!(
        wrong
            .message
            .ends_with(".spec.typo: field not declared in schema"),
        "{}",
        wrong.message
    );
}
