//! Ways to a `kube::Client`. No client-side throttling: the server's priority and fairness is the one place that says
//! "too many", and its 429 answers are honoured by kube's own retry.

use std::path::Path;

use http::header::{HeaderValue, USER_AGENT};
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use thiserror::Error;
use tower::{BoxError, Service, ServiceExt};

/// Why no client could be made.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The kubeconfig cannot be read, parsed, or names what it does not hold.
    #[error("kubeconfig {path}: {source}")]
    Kubeconfig {
        /// The file.
        path: String,
        /// What is wrong with it.
        #[source]
        source: kube::config::KubeconfigError,
    },
    /// Credentials or TLS material cannot be used.
    #[error("client for {path}: {source}")]
    Build {
        /// The file the configuration came from.
        path: String,
        /// What is wrong with it.
        #[source]
        source: Box<kube::Error>,
    },
    /// The user agent holds characters that no HTTP header may hold.
    #[error("user agent {0:?} is no header value")]
    UserAgent(String),
}

/// A client for the current context of a kubeconfig file.
///
/// # Errors
/// See [`ClientError`]. The server is not contacted.
pub async fn from_kubeconfig(path: &Path, user_agent: &str) -> Result<Client, ClientError> {
    let config = kubeconfig(path, user_agent).await?;
    Client::try_from(config).map_err(|source| ClientError::Build {
        path: path.display().to_string(),
        source: Box::new(source),
    })
}

/// The configuration behind [`from_kubeconfig`], for callers that need the server's address or certificates too.
///
/// # Errors
/// As [`from_kubeconfig`].
pub async fn kubeconfig(path: &Path, user_agent: &str) -> Result<Config, ClientError> {
    let wrap = |source| ClientError::Kubeconfig {
        path: path.display().to_string(),
        source,
    };
    let file = Kubeconfig::read_from(path).map_err(wrap)?;
    let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .map_err(wrap)?;
    config.headers.push((USER_AGENT, agent_header(user_agent)?));
    Ok(config)
}

/// A client whose transport is a service in this process, such as the API server's for one identity. The bytes, the
/// authorization and the admission are those of the network path; only the socket is missing.
///
/// # Errors
/// [`ClientError::UserAgent`].
pub fn from_service<S, B>(service: S, user_agent: &str) -> Result<Client, ClientError>
where
    S: Service<http::Request<Body>, Response = http::Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let agent = agent_header(user_agent)?;
    let service = service.map_request(move |mut request: http::Request<Body>| {
        request.headers_mut().insert(USER_AGENT, agent.clone());
        request
    });
    Ok(Client::new(service, "default"))
}

fn agent_header(user_agent: &str) -> Result<HeaderValue, ClientError> {
    HeaderValue::from_str(user_agent).map_err(|_| ClientError::UserAgent(user_agent.to_owned()))
}
