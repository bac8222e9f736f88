//! From a checked tree to a value, within a budget.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;

use keelson_machinery::value::Value as Json;

use super::ast::{Expr, Fold, Kind, Literal, Step};
use super::authorizer::{Check, Decided};
use super::error::EvalError;
use super::functions::{self, Function};
use super::types::Type;
use super::value::{Key, Text, Value, item_type, json_entry};

/// What one expression may cost (upstream `PerCallLimit`).
pub const PER_CALL_LIMIT: u64 = 1_000_000;
/// What all expressions of one policy or one custom resource may cost together (upstream `RuntimeCELCostBudget`).
pub const RUNTIME_BUDGET: u64 = 10_000_000;
/// What the match conditions of one webhook or policy may cost together (upstream
/// `RuntimeCELCostBudgetMatchConditions`).
pub const MATCH_CONDITIONS_BUDGET: u64 = 2_500_000;

/// How many parts of lists and maps may be looked at for each unit: comparing two lists costs what their lengths say, as
/// upstream has it, however much is in their items.
const LOOKS_PER_UNIT: u64 = 10;
/// How many levels all expressions under way may have together: an expression may name others (variables of a policy), and
/// each level takes stack.
const MAX_LEVELS: usize = 300;
/// How many levels an expression within another counts for besides its own.
pub(super) const NESTING: usize = 5;

/// What evaluation may still cost. A unit is about one step of cel-go's evaluation.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    left: u64,
    looks: u64,
    levels: usize,
}

impl Budget {
    /// A budget.
    pub fn new(units: u64) -> Budget {
        Budget {
            left: units,
            looks: units.saturating_mul(LOOKS_PER_UNIT),
            levels: 0,
        }
    }

    /// The budget of an expression with this many levels that is evaluated on account of this one.
    pub(super) fn share(&self, units: u64, levels: usize) -> Result<Budget, EvalError> {
        let levels = self.levels + levels;
        if levels > MAX_LEVELS {
            return Err(EvalError::message(format!(
                "expression recursion limit exceeded: {MAX_LEVELS}"
            )));
        }
        Ok(Budget {
            levels,
            ..Budget::new(units)
        })
    }

    /// Counts parts of lists and maps that are looked at.
    pub(super) fn look(&mut self, parts: u64) -> Result<(), EvalError> {
        match self.looks.checked_sub(parts) {
            Some(left) => {
                self.looks = left;
                Ok(())
            }
            None => Err(EvalError::Cost),
        }
    }

    /// What is left.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Takes units away.
    pub fn charge(&mut self, units: u64) -> Result<(), EvalError> {
        match self.left.checked_sub(units) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => {
                self.left = 0;
                Err(EvalError::Cost)
            }
        }
    }
}

/// What an expression looks at.
pub trait Variables<'a> {
    /// The value of a variable; `None` for one that does not exist. A variable that is an expression itself is paid
    /// from the same budget.
    fn variable(&self, name: &str, budget: &mut Budget) -> Option<Result<Value<'a>, EvalError>>;

    /// A decision that has been found out already.
    fn decision(&self, check: &Check) -> Option<Decided> {
        let _ = check;
        None
    }
}

/// Variables by name, for callers with few.
impl<'a> Variables<'a> for Vec<(&str, Value<'a>)> {
    fn variable(&self, name: &str, _: &mut Budget) -> Option<Result<Value<'a>, EvalError>> {
        self.iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| Ok(value.clone()))
    }
}

/// One evaluation under way.
pub struct Scope<'s, 'a> {
    variables: &'s dyn Variables<'a>,
    budget: &'s mut Budget,
    locals: Vec<(Arc<str>, Value<'a>)>,
}

type Result_<'a> = Result<Value<'a>, EvalError>;

impl<'s, 'a> Scope<'s, 'a> {
    pub(super) fn new(variables: &'s dyn Variables<'a>, budget: &'s mut Budget) -> Scope<'s, 'a> {
        Scope {
            variables,
            budget,
            locals: Vec::new(),
        }
    }

    /// Takes units from the budget.
    pub fn charge(&mut self, units: u64) -> Result<(), EvalError> {
        self.budget.charge(units)
    }

    /// Takes a unit for each `per` bytes of text.
    pub fn charge_text(&mut self, bytes: usize, per: usize) -> Result<(), EvalError> {
        self.budget.charge(bytes.div_ceil(per) as u64)
    }

    /// Takes a unit for each item.
    pub fn charge_items(&mut self, count: usize) -> Result<(), EvalError> {
        self.budget.charge(count as u64)
    }

    /// Takes what it costs to compare two values.
    pub fn charge_comparison(&mut self, a: &Value<'a>, b: &Value<'a>) -> Result<(), EvalError> {
        let size = |value: &Value<'a>| match value {
            Value::String(text) => text.len().div_ceil(10),
            Value::Bytes(bytes) => bytes.len().div_ceil(10),
            other => other.size().unwrap_or(1),
        };
        self.budget.charge(size(a).min(size(b)) as u64)
    }

    /// Whether two values are equal.
    pub fn equal(&mut self, a: &Value<'a>, b: &Value<'a>) -> Result<bool, EvalError> {
        a.equals(b, self.budget)
    }

    /// Counts parts of lists and maps that are looked at.
    pub fn look(&mut self, parts: u64) -> Result<(), EvalError> {
        self.budget.look(parts)
    }

    /// A decision of the authorizers, if it is known.
    pub fn decision(&self, check: &Check) -> Option<Decided> {
        self.variables.decision(check)
    }

    /// Each kind is a function of its own: what all of them together keep on the stack would be taken at each level.
    pub(super) fn eval(&mut self, expr: &Expr) -> Result_<'a> {
        match &expr.kind {
            Kind::Literal(literal) => Ok(constant(literal)),
            Kind::Ident(name) => {
                self.charge(1)?;
                self.ident(name)
            }
            Kind::Select {
                operand,
                field,
                test,
                optional,
            } => self.select(operand, field, *test, *optional),
            Kind::Call {
                target,
                name,
                args,
                function,
            } => self.call(target.as_deref(), name, args, *function),
            Kind::List(items) => self.list(items),
            Kind::Map(entries) => self.map(entries),
            Kind::Struct(name, fields) => self.message(name, fields),
            Kind::Fold(fold) => self.fold(fold),
            Kind::OptMap {
                operand,
                var,
                body,
                flat,
            } => self.opt_map(operand, var, body, *flat),
        }
    }

    fn call(
        &mut self,
        target: Option<&Expr>,
        name: &str,
        args: &[Expr],
        function: Option<&'static Function>,
    ) -> Result_<'a> {
        if target.is_none() {
            match (name, args) {
                ("_&&_", [a, b]) => return self.logic(a, b, false),
                ("_||_", [a, b]) => return self.logic(a, b, true),
                ("_?_:_", [condition, then, otherwise]) => {
                    return match self.eval(condition)? {
                        Value::Bool(true) => self.eval(then),
                        Value::Bool(false) => self.eval(otherwise),
                        _ => Err(EvalError::no_such_overload()),
                    };
                }
                _ => {}
            }
        }
        let mut values = Vec::with_capacity(args.len() + 1);
        for arg in target.into_iter().chain(args) {
            values.push(self.eval(arg)?);
        }
        self.charge(1)?;
        let function = function
            .or_else(|| functions::lookup(name))
            .ok_or_else(EvalError::no_such_overload)?;
        (function.run)(self, &values)
    }

    fn list(&mut self, items: &[(Expr, bool)]) -> Result_<'a> {
        self.charge(10)?;
        let mut values = Vec::with_capacity(items.len());
        for (item, optional) in items {
            let value = self.eval(item)?;
            match (optional, value) {
                (false, value) => values.push(value),
                (true, Value::Optional(inner)) => {
                    values.extend(inner.map(|inner| Value::clone(&inner)));
                }
                (true, _) => return Err(EvalError::no_such_overload()),
            }
        }
        Ok(Value::list(values))
    }

    fn map(&mut self, entries: &[(Expr, Expr, bool)]) -> Result_<'a> {
        self.charge(30)?;
        let mut map = BTreeMap::new();
        for (key, value, optional) in entries {
            let key = self.eval(key)?.to_key()?;
            let value = match (optional, self.eval(value)?) {
                (false, value) => value,
                (true, Value::Optional(Some(inner))) => Value::clone(&inner),
                (true, Value::Optional(None)) => continue,
                (true, _) => return Err(EvalError::no_such_overload()),
            };
            let shown: Value<'a> = key.clone().into();
            if map.insert(key, value).is_some() {
                return Err(EvalError::message(format!(
                    "Failed with repeated key {shown:?}"
                )));
            }
        }
        Ok(Value::Map(Arc::new(map)))
    }

    fn message(&mut self, name: &Arc<str>, fields: &[(Arc<str>, Expr, bool)]) -> Result_<'a> {
        self.charge(40)?;
        let mut made = Vec::with_capacity(fields.len());
        for (field, value, optional) in fields {
            match (optional, self.eval(value)?) {
                (false, value) => made.push((field.clone(), value)),
                (true, Value::Optional(Some(inner))) => {
                    made.push((field.clone(), Value::clone(&inner)));
                }
                (true, Value::Optional(None)) => {}
                (true, _) => return Err(EvalError::no_such_overload()),
            }
        }
        Ok(Value::Struct(name.clone(), Arc::new(made)))
    }

    fn opt_map(&mut self, operand: &Expr, var: &Arc<str>, body: &Expr, flat: bool) -> Result_<'a> {
        let Value::Optional(inner) = self.eval(operand)? else {
            return Err(EvalError::no_such_overload());
        };
        let Some(inner) = inner else {
            return Ok(Value::Optional(None));
        };
        let made = self.with_local(var, Value::clone(&inner), |scope| scope.eval(body))?;
        Ok(if flat { made } else { Value::some(made) })
    }

    fn ident(&mut self, name: &str) -> Result_<'a> {
        if let Some((_, value)) = self.locals.iter().rev().find(|(local, _)| **local == *name) {
            return Ok(value.clone());
        }
        if let Some(value) = self.variables.variable(name, self.budget) {
            return value;
        }
        match type_named(name) {
            Some(of) => Ok(Value::Type(of)),
            None => Err(EvalError::message(format!("no such attribute(s): {name}"))),
        }
    }

    fn select(&mut self, operand: &Expr, field: &str, test: bool, optional: bool) -> Result_<'a> {
        let of = self.eval(operand)?;
        if !test {
            self.charge(1)?;
        }
        let (of, inside) = match of {
            Value::Optional(None) if test => return Ok(Value::Bool(false)),
            Value::Optional(None) => return Ok(Value::Optional(None)),
            Value::Optional(Some(inner)) => (Value::clone(&inner), true),
            other => (other, false),
        };
        let found = of.member(field)?;
        if test {
            return Ok(Value::Bool(found.is_some()));
        }
        match found {
            Some(found) if optional || inside => Ok(Value::some(found)),
            None if optional || inside => Ok(Value::Optional(None)),
            Some(found) => Ok(found),
            None => Err(EvalError::no_such_key(field)),
        }
    }

    /// `&&` (which `false` decides) and `||` (which `true` decides): a side that decides makes up for a failed one.
    fn logic(&mut self, a: &Expr, b: &Expr, decides: bool) -> Result_<'a> {
        let truth = |value: Result_<'a>| match value {
            Ok(Value::Bool(b)) => Ok(b),
            Ok(_) => Err(EvalError::no_such_overload()),
            Err(error) => Err(error),
        };
        let first = match truth(self.eval(a)) {
            Ok(b) if b == decides => return Ok(Value::Bool(decides)),
            Err(error) if error.is_final() => return Err(error),
            other => other,
        };
        match (first, truth(self.eval(b))) {
            (_, Err(error)) if error.is_final() => Err(error),
            (_, Ok(b)) if b == decides => Ok(Value::Bool(decides)),
            (Err(error), _) | (Ok(_), Err(error)) => Err(error),
            (Ok(_), Ok(b)) => Ok(Value::Bool(b)),
        }
    }

    fn with_local<T>(
        &mut self,
        name: &Arc<str>,
        value: Value<'a>,
        run: impl FnOnce(&mut Self) -> T,
    ) -> T {
        self.locals.push((name.clone(), value));
        let result = run(self);
        self.locals.pop();
        result
    }

    /// Names and values that the macro goes over. They are made one by one: a macro that ends early costs little, however
    /// long the range is.
    fn range(&mut self, fold: &Fold) -> Result<Range<'a>, EvalError> {
        let range = self.eval(&fold.range)?;
        let pairs = fold.second.is_some();
        Ok(match range {
            Value::List(items) => {
                let items = (0..items.len()).filter_map(move |at| items.get(at).cloned());
                numbered(items.map(Ok), pairs)
            }
            Value::Json(Json::Array(items), of) => {
                let of = item_type(&of);
                let items = items.iter().map(move |item| Value::from_json(item, &of));
                numbered(items, pairs)
            }
            Value::Json(Json::Object(members), of) => {
                Box::new(members.iter().map(move |member| json_entry(member, &of)))
            }
            Value::Map(entries) => {
                let mut last: Option<Key<'a>> = None;
                Box::new(std::iter::from_fn(move || {
                    let after = last.as_ref().map_or(Unbounded, Excluded);
                    let (key, value) = entries.range((after, Unbounded)).next()?;
                    last = Some(key.clone());
                    Some(Ok((key.clone().into(), value.clone())))
                }))
            }
            _ => return Err(EvalError::no_such_overload()),
        })
    }

    fn each(
        &mut self,
        fold: &Fold,
        body: &Expr,
        (first, second): (Value<'a>, Value<'a>),
    ) -> Result_<'a> {
        self.locals.push((fold.var.clone(), first));
        if let Some(name) = &fold.second {
            self.locals.push((name.clone(), second));
        }
        let result = self.eval(body);
        if fold.second.is_some() {
            self.locals.pop();
        }
        self.locals.pop();
        result
    }

    fn holds(
        &mut self,
        fold: &Fold,
        body: &Expr,
        item: (Value<'a>, Value<'a>),
    ) -> Result<bool, EvalError> {
        match self.each(fold, body, item)? {
            Value::Bool(b) => Ok(b),
            _ => Err(EvalError::no_such_overload()),
        }
    }

    fn fold(&mut self, fold: &Fold) -> Result_<'a> {
        let range = self.range(fold)?;
        match &fold.step {
            Step::All(body) => self.quantified(fold, body, range, false),
            Step::Exists(body) => self.quantified(fold, body, range, true),
            Step::ExistsOne(body) => {
                let mut count = 0usize;
                for item in range {
                    self.charge(3)?;
                    count += usize::from(self.holds(fold, body, item?)?);
                }
                Ok(Value::Bool(count == 1))
            }
            Step::Filter(body) => {
                let mut kept = Vec::new();
                for item in range {
                    self.charge(3)?;
                    let (a, b) = item?;
                    if self.holds(fold, body, (a.clone(), b))? {
                        // cel-go appends a list of one.
                        self.charge(11)?;
                        kept.push(a);
                    }
                }
                Ok(Value::list(kept))
            }
            Step::Map(filter, body) => {
                let mut made = Vec::new();
                for item in range {
                    self.charge(2)?;
                    let (a, b) = item?;
                    if let Some(filter) = filter
                        && !self.holds(fold, filter, (a.clone(), b.clone()))?
                    {
                        continue;
                    }
                    self.charge(11)?;
                    made.push(self.each(fold, body, (a, b))?);
                }
                Ok(Value::list(made))
            }
            Step::TransformMap(filter, body) => {
                let mut made = BTreeMap::new();
                for item in range {
                    self.charge(2)?;
                    let (a, b) = item?;
                    if let Some(filter) = filter
                        && !self.holds(fold, filter, (a.clone(), b.clone()))?
                    {
                        continue;
                    }
                    self.charge(1)?;
                    let key = a.to_key()?;
                    made.insert(key, self.each(fold, body, (a, b))?);
                }
                Ok(Value::Map(Arc::new(made)))
            }
            Step::TransformMapEntry(filter, body) => {
                let mut made = BTreeMap::new();
                for item in range {
                    self.charge(2)?;
                    let (a, b) = item?;
                    if let Some(filter) = filter
                        && !self.holds(fold, filter, (a.clone(), b.clone()))?
                    {
                        continue;
                    }
                    self.charge(1)?;
                    let entries = self.each(fold, body, (a, b))?;
                    for (key, value) in entries
                        .entries()
                        .ok_or_else(EvalError::no_such_overload)??
                    {
                        let key = key.to_key()?;
                        let shown: Value<'a> = key.clone().into();
                        if made.insert(key, value).is_some() {
                            return Err(EvalError::message(format!(
                                "insert failed: key {shown:?} already exists"
                            )));
                        }
                    }
                }
                Ok(Value::Map(Arc::new(made)))
            }
            Step::SortBy(body) => {
                let (mut items, mut keys) = (Vec::new(), Vec::new());
                for item in range {
                    self.charge(12)?;
                    let (a, b) = item?;
                    items.push(a.clone());
                    keys.push(self.each(fold, body, (a, b))?);
                }
                functions::sorted_by(self, items, keys)
            }
        }
    }

    /// `all` (which `false` decides) and `exists` (which `true` decides); an item that decides makes up for failed
    /// ones.
    fn quantified(
        &mut self,
        fold: &Fold,
        body: &Expr,
        range: Range<'a>,
        decides: bool,
    ) -> Result_<'a> {
        let mut failed = None;
        for item in range {
            self.charge(3)?;
            match item.and_then(|item| self.holds(fold, body, item)) {
                Ok(b) if b == decides => return Ok(Value::Bool(decides)),
                Ok(_) => {}
                Err(error) if error.is_final() => return Err(error),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(Value::Bool(!decides)),
        }
    }
}

/// What a macro goes over.
type Range<'a> = Box<dyn Iterator<Item = Result<(Value<'a>, Value<'a>), EvalError>> + 'a>;

/// The items of a list; after their numbers if there is a variable for these.
fn numbered<'a>(items: impl Iterator<Item = Result_<'a>> + 'a, pairs: bool) -> Range<'a> {
    Box::new(items.enumerate().map(move |(index, item)| {
        let item = item?;
        Ok(match pairs {
            true => (Value::Int(i64::try_from(index).unwrap_or(i64::MAX)), item),
            false => (item, Value::Null),
        })
    }))
}

fn constant<'a>(literal: &Literal) -> Value<'a> {
    match literal {
        Literal::Null => Value::Null,
        Literal::Bool(b) => Value::Bool(*b),
        Literal::Int(n) => Value::Int(*n),
        Literal::Uint(n) => Value::Uint(*n),
        Literal::Double(n) => Value::Double(*n),
        Literal::String(text) => Value::String(Text::Shared(text.clone())),
        Literal::Bytes(bytes) => Value::Bytes(bytes.clone()),
    }
}

/// Types that have names of their own in expressions.
pub fn type_named(name: &str) -> Option<Type> {
    Some(match name {
        "bool" => Type::Bool,
        "int" => Type::Int,
        "uint" => Type::Uint,
        "double" => Type::Double,
        "string" => Type::String,
        "bytes" => Type::Bytes,
        "null_type" => Type::Null,
        "list" => Type::list(Type::Dyn),
        "map" => Type::map(Type::Dyn, Type::Dyn),
        "type" => Type::Type(Arc::new(Type::Dyn)),
        "dyn" => Type::Dyn,
        "google.protobuf.Timestamp" => Type::Timestamp,
        "google.protobuf.Duration" => Type::Duration,
        "optional_type" => Type::optional(Type::Dyn),
        "net.IP" => Type::Opaque("net.IP"),
        "net.CIDR" => Type::Opaque("net.CIDR"),
        "kubernetes.URL" => Type::Opaque("kubernetes.URL"),
        "kubernetes.Quantity" => Type::Opaque("kubernetes.Quantity"),
        "kubernetes.Semver" => Type::Opaque("kubernetes.Semver"),
        "kubernetes.NamedFormat" => Type::Opaque("kubernetes.NamedFormat"),
        _ => return None,
    })
}
