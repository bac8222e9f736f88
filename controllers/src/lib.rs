//! The controllers of the control plane: each watches some resources and brings the world to what they ask for.
//!
//! A controller is a module with a *plan*, a pure function from a snapshot to intended writes, and a thin loop that
//! does the reading and writing ([`keelson_runtime::controller`]). [`CONTROLLERS`] lists them; a new one is a module and a
//! line there. They share informers, but each writes as its own service account, so that its RBAC role holds.
//!
//! Invariants: controllers speak only the public API; no controller calls another; status is written through the status
//! subresource with the version that was read.

use std::future::Future;
use std::pin::Pin;

pub mod bootstrap;
pub mod certificates;
pub mod common;
pub mod config;
pub mod context;
pub mod cronjob;
pub mod daemonset;
pub mod deployment;
mod discovery;
pub mod disruption;
pub mod endpoints;
pub mod ephemeral_volume;
pub mod error;
pub mod garbage_collector;
pub mod job;
pub mod namespace;
pub mod node_ipam;
pub mod node_lifecycle;
pub mod pod_gc;
pub mod replicaset;
pub mod resource_quota;
pub mod role_aggregation;
pub mod root_ca;
pub mod service_account;
pub mod statefulset;
pub mod taint_eviction;
pub mod ttl_after_finished;
pub mod volume_binder;
pub mod volume_protection;

pub use config::{Config, ConfigError};
pub use context::{Clients, Context};
pub use error::Error;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

type Started = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;

/// A controller that can be started.
#[derive(Clone, Copy)]
pub struct Entry {
    /// Upstream's name (`cmd/kube-controller-manager/names`).
    pub name: &'static str,
    /// The name that older versions used, still accepted in `--controllers`; empty for none.
    pub alias: &'static str,
    /// Whether `*` includes it.
    pub default: bool,
    /// Runs it until the context's shutdown.
    pub start: fn(Context) -> Started,
}

macro_rules! entry {
    ($name:literal, $alias:literal, $($module:ident)::+) => {
        entry!($name, $alias, $($module)::+, true)
    };
    ($name:literal, $alias:literal, $($module:ident)::+, $default:literal) => {
        Entry {
            name: $name,
            alias: $alias,
            default: $default,
            start: |context| Box::pin($($module)::+::run(context)),
        }
    };
}

/// Every controller, one line each.
pub const CONTROLLERS: &[Entry] = &[
    entry!(
        "serviceaccount-controller",
        "serviceaccount",
        service_account
    ),
    entry!(
        "root-ca-certificate-publisher-controller",
        "root-ca-cert-publisher",
        root_ca
    ),
    entry!("namespace-controller", "namespace", namespace),
    entry!("replicaset-controller", "replicaset", replicaset::sets),
    entry!(
        "replicationcontroller-controller",
        "replicationcontroller",
        replicaset::controllers
    ),
    entry!("deployment-controller", "deployment", deployment),
    entry!(
        "endpointslice-controller",
        "endpointslice",
        endpoints::slices
    ),
    entry!("endpoints-controller", "endpoint", endpoints::legacy),
    entry!(
        "endpointslice-mirroring-controller",
        "endpointslicemirroring",
        endpoints::mirror
    ),
    entry!("job-controller", "job", job),
    entry!(
        "ttl-after-finished-controller",
        "ttl-after-finished",
        ttl_after_finished
    ),
    entry!("cronjob-controller", "cronjob", cronjob),
    entry!("daemonset-controller", "daemonset", daemonset),
    entry!("statefulset-controller", "statefulset", statefulset),
    entry!("disruption-controller", "disruption", disruption),
    entry!("resourcequota-controller", "resourcequota", resource_quota),
    entry!(
        "persistentvolume-binder-controller",
        "persistentvolume-binder",
        volume_binder
    ),
    entry!(
        "ephemeral-volume-controller",
        "ephemeral-volume",
        ephemeral_volume
    ),
    entry!(
        "clusterrole-aggregation-controller",
        "clusterrole-aggregation",
        role_aggregation
    ),
    entry!(
        "persistentvolumeclaim-protection-controller",
        "pvc-protection",
        volume_protection::claims
    ),
    entry!(
        "persistentvolume-protection-controller",
        "pv-protection",
        volume_protection::volumes
    ),
    entry!(
        "volumeattributesclass-protection-controller",
        "",
        volume_protection::classes
    ),
    entry!("node-ipam-controller", "nodeipam", node_ipam),
    entry!(
        "garbage-collector-controller",
        "garbagecollector",
        garbage_collector
    ),
    entry!("node-lifecycle-controller", "nodelifecycle", node_lifecycle),
    entry!("taint-eviction-controller", "", taint_eviction),
    entry!("pod-garbage-collector-controller", "podgc", pod_gc),
    entry!(
        "certificatesigningrequest-approving-controller",
        "csrapproving",
        certificates::approving
    ),
    entry!(
        "certificatesigningrequest-signing-controller",
        "csrsigning",
        certificates::signing
    ),
    entry!(
        "certificatesigningrequest-cleaner-controller",
        "csrcleaner",
        certificates::cleaner
    ),
    entry!(
        "bootstrap-signer-controller",
        "bootstrapsigner",
        bootstrap::signer,
        false
    ),
    entry!(
        "token-cleaner-controller",
        "tokencleaner",
        bootstrap::cleaner,
        false
    ),
    // Keelson's own: see the module for its policy.
    entry!("kubelet-serving-approver", "", certificates::serving, false),
];

/// Runs the controllers that `config` selects, until `shutdown`. One that fails or panics is started again; the others
/// go on.
///
/// # Errors
/// A selection that names an unknown controller.
pub async fn run(
    config: Config,
    clients: Clients,
    shutdown: CancellationToken,
) -> Result<(), ConfigError> {
    let selected = config.select(CONTROLLERS)?;
    let context = Context::new(config, clients, shutdown.clone());
    let mut running = JoinSet::new();
    for entry in selected {
        let context = context.clone();
        let stop = shutdown.clone();
        running.spawn(async move {
            let clock = context.clock.clone();
            keelson_runtime::controller::supervise(entry.name, clock, stop, || async {
                let context = context.for_start();
                let _ends_with_it = context.shutdown.clone().drop_guard();
                (entry.start)(context).await
            })
            .await;
        });
    }
    shutdown.cancelled().await;
    // A controller ends by the same token; what does not is dropped with the set.
    let _ = tokio::time::timeout(std::time::Duration::from_secs(5), async {
        while running.join_next().await.is_some() {}
    })
    .await;
    Ok(())
}
