//! Objects of every built-in kind with anything in their fields that fits the types: whatever is answered, no handler
//! panics, what was taken can be read in every form, and it can be deleted again.
//!
//! The objects come from a seed, so that a failure can be repeated; `KEELSON_ANYTHING_ROUNDS` makes more of them.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use keelson_apiserver::config::PemPair;
use keelson_apiserver::request::UserInfo;
use keelson_apiserver::{ApiServer, Config};
use keelson_machinery::catalog::{Catalog, Resource};
use keelson_machinery::clock::Clock;
use keelson_machinery::schema::{Cardinality, Field, Kind, Type};
use keelson_store::embedded::{Embedded, Options};
use serde_json::{Map, Value, json};
use tower::ServiceExt;

/// Groups whose objects change what the server does with others.
const LEFT_OUT: [&str; 3] = [
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "apiregistration.k8s.io",
];

/// Members of `metadata` that the test needs as they are.
const OF_METADATA: [&str; 5] = [
    "labels",
    "annotations",
    "ownerReferences",
    "generateName",
    "managedFields",
];

struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % sides
    }

    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.roll(of.len())].clone()
    }

    fn text(&mut self) -> Value {
        let words = [
            "",
            "a",
            "x-1",
            "A_b",
            "ä",
            "\u{1F600}é",
            "a/b",
            "a/b/c",
            "/",
            "/etc",
            "..",
            "0",
            "-1",
            "1Gi",
            "10.0.0.1",
            "::1",
            "::ffff:1.2.3.4",
            "10.0.0.0/33",
            "fd00::/8",
            "10m",
            "*",
            "*.a.b",
            "a=b",
            "$(X)",
            "http",
            "TCP",
            "Always",
            "None",
            "ClusterIP",
            "NodePort",
            "LoadBalancer",
            "Local",
            "In",
            "Exists",
            "NoExecute",
            "Indexed",
            "RollingUpdate",
            "Block",
            "ReadWriteOnce",
            "status.phase",
            "cpu",
            "requests.cpu",
            "v1",
            "Pod",
            "%",
            "50%",
            "é:é",
            "i:t@sha256:x",
            "a,b",
            "@every 1s",
            "*/5 * * * *",
            "TZ=a * * * * *",
            "-",
            ".",
            ":",
            "\u{0}",
            "\n",
        ];
        if self.roll(30) == 0 {
            return Value::from("é".repeat(300));
        }
        Value::from(self.pick(&words))
    }

    fn scalar(&mut self, kind: Kind) -> Value {
        match kind {
            Kind::String => self.text(),
            Kind::Bool => Value::from(self.roll(2) == 0),
            Kind::Int32 => Value::from(self.pick(&[0, 1, -1, 2, 80, 65_536, i32::MAX, i32::MIN])),
            Kind::Int64 => Value::from(self.pick(&[0, 1, -1, 30, 1 << 40, i64::MAX, i64::MIN])),
            Kind::Double => Value::from(self.pick(&[0.0, -1.5, 1e300])),
            Kind::Bytes => Value::from(self.pick(&["", "YQ==", "////", "LS0tLS1CRUdJTi0tLS0t"])),
            Kind::Quantity => Value::from(self.pick(&[
                "0",
                "1",
                "-1",
                "1.5Gi",
                "1n",
                "1e1000",
                "1e-1000",
                "8Ei",
                "100m",
                "99999999999999999999999999999999999",
            ])),
            Kind::IntOrString => self.pick(&[
                json!(0),
                json!(1),
                json!(-1),
                json!(i32::MAX),
                json!("50%"),
                json!("-5%"),
                json!("%"),
                json!("99999999999999999999%"),
                json!("é"),
                json!(""),
            ]),
            Kind::Time => Value::from(self.pick(&[
                "2024-01-01T00:00:00Z",
                "9999-12-31T23:59:59Z",
                "0001-01-01T00:00:00Z",
            ])),
            Kind::MicroTime => Value::from(
                self.pick(&["2024-01-01T00:00:00.000000Z", "0001-01-01T00:00:00.000001Z"]),
            ),
            Kind::Duration => {
                Value::from(self.pick(&["0s", "1s", "-1h0m0s", "2562047h47m16.854775807s"]))
            }
            Kind::FieldsV1 => self.pick(&[
                json!({}),
                json!({"f:a": {}}),
                json!({"k:{\"a\":1}": {".": {}}}),
                json!({"x": 1}),
            ]),
            Kind::RawExtension | Kind::Json => self.pick(&[
                json!({}),
                json!({"kind": "A", "apiVersion": "b/v1", "x": [null]}),
            ]),
            Kind::SchemaOrArray(_) | Kind::SchemaOrBool(_) | Kind::SchemaOrStrings(_) => json!({}),
            Kind::Message(_) | Kind::Items(_) => Value::Null,
        }
    }

    fn value(&mut self, field: &Field, depth: usize) -> Value {
        match field.kind {
            Kind::Message(of) => self.object(of, depth + 1),
            Kind::Items(_) => json!([]),
            kind => self.scalar(kind),
        }
    }

    fn object(&mut self, of: &'static Type, depth: usize) -> Value {
        let mut members = Map::new();
        // Fewer members further down, where there are ever more.
        let (chance, sides) = match depth {
            0 | 1 => (5, 6),
            2 | 3 => (1, 2),
            4..=6 => (1, 4),
            _ => return Value::Object(members),
        };
        for field in of.fields() {
            if !(field.required && self.roll(8) > 0) && self.roll(sides) >= chance {
                continue;
            }
            let value = match field.cardinality {
                Cardinality::Optional => self.value(field, depth),
                Cardinality::Repeated => (0..self.roll(4))
                    .map(|_| self.value(field, depth))
                    .collect(),
                Cardinality::Map => {
                    let mut entries = Map::new();
                    for _ in 0..self.roll(3) {
                        let key = self.text().as_str().unwrap_or_default().to_owned();
                        entries.insert(key, self.value(field, depth));
                    }
                    Value::Object(entries)
                }
            };
            members.insert(field.json_name.to_owned(), value);
        }
        Value::Object(members)
    }

    /// An object of a resource, without what would keep it from being the one that is meant.
    fn resource(&mut self, row: &Resource, namespace: &str, name: &str) -> Value {
        let mut object = row.schema_type().map_or(json!({}), |of| self.object(of, 0));
        let mut metadata = object["metadata"].as_object().cloned().unwrap_or_default();
        // Most of what is said about the object itself would be refused before anything else is looked at.
        let whole = self.roll(6) == 0;
        metadata.retain(|member, _| whole && OF_METADATA.contains(&member.as_str()));
        metadata.insert("name".into(), name.into());
        if row.namespaced {
            metadata.insert("namespace".into(), namespace.into());
        }
        object["metadata"] = Value::Object(metadata);
        object["kind"] = row.kind.as_str().into();
        object["apiVersion"] = row.api_version().into();
        object
    }
}

struct Subject {
    api: ApiServer,
    findings: Vec<String>,
    taken: usize,
}

impl Subject {
    /// Sends a request; the answer's code. A panic behind it is a finding.
    async fn ask(
        &mut self,
        method: &str,
        path: &str,
        kind: &str,
        accept: &str,
        body: &Value,
    ) -> u16 {
        let text = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", kind)
            .header("accept", accept)
            .body(Full::<Bytes>::from(text.clone()))
            .expect("a request");
        let admin = UserInfo {
            name: "admin".to_owned(),
            groups: vec!["system:masters".to_owned()],
            ..UserInfo::default()
        };
        let response = match self.api.in_process_service(admin).oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        let code = response.status().as_u16();
        let answer = response
            .into_body()
            .collect()
            .await
            .expect("a body")
            .to_bytes();
        let answer = String::from_utf8_lossy(&answer);
        if answer.contains("the request handler failed") {
            self.findings
                .push(format!("a panic: {method} {path} ({kind}) {text}"));
        }
        code
    }

    async fn must(&mut self, wanted: &[u16], method: &str, path: &str, accept: &str, of: &Value) {
        let code = self
            .ask(method, path, "application/json", accept, &Value::Null)
            .await;
        if !wanted.contains(&code) {
            self.findings
                .push(format!("{method} {path} ({accept}) answers {code}: {of}"));
        }
    }

    async fn try_one(&mut self, dice: &mut Dice, row: &Resource, namespace: &str, name: &str) {
        const JSON: &str = "application/json";
        let base = match row.group.as_str() {
            "" => format!("/api/{}", row.version),
            group => format!("/apis/{group}/{}", row.version),
        };
        let list = match row.namespaced {
            true => format!("{base}/namespaces/{namespace}/{}", row.resource),
            false => format!("{base}/{}", row.resource),
        };
        let path = format!("{list}/{name}");
        let object = dice.resource(row, namespace, name);
        let code = self.ask("POST", &list, JSON, JSON, &object).await;
        let created = code == 201 && row.has_verb("get");
        if !created {
            // The least that the kind takes, so that there is something to change.
            let least = json!({"kind": row.kind, "apiVersion": row.api_version(), "metadata": {"name": name}});
            self.ask("POST", &list, JSON, JSON, &least).await;
        }
        self.taken += usize::from(created);
        for kind in [JSON, "merge", "strategic-merge", "apply"] {
            let next = dice.resource(row, namespace, name);
            if kind == JSON {
                self.ask("PUT", &path, JSON, JSON, &next).await;
                continue;
            }
            let (target, kind) = match kind {
                "apply" => (
                    format!("{path}?fieldManager=m&force=true"),
                    "application/apply-patch+yaml".to_owned(),
                ),
                _ => (path.clone(), format!("application/{kind}-patch+json")),
            };
            self.ask("PATCH", &target, &kind, JSON, &next).await;
            for sub in &row.subresources {
                if sub.verbs.iter().any(|verb| verb == "patch") {
                    let (path, _) = target.split_once('?').unwrap_or((&target, ""));
                    let query = target.strip_prefix(path).unwrap_or_default();
                    let target = format!("{path}/{}{query}", sub.name);
                    self.ask("PATCH", &target, &kind, JSON, &next).await;
                }
            }
        }
        if created {
            for accept in [
                JSON,
                "application/yaml",
                "application/vnd.kubernetes.protobuf",
                "application/json;as=Table;v=v1;g=meta.k8s.io",
            ] {
                self.must(&[200], "GET", &path, accept, &object).await;
                self.must(&[200], "GET", &list, accept, &object).await;
            }
            let all = format!("{path}?gracePeriodSeconds=0");
            self.must(&[200, 202], "DELETE", &all, JSON, &object).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn anything_within_the_types_is_answered() {
    let rounds = std::env::var("KEELSON_ANYTHING_ROUNDS").ok();
    let rounds: usize = rounds.and_then(|text| text.parse().ok()).unwrap_or(4);
    let dir = tempfile::tempdir().expect("a directory");
    let clock = Clock::system();
    let none = PemPair {
        certificate: String::new(),
        key: String::new(),
    };
    let config = Config::new(none, clock.clone());
    let store = Embedded::open(dir.path().join("store"), Options::new(clock)).expect("a store");
    let mut subject = Subject {
        api: ApiServer::start(config, store).await.expect("a server"),
        findings: Vec::new(),
        taken: 0,
    };
    let rows: Vec<Arc<Resource>> = Catalog::builtin().rows().to_vec();
    let mut dice = Dice(0x00c0_ffee);
    for row in rows.iter().filter(|row| row.has_verb("create")) {
        if LEFT_OUT.contains(&row.group.as_str()) {
            continue;
        }
        // Quotas and defaults of one kind stay away from the others.
        let namespace = format!("of-{}-{}", row.resource, row.version);
        for (path, object) in [
            (
                "/api/v1/namespaces".to_owned(),
                json!({"metadata": {"name": namespace}}),
            ),
            (
                format!("/api/v1/namespaces/{namespace}/serviceaccounts"),
                json!({"metadata": {"name": "default"}}),
            ),
        ] {
            subject
                .ask(
                    "POST",
                    &path,
                    "application/json",
                    "application/json",
                    &object,
                )
                .await;
        }
        for round in 0..rounds {
            let name = format!("o{round}");
            subject.try_one(&mut dice, row, &namespace, &name).await;
        }
    }
    let findings = &subject.findings;
    assert!(
        findings.is_empty(),
        "{} findings\n{}",
        findings.len(),
        findings.join("\n")
    );
    assert!(subject.taken > 0);
}
