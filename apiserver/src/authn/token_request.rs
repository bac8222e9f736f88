//! Making service-account tokens: the `serviceaccounts/token` subresource
//! (`pkg/registry/core/serviceaccount/storage.TokenREST`).

use keelson_machinery::clock::Clock;
use keelson_machinery::meta::{self, GroupKind, GroupResource};
use keelson_machinery::status::ApiError;
use keelson_machinery::status::field::{FieldError, Path};
use keelson_machinery::value::{self, Value};
use serde_json::{Map, json};

use super::{jwt, serviceaccount};
use crate::objects::Objects;
use crate::pki::keys::SigningKey;

/// `ExpirationSeconds` when a request leaves it out.
const DEFAULT_EXPIRATION: i64 = 3600;
/// The lifetime that the ServiceAccount admission plugin asks for, a mark for tokens that old clients may not renew
/// (`WarnOnlyBoundTokenExpirationSeconds`).
pub const WARN_ONLY_EXPIRATION: i64 = 3607;
/// What such a token is really given: a year (`ExpirationExtensionSeconds`).
const EXTENDED_EXPIRATION: i64 = 24 * 365 * 3600;

/// Signs tokens for service accounts.
pub struct TokenIssuer {
    /// The key.
    pub key: SigningKey,
    /// The `iss` claim.
    pub issuer: String,
    /// Audiences of requests that name none.
    pub api_audiences: Vec<String>,
    /// `--service-account-max-token-expiration` in seconds; 0 for no limit.
    pub max_expiration: i64,
    /// `--service-account-extend-token-expiration`.
    pub extend_expiration: bool,
    /// Where accounts and bound objects are read.
    pub objects: Objects,
    /// Time and token ids.
    pub clock: Clock,
}

fn group_kind() -> GroupKind {
    GroupKind::new("authentication.k8s.io", "TokenRequest")
}

impl TokenIssuer {
    /// Answers a `TokenRequest` (decoded, admitted) for the account `namespace`/`name`. Warnings for the client are
    /// added to `warnings`.
    pub async fn issue(
        &self,
        namespace: &str,
        name: &str,
        mut request: Value,
        warnings: &mut Vec<String>,
    ) -> Result<Value, ApiError> {
        let account = self.prepare(namespace, name, &mut request).await?;
        let now = self.clock.now();
        let bound = match value::get(&request, &["spec", "boundObjectRef"]) {
            Some(reference) => self.bound(namespace, name, reference).await?,
            None => Bound::default(),
        };
        let mut expiration =
            value::get_i64(&request, &["spec", "expirationSeconds"]).unwrap_or(DEFAULT_EXPIRATION);
        if self.max_expiration > 0 && expiration > self.max_expiration {
            warnings.push(format!(
                "requested expiration of {expiration} seconds shortened to {} seconds",
                self.max_expiration
            ));
            expiration = self.max_expiration;
            value::set(&mut request, &["spec", "expirationSeconds"], expiration);
        }
        let audiences: Vec<&str> = value::items(&request, &["spec", "audiences"])
            .iter()
            .filter_map(Value::as_str)
            .collect();
        let for_us = audiences
            .iter()
            .all(|audience| self.api_audiences.iter().any(|own| own == audience));
        let extend = self.extend_expiration
            && bound.pod.is_some()
            && expiration == WARN_ONLY_EXPIRATION
            && for_us;

        let seconds = now.as_second();
        let mut private = Map::new();
        private.insert("namespace".into(), namespace.into());
        for (key, reference) in [
            ("node", bound.node),
            ("pod", bound.pod),
            ("secret", bound.secret),
        ] {
            if let Some(reference) = reference {
                private.insert(key.into(), reference);
            }
        }
        private.insert(
            "serviceaccount".into(),
            json!({"name": name, "uid": meta::uid(&account)}),
        );
        if extend {
            private.insert("warnafter".into(), (seconds + expiration).into());
        }
        let claims = json!({
            "aud": audiences,
            "exp": seconds + if extend { EXTENDED_EXPIRATION } else { expiration },
            "iat": seconds,
            "iss": self.issuer,
            "jti": self.clock.uuid(),
            "kubernetes.io": private,
            "nbf": seconds,
            "sub": serviceaccount::username(namespace, name),
        });
        let token = jwt::sign(&self.key, &claims)
            .map_err(|error| ApiError::internal(format!("failed to generate token: {error}")))?;
        let ends =
            jiff::Timestamp::from_second(seconds + expiration).map_err(ApiError::internal)?;
        meta::set(&mut request, "creationTimestamp", time_text(now));
        value::set(
            &mut request,
            &["status"],
            json!({"expirationTimestamp": time_text(ends), "token": token}),
        );
        Ok(request)
    }

    /// Fills in what the request left out and checks it; returns the account.
    async fn prepare(
        &self,
        namespace: &str,
        name: &str,
        request: &mut Value,
    ) -> Result<std::sync::Arc<Value>, ApiError> {
        for (field, wanted) in [("name", name), ("namespace", namespace)] {
            let given = meta::text(request, field);
            if !given.is_empty() && given != wanted {
                let path = Path::new("metadata").child(field);
                let error = FieldError::invalid(
                    &path,
                    given,
                    format!("must match the service account {field} if specified"),
                );
                return Err(ApiError::invalid(&group_kind(), name, vec![error]));
            }
        }
        let account = self
            .objects
            .get("", "serviceaccounts", namespace, name)
            .await?;
        let (uid, stored) = (meta::uid(request).to_owned(), meta::uid(&account));
        if !uid.is_empty() && uid != stored {
            let at = GroupResource::new("authentication.k8s.io", "TokenRequest");
            let why = format!(
                "the UID in the token request ({uid}) does not match the UID of the service account ({stored})"
            );
            return Err(ApiError::conflict(&at, name, why));
        }
        if value::items(request, &["spec", "audiences"]).is_empty() {
            value::set(request, &["spec", "audiences"], json!(self.api_audiences));
        }
        meta::set(request, "name", name);
        meta::set(request, "namespace", namespace);
        meta::set(request, "uid", stored);
        value::remove(request, &["status"]);
        if value::get(request, &["spec", "expirationSeconds"]).is_none() {
            value::set(request, &["spec", "expirationSeconds"], DEFAULT_EXPIRATION);
        }
        let expiration =
            value::get_i64(request, &["spec", "expirationSeconds"]).unwrap_or_default();
        let path = Path::new("spec").child("expirationSeconds");
        let mut errors = Vec::new();
        if expiration < 600 {
            errors.push(FieldError::invalid(
                &path,
                expiration,
                "may not specify a duration less than 10 minutes",
            ));
        }
        if expiration > 1 << 32 {
            errors.push(FieldError::invalid(
                &path,
                expiration,
                "may not specify a duration larger than 2^32 seconds",
            ));
        }
        if errors.is_empty() {
            Ok(account)
        } else {
            Err(ApiError::invalid(&group_kind(), "", errors))
        }
    }

    async fn bound(
        &self,
        namespace: &str,
        account: &str,
        reference: &Value,
    ) -> Result<Bound, ApiError> {
        let text = |field: &str| value::str_or_empty(reference, &[field]);
        let (api_version, kind, name, wanted) =
            (text("apiVersion"), text("kind"), text("name"), text("uid"));
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let claim = |object: &Value| json!({"name": meta::name(object), "uid": meta::uid(object)});
        let mut bound = Bound::default();
        let uid = match (group, kind) {
            ("", "Pod") => {
                let pod = self.objects.get("", "pods", namespace, name).await?;
                if value::str_or_empty(&pod, &["spec", "serviceAccountName"]) != account {
                    let message = format!(
                        "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name."
                    );
                    return Err(ApiError::bad_request(message));
                }
                let node = value::str_or_empty(&pod, &["spec", "nodeName"]);
                if !node.is_empty() {
                    // The name alone is worth having when the node's object is gone.
                    bound.node = Some(match self.objects.find("", "nodes", "", node).await? {
                        Some(node) => claim(&node),
                        None => json!({"name": node}),
                    });
                }
                bound.pod = Some(claim(&pod));
                meta::uid(&pod).to_owned()
            }
            ("", "Node") => {
                let node = self.objects.get("", "nodes", "", name).await?;
                bound.node = Some(claim(&node));
                meta::uid(&node).to_owned()
            }
            ("", "Secret") => {
                let secret = self.objects.get("", "secrets", namespace, name).await?;
                bound.secret = Some(claim(&secret));
                meta::uid(&secret).to_owned()
            }
            _ => {
                return Err(ApiError::bad_request(format!(
                    "cannot bind token to object of type {group}/{version}, Kind={kind}"
                )));
            }
        };
        if !wanted.is_empty() && wanted != uid {
            let why = format!(
                "the UID in the bound object reference ({wanted}) does not match the UID in record. The object might have been deleted and then recreated"
            );
            return Err(ApiError::conflict(
                &GroupResource::new(group, kind),
                name,
                why,
            ));
        }
        Ok(bound)
    }
}

/// The reference claims of a token.
#[derive(Default)]
struct Bound {
    pod: Option<Value>,
    node: Option<Value>,
    secret: Option<Value>,
}

/// `metav1.Time`: whole seconds, UTC.
pub(crate) fn time_text(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
