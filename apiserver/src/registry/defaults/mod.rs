//! Upstream's hand-written defaulting (`SetDefaults_*`), driven by the type table: [`rows`] says what a member is when
//! it is absent, [`hooks`] what depends on other members, both by type. Values are walked along the types that have
//! either, so a container in a CronJob gets what a container in a Pod gets, and no kind needs code of its own.
//!
//! Defaults that a type declares itself are applied before, by [`keelson_machinery::schema::apply_defaults`].

mod hooks;
mod rows;
#[cfg(test)]
mod tests;

use std::sync::LazyLock;

use keelson_machinery::schema::{Cardinality, Field, Kind, Type};
use keelson_machinery::value::{self, Object, Value};

use super::plan::{Plan, Plans, short_name};

/// Sets what is absent in an object of the type `of`. Idempotent.
pub fn apply(object: &mut Value, of: &'static Type) {
    static PLANS: LazyLock<Plans<Actions>> = LazyLock::new(|| Plans::new(Actions::of));
    walk(&PLANS.of(of), 0, object);
}

/// What to do with a value of one type.
struct Actions {
    rows: Vec<Resolved>,
    hooks: Vec<fn(&mut Value)>,
    /// Members that are lists of amounts.
    amounts: Vec<&'static str>,
}

/// One row of the table, resolved.
struct Resolved {
    path: Vec<&'static str>,
    pointer: bool,
    value: Value,
}

fn is_resource_list(field: &Field) -> bool {
    field.cardinality == Cardinality::Map
        && matches!(field.kind, Kind::Quantity)
        && field
            .go_type
            .is_some_and(|name| name.ends_with("ResourceList"))
}

/// A row as it applies to `of`; `None` for a row that names no member of the type or holds no JSON, which a test
/// rules out.
fn resolve(of: &'static Type, path: &'static str, default: &str) -> Option<Resolved> {
    let path: Vec<&'static str> = path.split('.').collect();
    let mut at = of;
    let mut leaf = None;
    for (depth, step) in path.iter().enumerate() {
        let field = at.field(step)?;
        leaf = Some(field);
        if depth + 1 < path.len() {
            at = field.kind.message()?;
        }
    }
    Some(Resolved {
        path,
        pointer: leaf?.pointer,
        value: serde_json::from_str(default).ok()?,
    })
}

fn walk(plan: &Plan<Actions>, at: usize, value: &mut Value) {
    let node = &plan.nodes[at];
    if !value.is_object() {
        return;
    }
    if let Some(actions) = &node.actions {
        actions.apply(value);
    }
    let Value::Object(members) = value else {
        return;
    };
    for (field, inner) in &node.children {
        walk_member(plan, field, *inner, members);
    }
}

fn walk_member(plan: &Plan<Actions>, field: &'static Field, inner: usize, members: &mut Object) {
    match (field.cardinality, members.get_mut(field.json_name)) {
        // A struct that is no pointer is always there, if empty.
        (Cardinality::Optional, None | Some(Value::Null)) if !field.pointer && !field.omit_zero => {
            let mut made = Value::Object(Object::new());
            walk(plan, inner, &mut made);
            if made.as_object().is_some_and(|made| !made.is_empty()) {
                members.insert(field.json_name.to_string(), made);
            }
        }
        (Cardinality::Optional, None | Some(Value::Null)) => {}
        (Cardinality::Optional, Some(member)) => walk(plan, inner, member),
        (Cardinality::Repeated, Some(Value::Array(items))) => {
            items.iter_mut().for_each(|item| walk(plan, inner, item));
        }
        (Cardinality::Map, Some(Value::Object(entries))) => {
            entries
                .values_mut()
                .for_each(|entry| walk(plan, inner, entry));
        }
        _ => {}
    }
}

impl Actions {
    fn of(of: &'static Type) -> Option<Actions> {
        let name = short_name(of);
        let actions = Actions {
            rows: rows::ROWS
                .iter()
                .filter(|row| row.0 == name)
                .filter_map(|row| resolve(of, row.1, row.2))
                .collect(),
            hooks: rows::HOOKS
                .iter()
                .filter(|hook| hook.0 == name)
                .map(|hook| hook.1)
                .collect(),
            amounts: of
                .fields()
                .iter()
                .filter(|field| is_resource_list(field))
                .map(|field| field.json_name)
                .collect(),
        };
        actions.acts().then_some(actions)
    }

    fn apply(&self, value: &mut Value) {
        for row in &self.rows {
            row.apply(value);
        }
        for hook in &self.hooks {
            hook(value);
        }
        for name in &self.amounts {
            if let Some(amounts) = value.get_mut(*name) {
                hooks::round_amounts(amounts);
            }
        }
    }

    fn acts(&self) -> bool {
        !(self.rows.is_empty() && self.hooks.is_empty() && self.amounts.is_empty())
    }
}

impl Resolved {
    fn apply(&self, object: &mut Value) {
        let unset = match value::get(object, &self.path) {
            None | Some(Value::Null) => true,
            Some(Value::String(text)) => !self.pointer && text.is_empty(),
            Some(Value::Number(number)) => !self.pointer && number.as_i64() == Some(0),
            Some(Value::Array(items)) => items.is_empty(),
            Some(Value::Bool(_) | Value::Object(_)) => false,
        };
        if unset {
            value::set(object, &self.path, self.value.clone());
        }
    }
}

/// Sets what stands at `path` when nothing (or an empty text) does.
pub fn put(object: &mut Value, path: &[&str], default: impl Into<Value>) {
    let unset = match value::get(object, path) {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(_) => false,
    };
    if unset {
        value::set(object, path, default);
    }
}

/// Sets a number that counts as unset when it is zero, as Go's fields that are no pointers do.
pub fn put_number(object: &mut Value, path: &[&str], default: i64) {
    if value::get_i64(object, path).unwrap_or(0) == 0 {
        value::set(object, path, default);
    }
}

/// Calls `each` for every item of a list.
pub fn for_items(object: &mut Value, path: &[&str], mut each: impl FnMut(&mut Value)) {
    if let Some(items) = value::get_mut(object, path).and_then(Value::as_array_mut) {
        items.iter_mut().for_each(&mut each);
    }
}
