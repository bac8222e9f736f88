//! Patches: JSON patch (RFC 6902 as `evanphx/json-patch` reads it), JSON merge patch (RFC 7386) and strategic
//! merge patch, with the errors that upstream's apiserver answers.

mod json;
mod merge;
mod strategic;

pub use json::{MAX_COPY_BYTES, MAX_OPERATIONS, json_patch, json_patch_strict_errors};
pub use merge::merge_patch;
pub use strategic::strategic_merge_patch;

use crate::status::{ApiError, Details, Reason};
use crate::value::Value;

/// Why a patch cannot be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The patch is malformed: 400.
    #[error("{0}")]
    Malformed(String),
    /// The patch asks for too much: 413.
    #[error("{0}")]
    TooLarge(String),
    /// The patch does not apply to this object: 422. Upstream does not pass the message on to the client.
    #[error("{0}")]
    DoesNotApply(String),
    /// A strategic merge patch contradicts the type or itself. Upstream answers 500 with the message.
    #[error("{0}")]
    Conflicting(String),
}

impl From<PatchError> for ApiError {
    fn from(error: PatchError) -> ApiError {
        match error {
            PatchError::Malformed(message) => ApiError::bad_request(message),
            PatchError::TooLarge(message) => ApiError::request_entity_too_large(message),
            PatchError::DoesNotApply(_) => ApiError::new(
                422,
                Reason::Invalid,
                "the server rejected our request due to an error in our request",
            )
            .with_details(Details::default()),
            PatchError::Conflicting(message) => ApiError::new(500, Reason::Unknown, message),
        }
    }
}

/// What Go's decoder calls a JSON value's type.
fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests;
