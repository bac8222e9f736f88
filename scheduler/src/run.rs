//! The loop between the API and the state machine.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::Service;
use keelson_machinery::clock::Clock;
use keelson_runtime::events::{Form, Recorder};
use kube::Client;
use prometheus_client::registry::Registry;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::feed::{self, Input, KINDS, Kind, Object, key};
use crate::labels::Selector;
use crate::metrics::Metrics;
use crate::plugins::default_framework;
use crate::queue::Backoff;
use crate::scheduler::{Action, Outcome, Scheduler};
use crate::snapshot::Snapshot;
use crate::storage::{Claim, Class, Volume};
use crate::writer::{Binding, Writer};

/// How many events may wait to be taken in.
const INPUT_QUEUE: usize = 4096;
/// How many events are taken in between two attempts at most.
const MAX_INPUTS: usize = 1024;
/// How many attempts are made before other tasks get a turn.
const MAX_ATTEMPTS: usize = 32;

/// How the scheduler runs.
#[derive(Clone)]
pub struct Config {
    /// The `schedulerName` of the pods that it places.
    pub scheduler_name: String,
    /// The bounds of the back-off.
    pub backoff: Backoff,
    /// Which share of nodes is looked at, in percent; 0 adapts to the size of the cluster.
    pub percentage_of_nodes_to_score: u32,
    /// How many bindings may be under way at once.
    pub max_bindings: usize,
    /// The host in events.
    pub host: String,
    /// Time and randomness.
    pub clock: Clock,
    /// Where it counts.
    pub metrics: Metrics,
}

impl Config {
    /// The defaults, with metrics registered in `registry`.
    pub fn new(clock: Clock, instance: &str, registry: &mut Registry) -> Self {
        Config {
            scheduler_name: "default-scheduler".to_owned(),
            backoff: Backoff::default(),
            percentage_of_nodes_to_score: 0,
            max_bindings: 256,
            host: instance.to_owned(),
            clock,
            metrics: Metrics::new(registry),
        }
    }
}

/// Runs the scheduler until `shutdown`.
pub async fn run(
    config: Config,
    client: Client,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let mut seed = [0u8; 8];
    config.clock.fill_random(&mut seed);
    let mut framework = default_framework(&config.scheduler_name);
    framework.percentage_of_nodes_to_score = config.percentage_of_nodes_to_score;
    let scheduler = Scheduler::new(framework, config.backoff, u64::from_le_bytes(seed));

    let (input_sender, inputs) = mpsc::channel(INPUT_QUEUE);
    // Bounded by `max_bindings`: no more are begun before these are taken in.
    let (binding_sender, bindings) = mpsc::unbounded_channel();
    feed::start(&client, input_sender, &shutdown);
    let recorder = Recorder::new(
        client.clone(),
        config.clock.clone(),
        Form::EventsV1,
        &config.scheduler_name,
        &config.host,
        shutdown.clone(),
    );
    let writer = Writer::start(
        client,
        config.clock.clone(),
        recorder,
        &config.scheduler_name,
        binding_sender,
    );
    let driver = Driver {
        config,
        scheduler,
        writer,
        inputs,
        bindings,
        listed: HashSet::new(),
        under_way: 0,
    };
    tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        result = driver.run() => result,
    }
}

struct Driver {
    config: Config,
    scheduler: Scheduler,
    writer: Writer,
    inputs: mpsc::Receiver<Input>,
    bindings: mpsc::UnboundedReceiver<Binding>,
    listed: HashSet<Kind>,
    /// Bindings begun and not ended.
    under_way: usize,
}

impl Driver {
    async fn run(mut self) -> anyhow::Result<()> {
        loop {
            let more = self.take_in().await?;
            let idle = if self.listed.len() == KINDS.len() {
                !self.attempt().await
            } else {
                true
            };
            self.config.metrics.show_pending(self.scheduler.counts());
            if more || !idle {
                tokio::task::yield_now().await;
            } else {
                self.wait().await?;
            }
        }
    }

    /// Takes in what has happened; returns whether there may be more.
    async fn take_in(&mut self) -> anyhow::Result<bool> {
        while let Ok(binding) = self.bindings.try_recv() {
            self.binding_ended(binding).await;
        }
        for _ in 0..MAX_INPUTS {
            match self.inputs.try_recv() {
                Ok(input) => self.take(input),
                Err(mpsc::error::TryRecvError::Empty) => return Ok(false),
                Err(mpsc::error::TryRecvError::Disconnected) => {
                    anyhow::bail!("all watches have ended")
                }
            }
        }
        Ok(true)
    }

    /// Tries some pods; returns whether there may be more to try.
    async fn attempt(&mut self) -> bool {
        for _ in 0..MAX_ATTEMPTS {
            if self.under_way >= self.config.max_bindings {
                return false;
            }
            let begin = Instant::now();
            let Some(attempt) = self.scheduler.schedule_one(begin) else {
                return false;
            };
            let result = match attempt.outcome {
                Outcome::Scheduled => Some("scheduled"),
                Outcome::Unschedulable => Some("unschedulable"),
                Outcome::Skipped => None,
            };
            if let Some(result) = result {
                let seconds = begin.elapsed().as_secs_f64();
                self.config
                    .metrics
                    .count_attempt(result, &self.config.scheduler_name, seconds);
            }
            self.act(attempt.actions).await;
        }
        true
    }

    async fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match &action {
                Action::Bind {
                    pod,
                    node,
                    attempts,
                    ..
                } => {
                    self.under_way += 1;
                    self.config
                        .metrics
                        .attempts_per_pod
                        .observe(f64::from(*attempts));
                    tracing::debug!(pod = %pod.key(), node, "node found");
                }
                Action::Preempt {
                    preemptor,
                    node,
                    victims,
                } => {
                    self.config.metrics.preemption_attempts.inc();
                    self.config
                        .metrics
                        .preemption_victims
                        .observe(victims.len() as f64);
                    tracing::info!(pod = %preemptor.key(), %node, victims = victims.len(), "preempting");
                }
                Action::ReportFailure { .. } | Action::PatchStatus { .. } => {}
            }
            self.writer.act(action).await;
        }
    }

    async fn binding_ended(&mut self, binding: Binding) {
        self.under_way -= 1;
        match binding.result {
            Ok(()) => self.scheduler.bound(&binding.uid),
            Err(error) => {
                tracing::warn!(uid = binding.uid, error, "binding failed");
                self.config
                    .metrics
                    .count_attempt("error", &self.config.scheduler_name, 0.0);
                let actions = self
                    .scheduler
                    .bind_failed(&binding.uid, &error, Instant::now());
                self.act(actions).await;
            }
        }
    }

    /// Waits until there is something to do.
    async fn wait(&mut self) -> anyhow::Result<()> {
        // With all bindings under way nothing can be tried before one ends.
        let busy = self.under_way >= self.config.max_bindings;
        let deadline = if busy {
            None
        } else {
            self.scheduler.next_deadline()
        };
        let timer = async {
            match deadline {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            input = self.inputs.recv() => match input {
                Some(input) => self.take(input),
                None => anyhow::bail!("all watches have ended"),
            },
            Some(binding) = self.bindings.recv() => self.binding_ended(binding).await,
            () = timer => {}
        }
        Ok(())
    }

    fn take(&mut self, input: Input) {
        let now = Instant::now();
        match input {
            Input::Applied(object) => apply(&mut self.scheduler, object, now),
            Input::Deleted(kind, id) => delete(&mut self.scheduler, kind, &id, now),
            Input::Listed(kind, present) => {
                if self.listed.insert(kind) {
                    tracing::debug!(?kind, count = present.len(), "listed");
                } else {
                    prune(&mut self.scheduler, kind, &present, now);
                }
            }
        }
    }
}

fn apply(scheduler: &mut Scheduler, object: Object, now: Instant) {
    match object {
        Object::Pod(pod) => scheduler.pod_applied(&pod, now),
        Object::Node(node) => scheduler.node_applied(&node, now),
        Object::Namespace(namespace) => {
            let labels = namespace.metadata.labels.clone().unwrap_or_default();
            scheduler.namespace_applied(&key(&*namespace), labels, now);
        }
        Object::Service(service) => apply_service(scheduler.snapshot_mut(), &service),
        Object::ReplicationController(controller) => {
            let labels = controller
                .spec
                .as_ref()
                .and_then(|s| s.selector.clone())
                .unwrap_or_default();
            let selector = Selector::from_labels(&labels);
            set_owner(
                scheduler.snapshot_mut(),
                "ReplicationController",
                &key(&*controller),
                Some(selector),
            );
        }
        Object::ReplicaSet(set) => {
            let selector = set
                .spec
                .as_ref()
                .map(|s| Selector::from_api(Some(&s.selector)));
            set_owner(
                scheduler.snapshot_mut(),
                "ReplicaSet",
                &key(&*set),
                selector,
            );
        }
        Object::StatefulSet(set) => {
            let selector = set
                .spec
                .as_ref()
                .map(|s| Selector::from_api(Some(&s.selector)));
            set_owner(
                scheduler.snapshot_mut(),
                "StatefulSet",
                &key(&*set),
                selector,
            );
        }
        Object::Budget(budget) => {
            scheduler
                .snapshot_mut()
                .budgets
                .insert(key(&*budget), *budget);
        }
        Object::Claim(claim) => {
            let new = Claim::from_api(&claim);
            let storage = &mut scheduler.snapshot_mut().storage;
            if storage.claims.insert(key(&*claim), new.clone()) != Some(new) {
                scheduler.storage_changed(now);
            }
        }
        Object::Volume(volume) => {
            let new = Volume::from_api(&volume);
            let storage = &mut scheduler.snapshot_mut().storage;
            if storage.volumes.insert(key(&*volume), new.clone()) != Some(new) {
                scheduler.storage_changed(now);
            }
        }
        Object::Class(class) => {
            let new = Class::from_api(&class);
            let storage = &mut scheduler.snapshot_mut().storage;
            if storage.classes.insert(key(&*class), new.clone()) != Some(new) {
                scheduler.storage_changed(now);
            }
        }
    }
}

fn apply_service(snapshot: &mut Snapshot, service: &Service) {
    let id = key(service);
    let Some((namespace, name)) = id.split_once('/') else {
        return;
    };
    let selector = service
        .spec
        .as_ref()
        .and_then(|s| s.selector.clone())
        .filter(|s| !s.is_empty());
    match selector {
        Some(selector) => {
            snapshot
                .sources
                .services
                .entry(namespace.to_owned())
                .or_default()
                .insert(name.to_owned(), selector);
        }
        None => remove_service(snapshot, &id),
    }
}

fn remove_service(snapshot: &mut Snapshot, id: &str) {
    let Some((namespace, name)) = id.split_once('/') else {
        return;
    };
    if let Some(services) = snapshot.sources.services.get_mut(namespace) {
        services.remove(name);
        if services.is_empty() {
            snapshot.sources.services.remove(namespace);
        }
    }
}

fn set_owner(snapshot: &mut Snapshot, kind: &'static str, id: &str, selector: Option<Selector>) {
    let Some((namespace, name)) = id.split_once('/') else {
        return;
    };
    let owner = (kind, namespace.to_owned(), name.to_owned());
    match selector {
        Some(selector) => snapshot.sources.owners.insert(owner, selector),
        None => snapshot.sources.owners.remove(&owner),
    };
}

fn owner_kind(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::ReplicationController => Some("ReplicationController"),
        Kind::ReplicaSet => Some("ReplicaSet"),
        Kind::StatefulSet => Some("StatefulSet"),
        Kind::Pod
        | Kind::Node
        | Kind::Namespace
        | Kind::Service
        | Kind::Budget
        | Kind::Claim
        | Kind::Volume
        | Kind::Class => None,
    }
}

fn delete(scheduler: &mut Scheduler, kind: Kind, id: &str, now: Instant) {
    match kind {
        Kind::Pod => scheduler.pod_deleted(id, now),
        Kind::Node => scheduler.node_deleted(id, now),
        Kind::Namespace => scheduler.snapshot_mut().remove_namespace(id),
        Kind::Service => remove_service(scheduler.snapshot_mut(), id),
        Kind::Budget => {
            scheduler.snapshot_mut().budgets.remove(id);
        }
        Kind::Claim => {
            scheduler.snapshot_mut().storage.claims.remove(id);
        }
        Kind::Volume => {
            scheduler.snapshot_mut().storage.volumes.remove(id);
        }
        Kind::Class => {
            scheduler.snapshot_mut().storage.classes.remove(id);
        }
        Kind::ReplicationController | Kind::ReplicaSet | Kind::StatefulSet => {
            if let Some(owner) = owner_kind(kind) {
                set_owner(scheduler.snapshot_mut(), owner, id, None);
            }
        }
    }
}

/// Forgets what a later list no longer has: it went away while the watch was broken.
fn prune(scheduler: &mut Scheduler, kind: Kind, present: &HashSet<String>, now: Instant) {
    if kind == Kind::Pod {
        return scheduler.pods_listed(present, now);
    }
    let snapshot = scheduler.snapshot();
    let sources = &snapshot.sources;
    let known: Vec<String> = match kind {
        Kind::Node => snapshot.node_names().map(str::to_owned).collect(),
        Kind::Namespace => snapshot.namespace_names().map(str::to_owned).collect(),
        Kind::Budget => snapshot.budgets.keys().cloned().collect(),
        Kind::Claim => snapshot.storage.claims.keys().cloned().collect(),
        Kind::Volume => snapshot.storage.volumes.keys().cloned().collect(),
        Kind::Class => snapshot.storage.classes.keys().cloned().collect(),
        Kind::Service => sources
            .services
            .iter()
            .flat_map(|(namespace, services)| {
                services
                    .keys()
                    .map(move |name| format!("{namespace}/{name}"))
            })
            .collect(),
        Kind::Pod | Kind::ReplicationController | Kind::ReplicaSet | Kind::StatefulSet => sources
            .owners
            .keys()
            .filter(|(of, _, _)| owner_kind(kind) == Some(of))
            .map(|(_, namespace, name)| format!("{namespace}/{name}"))
            .collect(),
    };
    for id in known.iter().filter(|id| !present.contains(*id)) {
        delete(scheduler, kind, id, now);
    }
}
