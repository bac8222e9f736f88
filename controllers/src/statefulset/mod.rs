//! Pods with an identity and storage of their own (upstream `pkg/controller/statefulset`).
//!
//! [`plan`] says which pods come and go; names are fixed, so that a stale plan fails instead of doubling a pod.

mod claims;
pub mod plan;
mod revisions;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolumeClaim, Pod};
use keelson_machinery::clock::Clock;
use keelson_runtime::ObjectKey;
use keelson_runtime::controller::{Action, Controller};
use keelson_runtime::events::{Recorder, reference};
use keelson_runtime::informer::{Event, Informer};
use keelson_runtime::workqueue::WorkQueue;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client};
use serde_json::json;

use crate::common::claim::{claim, settle};
use crate::common::pod_control::reason;
use crate::common::{
    Selector, controller_key, controller_of, enqueue_all, labels, name, namespace,
};
use crate::error::{Error, ignore_not_found, is_namespace_terminating, is_not_found};
use crate::{Context, synced};
use plan::{Step, min_ready, missing_identity};
use revisions::Revisions;

/// Upstream `--concurrent-statefulset-syncs`.
const WORKERS: usize = 5;

/// Runs until the context's shutdown.
///
/// # Errors
/// None; what fails is tried again.
pub async fn run(context: Context) -> anyhow::Result<()> {
    let sets = context.informers.informer::<StatefulSet>();
    let pods = context.informers.informer::<Pod>();
    let volumes = context.informers.informer::<PersistentVolumeClaim>();
    let revisions = context.informers.informer::<ControllerRevision>();
    let client = context.client("statefulset-controller");
    let stateful = Arc::new(Stateful {
        recorder: context.recorder(&client, "statefulset-controller"),
        client,
        clock: context.clock.clone(),
        sets: sets.clone(),
        pods: pods.clone(),
        claims: volumes.clone(),
        revisions: revisions.clone(),
    });
    synced!(sets, pods, volumes, revisions);
    let queue: Arc<WorkQueue<ObjectKey>> = WorkQueue::new("statefulset", &context.metrics);
    enqueue_all(&sets, &queue);
    let (adds, all) = (queue.clone(), sets.clone());
    pods.on_event(move |event| {
        let pod = event.object();
        if let Event::Updated { old, .. } = event
            && controller_of(&old.metadata) != controller_of(&pod.metadata)
            && let Some((key, _)) = controller_key::<StatefulSet>(&old.metadata)
        {
            adds.add(key);
        }
        if let Some((key, _)) = controller_key::<StatefulSet>(&pod.metadata) {
            adds.add(key);
        } else if controller_of(&pod.metadata).is_none() {
            for set in all.store().list_namespace(namespace(&pod.metadata)) {
                if selector(&set).is_ok_and(|s| !s.is_empty() && s.matches(labels(&pod.metadata))) {
                    adds.add(ObjectKey::of(&set.metadata));
                }
            }
        }
    });
    Controller::new("statefulset-controller", queue)
        .workers(WORKERS)
        .run(context.shutdown.clone(), move |key| {
            let stateful = stateful.clone();
            async move { stateful.sync(&key).await }
        })
        .await;
    Ok(())
}

fn selector(set: &StatefulSet) -> Result<Selector, String> {
    set.spec.as_ref().map_or_else(
        || Ok(Selector::default()),
        |spec| Selector::new(&spec.selector),
    )
}

struct Stateful {
    client: Client,
    recorder: Recorder,
    clock: Clock,
    sets: Informer<StatefulSet>,
    pods: Informer<Pod>,
    claims: Informer<PersistentVolumeClaim>,
    revisions: Informer<ControllerRevision>,
}

impl Stateful {
    async fn sync(&self, key: &ObjectKey) -> Result<Action, Error> {
        let Some(set) = self.sets.store().get(key) else {
            return Ok(Action::Done);
        };
        let selector = selector(&set).map_err(Error::Object)?;
        let history = claim(
            &*set,
            |labels| selector.matches(labels),
            self.revisions.store().list_namespace(&key.namespace),
        );
        let history = settle(&self.client, &*set, history).await?;
        // A pod belongs to a set by its labels and by its name.
        let named = self
            .pods
            .store()
            .list_namespace(&key.namespace)
            .into_iter()
            .filter(|pod| {
                controller_of(&pod.metadata).is_some() || plan::ordinal(&set, pod).is_some()
            });
        let pods = claim(&*set, |labels| selector.matches(labels), named);
        let pods = settle(&self.client, &*set, pods).await?;

        let (revisions, collisions) = revisions::settle(&self.client, &set, &history).await?;
        let now = self.clock.now();
        let mut plan = plan::plan(
            &set,
            name(&revisions.current.metadata),
            name(&revisions.update.metadata),
            &pods,
            now,
        );
        plan.status.collision_count = Some(collisions);
        let mut result = Ok(());
        for step in &plan.steps {
            result = self.apply(&set, &revisions, step).await;
            if result.is_err() {
                break;
            }
        }
        if result.is_ok() && set.metadata.deletion_timestamp.is_none() {
            for pod in &pods {
                result = claims::keep_owners(&self.client, &self.claims, &self.recorder, &set, pod)
                    .await;
                if result.is_err() {
                    break;
                }
            }
        }
        if set.status.as_ref() != Some(&plan.status) {
            let api: Api<StatefulSet> = Api::namespaced(self.client.clone(), &key.namespace);
            let mut changed = (*set).clone();
            changed.status = Some(plan.status.clone());
            ignore_not_found(
                api.replace_status(&key.name, &PostParams::default(), &changed)
                    .await,
            )?;
        }
        result?;
        revisions::clean(&self.client, &set, &history, &revisions, &pods).await?;
        let wait = min_ready(&set);
        if wait > 0 && plan.status.available_replicas != plan.status.ready_replicas {
            let seconds = u64::try_from(wait).unwrap_or(0);
            return Ok(Action::RequeueAfter(Duration::from_secs(seconds)));
        }
        Ok(Action::Done)
    }

    async fn apply(
        &self,
        set: &StatefulSet,
        revisions: &Revisions,
        step: &Step,
    ) -> Result<(), Error> {
        let space = namespace(&set.metadata);
        let api: Api<Pod> = Api::namespaced(self.client.clone(), space);
        let owner = reference(set);
        match step {
            Step::Create { ordinal, current } => {
                let revision = if *current {
                    &revisions.current
                } else {
                    &revisions.update
                };
                let template = revisions::template_of(revision)?;
                let pod = plan::pod(set, &template, name(&revision.metadata), *ordinal);
                if claims::is_stale(&self.claims, set, &pod, *ordinal) {
                    return Err(Error::Object(format!(
                        "a claim of {} still belongs to an earlier pod",
                        name(&pod.metadata)
                    )));
                }
                self.make_claims(set, &owner, name(&pod.metadata), *ordinal)
                    .await?;
                let made = api.create(&PostParams::default(), &pod).await;
                self.tell(
                    &owner,
                    "create",
                    set,
                    name(&pod.metadata),
                    made.as_ref().err(),
                );
                match made {
                    Ok(_) => Ok(()),
                    Err(error) if is_namespace_terminating(&error) => Ok(()),
                    Err(error) => Err(error.into()),
                }
            }
            Step::Delete(pod) => {
                let params = DeleteParams {
                    preconditions: Some(Preconditions {
                        uid: pod.metadata.uid.clone(),
                        resource_version: None,
                    }),
                    ..DeleteParams::default()
                };
                let deleted = api.delete(name(&pod.metadata), &params).await;
                let failure = deleted.as_ref().err().filter(|error| !is_not_found(error));
                self.tell(&owner, "delete", set, name(&pod.metadata), failure);
                ignore_not_found(deleted)
            }
            Step::Claims(pod) => match plan::ordinal(set, pod) {
                Some(ordinal) => {
                    self.make_claims(set, &owner, name(&pod.metadata), ordinal)
                        .await
                }
                None => Ok(()),
            },
            Step::Identify(pod) => {
                let patch = Patch::Merge(json!({"metadata": {
                    "uid": pod.metadata.uid,
                    "labels": missing_identity(set, pod),
                }}));
                let patched = api
                    .patch_metadata(name(&pod.metadata), &PatchParams::default(), &patch)
                    .await;
                self.tell(
                    &owner,
                    "update",
                    set,
                    name(&pod.metadata),
                    patched.as_ref().err(),
                );
                ignore_not_found(patched)
            }
        }
    }

    async fn make_claims(
        &self,
        set: &StatefulSet,
        owner: &ObjectReference,
        pod: &str,
        ordinal: i32,
    ) -> Result<(), Error> {
        let space = namespace(&set.metadata);
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), space);
        for claim in plan::claims(set, ordinal) {
            let own = name(&claim.metadata);
            if let Some(known) = self.claims.store().get_parts(space, own) {
                if known.metadata.deletion_timestamp.is_some() {
                    return Err(Error::Object(format!("pvc {own} is being deleted")));
                }
                continue;
            }
            match api.create(&PostParams::default(), &claim).await {
                Ok(_) => {
                    let text = format!(
                        "create Claim {own} Pod {pod} in StatefulSet {} success",
                        name(&set.metadata)
                    );
                    self.recorder.normal(owner, "SuccessfulCreate", text);
                }
                Err(error) if crate::error::is_already_exists(&error) => {}
                Err(error) => {
                    let text = format!(
                        "create Claim {own} for Pod {pod} in StatefulSet {} failed error: {}",
                        name(&set.metadata),
                        reason(&error)
                    );
                    self.recorder.warning(owner, "FailedCreate", text);
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    /// Upstream `recordPodEvent`.
    fn tell(
        &self,
        owner: &ObjectReference,
        verb: &str,
        set: &StatefulSet,
        pod: &str,
        failure: Option<&kube::Error>,
    ) {
        let title = match verb {
            "create" => "Create",
            "delete" => "Delete",
            _ => "Update",
        };
        let set = name(&set.metadata);
        match failure {
            None => {
                let text = format!("{verb} Pod {pod} in StatefulSet {set} successful");
                self.recorder
                    .normal(owner, &format!("Successful{title}"), text);
            }
            Some(error) if crate::error::is_already_exists(error) => {}
            Some(error) => {
                let text = format!(
                    "{verb} Pod {pod} in StatefulSet {set} failed error: {}",
                    reason(error)
                );
                self.recorder
                    .warning(owner, &format!("Failed{title}"), text);
            }
        }
    }
}
