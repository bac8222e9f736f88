//! `create`: a new object in a collection.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use http::StatusCode;
use keelson_machinery::status::ApiError;
use keelson_machinery::value::Value;

use super::call::{Admission, Call, dedup_owner_references};
use super::managers::Tracker;
use super::options::WriteOptions;
use super::respond::{self, Item};
use crate::admission::Operation;
use crate::body::Response;
use crate::registry::store::{self, Change, ensure_namespace, wipe_system_fields};

/// Decodes, admits and stores a new object.
pub async fn create(call: &mut Call, body: &Bytes) -> Result<Response, ApiError> {
    let output = call.output()?;
    let options = WriteOptions::read(&call.query, "CreateOptions", false)?;
    let mut object = call.decode_object(body, options.field_validation)?;
    wipe_system_fields(&mut object);
    ensure_namespace(call.namespace(), &mut object)?;
    call.dedup_owners(&mut object, false);

    Tracker::new(call, &options).track(&mut object, None)?;

    let served = call.served.clone();
    let mut admission = Admission::new(
        call,
        Operation::Create,
        &served.row.kind,
        options.object,
        options.dry_run,
    );
    let mut object = admission.admit(object, None).await?;
    if let Some(warning) = dedup_owner_references(&mut object, true) {
        admission.warn(warning);
    }
    let mut change = Creation(admission);
    let stored = store::create(
        &call.server.storage,
        &call.context(&served, options.dry_run),
        &call.group_resource(),
        call.namespace(),
        object,
        &mut change,
    )
    .await?;
    call.warnings.extend(change.0.into_warnings());
    respond::object(call, &output, StatusCode::CREATED, Item::from(&stored))
}

/// The validating half of the admission of a create.
pub struct Creation(pub Admission);

#[async_trait]
impl Change for Creation {
    async fn apply(&mut self, _: Option<&Arc<Value>>) -> Result<Value, ApiError> {
        Err(ApiError::internal("a create does not change an object"))
    }

    async fn validate(&mut self, object: &Value, _: Option<&Arc<Value>>) -> Result<(), ApiError> {
        self.0.validate(Some(object), None).await
    }

    fn warn(&mut self, warning: String) {
        self.0.warn(warning);
    }
}
