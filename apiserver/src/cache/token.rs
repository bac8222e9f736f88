//! Continue tokens, in upstream's form: base64 (URL alphabet, no padding) of
//! `{"v":"meta.k8s.io/v1","rv":REVISION,"start":"KEY\u0000"}`, the key relative to what was listed. A revision of -1
//! goes on in the newest state.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use keelson_store::Revision;
use serde::{Deserialize, Serialize};

use super::types::CacheError;

const VERSION: &str = "meta.k8s.io/v1";

#[derive(Serialize, Deserialize)]
struct Wire<'a> {
    #[serde(default)]
    v: std::borrow::Cow<'a, str>,
    #[serde(default)]
    rv: i64,
    #[serde(default)]
    start: std::borrow::Cow<'a, str>,
}

/// Where a list goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token {
    /// The revision all pages show; `None` for the newest state, whatever it is by then.
    pub revision: Option<Revision>,
    /// First key of the page or what sorts right before it, relative to what is listed.
    pub start: String,
}

impl Token {
    /// Goes on behind `last`.
    pub fn after(last: &str, revision: Option<Revision>) -> Self {
        Token {
            revision,
            start: format!("{last}\0"),
        }
    }

    pub fn encode(&self) -> String {
        let wire = Wire {
            v: VERSION.into(),
            rv: self
                .revision
                .map_or(-1, |r| i64::try_from(r).unwrap_or(i64::MAX)),
            start: self.start.as_str().into(),
        };
        // Numbers and strings: serialising them cannot fail.
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(&wire).unwrap_or_default())
    }

    pub fn decode(text: &str) -> Result<Self, CacheError> {
        let bad = |detail: &str| CacheError::BadToken(detail.to_owned());
        let bytes = URL_SAFE_NO_PAD
            .decode(text)
            .map_err(|e| bad(&format!("continue key is not valid: {e}")))?;
        let wire: Wire = serde_json::from_slice(&bytes)
            .map_err(|e| bad(&format!("continue key is not valid: {e}")))?;
        if wire.v != VERSION {
            return Err(bad(&format!(
                "continue key is not valid: server does not recognize this encoded version \"{}\"",
                wire.v
            )));
        }
        if wire.rv == 0 {
            return Err(bad(
                "continue key is not valid: incorrect encoded start resourceVersion (version meta.k8s.io/v1)",
            ));
        }
        if wire.start.is_empty() {
            return Err(bad(
                "continue key is not valid: encoded start key empty (version meta.k8s.io/v1)",
            ));
        }
        // The key must not lead out of what may be listed.
        let climbs = wire
            .start
            .split('/')
            .any(|part| part == ".." || part == ".");
        if climbs || wire.start.starts_with('/') {
            return Err(bad(&format!(
                "continue key is not valid: {}",
                wire.start.trim_end_matches('\0')
            )));
        }
        Ok(Token {
            revision: u64::try_from(wire.rv).ok(),
            start: wire.start.into_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_and_refuses() {
        for (last, revision) in [
            ("ns/a", Some(12)),
            ("a", None),
            ("ns/\u{e9}\"", Some(u64::MAX >> 1)),
        ] {
            let token = Token::after(last, revision);
            assert_eq!(Token::decode(&token.encode()).unwrap(), token);
        }
        // As upstream's server writes it.
        let upstream =
            URL_SAFE_NO_PAD.encode(r#"{"v":"meta.k8s.io/v1","rv":7,"start":"ns/a\u0000"}"#);
        assert_eq!(upstream, Token::after("ns/a", Some(7)).encode());
        for bad in [
            "%%%".to_owned(),
            URL_SAFE_NO_PAD.encode("{"),
            URL_SAFE_NO_PAD.encode(r#"{"v":"v2","rv":7,"start":"a"}"#),
            URL_SAFE_NO_PAD.encode(r#"{"v":"meta.k8s.io/v1","rv":0,"start":"a"}"#),
            URL_SAFE_NO_PAD.encode(r#"{"v":"meta.k8s.io/v1","rv":7,"start":""}"#),
            URL_SAFE_NO_PAD.encode(r#"{"v":"meta.k8s.io/v1","rv":7,"start":"../secrets/a"}"#),
            URL_SAFE_NO_PAD.encode(r#"{"v":"meta.k8s.io/v1","rv":7,"start":"/a"}"#),
        ] {
            assert!(
                matches!(Token::decode(&bad), Err(CacheError::BadToken(_))),
                "{bad}"
            );
        }
    }
}
