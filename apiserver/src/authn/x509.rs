//! Client certificates: who one stands for (`k8s.io/apiserver/pkg/authentication/request/x509`), and the front proxy
//! that may speak for others in headers (`.../request/headerrequest`).

use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use keelson_machinery::clock::Clock;
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use sha2::{Digest, Sha256};
use x509_parser::prelude::X509Certificate;

use super::recent::Recent;
use super::{AuthenticationError, ConfigError};
use crate::request::UserInfo;

/// The key of [`UserInfo::extra`] that names the credential (`user.CredentialIDKey`).
pub const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// Certificates remembered as checked; one per client and a little more.
const REMEMBERED: usize = 4096;

/// A checked certificate: its subject, until its end.
#[derive(Clone)]
struct Checked {
    subject: Arc<Subject>,
    not_after: i64,
}

/// What a checked certificate says.
pub(super) struct Subject {
    common_name: String,
    user: Result<Option<UserInfo>, String>,
}

/// A set of authorities, and what they have vouched for.
pub(super) struct Authorities {
    verifier: Arc<dyn ClientCertVerifier>,
    checked: Recent<[u8; 32], Checked>,
}

/// All certificates of a PEM text as trust anchors.
pub fn root_store(pem: &str) -> Result<RootCertStore, ConfigError> {
    let mut roots = RootCertStore::empty();
    for der in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let der = der.map_err(|error| ConfigError::Certificate(error.to_string()))?;
        roots
            .add(der)
            .map_err(|error| ConfigError::Certificate(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(ConfigError::Certificate("holds no certificate".into()));
    }
    Ok(roots)
}

impl Authorities {
    pub(super) fn new(pem: &str, provider: Arc<CryptoProvider>) -> Result<Self, ConfigError> {
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(root_store(pem)?), provider)
                .build()
                .map_err(|error| ConfigError::Certificate(error.to_string()))?;
        Ok(Authorities {
            verifier,
            checked: Recent::new(REMEMBERED),
        })
    }

    /// Checks a chain (leaf first, not empty) at the time of `clock`.
    pub(super) fn check(
        &self,
        chain: &[Vec<u8>],
        clock: &Clock,
    ) -> Result<Arc<Subject>, AuthenticationError> {
        let bad = |why: String| AuthenticationError(format!("verifying certificate failed: {why}"));
        let (leaf, intermediates) = chain
            .split_first()
            .ok_or_else(|| bad("no certificate".into()))?;
        let now = clock.now().as_second();
        let fingerprint: [u8; 32] = Sha256::digest(leaf).into();
        // Only leaves signed by an authority itself are remembered: an intermediate has an end of its own.
        if intermediates.is_empty()
            && let Some(checked) = self.checked.get(&fingerprint)
            && now <= checked.not_after
        {
            return Ok(checked.subject);
        }
        let as_der = |der: &Vec<u8>| CertificateDer::from(der.clone());
        let intermediates: Vec<_> = intermediates.iter().map(as_der).collect();
        let time = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(now).unwrap_or(0)));
        self.verifier
            .verify_client_cert(&as_der(leaf), &intermediates, time)
            .map_err(|error| bad(error.to_string()))?;
        let (_, certificate) =
            x509_parser::parse_x509_certificate(leaf).map_err(|error| bad(error.to_string()))?;
        let subject = Arc::new(subject(&certificate, &fingerprint));
        if intermediates.is_empty() {
            self.checked.put(
                fingerprint,
                Checked {
                    subject: subject.clone(),
                    not_after: certificate.validity().not_after.timestamp(),
                },
            );
        }
        Ok(subject)
    }
}

impl Subject {
    /// The user this certificate stands for; `None` when it names nobody.
    pub(super) fn user(&self) -> Result<Option<UserInfo>, AuthenticationError> {
        self.user.clone().map_err(AuthenticationError)
    }
}

/// `CommonNameUserConversion`.
fn subject(certificate: &X509Certificate<'_>, fingerprint: &[u8; 32]) -> Subject {
    let text = |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| {
        attribute.as_str().ok().map(str::to_owned)
    };
    // Go keeps the last of several common names.
    let common_name = certificate
        .subject()
        .iter_common_name()
        .last()
        .and_then(text)
        .unwrap_or_default();
    let user = uid(certificate).map(|uid| {
        (!common_name.is_empty()).then(|| UserInfo {
            name: common_name.clone(),
            uid,
            groups: certificate
                .subject()
                .iter_organization()
                .filter_map(text)
                .collect(),
            extra: [(
                CREDENTIAL_ID.to_owned(),
                vec![format!("X509SHA256={}", hex(fingerprint))],
            )]
            .into(),
        })
    });
    Subject { common_name, user }
}

/// The user's uid, an attribute of the subject under Kubernetes' own OID (`asn1.X509UID`).
fn uid(certificate: &X509Certificate<'_>) -> Result<String, String> {
    const UID_OID: &str = "1.3.6.1.4.1.57683.2";
    let mut found = Vec::new();
    for attribute in certificate
        .subject()
        .iter_attributes()
        .filter(|attribute| attribute.attr_type().to_id_string() == UID_OID)
    {
        found.push(
            attribute
                .as_str()
                .map_err(|_| "unable to parse UID into a string".to_owned())?,
        );
    }
    match found.as_slice() {
        [] => Ok(String::new()),
        [""] => Err("UID cannot be an empty string".into()),
        [one] => Ok((*one).to_owned()),
        many => Err(format!("expected 1 UID, but found multiple: {many:?}")),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Who may speak for others, and in which headers (`--requestheader-*`).
#[derive(Clone, Debug)]
pub struct RequestHeaderConfig {
    /// The authority of the front proxies, PEM.
    pub client_ca_pem: String,
    /// Common names that a front proxy's certificate may have; empty for any.
    pub allowed_names: Vec<String>,
    /// Headers that may hold the user's name; the first with a value wins.
    pub username_headers: Vec<String>,
    /// Headers that may hold the user's uid; the first with a value wins.
    pub uid_headers: Vec<String>,
    /// Headers that hold groups; all values count.
    pub group_headers: Vec<String>,
    /// Prefixes of headers that hold extra facts.
    pub extra_header_prefixes: Vec<String>,
}

impl RequestHeaderConfig {
    /// The headers that aggregated API servers and front proxies use by convention.
    pub fn standard(client_ca_pem: impl Into<String>, allowed_names: Vec<String>) -> Self {
        RequestHeaderConfig {
            client_ca_pem: client_ca_pem.into(),
            allowed_names,
            username_headers: vec!["X-Remote-User".into()],
            uid_headers: vec!["X-Remote-Uid".into()],
            group_headers: vec!["X-Remote-Group".into()],
            extra_header_prefixes: vec!["X-Remote-Extra-".into()],
        }
    }

    /// The user that the headers name, for a chain that [`Authorities::check`] accepted.
    pub(super) fn user(
        &self,
        subject: &Subject,
        headers: &HeaderMap,
    ) -> Result<Option<UserInfo>, AuthenticationError> {
        if !self.allowed_names.is_empty() && !self.allowed_names.contains(&subject.common_name) {
            return Err(AuthenticationError(format!(
                "x509: subject with cn={} is not in the allowed list",
                subject.common_name
            )));
        }
        let first = |names: &[String]| {
            names
                .iter()
                .find_map(|name| {
                    headers
                        .get(name)?
                        .to_str()
                        .ok()
                        .filter(|value| !value.is_empty())
                })
                .unwrap_or_default()
                .to_owned()
        };
        let name = first(&self.username_headers);
        if name.is_empty() {
            return Ok(None);
        }
        let groups = self
            .group_headers
            .iter()
            .flat_map(|name| headers.get_all(name))
            .filter_map(|value| {
                value
                    .to_str()
                    .ok()
                    .filter(|value| !value.is_empty())
                    .map(str::to_owned)
            })
            .collect();
        let mut user = UserInfo {
            name,
            uid: first(&self.uid_headers),
            groups,
            extra: Default::default(),
        };
        for prefix in &self.extra_header_prefixes {
            for (key, value) in extra_headers(headers, prefix) {
                user.extra.entry(key).or_default().push(value);
            }
        }
        Ok(Some(user))
    }

    /// Removes the headers that this configuration gives a meaning to, so that nothing behind trusts them.
    pub(super) fn strip(&self, headers: &mut HeaderMap) {
        for name in self
            .username_headers
            .iter()
            .chain(&self.uid_headers)
            .chain(&self.group_headers)
        {
            headers.remove(name);
        }
        for prefix in &self.extra_header_prefixes {
            strip_prefixed(headers, prefix);
        }
    }
}

/// The values of all headers that begin with `prefix`, under the rest of the header's name, unescaped.
pub(super) fn extra_headers<'a>(
    headers: &'a HeaderMap,
    prefix: &'a str,
) -> impl Iterator<Item = (String, String)> + 'a {
    let prefix = prefix.to_ascii_lowercase();
    headers.iter().filter_map(move |(name, value)| {
        let key = name.as_str().strip_prefix(prefix.as_str())?;
        Some((
            unescape(key),
            String::from_utf8_lossy(value.as_bytes()).into_owned(),
        ))
    })
}

/// Removes all headers that begin with `prefix`.
pub(super) fn strip_prefixed(headers: &mut HeaderMap, prefix: &str) {
    let prefix = prefix.to_ascii_lowercase();
    let names: Vec<_> = headers
        .keys()
        .filter(|name| name.as_str().starts_with(prefix.as_str()))
        .cloned()
        .collect();
    for name in names {
        headers.remove(name);
    }
}

/// `%xx` decoded; the text itself where that fails, so that a fact is never dropped.
fn unescape(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digits = [bytes.next(), bytes.next()]
            .map(|digit| digit.and_then(|digit| char::from(digit).to_digit(16)));
        match digits {
            [Some(high), Some(low)] => out.push((high * 16 + low) as u8),
            _ => return text.to_owned(),
        }
    }
    String::from_utf8(out).unwrap_or_else(|_| text.to_owned())
}
