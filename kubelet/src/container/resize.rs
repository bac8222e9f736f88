//! Bringing what is in force in running containers in line with what is allocated (upstream `doPodResizeAction`).

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{Pod, ResourceRequirements};
use tracing::info;

use super::config;
use crate::cgroup;
use crate::pod::observed::Observed;
use crate::pod::resize;
use crate::podutil;
use crate::resources;
use crate::shared::Shared;

/// Changes the running containers `ids` and the pod's cgroup around them; `in_force` is kept up to date. The pod's own limits are
/// widened first and narrowed last, so that no container is ever allowed more than its pod.
///
/// # Errors
/// Says what could not be done; what was done stays.
pub async fn apply(
    shared: &Shared,
    pod: &Pod,
    observed: &Observed,
    ids: &[String],
    in_force: &mut HashMap<String, ResourceRequirements>,
) -> Result<(), String> {
    let settings = &shared.settings;
    let limits = |pod: &Pod| {
        cgroup::pod_limits(
            pod,
            settings.cpu_cfs_quota.then_some(settings.cpu_period_us),
            shared.config.file.pod_pids_limit,
        )
    };
    let mut before = resize::amounts(pod);
    for seen in &observed.containers {
        if let Some(now) = in_force.get(&seen.id) {
            before.insert(seen.name.clone(), now.clone());
        }
    }
    let (old, new) = (limits(&resize::with(pod, &before)), limits(pod));
    let of_pod = |e: std::io::Error| format!("failed to resize the pod's cgroup: {e}");
    shared
        .cgroups
        .resize_pod(pod, &old.or_wider(&new))
        .map_err(of_pod)?;
    for id in ids {
        let Some(seen) = observed.containers.iter().find(|s| s.id == *id) else {
            continue;
        };
        let Some(c) = podutil::find_container(pod, &seen.name) else {
            continue;
        };
        let limit = resources::limit(c.resources.as_ref(), "memory").unwrap_or(0);
        let had = resources::limit(in_force.get(id), "memory").unwrap_or(i64::MAX);
        // The kernel would end processes to get there; the container gets the time to shrink by itself.
        if limit > 0
            && limit < had
            && let Some(used) = shared.cgroups.memory_usage(pod, id)
            && used > limit
        {
            return Err(format!(
                "attempting to set container {} memory limit ({limit}) below current usage ({used})",
                c.name
            ));
        }
        shared
            .runtime
            .update_container_resources(id, config::container_resources(settings, pod, &c))
            .await
            .map_err(|e| format!("failed to resize container {}: {e}", c.name))?;
        info!(pod = %podutil::describe(pod), container = %c.name, %id, "resized a container");
        in_force.insert(id.clone(), c.resources.unwrap_or_default());
    }
    shared.cgroups.resize_pod(pod, &new).map_err(of_pod)
}
