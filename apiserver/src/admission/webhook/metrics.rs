//! Metrics of admission webhooks and match conditions, under upstream's names
//! (`k8s.io/apiserver/pkg/admission/metrics`).

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::admission::Operation;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CallLabels {
    name: String,
    r#type: &'static str,
    operation: &'static str,
    rejected: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    name: String,
    r#type: &'static str,
    operation: &'static str,
    code: u16,
    rejected: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RejectionLabels {
    name: String,
    r#type: &'static str,
    operation: &'static str,
    error_type: &'static str,
    rejection_code: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct FailOpenLabels {
    name: String,
    r#type: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ConditionLabels {
    name: String,
    kind: &'static str,
    r#type: &'static str,
    operation: &'static str,
}

/// Upstream's buckets of the calls, in seconds.
const CALL_BUCKETS: [f64; 8] = [0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0, 25.0];
/// Larger status codes count as this one.
const MAX_CODE: u16 = 600;

/// Counters of all webhooks of a server. Cheap to clone.
#[derive(Clone)]
pub struct WebhookMetrics {
    calls: Family<CallLabels, Histogram>,
    requests: Family<RequestLabels, Counter>,
    rejections: Family<RejectionLabels, Counter>,
    fail_open: Family<FailOpenLabels, Counter>,
    condition_errors: Family<ConditionLabels, Counter>,
    condition_exclusions: Family<ConditionLabels, Counter>,
}

/// Why a webhook's call refused a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectionCause {
    /// The webhook could not be asked.
    Calling,
    /// The server itself failed.
    Internal,
    /// The webhook said no.
    Verdict,
}

impl RejectionCause {
    fn as_str(self) -> &'static str {
        match self {
            RejectionCause::Calling => "calling_webhook_error",
            RejectionCause::Internal => "apiserver_internal_error",
            RejectionCause::Verdict => "no_error",
        }
    }
}

impl WebhookMetrics {
    /// Metrics that are shown by `registry`.
    pub fn new(registry: &mut Registry) -> WebhookMetrics {
        let metrics = WebhookMetrics {
            calls: Family::new_with_constructor(|| Histogram::new(CALL_BUCKETS)),
            requests: Family::default(),
            rejections: Family::default(),
            fail_open: Family::default(),
            condition_errors: Family::default(),
            condition_exclusions: Family::default(),
        };
        registry.register(
            "apiserver_admission_webhook_admission_duration_seconds",
            "Time that admission webhooks took, by name, operation, type and whether the request was rejected",
            metrics.calls.clone(),
        );
        // The encoder adds `_total` by itself.
        registry.register(
            "apiserver_admission_webhook_request",
            "Requests to admission webhooks, by name, operation, type, status code and whether the request was rejected",
            metrics.requests.clone(),
        );
        registry.register(
            "apiserver_admission_webhook_rejection_count",
            "Rejections by admission webhooks, by name, operation, type, cause and status code",
            metrics.rejections.clone(),
        );
        registry.register(
            "apiserver_admission_webhook_fail_open_count",
            "Failed calls of admission webhooks that were ignored, by name and type",
            metrics.fail_open.clone(),
        );
        registry.register(
            "apiserver_admission_match_condition_evaluation_errors",
            "Match conditions that could not be evaluated, by name, kind, type and operation",
            metrics.condition_errors.clone(),
        );
        registry.register(
            "apiserver_admission_match_condition_exclusions",
            "Requests that match conditions left out, by name, kind, type and operation",
            metrics.condition_exclusions.clone(),
        );
        metrics
    }

    /// A call was answered (or failed) with `code`; 0 when there is none.
    pub fn called(
        &self,
        name: &str,
        step: &'static str,
        operation: Operation,
        took: Duration,
        code: u16,
        rejected: bool,
    ) {
        let rejected = if rejected { "true" } else { "false" };
        self.calls
            .get_or_create(&CallLabels {
                name: name.to_string(),
                r#type: step,
                operation: operation.as_str(),
                rejected,
            })
            .observe(took.as_secs_f64());
        self.requests
            .get_or_create(&RequestLabels {
                name: name.to_string(),
                r#type: step,
                operation: operation.as_str(),
                code: code.min(MAX_CODE),
                rejected,
            })
            .inc();
    }

    /// A request was refused.
    pub fn rejected(
        &self,
        name: &str,
        step: &'static str,
        operation: Operation,
        cause: RejectionCause,
        code: u16,
    ) {
        self.rejections
            .get_or_create(&RejectionLabels {
                name: name.to_string(),
                r#type: step,
                operation: operation.as_str(),
                error_type: cause.as_str(),
                rejection_code: code.min(MAX_CODE),
            })
            .inc();
    }

    /// A failed call was ignored.
    pub fn failed_open(&self, name: &str, step: &'static str) {
        self.fail_open
            .get_or_create(&FailOpenLabels {
                name: name.to_string(),
                r#type: step,
            })
            .inc();
    }

    /// A match condition could not be evaluated. `kind` is `webhook` or `policy`.
    pub fn condition_failed(
        &self,
        name: &str,
        kind: &'static str,
        step: &'static str,
        operation: Operation,
    ) {
        let labels = condition_labels(name, kind, step, operation);
        self.condition_errors.get_or_create(&labels).inc();
    }

    /// A match condition left a request out.
    pub fn condition_excluded(
        &self,
        name: &str,
        kind: &'static str,
        step: &'static str,
        operation: Operation,
    ) {
        let labels = condition_labels(name, kind, step, operation);
        self.condition_exclusions.get_or_create(&labels).inc();
    }
}

fn condition_labels(
    name: &str,
    kind: &'static str,
    step: &'static str,
    operation: Operation,
) -> ConditionLabels {
    ConditionLabels {
        name: name.to_string(),
        kind,
        r#type: step,
        operation: operation.as_str(),
    }
}
