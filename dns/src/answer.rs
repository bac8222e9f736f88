//! The answer to one question, as a pure function of the zone: the record kinds and names of the Kubernetes
//! DNS-based service discovery specification, version 1.1.0, with CoreDNS's choices where it leaves one.

use std::net::IpAddr;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::zone::{Endpoint, Port, ServiceEntry, Zone, undashed};

/// The specification that the names follow, as `dns-version.<domain>` tells.
const SPEC_VERSION: &str = "1.1.0";

/// What is fixed for a server.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The cluster domain, `cluster.local.`.
    pub domain: Name,
    /// Seconds that answers may be kept (kubeadm's CoreDNS configuration: 30).
    pub ttl: u32,
}

/// What to do with a question.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// Not a name of this cluster: ask others.
    Forward,
    /// Ours, with these records.
    Records {
        /// Answers to the question.
        answers: Vec<Record>,
        /// Addresses of SRV targets.
        additionals: Vec<Record>,
    },
    /// Ours, but there is nothing of the type asked for (`NoError`), or no such name (`NXDomain`).
    Nothing(ResponseCode),
    /// Ours, an alias of a name outside: the CNAME, to be followed by whoever forwards.
    Alias(Record, Name),
}

/// Answers a question about `name` and `kind`.
pub fn answer(zone: &Zone, settings: &Settings, name: &Name, kind: RecordType) -> Answer {
    if let Some(address) = reverse_address(name) {
        let names = zone.names_of(address);
        if names.is_empty() {
            return Answer::Forward;
        }
        let targets = names.iter().filter_map(|n| {
            Name::from_ascii(format!("{n}.svc"))
                .ok()?
                .append_domain(&settings.domain)
                .ok()
        });
        return typed(
            targets
                .map(|target| record(settings, name, RData::PTR(PTR(target))))
                .collect(),
            kind,
        );
    }
    if !settings.domain.zone_of(name) {
        return Answer::Forward;
    }
    let depth = usize::from(name.num_labels() - settings.domain.num_labels());
    let labels: Vec<String> = name
        .iter()
        .take(depth)
        .map(|label| String::from_utf8_lossy(label).to_ascii_lowercase())
        .collect();
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    match labels.as_slice() {
        [] => apex(settings, name, kind),
        ["dns-version"] => typed(
            vec![record(
                settings,
                name,
                RData::TXT(TXT::new(vec![SPEC_VERSION.to_owned()])),
            )],
            kind,
        ),
        ["ns", "dns"] | ["dns"] | ["svc"] | ["pod"] => Answer::Nothing(ResponseCode::NoError),
        [namespace, "svc" | "pod"] => exists(zone.has_namespace(namespace)),
        [label, namespace, "pod"] => pod(zone, settings, name, label, namespace, kind),
        [rest @ .., service, namespace, "svc"] => {
            of_service(zone, settings, name, kind, rest, service, namespace)
        }
        _ => Answer::Nothing(ResponseCode::NXDomain),
    }
}

/// The start of authority of the cluster domain; also the proof of absence in negative answers.
pub fn start_of_authority(settings: &Settings) -> Record {
    let name = |label: &str| {
        Name::from_ascii(label)
            .and_then(|n| n.append_domain(&settings.domain))
            .unwrap_or_else(|_| settings.domain.clone())
    };
    let soa = SOA::new(
        name("ns.dns"),
        name("hostmaster"),
        1,
        7200,
        1800,
        86400,
        settings.ttl.min(30),
    );
    record(settings, &settings.domain, RData::SOA(soa))
}

fn apex(settings: &Settings, name: &Name, kind: RecordType) -> Answer {
    let server = Name::from_ascii("ns.dns").and_then(|n| n.append_domain(&settings.domain));
    let mut records = vec![start_of_authority(settings)];
    records.extend(
        server
            .ok()
            .map(|server| record(settings, name, RData::NS(NS(server)))),
    );
    typed(records, kind)
}

fn pod(
    zone: &Zone,
    settings: &Settings,
    name: &Name,
    label: &str,
    namespace: &str,
    kind: RecordType,
) -> Answer {
    match undashed(label) {
        Some(address) if zone.has_namespace(namespace) => {
            typed(vec![record(settings, name, address_data(address))], kind)
        }
        _ => Answer::Nothing(ResponseCode::NXDomain),
    }
}

fn of_service(
    zone: &Zone,
    settings: &Settings,
    name: &Name,
    kind: RecordType,
    rest: &[&str],
    service: &str,
    namespace: &str,
) -> Answer {
    let Some(entry) = zone.service(namespace, service) else {
        return Answer::Nothing(ResponseCode::NXDomain);
    };
    match (entry, rest) {
        (ServiceEntry::ExternalName(target), []) => match Name::from_ascii(target) {
            Ok(mut target) => {
                target.set_fqdn(true);
                let alias = record(settings, name, RData::CNAME(CNAME(target.clone())));
                if kind == RecordType::CNAME {
                    Answer::Records {
                        answers: vec![alias],
                        additionals: Vec::new(),
                    }
                } else {
                    Answer::Alias(alias, target)
                }
            }
            Err(_) => Answer::Nothing(ResponseCode::ServFail),
        },
        (ServiceEntry::ClusterIp { addresses, .. }, []) if kind != RecordType::SRV => typed(
            addresses
                .iter()
                .map(|a| record(settings, name, address_data(*a)))
                .collect(),
            kind,
        ),
        (ServiceEntry::ClusterIp { addresses, ports }, rest) => {
            let Some(wanted) = wanted_ports(ports, rest) else {
                return Answer::Nothing(ResponseCode::NXDomain);
            };
            let Some(target) = service_name(settings, None, service, namespace) else {
                return Answer::Nothing(ResponseCode::ServFail);
            };
            services(
                settings,
                name,
                kind,
                wanted
                    .into_iter()
                    .map(|port| (port, target.clone(), addresses.as_slice()))
                    .collect(),
            )
        }
        (ServiceEntry::Headless { publish_not_ready }, []) if kind != RecordType::SRV => {
            let mut addresses: Vec<IpAddr> = zone
                .endpoints(namespace, service, *publish_not_ready)
                .map(|e| e.address)
                .collect();
            addresses.sort();
            addresses.dedup();
            if addresses.is_empty() {
                return Answer::Nothing(ResponseCode::NXDomain);
            }
            typed(
                addresses
                    .into_iter()
                    .map(|a| record(settings, name, address_data(a)))
                    .collect(),
                kind,
            )
        }
        (ServiceEntry::Headless { publish_not_ready }, [label]) if !label.starts_with('_') => {
            let named = zone
                .endpoints(namespace, service, *publish_not_ready)
                .filter(|e| e.label.eq_ignore_ascii_case(label));
            let named: Vec<&Endpoint> = named.collect();
            if named.is_empty() {
                return Answer::Nothing(ResponseCode::NXDomain);
            }
            typed(
                named
                    .into_iter()
                    .map(|e| record(settings, name, address_data(e.address)))
                    .collect(),
                kind,
            )
        }
        (ServiceEntry::Headless { publish_not_ready }, rest) => {
            let mut found = Vec::new();
            for endpoint in zone.endpoints(namespace, service, *publish_not_ready) {
                let Some(target) =
                    service_name(settings, Some(&endpoint.label), service, namespace)
                else {
                    continue;
                };
                let wanted = wanted_ports(&endpoint.ports, rest).unwrap_or_default();
                found.extend(wanted.into_iter().map(|port| {
                    (
                        port,
                        target.clone(),
                        std::slice::from_ref(&endpoint.address),
                    )
                }));
            }
            if found.is_empty() {
                return Answer::Nothing(ResponseCode::NXDomain);
            }
            services(settings, name, kind, found)
        }
        (ServiceEntry::ExternalName(_), _) => Answer::Nothing(ResponseCode::NXDomain),
    }
}

/// The ports that `_name._protocol` means, all for the empty prefix; `None` when the prefix means nothing.
fn wanted_ports<'a>(ports: &'a [Port], prefix: &[&str]) -> Option<Vec<&'a Port>> {
    match prefix {
        [] => Some(ports.iter().collect()),
        [port, protocol] => {
            let (port, protocol) = (port.strip_prefix('_')?, protocol.strip_prefix('_')?);
            let found: Vec<&Port> = ports
                .iter()
                .filter(|p| p.name == port && p.protocol == protocol)
                .collect();
            (!found.is_empty()).then_some(found)
        }
        _ => None,
    }
}

/// SRV records with their targets' addresses beside them.
fn services(
    settings: &Settings,
    name: &Name,
    kind: RecordType,
    found: Vec<(&Port, Name, &[IpAddr])>,
) -> Answer {
    // CoreDNS's sharing of the weight of 100 among the records.
    let weight = u16::try_from(100 / found.len().max(1)).unwrap_or(1).max(1);
    let mut answers = Vec::with_capacity(found.len());
    let mut additionals = Vec::new();
    for (port, target, addresses) in found {
        for address in addresses {
            let extra = record(settings, &target, address_data(*address));
            if !additionals.contains(&extra) {
                additionals.push(extra);
            }
        }
        answers.push(record(
            settings,
            name,
            RData::SRV(SRV::new(0, weight, port.number, target)),
        ));
    }
    match typed(answers, kind) {
        Answer::Records { answers, .. } => Answer::Records {
            answers,
            additionals,
        },
        other => other,
    }
}

fn service_name(
    settings: &Settings,
    label: Option<&str>,
    service: &str,
    namespace: &str,
) -> Option<Name> {
    let labels = label.into_iter().chain([service, namespace, "svc"]);
    Name::from_labels(labels.map(str::as_bytes))
        .ok()?
        .append_domain(&settings.domain)
        .ok()
}

/// Those of the records that are of the type asked for; the name exists, so none left is no error.
fn typed(records: Vec<Record>, kind: RecordType) -> Answer {
    let answers: Vec<Record> = records
        .into_iter()
        .filter(|r| kind == RecordType::ANY || r.record_type() == kind)
        .collect();
    if answers.is_empty() {
        Answer::Nothing(ResponseCode::NoError)
    } else {
        Answer::Records {
            answers,
            additionals: Vec::new(),
        }
    }
}

fn exists(yes: bool) -> Answer {
    Answer::Nothing(if yes {
        ResponseCode::NoError
    } else {
        ResponseCode::NXDomain
    })
}

fn record(settings: &Settings, name: &Name, data: RData) -> Record {
    Record::from_rdata(name.clone(), settings.ttl, data)
}

fn address_data(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    }
}

/// The address that a complete `in-addr.arpa` or `ip6.arpa` name stands for.
fn reverse_address(name: &Name) -> Option<IpAddr> {
    let labels: Vec<String> = name
        .iter()
        .map(|label| String::from_utf8_lossy(label).to_ascii_lowercase())
        .collect();
    let (rest, ending) = labels.split_at_checked(labels.len().checked_sub(2)?)?;
    match (ending, rest.len()) {
        ([family, arpa], 4) if family == "in-addr" && arpa == "arpa" => {
            let text: Vec<&str> = rest.iter().rev().map(String::as_str).collect();
            text.join(".").parse().ok()
        }
        ([family, arpa], 32) if family == "ip6" && arpa == "arpa" => {
            let nibbles: String = rest.iter().rev().map(String::as_str).collect();
            if nibbles.len() != 32 {
                return None;
            }
            u128::from_str_radix(&nibbles, 16)
                .ok()
                .map(|bits| IpAddr::V6(bits.into()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{Namespace, Service};
    use k8s_openapi::api::discovery::v1::EndpointSlice;
    use serde_json::json;

    use super::*;

    fn zone() -> Zone {
        let mut zone = Zone::default();
        for name in ["default", "kube-system"] {
            zone.apply_namespace(
                &serde_json::from_value::<Namespace>(json!({"metadata": {"name": name}})).unwrap(),
            );
        }
        let services = [
            json!({"metadata": {"namespace": "default", "name": "web"}, "spec": {"clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7", "fd00::7"],
                "ports": [{"name": "http", "port": 80, "protocol": "TCP"}, {"name": "dns", "port": 53, "protocol": "UDP"}]}}),
            json!({"metadata": {"namespace": "default", "name": "db"}, "spec": {"clusterIP": "None", "ports": [{"name": "sql", "port": 5432}]}}),
            json!({"metadata": {"namespace": "default", "name": "out"}, "spec": {"type": "ExternalName", "externalName": "example.org"}}),
            json!({"metadata": {"namespace": "default", "name": "empty"}, "spec": {"clusterIP": "None"}}),
        ];
        for service in services {
            zone.apply_service(&serde_json::from_value::<Service>(service).unwrap());
        }
        let slice = json!({
            "metadata": {"namespace": "default", "name": "db-1", "labels": {"kubernetes.io/service-name": "db"}}, "addressType": "IPv4",
            "ports": [{"name": "sql", "port": 5432, "protocol": "TCP"}],
            "endpoints": [
                {"addresses": ["10.244.0.5"], "hostname": "db-0", "conditions": {"ready": true}},
                {"addresses": ["10.244.0.6"], "conditions": {"ready": true}},
                {"addresses": ["10.244.0.9"], "conditions": {"ready": false}},
            ],
        });
        zone.apply_slice(&serde_json::from_value::<EndpointSlice>(slice).unwrap());
        zone
    }

    /// `kind name` to the answer in short: `forward`, a response code, or the records' data.
    fn check(zone: &Zone, cases: &[(&str, &str)]) {
        let settings = Settings {
            domain: Name::from_ascii("cluster.local.").unwrap(),
            ttl: 30,
        };
        for (question, want) in cases {
            let (kind, name) = question.split_once(' ').unwrap();
            let got = match answer(
                zone,
                &settings,
                &Name::from_ascii(name).unwrap(),
                kind.parse().unwrap(),
            ) {
                Answer::Forward => "forward".to_owned(),
                Answer::Nothing(code) => format!("{code:?}"),
                Answer::Alias(_, target) => format!("alias {target}"),
                Answer::Records {
                    answers,
                    additionals,
                } => {
                    let text = |records: &[Record]| {
                        records
                            .iter()
                            .map(|r| r.data.to_string())
                            .collect::<Vec<_>>()
                            .join(", ")
                    };
                    if additionals.is_empty() {
                        text(&answers)
                    } else {
                        format!("{} + {}", text(&answers), text(&additionals))
                    }
                }
            };
            assert_eq!(got, *want, "{question}");
        }
    }

    #[test]
    fn the_names_of_the_specification_are_answered() {
        check(
            &zone(),
            &[
                ("TXT dns-version.cluster.local.", "1.1.0"),
                ("A web.default.svc.cluster.local.", "10.96.0.7"),
                ("A WEB.Default.svc.CLUSTER.local.", "10.96.0.7"),
                ("AAAA web.default.svc.cluster.local.", "fd00::7"),
                ("TXT web.default.svc.cluster.local.", "NoError"),
                (
                    "SRV _http._tcp.web.default.svc.cluster.local.",
                    "0 100 80 web.default.svc.cluster.local. + 10.96.0.7, fd00::7",
                ),
                ("SRV _http._udp.web.default.svc.cluster.local.", "NXDomain"),
                ("A db.default.svc.cluster.local.", "10.244.0.5, 10.244.0.6"),
                ("A db-0.db.default.svc.cluster.local.", "10.244.0.5"),
                ("A 10-244-0-6.db.default.svc.cluster.local.", "10.244.0.6"),
                ("A 10-244-0-9.db.default.svc.cluster.local.", "NXDomain"),
                (
                    "SRV _sql._tcp.db.default.svc.cluster.local.",
                    "0 50 5432 db-0.db.default.svc.cluster.local., 0 50 5432 10-244-0-6.db.default.svc.cluster.local. + 10.244.0.5, 10.244.0.6",
                ),
                ("A out.default.svc.cluster.local.", "alias example.org."),
                ("CNAME out.default.svc.cluster.local.", "example.org."),
                ("A 10-1-2-3.default.pod.cluster.local.", "10.1.2.3"),
                ("A 10-1-2-3.nowhere.pod.cluster.local.", "NXDomain"),
                (
                    "PTR 7.0.96.10.in-addr.arpa.",
                    "web.default.svc.cluster.local.",
                ),
                (
                    "PTR 5.0.244.10.in-addr.arpa.",
                    "db-0.db.default.svc.cluster.local.",
                ),
                ("PTR 1.2.3.4.in-addr.arpa.", "forward"),
                ("A example.org.", "forward"),
                ("A empty.default.svc.cluster.local.", "NXDomain"),
                ("A nosuch.default.svc.cluster.local.", "NXDomain"),
                ("A default.svc.cluster.local.", "NoError"),
                ("A nowhere.svc.cluster.local.", "NXDomain"),
                ("A cluster.local.", "NoError"),
                ("NS cluster.local.", "ns.dns.cluster.local."),
                ("A x.y.z.cluster.local.", "NXDomain"),
            ],
        );
    }

    #[test]
    fn deleted_objects_leave_no_name_behind() {
        let mut zone = zone();
        zone.delete_service("default", "web");
        zone.delete_slice("default", "db", "db-1");
        zone.delete_namespace("default");
        check(
            &zone,
            &[
                ("A web.default.svc.cluster.local.", "NXDomain"),
                ("PTR 7.0.96.10.in-addr.arpa.", "forward"),
                ("PTR 5.0.244.10.in-addr.arpa.", "forward"),
                ("A db.default.svc.cluster.local.", "NXDomain"),
                ("A default.svc.cluster.local.", "NXDomain"),
            ],
        );
    }
}
