//! Reconciling the default roles and bindings (`k8s.io/component-helpers/auth/rbac/reconciliation`): what is missing is
//! added, what was added by others stays, and an object whose autoupdate annotation says `false` is left alone.

use std::collections::HashMap;
use std::sync::Arc;

use keelson_machinery::meta;
use keelson_machinery::selector::LabelSelector;
use keelson_machinery::status::ApiError;
use keelson_machinery::value::{self, Value};

use super::{Write, find, policy};
use crate::authz::rbac::GROUP;
use crate::authz::rules::{Rule, uncovered};
use crate::objects::Objects;
use crate::reader::GroupResource;

const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

/// The writes that bring the stored roles and bindings up to date, the gathered rules of aggregated roles included.
pub(super) async fn plan(objects: &Objects) -> Result<Vec<Write>, ApiError> {
    let mut existing = HashMap::new();
    for resource in [
        "roles",
        "clusterroles",
        "rolebindings",
        "clusterrolebindings",
    ] {
        existing.insert(resource, objects.list(GROUP, resource, None).await?);
    }
    Ok(reconcile(&existing))
}

/// The pure part of [`plan`].
pub(super) fn reconcile(existing: &HashMap<&'static str, Vec<Arc<Value>>>) -> Vec<Write> {
    let mut writes: Vec<Write> = Vec::new();
    let mut cluster_roles: HashMap<String, Value> = HashMap::new();
    for role in existing.get("clusterroles").into_iter().flatten() {
        cluster_roles.insert(meta::name(role).to_owned(), role.as_ref().clone());
    }
    let expected = policy::objects();
    for object in &expected {
        let resource = policy::resource(value::str_or_empty(object, &["kind"]));
        let at = GroupResource::new(GROUP, resource);
        let stored = existing
            .get(resource)
            .and_then(|stored| find(stored, object));
        let write = match stored {
            None => Some(Write::Create(at, object.clone())),
            Some(stored) if meta::annotation(stored, AUTOUPDATE) == Some("false") => None,
            Some(stored) => {
                let new = if object.get("roleRef").is_some() {
                    merge_binding(stored, object)
                } else {
                    merge_role(stored, object)
                };
                (new != **stored).then_some(Write::Update(at, new))
            }
        };
        let Some(write) = write else { continue };
        // Aggregated roles come last, with their gathered rules.
        let (Write::Create(_, new) | Write::Update(_, new)) = &write;
        if resource == "clusterroles" {
            cluster_roles.insert(meta::name(new).to_owned(), new.clone());
        }
        if new.get("aggregationRule").is_none_or(Value::is_null) {
            writes.push(write);
        }
    }
    let stored = |name: &str| {
        existing
            .get("clusterroles")
            .and_then(|roles| roles.iter().find(|role| meta::name(role) == name))
    };
    // One pass settles the default roles: `edit` gathers what `view` gathers by labels of the same base roles, and
    // roles are visited so that gathered ones come before those that gather them.
    for name in aggregation_order(&cluster_roles) {
        let role = &cluster_roles[&name];
        let mut new = role.clone();
        if let Some(rules) = aggregate(role, cluster_roles.values()) {
            new["rules"] = Value::Array(rules);
        }
        let at = GroupResource::new(GROUP, "clusterroles");
        match stored(&name) {
            None => writes.push(Write::Create(at, new.clone())),
            Some(stored) if **stored != new => writes.push(Write::Update(at, new.clone())),
            Some(_) => {}
        }
        cluster_roles.insert(name, new);
    }
    writes
}

/// The updates that bring the rules of all aggregated roles up to date with the roles that they gather.
pub(super) fn gather(stored: &HashMap<String, Arc<Value>>) -> Vec<Write> {
    let mut roles: HashMap<String, Value> = stored
        .iter()
        .map(|(name, role)| (name.clone(), role.as_ref().clone()))
        .collect();
    let mut writes = Vec::new();
    for name in aggregation_order(&roles) {
        let Some(rules) = aggregate(&roles[&name], roles.values()) else {
            continue;
        };
        if value::items(&roles[&name], &["rules"]) != rules
            && let Some(role) = roles.get_mut(&name)
        {
            role["rules"] = Value::Array(rules);
            writes.push(Write::Update(
                GroupResource::new(GROUP, "clusterroles"),
                role.clone(),
            ));
        }
    }
    writes
}

/// The names of all aggregated roles, those first that others gather.
fn aggregation_order(roles: &HashMap<String, Value>) -> Vec<String> {
    let mut names: Vec<&String> = roles
        .iter()
        .filter(|(_, role)| {
            !value::items(role, &["aggregationRule", "clusterRoleSelectors"]).is_empty()
        })
        .map(|(name, _)| name)
        .collect();
    names.sort();
    let mut ordered: Vec<String> = Vec::new();
    // Bounded by the number of roles; a cycle (two roles that gather each other) ends with what is left, in any order.
    while !names.is_empty() {
        let waits = |name: &&String, others: &[&String]| {
            others
                .iter()
                .any(|other| other != name && selects(&roles[*name], &roles[*other]))
        };
        let (later, now): (Vec<&String>, Vec<&String>) =
            names.iter().partition(|name| waits(name, &names));
        let (now, later) = if now.is_empty() {
            (later, Vec::new())
        } else {
            (now, later)
        };
        ordered.extend(now.into_iter().cloned());
        names = later;
    }
    ordered
}

fn selects(role: &Value, other: &Value) -> bool {
    value::items(role, &["aggregationRule", "clusterRoleSelectors"])
        .iter()
        .any(|selector| {
            LabelSelector::from_value(Some(selector))
                .is_ok_and(|selector| selector.matches(meta::labels(other)))
        })
}

/// The rules that the aggregated ClusterRole `role` gathers from `all` (`ClusterRoleAggregationController`): each
/// once, by selector, then by role name. `None` when it gathers nothing at all by rule, or a selector is malformed.
pub fn aggregate<'a>(role: &Value, all: impl Iterator<Item = &'a Value>) -> Option<Vec<Value>> {
    value::get(role, &["aggregationRule"])?;
    let mut others: Vec<&Value> = all
        .filter(|other| meta::name(other) != meta::name(role))
        .collect();
    others.sort_by(|a, b| meta::name(a).cmp(meta::name(b)));
    let mut rules: Vec<Value> = Vec::new();
    for selector in value::items(role, &["aggregationRule", "clusterRoleSelectors"]) {
        let selector = LabelSelector::from_value(Some(selector)).ok()?;
        for other in others
            .iter()
            .filter(|other| selector.matches(meta::labels(other)))
        {
            for rule in value::items(other, &["rules"]) {
                if !rules.contains(rule) {
                    rules.push(rule.clone());
                }
            }
        }
    }
    Some(rules)
}

/// Adds expected labels and annotations that are not there; values that are there stay.
fn merge_maps(stored: &mut Value, expected: &Value) {
    for map in ["labels", "annotations"] {
        for (key, text) in value::get_object(expected, &["metadata", map])
            .into_iter()
            .flatten()
        {
            if value::get(stored, &["metadata", map, key]).is_none() {
                value::set(stored, &["metadata", map, key], text.clone());
            }
        }
    }
}

fn merge_role(stored: &Value, expected: &Value) -> Value {
    let mut new = stored.clone();
    merge_maps(&mut new, expected);
    let missing = uncovered(&Rule::all_of(stored), &Rule::all_of(expected));
    if !missing.is_empty() {
        let mut rules = value::items(stored, &["rules"]).to_vec();
        rules.extend(missing.iter().map(Rule::to_value));
        new["rules"] = Value::Array(rules);
    }
    let path = ["aggregationRule", "clusterRoleSelectors"];
    let selectors = value::items(expected, &path);
    if selectors.is_empty() {
        // Not expected to gather: gathering would overwrite the role's own rules.
        value::remove(&mut new, &["aggregationRule"]);
    } else {
        let mut all = value::items(stored, &path).to_vec();
        all.extend(
            selectors
                .iter()
                .filter(|selector| !value::items(stored, &path).contains(selector))
                .cloned(),
        );
        value::set(&mut new, &path, Value::Array(all));
    }
    new
}

/// A binding's role cannot change: upstream deletes and makes it anew. Ours keeps to adding subjects; a default binding
/// that points elsewhere was made so by hand.
fn merge_binding(stored: &Value, expected: &Value) -> Value {
    let mut new = stored.clone();
    merge_maps(&mut new, expected);
    let have = value::items(stored, &["subjects"]);
    let missing: Vec<Value> = value::items(expected, &["subjects"])
        .iter()
        .filter(|subject| !have.contains(subject))
        .cloned()
        .collect();
    if !missing.is_empty() {
        new["subjects"] = Value::Array([have, missing.as_slice()].concat());
    }
    new
}
