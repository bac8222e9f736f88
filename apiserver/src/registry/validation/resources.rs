//! Amounts of resources: of containers, limits and quotas.

use std::collections::BTreeSet;

use keelson_machinery::meta::names;
use keelson_machinery::quantity::Quantity;
use keelson_machinery::status::field::{FieldError, Path};
use keelson_machinery::value::{self, Value};

use super::{At, Found, refuse, text};

fn amounts<'a>(value: &'a Value, list: &str) -> impl Iterator<Item = (&'a String, Quantity)> {
    value::get_object(value, &[list])
        .into_iter()
        .flatten()
        .filter_map(|(name, amount)| Some((name, Quantity::parse(amount.as_str()?).ok()?)))
}

fn amount_of(value: &Value, list: &str, name: &str) -> Option<Quantity> {
    Quantity::parse(value::get_str(value, &[list, name])?).ok()
}

/// Names without a domain that containers may ask for.
fn is_container_resource(name: &str) -> bool {
    matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-")
}

/// Whether more may be promised than there is.
fn may_overcommit(name: &str) -> bool {
    let native = !name.contains('/') || name.contains("kubernetes.io/");
    native && !name.starts_with("hugepages-")
}

/// Upstream `ValidateResourceQuantityValue`.
fn amount(name: &str, quantity: Quantity, path: &Path, found: &mut Found) {
    if quantity.sign() < 0 {
        found.push(FieldError::invalid(
            path,
            quantity.to_string(),
            super::NEGATIVE,
        ));
    }
    let whole = !may_overcommit(name) && !name.starts_with("hugepages-");
    if whole && quantity.milli_value() % 1000 != 0 {
        found.push(FieldError::invalid(
            path,
            quantity.to_string(),
            "must be an integer",
        ));
    }
}

/// Upstream `validateContainerResourceName`.
fn container_resource(name: &str, path: &Path, found: &mut Found) {
    let broken = names::qualified_name(name);
    if !broken.is_empty() {
        refuse(found, path, name, broken);
    } else if !name.contains('/') && !is_container_resource(name) {
        if !matches!(name, "storage" | "pods") {
            found.push(FieldError::invalid(
                path,
                name,
                "must be a standard resource type or fully qualified",
            ));
        }
        found.push(FieldError::invalid(
            path,
            name,
            "must be a standard resource for containers",
        ));
    }
}

/// `validateResourceRequirements` of containers.
pub fn requirements(requirements: &Value, at: &At<'_>, found: &mut Found) {
    let (limits, requests) = (at.child("limits"), at.child("requests"));
    let mut huge = false;
    let mut computes = false;
    for (list, path) in [("limits", &limits), ("requests", &requests)] {
        for (name, quantity) in amounts(requirements, list) {
            let path = path.key(name);
            container_resource(name, &path, found);
            amount(name, quantity, &path, found);
            huge |= name.starts_with("hugepages-");
            computes |= matches!(name.as_str(), "cpu" | "memory");
        }
    }
    for (name, quantity) in amounts(requirements, "requests") {
        let words = match amount_of(requirements, "limits", name) {
            Some(limit) if quantity != limit && !may_overcommit(name) => {
                format!("must be equal to {name} limit of {limit}")
            }
            Some(limit) if quantity > limit => {
                format!("must be less than or equal to {name} limit of {limit}")
            }
            None if !may_overcommit(name) => {
                found.push(FieldError::required(
                    &limits,
                    "Limit must be set for non overcommitable resources",
                ));
                continue;
            }
            _ => continue,
        };
        found.push(FieldError::invalid(&requests, quantity.to_string(), words));
    }
    if huge && !computes {
        found.push(FieldError::forbidden(
            &at.path(),
            "HugePages require cpu or memory",
        ));
    }
}

/// `ValidateLimitRange`.
pub fn limit_range(range: &Value, at: &At<'_>, found: &mut Found) {
    let mut types = BTreeSet::new();
    for (index, limit) in value::items(range, &["spec", "limits"]).iter().enumerate() {
        let path = at.child("spec.limits").index(index);
        let kind = text(limit, "type");
        if !types.insert(kind) {
            found.push(FieldError::duplicate(&path.child("type"), kind));
        }
        if kind == "Pod" {
            for list in ["default", "defaultRequest"] {
                if value::get_object(limit, &[list]).is_some_and(|l| !l.is_empty()) {
                    found.push(FieldError::forbidden(
                        &path.child(list),
                        "may not be specified when `type` is 'Pod'",
                    ));
                }
            }
        }
        if kind == "PersistentVolumeClaim"
            && amount_of(limit, "min", "storage").is_none()
            && amount_of(limit, "max", "storage").is_none()
        {
            found.push(FieldError::required(
                &path.child("limits"),
                "either minimum or maximum storage value is required, but neither was provided",
            ));
        }
        // What must not exceed what, and whose error it is, in upstream's order.
        for (low, high, blamed, low_words, high_words) in [
            ("min", "max", "min", "min value", "max value"),
            (
                "min",
                "defaultRequest",
                "defaultRequest",
                "min value",
                "default request value",
            ),
            (
                "defaultRequest",
                "max",
                "defaultRequest",
                "default request value",
                "max value",
            ),
            (
                "defaultRequest",
                "default",
                "defaultRequest",
                "default request value",
                "default limit value",
            ),
            ("min", "default", "default", "min value", "default value"),
            ("default", "max", "default", "default value", "max value"),
        ] {
            for (name, quantity) in amounts(limit, low) {
                let Some(other) = amount_of(limit, high, name) else {
                    continue;
                };
                if quantity > other {
                    let shown = if blamed == low || (blamed, low) == ("default", "min") {
                        quantity
                    } else {
                        other
                    };
                    found.push(FieldError::invalid(
                        &path.child(blamed).key(name),
                        shown.to_string(),
                        format!("{low_words} {quantity} is greater than {high_words} {other}"),
                    ));
                }
            }
        }
    }
}

const SCOPES: &[&str] = &[
    "BestEffort",
    "CrossNamespacePodAffinity",
    "NotBestEffort",
    "NotTerminating",
    "PriorityClass",
    "Terminating",
    "VolumeAttributesClass",
];

/// `ValidateResourceQuotaSpec`.
pub fn quota(quota: &Value, at: &At<'_>, found: &mut Found) {
    for (name, quantity) in amounts(quota, "hard") {
        let path = at.child("hard").key(name);
        let broken = names::qualified_name(name);
        refuse(found, &path, name, broken);
        if quantity.sign() < 0 {
            found.push(FieldError::invalid(
                &path,
                quantity.to_string(),
                super::NEGATIVE,
            ));
        }
    }
    let scopes: Vec<&str> = value::items(quota, &["scopes"])
        .iter()
        .filter_map(Value::as_str)
        .collect();
    let all = Value::from(scopes.clone());
    for scope in &scopes {
        if !SCOPES.contains(scope) {
            found.push(FieldError::invalid(
                &at.child("scopes"),
                all.clone(),
                "unsupported scope",
            ));
        }
    }
    for (one, other) in [
        ("BestEffort", "NotBestEffort"),
        ("Terminating", "NotTerminating"),
    ] {
        if scopes.contains(&one) && scopes.contains(&other) {
            found.push(FieldError::invalid(
                &at.child("scopes"),
                all.clone(),
                "conflicting scopes",
            ));
        }
    }
    let path = at.child("scopeSelector.matchExpressions");
    for requirement in value::items(quota, &["scopeSelector", "matchExpressions"]) {
        let scope = text(requirement, "scopeName");
        if !SCOPES.contains(&scope) {
            found.push(FieldError::invalid(
                &path.child("scopeName"),
                scope,
                "unsupported scope",
            ));
        }
        let values = value::items(requirement, &["values"]);
        match text(requirement, "operator") {
            "In" | "NotIn" if values.is_empty() => found.push(FieldError::required(
                &path.child("values"),
                "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
            )),
            "Exists" | "DoesNotExist" if !values.is_empty() => found.push(FieldError::invalid(
                &path.child("values"),
                Value::from(values),
                "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector",
            )),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => found.push(FieldError::invalid(
                &path.child("operator"),
                other,
                "not a valid selector operator",
            )),
        }
    }
}
