//! The Swagger 2.0 document in protobuf: the `openapi.v2.Document` message of `gnostic-models`, which kubectl asks for
//! as `application/com.github.proto-openapi.spec.v2@v1.0+protobuf`.
//!
//! The messages are tables below: the JSON name of each member that our document can have, with its field number.
//! A map of JSON becomes repeated entries of a name (field 1) and a value (field 2); a member whose name starts with
//! `x-` becomes such an entry too, its value as YAML text.

use keelson_machinery::codec::yaml;
use keelson_machinery::value::{Object, Value};

/// How a JSON value stands in a message.
enum Shape {
    /// Members with a field each. The number is that of `vendor_extension`; 0 where there is none.
    Fields(&'static [(&'static str, u32, Form)], u32),
    /// A map: the field of the repeated entries, the shape of their values, the field of extensions or 0.
    Entries(u32, &'static Shape, u32),
    /// One of several messages, each in a field of its own.
    OneOf(fn(&Value) -> (u32, &'static Shape)),
    /// A list of texts, or a single text in place of such a list.
    Texts(u32),
    /// `Any`: YAML text.
    Any,
    /// A list of messages, or a single one in place of such a list.
    List(u32, &'static Shape),
}

/// How a member stands in its field.
enum Form {
    Text,
    Texts,
    Bool,
    Int,
    Double,
    One(&'static Shape),
    Many(&'static Shape),
}

use Form::{Bool, Double, Int, Many, One, Text, Texts};

static DOCUMENT: Shape = Shape::Fields(
    &[
        ("swagger", 1, Text),
        ("info", 2, One(&INFO)),
        ("host", 3, Text),
        ("basePath", 4, Text),
        ("schemes", 5, Texts),
        ("consumes", 6, Texts),
        ("produces", 7, Texts),
        ("paths", 8, One(&Shape::Entries(2, &PATH_ITEM, 1))),
        ("definitions", 9, One(&Shape::Entries(1, &SCHEMA, 0))),
        ("security", 12, Many(&REQUIREMENT)),
        (
            "securityDefinitions",
            13,
            One(&Shape::Entries(1, &SECURITY_DEFINITION, 0)),
        ),
    ],
    16,
);

static INFO: Shape = Shape::Fields(
    &[
        ("title", 1, Text),
        ("version", 2, Text),
        ("description", 3, Text),
    ],
    7,
);

static REQUIREMENT: Shape = Shape::Entries(1, &Shape::Texts(1), 0);

/// Of the kinds of security definition, ours is an API key.
static SECURITY_DEFINITION: Shape = Shape::OneOf(|_| (2, &API_KEY));

static API_KEY: Shape = Shape::Fields(
    &[
        ("type", 1, Text),
        ("name", 2, Text),
        ("in", 3, Text),
        ("description", 4, Text),
    ],
    5,
);

static PATH_ITEM: Shape = Shape::Fields(
    &[
        ("$ref", 1, Text),
        ("get", 2, One(&OPERATION)),
        ("put", 3, One(&OPERATION)),
        ("post", 4, One(&OPERATION)),
        ("delete", 5, One(&OPERATION)),
        ("options", 6, One(&OPERATION)),
        ("head", 7, One(&OPERATION)),
        ("patch", 8, One(&OPERATION)),
        ("parameters", 9, Many(&PARAMETERS_ITEM)),
    ],
    10,
);

static OPERATION: Shape = Shape::Fields(
    &[
        ("tags", 1, Texts),
        ("summary", 2, Text),
        ("description", 3, Text),
        ("operationId", 5, Text),
        ("produces", 6, Texts),
        ("consumes", 7, Texts),
        ("parameters", 8, Many(&PARAMETERS_ITEM)),
        ("responses", 9, One(&Shape::Entries(1, &RESPONSE_VALUE, 2))),
        ("schemes", 10, Texts),
        ("deprecated", 11, Bool),
        ("security", 12, Many(&REQUIREMENT)),
    ],
    13,
);

static PARAMETERS_ITEM: Shape = Shape::OneOf(|value| match value.get("$ref") {
    Some(_) => (2, &REFERENCE),
    None => (1, &PARAMETER),
});

static REFERENCE: Shape = Shape::Fields(&[("$ref", 1, Text), ("description", 2, Text)], 0);

static PARAMETER: Shape =
    Shape::OneOf(
        |value| match value.get("in").and_then(Value::as_str) == Some("body") {
            true => (1, &BODY_PARAMETER),
            false => (2, &NON_BODY_PARAMETER),
        },
    );

static BODY_PARAMETER: Shape = Shape::Fields(
    &[
        ("description", 1, Text),
        ("name", 2, Text),
        ("in", 3, Text),
        ("required", 4, Bool),
        ("schema", 5, One(&SCHEMA)),
    ],
    6,
);

static NON_BODY_PARAMETER: Shape =
    Shape::OneOf(|value| match value.get("in").and_then(Value::as_str) {
        Some("header") => (1, &PLAIN_PARAMETER),
        Some("path") => (4, &PLAIN_PARAMETER),
        _ => (3, &QUERY_PARAMETER),
    });

/// Parameters in headers and in the path.
static PLAIN_PARAMETER: Shape = Shape::Fields(
    &[
        ("required", 1, Bool),
        ("in", 2, Text),
        ("description", 3, Text),
        ("name", 4, Text),
        ("type", 5, Text),
        ("format", 6, Text),
        ("uniqueItems", 19, Bool),
    ],
    22,
);

static QUERY_PARAMETER: Shape = Shape::Fields(
    &[
        ("required", 1, Bool),
        ("in", 2, Text),
        ("description", 3, Text),
        ("name", 4, Text),
        ("allowEmptyValue", 5, Bool),
        ("type", 6, Text),
        ("format", 7, Text),
        ("uniqueItems", 20, Bool),
    ],
    23,
);

static RESPONSE_VALUE: Shape = Shape::OneOf(|value| match value.get("$ref") {
    Some(_) => (2, &REFERENCE),
    None => (1, &RESPONSE),
});

static RESPONSE: Shape = Shape::Fields(
    &[
        ("description", 1, Text),
        ("schema", 2, One(&Shape::OneOf(|_| (1, &SCHEMA)))),
    ],
    5,
);

static SCHEMA: Shape = Shape::Fields(
    &[
        ("$ref", 1, Text),
        ("format", 2, Text),
        ("title", 3, Text),
        ("description", 4, Text),
        ("default", 5, One(&Shape::Any)),
        ("multipleOf", 6, Double),
        ("maximum", 7, Double),
        ("exclusiveMaximum", 8, Bool),
        ("minimum", 9, Double),
        ("exclusiveMinimum", 10, Bool),
        ("maxLength", 11, Int),
        ("minLength", 12, Int),
        ("pattern", 13, Text),
        ("maxItems", 14, Int),
        ("minItems", 15, Int),
        ("uniqueItems", 16, Bool),
        ("maxProperties", 17, Int),
        ("minProperties", 18, Int),
        ("required", 19, Texts),
        ("enum", 20, Many(&Shape::Any)),
        ("additionalProperties", 21, One(&ADDITIONAL_PROPERTIES)),
        ("type", 22, One(&Shape::Texts(1))),
        ("items", 23, One(&Shape::List(1, &SCHEMA))),
        ("allOf", 24, Many(&SCHEMA)),
        ("properties", 25, One(&Shape::Entries(1, &SCHEMA, 0))),
        ("discriminator", 26, Text),
        ("readOnly", 27, Bool),
        ("externalDocs", 29, One(&EXTERNAL_DOCS)),
        ("example", 30, One(&Shape::Any)),
    ],
    31,
);

static EXTERNAL_DOCS: Shape = Shape::Fields(&[("description", 1, Text), ("url", 2, Text)], 3);

/// A schema, or whether any may stand there. A boolean is no message: `true` is field 2, see [`message`].
static ADDITIONAL_PROPERTIES: Shape = Shape::OneOf(|_| (1, &SCHEMA));

/// Whether a schema of version 2 may have this member.
pub(super) fn schema_knows(name: &str) -> bool {
    let Shape::Fields(fields, _) = &SCHEMA else {
        return false;
    };
    name.starts_with("x-") || fields.iter().any(|(known, ..)| *known == name)
}

/// The message of a Swagger 2.0 document.
pub(super) fn encode(document: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    message(&mut out, document, &DOCUMENT);
    out
}

fn message(out: &mut Vec<u8>, value: &Value, shape: &Shape) {
    match (shape, value) {
        (Shape::Fields(fields, extension), Value::Object(members)) => {
            for (name, number, form) in *fields {
                if let Some(value) = members.get(*name) {
                    field(out, *number, value, form);
                }
            }
            extensions(out, *extension, members);
        }
        (Shape::Entries(number, shape, extension), Value::Object(members)) => {
            for (name, value) in members {
                if *extension == 0 || !name.starts_with("x-") {
                    entry(out, *number, name, value, shape);
                }
            }
            extensions(out, *extension, members);
        }
        (Shape::OneOf(_), Value::Bool(yes)) => {
            // A member of a oneof is written even when it is the zero value.
            key(out, 2, 0);
            varint(out, u64::from(*yes));
        }
        (Shape::OneOf(choose), value) => {
            let (number, shape) = choose(value);
            nested(out, number, value, shape);
        }
        (Shape::Texts(number), Value::Array(items)) => {
            for item in items.iter().filter_map(Value::as_str) {
                bytes(out, *number, item.as_bytes());
            }
        }
        (Shape::Texts(number), Value::String(text)) => bytes(out, *number, text.as_bytes()),
        (Shape::List(number, shape), Value::Array(items)) => {
            for item in items {
                nested(out, *number, item, shape);
            }
        }
        (Shape::List(number, shape), value) => nested(out, *number, value, shape),
        (Shape::Any, value) => bytes(out, 2, &yaml::encode(value)),
        // What is no object has no fields.
        (Shape::Fields(..) | Shape::Entries(..) | Shape::Texts(_), _) => {}
    }
}

fn extensions(out: &mut Vec<u8>, number: u32, members: &Object) {
    if number == 0 {
        return;
    }
    for (name, value) in members {
        if name.starts_with("x-") {
            entry(out, number, name, value, &Shape::Any);
        }
    }
}

fn entry(out: &mut Vec<u8>, number: u32, name: &str, value: &Value, shape: &Shape) {
    let mut pair = Vec::new();
    bytes(&mut pair, 1, name.as_bytes());
    nested(&mut pair, 2, value, shape);
    bytes(out, number, &pair);
}

fn nested(out: &mut Vec<u8>, number: u32, value: &Value, shape: &Shape) {
    let mut inner = Vec::new();
    message(&mut inner, value, shape);
    bytes(out, number, &inner);
}

/// A field of a message; what is the zero value is left out, as in all of proto3.
fn field(out: &mut Vec<u8>, number: u32, value: &Value, form: &Form) {
    match form {
        Text => match value.as_str() {
            Some("") | None => {}
            Some(text) => bytes(out, number, text.as_bytes()),
        },
        Texts => message(out, value, &Shape::Texts(number)),
        Bool => {
            if value.as_bool() == Some(true) {
                key(out, number, 0);
                varint(out, 1);
            }
        }
        Int => {
            let whole = value.as_i64().unwrap_or_default();
            if whole != 0 {
                key(out, number, 0);
                varint(out, whole.cast_unsigned());
            }
        }
        Double => {
            let double = value.as_f64().unwrap_or_default();
            if double != 0.0 {
                key(out, number, 1);
                out.extend_from_slice(&double.to_le_bytes());
            }
        }
        One(shape) => nested(out, number, value, shape),
        Many(shape) => {
            for item in value.as_array().into_iter().flatten() {
                nested(out, number, item, shape);
            }
        }
    }
}

fn bytes(out: &mut Vec<u8>, number: u32, content: &[u8]) {
    key(out, number, 2);
    varint(out, content.len() as u64);
    out.extend_from_slice(content);
}

fn key(out: &mut Vec<u8>, number: u32, wire_type: u32) {
    varint(out, u64::from(number << 3 | wire_type));
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
