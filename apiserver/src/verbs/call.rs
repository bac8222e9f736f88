//! [`Call`]: one authorized request to a resource on its way through a verb, and what all verbs share: reading the
//! body, admission, warnings.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use keelson_machinery::meta::{self, GroupResource};
use keelson_machinery::status::ApiError;
use keelson_machinery::value::Value;

use crate::admission::{AdmissionRequest, Notes, Operation, Reinvocation};
use crate::body::RequestBody;
use crate::codec::Output;
use crate::codec::body::{Decoded, Expected, FieldValidation, decode};
use crate::codec::negotiate::input_format;
use crate::registry::strategy::Context;
use crate::registry::{Served, conversion};
use crate::request::{Query, RequestInfo, UserInfo};
use crate::server::Server;

/// The largest request body that is read (upstream `MaxRequestBodyBytes`, etcd's request limit doubled).
pub const MAX_BODY_BYTES: usize = 3 * 1024 * 1024;

/// Up to this size a body that is too large is read to its end before it is refused.
const DRAINED_BODY_BYTES: usize = 4 * MAX_BODY_BYTES;

/// One request to a resource.
pub struct Call {
    /// The server.
    pub server: Arc<Server>,
    /// What the request is about.
    pub info: RequestInfo,
    /// Who asks.
    pub user: Arc<UserInfo>,
    /// Query options.
    pub query: Query,
    /// Method, headers, extensions.
    pub parts: http::request::Parts,
    /// The resource.
    pub served: Arc<Served>,
    /// Warnings for the client so far.
    pub warnings: Vec<String>,
}

impl Call {
    /// Group and resource as errors name them.
    pub fn group_resource(&self) -> GroupResource {
        GroupResource::new(&*self.info.group, &*self.info.resource)
    }

    /// Namespace of the object; empty for cluster-scoped resources, also for namespaces.
    pub fn namespace(&self) -> &str {
        if self.served.row.namespaced {
            &self.info.namespace
        } else {
            ""
        }
    }

    /// What strategies get to know. `subresource` is usually that of the request.
    pub fn context<'a>(&'a self, served: &'a Served, dry_run: bool) -> Context<'a> {
        Context {
            served,
            user: &self.user,
            clock: &self.server.storage.clock,
            subresource: &self.info.subresource,
            dry_run,
        }
    }

    /// The form of the answer.
    pub fn output(&self) -> Result<Output, ApiError> {
        match self.served.custom {
            Some(_) => Output::negotiate_untyped(&self.parts.headers, &self.query),
            None => Output::negotiate(&self.parts.headers, &self.query),
        }
    }

    /// The form of an answer that has no table.
    pub fn output_without_table(&self) -> Result<Output, ApiError> {
        Output::negotiate_without_table(&self.parts.headers, &self.query)
    }

    /// Decodes a body as `expected`; unknown and duplicate fields become warnings or an error.
    pub fn decode(
        &mut self,
        body: &Bytes,
        expected: &Expected<'_>,
        validation: FieldValidation,
    ) -> Result<Value, ApiError> {
        let format = input_format(&self.parts.headers)?;
        let Decoded { object, strict, .. } = decode(body, format, expected, validation)?;
        if validation == FieldValidation::Warn {
            self.warnings.extend(strict);
        }
        Ok(object)
    }

    /// Decodes a body as the kind of the resource, in the storage version, defaulted.
    pub fn decode_object(
        &mut self,
        body: &Bytes,
        validation: FieldValidation,
    ) -> Result<Value, ApiError> {
        let served = self.served.clone();
        let object = self.decode(
            body,
            &Expected {
                group: &served.row.group,
                version: &served.row.version,
                kind: &served.row.kind,
                object_type: served.object_type,
                custom: served.custom.as_deref(),
            },
            validation,
        )?;
        let mut object = conversion::to_storage(&served, object)?;
        set_defaults(&served, &mut object);
        Ok(object)
    }

    /// Drops owner references that occur twice, with a warning (upstream `dedupOwnerReferencesAndAddWarning`).
    pub fn dedup_owners(&mut self, object: &mut Value, after_admission: bool) {
        if let Some(warning) = dedup_owner_references(object, after_admission) {
            self.warnings.push(warning);
        }
    }
}

/// Declared defaults of the type, those upstream sets by hand, then those of the strategy; for custom resources those
/// of the schema.
pub fn set_defaults(served: &Served, object: &mut Value) {
    if let Some(custom) = &served.custom {
        custom.set_defaults(object);
        return;
    }
    crate::codec::storage::set_defaults(object, served.storage_type, &*served.strategy);
}

/// Drops owner references that occur twice; the warning names their uids.
pub fn dedup_owner_references(object: &mut Value, after_admission: bool) -> Option<String> {
    let owners = keelson_machinery::value::get_mut(object, &["metadata", "ownerReferences"])?
        .as_array_mut()?;
    if owners.len() < 2 {
        return None;
    }
    // Looked up, not searched for: a body has room for some hundred thousand owners.
    let mut seen: HashSet<String> = HashSet::with_capacity(owners.len());
    let mut duplicates: Vec<String> = Vec::new();
    owners.retain(|owner| {
        let new = seen.insert(owner.to_string());
        if !new {
            let uid = owner.get("uid").and_then(Value::as_str).unwrap_or_default();
            duplicates.push(format!("{uid:?}"));
        }
        new
    });
    if duplicates.is_empty() {
        return None;
    }
    let when = if after_admission {
        "duplicate entries after mutating admission happens; API server dedups owner references in 1.20+, and may reject such requests as early as 1.24; please fix your requests"
    } else {
        "duplicate entries; API server dedups owner references in 1.20+, and may reject such requests as early as 1.24; please fix your requests"
    };
    Some(format!(
        ".metadata.ownerReferences contains {when}; duplicate UID(s) observed: {}",
        duplicates.join(", ")
    ))
}

/// Reads a body up to the limit.
pub async fn read_body(mut body: RequestBody) -> Result<Bytes, ApiError> {
    let mut all = BytesMut::new();
    let mut size = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame
            .map_err(|e| ApiError::bad_request(format!("error reading the request body: {e}")))?;
        if let Ok(data) = frame.into_data() {
            size += data.len();
            // Some clients read no answer before they have sent everything: a body that is somewhat too large is
            // read to its end, and thrown away.
            if size > DRAINED_BODY_BYTES {
                break;
            }
            if size <= MAX_BODY_BYTES {
                all.extend_from_slice(&data);
            }
        }
    }
    if size > MAX_BODY_BYTES {
        return Err(ApiError::request_entity_too_large(format!(
            "limit is {MAX_BODY_BYTES}"
        )));
    }
    Ok(all.freeze())
}

/// The fixed part of the admission of one request; owns what it needs, so that it can outlive borrows of the call.
pub struct Admission {
    server: Arc<Server>,
    request: AdmissionRequest,
    /// Whether the URL names the object.
    named: bool,
    warnings: Vec<String>,
    notes: Option<Arc<Notes>>,
}

impl Admission {
    /// For the object of the call (or of its subresource's `kind`).
    pub fn new(
        call: &Call,
        operation: Operation,
        kind: &str,
        options: Value,
        dry_run: bool,
    ) -> Admission {
        let row = &call.served.row;
        // Most subresources stand for the object itself; some have a kind of their own.
        let (kind_group, kind_version) = match row.subresource(&call.info.subresource) {
            Some(sub) if sub.kind == kind => (sub.group.clone(), sub.version.clone()),
            _ => (row.group.clone(), row.version.clone()),
        };
        Admission {
            server: call.server.clone(),
            named: !call.info.name.is_empty(),
            notes: call.parts.extensions.get::<Arc<Notes>>().cloned(),
            request: AdmissionRequest {
                operation,
                request: call.info.clone(),
                kind: kind.to_string(),
                kind_group,
                kind_version,
                user: UserInfo::clone(&call.user),
                object: None,
                old_object: None,
                options,
                dry_run,
                warnings: Vec::new(),
                annotations: BTreeMap::new(),
                reinvocation: Reinvocation::default(),
            },
            warnings: Vec::new(),
        }
    }

    /// The same request as a create, for updates that create.
    pub fn set_operation(&mut self, operation: Operation) {
        self.request.operation = operation;
    }

    /// Runs the mutating plugins over `object`.
    pub async fn admit(
        &mut self,
        object: Value,
        old: Option<Arc<Value>>,
    ) -> Result<Value, ApiError> {
        self.fill(Some(object), old);
        self.run_mutating().await?;
        self.request
            .object
            .take()
            .ok_or_else(|| ApiError::internal("an admission plugin removed the object"))
    }

    /// Runs the mutating plugins for a request without an object (delete, connect).
    pub async fn admit_without_object(&mut self, old: Option<Arc<Value>>) -> Result<(), ApiError> {
        self.fill(None, old);
        self.run_mutating().await
    }

    /// All mutating plugins in order, and once more when a webhook or policy asks for it.
    async fn run_mutating(&mut self) -> Result<(), ApiError> {
        self.request.reinvocation = Reinvocation::default();
        let mut result = self.mutate_once().await;
        if result.is_ok() && self.request.reinvocation.wanted {
            self.request.reinvocation.second_round = true;
            result = self.mutate_once().await;
        }
        self.note(result)
    }

    async fn mutate_once(&mut self) -> Result<(), ApiError> {
        for plugin in self.server.admission() {
            plugin.admit(&mut self.request).await?;
        }
        Ok(())
    }

    /// Runs the validating plugins.
    pub async fn validate(
        &mut self,
        object: Option<&Value>,
        old: Option<Arc<Value>>,
    ) -> Result<(), ApiError> {
        if self.server.admission().is_empty() {
            return Ok(());
        }
        self.fill(object.cloned(), old);
        let result = self.validate_once().await;
        self.note(result)
    }

    async fn validate_once(&mut self) -> Result<(), ApiError> {
        for plugin in self.server.admission() {
            plugin.validate(&mut self.request).await?;
        }
        Ok(())
    }

    /// Takes what the plugins have to say beside their verdict.
    fn note(&mut self, result: Result<(), ApiError>) -> Result<(), ApiError> {
        self.warnings.append(&mut self.request.warnings);
        if let Some(notes) = &self.notes {
            notes.annotate(std::mem::take(&mut self.request.annotations));
            if result.is_err() {
                // Whoever refuses a request also warns: the answer is then made without the call.
                notes.warn(std::mem::take(&mut self.warnings));
            }
        }
        result
    }

    fn fill(&mut self, object: Option<Value>, old: Option<Arc<Value>>) {
        // A new object's name stands in its body; a generated one is known only at validation, and may change when
        // it turns out to be taken. Of a collection, the object that goes has the name.
        if !self.named
            && let Some(object) = object.as_ref().or(old.as_deref())
        {
            let info = &mut self.request.request;
            info.name = meta::name(object).to_string();
            if info.group.is_empty() && info.resource == "namespaces" {
                info.namespace.clone_from(&info.name);
            }
        }
        self.request.object = object;
        self.request.old_object = old;
    }

    /// A warning for the client.
    pub fn warn(&mut self, warning: String) {
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    /// The warnings of all plugins.
    pub fn into_warnings(self) -> Vec<String> {
        self.warnings
    }
}
