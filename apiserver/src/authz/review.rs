//! Asking the authorizers: SubjectAccessReview and its kin (`pkg/registry/authorization`).

use keelson_machinery::meta::{self, GroupKind};
use keelson_machinery::selector::{FieldRequirement, FieldSelector};
use keelson_machinery::status::ApiError;
use keelson_machinery::status::field::{FieldError, Path};
use keelson_machinery::value::{self, Value};
use serde_json::{Map, json};

use super::{Attributes, Authorizer, Decision, RuleResolver};
use crate::request::{RequestInfo, UserInfo};

/// Which of the three reviews.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReviewKind {
    /// Of anybody.
    Subject,
    /// Of the asker.
    SelfSubject,
    /// Of anybody, in the namespace of the review.
    Local,
}

/// Answers an access review (decoded, admitted). `user` is the asker; `namespace` the one of the URL, for
/// [`ReviewKind::Local`].
pub async fn access_review(
    kind: ReviewKind,
    mut review: Value,
    user: &UserInfo,
    namespace: &str,
    authorizer: &dyn Authorizer,
) -> Result<Value, ApiError> {
    let errors = validate(kind, &review, namespace);
    if !errors.is_empty() {
        let group_kind = GroupKind::new(
            "authorization.k8s.io",
            value::str_or_empty(&review, &["kind"]),
        );
        return Err(ApiError::invalid(&group_kind, "", errors));
    }
    let subject = if kind == ReviewKind::SelfSubject {
        user.clone()
    } else {
        subject(&review)
    };
    let request = request_of(&review);
    let decision = authorizer
        .authorize(&Attributes {
            user: &subject,
            request: &request,
        })
        .await;
    let mut status = Map::new();
    status.insert(
        "allowed".into(),
        matches!(decision, Decision::Allow(_)).into(),
    );
    let reason = match decision {
        Decision::Allow(reason) | Decision::NoOpinion(reason) => reason,
        Decision::Deny(reason) => {
            status.insert("denied".into(), true.into());
            reason
        }
    };
    if !reason.is_empty() {
        status.insert("reason".into(), reason.into());
    }
    value::set(&mut review, &["status"], Value::Object(status));
    Ok(review)
}

/// Answers a SelfSubjectRulesReview (decoded, admitted).
pub fn rules_review(
    mut review: Value,
    user: &UserInfo,
    resolver: &dyn RuleResolver,
) -> Result<Value, ApiError> {
    let namespace = value::str_or_empty(&review, &["spec", "namespace"]);
    if namespace.is_empty() {
        return Err(ApiError::bad_request("no namespace on request"));
    }
    let resolved = resolver.resolve(user, namespace);
    let (mut resources, mut urls) = (Vec::new(), Vec::new());
    for rule in resolved.rules {
        if !rule.resources.is_empty() {
            let mut one = rule.clone();
            one.non_resource_urls.clear();
            resources.push(one.to_value());
        }
        if !rule.non_resource_urls.is_empty() {
            urls.push(json!({"verbs": rule.verbs, "nonResourceURLs": rule.non_resource_urls}));
        }
    }
    let mut status = json!({"resourceRules": resources, "nonResourceRules": urls, "incomplete": resolved.incomplete});
    if !resolved.errors.is_empty() {
        status["evaluationError"] = resolved.errors.join("\n").into();
    }
    value::set(&mut review, &["status"], status);
    Ok(review)
}

fn subject(review: &Value) -> UserInfo {
    let strings = |value: &Value| {
        value
            .as_array()
            .map(|list| {
                list.iter()
                    .filter_map(Value::as_str)
                    .map(str::to_owned)
                    .collect()
            })
            .unwrap_or_default()
    };
    UserInfo {
        name: value::str_or_empty(review, &["spec", "user"]).to_owned(),
        uid: value::str_or_empty(review, &["spec", "uid"]).to_owned(),
        groups: value::get(review, &["spec", "groups"])
            .map(strings)
            .unwrap_or_default(),
        extra: value::get_object(review, &["spec", "extra"])
            .map(|extra| {
                extra
                    .iter()
                    .map(|(key, values)| (key.clone(), strings(values)))
                    .collect()
            })
            .unwrap_or_default(),
    }
}

fn request_of(review: &Value) -> RequestInfo {
    if let Some(attributes) = value::get(review, &["spec", "nonResourceAttributes"]) {
        let text = |field: &str| value::str_or_empty(attributes, &[field]).to_owned();
        return RequestInfo {
            verb: text("verb"),
            path: text("path"),
            ..RequestInfo::default()
        };
    }
    let text = |field: &str| {
        value::str_or_empty(review, &["spec", "resourceAttributes", field]).to_owned()
    };
    let version = Some(text("version"))
        .filter(|version| !version.is_empty())
        .unwrap_or_else(|| "*".into());
    RequestInfo {
        is_resource: true,
        verb: text("verb"),
        group: text("group"),
        version,
        namespace: text("namespace"),
        resource: text("resource"),
        subresource: text("subresource"),
        name: text("name"),
        field_selector: field_selector(value::get(
            review,
            &["spec", "resourceAttributes", "fieldSelector"],
        )),
        ..RequestInfo::default()
    }
}

/// The selector's raw form, or the part of its requirements that one can be made of. Requirements are joined by "and":
/// one that is left out makes the question broader and can only lose permissions.
fn field_selector(selector: Option<&Value>) -> String {
    let Some(selector) = selector else {
        return String::new();
    };
    let raw = value::str_or_empty(selector, &["rawSelector"]);
    if !raw.is_empty() {
        return raw.to_owned();
    }
    let requirements = value::items(selector, &["requirements"])
        .iter()
        .filter_map(|requirement| {
            let negated = match value::str_or_empty(requirement, &["operator"]) {
                "In" => false,
                "NotIn" => true,
                _ => return None,
            };
            let [one] = value::items(requirement, &["values"]) else {
                return None;
            };
            let field = value::str_or_empty(requirement, &["key"]);
            // A key has no escapes: one with these would be read as something else.
            (!field.contains(['=', '!', ',', '\\'])).then_some(())?;
            Some(FieldRequirement {
                field: field.to_owned(),
                negated,
                value: one.as_str()?.to_owned(),
            })
        });
    FieldSelector::all_of(requirements.collect()).to_string()
}

fn validate(kind: ReviewKind, review: &Value, namespace: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = Path::new("spec");
    let resource = value::get(review, &["spec", "resourceAttributes"]);
    let url = value::get(review, &["spec", "nonResourceAttributes"]);
    match (resource, url) {
        (Some(_), Some(url)) => {
            let detail = "cannot be specified in combination with resourceAttributes";
            errors.push(FieldError::invalid(
                &spec.child("nonResourceAttributes"),
                url.clone(),
                detail,
            ));
        }
        (None, None) => {
            let detail =
                "exactly one of nonResourceAttributes or resourceAttributes must be specified";
            errors.push(FieldError::invalid(
                &spec.child("resourceAttributes"),
                Value::Null,
                detail,
            ));
        }
        _ => {}
    }
    let nobody = value::str_or_empty(review, &["spec", "user"]).is_empty()
        && value::items(review, &["spec", "groups"]).is_empty();
    if kind != ReviewKind::SelfSubject && nobody {
        errors.push(FieldError::invalid(
            &spec.child("user"),
            "",
            "at least one of user or group must be specified",
        ));
    }
    let metadata = meta::metadata(review);
    let stray = metadata.is_some_and(|fields| {
        fields.iter().any(|(field, value)| {
            !value::is_empty(value)
                && field != "managedFields"
                && !(field == "namespace" && kind == ReviewKind::Local)
        })
    });
    if stray {
        let detail = if kind == ReviewKind::Local {
            "must be empty except for namespace"
        } else {
            "must be empty"
        };
        errors.push(FieldError::invalid(
            &Path::new("metadata"),
            metadata.cloned().map_or(Value::Null, Value::Object),
            detail,
        ));
    }
    if kind == ReviewKind::Local {
        let asked = value::str_or_empty(review, &["spec", "resourceAttributes", "namespace"]);
        if resource.is_some() && asked != namespace {
            errors.push(FieldError::invalid(
                &Path::new("spec.resourceAttributes.namespace"),
                asked,
                "must match metadata.namespace",
            ));
        }
        if let Some(url) = url {
            errors.push(FieldError::invalid(
                &Path::new("spec.nonResourceAttributes"),
                url.clone(),
                "disallowed on this kind of request",
            ));
        }
    }
    errors
}
