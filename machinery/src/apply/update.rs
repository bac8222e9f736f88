//! Who owns what after a write, and what an applied configuration makes of an object (upstream `merge.Updater` and
//! the chain of managers around it).

use std::sync::LazyLock;

use super::managed::{ManagedFields, Manager, Operation, Owned};
use super::path::{PathElement, path_text};
use super::set::Set;
use super::shape::Shape;
use super::walk::{self, Comparison};
use crate::status::{ApiError, Cause, Reason};
use crate::value::{self, Value};

/// Fields of the system, which nobody owns (upstream `stripMetaManager`).
static STRIPPED: LazyLock<Set> = LazyLock::new(|| {
    Set::of_fields(&[
        &["apiVersion"],
        &["kind"],
        &["metadata"],
        &["metadata", "name"],
        &["metadata", "namespace"],
        &["metadata", "creationTimestamp"],
        &["metadata", "selfLink"],
        &["metadata", "uid"],
        &["metadata", "clusterName"],
        &["metadata", "generation"],
        &["metadata", "managedFields"],
        &["metadata", "resourceVersion"],
    ])
});

/// Owns what an object had before it was tracked.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";

/// The annotation in which client-side apply keeps its configuration.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The manager whose applies take over from client-side apply.
const KUBECTL: &str = "kubectl";

/// Who writes, and as what.
#[derive(Clone, Copy, Debug)]
pub struct Write<'a> {
    /// The shape of the object in the version of the request.
    pub shape: Shape<'a>,
    /// That version.
    pub api_version: &'a str,
    /// The subresource written to; empty for the object itself.
    pub subresource: &'a str,
    /// The manager's name.
    pub manager: &'a str,
    /// Fields that this write cannot change.
    pub ignored: &'a Set,
    /// Text of the present time.
    pub now: &'a str,
}

/// A field that another manager owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The owner.
    pub manager: Manager,
    /// The field.
    pub path: Vec<PathElement>,
}

/// Why an apply did not happen.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ApplyError {
    /// Other managers own fields of the configuration.
    #[error("conflicts")]
    Conflicts(Vec<Conflict>),
    /// The configuration does not fit the type.
    #[error("{0}")]
    Malformed(String),
}

impl From<ApplyError> for ApiError {
    fn from(error: ApplyError) -> ApiError {
        match error {
            ApplyError::Conflicts(conflicts) => conflict_error(&conflicts),
            ApplyError::Malformed(why) => ApiError::new(500, Reason::Unknown, why),
        }
    }
}

/// Upstream `NewConflictError`.
fn conflict_error(conflicts: &[Conflict]) -> ApiError {
    let causes = conflicts
        .iter()
        .map(|conflict| Cause {
            reason: "FieldManagerConflict".to_string(),
            message: format!("conflict with {}", conflict.manager.describe()),
            field: path_text(&conflict.path),
        })
        .collect();
    let message = match conflicts {
        [only] => format!(
            "Apply failed with 1 conflict: conflict with {}: {}",
            only.manager.describe(),
            path_text(&only.path)
        ),
        _ => {
            let mut lines = Vec::new();
            let mut last = None;
            for conflict in conflicts {
                if last != Some(&conflict.manager) {
                    lines.push(format!("conflicts with {}:", conflict.manager.describe()));
                    last = Some(&conflict.manager);
                }
                lines.push(format!("- {}", path_text(&conflict.path)));
            }
            format!(
                "Apply failed with {} conflicts: {}",
                conflicts.len(),
                lines.join("\n")
            )
        }
    };
    ApiError::apply_conflict(causes, message)
}

/// Takes from all managers but `writer` what a write changed. Without `force`, changing what they own is a conflict.
fn disown(
    managed: &mut ManagedFields,
    change: &Comparison,
    writer: Option<&Manager>,
    force: bool,
) -> Result<(), Vec<Conflict>> {
    let changed = change.modified.union(&change.added);
    if !force {
        let mut conflicts = Vec::new();
        for (manager, owned) in &managed.0 {
            if Some(manager) == writer {
                continue;
            }
            for path in owned.set.intersection(&changed).paths() {
                conflicts.push(Conflict {
                    manager: manager.clone(),
                    path,
                });
            }
        }
        if !conflicts.is_empty() {
            return Err(conflicts);
        }
    }
    for (manager, owned) in &mut managed.0 {
        if Some(manager) != writer {
            owned.set = owned.set.difference(&changed).difference(&change.removed);
        }
    }
    managed.0.retain(|_, owned| !owned.set.is_empty());
    Ok(())
}

/// Notes in the entries who changed what from `live` to `new` by a write that is no apply.
fn record(managed: &mut ManagedFields, live: &Value, new: &Value, write: &Write<'_>, name: &str) {
    let change = walk::compare(write.shape, live, new).exclude(write.ignored);
    if change.is_same() {
        return;
    }
    // Every conflict is forced, so there is none.
    let _ = disown(managed, &change, None, true);
    let set = change.modified.union(&change.added).difference(&STRIPPED);
    if !set.is_empty() {
        let manager = Manager::new(
            name,
            Operation::Update,
            write.api_version,
            write.subresource,
        );
        let set = match managed.0.remove(&manager) {
            Some(before) => before.set.union(&set),
            None => set,
        };
        managed.0.insert(
            manager,
            Owned {
                api_version: write.api_version.to_string(),
                set,
                time: Some(write.now.to_string()),
            },
        );
    }
    managed.cap();
}

/// Sets the managed fields of `new`, which replaces `live` by a create, an update or a patch
/// (upstream `FieldManager.UpdateNoErrors`). `live` is the zero object for creates. Both are in the version of the
/// request.
pub fn track(live: &Value, new: &mut Value, write: &Write<'_>) {
    const AT: &[&str] = &["metadata", "managedFields"];
    let sent = value::remove(new, AT).filter(|sent| !value::is_empty(sent));
    let reset;
    let mut managed = match sent {
        Some(sent) if write.subresource.is_empty() && value::get(live, AT) != Some(&sent) => {
            value::set(new, AT, sent);
            reset = super::managed::is_reset(new);
            let read = if reset {
                Ok(ManagedFields::default())
            } else {
                ManagedFields::decode(new)
            };
            value::remove(new, AT);
            match read {
                Ok(read) if reset || !read.0.is_empty() => read,
                _ => ManagedFields::decode(live).unwrap_or_default(),
            }
        }
        _ => {
            reset = false;
            ManagedFields::decode(live).unwrap_or_default()
        }
    };
    // What was never tracked begins with the first apply.
    let tracked = !managed.0.is_empty() || crate::meta::uid(live).is_empty();
    if tracked && !(reset && !crate::meta::uid(live).is_empty()) {
        let entries = value::get(live, AT).cloned();
        let bare;
        let live = if entries.is_some() {
            bare = {
                let mut bare = live.clone();
                value::remove(&mut bare, AT);
                bare
            };
            &bare
        } else {
            live
        };
        record(&mut managed, live, new, write, write.manager);
    }
    managed.encode(new);
}

/// Applies a configuration (upstream `FieldManager.Apply`). The result is not yet defaulted; a configuration that
/// changes nothing gives `live` with at most other managed fields.
pub fn apply(
    live: &Value,
    config: &Value,
    write: &Write<'_>,
    force: bool,
) -> Result<Value, ApiError> {
    let mut managed = ManagedFields::decode(live).map_err(|why| {
        ApiError::new(
            500,
            Reason::Unknown,
            format!("failed to decode managed fields: {why}"),
        )
    })?;
    let mut live = live.clone();
    crate::meta::remove(&mut live, "managedFields");
    let live = &live;
    if value::get(config, &["metadata", "managedFields"]).is_some() {
        return Err(ApiError::bad_request("metadata.managedFields must be nil"));
    }
    let errors = walk::check(write.shape, config);
    if !errors.is_empty() {
        let text = |name: &str| match crate::meta::text(config, name) {
            "" => "<unknown>".to_string(),
            text => text.to_string(),
        };
        let errors = match &errors[..] {
            [only] => only.clone(),
            all => format!("errors:\n  {}", all.join("\n  ")),
        };
        return Err(ApplyError::Malformed(format!(
            "failed to create typed patch object ({}/{}; {}, Kind={}): {errors}",
            crate::meta::namespace(config),
            text("name"),
            value::str_or_empty(config, &["apiVersion"]),
            value::str_or_empty(config, &["kind"]),
        ))
        .into());
    }
    if managed.0.is_empty() && !crate::meta::uid(live).is_empty() {
        let nothing = write.shape.zero();
        record(&mut managed, &nothing, live, write, BEFORE_FIRST_APPLY);
    }
    let outcome = match apply_once(live, config, &managed, write, force) {
        Err(conflicts) if write.manager == KUBECTL => {
            let allowed = allowed_by_last_applied(live, write);
            let left: Vec<Conflict> = match &allowed {
                Some(allowed) => conflicts
                    .into_iter()
                    .filter(|conflict| !allowed.has(&conflict.path))
                    .collect(),
                None => conflicts,
            };
            if left.is_empty() {
                apply_once(live, config, &managed, write, true)
            } else {
                Err(left)
            }
        }
        outcome => outcome,
    };
    let (mut object, managed) = outcome.map_err(ApplyError::Conflicts)?;
    if write.manager == KUBECTL
        && crate::meta::annotation(&object, LAST_APPLIED).is_some_and(|text| !text.is_empty())
    {
        let mut kept = config.clone();
        value::remove(&mut kept, &["metadata", "annotations", LAST_APPLIED]);
        value::set(
            &mut object,
            &["metadata", "annotations", LAST_APPLIED],
            format!("{kept}\n"),
        );
    }
    managed.encode(&mut object);
    Ok(object)
}

fn apply_once(
    live: &Value,
    config: &Value,
    managed: &ManagedFields,
    write: &Write<'_>,
    force: bool,
) -> Result<(Value, ManagedFields), Vec<Conflict>> {
    let shape = write.shape;
    let mut managed = managed.clone();
    let merged = walk::merge(shape, live, config);
    let set = walk::field_set(shape, config).recursive_difference(write.ignored);
    let applier = Manager::new(
        write.manager,
        Operation::Apply,
        write.api_version,
        write.subresource,
    );
    let last = managed.0.insert(
        applier.clone(),
        Owned {
            api_version: write.api_version.to_string(),
            set,
            time: None,
        },
    );
    let new = match &last {
        Some(last) if !last.set.is_empty() => prune(shape, &merged, &managed, &last.set),
        _ => merged,
    };
    let change = walk::compare(shape, live, &new).exclude(write.ignored);
    disown(&mut managed, &change, Some(&applier), force)?;
    let same = new == *live;
    if let Some(owned) = managed.0.get_mut(&applier) {
        owned.set = owned.set.difference(&STRIPPED);
        owned.time = if same {
            last.and_then(|last| last.time)
        } else {
            Some(write.now.to_string())
        };
        if owned.set.is_empty() {
            managed.0.remove(&applier);
        }
    }
    Ok((new, managed))
}

/// Takes away what the applier applied before and no longer does, unless somebody else owns it
/// (upstream `Updater.prune`).
fn prune(shape: Shape<'_>, merged: &Value, managed: &ManagedFields, last: &Set) -> Value {
    let removed = |value: &Value, set: &Set| {
        walk::remove(shape, value, set).unwrap_or_else(|| Value::Object(value::Object::new()))
    };
    let named = |set: &Set| walk::with_named_fields(shape, set);
    let last = named(last);
    let merged_set = named(&walk::field_set(shape, merged));

    let pruned = removed(merged, &last);
    let pruned_set = named(&walk::field_set(shape, &pruned));
    let owned = managed
        .0
        .values()
        .fold(Set::default(), |all, owned| all.union(&owned.set));
    let pruned = removed(
        merged,
        &merged_set.difference(&pruned_set.union(&named(&owned))),
    );
    // What was removed along with its parent, but was not the applier's, comes back.
    let pruned_set = named(&walk::field_set(shape, &pruned));
    removed(
        merged,
        &merged_set.difference(&pruned_set).intersection(&last),
    )
}

/// Fields that client-side apply set and nobody changed since (upstream `allowedConflictsFromLastApplied`).
fn allowed_by_last_applied(live: &Value, write: &Write<'_>) -> Option<Set> {
    let text = crate::meta::annotation(live, LAST_APPLIED).filter(|text| !text.is_empty())?;
    let applied: Value = serde_json::from_str(text).ok()?;
    let shape = write.shape;
    if value::str_or_empty(&applied, &["apiVersion"]) != write.api_version
        || !walk::check(shape, &applied).is_empty()
    {
        return None;
    }
    let change = walk::compare(shape, &applied, live);
    Some(
        walk::field_set(shape, &applied)
            .difference(&change.modified)
            .difference(&change.added)
            .difference(&change.removed),
    )
}
