//! The subcommands of `keelson cluster`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use keelson_machinery::clock::Clock;
use kube::{Api, Client};
use rustix::fs::{FlockOperation, flock};
use tokio::time::{Instant, sleep};

use super::links::Wires;
use super::machine::{self, Waiting};
use super::spec::{self, DEFAULT_DATA_DIR, Folder, Node, Spec};
use crate::cluster::layout::Layout;
use crate::cluster::steps::{Steps, seconds};
use crate::cluster::{down, process, up};
use crate::node::containerd::{self, Settings};
use crate::node::image::SystemImage;
use crate::node::{cgroup, network};

/// How long a machine may take to switch itself off before it is switched off.
const GRACE: Duration = Duration::from_secs(15);
/// How long an API server may take to become ready.
const API_READY: Duration = Duration::from_secs(30);

/// The command line of `cluster`.
#[derive(Clone, Debug, clap::Args)]
pub struct Flags {
    /// Folder that holds all clusters
    #[arg(long, global = true, default_value = DEFAULT_DATA_DIR)]
    data_dir: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Command {
    /// Make a cluster and start it
    Create(Create),
    /// Stop a cluster and delete everything of it
    Delete {
        /// Name of the cluster
        name: String,
    },
    /// Show all clusters and their nodes
    List,
    /// Start nodes, after `stop` or a reboot
    Start {
        /// Name of the cluster
        name: String,
        /// The nodes [default: all]
        nodes: Vec<String>,
        /// Seconds to wait until the nodes are ready
        #[arg(long, default_value_t = 120)]
        wait: u64,
    },
    /// Switch nodes off, with everything that runs on them
    Stop {
        /// Name of the cluster
        name: String,
        /// The nodes [default: all]
        nodes: Vec<String>,
    },
    /// Cut the wire between two nodes: neither hears the other, nor the pods on it
    Cut {
        /// Name of the cluster
        name: String,
        /// One node
        a: String,
        /// The other
        b: String,
    },
    /// Take `cut` back
    Heal {
        /// Name of the cluster
        name: String,
        /// One node
        a: String,
        /// The other
        b: String,
    },
    /// Import OCI or docker archives on every running node
    Import {
        /// Name of the cluster
        name: String,
        /// Archives
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
}

#[derive(Clone, Debug, clap::Args)]
struct Create {
    /// Name of the cluster
    name: String,
    /// Number of nodes; the first also runs the control plane
    #[arg(long, default_value_t = 1)]
    nodes: u32,
    /// Number of nodes that run the control plane; more than one is not supported yet
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1))]
    control_planes: u32,
    /// Address range of Services
    #[arg(long, default_value = "10.96.0.0/16")]
    service_cidr: IpNet,
    /// Address range of Pods
    #[arg(long, default_value = "10.244.0.0/16")]
    pod_cidr: IpNet,
    /// Name that a RuntimeClass may use as its handler, for runc; may be given several times
    #[arg(long = "runtime-handler")]
    runtime_handlers: Vec<String>,
    /// Seconds to wait until all nodes and DNS are ready
    #[arg(long, default_value_t = 180)]
    wait: u64,
}

/// Runs one subcommand.
///
/// # Errors
/// One sentence that says what to do.
pub async fn run(flags: Flags) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("keelson cluster must run as root: nodes need namespaces, links and cgroups");
    }
    let data_dir = &flags.data_dir;
    match flags.command {
        Command::Create(options) => create(data_dir, options).await,
        Command::List => list(data_dir),
        Command::Delete { name } => delete(data_dir, &name).await,
        Command::Start { name, nodes, wait } => {
            let cluster = Cluster::open(data_dir, &name)?;
            cluster.start(&nodes, Duration::from_secs(wait)).await
        }
        Command::Stop { name, nodes } => {
            let cluster = Cluster::open(data_dir, &name)?;
            let mut steps = Steps::new();
            for node in cluster.chosen(&nodes)? {
                cluster.switch_off(node).await?;
                steps.done(&format!("{} stopped", node.name));
            }
            Ok(())
        }
        Command::Cut { name, a, b } => Cluster::open(data_dir, &name)?.wire(&a, &b, true).await,
        Command::Heal { name, a, b } => Cluster::open(data_dir, &name)?.wire(&a, &b, false).await,
        Command::Import { name, files } => Cluster::open(data_dir, &name)?.import(&files).await,
    }
}

/// A cluster that one command works on, alone.
struct Cluster {
    folder: Folder,
    spec: Spec,
    _lock: std::fs::File,
}

impl Cluster {
    fn open(data_dir: &Path, name: &str) -> anyhow::Result<Self> {
        let folder = Folder::new(data_dir, name)?;
        let spec = folder.load()?.with_context(|| {
            format!("there is no cluster {name}; make it with `keelson cluster create {name}`")
        })?;
        let lock = lock(&folder)?;
        Ok(Cluster {
            folder,
            spec,
            _lock: lock,
        })
    }

    fn chosen(&self, names: &[String]) -> anyhow::Result<Vec<&Node>> {
        if names.is_empty() {
            return Ok(self.spec.nodes.iter().collect());
        }
        let find = |name: &String| self.spec.node(name).map(|(_, node)| node);
        names.iter().map(find).collect()
    }

    fn layout(&self, node: &Node) -> anyhow::Result<Layout> {
        self.folder.node(&node.name)
    }

    /// PID 1 of a node, if it runs.
    fn pid(&self, node: &Node) -> anyhow::Result<Option<u32>> {
        process::find_running(&machine::pid_file(&self.layout(node)?))
    }

    /// Switches a machine on. Nothing waits for what runs in it.
    async fn switch_on(&self, node: &Node) -> anyhow::Result<u32> {
        let layout = self.layout(node)?;
        for directory in layout.directories() {
            std::fs::create_dir_all(&directory)
                .with_context(|| format!("creating {}", directory.display()))?;
        }
        if node.control_plane && !layout.state().exists() {
            self.spec.state(node)?.save(&layout.state())?;
        }
        let (number, _) = self.spec.node(&node.name)?;
        let here = Wires::here()?;
        let bridge = self.folder.bridge()?;
        here.ensure_bridge(&bridge, &self.spec).await?;
        let machine = Waiting::spawn(&self.folder, &self.spec, &layout, node)?;
        let pid = machine.pid;
        here.plug(&bridge, &self.folder.port(number)?, node, pid)
            .await?;
        Wires::of(pid)?.configure_node(&self.spec, node).await?;
        machine.go(&layout)?;
        Ok(pid)
    }

    /// Switches a machine off, and removes what its end leaves in the kernel.
    async fn switch_off(&self, node: &Node) -> anyhow::Result<()> {
        let layout = self.layout(node)?;
        if let Some(pid) = self.pid(node)? {
            process::stop(pid, GRACE).await?;
        }
        let (number, _) = self.spec.node(&node.name)?;
        Wires::here()?.delete(&self.folder.port(number)?).await?;
        cgroup::remove(&cgroup::root_of(&layout)).await
    }

    fn api(&self) -> anyhow::Result<Layout> {
        self.layout(self.spec.control_plane()?)
    }

    async fn start(&self, names: &[String], wait: Duration) -> anyhow::Result<()> {
        let began = Clock::system().now();
        let deadline = Instant::now() + wait;
        let mut steps = Steps::new();
        let mut started = Vec::new();
        for node in self.chosen(names)? {
            if self.pid(node)?.is_some() {
                println!("  {} runs already", node.name);
                continue;
            }
            started.push((node, self.switch_on(node).await?));
            steps.done(&format!("{} switched on", node.name));
        }
        let Some(&(_, pid)) = started.first() else {
            return Ok(());
        };
        let client = up::wait_for_api(&self.api()?, pid, API_READY).await?;
        for (node, pid) in started {
            self.wait_for_node(&client, node, pid, began, deadline)
                .await?;
            steps.done(&format!("{} Ready", node.name));
        }
        Ok(())
    }

    /// Until the kubelet of this start, not of one before, says that the node is ready.
    async fn wait_for_node(
        &self,
        client: &Client,
        node: &Node,
        pid: u32,
        began: Timestamp,
        deadline: Instant,
    ) -> anyhow::Result<()> {
        let layout = self.layout(node)?;
        let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
        loop {
            up::check_alive(pid).with_context(|| up::look_into(&layout))?;
            let lease = leases
                .get_opt(&node.name)
                .await
                .context("reading a lease")?;
            let renewed = lease.and_then(|lease| lease.spec?.renew_time);
            if renewed.is_some_and(|time| time.0 >= began) {
                break;
            }
            if Instant::now() >= deadline {
                bail!("{} does not report; {}", node.name, up::look_into(&layout));
            }
            sleep(Duration::from_millis(50)).await;
        }
        up::wait_for_node(client, &node.name, pid, deadline)
            .await
            .with_context(|| up::look_into(&layout))
    }

    async fn wire(mut self, a: &str, b: &str, cut: bool) -> anyhow::Result<()> {
        let (one, other) = (self.spec.node(a)?.1.clone(), self.spec.node(b)?.1.clone());
        let pair = spec::pair(a, b)?;
        // On disk first: a node that is off, or that restarts meanwhile, learns it at its next start.
        if cut {
            self.spec.cuts.insert(pair);
        } else {
            self.spec.cuts.remove(&pair);
        }
        self.folder.save(&self.spec)?;
        for (node, other) in [(&one, &other), (&other, &one)] {
            if let Some(pid) = self.pid(node)? {
                let wires = Wires::of(pid)?;
                match cut {
                    true => wires.cut(other).await?,
                    false => wires.heal(other).await?,
                }
            }
        }
        Ok(())
    }

    async fn import(&self, files: &[PathBuf]) -> anyhow::Result<()> {
        for file in files {
            std::fs::metadata(file).with_context(|| file.display().to_string())?;
        }
        for node in &self.spec.nodes {
            if self.pid(node)?.is_none() {
                println!("{}: off, nothing imported", node.name);
                continue;
            }
            let layout = self.layout(node)?;
            for file in files {
                let names = containerd::import(&layout, file)
                    .await
                    .with_context(|| format!("{}: {}", node.name, file.display()))?;
                println!("{}: {}: {}", node.name, file.display(), names.join(", "));
            }
        }
        Ok(())
    }
}

fn lock(folder: &Folder) -> anyhow::Result<std::fs::File> {
    let lock = std::fs::File::create(folder.lock())
        .with_context(|| format!("creating {}", folder.lock().display()))?;
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        bail!(
            "another keelson command works on the cluster in {}",
            folder.root().display()
        );
    }
    Ok(lock)
}

async fn create(data_dir: &Path, options: Create) -> anyhow::Result<()> {
    let name = &options.name;
    let folder = Folder::new(data_dir, name)?;
    if folder.load()?.is_some() {
        bail!("there is a cluster {name} already: `keelson cluster start {name}` starts it");
    }
    Settings::detect(SystemImage::from_current_exe()?.reference())?;
    let subnet = spec::free_subnet(folder.seed()?, &taken(data_dir).await?)?;
    let spec = Spec::new(
        name,
        subnet,
        options.nodes,
        options.service_cidr,
        options.pod_cidr,
        options.runtime_handlers,
    )?;
    std::fs::create_dir_all(folder.root())
        .with_context(|| format!("creating {}", folder.root().display()))?;
    let lock = lock(&folder)?;
    folder.save(&spec)?;
    let cluster = Cluster {
        folder,
        spec,
        _lock: lock,
    };
    println!("Making the cluster in {}", cluster.folder.root().display());
    bring_up(&cluster, Duration::from_secs(options.wait))
        .await
        .with_context(|| {
            format!(
                "the cluster is not complete; `keelson cluster delete {name}` deletes what there is"
            )
        })?;
    let path = cluster.folder.kubeconfig();
    println!(
        "\nkubeconfig: {path}\n\n  export KUBECONFIG={path}\n  kubectl get nodes,pods --all-namespaces",
        path = path.display()
    );
    Ok(())
}

async fn bring_up(cluster: &Cluster, wait: Duration) -> anyhow::Result<()> {
    let mut steps = Steps::new();
    let deadline = Instant::now() + wait;
    let began = Clock::system().now();
    let first = cluster.spec.control_plane()?;
    let api = cluster.api()?;
    let pid = cluster.switch_on(first).await?;
    steps.done(&format!("{} switched on (pid {pid})", first.name));
    let client = up::wait_for_api(&api, pid, API_READY).await?;
    let link = cluster.folder.kubeconfig();
    match std::os::unix::fs::symlink(api.admin_kubeconfig(), &link) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(error).with_context(|| format!("making {}", link.display()));
        }
        _ => {}
    }
    steps.done("API server ready");
    let mut pids = vec![(first, pid)];
    for node in &cluster.spec.nodes {
        if node.name != first.name {
            pids.push((node, cluster.switch_on(node).await?));
            steps.done(&format!("{} switched on", node.name));
        }
    }
    for (node, pid) in pids {
        cluster
            .wait_for_node(&client, node, pid, began, deadline)
            .await?;
        steps.done(&format!("{} Ready", node.name));
    }
    up::wait_for_dns(&client, pid, deadline)
        .await
        .with_context(|| up::look_into(&api))?;
    steps.done("DNS Ready");
    println!("The cluster is up after {}.", seconds(steps.total()));
    Ok(())
}

/// Networks that a new cluster must keep out of: this machine's, and those of clusters that are stopped.
async fn taken(data_dir: &Path) -> anyhow::Result<Vec<ipnet::Ipv4Net>> {
    let mut taken = Wires::here()?.networks().await?;
    taken.extend(all(data_dir)?.iter().map(|(_, spec)| spec.subnet));
    Ok(taken)
}

/// All clusters of a data directory, by name.
fn all(data_dir: &Path) -> anyhow::Result<Vec<(Folder, Spec)>> {
    let entries = match std::fs::read_dir(data_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            return Err(error).with_context(|| format!("listing {}", data_dir.display()));
        }
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("listing {}", data_dir.display()))?;
        // Other files that somebody put there are no clusters.
        let Ok(folder) = Folder::new(data_dir, &entry.file_name().to_string_lossy()) else {
            continue;
        };
        if let Some(spec) = folder.load()? {
            found.push((folder, spec));
        }
    }
    found.sort_by(|(_, a), (_, b)| a.name.cmp(&b.name));
    Ok(found)
}

fn list(data_dir: &Path) -> anyhow::Result<()> {
    println!(
        "{:<20} {:<10} {:<14} {:<15} {:>8}  KUBECONFIG",
        "CLUSTER", "NODE", "ROLE", "ADDRESS", "PID"
    );
    for (folder, spec) in all(data_dir)? {
        for node in &spec.nodes {
            let pid = process::find_running(&machine::pid_file(&folder.node(&node.name)?))?;
            let role = if node.control_plane {
                "control-plane"
            } else {
                "worker"
            };
            println!(
                "{:<20} {:<10} {role:<14} {:<15} {:>8}  {}",
                spec.name,
                node.name,
                node.ip,
                pid.map_or("off".to_owned(), |pid| pid.to_string()),
                folder.kubeconfig().display()
            );
        }
        for (a, b) in &spec.cuts {
            println!("{:<20} {a} and {b} are cut from each other", spec.name);
        }
    }
    Ok(())
}

async fn delete(data_dir: &Path, name: &str) -> anyhow::Result<()> {
    let cluster = Cluster::open(data_dir, name)?;
    let mut steps = Steps::new();
    for node in &cluster.spec.nodes {
        cluster.switch_off(node).await?;
    }
    steps.done("nodes stopped");
    network::delete_link(&cluster.folder.bridge()?).await?;
    steps.done("links and cgroups removed");
    let root = cluster.folder.root();
    // The nodes' mounts went with them; what somebody else mounted there is not ours to delete.
    down::unmount_below(root)?;
    std::fs::remove_dir_all(root).with_context(|| format!("deleting {}", root.display()))?;
    steps.done("data deleted");
    Ok(())
}
