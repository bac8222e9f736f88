//! Values to protobuf.

use bytes::Bytes;

use super::{EncodeError, MAGIC};
use crate::codec::{json, scalar};
use crate::schema::{Cardinality, Field, Kind, Type};
use crate::time;
use crate::value::{Object, Value};

/// Encodes the bare message, without envelope.
pub fn encode(value: &Value, of: &'static Type) -> Result<Bytes, EncodeError> {
    let mut out = Vec::with_capacity(512);
    message(&mut out, members(value), of)?;
    Ok(Bytes::from(out))
}

/// Encodes an object with its envelope; `kind` and `apiVersion` come from the value.
pub fn encode_object(value: &Value, of: &'static Type) -> Result<Bytes, EncodeError> {
    let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or("");
    let mut out = Vec::with_capacity(512);
    out.extend_from_slice(MAGIC);
    nested(&mut out, 1, |out| {
        bytes_field(out, 1, text("apiVersion").as_bytes());
        bytes_field(out, 2, text("kind").as_bytes());
        Ok(())
    })?;
    nested(&mut out, 2, |out| message(out, members(value), of))?;
    // Content encoding and type, which stay empty.
    bytes_field(&mut out, 3, b"");
    bytes_field(&mut out, 4, b"");
    Ok(Bytes::from(out))
}

/// One frame of a watch in protobuf: a big-endian length, then the `WatchEvent` around the enveloped object.
pub fn encode_watch_frame(event_type: &str, object: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(object.len() + event_type.len() + 32);
    out.extend_from_slice(&[0; 4]);
    bytes_field(&mut out, 1, event_type.as_bytes());
    let mut raw_head = Vec::with_capacity(12);
    tag(&mut raw_head, 1, 2);
    varint(&mut raw_head, object.len() as u64);
    tag(&mut out, 2, 2);
    varint(&mut out, (raw_head.len() + object.len()) as u64);
    out.extend_from_slice(&raw_head);
    out.extend_from_slice(object);
    let length = u32::try_from(out.len() - 4).unwrap_or(u32::MAX);
    out[..4].copy_from_slice(&length.to_be_bytes());
    Bytes::from(out)
}

type Write = Result<(), EncodeError>;

fn members(value: &Value) -> Option<&Object> {
    value.as_object()
}

fn varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn tag(out: &mut Vec<u8>, number: u32, wire_type: u8) {
    varint(out, u64::from(number) << 3 | u64::from(wire_type));
}

fn bytes_field(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    tag(out, number, 2);
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn number_field(out: &mut Vec<u8>, number: u32, n: u64) {
    tag(out, number, 0);
    varint(out, n);
}

/// Writes a length-delimited field whose length is known only afterwards: one byte is kept for it, and longer
/// lengths move the content up.
fn nested(out: &mut Vec<u8>, number: u32, content: impl FnOnce(&mut Vec<u8>) -> Write) -> Write {
    tag(out, number, 2);
    let at = out.len();
    out.push(0);
    content(out)?;
    let length = out.len() - at - 1;
    if length < 0x80 {
        out[at] = length as u8;
        return Ok(());
    }
    let mut head = Vec::with_capacity(10);
    varint(&mut head, length as u64);
    let extra = head.len() - 1;
    let end = out.len();
    out.resize(end + extra, 0);
    out.copy_within(at + 1..end, at + head.len());
    out[at..at + head.len()].copy_from_slice(&head);
    Ok(())
}

/// More fields than any type has.
const MAX_SLOTS: usize = 64;

/// Writes the fields of a message; `None` stands for an object without members.
fn message(out: &mut Vec<u8>, object: Option<&Object>, of: &'static Type) -> Write {
    let wire = of.wire_fields();
    // Mostly few of many fields are set, so the members are sorted into slots first rather than looked up by field.
    let mut slots = [None; MAX_SLOTS];
    let slotted = match of.wire_indexes() {
        Some(indexes) if wire.len() <= MAX_SLOTS => {
            for (name, value) in object.into_iter().flatten() {
                if let Some(index) = of.field_index(name) {
                    slots[usize::from(indexes[index])] = Some(value);
                }
            }
            true
        }
        _ => false,
    };
    for (index, field) in wire.iter().enumerate() {
        if field.inline {
            if let Kind::Message(inner) = field.kind {
                nested(out, field.number, |out| message(out, object, inner))?;
            }
            continue;
        }
        let value = if slotted {
            slots[index]
        } else {
            object.and_then(|o| o.get(field.json_name))
        };
        let value = value.filter(|v| !v.is_null());
        match field.cardinality {
            Cardinality::Optional => optional(out, value, field, of)?,
            Cardinality::Repeated => {
                if let Some(value) = value {
                    let Value::Array(items) = value else {
                        return wrong(of, field, "not a list");
                    };
                    for item in items {
                        single(out, item, field.kind, field.number, field, of)?;
                    }
                }
            }
            Cardinality::Map => {
                if let Some(value) = value {
                    let Value::Object(entries) = value else {
                        return wrong(of, field, "not a map");
                    };
                    for (key, item) in entries {
                        nested(out, field.number, |out| {
                            bytes_field(out, 1, key.as_bytes());
                            if item.is_null() && field.kind == Kind::Bytes {
                                return Ok(());
                            }
                            single(out, item, field.kind, 2, field, of)
                        })?;
                    }
                }
            }
        }
    }
    Ok(())
}

fn optional(
    out: &mut Vec<u8>,
    value: Option<&Value>,
    field: &'static Field,
    of: &'static Type,
) -> Write {
    match value {
        Some(value) => single(out, value, field.kind, field.number, field, of),
        None if field.pointer => Ok(()),
        None => zero(out, field.kind, field.number, field),
    }
}

/// Writes the zero value of a Go field that is no pointer.
fn zero(out: &mut Vec<u8>, kind: Kind, number: u32, field: &'static Field) -> Write {
    match kind {
        Kind::String => bytes_field(out, number, b""),
        Kind::Bool | Kind::Int32 | Kind::Int64 => number_field(out, number, 0),
        Kind::Double => {
            tag(out, number, 1);
            out.extend_from_slice(&[0; 8]);
        }
        // Nil slices are not written.
        Kind::Bytes => {}
        Kind::Items(_) if field.cardinality == Cardinality::Optional => {}
        Kind::Time | Kind::MicroTime | Kind::RawExtension | Kind::FieldsV1 | Kind::Json => {
            bytes_field(out, number, b"")
        }
        Kind::Items(_) => bytes_field(out, number, b""),
        Kind::Quantity => bytes_field(out, number, &[0x0A, 1, b'0']),
        Kind::IntOrString => bytes_field(out, number, &[0x08, 0, 0x10, 0, 0x1A, 0]),
        Kind::Duration => bytes_field(out, number, &[0x08, 0]),
        Kind::Message(inner) => bytes_field(out, number, inner.zero_wire()),
        Kind::SchemaOrArray(inner) | Kind::SchemaOrBool(inner) | Kind::SchemaOrStrings(inner) => {
            nested(out, number, |out| schema_or(out, &Value::Null, inner))?
        }
    }
    Ok(())
}

impl Type {
    /// The encoding of a value of this type that nothing set.
    fn zero_wire(&'static self) -> &'static [u8] {
        self.zero_wire_cell().get_or_init(|| {
            let mut out = Vec::new();
            // Without a value there is nothing that could be wrong.
            if message(&mut out, None, self).is_err() {
                out.clear();
            }
            out.into_boxed_slice()
        })
    }
}

/// Writes one value under a field number. Messages are apart from the other kinds, to keep the stack frames of deep
/// objects small.
fn single(
    out: &mut Vec<u8>,
    value: &Value,
    kind: Kind,
    number: u32,
    field: &'static Field,
    of: &'static Type,
) -> Write {
    if let (Kind::Message(inner), Value::Object(object)) = (kind, value) {
        return nested(out, number, |out| message(out, Some(object), inner));
    }
    other(out, value, kind, number, field, of)
}

#[inline(never)]
fn other(
    out: &mut Vec<u8>,
    value: &Value,
    kind: Kind,
    number: u32,
    field: &'static Field,
    of: &'static Type,
) -> Write {
    match (kind, value) {
        (_, Value::Null) => return zero(out, kind, number, field),
        (Kind::String, Value::String(text)) => bytes_field(out, number, text.as_bytes()),
        (Kind::Bool, Value::Bool(on)) => number_field(out, number, u64::from(*on)),
        (Kind::Int32 | Kind::Int64, Value::Number(n)) => match n.as_i64() {
            Some(n) => number_field(out, number, n as u64),
            None => return wrong(of, field, "not an integer"),
        },
        (Kind::Double, Value::Number(n)) => {
            let n = n.as_f64().unwrap_or_default();
            tag(out, number, 1);
            out.extend_from_slice(&n.to_le_bytes());
        }
        (Kind::Bytes, Value::String(text)) => match scalar::decode_base64(text) {
            Ok(bytes) => bytes_field(out, number, &bytes),
            Err(reason) => return wrong(of, field, &reason),
        },
        (Kind::Items(inner), Value::Array(items)) => nested(out, number, |out| {
            for list in inner.wire_fields() {
                for item in items {
                    single(out, item, list.kind, list.number, list, inner)?;
                }
            }
            Ok(())
        })?,
        (Kind::Quantity, Value::String(text)) => {
            // Values of the typed decoders are canonical; others may come from our own code.
            match scalar::quantity(text) {
                Ok(text) => nested(out, number, |out| {
                    bytes_field(out, 1, text.as_bytes());
                    Ok(())
                })?,
                Err(reason) => return wrong(of, field, &reason),
            }
        }
        (Kind::Quantity, Value::Number(n)) => {
            let text = scalar::quantity(&n.to_string()).map_err(|reason| EncodeError {
                type_name: of.name(),
                field: field.json_name,
                reason,
            })?;
            nested(out, number, |out| {
                bytes_field(out, 1, text.as_bytes());
                Ok(())
            })?
        }
        (Kind::IntOrString, Value::Number(n)) => match n.as_i64().map(i32::try_from) {
            Some(Ok(n)) => nested(out, number, |out| {
                number_field(out, 1, 0);
                number_field(out, 2, i64::from(n) as u64);
                bytes_field(out, 3, b"");
                Ok(())
            })?,
            _ => return wrong(of, field, "not a 32-bit integer"),
        },
        (Kind::IntOrString, Value::String(text)) => nested(out, number, |out| {
            number_field(out, 1, 1);
            number_field(out, 2, 0);
            bytes_field(out, 3, text.as_bytes());
            Ok(())
        })?,
        (Kind::Time | Kind::MicroTime, Value::String(text)) => match scalar::time_parts(text) {
            Ok(None) => bytes_field(out, number, b""),
            Ok(Some((seconds, nanos))) => nested(out, number, |out| {
                let nanos = match kind {
                    // Upstream keeps whole seconds, and whole microseconds.
                    Kind::Time => 0,
                    _ => nanos / 1000 * 1000,
                };
                number_field(out, 1, seconds as u64);
                number_field(out, 2, i64::from(nanos) as u64);
                Ok(())
            })?,
            Err(reason) => return wrong(of, field, &reason),
        },
        (Kind::Duration, Value::String(text)) => match time::parse_duration(text) {
            Ok(nanos) => nested(out, number, |out| {
                number_field(out, 1, nanos as u64);
                Ok(())
            })?,
            Err(e) => return wrong(of, field, &e.to_string()),
        },
        (Kind::RawExtension | Kind::FieldsV1 | Kind::Json, value) => nested(out, number, |out| {
            nested(out, 1, |out| {
                json::encode_raw_to(value, out);
                Ok(())
            })
        })?,
        (
            Kind::SchemaOrArray(inner) | Kind::SchemaOrBool(inner) | Kind::SchemaOrStrings(inner),
            value,
        ) => nested(out, number, |out| schema_or(out, value, inner))?,
        _ => return wrong(of, field, "has the wrong JSON type"),
    }
    Ok(())
}

/// A wrapper with a schema, and a list or a bool (which is set along with a schema).
fn schema_or(out: &mut Vec<u8>, value: &Value, of: &'static Type) -> Write {
    for field in of.wire_fields() {
        match (field.kind, field.cardinality, value) {
            (Kind::Bool, _, value) => {
                let allows = matches!(value, Value::Bool(true) | Value::Object(_));
                number_field(out, field.number, u64::from(allows));
            }
            (Kind::Message(_), Cardinality::Optional, Value::Object(_)) => {
                single(out, value, field.kind, field.number, field, of)?
            }
            (_, Cardinality::Repeated, Value::Array(items)) => {
                for item in items {
                    single(out, item, field.kind, field.number, field, of)?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn wrong(of: &'static Type, field: &'static Field, reason: &str) -> Write {
    Err(EncodeError {
        type_name: of.name(),
        field: field.json_name,
        reason: reason.to_string(),
    })
}
