//! API objects as dynamic values. Built-in and custom resources alike are a [`Value`] on their whole way
//! through the server; what is known about their fields stands in the type table.

/// An API object or any part of one.
pub type Value = serde_json::Value;
/// The members of a JSON object.
pub type Object = serde_json::Map<String, Value>;
