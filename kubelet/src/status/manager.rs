//! Keeps the last status of every pod and brings it to the API, with retries. Once a deleted pod is wholly ended
//! and its last status is written, its API object is deleted for good (upstream `status.manager`).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use keelson_machinery::clock::Clock;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::podutil;
use crate::status::conditions;

/// How many pods are written at once.
const PARALLEL: usize = 8;
/// The wait before a failed write is tried again.
const RETRY: Duration = Duration::from_secs(2);

struct Entry {
    namespace: String,
    name: String,
    /// The uid of the API object; of the mirror for a static pod, once it is known.
    target: Option<String>,
    status: PodStatus,
    version: u64,
    sent: u64,
    /// The API object is being deleted.
    deleting: bool,
    /// Nothing of the pod is left on the node.
    finished: bool,
    /// The API may have conditions about a resize, which must be deleted by name when they hold no more.
    resized: bool,
    in_flight: bool,
    retry_at: Option<tokio::time::Instant>,
}

/// The statuses of all pods of this node.
pub struct StatusManager {
    entries: Mutex<HashMap<String, Entry>>,
    /// Static pod uid to mirror uid.
    mirrors: Mutex<HashMap<String, String>>,
    changed: Notify,
    client: Option<kube::Client>,
    clock: Clock,
}

impl StatusManager {
    /// A manager that writes with `client`, or only keeps statuses without one.
    pub fn new(client: Option<kube::Client>, clock: Clock) -> Arc<Self> {
        Arc::new(StatusManager {
            entries: Mutex::new(HashMap::new()),
            mirrors: Mutex::new(HashMap::new()),
            changed: Notify::new(),
            client,
            clock,
        })
    }

    /// The last status that was set for the pod.
    pub fn get(&self, uid: &str) -> Option<PodStatus> {
        self.entries.lock().get(uid).map(|e| e.status.clone())
    }

    /// Sets the status of a pod; times of unchanged conditions and the start time are kept from the last one.
    /// Returns whether anything changed.
    pub fn set(&self, pod: &Pod, mut status: PodStatus) -> bool {
        let uid = podutil::uid(pod);
        let now = self.clock.now();
        let mut entries = self.entries.lock();
        let api = pod.status.clone().unwrap_or_default();
        let (old, known) = match entries.get(uid) {
            Some(e) => (e.status.clone(), true),
            None => (api, false),
        };
        normalize(&mut status, &old, now);
        let deleting = pod.metadata.deletion_timestamp.is_some();
        if known && old == status {
            if let Some(e) = entries.get_mut(uid) {
                e.deleting |= deleting;
            }
            return false;
        }
        let unchanged = !known && old == status;
        let target = if podutil::is_static(pod) {
            self.mirrors.lock().get(uid).cloned()
        } else {
            Some(uid.to_owned())
        };
        let e = entries.entry(uid.to_owned()).or_insert_with(|| Entry {
            namespace: podutil::namespace(pod).to_owned(),
            name: podutil::name(pod).to_owned(),
            target,
            status: PodStatus::default(),
            version: 0,
            sent: 0,
            deleting,
            finished: false,
            resized: about_resizes(pod.status.as_ref()),
            in_flight: false,
            retry_at: None,
        });
        e.resized |= about_resizes(Some(&status));
        e.status = status;
        e.deleting |= deleting;
        if !unchanged {
            e.version += 1;
        }
        drop(entries);
        self.changed.notify_one();
        !unchanged
    }

    /// Notes that nothing of the pod is left on the node: its API object may go.
    pub fn finish(&self, pod: &Pod) {
        if let Some(e) = self.entries.lock().get_mut(podutil::uid(pod)) {
            e.finished = true;
            e.deleting |= pod.metadata.deletion_timestamp.is_some();
        }
        self.changed.notify_one();
    }

    /// Notes that the pod's API object is being deleted.
    pub fn deleting(&self, uid: &str) {
        if let Some(e) = self.entries.lock().get_mut(uid) {
            e.deleting = true;
        }
        self.changed.notify_one();
    }

    /// Forgets a pod.
    pub fn remove(&self, uid: &str) {
        self.entries.lock().remove(uid);
        self.mirrors.lock().remove(uid);
    }

    /// Tells which API object shows a static pod; its status is written there.
    pub fn set_mirror(&self, static_uid: &str, mirror_uid: &str) {
        self.mirrors
            .lock()
            .insert(static_uid.to_owned(), mirror_uid.to_owned());
        if let Some(e) = self.entries.lock().get_mut(static_uid)
            && e.target.as_deref() != Some(mirror_uid)
        {
            e.target = Some(mirror_uid.to_owned());
            e.version += 1;
        }
        self.changed.notify_one();
    }

    /// Writes statuses until `shutdown`.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let Some(client) = self.client.clone() else {
            return;
        };
        let mut writes = futures::stream::FuturesUnordered::new();
        loop {
            let wait = self.due(&mut writes, &client);
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.changed.notified() => {}
                Some(()) = writes.next(), if !writes.is_empty() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Starts the writes that are due; returns how long to wait for the next retry.
    fn due<'a>(
        self: &'a Arc<Self>,
        writes: &mut futures::stream::FuturesUnordered<futures::future::BoxFuture<'a, ()>>,
        client: &kube::Client,
    ) -> Duration {
        let mut wait = Duration::from_secs(10);
        let now = tokio::time::Instant::now();
        let mut entries = self.entries.lock();
        for (uid, e) in entries.iter_mut() {
            if e.in_flight || !(e.version > e.sent || (e.finished && e.deleting)) {
                continue;
            }
            let Some(target) = e.target.clone() else {
                continue;
            };
            if let Some(at) = e.retry_at.filter(|at| *at > now) {
                wait = wait.min(at - now);
                continue;
            }
            if writes.len() >= PARALLEL {
                break;
            }
            e.in_flight = true;
            let job = Job {
                uid: uid.clone(),
                target,
                namespace: e.namespace.clone(),
                name: e.name.clone(),
                patch: (e.version > e.sent).then(|| e.status.clone()),
                resized: e.resized,
                version: e.version,
                delete: e.finished && e.deleting,
            };
            let (me, client) = (self.clone(), client.clone());
            writes.push(Box::pin(async move {
                let result = job.run(&client).await;
                me.done(job, result);
            }));
        }
        wait
    }

    fn done(&self, job: Job, result: Result<Done, kube::Error>) {
        let mut entries = self.entries.lock();
        let Some(e) = entries.get_mut(&job.uid) else {
            return;
        };
        e.in_flight = false;
        e.retry_at = None;
        match result {
            Ok(Done::Written) => e.sent = e.sent.max(job.version),
            Ok(Done::Gone) => {
                debug!(pod = %job.name, uid = %job.uid, "the pod's API object is gone");
                e.sent = e.version;
                e.deleting = false;
            }
            Err(error) => {
                warn!(namespace = %job.namespace, pod = %job.name, %error, "could not write the pod's status");
                e.retry_at = Some(tokio::time::Instant::now() + RETRY);
            }
        }
    }
}

struct Job {
    uid: String,
    target: String,
    namespace: String,
    name: String,
    patch: Option<PodStatus>,
    resized: bool,
    version: u64,
    delete: bool,
}

enum Done {
    Written,
    Gone,
}

/// Whether a status tells of a resize.
fn about_resizes(status: Option<&PodStatus>) -> bool {
    status
        .and_then(|s| s.conditions.as_ref())
        .is_some_and(|list| {
            list.iter()
                .any(|c| conditions::RESIZES.contains(&c.type_.as_str()))
        })
}

/// What an answer that is an error says of the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// It is not there.
    Gone,
    /// It may be another one of that name by now: the uid that was given did not fit, or somebody else was faster.
    Unclear,
    /// Nothing.
    Failed,
}

fn verdict(e: &kube::Error) -> Verdict {
    match e {
        kube::Error::Api(s) if s.code == 404 => Verdict::Gone,
        kube::Error::Api(s) if matches!(s.code, 409 | 422) => Verdict::Unclear,
        _ => Verdict::Failed,
    }
}

impl Job {
    async fn run(&self, client: &kube::Client) -> Result<Done, kube::Error> {
        let api: Api<Pod> = Api::namespaced(client.clone(), &self.namespace);
        if let Some(status) = &self.patch {
            let patch = status_patch(&self.target, status, self.resized)?;
            match api
                .patch_status(
                    &self.name,
                    &PatchParams::default(),
                    &Patch::Strategic(patch),
                )
                .await
            {
                Ok(_) => {}
                Err(e) => return self.settle(&api, e).await,
            }
        }
        if !self.delete {
            return Ok(Done::Written);
        }
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions {
                uid: Some(self.target.clone()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        match api.delete(&self.name, &params).await {
            Ok(_) => Ok(Done::Gone),
            Err(e) => self.settle(&api, e).await,
        }
    }

    /// Whether a refused write means that the object is gone: where the code alone does not tell, its uid does.
    async fn settle(&self, api: &Api<Pod>, error: kube::Error) -> Result<Done, kube::Error> {
        match verdict(&error) {
            Verdict::Gone => Ok(Done::Gone),
            Verdict::Failed => Err(error),
            Verdict::Unclear => match api.get_metadata_opt(&self.name).await? {
                Some(live) if live.metadata.uid.as_deref() == Some(&self.target) => Err(error),
                Some(_) | None => Ok(Done::Gone),
            },
        }
    }
}

/// The strategic merge patch that makes the API object's status this one. Conditions are merged by type, so that
/// those of others stay; addresses are replaced; what the kubelet has no value for is cleared. `resized` pods lose the
/// conditions about resizes that do not hold.
fn status_patch(uid: &str, status: &PodStatus, resized: bool) -> Result<Value, kube::Error> {
    const OURS: [&str; 16] = [
        "containerStatuses",
        "ephemeralContainerStatuses",
        "hostIP",
        "hostIPs",
        "initContainerStatuses",
        "message",
        "observedGeneration",
        "phase",
        "podIP",
        "podIPs",
        "qosClass",
        "reason",
        "startTime",
        "conditions",
        "allocatedResources",
        "resources",
    ];
    let Value::Object(mut fields) =
        serde_json::to_value(status).map_err(kube::Error::SerdeError)?
    else {
        return Ok(json!({}));
    };
    fields.retain(|k, _| OURS.contains(&k.as_str()));
    for key in OURS {
        fields.entry(key).or_insert(Value::Null);
    }
    // A condition is merged field by field: what it has no more must be said.
    for c in fields
        .get_mut("conditions")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        if let Some(c) = c.as_object_mut() {
            c.entry("reason").or_insert(Value::Null);
            c.entry("message").or_insert(Value::Null);
        }
    }
    for kind in conditions::RESIZES.iter().filter(|_| resized) {
        if let Some(Value::Array(list)) = fields.get_mut("conditions")
            && !list.iter().any(|c| c["type"] == **kind)
        {
            list.push(json!({"type": kind, "$patch": "delete"}));
        }
    }
    for key in ["podIPs", "hostIPs"] {
        if let Some(Value::Array(list)) = fields.get_mut(key) {
            list.insert(0, json!({"$patch": "replace"}));
        }
    }
    Ok(json!({"metadata": {"uid": uid}, "status": fields}))
}

/// Fills in what a status takes over from the last one.
fn normalize(status: &mut PodStatus, old: &PodStatus, now: Timestamp) {
    status.start_time = old
        .start_time
        .clone()
        .or_else(|| status.start_time.clone())
        .or_else(|| Some(podutil::time(now)));
    let before = old.conditions.as_deref().unwrap_or_default();
    for c in status.conditions.iter_mut().flatten() {
        match podutil::condition(before, &c.type_) {
            Some(o) if o.status == c.status && o.last_transition_time.is_some() => {
                c.last_transition_time = o.last_transition_time.clone();
            }
            _ => {
                if c.last_transition_time.is_none() || crate::status::conditions::is_ours(&c.type_)
                {
                    c.last_transition_time = Some(podutil::time(now));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_kept_and_fields_cleared() {
        let at = |s: i64| Timestamp::from_second(s).unwrap();
        let read = |t: &str| -> PodStatus { serde_yaml_ng::from_str(t).unwrap() };
        let mut first = read("{phase: Pending, conditions: [{type: Ready, status: 'False'}]}");
        normalize(&mut first, &PodStatus::default(), at(100));
        let mut second = read(
            "{phase: Running, conditions: [{type: Ready, status: 'False'}, {type: X, status: 'True'}]}",
        );
        normalize(&mut second, &first, at(200));
        let c = second.conditions.as_ref().unwrap();
        assert_eq!(second.start_time, Some(podutil::time(at(100))));
        assert_eq!(c[0].last_transition_time, Some(podutil::time(at(100))));
        assert_eq!(c[1].last_transition_time, Some(podutil::time(at(200))));
        second.pod_ips = Some(vec![k8s_openapi::api::core::v1::PodIP {
            ip: "10.0.0.2".into(),
        }]);
        let patch = status_patch("u", &second, false).unwrap();
        assert_eq!(patch["metadata"]["uid"], "u");
        assert_eq!(patch["status"]["reason"], Value::Null);
        assert_eq!(
            patch["status"]["podIPs"],
            json!([{"$patch": "replace"}, {"ip": "10.0.0.2"}])
        );
        let kinds = |patch: &Value| -> Vec<(String, bool)> {
            let list = patch["status"]["conditions"].as_array().unwrap().iter();
            list.map(|c| {
                (
                    c["type"].as_str().unwrap().to_owned(),
                    c["$patch"] == "delete",
                )
            })
            .collect()
        };
        let plain = [("Ready".to_owned(), false), ("X".to_owned(), false)];
        assert_eq!(kinds(&patch), plain);
        // A resize that is over takes its conditions with it.
        let over = kinds(&status_patch("u", &second, true).unwrap());
        let gone = conditions::RESIZES.map(|kind| (kind.to_owned(), true));
        assert_eq!(over, [plain.as_slice(), &gone].concat());
    }

    #[test]
    fn the_code_of_an_answer_decides_and_never_its_words() {
        let check = |code: u16, message: &str, want: Verdict| {
            let mut status = kube::core::Status::failure(message, "");
            status.code = code;
            assert_eq!(verdict(&kube::Error::Api(Box::new(status))), want, "{code}");
        };
        check(404, "", Verdict::Gone);
        check(409, "the object has been modified", Verdict::Unclear);
        check(422, "metadata.uid: Invalid value", Verdict::Unclear);
        check(500, "uid", Verdict::Failed);
    }
}
