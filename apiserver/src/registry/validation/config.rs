//! Configuration: data, roles, nodes, webhooks (upstream `ValidateConfigMap`, `ValidateSecret`, `pkg/apis/rbac/validation`
//! and others).

use std::collections::HashSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use keelson_machinery::meta::{self, names};
use keelson_machinery::selector::validate_label_selector;
use keelson_machinery::status::field::{FieldError, Path};
use keelson_machinery::value::{self, Object, Value};

use super::{At, Found, has, refuse, text};

/// Selectors, wherever they stand.
pub fn label_selector(selector: &Value, at: &At<'_>, found: &mut Found) {
    found.extend(validate_label_selector(selector, false, &at.path()));
}

/// Upstream `MaxSecretSize`: 1 MiB.
const MAX_DATA: usize = 1024 * 1024;

/// How many bytes a base64 text stands for.
fn decoded_len(text: &str) -> usize {
    let padding = text.bytes().rev().take_while(|b| *b == b'=').count();
    (text.len() / 4 * 3).saturating_sub(padding)
}

fn keys<'a>(object: &'a Value, member: &str, path: &Path, found: &mut Found) -> Option<&'a Object> {
    let data = value::get_object(object, &[member])?;
    for key in data.keys() {
        refuse(found, &path.key(key), key, names::config_map_key(key));
    }
    Some(data)
}

fn total(data: Option<&Object>, len: impl Fn(&str) -> usize) -> usize {
    data.into_iter()
        .flatten()
        .map(|(_, content)| content.as_str().map_or(0, &len))
        .sum()
}

/// `ValidateConfigMap`.
pub fn config_map(map: &Value, at: &At<'_>, found: &mut Found) {
    let data = keys(map, "data", &at.child("data"), found);
    let binary = keys(map, "binaryData", &at.child("binaryData"), found);
    for key in data.into_iter().flat_map(|data| data.keys()) {
        if binary.is_some_and(|binary| binary.contains_key(key)) {
            found.push(FieldError::invalid(
                &at.child("data").key(key),
                key.as_str(),
                "duplicate of key present in binaryData",
            ));
        }
    }
    if total(data, str::len) + total(binary, decoded_len) > MAX_DATA {
        found.push(FieldError::too_long(&Path::new(""), MAX_DATA));
    }
}

/// `ValidateSecret`.
pub fn secret(secret: &Value, at: &At<'_>, found: &mut Found) {
    let path = at.child("data");
    let data = keys(secret, "data", &path, found);
    if total(data, decoded_len) > MAX_DATA {
        found.push(FieldError::too_long(&path, MAX_DATA));
    }
    let content = |key: &str| data.and_then(|data| data.get(key)).and_then(Value::as_str);
    let mut need = |key: &str| {
        if content(key).is_none() {
            found.push(FieldError::required(&path.key(key), ""));
        }
    };
    match text(secret, "type") {
        "kubernetes.io/service-account-token" => {
            const OWNER: &str = "kubernetes.io/service-account.name";
            if meta::annotation(secret, OWNER).is_none_or(str::is_empty) {
                let path = Path::new("metadata").child("annotations").key(OWNER);
                found.push(FieldError::required(&path, ""));
            }
        }
        "kubernetes.io/dockercfg" => {
            need(".dockercfg");
            json_inside(content(".dockercfg"), &path.key(".dockercfg"), found);
        }
        "kubernetes.io/dockerconfigjson" => {
            need(".dockerconfigjson");
            json_inside(
                content(".dockerconfigjson"),
                &path.key(".dockerconfigjson"),
                found,
            );
        }
        "kubernetes.io/basic-auth"
            if content("username").is_none() && content("password").is_none() =>
        {
            need("username");
            need("password");
        }
        "kubernetes.io/ssh-auth" => need("ssh-privatekey"),
        "kubernetes.io/tls" => {
            need("tls.crt");
            need("tls.key");
        }
        _ => {}
    }
}

fn json_inside(content: Option<&str>, path: &Path, found: &mut Found) {
    let Some(content) = content else {
        return;
    };
    let parsed = STANDARD
        .decode(content)
        .map_err(|error| error.to_string())
        .and_then(|bytes| {
            serde_json::from_slice::<Object>(&bytes).map_err(|error| error.to_string())
        });
    if let Err(words) = parsed {
        found.push(FieldError::invalid(
            path,
            "<secret contents redacted>",
            words,
        ));
    }
}

/// `ValidatePolicyRule`.
fn rules(role: &Value, namespaced: bool, at: &At<'_>, found: &mut Found) {
    for (index, rule) in value::items(role, &["rules"]).iter().enumerate() {
        let path = at.child("rules").index(index);
        let none = |list: &str| value::items(rule, &[list]).is_empty();
        if none("verbs") {
            found.push(FieldError::required(
                &path.child("verbs"),
                "verbs must contain at least one value",
            ));
        }
        if !none("nonResourceURLs") {
            let shown = Value::from(value::items(rule, &["nonResourceURLs"]));
            let path = path.child("nonResourceURLs");
            if namespaced {
                found.push(FieldError::invalid(
                    &path,
                    shown.clone(),
                    "namespaced rules cannot apply to non-resource URLs",
                ));
            }
            if !(none("apiGroups") && none("resources") && none("resourceNames")) {
                found.push(FieldError::invalid(
                    &path,
                    shown,
                    "rules cannot apply to both regular resources and non-resource URLs",
                ));
            }
            continue;
        }
        if none("apiGroups") {
            found.push(FieldError::required(
                &path.child("apiGroups"),
                "resource rules must supply at least one api group",
            ));
        }
        if none("resources") {
            found.push(FieldError::required(
                &path.child("resources"),
                "resource rules must supply at least one resource",
            ));
        }
    }
}

/// `ValidateRole`.
pub fn role(role: &Value, at: &At<'_>, found: &mut Found) {
    rules(role, true, at, found);
}

/// `ValidateClusterRole`.
pub fn cluster_role(role: &Value, at: &At<'_>, found: &mut Found) {
    rules(role, false, at, found);
    if has(role, "aggregationRule")
        && value::items(role, &["aggregationRule", "clusterRoleSelectors"]).is_empty()
    {
        found.push(FieldError::required(
            &at.child("aggregationRule.clusterRoleSelectors"),
            "at least one clusterRoleSelector required if aggregationRule is non-nil",
        ));
    }
}

const RBAC: &str = "rbac.authorization.k8s.io";

fn binding(binding: &Value, kinds: &[&str], namespaced: bool, at: &At<'_>, found: &mut Found) {
    let reference = value::get(binding, &["roleRef"]).unwrap_or(&Value::Null);
    let path = at.child("roleRef");
    if text(reference, "apiGroup") != RBAC {
        found.push(FieldError::not_supported(
            &path.child("apiGroup"),
            text(reference, "apiGroup"),
            &[RBAC],
        ));
    }
    if !kinds.contains(&text(reference, "kind")) {
        found.push(FieldError::not_supported(
            &path.child("kind"),
            text(reference, "kind"),
            kinds,
        ));
    }
    let name = text(reference, "name");
    if name.is_empty() {
        found.push(FieldError::required(&path.child("name"), ""));
    } else {
        refuse(
            found,
            &path.child("name"),
            name,
            names::path_segment(name, false),
        );
    }
    for (index, subject) in value::items(binding, &["subjects"]).iter().enumerate() {
        let path = at.child("subjects").index(index);
        let (name, group) = (text(subject, "name"), text(subject, "apiGroup"));
        if name.is_empty() {
            found.push(FieldError::required(&path.child("name"), ""));
        }
        match text(subject, "kind") {
            "ServiceAccount" => {
                if !name.is_empty() {
                    refuse(
                        found,
                        &path.child("name"),
                        name,
                        names::dns1123_subdomain(name),
                    );
                }
                if !group.is_empty() {
                    found.push(FieldError::not_supported(
                        &path.child("apiGroup"),
                        group,
                        &[""],
                    ));
                }
                if !namespaced && text(subject, "namespace").is_empty() {
                    found.push(FieldError::required(&path.child("namespace"), ""));
                }
            }
            "User" | "Group" => {
                if group != RBAC {
                    found.push(FieldError::not_supported(
                        &path.child("apiGroup"),
                        group,
                        &[RBAC],
                    ));
                }
            }
            other => found.push(FieldError::not_supported(
                &path.child("kind"),
                other,
                &["ServiceAccount", "User", "Group"],
            )),
        }
    }
}

/// `ValidateRoleBinding`.
pub fn role_binding(given: &Value, at: &At<'_>, found: &mut Found) {
    binding(given, &["Role", "ClusterRole"], true, at, found);
}

/// `ValidateClusterRoleBinding`.
pub fn cluster_role_binding(given: &Value, at: &At<'_>, found: &mut Found) {
    binding(given, &["ClusterRole"], false, at, found);
}

/// The highest value for others than the system (upstream `HighestUserDefinablePriority`).
const HIGHEST_PRIORITY: i64 = 1_000_000_000;

/// The classes that the system makes.
const SYSTEM_CLASSES: &[&str] = &["system-node-critical", "system-cluster-critical"];

/// `ValidatePriorityClass`.
pub fn priority_class(class: &Value, at: &At<'_>, found: &mut Found) {
    let name = meta::name(class);
    if name.starts_with("system-") {
        if !SYSTEM_CLASSES.contains(&name) {
            found.push(FieldError::forbidden(
                &at.child("metadata.name"),
                format!(
                    "priority class names with 'system-' prefix are reserved for system use only. error: {name} is not a known system priority class"
                ),
            ));
        }
    } else if value::get_i64(class, &["value"]).unwrap_or(0) > HIGHEST_PRIORITY {
        found.push(FieldError::forbidden(
            &at.child("value"),
            format!("maximum allowed value of a user defined priority is {HIGHEST_PRIORITY}"),
        ));
    }
}

/// `validateNodeTaints`, `ValidateNode`.
pub fn node_spec(spec: &Value, at: &At<'_>, found: &mut Found) {
    const EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];
    let mut seen = HashSet::new();
    for (index, taint) in value::items(spec, &["taints"]).iter().enumerate() {
        // Upstream looks for them in the metadata.
        let path = Path::new("metadata").child("taints").index(index);
        let (key, effect) = (text(taint, "key"), text(taint, "effect"));
        refuse(found, &path.child("key"), key, names::qualified_name(key));
        let broken = names::label_value(text(taint, "value"));
        if !broken.is_empty() {
            found.push(FieldError::invalid(
                &path.child("value"),
                text(taint, "value"),
                broken.join(";"),
            ));
        }
        if effect.is_empty() {
            found.push(FieldError::required(&path.child("effect"), ""));
        } else if !EFFECTS.contains(&effect) {
            found.push(FieldError::not_supported(
                &path.child("effect"),
                effect,
                EFFECTS,
            ));
        }
        if !seen.insert((key, effect)) {
            let mut error = FieldError::duplicate(&path, taint.clone());
            error.detail = "taints must be unique by key and effect pair".to_string();
            found.push(error);
        }
    }
    for (index, range) in value::items(spec, &["podCIDRs"]).iter().enumerate() {
        let path = at.child("podCIDRs").index(index);
        let range = range.as_str().unwrap_or_default();
        found.extend(meta::ip::valid_cidr_legacy(&path, range, &[]));
    }
}
