//! Defaults that the type itself declares (`+default`), which upstream's generated defaulting functions set.

use super::{Cardinality, Field, Kind, Type};
use crate::value::Value;

/// Sets every declared default below `value` whose member is absent or, where the Go field is no pointer, empty.
///
/// These are only the defaults declared in the type. Upstream's hand-written defaulting functions set more, and run
/// for the same object as well; neither overwrites what the other has set.
pub fn apply_defaults(value: &mut Value, of: &'static Type) {
    if !of.declares_defaults() {
        return;
    }
    let Value::Object(object) = value else {
        return;
    };
    for field in of.fields() {
        if let Some(default) = &field.default {
            let unset = match object.get(field.json_name) {
                None | Some(Value::Null) => true,
                Some(Value::String(s)) => !field.pointer && s.is_empty(),
                Some(Value::Number(n)) => !field.pointer && n.as_f64() == Some(0.0),
                Some(_) => false,
            };
            if unset {
                object.insert(field.json_name.to_string(), default.clone());
            }
        }
        if let (Some(inner), Some(member)) = (inner(field), object.get_mut(field.json_name)) {
            match (field.cardinality, member) {
                (Cardinality::Optional, member) => apply_defaults(member, inner),
                (Cardinality::Repeated, Value::Array(items)) => {
                    items.iter_mut().for_each(|i| apply_defaults(i, inner))
                }
                (Cardinality::Map, Value::Object(members)) => {
                    members.values_mut().for_each(|m| apply_defaults(m, inner))
                }
                _ => {}
            }
        }
    }
}

fn inner(field: &Field) -> Option<&'static Type> {
    match field.kind {
        Kind::Message(t) if t.declares_defaults() => Some(t),
        _ => None,
    }
}

impl Type {
    /// Whether the type or any type below it declares a default; computed once, so that defaulting skips the many
    /// subtrees without one.
    pub fn declares_defaults(&'static self) -> bool {
        *self.defaults_cell().get_or_init(|| {
            let mut seen = vec![self];
            let mut next = 0;
            while let Some(found) = seen.get(next).copied() {
                next += 1;
                for field in found.fields() {
                    if field.default.is_some() {
                        return true;
                    }
                    if let Kind::Message(t) = field.kind
                        && !seen.contains(&t)
                    {
                        seen.push(t);
                    }
                }
            }
            false
        })
    }
}
