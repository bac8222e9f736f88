//! What an API server is told at its start.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use keelson_machinery::clock::Clock;

use crate::admission::resource_quota::LimitedResource;
use crate::authn::AuthenticationConfig;

/// A certificate chain and its key, PEM.
#[derive(Clone)]
pub struct PemPair {
    /// The chain, leaf first.
    pub certificate: String,
    /// The key.
    pub key: String,
}

impl std::fmt::Debug for PemPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The key itself must never reach a log.
        f.write_str("PemPair")
    }
}

/// How the server reaches kubelets (`--kubelet-*`).
#[derive(Clone, Debug, Default)]
pub struct KubeletClientConfig {
    /// `--kubelet-client-certificate` and `--kubelet-client-key`.
    pub client: Option<PemPair>,
    /// `--kubelet-certificate-authority`; without it the kubelet's certificate is not checked, as upstream.
    pub certificate_authority: Option<String>,
    /// `--kubelet-preferred-address-types`.
    pub preferred_address_types: Vec<String>,
}

/// `--authorization-mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthorizationMode {
    /// The roles and bindings of the cluster.
    Rbac,
    /// What a kubelet may do with the objects of its node.
    Node,
    /// Everything is allowed.
    AlwaysAllow,
    /// Nothing is.
    AlwaysDeny,
}

/// The configuration of a server.
#[derive(Clone, Debug)]
pub struct Config {
    /// `--tls-cert-file` and `--tls-private-key-file`.
    pub serving: PemPair,
    /// How clients prove who they are.
    pub authentication: AuthenticationConfig,
    /// `--authorization-mode`, in order.
    pub authorization: Vec<AuthorizationMode>,
    /// `--service-account-signing-key-file`, its content.
    pub service_account_signing_key: Option<String>,
    /// `--service-account-jwks-uri`; `None`: made of the advertised address.
    pub jwks_uri: Option<String>,
    /// `--service-cluster-ip-range`: one range, or one of each address family; the first is the default one.
    pub service_cidrs: Vec<IpNet>,
    /// `--service-node-port-range`, both ends included.
    pub node_ports: (u16, u16),
    /// `--advertise-address`: the endpoint of the `kubernetes` Service. `None`: no endpoint is written.
    pub advertise_address: Option<IpAddr>,
    /// The port that goes with it.
    pub secure_port: u16,
    /// How kubelets are reached.
    pub kubelet: KubeletClientConfig,
    /// `--proxy-client-cert-file` and `--proxy-client-key-file`: how aggregated API servers know this server.
    pub proxy_client: Option<PemPair>,
    /// Events are forgotten after this time (`--event-ttl`).
    pub event_ttl: Duration,
    /// `--max-requests-inflight`.
    pub max_requests_in_flight: usize,
    /// `--max-mutating-requests-inflight`.
    pub max_mutating_requests_in_flight: usize,
    /// `--request-timeout`, for all but watches and streams.
    pub request_timeout: Duration,
    /// `--enable-admission-plugins` beyond the default ones.
    pub enable_admission_plugins: Vec<String>,
    /// `--disable-admission-plugins`.
    pub disable_admission_plugins: Vec<String>,
    /// What may only be used in namespaces with a quota for it (`limitedResources` of the admission configuration).
    pub quota_limited_resources: Vec<LimitedResource>,
    /// Time and randomness.
    pub clock: Clock,
}

impl Config {
    /// Upstream's defaults around what has none.
    pub fn new(serving: PemPair, clock: Clock) -> Config {
        Config {
            serving,
            authentication: AuthenticationConfig {
                anonymous: true,
                ..AuthenticationConfig::default()
            },
            authorization: vec![AuthorizationMode::Rbac],
            service_account_signing_key: None,
            jwks_uri: None,
            service_cidrs: vec![IpNet::V4(ipnet::Ipv4Net::new_assert(
                std::net::Ipv4Addr::new(10, 96, 0, 0),
                16,
            ))],
            node_ports: (30_000, 32_767),
            advertise_address: None,
            secure_port: 6443,
            kubelet: KubeletClientConfig::default(),
            proxy_client: None,
            event_ttl: Duration::from_secs(3600),
            max_requests_in_flight: 400,
            max_mutating_requests_in_flight: 200,
            request_timeout: Duration::from_secs(60),
            enable_admission_plugins: Vec::new(),
            disable_admission_plugins: Vec::new(),
            quota_limited_resources: Vec::new(),
            clock,
        }
    }
}
