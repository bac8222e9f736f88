//! The scheduler's writes: bindings, pod status, evictions, events.
//!
//! Bindings run side by side up to a bound. Status writes of one pod keep their order. Events are told on a best-effort basis: when
//! too many wait, new ones are dropped, as upstream's broadcaster does.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use keelson_machinery::clock::Clock;
use keelson_machinery::time;
use keelson_runtime::events::{EventType, Happening, Recorder};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::pod::PodInfo;
use crate::scheduler::Action;

mod volumes;

/// How many status writers there are; a pod always goes to the same one.
const STATUS_WRITERS: usize = 4;
/// How many status writes may wait for one writer.
const STATUS_QUEUE: usize = 1024;
/// The longest note of an event, in bytes (`NoteLengthLimit`).
const NOTE_LIMIT: usize = 1024;

/// How a binding ended.
#[derive(Debug)]
pub struct Binding {
    /// The pod.
    pub uid: String,
    /// `Err` with what the API said.
    pub result: Result<(), String>,
}

/// Carries out [`Action`]s.
pub struct Writer {
    client: Client,
    clock: Clock,
    recorder: Recorder,
    status: Vec<mpsc::Sender<StatusWrite>>,
    bindings: mpsc::UnboundedSender<Binding>,
}

enum StatusWrite {
    Patch {
        namespace: String,
        name: String,
        body: Value,
    },
    Preempt {
        preemptor: Arc<PodInfo>,
        node: Arc<str>,
        victim: Arc<PodInfo>,
    },
}

impl Writer {
    /// Starts the writers. Each binding's end is sent to `bindings`; the caller bounds how many run at once.
    pub fn start(
        client: Client,
        clock: Clock,
        recorder: Recorder,
        scheduler_name: &str,
        bindings: mpsc::UnboundedSender<Binding>,
    ) -> Self {
        let status = (0..STATUS_WRITERS)
            .map(|_| {
                let (sender, receiver) = mpsc::channel(STATUS_QUEUE);
                tokio::spawn(write_status(
                    client.clone(),
                    clock.clone(),
                    recorder.clone(),
                    scheduler_name.to_owned(),
                    receiver,
                ));
                sender
            })
            .collect();
        Writer {
            client,
            clock,
            recorder,
            status,
            bindings,
        }
    }

    /// Begins to carry out an action; waits only when too many status writes are queued.
    pub async fn act(&self, action: Action) {
        match action {
            Action::Bind {
                pod, node, volumes, ..
            } => {
                let (client, recorder) = (self.client.clone(), self.recorder.clone());
                let done = self.bindings.clone();
                tokio::spawn(async move {
                    let result = async {
                        volumes::write(&client, &pod.namespace, &node, &volumes).await?;
                        bind(&client, &pod, &node).await.map_err(|e| describe(&e))
                    }
                    .await;
                    if result.is_ok() {
                        let note = format!("Successfully assigned {} to {node}", pod.key());
                        let normal = EventType::Normal;
                        report(&recorder, &pod, None, normal, "Scheduled", "Binding", note);
                    }
                    // The receiver is gone only when the scheduler ends.
                    let _ = done.send(Binding {
                        uid: pod.uid.clone(),
                        result,
                    });
                });
            }
            Action::ReportFailure { pod, message } => {
                let note = truncated(message);
                let warning = EventType::Warning;
                let (reason, action) = ("FailedScheduling", "Scheduling");
                report(&self.recorder, &pod, None, warning, reason, action, note);
            }
            Action::PatchStatus {
                pod,
                condition,
                transition,
                nominated_node,
            } => {
                let mut status = json!({});
                if let Some(condition) = condition {
                    let mut written = json!({
                        "type": "PodScheduled", "status": condition.status, "reason": condition.reason,
                        "message": condition.message, "observedGeneration": condition.observed_generation,
                    });
                    if transition {
                        written["lastProbeTime"] = Value::Null;
                        written["lastTransitionTime"] = time::format(self.clock.now()).into();
                    }
                    status["conditions"] = json!([written]);
                }
                if let Some(node) = nominated_node {
                    status["nominatedNodeName"] = if node.is_empty() {
                        Value::Null
                    } else {
                        node.into()
                    };
                }
                let body = json!({"metadata": {"uid": pod.uid}, "status": status});
                let (namespace, name) = (pod.namespace.clone(), pod.name.clone());
                self.queue(
                    &pod,
                    StatusWrite::Patch {
                        namespace,
                        name,
                        body,
                    },
                )
                .await;
            }
            Action::Preempt {
                preemptor,
                node,
                victims,
            } => {
                for victim in victims {
                    let (preemptor, node) = (preemptor.clone(), node.clone());
                    let pod = victim.clone();
                    self.queue(
                        &pod,
                        StatusWrite::Preempt {
                            preemptor,
                            node,
                            victim,
                        },
                    )
                    .await;
                }
            }
        }
    }

    async fn queue(&self, pod: &PodInfo, write: StatusWrite) {
        let mut hasher = DefaultHasher::new();
        pod.uid.hash(&mut hasher);
        let at = (hasher.finish() % self.status.len() as u64) as usize;
        if self.status[at].send(write).await.is_err() {
            tracing::error!("the status writer is gone");
        }
    }
}

async fn bind(client: &Client, pod: &PodInfo, node: &str) -> Result<(), kube::Error> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace);
    let binding = json!({
        "apiVersion": "v1", "kind": "Binding",
        "metadata": {"name": pod.name, "namespace": pod.namespace, "uid": pod.uid},
        "target": {"kind": "Node", "name": node},
    });
    api.create_subresource::<_, Value>("binding", &pod.name, &PostParams::default(), &binding)
        .await
        .map(drop)
}

/// The API's own message where it gave one.
pub(crate) fn describe(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

async fn write_status(
    client: Client,
    clock: Clock,
    recorder: Recorder,
    scheduler_name: String,
    mut writes: mpsc::Receiver<StatusWrite>,
) {
    while let Some(write) = writes.recv().await {
        match write {
            StatusWrite::Patch {
                namespace,
                name,
                body,
            } => {
                patch_status(&client, &namespace, &name, &body).await;
            }
            StatusWrite::Preempt {
                preemptor,
                node,
                victim,
            } => {
                let message =
                    format!("{scheduler_name}: preempting to accommodate a higher priority pod");
                if evict(&client, &clock, &message, &victim).await {
                    let note = format!("Preempted by pod {} on node {node}", preemptor.uid);
                    let (reason, action) = ("Preempted", "Preempting");
                    let related = Some(&*preemptor);
                    report(
                        &recorder,
                        &victim,
                        related,
                        EventType::Normal,
                        reason,
                        action,
                        note,
                    );
                }
            }
        }
    }
}

/// Returns whether the pod may still be there.
async fn patch_status(client: &Client, namespace: &str, name: &str, body: &Value) -> bool {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    match api
        .patch_status(name, &PatchParams::default(), &Patch::Strategic(body))
        .await
    {
        Ok(_) => true,
        Err(error) if is_gone(&error) => false,
        Err(error) => {
            tracing::error!(pod = %format!("{namespace}/{name}"), error = %error, "cannot update the pod's status");
            true
        }
    }
}

/// Whether the pod is not there any more, or is another one of the same name.
fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404 || status.code == 409)
}

/// Marks and deletes a pod; returns whether it was deleted.
async fn evict(client: &Client, clock: &Clock, message: &str, victim: &PodInfo) -> bool {
    let body = json!({"metadata": {"uid": victim.uid}, "status": {"conditions": [{
        "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
        "message": message,
        "lastProbeTime": null, "lastTransitionTime": time::format(clock.now()),
    }]}});
    if !patch_status(client, &victim.namespace, &victim.name, &body).await {
        return false;
    }
    let api: Api<Pod> = Api::namespaced(client.clone(), &victim.namespace);
    let preconditions = Preconditions {
        uid: Some(victim.uid.clone()),
        resource_version: None,
    };
    let params = DeleteParams {
        preconditions: Some(preconditions),
        ..DeleteParams::default()
    };
    match api.delete(&victim.name, &params).await {
        Ok(_) => true,
        Err(error) if is_gone(&error) => false,
        Err(error) => {
            tracing::error!(pod = %victim.key(), error = %error, "cannot preempt the pod");
            false
        }
    }
}

/// Cuts a note to what the API takes, between characters.
fn truncated(mut note: String) -> String {
    const SUFFIX: &str = " ...";
    if note.len() > NOTE_LIMIT {
        let mut end = NOTE_LIMIT - SUFFIX.len();
        while !note.is_char_boundary(end) {
            end -= 1;
        }
        note.truncate(end);
        note.push_str(SUFFIX);
    }
    note
}

/// Tells of a pod.
fn report(
    recorder: &Recorder,
    pod: &PodInfo,
    related: Option<&PodInfo>,
    kind: EventType,
    reason: &str,
    action: &str,
    message: String,
) {
    recorder.record(Happening {
        regarding: reference(pod),
        related: related.map(reference),
        kind,
        reason: reason.to_owned(),
        action: action.to_owned(),
        message,
        annotations: BTreeMap::new(),
    });
}

fn reference(pod: &PodInfo) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(pod.namespace.clone()),
        name: Some(pod.name.clone()),
        uid: Some(pod.uid.clone()),
        resource_version: Some(pod.resource_version.clone()).filter(|v| !v.is_empty()),
        ..ObjectReference::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_cut_between_characters() {
        for (len, want) in [(10, 10), (1024, 1024), (1025, 1024)] {
            assert_eq!(truncated("a".repeat(len)).len(), want);
        }
        assert!(truncated("é".repeat(600)).ends_with("é ..."));
    }
}
