//! Health: `/healthz` and `/livez` of the proxy, and the answers to load balancers' health checks of services.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use http::{Response, StatusCode, header};
use http_body_util::Full;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use keelson_machinery::clock::Clock;
use keelson_machinery::time;
use keelson_runtime::events::{EventType, Happening, Recorder};
use keelson_runtime::serving::{Endpoints, serve};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::nft::Family;
use crate::proxier::HealthCheck;

#[derive(Debug)]
struct State {
    /// Since when a change waits to be written.
    waiting_since: Option<Timestamp>,
    last_updated: Timestamp,
    /// Whether the node is there and not about to go.
    node_eligible: bool,
}

/// The proxy's health; clones share it.
#[derive(Clone)]
pub struct Health {
    clock: Clock,
    /// For how long a change may wait.
    patience: Duration,
    families: Vec<Family>,
    state: Arc<Mutex<State>>,
}

impl Health {
    /// Healthy until a change waits longer than `patience`.
    pub fn new(clock: Clock, patience: Duration, families: &[Family]) -> Self {
        let state = State {
            waiting_since: None,
            last_updated: clock.now(),
            node_eligible: false,
        };
        Health {
            clock,
            patience,
            families: families.to_vec(),
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// A change waits to be written.
    pub fn queued(&self) {
        let now = self.clock.now();
        self.state.lock().waiting_since.get_or_insert(now);
    }

    /// Everything is written.
    pub fn updated(&self) {
        let mut state = self.state.lock();
        state.waiting_since = None;
        state.last_updated = self.clock.now();
    }

    /// Whether the node may get traffic from load balancers.
    pub fn set_node_eligible(&self, eligible: bool) {
        self.state.lock().node_eligible = eligible;
    }

    /// Whether changes are written in time.
    pub fn is_healthy(&self) -> bool {
        let waiting = self.state.lock().waiting_since;
        waiting.is_none_or(|since| {
            self.clock.now().duration_since(since).unsigned_abs() < self.patience
        })
    }

    fn answer(&self, with_node: bool) -> Response<Full<Bytes>> {
        let proxy_healthy = self.is_healthy();
        let now = self.clock.now();
        let (last_updated, eligible) = {
            let state = self.state.lock();
            (state.last_updated, state.node_eligible)
        };
        let healthy = proxy_healthy && (eligible || !with_node);
        let text = |at: Timestamp| time::format_nano(at);
        let status: BTreeMap<&str, Value> = self
            .families
            .iter()
            .map(|f| {
                (
                    f.name(),
                    json!({"lastUpdated": text(last_updated), "healthy": proxy_healthy}),
                )
            })
            .collect();
        let mut body = json!({
            // As upstream: while healthy, what was written is as good as written now.
            "lastUpdated": text(if healthy { now } else { last_updated }),
            "currentTime": text(now), "healthy": proxy_healthy, "status": status,
        });
        if with_node {
            body["nodeEligible"] = eligible.into();
        }
        let code = if healthy {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        respond(code, body.to_string(), &[])
    }

    /// `/healthz`, for load balancers, and `/livez`, for whoever restarts the proxy.
    pub fn endpoints(&self) -> Endpoints {
        let (for_health, for_life) = (self.clone(), self.clone());
        Endpoints::new()
            .path(
                "/healthz",
                Arc::new(move |_| futures::future::ready(for_health.answer(true)).boxed()),
            )
            .path(
                "/livez",
                Arc::new(move |_| futures::future::ready(for_life.answer(false)).boxed()),
            )
    }
}

fn respond(
    code: StatusCode,
    body: String,
    headers: &[(&'static str, String)],
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = code;
    let all = response.headers_mut();
    all.insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/json"),
    );
    all.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        header::HeaderValue::from_static("nosniff"),
    );
    for (name, value) in headers {
        if let Ok(value) = header::HeaderValue::from_str(value) {
            all.insert(*name, value);
        }
    }
    response
}

/// The answers to health checks of services, one listener per port.
pub struct HealthChecks {
    health: Health,
    node: String,
    recorder: Recorder,
    servers: HashMap<u16, Server>,
}

struct Server {
    ips: Vec<IpAddr>,
    check: Arc<Mutex<HealthCheck>>,
    stop: CancellationToken,
}

impl HealthChecks {
    /// Answers nothing yet.
    pub fn new(health: Health, node: &str, recorder: Recorder) -> Self {
        HealthChecks {
            health,
            node: node.to_owned(),
            recorder,
            servers: HashMap::new(),
        }
    }

    /// Answers for these services at these ports and for no others. A port that is taken is told as an event and tried again
    /// with the next change.
    pub async fn set(&mut self, wanted: BTreeMap<u16, HealthCheck>, node_ips: &[IpAddr]) {
        self.servers.retain(|port, server| {
            let keep = wanted.get(port).is_some_and(|w| {
                let held = server.check.lock();
                (&held.namespace, &held.name) == (&w.namespace, &w.name) && server.ips == node_ips
            });
            if !keep {
                server.stop.cancel();
            }
            keep
        });
        for (port, check) in wanted {
            if let Some(server) = self.servers.get(&port) {
                *server.check.lock() = check;
                continue;
            }
            match self.listen(port, check.clone(), node_ips).await {
                Ok(server) => {
                    self.servers.insert(port, server);
                }
                Err(error) => {
                    let name = format!("{}/{}", check.namespace, check.name);
                    let message = format!(
                        "node {} failed to start healthcheck {name:?} on port {port}: {error}",
                        self.node
                    );
                    tracing::warn!(message);
                    self.recorder.record(Happening {
                        regarding: ObjectReference {
                            api_version: Some("v1".to_owned()),
                            kind: Some("Service".to_owned()),
                            namespace: Some(check.namespace),
                            name: Some(check.name),
                            ..ObjectReference::default()
                        },
                        related: None,
                        kind: EventType::Warning,
                        reason: "FailedToStartServiceHealthcheck".to_owned(),
                        action: "Listen".to_owned(),
                        message,
                        annotations: BTreeMap::new(),
                    });
                }
            }
        }
    }

    async fn listen(
        &self,
        port: u16,
        check: HealthCheck,
        node_ips: &[IpAddr],
    ) -> std::io::Result<Server> {
        let check = Arc::new(Mutex::new(check));
        let stop = CancellationToken::new();
        let mut listeners = Vec::new();
        for ip in node_ips {
            listeners.push(TcpListener::bind(SocketAddr::new(*ip, port)).await?);
        }
        for listener in listeners {
            let (check, health) = (check.clone(), self.health.clone());
            let endpoints = Endpoints::new().otherwise(Arc::new(move |_| {
                let check = check.lock().clone();
                futures::future::ready(answer_check(&check, health.is_healthy())).boxed()
            }));
            tokio::spawn(serve(listener, None, endpoints, stop.clone()));
        }
        Ok(Server {
            ips: node_ips.to_vec(),
            check,
            stop,
        })
    }
}

impl Drop for HealthChecks {
    fn drop(&mut self) {
        for server in self.servers.values() {
            server.stop.cancel();
        }
    }
}

fn answer_check(check: &HealthCheck, proxy_healthy: bool) -> Response<Full<Bytes>> {
    let code = match check.local_endpoints > 0 && proxy_healthy {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    let body = json!({
        "service": {"namespace": check.namespace, "name": check.name},
        "localEndpoints": check.local_endpoints,
        "serviceProxyHealthy": proxy_healthy,
    });
    respond(
        code,
        body.to_string(),
        &[(
            "x-load-balancing-endpoint-weight",
            check.local_endpoints.to_string(),
        )],
    )
}
