//! Follows the definitions: keeps the registry as they say, writes their status, and deletes their objects with them
//! (upstream `customresource_handler.go`, `controller/status`, `controller/finalizer`). One task for all definitions,
//! because names are given one after the other; one more for each definition that is being deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use keelson_machinery::meta::{self, GroupResource};
use keelson_machinery::schema::Schema;
use keelson_machinery::status::ApiError;
use keelson_machinery::time;
use keelson_machinery::value::{self, Value};
use serde_json::json;
use tokio::sync::watch;

use super::columns::Columns;
use super::conversion::Converter;
use super::custom::{Custom, CustomStorage};
use super::definition::{Definition, GROUP, Names, RESOURCE, Shared};
use super::status::{self, Taken, set_condition};
use super::strategy::CustomStrategy;
use super::webhook::Webhooks;
use crate::cache::types::Freshness;
use crate::loopback::Loopback;
use crate::reader::{Change, ObjectReader};
use crate::registry::delete::{self, DeleteAdmission};
use crate::registry::strategy::{Context, DeleteOptions};
use crate::registry::{Served, Table};
use crate::request::UserInfo;
use crate::server::Server;

/// By which a definition waits for its objects to go.
pub const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

/// How long after a failed write of a status it is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How often it is looked whether the objects of a definition are gone, and for how long before the definition says
/// that they are not.
const POLL: Duration = Duration::from_millis(100);
const POLLS: usize = 600;

/// What the task knows of a definition.
struct Known {
    /// The object without its schemas, which make up most of it.
    object: Value,
    /// What is wrong with the schemas.
    violations: Option<String>,
    /// The names it has been given, also when that has not come back yet.
    names: Names,
    definition: Shared,
}

/// The names that a definition's status gives.
fn definition_names(object: &Value) -> Names {
    let names = value::get(object, &["status", "acceptedNames"]).cloned();
    names
        .and_then(|names| serde_json::from_value(names).ok())
        .unwrap_or_default()
}

/// A definition without its schemas.
fn reduced(object: &Value) -> Value {
    let mut reduced = object.clone();
    if let Some(Value::Array(versions)) = value::get_mut(&mut reduced, &["spec", "versions"]) {
        for version in versions {
            value::remove(version, &["schema"]);
        }
    }
    value::remove(&mut reduced, &["metadata", "managedFields"]);
    reduced
}

struct Controller {
    server: Arc<Server>,
    webhooks: Webhooks,
    known: BTreeMap<String, Known>,
    /// Definitions whose status could not be written.
    failed: BTreeSet<String>,
    /// Uids of definitions that are being cleaned up.
    cleaning: Arc<parking_lot::Mutex<BTreeSet<String>>>,
    /// Until the first list is complete, what it brings is installed all at once.
    pending: Option<Vec<Shared>>,
}

/// Runs until the server closes; `synced` turns true when all definitions that exist at the start are served.
pub async fn run(server: Arc<Server>, webhooks: Webhooks, synced: watch::Sender<bool>) {
    let closing = server.closing.clone();
    let at = GroupResource::new(GROUP, RESOURCE);
    let mut changes = server.storage.caches.changes(&at);
    let mut controller = Controller {
        server,
        webhooks,
        known: BTreeMap::new(),
        failed: BTreeSet::new(),
        cleaning: Arc::default(),
        pending: Some(Vec::new()),
    };
    loop {
        let change = tokio::select! {
            () = closing.cancelled() => return,
            change = changes.next() => change,
            () = tokio::time::sleep(RETRY), if !controller.failed.is_empty() => {
                for name in std::mem::take(&mut controller.failed) {
                    controller.reconcile(&name).await;
                }
                continue;
            }
        };
        match change {
            None => return,
            Some(Change::Applied(object)) => controller.applied(&object).await,
            Some(Change::Deleted(object)) => controller.deleted(&object).await,
            Some(Change::Synced) => {
                controller.install_pending();
                synced.send_replace(true);
                for name in controller.known.keys().cloned().collect::<Vec<_>>() {
                    controller.reconcile(&name).await;
                }
            }
        }
    }
}

impl Controller {
    async fn applied(&mut self, object: &Value) {
        let name = meta::name(object).to_string();
        let definition = match self.read(&name, object).await {
            Ok(Some(definition)) => Arc::new(definition),
            // Gone again: the deletion follows.
            Ok(None) => return,
            Err(why) => {
                tracing::error!(definition = name, why, "cannot be read");
                return;
            }
        };
        let before = self.known.get(&name).map(|known| known.definition.clone());
        let definition = match &before {
            Some(before) if before.is_like(&definition) => {
                before.adopt(&definition);
                before.clone()
            }
            _ => definition,
        };
        let known = Known {
            object: reduced(object),
            violations: status::violations(object),
            names: definition_names(object),
            definition: definition.clone(),
        };
        self.known.insert(name.clone(), known);
        if let Some(pending) = &mut self.pending {
            pending.push(definition);
            return;
        }
        let renamed = before
            .as_ref()
            .is_some_and(|before| before.names != definition.names);
        self.install(before, &definition);
        self.reconcile(&name).await;
        if renamed {
            let group = definition.group.clone();
            self.reconsider(&group, &name).await;
        }
    }

    /// The definition from the bytes in the cache, which it shares. `seen` may come before the cache shows it.
    async fn read(&self, name: &str, seen: &Value) -> Result<Option<Definition>, String> {
        let seen = meta::resource_version(seen).parse();
        let freshness = seen.map_or(Freshness::Latest, Freshness::NotOlderThan);
        let at = GroupResource::new(GROUP, RESOURCE);
        let cache = self.server.storage.caches.cache(&at);
        let cache = cache.map_err(|e| e.to_string())?;
        let entry = cache.get("", name, freshness).await;
        match entry.map_err(|e| e.to_string())? {
            None => Ok(None),
            Some(entry) => Definition::read(entry.json().clone())
                .map(Some)
                .map_err(|e| e.to_string()),
        }
    }

    async fn deleted(&mut self, object: &Value) {
        let name = meta::name(object);
        let Some(known) = self.known.remove(name) else {
            return;
        };
        self.failed.remove(name);
        self.uninstall(&known.definition);
        // Others of the group may have waited for its names.
        let group = known.definition.group.clone();
        self.reconsider(&group, name).await;
    }

    async fn reconsider(&mut self, group: &str, except: &str) {
        let waiting: Vec<String> = self
            .known
            .iter()
            .filter(|(name, known)| {
                *name != except
                    && known.definition.group == group
                    && !status::is_true(&known.object, "NamesAccepted")
            })
            .map(|(name, _)| name.clone())
            .collect();
        for name in waiting {
            Box::pin(self.reconcile(&name)).await;
        }
    }

    /// Brings the status of a definition up to date, and begins its end.
    async fn reconcile(&mut self, name: &str) {
        let Some(known) = self.known.get(name) else {
            return;
        };
        let mut taken = Taken::default();
        let group = &known.definition.group;
        for other in self.known.values() {
            if other.definition.group == *group {
                taken.add(&other.names);
            }
        }
        let now = time::format(self.server.storage.clock.now());
        let violations = known.violations.as_deref();
        if let Some(next) = status::next(&known.object, violations, &taken, &now) {
            match patch_status(&self.server, &next).await {
                Ok(written) => {
                    if let Some(known) = self.known.get_mut(name) {
                        known.names = definition_names(&written);
                        known.object = reduced(&written);
                    }
                }
                Err(error) if error.is_not_found() => {}
                Err(error) => {
                    // A conflict is followed by the change it is with.
                    if !error.is_conflict() {
                        tracing::warn!(definition = name, error = error.message, "status");
                    }
                    self.failed.insert(name.to_string());
                }
            }
        }
        if let Some(known) = self.known.get(name)
            && meta::deletion_timestamp(&known.object).is_some()
            && meta::finalizers(&known.object).contains(&FINALIZER)
        {
            let uid = known.definition.uid.clone();
            if self.cleaning.lock().insert(uid.clone()) {
                let (server, cleaning) = (self.server.clone(), self.cleaning.clone());
                let name = name.to_string();
                tokio::spawn(async move {
                    clean_up(&server, &name, &uid).await;
                    cleaning.lock().remove(&uid);
                });
            }
        }
    }

    fn install_pending(&mut self) {
        let Some(pending) = self.pending.take() else {
            return;
        };
        let rows: Vec<_> = pending
            .iter()
            .filter(|definition| is_installable(definition))
            .map(|definition| self.rows(definition))
            .collect();
        self.server.registry.change(|table| {
            for rows in &rows {
                rows.insert(table);
            }
        });
    }

    fn install(&self, before: Option<Shared>, definition: &Shared) {
        let before = before.filter(|before| is_installable(before));
        if !is_installable(definition) {
            if let Some(before) = before {
                self.uninstall(&before);
            }
            return;
        }
        if let Some(before) = &before
            && before.is_like(definition)
        {
            return;
        }
        let same = before
            .as_ref()
            .is_some_and(|before| before.serves_as(definition));
        let rows = self.rows(definition);
        self.server.registry.change(|table| {
            if let Some(before) = &before {
                table.remove(&before.group, &before.names.plural);
            }
            rows.insert(table);
        });
        if let Some(before) = before
            && !same
        {
            // Objects read by the old schema are forgotten; watchers begin anew.
            self.server.storage.caches.retire(&resource_of(&before));
        }
    }

    fn uninstall(&self, definition: &Definition) {
        if is_installable(definition) {
            self.server
                .registry
                .change(|table| table.remove(&definition.group, &definition.names.plural));
            let at = resource_of(definition);
            self.server.storage.caches.remove(&at);
        }
    }

    fn rows(&self, definition: &Shared) -> Rows {
        let converter = Arc::new(Converter::new(definition, &self.webhooks));
        let codec = Arc::new(CustomStorage {
            definition: definition.clone(),
        });
        let mut rows = Rows::default();
        // What the type table knows of a custom resource is its metadata.
        let Some(object_type) =
            Schema::builtin().lookup("io.k8s.apimachinery.pkg.apis.meta.v1.PartialObjectMetadata")
        else {
            return rows;
        };
        for version in &definition.versions {
            let stored = version.name == definition.storage_version;
            if !version.served && !stored {
                continue;
            }
            let custom = Arc::new(Custom {
                definition: definition.clone(),
                version: version.name.clone(),
                warning: definition.deprecation_warning(version),
                columns: Columns::of(version),
                converter: converter.clone(),
            });
            let served = Arc::new(Served {
                row: Arc::new(definition.row(version)),
                object_type,
                storage_type: object_type,
                strategy: Arc::new(CustomStrategy(custom.clone())),
                codec: codec.clone(),
                stored: true,
                custom: Some(custom),
            });
            match version.served {
                true => rows.served.push(served),
                false => rows.hidden = Some(served),
            }
        }
        rows
    }
}

/// The rows of one definition.
#[derive(Default)]
struct Rows {
    served: Vec<Arc<Served>>,
    /// The stored version, when it is not served.
    hidden: Option<Arc<Served>>,
}

impl Rows {
    fn insert(&self, table: &mut Table) {
        for served in &self.served {
            let row = &served.row;
            // Built-in resources stay what they are.
            let taken = table.get(&row.group, &row.version, &row.resource);
            if taken.is_none_or(|taken| taken.custom.is_some()) {
                table.insert(served.clone());
            }
        }
        if let Some(hidden) = &self.hidden {
            table.insert_hidden(hidden.clone());
        }
    }
}

fn is_installable(definition: &Definition) -> bool {
    let names = &definition.names;
    definition.installed
        && !names.plural.is_empty()
        && !names.singular.is_empty()
        && !names.kind.is_empty()
        && !names.list_kind.is_empty()
}

fn resource_of(definition: &Definition) -> GroupResource {
    GroupResource::new(&*definition.group, &*definition.names.plural)
}

/// Writes status and finalizers of a definition, unless it has changed.
async fn patch_status(server: &Arc<Server>, object: &Value) -> Result<Value, ApiError> {
    let path = format!("/apis/{GROUP}/v1/{RESOURCE}/{}/status", meta::name(object));
    let add = |path: &str, value: Value| json!({"op": "add", "path": path, "value": value});
    let patch = json!([
        add(
            "/metadata/resourceVersion",
            meta::resource_version(object).into()
        ),
        add("/metadata/finalizers", json!(meta::finalizers(object))),
        add("/status", object.get("status").cloned().unwrap_or_default()),
    ]);
    Loopback(server.clone()).json_patch(&path, &patch).await
}

/// Deletes all objects of a definition, then lets the definition go. Tries again until it is gone.
async fn clean_up(server: &Arc<Server>, name: &str, uid: &str) {
    while !server.closing.is_cancelled() {
        match clean_up_once(server, name, uid).await {
            Ok(()) => return,
            Err(error) => {
                tracing::warn!(definition = name, error = error.message, "cleaning up");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

async fn clean_up_once(server: &Arc<Server>, name: &str, uid: &str) -> Result<(), ApiError> {
    let now = || time::format(server.storage.clock.now());
    let at = GroupResource::new(GROUP, RESOURCE);
    let found = server.storage.caches.get(&at, "", name).await?;
    let Some(found) = found.filter(|found| meta::uid(found) == uid) else {
        return Ok(());
    };
    if !meta::finalizers(&found).contains(&FINALIZER) {
        return Ok(());
    }
    let mut object = reduced(&found);
    set_condition(
        &mut object,
        "Terminating",
        "True",
        "InstanceDeletionInProgress",
        "CustomResource deletion is in progress",
        &now(),
    );
    let mut object = patch_status(server, &object).await?;
    let (status, reason, message, failed) = if status::is_true(&object, "Established") {
        match delete_instances(server, &object).await {
            Ok(()) => (
                "False",
                "InstanceDeletionCompleted",
                "removed all instances".to_string(),
                None,
            ),
            Err((reason, error)) => ("True", reason, error.message.clone(), Some(error)),
        }
    } else {
        (
            "False",
            "NeverEstablished",
            "resource was never established".to_string(),
            None,
        )
    };
    set_condition(&mut object, "Terminating", status, reason, &message, &now());
    if failed.is_none() {
        let kept: Vec<String> = meta::finalizers(&object)
            .into_iter()
            .filter(|finalizer| *finalizer != FINALIZER)
            .map(str::to_string)
            .collect();
        meta::set_finalizers(&mut object, &kept);
    }
    match patch_status(server, &object).await {
        Err(error) if !error.is_not_found() => return Err(error),
        Ok(_) | Err(_) => {}
    }
    match failed {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// Nobody is asked: the definition's deletion was admitted.
struct Admitted;

#[async_trait]
impl DeleteAdmission for Admitted {
    async fn validate(&mut self, _: &Arc<Value>) -> Result<(), ApiError> {
        Ok(())
    }
}

async fn delete_instances(
    server: &Arc<Server>,
    definition: &Value,
) -> Result<(), (&'static str, ApiError)> {
    let text = |path: &[&str]| value::str_or_empty(definition, path).to_string();
    let at = GroupResource::new(
        text(&["spec", "group"]),
        text(&["status", "acceptedNames", "plural"]),
    );
    let Some(served) = server.registry.table().storage(&at).cloned() else {
        let error = ApiError::internal(format!(
            "could not list instances: unable to find a custom resource client for {at}"
        ));
        return Err(("InstanceDeletionFailed", error));
    };
    let user = UserInfo::default();
    let context = Context {
        served: &served,
        user: &user,
        clock: &server.storage.clock,
        subresource: "",
        dry_run: false,
    };
    let list = || async {
        let listed = server.storage.caches.list(&at, None).await;
        listed.map_err(|mut error| {
            error.message = format!("could not list instances: {}", error.message);
            ("InstanceDeletionFailed", error)
        })
    };
    for object in list().await? {
        let (options, mut admitted) = (DeleteOptions::default(), Admitted);
        let deleted = delete::delete(
            &server.storage,
            &context,
            &at,
            meta::namespace(&object),
            meta::name(&object),
            &options,
            &mut admitted,
        );
        match deleted.await {
            Ok(_) => {}
            Err(error) if error.is_not_found() => {}
            Err(mut error) => {
                error.message = format!("could not issue all deletes: {}", error.message);
                return Err(("InstanceDeletionFailed", error));
            }
        }
    }
    for _ in 0..POLLS {
        if list().await?.is_empty() {
            return Ok(());
        }
        tokio::time::sleep(POLL).await;
    }
    Err((
        "InstanceDeletionCheck",
        ApiError::internal(
            "could not confirm zero CustomResources remaining: context deadline exceeded",
        ),
    ))
}
