//! Schemas against values: what is said, what is taken out, what is put in.

use serde_json::json;

use super::*;
use crate::status::field::Path;

fn spec(schema: Value) -> Structural {
    Structural::parse_root(&json!({
        "type": "object",
        "properties": {"spec": schema}
    }))
}

fn said(schema: &Structural, value: &Value) -> Vec<String> {
    validate(schema, value, &Path::root())
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[test]
fn objections_are_worded_as_upstream() {
    // schema of spec, value of spec, objections
    let cases = [
        (json!({"type": "string"}), json!("a"), vec![]),
        (
            json!({"type": "string"}),
            json!(1),
            vec![
                r#"spec: Invalid value: "integer": spec in body must be of type string: "integer""#,
            ],
        ),
        (
            json!({"type": "integer"}),
            json!("1"),
            vec![
                r#"spec: Invalid value: "string": spec in body must be of type integer: "string""#,
            ],
        ),
        (json!({"type": "integer"}), json!(1.0), vec![]),
        (
            json!({"type": "integer"}),
            json!(1.5),
            vec![
                r#"spec: Invalid value: "number": spec in body must be of type integer: "number""#,
                r#"<nil>: Invalid value: "": Checked value must be of type integer (default format) in spec"#,
            ],
        ),
        (json!({"type": "number"}), json!(1), vec![]),
        (
            json!({"type": "integer", "format": "int32"}),
            json!(3_000_000_000_i64),
            vec![
                r#"<nil>: Invalid value: "": Checked value must be of type integer with format int32 in spec"#,
            ],
        ),
        (
            json!({"type": "object", "required": ["a", "b"], "properties": {"a": {"type": "string"}}}),
            json!({"a": null}),
            vec![
                r#"spec.a: Invalid value: "null": spec.a in body must be of type string: "null""#,
                "spec.b: Required value",
            ],
        ),
        (
            json!({"type": "string", "nullable": true}),
            json!(null),
            vec![],
        ),
        (
            json!({"type": "string", "enum": ["a", "b"]}),
            json!("c"),
            vec![r#"spec: Unsupported value: "c": supported values: "a", "b""#],
        ),
        (
            json!({"type": "string", "maxLength": 2}),
            json!("abc"),
            vec!["spec: Too long: may not be more than 2 bytes"],
        ),
        (
            json!({"type": "string", "minLength": 2}),
            json!("é"),
            vec![r#"spec: Invalid value: "é": spec in body should be at least 2 chars long"#],
        ),
        (
            json!({"type": "string", "pattern": "^a\\d+$"}),
            json!("b"),
            vec![r#"spec: Invalid value: "b": spec in body should match '^a\d+$'"#],
        ),
        (
            json!({"type": "integer", "minimum": 1, "maximum": 3}),
            json!(0),
            vec!["spec: Invalid value: 0: spec in body should be greater than or equal to 1"],
        ),
        (
            json!({"type": "number", "maximum": 1.5, "exclusiveMaximum": true}),
            json!(1.5),
            vec!["spec: Invalid value: 1.5: spec in body should be less than 1.5"],
        ),
        (
            json!({"type": "integer", "multipleOf": 5}),
            json!(7),
            vec!["spec: Invalid value: 7: spec in body should be a multiple of 5"],
        ),
        (
            json!({"type": "array", "maxItems": 1, "items": {"type": "string"}}),
            json!(["a", 2]),
            vec![
                "spec: Too many: 2: must have at most 1 item",
                r#"spec[1]: Invalid value: "integer": spec[1] in body must be of type string: "integer""#,
            ],
        ),
        (
            json!({"type": "array", "minItems": 1, "items": {"type": "string"}}),
            json!([]),
            vec!["spec: Invalid value: 0: spec in body should have at least 1 items"],
        ),
        (
            json!({"x-kubernetes-int-or-string": true}),
            json!("5%"),
            vec![],
        ),
        (
            json!({"x-kubernetes-int-or-string": true}),
            json!(true),
            vec![
                r#"spec: Invalid value: "boolean": spec in body must be of type integer,string: "boolean""#,
            ],
        ),
        (
            json!({"type": "string", "format": "date-time"}),
            json!("yesterday"),
            vec![
                r#"spec: Invalid value: "yesterday": spec in body must be of type date-time: "yesterday""#,
            ],
        ),
        (
            json!({"type": "object", "additionalProperties": {"type": "integer"}}),
            json!({"x": "y"}),
            vec![
                r#"spec.x: Invalid value: "string": spec.x in body must be of type integer: "string""#,
            ],
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
                "oneOf": [{"required": ["a"]}, {"required": ["b"]}]}),
            json!({"a": "", "b": ""}),
            vec![
                r#"<nil>: Invalid value: "": "spec" must validate one and only one schema (oneOf). Found 2 valid alternatives"#,
            ],
        ),
        (
            json!({"type": "object", "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}),
            json!({}),
            vec![
                r#"<nil>: Invalid value: "": "spec" must validate at least one schema (anyOf)"#,
                "spec.a: Required value",
            ],
        ),
        (
            json!({"type": "integer", "not": {"minimum": 3}}),
            json!(4),
            vec![r#"<nil>: Invalid value: "": "spec" must not validate the schema (not)"#],
        ),
        (
            json!({"type": "integer", "allOf": [{"minimum": 3}, {"maximum": 9}]}),
            json!(1),
            vec![
                r#"<nil>: Invalid value: "": "spec" must validate all the schemas (allOf)"#,
                "spec: Invalid value: 1: spec in body should be greater than or equal to 3",
            ],
        ),
    ];
    for (schema, value, mut wanted) in cases {
        let mut got = said(&spec(schema.clone()), &json!({"spec": value}));
        got.sort();
        wanted.sort();
        assert_eq!(got, wanted, "{schema} {value}");
    }
}

#[test]
fn unchanged_parts_are_left_alone() {
    let schema = spec(json!({
        "type": "object",
        "properties": {
            "a": {"type": "string", "maxLength": 1},
            "list": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                "items": {"type": "object", "properties": {
                    "k": {"type": "string"}, "v": {"type": "string", "maxLength": 1}}}},
            "plain": {"type": "array", "items": {"type": "string", "maxLength": 1}}
        }
    }));
    let old = json!({"spec": {"a": "long", "list": [{"k": "x", "v": "long"}], "plain": ["long"]}});
    for (new, wanted) in [
        (json!({"a": "long"}), 0),
        (json!({"a": "longer"}), 1),
        (
            json!({"list": [{"k": "y", "v": ""}, {"k": "x", "v": "long"}]}),
            0,
        ),
        (json!({"list": [{"k": "y", "v": "long"}]}), 1),
        (json!({"plain": ["long"]}), 0),
        (json!({"plain": ["", "long"]}), 1),
    ] {
        let found = validate_update(&schema, &json!({"spec": new}), Some(&old), &Path::root());
        assert_eq!(found.len(), wanted, "{new}: {found:?}");
    }
}

#[test]
fn formats() {
    for (format, good, bad) in [
        ("ipv4", "10.0.0.1", "10.0.0.256"),
        ("ipv6", "::1", "1"),
        ("cidr", "10.0.0.0/8", "10.0.0.0/33"),
        ("date", "2024-02-29", "2023-02-29"),
        (
            "date-time",
            "2024-01-01T00:00:00.5+01:00",
            "2024-01-01 00:00:00",
        ),
        ("duration", "1h30m", "soon"),
        ("duration", "3 days", ""),
        ("email", "a@b.example", "a.b.example"),
        ("hostname", "a-1.example.com", "-a"),
        ("uri", "https://h:1/p?q", "no uri"),
        ("uuid", "123e4567-e89b-12d3-a456-426614174000", "123"),
        ("byte", "YWI=", "*"),
        ("mac", "01:02:03:04:05:ab", "01:02"),
        ("isbn", "978-0321751041", "978-0321751042"),
        ("hexcolor", "#FFF", "#FFFG"),
        ("k8s-short-name", "a-b", "A"),
        ("creditcard", "4111 1111 1111 1111", "4111 1111 1111 1112"),
    ] {
        assert!(format::is_of_format(format, good), "{format} {good}");
        assert!(!format::is_of_format(format, bad), "{format} {bad}");
        assert!(known_format(SchemaType::String, format), "{format}");
    }
}

#[test]
fn go_patterns() {
    for (pattern, text, wanted) in [
        (r"^[\w.-]+$", "a_b-1.c", true),
        (r"^\d$", "٣", false),
        (r"^[^\s/]+$", "a b", false),
        (r"^[[:alpha:]]+$", "abc", true),
        (r"^[]a]+$", "]a", true),
        (r"^[a[]+$", "[a", true),
        (r"^[&&]$", "&", true),
        (r"^\Qa.b\E$", "a.b", true),
        (r"^\Qa.b\E$", "axb", false),
        (r"^\p{L}+$", "né", true),
    ] {
        assert_eq!(
            compile(pattern).map(|regex| regex.is_match(text)),
            Ok(wanted),
            "{pattern} {text}"
        );
    }
    assert!(compile("(").is_err());
}

#[test]
fn prunes_and_defaults() {
    let schema = Structural::parse_root(&json!({
        "type": "object",
        "properties": {
            "spec": {"type": "object", "default": {}, "properties": {
                "a": {"type": "string", "default": "x"},
                "n": {"type": "string"},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
                    "properties": {"known": {"type": "object", "properties": {"b": {"type": "string"}}}}},
                "map": {"type": "object", "additionalProperties": {"type": "object",
                    "properties": {"c": {"type": "integer", "default": 1}}}},
                "list": {"type": "array", "items": {"type": "object", "properties": {"d": {"type": "string"}}}},
                "object": {"type": "object", "x-kubernetes-embedded-resource": true,
                    "properties": {"spec": {"type": "object"}}}
            }}
        }
    }));
    let mut value = json!({
        "apiVersion": "g/v1", "kind": "K", "metadata": {"name": "n"}, "other": 1,
        "spec": {
            "n": null, "z": 1,
            "free": {"any": {"thing": 1}, "known": {"b": "", "q": 1}},
            "map": {"m": {"w": 1}},
            "list": [{"d": "", "e": 1}],
            "object": {"apiVersion": "v1", "kind": "Pod", "metadata": {}, "x": 1, "spec": {"y": 1}}
        }
    });
    let unknown = prune(&mut value, &schema, true);
    assert_eq!(
        unknown,
        [
            "other",
            "spec.free.known.q",
            "spec.list[0].e",
            "spec.map.m.w",
            "spec.object.spec.y",
            "spec.object.x",
            "spec.z"
        ]
    );
    drop_nulls(&mut value, &schema);
    set_defaults(&mut value, &schema);
    assert_eq!(
        value,
        json!({
            "apiVersion": "g/v1", "kind": "K", "metadata": {"name": "n"},
            "spec": {
                "a": "x",
                "free": {"any": {"thing": 1}, "known": {"b": ""}},
                "map": {"m": {"c": 1}},
                "list": [{"d": ""}],
                "object": {"apiVersion": "v1", "kind": "Pod", "metadata": {}, "spec": {}}
            }
        })
    );
    let mut empty = json!({});
    set_defaults(&mut empty, &schema);
    assert_eq!(empty, json!({"spec": {"a": "x"}}));
}

#[test]
fn lists_by_key() {
    let schema = spec(json!({"type": "object", "properties": {
        "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "map": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k", "l"],
            "items": {"type": "object", "properties": {"k": {"type": "string"}, "l": {"type": "string"}}}}
    }}));
    let found = validate_lists(
        &json!({"spec": {"set": ["a", "b", "a", "a"], "map": [{"k": "1", "l": "2"}, {"k": "1"}, {"k": "1", "l": "2", "v": 1}]}}),
        &schema,
        &Path::root(),
    );
    let said: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(
        said,
        [
            r#"spec.map[2]: Duplicate value: {"k":"1","l":"2"}"#,
            r#"spec.set[2]: Duplicate value: "a""#
        ]
    );
}

/// Bodies are large, and names in them as long as they are: what is told of them stays small, and nothing is compared
/// each with each.
#[test]
fn what_is_told_is_bounded() {
    use crate::status::field::{MAX_FINDINGS, MAX_PATH};
    use crate::value::Object;
    let schema = spec(json!({"type": "object", "additionalProperties": {
        "type": "object",
        "properties": {"list": {"type": "array", "items": {"type": "integer"}}},
    }}));
    let many: Object = (0..5_000).map(|n| (format!("m{n}"), json!(1))).collect();
    let mut long = Object::new();
    long.insert("k".repeat(1 << 20), Value::Object(many.clone()));
    long.insert("short".to_owned(), Value::Object(many));
    let mut object = json!({"spec": long});
    let unknown = prune(&mut object, &schema, true);
    assert_eq!(unknown.len(), MAX_FINDINGS);
    assert!(unknown.iter().all(|path| path.len() <= MAX_PATH));
    assert_eq!(object["spec"]["short"], json!({}));

    let wrong = json!({"spec": {"k".repeat(1 << 20): {"list": vec!["x"; 5_000]}}});
    let found = validate(&schema, &wrong, &Path::root());
    assert!((1..=MAX_FINDINGS).contains(&found.len()), "{}", found.len());
    assert!(found.iter().all(|one| one.field.len() <= MAX_PATH));

    let keyed = spec(json!({
        "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["a"],
        "items": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
    }));
    let items = |b: Value| -> Value {
        let items = (0..20_000).map(|a| json!({"a": a, "b": b}));
        json!({"spec": items.collect::<Vec<_>>()})
    };
    // What was wrong before may stay, and only that.
    let (old, mut new) = (items(json!("x")), items(json!("x")));
    new["spec"][7]["b"] = json!("y");
    let found = validate_update(&keyed, &new, Some(&old), &Path::root());
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].field, "spec[7].b");

    assert!(compile(&"\\Qa\\E".repeat(20_000)).is_ok());
}
