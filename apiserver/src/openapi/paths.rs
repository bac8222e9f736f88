//! Paths and operations of a group version, as upstream's `APIInstaller` registers them.

use std::collections::BTreeMap;
use std::sync::Arc;

use keelson_machinery::catalog::{Resource, Subresource};
use keelson_machinery::schema::{Cardinality, Kind, Schema, Type};
use keelson_machinery::value::{Object, Value};
use serde_json::json;

use super::schemas::{list_name_of, name_of, reference};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";

const JSON: &str = "application/json";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const YAML: &str = "application/yaml";
const OBJECT_TYPES: &[&str] = &[JSON, PROTOBUF, YAML];
const LIST_TYPES: &[&str] = &[
    JSON,
    "application/json;stream=watch",
    PROTOBUF,
    "application/vnd.kubernetes.protobuf;stream=watch",
    YAML,
];
const LOG_TYPES: &[&str] = &[JSON, PROTOBUF, YAML, "text/plain"];
const PATCH_TYPES: &[&str] = &[
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

/// Query parameters: name and type.
type Params = &'static [(&'static str, &'static str)];

const LIST: Params = &[
    ("allowWatchBookmarks", "boolean"),
    ("continue", "string"),
    ("fieldSelector", "string"),
    ("labelSelector", "string"),
    ("limit", "integer"),
    ("resourceVersion", "string"),
    ("resourceVersionMatch", "string"),
    ("sendInitialEvents", "boolean"),
    ("timeoutSeconds", "integer"),
    ("watch", "boolean"),
];
const WRITE: Params = &[
    ("dryRun", "string"),
    ("fieldManager", "string"),
    ("fieldValidation", "string"),
];
const DELETE: Params = &[
    ("dryRun", "string"),
    ("gracePeriodSeconds", "integer"),
    (
        "ignoreStoreReadErrorWithClusterBreakingPotential",
        "boolean",
    ),
    ("orphanDependents", "boolean"),
    ("propagationPolicy", "string"),
];

/// Whether `delete` answers the object, where all others answer a Status.
pub(super) fn delete_answers_object(group: &str, resource: &str) -> bool {
    match group {
        "" => matches!(
            resource,
            "persistentvolumeclaims"
                | "persistentvolumes"
                | "pods"
                | "podtemplates"
                | "resourcequotas"
                | "serviceaccounts"
                | "services"
        ),
        "storage.k8s.io" => resource != "csistoragecapacities",
        "resource.k8s.io" => true,
        _ => false,
    }
}

/// An operation before its parameters are sorted out.
struct Operation {
    method: &'static str,
    value: Value,
    query: Vec<(String, &'static str)>,
}

/// The operations of one path.
#[derive(Default)]
struct PathItem {
    /// Parameters in the path.
    path: Vec<&'static str>,
    operations: Vec<Operation>,
}

impl PathItem {
    /// The JSON: parameters that all operations share stand with the path (upstream hoists them likewise).
    fn finish(self) -> Value {
        let shared: Vec<(String, &'static str)> = match self.operations.split_first() {
            Some((first, rest)) => first
                .query
                .iter()
                .filter(|param| rest.iter().all(|other| other.query.contains(param)))
                .cloned()
                .collect(),
            None => Vec::new(),
        };
        let query = |params: &[(String, &'static str)]| -> Vec<Value> {
            let mut params = params.to_vec();
            params.sort_unstable();
            params
                .into_iter()
                .map(|(name, kind)| parameter("query", &name, kind))
                .collect()
        };
        let mut out = Object::new();
        for operation in self.operations {
            let own: Vec<_> = operation
                .query
                .into_iter()
                .filter(|param| !shared.contains(param))
                .collect();
            let mut value = operation.value;
            if !own.is_empty() {
                value["parameters"] = query(&own).into();
            }
            out.insert(operation.method.to_owned(), value);
        }
        let mut common: Vec<Value> = self
            .path
            .iter()
            .map(|name| parameter("path", name, "string"))
            .collect();
        common.extend(query(&shared));
        if !common.is_empty() {
            out.insert("parameters".to_owned(), common.into());
        }
        Value::Object(out)
    }
}

fn parameter(place: &str, name: &str, kind: &str) -> Value {
    let mut out = json!({
        "name": name,
        "in": place,
        "schema": {"type": kind, "uniqueItems": true},
    });
    if place == "path" {
        out["required"] = true.into();
    }
    out
}

/// Builds the operations of one group version.
struct Builder {
    tag: String,
    /// The middle of operation ids: `AppsV1`.
    title: String,
    items: BTreeMap<String, PathItem>,
}

/// What one operation is about.
struct About<'a> {
    method: &'static str,
    /// `x-kubernetes-action`.
    action: &'static str,
    id: String,
    description: String,
    /// Group, version, kind.
    kind: (&'a str, &'a str, &'a str),
}

impl Builder {
    fn new(group: &str, version: &str) -> Self {
        Builder {
            tag: format!("{}_{version}", camel(group, false)),
            title: format!("{}{}", camel(group, true), title(version)),
            items: BTreeMap::new(),
        }
    }

    fn add(
        &mut self,
        path: &str,
        about: About<'_>,
        query: &[Params],
        body: Option<Value>,
        responses: Value,
    ) {
        let item = self.item(path);
        let mut params: Vec<(String, &'static str)> = vec![("pretty".to_owned(), "string")];
        for (name, kind) in query.iter().copied().flatten() {
            if !params.iter().any(|(known, _)| known == name) {
                params.push(((*name).to_owned(), kind));
            }
        }
        let tag = self.tag.clone();
        let mut value = operation(&about, &tag, responses);
        if let Some(body) = body {
            value["requestBody"] = body;
        }
        if let Some(item) = self.items.get_mut(&item) {
            item.operations.push(Operation {
                method: about.method,
                value,
                query: params,
            });
        }
    }

    /// Makes sure of the item at `path`, and answers its key.
    fn item(&mut self, path: &str) -> String {
        self.items.entry(path.to_owned()).or_insert_with(|| {
            let known = ["name", "namespace", "path"];
            PathItem {
                path: known
                    .into_iter()
                    .filter(|name| path.contains(&format!("{{{name}}}")))
                    .collect(),
                operations: Vec::new(),
            }
        });
        path.to_owned()
    }

    fn resource(&mut self, base: &str, row: &Resource) {
        let kind = row.kind.as_str();
        let gvk = (row.group.as_str(), row.version.as_str(), kind);
        let scope = if row.namespaced { "Namespaced" } else { "" };
        let name = &row.resource;
        let (collection, watch) = if row.namespaced {
            (
                format!("{base}/namespaces/{{namespace}}/{name}"),
                format!("{base}/watch/namespaces/{{namespace}}/{name}"),
            )
        } else {
            (format!("{base}/{name}"), format!("{base}/watch/{name}"))
        };
        let item = format!("{collection}/{{name}}");
        let title = self.title.clone();
        let object = name_of(row);
        let about = |method, action, id: String, description: String| About {
            method,
            action,
            id,
            description,
            kind: gvk,
        };
        let verb = |verb: &str| row.has_verb(verb);
        if verb("list") {
            let watched = if verb("watch") {
                "list or watch"
            } else {
                "list"
            };
            let description = format!("{watched} objects of kind {kind}");
            let id = format!("list{title}{scope}{kind}");
            let list = list_name_of(row);
            let answer = || answers(&["200"], LIST_TYPES, reference(&list));
            let here = about("get", "list", id, description.clone());
            self.add(&collection, here, &[LIST], None, answer());
            if row.namespaced {
                let id = format!("list{title}{kind}ForAllNamespaces");
                let all = about("get", "list", id, description);
                self.add(&format!("{base}/{name}"), all, &[LIST], None, answer());
            }
        }
        if verb("create") {
            let description = format!("create{}{kind}", article(kind));
            let id = format!("create{title}{scope}{kind}");
            let body = body(&object);
            let answer = answers(&["200", "201", "202"], OBJECT_TYPES, reference(&object));
            let here = about("post", "post", id, description);
            self.add(&collection, here, &[WRITE], Some(body), answer);
        }
        if verb("deletecollection") {
            let id = format!("delete{title}Collection{scope}{kind}");
            let description = format!("delete collection of {kind}");
            let answer = answers(&["200"], OBJECT_TYPES, reference(&format!("{META}Status")));
            let here = about("delete", "deletecollection", id, description);
            self.add(
                &collection,
                here,
                &[COLLECTION, DELETE],
                Some(delete_body()),
                answer,
            );
        }
        if verb("get") {
            let id = format!("read{title}{scope}{kind}");
            let description = format!("read the specified {kind}");
            let answer = answers(&["200"], OBJECT_TYPES, reference(&object));
            let here = about("get", "get", id, description);
            self.add(&item, here, &[], None, answer);
        }
        if verb("update") {
            let id = format!("replace{title}{scope}{kind}");
            let description = format!("replace the specified {kind}");
            let answer = answers(&["200", "201"], OBJECT_TYPES, reference(&object));
            let here = about("put", "put", id, description);
            self.add(&item, here, &[WRITE], Some(body(&object)), answer);
        }
        if verb("patch") {
            let id = format!("patch{title}{scope}{kind}");
            let description = format!("partially update the specified {kind}");
            let answer = answers(&["200", "201"], OBJECT_TYPES, reference(&object));
            let here = about("patch", "patch", id, description);
            self.add(&item, here, &[WRITE, FORCE], Some(patch_body(row)), answer);
        }
        if verb("delete") {
            let id = format!("delete{title}{scope}{kind}");
            let description = format!("delete{}{kind}", article(kind));
            let answered = match delete_answers_object(&row.group, name) {
                true => object.clone(),
                false => format!("{META}Status"),
            };
            let answer = answers(&["200", "202"], OBJECT_TYPES, reference(&answered));
            let here = about("delete", "delete", id, description);
            self.add(&item, here, &[DELETE], Some(delete_body()), answer);
        }
        if verb("watch") {
            let event = || {
                let event = reference(&format!("{META}WatchEvent"));
                answers(&["200"], LIST_TYPES, event)
            };
            let lists = format!(
                "watch individual changes to a list of {kind}. deprecated: use the 'watch' parameter with a list operation instead."
            );
            let id = format!("watch{title}{scope}{kind}List");
            let here = about("get", "watchlist", id, lists.clone());
            self.add(&watch, here, &[LIST], None, event());
            if row.namespaced {
                let id = format!("watch{title}{kind}ListForAllNamespaces");
                let all = about("get", "watchlist", id, lists);
                self.add(&format!("{base}/watch/{name}"), all, &[LIST], None, event());
            }
            if verb("get") {
                let description = format!(
                    "watch changes to an object of kind {kind}. deprecated: use the 'watch' parameter with a list operation instead, filtered to a single item with the 'fieldSelector' parameter."
                );
                let id = format!("watch{title}{scope}{kind}");
                let one = about("get", "watch", id, description);
                self.add(&format!("{watch}/{{name}}"), one, &[LIST], None, event());
            }
        }
        for subresource in &row.subresources {
            self.subresource(&item, row, subresource, scope);
        }
    }

    fn subresource(&mut self, item: &str, row: &Resource, sub: &Subresource, scope: &str) {
        let path = format!("{item}/{}", sub.name);
        let parent = row.kind.as_str();
        let name = sub.name.as_str();
        let suffix = format!("{scope}{parent}{}", title(name));
        let gvk = (sub.group.as_str(), sub.version.as_str(), sub.kind.as_str());
        if sub.kind.ends_with("Options") {
            self.connect(&path, row, sub, &suffix);
            return;
        }
        let object = match Schema::builtin().lookup_kind(gvk.0, gvk.1, gvk.2) {
            Some(kind) => kind.name().to_owned(),
            None => name_of(row),
        };
        let group_title = self.title.clone();
        let about = |method, action, verb: &str, description: String| About {
            method,
            action,
            id: format!("{verb}{group_title}{suffix}"),
            description,
            kind: gvk,
        };
        for verb in &sub.verbs {
            match verb.as_str() {
                "get" if name == "log" => {
                    let here = about(
                        "get",
                        "get",
                        "read",
                        format!("read log of the specified {parent}"),
                    );
                    let answer = answers(&["200"], LOG_TYPES, json!({"type": "string"}));
                    self.add(&path, here, &[], None, answer);
                    let options = Schema::builtin().lookup_kind("", "v1", "PodLogOptions");
                    self.option_params(&path, options);
                }
                "get" => {
                    let description = format!("read {name} of the specified {parent}");
                    let answer = answers(&["200"], OBJECT_TYPES, reference(&object));
                    self.add(
                        &path,
                        about("get", "get", "read", description),
                        &[],
                        None,
                        answer,
                    );
                }
                "update" => {
                    let description = format!("replace {name} of the specified {parent}");
                    let here = about("put", "put", "replace", description);
                    let answer = answers(&["200", "201"], OBJECT_TYPES, reference(&object));
                    self.add(&path, here, &[WRITE], Some(body(&object)), answer);
                }
                "patch" => {
                    let description = format!("partially update {name} of the specified {parent}");
                    let here = about("patch", "patch", "patch", description);
                    let answer = answers(&["200", "201"], OBJECT_TYPES, reference(&object));
                    self.add(&path, here, &[WRITE, FORCE], Some(patch_body(row)), answer);
                }
                "create" => {
                    let description = format!("create {name} of{}{parent}", article(parent));
                    let here = about("post", "post", "create", description);
                    let answer = answers(&["200", "201", "202"], OBJECT_TYPES, reference(&object));
                    self.add(&path, here, &[WRITE], Some(body(&object)), answer);
                }
                _ => {}
            }
        }
    }

    /// Streams and proxies: any method, no body told of.
    fn connect(&mut self, path: &str, row: &Resource, sub: &Subresource, suffix: &str) {
        let proxy = sub.name == "proxy";
        let methods: &[&'static str] = match proxy {
            true => &["delete", "get", "head", "options", "patch", "post", "put"],
            false => &["get", "post"],
        };
        let mut paths = vec![(path.to_owned(), "")];
        if proxy {
            paths.push((format!("{path}/{{path}}"), "WithPath"));
        }
        let options = Schema::builtin().lookup_kind(&sub.group, &sub.version, &sub.kind);
        for (path, tail) in paths {
            for method in methods {
                let id = format!("connect{}{}{suffix}{tail}", self.title, title(method));
                let upper = method.to_uppercase();
                let about = About {
                    method,
                    action: "connect",
                    id,
                    description: format!(
                        "connect {upper} requests to {} of {}",
                        sub.name, row.kind
                    ),
                    kind: (&sub.group, &sub.version, &sub.kind),
                };
                let answer = answers(&["200"], &["*/*"], json!({"type": "string"}));
                let key = self.item(&path);
                let value = operation(&about, &self.tag, answer);
                if let Some(item) = self.items.get_mut(&key) {
                    item.operations.push(Operation {
                        method,
                        value,
                        query: Vec::new(),
                    });
                }
            }
            self.option_params(&path, options);
        }
    }

    /// Gives all operations at `path` the fields of an options type as query parameters.
    fn option_params(&mut self, path: &str, options: Option<&'static Type>) {
        let (Some(options), Some(item)) = (options, self.items.get_mut(path)) else {
            return;
        };
        for field in options.fields() {
            let kind = match (field.kind, field.cardinality) {
                (_, Cardinality::Map) => continue,
                (Kind::String, _) => "string",
                (Kind::Bool, _) => "boolean",
                (Kind::Int32 | Kind::Int64, _) => "integer",
                _ => continue,
            };
            for operation in &mut item.operations {
                operation.query.push((field.json_name.to_owned(), kind));
            }
        }
    }

    fn finish(self) -> Object {
        self.items
            .into_iter()
            .map(|(path, item)| (path, item.finish()))
            .collect()
    }
}

const FORCE: Params = &[("force", "boolean")];
/// The parameters of a list that choose what a `deletecollection` deletes.
const COLLECTION: Params = &[
    ("continue", "string"),
    ("fieldSelector", "string"),
    ("labelSelector", "string"),
    ("limit", "integer"),
    ("resourceVersion", "string"),
    ("resourceVersionMatch", "string"),
    ("sendInitialEvents", "boolean"),
    ("timeoutSeconds", "integer"),
];

fn operation(about: &About<'_>, tag: &str, responses: Value) -> Value {
    let (group, version, kind) = about.kind;
    json!({
        "tags": [tag],
        "description": about.description,
        "operationId": about.id,
        "responses": responses,
        "x-kubernetes-action": about.action,
        "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
    })
}

fn answers(codes: &[&str], types: &[&str], schema: Value) -> Value {
    let content: Object = types
        .iter()
        .map(|kind| ((*kind).to_owned(), json!({ "schema": schema })))
        .collect();
    let mut out = Object::new();
    for code in codes {
        let description = match *code {
            "201" => "Created",
            "202" => "Accepted",
            _ => "OK",
        };
        let answer = json!({"description": description, "content": content});
        out.insert((*code).to_owned(), answer);
    }
    out.insert("401".to_owned(), json!({"description": "Unauthorized"}));
    Value::Object(out)
}

fn body(object: &str) -> Value {
    json!({"content": {"*/*": {"schema": reference(object)}}, "required": true})
}

fn delete_body() -> Value {
    json!({"content": {"*/*": {"schema": reference(&format!("{META}DeleteOptions"))}}})
}

fn patch_body(row: &Resource) -> Value {
    let schema = reference(&format!("{META}Patch"));
    let content: Object = PATCH_TYPES
        .iter()
        // Strategic merge needs the type table.
        .filter(|kind| row.type_name.is_some() || !kind.contains("strategic"))
        .map(|kind| ((*kind).to_owned(), json!({ "schema": schema })))
        .collect();
    json!({"content": content, "required": true})
}

/// The article before a kind, with spaces around (upstream `GetArticleForNoun`).
fn article(noun: &str) -> &'static str {
    if noun.ends_with('s') && !noun.ends_with("ss") {
        " "
    } else if noun.starts_with(|c: char| "aeiouAEIOU".contains(c)) {
        " an "
    } else {
        " a "
    }
}

fn title(word: &str) -> String {
    let mut chars = word.chars();
    match chars.next() {
        Some(first) => first.to_uppercase().chain(chars).collect(),
        None => String::new(),
    }
}

/// A group in the form of tags (`rbacAuthorization`) or of operation ids (`RbacAuthorization`).
fn camel(group: &str, upper: bool) -> String {
    let group = match group {
        "" => "core",
        group => group.strip_suffix(".k8s.io").unwrap_or(group),
    };
    let words = group.split(['.', '-']).enumerate();
    words
        .map(|(i, word)| match i == 0 && !upper {
            true => word.to_owned(),
            false => title(word),
        })
        .collect()
}

/// The paths of a group version.
pub(super) fn group_version(group: &str, version: &str, rows: &[Arc<Resource>]) -> Object {
    let base = match group {
        "" => format!("/api/{version}"),
        group => format!("/apis/{group}/{version}"),
    };
    let mut builder = Builder::new(group, version);
    for row in rows {
        builder.resource(&base, row);
    }
    let id = format!("get{}APIResources", builder.title);
    let tag = builder.tag.clone();
    let mut out = builder.finish();
    let (path, item) = plain(
        &format!("{base}/"),
        &id,
        "get available resources",
        &tag,
        OBJECT_TYPES,
        reference(&format!("{META}APIResourceList")),
    );
    out.insert(path, item);
    out
}

/// The path of a group.
pub(super) fn group(group: &str) -> Object {
    let (path, item) = plain(
        &format!("/apis/{group}/"),
        &format!("get{}APIGroup", camel(group, true)),
        "get information of a group",
        &camel(group, false),
        OBJECT_TYPES,
        reference(&format!("{META}APIGroup")),
    );
    Object::from_iter([(path, item)])
}

/// The path of the list of groups.
pub(super) fn groups() -> Object {
    let (path, item) = plain(
        "/apis/",
        "getAPIVersions",
        "get available API versions",
        "apis",
        OBJECT_TYPES,
        reference(&format!("{META}APIGroupList")),
    );
    Object::from_iter([(path, item)])
}

/// The path of the core group's versions.
pub(super) fn core_versions() -> Object {
    let (path, item) = plain(
        "/api/",
        "getCoreAPIVersions",
        "get available API versions",
        "core",
        OBJECT_TYPES,
        reference(&format!("{META}APIVersions")),
    );
    Object::from_iter([(path, item)])
}

/// The path of the server's version.
pub(super) fn version() -> Object {
    let (path, item) = plain(
        "/version/",
        "getCodeVersion",
        "get the version information for this server",
        "version",
        &[JSON],
        reference("io.k8s.apimachinery.pkg.version.Info"),
    );
    Object::from_iter([(path, item)])
}

fn plain(
    path: &str,
    id: &str,
    description: &str,
    tag: &str,
    types: &[&str],
    schema: Value,
) -> (String, Value) {
    let operation = json!({
        "tags": [tag],
        "description": description,
        "operationId": id,
        "responses": answers(&["200"], types, schema),
    });
    (path.to_owned(), json!({ "get": operation }))
}
