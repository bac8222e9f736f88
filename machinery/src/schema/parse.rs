//! Reads the compact text of the type table. The text is checked in and a test reads all of it, so a line that
//! cannot be read here is dropped rather than reported.

use std::collections::HashMap;
use std::sync::OnceLock;

use super::{Body, Cardinality, Field, Kind, ListType, MapType, Names, Schema, Type};

/// Notes where each type begins.
pub(super) fn index(text: &'static str) -> Schema {
    let mut types: Vec<Type> = Vec::with_capacity(1300);
    let mut package = "";
    let mut rest = text;
    while !rest.is_empty() {
        let (line, after) = rest.split_once('\n').unwrap_or((rest, ""));
        rest = after;
        if let Some(name) = line.strip_prefix("P ") {
            package = name;
        } else if let Some(head) = line.strip_prefix("T ") {
            let end = block_end(after);
            let (text, after) = after.split_at(end);
            rest = after;
            let mut words = head.split(' ');
            let short = words.next().unwrap_or_default();
            let name: &'static str = Box::leak(format!("{package}.{short}").into_boxed_str());
            let mut found = Type {
                name,
                short,
                package,
                text,
                type_meta: false,
                published: true,
                map_type: None,
                is_list: false,
                body: OnceLock::new(),
                zero: OnceLock::new(),
                zero_wire: OnceLock::new(),
                defaults: OnceLock::new(),
            };
            for mark in words {
                match mark {
                    "typemeta" => found.type_meta = true,
                    "list" => found.is_list = true,
                    "noopenapi" => found.published = false,
                    "map=atomic" => found.map_type = Some(MapType::Atomic),
                    "map=granular" => found.map_type = Some(MapType::Granular),
                    _ => {}
                }
            }
            types.push(found);
        }
    }
    let types: &'static [Type] = Box::leak(types.into_boxed_slice());
    let by_name = types.iter().map(|t| (t.name, t)).collect::<HashMap<_, _>>();
    Schema { types, by_name }
}

/// Where the field lines that start `text` end.
fn block_end(text: &str) -> usize {
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        if rest.starts_with("T ") || rest.starts_with("P ") {
            break;
        }
        at += rest.find('\n').map_or(rest.len(), |n| n + 1);
    }
    at
}

/// Reads the fields of one type.
pub(super) fn body(of: &'static Type) -> Body {
    let mut wire: Vec<Field> = of.text.lines().filter_map(|l| field(of, l)).collect();
    wire.sort_by_key(|f| f.number);
    let wire: &'static [Field] = Box::leak(wire.into_boxed_slice());
    let top = wire.last().map_or(0, |f| f.number as usize);
    let mut by_number = vec![u8::MAX; top + 1].into_boxed_slice();
    for (index, field) in wire.iter().enumerate() {
        by_number[field.number as usize] = u8::try_from(index).unwrap_or(u8::MAX);
    }
    let mut json: Vec<&'static Field> = Vec::with_capacity(wire.len());
    for field in wire {
        match field.kind {
            Kind::Message(inner) if field.inline => json.extend(inner.fields()),
            _ => json.push(field),
        }
    }
    json.sort_by_key(|f| f.json_name);
    let small = |index: Option<usize>| index.and_then(|i| u8::try_from(i).ok()).unwrap_or(u8::MAX);
    let always = json
        .iter()
        .enumerate()
        .filter(|(_, f)| super::zero::written_when_absent(f))
        .map(|(index, _)| small(Some(index)))
        .collect();
    let json_to_wire = json
        .iter()
        .map(|f| small(wire.iter().position(|w| std::ptr::eq(w, *f))))
        .collect();
    let wire_to_json = wire
        .iter()
        .map(|w| small(json.iter().position(|f| std::ptr::eq(w, *f))))
        .collect();
    Body {
        wire,
        by_number,
        names: Names::new(&json),
        json: json.into_boxed_slice(),
        json_to_wire,
        wire_to_json,
        has_inline: wire.iter().any(|f| f.inline),
        always,
    }
}

fn field(of: &'static Type, line: &'static str) -> Option<Field> {
    let mut words = line.split(' ');
    let json_name = words.next()?;
    let number = words.next()?.parse().ok()?;
    let spelled = words.next()?;
    let (cardinality, spelled) = match spelled.split_at_checked(2) {
        Some(("[]", rest)) => (Cardinality::Repeated, rest),
        Some(("{}", rest)) => (Cardinality::Map, rest),
        _ => (Cardinality::Optional, spelled),
    };
    let mut out = Field {
        json_name,
        proto_name: json_name,
        number,
        kind: kind(of, spelled)?,
        cardinality,
        inline: false,
        required: false,
        list_type: None,
        list_keys: Box::default(),
        map_type: None,
        patch_strategy: None,
        merge_key: None,
        default: None,
        pointer: false,
        always: false,
        omit_zero: false,
        go_type: None,
    };
    for mark in words {
        let (name, value) = mark.split_once('=').unwrap_or((mark, ""));
        match name {
            "protoname" => out.proto_name = value,
            "inline" => out.inline = true,
            "required" => out.required = true,
            "list" => {
                out.list_type = match value {
                    "atomic" => Some(ListType::Atomic),
                    "set" => Some(ListType::Set),
                    "map" => Some(ListType::Map),
                    _ => None,
                }
            }
            "keys" => out.list_keys = value.split(',').collect(),
            "map" => {
                out.map_type = match value {
                    "atomic" => Some(MapType::Atomic),
                    "granular" => Some(MapType::Granular),
                    _ => None,
                }
            }
            "strategy" => out.patch_strategy = Some(value),
            "mergekey" => out.merge_key = Some(value),
            "default" => out.default = serde_json::from_str(value).ok(),
            "p" => out.pointer = true,
            "a" => out.always = true,
            "z" => out.omit_zero = true,
            "go" => out.go_type = Some(value),
            _ => {}
        }
    }
    Some(out)
}

fn kind(of: &'static Type, spelled: &str) -> Option<Kind> {
    Some(match spelled {
        "s" => Kind::String,
        "b" => Kind::Bool,
        "i" => Kind::Int32,
        "l" => Kind::Int64,
        "d" => Kind::Double,
        "y" => Kind::Bytes,
        "~api.resource.Quantity" => Kind::Quantity,
        "~util.intstr.IntOrString" => Kind::IntOrString,
        "~runtime.RawExtension" => Kind::RawExtension,
        message => {
            let full = match message.split_at_checked(1) {
                Some((".", rest)) => format!("{}.{rest}", of.package),
                Some(("~", rest)) => format!("io.k8s.apimachinery.pkg.{rest}"),
                Some(("!", rest)) => rest.to_string(),
                _ => format!("io.k8s.api.{message}"),
            };
            message_kind(Schema::builtin().lookup(&full)?)
        }
    })
}

fn message_kind(found: &'static Type) -> Kind {
    let meta = found.package == "io.k8s.apimachinery.pkg.apis.meta.v1";
    let extensions = found
        .package
        .starts_with("io.k8s.apiextensions-apiserver.pkg.");
    match found.short {
        "Time" if meta => Kind::Time,
        "MicroTime" if meta => Kind::MicroTime,
        "Duration" if meta => Kind::Duration,
        "FieldsV1" if meta => Kind::FieldsV1,
        "JSON" if extensions => Kind::Json,
        "JSONSchemaPropsOrArray" if extensions => Kind::SchemaOrArray(found),
        "JSONSchemaPropsOrBool" if extensions => Kind::SchemaOrBool(found),
        "JSONSchemaPropsOrStringArray" if extensions => Kind::SchemaOrStrings(found),
        _ if found.is_list => Kind::Items(found),
        _ => Kind::Message(found),
    }
}
