//! Values of expressions. Objects and lists that come from outside are not copied: a value looks into their JSON.

use std::any::Any;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use keelson_machinery::value::Value as Json;

use super::error::EvalError;
use super::eval::Budget;
use super::types::Type;

/// Text, borrowed from outside or shared.
#[derive(Clone)]
pub enum Text<'a> {
    /// Of an object from outside.
    Borrowed(&'a str),
    /// Made by the expression.
    Shared(Arc<str>),
}

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Text::Borrowed(text) => text,
            Text::Shared(text) => text,
        }
    }
}

impl From<String> for Text<'_> {
    fn from(text: String) -> Self {
        Text::Shared(text.into())
    }
}

/// A value that only functions can look into.
pub trait Opaque: Any + Send + Sync {
    /// Its type.
    fn type_of(&self) -> Type;
    /// Whether it equals another value of its type.
    fn equals(&self, other: &dyn Opaque) -> bool;
    /// For functions that know the type.
    fn as_any(&self) -> &dyn Any;
}

/// A value.
#[derive(Clone)]
pub enum Value<'a> {
    /// `null`.
    Null,
    /// A truth value.
    Bool(bool),
    /// A signed number.
    Int(i64),
    /// An unsigned number.
    Uint(u64),
    /// A floating-point number.
    Double(f64),
    /// Text.
    String(Text<'a>),
    /// Bytes.
    Bytes(Arc<[u8]>),
    /// A moment.
    Timestamp(Timestamp),
    /// A span of time in nanoseconds.
    Duration(i64),
    /// A list.
    List(Arc<Vec<Value<'a>>>),
    /// A map.
    Map(Arc<BTreeMap<Key<'a>, Value<'a>>>),
    /// A list or object from outside, with what is known of its type.
    Json(&'a Json, Type),
    /// Perhaps a value.
    Optional(Option<Arc<Value<'a>>>),
    /// A type.
    Type(Type),
    /// Something for functions.
    Opaque(Arc<dyn Opaque>),
    /// A message made by the expression: its type's name and its members.
    Struct(Arc<str>, Arc<Vec<(Arc<str>, Value<'a>)>>),
}

/// A key of a map. Numbers are equal across their types.
#[derive(Clone)]
pub enum Key<'a> {
    /// A truth value.
    Bool(bool),
    /// A signed number.
    Int(i64),
    /// An unsigned number.
    Uint(u64),
    /// Text.
    String(Text<'a>),
}

impl Key<'_> {
    fn rank(&self) -> u8 {
        match self {
            Key::Bool(_) => 0,
            Key::Int(_) | Key::Uint(_) => 1,
            Key::String(_) => 2,
        }
    }

    fn number(&self) -> i128 {
        match self {
            Key::Int(n) => i128::from(*n),
            Key::Uint(n) => i128::from(*n),
            Key::Bool(b) => i128::from(*b),
            Key::String(_) => 0,
        }
    }
}

impl Ord for Key<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Key::String(a), Key::String(b)) => (**a).cmp(&**b),
            _ => self
                .rank()
                .cmp(&other.rank())
                .then_with(|| self.number().cmp(&other.number())),
        }
    }
}

impl PartialOrd for Key<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Key<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Key<'_> {}

impl<'a> From<Key<'a>> for Value<'a> {
    fn from(key: Key<'a>) -> Self {
        match key {
            Key::Bool(b) => Value::Bool(b),
            Key::Int(n) => Value::Int(n),
            Key::Uint(n) => Value::Uint(n),
            Key::String(text) => Value::String(text),
        }
    }
}

impl<'a> Value<'a> {
    /// Text made by the expression.
    pub fn text(text: impl Into<String>) -> Value<'a> {
        Value::String(Text::from(text.into()))
    }

    /// A list.
    pub fn list(items: Vec<Value<'a>>) -> Value<'a> {
        Value::List(Arc::new(items))
    }

    /// A present optional.
    pub fn some(value: Value<'a>) -> Value<'a> {
        Value::Optional(Some(Arc::new(value)))
    }

    /// Something for functions.
    pub fn opaque(of: impl Opaque) -> Value<'a> {
        Value::Opaque(Arc::new(of))
    }

    /// What JSON from outside stands for as a value of `of`; with [`Type::Dyn`] texts stay texts.
    pub fn from_json(json: &'a Json, of: &Type) -> Result<Value<'a>, EvalError> {
        Ok(match (json, of) {
            (Json::Null, _) => Value::Null,
            (Json::Bool(b), _) => Value::Bool(*b),
            (Json::Number(n), Type::Double) => Value::Double(n.as_f64().unwrap_or(f64::NAN)),
            (Json::Number(n), Type::Uint) if n.as_u64().is_some() => {
                Value::Uint(n.as_u64().unwrap_or_default())
            }
            (Json::Number(n), _) => match (n.as_i64(), n.as_f64()) {
                (Some(n), _) => Value::Int(n),
                // A schema of integers takes 1.0 for 1.
                (None, Some(n)) if matches!(of, Type::Int) && n.fract() == 0.0 => {
                    Value::Int(n as i64)
                }
                (None, n) => Value::Double(n.unwrap_or(f64::NAN)),
            },
            (Json::String(text), Type::Timestamp) => Value::Timestamp(parse_timestamp(text)?),
            (Json::String(text), Type::Duration) => Value::Duration(parse_duration(text)?),
            (Json::String(text), Type::Bytes) => {
                let bytes = STANDARD
                    .decode(text)
                    .map_err(|e| EvalError::message(format!("invalid base64: {e}")))?;
                Value::Bytes(bytes.into())
            }
            (Json::String(text), _) => Value::String(Text::Borrowed(text)),
            (Json::Array(_) | Json::Object(_), of) => Value::Json(json, of.clone()),
        })
    }

    /// The type that the value has by itself.
    pub fn type_of(&self) -> Type {
        match self {
            Value::Null => Type::Null,
            Value::Bool(_) => Type::Bool,
            Value::Int(_) => Type::Int,
            Value::Uint(_) => Type::Uint,
            Value::Double(_) => Type::Double,
            Value::String(_) => Type::String,
            Value::Bytes(_) => Type::Bytes,
            Value::Timestamp(_) => Type::Timestamp,
            Value::Duration(_) => Type::Duration,
            Value::List(_) | Value::Json(Json::Array(_), _) => Type::list(Type::Dyn),
            Value::Json(_, of @ Type::Object(_)) => of.clone(),
            Value::Map(_) | Value::Json(..) => Type::map(Type::Dyn, Type::Dyn),
            Value::Optional(_) => Type::optional(Type::Dyn),
            Value::Type(of) => Type::Type(Arc::new(of.clone())),
            Value::Opaque(opaque) => opaque.type_of(),
            Value::Struct(name, _) => super::types::Members::named(name, Vec::new()),
        }
    }

    /// As a key of a map.
    pub fn to_key(&self) -> Result<Key<'a>, EvalError> {
        Ok(match self {
            Value::Bool(b) => Key::Bool(*b),
            Value::Int(n) => Key::Int(*n),
            Value::Uint(n) => Key::Uint(*n),
            Value::String(text) => Key::String(text.clone()),
            Value::Double(n) if n.fract() == 0.0 && n.abs() < 9.0e15 => Key::Int(*n as i64),
            other => {
                return Err(EvalError::message(format!(
                    "unsupported key type: {}",
                    other.type_of()
                )));
            }
        })
    }

    /// Items of a list; `None` for anything else.
    pub fn items(&self) -> Option<Result<Vec<Value<'a>>, EvalError>> {
        match self {
            Value::List(items) => Some(Ok(items.to_vec())),
            Value::Json(Json::Array(items), of) => {
                let of = item_type(of);
                Some(
                    items
                        .iter()
                        .map(|item| Value::from_json(item, &of))
                        .collect(),
                )
            }
            _ => None,
        }
    }

    /// Keys and values of a map or object; `None` for anything else.
    pub fn entries(&self) -> Option<Result<Vec<(Value<'a>, Value<'a>)>, EvalError>> {
        match self {
            Value::Map(entries) => Some(Ok(entries
                .iter()
                .map(|(key, value)| (key.clone().into(), value.clone()))
                .collect())),
            Value::Json(Json::Object(members), of) => Some(
                members
                    .iter()
                    .map(|member| json_entry(member, of))
                    .collect(),
            ),
            _ => None,
        }
    }

    /// How many items, entries, characters or bytes; `None` for what has no size.
    pub fn size(&self) -> Option<usize> {
        Some(match self {
            Value::String(text) => text.chars().count(),
            Value::Bytes(bytes) => bytes.len(),
            Value::List(items) => items.len(),
            Value::Map(entries) => entries.len(),
            Value::Json(Json::Array(items), _) => items.len(),
            Value::Json(Json::Object(members), _) => members.len(),
            _ => return None,
        })
    }

    /// Whether it is a list.
    pub fn is_list(&self) -> bool {
        matches!(self, Value::List(_) | Value::Json(Json::Array(_), _))
    }

    /// The member or entry under a name; `None` when there is none.
    pub fn member(&self, name: &str) -> Result<Option<Value<'a>>, EvalError> {
        match self {
            Value::Json(Json::Object(members), of) => {
                let plain = matches!(of, Type::Object(_)).then(|| super::escape::unescape(name));
                let plain = plain.flatten();
                let found = members.get(name).or_else(|| members.get(plain.as_deref()?));
                let Some(found) = found else {
                    return Ok(None);
                };
                let of = member_type(of, name).unwrap_or(Type::Dyn);
                Value::from_json(found, &of).map(Some)
            }
            Value::Map(entries) => {
                let key = Key::String(Text::Shared(name.into()));
                Ok(entries.get(&key).cloned())
            }
            Value::Struct(_, fields) => Ok(fields
                .iter()
                .find(|(field, _)| **field == *name)
                .map(|(_, value)| value.clone())),
            _ => Err(EvalError::no_such_overload()),
        }
    }

    /// What stands at an index or key; `None` when nothing does.
    pub fn at(&self, index: &Value<'a>) -> Result<Option<Value<'a>>, EvalError> {
        let position = || -> Result<Option<usize>, EvalError> {
            let number = match index {
                Value::Int(n) => *n,
                Value::Uint(n) => i64::try_from(*n).unwrap_or(-1),
                Value::Double(n) if n.fract() == 0.0 => *n as i64,
                other => {
                    return Err(EvalError::message(format!(
                        "unsupported index type '{}' in list",
                        other.type_of()
                    )));
                }
            };
            Ok(usize::try_from(number).ok())
        };
        match self {
            Value::List(items) => Ok(position()?.and_then(|at| items.get(at).cloned())),
            Value::Json(Json::Array(items), of) => match position()?.and_then(|at| items.get(at)) {
                Some(item) => Value::from_json(item, &item_type(of)).map(Some),
                None => Ok(None),
            },
            Value::Map(entries) => Ok(entries.get(&index.to_key()?).cloned()),
            Value::Json(Json::Object(_), _) | Value::Struct(..) => match index {
                Value::String(name) => self.member(name),
                _ => Ok(None),
            },
            _ => Err(EvalError::no_such_overload()),
        }
    }

    /// CEL's `==`: numbers across their types, lists and maps by their content, all else only within a type.
    pub fn equals(&self, other: &Value<'a>, budget: &mut Budget) -> Result<bool, EvalError> {
        budget.look(1)?;
        use Value::{
            Bool, Bytes, Double, Duration, Int, Map, Null, Opaque, Optional, Timestamp, Uint,
        };
        if let Some(order) = self.compare_numbers(other) {
            return Ok(order == Some(Ordering::Equal));
        }
        Ok(match (self, other) {
            (Null, Null) => true,
            (Bool(a), Bool(b)) => a == b,
            (Int(a), Int(b)) => a == b,
            (Uint(a), Uint(b)) => a == b,
            (Double(a), Double(b)) => a == b,
            (Value::String(a), Value::String(b)) => **a == **b,
            (Bytes(a), Bytes(b)) => a == b,
            (Timestamp(a), Timestamp(b)) => a == b,
            (Duration(a), Duration(b)) => a == b,
            (Value::Type(a), Value::Type(b)) => same_kind(a, b),
            (Opaque(a), Opaque(b)) => a.equals(&**b),
            (Optional(a), Optional(b)) => match (a, b) {
                (None, None) => true,
                (Some(a), Some(b)) => a.equals(b, budget)?,
                _ => false,
            },
            (Value::Struct(a, x), Value::Struct(b, y)) => {
                if a != b || x.len() != y.len() {
                    return Ok(false);
                }
                for (name, value) in x.iter() {
                    match y.iter().find(|(other, _)| other == name) {
                        Some((_, other)) if value.equals(other, budget)? => {}
                        _ => return Ok(false),
                    }
                }
                true
            }
            (Value::Json(a, Type::Dyn), Value::Json(b, Type::Dyn)) if std::ptr::eq(*a, *b) => true,
            (a, b) if a.is_list() && b.is_list() => {
                if a.size() != b.size() {
                    return Ok(false);
                }
                let (Some(a), Some(b)) = (a.items(), b.items()) else {
                    return Ok(false);
                };
                for (a, b) in a?.iter().zip(b?.iter()) {
                    if !a.equals(b, budget)? {
                        return Ok(false);
                    }
                }
                true
            }
            (
                a @ (Map(_) | Value::Json(Json::Object(_), _)),
                b @ (Map(_) | Value::Json(Json::Object(_), _)),
            ) => {
                if a.size() != b.size() {
                    return Ok(false);
                }
                let Some(entries) = a.entries() else {
                    return Ok(false);
                };
                for (key, value) in entries? {
                    match b.at(&key)? {
                        Some(other) if value.equals(&other, budget)? => {}
                        _ => return Ok(false),
                    }
                }
                true
            }
            _ => false,
        })
    }

    /// Numbers of different types in order; `Some(None)` when one is not a number at all.
    fn compare_numbers(&self, other: &Value<'a>) -> Option<Option<Ordering>> {
        use Value::{Double, Int, Uint};
        Some(match (self, other) {
            (Int(a), Uint(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
            (Uint(a), Int(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
            (Int(a), Double(b)) => (*a as f64).partial_cmp(b),
            (Double(a), Int(b)) => a.partial_cmp(&(*b as f64)),
            (Uint(a), Double(b)) => (*a as f64).partial_cmp(b),
            (Double(a), Uint(b)) => a.partial_cmp(&(*b as f64)),
            _ => return None,
        })
    }

    /// The order of two values that have one; `Ok(None)` for not-a-number.
    pub fn compare(&self, other: &Value<'a>) -> Result<Option<Ordering>, EvalError> {
        use Value::{Bool, Bytes, Double, Duration, Int, Timestamp, Uint};
        if let Some(order) = self.compare_numbers(other) {
            return Ok(order);
        }
        Ok(match (self, other) {
            (Bool(a), Bool(b)) => Some(a.cmp(b)),
            (Int(a), Int(b)) => Some(a.cmp(b)),
            (Uint(a), Uint(b)) => Some(a.cmp(b)),
            (Double(a), Double(b)) => a.partial_cmp(b),
            (Value::String(a), Value::String(b)) => Some((**a).cmp(&**b)),
            (Bytes(a), Bytes(b)) => Some(a.cmp(b)),
            (Timestamp(a), Timestamp(b)) => Some(a.cmp(b)),
            (Duration(a), Duration(b)) => Some(a.cmp(b)),
            _ => return Err(EvalError::no_such_overload()),
        })
    }

    /// As JSON, for patches and audit; an error for what has no JSON form or would be too large: a list may hold one value
    /// many times, and that one another.
    pub fn to_json(&self) -> Result<Json, EvalError> {
        let mut room = MAX_JSON;
        self.to_json_within(&mut room)
    }

    /// As [`Value::to_json`], with what is left of a room that several values share.
    pub fn to_json_within(&self, room: &mut usize) -> Result<Json, EvalError> {
        let text = match self {
            Value::String(text) => text.len(),
            Value::Bytes(bytes) => bytes.len(),
            _ => 0,
        };
        take(room, text + 1)?;
        Ok(match self {
            Value::Null => Json::Null,
            Value::Bool(b) => Json::from(*b),
            Value::Int(n) => Json::from(*n),
            Value::Uint(n) => Json::from(*n),
            Value::Double(n) => Json::from(*n),
            Value::String(text) => Json::from(&**text),
            Value::Bytes(bytes) => Json::from(STANDARD.encode(bytes)),
            Value::Timestamp(at) => Json::from(keelson_machinery::time::format(*at)),
            Value::Duration(nanos) => Json::from(format_duration(*nanos)),
            Value::Json(json, _) => {
                weigh(json, room)?;
                Json::clone(json)
            }
            Value::List(items) => {
                let items: Result<Vec<Json>, EvalError> =
                    items.iter().map(|item| item.to_json_within(room)).collect();
                Json::from(items?)
            }
            Value::Map(entries) => {
                let mut object = keelson_machinery::value::Object::new();
                for (key, value) in entries.iter() {
                    let Key::String(key) = key else {
                        return Err(EvalError::message("map keys must be strings in JSON"));
                    };
                    take(room, key.len())?;
                    object.insert(key.to_string(), value.to_json_within(room)?);
                }
                Json::Object(object)
            }
            Value::Struct(_, fields) => {
                let mut object = keelson_machinery::value::Object::new();
                for (name, value) in fields.iter() {
                    let name = super::escape::unescape(name).unwrap_or_else(|| name.to_string());
                    object.insert(name, value.to_json_within(room)?);
                }
                Json::Object(object)
            }
            Value::Optional(Some(inner)) => inner.to_json_within(room)?,
            Value::Optional(None) => Json::Null,
            Value::Type(_) | Value::Opaque(_) => {
                return Err(EvalError::message(format!(
                    "type conversion error from '{}' to 'google.protobuf.Value'",
                    self.type_of()
                )));
            }
        })
    }
}

/// The largest JSON that an expression makes, in bytes of its texts and parts.
pub const MAX_JSON: usize = 16 << 20;

fn take(room: &mut usize, size: usize) -> Result<(), EvalError> {
    *room = room
        .checked_sub(size)
        .ok_or_else(|| EvalError::message("the value is too large"))?;
    Ok(())
}

/// Takes the size of JSON away.
fn weigh(json: &Json, room: &mut usize) -> Result<(), EvalError> {
    match json {
        Json::String(text) => take(room, text.len() + 1),
        Json::Array(items) => {
            take(room, 1)?;
            items.iter().try_for_each(|item| weigh(item, room))
        }
        Json::Object(members) => members.iter().try_for_each(|(name, member)| {
            take(room, name.len() + 1)?;
            weigh(member, room)
        }),
        _ => take(room, 1),
    }
}

impl fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Type(of) => write!(f, "{of}"),
            Value::Uint(n) => write!(f, "{n}u"),
            Value::Double(n) => write!(f, "{n:?}"),
            Value::Optional(None) => f.write_str("optional.none()"),
            Value::Optional(Some(inner)) => write!(f, "optional.of({inner:?})"),
            Value::Opaque(opaque) => write!(f, "<{}>", opaque.type_of()),
            Value::List(items) => f.debug_list().entries(items.iter()).finish(),
            Value::Map(entries) => {
                let entries = entries.iter().map(|(k, v)| (Value::from(k.clone()), v));
                f.debug_map().entries(entries).finish()
            }
            other => match other.to_json() {
                Ok(json) => write!(f, "{json}"),
                Err(error) => write!(f, "{error}"),
            },
        }
    }
}

/// Whether two types are the same as values: `type([1]) == list`.
fn same_kind(a: &Type, b: &Type) -> bool {
    match (a, b) {
        (Type::Opaque(a), Type::Opaque(b)) => a == b,
        (Type::Object(a), Type::Object(b)) => a.name() == b.name(),
        _ => std::mem::discriminant(a) == std::mem::discriminant(b),
    }
}

pub(super) fn item_type(of: &Type) -> Type {
    match of {
        Type::List(item) => Type::clone(item),
        _ => Type::Dyn,
    }
}

/// Name and value of a member of an object from outside.
pub(super) fn json_entry<'a>(
    (name, member): (&'a String, &'a Json),
    of: &Type,
) -> Result<(Value<'a>, Value<'a>), EvalError> {
    let of = member_type(of, name).unwrap_or(Type::Dyn);
    let value = Value::from_json(member, &of)?;
    Ok((Value::String(Text::Borrowed(name)), value))
}

fn member_type(of: &Type, name: &str) -> Option<Type> {
    match of {
        Type::Object(object) => object
            .field(name)
            .or_else(|| object.field(&super::escape::escape(name)?)),
        Type::Map(_, value) => Some(Type::clone(value)),
        _ => Some(Type::Dyn),
    }
}

/// RFC 3339, as Go reads it.
pub fn parse_timestamp(text: &str) -> Result<Timestamp, EvalError> {
    text.parse::<Timestamp>().map_err(|_| {
        EvalError::message(format!(
            "parsing time {text:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse {text:?} as \"2006\""
        ))
    })
}

/// Go's `time.ParseDuration`, in nanoseconds.
pub fn parse_duration(text: &str) -> Result<i64, EvalError> {
    let invalid = || EvalError::message(format!("time: invalid duration {text:?}"));
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total: f64 = 0.0;
    let mut exact: i128 = 0;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(|| {
                EvalError::message(format!("time: missing unit in duration {text:?}"))
            })?;
        let (number, after) = rest.split_at(digits);
        let unit_len = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_len);
        let scale: i128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => {
                return Err(EvalError::message(format!(
                    "time: unknown unit {unit:?} in duration {text:?}"
                )));
            }
        };
        match number.split_once('.') {
            None => exact += i128::from(number.parse::<i64>().map_err(|_| invalid())?) * scale,
            Some((whole, part)) => {
                if whole.is_empty() && part.is_empty() {
                    return Err(invalid());
                }
                let whole: i64 = match whole {
                    "" => 0,
                    whole => whole.parse().map_err(|_| invalid())?,
                };
                exact += i128::from(whole) * scale;
                let part: f64 = format!("0.{part}").parse().map_err(|_| invalid())?;
                total += part * scale as f64;
            }
        }
        rest = after;
    }
    exact += total as i128;
    let exact = if negative { -exact } else { exact };
    i64::try_from(exact).map_err(|_| invalid())
}

/// A duration as CEL writes it: seconds with a fraction, and `s`.
pub fn format_duration(nanos: i64) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let nanos = nanos.unsigned_abs();
    let (whole, part) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
    if part == 0 {
        return format!("{sign}{whole}s");
    }
    let part = format!("{part:09}");
    format!("{sign}{whole}.{}s", part.trim_end_matches('0'))
}
