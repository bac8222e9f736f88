//! Keys that sign and check tokens: RSA (2048 bits and more, RS256) and ECDSA on P-256 and P-384 (ES256, ES384), read
//! from every PEM form that upstream's key files come in (`k8s.io/client-go/util/keyutil`).

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{self, EcdsaKeyPair, KeyPair as _, RsaKeyPair, UnparsedPublicKey};
use rustls::pki_types::pem::{PemObject, SectionKind};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey as ParsedKey;
use x509_parser::x509::SubjectPublicKeyInfo;

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KeyError {
    /// The text holds no key.
    #[error("holds no PEM block with a key")]
    NoKey,
    /// The text is not PEM.
    #[error("is not in PEM form: {0}")]
    Pem(String),
    /// A key of another kind.
    #[error(
        "holds a key of a kind that is not supported (RSA of 2048 bits or more, ECDSA on P-256 or P-384)"
    )]
    Unsupported,
    /// The key is damaged.
    #[error("holds a key that cannot be read: {0}")]
    Damaged(String),
}

/// How tokens are signed (RFC 7518).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// ECDSA on P-384 with SHA-384.
    Es384,
}

impl Algorithm {
    /// The name in a token's header and in key sets.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Rs256 => "RS256",
            Algorithm::Es256 => "ES256",
            Algorithm::Es384 => "ES384",
        }
    }
}

const OID_EC: &[u8] = &[0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const OID_P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const OID_P384: &[u8] = &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22];
const OID_RSA_WITH_NULL: &[u8] = &[
    0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00,
];

/// A key that checks signatures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    algorithm: Algorithm,
    key_id: String,
    spki: Vec<u8>,
    /// What `ring` wants: PKCS#1 for RSA, the uncompressed point for ECDSA.
    raw: Vec<u8>,
    jwk: Value,
}

impl PublicKey {
    fn from_spki(spki: &[u8]) -> Result<Self, KeyError> {
        let (_, parsed) = SubjectPublicKeyInfo::from_der(spki)
            .map_err(|error| KeyError::Damaged(error.to_string()))?;
        let raw = parsed.subject_public_key.data.to_vec();
        // Upstream: the hash of the key's DER form (`keyIDFromPublicKey`).
        let key_id = URL_SAFE_NO_PAD.encode(Sha256::digest(spki));
        let (algorithm, mut jwk) = match parsed
            .parsed()
            .map_err(|error| KeyError::Damaged(error.to_string()))?
        {
            ParsedKey::RSA(rsa) => {
                if rsa.key_size() < 2048 {
                    return Err(KeyError::Unsupported);
                }
                let number = |bytes: &[u8]| {
                    URL_SAFE_NO_PAD
                        .encode(&bytes[bytes.iter().position(|b| *b != 0).unwrap_or(bytes.len())..])
                };
                (
                    Algorithm::Rs256,
                    json!({"kty": "RSA", "n": number(rsa.modulus), "e": number(rsa.exponent)}),
                )
            }
            ParsedKey::EC(_) => {
                let (algorithm, curve, half) = match raw.len() {
                    65 => (Algorithm::Es256, "P-256", 32),
                    97 => (Algorithm::Es384, "P-384", 48),
                    _ => return Err(KeyError::Unsupported),
                };
                if raw[0] != 4 {
                    return Err(KeyError::Unsupported); // a compressed point
                }
                let (x, y) = raw[1..].split_at(half);
                (
                    algorithm,
                    json!({"kty": "EC", "crv": curve, "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y)}),
                )
            }
            _ => return Err(KeyError::Unsupported),
        };
        jwk["use"] = "sig".into();
        jwk["kid"] = key_id.clone().into();
        jwk["alg"] = algorithm.name().into();
        Ok(PublicKey {
            algorithm,
            key_id,
            spki: spki.to_vec(),
            raw,
            jwk,
        })
    }

    /// All keys of a PEM text: public keys, certificates, and the public halves of private keys.
    pub fn all_from_pem(pem: &str) -> Result<Vec<Self>, KeyError> {
        let keys = sections(pem)?
            .into_iter()
            .filter_map(|(kind, der)| match kind {
                SectionKind::PublicKey => Some(Self::from_spki(&der)),
                SectionKind::Certificate => Some(match x509_parser::parse_x509_certificate(&der) {
                    Ok((_, certificate)) => Self::from_spki(certificate.public_key().raw),
                    Err(error) => Err(KeyError::Damaged(error.to_string())),
                }),
                SectionKind::PrivateKey
                | SectionKind::RsaPrivateKey
                | SectionKind::EcPrivateKey => {
                    Some(SigningKey::from_section(kind, &der).map(|key| key.public))
                }
                _ => None,
            })
            .collect::<Result<Vec<_>, _>>()?;
        if keys.is_empty() {
            Err(KeyError::NoKey)
        } else {
            Ok(keys)
        }
    }

    /// The algorithm this key is for.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The `kid` of tokens signed with this key.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// The key as a member of a JSON Web Key Set.
    pub fn jwk(&self) -> &Value {
        &self.jwk
    }

    /// The key in PEM form.
    pub fn to_pem(&self) -> String {
        let mut pem = String::from("-----BEGIN PUBLIC KEY-----\n");
        let text = STANDARD.encode(&self.spki);
        for line in text.as_bytes().chunks(64) {
            pem.extend(line.iter().map(|b| char::from(*b)));
            pem.push('\n');
        }
        pem.push_str("-----END PUBLIC KEY-----\n");
        pem
    }

    /// Whether `signature` is this key's signature of `message`.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let algorithm: &'static dyn signature::VerificationAlgorithm = match self.algorithm {
            Algorithm::Rs256 => &signature::RSA_PKCS1_2048_8192_SHA256,
            Algorithm::Es256 => &signature::ECDSA_P256_SHA256_FIXED,
            Algorithm::Es384 => &signature::ECDSA_P384_SHA384_FIXED,
        };
        UnparsedPublicKey::new(algorithm, &self.raw)
            .verify(message, signature)
            .is_ok()
    }
}

enum Private {
    Rsa(RsaKeyPair),
    Ecdsa(EcdsaKeyPair),
}

/// A key that signs tokens.
#[derive(Clone)]
pub struct SigningKey {
    private: Arc<Private>,
    public: PublicKey,
}

impl SigningKey {
    /// The first private key of a PEM text (`PRIVATE KEY`, `RSA PRIVATE KEY` or `EC PRIVATE KEY`).
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        let (kind, der) = sections(pem)?
            .into_iter()
            .find(|(kind, _)| {
                matches!(
                    kind,
                    SectionKind::PrivateKey
                        | SectionKind::RsaPrivateKey
                        | SectionKind::EcPrivateKey
                )
            })
            .ok_or(KeyError::NoKey)?;
        Self::from_section(kind, &der)
    }

    fn from_section(kind: SectionKind, der: &[u8]) -> Result<Self, KeyError> {
        let rng = SystemRandom::new();
        let ecdsa = |pkcs8: &[u8]| {
            EcdsaKeyPair::from_pkcs8(&signature::ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8, &rng)
                .map(|key| (key, OID_P256))
                .or_else(|_| {
                    EcdsaKeyPair::from_pkcs8(
                        &signature::ECDSA_P384_SHA384_FIXED_SIGNING,
                        pkcs8,
                        &rng,
                    )
                    .map(|key| (key, OID_P384))
                })
        };
        let (private, spki) =
            match kind {
                SectionKind::RsaPrivateKey => rsa(RsaKeyPair::from_der(der)
                    .map_err(|error| KeyError::Damaged(error.to_string()))?),
                SectionKind::EcPrivateKey => {
                    let (key, curve) = [OID_P256, OID_P384]
                        .into_iter()
                        .find_map(|curve| {
                            ecdsa(&pkcs8_of_sec1(der, curve))
                                .ok()
                                .filter(|(_, found)| *found == curve)
                        })
                        .ok_or(KeyError::Unsupported)?;
                    elliptic(key, curve)
                }
                _ => match (RsaKeyPair::from_pkcs8(der), ecdsa(der)) {
                    (Ok(key), _) => rsa(key),
                    (_, Ok((key, curve))) => elliptic(key, curve),
                    _ => return Err(KeyError::Unsupported),
                },
            };
        Ok(SigningKey {
            private: Arc::new(private),
            public: PublicKey::from_spki(&spki)?,
        })
    }

    /// The public half.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Signs; fails only when the machine has no randomness to give.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        let failed = |_| KeyError::Damaged("the key cannot sign".into());
        let rng = SystemRandom::new();
        match self.private.as_ref() {
            Private::Rsa(key) => {
                let mut out = vec![0; key.public().modulus_len()];
                key.sign(&signature::RSA_PKCS1_SHA256, &rng, message, &mut out)
                    .map_err(failed)?;
                Ok(out)
            }
            Private::Ecdsa(key) => key
                .sign(&rng, message)
                .map(|signature| signature.as_ref().to_vec())
                .map_err(failed),
        }
    }
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningKey")
            .field("public", &self.public.key_id)
            .finish_non_exhaustive()
    }
}

/// The public half of a private key, both in PEM form.
pub fn public_pem_of_private(pem: &str) -> Result<String, KeyError> {
    SigningKey::from_pem(pem).map(|key| key.public.to_pem())
}

fn rsa(key: RsaKeyPair) -> (Private, Vec<u8>) {
    let spki = spki(OID_RSA_WITH_NULL, key.public_key().as_ref());
    (Private::Rsa(key), spki)
}

fn elliptic(key: EcdsaKeyPair, curve: &[u8]) -> (Private, Vec<u8>) {
    let spki = spki(&[OID_EC, curve].concat(), key.public_key().as_ref());
    (Private::Ecdsa(key), spki)
}

fn spki(algorithm: &[u8], key: &[u8]) -> Vec<u8> {
    der(
        0x30,
        &[der(0x30, algorithm), der(0x03, &[&[0], key].concat())].concat(),
    )
}

/// `EC PRIVATE KEY` (RFC 5915) inside the PKCS#8 frame that `ring` reads.
fn pkcs8_of_sec1(sec1: &[u8], curve: &[u8]) -> Vec<u8> {
    der(
        0x30,
        &[
            vec![0x02, 0x01, 0x00],
            der(0x30, &[OID_EC, curve].concat()),
            der(0x04, sec1),
        ]
        .concat(),
    )
}

/// One DER element.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let mut out = vec![tag];
    match length {
        0..=0x7f => out.push(length as u8),
        0x80..=0xff => out.extend([0x81, length as u8]),
        _ => out.extend([0x82, (length >> 8) as u8, length as u8]), // keys stay far below 64 KiB
    }
    out.extend_from_slice(content);
    out
}

fn sections(pem: &str) -> Result<Vec<(SectionKind, Vec<u8>)>, KeyError> {
    <(SectionKind, Vec<u8>)>::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| KeyError::Pem(error.to_string()))
}
