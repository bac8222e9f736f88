//! Authorization: may this user do that? Authorizers are asked in order until one allows or denies.

use async_trait::async_trait;
use keelson_machinery::meta::GroupResource;
use keelson_machinery::status::ApiError;
use keelson_machinery::text::quote;

use crate::request::{RequestInfo, UserInfo};

/// What is asked for (`k8s.io/apiserver/pkg/authorization/authorizer.Attributes`).
#[derive(Clone, Debug)]
pub struct Attributes<'a> {
    /// Who asks.
    pub user: &'a UserInfo,
    /// For what.
    pub request: &'a RequestInfo,
}

/// An authorizer's answer, with the reason shown to the client on a refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Allowed.
    Allow(String),
    /// Refused; later authorizers are not asked.
    Deny(String),
    /// This authorizer does not know; refused if nobody allows.
    NoOpinion(String),
}

/// A rule engine.
#[async_trait]
pub trait Authorizer: Send + Sync + 'static {
    /// Decides; an internal failure is `NoOpinion` with the failure as reason (fail closed).
    async fn authorize(&self, attributes: &Attributes<'_>) -> Decision;
}

/// The 403 for a refusal (`responsewriters.ForbiddenStatusError`), `reason` being the authorizers'.
pub fn forbidden(attributes: &Attributes<'_>, reason: &str) -> ApiError {
    let request = attributes.request;
    let mut why = sanitize(&forbidden_message(attributes));
    if !reason.is_empty() {
        why.push_str(": ");
        why.push_str(reason);
    }
    ApiError::forbidden(
        &GroupResource::new(request.group.as_str(), request.resource.as_str()),
        &request.name,
        why,
    )
}

fn forbidden_message(attributes: &Attributes<'_>) -> String {
    let request = attributes.request;
    let user = quote(&attributes.user.name);
    if !request.is_resource {
        return format!(
            "User {user} cannot {} path {}",
            request.verb,
            quote(&request.path)
        );
    }
    let resource = match request.subresource.as_str() {
        "" => quote(&request.resource),
        subresource => quote(&format!("{}/{subresource}", request.resource)),
    };
    let group = quote(&request.group);
    let start = format!(
        "User {user} cannot {} resource {resource} in API group {group}",
        request.verb
    );
    match request.namespace.as_str() {
        "" => format!("{start} at the cluster scope"),
        namespace => format!("{start} in the namespace {}", quote(namespace)),
    }
}

/// Nothing in the text may be taken for markup by a browser.
fn sanitize(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
