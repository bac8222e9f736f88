//! Ways to a `kube::Client`. No client-side throttling: the server's priority and fairness is the one place that says
//! "too many", and its 429 answers are honoured by kube's own retry.

use std::path::Path;

use http::header::{HeaderValue, USER_AGENT};
use kube::client::Body;
use kube::client::ClientBuilder;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use thiserror::Error;
use tower::util::MapResponseLayer;
use tower::{BoxError, Service, ServiceExt};

use crate::zero_times;

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
    from_config(config).map_err(|source| ClientError::Build {
        path: path.display().to_string(),
        source: Box::new(source),
    })
}

/// As `Client::try_from`, for objects as servers really send them: an unset time does not end a list or watch.
///
/// # Errors
/// Credentials or TLS material that cannot be used. The server is not contacted.
pub fn from_config(config: Config) -> kube::Result<Client> {
    let tolerant = MapResponseLayer::new(zero_times::filled_in);
    Ok(ClientBuilder::try_from(config)?
        .with_layer(&tolerant)
        .build())
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
    Ok(from_in_process(service))
}

/// As [`from_service`], with the user agent that kube sends.
pub fn from_in_process<S, B>(service: S) -> Client
where
    S: Service<http::Request<Body>, Response = http::Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    Client::new(service.map_response(zero_times::filled_in), "default")
}

fn agent_header(user_agent: &str) -> Result<HeaderValue, ClientError> {
    HeaderValue::from_str(user_agent).map_err(|_| ClientError::UserAgent(user_agent.to_owned()))
}
