//! Who asks, and for what: the two facts about a request that every filter needs, and the query options of a verb.

use std::collections::BTreeMap;

use keelson_machinery::selector::FieldSelector;
use keelson_machinery::status::ApiError;

/// An authenticated user (`k8s.io/apiserver/pkg/authentication/user.Info`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserInfo {
    /// Unique name, such as `system:serviceaccount:default:default`.
    pub name: String,
    /// Identifier that stays the same over time; empty when unknown.
    pub uid: String,
    /// Groups, `system:authenticated` or `system:unauthenticated` included.
    pub groups: Vec<String>,
    /// Further facts from the authenticator.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// What a request path and method mean (`k8s.io/apiserver/pkg/endpoints/request.RequestInfo`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestInfo {
    /// True for `/api/...` and `/apis/...` paths that name a resource.
    pub is_resource: bool,
    /// The URL path.
    pub path: String,
    /// The `fieldSelector` of a list, watch or deletecollection as the client wrote it; authorizers may allow what it
    /// narrows down to (a node reads the Pods bound to it).
    pub field_selector: String,
    /// Kubernetes verb for resources (`get`, `list`, `watch`, `create`, `update`, `patch`, `delete`,
    /// `deletecollection`, `proxy`), the lower-case HTTP method otherwise.
    pub verb: String,
    /// API group; empty for the core group.
    pub group: String,
    /// API version.
    pub version: String,
    /// Namespace; empty for cluster-scoped requests. For `namespaces` itself it equals `name`.
    pub namespace: String,
    /// Plural resource name.
    pub resource: String,
    /// Subresource; empty when none.
    pub subresource: String,
    /// Object name; empty for collections. A `metadata.name=` field selector of a list counts as name,
    /// so that an authorizer may allow a list or watch of one object.
    pub name: String,
    /// All path segments after the version and namespace, for subresources with a path of their own (proxy).
    pub parts: Vec<String>,
    /// `api` or `apis` for resource requests.
    pub api_prefix: String,
}

impl RequestInfo {
    /// Reads method and path (upstream `RequestInfoFactory.NewRequestInfo`). `query` decides between list and watch.
    /// Fails only for a path that stops after a special verb (`/api/v1/watch`).
    pub fn parse(
        method: &http::Method,
        path: &str,
        query: &Query,
    ) -> Result<RequestInfo, ApiError> {
        let mut info = RequestInfo {
            path: path.to_string(),
            verb: method.as_str().to_ascii_lowercase(),
            ..RequestInfo::default()
        };
        let trimmed = path.trim_matches('/');
        if trimmed.is_empty() {
            return Ok(info);
        }
        let segments: Vec<&str> = trimmed.split('/').collect();
        let mut parts = segments.as_slice();
        if parts.len() < 3 || !matches!(parts[0], "api" | "apis") {
            return Ok(info);
        }
        let api_prefix = parts[0];
        parts = &parts[1..];
        if api_prefix == "apis" {
            if parts.len() < 3 {
                return Ok(info);
            }
            info.group = parts[0].to_string();
            parts = &parts[1..];
        }
        info.api_prefix = api_prefix.to_string();
        info.is_resource = true;
        info.version = parts[0].to_string();
        parts = &parts[1..];

        if matches!(parts[0], "proxy" | "watch") {
            if parts.len() < 2 {
                return Err(ApiError::internal(format!(
                    "unable to determine kind and namespace from url, {path}"
                )));
            }
            info.verb = parts[0].to_string();
            parts = &parts[1..];
        } else {
            info.verb = match *method {
                http::Method::POST => "create",
                http::Method::GET | http::Method::HEAD => "get",
                http::Method::PUT => "update",
                http::Method::PATCH => "patch",
                http::Method::DELETE => "delete",
                _ => "",
            }
            .to_string();
        }

        if parts[0] == "namespaces" && parts.len() > 1 {
            info.namespace = parts[1].to_string();
            if parts.len() > 2 && !matches!(parts[2], "status" | "finalize") {
                parts = &parts[2..];
            }
        }
        info.parts = parts.iter().map(|p| p.to_string()).collect();
        if parts.len() >= 3 && info.verb != "proxy" {
            info.subresource = parts[2].to_string();
        }
        if parts.len() >= 2 {
            info.name = parts[1].to_string();
        }
        info.resource = parts[0].to_string();

        if info.name.is_empty() && info.verb == "get" {
            info.verb = if query.flag("watch") { "watch" } else { "list" }.to_string();
            if let Some(name) = query
                .get("fieldSelector")
                .and_then(single_name_of_field_selector)
            {
                info.name = name;
            }
        }
        if info.name.is_empty() && info.verb == "delete" {
            info.verb = "deletecollection".to_string();
        }
        if matches!(info.verb.as_str(), "list" | "watch" | "deletecollection") {
            info.field_selector = query.get("fieldSelector").unwrap_or_default().to_string();
        }
        Ok(info)
    }

    /// `resource` or `resource/subresource`.
    pub fn resource_and_subresource(&self) -> String {
        if self.subresource.is_empty() {
            self.resource.clone()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        }
    }
}

/// The name that a field selector pins down by `metadata.name=NAME` (or `==`), when it is fit for a path segment
/// (upstream `fields.Selector.RequiresExactMatch`).
fn single_name_of_field_selector(selector: &str) -> Option<String> {
    let selector = FieldSelector::parse(selector).ok()?;
    let value = selector.exact("metadata.name")?;
    let fits = !value.is_empty() && value != "." && value != ".." && !value.contains(['/', '%']);
    fits.then(|| value.to_string())
}

/// The decoded query string, in order of appearance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Decodes `a=b&c=d`; `+` is a space, bad escapes are kept as they are.
    pub fn parse(raw: Option<&str>) -> Query {
        let pairs = raw
            .unwrap_or_default()
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                (percent_decode(key, true), percent_decode(value, true))
            })
            .collect();
        Query(pairs)
    }

    /// The first value of `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(k, _)| k == key)
            .map(|(_, v)| v.as_str())
    }

    /// All values of `key`.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> + 'a {
        self.0
            .iter()
            .filter(move |(k, _)| k == key)
            .map(|(_, v)| v.as_str())
    }

    /// A boolean as upstream's parameter codec reads it: absent, `false` and `0` are false, all else is true.
    pub fn flag(&self, key: &str) -> bool {
        self.optional_flag(key).unwrap_or(false)
    }

    /// Like [`Query::flag`], telling absence apart.
    pub fn optional_flag(&self, key: &str) -> Option<bool> {
        self.get(key)
            .map(|v| !matches!(v.to_ascii_lowercase().as_str(), "false" | "0"))
    }

    /// A 64-bit integer. The error is worded as Go's strconv does.
    pub fn int(&self, key: &str) -> Result<Option<i64>, ApiError> {
        let Some(text) = self.get(key) else {
            return Ok(None);
        };
        if text.is_empty() {
            return Ok(None);
        }
        text.parse::<i64>().map(Some).map_err(|e| {
            let why = match e.kind() {
                std::num::IntErrorKind::PosOverflow | std::num::IntErrorKind::NegOverflow => {
                    "value out of range"
                }
                _ => "invalid syntax",
            };
            ApiError::bad_request(format!("strconv.ParseInt: parsing {text:?}: {why}"))
        })
    }

    /// A non-empty text.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.get(key).filter(|v| !v.is_empty())
    }
}

/// Decodes `%XX` escapes; with `plus`, also `+` as a space. Bytes that are not UTF-8 become replacement characters.
pub fn percent_decode(text: &str, plus: bool) -> String {
    if !text.contains('%') && !(plus && text.contains('+')) {
        return text.to_string();
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = |b: u8| (b as char).to_digit(16).map(|d| d as u8);
        match bytes[i] {
            b'%' => {
                match (
                    bytes.get(i + 1).copied().and_then(hex),
                    bytes.get(i + 2).copied().and_then(hex),
                ) {
                    (Some(hi), Some(lo)) => {
                        out.push(hi * 16 + lo);
                        i += 3;
                    }
                    _ => {
                        out.push(b'%');
                        i += 1;
                    }
                }
            }
            b'+' if plus => {
                out.push(b' ');
                i += 1;
            }
            other => {
                out.push(other);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(method: &str, target: &str) -> RequestInfo {
        let (path, query) = match target.split_once('?') {
            Some((p, q)) => (p, Some(q)),
            None => (target, None),
        };
        RequestInfo::parse(&method.parse().unwrap(), path, &Query::parse(query)).unwrap()
    }

    #[test]
    fn paths_mean_what_upstream_says() {
        // method, target, verb, group, version, namespace, resource, subresource, name
        let cases = [
            (
                "GET",
                "/api/v1/namespaces",
                "list",
                "",
                "v1",
                "",
                "namespaces",
                "",
                "",
            ),
            (
                "GET",
                "/api/v1/namespaces/a",
                "get",
                "",
                "v1",
                "a",
                "namespaces",
                "",
                "a",
            ),
            (
                "PUT",
                "/api/v1/namespaces/a/finalize",
                "update",
                "",
                "v1",
                "a",
                "namespaces",
                "finalize",
                "a",
            ),
            (
                "PUT",
                "/api/v1/namespaces/a/status",
                "update",
                "",
                "v1",
                "a",
                "namespaces",
                "status",
                "a",
            ),
            (
                "GET",
                "/api/v1/namespaces/a/pods",
                "list",
                "",
                "v1",
                "a",
                "pods",
                "",
                "",
            ),
            (
                "GET",
                "/api/v1/namespaces/a/pods/p/log",
                "get",
                "",
                "v1",
                "a",
                "pods",
                "log",
                "p",
            ),
            (
                "GET",
                "/apis/apps/v1/deployments?watch=1",
                "watch",
                "apps",
                "v1",
                "",
                "deployments",
                "",
                "",
            ),
            (
                "GET",
                "/apis/apps/v1/deployments?watch=false",
                "list",
                "apps",
                "v1",
                "",
                "deployments",
                "",
                "",
            ),
            (
                "GET",
                "/api/v1/watch/namespaces/a/pods/p",
                "watch",
                "",
                "v1",
                "a",
                "pods",
                "",
                "p",
            ),
            (
                "DELETE",
                "/api/v1/namespaces/a/pods",
                "deletecollection",
                "",
                "v1",
                "a",
                "pods",
                "",
                "",
            ),
            (
                "GET",
                "/api/v1/pods?fieldSelector=metadata.name%3Dx",
                "list",
                "",
                "v1",
                "",
                "pods",
                "",
                "x",
            ),
            (
                "POST",
                "/api/v1/namespaces/a/pods/p/proxy/x/y",
                "create",
                "",
                "v1",
                "a",
                "pods",
                "proxy",
                "p",
            ),
            (
                "HEAD",
                "/api/v1/nodes/n",
                "get",
                "",
                "v1",
                "",
                "nodes",
                "",
                "n",
            ),
        ];
        for (method, target, verb, group, version, namespace, resource, subresource, name) in cases
        {
            let info = parse(method, target);
            assert!(info.is_resource, "{target}");
            assert_eq!(
                (
                    info.verb.as_str(),
                    info.group.as_str(),
                    info.version.as_str(),
                    info.namespace.as_str(),
                    info.resource.as_str(),
                    info.subresource.as_str(),
                    info.name.as_str()
                ),
                (verb, group, version, namespace, resource, subresource, name),
                "{method} {target}"
            );
        }
        for target in [
            "/",
            "/healthz",
            "/api",
            "/api/v1",
            "/apis/apps",
            "/apis/apps/v1",
            "/openapi/v3/apis/apps/v1",
        ] {
            let info = parse("GET", target);
            assert!(!info.is_resource, "{target}");
            assert_eq!(info.verb, "get");
        }
    }

    #[test]
    fn query_decoding() {
        let q = Query::parse(Some("a=b%2Cc&x=1+2&flag&bad=%zz&end=%4"));
        assert_eq!(q.get("a"), Some("b,c"));
        assert_eq!(q.get("x"), Some("1 2"));
        assert_eq!(q.get("flag"), Some(""));
        assert_eq!(q.get("bad"), Some("%zz"));
        assert_eq!(q.get("end"), Some("%4"));
        assert_eq!(
            Query::parse(Some("limit=abc"))
                .int("limit")
                .unwrap_err()
                .message,
            "strconv.ParseInt: parsing \"abc\": invalid syntax"
        );
    }
}
