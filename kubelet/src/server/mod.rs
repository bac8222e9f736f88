//! The kubelet's own server: HTTPS for the API server and monitoring, and a plain `/healthz` for the node itself.
//!
//! Every request over HTTPS is authenticated and authorized ([`auth`]) before [`routes`] looks at it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::pod::manager::Manager;
use crate::server::certificate::ServingCertificate;
use crate::shared::Shared;

pub mod auth;
pub mod certificate;
pub mod log_stream;
pub mod logs;
pub mod metrics;
pub mod rotate;
pub mod routes;
pub mod stats;
pub mod streaming;

/// The body of an answer.
pub type Body = BoxBody<Bytes, std::io::Error>;

/// How long a peer may take for its TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections that may be open at the same time.
const MAX_CONNECTIONS: usize = 2048;

/// What handlers work with.
pub struct Server {
    /// The kubelet.
    pub shared: Arc<Shared>,
    /// Its pods.
    pub manager: Arc<Manager>,
    /// Who may do what.
    pub auth: auth::Auth,
    /// CPU figures between two readings.
    pub stats: stats::Stats,
}

/// A text answer.
pub fn text(status: StatusCode, body: impl Into<String>) -> Response<Body> {
    answer(
        status,
        "text/plain; charset=utf-8",
        Bytes::from(body.into()),
    )
}

/// A JSON answer.
pub fn json(value: &impl serde::Serialize) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(bytes) => answer(StatusCode::OK, "application/json", Bytes::from(bytes)),
        Err(e) => text(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()),
    }
}

/// An answer of known content.
pub fn answer(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Body> {
    let mut r = Response::new(
        Full::new(body)
            .map_err(|never: Infallible| match never {})
            .boxed(),
    );
    *r.status_mut() = status;
    r.headers_mut().insert(
        http::header::CONTENT_TYPE,
        http::HeaderValue::from_static(kind),
    );
    r
}

/// Serves until `shutdown`.
pub async fn run(server: Arc<Server>, shutdown: CancellationToken) -> Result<()> {
    let file = &server.shared.config.file;
    let mut tasks = tokio::task::JoinSet::new();
    if file.healthz_port != 0 {
        let at = SocketAddr::new(file.healthz_bind_address, file.healthz_port);
        // A port that is taken costs the node its local health check, not its pods.
        match TcpListener::bind(at).await {
            Ok(l) => {
                tasks.spawn(plain(server.clone(), l, shutdown.clone()));
            }
            Err(error) => warn!(%at, %error, "cannot serve /healthz"),
        }
    }
    if file.port != 0 {
        let at = SocketAddr::new(file.address, file.port);
        let listener = TcpListener::bind(at)
            .await
            .with_context(|| format!("listening on {at}"))?;
        let tls = tls_config(&server.shared)?;
        info!(%at, "serving");
        tasks.spawn(secure(
            server.clone(),
            listener,
            TlsAcceptor::from(Arc::new(tls)),
            shutdown.clone(),
        ));
    }
    while tasks.join_next().await.is_some() {}
    Ok(())
}

async fn accept(
    listener: &TcpListener,
    shutdown: &CancellationToken,
) -> Option<(TcpStream, SocketAddr)> {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return None,
            r = listener.accept() => match r {
                Ok(x) => return Some(x),
                Err(error) => {
                    warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }
}

async fn plain(server: Arc<Server>, listener: TcpListener, shutdown: CancellationToken) {
    while let Some((stream, _)) = accept(&listener, &shutdown).await {
        let server = server.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request: http::Request<Incoming>| {
                let server = server.clone();
                async move {
                    let r = match request.uri().path() {
                        "/healthz" | "/healthz/ping" | "/healthz/syncloop" => {
                            routes::healthz(&server)
                        }
                        _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
                    };
                    Ok::<_, Infallible>(r)
                }
            });
            let connection = auto::Builder::new(TokioExecutor::new());
            let _ = tokio::time::timeout(
                Duration::from_secs(60),
                connection.serve_connection(TokioIo::new(stream), service),
            )
            .await;
        });
    }
}

async fn secure(
    server: Arc<Server>,
    listener: TcpListener,
    acceptor: TlsAcceptor,
    shutdown: CancellationToken,
) {
    let slots = Arc::new(tokio::sync::Semaphore::new(MAX_CONNECTIONS));
    while let Some((stream, remote)) = accept(&listener, &shutdown).await {
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            warn!(%remote, "too many connections; one was refused");
            continue;
        };
        let (server, acceptor, shutdown) = (server.clone(), acceptor.clone(), shutdown.clone());
        tokio::spawn(async move {
            let _slot = slot;
            if let Err(error) = connection(server, stream, acceptor, shutdown).await {
                debug!(%remote, %error, "a connection ended with an error");
            }
        });
    }
}

async fn connection(
    server: Arc<Server>,
    stream: TcpStream,
    acceptor: TlsAcceptor,
    shutdown: CancellationToken,
) -> Result<()> {
    stream.set_nodelay(true)?;
    let tls = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await??;
    let peer = tls
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|c| c.first())
        .map(|c| c.to_vec());
    let peer = peer
        .map(|der| auth::user_of_certificate(&der))
        .transpose()?;
    let service = service_fn(move |request: http::Request<Incoming>| {
        let (server, peer) = (server.clone(), peer.clone());
        async move { Ok::<_, Infallible>(routes::handle(&server, peer, request).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(32));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(250);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(tls), service);
    tokio::pin!(connection);
    tokio::select! {
        r = connection.as_mut() => r.map_err(|e| anyhow::anyhow!("{e}")),
        () = shutdown.cancelled() => Ok(()),
    }
}

/// The server's certificate: the configured one, or one of its own making that is kept in the certificate directory.
fn tls_config(shared: &Shared) -> Result<rustls::ServerConfig> {
    let file = &shared.config.file;
    let (cert, key) = match (&file.tls_cert_file, &file.tls_private_key_file) {
        (Some(c), Some(k)) => (c.clone(), k.clone()),
        _ => {
            let (c, k) = (
                shared.config.cert_dir.join("kubelet.crt"),
                shared.config.cert_dir.join("kubelet.key"),
            );
            if !c.exists() || !k.exists() {
                make_certificate(shared, &c, &k).context("making a serving certificate")?;
            }
            (c, k)
        }
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let serving = ServingCertificate::open(&cert, &key, provider.clone())?;
    let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?;
    let builder = match &file.authentication.x509.client_ca_file {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = rustls::RootCertStore::empty();
            for c in CertificateDer::pem_file_iter(path)
                .with_context(|| format!("reading {}", path.display()))?
            {
                roots.add(c?)?;
            }
            let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
                Arc::new(roots),
                provider,
            )
            .allow_unauthenticated()
            .build()?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_cert_resolver(Arc::new(serving));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn make_certificate(shared: &Shared, cert: &Path, key: &Path) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    if let Some(dir) = cert.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let mut names = vec![shared.config.node_name.clone()];
    names.extend(shared.node.read().host_ips.iter().cloned());
    let made = rcgen::generate_simple_self_signed(names)?;
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(key)?;
    file.write_all(made.signing_key.serialize_pem().as_bytes())?;
    std::fs::write(cert, made.cert.pem())?;
    Ok(())
}
