//! `keelson up`: from nothing, or from what an earlier start left, to a cluster whose node and DNS are ready.

use std::net::{IpAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use ipnet::IpNet;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Node;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use tokio::time::{Instant, sleep};

use super::layout::Layout;
use super::process;
use super::state::State;
use super::status;
use super::steps::{Steps, seconds};
use crate::node::containerd::Settings;
use crate::node::image::SystemImage;
use crate::node::network;

/// The command line of `up`. All but the data directory count only for the first start; later ones keep what the
/// cluster was made with.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Folder that holds everything of the cluster
    #[arg(long, default_value = super::DEFAULT_DATA_DIR)]
    pub data_dir: PathBuf,
    /// Name of the node [default: the host name]
    #[arg(long)]
    pub node_name: Option<String>,
    /// Address of the node, announced to pods and other nodes [default: that of the link with the default route]
    #[arg(long)]
    pub node_ip: Option<IpAddr>,
    /// Address the API server listens on
    #[arg(long, default_value = "0.0.0.0")]
    pub bind_address: IpAddr,
    /// Port the API server listens on
    #[arg(long, default_value_t = 6443)]
    pub secure_port: u16,
    /// Port of the kubelet's HTTPS API
    #[arg(long, default_value_t = 10250)]
    pub kubelet_port: u16,
    /// Address range of Services
    #[arg(long, default_value = "10.96.0.0/16")]
    pub service_cidr: IpNet,
    /// Address range of Pods
    #[arg(long, default_value = "10.244.0.0/16")]
    pub pod_cidr: IpNet,
    /// Name that a RuntimeClass may use as its handler, for runc; may be given several times
    #[arg(long = "runtime-handler")]
    pub runtime_handlers: Vec<String>,
    /// Seconds to wait until node and DNS are ready
    #[arg(long, default_value_t = 180)]
    pub wait: u64,
}

/// Brings the cluster up.
///
/// # Errors
/// One sentence that says what to do: not root, a missing program, a taken port, a step that did not finish.
pub async fn run(options: Options) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("keelson up must run as root: containers need namespaces, mounts and cgroups");
    }
    let layout = Layout::new(&options.data_dir)?;
    if let Some(pid) = find_up(&layout, Duration::from_secs(options.wait)).await? {
        println!(
            "The cluster in {} is already up (pid {pid}).\n",
            layout.root().display()
        );
        status::print(&layout).await?;
        print_next_steps(&layout);
        return Ok(());
    }
    // Found out here rather than in the background, so that the answer stands on the screen.
    Settings::detect(SystemImage::from_current_exe()?.reference())?;
    let resumed = State::load(&layout.state())?;
    let existed = resumed.is_some();
    let mut state = match resumed {
        Some(state) => state,
        None => new_state(&options).await?,
    };
    check_port_free(state.bind_address, state.secure_port, "--secure-port")?;
    check_port_free(
        IpAddr::from([0, 0, 0, 0]),
        state.kubelet_port,
        "--kubelet-port",
    )?;

    println!(
        "{} the cluster in {}",
        if existed { "Resuming" } else { "Making" },
        layout.root().display()
    );
    let mut steps = Steps::new();
    for directory in layout.directories() {
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("creating {}", directory.display()))?;
    }
    let before = network::enable_forwarding()?;
    state.ip_forward_before.get_or_insert(before);
    state.save(&layout.state())?;
    let pid = spawn_cluster_process(&layout)?;
    steps.done(&format!("data directory, cluster process (pid {pid})"));

    let client = wait_for_api(&layout, pid, Duration::from_secs(30)).await?;
    steps.done("API server ready");
    let deadline = Instant::now() + Duration::from_secs(options.wait);
    wait_for_containerd(&layout, pid, deadline)
        .await
        .with_context(|| look_into(&layout))?;
    steps.done("containerd answers");
    wait_for_node(&client, &state.node_name, pid, deadline)
        .await
        .with_context(|| look_into(&layout))?;
    steps.done(&format!("node {} Ready", state.node_name));
    wait_for_dns(&client, pid, deadline)
        .await
        .with_context(|| look_into(&layout))?;
    steps.done("DNS Ready");
    println!("The cluster is up after {}.", seconds(steps.total()));
    print_next_steps(&layout);
    Ok(())
}

async fn new_state(options: &Options) -> anyhow::Result<State> {
    let node_name = match &options.node_name {
        Some(name) => name.clone(),
        None => rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .to_lowercase(),
    };
    let node_ip = match options.node_ip {
        Some(ip) => ip,
        None => network::node_address().await?,
    };
    Ok(State {
        node_name,
        node_ip,
        bind_address: options.bind_address,
        secure_port: options.secure_port,
        kubelet_port: options.kubelet_port,
        service_cidr: options.service_cidr.trunc(),
        pod_cidr: options.pod_cidr.trunc(),
        cluster_dns: State::service_address(&options.service_cidr, 10)?,
        runtime_handlers: options.runtime_handlers.clone(),
        ip_forward_before: None,
    })
}

fn check_port_free(address: IpAddr, port: u16, flag: &str) -> anyhow::Result<()> {
    match TcpListener::bind((address, port)) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            bail!(
                "port {port} is taken by another process: stop it, or choose another port with {flag}"
            )
        }
        Err(error) => {
            Err(error).with_context(|| format!("cannot listen on {address}:{port} ({flag})"))
        }
    }
}

/// Starts the process that holds control plane and node; it outlives this command.
fn spawn_cluster_process(layout: &Layout) -> anyhow::Result<u32> {
    let program = std::env::current_exe().context("finding this program's file")?;
    let mut command = Command::new(program);
    command
        .arg("run-cluster")
        .arg("--data-dir")
        .arg(layout.root());
    process::spawn_detached(command, &layout.log("keelson"), &layout.pid_file())
}

/// A client for a kubeconfig file.
///
/// # Errors
/// When the file is missing or wrong.
pub async fn client(kubeconfig: &Path) -> anyhow::Result<Client> {
    let named = || format!("kubeconfig {}", kubeconfig.display());
    let file = Kubeconfig::read_from(kubeconfig).with_context(named)?;
    let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .with_context(named)?;
    Client::try_from(config).with_context(named)
}

/// The process of a cluster that is up. One that is there but does not answer is either starting, and is waited for, or
/// ending (killed a moment ago, perhaps), and counts as down once it has gone.
///
/// # Errors
/// When it neither answers nor ends within `limit`.
async fn find_up(layout: &Layout, limit: Duration) -> anyhow::Result<Option<u32>> {
    let Some(pid) = process::find_running(&layout.pid_file())? else {
        return Ok(None);
    };
    match wait_for_api(layout, pid, limit).await {
        Ok(_) => Ok(Some(pid)),
        Err(_) if process::find_running(&layout.pid_file())?.is_none() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Waits until the API server of a cluster is ready; `pid` is the process it ends with.
///
/// # Errors
/// When that process ends, or after `limit`.
pub async fn wait_for_api(layout: &Layout, pid: u32, limit: Duration) -> anyhow::Result<Client> {
    let deadline = Instant::now() + limit;
    let mut why = String::from("no kubeconfig was written");
    loop {
        check_alive(pid).with_context(|| look_into(layout))?;
        if layout.admin_kubeconfig().exists() {
            let client = client(&layout.admin_kubeconfig()).await?;
            match readyz(&client).await {
                Ok(()) => return Ok(client),
                Err(error) => why = format!("{error:#}"),
            }
        }
        if Instant::now() >= deadline {
            bail!(
                "the API server was not ready within {} ({why}); {}",
                seconds(limit),
                look_into(layout)
            );
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Asks the API server whether it is ready.
///
/// # Errors
/// When it does not answer "ok".
pub async fn readyz(client: &Client) -> anyhow::Result<()> {
    let request = http::Request::get("/readyz").body(Vec::new())?;
    let answer = client.request_text(request).await?;
    if answer != "ok" {
        bail!("/readyz says {answer:?}");
    }
    Ok(())
}

/// After a crash the API still tells of the node as it was; the runtime must really be there.
async fn wait_for_containerd(layout: &Layout, pid: u32, deadline: Instant) -> anyhow::Result<()> {
    loop {
        check_alive(pid)?;
        let running = process::find_running(&layout.containerd_pid_file())?.is_some();
        if running
            && tokio::net::UnixStream::connect(layout.containerd_socket())
                .await
                .is_ok()
        {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!("containerd does not answer");
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until a node is ready; `pid` is the process it ends with.
///
/// # Errors
/// When that process ends, or at the deadline, with the node's own words.
pub async fn wait_for_node(
    client: &Client,
    name: &str,
    pid: u32,
    deadline: Instant,
) -> anyhow::Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let mut why = String::from("the node has not registered");
    loop {
        check_alive(pid)?;
        if let Some(node) = nodes.get_opt(name).await.context("reading the node")? {
            let ready = node
                .status
                .and_then(|s| s.conditions)
                .unwrap_or_default()
                .into_iter()
                .find(|c| c.type_ == "Ready");
            match ready {
                Some(condition) if condition.status == "True" => return Ok(()),
                Some(condition) => why = condition.message.unwrap_or_default(),
                None => why = String::from("the node has reported no status"),
            }
        }
        if Instant::now() >= deadline {
            bail!("node {name} is not Ready: {why}");
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until cluster DNS answers; `pid` is the process of the control plane.
///
/// # Errors
/// When that process ends, or at the deadline.
pub async fn wait_for_dns(client: &Client, pid: u32, deadline: Instant) -> anyhow::Result<()> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), "kube-system");
    loop {
        check_alive(pid)?;
        let deployment = deployments.get_opt("coredns").await;
        // Made by the cluster process once the image is there.
        let deployment = deployment.context("reading the DNS Deployment")?;
        let generation = deployment.as_ref().and_then(|d| d.metadata.generation);
        let status = deployment.and_then(|d| d.status).unwrap_or_default();
        let current = generation.is_some() && status.observed_generation >= generation;
        if current
            && status.available_replicas.unwrap_or(0) >= 1
            && status.updated_replicas.unwrap_or(0) >= 1
        {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!(
                "DNS is not Ready: {} of 1 replicas available; see `kubectl -n kube-system describe pods`",
                status.available_replicas.unwrap_or(0)
            );
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Makes sure that a process still runs.
///
/// # Errors
/// When it has ended.
pub fn check_alive(pid: u32) -> anyhow::Result<()> {
    if process::start_ticks(pid).is_none() {
        bail!("the cluster process (pid {pid}) ended");
    }
    Ok(())
}

/// Which logs tell more.
pub fn look_into(layout: &Layout) -> String {
    format!(
        "see {} and {}",
        layout.log("keelson").display(),
        layout.log("containerd").display()
    )
}

fn print_next_steps(layout: &Layout) {
    println!(
        "\nkubeconfig: {path}\n\n  export KUBECONFIG={path}\n  kubectl get nodes,pods --all-namespaces",
        path = layout.admin_kubeconfig().display()
    );
}
