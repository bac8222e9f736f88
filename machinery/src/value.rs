//! API objects as dynamic values. Built-in and custom resources alike are a [`Value`] on their whole way
//! through the server; what is known about their fields stands in the type table.
//!
//! The readers answer `None` alike for an absent field, a null and a field of another type: objects are checked
//! against the type table when they are decoded, so code behind the codec meets only the first two.

/// An API object or any part of one.
pub type Value = serde_json::Value;
/// The members of a JSON object.
pub type Object = serde_json::Map<String, Value>;

/// The value at `path`, each step a member name. Null counts as absent.
pub fn get<'a>(value: &'a Value, path: &[&str]) -> Option<&'a Value> {
    let mut at = value;
    for step in path {
        at = at.as_object()?.get(*step)?;
    }
    (!at.is_null()).then_some(at)
}

/// The value at `path` for changing in place. Null counts as absent.
pub fn get_mut<'a>(value: &'a mut Value, path: &[&str]) -> Option<&'a mut Value> {
    let mut at = value;
    for step in path {
        at = at.as_object_mut()?.get_mut(*step)?;
    }
    (!at.is_null()).then_some(at)
}

/// The string at `path`.
pub fn get_str<'a>(value: &'a Value, path: &[&str]) -> Option<&'a str> {
    get(value, path)?.as_str()
}

/// The string at `path`, or the empty string: Go's view of an absent string.
pub fn str_or_empty<'a>(value: &'a Value, path: &[&str]) -> &'a str {
    get_str(value, path).unwrap_or_default()
}

/// The integer at `path`.
pub fn get_i64(value: &Value, path: &[&str]) -> Option<i64> {
    get(value, path)?.as_i64()
}

/// The boolean at `path`.
pub fn get_bool(value: &Value, path: &[&str]) -> Option<bool> {
    get(value, path)?.as_bool()
}

/// The list at `path`.
pub fn get_array<'a>(value: &'a Value, path: &[&str]) -> Option<&'a Vec<Value>> {
    get(value, path)?.as_array()
}

/// The items of the list at `path`; none when it is absent.
pub fn items<'a>(value: &'a Value, path: &[&str]) -> &'a [Value] {
    get_array(value, path).map_or(&[], Vec::as_slice)
}

/// The object at `path`.
pub fn get_object<'a>(value: &'a Value, path: &[&str]) -> Option<&'a Object> {
    get(value, path)?.as_object()
}

/// Puts `new` at `path`, making objects on the way where there is nothing or null.
/// Answers false, with nothing of weight changed, when something on the way is neither.
pub fn set(value: &mut Value, path: &[&str], new: impl Into<Value>) -> bool {
    let Some((last, way)) = path.split_last() else {
        *value = new.into();
        return true;
    };
    match object_at(value, way) {
        Some(object) => {
            object.insert((*last).to_owned(), new.into());
            true
        }
        None => false,
    }
}

/// The object at `path`, made (with all objects on the way) where there is nothing or null;
/// `None` when something else stands there.
pub fn object_at<'a>(value: &'a mut Value, path: &[&str]) -> Option<&'a mut Object> {
    let mut at = value;
    for step in path {
        if at.is_null() {
            *at = Value::Object(Object::new());
        }
        let object = at.as_object_mut()?;
        if !object.contains_key(*step) {
            object.insert((*step).to_owned(), Value::Null);
        }
        at = object.get_mut(*step)?;
    }
    if at.is_null() {
        *at = Value::Object(Object::new());
    }
    at.as_object_mut()
}

/// Takes out what stands at `path`.
pub fn remove(value: &mut Value, path: &[&str]) -> Option<Value> {
    let (last, way) = path.split_last()?;
    let mut at = value;
    for step in way {
        at = at.as_object_mut()?.get_mut(*step)?;
    }
    at.as_object_mut()?.remove(*last)
}

/// Whether a field holding `value` says the same as an absent one to Go's `omitempty`:
/// null, false, zero, and the empty string, list or object.
pub fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_i64() == Some(0) || n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
    }
}

/// How deeply lists and objects nest: 0 for anything else, 1 for `[]`. Recursive, like all that handles values: for
/// those that came through a codec, whose nesting is bounded.
pub fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(members) => 1 + members.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// Whether two field values mean the same as upstream's `equality.Semantic.DeepEqual` sees them after decoding:
/// absent, null and empty lists or maps are equal.
pub fn semantic_eq(a: Option<&Value>, b: Option<&Value>) -> bool {
    fn hollow(v: Option<&Value>) -> bool {
        match v {
            None | Some(Value::Null) => true,
            Some(Value::Array(a)) => a.is_empty(),
            Some(Value::Object(o)) => o.values().all(|v| hollow(Some(v))),
            Some(_) => false,
        }
    }
    match (a, b) {
        (Some(Value::Object(x)), Some(Value::Object(y))) => {
            x.iter().all(|(k, v)| semantic_eq(Some(v), y.get(k)))
                && y.iter().all(|(k, v)| x.contains_key(k) || hollow(Some(v)))
        }
        (Some(Value::Array(x)), Some(Value::Array(y))) => {
            x.len() == y.len() && x.iter().zip(y).all(|(v, w)| semantic_eq(Some(v), Some(w)))
        }
        (Some(x), Some(y)) if x == y => true,
        (a, b) => hollow(a) && hollow(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths() {
        let mut v = json!({"a": {"b": "c", "n": null}, "s": 1});
        assert_eq!(get_str(&v, &["a", "b"]), Some("c"));
        assert_eq!(get(&v, &["a", "n"]), None);
        assert_eq!(get(&v, &["s", "x"]), None);
        assert!(set(&mut v, &["a", "n", "deep"], 5));
        assert!(!set(&mut v, &["s", "x"], 5));
        assert_eq!(remove(&mut v, &["a", "b"]), Some(json!("c")));
        assert_eq!(v, json!({"a": {"n": {"deep": 5}}, "s": 1}));
    }

    #[test]
    fn semantic_equality() {
        for (a, b, want) in [
            (json!({"x": []}), json!({}), true),
            (json!({"x": {"y": null}}), json!({}), true),
            (json!({"x": 0}), json!({}), false),
            (json!([1, {"a": null}]), json!([1, {}]), true),
            (json!([1]), json!([1, 2]), false),
            (json!({"x": 1}), json!({"x": 2}), false),
        ] {
            assert_eq!(semantic_eq(Some(&a), Some(&b)), want, "{a} {b}");
            assert_eq!(semantic_eq(Some(&b), Some(&a)), want, "{b} {a}");
        }
    }
}
