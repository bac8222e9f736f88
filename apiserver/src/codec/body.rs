//! Objects in bodies: request bytes to objects of a type, objects to response bytes.

use bytes::Bytes;
use keelson_machinery::codec::{self, DecodeError, Strictness};
use keelson_machinery::schema::Type;
use keelson_machinery::status::ApiError;
use keelson_machinery::value::Value;

use super::Format;
use crate::cache::types::StorageCodec;
use crate::extensions::Custom;
use keelson_machinery::catalog::{Catalog, api_version, parse_api_version};

/// `fieldValidation` of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldValidation {
    /// Unknown and duplicate fields are dropped in silence.
    Ignore,
    /// ... with a warning each.
    Warn,
    /// ... refused.
    Strict,
}

/// A decoded body.
#[derive(Debug)]
pub struct Decoded {
    /// The object, with `kind` and `apiVersion`.
    pub object: Value,
    /// One text for each unknown or duplicate field.
    pub strict: Vec<String>,
    /// `kind` as the body has it, defaulted by what was expected.
    pub kind: String,
    /// `apiVersion` likewise.
    pub api_version: String,
}

/// What a body must be.
#[derive(Clone, Copy)]
pub struct Expected<'a> {
    /// API group.
    pub group: &'a str,
    /// API version.
    pub version: &'a str,
    /// Kind.
    pub kind: &'a str,
    /// Its fields.
    pub object_type: &'static Type,
    /// For custom resources, their schema.
    pub custom: Option<&'a Custom>,
}

/// Decodes a request body. Errors are worded as upstream's `transformDecodeError`.
pub fn decode(
    body: &[u8],
    format: Format,
    expected: &Expected<'_>,
    validation: FieldValidation,
) -> Result<Decoded, ApiError> {
    let strictness = match validation {
        FieldValidation::Ignore => Strictness::Lenient,
        FieldValidation::Warn | FieldValidation::Strict => Strictness::Strict,
    };
    let unrecognized = |why: String| {
        ApiError::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): {why} ({})",
            expected.kind,
            summarize(body, 30)
        ))
    };
    // The kind decides before the fields are looked at: a Service sent to /pods is told so, not that it has no
    // `ports` field.
    let (found_kind, found_api_version) =
        type_meta(body, format).map_err(|e| unrecognized(e.to_string()))?;
    let kind = if found_kind.is_empty() {
        expected.kind.to_string()
    } else {
        found_kind
    };
    let wanted = api_version(expected.group, expected.version);
    let found_api_version = if found_api_version.is_empty() {
        wanted.clone()
    } else {
        found_api_version
    };
    let (group, version) =
        parse_api_version(&found_api_version).unwrap_or(("", &found_api_version));
    let cannot_be_handled = |why: String| {
        ApiError::bad_request(format!(
            "{kind} in version {version:?} cannot be handled as a {}: {why}",
            expected.kind
        ))
    };
    if expected.custom.is_some() {
        if found_api_version != wanted {
            return Err(ApiError::bad_request(format!(
                "the API version in the data ({found_api_version}) does not match the expected API version ({wanted})"
            )));
        }
        // A wrong kind is a matter of validation.
    } else if kind != expected.kind || found_api_version != wanted {
        let known = Catalog::builtin().kind(group, version, &kind).is_some();
        if known && kind == expected.kind && group == expected.group {
            return Err(ApiError::bad_request(format!(
                "the API version in the data ({found_api_version}) does not match the expected API version ({wanted})"
            )));
        }
        return Err(cannot_be_handled(if known {
            format!(
                "converting ({}) to ({}): unknown conversion",
                go_type(group, version, &kind),
                go_type(expected.group, "", expected.kind)
            )
        } else {
            format!(
                "no kind {kind:?} is registered for version {found_api_version:?} in scheme \"k8s.io/kubernetes/pkg/api/legacyscheme/scheme.go:30\""
            )
        }));
    }
    let decoded = if let Some(custom) = expected.custom {
        custom
            .decode(body, format, strictness)
            .map_err(DecodeError::Type)
    } else {
        match format {
            Format::Json => codec::json::decode(body, expected.object_type, strictness),
            Format::Yaml => codec::yaml::decode(body, expected.object_type, strictness),
            Format::Protobuf => codec::protobuf::decode_object(body, expected.object_type)
                .map(|object| (object, Vec::new())),
        }
    };
    let (mut object, strict) = decoded.map_err(|e| cannot_be_handled(e.to_string()))?;
    if validation == FieldValidation::Strict && !strict.is_empty() {
        return Err(cannot_be_handled(codec::strict_message(&strict)));
    }
    let strict = strict.iter().map(ToString::to_string).collect();
    set_type_meta(&mut object, &kind, &wanted);
    Ok(Decoded {
        object,
        strict,
        kind,
        api_version: wanted,
    })
}

/// `kind` and `apiVersion` of a body; empty where it has none.
fn type_meta(body: &[u8], format: Format) -> Result<(String, String), DecodeError> {
    Ok(match format {
        Format::Json => {
            let found = codec::json::type_meta(body)?;
            (found.kind.into_owned(), found.api_version.into_owned())
        }
        Format::Yaml => {
            let (document, _) = codec::yaml::decode_any(body, Strictness::Lenient)?;
            let text =
                |name: &str| keelson_machinery::value::str_or_empty(&document, &[name]).to_string();
            (text("kind"), text("apiVersion"))
        }
        Format::Protobuf => {
            let found = codec::protobuf::decode_unknown(body)?;
            (found.kind.to_string(), found.api_version.to_string())
        }
    })
}

/// Writes `kind` and `apiVersion`.
pub fn set_type_meta(object: &mut Value, kind: &str, api_version: &str) {
    if let Some(members) = object.as_object_mut() {
        members.insert("kind".to_string(), kind.into());
        members.insert("apiVersion".to_string(), api_version.into());
    }
}

fn go_type(group: &str, version: &str, kind: &str) -> String {
    let package = group
        .split('.')
        .next()
        .filter(|g| !g.is_empty())
        .unwrap_or("core");
    if version.is_empty() {
        format!("{package}.{kind}")
    } else {
        format!("{version}.{kind}")
    }
}

/// The start of a body for an error message (upstream `summarizeData`).
fn summarize(body: &[u8], max: usize) -> String {
    match body.first() {
        None => "<empty>".to_string(),
        Some(b'{') => {
            let cut = body.len().min(max);
            let text = String::from_utf8_lossy(&body[..cut]);
            if body.len() > max {
                format!("{text} ...")
            } else {
                text.into_owned()
            }
        }
        Some(_) => {
            let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
            if body.len() > max {
                format!("{} ...", hex(&body[..max]))
            } else {
                hex(body)
            }
        }
    }
}

/// Compact JSON of an object with `kind` and `apiVersion` first, so that lists can leave them out and other versions
/// can replace them without decoding.
pub fn encode_json(object: &Value, kind: &str, api_version: &str) -> Result<Bytes, ApiError> {
    let members = object
        .as_object()
        .ok_or_else(|| ApiError::internal("an API object is not a JSON object"))?;
    let mut out: Vec<u8> = Vec::with_capacity(1024);
    out.extend_from_slice(head(kind, api_version).as_bytes());
    // Metadata comes next, wherever the alphabet puts it.
    let ordered = members.get_key_value("metadata").into_iter().chain(
        members
            .iter()
            .filter(|(name, _)| !matches!(name.as_str(), "kind" | "apiVersion" | "metadata")),
    );
    for (index, (name, member)) in ordered.enumerate() {
        if index > 0 {
            out.push(b',');
        }
        // Member names of API types are plain ASCII; those of custom resources need not be.
        codec::json::encode_to(&Value::String(name.clone()), &mut out);
        out.push(b':');
        codec::json::encode_to(member, &mut out);
    }
    out.push(b'}');
    Ok(Bytes::from(out))
}

/// How the JSON of an object of this kind begins.
pub fn head(kind: &str, api_version: &str) -> String {
    format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{api_version}\",")
}

/// Stored objects as JSON.
pub struct JsonStorage {
    kind: String,
    api_version: String,
    object_type: &'static Type,
}

impl JsonStorage {
    /// For the stored version of a resource.
    pub fn new(kind: &str, api_version: &str, object_type: &'static Type) -> JsonStorage {
        JsonStorage {
            kind: kind.to_string(),
            api_version: api_version.to_string(),
            object_type,
        }
    }
}

impl StorageCodec for JsonStorage {
    fn decode(&self, stored: &[u8]) -> Result<Value, String> {
        super::storage::decode(stored, &self.kind, &self.api_version, self.object_type)
    }

    fn encode(&self, object: &Value) -> Result<Bytes, String> {
        let has_revision =
            keelson_machinery::value::get(object, &["metadata", "resourceVersion"]).is_some();
        if !has_revision {
            return encode_json(object, &self.kind, &self.api_version).map_err(|e| e.message);
        }
        let mut object = object.clone();
        keelson_machinery::value::remove(&mut object, &["metadata", "resourceVersion"]);
        encode_json(&object, &self.kind, &self.api_version).map_err(|e| e.message)
    }

    fn to_json(&self, stored: &Bytes) -> Result<Bytes, String> {
        if stored.starts_with(head(&self.kind, &self.api_version).as_bytes()) {
            return Ok(stored.clone());
        }
        let object = self.decode(stored)?;
        self.encode(&object)
    }
}
