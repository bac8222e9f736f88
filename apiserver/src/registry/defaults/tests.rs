//! Defaults as data: a kind, an object, and what stands at some paths of it afterwards.

use keelson_machinery::schema::{Schema, apply_defaults};
use keelson_machinery::value::Value;
use serde_json::{Value as Json, json};

use super::{apply, hooks, resolve, rows};

fn defaulted(type_name: &str, object: Value) -> Value {
    let of = Schema::builtin()
        .lookup(&format!("io.k8s.api.{type_name}"))
        .unwrap_or_else(|| panic!("no type {type_name}"));
    let mut once = object;
    apply_defaults(&mut once, of);
    apply(&mut once, of);
    let mut twice = once.clone();
    apply(&mut twice, of);
    assert_eq!(
        once, twice,
        "{type_name}: defaulting again changes something"
    );
    once
}

#[test]
fn every_row_and_hook_names_a_type_and_its_members() {
    let schema = Schema::builtin();
    let find = |name: &str| {
        schema
            .lookup(&format!("io.k8s.api.{name}"))
            .or_else(|| schema.lookup(&format!("io.k8s.{name}")))
            .unwrap_or_else(|| panic!("no type {name}"))
    };
    for (of, path, default) in rows::ROWS {
        assert!(
            resolve(find(of), path, default).is_some(),
            "{of} {path} {default}"
        );
    }
    for (of, _) in rows::HOOKS {
        find(of);
    }
}

/// A type, an object, and what stands at paths of it afterwards.
type Case<'a> = (&'a str, Json, &'a [(&'a str, Json)]);

#[test]
fn defaults_of_kinds() {
    let container = json!({"name": "c", "image": "nginx"});
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [container]}});
    let cases: &[Case] = &[
        (
            "core.v1.Pod",
            json!({"spec": {"hostNetwork": true, "containers": [{
                "name": "c", "image": "i:1", "ports": [{"containerPort": 80}],
                "resources": {"limits": {"cpu": "0.0001", "memory": "1Gi"}},
                "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                "livenessProbe": {"httpGet": {"port": 80}}}],
                "volumes": [{"name": "v"}, {"name": "s", "secret": {"secretName": "x"}},
                    {"name": "p", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]}}),
            &[
                ("/spec/dnsPolicy", json!("ClusterFirst")),
                ("/spec/enableServiceLinks", json!(true)),
                ("/spec/securityContext", json!({})),
                ("/spec/containers/0/imagePullPolicy", json!("IfNotPresent")),
                ("/spec/containers/0/ports/0/hostPort", json!(80)),
                ("/spec/containers/0/ports/0/protocol", json!("TCP")),
                ("/spec/containers/0/resources/requests/cpu", json!("1m")),
                ("/spec/containers/0/resources/requests/memory", json!("1Gi")),
                (
                    "/spec/containers/0/env/0/valueFrom/fieldRef/apiVersion",
                    json!("v1"),
                ),
                (
                    "/spec/containers/0/livenessProbe/failureThreshold",
                    json!(3),
                ),
                (
                    "/spec/containers/0/livenessProbe/httpGet/scheme",
                    json!("HTTP"),
                ),
                ("/spec/volumes/0/emptyDir", json!({})),
                ("/spec/volumes/1/secret/defaultMode", json!(420)),
                (
                    "/spec/volumes/2/projected/sources/0/serviceAccountToken/expirationSeconds",
                    json!(3600),
                ),
            ],
        ),
        (
            "core.v1.Pod",
            json!({"spec": {"resources": {"limits": {"cpu": "2", "memory": "1Gi"}}, "containers": [
                {"name": "a", "resources": {"requests": {"cpu": "500m"}}},
                {"name": "b", "resources": {"requests": {"cpu": "700m"}}}]}}),
            &[
                ("/spec/resources/requests/cpu", json!("1200m")),
                ("/spec/resources/requests/memory", json!("1Gi")),
            ],
        ),
        (
            "apps.v1.Deployment",
            json!({"spec": {"template": template}}),
            &[
                ("/spec/replicas", json!(1)),
                (
                    "/spec/strategy",
                    json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}}),
                ),
                (
                    "/spec/template/spec/containers/0/imagePullPolicy",
                    json!("Always"),
                ),
                ("/spec/template/spec/enableServiceLinks", Json::Null),
                ("/spec/progressDeadlineSeconds", json!(600)),
            ],
        ),
        (
            "apps.v1.Deployment",
            json!({"spec": {"replicas": 0, "strategy": {"type": "Recreate"}, "template": template}}),
            &[
                ("/spec/replicas", json!(0)),
                ("/spec/strategy", json!({"type": "Recreate"})),
            ],
        ),
        (
            "apps.v1.StatefulSet",
            json!({"spec": {"template": template, "volumeClaimTemplates": [{"metadata": {"name": "d"}, "spec": {}}]}}),
            &[
                (
                    "/spec/updateStrategy",
                    json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}),
                ),
                (
                    "/spec/persistentVolumeClaimRetentionPolicy",
                    json!({"whenDeleted": "Retain", "whenScaled": "Retain"}),
                ),
                (
                    "/spec/volumeClaimTemplates/0/kind",
                    json!("PersistentVolumeClaim"),
                ),
                (
                    "/spec/volumeClaimTemplates/0/status/phase",
                    json!("Pending"),
                ),
            ],
        ),
        (
            "apps.v1.StatefulSet",
            json!({"spec": {"updateStrategy": {"type": "RollingUpdate"}}}),
            &[("/spec/updateStrategy", json!({"type": "RollingUpdate"}))],
        ),
        (
            "apps.v1.DaemonSet",
            json!({"spec": {"template": template}}),
            &[(
                "/spec/updateStrategy/rollingUpdate",
                json!({"maxSurge": 0, "maxUnavailable": 1}),
            )],
        ),
        (
            "batch.v1.Job",
            json!({"spec": {"template": template}}),
            &[
                ("/spec/completions", json!(1)),
                ("/spec/backoffLimit", json!(6)),
                ("/spec/completionMode", json!("NonIndexed")),
                ("/spec/podReplacementPolicy", json!("TerminatingOrFailed")),
                ("/metadata/labels", json!({"a": "b"})),
            ],
        ),
        (
            "batch.v1.Job",
            json!({"spec": {"parallelism": 2}}),
            &[("/spec/completions", Json::Null)],
        ),
        (
            "batch.v1.CronJob",
            json!({"spec": {"jobTemplate": {"spec": {"template": template}}}}),
            &[
                ("/spec/concurrencyPolicy", json!("Allow")),
                ("/spec/jobTemplate/spec/backoffLimit", Json::Null),
                (
                    "/spec/jobTemplate/spec/template/spec/schedulerName",
                    json!("default-scheduler"),
                ),
            ],
        ),
        (
            "core.v1.Secret",
            json!({"data": {"a": "eA=="}, "stringData": {"a": "y"}}),
            &[
                ("/data/a", json!("eQ==")),
                ("/type", json!("Opaque")),
                ("/stringData", Json::Null),
            ],
        ),
        (
            "rbac.v1.RoleBinding",
            json!({"roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "name": "s"}]}),
            &[
                ("/roleRef/apiGroup", json!("rbac.authorization.k8s.io")),
                ("/subjects/0/apiGroup", json!("rbac.authorization.k8s.io")),
                ("/subjects/1/apiGroup", Json::Null),
            ],
        ),
        (
            "admissionregistration.v1.ValidatingWebhookConfiguration",
            json!({"webhooks": [{"name": "w", "clientConfig": {"service": {"name": "s", "namespace": "n"}}, "rules": [{"resources": ["*"]}]}]}),
            &[
                ("/webhooks/0/timeoutSeconds", json!(10)),
                ("/webhooks/0/rules/0/scope", json!("*")),
                ("/webhooks/0/clientConfig/service/port", json!(443)),
            ],
        ),
        (
            "autoscaling.v2.HorizontalPodAutoscaler",
            json!({"spec": {"behavior": {"scaleDown": {"stabilizationWindowSeconds": 5}}}}),
            &[
                ("/spec/minReplicas", json!(1)),
                ("/spec/metrics/0/resource/name", json!("cpu")),
                (
                    "/spec/behavior/scaleUp/stabilizationWindowSeconds",
                    json!(0),
                ),
                ("/spec/behavior/scaleDown/selectPolicy", json!("Max")),
            ],
        ),
        (
            "networking.v1.NetworkPolicy",
            json!({"spec": {"egress": [{"ports": [{"port": 53}]}]}}),
            &[
                ("/spec/policyTypes", json!(["Ingress", "Egress"])),
                ("/spec/egress/0/ports/0/protocol", json!("TCP")),
            ],
        ),
        (
            "core.v1.LimitRange",
            json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "1Mi"}}]}}),
            &[
                ("/spec/limits/0/default", json!({"cpu": "2"})),
                (
                    "/spec/limits/0/defaultRequest",
                    json!({"cpu": "2", "memory": "1Mi"}),
                ),
            ],
        ),
    ];
    for (of, object, wanted) in cases {
        let found = defaulted(of, object.clone());
        for (path, wanted) in *wanted {
            let at = found.pointer(path).unwrap_or(&Json::Null);
            assert_eq!(at, wanted, "{of} {path} in {found}");
        }
    }
}

#[test]
fn tags_of_images() {
    for (image, wanted) in [
        ("nginx", "latest"),
        ("nginx:1", "1"),
        ("host:5000/nginx", "latest"),
        ("host:5000/nginx:2", "2"),
        ("nginx@sha256:0", ""),
        ("nginx:latest@sha256:0", "latest"),
        ("Registry/nginx", "latest"),
        ("NGINX", ""),
        ("", ""),
    ] {
        assert_eq!(hooks::image_tag(image), wanted, "{image}");
    }
}
