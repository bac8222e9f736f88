//! `watch`: the changes of a resource as a stream of frames.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use futures::{Stream, StreamExt};
use http::HeaderValue;
use keelson_machinery::status::ApiError;
use keelson_machinery::value::Value;
use keelson_machinery::{codec as machinery_codec, schema::Schema};
use serde_json::json;

use super::Call;
use super::get::parse_revision;
use super::options::ListOptions;
use super::respond::{self, Item, TableHeaders};
use super::selection::selection;
use crate::body::{Response, streamed};
use crate::cache::types::{Delivery, Freshness, WatchOptions, WatchStart};
use crate::codec::body::set_type_meta;
use crate::codec::{Convert, Format, Output};
use crate::registry::Served;
use crate::registry::store::{cache_error, store_error};

/// A watch without `timeoutSeconds` lasts between this and twice as long (upstream `--min-request-timeout`).
const MIN_TIMEOUT_SECONDS: u64 = 1800;

/// How many ready events are put into one write.
const BATCH: usize = 64;

type Deliveries =
    Pin<Box<dyn Stream<Item = Result<Delivery, crate::cache::types::CacheError>> + Send>>;

/// Answers with the stream.
pub async fn watch(mut call: Call) -> Result<Response, ApiError> {
    let options = ListOptions::read(&call.query, true)?;
    let output = Output::negotiate_stream(
        &call.parts.headers,
        &call.query,
        call.served.custom.is_none(),
    )?;
    let selection = selection(&call, &options)?;
    let start = start(&call, &options).await?;
    let watch_options = WatchOptions {
        bookmarks: options.allow_watch_bookmarks,
        initial_events_end: options.allow_watch_bookmarks
            && options.send_initial_events == Some(true),
    };
    let cache = call
        .server
        .storage
        .caches
        .cache(&call.served.storage_resource())
        .map_err(|e| cache_error(&e))?;
    let deliveries: Deliveries = match cache.watch(selection, start, watch_options).await {
        Ok(deliveries) => Box::pin(deliveries.map(Ok)),
        // As upstream, a revision that is gone is told within the stream.
        Err(error @ crate::cache::types::CacheError::WatchExpired { .. }) => {
            Box::pin(futures::stream::once(async move { Err(error) }))
        }
        Err(error) => return Err(cache_error(&error)),
    };
    let timeout = match options.timeout_seconds {
        Some(seconds) if seconds > 0 => Duration::from_secs(seconds.unsigned_abs()),
        _ => {
            let mut random = [0u8; 2];
            call.server.storage.clock.fill_random(&mut random);
            let spread = u64::from(u16::from_le_bytes(random)) * MIN_TIMEOUT_SECONDS / 65536;
            Duration::from_secs(MIN_TIMEOUT_SECONDS + spread)
        }
    };
    let warnings = std::mem::take(&mut call.warnings);
    let closing = call.server.closing.clone();
    let served = call.served.clone();
    let mut frames = Frames::new(call, output.clone());
    let deadline = Box::pin(tokio::time::sleep(timeout));
    let end = futures::future::select(deadline, Box::pin(async move { closing.cancelled().await }));
    let chunks = deliveries
        .ready_chunks(BATCH)
        .then(move |batch| prepare(served.clone(), batch))
        .map(move |batch| {
            let mut out = BytesMut::with_capacity(4096);
            for event in batch {
                frames.put(&mut out, event);
            }
            Ok(out.freeze())
        })
        .take_until(end);
    let mut response = http::Response::new(streamed(chunks));
    response.headers_mut().insert(
        http::header::CONTENT_TYPE,
        HeaderValue::from_static(match output.format {
            Format::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
            _ => "application/json",
        }),
    );
    respond::add_warnings(&mut response, &warnings);
    Ok(response)
}

/// What a watcher gets, its object ready for the version of the request.
enum Event {
    Object(&'static str, Item),
    Bookmark {
        revision: u64,
        initial_events_end: bool,
    },
}

/// Makes events of deliveries; only custom resources may have to be converted.
async fn prepare(
    served: Arc<Served>,
    batch: Vec<Result<Delivery, crate::cache::types::CacheError>>,
) -> Vec<Result<Event, ApiError>> {
    let mut events = Vec::with_capacity(batch.len());
    for delivery in batch {
        let (event, entry) = match delivery {
            Ok(Delivery::Added(entry)) => ("ADDED", entry),
            Ok(Delivery::Modified(entry)) => ("MODIFIED", entry),
            Ok(Delivery::Deleted(entry)) => ("DELETED", entry),
            Ok(Delivery::Bookmark {
                revision,
                initial_events_end,
            }) => {
                events.push(Ok(Event::Bookmark {
                    revision,
                    initial_events_end,
                }));
                continue;
            }
            Err(error) => {
                events.push(Err(cache_error(&error)));
                continue;
            }
        };
        let item = Item::of_entry(&served, &entry).await;
        events.push(item.map(|item| Event::Object(event, item)));
    }
    events
}

/// Where the stream begins.
async fn start(call: &Call, options: &ListOptions) -> Result<WatchStart, ApiError> {
    let text = options.resource_version.as_str();
    if options.send_initial_events == Some(false) && matches!(text, "" | "0") {
        // Only what happens from now on.
        let newest = call.server.storage.engine.revision().await;
        let newest = newest.map_err(|e| store_error(e, &call.group_resource(), ""))?;
        return Ok(WatchStart::After(newest));
    }
    Ok(match (options.send_initial_events, text) {
        (Some(true), "") => WatchStart::State(Freshness::Latest),
        (Some(true), "0") => WatchStart::State(Freshness::Any),
        (Some(true), text) => WatchStart::State(Freshness::NotOlderThan(parse_revision(text)?)),
        (None, "" | "0") => WatchStart::State(Freshness::Any),
        (_, text) => WatchStart::After(parse_revision(text)?),
    })
}

/// Writes events in the form of one stream.
struct Frames {
    call: Call,
    output: Output,
    table_headers: TableHeaders,
}

impl Frames {
    fn new(call: Call, output: Output) -> Frames {
        Frames {
            call,
            output,
            table_headers: TableHeaders::Show,
        }
    }

    fn put(&mut self, out: &mut BytesMut, event: Result<Event, ApiError>) {
        let result = match event {
            Ok(Event::Object(event, item)) => self.put_item(out, event, &item),
            Ok(Event::Bookmark {
                revision,
                initial_events_end,
            }) => self.put_bookmark(out, revision, initial_events_end),
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            self.put_error(out, &error);
        }
    }

    fn put_item(&mut self, out: &mut BytesMut, event: &str, item: &Item) -> Result<(), ApiError> {
        let served = self.call.served.clone();
        if self.output.format == Format::Json && self.output.convert.is_none() {
            let object = item.json(&served)?;
            put_json(out, event, &object);
            return Ok(());
        }
        let object = item.object(&served)?;
        self.put_value(out, event, object)
    }

    fn put_value(
        &mut self,
        out: &mut BytesMut,
        event: &str,
        object: Value,
    ) -> Result<(), ApiError> {
        let object = match &self.output.convert {
            Some(Convert::Table(version)) => {
                let headers = std::mem::replace(&mut self.table_headers, TableHeaders::Omit);
                let version = version.clone();
                respond::table(&self.call, &version, &[object], None, headers)?
            }
            Some(
                Convert::PartialObjectMetadata(version)
                | Convert::PartialObjectMetadataList(version),
            ) => respond::partial(&object, version),
            None => object,
        };
        self.put_object(out, event, &object)
    }

    fn put_object(&self, out: &mut BytesMut, event: &str, object: &Value) -> Result<(), ApiError> {
        if self.output.format == Format::Protobuf {
            let kind = keelson_machinery::value::str_or_empty(object, &["kind"]);
            let object_type = if kind == self.call.served.row.kind {
                self.call.served.object_type
            } else {
                Schema::builtin()
                    .lookup(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}"))
                    .ok_or_else(|| ApiError::internal(format!("no type {kind}")))?
            };
            let raw = machinery_codec::protobuf::encode_object(object, object_type)
                .map_err(ApiError::internal)?;
            out.put_slice(&machinery_codec::protobuf::encode_watch_frame(event, &raw));
            return Ok(());
        }
        put_json(out, event, &machinery_codec::json::encode(object));
        Ok(())
    }

    fn put_bookmark(
        &mut self,
        out: &mut BytesMut,
        revision: u64,
        initial_events_end: bool,
    ) -> Result<(), ApiError> {
        let served = self.call.served.clone();
        let mut object = json!({"metadata": {"resourceVersion": revision.to_string()}});
        if initial_events_end {
            object["metadata"]["annotations"] =
                json!({ (crate::table::INITIAL_EVENTS_END): "true" });
        }
        set_type_meta(&mut object, &served.row.kind, &served.api_version());
        if matches!(self.output.convert, Some(Convert::Table(_))) {
            return self.put_value(out, "BOOKMARK", object);
        }
        if served.custom.is_none() {
            keelson_machinery::schema::normalize(&mut object, served.object_type);
        }
        self.put_value(out, "BOOKMARK", object)
    }

    fn put_error(&self, out: &mut BytesMut, error: &ApiError) {
        let status = error.to_value();
        if self.put_object(out, "ERROR", &status).is_err() {
            tracing::error!(%error, "an error event has no encoding");
        }
    }
}

fn put_json(out: &mut BytesMut, event: &str, object: &[u8]) {
    let object = object.strip_suffix(b"\n").unwrap_or(object);
    out.reserve(object.len() + 40);
    out.put_slice(b"{\"type\":\"");
    out.put_slice(event.as_bytes());
    out.put_slice(b"\",\"object\":");
    out.put_slice(object);
    out.put_slice(b"}\n");
}
