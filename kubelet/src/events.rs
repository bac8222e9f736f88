//! Events about pods and the node.

use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use keelson_machinery::clock::Clock;
use keelson_runtime::events::{EventType, Form, Recorder as Shared};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::podutil;

/// How grave an event is.
pub type Severity = EventType;

/// Emits events; clones share one queue.
#[derive(Clone)]
pub struct Recorder(Shared);

impl Recorder {
    /// A recorder that sends with `client` in the background until `stop`; without a client events are only logged.
    pub fn new(
        client: Option<kube::Client>,
        node_name: &str,
        clock: Clock,
        stop: CancellationToken,
    ) -> Self {
        Recorder(match client {
            Some(c) => Shared::new(c, clock, Form::Core, "kubelet", node_name, stop),
            None => Shared::discard(),
        })
    }

    /// An event about anything.
    pub fn event(
        &self,
        about: ObjectReference,
        severity: Severity,
        reason: &str,
        message: impl Into<String>,
    ) {
        let message = message.into();
        debug!(
            object = %about.name.as_deref().unwrap_or_default(),
            path = %about.field_path.as_deref().unwrap_or_default(),
            ?severity, reason, %message, "event"
        );
        self.0.event(&about, severity, reason, message);
    }

    /// An event about a pod.
    pub fn pod(&self, pod: &Pod, severity: Severity, reason: &str, message: impl Into<String>) {
        self.event(podutil::reference(pod), severity, reason, message);
    }

    /// An event about a container of a pod.
    pub fn container(
        &self,
        pod: &Pod,
        container: &str,
        severity: Severity,
        reason: &str,
        message: impl Into<String>,
    ) {
        let about = podutil::container_reference(pod, container);
        self.event(about, severity, reason, message);
    }

    /// An event about the node. Upstream refers to a node by its name in place of a uid.
    pub fn node(&self, node: &str, severity: Severity, reason: &str, message: impl Into<String>) {
        let about = ObjectReference {
            kind: Some("Node".to_owned()),
            name: Some(node.to_owned()),
            uid: Some(node.to_owned()),
            ..Default::default()
        };
        self.event(about, severity, reason, message);
    }
}
