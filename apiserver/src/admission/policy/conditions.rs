//! Match conditions of webhooks and policies: expressions that leave requests out
//! (`k8s.io/apiserver/pkg/admission/plugin/webhook/matchconditions`).

use keelson_machinery::value::{self, Value as Json};

use super::expressions::{self, Activation, Failed, Inputs, Known, OUT_OF_BUDGET};
use crate::cel::authorizer::{Check, Decisions};
use crate::cel::{Budget, Environment, MATCH_CONDITIONS_BUDGET, Program, Type, Value};

struct Condition {
    name: String,
    expression: String,
    program: Result<Program, String>,
}

/// The match conditions of one webhook or policy.
#[derive(Default)]
pub struct Conditions(Vec<Condition>);

/// What the conditions say of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Matched {
    /// All hold.
    Yes,
    /// The named one does not.
    No(String),
    /// Some could not be evaluated, and none says no.
    Failed {
        /// Why.
        why: String,
        /// How many.
        count: usize,
    },
}

/// What match conditions of webhooks may name.
pub fn webhook_environment() -> Environment {
    expressions::environment(&Known::nothing(false), true)
}

impl Conditions {
    /// Compiles a `matchConditions` list.
    pub fn compile(list: &[Json], env: &Environment) -> Conditions {
        Conditions(
            list.iter()
                .map(|condition| {
                    let expression = value::str_or_empty(condition, &["expression"]).trim();
                    Condition {
                        name: value::str_or_empty(condition, &["name"]).to_string(),
                        program: expressions::compile(expression, env, &[Type::Bool]),
                        expression: expression.to_string(),
                    }
                })
                .collect(),
        )
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Evaluates all of them; the error is a decision to be found out first.
    pub fn evaluate(
        &self,
        inputs: Inputs<'_>,
        decisions: &Decisions,
    ) -> Result<Matched, Box<Check>> {
        let activation = Activation::new(inputs, decisions);
        let mut budget = Budget::new(MATCH_CONDITIONS_BUDGET);
        let mut failures = Vec::new();
        for condition in &self.0 {
            let evaluated = expressions::evaluate(
                &condition.expression,
                &condition.program,
                &activation,
                &mut budget,
            );
            match evaluated {
                Ok(Value::Bool(true)) => {}
                Ok(Value::Bool(false)) => return Ok(Matched::No(condition.name.clone())),
                Ok(_) => failures.push(format!(
                    "expression '{}' resulted in error: no such overload",
                    condition.expression
                )),
                Err(Failed::Expression(why)) => failures.push(why),
                Err(Failed::Pending(check)) => return Err(check),
                Err(Failed::Budget) => {
                    return Ok(Matched::Failed {
                        why: OUT_OF_BUDGET.to_string(),
                        count: 1,
                    });
                }
            }
        }
        let why = match failures.as_slice() {
            [] => return Ok(Matched::Yes),
            [one] => one.clone(),
            all => format!("[{}]", all.join(", ")),
        };
        Ok(Matched::Failed {
            why,
            count: failures.len(),
        })
    }
}
