//! The cgroups of a cluster's pods: one root per cluster, in every hierarchy, made before the kubelet starts and
//! removed after it ended.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use crate::cluster::layout::Layout;

const MOUNT: &str = "/sys/fs/cgroup";

/// The cgroup below which all pods of a cluster run. Two kubelets on one root would delete each other's pods.
pub fn root_of(layout: &Layout) -> String {
    format!("/keelson-{}", layout.tag())
}

/// The hierarchies: the one mount of cgroup v2, or one folder per controller of v1. The hybrid layout's `unified`
/// folder carries no controllers and is left alone.
fn hierarchies() -> anyhow::Result<Vec<PathBuf>> {
    if Path::new(MOUNT).join("cgroup.controllers").exists() {
        return Ok(vec![PathBuf::from(MOUNT)]);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(MOUNT).with_context(|| format!("listing {MOUNT}"))? {
        let entry = entry.with_context(|| format!("listing {MOUNT}"))?;
        // Links such as `cpu` -> `cpu,cpuacct` name a hierarchy a second time.
        if entry.file_type()?.is_dir() && entry.file_name() != "unified" {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Creates the root in every hierarchy. A new v1 cpuset is empty and takes no process until it is filled.
///
/// # Errors
/// When the file system refuses.
pub fn create(root: &str) -> anyhow::Result<()> {
    for hierarchy in hierarchies()? {
        let path = hierarchy.join(root.trim_start_matches('/'));
        fs::create_dir_all(&path).with_context(|| format!("creating cgroup {}", path.display()))?;
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let (ours, above) = (path.join(file), hierarchy.join(file));
            if ours.exists() && above.exists() && fs::read_to_string(&ours)?.trim().is_empty() {
                let value = fs::read_to_string(&above)?;
                fs::write(&ours, value.trim())
                    .with_context(|| format!("writing {}", ours.display()))?;
            }
        }
    }
    Ok(())
}

/// Removes the root and everything below it, ending processes that are still in it.
///
/// # Errors
/// When a cgroup stays busy.
pub async fn remove(root: &str) -> anyhow::Result<()> {
    // The runtime makes folders in the hybrid layout's hierarchy without controllers, too.
    let unified = Path::new(MOUNT).join("unified");
    for hierarchy in hierarchies()?.into_iter().chain([unified]) {
        let path = hierarchy.join(root.trim_start_matches('/'));
        if path.exists() {
            remove_tree(&path).await?;
        }
    }
    Ok(())
}

async fn remove_tree(root: &Path) -> anyhow::Result<()> {
    let mut folders = Vec::new();
    collect(root, &mut folders)?;
    // Deepest first: a cgroup with children cannot be removed.
    for folder in folders.iter().rev() {
        let mut tries = 0;
        loop {
            kill_all(folder)?;
            match fs::remove_dir(folder) {
                Ok(()) => break,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => break,
                // Its processes have not been reaped yet.
                Err(error)
                    if tries < 100
                        && error.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error()) =>
                {
                    tries += 1;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("removing cgroup {}", folder.display()));
                }
            }
        }
    }
    Ok(())
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    found.push(folder.to_owned());
    for entry in fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), found)?;
        }
    }
    Ok(())
}

fn kill_all(folder: &Path) -> anyhow::Result<()> {
    // Gone, or a file that this hierarchy does not have: nothing to end.
    let Ok(text) = fs::read_to_string(folder.join("cgroup.procs")) else {
        return Ok(());
    };
    for pid in text
        .lines()
        .filter_map(|line| line.parse().ok())
        .filter_map(rustix::process::Pid::from_raw)
    {
        match rustix::process::kill_process(pid, rustix::process::Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error).context("ending a process in a cgroup"),
        }
    }
    Ok(())
}
