//! Query options of the verbs (`metav1.ListOptions`, `CreateOptions`, ...), read and validated as upstream does.

use bytes::Bytes;
use keelson_machinery::meta::GroupKind;
use keelson_machinery::meta::options as rules;
use keelson_machinery::status::ApiError;
use keelson_machinery::status::field::{FieldError, Path};
use keelson_machinery::value::{self, Value};
use serde_json::json;

use crate::codec::body::FieldValidation;
use crate::codec::{Format, negotiate};
use crate::registry::strategy::DeleteOptions;
use crate::request::Query;

fn meta_kind(kind: &str) -> GroupKind {
    GroupKind::new("meta.k8s.io", kind)
}

/// `metav1.ListOptions`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListOptions {
    /// Unparsed label selector.
    pub label_selector: Option<String>,
    /// Unparsed field selector.
    pub field_selector: Option<String>,
    /// Send bookmarks.
    pub allow_watch_bookmarks: bool,
    /// Empty when unset.
    pub resource_version: String,
    /// Empty when unset.
    pub resource_version_match: String,
    /// Seconds after which a watch ends.
    pub timeout_seconds: Option<i64>,
    /// Page size; 0 for all.
    pub limit: i64,
    /// Continue token; empty when unset.
    pub continue_token: String,
    /// Watch begins with the present state.
    pub send_initial_events: Option<bool>,
}

impl ListOptions {
    /// Reads the query of a list (or, with `watch`, of a watch).
    pub fn read(query: &Query, watch: bool) -> Result<ListOptions, ApiError> {
        let text = |key: &str| query.get(key).unwrap_or_default().to_string();
        let mut options = ListOptions {
            label_selector: query.text("labelSelector").map(str::to_string),
            field_selector: query.text("fieldSelector").map(str::to_string),
            allow_watch_bookmarks: query.flag("allowWatchBookmarks"),
            resource_version: text("resourceVersion"),
            resource_version_match: text("resourceVersionMatch"),
            timeout_seconds: query.int("timeoutSeconds")?,
            limit: query.int("limit")?.unwrap_or(0),
            continue_token: text("continue"),
            send_initial_events: query.optional_flag("sendInitialEvents"),
        };
        // Old clients that watch without a resourceVersion get what they always got
        // (upstream `SetListOptionsDefaults`).
        if watch
            && options.send_initial_events.is_none()
            && options.resource_version_match.is_empty()
            && matches!(options.resource_version.as_str(), "" | "0")
        {
            options.send_initial_events = Some(true);
            options.resource_version_match = "NotOlderThan".to_string();
        }
        let findings = options.validate(watch);
        if !findings.is_empty() {
            return Err(ApiError::invalid(&meta_kind("ListOptions"), "", findings));
        }
        Ok(options)
    }

    /// `ValidateListOptions`.
    fn validate(&self, watch: bool) -> Vec<FieldError> {
        let matching = self.resource_version_match.as_str();
        let at = Path::new("resourceVersionMatch");
        let mut findings = Vec::new();
        if watch {
            if self.send_initial_events.is_some() && matching != "NotOlderThan" {
                findings.push(FieldError::forbidden(
                    &at,
                    "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
                ));
            }
            if !matching.is_empty() {
                if self.send_initial_events.is_none() {
                    findings.push(FieldError::forbidden(
                        &at,
                        "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                    ));
                }
                if matching != "NotOlderThan" {
                    findings.push(FieldError::not_supported(&at, matching, &["NotOlderThan"]));
                }
                if !self.continue_token.is_empty() {
                    findings.push(FieldError::forbidden(
                        &at,
                        "resourceVersionMatch is forbidden when continue is provided",
                    ));
                }
            }
            return findings;
        }
        if !matching.is_empty() {
            if self.resource_version.is_empty() {
                findings.push(FieldError::forbidden(
                    &at,
                    "resourceVersionMatch is forbidden unless resourceVersion is provided",
                ));
            }
            if !self.continue_token.is_empty() {
                findings.push(FieldError::forbidden(
                    &at,
                    "resourceVersionMatch is forbidden when continue is provided",
                ));
            }
            if !matches!(matching, "Exact" | "NotOlderThan") {
                findings.push(FieldError::not_supported(
                    &at,
                    matching,
                    &["Exact", "NotOlderThan", ""],
                ));
            }
            if matching == "Exact" && self.resource_version == "0" {
                findings.push(FieldError::forbidden(
                    &at,
                    "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
                ));
            }
        }
        if self.send_initial_events.is_some() {
            findings.push(FieldError::forbidden(
                &Path::new("sendInitialEvents"),
                "sendInitialEvents is forbidden for list",
            ));
        }
        findings
    }
}

/// Options of create, update and patch.
#[derive(Clone, Debug, PartialEq)]
pub struct WriteOptions {
    /// `dryRun=All`.
    pub dry_run: bool,
    /// What happens to unknown and duplicate fields.
    pub field_validation: FieldValidation,
    /// Who writes, for field ownership.
    pub field_manager: String,
    /// The options as an object, for admission.
    pub object: Value,
}

impl WriteOptions {
    /// Reads the options of `kind` (`CreateOptions`, `UpdateOptions`, `PatchOptions`). `apply`: the patch is a
    /// server-side apply.
    pub fn read(query: &Query, kind: &str, apply: bool) -> Result<WriteOptions, ApiError> {
        let mut object = json!({"kind": kind, "apiVersion": "meta.k8s.io/v1"});
        let dry_run: Vec<&str> = query.all("dryRun").filter(|v| !v.is_empty()).collect();
        if !dry_run.is_empty() {
            object["dryRun"] = json!(dry_run);
        }
        for key in ["fieldManager", "fieldValidation"] {
            if let Some(text) = query.text(key) {
                object[key] = text.into();
            }
        }
        if kind == "PatchOptions"
            && let Some(force) = query.optional_flag("force")
        {
            object["force"] = force.into();
        }
        let findings = if kind == "PatchOptions" {
            rules::validate_patch_options(&object, apply)
        } else {
            rules::validate_write_options(&object)
        };
        if !findings.is_empty() {
            return Err(ApiError::invalid(&meta_kind(kind), "", findings));
        }
        Ok(WriteOptions {
            dry_run: !dry_run.is_empty(),
            field_validation: match value::str_or_empty(&object, &["fieldValidation"]) {
                "Ignore" => FieldValidation::Ignore,
                "Strict" => FieldValidation::Strict,
                _ => FieldValidation::Warn,
            },
            field_manager: value::str_or_empty(&object, &["fieldManager"]).to_string(),
            object,
        })
    }
}

/// Reads the `DeleteOptions` of a delete: from the body when there is one, else from the query. Returns the options
/// and their form for admission.
pub fn delete_options(
    headers: &http::HeaderMap,
    query: &Query,
    body: &Bytes,
) -> Result<(DeleteOptions, Value), ApiError> {
    let object = if body.is_empty() {
        from_query(query)?
    } else {
        from_body(headers, body)?
    };
    let findings = rules::validate_delete_options(&object);
    if !findings.is_empty() {
        return Err(ApiError::invalid(&meta_kind("DeleteOptions"), "", findings));
    }
    let text = |path: &[&str]| {
        value::get_str(&object, path)
            .filter(|t| !t.is_empty())
            .map(str::to_string)
    };
    let options = DeleteOptions {
        grace_period_seconds: value::get_i64(&object, &["gracePeriodSeconds"]),
        precondition_uid: text(&["preconditions", "uid"]),
        precondition_resource_version: text(&["preconditions", "resourceVersion"]),
        propagation_policy: text(&["propagationPolicy"]),
        orphan_dependents: value::get_bool(&object, &["orphanDependents"]),
        dry_run: !value::items(&object, &["dryRun"]).is_empty(),
    };
    Ok((options, object))
}

fn from_query(query: &Query) -> Result<Value, ApiError> {
    let mut object = json!({"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1"});
    if let Some(seconds) = query.int("gracePeriodSeconds")? {
        object["gracePeriodSeconds"] = seconds.into();
    }
    if let Some(orphan) = query.optional_flag("orphanDependents") {
        object["orphanDependents"] = orphan.into();
    }
    if let Some(policy) = query.text("propagationPolicy") {
        object["propagationPolicy"] = policy.into();
    }
    let dry_run: Vec<&str> = query.all("dryRun").filter(|v| !v.is_empty()).collect();
    if !dry_run.is_empty() {
        object["dryRun"] = json!(dry_run);
    }
    Ok(object)
}

fn from_body(headers: &http::HeaderMap, body: &Bytes) -> Result<Value, ApiError> {
    use keelson_machinery::codec::{Strictness, json as json_codec, protobuf, yaml};
    let of = keelson_machinery::schema::Schema::builtin()
        .lookup("io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions")
        .ok_or_else(|| ApiError::internal("no DeleteOptions in the type table"))?;
    let decoded = match negotiate::input_format(headers)? {
        Format::Json => json_codec::decode(body, of, Strictness::Lenient).map(|(object, _)| object),
        Format::Yaml => yaml::decode(body, of, Strictness::Lenient).map(|(object, _)| object),
        Format::Protobuf => protobuf::decode_object(body, of),
    };
    let object = decoded.map_err(|e| ApiError::bad_request(e.to_string()))?;
    let kind = value::str_or_empty(&object, &["kind"]);
    if !kind.is_empty() && kind != "DeleteOptions" {
        return Err(ApiError::bad_request(
            "decoded object cannot be converted to DeleteOptions",
        ));
    }
    Ok(object)
}
