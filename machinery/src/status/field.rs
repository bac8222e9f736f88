//! Field errors of validation (upstream `k8s.io/apimachinery/pkg/util/validation/field`).

use std::fmt;

use crate::text;
use crate::value::Value;

/// Where a field stands in an object: `spec.containers[0].name`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path(String);

impl Path {
    /// A path that starts at the member `name`.
    pub fn new(name: &str) -> Self {
        Path(name.to_owned())
    }

    /// The path to the object itself (upstream's nil path); printed as `<nil>`.
    pub fn root() -> Self {
        Path(String::new())
    }

    /// The member `name` below this one.
    pub fn child(&self, name: &str) -> Self {
        match self.0.is_empty() {
            true => self.step("", name, ""),
            false => self.step(".", name, ""),
        }
    }

    /// The list item `index` of this one.
    pub fn index(&self, index: usize) -> Self {
        self.step("[", &index.to_string(), "]")
    }

    /// The map entry `key` of this one.
    pub fn key(&self, key: &str) -> Self {
        self.step("[", key, "]")
    }

    /// Names of members may come from outside and be as long as a body: a path that becomes too long ends before.
    fn step(&self, before: &str, name: &str, after: &str) -> Self {
        if self.0.len() + name.len() > MAX_PATH {
            return self.clone();
        }
        Path([&self.0, before, name, after].concat())
    }
}

/// Longest path, in bytes, but for a sign or two.
pub const MAX_PATH: usize = 2048;
/// How many findings about one object are told; what finds them may stop there.
pub const MAX_FINDINGS: usize = 1000;

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "<nil>" } else { &self.0 })
    }
}

/// What is wrong with a field; the names are the `type` of a `StatusCause`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorType {
    /// A value that should exist somewhere does not.
    NotFound,
    /// A value is needed and not given.
    Required,
    /// A value that must be unique is not.
    Duplicate,
    /// A malformed value.
    Invalid,
    /// A value outside a closed list.
    NotSupported,
    /// A well-formed value that is not allowed here and now.
    Forbidden,
    /// Too long a value.
    TooLong,
    /// Too many items.
    TooMany,
    /// Too few items.
    TooFew,
    /// Too short a value.
    TooShort,
    /// A failure not of the user's making.
    Internal,
    /// A value of the wrong type.
    TypeInvalid,
}

impl ErrorType {
    /// The `type` of the `StatusCause`.
    pub fn cause(self) -> &'static str {
        match self {
            ErrorType::NotFound => "FieldValueNotFound",
            ErrorType::Required => "FieldValueRequired",
            ErrorType::Duplicate => "FieldValueDuplicate",
            ErrorType::Invalid => "FieldValueInvalid",
            ErrorType::NotSupported => "FieldValueNotSupported",
            ErrorType::Forbidden => "FieldValueForbidden",
            ErrorType::TooLong => "FieldValueTooLong",
            ErrorType::TooMany => "FieldValueTooMany",
            ErrorType::TooFew => "FieldValueTooFew",
            ErrorType::TooShort => "FieldValueTooShort",
            ErrorType::Internal => "InternalError",
            ErrorType::TypeInvalid => "FieldValueTypeInvalid",
        }
    }
}

impl fmt::Display for ErrorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ErrorType::NotFound => "Not found",
            ErrorType::Required => "Required value",
            ErrorType::Duplicate => "Duplicate value",
            ErrorType::Invalid | ErrorType::TypeInvalid => "Invalid value",
            ErrorType::NotSupported => "Unsupported value",
            ErrorType::Forbidden => "Forbidden",
            ErrorType::TooLong => "Too long",
            ErrorType::TooMany => "Too many",
            ErrorType::TooFew => "Too few",
            ErrorType::TooShort => "Too short",
            ErrorType::Internal => "Internal error",
        })
    }
}

/// One thing wrong with one field.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    /// What is wrong.
    pub kind: ErrorType,
    /// The field's path as text.
    pub field: String,
    /// The offending value as it is printed, if it is printed.
    shown: Option<String>,
    /// Words on what would be right.
    pub detail: String,
}

impl FieldError {
    fn new(
        kind: ErrorType,
        field: &Path,
        shown: Option<String>,
        detail: impl Into<String>,
    ) -> Self {
        FieldError {
            kind,
            field: field.to_string(),
            shown,
            detail: detail.into(),
        }
    }

    /// A needed value is absent.
    pub fn required(field: &Path, detail: impl Into<String>) -> Self {
        Self::new(ErrorType::Required, field, None, detail)
    }

    /// A malformed value.
    pub fn invalid(field: &Path, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(ErrorType::Invalid, field, Some(show(&value.into())), detail)
    }

    /// A malformed value, given in the form in which it is to be printed (for Go structs, whose JSON keeps the
    /// order of declaration).
    pub fn invalid_as_text(field: &Path, shown: String, detail: impl Into<String>) -> Self {
        Self::new(ErrorType::Invalid, field, Some(shown), detail)
    }

    /// A value of the wrong type.
    pub fn type_invalid(field: &Path, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(
            ErrorType::TypeInvalid,
            field,
            Some(show(&value.into())),
            detail,
        )
    }

    /// A value outside the list `valid`, which the message repeats in the given order.
    pub fn not_supported<S: AsRef<str>>(
        field: &Path,
        value: impl Into<Value>,
        valid: &[S],
    ) -> Self {
        let detail = match valid {
            [] => String::new(),
            _ => format!("supported values: {}", text::quote_all(valid, ", ")),
        };
        Self::new(
            ErrorType::NotSupported,
            field,
            Some(show(&value.into())),
            detail,
        )
    }

    /// A value that must exist elsewhere does not.
    pub fn not_found(field: &Path, value: impl Into<Value>) -> Self {
        Self::new(ErrorType::NotFound, field, Some(show(&value.into())), "")
    }

    /// A value that must be unique occurs again.
    pub fn duplicate(field: &Path, value: impl Into<Value>) -> Self {
        Self::new(ErrorType::Duplicate, field, Some(show(&value.into())), "")
    }

    /// A value that is not allowed here and now.
    pub fn forbidden(field: &Path, detail: impl Into<String>) -> Self {
        Self::new(ErrorType::Forbidden, field, None, detail)
    }

    /// More than `max` bytes.
    pub fn too_long(field: &Path, max: usize) -> Self {
        let unit = if max == 1 { "byte" } else { "bytes" };
        Self::new(
            ErrorType::TooLong,
            field,
            None,
            format!("may not be more than {max} {unit}"),
        )
    }

    /// More than `max` characters.
    pub fn too_long_characters(field: &Path, max: usize) -> Self {
        let unit = if max == 1 { "character" } else { "characters" };
        Self::new(
            ErrorType::TooLong,
            field,
            None,
            format!("may not be more than {max} {unit}"),
        )
    }

    /// Fewer than `min` characters.
    pub fn too_short(field: &Path, min: usize) -> Self {
        let unit = if min == 1 { "character" } else { "characters" };
        Self::new(
            ErrorType::TooShort,
            field,
            None,
            format!("must be at least {min} {unit}"),
        )
    }

    /// More than `max` items.
    pub fn too_many(field: &Path, actual: usize, max: usize) -> Self {
        let unit = if max == 1 { "item" } else { "items" };
        Self::new(
            ErrorType::TooMany,
            field,
            Some(actual.to_string()),
            format!("must have at most {max} {unit}"),
        )
    }

    /// Fewer than `min` items.
    pub fn too_few(field: &Path, actual: usize, min: usize) -> Self {
        let unit = if min == 1 { "item" } else { "items" };
        Self::new(
            ErrorType::TooFew,
            field,
            Some(actual.to_string()),
            format!("must have at least {min} {unit}"),
        )
    }

    /// A failure not of the user's making.
    pub fn internal(field: &Path, error: impl fmt::Display) -> Self {
        Self::new(ErrorType::Internal, field, None, error.to_string())
    }

    /// The message without the field's name, as it stands in a `StatusCause` (upstream `ErrorBody`).
    pub fn body(&self) -> String {
        let mut out = self.kind.to_string();
        for part in [self.shown.as_deref(), Some(self.detail.as_str())]
            .into_iter()
            .flatten()
        {
            // A shown value is never empty text: strings are quoted.
            if !part.is_empty() {
                out.push_str(": ");
                out.push_str(part);
            }
        }
        out
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}

impl std::error::Error for FieldError {}

fn show(value: &Value) -> String {
    match value {
        Value::String(s) => text::quote(s),
        other => text::go_json(other),
    }
}

/// All errors in one text: one stands alone, several stand in brackets, repetitions are dropped
/// (upstream `ErrorList.ToAggregate`). `None` for no error.
pub fn aggregate(errors: &[FieldError]) -> Option<String> {
    let mut texts: Vec<String> = Vec::with_capacity(errors.len());
    for error in errors {
        let text = error.to_string();
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    match texts.len() {
        0 => None,
        1 => texts.pop(),
        _ => Some(format!("[{}]", texts.join(", "))),
    }
}
