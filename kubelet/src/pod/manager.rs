//! All pods of the node: one worker each, admission of new ones, and an end to what no source wants
//! (upstream `podWorkers` and `HandlePodCleanups`).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::resize::{self, Change};
use super::worker::{self, Desired, Phase, Wakers};
use super::{admission, observed, sync};
use crate::container::kill;
use crate::events::Severity;
use crate::podutil;
use crate::resources;
use crate::shared::Shared;

struct Worker {
    desired: watch::Sender<Desired>,
    /// The pod as its source has it; the desired one has what is allocated.
    source: Arc<Pod>,
}

/// The pods of the node.
pub struct Manager {
    shared: Arc<Shared>,
    wakers: Arc<Wakers>,
    workers: Mutex<HashMap<String, Worker>>,
    /// Held while room is given out, so that it is not given out twice.
    placing: Mutex<()>,
    /// Pods that are gone from their source while their worker still tidies up, by uid.
    orphans: Mutex<HashSet<String>>,
    api_ready: AtomicBool,
    static_ready: AtomicBool,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    /// Told whenever a pod comes or goes.
    pub changed: Notify,
}

impl Manager {
    /// A manager without pods. Workers end with `shutdown`, containers do not.
    pub fn new(shared: Arc<Shared>, wakers: Arc<Wakers>, shutdown: CancellationToken) -> Arc<Self> {
        let (api, files) = (
            shared.client.is_none(),
            shared.config.file.static_pod_path.is_none(),
        );
        Arc::new(Manager {
            shared,
            wakers,
            workers: Mutex::new(HashMap::new()),
            placing: Mutex::new(()),
            orphans: Mutex::new(HashSet::new()),
            api_ready: AtomicBool::new(api),
            static_ready: AtomicBool::new(files),
            tasks: TaskTracker::new(),
            shutdown,
            changed: Notify::new(),
        })
    }

    /// All pods that have a worker.
    pub fn pods(&self) -> Vec<Arc<Pod>> {
        self.workers
            .lock()
            .values()
            .map(|w| w.desired.borrow().pod.clone())
            .collect()
    }

    /// The pod of that name.
    pub fn find(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        self.pods()
            .into_iter()
            .find(|p| podutil::namespace(p) == namespace && podutil::name(p) == name)
    }

    /// The pod of that uid.
    pub fn by_uid(&self, uid: &str) -> Option<Arc<Pod>> {
        self.workers
            .lock()
            .get(uid)
            .map(|w| w.desired.borrow().pod.clone())
    }

    /// Pods that hold resources: all but those at their end, and those that their source has no more, whose place the
    /// scheduler has given to others (upstream `Kubelet.filterOutInactivePods`).
    fn active(&self) -> Vec<Arc<Pod>> {
        let wanted: Vec<Arc<Pod>> = self
            .workers
            .lock()
            .values()
            .filter_map(|w| {
                let d = w.desired.borrow();
                (!d.removed).then(|| d.pod.clone())
            })
            .collect();
        wanted
            .into_iter()
            .filter(|p| {
                let phase = self
                    .shared
                    .status
                    .get(podutil::uid(p))
                    .and_then(|s| s.phase);
                let api = p.status.as_ref().and_then(|s| s.phase.clone());
                !podutil::is_terminal_phase(phase.as_deref())
                    && !podutil::is_terminal_phase(api.as_deref())
            })
            .collect()
    }

    /// A source has this pod, new or changed.
    pub fn apply(self: &Arc<Self>, pod: Pod) {
        let uid = podutil::uid(&pod).to_owned();
        if uid.is_empty() {
            warn!(pod = %podutil::describe(&pod), "a pod without uid is ignored");
            return;
        }
        let _placing = self.placing.lock();
        let source = Arc::new(pod);
        let pod = self.allocate(&source);
        if let Some(w) = self.workers.lock().get_mut(&uid) {
            w.source = source;
            w.desired.send_modify(|d| {
                d.pod = pod.clone();
                d.removed = false;
            });
            return;
        }
        let phase = if self.admit(&pod) {
            Phase::Syncing
        } else {
            Phase::Finished
        };
        let (tx, rx) = watch::channel(Desired {
            pod: pod.clone(),
            removed: false,
        });
        let wake = self.wakers.add(&uid);
        self.workers.lock().insert(
            uid.clone(),
            Worker {
                desired: tx,
                source,
            },
        );
        let (me, shared, shutdown) = (self.clone(), self.shared.clone(), self.shutdown.clone());
        self.tasks.spawn(async move {
            worker::run(shared, rx, wake, phase, shutdown.clone()).await;
            if !shutdown.is_cancelled() {
                me.workers.lock().remove(&uid);
                me.wakers.remove(&uid);
                me.update_qos();
            }
            me.changed.notify_one();
        });
        self.update_qos();
        self.changed.notify_one();
    }

    /// The pod as it is to be run: with what it has been granted of what it asks for.
    fn allocate(&self, source: &Arc<Pod>) -> Arc<Pod> {
        let node = self.shared.node.read().clone();
        let (pod, change) = self
            .shared
            .allocations
            .settle(source, &|| self.active(), &node);
        match change {
            None => {}
            Some(Change::Started) => {
                let text = resize::message(&pod, "Pod resize started", "");
                self.shared
                    .recorder
                    .pod(source, Severity::Normal, "ResizeStarted", text);
            }
            Some(Change::Pending(p)) => {
                let what = format!("Pod resize {}", p.reason);
                let text = resize::message(source, &what, &p.message);
                let reason = format!("Resize{}", p.reason);
                self.shared
                    .recorder
                    .pod(source, Severity::Warning, &reason, text);
            }
        }
        Arc::new(pod)
    }

    /// Looks again at the wishes that had to wait for room.
    pub fn retry_resizes(&self) {
        // Never both locks at once: granting takes them the other way round.
        let mut deferred = self.shared.allocations.deferred();
        let mut deferred: Vec<(String, Arc<Pod>)> = {
            let workers = self.workers.lock();
            let source = |uid: String| workers.get(&uid).map(|w| (uid, w.source.clone()));
            deferred.drain(..).filter_map(source).collect()
        };
        // The oldest first.
        deferred.sort_by_key(|(_, p)| p.metadata.creation_timestamp.as_ref().map(|t| t.0));
        if deferred.is_empty() {
            return;
        }
        let _placing = self.placing.lock();
        for (uid, source) in deferred {
            let pod = self.allocate(&source);
            if let Some(w) = self.workers.lock().get(&uid)
                && Arc::ptr_eq(&w.source, &source)
            {
                w.desired.send_if_modified(|d| {
                    let changed = *d.pod != *pod;
                    d.pod = pod.clone();
                    changed
                });
            }
        }
    }

    /// No source has this pod any more.
    pub fn remove(&self, uid: &str) {
        if let Some(w) = self.workers.lock().get(uid) {
            w.desired.send_modify(|d| d.removed = true);
        }
    }

    /// Whether the node can take a new pod; one that it cannot fails at once.
    fn admit(&self, pod: &Arc<Pod>) -> bool {
        let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
        // What ran under the last kubelet goes on; what is at its end takes nothing.
        if phase == Some("Running")
            || podutil::is_terminal_phase(phase)
            || pod.metadata.deletion_timestamp.is_some()
        {
            return true;
        }
        let node = self.shared.node.read().clone();
        let Some(r) = admission::refuse(pod, &self.active(), &node, &self.shared.config.file)
        else {
            return true;
        };
        self.shared
            .recorder
            .pod(pod, Severity::Warning, &r.reason, r.message.clone());
        info!(pod = %podutil::describe(pod), reason = %r.reason, message = %r.message, "a pod was refused");
        let status = PodStatus {
            phase: Some("Failed".to_owned()),
            reason: Some(r.reason.clone()),
            message: Some(format!("Pod was rejected: {}", r.message)),
            qos_class: Some(resources::qos(pod).as_str().to_owned()),
            observed_generation: pod.metadata.generation,
            conditions: pod.status.as_ref().and_then(|s| s.conditions.clone()),
            ..PodStatus::default()
        };
        self.shared.status.set(pod, status);
        self.shared.status.finish(pod);
        false
    }

    fn update_qos(&self) {
        let request = self
            .active()
            .iter()
            .filter(|p| resources::qos(p) == resources::Qos::Burstable)
            .map(|p| resources::pod_total(p, "cpu", resources::request))
            .sum();
        if let Err(error) = self.shared.cgroups.set_burstable(request) {
            warn!(%error, "could not set the share of burstable pods");
        }
    }

    /// All pods of the API have been told once.
    pub fn api_is_ready(&self) {
        self.api_ready.store(true, Ordering::Release);
    }

    /// All static pods have been told once.
    pub fn static_is_ready(&self) {
        self.static_ready.store(true, Ordering::Release);
    }

    /// Whether all sources have told their pods, so that a pod nobody told of is really unwanted.
    pub fn sources_ready(&self) -> bool {
        self.api_ready.load(Ordering::Acquire) && self.static_ready.load(Ordering::Acquire)
    }

    /// Ends and removes pods that the runtime or the disk has and no source wants. `in_runtime` are the uids of all
    /// sandboxes and containers.
    pub fn end_unwanted(self: &Arc<Self>, in_runtime: &HashSet<String>) {
        if !self.sources_ready() {
            return;
        }
        let mut unwanted: HashSet<String> = in_runtime.clone();
        match self.shared.volumes.known_pods() {
            Ok(dirs) => unwanted.extend(dirs),
            Err(error) => warn!(%error, "could not list the pods' directories"),
        }
        match self.shared.cgroups.known_pods() {
            Ok(groups) => unwanted.extend(groups),
            Err(error) => warn!(%error, "could not list the pods' cgroups"),
        }
        {
            let workers = self.workers.lock();
            unwanted.retain(|uid| !uid.is_empty() && !workers.contains_key(uid));
        }
        for uid in unwanted {
            if !self.orphans.lock().insert(uid.clone()) {
                continue;
            }
            let me = self.clone();
            self.tasks.spawn(async move {
                info!(%uid, "ending a pod that no source wants");
                let work = async {
                    let o = observed::observe(&*me.shared.runtime, &uid)
                        .await
                        .map_err(|e| e.to_string())?;
                    kill::all(&me.shared, None, &o, None)
                        .await
                        .map_err(|e| e.to_string())?;
                    sync::remove(&me.shared, &uid, me.logs_of(&uid)).await
                };
                let result = tokio::select! {
                    () = me.shutdown.cancelled() => Ok(()),
                    r = work => r,
                };
                if let Err(error) = result {
                    warn!(%uid, %error, "could not end an unwanted pod");
                }
                me.orphans.lock().remove(&uid);
            });
        }
    }

    /// The log directory of a pod of which only the uid is known.
    fn logs_of(&self, uid: &str) -> Option<std::path::PathBuf> {
        let suffix = format!("_{uid}");
        std::fs::read_dir(&self.shared.settings.pod_logs_dir)
            .ok()?
            .filter_map(|e| Some(e.ok()?.path()))
            .find(|p| {
                p.file_name()
                    .is_some_and(|n| n.to_string_lossy().ends_with(&suffix))
            })
    }

    /// Waits until all workers have stopped, after `shutdown`.
    pub async fn stopped(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}
