//! Services and endpoints as the dataplane sees them, taken out of the API objects once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::nft::Family;

/// A transport protocol that services can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    fn parse(text: Option<&str>) -> Option<Self> {
        match text {
            None | Some("" | "TCP") => Some(Protocol::Tcp),
            Some("UDP") => Some(Protocol::Udp),
            Some("SCTP") => Some(Protocol::Sctp),
            Some(_) => None,
        }
    }

    /// Its number in IP headers.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }

    /// Its name in chains.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }
}

/// A port of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// The port's name; empty when it has none.
    pub name: String,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The port on the service's addresses.
    pub port: u16,
    /// The port on the nodes' addresses; 0 when there is none.
    pub node_port: u16,
}

/// A service, for both families.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceModel {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// The cluster addresses; at most one per family counts.
    pub cluster_ips: Vec<IpAddr>,
    /// The ports.
    pub ports: Vec<ServicePort>,
    /// `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// The addresses of load balancers that keep the destination address.
    pub load_balancer_ips: Vec<IpAddr>,
    /// Who may come by the load balancers' addresses; empty is everyone.
    pub source_ranges: Vec<IpNet>,
    /// For how many seconds a client stays with its endpoint.
    pub affinity_seconds: Option<u64>,
    /// Whether traffic from outside goes to endpoints on this node only.
    pub external_local: bool,
    /// Whether traffic to the cluster address goes to endpoints on this node only.
    pub internal_local: bool,
    /// Where health checks of load balancers are answered; 0 when they are not.
    pub health_check_port: u16,
}

impl ServiceModel {
    /// Takes the dataplane's view out of an API object; `None` when the service is none of its business (no cluster address,
    /// `ExternalName`).
    pub fn from_api(service: &Service) -> Option<Self> {
        let spec = service.spec.as_ref()?;
        let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
        let first = spec.cluster_ip.as_deref().unwrap_or_default();
        if kind == "ExternalName" || first.is_empty() || first == "None" {
            return None;
        }
        let addresses = |texts: Option<&Vec<String>>| -> Vec<IpAddr> {
            texts
                .into_iter()
                .flatten()
                .filter_map(|text| text.trim().parse().ok())
                .collect()
        };
        let mut cluster_ips = addresses(spec.cluster_ips.as_ref());
        if cluster_ips.is_empty() {
            cluster_ips.extend(first.parse::<IpAddr>());
        }
        let ports = spec
            .ports
            .iter()
            .flatten()
            .filter_map(|port| {
                Some(ServicePort {
                    name: port.name.clone().unwrap_or_default(),
                    protocol: Protocol::parse(port.protocol.as_deref())?,
                    port: u16::try_from(port.port).ok()?,
                    node_port: u16::try_from(port.node_port.unwrap_or(0)).ok()?,
                })
            })
            .collect();
        let ingress = service
            .status
            .as_ref()
            .and_then(|s| s.load_balancer.as_ref())
            .and_then(|l| l.ingress.as_ref())
            .into_iter()
            .flatten();
        let external_ips = addresses(spec.external_ips.as_ref());
        let reached_from_outside = kind == "NodePort"
            || kind == "LoadBalancer"
            || spec.external_ips.as_ref().is_some_and(|e| !e.is_empty());
        let external_local =
            reached_from_outside && spec.external_traffic_policy.as_deref() == Some("Local");
        let affinity_seconds = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
            let seconds = spec
                .session_affinity_config
                .as_ref()
                .and_then(|c| c.client_ip.as_ref())
                .and_then(|c| c.timeout_seconds);
            // The API's own default (`DefaultClientIPServiceAffinitySeconds`).
            seconds.and_then(|s| u64::try_from(s).ok()).unwrap_or(10800)
        });
        Some(ServiceModel {
            namespace: service.metadata.namespace.clone().unwrap_or_default(),
            name: service.metadata.name.clone().unwrap_or_default(),
            cluster_ips,
            ports,
            external_ips,
            load_balancer_ips: ingress
                .filter(|i| i.ip_mode.as_deref() != Some("Proxy"))
                .filter_map(|i| i.ip.as_deref()?.parse().ok())
                .collect(),
            source_ranges: spec
                .load_balancer_source_ranges
                .iter()
                .flatten()
                .filter_map(|text| text.trim().parse().ok())
                .collect(),
            affinity_seconds,
            external_local,
            internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
            health_check_port: match (kind, external_local, spec.health_check_node_port) {
                ("LoadBalancer", true, Some(port)) => u16::try_from(port).unwrap_or(0),
                _ => 0,
            },
        })
    }

    /// The cluster address of a family.
    pub fn cluster_ip(&self, family: Family) -> Option<IpAddr> {
        self.cluster_ips
            .iter()
            .copied()
            .find(|ip| Family::of(*ip) == family)
    }

    /// Who may come by the load balancers' addresses of a family; empty is everyone, also when a range says so.
    pub fn source_ranges(&self, family: Family) -> Vec<IpNet> {
        let ranges: Vec<IpNet> = self
            .source_ranges
            .iter()
            .filter(|r| Family::of(r.addr()) == family)
            .copied()
            .collect();
        if ranges.iter().any(|r| r.prefix_len() == 0) {
            Vec::new()
        } else {
            ranges
        }
    }
}

/// An endpoint of one port of a service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// Its address.
    pub ip: IpAddr,
    /// Its port.
    pub port: u16,
    /// Whether it takes new connections.
    pub ready: bool,
    /// Whether it still answers.
    pub serving: bool,
    /// Whether it is about to go.
    pub terminating: bool,
    /// Whether it is on this node.
    pub local: bool,
    /// The zones it is meant for.
    pub zone_hints: BTreeSet<String>,
    /// The nodes it is meant for.
    pub node_hints: BTreeSet<String>,
}

/// What one slice says: endpoints by port name and protocol.
pub type SliceModel = BTreeMap<(String, Protocol), Vec<Endpoint>>;

/// Takes the dataplane's view out of a slice: which service it belongs to, its family and its endpoints. `None` for
/// slices of host names or of no service.
pub fn slice_from_api(slice: &EndpointSlice, node: &str) -> Option<(String, Family, SliceModel)> {
    let service = slice
        .metadata
        .labels
        .as_ref()?
        .get("kubernetes.io/service-name")?;
    let family = match slice.address_type.as_str() {
        "IPv4" => Family::V4,
        "IPv6" => Family::V6,
        _ => return None,
    };
    let key = format!(
        "{}/{service}",
        slice.metadata.namespace.as_deref().unwrap_or_default()
    );
    let mut model = SliceModel::new();
    for port in slice.ports.iter().flatten() {
        let Some(protocol) = Protocol::parse(port.protocol.as_deref()) else {
            continue;
        };
        let Some(number) = port.port.and_then(|p| u16::try_from(p).ok()) else {
            continue;
        };
        let endpoints = model
            .entry((port.name.clone().unwrap_or_default(), protocol))
            .or_default();
        for endpoint in slice.endpoints.iter().flatten() {
            // Only the first address counts; all are of the same endpoint.
            let Some(ip) = endpoint
                .addresses
                .first()
                .and_then(|a| a.parse::<IpAddr>().ok())
            else {
                continue;
            };
            if Family::of(ip) != family {
                continue;
            }
            let conditions = endpoint.conditions.as_ref();
            let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
            let hints = endpoint.hints.as_ref();
            endpoints.push(Endpoint {
                ip,
                port: number,
                ready,
                serving: conditions.and_then(|c| c.serving).unwrap_or(ready),
                terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
                local: endpoint.node_name.as_deref() == Some(node),
                zone_hints: hints
                    .and_then(|h| h.for_zones.as_ref())
                    .into_iter()
                    .flatten()
                    .map(|z| z.name.clone())
                    .collect(),
                node_hints: hints
                    .and_then(|h| h.for_nodes.as_ref())
                    .into_iter()
                    .flatten()
                    .map(|n| n.name.clone())
                    .collect(),
            });
        }
    }
    Some((key, family, model))
}

/// The endpoints of one port from all slices of the service, each address and port once, in a stable order. An endpoint
/// named by two slices, as happens while it moves from one to the other, counts as ready when either says so.
pub fn merge<'a>(
    slices: impl Iterator<Item = &'a SliceModel>,
    port: &str,
    protocol: Protocol,
) -> Vec<Endpoint> {
    let key = (port.to_owned(), protocol);
    let mut merged: BTreeMap<(IpAddr, u16), Endpoint> = BTreeMap::new();
    for endpoint in slices.filter_map(|s| s.get(&key)).flatten() {
        let known = merged
            .entry((endpoint.ip, endpoint.port))
            .or_insert_with(|| endpoint.clone());
        if endpoint.ready && !known.ready {
            *known = endpoint.clone();
        }
    }
    merged.into_values().collect()
}
