//! The templates of a StatefulSet as ControllerRevisions (upstream `pkg/controller/history`).

use std::collections::HashSet;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use super::plan::REVISION;
use crate::common::{
    controller_of, controller_reference, fnv32a, labels, name, namespace, safe_encode, uid,
};
use crate::error::{Error, ignore_not_found, is_already_exists};

/// Label of revisions: the hash of their template.
const HASH: &str = "controller.kubernetes.io/hash";

/// The revision that pods have and the one that they get.
pub struct Revisions {
    /// What the set was at before the update.
    pub current: Arc<ControllerRevision>,
    /// What it is to be.
    pub update: Arc<ControllerRevision>,
}

/// The template as a patch that brings it back (upstream `getPatch`).
fn patch_of(set: &StatefulSet) -> Result<Value, Error> {
    let template = set.spec.as_ref().map(|spec| &spec.template);
    let mut template = serde_json::to_value(template).map_err(|e| Error::Object(e.to_string()))?;
    template["$patch"] = json!("replace");
    Ok(json!({"spec": {"template": template}}))
}

/// The template that a revision holds (upstream `ApplyRevision`).
pub fn template_of(revision: &ControllerRevision) -> Result<PodTemplateSpec, Error> {
    let mut template = revision
        .data
        .as_ref()
        .and_then(|data| data.0.pointer("/spec/template").cloned())
        .ok_or_else(|| {
            Error::Object(format!(
                "revision {} has no template",
                name(&revision.metadata)
            ))
        })?;
    if let Some(fields) = template.as_object_mut() {
        fields.remove("$patch");
    }
    serde_json::from_value(template).map_err(|error| Error::Object(error.to_string()))
}

fn hash_of(patch: &Value, collisions: i32) -> String {
    safe_encode(fnv32a(format!("{patch}{collisions}").as_bytes()))
}

fn same(revision: &ControllerRevision, patch: &Value) -> bool {
    revision.data.as_ref().map(|data| &data.0) == Some(patch)
}

/// Finds or makes the revisions. Also answers the count of name collisions (upstream `getStatefulSetRevisions`).
pub async fn settle(
    client: &Client,
    set: &StatefulSet,
    known: &[Arc<ControllerRevision>],
) -> Result<(Revisions, i32), Error> {
    let api: Api<ControllerRevision> = Api::namespaced(client.clone(), namespace(&set.metadata));
    let patch = patch_of(set)?;
    let mut sorted = known.to_vec();
    sorted.sort_by_key(|revision| (revision.revision, name(&revision.metadata).to_owned()));
    let next = sorted.last().map_or(0, |revision| revision.revision) + 1;
    let status = set.status.as_ref();
    let mut collisions = status
        .and_then(|status| status.collision_count)
        .unwrap_or(0);
    let equal = sorted.iter().rev().find(|revision| same(revision, &patch));
    let update = match (equal, sorted.last()) {
        (Some(equal), Some(last)) if Arc::ptr_eq(equal, last) => equal.clone(),
        // Back to an older template: it becomes the newest.
        (Some(equal), _) => {
            let patch = Patch::Merge(json!({"revision": next}));
            Arc::new(
                api.patch(name(&equal.metadata), &PatchParams::default(), &patch)
                    .await?,
            )
        }
        (None, _) => Arc::new(create(&api, set, &patch, next, &mut collisions).await?),
    };
    let wanted = status.and_then(|status| status.current_revision.as_deref());
    let current = sorted
        .iter()
        .find(|revision| Some(name(&revision.metadata)) == wanted)
        .cloned()
        .unwrap_or_else(|| update.clone());
    Ok((Revisions { current, update }, collisions))
}

async fn create(
    api: &Api<ControllerRevision>,
    set: &StatefulSet,
    patch: &Value,
    revision: i64,
    collisions: &mut i32,
) -> Result<ControllerRevision, Error> {
    let template = set
        .spec
        .as_ref()
        .and_then(|spec| spec.template.metadata.as_ref());
    loop {
        let hash = hash_of(patch, *collisions);
        let mut own = template
            .and_then(|meta| meta.labels.clone())
            .unwrap_or_default();
        own.insert(HASH.to_owned(), hash.clone());
        // 223 characters of the set's name, as upstream's ControllerRevisionName.
        let prefix: String = name(&set.metadata).chars().take(223).collect();
        let made = ControllerRevision {
            metadata: ObjectMeta {
                name: Some(format!("{prefix}-{hash}")),
                namespace: set.metadata.namespace.clone(),
                labels: Some(own),
                annotations: set.metadata.annotations.clone(),
                owner_references: Some(vec![controller_reference(set)]),
                ..ObjectMeta::default()
            },
            data: Some(RawExtension(patch.clone())),
            revision,
        };
        match api.create(&PostParams::default(), &made).await {
            Ok(made) => return Ok(made),
            Err(error) if is_already_exists(&error) => {
                let existing = api.get(name(&made.metadata)).await?;
                let ours =
                    controller_of(&existing.metadata).is_some_and(|o| o.uid == uid(&set.metadata));
                if ours && same(&existing, patch) {
                    return Ok(existing);
                }
                *collisions = collisions
                    .checked_add(1)
                    .ok_or_else(|| Error::Object("too many collisions".to_owned()))?;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Deletes the oldest revisions beyond the limit that nothing uses (upstream `truncateHistory`).
pub async fn clean(
    client: &Client,
    set: &StatefulSet,
    known: &[Arc<ControllerRevision>],
    used: &Revisions,
    pods: &[Arc<Pod>],
) -> Result<(), Error> {
    let mut live: HashSet<&str> = pods
        .iter()
        .filter_map(|pod| labels(&pod.metadata).get(REVISION).map(String::as_str))
        .collect();
    live.extend([name(&used.current.metadata), name(&used.update.metadata)]);
    let mut old: Vec<_> = known
        .iter()
        .filter(|revision| !live.contains(name(&revision.metadata)))
        .collect();
    let spec = set.spec.as_ref();
    let limit = spec
        .and_then(|spec| spec.revision_history_limit)
        .unwrap_or(10);
    let Ok(limit) = usize::try_from(limit) else {
        return Ok(());
    };
    old.sort_by_key(|revision| revision.revision);
    let api: Api<ControllerRevision> = Api::namespaced(client.clone(), namespace(&set.metadata));
    let surplus = old.len().saturating_sub(limit);
    for revision in old.into_iter().take(surplus) {
        ignore_not_found(
            api.delete(name(&revision.metadata), &DeleteParams::default())
                .await,
        )?;
    }
    Ok(())
}
