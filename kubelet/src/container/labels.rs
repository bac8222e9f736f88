//! The labels and annotations by which the kubelet finds its sandboxes and containers again in the runtime, also
//! after a restart. The names are upstream's, so that either kubelet adopts the other's containers.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod};

use crate::podutil;

/// Label: the pod's name.
pub const POD_NAME: &str = "io.kubernetes.pod.name";
/// Label: the pod's namespace.
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// Label: the pod's uid.
pub const POD_UID: &str = "io.kubernetes.pod.uid";
/// Label: the container's name.
pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// Annotation: [`podutil::container_hash`] at creation.
pub const HASH: &str = "io.kubernetes.container.hash";
/// Annotation: how often the container was restarted before.
pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
/// Annotation: `terminationMessagePath`.
pub const MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
/// Annotation: `terminationMessagePolicy`.
pub const MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
/// Annotation: the preStop hook as JSON.
pub const PRE_STOP: &str = "io.kubernetes.container.preStopHandler";
/// Annotation: the ports as JSON.
pub const PORTS: &str = "io.kubernetes.container.ports";
/// Annotation: `deletionGracePeriodSeconds`.
pub const DELETION_GRACE: &str = "io.kubernetes.pod.deletionGracePeriod";
/// Annotation: `terminationGracePeriodSeconds`.
pub const TERMINATION_GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";

/// The labels of a sandbox: the pod's own, and ours.
pub fn sandbox_labels(pod: &Pod) -> BTreeMap<String, String> {
    let mut labels = podutil::map(&pod.metadata.labels);
    labels.extend(identity(pod));
    labels
}

/// The labels of a container.
pub fn container_labels(pod: &Pod, container: &Container) -> BTreeMap<String, String> {
    let mut labels = identity(pod);
    labels.insert(CONTAINER_NAME.to_owned(), container.name.clone());
    labels
}

fn identity(pod: &Pod) -> BTreeMap<String, String> {
    [
        (POD_NAME, podutil::name(pod)),
        (POD_NAMESPACE, podutil::namespace(pod)),
        (POD_UID, podutil::uid(pod)),
    ]
    .into_iter()
    .map(|(k, v)| (k.to_owned(), v.to_owned()))
    .collect()
}

/// The annotations of a container: what is needed to stop and judge it without its pod.
pub fn container_annotations(
    pod: &Pod,
    container: &Container,
    restart_count: u32,
) -> BTreeMap<String, String> {
    let mut a = BTreeMap::new();
    let mut set = |k: &str, v: String| {
        a.insert(k.to_owned(), v);
    };
    set(HASH, podutil::container_hash(container));
    set(RESTART_COUNT, restart_count.to_string());
    set(
        MESSAGE_PATH,
        container
            .termination_message_path
            .clone()
            .unwrap_or_default(),
    );
    set(
        MESSAGE_POLICY,
        container
            .termination_message_policy
            .clone()
            .unwrap_or_default(),
    );
    if let Some(grace) = pod.metadata.deletion_grace_period_seconds {
        set(DELETION_GRACE, grace.to_string());
    }
    if let Some(grace) = podutil::spec(pod).termination_grace_period_seconds {
        set(TERMINATION_GRACE, grace.to_string());
    }
    if let Some(hook) = container
        .lifecycle
        .as_ref()
        .and_then(|l| l.pre_stop.as_ref())
        && let Ok(text) = serde_json::to_string(hook)
    {
        set(PRE_STOP, text);
    }
    if let Some(ports) = container.ports.as_ref().filter(|p| !p.is_empty())
        && let Ok(text) = serde_json::to_string(ports)
    {
        set(PORTS, text);
    }
    a
}

/// What is known of how to stop a container whose pod is not known (any more).
#[derive(Debug, Default)]
pub struct Remembered {
    /// How long it may take.
    pub grace: Option<i64>,
    /// What runs before.
    pub pre_stop: Option<LifecycleHandler>,
}

/// Reads back [`container_annotations`].
pub fn remembered(annotations: &BTreeMap<String, String>) -> Remembered {
    let number = |k: &str| annotations.get(k).and_then(|v| v.parse::<i64>().ok());
    Remembered {
        grace: number(DELETION_GRACE).or_else(|| number(TERMINATION_GRACE)),
        pre_stop: annotations
            .get(PRE_STOP)
            .and_then(|v| serde_json::from_str(v).ok()),
    }
}
