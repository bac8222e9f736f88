//! The node itself: registration, heartbeats, and the health of the runtime.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{Node, NodeSpec, NodeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::api::{Api, Patch, PatchParams, PostParams};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::cri;
use crate::events::Severity;
use crate::pod::worker::Wakers;
use crate::shared::Shared;

pub mod machine;
pub mod status;

use machine::Machine;

/// Without a listing for so long the runtime counts as dead (upstream `relistThreshold`).
const RELIST_THRESHOLD_SECONDS: i64 = 180;
/// How often the runtime is asked for its health.
const HEALTH_PERIOD: Duration = Duration::from_secs(5);
/// The same while it is not well.
const HEALTH_PERIOD_BAD: Duration = Duration::from_millis(500);

/// Keeps the node's API objects.
pub struct Reporter {
    shared: Arc<Shared>,
    machine: Machine,
    runtime: Mutex<Option<cri::StatusResponse>>,
    changed: Notify,
    wakers: Arc<Wakers>,
}

impl Reporter {
    /// A reporter for this machine; `wakers` are told when pods that waited for the network may go on.
    pub fn new(shared: Arc<Shared>, machine: Machine, wakers: Arc<Wakers>) -> Arc<Self> {
        Arc::new(Reporter {
            shared,
            machine,
            runtime: Mutex::new(None),
            changed: Notify::new(),
            wakers,
        })
    }

    /// Asks the runtime for its health until `shutdown`; a change is reported at once.
    pub async fn watch_runtime(self: Arc<Self>, shutdown: CancellationToken) {
        loop {
            let well = self.check_runtime().await;
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(if well { HEALTH_PERIOD } else { HEALTH_PERIOD_BAD }) => {}
            }
        }
    }

    /// Asks the runtime for its health once; returns whether all is well.
    pub async fn check_runtime(&self) -> bool {
        let (runtime, network) = self.ask_runtime().await;
        let well = runtime.is_none() && network.is_none();
        let (changed, network_came) = {
            let mut h = self.shared.health.write();
            let network_came = h.network.is_some() && network.is_none();
            let changed = h.runtime.is_some() != runtime.is_some()
                || h.network.is_some() != network.is_some();
            h.runtime = runtime;
            h.network = network;
            (changed, network_came)
        };
        if network_came {
            self.wakers.wake_all();
        }
        if changed {
            self.changed.notify_one();
        }
        well
    }

    async fn ask_runtime(&self) -> (Option<String>, Option<String>) {
        let response = match self.shared.runtime.status(false).await {
            Ok(r) => r,
            Err(e) => {
                let message =
                    format!("container runtime status check may not have completed yet: {e}");
                return (Some(message.clone()), Some(message));
            }
        };
        let judge = |kind: &str| {
            let found = response
                .status
                .as_ref()
                .and_then(|s| s.conditions.iter().find(|c| c.r#type == kind));
            match found {
                Some(c) if c.status => None,
                Some(c) => Some(format!(
                    "{kind}=false reason:{} message:{}",
                    c.reason, c.message
                )),
                None => Some(format!("{kind} is not reported")),
            }
        };
        let runtime = judge("RuntimeReady").map(|e| format!("container runtime not ready: {e}"));
        let network =
            judge("NetworkReady").map(|e| format!("container runtime network not ready: {e}"));
        *self.runtime.lock() = Some(response);
        (runtime, network)
    }

    /// Registers the node and reports its status until `shutdown`.
    pub async fn report(self: Arc<Self>, shutdown: CancellationToken) {
        let Some(client) = self.shared.client.clone() else {
            return;
        };
        let api: Api<Node> = Api::all(client);
        let mut last: Option<(NodeStatus, tokio::time::Instant)> = None;
        let mut registered = !self.shared.config.file.register_node;
        let mut pod_cidr = String::new();
        loop {
            if !registered {
                match self.register(&api).await {
                    Ok(()) => {
                        registered = true;
                        info!(node = %self.shared.config.node_name, "the node is registered");
                    }
                    Err(error) => warn!(%error, "could not register the node"),
                }
            }
            if registered {
                match self.report_once(&api, &mut last).await {
                    Ok(node) => self.note_cidr(node, &mut pod_cidr).await,
                    Err(error) => {
                        if matches!(&error, kube::Error::Api(e) if e.code == 404) {
                            registered = !self.shared.config.file.register_node;
                        }
                        warn!(%error, "could not report the node's status");
                    }
                }
            }
            let ready = last.as_ref().is_some_and(|(s, _)| is_ready(s));
            let period = if registered && ready {
                self.shared
                    .config
                    .file
                    .node_status_update_frequency
                    .0
                    .max(Duration::from_secs(1))
            } else {
                Duration::from_millis(500)
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.changed.notified() => {}
                () = tokio::time::sleep(period) => {}
            }
        }
    }

    async fn note_cidr(&self, node: Option<Node>, known: &mut String) {
        let Some(cidr) = node
            .and_then(|n| n.spec)
            .and_then(|s| s.pod_cidr)
            .filter(|c| c != known)
        else {
            return;
        };
        match self.shared.runtime.update_runtime_config(&cidr).await {
            Ok(()) => *known = cidr,
            Err(error) => warn!(%error, "could not tell the runtime the pod network"),
        }
    }

    fn labels(&self) -> std::collections::BTreeMap<String, String> {
        let mut labels = self.shared.config.node_labels.clone();
        for (k, v) in [
            (
                "kubernetes.io/hostname",
                self.shared.config.node_name.as_str(),
            ),
            ("kubernetes.io/os", "linux"),
            ("kubernetes.io/arch", self.machine.arch),
            ("beta.kubernetes.io/os", "linux"),
            ("beta.kubernetes.io/arch", self.machine.arch),
        ] {
            labels.insert(k.to_owned(), v.to_owned());
        }
        labels
    }

    async fn register(&self, api: &Api<Node>) -> Result<(), kube::Error> {
        const MANAGED: &str = "volumes.kubernetes.io/controller-managed-attach-detach";
        let config = &self.shared.config;
        let (status, _) = self.compute(&NodeStatus::default()).await;
        let node = Node {
            metadata: ObjectMeta {
                name: Some(config.node_name.clone()),
                labels: Some(self.labels()),
                annotations: Some([(MANAGED.to_owned(), "true".to_owned())].into()),
                ..ObjectMeta::default()
            },
            spec: Some(NodeSpec {
                taints: Some(config.file.register_with_taints.clone()).filter(|t| !t.is_empty()),
                provider_id: config.file.provider_id.clone(),
                ..NodeSpec::default()
            }),
            status: Some(status),
        };
        match api.create(&PostParams::default(), &node).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(e)) if e.code == 409 => {
                // It is there from an earlier life: only what is the kubelet's is brought up to date.
                let patch = json!({"metadata": {"labels": self.labels(), "annotations": {MANAGED: "true"}}});
                api.patch(
                    &config.node_name,
                    &PatchParams::default(),
                    &Patch::Strategic(patch),
                )
                .await
                .map(drop)
            }
            Err(e) => Err(e),
        }
    }

    /// Computes the status as of now.
    async fn compute(&self, old: &NodeStatus) -> (NodeStatus, Vec<&'static str>) {
        let shared = &self.shared;
        let images = match shared.runtime.list_images().await {
            Ok(i) => i,
            Err(error) => {
                warn!(%error, "could not list the runtime's images");
                Vec::new()
            }
        };
        let version = match shared.runtime.version().await {
            Ok(v) => format!("{}://{}", v.runtime_name, v.runtime_version),
            Err(_) => format!("{}://Unknown", shared.runtime_name),
        };
        let now = shared.clock.now();
        let mut errors = Vec::new();
        {
            let h = shared.health.read();
            errors.extend(h.runtime.clone());
            errors.extend(h.network.clone());
            match h.last_relist {
                None => {
                    errors.push("PLEG is not healthy: pleg has yet to be successful".to_owned())
                }
                Some(t) => {
                    let gone = now.duration_since(t).as_secs();
                    if gone > RELIST_THRESHOLD_SECONDS {
                        errors.push(format!(
                            "PLEG is not healthy: pleg was last seen active {gone}s ago; threshold is 3m0s"
                        ));
                    }
                }
            }
        }
        errors.dedup();
        let fs = machine::fs_usage(&shared.config.root_dir).unwrap_or_else(|error| {
            warn!(%error, "could not read the size of the kubelet's file system");
            machine::FsUsage::default()
        });
        // Unreadable memory figures count as plenty: pressure is only claimed on evidence.
        let memory_available = machine::meminfo("MemAvailable").unwrap_or(i64::MAX);
        let pids = machine::threads().map_or((0, i64::MAX), |(most, all)| (most, most - all));
        let runtime = self.runtime.lock().clone();
        let ips = shared.node.read().host_ips.clone();
        status::status(
            &status::Inputs {
                config: &shared.config.file,
                name: &shared.config.node_name,
                ips: &ips,
                machine: &self.machine,
                fs,
                memory_available,
                pids,
                images: &images,
                runtime_version: &version,
                runtime: runtime.as_ref(),
                errors: &errors,
                now,
            },
            old,
        )
    }

    /// Reports the status if it has changed, or if it was not reported for long.
    async fn report_once(
        &self,
        api: &Api<Node>,
        last: &mut Option<(NodeStatus, tokio::time::Instant)>,
    ) -> Result<Option<Node>, kube::Error> {
        let name = &self.shared.config.node_name;
        let node = api.get(name).await?;
        let old = node.status.clone().unwrap_or_default();
        let (status, events) = self.compute(&old).await;
        let report_every = self.shared.config.file.node_status_report_frequency.0;
        if let Some((sent, at)) = last
            && at.elapsed() < report_every
            && same(sent, &status)
            && same_conditions(&old, &status)
        {
            return Ok(Some(node));
        }
        let mut value = serde_json::to_value(&status).map_err(kube::Error::SerdeError)?;
        if let Some(list) = value.get_mut("addresses").and_then(|a| a.as_array_mut()) {
            list.insert(0, json!({"$patch": "replace"}));
        }
        let node = api
            .patch_status(
                name,
                &PatchParams::default(),
                &Patch::Strategic(json!({"status": value})),
            )
            .await?;
        for reason in events {
            self.shared.recorder.node(
                name,
                Severity::Normal,
                reason,
                format!("Node {name} status is now: {reason}"),
            );
        }
        *last = Some((status, tokio::time::Instant::now()));
        Ok(Some(node))
    }

    /// Renews the node's lease until `shutdown`.
    pub async fn lease(self: Arc<Self>, shutdown: CancellationToken) {
        let Some(client) = self.shared.client.clone() else {
            return;
        };
        let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
        let nodes: Api<Node> = Api::all(client);
        let seconds = self.shared.config.file.node_lease_duration_seconds.max(4);
        let mut period = Duration::from_secs(u64::from(seconds / 4));
        loop {
            if let Err(error) = self.renew(&leases, &nodes, seconds).await {
                warn!(%error, "could not renew the node's lease");
                period = Duration::from_secs(1);
            } else {
                period = period.max(Duration::from_secs(u64::from(seconds / 4)));
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(period) => {}
            }
        }
    }

    async fn renew(
        &self,
        leases: &Api<Lease>,
        nodes: &Api<Node>,
        seconds: u32,
    ) -> Result<(), kube::Error> {
        let name = &self.shared.config.node_name;
        let spec = LeaseSpec {
            holder_identity: Some(name.clone()),
            lease_duration_seconds: i32::try_from(seconds).ok(),
            renew_time: Some(MicroTime(self.shared.clock.now())),
            ..LeaseSpec::default()
        };
        let patch = json!({"spec": spec});
        match leases
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
        {
            Ok(_) => return Ok(()),
            Err(kube::Error::Api(e)) if e.code == 404 => {}
            Err(e) => return Err(e),
        }
        // The lease goes with its node.
        let owner = nodes
            .get_opt(name)
            .await?
            .and_then(|n| n.metadata.uid)
            .map(|uid| OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Node".to_owned(),
                name: name.clone(),
                uid,
                ..OwnerReference::default()
            });
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some("kube-node-lease".to_owned()),
                owner_references: owner.map(|o| vec![o]),
                ..ObjectMeta::default()
            },
            spec: Some(spec),
        };
        leases
            .create(&PostParams::default(), &lease)
            .await
            .map(drop)
    }
}

fn is_ready(s: &NodeStatus) -> bool {
    s.conditions
        .iter()
        .flatten()
        .any(|c| c.type_ == "Ready" && c.status == "True")
}

/// Whether two statuses say the same, but for the times of conditions.
fn same(a: &NodeStatus, b: &NodeStatus) -> bool {
    let strip = |s: &NodeStatus| {
        let mut s = s.clone();
        for c in s.conditions.iter_mut().flatten() {
            c.last_heartbeat_time = None;
            c.last_transition_time = None;
        }
        s
    };
    strip(a) == strip(b)
}

/// Whether the API's conditions are still ours: the node lifecycle controller may have marked them unknown.
fn same_conditions(api: &NodeStatus, ours: &NodeStatus) -> bool {
    ours.conditions.iter().flatten().all(|c| {
        api.conditions
            .iter()
            .flatten()
            .any(|o| o.type_ == c.type_ && o.status == c.status && o.reason == c.reason)
    })
}
