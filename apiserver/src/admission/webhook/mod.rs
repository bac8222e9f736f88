//! Admission webhooks: `MutatingAdmissionWebhook` and `ValidatingAdmissionWebhook`
//! (`k8s.io/apiserver/pkg/admission/plugin/webhook`).
//!
//! [`hooks`] follows the configurations, [`matching`] says which webhook a request concerns, [`view`] shows it the
//! objects in the version it wants, [`review`] is the wire form, [`client`] the connection, [`call`] one call.

pub mod call;
pub mod client;
pub mod hooks;
pub mod matching;
pub mod metrics;
pub mod resolve;
pub mod review;
#[cfg(test)]
mod tests;
pub mod tls;
pub mod view;

use std::sync::Arc;

use async_trait::async_trait;
use futures::future::join_all;
use keelson_machinery::patch;
use keelson_machinery::status::ApiError;
use keelson_machinery::value::Value;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use self::call::Failure;
pub use self::call::Webhooks;
use self::hooks::{Hook, Hooks};
use self::matching::Seen;
pub use self::metrics::WebhookMetrics;
use self::view::Views;
use super::{AdmissionRequest, Plugin};

/// Upstream's names of the two steps in metrics.
const ADMIT: &str = "admit";
const VALIDATING: &str = "validating";

/// Calls mutating webhooks one after the other; each sees what those before it made of the object.
pub struct Mutating {
    webhooks: Webhooks,
    hooks: Arc<Hooks>,
}

impl Mutating {
    /// Follows the configurations until `shutdown`.
    pub fn start(webhooks: Webhooks, shutdown: CancellationToken) -> Mutating {
        Mutating {
            hooks: webhooks.follow("mutatingwebhookconfigurations", shutdown),
            webhooks,
        }
    }

    /// Calls one webhook and applies its patch; says whether the object changed.
    async fn call(
        &self,
        hook: &Hook,
        index: usize,
        request: &mut AdmissionRequest,
        seen: &Seen,
        views: &mut Views,
    ) -> Result<bool, Failure> {
        let view = views.get(request, seen).await.map_err(Failure::Other)?;
        let verdict = self.webhooks.call(hook, true, request, seen, &view).await?;
        request.annotate(verdict.annotations);
        request.warnings.extend(verdict.warnings);
        if !verdict.allowed {
            return Err(Failure::Denied(review::denied(
                &hook.name,
                verdict.result.as_ref(),
            )));
        }
        if verdict.patch.is_empty() {
            return Ok(false);
        }
        let undecodable = |why: String| {
            Failure::calling(
                503,
                format!("received undecodable patch in webhook response: {why}"),
            )
        };
        let document: Value =
            serde_json::from_slice(&verdict.patch).map_err(|e| undecodable(e.to_string()))?;
        match document.as_array() {
            Some(operations) if operations.is_empty() => return Ok(false),
            Some(_) => {}
            None => return Err(undecodable("the patch is not a list".to_string())),
        }
        let Some(object) = &view.object else {
            return Err(Failure::Other(ApiError::internal(format!(
                "admission webhook {:?} attempted to modify the object, which is not supported for this operation",
                hook.name
            ))));
        };
        if verdict.patch_type != "JSONPatch" {
            let why = format!("unsupported patch type {:?}", verdict.patch_type);
            return Err(Failure::calling(400, why));
        }
        let patched = patch::json_patch(Value::clone(object), &document)
            .map_err(|error| Failure::Other(ApiError::internal(error)))?;
        let changed = views
            .replace(request, seen, &patched)
            .await
            .map_err(Failure::Other)?;
        let round = u8::from(request.reinvocation.second_round);
        request.annotate([(
            format!("patch.webhook.admission.k8s.io/round_{round}_index_{index}"),
            json!({"configuration": hook.configuration, "webhook": hook.name, "patch": document, "patchType": "JSONPatch"})
                .to_string(),
        )]);
        Ok(changed)
    }
}

#[async_trait]
impl Plugin for Mutating {
    fn name(&self) -> &'static str {
        "MutatingAdmissionWebhook"
    }

    async fn admit(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        if matching::is_exempt(request) {
            return Ok(());
        }
        let hooks = self.hooks.current(request).await?;
        if hooks.is_empty() {
            return Ok(());
        }
        let second_round = request.reinvocation.second_round;
        if second_round {
            let object = request.object.as_ref();
            request.reinvocation.webhooks.resume(object);
        }
        let mut views = Views::new(self.webhooks.registry.table());
        for (index, hook) in hooks.iter().enumerate() {
            let seen = self
                .webhooks
                .should_call(hook, request, &mut views, ADMIT)
                .await?;
            let Some(seen) = seen else { continue };
            // The second round calls nobody for the first time.
            if second_round && !request.reinvocation.webhooks.is_required(&hook.uid) {
                continue;
            }
            let started = tokio::time::Instant::now();
            let outcome = self.call(hook, index, request, &seen, &mut views).await;
            let changed = matches!(outcome, Ok(true));
            let round = u8::from(second_round);
            let at = format!("round_{round}_index_{index}");
            request.annotate([(
                format!("mutation.webhook.admission.k8s.io/{at}"),
                json!({"configuration": hook.configuration, "webhook": hook.name, "mutated": changed})
                    .to_string(),
            )]);
            if changed {
                request.reinvocation.webhooks.require_all();
                request.reinvocation.wanted = true;
            }
            if hook.reinvoke {
                request.reinvocation.webhooks.ran(&hook.uid);
            }
            let ignored =
                self.webhooks
                    .settle(hook, ADMIT, request, started, outcome.map(|_| ()))?;
            if ignored {
                request.annotate([(
                    format!("failed-open.mutation.webhook.admission.k8s.io/{at}"),
                    hook.name.clone(),
                )]);
            }
        }
        let object = request.object.clone();
        request.reinvocation.webhooks.end(object.as_ref());
        Ok(())
    }
}

/// Calls validating webhooks, all at the same time.
pub struct Validating {
    webhooks: Webhooks,
    hooks: Arc<Hooks>,
}

impl Validating {
    /// Follows the configurations until `shutdown`.
    pub fn start(webhooks: Webhooks, shutdown: CancellationToken) -> Validating {
        Validating {
            hooks: webhooks.follow("validatingwebhookconfigurations", shutdown),
            webhooks,
        }
    }
}

#[async_trait]
impl Plugin for Validating {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionWebhook"
    }

    async fn validate(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        if matching::is_exempt(request) {
            return Ok(());
        }
        let hooks = self.hooks.current(request).await?;
        if hooks.is_empty() {
            return Ok(());
        }
        let mut views = Views::new(self.webhooks.registry.table());
        let mut relevant = Vec::new();
        for hook in hooks.iter() {
            let seen = self
                .webhooks
                .should_call(hook, request, &mut views, VALIDATING)
                .await?;
            if let Some(seen) = seen {
                let view = views.get(request, &seen).await?;
                relevant.push((hook, seen, view));
            }
        }
        let asked: &AdmissionRequest = request;
        let calls = relevant.iter().map(|(hook, seen, view)| async move {
            let started = tokio::time::Instant::now();
            let called = self.webhooks.call(hook, false, asked, seen, view).await;
            (started, called)
        });
        let answers = join_all(calls).await;
        let mut refused = None;
        for (index, ((hook, ..), (started, called))) in relevant.iter().zip(answers).enumerate() {
            let outcome = called.and_then(|verdict| {
                request.annotate(verdict.annotations);
                request.warnings.extend(verdict.warnings);
                if verdict.allowed {
                    return Ok(());
                }
                Err(Failure::Denied(review::denied(
                    &hook.name,
                    verdict.result.as_ref(),
                )))
            });
            match self
                .webhooks
                .settle(hook, VALIDATING, request, started, outcome)
            {
                Ok(false) => {}
                Ok(true) => request.annotate([(
                    format!(
                        "failed-open.validating.webhook.admission.k8s.io/round_0_index_{index}"
                    ),
                    hook.name.clone(),
                )]),
                // The first refusal is told, as upstream does.
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        match refused {
            None => Ok(()),
            Some(error) => Err(error),
        }
    }
}
