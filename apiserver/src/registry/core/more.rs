//! Defaults of the smaller kinds of the core group.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use keelson_machinery::value::{self, Value};
use serde_json::json;

use super::pod_defaults;
use crate::registry::defaults::{for_items, put};
use crate::registry::generic;
use crate::registry::strategy::{Context, Strategy};

/// Secrets: `stringData` is written into `data`, and never read back.
pub struct Secret;

impl Strategy for Secret {
    fn default(&self, object: &mut Value) {
        put(object, &["type"], "Opaque");
        if let Some(Value::Object(texts)) = value::remove(object, &["stringData"]) {
            for (name, text) in texts {
                let text = text.as_str().unwrap_or_default();
                value::set(object, &["data", &name], STANDARD.encode(text));
            }
        }
    }
}

/// Persistent volume claims: born pending.
pub struct Claim;

impl Strategy for Claim {
    fn default(&self, object: &mut Value) {
        claim(object);
    }

    fn prepare_for_create(&self, _: &Context<'_>, object: &mut Value) {
        value::set(object, &["status"], json!({"phase": "Pending"}));
    }
}

/// Persistent volumes: born pending.
pub struct Volume;

impl Strategy for Volume {
    fn default(&self, object: &mut Value) {
        put(object, &["status", "phase"], "Pending");
        put(object, &["spec", "persistentVolumeReclaimPolicy"], "Retain");
        put(object, &["spec", "volumeMode"], "Filesystem");
        if value::get(object, &["spec", "hostPath"]).is_some()
            && value::get(object, &["spec", "hostPath", "type"]).is_none()
        {
            value::set(object, &["spec", "hostPath", "type"], "");
        }
    }

    fn prepare_for_create(&self, _: &Context<'_>, object: &mut Value) {
        value::set(object, &["status"], json!({"phase": "Pending"}));
    }
}

/// Nodes: the status comes from the kubelet, also at the creation.
pub struct Node;

impl Strategy for Node {
    fn default(&self, object: &mut Value) {
        if value::get(object, &["status", "allocatable"]).is_none()
            && let Some(capacity) = value::get(object, &["status", "capacity"]).cloned()
        {
            value::set(object, &["status", "allocatable"], capacity);
        }
    }

    fn prepare_for_create(&self, _: &Context<'_>, _: &mut Value) {}

    fn prepare_for_update(&self, context: &Context<'_>, object: &mut Value, old: &Value) {
        if context.subresource == "status" {
            // Upstream lets kubelets change labels and annotations along with the status.
            generic::keep_member(object, old, "spec");
        } else {
            generic::keep_member(object, old, "status");
        }
    }
}

/// Defaults of a claim, also as template of a StatefulSet.
pub fn claim(claim: &mut Value) {
    put(claim, &["status", "phase"], "Pending");
    put(claim, &["spec", "volumeMode"], "Filesystem");
}

/// Replication controllers: selector and labels follow the template.
pub fn replication_controller(object: &mut Value) {
    let labels = value::get(object, &["spec", "template", "metadata", "labels"]).cloned();
    if let Some(labels) = labels {
        if value::get_object(object, &["spec", "selector"]).is_none_or(|s| s.is_empty()) {
            value::set(object, &["spec", "selector"], labels.clone());
        }
        if value::get_object(object, &["metadata", "labels"]).is_none_or(|l| l.is_empty()) {
            value::set(object, &["metadata", "labels"], labels);
        }
    }
    put(object, &["spec", "replicas"], 1);
    pod_defaults::template(object);
}

/// Pod templates.
pub fn pod_template(object: &mut Value) {
    pod_defaults::spec(object, &["template", "spec"]);
}

/// Endpoints: ports are TCP.
pub fn endpoints(object: &mut Value) {
    for_items(object, &["subsets"], |subset| {
        for_items(subset, &["ports"], |port| put(port, &["protocol"], "TCP"));
    });
}

/// Limit ranges: what is a maximum is a default, what is a default is a default request.
pub fn limit_range(object: &mut Value) {
    for_items(object, &["spec", "limits"], |limit| {
        if value::str_or_empty(limit, &["type"]) != "Container" {
            return;
        }
        for (from, to) in [
            ("max", "default"),
            ("default", "defaultRequest"),
            ("min", "defaultRequest"),
        ] {
            for (name, amount) in value::get_object(limit, &[from])
                .cloned()
                .unwrap_or_default()
            {
                put(limit, &[to, &name], amount);
            }
        }
    });
}
