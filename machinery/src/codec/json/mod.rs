//! JSON as upstream reads and writes it (`sigs.k8s.io/json`, `encoding/json`): case-sensitive names, exact 64-bit
//! integers, Go's error texts and Go's number and string forms.

mod encode;
mod lexer;
mod typed;

pub(crate) use encode::encode_raw_to;
pub use encode::{encode, encode_pretty, encode_to};

use std::borrow::Cow;

use super::{DecodeError, StrictError, Strictness};
use crate::schema::Type;
use crate::value::Value;
use lexer::Lexer;
use typed::Decoder;

/// Decodes an object of a known type. See the [module above](super) for the form of the result. Strict errors come
/// in the order of the text, at most 100, each once.
pub fn decode(
    bytes: &[u8],
    of: &'static Type,
    strictness: Strictness,
) -> Result<(Value, Vec<StrictError>), DecodeError> {
    let text = utf8(bytes);
    Decoder::new(&text, strictness).document(Some(of))
}

/// Decodes without a type, as for custom resources and patches: everything is kept, nulls included; strict errors
/// are duplicates only.
pub fn decode_any(
    bytes: &[u8],
    strictness: Strictness,
) -> Result<(Value, Vec<StrictError>), DecodeError> {
    let text = utf8(bytes);
    Decoder::new(&text, strictness).document(None)
}

/// The text, what is no UTF-8 replaced as Go does. The common case takes the faster check.
fn utf8(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => String::from_utf8_lossy(bytes),
    }
}

/// Brings a value that is already in memory (a patched object, a converted YAML document) into the form of a type,
/// as [`decode`] does for bytes.
pub fn decode_value(
    value: &Value,
    of: &'static Type,
    strictness: Strictness,
) -> Result<(Value, Vec<StrictError>), DecodeError> {
    // One typed reader for all sources keeps the rules in one place; the detour over text costs microseconds and
    // only patches take it.
    decode(&encode(value), of, strictness)
}

/// What an object says it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TypeMeta<'a> {
    /// `apiVersion`, empty when absent.
    pub api_version: Cow<'a, str>,
    /// `kind`, empty when absent.
    pub kind: Cow<'a, str>,
}

/// Reads `apiVersion` and `kind` only, checking the syntax of the whole text
/// (`SimpleMetaFactory.Interpret`, whose error text it gives).
pub fn type_meta(bytes: &[u8]) -> Result<TypeMeta<'_>, DecodeError> {
    let failed = |e: String| {
        DecodeError::Syntax(format!("couldn't get version/kind; json parse error: {e}"))
    };
    let text = match utf8(bytes) {
        Cow::Borrowed(text) => text,
        // The lossy copy cannot be borrowed from; the names themselves survive the copying out.
        Cow::Owned(text) => {
            let meta = read_meta(&text).map_err(failed)?;
            return Ok(TypeMeta {
                api_version: Cow::Owned(meta.api_version.into_owned()),
                kind: Cow::Owned(meta.kind.into_owned()),
            });
        }
    };
    read_meta(text).map_err(failed)
}

fn read_meta(text: &str) -> Result<TypeMeta<'_>, String> {
    let mut lexer = Lexer::new(text);
    let mut meta = TypeMeta::default();
    lexer.space();
    if lexer.peek() != Some(b'{') {
        let word = lexer.token_word();
        lexer.skip()?;
        lexer.end()?;
        if word == "null" {
            return Ok(meta);
        }
        return Err(format!(
            "json: cannot unmarshal {word} into Go value of type struct {{ APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }}"
        ));
    }
    let mut wrong = None;
    lexer.object(|lexer, key| {
        let target = match &*key {
            "apiVersion" => &mut meta.api_version,
            "kind" => &mut meta.kind,
            _ => return lexer.skip(),
        };
        match lexer.peek() {
            Some(b'"') => *target = lexer.string()?,
            Some(b'n') => lexer.skip()?,
            _ => {
                wrong.get_or_insert(format!(
                    "json: cannot unmarshal {} into Go struct field .{key} of type string",
                    lexer.token_word()
                ));
                lexer.skip()?;
            }
        }
        Ok(())
    })?;
    lexer.end()?;
    match wrong {
        Some(message) => Err(message),
        None => Ok(meta),
    }
}

#[cfg(test)]
mod tests;
