//! Answers about identity: TokenReview, SelfSubjectReview, and the two OpenID Connect documents by which others check
//! service-account tokens (`pkg/registry/authentication`, `pkg/serviceaccount/openidmetadata.go`).

use std::collections::BTreeSet;

use bytes::Bytes;
use keelson_machinery::clock::Clock;
use keelson_machinery::meta;
use keelson_machinery::status::ApiError;
use keelson_machinery::value::{self, Value};
use serde_json::{Map, json};

use super::token_request::time_text;
use super::{Authentication, ConfigError, with_authenticated_group};
use crate::pki::keys::PublicKey;
use crate::request::UserInfo;

/// `authentication.k8s.io/v1 UserInfo`.
pub fn user_value(user: &UserInfo) -> Value {
    let mut out = Map::new();
    if !user.name.is_empty() {
        out.insert("username".into(), user.name.clone().into());
    }
    if !user.uid.is_empty() {
        out.insert("uid".into(), user.uid.clone().into());
    }
    if !user.groups.is_empty() {
        out.insert("groups".into(), json!(user.groups));
    }
    if !user.extra.is_empty() {
        out.insert("extra".into(), json!(user.extra));
    }
    Value::Object(out)
}

/// Answers a `TokenReview` (decoded, admitted).
pub async fn token_review(
    authentication: &Authentication,
    mut review: Value,
) -> Result<Value, ApiError> {
    let token = value::str_or_empty(&review, &["spec", "token"]).to_owned();
    if token.is_empty() {
        return Err(ApiError::bad_request(
            "token is required for TokenReview in authentication",
        ));
    }
    let asked: Vec<String> = value::items(&review, &["spec", "audiences"])
        .iter()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    let audiences = if asked.is_empty() {
        authentication.api_audiences()
    } else {
        &asked
    };
    let status = match authentication
        .authenticate_token(&token, Some(audiences))
        .await
    {
        Ok(Some(found)) => {
            let mut status = json!({"authenticated": true, "user": user_value(&with_authenticated_group(found.user))});
            if !found.audiences.is_empty() {
                status["audiences"] = json!(found.audiences);
            }
            status
        }
        Ok(None) => json!({"error": "invalid bearer token", "user": {}}),
        Err(error) => json!({"error": error.0, "user": {}}),
    };
    value::set(&mut review, &["status"], status);
    Ok(review)
}

/// Answers a `SelfSubjectReview` (decoded, admitted).
pub fn self_subject_review(mut review: Value, user: &UserInfo, clock: &Clock) -> Value {
    meta::set(&mut review, "creationTimestamp", time_text(clock.now()));
    value::set(
        &mut review,
        &["status"],
        json!({"userInfo": user_value(user)}),
    );
    review
}

/// `/.well-known/openid-configuration` and `/openid/v1/jwks`, ready to be sent.
#[derive(Clone, Debug)]
pub struct OpenIdDocuments {
    /// `application/json`.
    pub configuration: Bytes,
    /// `application/jwk-set+json`.
    pub keys: Bytes,
}

impl OpenIdDocuments {
    /// How long both may be cached (`Cache-Control: public, max-age=...`).
    pub const MAX_AGE_SECONDS: u32 = 3600;

    /// `jwks_uri`: `--service-account-jwks-uri`, or `https://<external address>/openid/v1/jwks`.
    ///
    /// Fails for an issuer that is not a plain https URL; upstream then serves neither document, and so should we.
    pub fn new(issuer: &str, jwks_uri: &str, keys: &[PublicKey]) -> Result<Self, ConfigError> {
        let problem = |text: String| Err(ConfigError::Issuer(text));
        if !issuer.starts_with("https://") {
            return problem(format!("issuer URL must use https scheme, got: {issuer}"));
        }
        if issuer.contains('?') || issuer.contains('#') {
            return problem(format!(
                "issuer URL may not include a query or a fragment, got: {issuer}"
            ));
        }
        if !jwks_uri.starts_with("https://") {
            return problem(format!(
                "jwksURI requires https scheme, parsed as: {jwks_uri}"
            ));
        }
        if keys.is_empty() {
            return problem("no keys provided for validating keyset".into());
        }
        let algorithms: BTreeSet<&str> = keys.iter().map(|key| key.algorithm().name()).collect();
        let configuration = json!({
            "issuer": issuer,
            "jwks_uri": jwks_uri,
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": algorithms,
        });
        let set = json!({"keys": keys.iter().map(PublicKey::jwk).collect::<Vec<_>>()});
        Ok(OpenIdDocuments {
            configuration: configuration.to_string().into(),
            keys: set.to_string().into(),
        })
    }
}
