//! What an update may not change (upstream's `Validate*Update`).

use keelson_machinery::meta::validate::immutable;
use keelson_machinery::quantity::Quantity;
use keelson_machinery::status::field::{FieldError, Path};
use keelson_machinery::value::{self, Object, Value};

use super::{Found, pod_update};

/// Group, resource, and a path that stays as it was created.
const IMMUTABLE: &[(&str, &str, &str)] = &[
    ("", "secrets", "type"),
    ("", "resourcequotas", "spec.scopes"),
    ("", "persistentvolumes", "spec.volumeMode"),
    ("apps", "controllerrevisions", "data"),
    ("apps", "daemonsets", "spec.selector"),
    ("apps", "deployments", "spec.selector"),
    ("apps", "replicasets", "spec.selector"),
    ("batch", "jobs", "spec.selector"),
    ("batch", "jobs", "spec.completionMode"),
    ("batch", "jobs", "spec.podFailurePolicy"),
    ("batch", "jobs", "spec.backoffLimitPerIndex"),
    ("batch", "jobs", "spec.managedBy"),
    ("batch", "jobs", "spec.successPolicy"),
    ("discovery.k8s.io", "endpointslices", "addressType"),
    ("networking.k8s.io", "ingressclasses", "spec.controller"),
    ("node.k8s.io", "runtimeclasses", "handler"),
    ("resource.k8s.io", "resourceclaims", "spec"),
    ("resource.k8s.io", "resourceclaimtemplates", "spec"),
    ("scheduling.k8s.io", "priorityclasses", "preemptionPolicy"),
    ("storage.k8s.io", "csidrivers", "spec.attachRequired"),
    ("storage.k8s.io", "csidrivers", "spec.volumeLifecycleModes"),
    ("storage.k8s.io", "storageclasses", "volumeBindingMode"),
    ("storage.k8s.io", "volumeattachments", "spec"),
];

/// The same, with upstream's own words.
const FORBIDDEN: &[(&str, &str, &str, &str)] = &[
    (
        "scheduling.k8s.io",
        "priorityclasses",
        "value",
        "may not be changed in an update.",
    ),
    (
        "storage.k8s.io",
        "storageclasses",
        "parameters",
        "updates to parameters are forbidden.",
    ),
    (
        "storage.k8s.io",
        "storageclasses",
        "provisioner",
        "updates to provisioner are forbidden.",
    ),
    (
        "storage.k8s.io",
        "storageclasses",
        "reclaimPolicy",
        "updates to reclaimPolicy are forbidden.",
    ),
];

fn path_of(dotted: &str) -> Path {
    dotted
        .split('.')
        .fold(Path::root(), |path, name| path.child(name))
}

fn at<'a>(object: &'a Value, dotted: &str) -> &'a Value {
    let path: Vec<&str> = dotted.split('.').collect();
    value::get(object, &path).unwrap_or(&Value::Null)
}

fn same(object: &Value, old: &Value, dotted: &str) -> bool {
    value::semantic_eq(Some(at(object, dotted)), Some(at(old, dotted)))
}

/// What is wrong with the change from `old` to `object`, which is not one of the status.
pub fn changes(
    group: &str,
    resource: &str,
    subresource: &str,
    object: &Value,
    old: &Value,
) -> Found {
    let mut found = Found::new();
    for (_, _, dotted) in IMMUTABLE
        .iter()
        .filter(|row| (row.0, row.1) == (group, resource))
    {
        found.extend(immutable(
            &path_of(dotted),
            at(object, dotted),
            at(old, dotted),
        ));
    }
    for (_, _, dotted, words) in FORBIDDEN
        .iter()
        .filter(|row| (row.0, row.1) == (group, resource))
    {
        if !same(object, old, dotted) {
            found.push(FieldError::forbidden(&path_of(dotted), *words));
        }
    }
    match (group, resource) {
        ("", "pods") => pod_update::changes(subresource, object, old, &mut found),
        ("", "configmaps" | "secrets") => data(object, old, &mut found),
        ("", "nodes") => node(object, old, &mut found),
        ("", "services") => service(object, old, &mut found),
        ("", "persistentvolumeclaims") => claim(object, old, &mut found),
        ("", "persistentvolumes") => volume(object, old, &mut found),
        ("apps", "statefulsets") => stateful_set(object, old, &mut found),
        ("batch", "jobs") => job(object, old, &mut found),
        ("rbac.authorization.k8s.io", "rolebindings" | "clusterrolebindings")
            if !same(object, old, "roleRef") =>
        {
            found.push(FieldError::invalid(
                &Path::new("roleRef"),
                at(object, "roleRef").clone(),
                "cannot change roleRef",
            ));
        }
        _ => {}
    }
    found
}

/// Config maps and secrets that were made immutable.
fn data(object: &Value, old: &Value, found: &mut Found) {
    const WORDS: &str = "field is immutable when `immutable` is set";
    if value::get_bool(old, &["immutable"]) != Some(true) {
        return;
    }
    if value::get_bool(object, &["immutable"]) != Some(true) {
        found.push(FieldError::forbidden(&Path::new("immutable"), WORDS));
    }
    for name in ["data", "binaryData"] {
        if !same(object, old, name) {
            found.push(FieldError::forbidden(&Path::new(name), WORDS));
        }
    }
}

/// `ValidateNodeUpdate`.
fn node(object: &Value, old: &Value, found: &mut Found) {
    if !value::items(old, &["spec", "podCIDRs"]).is_empty() && !same(object, old, "spec.podCIDRs") {
        found.push(FieldError::forbidden(
            &path_of("spec.podCIDRs"),
            "node updates may not change podCIDR except from \"\" to valid",
        ));
    }
    if !value::str_or_empty(old, &["spec", "providerID"]).is_empty()
        && !same(object, old, "spec.providerID")
    {
        found.push(FieldError::forbidden(
            &path_of("spec.providerID"),
            "node updates may not change providerID except from \"\" to valid",
        ));
    }
}

/// `validateUpgradeDowngradeClusterIPs`, `validateLoadBalancerClassField`.
fn service(object: &Value, old: &Value, found: &mut Found) {
    const FIXED: &str = "may not change once set";
    let kind = |service| value::str_or_empty(service, &["spec", "type"]);
    let balanced = |service| kind(service) == "LoadBalancer";
    if balanced(object) && balanced(old) && !same(object, old, "spec.loadBalancerClass") {
        found.push(FieldError::invalid(
            &path_of("spec.loadBalancerClass"),
            at(object, "spec.loadBalancerClass").clone(),
            FIXED,
        ));
    }
    if kind(object) == "ExternalName" || kind(old) == "ExternalName" {
        return;
    }
    let (new, before) = (
        value::items(object, &["spec", "clusterIPs"]),
        value::items(old, &["spec", "clusterIPs"]),
    );
    let path = path_of("spec.clusterIPs");
    if new.is_empty() && !before.is_empty() {
        found.push(FieldError::invalid(
            &path.index(0),
            Value::from(new),
            "primary clusterIP can not be unset",
        ));
    }
    for (index, (new_ip, old_ip)) in new.iter().zip(before).enumerate() {
        // Of lists of different length only the first address is compared.
        if new_ip != old_ip && (index == 0 || new.len() == before.len()) {
            found.push(FieldError::invalid(
                &path.index(index),
                Value::from(new),
                FIXED,
            ));
        }
    }
    let single = value::get_str(object, &["spec", "ipFamilyPolicy"]) == Some("SingleStack");
    if new.len() == 1 && before.len() > 1 && !single {
        found.push(FieldError::invalid(
            &path_of("spec.ipFamilyPolicy"),
            at(object, "spec.ipFamilyPolicy").clone(),
            "must be set to 'SingleStack' when releasing the secondary clusterIP",
        ));
    }
}

/// `ValidatePersistentVolumeClaimUpdate`.
fn claim(object: &Value, old: &Value, found: &mut Found) {
    let mut spec = at(object, "spec").clone();
    let mut keep = |path: &[&str]| {
        let full: Vec<&str> = std::iter::once("spec")
            .chain(path.iter().copied())
            .collect();
        match value::get(old, &full).cloned() {
            Some(kept) => {
                value::set(&mut spec, path, kept);
            }
            None => {
                value::remove(&mut spec, path);
            }
        }
    };
    if value::str_or_empty(old, &["spec", "volumeName"]).is_empty() {
        keep(&["volumeName"]);
    }
    // A class may be set once, where none was asked for.
    if at(old, "spec.storageClassName").is_null() {
        keep(&["storageClassName"]);
    }
    if value::str_or_empty(object, &["status", "phase"]) == "Bound" {
        if value::get(object, &["spec", "resources", "requests"]).is_some() {
            keep(&["resources", "requests", "storage"]);
        }
        keep(&["volumeAttributesClassName"]);
    }
    if !value::semantic_eq(Some(&spec), Some(at(old, "spec"))) {
        found.push(FieldError::forbidden(
            &Path::new("spec"),
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n",
        ));
    }
    let amount = |object: &Value, path: &[&str]| {
        Quantity::parse(value::str_or_empty(object, path)).unwrap_or(Quantity::new(
            0,
            keelson_machinery::quantity::Format::BinarySi,
        ))
    };
    let requested = ["spec", "resources", "requests", "storage"];
    let (asked, before) = (amount(object, &requested), amount(old, &requested));
    if asked < before && asked <= amount(old, &["status", "capacity", "storage"]) {
        found.push(FieldError::forbidden(
            &path_of("spec.resources.requests.storage"),
            "field can not be less than status.capacity",
        ));
    }
}

/// Members of a volume's spec that may change, or are checked apart.
const MUTABLE_OF_VOLUME: &[&str] = &[
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
];

/// `ValidatePersistentVolumeUpdate`: the source stays.
fn volume(object: &Value, old: &Value, found: &mut Found) {
    let source = |object: &Value| -> Object {
        at(object, "spec")
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(name, _)| !MUTABLE_OF_VOLUME.contains(&name.as_str()))
            .map(|(name, member)| (name.clone(), member.clone()))
            .collect()
    };
    if source(object) != source(old) {
        found.push(FieldError::forbidden(
            &path_of("spec.persistentvolumesource"),
            "spec.persistentvolumesource is immutable after creation\n",
        ));
    }
}

/// Members of a StatefulSet's spec that may change.
const MUTABLE_OF_STATEFUL_SET: &[&str] = &[
    "replicas",
    "template",
    "updateStrategy",
    "minReadySeconds",
    "ordinals",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
];

/// `ValidateStatefulSetUpdate`.
fn stateful_set(object: &Value, old: &Value, found: &mut Found) {
    let fixed = |object: &Value| -> Object {
        at(object, "spec")
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(name, member)| {
                !MUTABLE_OF_STATEFUL_SET.contains(&name.as_str()) && !value::is_empty(member)
            })
            .map(|(name, member)| (name.clone(), member.clone()))
            .collect()
    };
    if fixed(object) != fixed(old) {
        found.push(FieldError::forbidden(
            &Path::new("spec"),
            "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
        ));
    }
}

/// `ValidateJobSpecUpdate`: completions of an indexed job move with its parallelism, and the template only while the
/// job is suspended and runs nothing.
fn job(object: &Value, old: &Value, found: &mut Found) {
    let completions = "spec.completions";
    if !same(object, old, completions) {
        let indexed = value::get_str(object, &["spec", "completionMode"]) == Some("Indexed");
        let path = path_of(completions);
        if !indexed {
            found.extend(immutable(
                &path,
                at(object, completions),
                at(old, completions),
            ));
        } else if !value::semantic_eq(
            Some(at(object, completions)),
            Some(at(object, "spec.parallelism")),
        ) {
            found.push(FieldError::invalid(
                &path,
                at(object, completions).clone(),
                "can only be modified in tandem with spec.parallelism",
            ));
        }
    }
    let suspended = value::get_bool(old, &["spec", "suspend"]) == Some(true);
    let stopped = value::items(old, &["status", "conditions"])
        .iter()
        .any(|c| {
            c.get("type").is_some_and(|t| t == "Suspended")
                && c.get("status").is_some_and(|s| s == "True")
        });
    let idle = value::get(old, &["status", "startTime"]).is_none() || stopped;
    let active = value::get_i64(old, &["status", "active"]).unwrap_or(0);
    let mut allowed = at(old, "spec.template").clone();
    let template = at(object, "spec.template");
    if suspended && idle && active == 0 {
        for path in [
            &["metadata", "labels"][..],
            &["metadata", "annotations"],
            &["spec", "nodeSelector"],
            &["spec", "tolerations"],
            &["spec", "schedulingGates"],
            &["spec", "affinity", "nodeAffinity"],
        ] {
            match value::get(template, path).cloned() {
                Some(new) => {
                    value::set(&mut allowed, path, new);
                }
                None => {
                    value::remove(&mut allowed, path);
                }
            }
        }
        copy_resources(template, &mut allowed);
        if value::get_object(&allowed, &["spec", "affinity"]).is_some_and(Object::is_empty) {
            value::remove(&mut allowed, &["spec", "affinity"]);
        }
    }
    found.extend(immutable(&path_of("spec.template"), template, &allowed));
}

fn copy_resources(from: &Value, to: &mut Value) {
    let list = ["spec", "containers"];
    let new = value::items(from, &list);
    if let Some(containers) = value::get_mut(to, &list).and_then(Value::as_array_mut) {
        for (container, new) in containers.iter_mut().zip(new) {
            if let Some(resources) = value::get(new, &["resources"]).cloned()
                && container.get("name") == new.get("name")
            {
                value::set(container, &["resources"], resources);
            }
        }
    }
}
