//! Admission policies: `ValidatingAdmissionPolicy` and `MutatingAdmissionPolicy`, expressions in the API instead of
//! servers beside it (`k8s.io/apiserver/pkg/admission/plugin/policy`).
//!
//! [`definition`] follows policies and bindings and compiles them, [`expressions`] is what their expressions see,
//! [`conditions`] what leaves requests out (of webhooks too), [`validating`] and [`mutating`] are the plugins,
//! [`patch`] what mutations do to an object, [`type_check`] what the status of a validating policy says.

pub mod conditions;
pub mod definition;
pub mod expressions;
pub mod mutating;
pub mod patch;
mod references;
pub mod type_check;
pub mod validating;

use std::sync::Arc;

use keelson_machinery::status::ApiError;
use keelson_machinery::value::Value as Json;

use self::conditions::Matched;
use self::definition::Policy;
use self::expressions::Inputs;
use super::AdmissionRequest;
use super::webhook::WebhookMetrics;
use super::webhook::matching::Seen;
use super::webhook::review;
use super::webhook::view::{View, Views};
use crate::authz::Authorizer;
use crate::cel::authorizer::{Check, Decisions};
use crate::objects::Objects;
use crate::registry::Registry;

/// What the plugins need of the server.
#[derive(Clone)]
pub struct PolicyPlugins {
    /// Stored objects.
    pub objects: Objects,
    /// Which resources there are.
    pub registry: Arc<Registry>,
    /// Who answers expressions that ask about rights.
    pub authorizer: Arc<dyn Authorizer>,
    /// Counters of match conditions.
    pub metrics: WebhookMetrics,
}

/// Everything that the expressions of one policy see of one request.
pub(crate) struct Prepared {
    view: Arc<View>,
    request: Json,
    resource: Check,
    params: Option<Arc<Json>>,
    namespace: Option<Arc<Json>>,
}

impl Prepared {
    pub(crate) fn new(
        request: &AdmissionRequest,
        view: Arc<View>,
        seen: &Seen,
        params: Option<Arc<Json>>,
        namespace: Option<Arc<Json>>,
    ) -> Prepared {
        let mut told = review::attributes(request, seen);
        told["options"] = request.options.clone();
        Prepared {
            view,
            request: told,
            resource: expressions::resource_check(request),
            params,
            namespace,
        }
    }

    fn inputs<'a>(&'a self, policy: &'a Policy) -> Inputs<'a> {
        Inputs {
            variables: &policy.variables,
            ..self.plain_inputs()
        }
    }

    /// Without variables of a policy.
    pub(crate) fn plain_inputs(&self) -> Inputs<'_> {
        Inputs {
            object: self.view.object.as_deref(),
            old_object: self.view.old_object.as_deref(),
            params: self.params.as_deref(),
            namespace: self.namespace.as_deref(),
            request: &self.request,
            resource: &self.resource,
            variables: &[],
        }
    }
}

impl PolicyPlugins {
    /// The namespace of a request as expressions see it; `None` for those outside of namespaces, and for namespaces
    /// themselves.
    async fn namespace(&self, request: &AdmissionRequest) -> Result<Option<Arc<Json>>, ApiError> {
        let name = &request.request.namespace;
        if name.is_empty() || (request.kind == "Namespace" && request.kind_group.is_empty()) {
            return Ok(None);
        }
        let namespace = self.objects.get("", "namespaces", "", name).await?;
        Ok(Some(Arc::new(expressions::shown_namespace(&namespace))))
    }

    async fn prepare(
        &self,
        request: &AdmissionRequest,
        views: &mut Views,
        seen: &Seen,
        params: Option<Arc<Json>>,
        namespace: Option<Arc<Json>>,
    ) -> Result<Prepared, ApiError> {
        let view = views.get(request, seen).await?;
        Ok(Prepared::new(request, view, seen, params, namespace))
    }

    /// Runs an evaluation until the decisions that it needs are found out.
    async fn decide<T>(
        &self,
        request: &AdmissionRequest,
        decisions: &mut Decisions,
        run: impl FnMut(&Decisions) -> Result<T, Box<Check>>,
    ) -> Result<T, ApiError> {
        expressions::with_decisions(&*self.authorizer, &request.user, decisions, run).await
    }

    /// What the match conditions of a policy say.
    async fn matches(
        &self,
        policy: &Policy,
        request: &AdmissionRequest,
        prepared: &Prepared,
        decisions: &mut Decisions,
        step: &'static str,
    ) -> Result<Matched, ApiError> {
        if policy.conditions.is_empty() {
            return Ok(Matched::Yes);
        }
        let inputs = prepared.inputs(policy);
        let matched = self
            .decide(request, decisions, |decisions| {
                policy.conditions.evaluate(inputs, decisions)
            })
            .await?;
        if let Matched::Failed { count, .. } = &matched {
            for _ in 0..*count {
                self.metrics
                    .condition_failed(&policy.name, "policy", step, request.operation);
            }
        }
        Ok(matched)
    }
}
