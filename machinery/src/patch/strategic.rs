//! Strategic merge patch (upstream `k8s.io/apimachinery/pkg/util/strategicpatch`): a merge patch in which lists
//! merge by key where their type says so, steered by directives:
//!
//! - `$patch: replace | delete` in an object, for that object (in a merged list: for that item, or the whole list);
//! - `$deleteFromPrimitiveList/NAME: [...]` takes scalars out of the list NAME;
//! - `$setElementOrder/NAME: [...]` orders the list NAME;
//! - `$retainKeys: [...]` clears all other members first.

use std::collections::{HashMap, HashSet};

use super::{PatchError, json_type};
use crate::schema::{Cardinality, Field, Kind, Type};
use crate::text;
use crate::value::{Object, Value};

const DIRECTIVE: &str = "$patch";
const DELETE_LIST: &str = "$deleteFromPrimitiveList";
const ORDER: &str = "$setElementOrder";
const RETAIN_KEYS: &str = "$retainKeys";

type Result<T> = std::result::Result<T, PatchError>;

/// Applies `patch` to `document`, an object of `schema`. Both are used up.
pub fn strategic_merge_patch(
    document: Value,
    patch: Value,
    schema: &'static Type,
) -> Result<Value> {
    let patch = match patch {
        Value::Object(patch) => patch,
        Value::Null => Object::new(),
        other => {
            return Err(PatchError::Malformed(format!(
                "json: cannot unmarshal {} into Go value of type map[string]interface {{}}",
                json_type(&other)
            )));
        }
    };
    let document = match document {
        Value::Object(document) => document,
        _ => Object::new(),
    };
    merge_object(document, patch, Shape::Struct(schema)).map(Value::Object)
}

/// What the type table knows of the object at hand.
#[derive(Clone, Copy)]
enum Shape {
    /// An object with known members.
    Struct(&'static Type),
    /// A map or a value that is any JSON; Go's name for its kind.
    Opaque(&'static str),
}

/// How a member merges.
struct Rule {
    shape: Shape,
    list: bool,
    merge: bool,
    replace: bool,
    key: Option<&'static str>,
}

impl Shape {
    fn rule(self, member: &str) -> Result<Rule> {
        let schema = match self {
            Shape::Struct(schema) => schema,
            Shape::Opaque(kind) => {
                return Err(conflict(format!(
                    "merging an object in json but data type is not struct, instead is: {kind}"
                )));
            }
        };
        let field = schema.field(member).ok_or_else(|| {
            conflict(format!(
                "unable to find api field in struct {} for the json field {}",
                schema.short_name(),
                text::quote(member)
            ))
        })?;
        let strategies = field.patch_strategy.unwrap_or_default();
        let has = |strategy: &str| strategies.split(',').any(|s| s == strategy);
        Ok(Rule {
            shape: shape_of(field),
            list: field.cardinality == Cardinality::Repeated
                || matches!(field.kind, Kind::Items(_)),
            merge: has("merge"),
            replace: has("replace"),
            key: field.merge_key,
        })
    }

    fn list_rule(self, member: &str) -> Result<Rule> {
        let rule = self.rule(member)?;
        if rule.list {
            return Ok(rule);
        }
        let kind = match self {
            Shape::Struct(_) => "struct",
            Shape::Opaque(kind) => kind,
        };
        Err(conflict(format!(
            "expected slice or array type, but got: {kind}"
        )))
    }

    fn name(self) -> &'static str {
        match self {
            Shape::Struct(_) => "struct",
            Shape::Opaque(kind) => kind,
        }
    }
}

/// The shape of a field's value, or of a list's items.
fn shape_of(field: &Field) -> Shape {
    match (field.cardinality, field.kind.message()) {
        (Cardinality::Map, _) => Shape::Opaque("map"),
        (_, Some(message)) => Shape::Struct(message),
        (_, None) => Shape::Opaque(match field.kind {
            Kind::Bool => "bool",
            Kind::Int32 => "int32",
            Kind::Int64 => "int64",
            Kind::Double => "float64",
            Kind::Bytes | Kind::Items(_) => "slice",
            Kind::String => "string",
            _ => "struct",
        }),
    }
}

fn conflict(message: String) -> PatchError {
    PatchError::Conflicting(message)
}

fn bad_order() -> PatchError {
    PatchError::Malformed("invalid patch format of setElementOrder list".to_owned())
}

fn bad_retain_keys() -> PatchError {
    PatchError::Malformed("invalid patch format of retainKeys".to_owned())
}

fn no_merge_key(item: &Object, key: &str) -> PatchError {
    conflict(format!(
        "map: {} does not contain declared merge key: {key}",
        text::go_map(item)
    ))
}

fn bad_type(expected: &str, actual: &Value) -> PatchError {
    conflict(format!(
        "expected a {expected}, but received a {}",
        go_type(actual)
    ))
}

fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "%!s(<nil>)",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

fn merge_object(mut document: Object, mut patch: Object, shape: Shape) -> Result<Object> {
    if let Some(directive) = patch.remove(DIRECTIVE) {
        return match directive.as_str() {
            Some("replace") => Ok(patch),
            Some("delete") => Ok(Object::new()),
            _ => Err(bad_directive(directive, patch)),
        };
    }
    retain_keys(&mut document, &mut patch)?;
    order_lists(&mut document, &mut patch, shape)?;
    for (name, value) in patch {
        let deletes = name.starts_with(DELETE_LIST);
        let name = if deletes {
            suffix_of(&name, DELETE_LIST)
                .ok_or_else(|| {
                    PatchError::Malformed("invalid patch format of primitive list".to_owned())
                })?
                .to_owned()
        } else {
            name
        };
        if value.is_null() {
            document.remove(&name);
            continue;
        }
        let merged = match (document.remove(&name), value) {
            (Some(Value::Object(old)), Value::Object(new)) => {
                let rule = shape.rule(&name)?;
                Some(Value::Object(if rule.replace {
                    new
                } else {
                    merge_object(old, new, rule.shape)?
                }))
            }
            (Some(Value::Array(old)), Value::Array(new)) => {
                let rule = shape.list_rule(&name)?;
                Some(Value::Array(merge_lists(old, new, &rule, deletes)?))
            }
            // Nothing to take away from.
            (old, _) if deletes => old,
            (Some(_), new @ (Value::Bool(_) | Value::Number(_) | Value::String(_))) => Some(new),
            (_, new) => without_directives(without_nulls(new)),
        };
        if let Some(merged) = merged {
            document.insert(name, merged);
        }
    }
    Ok(document)
}

fn bad_directive(directive: Value, mut patch: Object) -> PatchError {
    patch.insert(DIRECTIVE.to_owned(), directive.clone());
    conflict(format!(
        "unknown patch type: {} in map: {}",
        text::go_value(&directive),
        text::go_map(&patch)
    ))
}

/// The NAME of `PREFIX/NAME`.
fn suffix_of<'a>(name: &'a str, prefix: &str) -> Option<&'a str> {
    name.strip_prefix(prefix)?.strip_prefix('/')
}

fn retain_keys(document: &mut Object, patch: &mut Object) -> Result<()> {
    let Some(keep) = patch.remove(RETAIN_KEYS) else {
        return Ok(());
    };
    let keep = keep.as_array().ok_or_else(bad_retain_keys)?;
    let keep: HashSet<&str> = keep.iter().filter_map(Value::as_str).collect();
    let strays = patch.iter().any(|(name, value)| {
        !value.is_null()
            && !name.starts_with(DELETE_LIST)
            && !name.starts_with(ORDER)
            && !keep.contains(name.as_str())
    });
    if strays {
        return Err(bad_retain_keys());
    }
    document.retain(|name, _| keep.contains(name.as_str()));
    Ok(())
}

/// Merges and orders the lists that have a `$setElementOrder`, and takes them out of the patch.
fn order_lists(document: &mut Object, patch: &mut Object, shape: Shape) -> Result<()> {
    let directives: Vec<String> = patch
        .keys()
        .filter(|name| name.starts_with(ORDER))
        .cloned()
        .collect();
    for directive in directives {
        let order = match patch.remove(&directive) {
            Some(Value::Array(order)) => order,
            Some(other) => return Err(bad_type("[]interface {}", &other)),
            None => continue,
        };
        let name = suffix_of(&directive, ORDER).ok_or_else(bad_order)?;
        let old = list_of(document.get(name))?;
        let new = list_of(patch.get(name))?;
        let rule = shape.list_rule(name)?;
        check_order(new.as_deref(), &order, rule.key)?;
        let live = old.clone().unwrap_or_default();
        let merged = match (old, new.clone()) {
            (None, None) => continue,
            (Some(old), None) => old,
            (None, Some(new)) => match without_directives(Value::Array(new)) {
                Some(Value::Array(new)) => new,
                _ => continue,
            },
            (Some(old), Some(new)) => merge_lists(old, new, &rule, false)?,
        };
        let new = new.as_deref().unwrap_or_default();
        if live.is_empty() && new.is_empty() {
            continue;
        }
        let objects = element_kind([&live, new])?;
        let key = rule.key.filter(|_| objects);
        let ordered = interleave(merged, &order, &live, rule.key, key)?;
        document.insert(name.to_owned(), Value::Array(ordered));
        patch.remove(name);
    }
    Ok(())
}

fn list_of(value: Option<&Value>) -> Result<Option<Vec<Value>>> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(list)) => Ok(Some(list.clone())),
        Some(other) => Err(bad_type("[]interface {}", other)),
    }
}

/// The items of the patch must occur in `order`, in the same relative order; deletions are not looked at.
fn check_order(patch: Option<&[Value]>, order: &[Value], key: Option<&str>) -> Result<()> {
    let patch = patch.unwrap_or_default();
    if patch.is_empty() || order.is_empty() {
        return Ok(());
    }
    let mut ordered = order.iter();
    for item in patch {
        if key.is_some() {
            let object = item
                .as_object()
                .ok_or_else(|| bad_type("map[string]interface {}", item))?;
            if object.contains_key(DIRECTIVE) {
                continue;
            }
        }
        let wanted = identity(item, key)?;
        let mut found = false;
        for place in ordered.by_ref() {
            if identity(place, key)? == wanted {
                found = true;
                break;
            }
        }
        if !found {
            return Err(conflict(format!(
                "The order in patch list:\n{}\n doesn't match {ORDER} list:\n{}\n",
                text::go_value(&Value::Array(patch.to_vec())),
                text::go_value(&Value::Array(order.to_vec()))
            )));
        }
    }
    Ok(())
}

/// What makes an item the same item: its merge key's value, or the scalar itself.
fn identity(item: &Value, key: Option<&str>) -> Result<String> {
    let Some(key) = key else {
        return Ok(item.to_string());
    };
    let object = item
        .as_object()
        .ok_or_else(|| bad_type("map[string]interface {}", item))?;
    object
        .get(key)
        .map(Value::to_string)
        .ok_or_else(|| no_merge_key(object, key))
}

/// Whether the items are objects; all must be of one type and none a list.
fn element_kind<const N: usize>(lists: [&[Value]; N]) -> Result<bool> {
    let mut first: Option<&Value> = None;
    for item in lists.into_iter().flatten() {
        match first {
            None if item.is_array() => {
                return Err(PatchError::DoesNotApply(
                    "lists of lists are not supported".to_owned(),
                ));
            }
            None => first = Some(item),
            Some(first) if go_type(first) != go_type(item) => {
                let all: Vec<String> = lists
                    .iter()
                    .map(|list| text::go_value(&Value::Array(list.to_vec())))
                    .collect();
                return Err(conflict(format!(
                    "list element types are not identical: [{}]",
                    all.join(" ")
                )));
            }
            Some(_) => {}
        }
    }
    first
        .map(Value::is_object)
        .ok_or_else(|| conflict("no elements in any of the given slices".to_owned()))
}

fn merge_lists(old: Vec<Value>, new: Vec<Value>, rule: &Rule, deletes: bool) -> Result<Vec<Value>> {
    if !rule.merge && !deletes {
        return Ok(new);
    }
    if old.is_empty() && new.is_empty() {
        return Ok(old);
    }
    if !element_kind([&old, &new])? {
        let listed: HashSet<String> = new.iter().map(Value::to_string).collect();
        if deletes {
            return Ok(old
                .into_iter()
                .filter(|item| !listed.contains(&item.to_string()))
                .collect());
        }
        let live = old.clone();
        let mut seen = HashSet::new();
        let merged = old
            .into_iter()
            .chain(new.iter().cloned())
            .filter(|item| seen.insert(item.to_string()))
            .collect();
        return interleave(merged, &new, &live, rule.key, None);
    }
    let key = rule.key.ok_or_else(|| {
        conflict(format!(
            "cannot merge lists without merge key for {}",
            rule.shape.name()
        ))
    })?;
    let (live, new) = apply_item_directives(old, new, key)?;
    let merged = merge_items(live.clone(), new.clone(), key, rule.shape)?;
    interleave(merged, &new, &live, Some(key), Some(key))
}

/// Carries out `$patch` in items; answers the list without what they delete, and the items that remain to merge.
fn apply_item_directives(
    mut old: Vec<Value>,
    new: Vec<Value>,
    key: &str,
) -> Result<(Vec<Value>, Vec<Value>)> {
    let mut plain = Vec::with_capacity(new.len());
    let mut gone = HashSet::new();
    let mut replace = false;
    for item in new {
        let Value::Object(mut object) = item else {
            return Err(bad_type("map[string]interface {}", &item));
        };
        match object.remove(DIRECTIVE) {
            None => plain.push(Value::Object(object)),
            Some(directive) => match directive.as_str() {
                Some("delete") => {
                    let Some(identity) = object.get(key) else {
                        object.insert(DIRECTIVE.to_owned(), directive);
                        return Err(no_merge_key(&object, key));
                    };
                    gone.insert(identity.to_string());
                }
                Some("replace") => replace = true,
                Some("merge") => {
                    return Err(conflict(
                        "merging lists cannot yet be specified in the patch".to_owned(),
                    ));
                }
                _ => return Err(bad_directive(directive, object)),
            },
        }
    }
    if replace {
        return Ok((plain, Vec::new()));
    }
    if !gone.is_empty() {
        old.retain(|item| {
            let identity = item.get(key).map(Value::to_string);
            !identity.is_some_and(|identity| gone.contains(&identity))
        });
    }
    Ok((old, plain))
}

fn merge_items(
    mut merged: Vec<Value>,
    new: Vec<Value>,
    key: &str,
    shape: Shape,
) -> Result<Vec<Value>> {
    // The first item of an identity is the one that merges.
    let mut places: HashMap<String, usize> = HashMap::new();
    for (place, item) in merged.iter().enumerate() {
        if let Some(identity) = item.get(key) {
            places.entry(identity.to_string()).or_insert(place);
        }
    }
    for item in new {
        let identity = identity(&item, Some(key))?;
        match places.get(&identity) {
            Some(place) => {
                let (Value::Object(old), Value::Object(item)) = (merged[*place].take(), item)
                else {
                    return Err(conflict(format!("value for key {place} is not a map")));
                };
                merged[*place] = Value::Object(merge_object(old, item, shape)?);
            }
            None => {
                places.insert(identity, merged.len());
                merged.push(item);
            }
        }
    }
    Ok(merged)
}

/// Orders `merged`: items that `order` names follow it, the others keep the order of `live`; between the two
/// kinds, an item of the others comes before a named one if it did so in `live`.
///
/// `split_key` tells the kinds apart, `sort_key` finds places (both are the merge key, but for lists of scalars).
fn interleave(
    merged: Vec<Value>,
    order: &[Value],
    live: &[Value],
    split_key: Option<&str>,
    sort_key: Option<&str>,
) -> Result<Vec<Value>> {
    let places = |list: &[Value], key: Option<&str>| {
        let mut places = HashMap::new();
        for (place, item) in list.iter().enumerate() {
            places.entry(identity(item, key)?).or_insert(place);
        }
        Ok::<_, PatchError>(places)
    };
    let named = places(order, split_key)?;
    let ordered = places(order, sort_key)?;
    let lived = places(live, sort_key)?;
    let mut left = Vec::new();
    let mut right = Vec::new();
    for item in merged {
        if named.contains_key(&identity(&item, split_key)?) {
            let place = ordered.get(&identity(&item, sort_key)?).copied();
            right.push((place.unwrap_or(usize::MAX), item));
        } else {
            let place = lived.get(&identity(&item, sort_key)?).copied();
            left.push((place.unwrap_or(usize::MAX), item));
        }
    }
    right.sort_by_key(|(place, _)| *place);
    left.sort_by_key(|(place, _)| *place);
    let mut out = Vec::with_capacity(left.len() + right.len());
    let mut left = left.into_iter().peekable();
    for (_, item) in right {
        let bound = lived.get(&identity(&item, sort_key)?).copied();
        while let Some((_, other)) =
            left.next_if(|(place, _)| bound.is_some_and(|bound| *place < bound))
        {
            out.push(other);
        }
        out.push(item);
    }
    out.extend(left.map(|(_, item)| item));
    Ok(out)
}

/// `value` without what directives steer, for a place where nothing was; `None` when it is itself one.
fn without_directives(value: Value) -> Option<Value> {
    match value {
        Value::Object(object) if object.contains_key(DIRECTIVE) => None,
        Value::Object(object) => Some(Value::Object(
            object
                .into_iter()
                .filter_map(|(name, value)| Some((name, without_directives(value)?)))
                .collect(),
        )),
        Value::Array(list) => Some(Value::Array(
            list.into_iter().filter_map(without_directives).collect(),
        )),
        other => Some(other),
    }
}

/// `value` without members that are null; null items of lists stay.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(object) => Value::Object(
            object
                .into_iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(name, value)| (name, without_nulls(value)))
                .collect(),
        ),
        Value::Array(list) => Value::Array(list.into_iter().map(without_nulls).collect()),
        other => other,
    }
}
