//! API errors: what becomes a `metav1.Status` on the wire.

/// An error with everything its `Status` needs.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP status code.
    pub code: u16,
    /// The message for the client.
    pub message: String,
}
