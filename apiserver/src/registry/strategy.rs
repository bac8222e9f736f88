//! [`Strategy`]: everything that differs between resources, seen from the one generic path.
//!
//! # Adding or widening a strategy
//! 1. Make `registry/<group>/<kind>.rs` (`core`, `apps`, ... ; the group's first label) with a unit struct that
//!    implements [`Strategy`]. Override only what differs: the defaults of the trait are what upstream's plain
//!    strategies do, driven by the catalog row (status subresource, generation, namespacing).
//! 2. Register it by one line in [`super::strategies::lookup`].
//! 3. Put its cases into `tests/` as data.
//!
//! Order of the calls, as upstream's `rest.BeforeCreate` and `rest.BeforeUpdate`:
//! - decode -> [`Strategy::default`] -> mutating admission -> [`Strategy::begin_create`] (allocations) ->
//!   [`Strategy::prepare_for_create`] -> [`Strategy::validate`] -> generic metadata validation ->
//!   [`Strategy::warnings_on_create`] -> [`Strategy::canonicalize`] -> validating admission -> commit.
//! - update and patch likewise with the `_update` methods; a conflict runs all of it again.
//!
//! Objects are values in the *storage version* of the resource, defaulted. Defaulting also runs on objects read
//! from storage that were written without it, so it must be idempotent and must not depend on the request.

use keelson_machinery::catalog::Resource;
use keelson_machinery::clock::Clock;
use keelson_machinery::meta::NameRule;
use keelson_machinery::status::ApiError;
use keelson_machinery::status::field::FieldError;
use keelson_machinery::value::Value;

use super::Served;
use crate::request::UserInfo;

/// What a strategy may know about the request it serves.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The resource.
    pub served: &'a Served,
    /// Who asks.
    pub user: &'a UserInfo,
    /// Time and randomness.
    pub clock: &'a Clock,
    /// The subresource written to (`status`, `ephemeralcontainers`, `resize`, `approval`, `finalize`); empty for
    /// the object itself.
    pub subresource: &'a str,
    /// Nothing will be stored; allocations must not stick.
    pub dry_run: bool,
}

impl Context<'_> {
    /// The catalog row.
    pub fn row(&self) -> &Resource {
        &self.served.row
    }
}

/// What happens to dependents when the client does not say (`rest.GarbageCollectionPolicy`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GarbageCollection {
    /// Dependents are deleted in the background.
    Background,
    /// Dependents are orphaned.
    Orphan,
    /// The resource takes no part in garbage collection (events).
    Unsupported,
}

/// `metav1.DeleteOptions`, as far as the registry acts on them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    /// Seconds until the object is removed; `None` takes the resource's default.
    pub grace_period_seconds: Option<i64>,
    /// The object must have this uid.
    pub precondition_uid: Option<String>,
    /// The object must have this resourceVersion.
    pub precondition_resource_version: Option<String>,
    /// `Orphan`, `Background` or `Foreground`.
    pub propagation_policy: Option<String>,
    /// The older form of the above.
    pub orphan_dependents: Option<bool>,
    /// `dryRun=All`.
    pub dry_run: bool,
}

/// Gives back what a failed write had allocated; runs unless the write succeeded.
pub type Rollback = Box<dyn FnOnce() + Send>;

/// What differs between resources. See the module documentation for the order of the calls.
pub trait Strategy: Send + Sync + 'static {
    /// Upstream's defaulting functions (`SetDefaults_*`). Idempotent.
    fn default(&self, object: &mut Value) {
        let _ = object;
    }

    /// Clears what clients may not set on create, and sets what the server owns. The default wipes `status` where
    /// there is a status subresource and starts `metadata.generation` where upstream keeps one.
    fn prepare_for_create(&self, context: &Context<'_>, object: &mut Value) {
        super::generic::prepare_for_create(context, object);
    }

    /// Validates a new object, all findings at once. Generic metadata validation is not this method's task.
    /// The default is what [`super::validation`] knows of the type.
    fn validate(&self, context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        super::validation::object(object, context.served.storage_type)
    }

    /// The rule for names (upstream's `ValidateNameFunc`). The default looks into a short list; what is not on it must
    /// be a DNS subdomain.
    fn name_rule(&self, row: &Resource) -> NameRule {
        super::generic::name_rule(row)
    }

    /// Warnings for the client about a valid new object; no "Warning:" prefix.
    fn warnings_on_create(&self, context: &Context<'_>, object: &Value) -> Vec<String> {
        let _ = (context, object);
        Vec::new()
    }

    /// Brings a valid object into its canonical form.
    fn canonicalize(&self, object: &mut Value) {
        let _ = object;
    }

    /// Keeps what this request may not change, and bumps the generation. The default: a plain update keeps the old
    /// `status`, a `status` update keeps everything else, and the generation grows when anything outside
    /// `metadata` and `status` changed.
    fn prepare_for_update(&self, context: &Context<'_>, object: &mut Value, old: &Value) {
        super::generic::prepare_for_update(context, object, old);
    }

    /// Validates a change. `context.subresource` tells a status update apart. The default validates the new object
    /// as if it were created, and what changed, unless only the status is written.
    fn validate_update(
        &self,
        context: &Context<'_>,
        object: &Value,
        old: &Value,
    ) -> Vec<FieldError> {
        if context.subresource == "status" {
            return Vec::new();
        }
        let mut found = self.validate(context, object);
        found.extend(super::validation::changes(
            &context.row().storage.group,
            &context.row().resource,
            context.subresource,
            object,
            old,
        ));
        found
    }

    /// Warnings for the client about a valid change.
    fn warnings_on_update(
        &self,
        context: &Context<'_>,
        object: &Value,
        old: &Value,
    ) -> Vec<String> {
        let _ = (context, object, old);
        Vec::new()
    }

    /// Whether PUT creates what does not exist. The default looks into upstream's list.
    fn allow_create_on_update(&self, row: &Resource) -> bool {
        super::generic::creates_on_update(row)
    }

    /// Whether an update without `metadata.resourceVersion` overwrites. The default looks into upstream's list.
    fn allow_unconditional_update(&self, row: &Resource) -> bool {
        super::generic::updates_unconditionally(row)
    }

    /// `None`: the kind is deleted at once. `Some(seconds)`: it is first marked, and removed by whoever owns it
    /// after that time; 0 removes at once. (upstream `RESTGracefulDeleteStrategy.CheckGracefulDelete`)
    fn graceful_delete_seconds(&self, object: &Value, options: &DeleteOptions) -> Option<i64> {
        let _ = (object, options);
        None
    }

    /// What happens to dependents by default.
    fn garbage_collection(&self) -> GarbageCollection {
        GarbageCollection::Background
    }

    /// Whether a DELETE answers with the object that was deleted instead of a `Status`. The default looks into
    /// upstream's list.
    fn returns_deleted_object(&self, row: &Resource) -> bool {
        super::generic::returns_deleted(row)
    }

    /// Seconds after which the store forgets the object by itself (events).
    fn ttl_seconds(&self, context: &Context<'_>, object: &Value) -> Option<u64> {
        let _ = (context, object);
        None
    }

    /// Allocates what the new object needs (service addresses) and writes it into the object. The returned
    /// [`Rollback`] runs if the write fails or was a dry run.
    fn begin_create(
        &self,
        context: &Context<'_>,
        object: &mut Value,
    ) -> Result<Option<Rollback>, ApiError> {
        let _ = (context, object);
        Ok(None)
    }

    /// Like [`Strategy::begin_create`] for a change.
    fn begin_update(
        &self,
        context: &Context<'_>,
        object: &mut Value,
        old: &Value,
    ) -> Result<Option<Rollback>, ApiError> {
        let _ = (context, object, old);
        Ok(None)
    }

    /// A create or update was committed: gives back what the change no longer needs. `old` is `None` for creates.
    fn after_write(&self, context: &Context<'_>, object: &Value, old: Option<&Value>) {
        let _ = (context, object, old);
    }

    /// The object is gone from the store: gives back what it held.
    fn after_delete(&self, context: &Context<'_>, object: &Value) {
        let _ = (context, object);
    }

    /// Whether the object has reasons of its own to stay while it is being deleted (a namespace's `spec.finalizers`).
    fn holds_deletion(&self, object: &Value) -> bool {
        let _ = object;
        false
    }

    /// A deletion begins, and `object` stays for the time being: its deletionTimestamp has just been set.
    fn deletion_begins(&self, object: &mut Value) {
        let _ = object;
    }
}
