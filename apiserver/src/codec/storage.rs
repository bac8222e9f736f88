//! Objects as the store keeps them, which is as upstream keeps them: built-in kinds in protobuf within the `k8s\0`
//! envelope, custom resources, their definitions and API services in JSON. Reading tells the form by the first bytes,
//! and the version by what the object says of itself, so that data of an upstream server and of older versions of
//! this one is taken over as it is.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use keelson_machinery::catalog::parse_api_version;
use keelson_machinery::codec::protobuf;
use keelson_machinery::meta;
use keelson_machinery::schema::{self, Schema, Type};
use keelson_machinery::value::{self, Value};
use parking_lot::Mutex;

use super::body::{encode_json, set_type_meta};
use super::definition;
use crate::cache::types::StorageCodec;
use crate::registry::strategy::Strategy;
use crate::registry::{conversion, defaults};

/// Whether upstream keeps the kinds of a group in JSON: those of its extension and aggregation servers
/// (`LegacyCodec` in `createAPIExtensionsConfig` and `createAggregatorConfig`).
pub fn is_stored_as_json(group: &str) -> bool {
    matches!(group, "apiextensions.k8s.io" | "apiregistration.k8s.io")
}

/// Stored bytes in any form, as an object of the storage version.
pub fn decode(
    stored: &[u8],
    kind: &str,
    api_version: &str,
    object_type: &'static Type,
) -> Result<Value, String> {
    let mut object = if protobuf::is_enveloped(stored) {
        let unknown = protobuf::decode_unknown(stored).map_err(|e| e.to_string())?;
        let of = if unknown.api_version == api_version && unknown.kind == kind {
            object_type
        } else {
            parse_api_version(unknown.api_version)
                .and_then(|(group, version)| {
                    Schema::builtin().lookup_kind(group, version, unknown.kind)
                })
                .ok_or_else(|| {
                    format!(
                        "no kind {:?} is registered for version {:?}",
                        unknown.kind, unknown.api_version
                    )
                })?
        };
        let mut object = protobuf::decode(unknown.raw, of).map_err(|e| e.to_string())?;
        if unknown.api_version != api_version {
            upgrade(&mut object, unknown.api_version);
        }
        object
    } else {
        let mut object: Value = serde_json::from_slice(stored).map_err(|e| e.to_string())?;
        let found = value::str_or_empty(&object, &["apiVersion"]).to_owned();
        if found != api_version && !found.is_empty() {
            upgrade(&mut object, &found);
            schema::normalize(&mut object, object_type);
        }
        object
    };
    set_type_meta(&mut object, kind, api_version);
    Ok(object)
}

/// From a version that an earlier release stored, to the one that is stored now. Those that are not here differ in
/// name only.
fn upgrade(object: &mut Value, from: &str) {
    match parse_api_version(from) {
        Some(("apiextensions.k8s.io", "v1beta1")) => definition::from_v1beta1(object),
        Some((group, version)) => conversion::between_stored(object, group, version),
        None => {}
    }
}

/// Declared defaults of the type, those upstream sets by hand, then those of the strategy; the type is that of the
/// stored version.
pub fn set_defaults(object: &mut Value, storage_type: &'static Type, strategy: &dyn Strategy) {
    schema::apply_defaults(object, storage_type);
    defaults::apply(object, storage_type);
    strategy.default(object);
    schema::normalize(object, storage_type);
}

/// Built-in kinds: protobuf.
pub struct ProtobufStorage {
    kind: String,
    api_version: String,
    object_type: &'static Type,
    strategy: Arc<dyn Strategy>,
    recent: Mutex<Recent>,
}

impl ProtobufStorage {
    /// For the stored version of a resource.
    pub fn new(
        kind: &str,
        api_version: &str,
        object_type: &'static Type,
        strategy: Arc<dyn Strategy>,
    ) -> ProtobufStorage {
        ProtobufStorage {
            strategy,
            kind: kind.to_string(),
            api_version: api_version.to_string(),
            object_type,
            recent: Mutex::default(),
        }
    }

    fn has_type_meta(&self, object: &Value) -> bool {
        value::str_or_empty(object, &["kind"]) == self.kind
            && value::str_or_empty(object, &["apiVersion"]) == self.api_version
    }
}

impl StorageCodec for ProtobufStorage {
    fn decode(&self, stored: &[u8]) -> Result<Value, String> {
        let mut object = decode(stored, &self.kind, &self.api_version, self.object_type)?;
        // Defaults that came after the object was stored, or that protobuf does not keep (upstream's versioned
        // decoders default whatever they read).
        set_defaults(&mut object, self.object_type, &*self.strategy);
        Ok(object)
    }

    fn settle(&self, object: &mut Value) {
        schema::settle(object, self.object_type);
    }

    fn encode(&self, object: &Value) -> Result<Bytes, String> {
        let encode = |object: &Value| {
            protobuf::encode_object(object, self.object_type).map_err(|e| e.to_string())
        };
        let has_revision = value::get(object, &["metadata", "resourceVersion"]).is_some();
        if !has_revision && self.has_type_meta(object) {
            return encode(object);
        }
        let mut object = object.clone();
        meta::remove(&mut object, "resourceVersion");
        set_type_meta(&mut object, &self.kind, &self.api_version);
        encode(&object)
    }

    fn encode_both(&self, object: &Value) -> Result<(Bytes, Option<Bytes>), String> {
        let stored = self.encode(object)?;
        let json = encode_json(object, &self.kind, &self.api_version).map_err(|e| e.message)?;
        self.recent.lock().put(stored.clone(), json.clone());
        Ok((stored, Some(json)))
    }

    fn to_json(&self, stored: &Bytes) -> Result<Bytes, String> {
        if let Some(json) = self.recent.lock().take(stored) {
            return Ok(json);
        }
        let object = self.decode(stored)?;
        encode_json(&object, &self.kind, &self.api_version).map_err(|e| e.message)
    }
}

/// How many writes are remembered: those in flight and those whose events are under way. Forgetting one only costs
/// a decode.
const MAX_RECENT: usize = 128;

/// Bytes of their JSON at most.
const MAX_RECENT_BYTES: usize = 1 << 20;

/// What this server wrote just now, in both forms: when the event of the write comes back from the store, the cache
/// takes the JSON from here, so that a write is encoded once and never decoded.
#[derive(Default)]
struct Recent {
    writes: VecDeque<(Bytes, Bytes)>,
    bytes: usize,
}

impl Recent {
    fn put(&mut self, stored: Bytes, json: Bytes) {
        self.bytes += json.len();
        self.writes.push_back((stored, json));
        while self.writes.len() > MAX_RECENT || self.bytes > MAX_RECENT_BYTES {
            let Some((_, json)) = self.writes.pop_front() else {
                return;
            };
            self.bytes -= json.len();
        }
    }

    /// The JSON of the write of these bytes. Mostly the first: events come in the order of the commits.
    fn take(&mut self, stored: &Bytes) -> Option<Bytes> {
        let at = self.writes.iter().position(|(written, _)| {
            written.len() == stored.len()
                && (written.as_ptr() == stored.as_ptr() || written == stored)
        })?;
        let (_, json) = self.writes.remove(at)?;
        self.bytes -= json.len();
        Some(json)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn storage() -> ProtobufStorage {
        let of = Schema::builtin()
            .lookup("io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler")
            .unwrap();
        let strategy = Arc::new(crate::registry::strategies::Plain);
        ProtobufStorage::new("HorizontalPodAutoscaler", "autoscaling/v2", of, strategy)
    }

    fn object() -> Value {
        let mut object = json!({
            "kind": "HorizontalPodAutoscaler",
            "apiVersion": "autoscaling/v2",
            "metadata": {"name": "h", "namespace": "n", "uid": "u"},
            "spec": {
                "scaleTargetRef": {"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"},
                "maxReplicas": 3,
                "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target":
                    {"type": "Utilization", "averageUtilization": 50}}}],
            },
        });
        // What is decoded is defaulted.
        let storage = storage();
        set_defaults(&mut object, storage.object_type, &*storage.strategy);
        object
    }

    #[test]
    fn what_is_stored_is_read_whatever_its_form() {
        let storage = storage();
        let (stored, json) = storage.encode_both(&object()).unwrap();
        assert!(stored.starts_with(b"k8s\0"));
        assert_eq!(storage.decode(&stored).unwrap(), object());
        // The JSON of the write is handed over once; then it is made again, to the same bytes.
        let json = json.unwrap();
        let first = storage.to_json(&stored).unwrap();
        let again = storage.to_json(&Bytes::copy_from_slice(&stored)).unwrap();
        assert_eq!(first.as_ptr(), json.as_ptr());
        assert_ne!(again.as_ptr(), json.as_ptr());
        assert_eq!(again, json);
        // JSON, as older versions stored.
        assert_eq!(storage.decode(&json).unwrap(), object());
        // An older API version, in both forms.
        let old = json!({
            "kind": "HorizontalPodAutoscaler",
            "apiVersion": "autoscaling/v1",
            "metadata": {"name": "h", "namespace": "n", "uid": "u"},
            "spec": {
                "scaleTargetRef": {"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"},
                "maxReplicas": 3,
                "targetCPUUtilizationPercentage": 50,
            },
        });
        let of = Schema::builtin()
            .lookup("io.k8s.api.autoscaling.v1.HorizontalPodAutoscaler")
            .unwrap();
        let binary = protobuf::encode_object(&old, of).unwrap();
        for bytes in [binary, Bytes::from(old.to_string())] {
            let mut read = storage.decode(&bytes).unwrap();
            keelson_machinery::schema::normalize(&mut read, storage.object_type);
            assert_eq!(read["spec"], object()["spec"]);
            assert_eq!(read["apiVersion"], "autoscaling/v2");
        }
    }

    #[test]
    fn damage_is_told() {
        let storage = storage();
        for bytes in [
            &b"k8s\0\x0a"[..],
            b"k8s\0\x0a\x08\x0a\x02v9\x12\x02No\x12\x00",
            b"k8s",
            b"",
        ] {
            assert!(storage.decode(bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn memory_is_bounded() {
        let mut recent = Recent::default();
        for n in 0..1000_u32 {
            let text = Bytes::from(vec![0; 64 * 1024]);
            recent.put(Bytes::from(n.to_be_bytes().to_vec()), text);
            assert!(recent.bytes <= MAX_RECENT_BYTES && recent.writes.len() <= MAX_RECENT);
        }
        assert!(recent.take(&Bytes::from(vec![0, 0, 0, 0])).is_none());
        assert!(
            recent
                .take(&Bytes::from(999_u32.to_be_bytes().to_vec()))
                .is_some()
        );
        assert!(
            recent
                .take(&Bytes::from(999_u32.to_be_bytes().to_vec()))
                .is_none()
        );
    }
}
