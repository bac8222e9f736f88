//! Protobuf beyond the fixtures: zero values, bad bytes, frames.

use serde_json::json;

use super::*;
use crate::schema::{Schema, Type};
use crate::value::Value;

fn ty(name: &str) -> &'static Type {
    Schema::builtin()
        .lookup(name)
        .unwrap_or_else(|| panic!("no type {name}"))
}

/// A value that goes over the wire and comes back as `want`.
fn round(name: &str, value: Value, want: Value) {
    let bytes = encode(&value, ty(name)).unwrap_or_else(|e| panic!("{e}"));
    let back = decode(&bytes, ty(name)).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(back, want, "{name}");
    assert_eq!(
        encode(&back, ty(name)).as_ref(),
        Ok(&bytes),
        "{name} is not stable"
    );
}

#[test]
fn zero_values_and_special_forms() {
    round(
        "io.k8s.api.core.v1.Pod",
        json!({}),
        json!({"metadata": {}, "spec": {"containers": null}, "status": {}}),
    );
    round(
        "io.k8s.api.core.v1.Secret",
        json!({"metadata": {}, "data": {"b": "", "a": "AP8="}}),
        json!({"metadata": {}, "data": {"b": "", "a": "AP8="}}),
    );
    round(
        "io.k8s.api.core.v1.ServicePort",
        json!({"port": -1, "targetPort": "web"}),
        json!({"port": -1, "targetPort": "web"}),
    );
    round(
        "io.k8s.api.core.v1.ServicePort",
        json!({"port": 1}),
        json!({"port": 1, "targetPort": 0}),
    );
    round(
        "io.k8s.api.coordination.v1.LeaseSpec",
        json!({"renewTime": "2020-01-02T03:04:05.678901Z"}),
        json!({"renewTime": "2020-01-02T03:04:05.678901Z"}),
    );
    round(
        "io.k8s.api.authentication.v1.UserInfo",
        json!({"username": "a", "extra": {"k": ["x", "y"]}}),
        json!({"username": "a", "extra": {"k": ["x", "y"]}}),
    );
    round(
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps",
        json!({
            "maximum": 1.5, "minimum": 2, "default": {"a": null}, "enum": ["a", 1, null],
            "items": {"type": "string"}, "additionalProperties": false,
            "additionalItems": {"type": "integer"}, "dependencies": {"x": ["y"], "z": {"type": "object"}},
            "properties": {"deep": {"properties": {"deeper": {"type": "string"}}}}
        }),
        json!({
            "maximum": 1.5, "minimum": 2, "default": {"a": null}, "enum": ["a", 1, null],
            "items": {"type": "string"}, "additionalProperties": false,
            "additionalItems": {"type": "integer"}, "dependencies": {"x": ["y"], "z": {"type": "object"}},
            "properties": {"deep": {"properties": {"deeper": {"type": "string"}}}}
        }),
    );
}

/// The zero Pod as upstream's generated code writes it: every nested struct and scalar that is no pointer.
#[test]
fn zero_container_is_byte_exact() {
    let bytes = encode(&json!({}), ty("io.k8s.api.core.v1.ContainerPort")).expect("encodes");
    assert_eq!(&bytes[..], b"\x0a\x00\x10\x00\x18\x00\x22\x00\x2a\x00");
}

#[test]
fn bad_bytes_are_refused() {
    let pod = ty("io.k8s.api.core.v1.Pod");
    let whole = encode_object(
        &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": [{"name": "c"}]}}),
        pod,
    )
    .expect("encodes");
    for length in 4..whole.len() {
        // Cut anywhere: an error or, where a whole field is missing, a smaller object; never a panic.
        let _ = decode_object(&whole[..length], pod);
    }
    assert_eq!(
        decode_object(b"{}", pod).map_err(|e| e.to_string()),
        Err("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]".into())
    );
    for (bytes, message) in [
        (&b"\x0a\x05ab"[..], "unexpected EOF"),
        (b"\x08\x01", "proto: wrong wireType = 0 for field metadata"),
        (b"\x00", "proto: illegal tag 0 (wire type 0)"),
        (
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            "proto: integer overflow",
        ),
        (
            b"\x0a\x03\x0a\x01\xff",
            "proto: invalid UTF-8 in string field",
        ),
    ] {
        assert_eq!(
            decode(bytes, pod).map_err(|e| e.to_string()),
            Err(message.into())
        );
    }
    // A schema within a schema within ..., deeper than any stack.
    let mut deep: Vec<u8> = Vec::new();
    for _ in 0..600 {
        // Field 28, `not`.
        let mut outer = vec![0xE2, 0x01];
        let mut length = deep.len();
        while length >= 0x80 {
            outer.push(length as u8 | 0x80);
            length >>= 7;
        }
        outer.push(length as u8);
        outer.extend_from_slice(&deep);
        deep = outer;
    }
    let schema = ty("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps");
    assert_eq!(
        decode(&deep, schema).map_err(|e| e.to_string()),
        Err("proto: exceeded max depth".into())
    );
}

#[test]
fn of_a_field_that_comes_again_the_last_counts() {
    let metadata = ty("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta");
    let part = |value: serde_json::Value| encode(&value, metadata).expect("encodes");
    let name = |name: &str| part(json!({"name": name, "finalizers": [name]}));
    let mut bytes = Vec::new();
    // Many times, with a list in between: what came before is found at once, not searched for.
    for round in 0..20_000 {
        bytes.extend_from_slice(&name(&format!("n{round}")));
    }
    let read = decode(&bytes, metadata).expect("decodes");
    assert_eq!(read["name"], "n19999");
    assert_eq!(read["finalizers"].as_array().map(Vec::len), Some(20_000));
    // An empty text (field 1, no bytes) takes the name away again.
    bytes.extend_from_slice(&[0x0a, 0]);
    let read = decode(&bytes, metadata).expect("decodes");
    assert_eq!(read.get("name"), None);
}

#[test]
fn wrong_values_are_named() {
    let pod = ty("io.k8s.api.core.v1.PodSpec");
    for (value, message) in [
        (
            json!({"containers": {}}),
            "cannot encode io.k8s.api.core.v1.PodSpec.containers as protobuf: not a list",
        ),
        (
            json!({"hostNetwork": "x"}),
            "cannot encode io.k8s.api.core.v1.PodSpec.hostNetwork as protobuf: has the wrong JSON type",
        ),
        (
            json!({"priority": 1.5}),
            "cannot encode io.k8s.api.core.v1.PodSpec.priority as protobuf: not an integer",
        ),
    ] {
        assert_eq!(
            encode(&value, pod).map_err(|e| e.to_string()),
            Err(message.into())
        );
    }
}

#[test]
fn watch_frames() {
    let object = encode_object(
        &json!({"apiVersion": "v1", "kind": "Status", "code": 410}),
        ty("io.k8s.apimachinery.pkg.apis.meta.v1.Status"),
    )
    .expect("encodes");
    let frame = encode_watch_frame("ERROR", &object);
    let (length, event) = frame.split_at(4);
    assert_eq!(
        u32::from_be_bytes(length.try_into().expect("4 bytes")) as usize,
        event.len()
    );
    let event =
        decode(event, ty("io.k8s.apimachinery.pkg.apis.meta.v1.WatchEvent")).expect("decodes");
    assert_eq!(event["type"], "ERROR");
    assert_eq!(event["object"]["kind"], "Status");
    assert_eq!(event["object"]["code"], 410);
}
