//! ReplicaSets and ReplicationControllers: as many pods as asked for (upstream `replica_set.go`; the replication
//! controller is the same code there too).

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{
    Pod, PodTemplateSpec, ReplicationController, ReplicationControllerCondition,
    ReplicationControllerStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use keelson_runtime::ObjectKey;
use keelson_runtime::controller::{Action, Controller};
use keelson_runtime::events::reference;
use keelson_runtime::informer::{Event, Informer};
use keelson_runtime::workqueue::WorkQueue;
use kube::api::PostParams;
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::common::expectations::Expectations;
use crate::common::pod_control::{PodControl, pod_from_template, reason};
use crate::common::pods::{
    deletion_order, is_active, is_available, is_deleting, is_ready, is_terminating, node_name,
    ready_since,
};
use crate::common::{
    Selector, add_owner_index, candidates, claim, controller_key, controller_of,
    controller_reference, labels, name, namespace, owned, uid,
};
use crate::error::{is_code, is_namespace_terminating, is_not_found};
use crate::{Context, Error};

/// Pods made or deleted in one pass (upstream `BurstReplicas`).
const BURST: usize = 500;

/// A condition of either kind.
#[derive(Clone, Debug, PartialEq)]
struct Condition {
    kind: String,
    status: String,
    reason: Option<String>,
    message: Option<String>,
    since: Option<Time>,
}

/// A status of either kind.
#[derive(Clone, Debug, PartialEq, Default)]
struct Status {
    replicas: i32,
    labeled: i32,
    ready: i32,
    available: i32,
    terminating: Option<i32>,
    generation: Option<i64>,
    conditions: Vec<Condition>,
}

/// What both kinds have.
trait Replicated:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + Serialize
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
    const QUEUE: &'static str;
    const ACCOUNT: &'static str;
    const COMPONENT: &'static str;
    fn replicas(&self) -> i32;
    fn selector(&self) -> Result<Selector, String>;
    fn template(&self) -> PodTemplateSpec;
    fn min_ready(&self) -> i32;
    fn status(&self) -> Status;
    fn with_status(&self, status: Status) -> Self;
}

macro_rules! status_of {
    ($status:expr) => {{
        let s = $status;
        Status {
            replicas: s.replicas,
            labeled: s.fully_labeled_replicas.unwrap_or(0),
            ready: s.ready_replicas.unwrap_or(0),
            available: s.available_replicas.unwrap_or(0),
            terminating: None,
            generation: s.observed_generation,
            conditions: s
                .conditions
                .iter()
                .flatten()
                .map(|c| Condition {
                    kind: c.type_.clone(),
                    status: c.status.clone(),
                    reason: c.reason.clone(),
                    message: c.message.clone(),
                    since: c.last_transition_time.clone(),
                })
                .collect(),
        }
    }};
}

macro_rules! wire_conditions {
    ($status:expr, $kind:ident) => {
        (!$status.conditions.is_empty()).then(|| {
            $status
                .conditions
                .into_iter()
                .map(|c| $kind {
                    type_: c.kind,
                    status: c.status,
                    reason: c.reason,
                    message: c.message,
                    last_transition_time: c.since,
                })
                .collect()
        })
    };
}

impl Replicated for ReplicaSet {
    const QUEUE: &'static str = "replicaset";
    const ACCOUNT: &'static str = "replicaset-controller";
    const COMPONENT: &'static str = "replicaset-controller";

    fn replicas(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
    }
    fn selector(&self) -> Result<Selector, String> {
        self.spec
            .as_ref()
            .map_or_else(|| Ok(Selector::default()), |s| Selector::new(&s.selector))
    }
    fn template(&self) -> PodTemplateSpec {
        self.spec
            .as_ref()
            .and_then(|s| s.template.clone())
            .unwrap_or_default()
    }
    fn min_ready(&self) -> i32 {
        self.spec
            .as_ref()
            .and_then(|s| s.min_ready_seconds)
            .unwrap_or(0)
    }
    fn status(&self) -> Status {
        self.status.as_ref().map_or_else(Status::default, |s| {
            let mut status = status_of!(s);
            status.terminating = s.terminating_replicas;
            status
        })
    }
    fn with_status(&self, status: Status) -> Self {
        let mut set = self.clone();
        set.status = Some(ReplicaSetStatus {
            replicas: status.replicas,
            fully_labeled_replicas: Some(status.labeled),
            ready_replicas: Some(status.ready),
            available_replicas: Some(status.available),
            terminating_replicas: status.terminating,
            observed_generation: status.generation,
            conditions: wire_conditions!(status, ReplicaSetCondition),
        });
        set
    }
}

impl Replicated for ReplicationController {
    const QUEUE: &'static str = "replicationmanager";
    const ACCOUNT: &'static str = "replication-controller";
    const COMPONENT: &'static str = "replication-controller";

    fn replicas(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
    }
    fn selector(&self) -> Result<Selector, String> {
        Ok(self
            .spec
            .as_ref()
            .and_then(|s| s.selector.as_ref())
            .map(Selector::of_labels)
            .unwrap_or_default())
    }
    fn template(&self) -> PodTemplateSpec {
        self.spec
            .as_ref()
            .and_then(|s| s.template.clone())
            .unwrap_or_default()
    }
    fn min_ready(&self) -> i32 {
        self.spec
            .as_ref()
            .and_then(|s| s.min_ready_seconds)
            .unwrap_or(0)
    }
    fn status(&self) -> Status {
        self.status
            .as_ref()
            .map_or_else(Status::default, |s| status_of!(s))
    }
    fn with_status(&self, status: Status) -> Self {
        let mut set = self.clone();
        set.status = Some(ReplicationControllerStatus {
            replicas: status.replicas,
            fully_labeled_replicas: Some(status.labeled),
            ready_replicas: Some(status.ready),
            available_replicas: Some(status.available),
            observed_generation: status.generation,
            conditions: wire_conditions!(status, ReplicationControllerCondition),
        });
        set
    }
}

/// What to do about the number of pods.
#[derive(Debug, Default)]
struct Plan {
    create: usize,
    delete: Vec<Arc<Pod>>,
}

/// Compares the wish with the active pods. `crowd` counts the pods per node that share the same owner's owner.
fn plan(
    replicas: i32,
    active: &[Arc<Pod>],
    crowd: &HashMap<String, usize>,
    now: Timestamp,
) -> Plan {
    let wanted = usize::try_from(replicas).unwrap_or(0);
    if active.len() < wanted {
        return Plan {
            create: (wanted - active.len()).min(BURST),
            delete: Vec::new(),
        };
    }
    let surplus = (active.len() - wanted).min(BURST);
    let mut sorted = active.to_vec();
    if surplus < active.len() {
        let crowd_of = |pod: &Pod| crowd.get(node_name(pod)).copied().unwrap_or(0);
        sorted.sort_by(|a, b| deletion_order(a, crowd_of(a), b, crowd_of(b), now));
    }
    sorted.truncate(surplus);
    Plan {
        create: 0,
        delete: sorted,
    }
}

/// The status that these pods amount to. `failure` is what went wrong while managing them.
fn status<R: Replicated>(
    set: &R,
    active: &[Arc<Pod>],
    terminating: Option<usize>,
    failure: Option<&str>,
    now: Timestamp,
) -> Status {
    let count = |test: &dyn Fn(&Pod) -> bool| {
        i32::try_from(active.iter().filter(|p| test(p)).count()).unwrap_or(i32::MAX)
    };
    let template = Selector::of_labels(
        set.template()
            .metadata
            .as_ref()
            .map(labels)
            .unwrap_or(&Default::default()),
    );
    let mut new = set.status();
    new.replicas = count(&|_| true);
    new.labeled = count(&|p| template.matches(labels(&p.metadata)));
    new.ready = count(&is_ready);
    new.available = count(&|p| is_available(p, set.min_ready(), now));
    new.terminating = terminating.map(|n| i32::try_from(n).unwrap_or(i32::MAX));
    let known = new.conditions.iter().any(|c| c.kind == "ReplicaFailure");
    match failure {
        Some(message) if !known => {
            let made_less = new.replicas < set.replicas();
            new.conditions.push(Condition {
                kind: "ReplicaFailure".into(),
                status: "True".into(),
                reason: Some(
                    if made_less {
                        "FailedCreate"
                    } else {
                        "FailedDelete"
                    }
                    .into(),
                ),
                message: Some(message.to_owned()),
                since: Some(Time(now)),
            });
        }
        None if known => new.conditions.retain(|c| c.kind != "ReplicaFailure"),
        _ => {}
    }
    new.generation = set.meta().generation;
    new
}

/// The ReplicaSet controller.
pub mod sets {
    /// Runs until shutdown.
    ///
    /// # Errors
    /// None: what fails is tried again.
    pub async fn run(ctx: crate::Context) -> anyhow::Result<()> {
        super::run::<super::ReplicaSet>(ctx).await
    }
}

/// The ReplicationController controller.
pub mod controllers {
    /// Runs until shutdown.
    ///
    /// # Errors
    /// None: what fails is tried again.
    pub async fn run(ctx: crate::Context) -> anyhow::Result<()> {
        super::run::<super::ReplicationController>(ctx).await
    }
}

struct Worker<R> {
    client: Client,
    control: PodControl,
    sets: Informer<R>,
    pods: Informer<Pod>,
    expectations: Arc<Expectations>,
    queue: Arc<WorkQueue<ObjectKey>>,
    ctx: Context,
}

async fn run<R: Replicated>(ctx: Context) -> anyhow::Result<()> {
    let client = ctx.client(R::ACCOUNT);
    let sets = ctx.informers.informer::<R>();
    let pods = ctx.informers.informer::<Pod>();
    add_owner_index(&sets);
    add_owner_index(&pods);
    let queue = WorkQueue::new(R::QUEUE, &ctx.metrics);
    let expectations = Arc::new(Expectations::default());
    sets.on_event({
        let (queue, expectations) = (queue.clone(), expectations.clone());
        move |event| {
            let key = ObjectKey::of(event.object().meta());
            match event {
                Event::Deleted { .. } => expectations.forget(&key),
                // Deleted and made again under the same name, between two looks.
                Event::Updated { old, new } if uid(old.meta()) != uid(new.meta()) => {
                    expectations.forget(&key)
                }
                _ => {}
            }
            queue.add(key);
        }
    });
    pods.on_event({
        let (queue, expectations, sets) = (queue.clone(), expectations.clone(), sets.clone());
        move |event| on_pod(&queue, &expectations, &sets, event)
    });
    if !(sets.wait_synced().await && pods.wait_synced().await) {
        return Ok(());
    }
    let worker = Arc::new(Worker {
        control: PodControl::new(client.clone(), ctx.recorder(&client, R::COMPONENT)),
        client,
        sets,
        pods,
        expectations,
        queue: queue.clone(),
        ctx: ctx.clone(),
    });
    Controller::new(R::COMPONENT, queue)
        .workers(5)
        .run(ctx.shutdown.clone(), move |key: ObjectKey| {
            let worker = worker.clone();
            async move { worker.reconcile(&key).await }
        })
        .await;
    Ok(())
}

/// The set that controls a pod, if it is the one the pod means.
fn owner_of<R: Replicated>(sets: &Informer<R>, pod: &Pod) -> Option<(ObjectKey, Arc<R>)> {
    let (key, owner) = controller_key::<R>(&pod.metadata)?;
    let set = sets.store().get(&key)?;
    (uid(set.meta()) == owner).then_some((key, set))
}

fn on_pod<R: Replicated>(
    queue: &Arc<WorkQueue<ObjectKey>>,
    expectations: &Expectations,
    sets: &Informer<R>,
    event: &Event<Pod>,
) {
    let pod = event.object();
    if let Some((key, set)) = owner_of(sets, pod) {
        match event {
            Event::Added { .. } => expectations.created(&key),
            Event::Deleted { .. } => expectations.deleted(&key, uid(&pod.metadata)),
            Event::Updated { old, new } => {
                let became_ready = !is_ready(old) && is_ready(new);
                if became_ready && set.min_ready() > 0 {
                    // Seen again when it counts as available.
                    let wait = Duration::from_secs(set.min_ready().max(0) as u64 + 1);
                    queue.add_after(key.clone(), wait);
                }
            }
        }
        if is_deleting(pod) {
            expectations.deleted(&key, uid(&pod.metadata));
        }
        queue.add(key);
    }
    if let Event::Updated { old, new } = event {
        let moved = controller_of(&old.metadata).map(|o| &o.uid)
            != controller_of(&new.metadata).map(|o| &o.uid);
        if moved && let Some((key, _)) = owner_of(sets, old) {
            queue.add(key);
        }
    }
    // An orphan may be adopted by whoever selects it.
    if controller_of(&pod.metadata).is_none() && !matches!(event, Event::Deleted { .. }) {
        for set in sets.store().list_namespace(namespace(&pod.metadata)) {
            let selects = set
                .selector()
                .is_ok_and(|s| !s.is_empty() && s.matches(labels(&pod.metadata)));
            if selects {
                queue.add(ObjectKey::of(set.meta()));
            }
        }
    }
}

impl<R: Replicated> Worker<R> {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Error> {
        let Some(set) = self.sets.store().get(key) else {
            self.expectations.forget(key);
            return Ok(Action::Done);
        };
        let selector = match set.selector() {
            Ok(selector) if !selector.is_empty() => selector,
            // Nothing that a retry mends: the next change of the object brings it back.
            _ => return Ok(Action::Done),
        };
        let may_manage = self.expectations.satisfied(key);
        let now = self.ctx.clock.now();
        let here = candidates(&self.pods, set.meta());
        let terminating = here
            .iter()
            .filter(|p| {
                is_terminating(p)
                    && controller_of(&p.metadata).is_some_and(|o| o.uid == uid(set.meta()))
            })
            .count();
        let claim = claim::claim(
            &*set,
            |l| selector.matches(l),
            here.into_iter().filter(|p| is_active(p)),
        );
        let active = claim::settle(&self.client, &*set, claim).await?;
        let mut failure = None;
        if may_manage && set.meta().deletion_timestamp.is_none() {
            failure = self.manage(key, &set, &active, now).await;
        }
        let terminating = (R::QUEUE == "replicaset").then_some(terminating);
        let text = failure.as_ref().map(reason);
        let new = status(&*set, &active, terminating, text.as_deref(), now);
        let old = set.status();
        let min_ready = set.min_ready();
        if new != old {
            match self.write_status(&set, new.clone()).await {
                Ok(()) => {}
                Err(error) if is_not_found(&error) => return Ok(Action::Done),
                Err(error) if is_code(&error, 409) => return Ok(Action::Retry),
                Err(error) => return Err(error.into()),
            }
        }
        if let Some(error) = failure {
            return Err(error.into());
        }
        // Ready but not yet available: look when the first of them is, should its event have been missed.
        if min_ready > 0 && new.ready > new.available {
            let next = active
                .iter()
                .filter_map(|p| ready_since(p))
                .map(|since| since + Duration::from_secs(min_ready as u64))
                .filter(|at| *at > now)
                .min();
            let wait = next.map_or(Duration::from_secs(min_ready as u64), |at| {
                Duration::try_from(at.duration_since(now)).unwrap_or_default()
            });
            self.queue
                .add_after(key.clone(), wait + Duration::from_millis(100));
        }
        Ok(Action::Done)
    }

    /// Pods of all the sets that have the same owner (the old and new ones of a Deployment), per node.
    fn crowd(&self, set: &R) -> HashMap<String, usize> {
        let mut crowd = HashMap::new();
        let related: Vec<String> = match controller_of(set.meta()) {
            None => vec![uid(set.meta()).to_owned()],
            Some(owner) => owned(&self.sets, &owner.uid)
                .iter()
                .map(|s| uid(s.meta()).to_owned())
                .collect(),
        };
        for pod in related.iter().flat_map(|uid| owned(&self.pods, uid)) {
            if is_active(&pod) {
                *crowd.entry(node_name(&pod).to_owned()).or_default() += 1;
            }
        }
        crowd
    }

    async fn manage(
        &self,
        key: &ObjectKey,
        set: &R,
        active: &[Arc<Pod>],
        now: Timestamp,
    ) -> Option<kube::Error> {
        let surplus = active.len() > usize::try_from(set.replicas()).unwrap_or(0);
        let crowd = if surplus {
            self.crowd(set)
        } else {
            HashMap::new()
        };
        let plan = plan(set.replicas(), active, &crowd, now);
        let owner = reference(set);
        if plan.create > 0 {
            self.expectations.expect(key, plan.create, []);
            let pod =
                pod_from_template(&set.template(), name(set.meta()), controller_reference(set));
            let pods = vec![pod; plan.create];
            let (made, failure) = self
                .control
                .create_many(&key.namespace, &pods, &owner)
                .await;
            for _ in made..plan.create {
                self.expectations.created(key);
            }
            // A namespace on its way out takes no pods, and needs none.
            return failure.filter(|error| !is_namespace_terminating(error));
        }
        if !plan.delete.is_empty() {
            let uids = plan.delete.iter().map(|p| uid(&p.metadata).to_owned());
            self.expectations.expect(key, 0, uids);
            return self
                .control
                .delete_many(&key.namespace, &plan.delete, &owner, |pod| {
                    self.expectations.deleted(key, uid(&pod.metadata))
                })
                .await;
        }
        None
    }

    async fn write_status(&self, set: &R, status: Status) -> kube::Result<()> {
        let api: Api<R> = Api::namespaced(self.client.clone(), namespace(set.meta()));
        api.replace_status(
            name(set.meta()),
            &PostParams::default(),
            &set.with_status(status),
        )
        .await
        .map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn now() -> Timestamp {
        "2026-01-01T00:10:00Z".parse().unwrap()
    }

    fn pod(name: &str, node: &str, ready: bool, cost: i32) -> Arc<Pod> {
        Arc::new(serde_json::from_value(json!({
            "metadata": { "name": name, "uid": name, "labels": {"app": "web"},
                "annotations": {"controller.kubernetes.io/pod-deletion-cost": cost.to_string()},
                "creationTimestamp": "2026-01-01T00:00:00Z" },
            "spec": { "nodeName": node, "containers": [] },
            "status": { "phase": if node.is_empty() { "Pending" } else { "Running" },
                "conditions": [{ "type": "Ready", "status": if ready { "True" } else { "False" },
                    "lastTransitionTime": "2026-01-01T00:00:10Z" }] },
        })).unwrap())
    }

    #[test]
    fn how_many_and_which() {
        let pods = [
            pod("ready", "n1", true, 0),
            pod("cheap", "n1", true, -5),
            pod("unready", "n2", false, 0),
            pod("unbound", "", false, 9),
            pod("crowded", "n3", true, 0),
        ];
        let crowd = HashMap::from([("n3".to_string(), 4), ("n1".to_string(), 2)]);
        let gone = |replicas| -> Vec<String> {
            plan(replicas, &pods, &crowd, now())
                .delete
                .iter()
                .map(|p| name(&p.metadata).to_owned())
                .collect()
        };
        assert_eq!(gone(5), [""; 0]);
        assert_eq!(gone(4), ["unbound"]);
        assert_eq!(gone(3), ["unbound", "unready"]);
        assert_eq!(gone(2), ["unbound", "unready", "cheap"]);
        assert_eq!(gone(1), ["unbound", "unready", "cheap", "crowded"]);
        assert_eq!(gone(0).len(), 5);
        assert_eq!(plan(7, &pods, &crowd, now()).create, 2);
        assert_eq!(plan(7000, &pods, &crowd, now()).create, BURST);
        assert_eq!(plan(-1, &pods, &crowd, now()).delete.len(), 5);
    }

    #[test]
    fn status_counts_and_failure_comes_and_goes() {
        let set: ReplicaSet = serde_json::from_value(json!({
            "metadata": {"name": "rs", "generation": 4},
            "spec": {"replicas": 3, "minReadySeconds": 1000,
                "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web", "v": "2"}}, "spec": {"containers": []}}},
        })).unwrap();
        let pods = [pod("a", "n1", true, 0), pod("b", "n1", false, 0)];
        let first = status(&set, &pods, Some(1), Some("quota"), now());
        assert_eq!(
            (
                first.replicas,
                first.labeled,
                first.ready,
                first.available,
                first.terminating,
                first.generation
            ),
            (2, 0, 1, 0, Some(1), Some(4))
        );
        assert_eq!(first.conditions[0].reason.as_deref(), Some("FailedCreate"));
        let second = status(&set.with_status(first), &pods, None, None, now());
        assert!(second.conditions.is_empty());
    }
}
