//! Discovery: what the server serves, in the old form (one document for each group and version) and the aggregated
//! one, both made from the catalog.

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use keelson_machinery::catalog::{Catalog, Group, Resource, api_version};
use keelson_machinery::status::ApiError;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::aggregation::Remotes;
use crate::body::{Response, full};
use crate::codec::Output;
use crate::codec::negotiate::header_text;
use crate::filters::Authorized;
use crate::openapi::serve;
use crate::routes::{page_not_found, text};
use crate::server::Server;
use crate::verbs::respond;

/// The version that `/version` and the OpenAPI documents tell.
pub const GIT_VERSION: &str = "v1.36.2+keelson";

/// Answers a path of discovery; `None` when it is none.
pub fn answer(request: &Authorized) -> Option<Result<Response, ApiError>> {
    let table = request.server.registry.table();
    let catalog = table.catalog();
    let path = request.info.path.trim_matches('/');
    let segments: Vec<&str> = path.split('/').collect();
    match segments.as_slice() {
        ["api"] => Some(root(request, catalog, true)),
        ["apis"] => Some(root(request, catalog, false)),
        ["api", version] => Some(group_version(request, catalog, "", version)),
        ["apis", group] => Some(one_group(request, catalog, group)),
        ["apis", group, version] => Some(group_version(request, catalog, group, version)),
        _ => None,
    }
}

fn root(request: &Authorized, catalog: &Catalog, core: bool) -> Result<Response, ApiError> {
    let groups: Vec<Group> = request
        .server
        .aggregation
        .groups(catalog.groups())
        .into_iter()
        .filter(|group| group.name.is_empty() == core)
        .collect();
    if let Some(version) = aggregated_version(request) {
        return Ok(aggregated(request, catalog, &groups, version));
    }
    if core {
        let versions: Vec<&String> = groups.iter().flat_map(|g| &g.versions).collect();
        return document(
            request,
            json!({
                "kind": "APIVersions",
                "versions": versions,
                "serverAddressByClientCIDRs": [{
                    "clientCIDR": "0.0.0.0/0",
                    "serverAddress": request.server.external_address(),
                }],
            }),
        );
    }
    let groups: Vec<Value> = groups.iter().map(group_value).collect();
    document(
        request,
        json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}),
    )
}

fn group_value(group: &Group) -> Value {
    let version = |version: &String| json!({"groupVersion": api_version(&group.name, version), "version": version});
    let versions: Vec<Value> = group.versions.iter().map(version).collect();
    json!({
        "name": group.name,
        "preferredVersion": versions.first(),
        "versions": versions,
    })
}

fn one_group(request: &Authorized, catalog: &Catalog, name: &str) -> Result<Response, ApiError> {
    let groups = request.server.aggregation.groups(catalog.groups());
    let Some(group) = groups
        .into_iter()
        .find(|g| g.name == name && !name.is_empty())
    else {
        return Ok(page_not_found());
    };
    let mut value = group_value(&group);
    value["kind"] = "APIGroup".into();
    value["apiVersion"] = "v1".into();
    document(request, value)
}

fn group_version(
    request: &Authorized,
    catalog: &Catalog,
    group: &str,
    version: &str,
) -> Result<Response, ApiError> {
    let mut resources: Vec<Value> = Vec::new();
    for row in catalog.group_version(group, version) {
        resources.push(resource_value(row));
        for sub in &row.subresources {
            let mut value = json!({
                "name": format!("{}/{}", row.resource, sub.name),
                "singularName": "",
                "namespaced": row.namespaced,
                "kind": sub.kind,
                "verbs": sub.verbs,
            });
            if (sub.group.as_str(), sub.version.as_str()) != (group, version) {
                value["group"] = sub.group.as_str().into();
                value["version"] = sub.version.as_str().into();
            }
            resources.push(value);
        }
    }
    if resources.is_empty() {
        return Ok(page_not_found());
    }
    resources.sort_by(|a, b| a["name"].as_str().cmp(&b["name"].as_str()));
    let mut list = json!({
        "kind": "APIResourceList",
        "groupVersion": api_version(group, version),
        "resources": resources,
    });
    if !group.is_empty() {
        list["apiVersion"] = "v1".into();
    }
    document(request, list)
}

fn resource_value(row: &Resource) -> Value {
    let mut value = json!({
        "name": row.resource,
        "singularName": row.singular,
        "namespaced": row.namespaced,
        "kind": row.kind,
        "verbs": row.verbs,
    });
    if !row.short_names.is_empty() {
        value["shortNames"] = json!(row.short_names);
    }
    if !row.categories.is_empty() {
        value["categories"] = json!(row.categories);
    }
    if row.has_verb("list") && row.resource != "componentstatuses" {
        value["storageVersionHash"] = storage_version_hash(row).into();
    }
    value
}

/// Upstream `discovery.StorageVersionHash`.
fn storage_version_hash(row: &Resource) -> String {
    use base64::Engine as _;
    let storage = &row.storage;
    let text = format!("{}/{}/{}", storage.group, storage.version, storage.kind);
    let digest = Sha256::digest(text.as_bytes());
    base64::engine::general_purpose::STANDARD.encode(&digest[..8])
}

/// The version of `apidiscovery.k8s.io` that the client takes before anything else that is served here.
fn aggregated_version(request: &Authorized) -> Option<&'static str> {
    let accept = header_text(&request.parts.headers, http::header::ACCEPT);
    for clause in accept.split(',') {
        let mut pieces = clause.split(';').map(str::trim);
        let media_type = pieces.next().unwrap_or_default();
        let parameters: Vec<&str> = pieces.collect();
        let has = |text: &str| parameters.contains(&text);
        let asks = has("as=APIGroupDiscoveryList") && has("g=apidiscovery.k8s.io");
        match media_type {
            "application/json" if asks && has("v=v2") => return Some("v2"),
            "application/json" if asks && has("v=v2beta1") => return Some("v2beta1"),
            "application/json" if !asks && parameters.iter().all(|p| p.starts_with("q=")) => {
                return None;
            }
            _ => {}
        }
    }
    None
}

/// What another server said of a group version.
fn remote_version(remotes: &Remotes, group: &str, version: &str) -> Value {
    let said = remotes.get(&(group.to_owned(), version.to_owned()));
    let current = said.is_some_and(|said| said.current);
    let freshness = if current { "Current" } else { "Stale" };
    let mut value = json!({"version": version, "freshness": freshness});
    if let Some(said) = said.filter(|said| !said.resources.is_empty()) {
        value["resources"] = Value::Array(said.resources.clone());
    }
    value
}

fn aggregated(
    request: &Authorized,
    catalog: &Catalog,
    groups: &[Group],
    version: &'static str,
) -> Response {
    let server = &request.server;
    let remotes = server.aggregation.remotes();
    let items: Vec<Value> = groups
        .iter()
        .map(|group| {
            let versions: Vec<Value> = group
                .versions
                .iter()
                .map(|version| {
                    if server.aggregation.route(&group.name, version).is_some() {
                        return remote_version(&remotes, &group.name, version);
                    }
                    let mut rows: Vec<&Resource> = catalog
                        .group_version(&group.name, version)
                        .map(|row| &**row)
                        .collect();
                    rows.sort_by(|a, b| a.resource.cmp(&b.resource));
                    let resources: Vec<Value> =
                        rows.iter().map(|row| aggregated_resource(row)).collect();
                    json!({"version": version, "resources": resources, "freshness": "Current"})
                })
                .collect();
            let metadata = if group.name.is_empty() {
                json!({})
            } else {
                json!({"name": group.name})
            };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    let list = json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {},
        "items": items,
    });
    let bytes = Bytes::from(list.to_string());
    let digest: String = Sha256::digest(&bytes)
        .iter()
        .map(|byte| format!("{byte:02X}"))
        .collect();
    let tag = format!("\"{digest}\"");
    let matches = header_text(&request.parts.headers, http::header::IF_NONE_MATCH)
        .split(',')
        .any(|known| known.trim() == tag);
    let mut response = if matches {
        let mut response = http::Response::new(full(Bytes::new()));
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        http::Response::new(full(bytes))
    };
    let headers = response.headers_mut();
    if !matches {
        headers.insert(
            http::header::CONTENT_TYPE,
            HeaderValue::from_static(match version {
                "v2" => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
                _ => "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
            }),
        );
    }
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        headers.insert(http::header::ETAG, tag);
    }
    headers.insert(http::header::VARY, HeaderValue::from_static("Accept"));
    headers.insert(
        http::header::CACHE_CONTROL,
        HeaderValue::from_static("public"),
    );
    response
}

fn aggregated_resource(row: &Resource) -> Value {
    let kind = |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let mut value = json!({
        "resource": row.resource,
        "responseKind": kind(&row.group, &row.version, &row.kind),
        "scope": if row.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": row.singular,
        "verbs": row.verbs,
    });
    if !row.short_names.is_empty() {
        value["shortNames"] = json!(row.short_names);
    }
    if !row.categories.is_empty() {
        value["categories"] = json!(row.categories);
    }
    if !row.subresources.is_empty() {
        let subresources: Vec<Value> = row
            .subresources
            .iter()
            .map(|sub| {
                json!({
                    "subresource": sub.name,
                    "responseKind": kind(&sub.group, &sub.version, &sub.kind),
                    "verbs": sub.verbs,
                })
            })
            .collect();
        value["subresources"] = subresources.into();
    }
    value
}

fn document(request: &Authorized, value: Value) -> Result<Response, ApiError> {
    let output = Output::negotiate(&request.parts.headers, &request.query)?;
    let output = Output {
        convert: None,
        ..output
    };
    Ok(respond::status(&output, 200, &value, 0))
}

/// `/version`.
pub fn version() -> Value {
    json!({
        "major": "1",
        "minor": "36",
        "emulationMajor": "1",
        "emulationMinor": "36",
        "minCompatibilityMajor": "1",
        "minCompatibilityMinor": "35",
        "gitVersion": GIT_VERSION,
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, go_architecture()),
    })
}

fn go_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// `/`: the paths that are served.
pub fn paths(server: &Server) -> Response {
    let table = server.registry.table();
    let mut paths: Vec<String> = vec![
        "/.well-known/openid-configuration".into(),
        "/api".into(),
        "/apis".into(),
        "/healthz".into(),
        "/healthz/ping".into(),
        "/livez".into(),
        "/livez/ping".into(),
        "/metrics".into(),
        "/openapi/v2".into(),
        "/openapi/v3".into(),
        "/openid/v1/jwks".into(),
        "/readyz".into(),
        "/readyz/ping".into(),
        "/version".into(),
    ];
    for group in server.aggregation.groups(table.catalog().groups()) {
        for version in &group.versions {
            paths.push(if group.name.is_empty() {
                format!("/api/{version}")
            } else {
                format!("/apis/{}/{version}", group.name)
            });
        }
        if !group.name.is_empty() {
            paths.push(format!("/apis/{}", group.name));
        }
    }
    paths.sort();
    crate::routes::json(json!({ "paths": paths }))
}

/// The documents by which others check service-account tokens; `None` when the issuer cannot be discovered.
pub fn openid(server: &Server, path: &str) -> Option<Response> {
    let documents = server.openid()?;
    let mut response = if path == "/openid/v1/jwks" {
        text("application/jwk-set+json", documents.keys.clone())
    } else {
        text("application/json", documents.configuration.clone())
    };
    let age = crate::authn::review::OpenIdDocuments::MAX_AGE_SECONDS;
    if let Ok(value) = HeaderValue::from_str(&format!("public, max-age={age}")) {
        response
            .headers_mut()
            .insert(http::header::CACHE_CONTROL, value);
    }
    Some(response)
}

/// `/openapi/...`; `None` when the document does not exist. The answer does not borrow the request, whose body
/// keeps it on one thread.
pub fn openapi(
    request: &Authorized,
) -> impl Future<Output = Option<Result<Response, ApiError>>> + use<> {
    let server = &request.server;
    let wanted = serve::Wanted {
        path: request.info.path.clone(),
        hash: request.query.get("hash").map(str::to_owned),
    };
    let now = server.storage.clock.now();
    let (openapi, table) = (server.openapi.clone(), server.registry.table());
    let remotes = server.aggregation.remotes();
    let headers = request.parts.headers.clone();
    async move { serve::answer(openapi, table, remotes, wanted, &headers, now).await }
}
