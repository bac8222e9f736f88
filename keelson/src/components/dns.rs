//! `keelson dns`: cluster DNS, as it runs in its pod.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::Context;
use keelson_dns::{Config, Server};
use keelson_machinery::clock::Clock;
use keelson_runtime::metrics::Metrics;
use keelson_runtime::serving::{self, Endpoints};
use kube::Client;
use tokio::net::TcpListener;

use super::{Logging, shutdown_signal};

/// The command line of `dns`.
#[derive(Clone, Debug, clap::Args)]
pub struct Flags {
    /// How to reach the API server [default: the pod's service account]
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// Where to serve DNS
    #[arg(long, default_value_t = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 53))]
    listen: SocketAddr,
    /// The cluster domain
    #[arg(long, default_value = crate::cluster::CLUSTER_DOMAIN)]
    cluster_domain: String,
    /// Seconds that answers may be kept
    #[arg(long, default_value_t = 30)]
    ttl: u32,
    /// Resolvers for all other names [default: those of --resolv-conf]
    #[arg(long, value_delimiter = ',')]
    upstream: Vec<SocketAddr>,
    /// Where the resolvers are read from
    #[arg(long, default_value = "/etc/resolv.conf")]
    resolv_conf: PathBuf,
    /// Port of /healthz
    #[arg(long, default_value_t = 8080)]
    health_port: u16,
    /// Port of /readyz
    #[arg(long, default_value_t = 8181)]
    ready_port: u16,
    /// Port of /metrics
    #[arg(long, default_value_t = 9153)]
    metrics_port: u16,
    #[command(flatten)]
    logging: Logging,
}

/// Runs until a signal ends it.
///
/// # Errors
/// An address that is taken, or no way to the API server.
pub async fn run(flags: Flags) -> anyhow::Result<()> {
    flags.logging.init();
    let client = match &flags.kubeconfig {
        Some(path) => keelson_runtime::client::from_kubeconfig(path, "keelson-dns").await?,
        None => Client::try_default()
            .await
            .context("the pod's service account")?,
    };
    let config = Config {
        listen: flags.listen,
        cluster_domain: flags.cluster_domain,
        ttl: flags.ttl,
        upstreams: flags.upstream,
        resolv_conf: flags.resolv_conf,
        own_addresses: Vec::new(),
    };
    let server = Server::new(config, Clock::system())?;
    let shutdown = shutdown_signal()?;
    let metrics = Metrics::new();
    metrics.register(|registry| server.register_metrics(registry));
    let ready = server.ready();
    let ready = move || {
        if ready() {
            Ok(())
        } else {
            Err("the cluster's names have not been read yet".to_owned())
        }
    };
    for (port, endpoints) in [
        (flags.health_port, Endpoints::new()),
        (
            flags.ready_port,
            Endpoints::new().ready("kubernetes", ready),
        ),
        (flags.metrics_port, Endpoints::new().metrics(metrics)),
    ] {
        let address = SocketAddr::new(flags.listen.ip(), port);
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("listening on {address}"))?;
        tokio::spawn(serving::serve(listener, None, endpoints, shutdown.clone()));
    }
    server.run(client, shutdown).await
}
