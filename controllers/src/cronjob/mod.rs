//! Starts Jobs on a schedule (upstream `pkg/controller/cronjob`).
//!
//! A run's Job is named after its minute, so that no run is started twice, whatever was seen or forgotten.

pub mod cron;
pub mod due;

use std::sync::Arc;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use keelson_machinery::clock::Clock;
use keelson_runtime::ObjectKey;
use keelson_runtime::controller::{Action, Controller};
use keelson_runtime::events::{Recorder, reference};
use keelson_runtime::informer::Informer;
use keelson_runtime::workqueue::WorkQueue;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client};

use crate::common::pod_control::reason;
use crate::common::{
    controller_key, controller_of, controller_reference, enqueue_all, name, namespace, uid,
};
use crate::error::{Error, ignore_not_found, is_already_exists, is_not_found};
use crate::{Context, synced};
use cron::Schedule;

/// Upstream `--concurrent-cron-job-syncs`.
const WORKERS: usize = 5;
/// Annotation of Jobs: when the run was due.
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";

/// Runs until the context's shutdown.
///
/// # Errors
/// None; what fails is tried again.
pub async fn run(context: Context) -> anyhow::Result<()> {
    let crons = context.informers.informer::<CronJob>();
    let jobs = context.informers.informer::<Job>();
    let client = context.client("cronjob-controller");
    let starter = Arc::new(Starter {
        recorder: context.recorder(&client, "cronjob-controller"),
        client,
        clock: context.clock.clone(),
        crons: crons.clone(),
        jobs: jobs.clone(),
    });
    synced!(crons, jobs);
    let queue: Arc<WorkQueue<ObjectKey>> = WorkQueue::new("cronjob", &context.metrics);
    enqueue_all(&crons, &queue);
    let adds = queue.clone();
    jobs.on_event(move |event| {
        if let Some((key, _)) = controller_key::<CronJob>(&event.object().metadata) {
            adds.add(key);
        }
    });
    Controller::new("cronjob-controller", queue)
        .workers(WORKERS)
        .run(context.shutdown.clone(), move |key| {
            let starter = starter.clone();
            async move { starter.sync(&key).await }
        })
        .await;
    Ok(())
}

/// A zone by its name; UTC without one.
fn zone(name: Option<&str>) -> Result<TimeZone, String> {
    let name = name.unwrap_or_default();
    keelson_machinery::time::zone(name).ok_or_else(|| format!("unknown time zone {name}"))
}

/// How a Job ended: its terminal condition.
fn finished(job: &Job) -> Option<&str> {
    let conditions = job.status.as_ref()?.conditions.as_deref()?;
    conditions
        .iter()
        .find(|c| (c.type_ == "Complete" || c.type_ == "Failed") && c.status == "True")
        .map(|c| c.type_.as_str())
}

/// The finished Jobs beyond the limits, oldest first (upstream `cleanupFinishedJobs`).
fn surplus(spec: &CronJobSpec, jobs: &[Arc<Job>]) -> Vec<Arc<Job>> {
    let limits = [
        ("Complete", spec.successful_jobs_history_limit),
        ("Failed", spec.failed_jobs_history_limit),
    ];
    let mut gone = Vec::new();
    for (end, limit) in limits {
        let Some(limit) = limit.and_then(|limit| usize::try_from(limit).ok()) else {
            continue;
        };
        let mut ended: Vec<&Arc<Job>> = jobs
            .iter()
            .filter(|job| finished(job) == Some(end))
            .collect();
        ended.sort_by_key(|job| {
            let started = job
                .status
                .as_ref()
                .and_then(|s| s.start_time.as_ref())
                .map(|t| t.0);
            (started.is_none(), started, name(&job.metadata).to_owned())
        });
        let count = ended.len().saturating_sub(limit);
        gone.extend(ended.into_iter().take(count).cloned());
    }
    gone
}

/// The Job of a run (upstream `getJobFromTemplate2`).
fn job_of(cron: &CronJob, spec: &CronJobSpec, at: Timestamp, zone: &TimeZone) -> Job {
    let template = spec.job_template.metadata.clone().unwrap_or_default();
    let local = at.to_zoned(zone.clone());
    let stamp = if local.offset().seconds() == 0 {
        local.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    } else {
        local.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
    };
    let mut annotations = template.annotations.unwrap_or_default();
    annotations.insert(SCHEDULED.to_owned(), stamp);
    Job {
        metadata: ObjectMeta {
            name: Some(job_name(cron, at)),
            namespace: cron.metadata.namespace.clone(),
            labels: template.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![controller_reference(cron)]),
            ..ObjectMeta::default()
        },
        spec: spec.job_template.spec.clone(),
        status: None,
    }
}

/// `<cron>-<minutes since 1970>`.
fn job_name(cron: &CronJob, at: Timestamp) -> String {
    format!("{}-{}", name(&cron.metadata), at.as_second() / 60)
}

struct Starter {
    client: Client,
    recorder: Recorder,
    clock: Clock,
    crons: Informer<CronJob>,
    jobs: Informer<Job>,
}

impl Starter {
    async fn sync(&self, key: &ObjectKey) -> Result<Action, Error> {
        let Some(cron) = self.crons.store().get(key) else {
            return Ok(Action::Done);
        };
        let spec = cron.spec.clone();
        let jobs: Vec<Arc<Job>> = self
            .jobs
            .store()
            .list_namespace(&key.namespace)
            .into_iter()
            .filter(|job| {
                controller_of(&job.metadata).is_some_and(|o| o.uid == uid(&cron.metadata))
            })
            .collect();
        let mut status = cron.status.clone().unwrap_or_default();
        let owner = reference(&*cron);
        for job in surplus(&spec, &jobs) {
            self.delete(&owner, &mut status, &job).await?;
        }
        let result = self.start(&cron, &spec, &owner, &jobs, &mut status).await;
        if cron.status.clone().unwrap_or_default() != status {
            let api: Api<CronJob> = Api::namespaced(self.client.clone(), &key.namespace);
            let mut changed = (*cron).clone();
            changed.status = Some(status);
            ignore_not_found(
                api.replace_status(&key.name, &PostParams::default(), &changed)
                    .await,
            )?;
        }
        result
    }

    async fn delete(
        &self,
        owner: &ObjectReference,
        status: &mut CronJobStatus,
        job: &Job,
    ) -> Result<(), Error> {
        let own = name(&job.metadata);
        let api: Api<Job> = Api::namespaced(self.client.clone(), namespace(&job.metadata));
        if let Err(error) = api.delete(own, &DeleteParams::background()).await
            && !is_not_found(&error)
        {
            self.recorder.warning(
                owner,
                "FailedDelete",
                format!("Deleted job: {}", reason(&error)),
            );
            return Err(error.into());
        }
        forget(status, uid(&job.metadata));
        self.recorder
            .normal(owner, "SuccessfulDelete", format!("Deleted job {own}"));
        Ok(())
    }

    /// Takes note of ended and missing Jobs.
    async fn settle(
        &self,
        cron: &CronJob,
        owner: &ObjectReference,
        jobs: &[Arc<Job>],
        status: &mut CronJobStatus,
    ) -> Result<(), Error> {
        for job in jobs {
            let active = is_active(status, uid(&job.metadata));
            let own = name(&job.metadata);
            match finished(job) {
                None if !active => {
                    let api: Api<CronJob> =
                        Api::namespaced(self.client.clone(), namespace(&cron.metadata));
                    let live = api.get(name(&cron.metadata)).await?;
                    if !live
                        .status
                        .as_ref()
                        .is_some_and(|s| is_active(s, uid(&job.metadata)))
                    {
                        let text = format!(
                            "Saw a job that the controller did not create or forgot: {own}"
                        );
                        self.recorder.warning(owner, "UnexpectedJob", text);
                    }
                }
                None => {}
                Some(end) => {
                    if active {
                        forget(status, uid(&job.metadata));
                        let text = format!("Saw completed job: {own}, condition: {end}");
                        self.recorder.normal(owner, "SawCompletedJob", text);
                    }
                    let completed = job.status.as_ref().and_then(|s| s.completion_time.clone());
                    if end == "Complete"
                        && let Some(completed) = completed
                        && status
                            .last_successful_time
                            .as_ref()
                            .is_none_or(|last| completed.0 > last.0)
                    {
                        status.last_successful_time = Some(completed);
                    }
                }
            }
        }
        let missing: Vec<ObjectReference> = status
            .active
            .iter()
            .flatten()
            .filter(|active| !jobs.iter().any(|job| job.metadata.uid == active.uid))
            .cloned()
            .collect();
        for active in missing {
            let own = active.name.as_deref().unwrap_or_default();
            let api: Api<Job> = Api::namespaced(self.client.clone(), namespace(&cron.metadata));
            if api.get_opt(own).await?.is_none() {
                self.recorder.normal(
                    owner,
                    "MissingJob",
                    format!("Active job went missing: {own}"),
                );
                forget(status, active.uid.as_deref().unwrap_or_default());
            }
        }
        Ok(())
    }

    /// Upstream `syncCronJob`.
    async fn start(
        &self,
        cron: &CronJob,
        spec: &CronJobSpec,
        owner: &ObjectReference,
        jobs: &[Arc<Job>],
        status: &mut CronJobStatus,
    ) -> Result<Action, Error> {
        let now = self.clock.now();
        self.settle(cron, owner, jobs, status).await?;
        if cron.metadata.deletion_timestamp.is_some() {
            return Ok(Action::Done);
        }
        let zone = match zone(spec.time_zone.as_deref()) {
            Ok(zone) => zone,
            Err(error) => {
                let text = format!(
                    "invalid timeZone: {:?}: {error}",
                    spec.time_zone.as_deref().unwrap_or_default()
                );
                self.recorder.warning(owner, "UnknownTimeZone", text);
                return Ok(Action::Done);
            }
        };
        if spec.suspend == Some(true) {
            return Ok(Action::Done);
        }
        let schedule = match Schedule::parse(&spec.schedule) {
            Ok(schedule) => schedule,
            Err(error) => {
                let text = format!("unparseable schedule: {:?} : {error}", spec.schedule);
                self.recorder.warning(owner, "UnparseableSchedule", text);
                return Ok(Action::Done);
            }
        };
        let found = match due::due(cron, &schedule, &zone, now, true) {
            Ok(found) => found,
            Err(error) => {
                let text = format!("invalid schedule: {} : {error}", spec.schedule);
                self.recorder.warning(owner, "InvalidSchedule", text);
                return Ok(Action::Done);
            }
        };
        let later = |cron: &CronJob| {
            due::wait(cron, &schedule, &zone, now).map_or(Action::Done, Action::RequeueAfter)
        };
        let Some(at) = found.run else {
            return Ok(later(cron));
        };
        if found.many_missed {
            self.recorder.warning(
                owner,
                "TooManyMissedTimes",
                "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew",
            );
        }
        let deadline = spec.starting_deadline_seconds;
        if deadline.is_some_and(|seconds| now.duration_since(at).as_secs() > seconds) {
            let text = format!(
                "Missed scheduled time to start a job: {}",
                at.to_zoned(TimeZone::UTC)
                    .strftime("%a, %d %b %Y %H:%M:%S %z")
            );
            self.recorder.warning(owner, "MissSchedule", text);
            return Ok(later(cron));
        }
        let own = job_name(cron, at);
        let known = status
            .active
            .iter()
            .flatten()
            .any(|a| a.name.as_ref() == Some(&own));
        if known
            || status
                .last_schedule_time
                .as_ref()
                .is_some_and(|last| last.0 == at)
        {
            return Ok(later(cron));
        }
        let active = status.active.clone().unwrap_or_default();
        let policy = spec.concurrency_policy.as_deref().unwrap_or("Allow");
        if policy == "Forbid" && !active.is_empty() {
            self.recorder.normal(
                owner,
                "JobAlreadyActive",
                "Not starting job because prior execution is running and concurrency policy is Forbid",
            );
            return Ok(later(cron));
        }
        let api: Api<Job> = Api::namespaced(self.client.clone(), namespace(&cron.metadata));
        if policy == "Replace" {
            for running in active {
                match api.get(running.name.as_deref().unwrap_or_default()).await {
                    Ok(job) => self.delete(owner, status, &job).await?,
                    Err(error) => {
                        let text = format!("Get job: {}", reason(&error));
                        self.recorder.warning(owner, "FailedGet", text);
                        return Err(error.into());
                    }
                }
            }
        }
        let made = match api
            .create(&PostParams::default(), &job_of(cron, spec, at, &zone))
            .await
        {
            Ok(made) => {
                self.recorder
                    .normal(owner, "SuccessfulCreate", format!("Created job {own}"));
                made
            }
            Err(error) if is_already_exists(&error) => {
                let existing = api.get(&own).await?;
                let ours =
                    controller_of(&existing.metadata).is_some_and(|o| o.uid == uid(&cron.metadata));
                if !ours || is_active(status, uid(&existing.metadata)) {
                    return Ok(Action::Done);
                }
                existing
            }
            Err(error) => {
                if !crate::error::is_namespace_terminating(&error) {
                    let text = format!("Error creating job: {}", reason(&error));
                    self.recorder.warning(owner, "FailedCreate", text);
                }
                return Err(error.into());
            }
        };
        status.active.get_or_insert_default().push(reference(&made));
        status.last_schedule_time = Some(Time(at));
        let mut started = cron.clone();
        started.status = Some(status.clone());
        Ok(later(&started))
    }
}

fn is_active(status: &CronJobStatus, uid: &str) -> bool {
    let mut active = status.active.iter().flatten();
    active.any(|active| active.uid.as_deref() == Some(uid))
}

fn forget(status: &mut CronJobStatus, uid: &str) {
    if let Some(active) = &mut status.active {
        active.retain(|active| active.uid.as_deref() != Some(uid));
    }
    if status.active.as_ref().is_some_and(Vec::is_empty) {
        status.active = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn old_jobs_go_and_new_ones_carry_their_time() {
        let spec: CronJobSpec = serde_json::from_value(json!({
            "schedule": "", "successfulJobsHistoryLimit": 1, "failedJobsHistoryLimit": 0,
            "jobTemplate": {"metadata": {"labels": {"a": "b"}}},
        }))
        .unwrap();
        let job = |name: &str, end: &str, started: &str| -> Arc<Job> {
            Arc::new(
                serde_json::from_value(json!({
                    "metadata": {"name": name},
                    "status": {"startTime": started, "conditions": [{"type": end, "status": "True"}]},
                }))
                .unwrap(),
            )
        };
        let jobs = [
            job("new", "Complete", "2024-01-02T00:00:00Z"),
            job("old", "Complete", "2024-01-01T00:00:00Z"),
            job("bad", "Failed", "2024-01-02T00:00:00Z"),
            job("runs", "Suspended", "2024-01-01T00:00:00Z"),
        ];
        let gone: Vec<String> = surplus(&spec, &jobs)
            .iter()
            .map(|j| name(&j.metadata).to_owned())
            .collect();
        assert_eq!(gone, ["old", "bad"]);

        let cron: CronJob =
            serde_json::from_value(json!({"metadata": {"name": "c", "uid": "u"}})).unwrap();
        let at: Timestamp = "2024-01-01T00:05:00Z".parse().unwrap();
        let made = job_of(&cron, &spec, at, &TimeZone::fixed(jiff::tz::offset(2)));
        assert_eq!(made.metadata.name.as_deref(), Some("c-28401125"));
        let annotations = made.metadata.annotations.unwrap();
        assert_eq!(annotations[SCHEDULED], "2024-01-01T02:05:00+02:00");
    }

    #[test]
    fn zones_are_names_and_not_paths() {
        for bad in ["../../etc/passwd", "/etc/passwd", "", "Mars/Base"] {
            assert_eq!(zone(Some(bad)).is_err(), !bad.is_empty(), "{bad}");
        }
        assert!(zone(None).is_ok());
    }
}
