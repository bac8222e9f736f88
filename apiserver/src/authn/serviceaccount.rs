//! Service-account tokens: those bound to objects (`pkg/serviceaccount/claims.go`) and those of old in Secrets
//! (`pkg/serviceaccount/legacy.go`). A signature is checked once per token; what a token is bound to is looked up again
//! in every second of use, so that a deleted Pod's token is refused a second later (upstream: ten).

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use keelson_machinery::clock::Clock;
use keelson_machinery::meta;
use keelson_machinery::meta::names;
use keelson_machinery::text::quote_all;
use keelson_machinery::value::{self, Value};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use super::jwt::{self, Unverified};
use super::recent::Recent;
use super::x509::CREDENTIAL_ID;
use super::{AuthenticationError, TokenUser};
use crate::objects::Objects;
use crate::pki::keys::PublicKey;
use crate::request::UserInfo;

/// The issuer of tokens in Secrets (`serviceaccount.LegacyIssuer`).
pub const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";
/// `serviceaccount.PodNameKey` and its siblings: keys of [`UserInfo::extra`].
pub const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
/// The uid of the Pod that a token is bound to.
pub const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
/// The node that a token's Pod runs on, or that the token is bound to.
pub const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
/// The uid of that node.
pub const NODE_UID: &str = "authentication.kubernetes.io/node-uid";

const PREFIX: &str = "system:serviceaccount:";
/// Tokens whose signature is remembered as good, about 2 KiB each. A forgotten one costs a check of some 70 us.
const REMEMBERED: usize = 4096;

/// `system:serviceaccount:<namespace>:<name>`.
pub fn username(namespace: &str, name: &str) -> String {
    format!("{PREFIX}{namespace}:{name}")
}

/// The groups of every service account of a namespace.
pub fn groups(namespace: &str) -> Vec<String> {
    vec![
        "system:serviceaccounts".into(),
        format!("system:serviceaccounts:{namespace}"),
    ]
}

/// Namespace and name, if `username` is a service account's (`SplitUsername`).
pub fn split_username(username: &str) -> Option<(&str, &str)> {
    let (namespace, name) = username.strip_prefix(PREFIX)?.split_once(':')?;
    (names::name_is_dns_label(namespace, false).is_empty()
        && names::name_is_dns_subdomain(name, false).is_empty())
    .then_some((namespace, name))
}

/// Checks tokens.
pub(super) struct ServiceAccounts {
    pub(super) keys: Vec<PublicKey>,
    pub(super) issuers: Vec<String>,
    pub(super) api_audiences: Vec<String>,
    pub(super) objects: Objects,
    pub(super) clock: Clock,
    verified: Recent<[u8; 32], Arc<Known>>,
}

/// A token whose signature is good.
struct Known {
    claims: Value,
    /// The second in which everything else was last found good, and whose token it is.
    checked: Mutex<Option<(i64, UserInfo)>>,
}

fn bad<T>(why: impl Into<String>) -> Result<T, AuthenticationError> {
    Err(AuthenticationError(why.into()))
}

impl ServiceAccounts {
    pub(super) fn new(
        keys: Vec<PublicKey>,
        issuers: Vec<String>,
        api_audiences: Vec<String>,
        objects: Objects,
        clock: Clock,
    ) -> Self {
        ServiceAccounts {
            keys,
            issuers,
            api_audiences,
            objects,
            clock,
            verified: Recent::new(REMEMBERED),
        }
    }

    /// `Ok(None)`: not a token of ours. `audiences`: whom the token must be meant for.
    pub(super) async fn authenticate(
        &self,
        token: &str,
        audiences: Option<&[String]>,
    ) -> Result<Option<TokenUser>, AuthenticationError> {
        let fingerprint: [u8; 32] = Sha256::digest(token).into();
        let known = match self.verified.get(&fingerprint) {
            Some(known) => known,
            None => {
                let Some(unverified) = Unverified::parse(token) else {
                    return Ok(None);
                };
                let issuer = unverified.issuer();
                if issuer != LEGACY_ISSUER && !self.issuers.iter().any(|known| known == issuer) {
                    return Ok(None);
                }
                let claims = unverified.verify(&self.keys).map_err(AuthenticationError)?;
                let known = Arc::new(Known {
                    claims,
                    checked: Mutex::new(None),
                });
                self.verified.put(fingerprint, known.clone());
                known
            }
        };
        let claims = &known.claims;
        let mut token_audiences = jwt::audiences(claims).map_err(AuthenticationError)?;
        if token_audiences.is_empty() {
            // Tokens without audiences are for the API server alone.
            token_audiences.clone_from(&self.api_audiences);
        }
        let requested = audiences.unwrap_or(&self.api_audiences);
        let common: Vec<String> = token_audiences
            .iter()
            .filter(|audience| requested.contains(audience))
            .cloned()
            .collect();
        if common.is_empty() && !self.api_audiences.is_empty() {
            return bad(format!(
                "token audiences [{}] is invalid for the target audiences [{}]",
                quote_all(&token_audiences, " "),
                quote_all(requested, " ")
            ));
        }
        let second = self.clock.now().as_second();
        let fresh = known
            .checked
            .lock()
            .clone()
            .filter(|(checked, _)| *checked == second);
        let user = match fresh {
            Some((_, user)) => user,
            None => {
                let legacy = claims.get("iss").and_then(Value::as_str) == Some(LEGACY_ISSUER);
                let user = if legacy {
                    self.legacy(token, claims).await?
                } else {
                    self.bound(claims).await?
                };
                *known.checked.lock() = Some((second, user.clone()));
                user
            }
        };
        Ok(Some(TokenUser {
            user,
            audiences: common,
        }))
    }

    /// `validator.Validate`.
    async fn bound(&self, claims: &Value) -> Result<UserInfo, AuthenticationError> {
        let now = self.clock.now().as_second();
        jwt::check_times(claims, now).map_err(AuthenticationError)?;
        let Some(private) = claims.get("kubernetes.io") else {
            return bad("service account token claims could not be validated");
        };
        let namespace = value::str_or_empty(private, &["namespace"]);
        let (name, uid) = reference(private, "serviceaccount").unwrap_or_default();
        let account = self.existing("serviceaccounts", namespace, name).await?;
        let Some(account) = account else {
            return bad(format!("serviceaccounts \"{name}\" not found"));
        };
        if meta::uid(&account) != uid {
            return bad(format!(
                "service account UID ({}) does not match claim ({uid})",
                meta::uid(&account)
            ));
        }
        if deleted_before(&account, now) {
            return bad(format!(
                "service account {namespace}/{name} has been deleted"
            ));
        }
        let mut user = UserInfo {
            name: username(namespace, name),
            uid: uid.to_owned(),
            groups: groups(namespace),
            extra: Default::default(),
        };
        let mut extra = |key: &str, value: &str| {
            if !value.is_empty() {
                user.extra.insert(key.to_owned(), vec![value.to_owned()]);
            }
        };
        if let Some(id) = claims
            .get("jti")
            .and_then(Value::as_str)
            .filter(|id| !id.is_empty())
        {
            extra(CREDENTIAL_ID, &format!("JTI={id}"));
        }
        if let Some((name, uid)) = reference(private, "secret") {
            self.bound_object("secrets", "secret", namespace, name, uid, now)
                .await?;
        }
        let pod = reference(private, "pod");
        if let Some((name, uid)) = pod {
            self.bound_object("pods", "pod", namespace, name, uid, now)
                .await?;
            extra(POD_NAME, name);
            extra(POD_UID, uid);
        }
        if let Some((name, uid)) = reference(private, "node") {
            // With a Pod, the node is information; alone, it is what the token is bound to.
            if pod.is_none() {
                self.bound_object("nodes", "node", "", name, uid, now)
                    .await?;
            }
            extra(NODE_NAME, name);
            if !name.is_empty() {
                extra(NODE_UID, uid);
            }
        }
        Ok(user)
    }

    async fn bound_object(
        &self,
        resource: &str,
        word: &str,
        namespace: &str,
        name: &str,
        uid: &str,
        now: i64,
    ) -> Result<(), AuthenticationError> {
        let Some(object) = self.existing(resource, namespace, name).await? else {
            return bad("service account token has been invalidated");
        };
        let stored = meta::uid(&object);
        if stored != uid {
            return bad(format!(
                "{word} UID ({stored}) does not match service account {word} ref claim ({uid})"
            ));
        }
        if deleted_before(&object, now) {
            return bad("service account token has been invalidated");
        }
        Ok(())
    }

    /// `legacyValidator.Validate`: the token must be the one that stands in its Secret.
    async fn legacy(&self, token: &str, claims: &Value) -> Result<UserInfo, AuthenticationError> {
        let claim = |key: &str, missing: &str| match claims.get(key).and_then(Value::as_str) {
            Some(text) if !text.is_empty() => Ok(text.to_owned()),
            _ => bad(format!("{missing} claim is missing")),
        };
        let subject = claim("sub", "sub")?;
        let namespace = claim("kubernetes.io/serviceaccount/namespace", "namespace")?;
        let secret_name = claim("kubernetes.io/serviceaccount/secret.name", "secretName")?;
        let name = claim(
            "kubernetes.io/serviceaccount/service-account.name",
            "serviceAccountName",
        )?;
        let uid = claim(
            "kubernetes.io/serviceaccount/service-account.uid",
            "serviceAccountUID",
        )?;
        if split_username(&subject) != Some((namespace.as_str(), name.as_str())) {
            return bad("sub claim is invalid");
        }
        let Some(secret) = self.existing("secrets", &namespace, &secret_name).await? else {
            return bad("Token has been invalidated");
        };
        if meta::deletion_timestamp(&secret).is_some() {
            return bad("Token has been invalidated");
        }
        let stored = STANDARD
            .decode(value::str_or_empty(&secret, &["data", "token"]))
            .unwrap_or_default();
        // Compared by digest: the time it takes says nothing about the stored token.
        if Sha256::digest(stored) != Sha256::digest(token) {
            return bad("Token does not match server's copy");
        }
        let Some(account) = self.existing("serviceaccounts", &namespace, &name).await? else {
            return bad(format!("serviceaccounts \"{name}\" not found"));
        };
        if meta::deletion_timestamp(&account).is_some() {
            return bad(format!(
                "ServiceAccount {namespace}/{name} has been deleted"
            ));
        }
        if meta::uid(&account) != uid {
            return bad(format!(
                "ServiceAccount UID ({}) does not match claim ({uid})",
                meta::uid(&account)
            ));
        }
        const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";
        if meta::label(&secret, INVALID_SINCE).is_some_and(|since| !since.is_empty()) {
            return bad(format!(
                "the token in secret {namespace}/{secret_name} for service account {namespace}/{name} has been marked invalid"
            ));
        }
        Ok(UserInfo {
            name: username(&namespace, &name),
            uid,
            groups: groups(&namespace),
            extra: Default::default(),
        })
    }

    /// A failed read refuses the token with the failure as reason: it must never read as "deleted" or as "fine".
    async fn existing(
        &self,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Value>>, AuthenticationError> {
        self.objects
            .find("", resource, namespace, name)
            .await
            .map_err(|error| AuthenticationError(error.to_string()))
    }
}

/// The name and uid of a reference claim, when it is there.
fn reference<'a>(private: &'a Value, key: &str) -> Option<(&'a str, &'a str)> {
    let reference = value::get(private, &[key])?;
    Some((
        value::str_or_empty(reference, &["name"]),
        value::str_or_empty(reference, &["uid"]),
    ))
}

/// Deleted, and longer ago than clocks may differ.
fn deleted_before(object: &Value, now: i64) -> bool {
    meta::deletion_timestamp(object).is_some_and(|text| match text.parse::<jiff::Timestamp>() {
        Ok(time) => time.as_second() < now - jwt::LEEWAY_SECONDS,
        Err(_) => true, // deleted at a time that cannot be read: deleted
    })
}
