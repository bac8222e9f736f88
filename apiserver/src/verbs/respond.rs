//! Answers: an object, a list, a `Status`, in the form the client asked for.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderValue, StatusCode};
use keelson_machinery::status::ApiError;
use keelson_machinery::value::{self, Value};
use keelson_machinery::{codec as machinery_codec, meta};
use serde_json::json;

use super::Call;
use crate::body::{Response, full};
use crate::cache::types::Entry;
use crate::codec::body::{encode_json, head};
use crate::codec::{Convert, Format, Output};
use crate::extensions::conversion as custom;
use crate::registry::store::{Stored, cache_error};
use crate::registry::{Served, conversion};
use crate::table;

/// An object on its way to the client: in the storage version, as bytes, as a value or both.
#[derive(Clone, Debug)]
pub struct Item {
    json: Option<Bytes>,
    object: Option<Arc<Value>>,
}

impl Item {
    /// The object in the version of the request.
    pub fn object(&self, served: &Served) -> Result<Value, ApiError> {
        let object = match (&self.object, &self.json) {
            (Some(object), _) => Value::clone(object),
            (None, Some(json)) => serde_json::from_slice(json).map_err(ApiError::internal)?,
            (None, None) => Value::Null,
        };
        conversion::from_storage(served, object)
    }

    /// Compact JSON in the version of the request.
    pub fn json(&self, served: &Served) -> Result<Bytes, ApiError> {
        if let Some(json) = &self.json {
            if served.is_working_version() {
                return Ok(json.clone());
            }
            if conversion::same_shape(served)
                && let Some(rest) = without_head(json, served)
            {
                let head = head(&served.row.kind, &served.api_version());
                let mut out = BytesMut::with_capacity(head.len() + rest.len());
                out.put_slice(head.as_bytes());
                out.put_slice(rest);
                return Ok(out.freeze());
            }
        }
        encode_json(
            &self.object(served)?,
            &served.row.kind,
            &served.api_version(),
        )
    }
}

impl Item {
    /// The object of a cache entry; custom resources are converted to the version of the request.
    pub async fn of_entry(served: &Served, entry: &Entry) -> Result<Item, ApiError> {
        if custom::is_ready(served, entry) {
            return Ok(Item {
                json: Some(entry.json().clone()),
                object: None,
            });
        }
        let object = entry.value().map_err(|e| cache_error(&e))?;
        Ok(Item {
            json: None,
            object: Some(Arc::new(custom::to_working(served, object).await?)),
        })
    }
}

impl From<&Stored> for Item {
    fn from(stored: &Stored) -> Item {
        Item {
            json: stored.json.clone(),
            object: Some(stored.object.clone()),
        }
    }
}

/// The bytes of a stored object after `kind` and `apiVersion`; `None` when they do not come first.
fn without_head<'a>(json: &'a Bytes, served: &Served) -> Option<&'a [u8]> {
    let head = head(&served.row.storage.kind, &served.working_api_version());
    json.strip_prefix(head.as_bytes())
}

/// Answers with one object of the resource.
pub fn object(
    call: &mut Call,
    output: &Output,
    code: StatusCode,
    item: Item,
) -> Result<Response, ApiError> {
    let served = call.served.clone();
    if let Some(convert) = &output.convert {
        let object = item.object(&served)?;
        let converted = converted(call, convert, object)?;
        return meta_value(call, output, code, &converted);
    }
    if output.format == Format::Json && !output.pretty {
        let bytes = item.json(&served)?;
        return Ok(finish(call, code, Format::Json, bytes));
    }
    let object = item.object(&served)?;
    let bytes = encode(output, &object, served.object_type)?;
    Ok(finish(call, code, output.format, bytes))
}

/// One object as the client wants it shown.
fn converted(call: &Call, convert: &Convert, object: Value) -> Result<Value, ApiError> {
    match convert {
        Convert::Table(version) => table(call, version, &[object], None, TableHeaders::Show),
        Convert::PartialObjectMetadata(version) => Ok(partial(&object, version)),
        Convert::PartialObjectMetadataList(_) => Err(ApiError::new(
            406,
            keelson_machinery::status::Reason::NotAcceptable,
            "you requested PartialObjectMetadataList, but the requested object is not a list",
        )),
    }
}

/// Answers with a value of another kind than the resource's, such as a Scale or a review.
pub fn other_kind(
    call: &mut Call,
    output: &Output,
    code: StatusCode,
    object: &Value,
    object_type: &'static keelson_machinery::schema::Type,
) -> Result<Response, ApiError> {
    if let Some(convert) = &output.convert {
        let converted = converted(call, convert, object.clone())?;
        return meta_value(call, output, code, &converted);
    }
    let bytes = encode(output, object, object_type)?;
    Ok(finish(call, code, output.format, bytes))
}

fn encode(
    output: &Output,
    object: &Value,
    object_type: &'static keelson_machinery::schema::Type,
) -> Result<Bytes, ApiError> {
    match output.format {
        Format::Json if output.pretty => Ok(machinery_codec::json::encode_pretty(object)),
        Format::Json => Ok(machinery_codec::json::encode(object)),
        Format::Yaml => Ok(machinery_codec::yaml::encode(object)),
        Format::Protobuf => machinery_codec::protobuf::encode_object(object, object_type)
            .map_err(ApiError::internal),
    }
}

/// Answers with a kind of `meta.k8s.io` (`Status`, `Table`, `PartialObjectMetadata`).
pub fn meta_value(
    call: &mut Call,
    output: &Output,
    code: StatusCode,
    object: &Value,
) -> Result<Response, ApiError> {
    let (format, bytes) = encode_meta(output, object)?;
    Ok(finish(call, code, format, bytes))
}

fn encode_meta(output: &Output, object: &Value) -> Result<(Format, Bytes), ApiError> {
    let kind = value::str_or_empty(object, &["kind"]);
    let object_type = keelson_machinery::schema::Schema::builtin()
        .lookup(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}"));
    match object_type {
        Some(object_type) => Ok((output.format, encode(output, object, object_type)?)),
        // Table has no protobuf form; negotiation does not let it come to this.
        None => {
            let output = Output {
                format: match output.format {
                    Format::Protobuf => Format::Json,
                    other => other,
                },
                ..output.clone()
            };
            let bytes = match output.format {
                Format::Yaml => machinery_codec::yaml::encode(object),
                _ if output.pretty => machinery_codec::json::encode_pretty(object),
                _ => machinery_codec::json::encode(object),
            };
            Ok((output.format, bytes))
        }
    }
}

/// Metadata of a list.
#[derive(Clone, Debug, Default)]
pub struct ListHead {
    /// The list's resourceVersion; empty when unknown.
    pub resource_version: String,
    /// Continue token.
    pub next: Option<String>,
    /// How many objects follow.
    pub remaining: Option<u64>,
}

impl ListHead {
    fn to_value(&self) -> Value {
        let mut head = json!({});
        if !self.resource_version.is_empty() {
            head["resourceVersion"] = self.resource_version.as_str().into();
        }
        if let Some(next) = &self.next {
            head["continue"] = next.as_str().into();
        }
        if let Some(remaining) = self.remaining {
            head["remainingItemCount"] = remaining.into();
        }
        head
    }
}

/// Answers with a list of the resource.
pub fn list(
    call: &mut Call,
    output: &Output,
    head: &ListHead,
    items: &[Arc<Entry>],
) -> Result<Response, ApiError> {
    let served = call.served.clone();
    if output.format == Format::Json && !output.pretty && output.convert.is_none() {
        let bytes = list_json(&served, head, items)?;
        return Ok(finish(call, StatusCode::OK, Format::Json, bytes));
    }
    let mut objects = Vec::with_capacity(items.len());
    for entry in items {
        let object = entry.value().map_err(|e| cache_error(&e))?;
        objects.push(conversion::from_storage(&served, object)?);
    }
    list_of_values(call, output, head, objects)
}

/// Answers with a list of objects in the version of the request.
pub fn list_of_values(
    call: &mut Call,
    output: &Output,
    head: &ListHead,
    objects: Vec<Value>,
) -> Result<Response, ApiError> {
    let served = call.served.clone();
    match &output.convert {
        Some(Convert::Table(version)) => {
            let version = version.clone();
            let table = table(call, &version, &objects, Some(head), TableHeaders::Show)?;
            meta_value(call, output, StatusCode::OK, &table)
        }
        Some(Convert::PartialObjectMetadataList(version)) => {
            let items: Vec<Value> = objects.iter().map(|o| partial(o, version)).collect();
            let list = json!({
                "kind": "PartialObjectMetadataList",
                "apiVersion": format!("meta.k8s.io/{version}"),
                "metadata": head.to_value(),
                "items": items,
            });
            meta_value(call, output, StatusCode::OK, &list)
        }
        Some(Convert::PartialObjectMetadata(_)) => Err(ApiError::new(
            406,
            keelson_machinery::status::Reason::NotAcceptable,
            "you requested PartialObjectMetadata, but the requested object is a list".to_string(),
        )),
        None => {
            let mut objects = objects;
            // Items of built-in kinds do without their type.
            let typed = objects.iter_mut().filter(|_| served.custom.is_none());
            for object in typed {
                if let Some(members) = object.as_object_mut() {
                    members.remove("kind");
                    members.remove("apiVersion");
                }
            }
            let list = json!({
                "kind": served.row.list_kind,
                "apiVersion": served.api_version(),
                "metadata": head.to_value(),
                "items": objects,
            });
            let bytes = match output.format {
                Format::Protobuf => {
                    let list_type = keelson_machinery::schema::Schema::builtin()
                        .lookup_kind(
                            &served.row.group,
                            &served.row.version,
                            &served.row.list_kind,
                        )
                        .ok_or_else(|| {
                            ApiError::internal(format!("no type {}", served.row.list_kind))
                        })?;
                    encode(output, &list, list_type)?
                }
                _ => encode(output, &list, served.object_type)?,
            };
            Ok(finish(call, StatusCode::OK, output.format, bytes))
        }
    }
}

/// The JSON of a list, from the cached bytes of its items.
fn list_json(served: &Served, head: &ListHead, items: &[Arc<Entry>]) -> Result<Bytes, ApiError> {
    let size: usize = items.iter().map(|entry| entry.json().len() + 1).sum();
    let mut out = BytesMut::with_capacity(size + 256);
    out.put_slice(
        format!(
            "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\"metadata\":{},\"items\":[",
            served.row.list_kind,
            served.api_version(),
            head.to_value()
        )
        .as_bytes(),
    );
    let direct = conversion::same_shape(served);
    for (index, entry) in items.iter().enumerate() {
        if index > 0 {
            out.put_u8(b',');
        }
        match without_head(entry.json(), served).filter(|_| direct) {
            Some(_) if served.custom.is_some() => out.put_slice(entry.json()),
            Some(rest) => {
                out.put_u8(b'{');
                out.put_slice(rest);
            }
            None => {
                let object = entry.value().map_err(|e| cache_error(&e))?;
                let mut object = conversion::from_storage(served, object)?;
                if let Some(members) = object.as_object_mut() {
                    members.remove("kind");
                    members.remove("apiVersion");
                }
                out.put_slice(&machinery_codec::json::encode(&object));
            }
        }
    }
    out.put_slice(b"]}");
    Ok(out.freeze())
}

/// Only the metadata of an object.
pub fn partial(object: &Value, version: &str) -> Value {
    table::partial_metadata(object, meta_api_version(version))
}

fn meta_api_version(version: &str) -> &'static str {
    match version {
        "v1beta1" => "meta.k8s.io/v1beta1",
        _ => "meta.k8s.io/v1",
    }
}

/// Whether a table carries its column definitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableHeaders {
    /// Yes.
    Show,
    /// No: a later event of a watch.
    Omit,
}

/// A table of objects in the version of the request; of one object when `head` is `None`.
pub fn table(
    call: &Call,
    version: &str,
    objects: &[Value],
    head: Option<&ListHead>,
    headers: TableHeaders,
) -> Result<Value, ApiError> {
    let options = table::Options {
        include: table::IncludeObject::parse(call.query.get("includeObject"))?,
        no_headers: headers == TableHeaders::Omit,
        api_version: meta_api_version(version),
    };
    let now = call.server.storage.clock.now();
    let subresource = Some(call.info.subresource.as_str()).filter(|sub| !sub.is_empty());
    let row = &call.served.row;
    if let (Some(custom), None) = (&call.served.custom, subresource.filter(|s| *s == "scale")) {
        let metadata = match (head, objects) {
            (Some(head), _) => head.to_value(),
            (None, [object]) => json!({"resourceVersion": meta::resource_version(object)}),
            (None, _) => json!({}),
        };
        let metadata = match metadata {
            Value::Object(metadata) => metadata,
            _ => Default::default(),
        };
        return Ok(custom.columns.table(objects, metadata, now, &options));
    }
    Ok(match (head, objects) {
        (None, [object]) => table::of_object(row, subresource, object, now, &options),
        _ => {
            let head = head.map(ListHead::to_value);
            let metadata = match head {
                Some(Value::Object(metadata)) => metadata,
                _ => Default::default(),
            };
            table::of_list(row, subresource, objects, metadata, now, &options)
        }
    })
}

/// Answers with a success `Status` about a deleted object.
pub fn deleted_status(
    call: &mut Call,
    output: &Output,
    code: StatusCode,
    object: &Value,
) -> Result<Response, ApiError> {
    let details = keelson_machinery::status::Details {
        name: meta::name(object).to_string(),
        group: call.info.group.clone(),
        kind: call.info.resource.clone(),
        uid: meta::uid(object).to_string(),
        ..Default::default()
    };
    let status = keelson_machinery::status::success(Some(&details));
    let output = Output {
        convert: None,
        ..output.clone()
    };
    meta_value(call, &output, code, &status)
}

/// Puts headers around a body.
fn finish(call: &mut Call, code: StatusCode, format: Format, bytes: Bytes) -> Response {
    let mut bytes = bytes;
    // Upstream's encoders end JSON with a newline; kubectl get --raw shows it.
    if format == Format::Json && bytes.len() < 64 * 1024 && !bytes.ends_with(b"\n") {
        let mut with_newline = BytesMut::with_capacity(bytes.len() + 1);
        with_newline.put_slice(&bytes);
        with_newline.put_u8(b'\n');
        bytes = with_newline.freeze();
    }
    let mut response = http::Response::new(full(bytes));
    *response.status_mut() = code;
    response.headers_mut().insert(
        http::header::CONTENT_TYPE,
        HeaderValue::from_static(format.media_type()),
    );
    add_warnings(&mut response, &call.warnings);
    response
}

/// Adds `Warning` headers (RFC 7234 with code 299).
pub fn add_warnings(response: &mut Response, warnings: &[String]) {
    // Upstream bounds a header to 256 characters once all of them grow past 4096.
    let total: usize = warnings.iter().map(String::len).sum();
    let mut seen: Vec<&str> = Vec::new();
    for warning in warnings {
        if seen.contains(&warning.as_str()) {
            continue;
        }
        seen.push(warning);
        let clean: String = warning
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .take(if total > 4096 { 256 } else { usize::MAX })
            .collect();
        let quoted = clean.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_bytes(format!("299 - \"{quoted}\"").as_bytes()) {
            response.headers_mut().append(http::header::WARNING, value);
        }
    }
}

/// The response of an error, in the form the client takes, JSON where it takes none.
pub fn error(
    headers: &http::HeaderMap,
    query: &crate::request::Query,
    error: &ApiError,
) -> Response {
    let output = Output::negotiate(headers, query).unwrap_or_else(|_| Output::json());
    let output = Output {
        convert: None,
        ..output
    };
    status(
        &output,
        error.code,
        &error.to_value(),
        error.details.as_ref().map_or(0, |d| d.retry_after_seconds),
    )
}

/// A `Status` as a response.
pub fn status(output: &Output, code: u16, status: &Value, retry_after: i32) -> Response {
    let (format, bytes) = encode_meta(output, status)
        .or_else(|_| encode_meta(&Output::json(), status))
        .unwrap_or_else(|_| (Format::Json, Bytes::from_static(b"{}")));
    let mut response = http::Response::new(full(bytes));
    *response.status_mut() =
        StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(
        http::header::CONTENT_TYPE,
        HeaderValue::from_static(format.media_type()),
    );
    if retry_after > 0 {
        headers.insert(http::header::RETRY_AFTER, HeaderValue::from(retry_after));
    }
    response
}
