//! `KubeProxyConfiguration` (`kubeproxy.config.k8s.io/v1alpha1`): the file and what the proxy takes from it.
//!
//! Fields that the file may have but that mean nothing here (Windows, `iptables`, `ipvs` sections, logging) are read and left;
//! unknown ones are errors.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use keelson_machinery::time::parse_duration;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::rules::{LocalDetection, NodePortAddresses};

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The text is not a configuration.
    #[error("kube-proxy configuration: {0}")]
    Syntax(#[from] serde_yaml_ng::Error),
    /// It is of another kind.
    #[error(
        "kube-proxy configuration: want kubeproxy.config.k8s.io/v1alpha1 KubeProxyConfiguration, got {0:?} {1:?}"
    )]
    Kind(String, String),
    /// A field's value is not possible.
    #[error("kube-proxy configuration: {field}: {reason}")]
    Value {
        /// The field's path.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

fn invalid(field: &'static str, reason: impl ToString) -> ConfigError {
    ConfigError::Value {
        field,
        reason: reason.to_string(),
    }
}

/// A duration in Go's form, such as `1m30s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GoDuration(pub Duration);

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let nanos = parse_duration(&text).map_err(serde::de::Error::custom)?;
        let nanos =
            u64::try_from(nanos).map_err(|_| serde::de::Error::custom("must not be negative"))?;
        Ok(GoDuration(Duration::from_nanos(nanos)))
    }
}

/// The file.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[allow(missing_docs)] // the names are upstream's and documented there
pub struct KubeProxyConfiguration {
    pub api_version: String,
    pub kind: String,
    pub feature_gates: std::collections::BTreeMap<String, bool>,
    pub client_connection: ClientConnection,
    pub logging: Value,
    pub hostname_override: String,
    pub bind_address: String,
    pub healthz_bind_address: String,
    pub metrics_bind_address: String,
    pub bind_address_hard_fail: bool,
    pub enable_profiling: bool,
    pub show_hidden_metrics_for_version: String,
    pub mode: String,
    pub iptables: Value,
    pub ipvs: Value,
    pub nftables: NfTables,
    pub winkernel: Value,
    pub detect_local_mode: String,
    pub detect_local: DetectLocal,
    #[serde(rename = "clusterCIDR")]
    pub cluster_cidr: String,
    pub node_port_addresses: Option<Vec<String>>,
    pub oom_score_adj: Option<i32>,
    pub conntrack: Conntrack,
    pub config_sync_period: Option<GoDuration>,
    pub port_range: String,
    pub windows_run_as_service: bool,
}

/// How to reach the API server.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct ClientConnection {
    pub kubeconfig: String,
    pub accept_content_types: String,
    pub content_type: String,
    pub qps: f64,
    pub burst: i64,
}

/// The `nftables` section.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct NfTables {
    pub masquerade_bit: Option<u32>,
    pub masquerade_all: bool,
    pub sync_period: Option<GoDuration>,
    pub min_sync_period: Option<GoDuration>,
}

/// The `detectLocal` section.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct DetectLocal {
    pub bridge_interface: String,
    pub interface_name_prefix: String,
}

/// The `conntrack` section.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct Conntrack {
    pub max_per_core: Option<u32>,
    pub min: Option<u32>,
    pub tcp_established_timeout: Option<GoDuration>,
    pub tcp_close_wait_timeout: Option<GoDuration>,
    pub tcp_be_liberal: bool,
    pub udp_timeout: GoDuration,
    pub udp_stream_timeout: GoDuration,
}

impl KubeProxyConfiguration {
    /// Reads a file's text, YAML or JSON.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let config: KubeProxyConfiguration = serde_yaml_ng::from_str(text)?;
        if config.api_version != "kubeproxy.config.k8s.io/v1alpha1"
            || config.kind != "KubeProxyConfiguration"
        {
            return Err(ConfigError::Kind(config.api_version, config.kind));
        }
        Ok(config)
    }

    /// Checks what the proxy depends on and fills in upstream's defaults.
    pub fn resolve(&self) -> Result<Settings, ConfigError> {
        match self.mode.as_str() {
            "" | "nftables" => {}
            "ipvs" | "iptables" => {
                return Err(invalid(
                    "mode",
                    format!("{:?} is not supported; use \"nftables\"", self.mode),
                ));
            }
            other => {
                return Err(invalid(
                    "mode",
                    format!("unknown mode {other:?}; use \"nftables\""),
                ));
            }
        }
        let ranges = |field, text: &str| -> Result<Vec<IpNet>, ConfigError> {
            let parts = text
                .split(',')
                .map(str::trim)
                .filter(|part| !part.is_empty());
            parts
                .map(|part| {
                    part.parse()
                        .map_err(|e| invalid(field, format!("{part:?}: {e}")))
                })
                .collect()
        };
        let bind_address: IpAddr = match self.bind_address.as_str() {
            "" => IpAddr::from([0, 0, 0, 0]),
            text => text.parse().map_err(|e| invalid("bindAddress", e))?,
        };
        let address = |field,
                       text: &str,
                       default_ip: IpAddr,
                       port: u16|
         -> Result<Option<SocketAddr>, ConfigError> {
            match text {
                "" => Ok(Some(SocketAddr::new(default_ip, port))),
                text => match (text.parse::<SocketAddr>(), text.parse::<IpAddr>()) {
                    (Ok(address), _) => Ok(Some(address).filter(|a| a.port() != 0)),
                    (_, Ok(ip)) => Ok(Some(SocketAddr::new(ip, port))),
                    (Err(error), Err(_)) => Err(invalid(field, format!("{text:?}: {error}"))),
                },
            }
        };
        let (any, loopback): (IpAddr, IpAddr) = match bind_address {
            IpAddr::V4(_) => ([0, 0, 0, 0].into(), [127, 0, 0, 1].into()),
            IpAddr::V6(_) => (
                std::net::Ipv6Addr::UNSPECIFIED.into(),
                std::net::Ipv6Addr::LOCALHOST.into(),
            ),
        };
        let masquerade_bit = self.nftables.masquerade_bit.unwrap_or(14);
        if masquerade_bit > 31 {
            return Err(invalid("nftables.masqueradeBit", "must be within 0 and 31"));
        }
        let node_port_addresses = match self.node_port_addresses.as_deref() {
            None | Some([]) => NodePortAddresses::Primary,
            Some([one]) if one == "primary" => NodePortAddresses::Primary,
            Some(many) => NodePortAddresses::Ranges(ranges("nodePortAddresses", &many.join(","))?),
        };
        let detection = match self.detect_local_mode.as_str() {
            "" | "ClusterCIDR" => match ranges("clusterCIDR", &self.cluster_cidr)? {
                ranges if ranges.is_empty() => Detection::Known(LocalDetection::None),
                ranges => Detection::Known(LocalDetection::ClusterCidr(ranges)),
            },
            "NodeCIDR" => Detection::NodeCidr,
            "BridgeInterface" => match self.detect_local.bridge_interface.as_str() {
                name if name.is_empty() || name.len() > 15 => {
                    return Err(invalid(
                        "detectLocal.bridgeInterface",
                        "must be an interface's name",
                    ));
                }
                name => Detection::Known(LocalDetection::Bridge(name.to_owned())),
            },
            "InterfaceNamePrefix" => match self.detect_local.interface_name_prefix.as_str() {
                prefix if prefix.is_empty() || prefix.len() > 15 => {
                    let reason = "must be the beginning of an interface's name";
                    return Err(invalid("detectLocal.interfaceNamePrefix", reason));
                }
                prefix => Detection::Known(LocalDetection::InterfacePrefix(prefix.to_owned())),
            },
            other => {
                return Err(invalid(
                    "detectLocalMode",
                    format!("unknown mode {other:?}"),
                ));
            }
        };
        let conntrack = &self.conntrack;
        let hours = |hours: u64| GoDuration(Duration::from_secs(hours * 3600));
        Ok(Settings {
            node_name: Some(self.hostname_override.trim().to_lowercase()).filter(|n| !n.is_empty()),
            bind_address,
            healthz: address("healthzBindAddress", &self.healthz_bind_address, any, 10256)?,
            metrics: address(
                "metricsBindAddress",
                &self.metrics_bind_address,
                loopback,
                10249,
            )?,
            masquerade_mark: 1 << masquerade_bit,
            masquerade_all: self.nftables.masquerade_all,
            sync_period: self
                .nftables
                .sync_period
                .map_or(Duration::from_secs(30), |d| d.0),
            min_sync_period: self.nftables.min_sync_period.map(|d| d.0),
            node_port_addresses,
            detection,
            conntrack: ConntrackSettings {
                max_per_core: conntrack.max_per_core.unwrap_or(32 * 1024),
                min: conntrack.min.unwrap_or(128 * 1024),
                tcp_established: conntrack.tcp_established_timeout.unwrap_or(hours(24)).0,
                tcp_close_wait: conntrack.tcp_close_wait_timeout.unwrap_or(hours(1)).0,
                tcp_be_liberal: conntrack.tcp_be_liberal,
                udp: conntrack.udp_timeout.0,
                udp_stream: conntrack.udp_stream_timeout.0,
            },
        })
    }
}

/// How local pods are known, as far as configuration tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Detection {
    /// As configured.
    Known(LocalDetection),
    /// By the node's pod ranges.
    NodeCidr,
}

/// The `conntrack` section, checked. Zero leaves a setting of the kernel as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConntrackSettings {
    /// Connections tracked per core.
    pub max_per_core: u32,
    /// Connections tracked at least.
    pub min: u32,
    /// How long an established, silent TCP connection is remembered.
    pub tcp_established: Duration,
    /// How long a half-closed TCP connection is remembered.
    pub tcp_close_wait: Duration,
    /// Whether packets out of window are let through.
    pub tcp_be_liberal: bool,
    /// How long an unanswered UDP exchange is remembered.
    pub udp: Duration,
    /// How long an answered UDP exchange is remembered.
    pub udp_stream: Duration,
}

/// A configuration, checked and complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The node's name, where it differs from the host's.
    pub node_name: Option<String>,
    /// The address that stands for the node when the API knows none.
    pub bind_address: IpAddr,
    /// Where health is told.
    pub healthz: Option<SocketAddr>,
    /// Where metrics are told.
    pub metrics: Option<SocketAddr>,
    /// The bit of the packet mark that stands for masquerading.
    pub masquerade_mark: u32,
    /// Whether all traffic to cluster addresses is masqueraded.
    pub masquerade_all: bool,
    /// After a failure everything is written again within this time; half the time after which the proxy counts as unhealthy.
    pub sync_period: Duration,
    /// The least time between two writes; writes are small here, so that unlike upstream none is kept by default.
    pub min_sync_period: Option<Duration>,
    /// Which addresses take node-port traffic.
    pub node_port_addresses: NodePortAddresses,
    /// How local pods are known.
    pub detection: Detection,
    /// Connection tracking.
    pub conntrack: ConntrackSettings,
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str =
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

    #[test]
    fn what_is_refused() {
        for (text, want) in [
            ("mode: ipvs", "mode: \"ipvs\" is not supported"),
            ("mode: eager", "mode: unknown mode \"eager\""),
            ("colour: blue", "unknown field `colour`"),
            ("conntrack: {maxPerPod: 1}", "unknown field `maxPerPod`"),
            ("clusterCIDR: 10.0.0.0/33", "clusterCIDR: \"10.0.0.0/33\""),
            ("healthzBindAddress: here", "healthzBindAddress: \"here\""),
            ("nftables: {masqueradeBit: 32}", "nftables.masqueradeBit"),
            ("nftables: {syncPeriod: soon}", "invalid duration \"soon\""),
            (
                "detectLocalMode: BridgeInterface",
                "detectLocal.bridgeInterface",
            ),
            ("kind: Other", "duplicate"),
        ] {
            let result =
                KubeProxyConfiguration::parse(&format!("{HEAD}{text}\n")).and_then(|c| c.resolve());
            let error = result.unwrap_err().to_string();
            assert!(error.contains(want), "{text}: {error}");
        }
        assert!(matches!(
            KubeProxyConfiguration::parse("kind: X"),
            Err(ConfigError::Kind(..))
        ));
    }

    #[test]
    fn what_the_testbed_passes() {
        let text = format!(
            "{HEAD}mode: nftables\nclusterCIDR: 10.244.0.0/16\nclientConnection: {{kubeconfig: /k}}\nhostnameOverride: n1\n\
             healthzBindAddress: 10.200.0.11:10256\nmetricsBindAddress: 127.0.0.1:10249\n\
             conntrack: {{maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}}\n"
        );
        let file = KubeProxyConfiguration::parse(&text).unwrap();
        let settings = file.resolve().unwrap();
        assert_eq!(file.client_connection.kubeconfig, "/k");
        assert_eq!(settings.node_name.as_deref(), Some("n1"));
        assert_eq!(settings.healthz, Some("10.200.0.11:10256".parse().unwrap()));
        assert_eq!(settings.conntrack.max_per_core, 0);
        assert_eq!(settings.conntrack.tcp_established, Duration::ZERO);
        assert_eq!(settings.masquerade_mark, 0x4000);
    }
}
