//! Authentication: turns credentials into a [`UserInfo`]. Authenticators are asked in order; the first that
//! recognises a credential decides.
//!
//! [`Authentication`] is upstream's chain (`pkg/kubeapiserver/authenticator.Config.New`): front-proxy headers, client
//! certificates, bearer tokens (file, service accounts, bootstrap), tokens in WebSocket protocols; then anonymous, for
//! requests that presented nothing at all. A bad credential is never taken for none.

pub mod impersonation;
mod jwt;
mod recent;
pub mod review;
pub mod serviceaccount;
#[cfg(test)]
mod tests;
pub mod tls;
pub mod token_request;
mod tokens;
pub mod x509;

use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderMap;
use http::header::{AUTHORIZATION, HeaderValue, SEC_WEBSOCKET_PROTOCOL};
use keelson_machinery::clock::Clock;
use rustls::crypto::CryptoProvider;

use crate::objects::Objects;
use crate::pki::keys::{KeyError, PublicKey};
use crate::request::UserInfo;
use serviceaccount::ServiceAccounts;
use tokens::StaticTokens;
use x509::{Authorities, RequestHeaderConfig};

/// Everybody who proved who they are.
pub const AUTHENTICATED: &str = "system:authenticated";
/// Everybody who did not.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// The user of requests without credentials.
pub const ANONYMOUS: &str = "system:anonymous";

/// What is known of the connection a request came by.
#[derive(Clone, Debug, Default)]
pub struct ConnectionInfo {
    /// The peer's address; `None` for callers in the same process.
    pub remote: Option<SocketAddr>,
    /// The client certificate chain, leaf first, DER; empty when none was presented. The handshake has proven that
    /// the peer holds the leaf's key and nothing more (see [`tls::AnyClientCertificate`]): who issued it, and whether
    /// it is in its time, is for the authenticators to check, so that a bad certificate gets a 401 and not a broken
    /// connection.
    pub peer_certificates: Vec<Vec<u8>>,
    /// Set for callers in the same process, whose identity was fixed when their service was made.
    pub in_process: Option<Arc<UserInfo>>,
}

/// A credential was presented and is not acceptable. The text is for logs and TokenReviews; a refused request is
/// told `Unauthorized` and nothing else.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct AuthenticationError(pub String);

/// One way of proving who you are.
#[async_trait]
pub trait Authenticator: Send + Sync + 'static {
    /// `Ok(None)`: no credential of this kind was presented. `Err`: one was presented and is bad (401).
    async fn authenticate(
        &self,
        request: &http::request::Parts,
        connection: &ConnectionInfo,
    ) -> Result<Option<UserInfo>, AuthenticationError>;
}

/// The configuration of authentication cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A bundle of authorities.
    #[error("the client certificate authority {0}")]
    Certificate(String),
    /// A service-account key file.
    #[error("the service-account key file {0}")]
    Key(#[from] KeyError),
    /// The file of static tokens.
    #[error("the token file, line {line}: {problem}")]
    TokenFile {
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
    /// The issuer of service-account tokens.
    #[error("the service-account issuer: {0}")]
    Issuer(String),
}

/// How requests may prove who they are.
#[derive(Clone, Debug, Default)]
pub struct AuthenticationConfig {
    /// `--client-ca-file`, its content.
    pub client_ca_pem: Option<String>,
    /// `--requestheader-*`.
    pub request_header: Option<RequestHeaderConfig>,
    /// `--service-account-key-file`, the contents of each.
    pub service_account_key_pems: Vec<String>,
    /// `--service-account-issuer`: the first signs new tokens, all are accepted.
    pub service_account_issuers: Vec<String>,
    /// `--api-audiences`; empty: the issuers.
    pub api_audiences: Vec<String>,
    /// `--token-auth-file`, its content.
    pub token_file: Option<String>,
    /// `--enable-bootstrap-token-auth`.
    pub bootstrap_tokens: bool,
    /// `--anonymous-auth`.
    pub anonymous: bool,
}

/// Who a token stands for, and whom it is meant for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenUser {
    /// The user, `system:authenticated` not yet added.
    pub user: UserInfo,
    /// Those of the requested audiences that the token is meant for.
    pub audiences: Vec<String>,
}

/// The whole chain.
pub struct Authentication {
    client_ca: Option<Authorities>,
    request_header: Option<(Authorities, RequestHeaderConfig)>,
    static_tokens: StaticTokens,
    service_accounts: ServiceAccounts,
    bootstrap_tokens: bool,
    anonymous: bool,
    objects: Objects,
    clock: Clock,
}

impl Authentication {
    /// Fails when a file's content cannot be used.
    pub fn new(
        config: AuthenticationConfig,
        objects: Objects,
        clock: Clock,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, ConfigError> {
        let keys = config
            .service_account_key_pems
            .iter()
            .map(|pem| PublicKey::all_from_pem(pem))
            .collect::<Result<Vec<_>, _>>()?
            .concat();
        let api_audiences = if config.api_audiences.is_empty() {
            config.service_account_issuers.clone()
        } else {
            config.api_audiences
        };
        let authorities = |pem: &str| Authorities::new(pem, provider.clone());
        Ok(Authentication {
            client_ca: config
                .client_ca_pem
                .as_deref()
                .map(authorities)
                .transpose()?,
            request_header: config
                .request_header
                .map(|config| Ok::<_, ConfigError>((authorities(&config.client_ca_pem)?, config)))
                .transpose()?,
            static_tokens: config
                .token_file
                .as_deref()
                .map(StaticTokens::parse)
                .transpose()?
                .unwrap_or_default(),
            service_accounts: ServiceAccounts::new(
                keys,
                config.service_account_issuers,
                api_audiences,
                objects.clone(),
                clock.clone(),
            ),
            bootstrap_tokens: config.bootstrap_tokens,
            anonymous: config.anonymous,
            objects,
            clock,
        })
    }

    /// The audiences of the API server itself.
    pub fn api_audiences(&self) -> &[String] {
        &self.service_accounts.api_audiences
    }

    /// The keys that service-account tokens are checked with.
    pub fn service_account_keys(&self) -> &[PublicKey] {
        &self.service_accounts.keys
    }

    /// Who `token` stands for. `audiences`: whom it must be meant for; `None` for the API server. `Ok(None)`: nobody
    /// knows this token.
    pub async fn authenticate_token(
        &self,
        token: &str,
        audiences: Option<&[String]>,
    ) -> Result<Option<TokenUser>, AuthenticationError> {
        // Tokens that name no audience are for the API server (`WrapAudienceAgnosticToken`).
        let agnostic = |user: UserInfo| -> Result<Option<TokenUser>, AuthenticationError> {
            let own = self.api_audiences();
            let common: Vec<String> = audiences.map_or_else(
                || own.to_vec(),
                |asked| {
                    own.iter()
                        .filter(|one| asked.contains(one))
                        .cloned()
                        .collect()
                },
            );
            Ok((!common.is_empty() || own.is_empty()).then_some(TokenUser {
                user,
                audiences: common,
            }))
        };
        if let Some(user) = self.static_tokens.authenticate(token) {
            return agnostic(user);
        }
        if let Some(user) = self.service_accounts.authenticate(token, audiences).await? {
            return Ok(Some(user));
        }
        if self.bootstrap_tokens
            && let Some(user) = tokens::bootstrap(&self.objects, &self.clock, token).await?
        {
            return agnostic(user);
        }
        Ok(None)
    }

    /// Removes everything that served to authenticate, so that nothing behind can use or pass it on.
    pub fn strip_credentials(&self, headers: &mut HeaderMap) {
        headers.remove(AUTHORIZATION);
        RequestHeaderConfig::standard("", Vec::new()).strip(headers);
        if let Some((_, config)) = &self.request_header {
            config.strip(headers);
        }
        if let Some(protocols) = websocket_protocols(headers)
            && protocols
                .iter()
                .any(|protocol| protocol.starts_with(WEBSOCKET_BEARER))
        {
            let rest: Vec<&str> = protocols
                .iter()
                .map(String::as_str)
                .filter(|protocol| !protocol.starts_with(WEBSOCKET_BEARER))
                .collect();
            match HeaderValue::from_str(&rest.join(",")) {
                Ok(value) if !rest.is_empty() => {
                    drop(headers.insert(SEC_WEBSOCKET_PROTOCOL, value))
                }
                _ => drop(headers.remove(SEC_WEBSOCKET_PROTOCOL)),
            }
        }
    }

    async fn known(
        &self,
        headers: &HeaderMap,
        connection: &ConnectionInfo,
    ) -> Result<Option<UserInfo>, AuthenticationError> {
        let mut errors: Vec<String> = Vec::new();
        let chain = &connection.peer_certificates;
        if !chain.is_empty() {
            let by_header = |(authorities, config): &(Authorities, RequestHeaderConfig)| {
                config.user(&*authorities.check(chain, &self.clock)?, headers)
            };
            let by_certificate =
                |authorities: &Authorities| authorities.check(chain, &self.clock)?.user();
            for result in [
                self.request_header.as_ref().map(by_header),
                self.client_ca.as_ref().map(by_certificate),
            ] {
                match result {
                    Some(Ok(Some(user))) => return Ok(Some(user)),
                    Some(Err(error)) => errors.push(error.0),
                    Some(Ok(None)) | None => {}
                }
            }
        }
        for token in [Ok(bearer_token(headers)), websocket_token(headers)] {
            match token {
                Ok(Some(token)) => match self.authenticate_token(&token, None).await {
                    Ok(Some(found)) => return Ok(Some(found.user)),
                    Ok(None) => errors.push("invalid bearer token".into()),
                    Err(error) => errors.push(error.0),
                },
                Ok(None) => {}
                Err(error) => errors.push(error.0),
            }
        }
        match errors.len() {
            0 => Ok(None),
            1 => Err(AuthenticationError(errors.remove(0))),
            _ => Err(AuthenticationError(format!("[{}]", errors.join(", ")))),
        }
    }
}

#[async_trait]
impl Authenticator for Authentication {
    async fn authenticate(
        &self,
        request: &http::request::Parts,
        connection: &ConnectionInfo,
    ) -> Result<Option<UserInfo>, AuthenticationError> {
        if let Some(user) = &connection.in_process {
            return Ok(Some(with_authenticated_group(user.as_ref().clone())));
        }
        Ok(match self.known(&request.headers, connection).await? {
            Some(user) => Some(with_authenticated_group(user)),
            None => self.anonymous.then(anonymous),
        })
    }
}

/// The user of requests without credentials.
pub fn anonymous() -> UserInfo {
    UserInfo {
        name: ANONYMOUS.into(),
        groups: vec![UNAUTHENTICATED.into()],
        ..UserInfo::default()
    }
}

/// `group.AuthenticatedGroupAdder`.
pub fn with_authenticated_group(mut user: UserInfo) -> UserInfo {
    if user.name != ANONYMOUS
        && !user
            .groups
            .iter()
            .any(|group| group == AUTHENTICATED || group == UNAUTHENTICATED)
    {
        user.groups.push(AUTHENTICATED.into());
    }
    user
}

/// The token of `Authorization: Bearer <token>`.
fn bearer_token(headers: &HeaderMap) -> Option<String> {
    let mut parts = headers
        .get(AUTHORIZATION)?
        .to_str()
        .ok()?
        .trim()
        .splitn(3, ' ');
    let scheme = parts.next()?;
    let token = parts.next()?;
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then(|| token.to_owned())
}

/// How browsers, which cannot set headers on a WebSocket, present a token.
const WEBSOCKET_BEARER: &str = "base64url.bearer.authorization.k8s.io.";

/// The offered subprotocols, when the request asks for a WebSocket.
fn websocket_protocols(headers: &HeaderMap) -> Option<Vec<String>> {
    let has = |name: http::header::HeaderName, word: &str| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .any(|value| value.to_ascii_lowercase().contains(word))
    };
    if !(has(http::header::UPGRADE, "websocket") && has(http::header::CONNECTION, "upgrade")) {
        return None;
    }
    let values = headers
        .get_all(SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok());
    Some(
        values
            .flat_map(|value| value.split(','))
            .map(|protocol| protocol.trim().to_owned())
            .collect(),
    )
}

/// `websocket.ProtocolAuthenticator`.
fn websocket_token(headers: &HeaderMap) -> Result<Option<String>, AuthenticationError> {
    let bad = |why: &str| Err(AuthenticationError(why.to_owned()));
    let Some(protocols) = websocket_protocols(headers) else {
        return Ok(None);
    };
    let (bearers, others): (Vec<&str>, Vec<&str>) = protocols
        .iter()
        .map(String::as_str)
        .partition(|protocol| protocol.starts_with(WEBSOCKET_BEARER));
    match bearers.as_slice() {
        [] => Ok(None),
        [one] => {
            let Ok(bytes) = URL_SAFE_NO_PAD.decode(&one[WEBSOCKET_BEARER.len()..]) else {
                return bad("invalid base64.bearer.authorization token encoding");
            };
            let Ok(token) = String::from_utf8(bytes) else {
                return bad("invalid base64.bearer.authorization token");
            };
            if token.is_empty() {
                return Ok(None);
            }
            // One protocol must remain for the server to answer with.
            if others.is_empty() {
                bad("missing additional subprotocol")
            } else {
                Ok(Some(token))
            }
        }
        _ => bad("multiple base64.bearer.authorization tokens specified"),
    }
}
