//! JSON patch (RFC 6902), with the liberties of `gopkg.in/evanphx/json-patch.v4`: negative list indices count from
//! the end, and `replace` of an absent member adds it.

use super::{PatchError, json_type};
use crate::codec::MAX_DEPTH;
use crate::text;
use crate::value::{self, Object, Value};

/// The most operations of one patch (upstream `maxJSONPatchOperations`).
pub const MAX_OPERATIONS: usize = 10_000;
/// The most bytes that `copy` operations of one patch may add (upstream `JSONPatchMaxCopyBytes`).
pub const MAX_COPY_BYTES: usize = 3 * 1024 * 1024;
const MISSING: &str = "missing value";

struct Operation<'a> {
    op: &'a str,
    path: Option<&'a str>,
    from: Option<&'a str>,
    value: Option<&'a Value>,
}

/// Applies `patch`, a list of operations, to `document`.
pub fn json_patch(mut document: Value, patch: &Value) -> Result<Value, PatchError> {
    let operations = decode(patch)?;
    if operations.len() > MAX_OPERATIONS {
        return Err(PatchError::TooLarge(format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
            operations.len()
        )));
    }
    let mut copied = 0;
    for operation in &operations {
        apply(&mut document, operation, &mut copied).map_err(PatchError::DoesNotApply)?;
    }
    Ok(document)
}

/// What strict field validation holds against `patch`: unknown members of its operations, in upstream's words.
pub fn json_patch_strict_errors(patch: &Value) -> Vec<String> {
    let operations = patch.as_array().map_or(&[][..], Vec::as_slice);
    let mut errors = Vec::new();
    for (i, operation) in operations.iter().enumerate() {
        for key in operation.as_object().into_iter().flat_map(Object::keys) {
            if !matches!(key.as_str(), "op" | "path" | "from" | "value") {
                let field = text::quote(&format!("[{i}].{key}"));
                errors.push(format!("json patch unknown field {field}"));
            }
        }
    }
    errors
}

fn decode(patch: &Value) -> Result<Vec<Operation<'_>>, PatchError> {
    let wrong = |value: &Value, what: &str| {
        PatchError::Malformed(format!(
            "error decoding patch: json: cannot unmarshal {} into Go {what}",
            json_type(value)
        ))
    };
    let items = match patch {
        Value::Array(items) => items.as_slice(),
        Value::Null => &[],
        other => return Err(wrong(other, "value of type []handlers.jsonPatchOp")),
    };
    // The limit is checked by the caller; what lies beyond it need not be looked at twice.
    let mut operations = Vec::with_capacity(items.len().min(MAX_OPERATIONS));
    for item in items {
        let object = match item {
            Value::Object(object) => Some(object),
            Value::Null => None,
            other => return Err(wrong(other, "value of type handlers.jsonPatchOp")),
        };
        let member = |name: &str| object.and_then(|object| object.get(name));
        let string = |name: &str| match member(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str())),
            Some(other) => Err(wrong(
                other,
                &format!("struct field jsonPatchOp.{name} of type string"),
            )),
        };
        operations.push(Operation {
            op: string("op")?.unwrap_or("unknown"),
            path: string("path")?,
            from: string("from")?,
            value: member("value"),
        });
    }
    Ok(operations)
}

fn apply(document: &mut Value, op: &Operation<'_>, copied: &mut usize) -> Result<(), String> {
    match op.op {
        "add" => add(document, op),
        "remove" => remove(document, op),
        "replace" => replace(document, op),
        "move" => move_value(document, op),
        "test" => test(document, op),
        "copy" => copy(document, op, copied),
        other => Err(format!("Unexpected kind: {other}")),
    }
}

impl Operation<'_> {
    fn source_path(&self) -> Result<&str, String> {
        self.from.ok_or_else(|| {
            let op = self.op;
            format!(
                "{op} operation failed to decode from: operation, missing from field: {MISSING}"
            )
        })
    }

    /// The path of `replace`, `move` and `test`, whose message wraps the decoder's.
    fn path_or_cause(&self) -> Result<&str, String> {
        self.path.ok_or_else(|| {
            let op = self.op;
            format!("{op} operation failed to decode path: operation missing path field: {MISSING}")
        })
    }

    /// The path of `add`, `remove` and `copy`, whose message does not.
    fn path_or_missing(&self) -> Result<&str, String> {
        self.path
            .ok_or_else(|| format!("{} operation failed to decode path: {MISSING}", self.op))
    }
}

fn add(document: &mut Value, op: &Operation<'_>) -> Result<(), String> {
    let path = op.path_or_missing()?;
    let value = op.value.cloned().unwrap_or(Value::Null);
    let (container, key) = find(document, path).ok_or_else(|| {
        format!("add operation does not apply: doc is missing path: \"{path}\": {MISSING}")
    })?;
    insert(container, &key, value, path)
        .map_err(|error| format!("error in add for path: '{path}': {error}"))
}

fn remove(document: &mut Value, op: &Operation<'_>) -> Result<(), String> {
    let path = op.path_or_missing()?;
    let (container, key) = find(document, path).ok_or_else(|| {
        format!("remove operation does not apply: doc is missing path: \"{path}\": {MISSING}")
    })?;
    take(container, &key)
        .map(drop)
        .map_err(|error| format!("error in remove for path: '{path}': {error}"))
}

fn replace(document: &mut Value, op: &Operation<'_>) -> Result<(), String> {
    let path = op.path_or_cause()?;
    let value = op.value.cloned().unwrap_or(Value::Null);
    if path.is_empty() {
        if !value.is_object() && !value.is_array() {
            return Err("replace operation value must be object or array".to_owned());
        }
        *document = value;
        return Ok(());
    }
    let (container, key) = find(document, path).ok_or_else(|| {
        format!("replace operation does not apply: doc is missing path: {path}: {MISSING}")
    })?;
    check_depth(&value, path)?;
    match container {
        Value::Object(object) => {
            object.insert(key, value);
            Ok(())
        }
        Value::Array(list) => match at(&key, list.len()) {
            Ok(index) => {
                list[index] = value;
                Ok(())
            }
            Err(_) => Err(format!(
                "replace operation does not apply: doc is missing key: {path}: {MISSING}"
            )),
        },
        _ => Err(MISSING.to_owned()),
    }
}

fn move_value(document: &mut Value, op: &Operation<'_>) -> Result<(), String> {
    let from = op.source_path()?;
    let (container, key) = find(document, from).ok_or_else(|| {
        format!("move operation does not apply: doc is missing from path: {from}: {MISSING}")
    })?;
    let value = take(container, &key)
        .map_err(|error| format!("error in move for path: '{key}': {error}"))?;
    let path = op.path_or_cause()?;
    let (container, key) = find(document, path).ok_or_else(|| {
        format!("move operation does not apply: doc is missing destination path: {path}: {MISSING}")
    })?;
    insert(container, &key, value, path)
        .map_err(|error| format!("error in move for path: '{path}': {error}"))
}

fn test(document: &mut Value, op: &Operation<'_>) -> Result<(), String> {
    let path = op.path_or_cause()?;
    let failed = || format!("testing value {path} failed: test failed");
    let wanted = op.value.unwrap_or(&Value::Null);
    if path.is_empty() {
        return if document == wanted {
            Ok(())
        } else {
            Err(failed())
        };
    }
    let (container, key) = find(document, path).ok_or_else(|| {
        format!("test operation does not apply: is missing path: {path}: {MISSING}")
    })?;
    let found = peek(container, &key)
        .map_err(|error| format!("error in test for path: '{path}': {error}"))?;
    if found.unwrap_or(&Value::Null) == wanted {
        Ok(())
    } else {
        Err(failed())
    }
}

fn copy(document: &mut Value, op: &Operation<'_>, copied: &mut usize) -> Result<(), String> {
    let from = op.source_path()?;
    let (container, key) = find(document, from).ok_or_else(|| {
        format!("copy operation does not apply: doc is missing from path: {from}: {MISSING}")
    })?;
    let value = peek(container, &key)
        .map_err(|error| format!("error in copy for from: '{from}': {error}"))?
        .cloned()
        .unwrap_or(Value::Null);
    let path = op.path_or_missing()?;
    let (container, key) = find(document, path).ok_or_else(|| {
        format!("copy operation does not apply: doc is missing destination path: {path}: {MISSING}")
    })?;
    *copied += value.to_string().len();
    if *copied > MAX_COPY_BYTES {
        return Err(format!(
            "Unable to complete the copy, the accumulated size increase of copy is {copied}, exceeding the limit {MAX_COPY_BYTES}"
        ));
    }
    insert(container, &key, value, path)
        .map_err(|error| format!("error while adding value during copy: {error}"))
}

/// The list or object that holds the last step of `path`, and that step.
fn find<'a>(document: &'a mut Value, path: &str) -> Option<(&'a mut Value, String)> {
    let (way, last) = path.rsplit_once('/')?;
    let mut at_value = document;
    for step in way.split('/').skip(1) {
        let step = unescape(step);
        at_value = match at_value {
            Value::Object(object) => object.get_mut(&step)?,
            Value::Array(list) => {
                let index = at(&step, list.len()).ok()?;
                list.get_mut(index)?
            }
            _ => return None,
        };
    }
    (at_value.is_object() || at_value.is_array()).then(|| (at_value, unescape(last)))
}

fn unescape(step: &str) -> String {
    step.replace("~1", "/").replace("~0", "~")
}

fn number(key: &str) -> Result<i64, String> {
    key.parse().map_err(|_| {
        let key = text::quote(key);
        format!("strconv.Atoi: parsing {key}: invalid syntax")
    })
}

/// The place of an existing item in a list of `len`.
fn at(key: &str, len: usize) -> Result<usize, String> {
    let index = number(key)?;
    let place = if index < 0 { index + len as i64 } else { index };
    usize::try_from(place)
        .ok()
        .filter(|place| *place < len)
        .ok_or_else(|| format!("Unable to access invalid index: {index}: invalid index referenced"))
}

fn peek<'a>(container: &'a Value, key: &str) -> Result<Option<&'a Value>, String> {
    match container {
        Value::Object(object) => Ok(object.get(key)),
        Value::Array(list) => Ok(list.get(at(key, list.len())?)),
        _ => Ok(None),
    }
}

fn take(container: &mut Value, key: &str) -> Result<Value, String> {
    match container {
        Value::Object(object) => object
            .remove(key)
            .ok_or_else(|| format!("Unable to remove nonexistent key: {key}: {MISSING}")),
        Value::Array(list) => {
            let index = at(key, list.len())?;
            Ok(list.remove(index))
        }
        _ => Err(MISSING.to_owned()),
    }
}

fn insert(container: &mut Value, key: &str, value: Value, path: &str) -> Result<(), String> {
    check_depth(&value, path)?;
    match container {
        Value::Object(object) => {
            object.insert(key.to_owned(), value);
        }
        Value::Array(list) if key == "-" => list.push(value),
        Value::Array(list) => {
            let index = number(key)
                .map_err(|error| format!("value was not a proper array index: '{key}': {error}"))?;
            // A negative index counts from the place behind the last item.
            let place = match key.strip_prefix('-') {
                Some(_) => at(key, list.len() + 1)?,
                None => usize::try_from(index)
                    .ok()
                    .filter(|place| *place <= list.len())
                    .ok_or_else(|| {
                        format!("Unable to access invalid index: {index}: invalid index referenced")
                    })?,
            };
            list.insert(place, value);
        }
        _ => return Err(MISSING.to_owned()),
    }
    Ok(())
}

fn check_depth(value: &Value, path: &str) -> Result<(), String> {
    if path.matches('/').count() + value::depth(value) > MAX_DEPTH {
        return Err("exceeded max depth".to_owned());
    }
    Ok(())
}
