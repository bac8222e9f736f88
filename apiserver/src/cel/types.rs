//! Types of expressions, as far as they are known before evaluation.

use std::fmt;
use std::sync::Arc;

/// A type whose values have members, such as a schema of a custom resource.
pub trait ObjectType: fmt::Debug + Send + Sync {
    /// Its name in messages.
    fn name(&self) -> &str;
    /// The type of a member by its name in expressions (see [`super::escape`]); `None` when there is no such member.
    fn field(&self, name: &str) -> Option<Type>;
}

/// A type.
#[derive(Clone, Debug)]
pub enum Type {
    /// Anything; checked when it is evaluated.
    Dyn,
    /// `null`.
    Null,
    /// `true` and `false`.
    Bool,
    /// 64 bits, signed.
    Int,
    /// 64 bits, unsigned.
    Uint,
    /// A floating-point number.
    Double,
    /// Text.
    String,
    /// Bytes.
    Bytes,
    /// A moment.
    Timestamp,
    /// A span of time.
    Duration,
    /// A list of items of a type.
    List(Arc<Type>),
    /// Keys to values.
    Map(Arc<Type>, Arc<Type>),
    /// Perhaps a value.
    Optional(Arc<Type>),
    /// The type of types.
    Type(Arc<Type>),
    /// A type that only functions know: `kubernetes.URL`, `net.IP`, ...
    Opaque(&'static str),
    /// Values with members.
    Object(Arc<dyn ObjectType>),
    /// A type that a declaration leaves open; numbered anew for each use.
    Param(usize),
    /// The type of what is wrong anyhow, so that one mistake is told once.
    Error,
}

impl Type {
    /// `list(item)`.
    pub fn list(item: Type) -> Type {
        Type::List(Arc::new(item))
    }

    /// `map(key, value)`.
    pub fn map(key: Type, value: Type) -> Type {
        Type::Map(Arc::new(key), Arc::new(value))
    }

    /// `optional_type(inner)`.
    pub fn optional(inner: Type) -> Type {
        Type::Optional(Arc::new(inner))
    }

    /// Whether nothing is known of it.
    pub fn is_dyn(&self) -> bool {
        matches!(self, Type::Dyn | Type::Error)
    }

    /// Whether both are the same type, in all their parts.
    pub fn is_exactly(&self, other: &Type) -> bool {
        match (self, other) {
            (Type::List(a), Type::List(b))
            | (Type::Optional(a), Type::Optional(b))
            | (Type::Type(a), Type::Type(b)) => a.is_exactly(b),
            (Type::Map(a, b), Type::Map(c, d)) => a.is_exactly(c) && b.is_exactly(d),
            (Type::Opaque(a), Type::Opaque(b)) => a == b,
            (Type::Object(a), Type::Object(b)) => a.name() == b.name(),
            (Type::Param(a), Type::Param(b)) => a == b,
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }

    /// The words of checking errors (upstream `checker.FormatCELType`), which differ from [`fmt::Display`] in few names.
    pub fn checked_name(&self) -> String {
        match self {
            Type::Null => "null".to_string(),
            Type::Timestamp => "timestamp".to_string(),
            Type::Duration => "duration".to_string(),
            Type::List(item) => format!("list({})", item.checked_name()),
            Type::Map(key, value) => {
                format!("map({}, {})", key.checked_name(), value.checked_name())
            }
            Type::Optional(inner) => format!("optional_type({})", inner.checked_name()),
            Type::Type(inner) => format!("type({})", inner.checked_name()),
            Type::Error => "!error!".to_string(),
            other => other.to_string(),
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Type::Dyn => "dyn",
            Type::Null => "null_type",
            Type::Bool => "bool",
            Type::Int => "int",
            Type::Uint => "uint",
            Type::Double => "double",
            Type::String => "string",
            Type::Bytes => "bytes",
            Type::Timestamp => "google.protobuf.Timestamp",
            Type::Duration => "google.protobuf.Duration",
            Type::List(item) => return write!(f, "list({item})"),
            Type::Map(key, value) => return write!(f, "map({key}, {value})"),
            Type::Optional(inner) => return write!(f, "optional_type({inner})"),
            Type::Type(inner) => return write!(f, "type({inner})"),
            Type::Opaque(name) => name,
            Type::Object(object) => return f.write_str(object.name()),
            Type::Param(index) => {
                let letter = char::from(b'A' + u8::try_from(index % 26).unwrap_or(0));
                return write!(f, "{letter}");
            }
            Type::Error => "*error*",
        };
        f.write_str(name)
    }
}

/// Stands for `int` or `string`: expressions must look.
pub const INT_OR_STRING: Type = Type::Dyn;

/// An object type that is a plain list of members.
#[derive(Debug)]
pub struct Members {
    name: String,
    fields: Vec<(String, Type)>,
}

impl Members {
    /// A type named `name`.
    pub fn object(name: &str, fields: impl IntoIterator<Item = (&'static str, Type)>) -> Type {
        Members::named(
            name,
            fields
                .into_iter()
                .map(|(name, of)| (name.to_string(), of))
                .collect(),
        )
    }

    /// The same, for names that are made at run time.
    pub fn named(name: &str, fields: Vec<(String, Type)>) -> Type {
        Type::Object(Arc::new(Members {
            name: name.to_string(),
            fields,
        }))
    }
}

impl ObjectType for Members {
    fn name(&self) -> &str {
        &self.name
    }

    fn field(&self, name: &str) -> Option<Type> {
        let found = self.fields.iter().find(|(field, _)| field == name)?;
        Some(found.1.clone())
    }
}
