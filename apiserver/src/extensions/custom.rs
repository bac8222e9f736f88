//! [`Custom`]: one version of a custom resource, and its schema at work: decoding, pruning, defaults, and the storage
//! format (upstream `unstructuredSchemaCoercer`, `crdConversionRESTOptionsGetter`).

use std::sync::Arc;

use bytes::Bytes;
use keelson_machinery::apply::Shape;
use keelson_machinery::codec::{self, StrictError, Strictness};
use keelson_machinery::structural::{self, Malformed, Structural};
use keelson_machinery::value::{self, Value};

use super::columns::Columns;
use super::conversion::Converter;
use super::definition::{Shared, Version};
use crate::cache::fields;
use crate::cache::types::{FieldSpec, StorageCodec};
use crate::codec::Format;
use crate::codec::body::{encode_json, head};

/// One version of a custom resource.
pub struct Custom {
    /// Its definition.
    pub definition: Shared,
    /// Name of the version.
    pub version: String,
    /// What clients of the version are told.
    pub warning: Option<String>,
    /// Its tables.
    pub columns: Columns,
    /// How its versions become each other.
    pub converter: Arc<Converter>,
}

impl Custom {
    /// The version of the definition.
    pub fn version(&self) -> Option<&Version> {
        self.definition
            .versions
            .iter()
            .find(|v| v.name == self.version)
    }

    /// The schema; `None` when the version has none, and anything goes.
    pub fn schema(&self) -> Option<&Structural> {
        self.definition.schema(&self.version)
    }

    /// `group/version`.
    pub fn api_version(&self) -> String {
        format!("{}/{}", self.definition.group, self.version)
    }

    /// How apply sees the objects.
    pub fn shape(&self) -> Shape<'_> {
        match self.schema() {
            Some(schema) => Shape::Custom(schema),
            None => Shape::Deduced,
        }
    }

    /// Decodes a body: what the schema does not know is dropped, and told where `strictness` asks for it.
    pub fn decode(
        &self,
        body: &[u8],
        format: Format,
        strictness: Strictness,
    ) -> Result<(Value, Vec<StrictError>), String> {
        let decoded = match format {
            Format::Json => codec::json::decode_any(body, strictness),
            Format::Yaml => codec::yaml::decode_any(body, strictness),
            Format::Protobuf => return Err("protobuf is not a form of custom resources".into()),
        };
        let (mut object, mut strict) = decoded.map_err(|e| e.to_string())?;
        if !object.is_object() {
            return Err("a custom resource must be an object".into());
        }
        strict.extend(self.coerce(&mut object, strictness)?);
        Ok((object, strict))
    }

    /// Brings an object into the form of the schema. The result tells what was dropped.
    pub fn coerce(
        &self,
        object: &mut Value,
        strictness: Strictness,
    ) -> Result<Vec<StrictError>, String> {
        let mut dropped = Vec::new();
        for error in structural::coerce_metadata(object, Malformed::Refuse)? {
            dropped.push(match error {
                StrictError::Unknown(name) => StrictError::Unknown(format!("metadata.{name}")),
                StrictError::Duplicate(name) => StrictError::Duplicate(format!("metadata.{name}")),
                other @ StrictError::Yaml(_) => other,
            });
        }
        let strict = strictness == Strictness::Strict;
        let nothing = Structural::parse_root(&Value::Null);
        let schema = match self.schema() {
            Some(schema) => schema,
            None => &nothing,
        };
        if !self.definition.preserve_unknown {
            let pruned = structural::prune(object, schema, strict);
            dropped.extend(pruned.into_iter().map(StrictError::Unknown));
            structural::drop_nulls(object, schema);
        }
        let unknown = structural::coerce(object, schema, Malformed::Refuse)
            .map_err(|error| error.to_string())?;
        dropped.extend(unknown.into_iter().map(StrictError::Unknown));
        if !strict {
            dropped.clear();
        }
        Ok(dropped)
    }

    /// Puts the schema's defaults.
    pub fn set_defaults(&self, object: &mut Value) {
        if let Some(schema) = self.schema() {
            structural::set_defaults(object, schema);
        }
    }

    /// The fields that selectors may name in any version.
    pub fn selectable_fields(&self) -> Arc<[FieldSpec]> {
        let mut fields: Vec<FieldSpec> = Vec::new();
        let versions = &self.definition.versions;
        for path in versions.iter().flat_map(|v| &v.selectable_fields) {
            let field = fields::custom(&path.json_path);
            if !fields.contains(&field) {
                fields.push(field);
            }
        }
        fields.into()
    }

    /// Whether field selectors of this version may name `label`.
    pub fn is_selectable(&self, label: &str) -> bool {
        match label {
            "metadata.name" => true,
            "metadata.namespace" => self.definition.namespaced,
            _ => self
                .version()
                .is_some_and(|version| version.selectable().any(|name| name == label)),
        }
    }

    /// Whether the JSON of an object is in this version.
    pub fn is_in_version(&self, json: &[u8]) -> bool {
        json.starts_with(head(&self.definition.names.kind, &self.api_version()).as_bytes())
    }
}

/// Objects of a definition as they are stored: JSON in the storage version of their time, which they name themselves.
pub struct CustomStorage {
    /// The definition.
    pub definition: Shared,
}

impl CustomStorage {
    /// Reads an object and brings it into the form of its version's schema, defaults included.
    fn read(&self, stored: &[u8]) -> Result<Value, String> {
        let mut object: Value = serde_json::from_slice(stored).map_err(|e| e.to_string())?;
        if !object.is_object() {
            return Err("not a JSON object".into());
        }
        let api_version = value::str_or_empty(&object, &["apiVersion"]);
        let version = api_version
            .strip_prefix(self.definition.group.as_str())
            .and_then(|rest| rest.strip_prefix('/'))
            .unwrap_or_default();
        if let Some(schema) = self.definition.schema(version) {
            if !self.definition.preserve_unknown {
                structural::prune(&mut object, schema, false);
                structural::drop_nulls(&mut object, schema);
            }
            structural::coerce(&mut object, schema, Malformed::Drop).map_err(|e| e.to_string())?;
            structural::set_defaults(&mut object, schema);
        }
        if value::get_i64(&object, &["metadata", "generation"]).unwrap_or(0) == 0 {
            value::set(&mut object, &["metadata", "generation"], 1);
        }
        Ok(object)
    }
}

impl StorageCodec for CustomStorage {
    fn decode(&self, stored: &[u8]) -> Result<Value, String> {
        self.read(stored)
    }

    fn encode(&self, object: &Value) -> Result<Bytes, String> {
        let text = |name: &str| value::str_or_empty(object, &[name]);
        let (kind, api_version) = (text("kind"), text("apiVersion"));
        if value::get(object, &["metadata", "resourceVersion"]).is_none() {
            return encode_json(object, kind, api_version).map_err(|e| e.message);
        }
        let mut object = object.clone();
        value::remove(&mut object, &["metadata", "resourceVersion"]);
        let text = |name: &str| value::str_or_empty(&object, &[name]);
        encode_json(&object, text("kind"), text("apiVersion")).map_err(|e| e.message)
    }

    fn to_json(&self, stored: &Bytes) -> Result<Bytes, String> {
        self.encode(&self.read(stored)?)
    }
}
