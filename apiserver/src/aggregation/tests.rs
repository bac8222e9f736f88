//! An aggregated API server of ours behind a server of ours: found, asked, proxied to, described, lost and forgotten.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use keelson_machinery::clock::Clock;
use keelson_store::embedded::{Embedded, Options};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::body::{ResponseBody, full, streamed};
use crate::config::PemPair;
use crate::request::UserInfo;
use crate::{ApiServer, Config};

const GROUP: &str = "/apis/agg.example.com";
const PROVIDER: fn() -> Arc<rustls::crypto::CryptoProvider> =
    || Arc::new(rustls::crypto::ring::default_provider());

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority")
}

fn leaf(issuer: &CertifiedIssuer<'static, KeyPair>, name: &str) -> PemPair {
    let mut params = CertificateParams::new([name.to_owned()]).expect("names");
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate().expect("a key");
    let certificate = params.signed_by(&key, issuer).expect("a certificate");
    PemPair {
        certificate: certificate.pem(),
        key: key.serialize_pem(),
    }
}

/// The aggregated server. It takes only clients whose certificate the front-proxy authority signed.
struct Extension {
    port: u16,
    /// Lets the second event of a watch go.
    second: Arc<Notify>,
    stop: CancellationToken,
}

impl Extension {
    async fn start(own: &PemPair, front_proxy: &CertifiedIssuer<'static, KeyPair>) -> Extension {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(front_proxy.der().clone()).expect("an authority");
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), PROVIDER())
            .build()
            .expect("a verifier");
        let chain = CertificateDer::pem_slice_iter(own.certificate.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .expect("a chain");
        let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes()).expect("a key");
        let config = rustls::ServerConfig::builder_with_provider(PROVIDER())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .expect("a certificate");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let port = listener.local_addr().expect("an address").port();
        let extension = Extension {
            port,
            second: Arc::default(),
            stop: CancellationToken::new(),
        };
        let (second, stop) = (extension.second.clone(), extension.stop.clone());
        tokio::spawn(async move {
            while let Some(Ok((stream, _))) = stop.run_until_cancelled(listener.accept()).await {
                let (acceptor, second) = (acceptor.clone(), second.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let service = service_fn(move |request| {
                        let second = second.clone();
                        async move { Ok::<_, Infallible>(answer(&request, second)) }
                    });
                    let builder =
                        hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ = builder
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        extension
    }
}

fn answer(request: &Request<Incoming>, second: Arc<Notify>) -> Response<ResponseBody> {
    let path = request.uri().path();
    let value = match path {
        "/apis/agg.example.com/v1" => {
            json!({"kind": "APIResourceList", "groupVersion": "agg.example.com/v1", "resources": [
            {"name": "flunders", "singularName": "flunder", "namespaced": false, "kind": "Flunder", "verbs": ["get", "list"]}]})
        }
        "/openapi/v3" => json!({"paths": {"apis/agg.example.com/v1":
            {"serverRelativeURL": "/openapi/v3/apis/agg.example.com/v1?hash=F00"}}}),
        "/openapi/v3/apis/agg.example.com/v1" => json!({"openapi": "3.0.0", "of": "flunders"}),
        "/openapi/v2" => {
            json!({"paths": {"/apis/agg.example.com/v1/flunders": {"get": {"schema": {"$ref": "#/definitions/Flunder"}}}},
            "definitions": {"Flunder": {"type": "object"}}})
        }
        "/apis/agg.example.com/v1/flunders" if request.uri().query() == Some("watch=1") => {
            let events = futures::stream::unfold(0, move |count| {
                let second = second.clone();
                async move {
                    if count == 1 {
                        second.notified().await;
                    }
                    (count < 2).then(|| (Ok(Bytes::from(format!("event {count}\n"))), count + 1))
                }
            });
            return Response::new(streamed(events.boxed()));
        }
        "/apis/agg.example.com/v1/flunders/x" => {
            let all = request.headers();
            let text = |name: &str| -> Vec<String> {
                all.get_all(name)
                    .iter()
                    .map(|text| text.to_str().unwrap_or_default().to_owned())
                    .collect()
            };
            json!({"method": request.method().as_str(), "user": text("x-remote-user"), "groups": text("x-remote-group"),
                "credentials": text("authorization")})
        }
        _ => {
            let mut response = Response::new(full("nothing"));
            *response.status_mut() = StatusCode::NOT_FOUND;
            return response;
        }
    };
    let mut response = Response::new(full(value.to_string()));
    let kind = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert("content-type", kind);
    response
}

struct World {
    api: ApiServer,
    _dir: tempfile::TempDir,
}

impl World {
    async fn send(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: &Value,
    ) -> Response<ResponseBody> {
        let kind = match method {
            Method::PATCH => "application/merge-patch+json",
            _ => "application/json",
        };
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", kind)
            .header("accept", accept)
            .header("x-remote-group", "forged")
            .body(Full::new(Bytes::from(body)))
            .expect("a request");
        let admin = UserInfo {
            name: "admin".to_owned(),
            groups: vec!["system:masters".to_owned()],
            ..UserInfo::default()
        };
        match self.api.in_process_service(admin).oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }

    async fn ask(&self, method: Method, path: &str, body: &Value) -> (u16, Value) {
        let response = self.send(method, path, "application/json", body).await;
        read(response).await
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        self.ask(Method::GET, path, &Value::Null).await
    }

    /// Waits, with a limit, until an answer is as wanted.
    async fn until(&self, path: &str, wanted: impl Fn(u16, &Value) -> bool) -> Value {
        for _ in 0..400 {
            let (code, value) = self.get(path).await;
            if wanted(code, &value) {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        let last = self.get(path).await;
        panic!("{path} did not become as wanted: {last:?}");
    }
}

async fn read(response: Response<ResponseBody>) -> (u16, Value) {
    let code = response.status().as_u16();
    let body = response
        .into_body()
        .collect()
        .await
        .expect("a body")
        .to_bytes();
    let text = || Value::String(String::from_utf8_lossy(&body).into_owned());
    (
        code,
        serde_json::from_slice(&body).unwrap_or_else(|_| text()),
    )
}

fn available(object: &Value) -> (&str, &str) {
    let condition = super::available::condition(object);
    let text = |field: &str| {
        condition
            .and_then(|one| one[field].as_str())
            .unwrap_or_default()
    };
    (text("status"), text("reason"))
}

#[tokio::test(flavor = "multi_thread")]
async fn another_server_is_part_of_this_one() {
    use base64::Engine as _;
    let (servers, front_proxy) = (authority("servers"), authority("front-proxy"));
    let extension = Extension::start(&leaf(&servers, "api.agg.svc"), &front_proxy).await;
    let dir = tempfile::tempdir().expect("a directory");
    let clock = Clock::system();
    let none = PemPair {
        certificate: String::new(),
        key: String::new(),
    };
    let mut config = Config::new(none, clock.clone());
    config.proxy_client = Some(leaf(&front_proxy, "front-proxy-client"));
    let store = Embedded::open(dir.path().join("store"), Options::new(clock)).expect("a store");
    let api = ApiServer::start(config, store).await.expect("a server");
    let world = World { api, _dir: dir };

    // What the server itself serves is registered, and available.
    let services = "/apis/apiregistration.k8s.io/v1/apiservices";
    let apps = world
        .until(&format!("{services}/v1.apps"), |code, _| code == 200)
        .await;
    assert_eq!(available(&apps), ("True", "Local"));
    assert_eq!(
        apps["metadata"]["labels"]["kube-aggregator.kubernetes.io/automanaged"],
        "onstart"
    );
    assert_eq!(apps["spec"]["groupPriorityMinimum"], 17800);

    // An APIService of a service that is not there.
    let bundle = base64::engine::general_purpose::STANDARD.encode(servers.pem());
    let own = format!("{services}/v1.agg.example.com");
    let object = json!({"metadata": {"name": "v1.agg.example.com"}, "spec": {"group": "agg.example.com", "version": "v1",
        "groupPriorityMinimum": 2000, "versionPriority": 200, "caBundle": bundle,
        "service": {"namespace": "agg", "name": "api", "port": extension.port}}});
    let (code, created) = world.ask(Method::POST, services, &object).await;
    assert_eq!(code, 201, "{created}");
    world
        .until(&own, |_, object| {
            available(object) == ("False", "ServiceNotFound")
        })
        .await;
    let response = world.get(&format!("{GROUP}/v1/flunders/x")).await;
    assert_eq!(response, (503, json!("service unavailable\n")));
    let discovery = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let of_group = |list: &Value| {
        let items = list["items"].as_array().cloned().unwrap_or_default();
        items
            .into_iter()
            .find(|item| item["metadata"]["name"] == "agg.example.com")
    };
    let (_, list) = read(
        world
            .send(Method::GET, "/apis", discovery, &Value::Null)
            .await,
    )
    .await;
    assert_eq!(
        of_group(&list).expect("the group")["versions"],
        json!([{"version": "v1", "freshness": "Stale"}])
    );

    // The service comes.
    world
        .ask(
            Method::POST,
            "/api/v1/namespaces",
            &json!({"metadata": {"name": "agg"}}),
        )
        .await;
    let service = json!({"metadata": {"name": "api"}, "spec": {"type": "ExternalName", "externalName": "localhost",
        "ports": [{"port": extension.port}]}});
    let (code, service) = world
        .ask(Method::POST, "/api/v1/namespaces/agg/services", &service)
        .await;
    assert_eq!(code, 201, "{service}");
    world
        .until(&own, |_, object| available(object) == ("True", "Passed"))
        .await;
    let (code, echo) = world
        .ask(
            Method::PUT,
            &format!("{GROUP}/v1/flunders/x?a=b"),
            &json!({"kind": "Flunder"}),
        )
        .await;
    assert_eq!(
        (code, echo),
        (
            200,
            json!({"method": "PUT", "user": ["admin"], "groups": ["system:masters", "system:authenticated"], "credentials": []})
        )
    );
    assert_eq!(
        world.get(&format!("{GROUP}/v1/nothing/x")).await,
        (404, json!("nothing"))
    );

    // A watch comes as it is sent.
    let watch = world
        .send(
            Method::GET,
            &format!("{GROUP}/v1/flunders?watch=1"),
            "application/json",
            &Value::Null,
        )
        .await;
    let mut frames = watch.into_body();
    let mut frame = async || {
        let next = tokio::time::timeout(Duration::from_secs(10), frames.frame()).await;
        next.expect("in time")
            .expect("a frame")
            .expect("no error")
            .into_data()
            .expect("data")
    };
    assert_eq!(frame().await, "event 0\n");
    extension.second.notify_one();
    assert_eq!(frame().await, "event 1\n");

    // Discovery and OpenAPI are those of both.
    world
        .until("/apis", |_, list| {
            let groups = list["groups"].as_array().cloned().unwrap_or_default();
            groups.iter().any(|group| {
                group["name"] == "agg.example.com"
                    && group["preferredVersion"]["groupVersion"] == "agg.example.com/v1"
            })
        })
        .await;
    assert_eq!(world.get(GROUP).await.1["kind"], "APIGroup");
    assert_eq!(
        world.get(&format!("{GROUP}/v1")).await.1["resources"][0]["name"],
        "flunders"
    );
    let document = "apis/agg.example.com/v1";
    world
        .until("/openapi/v3", |_, index| {
            index["paths"][document]["serverRelativeURL"]
                == format!("/openapi/v3/{document}?hash=F00")
                && index["paths"]["api/v1"].is_object()
        })
        .await;
    let (_, described) = world.get(&format!("/openapi/v3/{document}?hash=F00")).await;
    assert_eq!(described["of"], "flunders");
    let (_, all) = world.get("/openapi/v2").await;
    assert!(all["paths"]["/apis/agg.example.com/v1/flunders"].is_object());
    assert!(all["paths"]["/api/v1/pods"].is_object());
    assert_eq!(all["definitions"]["Flunder"], json!({"type": "object"}));
    let (_, list) = read(
        world
            .send(Method::GET, "/apis", discovery, &Value::Null)
            .await,
    )
    .await;
    let versions = of_group(&list).expect("the group")["versions"].clone();
    assert_eq!(versions[0]["freshness"], "Current");
    assert_eq!(
        versions[0]["resources"][0]["responseKind"]["kind"],
        "Flunder"
    );

    // An authority that did not sign the server's certificate.
    let stranger = base64::engine::general_purpose::STANDARD.encode(authority("stranger").pem());
    world
        .ask(
            Method::PATCH,
            &own,
            &json!({"spec": {"caBundle": stranger}}),
        )
        .await;
    world
        .until(&own, |_, object| {
            available(object) == ("False", "FailedDiscoveryCheck")
        })
        .await;
    world
        .ask(
            Method::PATCH,
            &own,
            &json!({"spec": {"caBundle": null, "insecureSkipTLSVerify": true}}),
        )
        .await;
    world
        .until(&own, |_, object| available(object) == ("True", "Passed"))
        .await;

    // The server goes, and what was known of it is stale; then its APIService goes too.
    extension.stop.cancel();
    world
        .ask(
            Method::PATCH,
            "/api/v1/namespaces/agg/services/api",
            &json!({"metadata": {"labels": {"a": "b"}}}),
        )
        .await;
    world
        .until(&own, |_, object| {
            available(object) == ("False", "FailedDiscoveryCheck")
        })
        .await;
    world
        .until(&format!("{GROUP}/v1"), |code, _| code == 503)
        .await;
    let (_, list) = read(
        world
            .send(Method::GET, "/apis", discovery, &Value::Null)
            .await,
    )
    .await;
    let versions = of_group(&list).expect("the group")["versions"].clone();
    assert_eq!(versions[0]["freshness"], "Stale");
    assert_eq!(versions[0]["resources"][0]["resource"], "flunders");
    world.ask(Method::DELETE, &own, &Value::Null).await;
    world
        .until(&format!("{GROUP}/v1"), |code, _| code == 404)
        .await;
    assert_eq!(world.get(GROUP).await.0, 404);
    world.api.close();
}
