//! Writes JSON in Go's forms: `<`, `>` and `&` escaped, floats as `encoding/json` spells them.

use bytes::Bytes;

use crate::value::Value;

/// Encodes compactly, without a newline at the end.
pub fn encode(value: &Value) -> Bytes {
    let mut out = Vec::with_capacity(512);
    encode_to(value, &mut out);
    Bytes::from(out)
}

/// Appends the compact encoding to `out`.
pub fn encode_to(value: &Value, out: &mut Vec<u8>) {
    Writer { out, html: true }.value(value);
}

/// Appends the compact encoding with `<`, `>` and `&` as they are: for JSON that is embedded in protobuf, which
/// upstream keeps as the client sent it.
pub(crate) fn encode_raw_to(value: &Value, out: &mut Vec<u8>) {
    Writer { out, html: false }.value(value);
}

/// Encodes with an indent of two blanks, as for `?pretty=true`.
pub fn encode_pretty(value: &Value) -> Bytes {
    let mut out = Vec::with_capacity(1024);
    Writer {
        out: &mut out,
        html: true,
    }
    .pretty(value, 0);
    Bytes::from(out)
}

struct Writer<'a> {
    out: &'a mut Vec<u8>,
    html: bool,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value) {
        match value {
            Value::Object(members) => {
                self.out.push(b'{');
                let mut first = true;
                for (key, member) in members {
                    if !first {
                        self.out.push(b',');
                    }
                    first = false;
                    self.string(key);
                    self.out.push(b':');
                    self.value(member);
                }
                self.out.push(b'}');
            }
            Value::Array(items) => {
                self.out.push(b'[');
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        self.out.push(b',');
                    }
                    self.value(item);
                }
                self.out.push(b']');
            }
            other => self.scalar(other),
        }
    }

    fn scalar(&mut self, value: &Value) {
        match value {
            Value::Null => self.out.extend_from_slice(b"null"),
            Value::Bool(true) => self.out.extend_from_slice(b"true"),
            Value::Bool(false) => self.out.extend_from_slice(b"false"),
            Value::Number(n) => {
                if let Some(n) = n.as_i64() {
                    self.integer(n.is_negative(), n.unsigned_abs());
                } else if let Some(n) = n.as_u64() {
                    self.integer(false, n);
                } else {
                    let text = go_float(n.as_f64().unwrap_or_default());
                    self.out.extend_from_slice(text.as_bytes());
                }
            }
            Value::String(text) => self.string(text),
            Value::Array(_) | Value::Object(_) => {}
        }
    }

    fn pretty(&mut self, value: &Value, indent: usize) {
        match value {
            Value::Object(members) if !members.is_empty() => {
                self.out.push(b'{');
                for (index, (key, member)) in members.iter().enumerate() {
                    if index > 0 {
                        self.out.push(b',');
                    }
                    self.line(indent + 1);
                    self.string(key);
                    self.out.extend_from_slice(b": ");
                    self.pretty(member, indent + 1);
                }
                self.line(indent);
                self.out.push(b'}');
            }
            Value::Array(items) if !items.is_empty() => {
                self.out.push(b'[');
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        self.out.push(b',');
                    }
                    self.line(indent + 1);
                    self.pretty(item, indent + 1);
                }
                self.line(indent);
                self.out.push(b']');
            }
            other => self.value(other),
        }
    }

    fn line(&mut self, indent: usize) {
        self.out.push(b'\n');
        for _ in 0..indent {
            self.out.extend_from_slice(b"  ");
        }
    }

    fn integer(&mut self, negative: bool, mut n: u64) {
        // u64::MAX has 20 digits.
        let mut digits = [0u8; 20];
        let mut at = digits.len();
        loop {
            at -= 1;
            digits[at] = b'0' + (n % 10) as u8;
            n /= 10;
            if n == 0 {
                break;
            }
        }
        if negative {
            self.out.push(b'-');
        }
        self.out.extend_from_slice(&digits[at..]);
    }

    fn string(&mut self, text: &str) {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let bytes = text.as_bytes();
        self.out.push(b'"');
        let mut plain = 0;
        let mut at = 0;
        while at < bytes.len() {
            let byte = bytes[at];
            let class = CLASS[usize::from(byte)];
            if class == PLAIN || (class == HTML && !self.html) {
                at += 1;
                continue;
            }
            if class == SEPARATOR {
                // U+2028 and U+2029 are E2 80 A8 and E2 80 A9.
                if bytes.get(at + 1) != Some(&0x80)
                    || !matches!(bytes.get(at + 2), Some(0xA8 | 0xA9))
                {
                    at += 1;
                    continue;
                }
                self.out.extend_from_slice(&bytes[plain..at]);
                self.out.extend_from_slice(b"\\u202");
                self.out.push(HEX[usize::from(bytes[at + 2] & 0xF)]);
                at += 3;
                plain = at;
                continue;
            }
            self.out.extend_from_slice(&bytes[plain..at]);
            match byte {
                b'"' | b'\\' => self.out.extend_from_slice(&[b'\\', byte]),
                b'\n' => self.out.extend_from_slice(b"\\n"),
                b'\r' => self.out.extend_from_slice(b"\\r"),
                b'\t' => self.out.extend_from_slice(b"\\t"),
                0x8 => self.out.extend_from_slice(b"\\b"),
                0xC => self.out.extend_from_slice(b"\\f"),
                _ => {
                    self.out.extend_from_slice(b"\\u00");
                    self.out.push(HEX[usize::from(byte >> 4)]);
                    self.out.push(HEX[usize::from(byte & 0xF)]);
                }
            }
            at += 1;
            plain = at;
        }
        self.out.extend_from_slice(&bytes[plain..]);
        self.out.push(b'"');
    }
}

const PLAIN: u8 = 0;
const ESCAPED: u8 = 1;
const HTML: u8 = 2;
const SEPARATOR: u8 = 3;

/// What each byte needs inside a string.
static CLASS: [u8; 256] = {
    let mut class = [PLAIN; 256];
    let mut byte = 0;
    while byte < 0x20 {
        class[byte] = ESCAPED;
        byte += 1;
    }
    class[b'"' as usize] = ESCAPED;
    class[b'\\' as usize] = ESCAPED;
    class[b'<' as usize] = HTML;
    class[b'>' as usize] = HTML;
    class[b'&' as usize] = HTML;
    class[0xE2] = SEPARATOR;
    class
};

/// `encoding/json`'s form of a float64: shortest digits, exponents only below 1e-6 and from 1e21.
fn go_float(n: f64) -> String {
    let size = n.abs();
    if size != 0.0 && !(1e-6..1e21).contains(&size) {
        let text = format!("{n:e}");
        return match text.split_once('e') {
            Some((digits, exponent)) if !exponent.starts_with('-') => {
                format!("{digits}e+{exponent}")
            }
            _ => text,
        };
    }
    format!("{n}")
}
