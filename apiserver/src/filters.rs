//! The one chain that every request passes, over TLS or within the process: request info, authentication,
//! impersonation, priority and fairness, authorization, then the route.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::FutureExt;
use http::HeaderValue;
use http_body_util::{BodyExt, StreamBody};
use keelson_machinery::status::{ApiError, Reason};

use crate::admission::Notes;
use crate::authn::{Authenticator, ConnectionInfo, impersonation};
use crate::authz::{self, Attributes, Authorizer, Decision};
use crate::body::{RequestBody, Response};
use crate::flow_control::Classified;
use crate::request::{Query, RequestInfo, UserInfo};
use crate::routes;
use crate::server::Server;
use crate::verbs::respond;

/// A request with everything that filters have found out about it.
pub struct Authorized {
    /// The server.
    pub server: Arc<Server>,
    /// What it asks for.
    pub info: RequestInfo,
    /// Who asks.
    pub user: Arc<UserInfo>,
    /// Query options.
    pub query: Query,
    /// Method, headers without credentials, extensions.
    pub parts: http::request::Parts,
    /// Not yet read.
    pub body: RequestBody,
}

/// Answers one request. Never fails and never panics.
pub async fn handle(
    server: Arc<Server>,
    connection: ConnectionInfo,
    request: http::Request<RequestBody>,
) -> Response {
    let started = tokio::time::Instant::now();
    let (mut parts, body) = request.into_parts();
    let notes = Arc::new(Notes::default());
    parts.extensions.insert(notes.clone());
    let query = Query::parse(parts.uri.query());
    let headers = parts.headers.clone();
    let path = crate::request::percent_decode(parts.uri.path(), false);
    let info = match RequestInfo::parse(&parts.method, &path, &query) {
        Ok(info) => info,
        Err(error) => return respond::error(&headers, &query, &error),
    };
    let long_running = is_long_running(&info);
    let limit = server.config.request_timeout;
    let metrics_server = server.clone();
    let metrics_info = info.clone();
    let flow: Arc<OnceLock<Classified>> = Arc::default();
    parts.extensions.insert(flow.clone());
    let work = chain(
        server,
        connection,
        info,
        query.clone(),
        parts,
        body,
        long_running,
    );
    let guarded = AssertUnwindSafe(work).catch_unwind();
    let finished = if long_running {
        Ok(guarded.await)
    } else {
        tokio::time::timeout(limit, guarded).await
    };
    let mut response = match finished {
        Ok(Ok(Ok(response))) => response,
        Ok(Ok(Err(error))) => {
            let mut response = respond::error(&headers, &query, &error);
            respond::add_warnings(&mut response, &notes.warnings());
            response
        }
        Ok(Err(panic)) => {
            let why = panic_text(panic.as_ref());
            tracing::error!(path = %metrics_info.path, verb = %metrics_info.verb, why, "a handler panicked");
            respond::error(
                &headers,
                &query,
                &ApiError::internal("the request handler failed; see the server's log"),
            )
        }
        Err(_) => respond::error(
            &headers,
            &query,
            &ApiError::timeout("request did not complete within the allotted timeout", 0),
        ),
    };
    tell_flow(&mut response, &flow);
    response
        .headers_mut()
        .entry(http::header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-cache, private"));
    metrics_server.metrics.request(
        &metrics_info,
        is_served(&metrics_server, &metrics_info),
        response.status().as_u16(),
        started.elapsed(),
        long_running,
    );
    response
}

/// Whether the request names a resource, and if so a subresource, that is served.
fn is_served(server: &Server, info: &RequestInfo) -> bool {
    let table = server.registry.table();
    table
        .get(&info.group, &info.version, &info.resource)
        .is_some_and(|served| {
            info.subresource.is_empty() || served.row.subresource(&info.subresource).is_some()
        })
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

async fn chain(
    server: Arc<Server>,
    connection: ConnectionInfo,
    info: RequestInfo,
    query: Query,
    mut parts: http::request::Parts,
    body: RequestBody,
    long_running: bool,
) -> Result<Response, ApiError> {
    let user = match server
        .authentication()
        .authenticate(&parts, &connection)
        .await
    {
        Ok(Some(user)) => user,
        Ok(None) => return Err(ApiError::unauthorized("Unauthorized")),
        Err(error) => {
            tracing::debug!(%error, path = %info.path, "a credential was refused");
            return Err(ApiError::unauthorized("Unauthorized"));
        }
    };
    let user = match impersonation::impersonate(&parts.headers, &user, server.authorizer()).await? {
        Some(target) => target,
        None => user,
    };
    impersonation::strip(&mut parts.headers);
    server
        .authentication()
        .strip_credentials(&mut parts.headers);

    let permit = if takes_turns(&info, long_running) {
        let (classified, ticket) = server.flow_control.enter(&user, &info).await;
        if let Some(flow) = parts.extensions.get::<Arc<OnceLock<Classified>>>() {
            let _ = flow.set(classified);
        }
        match ticket {
            Some(ticket) => Some(ticket),
            None => return Ok(too_many_requests()),
        }
    } else {
        None
    };
    authorize(&server, &user, &info).await?;
    let body = if long_running {
        body
    } else {
        in_time(body, server.config.request_timeout)
    };
    let request = Authorized {
        server,
        info,
        user: Arc::new(user),
        query,
        parts,
        body,
    };
    if is_mutating(&request.info.verb) && !long_running {
        // A write that has begun is finished even when its client goes away: what it allocated is either stored or
        // given back. Until then it counts as in flight.
        let work = async move {
            let result = routes::route(request).await;
            drop(permit);
            result
        };
        return match tokio::spawn(work).await {
            Ok(result) => result,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(ApiError::service_unavailable("the server is shutting down")),
            },
        };
    }
    routes::route(request).await
}

/// A body that fails when it has not come whole in time. Who reads it may outlive the request that waits for it.
fn in_time(body: RequestBody, limit: Duration) -> RequestBody {
    let late = Box::pin(tokio::time::sleep(limit));
    let frames = futures::stream::unfold((body, late), |(mut body, mut late)| async move {
        let frame = tokio::select! {
            frame = body.frame() => frame?,
            () = &mut late => Err("it did not come in time".into()),
        };
        Some((frame, (body, late)))
    });
    StreamBody::new(frames).boxed_unsync()
}

/// May `user` do what `info` says? An error is the 403 for the client.
pub async fn authorize(
    server: &Server,
    user: &UserInfo,
    info: &RequestInfo,
) -> Result<(), ApiError> {
    // Probes need no rights (upstream's default of `--authorization-always-allow-paths`).
    if !info.is_resource && matches!(info.path.as_str(), "/healthz" | "/livez" | "/readyz") {
        return Ok(());
    }
    let attributes = Attributes {
        user,
        request: info,
    };
    match server.authorizer().authorize(&attributes).await {
        Decision::Allow(_) => Ok(()),
        Decision::Deny(reason) | Decision::NoOpinion(reason) => {
            Err(authz::forbidden(&attributes, &reason))
        }
    }
}

fn is_mutating(verb: &str) -> bool {
    matches!(
        verb,
        "create" | "update" | "patch" | "delete" | "deletecollection"
    )
}

/// Watches and streams have no time limit and do not count as in flight.
fn is_long_running(info: &RequestInfo) -> bool {
    matches!(info.verb.as_str(), "watch" | "proxy")
        || matches!(
            info.subresource.as_str(),
            "attach" | "exec" | "proxy" | "log" | "portforward"
        )
}

/// Whether priority and fairness bounds the request. A watch counts until it has begun; other streams never do.
fn takes_turns(info: &RequestInfo, long_running: bool) -> bool {
    !long_running || info.verb == "watch"
}

/// The answer to a request that got no turn (upstream `filters.tooManyRequests`).
fn too_many_requests() -> Response {
    let mut response = routes::text(
        "text/plain; charset=utf-8",
        "Too many requests, please try again later.\n",
    );
    *response.status_mut() = http::StatusCode::TOO_MANY_REQUESTS;
    let headers = response.headers_mut();
    headers.insert(http::header::RETRY_AFTER, HeaderValue::from_static("1"));
    headers.insert(
        http::header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
}

/// Tells where priority and fairness put the request.
fn tell_flow(response: &mut Response, flow: &OnceLock<Classified>) {
    let Some(flow) = flow.get() else {
        return;
    };
    for (name, uid) in [
        ("x-kubernetes-pf-flowschema-uid", &flow.schema_uid),
        ("x-kubernetes-pf-prioritylevel-uid", &flow.level_uid),
    ] {
        if let Ok(uid) = HeaderValue::from_str(uid) {
            response.headers_mut().insert(name, uid);
        }
    }
}

/// The error for a method that a resource does not have (upstream's go-restful error handler).
pub fn method_not_allowed() -> ApiError {
    ApiError::new(
        405,
        Reason::MethodNotAllowed,
        "the server does not allow this method on the requested resource",
    )
    .with_details(Default::default())
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stops_coming_is_given_up() {
        use crate::body::streamed;
        use crate::verbs::call::read_body;
        let part = || futures::stream::iter([Ok(bytes::Bytes::from_static(b"{"))]);
        let limit = Duration::from_secs(60);
        let whole = read_body(in_time(streamed(part()), limit)).await;
        assert_eq!(whole.expect("a body"), "{");
        let stuck = streamed(part().chain(futures::stream::pending()));
        let error = read_body(in_time(stuck, limit)).await.expect_err("no end");
        assert_eq!(
            error.message,
            "error reading the request body: it did not come in time"
        );
    }
}
