//! Where a streaming subresource leads: the kubelet of a pod, a container's port, an endpoint of a service.
//!
//! Upstream: `pkg/registry/core/pod/strategy.go` (`LogLocation`, `ExecLocation`, ...), `pkg/kubelet/client`,
//! `pkg/registry/core/service/proxy.go`.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use keelson_machinery::meta::{name, namespace};
use keelson_machinery::status::ApiError;
use keelson_machinery::value::{Value, get, get_str};

use super::backend::Backend;
use crate::objects::Objects;
use crate::reader::GroupResource;
use crate::request::Query;

/// Port of a kubelet that reports none (upstream `ports.KubeletPort`).
const KUBELET_PORT: u16 = 10250;
/// How long finding a node's address may take.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);
/// Annotation that names the container meant when none is.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// How this server reaches kubelets.
#[derive(Clone)]
pub struct KubeletAccess {
    /// Client certificate and the CA of kubelets' serving certificates.
    pub tls: Arc<rustls::ClientConfig>,
    /// Which of a node's addresses to use (`--kubelet-preferred-address-types`).
    pub preferred_address_types: Vec<String>,
}

impl KubeletAccess {
    /// The kubelet of a node.
    ///
    /// # Errors
    /// 404 when the node does not exist, 500 when it has no usable address.
    pub async fn kubelet(&self, objects: &Objects, node_name: &str) -> Result<Backend, ApiError> {
        let node = objects.get("", "nodes", "", node_name).await?;
        let addresses = get(&node, &["status", "addresses"])
            .and_then(Value::as_array)
            .map(Vec::as_slice)
            .unwrap_or_default();
        let of_type = |kind: &str| {
            addresses
                .iter()
                .find(|a| get_str(a, &["type"]) == Some(kind))
                .and_then(|a| get_str(a, &["address"]))
        };
        let host = self
            .preferred_address_types
            .iter()
            .find_map(|kind| of_type(kind))
            .ok_or_else(|| {
                ApiError::internal(format!(
                    "no preferred addresses found; known addresses: {}",
                    serde_json::to_string(addresses).unwrap_or_default()
                ))
            })?;
        let port = get(
            &node,
            &["status", "daemonEndpoints", "kubeletEndpoint", "Port"],
        )
        .and_then(Value::as_u64);
        let port = port
            .and_then(|p| u16::try_from(p).ok())
            .filter(|p| *p != 0)
            .unwrap_or(KUBELET_PORT);
        Ok(Backend {
            host: host.to_owned(),
            port,
            tls: Some(self.tls.clone()),
            server_name: None,
        })
    }
}

/// The container that a request means: the one it names, or the only (or default) one.
///
/// # Errors
/// 400, worded as upstream does, when none can be told or the named one is not in the pod.
pub fn container(pod: &Value, asked: Option<&str>) -> Result<String, ApiError> {
    let names = |list: &str| -> Vec<String> {
        let containers = get(pod, &["spec", list]).and_then(Value::as_array);
        containers
            .into_iter()
            .flatten()
            .filter_map(|c| get_str(c, &["name"]))
            .map(str::to_owned)
            .collect()
    };
    let (regular, init, ephemeral) = (
        names("containers"),
        names("initContainers"),
        names("ephemeralContainers"),
    );
    if let Some(asked) = asked.filter(|name| !name.is_empty()) {
        let known = regular
            .iter()
            .chain(&init)
            .chain(&ephemeral)
            .any(|name| name == asked);
        return if known {
            Ok(asked.to_owned())
        } else {
            Err(ApiError::bad_request(format!(
                "container {asked} is not valid for pod {}",
                name(pod)
            )))
        };
    }
    if let Some(default) = get_str(pod, &["metadata", "annotations", DEFAULT_CONTAINER]) {
        if regular
            .iter()
            .chain(&init)
            .chain(&ephemeral)
            .any(|name| name == default)
        {
            return Ok(default.to_owned());
        }
    }
    match regular.as_slice() {
        [only] => Ok(only.clone()),
        [] => Err(ApiError::bad_request(format!(
            "a container name must be specified for pod {}",
            name(pod)
        ))),
        _ => {
            let mut message = format!(
                "a container name must be specified for pod {}, choose one of: [{}]",
                name(pod),
                regular.join(" ")
            );
            if !init.is_empty() {
                message += &format!(" or one of the init containers: [{}]", init.join(" "));
            }
            if !ephemeral.is_empty() {
                message += &format!(
                    " or one of the ephemeral containers: [{}]",
                    ephemeral.join(" ")
                );
            }
            Err(ApiError::bad_request(message))
        }
    }
}

/// The kubelet path for exec or attach (`verb`) in a container.
pub fn session_path(verb: &str, pod: &Value, container: &str, query: &Query) -> String {
    let mut parameters = Vec::new();
    for (ours, theirs) in [
        ("stdin", "input"),
        ("stdout", "output"),
        ("stderr", "error"),
        ("tty", "tty"),
    ] {
        if query.flag(ours) {
            parameters.push(format!("{theirs}=1"));
        }
    }
    parameters.extend(
        query
            .all("command")
            .map(|word| format!("command={}", escape(word))),
    );
    with_query(
        format!(
            "/{verb}/{}/{}/{}",
            segment(namespace(pod)),
            segment(name(pod)),
            segment(container)
        ),
        &parameters,
    )
}

/// The kubelet path for port-forward.
pub fn port_forward_path(pod: &Value, query: &Query) -> String {
    let parameters: Vec<String> = query
        .all("ports")
        .map(|port| format!("port={}", escape(port)))
        .collect();
    with_query(
        format!(
            "/portForward/{}/{}",
            segment(namespace(pod)),
            segment(name(pod))
        ),
        &parameters,
    )
}

/// The kubelet path for a container's log.
pub fn log_path(pod: &Value, container: &str, query: &Query) -> String {
    let passed = [
        "follow",
        "previous",
        "timestamps",
        "sinceSeconds",
        "sinceTime",
        "tailLines",
        "limitBytes",
        "stream",
    ];
    let parameters: Vec<String> = passed
        .iter()
        .filter_map(|key| Some(format!("{key}={}", escape(query.get(key)?))))
        .collect();
    with_query(
        format!(
            "/containerLogs/{}/{}/{}",
            segment(namespace(pod)),
            segment(name(pod)),
            segment(container)
        ),
        &parameters,
    )
}

fn with_query(path: String, parameters: &[String]) -> String {
    if parameters.is_empty() {
        path
    } else {
        format!("{path}?{}", parameters.join("&"))
    }
}

/// Percent-encodes a query value.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                escaped.push(byte as char)
            }
            _ => escaped += &format!("%{byte:02X}"),
        }
    }
    escaped
}

fn segment(text: &str) -> String {
    escape(text)
}

/// `[scheme:]name[:port]`, as the proxy subresources of pods and services have it in place of the name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyName {
    /// TLS towards the backend.
    pub https: bool,
    /// Name of the object.
    pub name: String,
    /// Port number or name; empty when not given.
    pub port: String,
}

impl ProxyName {
    /// Upstream `utilnet.SplitSchemeNamePort`.
    ///
    /// # Errors
    /// 400 when the text is not of that form.
    pub fn parse(text: &str, kind: &str) -> Result<Self, ApiError> {
        let parts: Vec<&str> = text.split(':').collect();
        let (scheme, name, port) = match parts.as_slice() {
            [name] => ("", *name, ""),
            [name, port] => ("", *name, *port),
            [scheme, name, port] => (*scheme, *name, *port),
            _ => ("?", "", ""),
        };
        if name.is_empty() || !matches!(scheme, "" | "http" | "https") {
            return Err(ApiError::bad_request(format!(
                "invalid {kind} request {text:?}"
            )));
        }
        Ok(ProxyName {
            https: scheme == "https",
            name: name.to_owned(),
            port: port.to_owned(),
        })
    }
}

/// Where the proxy subresource of a pod leads: its address and the port asked for, or its first one.
///
/// # Errors
/// 400 when the pod has no address yet or the port cannot be told; also for addresses that a proxy must not reach.
pub fn pod_backend(
    pod: &Value,
    asked: &ProxyName,
    tls: &Arc<rustls::ClientConfig>,
) -> Result<Backend, ApiError> {
    let containers = get(pod, &["spec", "containers"]).and_then(Value::as_array);
    let first = containers.into_iter().flatten().find_map(|c| {
        get(c, &["ports", "0", "containerPort"])
            .or_else(|| c.get("ports")?.get(0)?.get("containerPort"))
    });
    let port = if asked.port.is_empty() {
        first
            .and_then(Value::as_u64)
            .and_then(|p| u16::try_from(p).ok())
            .unwrap_or(if asked.https { 443 } else { 80 })
    } else {
        let bad = || {
            ApiError::bad_request(format!(
                "invalid port {:?} for pod {}",
                asked.port,
                name(pod)
            ))
        };
        asked.port.parse().map_err(|_| bad())?
    };
    let ip = get_str(pod, &["status", "podIP"]).unwrap_or_default();
    let host = proxyable(ip).ok_or_else(|| ApiError::bad_request("address not allowed"))?;
    Ok(Backend {
        host,
        port,
        tls: asked.https.then(|| tls.clone()),
        server_name: None,
    })
}

/// Where the proxy subresource of a node leads: to its kubelet, with this server's credentials, or to another port of
/// the node, without them: whoever may ask for that must not act there as this server does.
///
/// # Errors
/// 400 for a port that is none.
pub fn node_backend(
    kubelet: Backend,
    asked: &ProxyName,
    tls: &Arc<rustls::ClientConfig>,
) -> Result<Backend, ApiError> {
    if asked.port.is_empty() {
        return Ok(kubelet);
    }
    let port: u16 = asked
        .port
        .parse()
        .map_err(|_| ApiError::bad_request(format!("invalid node port {:?}", asked.port)))?;
    if port == kubelet.port {
        return Ok(kubelet);
    }
    Ok(Backend {
        host: kubelet.host,
        port,
        tls: asked.https.then(|| tls.clone()),
        server_name: None,
    })
}

/// Refuses a node's host that is, or stands for, an address that a proxy must not reach (upstream
/// `proxyutil.IsProxyableHostname`).
///
/// # Errors
/// 400 for such a host, and for a name without an address.
pub async fn check_host(host: &str) -> Result<(), ApiError> {
    let refused = || ApiError::bad_request("address not allowed");
    if let Ok(address) = host.parse::<IpAddr>() {
        return is_proxyable(address).then_some(()).ok_or_else(refused);
    }
    let found = tokio::time::timeout(LOOKUP_TIMEOUT, tokio::net::lookup_host((host, 0))).await;
    let mut addresses = match found {
        Ok(Ok(addresses)) => addresses.peekable(),
        Ok(Err(error)) => return Err(ApiError::bad_request(format!("lookup {host}: {error}"))),
        Err(_) => return Err(ApiError::bad_request(format!("lookup {host}: i/o timeout"))),
    };
    if addresses.peek().is_none() || !addresses.all(|found| is_proxyable(found.ip())) {
        return Err(refused());
    }
    Ok(())
}

fn proxyable(ip: &str) -> Option<String> {
    is_proxyable(ip.parse().ok()?).then(|| ip.to_owned())
}

/// Upstream `proxyutil.IsProxyableIP`: loopback, link-local and other special addresses would lead back into this
/// machine, also when they are written as IPv6.
fn is_proxyable(address: IpAddr) -> bool {
    let address = address.to_canonical();
    let local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !address.is_loopback() && !address.is_multicast() && !address.is_unspecified() && !local
}

/// The name of a service's port by its number; empty for one without.
pub fn service_port_name(service: &Value, number: u16) -> Option<String> {
    let ports = get(service, &["spec", "ports"]).and_then(Value::as_array);
    let port = ports
        .into_iter()
        .flatten()
        .find(|port| get(port, &["port"]).and_then(Value::as_u64) == Some(u64::from(number)))?;
    Some(get_str(port, &["name"]).unwrap_or_default().to_owned())
}

/// Addresses and ports of a service's endpoints that are ready, for one of its ports.
///
/// # Errors
/// When the slices cannot be read.
pub async fn ready_endpoints(
    objects: &Objects,
    namespace: &str,
    service: &str,
    port_name: &str,
) -> Result<Vec<(String, u16)>, ApiError> {
    let slices = GroupResource::new("discovery.k8s.io", "endpointslices");
    let mut candidates = Vec::new();
    for slice in objects.0.list(&slices, Some(namespace)).await? {
        if get_str(
            &slice,
            &["metadata", "labels", "kubernetes.io/service-name"],
        ) != Some(service)
        {
            continue;
        }
        let list = |key: &str| {
            slice
                .get(key)
                .and_then(Value::as_array)
                .map(Vec::as_slice)
                .unwrap_or_default()
        };
        let port = list("ports")
            .iter()
            .find(|p| get_str(p, &["name"]).unwrap_or_default() == port_name);
        let Some(port) = port
            .and_then(|p| get(p, &["port"]))
            .and_then(Value::as_u64)
            .and_then(|p| u16::try_from(p).ok())
        else {
            continue;
        };
        for endpoint in list("endpoints") {
            let ready = get(endpoint, &["conditions", "ready"])
                .and_then(Value::as_bool)
                .unwrap_or(true);
            let address = endpoint
                .get("addresses")
                .and_then(|a| a.get(0))
                .and_then(Value::as_str)
                .and_then(proxyable);
            candidates.extend(address.filter(|_| ready).map(|address| (address, port)));
        }
    }
    Ok(candidates)
}

/// Where the proxy subresource of a service leads: a ready endpoint of the port asked for.
///
/// # Errors
/// 404 for an unknown service, 503 without endpoints.
pub async fn service_backend(
    objects: &Objects,
    namespace: &str,
    asked: &ProxyName,
    tls: &Arc<rustls::ClientConfig>,
    pick: u64,
) -> Result<Backend, ApiError> {
    let service = objects.get("", "services", namespace, &asked.name).await?;
    let ports = get(&service, &["spec", "ports"])
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default();
    let matches = |port: &&Value| {
        let named = get_str(port, &["name"]).unwrap_or_default();
        let number = get(port, &["port"])
            .and_then(Value::as_u64)
            .unwrap_or_default();
        asked.port.is_empty() && ports.len() == 1
            || named == asked.port
            || number.to_string() == asked.port
    };
    let none = || {
        ApiError::service_unavailable(format!(
            "no endpoints available for service {:?}",
            asked.name
        ))
    };
    let port_name = ports
        .iter()
        .find(matches)
        .map(|p| get_str(p, &["name"]).unwrap_or_default().to_owned());
    let port_name = port_name.ok_or_else(|| {
        ApiError::service_unavailable(format!(
            "no service port {:?} found for service {:?}",
            asked.port, asked.name
        ))
    })?;

    let candidates = ready_endpoints(objects, namespace, &asked.name, &port_name).await?;
    let index = usize::try_from(pick % candidates.len().max(1) as u64).unwrap_or_default();
    let (host, port) = candidates.into_iter().nth(index).ok_or_else(none)?;
    Ok(Backend {
        host,
        port,
        tls: asked.https.then(|| tls.clone()),
        server_name: None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_container_meant_is_found_or_asked_for() {
        let pod = |containers: &[&str], default: Option<&str>| {
            let list: Vec<Value> = containers.iter().map(|c| json!({ "name": c })).collect();
            let mut pod = json!({"metadata": {"name": "p", "namespace": "d"}, "spec": {"containers": list, "initContainers": [{"name": "i"}]}});
            if let Some(default) = default {
                pod["metadata"]["annotations"] = json!({ DEFAULT_CONTAINER: default });
            }
            pod
        };
        for (pod, asked, want) in [
            (pod(&["a"], None), None, "a"),
            (pod(&["a", "b"], None), Some("b"), "b"),
            (pod(&["a", "b"], None), Some("i"), "i"),
            (pod(&["a", "b"], Some("b")), None, "b"),
            (
                pod(&["a", "b"], None),
                None,
                "a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [i]",
            ),
            (
                pod(&["a"], None),
                Some("x"),
                "container x is not valid for pod p",
            ),
        ] {
            let got = container(&pod, asked).unwrap_or_else(|error| error.to_string());
            assert_eq!(got, want);
        }
    }

    #[test]
    fn proxy_names_are_split() {
        let parsed = |text| {
            ProxyName::parse(text, "pod")
                .map(|p| (p.https, p.name, p.port))
                .ok()
        };
        let of = |https, name: &str, port: &str| Some((https, name.to_owned(), port.to_owned()));
        assert_eq!(parsed("web"), of(false, "web", ""));
        assert_eq!(parsed("web:80"), of(false, "web", "80"));
        assert_eq!(parsed("https:web:"), of(true, "web", ""));
        assert_eq!(parsed("ftp:web:21"), None);
        assert_eq!(parsed(":80"), None);
    }

    #[test]
    fn special_addresses_are_not_proxied_to() {
        for (ip, allowed) in [
            ("10.244.0.5", true),
            ("127.0.0.1", false),
            ("169.254.169.254", false),
            ("::1", false),
            ("fe80::1", false),
            ("0.0.0.0", false),
            ("::ffff:10.244.0.5", true),
            ("::ffff:127.0.0.1", false),
            ("::ffff:169.254.169.254", false),
            ("", false),
        ] {
            assert_eq!(proxyable(ip).is_some(), allowed, "{ip}");
        }
    }

    #[tokio::test]
    async fn a_nodes_host_is_looked_at_behind_its_name() {
        for (host, allowed) in [
            ("192.0.2.7", true),
            ("127.0.0.1", false),
            ("localhost", false),
        ] {
            assert_eq!(check_host(host).await.is_ok(), allowed, "{host}");
        }
    }

    #[test]
    fn only_a_kubelet_sees_the_servers_credentials() {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let of_kubelet = crate::streaming::tls::unchecked_client(&provider).unwrap();
        let unchecked = crate::streaming::tls::unchecked_client(&provider).unwrap();
        for (asked, port, trusted, encrypted) in [
            ("n", 10250, true, true),
            ("n:10250", 10250, true, true),
            ("https:n:10250", 10250, true, true),
            ("n:6443", 6443, false, false),
            ("https:n:6443", 6443, false, true),
        ] {
            let kubelet = Backend {
                host: "192.0.2.7".to_owned(),
                port: 10250,
                tls: Some(of_kubelet.clone()),
                server_name: None,
            };
            let name = ProxyName::parse(asked, "node").unwrap();
            let backend = node_backend(kubelet, &name, &unchecked).unwrap();
            let tls = backend.tls.as_ref();
            assert_eq!(
                (
                    backend.port,
                    tls.is_some_and(|tls| Arc::ptr_eq(tls, &of_kubelet)),
                    tls.is_some()
                ),
                (port, trusted, encrypted),
                "{asked}"
            );
        }
    }

    #[test]
    fn nothing_a_client_says_leaves_its_place_in_the_path() {
        let pod = json!({"metadata": {"name": "p", "namespace": "d"}});
        let query = Query::parse(Some(
            "command=sh&command=-c&command=echo%20%26x%3D1&stdin=true&stdout=true",
        ));
        assert_eq!(
            session_path("exec", &pod, "a/../b", &query),
            "/exec/d/p/a%2F..%2Fb?input=1&output=1&command=sh&command=-c&command=echo%20%26x%3D1"
        );
    }
}
