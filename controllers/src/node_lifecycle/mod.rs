//! Watches over the nodes: a silent one becomes Unknown, conditions become taints, pods of an unready node count as unready
//! (upstream `pkg/controller/nodelifecycle`).
//!
//! `NoSchedule` taints follow each change of a node at once. `NoExecute` taints, which cost pods their lives, are put on at a
//! rate per zone, and not at all when no node answers. [`health`] decides; this module reads and writes.

pub mod health;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, ObjectReference, Pod, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use keelson_machinery::clock::Clock;
use keelson_runtime::ObjectKey;
use keelson_runtime::controller::{Action, Controller};
use keelson_runtime::events::{EventType, Recorder, reference};
use keelson_runtime::informer::{Event, Informer};
use keelson_runtime::workqueue::WorkQueue;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tokio::sync::Notify;

use crate::common::pods;
use crate::error::{Error, is_conflict, is_not_found};
use crate::{Config, Context, synced};
use health::{
    Disruption, Health, NOT_READY, Rates, UNREACHABLE, Zones, conditions, has_taint,
    no_schedule_changes, ready, zone_key,
};

/// Index of pods by the node they are bound to.
pub const BY_NODE: &str = "spec.nodeName";
/// Upstream `nodeUpdateWorkerSize`.
const WORKERS: usize = 8;
/// Between looks at the nodes that wait for their taint (upstream `NodeEvictionPeriod`).
const EVICTION_PERIOD: Duration = Duration::from_millis(100);
/// Attempts to write against other writers (upstream `NodeHealthUpdateRetry`).
const TRIES: usize = 5;

/// Runs until the context's shutdown.
///
/// # Errors
/// None; a failed write is tried again with the next pass.
pub async fn run(context: Context) -> anyhow::Result<()> {
    let nodes = context.informers.informer::<Node>();
    let leases = context.informers.informer::<Lease>();
    let pods = context.informers.informer::<Pod>();
    index_by_node(&pods);
    let client = context.client("node-controller");
    let lifecycle = Arc::new(Lifecycle {
        recorder: context.recorder(&client, "node-controller"),
        clock: context.clock.clone(),
        config: context.config.clone(),
        nodes: nodes.clone(),
        leases: leases.clone(),
        pods: pods.clone(),
        client,
    });
    synced!(nodes, leases, pods);

    let queue = WorkQueue::new("node_lifecycle_controller", &context.metrics);
    let look = Arc::new(Notify::new());
    let (adds, notify) = (queue.clone(), look.clone());
    nodes.on_event(move |event| {
        adds.add(event.object().name_any());
        // A node that comes, or turns ready or unready, is not made to wait for the next period.
        let status = |node: &Node| ready(conditions(node)).map(|c| c.status.clone());
        match event {
            Event::Updated { old, new } if status(old) == status(new) => {}
            _ => notify.notify_one(),
        }
    });
    let bound = WorkQueue::new("node_lifecycle_controller_pods", &context.metrics);
    let adds = bound.clone();
    pods.on_event(move |event| {
        let placed = match event {
            Event::Added { object, .. } => !pods::node_name(object).is_empty(),
            Event::Updated { old, new } => pods::node_name(old) != pods::node_name(new),
            Event::Deleted { .. } => false,
        };
        if placed {
            adds.add(ObjectKey::of(&event.object().metadata));
        }
    });

    let tainting = lifecycle.clone();
    let taints = Controller::new("node-lifecycle-controller", queue)
        .workers(WORKERS)
        .run(context.shutdown.clone(), move |name| {
            let lifecycle = tainting.clone();
            async move { lifecycle.sync_node(&name).await }
        });
    let marking = lifecycle.clone();
    let marks = Controller::new("node-lifecycle-controller", bound)
        .workers(4)
        .run(context.shutdown.clone(), move |key| {
            let lifecycle = marking.clone();
            async move { lifecycle.sync_pod(&key).await }
        });
    let monitor = context
        .shutdown
        .run_until_cancelled(lifecycle.monitor(&look));
    tokio::join!(taints, marks, monitor);
    Ok(())
}

/// Makes [`BY_NODE`] known to the shared pod informer.
pub fn index_by_node(pods: &Informer<Pod>) {
    pods.store().add_index(BY_NODE, |pod| {
        let node = pods::node_name(pod);
        if node.is_empty() {
            Vec::new()
        } else {
            vec![node.to_owned()]
        }
    });
}

struct Lifecycle {
    client: Client,
    recorder: Recorder,
    clock: Clock,
    config: Arc<Config>,
    nodes: Informer<Node>,
    leases: Informer<Lease>,
    pods: Informer<Pod>,
}

/// What the monitor remembers between passes.
struct Memory {
    health: HashMap<String, Health>,
    known: HashMap<String, String>,
    zones: Zones,
    /// Nodes whose pods could not all be marked.
    unmarked: HashSet<String>,
}

impl Lifecycle {
    fn node_api(&self) -> Api<Node> {
        Api::all(self.client.clone())
    }

    async fn sync_node(&self, name: &str) -> Result<Action, Error> {
        let Some(node) = self.nodes.store().get_parts("", name) else {
            return Ok(Action::Done);
        };
        let (add, remove) = no_schedule_changes(&node);
        if !add.is_empty() || !remove.is_empty() {
            self.swap_taints(name, "NoSchedule", &add, &remove).await?;
        }
        let labels = node.metadata.labels.clone().unwrap_or_default();
        let mut changed = serde_json::Map::new();
        for (primary, secondary) in [
            ("kubernetes.io/os", "beta.kubernetes.io/os"),
            ("kubernetes.io/arch", "beta.kubernetes.io/arch"),
        ] {
            if let Some(value) = labels.get(primary)
                && labels.get(secondary) != Some(value)
            {
                changed.insert(secondary.to_owned(), json!(value));
            }
        }
        if !changed.is_empty() {
            let patch = Patch::Strategic(json!({"metadata": {"labels": changed}}));
            crate::error::ignore_not_found(
                self.node_api()
                    .patch_metadata(name, &PatchParams::default(), &patch)
                    .await,
            )?;
        }
        Ok(Action::Done)
    }

    /// Adds and removes taints of one effect, on the node as it is now (upstream `SwapNodeControllerTaint`).
    async fn swap_taints(
        &self,
        name: &str,
        effect: &str,
        add: &[&str],
        remove: &[&str],
    ) -> Result<(), Error> {
        let api = self.node_api();
        for attempt in 0..TRIES {
            let Some(node) = api.get_opt(name).await? else {
                return Ok(());
            };
            let before = health::taints(&node);
            let mut after: Vec<Taint> = before
                .iter()
                .filter(|taint| taint.effect != effect || !remove.contains(&taint.key.as_str()))
                .cloned()
                .collect();
            for key in add {
                if !has_taint(&node, key, effect) {
                    after.push(Taint {
                        key: (*key).to_owned(),
                        effect: effect.to_owned(),
                        value: None,
                        time_added: Some(Time(self.clock.now())),
                    });
                }
            }
            if after == before {
                return Ok(());
            }
            let patch = Patch::Merge(json!({
                "metadata": {"resourceVersion": node.metadata.resource_version},
                "spec": {"taints": after},
            }));
            match api
                .patch_metadata(name, &PatchParams::default(), &patch)
                .await
            {
                Ok(_) => return Ok(()),
                Err(error) if is_not_found(&error) => return Ok(()),
                Err(error) if is_conflict(&error) && attempt + 1 < TRIES => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// A pod that was just bound to an unready node is not ready.
    async fn sync_pod(&self, key: &ObjectKey) -> Result<Action, Error> {
        let Some(pod) = self.pods.store().get(key) else {
            return Ok(Action::Done);
        };
        let node = self.nodes.store().get_parts("", pods::node_name(&pod));
        let unready = node
            .as_ref()
            .and_then(|node| ready(conditions(node)))
            .is_some_and(|condition| condition.status != "True");
        if unready {
            self.mark_not_ready(&pod).await?;
        }
        Ok(Action::Done)
    }

    /// Upstream `MarkPodsNotReady`.
    async fn mark_not_ready(&self, pod: &Pod) -> Result<(), Error> {
        if !pods::is_ready(pod) {
            return Ok(());
        }
        let api: Api<Pod> =
            Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        let patch = Patch::Strategic(json!({
            "metadata": {"uid": pod.metadata.uid},
            "status": {"conditions": [{
                "type": "Ready",
                "status": "False",
                "lastTransitionTime": Time(self.clock.now()),
                "observedGeneration": pod.metadata.generation,
            }]},
        }));
        match api
            .patch_status(&pod.name_any(), &PatchParams::default(), &patch)
            .await
        {
            Ok(_) => {
                self.recorder
                    .warning(&reference(pod), "NodeNotReady", "Node is not ready");
                Ok(())
            }
            Err(error) if is_not_found(&error) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Looks at all nodes every period, and sooner when `look` says so.
    async fn monitor(&self, look: &Notify) {
        let mut memory = Memory {
            health: HashMap::new(),
            known: HashMap::new(),
            zones: Zones::new(Rates {
                healthy: self.config.node_eviction_rate,
                unhealthy: self.config.secondary_node_eviction_rate,
                large: self.config.large_cluster_threshold,
                threshold: self.config.unhealthy_zone_threshold,
            }),
            unmarked: HashSet::new(),
        };
        loop {
            self.pass(&mut memory).await;
            let next = tokio::time::Instant::now() + self.config.node_monitor_period;
            loop {
                for name in memory.zones.due(self.clock.now()) {
                    self.taint_no_execute(&name, &mut memory.zones).await;
                }
                let wake = if memory.zones.is_waiting() {
                    next.min(tokio::time::Instant::now() + EVICTION_PERIOD)
                } else {
                    next
                };
                tokio::select! {
                    () = tokio::time::sleep_until(wake) => {}
                    () = look.notified() => break,
                }
                if tokio::time::Instant::now() >= next {
                    break;
                }
            }
        }
    }

    /// Upstream `doNoExecuteTaintingPass`, for one node.
    async fn taint_no_execute(&self, name: &str, zones: &mut Zones) {
        let Some(node) = self.nodes.store().get_parts("", name) else {
            return;
        };
        let status = ready(conditions(&node)).map(|condition| condition.status.as_str());
        let swapped = match status {
            Some("False") => {
                self.swap_taints(name, "NoExecute", &[NOT_READY], &[UNREACHABLE])
                    .await
            }
            Some("Unknown") => {
                self.swap_taints(name, "NoExecute", &[UNREACHABLE], &[NOT_READY])
                    .await
            }
            _ => Ok(()),
        };
        if let Err(error) = swapped {
            tracing::warn!(node = name, %error, "tainting failed; it takes its turn again");
            zones.add(&zone_key(&node), name, self.clock.now());
        }
    }

    /// Upstream `monitorNodeHealth`.
    async fn pass(&self, memory: &mut Memory) {
        let nodes = self.nodes.store().list();
        self.note_arrivals(&nodes, memory).await;
        let looks = nodes.iter().cloned().map(|node| {
            let old = memory.health.get(&node.name_any()).cloned();
            async move {
                let (health, outcome) = self.update_health(node.clone(), old).await;
                (node, health, outcome)
            }
        });
        let looked: Vec<_> = futures::stream::iter(looks)
            .buffer_unordered(WORKERS)
            .collect()
            .await;
        for (node, health, _) in &looked {
            memory.health.insert(node.name_any(), health.clone());
        }

        let mut counts: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        for (node, _, outcome) in &looked {
            let name = node.name_any();
            let status = outcome.as_ref().map(|(_, current)| current.status.as_str());
            let excluded =
                node.metadata.labels.as_ref().is_some_and(|labels| {
                    labels.contains_key("node.kubernetes.io/exclude-disruption")
                });
            if !excluded {
                let count = counts.entry(zone_key(node)).or_default();
                if status == Some("True") {
                    count.0 += 1;
                } else {
                    count.1 += 1;
                }
            }
            let Some((observed, current)) = outcome else {
                continue;
            };
            self.follow_up(node, current, memory).await;
            let turned = current.status != "True" && observed.as_deref() == Some("True");
            if turned {
                self.record(node, EventType::Normal, "NodeNotReady", |name| {
                    format!("Node {name} status is now: NodeNotReady")
                });
            }
            if current.status != "True" && (turned || memory.unmarked.contains(&name)) {
                memory.unmarked.remove(&name);
                for pod in self.pods.store().by_index(BY_NODE, &name) {
                    if let Err(error) = self.mark_not_ready(&pod).await {
                        tracing::warn!(pod = pod.name_any(), %error, "marking the pod unready");
                        memory.unmarked.insert(name.clone());
                    }
                }
            } else {
                memory.unmarked.remove(&name);
            }
        }
        let now = self.clock.now();
        match memory.zones.judge(&counts, now) {
            Disruption::None => {}
            Disruption::Entered => {
                for node in &nodes {
                    self.mark_reachable(node).await;
                }
            }
            Disruption::Left => memory
                .health
                .values_mut()
                .for_each(|health| health.refresh(now)),
        }
    }

    async fn note_arrivals(&self, nodes: &[Arc<Node>], memory: &mut Memory) {
        let here: HashSet<String> = nodes.iter().map(|node| node.name_any()).collect();
        for node in nodes {
            let name = node.name_any();
            let uid = node.uid().unwrap_or_default();
            if memory.known.insert(name, uid).is_none() {
                self.record(node, EventType::Normal, "RegisteredNode", |name| {
                    format!("Node {name} event: Registered Node {name} in Controller")
                });
                self.mark_reachable(node).await;
            }
        }
        let gone: Vec<(String, String)> = memory
            .known
            .iter()
            .filter(|(name, _)| !here.contains(*name))
            .map(|(name, uid)| (name.clone(), uid.clone()))
            .collect();
        for (name, uid) in gone {
            let regarding = node_reference(&name, &uid);
            self.recorder.normal(
                &regarding,
                "RemovingNode",
                format!("Node {name} event: Removing Node {name} from Controller"),
            );
            memory.known.remove(&name);
            memory.health.remove(&name);
            memory.unmarked.remove(&name);
            memory.zones.remove(&name);
        }
    }

    fn record(&self, node: &Node, kind: EventType, reason: &str, message: impl Fn(&str) -> String) {
        let name = node.name_any();
        let regarding = node_reference(&name, &node.uid().unwrap_or_default());
        self.recorder
            .event(&regarding, kind, reason, message(&name));
    }

    /// What is now known of the node, and its Ready condition before and after. `None` when it never had one, or when writing
    /// failed: then nothing is concluded.
    async fn update_health(
        &self,
        node: Arc<Node>,
        mut old: Option<Health>,
    ) -> (Health, Option<(Option<String>, NodeCondition)>) {
        let name = node.name_any();
        let mut node = (*node).clone();
        for _ in 0..TRIES {
            let renewed = self
                .leases
                .store()
                .get_parts("kube-node-lease", &name)
                .and_then(|lease| lease.spec.as_ref()?.renew_time.as_ref().map(|time| time.0));
            let now = self.clock.now();
            let health = Health::observe(old.as_ref(), &node, renewed, now);
            let observed = ready(conditions(&node)).map(|c| c.status.clone());
            let grace = self.config.node_monitor_grace_period;
            let startup = self.config.node_startup_grace_period;
            let Some(changed) = health.overdue(&node, grace, startup, now) else {
                let outcome = ready(conditions(&node)).map(|c| (observed, c.clone()));
                return (health, outcome);
            };
            let current = ready(&changed).cloned();
            node.status.get_or_insert_default().conditions = Some(changed);
            match self
                .node_api()
                .replace_status(&name, &PostParams::default(), &node)
                .await
            {
                Ok(_) => return (health, current.map(|current| (observed, current))),
                Err(error) => {
                    tracing::debug!(node = name, %error, "writing the node's conditions");
                    old = Some(health.clone());
                    match self.node_api().get_opt(&name).await {
                        Ok(Some(live)) => node = live,
                        Ok(None) | Err(_) => return (health, None),
                    }
                }
            }
        }
        let now = self.clock.now();
        (Health::observe(old.as_ref(), &node, None, now), None)
    }

    /// Upstream `processTaintBaseEviction`.
    async fn follow_up(&self, node: &Node, current: &NodeCondition, memory: &mut Memory) {
        let name = node.name_any();
        let (wanted, opposite) = match current.status.as_str() {
            "True" => {
                memory.zones.remove(&name);
                self.mark_reachable(node).await;
                return;
            }
            "False" => (NOT_READY, UNREACHABLE),
            _ => (UNREACHABLE, NOT_READY),
        };
        if has_taint(node, wanted, "NoExecute") {
            return;
        }
        if has_taint(node, opposite, "NoExecute") {
            if let Err(error) = self
                .swap_taints(&name, "NoExecute", &[wanted], &[opposite])
                .await
            {
                tracing::warn!(node = name, %error, "swapping taints");
            }
        } else {
            memory.zones.add(&zone_key(node), &name, self.clock.now());
        }
    }

    async fn mark_reachable(&self, node: &Node) {
        let has = |key| has_taint(node, key, "NoExecute");
        if (has(NOT_READY) || has(UNREACHABLE))
            && let Err(error) = self
                .swap_taints(
                    &node.name_any(),
                    "NoExecute",
                    &[],
                    &[NOT_READY, UNREACHABLE],
                )
                .await
        {
            tracing::warn!(node = node.name_any(), %error, "removing taints");
        }
    }
}

fn node_reference(name: &str, uid: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Node".to_owned()),
        name: Some(name.to_owned()),
        uid: Some(uid.to_owned()),
        ..ObjectReference::default()
    }
}
