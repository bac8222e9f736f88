//! Go's text forms where they reach the wire: quoted strings, printed lists, JSON as `encoding/json` writes it.

use std::fmt::Write;

use crate::value::{Object, Value};

/// Whether Go's `unicode.IsPrint` holds: letters, marks, numbers, punctuation, symbols and the plain space.
pub fn is_print(c: char) -> bool {
    if c.is_ascii() {
        return (' '..='~').contains(&c);
    }
    // `escape_debug` spells out just what Unicode calls unprintable, plus combining marks, which Go prints.
    let mut escaped = c.escape_debug();
    escaped.len() == 1 || (escaped.next() == Some('\\') && is_mark(c))
}

fn is_mark(c: char) -> bool {
    !c.is_control() && !c.is_whitespace() && !matches!(c, '\u{200c}' | '\u{200d}') && {
        // Inside a string, after a base character, `str::escape_debug` leaves combining marks as they are.
        let mut pair = String::from("a");
        pair.push(c);
        pair.escape_debug().count() == 2
    }
}

/// `text` as Go's `%q` (`strconv.Quote`) prints it.
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            c if is_print(c) => out.push(c),
            c if (c as u32) < 0x80 => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c if (c as u32) < 0x10000 => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => {
                let _ = write!(out, "\\U{:08x}", c as u32);
            }
        }
    }
    out.push('"');
    out
}

/// Each item quoted as by [`quote`], joined by `separator`.
pub fn quote_all<S: AsRef<str>>(items: &[S], separator: &str) -> String {
    items
        .iter()
        .map(|item| quote(item.as_ref()))
        .collect::<Vec<_>>()
        .join(separator)
}

/// `items` as Go's `%#v` prints a `[]string`.
pub fn go_string_slice<S: AsRef<str>>(items: &[S]) -> String {
    format!("[]string{{{}}}", quote_all(items, ", "))
}

/// `items` as Go's `%v` prints a `[]string`: `[a b]`.
pub fn go_slice<S: AsRef<str>>(items: &[S]) -> String {
    let items: Vec<&str> = items.iter().map(AsRef::as_ref).collect();
    format!("[{}]", items.join(" "))
}

/// `value` as Go's `%v` prints decoded JSON: `map[a:1 b:[x y]]`, text unquoted, null as `<nil>`.
pub fn go_value(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(go_value).collect();
            format!("[{}]", items.join(" "))
        }
        Value::Object(object) => go_map(object),
    }
}

/// `object` as Go's `%v` prints a map: keys sorted.
pub fn go_map(object: &Object) -> String {
    let mut members: Vec<(&String, &Value)> = object.iter().collect();
    members.sort_unstable_by_key(|(key, _)| *key);
    let members: Vec<String> = members
        .into_iter()
        .map(|(key, value)| format!("{key}:{}", go_value(value)))
        .collect();
    format!("map[{}]", members.join(" "))
}

/// `value` as Go's `encoding/json` writes it: compact, keys sorted, and `<`, `>`, `&` as escapes.
pub fn go_json(value: &Value) -> String {
    let plain = value.to_string();
    if !plain.contains(['<', '>', '&', '\u{2028}', '\u{2029}']) {
        return plain;
    }
    // These characters occur in JSON text only inside strings, so replacing them there is safe.
    let mut out = String::with_capacity(plain.len() + 16);
    for c in plain.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_as_go_does() {
        for (text, want) in [
            ("plain", r#""plain""#),
            ("a\"b\\c", r#""a\"b\\c""#),
            ("\u{7}\u{8}\u{c}\n\r\t\u{b}", r#""\a\b\f\n\r\t\v""#),
            ("\u{0}\u{7f}", r#""\x00\x7f""#),
            ("é世\u{301}", "\"é世\u{301}\""),
            ("\u{a0}\u{200d}\u{feff}", r#""\u00a0\u200d\ufeff""#),
            ("\u{10ffff}", r#""\U0010ffff""#),
        ] {
            assert_eq!(quote(text), want);
        }
    }

    #[test]
    fn json_escapes_html() {
        assert_eq!(
            go_json(&serde_json::json!({"b": "<a&b>", "a": 1})),
            r#"{"a":1,"b":"\u003ca\u0026b\u003e"}"#
        );
    }
}
