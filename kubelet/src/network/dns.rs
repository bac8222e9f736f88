//! A pod's resolver settings (upstream `pkg/kubelet/network/dns`).

use std::net::IpAddr;
use std::path::Path;

use k8s_openapi::api::core::v1::Pod;

use crate::cri;
use crate::podutil;

/// The C library reads no more name servers than this.
const MAX_SERVERS: usize = 3;
/// Upstream's limit of search domains.
const MAX_SEARCHES: usize = 32;
/// Upstream's limit of all search domains together.
const MAX_SEARCH_CHARS: usize = 2048;

/// What pods get by default.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// The cluster's DNS servers.
    pub servers: Vec<IpAddr>,
    /// The cluster's domain.
    pub domain: String,
}

/// Reasons and messages of warnings, for events.
pub type Warnings = Vec<(&'static str, String)>;

/// Settings, and a warning for an event if some did not fit.
pub struct Settings {
    /// For the sandbox.
    pub config: cri::DNSConfig,
    /// What did not fit.
    pub warnings: Warnings,
}

fn dedup(list: Vec<String>) -> Vec<String> {
    let mut out: Vec<String> = Vec::with_capacity(list.len());
    for s in list {
        if !out.contains(&s) {
            out.push(s);
        }
    }
    out
}

/// Reads a resolver file (`resolv.conf(5)`).
pub fn parse(text: &str) -> cri::DNSConfig {
    let mut c = cri::DNSConfig::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => c.servers.extend(words.next().map(str::to_owned)),
            Some("search") => {
                c.searches = words
                    .map(|s| {
                        if s == "." {
                            s.to_owned()
                        } else {
                            s.trim_end_matches('.').to_owned()
                        }
                    })
                    .collect();
            }
            Some("options") => c.options.extend(words.map(str::to_owned)),
            _ => {}
        }
    }
    c.options = dedup(c.options);
    c
}

/// The settings of a pod, given the node's resolver file; an empty path means that the node has none.
pub fn settings(pod: &Pod, cluster: &Cluster, resolv_conf: &Path) -> Result<Settings, String> {
    let host = if resolv_conf.as_os_str().is_empty() {
        cri::DNSConfig {
            servers: vec!["127.0.0.1".to_owned()],
            searches: vec![".".to_owned()],
            ..Default::default()
        }
    } else {
        let text = std::fs::read_to_string(resolv_conf)
            .map_err(|e| format!("open {}: {e}", resolv_conf.display()))?;
        parse(&text)
    };
    Ok(decide(pod, cluster, host))
}

fn decide(pod: &Pod, cluster: &Cluster, host: cri::DNSConfig) -> Settings {
    let spec = podutil::spec(pod);
    let mut warnings = Vec::new();
    let wants_cluster = match spec.dns_policy.as_deref().unwrap_or("ClusterFirst") {
        "None" => None,
        "ClusterFirstWithHostNet" => Some(true),
        "ClusterFirst" => Some(!podutil::is_host_network(pod)),
        _ => Some(false),
    };
    let mut c = match wants_cluster {
        None => cri::DNSConfig::default(),
        Some(true) if !cluster.servers.is_empty() => {
            let mut searches = Vec::new();
            if !cluster.domain.is_empty() {
                let d = &cluster.domain;
                searches.extend([
                    format!("{}.svc.{d}", podutil::namespace(pod)),
                    format!("svc.{d}"),
                    d.clone(),
                ]);
            }
            searches.extend(host.searches);
            cri::DNSConfig {
                servers: cluster.servers.iter().map(ToString::to_string).collect(),
                searches: dedup(searches),
                options: vec!["ndots:5".to_owned()],
            }
        }
        Some(true) => {
            warnings.push((
                "MissingClusterDNS",
                format!(
                    "pod: {:?}. kubelet does not have ClusterDNS IP configured and cannot create Pod using \"ClusterFirst\" policy. Falling back to \"Default\" policy.",
                    podutil::describe(pod)
                ),
            ));
            host
        }
        Some(false) => host,
    };
    if let Some(own) = &spec.dns_config {
        c.servers.extend(own.nameservers.iter().flatten().cloned());
        c.servers = dedup(c.servers);
        c.searches.extend(own.searches.iter().flatten().cloned());
        c.searches = dedup(c.searches);
        for o in own.options.iter().flatten() {
            let Some(name) = &o.name else { continue };
            c.options.retain(|x| x.split(':').next() != Some(name));
            match o.value.as_deref().filter(|v| !v.is_empty()) {
                Some(v) => c.options.push(format!("{name}:{v}")),
                None => c.options.push(name.clone()),
            }
        }
    }
    if c.servers.len() > MAX_SERVERS {
        c.servers.truncate(MAX_SERVERS);
        warnings.push((
            "DNSConfigForming",
            format!(
                "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {}",
                c.servers.join(" ")
            ),
        ));
    }
    let before = c.searches.len();
    c.searches.truncate(MAX_SEARCHES);
    while c.searches.join(" ").len() > MAX_SEARCH_CHARS {
        c.searches.pop();
    }
    if c.searches.len() < before {
        warnings.push((
            "DNSConfigForming",
            format!(
                "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {}",
                c.searches.join(" ")
            ),
        ));
    }
    Settings {
        config: c,
        warnings,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies() {
        let cluster = Cluster {
            servers: vec![IpAddr::from([10, 96, 0, 10])],
            domain: "cluster.local".into(),
        };
        let host = parse("nameserver 8.8.8.8\nsearch corp.example. lan\noptions edns0\n# x\n");
        let check = |spec: &str, want: (&str, &str, &str)| {
            let pod: Pod = serde_yaml_ng::from_str(&format!(
                "{{metadata: {{name: p, namespace: n}}, spec: {spec}}}"
            ))
            .unwrap();
            let c = decide(&pod, &cluster, host.clone()).config;
            let got = (
                c.servers.join(" "),
                c.searches.join(" "),
                c.options.join(" "),
            );
            assert_eq!(
                (got.0.as_str(), got.1.as_str(), got.2.as_str()),
                want,
                "{spec}"
            );
        };
        let in_cluster = (
            "10.96.0.10",
            "n.svc.cluster.local svc.cluster.local cluster.local corp.example lan",
            "ndots:5",
        );
        let on_host = ("8.8.8.8", "corp.example lan", "edns0");
        check("{containers: []}", in_cluster);
        check("{containers: [], dnsPolicy: Default}", on_host);
        check("{containers: [], hostNetwork: true}", on_host);
        check(
            "{containers: [], hostNetwork: true, dnsPolicy: ClusterFirstWithHostNet}",
            in_cluster,
        );
        check(
            "{containers: [], dnsPolicy: None, dnsConfig: {nameservers: [1.1.1.1], searches: [a], options: [{name: ndots, value: '2'}, {name: x}]}}",
            ("1.1.1.1", "a", "ndots:2 x"),
        );
        check(
            "{containers: [], dnsConfig: {options: [{name: ndots, value: '2'}]}}",
            (in_cluster.0, in_cluster.1, "ndots:2"),
        );
    }
}
