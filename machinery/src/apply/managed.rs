//! `metadata.managedFields`: who owns which fields (upstream `managedfields/internal`).

use std::collections::BTreeMap;

use serde_json::json;

use super::set::Set;
use crate::time;
use crate::value::{self, Value};

/// How a manager came to own its fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// By applying a configuration.
    Apply,
    /// By any other write.
    Update,
}

impl Operation {
    /// As the API writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Operation::Apply => "Apply",
            Operation::Update => "Update",
        }
    }
}

/// What tells one entry from another (upstream `BuildManagerIdentifier`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Manager {
    /// The manager's name.
    pub name: String,
    /// How it writes.
    pub operation: Operation,
    /// The version it writes in; empty for appliers, who keep one entry over all versions.
    pub api_version: String,
    /// The subresource it writes to; empty for the object itself.
    pub subresource: String,
}

impl Manager {
    /// The manager of a request; an unnamed one is `unknown`.
    pub fn new(name: &str, operation: Operation, api_version: &str, subresource: &str) -> Manager {
        Manager {
            name: if name.is_empty() { "unknown" } else { name }.to_string(),
            operation,
            api_version: match operation {
                Operation::Apply => String::new(),
                Operation::Update => api_version.to_string(),
            },
            subresource: subresource.to_string(),
        }
    }

    /// As conflicts name it (upstream `printManager`).
    pub fn describe(&self) -> String {
        let mut out = format!("{:?}", self.name);
        if !self.subresource.is_empty() {
            out.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if self.operation == Operation::Update {
            out.push_str(&format!(" using {}", self.api_version));
        }
        out
    }
}

/// What a manager owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owned {
    /// The version whose fields these are.
    pub api_version: String,
    /// The fields.
    pub set: Set,
    /// Text of the time of the last change.
    pub time: Option<String>,
}

/// All entries of one object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ManagedFields(pub BTreeMap<Manager, Owned>);

/// More update entries than this are merged into one (upstream `DefaultMaxUpdateManagers`).
pub const MAX_UPDATE_MANAGERS: usize = 10;

const ANCIENT: &str = "ancient-changes";

impl ManagedFields {
    /// Reads the entries of an object (upstream `DecodeManagedFields`).
    pub fn decode(object: &Value) -> Result<ManagedFields, String> {
        let mut out = BTreeMap::new();
        for (at, entry) in value::items(object, &["metadata", "managedFields"])
            .iter()
            .enumerate()
        {
            let text = |name: &str| value::str_or_empty(entry, &[name]);
            let operation = match text("operation") {
                "Apply" => Operation::Apply,
                "Update" => Operation::Update,
                _ => return Err("operation must be `Apply` or `Update`".to_string()),
            };
            let api_version = text("apiVersion");
            if api_version.is_empty() {
                return Err("apiVersion must not be empty".to_string());
            }
            match text("fieldsType") {
                "FieldsV1" => {}
                "" => return Err(format!("missing fieldsType in managed fields entry {at}")),
                other => {
                    return Err(format!(
                        "invalid fieldsType {other:?} in managed fields entry {at}"
                    ));
                }
            }
            let set = match value::get(entry, &["fieldsV1"]) {
                Some(fields) => {
                    Set::from_fields(fields).map_err(|why| format!("error decoding set: {why}"))?
                }
                None => Set::default(),
            };
            let manager = Manager {
                name: text("manager").to_string(),
                operation,
                api_version: match operation {
                    Operation::Apply => String::new(),
                    Operation::Update => api_version.to_string(),
                },
                subresource: text("subresource").to_string(),
            };
            out.insert(
                manager,
                Owned {
                    api_version: api_version.to_string(),
                    set,
                    time: value::get_str(entry, &["time"]).map(str::to_string),
                },
            );
        }
        Ok(ManagedFields(out))
    }

    /// Writes the entries into an object, in upstream's order; removes the field when there are none.
    pub fn encode(&self, object: &mut Value) {
        if self.0.is_empty() {
            crate::meta::remove(object, "managedFields");
            return;
        }
        let mut entries: Vec<(&Manager, &Owned)> = self.0.iter().collect();
        entries.sort_by_cached_key(|(manager, owned)| {
            (
                manager.operation,
                seconds(owned),
                manager.name.clone(),
                owned.api_version.clone(),
                manager.subresource.clone(),
            )
        });
        let entries: Vec<Value> = entries
            .into_iter()
            .map(|(manager, owned)| {
                let mut entry = json!({
                    "operation": manager.operation.as_str(),
                    "apiVersion": owned.api_version,
                    "fieldsType": "FieldsV1",
                    "fieldsV1": owned.set.to_fields(),
                });
                for (name, text) in [
                    ("manager", Some(&manager.name)),
                    ("subresource", Some(&manager.subresource)),
                    ("time", owned.time.as_ref()),
                ] {
                    if let Some(text) = text.filter(|text| !text.is_empty()) {
                        entry[name] = Value::from(text.as_str());
                    }
                }
                entry
            })
            .collect();
        crate::meta::set(object, "managedFields", entries);
    }

    /// Merges the oldest update entries of a version until at most [`MAX_UPDATE_MANAGERS`] are left
    /// (upstream `capUpdateManagers`).
    pub(super) fn cap(&mut self) {
        let mut updaters: Vec<(i64, Manager)> = self
            .0
            .iter()
            .filter(|(manager, _)| manager.operation == Operation::Update)
            .map(|(manager, owned)| (seconds(owned), manager.clone()))
            .collect();
        let mut count = updaters.len();
        if count <= MAX_UPDATE_MANAGERS {
            return;
        }
        updaters.sort();
        let mut first_of: BTreeMap<String, Manager> = BTreeMap::new();
        for (_, manager) in updaters {
            if count <= MAX_UPDATE_MANAGERS {
                break;
            }
            let Some(owned) = self.0.get(&manager).cloned() else {
                continue;
            };
            let bucket = Manager::new(ANCIENT, Operation::Update, &owned.api_version, "");
            let Some(first) = first_of.get(&owned.api_version) else {
                first_of.insert(owned.api_version.clone(), manager);
                continue;
            };
            let held = match self.0.remove(&bucket) {
                Some(held) => Some(held),
                None => self.0.remove(first),
            };
            let set = held.map_or(owned.set.clone(), |held| owned.set.union(&held.set));
            self.0.remove(&manager);
            self.0.insert(bucket, Owned { set, ..owned });
            count -= 1;
        }
    }
}

fn seconds(owned: &Owned) -> i64 {
    owned
        .time
        .as_deref()
        .and_then(|text| time::parse(text).ok())
        .map_or(0, |time| time.as_second())
}

/// Whether a client asks for the entries to be forgotten (upstream `isResetManagedFields`).
pub fn is_reset(object: &Value) -> bool {
    match value::items(object, &["metadata", "managedFields"]) {
        [only] => only
            .as_object()
            .is_some_and(|entry| entry.values().all(value::is_empty)),
        _ => false,
    }
}

/// Whether two objects are the same but for the times of their entries; then the new one gets the old times
/// (upstream `IgnoreManagedFieldsTimestampsTransformer`).
pub fn keep_times_if_same(object: &mut Value, old: &Value) {
    const AT: &[&str] = &["metadata", "managedFields"];
    let (new, before) = (value::items(object, AT), value::items(old, AT));
    if new.is_empty() || new.len() != before.len() || new == before {
        return;
    }
    let same_entry = |(a, b): (&Value, &Value)| match (a.as_object(), b.as_object()) {
        (Some(a), Some(b)) => {
            a.iter().all(|(k, v)| k == "time" || b.get(k) == Some(v))
                && b.keys().all(|k| k == "time" || a.contains_key(k))
        }
        _ => a == b,
    };
    if !new.iter().zip(before).all(same_entry) {
        return;
    }
    let same_except = |a: &Value, b: &Value, skip: &str| match (a.as_object(), b.as_object()) {
        (Some(a), Some(b)) => {
            a.len() == b.len() && a.iter().all(|(k, v)| k == skip || b.get(k) == Some(v))
        }
        _ => false,
    };
    let metadata = |o: &Value| value::get(o, &["metadata"]).cloned().unwrap_or_default();
    if same_except(object, old, "metadata")
        && same_except(&metadata(object), &metadata(old), "managedFields")
    {
        let kept = before.to_vec();
        crate::meta::set(object, "managedFields", kept);
    }
}
