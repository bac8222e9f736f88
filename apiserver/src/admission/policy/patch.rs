//! What mutations do to an object (`k8s.io/apiserver/pkg/admission/plugin/policy/mutating/patch`).

use keelson_machinery::apply::shape::Shape;
use keelson_machinery::apply::walk;
use keelson_machinery::patch::{self, PatchError};
use keelson_machinery::value::Value as Json;
use serde_json::json;

use crate::cel::value::{MAX_JSON, Text, Value};

/// The object after a JSON patch that an expression made; `None` when one of its tests fails.
pub fn json_patch(object: &Json, operations: &Value<'_>) -> Result<Option<Json>, String> {
    let wrong = || "type mismatch: JSONPatchType.expression should evaluate to array".to_string();
    let operations = operations
        .items()
        .ok_or_else(wrong)?
        .map_err(|error| error.to_string())?;
    let mut patched = object.clone();
    let mut room = MAX_JSON;
    for operation in &operations {
        let Value::Struct(_, fields) = operation else {
            return Err(format!(
                "type mismatch: JSONPatchType.expression should evaluate to array of JSONPatch, got element of {}",
                operation.type_of()
            ));
        };
        let mut document = json!({});
        let mut test = false;
        for (name, value) in fields.iter() {
            test |= &**name == "op" && is_text(value, "test");
            // An empty text is as good as none.
            if &**name == "from" && is_text(value, "") {
                continue;
            }
            // What is too large is found out here: the check of names walks over all there is.
            let json = value.to_json_within(&mut room).map_err(|error| {
                format!(
                    "JSONPath valueExpression evaluated to a type that could not marshal to JSON: {error}"
                )
            })?;
            if &**name == "value" {
                check_names(value, None)?;
            }
            document[&**name] = json;
        }
        match patch::json_patch(patched, &Json::Array(vec![document])) {
            Ok(next) => patched = next,
            Err(PatchError::DoesNotApply(_)) if test => return Ok(None),
            Err(error) => return Err(format!("JSON Patch: {error}")),
        }
    }
    Ok(Some(patched))
}

fn is_text(value: &Value<'_>, wanted: &str) -> bool {
    matches!(value, Value::String(Text::Shared(text)) if **text == *wanted)
        || matches!(value, Value::String(Text::Borrowed(text)) if *text == wanted)
}

/// The object with what an applied configuration sets.
pub fn apply_configuration(
    object: &Json,
    configuration: &Value<'_>,
    shape: Shape<'_>,
) -> Result<Json, String> {
    if !matches!(configuration, Value::Struct(..)) {
        return Err(format!(
            "unsupported return type from ApplyConfiguration expression: {}",
            configuration.type_of()
        ));
    }
    let applied = configuration
        .to_json()
        .map_err(|error| format!("invalid return type: {error}"))?;
    check_names(configuration, Some("Object"))?;
    let broken = walk::check(shape, &applied);
    if let Some(first) = broken.first() {
        return Err(format!(
            "error applying patch: failed to convert patch object to typed object: {first}"
        ));
    }
    let mut atomic = Vec::new();
    find_atomic(shape, &applied, &mut String::new(), &mut atomic);
    if !atomic.is_empty() {
        return Err(format!(
            "error applying patch: invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: {}",
            atomic.join(", ")
        ));
    }
    Ok(walk::merge(shape, object, &applied))
}

/// The names of objects that an expression builds must be the paths where they stand (`Object.spec` below `spec`);
/// with no root, the first one's own name counts.
fn check_names(value: &Value<'_>, root: Option<&str>) -> Result<(), String> {
    let mut errors = Vec::new();
    let root = match (root, value) {
        (Some(root), _) => root.to_string(),
        (None, Value::Struct(name, _)) => name.to_string(),
        (None, _) => return Ok(()),
    };
    wrong_names(value, &root, &mut errors);
    match errors.is_empty() {
        true => Ok(()),
        false => Err(format!("type mismatch: {}", errors.join("\n"))),
    }
}

fn wrong_names(value: &Value<'_>, path: &str, errors: &mut Vec<String>) {
    match value {
        Value::Struct(name, fields) => {
            if **name != *path {
                errors.push(format!(
                    "unexpected type name {:?}, expected {path:?}, which matches field name path from root Object type",
                    &**name
                ));
            }
            for (field, value) in fields.iter() {
                wrong_names(value, &format!("{path}.{field}"), errors);
            }
        }
        Value::List(items) => {
            for item in items.iter() {
                wrong_names(item, path, errors);
            }
        }
        Value::Map(entries) => {
            for value in entries.values() {
                wrong_names(value, path, errors);
            }
        }
        _ => {}
    }
}

/// Paths of lists, maps and objects that can only be replaced as a whole: a mutation that means to add to one would
/// take away what it does not know.
fn find_atomic(shape: Shape<'_>, value: &Json, path: &mut String, found: &mut Vec<String>) {
    let length = path.len();
    match (shape, value) {
        (Shape::Leaf, Json::Array(_) | Json::Object(_)) | (Shape::Deduced, Json::Array(_)) => {
            found.push(path.clone());
        }
        (
            Shape::Object(_) | Shape::Map(_) | Shape::Custom(_) | Shape::Deduced,
            Json::Object(members),
        ) => {
            for (name, member) in members {
                path.push('.');
                path.push_str(name);
                find_atomic(shape.member(name).0, member, path, found);
                path.truncate(length);
            }
        }
        (Shape::List(_), Json::Array(items)) => {
            for (index, item) in items.iter().enumerate() {
                path.push_str(&format!("[{index}]"));
                find_atomic(shape.item(), item, path, found);
                path.truncate(length);
            }
        }
        _ => {}
    }
}
