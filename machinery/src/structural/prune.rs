//! What a schema takes out of an object and puts into it: unknown fields, nulls, defaults (upstream
//! `schema/pruning`, `schema/defaulting`).

use super::{Additional, Structural};
use crate::status::field::{MAX_FINDINGS, MAX_PATH};
use crate::value::Value;

const META: [&str; 3] = ["apiVersion", "kind", "metadata"];

/// Removes what the schema does not know. With `track`, returns the paths of what was removed, sorted.
pub fn prune(value: &mut Value, schema: &Structural, track: bool) -> Vec<String> {
    let mut pruner = Pruner {
        path: String::new(),
        unknown: track.then(Vec::new),
    };
    pruner.prune(value, Some(schema));
    let mut unknown = pruner.unknown.unwrap_or_default();
    unknown.sort();
    unknown
}

struct Pruner {
    path: String,
    unknown: Option<Vec<String>>,
}

impl Pruner {
    fn record(&mut self, name: &str) {
        if let Some(unknown) = &mut self.unknown
            && unknown.len() < MAX_FINDINGS
            && self.path.len() + name.len() <= MAX_PATH
        {
            let dot = if self.path.is_empty() { "" } else { "." };
            unknown.push(format!("{}{dot}{name}", self.path));
        }
    }

    fn at_member(&mut self, name: &str, then: impl FnOnce(&mut Self)) {
        let length = self.path.len();
        // Names may be as long as a body.
        if self.unknown.is_some() && length + name.len() <= MAX_PATH {
            if length > 0 {
                self.path.push('.');
            }
            self.path.push_str(name);
        }
        then(self);
        self.path.truncate(length);
    }

    fn at_item(&mut self, index: usize, then: impl FnOnce(&mut Self)) {
        let length = self.path.len();
        if self.unknown.is_some() {
            self.path.push_str(&format!("[{index}]"));
        }
        then(self);
        self.path.truncate(length);
    }

    fn prune(&mut self, value: &mut Value, schema: Option<&Structural>) {
        let preserve = schema.is_some_and(|schema| schema.preserve);
        match value {
            Value::Object(members) => {
                let mut unknown: Vec<String> = Vec::new();
                for (name, member) in members.iter_mut() {
                    if schema.is_some_and(|schema| schema.embedded) && META.contains(&&**name) {
                        continue;
                    }
                    match schema.and_then(|schema| known(schema, name)) {
                        Some(Known::Schema(below)) => {
                            self.at_member(name, |this| this.prune(member, Some(below)));
                        }
                        Some(Known::Allowed) => {
                            self.at_member(name, |this| this.prune(member, None));
                        }
                        None if preserve => {}
                        None => unknown.push(name.clone()),
                    }
                }
                for name in unknown {
                    if !META.contains(&&*name) || !self.path.is_empty() {
                        self.record(&name);
                    }
                    members.remove(&name);
                }
            }
            Value::Array(items) => {
                let below = schema.and_then(|schema| schema.items.as_deref());
                if preserve && below.is_none() {
                    return;
                }
                for (index, item) in items.iter_mut().enumerate() {
                    self.at_item(index, |this| this.prune(item, below));
                }
            }
            _ => {}
        }
    }
}

enum Known<'a> {
    Schema(&'a Structural),
    /// `additionalProperties: true` lets the member stand, but says nothing of what is in it.
    Allowed,
}

fn known<'a>(schema: &'a Structural, name: &str) -> Option<Known<'a>> {
    match (schema.properties.get(name), &schema.additional) {
        (Some(property), _) => Some(Known::Schema(property)),
        (None, Some(Additional::Schema(schema))) => Some(Known::Schema(schema)),
        (None, Some(Additional::Allowed(_))) => Some(Known::Allowed),
        (None, None) => None,
    }
}

/// Removes nulls where the schema allows none and has no default to put in their place (upstream
/// `PruneNonNullableNullsWithoutDefaults`).
pub fn drop_nulls(value: &mut Value, schema: &Structural) {
    match value {
        Value::Object(members) => {
            members.retain(|name, member| {
                let Some(schema) = schema.member(name) else {
                    return true;
                };
                !member.is_null() || schema.nullable || schema.default.is_some()
            });
            for (name, member) in members.iter_mut() {
                if let Some(schema) = schema.member(name) {
                    drop_nulls(member, schema);
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = &schema.items {
                items.iter_mut().for_each(|item| drop_nulls(item, schema));
            }
        }
        _ => {}
    }
}

/// Puts defaults where nothing stands, or a null that may not be.
pub fn set_defaults(value: &mut Value, schema: &Structural) {
    match value {
        Value::Object(members) => {
            for (name, property) in &schema.properties {
                let Some(default) = &property.default else {
                    continue;
                };
                match members.get_mut(&**name) {
                    None => {
                        members.insert(name.to_string(), (**default).clone());
                    }
                    Some(there) if there.is_null() && !property.nullable => {
                        *there = (**default).clone();
                    }
                    Some(_) => {}
                }
            }
            for (name, member) in members.iter_mut() {
                if let Some(property) = schema.properties.get(name.as_str()) {
                    set_defaults(member, property);
                } else if let Some(Additional::Schema(schema)) = &schema.additional {
                    set_default(member, schema);
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = &schema.items {
                items.iter_mut().for_each(|item| set_default(item, schema));
            }
        }
        _ => {}
    }
}

fn set_default(value: &mut Value, schema: &Structural) {
    if value.is_null()
        && !schema.nullable
        && let Some(default) = &schema.default
    {
        *value = (**default).clone();
    }
    set_defaults(value, schema);
}
