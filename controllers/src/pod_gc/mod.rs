//! Force-deletes pods that no kubelet will finish: those of nodes that are gone, those terminating without a node or on a node
//! that is out of service, and the oldest finished ones above a threshold (upstream `pkg/controller/podgc`).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use keelson_machinery::clock::Clock;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use crate::common::pods;
use crate::error::{Error, ignore_not_found, is_not_found};
use crate::node_lifecycle::health::{conditions, ready, taints};
use crate::{Context, synced};

/// Upstream `gcCheckPeriod`.
const PERIOD: Duration = Duration::from_secs(20);
/// How long a node must be missing before the server is asked for it (upstream `quarantineTime`).
const QUARANTINE: SignedDuration = SignedDuration::from_secs(40);
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// Runs until the context's shutdown.
///
/// # Errors
/// None; what fails is tried again in the next round.
pub async fn run(context: Context) -> anyhow::Result<()> {
    let pods = context.informers.informer::<Pod>();
    let nodes = context.informers.informer::<Node>();
    synced!(pods, nodes);
    let client = context.client("pod-garbage-collector");
    let mut missing: HashMap<String, Timestamp> = HashMap::new();
    loop {
        let all = pods.store().list();
        let by_name: HashMap<String, Arc<Node>> = nodes
            .store()
            .list()
            .into_iter()
            .map(|node| (node.name_any(), node))
            .collect();
        let mut gone = Vec::new();
        for name in overdue(&all, &by_name, &mut missing, context.clock.now()) {
            match Api::<Node>::all(client.clone())
                .get_metadata_opt(&name)
                .await
            {
                Ok(None) => gone.push(name),
                Ok(Some(_)) => {}
                Err(error) => tracing::warn!(node = name, %error, "asking for a missing node"),
            }
        }
        let threshold = context.config.terminated_pod_threshold;
        for (pod, reason) in plan(&all, &by_name, &gone, threshold) {
            if let Err(error) = delete(&client, &context.clock, &pod, reason).await {
                tracing::warn!(pod = pod.name_any(), ?reason, %error, "deleting a pod that nobody finishes");
            }
        }
        let ended = context
            .shutdown
            .run_until_cancelled(tokio::time::sleep(PERIOD))
            .await
            .is_none();
        if ended {
            return Ok(());
        }
    }
}

/// Why a pod goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    Terminated,
    OutOfService,
    Orphaned,
    Unscheduled,
}

/// Keeps note of nodes that pods name and that are missing; names those that have been missing for the quarantine.
fn overdue(
    pods: &[Arc<Pod>],
    nodes: &HashMap<String, Arc<Node>>,
    missing: &mut HashMap<String, Timestamp>,
    now: Timestamp,
) -> Vec<String> {
    let mut named: HashMap<String, Timestamp> = HashMap::new();
    for pod in pods {
        let name = pods::node_name(pod);
        if !name.is_empty() && !nodes.contains_key(name) {
            let since = missing.get(name).copied().unwrap_or(now);
            named.insert(name.to_owned(), since);
        }
    }
    *missing = named;
    let mut due: Vec<String> = missing
        .iter()
        .filter(|(_, since)| now.duration_since(**since) >= QUARANTINE)
        .map(|(name, _)| name.clone())
        .collect();
    due.sort();
    due
}

/// Which pods go, each once.
fn plan(
    all: &[Arc<Pod>],
    nodes: &HashMap<String, Arc<Node>>,
    gone: &[String],
    threshold: usize,
) -> Vec<(Arc<Pod>, Reason)> {
    let mut planned: Vec<(Arc<Pod>, Reason)> = Vec::new();
    if threshold > 0 {
        let mut finished: Vec<&Arc<Pod>> = all
            .iter()
            .filter(|pod| !matches!(pods::phase(pod), "Pending" | "Running" | "Unknown" | ""))
            .collect();
        let surplus = finished.len().saturating_sub(threshold);
        let evicted = |pod: &Pod| {
            pods::phase(pod) == "Failed"
                && pod.status.as_ref().and_then(|s| s.reason.as_deref()) == Some("Evicted")
        };
        finished.sort_by_key(|pod| {
            let created = pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
            (!evicted(pod), created, pod.name_any())
        });
        planned.extend(
            finished
                .into_iter()
                .take(surplus)
                .map(|pod| (pod.clone(), Reason::Terminated)),
        );
    }
    for pod in all {
        let node = pods::node_name(pod);
        let out_of_service = || {
            nodes.get(node).is_some_and(|node| {
                ready(conditions(node)).is_none_or(|c| c.status != "True")
                    && taints(node).iter().any(|taint| taint.key == OUT_OF_SERVICE)
            })
        };
        let reason = if gone.iter().any(|name| name == node) {
            Reason::Orphaned
        } else if pods::is_deleting(pod) && node.is_empty() {
            Reason::Unscheduled
        } else if pods::is_deleting(pod) && out_of_service() {
            Reason::OutOfService
        } else {
            continue;
        };
        if !planned.iter().any(|(known, _)| Arc::ptr_eq(known, pod)) {
            planned.push((pod.clone(), reason));
        }
    }
    planned
}

/// Upstream `markFailedAndDeletePodWithCondition`.
async fn delete(client: &Client, clock: &Clock, pod: &Pod, reason: Reason) -> Result<(), Error> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let name = pod.name_any();
    if !pods::is_terminal(pod) {
        let mut status = json!({"phase": "Failed", "observedGeneration": pod.metadata.generation});
        if reason == Reason::Orphaned {
            status["conditions"] = json!([{
                "type": "DisruptionTarget",
                "status": "True",
                "reason": "DeletionByPodGC",
                "message": "PodGC: node no longer exists",
                "lastTransitionTime": Time(clock.now()),
                "observedGeneration": pod.metadata.generation,
            }]);
        }
        let patch =
            Patch::Strategic(json!({"metadata": {"uid": pod.metadata.uid}, "status": status}));
        match api
            .patch_status(&name, &PatchParams::default(), &patch)
            .await
        {
            Ok(_) => {}
            Err(error) if is_not_found(&error) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    ignore_not_found(
        api.delete(&name, &DeleteParams::default().grace_period(0))
            .await,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `name phase node [deleting] [evicted]`
    fn pod(text: &str) -> Arc<Pod> {
        let words: Vec<&str> = text.split(' ').collect();
        let deleting = words
            .contains(&"deleting")
            .then_some("2024-01-02T00:00:00Z");
        let reason = words.contains(&"evicted").then_some("Evicted");
        let node = Some(words[2]).filter(|node| *node != "-");
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": words[0], "deletionTimestamp": deleting},
                "spec": {"nodeName": node, "containers": []},
                "status": {"phase": words[1], "reason": reason},
            }))
            .unwrap(),
        )
    }

    #[test]
    fn pods_that_nobody_finishes_go() {
        let node = |name: &str, ready: &str, taint: &str| {
            let node: Node = serde_json::from_value(json!({
                "metadata": {"name": name},
                "spec": {"taints": [{"key": taint, "effect": "NoExecute"}]},
                "status": {"conditions": [{"type": "Ready", "status": ready}]},
            }))
            .unwrap();
            (name.to_owned(), Arc::new(node))
        };
        let nodes = HashMap::from([
            node("n", "True", OUT_OF_SERVICE),
            node("broken", "False", OUT_OF_SERVICE),
            node("slow", "Unknown", "other"),
        ]);
        let cases: [(&[&str], usize, &str); 6] = [
            (
                &["a Running n", "b Running lost", "c Pending -"],
                0,
                "b:Orphaned",
            ),
            (
                &["a Pending - deleting", "b Running n deleting"],
                0,
                "a:Unscheduled",
            ),
            (
                &[
                    "a Running broken deleting",
                    "b Running slow deleting",
                    "c Running broken",
                ],
                0,
                "a:OutOfService",
            ),
            (&["a Succeeded n", "b Failed n"], 2, ""),
            (
                &[
                    "a Succeeded n",
                    "b Failed n",
                    "c Failed n evicted",
                    "d Running n",
                ],
                1,
                "c:Terminated a:Terminated",
            ),
            (
                &["a Failed lost", "b Failed lost"],
                1,
                "a:Terminated b:Orphaned",
            ),
        ];
        for (texts, threshold, expected) in cases {
            let all: Vec<Arc<Pod>> = texts.iter().map(|text| pod(text)).collect();
            let planned = plan(&all, &nodes, &["lost".to_owned()], threshold);
            let planned: Vec<String> = planned
                .iter()
                .map(|(pod, reason)| format!("{}:{reason:?}", pod.name_any()))
                .collect();
            assert_eq!(planned.join(" "), expected, "{texts:?}");
        }
    }

    #[test]
    fn a_missing_node_is_asked_for_after_its_quarantine() {
        let at = |seconds: i64| Timestamp::from_second(1_700_000_000 + seconds).unwrap();
        let all = [pod("a Running lost")];
        let nodes = HashMap::new();
        let mut missing = HashMap::new();
        assert!(overdue(&all, &nodes, &mut missing, at(0)).is_empty());
        assert!(overdue(&all, &nodes, &mut missing, at(39)).is_empty());
        assert_eq!(overdue(&all, &nodes, &mut missing, at(40)), ["lost"]);
        assert!(overdue(&[], &nodes, &mut missing, at(60)).is_empty());
        assert!(
            overdue(&all, &nodes, &mut missing, at(80)).is_empty(),
            "it counts anew"
        );
    }
}
