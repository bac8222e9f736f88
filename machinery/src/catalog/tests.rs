//! The catalog holds what upstream serves, in upstream's order.

use super::*;

#[test]
fn rows_and_subresources() {
    let catalog = Catalog::builtin();
    let lines = include_str!("resources.tsv").lines().count() - 1;
    let found: usize = catalog
        .rows()
        .iter()
        .map(|r| 1 + r.subresources.len())
        .sum();
    assert_eq!(found, lines);
    for row in catalog.rows() {
        assert!(
            row.schema_type().is_some(),
            "{} has no type",
            row.group_resource()
        );
        for sub in &row.subresources {
            let known = Schema::builtin().lookup_kind(&sub.group, &sub.version, &sub.kind);
            assert!(known.is_some(), "{}/{} has no type", row.resource, sub.name);
        }
    }
    let pods = catalog.resource("", "v1", "pods").expect("pods");
    assert_eq!(pods.kind, "Pod");
    assert!(pods.namespaced && pods.has_verb("watch"));
    let eviction = pods.subresource("eviction").expect("eviction");
    assert_eq!(
        (eviction.group.as_str(), eviction.kind.as_str()),
        ("policy", "Eviction")
    );
    assert_eq!(
        catalog
            .kind("apps", "v1", "Deployment")
            .map(|r| r.resource.as_str()),
        Some("deployments")
    );
}

#[test]
fn storage_is_upstreams() {
    let catalog = Catalog::builtin();
    for (group, version, resource, key, stored) in [
        ("", "v1", "pods", "/registry/pods/ns/x", "v1"),
        ("", "v1", "services", "/registry/services/specs/ns/x", "v1"),
        (
            "",
            "v1",
            "endpoints",
            "/registry/services/endpoints/ns/x",
            "v1",
        ),
        (
            "events.k8s.io",
            "v1",
            "events",
            "/registry/events/ns/x",
            "v1",
        ),
        (
            "autoscaling",
            "v1",
            "horizontalpodautoscalers",
            "/registry/horizontalpodautoscalers/ns/x",
            "autoscaling/v2",
        ),
        (
            "networking.k8s.io",
            "v1",
            "ingresses",
            "/registry/ingress/ns/x",
            "networking.k8s.io/v1",
        ),
        (
            "coordination.k8s.io",
            "v1",
            "leases",
            "/registry/leases/ns/x",
            "coordination.k8s.io/v1",
        ),
        (
            "resource.k8s.io",
            "v1beta1",
            "resourceclaims",
            "/registry/resourceclaims/ns/x",
            "resource.k8s.io/v1",
        ),
    ] {
        let row = catalog.resource(group, version, resource).expect(resource);
        assert_eq!(row.storage.key(Some("ns"), Some("x")), key);
        assert_eq!(
            api_version(&row.storage.group, &row.storage.version),
            stored,
            "{resource}"
        );
    }
    let nodes = catalog.resource("", "v1", "nodes").expect("nodes");
    assert_eq!(nodes.storage.key(None, Some("a")), "/registry/minions/a");
    let services = catalog
        .resource("apiregistration.k8s.io", "v1", "apiservices")
        .expect("apiservices");
    assert_eq!(
        services.storage.key(None, None),
        "/registry/apiregistration.k8s.io/apiservices/"
    );
    // What is stored must be a type that can be encoded.
    for row in catalog.rows() {
        let s = &row.storage;
        assert!(
            Schema::builtin()
                .lookup_kind(&s.group, &s.version, &s.kind)
                .is_some(),
            "{s:?}"
        );
    }
}

#[test]
fn discovery_order() {
    let groups = Catalog::builtin().groups();
    let names: Vec<&str> = groups.iter().map(|g| g.name.as_str()).collect();
    assert_eq!(
        &names[..5],
        &[
            "apiregistration.k8s.io",
            "",
            "apps",
            "events.k8s.io",
            "authentication.k8s.io"
        ]
    );
    let versions = |name: &str| -> Vec<String> {
        groups
            .iter()
            .find(|g| g.name == name)
            .map(|g| g.versions.clone())
            .unwrap_or_default()
    };
    assert_eq!(versions("autoscaling"), ["v2", "v1"]);
    assert_eq!(
        versions("resource.k8s.io"),
        ["v1", "v1beta2", "v1beta1", "v1alpha3"]
    );
    assert_eq!(
        Catalog::builtin().preferred_version("batch").as_deref(),
        Some("v1")
    );
}

#[test]
fn version_names_compare_as_upstream() {
    let mut versions = [
        "foo10",
        "v1",
        "v11alpha2",
        "v2",
        "v10beta3",
        "foo1",
        "v3beta1",
        "v10",
        "v11beta2",
    ];
    versions.sort_by(|a, b| storage::compare_versions(b, a));
    assert_eq!(
        versions,
        [
            "v10",
            "v2",
            "v1",
            "v11beta2",
            "v10beta3",
            "v3beta1",
            "v11alpha2",
            "foo1",
            "foo10"
        ]
    );
}

#[test]
fn rows_come_and_go() {
    let mut catalog = Catalog::builtin().clone();
    let count = catalog.rows().len();
    let mut row = (**catalog.resource("", "v1", "pods").expect("pods")).clone();
    row.group = "example.com".to_string();
    row.storage = StorageFacts::custom("example.com", "v1", "pods", "Pod");
    catalog.insert(Arc::new(row.clone()));
    catalog.insert(Arc::new(row));
    assert_eq!(catalog.rows().len(), count + 1);
    assert_eq!(
        catalog.groups().last().map(|g| g.name.clone()).as_deref(),
        Some("example.com")
    );
    assert!(catalog.remove("example.com", "v1", "pods").is_some());
    assert!(catalog.resource("example.com", "v1", "pods").is_none());
    assert!(catalog.kind("", "v1", "Pod").is_some());
}

#[test]
fn columns_of_pods() {
    let columns = columns("pod").expect("pod");
    assert_eq!((columns[0].name, columns[0].format), ("Name", "name"));
    assert_eq!(columns.iter().filter(|c| c.priority == 0).count(), 5);
}
