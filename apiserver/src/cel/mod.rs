//! CEL, the Common Expression Language, with the functions of Kubernetes (upstream `k8s.io/apiserver/pkg/cel`): parser,
//! type checker and evaluator of our own.
//!
//! ```text
//! let env = Environment::new().with("self", type_of_schema).with("oldSelf", ...);
//! let program = Program::compile("self.replicas <= 3", &env)?;        // once, when a rule is stored or first used
//! let variables = vec![("self", Value::from_json(&object, &type_of_schema)?)];
//! let mut budget = Budget::new(RUNTIME_BUDGET);                        // shared by all rules of an object
//! let value = program.evaluate(&variables, &mut budget)?;              // Value::Bool(..)
//! ```
//!
//! Values look into the JSON they are given and copy nothing; a [`types::Type`] of the schema makes timestamps, durations
//! and bytes of texts. Evaluation does no I/O ([`authorizer`] says how expressions ask about rights nevertheless), and
//! is bounded: each step takes a unit from the [`Budget`].

pub mod ast;
pub mod authorizer;
mod check;
mod env;
mod error;
pub mod escape;
mod eval;
mod functions;
mod lexer;
mod parser;
#[cfg(test)]
mod tests;
pub mod types;
pub mod value;

pub use self::env::Environment;
pub use self::error::{CompileError, EvalError, Issue};
pub use self::eval::{
    Budget, MATCH_CONDITIONS_BUDGET, PER_CALL_LIMIT, RUNTIME_BUDGET, Scope, Variables,
};
pub use self::types::{Members, ObjectType, Type};
pub use self::value::{Text, Value};

/// A compiled expression.
#[derive(Debug)]
pub struct Program {
    expr: ast::Expr,
    output: Type,
}

impl Program {
    /// Parses and checks an expression.
    ///
    /// # Errors
    /// All mistakes found, as cel-go words them.
    pub fn compile(source: &str, env: &Environment) -> Result<Program, CompileError> {
        let mut expr = parser::parse(source)?;
        let output =
            check::check(&mut expr, env).map_err(|issues| CompileError::new(source, issues))?;
        Ok(Program { expr, output })
    }

    /// The type of what it evaluates to.
    pub fn output(&self) -> &Type {
        &self.output
    }

    /// The tree, for questions about what an expression uses.
    pub fn expr(&self) -> &ast::Expr {
        &self.expr
    }

    /// Evaluates the expression. It may cost [`PER_CALL_LIMIT`], and no more than is left of `budget`, from which it is
    /// taken.
    pub fn evaluate<'a>(
        &self,
        variables: &dyn Variables<'a>,
        budget: &mut Budget,
    ) -> Result<Value<'a>, EvalError> {
        let allowed = budget.left().min(PER_CALL_LIMIT);
        let mut own = budget.share(allowed, self.expr.height + eval::NESTING)?;
        let result = Scope::new(variables, &mut own).eval(&self.expr);
        let spent = allowed - own.left();
        match budget.charge(spent) {
            Ok(()) => result,
            Err(error) => Err(error),
        }
    }

    /// Whether the expression names a variable (upstream's check for `oldSelf`, which makes a transition rule).
    pub fn mentions(&self, variable: &str) -> bool {
        mentions(&self.expr, variable)
    }
}

fn mentions(expr: &ast::Expr, variable: &str) -> bool {
    use ast::Kind;
    let below = |expr: &ast::Expr| mentions(expr, variable);
    match &expr.kind {
        Kind::Literal(_) => false,
        Kind::Ident(name) => **name == *variable || name.split('.').next() == Some(variable),
        Kind::Select { operand, .. } => below(operand),
        Kind::Call { target, args, .. } => {
            target.as_deref().is_some_and(below) || args.iter().any(below)
        }
        Kind::List(items) => items.iter().any(|(item, _)| below(item)),
        Kind::Map(entries) => entries
            .iter()
            .any(|(key, value, _)| below(key) || below(value)),
        Kind::Struct(_, fields) => fields.iter().any(|(_, value, _)| below(value)),
        Kind::Fold(fold) => {
            let hidden = *fold.var == *variable
                || fold
                    .second
                    .as_deref()
                    .is_some_and(|name| *name == *variable);
            let step = fold.step.parts().any(below);
            below(&fold.range) || (!hidden && step)
        }
        Kind::OptMap {
            operand, var, body, ..
        } => below(operand) || (**var != *variable && below(body)),
    }
}
