//! Validation of request options (upstream `k8s.io/apimachinery/pkg/apis/meta/v1/validation`). The options are
//! given as the decoded `metav1.*Options` object, however they came in.

use serde_json::json;

use crate::status::field::{FieldError, Path};
use crate::text;
use crate::value::{self, Value};

/// The longest field manager's name, in bytes.
pub const FIELD_MANAGER_MAX: usize = 128;

/// Checks a field manager's name.
pub fn validate_field_manager(manager: &str, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if manager.len() > FIELD_MANAGER_MAX {
        errors.push(FieldError::too_long(path, FIELD_MANAGER_MAX));
    }
    for (at, c) in manager.char_indices() {
        if !text::is_print(c) {
            errors.push(FieldError::invalid(
                path,
                manager,
                format!("invalid character U+{:04X} (at position {at})", c as u32),
            ));
        }
    }
    errors
}

/// Checks `dryRun`: only `All` is known.
pub fn validate_dry_run(options: &Value) -> Vec<FieldError> {
    let given = value::items(options, &["dryRun"]);
    if given.iter().all(|v| v == "All") {
        return Vec::new();
    }
    vec![FieldError::not_supported(
        &Path::new("dryRun"),
        json!(given),
        &["All"],
    )]
}

/// Checks `fieldValidation`.
pub fn validate_field_validation(options: &Value) -> Vec<FieldError> {
    let given = value::str_or_empty(options, &["fieldValidation"]);
    if matches!(given, "" | "Ignore" | "Warn" | "Strict") {
        return Vec::new();
    }
    vec![FieldError::not_supported(
        &Path::new("fieldValidation"),
        given,
        &["", "Ignore", "Strict", "Warn"],
    )]
}

/// Checks CreateOptions and UpdateOptions (upstream `ValidateCreateOptions`, `ValidateUpdateOptions`).
pub fn validate_write_options(options: &Value) -> Vec<FieldError> {
    let manager = value::str_or_empty(options, &["fieldManager"]);
    let mut errors = validate_field_manager(manager, &Path::new("fieldManager"));
    errors.extend(validate_dry_run(options));
    errors.extend(validate_field_validation(options));
    errors
}

/// Checks PatchOptions; `apply` says whether the patch is a server-side apply (upstream `ValidatePatchOptions`).
pub fn validate_patch_options(options: &Value, apply: bool) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if apply {
        if value::str_or_empty(options, &["fieldManager"]).is_empty() {
            errors.push(FieldError::required(
                &Path::new("fieldManager"),
                "is required for apply patch",
            ));
        }
    } else if value::get(options, &["force"]).is_some() {
        errors.push(FieldError::forbidden(
            &Path::new("force"),
            "may not be specified for non-apply patch",
        ));
    }
    errors.extend(validate_write_options(options));
    errors
}

/// Checks DeleteOptions (upstream `ValidateDeleteOptions`).
pub fn validate_delete_options(options: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let path = Path::new("propagationPolicy");
    if let Some(policy) = value::get(options, &["propagationPolicy"]) {
        if value::get(options, &["orphanDependents"]).is_some() {
            errors.push(FieldError::invalid(
                &path,
                policy.clone(),
                "orphanDependents and deletionPropagation cannot be both set",
            ));
        }
        if !matches!(
            policy.as_str(),
            Some("Foreground" | "Background" | "Orphan")
        ) {
            errors.push(FieldError::not_supported(
                &path,
                policy.clone(),
                &["Foreground", "Background", "Orphan", "nil"],
            ));
        }
    }
    errors.extend(validate_dry_run(options));
    let unsafe_name = "ignoreStoreReadErrorWithClusterBreakingPotential";
    if value::get_bool(options, &[unsafe_name]) == Some(true) {
        for field in [
            "dryRun",
            "propagationPolicy",
            "orphanDependents",
            "gracePeriodSeconds",
            "preconditions",
        ] {
            let set = match field {
                "dryRun" => !value::items(options, &[field]).is_empty(),
                _ => value::get(options, &[field]).is_some(),
            };
            if set {
                errors.push(FieldError::invalid(
                    &Path::new(unsafe_name),
                    true,
                    format!("cannot be set together with .{field}"),
                ));
            }
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options() {
        let text =
            |errors: Vec<FieldError>| errors.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            text(validate_delete_options(
                &json!({"propagationPolicy": "x", "dryRun": ["Some"]})
            )),
            [
                r#"propagationPolicy: Unsupported value: "x": supported values: "Foreground", "Background", "Orphan", "nil""#,
                r#"dryRun: Unsupported value: ["Some"]: supported values: "All""#,
            ]
        );
        assert_eq!(
            text(validate_patch_options(
                &json!({"force": true, "fieldManager": "a\u{1}"}),
                false
            )),
            [
                "force: Forbidden: may not be specified for non-apply patch",
                r#"fieldManager: Invalid value: "a\x01": invalid character U+0001 (at position 1)"#,
            ]
        );
        assert_eq!(text(validate_patch_options(&json!({}), true)).len(), 1);
    }
}
