//! A pod's hostname and its `/etc/hosts`.

use k8s_openapi::api::core::v1::{HostAlias, Pod};

use crate::podutil;

/// The kernel's limit for a host name, less its final NUL.
const MAX_HOSTNAME: usize = 63;

fn truncate(name: &str) -> Result<String, String> {
    if name.len() <= MAX_HOSTNAME {
        return Ok(name.to_owned());
    }
    let mut end = MAX_HOSTNAME;
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    let cut = name[..end].trim_end_matches(['-', '.']);
    if cut.is_empty() {
        Err(format!("hostname for pod was invalid: {name:?}"))
    } else {
        Ok(cut.to_owned())
    }
}

/// The pod's hostname and domain; the domain is empty without a subdomain (upstream `GeneratePodHostNameAndDomain`).
pub fn name_and_domain(pod: &Pod, cluster_domain: &str) -> Result<(String, String), String> {
    let spec = podutil::spec(pod);
    if let Some(name) = &spec.hostname_override {
        return Ok((truncate(name)?, String::new()));
    }
    let name = match spec.hostname.as_deref().filter(|h| !h.is_empty()) {
        Some(h) => truncate(h)?,
        None => truncate(podutil::name(pod))?,
    };
    let domain = match spec.subdomain.as_deref().filter(|s| !s.is_empty()) {
        Some(s) => format!("{s}.{}.svc.{cluster_domain}", podutil::namespace(pod)),
        None => String::new(),
    };
    Ok((name, domain))
}

/// The name that the sandbox's kernel gets.
pub fn kernel_name(name: &str, domain: &str, as_fqdn: bool) -> Result<String, String> {
    if !as_fqdn || domain.is_empty() {
        return Ok(name.to_owned());
    }
    let fqdn = format!("{name}.{domain}");
    if fqdn.len() > MAX_HOSTNAME + 1 {
        return Err(format!(
            "failed to construct FQDN from pod hostname and cluster domain, FQDN {fqdn} is too long (64 characters is the max, {} characters requested)",
            fqdn.len()
        ));
    }
    Ok(fqdn)
}

fn alias_entries(aliases: &[HostAlias]) -> String {
    if aliases.is_empty() {
        return String::new();
    }
    let mut out = String::from("\n# Entries added by HostAliases.\n");
    for a in aliases {
        out.push_str(&format!(
            "{}\t{}\n",
            a.ip,
            a.hostnames.as_deref().unwrap_or_default().join("\t")
        ));
    }
    out
}

/// The hosts file of a pod with its own network.
pub fn pod_file(ips: &[String], name: &str, domain: &str, aliases: &[HostAlias]) -> String {
    let mut out = String::from(
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
    );
    for ip in ips {
        if domain.is_empty() {
            out.push_str(&format!("{ip}\t{name}\n"));
        } else {
            out.push_str(&format!("{ip}\t{name}.{domain}\t{name}\n"));
        }
    }
    out.push_str(&alias_entries(aliases));
    out
}

/// The hosts file of a pod on the node's network, given the node's.
pub fn host_network_file(node_file: &str, aliases: &[HostAlias]) -> String {
    format!(
        "# Kubernetes-managed hosts file (host network).\n{node_file}{}",
        alias_entries(aliases)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_files() {
        let pod = |t: &str| -> Pod { serde_yaml_ng::from_str(t).unwrap() };
        let check = |t: &str, want: (&str, &str)| {
            let got = name_and_domain(&pod(t), "cluster.local").unwrap();
            assert_eq!((got.0.as_str(), got.1.as_str()), want, "{t}");
        };
        check(
            "{metadata: {name: p, namespace: n}, spec: {containers: []}}",
            ("p", ""),
        );
        check(
            "{metadata: {name: p, namespace: n}, spec: {containers: [], hostname: h, subdomain: s}}",
            ("h", "s.n.svc.cluster.local"),
        );
        let long = "a".repeat(62) + "-bcd";
        check(
            &format!("{{metadata: {{name: {long}}}, spec: {{containers: []}}}}"),
            (&"a".repeat(62), ""),
        );
        assert_eq!(kernel_name("h", "s.n.svc", true).unwrap(), "h.s.n.svc");
        assert!(kernel_name("h", &"d".repeat(70), true).is_err());
        let alias = HostAlias {
            ip: "1.1.1.1".into(),
            hostnames: Some(vec!["a".into(), "b".into()]),
        };
        let file = pod_file(&["10.0.0.1".into()], "h", "s", &[alias]);
        assert!(
            file.ends_with("10.0.0.1\th.s\th\n\n# Entries added by HostAliases.\n1.1.1.1\ta\tb\n"),
            "{file}"
        );
    }
}
