//! DaemonSets: one pod on every node that fits (upstream `pkg/controller/daemon`).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use keelson_runtime::ObjectKey;
use keelson_runtime::controller::{Action, Controller};
use keelson_runtime::events::{Recorder, reference};
use keelson_runtime::informer::{Event, Informer};
use keelson_runtime::workqueue::WorkQueue;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::common::expectations::Expectations;
use crate::common::pod_control::PodControl;
use crate::common::pods::{is_deleting, is_ready};
use crate::common::{
    Selector, add_owner_index, candidates, claim, controller_key, controller_of,
    controller_reference, enqueue_all, fnv32a, labels, name, namespace, safe_encode, uid,
};
use crate::error::{
    ignore_not_found, is_already_exists, is_conflict, is_namespace_terminating, is_not_found,
};
use crate::{Context, Error, synced};

mod nodes;
mod plan;

use plan::REVISION_HASH;

const ACCOUNT: &str = "daemon-set-controller";
const COMPONENT: &str = "daemonset-controller";

struct Worker {
    client: Client,
    recorder: Recorder,
    control: PodControl,
    sets: Informer<DaemonSet>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    revisions: Informer<ControllerRevision>,
    expectations: Arc<Expectations>,
    /// When a failed pod may next be replaced, by set and node, and the wait after that.
    backoff: Mutex<HashMap<(String, String), (Instant, Duration)>>,
    ctx: Context,
}

/// What of a node decides where daemons run.
fn placement(node: &Node) -> impl PartialEq + use<> {
    (
        node.metadata.labels.clone(),
        node.spec
            .as_ref()
            .map(|s| (s.taints.clone(), s.unschedulable)),
    )
}

/// Runs until shutdown.
///
/// # Errors
/// None: what fails is tried again.
pub async fn run(ctx: Context) -> anyhow::Result<()> {
    let client = ctx.client(ACCOUNT);
    let sets = ctx.informers.informer::<DaemonSet>();
    let pods = ctx.informers.informer::<Pod>();
    let nodes = ctx.informers.informer::<Node>();
    let revisions = ctx.informers.informer::<ControllerRevision>();
    add_owner_index(&pods);
    add_owner_index(&revisions);
    let queue = WorkQueue::new("daemonset", &ctx.metrics);
    let expectations = Arc::new(Expectations::default());
    enqueue_all(&sets, &queue);
    nodes.on_event({
        let (queue, sets) = (queue.clone(), sets.clone());
        move |event| {
            if let Event::Updated { old, new } = event
                && placement(old) == placement(new)
            {
                return;
            }
            for set in sets.store().list() {
                queue.add(ObjectKey::of(&set.metadata));
            }
        }
    });
    revisions.on_event({
        let queue = queue.clone();
        move |event| {
            if let Some((key, _)) = controller_key::<DaemonSet>(&event.object().metadata) {
                queue.add(key);
            }
        }
    });
    pods.on_event({
        let (queue, sets, expectations) = (queue.clone(), sets.clone(), expectations.clone());
        move |event| on_pod(&queue, &sets, &expectations, event)
    });
    synced!(sets, pods, nodes, revisions);
    let recorder = ctx.recorder(&client, COMPONENT);
    let worker = Arc::new(Worker {
        control: PodControl::new(client.clone(), recorder.clone()),
        client,
        recorder,
        sets,
        pods,
        nodes,
        revisions,
        expectations,
        backoff: Mutex::default(),
        ctx: ctx.clone(),
    });
    Controller::new(COMPONENT, queue)
        .workers(2)
        .run(ctx.shutdown.clone(), move |key: ObjectKey| {
            let worker = worker.clone();
            async move { worker.reconcile(&key).await }
        })
        .await;
    Ok(())
}

fn on_pod(
    queue: &Arc<WorkQueue<ObjectKey>>,
    sets: &Informer<DaemonSet>,
    expectations: &Expectations,
    event: &Event<Pod>,
) {
    let pod = event.object();
    if let Some((key, _)) = controller_key::<DaemonSet>(&pod.metadata) {
        match event {
            Event::Added { .. } => expectations.created(&key),
            Event::Deleted { .. } => expectations.deleted(&key, uid(&pod.metadata)),
            Event::Updated { old, new } => {
                let wait = sets
                    .store()
                    .get(&key)
                    .and_then(|s| s.spec.as_ref()?.min_ready_seconds)
                    .unwrap_or(0);
                if !is_ready(old) && is_ready(new) && wait > 0 {
                    queue.add_after(key.clone(), Duration::from_secs(wait as u64 + 1));
                }
            }
        }
        if is_deleting(pod) {
            expectations.deleted(&key, uid(&pod.metadata));
        }
        queue.add(key);
    } else if controller_of(&pod.metadata).is_none() && !matches!(event, Event::Deleted { .. }) {
        for set in sets.store().list_namespace(namespace(&pod.metadata)) {
            if selector(&set).is_some_and(|s| s.matches(labels(&pod.metadata))) {
                queue.add(ObjectKey::of(&set.metadata));
            }
        }
    }
}

fn selector(set: &DaemonSet) -> Option<Selector> {
    let selector = Selector::new(&set.spec.as_ref()?.selector).ok()?;
    (!selector.is_empty()).then_some(selector)
}

/// The part of a set that a revision records: its template, to be put back whole (`getPatch`).
fn snapshot(set: &DaemonSet) -> Value {
    let template = set
        .spec
        .as_ref()
        .and_then(|s| serde_json::to_value(&s.template).ok());
    let mut template = template.unwrap_or_else(|| json!({}));
    template["$patch"] = json!("replace");
    json!({ "spec": { "template": template } })
}

fn hash(data: &Value, collisions: Option<i32>) -> String {
    let mut bytes = data.to_string().into_bytes();
    if let Some(collisions) = collisions {
        bytes.extend(collisions.to_le_bytes());
    }
    safe_encode(fnv32a(&bytes))
}

fn data_of(revision: &ControllerRevision) -> Option<&Value> {
    revision.data.as_ref().map(|raw| &raw.0)
}

impl Worker {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Error> {
        let Some(set) = self.sets.store().get(key) else {
            self.expectations.forget(key);
            return Ok(Action::Done);
        };
        let Some(selector) = selector(&set) else {
            self.recorder.warning(
                &reference(&*set),
                "SelectingAll",
                "This daemon set is selecting all pods. A non-empty selector is required.",
            );
            return Ok(Action::Done);
        };
        if set.metadata.deletion_timestamp.is_some() {
            return Ok(Action::Done);
        }
        let may_manage = self.expectations.satisfied(key);
        let claimed = claim::claim(
            &*set,
            |l| selector.matches(l),
            candidates(&self.revisions, &set.metadata),
        );
        let revisions = claim::settle(&self.client, &*set, claimed).await?;
        let Some(current) = self.current_revision(&set, &revisions).await? else {
            return Ok(Action::Retry);
        };
        let claimed = claim::claim(
            &*set,
            |l| selector.matches(l),
            candidates(&self.pods, &set.metadata),
        );
        let pods = claim::settle(&self.client, &*set, claimed).await?;
        let now = self.ctx.clock.now();
        let mut plan = plan::plan(
            &set,
            &current,
            &self.nodes.store().list(),
            &pods,
            may_manage,
            now,
        );
        let mut look_again = None;
        for pod in std::mem::take(&mut plan.failed) {
            match self.may_replace(&set, nodes::target(&pod).unwrap_or_default()) {
                Ok(()) => {
                    let text = format!(
                        "Found failed daemon pod {}/{} on node {}, will try to kill it",
                        key.namespace,
                        name(&pod.metadata),
                        nodes::target(&pod).unwrap_or_default()
                    );
                    self.recorder
                        .warning(&reference(&*set), "FailedDaemonPod", text);
                    plan.delete.push(pod);
                }
                Err(wait) => look_again = Some(look_again.map_or(wait, |w: Duration| w.min(wait))),
            }
        }
        let status = std::mem::take(&mut plan.status);
        let wrote = self.write(key, &set, &current, plan).await;
        if set.status.as_ref() != Some(&status) {
            let mut changed = (*set).clone();
            changed.status = Some(status);
            let api: Api<DaemonSet> = Api::namespaced(self.client.clone(), &key.namespace);
            match api
                .replace_status(&key.name, &PostParams::default(), &changed)
                .await
            {
                Ok(_) => {}
                Err(error) if is_not_found(&error) => return Ok(Action::Done),
                Err(error) if is_conflict(&error) => return Ok(Action::Retry),
                Err(error) => return Err(error.into()),
            }
        }
        wrote?;
        self.drop_old_revisions(&set, &revisions, &pods, &current)
            .await?;
        Ok(look_again.map_or(Action::Done, Action::RequeueAfter))
    }

    /// Whether a failed pod of the set on that node may be replaced now; else how long to wait.
    fn may_replace(&self, set: &DaemonSet, node: &str) -> Result<(), Duration> {
        let mut backoff = self.backoff.lock();
        let now = Instant::now();
        // Kept small: what was due long ago is a failure of its own again.
        backoff.retain(|_, (due, wait)| now.duration_since(*due) < 2 * *wait);
        let slot = backoff
            .entry((uid(&set.metadata).to_owned(), node.to_owned()))
            .or_insert((now, Duration::from_millis(500)));
        if slot.0 > now {
            return Err(slot.0 - now);
        }
        slot.1 = (slot.1 * 2).min(Duration::from_secs(900));
        slot.0 = now + slot.1;
        Ok(())
    }

    async fn write(
        &self,
        key: &ObjectKey,
        set: &DaemonSet,
        hash: &str,
        plan: plan::Plan,
    ) -> Result<(), Error> {
        if plan.create.is_empty() && plan.delete.is_empty() {
            return Ok(());
        }
        let about = reference(set);
        let uids = plan.delete.iter().map(|p| uid(&p.metadata).to_owned());
        self.expectations.expect(key, plan.create.len(), uids);
        let pods: Vec<_> = plan
            .create
            .iter()
            .map(|node| plan::pod(set, node, hash))
            .collect();
        let (made, refused) = self
            .control
            .create_many(&key.namespace, &pods, &about)
            .await;
        for _ in made..pods.len() {
            self.expectations.created(key);
        }
        let failure = self
            .control
            .delete_many(&key.namespace, &plan.delete, &about, |pod| {
                self.expectations.deleted(key, uid(&pod.metadata))
            })
            .await;
        match refused.filter(|e| !is_namespace_terminating(e)).or(failure) {
            Some(error) => Err(error.into()),
            None => Ok(()),
        }
    }

    /// The hash of the revision that the set's template is, made if it is new; a former one that is wanted again becomes the
    /// newest. `None` when a write has to be seen first.
    async fn current_revision(
        &self,
        set: &DaemonSet,
        revisions: &[Arc<ControllerRevision>],
    ) -> Result<Option<String>, Error> {
        let data = snapshot(set);
        let newest = revisions.iter().map(|r| r.revision).max().unwrap_or(0);
        let space = namespace(&set.metadata);
        let api: Api<ControllerRevision> = Api::namespaced(self.client.clone(), space);
        let label = |r: &ControllerRevision| labels(&r.metadata).get(REVISION_HASH).cloned();
        let mut same: Vec<_> = revisions
            .iter()
            .filter(|r| data_of(r) == Some(&data))
            .collect();
        same.sort_by_key(|r| r.revision);
        if let Some(known) = same.last() {
            if known.revision < newest {
                let patch = json!({ "revision": newest + 1 });
                api.patch(
                    name(&known.metadata),
                    &PatchParams::default(),
                    &Patch::Strategic(&patch),
                )
                .await?;
            }
            return Ok(label(known));
        }
        let collisions = set.status.as_ref().and_then(|s| s.collision_count);
        let hash = hash(&data, collisions);
        let mut own_labels = set
            .spec
            .as_ref()
            .and_then(|s| s.template.metadata.as_ref()?.labels.clone())
            .unwrap_or_default();
        own_labels.insert(REVISION_HASH.to_owned(), hash.clone());
        let revision = ControllerRevision {
            metadata: ObjectMeta {
                name: Some(format!("{}-{hash}", name(&set.metadata))),
                namespace: Some(space.to_owned()),
                labels: Some(own_labels),
                annotations: set.metadata.annotations.clone(),
                owner_references: Some(vec![controller_reference(set)]),
                ..Default::default()
            },
            data: Some(RawExtension(data.clone())),
            revision: newest + 1,
        };
        match api.create(&PostParams::default(), &revision).await {
            Ok(_) => Ok(Some(hash)),
            Err(error) if is_already_exists(&error) => {
                let live = api.get(name(&revision.metadata)).await?;
                if data_of(&live) == Some(&data) {
                    return Ok(Some(hash));
                }
                let mut bumped = set.clone();
                let status = bumped.status.get_or_insert_default();
                status.collision_count =
                    Some(status.collision_count.unwrap_or(0).saturating_add(1));
                let sets: Api<DaemonSet> = Api::namespaced(self.client.clone(), space);
                sets.replace_status(name(&set.metadata), &PostParams::default(), &bumped)
                    .await?;
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Old revisions beyond the limit go, those that pods still run excepted.
    async fn drop_old_revisions(
        &self,
        set: &DaemonSet,
        revisions: &[Arc<ControllerRevision>],
        pods: &[Arc<Pod>],
        current: &str,
    ) -> Result<(), Error> {
        let limit = set
            .spec
            .as_ref()
            .and_then(|s| s.revision_history_limit)
            .unwrap_or(10);
        let used = |r: &ControllerRevision| {
            let hash = labels(&r.metadata).get(REVISION_HASH);
            hash.map(String::as_str) == Some(current)
                || pods
                    .iter()
                    .any(|p| labels(&p.metadata).get(REVISION_HASH) == hash)
        };
        let mut idle: Vec<_> = revisions.iter().filter(|r| !used(r)).collect();
        idle.sort_by_key(|r| r.revision);
        let most = idle
            .len()
            .saturating_sub(usize::try_from(limit).unwrap_or(0));
        let api: Api<ControllerRevision> =
            Api::namespaced(self.client.clone(), namespace(&set.metadata));
        let params = DeleteParams::default();
        let results = join_all(
            idle.into_iter()
                .take(most)
                .map(|r| api.delete(name(&r.metadata), &params)),
        )
        .await;
        for result in results {
            ignore_not_found(result)?;
        }
        Ok(())
    }
}
