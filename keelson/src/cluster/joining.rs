//! What a cluster offers to machines that join it: a token, the rights of those who hold it, the cluster's authority in
//! `kube-public/cluster-info` (as kubeadm has it), and in `kube-system/keelson-node` what a node must be told.

use std::net::IpAddr;
use std::path::Path;

use anyhow::Context;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use keelson_apiserver::bootstrap::join;
use keelson_machinery::clock::Clock;
use kube::{Api, Client};
use serde_json::{Value, json};

use super::{addons, control_plane};
use crate::node::token::{CaHash, JoinToken};

/// Name of the file with the token, in the data directory.
pub const TOKEN_FILE: &str = "agent-token";
/// ConfigMap in kube-public that anybody may read.
pub const CLUSTER_INFO: &str = "cluster-info";
/// ConfigMap in kube-system that nodes may read.
const NODE_CONFIG: &str = "keelson-node";

/// What a joined node must be told.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeConfig {
    /// Address range of all Pods.
    pub pod_cidr: IpNet,
    /// The DNS Service's address.
    pub cluster_dns: IpAddr,
}

impl NodeConfig {
    /// Reads it from the cluster.
    ///
    /// # Errors
    /// A refusal, or a map that is not what a server of keelson's wrote.
    pub async fn read(client: &Client) -> anyhow::Result<Self> {
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "kube-system");
        let map = maps
            .get(NODE_CONFIG)
            .await
            .with_context(|| format!("reading ConfigMap kube-system/{NODE_CONFIG}"))?;
        serde_json::to_value(map.data.unwrap_or_default())
            .and_then(serde_json::from_value)
            .with_context(|| format!("ConfigMap kube-system/{NODE_CONFIG}"))
    }
}

/// Makes the objects, and the token file if it does not hold a token that is known.
///
/// # Errors
/// What the API server or the disk refused.
pub async fn offer(
    admin: &Client,
    data_dir: &Path,
    server: &str,
    ca_pem: &str,
    config: &NodeConfig,
    clock: &Clock,
) -> anyhow::Result<()> {
    addons::apply(admin, &join::policy()).await?;
    addons::apply(admin, &objects(server, ca_pem, config)?).await?;
    let pin = CaHash::of_pem(ca_pem.as_bytes())?;
    let path = data_dir.join(TOKEN_FILE);
    let kept = match std::fs::read_to_string(&path) {
        Ok(text) => text.parse::<JoinToken>().ok(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    };
    let kept = match kept {
        Some(token) if token.pin.as_ref() == Some(&pin) && is_known(admin, &token).await? => {
            return Ok(());
        }
        other => other,
    };
    if kept.is_some() {
        tracing::info!(path = %path.display(), "the token is not known any more; making another");
    }
    let (text, secret) = join::token(clock, None);
    addons::apply(admin, &[secret]).await?;
    let token = text.parse::<JoinToken>()?.with_pin(pin);
    control_plane::write_private(&path, &format!("{}\n", token.text()))
}

async fn is_known(admin: &Client, token: &JoinToken) -> anyhow::Result<bool> {
    let name = format!("bootstrap-token-{}", token.id());
    let secrets: Api<Secret> = Api::namespaced(admin.clone(), "kube-system");
    let found = secrets
        .get_opt(&name)
        .await
        .with_context(|| format!("reading Secret kube-system/{name}"))?;
    Ok(found
        .and_then(|secret| secret.data)
        .and_then(|data| data.get("token-secret").cloned())
        .is_some_and(|secret| secret.0 == token.secret().as_bytes()))
}

fn objects(server: &str, ca_pem: &str, config: &NodeConfig) -> anyhow::Result<Vec<Value>> {
    use base64::Engine as _;
    let ca = base64::engine::general_purpose::STANDARD.encode(ca_pem);
    // A kubeconfig without users: where the cluster is and what it is checked with.
    let kubeconfig = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "", "cluster": {"certificate-authority-data": ca, "server": server}}],
        "contexts": null,
        "current-context": "",
        "preferences": {},
        "users": null,
    });
    let rbac = "rbac.authorization.k8s.io/v1";
    let readable = |namespace: &str, map: &str, role: &str, subjects: Value| {
        [
            json!({
                "apiVersion": rbac, "kind": "Role",
                "metadata": {"name": role, "namespace": namespace},
                "rules": [{"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [map], "verbs": ["get"]}],
            }),
            json!({
                "apiVersion": rbac, "kind": "RoleBinding",
                "metadata": {"name": role, "namespace": namespace},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role},
                "subjects": subjects,
            }),
        ]
    };
    let api = "rbac.authorization.k8s.io";
    let mut objects = vec![
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": CLUSTER_INFO, "namespace": "kube-public"},
            "data": {"kubeconfig": serde_yaml_ng::to_string(&kubeconfig)?},
        }),
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": NODE_CONFIG, "namespace": "kube-system"},
            "data": serde_json::to_value(config)?,
        }),
    ];
    objects.extend(readable(
        "kube-public",
        CLUSTER_INFO,
        "keelson:cluster-info",
        json!([{"apiGroup": api, "kind": "User", "name": "system:anonymous"}]),
    ));
    objects.extend(readable(
        "kube-system",
        NODE_CONFIG,
        "keelson:node-config",
        json!([{"apiGroup": api, "kind": "Group", "name": "system:nodes"}]),
    ));
    Ok(objects)
}
