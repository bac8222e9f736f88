//! Rules for `metadata` (upstream `k8s.io/apimachinery/pkg/api/validation/objectmeta.go`).

use serde_json::json;

use super::{GroupVersion, OwnerReference, names, options};
use crate::status::field::{FieldError, Path};
use crate::text;
use crate::value::{self, Object, Value};

/// A kind's rule for names: (name, whether it is only a prefix) to the broken rules.
pub type NameRule = fn(&str, bool) -> Vec<String>;

/// What an unchangeable field says when it changes.
pub const FIELD_IMMUTABLE: &str = "field is immutable";
/// The most that keys and values of all annotations together may weigh.
pub const ANNOTATIONS_MAX_BYTES: usize = 256 * 1024;

/// How many owners that want to be the controller beside the first are told apart.
const MAX_CONTROLLERS_TOLD: usize = 4;

const NON_NEGATIVE: &str = "must be greater than or equal to 0";
const SUBRESOURCE_MAX: usize = 256;
const FINALIZER_ORPHAN: &str = "orphan";
const FINALIZER_FOREGROUND: &str = "foregroundDeletion";

/// Checks `metadata` of a new `object`, after its name was generated (upstream `ValidateObjectMeta`).
/// `path` is where `metadata` stands, as a rule `Path::new("metadata")`.
pub fn validate_object_meta(
    object: &Value,
    namespaced: bool,
    name_rule: NameRule,
    path: &Path,
) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let prefix = super::generate_name(object);
    if !prefix.is_empty() {
        for message in name_rule(prefix, true) {
            errors.push(FieldError::invalid(
                &path.child("generateName"),
                prefix,
                message,
            ));
        }
    }
    let name = super::name(object);
    if name.is_empty() {
        errors.push(FieldError::required(
            &path.child("name"),
            "name or generateName is required",
        ));
    } else {
        for message in name_rule(name, false) {
            errors.push(FieldError::invalid(&path.child("name"), name, message));
        }
    }
    let namespace = super::namespace(object);
    if !namespaced {
        if !namespace.is_empty() {
            errors.push(FieldError::forbidden(
                &path.child("namespace"),
                "not allowed on this type",
            ));
        }
    } else if namespace.is_empty() {
        errors.push(FieldError::required(&path.child("namespace"), ""));
    } else {
        for message in names::name_is_dns_label(namespace, false) {
            errors.push(FieldError::invalid(
                &path.child("namespace"),
                namespace,
                message,
            ));
        }
    }
    let generation = super::generation(object);
    if generation < 0 {
        errors.push(FieldError::invalid(
            &path.child("generation"),
            generation,
            NON_NEGATIVE,
        ));
    }
    common(object, path, &mut errors, true);
    errors
}

/// Checks `metadata` of an `object` that replaces `old` (upstream `ValidateObjectMetaUpdate`).
pub fn validate_object_meta_update(object: &Value, old: &Value, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if super::deletion_timestamp(old).is_some() {
        let before = super::finalizers(old);
        let mut added = super::finalizers(object);
        added.retain(|finalizer| !before.contains(finalizer));
        added.sort_unstable();
        added.dedup();
        if !added.is_empty() {
            errors.push(FieldError::forbidden(
                &path.child("finalizers"),
                format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers {}",
                    text::go_string_slice(&added)
                ),
            ));
        }
    }
    let version = super::resource_version(object);
    if version.is_empty() {
        errors.push(FieldError::invalid(
            &path.child("resourceVersion"),
            version,
            "must be specified for an update",
        ));
    }
    let generation = super::generation(object);
    if generation < super::generation(old) {
        errors.push(FieldError::invalid(
            &path.child("generation"),
            generation,
            "must not be decremented",
        ));
    }
    for field in ["name", "namespace", "uid"] {
        let (new, old) = (super::text(object, field), super::text(old, field));
        errors.extend(immutable(&path.child(field), &new.into(), &old.into()));
    }
    for field in [
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ] {
        let of = |object| value::get(object, &["metadata", field]).unwrap_or(&Value::Null);
        errors.extend(immutable(&path.child(field), of(object), of(old)));
    }
    common(object, path, &mut errors, false);
    errors
}

/// The error of a field that may not change, if it did (upstream `ValidateImmutableField`).
pub fn immutable(path: &Path, new: &Value, old: &Value) -> Option<FieldError> {
    (!value::semantic_eq(Some(new), Some(old)))
        .then(|| FieldError::invalid(path, new.clone(), FIELD_IMMUTABLE))
}

fn common(object: &Value, path: &Path, errors: &mut Vec<FieldError>, new: bool) {
    if let Some(labels) = super::labels(object) {
        errors.extend(validate_labels(labels, &path.child("labels")));
    }
    if let Some(annotations) = super::annotations(object) {
        errors.extend(validate_annotations(
            annotations,
            &path.child("annotations"),
        ));
    }
    let owners = super::owner_references(object);
    errors.extend(validate_owner_references(
        &owners,
        &path.child("ownerReferences"),
    ));
    if new {
        errors.extend(validate_finalizers(
            &super::finalizers(object),
            &path.child("finalizers"),
        ));
    }
    errors.extend(validate_managed_fields(
        object,
        &path.child("managedFields"),
    ));
}

/// Checks a label's key.
pub fn validate_label_name(name: &str, path: &Path) -> Vec<FieldError> {
    names::qualified_name(name)
        .into_iter()
        .map(|message| FieldError::invalid(path, name, message))
        .collect()
}

/// Checks labels: keys and values.
pub fn validate_labels(labels: &Object, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (key, value) in labels {
        errors.extend(validate_label_name(key, path));
        let value = value.as_str().unwrap_or_default();
        for message in names::label_value(value) {
            errors.push(FieldError::invalid(path, value, message));
        }
    }
    errors
}

/// Checks annotations: keys, and the size of all together.
pub fn validate_annotations(annotations: &Object, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut size = 0;
    for (key, value) in annotations {
        for message in names::qualified_name(&key.to_lowercase()) {
            errors.push(FieldError::invalid(path, key.as_str(), message));
        }
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > ANNOTATIONS_MAX_BYTES {
        errors.push(FieldError::too_long(path, ANNOTATIONS_MAX_BYTES));
    }
    errors
}

/// Checks owner references: complete, no events as owners, one controller at most.
pub fn validate_owner_references(owners: &[OwnerReference], path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut controller: Option<String> = None;
    let mut told = 0;
    for owner in owners {
        let version = GroupVersion::parse(&owner.api_version).unwrap_or_default();
        if version.version.is_empty() {
            errors.push(FieldError::invalid(
                &path.child("apiVersion"),
                owner.api_version.as_str(),
                "version must not be empty",
            ));
        }
        for (field, text) in [
            ("kind", &owner.kind),
            ("name", &owner.name),
            ("uid", &owner.uid),
        ] {
            if text.is_empty() {
                errors.push(FieldError::invalid(
                    &path.child(field),
                    "",
                    "must not be empty",
                ));
            }
        }
        if owner.api_version == "v1" && owner.kind == "Event" {
            errors.push(FieldError::invalid_as_text(
                path,
                owner_text(owner),
                "/v1, Kind=Event is disallowed from being an owner",
            ));
        }
        if owner.controller == Some(true) {
            let this = format!("{}/{}", owner.kind, owner.name);
            match &controller {
                None => controller = Some(this),
                // Each of these errors repeats the whole list.
                Some(_) if told == MAX_CONTROLLERS_TOLD => {}
                Some(first) => {
                    told += 1;
                    let all: Vec<String> = owners.iter().map(owner_text).collect();
                    errors.push(FieldError::invalid_as_text(
                        path,
                        format!("[{}]", all.join(",")),
                        format!("Only one reference can have Controller set to true. Found \"true\" in references for {first} and {this}"),
                    ));
                }
            }
        }
    }
    errors
}

/// JSON with the members in the order of Go's struct.
fn owner_text(owner: &OwnerReference) -> String {
    let mut out = format!(
        r#"{{"apiVersion":{},"kind":{},"name":{},"uid":{}"#,
        json!(owner.api_version),
        json!(owner.kind),
        json!(owner.name),
        json!(owner.uid)
    );
    for (field, flag) in [
        ("controller", owner.controller),
        ("blockOwnerDeletion", owner.block_owner_deletion),
    ] {
        if let Some(flag) = flag {
            out.push_str(&format!(r#","{field}":{flag}"#));
        }
    }
    out.push('}');
    out
}

/// Checks finalizers: their names, and that orphaning and foreground deletion are not both asked for.
pub fn validate_finalizers(finalizers: &[&str], path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for finalizer in finalizers {
        for message in names::qualified_name(finalizer) {
            errors.push(FieldError::invalid(path, *finalizer, message));
        }
    }
    if finalizers.contains(&FINALIZER_ORPHAN) && finalizers.contains(&FINALIZER_FOREGROUND) {
        errors.push(FieldError::invalid(
            path,
            json!(finalizers),
            format!("finalizer {FINALIZER_ORPHAN} and {FINALIZER_FOREGROUND} cannot be both set"),
        ));
    }
    errors
}

/// Checks that finalizers without a domain are standard ones, as all built-in kinds demand but custom resources do
/// not (upstream `core/validation.validateKubeFinalizerName`). `path` is where `metadata` stands.
pub fn validate_kube_finalizers(object: &Value, path: &Path) -> Vec<FieldError> {
    let path = path.child("finalizers");
    super::finalizers(object)
        .iter()
        .enumerate()
        .filter(|(_, finalizer)| {
            let standard = [FINALIZER_ORPHAN, FINALIZER_FOREGROUND, "kubernetes"];
            !finalizer.contains('/') && !standard.contains(finalizer)
        })
        .map(|(i, finalizer)| {
            FieldError::invalid(
                &path.index(i),
                *finalizer,
                "name is neither a standard finalizer name nor is it fully qualified",
            )
        })
        .collect()
}

fn validate_managed_fields(object: &Value, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (i, entry) in value::items(object, &["metadata", "managedFields"])
        .iter()
        .enumerate()
    {
        let path = path.index(i);
        let text = |field: &str| value::str_or_empty(entry, &[field]);
        let operation = text("operation");
        if !matches!(operation, "Apply" | "Update") {
            errors.push(FieldError::invalid(
                &path.child("operation"),
                operation,
                "must be `Apply` or `Update`",
            ));
        }
        let fields_type = text("fieldsType");
        if !matches!(fields_type, "" | "FieldsV1") {
            errors.push(FieldError::invalid(
                &path.child("fieldsType"),
                fields_type,
                "must be `FieldsV1`",
            ));
        }
        errors.extend(options::validate_field_manager(
            text("manager"),
            &path.child("manager"),
        ));
        if text("subresource").len() > SUBRESOURCE_MAX {
            errors.push(FieldError::too_long(
                &path.child("subresource"),
                SUBRESOURCE_MAX,
            ));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(meta: Value, want: &[&str]) {
        let object = json!({ "metadata": meta });
        let got: Vec<String> = validate_object_meta(
            &object,
            true,
            names::name_is_dns_subdomain,
            &Path::new("metadata"),
        )
        .iter()
        .map(ToString::to_string)
        .collect();
        assert_eq!(got, want);
    }

    #[test]
    fn creation() {
        check(
            json!({"name": "a", "namespace": "b", "labels": {"x/y": "z"}, "annotations": {"X/y": " "}}),
            &[],
        );
        check(
            json!({}),
            &[
                "metadata.name: Required value: name or generateName is required",
                "metadata.namespace: Required value",
            ],
        );
        check(
            json!({"name": "a", "namespace": "b", "generation": -1, "finalizers": ["orphan", "foregroundDeletion"]}),
            &[
                "metadata.generation: Invalid value: -1: must be greater than or equal to 0",
                r#"metadata.finalizers: Invalid value: ["orphan","foregroundDeletion"]: finalizer orphan and foregroundDeletion cannot be both set"#,
            ],
        );
        check(
            json!({"name": "a", "namespace": "b", "ownerReferences": [
            {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u", "controller": true},
            {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "w", "controller": true, "blockOwnerDeletion": false}]}),
            &[
                r#"metadata.ownerReferences: Invalid value: [{"apiVersion":"v1","kind":"Pod","name":"p","uid":"u","controller":true},{"apiVersion":"apps/v1","kind":"ReplicaSet","name":"r","uid":"w","controller":true,"blockOwnerDeletion":false}]: Only one reference can have Controller set to true. Found "true" in references for Pod/p and ReplicaSet/r"#,
            ],
        );
        let big = "v".repeat(ANNOTATIONS_MAX_BYTES);
        check(
            json!({"name": "a", "namespace": "b", "annotations": {"k": big}}),
            &["metadata.annotations: Too long: may not be more than 262144 bytes"],
        );
    }

    #[test]
    fn finalizers_of_built_in_kinds() {
        let object = json!({"metadata": {"finalizers": ["orphan", "a.b/c", "mine"]}});
        let got = validate_kube_finalizers(&object, &Path::new("metadata"));
        let got: Vec<String> = got.iter().map(ToString::to_string).collect();
        assert_eq!(
            got,
            [
                r#"metadata.finalizers[2]: Invalid value: "mine": name is neither a standard finalizer name nor is it fully qualified"#
            ]
        );
    }

    #[test]
    fn update() {
        let old = json!({"metadata": {"name": "a", "uid": "1", "generation": 2, "deletionTimestamp": "2024-01-01T00:00:00Z", "finalizers": ["x"]}});
        let new = json!({"metadata": {"name": "b", "uid": "1", "generation": 1, "finalizers": ["x", "y"]}});
        let got: Vec<String> = validate_object_meta_update(&new, &old, &Path::new("metadata"))
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            got,
            [
                r#"metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{"y"}"#,
                r#"metadata.resourceVersion: Invalid value: "": must be specified for an update"#,
                "metadata.generation: Invalid value: 1: must not be decremented",
                r#"metadata.name: Invalid value: "b": field is immutable"#,
                "metadata.deletionTimestamp: Invalid value: null: field is immutable",
            ]
        );
    }
}
