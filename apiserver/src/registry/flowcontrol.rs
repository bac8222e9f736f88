//! FlowSchemas and PriorityLevelConfigurations: what may be asked of priority and fairness (upstream
//! `pkg/apis/flowcontrol/validation`). Those that must be are always the same.

use std::collections::HashSet;

use keelson_machinery::meta::{self, names};
use keelson_machinery::status::field::{FieldError, Path};
use keelson_machinery::value::{self, Value};
use serde_json::json;

use super::strategy::{Context, Strategy};
use crate::flow_control::defaults;

/// The largest number of queues of a level.
const MAX_QUEUES: i64 = 10_000_000;
/// How many bits of a hash are left for dealing hands of queues.
const MAX_HASH_BITS: u32 = 60;
/// Verbs that rules may name.
const VERBS: [&str; 9] = [
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "proxy",
    "update",
    "watch",
];

/// Strategy of FlowSchemas.
pub struct FlowSchema;

impl Strategy for FlowSchema {
    fn validate(&self, context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut found = super::validation::object(object, context.served.storage_type);
        found.extend(schema(object));
        let fixed = defaults::mandatory_schemas();
        found.extend(must_be(object, &fixed, |spec| spec.clone(), ""));
        found
    }

    fn validate_update(&self, context: &Context<'_>, object: &Value, _: &Value) -> Vec<FieldError> {
        if context.subresource == "status" {
            return status(object);
        }
        self.validate(context, object)
    }
}

/// Strategy of PriorityLevelConfigurations.
pub struct PriorityLevelConfiguration;

impl Strategy for PriorityLevelConfiguration {
    fn validate(&self, context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut found = super::validation::object(object, context.served.storage_type);
        found.extend(level(object));
        let fixed = defaults::mandatory_levels();
        let without_exempt = |spec: &Value| {
            let mut spec = spec.clone();
            if let Some(members) = spec
                .as_object_mut()
                .filter(|_| meta::name(object) == "exempt")
            {
                members.remove("exempt");
            }
            spec
        };
        let except = if meta::name(object) == "exempt" {
            " except the 'spec.exempt' field"
        } else {
            ""
        };
        found.extend(must_be(object, &fixed, without_exempt, except));
        found
    }

    fn validate_update(&self, context: &Context<'_>, object: &Value, _: &Value) -> Vec<FieldError> {
        if context.subresource == "status" {
            return status(object);
        }
        self.validate(context, object)
    }
}

/// A mandatory object has the spec that it has.
fn must_be(
    object: &Value,
    fixed: &[(&'static str, Value)],
    part: impl Fn(&Value) -> Value,
    except: &str,
) -> Option<FieldError> {
    let name = meta::name(object);
    let (_, fixed) = fixed.iter().find(|(known, _)| *known == name)?;
    let (is, must) = (part(&object["spec"]), part(&fixed["spec"]));
    (!value::semantic_eq(Some(&is), Some(&must))).then(|| {
        FieldError::invalid(
            &Path::new("spec"),
            object["spec"].clone(),
            format!("spec of '{name}'{except} must equal the fixed value"),
        )
    })
}

fn status(object: &Value) -> Vec<FieldError> {
    let at = Path::new("status").child("conditions");
    let mut found = Vec::new();
    let mut known = HashSet::new();
    for (index, condition) in value::items(object, &["status", "conditions"])
        .iter()
        .enumerate()
    {
        let at = at.index(index).child("type");
        let kind = value::str_or_empty(condition, &["type"]);
        if !known.insert(kind) {
            found.push(FieldError::duplicate(&at, kind));
        }
        if kind.is_empty() {
            found.push(FieldError::required(&at, ""));
        }
    }
    found
}

fn schema(object: &Value) -> Vec<FieldError> {
    let spec = Path::new("spec");
    let mut found = Vec::new();
    let at = spec.child("matchingPrecedence");
    let precedence = value::get_i64(object, &["spec", "matchingPrecedence"]).unwrap_or_default();
    if precedence <= 0 {
        found.push(FieldError::invalid(
            &at,
            precedence,
            "must be a positive value",
        ));
    }
    if precedence > 10000 {
        found.push(FieldError::invalid(
            &at,
            precedence,
            "must not be greater than 10000",
        ));
    }
    if precedence == 1 && meta::name(object) != "exempt" {
        found.push(FieldError::invalid(
            &at,
            precedence,
            "only the schema named 'exempt' may have matchingPrecedence 1",
        ));
    }
    if let Some(method) = value::get(object, &["spec", "distinguisherMethod"]) {
        let known = ["ByNamespace", "ByUser"];
        if !known.contains(&value::str_or_empty(method, &["type"])) {
            let at = spec.child("distinguisherMethod").child("type");
            found.push(FieldError::not_supported(
                &at,
                value::str_or_empty(method, &["type"]),
                &known,
            ));
        }
    }
    let at = spec.child("priorityLevelConfiguration").child("name");
    match value::str_or_empty(object, &["spec", "priorityLevelConfiguration", "name"]) {
        "" => found.push(FieldError::required(&at, "must reference a priority level")),
        name => found.extend(invalid(&at, name, names::dns1123_subdomain(name))),
    }
    for (index, one) in value::items(object, &["spec", "rules"]).iter().enumerate() {
        rule(one, &spec.child("rules").index(index), &mut found);
    }
    found
}

fn invalid(at: &Path, text: &str, errors: Vec<String>) -> Vec<FieldError> {
    let all = errors.into_iter();
    all.map(|why| FieldError::invalid(at, text, why)).collect()
}

fn rule(rule: &Value, at: &Path, found: &mut Vec<FieldError>) {
    let subjects = value::items(rule, &["subjects"]);
    if subjects.is_empty() {
        found.push(FieldError::required(
            &at.child("subjects"),
            "subjects must contain at least one value",
        ));
    }
    for (index, one) in subjects.iter().enumerate() {
        subject(one, &at.child("subjects").index(index), found);
    }
    let resources = value::items(rule, &["resourceRules"]);
    let paths = value::items(rule, &["nonResourceRules"]);
    if resources.is_empty() && paths.is_empty() {
        found.push(FieldError::required(
            at,
            "at least one of resourceRules and nonResourceRules has to be non-empty",
        ));
    }
    for (index, one) in resources.iter().enumerate() {
        resource_rule(one, &at.child("resourceRules").index(index), found);
    }
    for (index, one) in paths.iter().enumerate() {
        path_rule(one, &at.child("nonResourceRules").index(index), found);
    }
}

fn subject(subject: &Value, at: &Path, found: &mut Vec<FieldError>) {
    let kinds = [
        ("Group", "group"),
        ("ServiceAccount", "serviceAccount"),
        ("User", "user"),
    ];
    let kind = value::str_or_empty(subject, &["kind"]);
    if !kinds.iter().any(|(known, _)| *known == kind) {
        let known = kinds.map(|(known, _)| known);
        found.push(FieldError::not_supported(&at.child("kind"), kind, &known));
        return;
    }
    for (known, field) in kinds {
        let at = at.child(field);
        let given = value::get(subject, &[field]);
        match given {
            Some(_) if known != kind => found.push(FieldError::forbidden(
                &at,
                format!("{field} is forbidden when subject kind is not '{known}'"),
            )),
            None if known == kind => found.push(FieldError::required(
                &at,
                format!("{field} is required when subject kind is '{known}'"),
            )),
            Some(given) => {
                let name = value::str_or_empty(given, &["name"]);
                if name.is_empty() {
                    found.push(FieldError::required(&at.child("name"), ""));
                }
                if known != "ServiceAccount" {
                    continue;
                }
                if !name.is_empty() && name != "*" {
                    let errors = names::dns1123_subdomain(name);
                    found.extend(invalid(&at.child("name"), name, errors));
                }
                let at = at.child("namespace");
                match value::str_or_empty(given, &["namespace"]) {
                    "" => found.push(FieldError::required(
                        &at,
                        "must specify namespace for service account",
                    )),
                    namespace => {
                        found.extend(invalid(&at, namespace, names::dns1123_label(namespace)));
                    }
                }
            }
            None => {}
        }
    }
}

/// One of a rule's lists: not empty, and with `*` alone if at all. Returns what is to be looked at one by one.
fn list<'a>(
    rule: &'a Value,
    field: &str,
    at: &Path,
    (empty, others): (&str, &str),
    found: &mut Vec<FieldError>,
) -> Vec<&'a str> {
    let items = value::items(rule, &[field]);
    let all: Vec<&str> = items.iter().filter_map(Value::as_str).collect();
    if all.is_empty() {
        found.push(FieldError::required(&at.child(field), empty));
    } else if all.contains(&"*") {
        if all.len() > 1 {
            let why = format!("if '*' is present, must not specify other {others}");
            found.push(FieldError::invalid(&at.child(field), json!(all), why));
        }
        return Vec::new();
    }
    all
}

fn verbs(rule: &Value, at: &Path, found: &mut Vec<FieldError>) {
    let words = ("verbs must contain at least one value", "verbs");
    let all = list(rule, "verbs", at, words, found);
    if !all.iter().all(|verb| VERBS.contains(verb)) {
        found.push(FieldError::not_supported(
            &at.child("verbs"),
            json!(all),
            &VERBS,
        ));
    }
}

fn resource_rule(rule: &Value, at: &Path, found: &mut Vec<FieldError>) {
    verbs(rule, at, found);
    let words = (
        "resource rules must supply at least one api group",
        "api groups",
    );
    list(rule, "apiGroups", at, words, found);
    let words = (
        "resource rules must supply at least one resource",
        "resources",
    );
    list(rule, "resources", at, words, found);
    let cluster = value::get_bool(rule, &["clusterScope"]) == Some(true);
    if cluster && value::items(rule, &["namespaces"]).is_empty() {
        return;
    }
    let words = (
        "resource rules that are not cluster scoped must supply at least one namespace",
        "namespaces",
    );
    for (index, namespace) in list(rule, "namespaces", at, words, found)
        .into_iter()
        .enumerate()
    {
        let at = at.child("namespaces").index(index);
        let errors = names::dns1123_label(namespace);
        let intro = "each member of this list must be '*' or a DNS-1123 label; ";
        let errors = errors
            .into_iter()
            .map(|why| format!("{intro}{why}"))
            .collect();
        found.extend(invalid(&at, namespace, errors));
    }
}

fn path_rule(rule: &Value, at: &Path, found: &mut Vec<FieldError>) {
    verbs(rule, at, found);
    let words = (
        "nonResourceURLs must contain at least one value",
        "non-resource URLs",
    );
    for (index, path) in list(rule, "nonResourceURLs", at, words, found)
        .into_iter()
        .enumerate()
    {
        let stars = path.matches('*').count();
        let why = if path.is_empty() {
            "must not be empty"
        } else if path == "/" {
            continue;
        } else if !path.starts_with('/') {
            "must start with slash"
        } else if path.contains(' ') {
            "must not contain white-space"
        } else if path.contains("//") {
            "must not contain double slash"
        } else if stars > 1 || (stars == 1 && !path.ends_with("/*")) {
            "wildcard can only do suffix matching"
        } else {
            continue;
        };
        let at = at.child("nonResourceURLs").index(index);
        found.push(FieldError::invalid(&at, path, why));
    }
}

fn level(object: &Value) -> Vec<FieldError> {
    let spec = Path::new("spec");
    let mut found = Vec::new();
    let kind = value::str_or_empty(object, &["spec", "type"]);
    if (meta::name(object) == "exempt") != (kind == "Exempt") {
        found.push(FieldError::invalid(
            &spec.child("type"),
            kind,
            "must be 'Exempt' if and only if `name` is 'exempt'",
        ));
    }
    let part = |field: &str| value::get(object, &["spec", field]);
    match kind {
        "Exempt" => {
            if part("limited").is_some() {
                let why = "must be nil if the type is not Limited";
                found.push(FieldError::forbidden(&spec.child("limited"), why));
            }
            if let Some(exempt) = part("exempt") {
                shares(exempt, &spec.child("exempt"), &mut found);
            }
        }
        "Limited" => {
            if part("exempt").is_some() {
                let why = "must be nil if the type is Limited";
                found.push(FieldError::forbidden(&spec.child("exempt"), why));
            }
            match part("limited") {
                None => {
                    let why = "must not be empty when type is Limited";
                    found.push(FieldError::required(&spec.child("limited"), why));
                }
                Some(limits) => limited(limits, &spec.child("limited"), &mut found),
            }
        }
        other => found.push(FieldError::not_supported(
            &spec.child("type"),
            other,
            &["Exempt", "Limited"],
        )),
    }
    found
}

fn shares(part: &Value, at: &Path, found: &mut Vec<FieldError>) {
    let shares = value::get_i64(part, &["nominalConcurrencyShares"]).unwrap_or_default();
    if shares < 0 {
        let at = at.child("nominalConcurrencyShares");
        found.push(FieldError::invalid(
            &at,
            shares,
            "must be a non-negative integer",
        ));
    }
    let lendable = value::get_i64(part, &["lendablePercent"]).unwrap_or_default();
    if !(0..=100).contains(&lendable) {
        let at = at.child("lendablePercent");
        found.push(FieldError::invalid(
            &at,
            lendable,
            "must be between 0 and 100, inclusive",
        ));
    }
}

fn limited(limited: &Value, at: &Path, found: &mut Vec<FieldError>) {
    shares(limited, at, found);
    if let Some(borrowing) = value::get_i64(limited, &["borrowingLimitPercent"]).filter(|b| *b < 0)
    {
        let why = "if specified, must be a non-negative integer";
        found.push(FieldError::invalid(
            &at.child("borrowingLimitPercent"),
            borrowing,
            why,
        ));
    }
    let at = at.child("limitResponse");
    let queuing = value::get(limited, &["limitResponse", "queuing"]);
    match (
        value::str_or_empty(limited, &["limitResponse", "type"]),
        queuing,
    ) {
        ("Reject", None) => {}
        ("Reject", Some(_)) => found.push(FieldError::forbidden(
            &at.child("queuing"),
            "must be nil if limited.limitResponse.type is not Limited",
        )),
        ("Queue", None) => found.push(FieldError::required(
            &at.child("queuing"),
            "must not be empty if limited.limitResponse.type is Limited",
        )),
        ("Queue", Some(queuing)) => queues(queuing, &at.child("queuing"), found),
        (other, _) => found.push(FieldError::not_supported(
            &at.child("type"),
            other,
            &["Queue", "Reject"],
        )),
    }
}

fn queues(queuing: &Value, at: &Path, found: &mut Vec<FieldError>) {
    let number = |field| value::get_i64(queuing, &[field]).unwrap_or_default();
    let (length, queues, hand) = (
        number("queueLengthLimit"),
        number("queues"),
        number("handSize"),
    );
    let mut bad = |field: &str, given: i64, why: String| {
        found.push(FieldError::invalid(&at.child(field), given, why));
    };
    if length <= 0 {
        bad("queueLengthLimit", length, "must be positive".into());
    }
    if queues <= 0 {
        bad("queues", queues, "must be positive".into());
    } else if queues > MAX_QUEUES {
        bad(
            "queues",
            queues,
            format!("must not be greater than {MAX_QUEUES}"),
        );
    }
    if hand <= 0 {
        bad("handSize", hand, "must be positive".into());
    } else if hand > queues {
        bad(
            "handSize",
            hand,
            format!("should not be greater than queues ({queues})"),
        );
    } else if entropy_bits(queues, hand) > MAX_HASH_BITS {
        bad(
            "handSize",
            hand,
            format!(
                "required entropy bits of deckSize {queues} and handSize {hand} should not be greater than {MAX_HASH_BITS}"
            ),
        );
    }
}

/// How many bits it takes to choose a hand (upstream `shufflesharding.RequiredEntropyBits`).
fn entropy_bits(queues: i64, hand: i64) -> u32 {
    let falling: f64 = (0..hand.min(128))
        .map(|drawn| ((queues - drawn) as f64).log2())
        .sum();
    falling.ceil() as u32
}
