//! Keeps the status of PodDisruptionBudgets, by which evictions are allowed or refused (upstream
//! `pkg/controller/disruption`).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use keelson_machinery::clock::Clock;
use keelson_runtime::ObjectKey;
use keelson_runtime::controller::{Action, Controller};
use keelson_runtime::events::{Recorder, reference};
use keelson_runtime::informer::{Event, Informer};
use keelson_runtime::workqueue::WorkQueue;
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use kube::discovery::ApiResource;
use kube::{Api, Client};
use parking_lot::Mutex;
use serde_json::json;

use crate::common::pods::{condition, is_deleting, is_ready};
use crate::common::{Selector, controller_of, enqueue_all, labels, name, namespace};
use crate::error::{Error, ignore_not_found, is_conflict, is_not_found};
use crate::{Context, synced};

/// A pod whose eviction was granted counts as gone for so long (upstream `DeletionTimeout`).
const DELETION: SignedDuration = SignedDuration::from_secs(120);
/// A pod that is still there so long after it was to be disrupted is told so no more.
const STALE: SignedDuration = SignedDuration::from_secs(120);

/// Runs until the context's shutdown.
///
/// # Errors
/// None; what fails is tried again.
pub async fn run(context: Context) -> anyhow::Result<()> {
    let budgets = context.informers.informer::<PodDisruptionBudget>();
    let pods = context.informers.informer::<Pod>();
    let client = context.client("disruption-controller");
    let keeper = Arc::new(Keeper {
        recorder: context.recorder(&client, "controllermanager"),
        client,
        clock: context.clock.clone(),
        budgets: budgets.clone(),
        pods: pods.clone(),
        resources: Mutex::default(),
    });
    synced!(budgets, pods);
    let queue: Arc<WorkQueue<ObjectKey>> = WorkQueue::new("disruption", &context.metrics);
    enqueue_all(&budgets, &queue);
    let stale: Arc<WorkQueue<ObjectKey>> = WorkQueue::new("stale_pod_disruption", &context.metrics);
    let (adds, all, cleans) = (queue.clone(), budgets.clone(), stale.clone());
    pods.on_event(move |event| {
        let mut seen = vec![event.object()];
        if let Event::Updated { old, .. } = event {
            seen.push(old);
        }
        for budget in all.store().list_namespace(namespace(&seen[0].metadata)) {
            let hit =
                selector(&budget).is_ok_and(|s| seen.iter().any(|pod| s.is_some_and_matches(pod)));
            if hit {
                adds.add(ObjectKey::of(&budget.metadata));
            }
        }
        if is_disrupted(seen[0]) {
            cleans.add(ObjectKey::of(&seen[0].metadata));
        }
    });
    let cleaner = keeper.clone();
    let clean =
        Controller::new("disruption-controller", stale).run(context.shutdown.clone(), move |key| {
            let keeper = cleaner.clone();
            async move { keeper.clean(&key).await }
        });
    let keep =
        Controller::new("disruption-controller", queue).run(context.shutdown.clone(), move |key| {
            let keeper = keeper.clone();
            async move { keeper.sync(&key).await }
        });
    tokio::join!(keep, clean);
    Ok(())
}

/// No selector selects nothing; an empty one selects all.
struct Chosen(Option<Selector>);

impl Chosen {
    fn is_some_and_matches(&self, pod: &Pod) -> bool {
        self.0
            .as_ref()
            .is_some_and(|s| s.matches(labels(&pod.metadata)))
    }
}

fn selector(budget: &PodDisruptionBudget) -> Result<Chosen, String> {
    let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    selector.map(Selector::new).transpose().map(Chosen)
}

fn is_disrupted(pod: &Pod) -> bool {
    !is_deleting(pod)
        && !crate::common::pods::is_terminal(pod)
        && condition(pod, "DisruptionTarget").is_some_and(|c| c.status == "True")
}

/// A number, or a share of `total` rounded up.
fn scaled(value: &IntOrString, total: i32) -> i32 {
    match value {
        IntOrString::Int(number) => *number,
        IntOrString::String(text) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            let part = (percent.saturating_mul(i64::from(total)) + 99).div_euclid(100);
            i32::try_from(part).unwrap_or(i32::MAX)
        }
    }
}

/// Whether this controller's role lets it read the owner itself; of all others it may read the scale alone.
fn is_readable(owner: &OwnerReference) -> bool {
    let group = owner.api_version.split_once('/').map_or("", |(g, _)| g);
    matches!(
        (group, owner.kind.as_str()),
        ("apps", "Deployment" | "ReplicaSet" | "StatefulSet") | ("", "ReplicationController")
    )
}

/// Whether the scales of the pods' controllers must be known.
fn needs_scale(budget: &PodDisruptionBudget) -> bool {
    budget.spec.as_ref().is_some_and(|spec| {
        spec.max_unavailable.is_some() || matches!(spec.min_available, Some(IntOrString::String(_)))
    })
}

/// Expected and desired pods. `scale` is the sum of the controllers' scales.
fn counts(budget: &PodDisruptionBudget, pods: usize, scale: i32) -> (i32, i32) {
    let spec = budget.spec.as_ref();
    let most = spec.and_then(|spec| spec.max_unavailable.as_ref());
    let least = spec.and_then(|spec| spec.min_available.as_ref());
    match (most, least) {
        (Some(most), _) => (scale, scale.saturating_sub(scaled(most, scale)).max(0)),
        (None, Some(IntOrString::Int(least))) => (i32::try_from(pods).unwrap_or(i32::MAX), *least),
        (None, Some(least)) => (scale, scaled(least, scale)),
        (None, None) => (0, 0),
    }
}

/// Pods whose granted eviction is still awaited, those for which it was awaited in vain, and when to look again.
fn awaited(
    budget: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    now: Timestamp,
) -> (BTreeMap<String, Time>, Vec<Arc<Pod>>, Option<Duration>) {
    let known = budget
        .status
        .as_ref()
        .and_then(|status| status.disrupted_pods.as_ref());
    let (mut kept, mut failed, mut wait) = (BTreeMap::new(), Vec::new(), None);
    for pod in pods.iter().filter(|pod| !is_deleting(pod)) {
        let Some(since) = known.and_then(|known| known.get(name(&pod.metadata))) else {
            continue;
        };
        let left = DELETION - now.duration_since(since.0);
        if left.is_negative() {
            failed.push(pod.clone());
        } else {
            let left = left.unsigned_abs();
            wait = Some(wait.map_or(left, |wait: Duration| wait.min(left)));
            kept.insert(name(&pod.metadata).to_owned(), since.clone());
        }
    }
    (kept, failed, wait)
}

/// The status of a budget (upstream `updatePdbStatus`).
fn status(
    budget: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    awaited: BTreeMap<String, Time>,
    (expected, desired): (i32, i32),
    now: Timestamp,
) -> PodDisruptionBudgetStatus {
    let healthy = pods
        .iter()
        .filter(|pod| {
            !is_deleting(pod) && !awaited.contains_key(name(&pod.metadata)) && is_ready(pod)
        })
        .count();
    let healthy = i32::try_from(healthy).unwrap_or(i32::MAX);
    let allowed = if expected <= 0 {
        0
    } else {
        healthy.saturating_sub(desired).max(0)
    };
    let old = budget.status.clone().unwrap_or_default();
    let (value, reason) = if allowed > 0 {
        ("True", "SufficientPods")
    } else {
        ("False", "InsufficientPods")
    };
    PodDisruptionBudgetStatus {
        current_healthy: Some(healthy),
        desired_healthy: Some(desired),
        expected_pods: Some(expected),
        disruptions_allowed: Some(allowed),
        disrupted_pods: Some(awaited).filter(|awaited| !awaited.is_empty()),
        observed_generation: budget.metadata.generation,
        conditions: Some(conditions(
            &old,
            value,
            reason,
            "",
            budget.metadata.generation,
            now,
        )),
    }
}

/// The conditions with `DisruptionAllowed` set; its time changes only with its status.
fn conditions(
    old: &PodDisruptionBudgetStatus,
    value: &str,
    reason: &str,
    message: &str,
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    let mut all = old.conditions.clone().unwrap_or_default();
    let mut new = Condition {
        type_: "DisruptionAllowed".to_owned(),
        status: value.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: generation,
        last_transition_time: Time(now),
    };
    match all
        .iter_mut()
        .find(|condition| condition.type_ == new.type_)
    {
        Some(known) => {
            if known.status == new.status {
                new.last_transition_time = known.last_transition_time.clone();
            }
            *known = new;
        }
        None => all.push(new),
    }
    all
}

struct Keeper {
    client: Client,
    recorder: Recorder,
    clock: Clock,
    budgets: Informer<PodDisruptionBudget>,
    pods: Informer<Pod>,
    /// How the resources of controllers are addressed, by API version and kind.
    resources: Mutex<HashMap<(String, String), ApiResource>>,
}

impl Keeper {
    async fn sync(&self, key: &ObjectKey) -> Result<Action, Error> {
        let Some(budget) = self.budgets.store().get(key) else {
            return Ok(Action::Done);
        };
        match self.try_sync(key, &budget).await {
            Ok(action) => Ok(action),
            Err(error) if matches!(&error, Error::Api(api) if is_conflict(api)) => {
                Ok(Action::Retry)
            }
            Err(error) => {
                // What cannot be counted must not be disrupted.
                let mut changed = (*budget).clone();
                let status = changed.status.get_or_insert_default();
                status.disruptions_allowed = Some(0);
                let generation = status.observed_generation;
                let old = status.clone();
                let text = error.to_string();
                let now = self.clock.now();
                status.conditions = Some(conditions(
                    &old,
                    "False",
                    "SyncFailed",
                    &text,
                    generation,
                    now,
                ));
                if budget.status != changed.status {
                    self.write(key, changed).await?;
                }
                Err(error)
            }
        }
    }

    async fn write(&self, key: &ObjectKey, budget: PodDisruptionBudget) -> Result<(), Error> {
        let api: Api<PodDisruptionBudget> = Api::namespaced(self.client.clone(), &key.namespace);
        ignore_not_found(
            api.replace_status(&key.name, &PostParams::default(), &budget)
                .await,
        )
    }

    async fn try_sync(
        &self,
        key: &ObjectKey,
        budget: &PodDisruptionBudget,
    ) -> Result<Action, Error> {
        let chosen = selector(budget).map_err(Error::Object)?;
        let pods: Vec<Arc<Pod>> = self
            .pods
            .store()
            .list_namespace(&key.namespace)
            .into_iter()
            .filter(|pod| chosen.is_some_and_matches(pod))
            .collect();
        let about = reference(budget);
        if pods.is_empty() {
            self.recorder
                .normal(&about, "NoPods", "No matching pods found");
        }
        let mut scale = 0;
        if needs_scale(budget) {
            match self.scale(&pods, &key.namespace).await {
                Ok((sum, unmanaged)) => {
                    scale = sum;
                    if unmanaged {
                        self.recorder.warning(
                            &about,
                            "UnmanagedPods",
                            "Pods selected by this PodDisruptionBudget were found to be unmanaged. As a result, the status of the PDB cannot be calculated correctly, which may result in undefined behavior. To account for these pods please set \".spec.minAvailable\" field of the PDB to an integer value.",
                        );
                    }
                }
                Err(error) => {
                    let text = format!("Failed to calculate the number of expected pods: {error}");
                    self.recorder
                        .warning(&about, "CalculateExpectedPodCountFailed", text);
                    return Err(error);
                }
            }
        }
        let now = self.clock.now();
        let (kept, failed, wait) = awaited(budget, &pods, now);
        for pod in failed {
            let text = format!("Pod was expected by PDB {key} to be deleted but it wasn't");
            self.recorder.warning(&reference(&*pod), "NotDeleted", text);
        }
        let status = status(budget, &pods, kept, counts(budget, pods.len(), scale), now);
        if budget.status.as_ref() != Some(&status) {
            let mut changed = budget.clone();
            changed.status = Some(status);
            self.write(key, changed).await?;
        }
        Ok(wait.map_or(Action::Done, Action::RequeueAfter))
    }

    /// The sum of the scales of all controllers of these pods, and whether some pod has none (upstream `getExpectedScale`).
    async fn scale(&self, pods: &[Arc<Pod>], space: &str) -> Result<(i32, bool), Error> {
        let mut scales: HashMap<String, i32> = HashMap::new();
        let mut seen: Vec<OwnerReference> = Vec::new();
        let mut unmanaged = false;
        for pod in pods {
            let Some(owner) = controller_of(&pod.metadata) else {
                unmanaged = true;
                continue;
            };
            if seen.iter().any(|known| known.uid == owner.uid) {
                continue;
            }
            seen.push(owner.clone());
            let (uid, count) = self.scale_of(owner, space).await?.ok_or_else(|| {
                Error::Object(format!(
                    "found no controllers for pod {:?}",
                    name(&pod.metadata)
                ))
            })?;
            scales.insert(uid, count);
        }
        Ok((
            scales
                .values()
                .fold(0, |sum: i32, count| sum.saturating_add(*count)),
            unmanaged,
        ))
    }

    /// Who decides how many pods there are, and how many. A ReplicaSet's Deployment decides in its place.
    async fn scale_of(
        &self,
        owner: &OwnerReference,
        space: &str,
    ) -> Result<Option<(String, i32)>, Error> {
        let mut owner = owner.clone();
        for _ in 0..2 {
            let resource = self.resource(&owner.api_version, &owner.kind).await?;
            let api: Api<DynamicObject> =
                Api::namespaced_with(self.client.clone(), space, &resource);
            if !is_readable(&owner) {
                let scale = match api.get_scale(&owner.name).await {
                    Ok(scale) => scale,
                    Err(error) if is_not_found(&error) => return Ok(None),
                    Err(error) => return Err(error.into()),
                };
                let same = scale.metadata.uid.as_ref() == Some(&owner.uid);
                let count = scale.spec.and_then(|spec| spec.replicas).unwrap_or(0);
                return Ok(same.then_some((owner.uid, count)));
            }
            let Some(object) = api.get_metadata_opt(&owner.name).await? else {
                return Ok(None);
            };
            if object.metadata.uid.as_ref() != Some(&owner.uid) {
                return Ok(None);
            }
            if owner.kind == "ReplicaSet"
                && let Some(above) = controller_of(&object.metadata)
                && above.kind == "Deployment"
            {
                owner = above.clone();
                continue;
            }
            let scale = api.get_scale(&owner.name).await?;
            let count = scale.spec.and_then(|spec| spec.replicas).unwrap_or(0);
            return Ok(Some((owner.uid, count)));
        }
        Ok(None)
    }

    async fn resource(&self, api_version: &str, kind: &str) -> Result<ApiResource, Error> {
        let key = (api_version.to_owned(), kind.to_owned());
        if let Some(known) = self.resources.lock().get(&key) {
            return Ok(known.clone());
        }
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let gvk = GroupVersionKind::gvk(group, version, kind);
        let (resource, _) = kube::discovery::pinned_kind(&self.client, &gvk).await?;
        self.resources.lock().insert(key, resource.clone());
        Ok(resource)
    }

    /// Upstream `syncStalePodDisruption`.
    async fn clean(&self, key: &ObjectKey) -> Result<Action, Error> {
        let Some(pod) = self.pods.store().get(key).filter(|pod| is_disrupted(pod)) else {
            return Ok(Action::Done);
        };
        let now = self.clock.now();
        let since =
            condition(&pod, "DisruptionTarget").and_then(|c| c.last_transition_time.as_ref());
        let left = since.map_or(SignedDuration::ZERO, |since| {
            STALE - now.duration_since(since.0)
        });
        if left.is_positive() {
            return Ok(Action::RequeueAfter(left.unsigned_abs()));
        }
        let patch = Patch::Strategic(json!({
            "metadata": {"uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version},
            "status": {"conditions": [{
                "type": "DisruptionTarget",
                "status": "False",
                "lastTransitionTime": Time(now),
                "reason": null,
                "message": null,
            }]},
        }));
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        ignore_not_found(
            api.patch_status(&key.name, &PatchParams::default(), &patch)
                .await,
        )?;
        Ok(Action::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        Timestamp::from_second(1_700_000_000).unwrap()
    }

    #[test]
    fn a_budget_counts_what_may_go() {
        // Spec, pods ready and not, scale; healthy, desired, expected, allowed.
        let cases = [
            (json!({"minAvailable": 2}), 3, 0, 0, (3, 2, 3, 1)),
            (json!({"minAvailable": 3}), 3, 0, 0, (3, 3, 3, 0)),
            (json!({"minAvailable": 0}), 0, 0, 0, (0, 0, 0, 0)),
            (json!({"minAvailable": "50%"}), 2, 1, 3, (2, 2, 3, 0)),
            (json!({"minAvailable": "34%"}), 3, 0, 3, (3, 2, 3, 1)),
            (json!({"maxUnavailable": 1}), 3, 0, 3, (3, 2, 3, 1)),
            (json!({"maxUnavailable": 1}), 2, 1, 3, (2, 2, 3, 0)),
            (json!({"maxUnavailable": "100%"}), 1, 2, 3, (1, 0, 3, 1)),
            (json!({"maxUnavailable": 5}), 3, 0, 3, (3, 0, 3, 3)),
        ];
        for (spec, ready, not, scale, expected) in cases {
            let budget: PodDisruptionBudget =
                serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap();
            let pod = |index: usize, ready: bool| -> Arc<Pod> {
                let value = if ready { "True" } else { "False" };
                Arc::new(
                    serde_json::from_value(json!({
                        "metadata": {"name": index.to_string()},
                        "status": {"conditions": [{"type": "Ready", "status": value}]},
                    }))
                    .unwrap(),
                )
            };
            let pods: Vec<Arc<Pod>> = (0..ready + not).map(|i| pod(i, i < ready)).collect();
            let counts = counts(&budget, pods.len(), scale);
            let status = status(&budget, &pods, BTreeMap::new(), counts, now());
            let got = (
                status.current_healthy,
                status.desired_healthy,
                status.expected_pods,
                status.disruptions_allowed,
            );
            let some = |(a, b, c, d): (i32, i32, i32, i32)| (Some(a), Some(b), Some(c), Some(d));
            assert_eq!(got, some(expected), "{spec} {ready} {not}");
        }
    }

    #[test]
    fn granted_evictions_are_awaited_for_two_minutes() {
        let at = |seconds: i64| Timestamp::from_second(1_700_000_000 + seconds).unwrap();
        let budget: PodDisruptionBudget = serde_json::from_value(json!({
            "metadata": {},
            "status": {"currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0, "disruptionsAllowed": 0,
                "disruptedPods": {"a": at(-20).to_string(), "b": at(-121).to_string(), "c": at(-5).to_string()}},
        }))
        .unwrap();
        let pod = |name: &str| -> Arc<Pod> {
            Arc::new(serde_json::from_value(json!({"metadata": {"name": name}})).unwrap())
        };
        let (kept, failed, wait) = awaited(&budget, &[pod("a"), pod("b"), pod("d")], now());
        assert_eq!(kept.keys().collect::<Vec<_>>(), ["a"]);
        assert_eq!(failed.len(), 1);
        assert_eq!(wait, Some(Duration::from_secs(100)));
    }

    #[test]
    fn what_the_role_may_read() {
        for (api_version, kind, want) in [
            ("apps/v1", "ReplicaSet", true),
            ("v1", "ReplicationController", true),
            ("apps/v1", "DaemonSet", false),
            ("example.com/v1", "StatefulSet", false),
        ] {
            let owner = OwnerReference {
                api_version: api_version.to_owned(),
                kind: kind.to_owned(),
                ..OwnerReference::default()
            };
            assert_eq!(is_readable(&owner), want, "{api_version} {kind}");
        }
    }
}
