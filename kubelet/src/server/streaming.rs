//! exec, attach and port-forward: the runtime has a streaming server of its own; the kubelet asks it for a URL and
//! then hands the client's upgraded connection through, byte for byte.
//!
//! Nothing is translated here: runtime and client speak SPDY/3.1 or the older WebSocket protocols to each other, and
//! the API server turns newer ones into SPDY before they reach a kubelet (ARCHITECTURE.md, "Decisions").
//! Upstream: `pkg/kubelet/server.Server.getExec`, `proxyStream`.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use tokio::net::TcpStream;

use super::{Body, Server, text};
use crate::cri::{AttachRequest, CriResult, ExecRequest, PodSandboxState, PortForwardRequest};
use crate::podutil;

/// Which of the three is asked for, and of what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Session<'a> {
    /// A command in a container.
    Exec(&'a str),
    /// A container's own streams.
    Attach(&'a str),
    /// Ports of a pod.
    PortForward,
}

/// Answers a request whose path names `namespace`, `pod` and the session.
pub async fn handle(
    server: &Arc<Server>,
    namespace: &str,
    pod: &str,
    session: Session<'_>,
    request: Request<Incoming>,
) -> Response<Body> {
    if request.method() != Method::GET && request.method() != Method::POST {
        return text(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed");
    }
    let Some(found) = server.manager.find(namespace, pod) else {
        return text(StatusCode::NOT_FOUND, "pod does not exist");
    };
    let options = Options::parse(request.uri().query().unwrap_or_default());
    if session != Session::PortForward && !(options.stdin || options.stdout || options.stderr) {
        return text(
            StatusCode::BAD_REQUEST,
            "you must specify at least 1 of stdin, stdout, stderr",
        );
    }
    let url = match url(server, &found, session, options).await {
        Ok(url) => url,
        Err(refusal) => return refusal,
    };
    match pass_on(&url, request).await {
        Ok(response) => response,
        Err(error) => text(
            StatusCode::BAD_GATEWAY,
            format!("error dialing the runtime's streaming server: {error}"),
        ),
    }
}

/// What the query of a session asks for, by the kubelet API's names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Options {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
    command: Vec<String>,
}

impl Options {
    fn parse(query: &str) -> Self {
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        let mut options = Options::default();
        for pair in pairs {
            let one = super::routes::query(pair);
            for (name, value) in one {
                let on = matches!(value.as_str(), "1" | "true");
                match name.as_str() {
                    "input" => options.stdin = on,
                    "output" => options.stdout = on,
                    "error" => options.stderr = on,
                    "tty" => options.tty = on,
                    "command" => options.command.push(value),
                    _ => {}
                }
            }
        }
        // A terminal has one output (CRI: "if tty is true, stderr MUST be false").
        options.stderr &= !options.tty;
        options
    }
}

/// The runtime's URL for the session.
async fn url(
    server: &Server,
    pod: &Pod,
    session: Session<'_>,
    options: Options,
) -> Result<String, Response<Body>> {
    let runtime = &server.shared.runtime;
    let answer: CriResult<String> = match session {
        Session::Exec(container) => {
            let container_id = running(server, pod, container)?;
            let Options {
                stdin,
                stdout,
                stderr,
                tty,
                command,
            } = options;
            runtime
                .exec(ExecRequest {
                    container_id,
                    cmd: command,
                    tty,
                    stdin,
                    stdout,
                    stderr,
                })
                .await
        }
        Session::Attach(container) => {
            let container_id = running(server, pod, container)?;
            // Whether there is a terminal is the container's property, not the client's wish.
            let tty = podutil::find_container(pod, container)
                .and_then(|c| c.tty)
                .unwrap_or(false);
            let Options {
                stdin,
                stdout,
                stderr,
                ..
            } = options;
            runtime
                .attach(AttachRequest {
                    container_id,
                    stdin,
                    tty,
                    stdout,
                    stderr: stderr && !tty,
                })
                .await
        }
        Session::PortForward => {
            let uid = podutil::uid(pod);
            let internal = |error: String| text(StatusCode::INTERNAL_SERVER_ERROR, error);
            let sandboxes = runtime
                .list_pod_sandbox(Default::default())
                .await
                .map_err(|e| internal(e.to_string()))?;
            let ready = |state| state == PodSandboxState::Ready as i32;
            let of_pod = sandboxes
                .into_iter()
                .find(|s| ready(s.state) && s.metadata.as_ref().is_some_and(|m| m.uid == uid));
            let pod_sandbox_id = of_pod
                .ok_or_else(|| internal(format!("pod not found ({:?})", podutil::name(pod))))?
                .id;
            runtime
                .port_forward(PortForwardRequest {
                    pod_sandbox_id,
                    port: Vec::new(),
                })
                .await
        }
    };
    answer.map_err(|error| text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

/// The id of the container's present run.
fn running(server: &Server, pod: &Pod, container: &str) -> Result<String, Response<Body>> {
    let status = server
        .shared
        .status
        .get(podutil::uid(pod))
        .or_else(|| pod.status.clone())
        .unwrap_or_default();
    let lists = [
        &status.container_statuses,
        &status.init_container_statuses,
        &status.ephemeral_container_statuses,
    ];
    let found = lists
        .into_iter()
        .flatten()
        .find_map(|list| podutil::status_of(list, container));
    let id = found
        .filter(|s| s.state.as_ref().is_some_and(|s| s.running.is_some()))
        .and_then(|s| s.container_id.as_deref());
    id.and_then(|id| id.split("://").nth(1))
        .map(str::to_owned)
        .ok_or_else(|| {
            text(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("container not found ({container:?})"),
            )
        })
}

/// Why the runtime's streaming server could not be used.
#[derive(Debug, thiserror::Error)]
enum PassError {
    #[error("its URL {0:?} cannot be used")]
    Url(String),
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Hyper(#[from] hyper::Error),
    #[error(transparent)]
    Http(#[from] http::Error),
}

/// Sends the request on and joins the two connections if both sides upgrade.
async fn pass_on(url: &str, mut request: Request<Incoming>) -> Result<Response<Body>, PassError> {
    let bad = || PassError::Url(url.to_owned());
    let target: http::Uri = url.parse().map_err(|_| bad())?;
    // CRI streaming servers listen on the node itself, without TLS.
    let (Some("http"), Some(authority)) = (target.scheme_str(), target.authority()) else {
        return Err(bad());
    };
    let stream = TcpStream::connect((
        authority.host().trim_matches(['[', ']']),
        authority.port_u16().unwrap_or(80),
    ))
    .await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a connection to the runtime's streaming server ended");
        }
    });
    let path = target.path_and_query().map_or("/", |p| p.as_str());
    let mut outgoing = Request::builder()
        .method(request.method().clone())
        .uri(path)
        .body(Empty::<bytes::Bytes>::new())?;
    *outgoing.headers_mut() = forwarded(request.headers());
    outgoing.headers_mut().insert(
        header::HOST,
        HeaderValue::from_str(authority.as_str()).map_err(|_| bad())?,
    );
    let mut response = sender.send_request(outgoing).await?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let (client, runtime) = (
            hyper::upgrade::on(&mut request),
            hyper::upgrade::on(&mut response),
        );
        tokio::spawn(async move {
            let (client, runtime) = match tokio::try_join!(client, runtime) {
                Ok(both) => both,
                Err(error) => return tracing::debug!(%error, "an upgrade did not come to be"),
            };
            let (mut client, mut runtime) = (TokioIo::new(client), TokioIo::new(runtime));
            if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut runtime).await {
                tracing::debug!(%error, "a streaming session ended");
            }
        });
        let mut answer = text(StatusCode::SWITCHING_PROTOCOLS, "");
        *answer.headers_mut() = response.headers().clone();
        return Ok(answer);
    }
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    Ok(text(status, String::from_utf8_lossy(&body).into_owned()))
}

/// The client's headers without its credentials.
fn forwarded(headers: &HeaderMap) -> HeaderMap {
    let mut kept = headers.clone();
    kept.remove(header::AUTHORIZATION);
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_from_the_query() {
        let options = |stdin, stdout, stderr, tty, command: &[&str]| Options {
            stdin,
            stdout,
            stderr,
            tty,
            command: command.iter().map(|w| (*w).to_owned()).collect(),
        };
        for (query, want) in [
            ("", options(false, false, false, false, &[])),
            (
                "input=1&output=1&error=1&command=sh&command=-c&command=echo%20a%26b",
                options(true, true, true, false, &["sh", "-c", "echo a&b"]),
            ),
            (
                "output=1&error=1&tty=1&command=sh",
                options(false, true, false, true, &["sh"]),
            ),
        ] {
            assert_eq!(Options::parse(query), want, "{query}");
        }
    }
}
