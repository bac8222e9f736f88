//! What a machine needs to know to join a cluster: a bootstrap token, and by what it knows the cluster's authority.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, bail};
use sha2::{Digest, Sha256};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

/// The SHA-256 of an authority's public key (`SubjectPublicKeyInfo`, DER), written as kubeadm writes it:
/// `sha256:<64 hexadecimal digits>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaHash(String);

impl CaHash {
    /// The hash of the first certificate of a PEM text.
    ///
    /// # Errors
    /// When there is none.
    pub fn of_pem(pem: &[u8]) -> anyhow::Result<Self> {
        let (_, block) =
            x509_parser::pem::parse_x509_pem(pem).context("the authority is not PEM")?;
        let (_, certificate) = X509Certificate::from_der(&block.contents)
            .context("the authority is not a certificate")?;
        let digest = Sha256::digest(certificate.public_key().raw);
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(CaHash(format!("sha256:{hex}")))
    }
}

impl FromStr for CaHash {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let hex = text.strip_prefix("sha256:").unwrap_or_default();
        if hex.len() != 64 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            bail!("the hash of the CA is not of the form sha256:<64 hexadecimal digits>");
        }
        Ok(CaHash(text.to_ascii_lowercase()))
    }
}

impl fmt::Display for CaHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `<id>.<secret>`, upstream's bootstrap token, and, after an `@`, the pin of the authority.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    id: String,
    secret: String,
    /// What the authority must be.
    pub pin: Option<CaHash>,
}

impl JoinToken {
    /// The bearer token.
    pub fn bearer(&self) -> String {
        format!("{}.{}", self.id, self.secret)
    }

    /// The public half, which names the Secret.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The secret half.
    pub fn secret(&self) -> &str {
        &self.secret
    }

    /// The same token with this pin.
    pub fn with_pin(self, pin: CaHash) -> Self {
        JoinToken {
            pin: Some(pin),
            ..self
        }
    }

    /// As it is given to a machine. Not `Display`, so that no secret is written by accident.
    pub fn text(&self) -> String {
        match &self.pin {
            Some(pin) => format!("{}@{pin}", self.bearer()),
            None => self.bearer(),
        }
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl FromStr for JoinToken {
    type Err = anyhow::Error;

    /// The message never repeats the text, which is a secret.
    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (token, pin) = match text.trim().split_once('@') {
            Some((token, pin)) => (token, Some(pin.parse::<CaHash>()?)),
            None => (text.trim(), None),
        };
        let valid = |part: &str, length: usize| {
            part.len() == length
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        };
        match token.split_once('.') {
            Some((id, secret)) if valid(id, 6) && valid(secret, 16) => Ok(JoinToken {
                id: id.to_owned(),
                secret: secret.to_owned(),
                pin,
            }),
            _ => bail!(
                "the token is not of the form <6 characters>.<16 characters> of a-z and 0-9, with or without @sha256:<hash of the CA>"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_as_they_are_written() {
        let pin = format!("sha256:{}", "0a".repeat(32));
        for (text, good) in [
            ("abcdef.0123456789abcdef".to_owned(), true),
            (format!("abcdef.0123456789abcdef@{pin}"), true),
            (format!("  abcdef.0123456789abcdef@{pin}\n"), true),
            ("abcdef.0123456789abcdef@sha256:0a".to_owned(), false),
            ("abcdef.0123456789abcdef@".to_owned(), false),
            ("ABCDEF.0123456789abcdef".to_owned(), false),
            ("abcdef0123456789abcdef".to_owned(), false),
            (String::new(), false),
        ] {
            match text.parse::<JoinToken>() {
                Ok(token) => {
                    assert!(good, "{text}");
                    assert_eq!(token.text(), text.trim());
                }
                Err(error) => {
                    assert!(!good, "{text}: {error}");
                    assert!(!error.to_string().contains("0123456789abcdef"), "{error}");
                }
            }
        }
    }
}
