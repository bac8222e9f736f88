//! Who is let in as whom: tokens good and bad, certificates, headers, impersonation.

use async_trait::async_trait;
use base64::engine::general_purpose::STANDARD;
use http::Request;
use keelson_machinery::value::Value;
use serde_json::json;

use super::impersonation::impersonate;
use super::review::{OpenIdDocuments, token_review};
use super::token_request::TokenIssuer;
use super::x509::RequestHeaderConfig;
use super::*;
use crate::authz::{Attributes, Authorizer, Decision};
use crate::pki::Pki;
use crate::pki::keys::SigningKey;
use crate::testing::{HandClock, Memory, START};

const ISSUER: &str = "https://kubernetes.default.svc";

struct World {
    memory: Memory,
    clock: HandClock,
    pki: Pki,
    issuer: TokenIssuer,
    authentication: Authentication,
    _dir: tempfile::TempDir,
}

fn object(namespace: &str, name: &str, uid: &str, rest: Value) -> Value {
    let mut object = rest;
    object["metadata"]["name"] = name.into();
    object["metadata"]["uid"] = uid.into();
    if !namespace.is_empty() {
        object["metadata"]["namespace"] = namespace.into();
    }
    object
}

fn world() -> World {
    let dir = tempfile::tempdir().expect("tempdir");
    let (memory, clock) = (Memory::default(), HandClock::new());
    let pki = Pki::open(dir.path(), &[], &clock.clock()).expect("pki");
    memory.put(
        "",
        "serviceaccounts",
        object("a", "robot", "u-sa", json!({})),
    );
    memory.put(
        "",
        "pods",
        object(
            "a",
            "pod",
            "u-pod",
            json!({"spec": {"serviceAccountName": "robot", "nodeName": "n1"}}),
        ),
    );
    memory.put("", "secrets", object("a", "sec", "u-sec", json!({})));
    memory.put("", "nodes", object("", "n1", "u-node", json!({})));
    let issuer = TokenIssuer {
        key: SigningKey::from_pem(pki.service_account_key_pem()).expect("key"),
        issuer: ISSUER.into(),
        api_audiences: vec![ISSUER.into()],
        max_expiration: 0,
        extend_expiration: true,
        objects: memory.objects(),
        clock: clock.clock(),
    };
    let config = AuthenticationConfig {
        client_ca_pem: Some(pki.ca_pem().into()),
        request_header: Some(RequestHeaderConfig::standard(
            pki.front_proxy_ca_pem(),
            vec!["front-proxy-client".into()],
        )),
        service_account_key_pems: vec![pki.service_account_public_pem().into()],
        service_account_issuers: vec![ISSUER.into()],
        api_audiences: vec![],
        token_file: Some("tok-1,ann,1,\"dev,ops\"\n".into()),
        bootstrap_tokens: true,
        anonymous: true,
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let authentication = Authentication::new(config, memory.objects(), clock.clock(), provider)
        .expect("configuration");
    World {
        memory,
        clock,
        pki,
        issuer,
        authentication,
        _dir: dir,
    }
}

impl World {
    async fn token(&self, spec: Value) -> String {
        let request = json!({"spec": spec});
        let answer = self
            .issuer
            .issue("a", "robot", request, &mut Vec::new())
            .await
            .expect("a token");
        answer["status"]["token"].as_str().expect("text").to_owned()
    }

    /// The claims of a token as signed by `key`, changed.
    async fn forged(&self, change: impl FnOnce(&mut Value), key: &SigningKey) -> String {
        let token = self.token(json!({})).await;
        let part = token.split('.').nth(1).expect("claims");
        let mut claims: Value =
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).expect("base64")).expect("json");
        change(&mut claims);
        jwt::sign(key, &claims).expect("signs")
    }

    async fn ask(
        &self,
        headers: &[(&str, &str)],
        certificate: Option<&str>,
    ) -> Result<Option<UserInfo>, AuthenticationError> {
        let mut request = Request::builder().uri("/api");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).expect("request").into_parts();
        let peer_certificates = certificate.map(der).into_iter().collect();
        self.authentication
            .authenticate(
                &parts,
                &ConnectionInfo {
                    peer_certificates,
                    ..ConnectionInfo::default()
                },
            )
            .await
    }

    async fn bearer(&self, token: &str) -> Result<Option<UserInfo>, AuthenticationError> {
        self.ask(&[("authorization", &format!("Bearer {token}"))], None)
            .await
    }
}

fn der(pem: &str) -> Vec<u8> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    CertificateDer::from_pem_slice(pem.as_bytes())
        .expect("pem")
        .to_vec()
}

fn refused(result: Result<Option<UserInfo>, AuthenticationError>) -> String {
    result.expect_err("refused").0
}

#[tokio::test]
async fn service_account_tokens() {
    let w = world();
    let user = w
        .bearer(&w.token(json!({})).await)
        .await
        .expect("good")
        .expect("known");
    assert_eq!(user.name, "system:serviceaccount:a:robot");
    assert_eq!(user.uid, "u-sa");
    assert_eq!(
        user.groups,
        [
            "system:serviceaccounts",
            "system:serviceaccounts:a",
            "system:authenticated"
        ]
    );
    assert!(user.extra["authentication.kubernetes.io/credential-id"][0].starts_with("JTI="));

    let own = &w.issuer.key;
    let stranger =
        SigningKey::from_pem(&std::fs::read_to_string(w.pki.dir().join("ca.key")).expect("key"))
            .expect("key");
    let good = w.token(json!({})).await;
    let (signed, signature) = good.rsplit_once('.').expect("token");
    let claims = signed.split('.').nth(1).expect("claims");
    let with_header =
        |header: &str| format!("{}.{claims}.{signature}", URL_SAFE_NO_PAD.encode(header));
    let kid = own.public().key_id();
    let cases = [
        (
            "another key",
            w.forged(|_| (), &stranger).await,
            "no keys found",
        ),
        (
            "alg none",
            format!("{}.{claims}.", URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#)),
            "error in cryptographic primitive",
        ),
        (
            "alg HS256",
            with_header(&format!(r#"{{"alg":"HS256","kid":"{kid}"}}"#)),
            "error in cryptographic primitive",
        ),
        (
            "alg RS256 for an EC key",
            with_header(&format!(r#"{{"alg":"RS256","kid":"{kid}"}}"#)),
            "error in cryptographic primitive",
        ),
        (
            "critical extension",
            with_header(&format!(r#"{{"alg":"ES256","kid":"{kid}","crit":["x"]}}"#)),
            "extension",
        ),
        (
            "signature of another token",
            format!(
                "{signed}.{}",
                w.token(json!({})).await.rsplit_once('.').expect("token").1
            ),
            "primitive",
        ),
        (
            "another audience",
            w.token(json!({"audiences": ["vault"]})).await,
            "token audiences [\"vault\"] is invalid for the target audiences",
        ),
        (
            "another issuer",
            w.forged(|c| c["iss"] = "https://evil".into(), own).await,
            "invalid bearer token",
        ),
        (
            "not yet",
            w.forged(|c| c["nbf"] = (START + 61).into(), own).await,
            "service account token is not valid yet",
        ),
        (
            "issued in the future",
            w.forged(|c| c["iat"] = (START + 61).into(), own).await,
            "service account token is issued in the future",
        ),
        (
            "expired",
            w.forged(|c| c["exp"] = (START - 61).into(), own).await,
            "service account token has expired",
        ),
        (
            "unknown account",
            w.forged(
                |c| c["kubernetes.io"]["serviceaccount"]["name"] = "x".into(),
                own,
            )
            .await,
            "not found",
        ),
        (
            "account made anew",
            w.forged(
                |c| c["kubernetes.io"]["serviceaccount"]["uid"] = "x".into(),
                own,
            )
            .await,
            "does not match claim",
        ),
        (
            "no claims of ours",
            w.forged(
                |c| drop(c.as_object_mut().expect("map").remove("kubernetes.io")),
                own,
            )
            .await,
            "could not be validated",
        ),
        ("garbage", "a.b.c".into(), "invalid bearer token"),
        ("not even three parts", "abc".into(), "invalid bearer token"),
    ];
    for (what, token, expected) in cases {
        let error = refused(w.bearer(&token).await);
        assert!(error.contains(expected), "{what}: {error}");
    }
    w.clock.advance(3600 + 61);
    assert_eq!(
        refused(w.bearer(&good).await),
        "service account token has expired",
        "a remembered signature does not outlive the token"
    );
}

#[tokio::test]
async fn bound_tokens_die_with_their_objects() {
    for (kind, resource, namespace, name) in [
        ("Pod", "pods", "a", "pod"),
        ("Secret", "secrets", "a", "sec"),
        ("Node", "nodes", "", "n1"),
    ] {
        let w = world();
        let token = w
            .token(json!({"boundObjectRef": {"apiVersion": "v1", "kind": kind, "name": name}}))
            .await;
        let user = w.bearer(&token).await.expect("good").expect("known");
        if kind == "Pod" {
            assert_eq!(user.extra["authentication.kubernetes.io/pod-name"], ["pod"]);
            assert_eq!(
                user.extra["authentication.kubernetes.io/node-uid"],
                ["u-node"]
            );
        }
        w.memory.delete("", resource, namespace, name);
        w.clock.advance(1);
        assert_eq!(
            refused(w.bearer(&token).await),
            "service account token has been invalidated",
            "{kind}"
        );
    }
    let w = world();
    let token = w.token(json!({})).await;
    w.memory.fail();
    assert!(
        refused(w.bearer(&token).await).contains("the store failed"),
        "a failed read is not an answer"
    );
}

#[tokio::test]
async fn token_requests() {
    let w = world();
    let cases = [
        (
            json!({"spec": {"expirationSeconds": 599}}),
            "robot",
            422,
            "may not specify a duration less than 10 minutes",
        ),
        (
            json!({"spec": {}}),
            "nobody",
            404,
            "serviceaccounts \"nobody\" not found",
        ),
        (
            json!({"metadata": {"name": "x"}}),
            "robot",
            422,
            "must match the service account name if specified",
        ),
        (
            json!({"metadata": {"uid": "x"}}),
            "robot",
            409,
            "does not match the UID of the service account",
        ),
        (
            json!({"spec": {"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "gone"}}}),
            "robot",
            404,
            "pods \"gone\" not found",
        ),
        (
            json!({"spec": {"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "pod", "uid": "x"}}}),
            "robot",
            409,
            "does not match the UID in record",
        ),
        (
            json!({"spec": {"boundObjectRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "x"}}}),
            "robot",
            400,
            "cannot bind token to object of type",
        ),
    ];
    for (request, account, code, expected) in cases {
        let error = w
            .issuer
            .issue("a", account, request, &mut Vec::new())
            .await
            .expect_err(expected);
        assert_eq!(error.code, code, "{error}");
        assert!(error.message.contains(expected), "{error}");
    }
    w.memory.put(
        "",
        "serviceaccounts",
        object("a", "other", "u-2", json!({})),
    );
    let bound =
        json!({"spec": {"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "pod"}}});
    let error = w
        .issuer
        .issue("a", "other", bound, &mut Vec::new())
        .await
        .expect_err("another account's pod");
    assert_eq!(
        error.message,
        "cannot bind token for serviceaccount \"other\" to pod running with different serviceaccount name."
    );

    // The lifetime that marks a kubelet-mounted token is stretched to a year, and says when it should have been renewed.
    let spec = json!({"expirationSeconds": 3607, "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "pod"}});
    let answer = w
        .issuer
        .issue("a", "robot", json!({"spec": spec}), &mut Vec::new())
        .await
        .expect("token");
    let part = answer["status"]["token"]
        .as_str()
        .expect("text")
        .split('.')
        .nth(1)
        .expect("claims")
        .to_owned();
    let claims: Value =
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).expect("base64")).expect("json");
    assert_eq!(claims["exp"], START + 365 * 86_400);
    assert_eq!(claims["kubernetes.io"]["warnafter"], START + 3607);
    assert_eq!(
        claims["kubernetes.io"]["pod"],
        json!({"name": "pod", "uid": "u-pod"})
    );
    assert_eq!(
        answer["status"]["expirationTimestamp"],
        time_text_at(START + 3607)
    );
}

fn time_text_at(seconds: i64) -> String {
    token_request::time_text(jiff::Timestamp::from_second(seconds).expect("in range"))
}

#[tokio::test]
async fn other_tokens() {
    let w = world();
    let user = w.bearer("tok-1").await.expect("good").expect("known");
    assert_eq!((user.name.as_str(), user.uid.as_str()), ("ann", "1"));
    assert_eq!(user.groups, ["dev", "ops", "system:authenticated"]);

    let good = [
        ("token-id", "abcdef"),
        ("token-secret", "0123456789abcdef"),
        ("usage-bootstrap-authentication", "true"),
    ];
    let secret = |entries: &[(&str, &str)]| {
        let data: serde_json::Map<String, Value> = entries
            .iter()
            .map(|(key, value)| ((*key).to_owned(), STANDARD.encode(value).into()))
            .collect();
        object(
            "kube-system",
            "bootstrap-token-abcdef",
            "u",
            json!({"type": "bootstrap.kubernetes.io/token", "data": data}),
        )
    };
    let cases: [(&str, Vec<(&str, &str)>, &str, bool); 7] = [
        ("good", vec![], "abcdef.0123456789abcdef", true),
        ("wrong secret", vec![], "abcdef.0123456789abcdee", false),
        ("wrong form", vec![], "abcdef.0123456789ABCDEF", false),
        (
            "expired",
            vec![("expiration", "2020-01-01T00:00:00Z")],
            "abcdef.0123456789abcdef",
            false,
        ),
        (
            "unreadable expiry",
            vec![("expiration", "soon")],
            "abcdef.0123456789abcdef",
            false,
        ),
        (
            "foreign group",
            vec![("auth-extra-groups", "system:masters")],
            "abcdef.0123456789abcdef",
            false,
        ),
        (
            "groups",
            vec![("auth-extra-groups", "system:bootstrappers:x")],
            "abcdef.0123456789abcdef",
            true,
        ),
    ];
    for (what, more, token, expected) in cases {
        w.memory
            .put("", "secrets", secret(&[&good[..], &more].concat()));
        let result = w.bearer(token).await;
        match expected {
            true => assert_eq!(
                result.expect("good").expect("known").name,
                "system:bootstrap:abcdef",
                "{what}"
            ),
            false => assert_eq!(refused(result), "invalid bearer token", "{what}"),
        }
    }
    // A token of old that stands in a Secret.
    let claims = json!({
        "iss": "kubernetes/serviceaccount", "sub": "system:serviceaccount:a:robot", "kubernetes.io/serviceaccount/namespace": "a",
        "kubernetes.io/serviceaccount/secret.name": "old", "kubernetes.io/serviceaccount/service-account.name": "robot",
        "kubernetes.io/serviceaccount/service-account.uid": "u-sa",
    });
    let token = jwt::sign(&w.issuer.key, &claims).expect("signs");
    assert_eq!(
        refused(w.bearer(&token).await),
        "Token has been invalidated"
    );
    w.memory.put(
        "",
        "secrets",
        object(
            "a",
            "old",
            "u",
            json!({"data": {"token": STANDARD.encode(&token)}}),
        ),
    );
    assert_eq!(
        w.bearer(&token).await.expect("good").expect("known").uid,
        "u-sa"
    );
    w.clock.advance(1);
    w.memory.put(
        "",
        "secrets",
        object(
            "a",
            "old",
            "u",
            json!({"data": {"token": STANDARD.encode("x")}}),
        ),
    );
    assert_eq!(
        refused(w.bearer(&token).await),
        "Token does not match server's copy"
    );
}

#[tokio::test]
async fn certificates_and_headers() {
    let w = world();
    let admin = w.pki.admin.certificate_pem.as_str();
    let user = w.ask(&[], Some(admin)).await.expect("good").expect("known");
    assert_eq!(
        (user.name.as_str(), user.groups[0].as_str()),
        ("kubernetes-admin", "system:masters")
    );
    assert!(user.extra["authentication.kubernetes.io/credential-id"][0].starts_with("X509SHA256="));
    let proxy = w.pki.front_proxy_client.certificate_pem.as_str();
    let claimed = [
        ("x-remote-user", "bob"),
        ("X-Remote-Group", "g1"),
        ("x-remote-group", "g2"),
        ("x-remote-extra-acme.com%2Fproject", "p"),
    ];
    let user = w
        .ask(&claimed, Some(proxy))
        .await
        .expect("good")
        .expect("known");
    assert_eq!(
        (user.name.as_str(), user.groups.as_slice()),
        (
            "bob",
            ["g1", "g2", "system:authenticated"]
                .map(String::from)
                .as_slice()
        )
    );
    assert_eq!(user.extra["acme.com/project"], ["p"]);
    // Nobody else may use those headers: the administrator's certificate counts, the headers do not.
    assert_eq!(
        w.ask(&claimed, Some(admin))
            .await
            .expect("good")
            .expect("known")
            .name,
        "kubernetes-admin"
    );
    assert_eq!(
        w.ask(&claimed, None)
            .await
            .expect("good")
            .expect("known")
            .name,
        "system:anonymous"
    );
    let other_dir = tempfile::tempdir().expect("tempdir");
    let other = Pki::open(other_dir.path(), &[], &w.clock.clock()).expect("pki");
    refused(w.ask(&[], Some(&other.admin.certificate_pem)).await);
    refused(w.ask(&[], Some(&w.pki.apiserver.certificate_pem)).await); // not for clients
    w.clock.advance(366 * 86_400);
    refused(w.ask(&[], Some(admin)).await);
    let user = w.ask(&[], None).await.expect("good").expect("known");
    assert_eq!(user, anonymous());
    for header in ["Basic abc", "Bearer", "bearer  x"] {
        assert_eq!(
            w.ask(&[("authorization", header)], None)
                .await
                .expect("not a token")
                .expect("known"),
            anonymous(),
            "{header}"
        );
    }
}

#[tokio::test]
async fn websocket_tokens() {
    let w = world();
    let protocol = format!("{WEBSOCKET_BEARER}{}", URL_SAFE_NO_PAD.encode("tok-1"));
    let offer = format!("{protocol}, v4.channel.k8s.io");
    let upgrade = [
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "websocket"),
    ];
    let with = |value: &'static str| [upgrade[0], upgrade[1], ("sec-websocket-protocol", value)];
    let headers = [
        upgrade[0],
        upgrade[1],
        ("sec-websocket-protocol", offer.as_str()),
    ];
    assert_eq!(
        w.ask(&headers, None)
            .await
            .expect("good")
            .expect("known")
            .name,
        "ann"
    );
    assert_eq!(
        refused(
            w.ask(&with("base64url.bearer.authorization.k8s.io.dG9rLTE"), None)
                .await
        ),
        "missing additional subprotocol"
    );
    assert_eq!(
        refused(
            w.ask(&with("base64url.bearer.authorization.k8s.io.!, x"), None)
                .await
        ),
        "invalid base64.bearer.authorization token encoding"
    );
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.insert(name, value.parse().expect("header"));
    }
    map.insert("x-remote-user", "root".parse().expect("header"));
    w.authentication.strip_credentials(&mut map);
    assert_eq!(map[SEC_WEBSOCKET_PROTOCOL], "v4.channel.k8s.io");
    assert!(!map.contains_key("x-remote-user"));
}

/// Allows what its table names: `resource/name`.
struct Table(&'static [&'static str]);

#[async_trait]
impl Authorizer for Table {
    async fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        let request = attributes.request;
        assert_eq!(request.verb, "impersonate");
        let asked = format!("{}/{}", request.resource, request.name);
        if self.0.contains(&asked.as_str()) {
            Decision::Allow(String::new())
        } else {
            Decision::NoOpinion(String::new())
        }
    }
}

#[tokio::test]
async fn impersonating() {
    let me = UserInfo {
        name: "me".into(),
        ..UserInfo::default()
    };
    let run = async |headers: &[(&'static str, &str)], allowed: &'static [&'static str]| {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().expect("header"));
        }
        impersonate(&map, &me, &Table(allowed)).await
    };
    assert_eq!(run(&[], &[]).await.expect("nothing asked"), None);
    let user = run(&[("impersonate-user", "bob")], &["users/bob"])
        .await
        .expect("allowed")
        .expect("user");
    assert_eq!(
        (user.name.as_str(), user.groups.as_slice()),
        ("bob", ["system:authenticated".to_owned()].as_slice())
    );
    let user = run(
        &[("impersonate-user", "system:serviceaccount:a:robot")],
        &["serviceaccounts/robot"],
    )
    .await
    .expect("allowed")
    .expect("user");
    assert_eq!(
        user.groups,
        [
            "system:serviceaccounts",
            "system:serviceaccounts:a",
            "system:authenticated"
        ]
    );
    let headers = [
        ("impersonate-user", "bob"),
        ("impersonate-group", "g"),
        ("impersonate-uid", "7"),
        ("impersonate-extra-k", "v"),
    ];
    let user = run(
        &headers,
        &["users/bob", "groups/g", "uids/7", "userextras/v"],
    )
    .await
    .expect("allowed")
    .expect("user");
    assert_eq!((user.uid.as_str(), user.extra["k"][0].as_str()), ("7", "v"));
    let error = run(&headers, &["users/bob"])
        .await
        .expect_err("not the group");
    assert_eq!(
        error.message,
        "groups \"g\" is forbidden: User \"me\" cannot impersonate resource \"groups\" in API group \"\" at the cluster scope"
    );
    assert_eq!(
        run(&[("impersonate-group", "g")], &["groups/g"])
            .await
            .expect_err("no user")
            .code,
        400
    );
}

#[tokio::test]
async fn reviews_and_documents() {
    let w = world();
    let token = w.token(json!({"audiences": ["vault"]})).await;
    let review = token_review(
        &w.authentication,
        json!({"spec": {"token": token, "audiences": ["vault", "other"]}}),
    )
    .await
    .expect("answered");
    assert_eq!(review["status"]["authenticated"], true);
    assert_eq!(review["status"]["audiences"], json!(["vault"]));
    assert_eq!(
        review["status"]["user"]["username"],
        "system:serviceaccount:a:robot"
    );
    let review = token_review(&w.authentication, json!({"spec": {"token": token}}))
        .await
        .expect("answered");
    assert_ne!(review["status"]["authenticated"], true);
    assert_eq!(
        token_review(&w.authentication, json!({"spec": {}}))
            .await
            .expect_err("no token")
            .code,
        400
    );

    let documents = OpenIdDocuments::new(
        ISSUER,
        "https://h/openid/v1/jwks",
        w.authentication.service_account_keys(),
    )
    .expect("documents");
    let keys: Value = serde_json::from_slice(&documents.keys).expect("json");
    assert_eq!(keys["keys"][0]["kid"], w.issuer.key.public().key_id());
    assert!(
        OpenIdDocuments::new(
            "http://x",
            "https://h",
            w.authentication.service_account_keys()
        )
        .is_err()
    );
}

#[tokio::test]
async fn a_token_to_join() {
    let w = world();
    let (token, secret) =
        crate::bootstrap::join::token(&w.clock.clock(), Some(std::time::Duration::from_secs(60)));
    w.memory.put("", "secrets", secret);
    let user = w.bearer(&token).await.expect("good").expect("known");
    assert!(
        user.groups
            .contains(&crate::bootstrap::join::JOINERS.to_owned()),
        "{user:?}"
    );
    w.clock.advance(61);
    assert_eq!(refused(w.bearer(&token).await), "invalid bearer token");
}
