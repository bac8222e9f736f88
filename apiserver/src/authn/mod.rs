//! Authentication: turns credentials into a [`UserInfo`]. Authenticators are asked in order; the first that
//! recognises a credential decides.

pub mod tls;

use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;

use crate::request::UserInfo;

/// What is known of the connection a request came by.
#[derive(Clone, Debug, Default)]
pub struct ConnectionInfo {
    /// The peer's address; `None` for callers in the same process.
    pub remote: Option<SocketAddr>,
    /// The client certificate chain, leaf first, DER; empty when none was presented. The handshake has proven that
    /// the peer holds the leaf's key and nothing more (see [`tls::AnyClientCertificate`]): who issued it, and whether
    /// it is in its time, is for the authenticators to check, so that a bad certificate gets a 401 and not a broken
    /// connection.
    pub peer_certificates: Vec<Vec<u8>>,
    /// Set for callers in the same process, whose identity was fixed when their service was made.
    pub in_process: Option<Arc<UserInfo>>,
}

/// A credential was presented and is not acceptable.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct AuthenticationError(pub String);

/// One way of proving who you are.
#[async_trait]
pub trait Authenticator: Send + Sync + 'static {
    /// `Ok(None)`: no credential of this kind was presented. `Err`: one was presented and is bad (401).
    async fn authenticate(
        &self,
        request: &http::request::Parts,
        connection: &ConnectionInfo,
    ) -> Result<Option<UserInfo>, AuthenticationError>;
}
