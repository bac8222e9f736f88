//! Protobuf to values, in the form that the typed JSON decoder gives them too.

use super::MAGIC;
use crate::codec::{DecodeError, MAX_DEPTH, Strictness, json, scalar};
use crate::schema::zero::omitted;
use crate::schema::{Cardinality, Field, Kind, Schema, Type};
use crate::time;
use crate::value::{Object, Value};

/// The envelope around an object (`runtime.Unknown`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unknown<'a> {
    /// `apiVersion` of the object.
    pub api_version: &'a str,
    /// `kind` of the object.
    pub kind: &'a str,
    /// The bare message.
    pub raw: &'a [u8],
    /// Encoding of `raw`; empty unless it is compressed.
    pub content_encoding: &'a str,
    /// Media type of `raw`; empty for protobuf.
    pub content_type: &'a str,
}

/// Reads the envelope of an object.
pub fn decode_unknown(bytes: &[u8]) -> Result<Unknown<'_>, DecodeError> {
    let Some(rest) = bytes.strip_prefix(MAGIC) else {
        return Err(syntax(
            "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]",
        ));
    };
    let mut found = Unknown {
        api_version: "",
        kind: "",
        raw: &[],
        content_encoding: "",
        content_type: "",
    };
    let mut reader = Reader::new(rest);
    while let Some((number, wire)) = reader.tag()? {
        match (number, wire) {
            (1, 2) => {
                let mut meta = Reader::new(reader.bytes()?);
                while let Some((number, wire)) = meta.tag()? {
                    match (number, wire) {
                        (1, 2) => found.api_version = utf8(meta.bytes()?)?,
                        (2, 2) => found.kind = utf8(meta.bytes()?)?,
                        _ => meta.skip(wire)?,
                    }
                }
            }
            (2, 2) => found.raw = reader.bytes()?,
            (3, 2) => found.content_encoding = utf8(reader.bytes()?)?,
            (4, 2) => found.content_type = utf8(reader.bytes()?)?,
            _ => reader.skip(wire)?,
        }
    }
    Ok(found)
}

/// Decodes an enveloped object of a known type. The envelope's `kind` and `apiVersion` go into the value; whether
/// they fit the type is the caller's question.
pub fn decode_object(bytes: &[u8], of: &'static Type) -> Result<Value, DecodeError> {
    let unknown = decode_unknown(bytes)?;
    let mut value = decode(unknown.raw, of)?;
    add_type_meta(&mut value, &unknown);
    Ok(value)
}

fn add_type_meta(value: &mut Value, unknown: &Unknown<'_>) {
    if let Value::Object(object) = value {
        for (name, text) in [("apiVersion", unknown.api_version), ("kind", unknown.kind)] {
            if !text.is_empty() {
                object.insert(name.to_string(), Value::from(text));
            }
        }
    }
}

/// Decodes a bare message. Fields that the type lacks are dropped.
pub fn decode(bytes: &[u8], of: &'static Type) -> Result<Value, DecodeError> {
    message(bytes, of, MAX_DEPTH)
}

fn syntax(message: impl Into<String>) -> DecodeError {
    DecodeError::Syntax(message.into())
}

fn utf8(bytes: &[u8]) -> Result<&str, DecodeError> {
    std::str::from_utf8(bytes).map_err(|_| syntax("proto: invalid UTF-8 in string field"))
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn new(rest: &'a [u8]) -> Reader<'a> {
        Reader { rest }
    }

    fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut n = 0u64;
        for shift in (0..64).step_by(7) {
            let Some((byte, rest)) = self.rest.split_first() else {
                return Err(syntax("unexpected EOF"));
            };
            self.rest = rest;
            n |= u64::from(byte & 0x7F) << shift;
            if *byte < 0x80 {
                return Ok(n);
            }
        }
        Err(syntax("proto: integer overflow"))
    }

    /// The next field's number and wire type; `None` at the end.
    fn tag(&mut self) -> Result<Option<(u32, u8)>, DecodeError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let (number, wire) = (tag >> 3, (tag & 7) as u8);
        match u32::try_from(number) {
            Ok(number) if number > 0 && number < 1 << 29 => Ok(Some((number, wire))),
            _ => Err(syntax(format!(
                "proto: illegal tag {number} (wire type {wire})"
            ))),
        }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        match self.rest.split_at_checked(count) {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(taken)
            }
            None => Err(syntax("unexpected EOF")),
        }
    }

    fn bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let count = self.varint()?;
        self.take(usize::try_from(count).unwrap_or(usize::MAX))
    }

    fn skip(&mut self, wire: u8) -> Result<(), DecodeError> {
        match wire {
            0 => self.varint().map(drop),
            1 => self.take(8).map(drop),
            2 => self.bytes().map(drop),
            5 => self.take(4).map(drop),
            _ => Err(syntax(format!("proto: illegal wireType {wire}"))),
        }
    }
}

fn message(bytes: &[u8], of: &'static Type, depth: usize) -> Result<Value, DecodeError> {
    let mut out = Vec::with_capacity(8);
    members(bytes, of, of, &mut out, depth)?;
    Ok(Value::Object(of.assemble(out)))
}

/// Reads the fields of a message into the members of the JSON object that holds them: `top`'s, which is `of` unless
/// that is inlined. Members go by their index in the JSON view of `top`.
fn members(
    bytes: &[u8],
    of: &'static Type,
    top: &'static Type,
    out: &mut Vec<(usize, Value)>,
    depth: usize,
) -> Result<(), DecodeError> {
    let Some(depth) = depth.checked_sub(1) else {
        return Err(syntax("proto: exceeded max depth"));
    };
    let mut reader = Reader::new(bytes);
    while let Some((number, wire)) = reader.tag()? {
        let Some((index, field)) = of.wire_field(number) else {
            reader.skip(wire)?;
            continue;
        };
        if let (true, Kind::Message(inner)) = (field.inline, field.kind) {
            expect(wire, 2, field)?;
            members(reader.bytes()?, inner, top, out, depth)?;
            continue;
        }
        let index = if of == top {
            index
        } else {
            top.field_index(field.json_name).unwrap_or(usize::MAX)
        };
        match field.cardinality {
            Cardinality::Optional => {
                let value = single(&mut reader, wire, field.kind, field, depth)?;
                // The last one counts. Kept one by one, they would make every look for an earlier member longer.
                let before = out.iter().rposition(|(other, _)| *other == index);
                match (before, omitted(field, &value)) {
                    (Some(at), false) => out[at].1 = value,
                    (Some(at), true) => drop(out.remove(at)),
                    (None, false) => out.push((index, value)),
                    (None, true) => {}
                }
            }
            Cardinality::Repeated => {
                let mut read = |items: &mut Vec<Value>| {
                    let packable = matches!(field.kind, Kind::Bool | Kind::Int32 | Kind::Int64);
                    if packable && wire == 2 {
                        let mut packed = Reader::new(reader.bytes()?);
                        while !packed.rest.is_empty() {
                            items.push(single(&mut packed, 0, field.kind, field, depth)?);
                        }
                        return Ok(());
                    }
                    items.push(single(&mut reader, wire, field.kind, field, depth)?);
                    Ok::<(), DecodeError>(())
                };
                match earlier(out, index) {
                    Some(Value::Array(items)) => read(items)?,
                    _ => {
                        let mut items = Vec::new();
                        read(&mut items)?;
                        out.push((index, Value::Array(items)));
                    }
                }
            }
            Cardinality::Map => {
                expect(wire, 2, field)?;
                let (key, value) = entry(reader.bytes()?, field, depth)?;
                match earlier(out, index) {
                    Some(Value::Object(entries)) => drop(entries.insert(key, value)),
                    _ => {
                        let entries = Object::from_iter([(key, value)]);
                        out.push((index, Value::Object(entries)));
                    }
                }
            }
        }
    }
    Ok(())
}

/// The member that earlier items of a list or map went to: mostly the last one.
fn earlier(out: &mut [(usize, Value)], index: usize) -> Option<&mut Value> {
    out.iter_mut()
        .rev()
        .find(|(other, _)| *other == index)
        .map(|(_, value)| value)
}

fn entry(
    bytes: &[u8],
    field: &'static Field,
    depth: usize,
) -> Result<(String, Value), DecodeError> {
    let mut reader = Reader::new(bytes);
    let mut key = String::new();
    let mut value = None;
    while let Some((number, wire)) = reader.tag()? {
        match (number, wire) {
            (1, 2) => key = utf8(reader.bytes()?)?.to_string(),
            (2, _) => value = Some(single(&mut reader, wire, field.kind, field, depth)?),
            _ => reader.skip(wire)?,
        }
    }
    let value = match (value, field.kind) {
        (Some(value), _) => value,
        // The generated decoder starts from an empty, not a nil slice.
        (None, Kind::Bytes) => Value::from(""),
        (None, Kind::Items(_)) => Value::Array(Vec::new()),
        (None, kind) => crate::schema::zero::zero_of_kind(kind),
    };
    Ok((key, value))
}

fn expect(wire: u8, expected: u8, field: &Field) -> Result<(), DecodeError> {
    if wire == expected {
        return Ok(());
    }
    Err(syntax(format!(
        "proto: wrong wireType = {wire} for field {}",
        field.proto_name
    )))
}

/// Reads one value of a field, its tag already read. Messages are apart from the other kinds, to keep the stack frames
/// of deep objects small.
fn single(
    reader: &mut Reader<'_>,
    wire: u8,
    kind: Kind,
    field: &'static Field,
    depth: usize,
) -> Result<Value, DecodeError> {
    if let Kind::Message(of) = kind {
        expect(wire, 2, field)?;
        return message(reader.bytes()?, of, depth);
    }
    other(reader, wire, kind, field, depth)
}

#[inline(never)]
fn other(
    reader: &mut Reader<'_>,
    wire: u8,
    kind: Kind,
    field: &'static Field,
    depth: usize,
) -> Result<Value, DecodeError> {
    match kind {
        Kind::Bool | Kind::Int32 | Kind::Int64 => {
            expect(wire, 0, field)?;
            let n = reader.varint()?;
            return Ok(match kind {
                Kind::Bool => Value::Bool(n != 0),
                // Wider numbers lose their upper half, as in Go.
                Kind::Int32 => Value::from(n as i32),
                _ => Value::from(n as i64),
            });
        }
        Kind::Double => {
            expect(wire, 1, field)?;
            let bytes: [u8; 8] = reader
                .take(8)?
                .try_into()
                .map_err(|_| syntax("unexpected EOF"))?;
            return scalar::double(f64::from_le_bytes(bytes))
                .ok_or_else(|| syntax(format!("proto: {} is not a number", field.proto_name)));
        }
        _ => expect(wire, 2, field)?,
    }
    let bytes = reader.bytes()?;
    Ok(match kind {
        Kind::String => Value::from(utf8(bytes)?),
        Kind::Bytes => Value::String(scalar::encode_base64(bytes)),
        Kind::Message(of) => message(bytes, of, depth)?,
        Kind::Items(of) => {
            let mut inner = Vec::new();
            members(bytes, of, of, &mut inner, depth)?;
            // A wrapper that is there is never nil.
            inner
                .pop()
                .map_or_else(|| Value::Array(Vec::new()), |(_, list)| list)
        }
        Kind::Quantity => {
            let text = only_bytes(bytes)?.unwrap_or_default();
            let text = scalar::quantity(utf8(text)?.trim());
            Value::String(text.map_err(DecodeError::Type)?)
        }
        Kind::IntOrString => int_or_string(bytes)?,
        Kind::Time | Kind::MicroTime => time_value(bytes, kind, field)?,
        Kind::Duration => {
            let [nanos, _] = numbers(bytes)?;
            Value::String(time::format_duration(nanos))
        }
        Kind::RawExtension | Kind::FieldsV1 | Kind::Json => match only_bytes(bytes)? {
            None | Some([]) => Value::Null,
            Some(raw) => raw_value(raw, depth)?,
        },
        Kind::SchemaOrArray(of) | Kind::SchemaOrBool(of) | Kind::SchemaOrStrings(of) => {
            schema_or(bytes, of, depth)?
        }
        Kind::Bool | Kind::Int32 | Kind::Int64 | Kind::Double => Value::Null,
    })
}

/// The content of a message that has nothing but a field 1 of text or bytes.
fn only_bytes(bytes: &[u8]) -> Result<Option<&[u8]>, DecodeError> {
    let mut reader = Reader::new(bytes);
    let mut found = None;
    while let Some((number, wire)) = reader.tag()? {
        match (number, wire) {
            (1, 2) => found = Some(reader.bytes()?),
            _ => reader.skip(wire)?,
        }
    }
    Ok(found)
}

/// The fields 1 and 2 of a message of numbers.
fn numbers(bytes: &[u8]) -> Result<[i64; 2], DecodeError> {
    let mut reader = Reader::new(bytes);
    let mut found = [0; 2];
    while let Some((number, wire)) = reader.tag()? {
        match (number, wire) {
            (1 | 2, 0) => found[number as usize - 1] = reader.varint()? as i64,
            _ => reader.skip(wire)?,
        }
    }
    Ok(found)
}

fn int_or_string(bytes: &[u8]) -> Result<Value, DecodeError> {
    let mut reader = Reader::new(bytes);
    let (mut is_text, mut int, mut text) = (false, 0, "");
    while let Some((number, wire)) = reader.tag()? {
        match (number, wire) {
            (1, 0) => is_text = reader.varint()? != 0,
            (2, 0) => int = reader.varint()? as i32,
            (3, 2) => text = utf8(reader.bytes()?)?,
            _ => reader.skip(wire)?,
        }
    }
    Ok(if is_text {
        Value::from(text)
    } else {
        Value::from(int)
    })
}

fn time_value(bytes: &[u8], kind: Kind, field: &Field) -> Result<Value, DecodeError> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let [seconds, nanos] = numbers(bytes)?;
    if scalar::is_zero_time(seconds) && (nanos == 0 || kind == Kind::Time) {
        return Ok(Value::Null);
    }
    let text = match kind {
        Kind::Time => scalar::time_text(seconds),
        _ => i32::try_from(nanos)
            .ok()
            .and_then(|nanos| scalar::micro_time_text(seconds, nanos)),
    };
    let text = text.ok_or_else(|| {
        DecodeError::Type(format!(
            "{}: {seconds} seconds is no time between the years 1 and 9999",
            field.json_name
        ))
    })?;
    Ok(Value::String(text))
}

/// What a RawExtension holds: JSON, or an enveloped object of a built-in type.
fn raw_value(raw: &[u8], depth: usize) -> Result<Value, DecodeError> {
    if !raw.starts_with(MAGIC) {
        return json::decode_any(raw, Strictness::Lenient).map(|(value, _)| value);
    }
    let unknown = decode_unknown(raw)?;
    let of = crate::catalog::parse_api_version(unknown.api_version)
        .and_then(|(group, version)| Schema::builtin().lookup_kind(group, version, unknown.kind))
        .ok_or_else(|| {
            DecodeError::Type(format!(
                "no kind {:?} is registered for version {:?}",
                unknown.kind, unknown.api_version
            ))
        })?;
    let mut value = message(unknown.raw, of, depth)?;
    add_type_meta(&mut value, &unknown);
    Ok(value)
}

fn schema_or(bytes: &[u8], of: &'static Type, depth: usize) -> Result<Value, DecodeError> {
    let mut inner = Vec::new();
    members(bytes, of, of, &mut inner, depth)?;
    let takes_bool = of.wire_fields().iter().any(|f| f.kind == Kind::Bool);
    let mut simple = if takes_bool {
        Value::Bool(false)
    } else {
        Value::Null
    };
    for (_, value) in inner {
        match value {
            Value::Object(_) | Value::Array(_) => return Ok(value),
            Value::Bool(_) => simple = value,
            _ => {}
        }
    }
    Ok(simple)
}
