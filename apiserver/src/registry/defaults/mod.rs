//! Upstream's hand-written defaulting (`SetDefaults_*`), driven by the type table: [`rows`] says what a member is when
//! it is absent, [`hooks`] what depends on other members, both by type. Values are walked along the types that have
//! either, so a container in a CronJob gets what a container in a Pod gets, and no kind needs code of its own.
//!
//! Defaults that a type declares itself are applied before, by [`keelson_machinery::schema::apply_defaults`].

mod hooks;
mod rows;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use keelson_machinery::schema::{Cardinality, Field, Kind, Type};
use keelson_machinery::value::{self, Object, Value};
use parking_lot::RwLock;

/// Sets what is absent in an object of the type `of`. Idempotent.
pub fn apply(object: &mut Value, of: &'static Type) {
    plan(of).walk(0, object);
}

/// The plan of a root type; made at the first object of the type.
fn plan(of: &'static Type) -> Arc<Plan> {
    static PLANS: OnceLock<RwLock<HashMap<&'static str, Arc<Plan>>>> = OnceLock::new();
    let plans = PLANS.get_or_init(RwLock::default);
    if let Some(plan) = plans.read().get(of.name()) {
        return plan.clone();
    }
    let plan = Arc::new(Plan::new(of));
    plans.write().insert(of.name(), plan.clone());
    plan
}

/// What to do below a root type.
struct Plan {
    /// The root is the first.
    nodes: Vec<Node>,
}

/// What to do with a value of one type.
#[derive(Default)]
struct Node {
    rows: Vec<Resolved>,
    hooks: Vec<fn(&mut Value)>,
    /// Members that are lists of amounts.
    amounts: Vec<&'static str>,
    /// Members below which something is to be done, with their nodes.
    children: Vec<(&'static Field, usize)>,
}

/// One row of the table, resolved.
struct Resolved {
    path: Vec<&'static str>,
    pointer: bool,
    value: Value,
}

/// The name by which the tables call a type.
fn short_name(of: &'static Type) -> &'static str {
    let name = of.name();
    name.strip_prefix("io.k8s.api.")
        .or_else(|| name.strip_prefix("io.k8s."))
        .unwrap_or(name)
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

impl Plan {
    fn new(root: &'static Type) -> Plan {
        // All types below the root, each once; types may contain themselves.
        let mut types = vec![root];
        let mut index: HashMap<&'static str, usize> = HashMap::from([(root.name(), 0)]);
        let mut below: Vec<Vec<(&'static Field, usize)>> = Vec::new();
        let mut next = 0;
        while let Some(of) = types.get(next).copied() {
            next += 1;
            let mut members = Vec::new();
            for field in of.fields().iter().copied() {
                if let Kind::Message(inner) = field.kind {
                    let at = *index.entry(inner.name()).or_insert_with(|| {
                        types.push(inner);
                        types.len() - 1
                    });
                    members.push((field, at));
                }
            }
            below.push(members);
        }
        let mut nodes: Vec<Node> = types.iter().map(|of| Node::own(of)).collect();
        // What leads to a node with something to do has something to do.
        let mut busy: Vec<bool> = nodes.iter().map(Node::acts).collect();
        loop {
            let mut grown = false;
            for (at, members) in below.iter().enumerate() {
                if !busy[at] && members.iter().any(|(_, inner)| busy[*inner]) {
                    busy[at] = true;
                    grown = true;
                }
            }
            if !grown {
                break;
            }
        }
        for (node, members) in nodes.iter_mut().zip(below) {
            node.children = members;
            node.children.retain(|(_, inner)| busy[*inner]);
        }
        Plan { nodes }
    }

    fn walk(&self, at: usize, value: &mut Value) {
        let node = &self.nodes[at];
        if !value.is_object() {
            return;
        }
        for row in &node.rows {
            row.apply(value);
        }
        for hook in &node.hooks {
            hook(value);
        }
        let Value::Object(members) = value else {
            return;
        };
        for name in &node.amounts {
            if let Some(amounts) = members.get_mut(*name) {
                hooks::round_amounts(amounts);
            }
        }
        for (field, inner) in &node.children {
            self.walk_member(field, *inner, members);
        }
    }

    fn walk_member(&self, field: &'static Field, inner: usize, members: &mut Object) {
        match (field.cardinality, members.get_mut(field.json_name)) {
            (Cardinality::Optional, None | Some(Value::Null)) => {
                // A struct that is no pointer is always there, if empty.
                if !field.pointer && !field.omit_zero {
                    let mut made = Value::Object(Object::new());
                    self.walk(inner, &mut made);
                    if made.as_object().is_some_and(|made| !made.is_empty()) {
                        members.insert(field.json_name.to_string(), made);
                    }
                }
            }
            (Cardinality::Optional, Some(member)) => self.walk(inner, member),
            (Cardinality::Repeated, Some(Value::Array(items))) => {
                items.iter_mut().for_each(|item| self.walk(inner, item));
            }
            (Cardinality::Map, Some(Value::Object(entries))) => {
                entries
                    .values_mut()
                    .for_each(|entry| self.walk(inner, entry));
            }
            _ => {}
        }
    }
}

impl Node {
    fn own(of: &'static Type) -> Node {
        let name = short_name(of);
        Node {
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
            children: Vec::new(),
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
