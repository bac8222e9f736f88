//! Which waiting pods are expected on which node, because preemption made room for them there (`backend/queue/nominator`).

use std::collections::HashMap;
use std::sync::Arc;

use crate::pod::PodInfo;

/// Nominations by pod and by node.
#[derive(Debug, Default)]
pub struct Nominator {
    node_of: HashMap<String, String>,
    on: HashMap<String, Vec<Arc<PodInfo>>>,
}

impl Nominator {
    /// Notes that `pod` is expected on `node`, and nowhere else.
    pub fn nominate(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.clear(&pod.uid);
        self.node_of.insert(pod.uid.clone(), node.to_owned());
        self.on.entry(node.to_owned()).or_default().push(pod);
    }

    /// Takes a pod's nomination back.
    pub fn clear(&mut self, uid: &str) {
        if let Some(node) = self.node_of.remove(uid)
            && let Some(pods) = self.on.get_mut(&node)
        {
            pods.retain(|p| p.uid != uid);
            if pods.is_empty() {
                self.on.remove(&node);
            }
        }
    }

    /// The node that a pod is nominated to.
    pub fn node_of(&self, uid: &str) -> Option<&str> {
        self.node_of.get(uid).map(String::as_str)
    }

    /// The other pods nominated to `node` with at least the priority of `pod`.
    pub fn on_node(&self, node: &str, pod: &PodInfo) -> Vec<Arc<PodInfo>> {
        if self.on.is_empty() {
            return Vec::new();
        }
        self.on
            .get(node)
            .into_iter()
            .flatten()
            .filter(|p| p.uid != pod.uid && p.priority >= pod.priority)
            .cloned()
            .collect()
    }

    /// The other pods nominated to `node` with less priority than `pod`.
    pub fn lower_on_node(&self, node: &str, pod: &PodInfo) -> Vec<Arc<PodInfo>> {
        self.on
            .get(node)
            .into_iter()
            .flatten()
            .filter(|p| p.priority < pod.priority)
            .cloned()
            .collect()
    }
}
