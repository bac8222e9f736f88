//! The one create and the one update below all resources (upstream
//! `k8s.io/apiserver/pkg/registry/generic/registry.Store`, `pkg/registry/rest`).
//!
//! A write reads the newest state, lets the caller make the next one, and commits it guarded by the revision it read;
//! a conflict runs all of it again on the state that won, so mutation, validation and admission always see the state
//! they replace.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::{BufMut, Bytes, BytesMut};
use keelson_machinery::clock::Clock;
use keelson_machinery::meta::{self, GroupResource};
use keelson_machinery::status::field::{FieldError, MAX_FINDINGS, Path};
use keelson_machinery::status::{ApiError, Reason};
use keelson_machinery::time;
use keelson_machinery::value::{self, Value};
use keelson_store::{Commit, Expect, KeyValue, Revision, Store};

use super::Served;
use super::strategy::{Context, Rollback};
use crate::cache::caches::Caches;
use crate::cache::types::{CacheError, Freshness};
use crate::extensions::conversion as custom;

/// How often a write is tried again after losing against another writer. Each round means that somebody else made
/// progress, so this bounds only the unfairness towards one request.
const ATTEMPTS: usize = 256;

/// How deeply a stored object may nest: what `serde_json` reads, by which the cache's entries are decoded. An object
/// beyond it could be stored and never be changed or deleted again. Bodies may nest once more, and managed fields
/// make an object deeper than it came.
const MAX_DEPTH: usize = 127;

/// How often a free generated name is looked for (upstream `maxNameGenerationCreateAttempts`).
const NAME_ATTEMPTS: usize = 8;

/// Where objects are kept and read.
#[derive(Clone)]
pub struct Storage {
    /// The engine.
    pub engine: Arc<dyn Store>,
    /// The watch caches.
    pub caches: Arc<Caches>,
    /// Time and randomness.
    pub clock: Clock,
}

/// A state of an object.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The object in the storage version, with its resourceVersion.
    pub object: Arc<Value>,
    /// The same as compact JSON, when it is at hand.
    pub json: Option<Bytes>,
    /// The revision; 0 for a dry run of a create.
    pub revision: Revision,
    /// The object is stored in a version that is no longer the one to store: a write that changes nothing else
    /// still brings it up to date.
    pub outdated: bool,
}

/// How an update makes the next state. Called again after each conflict.
#[async_trait]
pub trait Change: Send {
    /// The next state in the storage version, mutating admission included. `current` is `None` when the object does
    /// not exist and the resource may be created by an update; its resourceVersion is set.
    async fn apply(&mut self, current: Option<&Arc<Value>>) -> Result<Value, ApiError>;
    /// Validating admission on the final object.
    async fn validate(
        &mut self,
        object: &Value,
        current: Option<&Arc<Value>>,
    ) -> Result<(), ApiError>;
    /// A warning for the client.
    fn warn(&mut self, warning: String);
    /// The uid that the object must have.
    fn expected_uid(&self) -> Option<String> {
        None
    }
}

/// What became of an update.
pub enum Updated {
    /// A new object.
    Created(Stored),
    /// The object has (or already had) this state.
    Updated(Stored),
    /// The update took away the last finalizer of an object under deletion: it is gone, this was its last state.
    Deleted(Stored),
}

impl Updated {
    /// The state, whatever became of it.
    pub fn into_stored(self) -> Stored {
        match self {
            Updated::Created(stored) | Updated::Updated(stored) | Updated::Deleted(stored) => {
                stored
            }
        }
    }
}

/// Undoes allocations when dropped, unless told to keep them.
pub(super) struct Allocation(Option<Rollback>);

impl Allocation {
    pub(super) fn new(rollback: Option<Rollback>) -> Allocation {
        Allocation(rollback)
    }

    pub(super) fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        if let Some(rollback) = self.0.take() {
            rollback();
        }
    }
}

/// Creates an object. `object` is in the storage version and has passed mutating admission; `validate` is validating
/// admission. `at` names the resource in errors.
pub async fn create(
    storage: &Storage,
    context: &Context<'_>,
    at: &GroupResource,
    namespace: &str,
    object: Value,
    change: &mut dyn Change,
) -> Result<Stored, ApiError> {
    let generated = meta::name(&object).is_empty() && !meta::generate_name(&object).is_empty();
    let attempts = if generated { NAME_ATTEMPTS } else { 1 };
    let mut attempt = 1;
    loop {
        let mut object = object.clone();
        if generated {
            let name = generate_name(&storage.clock, meta::generate_name(&object));
            meta::set(&mut object, "name", name);
        }
        let name = meta::name(&object).to_string();
        match create_once(storage, context, at, namespace, object, change).await {
            Err(error) if error.is_already_exists() && generated => {
                if attempt == attempts {
                    return Err(ApiError::generate_name_conflict(at, &name, 1));
                }
                attempt += 1;
            }
            other => return other,
        }
    }
}

async fn create_once(
    storage: &Storage,
    context: &Context<'_>,
    at: &GroupResource,
    namespace: &str,
    mut object: Value,
    change: &mut dyn Change,
) -> Result<Stored, ApiError> {
    fill_system_fields(&mut object, &storage.clock);
    let allocation = Allocation::new(context.served.strategy.begin_create(context, &mut object)?);
    before_create(context, namespace, &mut object, change)?;
    change.validate(&object, None).await?;
    if !meta::resource_version(&object).is_empty() {
        return Err(ApiError::new(
            500,
            Reason::Unknown,
            "resourceVersion should not be set on objects to be created",
        ));
    }
    context.served.codec.settle(&mut object);
    let name = meta::name(&object).to_string();
    let key = context.served.key(namespace, &name);
    if context.dry_run {
        let (current, _) = storage
            .engine
            .get(&key, None)
            .await
            .map_err(|e| store_error(e, at, &name))?;
        return match current {
            Some(current) => Err(exists_error(context.served, at, &name, Some(&current))),
            None => Ok(Stored {
                object: Arc::new(object),
                json: None,
                revision: 0,
                outdated: false,
            }),
        };
    }
    match commit(storage, context, &key, Expect::Absent, object).await {
        Ok(stored) => {
            allocation.keep();
            context
                .served
                .strategy
                .after_write(context, &stored.object, None);
            Ok(stored)
        }
        Err(CommitError::Conflict(current)) => {
            Err(exists_error(context.served, at, &name, current.as_ref()))
        }
        Err(error) => {
            if error.may_be_done() {
                allocation.keep();
            }
            Err(error.into_api(at, &name))
        }
    }
}

fn exists_error(
    served: &Served,
    at: &GroupResource,
    name: &str,
    current: Option<&KeyValue>,
) -> ApiError {
    let mut error = ApiError::already_exists(at, name);
    let deleting = current
        .and_then(|kv| served.codec.decode(&kv.value).ok())
        .is_some_and(|object| meta::deletion_timestamp(&object).is_some());
    if deleting {
        error.message = format!("object is being deleted: {}", error.message);
    }
    error
}

/// `rest.BeforeCreate`.
fn before_create(
    context: &Context<'_>,
    namespace: &str,
    object: &mut Value,
    change: &mut dyn Change,
) -> Result<(), ApiError> {
    let served = context.served;
    ensure_namespace(if served.row.namespaced { namespace } else { "" }, object)?;
    served.strategy.prepare_for_create(context, object);
    let mut findings = meta::validate_object_meta(
        object,
        served.row.namespaced,
        served.strategy.name_rule(&served.row),
        &Path::new("metadata"),
    );
    findings.extend(finalizer_findings(served, object));
    findings.extend(served.strategy.validate(context, object));
    refuse_findings(served, object, findings)?;
    for warning in served.strategy.warnings_on_create(context, object) {
        change.warn(warning);
    }
    served.strategy.canonicalize(object);
    Ok(())
}

/// `rest.BeforeUpdate`.
fn before_update(
    context: &Context<'_>,
    namespace: &str,
    object: &mut Value,
    old: &Value,
    change: &mut dyn Change,
) -> Result<(), ApiError> {
    let served = context.served;
    ensure_namespace(if served.row.namespaced { namespace } else { "" }, object)?;
    match meta::generation(old) {
        0 => {
            meta::remove(object, "generation");
        }
        generation => {
            meta::set(object, "generation", generation);
        }
    }
    served.strategy.prepare_for_update(context, object, old);
    if meta::uid(object).is_empty() {
        meta::set(object, "uid", meta::uid(old));
    }
    for field in ["creationTimestamp", "deletionTimestamp"] {
        if let Some(kept) = value::get(old, &["metadata", field]).cloned() {
            meta::set(object, field, kept);
        }
    }
    if meta::deletion_grace_period_seconds(object).is_none()
        && let Some(seconds) = meta::deletion_grace_period_seconds(old)
    {
        meta::set(object, "deletionGracePeriodSeconds", seconds);
    }
    let metadata = Path::new("metadata");
    let mut findings = meta::validate_object_meta(
        object,
        served.row.namespaced,
        // An object whose name the rules of its time allowed stays updatable.
        keelson_machinery::meta::names::path_segment,
        &metadata,
    );
    findings.extend(meta::validate_object_meta_update(object, old, &metadata));
    findings.extend(finalizer_findings(served, object));
    findings.extend(served.strategy.validate_update(context, object, old));
    refuse_findings(served, object, findings)?;
    for warning in served.strategy.warnings_on_update(context, object, old) {
        change.warn(warning);
    }
    served.strategy.canonicalize(object);
    Ok(())
}

/// Built-in kinds are stricter with the names of finalizers than custom resources and the two delegated servers.
fn finalizer_findings(served: &Served, object: &Value) -> Vec<FieldError> {
    let delegated = ["apiextensions.k8s.io", "apiregistration.k8s.io"];
    match served.row.type_name {
        Some(_) if !delegated.contains(&&*served.row.group) => {
            meta::validate_kube_finalizers(object, &Path::new("metadata"))
        }
        Some(_) | None => Vec::new(),
    }
}

fn refuse_findings(
    served: &Served,
    object: &Value,
    mut findings: Vec<FieldError>,
) -> Result<(), ApiError> {
    if findings.is_empty() {
        return Ok(());
    }
    let mut seen = std::collections::HashSet::new();
    findings.retain(|finding| seen.len() < MAX_FINDINGS && seen.insert(finding.to_string()));
    Err(ApiError::invalid(
        &served.group_kind(),
        meta::name(object),
        findings,
    ))
}

/// Makes the next state of an object and stores it. With `allow_create`, one that does not exist is created.
pub async fn update(
    storage: &Storage,
    context: &Context<'_>,
    at: &GroupResource,
    namespace: &str,
    name: &str,
    allow_create: bool,
    change: &mut dyn Change,
) -> Result<Updated, ApiError> {
    let served = context.served;
    let key = served.key(namespace, name);
    let mut current = read_latest(storage, served, at, namespace, name).await?;
    for _ in 0..ATTEMPTS {
        let Some(old) = current else {
            if !allow_create {
                return Err(ApiError::not_found(at, name));
            }
            let object = change.apply(None).await?;
            return match create_once(storage, context, at, namespace, object, change).await {
                Ok(stored) => Ok(Updated::Created(stored)),
                Err(error) if error.is_already_exists() && !context.dry_run => {
                    current = read_latest(storage, served, at, namespace, name).await?;
                    continue;
                }
                Err(error) => Err(error),
            };
        };
        if let Some(uid) = change.expected_uid()
            && uid != meta::uid(&old.object)
        {
            return Err(ApiError::conflict(
                at,
                name,
                format!(
                    "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                    meta::uid(&old.object)
                ),
            ));
        }
        let mut object = change.apply(Some(&old.object)).await?;
        check_resource_version(context, at, name, &mut object, &old.object)?;
        let allocation = Allocation::new(served.strategy.begin_update(
            context,
            &mut object,
            &old.object,
        )?);
        before_update(context, namespace, &mut object, &old.object, change)?;
        change.validate(&object, Some(&old.object)).await?;

        if should_delete(context, &object, &old.object) {
            if !context.dry_run {
                match commit_delete(storage, &key, old.revision).await {
                    Ok(_) => served.strategy.after_delete(context, &old.object),
                    Err(CommitError::Conflict(Some(kv))) => {
                        current = Some(decode(served, kv).await?);
                        continue;
                    }
                    Err(CommitError::Conflict(None)) => {}
                    Err(error) => return Err(error.into_api(at, name)),
                }
            }
            return Ok(Updated::Deleted(Stored {
                object: Arc::new(object),
                json: None,
                revision: old.revision,
                outdated: false,
            }));
        }
        served.codec.settle(&mut object);
        keelson_machinery::apply::keep_times_if_same(&mut object, &old.object);
        if object == *old.object && !old.outdated {
            return Ok(Updated::Updated(old));
        }
        if context.dry_run {
            return Ok(Updated::Updated(Stored {
                object: Arc::new(object),
                json: None,
                revision: old.revision,
                outdated: false,
            }));
        }
        match commit(
            storage,
            context,
            &key,
            Expect::ModRevision(old.revision),
            object,
        )
        .await
        {
            Ok(stored) => {
                allocation.keep();
                served
                    .strategy
                    .after_write(context, &stored.object, Some(&old.object));
                return Ok(Updated::Updated(stored));
            }
            Err(CommitError::Conflict(Some(kv))) => current = Some(decode(served, kv).await?),
            Err(CommitError::Conflict(None)) => current = None,
            Err(error) => {
                if error.may_be_done() {
                    allocation.keep();
                }
                return Err(error.into_api(at, name));
            }
        }
    }
    Err(ApiError::optimistic_lock(at, name))
}

/// Whether an update ends a deletion that only waited for finalizers (upstream `ShouldDeleteDuringUpdate`).
fn should_delete(context: &Context<'_>, object: &Value, old: &Value) -> bool {
    meta::finalizers(object).is_empty()
        && meta::deletion_timestamp(old).is_some()
        && meta::deletion_grace_period_seconds(old).unwrap_or(0) == 0
        && !context.served.strategy.holds_deletion(object)
}

/// Optimistic concurrency: the client's resourceVersion must be the current one, or may be left out where the
/// resource allows it.
fn check_resource_version(
    context: &Context<'_>,
    at: &GroupResource,
    name: &str,
    object: &mut Value,
    old: &Value,
) -> Result<(), ApiError> {
    let current = meta::resource_version(old).to_string();
    let asked = meta::resource_version(object);
    if asked.is_empty() || asked == "0" {
        if context
            .served
            .strategy
            .allow_unconditional_update(&context.served.row)
        {
            meta::set(object, "resourceVersion", current);
            return Ok(());
        }
        let kind = meta::GroupKind::new(&*at.group, &*at.resource);
        return Err(ApiError::invalid(
            &kind,
            name,
            vec![FieldError::invalid(
                &Path::new("metadata").child("resourceVersion"),
                0,
                "must be specified for an update",
            )],
        ));
    }
    if let Err(error) = asked.parse::<u64>() {
        let kind = meta::GroupKind::new(&*at.group, &*at.resource);
        let _ = error;
        return Err(ApiError::invalid(
            &kind,
            name,
            vec![FieldError::invalid(
                &Path::new("resourceVersion"),
                asked,
                format!("strconv.ParseUint: parsing {asked:?}: invalid syntax"),
            )],
        ));
    }
    if asked != current {
        return Err(ApiError::optimistic_lock(at, name));
    }
    Ok(())
}

/// The newest state of an object.
pub async fn read_latest(
    storage: &Storage,
    served: &Served,
    at: &GroupResource,
    namespace: &str,
    name: &str,
) -> Result<Option<Stored>, ApiError> {
    let cache = storage
        .caches
        .cache(&served.storage_resource())
        .map_err(|e| cache_error(&e))?;
    let entry = cache
        .get(namespace, name, Freshness::Latest)
        .await
        .map_err(|e| cache_error(&e))?;
    let _ = at;
    let Some(entry) = entry else {
        return Ok(None);
    };
    let object = entry.value().map_err(|e| cache_error(&e))?;
    let outdated = is_outdated(served, &object);
    let ready = custom::is_ready(served, &entry);
    Ok(Some(Stored {
        object: Arc::new(custom::to_working(served, object).await?),
        json: ready.then(|| entry.json().clone()),
        revision: entry.revision(),
        outdated,
    }))
}

/// Whether a custom resource is stored in another version than new ones.
fn is_outdated(served: &Served, object: &Value) -> bool {
    served.custom.is_some()
        && value::str_or_empty(object, &["apiVersion"]) != served.storage_api_version()
}

/// A state as a conflict reported it.
pub(super) async fn decode(served: &Served, kv: KeyValue) -> Result<Stored, ApiError> {
    let mut object = served.codec.decode(&kv.value).map_err(|why| {
        ApiError::internal(format!("stored object {} does not decode: {why}", kv.key))
    })?;
    meta::set(&mut object, "resourceVersion", kv.mod_revision.to_string());
    let outdated = is_outdated(served, &object);
    Ok(Stored {
        object: Arc::new(custom::to_working(served, object).await?),
        json: None,
        revision: kv.mod_revision,
        outdated,
    })
}

/// Why a commit did not happen.
pub(super) enum CommitError {
    /// The key is not in the expected state.
    Conflict(Option<KeyValue>),
    /// The engine failed.
    Store(keelson_store::Error),
    /// The object has no stored form.
    Encode(String),
    /// The object nests more deeply than what is read back.
    TooDeep,
    /// The object cannot be converted to the version that is stored.
    Convert(ApiError),
}

impl CommitError {
    /// Whether the change may have happened all the same: what was allocated for it must not be given to others. It
    /// is found again, or free, after a restart.
    pub(super) fn may_be_done(&self) -> bool {
        matches!(self, CommitError::Store(keelson_store::Error::Failed(_)))
    }

    pub(super) fn into_api(self, at: &GroupResource, name: &str) -> ApiError {
        match self {
            CommitError::Conflict(Some(_)) => ApiError::optimistic_lock(at, name),
            CommitError::Conflict(None) => ApiError::not_found(at, name),
            CommitError::Store(error) => store_error(error, at, name),
            CommitError::Encode(error) => ApiError::internal(error),
            CommitError::TooDeep => ApiError::bad_request(format!(
                "{at} {name:?} nests more than {MAX_DEPTH} lists and objects into each other, managedFields included"
            )),
            CommitError::Convert(error) => error,
        }
    }
}

impl From<keelson_store::Error> for CommitError {
    fn from(error: keelson_store::Error) -> Self {
        match error {
            keelson_store::Error::Conflict { current } => CommitError::Conflict(current),
            other => CommitError::Store(other),
        }
    }
}

/// Encodes and commits a state.
pub(super) async fn commit(
    storage: &Storage,
    context: &Context<'_>,
    key: &str,
    expect: Expect,
    mut object: Value,
) -> Result<Stored, CommitError> {
    meta::remove(&mut object, "resourceVersion");
    if value::depth(&object) > MAX_DEPTH {
        return Err(CommitError::TooDeep);
    }
    let served = context.served;
    let (bytes, json) = if served.custom.is_some() && !served.is_storage_version() {
        let stored = custom::to_stored(served, object.clone()).await;
        let stored = stored.map_err(CommitError::Convert)?;
        // What clients of this version get is not what is stored.
        served.codec.encode(&stored).map(|bytes| (bytes, None))
    } else {
        served.codec.encode_both(&object)
    }
    .map_err(CommitError::Encode)?;
    let revision = storage
        .engine
        .commit(Commit {
            key: key.to_string(),
            expect,
            value: Some(bytes),
            ttl_seconds: context.served.strategy.ttl_seconds(context, &object),
        })
        .await?;
    meta::set(&mut object, "resourceVersion", revision.to_string());
    Ok(Stored {
        object: Arc::new(object),
        json: json.and_then(|json| with_revision(&json, revision)),
        revision,
        outdated: false,
    })
}

/// Removes a key, guarded by the revision of its last state.
pub(super) async fn commit_delete(
    storage: &Storage,
    key: &str,
    revision: Revision,
) -> Result<Revision, CommitError> {
    Ok(storage
        .engine
        .commit(Commit {
            key: key.to_string(),
            expect: Expect::ModRevision(revision),
            value: None,
            ttl_seconds: None,
        })
        .await?)
}

/// JSON with the resourceVersion put in, without decoding. `None` when the bytes are laid out otherwise.
fn with_revision(json: &Bytes, revision: Revision) -> Option<Bytes> {
    const METADATA: &[u8] = b"\"metadata\":{";
    // Our own encoder writes kind, apiVersion and metadata first.
    let window = &json[..json.len().min(256)];
    let at = window.windows(METADATA.len()).position(|w| w == METADATA)? + METADATA.len();
    let mut out = BytesMut::with_capacity(json.len() + 44);
    out.put_slice(&json[..at]);
    out.put_slice(b"\"resourceVersion\":\"");
    out.put_slice(revision.to_string().as_bytes());
    out.put_u8(b'"');
    if json.get(at) != Some(&b'}') {
        out.put_u8(b',');
    }
    out.put_slice(&json[at..]);
    Some(out.freeze())
}

/// `rest.FillObjectMetaSystemFields`.
fn fill_system_fields(object: &mut Value, clock: &Clock) {
    meta::set(object, "creationTimestamp", time::format(clock.now()));
    meta::set(object, "uid", clock.uuid());
}

/// Erases what only the system may set on a new object (upstream `rest.WipeObjectMetaSystemFields`).
pub fn wipe_system_fields(object: &mut Value) {
    for field in [
        "creationTimestamp",
        "uid",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
    ] {
        meta::remove(object, field);
    }
}

/// `rest.EnsureObjectNamespaceMatchesRequestNamespace`.
pub fn ensure_namespace(request_namespace: &str, object: &mut Value) -> Result<(), ApiError> {
    let of_object = meta::namespace(object);
    if of_object == request_namespace {
        return Ok(());
    }
    if of_object.is_empty() {
        meta::set(object, "namespace", request_namespace);
    } else if request_namespace.is_empty() {
        meta::remove(object, "namespace");
    } else {
        return Err(ApiError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    Ok(())
}

/// A name made of a prefix and five random characters (upstream `names.SimpleNameGenerator`).
fn generate_name(clock: &Clock, base: &str) -> String {
    const SUFFIX: usize = 5;
    // A DNS label has 63 characters; the prefix gives way to the suffix.
    const MAX_BASE: usize = 63 - SUFFIX;
    let mut cut = base.len().min(MAX_BASE);
    while !base.is_char_boundary(cut) {
        cut -= 1;
    }
    format!("{}{}", &base[..cut], clock.name_suffix(SUFFIX))
}

/// What the client hears of an engine's failure. The only place where store errors become API errors.
pub fn store_error(error: keelson_store::Error, at: &GroupResource, name: &str) -> ApiError {
    use keelson_store::Error;
    match error {
        Error::Conflict { current: Some(_) } => ApiError::optimistic_lock(at, name),
        Error::Conflict { current: None } => ApiError::not_found(at, name),
        Error::Compacted { .. } => {
            ApiError::resource_expired("The resourceVersion for the provided list is too old.")
        }
        Error::Future { requested, current } => {
            CacheError::TooLarge { requested, current }.to_api()
        }
        Error::Lagged => {
            ApiError::resource_expired("The resourceVersion for the provided watch is too old.")
        }
        unwritable @ Error::Unwritable(_) => {
            tracing::error!(resource = %at, name, error = %unwritable, "a write was refused by the store");
            ApiError::service_unavailable(unwritable.to_string())
        }
        failed @ Error::Failed(_) => {
            tracing::error!(resource = %at, name, error = %failed, "the store failed");
            ApiError::internal(failed)
        }
    }
}

/// What the client hears of a failed read; what is the server's own fault is logged.
pub fn cache_error(error: &CacheError) -> ApiError {
    if matches!(error, CacheError::Corrupt { .. } | CacheError::Store(_)) {
        tracing::error!(%error, "a read failed");
    }
    error.to_api()
}

/// Changes an object outside of its strategy, as upstream's bindings and evictions do: `edit` sees the newest state
/// and makes the next one, and runs again after a conflict.
pub async fn edit(
    storage: &Storage,
    context: &Context<'_>,
    at: &GroupResource,
    namespace: &str,
    name: &str,
    mut edit: impl FnMut(&Value) -> Result<Value, ApiError> + Send,
) -> Result<Stored, ApiError> {
    let served = context.served;
    let key = served.key(namespace, name);
    let mut current = read_latest(storage, served, at, namespace, name).await?;
    for _ in 0..ATTEMPTS {
        let Some(old) = current else {
            return Err(ApiError::not_found(at, name));
        };
        let object = edit(&old.object)?;
        if object == *old.object {
            return Ok(old);
        }
        if context.dry_run {
            return Ok(Stored {
                object: Arc::new(object),
                json: None,
                revision: old.revision,
                outdated: false,
            });
        }
        match commit(
            storage,
            context,
            &key,
            Expect::ModRevision(old.revision),
            object,
        )
        .await
        {
            Ok(stored) => return Ok(stored),
            Err(CommitError::Conflict(Some(kv))) => current = Some(decode(served, kv).await?),
            Err(CommitError::Conflict(None)) => current = None,
            Err(error) => return Err(error.into_api(at, name)),
        }
    }
    Err(ApiError::optimistic_lock(at, name))
}
