//! A CustomResourceDefinition as the server reads it. Only the small parts are read at once; the schemas stay in the
//! bytes that the cache holds anyway, and are compiled when the resource is first used.

use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use bytes::Bytes;
use keelson_machinery::catalog::{CustomSchema, Resource, StorageFacts, Subresource};
use keelson_machinery::structural::Structural;
use keelson_machinery::value::Value;
use serde::Deserialize;
use serde_json::json;

use super::rules::Rules;

/// Group of definitions.
pub const GROUP: &str = "apiextensions.k8s.io";

/// Plural name of definitions.
pub const RESOURCE: &str = "customresourcedefinitions";

/// A definition.
#[derive(Debug)]
pub struct Definition {
    /// Its name, `plural.group`.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Counts changes of the spec.
    pub generation: i64,
    /// The group of its resources.
    pub group: String,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// The names that are accepted; empty until they are.
    pub names: Names,
    /// All versions.
    pub versions: Vec<Version>,
    /// The version that is stored.
    pub storage_version: String,
    /// How versions become each other.
    pub conversion: Conversion,
    /// Whether nothing is pruned (only definitions of long ago).
    pub preserve_unknown: bool,
    /// Whether its objects are being deleted, with it.
    pub terminating: bool,
    /// Whether its resources are served.
    pub installed: bool,
    /// The whole definition, shared with the cache.
    json: ArcSwap<Bytes>,
    schemas: OnceLock<Vec<Option<Structural>>>,
    rules: OnceLock<Vec<Option<Rules>>>,
}

/// Names of a resource.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct Names {
    /// As in paths.
    pub plural: String,
    /// Of one object.
    pub singular: String,
    /// Kind of the objects.
    pub kind: String,
    /// Kind of a list of them.
    pub list_kind: String,
    /// What kubectl takes as well.
    pub short_names: Vec<String>,
    /// Categories such as `all`.
    pub categories: Vec<String>,
}

/// One version of a definition.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Version {
    /// Its name.
    pub name: String,
    /// Whether clients get it.
    #[serde(default)]
    pub served: bool,
    /// Whether it is the one that is stored.
    #[serde(default)]
    storage: bool,
    #[serde(default)]
    deprecated: bool,
    #[serde(default)]
    deprecation_warning: Option<String>,
    /// Its subresources.
    #[serde(default)]
    pub subresources: Option<Subresources>,
    /// Columns of its tables.
    #[serde(default)]
    pub additional_printer_columns: Vec<Column>,
    /// Fields that field selectors may name.
    #[serde(default)]
    pub selectable_fields: Vec<SelectableField>,
}

/// Subresources of a version.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Subresources {
    /// Present when there is a `status`.
    #[serde(default)]
    pub status: Option<Value>,
    /// Present when there is a `scale`.
    #[serde(default)]
    pub scale: Option<Scale>,
}

/// Where the members of a Scale stand in an object.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Scale {
    /// JSON path of the wanted number.
    pub spec_replicas_path: String,
    /// JSON path of the present number.
    pub status_replicas_path: String,
    /// JSON path of the selector, as text.
    #[serde(default)]
    pub label_selector_path: Option<String>,
}

/// A column of a table.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Column {
    /// Heading.
    pub name: String,
    /// OpenAPI type of the cells.
    #[serde(rename = "type")]
    pub kind: String,
    /// OpenAPI format of the cells.
    #[serde(default)]
    pub format: String,
    /// What it shows.
    #[serde(default)]
    pub description: String,
    /// 0 is always shown.
    #[serde(default)]
    pub priority: i64,
    /// Where the value stands.
    pub json_path: String,
}

/// A field that field selectors may name.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SelectableField {
    /// Where it stands.
    pub json_path: String,
}

/// How versions become each other.
#[derive(Clone, Debug, PartialEq)]
pub enum Conversion {
    /// They differ only in name.
    None,
    /// A webhook knows.
    Webhook {
        /// `spec.conversion.webhook.clientConfig`.
        client: Value,
        /// Versions of ConversionReview that the webhook takes, in its order of preference.
        review_versions: Vec<String>,
    },
}

#[derive(Deserialize)]
struct Wire {
    metadata: WireMetadata,
    spec: WireSpec,
    #[serde(default)]
    status: WireStatus,
}

#[derive(Deserialize)]
struct WireMetadata {
    name: String,
    #[serde(default)]
    uid: String,
    #[serde(default)]
    generation: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireSpec {
    group: String,
    scope: String,
    versions: Vec<Version>,
    #[serde(default)]
    conversion: Option<WireConversion>,
    #[serde(default)]
    preserve_unknown_fields: bool,
}

#[derive(Deserialize)]
struct WireConversion {
    strategy: String,
    #[serde(default)]
    webhook: Option<WireWebhook>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireWebhook {
    #[serde(default)]
    client_config: Value,
    #[serde(default)]
    conversion_review_versions: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WireStatus {
    accepted_names: Names,
    /// Null until there is one.
    conditions: Option<Vec<WireCondition>>,
}

#[derive(Deserialize)]
struct WireCondition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

#[derive(Deserialize)]
struct SchemasOf {
    spec: SchemasSpec,
}

#[derive(Deserialize)]
struct SchemasSpec {
    versions: Vec<SchemasVersion>,
}

#[derive(Deserialize)]
struct SchemasVersion {
    #[serde(default)]
    schema: Option<SchemaOf>,
}

#[derive(Deserialize)]
struct SchemaOf {
    #[serde(rename = "openAPIV3Schema", default)]
    schema: Option<Value>,
}

impl Definition {
    /// Reads the JSON of a definition.
    pub fn read(json: Bytes) -> Result<Definition, serde_json::Error> {
        let wire: Wire = serde_json::from_slice(&json)?;
        let is = |kind: &str| {
            let mut all = wire.status.conditions.iter().flatten();
            all.any(|c| c.kind == kind && c.status == "True")
        };
        let (terminating, accepted) = (is("Terminating"), is("NamesAccepted"));
        let installed = accepted || is("Established");
        let storage_version = wire
            .spec
            .versions
            .iter()
            .find(|version| version.storage)
            .map(|version| version.name.clone())
            .unwrap_or_default();
        let conversion = match wire.spec.conversion {
            Some(WireConversion {
                strategy,
                webhook: Some(webhook),
            }) if strategy == "Webhook" => Conversion::Webhook {
                client: webhook.client_config,
                review_versions: webhook.conversion_review_versions,
            },
            _ => Conversion::None,
        };
        Ok(Definition {
            name: wire.metadata.name,
            uid: wire.metadata.uid,
            generation: wire.metadata.generation,
            group: wire.spec.group,
            namespaced: wire.spec.scope == "Namespaced",
            names: wire.status.accepted_names,
            versions: wire.spec.versions,
            storage_version,
            conversion,
            preserve_unknown: wire.spec.preserve_unknown_fields,
            terminating,
            installed,
            json: ArcSwap::from_pointee(json),
            schemas: OnceLock::new(),
            rules: OnceLock::new(),
        })
    }

    /// Whether both serve the same in the same way; what else changed does not matter to clients at work.
    pub fn serves_as(&self, other: &Definition) -> bool {
        self.uid == other.uid && self.generation == other.generation && self.names == other.names
    }

    /// Whether nothing that is served changed.
    pub fn is_like(&self, other: &Definition) -> bool {
        self.serves_as(other)
            && self.terminating == other.terminating
            && self.installed == other.installed
    }

    /// Takes over the bytes of a newer state that serves the same, so that the older ones need not be kept.
    pub fn adopt(&self, newer: &Definition) {
        self.json.store(newer.json.load_full());
    }

    /// The schema of each version as the definition has it.
    fn raw_schemas(&self) -> Vec<Option<Value>> {
        // The bytes were read as a definition before; only a schema that is none could fail, and none is stored.
        let Ok(all) = serde_json::from_slice::<SchemasOf>(&self.json.load()) else {
            return Vec::new();
        };
        all.spec
            .versions
            .into_iter()
            .map(|version| version.schema.and_then(|schema| schema.schema))
            .collect()
    }

    /// The `openAPIV3Schema` of a version.
    pub fn raw_schema(&self, version: &str) -> Option<Value> {
        let at = self.versions.iter().position(|v| v.name == version)?;
        self.raw_schemas().into_iter().nth(at).flatten()
    }

    /// The schema of a version as documents show it.
    fn published_schema(&self, version: &str) -> Option<Value> {
        let mut schema = self.raw_schema(version)?;
        let version = self.versions.iter().find(|v| v.name == version)?;
        let fields: Vec<Value> = version
            .selectable()
            .map(|field| json!({ "fieldPath": field }))
            .collect();
        if !fields.is_empty() {
            schema["x-kubernetes-selectable-fields"] = Value::Array(fields);
        }
        Some(schema)
    }

    /// The compiled schema of a version; `None` when the definition has no such version.
    pub fn schema(&self, version: &str) -> Option<&Structural> {
        let at = self.versions.iter().position(|v| v.name == version)?;
        self.schemas().get(at)?.as_ref()
    }

    fn schemas(&self) -> &[Option<Structural>] {
        self.schemas.get_or_init(|| {
            let compiled = |schema: Option<Value>| schema.as_ref().map(Structural::parse_root);
            self.raw_schemas().into_iter().map(compiled).collect()
        })
    }

    /// The compiled rules of a version's schema; `None` when it has none.
    pub fn rules(&self, version: &str) -> Option<&Rules> {
        let at = self.versions.iter().position(|v| v.name == version)?;
        let rules = self.rules.get_or_init(|| {
            let compiled = |schema: &Option<Structural>| schema.as_ref().and_then(Rules::of);
            self.schemas().iter().map(compiled).collect()
        });
        rules.get(at)?.as_ref()
    }

    /// What names a state of the definition in documents made of it.
    pub fn revision(&self) -> String {
        format!("{}:{}", self.uid, self.generation)
    }

    /// The catalog row of a version.
    pub fn row(self: &Arc<Self>, version: &Version) -> Resource {
        let list = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
        let verbs: &[&str] = if self.terminating {
            &["delete", "deletecollection", "get", "list", "watch"]
        } else {
            &[
                "delete",
                "deletecollection",
                "get",
                "list",
                "patch",
                "create",
                "update",
                "watch",
            ]
        };
        let mut subresources = Vec::new();
        if version.scale().is_some() {
            subresources.push(Subresource {
                name: "scale".to_string(),
                verbs: list(&["get", "patch", "update"]),
                kind: "Scale".to_string(),
                group: "autoscaling".to_string(),
                version: "v1".to_string(),
            });
        }
        if version.has_status() {
            subresources.push(Subresource {
                name: "status".to_string(),
                verbs: list(&["get", "patch", "update"]),
                kind: self.names.kind.clone(),
                group: self.group.clone(),
                version: version.name.clone(),
            });
        }
        Resource {
            group: self.group.clone(),
            version: version.name.clone(),
            resource: self.names.plural.clone(),
            singular: self.names.singular.clone(),
            kind: self.names.kind.clone(),
            list_kind: self.names.list_kind.clone(),
            namespaced: self.namespaced,
            short_names: self.names.short_names.clone(),
            categories: self.names.categories.clone(),
            verbs: list(verbs),
            subresources,
            type_name: None,
            schema: Some({
                let (definition, version) = (self.clone(), version.name.clone());
                CustomSchema {
                    revision: self.revision(),
                    make: Arc::new(move || definition.published_schema(&version)),
                }
            }),
            storage: StorageFacts::custom(
                &self.group,
                &self.storage_version,
                &self.names.plural,
                &self.names.kind,
            ),
        }
    }

    /// What clients of a deprecated version are told.
    pub fn deprecation_warning(&self, version: &Version) -> Option<String> {
        if !version.deprecated {
            return None;
        }
        if let Some(own) = &version.deprecation_warning {
            return Some(own.clone());
        }
        use keelson_machinery::catalog::compare_versions;
        let kind = &self.names.kind;
        let told = format!("{}/{} {kind} is deprecated", self.group, version.name);
        let newest = self
            .versions
            .iter()
            .filter(|v| {
                v.served && !v.deprecated && compare_versions(&version.name, &v.name).is_lt()
            })
            .max_by(|a, b| compare_versions(&a.name, &b.name));
        Some(match newest {
            Some(newest) => format!("{told}; use {}/{} {kind}", self.group, newest.name),
            None => told,
        })
    }
}

impl Version {
    /// Whether there is a `status` subresource.
    pub fn has_status(&self) -> bool {
        self.subresources
            .as_ref()
            .is_some_and(|sub| sub.status.is_some())
    }

    /// The `scale` subresource.
    pub fn scale(&self) -> Option<&Scale> {
        self.subresources.as_ref()?.scale.as_ref()
    }

    /// Names by which field selectors call the selectable fields.
    pub fn selectable(&self) -> impl Iterator<Item = &str> {
        self.selectable_fields
            .iter()
            .map(|field| field.json_path.trim_start_matches('.'))
    }
}

/// A shared definition.
pub type Shared = Arc<Definition>;
