//! The snapshot with the book of which pod is where, including pods that are assumed to be placed while their binding is under way.

use std::collections::HashMap;
use std::sync::Arc;

use crate::pod::PodInfo;
use crate::snapshot::Snapshot;

#[derive(Debug)]
struct Placed {
    pod: Arc<PodInfo>,
    node: usize,
    assumed: bool,
}

/// All placed pods, fed by plain calls. A pod counts once, whichever of assumption and confirmation comes first.
#[derive(Debug, Default)]
pub struct Cache {
    /// What decisions look at.
    pub snapshot: Snapshot,
    placed: HashMap<String, Placed>,
}

impl Cache {
    /// Counts a pod in on the node chosen for it, before the API knows.
    pub fn assume(&mut self, pod: Arc<PodInfo>) {
        self.place(pod, true);
    }

    /// Takes back an assumption whose binding failed. A pod that the API has confirmed meanwhile stays.
    pub fn forget(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        if !self.placed.get(uid)?.assumed {
            return None;
        }
        self.remove(uid)
    }

    /// Whether the pod is assumed and not yet confirmed.
    pub fn is_assumed(&self, uid: &str) -> bool {
        self.placed.get(uid).is_some_and(|p| p.assumed)
    }

    /// The placed pod with this uid.
    pub fn get(&self, uid: &str) -> Option<&Arc<PodInfo>> {
        self.placed.get(uid).map(|p| &p.pod)
    }

    /// Takes in a pod that the API says is placed; returns it as it was known before.
    pub fn confirm(&mut self, pod: Arc<PodInfo>) -> Option<Arc<PodInfo>> {
        let old = self.remove(&pod.uid);
        self.place(pod, false);
        old
    }

    /// Forgets a pod that is gone; returns it as it was known.
    pub fn remove(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let placed = self.placed.remove(uid)?;
        self.snapshot.remove_pod(placed.node, uid);
        Some(placed.pod)
    }

    /// The uids of all placed pods that the API has confirmed.
    pub fn confirmed_uids(&self) -> impl Iterator<Item = &str> {
        self.placed
            .iter()
            .filter(|(_, p)| !p.assumed)
            .map(|(uid, _)| uid.as_str())
    }

    fn place(&mut self, pod: Arc<PodInfo>, assumed: bool) {
        let Some(name) = pod.node_name.clone() else {
            return;
        };
        let node = self.snapshot.add_pod(&name, pod.clone());
        self.placed
            .insert(pod.uid.clone(), Placed { pod, node, assumed });
    }
}
