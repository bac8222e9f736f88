//! The tree of an expression. Macros are nodes of their own, not loops over accumulators: they are few, and so they
//! evaluate without building throw-away values.

use std::sync::Arc;

use super::functions::Function;

/// A node and where it begins, in characters.
#[derive(Clone, Debug)]
pub struct Expr {
    /// Where errors point to.
    pub at: usize,
    /// How many levels the tree below has, this one included.
    pub height: usize,
    /// What it is.
    pub kind: Kind,
}

impl Expr {
    /// A node.
    pub fn new(at: usize, kind: Kind) -> Expr {
        let tallest = |parts: &mut dyn Iterator<Item = &Expr>| {
            parts.map(|part| part.height).max().unwrap_or(0)
        };
        let below = match &kind {
            Kind::Literal(_) | Kind::Ident(_) => 0,
            Kind::Select { operand, .. } => operand.height,
            Kind::Call { target, args, .. } => {
                tallest(&mut target.as_deref().into_iter().chain(args))
            }
            Kind::List(items) => tallest(&mut items.iter().map(|(item, _)| item)),
            Kind::Map(entries) => {
                tallest(&mut entries.iter().flat_map(|(key, value, _)| [key, value]))
            }
            Kind::Struct(_, fields) => tallest(&mut fields.iter().map(|(_, value, _)| value)),
            Kind::Fold(fold) => tallest(&mut [&fold.range].into_iter().chain(fold.step.parts())),
            Kind::OptMap { operand, body, .. } => operand.height.max(body.height),
        };
        Expr {
            at,
            height: below + 1,
            kind,
        }
    }
}

/// A constant.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // the names say it all
pub enum Literal {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Arc<str>),
    Bytes(Arc<[u8]>),
}

/// What a node is.
#[derive(Clone, Debug)]
pub enum Kind {
    /// A constant.
    Literal(Literal),
    /// A variable.
    Ident(Arc<str>),
    /// `operand.field`, `has(operand.field)` with `test`, `operand.?field` with `optional`.
    Select {
        /// Of what.
        operand: Box<Expr>,
        /// Which member.
        field: Arc<str>,
        /// Only whether it is there.
        test: bool,
        /// An optional comes out.
        optional: bool,
    },
    /// A function, method or operator.
    Call {
        /// Of a method.
        target: Option<Box<Expr>>,
        /// Its name; operators are named as in cel-go (`_+_`).
        name: Arc<str>,
        /// Arguments.
        args: Vec<Expr>,
        /// The function, once the expression is checked.
        function: Option<&'static Function>,
    },
    /// A list; the second part marks `?item`.
    List(Vec<(Expr, bool)>),
    /// A map; the third part marks `?key: value`.
    Map(Vec<(Expr, Expr, bool)>),
    /// A message; the third part marks `?field: value`.
    Struct(Arc<str>, Vec<(Arc<str>, Expr, bool)>),
    /// A macro over a range.
    Fold(Box<Fold>),
    /// `operand.optMap(var, body)` and, with `flat`, `optFlatMap`.
    OptMap {
        /// An optional.
        operand: Box<Expr>,
        /// Name of its value.
        var: Arc<str>,
        /// What is made of it.
        body: Box<Expr>,
        /// The body is an optional itself.
        flat: bool,
    },
}

/// A macro over the items of a list or the keys of a map.
#[derive(Clone, Debug)]
pub struct Fold {
    /// Over what.
    pub range: Expr,
    /// Name of an item or key; of the index with `second`.
    pub var: Arc<str>,
    /// Name of an item or value, for macros of two variables.
    pub second: Option<Arc<str>>,
    /// What is done.
    pub step: Step,
}

/// What a macro does.
#[derive(Clone, Debug)]
pub enum Step {
    /// `all`.
    All(Expr),
    /// `exists`.
    Exists(Expr),
    /// `exists_one`, `existsOne`.
    ExistsOne(Expr),
    /// `filter`.
    Filter(Expr),
    /// `map`, `transformList`: what to leave out, what to make.
    Map(Option<Expr>, Expr),
    /// `transformMap`.
    TransformMap(Option<Expr>, Expr),
    /// `transformMapEntry`.
    TransformMapEntry(Option<Expr>, Expr),
    /// `sortBy`.
    SortBy(Expr),
}

impl Step {
    /// The expressions of the step.
    pub fn parts(&self) -> impl Iterator<Item = &Expr> {
        let (filter, body) = match self {
            Step::All(body)
            | Step::Exists(body)
            | Step::ExistsOne(body)
            | Step::Filter(body)
            | Step::SortBy(body) => (None, body),
            Step::Map(filter, body)
            | Step::TransformMap(filter, body)
            | Step::TransformMapEntry(filter, body) => (filter.as_ref(), body),
        };
        filter.into_iter().chain([body])
    }
}
