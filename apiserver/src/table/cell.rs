//! The kinds of cells.

use jiff::Timestamp;
use keelson_machinery::meta;
use keelson_machinery::selector::LabelSelector;
use keelson_machinery::value::{Object, Value};

/// What a cell may depend on besides its object.
pub(super) struct Context {
    /// The time at which ages are measured.
    pub now: Timestamp,
}

/// One cell of a row. Paths are member names joined by dots.
pub(super) enum Cell {
    /// `metadata.name`.
    Name,
    /// The time since creation.
    Age,
    /// A text; empty when absent.
    Text(&'static str),
    /// A text, with what stands for an absent one.
    TextOr(&'static str, &'static str),
    /// A number; 0 when absent.
    Int(&'static str),
    /// A number, with a text for an absent one.
    IntOr(&'static str, &'static str),
    /// A boolean, with its default.
    Bool(&'static str, bool),
    /// The time since a timestamp, with what stands for an absent one.
    Since(&'static str, &'static str),
    /// How many members or items something has.
    Count(&'static str),
    /// The names of a list of containers.
    Names(&'static str),
    /// The images of a list of containers.
    Images(&'static str),
    /// A list of texts joined by commas, with what stands for an empty one.
    Joined(&'static str, &'static str),
    /// A LabelSelector as text.
    Selector(&'static str),
    /// A map of labels as text.
    Labels(&'static str),
    /// Anything else.
    Made(fn(&Value, &Context) -> Value),
}

impl Cell {
    /// What the cell shows of `object`.
    pub fn show(&self, object: &Value, context: &Context) -> Value {
        match self {
            Cell::Name => meta::name(object).into(),
            Cell::Age => super::since(meta::creation_timestamp(object), context.now).into(),
            Cell::Text(path) => text(object, path).into(),
            Cell::TextOr(path, absent) => match at(object, path) {
                Some(Value::String(text)) => text.as_str().into(),
                Some(other) => other.to_string().into(),
                None => (*absent).into(),
            },
            Cell::Int(path) => int(object, path).into(),
            Cell::IntOr(path, absent) => match at(object, path) {
                Some(number) => number.clone(),
                None => (*absent).into(),
            },
            Cell::Bool(path, absent) => at(object, path)
                .and_then(Value::as_bool)
                .unwrap_or(*absent)
                .into(),
            Cell::Since(path, absent) => match at(object, path).and_then(Value::as_str) {
                None => (*absent).into(),
                time => super::since(time, context.now).into(),
            },
            Cell::Count(path) => match at(object, path) {
                Some(Value::Array(items)) => items.len().into(),
                Some(Value::Object(members)) => members.len().into(),
                _ => 0.into(),
            },
            Cell::Names(path) => join(items(object, path), "name").into(),
            Cell::Images(path) => join(items(object, path), "image").into(),
            Cell::Joined(path, absent) => {
                let texts: Vec<&str> = items(object, path)
                    .iter()
                    .filter_map(Value::as_str)
                    .collect();
                or(texts.join(","), absent).into()
            }
            Cell::Selector(path) => {
                let selector = LabelSelector::from_value(at(object, path));
                match selector {
                    Ok(selector) => or(selector.to_string(), "<none>").into(),
                    Err(_) => "<error>".into(),
                }
            }
            Cell::Labels(path) => labels(at(object, path).and_then(Value::as_object)).into(),
            Cell::Made(make) => make(object, context),
        }
    }
}

/// The value at a dotted path; null counts as absent.
pub(super) fn at<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    let mut value = object;
    for step in path.split('.') {
        value = value.as_object()?.get(step)?;
    }
    (!value.is_null()).then_some(value)
}

/// The text at a dotted path; empty when absent.
pub(super) fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    at(object, path).and_then(Value::as_str).unwrap_or_default()
}

/// The integer at a dotted path; 0 when absent.
pub(super) fn int(object: &Value, path: &str) -> i64 {
    at(object, path).and_then(Value::as_i64).unwrap_or(0)
}

/// The list at a dotted path; empty when absent.
pub(super) fn items<'a>(object: &'a Value, path: &str) -> &'a [Value] {
    at(object, path)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// The first of a list of conditions that has this `type`.
pub(super) fn condition<'a>(object: &'a Value, path: &str, kind: &str) -> Option<&'a Value> {
    items(object, path)
        .iter()
        .find(|condition| text(condition, "type") == kind)
}

/// `text`, or `absent` for an empty one.
pub(super) fn or(text: String, absent: &str) -> String {
    if text.is_empty() {
        absent.to_owned()
    } else {
        text
    }
}

/// The member `field` of each item, joined by commas.
pub(super) fn join(items: &[Value], field: &str) -> String {
    let texts: Vec<&str> = items.iter().map(|item| text(item, field)).collect();
    texts.join(",")
}

/// The first three of `list`, and how many more there are; `<unset>` for none (upstream `listWithMoreString`).
pub(super) fn first_three(list: &[String]) -> String {
    const MAX: usize = 3;
    match list.len() {
        0 => "<unset>".to_owned(),
        n if n > MAX => format!("{} + {} more...", list[..MAX].join(","), n - MAX),
        _ => or(list.join(","), "<unset>"),
    }
}

/// Labels as `a=b,c=d`, sorted; `<none>` for none (upstream `labels.FormatLabels`).
pub(super) fn labels(labels: Option<&Object>) -> String {
    let mut pairs: Vec<String> = labels
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    pairs.sort_unstable();
    or(pairs.join(","), "<none>")
}
