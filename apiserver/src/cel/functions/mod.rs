//! The functions of expressions: what they take and give, and what they do.
//!
//! A declaration is a line of text, `(string, int) -> bool` for a function, `string.(int) -> bool` for a method; `A` and
//! `B` stand for any type. The checker reads the declarations; at run time a function looks at the values it gets.

mod kubernetes;
mod lists;
mod network;
mod standard;
mod strings;
mod time;

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use super::authorizer;
use super::error::EvalError;
use super::eval::Scope;
use super::types::Type;
use super::value::Value;

pub use lists::sorted_by;
pub use standard::regex;

/// What a function does. A method's target is the first argument.
pub type Run = for<'s, 'a> fn(&mut Scope<'s, 'a>, &[Value<'a>]) -> Result<Value<'a>, EvalError>;

/// Name, declarations and code of a function.
pub type Row = (&'static str, &'static [&'static str], Run);

/// One way to call a function.
#[derive(Debug)]
pub struct Overload {
    /// Whether it is a method.
    pub member: bool,
    /// Types of the arguments; a method's target first.
    pub args: Vec<Type>,
    /// Type of the result.
    pub result: Type,
}

/// A function with all ways to call it.
pub struct Function {
    /// Its name.
    pub name: &'static str,
    /// The ways to call it.
    pub overloads: Vec<Overload>,
    /// What it does.
    pub run: Run,
}

impl std::fmt::Debug for Function {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

static FUNCTIONS: LazyLock<HashMap<&'static str, Function>> = LazyLock::new(|| {
    let rows = [
        standard::ROWS,
        strings::ROWS,
        time::ROWS,
        lists::ROWS,
        network::ROWS,
        kubernetes::ROWS,
        authorizer::ROWS,
    ];
    let mut functions = HashMap::new();
    for (name, declarations, run) in rows.into_iter().flatten() {
        let overloads = declarations.iter().filter_map(|text| read(text)).collect();
        functions.insert(
            *name,
            Function {
                name,
                overloads,
                run: *run,
            },
        );
    }
    functions
});

/// The function of a name.
pub fn lookup(name: &str) -> Option<&'static Function> {
    FUNCTIONS.get(name)
}

/// Reads a declaration.
fn read(text: &str) -> Option<Overload> {
    let (head, result) = text.split_once(" -> ")?;
    let (target, args) = head.split_once('(').and_then(|(before, _)| {
        if let Some(dot) = head.find(".(") {
            return Some((Some(&head[..dot]), &head[dot + 2..head.len() - 1]));
        }
        before.is_empty().then(|| (None, &head[1..head.len() - 1]))
    })?;
    let mut types: Vec<Type> = target.into_iter().map(type_named).collect();
    let mut depth = 0;
    let mut start = 0;
    for (at, c) in args.char_indices().chain([(args.len(), ',')]) {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                let one = args[start..at].trim();
                if !one.is_empty() {
                    types.push(type_named(one));
                }
                start = at + 1;
            }
            _ => {}
        }
    }
    Some(Overload {
        member: target.is_some(),
        args: types,
        result: type_named(result),
    })
}

/// A type by its name in declarations.
fn type_named(name: &str) -> Type {
    let name = name.trim();
    if let Some((outer, inner)) = name.strip_suffix(')').and_then(|name| name.split_once('(')) {
        return match outer {
            "list" => Type::list(type_named(inner)),
            "optional" => Type::optional(type_named(inner)),
            "type" => Type::Type(Arc::new(type_named(inner))),
            _ => {
                let mut depth = 0;
                let comma = inner.char_indices().find(|(_, c)| {
                    match c {
                        '(' => depth += 1,
                        ')' => depth -= 1,
                        ',' if depth == 0 => return true,
                        _ => {}
                    }
                    false
                });
                let comma = comma.map_or(inner.len(), |(at, _)| at);
                let value = inner.get(comma + 1..).unwrap_or_default();
                Type::map(type_named(&inner[..comma]), type_named(value))
            }
        };
    }
    match name {
        "A" => Type::Param(0),
        "B" => Type::Param(1),
        "null" => Type::Null,
        "bool" => Type::Bool,
        "int" => Type::Int,
        "uint" => Type::Uint,
        "double" => Type::Double,
        "string" => Type::String,
        "bytes" => Type::Bytes,
        "timestamp" => Type::Timestamp,
        "duration" => Type::Duration,
        "url" => Type::Opaque(network::URL),
        "ip" => Type::Opaque(network::IP),
        "cidr" => Type::Opaque(network::CIDR),
        "quantity" => Type::Opaque(kubernetes::QUANTITY),
        "semver" => Type::Opaque(kubernetes::SEMVER),
        "format" => Type::Opaque(kubernetes::FORMAT),
        "authorizer" => Type::Opaque(authorizer::AUTHORIZER),
        "path" => Type::Opaque(authorizer::PATH_CHECK),
        "group" => Type::Opaque(authorizer::GROUP_CHECK),
        "resource" => Type::Opaque(authorizer::RESOURCE_CHECK),
        "decision" => Type::Opaque(authorizer::DECISION),
        _ => Type::Dyn,
    }
}

/// The text of a value, or no such overload.
fn text<'v>(value: &'v Value<'_>) -> Result<&'v str, EvalError> {
    match value {
        Value::String(text) => Ok(text),
        _ => Err(EvalError::no_such_overload()),
    }
}

/// The number of a value, or no such overload.
fn int(value: &Value<'_>) -> Result<i64, EvalError> {
    match value {
        Value::Int(n) => Ok(*n),
        _ => Err(EvalError::no_such_overload()),
    }
}

/// The items of a value, or no such overload.
fn items<'a>(value: &Value<'a>) -> Result<Vec<Value<'a>>, EvalError> {
    value.items().ok_or_else(EvalError::no_such_overload)?
}

/// The opaque value of a type, or no such overload.
fn opaque<'v, T: 'static>(value: &'v Value<'_>) -> Result<&'v T, EvalError> {
    match value {
        Value::Opaque(opaque) => opaque
            .as_any()
            .downcast_ref()
            .ok_or_else(EvalError::no_such_overload),
        _ => Err(EvalError::no_such_overload()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_declaration_can_be_read() {
        let rows = [
            standard::ROWS,
            strings::ROWS,
            time::ROWS,
            lists::ROWS,
            network::ROWS,
            kubernetes::ROWS,
            authorizer::ROWS,
        ];
        let mut seen = std::collections::HashSet::new();
        for (name, declarations, _) in rows.into_iter().flatten() {
            assert!(seen.insert(name), "{name} stands twice");
            for text in *declarations {
                let read = read(text).unwrap_or_else(|| panic!("{name}: {text}"));
                // `dyn` is the only word that may mean what is not known.
                assert_eq!(
                    text.contains("dyn"),
                    read.args
                        .iter()
                        .chain([&read.result])
                        .any(|of| of.to_string().contains("dyn")),
                    "{name}: {text}"
                );
            }
        }
    }
}
