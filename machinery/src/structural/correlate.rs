//! Which old value a part of a new one stands for (upstream `apiserver/pkg/cel/common.CorrelatedObject`).

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

/// The old item with the keys of `item`; lists whose items have no keys are not correlated.
pub fn old_item<'a>(
    schema: &Structural,
    old: Option<&'a Value>,
    item: &Value,
) -> Option<&'a Value> {
    if schema.list != ListKind::Map {
        return None;
    }
    let same_keys = |candidate: &&Value| {
        schema
            .list_keys
            .iter()
            .all(|key| candidate.get(&**key) == item.get(&**key))
    };
    old?.as_array()?.iter().find(same_keys)
}
