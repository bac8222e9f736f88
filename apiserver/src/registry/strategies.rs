//! Which resource has which [`Strategy`]: one line for each that is not plain.

use std::sync::Arc;

use super::core::allocator::Allocator;
use super::strategy::Strategy;
use super::{
    apiextensions, apiregistration, apps, batch, certificates, core, discovery, flowcontrol,
    resource,
};

/// What strategies share with the server.
pub struct Settings {
    /// Service addresses and node ports.
    pub services: Arc<Allocator>,
    /// Seconds after which events are forgotten.
    pub event_ttl_seconds: u64,
}

/// The plain strategy: all defaults.
pub struct Plain;

impl Strategy for Plain {}

/// The strategy of a group and resource.
pub fn lookup(group: &str, resource: &str, settings: &Settings) -> Arc<dyn Strategy> {
    match (group, resource) {
        ("", "events") => Arc::new(core::event::Event {
            ttl_seconds: settings.event_ttl_seconds,
        }),
        ("", "limitranges") => Arc::new(core::limit_range::LimitRange),
        ("", "namespaces") => Arc::new(core::namespace::Namespace),
        ("", "nodes") => Arc::new(core::node::Node),
        ("", "persistentvolumeclaims") => Arc::new(core::claim::PersistentVolumeClaim),
        ("", "persistentvolumes") => Arc::new(core::volume::PersistentVolume),
        ("", "pods") => Arc::new(core::pod::Pod),
        ("", "replicationcontrollers") => {
            Arc::new(core::replication_controller::ReplicationController)
        }
        ("", "serviceaccounts") => Arc::new(core::service_account::ServiceAccount),
        ("", "services") => Arc::new(core::service::Service {
            allocator: settings.services.clone(),
        }),
        ("apiextensions.k8s.io", "customresourcedefinitions") => {
            Arc::new(apiextensions::definition::CustomResourceDefinition)
        }
        ("apiregistration.k8s.io", "apiservices") => Arc::new(apiregistration::ApiService),
        ("apps", "daemonsets") => Arc::new(apps::daemon_set::DaemonSet),
        ("apps", "deployments") => Arc::new(apps::deployment::Deployment),
        ("batch", "jobs") => Arc::new(batch::job::Job),
        ("certificates.k8s.io", "certificatesigningrequests") => {
            Arc::new(certificates::SigningRequest)
        }
        ("discovery.k8s.io", "endpointslices") => Arc::new(discovery::EndpointSlice),
        ("flowcontrol.apiserver.k8s.io", "flowschemas") => Arc::new(flowcontrol::FlowSchema),
        ("flowcontrol.apiserver.k8s.io", "prioritylevelconfigurations") => {
            Arc::new(flowcontrol::PriorityLevelConfiguration)
        }
        ("resource.k8s.io", "devicetaintrules") => Arc::new(resource::DeviceTaintRule),
        ("resource.k8s.io", "resourceslices") => Arc::new(resource::ResourceSlice),
        _ => Arc::new(Plain),
    }
}
