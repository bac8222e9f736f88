//! What a scalar means: YAML 1.1 as go-yaml v2 reads it.

use crate::value::Value;

const PREFIX: &str = "tag:yaml.org,2002:";

/// The value of a scalar. Only plain ones are more than text, unless a tag says so.
pub(super) fn resolve(text: &str, plain: bool, tag: Option<&str>) -> Result<Value, String> {
    let tag = tag.map(|t| t.strip_prefix(PREFIX).unwrap_or(t.trim_start_matches('!')));
    let own = match tag {
        None | Some("") if !plain => return Ok(Value::from(text)),
        Some("str" | "binary") => return Ok(Value::from(text)),
        None | Some("" | "bool" | "int" | "float" | "null" | "timestamp") => plain_value(text)?,
        // Unknown tags leave the text as it is.
        Some(_) => return Ok(Value::from(text)),
    };
    let kind = match &own {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_f64() => "float",
        Value::Number(_) => "int",
        _ => "str",
    };
    match tag {
        None | Some("" | "timestamp") => Ok(own),
        Some("float") if kind == "int" => Ok(own),
        Some(wanted) if wanted == kind => Ok(own),
        Some(wanted) => Err(format!("cannot decode !!{kind} `{text}` as a !!{wanted}")),
    }
}

/// Whether a plain scalar of this text would be read as something else than the text, by us or by other readers.
pub(super) fn ambiguous(text: &str) -> bool {
    timestamp(text) || !matches!(plain_value(text), Ok(Value::String(_)))
}

fn plain_value(text: &str) -> Result<Value, String> {
    Ok(match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            Value::Bool(true)
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            Value::Bool(false)
        }
        ".nan" | ".NaN" | ".NAN" => return Err("json: unsupported value: NaN".to_string()),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => {
            return Err("json: unsupported value: +Inf".to_string());
        }
        "-.inf" | "-.Inf" | "-.INF" => return Err("json: unsupported value: -Inf".to_string()),
        _ => match text.as_bytes()[0] {
            b'.' => float(text).unwrap_or_else(|| Value::from(text)),
            b'0'..=b'9' | b'+' | b'-' if !timestamp(text) => {
                let plain = text.replace('_', "");
                integer(&plain)
                    .or_else(|| float(&plain))
                    .unwrap_or_else(|| Value::from(text))
            }
            _ => Value::from(text),
        },
    })
}

/// Go's `ParseInt(text, 0, 64)`: 0x, 0o, 0b, and a leading zero for octal.
fn integer(text: &str) -> Option<Value> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = if let Some(rest) = lower.strip_prefix("0x") {
        (16, rest)
    } else if let Some(rest) = lower.strip_prefix("0o") {
        (8, rest)
    } else if let Some(rest) = lower.strip_prefix("0b") {
        (2, rest)
    } else if lower.len() > 1 && lower.starts_with('0') {
        (8, &lower[1..])
    } else {
        (10, lower.as_str())
    };
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    let n = i128::from_str_radix(digits, radix).ok()?;
    let n = if negative { -n } else { n };
    match (i64::try_from(n), u64::try_from(n)) {
        (Ok(n), _) => Some(Value::from(n)),
        (_, Ok(n)) => Some(Value::from(n)),
        _ => None,
    }
}

/// Digits with an optional point and exponent.
fn float(text: &str) -> Option<Value> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (unsigned, None),
    };
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    let mantissa_fits = match mantissa.split_once('.') {
        Some(("", after)) => digits(after),
        Some((before, after)) => digits(before) && (after.is_empty() || digits(after)),
        None => digits(mantissa),
    };
    let exponent_fits = exponent.is_none_or(|e| digits(e.strip_prefix(['+', '-']).unwrap_or(e)));
    if !mantissa_fits || !exponent_fits {
        return None;
    }
    let n: f64 = text.parse().ok()?;
    // What the value becomes in JSON, where whole floats have no point.
    crate::codec::scalar::double(n)
}

/// Whether the text looks like one of go-yaml's timestamps, which stay text.
fn timestamp(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() > 4 && bytes[..4].iter().all(u8::is_ascii_digit) && bytes[4] == b'-'
}
