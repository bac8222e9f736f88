//! A Deployment's status: counts, availability, progress and its deadline (upstream `progress.go`, `sync.go`).

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::plan::{desired, fenceposts, replicas};

/// Upstream's way to say that there is no deadline.
const NO_DEADLINE: i32 = i32::MAX;

/// The condition of that type.
pub fn condition<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.iter().flatten().find(|c| c.type_ == kind)
}

/// Sets a condition. One that says the same stays as it is; the transition time moves only with the status.
pub fn set_condition(
    status: &mut DeploymentStatus,
    kind: &str,
    value: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) {
    let old = condition(status, kind).cloned();
    if old
        .as_ref()
        .is_some_and(|c| c.status == value && c.reason.as_deref() == Some(reason))
    {
        return;
    }
    let since = old
        .filter(|c| c.status == value)
        .and_then(|c| c.last_transition_time);
    let conditions = status.conditions.get_or_insert_default();
    conditions.retain(|c| c.type_ != kind);
    conditions.push(DeploymentCondition {
        type_: kind.to_owned(),
        status: value.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_update_time: Some(Time(now)),
        last_transition_time: since.or(Some(Time(now))),
    });
}

fn remove_condition(status: &mut DeploymentStatus, kind: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|c| c.type_ != kind);
    }
}

/// A status with the Progressing condition set.
pub fn with_progress(
    mut status: DeploymentStatus,
    value: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> DeploymentStatus {
    set_condition(&mut status, "Progressing", value, reason, message, now);
    status
}

/// Whether progress is judged at all.
pub fn has_deadline(deployment: &Deployment) -> bool {
    deadline(deployment).is_some()
}

fn deadline(deployment: &Deployment) -> Option<i32> {
    deployment
        .spec
        .as_ref()?
        .progress_deadline_seconds
        .filter(|seconds| *seconds != NO_DEADLINE)
}

/// Counts and availability, conditions kept (`calculateStatus`).
pub fn counted(
    deployment: &Deployment,
    all: &[Arc<ReplicaSet>],
    new: Option<&Arc<ReplicaSet>>,
    now: Timestamp,
) -> DeploymentStatus {
    let sum = |of: &dyn Fn(&ReplicaSet) -> i32| all.iter().map(|s| of(s)).sum::<i32>();
    let of = |set: &ReplicaSet, field: fn(&k8s_openapi::api::apps::v1::ReplicaSetStatus) -> i32| {
        set.status.as_ref().map_or(0, field)
    };
    let total = sum(&|s| replicas(s));
    let available = sum(&|s| of(s, |st| st.available_replicas.unwrap_or(0)));
    let old = deployment.status.clone().unwrap_or_default();
    // Known only when every set reports it.
    let terminating = all
        .iter()
        .map(|s| s.status.as_ref().and_then(|st| st.terminating_replicas))
        .sum::<Option<i32>>();
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: Some(sum(&|s| of(s, |st| st.replicas))),
        updated_replicas: Some(new.map_or(0, |s| of(s, |st| st.replicas))),
        ready_replicas: Some(sum(&|s| of(s, |st| st.ready_replicas.unwrap_or(0)))),
        available_replicas: Some(available),
        unavailable_replicas: Some((total - available).max(0)),
        terminating_replicas: terminating,
        collision_count: old.collision_count,
        conditions: old.conditions,
    };
    let (_, unavailable) = fenceposts(deployment);
    if available >= desired(deployment) - unavailable {
        set_condition(
            &mut status,
            "Available",
            "True",
            "MinimumReplicasAvailable",
            "Deployment has minimum availability.",
            now,
        );
    } else {
        set_condition(
            &mut status,
            "Available",
            "False",
            "MinimumReplicasUnavailable",
            "Deployment does not have minimum availability.",
            now,
        );
    }
    status
}

/// Everything rolled out and up (`DeploymentComplete`).
pub fn complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = Some(desired(deployment));
    status.updated_replicas == wanted
        && status.replicas == wanted
        && status.available_replicas == wanted
        && status.observed_generation >= deployment.metadata.generation
}

/// Nearer to complete than at the last look (`DeploymentProgressing`).
fn progressing(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let n = |x: Option<i32>| x.unwrap_or(0);
    let old_old = n(old.replicas) - n(old.updated_replicas);
    let new_old = n(new.replicas) - n(new.updated_replicas);
    n(new.updated_replicas) > n(old.updated_replicas)
        || new_old < old_old
        || n(new.ready_replicas) > n(old.ready_replicas)
        || n(new.available_replicas) > n(old.available_replicas)
}

/// When, counted from the last progress, patience ends.
fn expires(deployment: &Deployment, status: &DeploymentStatus) -> Option<Timestamp> {
    let since = condition(status, "Progressing")?
        .last_update_time
        .as_ref()?
        .0;
    since
        .checked_add(SignedDuration::from_secs(i64::from(deadline(deployment)?)))
        .ok()
}

/// Whether patience is at an end (`DeploymentTimedOut`).
fn timed_out(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> bool {
    let Some(progress) = condition(status, "Progressing") else {
        return false;
    };
    match progress.reason.as_deref() {
        Some("NewReplicaSetAvailable") => return false,
        Some("ProgressDeadlineExceeded") => return true,
        _ => {}
    }
    expires(deployment, status).is_some_and(|at| at < now)
}

/// The status of a rollout: counts, then progress (`syncRolloutStatus`). Also says when to look again for the deadline.
pub fn rollout(
    deployment: &Deployment,
    all: &[Arc<ReplicaSet>],
    new: Option<&Arc<ReplicaSet>>,
    now: Timestamp,
) -> (DeploymentStatus, Option<Duration>) {
    let mut status = counted(deployment, all, new, now);
    let before = deployment.status.clone().unwrap_or_default();
    if !has_deadline(deployment) {
        remove_condition(&mut status, "Progressing");
    }
    let known = condition(&before, "Progressing").cloned();
    // Once rolled out and said so, only a new rollout (another reason) is judged again.
    let done_before = before.replicas == before.updated_replicas
        && known
            .as_ref()
            .is_some_and(|c| c.reason.as_deref() == Some("NewReplicaSetAvailable"));
    if has_deadline(deployment) && !done_before {
        let set_name = new.and_then(|s| s.metadata.name.as_deref());
        let subject = match set_name {
            Some(set) => format!("ReplicaSet \"{set}\""),
            None => format!(
                "Deployment \"{}\"",
                deployment.metadata.name.as_deref().unwrap_or_default()
            ),
        };
        if complete(deployment, &status) {
            let text = format!("{subject} has successfully progressed.");
            set_condition(
                &mut status,
                "Progressing",
                "True",
                "NewReplicaSetAvailable",
                &text,
                now,
            );
        } else if progressing(&before, &status) {
            let text = format!("{subject} is progressing.");
            let since = known
                .filter(|c| c.status == "True")
                .and_then(|c| c.last_transition_time);
            // Set anew each time, so that its update time says when progress was last made.
            remove_condition(&mut status, "Progressing");
            set_condition(
                &mut status,
                "Progressing",
                "True",
                "ReplicaSetUpdated",
                &text,
                now,
            );
            if let (Some(since), Some(conditions)) = (since, &mut status.conditions)
                && let Some(new) = conditions.iter_mut().find(|c| c.type_ == "Progressing")
            {
                new.last_transition_time = Some(since);
            }
        } else if timed_out(deployment, &status, now) {
            let text = format!("{subject} has timed out progressing.");
            set_condition(
                &mut status,
                "Progressing",
                "False",
                "ProgressDeadlineExceeded",
                &text,
                now,
            );
        }
    }
    // What a set could not do is the Deployment's failure too; the new set's first.
    let failure = new.into_iter().chain(all).find_map(|set| {
        set.status
            .as_ref()?
            .conditions
            .iter()
            .flatten()
            .find(|c| c.type_ == "ReplicaFailure")
            .cloned()
    });
    match failure {
        Some(c) => set_condition(
            &mut status,
            "ReplicaFailure",
            &c.status,
            c.reason.as_deref().unwrap_or_default(),
            c.message.as_deref().unwrap_or_default(),
            now,
        ),
        None => remove_condition(&mut status, "ReplicaFailure"),
    }
    let running = condition(&status, "Progressing").is_some_and(|c| {
        !matches!(
            c.reason.as_deref(),
            Some("NewReplicaSetAvailable" | "ProgressDeadlineExceeded")
        )
    });
    let look_again = (running && !complete(deployment, &status))
        .then(|| expires(deployment, &status))
        .flatten()
        .map(|at| {
            Duration::try_from(at.duration_since(now)).unwrap_or_default() + Duration::from_secs(1)
        });
    (status, look_again)
}
