//! Bearer tokens that are not JSON Web Tokens: those of a file (`--token-auth-file`) and bootstrap tokens
//! (`plugin/pkg/auth/authenticator/token/bootstrap`).

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use keelson_machinery::clock::Clock;
use keelson_machinery::meta;
use keelson_machinery::value::{self, Value};
use sha2::{Digest, Sha256};

use super::{AuthenticationError, ConfigError};
use crate::objects::Objects;
use crate::request::UserInfo;

/// Tokens of a file, by their digest, so that a lookup's time tells nothing about them.
#[derive(Default)]
pub(super) struct StaticTokens(HashMap<[u8; 32], UserInfo>);

impl StaticTokens {
    /// Lines of `token,user,uid[,"group1,group2"]`.
    pub(super) fn parse(csv: &str) -> Result<Self, ConfigError> {
        let mut tokens = HashMap::new();
        for (index, line) in csv.lines().enumerate() {
            if line.trim().is_empty() {
                continue;
            }
            let fields = csv_fields(line).ok_or(ConfigError::TokenFile {
                line: index + 1,
                problem: "a quote is not closed".into(),
            })?;
            let [token, name, uid, rest @ ..] = fields.as_slice() else {
                let problem = format!(
                    "token file must have at least 3 columns (token, user name, user uid), found {}",
                    fields.len()
                );
                return Err(ConfigError::TokenFile {
                    line: index + 1,
                    problem,
                });
            };
            if token.is_empty() {
                continue;
            }
            let groups = rest
                .first()
                .map(|groups| groups.split(',').map(str::to_owned).collect())
                .unwrap_or_default();
            tokens.insert(
                Sha256::digest(token).into(),
                UserInfo {
                    name: name.clone(),
                    uid: uid.clone(),
                    groups,
                    extra: Default::default(),
                },
            );
        }
        Ok(StaticTokens(tokens))
    }

    pub(super) fn authenticate(&self, token: &str) -> Option<UserInfo> {
        self.0
            .get(&<[u8; 32]>::from(Sha256::digest(token)))
            .cloned()
    }
}

/// One line of CSV; `None` when a quote is not closed.
fn csv_fields(line: &str) -> Option<Vec<String>> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                fields.last_mut()?.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            c => fields.last_mut()?.push(c),
        }
    }
    (!quoted).then_some(fields)
}

/// The id and secret of a bootstrap token (`[a-z0-9]{6}.[a-z0-9]{16}`).
fn split_bootstrap(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let plain = |text: &str, length| {
        text.len() == length
            && text
                .bytes()
                .all(|b| b.is_ascii_digit() || b.is_ascii_lowercase())
    };
    (plain(id, 6) && plain(secret, 16)).then_some((id, secret))
}

/// The user of a bootstrap token: `system:bootstrap:<id>` in `system:bootstrappers` and the groups its Secret names.
/// `Ok(None)`: not such a token, or not one that is good.
pub(super) async fn bootstrap(
    objects: &Objects,
    clock: &Clock,
    token: &str,
) -> Result<Option<UserInfo>, AuthenticationError> {
    let Some((id, secret)) = split_bootstrap(token) else {
        return Ok(None);
    };
    let stored = objects
        .find(
            "",
            "secrets",
            "kube-system",
            &format!("bootstrap-token-{id}"),
        )
        .await
        .map_err(|error| AuthenticationError(error.to_string()))?;
    Ok(stored.and_then(|stored| bootstrap_user(&stored, id, secret, clock)))
}

fn bootstrap_user(stored: &Value, id: &str, secret: &str, clock: &Clock) -> Option<UserInfo> {
    let data = |key: &str| {
        let bytes = STANDARD
            .decode(value::str_or_empty(stored, &["data", key]))
            .ok()?;
        String::from_utf8(bytes).ok()
    };
    let usable = meta::deletion_timestamp(stored).is_none()
        && value::str_or_empty(stored, &["type"]) == "bootstrap.kubernetes.io/token"
        && Sha256::digest(data("token-secret")?) == Sha256::digest(secret)
        && data("token-id")? == id
        && !expired(&data("expiration")?, clock)
        && data("usage-bootstrap-authentication")? == "true";
    if !usable {
        return None;
    }
    let mut groups = vec!["system:bootstrappers".to_owned()];
    for group in data("auth-extra-groups")?
        .split(',')
        .map(str::trim)
        .filter(|group| !group.is_empty())
    {
        if !bootstrap_group(group) {
            return None;
        }
        groups.push(group.to_owned());
    }
    groups.sort();
    groups.dedup();
    Some(UserInfo {
        name: format!("system:bootstrap:{id}"),
        uid: String::new(),
        groups,
        extra: Default::default(),
    })
}

/// An expiry that cannot be read counts as passed (`secrets.HasExpired`).
fn expired(text: &str, clock: &Clock) -> bool {
    !text.is_empty()
        && text
            .parse::<jiff::Timestamp>()
            .map_or(true, |expiry| expiry <= clock.now())
}

/// `\Asystem:bootstrappers:[a-z0-9:-]{0,255}[a-z0-9]\z` (`BootstrapGroupPattern`).
fn bootstrap_group(group: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_digit() || b.is_ascii_lowercase();
    group
        .strip_prefix("system:bootstrappers:")
        .is_some_and(|rest| {
            rest.len() <= 256
                && rest
                    .bytes()
                    .all(|b| alphanumeric(b) || b == b':' || b == b'-')
                && rest.bytes().next_back().is_some_and(alphanumeric)
        })
}
