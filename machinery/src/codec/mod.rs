//! Codecs between bytes and object values: JSON, YAML and protobuf, each guided by the type table.
//!
//! A typed decode gives the value the form it would have after passing through upstream's Go type: unknown members
//! are dropped (and reported), nulls and empty `omitempty` members are dropped, members that Go always writes are
//! present, quantities and times are canonical. So two decoded objects are equal exactly when Go's would be, and
//! encoding needs no schema.

pub mod json;
pub mod protobuf;
mod scalar;
pub mod yaml;

use std::fmt;

use crate::text;

/// Nesting beyond this many objects and lists is refused. Upstream's limit is 10,000, but its stacks grow; no API
/// type comes near this bound, and deeper custom objects could not be handled safely by recursive code.
pub const MAX_DEPTH: usize = 128;

/// Whether a decode looks for unknown and duplicate fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strictness {
    /// Unknown fields are dropped, the last of duplicate ones wins, and nothing is said
    /// (`fieldValidation=Ignore`).
    Lenient,
    /// The same, and each such field is reported (`fieldValidation=Warn` and `Strict`).
    Strict,
}

/// A field that strict decoding objects to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum StrictError {
    /// The type has no such field. Holds the path: `spec.containers[0].foo`.
    Unknown(String),
    /// The field stands more than once in its object. Holds the path.
    Duplicate(String),
    /// What the YAML reader objects to, in its own words.
    Yaml(String),
}

impl fmt::Display for StrictError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StrictError::Unknown(path) => write!(f, "unknown field {}", text::quote(path)),
            StrictError::Duplicate(path) => write!(f, "duplicate field {}", text::quote(path)),
            StrictError::Yaml(message) => f.write_str(message),
        }
    }
}

/// The message that upstream puts into its answer for strict errors (`runtime.NewStrictDecodingError`).
pub fn strict_message(errors: &[StrictError]) -> String {
    let list: Vec<String> = errors.iter().map(StrictError::to_string).collect();
    format!("strict decoding error: {}", list.join(", "))
}

/// Why bytes are no object of the wanted type. The text is what upstream says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes are not well-formed.
    #[error("{0}")]
    Syntax(String),
    /// A value has the wrong type for its field, or its text form is wrong.
    #[error("{0}")]
    Type(String),
}

#[cfg(test)]
mod property_tests;
#[cfg(test)]
mod wire_tests;
