//! The server's own metrics, under upstream's names.

use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::request::RequestInfo;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: &'static str,
    component: &'static str,
    code: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DurationLabels {
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: &'static str,
    component: &'static str,
}

/// Upstream's buckets of `apiserver_request_duration_seconds`.
const DURATION_BUCKETS: [f64; 24] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0,
    10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 120.0,
];

/// All metrics of a server.
pub struct Metrics {
    registry: Mutex<Registry>,
    requests: Family<RequestLabels, Counter>,
    durations: Family<DurationLabels, Histogram>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let requests = Family::<RequestLabels, Counter>::default();
        let durations = Family::<DurationLabels, Histogram>::new_with_constructor(|| {
            Histogram::new(DURATION_BUCKETS)
        });
        // The encoder adds `_total` by itself.
        registry.register(
            "apiserver_request",
            "Counter of apiserver requests broken out for each verb, dry run value, group, version, resource, scope, component, and HTTP response code",
            requests.clone(),
        );
        registry.register(
            "apiserver_request_duration_seconds",
            "Response latency distribution in seconds for each verb, dry run value, group, version, resource, subresource, scope and component",
            durations.clone(),
        );
        Metrics {
            registry: Mutex::new(registry),
            requests,
            durations,
        }
    }
}

impl Metrics {
    /// Lets another part of the server add its metrics.
    pub fn register<T>(&self, with: impl FnOnce(&mut Registry) -> T) -> T {
        with(&mut self.registry.lock())
    }

    /// Counts an answered request. `served`: it names a resource that is served. Paths come from outside, also from
    /// those who are refused: only what is served may become a label.
    pub fn request(
        &self,
        info: &RequestInfo,
        served: bool,
        code: u16,
        took: Duration,
        long_running: bool,
    ) {
        let scope = if !info.is_resource {
            ""
        } else if !info.name.is_empty() {
            "resource"
        } else if !info.namespace.is_empty() {
            "namespace"
        } else {
            "cluster"
        };
        let label = |text: &str| {
            if served {
                text.to_string()
            } else {
                String::new()
            }
        };
        let verb = match info.verb.as_str() {
            "update" => "PUT".to_string(),
            "create" => "POST".to_string(),
            known @ ("get" | "list" | "watch" | "patch" | "delete" | "deletecollection") => {
                known.to_ascii_uppercase()
            }
            _ => "other".to_string(),
        };
        self.requests
            .get_or_create(&RequestLabels {
                verb: verb.clone(),
                group: label(&info.group),
                version: label(&info.version),
                resource: label(&info.resource),
                subresource: label(&info.subresource),
                scope,
                component: "apiserver",
                code,
            })
            .inc();
        if !long_running {
            self.durations
                .get_or_create(&DurationLabels {
                    verb,
                    group: label(&info.group),
                    version: label(&info.version),
                    resource: label(&info.resource),
                    subresource: label(&info.subresource),
                    scope,
                    component: "apiserver",
                })
                .observe(took.as_secs_f64());
        }
    }

    /// All metrics in Prometheus' text form.
    pub fn render(&self) -> String {
        let mut out = String::new();
        if prometheus_client::encoding::text::encode(&mut out, &self.registry.lock()).is_err() {
            out.clear();
        }
        out
    }
}
