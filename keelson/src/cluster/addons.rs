//! What every cluster runs from the start: cluster DNS, as a Deployment from the system image behind the
//! Service `kube-system/kube-dns`.

use std::net::IpAddr;

use anyhow::Context;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};

/// The objects of cluster DNS.
pub fn dns(image: &str, cluster_dns: IpAddr, cluster_domain: &str) -> Vec<Value> {
    let labels = json!({ "k8s-app": "kube-dns", "kubernetes.io/name": "KeelsonDNS" });
    let selector = json!({ "k8s-app": "kube-dns" });
    let meta = |name: &str| json!({ "name": name, "namespace": "kube-system", "labels": labels });
    let cluster_meta = json!({ "name": "system:coredns", "labels": { "kubernetes.io/bootstrapping": "rbac-defaults" } });
    let family = if cluster_dns.is_ipv4() {
        "IPv4"
    } else {
        "IPv6"
    };
    vec![
        json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta("coredns") }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": cluster_meta,
            "rules": [
                { "apiGroups": [""], "resources": ["endpoints", "services", "pods", "namespaces"], "verbs": ["list", "watch"] },
                { "apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"] },
            ],
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": cluster_meta,
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:coredns" },
            "subjects": [{ "kind": "ServiceAccount", "name": "coredns", "namespace": "kube-system" }],
        }),
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": meta("kube-dns"),
            "spec": {
                "clusterIP": cluster_dns.to_string(), "clusterIPs": [cluster_dns.to_string()], "ipFamilies": [family], "ipFamilyPolicy": "SingleStack",
                "selector": selector,
                "ports": [
                    { "name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53 },
                    { "name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53 },
                    { "name": "metrics", "port": 9153, "protocol": "TCP", "targetPort": 9153 },
                ],
            },
        }),
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta("coredns"),
            "spec": {
                "replicas": 1,
                "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": 0, "maxSurge": 1 } },
                "selector": { "matchLabels": selector },
                "template": {
                    "metadata": { "labels": selector },
                    "spec": {
                        "serviceAccountName": "coredns",
                        "priorityClassName": "system-cluster-critical",
                        // Not the cluster's DNS: what this server does not know it asks of the node's own resolvers.
                        "dnsPolicy": "Default",
                        "tolerations": [
                            { "key": "CriticalAddonsOnly", "operator": "Exists" },
                            { "key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule" },
                        ],
                        "containers": [{
                            "name": "dns", "image": image, "imagePullPolicy": "IfNotPresent",
                            "command": ["/keelson", "dns"],
                            "args": [format!("--cluster-domain={cluster_domain}")],
                            "ports": [
                                { "name": "dns", "containerPort": 53, "protocol": "UDP" },
                                { "name": "dns-tcp", "containerPort": 53, "protocol": "TCP" },
                                { "name": "metrics", "containerPort": 9153, "protocol": "TCP" },
                            ],
                            "resources": { "limits": { "memory": "170Mi" }, "requests": { "cpu": "100m", "memory": "70Mi" } },
                            "livenessProbe": { "httpGet": { "path": "/healthz", "port": 8080 }, "initialDelaySeconds": 60, "timeoutSeconds": 5, "failureThreshold": 5 },
                            // Asked every second, so that a new cluster is ready as soon as DNS is.
                            "readinessProbe": { "httpGet": { "path": "/readyz", "port": 8181 }, "periodSeconds": 1 },
                            "securityContext": { "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": { "add": ["NET_BIND_SERVICE"], "drop": ["ALL"] } },
                        }],
                    },
                },
            },
        }),
    ]
}

/// Creates the objects, or merges them into those that exist.
///
/// # Errors
/// The API server's refusal, naming the object.
pub async fn apply(client: &Client, objects: &[Value]) -> anyhow::Result<()> {
    for value in objects {
        let object: DynamicObject =
            serde_json::from_value(value.clone()).context("an add-on is not an API object")?;
        let types = object.types.as_ref().context("an add-on has no kind")?;
        let (group, version) = types
            .api_version
            .split_once('/')
            .unwrap_or(("", &types.api_version));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &types.kind));
        let api: Api<DynamicObject> = match object.metadata.namespace.as_deref() {
            Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
            None => Api::all_with(client.clone(), &resource),
        };
        let name = object.metadata.name.clone().unwrap_or_default();
        let named = || format!("add-on {} {name}", types.kind);
        match api
            .patch(&name, &PatchParams::default(), &Patch::Merge(value))
            .await
        {
            Ok(_) => {}
            Err(error) if is_not_found(&error) => {
                api.create(&Default::default(), &object)
                    .await
                    .with_context(named)?;
            }
            Err(error) => return Err(error).with_context(named),
        }
    }
    Ok(())
}

fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_not_found())
}
