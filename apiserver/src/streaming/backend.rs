//! A connection to a kubelet, pod or service: TCP, TLS where asked for, HTTP/1.1 on top.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use keelson_machinery::status::ApiError;
use keelson_machinery::value::Value;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::body::{RequestBody, request_body};

/// How long a connection may take to stand, TLS included (upstream's dialer: 30 s).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// How much of a refusal is read.
const MAX_REFUSAL: usize = 64 * 1024;

/// Somebody to connect to.
#[derive(Clone)]
pub struct Backend {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Client configuration; `None` for plain HTTP.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// The name in its certificate, when that is not the host.
    pub server_name: Option<String>,
}

impl Backend {
    /// Connects and speaks HTTP/1.1.
    ///
    /// # Errors
    /// 503 with the cause when nobody answers or TLS fails, as upstream's `proxy.ErrorResponder` has it.
    pub async fn connect(&self) -> Result<http1::SendRequest<RequestBody>, ApiError> {
        let unavailable = |why: String| {
            ApiError::service_unavailable(format!("error trying to reach service: {why}"))
        };
        match timeout(CONNECT_TIMEOUT, self.handshake()).await {
            Ok(Ok(sender)) => Ok(sender),
            Ok(Err(why)) => Err(unavailable(why)),
            Err(_) => Err(unavailable(format!(
                "dial tcp {}:{}: i/o timeout",
                self.host, self.port
            ))),
        }
    }

    async fn handshake(&self) -> Result<http1::SendRequest<RequestBody>, String> {
        let text = |e: std::io::Error| format!("dial tcp {}:{}: {e}", self.host, self.port);
        let stream = TcpStream::connect((self.host.as_str(), self.port))
            .await
            .map_err(text)?;
        stream.set_nodelay(true).map_err(text)?;
        match &self.tls {
            None => http1_over(TokioIo::new(stream)).await,
            Some(config) => {
                let name = self.server_name.as_ref().unwrap_or(&self.host);
                let name =
                    ServerName::try_from(name.clone()).map_err(|e| format!("{name}: {e}"))?;
                let stream = TlsConnector::from(config.clone())
                    .connect(name, stream)
                    .await
                    .map_err(|e| format!("tls: {e}"))?;
                http1_over(TokioIo::new(stream)).await
            }
        }
    }

    /// The `Host` header for requests.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// Asks for a SPDY connection. `protocols` are offered by preference; the one that was chosen comes back.
    ///
    /// # Errors
    /// The backend's own Status when it sent one; otherwise 500 with what it said.
    pub async fn spdy(
        &self,
        path_and_query: &str,
        protocols: &[&str],
    ) -> Result<(TokioIo<Upgraded>, String), ApiError> {
        let mut sender = self.connect().await?;
        let mut request = Request::post(path_and_query)
            .header(header::HOST, self.authority())
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "SPDY/3.1")
            .header(header::CONTENT_LENGTH, "0");
        for protocol in protocols {
            request = request.header("X-Stream-Protocol-Version", *protocol);
        }
        let request = request
            .body(request_body(Full::new(Bytes::new())))
            .map_err(ApiError::internal)?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|e| ApiError::internal(format!("error sending request: {e}")))?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(refusal(response).await);
        }
        let chosen = chosen_protocol(response.headers(), protocols)?;
        let upgraded = hyper::upgrade::on(response)
            .await
            .map_err(|e| ApiError::internal(format!("unable to upgrade connection: {e}")))?;
        Ok((TokioIo::new(upgraded), chosen))
    }
}

async fn http1_over<S>(io: TokioIo<S>) -> Result<http1::SendRequest<RequestBody>, String>
where
    TokioIo<S>: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(io).await.map_err(|e| e.to_string())?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "connection to a backend ended");
        }
    });
    Ok(sender)
}

/// A server that names no protocol speaks the oldest one offered (upstream `spdystream`'s rule for empty headers).
fn chosen_protocol(headers: &HeaderMap, offered: &[&str]) -> Result<String, ApiError> {
    let Some(chosen) = headers.get("X-Stream-Protocol-Version") else {
        return Ok(String::new());
    };
    match chosen.to_str() {
        Ok(chosen) if offered.contains(&chosen) => Ok(chosen.to_owned()),
        _ => Err(ApiError::internal(format!(
            "unable to upgrade connection: server chose protocol {chosen:?}, which was not offered"
        ))),
    }
}

/// What a backend that does not upgrade has to say.
async fn refusal(response: Response<Incoming>) -> ApiError {
    let body = match Limited::new(response.into_body(), MAX_REFUSAL)
        .collect()
        .await
    {
        Ok(body) => body.to_bytes(),
        Err(error) => {
            return ApiError::internal(format!(
                "unable to upgrade connection: unable to read error from server response: {error}"
            ));
        }
    };
    if let Some(error) = serde_json::from_slice::<Value>(&body)
        .ok()
        .and_then(|status| ApiError::from_value(&status))
    {
        return error;
    }
    ApiError::internal(format!(
        "unable to upgrade connection: {}",
        String::from_utf8_lossy(&body).trim()
    ))
}
