//! The scheduling queue: pods ready to be tried, pods waiting out a back-off, and pods that wait for something to change
//! (`backend/queue.PriorityQueue`).
//!
//! Scheduling runs in the task that also takes in events, so no event can happen while a pod is being tried: the record of
//! in-flight events that upstream keeps has no counterpart here.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::event::ClusterEvent;
use crate::framework::{Framework, PluginSet};
use crate::plugins::priority_sort::SortKey;
use crate::pod::PendingPod;

/// How long a pod that nothing moved stays unschedulable before it is tried again (`podMaxInUnschedulablePodsDuration`).
const MAX_UNSCHEDULABLE: Duration = Duration::from_secs(5 * 60);
/// How often those are looked for.
const FLUSH_INTERVAL: Duration = Duration::from_secs(30);

/// A pod in the queue.
#[derive(Debug, Clone)]
pub struct QueuedPod {
    /// The pod.
    pub pod: Arc<PendingPod>,
    /// When it came to the queue, or came back.
    pub since: Instant,
    /// When it was first tried.
    pub first_attempt: Option<Instant>,
    /// How often it was tried.
    pub attempts: u32,
    /// How often nothing fitted.
    pub unschedulable_count: u32,
    /// How many times in a row something went wrong.
    pub consecutive_errors: u32,
    /// Who rejected it last.
    pub rejected_by: PluginSet,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Active(SortKey),
    /// Backing off after it was unschedulable; tried early when nothing else is there to do.
    Backoff((Instant, u64)),
    /// Backing off after an error; never tried early.
    ErrorBackoff((Instant, u64)),
    Unschedulable,
    /// Kept out by a `PreEnqueue` plugin.
    Gated,
}

/// How many pods are where, as `pending_pods` counts them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Ready to be tried.
    pub active: usize,
    /// Backing off.
    pub backoff: usize,
    /// Waiting for a change.
    pub unschedulable: usize,
    /// Kept out by gates.
    pub gated: usize,
}

/// The bounds of the back-off.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    /// After the first failure (`podInitialBackoffSeconds`).
    pub initial: Duration,
    /// At most (`podMaxBackoffSeconds`).
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff {
            initial: Duration::from_secs(1),
            max: Duration::from_secs(10),
        }
    }
}

/// The queue. Times are passed in.
#[derive(Debug)]
pub struct Queue {
    backoff_bounds: Backoff,
    sequence: u64,
    pods: HashMap<String, (QueuedPod, Place)>,
    active: BTreeMap<SortKey, String>,
    backoff: BTreeMap<(Instant, u64), String>,
    error_backoff: BTreeMap<(Instant, u64), String>,
    unschedulable: usize,
    gated: usize,
    next_flush: Option<Instant>,
}

impl Queue {
    /// An empty queue.
    pub fn new(backoff_bounds: Backoff) -> Self {
        Queue {
            backoff_bounds,
            sequence: 0,
            pods: HashMap::new(),
            active: BTreeMap::new(),
            backoff: BTreeMap::new(),
            error_backoff: BTreeMap::new(),
            unschedulable: 0,
            gated: 0,
            next_flush: None,
        }
    }

    /// How many pods are where.
    pub fn counts(&self) -> Counts {
        Counts {
            active: self.active.len(),
            backoff: self.backoff.len() + self.error_backoff.len(),
            unschedulable: self.unschedulable,
            gated: self.gated,
        }
    }

    /// The queued pod with this uid.
    pub fn get(&self, uid: &str) -> Option<&QueuedPod> {
        self.pods.get(uid).map(|(queued, _)| queued)
    }

    /// The uids of all queued pods.
    pub fn uids(&self) -> impl Iterator<Item = &str> {
        self.pods.keys().map(String::as_str)
    }

    /// Adds a new pod, or takes in a newer form of a known one: a change that a plugin may care about moves it on.
    pub fn add_or_update(&mut self, pod: Arc<PendingPod>, framework: &Framework, now: Instant) {
        let uid = pod.info.uid.clone();
        let Some((mut queued, place)) = self.take(&uid) else {
            let queued = QueuedPod {
                pod,
                since: now,
                first_attempt: None,
                attempts: 0,
                unschedulable_count: 0,
                consecutive_errors: 0,
                rejected_by: PluginSet::default(),
            };
            self.enqueue(queued, framework, now);
            return;
        };
        let changed = !same_for_scheduling(&queued.pod, &pod);
        queued.pod = pod;
        match place {
            Place::Gated => self.enqueue(queued, framework, now),
            Place::Unschedulable
                if changed
                    && framework.worth_retrying(
                        &queued.pod,
                        queued.rejected_by,
                        &ClusterEvent::Other(crate::event::EventKind::PodUpdate),
                    ) =>
            {
                self.requeue(queued, framework, now)
            }
            Place::Active(_) => self.enqueue(queued, framework, now),
            place => self.put(queued, place),
        }
    }

    /// Forgets a pod.
    pub fn remove(&mut self, uid: &str) -> Option<QueuedPod> {
        self.take(uid).map(|(queued, _)| queued)
    }

    /// Takes the pod that is to be tried next. With none ready, one that backs off after being unschedulable is as good.
    pub fn pop(&mut self, framework: &Framework, now: Instant) -> Option<QueuedPod> {
        self.flush(framework, now);
        let uid = match self.active.first_key_value() {
            Some((_, uid)) => uid.clone(),
            None => self.backoff.first_key_value()?.1.clone(),
        };
        let (mut queued, _) = self.take(&uid)?;
        queued.attempts += 1;
        queued.first_attempt.get_or_insert(now);
        Some(queued)
    }

    /// When [`Queue::pop`] may next have something that it has not now.
    pub fn next_deadline(&self) -> Option<Instant> {
        let error = self.error_backoff.first_key_value().map(|((at, _), _)| *at);
        let flush = (self.unschedulable > 0)
            .then_some(self.next_flush)
            .flatten();
        error.into_iter().chain(flush).min()
    }

    /// Puts a pod back for which no node was found.
    pub fn add_unschedulable(
        &mut self,
        mut queued: QueuedPod,
        rejected_by: PluginSet,
        now: Instant,
    ) {
        queued.since = now;
        queued.rejected_by = rejected_by;
        queued.unschedulable_count += 1;
        queued.consecutive_errors = 0;
        self.next_flush.get_or_insert(now + FLUSH_INTERVAL);
        self.put(queued, Place::Unschedulable);
    }

    /// Puts a pod back with which something went wrong that may be better next time.
    pub fn add_failed(&mut self, mut queued: QueuedPod, framework: &Framework, now: Instant) {
        queued.since = now;
        queued.rejected_by = PluginSet::default();
        queued.consecutive_errors += 1;
        self.requeue(queued, framework, now);
    }

    /// Moves on each unschedulable pod for which the event may have changed something; returns how many.
    pub fn on_event(
        &mut self,
        event: &ClusterEvent<'_>,
        framework: &Framework,
        now: Instant,
    ) -> usize {
        if self.unschedulable == 0 {
            return 0;
        }
        let moved: Vec<String> = self
            .pods
            .iter()
            .filter(|(_, (queued, place))| {
                *place == Place::Unschedulable
                    && framework.worth_retrying(&queued.pod, queued.rejected_by, event)
            })
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in &moved {
            if let Some((queued, _)) = self.take(uid) {
                self.requeue(queued, framework, now);
            }
        }
        moved.len()
    }

    fn flush(&mut self, framework: &Framework, now: Instant) {
        loop {
            let due = |queue: &BTreeMap<(Instant, u64), String>| {
                queue
                    .first_key_value()
                    .filter(|((at, _), _)| *at <= now)
                    .map(|(_, uid)| uid.clone())
            };
            let Some(uid) = due(&self.backoff).or_else(|| due(&self.error_backoff)) else {
                break;
            };
            if let Some((queued, _)) = self.take(&uid) {
                self.enqueue(queued, framework, now);
            }
        }
        if self.next_flush.is_some_and(|at| at <= now) {
            let stale: Vec<String> = self
                .pods
                .iter()
                .filter(|(_, (q, place))| {
                    *place == Place::Unschedulable && q.since + MAX_UNSCHEDULABLE <= now
                })
                .map(|(uid, _)| uid.clone())
                .collect();
            for uid in stale {
                if let Some((queued, _)) = self.take(&uid) {
                    self.requeue(queued, framework, now);
                }
            }
            self.next_flush = (self.unschedulable > 0).then(|| now + FLUSH_INTERVAL);
        }
    }

    /// Back to the back-off, or to the ready pods when that is over.
    fn requeue(&mut self, queued: QueuedPod, framework: &Framework, now: Instant) {
        let expiry = queued.since + self.backoff_of(&queued);
        if expiry <= now {
            return self.enqueue(queued, framework, now);
        }
        self.sequence += 1;
        let key = (expiry, self.sequence);
        let place = if queued.consecutive_errors > 0 {
            Place::ErrorBackoff(key)
        } else {
            Place::Backoff(key)
        };
        self.put(queued, place);
    }

    fn backoff_of(&self, queued: &QueuedPod) -> Duration {
        let count = if queued.consecutive_errors > 0 {
            queued.consecutive_errors
        } else {
            queued.unschedulable_count
        };
        match count {
            0 => Duration::ZERO,
            n => self
                .backoff_bounds
                .initial
                .saturating_mul(1 << (n - 1).min(20))
                .min(self.backoff_bounds.max),
        }
    }

    fn enqueue(&mut self, mut queued: QueuedPod, framework: &Framework, _now: Instant) {
        let place = match framework.run_pre_enqueue(&queued.pod) {
            Ok(()) => {
                self.sequence += 1;
                Place::Active(SortKey::new(
                    queued.pod.info.priority,
                    queued.since,
                    self.sequence,
                ))
            }
            Err((by, _)) => {
                queued.rejected_by = by;
                Place::Gated
            }
        };
        self.put(queued, place);
    }

    fn put(&mut self, queued: QueuedPod, place: Place) {
        let uid = queued.pod.info.uid.clone();
        match &place {
            Place::Active(key) => {
                self.active.insert(key.clone(), uid.clone());
            }
            Place::Backoff(key) => {
                self.backoff.insert(*key, uid.clone());
            }
            Place::ErrorBackoff(key) => {
                self.error_backoff.insert(*key, uid.clone());
            }
            Place::Unschedulable => self.unschedulable += 1,
            Place::Gated => self.gated += 1,
        }
        self.pods.insert(uid, (queued, place));
    }

    fn take(&mut self, uid: &str) -> Option<(QueuedPod, Place)> {
        let (queued, place) = self.pods.remove(uid)?;
        match &place {
            Place::Active(key) => {
                self.active.remove(key);
            }
            Place::Backoff(key) => {
                self.backoff.remove(key);
            }
            Place::ErrorBackoff(key) => {
                self.error_backoff.remove(key);
            }
            Place::Unschedulable => self.unschedulable -= 1,
            Place::Gated => self.gated -= 1,
        }
        Some((queued, place))
    }
}

/// Whether two forms of a pod differ only in what scheduling itself writes.
fn same_for_scheduling(a: &PendingPod, b: &PendingPod) -> bool {
    let stripped = |pod: &PendingPod| {
        let mut pod = pod.clone();
        let info = Arc::make_mut(&mut pod.info);
        info.resource_version.clear();
        info.nominated_node = None;
        pod.condition = None;
        pod.generation = None;
        pod
    };
    stripped(a) == stripped(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventKind;
    use crate::plugins::default_framework;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    fn pod(uid: &str, priority: i32, gates: &[&str]) -> Arc<PendingPod> {
        let gates: Vec<_> = gates.iter().map(|g| json!({"name": g})).collect();
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"uid": uid, "name": uid, "namespace": "ns"},
            "spec": {"priority": priority, "containers": [{"name": "c"}], "schedulingGates": gates}}))
        .unwrap();
        Arc::new(PendingPod::from_pod(&pod))
    }

    fn rejected_by_fit(framework: &Framework) -> PluginSet {
        let mut set = PluginSet::default();
        let at = (0..16).find(|i| {
            let mut one = PluginSet::default();
            one.insert(*i);
            framework.names(one) == ["NodeResourcesFit"]
        });
        set.insert(at.unwrap());
        set
    }

    fn drain(queue: &mut Queue, framework: &Framework, now: Instant) -> String {
        let mut uids = Vec::new();
        while let Some(queued) = queue.pop(framework, now) {
            uids.push(queued.pod.info.uid.clone());
        }
        uids.join(" ")
    }

    #[test]
    fn priority_then_age() {
        let framework = default_framework("s");
        let mut queue = Queue::new(Backoff::default());
        let start = Instant::now();
        for (i, (uid, priority)) in [("a", 0), ("b", 5), ("c", 0), ("d", 5)]
            .into_iter()
            .enumerate()
        {
            queue.add_or_update(
                pod(uid, priority, &[]),
                &framework,
                start + Duration::from_millis(i as u64),
            );
        }
        assert_eq!(
            drain(&mut queue, &framework, start + Duration::from_secs(1)),
            "b d a c"
        );
    }

    #[test]
    fn gates_keep_pods_out_until_they_are_removed() {
        let framework = default_framework("s");
        let mut queue = Queue::new(Backoff::default());
        let now = Instant::now();
        queue.add_or_update(pod("a", 0, &["g"]), &framework, now);
        assert_eq!(
            (
                drain(&mut queue, &framework, now).as_str(),
                queue.counts().gated
            ),
            ("", 1)
        );
        queue.add_or_update(pod("a", 0, &[]), &framework, now);
        assert_eq!(
            (
                drain(&mut queue, &framework, now).as_str(),
                queue.counts().gated
            ),
            ("a", 0)
        );
    }

    #[test]
    fn unschedulable_pods_wait_for_the_right_event() {
        let framework = default_framework("s");
        let rejected_by = rejected_by_fit(&framework);
        let now = Instant::now();
        for (event, want) in [
            (EventKind::AssignedPodDelete, "a"),
            (EventKind::NodeAdd, "a"),
            (EventKind::NodeUpdateLabel, ""),
            (EventKind::NodeDelete, ""),
        ] {
            let mut queue = Queue::new(Backoff::default());
            queue.add_or_update(pod("a", 0, &[]), &framework, now);
            let queued = queue.pop(&framework, now).unwrap();
            queue.add_unschedulable(queued, rejected_by, now);
            queue.on_event(&ClusterEvent::Other(event), &framework, now);
            // Nothing else is there to do, so the back-off is not waited out.
            assert_eq!(drain(&mut queue, &framework, now), want, "{event:?}");
        }
    }

    #[test]
    fn errors_back_off_doubling_to_the_bound() {
        let framework = default_framework("s");
        let mut queue = Queue::new(Backoff::default());
        let mut now = Instant::now();
        queue.add_or_update(pod("a", 0, &[]), &framework, now);
        for want in [1, 2, 4, 8, 10, 10] {
            let queued = queue.pop(&framework, now).unwrap();
            queue.add_failed(queued, &framework, now);
            assert!(queue.pop(&framework, now).is_none(), "tried early");
            let due = queue.next_deadline().unwrap();
            assert_eq!((due - now).as_secs(), want);
            now = due;
        }
    }

    #[test]
    fn forgotten_pods_are_tried_after_five_minutes() {
        let framework = default_framework("s");
        let mut queue = Queue::new(Backoff::default());
        let now = Instant::now();
        queue.add_or_update(pod("a", 0, &[]), &framework, now);
        let queued = queue.pop(&framework, now).unwrap();
        queue.add_unschedulable(queued, rejected_by_fit(&framework), now);
        assert_eq!(
            drain(&mut queue, &framework, now + Duration::from_secs(290)),
            ""
        );
        assert_eq!(
            drain(&mut queue, &framework, now + Duration::from_secs(330)),
            "a"
        );
    }
}
