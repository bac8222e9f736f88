//! The table reads whole and means what the facts say.

use serde_json::json;

use super::*;

fn ty(name: &str) -> &'static Type {
    Schema::builtin()
        .lookup(name)
        .unwrap_or_else(|| panic!("no type {name}"))
}

/// A status that is no pointer in Go is always written, others only when set.
#[test]
fn statuses_that_nothing_set() {
    for (of, want) in [
        ("resource.v1.ResourceClaim", Some(json!({}))),
        ("core.v1.Service", Some(json!({"loadBalancer": {}}))),
        ("core.v1.ConfigMap", None),
    ] {
        let of = ty(&format!("io.k8s.api.{of}"));
        assert_eq!(of.written_when_unset("status"), want, "{of:?}");
    }
}

/// Every line of the table becomes a field: no line is dropped, no number used twice.
#[test]
fn every_line_is_read() {
    let text = include_str!("types.txt");
    let lines = text
        .lines()
        .filter(|l| !l.starts_with("T ") && !l.starts_with("P "))
        .count();
    let mut fields = 0;
    for t in Schema::builtin().types() {
        fields += t.wire_fields().len();
        for f in t.wire_fields() {
            assert_eq!(
                t.field_by_number(f.number).map(|g| g.json_name),
                Some(f.json_name),
                "{t:?}"
            );
            if !f.inline {
                assert!(
                    t.field(f.json_name).is_some_and(|g| g.number == f.number),
                    "{t:?} {f:?}"
                );
            }
        }
    }
    assert_eq!(fields, lines);
}

#[test]
fn fields_carry_their_rules() {
    let spec = ty("io.k8s.api.core.v1.PodSpec");
    let containers = spec.field("containers").expect("containers");
    assert_eq!(containers.number, 2);
    assert_eq!(containers.list_type, Some(ListType::Map));
    assert_eq!(&*containers.list_keys, &["name"]);
    assert_eq!(containers.merge_key, Some("name"));
    assert!(containers.required && containers.always && !containers.pointer);
    assert!(
        spec.field("terminationGracePeriodSeconds")
            .is_some_and(|f| f.pointer)
    );
    assert_eq!(
        spec.field("restartPolicy").map(|f| f.go_type_name()),
        Some("v1.RestartPolicy".to_string())
    );
    // Inlined: in JSON the volume's sources stand beside its name, on the wire below field 2.
    let volume = ty("io.k8s.api.core.v1.Volume");
    assert!(volume.field("emptyDir").is_some() && volume.field("volumeSource").is_none());
    assert!(volume.field_by_number(2).is_some_and(|f| f.inline));
    // A type with a list as its only field.
    let extra = ty("io.k8s.api.authentication.v1.UserInfo")
        .field("extra")
        .expect("extra");
    assert!(matches!(extra.kind, Kind::Items(_)) && extra.cardinality == Cardinality::Map);
}

#[test]
fn kinds_are_found_by_group() {
    let schema = Schema::builtin();
    for (group, version, kind, want) in [
        ("", "v1", "Pod", "io.k8s.api.core.v1.Pod"),
        (
            "rbac.authorization.k8s.io",
            "v1",
            "Role",
            "io.k8s.api.rbac.v1.Role",
        ),
        (
            "apps",
            "v1",
            "DeleteOptions",
            "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions",
        ),
        (
            "internal.apiserver.k8s.io",
            "v1alpha1",
            "StorageVersion",
            "io.k8s.api.apiserverinternal.v1alpha1.StorageVersion",
        ),
        (
            "apiregistration.k8s.io",
            "v1",
            "APIService",
            "io.k8s.kube-aggregator.pkg.apis.apiregistration.v1.APIService",
        ),
    ] {
        assert_eq!(
            schema.lookup_kind(group, version, kind).map(Type::name),
            Some(want)
        );
    }
    assert_eq!(
        schema.lookup_kind("", "v1", "ObjectMeta").map(Type::name),
        None
    );
    assert_eq!(schema.lookup_kind("example.com", "v1", "Widget"), None);
}

#[test]
fn normalize_is_a_go_round_trip() {
    let mut pod = json!({
        "kind": "Pod",
        "metadata": {"name": "a", "labels": {}, "creationTimestamp": null, "generation": 0},
        "spec": {
            "containers": [{"name": "c", "stdin": false, "command": [], "ports": [{"containerPort": 1, "protocol": ""}]}],
            "hostNetwork": false, "enableServiceLinks": false, "nodeName": null, "unknown": 1
        },
        "status": {"conditions": [{"type": "Ready"}]}
    });
    normalize(&mut pod, ty("io.k8s.api.core.v1.Pod"));
    assert_eq!(
        pod,
        json!({
            "kind": "Pod",
            "metadata": {"name": "a"},
            "spec": {
                "containers": [{"name": "c", "ports": [{"containerPort": 1}], "resources": {}}],
                "enableServiceLinks": false, "unknown": 1
            },
            "status": {"conditions": [{"type": "Ready", "status": "", "lastProbeTime": null, "lastTransitionTime": null}]}
        })
    );
}

#[test]
fn declared_defaults_are_set() {
    let mut rule =
        json!({"ports": [{"port": 80}, {"port": 53, "protocol": "UDP"}], "selector": {}});
    apply_defaults(&mut rule, ty("io.k8s.api.core.v1.ServiceSpec"));
    assert_eq!(rule["ports"][0]["protocol"], "TCP");
    assert_eq!(rule["ports"][1]["protocol"], "UDP");
    let mut port = json!({"hostPort": 0});
    apply_defaults(&mut port, ty("io.k8s.api.core.v1.ContainerPort"));
    assert_eq!(port, json!({"hostPort": 0, "protocol": "TCP"}));
    // An empty default of a pointer is a default too.
    let mut probe = json!({"grpc": {"port": 1}});
    apply_defaults(&mut probe, ty("io.k8s.api.core.v1.Probe"));
    assert_eq!(probe, json!({"grpc": {"port": 1, "service": ""}}));
}
