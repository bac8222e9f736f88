//! Rules for the spec of definitions (upstream `apis/apiextensions/validation`). What all versions have in common is
//! named as upstream names it, at the top of the spec: its rules run on a form that has it there.

use std::collections::BTreeSet;

use keelson_machinery::meta::names as rules;
use keelson_machinery::status::field::{FieldError, Path};
use keelson_machinery::text::is_print;
use keelson_machinery::value::{self, Value};
use serde_json::json;

use super::schema_rules;
use crate::extensions::status::is_true;

/// Most fields that selectors may name.
const MAX_SELECTABLE: usize = 8;

const COLUMN_TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];

const COLUMN_FORMATS: [&str; 8] = [
    "byte",
    "date",
    "date-time",
    "double",
    "float",
    "int32",
    "int64",
    "password",
];

/// What is wrong with the spec of `object`, which replaces `old`.
pub fn spec(object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut found = Vec::new();
    let path = Path::new("spec");
    let text = |steps: &[&str]| value::str_or_empty(object, steps);
    let group = text(&["spec", "group"]);
    let at = path.child("group");
    let broken = rules::dns1123_subdomain(group);
    if group.is_empty() {
        found.push(FieldError::required(&at, ""));
    } else if !broken.is_empty() {
        found.push(FieldError::invalid(&at, group, broken.join(",")));
    } else if !group.contains('.') {
        found.push(FieldError::invalid(
            &at,
            group,
            "should be a domain with at least one dot",
        ));
    }
    let scope = text(&["spec", "scope"]);
    match scope {
        "" => found.push(FieldError::required(&path.child("scope"), "")),
        "Cluster" | "Namespaced" => {}
        other => found.push(FieldError::not_supported(
            &path.child("scope"),
            other,
            &["Cluster", "Namespaced"],
        )),
    }
    versions(object, old, &path, &mut found);
    for name in ["plural", "singular", "kind", "listKind"] {
        if text(&["spec", "names", name]).is_empty() {
            found.push(FieldError::required(&path.child("names").child(name), ""));
        }
    }
    if let Some(given) = value::get(object, &["spec", "names"]) {
        found.extend(names(given, &path.child("names")));
    }
    conversion(object, old, &path.child("conversion"), &mut found);
    if let Some(old) = old {
        unchanged(object, old, &mut found);
    }
    found
}

fn unchanged(object: &Value, old: &Value, found: &mut Vec<FieldError>) {
    let established = is_true(old, "Established");
    let parts: [(&[&str], bool); 4] = [
        (&["spec", "scope"], established),
        (&["spec", "names", "kind"], established),
        (&["spec", "group"], true),
        (&["spec", "names", "plural"], true),
    ];
    for (steps, fixed) in parts {
        let (new, before) = (
            value::str_or_empty(object, steps),
            value::str_or_empty(old, steps),
        );
        if fixed && new != before {
            let path = steps[1..]
                .iter()
                .fold(Path::new(steps[0]), |path, step| path.child(step));
            found.push(FieldError::invalid(&path, new, "field is immutable"));
        }
    }
}

/// A member that all versions have alike; `None` when they differ.
fn common<'a>(versions: &'a [Value], name: &str) -> Option<Option<&'a Value>> {
    let first = versions.first()?.get(name);
    let same = |version: &Value| value::semantic_eq(version.get(name), first);
    versions.iter().all(same).then_some(first)
}

fn schema_of(version: &Value) -> Option<&Value> {
    value::get(version, &["schema", "openAPIV3Schema"])
}

fn has_status(version: &Value) -> bool {
    value::get(version, &["subresources", "status"]).is_some()
}

fn versions(object: &Value, old: Option<&Value>, path: &Path, found: &mut Vec<FieldError>) {
    let versions = value::items(object, &["spec", "versions"]);
    let old_versions = old.map(|old| value::items(old, &["spec", "versions"]));
    let old_schemas: Vec<&Value> = old_versions
        .into_iter()
        .flatten()
        .filter_map(schema_of)
        .collect();
    let mut options = schema_rules::kept_by(&old_schemas);
    if value::get_bool(object, &["spec", "preserveUnknownFields"]) != Some(true) {
        options.structural = true;
    }
    let schema_needed = old_versions.is_none_or(|old| old.iter().all(|v| schema_of(v).is_some()));
    let shared_schema = common(versions, "schema");
    if !matches!(shared_schema, Some(Some(_))) {
        for (index, version) in versions.iter().enumerate() {
            if schema_of(version).is_none() && schema_needed {
                let at = path.child("versions").index(index).child("schema");
                found.push(FieldError::required(&at.child("openAPIV3Schema"), ""));
            }
        }
    }
    let mut names = BTreeSet::new();
    let mut unique = true;
    let mut stored = 0;
    for (index, version) in versions.iter().enumerate() {
        let path = path.child("versions").index(index);
        stored += usize::from(value::get_bool(version, &["storage"]) == Some(true));
        let name = value::str_or_empty(version, &["name"]);
        unique &= names.insert(name);
        let broken = rules::dns1035_label(name);
        if !broken.is_empty() {
            found.push(FieldError::invalid(
                &path.child("name"),
                name,
                broken.join(","),
            ));
        }
        deprecation(version, &path, found);
        if shared_schema.is_none()
            && let Some(schema) = schema_of(version)
        {
            let at = path.child("schema").child("openAPIV3Schema");
            let status = has_status(version);
            found.extend(schema_rules::validate(schema, status, &options, &at));
        }
        if common(versions, "subresources").is_none() {
            subresources(version.get("subresources"), &path, found);
        }
        if common(versions, "additionalPrinterColumns").is_none() {
            columns(version.get("additionalPrinterColumns"), &path, found);
        }
        if common(versions, "selectableFields").is_none() {
            let kept = old_versions
                .into_iter()
                .flatten()
                .find(|old| old.get("name") == version.get("name"))
                .and_then(|old| old.get("selectableFields"));
            let fields = version.get("selectableFields");
            selectable(fields, schema_of(version), kept, &path, found);
        }
    }
    let all = || Value::Array(versions.to_vec());
    let versions_path = path.child("versions");
    if !unique {
        found.push(FieldError::invalid(
            &versions_path,
            all(),
            "must contain unique version names",
        ));
    }
    if stored != 1 {
        found.push(FieldError::invalid(
            &versions_path,
            all(),
            "must have exactly one version marked as storage version",
        ));
    }
    let Some(first) = versions.first() else {
        return;
    };
    if let Some(Some(schema)) = shared_schema
        && let Some(schema) = schema.get("openAPIV3Schema").filter(|s| !s.is_null())
    {
        let at = path.child("validation").child("openAPIV3Schema");
        let status = versions.iter().any(has_status);
        found.extend(schema_rules::validate(schema, status, &options, &at));
    }
    if let Some(shared) = common(versions, "subresources") {
        subresources(shared, path, found);
    }
    if let Some(shared) = common(versions, "additionalPrinterColumns") {
        columns(shared, path, found);
    }
    if let Some(shared) = common(versions, "selectableFields") {
        let kept = old_versions
            .and_then(|old| common(old, "selectableFields"))
            .flatten();
        selectable(shared, schema_of(first), kept, path, found);
    }
}

fn deprecation(version: &Value, path: &Path, found: &mut Vec<FieldError>) {
    let Some(warning) = value::get_str(version, &["deprecationWarning"]) else {
        return;
    };
    let mut refuse = |why: String| {
        found.push(FieldError::invalid(
            &path.child("deprecationWarning"),
            warning,
            why,
        ));
    };
    if value::get_bool(version, &["deprecated"]) != Some(true) {
        refuse("can only be set for deprecated versions".to_string());
        return;
    }
    if warning.len() > 256 {
        refuse("must be <= 256 characters long".to_string());
    }
    if warning.is_empty() {
        refuse("must not be an empty string".to_string());
    }
    if let Some((index, _)) = warning.char_indices().find(|(_, c)| !is_print(*c)) {
        refuse(format!(
            "must only contain printable UTF-8 characters; non-printable character found at index {index}"
        ));
    }
}

/// Rules for names, requested or accepted.
pub fn names(names: &Value, path: &Path) -> Vec<FieldError> {
    let mut found = Vec::new();
    let text = |name: &str| value::str_or_empty(names, &[name]);
    for name in ["plural", "singular"] {
        let broken = rules::dns1035_label(text(name));
        if !text(name).is_empty() && !broken.is_empty() {
            let at = path.child(name);
            found.push(FieldError::invalid(&at, text(name), broken.join(",")));
        }
    }
    for name in ["kind", "listKind"] {
        let broken = rules::dns1035_label(&text(name).to_lowercase());
        if !text(name).is_empty() && !broken.is_empty() {
            found.push(FieldError::invalid(
                &path.child(name),
                text(name),
                format!(
                    "may have mixed case, but should otherwise match: {}",
                    broken.join(",")
                ),
            ));
        }
    }
    for name in ["shortNames", "categories"] {
        for (index, given) in value::items(names, &[name]).iter().enumerate() {
            let given = given.as_str().unwrap_or_default();
            let broken = rules::dns1035_label(given);
            if !broken.is_empty() {
                let at = path.child(name).index(index);
                found.push(FieldError::invalid(&at, given, broken.join(",")));
            }
        }
    }
    if !text("kind").is_empty() && text("kind") == text("listKind") {
        found.push(FieldError::invalid(
            &path.child("listKind"),
            text("listKind"),
            "kind and listKind may not be the same",
        ));
    }
    found
}

fn simple_path(json_path: &str, path: &Path) -> Option<FieldError> {
    (!json_path.starts_with('.')).then(|| {
        FieldError::invalid(
            path,
            json_path,
            "must be a simple json path starting with .",
        )
    })
}

fn subresources(given: Option<&Value>, path: &Path, found: &mut Vec<FieldError>) {
    let Some(scale) = given.and_then(|given| given.get("scale")) else {
        return;
    };
    let path = path.child("subresources");
    for (name, root) in [
        ("specReplicasPath", ".spec."),
        ("statusReplicasPath", ".status."),
    ] {
        let json_path = value::str_or_empty(scale, &[name]);
        let at = path.child("scale").child(name);
        if json_path.is_empty() {
            found.push(FieldError::required(&at, ""));
        } else if let Some(error) = simple_path(json_path, &at) {
            found.push(error);
        } else if !json_path.starts_with(root) {
            let why = format!("should be a json path under {}", root.trim_end_matches('.'));
            found.push(FieldError::invalid(&at, json_path, why));
        }
    }
    let json_path = value::str_or_empty(scale, &["labelSelectorPath"]);
    if !json_path.is_empty() {
        let at = path.child("scale").child("labelSelectorPath");
        if let Some(error) = simple_path(json_path, &at) {
            found.push(error);
        } else if !json_path.starts_with(".spec.") && !json_path.starts_with(".status.") {
            found.push(FieldError::invalid(
                &at,
                json_path,
                "should be a json path under either .spec or .status",
            ));
        }
    }
}

fn columns(given: Option<&Value>, path: &Path, found: &mut Vec<FieldError>) {
    let columns = given.and_then(Value::as_array).into_iter().flatten();
    for (index, column) in columns.enumerate() {
        let path = path.child("additionalPrinterColumns").index(index);
        let text = |name: &str| value::str_or_empty(column, &[name]);
        if text("name").is_empty() {
            found.push(FieldError::required(&path.child("name"), ""));
        }
        let types = format!("must be one of {}", COLUMN_TYPES.join(","));
        match text("type") {
            "" => found.push(FieldError::required(&path.child("type"), types)),
            kind if !COLUMN_TYPES.contains(&kind) => {
                found.push(FieldError::invalid(&path.child("type"), kind, types));
            }
            _ => {}
        }
        let format = text("format");
        if !format.is_empty() && !COLUMN_FORMATS.contains(&format) {
            found.push(FieldError::invalid(
                &path.child("format"),
                format,
                format!("must be one of {}", COLUMN_FORMATS.join(",")),
            ));
        }
        let at = path.child("JSONPath");
        match text("jsonPath") {
            "" => found.push(FieldError::required(&at, "")),
            json_path => found.extend(simple_path(json_path, &at)),
        }
    }
}

fn selectable(
    given: Option<&Value>,
    schema: Option<&Value>,
    kept: Option<&Value>,
    path: &Path,
    found: &mut Vec<FieldError>,
) {
    let Some(fields) = given.and_then(Value::as_array).filter(|f| !f.is_empty()) else {
        return;
    };
    let path = path.child("selectableFields");
    let Some(schema) = schema else {
        found.push(FieldError::invalid(
            &path,
            "",
            "may only be set when `version.schema.openAPIV3Schema` is not included",
        ));
        return;
    };
    let mut unique = BTreeSet::new();
    for (index, field) in fields.iter().enumerate() {
        let at = path.index(index).child("jsonPath");
        let json_path = value::str_or_empty(field, &["jsonPath"]);
        if json_path.is_empty() {
            found.push(FieldError::required(&at, ""));
            continue;
        }
        let Some(leaf) = schema_rules::at_field_path(schema, json_path, false) else {
            let why = match json_path.strip_prefix('.') {
                None => format!("expected [ or . but got: {json_path}"),
                Some(_) => "does not refer to a valid field".to_string(),
            };
            let why = format!("is an invalid path: {why}");
            found.push(FieldError::invalid(&at, json_path, why));
            continue;
        };
        if json_path.starts_with(".metadata.") || json_path == ".metadata" {
            found.push(FieldError::invalid(
                &at,
                json_path,
                "must not point to fields in metadata",
            ));
        }
        if !matches!(
            value::str_or_empty(leaf, &["type"]),
            "string" | "boolean" | "integer"
        ) {
            found.push(FieldError::invalid(
                &at,
                json_path,
                "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.",
            ));
        }
        if !unique.insert(json_path) {
            found.push(FieldError::duplicate(&at, json_path));
        }
    }
    if unique.len() > MAX_SELECTABLE && kept != given {
        found.push(FieldError::too_many(&path, unique.len(), MAX_SELECTABLE));
    }
}

fn conversion(object: &Value, old: Option<&Value>, path: &Path, found: &mut Vec<FieldError>) {
    let Some(given) = value::get(object, &["spec", "conversion"]) else {
        return;
    };
    let strategy = value::str_or_empty(given, &["strategy"]);
    match strategy {
        "" => found.push(FieldError::required(&path.child("strategy"), "")),
        "None" | "Webhook" => {}
        other => found.push(FieldError::not_supported(
            &path.child("strategy"),
            other,
            &["None", "Webhook"],
        )),
    }
    let webhook = given.get("webhook").filter(|webhook| !webhook.is_null());
    let client = webhook.and_then(|webhook| webhook.get("clientConfig"));
    let versions = webhook.map(|w| value::items(w, &["conversionReviewVersions"]));
    let at = path.child("webhookClientConfig");
    let versions_path = path.child("conversionReviewVersions");
    if strategy != "Webhook" {
        let why = "should not be set when strategy is not set to Webhook";
        if client.is_some() {
            found.push(FieldError::forbidden(&at, why));
        }
        if versions.is_some_and(|versions| !versions.is_empty()) {
            found.push(FieldError::forbidden(&versions_path, why));
        }
        return;
    }
    match client {
        None => found.push(FieldError::required(
            &at,
            "required when strategy is set to Webhook",
        )),
        Some(client) => client_config(client, &at, found),
    }
    let versions = versions.unwrap_or_default();
    if versions.is_empty() {
        found.push(FieldError::required(&versions_path, ""));
        return;
    }
    let accepted = |versions: &[Value]| versions.iter().any(|v| v == "v1" || v == "v1beta1");
    let mut seen = BTreeSet::new();
    for (index, version) in versions.iter().enumerate() {
        let version = version.as_str().unwrap_or_default();
        let at = versions_path.index(index);
        if !seen.insert(version) {
            found.push(FieldError::invalid(&at, version, "duplicate version"));
            continue;
        }
        for why in rules::dns1035_label(version) {
            found.push(FieldError::invalid(&at, version, why));
        }
    }
    let old_versions = old.map(|old| {
        value::items(
            old,
            &["spec", "conversion", "webhook", "conversionReviewVersions"],
        )
    });
    let needed = old_versions.is_none_or(|old| old.is_empty() || accepted(old));
    if needed && !accepted(versions) {
        found.push(FieldError::invalid(
            &versions_path,
            json!(versions),
            "must include at least one of v1, v1beta1",
        ));
    }
}

fn client_config(client: &Value, path: &Path, found: &mut Vec<FieldError>) {
    let url = value::get_str(client, &["url"]);
    let service = client.get("service").filter(|service| !service.is_null());
    match (url, service) {
        (None, None) | (Some(_), Some(_)) => found.push(FieldError::required(
            path,
            "exactly one of url or service is required",
        )),
        (Some(url), None) => webhook_url(url, &path.child("url"), found),
        (None, Some(service)) => {
            let path = path.child("service");
            for name in ["name", "namespace"] {
                if value::str_or_empty(service, &[name]).is_empty() {
                    let why = format!("service {name} is required");
                    found.push(FieldError::required(&path.child(name), why));
                }
            }
            let port = value::get_i64(service, &["port"]).unwrap_or(443);
            for why in rules::port_number(port) {
                found.push(FieldError::invalid(
                    &path.child("port"),
                    port,
                    format!("port is not valid: {why}"),
                ));
            }
            let url_path = value::str_or_empty(service, &["path"]);
            if !url_path.is_empty() && !url_path.starts_with('/') {
                found.push(FieldError::invalid(
                    &path.child("path"),
                    url_path,
                    "must start with a '/'",
                ));
            }
        }
    }
}

/// Upstream `webhook.ValidateWebhookURL`.
fn webhook_url(url: &str, path: &Path, found: &mut Vec<FieldError>) {
    const FORM: &str = "; desired format: https://host[/path]";
    let mut refuse = |shown: &str, why: String| {
        found.push(FieldError::invalid(path, shown, why));
    };
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    if scheme != "https" {
        refuse(
            scheme,
            format!("'https' is the only allowed URL scheme{FORM}"),
        );
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let (user, host) = match authority.rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, authority),
    };
    if host.is_empty() {
        refuse(host, format!("host must be specified{FORM}"));
    }
    if let Some(user) = user {
        refuse(
            user,
            "user information is not permitted in the URL".to_string(),
        );
    }
    if let Some((_, fragment)) = rest.split_once('#') {
        refuse(
            fragment,
            "fragments are not permitted in the URL".to_string(),
        );
    }
    if let Some((_, query)) = rest.split_once('?') {
        let query = query.split('#').next().unwrap_or_default();
        refuse(
            query,
            "query parameters are not permitted in the URL".to_string(),
        );
    }
}
