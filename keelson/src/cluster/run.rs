//! The process that `up` starts: control plane and node in one, beside a containerd that it watches over.

use std::path::PathBuf;

use anyhow::{Context, bail};
use keelson_machinery::clock::Clock;
use kube::Client;
use rustix::fs::{FlockOperation, flock};
use tokio_util::sync::CancellationToken;

use super::addons;
use super::control_plane::{self, ControlPlane};
use super::layout::Layout;
use super::state::State;
use crate::components::apiserver::EtcdFlags;
use crate::components::shutdown_signal;
use crate::node::{agent, runtime};

/// The command line of `run-cluster`.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Folder that holds everything of the cluster
    #[arg(long)]
    pub data_dir: PathBuf,
}

/// Runs until a signal ends it. Containers keep running; the next start finds them.
///
/// # Errors
/// Why a part failed: the process then ends as a whole, and `up` starts it again.
pub async fn run(options: Options) -> anyhow::Result<()> {
    crate::components::init_logging("info");
    let layout = Layout::new(&options.data_dir)?;
    let lock = std::fs::File::create(layout.lock())
        .with_context(|| format!("creating {}", layout.lock().display()))?;
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        bail!("another keelson process uses {}", layout.root().display());
    }
    let state = State::load(&layout.state())?.with_context(|| {
        format!(
            "there is no cluster in {}; make one with `keelson up`",
            layout.root().display()
        )
    })?;
    let clock = Clock::system();
    let shutdown = shutdown_signal()?;
    let mut control_plane = control_plane::start(
        &control_plane_options(&layout, &state),
        clock.clone(),
        &shutdown,
    )
    .await?;
    let node = node_task(&layout, &state, &control_plane, clock, &shutdown)?;
    let admin = control_plane::client_as(
        &control_plane.server,
        control_plane::administrator(),
        "keelson",
    );
    let runtime = keep_runtime(&layout, &state, admin, &shutdown);
    let ended = tokio::select! {
        ended = control_plane.wait(&shutdown) => ended,
        ended = node => ended,
        ended = runtime => ended,
    };
    // Before a signal, a part that ends takes the others with it: half a cluster would only look like one.
    shutdown.cancel();
    control_plane.wait(&shutdown).await?;
    drop(lock);
    ended
}

fn control_plane_options(layout: &Layout, state: &State) -> control_plane::Options {
    control_plane::Options {
        data_dir: layout.root().to_owned(),
        etcd: EtcdFlags::default(),
        bind_address: state.bind_address,
        secure_port: state.secure_port,
        advertise_address: state.node_ip,
        names: vec![state.node_name.clone()],
        service_cidr: state.service_cidr,
        pod_cidr: state.pod_cidr,
    }
}

fn node_task(
    layout: &Layout,
    state: &State,
    control_plane: &ControlPlane,
    clock: Clock,
    shutdown: &CancellationToken,
) -> anyhow::Result<impl Future<Output = anyhow::Result<()>> + use<>> {
    let serving = control_plane.pki.node_serving(
        &state.node_name,
        &[
            state.node_name.clone(),
            state.node_ip.to_string(),
            "127.0.0.1".to_owned(),
        ],
    )?;
    let options = agent::Options {
        name: state.node_name.clone(),
        ip: state.node_ip,
        kubelet_port: state.kubelet_port,
        pod_cidr: state.pod_cidr,
        cluster_dns: state.cluster_dns,
        serving: (serving.certificate_path, serving.key_path),
        client_ca: control_plane.pki.dir().join("ca.crt"),
    };
    let kubelet = control_plane::client_as(
        &control_plane.server,
        control_plane::node(&state.node_name),
        "kubelet",
    );
    let proxy = control_plane::client_as(
        &control_plane.server,
        control_plane::component("system:kube-proxy"),
        "kube-proxy",
    );
    let (layout, shutdown) = (layout.clone(), shutdown.clone());
    Ok(async move { agent::run(&layout, &options, kubelet, proxy, clock, shutdown).await })
}

/// Brings containerd up with the system image, gives the cluster its add-ons, and looks after containerd.
async fn keep_runtime(
    layout: &Layout,
    state: &State,
    admin: Client,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let runtime = runtime::start(layout, &state.runtime_handlers).await?;
    addons::apply(
        &admin,
        &addons::dns(&runtime.image, state.cluster_dns, super::CLUSTER_DOMAIN),
    )
    .await?;
    runtime.keep(shutdown).await;
    Ok(())
}
