//! Writes block YAML with sorted keys and list markers at the key's own indent, as upstream does.

use bytes::Bytes;

use super::resolve::ambiguous;
use crate::codec::json;
use crate::value::Value;

/// Encodes a value as one YAML document, ending in a newline.
pub fn encode(value: &Value) -> Bytes {
    let mut out = Vec::with_capacity(1024);
    match value {
        Value::Object(members) if !members.is_empty() => node(&mut out, value, 0),
        Value::Array(items) if !items.is_empty() => node(&mut out, value, 0),
        other => {
            scalar(&mut out, other, 0);
            out.push(b'\n');
        }
    }
    Bytes::from(out)
}

/// Writes a non-empty collection; the position is at the start of its first line, already indented.
fn node(out: &mut Vec<u8>, value: &Value, indent: usize) {
    match value {
        Value::Object(members) => {
            for (index, (key, member)) in members.iter().enumerate() {
                if index > 0 {
                    pad(out, indent);
                }
                key_text(out, key);
                out.push(b':');
                match member {
                    Value::Object(inner) if !inner.is_empty() => {
                        out.push(b'\n');
                        pad(out, indent + 2);
                        node(out, member, indent + 2);
                    }
                    Value::Array(items) if !items.is_empty() => {
                        out.push(b'\n');
                        pad(out, indent);
                        node(out, member, indent);
                    }
                    other => {
                        out.push(b' ');
                        scalar(out, other, indent + 2);
                        out.push(b'\n');
                    }
                }
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    pad(out, indent);
                }
                out.extend_from_slice(b"- ");
                match item {
                    Value::Object(inner) if !inner.is_empty() => node(out, item, indent + 2),
                    Value::Array(inner) if !inner.is_empty() => node(out, item, indent + 2),
                    other => {
                        scalar(out, other, indent + 2);
                        out.push(b'\n');
                    }
                }
            }
        }
        _ => {}
    }
}

fn pad(out: &mut Vec<u8>, indent: usize) {
    out.resize(out.len() + indent, b' ');
}

fn key_text(out: &mut Vec<u8>, key: &str) {
    // A key must fit on its line, which rules the block style out.
    if plain(key) {
        out.extend_from_slice(key.as_bytes());
    } else {
        quoted(out, key);
    }
}

fn scalar(out: &mut Vec<u8>, value: &Value, indent: usize) {
    match value {
        Value::String(text) if plain(text) => out.extend_from_slice(text.as_bytes()),
        Value::String(text) if block(text) => {
            let kept = match (text.ends_with("\n\n"), text.ends_with('\n')) {
                (true, _) => "|+",
                (_, true) => "|",
                _ => "|-",
            };
            out.extend_from_slice(kept.as_bytes());
            let body = text.strip_suffix('\n').unwrap_or(text);
            for line in body.split('\n') {
                out.push(b'\n');
                if !line.is_empty() {
                    pad(out, indent);
                    out.extend_from_slice(line.as_bytes());
                }
            }
        }
        Value::String(text) => quoted(out, text),
        Value::Object(_) => out.extend_from_slice(b"{}"),
        Value::Array(_) => out.extend_from_slice(b"[]"),
        other => json::encode_to(other, out),
    }
}

/// Whether the text can stand without quotes and is read back as text.
fn plain(text: &str) -> bool {
    let Some(first) = text.chars().next() else {
        return false;
    };
    let fine_start = first.is_alphanumeric() || matches!(first, '/' | '_' | '.' | '$' | '(' | '^');
    fine_start
        && !text.ends_with([':', ' '])
        && !text.contains(": ")
        && !text.contains(" #")
        && text.chars().all(crate::text::is_print)
        && !ambiguous(text)
}

/// Whether the text has several lines that the literal style can hold.
fn block(text: &str) -> bool {
    text.contains('\n')
        && !text.starts_with([' ', '\n', '\t'])
        && text.chars().all(|c| c == '\n' || crate::text::is_print(c))
}

/// Double quotes, with escapes for all that YAML cannot hold as it is.
fn quoted(out: &mut Vec<u8>, text: &str) {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            '\r' => quoted.push_str("\\r"),
            c if crate::text::is_print(c) => quoted.push(c),
            c if u32::from(c) <= 0xFF => quoted.push_str(&format!("\\x{:02x}", u32::from(c))),
            c if u32::from(c) <= 0xFFFF => quoted.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => quoted.push_str(&format!("\\U{:08x}", u32::from(c))),
        }
    }
    quoted.push('"');
    out.extend_from_slice(quoted.as_bytes());
}
