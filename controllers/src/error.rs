//! Why a reconcile failed, and what the API's refusals mean.

use thiserror::Error;

/// See the variants.
#[derive(Debug, Error)]
pub enum Error {
    /// The API refused or could not be reached.
    #[error("{0}")]
    Api(#[from] kube::Error),
    /// An object that cannot be acted on as it is.
    #[error("{0}")]
    Object(String),
    /// Discovery of the API failed in part.
    #[error("discovery: {0}")]
    Discovery(String),
}

/// Whether the API answered this code.
pub fn is_code(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

/// Whether the object is not there.
pub fn is_not_found(error: &kube::Error) -> bool {
    is_code(error, 404)
}

/// Whether another writer was faster. `AlreadyExists` has the same code and another reason.
pub fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.reason == "Conflict")
}

/// Whether an object of that name is there already.
pub fn is_already_exists(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.reason == "AlreadyExists")
}

/// Whether a create was refused because its namespace is going away.
pub fn is_namespace_terminating(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 403
        && status.details.as_ref().is_some_and(|d| d.causes.iter().any(|c| c.reason == "NamespaceTerminating")))
}

/// `Ok` for an object that is already gone.
///
/// # Errors
/// Every other failure.
pub fn ignore_not_found<T>(result: kube::Result<T>) -> Result<(), Error> {
    match result {
        Ok(_) => Ok(()),
        Err(error) if is_not_found(&error) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
