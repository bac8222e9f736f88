//! `ValidatingAdmissionPolicy` (`k8s.io/apiserver/pkg/admission/plugin/policy/validating`).

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use keelson_machinery::status::{ApiError, Reason};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::PolicyPlugins;
use super::conditions::Matched;
use super::definition::{self, Binding, Policies, Policy};
use super::expressions::{self, Activation, Failed, Inputs, OUT_OF_BUDGET};
use super::references;
use crate::admission::webhook::matching::is_exempt;
use crate::admission::webhook::view::Views;
use crate::admission::{AdmissionRequest, Plugin};
use crate::cel::authorizer::{Check, Decisions};
use crate::cel::{Budget, RUNTIME_BUDGET, Type, Value};

/// The longest message that an expression may make, in bytes (upstream `MaxEvaluatedMessageExpressionSizeBytes`).
const MAX_MESSAGE: usize = 5 * 1024;
/// The longest audit annotation, in bytes.
const MAX_ANNOTATION: usize = 10 * 1024;
/// The step's name in metrics.
const VALIDATE: &str = "validate";

/// The plugin.
pub struct Validating {
    shared: PolicyPlugins,
    policies: Arc<Policies>,
}

impl Validating {
    /// Follows the policies until `shutdown`.
    pub fn start(shared: PolicyPlugins, shutdown: CancellationToken) -> Validating {
        let resources = [
            "validatingadmissionpolicies",
            "validatingadmissionpolicybindings",
        ];
        Validating {
            policies: Policies::follow(shared.objects.clone(), resources, shutdown),
            shared,
        }
    }
}

/// What a policy makes of a request, for one set of parameters.
#[derive(Debug, Default)]
struct Outcome {
    /// What does not hold, by the index of its rule.
    violations: Vec<(usize, Violation)>,
    /// Audit annotations by their keys.
    annotations: Vec<(String, String)>,
    /// Annotations that could not be made, which refuses the request.
    broken_annotations: Vec<String>,
}

#[derive(Debug)]
struct Violation {
    message: String,
    /// Empty when the policy says none.
    reason: String,
}

impl Violation {
    fn failure(message: String) -> Violation {
        Violation {
            message,
            reason: String::new(),
        }
    }
}

/// Evaluates a policy; the error is a decision to be found out first.
fn evaluate(
    policy: &Policy,
    inputs: Inputs<'_>,
    decisions: &Decisions,
) -> Result<Outcome, Box<Check>> {
    let mut outcome = Outcome::default();
    let fail = |outcome: &mut Outcome, index: usize, why: String| {
        if !policy.ignore_failures {
            outcome.violations.push((index, Violation::failure(why)));
        }
    };
    let activation = Activation::new(inputs, decisions);
    let mut budget = Budget::new(RUNTIME_BUDGET);
    let mut results = Vec::with_capacity(policy.validations.len());
    for rule in &policy.validations {
        match expressions::evaluate(&rule.expression, &rule.program, &activation, &mut budget) {
            Err(Failed::Pending(check)) => return Err(check),
            Err(Failed::Budget) => {
                fail(&mut outcome, 0, OUT_OF_BUDGET.to_string());
                return Ok(outcome);
            }
            Err(Failed::Expression(why)) => results.push(Err(why)),
            Ok(value) => results.push(Ok(matches!(value, Value::Bool(true)))),
        }
    }
    for (index, (rule, result)) in policy.validations.iter().zip(results).enumerate() {
        match result {
            Ok(true) => {}
            Err(why) => fail(&mut outcome, index, why),
            Ok(false) => {
                let made = match &rule.message_program {
                    None => None,
                    Some(program) => {
                        match expressions::evaluate("", program, &activation, &mut budget) {
                            Err(Failed::Pending(check)) => return Err(check),
                            Err(Failed::Budget) => {
                                let why = format!("failed messageExpression: {OUT_OF_BUDGET}");
                                fail(&mut outcome, index, why);
                                continue;
                            }
                            Err(Failed::Expression(error)) => {
                                tracing::debug!(policy = %policy.name, error, "a message expression failed");
                                None
                            }
                            Ok(Value::String(text)) => Some(text.trim().to_string()),
                            Ok(_) => None,
                        }
                    }
                };
                let made = made.filter(|text| {
                    !text.is_empty() && text.len() <= MAX_MESSAGE && !text.contains('\n')
                });
                let message = made
                    .or_else(|| Some(rule.message.trim().to_string()).filter(|m| !m.is_empty()))
                    .unwrap_or_else(|| format!("failed expression: {}", rule.expression.trim()));
                let reason = match rule.reason.as_str() {
                    "" => "Invalid".to_string(),
                    given => given.to_string(),
                };
                outcome
                    .violations
                    .push((index, Violation { message, reason }));
            }
        }
    }
    let mut budget = Budget::new(RUNTIME_BUDGET);
    for annotation in &policy.annotations {
        let made = expressions::evaluate(
            &annotation.expression,
            &annotation.program,
            &activation,
            &mut budget,
        );
        match made {
            Err(Failed::Pending(check)) => return Err(check),
            Err(Failed::Budget) => {
                outcome.violations.clear();
                fail(&mut outcome, 0, OUT_OF_BUDGET.to_string());
                return Ok(outcome);
            }
            Err(Failed::Expression(why)) if !policy.ignore_failures => {
                outcome.broken_annotations.push(why);
            }
            Err(Failed::Expression(_)) | Ok(Value::Null) => {}
            Ok(Value::String(text)) => {
                let text = text.trim();
                if !text.is_empty() {
                    let key = annotation.key.clone();
                    outcome.annotations.push((key, text.to_string()));
                }
            }
            Ok(other) => outcome.broken_annotations.push(format!(
                "valueExpression '{}' resulted in unsupported return type: {}. Return type must be either string or null.",
                annotation.expression,
                match other.type_of() {
                    Type::Error => Type::Dyn,
                    of => of,
                }
            )),
        }
    }
    Ok(outcome)
}

/// Refusals, in the order found; the first is told.
struct Denied {
    policy: String,
    binding: Option<String>,
    violation: Violation,
}

impl Denied {
    /// `NewForbidden` with the policy's own reason.
    fn into_error(self, request: &AdmissionRequest) -> ApiError {
        let Denied {
            policy,
            binding,
            violation,
        } = self;
        let message = match binding {
            Some(binding) => format!(
                "ValidatingAdmissionPolicy '{policy}' with binding '{binding}' denied request: {}",
                violation.message
            ),
            None => format!(
                "ValidatingAdmissionPolicy '{policy}' denied request: {}",
                violation.message
            ),
        };
        let mut error = request.forbidden(&message).with_cause("", message, "");
        let reason = match violation.reason.as_str() {
            "" => "Invalid",
            given => given,
        };
        error.reason = Reason::parse(reason);
        error.code = match reason {
            "Forbidden" => 403,
            "Unauthorized" => 401,
            "RequestEntityTooLarge" => 413,
            _ => 422,
        };
        error
    }
}

#[async_trait]
impl Plugin for Validating {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionPolicy"
    }

    async fn validate(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        if is_exempt(request) {
            return references::check(&self.shared, request).await;
        }
        let policies = self.policies.current(request).await?;
        if policies.is_empty() {
            return Ok(());
        }
        let shared = &self.shared;
        let mut views = Views::new(shared.registry.table());
        let mut denied: Vec<Denied> = Vec::new();
        let mut decisions = Decisions::new();
        let namespace = shared.namespace(request).await?;
        for bound in policies.iter() {
            let policy = &bound.policy;
            let misconfigured = |binding: Option<&Binding>, why: &str| {
                let what = binding.map_or("policy", |_| "binding");
                (!policy.ignore_failures).then(|| Denied {
                    policy: policy.name.clone(),
                    binding: binding.map(|binding| binding.name.clone()),
                    violation: Violation::failure(format!("failed to configure {what}: {why}")),
                })
            };
            let Some(scope) = &policy.scope else {
                denied.extend(misconfigured(
                    None,
                    "policy contained no match constraints, a required field",
                ));
                continue;
            };
            let seen = match scope.sees(request, views.table(), &shared.objects).await {
                Ok(Some(seen)) => seen,
                Ok(None) => continue,
                Err(error) => {
                    denied.extend(misconfigured(None, &error.message));
                    continue;
                }
            };
            let mut annotations: BTreeMap<String, Vec<String>> = BTreeMap::new();
            for binding in &bound.bindings {
                if let Some(scope) = &binding.scope {
                    match scope.sees(request, views.table(), &shared.objects).await {
                        Ok(Some(_)) => {}
                        Ok(None) => continue,
                        Err(error) => {
                            denied.extend(misconfigured(Some(binding), &error.message));
                            continue;
                        }
                    }
                }
                let within = &request.request.namespace;
                let params =
                    definition::params(policy, binding, within, views.table(), &shared.objects)
                        .await;
                let params = match params {
                    Ok(params) => params,
                    Err(why) => {
                        denied.extend(misconfigured(Some(binding), &why));
                        continue;
                    }
                };
                for param in params {
                    let prepared = shared
                        .prepare(request, &mut views, &seen, param, namespace.clone())
                        .await?;
                    let matched = shared
                        .matches(policy, request, &prepared, &mut decisions, VALIDATE)
                        .await?;
                    let outcome = match matched {
                        Matched::No(_) => continue,
                        Matched::Failed { .. } if policy.ignore_failures => continue,
                        Matched::Failed { why, .. } => Outcome {
                            violations: vec![(0, Violation::failure(why))],
                            ..Outcome::default()
                        },
                        Matched::Yes => {
                            shared
                                .decide(request, &mut decisions, |decisions| {
                                    evaluate(policy, prepared.inputs(policy), decisions)
                                })
                                .await?
                        }
                    };
                    for (index, violation) in outcome.violations {
                        act(request, policy, binding, index, violation, &mut denied);
                    }
                    for (key, mut text) in outcome.annotations {
                        let mut end = text.len().min(MAX_ANNOTATION);
                        while !text.is_char_boundary(end) {
                            end -= 1;
                        }
                        text.truncate(end);
                        let kept = annotations.entry(key).or_default();
                        if !kept.contains(&text) {
                            kept.push(text);
                        }
                    }
                    for why in outcome.broken_annotations {
                        denied.push(Denied {
                            policy: policy.name.clone(),
                            binding: Some(binding.name.clone()),
                            violation: Violation::failure(why),
                        });
                    }
                }
            }
            request.annotate(
                annotations
                    .into_iter()
                    .map(|(key, texts)| (format!("{}/{key}", policy.name), texts.join(", "))),
            );
        }
        match denied.into_iter().next() {
            None => Ok(()),
            Some(first) => Err(first.into_error(request)),
        }
    }
}

/// Does what the binding says is to be done about a violation.
fn act(
    request: &mut AdmissionRequest,
    policy: &Policy,
    binding: &Binding,
    index: usize,
    violation: Violation,
    denied: &mut Vec<Denied>,
) {
    let mut deny = false;
    for action in &binding.actions {
        match action.as_str() {
            "Deny" => deny = true,
            "Warn" => request.warnings.push(format!(
                "Validation failed for ValidatingAdmissionPolicy '{}' with binding '{}': {}",
                policy.name, binding.name, violation.message
            )),
            "Audit" => request.annotate([(
                "validation.policy.admission.k8s.io/validation_failure".to_string(),
                json!([{
                    "message": violation.message,
                    "policy": policy.name,
                    "binding": binding.name,
                    "expressionIndex": index,
                    "validationActions": binding.actions,
                }])
                .to_string(),
            )]),
            _ => {}
        }
    }
    if deny {
        denied.push(Denied {
            policy: policy.name.clone(),
            binding: Some(binding.name.clone()),
            violation,
        });
    }
}
