//! Deployments: rolling from one template to the next (upstream `pkg/controller/deployment`).
//!
//! [`plan::plan`] takes a Deployment, its ReplicaSets and their pods, and says what to write; the loop here writes it. One
//! pass makes one step; the writes come back through the informers and lead to the next.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use keelson_runtime::ObjectKey;
use keelson_runtime::controller::{Action, Controller};
use keelson_runtime::events::{Recorder, reference};
use keelson_runtime::informer::{Event, Informer};
use keelson_runtime::workqueue::WorkQueue;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client};

use crate::common::{
    Selector, add_owner_index, candidates, claim, controller_key, controller_of, enqueue_all,
    labels, name, namespace, owned, uid,
};
use crate::error::{
    ignore_not_found, is_already_exists, is_code, is_conflict, is_namespace_terminating,
    is_not_found,
};
use crate::{Context, Error};

mod plan;
mod revisions;
pub mod scale;
mod status;

use plan::{Plan, Write};

const ACCOUNT: &str = "deployment-controller";

struct Worker {
    client: Client,
    recorder: Recorder,
    deployments: Informer<Deployment>,
    sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
    ctx: Context,
}

/// Runs until shutdown.
///
/// # Errors
/// None: what fails is tried again.
pub async fn run(ctx: Context) -> anyhow::Result<()> {
    let client = ctx.client(ACCOUNT);
    let deployments = ctx.informers.informer::<Deployment>();
    let sets = ctx.informers.informer::<ReplicaSet>();
    let pods = ctx.informers.informer::<Pod>();
    add_owner_index(&sets);
    add_owner_index(&pods);
    let queue = WorkQueue::new("deployment", &ctx.metrics);
    enqueue_all(&deployments, &queue);
    sets.on_event({
        let (queue, deployments) = (queue.clone(), deployments.clone());
        move |event| {
            let mut seen = vec![event.object()];
            if let Event::Updated { old, .. } = event {
                seen.push(old);
            }
            for set in seen {
                if let Some((key, _)) = controller_key::<Deployment>(&set.metadata) {
                    queue.add(key);
                }
            }
            let set = event.object();
            if controller_of(&set.metadata).is_none() {
                for deployment in deployments.store().list_namespace(namespace(&set.metadata)) {
                    let selects =
                        selector(&deployment).is_some_and(|s| s.matches(labels(&set.metadata)));
                    if selects {
                        queue.add(ObjectKey::of(&deployment.metadata));
                    }
                }
            }
        }
    });
    pods.on_event({
        let (queue, deployments, sets) = (queue.clone(), deployments.clone(), sets.clone());
        move |event| {
            // Only the Recreate strategy waits for the end of pods.
            let Event::Deleted { object } = event else {
                return;
            };
            let owner = controller_key::<ReplicaSet>(&object.metadata)
                .and_then(|(key, _)| sets.store().get(&key))
                .and_then(|set| controller_key::<Deployment>(&set.metadata));
            if let Some((key, _)) = owner
                && deployments
                    .store()
                    .get(&key)
                    .is_some_and(|d| plan::is_recreate(&d))
            {
                queue.add(key);
            }
        }
    });
    if !(deployments.wait_synced().await && sets.wait_synced().await && pods.wait_synced().await) {
        return Ok(());
    }
    let worker = Arc::new(Worker {
        recorder: ctx.recorder(&client, ACCOUNT),
        client,
        deployments,
        sets,
        pods,
        ctx: ctx.clone(),
    });
    Controller::new(ACCOUNT, queue)
        .workers(5)
        .max_retries(15)
        .run(ctx.shutdown.clone(), move |key: ObjectKey| {
            let worker = worker.clone();
            async move { worker.reconcile(&key).await }
        })
        .await;
    Ok(())
}

/// The selector, if it is one that selects anything in particular.
fn selector(deployment: &Deployment) -> Option<Selector> {
    let selector = Selector::new(&deployment.spec.as_ref()?.selector).ok()?;
    (!selector.is_empty()).then_some(selector)
}

impl Worker {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Error> {
        let Some(deployment) = self.deployments.store().get(key) else {
            return Ok(Action::Done);
        };
        let Some(selector) = selector(&deployment) else {
            self.recorder.warning(
                &reference(&*deployment),
                "SelectingAll",
                "This deployment is selecting all pods. A non-empty selector is required.",
            );
            return Ok(Action::Done);
        };
        let claim = claim::claim(
            &*deployment,
            |l| selector.matches(l),
            candidates(&self.sets, &deployment.metadata),
        );
        let sets = claim::settle(&self.client, &*deployment, claim).await?;
        let pods: Vec<_> = if plan::is_recreate(&deployment) {
            sets.iter()
                .flat_map(|set| owned(&self.pods, uid(&set.metadata)))
                .collect()
        } else {
            Vec::new()
        };
        let plan = plan::plan(&deployment, &sets, &pods, self.ctx.clock.now());
        match self.apply(&deployment, plan).await {
            Ok(None) => Ok(Action::Done),
            Ok(Some(wait)) => Ok(Action::RequeueAfter(wait)),
            Err(Error::Api(error)) if is_conflict(&error) => Ok(Action::Retry),
            Err(Error::Api(error)) if is_namespace_terminating(&error) => Ok(Action::Done),
            Err(error) => Err(error),
        }
    }

    /// Writes in the plan's order; the status last, so that it never claims more than was done.
    async fn apply(&self, deployment: &Deployment, plan: Plan) -> Result<Option<Duration>, Error> {
        let space = namespace(&deployment.metadata);
        let deployments: Api<Deployment> = Api::namespaced(self.client.clone(), space);
        let sets: Api<ReplicaSet> = Api::namespaced(self.client.clone(), space);
        let post = PostParams::default();
        let about = reference(deployment);
        // The revision annotation and the status are two writes of one object: the second builds on the first.
        let mut current = deployment.clone();
        for write in plan.writes {
            match write {
                Write::Create(set) => match sets.create(&post, &set).await {
                    Ok(_) => {
                        let text = format!(
                            "Scaled up replica set {} from 0 to {}",
                            name(&set.metadata),
                            plan::replicas(&set)
                        );
                        if plan::replicas(&set) > 0 {
                            self.recorder.normal(&about, "ScalingReplicaSet", text);
                        }
                    }
                    Err(error) if is_already_exists(&error) => {
                        self.collide(&deployments, &sets, deployment, &set).await?;
                        return Ok(Some(Duration::from_millis(50)));
                    }
                    Err(error) => {
                        if !is_namespace_terminating(&error) {
                            let text = format!(
                                "Failed to create new replica set \"{}\": {}",
                                name(&set.metadata),
                                crate::common::pod_control::reason(&error)
                            );
                            let mut failed = current.clone();
                            failed.status = Some(status::with_progress(
                                failed.status.unwrap_or_default(),
                                "False",
                                "ReplicaSetCreateError",
                                &text,
                                self.ctx.clock.now(),
                            ));
                            deployments
                                .replace_status(name(&deployment.metadata), &post, &failed)
                                .await?;
                            self.recorder.warning(&about, "ReplicaSetCreateError", text);
                        }
                        return Err(error.into());
                    }
                },
                Write::Update { set, event } => {
                    sets.replace(name(&set.metadata), &post, &set).await?;
                    if let Some(text) = event {
                        self.recorder.normal(&about, "ScalingReplicaSet", text);
                    }
                }
                Write::Delete(set) => {
                    ignore_not_found(sets.delete(&set, &DeleteParams::background()).await)?;
                }
                Write::Annotate(annotations) => {
                    current.metadata.annotations = Some(annotations);
                    current = deployments
                        .replace(name(&deployment.metadata), &post, &current)
                        .await?;
                }
                Write::RolledBack {
                    template,
                    annotations,
                    message,
                } => {
                    if let Some(template) = template {
                        current.spec.get_or_insert_default().template = *template;
                    }
                    current.metadata.annotations = Some(annotations);
                    deployments
                        .replace(name(&deployment.metadata), &post, &current)
                        .await?;
                    self.recorder.normal(&about, "DeploymentRollback", message);
                    return Ok(None);
                }
            }
        }
        if let Some(status) = plan.status {
            current.status = Some(status);
            match deployments
                .replace_status(name(&deployment.metadata), &post, &current)
                .await
            {
                Ok(_) => {}
                Err(error) if is_not_found(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(plan.look_again)
    }

    /// The name of the new ReplicaSet is taken. When that is the very set we wanted (made by a pass whose result the
    /// informer has not shown yet) all is well; else the hash collided, and the collision count makes another one.
    async fn collide(
        &self,
        deployments: &Api<Deployment>,
        sets: &Api<ReplicaSet>,
        deployment: &Deployment,
        wanted: &ReplicaSet,
    ) -> Result<(), Error> {
        let Some(live) = sets.get_opt(name(&wanted.metadata)).await? else {
            return Ok(());
        };
        let ours = controller_of(&live.metadata)
            .is_some_and(|o| o.uid == uid(&deployment.metadata))
            && plan::same_template(deployment, &live);
        if ours {
            return Ok(());
        }
        let mut bumped = deployment.clone();
        let status = bumped.status.get_or_insert_default();
        status.collision_count = Some(status.collision_count.unwrap_or(0).saturating_add(1));
        match deployments
            .replace_status(name(&deployment.metadata), &PostParams::default(), &bumped)
            .await
        {
            Ok(_) => Ok(()),
            Err(error) if is_code(&error, 409) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
