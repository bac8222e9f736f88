//! Events about pods and the node, sent in the background. Repeats of one event are counted on one object, and
//! one object may not flood (client-go `tools/record`).

use std::collections::HashMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use keelson_machinery::clock::Clock;
use kube::api::{Api, Patch, PatchParams, PostParams};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use crate::podutil;

/// How many events may wait to be sent; more are dropped, as upstream does.
const QUEUE: usize = 1000;
/// An object may emit this many events at once...
const SPAM_BURST: f64 = 25.0;
/// ...and one more every five minutes.
const SPAM_QPS: f64 = 1.0 / 300.0;
/// How many distinct events are remembered for counting.
const REMEMBERED: usize = 4096;

/// How grave an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Severity {
    /// All as it should be.
    Normal,
    /// Something is wrong.
    Warning,
}

struct Record {
    about: ObjectReference,
    severity: Severity,
    reason: &'static str,
    message: String,
    at: Timestamp,
}

/// Emits events; clones share one queue.
#[derive(Clone)]
pub struct Recorder {
    queue: Option<mpsc::Sender<Record>>,
    clock: Clock,
}

impl Recorder {
    /// A recorder that sends with `client` from a task of its own; without a client events are only logged.
    pub fn new(client: Option<kube::Client>, node_name: &str, clock: Clock) -> Self {
        let queue = client.map(|client| {
            let (tx, rx) = mpsc::channel(QUEUE);
            tokio::spawn(send_all(client, node_name.to_owned(), clock.clone(), rx));
            tx
        });
        Recorder { queue, clock }
    }

    /// An event about anything.
    pub fn event(
        &self,
        about: ObjectReference,
        severity: Severity,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        let message = message.into();
        debug!(
            object = %about.name.as_deref().unwrap_or_default(),
            path = %about.field_path.as_deref().unwrap_or_default(),
            ?severity, reason, %message, "event"
        );
        if let Some(queue) = &self.queue {
            let record = Record {
                about,
                severity,
                reason,
                message,
                at: self.clock.now(),
            };
            if queue.try_send(record).is_err() {
                warn!(reason, "the event queue is full, an event was dropped");
            }
        }
    }

    /// An event about a pod.
    pub fn pod(
        &self,
        pod: &Pod,
        severity: Severity,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        self.event(podutil::reference(pod), severity, reason, message);
    }

    /// An event about a container of a pod.
    pub fn container(
        &self,
        pod: &Pod,
        container: &str,
        severity: Severity,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        self.event(
            podutil::container_reference(pod, container),
            severity,
            reason,
            message,
        );
    }

    /// An event about the node. Upstream refers to a node by its name in place of a uid.
    pub fn node(
        &self,
        node: &str,
        severity: Severity,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        let about = ObjectReference {
            kind: Some("Node".to_owned()),
            name: Some(node.to_owned()),
            uid: Some(node.to_owned()),
            ..Default::default()
        };
        self.event(about, severity, reason, message);
    }
}

struct Bucket {
    tokens: f64,
    at: Timestamp,
}

impl Bucket {
    fn take(&mut self, now: Timestamp) -> bool {
        let gone = now.duration_since(self.at).as_secs_f64().max(0.0);
        self.tokens = (self.tokens + gone * SPAM_QPS).min(SPAM_BURST);
        self.at = now;
        if self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }
}

async fn send_all(
    client: kube::Client,
    node: String,
    clock: Clock,
    mut queue: mpsc::Receiver<Record>,
) {
    let mut sent: HashMap<(String, Severity, &'static str, String), (String, i32)> = HashMap::new();
    let mut buckets: HashMap<String, Bucket> = HashMap::new();
    while let Some(r) = queue.recv().await {
        let object = format!(
            "{}/{}/{}/{}",
            r.about.namespace.as_deref().unwrap_or_default(),
            r.about.name.as_deref().unwrap_or_default(),
            r.about.uid.as_deref().unwrap_or_default(),
            r.about.field_path.as_deref().unwrap_or_default(),
        );
        if sent.len() > REMEMBERED {
            sent.clear();
        }
        if buckets.len() > REMEMBERED {
            buckets.clear();
        }
        let bucket = buckets.entry(object.clone()).or_insert(Bucket {
            tokens: SPAM_BURST,
            at: r.at,
        });
        if !bucket.take(r.at) {
            continue;
        }
        let namespace = r
            .about
            .namespace
            .clone()
            .unwrap_or_else(|| "default".to_owned());
        let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
        let key = (object, r.severity, r.reason, r.message.clone());
        if let Some((name, count)) = sent.get_mut(&key) {
            let patch = serde_json::json!({"count": *count + 1, "lastTimestamp": Time(r.at)});
            match api
                .patch(name, &PatchParams::default(), &Patch::Strategic(patch))
                .await
            {
                Ok(_) => {
                    *count += 1;
                    continue;
                }
                // The event has expired on the server: write a new one below.
                Err(kube::Error::Api(e)) if e.code == 404 => {}
                Err(e) => {
                    warn!(error = %e, "could not update an event");
                    continue;
                }
            }
        }
        let name = format!(
            "{}.{:x}{}",
            r.about.name.as_deref().unwrap_or("unknown"),
            r.at.as_nanosecond(),
            clock.name_suffix(3)
        );
        let event = Event {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(namespace),
                ..Default::default()
            },
            involved_object: r.about,
            type_: Some(match r.severity {
                Severity::Normal => "Normal".to_owned(),
                Severity::Warning => "Warning".to_owned(),
            }),
            reason: Some(r.reason.to_owned()),
            message: Some(r.message),
            source: Some(EventSource {
                component: Some("kubelet".to_owned()),
                host: Some(node.clone()),
            }),
            reporting_component: Some("kubelet".to_owned()),
            reporting_instance: Some(node.clone()),
            first_timestamp: Some(Time(r.at)),
            last_timestamp: Some(Time(r.at)),
            count: Some(1),
            ..Default::default()
        };
        match api.create(&PostParams::default(), &event).await {
            Ok(_) => {
                sent.insert(key, (name, 1));
            }
            // A namespace that is going away refuses events: nothing is lost that anybody could read.
            Err(kube::Error::Api(e)) if e.code == 403 || e.code == 404 => {
                debug!(error = %e, "an event was refused");
            }
            Err(e) => warn!(error = %e, "could not write an event"),
        }
    }
}
