//! Who is asking, and whether they may (upstream `pkg/kubelet/server/auth.go`). Without an answer from the API
//! server the answer is no.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result};
use http::{Method, StatusCode};
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use keelson_machinery::clock::Clock;
use kube::api::{Api, PostParams};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use x509_parser::prelude::*;

use crate::config::{Authentication, Authorization, AuthorizationMode};

/// How many answers are kept.
const CACHE: usize = 4096;
/// How long the API server may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Somebody who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct User {
    /// The name.
    pub name: String,
    /// The uid, where known.
    pub uid: String,
    /// The groups.
    pub groups: Vec<String>,
}

/// The user that a client certificate names: common name and organizations.
pub fn user_of_certificate(der: &[u8]) -> Result<User> {
    let (_, cert) = X509Certificate::from_der(der).context("reading a client certificate")?;
    let subject = cert.subject();
    let name = subject
        .iter_common_name()
        .next()
        .and_then(|a| a.as_str().ok())
        .unwrap_or_default()
        .to_owned();
    let mut groups: Vec<String> = subject
        .iter_organization()
        .filter_map(|a| a.as_str().ok())
        .map(str::to_owned)
        .collect();
    groups.push("system:authenticated".to_owned());
    Ok(User {
        name,
        uid: String::new(),
        groups,
    })
}

/// What a request is about, for authorization: the subresources of `nodes`, any of which will do.
pub fn attributes(method: &Method, path: &str) -> (&'static str, Vec<&'static str>) {
    let verb = match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    };
    let below = |p: &str| path == p || path.strip_prefix(p).is_some_and(|r| r.starts_with('/'));
    let subresources = if below("/pods") || below("/runningpods") {
        vec!["pods", "proxy"]
    } else if below("/healthz") {
        vec!["healthz", "proxy"]
    } else if below("/configz") {
        vec!["configz", "proxy"]
    } else if below("/stats") {
        vec!["stats"]
    } else if below("/metrics") {
        vec!["metrics"]
    } else if below("/logs") {
        vec!["log"]
    } else if below("/checkpoint") {
        vec!["checkpoint"]
    } else {
        vec!["proxy"]
    };
    (verb, subresources)
}

struct Kept<T> {
    value: T,
    until: Timestamp,
}

/// User, verb and subresource.
type Question = (User, &'static str, &'static str);

/// Decides on requests.
pub struct Auth {
    client: Option<kube::Client>,
    clock: Clock,
    node: String,
    authentication: Authentication,
    authorization: Authorization,
    tokens: Mutex<HashMap<[u8; 32], Kept<Option<User>>>>,
    decisions: Mutex<HashMap<Question, Kept<bool>>>,
}

impl Auth {
    /// Decides by the configuration, asking `client`.
    pub fn new(
        client: Option<kube::Client>,
        clock: Clock,
        node: String,
        authentication: Authentication,
        authorization: Authorization,
    ) -> Self {
        Auth {
            client,
            clock,
            node,
            authentication,
            authorization,
            tokens: Mutex::new(HashMap::new()),
            decisions: Mutex::new(HashMap::new()),
        }
    }

    /// Whether the request may go on; else the answer to give. `peer` is the user of the client certificate.
    pub async fn check<B>(
        &self,
        peer: Option<User>,
        request: &http::Request<B>,
    ) -> Result<User, (StatusCode, String)> {
        let user = match peer {
            Some(u) => u,
            None => self.authenticate(request).await?,
        };
        if self.authorization.mode == AuthorizationMode::AlwaysAllow {
            return Ok(user);
        }
        let (verb, subresources) = attributes(request.method(), request.uri().path());
        for s in &subresources {
            match self.authorize(&user, verb, s).await {
                Ok(true) => return Ok(user),
                Ok(false) => {}
                Err(e) => {
                    let message = format!(
                        "Authorization error (user={}, verb={verb}, resource=nodes, subresource(s)={subresources:?}): {e}",
                        user.name
                    );
                    return Err((StatusCode::INTERNAL_SERVER_ERROR, message));
                }
            }
        }
        Err((
            StatusCode::FORBIDDEN,
            format!(
                "Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{}])",
                user.name,
                subresources.join(" ")
            ),
        ))
    }

    async fn authenticate<B>(
        &self,
        request: &http::Request<B>,
    ) -> Result<User, (StatusCode, String)> {
        let unauthorized = || (StatusCode::UNAUTHORIZED, "Unauthorized".to_owned());
        let header = request
            .headers()
            .get(http::header::AUTHORIZATION)
            .and_then(|v| v.to_str().ok());
        let token = header.and_then(|h| {
            let (scheme, token) = h.split_once(' ')?;
            scheme
                .eq_ignore_ascii_case("bearer")
                .then(|| token.trim().to_owned())
        });
        let Some(token) = token.filter(|t| !t.is_empty()) else {
            return if self.authentication.anonymous.enabled && header.is_none() {
                Ok(User {
                    name: "system:anonymous".to_owned(),
                    uid: String::new(),
                    groups: vec!["system:unauthenticated".to_owned()],
                })
            } else {
                Err(unauthorized())
            };
        };
        let (true, Some(client)) = (self.authentication.webhook.enabled, self.client.clone())
        else {
            return Err(unauthorized());
        };
        let key: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let now = self.clock.now();
        if let Some(k) = self.tokens.lock().get(&key)
            && k.until > now
        {
            return k.value.clone().ok_or_else(unauthorized);
        }
        let review = TokenReview {
            spec: TokenReviewSpec {
                token,
                ..TokenReviewSpec::default()
            },
            ..TokenReview::default()
        };
        let api: Api<TokenReview> = Api::all(client);
        let params = PostParams::default();
        let answer = tokio::time::timeout(TIMEOUT, api.create(&params, &review)).await;
        let status = match answer {
            Ok(Ok(r)) => r.status.unwrap_or_default(),
            Ok(Err(error)) => {
                tracing::warn!(%error, "a token could not be reviewed");
                return Err(unauthorized());
            }
            Err(_) => return Err(unauthorized()),
        };
        let user = status
            .user
            .filter(|_| status.authenticated == Some(true))
            .map(|u| User {
                name: u.username.unwrap_or_default(),
                uid: u.uid.unwrap_or_default(),
                groups: u.groups.unwrap_or_default(),
            });
        let until = now + self.authentication.webhook.cache_ttl.0;
        keep(
            &self.tokens,
            key,
            Kept {
                value: user.clone(),
                until,
            },
        );
        user.ok_or_else(unauthorized)
    }

    async fn authorize(
        &self,
        user: &User,
        verb: &'static str,
        subresource: &'static str,
    ) -> Result<bool, String> {
        let key = (user.clone(), verb, subresource);
        let now = self.clock.now();
        if let Some(k) = self.decisions.lock().get(&key)
            && k.until > now
        {
            return Ok(k.value);
        }
        let client = self.client.clone().ok_or("no API server is configured")?;
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.name.clone()),
                uid: Some(user.uid.clone()).filter(|u| !u.is_empty()),
                groups: Some(user.groups.clone()),
                resource_attributes: Some(ResourceAttributes {
                    verb: Some(verb.to_owned()),
                    version: Some("v1".to_owned()),
                    resource: Some("nodes".to_owned()),
                    subresource: Some(subresource.to_owned()),
                    name: Some(self.node.clone()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let api: Api<SubjectAccessReview> = Api::all(client);
        let params = PostParams::default();
        let allowed = match tokio::time::timeout(TIMEOUT, api.create(&params, &review)).await {
            Ok(Ok(r)) => r.status.is_some_and(|s| s.allowed),
            Ok(Err(e)) => return Err(e.to_string()),
            Err(_) => return Err("the API server did not answer in time".to_owned()),
        };
        let w = &self.authorization.webhook;
        let ttl = if allowed {
            w.cache_authorized_ttl
        } else {
            w.cache_unauthorized_ttl
        };
        keep(
            &self.decisions,
            key,
            Kept {
                value: allowed,
                until: now + ttl.0,
            },
        );
        Ok(allowed)
    }
}

fn keep<K: std::hash::Hash + Eq, T>(map: &Mutex<HashMap<K, Kept<T>>>, key: K, value: Kept<T>) {
    let mut map = map.lock();
    if map.len() >= CACHE {
        map.clear();
    }
    map.insert(key, value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_to_subresources() {
        for (method, path, verb, subs) in [
            (Method::GET, "/pods", "get", "pods proxy"),
            (Method::GET, "/podsx", "get", "proxy"),
            (Method::GET, "/stats/summary", "get", "stats"),
            (Method::GET, "/metrics", "get", "metrics"),
            (Method::POST, "/exec/a/b/c", "create", "proxy"),
            (Method::GET, "/containerLogs/a/b/c", "get", "proxy"),
            (Method::GET, "/logs/x", "get", "log"),
        ] {
            let (v, s) = attributes(&method, path);
            assert_eq!((v, s.join(" ").as_str()), (verb, subs), "{path}");
        }
    }
}
