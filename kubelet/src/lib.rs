//! The kubelet: runs the pods of one node by means of a container runtime, and reports on them.
//!
//! Flow: [`pod::source`] tells of pods, [`pod::manager`] gives each a [`pod::worker`], which looks at the pod
//! ([`pod::sync`]) whenever something may have changed: it reads the runtime ([`pod::observed`]), reports
//! ([`status`]), decides ([`pod::plan`], pure) and acts ([`container`]). The runtime and the API are the only memory:
//! a kubelet that is killed and started again finds its containers by their labels and carries on.

pub mod backoff;
pub mod cgroup;
pub mod config;
pub mod container;
pub mod cri;
pub mod events;
pub mod fields;
pub mod image;
pub mod network;
pub mod node;
pub mod objects;
pub mod pod;
pub mod podutil;
pub mod probe;
pub mod resources;
pub mod server;
pub mod shared;
pub mod status;
pub mod volume;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use keelson_machinery::clock::Clock;
use parking_lot::RwLock;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use config::Config;
use cri::Runtime;
use pod::worker::Wakers;
use shared::{Health, Shared};

/// Runs a kubelet until `shutdown`; containers keep running. Without a `client` it runs static pods only.
pub async fn run(
    config: Config,
    client: Option<kube::Client>,
    shutdown: CancellationToken,
) -> Result<()> {
    let runtime = cri::CriClient::new(
        &config.file.container_runtime_endpoint,
        config.file.runtime_request_timeout.0,
    )?;
    run_with(config, client, Arc::new(runtime), Clock::system(), shutdown).await
}

/// As [`run`], with the runtime and the clock of the caller's choice.
pub async fn run_with(
    config: Config,
    client: Option<kube::Client>,
    runtime: Arc<dyn Runtime>,
    clock: Clock,
    shutdown: CancellationToken,
) -> Result<()> {
    let machine = node::machine::machine().context("reading the machine's facts")?;
    let cgroups =
        cgroup::Cgroups::detect(&config.file.cgroup_root).context("looking for cgroups")?;
    if config.file.fail_cgroup_v1 && !cgroups.is_v2() {
        anyhow::bail!("kubelet is configured to not run on a host using cgroup v1");
    }
    if config.file.fail_swap_on && has_swap()? {
        anyhow::bail!(
            "running with swap on is not supported, please disable swap or set failSwapOn to false"
        );
    }
    for dir in [
        &config.root_dir,
        &config.pods_dir(),
        &config.file.pod_logs_dir,
    ] {
        std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    }
    if let Err(error) = volume::mounts::make_shared(&config.root_dir) {
        // Only a mount point can be shared; below one that is, all is well.
        tracing::debug!(%error, "the kubelet's directory is no mount point");
    }
    cgroups
        .prepare(machine.cores * 1000)
        .context("creating the pods' cgroups")?;
    adjust_oom_score(config.file.oom_score_adj);
    let version = wait_for_runtime(&*runtime, &shutdown).await?;
    let Some(version) = version else {
        return Ok(());
    };
    info!(runtime = %version.runtime_name, version = %version.runtime_version, "the container runtime is up");

    let (shared, wakers) = assemble(
        config,
        client,
        runtime,
        clock,
        &machine,
        cgroups,
        version.runtime_name,
        shutdown.clone(),
    )?;
    shared.recorder.node(
        &shared.config.node_name,
        events::Severity::Normal,
        "Starting",
        "Starting kubelet.",
    );
    let manager = pod::manager::Manager::new(shared.clone(), wakers.clone(), shutdown.clone());
    let mirrors = pod::source::Mirrors::new(shared.clone());
    let reporter = node::Reporter::new(shared.clone(), machine, wakers.clone());
    // Known before the first pod is looked at, so that none is held up for no reason.
    reporter.check_runtime().await;

    let mut tasks = JoinSet::new();
    tasks.spawn(shared.status.clone().run(shutdown.clone()));
    tasks.spawn(reporter.clone().watch_runtime(shutdown.clone()));
    tasks.spawn(pod::pleg::run(
        shared.clone(),
        manager.clone(),
        wakers.clone(),
        shutdown.clone(),
    ));
    tasks.spawn(pod::pleg::events(shared.clone(), wakers, shutdown.clone()));
    tasks.spawn(reporter.clone().report(shutdown.clone()));
    tasks.spawn(reporter.lease(shutdown.clone()));
    tasks.spawn(pod::source::api(
        shared.clone(),
        manager.clone(),
        mirrors.clone(),
        shutdown.clone(),
    ));
    tasks.spawn(pod::source::files(
        shared.clone(),
        manager.clone(),
        mirrors,
        shutdown.clone(),
    ));
    tasks.spawn(pod::gc::run(shared.clone(), shutdown.clone()));
    tasks.spawn(server::rotate::run(shared.clone(), shutdown.clone()));
    let serving = Arc::new(server::Server {
        auth: server::auth::Auth::new(
            shared.client.clone(),
            shared.clock.clone(),
            shared.config.node_name.clone(),
            shared.config.file.authentication.clone(),
            shared.config.file.authorization.clone(),
        ),
        stats: server::stats::Stats::default(),
        shared: shared.clone(),
        manager: manager.clone(),
    });
    let failed = shutdown.clone();
    let stop = shutdown.clone();
    let server = tokio::spawn(async move {
        let result = server::run(serving, stop).await;
        // Without its server a kubelet cannot be reached: better to end and say why.
        failed.cancel();
        result
    });
    let objects = shared.objects.clone();
    let stop = shutdown.clone();
    tasks.spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = objects.follow_services() => {}
        }
    });

    shutdown.cancelled().await;
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            warn!(%error, "a part of the kubelet failed");
        }
    }
    manager.stopped().await;
    server.await.context("the kubelet's server failed")?
}

#[allow(clippy::too_many_arguments)] // the one place where all parts meet
fn assemble(
    config: Config,
    client: Option<kube::Client>,
    runtime: Arc<dyn Runtime>,
    clock: Clock,
    machine: &node::machine::Machine,
    cgroups: cgroup::Cgroups,
    runtime_name: String,
    stop: CancellationToken,
) -> Result<(Arc<Shared>, Arc<Wakers>)> {
    let wakers = Arc::new(Wakers::default());
    let wake = {
        let wakers = wakers.clone();
        Arc::new(move |uid: &str| wakers.wake(uid))
    };
    let recorder = events::Recorder::new(client.clone(), &config.node_name, clock.clone(), stop);
    let status = status::StatusManager::new(client.clone(), clock.clone());
    let probe_wake = wake.clone();
    let probes = probe::Probes::new(
        runtime.clone(),
        status.clone(),
        recorder.clone(),
        clock.clone(),
        Box::new(move |uid| probe_wake(uid)),
    );
    let objects = objects::Objects::new(client.clone(), wake);
    let host_ips: Vec<String> = if config.node_ips.is_empty() {
        let ip = node::machine::own_address()
            .context("the node's address cannot be found out; give it as --node-ip")?;
        vec![ip.to_string()]
    } else {
        config.node_ips.iter().map(ToString::to_string).collect()
    };
    let fs = node::machine::fs_usage(&config.root_dir)?;
    let (_, allocatable) = node::status::amounts(&config.file, machine, fs);
    let settings = container::config::Settings {
        pod_logs_dir: config.file.pod_logs_dir.clone(),
        root_dir: config.root_dir.clone(),
        dns: network::dns::Cluster {
            servers: config.file.cluster_dns.clone(),
            domain: config.file.cluster_domain.clone(),
        },
        resolv_conf: config.file.resolv_conf.clone(),
        cpu_cfs_quota: config.file.cpu_cfs_quota,
        cpu_period_us: i64::try_from(config.file.cpu_cfs_quota_period.0.as_micros())
            .unwrap_or(100_000),
        seccomp_default: config.file.seccomp_default,
        memory_capacity: machine.memory,
        cgroup_v2: cgroups.is_v2(),
    };
    let parallel = match (
        config.file.serialize_image_pulls,
        config.file.max_parallel_image_pulls,
    ) {
        (true, _) => Some(1),
        (false, n) => n.map(|n| n.max(1) as usize),
    };
    let longest = config
        .file
        .crash_loop_back_off
        .max_container_restart_period
        .map_or(Duration::from_secs(300), |d| d.0);
    let shared = Shared {
        images: image::Images::new(runtime.clone(), recorder.clone(), clock.clone(), parallel),
        volumes: volume::Volumes::new(
            config.pods_dir(),
            objects.clone(),
            client.clone(),
            clock.clone(),
        ),
        allocations: pod::resize::Allocations::default(),
        crash_backoff: backoff::Backoff::new(Duration::from_secs(10).min(longest), longest),
        node: RwLock::new(fields::NodeFacts {
            name: config.node_name.clone(),
            host_ips,
            allocatable_cpu: allocatable.cpu,
            allocatable_memory: allocatable.memory,
            allocatable_storage: allocatable.storage,
        }),
        health: RwLock::new(Health {
            runtime: None,
            network: Some("container runtime status check may not have completed yet".to_owned()),
            last_relist: None,
        }),
        settings,
        client,
        runtime,
        runtime_name,
        clock,
        recorder,
        status,
        probes,
        objects,
        cgroups,
        config,
    };
    Ok((Arc::new(shared), wakers))
}

/// Waits for the runtime to answer; `None` if `shutdown` came first.
async fn wait_for_runtime(
    runtime: &dyn Runtime,
    shutdown: &CancellationToken,
) -> Result<Option<cri::VersionResponse>> {
    let mut told = false;
    loop {
        match runtime.version().await {
            Ok(v) => return Ok(Some(v)),
            Err(error) => {
                if !told {
                    warn!(%error, "waiting for the container runtime");
                    told = true;
                }
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(None),
            () = tokio::time::sleep(Duration::from_millis(200)) => {}
        }
    }
}

fn has_swap() -> Result<bool> {
    match std::fs::read_to_string("/proc/swaps") {
        Ok(text) => Ok(text.lines().skip(1).any(|l| !l.trim().is_empty())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e).context("reading /proc/swaps"),
    }
}

/// The kubelet shall outlive its pods when memory runs out; not every machine allows asking for that.
fn adjust_oom_score(score: i32) {
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", score.to_string()) {
        warn!(%error, score, "could not adjust the kubelet's own oom score");
    }
}
