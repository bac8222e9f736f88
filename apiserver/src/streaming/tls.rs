//! Client-side TLS: towards kubelets, towards pods and services behind the proxy subresources, and towards aggregated API
//! servers.

use std::sync::Arc;

use hyper_rustls::ConfigBuilderExt;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::config::{KubeletClientConfig, PemPair};

/// Why TLS towards another server cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A PEM file that holds no certificate or key.
    #[error("PEM: {0}")]
    Pem(#[from] rustls::pki_types::pem::Error),
    /// A certificate or key that cannot be used.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    /// A list of authorities with none in it.
    #[error("no certificate authority in the PEM")]
    NoAuthority,
    /// The machine's own list of authorities.
    #[error("the system's certificate authorities: {0}")]
    System(std::io::Error),
}

/// Whose certificates a server may show.
#[derive(Clone, Copy, Debug)]
pub enum Trust<'a> {
    /// Anybody's.
    Any,
    /// Those of the authorities that the machine trusts.
    System,
    /// Those of the authorities in this PEM.
    Authorities(&'a [u8]),
}

/// A client's side of TLS, with a certificate of its own where there is one.
///
/// # Errors
/// When the PEM, or the machine's list of authorities, cannot be used.
pub fn client(
    trust: Trust<'_>,
    own: Option<&PemPair>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?;
    let builder = match trust {
        Trust::Authorities(pem) => {
            let mut roots = RootCertStore::empty();
            for certificate in CertificateDer::pem_slice_iter(pem) {
                roots.add(certificate?)?;
            }
            if roots.is_empty() {
                return Err(TlsError::NoAuthority);
            }
            builder.with_root_certificates(roots)
        }
        Trust::System => builder.with_native_roots().map_err(TlsError::System)?,
        Trust::Any => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Unchecked(provider.clone()))),
    };
    let config = match own {
        Some(pair) => {
            let chain = CertificateDer::pem_slice_iter(pair.certificate.as_bytes())
                .collect::<Result<Vec<_>, _>>()?;
            builder
                .with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(pair.key.as_bytes())?)?
        }
        None => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

/// Towards kubelets: their certificates are checked if an authority is configured, as upstream does.
///
/// # Errors
/// When a file's content cannot be used.
pub fn kubelet_client(
    config: &KubeletClientConfig,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let trust = match &config.certificate_authority {
        Some(pem) => Trust::Authorities(pem.as_bytes()),
        None => Trust::Any,
    };
    client(trust, config.client.as_ref(), provider)
}

/// Towards pods and services: nobody can know their certificates (upstream's proxy transport does not check either).
///
/// # Errors
/// When the provider supports no protocol version.
pub fn unchecked_client(provider: &Arc<CryptoProvider>) -> Result<Arc<ClientConfig>, TlsError> {
    client(Trust::Any, None, provider)
}

/// Takes any certificate, whose key must still sign the handshake.
#[derive(Debug)]
struct Unchecked(Arc<CryptoProvider>);

impl ServerCertVerifier for Unchecked {
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
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
