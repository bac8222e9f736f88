//! Authorization: may this user do that? Authorizers are asked in order until one allows or denies.

use async_trait::async_trait;

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
