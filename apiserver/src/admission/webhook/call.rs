//! One call of one webhook, up to its verdict, and what mutating and validating webhooks share.

use std::sync::Arc;

use keelson_machinery::clock::Clock;
use keelson_machinery::status::ApiError;

use super::hooks::{Connections, Hook, Hooks};
use super::matching::{self, Seen};
use super::metrics::{RejectionCause, WebhookMetrics};
use super::review::{self, Verdict};
use super::view::{View, Views};
use crate::admission::AdmissionRequest;
use crate::admission::policy::Prepared;
use crate::admission::policy::conditions::Matched;
use crate::admission::policy::expressions::with_decisions;
use crate::authz::Authorizer;
use crate::cel::authorizer::Decisions;
use crate::objects::Objects;
use crate::registry::Registry;
use tokio_util::sync::CancellationToken;

/// What webhook plugins need of the server.
#[derive(Clone)]
pub struct Webhooks {
    /// Stored objects.
    pub objects: Objects,
    /// Which resources there are.
    pub registry: Arc<Registry>,
    /// Who answers match conditions that ask about rights.
    pub authorizer: Arc<dyn Authorizer>,
    /// Cryptography for TLS.
    pub provider: Arc<rustls::crypto::CryptoProvider>,
    /// Uids of reviews.
    pub clock: Clock,
    /// Counters.
    pub metrics: WebhookMetrics,
}

impl Webhooks {
    pub(super) fn follow(&self, resource: &str, shutdown: CancellationToken) -> Arc<Hooks> {
        let connections = Connections {
            objects: self.objects.clone(),
            provider: self.provider.clone(),
        };
        Hooks::follow(resource, connections, shutdown)
    }

    /// Whether a webhook is to be called for a request, and as what it sees it (upstream `ShouldCallHook`).
    pub(super) async fn should_call(
        &self,
        hook: &Hook,
        request: &AdmissionRequest,
        views: &mut Views,
        step: &'static str,
    ) -> Result<Option<Seen>, ApiError> {
        // What is wrong with the selection of a namespace or object matters only when the rules match.
        let namespace =
            matching::selects_namespace(&hook.namespace_selector, request, &self.objects).await;
        if matches!(namespace, Ok(false)) {
            return Ok(None);
        }
        let object = matching::selects_object(&hook.object_selector, request);
        if matches!(object, Ok(false)) {
            return Ok(None);
        }
        let seen = matching::seen_by(&hook.rules, hook.equivalent, request, views.table())?;
        let Some(seen) = seen else {
            return Ok(None);
        };
        namespace?;
        object?;
        if !hook.conditions.is_empty()
            && !self
                .conditions_hold(hook, request, &seen, views, step)
                .await?
        {
            return Ok(None);
        }
        Ok(Some(seen))
    }

    /// Whether the match conditions of a webhook let a request through. Failed ones go by the failure policy.
    async fn conditions_hold(
        &self,
        hook: &Hook,
        request: &AdmissionRequest,
        seen: &Seen,
        views: &mut Views,
        step: &'static str,
    ) -> Result<bool, ApiError> {
        let view = views.get(request, seen).await?;
        let prepared = Prepared::new(request, view, seen, None, None);
        let matched = with_decisions(
            &*self.authorizer,
            &request.user,
            &mut Decisions::new(),
            |decisions| hook.conditions.evaluate(prepared.plain_inputs(), decisions),
        )
        .await?;
        match matched {
            Matched::Yes => Ok(true),
            Matched::No(_) => {
                self.metrics
                    .condition_excluded(&hook.name, "webhook", step, request.operation);
                Ok(false)
            }
            Matched::Failed { why, count } => {
                for _ in 0..count {
                    self.metrics
                        .condition_failed(&hook.name, "webhook", step, request.operation);
                }
                if hook.ignore_failures {
                    return Ok(false);
                }
                Err(ApiError::forbidden(
                    &request.group_resource(),
                    &request.request.name,
                    why,
                ))
            }
        }
    }

    /// Calls a webhook.
    pub(super) async fn call(
        &self,
        hook: &Hook,
        mutating: bool,
        request: &AdmissionRequest,
        seen: &Seen,
        view: &View,
    ) -> Result<Verdict, Failure> {
        if request.dry_run && !matches!(hook.side_effects.as_str(), "None" | "NoneOnDryRun") {
            if hook.side_effects.is_empty() {
                return Err(Failure::calling(400, "Webhook SideEffects is nil"));
            }
            return Err(Failure::Other(ApiError::bad_request(format!(
                "admission webhook {:?} does not support dry run",
                hook.name
            ))));
        }
        let version = review::version_for(hook).ok_or_else(|| {
            Failure::calling(
                400,
                "could not create admission objects: webhook does not accept known AdmissionReview versions (v1, v1beta1)",
            )
        })?;
        let client = hook
            .client()
            .map_err(|error| Failure::calling(500, error.to_string()))?;
        let uid = self.clock.uuid();
        let body = review::encode(version, &uid, request, seen, view);
        let answer = client
            .post(body, hook.timeout)
            .await
            .map_err(|error| match &error {
                super::client::ClientError::Call { code, .. } => {
                    Failure::calling(*code, error.to_string())
                }
                super::client::ClientError::Config(_) => Failure::calling(500, error.to_string()),
            })?;
        let mut verdict = review::decode(version, &uid, mutating, &answer).map_err(|why| {
            Failure::calling(503, format!("received invalid webhook response: {why}"))
        })?;
        verdict.annotations = verdict
            .annotations
            .into_iter()
            .map(|(key, value)| (format!("{}/{key}", hook.name), value))
            .collect();
        Ok(verdict)
    }

    /// Counts how a call ended, and says what it means for the request: `Ok(true)` for a call that failed and is
    /// ignored.
    pub(super) fn settle(
        &self,
        hook: &Hook,
        step: &'static str,
        request: &AdmissionRequest,
        started: tokio::time::Instant,
        outcome: Result<(), Failure>,
    ) -> Result<bool, ApiError> {
        let (name, operation) = (&hook.name, request.operation);
        let (code, cause, error) = match outcome {
            Ok(()) => {
                let took = started.elapsed();
                self.metrics.called(name, step, operation, took, 200, false);
                return Ok(false);
            }
            Err(Failure::Calling { code, why }) => {
                let error = format!("failed calling webhook {name:?}: {why}");
                if hook.ignore_failures {
                    tracing::warn!(webhook = %name, %error, "a webhook could not be called, failing open");
                    let took = started.elapsed();
                    self.metrics
                        .called(name, step, operation, took, code, false);
                    self.metrics.failed_open(name, step);
                    return Ok(true);
                }
                tracing::warn!(webhook = %name, %error, "a webhook could not be called, failing closed");
                (code, RejectionCause::Calling, ApiError::internal(error))
            }
            Err(Failure::Denied(error)) => (error.code, RejectionCause::Verdict, error),
            Err(Failure::Other(error)) => (0, RejectionCause::Internal, error),
        };
        self.metrics
            .called(name, step, operation, started.elapsed(), code, true);
        self.metrics.rejected(name, step, operation, cause, code);
        Err(error)
    }
}

/// Why a request does not pass a webhook.
#[derive(Debug)]
pub(super) enum Failure {
    /// It could not be asked; its failure policy decides.
    Calling {
        /// Status code for metrics.
        code: u16,
        /// What went wrong.
        why: String,
    },
    /// It said no.
    Denied(ApiError),
    /// The request cannot go on, whatever the failure policy.
    Other(ApiError),
}

impl Failure {
    pub(super) fn calling(code: u16, why: impl Into<String>) -> Failure {
        Failure::Calling {
            code,
            why: why.into(),
        }
    }
}
