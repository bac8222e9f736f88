//! The one delete below all resources: preconditions, grace periods, finalizers, propagation policies
//! (upstream `rest.BeforeDelete`, `registry.Store.Delete`). What to do is a pure function of the object and the
//! options; storing it is a short loop.

use std::sync::Arc;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use keelson_machinery::meta::{self, GroupResource};
use keelson_machinery::status::ApiError;
use keelson_machinery::time;
use keelson_machinery::value::Value;
use keelson_store::Expect;

use super::store::{CommitError, Storage, Stored, commit, commit_delete, decode, read_latest};
use super::strategy::{Context, DeleteOptions, GarbageCollection};

/// Finalizer by which the garbage collector orphans dependents first.
const ORPHAN: &str = "orphan";
/// Finalizer by which the garbage collector deletes dependents first.
const FOREGROUND: &str = "foregroundDeletion";

/// How often a delete is tried again after losing against another writer.
const ATTEMPTS: usize = 256;

/// Admission of a delete; sees the state that is about to go.
#[async_trait]
pub trait DeleteAdmission: Send {
    /// An error refuses the delete.
    async fn validate(&mut self, object: &Arc<Value>) -> Result<(), ApiError>;
}

/// What became of a delete.
pub enum Deleted {
    /// The object is gone; its last state.
    Gone(Stored),
    /// The object stays for now, marked as being deleted.
    Marked(Stored),
    /// The object was being deleted gracefully before, and stays as it is.
    AlreadyDeleting(Stored),
}

/// What is to be done with an object that a client deletes.
#[derive(Debug, PartialEq)]
pub enum Plan {
    /// A deletion is under way already, and this request changes nothing of it.
    AlreadyDeleting,
    /// Store this state and leave the object to its finalizers or its owner.
    Mark(Value),
    /// Remove it now; the state it goes with.
    Remove(Value),
}

/// Decides what a delete does (upstream `BeforeDelete` and `updateForGracefulDeletionAndFinalizers`).
pub fn plan(
    context: &Context<'_>,
    object: &Value,
    options: &DeleteOptions,
    now: Timestamp,
) -> Result<Plan, ApiError> {
    check_preconditions(context, object, options)?;
    let strategy = &context.served.strategy;
    let mut next = object.clone();
    let mut graceful = false;

    let mut asked = options.clone();
    if asked
        .grace_period_seconds
        .is_some_and(|seconds| seconds < 0)
    {
        asked.grace_period_seconds = Some(1);
    }
    if let Some(deleting_at) = meta::deletion_timestamp(object) {
        if let Some(old_grace) = meta::deletion_grace_period_seconds(object).filter(|s| *s != 0)
            && strategy.graceful_delete_seconds(object, &asked).is_some()
        {
            let old_grace = if old_grace < 0 { 1 } else { old_grace };
            match asked.grace_period_seconds {
                Some(seconds) if seconds < old_grace => {
                    let (at, seconds) = shorten(deleting_at, old_grace, seconds, now);
                    meta::set(&mut next, "deletionTimestamp", time::format(at));
                    meta::set(&mut next, "deletionGracePeriodSeconds", seconds);
                    graceful = true;
                }
                // The period can only become shorter.
                _ => return Ok(Plan::AlreadyDeleting),
            }
        }
    } else if let Some(seconds) = strategy.graceful_delete_seconds(object, &asked) {
        let at = after(now, seconds);
        meta::set(&mut next, "deletionTimestamp", time::format(at));
        meta::set(&mut next, "deletionGracePeriodSeconds", seconds);
        bump_generation(&mut next);
        graceful = true;
    }

    let finalizers = garbage_collection_finalizers(context, object, options);
    meta::set_finalizers(&mut next, &finalizers);
    let held = !finalizers.is_empty() || strategy.holds_deletion(&next);
    if graceful {
        let seconds = meta::deletion_grace_period_seconds(&next).unwrap_or(0);
        return Ok(if held || seconds > 0 {
            strategy.deletion_begins(&mut next);
            Plan::Mark(next)
        } else {
            Plan::Remove(next)
        });
    }
    if !held {
        return Ok(Plan::Remove(next));
    }
    let first = meta::deletion_timestamp(object).is_none();
    if first {
        bump_generation(&mut next);
    }
    let later = meta::deletion_timestamp(object)
        .and_then(|text| text.parse::<Timestamp>().ok())
        .is_none_or(|at| at > now);
    if later {
        meta::set(&mut next, "deletionTimestamp", time::format(now));
    }
    meta::set(&mut next, "deletionGracePeriodSeconds", 0);
    strategy.deletion_begins(&mut next);
    Ok(Plan::Mark(next))
}

/// Refuses an object that is not the one the client means.
pub fn check_preconditions(
    context: &Context<'_>,
    object: &Value,
    options: &DeleteOptions,
) -> Result<(), ApiError> {
    // Upstream puts the kind where other errors have the resource.
    let at = GroupResource::new(&*context.row().group, &*context.row().kind);
    let name = meta::name(object);
    if let Some(wanted) = &options.precondition_uid
        && wanted != meta::uid(object)
    {
        return Err(ApiError::conflict(
            &at,
            name,
            format!(
                "the UID in the precondition ({wanted}) does not match the UID in record ({}). The object might have been deleted and then recreated",
                meta::uid(object)
            ),
        ));
    }
    if let Some(wanted) = &options.precondition_resource_version
        && wanted != meta::resource_version(object)
    {
        return Err(ApiError::conflict(
            &at,
            name,
            format!(
                "the ResourceVersion in the precondition ({wanted}) does not match the ResourceVersion in record ({}). The object might have been modified",
                meta::resource_version(object)
            ),
        ));
    }
    Ok(())
}

/// Moves a deletion forward to a shorter grace period, but never into the past.
fn shorten(deleting_at: &str, old_grace: i64, seconds: i64, now: Timestamp) -> (Timestamp, i64) {
    let began = after(deleting_at.parse::<Timestamp>().unwrap_or(now), -old_grace);
    let at = after(began, seconds);
    if at >= now {
        (at, seconds)
    } else if seconds == 0 {
        (now, 0)
    } else {
        // The whole period is over already; whoever removes the object still gets to see that it was graceful.
        (now, 1)
    }
}

/// So many seconds later (or earlier). Clients choose grace periods: one that leads out of the calendar ends with it.
fn after(time: Timestamp, seconds: i64) -> Timestamp {
    let end = if seconds < 0 {
        Timestamp::MIN
    } else {
        Timestamp::MAX
    };
    time.checked_add(SignedDuration::from_secs(seconds))
        .unwrap_or(end)
}

fn bump_generation(object: &mut Value) {
    let generation = meta::generation(object);
    if generation > 0 {
        meta::set(object, "generation", generation + 1);
    }
}

/// The finalizers after the options' propagation policy (upstream `deletionFinalizersForGarbageCollection`).
fn garbage_collection_finalizers(
    context: &Context<'_>,
    object: &Value,
    options: &DeleteOptions,
) -> Vec<String> {
    let present = meta::finalizers(object);
    let default = context.served.strategy.garbage_collection();
    let (orphan, foreground) = if default == GarbageCollection::Unsupported {
        (false, false)
    } else if let Some(orphan) = options.orphan_dependents {
        (orphan, false)
    } else {
        match options.propagation_policy.as_deref() {
            Some("Orphan") => (true, false),
            Some("Foreground") => (false, true),
            Some("Background") => (false, false),
            _ => {
                let first = present.iter().find(|f| matches!(**f, ORPHAN | FOREGROUND));
                match first.copied() {
                    Some(ORPHAN) => (true, false),
                    Some(_) => (false, true),
                    None => (default == GarbageCollection::Orphan, false),
                }
            }
        }
    };
    let mut finalizers: Vec<String> = present
        .into_iter()
        .filter(|f| !matches!(*f, ORPHAN | FOREGROUND))
        .map(str::to_string)
        .collect();
    if orphan {
        finalizers.push(ORPHAN.to_string());
    }
    if foreground {
        finalizers.push(FOREGROUND.to_string());
    }
    finalizers
}

/// Deletes one object.
pub async fn delete(
    storage: &Storage,
    context: &Context<'_>,
    at: &GroupResource,
    namespace: &str,
    name: &str,
    options: &DeleteOptions,
    admission: &mut dyn DeleteAdmission,
) -> Result<Deleted, ApiError> {
    let served = context.served;
    let key = served.key(namespace, name);
    let mut current = read_latest(storage, served, at, namespace, name).await?;
    for _ in 0..ATTEMPTS {
        let Some(old) = current else {
            return Err(ApiError::not_found(at, name));
        };
        let plan = plan(context, &old.object, options, storage.clock.now())?;
        match &plan {
            Plan::AlreadyDeleting => return Ok(Deleted::AlreadyDeleting(old)),
            Plan::Mark(next) if *next == *old.object => return Ok(Deleted::Marked(old)),
            Plan::Mark(_) | Plan::Remove(_) => {}
        }
        admission.validate(&old.object).await?;
        let result = match plan {
            Plan::AlreadyDeleting => return Ok(Deleted::AlreadyDeleting(old)),
            Plan::Mark(next) if context.dry_run => {
                return Ok(Deleted::Marked(unsaved(next, &old)));
            }
            Plan::Remove(next) if context.dry_run => {
                return Ok(Deleted::Gone(unsaved(next, &old)));
            }
            Plan::Mark(next) => commit(
                storage,
                context,
                &key,
                Expect::ModRevision(old.revision),
                next,
            )
            .await
            .map(Deleted::Marked),
            Plan::Remove(mut next) => {
                commit_delete(storage, &key, old.revision)
                    .await
                    .map(|revision| {
                        meta::set(&mut next, "resourceVersion", revision.to_string());
                        Deleted::Gone(Stored {
                            object: Arc::new(next),
                            json: None,
                            revision,
                            outdated: false,
                        })
                    })
            }
        };
        match result {
            Ok(deleted) => {
                if let Deleted::Gone(stored) = &deleted {
                    served.strategy.after_delete(context, &stored.object);
                }
                return Ok(deleted);
            }
            Err(CommitError::Conflict(Some(kv))) => current = Some(decode(served, kv).await?),
            Err(CommitError::Conflict(None)) => current = None,
            Err(error) => return Err(error.into_api(at, name)),
        }
    }
    Err(ApiError::optimistic_lock(at, name))
}

fn unsaved(object: Value, old: &Stored) -> Stored {
    Stored {
        object: Arc::new(object),
        json: None,
        revision: old.revision,
        outdated: false,
    }
}
