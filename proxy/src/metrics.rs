//! The proxy's metrics, under upstream's names.

use keelson_runtime::metrics::{FloatGauge, Metrics as Registered};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

/// The label of a traffic policy.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PolicyLabels {
    /// `internal` or `external`.
    pub traffic_policy: &'static str,
}

/// All of them.
#[derive(Clone)]
pub struct Metrics {
    /// `kubeproxy_sync_proxy_rules_duration_seconds`.
    pub sync_seconds: Histogram,
    /// `kubeproxy_sync_proxy_rules_last_timestamp_seconds`.
    pub last_synced: FloatGauge,
    /// `kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds`.
    pub last_queued: FloatGauge,
    /// `kubeproxy_sync_proxy_rules_nftables_sync_failures_total`.
    pub failures: Counter,
    /// `kubeproxy_sync_proxy_rules_no_local_endpoints_total`.
    pub without_local: Family<PolicyLabels, Gauge>,
}

impl Metrics {
    /// Registers them.
    pub fn new(registered: &Registered) -> Self {
        let metrics = Metrics {
            sync_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 15)),
            last_synced: FloatGauge::default(),
            last_queued: FloatGauge::default(),
            failures: Counter::default(),
            without_local: Family::default(),
        };
        registered.register(|registry| {
            let registry = registry.sub_registry_with_prefix("kubeproxy_sync_proxy_rules");
            registry.register(
                "duration_seconds",
                "SyncProxyRules latency in seconds",
                metrics.sync_seconds.clone(),
            );
            registry.register(
                "last_timestamp_seconds",
                "The last time proxy rules were successfully synced",
                metrics.last_synced.clone(),
            );
            registry.register(
                "last_queued_timestamp_seconds",
                "The last time a sync of proxy rules was queued",
                metrics.last_queued.clone(),
            );
            registry.register(
                "nftables_sync_failures",
                "Cumulative proxy nftables sync failures",
                metrics.failures.clone(),
            );
            registry.register(
                "no_local_endpoints_total",
                "Number of services with a Local traffic policy and no endpoints",
                metrics.without_local.clone(),
            );
        });
        metrics
    }
}
