//! Object metadata: who an object is, read and written on its dynamic value; the rules for names and metadata.

pub mod ip;
pub mod names;
pub mod options;
pub mod validate;

use std::fmt;

use serde_json::json;

use crate::value::{self, Object, Value};

pub use validate::{
    NameRule, validate_annotations, validate_kube_finalizers, validate_labels,
    validate_object_meta, validate_object_meta_update,
};

/// A resource within its group, as errors name it: `deployments.apps`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupResource {
    /// The API group; empty for the core group.
    pub group: String,
    /// The plural resource name.
    pub resource: String,
}

impl GroupResource {
    /// A resource of a group.
    pub fn new(group: impl Into<String>, resource: impl Into<String>) -> Self {
        GroupResource {
            group: group.into(),
            resource: resource.into(),
        }
    }

    /// Whether it names nothing.
    pub fn is_empty(&self) -> bool {
        self.group.is_empty() && self.resource.is_empty()
    }
}

impl fmt::Display for GroupResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.resource)?;
        match self.group.as_str() {
            "" => Ok(()),
            group => write!(f, ".{group}"),
        }
    }
}

/// A kind within its group, as errors name it: `Deployment.apps`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupKind {
    /// The API group; empty for the core group.
    pub group: String,
    /// The kind.
    pub kind: String,
}

impl GroupKind {
    /// A kind of a group.
    pub fn new(group: impl Into<String>, kind: impl Into<String>) -> Self {
        GroupKind {
            group: group.into(),
            kind: kind.into(),
        }
    }
}

impl fmt::Display for GroupKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.kind)?;
        match self.group.as_str() {
            "" => Ok(()),
            group => write!(f, ".{group}"),
        }
    }
}

/// A group and one of its versions, as `apiVersion` writes it: `apps/v1`, or `v1` for the core group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupVersion {
    /// The API group; empty for the core group.
    pub group: String,
    /// The version.
    pub version: String,
}

/// An `apiVersion` with more than one slash.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unexpected GroupVersion string: {0}")]
pub struct BadGroupVersion(String);

impl GroupVersion {
    /// A version of a group.
    pub fn new(group: impl Into<String>, version: impl Into<String>) -> Self {
        GroupVersion {
            group: group.into(),
            version: version.into(),
        }
    }

    /// Reads an `apiVersion` (upstream `schema.ParseGroupVersion`).
    pub fn parse(text: &str) -> Result<Self, BadGroupVersion> {
        if text.is_empty() || text == "/" {
            return Ok(GroupVersion::default());
        }
        let mut parts = text.split('/');
        match (parts.next(), parts.next(), parts.next()) {
            (Some(version), None, _) => Ok(GroupVersion::new("", version)),
            (Some(group), Some(version), None) => Ok(GroupVersion::new(group, version)),
            _ => Err(BadGroupVersion(text.to_owned())),
        }
    }
}

impl fmt::Display for GroupVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.group.as_str() {
            "" => f.write_str(&self.version),
            group => write!(f, "{group}/{}", self.version),
        }
    }
}

/// `metadata` of `object`, if it has one.
pub fn metadata(object: &Value) -> Option<&Object> {
    value::get_object(object, &["metadata"])
}

/// A string of `metadata`; empty when absent.
pub fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    value::str_or_empty(object, &["metadata", field])
}

/// `metadata.name`; empty when absent, as the four readers below.
pub fn name(object: &Value) -> &str {
    text(object, "name")
}

/// `metadata.generateName`.
pub fn generate_name(object: &Value) -> &str {
    text(object, "generateName")
}

/// `metadata.namespace`.
pub fn namespace(object: &Value) -> &str {
    text(object, "namespace")
}

/// `metadata.uid`.
pub fn uid(object: &Value) -> &str {
    text(object, "uid")
}

/// `metadata.resourceVersion`.
pub fn resource_version(object: &Value) -> &str {
    text(object, "resourceVersion")
}

/// `metadata.generation`; 0 when absent.
pub fn generation(object: &Value) -> i64 {
    value::get_i64(object, &["metadata", "generation"]).unwrap_or(0)
}

/// `metadata.creationTimestamp` as text.
pub fn creation_timestamp(object: &Value) -> Option<&str> {
    value::get_str(object, &["metadata", "creationTimestamp"])
}

/// `metadata.deletionTimestamp` as text.
pub fn deletion_timestamp(object: &Value) -> Option<&str> {
    value::get_str(object, &["metadata", "deletionTimestamp"])
}

/// `metadata.deletionGracePeriodSeconds`.
pub fn deletion_grace_period_seconds(object: &Value) -> Option<i64> {
    value::get_i64(object, &["metadata", "deletionGracePeriodSeconds"])
}

/// `metadata.labels`.
pub fn labels(object: &Value) -> Option<&Object> {
    value::get_object(object, &["metadata", "labels"])
}

/// One label's value.
pub fn label<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    labels(object)?.get(key)?.as_str()
}

/// `metadata.annotations`.
pub fn annotations(object: &Value) -> Option<&Object> {
    value::get_object(object, &["metadata", "annotations"])
}

/// One annotation's value.
pub fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    annotations(object)?.get(key)?.as_str()
}

/// `metadata.finalizers`.
pub fn finalizers(object: &Value) -> Vec<&str> {
    value::items(object, &["metadata", "finalizers"])
        .iter()
        .filter_map(Value::as_str)
        .collect()
}

/// `metadata.ownerReferences`.
pub fn owner_references(object: &Value) -> Vec<OwnerReference> {
    value::items(object, &["metadata", "ownerReferences"])
        .iter()
        .map(OwnerReference::from_value)
        .collect()
}

/// The owner that controls `object` (upstream `metav1.GetControllerOf`).
pub fn controller_of(object: &Value) -> Option<OwnerReference> {
    owner_references(object)
        .into_iter()
        .find(|owner| owner.controller == Some(true))
}

/// Writes a field of `metadata`; answers false when `object` or its `metadata` is no JSON object.
pub fn set(object: &mut Value, field: &str, new: impl Into<Value>) -> bool {
    value::set(object, &["metadata", field], new)
}

/// Takes a field of `metadata` away.
pub fn remove(object: &mut Value, field: &str) -> Option<Value> {
    value::remove(object, &["metadata", field])
}

/// Writes `metadata.finalizers`, or takes the field away when there are none.
pub fn set_finalizers<S: AsRef<str>>(object: &mut Value, finalizers: &[S]) {
    if finalizers.is_empty() {
        remove(object, "finalizers");
    } else {
        let list: Vec<&str> = finalizers.iter().map(AsRef::as_ref).collect();
        set(object, "finalizers", json!(list));
    }
}

/// One entry of `metadata.ownerReferences`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnerReference {
    /// The owner's group and version.
    pub api_version: String,
    /// The owner's kind.
    pub kind: String,
    /// The owner's name.
    pub name: String,
    /// The owner's uid.
    pub uid: String,
    /// Whether the owner manages this object.
    pub controller: Option<bool>,
    /// Whether the owner cannot go away, in foreground deletion, before this object.
    pub block_owner_deletion: Option<bool>,
}

impl OwnerReference {
    /// The reference by which `owner` controls another object (upstream `metav1.NewControllerRef`).
    pub fn controller(owner: &Value, api_version: &str, kind: &str) -> Self {
        OwnerReference {
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
            name: name(owner).to_owned(),
            uid: uid(owner).to_owned(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }
    }

    /// Reads the wire form.
    pub fn from_value(reference: &Value) -> Self {
        let text = |field: &str| value::str_or_empty(reference, &[field]).to_owned();
        OwnerReference {
            api_version: text("apiVersion"),
            kind: text("kind"),
            name: text("name"),
            uid: text("uid"),
            controller: value::get_bool(reference, &["controller"]),
            block_owner_deletion: value::get_bool(reference, &["blockOwnerDeletion"]),
        }
    }

    /// The wire form.
    pub fn to_value(&self) -> Value {
        let mut out = json!({
            "apiVersion": self.api_version,
            "kind": self.kind,
            "name": self.name,
            "uid": self.uid,
        });
        if let Some(controller) = self.controller {
            value::set(&mut out, &["controller"], controller);
        }
        if let Some(block) = self.block_owner_deletion {
            value::set(&mut out, &["blockOwnerDeletion"], block);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn group_versions() {
        for (text, want) in [
            ("v1", Some(("", "v1"))),
            ("apps/v1", Some(("apps", "v1"))),
            ("", Some(("", ""))),
            ("a/b/c", None),
        ] {
            let want = want.map(|(group, version)| GroupVersion::new(group, version));
            assert_eq!(GroupVersion::parse(text).ok(), want, "{text}");
        }
        assert_eq!(GroupVersion::new("apps", "v1").to_string(), "apps/v1");
    }
}
