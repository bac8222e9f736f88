//! Walks over values by their shape: check, field set, comparison, merge and removal (upstream `typed.TypedValue`).

use std::collections::{BTreeMap, BTreeSet};

use super::path::PathElement;
use super::set::{Node, Set};
use super::shape::{ListShape, Shape, item_step};
use crate::schema::{Cardinality, Kind};
use crate::status::field::{MAX_FINDINGS, MAX_PATH};
use crate::structural::SchemaType;
use crate::value::{Object, Value};

/// What is wrong with an applied configuration, one text each (upstream `ValidationErrors`).
pub fn check(shape: Shape<'_>, value: &Value) -> Vec<String> {
    let mut errors = Vec::new();
    check_at(shape, value, &mut String::new(), &mut errors);
    errors
}

fn check_at(shape: Shape<'_>, value: &Value, path: &mut String, errors: &mut Vec<String>) {
    if value.is_null() {
        return;
    }
    let length = path.len();
    if length > MAX_PATH {
        errors.push("a path has too many or too long steps".to_owned());
        return;
    }
    match shape {
        Shape::Object(_) | Shape::Map(_) | Shape::Custom(_) => {
            let Some(members) = value.as_object() else {
                errors.push(format!("{path}: expected map, got {value}"));
                return;
            };
            for (name, member) in members {
                if errors.len() >= MAX_FINDINGS {
                    return;
                }
                path.push('.');
                path.push_str(name);
                let (of, declared) = shape.member(name);
                if !declared && shape.is_closed() {
                    errors.push(format!("{path}: field not declared in schema"));
                } else {
                    check_field(shape, name, member, path, errors);
                    check_at(of, member, path, errors);
                }
                path.truncate(length);
            }
        }
        Shape::List(field) => {
            let Some(items) = value.as_array() else {
                errors.push(format!("{path}: expected list, got {value}"));
                return;
            };
            let mut seen = BTreeSet::new();
            for (at, item) in items.iter().enumerate() {
                match item_step(field, item) {
                    Err(why) => {
                        errors.push(format!("{path}: element {at}: {why}"));
                        return;
                    }
                    Ok(step) => {
                        let text = step.to_string();
                        if !seen.insert(step) {
                            errors.push(format!("{path}: duplicate entries for key {text}"));
                        }
                        path.push_str(&text);
                        check_at(shape.item(), item, path, errors);
                        path.truncate(length);
                    }
                }
            }
        }
        Shape::Scalar(kind) => {
            let wrong = match kind {
                SchemaType::Boolean if !value.is_boolean() => "boolean",
                SchemaType::Integer | SchemaType::Number if !value.is_number() => {
                    "numeric (int or float)"
                }
                SchemaType::String if !value.is_string() => "string",
                _ => return,
            };
            errors.push(format!("{path}: expected {wrong}, got {value}"));
        }
        Shape::Leaf | Shape::Deduced => {}
    }
}

/// Scalars and lists that a leaf's kind does not allow.
fn check_field(shape: Shape<'_>, name: &str, value: &Value, path: &str, errors: &mut Vec<String>) {
    let Shape::Object(of) = shape else { return };
    let Some(field) = of.field(name) else { return };
    if value.is_null() {
        return;
    }
    if field.cardinality == Cardinality::Repeated && !value.is_array() {
        errors.push(format!("{path}: expected list, got {value}"));
    }
    if field.cardinality == Cardinality::Optional {
        let wrong = match field.kind {
            Kind::Bool if !value.is_boolean() => "boolean",
            Kind::Int32 | Kind::Int64 | Kind::Double if !value.is_number() => {
                "numeric (int or float)"
            }
            Kind::String | Kind::Bytes if !value.is_string() => "string",
            _ => return,
        };
        errors.push(format!("{path}: expected {wrong}, got {value}"));
    }
}

/// The paths that a configuration sets (upstream `ToFieldSet`).
pub fn field_set(shape: Shape<'_>, value: &Value) -> Set {
    node_of(shape, value).children
}

fn node_of(shape: Shape<'_>, value: &Value) -> Node {
    let mut node = Node::default();
    match (shape, value) {
        (Shape::List(field), Value::Array(items)) => {
            for (step, items) in grouped(field, items) {
                let mut below = match items.as_slice() {
                    [only] => node_of(shape.item(), only),
                    _ => Node::default(),
                };
                below.member = true;
                node.children.put(step, below);
            }
        }
        (_, Value::Object(members)) if shape.is_map(value) => {
            for (name, member) in members {
                let (of, declared) = shape.member(name);
                let mut below = node_of(of, member);
                below.member |= member.is_null()
                    || member.as_object().is_some_and(Object::is_empty)
                    || !declared;
                node.children.put(shape.step(name), below);
            }
        }
        (Shape::List(_) | Shape::Object(_) | Shape::Map(_) | Shape::Custom(_), _) => {}
        (Shape::Leaf | Shape::Scalar(_) | Shape::Deduced, _) => node.member = true,
    }
    node
}

/// How two objects differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Paths only in the first.
    pub removed: Set,
    /// Paths in both, with other values.
    pub modified: Set,
    /// Paths only in the second.
    pub added: Set,
}

impl Comparison {
    /// Whether nothing differs.
    pub fn is_same(&self) -> bool {
        self.removed.is_empty() && self.modified.is_empty() && self.added.is_empty()
    }

    /// Without the paths of `ignored` and all below them.
    pub fn exclude(self, ignored: &Set) -> Comparison {
        if ignored.is_empty() {
            return self;
        }
        Comparison {
            removed: self.removed.recursive_difference(ignored),
            modified: self.modified.recursive_difference(ignored),
            added: self.added.recursive_difference(ignored),
        }
    }
}

#[derive(Default)]
struct Delta {
    removed: Node,
    modified: Node,
    added: Node,
}

impl Delta {
    fn put(&mut self, step: PathElement, below: Delta) {
        if !below.removed.is_empty() {
            self.removed.children.put(step.clone(), below.removed);
        }
        if !below.modified.is_empty() {
            self.modified.children.put(step.clone(), below.modified);
        }
        if !below.added.is_empty() {
            self.added.children.put(step, below.added);
        }
    }
}

/// Compares two values (upstream `Compare`).
pub fn compare(shape: Shape<'_>, left: &Value, right: &Value) -> Comparison {
    let delta = compare_at(shape, Some(left), Some(right));
    Comparison {
        removed: delta.removed.children,
        modified: delta.modified.children,
        added: delta.added.children,
    }
}

fn compare_at(shape: Shape<'_>, left: Option<&Value>, right: Option<&Value>) -> Delta {
    let mut out = Delta::default();
    if left == right {
        return out;
    }
    let (l_items, r_items) = (non_empty_list(left), non_empty_list(right));
    let (l_members, r_members) = (non_empty_map(left), non_empty_map(right));
    match shape {
        Shape::List(field) if l_items.is_some() || r_items.is_some() => {
            compare_lists(
                shape,
                field,
                l_items.unwrap_or_default(),
                r_items.unwrap_or_default(),
                &mut out,
            );
        }
        Shape::Object(_) | Shape::Map(_) | Shape::Custom(_)
            if l_members.is_some() || r_members.is_some() =>
        {
            compare_maps(shape, l_members, r_members, &mut out);
        }
        Shape::Deduced if l_members.is_some() || r_members.is_some() => {
            compare_maps(shape, l_members, r_members, &mut out);
            // A map that takes the place of something else, or gives way to it.
            let other = |v: Option<&Value>| v.is_some_and(|v| !v.is_object() && !v.is_null());
            if other(left) || other(right) {
                out.modified.member = true;
            }
        }
        _ if left.is_some() && right.is_some() => out.modified.member = true,
        _ => {}
    }
    out.added.member |= left.is_none();
    out.removed.member |= right.is_none();
    out
}

fn non_empty_map(value: Option<&Value>) -> Option<&Object> {
    value?.as_object().filter(|members| !members.is_empty())
}

fn non_empty_list(value: Option<&Value>) -> Option<&[Value]> {
    value?
        .as_array()
        .map(Vec::as_slice)
        .filter(|items| !items.is_empty())
}

fn compare_maps(shape: Shape<'_>, left: Option<&Object>, right: Option<&Object>, out: &mut Delta) {
    for (name, l) in left.into_iter().flatten() {
        let r = right.and_then(|r| r.get(name));
        if Some(l) != r {
            out.put(
                shape.step(name),
                compare_at(shape.member(name).0, Some(l), r),
            );
        }
    }
    for (name, r) in right.into_iter().flatten() {
        if left.is_none_or(|l| !l.contains_key(name)) {
            out.put(
                shape.step(name),
                compare_at(shape.member(name).0, None, Some(r)),
            );
        }
    }
}

fn grouped<'a>(field: ListShape<'_>, items: &'a [Value]) -> BTreeMap<PathElement, Vec<&'a Value>> {
    let mut out: BTreeMap<PathElement, Vec<&Value>> = BTreeMap::new();
    for item in items {
        if let Ok(step) = item_step(field, item) {
            out.entry(step).or_default().push(item);
        }
    }
    out
}

fn compare_lists(
    shape: Shape<'_>,
    field: ListShape<'_>,
    left: &[Value],
    right: &[Value],
    out: &mut Delta,
) {
    let left = grouped(field, left);
    let right = grouped(field, right);
    let of = shape.item();
    let steps: BTreeSet<&PathElement> = left.keys().chain(right.keys()).collect();
    for step in steps {
        let l = left.get(step).map_or(&[][..], Vec::as_slice);
        let r = right.get(step).map_or(&[][..], Vec::as_slice);
        let mut below = Delta::default();
        match (l.len(), r.len()) {
            (0 | 1, 0 | 1) => below = compare_at(of, l.first().copied(), r.first().copied()),
            (2.., 2..) => below.modified.member = l != r,
            (2.., _) => {
                if let Some(r) = r.first() {
                    below = compare_at(of, None, Some(r));
                }
                below.removed.member = true;
            }
            (_, _) => {
                if let Some(l) = l.first() {
                    below = compare_at(of, Some(l), None);
                }
                below.added.member = true;
            }
        }
        out.put(step.clone(), below);
    }
}

/// The first value with what the second sets (upstream `Merge`).
pub fn merge(shape: Shape<'_>, left: &Value, right: &Value) -> Value {
    let (l_items, r_items) = (left.as_array(), right.as_array());
    match shape {
        Shape::List(field)
            if l_items.is_some_and(|i| !i.is_empty()) || r_items.is_some_and(|i| !i.is_empty()) =>
        {
            merge_lists(
                shape.item(),
                field,
                l_items.map_or(&[], Vec::as_slice),
                r_items.map_or(&[], Vec::as_slice),
            )
        }
        Shape::Object(_) | Shape::Map(_) | Shape::Custom(_) | Shape::Deduced => {
            let (l, r) = (left.as_object(), right.as_object());
            let empty = |o: Option<&Object>| o.is_none_or(Object::is_empty);
            if (empty(l) && empty(r)) || (!right.is_object() && !right.is_null()) {
                return right.clone();
            }
            let mut out = l.cloned().unwrap_or_default();
            for (name, member) in r.into_iter().flatten() {
                let merged = match out.get(name) {
                    Some(there) => merge(shape.member(name).0, there, member),
                    None => member.clone(),
                };
                out.insert(name.clone(), merged);
            }
            Value::Object(out)
        }
        Shape::Leaf | Shape::Scalar(_) | Shape::List(_) => right.clone(),
    }
}

/// Keeps the first list's order, except where the second orders the items that both have.
fn merge_lists(of: Shape<'_>, field: ListShape<'_>, left: &[Value], right: &[Value]) -> Value {
    let steps = |items: &[Value]| -> Vec<PathElement> {
        items
            .iter()
            .filter_map(|item| item_step(field, item).ok())
            .collect()
    };
    let (l_steps, r_steps) = (steps(left), steps(right));
    if l_steps.len() != left.len() || r_steps.len() != right.len() {
        return Value::Array(right.to_vec());
    }
    let in_left: BTreeMap<&PathElement, &Value> = l_steps.iter().zip(left).collect();
    let in_right: BTreeMap<&PathElement, &Value> = r_steps.iter().zip(right).collect();
    let join = |step: &PathElement| match (in_left.get(step), in_right.get(step)) {
        (Some(l), Some(r)) => merge(of, l, r),
        (_, Some(r)) => Value::clone(r),
        (Some(l), None) => Value::clone(l),
        (None, None) => Value::Null,
    };
    let mut shared = r_steps.iter().filter(|step| in_left.contains_key(step));
    let mut next_shared = shared.next();
    let mut merged: BTreeSet<&PathElement> = BTreeSet::new();
    let mut out = Vec::with_capacity(left.len().max(right.len()));
    let (mut l, mut r) = (0, 0);
    while l < left.len() || r < right.len() {
        if l < left.len() && r < right.len() {
            let step = &l_steps[l];
            if *step == r_steps[r] {
                merged.insert(step);
                out.push(join(step));
                l += 1;
                r += 1;
                next_shared = shared.next();
                continue;
            }
            if in_right.contains_key(step) && next_shared.is_some_and(|next| next != step) {
                l += 1;
                continue;
            }
        }
        if l < left.len() {
            let step = &l_steps[l];
            if !in_right.contains_key(step) {
                out.push(left[l].clone());
                l += 1;
                continue;
            }
            if merged.contains(step) {
                l += 1;
            }
        }
        if r < right.len() {
            let step = &r_steps[r];
            merged.insert(step);
            out.push(join(step));
            r += 1;
            if next_shared == Some(step) {
                next_shared = shared.next();
            }
        }
    }
    Value::Array(out)
}

/// The value without the paths of `set`; `None` when nothing is left (upstream `RemoveItems`).
pub fn remove(shape: Shape<'_>, value: &Value, set: &Set) -> Option<Value> {
    match (shape, value) {
        (Shape::List(field), Value::Array(items)) => {
            let mut kept = Vec::with_capacity(items.len());
            let mut touched = false;
            for item in items {
                let node = item_step(field, item).ok().and_then(|step| set.get(&step));
                match node {
                    Some(node) if node.member => {}
                    Some(node) => {
                        touched = true;
                        kept.push(remove_below(shape.item(), item, &node.children));
                    }
                    None => kept.push(item.clone()),
                }
            }
            (touched || !kept.is_empty()).then_some(Value::Array(kept))
        }
        (_, Value::Object(members)) if shape.is_map(value) => {
            let mut kept = Object::new();
            let mut touched = false;
            for (name, member) in members {
                match set.get(&shape.step(name)) {
                    Some(node) if node.member => {}
                    Some(node) => {
                        touched = true;
                        let below = remove_below(shape.member(name).0, member, &node.children);
                        kept.insert(name.clone(), below);
                    }
                    None => {
                        kept.insert(name.clone(), member.clone());
                    }
                }
            }
            (touched || !kept.is_empty()).then_some(Value::Object(kept))
        }
        // What is replaced as a whole is also removed only as a whole.
        (_, whole) => Some(whole.clone()),
    }
}

fn remove_below(shape: Shape<'_>, value: &Value, set: &Set) -> Value {
    remove(shape, value, set).unwrap_or_else(|| match value {
        Value::Object(_) => Value::Object(Object::new()),
        Value::Array(_) => Value::Array(Vec::new()),
        _ => Value::Null,
    })
}

/// The set with every declared field on the way to a path as a member
/// (upstream `EnsureNamedFieldsAreMembers`).
pub fn with_named_fields(shape: Shape<'_>, set: &Set) -> Set {
    let mut out = Set::default();
    for (step, node) in set.iter() {
        let declared = match (shape, step) {
            (Shape::Object(_), PathElement::Field(name)) => shape.member(name).1,
            _ => false,
        };
        let below = Node {
            member: node.member || (declared && !node.children.is_empty()),
            children: with_named_fields(shape.after(step), &node.children),
        };
        out.put(step.clone(), below);
    }
    out
}
