//! Deletes what nobody owns any more, and finishes foreground and orphaning deletions (upstream
//! `pkg/controller/garbagecollector`).
//!
//! [`graph`] says where to look, from the metadata of every object. What happens then is decided on live answers of the
//! server: an owner is absent only if the server says so, or says that its name belongs to another uid now.

pub mod graph;
mod monitors;
mod resources;

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use keelson_runtime::controller::{Action, Controller};
use keelson_runtime::events::Recorder;
use keelson_runtime::workqueue::WorkQueue;
use kube::api::{
    DeleteParams, DynamicObject, Patch, PatchParams, Preconditions, PropagationPolicy,
};
use kube::{Api, Client};
use parking_lot::{Mutex, RwLock};
use serde_json::json;
use thiserror::Error;

use crate::Context;
use graph::{FOREGROUND, Graph, Identity, Look, Node, ORPHAN, Uid};
use resources::Resources;

/// Upstream `--concurrent-gc-syncs`.
const WORKERS: usize = 20;
/// Owners known to be gone (upstream: 500).
const ABSENT_OWNERS: usize = 500;

#[derive(Debug, Error)]
enum CollectError {
    #[error("unable to get REST mapping for {0}/{1}")]
    Unmapped(String, String),
    #[error(transparent)]
    Api(#[from] kube::Error),
}

/// Runs until the context's shutdown.
///
/// # Errors
/// When the first discovery fails.
pub async fn run(context: Context) -> anyhow::Result<()> {
    let client = context.client("generic-garbage-collector");
    let resources = Resources::discover(&client).await?;
    let collector = Arc::new(Collector {
        graph: Mutex::default(),
        delete: WorkQueue::new("garbage_collector_attempt_to_delete", &context.metrics),
        orphan: WorkQueue::new("garbage_collector_attempt_to_orphan", &context.metrics),
        absent: Mutex::default(),
        resources: RwLock::new(resources),
        recorder: context.recorder(&client, "garbage-collector-controller"),
        client,
    });
    let mut monitors = monitors::Monitors::new(collector.clone(), context.clone());
    monitors.follow_resources();
    monitors.wait_synced().await;

    let deleting = collector.clone();
    let delete = Controller::new("garbage-collector-controller", collector.delete.clone())
        .workers(WORKERS)
        .run(context.shutdown.clone(), move |uid| {
            let collector = deleting.clone();
            async move { collector.attempt_to_delete(&uid).await }
        });
    let orphaning = collector.clone();
    let orphan = Controller::new("garbage-collector-controller", collector.orphan.clone())
        .workers(WORKERS)
        .run(context.shutdown.clone(), move |uid| {
            let collector = orphaning.clone();
            async move { collector.attempt_to_orphan(&uid).await }
        });
    tokio::join!(delete, orphan, monitors.run());
    Ok(())
}

/// Owners that the server said are gone; a uid never comes back.
#[derive(Default)]
struct AbsentOwners {
    known: HashSet<Identity>,
    order: VecDeque<Identity>,
}

impl AbsentOwners {
    fn add(&mut self, owner: Identity) {
        if !self.known.insert(owner.clone()) {
            return;
        }
        self.order.push_back(owner);
        if self.order.len() > ABSENT_OWNERS
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}

pub(crate) struct Collector {
    graph: Mutex<Graph>,
    delete: Arc<WorkQueue<Uid>>,
    orphan: Arc<WorkQueue<Uid>>,
    absent: Mutex<AbsentOwners>,
    resources: RwLock<Arc<Resources>>,
    recorder: Recorder,
    client: Client,
}

/// What to do with an object whose owners have been looked up.
#[derive(Debug, PartialEq)]
enum Verdict {
    /// An owner holds it.
    Keep,
    /// An owner holds it, the references to these others are to be dropped.
    Drop(Vec<Uid>),
    /// An owner waits for it and it has dependents of its own; with `unblock`, its references must first stop blocking,
    /// since one of those dependents waits too and both might wait for each other.
    Foreground { unblock: bool },
    /// Nobody holds it.
    Delete(PropagationPolicy),
}

/// An owner as the server knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Solid,
    Waiting,
    Absent,
}

/// Upstream `attemptToDeleteItem`, its decision alone. `dependents`: how many there are and whether one of them waits for its
/// own dependents.
fn decide(
    owners: &[(Uid, Owner)],
    finalizers: &[String],
    dependents: usize,
    one_waits: bool,
) -> Verdict {
    let is = |wanted: Owner| owners.iter().any(|(_, owner)| *owner == wanted);
    let has = |name: &str| finalizers.iter().any(|f| f == name);
    if is(Owner::Solid) {
        let drop: Vec<Uid> = owners
            .iter()
            .filter(|(_, owner)| *owner != Owner::Solid)
            .map(|(uid, _)| uid.clone())
            .collect();
        if drop.is_empty() {
            Verdict::Keep
        } else {
            Verdict::Drop(drop)
        }
    } else if is(Owner::Waiting) && dependents > 0 {
        Verdict::Foreground { unblock: one_waits }
    } else if has(ORPHAN) {
        Verdict::Delete(PropagationPolicy::Orphan)
    } else if has(FOREGROUND) {
        Verdict::Delete(PropagationPolicy::Foreground)
    } else {
        Verdict::Delete(PropagationPolicy::Background)
    }
}

fn is_status(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

impl Collector {
    fn look(&self, looks: Vec<Look>) {
        for look in looks {
            match look {
                Look::Delete(uid) => self.delete.add(uid),
                Look::Orphan(uid) => self.orphan.add(uid),
                Look::Invalid(uid, owner) => self.report_invalid(&uid, &owner),
            }
        }
    }

    fn report_invalid(&self, uid: &str, owner: &str) {
        let Some(node) = self.graph.lock().get(uid).cloned() else {
            return;
        };
        let Some(reference) = node.owners.iter().find(|r| r.uid == owner) else {
            return;
        };
        let regarding = ObjectReference {
            api_version: Some(node.identity.api_version.clone()),
            kind: Some(node.identity.kind.clone()),
            namespace: Some(node.identity.namespace.clone()).filter(|ns| !ns.is_empty()),
            name: Some(node.identity.name.clone()),
            uid: Some(node.identity.uid.clone()),
            ..ObjectReference::default()
        };
        let namespace = &node.identity.namespace;
        let owner = identity_of(reference, namespace);
        self.recorder.warning(
            &regarding,
            "OwnerRefInvalidNamespace",
            format!("ownerRef {owner} does not exist in namespace {namespace:?}"),
        );
    }

    fn api(
        &self,
        api_version: &str,
        kind: &str,
        namespace: &str,
    ) -> Result<Api<DynamicObject>, CollectError> {
        let resources = self.resources.read().clone();
        let resource = resources
            .of_kind(api_version, kind)
            .ok_or_else(|| CollectError::Unmapped(api_version.to_owned(), kind.to_owned()))?;
        let client = self.client.clone();
        Ok(if resource.namespaced && !namespace.is_empty() {
            Api::namespaced_with(client, namespace, &resource.api)
        } else {
            Api::all_with(client, &resource.api)
        })
    }

    fn api_of(&self, identity: &Identity) -> Result<Api<DynamicObject>, CollectError> {
        self.api(&identity.api_version, &identity.kind, &identity.namespace)
    }

    /// The object as it is now; `None` when it is gone or its name belongs to another one.
    async fn live(&self, identity: &Identity) -> Result<Option<ObjectMeta>, CollectError> {
        let found = self
            .api_of(identity)?
            .get_metadata_opt(&identity.name)
            .await?;
        Ok(found
            .map(|object| object.metadata)
            .filter(|meta| meta.uid.as_ref() == Some(&identity.uid)))
    }

    async fn attempt_to_delete(&self, uid: &str) -> Result<Action, CollectError> {
        let (node, unseen) = {
            let graph = self.graph.lock();
            let Some(node) = graph.get(uid) else {
                return Ok(Action::Done);
            };
            if !node.deleting_dependents && (node.being_deleted || graph.is_settled(node)) {
                return Ok(Action::Done);
            }
            (node.clone(), graph.has_unseen_owner(node))
        };
        // Gone: its deletion is on the way through the informer.
        let Some(latest) = self.live(&node.identity).await? else {
            return Ok(Action::Done);
        };
        if node.deleting_dependents {
            return self.continue_foreground(&node, &latest).await;
        }
        let references = latest.owner_references.as_deref().unwrap_or_default();
        if references.is_empty() {
            return Ok(Action::Done);
        }
        let mut owners = Vec::with_capacity(references.len());
        for reference in references {
            match self.classify(reference, &node.identity).await? {
                Some(owner) => owners.push((reference.uid.clone(), owner)),
                // A cluster-scoped object that names a namespaced owner: no retry mends that.
                None => return Ok(Action::Done),
            }
        }
        let (dependents, one_waits) = {
            let graph = self.graph.lock();
            let dependents = graph.dependents(uid);
            (
                dependents.len(),
                dependents
                    .iter()
                    .any(|dependent| dependent.deleting_dependents),
            )
        };
        let finalizers = latest.finalizers.as_deref().unwrap_or_default();
        match decide(&owners, finalizers, dependents, one_waits) {
            Verdict::Keep if unseen => return Ok(Action::Retry),
            Verdict::Keep => {}
            Verdict::Drop(uids) => {
                let kept = references.iter().filter(|r| !uids.contains(&r.uid));
                return self
                    .set_owners(&node.identity, &latest, kept.cloned().collect())
                    .await;
            }
            Verdict::Foreground { unblock } => {
                if unblock {
                    let free = references.iter().cloned().map(|reference| OwnerReference {
                        block_owner_deletion: reference.block_owner_deletion.map(|_| false),
                        ..reference
                    });
                    self.set_owners(&node.identity, &latest, free.collect())
                        .await?;
                    return Ok(Action::Retry);
                }
                return self
                    .delete(&node.identity, &latest, PropagationPolicy::Foreground)
                    .await;
            }
            Verdict::Delete(policy) => return self.delete(&node.identity, &latest, policy).await,
        }
        Ok(Action::Done)
    }

    /// Upstream `isDangling` and `classifyReferences`.
    async fn classify(
        &self,
        reference: &OwnerReference,
        dependent: &Identity,
    ) -> Result<Option<Owner>, CollectError> {
        let resources = self.resources.read().clone();
        let resource = resources
            .of_kind(&reference.api_version, &reference.kind)
            .ok_or_else(|| {
                CollectError::Unmapped(reference.api_version.clone(), reference.kind.clone())
            })?;
        if resource.namespaced && dependent.namespace.is_empty() {
            return Ok(None);
        }
        let namespace = if resource.namespaced {
            dependent.namespace.as_str()
        } else {
            ""
        };
        let identity = identity_of(reference, namespace);
        if self.absent.lock().known.contains(&identity) {
            return Ok(Some(Owner::Absent));
        }
        match self.live(&identity).await? {
            None => {
                self.absent.lock().add(identity);
                Ok(Some(Owner::Absent))
            }
            Some(owner) => {
                let finalizers = owner.finalizers.as_deref().unwrap_or_default();
                let waits = owner.deletion_timestamp.is_some()
                    && finalizers.iter().any(|f| f == FOREGROUND);
                Ok(Some(if waits { Owner::Waiting } else { Owner::Solid }))
            }
        }
    }

    /// Upstream `processDeletingDependentsItem`.
    async fn continue_foreground(
        &self,
        node: &Node,
        latest: &ObjectMeta,
    ) -> Result<Action, CollectError> {
        let uid = &node.identity.uid;
        let blocking: Vec<(Uid, bool)> = {
            let graph = self.graph.lock();
            let dependents = graph.dependents(uid).into_iter();
            dependents
                .filter(|dependent| dependent.blocks(uid))
                .map(|dependent| {
                    (
                        dependent.identity.uid.clone(),
                        dependent.deleting_dependents,
                    )
                })
                .collect()
        };
        if blocking.is_empty() {
            return self
                .remove_finalizer(&node.identity, latest, FOREGROUND)
                .await;
        }
        for (dependent, waits) in blocking {
            if !waits {
                self.delete.add(dependent);
            }
        }
        Ok(Action::Done)
    }

    /// Upstream `attemptToOrphanWorker`.
    async fn attempt_to_orphan(&self, uid: &str) -> Result<Action, CollectError> {
        let (owner, dependents) = {
            let graph = self.graph.lock();
            let Some(owner) = graph.get(uid) else {
                return Ok(Action::Done);
            };
            let dependents = graph.dependents(uid);
            let dependents: Vec<Identity> =
                dependents.into_iter().map(|d| d.identity.clone()).collect();
            (owner.identity.clone(), dependents)
        };
        for dependent in dependents {
            let Some(latest) = self.live(&dependent).await? else {
                continue;
            };
            let references = latest.owner_references.as_deref().unwrap_or_default();
            let kept: Vec<OwnerReference> = references
                .iter()
                .filter(|r| r.uid != uid)
                .cloned()
                .collect();
            if kept.len() < references.len()
                && self.set_owners(&dependent, &latest, kept).await? != Action::Done
            {
                return Ok(Action::Retry);
            }
        }
        match self.live(&owner).await? {
            Some(latest) => self.remove_finalizer(&owner, &latest, ORPHAN).await,
            None => Ok(Action::Done),
        }
    }

    /// A JSON merge patch, which built-in and custom resources take alike, on the version that was read.
    async fn patch(
        &self,
        identity: &Identity,
        latest: &ObjectMeta,
        mut metadata: serde_json::Value,
    ) -> Result<Action, CollectError> {
        metadata["uid"] = json!(identity.uid);
        metadata["resourceVersion"] = json!(latest.resource_version);
        let patch = Patch::Merge(json!({ "metadata": metadata }));
        let written = self
            .api_of(identity)?
            .patch_metadata(&identity.name, &PatchParams::default(), &patch)
            .await;
        settle(written.map(|_| ()))
    }

    async fn set_owners(
        &self,
        identity: &Identity,
        latest: &ObjectMeta,
        owners: Vec<OwnerReference>,
    ) -> Result<Action, CollectError> {
        self.patch(identity, latest, json!({"ownerReferences": owners}))
            .await
    }

    async fn remove_finalizer(
        &self,
        identity: &Identity,
        latest: &ObjectMeta,
        finalizer: &str,
    ) -> Result<Action, CollectError> {
        let finalizers = latest.finalizers.as_deref().unwrap_or_default();
        let kept: Vec<&String> = finalizers.iter().filter(|f| *f != finalizer).collect();
        if kept.len() == finalizers.len() {
            return Ok(Action::Done);
        }
        self.patch(identity, latest, json!({"finalizers": kept}))
            .await
    }

    async fn delete(
        &self,
        identity: &Identity,
        latest: &ObjectMeta,
        policy: PropagationPolicy,
    ) -> Result<Action, CollectError> {
        let params = DeleteParams {
            propagation_policy: Some(policy),
            preconditions: Some(Preconditions {
                uid: Some(identity.uid.clone()),
                resource_version: latest.resource_version.clone(),
            }),
            ..DeleteParams::default()
        };
        let deleted = self.api_of(identity)?.delete(&identity.name, &params).await;
        settle(deleted.map(|_| ()))
    }
}

fn identity_of(reference: &OwnerReference, namespace: &str) -> Identity {
    Identity {
        api_version: reference.api_version.clone(),
        kind: reference.kind.clone(),
        namespace: namespace.to_owned(),
        name: reference.name.clone(),
        uid: reference.uid.clone(),
    }
}

/// Gone is well; changed meanwhile is looked at again.
fn settle(result: kube::Result<()>) -> Result<Action, CollectError> {
    match result {
        Ok(()) => Ok(Action::Done),
        Err(error) if is_status(&error, 404) => Ok(Action::Done),
        Err(error) if is_status(&error, 409) => Ok(Action::Retry),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_follows_the_owners() {
        use Owner::{Absent, Solid, Waiting};
        let delete = Verdict::Delete;
        let cases: [(&[Owner], &[&str], usize, bool, Verdict); 9] = [
            (&[Solid], &[], 0, false, Verdict::Keep),
            (
                &[Absent],
                &[],
                3,
                false,
                delete(PropagationPolicy::Background),
            ),
            (
                &[Absent],
                &[FOREGROUND],
                0,
                false,
                delete(PropagationPolicy::Foreground),
            ),
            (
                &[Absent],
                &[ORPHAN],
                0,
                false,
                delete(PropagationPolicy::Orphan),
            ),
            (
                &[Solid, Absent],
                &[],
                0,
                false,
                Verdict::Drop(vec!["1".into()]),
            ),
            (
                &[Waiting, Solid, Absent],
                &[],
                2,
                true,
                Verdict::Drop(vec!["0".into(), "2".into()]),
            ),
            (
                &[Waiting],
                &[],
                0,
                false,
                delete(PropagationPolicy::Background),
            ),
            (
                &[Waiting, Absent],
                &[],
                1,
                false,
                Verdict::Foreground { unblock: false },
            ),
            (
                &[Waiting],
                &[],
                1,
                true,
                Verdict::Foreground { unblock: true },
            ),
        ];
        for (owners, finalizers, dependents, one_waits, expected) in cases {
            let named: Vec<(Uid, Owner)> = owners
                .iter()
                .enumerate()
                .map(|(i, owner)| (i.to_string(), *owner))
                .collect();
            let finalizers: Vec<String> = finalizers.iter().map(|f| (*f).to_owned()).collect();
            let verdict = decide(&named, &finalizers, dependents, one_waits);
            assert_eq!(verdict, expected, "{owners:?} {finalizers:?}");
        }
    }
}
