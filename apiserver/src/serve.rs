//! The two faces of the server: TLS with HTTP/1.1 and HTTP/2 by ALPN, and a service for callers in the same process.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::authn::ConnectionInfo;
use crate::authn::tls::AnyClientCertificate;
use crate::body::{BoxError, Response, request_body};
use crate::filters;
use crate::request::UserInfo;
use crate::server::{ApiServer, Server, StartError};

/// How long a peer may take for its TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a peer may take to send the head of an HTTP/1.1 request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(32);

/// How long requests under way may take at a shutdown.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Concurrent requests on one HTTP/2 connection (upstream `--http2-max-streams-per-connection`, 100 by Go's default;
/// informers of a whole controller manager share one connection, so more).
const MAX_STREAMS: u32 = 1000;

/// Connections that may be open at the same time.
const MAX_CONNECTIONS: usize = 16 * 1024;

impl ApiServer {
    /// Serves `listener` until `shutdown`, then ends watches, lets requests under way finish, and returns.
    pub async fn serve(
        &self,
        listener: TcpListener,
        shutdown: CancellationToken,
    ) -> Result<(), StartError> {
        let acceptor = TlsAcceptor::from(tls_config(&self.server)?);
        let graceful = GracefulShutdown::new();
        let slots = Arc::new(tokio::sync::Semaphore::new(MAX_CONNECTIONS));
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            let (stream, remote) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, or a peer that gave up: neither ends the server.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let Ok(slot) = slots.clone().try_acquire_owned() else {
                tracing::warn!(%remote, "too many connections; one was refused");
                continue;
            };
            let acceptor = acceptor.clone();
            let server = self.server.clone();
            let watcher = graceful.watcher();
            tokio::spawn(async move {
                if let Err(error) = connection(server, acceptor, stream, remote, watcher).await {
                    tracing::debug!(%remote, %error, "a connection ended with an error");
                }
                drop(slot);
            });
        }
        drop(listener);
        self.close();
        if tokio::time::timeout(DRAIN_TIMEOUT, graceful.shutdown())
            .await
            .is_err()
        {
            tracing::warn!("some requests did not finish before the shutdown");
        }
        Ok(())
    }

    /// The service for callers in the same process that act as `user`: the same filters and verbs, no socket.
    pub fn in_process_service(&self, user: UserInfo) -> InProcess {
        InProcess {
            server: self.server.clone(),
            connection: ConnectionInfo {
                in_process: Some(Arc::new(user)),
                ..ConnectionInfo::default()
            },
        }
    }
}

async fn connection(
    server: Arc<Server>,
    acceptor: TlsAcceptor,
    stream: TcpStream,
    remote: std::net::SocketAddr,
    watcher: hyper_util::server::graceful::Watcher,
) -> Result<(), BoxError> {
    stream.set_nodelay(true)?;
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await??;
    let peer_certificates = stream
        .get_ref()
        .1
        .peer_certificates()
        .unwrap_or_default()
        .iter()
        .map(|certificate| certificate.to_vec())
        .collect();
    let info = ConnectionInfo {
        remote: Some(remote),
        peer_certificates,
        in_process: None,
    };
    let service = service_fn(move |request: http::Request<Incoming>| {
        let server = server.clone();
        let info = info.clone();
        async move {
            let response = filters::handle(server, info, request.map(request_body)).await;
            Ok::<Response, Infallible>(response)
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .adaptive_window(true)
        .keep_alive_interval(Duration::from_secs(30));
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    watcher.watch(connection.into_owned()).await
}

fn tls_config(server: &Server) -> Result<Arc<ServerConfig>, StartError> {
    let serving = &server.config.serving;
    let failed = |error: &dyn std::fmt::Display| StartError::Serving(error.to_string());
    let chain = CertificateDer::pem_slice_iter(serving.certificate.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| failed(&e))?;
    let key = PrivateKeyDer::from_pem_slice(serving.key.as_bytes()).map_err(|e| failed(&e))?;
    let hints = match &server.config.authentication.client_ca_pem {
        Some(pem) => crate::authn::x509::root_store(pem)
            .map_err(StartError::Authentication)?
            .subjects(),
        None => Vec::new(),
    };
    let mut config = ServerConfig::builder_with_provider(server.provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|e| failed(&e))?
        .with_client_cert_verifier(AnyClientCertificate::new(server.provider.clone(), hints))
        .with_single_cert(chain, key)
        .map_err(|e| failed(&e))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// The server as a tower service for callers in the same process; fits `kube::Client::new`.
#[derive(Clone)]
pub struct InProcess {
    server: Arc<Server>,
    connection: ConnectionInfo,
}

impl<B> tower::Service<http::Request<B>> for InProcess
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let server = self.server.clone();
        let connection = self.connection.clone();
        let request = request.map(request_body);
        Box::pin(async move { Ok(filters::handle(server, connection, request).await) })
    }
}
