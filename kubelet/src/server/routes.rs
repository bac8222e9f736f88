//! What the kubelet's server answers to.

use std::collections::HashMap;
use std::sync::Arc;

use futures::TryStreamExt;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};
use serde_json::json;

use super::auth::User;
use super::log_stream::{self, LogOptions};
use super::streaming::{self, Session};
use super::{Body, Server, answer, json as json_answer, metrics, text};
use crate::podutil;

/// Answers a request.
pub async fn handle(
    server: &Arc<Server>,
    peer: Option<User>,
    request: Request<Incoming>,
) -> Response<Body> {
    if let Err((status, message)) = server.auth.check(peer, &request).await {
        return text(status, message);
    }
    let path = request.uri().path().to_owned();
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let is_get = request.method() == Method::GET || request.method() == Method::HEAD;
    match parts.as_slice() {
        ["exec", namespace, pod, container] | ["exec", namespace, pod, _, container] => {
            let session = Session::Exec(container);
            streaming::handle(server, namespace, pod, session, request).await
        }
        ["attach", namespace, pod, container] | ["attach", namespace, pod, _, container] => {
            let session = Session::Attach(container);
            streaming::handle(server, namespace, pod, session, request).await
        }
        ["portForward", namespace, pod] | ["portForward", namespace, pod, _] => {
            streaming::handle(server, namespace, pod, Session::PortForward, request).await
        }
        _ if !is_get => text(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed"),
        ["healthz" | "livez" | "readyz"] | ["healthz", "ping" | "log" | "syncloop"] => {
            healthz(server)
        }
        ["pods"] => pods(server),
        ["runningpods"] => running_pods(server).await,
        ["configz"] => json_answer(&json!({"kubeletconfig": server.shared.config.file})),
        ["stats", "summary"] => match server
            .stats
            .summary(server, only_cpu_and_memory(&request))
            .await
        {
            Ok(s) => json_answer(&s),
            Err(e) => text(StatusCode::INTERNAL_SERVER_ERROR, e),
        },
        ["metrics"] => metrics_answer(metrics::kubelet(server).await),
        ["metrics", "resource"] => metrics_answer(metrics::resource(server).await),
        ["metrics", "cadvisor"] => metrics_answer(metrics::cadvisor(server).await),
        ["metrics", "probes"] => metrics_answer(Ok(String::new())),
        ["containerLogs", namespace, pod, container] => {
            container_logs(
                server,
                namespace,
                pod,
                container,
                request.uri().query().unwrap_or_default(),
            )
            .await
        }
        _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
    }
}

/// Whether the kubelet lives.
pub fn healthz(server: &Server) -> Response<Body> {
    // Upstream's syncloop check: the loop over the runtime's containers must have gone round lately.
    let h = server.shared.health.read();
    let stale = h
        .last_relist
        .is_some_and(|t| server.shared.clock.now().duration_since(t).as_secs() > 180);
    if stale {
        text(
            StatusCode::INTERNAL_SERVER_ERROR,
            "[-]syncloop failed: sync Loop took longer than expected\nhealthz check failed\n",
        )
    } else {
        text(StatusCode::OK, "ok")
    }
}

fn metrics_answer(text_format: Result<String, String>) -> Response<Body> {
    match text_format {
        Ok(t) => answer(
            StatusCode::OK,
            "text/plain; version=0.0.4; charset=utf-8",
            t.into(),
        ),
        Err(e) => text(StatusCode::INTERNAL_SERVER_ERROR, e),
    }
}

fn only_cpu_and_memory<B>(request: &Request<B>) -> bool {
    query(request.uri().query().unwrap_or_default())
        .get("only_cpu_and_memory")
        .is_some_and(|v| v == "true")
}

/// The pods with their last statuses.
fn current_pods(server: &Server) -> Vec<Pod> {
    let mut pods: Vec<Pod> = server
        .manager
        .pods()
        .iter()
        .map(|p| {
            let mut p = Pod::clone(p);
            if let Some(s) = server.shared.status.get(podutil::uid(&p)) {
                p.status = Some(s);
            }
            p
        })
        .collect();
    pods.sort_by(|a, b| {
        (podutil::namespace(a), podutil::name(a)).cmp(&(podutil::namespace(b), podutil::name(b)))
    });
    pods
}

fn pods(server: &Server) -> Response<Body> {
    json_answer(
        &json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": current_pods(server)}),
    )
}

async fn running_pods(server: &Server) -> Response<Body> {
    let sandboxes = match server
        .shared
        .runtime
        .list_pod_sandbox(Default::default())
        .await
    {
        Ok(s) => s,
        Err(e) => return text(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()),
    };
    let ready = crate::cri::PodSandboxState::Ready as i32;
    let items: Vec<_> = sandboxes
        .into_iter()
        .filter(|s| s.state == ready)
        .filter_map(|s| s.metadata)
        .map(|m| json!({"metadata": {"name": m.name, "namespace": m.namespace, "uid": m.uid}, "spec": {"containers": []}, "status": {}}))
        .collect();
    json_answer(&json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
}

/// A URL's query, decoded. The last value of a name wins.
pub fn query(q: &str) -> HashMap<String, String> {
    let decode = |s: &str| {
        let s = s.replace('+', " ");
        let bytes = s.as_bytes();
        let mut out = Vec::with_capacity(bytes.len());
        let mut i = 0;
        while i < bytes.len() {
            let code = s
                .get(i + 1..i + 3)
                .and_then(|h| u8::from_str_radix(h, 16).ok());
            match (bytes[i], code) {
                (b'%', Some(c)) => {
                    out.push(c);
                    i += 3;
                }
                (b, _) => {
                    out.push(b);
                    i += 1;
                }
            }
        }
        String::from_utf8_lossy(&out).into_owned()
    };
    q.split('&')
        .filter(|p| !p.is_empty())
        .map(|p| {
            let (k, v) = p.split_once('=').unwrap_or((p, ""));
            (decode(k), decode(v))
        })
        .collect()
}

async fn container_logs(
    server: &Arc<Server>,
    namespace: &str,
    pod: &str,
    container: &str,
    q: &str,
) -> Response<Body> {
    let options = match LogOptions::from_query(&query(q), server.shared.clock.now()) {
        Ok(o) => o,
        Err(e) => return text(StatusCode::UNPROCESSABLE_ENTITY, e),
    };
    let Some(found) = server.manager.find(namespace, pod) else {
        return text(
            StatusCode::NOT_FOUND,
            format!("pod {pod:?} does not exist\n"),
        );
    };
    if podutil::find_container(&found, container).is_none() {
        return text(
            StatusCode::NOT_FOUND,
            format!("container {container:?} not found in pod {pod:?}\n"),
        );
    }
    let status = server
        .shared
        .status
        .get(podutil::uid(&found))
        .or_else(|| found.status.clone())
        .unwrap_or_default();
    let id = match choose_container(pod, &status, container, options.previous) {
        Ok(id) => id,
        Err(e) => return text(StatusCode::BAD_REQUEST, e),
    };
    let path = match server.shared.runtime.container_status(&id).await {
        Ok(s) => s.log_path,
        Err(e) => {
            return text(
                StatusCode::BAD_REQUEST,
                format!(
                    "failed to try resolving symlinks in path: unable to retrieve container logs for {}://{id}: {e}",
                    server.shared.runtime_name
                ),
            );
        }
    };
    let stream =
        match log_stream::open(server.shared.runtime.clone(), id, path.into(), options).await {
            Ok(s) => s,
            Err(e) => return text(StatusCode::BAD_REQUEST, e.to_string()),
        };
    let body = StreamBody::new(stream.map_ok(Frame::data)).boxed();
    let mut response = Response::new(body);
    response.headers_mut().insert(
        http::header::CONTENT_TYPE,
        http::HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

/// Which run of a container has the log that is asked for (upstream `validateContainerLogStatus`).
pub fn choose_container(
    pod: &str,
    status: &PodStatus,
    name: &str,
    previous: bool,
) -> Result<String, String> {
    let all = [
        &status.container_statuses,
        &status.init_container_statuses,
        &status.ephemeral_container_statuses,
    ];
    let c: &ContainerStatus = all
        .into_iter()
        .flatten()
        .find_map(|l| podutil::status_of(l, name))
        .ok_or_else(|| format!("container {name:?} in pod {pod:?} is not available"))?;
    let bare = |id: &str| id.split("://").nth(1).unwrap_or(id).to_owned();
    let state = c.state.clone().unwrap_or_default();
    let last = c
        .last_state
        .as_ref()
        .and_then(|s| s.terminated.as_ref())
        .and_then(|t| t.container_id.as_deref())
        .filter(|id| !id.is_empty())
        .map(bare);
    if previous {
        return last.ok_or_else(|| {
            format!("previous terminated container {name:?} in pod {pod:?} not found")
        });
    }
    if state.running.is_some()
        && let Some(id) = &c.container_id
    {
        return Ok(bare(id));
    }
    if let Some(t) = &state.terminated {
        if let Some(id) = t.container_id.as_deref().filter(|i| !i.is_empty()) {
            return Ok(bare(id));
        }
        return last.ok_or_else(|| format!("container {name:?} in pod {pod:?} is terminated"));
    }
    if let Some(id) = last {
        return Ok(id);
    }
    match state.waiting.and_then(|w| w.reason) {
        Some(r) if r == "ErrImagePull" => Err(format!(
            "container {name:?} in pod {pod:?} is waiting to start: image can't be pulled"
        )),
        Some(r) if r == "ImagePullBackOff" => Err(format!(
            "container {name:?} in pod {pod:?} is waiting to start: trying and failing to pull image"
        )),
        Some(r) => Err(format!(
            "container {name:?} in pod {pod:?} is waiting to start: {r}"
        )),
        None => Err(format!(
            "container {name:?} in pod {pod:?} is waiting to start - no logs yet"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_and_containers() {
        let q = query("a=1%2B2&b=x+y&c&a=3");
        assert_eq!(
            (q["a"].as_str(), q["b"].as_str(), q["c"].as_str()),
            ("3", "x y", "")
        );
        let check = |status: &str, previous: bool, want: Result<&str, &str>| {
            let s: PodStatus = serde_yaml_ng::from_str(&format!("containerStatuses: [{{name: c, image: i, imageID: i, ready: true, restartCount: 0, {status}}}]")).unwrap();
            let got = choose_container("p", &s, "c", previous);
            match want {
                Ok(id) => assert_eq!(got.as_deref(), Ok(id), "{status}"),
                Err(part) => assert!(
                    got.as_ref().is_err_and(|e| e.contains(part)),
                    "{status} {got:?}"
                ),
            }
        };
        check(
            "state: {running: {}}, containerID: 'containerd://1'",
            false,
            Ok("1"),
        );
        check(
            "state: {running: {}}, containerID: 'containerd://1'",
            true,
            Err("previous terminated"),
        );
        check(
            "state: {waiting: {reason: CrashLoopBackOff}}, lastState: {terminated: {exitCode: 1, containerID: 'x://2'}}",
            false,
            Ok("2"),
        );
        check(
            "state: {terminated: {exitCode: 1, containerID: 'x://3'}}, lastState: {terminated: {exitCode: 1, containerID: 'x://2'}}",
            true,
            Ok("2"),
        );
        check(
            "state: {waiting: {reason: ImagePullBackOff}}",
            false,
            Err("trying and failing"),
        );
        check(
            "state: {waiting: {reason: ContainerCreating}}",
            false,
            Err("waiting to start: ContainerCreating"),
        );
    }
}
