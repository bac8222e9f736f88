//! What is wrong with an expression, before and while it is evaluated.

use super::authorizer::Check;

/// One mistake in an expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issue {
    /// Where, in characters from the beginning.
    pub at: usize,
    /// What.
    pub message: String,
}

/// An expression that cannot be compiled. Its text is that of cel-go's issues: every mistake with the line that has it
/// and a mark below.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct CompileError {
    /// The mistakes.
    pub issues: Vec<Issue>,
    text: String,
}

/// How many mistakes are told (cel-go: 100).
const MAX_ISSUES: usize = 100;
/// How much of them is told, in bytes: each is told with its whole line.
const MAX_TEXT: usize = 1 << 16;

impl CompileError {
    /// The mistakes in `source`.
    pub fn new(source: &str, mut issues: Vec<Issue>) -> CompileError {
        issues.sort_by_key(|issue| issue.at);
        issues.dedup();
        let more = issues.len().saturating_sub(MAX_ISSUES);
        issues.truncate(MAX_ISSUES);
        let mut text = String::new();
        for (index, issue) in issues.iter().enumerate() {
            if text.len() > MAX_TEXT {
                text += &format!(
                    "\n{} more errors were truncated",
                    issues.len() - index + more
                );
                return CompileError { text, issues };
            }
            if index > 0 {
                text.push('\n');
            }
            text += &show(source, issue);
        }
        if more > 0 {
            text += &format!("\n{more} more errors were truncated");
        }
        CompileError { text, issues }
    }
}

fn show(source: &str, issue: &Issue) -> String {
    let mut line = 1;
    let mut column = 0;
    for c in source.chars().take(issue.at) {
        if c == '\n' {
            line += 1;
            column = 0;
        } else {
            column += 1;
        }
    }
    let text = source.split('\n').nth(line - 1).unwrap_or_default();
    let text = text.replace('\t', " ");
    let dots = ".".repeat(column);
    format!(
        "ERROR: <input>:{line}:{}: {}\n | {text}\n | {dots}^",
        column + 1,
        issue.message
    )
}

/// Why there is no value.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum EvalError {
    /// The expression itself failed; `&&`, `||` and the like may do without the failed part.
    #[error("{0}")]
    Message(String),
    /// It took more than it may.
    #[error("operation cancelled: actual cost limit exceeded")]
    Cost,
    /// It asks what somebody may do, which must be found out first: see [`super::authorizer::Decisions`].
    #[error("an authorization decision is missing")]
    Pending(Box<Check>),
}

impl EvalError {
    /// A failure with words.
    pub fn message(text: impl Into<String>) -> EvalError {
        EvalError::Message(text.into())
    }

    /// A function or operator that knows nothing of these types.
    pub fn no_such_overload() -> EvalError {
        EvalError::Message("no such overload".to_string())
    }

    /// A member or key that is not there.
    pub fn no_such_key(key: &str) -> EvalError {
        EvalError::Message(format!("no such key: {key}"))
    }

    /// Whether evaluation must stop, whatever else the expression could do.
    pub fn is_final(&self) -> bool {
        !matches!(self, EvalError::Message(_))
    }
}
