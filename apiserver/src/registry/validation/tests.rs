//! Validation as data: a type, an object that is defaulted first, and the errors in upstream's words.

use keelson_machinery::schema::{Schema, apply_defaults, normalize};
use keelson_machinery::status::field::FieldError;
use keelson_machinery::value::Value;
use serde_json::json;

use super::{changes, object, rows};
use crate::registry::defaults;
use crate::registry::plan::short_name;

fn find(name: &str) -> &'static keelson_machinery::schema::Type {
    let schema = Schema::builtin();
    schema
        .lookup(&format!("io.k8s.api.{name}"))
        .or_else(|| schema.lookup(&format!("io.k8s.{name}")))
        .unwrap_or_else(|| panic!("no type {name}"))
}

fn defaulted(of: &str, mut given: Value) -> Value {
    let of = find(of);
    apply_defaults(&mut given, of);
    defaults::apply(&mut given, of);
    normalize(&mut given, of);
    given
}

fn texts(found: Vec<FieldError>) -> Vec<String> {
    found.iter().map(ToString::to_string).collect()
}

#[test]
fn every_row_and_check_names_a_type_and_its_members() {
    for (of, path, _) in rows::ROWS {
        let mut at = find(of);
        for step in path.split('.') {
            let field = at
                .field(step)
                .unwrap_or_else(|| panic!("{of} has no {path}"));
            if let Some(inner) = field.kind.message() {
                at = inner;
            }
        }
    }
    for (of, _) in rows::CHECKS {
        assert_eq!(short_name(find(of)), *of);
    }
}

#[test]
fn new_objects() {
    let container = json!({"name": "c", "image": "i"});
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [container]}});
    let selector = json!({"matchLabels": {"a": "b"}});
    let pod = |spec: Value| json!({"metadata": {"name": "p"}, "spec": spec});
    let cases: Vec<(&str, Value, &[&str])> = vec![
        (
            "core.v1.Pod",
            pod(
                json!({"containers": [container], "securityContext": {"sysctls": [
                {"name": "kernel.shm_rmid_forced", "value": "1"}, {"name": "net/ipv4/x.y", "value": "1"},
                {"name": "bar..", "value": "42"}, {"name": "net/ipv4/x.y", "value": "1"}]}}),
            ),
            &[
                "spec.securityContext.sysctls[2].name: Invalid value: \"bar..\": must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$",
                "spec.securityContext.sysctls[3].name: Duplicate value: \"net/ipv4/x.y\"",
            ],
        ),
        ("core.v1.Pod", pod(json!({"containers": [container]})), &[]),
        (
            "core.v1.Pod",
            pod(json!({})),
            &["spec.containers: Required value"],
        ),
        (
            "core.v1.Pod",
            pod(json!({"containers": [{"name": "c"}]})),
            &["spec.containers[0].image: Required value"],
        ),
        (
            "core.v1.Pod",
            pod(json!({"containers": [container, container], "restartPolicy": "Sometimes"})),
            &[
                "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\"",
                "spec.containers[1].name: Duplicate value: \"c\"",
            ],
        ),
        (
            "core.v1.Pod",
            pod(
                json!({"containers": [{"name": "c", "image": "i", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]}),
            ),
            &["spec.containers[0].volumeMounts[0].name: Not found: \"v\""],
        ),
        (
            "core.v1.Pod",
            pod(json!({"containers": [{"name": "c", "image": "i",
                "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "2"}},
                "ports": [{"containerPort": 70000}],
                "env": [{"name": ""}],
                "livenessProbe": {"successThreshold": 2, "exec": {"command": ["x"]}}}]})),
            &[
                "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
                "spec.containers[0].env[0].name: Required value",
                "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
                "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
            ],
        ),
        (
            "apps.v1.Deployment",
            json!({"spec": {"selector": selector, "template": template}}),
            &[],
        ),
        (
            "apps.v1.Deployment",
            json!({"spec": {"selector": {"matchLabels": {"a": "c"}}, "template": template, "replicas": -1}}),
            &[
                "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
                "spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template `labels`",
            ],
        ),
        (
            "apps.v1.StatefulSet",
            json!({"spec": {"selector": selector, "volumeClaimTemplates": [{"metadata": {"name": "d"},
                    "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}],
                "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [
                    {"name": "c", "image": "i", "volumeMounts": [{"name": "d", "mountPath": "/d"}]}]}}}}),
            &[],
        ),
        (
            "batch.v1.CronJob",
            json!({"spec": {"schedule": "* * * *", "jobTemplate": {"spec": {"template": template}}}}),
            &[
                "spec.schedule: Invalid value: \"* * * *\": expected exactly 5 fields, found 4: [* * * *]",
                "spec.jobTemplate.spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\"",
            ],
        ),
        (
            "core.v1.ConfigMap",
            json!({"data": {"a b": "c"}}),
            &[
                "data[a b]: Invalid value: \"a b\": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')",
            ],
        ),
        (
            "core.v1.Secret",
            json!({"type": "kubernetes.io/tls", "data": {"tls.crt": ""}}),
            &["data[tls.key]: Required value"],
        ),
        (
            "core.v1.PersistentVolumeClaim",
            json!({"spec": {}}),
            &[
                "spec.accessModes: Required value: at least 1 access mode is required",
                "spec.resources[storage]: Required value",
            ],
        ),
        (
            "rbac.v1.ClusterRole",
            json!({"rules": [{"resources": ["pods"]}]}),
            &[
                "rules[0].verbs: Required value: verbs must contain at least one value",
                "rules[0].apiGroups: Required value: resource rules must supply at least one api group",
            ],
        ),
        (
            "networking.v1.Ingress",
            json!({"spec": {}}),
            &["spec: Invalid value: []: either `defaultBackend` or `rules` must be specified"],
        ),
        (
            "core.v1.Service",
            json!({"spec": {"type": "ClusterIP", "sessionAffinity": "None", "selector": {"a": "b"}}}),
            &["spec.ports: Required value"],
        ),
        (
            "core.v1.Endpoints",
            json!({"subsets": [{"addresses": [{"ip": "127.0.0.1"}], "ports": [{"port": 80}]}]}),
            &[
                "subsets[0].addresses[0].ip: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
            ],
        ),
        (
            "policy.v1.PodDisruptionBudget",
            json!({"spec": {"minAvailable": "150%", "selector": selector}}),
            &["spec.minAvailable: Invalid value: \"150%\": must not be greater than 100%"],
        ),
    ];
    for (of, given, wanted) in cases {
        let given = defaulted(of, given);
        assert_eq!(texts(object(&given, find(of))), wanted, "{of} {given}");
    }
}

#[test]
fn changed_objects() {
    let pod = |image: &str, node: &str| json!({"spec": {"containers": [{"name": "c", "image": image}], "nodeSelector": {"n": node}}});
    let cases = [
        ("", "pods", pod("a", "x"), pod("b", "x"), None),
        (
            "",
            "pods",
            pod("a", "x"),
            pod("a", "y"),
            Some("spec: Forbidden: pod updates may not change fields other than"),
        ),
        (
            "apps",
            "deployments",
            json!({"spec": {"selector": {"matchLabels": {"a": "b"}}}}),
            json!({"spec": {"selector": {"matchLabels": {"a": "c"}}}}),
            Some(
                "spec.selector: Invalid value: {\"matchLabels\":{\"a\":\"c\"}}: field is immutable",
            ),
        ),
        (
            "",
            "configmaps",
            json!({"immutable": true, "data": {"a": "b"}}),
            json!({"immutable": true, "data": {"a": "c"}}),
            Some("data: Forbidden: field is immutable when `immutable` is set"),
        ),
        (
            "",
            "secrets",
            json!({"type": "Opaque"}),
            json!({"type": "x"}),
            Some("type: Invalid value: \"x\": field is immutable"),
        ),
        (
            "",
            "persistentvolumeclaims",
            json!({"spec": {"accessModes": ["ReadWriteOnce"]}}),
            json!({"spec": {"accessModes": ["ReadWriteOnce"], "volumeName": "v"}}),
            None,
        ),
        (
            "",
            "services",
            json!({"spec": {"type": "ClusterIP", "clusterIPs": ["10.0.0.1"]}}),
            json!({"spec": {"type": "ClusterIP", "clusterIPs": ["10.0.0.2"]}}),
            Some("spec.clusterIPs[0]: Invalid value: [\"10.0.0.2\"]: may not change once set"),
        ),
        (
            "apps",
            "statefulsets",
            json!({"spec": {"serviceName": "a", "replicas": 1}}),
            json!({"spec": {"serviceName": "b", "replicas": 2}}),
            Some("spec: Forbidden: updates to statefulset spec for fields other than"),
        ),
    ];
    for (group, resource, old, new, wanted) in cases {
        let found = texts(changes(group, resource, "", &new, &old));
        match wanted {
            None => assert!(found.is_empty(), "{resource}: {found:?}"),
            Some(wanted) => assert!(
                found.len() == 1 && found[0].starts_with(wanted),
                "{resource}: {found:?}"
            ),
        }
    }
}
