//! Acting as somebody else (`k8s.io/apiserver/pkg/endpoints/filters/impersonation`): each claim of the
//! `Impersonate-*` headers must be authorized by itself.

use http::HeaderMap;
use keelson_machinery::status::ApiError;

use super::serviceaccount::{groups, split_username};
use super::x509::{extra_headers, strip_prefixed};
use super::{ANONYMOUS, AUTHENTICATED, UNAUTHENTICATED};
use crate::authz::{self, Attributes, Authorizer, Decision};
use crate::request::{RequestInfo, UserInfo};

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA_PREFIX: &str = "impersonate-extra-";

/// One thing that is to be impersonated.
enum Claim {
    User(String),
    Group(String),
    Uid(String),
    Extra(String, String),
}

/// The user that the request acts as: `None` when it asks for no impersonation. An error answers the request (400
/// when the headers make no sense, 403 when `user` may not).
pub async fn impersonate(
    headers: &HeaderMap,
    user: &UserInfo,
    authorizer: &dyn Authorizer,
) -> Result<Option<UserInfo>, ApiError> {
    let claims = claims(headers)?;
    if claims.is_empty() {
        return Ok(None);
    }
    let groups_given = claims.iter().any(|claim| matches!(claim, Claim::Group(_)));
    let mut target = UserInfo::default();
    for claim in claims {
        let mut request = RequestInfo {
            is_resource: true,
            verb: "impersonate".into(),
            version: "v1".into(),
            ..RequestInfo::default()
        };
        match &claim {
            Claim::User(name) => match split_username(name) {
                Some((namespace, name)) => {
                    request.resource = "serviceaccounts".into();
                    request.namespace = namespace.into();
                    request.name = name.into();
                }
                None => {
                    request.resource = "users".into();
                    request.version = String::new();
                    request.name.clone_from(name);
                }
            },
            Claim::Group(name) => {
                request.resource = "groups".into();
                request.version = String::new();
                request.name.clone_from(name);
            }
            Claim::Uid(uid) => {
                request.group = "authentication.k8s.io".into();
                request.resource = "uids".into();
                request.name.clone_from(uid);
            }
            Claim::Extra(key, value) => {
                request.group = "authentication.k8s.io".into();
                request.resource = "userextras".into();
                request.subresource.clone_from(key);
                request.name.clone_from(value);
            }
        }
        let attributes = Attributes {
            user,
            request: &request,
        };
        match authorizer.authorize(&attributes).await {
            Decision::Allow(_) => {}
            Decision::Deny(reason) | Decision::NoOpinion(reason) => {
                return Err(authz::forbidden(&attributes, &reason));
            }
        }
        match claim {
            Claim::User(name) => {
                // A service account's groups are known; given ones replace them.
                if let Some((namespace, _)) = split_username(&name)
                    && !groups_given
                {
                    target.groups = groups(namespace);
                }
                target.name = name;
            }
            Claim::Group(name) => target.groups.push(name),
            Claim::Uid(uid) => target.uid = uid,
            Claim::Extra(key, value) => target.extra.entry(key).or_default().push(value),
        }
    }
    let has = |group: &str| target.groups.iter().any(|one| one == group);
    if target.name == ANONYMOUS {
        if !has(UNAUTHENTICATED) {
            target.groups.push(UNAUTHENTICATED.into());
        }
    } else if !has(AUTHENTICATED) && !has(UNAUTHENTICATED) {
        target.groups.push(AUTHENTICATED.into());
    }
    Ok(Some(target))
}

/// Removes the headers, so that nothing behind acts on them again.
pub fn strip(headers: &mut HeaderMap) {
    for name in [USER, GROUP, UID] {
        headers.remove(name);
    }
    strip_prefixed(headers, EXTRA_PREFIX);
}

fn claims(headers: &HeaderMap) -> Result<Vec<Claim>, ApiError> {
    let text = |name: &str| {
        headers
            .get(name)
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
            .filter(|value| !value.is_empty())
    };
    let mut claims = Vec::new();
    let user = text(USER);
    let has_user = user.is_some();
    claims.extend(user.map(Claim::User));
    claims.extend(
        headers
            .get_all(GROUP)
            .iter()
            .map(|value| Claim::Group(String::from_utf8_lossy(value.as_bytes()).into_owned())),
    );
    claims
        .extend(extra_headers(headers, EXTRA_PREFIX).map(|(key, value)| Claim::Extra(key, value)));
    claims.extend(text(UID).map(Claim::Uid));
    if !claims.is_empty() && !has_user {
        let shown: Vec<String> = claims
            .iter()
            .map(|claim| match claim {
                Claim::User(name) => format!("User {name}"),
                Claim::Group(name) => format!("Group {name}"),
                Claim::Uid(uid) => format!("UID {uid}"),
                Claim::Extra(key, value) => format!("UserExtra {key}={value}"),
            })
            .collect();
        return Err(ApiError::bad_request(format!(
            "requested [{}] without impersonating a user",
            shown.join(" ")
        )));
    }
    Ok(claims)
}
