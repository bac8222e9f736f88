//! ResourceQuota: nothing is created beyond what a namespace may have
//! (`k8s.io/apiserver/pkg/admission/plugin/resourcequota`).
//!
//! A request is charged before it is stored: the status of each quota that covers it is raised by compare-and-swap, on the
//! very state that the check saw. So quotas hold whatever else runs beside, other servers included. Requests of one
//! namespace that come together are checked one after the other on a running copy and charged by one write.
//!
//! A charge whose object is then not stored (its name is taken) stays until the quota controller counts again, as
//! upstream.

mod check;
pub mod status;
#[cfg(test)]
mod tests;
mod usage;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use keelson_machinery::clock::Clock;
use keelson_machinery::status::ApiError;
use keelson_machinery::value::{self, Value};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use self::check::{Asked, Quota, Refusal, check};
use self::usage::{Evaluator, Requirement};
use super::{AdmissionRequest, Operation, Plugin};
use crate::objects::Objects;

/// How often a charge is tried again after another writer changed the quota.
const ROUNDS: usize = 16;
/// How long a request may wait for its turn (as upstream).
const TIMEOUT: Duration = Duration::from_secs(10);

/// What may only be used in namespaces with a quota for it (`apiserver.config.k8s.io/v1 ResourceQuotaConfiguration`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitedResource {
    /// `apiGroup`.
    pub group: String,
    /// `resource`.
    pub resource: String,
    /// `matchContains`: parts of the names of what is limited.
    pub match_contains: Vec<String>,
    /// `matchScopes`.
    match_scopes: Vec<Requirement>,
}

impl LimitedResource {
    /// The `limitedResources` of a configuration.
    pub fn all(configuration: &Value) -> Vec<LimitedResource> {
        let text = |one: &Value, field| value::str_or_empty(one, &[field]).to_owned();
        value::items(configuration, &["limitedResources"])
            .iter()
            .map(|one| LimitedResource {
                group: text(one, "apiGroup"),
                resource: text(one, "resource"),
                match_contains: value::items(one, &["matchContains"])
                    .iter()
                    .filter_map(|part| part.as_str().map(str::to_owned))
                    .collect(),
                match_scopes: value::items(one, &["matchScopes"])
                    .iter()
                    .map(Requirement::from_value)
                    .collect(),
            })
            .collect()
    }
}

/// Writes what quotas have counted.
#[async_trait]
pub trait QuotaStatus: Send + Sync + 'static {
    /// Sets amounts of a quota's `status.used`, if the quota is still at `resource_version`; a conflict otherwise, and
    /// not found when it is gone.
    async fn set_used(
        &self,
        namespace: &str,
        name: &str,
        resource_version: &str,
        used: Vec<(String, String)>,
    ) -> Result<(), ApiError>;
}

/// The plugin.
pub struct ResourceQuota {
    objects: Objects,
    status: Arc<dyn QuotaStatus>,
    limited: Vec<LimitedResource>,
    clock: Clock,
    /// By namespace; only while requests are under way.
    lanes: Mutex<HashMap<String, Arc<Lane>>>,
}

/// Requests of one namespace, which are checked one after the other.
#[derive(Default)]
struct Lane {
    turn: tokio::sync::Mutex<()>,
    waiting: Mutex<Vec<Waiter>>,
}

struct Waiter {
    asked: Asked,
    answer: oneshot::Sender<Result<(), Refusal>>,
}

impl ResourceQuota {
    /// On the quotas among `objects`, charged through `status`.
    pub fn new(
        objects: Objects,
        status: Arc<dyn QuotaStatus>,
        limited: Vec<LimitedResource>,
        clock: Clock,
    ) -> ResourceQuota {
        ResourceQuota {
            objects,
            status,
            limited,
            clock,
            lanes: Mutex::default(),
        }
    }

    async fn quotas(&self, namespace: &str) -> Result<Vec<Quota>, ApiError> {
        let found = self
            .objects
            .list("", "resourcequotas", Some(namespace))
            .await?;
        Ok(found.iter().map(|quota| Quota::from_value(quota)).collect())
    }

    /// Waits for the namespace's turn; whoever gets it answers for all that wait with it.
    async fn charge(&self, namespace: &str, asked: Asked) -> Result<(), Refusal> {
        let lane = self
            .lanes
            .lock()
            .entry(namespace.to_owned())
            .or_default()
            .clone();
        let answer = self.wait_turn(&lane, namespace, asked).await;
        self.leave(namespace, lane);
        answer
    }

    async fn wait_turn(&self, lane: &Lane, namespace: &str, asked: Asked) -> Result<(), Refusal> {
        let (answer, mut answered) = oneshot::channel();
        lane.waiting.lock().push(Waiter { asked, answer });
        let _turn = lane.turn.lock().await;
        if let Ok(answer) = answered.try_recv() {
            return answer;
        }
        let batch = std::mem::take(&mut *lane.waiting.lock());
        self.settle(namespace, batch).await;
        answered.try_recv().unwrap_or_else(|_| {
            // Whoever was to answer gave up.
            Err(Refusal::Error(ApiError::internal(
                "resource quota evaluation timed out",
            )))
        })
    }

    /// Forgets a lane that nobody else uses.
    fn leave(&self, namespace: &str, lane: Arc<Lane>) {
        let mut lanes = self.lanes.lock();
        drop(lane);
        if lanes
            .get(namespace)
            .is_some_and(|lane| Arc::strong_count(lane) == 1)
        {
            lanes.remove(namespace);
        }
    }

    /// Checks a batch, charges what fits, and answers all of it.
    async fn settle(&self, namespace: &str, batch: Vec<Waiter>) {
        let mut open = batch;
        // Once some quotas are charged, only those that changed meanwhile are checked again.
        let mut only: Option<BTreeSet<String>> = None;
        for _ in 0..ROUNDS {
            let mut quotas = match self.quotas(namespace).await {
                Ok(quotas) => quotas,
                Err(error) => return answer_all(open, &Err(Refusal::Error(error))),
            };
            if let Some(only) = &only {
                quotas.retain(|quota| only.contains(&quota.name));
            }
            let before = quotas.clone();
            let mut charged = Vec::new();
            for waiter in open {
                match check(&quotas, &waiter.asked, &self.limited) {
                    Err(refusal) => answer(waiter, Err(refusal)),
                    Ok(charges) if charges.is_empty() || waiter.asked.dry_run => {
                        answer(waiter, Ok(()));
                    }
                    Ok(charges) => {
                        for (index, cost) in charges {
                            for (name, quantity) in cost {
                                let used = &mut quotas[index].used;
                                used.entry(name)
                                    .and_modify(|sum| sum.add(quantity))
                                    .or_insert(quantity);
                            }
                        }
                        charged.push(waiter);
                    }
                }
            }
            let mut changed = BTreeSet::new();
            for (old, new) in before.iter().zip(&quotas) {
                let raised: Vec<(String, String)> = new
                    .used
                    .iter()
                    .filter(|(name, quantity)| old.used.get(*name) != Some(*quantity))
                    .map(|(name, quantity)| (name.clone(), quantity.to_string()))
                    .collect();
                if raised.is_empty() {
                    continue;
                }
                let set = self
                    .status
                    .set_used(namespace, &new.name, &new.resource_version, raised);
                match set.await {
                    Ok(()) => {}
                    Err(error) if error.is_conflict() || error.is_not_found() => {
                        changed.insert(new.name.clone());
                    }
                    Err(error) => return answer_all(charged, &Err(Refusal::Error(error))),
                }
            }
            if changed.is_empty() {
                return answer_all(charged, &Ok(()));
            }
            only = Some(changed);
            open = charged;
        }
        let busy = ApiError::too_many_requests("the namespace's quotas change too fast", 1);
        answer_all(open, &Err(Refusal::Error(busy)));
    }
}

/// A request that is no longer there needs no answer.
fn answer(waiter: Waiter, result: Result<(), Refusal>) {
    drop(waiter.answer.send(result));
}

fn answer_all(waiters: Vec<Waiter>, result: &Result<(), Refusal>) {
    for waiter in waiters {
        answer(waiter, result.clone());
    }
}

#[async_trait]
impl Plugin for ResourceQuota {
    fn name(&self) -> &'static str {
        "ResourceQuota"
    }

    async fn validate(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        let info = &request.request;
        let writes = matches!(request.operation, Operation::Create | Operation::Update);
        if !writes || info.namespace.is_empty() || request.is("", "namespaces", "") {
            return Ok(());
        }
        let Some(evaluator) = Evaluator::of(&info.group, &info.resource) else {
            return Ok(());
        };
        let Some(object) = &request.object else {
            return Ok(());
        };
        if !evaluator.handles(request) {
            return Ok(());
        }
        // Most namespaces have no quota: they need no turn.
        if self.limited.is_empty() && self.quotas(&info.namespace).await?.is_empty() {
            return Ok(());
        }
        let now = self.clock.now();
        let asked = Asked {
            operation: request.operation,
            group: info.group.clone(),
            resource: info.resource.clone(),
            subresource: info.subresource.clone(),
            new: evaluator.measure(object, now),
            old: match request.operation {
                Operation::Update => request
                    .old_object
                    .as_deref()
                    .map(|old| evaluator.measure(old, now)),
                _ => None,
            },
            evaluator,
            dry_run: request.dry_run,
        };
        let namespace = info.namespace.clone();
        let settled = tokio::time::timeout(TIMEOUT, self.charge(&namespace, asked)).await;
        match settled {
            Ok(Ok(())) => Ok(()),
            Ok(Err(Refusal::Forbidden(why))) => Err(request.forbidden(why)),
            Ok(Err(Refusal::Error(error))) => Err(error),
            Err(_) => Err(ApiError::internal("resource quota evaluation timed out")),
        }
    }
}
