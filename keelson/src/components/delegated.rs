//! Who may read a component's metrics: its API server is asked, by TokenReview and SubjectAccessReview (upstream's
//! delegated authentication and authorization, `k8s.io/apiserver/pkg/server/options`).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use keelson_machinery::status::{ApiError, Reason};
use keelson_runtime::metrics::{CONTENT_TYPE, Metrics};
use keelson_runtime::serving::Handler;
use kube::api::PostParams;
use kube::{Api, Client};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

/// How long an answer of the API server holds (upstream's cache of positive answers).
const KEPT: Duration = Duration::from_secs(10);
/// How many answers are kept.
const MOST: usize = 256;

/// Asks the API server.
struct Delegated {
    client: Client,
    /// Tokens that may read metrics, by their hash, and until when.
    allowed: Mutex<HashMap<[u8; 32], Instant>>,
}

/// Answers `/metrics` to those who may read it.
pub fn metrics(client: Client, metrics: Metrics) -> Handler {
    let delegated = Arc::new(Delegated {
        client,
        allowed: Mutex::default(),
    });
    Arc::new(move |request: Request<()>| {
        let (delegated, metrics) = (delegated.clone(), metrics.clone());
        Box::pin(async move {
            if let Err(error) = delegated.may(&request).await {
                return refuse(&error);
            }
            match metrics.text() {
                Ok(text) => answer(StatusCode::OK, CONTENT_TYPE, text),
                Err(error) => refuse(&ApiError::internal(error)),
            }
        })
    })
}

fn answer(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let kind = header::HeaderValue::from_static(kind);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn refuse(error: &ApiError) -> Response<Full<Bytes>> {
    let status = StatusCode::from_u16(error.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    answer(status, "application/json", error.to_value().to_string())
}

/// The bearer token of a request.
fn token(request: &Request<()>) -> Option<&str> {
    let value = request
        .headers()
        .get(header::AUTHORIZATION)?
        .to_str()
        .ok()?;
    let (scheme, token) = value.trim().split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

impl Delegated {
    async fn may(&self, request: &Request<()>) -> Result<(), ApiError> {
        let key: Option<[u8; 32]> = token(request).map(|token| Sha256::digest(token).into());
        let now = Instant::now();
        if let Some(key) = &key
            && self
                .allowed
                .lock()
                .get(key)
                .is_some_and(|until| *until > now)
        {
            return Ok(());
        }
        let user = match token(request) {
            Some(token) => self.authenticate(token).await?,
            None => UserInfo {
                username: Some("system:anonymous".to_owned()),
                groups: Some(vec!["system:unauthenticated".to_owned()]),
                ..UserInfo::default()
            },
        };
        let path = request.uri().path().to_owned();
        self.authorize(user, request.method().as_str().to_ascii_lowercase(), path)
            .await?;
        if let Some(key) = key {
            let mut allowed = self.allowed.lock();
            allowed.retain(|_, until| *until > now);
            if allowed.len() < MOST {
                allowed.insert(key, now + KEPT);
            }
        }
        Ok(())
    }

    async fn authenticate(&self, token: &str) -> Result<UserInfo, ApiError> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: token.to_owned(),
                ..TokenReviewSpec::default()
            },
            ..TokenReview::default()
        };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let answer = api.create(&PostParams::default(), &review).await;
        let status = answer
            .map_err(ApiError::internal)?
            .status
            .unwrap_or_default();
        match status.user {
            Some(user) if status.authenticated == Some(true) => Ok(user),
            _ => Err(ApiError::unauthorized("Unauthorized")),
        }
    }

    async fn authorize(&self, user: UserInfo, verb: String, path: String) -> Result<(), ApiError> {
        let name = user.username.clone().unwrap_or_default();
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: user.username,
                uid: user.uid,
                groups: user.groups,
                extra: user.extra,
                non_resource_attributes: Some(NonResourceAttributes {
                    path: Some(path.clone()),
                    verb: Some(verb.clone()),
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let answer = api.create(&PostParams::default(), &review).await;
        let status = answer
            .map_err(ApiError::internal)?
            .status
            .unwrap_or_default();
        if status.allowed && status.denied != Some(true) {
            return Ok(());
        }
        Err(ApiError::new(
            403,
            Reason::Forbidden,
            format!("forbidden: User {name:?} cannot {verb} path {path:?}"),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bearer_tokens() {
        let cases = [
            ("Bearer abc", Some("abc")),
            ("bearer  abc ", Some("abc")),
            ("Basic abc", None),
            ("Bearer ", None),
            ("Bearer", None),
        ];
        for (header, expected) in cases {
            let request = Request::get("/metrics")
                .header("authorization", header)
                .body(())
                .expect("a request");
            assert_eq!(token(&request), expected, "{header}");
        }
    }
}
