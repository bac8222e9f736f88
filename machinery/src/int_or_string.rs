//! `IntOrString` (upstream `k8s.io/apimachinery/pkg/util/intstr`): a number, a name or a percentage.

use std::fmt;

use crate::text;
use crate::value::Value;

/// A value that is an integer or a string on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IntOrString {
    /// A plain number.
    Int(i32),
    /// A name or a percentage.
    String(String),
}

/// Why a value cannot be read as a number or percentage.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScaleError {
    /// A string without the closing percent sign.
    #[error("invalid value for IntOrString: invalid type: string is not a percentage")]
    NotPercent,
    /// A percent sign behind something that is no number.
    #[error("invalid value for IntOrString: invalid value {}: strconv.Atoi: parsing {}: invalid syntax", text::quote(.0), text::quote(.0.trim_end_matches('%')))]
    NotNumber(String),
}

impl IntOrString {
    /// Reads the wire form; `None` when it is neither a 32-bit integer nor a string.
    pub fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::String(s) => Some(IntOrString::String(s.clone())),
            Value::Number(n) => Some(IntOrString::Int(i32::try_from(n.as_i64()?).ok()?)),
            _ => None,
        }
    }

    /// A number if `text` is one (32 bits), else the string (upstream `intstr.Parse`).
    pub fn parse(text: &str) -> Self {
        match text.parse() {
            Ok(n) => IntOrString::Int(n),
            Err(_) => IntOrString::String(text.to_owned()),
        }
    }

    /// The number, a string's number, or 0 (upstream `IntValue`).
    pub fn int_value(&self) -> i64 {
        match self {
            IntOrString::Int(n) => i64::from(*n),
            IntOrString::String(s) => s.parse().unwrap_or(0),
        }
    }

    /// The number itself, or the percentage of `total` rounded up or down
    /// (upstream `GetScaledValueFromIntOrPercent`).
    pub fn scaled(&self, total: i64, round_up: bool) -> Result<i64, ScaleError> {
        let text = match self {
            IntOrString::Int(n) => return Ok(i64::from(*n)),
            IntOrString::String(s) => s,
        };
        let digits = text.strip_suffix('%').ok_or(ScaleError::NotPercent)?;
        let percent: i64 = digits
            .parse()
            .map_err(|_| ScaleError::NotNumber(text.clone()))?;
        let exact = percent as f64 * total as f64 / 100.0;
        Ok(if round_up {
            exact.ceil()
        } else {
            exact.floor()
        } as i64)
    }

    /// The wire form.
    pub fn to_value(&self) -> Value {
        match self {
            IntOrString::Int(n) => Value::from(*n),
            IntOrString::String(s) => Value::from(s.as_str()),
        }
    }
}

impl fmt::Display for IntOrString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IntOrString::Int(n) => n.fmt(f),
            IntOrString::String(s) => s.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales() {
        for (text, total, up, want) in [
            ("25%", 10, true, Ok(3)),
            ("25%", 10, false, Ok(2)),
            ("7", 10, true, Ok(7)),
            ("200%", 4, false, Ok(8)),
            ("http", 4, false, Err(ScaleError::NotPercent)),
            ("x%", 4, false, Err(ScaleError::NotNumber("x%".into()))),
        ] {
            assert_eq!(IntOrString::parse(text).scaled(total, up), want, "{text}");
        }
        assert_eq!(IntOrString::from_value(&serde_json::json!(1.5)), None);
        assert_eq!(
            IntOrString::parse("3000000000"),
            IntOrString::String("3000000000".into())
        );
    }
}
