//! Making a certificate from a request (upstream `pkg/controller/certificates/authority`).
//!
//! Subject and key are copied byte for byte, whatever they hold: a subject with several organizations must come out as it
//! went in, which `rcgen`'s names (one value per attribute type) cannot say. So the little DER that a certificate takes
//! is written here.

use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use rcgen::{KeyPair, SigningKey as _};
use thiserror::Error;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::FromDer;

use super::request::Request;
use crate::config::SigningKey;

/// How far a certificate reaches back, for clocks that differ (upstream `Backdate`).
const BACKDATE: Duration = Duration::from_secs(5 * 60);
/// Certificates that live shorter than this get their whole time beyond now (upstream `Short`).
const SHORT: Duration = Duration::from_secs(8 * 3600);

/// Why nothing was signed.
#[derive(Debug, Error)]
pub enum AuthorityError {
    /// `--cluster-signing-cert-file` or `--cluster-signing-key-file` cannot be used.
    #[error("error parsing CA: {0}")]
    Authority(String),
    /// The authority has ended.
    #[error("the signer has expired: NotAfter={0}")]
    Expired(Timestamp),
    /// A usage that X.509 has no form for.
    #[error("unrecognized usage values: [{0:?}]")]
    Usage(String),
    /// The key refused.
    #[error("failed to sign certificate: {0}")]
    Sign(#[from] rcgen::Error),
}

/// The cluster's signing authority, ready to sign.
pub struct Authority {
    key: KeyPair,
    algorithm: &'static [u8],
    subject: Vec<u8>,
    key_id: Option<Vec<u8>>,
    not_after: Timestamp,
}

impl Authority {
    /// Reads certificate and key.
    ///
    /// # Errors
    /// [`AuthorityError::Authority`].
    pub fn load(signing: &SigningKey) -> Result<Self, AuthorityError> {
        let wrong = |error: &dyn std::fmt::Display| AuthorityError::Authority(error.to_string());
        let (_, block) = x509_parser::pem::parse_x509_pem(signing.certificate_pem.as_bytes())
            .map_err(|e| wrong(&e))?;
        let (_, certificate) = X509Certificate::from_der(&block.contents).map_err(|e| wrong(&e))?;
        let key = KeyPair::from_pem(&signing.key_pem).map_err(|e| wrong(&e))?;
        let algorithm = signature_algorithm(&key)
            .ok_or_else(|| AuthorityError::Authority("a key of an unknown kind".to_owned()))?;
        if rcgen::PublicKeyData::subject_public_key_info(&key) != certificate.public_key().raw {
            return Err(AuthorityError::Authority(
                "private key does not match public key".to_owned(),
            ));
        }
        let key_id = certificate.extensions().iter().find_map(|extension| {
            match extension.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
                _ => None,
            }
        });
        let not_after = Timestamp::from_second(certificate.validity().not_after.timestamp())
            .map_err(|e| wrong(&e))?;
        Ok(Authority {
            algorithm,
            subject: certificate.subject().as_raw().to_vec(),
            key_id,
            not_after,
            key,
        })
    }

    /// Signs; `lifetime` counts from `now`, `serial` are random bytes. Returns PEM.
    ///
    /// # Errors
    /// See [`AuthorityError`].
    pub fn sign(
        &self,
        request: &Request,
        usages: &[&str],
        lifetime: Duration,
        now: Timestamp,
        serial: [u8; 16],
    ) -> Result<String, AuthorityError> {
        if now >= self.not_after {
            return Err(AuthorityError::Expired(self.not_after));
        }
        let (bits, purposes) = key_usages(usages)?;
        let ahead = if lifetime < SHORT {
            lifetime
        } else {
            lifetime - BACKDATE
        };
        let seconds = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        let end = now
            .as_second()
            .saturating_add(seconds(ahead))
            .min(self.not_after.as_second());
        let mut extensions = Vec::new();
        if bits != 0 {
            extensions.push(extension(KEY_USAGE, true, &bit_flags(bits)));
        }
        if !purposes.is_empty() {
            let list: Vec<Vec<u8>> = purposes.iter().map(|oid| tlv(OID, oid)).collect();
            extensions.push(extension(
                EXT_KEY_USAGE,
                false,
                &tlv(SEQUENCE, &list.concat()),
            ));
        }
        // Not an authority: an empty sequence, `cA` being FALSE by default.
        extensions.push(extension(BASIC_CONSTRAINTS, true, &tlv(SEQUENCE, &[])));
        if let Some(id) = &self.key_id {
            extensions.push(extension(
                AUTHORITY_KEY_ID,
                false,
                &tlv(SEQUENCE, &tlv(0x80, id)),
            ));
        }
        let names = alternative_names(request);
        if !names.is_empty() {
            // With an empty subject the names are all there is to go by (RFC 5280, 4.2.1.6).
            let critical = request.subject == tlv(SEQUENCE, &[]);
            extensions.push(extension(
                ALTERNATIVE_NAMES,
                critical,
                &tlv(SEQUENCE, &names),
            ));
        }
        let mut number = serial;
        number[0] = (number[0] & 0x7f) | 0x40; // positive, and of one length
        let to_sign = tlv(
            SEQUENCE,
            &[
                tlv(0xa0, &tlv(INTEGER, &[2])),
                tlv(INTEGER, &number),
                self.algorithm.to_vec(),
                self.subject.clone(),
                tlv(
                    SEQUENCE,
                    &[time(now.as_second() - seconds(BACKDATE))?, time(end)?].concat(),
                ),
                request.subject.clone(),
                request.public_key.clone(),
                tlv(0xa3, &tlv(SEQUENCE, &extensions.concat())),
            ]
            .concat(),
        );
        let signature = self.key.sign(&to_sign)?;
        let mut bit_string = vec![0];
        bit_string.extend(signature);
        let der = tlv(
            SEQUENCE,
            &[
                to_sign,
                self.algorithm.to_vec(),
                tlv(BIT_STRING, &bit_string),
            ]
            .concat(),
        );
        Ok(pem(&der))
    }
}

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const OID: u8 = 0x06;
const SEQUENCE: u8 = 0x30;

const KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x0f];
const ALTERNATIVE_NAMES: &[u8] = &[0x55, 0x1d, 0x11];
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];
const AUTHORITY_KEY_ID: &[u8] = &[0x55, 0x1d, 0x23];
const EXT_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x25];

/// The `AlgorithmIdentifier` of what `key` signs with.
fn signature_algorithm(key: &KeyPair) -> Option<&'static [u8]> {
    // 1.2.840.10045.4.3.2 (ecdsa-with-SHA256), .3 (SHA384), 1.2.840.113549.1.1.11 (sha256WithRSAEncryption, with NULL),
    // 1.3.101.112 (Ed25519)
    let algorithm = key.algorithm();
    if algorithm == &rcgen::PKCS_ECDSA_P256_SHA256 {
        Some(b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02")
    } else if algorithm == &rcgen::PKCS_ECDSA_P384_SHA384 {
        Some(b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x03")
    } else if algorithm == &rcgen::PKCS_RSA_SHA256 {
        Some(b"\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b\x05\x00")
    } else if algorithm == &rcgen::PKCS_ED25519 {
        Some(b"\x30\x05\x06\x03\x2b\x65\x70")
    } else {
        None
    }
}

/// Upstream `keyUsagesFromStrings`: the bits of KeyUsage (bit 0 is the first of the BIT STRING) and the purposes of
/// ExtKeyUsage, in upstream's order.
fn key_usages(usages: &[&str]) -> Result<(u16, Vec<&'static [u8]>), AuthorityError> {
    const PURPOSES: [(&str, &[u8]); 13] = [
        ("any", b"\x55\x1d\x25\x00"),
        ("server auth", b"\x2b\x06\x01\x05\x05\x07\x03\x01"),
        ("client auth", b"\x2b\x06\x01\x05\x05\x07\x03\x02"),
        ("code signing", b"\x2b\x06\x01\x05\x05\x07\x03\x03"),
        ("email protection", b"\x2b\x06\x01\x05\x05\x07\x03\x04"),
        ("s/mime", b"\x2b\x06\x01\x05\x05\x07\x03\x04"),
        ("ipsec end system", b"\x2b\x06\x01\x05\x05\x07\x03\x05"),
        ("ipsec tunnel", b"\x2b\x06\x01\x05\x05\x07\x03\x06"),
        ("ipsec user", b"\x2b\x06\x01\x05\x05\x07\x03\x07"),
        ("timestamping", b"\x2b\x06\x01\x05\x05\x07\x03\x08"),
        ("ocsp signing", b"\x2b\x06\x01\x05\x05\x07\x03\x09"),
        ("microsoft sgc", b"\x2b\x06\x01\x04\x01\x82\x37\x0a\x03\x03"),
        ("netscape sgc", b"\x60\x86\x48\x01\x86\xf8\x42\x04\x01"),
    ];
    let mut bits = 0;
    for usage in usages {
        bits |= match *usage {
            "signing" | "digital signature" => 1,
            "content commitment" => 1 << 1,
            "key encipherment" => 1 << 2,
            "data encipherment" => 1 << 3,
            "key agreement" => 1 << 4,
            "cert sign" => 1 << 5,
            "crl sign" => 1 << 6,
            "encipher only" => 1 << 7,
            "decipher only" => 1 << 8,
            purpose if PURPOSES.iter().any(|(name, _)| *name == purpose) => 0,
            other => return Err(AuthorityError::Usage(other.to_owned())),
        };
    }
    let mut purposes: Vec<&[u8]> = PURPOSES
        .iter()
        .filter(|(name, _)| usages.contains(name))
        .map(|(_, oid)| *oid)
        .collect();
    purposes.dedup();
    Ok((bits, purposes))
}

/// A BIT STRING of named bits, without trailing zeros, as DER wants.
fn bit_flags(bits: u16) -> Vec<u8> {
    let bytes = bits.reverse_bits().to_be_bytes();
    let used = if bytes[1] == 0 {
        &bytes[..1]
    } else {
        &bytes[..]
    };
    let unused = used.last().map_or(0, |last| last.trailing_zeros());
    let mut content = vec![u8::try_from(unused).unwrap_or(0)];
    content.extend(used);
    tlv(BIT_STRING, &content)
}

fn alternative_names(request: &Request) -> Vec<u8> {
    let text = |tag: u8, names: &[String]| -> Vec<u8> {
        names
            .iter()
            .flat_map(|name| tlv(tag, name.as_bytes()))
            .collect()
    };
    let addresses: Vec<u8> = request
        .addresses
        .iter()
        .flat_map(|address| match address {
            IpAddr::V4(v4) => tlv(0x87, &v4.octets()),
            IpAddr::V6(v6) => tlv(0x87, &v6.octets()),
        })
        .collect();
    [
        text(0x82, &request.dns_names),
        text(0x81, &request.emails),
        addresses,
        text(0x86, &request.uris),
    ]
    .concat()
}

fn extension(oid: &[u8], critical: bool, value: &[u8]) -> Vec<u8> {
    let critical: &[u8] = if critical { &[0x01, 0x01, 0xff] } else { &[] };
    let parts = [tlv(OID, oid), critical.to_vec(), tlv(OCTET_STRING, value)];
    tlv(SEQUENCE, &parts.concat())
}

/// UTCTime up to 2049, GeneralizedTime after (RFC 5280, 4.1.2.5).
fn time(seconds: i64) -> Result<Vec<u8>, AuthorityError> {
    let at = Timestamp::from_second(seconds)
        .map_err(|error| AuthorityError::Authority(error.to_string()))?
        .to_zoned(jiff::tz::TimeZone::UTC);
    Ok(if at.year() < 2050 {
        tlv(0x17, at.strftime("%y%m%d%H%M%SZ").to_string().as_bytes())
    } else {
        tlv(0x18, at.strftime("%Y%m%d%H%M%SZ").to_string().as_bytes())
    })
}

fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let significant = &length[length.iter().take_while(|byte| **byte == 0).count()..];
    let mut der = vec![tag];
    match significant {
        [] => der.push(0),
        [short] if *short < 0x80 => der.push(*short),
        long => {
            der.push(0x80 | u8::try_from(long.len()).unwrap_or(0));
            der.extend(long);
        }
    }
    der.extend(content);
    der
}

fn pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.extend(line.iter().map(|byte| char::from(*byte)));
        pem.push('\n');
    }
    pem + "-----END CERTIFICATE-----\n"
}
