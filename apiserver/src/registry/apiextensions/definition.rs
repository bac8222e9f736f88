//! CustomResourceDefinitions (upstream `apiextensions-apiserver/pkg/registry/customresourcedefinition`).

use keelson_machinery::meta::{self, names};
use keelson_machinery::status::field::{FieldError, Path};
use keelson_machinery::structural::{SchemaType, unrecognized_format};
use keelson_machinery::value::{self, Value};
use serde_json::json;

use super::schema_rules::any_schema;
use super::spec_rules;
use crate::extensions::controller::FINALIZER;
use crate::extensions::status::{APPROVED, Approval};
use crate::extensions::status::{approval, is_protected, set_condition};
use crate::registry::generic;
use crate::registry::strategy::{Context, Strategy};

/// Strategy of definitions.
pub struct CustomResourceDefinition;

/// Adds the storage version to those that may be found in the store.
fn note_stored_version(object: &mut Value) {
    let stored = value::items(object, &["spec", "versions"])
        .iter()
        .find(|version| value::get_bool(version, &["storage"]) == Some(true))
        .and_then(|version| version.get("name"))
        .cloned();
    let mut all = value::items(object, &["status", "storedVersions"]).to_vec();
    if let Some(stored) = stored
        && !all.contains(&stored)
    {
        all.push(stored);
        value::set(object, &["status", "storedVersions"], Value::Array(all));
    }
}

/// Formats that the schemas name and nobody checks.
fn unrecognized_formats(object: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for version in value::items(object, &["spec", "versions"]) {
        if let Some(schema) = value::get(version, &["schema", "openAPIV3Schema"]) {
            any_schema(schema, &mut |node| {
                let format = value::str_or_empty(node, &["format"]);
                let kind = SchemaType::parse(value::str_or_empty(node, &["type"]));
                if unrecognized_format(kind, format) {
                    found.push(format.to_string());
                }
                false
            });
        }
    }
    found
}

fn format_warnings(formats: Vec<String>) -> Vec<String> {
    let mut warnings = Vec::new();
    for format in formats {
        let warning = format!("unrecognized format {format:?}");
        if !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }
    warnings
}

fn approval_findings(object: &Value, old: Option<&Value>) -> Option<FieldError> {
    if !is_protected(value::str_or_empty(object, &["spec", "group"])) {
        return None;
    }
    let (state, why) = approval(object);
    if old.is_some_and(|old| approval(old).0 == state) {
        return None;
    }
    let path = Path::new("metadata").child("annotations").key(APPROVED);
    match state {
        Approval::Missing => Some(FieldError::required(&path, why)),
        Approval::Invalid => Some(FieldError::invalid(
            &path,
            meta::annotation(object, APPROVED).unwrap_or_default(),
            why,
        )),
        Approval::Approved | Approval::Bypassed => None,
    }
}

fn preserve_findings(object: &Value, old: Option<&Value>) -> Option<FieldError> {
    let preserves =
        |object: &Value| value::get_bool(object, &["spec", "preserveUnknownFields"]) == Some(true);
    if !preserves(object) || old.is_some_and(preserves) {
        return None;
    }
    Some(FieldError::invalid(
        &Path::new("spec").child("preserveUnknownFields"),
        true,
        "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead",
    ))
}

fn stored_versions_findings(object: &Value) -> Vec<FieldError> {
    let path = Path::new("status").child("storedVersions");
    let stored = value::items(object, &["status", "storedVersions"]);
    if stored.is_empty() {
        let why = "must have at least one stored version";
        return vec![FieldError::invalid(&path, json!([]), why)];
    }
    let mut found = Vec::new();
    let versions = value::items(object, &["spec", "versions"]);
    for version in versions {
        let name = &version["name"];
        if value::get_bool(version, &["storage"]) == Some(true) && !stored.contains(name) {
            let why = format!(
                "must have the storage version {}",
                name.as_str().unwrap_or_default()
            );
            found.push(FieldError::invalid(&path, json!(stored), why));
        }
    }
    for (index, name) in stored.iter().enumerate() {
        if !versions.iter().any(|version| version["name"] == *name) {
            let shown = name.as_str().unwrap_or_default();
            let why = format!(
                "missing from spec.versions; {shown} was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in {shown} and removes {shown} from status.storedVersions"
            );
            found.push(FieldError::invalid(&path.index(index), shown, why));
        }
    }
    found
}

fn status_findings(object: &Value) -> Vec<FieldError> {
    match value::get(object, &["status", "acceptedNames"]) {
        Some(names) => spec_rules::names(names, &Path::new("status").child("acceptedNames")),
        None => Vec::new(),
    }
}

impl Strategy for CustomResourceDefinition {
    fn prepare_for_create(&self, _: &Context<'_>, object: &mut Value) {
        value::set(
            object,
            &["status"],
            json!({"acceptedNames": {"kind": "", "plural": ""}, "conditions": null, "storedVersions": []}),
        );
        meta::set(object, "generation", 1);
        note_stored_version(object);
    }

    fn validate(&self, _: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut found = Vec::new();
        let name = meta::name(object);
        let wanted = format!(
            "{}.{}",
            value::str_or_empty(object, &["spec", "names", "plural"]),
            value::str_or_empty(object, &["spec", "group"])
        );
        if !name.is_empty() && name != wanted {
            found.push(FieldError::invalid(
                &Path::new("metadata").child("name"),
                name,
                "must be spec.names.plural+\".\"+spec.group",
            ));
        }
        found.extend(spec_rules::spec(object, None));
        found.extend(status_findings(object));
        found.extend(stored_versions_findings(object));
        found.extend(approval_findings(object, None));
        found.extend(preserve_findings(object, None));
        found
    }

    fn warnings_on_create(&self, _: &Context<'_>, object: &Value) -> Vec<String> {
        format_warnings(unrecognized_formats(object))
    }

    fn prepare_for_update(&self, context: &Context<'_>, object: &mut Value, old: &Value) {
        generic::prepare_for_update(context, object, old);
        if context.subresource.is_empty() {
            note_stored_version(object);
        }
    }

    fn validate_update(
        &self,
        context: &Context<'_>,
        object: &Value,
        old: &Value,
    ) -> Vec<FieldError> {
        let mut found = status_findings(object);
        if context.subresource == "status" {
            return found;
        }
        found.extend(spec_rules::spec(object, Some(old)));
        found.extend(stored_versions_findings(object));
        found.extend(approval_findings(object, Some(old)));
        found.extend(preserve_findings(object, Some(old)));
        found
    }

    fn warnings_on_update(
        &self,
        context: &Context<'_>,
        object: &Value,
        old: &Value,
    ) -> Vec<String> {
        if context.subresource == "status" {
            return Vec::new();
        }
        let known = unrecognized_formats(old);
        let mut new = unrecognized_formats(object);
        new.retain(|format| !known.contains(format));
        format_warnings(new)
    }

    fn name_rule(
        &self,
        _: &keelson_machinery::catalog::Resource,
    ) -> keelson_machinery::meta::NameRule {
        names::name_is_dns_subdomain
    }

    /// The first deletion always only marks: the objects go first.
    fn holds_deletion(&self, object: &Value) -> bool {
        meta::deletion_timestamp(object).is_none()
    }

    fn deletion_begins(&self, object: &mut Value) {
        let mut finalizers: Vec<String> = meta::finalizers(object)
            .into_iter()
            .map(str::to_string)
            .collect();
        if finalizers.iter().any(|finalizer| finalizer == FINALIZER)
            || value::items(object, &["status", "conditions"])
                .iter()
                .any(|condition| condition["type"] == "Terminating")
        {
            return;
        }
        finalizers.push(FINALIZER.to_string());
        meta::set_finalizers(object, &finalizers);
        // The spec did not change, and what it says goes on being served.
        meta::set(object, "generation", meta::generation(object) - 1);
        let now = meta::deletion_timestamp(object)
            .unwrap_or_default()
            .to_string();
        set_condition(
            object,
            "Terminating",
            "True",
            "InstanceDeletionPending",
            "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon",
            &now,
        );
    }
}
