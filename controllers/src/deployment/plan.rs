//! What to write for a Deployment: a pure function of it, its ReplicaSets and their pods.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::revisions::{
    DESIRED, MAX, REVISION, ROLLBACK, max_revision, new_set_annotations, revision, surplus,
    with_desired,
};
use super::scale::{self, Set};
use super::status::{self, counted, rollout, set_condition};
use crate::common::pods::is_terminal;
use crate::common::{
    Labels, annotations, controller_of, controller_reference, created, fnv32a, name, safe_encode,
    uid,
};

/// The label that tells the sets of a Deployment apart.
pub const HASH: &str = "pod-template-hash";

/// One intended write.
#[derive(Debug)]
pub enum Write {
    /// A new ReplicaSet.
    Create(ReplicaSet),
    /// A ReplicaSet as it should be; `event` when it is scaled.
    Update {
        /// The whole object.
        set: ReplicaSet,
        /// The event's message.
        event: Option<String>,
    },
    /// An old ReplicaSet that is no longer kept.
    Delete(String),
    /// The Deployment's annotations.
    Annotate(Labels),
    /// The Deployment's template back to an earlier one, and the request for it removed.
    RolledBack {
        /// The earlier template, none when there is no such revision.
        template: Option<Box<PodTemplateSpec>>,
        /// The annotations then.
        annotations: Labels,
        /// The event's message.
        message: String,
    },
}

/// What one pass should do.
#[derive(Debug, Default)]
pub struct Plan {
    /// In this order.
    pub writes: Vec<Write>,
    /// The new status, when it differs.
    pub status: Option<DeploymentStatus>,
    /// Look again after this, even if nothing changes.
    pub look_again: Option<Duration>,
}

/// `spec.replicas` of a set.
pub fn replicas(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

/// `status.replicas` of a set.
pub fn status_replicas(set: &ReplicaSet) -> i32 {
    set.status.as_ref().map_or(0, |s| s.replicas)
}

fn available(set: &ReplicaSet) -> i32 {
    set.status
        .as_ref()
        .and_then(|s| s.available_replicas)
        .unwrap_or(0)
}

/// `spec.replicas` of the Deployment.
pub fn desired(deployment: &Deployment) -> i32 {
    deployment
        .spec
        .as_ref()
        .and_then(|s| s.replicas)
        .unwrap_or(1)
}

/// Whether old pods must be gone before new ones come.
pub fn is_recreate(deployment: &Deployment) -> bool {
    deployment
        .spec
        .as_ref()
        .and_then(|s| s.strategy.as_ref())
        .and_then(|s| s.type_.as_deref())
        == Some("Recreate")
}

/// Surge and unavailability, in pods; none for Recreate.
pub fn fenceposts(deployment: &Deployment) -> (i32, i32) {
    if is_recreate(deployment) || desired(deployment) == 0 {
        return (0, 0);
    }
    let rolling = deployment
        .spec
        .as_ref()
        .and_then(|s| s.strategy.as_ref())
        .and_then(|s| s.rolling_update.as_ref());
    scale::fenceposts(
        rolling.and_then(|r| r.max_surge.as_ref()),
        rolling.and_then(|r| r.max_unavailable.as_ref()),
        desired(deployment),
    )
}

fn template(deployment: &Deployment) -> PodTemplateSpec {
    deployment
        .spec
        .as_ref()
        .map(|s| s.template.clone())
        .unwrap_or_default()
}

fn without_hash(mut template: PodTemplateSpec) -> PodTemplateSpec {
    let meta = template.metadata.get_or_insert_default();
    if let Some(labels) = &mut meta.labels {
        labels.remove(HASH);
    }
    if meta.labels.as_ref().is_some_and(|l| l.is_empty()) {
        meta.labels = None;
    }
    template
}

/// Whether a set runs the Deployment's template, the hash label apart.
pub fn same_template(deployment: &Deployment, set: &ReplicaSet) -> bool {
    let of_set = set.spec.as_ref().and_then(|s| s.template.clone());
    of_set.is_some_and(|t| without_hash(t) == without_hash(template(deployment)))
}

/// The hash in the name of the set for a template. The collision count makes another one of the same template.
fn template_hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    // The typed form has one order of fields and of keys, so its JSON is the same for the same template.
    let mut bytes = serde_json::to_vec(template).unwrap_or_default();
    if let Some(collisions) = collisions {
        bytes.extend(collisions.to_le_bytes());
    }
    safe_encode(fnv32a(&bytes))
}

fn as_set(set: &ReplicaSet) -> Set {
    Set {
        replicas: replicas(set),
        available: available(set),
        last_max: annotations(&set.metadata)
            .get(MAX)
            .and_then(|m| m.parse().ok())
            .unwrap_or(0),
    }
}

struct Planner<'a> {
    deployment: &'a Deployment,
    now: Timestamp,
    plan: Plan,
}

/// Plans one pass. `pods` are those of the sets, and only needed for the Recreate strategy.
pub fn plan(
    deployment: &Deployment,
    sets: &[Arc<ReplicaSet>],
    pods: &[Arc<Pod>],
    now: Timestamp,
) -> Plan {
    let mut all = sets.to_vec();
    all.sort_by_key(|s| (created(&s.metadata), name(&s.metadata).to_owned()));
    let new = all.iter().find(|s| same_template(deployment, s)).cloned();
    let old: Vec<_> = all
        .iter()
        .filter(|s| {
            new.as_ref()
                .is_none_or(|n| uid(&n.metadata) != uid(&s.metadata))
        })
        .cloned()
        .collect();
    let mut planner = Planner {
        deployment,
        now,
        plan: Plan::default(),
    };
    let paused = deployment
        .spec
        .as_ref()
        .and_then(|s| s.paused)
        .unwrap_or(false);
    if deployment.metadata.deletion_timestamp.is_some() {
        let status = counted(deployment, &all, new.as_ref(), now);
        planner.status(status);
        return planner.plan;
    }
    if paused {
        return planner.paused(&all, new, old);
    }
    if let Some(to) = annotations(&deployment.metadata).get(ROLLBACK) {
        planner.roll_back(to, &all);
        return planner.plan;
    }
    // A change of the wish in the middle of a rollout is spread before the rollout goes on.
    let desired = desired(deployment);
    let rescaled = all.iter().filter(|s| replicas(s) > 0).any(|s| {
        annotations(&s.metadata)
            .get(DESIRED)
            .and_then(|d| d.parse::<i32>().ok())
            .is_some_and(|d| d != desired)
    });
    if rescaled {
        planner.scale(new.as_ref(), &old);
        let status = counted(deployment, &all, new.as_ref(), now);
        planner.status(status);
        return planner.plan;
    }
    if is_recreate(deployment) {
        planner.recreate(&all, new, &old, pods);
    } else {
        planner.roll(&all, new, &old);
    }
    planner.plan
}

impl Planner<'_> {
    fn status(&mut self, mut status: DeploymentStatus) {
        let paused = self
            .deployment
            .spec
            .as_ref()
            .and_then(|s| s.paused)
            .unwrap_or(false);
        if status::has_deadline(self.deployment) {
            let reason = status::condition(&status, "Progressing").and_then(|c| c.reason.clone());
            // A rollout that ran into its deadline stays so; a pause does not hide it.
            let exceeded = reason.as_deref() == Some("ProgressDeadlineExceeded");
            let was_paused = reason.as_deref() == Some("DeploymentPaused");
            if paused && !was_paused && !exceeded {
                set_condition(
                    &mut status,
                    "Progressing",
                    "Unknown",
                    "DeploymentPaused",
                    "Deployment is paused",
                    self.now,
                );
            } else if !paused && was_paused {
                set_condition(
                    &mut status,
                    "Progressing",
                    "Unknown",
                    "DeploymentResumed",
                    "Deployment is resumed",
                    self.now,
                );
            }
        }
        if self.deployment.status.as_ref() != Some(&status) {
            self.plan.status = Some(status);
        }
    }

    fn rollout_status(&mut self, all: &[Arc<ReplicaSet>], new: Option<&Arc<ReplicaSet>>) {
        let (status, look_again) = rollout(self.deployment, all, new, self.now);
        self.status(status);
        self.plan.look_again = look_again;
    }

    fn paused(
        mut self,
        all: &[Arc<ReplicaSet>],
        new: Option<Arc<ReplicaSet>>,
        old: Vec<Arc<ReplicaSet>>,
    ) -> Plan {
        self.scale(new.as_ref(), &old);
        self.clean_up(&old);
        let status = counted(self.deployment, all, new.as_ref(), self.now);
        self.status(status);
        self.plan
    }

    /// A write that gives `set` this many replicas, if that is a change (`scaleReplicaSet`).
    fn scale_to(&mut self, set: &ReplicaSet, to: i32) -> bool {
        let (surge, _) = fenceposts(self.deployment);
        let wanted = desired(self.deployment);
        let notes = with_desired(annotations(&set.metadata), wanted, wanted + surge);
        let from = replicas(set);
        if from == to && annotations(&set.metadata) == &notes {
            return false;
        }
        let mut changed = set.clone();
        changed.metadata.annotations = Some(notes);
        changed.spec.get_or_insert_default().replicas = Some(to);
        let event = (from != to).then(|| {
            let word = if from < to { "up" } else { "down" };
            format!(
                "Scaled {word} replica set {} from {from} to {to}",
                name(&set.metadata)
            )
        });
        self.plan.writes.push(Write::Update {
            set: changed,
            event,
        });
        from != to
    }

    /// Follows a change of the wish without going on with a rollout (`scale`).
    fn scale(&mut self, new: Option<&Arc<ReplicaSet>>, old: &[Arc<ReplicaSet>]) {
        let wanted = desired(self.deployment);
        let mut active: Vec<_> = old
            .iter()
            .chain(new)
            .filter(|s| replicas(s) > 0)
            .cloned()
            .collect();
        // One set in charge takes it all: the active one, or the latest when none is.
        let only = match &active[..] {
            [only] => Some(only.clone()),
            [] => new.cloned().or_else(|| old.last().cloned()),
            _ => None,
        };
        if let Some(only) = only {
            self.scale_to(&only, wanted);
            return;
        }
        // Rolled out: the old ones have nothing to do.
        if let Some(new) = new
            && replicas(new) == wanted
            && available(new) == wanted
            && status_replicas(new) == wanted
        {
            for set in old.iter().filter(|s| replicas(s) > 0) {
                self.scale_to(set, 0);
            }
            return;
        }
        if is_recreate(self.deployment) {
            return;
        }
        let (surge, _) = fenceposts(self.deployment);
        let allowed = if wanted > 0 { wanted + surge } else { 0 };
        let growing = allowed > active.iter().map(|s| replicas(s)).sum();
        // Larger first; among equals the newer when growing, the older when shrinking.
        active.sort_by(|a, b| {
            replicas(b).cmp(&replicas(a)).then_with(|| {
                let age = created(&a.metadata).cmp(&created(&b.metadata));
                if growing { age.reverse() } else { age }
            })
        });
        let numbers: Vec<_> = active.iter().map(|s| as_set(s)).collect();
        let targets = scale::proportional(wanted, surge, &numbers);
        for (set, to) in active.iter().zip(targets) {
            self.scale_to(set, to);
        }
    }

    fn clean_up(&mut self, old: &[Arc<ReplicaSet>]) {
        let limit = self
            .deployment
            .spec
            .as_ref()
            .and_then(|s| s.revision_history_limit)
            .unwrap_or(10);
        if limit == i32::MAX {
            return;
        }
        let gone = surplus(old, limit);
        self.plan.writes.extend(gone.into_iter().map(Write::Delete));
    }

    /// The set for the current template, brought up to date; or the write that makes it (`getNewReplicaSet`). `None`
    /// when it has still to be made.
    fn ensure_new(
        &mut self,
        all: &[Arc<ReplicaSet>],
        new: Option<Arc<ReplicaSet>>,
        old: &[Arc<ReplicaSet>],
        make: bool,
    ) -> Option<Arc<ReplicaSet>> {
        let to = max_revision(old) + 1;
        let revision_text;
        let found = match new {
            Some(set) => {
                let notes = new_set_annotations(self.deployment, &set, to);
                revision_text = notes.get(REVISION).cloned();
                let ready = self
                    .deployment
                    .spec
                    .as_ref()
                    .and_then(|s| s.min_ready_seconds);
                let of_set = set.spec.as_ref().and_then(|s| s.min_ready_seconds);
                let same_ready = of_set.unwrap_or(0) == ready.unwrap_or(0);
                if &notes != annotations(&set.metadata) || !same_ready {
                    let mut changed = (*set).clone();
                    changed.metadata.annotations = Some(notes);
                    changed.spec.get_or_insert_default().min_ready_seconds = ready;
                    self.plan.writes.push(Write::Update {
                        set: changed,
                        event: None,
                    });
                    // Scaled at the next look, from what the server then has.
                    self.annotate(revision_text.as_deref());
                    self.rollout_status(all, Some(&set));
                    return None;
                }
                Some(set)
            }
            None if !make => return None,
            None => {
                let set = self.new_set(old, to);
                revision_text = Some(to.max(1).to_string());
                let made = name(&set.metadata).to_owned();
                self.plan.writes.push(Write::Create(set));
                self.annotate(revision_text.as_deref());
                let mut status = counted(self.deployment, all, None, self.now);
                if status::has_deadline(self.deployment) {
                    set_condition(
                        &mut status,
                        "Progressing",
                        "True",
                        "NewReplicaSetCreated",
                        &format!("Created new replica set \"{made}\""),
                        self.now,
                    );
                }
                self.status(status);
                return None;
            }
        };
        self.annotate(revision_text.as_deref());
        found
    }

    /// The Deployment says which revision is its newest.
    fn annotate(&mut self, revision: Option<&str>) {
        let Some(revision) = revision else { return };
        let mut notes = annotations(&self.deployment.metadata).clone();
        if notes.get(REVISION).map(String::as_str) != Some(revision) {
            notes.insert(REVISION.to_owned(), revision.to_owned());
            self.plan.writes.push(Write::Annotate(notes));
        }
    }

    fn new_set(&self, old: &[Arc<ReplicaSet>], to: i64) -> ReplicaSet {
        let collisions = self
            .deployment
            .status
            .as_ref()
            .and_then(|s| s.collision_count);
        let mut template = template(self.deployment);
        let hash = template_hash(&template, collisions);
        let labels = template
            .metadata
            .get_or_insert_default()
            .labels
            .get_or_insert_default();
        labels.insert(HASH.to_owned(), hash.clone());
        let labels = labels.clone();
        let mut selector = self
            .deployment
            .spec
            .as_ref()
            .map(|s| s.selector.clone())
            .unwrap_or_default();
        selector
            .match_labels
            .get_or_insert_default()
            .insert(HASH.to_owned(), hash.clone());
        let wanted = desired(self.deployment);
        let (surge, _) = fenceposts(self.deployment);
        let total: i32 = old.iter().map(|s| replicas(s)).sum();
        let first = if is_recreate(self.deployment) {
            wanted
        } else {
            scale::new_set(wanted, surge, 0, total)
        };
        let mut set = ReplicaSet {
            metadata: ObjectMeta {
                name: Some(format!("{}-{hash}", name(&self.deployment.metadata))),
                namespace: self.deployment.metadata.namespace.clone(),
                labels: Some(labels),
                owner_references: Some(vec![controller_reference(self.deployment)]),
                ..Default::default()
            },
            spec: Some(ReplicaSetSpec {
                replicas: Some(first),
                min_ready_seconds: self
                    .deployment
                    .spec
                    .as_ref()
                    .and_then(|s| s.min_ready_seconds),
                selector,
                template: Some(template),
            }),
            status: None,
        };
        let notes = new_set_annotations(self.deployment, &set, to);
        set.metadata.annotations = Some(with_desired(&notes, wanted, wanted + surge));
        set
    }

    fn roll(
        &mut self,
        all: &[Arc<ReplicaSet>],
        new: Option<Arc<ReplicaSet>>,
        old: &[Arc<ReplicaSet>],
    ) {
        let Some(new) = self.ensure_new(all, new, old, true) else {
            return;
        };
        let wanted = desired(self.deployment);
        let (surge, unavailable) = fenceposts(self.deployment);
        let total: i32 = all.iter().map(|s| replicas(s)).sum();
        let from = replicas(&new);
        let to = if from > wanted {
            wanted
        } else {
            scale::new_set(wanted, surge, from, total)
        };
        if !self.scale_to(&new, to) {
            let numbers: Vec<_> = old.iter().map(|s| as_set(s)).collect();
            let targets = scale::old_sets(wanted, unavailable, as_set(&new), &numbers);
            for (set, to) in old.iter().zip(targets) {
                if replicas(set) != to {
                    self.scale_to(set, to);
                }
            }
        }
        let status = counted(self.deployment, all, Some(&new), self.now);
        if status::complete(self.deployment, &status) {
            self.clean_up(old);
        }
        self.rollout_status(all, Some(&new));
    }

    fn recreate(
        &mut self,
        all: &[Arc<ReplicaSet>],
        new: Option<Arc<ReplicaSet>>,
        old: &[Arc<ReplicaSet>],
        pods: &[Arc<Pod>],
    ) {
        let mut down = false;
        for set in old.iter().filter(|s| replicas(s) > 0) {
            down |= self.scale_to(set, 0);
        }
        let old_running = pods.iter().any(|pod| {
            let owner = controller_of(&pod.metadata).map(|o| o.uid.as_str());
            let of_new = new
                .as_ref()
                .is_some_and(|n| owner == Some(uid(&n.metadata)));
            !of_new && !is_terminal(pod)
        });
        if down || old_running {
            self.rollout_status(all, new.as_ref());
            return;
        }
        let Some(new) = self.ensure_new(all, new, old, true) else {
            return;
        };
        self.scale_to(&new, desired(self.deployment));
        let status = counted(self.deployment, all, Some(&new), self.now);
        if status::complete(self.deployment, &status) {
            self.clean_up(old);
        }
        self.rollout_status(all, Some(&new));
    }

    /// Serves a request by annotation; 0 means the revision before the newest.
    fn roll_back(&mut self, to: &str, all: &[Arc<ReplicaSet>]) {
        let mut notes = annotations(&self.deployment.metadata).clone();
        notes.remove(ROLLBACK);
        let mut wanted: i64 = to.parse().unwrap_or(0);
        if wanted == 0 {
            let mut known: Vec<_> = all
                .iter()
                .map(|s| revision(annotations(&s.metadata)))
                .collect();
            known.sort_unstable();
            wanted = known.iter().rev().nth(1).copied().unwrap_or(0);
        }
        let set = all
            .iter()
            .find(|s| wanted > 0 && revision(annotations(&s.metadata)) == wanted);
        let (template, message) = match set {
            None => (
                None,
                "Unable to find the revision to rollback to.".to_owned(),
            ),
            Some(set) if same_template(self.deployment, set) => (
                None,
                format!(
                    "The rollback revision contains the same template as current deployment \"{}\"",
                    name(&self.deployment.metadata)
                ),
            ),
            Some(set) => (
                set.spec
                    .as_ref()
                    .and_then(|s| s.template.clone())
                    .map(|t| Box::new(without_hash(t))),
                format!(
                    "Rolled back deployment \"{}\" to revision {wanted}",
                    name(&self.deployment.metadata)
                ),
            ),
        };
        self.plan.writes.push(Write::RolledBack {
            template,
            annotations: notes,
            message,
        });
    }
}

#[cfg(test)]
mod tests;
