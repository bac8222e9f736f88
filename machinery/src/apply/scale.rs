//! Field ownership between an object and its `scale` subresource (upstream `managedfields.ScaleHandler`): a Scale
//! shows who owns the replicas of its parent, and what a write to it changes goes back into the parent's entries.

use super::managed::{ManagedFields, Manager, Owned};
use super::path::PathElement;
use super::set::Set;
use crate::value::Value;

/// The version of Scale.
pub const SCALE_API_VERSION: &str = "autoscaling/v1";

/// The entries of a parent while its scale is written.
#[derive(Clone, Debug)]
pub struct ScaleFields {
    parent: ManagedFields,
    /// The version in which the parent is written.
    api_version: String,
    /// Each version of the parent with the path of its replicas, `None` where that version has none.
    paths: Vec<(String, Option<Vec<PathElement>>)>,
}

impl ScaleFields {
    /// For a parent in `api_version`; `paths` has the versions it is known in.
    ///
    /// # Errors
    /// Entries that cannot be read.
    pub fn new(
        parent: &Value,
        api_version: &str,
        paths: Vec<(String, Option<Vec<PathElement>>)>,
    ) -> Result<ScaleFields, String> {
        Ok(ScaleFields {
            parent: ManagedFields::decode(parent)?,
            api_version: api_version.to_string(),
            paths,
        })
    }

    fn path(&self, api_version: &str) -> Option<Option<&[PathElement]>> {
        let found = self.paths.iter().find(|(of, _)| of == api_version);
        found.map(|(_, path)| path.as_deref())
    }

    /// Gives a Scale the entries of those who own the replicas.
    pub fn show(&self, scale: &mut Value) {
        let replicas = Set::of_fields(&[&["spec", "replicas"]]);
        let owners = self.parent.0.iter().filter(|(_, owned)| {
            matches!(self.path(&owned.api_version), Some(Some(path)) if owned.set.has(path))
        });
        let shown = owners.map(|(manager, owned)| {
            let shown = Owned {
                api_version: SCALE_API_VERSION.to_string(),
                set: replicas.clone(),
                time: owned.time.clone(),
            };
            (manager.clone(), shown)
        });
        ManagedFields(shown.collect()).encode(scale);
    }

    /// Writes into the parent what became of its entries by a write to the Scale.
    ///
    /// # Errors
    /// Entries of the Scale that cannot be read.
    pub fn take_back(&self, scale: &Value, parent: &mut Value) -> Result<(), String> {
        let mut scale = ManagedFields::decode(scale)?.0;
        let mut out = ManagedFields::default();
        for (manager, owned) in &self.parent.0 {
            // What is written in a version nobody knows is dropped.
            let Some(path) = self.path(&owned.api_version) else {
                continue;
            };
            let path = path.filter(|path| owned.set.has(path));
            let Some(path) = path else {
                out.0.insert(manager.clone(), owned.clone());
                continue;
            };
            if scale.remove(manager).is_some() {
                out.0.insert(manager.clone(), owned.clone());
                continue;
            }
            let mut replicas = Set::default();
            replicas.insert(path);
            let set = owned.set.difference(&replicas);
            if !set.is_empty() {
                let left = Owned {
                    set,
                    ..owned.clone()
                };
                out.0.insert(manager.clone(), left);
            }
        }
        let replicas = [PathElement::field("spec"), PathElement::field("replicas")];
        for (manager, owned) in scale {
            let Some(Some(path)) = self.path(&self.api_version) else {
                continue;
            };
            if !owned.set.has(&replicas) {
                continue;
            }
            let mut set = Set::default();
            set.insert(path);
            let manager = Manager::new(
                &manager.name,
                manager.operation,
                &self.api_version,
                &manager.subresource,
            );
            let held = out.0.remove(&manager);
            let set = held.map_or(set.clone(), |held| held.set.union(&set));
            out.0.insert(
                manager,
                Owned {
                    api_version: self.api_version.clone(),
                    set,
                    time: owned.time,
                },
            );
        }
        out.encode(parent);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn paths() -> Vec<(String, Option<Vec<PathElement>>)> {
        let replicas = vec![PathElement::field("spec"), PathElement::field("replicas")];
        vec![("apps/v1".to_string(), Some(replicas))]
    }

    fn entry(manager: &str, operation: &str, api_version: &str, fields: Value) -> Value {
        json!({"manager": manager, "operation": operation, "apiVersion": api_version,
            "fieldsType": "FieldsV1", "fieldsV1": fields})
    }

    #[test]
    fn there_and_back() {
        let replicas = || json!({"f:spec": {"f:replicas": {}}});
        let both = || json!({"f:spec": {"f:replicas": {}, "f:selector": {}}});
        let selector = || json!({"f:spec": {"f:selector": {}}});
        let applied = |fields| entry("a", "Apply", "apps/v1", fields);
        let updated = |fields| entry("u", "Update", "apps/v1", fields);
        let shown = |manager, operation| entry(manager, operation, "autoscaling/v1", replicas());
        for (parent, wanted_shown, scale, wanted) in [
            // An owner of nothing but other fields is not shown, and stays.
            (
                vec![applied(selector())],
                vec![],
                vec![],
                vec![applied(selector())],
            ),
            // An applier that still owns the replicas keeps its entry as it is.
            (
                vec![applied(both())],
                vec![shown("a", "Apply")],
                vec![shown("a", "Apply")],
                vec![applied(both())],
            ),
            // One that lost them keeps the rest.
            (
                vec![applied(both()), updated(replicas())],
                vec![shown("a", "Apply"), shown("u", "Update")],
                vec![shown("b", "Apply")],
                vec![
                    applied(selector()),
                    entry("b", "Apply", "apps/v1", replicas()),
                ],
            ),
            // One who updates keeps one entry for both.
            (
                vec![updated(both())],
                vec![shown("u", "Update")],
                vec![shown("u", "Update")],
                vec![updated(both())],
            ),
            // Versions nobody knows are dropped.
            (
                vec![entry("a", "Apply", "apps/v0", both())],
                vec![],
                vec![],
                vec![],
            ),
        ] {
            let object = |entries: Vec<Value>| match entries.is_empty() {
                true => json!({"metadata": {}}),
                false => json!({"metadata": {"managedFields": entries}}),
            };
            let mut parent = object(parent);
            let fields = ScaleFields::new(&parent, "apps/v1", paths()).unwrap();
            let mut seen = json!({"metadata": {}});
            fields.show(&mut seen);
            assert_eq!(seen, object(wanted_shown));
            fields.take_back(&object(scale), &mut parent).unwrap();
            assert_eq!(parent, object(wanted));
        }
    }
}
