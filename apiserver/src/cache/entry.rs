//! From stored bytes to cache entries: the resourceVersion put in its place, the facts picked out, once per write.

use std::sync::Arc;

use bytes::Bytes;
use keelson_store::{KeyValue, Revision};

use super::scan::{Plan, scan};
use super::types::{CacheError, CacheSpec, Entry, Facts};

/// Makes the entries of one resource.
pub(super) struct Builder {
    spec: CacheSpec,
    plan: Plan,
    /// Position of the indexed field in `spec.fields`.
    indexed: Option<usize>,
}

impl Builder {
    pub fn new(spec: CacheSpec) -> Self {
        Builder {
            plan: Plan::new(&spec.fields),
            indexed: spec.fields.iter().position(|f| f.indexed),
            spec,
        }
    }

    pub fn spec(&self) -> &CacheSpec {
        &self.spec
    }

    pub fn indexed(&self) -> Option<usize> {
        self.indexed
    }

    /// The entry for a stored key.
    pub fn entry(&self, stored: &KeyValue) -> Result<Arc<Entry>, CacheError> {
        let corrupt = |reason: String| CacheError::Corrupt {
            key: stored.key.clone(),
            reason,
        };
        let key = stored
            .key
            .strip_prefix(&*self.spec.prefix)
            .ok_or_else(|| corrupt(format!("not below {}", self.spec.prefix)))?;
        let namespace_len = match key.split_once('/') {
            Some((namespace, _)) if self.spec.namespaced => u16::try_from(namespace.len())
                .map_err(|_| corrupt("the namespace is too long".to_owned()))?,
            _ => 0,
        };
        let json = self.spec.codec.to_json(&stored.value).map_err(corrupt)?;
        let found = scan(&json, &self.plan).map_err(|e| corrupt(e.to_string()))?;
        let revision = stored.mod_revision;
        let (json, revision_at) = if let Some(old) = found.revision {
            splice(&json, old.start, old.end, "\"", revision, "\"")
        } else if let Some((at, members)) = found.metadata {
            let after = if members { "\"," } else { "\"" };
            splice(&json, at, at, "\"resourceVersion\":\"", revision, after)
        } else {
            let (at, members) = found.root;
            let after = if members { "\"}," } else { "\"}" };
            let before = "\"metadata\":{\"resourceVersion\":\"";
            splice(&json, at, at, before, revision, after)
        };
        Ok(Arc::new(Entry {
            key: key.into(),
            namespace_len,
            revision,
            json,
            revision_at,
            facts: Facts::new(
                found.labels.iter().map(|(key, value)| (&**key, &**value)),
                found.fields.iter().map(|value| &**value),
            ),
        }))
    }
}

/// Replaces `json[from..to]` by the revision between `before` and `after`; also tells where its digits are.
fn splice(
    json: &[u8],
    from: usize,
    to: usize,
    before: &str,
    revision: Revision,
    after: &str,
) -> (Bytes, (u32, u8)) {
    let digits = revision.to_string();
    let mut out = Vec::with_capacity(json.len() + before.len() + digits.len() + after.len());
    out.extend_from_slice(&json[..from]);
    out.extend_from_slice(before.as_bytes());
    // Objects are far below 4 GiB, numbers below 21 digits.
    let at = (out.len() as u32, digits.len() as u8);
    out.extend_from_slice(digits.as_bytes());
    out.extend_from_slice(after.as_bytes());
    out.extend_from_slice(&json[to..]);
    (Bytes::from(out), at)
}

impl Entry {
    /// The same state with another resourceVersion, as a watcher gets it when the object is gone at that revision.
    pub(super) fn at_revision(&self, revision: Revision) -> Entry {
        let (at, len) = (self.revision_at.0 as usize, self.revision_at.1 as usize);
        let (json, revision_at) = splice(&self.json, at, at + len, "", revision, "");
        Entry {
            key: self.key.clone(),
            namespace_len: self.namespace_len,
            revision,
            json,
            revision_at,
            facts: self.facts.clone(),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use keelson_machinery::value::Value;

    use super::*;
    use crate::cache::types::{FieldSpec, StorageCodec};
    use crate::reader::GroupResource;

    /// Plain JSON in the store.
    pub struct Json;

    impl StorageCodec for Json {
        fn decode(&self, stored: &[u8]) -> Result<Value, String> {
            serde_json::from_slice(stored).map_err(|e| e.to_string())
        }

        fn encode(&self, object: &Value) -> Result<Bytes, String> {
            let mut object = object.clone();
            if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.remove("resourceVersion");
            }
            serde_json::to_vec(&object)
                .map(Bytes::from)
                .map_err(|e| e.to_string())
        }

        fn to_json(&self, stored: &Bytes) -> Result<Bytes, String> {
            assert!(*stored != "flaw", "what a flaw of a codec would do");
            Ok(stored.clone())
        }
    }

    /// Namespaced things below `/registry/things/`, with `spec.nodeName` indexed and `status.phase`.
    pub fn things() -> CacheSpec {
        let field = |label: &str, indexed| FieldSpec {
            label: label.into(),
            paths: vec![label.split('.').map(Arc::from).collect()],
            default: "".into(),
            indexed,
        };
        CacheSpec {
            resource: GroupResource::new("", "things"),
            prefix: "/registry/things/".into(),
            namespaced: true,
            fields: [field("spec.nodeName", true), field("status.phase", false)].into(),
            codec: Arc::new(Json),
        }
    }

    #[test]
    fn puts_the_revision_in_its_place() {
        let builder = Builder::new(things());
        for (stored, expected) in [
            ("{}", r#"{"metadata":{"resourceVersion":"7"}}"#),
            (
                r#"{"a":1}"#,
                r#"{"metadata":{"resourceVersion":"7"},"a":1}"#,
            ),
            (
                r#"{"a":1,"metadata":{}}"#,
                r#"{"a":1,"metadata":{"resourceVersion":"7"}}"#,
            ),
            (
                r#"{"metadata":{"name":"n"},"spec":{"resourceVersion":"x"}}"#,
                r#"{"metadata":{"resourceVersion":"7","name":"n"},"spec":{"resourceVersion":"x"}}"#,
            ),
            (
                r#"{"metadata":{"name":"n","resourceVersion":"12345"}}"#,
                r#"{"metadata":{"name":"n","resourceVersion":"7"}}"#,
            ),
            (
                r#"{"metadata":{"resourceVersion":null,"name":"n"}}"#,
                r#"{"metadata":{"resourceVersion":"7","name":"n"}}"#,
            ),
        ] {
            let kv = KeyValue {
                key: "/registry/things/ns/n".to_owned(),
                value: Bytes::from(stored),
                create_revision: 1,
                mod_revision: 7,
            };
            let entry = builder.entry(&kv).unwrap();
            assert_eq!(std::str::from_utf8(&entry.json).unwrap(), expected);
            assert_eq!((entry.namespace(), entry.name()), ("ns", "n"));
            let later = entry.at_revision(1234).at_revision(99);
            assert_eq!(
                std::str::from_utf8(&later.json).unwrap(),
                expected.replace("\"7\"", "\"99\"")
            );
        }
    }

    #[test]
    fn says_which_object_is_damaged() {
        let builder = Builder::new(things());
        for (key, value) in [
            ("/registry/things/ns/n", "garbage"),
            ("/registry/things/ns/n", "[]"),
            ("/elsewhere/n", "{}"),
        ] {
            let kv = KeyValue {
                key: key.to_owned(),
                value: Bytes::from(value),
                create_revision: 1,
                mod_revision: 7,
            };
            match builder.entry(&kv) {
                Err(CacheError::Corrupt { key: named, .. }) => assert_eq!(named, key),
                other => panic!("{value}: {other:?}"),
            }
        }
    }
}
