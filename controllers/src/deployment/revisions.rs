//! Revisions of a Deployment: numbers, annotations and which old ReplicaSets to keep.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};

use crate::common::{Labels, annotations};

use super::plan::{replicas, status_replicas};

/// The revision of a ReplicaSet, and the newest one of a Deployment.
pub const REVISION: &str = "deployment.kubernetes.io/revision";
/// Earlier revisions of a ReplicaSet that became the newest again.
pub const HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// The Deployment's replicas when a ReplicaSet was last scaled.
pub const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
/// That, and its surge.
pub const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// Asks for a rollback (extensions/v1beta1, still honoured).
pub const ROLLBACK: &str = "deprecated.deployment.rollback.to";
/// Never copied to ReplicaSets.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// How long the history annotation may grow (upstream `maxRevHistoryLengthInChars`).
const HISTORY_LIMIT: usize = 2000;

/// The revision number of an object, 0 when it has none.
pub fn revision(annotations: &Labels) -> i64 {
    annotations
        .get(REVISION)
        .and_then(|r| r.parse().ok())
        .unwrap_or(0)
}

/// The newest revision among sets.
pub fn max_revision<'a>(sets: impl IntoIterator<Item = &'a Arc<ReplicaSet>>) -> i64 {
    sets.into_iter()
        .map(|set| revision(annotations(&set.metadata)))
        .max()
        .unwrap_or(0)
}

fn is_copied(key: &str) -> bool {
    !matches!(
        key,
        REVISION | HISTORY | DESIRED | MAX | ROLLBACK | LAST_APPLIED
    )
}

/// The annotations of the new ReplicaSet at revision `to` (upstream `SetNewReplicaSetAnnotations`).
pub fn new_set_annotations(deployment: &Deployment, set: &ReplicaSet, to: i64) -> Labels {
    let mut new = annotations(&set.metadata).clone();
    for (key, value) in annotations(&deployment.metadata) {
        if is_copied(key) {
            new.insert(key.clone(), value.clone());
        }
    }
    let old = revision(&new);
    if old < to {
        if old > 0 {
            let mut history: Vec<_> = new
                .get(HISTORY)
                .map(|h| {
                    h.split(',')
                        .filter(|r| !r.is_empty())
                        .map(str::to_owned)
                        .collect()
                })
                .unwrap_or_default();
            history.push(old.to_string());
            while history.join(",").len() > HISTORY_LIMIT {
                history.remove(0);
            }
            new.insert(HISTORY.to_owned(), history.join(","));
        }
        new.insert(REVISION.to_owned(), to.to_string());
    }
    new
}

/// Which of the old sets to delete, so that only the last `limit` stay. Those with pods, or being deleted, stay.
pub fn surplus(sets: &[Arc<ReplicaSet>], limit: i32) -> Vec<String> {
    let limit = usize::try_from(limit).unwrap_or(0);
    let mut alive: Vec<_> = sets
        .iter()
        .filter(|set| set.metadata.deletion_timestamp.is_none())
        .collect();
    if alive.len() <= limit {
        return Vec::new();
    }
    alive.sort_by_key(|set| {
        (
            revision(annotations(&set.metadata)),
            set.metadata.creation_timestamp.as_ref().map(|t| t.0),
        )
    });
    let most = alive.len() - limit;
    alive
        .into_iter()
        .take(most)
        .filter(|set| {
            let seen = set.status.as_ref().and_then(|s| s.observed_generation);
            status_replicas(set) == 0 && replicas(set) == 0 && set.metadata.generation <= seen
        })
        .filter_map(|set| set.metadata.name.clone())
        .collect()
}

/// The annotations that record how many replicas were wanted at the last scaling.
pub fn with_desired(annotations: &Labels, desired: i32, max: i32) -> BTreeMap<String, String> {
    let mut new = annotations.clone();
    new.insert(DESIRED.to_owned(), desired.to_string());
    new.insert(MAX.to_owned(), max.to_string());
    new
}
