//! The scheduler as a state machine: what happened goes in, what is to be done comes out. It does no I/O and reads no clock.

use std::collections::HashMap;
use std::collections::HashSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use tokio::time::Instant;

use crate::algorithm::{Algorithm, Failure, describe};
use crate::cache::Cache;
use crate::event::{ClusterEvent, EventKind};
use crate::framework::{FailedCycle, Framework, PluginSet, PostFilter};
use crate::labels::Labels;
use crate::node::NodeSpec;
use crate::nominator::Nominator;
use crate::plugins::volume_binding::{self, VolumeWrite};
use crate::pod::{PendingPod, PodInfo, ScheduledCondition};
use crate::queue::{Backoff, Counts, Queue, QueuedPod};

/// Who places pods that name nobody (`v1.DefaultSchedulerName`).
pub const DEFAULT_NAME: &str = "default-scheduler";

/// What is to be done towards the API.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Bind the pod. The outcome must be reported by [`Scheduler::bound`] or [`Scheduler::bind_failed`].
    Bind {
        /// The pod.
        pod: Arc<PodInfo>,
        /// The node.
        node: String,
        /// What has to be written for its volumes first.
        volumes: Vec<VolumeWrite>,
        /// How often it was tried.
        attempts: u32,
        /// When it was first tried.
        first_attempt: Instant,
    },
    /// Tell the user why the pod is not placed (event `FailedScheduling`).
    ReportFailure {
        /// The pod.
        pod: Arc<PodInfo>,
        /// The event's note.
        message: String,
    },
    /// Write to the pod's status.
    PatchStatus {
        /// The pod.
        pod: Arc<PodInfo>,
        /// The `PodScheduled` condition, where it changed.
        condition: Option<ScheduledCondition>,
        /// Whether the condition's status (not only its text) changed, and with it the transition time.
        transition: bool,
        /// `nominatedNodeName`, where it changed; empty clears it.
        nominated_node: Option<String>,
    },
    /// Evict these pods so that `preemptor` can be placed on `node`.
    Preempt {
        /// Who comes.
        preemptor: Arc<PodInfo>,
        /// Where.
        node: Arc<str>,
        /// Who must go.
        victims: Vec<Arc<PodInfo>>,
    },
}

/// How a scheduling attempt ended, as `schedule_attempts_total` counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A node was found.
    Scheduled,
    /// No node fits.
    Unschedulable,
    /// The pod needed no attempt.
    Skipped,
}

/// One attempt.
#[derive(Debug)]
pub struct Attempt {
    /// How it ended.
    pub outcome: Outcome,
    /// What is to be done.
    pub actions: Vec<Action>,
}

/// The state.
pub struct Scheduler {
    framework: Framework,
    cache: Cache,
    queue: Queue,
    nominator: Nominator,
    algorithm: Algorithm,
    /// Pods whose binding is under way.
    binding: HashMap<String, QueuedPod>,
}

impl Scheduler {
    /// An empty cluster. `seed` decides among nodes that are equally good.
    pub fn new(framework: Framework, backoff: Backoff, seed: u64) -> Self {
        Scheduler {
            framework,
            cache: Cache::default(),
            queue: Queue::new(backoff),
            nominator: Nominator::default(),
            algorithm: Algorithm::new(seed),
            binding: HashMap::new(),
        }
    }

    /// How many pods wait where.
    pub fn counts(&self) -> Counts {
        self.queue.counts()
    }

    /// The cluster state, for services, workloads and budgets to be kept in.
    pub fn snapshot_mut(&mut self) -> &mut crate::snapshot::Snapshot {
        &mut self.cache.snapshot
    }

    /// The cluster state.
    pub fn snapshot(&self) -> &crate::snapshot::Snapshot {
        &self.cache.snapshot
    }

    /// When [`Scheduler::schedule_one`] may next have something to do that it has not now.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.queue.next_deadline()
    }

    fn happened(&mut self, event: &ClusterEvent<'_>, now: Instant) {
        self.queue.on_event(event, &self.framework, now);
    }

    // ---- pods ----

    /// A pod was added or changed.
    pub fn pod_applied(&mut self, pod: &Pod, now: Instant) {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
        if matches!(phase, Some("Succeeded" | "Failed")) {
            return self.pod_deleted(uid, now);
        }
        let placed = pod
            .spec
            .as_ref()
            .and_then(|s| s.node_name.as_deref())
            .is_some_and(|n| !n.is_empty());
        if placed {
            return self.placed_pod_applied(Arc::new(PodInfo::from_pod(pod)), now);
        }
        let scheduler_name = pod.spec.as_ref().and_then(|s| s.scheduler_name.as_deref());
        // The API fills it in; what is read from elsewhere may lack it.
        let scheduler_name = scheduler_name
            .filter(|n| !n.is_empty())
            .unwrap_or(DEFAULT_NAME);
        if scheduler_name != self.framework.scheduler_name {
            return;
        }
        let pending = Arc::new(PendingPod::from_pod(pod));
        self.note_nomination(&pending);
        if self.cache.is_assumed(uid) {
            if let Some(queued) = self.binding.get_mut(uid) {
                queued.pod = pending;
            }
            return;
        }
        self.queue.add_or_update(pending, &self.framework, now);
    }

    /// Follows `status.nominatedNodeName`. An update that never knew of a nomination does not take back one that is
    /// still on its way to the API.
    fn note_nomination(&mut self, pod: &PendingPod) {
        let uid = &pod.info.uid;
        let before = self
            .queue
            .get(uid)
            .and_then(|q| q.pod.info.nominated_node.clone());
        match (&pod.info.nominated_node, before) {
            (Some(node), _) => self.nominator.nominate(pod.info.clone(), node),
            (None, Some(_)) => self.nominator.clear(uid),
            (None, None) => {}
        }
    }

    fn placed_pod_applied(&mut self, pod: Arc<PodInfo>, now: Instant) {
        self.queue.remove(&pod.uid);
        self.nominator.clear(&pod.uid);
        let was_assumed = self.cache.is_assumed(&pod.uid);
        let old = self.cache.confirm(pod.clone()).filter(|_| !was_assumed);
        let Some(old) = old else {
            return self.happened(&ClusterEvent::Pod(EventKind::AssignedPodAdd, &pod), now);
        };
        if old.labels != pod.labels {
            self.happened(
                &ClusterEvent::Pod(EventKind::AssignedPodUpdateLabel, &pod),
                now,
            );
        }
        let (a, b) = (&old.requests.requests, &pod.requests.requests);
        if b.milli_cpu < a.milli_cpu
            || b.memory < a.memory
            || b.ephemeral_storage < a.ephemeral_storage
            || a.scalar
                .iter()
                .any(|(name, amount)| b.scalar(name) < *amount)
        {
            self.happened(
                &ClusterEvent::Pod(EventKind::AssignedPodScaleDown, &pod),
                now,
            );
        }
    }

    /// A pod is gone.
    pub fn pod_deleted(&mut self, uid: &str, now: Instant) {
        self.binding.remove(uid);
        let queued = self.queue.remove(uid);
        let nominated = self.nominator.node_of(uid).is_some();
        self.nominator.clear(uid);
        if let Some(pod) = self.cache.remove(uid) {
            self.happened(&ClusterEvent::Pod(EventKind::AssignedPodDelete, &pod), now);
        } else if let Some(queued) = queued.filter(|_| nominated) {
            // The room that was kept for it is free again.
            self.happened(
                &ClusterEvent::Pod(EventKind::AssignedPodDelete, &queued.pod.info),
                now,
            );
        }
    }

    /// A fresh list of pods holds only these; all others are gone.
    pub fn pods_listed(&mut self, present: &HashSet<String>, now: Instant) {
        let known = self
            .cache
            .confirmed_uids()
            .chain(self.queue.uids())
            .chain(self.binding.keys().map(String::as_str));
        let gone: Vec<String> = known
            .filter(|uid| !present.contains(*uid))
            .map(str::to_owned)
            .collect();
        for uid in gone {
            self.pod_deleted(&uid, now);
        }
    }

    // ---- nodes and namespaces ----

    /// A node was added or changed.
    pub fn node_applied(&mut self, node: &Node, now: Instant) {
        let Some(name) = node.metadata.name.as_deref() else {
            return;
        };
        let new = NodeSpec::from_node(node);
        let old = self.cache.snapshot.set_node(name, new.clone());
        let Some(old) = old else {
            return self.happened(
                &ClusterEvent::Node(EventKind::NodeAdd, name, None, Some(&new)),
                now,
            );
        };
        let changes = [
            (
                EventKind::NodeUpdateAllocatable,
                old.allocatable != new.allocatable,
            ),
            (EventKind::NodeUpdateLabel, old.labels != new.labels),
            (
                EventKind::NodeUpdateTaint,
                old.taints != new.taints || old.unschedulable != new.unschedulable,
            ),
        ];
        for (kind, _) in changes.into_iter().filter(|(_, changed)| *changed) {
            self.happened(&ClusterEvent::Node(kind, name, Some(&old), Some(&new)), now);
        }
    }

    /// A node is gone.
    pub fn node_deleted(&mut self, name: &str, now: Instant) {
        if let Some(old) = self.cache.snapshot.remove_node(name) {
            self.happened(
                &ClusterEvent::Node(EventKind::NodeDelete, name, Some(&old), None),
                now,
            );
        }
    }

    /// A namespace was added or changed.
    pub fn namespace_applied(&mut self, name: &str, labels: Labels, now: Instant) {
        if self.cache.snapshot.set_namespace(name, labels) {
            self.happened(&ClusterEvent::Other(EventKind::NamespaceUpdate), now);
        }
    }

    /// Something about claims, volumes or classes changed.
    pub fn storage_changed(&mut self, now: Instant) {
        self.happened(&ClusterEvent::Other(EventKind::StorageUpdate), now);
    }

    // ---- attempts ----

    /// Tries the next pod; `None` when none is ready.
    pub fn schedule_one(&mut self, now: Instant) -> Option<Attempt> {
        let queued = self.queue.pop(&self.framework, now)?;
        let pod = queued.pod.clone();
        let info = pod.info.clone();
        if info.terminating {
            let message = format!("skip schedule deleting pod: {}", info.key());
            let actions = vec![Action::ReportFailure { pod: info, message }];
            return Some(Attempt {
                outcome: Outcome::Skipped,
                actions,
            });
        }
        if self.cache.get(&info.uid).is_some() {
            return Some(Attempt {
                outcome: Outcome::Skipped,
                actions: Vec::new(),
            });
        }
        self.cache.snapshot.refresh_order();
        let snapshot = &self.cache.snapshot;
        match self
            .algorithm
            .schedule(snapshot, &self.framework, &self.nominator, &pod)
        {
            Ok(selected) => {
                let volumes = volume_binding::writes(snapshot, &pod, &selected.node);
                self.cache.assume(Arc::new(info.assumed_on(&selected.node)));
                self.nominator.clear(&info.uid);
                let action = Action::Bind {
                    pod: info.clone(),
                    node: selected.node,
                    volumes,
                    attempts: queued.attempts,
                    first_attempt: queued.first_attempt.unwrap_or(now),
                };
                self.binding.insert(info.uid.clone(), queued);
                Some(Attempt {
                    outcome: Outcome::Scheduled,
                    actions: vec![action],
                })
            }
            Err(failure) => {
                let actions = self.unschedulable(queued, failure, now);
                Some(Attempt {
                    outcome: Outcome::Unschedulable,
                    actions,
                })
            }
        }
    }

    fn unschedulable(
        &mut self,
        queued: QueuedPod,
        mut failure: Failure,
        now: Instant,
    ) -> Vec<Action> {
        let pod = queued.pod.clone();
        let seed = self.algorithm.random();
        let mut actions = Vec::new();
        // What becomes of the nomination: `None` leaves it, empty clears it.
        let mut nomination = Some(String::new());
        if let Failure::Unfit(diagnosis) = &mut failure {
            let result = self.framework.run_post_filter(&FailedCycle {
                snapshot: &self.cache.snapshot,
                framework: &self.framework,
                pod: &pod,
                nominator: &self.nominator,
                diagnosis,
                seed,
            });
            match result {
                None => {}
                Some(PostFilter::Unchanged(message)) => {
                    diagnosis.post_filter_message = message;
                    nomination = None;
                }
                Some(PostFilter::Hopeless(message)) => diagnosis.post_filter_message = message,
                Some(PostFilter::Preempt { node, victims }) => {
                    nomination = Some(node.to_string());
                    // Lesser pods that were to come there must look elsewhere.
                    for lesser in self.nominator.lower_on_node(&node, &pod.info) {
                        self.nominator.clear(&lesser.uid);
                        actions.push(Action::PatchStatus {
                            pod: lesser,
                            condition: None,
                            transition: false,
                            nominated_node: Some(String::new()),
                        });
                    }
                    actions.push(Action::Preempt {
                        preemptor: pod.info.clone(),
                        node,
                        victims,
                    });
                }
            }
        }
        let (message, rejected_by) = describe(self.cache.snapshot.node_count(), &failure);
        actions.extend(self.report(
            queued,
            "Unschedulable",
            message,
            nomination,
            now,
            Some(rejected_by),
        ));
        actions
    }

    /// Puts a pod back and says why: unschedulable when `rejected_by` is given, an error otherwise.
    fn report(
        &mut self,
        mut queued: QueuedPod,
        reason: &str,
        message: String,
        nomination: Option<String>,
        now: Instant,
        rejected_by: Option<PluginSet>,
    ) -> Vec<Action> {
        let pod = queued.pod.clone();
        let condition = ScheduledCondition {
            status: "False".to_owned(),
            reason: reason.to_owned(),
            message: message.clone(),
            observed_generation: pod.generation,
        };
        let changed = pod.condition.as_ref() != Some(&condition);
        let transition = pod
            .condition
            .as_ref()
            .is_none_or(|c| c.status != condition.status);
        let in_api = pod.info.nominated_node.clone().unwrap_or_default();
        let nominated_node = nomination.clone().filter(|node| *node != in_api);

        match nomination.as_deref() {
            None => {}
            Some("") => self.nominator.clear(&pod.info.uid),
            Some(node) => self.nominator.nominate(pod.info.clone(), node),
        }
        if changed || nominated_node.is_some() {
            // What is written counts as written, so that the same is not written again before it is read back.
            let updated = Arc::make_mut(&mut queued.pod);
            updated.condition = Some(condition.clone());
            if let Some(node) = &nominated_node {
                Arc::make_mut(&mut updated.info).nominated_node =
                    Some(node.clone()).filter(|n| !n.is_empty());
            }
        }
        match rejected_by {
            Some(plugins) => self.queue.add_unschedulable(queued, plugins, now),
            None => self.queue.add_failed(queued, &self.framework, now),
        }
        let mut actions = vec![Action::ReportFailure {
            pod: pod.info.clone(),
            message,
        }];
        if changed || nominated_node.is_some() {
            actions.push(Action::PatchStatus {
                pod: pod.info.clone(),
                condition: changed.then_some(condition),
                transition,
                nominated_node,
            });
        }
        actions
    }

    /// The API took a binding.
    pub fn bound(&mut self, uid: &str) {
        self.binding.remove(uid);
    }

    /// The API refused a binding, or could not be reached.
    pub fn bind_failed(&mut self, uid: &str, error: &str, now: Instant) -> Vec<Action> {
        // A pod that is gone, or that was confirmed after all, needs nothing more.
        let forgotten = self.cache.forget(uid);
        if let Some(pod) = &forgotten {
            self.happened(&ClusterEvent::Pod(EventKind::AssignedPodDelete, pod), now);
        }
        match self.binding.remove(uid) {
            Some(queued) if forgotten.is_some() => {
                let message = format!("running Bind plugin \"DefaultBinder\": {error}");
                self.report(
                    queued,
                    "SchedulerError",
                    message,
                    Some(String::new()),
                    now,
                    None,
                )
            }
            _ => Vec::new(),
        }
    }
}
