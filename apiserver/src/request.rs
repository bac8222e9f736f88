//! Who asks, and for what: the two facts about a request that every filter needs.

use std::collections::BTreeMap;

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
    /// Object name; empty for collections.
    pub name: String,
    /// All path segments after the version and namespace, for subresources with a path of their own (proxy).
    pub parts: Vec<String>,
}
