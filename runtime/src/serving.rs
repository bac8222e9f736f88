//! The small HTTP server of a component: `/healthz`, `/livez`, `/readyz` (with `?verbose` and one path per check),
//! `/metrics` and what else the component adds. Plain or behind TLS; connections in flight end before it does.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::metrics::{CONTENT_TYPE, Metrics};

/// Connections at once; more wait.
const CONNECTIONS: usize = 256;
/// For a handshake or the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// For connections in flight at the end.
const DRAIN: Duration = Duration::from_secs(5);

/// A health check: `Err` says what is wrong. It must answer at once.
pub type Check = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;
/// An answer to a path of the component's own.
pub type Handler =
    Arc<dyn Fn(Request<()>) -> BoxFuture<'static, Response<Full<Bytes>>> + Send + Sync>;

/// What is served.
#[derive(Clone, Default)]
pub struct Endpoints {
    live: BTreeMap<String, Check>,
    ready: BTreeMap<String, Check>,
    metrics: Option<Metrics>,
    paths: BTreeMap<String, Handler>,
    otherwise: Option<Handler>,
}

impl Endpoints {
    /// Health without checks (always `ok`) and nothing else.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a check to `/healthz`, `/livez` and `/readyz`.
    pub fn live(
        mut self,
        name: &str,
        check: impl Fn() -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        self.live.insert(name.to_owned(), Arc::new(check));
        self
    }

    /// Adds a check to `/readyz` only.
    pub fn ready(
        mut self,
        name: &str,
        check: impl Fn() -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        self.ready.insert(name.to_owned(), Arc::new(check));
        self
    }

    /// Serves `/metrics`.
    pub fn metrics(mut self, metrics: Metrics) -> Self {
        self.metrics = Some(metrics);
        self
    }

    /// Serves `path` by a handler of the component's own; a body is not read.
    pub fn path(mut self, path: &str, handler: Handler) -> Self {
        self.paths.insert(path.to_owned(), handler);
        self
    }

    /// Serves every path that has no handler of its own, those of health and metrics included.
    pub fn otherwise(mut self, handler: Handler) -> Self {
        self.otherwise = Some(handler);
        self
    }

    /// The answer to one request.
    pub async fn answer(&self, request: Request<()>) -> Response<Full<Bytes>> {
        if let Some(handler) = self.paths.get(request.uri().path()) {
            return handler(request).await;
        }
        if let Some(handler) = &self.otherwise {
            return handler(request).await;
        }
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return plain(
                StatusCode::METHOD_NOT_ALLOWED,
                "method not allowed\n".into(),
            );
        }
        let path = request.uri().path().trim_end_matches('/');
        let verbose = request.uri().query().is_some_and(|q| {
            q.split('&')
                .any(|p| p == "verbose" || p.starts_with("verbose="))
        });
        if path == "/metrics"
            && let Some(metrics) = &self.metrics
        {
            return match metrics.text() {
                Ok(text) => respond(StatusCode::OK, CONTENT_TYPE, text),
                Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
            };
        }
        for group in ["healthz", "livez", "readyz"] {
            let Some(rest) = path.strip_prefix('/').and_then(|p| p.strip_prefix(group)) else {
                continue;
            };
            let mut checks = self.live.clone();
            if group == "readyz" {
                checks.extend(self.ready.clone());
            }
            if rest.is_empty() {
                return health(group, &checks, verbose);
            }
            if let Some(name) = rest.strip_prefix('/') {
                if name == "ping" && !checks.contains_key(name) {
                    return plain(StatusCode::OK, "ok".into());
                }
                if let Some(check) = checks.get(name) {
                    return match check() {
                        Ok(()) => plain(StatusCode::OK, "ok".into()),
                        Err(reason) => plain(
                            StatusCode::INTERNAL_SERVER_ERROR,
                            format!("internal server error: {reason}\n"),
                        ),
                    };
                }
            }
        }
        plain(StatusCode::NOT_FOUND, "404 page not found\n".into())
    }
}

/// All checks of a group (apiserver `healthz.handleRootHealth`): what failed is named, why only goes to the log.
fn health(group: &str, checks: &BTreeMap<String, Check>, verbose: bool) -> Response<Full<Bytes>> {
    let mut lines = String::from("[+]ping ok\n");
    let mut failed = false;
    for (name, check) in checks {
        match check() {
            Ok(()) => lines.push_str(&format!("[+]{name} ok\n")),
            Err(reason) => {
                failed = true;
                tracing::info!(group, check = name, reason, "health check failed");
                lines.push_str(&format!("[-]{name} failed: reason withheld\n"));
            }
        }
    }
    if failed {
        plain(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("{lines}{group} check failed\n"),
        )
    } else if verbose {
        plain(StatusCode::OK, format!("{lines}{group} check passed\n"))
    } else {
        plain(StatusCode::OK, "ok".into())
    }
}

fn plain(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    respond(status, "text/plain; charset=utf-8", text)
}

fn respond(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response.headers_mut().insert(
        header::X_CONTENT_TYPE_OPTIONS,
        header::HeaderValue::from_static("nosniff"),
    );
    response
}

/// Serves until `shutdown`, then lets connections in flight end.
pub async fn serve(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    endpoints: Endpoints,
    shutdown: CancellationToken,
) {
    let endpoints = Arc::new(endpoints);
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let graceful = Arc::new(GracefulShutdown::new());
    loop {
        let Some(Ok(slot)) = shutdown
            .run_until_cancelled(slots.clone().acquire_owned())
            .await
        else {
            break;
        };
        let stream = match shutdown.run_until_cancelled(listener.accept()).await {
            None => break,
            Some(Ok((stream, _))) => stream,
            Some(Err(error)) => {
                // Out of descriptors, most often: wait for some to come back.
                tracing::warn!(%error, "accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (tls, endpoints, watcher) = (tls.clone(), endpoints.clone(), graceful.watcher());
        tokio::spawn(async move {
            let _slot = slot;
            match tls {
                None => connection(stream, endpoints, watcher).await,
                Some(tls) => match tokio::time::timeout(HEAD_TIMEOUT, tls.accept(stream)).await {
                    Ok(Ok(stream)) => connection(stream, endpoints, watcher).await,
                    Ok(Err(error)) => tracing::debug!(%error, "TLS handshake"),
                    Err(_) => tracing::debug!("TLS handshake timed out"),
                },
            }
        });
    }
    drop(listener);
    if let Some(graceful) = Arc::into_inner(graceful) {
        let _ = tokio::time::timeout(DRAIN, graceful.shutdown()).await;
    }
}

async fn connection<S>(
    stream: S,
    endpoints: Arc<Endpoints>,
    watcher: hyper_util::server::graceful::Watcher,
) where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let endpoints = endpoints.clone();
        async move { Ok::<_, Infallible>(endpoints.answer(request.map(drop)).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT);
    builder.http2().timer(TokioTimer::new());
    let serving = builder
        .serve_connection(TokioIo::new(stream), service)
        .into_owned();
    if let Err(error) = watcher.watch(serving).await {
        tracing::debug!(%error, "connection");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    #[tokio::test]
    async fn health_paths_answer_as_upstream() {
        let endpoints = Endpoints::new()
            .live("loop", || Ok(()))
            .ready("informer-sync", || Err("pods".into()))
            .metrics(Metrics::new());
        let cases = [
            ("/healthz", 200, "ok"),
            (
                "/livez?verbose",
                200,
                "[+]ping ok\n[+]loop ok\nlivez check passed\n",
            ),
            (
                "/readyz",
                500,
                "[+]ping ok\n[-]informer-sync failed: reason withheld\n[+]loop ok\nreadyz check failed\n",
            ),
            ("/readyz/loop", 200, "ok"),
            (
                "/readyz/informer-sync",
                500,
                "internal server error: pods\n",
            ),
            ("/healthz/none", 404, "404 page not found\n"),
            ("/", 404, "404 page not found\n"),
        ];
        for (path, status, body) in cases {
            let response = endpoints.answer(Request::get(path).body(()).unwrap()).await;
            assert_eq!(response.status(), status, "{path}");
            let bytes = response.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(String::from_utf8_lossy(&bytes), body, "{path}");
        }
    }
}
