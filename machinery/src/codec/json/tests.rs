//! JSON as upstream reads and writes it.

use serde_json::json;

use super::*;
use crate::codec::strict_message;
use crate::schema::Schema;

fn ty(name: &str) -> &'static Type {
    Schema::builtin()
        .lookup(name)
        .unwrap_or_else(|| panic!("no type {name}"))
}

const DEPLOYMENT: &str = "io.k8s.api.apps.v1.Deployment";
const POD: &str = "io.k8s.api.core.v1.Pod";

#[test]
fn strict_errors_are_upstreams() {
    for (name, text, want) in [
        (
            DEPLOYMENT,
            r#"{"spec":{"foo":1,"replicas":2,"replicas":3}}"#,
            r#"unknown field "spec.foo", duplicate field "spec.replicas""#,
        ),
        (
            POD,
            r#"{"Kind":"Pod","spec":{"containers":[{"name":"a"},{"Name":"b","env":[{"x":1}]}]}}"#,
            r#"unknown field "Kind", unknown field "spec.containers[1].Name", unknown field "spec.containers[1].env[0].x""#,
        ),
        (
            POD,
            r#"{"metadata":{"labels":{"a":"1","a":"2"}},"kind":"x","kind":"y"}"#,
            r#"duplicate field "metadata.labels.a", duplicate field "kind""#,
        ),
        // Reported once, wherever the value would have been left out.
        (
            POD,
            r#"{"spec":{"nodeName":"","nodeName":"a","nodeName":"b"}}"#,
            r#"duplicate field "spec.nodeName""#,
        ),
        // Types with a reader of their own report nothing.
        (
            "io.k8s.api.apps.v1.ControllerRevision",
            r#"{"data":{"a":1,"a":2}}"#,
            "",
        ),
        (
            "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps",
            r#"{"items":{"foo":1},"not":{"foo":1}}"#,
            r#"unknown field "not.foo""#,
        ),
    ] {
        let (_, errors) = decode(text.as_bytes(), ty(name), Strictness::Strict)
            .unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(
            strict_message(&errors).trim_start_matches("strict decoding error: "),
            want,
            "{text}"
        );
        assert_eq!(
            decode(text.as_bytes(), ty(name), Strictness::Lenient).map(|d| d.1),
            Ok(vec![])
        );
    }
    let (value, errors) =
        decode_any(br#"{"a":{"b":1,"b":[{"c":1,"c":2}]}}"#, Strictness::Strict).expect("decodes");
    assert_eq!(
        strict_message(&errors),
        r#"strict decoding error: duplicate field "a.b[0].c", duplicate field "a.b""#
    );
    assert_eq!(value, json!({"a": {"b": [{"c": 2}]}}));
    let many: Vec<String> = (0..300).map(|i| format!("\"x{i}\":1")).collect();
    let (_, errors) = decode(
        format!("{{{}}}", many.join(",")).as_bytes(),
        ty(POD),
        Strictness::Strict,
    )
    .expect("decodes");
    assert_eq!(errors.len(), 100);
}

#[test]
fn type_errors_are_gos() {
    for (name, text, want) in [
        (
            DEPLOYMENT,
            r#"{"spec":{"replicas":"3"}}"#,
            "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            DEPLOYMENT,
            r#"{"spec":{"replicas":3.5}}"#,
            "json: cannot unmarshal number 3.5 into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            DEPLOYMENT,
            r#"{"spec":{"replicas":3000000000}}"#,
            "json: cannot unmarshal number 3000000000 into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            DEPLOYMENT,
            r#"{"spec":{"template":{"spec":{"containers":[{"name":5}]}}}}"#,
            "json: cannot unmarshal number into Go struct field Container.spec.template.spec.containers.name of type string",
        ),
        (
            POD,
            r#"{"spec":{"volumes":[{"name":"a","emptyDir":[]}]}}"#,
            "json: cannot unmarshal array into Go struct field Volume.spec.volumes.VolumeSource.emptyDir of type v1.EmptyDirVolumeSource",
        ),
        (
            POD,
            r#"{"spec":{"restartPolicy":true}}"#,
            "json: cannot unmarshal bool into Go struct field PodSpec.spec.restartPolicy of type v1.RestartPolicy",
        ),
        (
            POD,
            r#"{"spec":{"containers":{}}}"#,
            "json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type []v1.Container",
        ),
        (
            POD,
            r#"{"metadata":{"labels":{"a":1}}}"#,
            "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string",
        ),
        (
            POD,
            r#"{"metadata":{"creationTimestamp":5}}"#,
            "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.creationTimestamp of type string",
        ),
        (
            POD,
            r#"{"metadata":{"creationTimestamp":"x"}}"#,
            "parsing time \"x\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"x\" as \"2006\"",
        ),
        (
            "io.k8s.api.core.v1.Service",
            r#"{"spec":{"ports":[{"targetPort":true}]}}"#,
            "json: cannot unmarshal bool into Go struct field ServicePort.spec.ports.targetPort of type int32",
        ),
        (
            POD,
            r#"{"spec":{"containers":[{"resources":{"limits":{"cpu":"x"}}}]}}"#,
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ),
        (
            "io.k8s.api.core.v1.Secret",
            r#"{"data":{"a":"?"}}"#,
            "illegal base64 data at input byte 0",
        ),
        (
            POD,
            r#"{"kind":1}"#,
            "json: cannot unmarshal number into Go struct field Pod.TypeMeta.kind of type string",
        ),
        (
            POD,
            "[]",
            "json: cannot unmarshal array into Go value of type v1.Pod",
        ),
    ] {
        let got = decode(text.as_bytes(), ty(name), Strictness::Strict).map(|d| d.0);
        assert_eq!(got, Err(DecodeError::Type(want.to_string())), "{text}");
    }
}

#[test]
fn syntax_errors_are_gos() {
    for (text, want) in [
        ("", "unexpected end of JSON input"),
        ("{", "unexpected end of JSON input"),
        (r#"{"a":"b"#, "unexpected end of JSON input"),
        (
            "{]",
            "invalid character ']' looking for beginning of object key string",
        ),
        (r#"{"a" 1}"#, "invalid character '1' after object key"),
        (
            r#"{"a":1 "b":2}"#,
            "invalid character '\"' after object key:value pair",
        ),
        ("[1 2]", "invalid character '2' after array element"),
        ("{} x", "invalid character 'x' after top-level value"),
        (
            r#"{"a":x}"#,
            "invalid character 'x' looking for beginning of value",
        ),
        (
            r#"{"a":tru}"#,
            "invalid character '}' in literal true (expecting 'e')",
        ),
        (r#"{"a":-}"#, "invalid character '}' in numeric literal"),
        (
            r#"{"a":1.}"#,
            "invalid character '}' after decimal point in numeric literal",
        ),
        (
            r#"{"a":01}"#,
            "invalid character '1' after object key:value pair",
        ),
        (
            "{\"a\":\"\n\"}",
            "invalid character '\\n' in string literal",
        ),
        (
            r#"{"a":"\x"}"#,
            "invalid character 'x' in string escape code",
        ),
        // The syntax error counts, though a type error came first.
        (
            r#"{"spec":5,"a":}"#,
            "invalid character '}' looking for beginning of value",
        ),
    ] {
        let got = decode(text.as_bytes(), ty(POD), Strictness::Strict).map(|d| d.0);
        assert_eq!(got, Err(DecodeError::Syntax(want.to_string())), "{text}");
    }
    for deep in ["[".repeat(200_000), "{\"a\":".repeat(200_000)] {
        let got = decode_any(deep.as_bytes(), Strictness::Lenient).map_err(|e| e.to_string());
        assert!(got.is_err_and(|e| e.ends_with("exceeded max depth")));
    }
}

/// The deepest object that is let in fits on a small stack through every codec, in a debug build too.
#[test]
fn depth_is_bounded() {
    let schema = ty("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps");
    let nested =
        |levels: usize| format!("{}{{}}{}", r#"{"not":"#.repeat(levels), "}".repeat(levels));
    let (value, _) = decode(nested(127).as_bytes(), schema, Strictness::Strict).expect("decodes");
    let bytes = crate::codec::protobuf::encode(&value, schema).expect("encodes");
    assert_eq!(
        crate::codec::protobuf::decode(&bytes, schema).as_ref(),
        Ok(&value)
    );
    let text = crate::codec::yaml::encode(&value);
    let (back, _) = crate::codec::yaml::decode(&text, schema, Strictness::Strict).expect("decodes");
    assert_eq!(back, value);
    for levels in [128, 100_000] {
        let got = decode(nested(levels).as_bytes(), schema, Strictness::Strict)
            .map_err(|e| e.to_string());
        assert_eq!(got, Err("invalid character '{' exceeded max depth".into()));
    }
}

#[test]
fn the_result_is_a_go_round_trip() {
    let text = r#"{
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "a\u00e9\ud83d\ude00", "labels": {"x": null}, "creationTimestamp": null, "annotations": {}},
        "spec": {
            "containers": [{"name": "c", "command": null, "resources": {"limits": {"cpu": 1, "memory": "1024Mi"}},
                "env": [{"name": "E", "value": ""}, null]}],
            "terminationGracePeriodSeconds": 0, "hostNetwork": false, "priority": null
        }
    }"#;
    let want = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "aé😀", "labels": {"x": ""}},
        "spec": {
            "containers": [{"name": "c", "resources": {"limits": {"cpu": "1", "memory": "1Gi"}},
                "env": [{"name": "E"}, {"name": ""}]}],
            "terminationGracePeriodSeconds": 0
        },
        "status": {}
    });
    let (got, errors) = decode(text.as_bytes(), ty(POD), Strictness::Strict).expect("decodes");
    assert_eq!((&got, errors), (&want, vec![]));
    assert_eq!(
        decode_value(&got, ty(POD), Strictness::Strict),
        Ok((want, vec![]))
    );
}

#[test]
fn numbers_and_strings_are_written_as_go_does() {
    for (text, want) in [
        ("9223372036854775807", "9223372036854775807"),
        ("-9223372036854775808", "-9223372036854775808"),
        ("9223372036854775808", "9223372036854776000"),
        ("1.0", "1"),
        ("1.50", "1.5"),
        ("1e21", "1e+21"),
        ("1e20", "100000000000000000000"),
        ("0.0000001", "1e-7"),
        ("0.000001", "0.000001"),
        ("-0.5", "-0.5"),
        (
            r#""<a&b>\u2028\/\"\\\u0001\u007f""#,
            "\"\\u003ca\\u0026b\\u003e\\u2028/\\\"\\\\\\u0001\u{7f}\"",
        ),
        (r#""\ud800x""#, "\"\u{fffd}x\""),
    ] {
        let (value, _) = decode_any(text.as_bytes(), Strictness::Strict)
            .unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(String::from_utf8_lossy(&encode(&value)), want, "{text}");
    }
    assert_eq!(
        String::from_utf8_lossy(&encode_pretty(
            &json!({"a": [], "b": [1, {}], "c": {"d": null}})
        )),
        "{\n  \"a\": [],\n  \"b\": [\n    1,\n    {}\n  ],\n  \"c\": {\n    \"d\": null\n  }\n}"
    );
}

#[test]
fn type_meta_is_read_alone() {
    let read = |text: &str| {
        type_meta(text.as_bytes())
            .map(|m| format!("{}|{}", m.api_version, m.kind))
            .map_err(|e| e.to_string())
    };
    assert_eq!(
        read(r#"{"spec":{"kind":"no"},"kind":"Pod","apiVersion":"v1"}"#),
        Ok("v1|Pod".into())
    );
    assert_eq!(read("null"), Ok("|".into()));
    assert_eq!(
        read(r#"{"kind":"Pod""#),
        Err("couldn't get version/kind; json parse error: unexpected end of JSON input".into())
    );
    assert_eq!(
        read(r#"{"kind":5}"#),
        Err("couldn't get version/kind; json parse error: json: cannot unmarshal number into Go struct field .kind of type string".into())
    );
}

#[test]
fn one_long_key_does_not_stand_in_every_error() {
    let key = "k".repeat(1 << 20);
    let text = format!("{{\"{key}\":{{{}}}}}", ["\"a\":1"; 500].join(","));
    let (_, strict) = decode_any(text.as_bytes(), Strictness::Strict).expect("decodes");
    assert_eq!(strict, [StrictError::Duplicate("a".to_owned())]);
    let text = format!("{{\"key\":{{{}}}}}", ["\"a\":1"; 3].join(","));
    let (_, strict) = decode_any(text.as_bytes(), Strictness::Strict).expect("decodes");
    assert_eq!(strict, [StrictError::Duplicate("key.a".to_owned())]);
}
