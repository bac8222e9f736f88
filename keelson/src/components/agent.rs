//! `keelson agent`: makes this machine a node of a cluster whose control plane runs elsewhere.

use std::net::{IpAddr, ToSocketAddrs, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use keelson_machinery::clock::Clock;
use keelson_runtime::client;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::shutdown_signal;
use crate::cluster::CLUSTER_DOMAIN;
use crate::cluster::joining::NodeConfig;
use crate::cluster::layout::Layout;
use crate::cluster::process;
use crate::node::containerd::Settings;
use crate::node::image::SystemImage;
use crate::node::join::{self, Identity};
use crate::node::renewal::Renewal;
use crate::node::token::{CaHash, JoinToken};
use crate::node::{agent, network, runtime};

/// The command line of `agent`.
#[derive(Clone, Debug, clap::Args)]
pub struct Flags {
    /// URL of the API server, such as https://192.168.1.10:6443
    #[arg(long)]
    server: String,
    /// What the server wrote to the file agent-token in its data directory; needed once
    #[arg(long, conflicts_with = "token_file")]
    token: Option<String>,
    /// File with the token
    #[arg(long)]
    token_file: Option<PathBuf>,
    /// Hash of the cluster's CA, sha256:<hex>, for a token that does not hold it; without either, whoever knows the token is trusted
    #[arg(long)]
    ca_cert_hash: Option<CaHash>,
    /// Name of the node [default: the host name]
    #[arg(long)]
    node_name: Option<String>,
    /// Address of the node, announced to pods and other nodes [default: the one by which the server is reached]
    #[arg(long)]
    node_ip: Option<IpAddr>,
    /// Port of the kubelet's HTTPS API
    #[arg(long, default_value_t = 10250)]
    kubelet_port: u16,
    /// Name that a RuntimeClass may use as its handler, for runc; may be given several times
    #[arg(long = "runtime-handler")]
    runtime_handlers: Vec<String>,
    /// Folder that holds everything of the node
    #[arg(long, default_value = crate::cluster::DEFAULT_DATA_DIR)]
    data_dir: PathBuf,
    #[command(flatten)]
    logging: super::Logging,
}

/// What `down` and a start without the server need to know; written when the node has joined.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentState {
    /// What the cluster told.
    pub config: NodeConfig,
    /// Value of `net.ipv4.ip_forward` before the first start.
    pub ip_forward_before: String,
}

impl AgentState {
    /// Reads the file; `None` when no node was made here.
    ///
    /// # Errors
    /// When it cannot be read or understood.
    pub fn load(layout: &Layout) -> anyhow::Result<Option<Self>> {
        let path = layout.agent_state();
        match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .with_context(|| format!("{} is not what `keelson agent` wrote", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }
}

/// Runs until a signal ends it; containers keep running, and `keelson down` stops them.
///
/// # Errors
/// One sentence that says what to do: not root, a missing program, a wrong token or CA, a server out of reach.
pub async fn run(flags: Flags) -> anyhow::Result<()> {
    flags.logging.init();
    if !rustix::process::geteuid().is_root() {
        bail!("keelson agent must run as root: containers need namespaces, mounts and cgroups");
    }
    let layout = Layout::new(&flags.data_dir)?;
    Settings::detect(SystemImage::from_current_exe()?.reference())?;
    if layout.state().exists() {
        bail!(
            "{} holds a cluster of its own; give the node another --data-dir",
            layout.root().display()
        );
    }
    let options = join_options(&flags)?;
    for directory in layout.directories() {
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("creating {}", directory.display()))?;
    }
    let lock = std::fs::File::create(layout.lock())
        .with_context(|| format!("creating {}", layout.lock().display()))?;
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        bail!("another keelson process uses {}", layout.root().display());
    }
    process::record(&layout.pid_file(), std::process::id())?;

    let clock = Clock::system();
    let identity = join::join(&layout, &options, &clock).await?;
    let state = prepare(&layout, &identity).await?;
    tracing::info!(node = options.name, ip = %options.ip, server = options.server, "joined");

    let shutdown = shutdown_signal()?;
    serve(
        &flags, &layout, &options, identity, &state, clock, &shutdown,
    )
    .await?;
    drop(lock);
    Ok(())
}

fn join_options(flags: &Flags) -> anyhow::Result<join::Options> {
    let text = match (&flags.token, &flags.token_file) {
        (Some(token), _) => Some(token.clone()),
        (None, Some(path)) => Some(
            std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?,
        ),
        (None, None) => None,
    };
    let mut token = text.as_deref().map(str::parse::<JoinToken>).transpose()?;
    if let (Some(given), Some(hash)) = (&token, &flags.ca_cert_hash) {
        if given.pin.as_ref().is_some_and(|pin| pin != hash) {
            bail!("--ca-cert-hash and the token name different CAs");
        }
        token = Some(given.clone().with_pin(hash.clone()));
    }
    let server = flags.server.trim_end_matches('/').to_owned();
    let ip = match flags.node_ip {
        Some(ip) => ip,
        None => address_towards(&server)?,
    };
    Ok(join::Options {
        server,
        name: flags.node_name.clone().unwrap_or_else(super::host_name),
        ip,
        token,
    })
}

/// The address that this machine would use towards the server; nothing is sent.
fn address_towards(server: &str) -> anyhow::Result<IpAddr> {
    let uri: http::Uri = server
        .parse()
        .with_context(|| format!("--server: {server:?} is not of the form https://host:port"))?;
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let unreachable = || format!("the API server at {server} cannot be reached");
    let to = (host, uri.port_u16().unwrap_or(443))
        .to_socket_addrs()
        .with_context(unreachable)?
        .next()
        .with_context(unreachable)?;
    let any: IpAddr = if to.is_ipv4() {
        IpAddr::from([0, 0, 0, 0])
    } else {
        IpAddr::from([0u16; 8])
    };
    let socket = UdpSocket::bind((any, 0)).context("opening a socket")?;
    socket.connect(to).with_context(unreachable)?;
    Ok(socket.local_addr().with_context(unreachable)?.ip())
}

/// Asks the cluster what a node must know, and readies the machine. Without its control plane a node starts with what it
/// knew last.
async fn prepare(layout: &Layout, identity: &Identity) -> anyhow::Result<AgentState> {
    let known = AgentState::load(layout)?;
    let client = client::from_kubeconfig(&identity.kubeconfig, "keelson-agent").await?;
    let read = tokio::time::timeout(Duration::from_secs(10), NodeConfig::read(&client));
    let config = match (read.await, &known) {
        (Ok(Ok(config)), _) => config,
        (failed, Some(known)) => {
            let why = failed.map_or("no answer".to_owned(), |r| {
                r.map_or_else(|error| format!("{error:#}"), |_| String::new())
            });
            tracing::warn!(why, "the node starts with what the cluster told it before");
            known.config.clone()
        }
        (Ok(Err(error)), None) => return Err(error),
        (Err(_), None) => bail!("the API server does not answer"),
    };
    let before = network::enable_forwarding()?;
    let state = AgentState {
        config,
        ip_forward_before: known.map_or(before, |known| known.ip_forward_before),
    };
    let text = serde_json::to_string_pretty(&state)?;
    crate::cluster::control_plane::write_private(&layout.agent_state(), &text)?;
    Ok(state)
}

/// Runs the node.
async fn serve(
    flags: &Flags,
    layout: &Layout,
    options: &join::Options,
    identity: Identity,
    state: &AgentState,
    clock: Clock,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let node = agent::Options {
        name: options.name.clone(),
        ip: options.ip,
        kubelet_port: flags.kubelet_port,
        pod_cidr: state.config.pod_cidr,
        cluster_dns: state.config.cluster_dns,
        serving: identity.serving.clone(),
        client_ca: identity.ca.clone(),
    };
    tracing::debug!(domain = CLUSTER_DOMAIN, "starting the node");
    let mut renewal = Renewal::new(layout.clone(), options.clone(), identity, clock.clone());
    let (kubelet, proxy) = (
        renewal.client("kubelet").await?,
        renewal.client("kube-proxy").await?,
    );
    let stop = shutdown.child_token();
    // The system image first: a node that is ready gets pods, and they need it.
    let runtime = runtime::start(layout, &flags.runtime_handlers).await?;
    let keep = async {
        runtime.keep(&stop).await;
        anyhow::Ok(())
    };
    let renew = async {
        renewal.run(&stop).await;
        anyhow::Ok(())
    };
    let running = agent::run(layout, &node, kubelet, proxy, clock, stop.clone());
    tokio::try_join!(running, keep, renew)?;
    Ok(())
}
