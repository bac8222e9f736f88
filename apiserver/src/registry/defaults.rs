//! Small tools for defaulting functions.

use keelson_machinery::value::{self, Value};

use super::strategy::Strategy;

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

/// A plain strategy with defaults.
pub struct Defaulted(pub fn(&mut Value));

impl Strategy for Defaulted {
    fn default(&self, object: &mut Value) {
        (self.0)(object);
    }
}
