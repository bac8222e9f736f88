//! Which resource has which [`Strategy`]: one line for each that is not plain.

use std::sync::Arc;

use keelson_machinery::value::Value;

use super::core::allocator::Allocator;
use super::defaults::Defaulted;
use super::strategy::Strategy;
use super::{apps, batch, certificates, core, small};

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
        ("", "namespaces") => Arc::new(core::namespace::Namespace),
        ("", "pods") => Arc::new(core::pod::Pod),
        ("", "services") => Arc::new(core::service::Service {
            allocator: settings.services.clone(),
        }),
        ("", "nodes") => Arc::new(core::more::Node),
        ("", "persistentvolumeclaims") => Arc::new(core::more::Claim),
        ("", "persistentvolumes") => Arc::new(core::more::Volume),
        ("", "secrets") => Arc::new(core::more::Secret),
        ("batch", "jobs") => Arc::new(batch::Job),
        ("certificates.k8s.io", "certificatesigningrequests") => {
            Arc::new(certificates::SigningRequest)
        }
        _ => match defaults(group, resource) {
            Some(defaults) => Arc::new(Defaulted(defaults)),
            None => Arc::new(Plain),
        },
    }
}

/// The defaulting function of kinds that are plain but for it.
fn defaults(group: &str, resource: &str) -> Option<fn(&mut Value)> {
    Some(match (group, resource) {
        ("", "endpoints") => core::more::endpoints,
        ("", "limitranges") => core::more::limit_range,
        ("", "podtemplates") => core::more::pod_template,
        ("", "replicationcontrollers") => core::more::replication_controller,
        (
            "admissionregistration.k8s.io",
            "validatingwebhookconfigurations" | "mutatingwebhookconfigurations",
        ) => small::webhooks,
        (
            "admissionregistration.k8s.io",
            "validatingadmissionpolicies" | "mutatingadmissionpolicies",
        ) => small::admission_policy,
        (
            "admissionregistration.k8s.io",
            "validatingadmissionpolicybindings" | "mutatingadmissionpolicybindings",
        ) => small::admission_policy_binding,
        ("apps", "daemonsets") => apps::daemon_set,
        ("apps", "deployments") => apps::deployment,
        ("apps", "replicasets") => apps::replica_set,
        ("apps", "statefulsets") => apps::stateful_set,
        ("autoscaling", "horizontalpodautoscalers") => small::autoscaler,
        ("batch", "cronjobs") => batch::cron_job,
        ("discovery.k8s.io", "endpointslices") => small::endpoint_slice,
        ("networking.k8s.io", "ingressclasses") => small::ingress_class,
        ("networking.k8s.io", "networkpolicies") => small::network_policy,
        ("rbac.authorization.k8s.io", "clusterrolebindings" | "rolebindings") => small::binding,
        ("scheduling.k8s.io", "priorityclasses") => small::priority_class,
        ("storage.k8s.io", "csidrivers") => small::csi_driver,
        ("storage.k8s.io", "storageclasses") => small::storage_class,
        _ => return None,
    })
}
