//! `keelson down`: stops the cluster and leaves nothing of it in the kernel; with `--purge`, nothing on disk either.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use keelson_kubelet::cri::{CriClient, PodSandboxFilter, Runtime};
use keelson_kubelet::volume::mounts;
use rustix::mount::{UnmountFlags, unmount};

use super::layout::Layout;
use super::process;
use super::state::State;
use super::steps::Steps;
use crate::components::agent::AgentState;
use crate::node::{cgroup, containerd, network, routes};

/// How long the cluster process may take to end by itself.
const GRACE: Duration = Duration::from_secs(20);
/// How long a starting containerd may take until it answers.
const CRI_READY: Duration = Duration::from_secs(20);
/// How long one CRI call may take here.
const CRI_TIMEOUT: Duration = Duration::from_secs(60);

/// The command line of `down`.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Folder that holds everything of the cluster
    #[arg(long, default_value = super::DEFAULT_DATA_DIR)]
    pub data_dir: PathBuf,
    /// Also delete all objects, images and keys
    #[arg(long)]
    pub purge: bool,
}

/// Stops the cluster. Works however the last run ended: nothing is assumed to be running or complete.
///
/// # Errors
/// What could not be stopped or removed; a second `down` goes on from there.
pub async fn run(options: Options) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("keelson down must run as root");
    }
    let layout = Layout::new(&options.data_dir)?;
    if !layout.root().exists() {
        println!("There is no cluster in {}.", layout.root().display());
        return Ok(());
    }
    let state = State::load(&layout.state())?;
    let agent = AgentState::load(&layout)?;
    if state.is_none()
        && agent.is_none()
        && std::fs::read_dir(layout.root()).is_ok_and(|mut entries| entries.next().is_some())
    {
        bail!(
            "{} holds no cluster of keelson's; nothing was touched",
            layout.root().display()
        );
    }
    let mut steps = Steps::new();
    if let Some(pid) = process::find_running(&layout.pid_file())? {
        process::stop(pid, GRACE).await?;
        steps.done("control plane and node stopped");
    }
    stop_pods(&layout).await?;
    steps.done("pods stopped");
    if let Some(pid) = process::find_running(&layout.containerd_pid_file())? {
        process::stop(pid, GRACE).await?;
    }
    for shim in process::shims(&layout.containerd_socket())? {
        process::stop(shim, Duration::from_secs(1)).await?;
    }
    steps.done("containerd stopped");
    unmount_below(layout.root())?;
    cgroup::remove(&cgroup::root_of(&layout)).await?;
    network::delete_bridge(&layout).await?;
    keelson_proxy::proxier::cleanup(&network::table_name(&layout))
        .context("removing the dataplane's rules")?;
    let (pod_cidr, before) = match (&state, &agent) {
        (Some(state), _) => (Some(state.pod_cidr), state.ip_forward_before.as_deref()),
        (None, Some(agent)) => (
            Some(agent.config.pod_cidr),
            Some(agent.ip_forward_before.as_str()),
        ),
        (None, None) => (None, None),
    };
    if let Some(pod_cidr) = pod_cidr {
        routes::remove(pod_cidr)
            .await
            .context("removing the routes to other nodes")?;
    }
    if let Some(before) = before {
        network::restore_forwarding(before)?;
    }
    steps.done("mounts, cgroups, links and rules removed");
    if options.purge {
        // Once more, as close to the deletion as can be.
        unmount_below(layout.root())?;
        std::fs::remove_dir_all(layout.root())
            .with_context(|| format!("deleting {}", layout.root().display()))?;
        steps.done("data deleted");
    }
    Ok(())
}

/// Stops and removes every pod sandbox, which also gives back its network. Starts containerd for it if need be.
async fn stop_pods(layout: &Layout) -> anyhow::Result<()> {
    if !layout.containerd_config().exists() {
        return Ok(());
    }
    containerd::restart_for_cleanup(layout).await?;
    let client = CriClient::new(
        &format!("unix://{}", layout.containerd_socket().display()),
        CRI_TIMEOUT,
    )?;
    // A containerd that has just started accepts connections before its CRI service is ready.
    let deadline = tokio::time::Instant::now() + CRI_READY;
    let sandboxes = loop {
        match client.list_pod_sandbox(PodSandboxFilter::default()).await {
            Ok(sandboxes) => break sandboxes,
            Err(_) if tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(error) => return Err(error).context("listing pods"),
        }
    };
    // Side by side: each waits for its processes to end.
    let removals = sandboxes.into_iter().map(|sandbox| {
        let client = client.clone();
        async move {
            client
                .stop_pod_sandbox(&sandbox.id)
                .await
                .with_context(|| format!("stopping sandbox {}", sandbox.id))?;
            client
                .remove_pod_sandbox(&sandbox.id)
                .await
                .with_context(|| format!("removing sandbox {}", sandbox.id))
        }
    });
    futures::future::try_join_all(removals).await?;
    Ok(())
}

/// Unmounts everything below a folder, innermost first; the folder itself may be a mount of the machine's.
///
/// # Errors
/// When something is still mounted there afterwards: then nothing may be deleted, since behind a mount may be the machine's own files.
pub fn unmount_below(root: &Path) -> anyhow::Result<()> {
    let below = || -> anyhow::Result<Vec<PathBuf>> {
        let mut all = mounts::below(root).context("reading the machine's mounts")?;
        all.retain(|path| path != root);
        Ok(all)
    };
    for path in below()? {
        match unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            // Gone already, with a mount it propagated from.
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
            Err(error) => {
                return Err(error).with_context(|| format!("unmounting {}", path.display()));
            }
        }
    }
    match below()?.first() {
        Some(path) => bail!("{} cannot be unmounted", path.display()),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_below_is_unmounted() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let mounted = |path: &Path| mounts::is_mounted(path).unwrap();
        if mounts::tmpfs(&root, None).is_err() {
            println!("skipped: mounting needs root");
            return;
        }
        let inner = root.join("a b");
        std::fs::create_dir(&inner).unwrap();
        mounts::tmpfs(&inner, None).unwrap();
        let result = unmount_below(&root);
        let left = (mounted(&root), mounted(&inner));
        mounts::unmount_all(&root).unwrap();
        result.unwrap();
        assert_eq!(left, (true, false));
    }
}
