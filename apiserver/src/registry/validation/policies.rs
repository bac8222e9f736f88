//! Admission policies, their bindings and match conditions (upstream `pkg/apis/admissionregistration/validation`).
//! Expressions are compiled as they will be when the policy is used.

use std::collections::HashSet;

use keelson_machinery::meta::{self, names};
use keelson_machinery::status::field::{FieldError, Path};
use keelson_machinery::value::{self, Value};

use super::admission::rule;
use super::{At, Found, has, refuse, text};
use crate::admission::policy::conditions::webhook_environment;
use crate::admission::policy::definition::{compile_variables, environments, mutation_output};
use crate::admission::policy::expressions::{self, Known};
use crate::cel::escape::RESERVED;
use crate::cel::{Environment, Type};

const FAILURE_POLICIES: [&str; 2] = ["Fail", "Ignore"];
const MATCH_POLICIES: [&str; 2] = ["Equivalent", "Exact"];
const REINVOCATION_POLICIES: [&str; 2] = ["IfNeeded", "Never"];
const REASONS: [&str; 3] = ["Forbidden", "Invalid", "RequestEntityTooLarge"];
const ACTIONS: [&str; 3] = ["Audit", "Deny", "Warn"];
const MUTATING_OPERATIONS: [&str; 4] = ["*", "CONNECT", "CREATE", "UPDATE"];
const PATCH_TYPES: [&str; 2] = ["ApplyConfiguration", "JSONPatch"];
const MAX_CONDITIONS: usize = 64;
const MAX_ANNOTATIONS: usize = 20;
const MAX_ANNOTATION_EXPRESSION: usize = 5 * 1024;

/// Match conditions of a webhook.
pub(super) fn webhook_conditions(webhook: &Value, path: &Path, found: &mut Found) {
    if has(webhook, "matchConditions") {
        conditions(webhook, &webhook_environment(), path, found);
    }
}

/// An expression that does not compile.
fn expression(source: &str, env: &Environment, wanted: &[Type], path: &Path, found: &mut Found) {
    if let Err(why) = expressions::compile(source, env, wanted) {
        found.push(FieldError::invalid(path, source, why));
    }
}

fn conditions(of: &Value, env: &Environment, path: &Path, found: &mut Found) {
    let path = path.child("matchConditions");
    let list = value::items(of, &["matchConditions"]);
    if list.len() > MAX_CONDITIONS {
        found.push(FieldError::too_many(&path, list.len(), MAX_CONDITIONS));
    }
    let mut seen = HashSet::new();
    for (index, condition) in list.iter().enumerate() {
        let path = path.index(index);
        let source = text(condition, "expression").trim();
        let at = path.child("expression");
        if source.is_empty() {
            found.push(FieldError::required(&at, ""));
        } else {
            expression(source, env, &[Type::Bool], &at, found);
        }
        let name = text(condition, "name");
        let at = path.child("name");
        if name.is_empty() {
            found.push(FieldError::required(&at, ""));
            continue;
        }
        refuse(found, &at, name, names::qualified_name(name));
        if !seen.insert(name) {
            found.push(FieldError::duplicate(&at, name));
        }
    }
}

/// A member that must be one of a list.
fn one_of(of: &Value, member: &str, valid: &[&str], path: &Path, found: &mut Found) {
    let given = text(of, member);
    if given.is_empty() {
        found.push(FieldError::required(&path.child(member), ""));
    } else if !valid.contains(&given) {
        found.push(FieldError::not_supported(&path.child(member), given, valid));
    }
}

fn param_kind(spec: &Value, path: &Path, found: &mut Found) {
    let Some(of) = spec.get("paramKind").filter(|of| of.is_object()) else {
        return;
    };
    let path = path.child("paramKind");
    let at = path.child("apiVersion");
    let api_version = text(of, "apiVersion");
    match (api_version, api_version.matches('/').count()) {
        ("", _) => found.push(FieldError::required(&at, "")),
        (given, 2..) => found.push(FieldError::invalid(
            &at,
            given,
            format!("unexpected GroupVersion string: {given}"),
        )),
        (given, _) => {
            let (group, version) = given.split_once('/').unwrap_or(("", given));
            if !group.is_empty() {
                let broken = names::dns1123_subdomain(group);
                if !broken.is_empty() {
                    found.push(FieldError::invalid(&at, group, broken.join(",")));
                }
            }
            if version.is_empty() {
                found.push(FieldError::invalid(&at, given, "version must be specified"));
            } else {
                let broken = names::dns1035_label(version);
                if !broken.is_empty() {
                    found.push(FieldError::invalid(&at, version, broken.join(",")));
                }
            }
        }
    }
    let at = path.child("kind");
    let kind = text(of, "kind");
    if kind.is_empty() {
        found.push(FieldError::required(&at, ""));
    } else {
        let broken = names::dns1035_label(&kind.to_lowercase());
        if !broken.is_empty() {
            found.push(FieldError::invalid(
                &at,
                kind,
                format!(
                    "may have mixed case, but should otherwise match: {}",
                    broken.join(",")
                ),
            ));
        }
    }
}

/// `validateMatchResources`; selectors are checked by their type.
fn match_resources(resources: &Value, path: &Path, found: &mut Found) {
    one_of(resources, "matchPolicy", &MATCH_POLICIES, path, found);
    for member in ["namespaceSelector", "objectSelector"] {
        if !has(resources, member) {
            found.push(FieldError::required(&path.child(member), ""));
        }
    }
    for list in ["resourceRules", "excludeResourceRules"] {
        for (index, of) in value::items(resources, &[list]).iter().enumerate() {
            let path = path.child(list).index(index);
            let mut seen = HashSet::new();
            for (index, name) in value::items(of, &["resourceNames"]).iter().enumerate() {
                let name = name.as_str().unwrap_or_default();
                let at = path.child("resourceNames").index(index);
                refuse(found, &at, name, names::path_segment(name, false));
                if !seen.insert(name) {
                    found.push(FieldError::duplicate(&at, name));
                }
            }
            rule(of, &path, found);
        }
    }
}

/// Mutations are not for deletions.
fn mutating_operations(resources: &Value, path: &Path, found: &mut Found) {
    let path = path.child("resourceRules").child("operations");
    for of in value::items(resources, &["resourceRules"]) {
        for operation in value::items(of, &["operations"]) {
            let operation = operation.as_str().unwrap_or_default();
            if !MUTATING_OPERATIONS.contains(&operation) {
                found.push(FieldError::not_supported(
                    &path,
                    operation,
                    &MUTATING_OPERATIONS,
                ));
            }
        }
    }
}

/// What both kinds of policies have in common; returns the environments of their expressions with and without
/// `authorizer`.
fn common(spec: &Value, path: &Path, found: &mut Found) -> (Environment, Environment) {
    one_of(spec, "failurePolicy", &FAILURE_POLICIES, path, found);
    param_kind(spec, path, found);
    let at = path.child("matchConstraints");
    match spec.get("matchConstraints").filter(|of| of.is_object()) {
        None => found.push(FieldError::required(&at, "")),
        Some(resources) => {
            match_resources(resources, &at, found);
            if value::items(resources, &["resourceRules"]).is_empty() {
                found.push(FieldError::required(&at.child("resourceRules"), ""));
            }
        }
    }
    let known = Known::nothing(spec.get("paramKind").is_some_and(Value::is_object));
    conditions(spec, &expressions::environment(&known, true), path, found);
    let variables = path.child("variables");
    let (_, types) = compile_variables(spec, &known, |index, program| {
        let path = variables.index(index);
        let variable = value::items(spec, &["variables"]).get(index);
        let of = |member: &str| variable.map_or("", |variable| text(variable, member));
        let name = of("name");
        if name.trim().is_empty() {
            found.push(FieldError::required(
                &path.child("name"),
                "name is not specified",
            ));
        } else if !is_identifier(name) {
            found.push(FieldError::invalid(
                &path.child("name"),
                name,
                "must be a valid CEL identifier",
            ));
        }
        let source = of("expression");
        if source.trim().is_empty() {
            found.push(FieldError::required(
                &path.child("expression"),
                "expression is not specified",
            ));
        } else if let Err(why) = program {
            found.push(FieldError::invalid(
                &path.child("expression"),
                source,
                why.clone(),
            ));
        }
    });
    environments(&known, &types)
}

fn is_identifier(name: &str) -> bool {
    let mut chars = name.chars();
    chars
        .next()
        .is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
        && !RESERVED.contains(&name)
}

/// `validateValidatingAdmissionPolicySpec`.
pub fn validating(policy: &Value, at: &At<'_>, found: &mut Found) {
    let empty = Value::Null;
    let spec = policy.get("spec").unwrap_or(&empty);
    let path = at.child("spec");
    let (env, plain) = common(spec, &path, found);
    let rules = value::items(spec, &["validations"]);
    let annotations = value::items(spec, &["auditAnnotations"]);
    if rules.is_empty() && annotations.is_empty() {
        for member in ["validations", "auditAnnotations"] {
            found.push(FieldError::required(
                &path.child(member),
                "validations or auditAnnotations must contain at least one item",
            ));
        }
        return;
    }
    for (index, of) in rules.iter().enumerate() {
        validation(
            of,
            &env,
            &plain,
            &path.child("validations").index(index),
            found,
        );
    }
    let path = path.child("auditAnnotations");
    if annotations.len() > MAX_ANNOTATIONS {
        found.push(FieldError::invalid(
            &path,
            Value::from(annotations),
            format!("must not have more than {MAX_ANNOTATIONS} auditAnnotations"),
        ));
    }
    let mut seen = HashSet::new();
    for (index, of) in annotations.iter().enumerate() {
        let path = path.index(index);
        let key = text(of, "key");
        annotation(of, meta::name(policy), &env, &path, found);
        if !seen.insert(key) {
            found.push(FieldError::duplicate(&path.child("key"), key));
        }
    }
}

fn validation(of: &Value, env: &Environment, plain: &Environment, path: &Path, found: &mut Found) {
    let source = text(of, "expression");
    let at = path.child("expression");
    if source.trim().is_empty() {
        found.push(FieldError::required(&at, "expression is not specified"));
    } else {
        expression(source, env, &[Type::Bool], &at, found);
    }
    let given = text(of, "messageExpression");
    let at = path.child("messageExpression");
    if !given.is_empty() {
        if given.trim().is_empty() {
            found.push(FieldError::invalid(
                &at,
                given,
                "must be non-empty if specified",
            ));
        } else {
            expression(given, plain, &[Type::String], &at, found);
        }
    }
    let message = text(of, "message");
    let at = path.child("message");
    if !message.is_empty() && message.trim().is_empty() {
        found.push(FieldError::invalid(
            &at,
            message,
            "must be non-empty if specified",
        ));
    } else if message.trim().contains(['\n', '\r']) {
        found.push(FieldError::invalid(
            &at,
            message,
            "must not contain line breaks",
        ));
    }
    if let Some(reason) = value::get_str(of, &["reason"])
        && !REASONS.contains(&reason)
    {
        found.push(FieldError::not_supported(
            &path.child("reason"),
            reason,
            &REASONS,
        ));
    }
}

fn annotation(of: &Value, policy: &str, env: &Environment, path: &Path, found: &mut Found) {
    let (key, at) = (text(of, "key"), path.child("key"));
    if policy.is_empty() {
        found.push(FieldError::invalid(
            &at,
            key,
            "requires metadata.name be non-empty",
        ));
    } else {
        let full = format!("{policy}/{key}");
        refuse(found, &at, &full, names::qualified_name(&full));
    }
    let source = text(of, "valueExpression");
    let trimmed = source.trim();
    let at = path.child("valueExpression");
    if trimmed.is_empty() {
        found.push(FieldError::required(
            &at,
            "valueExpression is not specified",
        ));
    } else if trimmed.len() > MAX_ANNOTATION_EXPRESSION {
        found.push(FieldError::required(
            &at,
            format!("must not exceed {MAX_ANNOTATION_EXPRESSION} bytes in length"),
        ));
    } else if let Err(why) = expressions::compile(trimmed, env, &[Type::String, Type::Null]) {
        found.push(FieldError::invalid(&at, source, why));
    }
}

/// `validateMutatingAdmissionPolicySpec`.
pub fn mutating(policy: &Value, at: &At<'_>, found: &mut Found) {
    let empty = Value::Null;
    let spec = policy.get("spec").unwrap_or(&empty);
    let path = at.child("spec");
    let (env, _) = common(spec, &path, found);
    if let Some(resources) = spec.get("matchConstraints") {
        mutating_operations(resources, &path.child("matchConstraints"), found);
    }
    let env = expressions::with_patches(env);
    let mutations = value::items(spec, &["mutations"]);
    if mutations.is_empty() {
        found.push(FieldError::required(
            &path.child("mutations"),
            "mutations must contain at least one item",
        ));
    }
    for (index, of) in mutations.iter().enumerate() {
        mutation(of, &env, &path.child("mutations").index(index), found);
    }
    one_of(
        spec,
        "reinvocationPolicy",
        &REINVOCATION_POLICIES,
        &path,
        found,
    );
}

fn mutation(of: &Value, env: &Environment, path: &Path, found: &mut Found) {
    let kind = text(of, "patchType");
    if !PATCH_TYPES.contains(&kind) {
        one_of(of, "patchType", &PATCH_TYPES, path, found);
        return;
    }
    let (member, wanted) = mutation_output(kind == "JSONPatch");
    let (other, _) = mutation_output(kind != "JSONPatch");
    let at = path.child(member);
    match of.get(member).filter(|of| of.is_object()) {
        None => found.push(FieldError::required(
            &at,
            format!("must be specified when patchType is {kind}"),
        )),
        Some(of) => {
            let source = text(of, "expression").trim();
            let at = at.child("expression");
            if source.is_empty() {
                found.push(FieldError::required(&at, ""));
            } else {
                expression(source, env, &[wanted], &at, found);
            }
        }
    }
    if of.get(other).is_some_and(Value::is_object) {
        found.push(FieldError::invalid(
            &path.child(other),
            format!("{{{other}}}"),
            format!("must not be specified when patchType is {kind}"),
        ));
    }
}

fn binding(object: &Value, at: &At<'_>, found: &mut Found) -> Path {
    let empty = Value::Null;
    let spec = object.get("spec").unwrap_or(&empty);
    let path = at.child("spec");
    let name = text(spec, "policyName");
    let at = path.child("policyName");
    if name.is_empty() {
        found.push(FieldError::required(&at, ""));
    } else {
        refuse(found, &at, name, names::name_is_dns_subdomain(name, false));
    }
    if let Some(of) = spec.get("paramRef").filter(|of| of.is_object()) {
        param_ref(of, &path.child("paramRef"), found);
    }
    if let Some(resources) = spec.get("matchResources").filter(|of| of.is_object()) {
        match_resources(resources, &path.child("matchResources"), found);
    }
    path
}

fn param_ref(of: &Value, path: &Path, found: &mut Found) {
    const EXCLUSIVE: &str = "name and selector are mutually exclusive";
    let name = text(of, "name");
    let selector = has(of, "selector");
    if !name.is_empty() {
        let at = path.child("name");
        refuse(found, &at, name, names::path_segment(name, false));
        if selector {
            found.push(FieldError::forbidden(&at, EXCLUSIVE));
            found.push(FieldError::forbidden(&path.child("selector"), EXCLUSIVE));
        }
    } else if !selector {
        found.push(FieldError::required(
            path,
            "one of name or selector must be specified",
        ));
    }
    one_of(
        of,
        "parameterNotFoundAction",
        &["Deny", "Allow"],
        path,
        found,
    );
}

/// `validateValidatingAdmissionPolicyBindingSpec`.
pub fn validating_binding(object: &Value, at: &At<'_>, found: &mut Found) {
    let path = binding(object, at, found).child("validationActions");
    let actions: Vec<&str> = value::items(object, &["spec", "validationActions"])
        .iter()
        .map(|action| action.as_str().unwrap_or_default())
        .collect();
    let mut seen = HashSet::new();
    for (index, action) in actions.iter().enumerate() {
        let at = path.index(index);
        if !ACTIONS.contains(action) {
            found.push(FieldError::not_supported(&at, *action, &ACTIONS));
        }
        if !seen.insert(*action) {
            found.push(FieldError::duplicate(&at, *action));
        }
    }
    if seen.contains("Deny") && seen.contains("Warn") {
        found.push(FieldError::invalid(
            &path,
            Value::from(actions),
            "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)",
        ));
    }
    if seen.is_empty() {
        found.push(FieldError::required(
            &path,
            "at least one validation action is required",
        ));
    }
}

/// `validateMutatingAdmissionPolicyBindingSpec`.
pub fn mutating_binding(object: &Value, at: &At<'_>, found: &mut Found) {
    let path = binding(object, at, found);
    if let Some(resources) = value::get(object, &["spec", "matchResources"]) {
        mutating_operations(resources, &path.child("matchResources"), found);
    }
}
