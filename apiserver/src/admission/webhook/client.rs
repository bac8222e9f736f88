//! The connection to a webhook: HTTPS/1.1, kept open between calls, to a URL or to an endpoint of a Service
//! (`k8s.io/apiserver/pkg/util/webhook.ClientManager`).

use std::error::Error as StdError;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use keelson_machinery::status::{ApiError, Details, Reason};
use keelson_machinery::value::{self, Value};
use rustls::crypto::CryptoProvider;
use tokio::net::TcpStream;

use super::{resolve, tls};
use crate::objects::Objects;

/// The largest answer that is read: a patch of the largest object, in base64, with room to spare.
const MAX_ANSWER: usize = 16 * 1024 * 1024;
/// How long a connection is kept without use (upstream's transport: 90 s).
const IDLE: Duration = Duration::from_secs(90);
/// How long a connection may take to stand (upstream's dialer: 30 s); calls have shorter limits of their own.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a webhook gave no answer that can be read.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The configuration cannot be used.
    #[error("could not get REST client: {0}")]
    Config(String),
    /// No answer, or not one of success. Carries what the status of the failure is, for metrics.
    #[error("failed to call webhook: {message}")]
    Call {
        /// Status code; 503 when there was no answer at all.
        code: u16,
        /// What happened.
        message: String,
    },
}

/// A client of one webhook.
pub struct HookClient {
    base: String,
    client: Client<HttpsConnector<Dialer>, Full<Bytes>>,
}

enum Target {
    Service {
        namespace: String,
        name: String,
        port: u16,
    },
    Host {
        host: String,
        port: u16,
    },
}

impl HookClient {
    /// A client for a `WebhookClientConfig`. Nothing is connected yet.
    pub fn new(
        config: &Value,
        objects: &Objects,
        provider: &Arc<CryptoProvider>,
    ) -> Result<HookClient, ClientError> {
        let text = |path: &[&str]| value::str_or_empty(config, path).to_string();
        let (base, target) = match config.get("service").filter(|service| service.is_object()) {
            Some(service) => {
                let (namespace, name) =
                    (text(&["service", "namespace"]), text(&["service", "name"]));
                let port = value::get_i64(service, &["port"])
                    .and_then(|port| u16::try_from(port).ok())
                    .filter(|port| *port != 0)
                    .unwrap_or(443);
                let path = match text(&["service", "path"]) {
                    path if path.is_empty() => "/".to_string(),
                    path => path,
                };
                (
                    format!("https://{name}.{namespace}.svc:{port}{path}"),
                    Target::Service {
                        namespace,
                        name,
                        port,
                    },
                )
            }
            None => {
                let url = text(&["url"]);
                if url.is_empty() {
                    return Err(ClientError::Config(
                        "webhook configuration must have either service or URL".to_string(),
                    ));
                }
                let bad = |why: String| ClientError::Config(format!("Unparsable URL: {why}"));
                let uri: Uri = url
                    .parse()
                    .map_err(|e: http::uri::InvalidUri| bad(e.to_string()))?;
                let host = uri.host().ok_or_else(|| bad("no host".to_string()))?;
                let target = Target::Host {
                    host: host.trim_matches(['[', ']']).to_string(),
                    port: uri.port_u16().unwrap_or(443),
                };
                (url, target)
            }
        };
        let bundle = value::str_or_empty(config, &["caBundle"]);
        let config = tls::client_config(bundle, provider).map_err(ClientError::Config)?;
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(config)
            .https_only()
            // One connection of HTTP/2 would bind all calls to one of a Service's pods.
            .enable_http1()
            .wrap_connector(Dialer {
                target: Arc::new(target),
                objects: objects.clone(),
                turn: Arc::default(),
            });
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(hyper_util::rt::TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .build(connector);
        Ok(HookClient { base, client })
    }

    /// Posts a review and returns the body of a successful answer.
    pub async fn post(&self, body: Bytes, limit: Duration) -> Result<Bytes, ClientError> {
        let uri = format!("{}?timeout={}s", self.base, limit.as_secs());
        let failed = |why: &str| ClientError::Call {
            code: 503,
            message: format!("Post {uri:?}: {why}"),
        };
        match tokio::time::timeout(limit, self.exchange(&uri, body)).await {
            Err(_) => Err(failed("context deadline exceeded")),
            Ok(Err(why)) => Err(failed(&why)),
            Ok(Ok((code, body))) if code.is_success() => Ok(body),
            Ok(Ok((code, body))) => {
                let error = refusal(code, &body);
                Err(ClientError::Call {
                    code: error.code,
                    message: error.message,
                })
            }
        }
    }

    async fn exchange(&self, uri: &str, body: Bytes) -> Result<(StatusCode, Bytes), String> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(uri)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json, */*")
            .header(header::USER_AGENT, "kube-apiserver-admission")
            .body(Full::new(body))
            .map_err(|e| e.to_string())?;
        let response = self
            .client
            .request(request)
            .await
            .map_err(|error| describe(&error))?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, MAX_ANSWER)
            .collect()
            .await
            .map_err(|error| format!("unexpected error when reading response body: {error}"))?;
        Ok((parts.status, body.to_bytes()))
    }
}

/// The cause of a failed request that says most.
fn describe(error: &(dyn StdError + 'static)) -> String {
    let mut at = Some(error);
    let mut last = error.to_string();
    while let Some(cause) = at {
        if let Some(dial) = cause.downcast_ref::<DialError>() {
            return dial.0.clone();
        }
        if let Some(tls_error) = cause.downcast_ref::<rustls::Error>() {
            return tls::describe(tls_error);
        }
        // I/O errors wrap others without naming them as their source.
        if let Some(inner) = cause
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref)
        {
            return describe(inner);
        }
        if let Some(http) = cause.downcast_ref::<hyper::Error>()
            && (http.is_incomplete_message() || http.is_closed())
        {
            return "EOF".to_string();
        }
        last = cause.to_string();
        at = cause.source();
    }
    last
}

/// What client-go makes of an answer that is no success (`NewGenericServerResponse`), or the Status in it.
fn refusal(code: StatusCode, body: &Bytes) -> ApiError {
    let status = serde_json::from_slice::<Value>(body).ok().filter(|status| {
        value::str_or_empty(status, &["kind"]) == "Status"
            && value::str_or_empty(status, &["status"]) != "Success"
    });
    if let Some(error) = status.as_ref().and_then(ApiError::from_value) {
        return error;
    }
    let text = String::from_utf8_lossy(body);
    let text = text.trim();
    let said = if text.is_empty() { "unknown" } else { text };
    let (reason, message) = match code.as_u16() {
        409 => (Reason::AlreadyExists, "the server reported a conflict".to_string()),
        404 => (
            Reason::NotFound,
            "the server could not find the requested resource".to_string(),
        ),
        400 => (
            Reason::BadRequest,
            "the server rejected our request for an unknown reason".to_string(),
        ),
        401 => (
            Reason::Unauthorized,
            "the server has asked for the client to provide credentials".to_string(),
        ),
        403 => (Reason::Forbidden, said.to_string()),
        405 => (
            Reason::MethodNotAllowed,
            "the server does not allow this method on the requested resource".to_string(),
        ),
        415 => (Reason::UnsupportedMediaType, said.to_string()),
        422 => (
            Reason::Invalid,
            "the server rejected our request due to an error in our request".to_string(),
        ),
        429 => (
            Reason::TooManyRequests,
            "the server has received too many requests and has asked us to try again later"
                .to_string(),
        ),
        503 => (
            Reason::ServiceUnavailable,
            "the server is currently unable to handle the request".to_string(),
        ),
        504 => (
            Reason::Timeout,
            "the server was unable to return a response in the time allotted, but may still be processing the request"
                .to_string(),
        ),
        500.. => (
            Reason::InternalError,
            format!("an error on the server ({said:?}) has prevented the request from succeeding"),
        ),
        other => (
            Reason::Unknown,
            format!(
                "the server responded with the status code {other} but did not return more information"
            ),
        ),
    };
    ApiError::new(code.as_u16(), reason, message).with_details(Details::default())
}

/// Why there is no connection, in the words of Go's `net`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct DialError(String);

/// Opens TCP connections to one target.
#[derive(Clone)]
struct Dialer {
    target: Arc<Target>,
    objects: Objects,
    turn: Arc<AtomicUsize>,
}

impl tower::Service<Uri> for Dialer {
    type Response = TokioIo<TcpStream>;
    type Error = DialError;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let dialer = self.clone();
        async move {
            match tokio::time::timeout(CONNECT_TIMEOUT, dialer.dial()).await {
                Ok(connected) => connected,
                Err(_) => Err(DialError("dial tcp: i/o timeout".to_string())),
            }
        }
        .boxed()
    }
}

impl Dialer {
    async fn dial(&self) -> Result<TokioIo<TcpStream>, DialError> {
        let (host, port) = match &*self.target {
            Target::Host { host, port } => (host.clone(), *port),
            Target::Service {
                namespace,
                name,
                port,
            } => {
                // Each new connection takes the next endpoint.
                let turn = self.turn.fetch_add(1, Ordering::Relaxed);
                let (address, port) = resolve::resolve(&self.objects, namespace, name, *port, turn)
                    .await
                    .map_err(|error| DialError(error.message))?;
                (address.to_string(), port)
            }
        };
        let failed = |error: std::io::Error| {
            let why = match error.kind() {
                std::io::ErrorKind::ConnectionRefused => "connect: connection refused".to_string(),
                std::io::ErrorKind::HostUnreachable => "connect: no route to host".to_string(),
                std::io::ErrorKind::NetworkUnreachable => {
                    "connect: network is unreachable".to_string()
                }
                _ => error.to_string(),
            };
            let at = if host.contains(':') {
                format!("[{host}]:{port}")
            } else {
                format!("{host}:{port}")
            };
            DialError(format!("dial tcp {at}: {why}"))
        };
        let stream = TcpStream::connect((host.as_str(), port))
            .await
            .map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        Ok(TokioIo::new(stream))
    }
}
