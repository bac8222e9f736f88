//! What a Go value of a type looks like in JSON when nothing set it, and the round trip through Go that upstream
//! gives every object: empty `omitempty` members vanish, members without `omitempty` always appear.

use super::{Cardinality, Field, Kind, Type};
use crate::value::{Object, Value};

/// Whether Go writes the member although nothing set it: tags without `omitempty`, and structs, for which
/// `omitempty` has no effect.
pub(super) fn written_when_absent(field: &Field) -> bool {
    if field.omit_zero {
        return false;
    }
    if field.always {
        return true;
    }
    is_struct(field)
}

/// Whether the Go field holds a struct by value.
pub(crate) fn is_struct(field: &Field) -> bool {
    if field.pointer || field.cardinality != Cardinality::Optional {
        return false;
    }
    match field.kind {
        Kind::Message(_)
        | Kind::Quantity
        | Kind::IntOrString
        | Kind::Time
        | Kind::MicroTime
        | Kind::Duration
        | Kind::RawExtension
        | Kind::FieldsV1
        | Kind::Json
        | Kind::SchemaOrArray(_)
        | Kind::SchemaOrBool(_)
        | Kind::SchemaOrStrings(_) => true,
        Kind::Items(_)
        | Kind::String
        | Kind::Bool
        | Kind::Int32
        | Kind::Int64
        | Kind::Double
        | Kind::Bytes => false,
    }
}

/// What Go writes for the field when nothing set it (and it is written at all).
pub(crate) fn zero_of(field: &Field) -> Value {
    if field.pointer || field.cardinality != Cardinality::Optional {
        return Value::Null;
    }
    zero_of_kind(field.kind)
}

/// What Go writes for a zero value of the kind.
pub(crate) fn zero_of_kind(kind: Kind) -> Value {
    match kind {
        Kind::String => Value::from(""),
        Kind::Bool => Value::Bool(false),
        Kind::Int32 | Kind::Int64 | Kind::Double | Kind::IntOrString => Value::from(0),
        Kind::Quantity => Value::from("0"),
        Kind::Duration => Value::from("0s"),
        Kind::Bytes
        | Kind::Items(_)
        | Kind::Time
        | Kind::MicroTime
        | Kind::RawExtension
        | Kind::FieldsV1
        | Kind::Json
        | Kind::SchemaOrArray(_)
        | Kind::SchemaOrStrings(_) => Value::Null,
        Kind::SchemaOrBool(_) => Value::Bool(false),
        Kind::Message(t) => t.zero().clone(),
    }
}

impl Type {
    /// The JSON form of a value of this type that nothing set.
    pub fn zero(&'static self) -> &'static Value {
        self.zero_cell()
            .get_or_init(|| Value::Object(self.assemble(Vec::new())))
    }

    /// Makes an object of members given by their index in [`Type::fields`] (the last of equal ones counts), adding
    /// those that Go always writes. Building the map from sorted members is much cheaper than inserting each.
    pub(crate) fn assemble(&'static self, mut members: Vec<(usize, Value)>) -> Object {
        let fields = self.fields();
        members.sort_by_key(|(index, _)| *index);
        let mut always = self
            .always()
            .iter()
            .map(|index| usize::from(*index))
            .peekable();
        let mut all: Vec<(String, Value)> = Vec::with_capacity(members.len() + always.len());
        let absent = |index: usize| {
            let field = fields.get(index)?;
            Some((field.json_name.to_string(), zero_of(field)))
        };
        for (index, value) in members {
            while let Some(before) = always.next_if(|a| *a < index) {
                all.extend(absent(before));
            }
            always.next_if(|a| *a == index);
            if let Some(field) = fields.get(index) {
                all.push((field.json_name.to_string(), value));
            }
        }
        all.extend(always.filter_map(absent));
        all.into_iter().collect()
    }

    /// What Go writes for a member that nothing set; none when it leaves the member out.
    pub fn written_when_unset(&'static self, json_name: &str) -> Option<Value> {
        self.field(json_name)
            .filter(|f| written_when_absent(f))
            .map(zero_of)
    }

    /// Adds the members that Go always writes and that `object` lacks.
    fn fill_always(&'static self, object: &mut Object) {
        for field in self.always().iter().map(|i| self.fields()[usize::from(*i)]) {
            if !object.contains_key(field.json_name) {
                object.insert(field.json_name.to_string(), zero_of(field));
            }
        }
    }
}

/// Whether Go's encoder leaves the member out: `omitempty` and an empty value, or `omitzero` and a zero one.
pub(crate) fn omitted(field: &Field, value: &Value) -> bool {
    if field.omit_zero && value.is_null() {
        return true;
    }
    if field.always {
        return false;
    }
    match value {
        // A null left a pointer, list or map unset; for a struct it is what its own encoder writes.
        Value::Null => !is_struct(field),
        Value::Bool(b) => !field.pointer && !is_struct(field) && !*b,
        Value::Number(n) => {
            !field.pointer && !is_struct(field) && n.as_f64().is_some_and(|n| n == 0.0)
        }
        Value::String(s) => {
            let text = matches!(field.kind, Kind::String | Kind::Bytes);
            !field.pointer && text && s.is_empty()
        }
        Value::Array(items) => {
            let list =
                field.cardinality == Cardinality::Repeated || matches!(field.kind, Kind::Items(_));
            list && items.is_empty()
        }
        Value::Object(members) => field.cardinality == Cardinality::Map && members.is_empty(),
    }
}

/// Gives an object the form it would have after a round trip through upstream's Go type: members that are null or
/// empty under `omitempty` go, members that Go always writes come (`status: {}`, `resources: {}`,
/// `lastProbeTime: null`). Values of a wrong type and unknown members are left alone; the typed decoders deal with
/// those.
pub fn normalize(value: &mut Value, of: &'static Type) {
    normalize_message(value, of, Trip::Go)
}

/// Gives an object the form it would have after a round trip through protobuf into upstream's Go type, as the store
/// makes it: that of [`normalize`], and empty lists and maps are as if nobody had set them, which shows where Go
/// always writes the member (`rules: null`).
pub fn settle(value: &mut Value, of: &'static Type) {
    normalize_message(value, of, Trip::Protobuf)
}

/// What an object goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trip {
    Go,
    Protobuf,
}

fn normalize_message(value: &mut Value, of: &'static Type, trip: Trip) {
    let Value::Object(object) = value else {
        return;
    };
    let mut drop: Vec<&'static str> = Vec::new();
    for (name, member) in object.iter_mut() {
        let Some(field) = of.field(name) else {
            continue;
        };
        normalize_field(member, field, trip);
        if trip == Trip::Protobuf && is_lost(field, member) {
            *member = Value::Null;
        }
        if omitted(field, member) {
            drop.push(field.json_name);
        }
    }
    for name in drop {
        object.remove(name);
    }
    of.fill_always(object);
}

/// Whether protobuf has nothing to write for the value of a list or map.
fn is_lost(field: &Field, value: &Value) -> bool {
    match (field.cardinality, value) {
        (Cardinality::Repeated, Value::Array(items)) => items.is_empty(),
        (Cardinality::Map, Value::Object(members)) => members.is_empty(),
        _ => false,
    }
}

/// What the generated decoder makes of a map's entry without a value: an empty, not a nil slice.
fn empty_entry(kind: Kind) -> Value {
    match kind {
        Kind::Bytes => Value::from(""),
        Kind::Items(_) => Value::Array(Vec::new()),
        _ => Value::Null,
    }
}

fn normalize_field(value: &mut Value, field: &'static Field, trip: Trip) {
    if value.is_null() && !field.pointer && field.cardinality == Cardinality::Optional {
        *value = zero_of(field);
        return;
    }
    match (field.cardinality, &mut *value) {
        (Cardinality::Optional, _) => normalize_kind(value, field.kind, trip),
        (Cardinality::Repeated, Value::Array(items)) => {
            for item in items {
                normalize_item(item, field.kind, trip);
            }
        }
        (Cardinality::Map, Value::Object(members)) => {
            for member in members.values_mut() {
                normalize_item(member, field.kind, trip);
                if trip == Trip::Protobuf && member.is_null() {
                    *member = empty_entry(field.kind);
                }
            }
        }
        _ => {}
    }
}

/// A null item of a list or map stands for a zero value.
fn normalize_item(value: &mut Value, kind: Kind, trip: Trip) {
    if value.is_null() {
        *value = zero_of_kind(kind);
    } else {
        normalize_kind(value, kind, trip);
    }
}

fn normalize_kind(value: &mut Value, kind: Kind, trip: Trip) {
    match kind {
        Kind::Message(t) => normalize_message(value, t, trip),
        Kind::SchemaOrArray(t) | Kind::SchemaOrBool(t) | Kind::SchemaOrStrings(t) => {
            let Some(Kind::Message(schema)) = t
                .wire_fields()
                .iter()
                .find(|f| f.proto_name == "schema")
                .map(|f| f.kind)
            else {
                return;
            };
            match value {
                Value::Object(_) => normalize_message(value, schema, trip),
                Value::Array(items) => {
                    for item in items {
                        normalize_message(item, schema, trip);
                    }
                }
                _ => {}
            }
        }
        _ => {}
    }
}
