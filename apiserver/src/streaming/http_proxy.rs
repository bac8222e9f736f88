//! Passes a request on to a backend and its answer back, as it comes; upgrades included.
//!
//! Upstream: `k8s.io/apimachinery/pkg/util/proxy.UpgradeAwareHandler`.

use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use http_body_util::BodyExt;
use hyper::client::conn::http1;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use keelson_machinery::status::ApiError;

use super::backend::Backend;
use super::websocket::is_upgrade;
use crate::body::{RequestBody, Response, full};

/// Headers that belong to one connection, not to the message (RFC 9110, section 7.6.1).
const HOP_BY_HOP: [HeaderName; 6] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
];

/// Sends `request` to `path_and_query` of the backend.
///
/// # Errors
/// 503 when the backend cannot be reached, 500 for a path that is none.
pub async fn pass_on(
    request: Request<RequestBody>,
    backend: &Backend,
    path_and_query: &str,
) -> Result<Response, ApiError> {
    let sender = backend.connect().await?;
    exchange(request, sender, &backend.authority(), path_and_query).await
}

/// The same over a connection that stands already.
///
/// # Errors
/// 503 when it breaks, 500 for a path that is none.
pub async fn exchange(
    mut request: Request<RequestBody>,
    mut sender: http1::SendRequest<RequestBody>,
    authority: &str,
    path_and_query: &str,
) -> Result<Response, ApiError> {
    let upgrade = is_upgrade(request.headers())
        .then(|| request.extensions_mut().remove::<OnUpgrade>())
        .flatten();
    let (parts, body) = request.into_parts();
    let mut outgoing = Request::builder()
        .method(parts.method)
        .uri(path_and_query)
        .body(body)
        .map_err(ApiError::internal)?;
    *outgoing.headers_mut() = forwarded(&parts.headers, upgrade.is_some());
    let host = HeaderValue::from_str(authority).map_err(ApiError::internal)?;
    outgoing.headers_mut().insert(header::HOST, host);
    let mut response = sender.send_request(outgoing).await.map_err(|e| {
        ApiError::service_unavailable(format!("error trying to reach service: {e}"))
    })?;

    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let Some(client) = upgrade else {
            return Err(ApiError::internal(
                "the backend switched protocols without being asked to",
            ));
        };
        let backend = hyper::upgrade::on(&mut response);
        tokio::spawn(async move {
            let (client, backend) = match tokio::try_join!(client, backend) {
                Ok(both) => both,
                Err(error) => return tracing::debug!(%error, "an upgrade did not come to be"),
            };
            let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
            if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut backend).await {
                tracing::debug!(%error, "an upgraded connection ended");
            }
        });
        let mut answer = Response::new(full(""));
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *answer.headers_mut() = response.headers().clone();
        return Ok(answer);
    }
    let (parts, body) = response.into_parts();
    let mut answer = Response::new(body.map_err(Into::into).boxed_unsync());
    *answer.status_mut() = parts.status;
    *answer.headers_mut() = forwarded(&parts.headers, false);
    Ok(answer)
}

/// The headers without those of the connection and without the client's credentials for this server.
fn forwarded(headers: &HeaderMap, upgrade: bool) -> HeaderMap {
    let mut named: Vec<String> = Vec::new();
    for value in headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
    {
        named.extend(
            value
                .split(',')
                .map(|name| name.trim().to_ascii_lowercase()),
        );
    }
    let mut kept = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        let of_connection = HOP_BY_HOP.contains(name)
            || *name == header::UPGRADE
            || named.iter().any(|n| n == name.as_str());
        if !of_connection && *name != header::AUTHORIZATION {
            kept.append(name, value.clone());
        }
    }
    if upgrade {
        kept.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        for value in headers.get_all(header::UPGRADE) {
            kept.append(header::UPGRADE, value.clone());
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_and_connection_headers_stay_here() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer secret"),
            ("connection", "Upgrade, X-Private"),
            ("upgrade", "SPDY/3.1"),
            ("x-private", "1"),
            ("te", "trailers"),
            ("x-stream-protocol-version", "v4.channel.k8s.io"),
            ("x-stream-protocol-version", "v3.channel.k8s.io"),
        ] {
            headers.append(
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            );
        }
        let names = |upgrade| {
            let kept = forwarded(&headers, upgrade);
            kept.iter()
                .map(|(n, v)| format!("{n}={}", v.to_str().unwrap()))
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(
            names(false),
            "x-stream-protocol-version=v4.channel.k8s.io x-stream-protocol-version=v3.channel.k8s.io"
        );
        assert!(
            names(true).ends_with("connection=Upgrade upgrade=SPDY/3.1"),
            "{}",
            names(true)
        );
    }
}
