//! One pod's worker: a small state machine that looks at the pod whenever something may have changed.
//!
//! ```text
//! Syncing --deleted, removed or at its end--> Terminating --all ended--> Terminated --cleaned up--> Finished
//! ```
//! `Finished` waits for the pod to leave its source, and then takes away the last traces.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::sync::{self, Memory, Outcome};
use crate::container::config;
use crate::podutil;
use crate::shared::Shared;

/// Wakes pods' workers; known to all who may learn that a pod has changed.
#[derive(Default)]
pub struct Wakers(Mutex<HashMap<String, Arc<Notify>>>);

impl Wakers {
    /// Wakes the worker of the pod, if it has one.
    pub fn wake(&self, uid: &str) {
        if let Some(n) = self.0.lock().get(uid) {
            n.notify_one();
        }
    }

    /// Wakes all workers.
    pub fn wake_all(&self) {
        self.0.lock().values().for_each(|n| n.notify_one());
    }

    pub(super) fn add(&self, uid: &str) -> Arc<Notify> {
        self.0.lock().entry(uid.to_owned()).or_default().clone()
    }

    pub(super) fn remove(&self, uid: &str) {
        self.0.lock().remove(uid);
    }
}

/// What is wanted of a pod.
#[derive(Clone)]
pub struct Desired {
    /// The pod as its source has it, or had it last.
    pub pod: Arc<Pod>,
    /// Whether its source has it no more.
    pub removed: bool,
}

impl Desired {
    fn must_end(&self) -> bool {
        self.removed || self.pod.metadata.deletion_timestamp.is_some()
    }

    /// How long its containers may take, where the source says so.
    fn grace(&self) -> Option<i64> {
        self.pod.metadata.deletion_grace_period_seconds
    }
}

/// How far a pod has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The pod shall run.
    Syncing,
    /// Its containers are being ended.
    Terminating,
    /// Nothing of it runs.
    Terminated,
    /// Nothing of it is on the node but what its logs need.
    Finished,
}

const LONG: Duration = Duration::from_secs(3600);

/// At its own end the kubelet waits so long for what is being made.
const STOP: Duration = Duration::from_secs(5);

/// After a change the runtime is looked at a few times in quick succession: short-lived containers end, and pods
/// become ready, sooner than the next listing.
const SETTLE: [Duration; 4] = [
    Duration::from_millis(60),
    Duration::from_millis(120),
    Duration::from_millis(250),
    Duration::from_millis(500),
];

/// Works for one pod, beginning at `phase`, until it is gone without a trace, or until `shutdown`, which leaves its containers running.
pub async fn run(
    shared: Arc<Shared>,
    mut desired: watch::Receiver<Desired>,
    wake: Arc<Notify>,
    mut phase: Phase,
    shutdown: CancellationToken,
) {
    let mut memory = Memory::default();
    let mut settle = SETTLE.len();
    loop {
        let d = desired.borrow_and_update().clone();
        let uid = podutil::uid(&d.pod).to_owned();
        if phase == Phase::Syncing && d.must_end() {
            phase = Phase::Terminating;
        }
        let before = phase;
        let wait = match phase {
            Phase::Syncing => {
                let mut ending = desired.clone();
                let stop = CancellationToken::new();
                let outcome = {
                    let work = sync::sync(&shared, &d.pod, &mut memory, &stop);
                    tokio::pin!(work);
                    tokio::select! {
                        outcome = &mut work => Some(outcome),
                        // A pod that is to end does not wait for a slow pull, but for what is being made.
                        () = async { drop(ending.wait_for(Desired::must_end).await) } => {
                            stop.cancel();
                            work.await;
                            None
                        }
                        () = shutdown.cancelled() => {
                            stop.cancel();
                            let _ = tokio::time::timeout(STOP, work).await;
                            return;
                        }
                    }
                };
                match outcome {
                    None => continue,
                    Some(Outcome::Changed) => {
                        settle = 0;
                        Duration::ZERO
                    }
                    Some(Outcome::Done(next)) => {
                        // What waits for a back-off gains nothing from being looked at.
                        let calm = memory.failures.is_empty();
                        let soon = SETTLE.get(settle).copied().filter(|_| calm).unwrap_or(LONG);
                        settle = settle.saturating_add(1);
                        next.unwrap_or(LONG).min(resync(&shared)).min(soon)
                    }
                    Some(Outcome::Terminal) => {
                        phase = Phase::Terminating;
                        Duration::ZERO
                    }
                    Some(Outcome::Failed(error, wait)) => {
                        warn!(pod = %podutil::describe(&d.pod), %error, "could not bring a pod about");
                        wait
                    }
                }
            }
            Phase::Terminating => {
                let mut hurry = desired.clone();
                let grace = d.grace();
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    // Deleted once more, with less grace: begin anew with that.
                    _ = hurry.wait_for(|n| match (n.grace(), grace) {
                        (Some(new), Some(old)) => new < old,
                        _ => false,
                    }) => continue,
                    r = sync::terminate(&shared, &d.pod, &memory, grace) => match r {
                        Ok(()) => {
                            info!(pod = %podutil::describe(&d.pod), "a pod has ended");
                            phase = Phase::Terminated;
                            Duration::ZERO
                        }
                        Err(error) => {
                            warn!(pod = %podutil::describe(&d.pod), %error, "could not end a pod");
                            Duration::from_secs(1)
                        }
                    }
                }
            }
            Phase::Terminated => match sync::clean_up(&shared, &d.pod).await {
                Ok(()) => {
                    phase = Phase::Finished;
                    Duration::ZERO
                }
                Err(error) => {
                    warn!(pod = %podutil::describe(&d.pod), %error, "could not clean up after a pod");
                    Duration::from_secs(1)
                }
            },
            Phase::Finished => {
                if d.removed {
                    let logs = config::pod_logs_dir(
                        &shared.settings.pod_logs_dir,
                        podutil::namespace(&d.pod),
                        podutil::name(&d.pod),
                        &uid,
                    );
                    match sync::remove(&shared, &uid, Some(logs)).await {
                        Ok(()) => {
                            shared.status.remove(&uid);
                            debug!(pod = %podutil::describe(&d.pod), "a pod is gone");
                            return;
                        }
                        Err(error) => {
                            warn!(pod = %podutil::describe(&d.pod), %error, "could not remove what a pod left");
                            Duration::from_secs(2)
                        }
                    }
                } else {
                    if d.pod.metadata.deletion_timestamp.is_some() {
                        shared.status.deleting(&uid);
                    }
                    LONG
                }
            }
        };
        if phase != before {
            continue;
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = desired.changed() => if changed.is_err() { return },
            () = wake.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// The longest time between two looks, spread so that not all pods come at once.
fn resync(shared: &Shared) -> Duration {
    let base = shared
        .config
        .file
        .sync_frequency
        .0
        .max(Duration::from_secs(1));
    let mut byte = [0u8; 1];
    shared.clock.fill_random(&mut byte);
    base.mul_f64(1.0 + f64::from(byte[0]) / 512.0)
}
