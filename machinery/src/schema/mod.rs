//! The type table: every field of every API type with its JSON name, wire number, kind, and list, merge and
//! default rules. One compact text, `types.txt`, made by `cargo xtask gen` from the API facts; opening it only
//! notes where each type begins (well under a millisecond), a type's fields are read when first asked for.
//!
//! There are two views of a type. The *JSON view* ([`Type::fields`], [`Type::field`]) has the members of the JSON
//! object: the fields of inlined messages stand directly in it. The *wire view* ([`Type::wire_fields`],
//! [`Type::field_by_number`]) has the protobuf fields, where an inlined message is a field like any other.

mod default;
mod parse;
pub(crate) mod zero;

pub use default::apply_defaults;
pub use zero::{normalize, settle};

use std::collections::HashMap;
use std::fmt;
use std::sync::{LazyLock, OnceLock};

use crate::value::Value;

/// All built-in types.
pub struct Schema {
    types: &'static [Type],
    by_name: HashMap<&'static str, &'static Type>,
}

impl Schema {
    /// The table of v1.36, shared by the whole process.
    pub fn builtin() -> &'static Schema {
        static BUILTIN: LazyLock<Schema> =
            LazyLock::new(|| parse::index(include_str!("types.txt")));
        &BUILTIN
    }

    /// The type of a full name such as `io.k8s.api.core.v1.Pod`.
    pub fn lookup(&self, name: &str) -> Option<&'static Type> {
        self.by_name.get(name).copied()
    }

    /// The type of an API kind, with `group` empty for the core group. Kinds of `meta.k8s.io` (`Status`,
    /// `DeleteOptions`, `WatchEvent`, ...) are found in every group, as each group version registers them.
    pub fn lookup_kind(&self, group: &str, version: &str, kind: &str) -> Option<&'static Type> {
        // A kind never has a dot; without this, "v1.Pod" could stand for version and kind at once.
        if kind.contains('.') {
            return None;
        }
        self.lookup(&format!("{}.{version}.{kind}", package_of(group)))
            .or_else(|| {
                let meta = self.lookup(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}"))?;
                (meta.has_type_meta() || meta.name().ends_with(".WatchEvent")).then_some(meta)
            })
    }

    /// Every type, in table order.
    pub fn types(&self) -> &'static [Type] {
        self.types
    }
}

impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Schema({} types)", self.types.len())
    }
}

/// The package prefix, without version, that holds the types of an API group.
fn package_of(group: &str) -> String {
    match group {
        "" => "io.k8s.api.core".to_string(),
        "apiextensions.k8s.io" => {
            "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions".to_string()
        }
        "apiregistration.k8s.io" => "io.k8s.kube-aggregator.pkg.apis.apiregistration".to_string(),
        "internal.apiserver.k8s.io" => "io.k8s.api.apiserverinternal".to_string(),
        "metrics.k8s.io" => "io.k8s.metrics.pkg.apis.metrics".to_string(),
        "custom.metrics.k8s.io" => "io.k8s.metrics.pkg.apis.custom-metrics".to_string(),
        "external.metrics.k8s.io" => "io.k8s.metrics.pkg.apis.external-metrics".to_string(),
        other => format!("io.k8s.api.{}", other.split('.').next().unwrap_or(other)),
    }
}

/// One message type.
pub struct Type {
    name: &'static str,
    short: &'static str,
    package: &'static str,
    /// The lines of its fields in the table.
    text: &'static str,
    type_meta: bool,
    published: bool,
    map_type: Option<MapType>,
    /// Only wraps a list, which in JSON stands alone.
    is_list: bool,
    body: OnceLock<Body>,
    zero: OnceLock<Value>,
    zero_wire: OnceLock<Box<[u8]>>,
    defaults: OnceLock<bool>,
}

struct Body {
    /// By wire number.
    wire: &'static [Field],
    /// Index into `wire` by wire number, `u8::MAX` where there is none.
    by_number: Box<[u8]>,
    /// By JSON name.
    json: Box<[&'static Field]>,
    /// Finds a JSON name's index in `json`.
    names: Names,
    /// For each of `json` its index in `wire`; `u8::MAX` for members of inlined messages.
    json_to_wire: Box<[u8]>,
    /// The other way round; `u8::MAX` for inlined messages.
    wire_to_json: Box<[u8]>,
    /// Whether any field is an inlined message.
    has_inline: bool,
    /// The JSON view's fields that a Go value always writes when absent, by their index in `json`.
    always: Box<[u8]>,
}

/// A small hash table from JSON name to field: one comparison per look-up instead of a binary search's handful.
struct Names {
    /// Field index by slot, `u8::MAX` where empty; a power of two in length, at most half full.
    slots: Box<[u8]>,
}

impl Names {
    fn new(json: &[&'static Field]) -> Names {
        let mut slots = vec![u8::MAX; (json.len() * 2 + 1).next_power_of_two()].into_boxed_slice();
        for (index, field) in json.iter().enumerate() {
            let mut slot = hash(field.json_name) & (slots.len() - 1);
            while slots[slot] != u8::MAX {
                slot = (slot + 1) & (slots.len() - 1);
            }
            slots[slot] = u8::try_from(index).unwrap_or(u8::MAX);
        }
        Names { slots }
    }

    fn find(&self, json: &[&'static Field], name: &str) -> Option<usize> {
        let mut slot = hash(name) & (self.slots.len() - 1);
        loop {
            let index = usize::from(self.slots[slot]);
            let field = json.get(index)?;
            if field.json_name == name {
                return Some(index);
            }
            slot = (slot + 1) & (self.slots.len() - 1);
        }
    }
}

/// Field names of one type differ enough in length and in these letters; collisions only cost another step.
fn hash(name: &str) -> usize {
    let bytes = name.as_bytes();
    let at = |i: usize| usize::from(bytes.get(i).copied().unwrap_or(0));
    let length = bytes.len();
    length
        .wrapping_add(at(0).wrapping_mul(31))
        .wrapping_add(at(length / 2).wrapping_mul(7))
        .wrapping_add(at(length.wrapping_sub(1)).wrapping_mul(13))
        .wrapping_add(at(3).wrapping_mul(3))
}

impl Type {
    /// The full name, such as `io.k8s.api.core.v1.Pod`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The name without its package: `Pod`.
    pub fn short_name(&self) -> &'static str {
        self.short
    }

    /// The name as Go prints it in decode errors: `v1.Pod`.
    pub fn go_name(&self) -> String {
        let package = self.package.rsplit('.').next().unwrap_or(self.package);
        format!("{package}.{}", self.short)
    }

    /// Whether the JSON form carries `kind` and `apiVersion`; they are not among the fields.
    pub fn has_type_meta(&self) -> bool {
        self.type_meta
    }

    /// Whether the published OpenAPI has the type.
    pub fn published(&self) -> bool {
        self.published
    }

    /// How apply treats an object of this type, where the type itself says so.
    pub fn map_type(&self) -> Option<MapType> {
        self.map_type
    }

    /// The fields of the JSON object, inlined messages dissolved, sorted by JSON name.
    pub fn fields(&'static self) -> &'static [&'static Field] {
        &self.body().json
    }

    /// The JSON view's field of this exact name.
    pub fn field(&'static self, json_name: &str) -> Option<&'static Field> {
        let body = self.body();
        body.names.find(&body.json, json_name).map(|i| body.json[i])
    }

    /// The index in [`Type::fields`] of the field of this exact name.
    pub fn field_index(&'static self, json_name: &str) -> Option<usize> {
        let body = self.body();
        body.names.find(&body.json, json_name)
    }

    /// For types without inlined messages: for each of [`Type::fields`] its index in [`Type::wire_fields`].
    pub(crate) fn wire_indexes(&'static self) -> Option<&'static [u8]> {
        let body = self.body();
        (!body.has_inline).then_some(&*body.json_to_wire)
    }

    /// The protobuf fields, sorted by number; inlined messages are fields of their own.
    pub fn wire_fields(&'static self) -> &'static [Field] {
        self.body().wire
    }

    /// The wire view's field of this number.
    pub fn field_by_number(&'static self, number: u32) -> Option<&'static Field> {
        self.wire_field(number).map(|(_, field)| field)
    }

    /// The wire view's field of this number, with its index in [`Type::fields`]; the index of an inlined message is
    /// out of range.
    pub(crate) fn wire_field(&'static self, number: u32) -> Option<(usize, &'static Field)> {
        let body = self.body();
        let index = usize::from(*body.by_number.get(usize::try_from(number).ok()?)?);
        let field = body.wire.get(index)?;
        Some((usize::from(body.wire_to_json[index]), field))
    }

    /// Indexes in [`Type::fields`] of the members that are written even when nothing set them.
    pub(crate) fn always(&'static self) -> &'static [u8] {
        &self.body().always
    }

    fn body(&'static self) -> &'static Body {
        self.body.get_or_init(|| parse::body(self))
    }

    pub(crate) fn zero_cell(&self) -> &OnceLock<Value> {
        &self.zero
    }

    pub(crate) fn defaults_cell(&self) -> &OnceLock<bool> {
        &self.defaults
    }

    pub(crate) fn zero_wire_cell(&self) -> &OnceLock<Box<[u8]>> {
        &self.zero_wire
    }
}

impl fmt::Debug for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl PartialEq for Type {
    fn eq(&self, other: &Type) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for Type {}

/// One field.
#[derive(Debug)]
pub struct Field {
    /// Name of the JSON member; for an inlined message, which has none, its wire name.
    pub json_name: &'static str,
    /// Name in the protobuf definition.
    pub proto_name: &'static str,
    /// Protobuf field number.
    pub number: u32,
    /// Kind of the value; of each item for lists and of each value for maps.
    pub kind: Kind,
    /// One, a list, or a map with string keys.
    pub cardinality: Cardinality,
    /// The message's own fields stand directly in the parent's JSON object.
    pub inline: bool,
    /// The published OpenAPI demands the field.
    pub required: bool,
    /// How apply and strategic merge see the list.
    pub list_type: Option<ListType>,
    /// The members that identify an item of a [`ListType::Map`] list.
    pub list_keys: Box<[&'static str]>,
    /// How apply sees the map.
    pub map_type: Option<MapType>,
    /// Strategic-merge strategies: `merge`, `replace`, `retainKeys`, joined by commas.
    pub patch_strategy: Option<&'static str>,
    /// The member by which strategic merge matches list items.
    pub merge_key: Option<&'static str>,
    /// The default declared in the type, which upstream's generated defaulting sets.
    pub default: Option<Value>,
    /// The Go field is a pointer: absent and zero differ.
    pub pointer: bool,
    /// The JSON member is written even when empty (Go's tag lacks `omitempty`).
    pub always: bool,
    /// A zero value is left out of the JSON form (Go's `omitzero`), structs included.
    pub omit_zero: bool,
    /// The Go type where it is not what the kind suggests, without pointer: `v1.RestartPolicy`.
    pub go_type: Option<&'static str>,
}

impl Field {
    /// The format that the published OpenAPI gives the kind, if any.
    pub fn format(&self) -> Option<&'static str> {
        match self.kind {
            Kind::Int32 => Some("int32"),
            Kind::Int64 => Some("int64"),
            Kind::Double => Some("double"),
            Kind::Bytes => Some("byte"),
            Kind::Time | Kind::MicroTime => Some("date-time"),
            Kind::IntOrString => Some("int-or-string"),
            _ => None,
        }
    }

    /// The Go type of the whole field without pointer, as decode errors spell it.
    pub fn go_type_name(&self) -> String {
        if let Some(name) = self.go_type {
            return name.to_string();
        }
        let base = self.kind.go_name();
        match self.cardinality {
            Cardinality::Optional => base,
            Cardinality::Repeated => format!("[]{base}"),
            Cardinality::Map => format!("map[string]{base}"),
        }
    }

    /// The Go type of one item or map value.
    pub fn go_item_name(&self) -> String {
        match (self.go_type, self.cardinality) {
            (Some(name), Cardinality::Optional) => name.to_string(),
            (Some(name), Cardinality::Repeated) => name
                .strip_prefix("[]")
                .map_or_else(|| self.kind.go_name(), str::to_string),
            (Some(name), Cardinality::Map) => name
                .split_once(']')
                .map_or_else(|| self.kind.go_name(), |(_, value)| value.to_string()),
            (None, _) => self.kind.go_name(),
        }
    }
}

/// What a field's value (or each of its items) is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// UTF-8 text.
    String,
    /// `true` or `false`.
    Bool,
    /// 32-bit signed integer.
    Int32,
    /// 64-bit signed integer.
    Int64,
    /// 64-bit float.
    Double,
    /// Bytes, standard base64 with padding in JSON.
    Bytes,
    /// An object of its own type.
    Message(&'static Type),
    /// A message whose only field is a list (`items`): a plain list in JSON. The type is the wrapper's.
    Items(&'static Type),
    /// `resource.Quantity`: text in JSON.
    Quantity,
    /// `intstr.IntOrString`: number or text in JSON.
    IntOrString,
    /// `metav1.Time`: RFC 3339 text with seconds in JSON, null when zero.
    Time,
    /// `metav1.MicroTime`: RFC 3339 text with microseconds in JSON, null when zero.
    MicroTime,
    /// `metav1.Duration`: Go's duration text in JSON.
    Duration,
    /// `runtime.RawExtension`: any JSON object; its JSON bytes on the wire.
    RawExtension,
    /// `metav1.FieldsV1`: any JSON object; its JSON bytes on the wire.
    FieldsV1,
    /// `apiextensions.JSON`: any JSON value; its JSON bytes on the wire.
    Json,
    /// `JSONSchemaPropsOrArray`: the wrapper's type.
    SchemaOrArray(&'static Type),
    /// `JSONSchemaPropsOrBool`: the wrapper's type.
    SchemaOrBool(&'static Type),
    /// `JSONSchemaPropsOrStringArray`: the wrapper's type.
    SchemaOrStrings(&'static Type),
}

impl Kind {
    /// The Go type name that decode errors mention.
    pub fn go_name(&self) -> String {
        match self {
            Kind::String => "string".to_string(),
            Kind::Bool => "bool".to_string(),
            Kind::Int32 => "int32".to_string(),
            Kind::Int64 => "int64".to_string(),
            Kind::Double => "float64".to_string(),
            Kind::Bytes => "[]uint8".to_string(),
            Kind::Quantity => "resource.Quantity".to_string(),
            Kind::IntOrString => "intstr.IntOrString".to_string(),
            Kind::Time => "v1.Time".to_string(),
            Kind::MicroTime => "v1.MicroTime".to_string(),
            Kind::Duration => "v1.Duration".to_string(),
            Kind::RawExtension => "runtime.RawExtension".to_string(),
            Kind::FieldsV1 => "v1.FieldsV1".to_string(),
            Kind::Json => "v1.JSON".to_string(),
            Kind::Message(t)
            | Kind::Items(t)
            | Kind::SchemaOrArray(t)
            | Kind::SchemaOrBool(t)
            | Kind::SchemaOrStrings(t) => t.go_name(),
        }
    }

    /// The type of the JSON object that the value is, for kinds that are one.
    pub fn message(&self) -> Option<&'static Type> {
        match self {
            Kind::Message(t) => Some(t),
            _ => None,
        }
    }
}

/// How many values a field has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cardinality {
    /// At most one.
    Optional,
    /// A list.
    Repeated,
    /// A map with string keys.
    Map,
}

/// `x-kubernetes-list-type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListType {
    /// Replaced as a whole.
    Atomic,
    /// Scalars without duplicates.
    Set,
    /// Objects identified by [`Field::list_keys`].
    Map,
}

/// `x-kubernetes-map-type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapType {
    /// Replaced as a whole.
    Atomic,
    /// Merged member by member.
    Granular,
}

#[cfg(test)]
mod tests;
