//! `MutatingAdmissionPolicy` (`k8s.io/apiserver/pkg/admission/plugin/policy/mutating`).

use std::sync::Arc;

use async_trait::async_trait;
use keelson_machinery::apply::shape::Shape;
use keelson_machinery::meta;
use keelson_machinery::schema::Schema;
use keelson_machinery::status::{ApiError, Reason};
use keelson_machinery::value::Value as Json;
use tokio_util::sync::CancellationToken;

use super::PolicyPlugins;
use super::conditions::Matched;
use super::definition::{self, Binding, Mutation, Policies, Policy};
use super::expressions::{self, Activation, Failed, Inputs, OUT_OF_BUDGET};
use super::patch;
use crate::admission::webhook::matching::{Seen, is_exempt};
use crate::admission::webhook::view::Views;
use crate::admission::{AdmissionRequest, Operation, Plugin};
use crate::cel::authorizer::{Check, Decisions};
use crate::cel::{Budget, RUNTIME_BUDGET};
use crate::registry::Served;

/// The plugin.
pub struct Mutating {
    shared: PolicyPlugins,
    policies: Arc<Policies>,
}

impl Mutating {
    /// Follows the policies until `shutdown`.
    pub fn start(shared: PolicyPlugins, shutdown: CancellationToken) -> Mutating {
        let resources = [
            "mutatingadmissionpolicies",
            "mutatingadmissionpolicybindings",
        ];
        Mutating {
            policies: Policies::follow(shared.objects.clone(), resources, shutdown),
            shared,
        }
    }
}

/// One policy with one binding and one set of parameters.
struct Invocation {
    policy: Arc<Policy>,
    binding: Arc<Binding>,
    seen: Seen,
    param: Option<Arc<Json>>,
}

impl Invocation {
    fn key(&self) -> String {
        let param = self.param.as_deref();
        format!(
            "{}/{}/{}/{}",
            self.policy.name,
            self.binding.name,
            param.map_or("", meta::namespace),
            param.map_or("", meta::name)
        )
    }
}

/// How apply sees the objects of a request.
fn shape<'a>(target: Option<&'a Served>, seen: &Seen) -> Shape<'a> {
    match target {
        Some(served) => match &served.custom {
            Some(custom) => custom.shape(),
            None => Shape::Object(served.object_type),
        },
        None => Schema::builtin()
            .lookup_kind(&seen.kind.group, &seen.kind.version, &seen.kind.kind)
            .map_or(Shape::Deduced, Shape::Object),
    }
}

/// What one mutation makes of an object; `None` leaves it as it is. The outer error is a decision to be found out
/// first.
fn mutate(
    mutation: &Mutation,
    inputs: Inputs<'_>,
    shape: Shape<'_>,
    decisions: &Decisions,
) -> Result<Result<Option<Json>, String>, Box<Check>> {
    let Some(object) = inputs.object else {
        return Ok(Ok(None));
    };
    let activation = Activation::new(inputs, decisions);
    let mut budget = Budget::new(RUNTIME_BUDGET);
    let made = expressions::evaluate(
        &mutation.expression,
        &mutation.program,
        &activation,
        &mut budget,
    );
    let made = match made {
        Ok(made) => made,
        Err(Failed::Pending(check)) => return Err(check),
        Err(Failed::Budget) => return Ok(Err(OUT_OF_BUDGET.to_string())),
        Err(Failed::Expression(why)) => return Ok(Err(why)),
    };
    Ok(if mutation.json_patch {
        patch::json_patch(object, &made)
    } else {
        patch::apply_configuration(object, &made, shape).map(Some)
    })
}

/// What went wrong, by policy and binding.
struct Failure {
    message: String,
    invalid: bool,
}

impl Failure {
    fn new(policy: &Policy, binding: Option<&Binding>, why: &str, invalid: bool) -> Failure {
        let message = match binding {
            Some(binding) => format!(
                "policy '{}' with binding '{}' denied request: {why}",
                policy.name, binding.name
            ),
            None => format!("policy {:?} denied request: {why}", policy.name),
        };
        Failure { message, invalid }
    }
}

impl Mutating {
    /// The policies that concern a request, and what is wrong with their configuration.
    async fn invocations(
        &self,
        request: &AdmissionRequest,
        views: &Views,
        failures: &mut Vec<Failure>,
    ) -> Result<Vec<Invocation>, ApiError> {
        let (shared, table) = (&self.shared, views.table());
        let mut found = Vec::new();
        for bound in self.policies.current(request).await?.iter() {
            let policy = &bound.policy;
            let mut misconfigured = |binding: Option<&Binding>, why: &str| {
                if !policy.ignore_failures {
                    let what = binding.map_or("policy", |_| "binding");
                    let why = format!("failed to configure {what}: {why}");
                    failures.push(Failure::new(policy, binding, &why, false));
                }
            };
            let Some(scope) = &policy.scope else {
                misconfigured(
                    None,
                    "policy contained no match constraints, a required field",
                );
                continue;
            };
            let seen = match scope.sees(request, table, &shared.objects).await {
                Ok(Some(seen)) => seen,
                Ok(None) => continue,
                Err(error) => {
                    misconfigured(None, &error.message);
                    continue;
                }
            };
            for binding in &bound.bindings {
                if let Some(scope) = &binding.scope {
                    match scope.sees(request, table, &shared.objects).await {
                        Ok(Some(_)) => {}
                        Ok(None) => continue,
                        Err(error) => {
                            misconfigured(Some(binding), &error.message);
                            continue;
                        }
                    }
                }
                let within = &request.request.namespace;
                match definition::params(policy, binding, within, table, &shared.objects).await {
                    Err(why) => misconfigured(Some(binding), &why),
                    Ok(params) => found.extend(params.into_iter().map(|param| Invocation {
                        policy: policy.clone(),
                        binding: binding.clone(),
                        seen: seen.clone(),
                        param,
                    })),
                }
            }
        }
        Ok(found)
    }
}

#[async_trait]
impl Plugin for Mutating {
    fn name(&self) -> &'static str {
        "MutatingAdmissionPolicy"
    }

    async fn admit(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        if is_exempt(request) || request.operation == Operation::Delete {
            return Ok(());
        }
        if self.policies.current(request).await?.is_empty() {
            return Ok(());
        }
        let shared = &self.shared;
        let mut views = Views::new(shared.registry.table());
        let mut failures = Vec::new();
        let invocations = self.invocations(request, &views, &mut failures).await?;
        let second_round = request.reinvocation.second_round;
        if !invocations.is_empty() {
            if second_round {
                let object = request.object.as_ref();
                request.reinvocation.policies.resume(object);
            }
            let namespace = shared.namespace(request).await?;
            let mut decisions = Decisions::new();
            for invocation in &invocations {
                let Invocation {
                    policy,
                    binding,
                    seen,
                    param,
                } = invocation;
                let mut prepared = shared
                    .prepare(request, &mut views, seen, param.clone(), namespace.clone())
                    .await?;
                let matched = shared
                    .matches(policy, request, &prepared, &mut decisions, "admit")
                    .await?;
                match matched {
                    Matched::Yes => {}
                    Matched::No(_) => continue,
                    Matched::Failed { why, .. } => {
                        if !policy.ignore_failures {
                            failures.push(Failure::new(policy, Some(binding), &why, true));
                        }
                        continue;
                    }
                }
                let key = invocation.key();
                if second_round && !request.reinvocation.policies.is_required(&key) {
                    continue;
                }
                let mut changed = false;
                for mutation in &policy.mutations {
                    let target = views.target(request, seen);
                    let made = shared
                        .decide(request, &mut decisions, |decisions| {
                            mutate(
                                mutation,
                                prepared.inputs(policy),
                                shape(target.as_deref(), seen),
                                decisions,
                            )
                        })
                        .await?;
                    match made {
                        Ok(None) => {}
                        Ok(Some(next)) => {
                            changed |= views.replace(request, seen, &next).await?;
                            prepared = shared
                                .prepare(
                                    request,
                                    &mut views,
                                    seen,
                                    param.clone(),
                                    namespace.clone(),
                                )
                                .await?;
                        }
                        Err(why) => {
                            if !policy.ignore_failures {
                                failures.push(Failure::new(policy, Some(binding), &why, true));
                            }
                        }
                    }
                }
                if changed {
                    request.reinvocation.policies.require_all();
                    request.reinvocation.wanted = true;
                }
                if policy.reinvoke {
                    request.reinvocation.policies.ran(&key);
                }
            }
            let object = request.object.clone();
            request.reinvocation.policies.end(object.as_ref());
        }
        let Some(first) = failures.first() else {
            return Ok(());
        };
        let mut error = request.forbidden("admission request denied by policy");
        error.message.clone_from(&first.message);
        if first.invalid {
            error.reason = Reason::Invalid;
        }
        for failure in &failures {
            error = error.with_cause("", failure.message.clone(), "");
        }
        Err(error)
    }
}
