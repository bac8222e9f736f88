//! Authorities and the certificates below them: when one on disk can be used again, and how a new one is made.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use keelson_machinery::clock::Clock;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyUsagePurpose, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::X509Certificate;

use super::files::{self, Pending};
use super::{AUTHORITY_DAYS, KeyPair, LEAF_DAYS, PkiError, RENEW_DAYS};

const DAY: u64 = 86_400;
/// Certificates are valid from a little before they are made, for clocks that lag behind ours.
const BACKDATE_SECONDS: u64 = 300;

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// Proves who a client is.
    Client,
    /// Proves who a server is.
    Server,
}

/// A certificate as it should be.
pub(super) struct Leaf<'a> {
    pub(super) file: &'a str,
    pub(super) common_name: &'a str,
    pub(super) organization: Option<&'a str>,
    pub(super) names: &'a [String],
    pub(super) usage: Usage,
}

/// Something that signs.
pub(super) struct Authority {
    pub(super) pem: String,
    der: Vec<u8>,
    pub(super) issuer: Issuer<'static, rcgen::KeyPair>,
}

/// A fresh P-256 key.
pub(super) fn make_key(what: &str) -> Result<rcgen::KeyPair, PkiError> {
    rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(|source| PkiError::Issue {
        what: what.to_owned(),
        source,
    })
}

/// The key `<name>.key`, made and planned for writing when it does not exist.
pub(super) fn load_or_make_key(
    dir: &Path,
    name: &str,
    pending: &mut Pending,
) -> Result<rcgen::KeyPair, PkiError> {
    let path = dir.join(format!("{name}.key"));
    if let Some(pem) = files::read(&path)? {
        return rcgen::KeyPair::from_pem(&pem).map_err(|error| PkiError::Damaged {
            path,
            problem: format!("is not a private key in PKCS#8 PEM form: {error}"),
        });
    }
    let certificate = dir.join(format!("{name}.crt"));
    if certificate.exists() {
        return Err(PkiError::Damaged {
            path,
            problem: format!(
                "is missing, but {} is there; restore the key",
                certificate.display()
            ),
        });
    }
    let key = make_key(name)?;
    pending.add(path, key.serialize_pem(), true);
    Ok(key)
}

impl Authority {
    pub(super) fn load_or_make(
        dir: &Path,
        name: &str,
        common_name: &str,
        key: rcgen::KeyPair,
        clock: &Clock,
        pending: &mut Pending,
    ) -> Result<Self, PkiError> {
        let path = dir.join(format!("{name}.crt"));
        let damaged = |problem: String| PkiError::Damaged {
            path: path.clone(),
            problem,
        };
        if let Some(pem) = files::read(&path)? {
            let der = first_certificate(&pem)
                .ok_or_else(|| damaged("is not a certificate in PEM form".into()))?;
            {
                let (_, certificate) = x509_parser::parse_x509_certificate(&der)
                    .map_err(|error| damaged(format!("is not a certificate: {error}")))?;
                if certificate.public_key().raw != public_key(&key) {
                    return Err(damaged(format!(
                        "does not belong to {name}.key; restore the one or the other"
                    )));
                }
                let end = certificate.validity().not_after.timestamp();
                if end <= clock.now().as_second() {
                    return Err(damaged(format!(
                        "has ended ({}); a new authority must be distributed by hand",
                        certificate.validity().not_after
                    )));
                }
            }
            let issuer = Issuer::from_ca_cert_der(&der.as_slice().into(), key)
                .map_err(|error| damaged(error.to_string()))?;
            return Ok(Authority { pem, der, issuer });
        }
        let issue = |source| PkiError::Issue {
            what: name.to_owned(),
            source,
        };
        let mut params = base_params(
            common_name,
            None,
            Duration::from_secs(AUTHORITY_DAYS * DAY),
            clock,
        );
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
        ];
        let certificate = params.self_signed(&key).map_err(issue)?;
        let pem = certificate.pem();
        pending.add(path, pem.clone(), false);
        Ok(Authority {
            pem,
            der: certificate.der().to_vec(),
            issuer: Issuer::new(params, key),
        })
    }
}

/// The certificate on disk when it still serves, else a new one (planned for writing).
pub(super) fn load_or_issue(
    dir: &Path,
    authority: &Authority,
    leaf: &Leaf<'_>,
    clock: &Clock,
    pending: &mut Pending,
) -> Result<KeyPair, PkiError> {
    let certificate_path = dir.join(format!("{}.crt", leaf.file));
    let key_path = dir.join(format!("{}.key", leaf.file));
    if let (Some(certificate_pem), Some(key_pem)) =
        (files::read(&certificate_path)?, files::read(&key_path)?)
        && still_serves(authority, leaf, clock, &certificate_pem, &key_pem)
    {
        return Ok(KeyPair {
            certificate_path,
            key_path,
            certificate_pem,
            key_pem,
        });
    }
    let issue = |source| PkiError::Issue {
        what: leaf.common_name.to_owned(),
        source,
    };
    let key = make_key(leaf.common_name)?;
    let mut params = base_params(
        leaf.common_name,
        leaf.organization,
        Duration::from_secs(LEAF_DAYS * DAY),
        clock,
    );
    params.subject_alt_names = CertificateParams::new(leaf.names.to_vec())
        .map_err(issue)?
        .subject_alt_names;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
    ];
    params.extended_key_usages = vec![match leaf.usage {
        Usage::Client => ExtendedKeyUsagePurpose::ClientAuth,
        Usage::Server => ExtendedKeyUsagePurpose::ServerAuth,
    }];
    let certificate = params.signed_by(&key, &authority.issuer).map_err(issue)?;
    let pair = KeyPair {
        certificate_path,
        key_path,
        certificate_pem: certificate.pem(),
        key_pem: key.serialize_pem(),
    };
    pending.add(pair.key_path.clone(), pair.key_pem.clone(), true);
    pending.add(
        pair.certificate_path.clone(),
        pair.certificate_pem.clone(),
        false,
    );
    Ok(pair)
}

pub(super) fn base_params(
    common_name: &str,
    organization: Option<&str>,
    lifetime: Duration,
    clock: &Clock,
) -> CertificateParams {
    let mut name = DistinguishedName::new();
    // rcgen's names hold each attribute type once, hence one organisation per certificate.
    if let Some(organization) = organization {
        name.push(DnType::OrganizationName, organization);
    }
    name.push(DnType::CommonName, common_name);
    let now = u64::try_from(clock.now().as_second()).unwrap_or(0);
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let mut serial = [0u8; 16];
    clock.fill_random(&mut serial);
    serial[0] = (serial[0] & 0x7f) | 0x40; // positive, and of one length
    let mut params = CertificateParams::default();
    params.distinguished_name = name;
    params.not_before = epoch + Duration::from_secs(now.saturating_sub(BACKDATE_SECONDS));
    params.not_after = epoch + Duration::from_secs(now + lifetime.as_secs());
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params
}

/// Whether the pair on disk is whole, is of this authority, says what `leaf` says, and has long enough to live.
fn still_serves(
    authority: &Authority,
    leaf: &Leaf<'_>,
    clock: &Clock,
    certificate_pem: &str,
    key_pem: &str,
) -> bool {
    let (Some(der), Ok(key)) = (
        first_certificate(certificate_pem),
        rcgen::KeyPair::from_pem(key_pem),
    ) else {
        return false;
    };
    let (Ok((_, certificate)), Ok((_, issuer))) = (
        x509_parser::parse_x509_certificate(&der),
        x509_parser::parse_x509_certificate(&authority.der),
    ) else {
        return false;
    };
    let now = clock.now().as_second();
    let renew_before = i64::try_from(RENEW_DAYS * DAY).unwrap_or(i64::MAX);
    certificate.public_key().raw == public_key(&key)
        && certificate.issuer() == issuer.subject()
        && certificate
            .verify_signature(Some(issuer.public_key()))
            .is_ok()
        && certificate.validity().not_before.timestamp() <= now
        && certificate.validity().not_after.timestamp() - now > renew_before
        && subject(&certificate)
            == (
                Some(leaf.common_name.to_owned()),
                leaf.organization
                    .iter()
                    .map(|name| (*name).to_owned())
                    .collect(),
            )
        && names(&certificate) == Some(leaf.names.iter().map(|name| normal_name(name)).collect())
        && matches!(certificate.extended_key_usage(), Ok(Some(usage)) if match leaf.usage {
            Usage::Client => usage.value.client_auth,
            Usage::Server => usage.value.server_auth,
        })
}

fn public_key(key: &rcgen::KeyPair) -> Vec<u8> {
    use rcgen::PublicKeyData;
    key.subject_public_key_info()
}

fn subject(certificate: &X509Certificate<'_>) -> (Option<String>, BTreeSet<String>) {
    let text =
        |a: &x509_parser::x509::AttributeTypeAndValue<'_>| a.as_str().ok().map(str::to_owned);
    (
        certificate
            .subject()
            .iter_common_name()
            .next()
            .and_then(text),
        certificate
            .subject()
            .iter_organization()
            .filter_map(text)
            .collect(),
    )
}

fn normal_name(name: &str) -> String {
    name.parse::<IpAddr>()
        .map_or_else(|_| name.to_owned(), |address| address.to_string())
}

fn names(certificate: &X509Certificate<'_>) -> Option<BTreeSet<String>> {
    let Some(extension) = certificate.subject_alternative_name().ok()? else {
        return Some(BTreeSet::new());
    };
    extension
        .value
        .general_names
        .iter()
        .map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => <[u8; 4]>::try_from(*bytes)
                .map(IpAddr::from)
                .or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from))
                .ok()
                .map(|address| address.to_string()),
            _ => None,
        })
        .collect()
}

/// The DER form of the first certificate in a PEM text.
fn first_certificate(pem: &str) -> Option<Vec<u8>> {
    CertificateDer::from_pem_slice(pem.as_bytes())
        .ok()
        .map(|der| der.to_vec())
}
