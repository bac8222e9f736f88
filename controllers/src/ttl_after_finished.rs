//! Deletes finished Jobs after `spec.ttlSecondsAfterFinished` (upstream `ttlafterfinished`).

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;
use keelson_runtime::ObjectKey;
use keelson_runtime::controller::{Action, Controller};
use keelson_runtime::workqueue::WorkQueue;
use kube::Api;
use kube::api::{DeleteParams, Preconditions, PropagationPolicy};

use crate::common::enqueue_all;
use crate::error::{ignore_not_found, is_code};
use crate::{Context, Error, synced};

const ACCOUNT: &str = "ttl-after-finished-controller";

/// When the job is to go; none while it runs, has no such time, or is going already.
fn expires(job: &Job) -> Option<Timestamp> {
    let seconds = job.spec.as_ref()?.ttl_seconds_after_finished?;
    if job.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let finished = job
        .status
        .as_ref()?
        .conditions
        .iter()
        .flatten()
        .find(|c| matches!(c.type_.as_str(), "Complete" | "Failed") && c.status == "True")?
        .last_transition_time
        .as_ref()?
        .0;
    finished
        .checked_add(SignedDuration::from_secs(i64::from(seconds)))
        .ok()
}

/// Runs until shutdown.
///
/// # Errors
/// None: what fails is tried again.
pub async fn run(ctx: Context) -> anyhow::Result<()> {
    let client = ctx.client(ACCOUNT);
    let jobs = ctx.informers.informer::<Job>();
    let queue = WorkQueue::new("ttl_jobs_to_delete", &ctx.metrics);
    enqueue_all(&jobs, &queue);
    synced!(jobs);
    let clock = ctx.clock.clone();
    Controller::new(ACCOUNT, queue)
        .workers(5)
        .run(ctx.shutdown.clone(), move |key: ObjectKey| {
            let known = jobs.store().get(&key);
            let api: Api<Job> = Api::namespaced(client.clone(), &key.namespace);
            let now = clock.now();
            async move {
                let Some(at) = known.as_deref().and_then(expires) else {
                    return Ok::<_, Error>(Action::Done);
                };
                if at > now {
                    let wait = Duration::try_from(at.duration_since(now)).unwrap_or_default();
                    return Ok(Action::RequeueAfter(wait));
                }
                // The time may have been raised, or the job be another by now: the server's word counts.
                let Some(live) = api.get_opt(&key.name).await? else {
                    return Ok(Action::Done);
                };
                if expires(&live).is_none_or(|at| at > now) {
                    return Ok(Action::Retry);
                }
                let params = DeleteParams {
                    propagation_policy: Some(PropagationPolicy::Foreground),
                    preconditions: Some(Preconditions {
                        uid: live.metadata.uid.clone(),
                        resource_version: live.metadata.resource_version.clone(),
                    }),
                    ..Default::default()
                };
                match api.delete(&key.name, &params).await {
                    Err(error) if is_code(&error, 409) => Ok(Action::Retry),
                    result => ignore_not_found(result).map(|()| Action::Done),
                }
            }
        })
        .await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_finished_jobs_with_a_time_expire() {
        let end = "2026-01-01T00:00:00Z";
        let done = json!({"conditions": [{"type": "Failed", "status": "True", "lastTransitionTime": end}]});
        for (ttl, status, want) in [
            (json!(60), done.clone(), Some("2026-01-01T00:01:00Z")),
            (json!(0), done.clone(), Some(end)),
            (json!(null), done, None),
            (json!(60), json!({}), None),
            (
                json!(60),
                json!({"conditions": [{"type": "Complete", "status": "False", "lastTransitionTime": end}]}),
                None,
            ),
        ] {
            let job: Job = serde_json::from_value(json!({
                "spec": {"ttlSecondsAfterFinished": ttl, "template": {}}, "status": status}))
            .unwrap();
            assert_eq!(expires(&job), want.map(|t| t.parse().unwrap()), "{job:?}");
        }
    }
}
