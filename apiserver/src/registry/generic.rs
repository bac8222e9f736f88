//! What upstream's plain strategies do, as functions over the catalog row and small lists; the defaults of
//! [`super::strategy::Strategy`].

use keelson_machinery::catalog::Resource;
use keelson_machinery::meta::{NameRule, names};
use keelson_machinery::value::{self, Object, Value};

use super::strategy::Context;

/// Group and resource of the kinds whose `metadata.generation` upstream's strategies maintain.
const WITH_GENERATION: &[(&str, &str)] = &[
    ("", "pods"),
    ("", "podtemplates"),
    ("", "replicationcontrollers"),
    ("admissionregistration.k8s.io", "mutatingadmissionpolicies"),
    (
        "admissionregistration.k8s.io",
        "mutatingadmissionpolicybindings",
    ),
    (
        "admissionregistration.k8s.io",
        "mutatingwebhookconfigurations",
    ),
    (
        "admissionregistration.k8s.io",
        "validatingadmissionpolicies",
    ),
    (
        "admissionregistration.k8s.io",
        "validatingadmissionpolicybindings",
    ),
    (
        "admissionregistration.k8s.io",
        "validatingwebhookconfigurations",
    ),
    ("apiextensions.k8s.io", "customresourcedefinitions"),
    ("apps", "daemonsets"),
    ("apps", "deployments"),
    ("apps", "replicasets"),
    ("apps", "statefulsets"),
    ("batch", "cronjobs"),
    ("batch", "jobs"),
    ("discovery.k8s.io", "endpointslices"),
    ("flowcontrol.apiserver.k8s.io", "flowschemas"),
    (
        "flowcontrol.apiserver.k8s.io",
        "prioritylevelconfigurations",
    ),
    ("networking.k8s.io", "ingressclasses"),
    ("networking.k8s.io", "ingresses"),
    ("networking.k8s.io", "networkpolicies"),
    ("policy", "poddisruptionbudgets"),
    ("resource.k8s.io", "deviceclasses"),
    ("resource.k8s.io", "devicetaintrules"),
    ("resource.k8s.io", "resourceslices"),
    ("scheduling.k8s.io", "priorityclasses"),
];

/// Group and resource of the kinds that PUT creates when they do not exist.
const CREATED_ON_UPDATE: &[(&str, &str)] = &[
    ("", "endpoints"),
    ("", "events"),
    ("", "limitranges"),
    ("", "services"),
    ("coordination.k8s.io", "leasecandidates"),
    ("coordination.k8s.io", "leases"),
    ("events.k8s.io", "events"),
    ("node.k8s.io", "runtimeclasses"),
    ("rbac.authorization.k8s.io", "clusterrolebindings"),
    ("rbac.authorization.k8s.io", "clusterroles"),
    ("rbac.authorization.k8s.io", "rolebindings"),
    ("rbac.authorization.k8s.io", "roles"),
];

/// Group and resource of the kinds whose updates must carry a resourceVersion. Empty resource: the whole group.
const CONDITIONAL_UPDATE_ONLY: &[(&str, &str)] = &[
    ("admissionregistration.k8s.io", ""),
    ("apiextensions.k8s.io", ""),
    ("apiregistration.k8s.io", ""),
    ("certificates.k8s.io", "clustertrustbundles"),
    ("certificates.k8s.io", "podcertificaterequests"),
    ("coordination.k8s.io", ""),
    ("internal.apiserver.k8s.io", ""),
    ("node.k8s.io", ""),
    ("policy", "poddisruptionbudgets"),
    ("resource.k8s.io", "resourcepoolstatusrequests"),
    ("storage.k8s.io", "csidrivers"),
    ("storage.k8s.io", "csinodes"),
    ("storage.k8s.io", "csistoragecapacities"),
    ("storage.k8s.io", "volumeattachments"),
    ("storagemigration.k8s.io", ""),
];

/// The rule for names of a resource: those of RBAC and of API services may be anything fit for a path.
pub fn name_rule(row: &Resource) -> NameRule {
    match (row.group.as_str(), row.resource.as_str()) {
        ("rbac.authorization.k8s.io", _)
        | ("apiregistration.k8s.io", "apiservices")
        | ("networking.k8s.io", "ipaddresses")
        | ("certificates.k8s.io", "clustertrustbundles") => names::path_segment,
        ("", "namespaces" | "services") | ("apps", "statefulsets") => names::name_is_dns_label,
        _ => names::name_is_dns_subdomain,
    }
}

fn listed(list: &[(&str, &str)], row: &Resource) -> bool {
    list.iter()
        .any(|(g, r)| *g == row.group && (r.is_empty() || *r == row.resource))
}

/// Whether the server keeps `metadata.generation` for the resource.
pub fn has_generation(row: &Resource) -> bool {
    listed(WITH_GENERATION, row)
}

/// Group and resource of the kinds whose deletion answers with the object (upstream `ReturnDeletedObject`).
const RETURNS_DELETED: &[(&str, &str)] = &[
    ("", "namespaces"),
    ("", "persistentvolumeclaims"),
    ("", "persistentvolumes"),
    ("", "pods"),
    ("", "podtemplates"),
    ("", "resourcequotas"),
    ("", "serviceaccounts"),
    ("", "services"),
    ("resource.k8s.io", ""),
    ("storage.k8s.io", "csidrivers"),
    ("storage.k8s.io", "csinodes"),
    ("storage.k8s.io", "storageclasses"),
    ("storage.k8s.io", "volumeattachments"),
    ("storage.k8s.io", "volumeattributesclasses"),
];

/// Group and resource of the kinds whose status updates cannot touch labels, annotations, finalizers and owners
/// (upstream's callers of `metav1.ResetObjectMetaForStatus`). Empty resource: the whole group.
const KEEPS_METADATA_ON_STATUS: &[(&str, &str)] = &[
    (
        "admissionregistration.k8s.io",
        "validatingadmissionpolicies",
    ),
    ("apiregistration.k8s.io", "apiservices"),
    ("certificates.k8s.io", "podcertificaterequests"),
    ("flowcontrol.apiserver.k8s.io", ""),
    ("internal.apiserver.k8s.io", ""),
    ("networking.k8s.io", "servicecidrs"),
    ("resource.k8s.io", ""),
    ("scheduling.k8s.io", "podgroups"),
    ("storage.k8s.io", "volumeattachments"),
    ("storagemigration.k8s.io", ""),
];

/// Whether status updates leave the metadata as it is.
pub fn keeps_metadata_on_status(row: &Resource) -> bool {
    listed(KEEPS_METADATA_ON_STATUS, row)
}

/// Whether a DELETE answers with the object that was deleted.
pub fn returns_deleted(row: &Resource) -> bool {
    listed(RETURNS_DELETED, row)
}

/// Whether PUT creates what does not exist.
pub fn creates_on_update(row: &Resource) -> bool {
    listed(CREATED_ON_UPDATE, row)
}

/// Whether an update without resourceVersion overwrites.
pub fn updates_unconditionally(row: &Resource) -> bool {
    !listed(CONDITIONAL_UPDATE_ONLY, row)
}

/// Whether the resource has a `status` subresource.
pub fn has_status(row: &Resource) -> bool {
    row.subresources.iter().any(|s| s.name == "status")
}

/// Default of [`super::strategy::Strategy::prepare_for_create`].
pub fn prepare_for_create(context: &Context<'_>, object: &mut Value) {
    if has_status(context.row()) {
        // Most statuses are written even when empty; a JSON patch that adds below them relies on that.
        match context.served.storage_type.written_when_unset("status") {
            Some(unset) => value::set(object, &["status"], unset),
            None => value::remove(object, &["status"]).is_some(),
        };
    }
    if has_generation(context.row()) {
        value::set(object, &["metadata", "generation"], Value::from(1));
    }
}

/// Default of [`super::strategy::Strategy::prepare_for_update`].
pub fn prepare_for_update(context: &Context<'_>, object: &mut Value, old: &Value) {
    if context.subresource == "status" {
        keep_all_but_status(object, old);
        if keeps_metadata_on_status(context.row()) {
            reset_object_meta_for_status(object, old);
        }
        return;
    }
    if has_status(context.row()) {
        keep_member(object, old, "status");
    }
    if has_generation(context.row()) {
        bump_generation_if_changed(object, old);
    }
}

/// Gives `object` the top-level member `name` of `old`, or removes it when `old` has none.
pub fn keep_member(object: &mut Value, old: &Value, name: &str) {
    let Some(members) = object.as_object_mut() else {
        return;
    };
    match old.get(name) {
        Some(kept) => {
            members.insert(name.to_string(), kept.clone());
        }
        None => {
            members.remove(name);
        }
    }
}

/// Keeps everything of `old` but `status` and the metadata, which upstream lets most status updates change.
pub fn keep_all_but_status(object: &mut Value, old: &Value) {
    let (Some(new_members), Some(old_members)) = (object.as_object_mut(), old.as_object()) else {
        return;
    };
    new_members
        .retain(|name, _| matches!(name.as_str(), "status" | "metadata" | "apiVersion" | "kind"));
    for (name, member) in old_members {
        if !matches!(name.as_str(), "status" | "metadata" | "apiVersion" | "kind") {
            new_members.insert(name.clone(), member.clone());
        }
    }
}

/// Gives `object` the parts of the old metadata that a status update must not change
/// (upstream `metav1.ResetObjectMetaForStatus`).
pub fn reset_object_meta_for_status(object: &mut Value, old: &Value) {
    let empty = Object::new();
    let old_meta = value::get(old, &["metadata"])
        .and_then(Value::as_object)
        .unwrap_or(&empty);
    let Some(new_meta) = object.get_mut("metadata").and_then(Value::as_object_mut) else {
        return;
    };
    for name in [
        "deletionTimestamp",
        "generation",
        "selfLink",
        "labels",
        "annotations",
        "finalizers",
        "ownerReferences",
    ] {
        match old_meta.get(name) {
            Some(kept) => {
                new_meta.insert(name.to_string(), kept.clone());
            }
            None => {
                new_meta.remove(name);
            }
        }
    }
}

/// Sets the generation of `object` to the old one, plus one when anything outside `metadata` and `status` differs.
pub fn bump_generation_if_changed(object: &mut Value, old: &Value) {
    let generation = value::get(old, &["metadata", "generation"])
        .and_then(Value::as_i64)
        .unwrap_or(0);
    let grown = if differs_outside_metadata_and_status(object, old) {
        generation + 1
    } else {
        generation
    };
    if grown > 0 {
        value::set(object, &["metadata", "generation"], Value::from(grown));
    }
}

fn differs_outside_metadata_and_status(a: &Value, b: &Value) -> bool {
    let empty = Object::new();
    let a = a.as_object().unwrap_or(&empty);
    let b = b.as_object().unwrap_or(&empty);
    let counts =
        |name: &String| !matches!(name.as_str(), "metadata" | "status" | "apiVersion" | "kind");
    a.iter()
        .any(|(name, member)| counts(name) && b.get(name) != Some(member))
        || b.keys().any(|name| counts(name) && !a.contains_key(name))
}
