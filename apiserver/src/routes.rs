//! From an authorized request to what answers it. There is no table of routes: paths are data, read by
//! [`RequestInfo`](crate::request::RequestInfo) and looked up in the registry.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode};
use keelson_machinery::status::ApiError;

use crate::aggregation;
use crate::body::{Response, full};
use crate::discovery;
use crate::filters::{Authorized, method_not_allowed};
use crate::server::Server;
use crate::subresources;
use crate::verbs::call::read_body;
use crate::verbs::{self, Call};

/// Answers a request.
pub async fn route(request: Authorized) -> Result<Response, ApiError> {
    if request.info.is_resource {
        resource(request).await
    } else {
        path(request).await
    }
}

async fn resource(request: Authorized) -> Result<Response, ApiError> {
    let table = request.server.registry.table();
    let info = &request.info;
    let core = info.api_prefix == "api";
    if core != info.group.is_empty() {
        return Ok(page_not_found());
    }
    if let Some(service) = request.server.aggregation.route(&info.group, &info.version) {
        return aggregation::proxy::pass_on(service, request).await;
    }
    let Some(served) = table
        .get(&info.group, &info.version, &info.resource)
        .cloned()
    else {
        if table
            .catalog()
            .group_version(&info.group, &info.version)
            .next()
            .is_some()
        {
            return Err(ApiError::no_such_resource());
        }
        return Ok(page_not_found());
    };
    if served.row.namespaced
        && info.namespace.is_empty()
        && !matches!(info.verb.as_str(), "list" | "watch" | "deletecollection")
        && info.verb != "create"
    {
        return Err(ApiError::no_such_resource());
    }
    // A cluster-scoped resource has no namespace in its path; a namespace has its own. Anything else would be authorized
    // by what the user may do in the namespace of the path, and then reach beyond it.
    let own_namespace = served.row.resource == "namespaces" && info.namespace == info.name;
    if !served.row.namespaced && !info.namespace.is_empty() && !own_namespace {
        return Err(ApiError::no_such_resource());
    }
    // The old watch paths (`/api/v1/watch/...`) are authorized as watches, whatever the method: nothing else is served
    // below them.
    if info.verb == "watch"
        && (!info.subresource.is_empty()
            || !matches!(request.parts.method, Method::GET | Method::HEAD))
    {
        return Err(ApiError::no_such_resource());
    }
    let mut call = Call {
        server: request.server,
        info: request.info,
        user: request.user,
        query: request.query,
        parts: request.parts,
        served,
        warnings: Vec::new(),
    };
    if let Some(warning) = call.served.custom.as_ref().and_then(|c| c.warning.clone()) {
        call.warnings.push(warning);
    }
    if !call.info.subresource.is_empty() {
        return subresources::dispatch(call, request.body).await;
    }
    let verb = call.info.verb.clone();
    if !call.served.has_verb(&verb) {
        return Err(method_not_allowed());
    }
    // POST goes to collections, PUT and PATCH to objects.
    let named = call.info.parts.len() > 1;
    if named == (verb == "create") && matches!(verb.as_str(), "create" | "update" | "patch") {
        return Err(method_not_allowed());
    }
    // Across all namespaces one can only read.
    if call.served.row.namespaced
        && call.info.namespace.is_empty()
        && matches!(verb.as_str(), "create" | "deletecollection")
    {
        return Err(method_not_allowed());
    }
    if !call.served.stored {
        return subresources::answered_only(call, request.body).await;
    }
    match verb.as_str() {
        "get" => verbs::get::get(&mut call).await,
        "list" => verbs::list::list(&mut call).await,
        "watch" => verbs::watch::watch(call).await,
        "create" => {
            let body = read_body(request.body).await?;
            verbs::create::create(&mut call, &body).await
        }
        "update" => {
            let body = read_body(request.body).await?;
            verbs::update::update(&mut call, &body).await
        }
        "patch" => {
            verbs::patch::PatchType::of(&call)?;
            let body = read_body(request.body).await?;
            verbs::patch::patch(&mut call, &body).await
        }
        "delete" => {
            let body = read_body(request.body).await?;
            verbs::delete::delete(&mut call, &body).await
        }
        "deletecollection" => {
            let body = read_body(request.body).await?;
            verbs::delete::delete_collection(&mut call, &body).await
        }
        _ => Err(method_not_allowed()),
    }
}

/// Whether the path is one of the health endpoints.
pub fn is_health_path(path: &str) -> bool {
    ["/healthz", "/livez", "/readyz"].iter().any(|p| {
        path.strip_prefix(p)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

/// The server of a group version whose discovery or OpenAPI document the path is.
fn remote_document(server: &Server, path: &str) -> Option<std::sync::Arc<aggregation::ApiService>> {
    let path = path.trim_matches('/');
    let path = path.strip_prefix("openapi/v3/").unwrap_or(path);
    match path.split('/').collect::<Vec<_>>().as_slice() {
        ["apis", group, version] => server.aggregation.route(group, version),
        ["api", version] => server.aggregation.route("", version),
        _ => None,
    }
}

async fn path(request: Authorized) -> Result<Response, ApiError> {
    let server = &request.server;
    let path = request.info.path.as_str();
    if let Some(service) = remote_document(server, path) {
        return aggregation::proxy::pass_on(service, request).await;
    }
    if !matches!(request.parts.method, Method::GET | Method::HEAD) {
        return Ok(if path.starts_with("/api") {
            respond_error(&request, &method_not_allowed())
        } else {
            page_not_found()
        });
    }
    let trimmed = path.trim_end_matches('/');
    if is_health_path(path) {
        let store = trimmed.starts_with("/livez") || store_answers(server).await;
        return Ok(server.health.answer(trimmed, &request.query, store));
    }
    match trimmed {
        "" => return Ok(discovery::paths(server)),
        "/version" => return Ok(json(discovery::version())),
        "/metrics" => {
            return Ok(text(
                "text/plain; version=0.0.4; charset=utf-8",
                format!(
                    "{}{}",
                    server.flow_control.render(),
                    server.metrics.render()
                ),
            ));
        }
        "/.well-known/openid-configuration" | "/openid/v1/jwks" => {
            return Ok(discovery::openid(server, trimmed).unwrap_or_else(page_not_found));
        }
        _ => {}
    }
    if let Some(response) = discovery::answer(&request) {
        return response;
    }
    if trimmed == "/openapi/v2" || trimmed.starts_with("/openapi/v3") {
        let answer = discovery::openapi(&request).await;
        return answer.unwrap_or_else(|| Ok(page_not_found()));
    }
    Ok(page_not_found())
}

/// How long the store may take to answer a probe (upstream `--etcd-healthcheck-timeout`).
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

async fn store_answers(server: &Server) -> bool {
    let read = server.storage.engine.get("/registry/health", None);
    matches!(tokio::time::timeout(PROBE_TIMEOUT, read).await, Ok(Ok(_)))
}

fn respond_error(request: &Authorized, error: &ApiError) -> Response {
    verbs::respond::error(&request.parts.headers, &request.query, error)
}

/// A 200 with compact JSON.
pub fn json(value: serde_json::Value) -> Response {
    text("application/json", value.to_string())
}

/// A 200 of a content type.
pub fn text(content_type: &'static str, content: impl Into<Bytes>) -> Response {
    let mut response = http::Response::new(full(content));
    response.headers_mut().insert(
        http::header::CONTENT_TYPE,
        HeaderValue::from_static(content_type),
    );
    response
}

/// What Go's mux says of a path that nobody serves.
pub fn page_not_found() -> Response {
    let mut response = text("text/plain; charset=utf-8", "404 page not found\n");
    *response.status_mut() = StatusCode::NOT_FOUND;
    response
}
