//! The objects of a request in the version that a webhook or policy wants to see.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use keelson_machinery::codec::{self, Strictness};
use keelson_machinery::schema::{Schema, Type};
use keelson_machinery::status::ApiError;
use keelson_machinery::value::Value;

use super::matching::{Gvk, Gvr, Seen};
use crate::admission::AdmissionRequest;
use crate::extensions::conversion as custom;
use crate::registry::{Served, Table, conversion};
use crate::verbs::call::set_defaults;

/// Both states of an object in one version.
#[derive(Clone, Default)]
pub struct View {
    /// The new state.
    pub object: Option<Arc<Value>>,
    /// The stored state.
    pub old_object: Option<Arc<Value>>,
    object_json: std::sync::OnceLock<Bytes>,
    old_json: std::sync::OnceLock<Bytes>,
}

fn json(of: Option<&Arc<Value>>, at: &std::sync::OnceLock<Bytes>) -> Bytes {
    at.get_or_init(|| match of {
        Some(object) => codec::json::encode(object),
        None => Bytes::from_static(b"null"),
    })
    .clone()
}

impl View {
    /// The new state as JSON, `null` without one. Encoded once, however many webhooks get it.
    pub fn object_json(&self) -> Bytes {
        json(self.object.as_ref(), &self.object_json)
    }

    /// The stored state as JSON.
    pub fn old_json(&self) -> Bytes {
        json(self.old_object.as_ref(), &self.old_json)
    }
}

/// The resource whose objects a request carries (built-in ones in their stored form, custom ones in the version of
/// the request); `None` when the objects are of a kind of their
/// own (`Scale`, `Eviction`, options of a connection), which has one version only.
fn converted(request: &AdmissionRequest, table: &Table, of: &Gvr) -> Option<Arc<Served>> {
    let info = &request.request;
    let own = table.get(&info.group, &info.version, &info.resource)?;
    if own.row.kind != request.kind || own.row.group != request.kind_group {
        return None;
    }
    table.get(&of.group, &of.version, &of.resource).cloned()
}

/// Views of one request, each made when it is first asked for.
pub struct Views {
    table: Arc<Table>,
    made: HashMap<Gvk, Arc<View>>,
}

impl Views {
    /// None yet.
    pub fn new(table: Arc<Table>) -> Views {
        Views {
            table,
            made: HashMap::new(),
        }
    }

    /// The resources that are served.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// The request's objects as `seen`.
    pub async fn get(
        &mut self,
        request: &AdmissionRequest,
        seen: &Seen,
    ) -> Result<Arc<View>, ApiError> {
        if let Some(view) = self.made.get(&seen.kind) {
            return Ok(view.clone());
        }
        let served = self.target(request, seen);
        let object = match (&request.object, &served) {
            (Some(object), Some(served)) => Some(Arc::new(shown(served, object).await?)),
            (Some(object), None) => Some(Arc::new(object.clone())),
            (None, _) => None,
        };
        let old_object = match (&request.old_object, &served) {
            // No version to convert to: the stored object is shared, not copied.
            (Some(old), Some(served)) if served.custom.is_none() && served.is_storage_version() => {
                Some(old.clone())
            }
            (Some(old), None) => Some(old.clone()),
            (Some(old), Some(served)) => Some(Arc::new(shown(served, old).await?)),
            (None, _) => None,
        };
        let view = Arc::new(View {
            object,
            old_object,
            ..View::default()
        });
        self.made.insert(seen.kind.clone(), view.clone());
        Ok(view)
    }

    /// The resource whose objects are seen; `None` for objects of a kind of their own.
    pub fn target(&self, request: &AdmissionRequest, seen: &Seen) -> Option<Arc<Served>> {
        converted(request, &self.table, &seen.resource)
    }

    /// Takes over a new state that somebody made of the object in a view: reads it as its kind, sets defaults, and
    /// brings it back into the form in which requests carry it. Returns whether it differs from what was there.
    pub async fn replace(
        &mut self,
        request: &mut AdmissionRequest,
        seen: &Seen,
        changed: &Value,
    ) -> Result<bool, ApiError> {
        let served = self.target(request, seen);
        let before = self.get(request, seen).await?;
        let mut object;
        match &served {
            Some(served) => match &served.custom {
                Some(custom) => {
                    object = changed.clone();
                    custom
                        .coerce(&mut object, Strictness::Lenient)
                        .map_err(ApiError::internal)?;
                }
                None => object = decoded(changed, served.object_type)?,
            },
            None => {
                object = match type_of(seen) {
                    Some(of) => decoded(changed, of)?,
                    None => changed.clone(),
                };
            }
        }
        let differs = before.object.as_deref() != Some(&object);
        match &served {
            Some(served) => {
                if served.custom.is_some() {
                    set_defaults(served, &mut object);
                    object = self.taken_back(request, object).await?;
                } else {
                    object = conversion::to_storage(served, object)?;
                    set_defaults(served, &mut object);
                }
            }
            None => {
                if let Some(of) = type_of(seen) {
                    keelson_machinery::schema::apply_defaults(&mut object, of);
                    crate::registry::defaults::apply(&mut object, of);
                }
            }
        }
        request.object = Some(object);
        self.made.clear();
        Ok(differs)
    }

    /// A custom resource in the version of the request.
    async fn taken_back(
        &self,
        request: &AdmissionRequest,
        object: Value,
    ) -> Result<Value, ApiError> {
        let info = &request.request;
        let own = self
            .table
            .get(&info.group, &info.version, &info.resource)
            .ok_or_else(ApiError::no_such_resource)?;
        custom::to_working(own, object).await
    }
}

/// The type of objects that are of a kind of their own.
fn type_of(seen: &Seen) -> Option<&'static Type> {
    let kind = &seen.kind;
    Schema::builtin().lookup_kind(&kind.group, &kind.version, &kind.kind)
}

fn decoded(value: &Value, of: &'static Type) -> Result<Value, ApiError> {
    codec::json::decode_value(value, of, Strictness::Lenient)
        .map(|(object, _)| object)
        .map_err(ApiError::internal)
}

/// An object of a request in the version of `served`.
async fn shown(served: &Served, object: &Value) -> Result<Value, ApiError> {
    match &served.custom {
        Some(_) => custom::to_working(served, object.clone()).await,
        None => conversion::from_storage(served, object.clone()),
    }
}
