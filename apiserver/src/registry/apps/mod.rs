//! Defaults of the workloads of `apps` (upstream `pkg/apis/apps/v1/defaults.go`).

use keelson_machinery::value::{self, Value};

use super::core::{more, pod_defaults};
use super::defaults::{for_items, put};

/// `SetDefaults_Deployment`.
pub fn deployment(object: &mut Value) {
    put(object, &["spec", "replicas"], 1);
    put(object, &["spec", "strategy", "type"], "RollingUpdate");
    if value::str_or_empty(object, &["spec", "strategy", "type"]) == "RollingUpdate" {
        put(
            object,
            &["spec", "strategy", "rollingUpdate", "maxUnavailable"],
            "25%",
        );
        put(
            object,
            &["spec", "strategy", "rollingUpdate", "maxSurge"],
            "25%",
        );
    }
    put(object, &["spec", "revisionHistoryLimit"], 10);
    put(object, &["spec", "progressDeadlineSeconds"], 600);
    pod_defaults::template(object);
}

/// `SetDefaults_ReplicaSet`.
pub fn replica_set(object: &mut Value) {
    put(object, &["spec", "replicas"], 1);
    pod_defaults::template(object);
}

/// `SetDefaults_DaemonSet`.
pub fn daemon_set(object: &mut Value) {
    put(object, &["spec", "updateStrategy", "type"], "RollingUpdate");
    if value::str_or_empty(object, &["spec", "updateStrategy", "type"]) == "RollingUpdate" {
        put(
            object,
            &["spec", "updateStrategy", "rollingUpdate", "maxUnavailable"],
            1,
        );
        put(
            object,
            &["spec", "updateStrategy", "rollingUpdate", "maxSurge"],
            0,
        );
    }
    put(object, &["spec", "revisionHistoryLimit"], 10);
    pod_defaults::template(object);
}

/// `SetDefaults_StatefulSet`.
pub fn stateful_set(object: &mut Value) {
    put(object, &["spec", "podManagementPolicy"], "OrderedReady");
    put(object, &["spec", "updateStrategy", "type"], "RollingUpdate");
    if value::str_or_empty(object, &["spec", "updateStrategy", "type"]) == "RollingUpdate" {
        put(
            object,
            &["spec", "updateStrategy", "rollingUpdate", "partition"],
            0,
        );
    }
    let retention = "persistentVolumeClaimRetentionPolicy";
    put(object, &["spec", retention, "whenDeleted"], "Retain");
    put(object, &["spec", retention, "whenScaled"], "Retain");
    put(object, &["spec", "replicas"], 1);
    put(object, &["spec", "revisionHistoryLimit"], 10);
    for_items(object, &["spec", "volumeClaimTemplates"], more::claim);
    pod_defaults::template(object);
}
