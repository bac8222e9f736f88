//! Requests on their way to another API server: who asks is told in headers that only this server's certificate makes
//! believable (upstream `kube-aggregator/pkg/apiserver.proxyHandler`).

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode};
use keelson_machinery::status::ApiError;
use keelson_machinery::value::{self, Value};

use super::{ApiService, Target};
use crate::body::Response;
use crate::filters::Authorized;
use crate::objects::Objects;
use crate::request::UserInfo;
use crate::routes::text;
use crate::streaming::backend::Backend;
use crate::streaming::http_proxy;
use crate::streaming::target::{ready_endpoints, service_port_name};

/// How many endpoints are tried before a request is given up.
const ATTEMPTS: usize = 3;

/// Passes an authorized request on and its answer back.
///
/// # Errors
/// None that is the other server's: those, and that it cannot be reached, are answers.
pub async fn pass_on(service: Arc<ApiService>, request: Authorized) -> Result<Response, ApiError> {
    let Some(target) = &service.target else {
        return Err(ApiError::internal("the APIService has no service"));
    };
    if !service.available {
        return Ok(plain(
            StatusCode::SERVICE_UNAVAILABLE,
            "service unavailable",
        ));
    }
    let tls = match &target.tls {
        Ok(tls) => tls,
        Err(why) => return Ok(plain(StatusCode::INTERNAL_SERVER_ERROR, why)),
    };
    let objects = crate::objects::Objects(request.server.storage.caches.clone());
    let mut random = [0u8; 8];
    request.server.storage.clock.fill_random(&mut random);
    let pick = u64::from_le_bytes(random);
    let found = match resolve(&objects, target).await {
        Ok(found) => found,
        Err(why) => {
            tracing::debug!(
                name = service.name,
                why,
                "an aggregated API is not reachable"
            );
            return Ok(plain(
                StatusCode::SERVICE_UNAVAILABLE,
                "service unavailable",
            ));
        }
    };
    let mut backends: Vec<Backend> = found
        .into_iter()
        .map(|(host, port)| backend(target, host, port, tls))
        .collect();
    let first = usize::try_from(pick % backends.len().max(1) as u64).unwrap_or_default();
    backends.rotate_left(first);

    let mut parts = request.parts;
    if let Err(why) = identify(&mut parts.headers, &request.user) {
        return Ok(plain(StatusCode::INTERNAL_SERVER_ERROR, &why));
    }
    let path = parts
        .uri
        .path_and_query()
        .map_or_else(|| parts.uri.path().to_owned(), ToString::to_string);
    let mut failure = String::from("no endpoints");
    for backend in backends.iter().take(ATTEMPTS) {
        let sender = match backend.connect().await {
            Ok(sender) => sender,
            Err(error) => {
                failure = error.message;
                continue;
            }
        };
        let outgoing = Request::from_parts(parts, request.body);
        return match http_proxy::exchange(outgoing, sender, &backend.authority(), &path).await {
            Ok(response) => Ok(response),
            Err(error) => Ok(plain(StatusCode::SERVICE_UNAVAILABLE, &error.message)),
        };
    }
    Ok(plain(StatusCode::SERVICE_UNAVAILABLE, &failure))
}

/// How to reach one endpoint of a service: its certificate is that of the service.
pub(super) fn backend(
    target: &Target,
    host: String,
    port: u16,
    tls: &Arc<rustls::ClientConfig>,
) -> Backend {
    Backend {
        host,
        port,
        tls: Some(tls.clone()),
        server_name: Some(format!("{}.{}.svc", target.name, target.namespace)),
    }
}

/// Where the service's endpoints are. They are asked directly: this server needs no Service network.
///
/// # Errors
/// Why there is none.
pub(super) async fn resolve(
    objects: &Objects,
    target: &Target,
) -> Result<Vec<(String, u16)>, String> {
    let service = objects
        .find("", "services", &target.namespace, &target.name)
        .await
        .map_err(|error| error.message)?;
    let service = service.ok_or_else(|| format!("service {:?} not found", target.name))?;
    if let Some(host) = external_name(&service) {
        return Ok(vec![(host.to_owned(), target.port)]);
    }
    let port = service_port_name(&service, target.port).ok_or_else(|| {
        format!(
            "no service port {} found for service {:?}",
            target.port, target.name
        )
    })?;
    let found = ready_endpoints(objects, &target.namespace, &target.name, &port)
        .await
        .map_err(|error| error.message)?;
    if found.is_empty() {
        return Err(format!(
            "no endpoints available for service {:?}",
            target.name
        ));
    }
    Ok(found)
}

fn external_name(service: &Value) -> Option<&str> {
    let is_external = value::get_str(service, &["spec", "type"]) == Some("ExternalName");
    value::get_str(service, &["spec", "externalName"]).filter(|_| is_external)
}

/// Puts in who asks, in place of whatever the client said (upstream `transport.SetAuthProxyHeaders`).
///
/// # Errors
/// When a name cannot stand in a header.
pub fn identify(headers: &mut HeaderMap, user: &UserInfo) -> Result<(), String> {
    let claimed: Vec<HeaderName> = headers
        .keys()
        .filter(|name| name.as_str().starts_with("x-remote-"))
        .cloned()
        .collect();
    for name in claimed {
        headers.remove(name);
    }
    headers.remove(http::header::AUTHORIZATION);
    let mut put = |name: &str, text: &str| -> Result<(), String> {
        let refused = || format!("the user's {name} cannot be passed on");
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| refused())?;
        let text = HeaderValue::from_bytes(text.as_bytes()).map_err(|_| refused())?;
        headers.append(name, text);
        Ok(())
    };
    put("x-remote-user", &user.name)?;
    if !user.uid.is_empty() {
        put("x-remote-uid", &user.uid)?;
    }
    for group in &user.groups {
        put("x-remote-group", group)?;
    }
    for (key, values) in &user.extra {
        let name = format!("x-remote-extra-{}", escape_key(key));
        for one in values {
            put(&name, one)?;
        }
    }
    Ok(())
}

/// A key in a header's name: what may not stand there is percent-encoded.
fn escape_key(key: &str) -> String {
    let mut escaped = String::with_capacity(key.len());
    for byte in key.bytes() {
        let legal = byte.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&byte);
        if legal {
            escaped.push(byte as char);
        } else {
            escaped += &format!("%{byte:02X}");
        }
    }
    escaped
}

/// Go's `http.Error`.
fn plain(status: StatusCode, why: &str) -> Response {
    let mut response = text("text/plain; charset=utf-8", format!("{why}\n"));
    *response.status_mut() = status;
    response.headers_mut().insert(
        http::header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_server_says_who_asks() {
        let mut headers = HeaderMap::new();
        for (name, text) in [
            ("x-remote-user", "admin"),
            ("x-remote-group", "system:masters"),
            ("x-remote-extra-scopes", "all"),
            ("authorization", "Bearer secret"),
            ("accept", "application/json"),
        ] {
            headers.append(name, HeaderValue::from_static(text));
        }
        let user = UserInfo {
            name: "jane".into(),
            uid: "1".into(),
            groups: vec!["a".into(), "b".into()],
            extra: [(
                "example.com/Key %".to_owned(),
                vec!["x".to_owned(), "y".to_owned()],
            )]
            .into(),
        };
        identify(&mut headers, &user).expect("headers");
        let mut found: Vec<String> = headers
            .iter()
            .map(|(name, text)| format!("{name}={}", text.to_str().expect("text")))
            .collect();
        found.sort();
        assert_eq!(
            found,
            [
                "accept=application/json",
                "x-remote-extra-example.com%2fkey%20%25=x",
                "x-remote-extra-example.com%2fkey%20%25=y",
                "x-remote-group=a",
                "x-remote-group=b",
                "x-remote-uid=1",
                "x-remote-user=jane",
            ]
        );
        let bad = UserInfo {
            name: "a\nb".into(),
            ..UserInfo::default()
        };
        assert!(identify(&mut headers, &bad).is_err());
    }
}
