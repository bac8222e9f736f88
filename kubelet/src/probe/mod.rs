//! Probes: for each probed container a worker that asks in turn and keeps the verdicts (upstream `prober`).

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus, Probe};
use keelson_machinery::clock::Clock;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tracing::debug;

use crate::cri::Runtime;
use crate::events::{Recorder, Severity};
use crate::podutil;
use crate::status::StatusManager;
use crate::status::generate::ProbeView;

pub mod grpc;
pub mod http;
pub mod run;

/// The sorts of probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Whether the container has come up.
    Startup,
    /// Whether it must be restarted.
    Liveness,
    /// Whether it takes traffic.
    Readiness,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Startup => "Startup",
            Kind::Liveness => "Liveness",
            Kind::Readiness => "Readiness",
        })
    }
}

/// What a probe says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All is well.
    Success,
    /// It is not.
    Failure,
    /// Nothing is known yet.
    Unknown,
}

type WorkerKey = (String, String, Kind);

struct Worker {
    stop: Arc<Notify>,
    trigger: Arc<Notify>,
}

/// All probes of the node.
pub struct Probes {
    workers: Mutex<HashMap<WorkerKey, Worker>>,
    results: Mutex<HashMap<(String, Kind), Outcome>>,
    runtime: Arc<dyn Runtime>,
    status: Arc<StatusManager>,
    recorder: Recorder,
    clock: Clock,
    began: Timestamp,
    /// Told the uid of a pod of which a verdict changed.
    changed: Box<dyn Fn(&str) + Send + Sync>,
    me: Weak<Probes>,
}

impl Probes {
    /// Probes without any worker. `changed` is called with a pod's uid whenever a verdict on it changes.
    pub fn new(
        runtime: Arc<dyn Runtime>,
        status: Arc<StatusManager>,
        recorder: Recorder,
        clock: Clock,
        changed: Box<dyn Fn(&str) + Send + Sync>,
    ) -> Arc<Self> {
        let began = clock.now();
        Arc::new_cyclic(|me| Probes {
            workers: Mutex::new(HashMap::new()),
            results: Mutex::new(HashMap::new()),
            runtime,
            status,
            recorder,
            clock,
            began,
            changed,
            me: me.clone(),
        })
    }

    /// Starts workers for all probes of the pod that have none.
    pub fn add_pod(&self, pod: &Arc<Pod>) {
        let Some(me) = self.me.upgrade() else { return };
        let relevant = podutil::containers(pod).iter().chain(
            podutil::init_containers(pod)
                .iter()
                .filter(|c| podutil::is_sidecar(c)),
        );
        for c in relevant {
            for (kind, spec) in [
                (Kind::Startup, &c.startup_probe),
                (Kind::Readiness, &c.readiness_probe),
                (Kind::Liveness, &c.liveness_probe),
            ] {
                let Some(spec) = spec else { continue };
                let key = (podutil::uid(pod).to_owned(), c.name.clone(), kind);
                let mut workers = self.workers.lock();
                if workers.contains_key(&key) {
                    continue;
                }
                let (stop, trigger) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
                workers.insert(
                    key.clone(),
                    Worker {
                        stop: stop.clone(),
                        trigger: trigger.clone(),
                    },
                );
                let task = Task {
                    probes: me.clone(),
                    key,
                    pod: pod.clone(),
                    container: c.clone(),
                    spec: spec.clone(),
                    container_id: String::new(),
                    last: None,
                    run: 0,
                    on_hold: false,
                };
                tokio::spawn(task.run(stop, trigger));
            }
        }
    }

    /// Ends the probes that could restart containers of a pod that is being ended.
    pub fn stop_restarting(&self, uid: &str) {
        self.stop_where(|k| k.0 == uid && k.2 != Kind::Readiness);
    }

    /// Ends all probes of the pod.
    pub fn remove_pod(&self, uid: &str) {
        self.stop_where(|k| k.0 == uid);
    }

    fn stop_where(&self, which: impl Fn(&WorkerKey) -> bool) {
        self.workers.lock().retain(|k, w| {
            if which(k) {
                w.stop.notify_one();
                return false;
            }
            true
        });
    }

    /// Asks for the container's readiness now rather than at the next tick.
    pub fn trigger_readiness(&self, uid: &str, container: &str) {
        let key = (uid.to_owned(), container.to_owned(), Kind::Readiness);
        if let Some(w) = self.workers.lock().get(&key) {
            w.trigger.notify_one();
        }
    }

    fn set(&self, uid: &str, container_id: &str, kind: Kind, outcome: Outcome) {
        let old = self
            .results
            .lock()
            .insert((container_id.to_owned(), kind), outcome);
        if old != Some(outcome) {
            (self.changed)(uid);
        }
    }

    fn forget(&self, container_id: &str, kind: Kind) {
        if !container_id.is_empty() {
            self.results.lock().remove(&(container_id.to_owned(), kind));
        }
    }
}

impl ProbeView for Probes {
    fn outcome(&self, container_id: &str, kind: Kind) -> Option<Outcome> {
        self.results
            .lock()
            .get(&(container_id.to_owned(), kind))
            .copied()
    }

    fn is_probed(&self, uid: &str, container: &str, kind: Kind) -> bool {
        self.workers
            .lock()
            .contains_key(&(uid.to_owned(), container.to_owned(), kind))
    }

    fn began(&self) -> Timestamp {
        self.began
    }
}

struct Task {
    probes: Arc<Probes>,
    key: WorkerKey,
    pod: Arc<Pod>,
    container: Container,
    spec: Probe,
    container_id: String,
    last: Option<Outcome>,
    run: i32,
    on_hold: bool,
}

impl Task {
    async fn run(mut self, stop: Arc<Notify>, trigger: Arc<Notify>) {
        let period = Duration::from_secs(self.spec.period_seconds.unwrap_or(10).max(1) as u64);
        // After a restart of the kubelet not all probes shall fall on one moment.
        let up = self.probes.clock.now().duration_since(self.probes.began);
        if Duration::try_from(up).unwrap_or_default() < period {
            let mut random = [0u8; 2];
            self.probes.clock.fill_random(&mut random);
            let part = f64::from(u16::from_le_bytes(random)) / f64::from(u16::MAX);
            tokio::select! {
                () = tokio::time::sleep(period.mul_f64(part)) => {}
                () = stop.notified() => return self.end(),
            }
        }
        let mut ticker = tokio::time::interval(period);
        ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        ticker.tick().await;
        loop {
            tokio::select! {
                go_on = self.probe_once() => if !go_on { break },
                () = stop.notified() => break,
            }
            tokio::select! {
                () = stop.notified() => break,
                _ = ticker.tick() => {}
                () = trigger.notified() => ticker.reset(),
            }
        }
        self.end();
    }

    fn end(self) {
        self.probes.forget(&self.container_id, self.key.2);
    }

    /// Probes once; returns whether to go on (upstream `worker.doProbe`).
    async fn probe_once(&mut self) -> bool {
        let kind = self.key.2;
        let Some(status) = self.probes.status.get(&self.key.0) else {
            return true;
        };
        if podutil::is_terminal_phase(status.phase.as_deref()) {
            return false;
        }
        let find = |l: &Option<Vec<_>>| {
            l.as_deref()
                .and_then(|l| podutil::status_of(l, &self.key.1))
                .cloned()
        };
        let Some(c) =
            find(&status.container_statuses).or_else(|| find(&status.init_container_statuses))
        else {
            return true;
        };
        let Some(id) = c
            .container_id
            .as_deref()
            .and_then(|x| x.split("://").nth(1))
        else {
            return true;
        };
        let running = c.state.as_ref().and_then(|s| s.running.as_ref());
        if id != self.container_id {
            self.probes.forget(&self.container_id, kind);
            self.container_id = id.to_owned();
            self.on_hold = false;
            self.last = None;
            self.run = 0;
            // A container from before this kubelet keeps its last state until it is probed.
            let adopted = running
                .and_then(|r| r.started_at.as_ref())
                .is_some_and(|t| t.0 < self.probes.began);
            if adopted {
                if kind == Kind::Startup && c.started == Some(true) {
                    self.probes.set(&self.key.0, id, kind, Outcome::Success);
                }
            } else {
                let initial = match kind {
                    Kind::Readiness => Outcome::Failure,
                    Kind::Liveness => Outcome::Success,
                    Kind::Startup => Outcome::Unknown,
                };
                self.probes.set(&self.key.0, id, kind, initial);
            }
        }
        if self.on_hold {
            return true;
        }
        let Some(running) = running else {
            self.probes.set(&self.key.0, id, kind, Outcome::Failure);
            return match c.state.as_ref().and_then(|s| s.terminated.as_ref()) {
                None => true,
                Some(t) => podutil::should_restart(&self.pod, &self.container, t.exit_code),
            };
        };
        let delay = i64::from(self.spec.initial_delay_seconds.unwrap_or(0));
        let age = running
            .started_at
            .as_ref()
            .map_or(0, |t| self.probes.clock.now().duration_since(t.0).as_secs());
        if age < delay {
            return true;
        }
        let started = c.started == Some(true);
        // Startup probes end with the start; the others begin with it.
        if started == (kind == Kind::Startup) {
            return true;
        }
        let Some(outcome) = self.ask(&status).await else {
            return true;
        };
        if self.last == Some(outcome) {
            self.run = self.run.saturating_add(1);
        } else {
            self.last = Some(outcome);
            self.run = 1;
        }
        let threshold = match outcome {
            Outcome::Failure => self.spec.failure_threshold.unwrap_or(3),
            Outcome::Success | Outcome::Unknown => self.spec.success_threshold.unwrap_or(1),
        };
        if self.run < threshold {
            return true;
        }
        self.probes
            .set(&self.key.0, &self.container_id, kind, outcome);
        if kind == Kind::Startup || (kind == Kind::Liveness && outcome == Outcome::Failure) {
            // Nothing is asked of a container that is about to be restarted, or that has started.
            self.on_hold = true;
            self.run = 0;
        }
        true
    }

    /// Asks once, with retries of what went wrong on our side; `None` if nothing was learnt.
    async fn ask(&self, status: &PodStatus) -> Option<Outcome> {
        let kind = self.key.2;
        let mut error = String::new();
        for _ in 0..3 {
            let result = run::run(
                &*self.probes.runtime,
                &self.spec,
                &self.container,
                &self.container_id,
                status.pod_ip.as_deref().unwrap_or_default(),
            )
            .await;
            let event = |reason: &'static str, message: String| {
                self.probes.recorder.container(
                    &self.pod,
                    &self.container.name,
                    Severity::Warning,
                    reason,
                    message,
                );
            };
            match result {
                run::Answer::Success => return Some(Outcome::Success),
                run::Answer::Warning(text) => {
                    event("ProbeWarning", format!("{kind} probe warning: {text}"));
                    return Some(Outcome::Success);
                }
                run::Answer::Failure(text) => {
                    debug!(pod = %podutil::describe(&self.pod), container = %self.container.name, %kind, %text, "probe failed");
                    event("Unhealthy", format!("{kind} probe failed: {text}"));
                    return Some(Outcome::Failure);
                }
                run::Answer::Error(text) => error = text,
            }
        }
        self.probes.recorder.container(
            &self.pod,
            &self.container.name,
            Severity::Warning,
            "Unhealthy",
            format!("{kind} probe errored and resulted in unknown state: {error}"),
        );
        None
    }
}
