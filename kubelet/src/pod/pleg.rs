//! Learns from the runtime which pods have changed: from its events where it has them, and by listing all
//! sandboxes and containers (upstream `pleg`).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::manager::Manager;
use super::worker::Wakers;
use crate::container::labels;
use crate::cri;
use crate::shared::Shared;

/// The time between two listings.
const RELIST: Duration = Duration::from_secs(1);
/// Every so many listings, what no source wants is looked for.
const CLEAN_EVERY: u32 = 2;

type Signature = HashMap<String, Vec<(String, i32)>>;

/// Lists until `shutdown`, waking the workers of pods that changed.
pub async fn run(
    shared: Arc<Shared>,
    manager: Arc<Manager>,
    wakers: Arc<Wakers>,
    shutdown: CancellationToken,
) {
    let mut last: Signature = HashMap::new();
    let mut round = 0u32;
    loop {
        match list(&shared).await {
            Ok(now) => {
                for uid in last.keys().chain(now.keys()).collect::<HashSet<_>>() {
                    if last.get(uid) != now.get(uid) {
                        wakers.wake(uid);
                    }
                }
                {
                    let mut h = shared.health.write();
                    h.last_relist = Some(shared.clock.now());
                }
                if round.is_multiple_of(CLEAN_EVERY) {
                    manager.end_unwanted(&now.keys().cloned().collect());
                }
                manager.retry_resizes();
                last = now;
            }
            Err(error) => warn!(%error, "could not list the runtime's containers"),
        }
        round = round.wrapping_add(1);
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(RELIST) => {}
        }
    }
}

async fn list(shared: &Shared) -> cri::CriResult<Signature> {
    let sandboxes = shared
        .runtime
        .list_pod_sandbox(cri::PodSandboxFilter::default())
        .await?;
    let containers = shared
        .runtime
        .list_containers(cri::ContainerFilter::default())
        .await?;
    let mut out: Signature = HashMap::new();
    for s in sandboxes {
        if let Some(m) = s.metadata {
            out.entry(m.uid).or_default().push((s.id, s.state));
        }
    }
    for c in containers {
        if let Some(uid) = c.labels.get(labels::POD_UID) {
            out.entry(uid.clone()).or_default().push((c.id, c.state));
        }
    }
    out.values_mut().for_each(|v| v.sort());
    Ok(out)
}

/// Follows the runtime's events until `shutdown`, or until it turns out that it has none.
pub async fn events(shared: Arc<Shared>, wakers: Arc<Wakers>, shutdown: CancellationToken) {
    loop {
        let mut stream = match shared.runtime.container_events().await {
            Ok(s) => s,
            Err(e) if e.is_unimplemented() => {
                info!("the runtime has no events; its containers are listed every second");
                return;
            }
            Err(error) => {
                debug!(%error, "could not follow the runtime's events");
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = tokio::time::sleep(Duration::from_secs(5)) => continue,
                }
            }
        };
        loop {
            let item = tokio::select! {
                () = shutdown.cancelled() => return,
                item = stream.next() => item,
            };
            match item {
                Some(Ok(e)) => {
                    if let Some(m) = e.pod_sandbox_status.and_then(|s| s.metadata) {
                        wakers.wake(&m.uid);
                    }
                }
                Some(Err(e)) if e.is_unimplemented() => {
                    info!("the runtime has no events; its containers are listed every second");
                    return;
                }
                Some(Err(error)) => {
                    debug!(%error, "the runtime's events ended");
                    break;
                }
                None => break,
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
