//! The decoder guided by the type table. Type errors do not stop it: as in Go, the first one is kept, and a syntax
//! error anywhere in the text takes precedence.

use std::collections::HashSet;

use super::lexer::Lexer;
use crate::codec::{DecodeError, StrictError, Strictness, scalar};
use crate::schema::zero::{omitted, zero_of, zero_of_kind};
use crate::schema::{Cardinality, Field, Kind, Type};
use crate::value::{Object, Value};

/// Upstream reports no more strict errors than this.
const MAX_STRICT: usize = 100;
/// Longest path of a strict error, in bytes; longer ones lack their first steps.
const MAX_PATH: usize = 4096;
/// Bound while they are gathered, before repeated ones are taken out.
const MAX_GATHERED: usize = 1000;

pub(super) struct Decoder<'a> {
    text: &'a str,
    state: State,
}

struct State {
    /// `None` where nothing is reported.
    strict: Option<Vec<StrictError>>,
    /// The first value of a wrong JSON type.
    saved: Option<TypeError>,
    /// The first error of a type with its own reader; outweighs `saved`.
    fatal: Option<TypeError>,
}

/// `json.UnmarshalTypeError`, or another error's text in `message`.
struct TypeError {
    message: Option<String>,
    value: String,
    go_type: String,
    struct_name: &'static str,
    /// Innermost first.
    path: Vec<String>,
}

impl TypeError {
    fn text(&self) -> String {
        if let Some(message) = &self.message {
            return message.clone();
        }
        if self.struct_name.is_empty() {
            return format!(
                "json: cannot unmarshal {} into Go value of type {}",
                self.value, self.go_type
            );
        }
        let path: Vec<&str> = self.path.iter().rev().map(String::as_str).collect();
        format!(
            "json: cannot unmarshal {} into Go struct field {}.{} of type {}",
            self.value,
            self.struct_name,
            path.join("."),
            self.go_type
        )
    }

    /// Adds the field in which the error happened.
    fn within(&mut self, of: &'static Type, name: &str) {
        if self.struct_name.is_empty() {
            self.struct_name = of.short_name();
        }
        self.path.push(name.to_string());
        // Go names the embedded structs on the way as well.
        if let Some(embedded) = embedding(of, name) {
            self.path.extend(embedded);
        }
    }
}

/// The embedded structs between `of` and its JSON member `name`, innermost first.
fn embedding(of: &'static Type, name: &str) -> Option<Vec<String>> {
    for field in of.wire_fields() {
        if field.inline
            && let Kind::Message(inner) = field.kind
            && inner.field(name).is_some()
        {
            let mut found = embedding(inner, name).unwrap_or_default();
            found.push(inner.short_name().to_string());
            return Some(found);
        }
    }
    None
}

type Read<T> = Result<T, String>;

impl<'a> Decoder<'a> {
    pub(super) fn new(text: &'a str, strictness: Strictness) -> Decoder<'a> {
        Decoder {
            text,
            state: State {
                strict: (strictness == Strictness::Strict).then(Vec::new),
                saved: None,
                fatal: None,
            },
        }
    }

    pub(super) fn document(
        mut self,
        of: Option<&'static Type>,
    ) -> Result<(Value, Vec<StrictError>), DecodeError> {
        let mut lexer = Lexer::new(self.text);
        lexer.space();
        let read = match of {
            Some(of) => self.state.message(&mut lexer, of),
            None => self.state.any(&mut lexer),
        };
        let value = read.map_err(DecodeError::Syntax)?;
        lexer.end().map_err(DecodeError::Syntax)?;
        if let Some(error) = self.state.fatal.or(self.state.saved) {
            return Err(DecodeError::Type(error.text()));
        }
        let mut seen = HashSet::new();
        let mut strict = self.state.strict.unwrap_or_default();
        if strict.len() > 1 {
            strict.retain(|e| seen.insert(e.clone()));
            strict.truncate(MAX_STRICT);
        }
        Ok((value, strict))
    }
}

impl State {
    fn report(&mut self, error: StrictError) {
        if let Some(errors) = &mut self.strict
            && errors.len() < MAX_GATHERED
        {
            errors.push(error);
        }
    }

    /// Runs `read` and puts `segment` before the paths of the strict errors that it reported.
    fn beneath<T>(
        &mut self,
        segment: Segment<'_>,
        read: impl FnOnce(&mut Self) -> Read<T>,
    ) -> Read<T> {
        let before = self.strict.as_ref().map_or(0, Vec::len);
        let result = read(self);
        if let Some(errors) = &mut self.strict {
            for error in errors.iter_mut().skip(before) {
                if let StrictError::Unknown(path) | StrictError::Duplicate(path) = error {
                    segment.put_before(path);
                }
            }
        }
        result
    }

    /// Runs `read` without reporting, as below Go types with their own JSON reader.
    fn unreported<T>(&mut self, read: impl FnOnce(&mut Self) -> Read<T>) -> Read<T> {
        let strict = self.strict.take();
        let result = read(self);
        self.strict = strict;
        result
    }

    /// Notes a value of the wrong type and skips it.
    fn mismatch(&mut self, lexer: &mut Lexer<'_>, go_type: String) -> Read<Value> {
        let value = lexer.token_word().to_string();
        lexer.skip()?;
        self.saved.get_or_insert(TypeError {
            message: None,
            value,
            go_type,
            struct_name: "",
            path: Vec::new(),
        });
        Ok(Value::Null)
    }

    fn wrong_number(&mut self, number: &str, go_type: String) -> Value {
        self.saved.get_or_insert(TypeError {
            message: None,
            value: format!("number {number}"),
            go_type,
            struct_name: "",
            path: Vec::new(),
        });
        Value::Null
    }

    /// A type error of a type with its own reader, at the value not yet read.
    fn own_mismatch(&mut self, lexer: &mut Lexer<'_>, go_type: &str) -> Read<Value> {
        let value = lexer.token_word().to_string();
        lexer.skip()?;
        self.fatal.get_or_insert(TypeError {
            message: None,
            value,
            go_type: go_type.to_string(),
            struct_name: "",
            path: Vec::new(),
        });
        Ok(Value::Null)
    }

    fn own_error(&mut self, message: String) -> Value {
        self.fatal.get_or_insert(TypeError {
            message: Some(message),
            value: String::new(),
            go_type: String::new(),
            struct_name: "",
            path: Vec::new(),
        });
        Value::Null
    }

    /// An untyped value.
    fn any(&mut self, lexer: &mut Lexer<'_>) -> Read<Value> {
        Ok(match lexer.peek() {
            Some(b'{') => {
                let mut out = Object::new();
                lexer.object(|lexer, key| {
                    let value = self.beneath(Segment::Key(&key), |s| s.any(lexer))?;
                    if self.strict.is_some() && out.contains_key(&*key) {
                        self.report(StrictError::Duplicate(key.to_string()));
                    }
                    out.insert(key.into_owned(), value);
                    Ok(())
                })?;
                Value::Object(out)
            }
            Some(b'[') => {
                let mut out = Vec::new();
                lexer.array(|lexer| {
                    out.push(self.beneath(Segment::Index(out.len()), |s| s.any(lexer))?);
                    Ok(())
                })?;
                Value::Array(out)
            }
            Some(b'"') => Value::String(lexer.string()?.into_owned()),
            Some(b't' | b'f' | b'n') => literal(lexer.literal()?),
            _ => {
                let number = lexer.number()?;
                match untyped_number(number) {
                    Some(value) => value,
                    None => self.wrong_number(number, "float64".to_string()),
                }
            }
        })
    }

    fn message(&mut self, lexer: &mut Lexer<'_>, of: &'static Type) -> Read<Value> {
        match lexer.peek() {
            Some(b'{') => {}
            Some(b'n') => {
                lexer.literal()?;
                return Ok(of.zero().clone());
            }
            _ => return self.mismatch(lexer, of.go_name()),
        }
        let mut members: Vec<(usize, Value)> = Vec::with_capacity(8);
        let mut meta: [Option<Value>; 2] = [None, None];
        // Members seen, by their index in the JSON view; the two extra ones are kind and apiVersion.
        let mut seen = Seen::default();
        let fields = of.fields();
        lexer.object(|lexer, key| {
            let Some(index) = of.field_index(&key) else {
                return self.other_member(lexer, of, &key, &mut meta, &mut seen);
            };
            let field = fields[index];
            if seen.again(index) {
                self.report(StrictError::Duplicate(field.json_name.to_string()));
                members.retain(|(before, _)| *before != index);
            }
            let had_saved = self.saved.is_some();
            let had_fatal = self.fatal.is_some();
            let value = self.beneath(Segment::Key(field.json_name), |s| s.field(lexer, field))?;
            if !had_saved && let Some(error) = &mut self.saved {
                error.within(of, field.json_name);
            }
            if !had_fatal && let Some(error) = &mut self.fatal {
                error.within(of, field.json_name);
            }
            if !omitted(field, &value) {
                members.push((index, value));
            }
            Ok(())
        })?;
        let mut out = of.assemble(members);
        let [kind, api_version] = meta;
        for (name, value) in [("kind", kind), ("apiVersion", api_version)] {
            if let Some(value) = value {
                out.insert(name.to_string(), value);
            }
        }
        Ok(Value::Object(out))
    }

    /// A member that is no field: `kind` and `apiVersion` of a type that has them, else an unknown one.
    fn other_member(
        &mut self,
        lexer: &mut Lexer<'_>,
        of: &'static Type,
        key: &str,
        meta: &mut [Option<Value>; 2],
        seen: &mut Seen,
    ) -> Read<()> {
        let (bit, slot) = match key {
            "kind" if of.has_type_meta() => (Seen::KIND, 0),
            "apiVersion" if of.has_type_meta() => (Seen::API_VERSION, 1),
            _ => {
                self.report(StrictError::Unknown(key.to_string()));
                return lexer.skip();
            }
        };
        if seen.again(bit) {
            self.report(StrictError::Duplicate(key.to_string()));
        }
        match lexer.peek() {
            Some(b'"') => {
                let text = lexer.string()?;
                meta[slot] = (!text.is_empty()).then(|| Value::String(text.into_owned()));
            }
            Some(b'n') => drop(lexer.literal()?),
            _ => {
                let had = self.saved.is_some();
                self.mismatch(lexer, "string".to_string())?;
                if !had && let Some(error) = &mut self.saved {
                    error.struct_name = of.short_name();
                    error.path.extend([key.to_string(), "TypeMeta".to_string()]);
                }
            }
        }
        Ok(())
    }

    fn field(&mut self, lexer: &mut Lexer<'_>, field: &'static Field) -> Read<Value> {
        if lexer.peek() == Some(b'n') {
            lexer.literal()?;
            return Ok(zero_of(field));
        }
        match field.cardinality {
            Cardinality::Optional => self.kind(lexer, field.kind, field),
            Cardinality::Repeated => self.list(lexer, field.kind, field),
            Cardinality::Map => {
                if lexer.peek() != Some(b'{') {
                    return self.mismatch(lexer, field.go_type_name());
                }
                let mut out = Object::new();
                lexer.object(|lexer, key| {
                    if self.strict.is_some() && out.contains_key(&*key) {
                        self.report(StrictError::Duplicate(key.to_string()));
                    }
                    let value = self.beneath(Segment::Key(&key), |s| s.item(lexer, field))?;
                    out.insert(key.into_owned(), value);
                    Ok(())
                })?;
                Ok(Value::Object(out))
            }
        }
    }

    fn list(&mut self, lexer: &mut Lexer<'_>, kind: Kind, field: &'static Field) -> Read<Value> {
        if lexer.peek() != Some(b'[') {
            return self.mismatch(lexer, field.go_type_name());
        }
        let mut out = Vec::new();
        lexer.array(|lexer| {
            let at = Segment::Index(out.len());
            out.push(self.beneath(at, |s| match lexer.peek() {
                Some(b'n') => {
                    lexer.literal()?;
                    Ok(zero_of_kind(kind))
                }
                _ => s.kind(lexer, kind, field),
            })?);
            Ok(())
        })?;
        Ok(Value::Array(out))
    }

    fn item(&mut self, lexer: &mut Lexer<'_>, field: &'static Field) -> Read<Value> {
        if lexer.peek() == Some(b'n') {
            lexer.literal()?;
            return Ok(zero_of_kind(field.kind));
        }
        self.kind(lexer, field.kind, field)
    }

    /// One value that is not null. The kinds that nest are apart from the others, to keep the stack frames of deep
    /// objects small.
    fn kind(&mut self, lexer: &mut Lexer<'_>, kind: Kind, field: &'static Field) -> Read<Value> {
        match kind {
            Kind::Message(of) => self.message(lexer, of),
            Kind::Items(of) => match of.wire_fields().first() {
                Some(inner) => self.list(lexer, inner.kind, inner),
                None => self.mismatch(lexer, of.go_name()),
            },
            Kind::RawExtension | Kind::FieldsV1 | Kind::Json => self.unreported(|s| s.any(lexer)),
            Kind::SchemaOrArray(_) | Kind::SchemaOrStrings(_) | Kind::SchemaOrBool(_) => {
                self.schema_or(lexer, kind)
            }
            _ => self.scalar(lexer, kind, field),
        }
    }

    #[inline(never)]
    fn scalar(&mut self, lexer: &mut Lexer<'_>, kind: Kind, field: &'static Field) -> Read<Value> {
        let first = lexer.peek();
        let number = matches!(first, Some(b'-' | b'0'..=b'9'));
        Ok(match (kind, first) {
            (Kind::String, Some(b'"')) => Value::String(lexer.string()?.into_owned()),
            (Kind::Bool, Some(b't' | b'f')) => literal(lexer.literal()?),
            (Kind::Int32 | Kind::Int64, _) if number => {
                let text = lexer.number()?;
                match (text.parse::<i64>(), kind) {
                    (Ok(n), Kind::Int64) => Value::from(n),
                    (Ok(n), _) if i32::try_from(n).is_ok() => Value::from(n),
                    _ => self.wrong_number(text, field.go_item_name()),
                }
            }
            (Kind::Double, _) if number => {
                let text = lexer.number()?;
                match text.parse::<f64>().ok().and_then(scalar::double) {
                    Some(value) => value,
                    None => self.wrong_number(text, field.go_item_name()),
                }
            }
            (Kind::Bytes, Some(b'"')) => {
                let text = lexer.string()?;
                match scalar::canonical_base64(&text) {
                    Ok(None) => Value::String(text.into_owned()),
                    Ok(Some(canonical)) => Value::String(canonical),
                    Err(message) => self.own_error(message),
                }
            }
            (Kind::Quantity, _) => {
                let raw = lexer.raw()?;
                let text = raw
                    .strip_prefix('"')
                    .and_then(|r| r.strip_suffix('"'))
                    .unwrap_or(raw);
                match scalar::quantity(text.trim()) {
                    Ok(text) => Value::String(text),
                    Err(message) => self.own_error(message),
                }
            }
            (Kind::IntOrString, Some(b'"')) => Value::String(lexer.string()?.into_owned()),
            (Kind::IntOrString, _) if number => {
                let text = lexer.number()?;
                match text.parse::<i32>() {
                    Ok(n) => Value::from(n),
                    Err(_) => {
                        self.fatal.get_or_insert(TypeError {
                            message: None,
                            value: format!("number {text}"),
                            go_type: "int32".to_string(),
                            struct_name: "",
                            path: Vec::new(),
                        });
                        Value::Null
                    }
                }
            }
            (Kind::IntOrString, _) => self.own_mismatch(lexer, "int32")?,
            (Kind::Time | Kind::MicroTime | Kind::Duration, Some(b'"')) => {
                let text = lexer.string()?;
                let canonical = match kind {
                    Kind::Time => scalar::time(&text),
                    Kind::MicroTime => scalar::micro_time(&text),
                    _ => scalar::duration(&text).map(Some),
                };
                match canonical {
                    Ok(Some(text)) => Value::String(text),
                    Ok(None) => Value::Null,
                    Err(message) => self.own_error(message),
                }
            }
            (Kind::Time | Kind::MicroTime | Kind::Duration, _) => {
                self.own_mismatch(lexer, "string")?
            }
            _ => {
                let go_type = match field.cardinality {
                    // Below a wrapper the field is the wrapper's own list.
                    Cardinality::Optional => field.go_type_name(),
                    _ => field.go_item_name(),
                };
                self.mismatch(lexer, go_type)?
            }
        })
    }

    /// The types of JSON schema that are either a schema or something simpler.
    fn schema_or(&mut self, lexer: &mut Lexer<'_>, kind: Kind) -> Read<Value> {
        let (Kind::SchemaOrArray(of) | Kind::SchemaOrStrings(of) | Kind::SchemaOrBool(of)) = kind
        else {
            return self.any(lexer);
        };
        let schema = of
            .wire_fields()
            .iter()
            .find(|f| f.proto_name == "schema")
            .and_then(|f| f.kind.message());
        let list = of
            .wire_fields()
            .iter()
            .find(|f| f.cardinality == Cardinality::Repeated);
        match (kind, lexer.peek(), schema, list) {
            (_, Some(b'{'), Some(schema), _) => self.unreported(|s| s.message(lexer, schema)),
            (_, Some(b'['), _, Some(list)) => {
                let value = self.unreported(|s| s.list(lexer, list.kind, list))?;
                match value {
                    Value::Array(items) if items.is_empty() => Ok(Value::Null),
                    other => Ok(other),
                }
            }
            (Kind::SchemaOrBool(_), Some(b't' | b'f'), ..) => Ok(literal(lexer.literal()?)),
            (Kind::SchemaOrBool(_), ..) => {
                lexer.skip()?;
                Ok(self.own_error("boolean or JSON schema expected".to_string()))
            }
            _ => {
                lexer.skip()?;
                Ok(Value::Null)
            }
        }
    }
}

/// Numbers without a type: integers stay exact, all else is a float; `None` when it does not fit.
fn untyped_number(text: &str) -> Option<Value> {
    if !text.contains('.')
        && let Ok(n) = text.parse::<i64>()
    {
        return Some(Value::from(n));
    }
    let n: f64 = text.parse().ok()?;
    serde_json::Number::from_f64(n).map(Value::Number)
}

fn literal(word: &str) -> Value {
    match word {
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        _ => Value::Null,
    }
}

/// Which members of one object were seen.
#[derive(Default)]
struct Seen {
    bits: [u64; 3],
}

impl Seen {
    const KIND: usize = 190;
    const API_VERSION: usize = 191;

    /// Marks the member; true when it was marked before.
    fn again(&mut self, index: usize) -> bool {
        let (Some(word), bit) = (self.bits.get_mut(index / 64), 1u64 << (index % 64)) else {
            return false;
        };
        let again = *word & bit != 0;
        *word |= bit;
        again
    }
}

/// One step of a field path.
#[derive(Clone, Copy)]
enum Segment<'a> {
    Key(&'a str),
    Index(usize),
}

impl Segment<'_> {
    fn put_before(&self, path: &mut String) {
        let step = match self {
            Segment::Key(key) => key.len(),
            Segment::Index(_) => 0,
        };
        // One long key must not stand in a thousand errors.
        if path.len() + step > MAX_PATH {
            return;
        }
        let dot = if path.starts_with('[') { "" } else { "." };
        *path = match self {
            Segment::Key(key) => format!("{key}{dot}{path}"),
            Segment::Index(index) => format!("[{index}]{dot}{path}"),
        };
    }
}
