//! Approves the client certificates of kubelets: of nodes that join, and of nodes that renew their own (upstream
//! `approver/sarapprove.go`). Who may is asked of the API server: those who may `create` the subresource `nodeclient`, or
//! `selfnodeclient` for a certificate of their own name.

use std::sync::Arc;

use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use keelson_runtime::controller::Action;
use kube::{Client, ResourceExt};

use super::request::{KUBELET_CLIENT, Request};
use super::{approve, is_decided, may_create, usages};
use crate::{Context, Error};

/// Runs until shutdown.
///
/// # Errors
/// None: what fails is tried again.
pub async fn run(context: Context) -> anyhow::Result<()> {
    let client = context.client(super::CLIENT);
    super::follow(context, "csrapproving", move |request| {
        sync(client.clone(), request)
    })
    .await
}

async fn sync(client: Client, request: Arc<CertificateSigningRequest>) -> Result<Action, Error> {
    if is_decided(&request) {
        return Ok(Action::Done);
    }
    let parsed = Request::parse(&request.spec.request.0)
        .map_err(|error| Error::Object(format!("csr {}: {error}", request.name_any())))?;
    let permissions = recognized(&request, &parsed);
    for (subresource, message) in &permissions {
        if may_create(&client, &request, subresource).await? {
            return approve(&client, &request, message).await;
        }
    }
    if permissions.is_empty() {
        Ok(Action::Done)
    } else {
        // A binding may be on its way; upstream waits for it in the same way.
        tracing::debug!(
            csr = request.name_any(),
            "recognized, but its requester may not have it approved"
        );
        Ok(Action::Retry)
    }
}

/// The permissions of which one is needed, each with what the approval says.
fn recognized(
    request: &CertificateSigningRequest,
    parsed: &Request,
) -> Vec<(&'static str, &'static str)> {
    if request.spec.signer_name != KUBELET_CLIENT
        || parsed.check_kubelet_client(&usages(request)).is_err()
    {
        return Vec::new();
    }
    let mut permissions = Vec::new();
    if request.spec.username.as_deref() == Some(parsed.common_name.as_str()) {
        permissions.push((
            "selfnodeclient",
            "Auto approving self kubelet client certificate after SubjectAccessReview.",
        ));
    }
    permissions.push((
        "nodeclient",
        "Auto approving kubelet client certificate after SubjectAccessReview.",
    ));
    permissions
}
