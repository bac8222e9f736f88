//! What differs on writes of custom resources (upstream `apiextensions-apiserver/pkg/registry/customresource`).

use std::sync::Arc;

use keelson_machinery::catalog::Resource;
use keelson_machinery::meta::{self, names};
use keelson_machinery::status::ApiError;
use keelson_machinery::status::field::{ErrorType, FieldError, Path};
use keelson_machinery::structural;
use keelson_machinery::value::{self, Value};

use super::Custom;
use super::definition::Scale;
use crate::registry::generic;
use crate::registry::strategy::{Context, Rollback, Strategy};

/// Finalizers that need no domain.
const STANDARD_FINALIZERS: [&str; 3] = ["orphan", "foregroundDeletion", "kubernetes"];

/// Strategy of one version of a custom resource.
pub struct CustomStrategy(pub Arc<Custom>);

impl CustomStrategy {
    fn has_status(&self) -> bool {
        self.0.version().is_some_and(|version| version.has_status())
    }

    fn scale(&self) -> Option<&Scale> {
        self.0.version()?.scale()
    }

    /// What the rules in CEL say, if the object is such that they can be asked.
    fn rule_findings(&self, object: &Value, old: Option<&Value>, found: &mut Vec<FieldError>) {
        let custom = &self.0;
        let (Some(schema), Some(rules)) =
            (custom.schema(), custom.definition.rules(&custom.version))
        else {
            return;
        };
        if is_blocking(found) {
            found.push(FieldError::invalid(
                &Path::root(),
                "null",
                "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation",
            ));
        } else {
            found.extend(rules.validate(schema, object, old));
        }
    }

    fn type_findings(&self, object: &Value) -> Vec<FieldError> {
        let mut found = Vec::new();
        let wanted = [
            ("kind", self.0.definition.names.kind.clone()),
            ("apiVersion", self.0.api_version()),
        ];
        for (name, wanted) in wanted {
            let got = value::str_or_empty(object, &[name]);
            if got != wanted {
                let why = format!("must be {wanted}");
                found.push(FieldError::invalid(&Path::new(name), got, why));
            }
        }
        found
    }
}

/// The members of a JSON path of plain names.
pub fn path_of(json_path: &str) -> Vec<&str> {
    json_path.trim_start_matches('.').split('.').collect()
}

/// A whole number at a path; `None` when nothing stands there.
pub fn number_at(object: &Value, json_path: &str) -> Result<Option<i64>, String> {
    match value::get(object, &path_of(json_path)) {
        None => Ok(None),
        Some(found) => found.as_i64().map(Some).ok_or_else(|| {
            format!(
                "{json_path} accessor error: {} is of the type {}, expected int64",
                keelson_machinery::text::go_value(found),
                go_type(found)
            )
        }),
    }
}

/// A text at a path; `None` when nothing stands there.
pub fn text_at<'a>(object: &'a Value, json_path: &str) -> Result<Option<&'a str>, String> {
    match value::get(object, &path_of(json_path)) {
        None => Ok(None),
        Some(found) => found.as_str().map(Some).ok_or_else(|| {
            format!(
                "{json_path} accessor error: {} is of the type {}, expected string",
                keelson_machinery::text::go_value(found),
                go_type(found)
            )
        }),
    }
}

fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_i64() => "int64",
        Value::Number(_) => "float64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

fn replicas_findings(object: &Value, json_path: &str) -> Option<FieldError> {
    let path = Path::new(json_path);
    match number_at(object, json_path) {
        Err(why) => Some(FieldError::invalid(&path, 0, why)),
        Ok(Some(n)) if n < 0 => Some(FieldError::invalid(
            &path,
            n,
            "should be a non-negative integer",
        )),
        Ok(Some(n)) if n > i64::from(i32::MAX) => Some(FieldError::invalid(
            &path,
            n,
            format!("should be less than or equal to {}", i32::MAX),
        )),
        Ok(_) => None,
    }
}

fn scale_findings(scale: Option<&Scale>, object: &Value, spec: bool) -> Vec<FieldError> {
    let Some(scale) = scale else {
        return Vec::new();
    };
    let mut found = Vec::new();
    if spec {
        found.extend(replicas_findings(object, &scale.spec_replicas_path));
    }
    found.extend(replicas_findings(object, &scale.status_replicas_path));
    if let Some(path) = scale
        .label_selector_path
        .as_deref()
        .filter(|p| !p.is_empty())
        && let Err(why) = text_at(object, path)
    {
        found.push(FieldError::invalid(&Path::new(path), "", why));
    }
    found
}

/// Whether findings are such that expressions could not be evaluated.
fn is_blocking(found: &[FieldError]) -> bool {
    found.iter().any(|error| {
        matches!(
            error.kind,
            ErrorType::NotSupported
                | ErrorType::Required
                | ErrorType::TooLong
                | ErrorType::TooMany
                | ErrorType::TypeInvalid
        )
    })
}

fn finalizer_warnings(object: &Value, old: Option<&Value>) -> Vec<String> {
    let before = old.map(meta::finalizers).unwrap_or_default();
    let mut added = meta::finalizers(object);
    added.retain(|finalizer| !before.contains(finalizer));
    added.sort_unstable();
    added.dedup();
    let mut warnings = Vec::new();
    for finalizer in added {
        let said = |why: &str| format!("metadata.finalizers: {finalizer:?}: {why}");
        warnings.extend(names::qualified_name(finalizer).iter().map(|why| said(why)));
        if !finalizer.contains('/') && !STANDARD_FINALIZERS.contains(&finalizer) {
            warnings.push(said(if finalizer.contains('.') {
                "prefer a domain-qualified finalizer name including a path (/) to avoid accidental conflicts with other finalizer writers"
            } else {
                "prefer a domain-qualified finalizer name to avoid accidental conflicts with other finalizer writers"
            }));
        }
    }
    warnings
}

impl Strategy for CustomStrategy {
    fn begin_create(
        &self,
        context: &Context<'_>,
        object: &mut Value,
    ) -> Result<Option<Rollback>, ApiError> {
        if self.0.definition.terminating {
            return Err(ApiError::forbidden(
                &context.served.group_resource(),
                meta::name(object),
                "create not allowed while custom resource definition is terminating",
            ));
        }
        Ok(None)
    }

    fn prepare_for_create(&self, _: &Context<'_>, object: &mut Value) {
        if self.has_status() {
            value::remove(object, &["status"]);
        }
        meta::set(object, "generation", 1);
    }

    fn validate(&self, _: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut found = self.type_findings(object);
        if !found.is_empty() {
            return found;
        }
        let root = Path::root();
        let schema = self.0.schema();
        if let Some(schema) = schema {
            found.extend(structural::validate(schema, object, &root));
        }
        found.extend(scale_findings(self.scale(), object, true));
        if let Some(schema) = schema {
            found.extend(structural::validate_embedded(object, schema, &root));
            found.extend(structural::validate_lists(object, schema, &root));
        }
        self.rule_findings(object, None, &mut found);
        found
    }

    fn warnings_on_create(&self, _: &Context<'_>, object: &Value) -> Vec<String> {
        finalizer_warnings(object, None)
    }

    fn prepare_for_update(&self, context: &Context<'_>, object: &mut Value, old: &Value) {
        if context.subresource == "status" {
            let status = object.get("status").cloned();
            let owners = value::get(object, &["metadata", "managedFields"]).cloned();
            *object = old.clone();
            match status {
                Some(status) => value::set(object, &["status"], status),
                None => value::remove(object, &["status"]).is_some(),
            };
            match owners {
                Some(owners) => meta::set(object, "managedFields", owners),
                None => meta::remove(object, "managedFields").is_some(),
            };
            return;
        }
        if self.has_status() {
            generic::keep_member(object, old, "status");
        }
        let differs = |a: &Value, b: &Value| {
            let members = a.as_object().into_iter().flatten();
            let mut other = members.filter(|(name, _)| *name != "metadata");
            other.any(|(name, member)| b.get(name) != Some(member))
        };
        if differs(object, old) || differs(old, object) {
            meta::set(object, "generation", meta::generation(old) + 1);
        }
    }

    fn validate_update(
        &self,
        context: &Context<'_>,
        object: &Value,
        old: &Value,
    ) -> Vec<FieldError> {
        let mut found = self.type_findings(object);
        if !found.is_empty() {
            return found;
        }
        let root = Path::root();
        let schema = self.0.schema();
        let status = context.subresource == "status";
        if let Some(schema) = schema {
            if !status {
                let old = Some(old);
                found.extend(structural::validate_update(schema, object, old, &root));
            } else if let (Some(of_status), Some(new)) =
                (schema.properties.get("status"), object.get("status"))
            {
                found.extend(structural::validate_update(
                    of_status,
                    new,
                    old.get("status"),
                    &Path::new("status"),
                ));
            }
        }
        found.extend(scale_findings(self.scale(), object, !status));
        if let Some(schema) = schema {
            if !status {
                found.extend(structural::validate_embedded(object, schema, &root));
            }
            let lists = structural::validate_lists(object, schema, &root);
            // What was wrong before may stay so.
            if !lists.is_empty() && structural::validate_lists(old, schema, &root).is_empty() {
                found.extend(lists);
            }
        }
        self.rule_findings(object, Some(old), &mut found);
        found
    }

    fn warnings_on_update(
        &self,
        context: &Context<'_>,
        object: &Value,
        old: &Value,
    ) -> Vec<String> {
        match context.subresource {
            "status" => Vec::new(),
            _ => finalizer_warnings(object, Some(old)),
        }
    }

    fn allow_create_on_update(&self, _: &Resource) -> bool {
        false
    }

    fn allow_unconditional_update(&self, _: &Resource) -> bool {
        false
    }
}
