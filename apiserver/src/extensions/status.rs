//! The status of a definition: which names it gets, and its conditions, as a pure function of the definition and the
//! names that others have (upstream `controller/status`, `controller/establish`, `controller/nonstructuralschema`,
//! `controller/apiapproval`).

use std::collections::BTreeSet;

use keelson_machinery::meta;
use keelson_machinery::status::field::{self, FieldError, Path};
use keelson_machinery::text::quote;
use keelson_machinery::value::{self, Value};
use serde_json::json;

use super::definition::Names;
use crate::registry::apiextensions::structural_rules;

/// The annotation by which the community approves an API of its own groups.
pub const APPROVED: &str = "api-approved.kubernetes.io";

/// Names that definitions of one group have.
#[derive(Clone, Debug, Default)]
pub struct Taken {
    resources: BTreeSet<String>,
    kinds: BTreeSet<String>,
}

impl Taken {
    /// Adds what a definition has.
    pub fn add(&mut self, names: &Names) {
        self.resources.insert(names.plural.clone());
        self.resources.insert(names.singular.clone());
        self.resources.extend(names.short_names.iter().cloned());
        self.kinds.insert(names.kind.clone());
        self.kinds.insert(names.list_kind.clone());
    }
}

/// A condition without its time.
struct Condition {
    kind: &'static str,
    status: &'static str,
    reason: String,
    message: String,
}

impl Condition {
    fn new(kind: &'static str, status: &'static str, reason: &str, message: &str) -> Condition {
        Condition {
            kind,
            status,
            reason: reason.to_string(),
            message: message.to_string(),
        }
    }
}

/// Sets a condition; its time changes with its status.
pub fn set_condition(
    object: &mut Value,
    kind: &str,
    status: &str,
    reason: &str,
    message: &str,
    now: &str,
) {
    let mut conditions = value::items(object, &["status", "conditions"]).to_vec();
    match conditions.iter_mut().find(|c| c["type"] == kind) {
        Some(condition) => {
            if condition["status"] != status || condition["lastTransitionTime"].is_null() {
                condition["lastTransitionTime"] = now.into();
            }
            condition["status"] = status.into();
            condition["reason"] = reason.into();
            condition["message"] = message.into();
        }
        None => conditions.push(json!({
            "type": kind,
            "status": status,
            "lastTransitionTime": now,
            "reason": reason,
            "message": message,
        })),
    }
    value::set(object, &["status", "conditions"], Value::Array(conditions));
}

fn remove_condition(object: &mut Value, kind: &str) {
    if let Some(Value::Array(conditions)) = value::get_mut(object, &["status", "conditions"]) {
        conditions.retain(|condition| condition["type"] != kind);
    }
}

/// Whether a condition is `True`.
pub fn is_true(object: &Value, kind: &str) -> bool {
    condition(object, kind).is_some_and(|condition| condition["status"] == "True")
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    let mut all = value::items(object, &["status", "conditions"]).iter();
    all.find(|condition| condition["type"] == kind)
}

/// The definition with the status it should have; `None` when it has it. The way to a served resource has two steps:
/// first the names, upon which it is served, then the condition that tells so.
///
/// The object may do without its schemas; `violations` says what is wrong with them.
pub fn next(object: &Value, violations: Option<&str>, taken: &Taken, now: &str) -> Option<Value> {
    let mut next = object.clone();
    let apply = |object: &mut Value, wanted: Condition| {
        set_condition(
            object,
            wanted.kind,
            wanted.status,
            &wanted.reason,
            &wanted.message,
            now,
        );
    };
    let requested = value::get(object, &["spec", "names"]);
    let accepted = value::get(object, &["status", "acceptedNames"]);
    if value::semantic_eq(requested, accepted) {
        if is_true(object, "NamesAccepted") && !is_true(object, "Established") {
            apply(
                &mut next,
                Condition::new(
                    "Established",
                    "True",
                    "InitialNamesAccepted",
                    "the initial names have been accepted",
                ),
            );
        }
    } else {
        let (names, condition) = accept(object, taken);
        let good = condition.status == "True";
        value::set(&mut next, &["status", "acceptedNames"], names);
        apply(&mut next, condition);
        if !is_true(object, "Established") {
            let (reason, message) = if good {
                ("Installing", "the initial names have been accepted")
            } else {
                ("NotAccepted", "not all names are accepted")
            };
            apply(
                &mut next,
                Condition::new("Established", "False", reason, message),
            );
        }
    }
    match violations {
        Some(message) => apply(
            &mut next,
            Condition::new("NonStructuralSchema", "True", "Violations", message),
        ),
        None => remove_condition(&mut next, "NonStructuralSchema"),
    }
    match approval_condition(object) {
        Some(condition) => apply(&mut next, condition),
        None => remove_condition(&mut next, "KubernetesAPIApprovalPolicyConformant"),
    }
    (next != *object).then_some(next)
}

fn accept(object: &Value, taken: &Taken) -> (Value, Condition) {
    let text = |from: &str, name: &str| {
        let path: &[&str] = match from {
            "spec" => &["spec", "names", name],
            _ => &["status", "acceptedNames", name],
        };
        value::str_or_empty(object, path).to_string()
    };
    let mut names = value::get(object, &["status", "acceptedNames"])
        .cloned()
        .unwrap_or_else(|| json!({}));
    let mut condition =
        Condition::new("NamesAccepted", "True", "NoConflicts", "no conflicts found");
    let mut refuse = |reason: &str, why: String| {
        condition = Condition::new("NamesAccepted", "False", reason, &why);
    };
    let in_use = |name: &str| format!("{} is already in use", quote(name));
    for (name, of, reason) in [
        ("plural", &taken.resources, "PluralConflict"),
        ("singular", &taken.resources, "SingularConflict"),
    ] {
        let (wanted, had) = (text("spec", name), text("status", name));
        if wanted != had && of.contains(&wanted) {
            refuse(reason, in_use(&wanted));
        } else {
            value::set(&mut names, &[name], wanted);
        }
    }
    let list = |path: &[&str]| -> Vec<String> {
        let items = value::items(object, path).iter();
        items
            .filter_map(Value::as_str)
            .map(str::to_string)
            .collect()
    };
    let wanted = list(&["spec", "names", "shortNames"]);
    let had = list(&["status", "acceptedNames", "shortNames"]);
    if wanted != had {
        let conflicts: Vec<String> = wanted
            .iter()
            .filter(|name| !had.contains(name) && taken.resources.contains(*name))
            .map(|name| in_use(name))
            .collect();
        match &conflicts[..] {
            [] if wanted.is_empty() => {
                value::remove(&mut names, &["shortNames"]);
            }
            [] => {
                value::set(&mut names, &["shortNames"], json!(wanted));
            }
            [only] => refuse("ShortNamesConflict", only.clone()),
            all => refuse("ShortNamesConflict", format!("[{}]", all.join(", "))),
        }
    }
    for (name, reason) in [("kind", "KindConflict"), ("listKind", "ListKindConflict")] {
        let (wanted, had) = (text("spec", name), text("status", name));
        if wanted != had && taken.kinds.contains(&wanted) {
            refuse(reason, in_use(&wanted));
        } else {
            value::set(&mut names, &[name], wanted);
        }
    }
    match value::get(object, &["spec", "names", "categories"]) {
        Some(categories) => {
            value::set(&mut names, &["categories"], categories.clone());
        }
        None => {
            value::remove(&mut names, &["categories"]);
        }
    }
    (names, condition)
}

/// What keeps the schemas of a definition from being structural.
pub fn violations(object: &Value) -> Option<String> {
    let mut found = Vec::new();
    if value::get_bool(object, &["spec", "preserveUnknownFields"]) == Some(true) {
        found.push(FieldError::invalid(
            &Path::new("spec").child("preserveUnknownFields"),
            true,
            "must be false",
        ));
    }
    let versions = value::items(object, &["spec", "versions"]);
    for (index, version) in versions.iter().enumerate() {
        let Some(schema) = value::get(version, &["schema", "openAPIV3Schema"]) else {
            continue;
        };
        let path = Path::new("spec").child("versions").index(index);
        let path = path.child("schema").child("openAPIV3Schema");
        found.extend(structural_rules::violations(schema, &path));
    }
    field::aggregate(&found)
}

/// What a protected group's definition says of its approval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Approval {
    /// Nothing.
    Missing,
    /// That there is none.
    Bypassed,
    /// Where it was given.
    Approved,
    /// Something else.
    Invalid,
}

/// Whether the group is the community's (upstream `IsProtectedCommunityGroup`).
pub fn is_protected(group: &str) -> bool {
    group == "k8s.io"
        || group.ends_with(".k8s.io")
        || group == "kubernetes.io"
        || group.ends_with(".kubernetes.io")
}

/// The state of the approval, and words for it (upstream `GetAPIApprovalState`).
pub fn approval(object: &Value) -> (Approval, String) {
    let text = meta::annotation(object, APPROVED).unwrap_or_default();
    let is_url = text.split_once("://").is_some_and(|(scheme, rest)| {
        !scheme.is_empty()
            && scheme.bytes().all(|b| b.is_ascii_alphanumeric())
            && !rest
                .split(['/', '?', '#'])
                .next()
                .unwrap_or_default()
                .is_empty()
    });
    if text.is_empty() {
        let why = format!(
            "protected groups must have approval annotation {}, see https://github.com/kubernetes/enhancements/pull/1111",
            quote(APPROVED)
        );
        (Approval::Missing, why)
    } else if text.starts_with("unapproved") {
        (Approval::Bypassed, format!("not approved: {}", quote(text)))
    } else if is_url {
        (Approval::Approved, format!("approved in {text}"))
    } else {
        let why = format!(
            "protected groups must have approval annotation {} with either a URL or a reason starting with \"unapproved\", see https://github.com/kubernetes/enhancements/pull/1111",
            quote(APPROVED)
        );
        (Approval::Invalid, why)
    }
}

fn approval_condition(object: &Value) -> Option<Condition> {
    if !is_protected(value::str_or_empty(object, &["spec", "group"])) {
        return None;
    }
    let (state, message) = approval(object);
    let (status, reason) = match state {
        Approval::Invalid => ("False", "InvalidAnnotation"),
        Approval::Missing => ("False", "MissingAnnotation"),
        Approval::Approved => ("True", "ApprovedAnnotation"),
        Approval::Bypassed => ("False", "UnapprovedAnnotation"),
    };
    Some(Condition::new(
        "KubernetesAPIApprovalPolicyConformant",
        status,
        reason,
        &message,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(plural: &str, kind: &str) -> Value {
        let names = json!({"plural": plural, "singular": kind.to_lowercase(), "kind": kind, "listKind": format!("{kind}List")});
        json!({"metadata": {"name": format!("{plural}.g.io")}, "spec": {"group": "g.io", "names": names}, "status": {"acceptedNames": {}, "storedVersions": ["v1"]}})
    }

    fn said(object: &Value) -> Vec<String> {
        value::items(object, &["status", "conditions"])
            .iter()
            .map(|c| {
                format!(
                    "{}={} {}: {}",
                    c["type"], c["status"], c["reason"], c["message"]
                )
                .replace('"', "")
            })
            .collect()
    }

    #[test]
    fn names_are_accepted_then_established() {
        let first = next(
            &definition("widgets", "Widget"),
            None,
            &Taken::default(),
            "t",
        )
        .unwrap();
        assert_eq!(
            said(&first),
            [
                "NamesAccepted=True NoConflicts: no conflicts found",
                "Established=False Installing: the initial names have been accepted"
            ]
        );
        assert_eq!(first["status"]["acceptedNames"], first["spec"]["names"]);
        let second = next(&first, None, &Taken::default(), "t").unwrap();
        assert_eq!(
            said(&second)[1],
            "Established=True InitialNamesAccepted: the initial names have been accepted"
        );
        assert_eq!(next(&second, None, &Taken::default(), "t"), None);
    }

    #[test]
    fn names_that_others_have_are_refused() {
        let mut taken = Taken::default();
        taken.add(&Names {
            plural: "widgets".into(),
            kind: "Widget".into(),
            ..Names::default()
        });
        let refused = next(&definition("widgetts", "Widget"), None, &taken, "t").unwrap();
        assert_eq!(
            said(&refused),
            [
                r"NamesAccepted=False KindConflict: \Widget\ is already in use",
                "Established=False NotAccepted: not all names are accepted"
            ]
        );
        assert_eq!(refused["status"]["acceptedNames"]["plural"], "widgetts");
        assert_eq!(refused["status"]["acceptedNames"].get("kind"), None);
    }

    #[test]
    fn protected_groups_need_approval() {
        for (text, wanted) in [
            ("", Approval::Missing),
            ("unapproved, experimental", Approval::Bypassed),
            (
                "https://github.com/kubernetes/kubernetes/pull/1",
                Approval::Approved,
            ),
            ("yes", Approval::Invalid),
        ] {
            let object = json!({"metadata": {"annotations": {APPROVED: text}}});
            assert_eq!(approval(&object).0, wanted, "{text}");
        }
        assert!(is_protected("x.k8s.io") && !is_protected("example.com"));
    }
}
