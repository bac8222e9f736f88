//! The resource catalog: which resources are served, under which names, with which verbs, where they are stored and
//! how discovery orders them. Built-in rows come from the API facts; a custom resource definition adds rows of the
//! same kind at run time.

mod columns;
mod storage;

pub use columns::{Column, columns};
pub use storage::{StorageFacts, compare_versions, priority};

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, LazyLock};

use crate::schema::{Schema, Type};
use crate::value::Value;

/// One served resource of one group version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// API group; empty for the core group.
    pub group: String,
    /// API version.
    pub version: String,
    /// Plural name, as in paths.
    pub resource: String,
    /// Singular name.
    pub singular: String,
    /// Kind of the objects.
    pub kind: String,
    /// Kind of a list of them.
    pub list_kind: String,
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// Short names that kubectl accepts.
    pub short_names: Vec<String>,
    /// Categories such as `all`.
    pub categories: Vec<String>,
    /// Verbs, as discovery lists them.
    pub verbs: Vec<String>,
    /// Subresources, sorted by name.
    pub subresources: Vec<Subresource>,
    /// Name of the kind's type in the [`Schema`]; `None` for custom resources.
    pub type_name: Option<String>,
    /// The schema of a custom resource's kind.
    pub schema: Option<CustomSchema>,
    /// Where and as what the objects are stored.
    pub storage: StorageFacts,
}

/// The schema of a custom resource's kind, as documents show it; made when one asks for it.
#[derive(Clone)]
pub struct CustomSchema {
    /// Names this state of the schema: equal revisions are equal schemas.
    pub revision: String,
    /// Makes the `openAPIV3Schema`; `None` when there is none.
    pub make: Arc<dyn Fn() -> Option<Value> + Send + Sync>,
}

impl fmt::Debug for CustomSchema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.revision)
    }
}

impl PartialEq for CustomSchema {
    fn eq(&self, other: &CustomSchema) -> bool {
        self.revision == other.revision
    }
}

impl Eq for CustomSchema {}

/// One subresource of a [`Resource`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subresource {
    /// Path segment, such as `status`.
    pub name: String,
    /// Verbs, as discovery lists them.
    pub verbs: Vec<String>,
    /// Kind read and written there.
    pub kind: String,
    /// Group of that kind.
    pub group: String,
    /// Version of that kind.
    pub version: String,
}

impl Resource {
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        api_version(&self.group, &self.version)
    }

    /// `pods` or `deployments.apps`, as messages name a resource.
    pub fn group_resource(&self) -> String {
        if self.group.is_empty() {
            self.resource.clone()
        } else {
            format!("{}.{}", self.resource, self.group)
        }
    }

    /// The type of the objects; `None` for custom resources.
    pub fn schema_type(&self) -> Option<&'static Type> {
        Schema::builtin().lookup(self.type_name.as_deref()?)
    }

    /// Whether `verb` is served on the resource itself.
    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }

    /// The subresource of this name.
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }
}

/// Joins group and version as `apiVersion` has them.
pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() {
        version.to_string()
    } else {
        format!("{group}/{version}")
    }
}

/// Splits `apiVersion` into group and version (`schema.ParseGroupVersion`); `None` when it has more than one slash.
pub fn parse_api_version(text: &str) -> Option<(&str, &str)> {
    match text.split_once('/') {
        None => Some(("", text)),
        Some((_, version)) if version.contains('/') => None,
        Some((group, version)) => Some((group, version)),
    }
}

/// A group with its versions, as discovery lists them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// API group; empty for the core group.
    pub name: String,
    /// Versions, the preferred one first.
    pub versions: Vec<String>,
}

/// The set of served resources. Cheap to clone row by row; rows are shared.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    rows: Vec<Arc<Resource>>,
    by_resource: HashMap<(String, String, String), usize>,
    by_kind: HashMap<(String, String, String), usize>,
}

impl Catalog {
    /// The resources that v1.36 serves by default.
    pub fn builtin() -> &'static Catalog {
        static BUILTIN: LazyLock<Catalog> = LazyLock::new(|| parse(include_str!("resources.tsv")));
        &BUILTIN
    }

    /// An empty catalog.
    pub fn new() -> Catalog {
        Catalog::default()
    }

    /// Adds a row; a row of the same group, version and resource is replaced.
    pub fn insert(&mut self, row: Arc<Resource>) {
        let key = (row.group.clone(), row.version.clone(), row.resource.clone());
        if self.by_resource.contains_key(&key) {
            self.remove(&key.0, &key.1, &key.2);
        }
        self.by_resource.insert(key, self.rows.len());
        self.by_kind.insert(
            (row.group.clone(), row.version.clone(), row.kind.clone()),
            self.rows.len(),
        );
        self.rows.push(row);
    }

    /// Takes a row out and returns it.
    pub fn remove(&mut self, group: &str, version: &str, resource: &str) -> Option<Arc<Resource>> {
        let at = self
            .rows
            .iter()
            .position(|r| r.group == group && r.version == version && r.resource == resource)?;
        let row = self.rows.remove(at);
        // Removal is rare (a definition was deleted), so the indexes are simply made anew.
        let rows = std::mem::take(&mut self.rows);
        *self = Catalog::default();
        for row in rows {
            self.insert(row);
        }
        Some(row)
    }

    /// Keeps the rows for which `keep` holds.
    pub fn retain(&mut self, keep: impl Fn(&Resource) -> bool) {
        let rows = std::mem::take(&mut self.rows);
        *self = Catalog::default();
        for row in rows.into_iter().filter(|row| keep(row)) {
            self.insert(row);
        }
    }

    /// The row of a resource.
    pub fn resource(&self, group: &str, version: &str, resource: &str) -> Option<&Arc<Resource>> {
        let key = (group.to_string(), version.to_string(), resource.to_string());
        self.rows.get(*self.by_resource.get(&key)?)
    }

    /// The row whose objects are of a kind.
    pub fn kind(&self, group: &str, version: &str, kind: &str) -> Option<&Arc<Resource>> {
        let key = (group.to_string(), version.to_string(), kind.to_string());
        self.rows.get(*self.by_kind.get(&key)?)
    }

    /// All rows, in the order added (for the built-in ones by group, version and name).
    pub fn rows(&self) -> &[Arc<Resource>] {
        &self.rows
    }

    /// The rows of one group version, by name.
    pub fn group_version<'a>(
        &'a self,
        group: &'a str,
        version: &'a str,
    ) -> impl Iterator<Item = &'a Arc<Resource>> {
        self.rows
            .iter()
            .filter(move |r| r.group == group && r.version == version)
    }

    /// The served groups in discovery order, the core group first, each with its versions in order of preference.
    pub fn groups(&self) -> Vec<Group> {
        let mut pairs: Vec<(&str, &str)> = Vec::new();
        for row in &self.rows {
            let pair = (row.group.as_str(), row.version.as_str());
            if !pairs.contains(&pair) {
                pairs.push(pair);
            }
        }
        // The group's place is its highest priority over all versions, as the aggregator sorts APIServices.
        let group_priority = |group: &str| {
            pairs
                .iter()
                .filter(|p| p.0 == group)
                .map(|p| storage::priority(p.0, p.1).0)
                .max()
                .unwrap_or_default()
        };
        let mut groups: Vec<Group> = Vec::new();
        for (group, version) in &pairs {
            match groups.iter_mut().find(|g| g.name == *group) {
                Some(found) => found.versions.push(version.to_string()),
                None => groups.push(Group {
                    name: group.to_string(),
                    versions: vec![version.to_string()],
                }),
            }
        }
        groups.sort_by(|a, b| {
            group_priority(&b.name)
                .cmp(&group_priority(&a.name))
                .then_with(|| a.name.cmp(&b.name))
        });
        for group in &mut groups {
            let name = group.name.clone();
            group.versions.sort_by(|a, b| {
                storage::priority(&name, b)
                    .1
                    .cmp(&storage::priority(&name, a).1)
                    .then_with(|| storage::compare_versions(b, a))
            });
        }
        groups
    }

    /// The preferred version of a group.
    pub fn preferred_version(&self, group: &str) -> Option<String> {
        self.groups()
            .into_iter()
            .find(|g| g.name == group)?
            .versions
            .into_iter()
            .next()
    }
}

fn parse(text: &str) -> Catalog {
    let list = |text: &str| -> Vec<String> {
        text.split(',')
            .filter(|s| !s.is_empty())
            .map(str::to_string)
            .collect()
    };
    let mut rows: Vec<Resource> = Vec::new();
    for line in text.lines().skip(1) {
        let cells: Vec<&str> = line.split('\t').collect();
        let [
            group,
            version,
            resource,
            subresource,
            singular,
            kind,
            namespaced,
            short,
            categories,
            verbs,
            foreign,
        ] = cells[..]
        else {
            continue;
        };
        let mut verbs = list(verbs);
        verbs.sort();
        if subresource.is_empty() {
            rows.push(Resource {
                group: group.to_string(),
                version: version.to_string(),
                resource: resource.to_string(),
                singular: singular.to_string(),
                kind: kind.to_string(),
                list_kind: format!("{kind}List"),
                namespaced: namespaced == "true",
                short_names: list(short),
                categories: list(categories),
                verbs,
                subresources: Vec::new(),
                type_name: Schema::builtin()
                    .lookup_kind(group, version, kind)
                    .map(|t| t.name().to_string()),
                schema: None,
                storage: StorageFacts::builtin(group, resource, kind),
            });
        } else if let Some(parent) = rows.iter_mut().find(|r| {
            (r.group.as_str(), r.version.as_str(), r.resource.as_str())
                == (group, version, resource)
        }) {
            let (group, version) = if foreign.is_empty() {
                (group, version)
            } else {
                parse_api_version(foreign).unwrap_or((group, version))
            };
            parent.subresources.push(Subresource {
                name: subresource.to_string(),
                verbs,
                kind: kind.to_string(),
                group: group.to_string(),
                version: version.to_string(),
            });
        }
    }
    let mut catalog = Catalog::new();
    for row in rows {
        catalog.insert(Arc::new(row));
    }
    catalog
}

#[cfg(test)]
mod tests;
