//! Connections through the server: log, exec, attach, port-forward towards kubelets, and the proxy subresources of
//! pods, services and nodes.
//!
//! [`target`] finds out where to connect, [`backend`] connects, [`http_proxy`] passes plain requests and upgrades
//! on, byte for byte. Clients that speak the WebSocket protocols of today are translated to SPDY, which every
//! kubelet and runtime understands: [`remote_command`] for exec and attach, [`tunnel`] for port-forward. [`reader`] sends
//! a log over a WebSocket, [`links`] leads the links of pages through the proxy.

pub mod backend;
pub mod http_proxy;
pub mod links;
pub mod reader;
pub mod remote_command;
pub mod target;
pub mod tls;
pub mod tunnel;
pub mod websocket;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

use crate::config::KubeletClientConfig;
use target::KubeletAccess;
use tls::TlsError;

/// How the server reaches what lies behind it.
pub struct Outward {
    /// Kubelets.
    pub kubelets: KubeletAccess,
    /// TLS towards pods and services, whose certificates nobody can check.
    pub unchecked: Arc<rustls::ClientConfig>,
}

impl Outward {
    /// Prepares TLS; nothing is connected.
    ///
    /// # Errors
    /// When the kubelet client certificate or authority cannot be used.
    pub fn new(
        config: &KubeletClientConfig,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, TlsError> {
        let kubelets = KubeletAccess {
            tls: tls::kubelet_client(config, provider)?,
            preferred_address_types: config.preferred_address_types.clone(),
        };
        Ok(Outward {
            kubelets,
            unchecked: tls::unchecked_client(provider)?,
        })
    }
}
