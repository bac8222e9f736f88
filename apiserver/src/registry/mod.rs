//! The registry: which resources are served, and the one generic store below all of them.
//!
//! A resource is a catalog row, a type of the type table and a [`strategy::Strategy`]. Its versions share one
//! storage: the same keys, the same cache, objects in the storage version.

pub mod apiextensions;
pub mod apiregistration;
pub mod apps;
pub mod batch;
pub mod certificates;
pub mod conditions;
pub mod conversion;
pub mod core;
pub mod defaults;
pub mod delete;
pub mod discovery;
pub mod flowcontrol;
pub mod generic;
pub mod plan;
pub mod resource;
pub mod store;
pub mod strategies;
pub mod strategy;
pub mod validation;

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use keelson_machinery::apply::Shape;
use keelson_machinery::catalog::{Catalog, Resource, StorageFacts, api_version};
use keelson_machinery::meta::{GroupKind, GroupResource};
use keelson_machinery::schema::{Schema, Type};

use crate::cache::types::{CacheSpec, CacheSpecs, StorageCodec};
use crate::codec::body::JsonStorage;
use crate::codec::storage::{ProtobufStorage, is_stored_as_json};
use crate::extensions::Custom;

pub use self::strategy::Strategy;

/// One served version of a resource.
pub struct Served {
    /// Names, verbs, subresources and storage facts of this version.
    pub row: Arc<Resource>,
    /// The fields of this version.
    pub object_type: &'static Type,
    /// The fields of the stored version.
    pub storage_type: &'static Type,
    /// What differs from other resources.
    pub strategy: Arc<dyn Strategy>,
    /// Stored bytes to objects and back.
    pub codec: Arc<dyn StorageCodec>,
    /// Whether objects are kept at all; reviews and the like only answer.
    pub stored: bool,
    /// For custom resources: their schema and conversion. The types above then know the metadata only.
    pub custom: Option<Arc<Custom>>,
}

impl Served {
    /// `group/version`, or just the version for the core group.
    pub fn api_version(&self) -> String {
        self.row.api_version()
    }

    /// `group/version` of the stored form.
    pub fn storage_api_version(&self) -> String {
        api_version(&self.row.storage.group, &self.row.storage.version)
    }

    /// Whether this version is the stored one.
    pub fn is_storage_version(&self) -> bool {
        self.row.group == self.row.storage.group && self.row.version == self.row.storage.version
    }

    /// Whether objects of this version need no conversion between the registry and the client: built-in objects are
    /// handled in the storage version, custom ones in that of the request.
    pub fn is_working_version(&self) -> bool {
        self.custom.is_some() || self.is_storage_version()
    }

    /// `group/version` of the form in which the registry handles objects.
    pub fn working_api_version(&self) -> String {
        match &self.custom {
            Some(custom) => custom.api_version(),
            None => self.storage_api_version(),
        }
    }

    /// Whether a verb is served. Discovery no longer names all of a custom resource whose definition goes, but objects
    /// can still be let go.
    pub fn has_verb(&self, verb: &str) -> bool {
        self.custom.is_some() || self.row.has_verb(verb)
    }

    /// How apply sees the objects of this version.
    pub fn shape(&self) -> Shape<'_> {
        match &self.custom {
            Some(custom) => custom.shape(),
            None => Shape::Object(self.object_type),
        }
    }

    /// Group and resource as errors name them.
    pub fn group_resource(&self) -> GroupResource {
        GroupResource::new(&*self.row.group, &*self.row.resource)
    }

    /// Group and kind as validation errors name them.
    pub fn group_kind(&self) -> GroupKind {
        GroupKind::new(&*self.row.group, &*self.row.kind)
    }

    /// Group and resource under which the objects are stored and cached.
    pub fn storage_resource(&self) -> GroupResource {
        GroupResource::new(&*self.row.storage.group, &*self.row.resource)
    }

    /// The store's key of an object.
    pub fn key(&self, namespace: &str, name: &str) -> String {
        let namespace = self.row.namespaced.then_some(namespace);
        self.row.storage.key(namespace, Some(name))
    }
}

/// All served resources at one moment.
#[derive(Clone, Default)]
pub struct Table {
    by_resource: HashMap<(String, String, String), Arc<Served>>,
    by_storage: HashMap<GroupResource, Arc<Served>>,
    catalog: Catalog,
}

impl Table {
    /// The resource of a request path.
    pub fn get(&self, group: &str, version: &str, resource: &str) -> Option<&Arc<Served>> {
        self.by_resource
            .get(&(group.to_string(), version.to_string(), resource.to_string()))
    }

    /// The stored version of a resource (or, when it is not served, any served one).
    pub fn storage(&self, resource: &GroupResource) -> Option<&Arc<Served>> {
        self.by_storage.get(resource)
    }

    /// The served rows, as discovery shows them.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Adds or replaces a resource.
    pub fn insert(&mut self, served: Arc<Served>) {
        let row = &served.row;
        let at = served.storage_resource();
        if served.is_storage_version() || !self.by_storage.contains_key(&at) {
            self.by_storage.insert(at, served.clone());
        }
        self.by_resource.insert(
            (row.group.clone(), row.version.clone(), row.resource.clone()),
            served.clone(),
        );
        self.catalog.insert(row.clone());
    }

    /// Adds a version that is stored, but not served.
    pub fn insert_hidden(&mut self, served: Arc<Served>) {
        self.by_storage.insert(served.storage_resource(), served);
    }

    /// Takes all versions of a custom resource out.
    pub fn remove(&mut self, group: &str, resource: &str) {
        let at = GroupResource::new(group, resource);
        if self
            .by_storage
            .get(&at)
            .is_some_and(|served| served.custom.is_some())
        {
            self.by_storage.remove(&at);
        }
        let gone = |of: &str, name: &str, served: &Served| {
            of == group && name == resource && served.custom.is_some()
        };
        self.by_resource
            .retain(|(of, _, name), served| !gone(of, name, served));
        self.catalog.retain(|row| {
            row.group != group || row.resource != resource || row.type_name.is_some()
        });
    }
}

/// The served resources; changes when custom resources come and go, readers take a snapshot.
pub struct Registry {
    table: ArcSwap<Table>,
}

/// A catalog row whose type the type table does not have.
#[derive(Debug, thiserror::Error)]
#[error("the type table has no {group}/{version} {kind}")]
pub struct UnknownType {
    group: String,
    version: String,
    kind: String,
}

/// How objects of a built-in resource are stored.
fn codec(
    storage: &StorageFacts,
    storage_type: &'static Type,
    strategy: Arc<dyn Strategy>,
) -> Arc<dyn StorageCodec> {
    let version = api_version(&storage.group, &storage.version);
    match is_stored_as_json(&storage.group) {
        true => Arc::new(JsonStorage::new(&storage.kind, &version, storage_type)),
        false => Arc::new(ProtobufStorage::new(
            &storage.kind,
            &version,
            storage_type,
            strategy,
        )),
    }
}

impl Registry {
    /// Serves every row of the catalog.
    pub fn new(
        catalog: &Catalog,
        schema: &'static Schema,
        strategies: impl Fn(&str, &str) -> Arc<dyn Strategy>,
    ) -> Result<Registry, UnknownType> {
        let mut table = Table::default();
        let mut shared: HashMap<GroupResource, Arc<dyn Strategy>> = HashMap::new();
        for row in catalog.rows() {
            let lookup = |group: &str, version: &str, kind: &str| {
                schema
                    .lookup_kind(group, version, kind)
                    .ok_or_else(|| UnknownType {
                        group: group.to_string(),
                        version: version.to_string(),
                        kind: kind.to_string(),
                    })
            };
            let object_type = lookup(&row.group, &row.version, &row.kind)?;
            let stored = row.has_verb("list") && row.resource != "componentstatuses";
            let storage = &row.storage;
            let storage_type = if stored {
                lookup(&storage.group, &storage.version, &storage.kind)?
            } else {
                object_type
            };
            let at = GroupResource::new(&*storage.group, &*row.resource);
            let strategy = shared
                .entry(at)
                .or_insert_with(|| strategies(&storage.group, &row.resource))
                .clone();
            table.insert(Arc::new(Served {
                object_type,
                storage_type,
                codec: codec(storage, storage_type, strategy.clone()),
                strategy,
                stored,
                custom: None,
                row: row.clone(),
            }));
        }
        Ok(Registry {
            table: ArcSwap::from_pointee(table),
        })
    }

    /// The resources at this moment.
    pub fn table(&self) -> Arc<Table> {
        self.table.load_full()
    }

    /// Changes the table (custom resources).
    pub fn change(&self, change: impl Fn(&mut Table)) {
        self.table.rcu(|table| {
            let mut table = Table::clone(table);
            change(&mut table);
            table
        });
    }
}

impl CacheSpecs for Registry {
    fn spec(&self, resource: &GroupResource) -> Option<CacheSpec> {
        let table = self.table();
        let served = table.storage(resource)?;
        if !served.stored {
            return None;
        }
        Some(CacheSpec {
            resource: resource.clone(),
            prefix: served.row.storage.key(None, None).into(),
            namespaced: served.row.namespaced,
            fields: match &served.custom {
                Some(custom) => custom.selectable_fields(),
                None => crate::cache::fields::builtin(resource),
            },
            codec: served.codec.clone(),
        })
    }
}
