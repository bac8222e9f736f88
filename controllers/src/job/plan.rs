//! What to write for a Job: a pure function of it and its pods.
//!
//! Counting must survive that pods go away: each pod carries a finalizer until it is counted. A finished pod's uid is first
//! written into `status.uncountedTerminatedPods`, then its finalizer is taken off, and when that is seen the uid becomes a
//! number. A crash between any two steps loses and doubles nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus, UncountedTerminatedPods};
use k8s_openapi::api::core::v1::{
    Container, EnvVar, EnvVarSource, ObjectFieldSelector, Pod, PodTemplateSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::indexes;
use super::policy::{self, Verdict};
use crate::common::pod_control::pod_from_template;
use crate::common::pods::{
    condition as condition_of, is_active, is_deleting, is_ready, is_terminating, phase,
};
use crate::common::{annotations, controller_reference, created, name, uid};

/// Holds a pod until it is counted.
pub const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
/// How often a pod's index failed before it.
const INDEX_FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
/// Uids that the status holds at once (`MaxUncountedPods`).
const MOST_UNCOUNTED: usize = 500;
/// Pods made in one pass (`MaxPodCreateDeletePerSync`).
const BURST: i32 = 500;
/// The wait after a first failure, doubled by each further one (`DefaultJobPodFailureBackOff`).
const BACKOFF: Duration = Duration::from_secs(10);
/// And its bound (`MaxJobPodFailureBackOff`).
const MOST_BACKOFF: Duration = Duration::from_secs(600);

/// What one pass should do, in this order.
#[derive(Debug, Default)]
pub struct Plan {
    /// The new status, when it differs.
    pub status: Option<JobStatus>,
    /// Pods that are counted: their finalizer goes, once the status is written.
    pub release: Vec<Arc<Pod>>,
    /// Pods to end.
    pub delete: Vec<Arc<Pod>>,
    /// Pods to make.
    pub create: Vec<Pod>,
    /// Events to tell: whether a warning, reason, message.
    pub events: Vec<(bool, String, String)>,
    /// Look again after this, even if nothing changes.
    pub look_again: Option<Duration>,
}

/// The condition of that type, if it is true.
pub fn condition<'a>(status: &'a JobStatus, kind: &str) -> Option<&'a JobCondition> {
    status
        .conditions
        .iter()
        .flatten()
        .find(|c| c.type_ == kind && c.status == "True")
}

/// Whether the job is over for good.
pub fn is_finished(job: &Job) -> bool {
    job.status
        .as_ref()
        .is_some_and(|s| condition(s, "Complete").is_some() || condition(s, "Failed").is_some())
}

/// Whether a pod is still held.
pub fn is_held(pod: &Pod) -> bool {
    pod.metadata
        .finalizers
        .iter()
        .flatten()
        .any(|f| f == FINALIZER)
}

fn is_indexed(spec: &JobSpec) -> bool {
    spec.completion_mode.as_deref() == Some("Indexed")
}

/// Whether only a pod that has fully failed is replaced, not one that is on its way out.
fn replaces_failed_only(spec: &JobSpec) -> bool {
    match spec.pod_replacement_policy.as_deref() {
        Some(policy) => policy == "Failed",
        None => spec.pod_failure_policy.is_some(),
    }
}

fn has_failed(spec: &JobSpec, pod: &Pod) -> bool {
    match phase(pod) {
        "Failed" => true,
        "Succeeded" => false,
        "Pending" if replaces_failed_only(spec) => is_deleting(pod),
        _ if replaces_failed_only(spec) => false,
        _ => is_deleting(pod),
    }
}

/// When a pod ended, as well as can be said (upstream `getFinishedTime`): when its last container did, when it stopped being
/// ready, when its deletion began. A pod that was refused by its node has none of these; then it ended when it was made, never
/// "just now", which would keep the job waiting for ever.
fn ended(pod: &Pod) -> Option<Timestamp> {
    let statuses = pod
        .status
        .as_ref()
        .and_then(|s| s.container_statuses.as_deref())
        .unwrap_or_default();
    let finished: Option<Vec<Timestamp>> = statuses
        .iter()
        .map(|c| {
            Some(
                c.state
                    .as_ref()?
                    .terminated
                    .as_ref()?
                    .finished_at
                    .as_ref()?
                    .0,
            )
        })
        .collect();
    let unready = || {
        condition_of(pod, "Ready")
            .filter(|c| c.status == "False")
            .and_then(|c| c.last_transition_time.as_ref())
            .map(|t| t.0)
    };
    let deleted = || {
        let at = pod.metadata.deletion_timestamp.as_ref()?.0;
        let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
        at.checked_sub(SignedDuration::from_secs(grace)).ok()
    };
    finished
        .and_then(|all| all.into_iter().max())
        .or_else(unready)
        .or_else(deleted)
        .or_else(|| created(&pod.metadata))
}

fn set_condition(
    status: &mut JobStatus,
    kind: &str,
    value: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> bool {
    let conditions = status.conditions.get_or_insert_default();
    let new = JobCondition {
        type_: kind.to_owned(),
        status: value.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    };
    match conditions.iter_mut().find(|c| c.type_ == kind) {
        Some(old) if old.status == value => return false,
        Some(old) => *old = new,
        None if value == "False" => return false,
        None => conditions.push(new),
    }
    true
}

struct Pass<'a> {
    job: &'a Job,
    spec: &'a JobSpec,
    pods: &'a [Arc<Pod>],
    now: Timestamp,
    status: JobStatus,
    plan: Plan,
}

/// Plans one pass. `pods` are all that the job owns; `may_manage` is false while earlier writes are not all seen.
pub fn plan(job: &Job, pods: &[Arc<Pod>], may_manage: bool, now: Timestamp) -> Plan {
    let Some(spec) = job.spec.as_ref() else {
        return Plan::default();
    };
    let mut pass = Pass {
        job,
        spec,
        pods,
        now,
        status: job.status.clone().unwrap_or_default(),
        plan: Plan::default(),
    };
    if is_finished(job) || job.metadata.deletion_timestamp.is_some() {
        // Nobody counts any longer: what is left is let go, and at the end of a job also ended.
        pass.plan.release = pods.iter().filter(|p| is_held(p)).cloned().collect();
        if is_finished(job) {
            pass.plan.delete = pods.iter().filter(|p| is_active(p)).cloned().collect();
        }
        return pass.plan;
    }
    pass.run(may_manage);
    let mut plan = pass.plan;
    if job.status.as_ref() != Some(&pass.status) {
        plan.status = Some(pass.status);
    }
    plan
}

fn count(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

impl Pass<'_> {
    fn event(&mut self, warning: bool, reason: &str, message: impl Into<String>) {
        self.plan
            .events
            .push((warning, reason.to_owned(), message.into()));
    }

    fn run(&mut self, may_manage: bool) {
        let suspended = self.spec.suspend.unwrap_or(false);
        if self.status.start_time.is_none() && !suspended {
            self.status.start_time = Some(Time(self.now));
        }
        let counted = self.count_finished();
        let failed = self.status.failed.unwrap_or(0) + counted.uncounted_failed;
        let succeeded = self.status.succeeded.unwrap_or(0) + counted.uncounted_succeeded;
        let done = &counted.done;
        let lost = &counted.lost;
        let active: Vec<_> = self.pods.iter().filter(|p| is_active(p)).cloned().collect();
        let terminating = self.pods.iter().filter(|p| is_terminating(p)).count();

        self.judge(failed, succeeded, &active, &counted, suspended);
        let failing = condition(&self.status, "FailureTarget").is_some();
        let succeeding = condition(&self.status, "SuccessCriteriaMet").is_some();

        if failing || succeeding {
            self.plan.delete = active.clone();
        } else if suspended {
            self.plan.delete = active.clone();
            if set_condition(
                &mut self.status,
                "Suspended",
                "True",
                "JobSuspended",
                "Job suspended",
                self.now,
            ) {
                self.event(false, "Suspended", "Job suspended");
            }
            self.status.start_time = None;
        } else {
            if set_condition(
                &mut self.status,
                "Suspended",
                "False",
                "JobResumed",
                "Job resumed",
                self.now,
            ) {
                self.event(false, "Resumed", "Job resumed");
                self.status.start_time = Some(Time(self.now));
            }
            if may_manage {
                self.manage(&active, terminating, succeeded, done, lost);
            }
        }
        self.status.active = Some(count(active.len()));
        self.status.ready = Some(count(active.iter().filter(|p| is_ready(p)).count()));
        self.status.terminating = Some(count(terminating));
        // The last word is only said when every pod is counted and gone.
        let settled = active.is_empty()
            && terminating == 0
            && self.status.uncounted_terminated_pods.is_none()
            && !self.pods.iter().any(|p| is_held(p));
        if settled {
            self.conclude();
        }
        if let (Some(start), Some(seconds)) =
            (&self.status.start_time, self.spec.active_deadline_seconds)
            && !(failing || succeeding)
        {
            let end = start.0 + SignedDuration::from_secs(seconds);
            let wait = Duration::try_from(end.duration_since(self.now)).unwrap_or_default();
            self.look_again(wait.max(Duration::from_millis(10)));
        }
    }

    fn look_again(&mut self, wait: Duration) {
        let known = self.plan.look_again.unwrap_or(Duration::MAX);
        self.plan.look_again = Some(known.min(wait));
    }

    /// Moves what is certain into the counters and notes what has finished since.
    fn count_finished(&mut self) -> Counted {
        let indexed = is_indexed(self.spec);
        let completions = self.spec.completions.unwrap_or(i32::MAX);
        let mut done = if indexed {
            indexes::parse(
                self.status.completed_indexes.as_deref().unwrap_or_default(),
                completions,
            )
        } else {
            BTreeSet::new()
        };
        let mut lost = indexes::parse(
            self.status.failed_indexes.as_deref().unwrap_or_default(),
            completions,
        );
        let held: BTreeMap<&str, &Arc<Pod>> = self
            .pods
            .iter()
            .filter(|p| is_held(p))
            .map(|p| (uid(&p.metadata), p))
            .collect();
        let old = self.status.uncounted_terminated_pods.take();
        let settle = |uids: Option<Vec<String>>, counter: &mut Option<i32>| {
            let (open, sure): (Vec<_>, Vec<_>) = uids
                .unwrap_or_default()
                .into_iter()
                .partition(|u| held.contains_key(u.as_str()));
            *counter = Some(counter.unwrap_or(0) + count(sure.len()));
            open
        };
        let (old_succeeded, old_failed) = old.map_or((None, None), |u| (u.succeeded, u.failed));
        // In an indexed job a success is an index, however many pods had it.
        let mut ignored = Some(0);
        let mut succeeded = if indexed {
            settle(old_succeeded, &mut ignored)
        } else {
            settle(old_succeeded, &mut self.status.succeeded)
        };
        let mut failed = settle(old_failed, &mut self.status.failed);
        let mut index_failures: BTreeMap<i32, i32> = BTreeMap::new();
        let mut fail_job = None;
        for pod in self.pods {
            let id = uid(&pod.metadata);
            let index = indexed.then(|| indexes::of(pod)).flatten();
            let out_of_range = indexed && index.is_none_or(|i| i >= completions);
            let room = succeeded.len() + failed.len() < MOST_UNCOUNTED;
            if phase(pod) == "Succeeded" {
                if !is_held(pod) {
                    continue;
                }
                if out_of_range {
                    self.plan.release.push(pod.clone());
                    continue;
                }
                let known = succeeded.iter().any(|u| u == id);
                if known || room {
                    if let Some(index) = index {
                        done.insert(index);
                    }
                    if !known {
                        succeeded.push(id.to_owned());
                    }
                    self.plan.release.push(pod.clone());
                }
            } else if has_failed(self.spec, pod) {
                let verdict = policy::judge(self.spec, pod);
                if let Some(index) = index {
                    let before = annotations(&pod.metadata)
                        .get(INDEX_FAILURES)
                        .and_then(|n| n.parse().ok())
                        .unwrap_or(0);
                    let now = before + i32::from(verdict != Verdict::Ignore);
                    let known = index_failures.entry(index).or_insert(0);
                    *known = now.max(*known);
                    if verdict == Verdict::FailIndex && self.spec.backoff_limit_per_index.is_some()
                    {
                        lost.insert(index);
                    }
                }
                if let Verdict::FailJob(why) = &verdict {
                    fail_job = fail_job.or(Some(why.clone()));
                }
                if !is_held(pod) {
                    continue;
                }
                if out_of_range || verdict == Verdict::Ignore {
                    self.plan.release.push(pod.clone());
                    continue;
                }
                let known = failed.iter().any(|u| u == id);
                if known || room {
                    if !known {
                        failed.push(id.to_owned());
                    }
                    self.plan.release.push(pod.clone());
                }
            }
        }
        if let Some(limit) = self.spec.backoff_limit_per_index {
            lost.extend(
                index_failures
                    .iter()
                    .filter(|(index, failures)| **failures > limit && !done.contains(index))
                    .map(|(index, _)| *index),
            );
            lost.retain(|index| !done.contains(index));
            self.status.failed_indexes = Some(indexes::format(&lost));
        }
        if indexed {
            self.status.succeeded = Some(count(done.len()));
            self.status.completed_indexes = Some(indexes::format(&done)).filter(|t| !t.is_empty());
        }
        let counted = Counted {
            uncounted_succeeded: if indexed { 0 } else { count(succeeded.len()) },
            uncounted_failed: count(failed.len()),
            done,
            lost,
            fail_job,
        };
        if !succeeded.is_empty() || !failed.is_empty() {
            self.status.uncounted_terminated_pods = Some(UncountedTerminatedPods {
                succeeded: Some(succeeded).filter(|s| !s.is_empty()),
                failed: Some(failed).filter(|f| !f.is_empty()),
            });
        }
        counted
    }

    /// Decides whether the job is to fail or to succeed.
    fn judge(
        &mut self,
        failed: i32,
        succeeded: i32,
        active: &[Arc<Pod>],
        counted: &Counted,
        suspended: bool,
    ) {
        if condition(&self.status, "FailureTarget").is_some()
            || condition(&self.status, "SuccessCriteriaMet").is_some()
        {
            return;
        }
        let limit = self.spec.backoff_limit.unwrap_or(6);
        let past_deadline = !suspended
            && self.spec.active_deadline_seconds.is_some_and(|seconds| {
                self.status.start_time.as_ref().is_some_and(|start| {
                    self.now.duration_since(start.0) >= SignedDuration::from_secs(seconds)
                })
            });
        let per_index = self.spec.backoff_limit_per_index.is_some();
        let completions = self.spec.completions;
        let failure = if let Some(why) = &counted.fail_job {
            Some(("PodFailurePolicy", why.clone()))
        } else if failed > limit || past_restarts(self.spec, active) {
            Some((
                "BackoffLimitExceeded",
                "Job has reached the specified backoff limit".to_owned(),
            ))
        } else if past_deadline {
            Some((
                "DeadlineExceeded",
                "Job was active longer than specified deadline".to_owned(),
            ))
        } else if per_index
            && self
                .spec
                .max_failed_indexes
                .is_some_and(|most| count(counted.lost.len()) > most)
        {
            Some((
                "MaxFailedIndexesExceeded",
                "Job has exceeded the specified maximal number of failed indexes".to_owned(),
            ))
        } else if per_index
            && !counted.lost.is_empty()
            && completions
                .is_some_and(|c| count(counted.lost.len()) + count(counted.done.len()) >= c)
        {
            Some(("FailedIndexes", "Job has failed indexes".to_owned()))
        } else {
            None
        };
        if let Some((reason, message)) = failure {
            set_condition(
                &mut self.status,
                "FailureTarget",
                "True",
                reason,
                &message,
                self.now,
            );
            return;
        }
        let by_policy = is_indexed(self.spec)
            .then(|| policy::succeeded(self.spec, &counted.done))
            .flatten();
        if let Some(message) = by_policy {
            set_condition(
                &mut self.status,
                "SuccessCriteriaMet",
                "True",
                "SuccessPolicy",
                &message,
                self.now,
            );
            return;
        }
        let reached = match completions {
            // A work queue: one success means that the work is done, when the others end too.
            None => succeeded > 0 && active.is_empty(),
            Some(completions) => succeeded >= completions,
        };
        if reached && !suspended {
            set_condition(
                &mut self.status,
                "SuccessCriteriaMet",
                "True",
                "CompletionsReached",
                "Reached expected number of succeeded pods",
                self.now,
            );
        }
    }

    /// Says the last word that the interim condition announced.
    fn conclude(&mut self) {
        if let Some(target) = condition(&self.status, "FailureTarget").cloned() {
            let reason = target.reason.unwrap_or_default();
            let message = target.message.unwrap_or_default();
            if set_condition(
                &mut self.status,
                "Failed",
                "True",
                &reason,
                &message,
                self.now,
            ) {
                self.event(true, &reason, message);
            }
        } else if let Some(met) = condition(&self.status, "SuccessCriteriaMet").cloned() {
            let reason = met.reason.unwrap_or_default();
            let message = met.message.unwrap_or_default();
            if set_condition(
                &mut self.status,
                "Complete",
                "True",
                &reason,
                &message,
                self.now,
            ) {
                self.status.completion_time = Some(Time(self.now));
                self.event(false, "Completed", "Job completed");
            }
        }
    }

    /// Makes or ends pods so that as many work as should.
    fn manage(
        &mut self,
        active: &[Arc<Pod>],
        terminating: usize,
        succeeded: i32,
        done: &BTreeSet<i32>,
        lost: &BTreeSet<i32>,
    ) {
        let parallelism = self.spec.parallelism.unwrap_or(1);
        let running = count(active.len());
        let wanted = match self.spec.completions {
            None if succeeded > 0 => running,
            None => parallelism,
            Some(completions) => {
                let open = completions - succeeded - count(lost.len());
                open.max(0).min(parallelism)
            }
        };
        let indexed = is_indexed(self.spec);
        let completions = self.spec.completions.unwrap_or(i32::MAX);
        let mut surplus: Vec<Arc<Pod>> = Vec::new();
        if indexed {
            // Two pods of one index, or one of an index that is settled: the later ones go.
            let mut seen = BTreeSet::new();
            let mut sorted = active.to_vec();
            sorted.sort_by_key(|p| (!is_ready(p), crate::common::created(&p.metadata)));
            for pod in sorted {
                let fits = indexes::of(&pod).is_some_and(|i| {
                    i < completions && !done.contains(&i) && !lost.contains(&i) && seen.insert(i)
                });
                if !fits {
                    surplus.push(pod);
                }
            }
        }
        let useful = running - count(surplus.len());
        if useful > wanted {
            let mut rest: Vec<_> = active
                .iter()
                .filter(|p| !surplus.iter().any(|s| uid(&s.metadata) == uid(&p.metadata)))
                .cloned()
                .collect();
            rest.sort_by(|a, b| crate::common::pods::deletion_order(a, 0, b, 0, self.now));
            surplus.extend(
                rest.into_iter()
                    .take(usize::try_from(useful - wanted).unwrap_or(0)),
            );
        }
        if !surplus.is_empty() {
            self.plan.delete = surplus;
            return;
        }
        let mut missing = wanted - useful;
        if replaces_failed_only(self.spec) {
            missing -= count(terminating);
        }
        if missing <= 0 {
            return;
        }
        let independent = indexed && self.spec.backoff_limit_per_index.is_some();
        if !independent && let Some(wait) = self.backoff() {
            self.look_again(wait);
            return;
        }
        let missing = usize::try_from(missing.min(BURST)).unwrap_or(0);
        if !indexed {
            self.plan.create = (0..missing).map(|_| self.pod(None)).collect();
            return;
        }
        let busy: BTreeSet<i32> = self
            .pods
            .iter()
            .filter(|p| is_active(p) || (replaces_failed_only(self.spec) && is_terminating(p)))
            .filter_map(|p| indexes::of(p))
            .collect();
        let free: Vec<i32> = (0..completions)
            .filter(|i| !done.contains(i) && !lost.contains(i) && !busy.contains(i))
            .take(missing)
            .collect();
        for index in free {
            // With a limit per index, one that fails makes no other one wait.
            match self.backoff_of(index).filter(|_| independent) {
                Some(wait) => self.look_again(wait),
                None => {
                    let pod = self.pod(Some(index));
                    self.plan.create.push(pod);
                }
            }
        }
    }

    /// What is left of the wait after `failures` of which the last was at `last`.
    fn wait_after(&self, failures: usize, last: Timestamp) -> Option<Duration> {
        let exponent = u32::try_from(failures.checked_sub(1)?)
            .unwrap_or(u32::MAX)
            .min(16);
        let wait = BACKOFF.saturating_mul(1 << exponent).min(MOST_BACKOFF);
        let end = last + SignedDuration::try_from(wait).ok()?;
        (end > self.now)
            .then(|| Duration::try_from(end.duration_since(self.now)).unwrap_or_default())
    }

    /// How long to wait with new pods, after the failures since the last success.
    fn backoff(&self) -> Option<Duration> {
        let success = self
            .pods
            .iter()
            .filter(|p| phase(p) == "Succeeded")
            .filter_map(|p| ended(p))
            .max();
        let failures: Vec<_> = self
            .failures()
            .filter_map(|p| ended(p))
            .filter(|at| success.is_none_or(|s| *at > s))
            .collect();
        self.wait_after(failures.len(), *failures.iter().max()?)
    }

    /// How long to wait with the next pod of an index (upstream `getRemainingTimePerIndex`).
    fn backoff_of(&self, index: i32) -> Option<Duration> {
        let last = self
            .failures()
            .filter(|p| indexes::of(p) == Some(index))
            .filter_map(|p| ended(p))
            .max()?;
        self.wait_after(usize::try_from(self.failures_of(index)).unwrap_or(0), last)
    }

    /// The failed pods that count.
    fn failures(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.pods
            .iter()
            .filter(|p| has_failed(self.spec, p) && policy::judge(self.spec, p) != Verdict::Ignore)
    }

    /// How often an index has failed, as its pods say.
    fn failures_of(&self, index: i32) -> i32 {
        self.pods
            .iter()
            .filter(|p| indexes::of(p) == Some(index) && has_failed(self.spec, p))
            .map(|p| {
                let before = annotations(&p.metadata)
                    .get(INDEX_FAILURES)
                    .and_then(|n| n.parse().ok())
                    .unwrap_or(0);
                before + i32::from(policy::judge(self.spec, p) != Verdict::Ignore)
            })
            .max()
            .unwrap_or(0)
    }

    fn pod(&self, index: Option<i32>) -> Pod {
        let job_name = name(&self.job.metadata);
        let mut template = self.spec.template.clone();
        let owner = controller_reference(self.job);
        if let Some(index) = index {
            self.indexed_template(&mut template, index);
        }
        let mut pod = pod_from_template(&template, job_name, owner);
        if let Some(index) = index {
            pod.metadata.generate_name = Some(format!("{job_name}-{index}-"));
        }
        pod.metadata
            .finalizers
            .get_or_insert_default()
            .push(FINALIZER.to_owned());
        pod
    }

    fn indexed_template(&self, template: &mut PodTemplateSpec, index: i32) {
        let meta = template.metadata.get_or_insert_default();
        let notes = meta.annotations.get_or_insert_default();
        notes.insert(indexes::INDEX.to_owned(), index.to_string());
        if self.spec.backoff_limit_per_index.is_some() {
            notes.insert(
                INDEX_FAILURES.to_owned(),
                self.failures_of(index).to_string(),
            );
        }
        meta.labels
            .get_or_insert_default()
            .insert(indexes::INDEX.to_owned(), index.to_string());
        let spec = template.spec.get_or_insert_default();
        spec.hostname = Some(format!("{}-{index}", name(&self.job.metadata)));
        let add = |container: &mut Container| {
            let env = container.env.get_or_insert_default();
            if env.iter().any(|e| e.name == "JOB_COMPLETION_INDEX") {
                return;
            }
            env.push(EnvVar {
                name: "JOB_COMPLETION_INDEX".to_owned(),
                value_from: Some(EnvVarSource {
                    field_ref: Some(ObjectFieldSelector {
                        field_path: format!("metadata.labels['{}']", indexes::INDEX),
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
                ..Default::default()
            });
        };
        spec.init_containers.iter_mut().flatten().for_each(add);
        spec.containers.iter_mut().for_each(add);
    }
}

/// What [`Pass::count_finished`] found.
struct Counted {
    uncounted_succeeded: i32,
    uncounted_failed: i32,
    done: BTreeSet<i32>,
    lost: BTreeSet<i32>,
    fail_job: Option<String>,
}

/// With `restartPolicy: OnFailure` the kubelet retries within the pod: its restarts count (`pastBackoffLimitOnFailure`).
fn past_restarts(spec: &JobSpec, active: &[Arc<Pod>]) -> bool {
    let policy = spec
        .template
        .spec
        .as_ref()
        .and_then(|s| s.restart_policy.as_deref());
    if policy != Some("OnFailure") {
        return false;
    }
    let limit = spec.backoff_limit.unwrap_or(6);
    let restarts: i32 = active
        .iter()
        .filter(|p| matches!(phase(p), "Running" | "Pending"))
        .filter_map(|p| p.status.as_ref())
        .flat_map(|s| {
            s.init_container_statuses
                .iter()
                .flatten()
                .chain(s.container_statuses.iter().flatten())
        })
        .map(|c| c.restart_count)
        .sum();
    if limit == 0 {
        restarts > 0
    } else {
        restarts >= limit
    }
}

#[cfg(test)]
mod tests;
