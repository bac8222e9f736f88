//! What a node needs to join: a bootstrap token, and the bindings by which its holder may ask for a node's certificate
//! and have it approved. Upstream leaves both to installers (kubeadm's `bootstraptoken` phases); so they are made for
//! clusters that `keelson` runs, and not by a bare API server.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use keelson_machinery::clock::Clock;
use keelson_machinery::value::Value;
use serde_json::json;

use crate::authn::token_request::time_text;
use crate::authz::rbac::GROUP;

/// The group of those who hold a token that was made to join nodes.
pub const JOINERS: &str = "system:bootstrappers:keelson:default-node-token";

/// Roles and bindings: joiners may make certificate requests for nodes, theirs are approved, and so are those by which
/// nodes renew their own and those for what their kubelets serve with; and nodes may read what the dataplane needs.
pub fn policy() -> Vec<Value> {
    let bindings = [
        (
            "keelson:kubelet-bootstrap",
            "system:node-bootstrapper",
            JOINERS,
        ),
        (
            "keelson:node-autoapprove-bootstrap",
            "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
            JOINERS,
        ),
        (
            "keelson:node-autoapprove-certificate-rotation",
            "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient",
            "system:nodes",
        ),
        (
            "keelson:node-autoapprove-serving",
            "keelson:node-autoapprove-serving",
            "system:nodes",
        ),
        // A joined node runs kubelet and dataplane under one identity.
        (
            "keelson:node-dataplane",
            "system:node-proxier",
            "system:nodes",
        ),
    ];
    let bindings = bindings.into_iter().map(|(name, role, group)| {
        json!({
            "apiVersion": format!("{GROUP}/v1"),
            "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": GROUP, "kind": "Group", "name": group}],
        })
    });
    serving_policy().into_iter().chain(bindings).collect()
}

/// Who approves serving certificates, and the permission that says whose.
fn serving_policy() -> Vec<Value> {
    let requests = "certificates.k8s.io";
    let approver = "keelson:kubelet-serving-approver";
    let role = |name: &str, rules: Value| {
        json!({
            "apiVersion": format!("{GROUP}/v1"),
            "kind": "ClusterRole",
            "metadata": {"name": name},
            "rules": rules,
        })
    };
    vec![
        role(
            "keelson:node-autoapprove-serving",
            json!([{"apiGroups": [requests], "resources": ["certificatesigningrequests/selfnodeserver"], "verbs": ["create"]}]),
        ),
        role(
            approver,
            json!([
                {"apiGroups": [requests], "resources": ["certificatesigningrequests"], "verbs": ["get", "list", "watch"]},
                {"apiGroups": [requests], "resources": ["certificatesigningrequests/approval"], "verbs": ["update"]},
                {"apiGroups": [requests], "resources": ["signers"], "resourceNames": ["kubernetes.io/kubelet-serving"], "verbs": ["approve"]},
                {"apiGroups": ["authorization.k8s.io"], "resources": ["subjectaccessreviews"], "verbs": ["create"]},
            ]),
        ),
        json!({
            "apiVersion": format!("{GROUP}/v1"),
            "kind": "ClusterRoleBinding",
            "metadata": {"name": approver},
            "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": approver},
            "subjects": [{"kind": "ServiceAccount", "name": "kubelet-serving-approver", "namespace": "kube-system"}],
        }),
    ]
}

/// A new token (`id.secret`) and the Secret that makes it known; it ends after `lifetime`, or never.
pub fn token(clock: &Clock, lifetime: Option<Duration>) -> (String, Value) {
    let (id, secret) = (characters(clock, 6), characters(clock, 16));
    let mut data = json!({
        "auth-extra-groups": JOINERS,
        "description": "Lets nodes join the cluster.",
        "token-id": id,
        "token-secret": secret,
        "usage-bootstrap-authentication": "true",
        "usage-bootstrap-signing": "true",
    });
    if let Some(end) = lifetime.and_then(|lifetime| clock.now().checked_add(lifetime).ok()) {
        data["expiration"] = time_text(end).into();
    }
    for (_, text) in data.as_object_mut().into_iter().flatten() {
        *text = STANDARD.encode(text.as_str().unwrap_or_default()).into();
    }
    let object = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": format!("bootstrap-token-{id}"), "namespace": "kube-system"},
        "type": "bootstrap.kubernetes.io/token",
        "data": data,
    });
    (format!("{id}.{secret}"), object)
}

/// Random characters of `[a-z0-9]`, each as likely as any other: bytes beyond the last whole round of the alphabet are
/// thrown away.
fn characters(clock: &Clock, count: usize) -> String {
    const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut text = String::with_capacity(count);
    let mut bytes = [0u8; 32];
    while text.len() < count {
        clock.fill_random(&mut bytes);
        let fair = bytes
            .iter()
            .filter(|byte| **byte < 252)
            .map(|byte| char::from(ALPHABET[usize::from(*byte) % 36]));
        text.extend(fair.take(count - text.len()));
    }
    text
}
