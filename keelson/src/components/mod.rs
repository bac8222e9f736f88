//! Each component as a command of its own, under its upstream name and with upstream's flags.

pub mod agent;
pub mod apiserver;
pub mod conformance;
pub mod controller_manager;
mod delegated;
pub mod dns;
pub mod images;
pub mod kubelet;
pub mod proxy;
pub mod scheduler;
pub mod server;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use keelson_machinery::clock::Clock;
use keelson_runtime::leader_election::{self, LeaderConfig};
use keelson_runtime::metrics::Metrics;
use keelson_runtime::serving::{self, Endpoints};
use kube::Client;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Flags about logs that every component has.
#[derive(Clone, Debug, clap::Args)]
pub struct Logging {
    /// Verbosity, as upstream counts it: 4 and above is debug
    #[arg(short = 'v', long = "v", default_value_t = 0)]
    verbosity: u8,
}

impl Logging {
    /// Sends logs to standard error; `KEELSON_LOG` overrides the level (as `tracing`'s directives).
    pub fn init(&self) {
        let level = match self.verbosity {
            0..=3 => "info",
            4..=5 => "debug",
            _ => "trace",
        };
        init_logging(level);
    }
}

/// Sends logs of `level` and above to standard error.
pub fn init_logging(level: &str) {
    let filter = EnvFilter::try_from_env("KEELSON_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
}

/// Cancelled by SIGTERM or SIGINT.
///
/// # Errors
/// When signals cannot be listened to.
pub fn shutdown_signal() -> std::io::Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let token = CancellationToken::new();
    let cancel = token.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        cancel.cancel();
    });
    Ok(token)
}

/// This machine's name.
pub fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .to_lowercase()
}

/// Flags that scheduler and controller manager share.
#[derive(Clone, Debug, clap::Args)]
pub struct Controller {
    /// Who asks for metrics is checked with this kubeconfig [default: that of the component]
    #[arg(long)]
    authentication_kubeconfig: Option<PathBuf>,
    /// As --authentication-kubeconfig
    #[arg(long)]
    authorization_kubeconfig: Option<PathBuf>,
    /// Be one of several, of which one works at a time
    #[arg(long, num_args = 0..=1, default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    leader_elect: bool,
    /// Accepted for upstream's sake: the serving certificate is made anew at each start and kept in memory
    #[arg(long)]
    cert_dir: Option<PathBuf>,
    /// Address of the health endpoints
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED))]
    bind_address: IpAddr,
}

impl Controller {
    /// Serves `/healthz`, `/livez` and `/readyz` over TLS, and `/metrics` to those whom the API server lets read it.
    ///
    /// # Errors
    /// A port that is taken, a kubeconfig that cannot be used.
    pub async fn serve(
        &self,
        port: u16,
        client: &Client,
        metrics: &Metrics,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<()> {
        if port == 0 {
            return Ok(());
        }
        if let Some(file) = &self.authorization_kubeconfig {
            std::fs::metadata(file).with_context(|| format!("reading {}", file.display()))?;
        }
        let asked = match &self.authentication_kubeconfig {
            Some(file) => keelson_runtime::client::from_kubeconfig(file, "delegated-auth").await?,
            None => client.clone(),
        };
        let address = SocketAddr::new(self.bind_address, port);
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("listening on {address}"))?;
        let acceptor = self_signed()?;
        tokio::spawn(serving::serve(
            listener,
            Some(acceptor),
            Endpoints::new().path("/metrics", delegated::metrics(asked, metrics.clone())),
            shutdown.clone(),
        ));
        Ok(())
    }

    /// Runs `work`, as the leader if so asked.
    ///
    /// # Errors
    /// Those of the work, or a leadership that was lost: the process must end then.
    pub async fn lead<F, Fut>(
        &self,
        name: &str,
        client: Client,
        clock: Clock,
        metrics: &Metrics,
        shutdown: CancellationToken,
        work: F,
    ) -> anyhow::Result<()>
    where
        F: FnOnce(CancellationToken) -> Fut,
        Fut: Future<Output = anyhow::Result<()>>,
    {
        if !self.leader_elect {
            return work(shutdown).await;
        }
        let identity = format!("{}_{}", host_name(), clock.uuid());
        let mut outcome = Ok(());
        let result = &mut outcome;
        leader_election::run(
            client,
            clock,
            LeaderConfig::new(name, identity),
            metrics,
            shutdown,
            |leading| async move { *result = work(leading).await },
        )
        .await?;
        outcome
    }
}

/// A TLS acceptor with a certificate nobody knows: whoever asks for health has nothing to check it with, as upstream's
/// own self-signed one.
fn self_signed() -> anyhow::Result<TlsAcceptor> {
    let pair = rcgen::generate_simple_self_signed(vec![host_name(), "localhost".to_owned()])
        .context("making a serving certificate")?;
    let key = rustls::pki_types::PrivateKeyDer::try_from(pair.signing_key.serialize_der())
        .map_err(|e| anyhow::anyhow!("the serving key: {e}"))?;
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(
        rustls::crypto::ring::default_provider(),
    ))
    .with_safe_default_protocol_versions()?
    .with_no_client_auth()
    .with_single_cert(vec![pair.cert.der().clone()], key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
