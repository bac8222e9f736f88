//! Authorization: may this user do that? Authorizers are asked in order until one allows or denies.

pub mod escalation;
pub mod node;
pub mod rbac;
pub mod review;
pub mod rules;
#[cfg(test)]
mod tests;

use std::sync::Arc;

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

/// All rules that are known to hold for a user.
#[derive(Clone, Debug, Default)]
pub struct ResolvedRules {
    /// The rules.
    pub rules: Vec<rules::Rule>,
    /// There are permissions that cannot be told as rules.
    pub incomplete: bool,
    /// What could not be evaluated.
    pub errors: Vec<String>,
}

/// An authorizer that can tell all that a user may do (`authorizer.RuleResolver`).
pub trait RuleResolver: Send + Sync + 'static {
    /// What `user` may do in `namespace`.
    fn resolve(&self, user: &UserInfo, namespace: &str) -> ResolvedRules;
}

/// Members of `system:masters` may do anything, whatever the rules say (`authorizerfactory.NewPrivilegedGroups`): the
/// way back into a cluster whose roles are broken.
pub struct Masters;

/// The group that [`Masters`] lets through.
pub const MASTERS: &str = "system:masters";

#[async_trait]
impl Authorizer for Masters {
    async fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        if attributes.user.groups.iter().any(|group| group == MASTERS) {
            Decision::Allow(String::new())
        } else {
            Decision::NoOpinion(String::new())
        }
    }
}

/// `--authorization-mode=AlwaysAllow`.
pub struct AlwaysAllow;

#[async_trait]
impl Authorizer for AlwaysAllow {
    async fn authorize(&self, _: &Attributes<'_>) -> Decision {
        Decision::Allow(String::new())
    }
}

impl RuleResolver for AlwaysAllow {
    fn resolve(&self, _: &UserInfo, _: &str) -> ResolvedRules {
        let star = || vec!["*".to_owned()];
        let resources = rules::Rule {
            verbs: star(),
            api_groups: star(),
            resources: star(),
            ..Default::default()
        };
        let urls = rules::Rule {
            verbs: star(),
            non_resource_urls: star(),
            ..Default::default()
        };
        ResolvedRules {
            rules: vec![resources, urls],
            ..ResolvedRules::default()
        }
    }
}

/// `--authorization-mode=AlwaysDeny`: no opinion on anything.
pub struct AlwaysDeny;

#[async_trait]
impl Authorizer for AlwaysDeny {
    async fn authorize(&self, _: &Attributes<'_>) -> Decision {
        Decision::NoOpinion("Everything is forbidden.".into())
    }
}

/// Asks authorizers in order until one allows or denies (`union`). The reasons of all that did not are joined.
#[derive(Clone, Default)]
pub struct Union {
    authorizers: Vec<Arc<dyn Authorizer>>,
    resolvers: Vec<Arc<dyn RuleResolver>>,
}

impl Union {
    /// Adds one at the end.
    pub fn with(mut self, authorizer: Arc<dyn Authorizer>) -> Self {
        self.authorizers.push(authorizer);
        self
    }

    /// Adds one at the end that can also tell its rules.
    pub fn with_rules<A: Authorizer + RuleResolver>(mut self, authorizer: Arc<A>) -> Self {
        self.resolvers.push(authorizer.clone());
        self.with(authorizer)
    }
}

#[async_trait]
impl Authorizer for Union {
    async fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        let mut reasons: Vec<String> = Vec::new();
        for authorizer in &self.authorizers {
            match authorizer.authorize(attributes).await {
                Decision::NoOpinion(reason) if reason.is_empty() => {}
                Decision::NoOpinion(reason) => reasons.push(reason),
                decided => return decided,
            }
        }
        Decision::NoOpinion(reasons.join("\n"))
    }
}

impl RuleResolver for Union {
    fn resolve(&self, user: &UserInfo, namespace: &str) -> ResolvedRules {
        let mut all = ResolvedRules::default();
        for resolver in &self.resolvers {
            let one = resolver.resolve(user, namespace);
            all.rules.extend(one.rules);
            all.incomplete |= one.incomplete;
            all.errors.extend(one.errors);
        }
        all
    }
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
