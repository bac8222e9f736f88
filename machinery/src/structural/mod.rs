//! Structural schemas: what a CustomResourceDefinition says of the fields of its objects, in a compact form that
//! pruning, defaulting, validation and apply share (upstream `apiextensions-apiserver/pkg/apiserver/schema`).
//!
//! A [`Structural`] is made from the `openAPIV3Schema` of a definition. It keeps no descriptions: those are wanted only
//! by documents, which are made from the definition itself.

mod correlate;
mod embedded;
mod format;
mod lists;
mod prune;
mod validate;

pub use correlate::OldItems;
pub use embedded::{Malformed, coerce, coerce_metadata, validate_embedded};
pub use format::{known_format, unrecognized_format};
pub use lists::validate_lists;
pub use prune::{drop_nulls, prune, set_defaults};
pub use validate::{validate, validate_update};

use std::collections::BTreeMap;
use std::sync::OnceLock;

use crate::value::{self, Value};

/// The `type` of a schema.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SchemaType {
    /// Not said.
    #[default]
    Any,
    /// `object`.
    Object,
    /// `array`.
    Array,
    /// `string`.
    String,
    /// `integer`.
    Integer,
    /// `number`.
    Number,
    /// `boolean`.
    Boolean,
}

impl SchemaType {
    /// By the name in the schema; what is unknown is not said.
    pub fn parse(text: &str) -> SchemaType {
        match text {
            "object" => SchemaType::Object,
            "array" => SchemaType::Array,
            "string" => SchemaType::String,
            "integer" => SchemaType::Integer,
            "number" => SchemaType::Number,
            "boolean" => SchemaType::Boolean,
            _ => SchemaType::Any,
        }
    }

    /// The name in the schema; empty for [`SchemaType::Any`].
    pub fn name(self) -> &'static str {
        match self {
            SchemaType::Any => "",
            SchemaType::Object => "object",
            SchemaType::Array => "array",
            SchemaType::String => "string",
            SchemaType::Integer => "integer",
            SchemaType::Number => "number",
            SchemaType::Boolean => "boolean",
        }
    }
}

/// `x-kubernetes-list-type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ListKind {
    /// Replaced as a whole; also when nothing is said.
    #[default]
    Atomic,
    /// Items are unique.
    Set,
    /// Items are found by their keys.
    Map,
}

/// `additionalProperties`.
#[derive(Debug)]
pub enum Additional {
    /// Members of any name are of this schema.
    Schema(Box<Structural>),
    /// Whether there may be members of any name.
    Allowed(bool),
}

/// One node of a structural schema, also of the value validations below `allOf`, `anyOf`, `oneOf` and `not`.
#[derive(Debug, Default)]
pub struct Structural {
    /// `type`.
    pub kind: SchemaType,
    /// `nullable`.
    pub nullable: bool,
    /// `x-kubernetes-int-or-string`.
    pub int_or_string: bool,
    /// `x-kubernetes-embedded-resource`, or the root of a custom resource.
    pub embedded: bool,
    /// `x-kubernetes-preserve-unknown-fields`.
    pub preserve: bool,
    /// `x-kubernetes-map-type: atomic`.
    pub atomic_map: bool,
    /// `x-kubernetes-list-type`.
    pub list: ListKind,
    /// `x-kubernetes-list-map-keys`.
    pub list_keys: Box<[Box<str>]>,
    /// `properties`.
    pub properties: BTreeMap<Box<str>, Structural>,
    /// `additionalProperties`.
    pub additional: Option<Additional>,
    /// `items`.
    pub items: Option<Box<Structural>>,
    /// `default`.
    pub default: Option<Box<Value>>,
    /// Rules about values.
    pub checks: Option<Box<Checks>>,
    /// `x-kubernetes-validations`.
    pub rules: Box<[Rule]>,
}

/// Rules about a value.
#[derive(Debug, Default)]
pub struct Checks {
    /// `format`, when it is one that is checked.
    pub format: Option<Box<str>>,
    /// `minimum`, and whether the bound itself is excluded.
    pub minimum: Option<(f64, bool)>,
    /// `maximum`, and whether the bound itself is excluded.
    pub maximum: Option<(f64, bool)>,
    /// `multipleOf`.
    pub multiple_of: Option<f64>,
    /// `minLength`, in characters.
    pub min_length: Option<i64>,
    /// `maxLength`, in characters.
    pub max_length: Option<i64>,
    /// `pattern`.
    pub pattern: Option<Pattern>,
    /// `minItems`.
    pub min_items: Option<i64>,
    /// `maxItems`.
    pub max_items: Option<i64>,
    /// `uniqueItems`.
    pub unique_items: bool,
    /// `minProperties`.
    pub min_properties: Option<i64>,
    /// `maxProperties`.
    pub max_properties: Option<i64>,
    /// `required`.
    pub required: Box<[Box<str>]>,
    /// `enum`.
    pub allowed: Box<[Value]>,
    /// `allOf`.
    pub all_of: Box<[Structural]>,
    /// `anyOf`.
    pub any_of: Box<[Structural]>,
    /// `oneOf`.
    pub one_of: Box<[Structural]>,
    /// `not`.
    pub not: Option<Box<Structural>>,
}

/// One entry of `x-kubernetes-validations`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// The expression.
    pub rule: Box<str>,
    /// What is said when it does not hold.
    pub message: Box<str>,
    /// An expression that makes the message.
    pub message_expression: Box<str>,
    /// Reason of the error.
    pub reason: Box<str>,
    /// Field below, that the error names.
    pub field_path: Box<str>,
    /// Whether `oldSelf` is optional.
    pub optional_old_self: Option<bool>,
}

/// A regular expression, compiled when first needed.
#[derive(Debug)]
pub struct Pattern {
    text: Box<str>,
    compiled: OnceLock<Result<regex::Regex, String>>,
}

impl Pattern {
    fn new(text: &str) -> Pattern {
        Pattern {
            text: text.into(),
            compiled: OnceLock::new(),
        }
    }

    /// The expression as it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether `text` has a match; an error says why the expression is none.
    pub fn is_match(&self, text: &str) -> Result<bool, &str> {
        match self.compiled.get_or_init(|| compile(&self.text)) {
            Ok(regex) => Ok(regex.is_match(text)),
            Err(why) => Err(why),
        }
    }
}

/// Compiles a Go regular expression. Memory is bounded; matching is linear in any case.
pub fn compile(text: &str) -> Result<regex::Regex, String> {
    // In Go `\d`, `\w`, `\s` and `\b` know ASCII only, `$` is the end of the text, and `\z` its other name.
    regex::RegexBuilder::new(&ascii_classes(text))
        .size_limit(4 << 20)
        .build()
        .map_err(|error| {
            let why = error.to_string();
            let last = why.lines().last().unwrap_or_default().trim();
            format!(
                "error parsing regexp: {}",
                last.strip_prefix("error: ").unwrap_or(last)
            )
        })
}

/// Turns Perl classes into ASCII ones, as Go reads them; characters themselves stay Unicode.
fn ascii_classes(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    let mut in_class = false;
    while let Some(c) = chars.next() {
        match c {
            '\\' => match (chars.next(), in_class) {
                (Some('d'), false) => out.push_str("[0-9]"),
                (Some('d'), true) => out.push_str("0-9"),
                (Some('D'), false) => out.push_str("[^0-9]"),
                (Some('w'), false) => out.push_str("[0-9A-Za-z_]"),
                (Some('w'), true) => out.push_str("0-9A-Za-z_"),
                (Some('W'), false) => out.push_str("[^0-9A-Za-z_]"),
                (Some('s'), false) => out.push_str("[\\t\\n\\f\\r ]"),
                (Some('s'), true) => out.push_str("\\t\\n\\f\\r "),
                (Some('S'), false) => out.push_str("[^\\t\\n\\f\\r ]"),
                (Some('b'), false) => out.push_str("(?-u:\\b)"),
                (Some('Q'), false) => {
                    let rest = chars.as_str();
                    let (quoted, after) = rest.split_once("\\E").unwrap_or((rest, ""));
                    out.push_str(&regex::escape(quoted));
                    chars = after.chars();
                }
                (Some(other), _) => {
                    out.push('\\');
                    out.push(other);
                }
                (None, _) => out.push('\\'),
            },
            '[' if !in_class => {
                in_class = true;
                out.push('[');
                // A bracket at the beginning of a class stands for itself.
                let mut ahead = chars.clone();
                let mut first = ahead.next();
                if first == Some('^') {
                    out.push('^');
                    chars.next();
                    first = ahead.next();
                }
                if first == Some(']') {
                    out.push_str("\\]");
                    chars.next();
                }
            }
            '[' => {
                // `[:alpha:]` is a class, any other bracket a character; and set operations are unknown to Go.
                let rest = chars.as_str();
                if rest.starts_with(':') && rest.contains(":]") {
                    let end = rest.find(":]").map_or(rest.len(), |at| at + 2);
                    out.push('[');
                    out.push_str(&rest[..end]);
                    chars = rest[end..].chars();
                } else {
                    out.push_str("\\[");
                }
            }
            ']' if in_class => {
                in_class = false;
                out.push(']');
            }
            '&' | '~' if in_class => {
                out.push('\\');
                out.push(c);
            }
            other => out.push(other),
        }
    }
    out
}

impl Structural {
    /// Reads an `openAPIV3Schema`.
    pub fn parse(schema: &Value) -> Structural {
        let text = |name: &str| value::str_or_empty(schema, &[name]);
        let flag = |name: &str| value::get_bool(schema, &[name]).unwrap_or(false);
        let nodes = |name: &str| -> Box<[Structural]> {
            value::items(schema, &[name])
                .iter()
                .map(Structural::parse)
                .collect()
        };
        let texts = |name: &str| -> Box<[Box<str>]> {
            value::items(schema, &[name])
                .iter()
                .filter_map(Value::as_str)
                .map(Box::from)
                .collect()
        };
        let kind = SchemaType::parse(text("type"));
        let int_or_string = flag("x-kubernetes-int-or-string");
        let number = |name: &str| value::get(schema, &[name]).and_then(Value::as_f64);
        let count = |name: &str| value::get_i64(schema, &[name]);
        let format = text("format");
        let effective = if int_or_string { SchemaType::Any } else { kind };
        let checks = Checks {
            format: known_format(effective, format).then(|| format.into()),
            minimum: number("minimum").map(|bound| (bound, flag("exclusiveMinimum"))),
            maximum: number("maximum").map(|bound| (bound, flag("exclusiveMaximum"))),
            multiple_of: number("multipleOf"),
            min_length: count("minLength"),
            max_length: count("maxLength"),
            pattern: Some(text("pattern"))
                .filter(|p| !p.is_empty())
                .map(Pattern::new),
            min_items: count("minItems"),
            max_items: count("maxItems"),
            unique_items: flag("uniqueItems"),
            min_properties: count("minProperties"),
            max_properties: count("maxProperties"),
            required: texts("required"),
            allowed: value::items(schema, &["enum"]).into(),
            all_of: nodes("allOf"),
            any_of: nodes("anyOf"),
            one_of: nodes("oneOf"),
            not: value::get(schema, &["not"])
                .filter(|not| not.is_object())
                .map(|not| Box::new(Structural::parse(not))),
        };
        Structural {
            kind,
            nullable: flag("nullable"),
            int_or_string,
            embedded: flag("x-kubernetes-embedded-resource"),
            preserve: flag("x-kubernetes-preserve-unknown-fields"),
            atomic_map: text("x-kubernetes-map-type") == "atomic",
            list: match text("x-kubernetes-list-type") {
                "set" => ListKind::Set,
                "map" => ListKind::Map,
                _ => ListKind::Atomic,
            },
            list_keys: texts("x-kubernetes-list-map-keys"),
            properties: value::get_object(schema, &["properties"])
                .into_iter()
                .flatten()
                .map(|(name, node)| (name.as_str().into(), Structural::parse(node)))
                .collect(),
            additional: match schema.get("additionalProperties") {
                Some(Value::Bool(allowed)) => Some(Additional::Allowed(*allowed)),
                Some(node @ Value::Object(_)) => {
                    Some(Additional::Schema(Box::new(Structural::parse(node))))
                }
                _ => None,
            },
            items: value::get(schema, &["items"])
                .filter(|items| items.is_object())
                .map(|items| Box::new(Structural::parse(items))),
            default: value::get(schema, &["default"])
                .filter(|default| !default.is_null())
                .map(|default| Box::new(default.clone())),
            checks: (!checks.is_empty()).then(|| Box::new(checks)),
            rules: value::items(schema, &["x-kubernetes-validations"])
                .iter()
                .map(Rule::parse)
                .collect(),
        }
    }

    /// The schema of a whole custom resource: its metadata are those of every object, whatever the schema says, and
    /// defaults hold nothing that would be pruned.
    pub fn parse_root(schema: &Value) -> Structural {
        let mut root = Structural::parse(schema);
        root.embedded = true;
        prune_defaults(&mut root);
        root
    }

    /// The schema of a member of this name; `None` when nothing is said of it.
    pub fn member(&self, name: &str) -> Option<&Structural> {
        match (self.properties.get(name), &self.additional) {
            (Some(property), _) => Some(property),
            (None, Some(Additional::Schema(schema))) => Some(schema),
            (None, _) => None,
        }
    }

    /// Whether any node has a rule in an expression language.
    pub fn has_rules(&self) -> bool {
        !self.rules.is_empty()
            || self.items.as_ref().is_some_and(|items| items.has_rules())
            || self.properties.values().any(Structural::has_rules)
            || matches!(&self.additional, Some(Additional::Schema(schema)) if schema.has_rules())
    }
}

fn prune_defaults(node: &mut Structural) {
    if let Some(mut default) = node.default.take() {
        prune(&mut default, node, false);
        node.default = Some(default);
    }
    if let Some(items) = &mut node.items {
        prune_defaults(items);
    }
    if let Some(Additional::Schema(schema)) = &mut node.additional {
        prune_defaults(schema);
    }
    node.properties.values_mut().for_each(prune_defaults);
}

impl Checks {
    fn is_empty(&self) -> bool {
        self.format.is_none()
            && self.minimum.is_none()
            && self.maximum.is_none()
            && self.multiple_of.is_none()
            && self.min_length.is_none()
            && self.max_length.is_none()
            && self.pattern.is_none()
            && self.min_items.is_none()
            && self.max_items.is_none()
            && !self.unique_items
            && self.min_properties.is_none()
            && self.max_properties.is_none()
            && self.required.is_empty()
            && self.allowed.is_empty()
            && self.all_of.is_empty()
            && self.any_of.is_empty()
            && self.one_of.is_empty()
            && self.not.is_none()
    }
}

impl Rule {
    fn parse(rule: &Value) -> Rule {
        let text = |name: &str| value::str_or_empty(rule, &[name]).into();
        Rule {
            rule: text("rule"),
            message: text("message"),
            message_expression: text("messageExpression"),
            reason: text("reason"),
            field_path: text("fieldPath"),
            optional_old_self: value::get_bool(rule, &["optionalOldSelf"]),
        }
    }
}

#[cfg(test)]
mod tests;
