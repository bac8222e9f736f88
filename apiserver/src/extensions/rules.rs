//! `x-kubernetes-validations`: rules of a schema in CEL (upstream `apiextensions-apiserver/pkg/apiserver/schema/cel`).
//! All rules of an object share one budget; on updates, what did not change is not objected to, unless the rule itself
//! compares with the old value.

use std::collections::BTreeMap;

use keelson_machinery::status::field::{FieldError, MAX_FINDINGS, Path};
use keelson_machinery::structural::{Additional, OldItems, Rule, SchemaType, Structural};
use keelson_machinery::value::Value as Json;

use crate::cel::{
    Budget, Environment, EvalError, Members, Program, RUNTIME_BUDGET, Type, Value, escape,
};

/// The longest message that an expression may make (upstream `MaxEvaluatedMessageExpressionSizeBytes`).
const MAX_MESSAGE: usize = 5 * 1024;

/// The rules of a schema and of everything below it.
#[derive(Debug)]
pub struct Rules {
    own: Vec<Compiled>,
    items: Option<Box<Rules>>,
    properties: BTreeMap<Box<str>, Rules>,
    additional: Option<Box<Rules>>,
    of: Type,
}

/// A rule, ready to be asked.
#[derive(Debug)]
struct Compiled {
    rule: Rule,
    program: Result<Program, String>,
    /// It compares with the old value.
    transition: bool,
    message: Option<Program>,
}

/// What is wrong with a rule before anybody asks it.
#[derive(Debug, Default)]
pub struct Faults {
    /// With the expression.
    pub rule: Option<String>,
    /// With the expression that makes the message.
    pub message: Option<String>,
    /// The expression compares with the old value.
    pub transition: bool,
}

/// The type of values of a schema; `None` when nothing is said of them.
pub fn type_of(schema: &Structural, root: bool) -> Option<Type> {
    if schema.int_or_string {
        return Some(Type::Dyn);
    }
    let format = schema
        .checks
        .as_ref()
        .and_then(|checks| checks.format.as_deref())
        .unwrap_or_default();
    Some(match schema.kind {
        SchemaType::Array => {
            let items = schema.items.as_deref()?;
            Type::list(type_of(items, items.embedded)?)
        }
        SchemaType::Object => match &schema.additional {
            Some(Additional::Schema(below)) => {
                Type::map(Type::String, type_of(below, below.embedded)?)
            }
            _ => object_type(schema, root || schema.embedded),
        },
        SchemaType::String => match format {
            "byte" => Type::Bytes,
            "duration" => Type::Duration,
            "date" | "date-time" => Type::Timestamp,
            _ => Type::String,
        },
        SchemaType::Boolean => Type::Bool,
        SchemaType::Number => Type::Double,
        SchemaType::Integer => Type::Int,
        SchemaType::Any => return None,
    })
}

fn object_type(schema: &Structural, root: bool) -> Type {
    let mut fields: Vec<(String, Type)> = Vec::new();
    for (name, property) in &schema.properties {
        if root && matches!(&**name, "kind" | "apiVersion" | "metadata") {
            continue;
        }
        if let (Some(of), Some(name)) = (type_of(property, property.embedded), escape::escape(name))
        {
            fields.push((name, of));
        }
    }
    if root {
        let names = [("name", Type::String), ("generateName", Type::String)];
        fields.push(("kind".to_string(), Type::String));
        fields.push(("apiVersion".to_string(), Type::String));
        fields.push(("metadata".to_string(), Members::object("object", names)));
    }
    Members::named("object", fields)
}

fn environment(of: &Type, optional: bool) -> Environment {
    let old = match optional {
        true => Type::optional(of.clone()),
        false => of.clone(),
    };
    Environment::new()
        .with("self", of.clone())
        .with("oldSelf", old)
}

fn compile(rule: &Rule, of: &Type) -> (Result<Program, String>, Option<Result<Program, String>>) {
    let env = environment(of, rule.optional_old_self == Some(true));
    let program = match Program::compile(&rule.rule, &env) {
        Ok(program) if matches!(program.output(), Type::Bool) => Ok(program),
        Ok(_) => Err("cel expression must evaluate to a bool".to_string()),
        Err(error) => Err(format!("compilation failed: {error}")),
    };
    let message = (!rule.message_expression.is_empty()).then(|| {
        match Program::compile(&rule.message_expression, &env) {
            Ok(program) if matches!(program.output(), Type::String) => Ok(program),
            Ok(_) => Err("messageExpression must evaluate to a string".to_string()),
            Err(error) => Err(format!("messageExpression compilation failed: {error}")),
        }
    });
    (program, message)
}

/// Looks at the rules that stand at one schema.
pub fn faults(schema: &Structural, root: bool) -> Vec<Faults> {
    let Some(of) = type_of(schema, root) else {
        return Vec::new();
    };
    let look = |rule: &Rule| {
        let (program, message) = compile(rule, &of);
        Faults {
            transition: program.as_ref().is_ok_and(|p| p.mentions("oldSelf")),
            rule: program.err(),
            message: message.and_then(Result::err),
        }
    };
    schema.rules.iter().map(look).collect()
}

impl Rules {
    /// Compiles the rules of a whole schema; `None` when it has none.
    pub fn of(schema: &Structural) -> Option<Rules> {
        schema
            .has_rules()
            .then(|| Rules::at(schema, true))
            .flatten()
    }

    fn at(schema: &Structural, root: bool) -> Option<Rules> {
        let below = |schema: &Structural| {
            schema
                .has_rules()
                .then(|| Rules::at(schema, schema.embedded))
                .flatten()
        };
        let of = type_of(schema, root)?;
        let own = schema.rules.iter().map(|rule| {
            let (program, message) = compile(rule, &of);
            Compiled {
                transition: program.as_ref().is_ok_and(|p| p.mentions("oldSelf")),
                rule: rule.clone(),
                program,
                message: message.and_then(Result::ok),
            }
        });
        Some(Rules {
            own: own.collect(),
            items: schema.items.as_deref().and_then(below).map(Box::new),
            properties: schema
                .properties
                .iter()
                .filter_map(|(name, property)| Some((name.clone(), below(property)?)))
                .collect(),
            additional: match &schema.additional {
                Some(Additional::Schema(schema)) => below(schema).map(Box::new),
                _ => None,
            },
            of,
        })
    }

    /// What the rules say of an object that replaces `old`.
    pub fn validate(
        &self,
        schema: &Structural,
        object: &Json,
        old: Option<&Json>,
    ) -> Vec<FieldError> {
        let mut run = Run {
            budget: Budget::new(RUNTIME_BUDGET),
            found: Vec::new(),
            ended: false,
        };
        let correlation = Correlation {
            current: old,
            parent: None,
            root: true,
        };
        run.node(self, schema, object, old, correlation, &Path::root());
        run.found
    }
}

/// What an old value is, and that of the nearest part that has one.
#[derive(Clone, Copy)]
struct Correlation<'a> {
    current: Option<&'a Json>,
    parent: Option<(&'a Json, &'a Json)>,
    root: bool,
}

impl<'a> Correlation<'a> {
    fn below(self, new: &'a Json, old: Option<&'a Json>, name: Option<&str>) -> Correlation<'a> {
        let Some(current) = self.current else {
            return Correlation {
                root: false,
                ..self
            };
        };
        if self.root && matches!(name, Some("apiVersion" | "kind")) {
            return Correlation {
                current: None,
                parent: None,
                root: false,
            };
        }
        Correlation {
            current: old,
            parent: Some((new, current)),
            root: false,
        }
    }

    fn is_unchanged(self, new: &Json) -> bool {
        match (self.current, self.parent) {
            (Some(old), _) => old == new,
            (None, Some((new, old))) => new == old,
            (None, None) => false,
        }
    }
}

struct Run {
    budget: Budget,
    found: Vec<FieldError>,
    /// The budget is used up, or enough has been found.
    ended: bool,
}

/// What is said of a rule that is not kept.
fn said(rule: &Rule) -> &str {
    match rule.message.trim() {
        "" => rule.rule.trim(),
        message => message,
    }
}

impl Run {
    fn node<'a>(
        &mut self,
        rules: &Rules,
        schema: &Structural,
        value: &'a Json,
        old: Option<&'a Json>,
        correlation: Correlation<'a>,
        path: &Path,
    ) {
        if self.ended || value.is_null() {
            return;
        }
        let old = old.filter(|old| !old.is_null());
        self.own(rules, schema, value, old, correlation, path);
        match value {
            Json::Array(items) => {
                let (Some(rules), Some(below)) = (&rules.items, &schema.items) else {
                    return;
                };
                let olds = OldItems::new(schema, old);
                for (index, item) in items.iter().enumerate() {
                    let before = olds.as_ref().and_then(|olds| olds.of(item));
                    let correlation = correlation.below(value, before, None);
                    let path = path.index(index);
                    self.node(rules, below, item, before, correlation, &path);
                }
            }
            Json::Object(members) => {
                for (name, member) in members {
                    let before = old.and_then(|old| old.get(name));
                    let current = before.filter(|_| !schema.atomic_map);
                    let correlation = correlation.below(value, current, Some(name));
                    match (
                        schema.properties.get(name.as_str()),
                        rules.properties.get(name.as_str()),
                    ) {
                        (Some(below), Some(rules)) => {
                            let path = path.child(name);
                            self.node(rules, below, member, before, correlation, &path);
                        }
                        (Some(_), None) => {}
                        (None, _) => {
                            if let (Some(rules), Some(Additional::Schema(below))) =
                                (&rules.additional, &schema.additional)
                            {
                                let path = path.key(name);
                                self.node(rules, below, member, before, correlation, &path);
                            }
                        }
                    }
                }
            }
            _ => {}
        }
    }

    fn own(
        &mut self,
        rules: &Rules,
        schema: &Structural,
        value: &Json,
        old: Option<&Json>,
        correlation: Correlation<'_>,
        path: &Path,
    ) {
        if rules.own.is_empty() {
            return;
        }
        let kind = schema.kind.name();
        let read = |json| Value::from_json(json, &rules.of);
        let (new_value, old_value) = match (read(value), old.map(read).transpose()) {
            (Ok(new), Ok(old)) => (new, old),
            (Err(error), _) | (_, Err(error)) => {
                self.found
                    .push(FieldError::invalid(path, kind, error.to_string()));
                return;
            }
        };
        for compiled in &rules.own {
            if self.found.len() >= MAX_FINDINGS {
                self.ended = true;
                return;
            }
            let rule = &compiled.rule;
            let program = match &compiled.program {
                Ok(program) => program,
                Err(why) => {
                    let why = format!("rule compile error: {why}");
                    self.found.push(FieldError::invalid(path, kind, why));
                    continue;
                }
            };
            let optional = rule.optional_old_self == Some(true);
            if compiled.transition && old_value.is_none() && !optional {
                continue;
            }
            let mut variables = vec![("self", new_value.clone())];
            if optional {
                let old = old_value.clone().map(std::sync::Arc::new);
                variables.push(("oldSelf", Value::Optional(old)));
            } else if let Some(old) = &old_value {
                variables.push(("oldSelf", old.clone()));
            }
            match program.evaluate(&variables, &mut self.budget) {
                Ok(Value::Bool(true)) => continue,
                Ok(_) => {}
                Err(EvalError::Cost) if self.budget.left() == 0 => {
                    let why = "validation failed due to running out of cost budget, no further validation rules will be run";
                    self.found.push(FieldError::invalid(path, kind, why));
                    self.ended = true;
                    return;
                }
                Err(error @ EvalError::Cost) => {
                    let why = format!(
                        "'{error}': no further validation rules will be run due to call cost exceeds limit for rule: {}",
                        said(rule)
                    );
                    self.found.push(FieldError::invalid(path, kind, why));
                    self.ended = true;
                    return;
                }
                Err(error) => {
                    let text = error.to_string();
                    let why = if text.starts_with("no such overload") {
                        format!(
                            "'{text}': call arguments did not match a supported operator, function or macro signature for rule: {}",
                            said(rule)
                        )
                    } else {
                        format!("{text} evaluating rule: {}", said(rule))
                    };
                    self.found.push(FieldError::invalid(path, kind, why));
                    continue;
                }
            }
            if !compiled.transition && correlation.is_unchanged(value) {
                continue;
            }
            let made = compiled.message.as_ref().and_then(|message| {
                match message.evaluate(&variables, &mut self.budget) {
                    Ok(Value::String(text)) => fit_message(&text),
                    _ => None,
                }
            });
            let detail = made.unwrap_or_else(|| match rule.message.trim() {
                "" => format!("failed rule: {}", rule.rule.trim()),
                message => message.to_string(),
            });
            let at = below(path, &rule.field_path);
            self.found.push(match (&*rule.reason, value) {
                ("FieldValueForbidden", _) => FieldError::forbidden(&at, detail),
                ("FieldValueRequired", _) => FieldError::required(&at, detail),
                ("FieldValueDuplicate", value) => FieldError::duplicate(&at, value.clone()),
                // Objects and lists are too long to be shown.
                (_, Json::Object(_) | Json::Array(_)) => {
                    FieldError::invalid_as_text(&at, String::new(), detail)
                }
                (_, value) => FieldError::invalid(&at, value.clone(), detail),
            });
        }
    }
}

/// A message that can be shown.
fn fit_message(text: &str) -> Option<String> {
    let text = text.trim();
    let fits = !text.is_empty() && text.len() <= MAX_MESSAGE && !text.contains('\n');
    fits.then(|| text.to_string())
}

/// The path of a field named by a rule: `.a['b']`.
fn below(path: &Path, field_path: &str) -> Path {
    let mut path = path.clone();
    let mut rest = field_path.trim();
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('.') {
            let end = after.find(['.', '[']).unwrap_or(after.len());
            path = path.child(&after[..end]);
            rest = &after[end..];
        } else if let Some((name, after)) = rest
            .strip_prefix("['")
            .and_then(|after| after.split_once("']"))
        {
            path = path.child(name);
            rest = after;
        } else {
            break;
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schema(items: &Json) -> Structural {
        let json = json!({"type": "object", "properties": {"list": items}});
        Structural::parse_root(&json)
    }

    /// A long list whose items are wrong costs no more than what is told of it, and is not searched for each item.
    #[test]
    fn what_is_wrong_with_long_lists_is_bounded() {
        let numbers = schema(&json!({"type": "array", "items": {
            "type": "integer", "x-kubernetes-validations": [{"rule": "self > 0", "message": "m".repeat(2000)}],
        }}));
        let rules = Rules::of(&numbers).expect("rules");
        let good: Vec<i32> = vec![1; 200_000];
        let mixed = [good.clone(), vec![0; 200_000]].concat();
        let (old, new) = (json!({"list": good}), json!({"list": mixed}));
        let found = rules.validate(&numbers, &new, Some(&old));
        assert_eq!(found.len(), MAX_FINDINGS);

        let keyed = schema(&json!({
            "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
            "items": {"type": "object", "properties": {"k": {"type": "integer"}, "v": {
                "type": "integer", "x-kubernetes-validations": [{"rule": "self >= oldSelf"}],
            }}},
        }));
        let rules = Rules::of(&keyed).expect("rules");
        let list = |v: i32| {
            let items = (0..50_000).map(|k| json!({"k": k, "v": if k == 49_999 { v } else { 0 }}));
            json!({"list": items.collect::<Vec<_>>()})
        };
        let found = rules.validate(&keyed, &list(-1), Some(&list(0)));
        assert_eq!(found.len(), 1);
        assert!(rules.validate(&keyed, &list(1), Some(&list(0))).is_empty());
    }
}
