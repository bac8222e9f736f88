//! Defaults of kinds that have little else of their own, group by group (upstream's `SetDefaults_*`).

use keelson_machinery::value::{self, Value};
use serde_json::json;

use super::defaults::{for_items, put, put_number};

const RBAC: &str = "rbac.authorization.k8s.io";

/// `HorizontalPodAutoscaler` of `autoscaling/v2`.
pub fn autoscaler(object: &mut Value) {
    put(object, &["spec", "minReplicas"], 1);
    if value::items(object, &["spec", "metrics"]).is_empty() {
        value::set(
            object,
            &["spec", "metrics"],
            json!([{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]),
        );
    }
    if value::get(object, &["spec", "behavior"]).is_none() {
        return;
    }
    if value::get(object, &["spec", "behavior", "scaleUp"]).is_none() {
        value::set(object, &["spec", "behavior", "scaleUp"], json!({}));
    }
    put(
        object,
        &["spec", "behavior", "scaleUp", "stabilizationWindowSeconds"],
        0,
    );
    put(
        object,
        &["spec", "behavior", "scaleUp", "policies"],
        json!([{"type": "Pods", "value": 4, "periodSeconds": 15}, {"type": "Percent", "value": 100, "periodSeconds": 15}]),
    );
    put(
        object,
        &["spec", "behavior", "scaleDown", "policies"],
        json!([{"type": "Percent", "value": 100, "periodSeconds": 15}]),
    );
    for side in ["scaleUp", "scaleDown"] {
        put(object, &["spec", "behavior", side, "selectPolicy"], "Max");
    }
}

/// Network policies: which directions they are about.
pub fn network_policy(object: &mut Value) {
    for list in ["ingress", "egress"] {
        for_items(object, &["spec", list], |rule| {
            for_items(rule, &["ports"], |port| put(port, &["protocol"], "TCP"));
        });
    }
    if value::items(object, &["spec", "policyTypes"]).is_empty() {
        let egress = !value::items(object, &["spec", "egress"]).is_empty();
        let types = if egress {
            json!(["Ingress", "Egress"])
        } else {
            json!(["Ingress"])
        };
        value::set(object, &["spec", "policyTypes"], types);
    }
}

/// Ingress classes: parameters are of the cluster.
pub fn ingress_class(object: &mut Value) {
    if value::get(object, &["spec", "parameters"]).is_some() {
        put(object, &["spec", "parameters", "scope"], "Cluster");
    }
}

/// Role bindings of both kinds.
pub fn binding(object: &mut Value) {
    put(object, &["roleRef", "apiGroup"], RBAC);
    for_items(object, &["subjects"], |subject| {
        if matches!(value::str_or_empty(subject, &["kind"]), "User" | "Group") {
            put(subject, &["apiGroup"], RBAC);
        }
    });
}

/// Storage classes.
pub fn storage_class(object: &mut Value) {
    put(object, &["reclaimPolicy"], "Delete");
    put(object, &["volumeBindingMode"], "Immediate");
}

/// CSI drivers.
pub fn csi_driver(object: &mut Value) {
    put(object, &["spec", "attachRequired"], true);
    for field in [
        "podInfoOnMount",
        "storageCapacity",
        "requiresRepublish",
        "seLinuxMount",
    ] {
        put(object, &["spec", field], false);
    }
    put(
        object,
        &["spec", "fsGroupPolicy"],
        "ReadWriteOnceWithFSType",
    );
    put(
        object,
        &["spec", "volumeLifecycleModes"],
        json!(["Persistent"]),
    );
}

/// Priority classes.
pub fn priority_class(object: &mut Value) {
    put(object, &["preemptionPolicy"], "PreemptLowerPriority");
}

/// Endpoint slices: every port has a name, if an empty one, and a protocol.
pub fn endpoint_slice(object: &mut Value) {
    for_items(object, &["ports"], |port| {
        if value::get(port, &["name"]).is_none() {
            value::set(port, &["name"], "");
        }
        put(port, &["protocol"], "TCP");
    });
}

/// Validating and mutating webhook configurations.
pub fn webhooks(object: &mut Value) {
    let mutating = value::str_or_empty(object, &["kind"]) == "MutatingWebhookConfiguration";
    for_items(object, &["webhooks"], |webhook| {
        put(webhook, &["failurePolicy"], "Fail");
        put(webhook, &["matchPolicy"], "Equivalent");
        put(webhook, &["namespaceSelector"], json!({}));
        put(webhook, &["objectSelector"], json!({}));
        put_number(webhook, &["timeoutSeconds"], 10);
        if mutating {
            put(webhook, &["reinvocationPolicy"], "Never");
        }
        for_items(webhook, &["rules"], |rule| put(rule, &["scope"], "*"));
        if value::get(webhook, &["clientConfig", "service"]).is_some() {
            put_number(webhook, &["clientConfig", "service", "port"], 443);
        }
    });
}

/// Admission policies of both kinds.
pub fn admission_policy(object: &mut Value) {
    put(object, &["spec", "failurePolicy"], "Fail");
    if value::get(object, &["spec", "matchConstraints"]).is_some() {
        match_resources(object, "matchConstraints");
    }
}

/// Bindings of admission policies.
pub fn admission_policy_binding(object: &mut Value) {
    if value::get(object, &["spec", "matchResources"]).is_some() {
        match_resources(object, "matchResources");
    }
}

fn match_resources(object: &mut Value, field: &str) {
    put(object, &["spec", field, "matchPolicy"], "Equivalent");
    put(object, &["spec", field, "namespaceSelector"], json!({}));
    put(object, &["spec", field, "objectSelector"], json!({}));
    for list in ["resourceRules", "excludeResourceRules"] {
        for_items(object, &["spec", field, list], |rule| {
            put(rule, &["scope"], "*")
        });
    }
}
