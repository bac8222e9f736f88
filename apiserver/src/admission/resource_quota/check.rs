//! Whether a request fits the quotas of its namespace (upstream `resourcequota.CheckRequest`). No I/O.

use std::collections::{BTreeMap, BTreeSet};

use keelson_machinery::meta;
use keelson_machinery::status::{ApiError, Reason};
use keelson_machinery::value::{self, Value};

use super::LimitedResource;
use super::usage::{Evaluator, Measured, Requirement};
use crate::admission::Operation;
use crate::admission::limit_ranger::{Resources, resources};

/// A quota as the check sees it; `used` runs ahead of what is stored while a batch of requests is checked.
#[derive(Clone, Debug)]
pub(super) struct Quota {
    pub(super) name: String,
    pub(super) resource_version: String,
    scopes: Vec<Requirement>,
    /// Of the status: what the controller has acknowledged.
    pub(super) hard: Resources,
    pub(super) used: Resources,
}

impl Quota {
    pub(super) fn from_value(quota: &Value) -> Quota {
        let plain = value::items(quota, &["spec", "scopes"]).iter();
        let mut scopes: Vec<Requirement> = plain
            .filter_map(Value::as_str)
            .map(|scope| Requirement {
                scope: scope.to_owned(),
                operator: "Exists".to_owned(),
                values: Vec::new(),
            })
            .collect();
        let selected = value::items(quota, &["spec", "scopeSelector", "matchExpressions"]);
        scopes.extend(selected.iter().map(Requirement::from_value));
        Quota {
            name: meta::name(quota).to_owned(),
            resource_version: meta::resource_version(quota).to_owned(),
            scopes,
            hard: resources(value::get(quota, &["status", "hard"])),
            used: resources(value::get(quota, &["status", "used"])),
        }
    }

    /// Whether it limits something of the object.
    fn covers(&self, evaluator: &Evaluator, object: &Measured) -> bool {
        self.hard.keys().any(|name| evaluator.counts(name))
            && self.scopes.iter().all(|scope| object.scopes.matches(scope))
    }
}

/// A request as the check sees it.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) operation: Operation,
    pub(super) group: String,
    pub(super) resource: String,
    pub(super) subresource: String,
    pub(super) evaluator: Evaluator,
    pub(super) new: Measured,
    /// The object before the change; `None` for a create.
    pub(super) old: Option<Measured>,
    pub(super) dry_run: bool,
}

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Refusal {
    /// With a 403 that names the object.
    Forbidden(String),
    /// With this error.
    Error(ApiError),
}

fn forbidden<T>(why: String) -> Result<T, Refusal> {
    Err(Refusal::Forbidden(why))
}

fn print(list: &Resources) -> String {
    let parts: Vec<String> = list
        .iter()
        .map(|(name, quantity)| format!("{name}={quantity}"))
        .collect();
    parts.join(",")
}

fn join<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().collect::<Vec<_>>().join(",")
}

/// What each quota is to be charged, by its index; nothing is charged beyond what it limits.
pub(super) fn check(
    quotas: &[Quota],
    asked: &Asked,
    limited: &[LimitedResource],
) -> Result<BTreeMap<usize, Resources>, Refusal> {
    let evaluator = &asked.evaluator;
    let limited_scopes: Vec<&Requirement> = limited
        .iter()
        .flat_map(|one| &one.match_scopes)
        .filter(|scope| asked.new.scopes.matches(scope))
        .collect();
    let limited_names = limited_by_default(asked, limited);

    let mut covering: Vec<usize> = Vec::new();
    let mut restricted: BTreeSet<&str> = BTreeSet::new();
    let mut restricted_scopes: BTreeSet<&str> = BTreeSet::new();
    for (index, quota) in quotas.iter().enumerate() {
        let matching = quota
            .scopes
            .iter()
            .filter(|scope| asked.new.scopes.matches(scope));
        restricted_scopes.extend(matching.map(|scope| scope.scope.as_str()));
        if !quota.covers(evaluator, &asked.new) {
            continue;
        }
        let names: BTreeSet<&str> = quota
            .hard
            .keys()
            .map(String::as_str)
            .filter(|name| evaluator.counts(name))
            .collect();
        must_specify(quota, &names, &asked.new)?;
        if names.iter().any(|name| !quota.used.contains_key(*name)) {
            return forbidden(format!(
                "status unknown for quota: {}, resources: {}",
                quota.name,
                join(names)
            ));
        }
        covering.push(index);
        restricted.extend(names);
    }

    let negative: Vec<&str> = asked
        .new
        .usage
        .iter()
        .filter(|(_, quantity)| quantity.sign() < 0)
        .map(|(name, _)| name.as_str())
        .collect();
    if !negative.is_empty() {
        return forbidden(format!(
            "quota usage is negative for resource(s): {}",
            join(negative)
        ));
    }

    let delta = match (asked.operation, &asked.old) {
        (Operation::Update, None) => {
            return forbidden(
                "unable to get previous usage since prior version of object was not found".into(),
            );
        }
        (Operation::Update, Some(old)) => more_than(&asked.new.usage, &old.usage),
        _ => asked.new.usage.clone(),
    };
    let mut charges: BTreeMap<usize, Resources> = BTreeMap::new();
    for index in covering.iter().copied() {
        // An object that comes into a quota's scope by the change costs it all.
        let in_before = asked
            .old
            .as_ref()
            .is_some_and(|old| quotas[index].covers(evaluator, old));
        let mut cost = if in_before || asked.old.is_none() {
            delta.clone()
        } else {
            asked.new.usage.clone()
        };
        cost.retain(|_, quantity| !quantity.is_zero());
        if !cost.is_empty() {
            charges.insert(index, cost);
        }
    }
    let nothing = if covering.is_empty() {
        delta.values().all(|quantity| quantity.is_zero())
    } else {
        charges.is_empty()
    };
    if nothing {
        return Ok(BTreeMap::new());
    }

    let uncovered: Vec<&str> = limited_names.difference(&restricted).copied().collect();
    if !uncovered.is_empty() {
        return forbidden(format!(
            "insufficient quota to consume: {}",
            join(uncovered)
        ));
    }
    let uncovered: Vec<String> = limited_scopes
        .iter()
        .filter(|scope| !restricted_scopes.contains(scope.scope.as_str()))
        .map(|scope| {
            let values = scope.values.join(" ");
            format!("{{{} {} [{values}]}}", scope.scope, scope.operator)
        })
        .collect();
    if !uncovered.is_empty() {
        let message = format!(
            "insufficient quota to match these scopes: [{}]",
            uncovered.join(" ")
        );
        return Err(Refusal::Error(ApiError::new(500, Reason::Unknown, message)));
    }

    for (index, cost) in &mut charges {
        let quota = &quotas[*index];
        cost.retain(|name, _| quota.hard.contains_key(name));
        if asked.subresource != "status" {
            must_fit(quota, cost)?;
        }
    }
    charges.retain(|_, cost| !cost.is_empty());
    Ok(charges)
}

/// What may only be used under a quota, as the server is configured.
fn limited_by_default<'a>(asked: &'a Asked, limited: &[LimitedResource]) -> BTreeSet<&'a str> {
    let of_resource = limited
        .iter()
        .filter(|one| one.group == asked.group && one.resource == asked.resource);
    let mut names = BTreeSet::new();
    for one in of_resource {
        let used = asked
            .new
            .usage
            .iter()
            .filter(|(_, quantity)| quantity.sign() > 0);
        names.extend(used.map(|(name, _)| name.as_str()).filter(|name| {
            one.match_contains
                .iter()
                .any(|part| name.contains(part.as_str()))
        }));
    }
    names
}

/// A pod must say what it needs of what is limited (upstream `podEvaluator.Constraints`).
fn must_specify(quota: &Quota, names: &BTreeSet<&str>, new: &Measured) -> Result<(), Refusal> {
    let missing: Vec<String> = new
        .missing
        .iter()
        .filter(|(name, _)| names.contains(*name))
        .map(|(name, containers)| {
            format!(
                "{name} for: {}",
                join(containers.iter().map(String::as_str))
            )
        })
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    forbidden(format!(
        "failed quota: {}: must specify {}",
        quota.name,
        missing.join("; ")
    ))
}

fn must_fit(quota: &Quota, cost: &Resources) -> Result<(), Refusal> {
    let exceeds = |name: &String| {
        let (Some(more), Some(hard)) = (cost.get(name), quota.hard.get(name)) else {
            return false;
        };
        let mut total = *more;
        if let Some(used) = quota.used.get(name) {
            total.add(*used);
        }
        total > *hard
    };
    let only = |list: &Resources, names: &[&String]| -> Resources {
        let named = list.iter().filter(|(name, _)| names.contains(name));
        named.map(|(name, q)| (name.clone(), *q)).collect()
    };
    let exceeded: Vec<&String> = cost.keys().filter(|name| exceeds(name)).collect();
    if exceeded.is_empty() {
        return Ok(());
    }
    forbidden(format!(
        "exceeded quota: {}, requested: {}, used: {}, limited: {}",
        quota.name,
        print(&only(cost, &exceeded)),
        print(&only(&quota.used, &exceeded)),
        print(&only(&quota.hard, &exceeded)),
    ))
}

/// `new - old`, where that is more than nothing.
fn more_than(new: &Resources, old: &Resources) -> Resources {
    let grown = new.iter().map(|(name, quantity)| {
        let mut more = *quantity;
        if let Some(before) = old.get(name) {
            more.sub(*before);
        }
        (name.clone(), more)
    });
    grown.filter(|(_, more)| more.sign() > 0).collect()
}
