//! What happens in the cluster that may make a rejected pod schedulable (`framework.ClusterEvent`).

use crate::node::NodeSpec;
use crate::pod::PodInfo;

/// A set of event kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventMask(u32);

/// The kind of an event; each is one bit of an [`EventMask`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum EventKind {
    /// A node came.
    NodeAdd,
    /// A node's allocatable resources changed.
    NodeUpdateAllocatable,
    /// A node's labels changed.
    NodeUpdateLabel,
    /// A node's taints (or `unschedulable`) changed.
    NodeUpdateTaint,
    /// A node left.
    NodeDelete,
    /// A pod was placed.
    AssignedPodAdd,
    /// A placed pod's labels changed.
    AssignedPodUpdateLabel,
    /// A placed pod asks for less than before.
    AssignedPodScaleDown,
    /// A placed pod is gone.
    AssignedPodDelete,
    /// The waiting pod itself changed.
    PodUpdate,
    /// A namespace came or its labels changed.
    NamespaceUpdate,
    /// A claim, a persistent volume or a storage class came, changed or went.
    StorageUpdate,
}

impl EventKind {
    /// The label under which metrics count it.
    pub fn label(self) -> &'static str {
        match self {
            EventKind::NodeAdd => "NodeAdd",
            EventKind::NodeUpdateAllocatable => "NodeAllocatableChange",
            EventKind::NodeUpdateLabel => "NodeLabelChange",
            EventKind::NodeUpdateTaint => "NodeTaintChange",
            EventKind::NodeDelete => "NodeDelete",
            EventKind::AssignedPodAdd => "AssignedPodAdd",
            EventKind::AssignedPodUpdateLabel => "AssignedPodUpdate",
            EventKind::AssignedPodScaleDown => "AssignedPodScaleDown",
            EventKind::AssignedPodDelete => "AssignedPodDelete",
            EventKind::PodUpdate => "PodUpdate",
            EventKind::NamespaceUpdate => "NamespaceUpdate",
            EventKind::StorageUpdate => "StorageUpdate",
        }
    }
}

impl EventMask {
    /// No kind.
    pub const NONE: EventMask = EventMask(0);

    /// These kinds.
    pub const fn of(kinds: &[EventKind]) -> Self {
        let mut mask = 0;
        let mut i = 0;
        while i < kinds.len() {
            mask |= 1 << kinds[i] as u32;
            i += 1;
        }
        EventMask(mask)
    }

    /// Whether the kind is in the set.
    pub const fn contains(self, kind: EventKind) -> bool {
        self.0 & (1 << kind as u32) != 0
    }
}

/// An event with what it is about.
#[derive(Debug, Clone, Copy)]
pub enum ClusterEvent<'a> {
    /// Something about a node: name, before, after.
    Node(
        EventKind,
        &'a str,
        Option<&'a NodeSpec>,
        Option<&'a NodeSpec>,
    ),
    /// Something about a placed pod, as it is now (or was last).
    Pod(EventKind, &'a PodInfo),
    /// Anything else.
    Other(EventKind),
}

impl ClusterEvent<'_> {
    /// Its kind.
    pub fn kind(&self) -> EventKind {
        match self {
            ClusterEvent::Node(kind, ..)
            | ClusterEvent::Pod(kind, _)
            | ClusterEvent::Other(kind) => *kind,
        }
    }
}
