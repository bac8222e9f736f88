//! One node: how its namespaces come to be, and the PID 1 in them.
//!
//! Three processes take part in a start. The command spawns `keelson machine`, which has one thread, unshares, starts
//! `keelson machine-init` as PID 1 of the new namespaces, tells its pid, and ends. The command then plugs the node's link in
//! and says "go" over PID 1's standard input. Without that word PID 1 ends, so that a command that dies leaves nothing.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use tokio::signal::unix::{SignalKind, signal};

use super::spec::{Folder, Node, Spec};
use crate::cluster::joining::TOKEN_FILE;
use crate::cluster::layout::Layout;
use crate::cluster::process;
use crate::node::network;

/// How long the node's process may take to end by itself when the machine is switched off.
const GRACE: Duration = Duration::from_secs(10);
/// How long PID 1 waits before it starts the node's process again.
const RESTART: Duration = Duration::from_secs(1);
/// What the command says to PID 1.
const GO: &str = "go";

/// The command line of `machine` and `machine-init`.
#[derive(Clone, Debug, clap::Args)]
pub struct Flags {
    /// Folder that holds all clusters
    #[arg(long)]
    data_dir: PathBuf,
    /// Name of the cluster
    cluster: String,
    /// Name of the node
    node: String,
}

/// A PID 1 that waits for [`Self::go`].
pub struct Waiting {
    /// Its pid, as this process sees it.
    pub pid: u32,
    input: std::process::ChildStdin,
}

impl Waiting {
    /// Spawns PID 1 of a node and records it.
    ///
    /// # Errors
    /// When namespaces cannot be made; the message names the log.
    pub fn spawn(
        folder: &Folder,
        spec: &Spec,
        layout: &Layout,
        node: &Node,
    ) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("finding this program's file")?;
        let data_dir = folder.root().parent().context("a folder without parent")?;
        let mut child = Command::new(program)
            .arg("machine")
            .arg("--data-dir")
            .arg(data_dir)
            .args([&spec.name, &node.name])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting keelson machine")?;
        let input = child.stdin.take().context("no standard input")?;
        let output = child
            .wait_with_output()
            .context("waiting for keelson machine")?;
        if !output.status.success() {
            bail!(
                "node {}: {}",
                node.name,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let pid = said.trim().parse().with_context(|| {
            format!(
                "keelson machine told no pid but {said:?}; see {}",
                layout.log("machine").display()
            )
        })?;
        process::record(&pid_file(layout), pid)?;
        Ok(Waiting { pid, input })
    }

    /// Lets the node start.
    ///
    /// # Errors
    /// When PID 1 has ended; its log says why.
    pub fn go(mut self, layout: &Layout) -> anyhow::Result<()> {
        writeln!(self.input, "{GO}").with_context(|| {
            format!(
                "the machine has ended; see {}",
                layout.log("machine").display()
            )
        })
    }
}

/// Where a node's PID 1 is recorded.
pub fn pid_file(layout: &Layout) -> PathBuf {
    layout.root().join("machine.pid")
}

/// `keelson machine`. Must run before this process has a second thread: the kernel unshares process namespaces for no other.
///
/// # Errors
/// When the kernel refuses namespaces.
pub fn enter(flags: &Flags) -> anyhow::Result<()> {
    let layout = Folder::new(&flags.data_dir, &flags.cluster)?.node(&flags.node)?;
    rustix::process::setsid().context("a session of its own")?;
    // SAFETY: no file descriptor table is unshared, which is what makes this call unsafe.
    unsafe {
        unshare_unsafe(
            UnshareFlags::NEWNET
                | UnshareFlags::NEWNS
                | UnshareFlags::NEWUTS
                | UnshareFlags::NEWIPC
                | UnshareFlags::NEWPID,
        )
    }
    .context("making namespaces")?;
    let log = open_log(&layout.log("machine"))?;
    let child = Command::new(std::env::current_exe()?)
        .arg("machine-init")
        .arg("--data-dir")
        .arg(&flags.data_dir)
        .args([&flags.cluster, &flags.node])
        .stdin(Stdio::inherit())
        .stdout(log.try_clone()?)
        .stderr(log)
        .current_dir("/")
        .spawn()
        .context("starting PID 1 of the node")?;
    println!("{}", child.id());
    Ok(())
}

fn open_log(path: &Path) -> anyhow::Result<std::fs::File> {
    let open = std::fs::File::options()
        .create(true)
        .append(true)
        .open(path);
    open.with_context(|| format!("opening {}", path.display()))
}

/// `keelson machine-init`: PID 1 of a node. Readies the namespaces, waits for the word, runs the node's process, again and
/// again if it must, and reaps orphans. Its end is the end of every process of the node.
///
/// # Errors
/// What the kernel refused.
pub async fn init(flags: Flags) -> anyhow::Result<()> {
    crate::components::init_logging("info");
    if std::process::id() != 1 {
        bail!("machine-init is PID 1 of a node; `keelson cluster` starts it");
    }
    let folder = Folder::new(&flags.data_dir, &flags.cluster)?;
    let spec = folder.load()?.context("there is no such cluster")?;
    let (_, node) = spec.node(&flags.node)?;
    let layout = folder.node(&node.name)?;
    ready_namespaces(&layout, node)?;
    let mut word = String::new();
    BufReader::new(std::io::stdin()).read_line(&mut word)?;
    if word.trim() != GO {
        bail!("the command that started this node has ended too early");
    }
    let (mut terminate, mut ended) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::child())?,
    );
    let mut main = Some(start(&folder, &spec, &layout, node)?);
    loop {
        let restart = async {
            match main {
                Some(_) => std::future::pending().await,
                None => tokio::time::sleep(RESTART).await,
            }
        };
        tokio::select! {
            _ = terminate.recv() => break,
            _ = ended.recv() => {
                if reap(main) {
                    tracing::warn!("the node's process ended; starting it again");
                    main = None;
                }
            }
            () = restart => main = Some(start(&folder, &spec, &layout, node)?),
        }
    }
    if let Some(pid) = main {
        match kill_process(pid, Signal::TERM) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error).context("ending the node's process"),
        }
        let gone = async {
            while !reap(main) {
                ended.recv().await;
            }
        };
        if tokio::time::timeout(GRACE, gone).await.is_err() {
            tracing::warn!("the node's process did not end in time");
        }
    }
    Ok(())
}

/// Reaps whatever has ended; returns whether `main` was among it.
fn reap(main: Option<Pid>) -> bool {
    let mut found = false;
    // An error means that there are no children at all.
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        if Some(pid) == main {
            tracing::info!(?status, "the node's process has ended");
            found = true;
        }
    }
    found
}

/// The node's own view of the file system: the machine's, but for what belongs to one node alone.
fn ready_namespaces(layout: &Layout, node: &Node) -> anyhow::Result<()> {
    rustix::system::sethostname(node.name.as_bytes()).context("setting the host name")?;
    let change = |flags| mount_change("/", flags | MountPropagationFlags::REC);
    // First nothing may reach the machine's mounts; then pods must see what is mounted after their start.
    change(MountPropagationFlags::PRIVATE).context("making mounts private")?;
    mount("proc", "/proc", "proc", MountFlags::empty(), None).context("mounting /proc")?;
    let resolver = std::fs::canonicalize("/etc/resolv.conf");
    let resolver = resolver.and_then(|path| Ok((std::fs::read(&path)?, path)));
    let tmpfs = |at: &str| {
        mount(
            "tmpfs",
            at,
            "tmpfs",
            MountFlags::NOSUID | MountFlags::NODEV,
            Some(c"mode=755"),
        )
        .with_context(|| format!("mounting a tmpfs on {at}"))
    };
    // Shims' sockets, runc's state, network namespaces: gone with the node, as with a reboot.
    tmpfs("/run")?;
    for folder in ["/run/lock", "/run/netns"] {
        std::fs::create_dir_all(folder).with_context(|| format!("making {folder}"))?;
    }
    if let Ok((text, path)) = resolver
        && path.starts_with("/run")
    {
        let parent = path.parent().unwrap_or(Path::new("/run"));
        std::fs::create_dir_all(parent)
            .and_then(|()| std::fs::write(&path, text))
            .with_context(|| format!("writing {}", path.display()))?;
    }
    // Where programs that enter a node look for containerd's configuration.
    if Path::new("/etc/containerd").is_dir() {
        tmpfs("/etc/containerd")?;
        std::os::unix::fs::symlink(layout.containerd_config(), "/etc/containerd/config.toml")
            .context("linking containerd's configuration")?;
    }
    // The CNI library's notes, which it keeps at one fixed place.
    let (ours, theirs) = (layout.root().join("cni/lib"), "/var/lib/cni");
    for folder in [ours.as_path(), Path::new(theirs)] {
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    mount_bind(&ours, theirs).with_context(|| format!("binding {theirs}"))?;
    change(MountPropagationFlags::SHARED).context("making mounts shared")?;
    network::enable_forwarding()?;
    // What containerd knew of running containers; none survived the last end of this node.
    match std::fs::remove_dir_all(layout.containerd_state()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).context("deleting containerd's old state");
        }
        _ => {}
    }
    std::fs::create_dir_all(layout.containerd_state()).context("making containerd's state")
}

/// Starts the process that is the node.
fn start(folder: &Folder, spec: &Spec, layout: &Layout, node: &Node) -> anyhow::Result<Pid> {
    let log = open_log(&layout.log("keelson"))?;
    let mut command = Command::new(std::env::current_exe()?);
    if node.control_plane {
        command.arg("run-cluster");
    } else {
        let token = folder
            .node(&spec.control_plane()?.name)?
            .root()
            .join(TOKEN_FILE);
        command
            .args(["agent", "--server", &spec.server()?])
            .args(["--node-name", &node.name])
            .args(["--node-ip", &node.ip.to_string()])
            .arg("--token-file")
            .arg(token);
        for handler in &spec.runtime_handlers {
            command.args(["--runtime-handler", handler]);
        }
    }
    command
        .arg("--data-dir")
        .arg(layout.root())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0);
    let child: Child = command.spawn().context("starting the node's process")?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    pid.context("a pid that is none")
}
