//! What the type table says of a value for apply: leaf, object, map or list, merged or replaced as a whole.

use std::borrow::Cow;

use super::path::{PathElement, Scalar};
use crate::schema::{Cardinality, Field, Kind, ListType, MapType, Type};
use crate::value::{Object, Value};

/// How apply sees a value.
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    /// Owned and replaced as a whole, whatever it is.
    Leaf,
    /// An object of a type.
    Object(&'static Type),
    /// A map from text to the field's kind.
    Map(&'static Field),
    /// A set of scalars, or a list whose items have keys.
    List(&'static Field),
    /// No type is known: objects are merged, lists and scalars replaced (upstream `__untyped_deduced_`).
    Deduced,
}

impl Shape {
    /// Of one value of a kind.
    fn of_kind(kind: Kind) -> Shape {
        match kind {
            Kind::Message(of) if of.map_type() == Some(MapType::Atomic) => Shape::Leaf,
            Kind::Message(of) => Shape::Object(of),
            Kind::RawExtension | Kind::FieldsV1 => Shape::Deduced,
            _ => Shape::Leaf,
        }
    }

    /// Of a field's whole value.
    pub fn of_field(field: &'static Field) -> Shape {
        match field.cardinality {
            Cardinality::Optional if field.map_type == Some(MapType::Atomic) => Shape::Leaf,
            Cardinality::Optional => Shape::of_kind(field.kind),
            Cardinality::Map if field.map_type == Some(MapType::Atomic) => Shape::Leaf,
            Cardinality::Map => Shape::Map(field),
            Cardinality::Repeated => match field.list_type {
                Some(ListType::Set | ListType::Map) => Shape::List(field),
                Some(ListType::Atomic) | None => Shape::Leaf,
            },
        }
    }

    /// Of a member of an object or map, and whether the type declares it.
    pub fn member(self, name: &str) -> (Shape, bool) {
        match self {
            Shape::Object(of) => match of.field(name) {
                Some(field) => (Shape::of_field(field), true),
                None => (Shape::Deduced, matches!(name, "kind" | "apiVersion")),
            },
            Shape::Map(field) => (Shape::of_kind(field.kind), false),
            Shape::Deduced => (Shape::Deduced, false),
            Shape::Leaf | Shape::List(_) => (Shape::Leaf, false),
        }
    }

    /// The step to a member, without a copy of the name where the type declares it.
    pub fn step(self, name: &str) -> PathElement {
        let declared = match self {
            Shape::Object(of) => of.field(name).map(|field| field.json_name),
            _ => None,
        };
        PathElement::Field(match declared {
            Some(name) => Cow::Borrowed(name),
            None => Cow::Owned(name.to_string()),
        })
    }

    /// Of the items of a list.
    pub fn item(self) -> Shape {
        match self {
            Shape::List(field) => Shape::of_kind(field.kind),
            _ => Shape::Leaf,
        }
    }

    /// Whether the value's members are merged one by one. What is deduced goes by the value.
    pub fn is_map(self, value: &Value) -> bool {
        match self {
            Shape::Object(_) | Shape::Map(_) => true,
            Shape::Deduced => value.is_object(),
            Shape::Leaf | Shape::List(_) => false,
        }
    }

    /// The shape of what stands after a step.
    pub fn after(self, step: &PathElement) -> Shape {
        match (self, step) {
            (Shape::Object(_) | Shape::Map(_) | Shape::Deduced, PathElement::Field(name)) => {
                self.member(name).0
            }
            (Shape::List(_), PathElement::Key(_)) => self.item(),
            _ => Shape::Leaf,
        }
    }
}

/// The step to an item of an associative list (upstream `listItemToPathElement`).
pub fn item_step(list: &'static Field, item: &Value) -> Result<PathElement, String> {
    if list.list_type != Some(ListType::Map) {
        return match item {
            Value::Object(_) => {
                Err("associative list without keys has an element that's a map type".to_string())
            }
            Value::Array(_) => {
                Err("not supported: associative list with lists as elements".to_string())
            }
            Value::Null => Err(
                "associative list without keys has an element that's an explicit null".to_string(),
            ),
            scalar => Ok(PathElement::Value(Scalar(scalar.clone()))),
        };
    }
    let item: &Object = match item {
        Value::Object(item) => item,
        Value::Null => {
            return Err("associative list with keys may not have a null element".to_string());
        }
        _ => {
            return Err("associative list with keys may not have non-map elements".to_string());
        }
    };
    let mut keys = Vec::with_capacity(list.list_keys.len());
    for name in &list.list_keys {
        let default = || {
            let of = list.kind.message()?;
            of.field(name)?.default.as_ref()
        };
        if let Some(value) = item.get(*name).or_else(default) {
            keys.push((Cow::Borrowed(*name), Scalar(value.clone())));
        }
    }
    if keys.is_empty() {
        let names: Vec<String> = list.list_keys.iter().map(|k| format!("{k:?}")).collect();
        return Err(format!(
            "associative list with keys has an element that omits all key fields [{}] (and doesn't have default values for any key fields)",
            names.join(" ")
        ));
    }
    keys.sort();
    Ok(PathElement::Key(keys))
}
