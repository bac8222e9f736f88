//! Functions of texts (the standard library and cel-go's `ext.Strings`, version 2).

use super::super::error::EvalError;
use super::super::eval::Scope;
use super::super::value::Value;
use super::{Row, int, items, lists, text};

type Result<'a> = std::result::Result<Value<'a>, EvalError>;

const TEST: &[&str] = &["string.(string) -> bool"];

/// The functions.
pub const ROWS: &[Row] = &[
    ("contains", TEST, contains),
    ("startsWith", TEST, starts_with),
    ("endsWith", TEST, ends_with),
    ("charAt", &["string.(int) -> string"], char_at),
    (
        "indexOf",
        &[
            "string.(string) -> int",
            "string.(string, int) -> int",
            "list(A).(A) -> int",
        ],
        index_of,
    ),
    (
        "lastIndexOf",
        &[
            "string.(string) -> int",
            "string.(string, int) -> int",
            "list(A).(A) -> int",
        ],
        last_index_of,
    ),
    (
        "join",
        &[
            "list(string).() -> string",
            "list(string).(string) -> string",
        ],
        join,
    ),
    ("lowerAscii", &["string.() -> string"], lower),
    ("upperAscii", &["string.() -> string"], upper),
    (
        "replace",
        &[
            "string.(string, string) -> string",
            "string.(string, string, int) -> string",
        ],
        replace,
    ),
    (
        "split",
        &[
            "string.(string) -> list(string)",
            "string.(string, int) -> list(string)",
        ],
        split,
    ),
    (
        "substring",
        &["string.(int) -> string", "string.(int, int) -> string"],
        substring,
    ),
    ("trim", &["string.() -> string"], trim),
    ("strings.quote", &["(string) -> string"], quote),
    ("format", &["string.(list(dyn)) -> string"], format),
    ("jsonpatch.escapeKey", &["(string) -> string"], escape_key),
];

fn none<'a>() -> Result<'a> {
    Err(EvalError::no_such_overload())
}

fn contains<'a>(scope: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let [of, part] = args else { return none() };
    let (of, part) = (text(of)?, text(part)?);
    scope.charge((of.len().div_ceil(10) * part.len().div_ceil(10)) as u64)?;
    Ok(Value::Bool(of.contains(part)))
}

fn starts_with<'a>(scope: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let [of, part] = args else { return none() };
    let (of, part) = (text(of)?, text(part)?);
    scope.charge_text(part.len(), 10)?;
    Ok(Value::Bool(of.starts_with(part)))
}

fn ends_with<'a>(scope: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let [of, part] = args else { return none() };
    let (of, part) = (text(of)?, text(part)?);
    scope.charge_text(part.len(), 10)?;
    Ok(Value::Bool(of.ends_with(part)))
}

fn out_of_range<'a>(index: i64) -> Result<'a> {
    Err(EvalError::message(format!("index out of range: {index}")))
}

fn char_at<'a>(scope: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let [of, index] = args else { return none() };
    let (of, index) = (text(of)?, int(index)?);
    scope.charge_text(of.len(), 10)?;
    let count = of.chars().count();
    match usize::try_from(index) {
        Ok(at) if at == count => Ok(Value::text("")),
        Ok(at) => match of.chars().nth(at) {
            Some(c) => Ok(Value::text(c)),
            None => out_of_range(index),
        },
        Err(_) => out_of_range(index),
    }
}

/// Where `part` stands in `of` in characters, at `from` or later.
fn find_from(of: &[char], part: &[char], from: usize) -> Option<usize> {
    if part.is_empty() {
        return Some(from);
    }
    (from..of.len()).find(|at| of[*at..].starts_with(part))
}

fn number(at: Option<usize>) -> Value<'static> {
    Value::Int(at.and_then(|at| i64::try_from(at).ok()).unwrap_or(-1))
}

fn index_of<'a>(scope: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let (of, part, from) = match args {
        [list, item] if list.is_list() => {
            scope.charge_items(list.size().unwrap_or(0))?;
            return lists::position(scope, list, item, false);
        }
        [of, part] => (text(of)?, text(part)?, 0),
        [of, part, from] => (text(of)?, text(part)?, int(from)?),
        _ => return none(),
    };
    scope.charge((of.len().div_ceil(10) * part.len().div_ceil(10)).max(1) as u64)?;
    let (of, part): (Vec<char>, Vec<char>) = (of.chars().collect(), part.chars().collect());
    match usize::try_from(from) {
        Ok(at) if at <= of.len() => Ok(number(find_from(&of, &part, at))),
        _ => out_of_range(from),
    }
}

fn last_index_of<'a>(scope: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let (of, part, to) = match args {
        [list, item] if list.is_list() => {
            scope.charge_items(list.size().unwrap_or(0))?;
            return lists::position(scope, list, item, true);
        }
        [of, part] => (text(of)?, text(part)?, None),
        [of, part, to] => (text(of)?, text(part)?, Some(int(to)?)),
        _ => return none(),
    };
    scope.charge((of.len().div_ceil(10) * part.len().div_ceil(10)).max(1) as u64)?;
    let (of, part): (Vec<char>, Vec<char>) = (of.chars().collect(), part.chars().collect());
    let limit = match to {
        None => of.len(),
        Some(to) => match usize::try_from(to) {
            Ok(at) if at <= of.len() => at,
            _ => return out_of_range(to),
        },
    };
    let Some(highest) = of.len().checked_sub(part.len()) else {
        return Ok(number(None));
    };
    let found = (0..=highest.min(limit))
        .rev()
        .find(|at| of[*at..].starts_with(&part));
    Ok(number(found))
}

fn join<'a>(scope: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let (list, separator) = match args {
        [list] => (items(list)?, ""),
        [list, separator] => (items(list)?, text(separator)?),
        _ => return none(),
    };
    let mut out = String::new();
    for (index, item) in list.iter().enumerate() {
        if index > 0 {
            out.push_str(separator);
        }
        let item = text(item)?;
        scope.charge_text(item.len() + separator.len(), 10)?;
        out.push_str(item);
    }
    Ok(Value::text(out))
}

fn lower<'a>(scope: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let [of] = args else { return none() };
    let of = text(of)?;
    scope.charge_text(of.len(), 10)?;
    Ok(Value::text(of.to_ascii_lowercase()))
}

fn upper<'a>(scope: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let [of] = args else { return none() };
    let of = text(of)?;
    scope.charge_text(of.len(), 10)?;
    Ok(Value::text(of.to_ascii_uppercase()))
}

fn replace<'a>(scope: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let (of, old, new, limit) = match args {
        [of, old, new] => (text(of)?, text(old)?, text(new)?, -1),
        [of, old, new, limit] => (text(of)?, text(old)?, text(new)?, int(limit)?),
        _ => return none(),
    };
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    // An empty text stands before each character and at the end.
    let matches = match old.len() {
        0 => of.chars().count() + 1,
        len => of.len() / len,
    };
    scope.charge_text(of.len() + matches.min(limit).saturating_mul(new.len()), 10)?;
    Ok(Value::text(of.replacen(old, new, limit)))
}

fn split<'a>(scope: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let (of, separator, limit) = match args {
        [of, separator] => (text(of)?, text(separator)?, -1),
        [of, separator, limit] => (text(of)?, text(separator)?, int(limit)?),
        _ => return none(),
    };
    scope.charge_text(of.len(), 10)?;
    let limit = match limit {
        0 => return Ok(Value::list(Vec::new())),
        limit => usize::try_from(limit).unwrap_or(usize::MAX),
    };
    let parts: Vec<Value<'a>> = if separator.is_empty() {
        let chars: Vec<char> = of.chars().collect();
        let single = chars.len().min(limit.saturating_sub(1));
        let mut parts: Vec<Value<'a>> = chars[..single].iter().map(|c| Value::text(*c)).collect();
        if single < chars.len() {
            if limit > chars.len() {
                parts.extend(chars[single..].iter().map(|c| Value::text(*c)));
            } else {
                parts.push(Value::text(chars[single..].iter().collect::<String>()));
            }
        }
        parts
    } else {
        of.splitn(limit, separator).map(Value::text).collect()
    };
    scope.charge_items(parts.len())?;
    Ok(Value::list(parts))
}

fn substring<'a>(scope: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let of = text(args.first().ok_or_else(EvalError::no_such_overload)?)?;
    scope.charge_text(of.len(), 10)?;
    let chars: Vec<char> = of.chars().collect();
    let count = i64::try_from(chars.len()).unwrap_or(i64::MAX);
    let (start, end) = match args {
        [_, start] => (int(start)?, count),
        [_, start, end] => (int(start)?, int(end)?),
        _ => return none(),
    };
    if !(0..=count).contains(&start) {
        return out_of_range(start);
    }
    if !(0..=count).contains(&end) {
        return out_of_range(end);
    }
    if start > end {
        return Err(EvalError::message(format!(
            "invalid substring range. start: {start}, end: {end}"
        )));
    }
    let range = usize::try_from(start).unwrap_or(0)..usize::try_from(end).unwrap_or(0);
    Ok(Value::text(chars[range].iter().collect::<String>()))
}

fn trim<'a>(scope: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let [of] = args else { return none() };
    let of = text(of)?;
    scope.charge_text(of.len(), 10)?;
    Ok(Value::text(of.trim()))
}

fn quote<'a>(scope: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let [of] = args else { return none() };
    let of = text(of)?;
    scope.charge_text(of.len(), 10)?;
    let mut out = String::from("\"");
    for c in of.chars() {
        match c {
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            c => out.push(c),
        }
    }
    out.push('"');
    Ok(Value::text(out))
}

/// A key as a step of a JSON pointer.
fn escape_key<'a>(scope: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let [of] = args else { return none() };
    let of = text(of)?;
    scope.charge_text(of.len(), 10)?;
    Ok(Value::text(of.replace('~', "~0").replace('/', "~1")))
}

/// The most decimals of a number in `format`.
const MAX_PRECISION: usize = 100;

fn format<'a>(scope: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let [of, list] = args else { return none() };
    let (of, list) = (text(of)?, items(list)?);
    scope.charge_text(of.len(), 10)?;
    let mut out = String::new();
    let mut next = list.iter().enumerate();
    let mut chars = of.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        if chars.peek() == Some(&'%') {
            chars.next();
            out.push('%');
            continue;
        }
        let mut precision = None;
        if chars.peek() == Some(&'.') {
            chars.next();
            let mut digits = String::new();
            while let Some(digit) = chars.peek().filter(|c| c.is_ascii_digit()) {
                digits.push(*digit);
                chars.next();
            }
            let parsed = digits.parse::<usize>().ok();
            precision = Some(parsed.filter(|p| *p <= MAX_PRECISION).ok_or_else(|| {
                EvalError::message("error while parsing precision: no digits found")
            })?);
        }
        let verb = chars
            .next()
            .ok_or_else(|| EvalError::message("unexpected end of string"))?;
        let (index, value) = next
            .next()
            .ok_or_else(|| EvalError::message(format!("index {} out of range", list.len())))?;
        weighed(scope, value)?;
        let shown = clause(verb, value, precision).map_err(|why| {
            EvalError::message(format!(
                "error during formatting: could not convert argument {index}: {why}"
            ))
        })?;
        scope.charge_text(shown.len(), 10)?;
        out.push_str(&shown);
    }
    Ok(Value::text(out))
}

/// Pays for what is in a list or map before it is shown: it may hold one value many times, and that one another.
fn weighed(scope: &mut Scope<'_, '_>, value: &Value<'_>) -> std::result::Result<(), EvalError> {
    let Some(parts) = value.entries().or_else(|| {
        let pairs = |items: Vec<_>| items.into_iter().map(|item| (Value::Null, item)).collect();
        value.items().map(|items| items.map(pairs))
    }) else {
        return match value {
            Value::String(text) => scope.charge_text(text.len(), 10),
            Value::Bytes(bytes) => scope.charge_text(bytes.len(), 10),
            Value::Optional(Some(inner)) => weighed(scope, inner),
            _ => scope.look(1),
        };
    };
    for (key, part) in parts? {
        scope.look(1)?;
        weighed(scope, &key)?;
        weighed(scope, &part)?;
    }
    Ok(())
}

fn clause(
    verb: char,
    value: &Value<'_>,
    precision: Option<usize>,
) -> std::result::Result<String, String> {
    let wrong = |verb: &str| {
        Err(format!(
            "{verb} clause can only be used on numbers, was given {}",
            value.type_of()
        ))
    };
    Ok(match (verb, value) {
        ('s', value) => shown(value),
        ('d', Value::Int(n)) => n.to_string(),
        ('d', Value::Uint(n)) => n.to_string(),
        ('d', _) => return wrong("decimal"),
        ('f', Value::Double(n)) => format!("{n:.*}", precision.unwrap_or(6)),
        ('f', Value::Int(n)) => format!("{:.*}", precision.unwrap_or(6), *n as f64),
        ('f', Value::Uint(n)) => format!("{:.*}", precision.unwrap_or(6), *n as f64),
        ('f', _) => return wrong("fixed-point"),
        ('e', Value::Double(n)) => scientific(*n, precision.unwrap_or(6)),
        ('e', Value::Int(n)) => scientific(*n as f64, precision.unwrap_or(6)),
        ('e', Value::Uint(n)) => scientific(*n as f64, precision.unwrap_or(6)),
        ('e', _) => return wrong("scientific"),
        ('b', Value::Int(n)) if *n < 0 => format!("-{:b}", n.unsigned_abs()),
        ('b', Value::Int(n)) => format!("{n:b}"),
        ('b', Value::Uint(n)) => format!("{n:b}"),
        ('b', Value::Bool(b)) => u8::from(*b).to_string(),
        ('b', _) => return wrong("binary"),
        ('o', Value::Int(n)) if *n < 0 => format!("-{:o}", n.unsigned_abs()),
        ('o', Value::Int(n)) => format!("{n:o}"),
        ('o', Value::Uint(n)) => format!("{n:o}"),
        ('o', _) => return wrong("octal"),
        ('x', value) => hex(value)?,
        ('X', value) => hex(value)?.to_ascii_uppercase(),
        (other, _) => return Err(format!("unrecognized formatting clause \"{other}\"")),
    })
}

fn scientific(n: f64, precision: usize) -> String {
    let text = format!("{n:.precision$e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    match exponent.strip_prefix('-') {
        Some(exponent) => format!("{digits}e-{exponent:0>2}"),
        None => format!("{digits}e+{exponent:0>2}"),
    }
}

fn hex(value: &Value<'_>) -> std::result::Result<String, String> {
    let bytes = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    Ok(match value {
        Value::Int(n) if *n < 0 => format!("-{:x}", n.unsigned_abs()),
        Value::Int(n) => format!("{n:x}"),
        Value::Uint(n) => format!("{n:x}"),
        Value::String(text) => bytes(text.as_bytes()),
        Value::Bytes(given) => bytes(given),
        other => {
            return Err(format!(
                "only integers, byte buffers, and strings can be formatted as hex, was given {}",
                other.type_of()
            ));
        }
    })
}

/// A value as `%s` shows it.
fn shown(value: &Value<'_>) -> String {
    match value {
        Value::String(text) => text.to_string(),
        Value::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::Uint(n) => n.to_string(),
        Value::Double(n) => super::standard::double_text(*n),
        Value::Null => "null".to_string(),
        Value::Timestamp(at) => at.to_string(),
        Value::Duration(nanos) => super::super::value::format_duration(*nanos),
        value => {
            if let Some(Ok(items)) = value.items() {
                let items: Vec<String> = items.iter().map(shown).collect();
                return format!("[{}]", items.join(", "));
            }
            if let Some(Ok(entries)) = value.entries() {
                let entries: Vec<String> = entries
                    .iter()
                    .map(|(key, value)| format!("{}: {}", shown(key), shown(value)))
                    .collect();
                return format!("{{{}}}", entries.join(", "));
            }
            format!("{value:?}")
        }
    }
}
