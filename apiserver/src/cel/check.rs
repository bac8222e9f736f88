//! The type checker: every name is known, every function has a way to be called like this.

use std::sync::Arc;

use super::ast::{Expr, Fold, Kind, Literal, Step};
use super::env::Environment;
use super::error::Issue;
use super::eval::type_named;
use super::functions::{self, Function};
use super::types::Type;

/// Checks a tree, settles what its names mean, and returns its type.
pub fn check(expr: &mut Expr, env: &Environment) -> Result<Type, Vec<Issue>> {
    let mut checker = Checker {
        env,
        locals: Vec::new(),
        bound: Vec::new(),
        mixed: false,
        issues: Vec::new(),
    };
    let of = checker.check(expr);
    if checker.issues.is_empty() {
        Ok(checker.settled(&of))
    } else {
        Err(checker.issues)
    }
}

struct Checker<'e> {
    env: &'e Environment,
    locals: Vec<(Arc<str>, Type)>,
    /// What open types turned out to be.
    bound: Vec<Option<Type>>,
    /// Within arguments of `format`, whose lists may hold anything.
    mixed: bool,
    issues: Vec<Issue>,
}

impl Checker<'_> {
    fn issue(&mut self, at: usize, message: impl Into<String>) -> Type {
        self.issues.push(Issue {
            at,
            message: message.into(),
        });
        Type::Error
    }

    fn fresh(&mut self) -> Type {
        self.bound.push(None);
        Type::Param(self.bound.len() - 1)
    }

    /// A type with the open ones at its top replaced.
    fn resolved(&self, of: &Type) -> Type {
        let mut of = of.clone();
        while let Type::Param(index) = of {
            match self.bound.get(index) {
                Some(Some(known)) => of = known.clone(),
                _ => break,
            }
        }
        of
    }

    /// A type with all open ones replaced, by `dyn` where nothing is known.
    fn settled(&self, of: &Type) -> Type {
        match self.resolved(of) {
            Type::Param(_) => Type::Dyn,
            Type::List(item) => Type::list(self.settled(&item)),
            Type::Map(key, value) => Type::map(self.settled(&key), self.settled(&value)),
            Type::Optional(inner) => Type::optional(self.settled(&inner)),
            Type::Type(inner) => Type::Type(Arc::new(self.settled(&inner))),
            other => other,
        }
    }

    fn occurs(&self, index: usize, of: &Type) -> bool {
        match self.resolved(of) {
            Type::Param(other) => other == index,
            Type::List(inner) | Type::Optional(inner) | Type::Type(inner) => {
                self.occurs(index, &inner)
            }
            Type::Map(key, value) => self.occurs(index, &key) || self.occurs(index, &value),
            _ => false,
        }
    }

    /// Whether a value of `from` may stand where `to` is wanted; settles open types.
    fn assign(&mut self, from: &Type, to: &Type) -> bool {
        let before = self.bound.clone();
        let fits = self.unify(from, to);
        if !fits {
            self.bound = before;
        }
        fits
    }

    fn unify(&mut self, from: &Type, to: &Type) -> bool {
        let (from, to) = (self.resolved(from), self.resolved(to));
        match (&from, &to) {
            (Type::Param(a), Type::Param(b)) if a == b => true,
            (Type::Param(index), other) | (other, Type::Param(index)) => {
                if self.occurs(*index, other) {
                    return false;
                }
                self.bound[*index] = Some(other.clone());
                true
            }
            (a, b) if a.is_dyn() || b.is_dyn() => true,
            (
                Type::Null,
                Type::Object(_)
                | Type::Opaque(_)
                | Type::Timestamp
                | Type::Duration
                | Type::Optional(_),
            )
            | (
                Type::Object(_)
                | Type::Opaque(_)
                | Type::Timestamp
                | Type::Duration
                | Type::Optional(_),
                Type::Null,
            ) => true,
            (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => {
                self.unify(a, b)
            }
            (Type::Map(a, b), Type::Map(c, d)) => self.unify(a, c) && self.unify(b, d),
            (Type::Type(_), Type::Type(_)) => true,
            (a, b) => a.is_exactly(b),
        }
    }

    fn check(&mut self, expr: &mut Expr) -> Type {
        // A name with dots may be one variable: `authorizer.requestResource`.
        if let Some(name) = qualified(expr)
            && name.contains('.')
            && !self.is_local(&name)
            && let Some(of) = self.env.variable(&name)
        {
            expr.kind = Kind::Ident(name.into());
            return of;
        }
        let at = expr.at;
        match &mut expr.kind {
            Kind::Literal(literal) => match literal {
                Literal::Null => Type::Null,
                Literal::Bool(_) => Type::Bool,
                Literal::Int(_) => Type::Int,
                Literal::Uint(_) => Type::Uint,
                Literal::Double(_) => Type::Double,
                Literal::String(_) => Type::String,
                Literal::Bytes(_) => Type::Bytes,
            },
            Kind::Ident(name) => {
                let name = name.clone();
                self.ident(at, &name)
            }
            Kind::Select {
                operand,
                field,
                test,
                optional,
            } => {
                let (field, test, optional) = (field.clone(), *test, *optional);
                if let Some(known) = qualified(operand).map(|name| format!("{name}.{field}"))
                    && test
                    && !self.is_local(&known)
                    && self.env.variable(&known).is_some()
                {
                    expr.kind = Kind::Literal(Literal::Bool(true));
                    return Type::Bool;
                }
                // The type's own name, such as google.protobuf.Timestamp.
                if !test
                    && !optional
                    && let Some(name) = qualified(operand).map(|name| format!("{name}.{field}"))
                    && !self.is_local(&name)
                    && let Some(of) = type_named(&name)
                {
                    expr.kind = Kind::Ident(name.into());
                    return Type::Type(Arc::new(of));
                }
                let of = self.check(operand);
                self.select(at, &of, &field, test, optional)
            }
            Kind::Call { .. } => self.call(expr),
            Kind::List(items) => {
                let mut of: Option<Type> = None;
                for (item, optional) in items {
                    let (place, mut found) = (item.at, self.check(item));
                    if *optional {
                        found = self.inner(place, &found);
                    }
                    of = Some(self.joined(place, of, found));
                }
                Type::list(of.unwrap_or_else(|| self.fresh()))
            }
            Kind::Map(entries) => {
                let (mut keys, mut values): (Option<Type>, Option<Type>) = (None, None);
                for (key, value, optional) in entries {
                    let (key_at, value_at) = (key.at, value.at);
                    let key = self.check(key);
                    keys = Some(self.joined(key_at, keys, key));
                    let mut value = self.check(value);
                    if *optional {
                        value = self.inner(value_at, &value);
                    }
                    values = Some(self.joined(value_at, values, value));
                }
                let key = keys.unwrap_or_else(|| self.fresh());
                let value = values.unwrap_or_else(|| self.fresh());
                Type::map(key, value)
            }
            Kind::Struct(name, fields) => {
                let name = name.clone();
                let Some(of) = self.env.message(&name) else {
                    for (_, value, _) in fields {
                        self.check(value);
                    }
                    return self.issue(
                        at,
                        format!("undeclared reference to '{name}' (in container '')"),
                    );
                };
                for (field, value, optional) in fields {
                    let place = value.at;
                    let mut found = self.check(value);
                    if *optional {
                        found = self.inner(place, &found);
                    }
                    let wanted = match &of {
                        Type::Object(object) => object.field(field),
                        _ => Some(Type::Dyn),
                    };
                    match wanted {
                        None => {
                            self.issue(place, format!("undefined field '{field}'"));
                        }
                        Some(wanted) if !self.assign(&found, &wanted) => {
                            let (wanted, found) = (self.settled(&wanted), self.settled(&found));
                            self.issue(
                                place,
                                format!(
                                    "expected type of field '{field}' is '{}' but provided type is '{}'",
                                    wanted.checked_name(),
                                    found.checked_name()
                                ),
                            );
                        }
                        Some(_) => {}
                    }
                }
                of
            }
            Kind::Fold(fold) => self.fold(at, fold),
            Kind::OptMap {
                operand,
                var,
                body,
                flat,
            } => {
                let place = operand.at;
                let of = self.check(operand);
                let inner = self.inner(place, &of);
                self.locals.push((var.clone(), inner));
                let place = body.at;
                let made = self.check(body);
                self.locals.pop();
                if *flat {
                    let inner = self.inner(place, &made);
                    Type::optional(inner)
                } else {
                    Type::optional(made)
                }
            }
        }
    }

    /// Whether the first part of a name is a macro's variable.
    fn is_local(&self, name: &str) -> bool {
        let first = name.split('.').next().unwrap_or_default();
        self.locals.iter().any(|(local, _)| **local == *first)
    }

    fn ident(&mut self, at: usize, name: &str) -> Type {
        if let Some((_, of)) = self.locals.iter().rev().find(|(local, _)| **local == *name) {
            return of.clone();
        }
        if let Some(of) = self.env.variable(name) {
            return of;
        }
        match type_named(name) {
            Some(of) => Type::Type(Arc::new(of)),
            None => self.issue(
                at,
                format!("undeclared reference to '{name}' (in container '')"),
            ),
        }
    }

    fn select(&mut self, at: usize, of: &Type, field: &str, test: bool, optional: bool) -> Type {
        let (of, mut inside) = match self.resolved(of) {
            Type::Optional(inner) => (self.resolved(&inner), true),
            other => (other, false),
        };
        inside |= optional;
        let found = match &of {
            Type::Dyn | Type::Error => Type::Dyn,
            Type::Param(index) => {
                self.bound[*index] = Some(Type::Dyn);
                Type::Dyn
            }
            Type::Map(_, value) => Type::clone(value),
            Type::Object(object) => match object.field(field) {
                Some(found) => found,
                None => return self.issue(at, format!("undefined field '{field}'")),
            },
            other => {
                let name = self.settled(other).checked_name();
                return self.issue(
                    at,
                    format!("type '{name}' does not support field selection"),
                );
            }
        };
        if test {
            Type::Bool
        } else if inside {
            Type::optional(found)
        } else {
            found
        }
    }

    /// What an optional holds.
    fn inner(&mut self, at: usize, of: &Type) -> Type {
        let inner = self.fresh();
        if self.assign(of, &Type::optional(inner.clone())) {
            return inner;
        }
        let found = self.settled(of).checked_name();
        self.issue(
            at,
            format!("expected type 'optional_type(dyn)' but found '{found}'"),
        )
    }

    /// The type of a list's items so far and one more; they must not differ.
    fn joined(&mut self, at: usize, so_far: Option<Type>, next: Type) -> Type {
        let Some(so_far) = so_far else {
            return next;
        };
        if so_far.is_dyn() || next.is_dyn() {
            return Type::Dyn;
        }
        if self.assign(&next, &so_far) {
            return so_far;
        }
        if self.mixed {
            return Type::Dyn;
        }
        let (wanted, found) = (self.settled(&so_far), self.settled(&next));
        self.issue(
            at,
            format!(
                "expected type '{}' but found '{}'",
                wanted.checked_name(),
                found.checked_name()
            ),
        )
    }

    fn call(&mut self, expr: &mut Expr) -> Type {
        let at = expr.at;
        let Kind::Call {
            target,
            name,
            args,
            function,
        } = &mut expr.kind
        else {
            return Type::Error;
        };
        // `sets.contains(a, b)` looks like a method of `sets`.
        if let Some(space) = target.as_deref().and_then(qualified)
            && !self.is_local(&space)
            && let Some(found) = self.function(&format!("{space}.{name}"))
        {
            *target = None;
            *name = found.name.into();
        }
        let member = target.is_some();
        let mut given: Vec<Type> = Vec::new();
        let mixed = std::mem::replace(&mut self.mixed, member && **name == *"format");
        for arg in target.iter_mut().map(|target| &mut **target).chain(args) {
            given.push(self.check(arg));
        }
        self.mixed = mixed;
        let name = name.clone();
        let Some(found) = self.function(&name) else {
            return self.issue(
                at,
                format!("undeclared reference to '{name}' (in container '')"),
            );
        };
        *function = Some(found);
        self.literals(found, expr);
        self.overload(at, found, member, &given)
    }

    fn function(&self, name: &str) -> Option<&'static Function> {
        functions::lookup(name).filter(|_| self.env.allows(name))
    }

    /// Constants that a function cannot take are told before it runs (upstream's AST validators).
    fn literals(&mut self, function: &Function, expr: &Expr) {
        let Kind::Call { target, args, .. } = &expr.kind else {
            return;
        };
        let text = |arg: Option<&Expr>| match arg.map(|arg| (&arg.kind, arg.at)) {
            Some((Kind::Literal(Literal::String(text)), at)) => Some((text.clone(), at)),
            _ => None,
        };
        let found = match function.name {
            "matches" => {
                let pattern = if target.is_some() { 0 } else { 1 };
                text(args.get(pattern)).and_then(|(text, at)| {
                    functions::regex(&text)
                        .err()
                        .map(|_| (at, "invalid matches argument".to_string()))
                })
            }
            "timestamp" => text(args.first()).and_then(|(text, at)| {
                super::value::parse_timestamp(&text)
                    .err()
                    .map(|_| (at, "invalid timestamp argument".to_string()))
            }),
            "duration" => text(args.first()).and_then(|(text, at)| {
                super::value::parse_duration(&text)
                    .err()
                    .map(|_| (at, "invalid duration argument".to_string()))
            }),
            _ => None,
        };
        if let Some((at, message)) = found {
            self.issue(at, message);
        }
    }

    fn overload(
        &mut self,
        at: usize,
        function: &'static Function,
        member: bool,
        given: &[Type],
    ) -> Type {
        let before = self.bound.clone();
        let mut chosen: Option<(Type, Vec<Option<Type>>)> = None;
        for overload in &function.overloads {
            if overload.member != member || overload.args.len() != given.len() {
                continue;
            }
            self.bound.clone_from(&before);
            let (a, b) = (self.fresh(), self.fresh());
            let open = [a, b];
            let fits = given.iter().zip(&overload.args).all(|(given, wanted)| {
                let wanted = instance(wanted, &open);
                self.unify(given, &wanted)
            });
            if !fits {
                continue;
            }
            let result = instance(&overload.result, &open);
            match &chosen {
                None => chosen = Some((result, self.bound.clone())),
                Some((known, bound)) => {
                    // Several ways fit, since something is dynamic: so is the result, unless all give the same.
                    let now = self.settled(&result);
                    let bound = bound.clone();
                    let known = known.clone();
                    self.bound = bound.clone();
                    let first = self.settled(&known);
                    if !first.is_exactly(&now) {
                        chosen = Some((Type::Dyn, before.clone()));
                    } else {
                        chosen = Some((known, bound));
                    }
                }
            }
        }
        match chosen {
            Some((result, bound)) => {
                self.bound = bound;
                // A type that is still open keeps its place; those of the tries are not used any more.
                while self.bound.len() < before.len() {
                    self.bound.push(None);
                }
                result
            }
            None => {
                self.bound = before;
                if given
                    .iter()
                    .any(|of| matches!(self.resolved(of), Type::Error))
                {
                    return Type::Error;
                }
                let names: Vec<String> = given
                    .iter()
                    .map(|of| self.settled(of).checked_name())
                    .collect();
                let shown = match (member, names.split_first()) {
                    (true, Some((target, rest))) => format!("{target}.({})", rest.join(", ")),
                    _ => format!("({})", names.join(", ")),
                };
                self.issue(
                    at,
                    format!(
                        "found no matching overload for '{}' applied to '{shown}'",
                        function.name
                    ),
                )
            }
        }
    }

    fn fold(&mut self, at: usize, fold: &mut Fold) -> Type {
        let place = fold.range.at;
        let range = self.check(&mut fold.range);
        let (key, item) = match self.resolved(&range) {
            Type::List(item) => (Type::Int, Type::clone(&item)),
            Type::Map(key, value) => match fold.second {
                Some(_) => (Type::clone(&key), Type::clone(&value)),
                None => (Type::Int, Type::clone(&key)),
            },
            Type::Dyn | Type::Error => (Type::Dyn, Type::Dyn),
            Type::Param(index) => {
                self.bound[index] = Some(Type::Dyn);
                (Type::Dyn, Type::Dyn)
            }
            other => {
                let name = self.settled(&other).checked_name();
                self.issue(
                    place,
                    format!(
                        "expression of type '{name}' cannot be range of a comprehension (must be list, map, or dynamic)"
                    ),
                );
                (Type::Error, Type::Error)
            }
        };
        let depth = self.locals.len();
        match &fold.second {
            Some(second) => {
                self.locals.push((fold.var.clone(), key.clone()));
                self.locals.push((second.clone(), item.clone()));
            }
            None => self.locals.push((fold.var.clone(), item.clone())),
        }
        let of = match &mut fold.step {
            Step::All(body) | Step::Exists(body) | Step::ExistsOne(body) => {
                self.truth(body);
                Type::Bool
            }
            Step::Filter(body) => {
                self.truth(body);
                Type::list(item)
            }
            Step::Map(filter, body) => {
                if let Some(filter) = filter {
                    self.truth(filter);
                }
                let made = self.check(body);
                Type::list(made)
            }
            Step::TransformMap(filter, body) => {
                if let Some(filter) = filter {
                    self.truth(filter);
                }
                let made = self.check(body);
                Type::map(key, made)
            }
            Step::TransformMapEntry(filter, body) => {
                if let Some(filter) = filter {
                    self.truth(filter);
                }
                let place = body.at;
                let made = self.check(body);
                let (key, value) = (self.fresh(), self.fresh());
                let wanted = Type::map(key, value);
                if !self.assign(&made, &wanted) {
                    let name = self.settled(&made).checked_name();
                    self.issue(
                        place,
                        format!("expected type 'map(dyn, dyn)' but found '{name}'"),
                    );
                }
                wanted
            }
            Step::SortBy(body) => {
                let place = body.at;
                let made = self.check(body);
                let made = self.resolved(&made);
                if !matches!(
                    made,
                    Type::Dyn
                        | Type::Error
                        | Type::Param(_)
                        | Type::Int
                        | Type::Uint
                        | Type::Double
                        | Type::Bool
                        | Type::Duration
                        | Type::Timestamp
                        | Type::String
                        | Type::Bytes
                ) {
                    let name = self.settled(&made).checked_name();
                    self.issue(
                        place,
                        format!(
                            "found no matching overload for 'sortBy' applied to 'list({name})'"
                        ),
                    );
                }
                Type::list(item)
            }
        };
        self.locals.truncate(depth);
        let _ = at;
        of
    }

    fn truth(&mut self, body: &mut Expr) {
        let place = body.at;
        let of = self.check(body);
        if !self.assign(&of, &Type::Bool) {
            let name = self.settled(&of).checked_name();
            self.issue(place, format!("expected type 'bool' but found '{name}'"));
        }
    }
}

/// A declared type with its open types replaced by those of one use.
fn instance(of: &Type, open: &[Type; 2]) -> Type {
    match of {
        Type::Param(index) => open.get(*index).cloned().unwrap_or(Type::Dyn),
        Type::List(item) => Type::list(instance(item, open)),
        Type::Map(key, value) => Type::map(instance(key, open), instance(value, open)),
        Type::Optional(inner) => Type::optional(instance(inner, open)),
        Type::Type(inner) => Type::Type(Arc::new(instance(inner, open))),
        other => other.clone(),
    }
}

/// `a.b.c`, when it is nothing but names.
fn qualified(expr: &Expr) -> Option<String> {
    match &expr.kind {
        Kind::Ident(name) => Some(name.to_string()),
        Kind::Select {
            operand,
            field,
            test: false,
            optional: false,
        } => Some(format!("{}.{field}", qualified(operand)?)),
        _ => None,
    }
}
