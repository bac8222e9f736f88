//! Who answers for a Service: EndpointSlices, and the older Endpoints object (upstream `endpointslice` and `endpoint`).
//!
//! Two controllers look at the same things: the Services with a selector, and the pods that it selects. The third, [`mirror`],
//! makes slices of the Endpoints that people write for Services without one.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use keelson_runtime::ObjectKey;
use keelson_runtime::informer::{Event, Informer};
use keelson_runtime::workqueue::WorkQueue;

use self::slices::{MANAGED_BY, SERVICE_NAME};
use crate::common::pods::{is_deleting, is_ready, is_terminal, node_name};
use crate::common::{Labels, labels, namespace};

pub mod legacy;
pub mod mirror;
pub mod slices;
mod unseen;

/// On the objects of a headless Service.
pub const HEADLESS: &str = "service.kubernetes.io/headless";

/// What a slice was made of, a Service or the Endpoints of that name; none when another than `manager` made it.
fn made_of(slice: &EndpointSlice, manager: &str) -> Option<ObjectKey> {
    let labels = labels(&slice.metadata);
    (labels.get(MANAGED_BY).map(String::as_str) == Some(manager))
        .then(|| labels.get(SERVICE_NAME))
        .flatten()
        .map(|name| ObjectKey::new(namespace(&slice.metadata), name))
}

/// The selector of a Service; none when it has none, or is only a name for something outside.
fn selector(service: &Service) -> Option<&Labels> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    spec.selector.as_ref()
}

fn selects(service: &Service, labels: &Labels) -> bool {
    selector(service)
        .is_some_and(|s| !s.is_empty() && s.iter().all(|(k, v)| labels.get(k) == Some(v)))
}

fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None")
}

fn publishes_not_ready(service: &Service) -> bool {
    service
        .spec
        .as_ref()
        .and_then(|s| s.publish_not_ready_addresses)
        .unwrap_or(false)
}

/// The address families of a Service, the primary one first.
fn families(service: &Service) -> Vec<&'static str> {
    let spec = service.spec.as_ref();
    let mut families: Vec<_> = spec
        .and_then(|s| s.ip_families.as_ref())
        .into_iter()
        .flatten()
        .filter_map(|f| match f.as_str() {
            "IPv4" => Some("IPv4"),
            "IPv6" => Some("IPv6"),
            _ => None,
        })
        .collect();
    if families.is_empty() {
        let address = spec
            .and_then(|s| s.cluster_ip.as_deref())
            .and_then(|ip| ip.parse::<IpAddr>().ok());
        families.push(match address {
            Some(IpAddr::V6(_)) => "IPv6",
            _ => "IPv4",
        });
    }
    families
}

/// The pod's addresses of one family.
fn addresses(pod: &Pod, family: &str) -> Vec<String> {
    let Some(status) = &pod.status else {
        return Vec::new();
    };
    let all = status
        .pod_ips
        .iter()
        .flatten()
        .map(|ip| ip.ip.as_str())
        .chain(
            status
                .pod_ip
                .as_deref()
                .filter(|_| status.pod_ips.as_ref().is_none_or(|ips| ips.is_empty())),
        );
    all.filter(|ip| {
        ip.parse::<IpAddr>()
            .is_ok_and(|ip| ip.is_ipv6() == (family == "IPv6"))
    })
    .map(str::to_owned)
    .collect()
}

/// Whether a pod can be an endpoint at all (`ShouldPodBeInEndpoints`).
fn is_endpoint(pod: &Pod, with_terminating: bool) -> bool {
    let has_address = pod
        .status
        .as_ref()
        .is_some_and(|s| s.pod_ip.as_ref().is_some_and(|ip| !ip.is_empty()));
    !is_terminal(pod) && has_address && (with_terminating || !is_deleting(pod))
}

/// The port of a pod that a Service's port means (`FindPort`); none when the pod has no port of that name.
fn find_port(pod: &Pod, port: &ServicePort) -> Option<i32> {
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    match port.target_port.as_ref() {
        None | Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(wanted)) => {
            let spec = pod.spec.as_ref()?;
            let sidecars = spec
                .init_containers
                .iter()
                .flatten()
                .filter(|c| c.restart_policy.as_deref() == Some("Always"));
            let of = |container: &Container| {
                container
                    .ports
                    .iter()
                    .flatten()
                    .find(|p| {
                        p.name.as_deref() == Some(wanted)
                            && p.protocol.as_deref().unwrap_or("TCP") == protocol
                    })
                    .map(|p| p.container_port)
            };
            spec.containers.iter().chain(sidecars).find_map(of)
        }
    }
}

/// A port as both objects name it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Port {
    name: String,
    port: i32,
    protocol: String,
    app_protocol: Option<String>,
}

/// The Service's ports on this pod.
fn ports(service: &Service, pod: &Pod) -> Vec<Port> {
    let mut ports: Vec<_> = service
        .spec
        .iter()
        .flat_map(|s| s.ports.iter().flatten())
        .filter_map(|p| {
            Some(Port {
                name: p.name.clone().unwrap_or_default(),
                port: find_port(pod, p)?,
                protocol: p.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                app_protocol: p.app_protocol.clone(),
            })
        })
        .collect();
    ports.sort();
    ports
}

fn pod_reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".to_owned()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..Default::default()
    }
}

/// The name a pod of a headless Service has in DNS.
fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let named = spec.hostname.as_ref().filter(|h| !h.is_empty())?;
    (spec.subdomain == service.metadata.name
        && pod.metadata.namespace == service.metadata.namespace)
        .then(|| named.clone())
}

/// The labels of a Service that its endpoint objects take over.
fn inherited_labels(service: &Service) -> BTreeMap<String, String> {
    let mut taken = labels(&service.metadata).clone();
    taken.remove(HEADLESS);
    taken.remove("kubernetes.io/service-name");
    taken.remove("endpointslice.kubernetes.io/managed-by");
    taken.remove("endpoints.kubernetes.io/managed-by");
    if is_headless(service) {
        taken.insert(HEADLESS.to_owned(), String::new());
    }
    taken
}

/// What of a pod matters here: changes of anything else wake nobody.
fn relevant(pod: &Pod) -> impl PartialEq + use<> {
    let spec = pod.spec.as_ref();
    (
        (
            labels(&pod.metadata).clone(),
            pod.metadata.uid.clone(),
            node_name(pod).to_owned(),
        ),
        (is_ready(pod), is_deleting(pod), is_terminal(pod)),
        pod.status
            .as_ref()
            .map(|s| (s.pod_ip.clone(), s.pod_ips.clone())),
        spec.map(|s| (s.hostname.clone(), s.subdomain.clone())),
    )
}

/// Adds the Services that a pod belongs to, or belonged to, at each change that matters.
fn follow_pods(
    pods: &Informer<Pod>,
    services: &Informer<Service>,
    queue: &Arc<WorkQueue<ObjectKey>>,
) {
    let (services, queue) = (services.clone(), queue.clone());
    pods.on_event(move |event| {
        let old = match event {
            Event::Updated { old, new } if relevant(old) == relevant(new) => return,
            Event::Updated { old, .. } => Some(old),
            _ => None,
        };
        let pod = event.object();
        for service in services.store().list_namespace(namespace(&pod.metadata)) {
            if selects(&service, labels(&pod.metadata))
                || old.is_some_and(|old| selects(&service, labels(&old.metadata)))
            {
                queue.add(ObjectKey::of(&service.metadata));
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn named_ports_are_looked_up_in_the_pod() {
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 8080},
                {"name": "dns", "containerPort": 53, "protocol": "UDP"}]}],
            "initContainers": [{"name": "s", "restartPolicy": "Always",
                "ports": [{"name": "side", "containerPort": 9000}]}]}}))
        .unwrap();
        for (port, want) in [
            (json!({"port": 80}), Some(80)),
            (json!({"port": 80, "targetPort": 81}), Some(81)),
            (json!({"port": 80, "targetPort": "web"}), Some(8080)),
            (json!({"port": 80, "targetPort": "side"}), Some(9000)),
            (json!({"port": 80, "targetPort": "dns"}), None),
            (
                json!({"port": 80, "targetPort": "dns", "protocol": "UDP"}),
                Some(53),
            ),
            (json!({"port": 80, "targetPort": "none"}), None),
        ] {
            let port: ServicePort = serde_json::from_value(port).unwrap();
            assert_eq!(find_port(&pod, &port), want, "{port:?}");
        }
    }
}
