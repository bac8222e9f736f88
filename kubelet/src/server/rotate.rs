//! Rotation of containers' logs (upstream `pkg/kubelet/logs`): a log that has grown too large is moved aside and
//! the runtime begins a new one; the older ones are compressed, the oldest deleted.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::cri;
use crate::resources;
use crate::shared::Shared;

/// How often logs are looked at.
const PERIOD: Duration = Duration::from_secs(10);

/// Rotates logs until `shutdown`.
pub async fn run(shared: Arc<Shared>, shutdown: CancellationToken) {
    let max_size = resources::value(&Quantity(shared.config.file.container_log_max_size.clone()));
    let max_files = shared.config.file.container_log_max_files.max(2) as usize;
    if max_size <= 0 {
        return;
    }
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(PERIOD) => {}
        }
        let filter = cri::ContainerFilter {
            state: Some(cri::ContainerStateValue {
                state: cri::ContainerState::Running as i32,
            }),
            ..Default::default()
        };
        let containers = match shared.runtime.list_containers(filter).await {
            Ok(c) => c,
            Err(error) => {
                warn!(%error, "could not list containers to rotate their logs");
                continue;
            }
        };
        for c in containers {
            if let Err(error) = rotate_one(&shared, &c.id, max_size as u64, max_files).await {
                warn!(container = %c.id, %error, "could not rotate a container's log");
            }
        }
    }
}

async fn rotate_one(
    shared: &Shared,
    id: &str,
    max_size: u64,
    max_files: usize,
) -> Result<(), String> {
    let path = match shared.runtime.container_status(id).await {
        Ok(s) => PathBuf::from(s.log_path),
        Err(e) if e.is_not_found() => return Ok(()),
        Err(e) => return Err(e.to_string()),
    };
    match fs::metadata(&path) {
        Ok(m) if m.len() >= max_size => {}
        Ok(_) => return Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e.to_string()),
    }
    let stamp = shared.clock.now().strftime("%Y%m%d-%H%M%S").to_string();
    let aside = PathBuf::from(format!("{}.{stamp}", path.display()));
    let tidied = path.clone();
    tokio::task::spawn_blocking(move || tidy(&tidied, max_files))
        .await
        .map_err(|e| e.to_string())?
        .map_err(|e| e.to_string())?;
    fs::rename(&path, &aside).map_err(|e| e.to_string())?;
    if let Err(e) = shared.runtime.reopen_container_log(id).await {
        // The runtime still writes to the old file: it gets its name back.
        fs::rename(&aside, &path).map_err(|e| e.to_string())?;
        return Err(e.to_string());
    }
    Ok(())
}

/// Makes room for one more file: the oldest go, all that stay are compressed.
fn tidy(path: &Path, max_files: usize) -> io::Result<()> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(|n| n.to_str())) else {
        return Ok(());
    };
    let prefix = format!("{name}.");
    let mut old: Vec<PathBuf> = Vec::new();
    for e in fs::read_dir(dir)? {
        let e = e?;
        let file = e.file_name();
        let Some(file) = file.to_str().filter(|f| f.starts_with(&prefix)) else {
            continue;
        };
        if file.ends_with(".tmp") {
            fs::remove_file(e.path())?;
        } else {
            old.push(e.path());
        }
    }
    old.sort();
    // The one being written and the one about to be moved aside count as well.
    let keep = max_files.saturating_sub(2);
    let remove = old.len().saturating_sub(keep);
    for p in old.drain(..remove) {
        fs::remove_file(p)?;
    }
    for p in old
        .iter()
        .filter(|p| p.extension().is_none_or(|x| x != "gz"))
    {
        let tmp = PathBuf::from(format!("{}.tmp", p.display()));
        let mut out = GzEncoder::new(fs::File::create(&tmp)?, Compression::default());
        io::copy(&mut fs::File::open(p)?, &mut out)?;
        out.finish()?.sync_all()?;
        fs::rename(&tmp, format!("{}.gz", p.display()))?;
        fs::remove_file(p)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("0.log");
        for f in [
            "0.log",
            "0.log.20260101-000001.gz",
            "0.log.20260101-000002",
            "0.log.20260101-000003",
            "0.log.x.tmp",
        ] {
            fs::write(dir.path().join(f), "x").unwrap();
        }
        tidy(&log, 4).unwrap();
        let mut left: Vec<String> = fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(
            left,
            [
                "0.log",
                "0.log.20260101-000002.gz",
                "0.log.20260101-000003.gz"
            ]
        );
    }
}
