//! HTTP GET as probes and lifecycle hooks do it: any certificate is taken, redirects are followed on one host only.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};

use super::run::{dial, host_port};
use crate::podutil;

/// At most this much of a body is read.
const MAX_BODY: usize = 10 * 1024;
/// As Go's client.
const MAX_REDIRECTS: usize = 10;

/// What to get.
#[derive(Clone, Debug)]
pub struct Target {
    https: bool,
    host: String,
    port: u16,
    path: String,
    headers: Vec<(String, String)>,
}

impl Target {
    /// The request that an action describes; the host is the pod unless it names one.
    pub fn new(get: &HTTPGetAction, container: &Container, pod_ip: &str) -> Result<Self, String> {
        let path = get.path.as_deref().unwrap_or_default();
        Ok(Target {
            https: get
                .scheme
                .as_deref()
                .unwrap_or("HTTP")
                .eq_ignore_ascii_case("https"),
            host: get
                .host
                .as_deref()
                .filter(|h| !h.is_empty())
                .unwrap_or(pod_ip)
                .to_owned(),
            port: podutil::resolve_port(&get.port, container)?,
            path: if path.starts_with('/') {
                path.to_owned()
            } else {
                format!("/{path}")
            },
            headers: get
                .http_headers
                .iter()
                .flatten()
                .map(|h| (h.name.clone(), h.value.clone()))
                .collect(),
        })
    }

    fn url(&self) -> String {
        let scheme = if self.https { "https" } else { "http" };
        format!(
            "{scheme}://{}{}",
            host_port(&self.host, self.port),
            self.path
        )
    }
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status code.
    pub code: u16,
    /// The beginning of the body.
    pub body: String,
    /// Whether the answer is a redirect to another host, which was not followed.
    pub redirect_stopped: bool,
}

/// Gets `target`; errors are worded as Go's client words them.
pub async fn get(target: &Target, user_agent: &str, timeout: Duration) -> Result<Response, String> {
    let url = target.url();
    let work = async {
        let mut target = target.clone();
        for _ in 0..MAX_REDIRECTS {
            let (response, location) = get_once(&target, user_agent, timeout).await?;
            let Some(location) = location.filter(|_| (300..400).contains(&response.code)) else {
                return Ok(response);
            };
            match follow(&target, &location) {
                Some(next) => target = next,
                None => {
                    return Ok(Response {
                        redirect_stopped: true,
                        ..response
                    });
                }
            }
        }
        Err(format!("stopped after {MAX_REDIRECTS} redirects"))
    };
    match tokio::time::timeout(timeout, work).await {
        Ok(Ok(r)) => Ok(r),
        Ok(Err(e)) => Err(format!("Get {url:?}: {e}")),
        Err(_) => Err(format!(
            "Get {url:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        )),
    }
}

/// Where a redirect leads, if it stays on the host.
fn follow(from: &Target, location: &str) -> Option<Target> {
    let mut next = from.clone();
    if location.starts_with('/') && !location.starts_with("//") {
        next.path = location.to_owned();
        return Some(next);
    }
    let uri: ::http::Uri = location.parse().ok()?;
    let host = uri.host()?.trim_matches(['[', ']']);
    if host != from.host {
        return None;
    }
    next.https = uri.scheme_str() == Some("https");
    next.port = uri.port_u16().unwrap_or(if next.https { 443 } else { 80 });
    next.path = uri
        .path_and_query()
        .map_or_else(|| "/".to_owned(), |p| p.as_str().to_owned());
    Some(next)
}

trait Io: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send> Io for T {}

async fn get_once(
    t: &Target,
    user_agent: &str,
    timeout: Duration,
) -> Result<(Response, Option<String>), String> {
    let tcp = dial(&t.host, t.port, timeout).await?;
    let io: Box<dyn Io> = if t.https {
        let name = ServerName::try_from(t.host.clone()).map_err(|e| e.to_string())?;
        let connector = tokio_rustls::TlsConnector::from(Arc::new(lenient_tls()?));
        Box::new(
            connector
                .connect(name, tcp)
                .await
                .map_err(|e| e.to_string())?,
        )
    } else {
        Box::new(tcp)
    };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io))
        .await
        .map_err(|e| e.to_string())?;
    let mut request = hyper::Request::builder().method("GET").uri(&t.path);
    let mut seen = (false, false, false);
    for (name, value) in &t.headers {
        match name.to_ascii_lowercase().as_str() {
            "host" => seen.0 = true,
            "user-agent" => seen.1 = true,
            "accept" => {
                seen.2 = true;
                // An empty value means: send no such header.
                if value.is_empty() {
                    continue;
                }
            }
            _ => {}
        }
        request = request.header(name, value);
    }
    if !seen.0 {
        request = request.header("Host", host_port(&t.host, t.port));
    }
    if !seen.1 {
        request = request.header("User-Agent", user_agent);
    }
    if !seen.2 {
        request = request.header("Accept", "*/*");
    }
    let request = request
        .header("Connection", "close")
        .body(Empty::<Bytes>::new())
        .map_err(|e| e.to_string())?;
    let exchange =
        async {
            let mut response = sender.send_request(request).await.map_err(|e| {
                match e.is_incomplete_message() {
                    true => "EOF".to_owned(),
                    false => e.to_string(),
                }
            })?;
            let mut body = Vec::new();
            while let Some(frame) = response.body_mut().frame().await {
                if let Some(data) = frame.map_err(|e| e.to_string())?.data_ref() {
                    body.extend_from_slice(data);
                }
                if body.len() >= MAX_BODY {
                    body.truncate(MAX_BODY);
                    break;
                }
            }
            let location = response
                .headers()
                .get("location")
                .and_then(|v| v.to_str().ok())
                .map(str::to_owned);
            let answer = Response {
                code: response.status().as_u16(),
                body: String::from_utf8_lossy(&body).into_owned(),
                redirect_stopped: false,
            };
            Ok((answer, location))
        };
    tokio::pin!(exchange);
    tokio::pin!(connection);
    tokio::select! {
        r = &mut exchange => return r,
        _ = &mut connection => {}
    }
    exchange.await
}

fn lenient_tls() -> Result<rustls::ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(
        rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
            .with_no_client_auth(),
    )
}

/// Probes take any certificate: they ask whether something answers, not who it is.
#[derive(Debug)]
struct AnyCertificate(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
