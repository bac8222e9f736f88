//! Operators, sizes, conversions, regular expressions.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use parking_lot::RwLock;
use regex::{Regex, RegexBuilder};

use super::super::error::EvalError;
use super::super::eval::Scope;
use super::super::types::Type;
use super::super::value::{Value, parse_duration, parse_timestamp};
use super::network::{Cidr, Ip};
use super::{Row, text};

type Result<'a> = std::result::Result<Value<'a>, EvalError>;

const ORDERED: &[&str] = &[
    "(bool, bool) -> bool",
    "(int, int) -> bool",
    "(int, uint) -> bool",
    "(int, double) -> bool",
    "(uint, uint) -> bool",
    "(uint, int) -> bool",
    "(uint, double) -> bool",
    "(double, double) -> bool",
    "(double, int) -> bool",
    "(double, uint) -> bool",
    "(string, string) -> bool",
    "(bytes, bytes) -> bool",
    "(timestamp, timestamp) -> bool",
    "(duration, duration) -> bool",
];
const NUMBERS: &[&str] = &[
    "(int, int) -> int",
    "(uint, uint) -> uint",
    "(double, double) -> double",
];

/// The functions.
pub const ROWS: &[Row] = &[
    ("_&&_", &["(bool, bool) -> bool"], special),
    ("_||_", &["(bool, bool) -> bool"], special),
    ("_?_:_", &["(bool, A, A) -> A"], special),
    ("!_", &["(bool) -> bool"], not),
    ("-_", &["(int) -> int", "(double) -> double"], negate),
    (
        "_+_",
        &[
            "(int, int) -> int",
            "(uint, uint) -> uint",
            "(double, double) -> double",
            "(string, string) -> string",
            "(bytes, bytes) -> bytes",
            "(list(A), list(A)) -> list(A)",
            "(timestamp, duration) -> timestamp",
            "(duration, timestamp) -> timestamp",
            "(duration, duration) -> duration",
        ],
        add,
    ),
    (
        "_-_",
        &[
            "(int, int) -> int",
            "(uint, uint) -> uint",
            "(double, double) -> double",
            "(timestamp, timestamp) -> duration",
            "(timestamp, duration) -> timestamp",
            "(duration, duration) -> duration",
        ],
        subtract,
    ),
    ("_*_", NUMBERS, multiply),
    ("_/_", NUMBERS, divide),
    (
        "_%_",
        &["(int, int) -> int", "(uint, uint) -> uint"],
        modulo,
    ),
    ("_==_", &["(A, A) -> bool"], equal),
    ("_!=_", &["(A, A) -> bool"], different),
    ("_<_", ORDERED, less),
    ("_<=_", ORDERED, less_or_equal),
    ("_>_", ORDERED, greater),
    ("_>=_", ORDERED, greater_or_equal),
    (
        "@in",
        &["(A, list(A)) -> bool", "(A, map(A, B)) -> bool"],
        contained,
    ),
    (
        "_[_]",
        &[
            "(list(A), int) -> A",
            "(map(A, B), A) -> B",
            "(optional(list(A)), int) -> optional(A)",
            "(optional(map(A, B)), A) -> optional(B)",
        ],
        index,
    ),
    (
        "_[?_]",
        &[
            "(list(A), int) -> optional(A)",
            "(map(A, B), A) -> optional(B)",
            "(optional(list(A)), int) -> optional(A)",
            "(optional(map(A, B)), A) -> optional(B)",
        ],
        optional_index,
    ),
    (
        "size",
        &[
            "(string) -> int",
            "(bytes) -> int",
            "(list(A)) -> int",
            "(map(A, B)) -> int",
            "string.() -> int",
            "bytes.() -> int",
            "list(A).() -> int",
            "map(A, B).() -> int",
        ],
        size,
    ),
    ("type", &["(A) -> type(A)"], type_of),
    ("dyn", &["(A) -> dyn"], dynamic),
    ("bool", &["(bool) -> bool", "(string) -> bool"], to_bool),
    (
        "bytes",
        &["(bytes) -> bytes", "(string) -> bytes"],
        to_bytes,
    ),
    (
        "int",
        &[
            "(int) -> int",
            "(uint) -> int",
            "(double) -> int",
            "(string) -> int",
            "(timestamp) -> int",
            "(duration) -> int",
        ],
        to_int,
    ),
    (
        "uint",
        &[
            "(uint) -> uint",
            "(int) -> uint",
            "(double) -> uint",
            "(string) -> uint",
        ],
        to_uint,
    ),
    (
        "double",
        &[
            "(double) -> double",
            "(int) -> double",
            "(uint) -> double",
            "(string) -> double",
        ],
        to_double,
    ),
    (
        "string",
        &[
            "(string) -> string",
            "(bool) -> string",
            "(int) -> string",
            "(uint) -> string",
            "(double) -> string",
            "(bytes) -> string",
            "(timestamp) -> string",
            "(duration) -> string",
            "(ip) -> string",
            "(cidr) -> string",
        ],
        to_string,
    ),
    (
        "timestamp",
        &[
            "(timestamp) -> timestamp",
            "(string) -> timestamp",
            "(int) -> timestamp",
        ],
        to_timestamp,
    ),
    (
        "duration",
        &[
            "(duration) -> duration",
            "(string) -> duration",
            "(int) -> duration",
        ],
        to_duration,
    ),
    (
        "matches",
        &["(string, string) -> bool", "string.(string) -> bool"],
        matches,
    ),
    ("find", &["string.(string) -> string"], find),
    (
        "findAll",
        &[
            "string.(string) -> list(string)",
            "string.(string, int) -> list(string)",
        ],
        find_all,
    ),
    ("optional.of", &["(A) -> optional(A)"], optional_of),
    (
        "optional.ofNonZeroValue",
        &["(A) -> optional(A)"],
        optional_of_non_zero,
    ),
    ("optional.none", &["() -> optional(A)"], optional_none),
    ("hasValue", &["optional(A).() -> bool"], has_value),
    ("value", &["optional(A).() -> A"], optional_value),
    ("or", &["optional(A).(optional(A)) -> optional(A)"], or),
    ("orValue", &["optional(A).(A) -> A"], or_value),
];

fn none<'a>() -> Result<'a> {
    Err(EvalError::no_such_overload())
}

fn overflow<'a>() -> Result<'a> {
    Err(EvalError::message("return error for overflow"))
}

/// These operators do not evaluate all they are given, so that the evaluator does their work.
fn special<'a>(_: &mut Scope<'_, 'a>, _: &[Value<'a>]) -> Result<'a> {
    none()
}

fn not<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    match args {
        [Value::Bool(b)] => Ok(Value::Bool(!b)),
        _ => none(),
    }
}

fn negate<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    match args {
        [Value::Int(n)] => n.checked_neg().map_or_else(overflow, |n| Ok(Value::Int(n))),
        [Value::Double(n)] => Ok(Value::Double(-n)),
        _ => none(),
    }
}

fn shifted<'a>(at: jiff::Timestamp, nanos: i64) -> Result<'a> {
    match at.checked_add(jiff::SignedDuration::from_nanos(nanos)) {
        Ok(at) => Ok(Value::Timestamp(at)),
        Err(_) => Err(EvalError::message("timestamp overflow")),
    }
}

fn add<'a>(scope: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    use Value::{Bytes, Double, Duration, Int, String, Timestamp, Uint};
    match args {
        [Int(a), Int(b)] => a.checked_add(*b).map_or_else(overflow, |n| Ok(Int(n))),
        [Uint(a), Uint(b)] => a.checked_add(*b).map_or_else(overflow, |n| Ok(Uint(n))),
        [Double(a), Double(b)] => Ok(Double(a + b)),
        [String(a), String(b)] => {
            scope.charge_text(a.len() + b.len(), 10)?;
            Ok(Value::text(format!("{}{}", &**a, &**b)))
        }
        [Bytes(a), Bytes(b)] => {
            scope.charge_text(a.len() + b.len(), 10)?;
            Ok(Bytes(a.iter().chain(b.iter()).copied().collect()))
        }
        [Timestamp(at), Duration(by)] | [Duration(by), Timestamp(at)] => shifted(*at, *by),
        [Duration(a), Duration(b)] => a.checked_add(*b).map_or_else(overflow, |n| Ok(Duration(n))),
        [a, b] => match (a.items(), b.items()) {
            (Some(a), Some(b)) => {
                let mut items = a?;
                items.extend(b?);
                scope.charge_items(items.len())?;
                Ok(Value::list(items))
            }
            _ => none(),
        },
        _ => none(),
    }
}

fn subtract<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    use Value::{Double, Duration, Int, Timestamp, Uint};
    match args {
        [Int(a), Int(b)] => a.checked_sub(*b).map_or_else(overflow, |n| Ok(Int(n))),
        [Uint(a), Uint(b)] => a.checked_sub(*b).map_or_else(overflow, |n| Ok(Uint(n))),
        [Double(a), Double(b)] => Ok(Double(a - b)),
        [Timestamp(a), Timestamp(b)] => {
            let nanos = a.duration_since(*b).as_nanos();
            i64::try_from(nanos).map_or_else(|_| overflow(), |n| Ok(Duration(n)))
        }
        [Timestamp(at), Duration(by)] => by
            .checked_neg()
            .map_or_else(overflow, |by| shifted(*at, by)),
        [Duration(a), Duration(b)] => a.checked_sub(*b).map_or_else(overflow, |n| Ok(Duration(n))),
        _ => none(),
    }
}

fn multiply<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    use Value::{Double, Int, Uint};
    match args {
        [Int(a), Int(b)] => a.checked_mul(*b).map_or_else(overflow, |n| Ok(Int(n))),
        [Uint(a), Uint(b)] => a.checked_mul(*b).map_or_else(overflow, |n| Ok(Uint(n))),
        [Double(a), Double(b)] => Ok(Double(a * b)),
        _ => none(),
    }
}

fn divide<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    use Value::{Double, Int, Uint};
    match args {
        [Int(_), Int(0)] | [Uint(_), Uint(0)] => Err(EvalError::message("division by zero")),
        [Int(a), Int(b)] => a.checked_div(*b).map_or_else(overflow, |n| Ok(Int(n))),
        [Uint(a), Uint(b)] => Ok(Uint(a / b)),
        [Double(a), Double(b)] => Ok(Double(a / b)),
        _ => none(),
    }
}

fn modulo<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    use Value::{Int, Uint};
    match args {
        [Int(_), Int(0)] | [Uint(_), Uint(0)] => Err(EvalError::message("modulus by zero")),
        [Int(a), Int(b)] => a.checked_rem(*b).map_or_else(overflow, |n| Ok(Int(n))),
        [Uint(a), Uint(b)] => Ok(Uint(a % b)),
        _ => none(),
    }
}

fn equal<'a>(scope: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let [a, b] = args else { return none() };
    scope.charge_comparison(a, b)?;
    scope.equal(a, b).map(Value::Bool)
}

fn different<'a>(scope: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let [a, b] = args else { return none() };
    scope.charge_comparison(a, b)?;
    scope.equal(a, b).map(|equal| Value::Bool(!equal))
}

macro_rules! comparison {
    ($name:ident, $test:ident) => {
        fn $name<'a>(scope: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
            let [a, b] = args else { return none() };
            scope.charge_comparison(a, b)?;
            Ok(Value::Bool(
                a.compare(b)?.is_some_and(|order| order.$test()),
            ))
        }
    };
}

comparison!(less, is_lt);
comparison!(less_or_equal, is_le);
comparison!(greater, is_gt);
comparison!(greater_or_equal, is_ge);

fn contained<'a>(scope: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let [item, within] = args else { return none() };
    if within.is_list() {
        let items = super::items(within)?;
        scope.charge_items(items.len())?;
        for one in &items {
            if scope.equal(item, one)? {
                return Ok(Value::Bool(true));
            }
        }
        return Ok(Value::Bool(false));
    }
    match within {
        Value::Map(_) | Value::Json(..) => Ok(Value::Bool(within.at(item)?.is_some())),
        _ => none(),
    }
}

/// A key that is no text; what cannot be one is told by its type, for it may be of any size.
fn shown_key(key: &Value<'_>) -> String {
    match key.to_key() {
        Ok(key) => format!("{:?}", Value::from(key)),
        Err(_) => key.type_of().to_string(),
    }
}

fn absent(of: &Value<'_>, index: &Value<'_>) -> EvalError {
    match (of.is_list(), index) {
        (true, Value::Int(n)) => EvalError::message(format!("index out of bounds: {n}")),
        (_, Value::String(key)) => EvalError::no_such_key(key),
        (_, other) => EvalError::no_such_key(&shown_key(other)),
    }
}

fn index<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    match args {
        [Value::Optional(None), _] => Ok(Value::Optional(None)),
        [Value::Optional(Some(inner)), at] => Ok(match inner.at(at)? {
            Some(found) => Value::some(found),
            None => Value::Optional(None),
        }),
        [of, at] => of.at(at)?.ok_or_else(|| absent(of, at)),
        _ => none(),
    }
}

fn optional_index<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let (of, at) = match args {
        [Value::Optional(None), _] => return Ok(Value::Optional(None)),
        [Value::Optional(Some(inner)), at] => (&**inner, at),
        [of, at] => (of, at),
        _ => return none(),
    };
    Ok(match of.at(at)? {
        Some(found) => Value::some(found),
        None => Value::Optional(None),
    })
}

fn size<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    match args.first().and_then(Value::size) {
        Some(size) => Ok(Value::Int(i64::try_from(size).unwrap_or(i64::MAX))),
        None => none(),
    }
}

fn type_of<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let [value] = args else { return none() };
    Ok(Value::Type(value.type_of()))
}

fn dynamic<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    args.first().cloned().map_or_else(none, Ok)
}

fn conversion(from: &str, to: &Type) -> EvalError {
    EvalError::message(format!("type conversion error from '{from}' to '{to}'"))
}

fn to_bool<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    match args {
        [Value::Bool(b)] => Ok(Value::Bool(*b)),
        // Go's `strconv.ParseBool`.
        [Value::String(text)] => match &**text {
            "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(Value::Bool(true)),
            "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(Value::Bool(false)),
            _ => Err(conversion("string", &Type::Bool)),
        },
        _ => none(),
    }
}

fn to_bytes<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    match args {
        [Value::Bytes(bytes)] => Ok(Value::Bytes(bytes.clone())),
        [Value::String(text)] => Ok(Value::Bytes(text.as_bytes().into())),
        _ => none(),
    }
}

fn to_int<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let range = || Err(EvalError::message("integer overflow"));
    match args {
        [Value::Int(n)] => Ok(Value::Int(*n)),
        [Value::Uint(n)] => i64::try_from(*n).map_or_else(|_| range(), |n| Ok(Value::Int(n))),
        [Value::Double(n)] => {
            if n.is_finite() && *n > -9.223_372_036_854_776e18 && *n < 9.223_372_036_854_776e18 {
                Ok(Value::Int(*n as i64))
            } else {
                range()
            }
        }
        [Value::String(text)] => match text.parse() {
            Ok(n) => Ok(Value::Int(n)),
            Err(_) => Err(conversion("string", &Type::Int)),
        },
        [Value::Timestamp(at)] => Ok(Value::Int(at.as_second())),
        [Value::Duration(nanos)] => Ok(Value::Int(*nanos)),
        _ => none(),
    }
}

fn to_uint<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let range = || Err(EvalError::message("unsigned integer overflow"));
    match args {
        [Value::Uint(n)] => Ok(Value::Uint(*n)),
        [Value::Int(n)] => u64::try_from(*n).map_or_else(|_| range(), |n| Ok(Value::Uint(n))),
        [Value::Double(n)] => {
            if *n >= 0.0 && *n < 1.844_674_407_370_955_2e19 {
                Ok(Value::Uint(*n as u64))
            } else {
                range()
            }
        }
        [Value::String(text)] => match text.parse() {
            Ok(n) => Ok(Value::Uint(n)),
            Err(_) => Err(conversion("string", &Type::Uint)),
        },
        _ => none(),
    }
}

fn to_double<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    match args {
        [Value::Double(n)] => Ok(Value::Double(*n)),
        [Value::Int(n)] => Ok(Value::Double(*n as f64)),
        [Value::Uint(n)] => Ok(Value::Double(*n as f64)),
        [Value::String(text)] => match text.parse() {
            Ok(n) => Ok(Value::Double(n)),
            Err(_) => Err(conversion("string", &Type::Double)),
        },
        _ => none(),
    }
}

/// Go's shortest form of a floating-point number.
pub(super) fn double_text(n: f64) -> String {
    if n.is_nan() {
        return "NaN".to_string();
    }
    if n.is_infinite() {
        return if n > 0.0 { "+Inf" } else { "-Inf" }.to_string();
    }
    let exponent = if n == 0.0 {
        0.0
    } else {
        n.abs().log10().floor()
    };
    if !(-4.0..21.0).contains(&exponent) {
        let text = format!("{n:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(exponent) => ('-', exponent),
            None => ('+', exponent),
        };
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    format!("{n}")
}

fn to_string<'a>(scope: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    Ok(match args {
        [Value::String(text)] => Value::String(text.clone()),
        [Value::Bool(b)] => Value::text(b.to_string()),
        [Value::Int(n)] => Value::text(n.to_string()),
        [Value::Uint(n)] => Value::text(n.to_string()),
        [Value::Double(n)] => Value::text(double_text(*n)),
        [Value::Bytes(bytes)] => {
            scope.charge_text(bytes.len(), 10)?;
            let text = std::str::from_utf8(bytes).map_err(|_| {
                EvalError::message("invalid UTF-8 in bytes, cannot convert to string")
            })?;
            Value::text(text)
        }
        [Value::Timestamp(at)] => Value::text(at.to_string()),
        [Value::Duration(nanos)] => Value::text(super::super::value::format_duration(*nanos)),
        [Value::Opaque(opaque)] => {
            if let Some(ip) = opaque.as_any().downcast_ref::<Ip>() {
                Value::text(ip.0.to_string())
            } else if let Some(cidr) = opaque.as_any().downcast_ref::<Cidr>() {
                Value::text(cidr.0.to_string())
            } else {
                return none();
            }
        }
        _ => return none(),
    })
}

fn to_timestamp<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    match args {
        [Value::Timestamp(at)] => Ok(Value::Timestamp(*at)),
        [Value::String(text)] => parse_timestamp(text).map(Value::Timestamp),
        [Value::Int(seconds)] => jiff::Timestamp::from_second(*seconds)
            .map(Value::Timestamp)
            .map_err(|_| EvalError::message("timestamp overflow")),
        _ => none(),
    }
}

fn to_duration<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    match args {
        [Value::Duration(nanos)] | [Value::Int(nanos)] => Ok(Value::Duration(*nanos)),
        [Value::String(text)] => parse_duration(text).map(Value::Duration),
        _ => none(),
    }
}

/// How many regular expressions are kept compiled.
const KEPT: usize = 512;
/// The largest compiled regular expression, in bytes.
const MAX_REGEX: usize = 1 << 20;

/// What compiling a regular expression counts for, in parts of lists that are looked at.
const COMPILING: u64 = 100_000;

static COMPILED: LazyLock<RwLock<HashMap<String, Arc<Regex>>>> = LazyLock::new(RwLock::default);

/// A compiled regular expression. Those of stored rules are few and come again and again.
pub fn regex(pattern: &str) -> std::result::Result<Arc<Regex>, String> {
    if let Some(found) = COMPILED.read().get(pattern) {
        return Ok(found.clone());
    }
    let made = RegexBuilder::new(pattern)
        .size_limit(MAX_REGEX)
        .build()
        .map_err(|error| format!("error parsing regexp: {error}"))?;
    let made = Arc::new(made);
    let mut cache = COMPILED.write();
    if cache.len() >= KEPT {
        cache.clear();
    }
    cache.insert(pattern.to_string(), made.clone());
    Ok(made)
}

fn charged(scope: &mut Scope<'_, '_>, of: &str, given: &str) -> std::result::Result<(), EvalError> {
    // cel-go: a tenth of the text times a quarter of the pattern.
    let text = (of.len() + 1).div_ceil(10);
    let pattern = given.len().div_ceil(4).max(1);
    scope.charge(text.saturating_mul(pattern) as u64)?;
    if COMPILED.read().contains_key(given) {
        return Ok(());
    }
    scope.look(COMPILING)
}

fn matches<'a>(scope: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let [of, pattern] = args else { return none() };
    let (of, pattern) = (text(of)?, text(pattern)?);
    charged(scope, of, pattern)?;
    let regex = regex(pattern).map_err(EvalError::Message)?;
    Ok(Value::Bool(regex.is_match(of)))
}

fn illegal(why: String) -> EvalError {
    EvalError::message(format!("Illegal regex: {why}"))
}

fn find<'a>(scope: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let [of, pattern] = args else { return none() };
    let (of, pattern) = (text(of)?, text(pattern)?);
    charged(scope, of, pattern)?;
    let regex = regex(pattern).map_err(illegal)?;
    Ok(Value::text(
        regex.find(of).map_or("", |found| found.as_str()),
    ))
}

fn find_all<'a>(scope: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let (of, pattern, limit) = match args {
        [of, pattern] => (text(of)?, text(pattern)?, -1),
        [of, pattern, limit] => (text(of)?, text(pattern)?, super::int(limit)?),
        _ => return none(),
    };
    charged(scope, of, pattern)?;
    let regex = regex(pattern).map_err(illegal)?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let found = regex.find_iter(of).take(limit);
    Ok(Value::list(
        found.map(|found| Value::text(found.as_str())).collect(),
    ))
}

fn optional_of<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    args.first()
        .cloned()
        .map_or_else(none, |value| Ok(Value::some(value)))
}

fn optional_of_non_zero<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let [value] = args else { return none() };
    let zero = match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Int(n) => *n == 0,
        Value::Uint(n) => *n == 0,
        Value::Double(n) => *n == 0.0,
        Value::Duration(n) => *n == 0,
        Value::Optional(inner) => inner.is_none(),
        other => other.size() == Some(0),
    };
    Ok(match zero {
        true => Value::Optional(None),
        false => Value::some(value.clone()),
    })
}

fn optional_none<'a>(_: &mut Scope<'_, 'a>, _: &[Value<'a>]) -> Result<'a> {
    Ok(Value::Optional(None))
}

fn has_value<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    match args {
        [Value::Optional(inner)] => Ok(Value::Bool(inner.is_some())),
        _ => none(),
    }
}

fn optional_value<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    match args {
        [Value::Optional(Some(inner))] => Ok(Value::clone(inner)),
        [Value::Optional(None)] => Err(EvalError::message("optional.none() dereference")),
        _ => none(),
    }
}

fn or<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    match args {
        [first @ Value::Optional(Some(_)), _] => Ok(first.clone()),
        [Value::Optional(None), second @ Value::Optional(_)] => Ok(second.clone()),
        _ => none(),
    }
}

fn or_value<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    match args {
        [Value::Optional(Some(inner)), _] => Ok(Value::clone(inner)),
        [Value::Optional(None), other] => Ok(other.clone()),
        _ => none(),
    }
}
