//! Registry credentials from pull secrets (upstream `pkg/credentialprovider`).

use std::collections::BTreeMap;

use base64::Engine;
use k8s_openapi::api::core::v1::Secret;
use serde::Deserialize;

use super::reference::Reference;
use crate::cri::AuthConfig;

#[derive(Deserialize)]
struct DockerConfigJson {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Clone, Default, Deserialize)]
struct Entry {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    auth: String,
    #[serde(default)]
    identitytoken: String,
    #[serde(default)]
    registrytoken: String,
}

/// Credentials by registry, the most specific first.
#[derive(Default)]
pub struct Keyring {
    entries: Vec<(String, AuthConfig)>,
}

impl Keyring {
    /// The credentials of pull secrets; what cannot be read in one is left out and logged, as upstream does.
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a Secret>) -> Self {
        let mut entries = Vec::new();
        for s in secrets {
            let data = |key: &str| {
                s.data
                    .as_ref()
                    .and_then(|d| d.get(key))
                    .map(|v| v.0.as_slice())
            };
            let auths = if let Some(text) = data(".dockerconfigjson") {
                serde_json::from_slice::<DockerConfigJson>(text).map(|c| c.auths)
            } else if let Some(text) = data(".dockercfg") {
                serde_json::from_slice::<BTreeMap<String, Entry>>(text)
            } else {
                continue;
            };
            match auths {
                Ok(auths) => entries.extend(
                    auths
                        .into_iter()
                        .filter_map(|(k, e)| Some((normalize(&k), convert(e)?))),
                ),
                Err(error) => {
                    tracing::warn!(secret = %s.metadata.name.as_deref().unwrap_or_default(), %error, "a pull secret cannot be read");
                }
            }
        }
        entries.sort_by(|a, b| b.0.cmp(&a.0));
        Keyring { entries }
    }

    /// All credentials that fit an image, the most specific first.
    pub fn lookup(&self, image: &Reference) -> Vec<AuthConfig> {
        let registry = match image.registry.as_str() {
            "docker.io" => "index.docker.io",
            r => r,
        };
        let target = format!("{registry}/{}", image.path);
        self.entries
            .iter()
            .filter(|(k, _)| matches(k, &target))
            .map(|(_, a)| a.clone())
            .collect()
    }
}

fn normalize(key: &str) -> String {
    let k = key
        .trim_start_matches("https://")
        .trim_start_matches("http://");
    let k = k
        .trim_end_matches('/')
        .trim_end_matches("/v1")
        .trim_end_matches("/v2");
    match k.strip_prefix("docker.io") {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("index.docker.io{rest}"),
        _ => k.to_owned(),
    }
}

/// Whether `host[:port][/path]` with `*` for parts of host labels covers `target`.
fn matches(key: &str, target: &str) -> bool {
    let (key_host, key_path) = key.split_once('/').unwrap_or((key, ""));
    let (host, path) = target.split_once('/').unwrap_or((target, ""));
    let split = |h: &str| match h.rsplit_once(':') {
        Some((h, p)) => (h.to_owned(), p.to_owned()),
        None => (h.to_owned(), String::new()),
    };
    let ((kh, kp), (th, tp)) = (split(key_host), split(host));
    let (kl, tl): (Vec<&str>, Vec<&str>) = (kh.split('.').collect(), th.split('.').collect());
    kp == tp
        && kl.len() == tl.len()
        && kl.iter().zip(&tl).all(|(k, t)| glob(k, t))
        && (key_path.is_empty() || path == key_path || path.starts_with(&format!("{key_path}/")))
}

fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((head, tail)) => {
            text.len() >= head.len() + tail.len()
                && text.starts_with(head)
                && (0..=text.len() - head.len()).any(|n| {
                    text.is_char_boundary(head.len() + n) && glob(tail, &text[head.len() + n..])
                })
        }
    }
}

fn convert(e: Entry) -> Option<AuthConfig> {
    let mut out = AuthConfig {
        username: e.username,
        password: e.password,
        identity_token: e.identitytoken,
        registry_token: e.registrytoken,
        ..AuthConfig::default()
    };
    if !e.auth.is_empty() {
        let decoded = base64::engine::general_purpose::STANDARD
            .decode(e.auth.trim())
            .ok()?;
        let text = String::from_utf8(decoded).ok()?;
        let (user, password) = text.split_once(':')?;
        out.username = user.to_owned();
        out.password = password.trim_end_matches('\0').to_owned();
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_fitting() {
        let json = r#"{"auths": {"https://index.docker.io/v1/": {"auth": "dTpw"}, "*.example.com": {"username": "wild"},
            "r.example.com/team": {"username": "team"}, "r.example.com:5000": {"username": "port"}}}"#;
        let secret = Secret {
            data: Some(
                [(
                    ".dockerconfigjson".to_owned(),
                    k8s_openapi::ByteString(json.as_bytes().to_vec()),
                )]
                .into(),
            ),
            ..Secret::default()
        };
        let ring = Keyring::new([&secret]);
        for (image, want) in [
            ("busybox", "u"),
            ("r.example.com/team/x", "team wild"),
            ("r.example.com/teams/x", "wild"),
            ("r.example.com:5000/x", "port"),
            ("quay.io/x", ""),
        ] {
            let r = super::super::reference::parse(image).unwrap();
            let got: Vec<String> = ring.lookup(&r).into_iter().map(|a| a.username).collect();
            assert_eq!(got.join(" "), want, "{image}");
        }
    }
}
