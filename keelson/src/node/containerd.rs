//! A containerd of the cluster's own: its configuration, its start, and the commands given to it.
//!
//! The machine's containerd is never touched: root, state, socket and CNI configuration lie below the data directory.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::net::UnixStream;

use crate::cluster::layout::Layout;
use crate::cluster::process;

/// Where Debian's and most other distributions' packages put CNI plugins; the first that has `bridge` is used.
const CNI_BIN_DIRS: [&str; 3] = ["/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"];

/// What the configuration depends on besides the data directory.
#[derive(Clone, Debug)]
pub struct Settings {
    /// containerd's major version; 2 changed the configuration's shape.
    pub major: u32,
    /// Reference of the sandbox (pause) image.
    pub sandbox_image: String,
    /// Folder of the CNI plugins.
    pub cni_bin: String,
    /// This process may not lower `oom_score_adj` (no CAP_SYS_RESOURCE); without containerd's switch for that,
    /// runc dies on every sandbox.
    pub restrict_oom_score_adj: bool,
    /// Further names by which RuntimeClasses may ask for runc.
    pub runtime_handlers: Vec<String>,
}

impl Settings {
    /// Looks at the machine.
    ///
    /// # Errors
    /// When containerd, runc or the CNI plugins are missing, with the package to install.
    pub fn detect(sandbox_image: &str) -> anyhow::Result<Self> {
        let output = Command::new("containerd")
            .arg("--version")
            .output()
            .context("containerd is not installed: apt-get install containerd")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let major = parse_major(&text)
            .with_context(|| format!("cannot read containerd's version from {text:?}"))?;
        Command::new("runc")
            .arg("--version")
            .output()
            .context("runc is not installed: apt-get install runc")?;
        let cni_bin = CNI_BIN_DIRS
            .into_iter()
            .find(|dir| Path::new(dir).join("bridge").exists())
            .context(
                "the CNI plugins are not installed: apt-get install containernetworking-plugins",
            )?;
        Ok(Settings {
            major,
            sandbox_image: sandbox_image.to_owned(),
            cni_bin: cni_bin.to_owned(),
            restrict_oom_score_adj: !has_cap_sys_resource()?,
            runtime_handlers: Vec::new(),
        })
    }
}

fn parse_major(version: &str) -> Option<u32> {
    // "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3" or "... v2.1.9 <commit>"
    let number = version.split_whitespace().nth(2)?.trim_start_matches('v');
    number.split('.').next()?.parse().ok()
}

/// CAP_SYS_RESOURCE in the effective set of this process.
fn has_cap_sys_resource() -> anyhow::Result<bool> {
    const CAP_SYS_RESOURCE: u32 = 24;
    let status =
        std::fs::read_to_string("/proc/self/status").context("reading /proc/self/status")?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .context("/proc/self/status has no CapEff line")?;
    let bits = u64::from_str_radix(effective.trim(), 16).context("CapEff in /proc/self/status")?;
    Ok(bits & (1 << CAP_SYS_RESOURCE) != 0)
}

/// The configuration file's text.
pub fn config(layout: &Layout, settings: &Settings) -> String {
    let q = |path: &Path| format!("{:?}", path.display().to_string());
    let (version, runtime, images, runc) = if settings.major >= 2 {
        (
            3,
            "io.containerd.cri.v1.runtime",
            "io.containerd.cri.v1.images",
            "io.containerd.cri.v1.runtime",
        )
    } else {
        (
            2,
            "io.containerd.grpc.v1.cri",
            "io.containerd.grpc.v1.cri",
            "io.containerd.grpc.v1.cri",
        )
    };
    let mut text = format!(
        "# Written by keelson at every start.\nversion = {version}\nroot = {root}\nstate = {state}\n\
         disabled_plugins = [\"io.containerd.snapshotter.v1.aufs\", \"io.containerd.snapshotter.v1.btrfs\", \"io.containerd.snapshotter.v1.devmapper\", \"io.containerd.snapshotter.v1.zfs\", \"io.containerd.tracing.processor.v1.otlp\", \"io.containerd.internal.v1.tracing\"]\n\
         [grpc]\n  address = {socket}\n  max_recv_message_size = 16777216\n  max_send_message_size = 16777216\n\
         [ttrpc]\n  address = {ttrpc}\n",
        root = q(&layout.containerd_root()),
        state = q(&layout.containerd_state()),
        socket = q(&layout.containerd_socket()),
        ttrpc = q(&layout.containerd_socket().with_extension("sock.ttrpc")),
    );
    let registry = format!(
        "[plugins.\"{images}\".registry]\n  config_path = {}\n",
        q(&layout.containerd_certs())
    );
    if settings.major >= 2 {
        text += &format!(
            "[plugins.\"{images}\"]\n  snapshotter = \"overlayfs\"\n[plugins.\"{images}\".pinned_images]\n  sandbox = {:?}\n",
            settings.sandbox_image
        );
        text += &registry;
        text += &format!(
            "[plugins.\"{runtime}\"]\n  restrict_oom_score_adj = {}\n",
            settings.restrict_oom_score_adj
        );
    } else {
        text += &format!(
            "[plugins.\"{runtime}\"]\n  sandbox_image = {:?}\n  restrict_oom_score_adj = {}\n",
            settings.sandbox_image, settings.restrict_oom_score_adj
        );
        text += &registry;
    }
    let bin = if settings.major >= 2 {
        format!("bin_dirs = [{:?}]", settings.cni_bin)
    } else {
        format!("bin_dir = {:?}", settings.cni_bin)
    };
    text += &format!(
        "[plugins.\"{runtime}\".cni]\n  {bin}\n  conf_dir = {}\n",
        q(&layout.cni_conf())
    );
    text += &format!("[plugins.\"{runc}\".containerd]\n  default_runtime_name = \"runc\"\n");
    let handlers = settings.runtime_handlers.iter().map(String::as_str);
    for handler in std::iter::once("runc").chain(handlers) {
        text += &format!(
            "[plugins.\"{runc}\".containerd.runtimes.{handler}]\n  runtime_type = \"io.containerd.runc.v2\"\n\
             [plugins.\"{runc}\".containerd.runtimes.{handler}.options]\n  SystemdCgroup = false\n"
        );
    }
    text
}

/// Starts containerd detached from this process (it outlives a killed keelson, and so do its containers), unless
/// one already answers on the socket. Returns its pid.
///
/// # Errors
/// When it cannot be started or does not answer within 20 s; the message names its log.
pub async fn ensure_running(layout: &Layout, settings: &Settings) -> anyhow::Result<u32> {
    if let Some(pid) = find_answering(layout).await? {
        return Ok(pid);
    }
    std::fs::write(layout.containerd_config(), config(layout, settings))
        .context("writing containerd's configuration")?;
    spawn(layout).await
}

/// As [`ensure_running`], with the configuration of the last start: for `down`, which has pods to stop however
/// containerd came to its end.
///
/// # Errors
/// As [`ensure_running`].
pub async fn restart_for_cleanup(layout: &Layout) -> anyhow::Result<u32> {
    match find_answering(layout).await? {
        Some(pid) => Ok(pid),
        None => spawn(layout).await,
    }
}

async fn find_answering(layout: &Layout) -> anyhow::Result<Option<u32>> {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    // Asked for anew in each round: a containerd that was killed a moment ago may still be on its way out.
    while let Some(pid) = process::find_running(&layout.containerd_pid_file())? {
        if wait_for_socket(&layout.containerd_socket(), Duration::from_millis(100)).await {
            return Ok(Some(pid));
        }
        if tokio::time::Instant::now() >= deadline {
            bail!(
                "containerd (pid {pid}) runs but does not answer; see {}",
                layout.log("containerd").display()
            );
        }
    }
    Ok(None)
}

async fn spawn(layout: &Layout) -> anyhow::Result<u32> {
    // A stale socket of a killed containerd would look like a running one.
    for stale in [
        layout.containerd_socket(),
        layout.containerd_socket().with_extension("sock.ttrpc"),
    ] {
        match std::fs::remove_file(&stale) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {}", stale.display()));
            }
            _ => {}
        }
    }
    let mut command = Command::new("containerd");
    command
        .arg("--config")
        .arg(layout.containerd_config())
        .stdin(Stdio::null());
    let pid = process::spawn_detached(
        command,
        &layout.log("containerd"),
        &layout.containerd_pid_file(),
    )?;
    if !wait_for_socket(&layout.containerd_socket(), Duration::from_secs(20)).await {
        bail!(
            "containerd (pid {pid}) did not come up within 20 s; see {}",
            layout.log("containerd").display()
        );
    }
    Ok(pid)
}

async fn wait_for_socket(socket: &Path, limit: Duration) -> bool {
    let deadline = tokio::time::Instant::now() + limit;
    loop {
        if UnixStream::connect(socket).await.is_ok() {
            return true;
        }
        if tokio::time::Instant::now() >= deadline {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Imports an OCI or docker archive into the namespace that CRI uses. Returns the names of the images in it.
///
/// # Errors
/// With containerd's own words when the archive is not one.
pub async fn import(layout: &Layout, archive: &Path) -> anyhow::Result<Vec<String>> {
    let output = ctr(layout, &["images", "import"], Some(archive)).await;
    output.map(|text| {
        text.lines()
            .filter_map(|line| {
                line.strip_prefix("unpacking ")
                    .and_then(|l| l.split_whitespace().next())
                    .map(str::to_owned)
            })
            .collect()
    })
}

/// Whether containerd has an image of this name.
///
/// # Errors
/// When containerd cannot be asked.
pub async fn has_image(layout: &Layout, name: &str) -> anyhow::Result<bool> {
    let names = ctr(layout, &["images", "list", "-q"], None).await?;
    Ok(names.lines().any(|line| line == name))
}

async fn ctr(layout: &Layout, args: &[&str], file: Option<&Path>) -> anyhow::Result<String> {
    let mut command = tokio::process::Command::new("ctr");
    command
        .arg("--address")
        .arg(layout.containerd_socket())
        .args(["--namespace", "k8s.io"])
        .args(args);
    if let Some(file) = file {
        command.arg(file);
    }
    let output = tokio::time::timeout(
        Duration::from_secs(300),
        command.stdin(Stdio::null()).kill_on_drop(true).output(),
    )
    .await
    .context("ctr did not finish within 300 s")?
    .context("ctr is not installed: apt-get install containerd")?;
    if !output.status.success() {
        bail!(
            "ctr {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn major_versions_are_read() {
        for (text, want) in [
            (
                "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3\n",
                Some(1),
            ),
            (
                "containerd github.com/containerd/containerd/v2 v2.1.9 abc",
                Some(2),
            ),
            (
                "containerd github.com/containerd/containerd 2.1.4~ds2 2.1.4~ds2-3",
                Some(2),
            ),
            ("nonsense", None),
        ] {
            assert_eq!(parse_major(text), want, "{text}");
        }
    }
}
