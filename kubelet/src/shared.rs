//! What all parts of a running kubelet share.

use std::sync::Arc;

use jiff::Timestamp;
use keelson_machinery::clock::Clock;
use parking_lot::RwLock;

use crate::backoff::Backoff;
use crate::cgroup::Cgroups;
use crate::config::Config;
use crate::container::config::Settings;
use crate::cri::Runtime;
use crate::events::Recorder;
use crate::fields::NodeFacts;
use crate::image::Images;
use crate::objects::Objects;
use crate::pod::resize::Allocations;
use crate::probe::Probes;
use crate::status::StatusManager;
use crate::volume::Volumes;

/// The health of what pods depend on.
#[derive(Clone, Debug, Default)]
pub struct Health {
    /// Why the runtime cannot be used, if so.
    pub runtime: Option<String>,
    /// Why there is no pod network, if so.
    pub network: Option<String>,
    /// When the runtime's containers were last listed.
    pub last_relist: Option<Timestamp>,
}

/// The kubelet's parts, wired together once at start.
pub struct Shared {
    /// The configuration.
    pub config: Config,
    /// What containers' configurations depend on.
    pub settings: Settings,
    /// The API, unless the kubelet runs alone.
    pub client: Option<kube::Client>,
    /// The container runtime.
    pub runtime: Arc<dyn Runtime>,
    /// Its name, as in `containerd://id`.
    pub runtime_name: String,
    /// Time and randomness.
    pub clock: Clock,
    /// Events.
    pub recorder: Recorder,
    /// Pods' statuses.
    pub status: Arc<StatusManager>,
    /// Probes.
    pub probes: Arc<Probes>,
    /// Images.
    pub images: Images,
    /// Volumes.
    pub volumes: Volumes,
    /// ConfigMaps, Secrets, Services.
    pub objects: Arc<Objects>,
    /// What pods have been granted.
    pub allocations: Allocations,
    /// Pods' cgroups.
    pub cgroups: Cgroups,
    /// The waits of containers that keep failing.
    pub crash_backoff: Backoff,
    /// The node as pods see it.
    pub node: RwLock<NodeFacts>,
    /// What is well and what is not.
    pub health: RwLock<Health>,
}
