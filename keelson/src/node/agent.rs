//! What runs on a node besides containerd: kubelet, dataplane, routes, and the pod network's configuration.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use keelson_machinery::clock::Clock;
use kube::{Api, Client};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{cgroup, network, routes};
use crate::cluster::layout::Layout;

/// What a node is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// The node's name.
    pub name: String,
    /// Its address.
    pub ip: IpAddr,
    /// Port of the kubelet's HTTPS API.
    pub kubelet_port: u16,
    /// Address range of all Pods, to tell their traffic from others'.
    pub pod_cidr: IpNet,
    /// The DNS Service's address.
    pub cluster_dns: IpAddr,
    /// The kubelet's serving certificate and key.
    pub serving: (PathBuf, PathBuf),
    /// Authority of the certificates of the kubelet's clients.
    pub client_ca: PathBuf,
}

/// Runs kubelet and dataplane until `shutdown`. `kubelet` and `proxy` are their clients, each with its own identity.
///
/// # Errors
/// Why a part could not start or failed.
pub async fn run(
    layout: &Layout,
    options: &Options,
    kubelet: Client,
    proxy: Client,
    clock: Clock,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    cgroup::create(&cgroup::root_of(layout))?;
    let mut tasks: JoinSet<anyhow::Result<()>> = JoinSet::new();

    let (client, stop, paths, name) = (
        kubelet.clone(),
        shutdown.clone(),
        layout.clone(),
        options.name.clone(),
    );
    tasks.spawn(async move {
        configure_pod_network(&paths, &name, client, stop)
            .await
            .context("the pod network")
    });

    let config = kubelet_config(layout, options);
    let stop = shutdown.clone();
    tasks.spawn(async move {
        keelson_kubelet::run(config, Some(kubelet), stop)
            .await
            .context("the kubelet")
    });

    let (client, stop, range, name, time) = (
        proxy.clone(),
        shutdown.clone(),
        options.pod_cidr,
        options.name.clone(),
        clock.clone(),
    );
    tasks.spawn(async move {
        routes::run(range, &name, client, time, stop)
            .await
            .context("the routes to other nodes")
    });

    let config = proxy_config(layout, options, clock)?;
    let stop = shutdown.clone();
    tasks.spawn(async move {
        keelson_proxy::run(config, proxy, stop)
            .await
            .context("the dataplane")
    });

    while let Some(ended) = tasks.join_next().await {
        ended.context("a part of the node panicked")??;
    }
    Ok(())
}

fn kubelet_config(layout: &Layout, options: &Options) -> keelson_kubelet::Config {
    let mut config = keelson_kubelet::Config::new(&options.name);
    config.node_ips = vec![options.ip];
    config.root_dir = layout.kubelet();
    config.cert_dir = layout.kubelet().join("pki");
    config.container_logs_dir = None;
    let file = &mut config.file;
    file.container_runtime_endpoint = format!("unix://{}", layout.containerd_socket().display());
    file.cgroup_root = cgroup::root_of(layout);
    file.cluster_dns = vec![options.cluster_dns];
    file.cluster_domain = crate::cluster::CLUSTER_DOMAIN.to_owned();
    file.port = options.kubelet_port;
    // One more port that several nodes of a machine would have to share; the HTTPS server has /healthz too.
    file.healthz_port = 0;
    file.fail_swap_on = false;
    // Upstream's tenth of a disk is a lot of a workstation's: what counts here is that room is left to write at all.
    file.eviction_hard = [
        ("memory.available", "100Mi"),
        ("nodefs.available", "2%"),
        ("imagefs.available", "2%"),
        ("nodefs.inodesFree", "1%"),
    ]
    .map(|(signal, threshold)| (signal.to_owned(), threshold.to_owned()))
    .into();
    file.serialize_image_pulls = false;
    file.pod_logs_dir = layout.pod_logs();
    (file.tls_cert_file, file.tls_private_key_file) = (
        Some(options.serving.0.clone()),
        Some(options.serving.1.clone()),
    );
    file.authentication.x509.client_ca_file = Some(options.client_ca.clone());
    config
}

fn proxy_config(
    layout: &Layout,
    options: &Options,
    clock: Clock,
) -> anyhow::Result<keelson_proxy::Config> {
    let file = keelson_proxy::KubeProxyConfiguration {
        cluster_cidr: options.pod_cidr.to_string(),
        ..Default::default()
    };
    let mut settings = file.resolve()?;
    // The cluster process tells of its health as a whole; two more ports would be in another cluster's way.
    (settings.healthz, settings.metrics) = (None, None);
    let mut config = keelson_proxy::Config::new(settings, &options.name, clock);
    config.table = network::table_name(layout);
    config.masquerade_egress = vec![options.pod_cidr];
    Ok(config)
}

/// Waits until the node has its part of the pod range, then writes the CNI configuration for it.
async fn configure_pod_network(
    layout: &Layout,
    node: &str,
    client: Client,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let nodes: Api<Node> = Api::all(client);
    loop {
        match nodes.get_opt(node).await {
            Ok(found) => {
                if let Some(cidr) = found
                    .and_then(|node| node.spec)
                    .and_then(|spec| spec.pod_cidr)
                {
                    let cidr: IpNet = cidr
                        .parse()
                        .with_context(|| format!("node {node} has the pod range {cidr:?}"))?;
                    network::write_cni_config(layout, &cidr)?;
                    tracing::info!(%cidr, "pod network configured");
                    return Ok(());
                }
            }
            Err(error) => tracing::warn!(%error, "reading the node"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(Duration::from_millis(50)) => {}
        }
    }
}
