//! Which old value a part of a new one stands for (upstream `apiserver/pkg/cel/common.CorrelatedObject`).

use std::collections::HashMap;

use super::{ListKind, Structural};
use crate::value::Value;

/// The old value of the member `name`; `None` when there was none, or members are not told apart.
pub fn old_member<'a>(
    schema: &Structural,
    old: Option<&'a Value>,
    name: &str,
) -> Option<&'a Value> {
    if schema.atomic_map {
        return None;
    }
    old?.as_object()?.get(name)
}

/// The items of an old list by their keys.
pub struct OldItems<'a> {
    keys: &'a [Box<str>],
    items: HashMap<String, &'a Value>,
}

impl<'a> OldItems<'a> {
    /// Of a list; `None` where items have no keys, which are not correlated.
    pub fn new(schema: &'a Structural, old: Option<&'a Value>) -> Option<OldItems<'a>> {
        if schema.list != ListKind::Map {
            return None;
        }
        let mut found = OldItems {
            keys: &schema.list_keys,
            items: HashMap::new(),
        };
        for item in old?.as_array()? {
            // The first of several counts.
            found.items.entry(found.name(item)).or_insert(item);
        }
        Some(found)
    }

    /// The old item with the keys of `item`.
    pub fn of(&self, item: &Value) -> Option<&'a Value> {
        self.items.get(&self.name(item)).copied()
    }

    fn name(&self, item: &Value) -> String {
        let keys = self.keys.iter().map(|key| item.get(&**key).cloned());
        // An absent key is told from a null.
        let keys = keys.map(|key| key.map_or(Value::Bool(false), |key| Value::Array(vec![key])));
        Value::Array(keys.collect()).to_string()
    }
}
