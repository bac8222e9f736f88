//! A small HTTPS client made from a kubeconfig: benchmarks measure the server, so theirs must be thin.

use std::path::Path;

use anyhow::{Context, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as Hyper;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;

/// A client of one API server, as one user.
#[derive(Clone)]
pub struct Client {
    hyper: Hyper<HttpsConnector<HttpConnector>, Full<Bytes>>,
    server: String,
}

impl Client {
    /// Reads the current context of a kubeconfig with embedded certificates.
    ///
    /// # Errors
    /// When a part is missing or cannot be used.
    pub fn from_kubeconfig(path: &Path) -> anyhow::Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let config: Value = serde_yaml_ng::from_str(&text)
            .with_context(|| format!("parsing {}", path.display()))?;
        let named = |list: &str, name: &Value| {
            config[list]
                .as_array()
                .into_iter()
                .flatten()
                .find(|entry| entry["name"] == *name)
                .cloned()
        };
        let context = named("contexts", &config["current-context"])
            .context("the kubeconfig has no current context")?;
        let cluster = named("clusters", &context["context"]["cluster"])
            .context("the kubeconfig's context names no cluster")?;
        let user = named("users", &context["context"]["user"])
            .context("the kubeconfig's context names no user")?;
        let pem = |value: &Value| -> anyhow::Result<Vec<u8>> {
            Ok(STANDARD.decode(
                value
                    .as_str()
                    .context("the kubeconfig lacks embedded certificates")?,
            )?)
        };

        let mut roots = RootCertStore::empty();
        for certificate in
            CertificateDer::pem_slice_iter(&pem(&cluster["cluster"]["certificate-authority-data"])?)
        {
            roots.add(certificate?)?;
        }
        let chain = CertificateDer::pem_slice_iter(&pem(&user["user"]["client-certificate-data"])?)
            .collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(&pem(&user["user"]["client-key-data"])?)?;
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_only()
            .enable_http2()
            .build();
        let hyper = Hyper::builder(TokioExecutor::new())
            .http2_only(true)
            .build(connector);
        let server = cluster["cluster"]["server"]
            .as_str()
            .context("the kubeconfig's cluster has no server")?;
        Ok(Client {
            hyper,
            server: server.to_owned(),
        })
    }

    /// Sends a request with a JSON body, or none, and reads the whole answer.
    ///
    /// # Errors
    /// When no answer comes.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: impl Into<Bytes>,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.server))
            .header(http::header::CONTENT_TYPE, content_type)
            .body(Full::new(body.into()))?;
        let response = self.hyper.request(request).await?;
        let status = response.status();
        Ok((status, response.into_body().collect().await?.to_bytes()))
    }

    /// Reads an object or list.
    ///
    /// # Errors
    /// When the answer is not 200 with JSON.
    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        let (status, body) = self
            .send(Method::GET, path, "application/json", Bytes::new())
            .await?;
        if status != StatusCode::OK {
            bail!("GET {path}: {status}: {}", String::from_utf8_lossy(&body));
        }
        Ok(serde_json::from_slice(&body)?)
    }

    /// Whether `/readyz` says "ok".
    pub async fn is_ready(&self) -> bool {
        matches!(self.send(Method::GET, "/readyz", "text/plain", Bytes::new()).await, Ok((StatusCode::OK, body)) if body == "ok")
    }
}
