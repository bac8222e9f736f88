//! Deletes pods that do not tolerate a `NoExecute` taint of their node, at once or when the toleration runs out (upstream
//! `pkg/controller/tainteviction`).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use keelson_machinery::clock::Clock;
use keelson_runtime::ObjectKey;
use keelson_runtime::controller::{Action, Controller};
use keelson_runtime::events::Recorder;
use keelson_runtime::informer::Event;
use keelson_runtime::workqueue::WorkQueue;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use parking_lot::Mutex;
use serde_json::json;

use crate::common::pods::{self, tolerates};
use crate::error::{Error, ignore_not_found, is_not_found};
use crate::node_lifecycle::{BY_NODE, health::taints, index_by_node};
use crate::{Context, synced};

/// Upstream `UpdateWorkerSize`.
const WORKERS: usize = 8;

/// When a pod goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    /// It may stay.
    Stay,
    /// It goes now.
    Now,
    /// It goes then.
    At(Timestamp),
}

/// Upstream `processPodOnNode`: what was set once stays until the taints are gone or tolerated for good.
fn plan(
    tolerations: &[Toleration],
    no_execute: &[&Taint],
    scheduled: Option<Timestamp>,
    now: Timestamp,
) -> Plan {
    if no_execute.is_empty() {
        return Plan::Stay;
    }
    let mut used = Vec::new();
    for taint in no_execute {
        match tolerations.iter().find(|t| tolerates(t, taint)) {
            Some(toleration) => used.push(toleration),
            None => return Plan::Now,
        }
    }
    let Some(least) = used.iter().filter_map(|t| t.toleration_seconds).min() else {
        return Plan::Stay;
    };
    match scheduled {
        Some(at) if at <= now => Plan::Now,
        Some(at) => Plan::At(at),
        None if least <= 0 => Plan::Now,
        None => now
            .checked_add(SignedDuration::from_secs(least))
            .map_or(Plan::Stay, Plan::At),
    }
}

/// Runs until the context's shutdown.
///
/// # Errors
/// None.
pub async fn run(context: Context) -> anyhow::Result<()> {
    let pods = context.informers.informer::<Pod>();
    let nodes = context.informers.informer::<Node>();
    index_by_node(&pods);
    synced!(pods, nodes);
    let queue: Arc<WorkQueue<ObjectKey>> = WorkQueue::new("noexec_taint_pod", &context.metrics);

    let (adds, all) = (queue.clone(), pods.clone());
    nodes.on_event(move |event| {
        let relevant = |node: &Node| -> Vec<Taint> {
            taints(node)
                .iter()
                .filter(|t| t.effect == "NoExecute")
                .cloned()
                .collect()
        };
        let changed = match event {
            Event::Updated { old, new } => relevant(old) != relevant(new),
            Event::Added { object, .. } => !relevant(object).is_empty(),
            Event::Deleted { .. } => false,
        };
        if changed {
            for pod in all.store().by_index(BY_NODE, &event.object().name_any()) {
                adds.add(ObjectKey::of(&pod.metadata));
            }
        }
    });
    let adds = queue.clone();
    pods.on_event(move |event| {
        let terms = |pod: &Pod| {
            let spec = pod.spec.as_ref();
            (
                spec.and_then(|spec| spec.node_name.clone()),
                spec.and_then(|spec| spec.tolerations.clone()),
            )
        };
        match event {
            Event::Updated { old, new } if terms(old) == terms(new) => {}
            _ => adds.add(ObjectKey::of(&event.object().metadata)),
        }
    });

    let client = context.client("node-controller");
    let evictor = Arc::new(Evictor {
        recorder: context.recorder(&client, "taint-eviction-controller"),
        client,
        clock: context.clock.clone(),
        scheduled: Mutex::default(),
    });
    Controller::new("taint-eviction-controller", queue)
        .workers(WORKERS)
        .run(context.shutdown.clone(), move |key| {
            let (evictor, pods, nodes) = (evictor.clone(), pods.clone(), nodes.clone());
            async move {
                let pod = pods.store().get(&key);
                let node = pod
                    .as_ref()
                    .and_then(|pod| nodes.store().get_parts("", pods::node_name(pod)));
                evictor.sync(&key, pod.as_deref(), node.as_deref()).await
            }
        })
        .await;
    Ok(())
}

struct Evictor {
    client: Client,
    recorder: Recorder,
    clock: Clock,
    /// Pods that go later, with their uid.
    scheduled: Mutex<HashMap<ObjectKey, (String, Timestamp)>>,
}

impl Evictor {
    async fn sync(
        &self,
        key: &ObjectKey,
        pod: Option<&Pod>,
        node: Option<&Node>,
    ) -> Result<Action, Error> {
        let (Some(pod), Some(node)) = (pod, node) else {
            self.cancel(key);
            return Ok(Action::Done);
        };
        let uid = pod.uid().unwrap_or_default();
        let now = self.clock.now();
        let scheduled = self.scheduled.lock().get(key).cloned();
        let scheduled = scheduled.filter(|(of, _)| *of == uid).map(|(_, at)| at);
        let no_execute: Vec<&Taint> = taints(node)
            .iter()
            .filter(|t| t.effect == "NoExecute")
            .collect();
        let tolerations = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.tolerations.as_deref());
        match plan(tolerations.unwrap_or_default(), &no_execute, scheduled, now) {
            Plan::Stay => {
                self.cancel(key);
                Ok(Action::Done)
            }
            Plan::At(at) => {
                self.scheduled.lock().insert(key.clone(), (uid, at));
                let wait = at.duration_since(now).unsigned_abs();
                Ok(Action::RequeueAfter(wait.max(Duration::from_millis(1))))
            }
            Plan::Now => {
                if pod.metadata.deletion_timestamp.is_none() {
                    self.evict(key, pod, now).await?;
                }
                self.scheduled.lock().remove(key);
                Ok(Action::Done)
            }
        }
    }

    fn cancel(&self, key: &ObjectKey) {
        if self.scheduled.lock().remove(key).is_some() {
            self.record(key, format!("Cancelling deletion of Pod {key}"));
        }
    }

    fn record(&self, key: &ObjectKey, message: String) {
        let regarding = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(key.namespace.clone()),
            name: Some(key.name.clone()),
            ..ObjectReference::default()
        };
        self.recorder
            .normal(&regarding, "TaintManagerEviction", message);
    }

    /// Upstream `addConditionAndDeletePod`.
    async fn evict(&self, key: &ObjectKey, pod: &Pod, now: Timestamp) -> Result<(), Error> {
        self.record(key, format!("Marking for deletion Pod {key}"));
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        if pods::condition(pod, "DisruptionTarget").is_none_or(|c| c.status != "True") {
            let patch = Patch::Strategic(json!({
                "metadata": {"uid": pod.metadata.uid},
                "status": {"conditions": [{
                    "type": "DisruptionTarget",
                    "status": "True",
                    "reason": "DeletionByTaintManager",
                    "message": "Taint manager: deleting due to NoExecute taint",
                    "lastTransitionTime": Time(now),
                    "observedGeneration": pod.metadata.generation,
                }]},
            }));
            match api
                .patch_status(&key.name, &PatchParams::default(), &patch)
                .await
            {
                Ok(_) => {}
                Err(error) if is_not_found(&error) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        ignore_not_found(api.delete(&key.name, &DeleteParams::default()).await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_stays_as_long_as_it_tolerates() {
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let at = |seconds: i64| now.checked_add(SignedDuration::from_secs(seconds)).unwrap();
        let taint = |text: &str| {
            let (key, value) = text.split_once('=').unwrap_or((text, ""));
            serde_json::from_value::<Taint>(
                json!({"key": key, "value": value, "effect": "NoExecute"}),
            )
            .unwrap()
        };
        let cases = [
            (json!([]), vec![], None, Plan::Stay),
            (json!([]), vec!["a"], None, Plan::Now),
            (
                json!([{"key": "a", "operator": "Exists"}]),
                vec!["a"],
                None,
                Plan::Stay,
            ),
            (
                json!([{"operator": "Exists", "effect": "NoSchedule"}]),
                vec!["a"],
                None,
                Plan::Now,
            ),
            (
                json!([{"key": "a", "value": "x"}]),
                vec!["a=x"],
                None,
                Plan::Stay,
            ),
            (
                json!([{"key": "a", "value": "x"}]),
                vec!["a=y"],
                None,
                Plan::Now,
            ),
            (
                json!([{"key": "a", "operator": "Exists", "tolerationSeconds": 300}]),
                vec!["a"],
                None,
                Plan::At(at(300)),
            ),
            (
                json!([{"key": "a", "operator": "Exists", "tolerationSeconds": 300},
                       {"key": "b", "operator": "Exists", "tolerationSeconds": 5}]),
                vec!["a", "b"],
                None,
                Plan::At(at(5)),
            ),
            (
                json!([{"operator": "Exists", "tolerationSeconds": 0}]),
                vec!["a"],
                None,
                Plan::Now,
            ),
            // What was set stays; when its time has come, it goes.
            (
                json!([{"operator": "Exists", "tolerationSeconds": 300}]),
                vec!["a"],
                Some(at(7)),
                Plan::At(at(7)),
            ),
            (
                json!([{"operator": "Exists", "tolerationSeconds": 300}]),
                vec!["a"],
                Some(now),
                Plan::Now,
            ),
            (
                json!([{"operator": "Exists"}]),
                vec!["a"],
                Some(at(7)),
                Plan::Stay,
            ),
        ];
        for (tolerations, keys, scheduled, expected) in cases {
            let parsed: Vec<Toleration> = serde_json::from_value(tolerations.clone()).unwrap();
            let no_execute: Vec<Taint> = keys.iter().map(|key| taint(key)).collect();
            let no_execute: Vec<&Taint> = no_execute.iter().collect();
            assert_eq!(
                plan(&parsed, &no_execute, scheduled, now),
                expected,
                "{tolerations} {keys:?}"
            );
        }
    }
}
