//! ServiceAccount: every Pod runs as one, and gets its token mounted (`plugin/pkg/admission/serviceaccount`).

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use keelson_machinery::clock::Clock;
use keelson_machinery::meta::{self, GroupResource};
use keelson_machinery::status::ApiError;
use keelson_machinery::value::{self, Value};
use serde_json::json;

use super::{AdmissionRequest, Operation, Plugin};
use crate::authn::token_request::WARN_ONLY_EXPIRATION;
use crate::authz::node::{Reference, pod_references};
use crate::objects::Objects;

/// Where the token is mounted.
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// How the volume's name begins.
const VOLUME_PREFIX: &str = "kube-api-access-";
/// The annotation of mirror Pods.
pub(super) const MIRROR: &str = "kubernetes.io/config.mirror";
/// The account that every namespace gets, a moment after it was made: a Pod waits for it.
const DEFAULT: &str = "default";
const DEFAULT_ATTEMPTS: usize = 30;
const DEFAULT_INTERVAL: Duration = Duration::from_millis(50);

/// The plugin.
pub(super) struct ServiceAccount {
    pub(super) objects: Objects,
    pub(super) clock: Clock,
}

#[async_trait]
impl Plugin for ServiceAccount {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }

    async fn admit(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        if request.operation != Operation::Create || !request.is("", "pods", "") {
            return Ok(());
        }
        let Some(pod) = &mut request.object else {
            return Ok(());
        };
        if meta::annotation(pod, MIRROR).is_some() {
            return self.validate(request).await;
        }
        if value::str_or_empty(pod, &["spec", "serviceAccountName"]).is_empty() {
            value::set(pod, &["spec", "serviceAccountName"], DEFAULT);
            value::set(pod, &["spec", "serviceAccount"], DEFAULT);
        }
        let account = self.account(request).await?;
        if let Some(pod) = &mut request.object {
            if automounts(&account, pod) {
                self.mount_token(pod);
            }
            let pull = value::items(&account, &["imagePullSecrets"]);
            if value::items(pod, &["spec", "imagePullSecrets"]).is_empty() && !pull.is_empty() {
                let names: Vec<Value> = pull
                    .iter()
                    .map(|reference| json!({"name": value::str_or_empty(reference, &["name"])}))
                    .collect();
                value::set(pod, &["spec", "imagePullSecrets"], names);
            }
        }
        self.validate(request).await
    }

    async fn validate(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        let ephemeral =
            request.operation == Operation::Update && request.is("", "pods", "ephemeralcontainers");
        let create = request.operation == Operation::Create && request.is("", "pods", "");
        let Some(pod) = request.object.as_ref().filter(|_| ephemeral || create) else {
            return Ok(());
        };
        if create && meta::annotation(pod, MIRROR).is_some() {
            return check_mirror(pod).map_err(|why| request.forbidden(why));
        }
        if value::str_or_empty(pod, &["spec", "serviceAccountName"]).is_empty() {
            return Err(request.forbidden(format!(
                "no service account specified for pod {}/{}",
                request.request.namespace,
                meta::name(pod)
            )));
        }
        let account = self.account(request).await?;
        let enforce = meta::annotation(&account, "kubernetes.io/enforce-mountable-secrets");
        if enforce.is_some_and(|text| matches!(text, "1" | "t" | "T" | "true" | "TRUE" | "True")) {
            let lists: &[(&str, &str)] = if ephemeral {
                &[("ephemeralContainers", "ephemeral container")]
            } else {
                &[
                    ("initContainers", "init container"),
                    ("containers", "container"),
                ]
            };
            check_mountable(&account, pod, lists, create).map_err(|why| request.forbidden(why))?;
        }
        Ok(())
    }
}

impl ServiceAccount {
    async fn account(&self, request: &AdmissionRequest) -> Result<Arc<Value>, ApiError> {
        let namespace = &request.request.namespace;
        let name = request.object.as_ref().map_or("", |pod| {
            value::str_or_empty(pod, &["spec", "serviceAccountName"])
        });
        let attempts = if name == DEFAULT { DEFAULT_ATTEMPTS } else { 2 };
        for attempt in 0..attempts {
            if attempt > 0 {
                tokio::time::sleep(DEFAULT_INTERVAL).await;
            }
            if let Some(account) = self
                .objects
                .find("", "serviceaccounts", namespace, name)
                .await?
            {
                return Ok(account);
            }
        }
        let missing = ApiError::not_found(&GroupResource::new("", "serviceaccount"), name);
        Err(request.forbidden(format!(
            "error looking up service account {namespace}/{name}: {missing}"
        )))
    }

    fn mount_token(&self, pod: &mut Value) {
        let existing = value::items(pod, &["spec", "volumes"])
            .iter()
            .map(|volume| value::str_or_empty(volume, &["name"]))
            .find(|name| name.starts_with(VOLUME_PREFIX));
        let (name, exists) = match existing {
            Some(name) => (name.to_owned(), true),
            None => (
                format!("{VOLUME_PREFIX}{}", self.clock.name_suffix(5)),
                false,
            ),
        };
        let mut mounted = false;
        for list in ["initContainers", "containers"] {
            let Some(containers) =
                value::get_mut(pod, &["spec", list]).and_then(Value::as_array_mut)
            else {
                continue;
            };
            for container in containers {
                // A mount of the Pod's own at this place wins.
                let own = value::items(container, &["volumeMounts"])
                    .iter()
                    .any(|mount| value::get_str(mount, &["mountPath"]) == Some(MOUNT_PATH));
                if !own {
                    let mount = json!({"name": name, "readOnly": true, "mountPath": MOUNT_PATH});
                    push(container, &["volumeMounts"], mount);
                    mounted = true;
                }
            }
        }
        if mounted && !exists {
            push(
                pod,
                &["spec", "volumes"],
                json!({"name": name, "projected": token_volume_source()}),
            );
        }
    }
}

/// Appends to a list that may not be there yet.
pub(super) fn push(object: &mut Value, path: &[&str], item: Value) {
    match value::get_mut(object, path).and_then(Value::as_array_mut) {
        Some(list) => list.push(item),
        None => {
            value::set(object, path, vec![item]);
        }
    }
}

/// The token, the authority to check the server with, and the namespace (`TokenVolumeSource`).
fn token_volume_source() -> Value {
    json!({
        "defaultMode": 420,
        "sources": [
            {"serviceAccountToken": {"expirationSeconds": WARN_ONLY_EXPIRATION, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
        ],
    })
}

fn automounts(account: &Value, pod: &Value) -> bool {
    value::get_bool(pod, &["spec", "automountServiceAccountToken"])
        .or_else(|| value::get_bool(account, &["automountServiceAccountToken"]))
        .unwrap_or(true)
}

/// A mirror Pod shows what a node runs by itself; it must not be a way to anything.
fn check_mirror(pod: &Value) -> Result<(), &'static str> {
    if !value::str_or_empty(pod, &["spec", "serviceAccountName"]).is_empty() {
        return Err("a mirror pod may not reference service accounts");
    }
    let mut secrets = false;
    pod_references(pod, &mut |kind, _| secrets |= kind == Reference::Secret);
    if secrets {
        return Err("a mirror pod may not reference secrets");
    }
    let projects_token = |volume: &Value| {
        value::items(volume, &["projected", "sources"])
            .iter()
            .any(|source| value::get(source, &["serviceAccountToken"]).is_some())
    };
    if value::items(pod, &["spec", "volumes"])
        .iter()
        .any(projects_token)
    {
        return Err("a mirror pod may not use ServiceAccountToken volume projections");
    }
    Ok(())
}

/// Accounts may limit their Pods to the Secrets they name (`limitSecretReferences`).
fn check_mountable(
    account: &Value,
    pod: &Value,
    lists: &[(&str, &str)],
    whole_pod: bool,
) -> Result<(), String> {
    let names = |list: &str| -> Vec<&str> {
        value::items(account, &[list])
            .iter()
            .filter_map(|one| value::get_str(one, &["name"]))
            .collect()
    };
    let (secrets, own) = (names("secrets"), meta::name(account));
    let tail = |secret: &str| {
        format!(
            "secret.secretName=\"{secret}\" is not allowed because service account {own} does not reference that secret"
        )
    };
    if whole_pod {
        for volume in value::items(pod, &["spec", "volumes"]) {
            if let Some(secret) = value::get_str(volume, &["secret", "secretName"])
                .filter(|secret| !secrets.contains(secret))
            {
                return Err(format!("volume with {}", tail(secret)));
            }
        }
    }
    for (list, word) in lists {
        for container in value::items(pod, &["spec", list]) {
            let name = value::str_or_empty(container, &["name"]);
            for variable in value::items(container, &["env"]) {
                if let Some(secret) =
                    value::get_str(variable, &["valueFrom", "secretKeyRef", "name"])
                        .filter(|secret| !secrets.contains(secret))
                {
                    return Err(format!(
                        "{word} {name} with envVar {} referencing {}",
                        value::str_or_empty(variable, &["name"]),
                        tail(secret)
                    ));
                }
            }
            for source in value::items(container, &["envFrom"]) {
                if let Some(secret) = value::get_str(source, &["secretRef", "name"])
                    .filter(|secret| !secrets.contains(secret))
                {
                    return Err(format!(
                        "{word} {name} with envFrom referencing {}",
                        tail(secret)
                    ));
                }
            }
        }
    }
    if whole_pod {
        let pull = names("imagePullSecrets");
        for (index, reference) in value::items(pod, &["spec", "imagePullSecrets"])
            .iter()
            .enumerate()
        {
            let name = value::str_or_empty(reference, &["name"]);
            if !pull.contains(&name) {
                return Err(format!(
                    "imagePullSecrets[{index}].name=\"{name}\" is not allowed because service account {own} does not reference that imagePullSecret"
                ));
            }
        }
    }
    Ok(())
}
