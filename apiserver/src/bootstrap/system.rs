//! Namespaces, priority classes and the objects by which the cluster finds its own API server.

use std::net::IpAddr;
use std::sync::Arc;

use keelson_machinery::status::ApiError;
use keelson_machinery::value::{self, Value};
use serde_json::{Map, json};

use super::{Write, find};
use crate::authn::x509::RequestHeaderConfig;
use crate::objects::Objects;
use crate::reader::GroupResource;

/// What the objects of this file say about the cluster.
#[derive(Clone, Debug)]
pub struct ClusterFacts {
    /// `--service-cluster-ip-range`, as given (one or two ranges).
    pub service_cidrs: Vec<String>,
    /// The address of the `kubernetes` Service: the first of the first range.
    pub service_address: IpAddr,
    /// `--advertise-address`: where Pods reach this server. `None`: the `kubernetes` Service gets no endpoint from here.
    pub advertise_address: Option<IpAddr>,
    /// `--secure-port`.
    pub secure_port: u16,
    /// Content of `--client-ca-file`, for extension API servers.
    pub client_ca_pem: Option<String>,
    /// Front-proxy settings, for extension API servers.
    pub request_header: Option<RequestHeaderConfig>,
}

/// The namespaces that are always there.
pub const NAMESPACES: [&str; 4] = ["default", "kube-node-lease", "kube-public", "kube-system"];

/// The priority of Pods that no node works without (`SystemCriticalPriority + 1000`).
pub const NODE_CRITICAL: i64 = 2_000_001_000;
/// The priority of Pods that no cluster works without (`SystemCriticalPriority`).
pub const CLUSTER_CRITICAL: i64 = 2_000_000_000;

/// The missing namespaces.
pub(super) fn namespaces(existing: &[Arc<Value>]) -> Vec<Write> {
    NAMESPACES
        .iter()
        .map(|name| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}))
        .filter(|wanted| find(existing, wanted).is_none())
        .map(|wanted| Write::Create(GroupResource::new("", "namespaces"), wanted))
        .collect()
}

/// Everything else but roles.
pub(super) async fn plan(objects: &Objects, facts: &ClusterFacts) -> Result<Vec<Write>, ApiError> {
    let mut writes = Vec::new();
    for (group, resource, keep, wanted) in wanted(facts) {
        let name = value::str_or_empty(&wanted, &["metadata", "name"]);
        let namespace = value::str_or_empty(&wanted, &["metadata", "namespace"]);
        let at = GroupResource::new(group, resource);
        match objects.find(group, resource, namespace, name).await? {
            None => writes.push(Write::Create(at, wanted)),
            Some(_) if keep == Keep::Stored => {}
            Some(stored) => {
                let merged = overlay(&stored, &wanted);
                if merged != *stored {
                    writes.push(Write::Update(at, merged));
                }
            }
        }
    }
    Ok(writes)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    /// What is stored stays as it is.
    Stored,
    /// The fields named here are set again.
    Ours,
}

fn wanted(facts: &ClusterFacts) -> Vec<(&'static str, &'static str, Keep, Value)> {
    let class = |name: &str, value: i64, description: &str| json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}, "value": value, "description": description});
    let service_family = if facts.service_address.is_ipv4() {
        "IPv4"
    } else {
        "IPv6"
    };
    let mut wanted = vec![
        (
            "scheduling.k8s.io",
            "priorityclasses",
            Keep::Stored,
            class(
                "system-node-critical",
                NODE_CRITICAL,
                "For Pods that their node cannot work without, and that must not move away from it.",
            ),
        ),
        (
            "scheduling.k8s.io",
            "priorityclasses",
            Keep::Stored,
            class(
                "system-cluster-critical",
                CLUSTER_CRITICAL,
                "For Pods that the cluster cannot work without, on whichever node they run.",
            ),
        ),
        (
            "networking.k8s.io",
            "servicecidrs",
            Keep::Stored,
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"}, "spec": {"cidrs": facts.service_cidrs}}),
        ),
        (
            "",
            "services",
            Keep::Ours,
            json!({
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": in_default(json!({"component": "apiserver", "provider": "kubernetes"})),
                "spec": {
                    "clusterIP": facts.service_address,
                    "clusterIPs": [facts.service_address],
                    "internalTrafficPolicy": "Cluster",
                    "ipFamilies": [service_family],
                    "ipFamilyPolicy": "SingleStack",
                    "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": facts.secure_port}],
                    "sessionAffinity": "None",
                    "type": "ClusterIP",
                },
            }),
        ),
        (
            "",
            "configmaps",
            Keep::Ours,
            authentication_config_map(facts),
        ),
    ];
    // A loopback address would lead every Pod to itself; endpoints may not hold one.
    let address = facts
        .advertise_address
        .filter(|address| !address.is_loopback());
    wanted.extend(
        address
            .into_iter()
            .flat_map(|address| endpoints(address, facts.secure_port)),
    );
    wanted
}

fn in_default(labels: Value) -> Value {
    json!({"name": "kubernetes", "namespace": "default", "labels": labels})
}

/// Where the `kubernetes` Service leads. With several servers the last one started wins; sharing the list is for the
/// day when several servers share a store.
fn endpoints(address: IpAddr, port: u16) -> [(&'static str, &'static str, Keep, Value); 2] {
    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    let port = json!({"name": "https", "port": port, "protocol": "TCP"});
    [
        (
            "",
            "endpoints",
            Keep::Ours,
            json!({
                "apiVersion": "v1",
                "kind": "Endpoints",
                "metadata": in_default(json!({"endpointslice.kubernetes.io/skip-mirror": "true"})),
                "subsets": [{"addresses": [{"ip": address}], "ports": [port]}],
            }),
        ),
        (
            "discovery.k8s.io",
            "endpointslices",
            Keep::Ours,
            json!({
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": in_default(json!({"kubernetes.io/service-name": "kubernetes"})),
                "addressType": family,
                "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
                "ports": [port],
            }),
        ),
    ]
}

/// `kube-system/extension-apiserver-authentication`: how extension API servers check who is behind a request.
pub fn authentication_config_map(facts: &ClusterFacts) -> Value {
    let mut data = Map::new();
    if let Some(pem) = &facts.client_ca_pem {
        data.insert("client-ca-file".into(), pem.clone().into());
    }
    if let Some(config) = &facts.request_header {
        let mut list = |key: &str, values: &[String]| {
            data.insert(key.to_owned(), json!(values).to_string().into())
        };
        list("requestheader-allowed-names", &config.allowed_names);
        list(
            "requestheader-extra-headers-prefix",
            &config.extra_header_prefixes,
        );
        list("requestheader-group-headers", &config.group_headers);
        list("requestheader-uid-headers", &config.uid_headers);
        list("requestheader-username-headers", &config.username_headers);
        data.insert(
            "requestheader-client-ca-file".into(),
            config.client_ca_pem.clone().into(),
        );
    }
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system"},
        "data": data,
    })
}

/// `stored` with the fields of `wanted`: objects are merged, everything else is replaced. Fields that defaulting
/// added to the items of a list do not count as a difference.
fn overlay(stored: &Value, wanted: &Value) -> Value {
    match (stored, wanted) {
        (Value::Object(old), Value::Object(new)) => {
            let mut merged = old.clone();
            for (key, wanted) in new {
                let value = old
                    .get(key)
                    .map_or_else(|| wanted.clone(), |old| overlay(old, wanted));
                merged.insert(key.clone(), value);
            }
            Value::Object(merged)
        }
        (Value::Array(old), Value::Array(new)) if old.len() == new.len() => Value::Array(
            old.iter()
                .zip(new)
                .map(|(old, new)| overlay(old, new))
                .collect(),
        ),
        _ => wanted.clone(),
    }
}
