//! The subresources that lead to a kubelet or into a pod: log, exec, attach, portforward, proxy.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use hyper::upgrade::OnUpgrade;
use keelson_machinery::meta::{self, GroupResource};
use keelson_machinery::status::{ApiError, Reason};
use keelson_machinery::value::{Value, get_str};
use serde_json::json;

use crate::admission::Operation;
use crate::body::{RequestBody, Response, ResponseBody, full};
use crate::filters;
use crate::objects::Objects;
use crate::streaming::backend::Backend;
use crate::streaming::links::{self, Way};
use crate::streaming::remote_command::{self, Streams};
use crate::streaming::target::{self, ProxyName};
use crate::streaming::{http_proxy, reader, tunnel, websocket};
use crate::verbs::Call;
use crate::verbs::call::Admission;

/// How much of a kubelet's refusal is told (upstream `maxReadLength` of `GenericHttpResponseChecker`).
const MAX_REFUSAL: usize = 50_000;

/// Whether the subresource takes over the connection or passes it on.
pub fn is_connection(name: &str) -> bool {
    matches!(name, "log" | "exec" | "attach" | "portforward" | "proxy")
}

/// Answers a request to one of them. Boxed: the compiler cannot see through a future of this depth that it is `Send`.
pub fn connect(call: Call, body: RequestBody) -> BoxFuture<'static, Result<Response, ApiError>> {
    Box::pin(dispatch(call, body))
}

async fn dispatch(mut call: Call, body: RequestBody) -> Result<Response, ApiError> {
    let method = call.parts.method.clone();
    let allowed = match call.info.subresource.as_str() {
        "log" => method == Method::GET,
        "proxy" => true,
        _ => method == Method::GET || method == Method::POST,
    };
    if !allowed {
        return Err(filters::method_not_allowed());
    }
    let objects = Objects(call.server.storage.caches.clone());
    match (
        call.served.row.resource.as_str(),
        call.info.subresource.as_str(),
    ) {
        ("pods", "log") => log(&mut call, &objects).await,
        ("pods", "exec") => session(&mut call, body, &objects, "exec", "PodExecOptions").await,
        ("pods", "attach") => {
            session(&mut call, body, &objects, "attach", "PodAttachOptions").await
        }
        ("pods", "portforward") => port_forward(&mut call, body, &objects).await,
        ("pods" | "services" | "nodes", "proxy") => proxy(&mut call, body, &objects).await,
        _ => Err(ApiError::no_such_resource()),
    }
}

async fn pod(call: &Call, objects: &Objects) -> Result<Arc<Value>, ApiError> {
    objects
        .get("", "pods", &call.info.namespace, &call.info.name)
        .await
}

/// The kubelet that runs the pod.
async fn kubelet_of(call: &Call, objects: &Objects, pod: &Value) -> Result<Backend, ApiError> {
    let node = get_str(pod, &["spec", "nodeName"]).filter(|name| !name.is_empty());
    let node = node.ok_or_else(|| {
        ApiError::bad_request(format!(
            "pod {} does not have a host assigned",
            meta::name(pod)
        ))
    })?;
    call.server.outward.kubelets.kubelet(objects, node).await
}

async fn log(call: &mut Call, objects: &Objects) -> Result<Response, ApiError> {
    for key in ["tailLines", "sinceSeconds", "limitBytes"] {
        call.query.int(key)?;
    }
    let pod = pod(call, objects).await?;
    let container = target::container(&pod, call.query.get("container"))?;
    // Not scheduled yet: there is nothing to read (upstream answers with an empty body).
    if get_str(&pod, &["spec", "nodeName"]).is_none_or(str::is_empty) {
        let mut empty = Response::new(full(""));
        empty.headers_mut().insert(
            header::CONTENT_TYPE,
            header::HeaderValue::from_static("text/plain"),
        );
        return Ok(empty);
    }
    let backend = kubelet_of(call, objects, &pod).await?;
    let path = target::log_path(&pod, &container, &call.query);
    let request = Request::get("/")
        .body(full(""))
        .map_err(ApiError::internal)?;
    let response = http_proxy::pass_on(request, &backend, &path).await?;
    if response.status().as_u16() < 200 || response.status() > StatusCode::PARTIAL_CONTENT {
        return Err(refusal(
            response,
            &GroupResource::new("", "pods/log"),
            &call.info.name,
        )
        .await);
    }
    if websocket::is_websocket(&call.parts.headers) {
        let upgrade = take_upgrade(call)?;
        return reader::serve(&call.parts.headers, upgrade, response.into_body());
    }
    Ok(response)
}

/// What a backend's failure is to our client (upstream `GenericHttpResponseChecker.Check`).
async fn refusal(response: Response, at: &GroupResource, name: &str) -> ApiError {
    let status = response.status();
    let text = text_of(response.into_body()).await;
    match status {
        StatusCode::INTERNAL_SERVER_ERROR => ApiError::internal(text),
        StatusCode::BAD_REQUEST => ApiError::bad_request(text),
        StatusCode::NOT_FOUND => ApiError::new(
            404,
            Reason::NotFound,
            format!(
                "the server could not find the requested resource ( {} {name})",
                at.resource
            ),
        ),
        other => ApiError::new(other.as_u16(), Reason::Unknown, text),
    }
}

/// The beginning of a body as text, or what went wrong when it was read.
async fn text_of(mut body: ResponseBody) -> String {
    let mut bytes = Vec::new();
    while bytes.len() < MAX_REFUSAL {
        match body.frame().await {
            None => break,
            Some(Ok(frame)) => {
                bytes.extend_from_slice(frame.data_ref().map(Bytes::as_ref).unwrap_or_default())
            }
            Some(Err(error)) => return error.to_string(),
        }
    }
    bytes.truncate(MAX_REFUSAL);
    String::from_utf8_lossy(&bytes).trim_end().to_owned()
}

/// Admission of a connection: the plugins see the options object.
async fn admit(call: &mut Call, kind: &str, options: Value) -> Result<(), ApiError> {
    let mut admission = Admission::new(call, Operation::Connect, kind, Value::Null, false);
    let options = admission.admit(options, None).await?;
    admission.validate(Some(&options), None).await?;
    call.warnings.extend(admission.into_warnings());
    Ok(())
}

/// A WebSocket is opened by GET, which a reader may do; what it leads to takes the right to create.
/// Upstream: `pkg/registry/core/pod/rest/authorize.go`, feature `AuthorizePodWebsocketUpgradeCreatePermission`.
async fn authorize_upgrade(call: &Call) -> Result<(), ApiError> {
    if call.parts.method != Method::GET || !websocket::is_upgrade(&call.parts.headers) {
        return Ok(());
    }
    let mut create = call.info.clone();
    create.verb = "create".to_owned();
    filters::authorize(&call.server, &call.user, &create).await
}

fn take_upgrade(call: &mut Call) -> Result<OnUpgrade, ApiError> {
    let upgrade = call.parts.extensions.remove::<OnUpgrade>();
    upgrade.ok_or_else(|| {
        ApiError::bad_request("unable to upgrade: the connection cannot be taken over")
    })
}

async fn session(
    call: &mut Call,
    body: RequestBody,
    objects: &Objects,
    verb: &str,
    kind: &str,
) -> Result<Response, ApiError> {
    authorize_upgrade(call).await?;
    let pod = pod(call, objects).await?;
    let streams = Streams {
        stdin: call.query.flag("stdin"),
        stdout: call.query.flag("stdout"),
        stderr: call.query.flag("stderr"),
        tty: call.query.flag("tty"),
    };
    if verb == "exec" && call.query.all("command").next().is_none() {
        return Err(ApiError::bad_request(
            "you must specify at least 1 command for the container",
        ));
    }
    if !(streams.stdin || streams.stdout || streams.stderr) {
        return Err(ApiError::bad_request(
            "you must specify at least 1 of stdin, stdout, stderr",
        ));
    }
    let container = target::container(&pod, call.query.get("container"))?;
    let mut options = json!({
        "apiVersion": "v1", "kind": kind, "container": container,
        "stdin": streams.stdin, "stdout": streams.stdout, "stderr": streams.stderr, "tty": streams.tty,
    });
    if verb == "exec" {
        options["command"] = call.query.all("command").collect();
    }
    admit(call, kind, options).await?;
    let backend = kubelet_of(call, objects, &pod).await?;
    let path = target::session_path(verb, &pod, &container, &call.query);
    let wants_v5 = websocket::is_websocket(&call.parts.headers)
        && websocket::subprotocols(&call.parts.headers).contains(&remote_command::PROTOCOL);
    if wants_v5 {
        let upgrade = take_upgrade(call)?;
        return remote_command::serve(&call.parts.headers, upgrade, backend, path, streams);
    }
    pass_on(call, body, &backend, &path).await
}

async fn port_forward(
    call: &mut Call,
    body: RequestBody,
    objects: &Objects,
) -> Result<Response, ApiError> {
    authorize_upgrade(call).await?;
    let pod = pod(call, objects).await?;
    let ports: Vec<Value> = call
        .query
        .all("ports")
        .filter_map(|port| port.parse::<u16>().ok())
        .map(Value::from)
        .collect();
    admit(
        call,
        "PodPortForwardOptions",
        json!({ "apiVersion": "v1", "kind": "PodPortForwardOptions", "ports": ports }),
    )
    .await?;
    let backend = kubelet_of(call, objects, &pod).await?;
    let path = target::port_forward_path(&pod, &call.query);
    if websocket::is_websocket(&call.parts.headers)
        && !tunnel::protocols(&call.parts.headers).is_empty()
    {
        let upgrade = take_upgrade(call)?;
        return tunnel::serve(&call.parts.headers, upgrade, &backend, &path).await;
    }
    pass_on(call, body, &backend, &path).await
}

async fn pass_on(
    call: &mut Call,
    body: RequestBody,
    backend: &Backend,
    path: &str,
) -> Result<Response, ApiError> {
    let mut request = Request::new(body);
    *request.method_mut() = call.parts.method.clone();
    *request.headers_mut() = call.parts.headers.clone();
    if let Some(upgrade) = call.parts.extensions.remove::<OnUpgrade>() {
        request.extensions_mut().insert(upgrade);
    }
    http_proxy::pass_on(request, backend, path).await
}

async fn proxy(
    call: &mut Call,
    body: RequestBody,
    objects: &Objects,
) -> Result<Response, ApiError> {
    let (resource, kind) = match call.served.row.resource.as_str() {
        "pods" => ("pod", "PodProxyOptions"),
        "services" => ("service", "ServiceProxyOptions"),
        _ => ("node", "NodeProxyOptions"),
    };
    let asked = ProxyName::parse(&call.info.name, resource)?;
    let rest = match path_behind(call.parts.uri.path(), call.served.row.namespaced) {
        Some(rest) => rest,
        None if matches!(call.parts.method, Method::GET | Method::HEAD) => return redirect(call),
        // Other methods would not be repeated at the new place as they are.
        None => "",
    };
    let rest_len = rest.len();
    let options = json!({ "apiVersion": "v1", "kind": kind, "path": rest });
    let mut path = if rest.is_empty() { "/" } else { rest }.to_owned();
    if let Some(query) = call.parts.uri.query() {
        path = format!("{path}?{query}");
    }
    admit(call, kind, options).await?;
    let unchecked = call.server.outward.unchecked.clone();
    let backend = match resource {
        "pod" => {
            let pod = objects
                .get("", "pods", &call.info.namespace, &asked.name)
                .await?;
            target::pod_backend(&pod, &asked, &unchecked)?
        }
        "service" => {
            let mut random = [0u8; 8];
            call.server.config.clock.fill_random(&mut random);
            target::service_backend(
                objects,
                &call.info.namespace,
                &asked,
                &unchecked,
                u64::from_le_bytes(random),
            )
            .await?
        }
        _ => {
            let kubelets = &call.server.outward.kubelets;
            let kubelet = kubelets.kubelet(objects, &asked.name).await?;
            target::check_host(&kubelet.host).await?;
            target::node_backend(kubelet, &asked, &unchecked)?
        }
    };
    let raw = call.parts.uri.path();
    let way = Way {
        prefix: raw[..raw.len() - rest_len].to_owned(),
        backend: backend.authority(),
        asked: host_of(call),
    };
    call.parts
        .headers
        .insert("x-forwarded-uri", forwarded_uri(raw)?);
    let response = pass_on(call, body, &backend, &path).await?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(response);
    }
    links::rewrite(response, &way)
        .await
        .map_err(ApiError::internal)
}

/// The host that the client asked for, as HTTP/1 and HTTP/2 tell it.
fn host_of(call: &Call) -> String {
    let header = call.parts.headers.get(header::HOST);
    header
        .and_then(|v| v.to_str().ok())
        .or_else(|| call.parts.uri.authority().map(|a| a.as_str()))
        .unwrap_or_default()
        .to_owned()
}

/// Where a page lies for the client, so that it can make links itself.
fn forwarded_uri(raw: &str) -> Result<header::HeaderValue, ApiError> {
    header::HeaderValue::from_str(raw).map_err(ApiError::internal)
}

/// What follows `/proxy` in a raw path, beginning with `/`; `None` when not even a slash does.
fn path_behind(raw: &str, namespaced: bool) -> Option<&str> {
    // /api/v1/namespaces/NS/pods/NAME/proxy or /api/v1/nodes/NAME/proxy
    let segments = if namespaced { 7 } else { 5 };
    let mut slashes = raw.match_indices('/').map(|(at, _)| at);
    slashes.nth(segments).map(|at| &raw[at..])
}

/// `.../proxy` itself: relative links of the page behind it only work below `.../proxy/`.
fn redirect(call: &Call) -> Result<Response, ApiError> {
    let mut location = format!("{}/", call.parts.uri.path());
    if let Some(query) = call.parts.uri.query() {
        location = format!("{location}?{query}");
    }
    http::Response::builder()
        .status(StatusCode::MOVED_PERMANENTLY)
        .header(header::LOCATION, location)
        .body(full(Bytes::new()))
        .map_err(ApiError::internal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_behind_a_proxy_is_kept_as_it_came() {
        for (raw, namespaced, want) in [
            (
                "/api/v1/namespaces/d/pods/p/proxy/a%2Fb/",
                true,
                Some("/a%2Fb/"),
            ),
            (
                "/api/v1/namespaces/d/services/s:http/proxy/",
                true,
                Some("/"),
            ),
            ("/api/v1/namespaces/d/pods/p/proxy", true, None),
            ("/api/v1/nodes/n/proxy/metrics", false, Some("/metrics")),
        ] {
            assert_eq!(path_behind(raw, namespaced), want, "{raw}");
        }
    }
}
