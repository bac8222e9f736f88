//! Nobody may grant what they do not have: writes of roles and bindings are checked against the writer's own rules
//! (`pkg/registry/rbac/*/policybased`). Runs as the last mutating admission plugin, where upstream's registry wrapper
//! stands too: after all changes to the object, before its validation.

use std::sync::Arc;

use async_trait::async_trait;
use keelson_machinery::meta::{self, GroupResource};
use keelson_machinery::status::ApiError;
use keelson_machinery::text::{quote, quote_all};
use keelson_machinery::value::{self, Value};

use super::rbac::{GROUP, MissingRole, Rbac, RoleRef, aggregate};
use super::rules::{Rule, describe_missing, uncovered};
use super::{Attributes, Authorizer, Decision, MASTERS};
use crate::admission::{AdmissionRequest, Operation, Plugin};
use crate::request::{RequestInfo, UserInfo};

/// The check.
pub struct EscalationCheck {
    /// Whose rules count.
    pub rbac: Arc<Rbac>,
    /// Who decides on the `escalate` and `bind` verbs.
    pub authorizer: Arc<dyn Authorizer>,
}

#[async_trait]
impl Plugin for EscalationCheck {
    fn name(&self) -> &'static str {
        "RBACEscalationCheck"
    }

    async fn admit(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        let info = &request.request;
        if info.group != GROUP
            || !info.subresource.is_empty()
            || !matches!(request.operation, Operation::Create | Operation::Update)
        {
            return Ok(());
        }
        let Some(object) = &request.object else {
            return Ok(());
        };
        let old = request.old_object.as_deref();
        if request.user.groups.iter().any(|group| group == MASTERS)
            || old.is_some_and(|old| only_gc_fields_change(object, old))
        {
            return Ok(());
        }
        match info.resource.as_str() {
            "roles" | "clusterroles" => self.check_role(&request.user, info, object, old).await,
            "rolebindings" | "clusterrolebindings" => {
                self.check_binding(&request.user, info, object).await
            }
            _ => Ok(()),
        }
    }
}

impl EscalationCheck {
    async fn check_role(
        &self,
        user: &UserInfo,
        info: &RequestInfo,
        role: &Value,
        old: Option<&Value>,
    ) -> Result<(), ApiError> {
        let escalate = RequestInfo {
            is_resource: true,
            verb: "escalate".into(),
            version: "*".into(),
            group: info.group.clone(),
            resource: info.resource.clone(),
            namespace: info.namespace.clone(),
            name: info.name.clone(),
            ..RequestInfo::default()
        };
        if self.allowed(user, &escalate).await {
            return Ok(());
        }
        let at = GroupResource::new(GROUP, info.resource.as_str());
        let name = meta::name(role);
        self.confirm(user, &info.namespace, &Rule::all_of(role))
            .map_err(|why| ApiError::forbidden(&at, name, why))?;
        let aggregates = |role: &Value| {
            !value::items(role, &["aggregationRule", "clusterRoleSelectors"]).is_empty()
        };
        if aggregates(role) || old.is_some_and(aggregates) {
            let star = || vec!["*".to_owned()];
            let everything = [
                Rule {
                    verbs: star(),
                    api_groups: star(),
                    resources: star(),
                    ..Rule::default()
                },
                Rule {
                    verbs: star(),
                    non_resource_urls: star(),
                    ..Rule::default()
                },
            ];
            let why = "must have cluster-admin privileges to use the aggregationRule";
            self.confirm(user, &info.namespace, &everything)
                .map_err(|_| ApiError::forbidden(&at, name, why))?;
        }
        Ok(())
    }

    async fn check_binding(
        &self,
        user: &UserInfo,
        info: &RequestInfo,
        binding: &Value,
    ) -> Result<(), ApiError> {
        let role = RoleRef::of(binding);
        let resource = match role.kind.as_str() {
            "ClusterRole" => Some("clusterroles"),
            "Role" => Some("roles"),
            _ => None,
        };
        if let Some(resource) = resource {
            let bind = RequestInfo {
                is_resource: true,
                verb: "bind".into(),
                version: "*".into(),
                group: value::str_or_empty(binding, &["roleRef", "apiGroup"]).to_owned(),
                resource: resource.into(),
                namespace: info.namespace.clone(),
                name: role.name.clone(),
                ..RequestInfo::default()
            };
            if self.allowed(user, &bind).await {
                return Ok(());
            }
        }
        let rules = self
            .rbac
            .role_rules(&role, &info.namespace)
            .map_err(|error| match error {
                MissingRole::NotFound(at, name) => ApiError::not_found(&at, &name),
                MissingRole::Kind(_) => ApiError::internal(error),
            })?;
        let at = GroupResource::new(GROUP, info.resource.as_str());
        self.confirm(user, &info.namespace, &rules)
            .map_err(|why| ApiError::forbidden(&at, meta::name(binding), why))
    }

    async fn allowed(&self, user: &UserInfo, request: &RequestInfo) -> bool {
        matches!(
            self.authorizer
                .authorize(&Attributes { user, request })
                .await,
            Decision::Allow(_)
        )
    }

    /// `ConfirmNoEscalation`.
    fn confirm(&self, user: &UserInfo, namespace: &str, wanted: &[Rule]) -> Result<(), String> {
        let (owned, missing_roles) = self.rbac.rules_for(user, namespace);
        let missing = uncovered(&owned, wanted);
        if missing.is_empty() {
            return Ok(());
        }
        let mut why = format!(
            "user {} (groups=[{}]) is attempting to grant RBAC permissions not currently held:\n{}",
            quote(&user.name),
            quote_all(&user.groups, " "),
            describe_missing(&missing)
        );
        if !missing_roles.is_empty() {
            why.push_str(&format!(
                "; resolution errors: [{}]",
                aggregate(&missing_roles)
            ));
        }
        Err(why)
    }
}

/// Whether an update only touches what the garbage collector may (`IsOnlyMutatingGCFields`).
pub(crate) fn only_gc_fields_change(object: &Value, old: &Value) -> bool {
    let without = |object: &Value| {
        let mut copy = object.clone();
        for field in ["ownerReferences", "finalizers", "selfLink", "managedFields"] {
            meta::remove(&mut copy, field);
        }
        copy
    };
    without(object) == without(old)
}
