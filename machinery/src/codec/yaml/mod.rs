//! YAML as upstream reads it (`sigs.k8s.io/yaml` on go-yaml v2): YAML 1.1's words for booleans, octal numbers by a
//! leading zero, keys of any scalar type turned into text, merge keys; of several documents only the first.

mod emit;
mod resolve;

pub use emit::encode;

use std::borrow::Cow;
use std::collections::HashMap;

use granit_parser::{Event, Parser, ScalarStyle, ScanError, Span};

use super::{DecodeError, MAX_DEPTH, StrictError, Strictness, json};
use crate::schema::Type;
use crate::text;
use crate::value::{Object, Value};
use resolve::resolve;

/// What anchors and aliases may add to a document, in bytes (a few dozen bytes of text could otherwise become
/// gigabytes): about the 400,000 nodes at which go-yaml begins to refuse.
const MAX_ALIASED: usize = 400_000 * NODE;
/// What a node takes besides its text.
const NODE: usize = 32;

/// Decodes an object of a known type, as [`json::decode`] does for JSON.
pub fn decode(
    bytes: &[u8],
    of: &'static Type,
    strictness: Strictness,
) -> Result<(Value, Vec<StrictError>), DecodeError> {
    let (value, mut strict) = decode_any(bytes, strictness)?;
    let (value, more) = json::decode_value(&value, of, strictness)?;
    strict.extend(more);
    Ok((value, strict))
}

/// Decodes without a type. Strict errors are duplicate keys only, in one error as go-yaml words it.
pub fn decode_any(
    bytes: &[u8],
    strictness: Strictness,
) -> Result<(Value, Vec<StrictError>), DecodeError> {
    let source = String::from_utf8_lossy(bytes);
    // Most of what is sent as YAML is JSON, which is YAML as well; duplicates are left to the YAML reader.
    if source.trim_start().starts_with('{')
        && let Ok((value, errors)) = json::decode_any(bytes, Strictness::Strict)
        && errors.is_empty()
    {
        return Ok((value, errors));
    }
    let mut reader = Reader {
        events: Parser::new_from_str(&source),
        anchors: HashMap::new(),
        aliased: 0,
        duplicates: Vec::new(),
    };
    let value = reader.document()?;
    let mut strict = Vec::new();
    if strictness == Strictness::Strict && !reader.duplicates.is_empty() {
        strict.push(StrictError::Yaml(format!(
            "yaml: unmarshal errors:\n  {}",
            reader.duplicates.join("\n  ")
        )));
    }
    Ok((value, strict))
}

struct Reader<'a> {
    events: Parser<'a, granit_parser::StrInput<'a>>,
    anchors: HashMap<usize, Value>,
    aliased: usize,
    duplicates: Vec<String>,
}

fn failed(e: ScanError) -> DecodeError {
    let line = e.marker().line();
    DecodeError::Syntax(format!("yaml: line {line}: {}", e.info()))
}

fn wrong(message: impl AsRef<str>) -> DecodeError {
    DecodeError::Syntax(format!("yaml: {}", message.as_ref()))
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<Option<(Event<'a>, Span)>, DecodeError> {
        self.events.next().transpose().map_err(failed)
    }

    fn document(&mut self) -> Result<Value, DecodeError> {
        while let Some((event, span)) = self.next()? {
            match event {
                Event::StreamStart | Event::DocumentStart(..) => {}
                Event::StreamEnd | Event::DocumentEnd => return Ok(Value::Null),
                event if event.is_node() => return self.node(event, &span, MAX_DEPTH),
                _ => {}
            }
        }
        Ok(Value::Null)
    }

    fn node(&mut self, event: Event<'a>, span: &Span, depth: usize) -> Result<Value, DecodeError> {
        let Some(depth) = depth.checked_sub(1) else {
            return Err(wrong("exceeded max depth"));
        };
        let (anchor, value) = match event {
            Event::MappingStart(_, anchor, _) => (anchor, self.mapping(depth)?),
            Event::SequenceStart(_, anchor, _) => (anchor, self.sequence(depth)?),
            other => return self.leaf(other, span, depth),
        };
        self.anchor(anchor, &value)?;
        Ok(value)
    }

    /// Keeps what has an anchor (0: it has none).
    fn anchor(&mut self, anchor: usize, value: &Value) -> Result<(), DecodeError> {
        if anchor != 0 {
            self.add(measure(value).0)?;
            self.anchors.insert(anchor, value.clone());
        }
        Ok(())
    }

    /// Counts what is copied for an anchor or alias.
    fn add(&mut self, bytes: usize) -> Result<(), DecodeError> {
        self.aliased += bytes;
        if self.aliased > MAX_ALIASED {
            return Err(wrong("document contains excessive aliasing"));
        }
        Ok(())
    }

    fn sequence(&mut self, depth: usize) -> Result<Value, DecodeError> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                Some((Event::SequenceEnd, _)) => return Ok(Value::Array(items)),
                Some((event, span)) if event.is_node() => {
                    items.push(self.node(event, &span, depth)?)
                }
                Some(_) => {}
                None => return Err(wrong("unexpected end of stream")),
            }
        }
    }

    /// A scalar or an alias.
    #[inline(never)]
    fn leaf(&mut self, event: Event<'a>, span: &Span, depth: usize) -> Result<Value, DecodeError> {
        let (anchor, value) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let tag = tag.map(|t| t.to_string());
                let line = span.start.line();
                let value = resolve(&text, style == ScalarStyle::Plain, tag.as_deref())
                    .map_err(|e| wrong(format!("line {line}: {e}")))?;
                (anchor, value)
            }
            Event::Alias(id) => {
                let Some(value) = self.anchors.get(&id).cloned() else {
                    return Err(wrong("anchor value contains itself"));
                };
                let (bytes, height) = measure(&value);
                if height > depth {
                    return Err(wrong("exceeded max depth"));
                }
                self.add(bytes)?;
                (0, value)
            }
            other => return Err(wrong(format!("unexpected event {other:?}"))),
        };
        self.anchor(anchor, &value)?;
        Ok(value)
    }

    fn mapping(&mut self, depth: usize) -> Result<Value, DecodeError> {
        let mut out = Object::new();
        let mut merges = Vec::new();
        loop {
            let (event, span) = match self.next()? {
                Some((Event::MappingEnd, _)) => break,
                Some((event, span)) if event.is_node() => (event, span),
                Some(_) => continue,
                None => return Err(wrong("unexpected end of stream")),
            };
            let merge = matches!(
                &event,
                Event::Scalar(text, ScalarStyle::Plain, _, None) if text == "<<"
            );
            let key = self.node(event, &span, depth)?;
            let (event, span) = loop {
                match self.next()? {
                    Some((event, span)) if event.is_node() => break (event, span),
                    Some(_) => {}
                    None => return Err(wrong("unexpected end of stream")),
                }
            };
            let value = self.node(event, &span, depth)?;
            if merge {
                merges.push(value);
                continue;
            }
            let Some(name) = key_text(&key) else {
                return Err(DecodeError::Syntax(format!(
                    "error converting YAML to JSON: unsupported map key: {key}"
                )));
            };
            if out.contains_key(&*name) {
                let shown = match &key {
                    Value::String(_) => text::quote(&name),
                    _ => name.to_string(),
                };
                self.duplicates.push(format!(
                    "line {}: key {shown} already set in map",
                    span.start.line()
                ));
            }
            out.insert(name.into_owned(), value);
        }
        for merge in merges {
            let sources = match merge {
                Value::Array(items) => items,
                other => vec![other],
            };
            for source in sources {
                let Value::Object(members) = source else {
                    return Err(wrong(
                        "map merge requires map or sequence of maps as the value",
                    ));
                };
                for (name, value) in members {
                    out.entry(name).or_insert(value);
                }
            }
        }
        Ok(Value::Object(out))
    }
}

/// The JSON name that a key becomes.
fn key_text(key: &Value) -> Option<Cow<'_, str>> {
    match key {
        Value::String(text) => Some(Cow::Borrowed(text)),
        Value::Bool(on) => Some(Cow::Borrowed(if *on { "true" } else { "false" })),
        Value::Number(_) => {
            let text = json::encode(key);
            Some(Cow::Owned(String::from_utf8_lossy(&text).into_owned()))
        }
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// What a copy of a value takes, about, and how deeply it nests. Values here are never deeper than [`MAX_DEPTH`].
fn measure(value: &Value) -> (usize, usize) {
    let below = |(bytes, height): (usize, usize), (key, item): (usize, &Value)| {
        let (more, deep) = measure(item);
        (bytes + key + more, height.max(deep + 1))
    };
    match value {
        Value::Array(items) => items.iter().map(|item| (0, item)).fold((NODE, 1), below),
        Value::Object(members) => members
            .iter()
            .map(|(key, item)| (key.len(), item))
            .fold((NODE, 1), below),
        Value::String(text) => (NODE + text.len(), 0),
        _ => (NODE, 0),
    }
}

#[cfg(test)]
mod tests;
