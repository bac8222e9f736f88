//! Keeps the status of ResourceQuotas: what a namespace uses of what it may use (upstream `pkg/controller/resourcequota`).
//!
//! Pods, Services and claims are counted from the shared informers. Of every other resource that some quota names, only the
//! metadata is watched, from the first such quota on: a cluster without quotas pays nothing.
//!
//! The API server charges a quota before it stores the object. A count made in between does not see the object, and to write
//! it down would let one too many in later. Therefore amounts are lowered only once the quota has not been charged for a
//! while ([`SETTLE`]); what was charged and then not stored is given back by the same count.

pub mod usage;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, Pod, ResourceQuota, ResourceQuotaSpec, ResourceQuotaStatus, Service,
};
use keelson_machinery::quantity::{Format, Quantity};
use keelson_runtime::ObjectKey;
use keelson_runtime::controller::{Action, Controller};
use keelson_runtime::informer::{Event, Informer, InformerConfig, Metadata};
use keelson_runtime::workqueue::WorkQueue;
use kube::api::PostParams;
use kube::{Api, Client, Resource};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::common::namespace;
use crate::error::{Error, ignore_not_found, is_conflict};
use crate::{Context, synced};
use usage::{Amounts, add_all, covers, of_claim, of_pod, of_service, wire};

/// Upstream `--concurrent-resource-quota-syncs`.
const WORKERS: usize = 5;
/// Every quota is counted again so often (upstream `--resource-quota-sync-period`).
const RESYNC: Duration = Duration::from_secs(300);
/// How long after a charge its object is stored and seen here, at the latest. Between the two there is only the commit: all
/// other admission comes before.
const SETTLE: Duration = Duration::from_secs(1);
/// How long a newly watched resource may take to be listed.
const SYNC_LIMIT: Duration = Duration::from_secs(30);

/// Runs until the context's shutdown.
///
/// # Errors
/// None; what fails is tried again.
pub async fn run(context: Context) -> anyhow::Result<()> {
    let quotas = context.informers.informer::<ResourceQuota>();
    let pods = context.informers.informer::<Pod>();
    let services = context.informers.informer::<Service>();
    let claims = context.informers.informer::<PersistentVolumeClaim>();
    synced!(quotas, pods, services, claims);
    let queue: Arc<WorkQueue<ObjectKey>> =
        WorkQueue::new("resourcequota_primary", &context.metrics);
    let charged = Arc::new(Charged::default());
    follow_quotas(&quotas, &queue, &charged);
    let clock = context.clock.clone();
    recount(&pods, &quotas, &queue, move |old, new| {
        let now = clock.now();
        of_pod(old, now) != of_pod(new, now) || old.spec != new.spec
    });
    recount(&services, &quotas, &queue, |old, new| {
        of_service(old) != of_service(new)
    });
    recount(&claims, &quotas, &queue, |old, new| {
        of_claim(old) != of_claim(new)
            || usage::attributes_classes(old) != usage::attributes_classes(new)
    });
    let counter = Arc::new(Counter {
        client: context.client("resourcequota-controller"),
        context: context.clone(),
        queue: queue.clone(),
        quotas: quotas.clone(),
        pods,
        services,
        claims,
        charged,
        counted: Mutex::default(),
    });
    Controller::new("resourcequota-controller", queue)
        .workers(WORKERS)
        .run(context.shutdown.clone(), move |key| {
            let counter = counter.clone();
            async move { counter.sync(&key).await }
        })
        .await;
    Ok(())
}

/// When quotas were last seen to be charged.
#[derive(Default)]
struct Charged(parking_lot::Mutex<HashMap<ObjectKey, Instant>>);

impl Charged {
    /// How long to wait until what was charged can be trusted to be seen; `None` when that is so.
    fn unsettled(&self, key: &ObjectKey, now: Instant) -> Option<Duration> {
        let mut all = self.0.lock();
        let left = SETTLE.saturating_sub(now.duration_since(*all.get(key)?));
        if left.is_zero() {
            all.remove(key);
            return None;
        }
        Some(left)
    }
}

/// Counts a quota when it is new or asks for something else, and some time after it was charged.
fn follow_quotas(
    quotas: &Informer<ResourceQuota>,
    queue: &Arc<WorkQueue<ObjectKey>>,
    charged: &Arc<Charged>,
) {
    let (queue, charged) = (queue.clone(), charged.clone());
    quotas.on_event(move |event| {
        let key = ObjectKey::of(&event.object().metadata);
        match event {
            Event::Added { .. } => queue.add(key),
            Event::Updated { old, new } => {
                if rises(old, new) {
                    charged.0.lock().insert(key.clone(), Instant::now());
                    queue.add_after(key, SETTLE);
                } else {
                    queue.add(key);
                }
            }
            Event::Deleted { .. } => drop(charged.0.lock().remove(&key)),
        }
    });
}

/// Whether the only news about a quota is that more of it is used.
fn rises(old: &ResourceQuota, new: &ResourceQuota) -> bool {
    let hard = |quota: &ResourceQuota| quota.status.as_ref().and_then(|s| s.hard.clone());
    let used = |quota: &ResourceQuota| {
        usage::parse(
            quota
                .status
                .as_ref()
                .and_then(|status| status.used.as_ref()),
        )
    };
    let (before, after) = (used(old), used(new));
    old.spec == new.spec
        && hard(old) == hard(new)
        && before.len() == after.len()
        && after
            .iter()
            .any(|(name, amount)| before.get(name).is_some_and(|b| amount > b))
}

/// Counts the quotas of a namespace again when an object of it goes or `differs` in what it costs; a new one is charged
/// already.
fn recount<K: Resource + 'static>(
    informer: &Informer<K>,
    quotas: &Informer<ResourceQuota>,
    queue: &Arc<WorkQueue<ObjectKey>>,
    differs: impl Fn(&K, &K) -> bool + Send + Sync + 'static,
) {
    let (quotas, queue) = (quotas.clone(), queue.clone());
    informer.on_event(move |event| {
        let wait = match event {
            Event::Added { initial: true, .. } => return,
            Event::Added { .. } => SETTLE,
            Event::Updated { old, new } => {
                if !differs(old, new) {
                    return;
                }
                Duration::ZERO
            }
            Event::Deleted { .. } => Duration::ZERO,
        };
        for quota in quotas
            .store()
            .list_namespace(namespace(event.object().meta()))
        {
            let key = ObjectKey::of(&quota.metadata);
            if wait.is_zero() {
                queue.add(key);
            } else {
                queue.add_after(key, wait);
            }
        }
    });
}

/// The resource that a hard limit counts, when it is counted by its objects alone: resource and group.
fn counted_resource(name: &str) -> Option<(String, String)> {
    let plain = [
        "configmaps",
        "secrets",
        "replicationcontrollers",
        "resourcequotas",
    ];
    let counted = name
        .strip_prefix("count/")
        .or_else(|| plain.contains(&name).then_some(name))?;
    let (resource, group) = counted.split_once('.').unwrap_or((counted, ""));
    // These are counted with what else they cost.
    let typed =
        group.is_empty() && matches!(resource, "pods" | "services" | "persistentvolumeclaims");
    (!typed).then(|| (resource.to_owned(), group.to_owned()))
}

struct Counter {
    client: Client,
    context: Context,
    queue: Arc<WorkQueue<ObjectKey>>,
    quotas: Informer<ResourceQuota>,
    pods: Informer<Pod>,
    services: Informer<Service>,
    claims: Informer<PersistentVolumeClaim>,
    charged: Arc<Charged>,
    /// By resource and group.
    counted: Mutex<HashMap<(String, String), Informer<Metadata>>>,
}

impl Counter {
    async fn sync(&self, key: &ObjectKey) -> Result<Action, Error> {
        let Some(quota) = self.quotas.store().get(key) else {
            return Ok(Action::Done);
        };
        if quota.metadata.deletion_timestamp.is_some() {
            return Ok(Action::Done);
        }
        let spec = quota.spec.clone().unwrap_or_default();
        let mut used = self.count(&key.namespace, &spec).await?;
        let stored = usage::parse(
            quota
                .status
                .as_ref()
                .and_then(|status| status.used.as_ref()),
        );
        let mut again = RESYNC;
        if let Some(left) = self.charged.unsettled(key, Instant::now()) {
            again = left;
            for (name, amount) in &mut used {
                *amount = (*amount).max(stored.get(name).copied().unwrap_or(*amount));
            }
        }
        let status = ResourceQuotaStatus {
            hard: spec.hard.clone(),
            used: Some(wire(&used)),
        };
        let same = quota.status.as_ref().is_some_and(|old| {
            usage::parse(old.hard.as_ref()) == usage::parse(status.hard.as_ref()) && stored == used
        });
        if !same {
            let api: Api<ResourceQuota> = Api::namespaced(self.client.clone(), &key.namespace);
            let mut changed = (*quota).clone();
            changed.status = Some(status);
            match api
                .replace_status(&key.name, &PostParams::default(), &changed)
                .await
            {
                Err(error) if is_conflict(&error) => return Ok(Action::Retry),
                written => ignore_not_found(written)?,
            }
        }
        Ok(Action::RequeueAfter(again))
    }

    /// What the namespace uses of what the quota limits.
    async fn count(&self, space: &str, spec: &ResourceQuotaSpec) -> Result<Amounts, Error> {
        let mut total = Amounts::new();
        let now = self.context.clock.now();
        for pod in self.pods.store().list_namespace(space) {
            if covers(spec, &pod) {
                add_all(&mut total, of_pod(&pod, now));
            }
        }
        // Scopes are about pods, and one about claims: no Service and no other object is in any.
        let scoped = usage::is_scoped(spec);
        if !scoped {
            for service in self.services.store().list_namespace(space) {
                add_all(&mut total, of_service(&service));
            }
        }
        for claim in self.claims.store().list_namespace(space) {
            if usage::covers_claim(spec, &claim) {
                add_all(&mut total, of_claim(&claim));
            }
        }
        let mut used = Amounts::new();
        for name in spec.hard.iter().flatten().map(|(name, _)| name) {
            let zero = Quantity::new(0, Format::DecimalSi);
            let amount = match counted_resource(name) {
                None if !usage::is_counted(name) => continue,
                None => total.get(name).copied().unwrap_or(zero),
                Some(_) if scoped => zero,
                Some((resource, group)) => match self.objects(&resource, &group).await? {
                    // A resource that is not served is not limited.
                    None => continue,
                    Some(informer) => {
                        let count = informer.store().list_namespace(space).len();
                        Quantity::new(i64::try_from(count).unwrap_or(i64::MAX), Format::DecimalSi)
                    }
                },
            };
            used.insert(name.clone(), amount);
        }
        Ok(used)
    }

    /// The objects of a resource, watched from now on.
    async fn objects(
        &self,
        resource: &str,
        group: &str,
    ) -> Result<Option<Informer<Metadata>>, Error> {
        let key = (resource.to_owned(), group.to_owned());
        let mut counted = self.counted.lock().await;
        if let Some(known) = counted.get(&key) {
            return Ok(Some(known.clone()));
        }
        let (found, failed) = crate::discovery::discover(&self.client).await?;
        let named = found.into_iter().find(|found| {
            found.resource.plural == resource && found.resource.group == group && found.namespaced
        });
        let Some(found) = named else {
            // What could not be asked may well be there.
            return match failed.first() {
                Some(failure) => Err(Error::Discovery(failure.clone())),
                None => Ok(None),
            };
        };
        let config = InformerConfig {
            transform: Some(Arc::new(|object: &mut Metadata| {
                let meta = std::mem::take(&mut object.metadata);
                object.metadata.name = meta.name;
                object.metadata.namespace = meta.namespace;
                object.metadata.uid = meta.uid;
                object.metadata.resource_version = meta.resource_version;
            })),
            ..InformerConfig::default()
        };
        let informer = Informer::start_metadata(
            self.client.clone(),
            &found.resource,
            config,
            self.context.clock.clone(),
            self.context.shutdown.child_token(),
        );
        let listed = tokio::time::timeout(SYNC_LIMIT, informer.wait_synced()).await;
        if listed != Ok(true) {
            informer.stop();
            return Err(Error::Discovery(format!(
                "{resource}.{group} cannot be listed"
            )));
        }
        recount(&informer, &self.quotas, &self.queue, |_, _| false);
        counted.insert(key, informer.clone());
        Ok(Some(informer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_charge_is_told_from_other_news() {
        let quota = |hard: &str, status: Option<(&str, &str)>| -> ResourceQuota {
            let status = status.map(
                |(hard, used)| serde_json::json!({"hard": {"pods": hard}, "used": {"pods": used}}),
            );
            serde_json::from_value(
                serde_json::json!({"spec": {"hard": {"pods": hard}}, "status": status}),
            )
            .expect("a quota")
        };
        let cases = [
            (
                quota("3", Some(("3", "1"))),
                quota("3", Some(("3", "2"))),
                true,
            ),
            (
                quota("3", Some(("3", "2"))),
                quota("3", Some(("3", "1"))),
                false,
            ),
            (quota("3", None), quota("3", Some(("3", "1"))), false),
            (
                quota("3", Some(("3", "1"))),
                quota("4", Some(("3", "2"))),
                false,
            ),
            (
                quota("3", Some(("3", "1"))),
                quota("3", Some(("4", "2"))),
                false,
            ),
        ];
        for (old, new, expected) in cases {
            assert_eq!(rises(&old, &new), expected, "{old:?} {new:?}");
        }
    }

    #[test]
    fn charges_settle() {
        let charged = Charged::default();
        let key = ObjectKey::new("n", "q");
        let now = Instant::now();
        assert_eq!(charged.unsettled(&key, now), None);
        charged.0.lock().insert(key.clone(), now);
        assert_eq!(charged.unsettled(&key, now), Some(SETTLE));
        assert_eq!(charged.unsettled(&key, now + SETTLE), None);
        assert!(charged.0.lock().is_empty());
    }

    #[test]
    fn hard_names_say_what_is_counted() {
        let cases = [
            ("configmaps", Some(("configmaps", ""))),
            ("count/configmaps", Some(("configmaps", ""))),
            ("count/deployments.apps", Some(("deployments", "apps"))),
            ("count/foos.ex.io", Some(("foos", "ex.io"))),
            ("pods", None),
            ("count/pods", None),
            ("requests.cpu", None),
            (
                "count/pods.metrics.k8s.io",
                Some(("pods", "metrics.k8s.io")),
            ),
            ("services.nodeports", None),
        ];
        for (name, expected) in cases {
            let found = counted_resource(name);
            let found = found.as_ref().map(|(r, g)| (r.as_str(), g.as_str()));
            assert_eq!(found, expected, "{name}");
        }
    }
}
