//! What the controllers are started with: upstream's `KubeControllerManagerConfiguration`, as far as they read it.

use std::time::Duration;

use ipnet::IpNet;
use keelson_machinery::clock::Clock;
use keelson_runtime::metrics::Metrics;
use thiserror::Error;

use crate::Entry;

/// Settings with upstream's defaults; a field that is named like a flag means that flag.
#[derive(Clone, Debug)]
pub struct Config {
    /// Time and randomness.
    pub clock: Clock,
    /// Where the queues are measured.
    pub metrics: SharedMetrics,
    /// `--controllers`: names, `-name` to leave one out, `*` for all that are on by default.
    pub controllers: Vec<String>,
    /// `--cluster-cidr`: pod ranges, at most one per family. Empty (or `--allocate-node-cidrs=false`): nodes get none.
    pub cluster_cidrs: Vec<IpNet>,
    /// `--service-cluster-ip-range`: never given to a node.
    pub service_cidrs: Vec<IpNet>,
    /// `--node-cidr-mask-size-ipv4`.
    pub node_mask_ipv4: u8,
    /// `--node-cidr-mask-size-ipv6`.
    pub node_mask_ipv6: u8,
    /// `--root-ca-file`: PEM of what service accounts trust the API server by.
    pub root_ca_pem: Option<String>,
    /// `--cluster-signing-cert-file` and `--cluster-signing-key-file`; without them no request is signed.
    pub signing: Option<SigningKey>,
    /// `--cluster-signing-duration`.
    pub signing_duration: Duration,
    /// `--node-monitor-period`.
    pub node_monitor_period: Duration,
    /// `--node-monitor-grace-period`: a node that says nothing for so long is not ready.
    pub node_monitor_grace_period: Duration,
    /// `--node-startup-grace-period`: as much for a node that has not said anything yet.
    pub node_startup_grace_period: Duration,
    /// `--node-eviction-rate`: nodes per second of a healthy zone whose pods are evicted.
    pub node_eviction_rate: f64,
    /// `--secondary-node-eviction-rate`: as much in an unhealthy zone.
    pub secondary_node_eviction_rate: f64,
    /// `--large-cluster-size-threshold`: zones up to this size stop evictions when unhealthy.
    pub large_cluster_threshold: usize,
    /// `--unhealthy-zone-threshold`: the share of unready nodes that makes a zone unhealthy.
    pub unhealthy_zone_threshold: f64,
    /// `--terminated-pod-gc-threshold`: finished pods kept; 0 for all.
    pub terminated_pod_threshold: usize,
    /// `--horizontal-pod-autoscaler-sync-period`.
    pub autoscaler_period: Duration,
}

/// [`Metrics`] with the `Debug` that a configuration needs.
#[derive(Clone)]
pub struct SharedMetrics(pub Metrics);

impl std::fmt::Debug for SharedMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

/// The cluster's signing authority.
#[derive(Clone)]
pub struct SigningKey {
    /// Its certificate.
    pub certificate_pem: String,
    /// Its private key.
    pub key_pem: String,
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SigningKey")
    }
}

/// A configuration that cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// `--controllers` names one that does not exist.
    #[error("{0:?} is not in the list of known controllers")]
    UnknownController(String),
}

impl Config {
    /// Upstream's defaults.
    pub fn new(clock: Clock, metrics: Metrics) -> Self {
        Config {
            clock,
            metrics: SharedMetrics(metrics),
            controllers: vec!["*".to_owned()],
            cluster_cidrs: Vec::new(),
            service_cidrs: Vec::new(),
            node_mask_ipv4: 24,
            node_mask_ipv6: 64,
            root_ca_pem: None,
            signing: None,
            signing_duration: Duration::from_secs(365 * 24 * 3600),
            node_monitor_period: Duration::from_secs(5),
            node_monitor_grace_period: Duration::from_secs(50),
            node_startup_grace_period: Duration::from_secs(60),
            node_eviction_rate: 0.1,
            secondary_node_eviction_rate: 0.01,
            large_cluster_threshold: 50,
            unhealthy_zone_threshold: 0.55,
            terminated_pod_threshold: 12_500,
            autoscaler_period: Duration::from_secs(15),
        }
    }

    /// The entries that `controllers` asks for (upstream `IsControllerEnabled`): an explicit name or `-name` decides, else
    /// `*` and the entry's default.
    ///
    /// # Errors
    /// [`ConfigError::UnknownController`].
    pub fn select(&self, entries: &[Entry]) -> Result<Vec<Entry>, ConfigError> {
        for text in &self.controllers {
            let name = text.strip_prefix('-').unwrap_or(text);
            if text != "*" && !entries.iter().any(|e| e.name == name || e.alias == name) {
                return Err(ConfigError::UnknownController(name.to_owned()));
            }
        }
        let has = |wanted: &str| self.controllers.iter().any(|text| text == wanted);
        let on = |entry: &&Entry| {
            let named = |prefix: &str| {
                has(&format!("{prefix}{}", entry.name))
                    || (!entry.alias.is_empty() && has(&format!("{prefix}{}", entry.alias)))
            };
            if named("") {
                true
            } else if named("-") {
                false
            } else {
                entry.default && has("*")
            }
        };
        Ok(entries.iter().filter(on).copied().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selection_reads_as_upstream_reads_it() {
        let entry = |name, alias, default| Entry {
            name,
            alias,
            default,
            start: |_| Box::pin(async { Ok(()) }),
        };
        let entries = [
            entry("a-controller", "a", true),
            entry("b-controller", "", true),
            entry("c-controller", "c", false),
        ];
        let cases: [(&[&str], Option<&[&str]>); 6] = [
            (&["*"], Some(&["a-controller", "b-controller"])),
            (&["*", "-a"], Some(&["b-controller"])),
            (
                &["*", "c"],
                Some(&["a-controller", "b-controller", "c-controller"]),
            ),
            (&["b-controller"], Some(&["b-controller"])),
            (&[], Some(&[])),
            (&["*", "-nobody"], None),
        ];
        for (texts, expected) in cases {
            let mut config = Config::new(Clock::system(), Metrics::new());
            config.controllers = texts.iter().map(|s| (*s).to_owned()).collect();
            let selected = config
                .select(&entries)
                .ok()
                .map(|list| list.iter().map(|entry| entry.name).collect::<Vec<_>>());
            assert_eq!(selected.as_deref(), expected, "{texts:?}");
        }
    }
}
