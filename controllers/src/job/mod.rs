//! Jobs: pods that run to completion (upstream `pkg/controller/job`).
//!
//! [`plan::plan`] says what to write; see there for how counting survives crashes.

use std::sync::Arc;

use futures::future::join_all;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use keelson_runtime::ObjectKey;
use keelson_runtime::controller::{Action, Controller};
use keelson_runtime::events::{EventType, Recorder, reference};
use keelson_runtime::informer::{Event, Informer};
use keelson_runtime::workqueue::{RateLimit, WorkQueue};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;

use crate::common::expectations::Expectations;
use crate::common::pod_control::PodControl;
use crate::common::pods::{is_deleting, is_terminal};
use crate::common::{
    Selector, add_owner_index, candidates, claim, controller_key, controller_of, enqueue_all,
    labels, name, namespace, uid,
};
use crate::error::{is_code, is_conflict, is_namespace_terminating, is_not_found};
use crate::{Context, Error, synced};

mod indexes;
mod plan;
mod policy;

use plan::{FINALIZER, is_held};

const ACCOUNT: &str = "job-controller";
/// The value of `spec.managedBy` that means this controller.
const MANAGER: &str = "kubernetes.io/job-controller";

struct Worker {
    client: Client,
    recorder: Recorder,
    control: PodControl,
    jobs: Informer<Job>,
    pods: Informer<Pod>,
    expectations: Arc<Expectations>,
    ctx: Context,
}

/// Runs until shutdown.
///
/// # Errors
/// None: what fails is tried again.
pub async fn run(ctx: Context) -> anyhow::Result<()> {
    let client = ctx.client(ACCOUNT);
    let jobs = ctx.informers.informer::<Job>();
    let pods = ctx.informers.informer::<Pod>();
    let limit = RateLimit {
        base: std::time::Duration::from_secs(1),
        most: std::time::Duration::from_secs(60),
        ..Default::default()
    };
    let queue = WorkQueue::with_limit("job", limit, &ctx.metrics);
    add_owner_index(&pods);
    let expectations = Arc::new(Expectations::default());
    enqueue_all(&jobs, &queue);
    pods.on_event({
        let (queue, jobs, expectations) = (queue.clone(), jobs.clone(), expectations.clone());
        move |event| on_pod(&queue, &expectations, &jobs, event)
    });
    synced!(jobs, pods);
    let recorder = ctx.recorder(&client, ACCOUNT);
    let worker = Arc::new(Worker {
        control: PodControl::new(client.clone(), recorder.clone()),
        client,
        recorder,
        jobs,
        pods,
        expectations,
        ctx: ctx.clone(),
    });
    Controller::new(ACCOUNT, queue)
        .workers(5)
        .run(ctx.shutdown.clone(), move |key: ObjectKey| {
            let worker = worker.clone();
            async move { worker.reconcile(&key).await }
        })
        .await;
    Ok(())
}

fn on_pod(
    queue: &Arc<WorkQueue<ObjectKey>>,
    expectations: &Expectations,
    jobs: &Informer<Job>,
    event: &Event<Pod>,
) {
    let pod = event.object();
    if let Some((key, _)) = controller_key::<Job>(&pod.metadata) {
        match event {
            Event::Added { .. } => expectations.created(&key),
            Event::Deleted { .. } => expectations.deleted(&key, uid(&pod.metadata)),
            Event::Updated { .. } => {}
        }
        if is_deleting(pod) || is_terminal(pod) {
            expectations.deleted(&key, uid(&pod.metadata));
        }
        // Also when the job is gone: its pods must be let go.
        queue.add(key);
    } else if controller_of(&pod.metadata).is_none() {
        if is_held(pod)
            && let Some(job) = labels(&pod.metadata).get("batch.kubernetes.io/job-name")
        {
            queue.add(ObjectKey::new(namespace(&pod.metadata), job));
        }
        if !matches!(event, Event::Deleted { .. }) {
            for job in jobs.store().list_namespace(namespace(&pod.metadata)) {
                if selector(&job).is_some_and(|s| s.matches(labels(&pod.metadata))) {
                    queue.add(ObjectKey::of(&job.metadata));
                }
            }
        }
    }
    if let Event::Updated { old, .. } = event
        && let Some((key, _)) = controller_key::<Job>(&old.metadata)
    {
        queue.add(key);
    }
}

fn selector(job: &Job) -> Option<Selector> {
    let selector = Selector::new(job.spec.as_ref()?.selector.as_ref()?).ok()?;
    (!selector.is_empty()).then_some(selector)
}

impl Worker {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Error> {
        let Some(job) = self.jobs.store().get(key) else {
            self.expectations.forget(key);
            let here = self.pods.store().list_namespace(&key.namespace);
            return self.let_go_of_orphans(key, here).await;
        };
        let elsewhere = job
            .spec
            .as_ref()
            .and_then(|s| s.managed_by.as_deref())
            .is_some_and(|m| m != MANAGER);
        let Some(selector) = selector(&job).filter(|_| !elsewhere) else {
            return Ok(Action::Done);
        };
        let may_manage = self.expectations.satisfied(key);
        let finished = plan::is_finished(&job);
        let claim = claim::claim(
            &*job,
            |l| selector.matches(l),
            candidates(&self.pods, &job.metadata),
        );
        for pod in &claim.release {
            self.release(pod).await?;
        }
        let pods = if finished || job.metadata.deletion_timestamp.is_some() {
            claim.owned
        } else {
            let adopted: Vec<_> = claim.adopt.clone();
            let pods = claim::settle(&self.client, &*job, claim).await?;
            for pod in adopted {
                self.hold(&pod).await?;
            }
            pods
        };
        let plan = plan::plan(&job, &pods, may_manage, self.ctx.clock.now());
        self.apply(key, &job, plan).await
    }

    async fn apply(&self, key: &ObjectKey, job: &Job, plan: plan::Plan) -> Result<Action, Error> {
        let about = reference(job);
        if let Some(status) = plan.status {
            let mut changed = job.clone();
            changed.status = Some(status);
            let api: Api<Job> = Api::namespaced(self.client.clone(), &key.namespace);
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
        for (warning, reason, message) in plan.events {
            let kind = if warning {
                EventType::Warning
            } else {
                EventType::Normal
            };
            self.recorder.event(&about, kind, &reason, message);
        }
        let released = join_all(plan.release.iter().map(|pod| self.release(pod))).await;
        for result in released {
            result?;
        }
        let mut failure = None;
        if !plan.delete.is_empty() {
            let uids: Vec<_> = plan
                .delete
                .iter()
                .map(|p| uid(&p.metadata).to_owned())
                .collect();
            self.expectations.expect(key, 0, uids);
            failure = self
                .control
                .delete_many(&key.namespace, &plan.delete, &about, |pod| {
                    self.expectations.deleted(key, uid(&pod.metadata))
                })
                .await;
        } else if !plan.create.is_empty() {
            self.expectations.expect(key, plan.create.len(), []);
            let (made, error) = self
                .control
                .create_many(&key.namespace, &plan.create, &about)
                .await;
            for _ in made..plan.create.len() {
                self.expectations.created(key);
            }
            failure = error.filter(|error| !is_namespace_terminating(error));
        }
        match (failure, plan.look_again) {
            (Some(error), _) => Err(error.into()),
            (None, Some(wait)) => Ok(Action::RequeueAfter(wait)),
            (None, None) => Ok(Action::Done),
        }
    }

    /// Takes the finalizer off a pod.
    async fn release(&self, pod: &Pod) -> Result<(), Error> {
        if !is_held(pod) {
            return Ok(());
        }
        self.patch(
            pod,
            json!({ "metadata": {
                "uid": uid(&pod.metadata),
                "$deleteFromPrimitiveList/finalizers": [FINALIZER],
            }}),
        )
        .await
    }

    /// Puts the finalizer on an adopted pod.
    async fn hold(&self, pod: &Pod) -> Result<(), Error> {
        if is_held(pod) || is_deleting(pod) {
            return Ok(());
        }
        self.patch(
            pod,
            json!({ "metadata": { "uid": uid(&pod.metadata), "finalizers": [FINALIZER] }}),
        )
        .await
    }

    async fn patch(&self, pod: &Pod, patch: serde_json::Value) -> Result<(), Error> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace(&pod.metadata));
        match api
            .patch(
                name(&pod.metadata),
                &PatchParams::default(),
                &Patch::Strategic(&patch),
            )
            .await
        {
            Ok(_) => Ok(()),
            // Gone, or another pod of that name by now.
            Err(error) if is_not_found(&error) || is_code(&error, 409) || is_code(&error, 422) => {
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The job is gone: nobody counts its pods any longer.
    async fn let_go_of_orphans(
        &self,
        key: &ObjectKey,
        here: Vec<Arc<Pod>>,
    ) -> Result<Action, Error> {
        for pod in here {
            let meant = match controller_key::<Job>(&pod.metadata) {
                Some((owner, _)) => owner == *key,
                None => {
                    controller_of(&pod.metadata).is_none()
                        && labels(&pod.metadata).get("batch.kubernetes.io/job-name")
                            == Some(&key.name)
                }
            };
            if meant && is_held(&pod) {
                self.release(&pod).await?;
            }
        }
        Ok(Action::Done)
    }
}
