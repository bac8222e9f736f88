//! What another API server says of itself: the resources of a group version and its OpenAPI documents, asked for as the
//! aggregator and put beside those of this server.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use keelson_machinery::value::{self, Object, Value};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::proxy::identify;
use crate::body::full;
use crate::request::UserInfo;
use crate::streaming::backend::Backend;

/// As whom other servers are asked.
const USER: &str = "system:kube-aggregator";
/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The largest answer that is read.
const MAX_ANSWER: usize = 32 * 1024 * 1024;
/// The aggregated form of discovery, newest first.
const DISCOVERY: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,\
                         application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList";

/// What a server says of one group version.
#[derive(Clone, Debug, Default)]
pub struct Remote {
    /// Its resources, in the aggregated form of discovery.
    pub resources: Vec<Value>,
    /// Whether that is how it was when last asked.
    pub current: bool,
    /// What names the content of its OpenAPI v3 document, if it has one.
    pub openapi_v3: Option<String>,
    /// The part of its OpenAPI v2 document that is about this group version, and a name for the content.
    pub openapi_v2: Option<(Arc<Value>, String)>,
}

/// An answer of another server.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    body: Bytes,
}

impl Answer {
    fn json(&self) -> Option<Value> {
        (self.status == StatusCode::OK)
            .then(|| serde_json::from_slice(&self.body).ok())
            .flatten()
    }
}

/// Sends a GET as the aggregator, who may do everything.
///
/// # Errors
/// Why there is no answer, in words for people.
pub(super) async fn ask(backend: &Backend, path: &str, accept: &str) -> Result<Answer, String> {
    let exchange = async {
        let mut sender = backend.connect().await.map_err(|error| error.message)?;
        let user = UserInfo {
            name: USER.to_owned(),
            groups: vec![crate::authz::MASTERS.to_owned()],
            ..UserInfo::default()
        };
        let mut headers = HeaderMap::new();
        identify(&mut headers, &user)?;
        let text = |text: &str| HeaderValue::from_str(text).map_err(|error| error.to_string());
        headers.insert(header::HOST, text(&backend.authority())?);
        headers.insert(header::ACCEPT, text(accept)?);
        let mut request = Request::get(path)
            .body(full(Bytes::new()))
            .map_err(|error| error.to_string())?;
        *request.headers_mut() = headers;
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| error.to_string())?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await
            .map_err(|error| error.to_string())?;
        Ok(Answer {
            status,
            body: body.to_bytes(),
        })
    };
    match tokio::time::timeout(TIMEOUT, exchange).await {
        Ok(result) => result,
        Err(_) => {
            Err("context deadline exceeded (Client.Timeout exceeded while awaiting headers)".into())
        }
    }
}

/// The URL of a path of a backend, for messages.
pub(super) fn url(backend: &Backend, path: &str) -> String {
    format!("https://{}{path}", backend.authority())
}

/// The path at which a server tells of a group version.
pub(super) fn discovery_path(group: &str, version: &str) -> String {
    if group.is_empty() {
        format!("/api/{version}")
    } else {
        format!("/apis/{group}/{version}")
    }
}

/// Asks for all that is to know of a group version.
///
/// # Errors
/// When its resources cannot be had; OpenAPI documents are optional.
pub(super) async fn fetch(backend: &Backend, group: &str, version: &str) -> Result<Remote, String> {
    let all = ask(backend, "/apis", DISCOVERY).await?;
    let aggregated = all
        .json()
        .filter(|list| value::get_str(list, &["kind"]) == Some("APIGroupDiscoveryList"));
    let path = discovery_path(group, version);
    let resources = match aggregated {
        Some(list) => of_group_version(&list, group, version),
        None => {
            let plain = ask(backend, &path, "application/json").await?;
            let list = plain.json().ok_or_else(|| {
                format!(
                    "failed to download legacy discovery for {path}: {}",
                    plain.status
                )
            })?;
            from_resource_list(&list, group, version)
        }
    };
    let key = path.trim_start_matches('/');
    let index = ask(backend, "/openapi/v3", "application/json").await;
    let openapi_v3 = index.ok().and_then(|answer| {
        let url = answer.json()?;
        let url = value::get_str(&url, &["paths", key, "serverRelativeURL"])?.to_owned();
        let (_, query) = url.split_once('?')?;
        let hash = query
            .split('&')
            .find_map(|pair| pair.strip_prefix("hash="))?;
        Some(hash.to_owned())
    });
    let document = ask(backend, "/openapi/v2", "application/json").await;
    let openapi_v2 = document.ok().and_then(|answer| {
        let part = part_of_v2(&answer.json()?, &path)?;
        let digest = Sha256::digest(part.to_string().as_bytes());
        let name: String = digest
            .iter()
            .take(16)
            .map(|byte| format!("{byte:02X}"))
            .collect();
        Some((Arc::new(part), name))
    });
    Ok(Remote {
        resources,
        current: true,
        openapi_v3,
        openapi_v2,
    })
}

/// The resources of a group version in an `APIGroupDiscoveryList`. Old clients fall over a missing `responseKind`.
fn of_group_version(list: &Value, group: &str, version: &str) -> Vec<Value> {
    let group = value::items(list, &["items"])
        .iter()
        .find(|one| value::str_or_empty(one, &["metadata", "name"]) == group);
    let version = group.and_then(|group| {
        value::items(group, &["versions"])
            .iter()
            .find(|one| value::get_str(one, &["version"]) == Some(version))
    });
    let mut resources = version
        .map(|version| value::items(version, &["resources"]).to_vec())
        .unwrap_or_default();
    let kind = |one: &mut Value| {
        if value::get(one, &["responseKind"]).is_none_or(Value::is_null) {
            one["responseKind"] = json!({"group": "", "version": "", "kind": ""});
        }
    };
    for resource in resources.iter_mut().filter(|resource| resource.is_object()) {
        kind(resource);
        let subresources = resource
            .get_mut("subresources")
            .and_then(Value::as_array_mut);
        subresources
            .into_iter()
            .flatten()
            .filter(|one| one.is_object())
            .for_each(kind);
    }
    resources
}

/// An `APIResourceList` in the aggregated form (upstream `ConvertGroupVersionIntoToDiscovery`).
fn from_resource_list(list: &Value, group: &str, version: &str) -> Vec<Value> {
    let mut resources: Vec<Value> = Vec::new();
    let own = |one: &Value, field: &str, default: &str| match value::str_or_empty(one, &[field]) {
        "" => default.to_owned(),
        given => given.to_owned(),
    };
    let kind = |one: &Value| {
        json!({
            "group": own(one, "group", group),
            "version": own(one, "version", version),
            "kind": value::str_or_empty(one, &["kind"]),
        })
    };
    let place = |one: &Value| {
        if value::get_bool(one, &["namespaced"]) == Some(true) {
            "Namespaced"
        } else {
            "Cluster"
        }
    };
    let (subresources, plain): (Vec<&Value>, Vec<&Value>) = value::items(list, &["resources"])
        .iter()
        .partition(|one| value::str_or_empty(one, &["name"]).contains('/'));
    for one in plain {
        let mut resource = json!({
            "resource": value::str_or_empty(one, &["name"]),
            "responseKind": kind(one),
            "scope": place(one),
            "singularResource": value::str_or_empty(one, &["singularName"]),
            "verbs": value::items(one, &["verbs"]),
        });
        for field in ["shortNames", "categories"] {
            let given = value::items(one, &[field]);
            if !given.is_empty() {
                resource[field] = given.into();
            }
        }
        resources.push(resource);
    }
    for one in subresources {
        let name = value::str_or_empty(one, &["name"]);
        let Some((parent, name)) = name.split_once('/') else {
            continue;
        };
        let subresource = json!({
            "subresource": name,
            "responseKind": kind(one),
            "verbs": value::items(one, &["verbs"]),
        });
        let known = resources
            .iter_mut()
            .find(|known| value::get_str(known, &["resource"]) == Some(parent));
        match known {
            Some(known) => match known.get_mut("subresources").and_then(Value::as_array_mut) {
                Some(list) => list.push(subresource),
                None => known["subresources"] = json!([subresource]),
            },
            // Upstream too makes one up for a subresource that stands alone.
            None => resources.push(json!({
                "resource": parent,
                "scope": place(one),
                "responseKind": {"group": "", "version": "", "kind": ""},
                "singularResource": "",
                "verbs": [],
                "subresources": [subresource],
            })),
        }
    }
    resources
}

/// The paths below `path` of an OpenAPI v2 document and the definitions that they lead to.
fn part_of_v2(document: &Value, path: &str) -> Option<Value> {
    let below = format!("{path}/");
    let paths: Object = value::get_object(document, &["paths"])?
        .iter()
        .filter(|(one, _)| *one == &below || one.starts_with(&below))
        .map(|(one, content)| (one.clone(), content.clone()))
        .collect();
    let all = value::get_object(document, &["definitions"]);
    let mut definitions = Object::new();
    let mut open: Vec<String> = references(&Value::Object(paths.clone()))
        .into_iter()
        .collect();
    while let Some(name) = open.pop() {
        if definitions.contains_key(&name) {
            continue;
        }
        if let Some(definition) = all.and_then(|all| all.get(&name)) {
            open.extend(references(definition));
            definitions.insert(name, definition.clone());
        }
    }
    (!paths.is_empty()).then(|| json!({"paths": paths, "definitions": definitions}))
}

const REFERENCE: &str = "#/definitions/";

fn references(value: &Value) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open = vec![value];
    while let Some(value) = open.pop() {
        match value {
            Value::Object(members) => {
                let named = members.get("$ref").and_then(Value::as_str);
                found.extend(
                    named
                        .and_then(|one| one.strip_prefix(REFERENCE))
                        .map(str::to_owned),
                );
                open.extend(members.values());
            }
            Value::Array(items) => open.extend(items),
            _ => {}
        }
    }
    found
}

fn rename(value: &mut Value, from: &str, to: &str) {
    match value {
        Value::Object(members) => {
            for (key, member) in members {
                let named = member.as_str().and_then(|one| one.strip_prefix(REFERENCE));
                if key == "$ref" && named == Some(from) {
                    *member = format!("{REFERENCE}{to}").into();
                } else {
                    rename(member, from, to);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| rename(item, from, to)),
        _ => {}
    }
}

/// Puts a part of another server's OpenAPI v2 document into this server's. What is there already stays; a definition
/// that has the name of a different one gets another name (upstream `aggregator.MergeSpecs`).
pub fn merge_v2(document: &mut Value, part: &Value) {
    let mut part = part.clone();
    let names: Vec<String> = value::get_object(&part, &["definitions"])
        .map(|all| all.keys().cloned().collect())
        .unwrap_or_default();
    for name in names {
        let theirs = value::get(&part, &["definitions", &name]).cloned();
        let is_other = |name: &str| {
            value::get(document, &["definitions", name])
                .is_some_and(|own| Some(own) != theirs.as_ref())
        };
        if !is_other(&name) {
            continue;
        }
        let free = (2..)
            .map(|number| format!("{name}_v{number}"))
            .find(|name| !is_other(name));
        if let (Some(free), Some(theirs)) = (free, theirs.clone()) {
            value::remove(&mut part, &["definitions", &name]);
            value::set(&mut part, &["definitions", &free], theirs);
            rename(&mut part, &name, &free);
        }
    }
    for field in ["definitions", "paths"] {
        let theirs = value::get_object(&part, &[field]).into_iter().flatten();
        for (name, content) in theirs {
            if value::get(document, &[field, name]).is_none() {
                value::set(document, &[field, name], content.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_discovery_becomes_new() {
        let list = json!({"kind": "APIResourceList", "groupVersion": "g/v1", "resources": [
            {"name": "flunders/status", "namespaced": true, "kind": "Flunder", "verbs": ["get"]},
            {"name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder", "verbs": ["list"],
                "shortNames": ["fl"], "group": "other", "version": "v2"}]});
        assert_eq!(
            json!(from_resource_list(&list, "g", "v1")),
            json!([{"resource": "flunders", "responseKind": {"group": "other", "version": "v2", "kind": "Flunder"},
                "scope": "Namespaced", "singularResource": "flunder", "verbs": ["list"], "shortNames": ["fl"],
                "subresources": [{"subresource": "status", "verbs": ["get"],
                    "responseKind": {"group": "g", "version": "v1", "kind": "Flunder"}}]}])
        );
        let list = json!({"items": [{"metadata": {"name": "g"}, "versions": [{"version": "v1", "resources": [
            {"resource": "a", "subresources": [{"subresource": "s"}]}]}]}]});
        let none = json!({"group": "", "version": "", "kind": ""});
        assert_eq!(
            json!(of_group_version(&list, "g", "v1")),
            json!([{"resource": "a", "responseKind": none, "subresources": [{"subresource": "s", "responseKind": none}]}])
        );
        assert!(of_group_version(&list, "g", "v2").is_empty());
    }

    #[test]
    fn documents_are_merged_without_loss() {
        let theirs = json!({
            "paths": {"/apis/g/v1/": {"$ref": "#/definitions/List"}, "/apis/g/v1/x": {"$ref": "#/definitions/Meta"},
                "/apis/other/v1/": {}, "/version/": {}},
            "definitions": {"List": {"items": {"$ref": "#/definitions/Meta"}}, "Meta": {"theirs": true}, "Unused": {}},
        });
        let part = part_of_v2(&theirs, "/apis/g/v1").expect("a part");
        assert_eq!(
            part["definitions"],
            json!({"List": {"items": {"$ref": "#/definitions/Meta"}}, "Meta": {"theirs": true}})
        );
        let mut document = json!({"paths": {"/apis/g/v1/x": {"own": true}}, "definitions": {"Meta": {"own": true}}});
        merge_v2(&mut document, &part);
        assert_eq!(
            document,
            json!({
                "paths": {"/apis/g/v1/x": {"own": true}, "/apis/g/v1/": {"$ref": "#/definitions/List"}},
                "definitions": {"Meta": {"own": true}, "Meta_v2": {"theirs": true},
                    "List": {"items": {"$ref": "#/definitions/Meta_v2"}}},
            })
        );
        assert!(part_of_v2(&theirs, "/apis/none/v1").is_none());
    }
}
