//! Admission: what a create, update, delete or connect must pass after authorization, in upstream's plugin order.

use std::sync::Arc;

use async_trait::async_trait;
use keelson_machinery::status::ApiError;
use keelson_machinery::value::Value;

use crate::request::{RequestInfo, UserInfo};

/// The kind of change (`k8s.io/apiserver/pkg/admission.Operation`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// A new object.
    Create,
    /// A changed object, patches and status updates included.
    Update,
    /// A deletion.
    Delete,
    /// exec, attach, port-forward, proxy.
    Connect,
}

/// Everything a plugin may look at, and the object that mutating plugins may change.
#[derive(Clone, Debug)]
pub struct AdmissionRequest {
    /// The kind of change.
    pub operation: Operation,
    /// The request (group, version, resource, subresource, namespace, name).
    pub request: RequestInfo,
    /// Kind of the object in the request.
    pub kind: String,
    /// Who asks.
    pub user: UserInfo,
    /// The new object; `None` for deletes.
    pub object: Option<Value>,
    /// The stored object, for updates and deletes.
    pub old_object: Option<Arc<Value>>,
    /// The `CreateOptions`, `UpdateOptions` or `DeleteOptions` of the request.
    pub options: Value,
    /// Nothing will be stored.
    pub dry_run: bool,
    /// Warnings for the client, sent as `Warning` headers.
    pub warnings: Vec<String>,
}

/// One admission plugin.
#[async_trait]
pub trait Plugin: Send + Sync + 'static {
    /// Upstream's plugin name, as in `--enable-admission-plugins`.
    fn name(&self) -> &'static str;
    /// May change `request.object`; an error refuses the request.
    async fn admit(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        let _ = request;
        Ok(())
    }
    /// Sees the final object; an error refuses the request.
    async fn validate(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        let _ = request;
        Ok(())
    }
}
