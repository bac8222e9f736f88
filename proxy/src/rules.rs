//! From services and endpoints to wanted rules: pure functions.
//!
//! The table's frame ([`frame`]) is made once and looks a packet's destination up in maps. What a service port adds
//! ([`service_port`]) is elements of those maps and sets, and chains of its own, so that a change of one service
//! touches nothing of the others:
//!
//! ```text
//! nat: services -> @service-ips    (address . protocol . port) -> service-… | local-… | external-…
//!               -> @service-nodeports (protocol . port)        -> external-…
//! external-…: masquerade, or short-circuits for policy Local, then service-… or local-…
//! service-…, local-…: destination by chance among the endpoints; with affinity first those remembered
//! filter: @no-endpoint-services, @no-endpoint-nodeports -> reject or drop; @firewall-ips -> firewall-…
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use sha2::{Digest, Sha256};

use crate::model::{Endpoint, Protocol, ServiceModel, ServicePort};
use crate::nft::batch::{Field, Hook, Set};
use crate::nft::expr::{
    Ct, Expr, Meta, R0, Rule, Verdict, after, ct_has, destination, destination_within, is_local,
    is_new, not_loopback, protocol_and_port, set_mark, source, source_is, source_within,
};
use crate::nft::{Family, octets};
use crate::topology::{Categorized, Place, Policy, categorize};

/// The sets and maps of the frame.
pub const CLUSTER_IPS: &str = "cluster-ips";
/// Connections of an endpoint to itself.
pub const HAIRPIN: &str = "hairpin-connections";
/// Addresses that take node-port traffic.
pub const NODE_PORT_IPS: &str = "nodeport-ips";
/// Where traffic to services' addresses goes.
pub const SERVICE_IPS: &str = "service-ips";
/// Where traffic to node ports goes.
pub const SERVICE_NODE_PORTS: &str = "service-nodeports";
/// What becomes of traffic to services without endpoints.
pub const NO_ENDPOINTS: &str = "no-endpoint-services";
/// The same for node ports.
pub const NO_ENDPOINT_NODE_PORTS: &str = "no-endpoint-nodeports";
/// Load balancers' addresses that not everyone may use.
pub const FIREWALL_IPS: &str = "firewall-ips";
const REJECT: &str = "reject-chain";

/// Which addresses of the node take node-port traffic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// The node's own addresses as the API has them.
    Primary,
    /// All addresses of the node within these ranges.
    Ranges(Vec<IpNet>),
}

/// How pods of this node are told from everything else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LocalDetection {
    /// They are not.
    None,
    /// By their source addresses.
    ClusterCidr(Vec<IpNet>),
    /// By the interface that their packets come in by.
    Bridge(String),
    /// By the beginning of that interface's name.
    InterfacePrefix(String),
}

/// What the rules depend on beside services and endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    /// The node.
    pub place: Place,
    /// The node's addresses.
    pub node_ips: Vec<IpAddr>,
    /// Which addresses take node-port traffic.
    pub node_port_addresses: NodePortAddresses,
    /// How local pods are known.
    pub local_detection: LocalDetection,
    /// The ranges of cluster addresses, as far as known.
    pub service_cidrs: Vec<IpNet>,
    /// Whether all traffic to cluster addresses is masqueraded.
    pub masquerade_all: bool,
    /// Pods' addresses: what they send to elsewhere gets the node's address. Upstream leaves that to the pod network.
    pub masquerade_egress: Vec<IpNet>,
    /// The bit of the packet mark that stands for masquerading.
    pub masquerade_mark: u32,
}

impl Environment {
    /// Goes on for packets that are (or are not) from pods of this node; `None` when that cannot be told.
    fn local_pods(&self, family: Family, local: bool) -> Option<Vec<Expr>> {
        match &self.local_detection {
            LocalDetection::None => None,
            LocalDetection::ClusterCidr(ranges) => {
                let range = ranges.iter().find(|r| Family::of(r.addr()) == family)?;
                Some(source_within(*range, local))
            }
            LocalDetection::Bridge(name) => {
                let mut padded = name.as_bytes().to_vec();
                padded.resize(16, 0);
                Some(vec![
                    Expr::MetaGet(Meta::InterfaceName, R0),
                    Expr::Compare(R0, local, padded),
                ])
            }
            LocalDetection::InterfacePrefix(prefix) => Some(vec![
                Expr::MetaGet(Meta::InterfaceName, R0),
                Expr::Compare(R0, local, prefix.as_bytes().to_vec()),
            ]),
        }
    }

    /// The conditions under which a packet is node-port traffic as far as its address goes, one rule each.
    fn node_port_conditions(&self, family: Family) -> Vec<Vec<Expr>> {
        match &self.node_port_addresses {
            NodePortAddresses::Primary => {
                vec![vec![
                    destination(family, R0),
                    Expr::Lookup(NODE_PORT_IPS.into(), R0),
                ]]
            }
            NodePortAddresses::Ranges(ranges) => ranges
                .iter()
                .filter(|r| Family::of(r.addr()) == family)
                .map(|range| {
                    let mut exprs = is_local(false).to_vec();
                    exprs.extend(not_loopback(family));
                    if range.prefix_len() > 0 {
                        exprs.extend(destination_within(*range, true));
                    }
                    exprs
                })
                .collect(),
        }
    }
}

/// A base chain's or other chain's place and rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameChain {
    /// Its name.
    pub name: &'static str,
    /// Where it hangs; `None` for chains that are jumped to.
    pub hook: Option<Hook>,
    /// Its rules.
    pub rules: Vec<Rule>,
}

/// The frame of a family's table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Sets and maps by name.
    pub sets: Vec<(&'static str, Set)>,
    /// Chains; those that are jumped to stand first.
    pub chains: Vec<FrameChain>,
    /// Elements that do not belong to services.
    pub elements: BTreeMap<(&'static str, Vec<u8>), Option<Verdict>>,
}

const ADDRESS_AND_PORT: &[Field] = &[Field::Address, Field::Protocol, Field::Port];
const PROTOCOL_AND_PORT: &[Field] = &[Field::Protocol, Field::Port];

/// The part of a family's table that does not depend on services.
pub fn frame(environment: &Environment, family: Family) -> Frame {
    let map = |key| Set {
        key,
        verdicts: true,
        timeout_ms: None,
    };
    let set = |key| Set {
        key,
        verdicts: false,
        timeout_ms: None,
    };
    let sets = vec![
        (CLUSTER_IPS, set(&[Field::Address])),
        (NODE_PORT_IPS, set(&[Field::Address])),
        (
            HAIRPIN,
            set(&[Field::Address, Field::Address, Field::Protocol, Field::Port]),
        ),
        (SERVICE_IPS, map(ADDRESS_AND_PORT)),
        (SERVICE_NODE_PORTS, map(PROTOCOL_AND_PORT)),
        (NO_ENDPOINTS, map(ADDRESS_AND_PORT)),
        (NO_ENDPOINT_NODE_PORTS, map(PROTOCOL_AND_PORT)),
        (FIREWALL_IPS, map(ADDRESS_AND_PORT)),
    ];

    let by_address = |name: &str| {
        let next = after(R0, family.address_len());
        let mut exprs = vec![destination(family, R0)];
        exprs.extend(protocol_and_port(next));
        exprs.push(Expr::VerdictMap(name.to_owned(), R0));
        Rule::new(exprs)
    };
    let by_node_port = |name: &str| -> Vec<Rule> {
        environment
            .node_port_conditions(family)
            .into_iter()
            .map(|mut exprs| {
                exprs.extend(protocol_and_port(R0));
                exprs.push(Expr::VerdictMap(name.to_owned(), R0));
                Rule::new(exprs)
            })
            .collect()
    };
    let jump = |chain: &str| Expr::Verdict(Verdict::Jump(chain.to_owned()));
    let jump_new = |chain: &str| Rule::new(is_new().into_iter().chain([jump(chain)]));
    let to_cluster_ip = || {
        [
            destination(family, R0),
            Expr::Lookup(CLUSTER_IPS.into(), R0),
        ]
    };

    let mut cluster_ips_check = vec![
        Rule::new(to_cluster_ip().into_iter().chain([Expr::Reject]))
            .commented("invalid ports of ClusterIPs"),
    ];
    for range in environment
        .service_cidrs
        .iter()
        .filter(|r| Family::of(r.addr()) == family)
    {
        let drop = Expr::Verdict(Verdict::Drop);
        let exprs = destination_within(*range, true).into_iter().chain([drop]);
        cluster_ips_check.push(Rule::new(exprs).commented("unallocated ClusterIPs"));
    }

    let mark = environment.masquerade_mark;
    let mut services = Vec::new();
    if environment.masquerade_all {
        let exprs = to_cluster_ip().into_iter().chain(set_mark(mark));
        services.push(Rule::new(exprs).commented("masquerade all ClusterIP traffic"));
    } else if let Some(not_local) = environment.local_pods(family, false) {
        // Whoever routes the service range to a node makes it bounce between nodes: replies must come back here.
        let exprs = to_cluster_ip()
            .into_iter()
            .chain(not_local)
            .chain(set_mark(mark));
        services.push(
            Rule::new(exprs).commented("masquerade ClusterIP traffic from outside the cluster"),
        );
    }
    services.push(by_address(SERVICE_IPS));
    services.extend(by_node_port(SERVICE_NODE_PORTS));

    let all = u32::MAX.to_ne_bytes().to_vec();
    let mut masquerading = vec![
        // The mark is taken off again, so that the packet is not masqueraded twice when it comes by once more.
        Rule::new([
            Expr::MetaGet(Meta::Mark, R0),
            Expr::Bitwise(R0, mark.to_ne_bytes().to_vec(), vec![0; 4]),
            Expr::Compare(R0, false, vec![0; 4]),
            Expr::MetaGet(Meta::Mark, R0),
            Expr::Bitwise(R0, all, mark.to_ne_bytes().to_vec()),
            Expr::MetaSet(Meta::Mark, R0),
            Expr::Masquerade,
        ]),
        Rule::new({
            const IPS_DST_NAT: u32 = 1 << 5;
            let mut exprs = ct_has(Ct::Status, IPS_DST_NAT).to_vec();
            let second = after(R0, family.address_len());
            let third = after(second, family.address_len());
            exprs.extend([source(family, R0), destination(family, second)]);
            exprs.extend(protocol_and_port(third));
            exprs.extend([Expr::Lookup(HAIRPIN.into(), R0), Expr::Masquerade]);
            exprs
        })
        .commented("an endpoint that reaches itself by its service"),
    ];
    for range in environment
        .masquerade_egress
        .iter()
        .filter(|r| Family::of(r.addr()) == family)
    {
        let mut exprs = source_within(*range, true);
        exprs.extend(destination_within(*range, false));
        exprs.push(Expr::Masquerade);
        masquerading.push(Rule::new(exprs).commented("pods to outside the cluster"));
    }

    let plain = |name, rules| FrameChain {
        name,
        hook: None,
        rules,
    };
    let base = |name, kind, number, priority, rules| FrameChain {
        name,
        hook: Some(Hook {
            kind,
            number,
            priority,
        }),
        rules,
    };
    const PREROUTING: u32 = 0;
    const INPUT: u32 = 1;
    const FORWARD: u32 = 2;
    const OUTPUT: u32 = 3;
    const POSTROUTING: u32 = 4;
    const DNAT: i32 = -100;
    const SNAT: i32 = 100;
    let checks = |with_cluster_ips: bool, with_node_ports: bool| {
        let mut rules = Vec::new();
        if with_node_ports {
            rules.push(jump_new("nodeport-endpoints-check"));
        }
        rules.push(jump_new("service-endpoints-check"));
        if with_cluster_ips {
            rules.push(jump_new("cluster-ips-check"));
        }
        rules
    };
    let chains = vec![
        plain(REJECT, vec![Rule::new([Expr::Reject])]),
        plain("service-endpoints-check", vec![by_address(NO_ENDPOINTS)]),
        plain(
            "nodeport-endpoints-check",
            by_node_port(NO_ENDPOINT_NODE_PORTS),
        ),
        plain("cluster-ips-check", cluster_ips_check),
        plain("firewall-check", vec![by_address(FIREWALL_IPS)]),
        plain("services", services),
        plain("masquerading", masquerading),
        // Before destinations are changed.
        base(
            "filter-prerouting-pre-dnat",
            "filter",
            PREROUTING,
            DNAT - 10,
            vec![jump_new("firewall-check")],
        ),
        base(
            "filter-output-pre-dnat",
            "filter",
            OUTPUT,
            DNAT - 10,
            vec![jump_new("firewall-check")],
        ),
        base("filter-input", "filter", INPUT, 0, checks(false, true)),
        base("filter-forward", "filter", FORWARD, 0, checks(true, false)),
        base("filter-output", "filter", OUTPUT, 0, checks(true, false)),
        base(
            "nat-prerouting",
            "nat",
            PREROUTING,
            DNAT,
            vec![Rule::new([jump("services")])],
        ),
        base(
            "nat-output",
            "nat",
            OUTPUT,
            DNAT,
            vec![Rule::new([jump("services")])],
        ),
        base(
            "nat-postrouting",
            "nat",
            POSTROUTING,
            SNAT,
            vec![Rule::new([jump("masquerading")])],
        ),
    ];

    let mut elements = BTreeMap::new();
    if environment.node_port_addresses == NodePortAddresses::Primary {
        for ip in environment
            .node_ips
            .iter()
            .filter(|ip| Family::of(**ip) == family && !ip.is_loopback())
        {
            elements.insert((NODE_PORT_IPS, octets(*ip)), None);
        }
    }
    Frame {
        sets,
        chains,
        elements,
    }
}

/// What one port of a service adds to a family's table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Chains by name with their rules.
    pub chains: BTreeMap<String, Vec<Rule>>,
    /// Sets that rules fill, by name, with how many milliseconds they remember.
    pub affinity_sets: BTreeMap<String, u64>,
    /// Elements of the frame's sets and maps.
    pub elements: BTreeMap<(&'static str, Vec<u8>), Option<Verdict>>,
    /// Whether internal traffic finds no endpoint on this node although there are some elsewhere.
    pub no_local_internal: bool,
    /// The same for external traffic.
    pub no_local_external: bool,
}

fn padded(parts: &[&[u8]]) -> Vec<u8> {
    let mut key = Vec::new();
    for part in parts {
        key.extend_from_slice(part);
        key.resize(key.len().next_multiple_of(4), 0);
    }
    key
}

fn address_key(ip: IpAddr, protocol: Protocol, port: u16) -> Vec<u8> {
    padded(&[&octets(ip), &[protocol.number()], &port.to_be_bytes()])
}

fn port_key(protocol: Protocol, port: u16) -> Vec<u8> {
    padded(&[&[protocol.number()], &port.to_be_bytes()])
}

/// `HASH-namespace/name/protocol/port`: told apart at a glance, unique even when cut to what the kernel takes.
fn chain_base(service: &ServiceModel, port: &ServicePort, endpoint: Option<&Endpoint>) -> String {
    /// The longest name of a chain, less the longest prefix.
    const LIMIT: usize = 128 - 16;
    const BASE32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let mut name = format!(
        "{}/{}/{}/{}",
        service.namespace,
        service.name,
        port.protocol.name(),
        port.name
    );
    if let Some(endpoint) = endpoint {
        // Colons may not stand in names.
        name.push_str(&format!(
            "__{}/{}",
            endpoint.ip.to_string().replace(':', "."),
            endpoint.port
        ));
    }
    let hash = Sha256::digest(name.as_bytes());
    let mut bits = u64::from_be_bytes([hash[0], hash[1], hash[2], hash[3], hash[4], 0, 0, 0]);
    let mut result = String::new();
    for _ in 0..8 {
        result.push(char::from(BASE32[(bits >> 59) as usize]));
        bits <<= 5;
    }
    result.push('-');
    result.push_str(&name);
    if result.len() > LIMIT {
        result.truncate(LIMIT - 3);
        result.push_str("...");
    }
    result
}

/// What one port of a service adds to a family's table, or `None` when the service has no address in the family.
pub fn service_port(
    environment: &Environment,
    family: Family,
    service: &ServiceModel,
    port: &ServicePort,
    endpoints: &[Endpoint],
) -> Option<Wanted> {
    let cluster_ip = service.cluster_ip(family)?;
    let of_family = |ips: &[IpAddr]| -> BTreeSet<IpAddr> {
        ips.iter()
            .copied()
            .filter(|ip| Family::of(*ip) == family)
            .collect()
    };
    let external_ips = of_family(&service.external_ips);
    let load_balancer_ips = of_family(&service.load_balancer_ips);
    let policy = Policy {
        internal_local: service.internal_local,
        external_local: service.external_local,
        externally_accessible: port.node_port != 0
            || !external_ips.is_empty()
            || !load_balancer_ips.is_empty(),
    };
    let found = categorize(endpoints, policy, &environment.place);
    let base = chain_base(service, port, None);
    let cluster_chain = format!("service-{base}");
    let local_chain = format!("local-{base}");
    let external_chain = format!("external-{base}");
    let firewall_chain = format!("firewall-{base}");
    let mut wanted = Wanted::default();

    for endpoint in found.reachable.iter().filter(|e| e.local) {
        let ip = octets(endpoint.ip);
        let key = padded(&[
            &ip,
            &ip,
            &[port.protocol.number()],
            &endpoint.port.to_be_bytes(),
        ]);
        wanted.elements.insert((HAIRPIN, key), None);
    }
    endpoint_chains(
        &mut wanted,
        family,
        service,
        port,
        &found,
        &cluster_chain,
        &local_chain,
        policy,
    );

    let has_internal = found.any && !(policy.internal_local && found.local.is_empty());
    let has_external = found.any && !(policy.external_local && found.local.is_empty());
    let internal_chain = if policy.internal_local {
        &local_chain
    } else {
        &cluster_chain
    };
    let refusal = || {
        if found.any {
            Verdict::Drop
        } else {
            Verdict::Goto(REJECT.to_owned())
        }
    };
    wanted.no_local_internal = found.any && !has_internal;
    wanted.no_local_external = found.any && !has_external && policy.externally_accessible;

    wanted
        .elements
        .insert((CLUSTER_IPS, octets(cluster_ip)), None);
    let key = address_key(cluster_ip, port.protocol, port.port);
    if has_internal {
        wanted.elements.insert(
            (SERVICE_IPS, key),
            Some(Verdict::Goto(internal_chain.clone())),
        );
    } else {
        wanted.elements.insert((NO_ENDPOINTS, key), Some(refusal()));
    }

    let to_external = || Some(Verdict::Goto(external_chain.clone()));
    for ip in external_ips.iter().chain(&load_balancer_ips) {
        let key = address_key(*ip, port.protocol, port.port);
        if found.any {
            wanted
                .elements
                .insert((SERVICE_IPS, key.clone()), to_external());
        }
        if !has_external {
            wanted.elements.insert((NO_ENDPOINTS, key), Some(refusal()));
        }
    }
    if port.node_port != 0 {
        let key = port_key(port.protocol, port.node_port);
        if found.any {
            wanted
                .elements
                .insert((SERVICE_NODE_PORTS, key.clone()), to_external());
        }
        if !has_external {
            wanted
                .elements
                .insert((NO_ENDPOINT_NODE_PORTS, key), Some(refusal()));
        }
    }
    if found.any && policy.externally_accessible {
        let external_policy_chain = if policy.external_local {
            &local_chain
        } else {
            &cluster_chain
        };
        let target = has_external.then_some(external_policy_chain.as_str());
        // Endpoints that only internal traffic may use leave nothing to short-circuit to.
        let cluster_target = (!found.cluster.is_empty()).then_some(cluster_chain.as_str());
        let rules = external_rules(environment, family, policy, cluster_target, target);
        wanted.chains.insert(external_chain, rules);
    }

    let ranges = service.source_ranges(family);
    if !load_balancer_ips.is_empty() && !ranges.is_empty() {
        for ip in &load_balancer_ips {
            let key = address_key(*ip, port.protocol, port.port);
            wanted.elements.insert(
                (FIREWALL_IPS, key),
                Some(Verdict::Goto(firewall_chain.clone())),
            );
        }
        wanted.chains.insert(
            firewall_chain,
            firewall_rules(environment, &ranges, &load_balancer_ips),
        );
    }
    Some(wanted)
}

fn goto(chain: &str) -> Expr {
    Expr::Verdict(Verdict::Goto(chain.to_owned()))
}

/// Traffic from outside: what is done with its source address, and where it goes.
fn external_rules(
    environment: &Environment,
    family: Family,
    policy: Policy,
    cluster_chain: Option<&str>,
    target: Option<&str>,
) -> Vec<Rule> {
    let mark = set_mark(environment.masquerade_mark);
    let mut rules = Vec::new();
    if !policy.external_local {
        rules.push(Rule::new(mark).commented("masquerade"));
    } else if let Some(cluster_chain) = cluster_chain {
        // Pods of this node reach it as if they went out to the load balancer and came back.
        if let Some(local) = environment.local_pods(family, true) {
            let exprs = local.into_iter().chain([goto(cluster_chain)]);
            rules.push(Rule::new(exprs).commented("short-circuit pod traffic"));
        }
        // So does the node itself, whose source address would be the very address it asks for.
        let exprs = is_local(true).into_iter().chain(mark);
        rules.push(Rule::new(exprs).commented("masquerade local traffic"));
        let exprs = is_local(true).into_iter().chain([goto(cluster_chain)]);
        rules.push(Rule::new(exprs).commented("short-circuit local traffic"));
    }
    rules.extend(target.map(|chain| Rule::new([goto(chain)])));
    rules
}

/// Who may use the load balancers' addresses: the rest is dropped.
fn firewall_rules(
    environment: &Environment,
    ranges: &[IpNet],
    load_balancer_ips: &BTreeSet<IpAddr>,
) -> Vec<Rule> {
    let back = || Expr::Verdict(Verdict::Return);
    let mut rules: Vec<Rule> = ranges
        .iter()
        .map(|range| Rule::new(source_within(*range, true).into_iter().chain([back()])))
        .collect();
    // A node that has the address itself asks with it as source; it may when the node may.
    if environment
        .node_ips
        .iter()
        .any(|ip| ranges.iter().any(|r| r.contains(ip)))
    {
        let own = load_balancer_ips
            .iter()
            .map(|ip| Rule::new(source_is(*ip).into_iter().chain([back()])));
        rules.extend(own);
    }
    rules.push(Rule::new([Expr::Verdict(Verdict::Drop)]));
    rules
}

/// The chains that lead to endpoints, and those of endpoints that remember clients.
#[allow(clippy::too_many_arguments)] // one caller, and each is a different thing
fn endpoint_chains(
    wanted: &mut Wanted,
    family: Family,
    service: &ServiceModel,
    port: &ServicePort,
    found: &Categorized<'_>,
    cluster_chain: &str,
    local_chain: &str,
    policy: Policy,
) {
    let mut groups = Vec::new();
    if policy.uses_cluster() && !found.cluster.is_empty() {
        groups.push((cluster_chain, &found.cluster));
    }
    if policy.uses_local() && !found.local.is_empty() {
        groups.push((local_chain, &found.local));
    }
    let protocol = || {
        [
            Expr::MetaGet(Meta::Protocol, R0),
            Expr::Compare(R0, true, vec![port.protocol.number()]),
        ]
    };
    let port_register = after(R0, family.address_len());
    let target = |e: &Endpoint| padded(&[&octets(e.ip), &e.port.to_be_bytes()]);
    let to_one = |e: &Endpoint| {
        Rule::new(protocol().into_iter().chain([
            Expr::Immediate(R0, octets(e.ip)),
            Expr::Immediate(port_register, e.port.to_be_bytes().to_vec()),
            Expr::Dnat(R0, port_register),
        ]))
    };
    let Some(seconds) = service.affinity_seconds else {
        for (chain, endpoints) in groups {
            let rule = match endpoints.as_slice() {
                [one] => to_one(one),
                many => Rule::new(protocol().into_iter().chain([
                    Expr::RandomValue(many.iter().map(|e| target(e)).collect(), R0),
                    Expr::Dnat(R0, port_register),
                ])),
            };
            wanted.chains.insert(chain.to_owned(), vec![rule]);
        }
        return;
    };
    let name =
        |prefix: &str, e: &Endpoint| format!("{prefix}-{}", chain_base(service, port, Some(e)));
    for (chain, endpoints) in groups {
        let mut rules: Vec<Rule> = endpoints
            .iter()
            .map(|e| {
                Rule::new([
                    source(family, R0),
                    Expr::Lookup(name("affinity", e), R0),
                    goto(&name("endpoint", e)),
                ])
            })
            .collect();
        let chains = endpoints
            .iter()
            .map(|e| Verdict::Goto(name("endpoint", e)))
            .collect();
        rules.push(Rule::new([Expr::RandomVerdict(chains)]));
        wanted.chains.insert(chain.to_owned(), rules);
    }
    for endpoint in &found.reachable {
        let set = name("affinity", endpoint);
        let remember = Rule::new([source(family, R0), Expr::Remember(set.clone(), R0)]);
        wanted
            .chains
            .insert(name("endpoint", endpoint), vec![remember, to_one(endpoint)]);
        wanted.affinity_sets.insert(set, seconds * 1000);
    }
}
