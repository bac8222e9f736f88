//! The server as its clients see it: a server on an embedded store, requests through the in-process service, cases
//! as data in `cases/*.txt`.
//!
//! A case is a block of lines:
//! ```text
//! [?]METHOD path [as USER]   the request, with ? repeated until it is as expected, for ten seconds at most; USER is in no group but system:authenticated, the default is an administrator
//! | Header: value            a request header
//! > body                     a line of the body
//! < CODE [REASON]            the status code, and the reason of a Status
//! < = message                the whole message of a Status
//! < ~ text                   a part of the body's text
//! = path json                what stands at a path of the JSON answer (`a.b[0].c`)
//! ! path                     nothing stands there
//! W text                     a warning header
//! H Header: value            a header
//! @ name path                remembers what stands there as ${name} for later cases of the file
//! ```

mod gnostic;
mod policy;
mod webhook;

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use keelson_apiserver::config::PemPair;
use keelson_apiserver::request::UserInfo;
use keelson_apiserver::{ApiServer, Config};
use keelson_machinery::clock::Clock;
use keelson_store::embedded::{Embedded, Options};
use serde_json::Value;
use tower::ServiceExt;

struct Harness {
    api: ApiServer,
    _dir: tempfile::TempDir,
}

impl Harness {
    async fn start() -> Harness {
        let dir = tempfile::tempdir().expect("a directory");
        let clock = Clock::system();
        // No socket is opened, so no certificate is needed.
        let mut config = Config::new(
            PemPair {
                certificate: String::new(),
                key: String::new(),
            },
            clock.clone(),
        );
        config.advertise_address = Some("192.0.2.1".parse().expect("an address"));
        let store = Embedded::open(dir.path().join("store"), Options::new(clock)).expect("a store");
        let api = ApiServer::start(config, store).await.expect("a server");
        Harness { api, _dir: dir }
    }

    async fn send(&self, user: Option<&str>, request: http::Request<Full<Bytes>>) -> Answer {
        let user = match user {
            Some(name) => UserInfo {
                name: name.to_string(),
                ..UserInfo::default()
            },
            None => UserInfo {
                name: "admin".to_string(),
                groups: vec!["system:masters".to_string()],
                ..UserInfo::default()
            },
        };
        let service = self.api.in_process_service(user);
        let response = match service.oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.expect("a body").to_bytes();
        Answer {
            code: parts.status.as_u16(),
            headers: parts.headers,
            json: serde_json::from_slice(&bytes).unwrap_or(Value::Null),
            bytes,
        }
    }
}

struct Answer {
    code: u16,
    headers: http::HeaderMap,
    json: Value,
    bytes: Bytes,
}

/// What stands at `a.b[0].c`; a name with dots is quoted: `metadata.labels."a.b/c"`.
fn at<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    let mut value = value;
    let mut rest = path;
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('.') {
            rest = after;
        } else if let Some(after) = rest.strip_prefix('[') {
            let (index, after) = after.split_once(']')?;
            value = value.get(index.parse::<usize>().ok()?)?;
            rest = after;
        } else if let Some(after) = rest.strip_prefix('"') {
            let (name, after) = after.split_once('"')?;
            value = value.get(name)?;
            rest = after;
        } else {
            let end = rest.find(['.', '[']).unwrap_or(rest.len());
            value = value.get(&rest[..end])?;
            rest = &rest[end..];
        }
    }
    Some(value)
}

/// Runs the cases of a file; what is not as expected becomes a finding.
async fn run_file(harness: &Harness, name: &str, text: &str) -> Vec<String> {
    let mut findings = Vec::new();
    let mut variables: HashMap<String, String> = HashMap::new();
    let mut line_number = 1;
    for block in text.split("\n\n") {
        let here = format!("{name}:{line_number}");
        line_number += block.matches('\n').count() + 2;
        let mut block: String = block
            .lines()
            .filter(|line| !line.starts_with('#') && !line.trim().is_empty())
            .collect::<Vec<_>>()
            .join("\n");
        for (variable, value) in &variables {
            block = block.replace(&format!("${{{variable}}}"), value);
        }
        if let Some(block) = block.strip_prefix('?') {
            findings.extend(check_in_time(harness, &here, block, &mut variables).await);
        } else if !block.is_empty() {
            check(harness, &here, &block, &mut variables, &mut findings).await;
        }
    }
    findings
}

/// How long a request is repeated whose effect comes by and by.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

/// Repeats a case until it is as expected, or for ten seconds.
async fn check_in_time(
    harness: &Harness,
    here: &str,
    block: &str,
    variables: &mut HashMap<String, String>,
) -> Vec<String> {
    let limit = tokio::time::Instant::now() + PATIENCE;
    loop {
        let mut findings = Vec::new();
        check(harness, here, block, variables, &mut findings).await;
        if findings.is_empty() || tokio::time::Instant::now() > limit {
            return findings;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

async fn check(
    harness: &Harness,
    here: &str,
    block: &str,
    variables: &mut HashMap<String, String>,
    findings: &mut Vec<String>,
) {
    let mut lines = block.lines();
    let mut head = lines.next().expect("a request line").split_whitespace();
    let (method, path) = (head.next().expect("a method"), head.next().expect("a path"));
    let user = head.next().and(head.next());
    let mut request = http::Request::builder().method(method).uri(path);
    let mut body = String::new();
    let mut expected = Vec::new();
    let mut typed = false;
    for line in lines {
        let (mark, rest) = line.split_at(1);
        let rest = rest.strip_prefix(' ').unwrap_or(rest);
        match mark {
            "|" => {
                let (name, value) = rest.split_once(": ").expect("a header");
                typed |= name.eq_ignore_ascii_case("content-type");
                request = request.header(name, value);
            }
            ">" => {
                // `{N bytes}` stands for a body of that size.
                match rest
                    .strip_prefix("{")
                    .and_then(|r| r.strip_suffix(" bytes}"))
                {
                    Some(size) => body = "x".repeat(size.parse().expect("a size")),
                    None => {
                        body.push_str(rest);
                        body.push('\n');
                    }
                }
            }
            _ => expected.push((mark, rest)),
        }
    }
    if !typed && !body.is_empty() {
        request = request.header("content-type", "application/json");
    }
    let request = request.body(Full::from(body)).expect("a request");
    let answer = harness.send(user, request).await;
    findings.extend(compare(&answer, here, &expected, variables));
}

/// What of an answer is not as expected.
fn compare(
    answer: &Answer,
    here: &str,
    expected: &[(&str, &str)],
    variables: &mut HashMap<String, String>,
) -> Vec<String> {
    let mut findings = Vec::new();
    let shown = String::from_utf8_lossy(&answer.bytes).into_owned();
    for (mark, rest) in expected.iter().copied() {
        let finding = match mark {
            "<" => check_status(answer, &shown, rest),
            "=" => {
                let (path, wanted) = rest.split_once(' ').expect("a path and JSON");
                let wanted: Value = serde_json::from_str(wanted).expect("JSON");
                (at(&answer.json, path) != Some(&wanted)).then(|| format!("{path} is not {wanted}"))
            }
            "!" => at(&answer.json, rest).map(|found| format!("{rest} is {found}")),
            "W" => {
                let wanted = format!("299 - \"{}\"", rest.replace('"', "\\\""));
                let found = answer.headers.get_all("warning");
                let found: Vec<_> = found
                    .iter()
                    .map(|v| String::from_utf8_lossy(v.as_bytes()))
                    .collect();
                (!found.contains(&wanted.as_str().into()))
                    .then(|| format!("no {wanted} among {found:?}"))
            }
            "H" => {
                let (name, wanted) = rest.split_once(": ").expect("a header");
                let found = answer.headers.get(name).and_then(|v| v.to_str().ok());
                (found != Some(wanted)).then(|| format!("{name} is {found:?}, not {wanted}"))
            }
            "@" => {
                let (variable, path) = rest.split_once(' ').expect("a name and a path");
                match at(&answer.json, path) {
                    Some(Value::String(text)) => {
                        drop(variables.insert(variable.into(), text.clone()))
                    }
                    Some(other) => drop(variables.insert(variable.into(), other.to_string())),
                    None => findings.push(format!("{here}: nothing at {path}: {shown}")),
                }
                None
            }
            other => panic!("{here}: what does {other:?} mean?"),
        };
        findings.extend(finding.map(|finding| format!("{here}: {finding}: {shown}")));
    }
    findings
}

fn check_status(answer: &Answer, shown: &str, wanted: &str) -> Option<String> {
    if let Some(message) = wanted.strip_prefix("= ") {
        let found = at(&answer.json, "message").and_then(Value::as_str);
        return (found != Some(message)).then(|| format!("the message is not {message:?}"));
    }
    if let Some(part) = wanted.strip_prefix("~ ") {
        return (!shown.contains(part)).then(|| format!("no {part:?}"));
    }
    let (code, reason) = wanted.split_once(' ').unwrap_or((wanted, ""));
    let found = at(&answer.json, "reason").and_then(Value::as_str);
    (answer.code.to_string() != code || (!reason.is_empty() && found != Some(reason)))
        .then(|| format!("{} is not {wanted}", answer.code))
}

#[tokio::test(flavor = "multi_thread")]
async fn cases() {
    let harness = Harness::start().await;
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .expect("the cases")
        .map(|entry| entry.expect("a file").path())
        .collect();
    files.sort();
    assert!(!files.is_empty());
    let mut findings = Vec::new();
    for file in files {
        let name = file
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        let text = std::fs::read_to_string(&file).expect("readable cases");
        findings.extend(run_file(&harness, &name, &text).await);
    }
    assert!(findings.is_empty(), "{}", findings.join("\n"));
}

/// Reads frames of a watch until `count` events have come.
async fn events(harness: &Harness, path: &str, count: usize) -> Vec<Value> {
    let request = http::Request::get(path)
        .body(Full::<Bytes>::default())
        .expect("a request");
    let user = UserInfo {
        name: "admin".to_string(),
        groups: vec!["system:masters".to_string()],
        ..UserInfo::default()
    };
    let response = match harness.api.in_process_service(user).oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    assert_eq!(response.status(), 200);
    let mut body = response.into_body();
    let mut text = String::new();
    loop {
        let events: Vec<Value> = text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        if events.len() >= count {
            return events;
        }
        let next = tokio::time::timeout(std::time::Duration::from_secs(10), body.frame());
        match next.await.expect("an event in time") {
            Some(frame) => {
                let data = frame.expect("a frame").into_data().unwrap_or_default();
                text.push_str(&String::from_utf8_lossy(&data));
            }
            None => return events,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_tell_every_change_once() {
    let harness = Harness::start().await;
    let maps = "/api/v1/namespaces/default/configmaps";
    let script = format!(
        "POST {maps}\n> {{\"metadata\":{{\"name\":\"a\",\"labels\":{{\"l\":\"1\"}}}}}}\n< 201\n@ rv metadata.resourceVersion\n\n\
         PATCH {maps}/a\n| Content-Type: application/merge-patch+json\n> {{\"data\":{{\"k\":\"v\"}}}}\n< 200\n\n\
         PATCH {maps}/a\n| Content-Type: application/merge-patch+json\n> {{\"metadata\":{{\"labels\":{{\"l\":\"2\"}}}}}}\n< 200\n\n\
         DELETE {maps}/a\n< 200\n= status \"Success\"\n"
    );
    let list = harness
        .send(
            None,
            http::Request::get(maps)
                .body(Full::default())
                .expect("a request"),
        )
        .await;
    let start = at(&list.json, "metadata.resourceVersion")
        .and_then(Value::as_str)
        .expect("a revision")
        .to_string();
    let findings = run_file(&harness, "watch", &script).await;
    assert!(findings.is_empty(), "{}", findings.join("\n"));
    let kinds = |events: &[Value]| -> Vec<String> {
        events
            .iter()
            .map(|e| e["type"].as_str().unwrap_or_default().to_string())
            .collect()
    };
    let all = events(
        &harness,
        &format!("{maps}?watch=1&resourceVersion={start}"),
        4,
    )
    .await;
    assert_eq!(kinds(&all), ["ADDED", "MODIFIED", "MODIFIED", "DELETED"]);
    assert_eq!(all[0]["object"]["kind"], "ConfigMap");
    assert_eq!(all[1]["object"]["data"]["k"], "v");
    // An object that leaves the selection is gone for the watcher.
    let some = events(
        &harness,
        &format!("{maps}?watch=1&resourceVersion={start}&labelSelector=l%3D1"),
        3,
    )
    .await;
    assert_eq!(kinds(&some), ["ADDED", "MODIFIED", "DELETED"]);
    let initial = events(
        &harness,
        "/api/v1/namespaces?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true",
        5,
    )
    .await;
    assert_eq!(
        kinds(&initial),
        ["ADDED", "ADDED", "ADDED", "ADDED", "BOOKMARK"]
    );
    assert_eq!(
        initial[4]["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
    let future = format!("{maps}?watch=1&resourceVersion=1&timeoutSeconds=1");
    let past = events(&harness, &future, 1).await;
    assert!(!past.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_of_one_object_lose_nothing() {
    let harness = Arc::new(Harness::start().await);
    let path = "/api/v1/namespaces/default/configmaps";
    let create = http::Request::post(path)
        .header("content-type", "application/json")
        .body(Full::from("{\"metadata\":{\"name\":\"c\"}}"))
        .expect("a request");
    assert_eq!(harness.send(None, create).await.code, 201);
    let mut tasks = Vec::new();
    for writer in 0..32 {
        let harness = harness.clone();
        tasks.push(tokio::spawn(async move {
            let patch = http::Request::patch(format!("{path}/c"))
                .header("content-type", "application/merge-patch+json")
                .body(Full::from(format!("{{\"data\":{{\"w{writer}\":\"x\"}}}}")))
                .expect("a request");
            harness.send(None, patch).await.code
        }));
    }
    for task in tasks {
        assert_eq!(task.await.expect("no panic"), 200);
    }
    let read = http::Request::get(format!("{path}/c"))
        .body(Full::default())
        .expect("a request");
    let answer = harness.send(None, read).await;
    assert_eq!(answer.json["data"].as_object().map(|d| d.len()), Some(32));
}

/// However many create at once, no more come to be than the quota allows, and it tells how many.
#[tokio::test(flavor = "multi_thread")]
async fn quotas_hold_under_contention() {
    let harness = Arc::new(Harness::start().await);
    let path = "/api/v1/namespaces/default";
    let status = "{\"status\":{\"hard\":{\"count/configmaps\":\"7\"},\"used\":{\"count/configmaps\":\"0\"}}}";
    let script = format!(
        "POST {path}/resourcequotas\n> {{\"metadata\":{{\"name\":\"q\"}},\"spec\":{{\"hard\":{{\"count/configmaps\":\"7\"}}}}}}\n< 201\n\n\
         PATCH {path}/resourcequotas/q/status\n| Content-Type: application/merge-patch+json\n> {status}\n< 200\n"
    );
    let findings = run_file(&harness, "quota", &script).await;
    assert!(findings.is_empty(), "{}", findings.join("\n"));
    let mut tasks = Vec::new();
    for number in 0..40 {
        let harness = harness.clone();
        tasks.push(tokio::spawn(async move {
            // Somebody else writes the status now and then: the charge must be made on what it says by then.
            let (method, target, kind, body) = if number % 5 == 4 {
                let label = format!("{{\"metadata\":{{\"labels\":{{\"l\":\"{number}\"}}}}}}");
                (
                    "PATCH",
                    "resourcequotas/q",
                    "application/merge-patch+json",
                    label,
                )
            } else {
                let map = format!("{{\"metadata\":{{\"name\":\"m{number}\"}}}}");
                ("POST", "configmaps", "application/json", map)
            };
            let request = http::Request::builder()
                .method(method)
                .uri(format!("{path}/{target}"))
                .header("content-type", kind)
                .body(Full::from(body))
                .expect("a request");
            harness.send(None, request).await.code
        }));
    }
    let mut codes = HashMap::new();
    for task in tasks {
        *codes.entry(task.await.expect("no panic")).or_insert(0) += 1;
    }
    assert_eq!(codes, HashMap::from([(200, 8), (201, 7), (403, 25)]));
    let script = format!(
        "GET {path}/resourcequotas/q\n< 200\n= status.used {{\"count/configmaps\":\"7\"}}\n"
    );
    let findings = run_file(&harness, "quota", &script).await;
    assert!(findings.is_empty(), "{}", findings.join("\n"));
}

/// Whatever is taken can be read, changed and deleted again, however deeply it nests.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_stays_within_reach() {
    let harness = Harness::start().await;
    let path = "/apis/apps/v1/namespaces/default/controllerrevisions";
    let ask = async |method: &str, path: &str, kind: &str, accept: &str, body: String| {
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", kind)
            .header("accept", accept)
            .body(Full::from(body))
            .expect("a request");
        harness.send(None, request).await.code
    };
    let json = "application/json";
    let mut taken = Vec::new();
    for depth in [
        10, 60, 100, 110, 118, 119, 120, 121, 122, 123, 124, 125, 126, 127,
    ] {
        let (open, close) = ("{\"a\":".repeat(depth), "}".repeat(depth));
        let body = format!(
            "{{\"metadata\":{{\"name\":\"r{depth}\"}},\"revision\":1,\"data\":{open}1{close}}}"
        );
        let code = ask("POST", path, json, json, body).await;
        assert!(matches!(code, 201 | 400), "{depth}: {code}");
        taken.extend((code == 201).then_some(depth));
    }
    assert!(taken.contains(&110), "{taken:?}");
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
    assert_eq!(ask("GET", path, json, table, String::new()).await, 200);
    for depth in taken {
        let one = format!("{path}/r{depth}");
        let patch = "{\"metadata\":{\"labels\":{\"a\":\"b\"}}}".to_owned();
        let merge = "application/merge-patch+json";
        assert_eq!(
            ask("GET", &one, json, "application/yaml", String::new()).await,
            200
        );
        let code = ask("PATCH", &one, merge, json, patch).await;
        assert!(matches!(code, 200 | 400), "{depth}: {code}");
        assert_eq!(
            ask("DELETE", &one, json, json, String::new()).await,
            200,
            "{depth}"
        );
    }
}

/// What somebody without rights asks for leaves no trace among the metrics.
#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_labelled_by_what_is_served() {
    let harness = Harness::start().await;
    for (user, path) in [
        (Some("nobody"), "/apis/made.up/v1/things"),
        (Some("nobody"), "/api/v1/namespaces/default/pods/p/madeup"),
        (Some("nobody"), "/api/v1/namespaces/default/configmaps"),
        (None, "/metrics"),
    ] {
        let request = http::Request::get(path)
            .body(Full::default())
            .expect("a request");
        let answer = harness.send(user, request).await;
        assert_eq!(
            answer.code,
            if user.is_some() { 403 } else { 200 },
            "{path}"
        );
        if path == "/metrics" {
            let text = String::from_utf8_lossy(&answer.bytes);
            assert!(text.contains("resource=\"configmaps\""), "{text}");
            assert!(!text.contains("made"), "{text}");
        }
    }
}

/// Clients made with Go speak protobuf for built-in kinds: bodies, answers, lists and watches.
#[tokio::test(flavor = "multi_thread")]
async fn protobuf_both_ways() {
    use keelson_machinery::codec::protobuf;
    use keelson_machinery::schema::Schema;
    const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
    let harness = Harness::start().await;
    let type_of = |kind: &str| {
        Schema::builtin()
            .lookup_kind("", "v1", kind)
            .expect("a type")
    };
    let path = "/api/v1/namespaces/default/configmaps";
    let object = serde_json::json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "p"}, "data": {"k": "v"}});
    let body = protobuf::encode_object(&object, type_of("ConfigMap")).expect("bytes");
    let create = http::Request::post(path)
        .header("content-type", PROTOBUF)
        .header("accept", PROTOBUF)
        .body(Full::from(body))
        .expect("a request");
    let answer = harness.send(None, create).await;
    assert_eq!(answer.code, 201);
    assert_eq!(answer.headers["content-type"], PROTOBUF);
    let created = protobuf::decode_object(&answer.bytes, type_of("ConfigMap")).expect("an object");
    assert_eq!(at(&created, "data.k"), Some(&"v".into()));
    assert!(at(&created, "metadata.resourceVersion").is_some());

    let list = http::Request::get(path)
        .header("accept", PROTOBUF)
        .body(Full::default())
        .expect("a request");
    let answer = harness.send(None, list).await;
    let list = protobuf::decode_object(&answer.bytes, type_of("ConfigMapList")).expect("a list");
    assert_eq!(at(&list, "items[0].metadata.name"), Some(&"p".into()));
    assert_eq!(at(&list, "kind"), Some(&"ConfigMapList".into()));

    let watch = http::Request::get(format!("{path}?watch=1&timeoutSeconds=1"))
        .header("accept", format!("{PROTOBUF};stream=watch"))
        .body(Full::default())
        .expect("a request");
    let answer = harness.send(None, watch).await;
    assert_eq!(
        answer.headers["content-type"],
        "application/vnd.kubernetes.protobuf;stream=watch"
    );
    let object = protobuf::encode_object(&created, type_of("ConfigMap")).expect("bytes");
    assert_eq!(answer.bytes, protobuf::encode_watch_frame("ADDED", &object));

    let missing = http::Request::get(format!("{path}/none"))
        .header("accept", PROTOBUF)
        .body(Full::default())
        .expect("a request");
    let answer = harness.send(None, missing).await;
    assert_eq!(answer.code, 404);
    let status = Schema::builtin()
        .lookup("io.k8s.apimachinery.pkg.apis.meta.v1.Status")
        .expect("a type");
    let status = protobuf::decode_object(&answer.bytes, status).expect("a Status");
    assert_eq!(at(&status, "reason"), Some(&"NotFound".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn openapi_v2_in_protobuf_says_what_it_says_in_json() {
    use prost::Message;

    let harness = Harness::start().await;
    let get = |accept: &'static str| {
        http::Request::get("/openapi/v2")
            .header("accept", accept)
            .body(Full::<Bytes>::default())
            .expect("a request")
    };
    let json = harness.send(None, get("application/json")).await;
    // What kubectl sends.
    let binary = harness
        .send(
            None,
            get("application/com.github.proto-openapi.spec.v2@v1.0+protobuf"),
        )
        .await;
    assert_eq!((json.code, binary.code), (200, 200));
    assert_eq!(json.headers["etag"], binary.headers["etag"]);
    assert_eq!(
        binary.headers["content-type"],
        "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
    );
    let document = gnostic::Document::decode(binary.bytes).expect("a document");
    assert_eq!(document.swagger, "2.0");
    assert_eq!(
        json.json["info"]["title"],
        document.info.expect("info").title
    );

    let definitions = document.definitions.expect("definitions").entries;
    let theirs = json.json["definitions"].as_object().expect("definitions");
    assert_eq!(definitions.len(), theirs.len());
    for entry in definitions {
        let schema = gnostic::json::schema(entry.value.as_ref().expect("a schema"));
        assert_eq!(schema, theirs[&entry.name], "{}", entry.name);
    }

    let paths = document.paths.expect("paths").path;
    let theirs = json.json["paths"].as_object().expect("paths");
    assert_eq!(paths.len(), theirs.len());
    for entry in paths {
        let item = entry.value.expect("a path item");
        let theirs = theirs[&entry.name].as_object().expect("an item");
        let operations = [
            ("get", &item.get),
            ("put", &item.put),
            ("post", &item.post),
            ("delete", &item.delete),
            ("options", &item.options),
            ("head", &item.head),
            ("patch", &item.patch),
        ];
        for (method, operation) in operations {
            let ours = operation.as_ref().map(gnostic::json::operation);
            let wanted = theirs.get(method).cloned();
            assert_eq!(ours, wanted, "{method} {}", entry.name);
        }
        let parameters: Vec<Value> = item
            .parameters
            .iter()
            .map(gnostic::json::parameter)
            .collect();
        let wanted = theirs
            .get("parameters")
            .cloned()
            .unwrap_or(Value::Array(Vec::new()));
        assert_eq!(Value::Array(parameters), wanted, "{}", entry.name);
    }

    let neither = harness.send(None, get("application/cbor")).await;
    assert_eq!(neither.code, 406);
}
