//! Dead containers and sandboxes of pods that still exist: the last of each container is kept for its log and its
//! status, older ones go (upstream `kuberuntime_gc.go`).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::container::labels;
use crate::cri;
use crate::shared::Shared;

/// How often is collected.
const PERIOD: Duration = Duration::from_secs(60);
/// Nothing that is younger is collected: somebody may be about to use it.
const MIN_AGE_SECONDS: i64 = 60;

/// What to remove.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Garbage {
    /// Containers.
    pub containers: Vec<String>,
    /// Sandboxes without any container that stays.
    pub sandboxes: Vec<String>,
}

/// Decides what is garbage. `now` is in nanoseconds.
pub fn garbage(containers: &[cri::Container], sandboxes: &[cri::PodSandbox], now: i64) -> Garbage {
    let old = |created: i64| now - created > MIN_AGE_SECONDS * 1_000_000_000;
    let running = cri::ContainerState::Running as i32;
    let mut out = Garbage::default();
    let mut by_name: HashMap<(&str, &str), Vec<&cri::Container>> = HashMap::new();
    for c in containers.iter().filter(|c| c.state != running) {
        let label = |k: &str| c.labels.get(k).map(String::as_str).unwrap_or_default();
        by_name
            .entry((label(labels::POD_UID), label(labels::CONTAINER_NAME)))
            .or_default()
            .push(c);
    }
    for mut list in by_name.into_values() {
        list.sort_by_key(|c| std::cmp::Reverse(c.created_at));
        out.containers.extend(
            list.iter()
                .skip(1)
                .filter(|c| old(c.created_at))
                .map(|c| c.id.clone()),
        );
    }
    let gone: HashSet<&String> = out.containers.iter().collect();
    let used: HashSet<&str> = containers
        .iter()
        .filter(|c| !gone.contains(&c.id))
        .map(|c| c.pod_sandbox_id.as_str())
        .collect();
    let ready = cri::PodSandboxState::Ready as i32;
    let mut by_pod: HashMap<&str, Vec<&cri::PodSandbox>> = HashMap::new();
    for s in sandboxes {
        by_pod
            .entry(
                s.metadata
                    .as_ref()
                    .map(|m| m.uid.as_str())
                    .unwrap_or_default(),
            )
            .or_default()
            .push(s);
    }
    for mut list in by_pod.into_values() {
        list.sort_by_key(|s| std::cmp::Reverse(s.created_at));
        out.sandboxes.extend(
            list.iter()
                .skip(1)
                .filter(|s| s.state != ready && old(s.created_at) && !used.contains(s.id.as_str()))
                .map(|s| s.id.clone()),
        );
    }
    out.containers.sort();
    out.sandboxes.sort();
    out
}

/// Collects until `shutdown`.
pub async fn run(shared: Arc<Shared>, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(PERIOD) => {}
        }
        if let Err(error) = collect(&shared).await {
            warn!(%error, "could not collect dead containers");
        }
        remove_dead_links(&shared);
    }
}

async fn collect(shared: &Shared) -> cri::CriResult<()> {
    let containers = shared
        .runtime
        .list_containers(cri::ContainerFilter::default())
        .await?;
    let sandboxes = shared
        .runtime
        .list_pod_sandbox(cri::PodSandboxFilter::default())
        .await?;
    let now = i64::try_from(shared.clock.now().as_nanosecond()).unwrap_or(i64::MAX);
    let g = garbage(&containers, &sandboxes, now);
    for id in g.containers {
        let log = shared
            .runtime
            .container_status(&id)
            .await
            .map(|s| s.log_path)
            .unwrap_or_default();
        shared.runtime.remove_container(&id).await?;
        if !log.is_empty()
            && let Err(error) = std::fs::remove_file(&log)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            warn!(%log, %error, "could not delete the log of a removed container");
        }
    }
    for id in g.sandboxes {
        shared.runtime.stop_pod_sandbox(&id).await?;
        shared.runtime.remove_pod_sandbox(&id).await?;
    }
    Ok(())
}

/// Links in the legacy log directory whose log is gone.
fn remove_dead_links(shared: &Shared) {
    let Some(dir) = &shared.config.container_logs_dir else {
        return;
    };
    let Ok(entries) = std::fs::read_dir(dir) else {
        return;
    };
    for path in entries.filter_map(|e| Some(e.ok()?.path())) {
        // Only our own kind: a link to a log of a pod of this kubelet.
        let Ok(target) = std::fs::read_link(&path) else {
            continue;
        };
        if target.starts_with(&shared.settings.pod_logs_dir)
            && !target.exists()
            && let Err(error) = std::fs::remove_file(&path)
        {
            warn!(path = %path.display(), %error, "could not delete a dead link to a log");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_last() {
        let age = |s: i64| -s * 1_000_000_000;
        let c = |id: &str, name: &str, sandbox: &str, state: cri::ContainerState, at: i64| {
            cri::Container {
                id: id.into(),
                pod_sandbox_id: sandbox.into(),
                state: state as i32,
                created_at: age(at),
                labels: [
                    (labels::POD_UID.into(), "u".into()),
                    (labels::CONTAINER_NAME.into(), name.into()),
                ]
                .into(),
                ..Default::default()
            }
        };
        let s = |id: &str, ready: bool, at: i64| cri::PodSandbox {
            id: id.into(),
            metadata: Some(cri::PodSandboxMetadata {
                uid: "u".into(),
                ..Default::default()
            }),
            state: i32::from(!ready),
            created_at: age(at),
            ..Default::default()
        };
        use cri::ContainerState::{Exited, Running};
        let containers = [
            c("a3", "a", "s2", Running, 100),
            c("a2", "a", "s2", Exited, 200),
            c("a1", "a", "s1", Exited, 300),
            c("b2", "b", "s2", Exited, 10),
            c("b1", "b", "s2", Exited, 20),
        ];
        let sandboxes = [s("s2", true, 250), s("s1", false, 400), s("s0", false, 500)];
        let got = garbage(&containers, &sandboxes, 0);
        assert_eq!(got.containers, ["a1"]);
        assert_eq!(got.sandboxes, ["s0", "s1"]);
    }
}
