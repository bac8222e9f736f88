//! What the cluster's DNS knows: Services, their endpoints, and namespaces, indexed by the names that are asked for.
//!
//! Kept up to date one object at a time; the cost of a change does not depend on the size of the cluster.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;

/// Label that ties an EndpointSlice to its Service.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// A Service in the view of DNS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceEntry {
    /// Reached by its own addresses.
    ClusterIp {
        /// One or two addresses (dual stack).
        addresses: Vec<IpAddr>,
        /// Named or unnamed ports.
        ports: Vec<Port>,
    },
    /// Reached by its endpoints' addresses.
    Headless {
        /// Endpoints count before they are ready.
        publish_not_ready: bool,
    },
    /// An alias of a name outside.
    ExternalName(String),
}

/// A port that SRV records tell of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Name; empty when the port has none (then it has no SRV name of its own).
    pub name: String,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// Port number.
    pub number: u16,
}

/// One address behind a headless Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address.
    pub address: IpAddr,
    /// First label of its name: the pod's hostname, or the address with dashes.
    pub label: String,
    /// Whether it takes traffic.
    pub ready: bool,
    /// Ports of its slice.
    pub ports: Vec<Port>,
}

/// All names below the cluster domain.
#[derive(Debug, Default)]
pub struct Zone {
    services: HashMap<String, ServiceEntry>,
    /// Per Service, per slice name.
    endpoints: HashMap<String, BTreeMap<String, Vec<Endpoint>>>,
    namespaces: HashSet<String>,
    /// Which Services claim an address as their own.
    by_address: HashMap<IpAddr, Vec<String>>,
    /// Which Services have an endpoint with this address.
    by_endpoint: HashMap<IpAddr, Vec<String>>,
}

/// `namespace/name`, lower case as all names in the API are.
fn key(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

impl Zone {
    /// The Service, if it exists.
    pub fn service(&self, namespace: &str, name: &str) -> Option<&ServiceEntry> {
        self.services.get(&key(namespace, name))
    }

    /// The endpoints of a Service that may be told of.
    pub fn endpoints(
        &self,
        namespace: &str,
        name: &str,
        publish_not_ready: bool,
    ) -> impl Iterator<Item = &Endpoint> {
        let slices = self.endpoints.get(&key(namespace, name));
        slices
            .into_iter()
            .flat_map(|slices| slices.values().flatten())
            .filter(move |endpoint| endpoint.ready || publish_not_ready)
    }

    /// Whether the namespace exists.
    pub fn has_namespace(&self, name: &str) -> bool {
        self.namespaces.contains(name)
    }

    /// Names for an address, without the `svc.<domain>` ending: `name.namespace` of Services, and
    /// `label.name.namespace` of endpoints of headless Services.
    pub fn names_of(&self, address: IpAddr) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for key in self.by_address.get(&address).into_iter().flatten() {
            if let Some((namespace, name)) = key.split_once('/') {
                names.push(format!("{name}.{namespace}"));
            }
        }
        if !names.is_empty() {
            return names;
        }
        for key in self.by_endpoint.get(&address).into_iter().flatten() {
            let (Some(ServiceEntry::Headless { publish_not_ready }), Some((namespace, name))) =
                (self.services.get(key), key.split_once('/'))
            else {
                continue;
            };
            let labels = self
                .endpoints(namespace, name, *publish_not_ready)
                .filter(|e| e.address == address)
                .map(|e| &e.label);
            names.extend(labels.map(|label| format!("{label}.{name}.{namespace}")));
        }
        names.sort();
        names.dedup();
        names
    }

    /// Takes in a Service's present state.
    pub fn apply_service(&mut self, service: &Service) {
        let (Some(namespace), Some(name)) = (&service.metadata.namespace, &service.metadata.name)
        else {
            return;
        };
        self.delete_service(namespace, name);
        let Some(entry) = service_entry(service) else {
            return;
        };
        let key = key(namespace, name);
        if let ServiceEntry::ClusterIp { addresses, .. } = &entry {
            for address in addresses {
                self.by_address
                    .entry(*address)
                    .or_default()
                    .push(key.clone());
            }
        }
        self.services.insert(key, entry);
    }

    /// Forgets a Service.
    pub fn delete_service(&mut self, namespace: &str, name: &str) {
        let key = key(namespace, name);
        if let Some(ServiceEntry::ClusterIp { addresses, .. }) = self.services.remove(&key) {
            for address in addresses {
                unlink(&mut self.by_address, address, &key);
            }
        }
    }

    /// Takes in a slice's present state.
    pub fn apply_slice(&mut self, slice: &EndpointSlice) {
        let (Some(namespace), Some(slice_name)) = (&slice.metadata.namespace, &slice.metadata.name)
        else {
            return;
        };
        let Some(service) = slice
            .metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get(SERVICE_NAME_LABEL))
        else {
            return;
        };
        self.delete_slice(namespace, service, slice_name);
        let endpoints = slice_endpoints(slice);
        let key = key(namespace, service);
        for endpoint in &endpoints {
            let keys = self.by_endpoint.entry(endpoint.address).or_default();
            keys.push(key.clone());
        }
        self.endpoints
            .entry(key)
            .or_default()
            .insert(slice_name.clone(), endpoints);
    }

    /// Forgets a slice. `service` is the value of its service-name label.
    pub fn delete_slice(&mut self, namespace: &str, service: &str, slice_name: &str) {
        let key = key(namespace, service);
        let Some(slices) = self.endpoints.get_mut(&key) else {
            return;
        };
        let removed = slices.remove(slice_name).unwrap_or_default();
        if slices.is_empty() {
            self.endpoints.remove(&key);
        }
        for endpoint in removed {
            unlink(&mut self.by_endpoint, endpoint.address, &key);
        }
    }

    /// Forgets a slice of which only the object is known.
    pub fn delete_slice_object(&mut self, slice: &EndpointSlice) {
        let service = slice
            .metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get(SERVICE_NAME_LABEL));
        if let (Some(namespace), Some(service), Some(name)) =
            (&slice.metadata.namespace, service, &slice.metadata.name)
        {
            self.delete_slice(namespace, service, name);
        }
    }

    /// Takes in a namespace.
    pub fn apply_namespace(&mut self, namespace: &Namespace) {
        self.namespaces.extend(namespace.metadata.name.clone());
    }

    /// Forgets all Services.
    pub fn clear_services(&mut self) {
        self.services.clear();
        self.by_address.clear();
    }

    /// Forgets all endpoints.
    pub fn clear_slices(&mut self) {
        self.endpoints.clear();
        self.by_endpoint.clear();
    }

    /// Forgets all namespaces.
    pub fn clear_namespaces(&mut self) {
        self.namespaces.clear();
    }

    /// Forgets a namespace.
    pub fn delete_namespace(&mut self, name: &str) {
        self.namespaces.remove(name);
    }
}

/// Removes one occurrence of `key` below `address`.
fn unlink(index: &mut HashMap<IpAddr, Vec<String>>, address: IpAddr, key: &str) {
    if let Some(keys) = index.get_mut(&address) {
        if let Some(at) = keys.iter().position(|k| k == key) {
            keys.swap_remove(at);
        }
        if keys.is_empty() {
            index.remove(&address);
        }
    }
}

fn service_entry(service: &Service) -> Option<ServiceEntry> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return spec.external_name.clone().map(ServiceEntry::ExternalName);
    }
    let primary = spec.cluster_ip.as_deref().unwrap_or_default();
    if primary == "None" {
        return Some(ServiceEntry::Headless {
            publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
        });
    }
    let all = spec
        .cluster_ips
        .clone()
        .unwrap_or_else(|| vec![primary.to_owned()]);
    let addresses: Vec<IpAddr> = all.iter().filter_map(|ip| ip.parse().ok()).collect();
    // No address yet: not a name yet.
    if addresses.is_empty() {
        return None;
    }
    let ports = spec.ports.iter().flatten();
    let ports = ports
        .filter_map(|port| make_port(port.name.as_deref(), port.protocol.as_deref(), port.port))
        .collect();
    Some(ServiceEntry::ClusterIp { addresses, ports })
}

fn slice_endpoints(slice: &EndpointSlice) -> Vec<Endpoint> {
    let ports = slice.ports.iter().flatten();
    let ports: Vec<Port> = ports
        .filter_map(|port| make_port(port.name.as_deref(), port.protocol.as_deref(), port.port?))
        .collect();
    let mut endpoints = Vec::new();
    for endpoint in slice.endpoints.iter().flatten() {
        // Unset means ready, as the API says.
        let ready = endpoint
            .conditions
            .as_ref()
            .and_then(|c| c.ready)
            .unwrap_or(true);
        for address in &endpoint.addresses {
            let Ok(address) = address.parse::<IpAddr>() else {
                continue;
            };
            let label = endpoint
                .hostname
                .clone()
                .filter(|h| !h.is_empty())
                .unwrap_or_else(|| dashed(address));
            endpoints.push(Endpoint {
                address,
                label,
                ready,
                ports: ports.clone(),
            });
        }
    }
    endpoints
}

fn make_port(name: Option<&str>, protocol: Option<&str>, number: i32) -> Option<Port> {
    let number = u16::try_from(number).ok()?;
    Some(Port {
        name: name.unwrap_or_default().to_owned(),
        protocol: protocol.unwrap_or("TCP").to_ascii_lowercase(),
        number,
    })
}

/// An address as a DNS label: `10-0-0-1`, `fd00--1`.
pub fn dashed(address: IpAddr) -> String {
    address.to_string().replace(['.', ':'], "-")
}

/// The address that [`dashed`] made.
pub fn undashed(label: &str) -> Option<IpAddr> {
    label
        .replace('-', ".")
        .parse()
        .ok()
        .or_else(|| label.replace('-', ":").parse().ok())
}
