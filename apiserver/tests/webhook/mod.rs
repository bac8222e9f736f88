//! Admission webhooks: a real HTTPS server whose paths behave as their names say, and cases in `cases.txt`.

use std::net::SocketAddr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio_rustls::TlsAcceptor;

use super::{Harness, run_file};

/// The calls so far, as `path operation resource/version kind name`.
type Calls = Arc<Mutex<Vec<String>>>;

struct HookServer {
    address: SocketAddr,
    ca_bundle: String,
    calls: Calls,
}

impl HookServer {
    async fn start() -> HookServer {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_string()])
            .expect("a certificate");
        let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der())
            .expect("a key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .expect("a usable certificate");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let address = listener.local_addr().expect("an address");
        let calls = Calls::default();
        let seen = calls.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, seen) = (acceptor.clone(), seen.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let service = hyper::service::service_fn(move |request| {
                        let seen = seen.clone();
                        async move { Ok::<_, std::convert::Infallible>(answer(request, &seen).await) }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        HookServer {
            address,
            ca_bundle: STANDARD.encode(made.cert.pem()),
            calls,
        }
    }
}

async fn answer(request: Request<Incoming>, calls: &Calls) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_string();
    let query = request.uri().query().unwrap_or_default().to_string();
    let body = request.into_body().collect().await.expect("a body");
    let review: Value = serde_json::from_slice(&body.to_bytes()).expect("a review");
    let asked = &review["request"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    calls.lock().push(format!(
        "{path}?{query} {} {}/{} {} {}",
        text(&asked["operation"]),
        text(&asked["resource"]["resource"]),
        text(&asked["resource"]["version"]),
        text(&asked["object"]["apiVersion"]),
        text(&asked["name"]),
    ));
    let uid = asked["uid"].clone();
    let patch = |operations: Value| json!({"uid": uid, "allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode(operations.to_string())});
    let mut code = 200;
    let response = match path.as_str() {
        "/allow" => json!({"uid": uid, "allowed": true}),
        "/deny" => {
            json!({"uid": uid, "allowed": false, "warnings": ["look out"], "status": {"code": 409, "reason": "Conflict", "message": "not so", "details": {"name": "n"}}})
        }
        "/deny-silently" => json!({"uid": uid, "allowed": false}),
        "/deny-marked" => {
            let marked = asked["object"]["metadata"]["labels"]["marked"] == "yes"
                || asked["oldObject"]["metadata"]["labels"]["marked"] == "yes";
            json!({"uid": uid, "allowed": !marked, "status": {"reason": "marked"}})
        }
        "/warn" => json!({"uid": uid, "allowed": true, "warnings": ["a \"quoted\" warning"]}),
        "/add-a" => patch(json!([{"op": "add", "path": "/data/a", "value": "1"}])),
        // Counts how often it is called; asks for others to see what `/add-a` made.
        "/count" => {
            let count = text(&asked["object"]["data"]["count"]).len() + 1;
            patch(json!([{"op": "add", "path": "/data/count", "value": "x".repeat(count)}]))
        }
        "/copy-a" => match asked["object"]["data"].get("a") {
            Some(a) => patch(json!([{"op": "add", "path": "/data/copied", "value": a}])),
            None => json!({"uid": uid, "allowed": true}),
        },
        "/container" => patch(
            json!([{"op": "add", "path": "/spec/initContainers", "value": [{"name": "added", "image": "i"}]}]),
        ),
        "/scale-to-one" => {
            patch(json!([{"op": "replace", "path": "/spec/maxReplicas", "value": 7}]))
        }
        "/rename" => patch(json!([{"op": "replace", "path": "/metadata/name", "value": "other"}])),
        "/broken-patch" => patch(json!([{"op": "remove", "path": "/nothing/here"}])),
        "/wrong-uid" => json!({"uid": "other", "allowed": true}),
        "/no-response" => Value::Null,
        "/patch-without-type" => {
            json!({"uid": uid, "allowed": true, "patch": STANDARD.encode("[]")})
        }
        "/error" => {
            code = 500;
            json!({"uid": uid})
        }
        "/slow" => {
            std::future::pending::<()>().await;
            Value::Null
        }
        other => panic!("what does {other} do?"),
    };
    let mut answer = json!({"kind": "AdmissionReview", "apiVersion": review["apiVersion"]});
    if !response.is_null() {
        answer["response"] = response;
    }
    let text = if code == 200 {
        answer.to_string()
    } else {
        "it broke".to_string()
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = code.try_into().expect("a code");
    response
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_are_asked() {
    let harness = Harness::start().await;
    let server = HookServer::start().await;
    let text = include_str!("cases.txt")
        .replace("${url}", &format!("https://{}", server.address))
        .replace("${ca}", &server.ca_bundle);
    let findings = run_file(&harness, "webhook/cases.txt", &text).await;
    assert!(findings.is_empty(), "{}", findings.join("\n"));
    let calls = server.calls.lock().clone();
    for wanted in [
        // A rule for v1 sees a request for v2 as v1, and the time limit is told.
        "/scale-to-one?timeout=3s UPDATE horizontalpodautoscalers/v1 autoscaling/v1 h",
        "/deny-marked?timeout=10s DELETE configmaps/v1  kept",
        "/allow?timeout=10s CREATE configmaps/v1 v1 beta",
        "/add-a?timeout=10s CREATE hooked/v1 example.com/v1 two",
    ] {
        assert!(
            calls.iter().any(|call| call == wanted),
            "{wanted}: {calls:#?}"
        );
    }
    let secrets: Vec<_> = calls
        .iter()
        .filter(|call| call.contains("webhookconf"))
        .collect();
    assert!(secrets.is_empty(), "{secrets:?}");
}
