//! The messages of `gnostic-models` that a Swagger 2.0 document of ours is made of, for `prost`, which shares nothing
//! with the server's encoder. Fields that no document of ours has are left out.

use prost::{Message, Oneof};

/// The whole.
#[derive(Clone, PartialEq, Message)]
pub struct Document {
    #[prost(string, tag = "1")]
    pub swagger: String,
    #[prost(message, optional, tag = "2")]
    pub info: Option<Info>,
    #[prost(message, optional, tag = "8")]
    pub paths: Option<Paths>,
    #[prost(message, optional, tag = "9")]
    pub definitions: Option<NamedSchemas>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Info {
    #[prost(string, tag = "1")]
    pub title: String,
    #[prost(string, tag = "2")]
    pub version: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct Paths {
    #[prost(message, repeated, tag = "2")]
    pub path: Vec<NamedPathItem>,
}

#[derive(Clone, PartialEq, Message)]
pub struct NamedPathItem {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, optional, tag = "2")]
    pub value: Option<PathItem>,
}

#[derive(Clone, PartialEq, Message)]
pub struct PathItem {
    #[prost(message, optional, tag = "2")]
    pub get: Option<Operation>,
    #[prost(message, optional, tag = "3")]
    pub put: Option<Operation>,
    #[prost(message, optional, tag = "4")]
    pub post: Option<Operation>,
    #[prost(message, optional, tag = "5")]
    pub delete: Option<Operation>,
    #[prost(message, optional, tag = "6")]
    pub options: Option<Operation>,
    #[prost(message, optional, tag = "7")]
    pub head: Option<Operation>,
    #[prost(message, optional, tag = "8")]
    pub patch: Option<Operation>,
    #[prost(message, repeated, tag = "9")]
    pub parameters: Vec<ParametersItem>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Operation {
    #[prost(string, repeated, tag = "1")]
    pub tags: Vec<String>,
    #[prost(string, tag = "3")]
    pub description: String,
    #[prost(string, tag = "5")]
    pub operation_id: String,
    #[prost(string, repeated, tag = "6")]
    pub produces: Vec<String>,
    #[prost(string, repeated, tag = "7")]
    pub consumes: Vec<String>,
    #[prost(message, repeated, tag = "8")]
    pub parameters: Vec<ParametersItem>,
    #[prost(message, optional, tag = "9")]
    pub responses: Option<Responses>,
    #[prost(string, repeated, tag = "10")]
    pub schemes: Vec<String>,
    #[prost(message, repeated, tag = "13")]
    pub vendor_extension: Vec<NamedAny>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ParametersItem {
    #[prost(message, optional, tag = "1")]
    pub parameter: Option<Parameter>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Parameter {
    #[prost(message, optional, tag = "1")]
    pub body: Option<BodyParameter>,
    #[prost(message, optional, tag = "2")]
    pub other: Option<NonBodyParameter>,
}

#[derive(Clone, PartialEq, Message)]
pub struct BodyParameter {
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(bool, tag = "4")]
    pub required: bool,
    #[prost(message, optional, tag = "5")]
    pub schema: Option<Schema>,
}

#[derive(Clone, PartialEq, Message)]
pub struct NonBodyParameter {
    #[prost(oneof = "NonBody", tags = "3, 4")]
    pub kind: Option<NonBody>,
}

#[derive(Clone, PartialEq, Oneof)]
pub enum NonBody {
    #[prost(message, tag = "3")]
    Query(QueryParameter),
    #[prost(message, tag = "4")]
    Path(PathParameter),
}

#[derive(Clone, PartialEq, Message)]
pub struct QueryParameter {
    #[prost(string, tag = "2")]
    pub place: String,
    #[prost(string, tag = "4")]
    pub name: String,
    #[prost(string, tag = "6")]
    pub kind: String,
    #[prost(bool, tag = "20")]
    pub unique_items: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct PathParameter {
    #[prost(bool, tag = "1")]
    pub required: bool,
    #[prost(string, tag = "4")]
    pub name: String,
    #[prost(string, tag = "5")]
    pub kind: String,
    #[prost(bool, tag = "19")]
    pub unique_items: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct Responses {
    #[prost(message, repeated, tag = "1")]
    pub response_code: Vec<NamedResponseValue>,
}

#[derive(Clone, PartialEq, Message)]
pub struct NamedResponseValue {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, optional, tag = "2")]
    pub value: Option<ResponseValue>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ResponseValue {
    #[prost(message, optional, tag = "1")]
    pub response: Option<Response>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Response {
    #[prost(string, tag = "1")]
    pub description: String,
    #[prost(message, optional, tag = "2")]
    pub schema: Option<SchemaItem>,
}

#[derive(Clone, PartialEq, Message)]
pub struct SchemaItem {
    #[prost(message, optional, tag = "1")]
    pub schema: Option<Schema>,
}

#[derive(Clone, PartialEq, Message)]
pub struct NamedSchemas {
    #[prost(message, repeated, tag = "1")]
    pub entries: Vec<NamedSchema>,
}

#[derive(Clone, PartialEq, Message)]
pub struct NamedSchema {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, optional, tag = "2")]
    pub value: Option<Schema>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Schema {
    #[prost(string, tag = "1")]
    pub reference: String,
    #[prost(string, tag = "2")]
    pub format: String,
    #[prost(message, optional, tag = "5")]
    pub default: Option<Any>,
    #[prost(string, repeated, tag = "19")]
    pub required: Vec<String>,
    #[prost(message, optional, boxed, tag = "21")]
    pub additional_properties: Option<Box<AdditionalProperties>>,
    #[prost(message, optional, tag = "22")]
    pub kind: Option<TypeItem>,
    #[prost(message, optional, tag = "23")]
    pub items: Option<ItemsItem>,
    #[prost(message, optional, tag = "25")]
    pub properties: Option<NamedSchemas>,
    #[prost(message, repeated, tag = "31")]
    pub vendor_extension: Vec<NamedAny>,
}

#[derive(Clone, PartialEq, Message)]
pub struct AdditionalProperties {
    #[prost(message, optional, boxed, tag = "1")]
    pub schema: Option<Box<Schema>>,
    #[prost(bool, tag = "2")]
    pub boolean: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct TypeItem {
    #[prost(string, repeated, tag = "1")]
    pub value: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ItemsItem {
    #[prost(message, repeated, tag = "1")]
    pub schema: Vec<Schema>,
}

#[derive(Clone, PartialEq, Message)]
pub struct NamedAny {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, optional, tag = "2")]
    pub value: Option<Any>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Any {
    #[prost(string, tag = "2")]
    pub yaml: String,
}

/// Back to the JSON form, as far as the messages above tell it.
pub mod json {
    use serde_json::{Map, Value, json};

    use super::{Any, NamedAny, NonBody, Operation, ParametersItem, Schema};

    fn any(value: &Option<Any>) -> Value {
        let text = value.as_ref().map_or("", |any| any.yaml.as_str());
        serde_yaml_ng::from_str(text).expect("YAML")
    }

    fn extensions(out: &mut Map<String, Value>, all: &[NamedAny]) {
        for extension in all {
            out.insert(extension.name.clone(), any(&extension.value));
        }
    }

    /// A schema.
    pub fn schema(from: &Schema) -> Value {
        let mut out = Map::new();
        for (name, text) in [("$ref", &from.reference), ("format", &from.format)] {
            if !text.is_empty() {
                out.insert(name.into(), text.as_str().into());
            }
        }
        if from.default.is_some() {
            out.insert("default".into(), any(&from.default));
        }
        if !from.required.is_empty() {
            out.insert("required".into(), json!(from.required));
        }
        if let Some(more) = &from.additional_properties {
            let more = match &more.schema {
                Some(inner) => schema(inner),
                None => more.boolean.into(),
            };
            out.insert("additionalProperties".into(), more);
        }
        if let Some(kind) = &from.kind {
            out.insert("type".into(), kind.value.join("|").into());
        }
        if let Some(items) = &from.items {
            assert_eq!(items.schema.len(), 1);
            out.insert("items".into(), schema(&items.schema[0]));
        }
        if let Some(properties) = &from.properties {
            let all = properties.entries.iter();
            let all = all.map(|p| (p.name.clone(), schema(p.value.as_ref().expect("a schema"))));
            out.insert("properties".into(), Value::Object(all.collect()));
        }
        extensions(&mut out, &from.vendor_extension);
        out.into()
    }

    /// A parameter.
    pub fn parameter(from: &ParametersItem) -> Value {
        let from = from.parameter.as_ref().expect("a parameter");
        if let Some(body) = &from.body {
            let schema = schema(body.schema.as_ref().expect("a schema"));
            let mut out = json!({"in": "body", "name": body.name, "schema": schema});
            if body.required {
                out["required"] = true.into();
            }
            return out;
        }
        match from.other.as_ref().and_then(|p| p.kind.as_ref()) {
            Some(NonBody::Query(query)) => {
                json!({"in": query.place, "name": query.name, "type": query.kind, "uniqueItems": query.unique_items})
            }
            Some(NonBody::Path(path)) => {
                json!({"in": "path", "name": path.name, "type": path.kind, "required": path.required, "uniqueItems": path.unique_items})
            }
            None => panic!("a parameter of no kind"),
        }
    }

    /// An operation.
    pub fn operation(from: &Operation) -> Value {
        let mut responses = Map::new();
        for code in from.responses.iter().flat_map(|r| &r.response_code) {
            let answer = code.value.as_ref().and_then(|v| v.response.as_ref());
            let answer = answer.expect("an answer");
            let mut out = json!({"description": answer.description});
            if let Some(of) = answer.schema.as_ref().and_then(|s| s.schema.as_ref()) {
                out["schema"] = schema(of);
            }
            responses.insert(code.name.clone(), out);
        }
        let mut out = Map::new();
        out.insert("tags".into(), json!(from.tags));
        out.insert("description".into(), json!(from.description));
        out.insert("operationId".into(), json!(from.operation_id));
        out.insert("produces".into(), json!(from.produces));
        out.insert("consumes".into(), json!(from.consumes));
        out.insert("schemes".into(), json!(from.schemes));
        if !from.parameters.is_empty() {
            let all: Vec<Value> = from.parameters.iter().map(parameter).collect();
            out.insert("parameters".into(), all.into());
        }
        out.insert("responses".into(), Value::Object(responses));
        extensions(&mut out, &from.vendor_extension);
        out.into()
    }
}
