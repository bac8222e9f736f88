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

/// The resource whose objects a request carries in their stored form; `None` when the objects are of a kind of their
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
    pub fn get(&mut self, request: &AdmissionRequest, seen: &Seen) -> Result<Arc<View>, ApiError> {
        if let Some(view) = self.made.get(&seen.kind) {
            return Ok(view.clone());
        }
        let served = converted(request, &self.table, &seen.resource);
        let shown = |object: &Value| -> Result<Arc<Value>, ApiError> {
            let object = object.clone();
            Ok(Arc::new(match &served {
                Some(served) => conversion::from_storage(served, object)?,
                None => object,
            }))
        };
        let old_object = match (&request.old_object, &served) {
            // No version to convert to: the stored object is shared, not copied.
            (Some(old), Some(served)) if served.is_storage_version() => Some(old.clone()),
            (Some(old), None) => Some(old.clone()),
            (Some(old), Some(_)) => Some(shown(old)?),
            (None, _) => None,
        };
        let view = Arc::new(View {
            object: request.object.as_ref().map(shown).transpose()?,
            old_object,
            ..View::default()
        });
        self.made.insert(seen.kind.clone(), view.clone());
        Ok(view)
    }

    /// Takes over a new state that somebody made of the object in a view: reads it as its kind, sets defaults, and
    /// brings it back into the stored form. Returns whether it differs from what was there.
    pub fn replace(
        &mut self,
        request: &mut AdmissionRequest,
        seen: &Seen,
        changed: &Value,
    ) -> Result<bool, ApiError> {
        let served = converted(request, &self.table, &seen.resource);
        let of: Option<&'static Type> = match &served {
            Some(served) => served.row.type_name.as_ref().map(|_| served.object_type),
            None => {
                let kind = &seen.kind;
                Schema::builtin().lookup_kind(&kind.group, &kind.version, &kind.kind)
            }
        };
        let mut object = match of {
            Some(of) => {
                codec::json::decode_value(changed, of, Strictness::Lenient)
                    .map_err(ApiError::internal)?
                    .0
            }
            None => changed.clone(),
        };
        let before = self.get(request, seen)?;
        let differs = before.object.as_deref() != Some(&object);
        match (&served, of) {
            (Some(served), _) => {
                object = conversion::to_storage(served, object)?;
                set_defaults(served, &mut object);
            }
            (None, Some(of)) => {
                keelson_machinery::schema::apply_defaults(&mut object, of);
                crate::registry::defaults::apply(&mut object, of);
            }
            (None, None) => {}
        }
        request.object = Some(object);
        self.made.clear();
        Ok(differs)
    }
}
