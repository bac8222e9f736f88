//! `update`: replaces an object, or the part of it that a subresource stands for.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use http::StatusCode;
use keelson_machinery::meta;
use keelson_machinery::status::ApiError;
use keelson_machinery::value::Value;

use super::call::{Admission, Call, dedup_owner_references};
use super::managers::Tracker;
use super::options::WriteOptions;
use super::respond::{self, Item};
use crate::admission::Operation;
use crate::body::Response;
use crate::filters::authorize;
use crate::registry::store::{self, Change, Updated, ensure_namespace, wipe_system_fields};

/// Decodes, admits and stores the next state of an object.
pub async fn update(call: &mut Call, body: &Bytes) -> Result<Response, ApiError> {
    let output = call.output()?;
    let options = WriteOptions::read(&call.query, "UpdateOptions", false)?;
    let mut object = call.decode_object(body, options.field_validation)?;
    ensure_namespace(call.namespace(), &mut object)?;
    check_name(call, &object)?;
    call.dedup_owners(&mut object, false);

    let mut change = Replacement {
        writer: Writer::new(call, &options),
        object,
    };
    let allow_create = call.info.subresource.is_empty()
        && call
            .served
            .strategy
            .allow_create_on_update(&call.served.row);
    let updated = run(call, &options, allow_create, &mut change).await?;
    call.warnings.extend(change.writer.into_warnings());
    answer(call, &output, updated)
}

/// Runs a change of the object that the call names through the registry. With `allow_create`, one that does not exist
/// is created.
pub async fn run(
    call: &Call,
    options: &WriteOptions,
    allow_create: bool,
    change: &mut dyn Change,
) -> Result<Updated, ApiError> {
    let served = call.served.clone();
    store::update(
        &call.server.storage,
        &call.context(&served, options.dry_run),
        &call.group_resource(),
        call.namespace(),
        &call.info.name,
        allow_create,
        change,
    )
    .await
}

/// 201 for a created object, 200 otherwise.
pub fn answer(
    call: &mut Call,
    output: &crate::codec::Output,
    updated: Updated,
) -> Result<Response, ApiError> {
    let code = match &updated {
        Updated::Created(_) => StatusCode::CREATED,
        Updated::Updated(_) | Updated::Deleted(_) => StatusCode::OK,
    };
    let item = Item::from(&updated.into_stored());
    respond::object(call, output, code, item)
}

/// The object must have the name and namespace of the URL (upstream `checkName`).
pub fn check_name(call: &Call, object: &Value) -> Result<(), ApiError> {
    let (of_object, of_url) = (meta::name(object), call.info.name.as_str());
    if of_object.is_empty() {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({of_url} based on URL) was undeterminable: name must be provided"
        )));
    }
    if of_object != of_url {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({of_object}) does not match the name on the URL ({of_url})"
        )));
    }
    Ok(())
}

/// What updates and patches share: admission around the new state, as update or, where nothing existed, as create.
pub struct Writer {
    admission: Admission,
    /// Who writes, for field ownership.
    pub tracker: Tracker,
    create_allowed: Option<Result<(), ApiError>>,
    server: Arc<crate::server::Server>,
    user: Arc<crate::request::UserInfo>,
    info: crate::request::RequestInfo,
}

impl Writer {
    /// For the object of the call.
    pub fn new(call: &Call, options: &WriteOptions) -> Writer {
        Writer {
            admission: Admission::new(
                call,
                Operation::Update,
                &call.served.row.kind,
                options.object.clone(),
                options.dry_run,
            ),
            tracker: Tracker::new(call, options),
            create_allowed: None,
            server: call.server.clone(),
            user: call.user.clone(),
            info: call.info.clone(),
        }
    }

    /// Mutating admission on the new state.
    pub async fn admit(
        &mut self,
        mut object: Value,
        current: Option<&Arc<Value>>,
    ) -> Result<Value, ApiError> {
        match current {
            Some(_) => self.admission.set_operation(Operation::Update),
            None => {
                self.authorize_create().await?;
                self.admission.set_operation(Operation::Create);
                wipe_system_fields(&mut object);
            }
        }
        let mut object = self.admission.admit(object, current.cloned()).await?;
        if let Some(warning) = dedup_owner_references(&mut object, true) {
            self.admission.warn(warning);
        }
        Ok(object)
    }

    /// Who may update may not therefore create (upstream `withAuthorization`).
    async fn authorize_create(&mut self) -> Result<(), ApiError> {
        if self.create_allowed.is_none() {
            let mut info = self.info.clone();
            info.verb = "create".to_string();
            self.create_allowed = Some(authorize(&self.server, &self.user, &info).await);
        }
        self.create_allowed.clone().unwrap_or(Ok(()))
    }

    /// Validating admission on the final state.
    pub async fn validate(
        &mut self,
        object: &Value,
        current: Option<&Arc<Value>>,
    ) -> Result<(), ApiError> {
        self.admission
            .validate(Some(object), current.cloned())
            .await
    }

    /// A warning for the client.
    pub fn warn(&mut self, warning: String) {
        self.admission.warn(warning);
    }

    /// All warnings.
    pub fn into_warnings(self) -> Vec<String> {
        self.admission.into_warnings()
    }
}

/// A PUT: the next state is what the client sent.
struct Replacement {
    writer: Writer,
    object: Value,
}

#[async_trait]
impl Change for Replacement {
    async fn apply(&mut self, current: Option<&Arc<Value>>) -> Result<Value, ApiError> {
        let mut object = self.object.clone();
        let live = current.map(|current| &**current);
        self.writer.tracker.track(&mut object, live)?;
        self.writer.admit(object, current).await
    }

    async fn validate(
        &mut self,
        object: &Value,
        current: Option<&Arc<Value>>,
    ) -> Result<(), ApiError> {
        self.writer.validate(object, current).await
    }

    fn warn(&mut self, warning: String) {
        self.writer.warn(warning);
    }

    fn expected_uid(&self) -> Option<String> {
        Some(meta::uid(&self.object))
            .filter(|uid| !uid.is_empty())
            .map(str::to_string)
    }
}
