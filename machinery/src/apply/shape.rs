//! What the type table says of a value for apply: leaf, object, map or list, merged or replaced as a whole.

use std::borrow::Cow;

use super::path::{PathElement, Scalar};
use crate::schema::{Cardinality, Field, Kind, ListType, MapType, Schema, Type};
use crate::structural::{Additional, ListKind, SchemaType, Structural};
use crate::value::{Object, Value};

/// How apply sees a value.
#[derive(Clone, Copy, Debug)]
pub enum Shape<'a> {
    /// Owned and replaced as a whole, whatever it is.
    Leaf,
    /// An object of a type.
    Object(&'static Type),
    /// A map from text to the field's kind.
    Map(&'static Field),
    /// A set of scalars, or a list whose items have keys.
    List(ListShape<'a>),
    /// An object or map of a custom resource.
    Custom(&'a Structural),
    /// A scalar of a custom resource.
    Scalar(SchemaType),
    /// No type is known: objects are merged, lists and scalars replaced (upstream `__untyped_deduced_`).
    Deduced,
}

/// A list that is merged.
#[derive(Clone, Copy, Debug)]
pub enum ListShape<'a> {
    /// Of a built-in type.
    Field(&'static Field),
    /// Of a custom resource; the schema of the list.
    Custom(&'a Structural),
}

impl<'a> Shape<'a> {
    /// Of a part of a custom resource (upstream's models for apply, made from the published schema).
    pub fn of_schema(schema: &'a Structural) -> Shape<'a> {
        if schema.int_or_string {
            return Shape::Leaf;
        }
        match schema.kind {
            SchemaType::Object if schema.atomic_map => Shape::Leaf,
            SchemaType::Object
                if schema.properties.is_empty()
                    && !schema.embedded
                    && !matches!(schema.additional, Some(Additional::Schema(_))) =>
            {
                if schema.preserve {
                    Shape::Deduced
                } else {
                    Shape::Leaf
                }
            }
            SchemaType::Object => Shape::Custom(schema),
            SchemaType::Array if schema.list == ListKind::Atomic => Shape::Leaf,
            SchemaType::Array => Shape::List(ListShape::Custom(schema)),
            SchemaType::Any if schema.preserve => Shape::Deduced,
            SchemaType::Any => Shape::Leaf,
            scalar => Shape::Scalar(scalar),
        }
    }

    /// Of one value of a kind.
    fn of_kind(kind: Kind) -> Shape<'a> {
        match kind {
            Kind::Message(of) if of.map_type() == Some(MapType::Atomic) => Shape::Leaf,
            Kind::Message(of) => Shape::Object(of),
            Kind::RawExtension | Kind::FieldsV1 => Shape::Deduced,
            _ => Shape::Leaf,
        }
    }

    /// Of a field's whole value.
    pub fn of_field(field: &'static Field) -> Shape<'a> {
        match field.cardinality {
            Cardinality::Optional if field.map_type == Some(MapType::Atomic) => Shape::Leaf,
            Cardinality::Optional => Shape::of_kind(field.kind),
            Cardinality::Map if field.map_type == Some(MapType::Atomic) => Shape::Leaf,
            Cardinality::Map => Shape::Map(field),
            Cardinality::Repeated => match field.list_type {
                Some(ListType::Set | ListType::Map) => Shape::List(ListShape::Field(field)),
                Some(ListType::Atomic) | None => Shape::Leaf,
            },
        }
    }

    /// Of a member of an object or map, and whether the type declares it.
    pub fn member(self, name: &str) -> (Shape<'a>, bool) {
        match self {
            Shape::Custom(schema) => {
                if schema.embedded {
                    match name {
                        "metadata" => return (metadata(), true),
                        "kind" | "apiVersion" => {
                            return (Shape::Scalar(SchemaType::String), true);
                        }
                        _ => {}
                    }
                }
                match (schema.properties.get(name), &schema.additional) {
                    (Some(property), _) => (Shape::of_schema(property), true),
                    (None, Some(Additional::Schema(below))) => (Shape::of_schema(below), false),
                    (None, _) => (Shape::Deduced, false),
                }
            }
            Shape::Object(of) => match of.field(name) {
                Some(field) => (Shape::of_field(field), true),
                None => (Shape::Deduced, matches!(name, "kind" | "apiVersion")),
            },
            Shape::Map(field) => (Shape::of_kind(field.kind), false),
            Shape::Deduced => (Shape::Deduced, false),
            Shape::Leaf | Shape::List(_) | Shape::Scalar(_) => (Shape::Leaf, false),
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
    pub fn item(self) -> Shape<'a> {
        match self {
            Shape::List(ListShape::Field(field)) => Shape::of_kind(field.kind),
            Shape::List(ListShape::Custom(list)) => {
                list.items.as_deref().map_or(Shape::Leaf, Shape::of_schema)
            }
            _ => Shape::Leaf,
        }
    }

    /// Whether members that nothing declares are an error in a configuration.
    pub fn is_closed(self) -> bool {
        match self {
            Shape::Object(_) => true,
            Shape::Custom(schema) => {
                !schema.preserve && !matches!(schema.additional, Some(Additional::Schema(_)))
            }
            _ => false,
        }
    }

    /// What an object of this shape is that nothing set.
    pub fn zero(self) -> Value {
        match self {
            Shape::Object(of) => of.zero().clone(),
            _ => Value::Object(Object::new()),
        }
    }

    /// Whether the value's members are merged one by one. What is deduced goes by the value.
    pub fn is_map(self, value: &Value) -> bool {
        match self {
            Shape::Object(_) | Shape::Map(_) | Shape::Custom(_) => true,
            Shape::Deduced => value.is_object(),
            Shape::Leaf | Shape::List(_) | Shape::Scalar(_) => false,
        }
    }

    /// The shape of what stands after a step.
    pub fn after(self, step: &PathElement) -> Shape<'a> {
        match (self, step) {
            (
                Shape::Object(_) | Shape::Map(_) | Shape::Custom(_) | Shape::Deduced,
                PathElement::Field(name),
            ) => self.member(name).0,
            (Shape::List(_), PathElement::Key(_)) => self.item(),
            _ => Shape::Leaf,
        }
    }
}

/// The metadata of every object.
fn metadata<'a>() -> Shape<'a> {
    Schema::builtin()
        .lookup("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta")
        .map_or(Shape::Deduced, Shape::Object)
}

impl<'a> ListShape<'a> {
    fn has_keys(self) -> bool {
        match self {
            ListShape::Field(field) => field.list_type == Some(ListType::Map),
            ListShape::Custom(list) => list.list == ListKind::Map,
        }
    }

    /// The keys of an item, those with defaults included, and the names of all keys.
    fn keys(self, item: &Object) -> (Vec<(Cow<'static, str>, Scalar)>, Vec<&'a str>) {
        let mut keys = Vec::new();
        match self {
            ListShape::Field(list) => {
                for name in &list.list_keys {
                    let default = || {
                        let of = list.kind.message()?;
                        of.field(name)?.default.as_ref()
                    };
                    if let Some(value) = item.get(*name).or_else(default) {
                        keys.push((Cow::Borrowed(*name), Scalar(value.clone())));
                    }
                }
                (keys, list.list_keys.to_vec())
            }
            ListShape::Custom(list) => {
                for name in &list.list_keys {
                    let default = || {
                        let property = list.items.as_ref()?.properties.get(name)?;
                        property.default.as_deref()
                    };
                    if let Some(value) = item.get(&**name).or_else(default) {
                        keys.push((Cow::Owned(name.to_string()), Scalar(value.clone())));
                    }
                }
                (keys, list.list_keys.iter().map(|name| &**name).collect())
            }
        }
    }
}

/// The step to an item of an associative list (upstream `listItemToPathElement`).
pub fn item_step(list: ListShape<'_>, item: &Value) -> Result<PathElement, String> {
    if !list.has_keys() {
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
    let (mut keys, names) = list.keys(item);
    if keys.is_empty() {
        let names: Vec<String> = names.iter().map(|k| format!("{k:?}")).collect();
        return Err(format!(
            "associative list with keys has an element that omits all key fields [{}] (and doesn't have default values for any key fields)",
            names.join(" ")
        ));
    }
    keys.sort();
    Ok(PathElement::Key(keys))
}
