//! Rendering kubeconfig files.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

/// How the user of a kubeconfig proves who they are.
#[derive(Clone)]
pub enum Credential<'a> {
    /// A client certificate and its key, PEM, embedded.
    Certificate {
        /// The certificate, PEM.
        certificate_pem: &'a str,
        /// Its key, PEM.
        key_pem: &'a str,
    },
    /// A client certificate and its key by path, read by the client at each use.
    CertificateFiles {
        /// Path of the certificate.
        certificate: &'a str,
        /// Path of its key.
        key: &'a str,
    },
    /// A bearer token.
    Token(&'a str),
}

/// The text of a kubeconfig with one cluster, one user and one context named `<user>@<cluster>`.
/// `server` is the API server's URL, `ca_pem` what it is checked with.
pub fn kubeconfig(
    cluster: &str,
    server: &str,
    ca_pem: &str,
    user: &str,
    credential: &Credential<'_>,
) -> String {
    let user_value = match credential {
        Credential::Certificate {
            certificate_pem,
            key_pem,
        } => {
            json!({"client-certificate-data": STANDARD.encode(certificate_pem), "client-key-data": STANDARD.encode(key_pem)})
        }
        Credential::CertificateFiles { certificate, key } => {
            json!({"client-certificate": certificate, "client-key": key})
        }
        Credential::Token(token) => json!({"token": token}),
    };
    let context = format!("{user}@{cluster}");
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": cluster, "cluster": {"certificate-authority-data": STANDARD.encode(ca_pem), "server": server}}],
        "contexts": [{"name": context, "context": {"cluster": cluster, "user": user}}],
        "current-context": context,
        "preferences": {},
        "users": [{"name": user, "user": user_value}],
    });
    // JSON is YAML; the block form is kinder to human readers. Strings and maps alone cannot fail to render.
    serde_yaml_ng::to_string(&config).unwrap_or_else(|_| config.to_string())
}
