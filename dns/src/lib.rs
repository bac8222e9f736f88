//! Cluster DNS: the names of Services, their endpoints and Pods as the Kubernetes DNS specification gives them,
//! and forwarding for the rest.
//!
//! [`zone`] holds what the API server told ([`sync`] keeps it current), [`answer`] is a pure function of it,
//! [`server`] owns the sockets, [`forward`] asks upstream resolvers.

pub mod answer;
pub mod forward;
pub mod metrics;
pub mod server;
pub mod sync;
pub mod zone;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use hickory_proto::rr::Name;
use keelson_machinery::clock::Clock;
use kube::Client;
use parking_lot::RwLock;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use crate::forward::Forwarder;
use crate::metrics::Metrics;
use crate::server::Resolver;
use crate::zone::Zone;

/// How a server is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to serve DNS, over UDP and TCP.
    pub listen: SocketAddr,
    /// The cluster domain, without a final dot.
    pub cluster_domain: String,
    /// Seconds that answers may be kept.
    pub ttl: u32,
    /// Resolvers for all other names; empty: the `nameserver` lines of `resolv_conf`.
    pub upstreams: Vec<SocketAddr>,
    /// Read when `upstreams` is empty.
    pub resolv_conf: PathBuf,
    /// Addresses that lead back here and are never asked.
    pub own_addresses: Vec<IpAddr>,
}

/// A running server.
pub struct Server {
    resolver: Arc<Resolver>,
    config: Config,
}

impl Server {
    /// Reads the configuration; opens nothing yet.
    ///
    /// # Errors
    /// When the domain is no domain name or resolv.conf cannot be read.
    pub fn new(config: Config, clock: Clock) -> anyhow::Result<Self> {
        let mut domain = Name::from_ascii(&config.cluster_domain)
            .with_context(|| format!("cluster domain {:?}", config.cluster_domain))?;
        domain.set_fqdn(true);
        let upstreams = if config.upstreams.is_empty() {
            let path = &config.resolv_conf;
            forward::upstreams_of(path, &config.own_addresses)
                .with_context(|| format!("reading {}", path.display()))?
        } else {
            config.upstreams.clone()
        };
        let resolver = Resolver {
            zone: RwLock::new(Zone::default()),
            synced: AtomicBool::new(false),
            settings: answer::Settings {
                domain: domain.to_lowercase(),
                ttl: config.ttl,
            },
            forwarder: Forwarder::new(upstreams, clock),
            metrics: Metrics::default(),
        };
        Ok(Server {
            resolver: Arc::new(resolver),
            config,
        })
    }

    /// Adds the server's metrics to a registry.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.resolver.metrics.register(registry);
    }

    /// Whether every list has been read, so that answers are complete.
    pub fn ready(&self) -> impl Fn() -> bool + Send + Sync + 'static {
        let resolver = self.resolver.clone();
        move || resolver.synced.load(Ordering::Acquire)
    }

    /// Serves until `shutdown`.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn run(self, client: Client, shutdown: CancellationToken) -> anyhow::Result<()> {
        let address = self.config.listen;
        let named = || format!("listening on {address}");
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        let sockets = server::udp_sockets(address, workers).with_context(named)?;
        let listener = server::tcp_listener(address).with_context(named)?;
        let mut tasks = tokio::task::JoinSet::new();
        for socket in sockets {
            tasks.spawn(server::serve_udp(
                self.resolver.clone(),
                socket,
                shutdown.clone(),
            ));
        }
        tasks.spawn(server::serve_tcp(
            self.resolver.clone(),
            listener,
            shutdown.clone(),
        ));
        tasks.spawn(sync::run(self.resolver, client, shutdown));
        while let Some(ended) = tasks.join_next().await {
            ended.context("a DNS task panicked")?;
        }
        Ok(())
    }
}
