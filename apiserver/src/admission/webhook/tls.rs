//! TLS towards webhooks: their certificates are checked against the bundle of their configuration, or against the
//! machine's authorities without one.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper_rustls::ConfigBuilderExt as _;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

/// Client configuration for a `caBundle` (base64 of PEM, as the API has it); an empty one means the machine's
/// authorities.
///
/// # Errors
/// Words for the client when the bundle cannot be used.
pub fn client_config(
    ca_bundle: &str,
    provider: &Arc<CryptoProvider>,
) -> Result<ClientConfig, String> {
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    if ca_bundle.is_empty() {
        return Ok(builder
            .with_native_roots()
            .map_err(|e| e.to_string())?
            .with_no_client_auth());
    }
    let unusable = || "unable to load root certificates: unable to parse bytes as PEM block";
    let pem = STANDARD.decode(ca_bundle).map_err(|_| unusable())?;
    let mut roots = RootCertStore::empty();
    let mut given = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|_| unusable())?;
        roots
            .add(certificate.clone())
            .map_err(|e| format!("unable to load root certificates: {e}"))?;
        given.push(certificate);
    }
    if given.is_empty() {
        return Err(unusable().to_string());
    }
    let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|e| e.to_string())?;
    Ok(builder
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Bundle { inner, given }))
        .with_no_client_auth())
}

/// Checks certificates as Go does: one that stands in the bundle itself is trusted, also when it says that it is an
/// authority. Charts with self-signed certificates rely on it.
#[derive(Debug)]
struct Bundle {
    inner: Arc<WebPkiServerVerifier>,
    given: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Bundle {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if !self.given.iter().any(|given| **given == **end_entity) {
            return self.inner.verify_server_cert(
                end_entity,
                intermediates,
                server_name,
                ocsp,
                now,
            );
        }
        let (_, parsed) = x509_parser::parse_x509_certificate(end_entity)
            .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        if now < parsed.validity().not_before.timestamp() {
            return Err(Error::InvalidCertificate(CertificateError::NotValidYet));
        }
        if now > parsed.validity().not_after.timestamp() {
            return Err(Error::InvalidCertificate(CertificateError::Expired));
        }
        let parsed = ParsedCertificate::try_from(end_entity)?;
        rustls::client::verify_server_name(&parsed, server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// A TLS failure in the words of Go's `crypto/tls`, which people search for.
pub fn describe(error: &Error) -> String {
    const FAILED: &str = "tls: failed to verify certificate: x509: ";
    match error {
        Error::InvalidCertificate(why) => match why {
            CertificateError::UnknownIssuer => {
                format!("{FAILED}certificate signed by unknown authority")
            }
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => {
                format!("{FAILED}certificate has expired or is not yet valid")
            }
            CertificateError::NotValidForNameContext {
                expected,
                presented,
            } => {
                let wanted = expected.to_str();
                if presented.is_empty() {
                    format!(
                        "{FAILED}certificate is not valid for any names, but wanted to match {wanted}"
                    )
                } else {
                    let names: Vec<&str> = presented
                        .iter()
                        .map(|name| {
                            name.strip_prefix("DnsName(\"")
                                .and_then(|name| name.strip_suffix("\")"))
                                .unwrap_or(name)
                        })
                        .collect();
                    format!(
                        "{FAILED}certificate is valid for {}, not {wanted}",
                        names.join(", ")
                    )
                }
            }
            other => format!("{FAILED}{other}"),
        },
        other => format!("tls: {other}"),
    }
}
