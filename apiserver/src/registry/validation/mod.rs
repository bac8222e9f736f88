//! Validation (upstream `pkg/apis/*/validation`), driven by the type table like [`super::defaults`]: [`rows`] says what
//! a member must be, by type, wherever the type stands; functions in the other files check what takes more than one
//! member; [`update`] says what may not change.

mod admission;
mod config;
mod network;
mod pod;
mod pod_update;
mod policies;
mod resources;
mod rows;
mod storage;
#[cfg(test)]
mod tests;
mod update;
mod workloads;

use std::sync::LazyLock;

use keelson_machinery::meta::names;
use keelson_machinery::schema::{Cardinality, Type};
use keelson_machinery::status::field::{FieldError, MAX_FINDINGS, Path};
use keelson_machinery::value::{self, Value};

use super::plan::{Plan, Plans, short_name};

pub use update::changes;

/// What is wrong with an object of the type `of`; its metadata and status are not looked at.
pub fn object(object: &Value, of: &'static Type) -> Vec<FieldError> {
    static PLANS: LazyLock<Plans<Actions>> = LazyLock::new(|| Plans::new(Actions::of));
    let mut found = Vec::new();
    let plan = PLANS.of(of);
    match workloads::with_claim_volumes(object, short_name(of)) {
        Some(object) => walk(&plan, 0, &object, At::ROOT, &mut found),
        None => walk(&plan, 0, object, At::ROOT, &mut found),
    }
    found
}

/// Errors found so far.
pub type Found = Vec<FieldError>;

/// Where a value stands; made into text only for an error.
#[derive(Clone, Copy)]
pub struct At<'a> {
    parent: Option<&'a At<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Root,
    Member(&'a str),
    Index(usize),
    Key(&'a str),
}

impl At<'_> {
    const ROOT: At<'static> = At {
        parent: None,
        step: Step::Root,
    };

    /// The path as errors name it.
    pub fn path(&self) -> Path {
        let parent = self.parent.map_or_else(Path::root, At::path);
        match self.step {
            Step::Root => parent,
            Step::Member(name) => parent.child(name),
            Step::Index(index) => parent.index(index),
            Step::Key(key) => parent.key(key),
        }
    }

    /// The path of a member below, its steps separated by dots.
    pub fn child(&self, members: &str) -> Path {
        members
            .split('.')
            .fold(self.path(), |path, name| path.child(name))
    }
}

/// What one member must be.
#[derive(Clone, Copy)]
pub enum Rule {
    /// Present: no empty text, list or zero.
    Required,
    /// The same, with words for the error.
    RequiredFor(&'static str),
    /// Present and one of a list, which the error repeats in this order.
    OneOf(&'static [&'static str]),
    /// Absent or one of a list.
    OneOfIfSet(&'static [&'static str]),
    /// Present text that a name rule accepts.
    Name(fn(&str) -> Vec<String>),
    /// Absent, empty or text that a name rule accepts.
    NameIfSet(fn(&str) -> Vec<String>),
    /// Text that a name rule accepts, which refuses the empty one.
    NameAlways(fn(&str) -> Vec<String>),
    /// Absent or no negative number.
    NotNegative,
    /// Absent or a number above zero.
    Positive,
    /// Absent or a number within inclusive bounds.
    Range(i64, i64),
    /// Absent or a number within inclusive bounds, with words for the error.
    RangeFor(i64, i64, &'static str),
    /// A port number.
    Port,
    /// Absent, zero or a port number.
    PortIfSet,
    /// A port's number or name.
    PortOrName,
    /// Absent, or labels.
    Labels,
    /// Absent or an address in a field that predates the demand for the canonical form.
    AddressIfSet,
}

/// Upstream `IsNegativeErrorMsg`.
pub const NEGATIVE: &str = "must be greater than or equal to 0";
/// Upstream's words for numbers that must not be zero either.
pub const NOT_POSITIVE: &str = "must be greater than 0";

impl Rule {
    fn check(self, member: Option<&Value>, path: impl Fn() -> Path, found: &mut Found) {
        let member = member.filter(|member| !member.is_null());
        let unset = member.is_none_or(value::is_empty);
        let text = member.and_then(Value::as_str).unwrap_or_default();
        let number = member.and_then(Value::as_i64);
        let shown = || member.cloned().unwrap_or_else(|| Value::from(""));
        let mut refuse = |messages: Vec<String>| {
            for message in messages {
                found.push(FieldError::invalid(&path(), shown(), message));
            }
        };
        match self {
            Rule::Required | Rule::RequiredFor(_) | Rule::OneOf(_) | Rule::Name(_) if unset => {
                let words = match self {
                    Rule::RequiredFor(words) => words,
                    _ => "",
                };
                found.push(FieldError::required(&path(), words));
            }
            Rule::Required | Rule::RequiredFor(_) => {}
            Rule::OneOf(valid) | Rule::OneOfIfSet(valid) => {
                if member.is_some() && !valid.contains(&text) {
                    found.push(FieldError::not_supported(&path(), shown(), valid));
                }
            }
            Rule::NameIfSet(rule) if !unset => refuse(rule(text)),
            Rule::NameIfSet(_) => {}
            Rule::Name(rule) | Rule::NameAlways(rule) => refuse(rule(text)),
            Rule::NotNegative if number.is_some_and(|n| n < 0) => refuse(vec![NEGATIVE.into()]),
            Rule::Positive if number.is_some_and(|n| n <= 0) => refuse(vec![NOT_POSITIVE.into()]),
            Rule::NotNegative | Rule::Positive => {}
            Rule::Range(low, high) => {
                if let Some(number) = number {
                    refuse(names::in_range(number, low, high));
                }
            }
            Rule::RangeFor(low, high, words) => {
                if number.is_some_and(|number| !(low..=high).contains(&number)) {
                    refuse(vec![words.into()]);
                }
            }
            Rule::Port => match number.unwrap_or(0) {
                0 => found.push(FieldError::required(&path(), "")),
                number => refuse(names::port_number(number)),
            },
            Rule::PortIfSet => {
                if let Some(number) = number.filter(|number| *number != 0) {
                    refuse(names::port_number(number));
                }
            }
            Rule::PortOrName => match member {
                Some(Value::String(name)) => refuse(names::port_name(name)),
                _ => {
                    let number = number.unwrap_or(0);
                    for message in names::port_number(number) {
                        found.push(FieldError::invalid(&path(), number, message));
                    }
                }
            },
            Rule::Labels => {
                if let Some(labels) = member.and_then(Value::as_object) {
                    found.extend(keelson_machinery::meta::validate::validate_labels(
                        labels,
                        &path(),
                    ));
                }
            }
            Rule::AddressIfSet => {
                if !unset {
                    found.extend(keelson_machinery::meta::ip::valid_ip_legacy(
                        &path(),
                        text,
                        &[],
                    ));
                }
            }
        }
    }
}

/// Checks a value of the type it is registered for.
pub type Check = fn(&Value, &At<'_>, &mut Found);

struct Actions {
    rows: Vec<(Vec<&'static str>, Rule)>,
    checks: Vec<Check>,
}

impl Actions {
    fn of(of: &'static Type) -> Option<Actions> {
        let name = short_name(of);
        let actions = Actions {
            rows: rows::ROWS
                .iter()
                .filter(|row| row.0 == name)
                .map(|row| (row.1.split('.').collect(), row.2))
                .collect(),
            checks: rows::CHECKS
                .iter()
                .filter(|check| check.0 == name)
                .map(|check| check.1)
                .collect(),
        };
        (!actions.rows.is_empty() || !actions.checks.is_empty()).then_some(actions)
    }
}

fn walk(plan: &Plan<Actions>, node: usize, value: &Value, at: At<'_>, found: &mut Found) {
    if found.len() > MAX_FINDINGS {
        return;
    }
    let node = &plan.nodes[node];
    let Value::Object(members) = value else {
        return;
    };
    if let Some(actions) = &node.actions {
        for (path, rule) in &actions.rows {
            let named = || path.iter().fold(at.path(), |path, name| path.child(name));
            rule.check(value::get(value, path), named, found);
        }
        for check in &actions.checks {
            check(value, &at, found);
        }
    }
    for (field, inner) in &node.children {
        let top = matches!(at.step, Step::Root);
        if top && matches!(field.json_name, "status" | "metadata") {
            continue;
        }
        let Some(member) = members.get(field.json_name) else {
            continue;
        };
        let below = At {
            parent: Some(&at),
            step: Step::Member(field.json_name),
        };
        match (field.cardinality, member) {
            (Cardinality::Optional, member) => walk(plan, *inner, member, below, found),
            (Cardinality::Repeated, Value::Array(items)) => {
                for (index, item) in items.iter().enumerate() {
                    let step = Step::Index(index);
                    let parent = Some(&below);
                    walk(plan, *inner, item, At { parent, step }, found);
                }
            }
            (Cardinality::Map, Value::Object(entries)) => {
                for (key, entry) in entries {
                    let step = Step::Key(key);
                    let parent = Some(&below);
                    walk(plan, *inner, entry, At { parent, step }, found);
                }
            }
            _ => {}
        }
    }
}

/// The text of a member; empty when absent.
fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value::str_or_empty(value, &[name])
}

/// Whether a member is there at all.
fn has(value: &Value, name: &str) -> bool {
    value::get(value, &[name]).is_some()
}

/// Refuses a value, once for each message.
fn refuse(found: &mut Found, path: &Path, value: &str, messages: Vec<String>) {
    for message in messages {
        found.push(FieldError::invalid(path, value, message));
    }
}
