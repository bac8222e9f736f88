//! One step of a path into an object, in the order and the text form of upstream's `fieldpath.PathElement`.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;

use crate::value::Value;

/// One step. The order of the variants is upstream's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PathElement {
    /// A member of an object or map.
    Field(Cow<'static, str>),
    /// An item of an associative list: names and values of its keys, sorted by name.
    Key(Vec<(Cow<'static, str>, Scalar)>),
    /// An item of a set.
    Value(Scalar),
    /// An item of a list by position.
    Index(i64),
}

/// A value within a path, ordered as upstream's `value.Compare`: numbers, texts, booleans, the rest.
#[derive(Clone, Debug)]
pub struct Scalar(pub Value);

impl Ord for Scalar {
    fn cmp(&self, other: &Scalar) -> Ordering {
        fn rank(v: &Value) -> u8 {
            match v {
                Value::Number(_) => 0,
                Value::String(_) => 1,
                Value::Bool(_) => 2,
                Value::Array(_) => 3,
                Value::Object(_) => 4,
                Value::Null => 5,
            }
        }
        match (&self.0, &other.0) {
            (Value::Number(a), Value::Number(b)) => match (a.as_i64(), b.as_i64()) {
                (Some(a), Some(b)) => a.cmp(&b),
                _ => a
                    .as_f64()
                    .unwrap_or(0.0)
                    .total_cmp(&b.as_f64().unwrap_or(0.0)),
            },
            (Value::String(a), Value::String(b)) => a.cmp(b),
            (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
            (a, b) => rank(a)
                .cmp(&rank(b))
                .then_with(|| a.to_string().cmp(&b.to_string())),
        }
    }
}

impl PartialOrd for Scalar {
    fn partial_cmp(&self, other: &Scalar) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Scalar {
    fn eq(&self, other: &Scalar) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Scalar {}

impl PathElement {
    /// A member's step.
    pub fn field(name: impl Into<Cow<'static, str>>) -> PathElement {
        PathElement::Field(name.into())
    }

    /// The member name that stands for the step in a `FieldsV1` (upstream `SerializePathElement`).
    pub fn to_key(&self) -> String {
        match self {
            PathElement::Field(name) => format!("f:{name}"),
            PathElement::Key(keys) => {
                let mut out = String::from("k:{");
                for (at, (name, value)) in keys.iter().enumerate() {
                    if at > 0 {
                        out.push(',');
                    }
                    out.push_str(&Value::from(&**name).to_string());
                    out.push(':');
                    out.push_str(&value.0.to_string());
                }
                out.push('}');
                out
            }
            PathElement::Value(value) => format!("v:{}", value.0),
            PathElement::Index(at) => format!("i:{at}"),
        }
    }

    /// Reads what [`PathElement::to_key`] writes; `Ok(None)` for kinds of steps that are not known, which upstream
    /// skips (upstream `DeserializePathElement`).
    pub fn from_key(key: &str) -> Result<Option<PathElement>, String> {
        let Some((kind, rest)) = key.split_at_checked(2) else {
            return Err("key must be 2 characters long:".to_string());
        };
        if !kind.ends_with(':') {
            return Err(format!("missing colon: {key}"));
        }
        Ok(Some(match kind {
            "f:" => PathElement::Field(Cow::Owned(rest.to_string())),
            "v:" => PathElement::Value(Scalar(
                serde_json::from_str(rest).map_err(|e| e.to_string())?,
            )),
            "k:" => {
                let Value::Object(keys) =
                    serde_json::from_str::<Value>(rest).map_err(|e| e.to_string())?
                else {
                    return Err(format!("not an object: {key}"));
                };
                let mut keys: Vec<_> = keys
                    .into_iter()
                    .map(|(name, value)| (Cow::Owned(name), Scalar(value)))
                    .collect();
                keys.sort();
                PathElement::Key(keys)
            }
            "i:" => PathElement::Index(rest.parse::<i64>().map_err(|e| e.to_string())?),
            _ => return Ok(None),
        }))
    }
}

impl fmt::Display for PathElement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PathElement::Field(name) => write!(f, ".{name}"),
            PathElement::Key(keys) => {
                f.write_str("[")?;
                for (at, (name, value)) in keys.iter().enumerate() {
                    let comma = if at > 0 { "," } else { "" };
                    write!(f, "{comma}{name}={}", value.0)?;
                }
                f.write_str("]")
            }
            PathElement::Value(value) => write!(f, "[={}]", value.0),
            PathElement::Index(at) => write!(f, "[{at}]"),
        }
    }
}

/// A path as error messages write it.
pub fn path_text(path: &[PathElement]) -> String {
    path.iter().map(ToString::to_string).collect()
}
