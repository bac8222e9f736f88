//! Kubernetes' protobuf encoding, driven by the type table: byte for byte what upstream's generated code writes.
//!
//! Fields stand in the order of their numbers. A Go field that is no pointer is written even when zero, a pointer only
//! when set, a list item by item, a map sorted by key, an inlined message as a message. `kind` and `apiVersion` are
//! not part of a message: they stand in the envelope (`k8s\0` and a `runtime.Unknown`) around the outermost one.

mod decode;
mod encode;

pub use decode::{Unknown, decode, decode_object, decode_unknown};
pub use encode::{encode, encode_object, encode_watch_frame};

/// What the bytes of an enveloped object begin with.
pub const MAGIC: &[u8; 4] = b"k8s\0";

/// Whether bytes are an enveloped object.
pub fn is_enveloped(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// Why a value cannot be written as a type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot encode {type_name}.{field} as protobuf: {reason}")]
pub struct EncodeError {
    /// The type that has the field.
    pub type_name: &'static str,
    /// JSON name of the field.
    pub field: &'static str,
    /// What is wrong with its value.
    pub reason: String,
}

#[cfg(test)]
mod tests;
