//! JSON Web Tokens in compact form (RFC 7515, 7519), as far as service accounts need them.
//!
//! The algorithm is fixed by the key, never by the token: a header that names another one (`none`, an HMAC) does not
//! match any key and is refused before anything is computed.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use keelson_machinery::value::Value;
use serde::Deserialize;
use serde_json::json;

use crate::pki::keys::{KeyError, PublicKey, SigningKey};

/// Clock differences that are overlooked, in seconds (`jwt.DefaultLeeway`).
pub(super) const LEEWAY_SECONDS: i64 = 60;

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: String,
    crit: Option<Value>,
}

/// A token whose signature has not been looked at.
pub(super) struct Unverified<'a> {
    header: Header,
    signed: &'a str,
    signature: Vec<u8>,
    claims: Value,
}

impl<'a> Unverified<'a> {
    /// `None`: this is not a token of this form.
    pub(super) fn parse(token: &'a str) -> Option<Self> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        if claims.contains('.') {
            return None;
        }
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).ok();
        let claims: Value = serde_json::from_slice(&decode(claims)?).ok()?;
        claims.is_object().then_some(())?;
        Some(Unverified {
            header: serde_json::from_slice(&decode(header)?).ok()?,
            signed,
            signature: decode(signature)?,
            claims,
        })
    }

    /// The issuer that the token claims; not to be trusted.
    pub(super) fn issuer(&self) -> &str {
        self.claims
            .get("iss")
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    /// The claims, if one of `keys` made the signature.
    pub(super) fn verify(self, keys: &[PublicKey]) -> Result<Value, String> {
        if self.header.crit.is_some() {
            return Err("the token demands an extension that is not known".into());
        }
        let mut candidates = keys
            .iter()
            .filter(|key| self.header.kid.is_empty() || key.key_id() == self.header.kid)
            .peekable();
        if candidates.peek().is_none() {
            return Err("invalid signature, no keys found".into());
        }
        if candidates.any(|key| {
            key.algorithm().name() == self.header.alg
                && key.verifies(self.signed.as_bytes(), &self.signature)
        }) {
            Ok(self.claims)
        } else {
            Err("error in cryptographic primitive".into())
        }
    }
}

/// Whether the time claims hold at `now` (Unix seconds).
pub(super) fn check_times(claims: &Value, now: i64) -> Result<(), String> {
    let time = |name: &str| -> Result<Option<i64>, String> {
        match claims.get(name) {
            None | Some(Value::Null) => Ok(None),
            // Fractions are allowed (RFC 7519, NumericDate) and cut off.
            Some(value) => value
                .as_f64()
                .map(|seconds| Some(seconds as i64))
                .ok_or_else(|| format!("the {name} claim is not a number")),
        }
    };
    if time("nbf")?.is_some_and(|not_before| now + LEEWAY_SECONDS < not_before) {
        return Err("service account token is not valid yet".into());
    }
    if time("exp")?.is_some_and(|expiry| now - LEEWAY_SECONDS > expiry) {
        return Err("service account token has expired".into());
    }
    if time("iat")?.is_some_and(|issued| now + LEEWAY_SECONDS < issued) {
        return Err("service account token is issued in the future".into());
    }
    Ok(())
}

/// The audiences a token names: a string or a list of them.
pub(super) fn audiences(claims: &Value) -> Result<Vec<String>, String> {
    match claims.get("aud") {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::String(one)) => Ok(vec![one.clone()]),
        Some(Value::Array(list)) => list
            .iter()
            .map(|item| {
                item.as_str()
                    .map(str::to_owned)
                    .ok_or_else(|| "the aud claim is not a list of strings".to_owned())
            })
            .collect(),
        Some(_) => Err("the aud claim is not a list of strings".into()),
    }
}

/// Signs `claims`.
pub fn sign(key: &SigningKey, claims: &Value) -> Result<String, KeyError> {
    let header = json!({"alg": key.public().algorithm().name(), "kid": key.public().key_id()});
    let mut token = URL_SAFE_NO_PAD.encode(header.to_string());
    token.push('.');
    URL_SAFE_NO_PAD.encode_string(claims.to_string(), &mut token);
    let signature = key.sign(token.as_bytes())?;
    token.push('.');
    URL_SAFE_NO_PAD.encode_string(signature, &mut token);
    Ok(token)
}
