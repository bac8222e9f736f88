//! Configurations of admission webhooks (upstream `pkg/apis/admissionregistration/validation`); policies are in
//! `policies`.

use std::collections::HashSet;

use keelson_machinery::meta::names;
use keelson_machinery::status::field::{FieldError, Path};
use keelson_machinery::value::{self, Value};

use super::{At, Found, has, policies, refuse, text};

const REVIEW_VERSIONS: [&str; 2] = ["v1", "v1beta1"];
const SIDE_EFFECTS: [&str; 2] = ["None", "NoneOnDryRun"];
const OPERATIONS: [&str; 5] = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
const SCOPES: [&str; 3] = ["*", "Cluster", "Namespaced"];

/// `validateMutatingWebhookConfiguration`, `validateValidatingWebhookConfiguration`.
pub fn webhooks(configuration: &Value, at: &At<'_>, found: &mut Found) {
    let mut seen = HashSet::new();
    for (index, webhook) in value::items(configuration, &["webhooks"])
        .iter()
        .enumerate()
    {
        let path = at.child("webhooks").index(index);
        self::webhook(webhook, &path, found);
        review_versions(webhook, &path.child("admissionReviewVersions"), found);
        let name = text(webhook, "name");
        if !name.is_empty() && !seen.insert(name) {
            found.push(FieldError::duplicate(&path.child("name"), name));
        }
    }
}

fn webhook(webhook: &Value, path: &Path, found: &mut Found) {
    full_name(text(webhook, "name"), &path.child("name"), found);
    for (index, of) in value::items(webhook, &["rules"]).iter().enumerate() {
        rule(of, &path.child("rules").index(index), found);
    }
    let side_effects = path.child("sideEffects");
    match value::get_str(webhook, &["sideEffects"]) {
        None => found.push(FieldError::required(
            &side_effects,
            format!("must specify one of {}", SIDE_EFFECTS.join(", ")),
        )),
        Some(given) if !SIDE_EFFECTS.contains(&given) => found.push(FieldError::not_supported(
            &side_effects,
            given,
            &SIDE_EFFECTS,
        )),
        Some(_) => {}
    }
    let client = path.child("clientConfig");
    let given_url = value::get_str(webhook, &["clientConfig", "url"]);
    let given_service = value::get(webhook, &["clientConfig", "service"]);
    match (given_url, given_service) {
        (Some(given), None) => url(given, &client.child("url"), found),
        (None, Some(given)) => service(given, &client.child("service"), found),
        _ => found.push(FieldError::required(
            &client,
            "exactly one of url or service is required",
        )),
    }
    policies::webhook_conditions(webhook, path, found);
}

/// `IsFullyQualifiedName`.
fn full_name(name: &str, path: &Path, found: &mut Found) {
    if name.is_empty() {
        found.push(FieldError::required(path, ""));
        return;
    }
    let broken = names::dns1123_subdomain(name);
    if !broken.is_empty() {
        found.push(FieldError::invalid(path, name, broken.join(",")));
    } else if name.split('.').count() < 3 {
        found.push(FieldError::invalid(
            path,
            name,
            "should be a domain with at least three segments separated by dots",
        ));
    }
}

fn review_versions(webhook: &Value, path: &Path, found: &mut Found) {
    let versions = value::items(webhook, &["admissionReviewVersions"]);
    if versions.is_empty() {
        found.push(FieldError::required(
            path,
            format!("must specify one of {}", REVIEW_VERSIONS.join(", ")),
        ));
        return;
    }
    let mut seen = HashSet::new();
    let mut known = false;
    for (index, version) in versions.iter().enumerate() {
        let version = version.as_str().unwrap_or_default();
        if !seen.insert(version) {
            found.push(FieldError::invalid(
                &path.index(index),
                version,
                "duplicate version",
            ));
            continue;
        }
        let broken = names::dns1035_label(version);
        refuse(found, &path.index(index), version, broken);
        known |= REVIEW_VERSIONS.contains(&version);
    }
    if !known {
        found.push(FieldError::invalid(
            path,
            Value::from(versions),
            format!(
                "must include at least one of {}",
                REVIEW_VERSIONS.join(", ")
            ),
        ));
    }
}

/// `validateRuleWithOperations`, also for the rules of policies.
pub(super) fn rule(rule: &Value, path: &Path, found: &mut Found) {
    let operations = value::items(rule, &["operations"]);
    let at = path.child("operations");
    wildcard_list(operations, &at, "operations", found);
    for (index, operation) in operations.iter().enumerate() {
        let operation = operation.as_str().unwrap_or_default();
        if !OPERATIONS.contains(&operation) {
            found.push(FieldError::not_supported(
                &at.index(index),
                operation,
                &OPERATIONS,
            ));
        }
    }
    let groups = value::items(rule, &["apiGroups"]);
    wildcard_list(groups, &path.child("apiGroups"), "API groups", found);
    let versions = value::items(rule, &["apiVersions"]);
    let at = path.child("apiVersions");
    wildcard_list(versions, &at, "API versions", found);
    for (index, version) in versions.iter().enumerate() {
        if version == "" {
            found.push(FieldError::required(&at.index(index), ""));
        }
    }
    resources(
        value::items(rule, &["resources"]),
        &path.child("resources"),
        found,
    );
    if let Some(scope) = value::get_str(rule, &["scope"])
        && !SCOPES.contains(&scope)
    {
        found.push(FieldError::not_supported(
            &path.child("scope"),
            scope,
            &SCOPES,
        ));
    }
}

/// A list that is not empty, and has `*` only alone.
fn wildcard_list(items: &[Value], path: &Path, what: &str, found: &mut Found) {
    if items.is_empty() {
        found.push(FieldError::required(path, ""));
    }
    if items.len() > 1 && items.iter().any(|item| item == "*") {
        found.push(FieldError::invalid(
            path,
            Value::from(items),
            format!("if '*' is present, must not specify other {what}"),
        ));
    }
}

/// `validateResources`.
fn resources(items: &[Value], path: &Path, found: &mut Found) {
    if items.is_empty() {
        found.push(FieldError::required(path, ""));
    }
    let mut whole: HashSet<&str> = HashSet::new();
    let mut everywhere: HashSet<&str> = HashSet::new();
    let mut plain = false;
    for (index, item) in items.iter().enumerate() {
        let item = item.as_str().unwrap_or_default();
        let at = path.index(index);
        if item.is_empty() {
            found.push(FieldError::required(&at, ""));
            continue;
        }
        let Some((of, sub)) = item.split_once('/') else {
            plain = item != "*";
            continue;
        };
        if whole.contains(of) {
            let words = format!("if '{of}/*' is present, must not specify {item}");
            found.push(FieldError::invalid(&at, item, words));
        }
        if everywhere.contains(sub) {
            let words = format!("if '*/{sub}' is present, must not specify {item}");
            found.push(FieldError::invalid(&at, item, words));
        }
        if sub == "*" {
            whole.insert(of);
        }
        if of == "*" {
            everywhere.insert(sub);
        }
    }
    let includes = |what: &str| items.iter().any(|item| item == what);
    if items.len() > 1 && includes("*/*") {
        found.push(FieldError::invalid(
            path,
            Value::from(items),
            "if '*/*' is present, must not specify other resources",
        ));
    }
    if plain && includes("*") {
        found.push(FieldError::invalid(
            path,
            Value::from(items),
            "if '*' is present, must not specify other resources without subresources",
        ));
    }
}

/// `ValidateWebhookURL`.
fn url(given: &str, path: &Path, found: &mut Found) {
    const FORM: &str = "; desired format: https://host[/path]";
    let (scheme, rest) = match given.split_once("://") {
        Some((scheme, rest)) => (scheme, rest),
        None => ("", given),
    };
    let (before_fragment, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let (before_query, query) = before_fragment
        .split_once('?')
        .unwrap_or((before_fragment, ""));
    let authority = match scheme {
        "" => "",
        _ => before_query.split('/').next().unwrap_or_default(),
    };
    let (user, host) = match authority.rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, authority),
    };
    if !host.is_empty() && given.parse::<http::Uri>().is_err() {
        found.push(FieldError::required(
            path,
            format!("url must be a valid URL: parse {given:?}: invalid character in URL{FORM}"),
        ));
        return;
    }
    if scheme != "https" {
        found.push(FieldError::invalid(
            path,
            scheme,
            format!("'https' is the only allowed URL scheme{FORM}"),
        ));
    }
    if host.is_empty() {
        found.push(FieldError::invalid(
            path,
            host,
            format!("host must be specified{FORM}"),
        ));
    }
    for (part, what) in [
        (
            user.unwrap_or_default(),
            "user information is not permitted in the URL",
        ),
        (fragment, "fragments are not permitted in the URL"),
        (query, "query parameters are not permitted in the URL"),
    ] {
        if !part.is_empty() {
            found.push(FieldError::invalid(path, part, what));
        }
    }
}

/// `ValidateWebhookService`.
fn service(service: &Value, path: &Path, found: &mut Found) {
    for name in ["name", "namespace"] {
        if text(service, name).is_empty() {
            found.push(FieldError::required(&path.child(name), ""));
        }
    }
    let port = value::get_i64(service, &["port"]).unwrap_or(0);
    let broken = names::port_number(port);
    if !broken.is_empty() {
        found.push(FieldError::invalid(
            &path.child("port"),
            port,
            format!("port is not valid: {}", broken.join(", ")),
        ));
    }
    let given = text(service, "path");
    if !has(service, "path") || matches!(given, "" | "/") {
        return;
    }
    let path = path.child("path");
    if given == "//" {
        found.push(FieldError::invalid(
            &path,
            given,
            "segment[0] may not be empty",
        ));
        return;
    }
    if !given.starts_with('/') {
        found.push(FieldError::invalid(&path, given, "must start with a '/'"));
    }
    let rest = given.strip_prefix('/').unwrap_or(given);
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    for (index, step) in rest.split('/').enumerate() {
        if step.is_empty() {
            found.push(FieldError::invalid(
                &path,
                given,
                format!("segment[{index}] may not be empty"),
            ));
            continue;
        }
        for message in names::dns1123_subdomain(step) {
            found.push(FieldError::invalid(
                &path,
                given,
                format!("segment[{index}]: {message}"),
            ));
        }
    }
}
