//! From words to a tree, macros expanded.

use std::sync::Arc;

use super::ast::{Expr, Fold, Kind, Literal, Step};
use super::error::{CompileError, Issue};
use super::escape::RESERVED;
use super::lexer::{Token, lex};

/// The longest expression, in characters (upstream's parser: 100,000).
const MAX_LENGTH: usize = 100_000;
/// The deepest nesting of brackets and the longest chain of operators or members.
const MAX_DEPTH: usize = 100;
/// The tallest tree: whoever walks it takes stack for each level (upstream's parser: 250 levels of nesting).
const MAX_HEIGHT: usize = 250;

/// Parses an expression.
pub fn parse(source: &str) -> Result<Expr, CompileError> {
    let length = source.chars().count();
    if length > MAX_LENGTH {
        let message =
            format!("expression code point size exceeds limit: size: {length}, limit {MAX_LENGTH}");
        return Err(CompileError::new("", vec![Issue { at: 0, message }]));
    }
    let (tokens, issues) = lex(source);
    let mut parser = Parser {
        tokens,
        at: 0,
        depth: 0,
        issues,
    };
    let parsed = parser.expression();
    if parsed.is_ok() && *parser.peek() != Token::End {
        let found = parser.shown();
        let _ = parser.fail::<()>(format!(
            "Syntax error: extraneous input '{found}' expecting <EOF>"
        ));
    }
    match parsed {
        Ok(expr) if parser.issues.is_empty() => Ok(expr),
        _ => Err(CompileError::new(source, parser.issues)),
    }
}

struct Parser {
    tokens: Vec<(usize, Token)>,
    at: usize,
    depth: usize,
    issues: Vec<Issue>,
}

/// An issue has been noted.
struct Failed;

type Parsed<T> = Result<T, Failed>;

fn call(at: usize, name: &str, args: Vec<Expr>) -> Expr {
    Expr::new(
        at,
        Kind::Call {
            target: None,
            name: name.into(),
            args,
            function: None,
        },
    )
}

impl Parser {
    fn peek(&self) -> &Token {
        self.tokens.get(self.at).map_or(&Token::End, |(_, t)| t)
    }

    fn place(&self) -> usize {
        self.tokens.get(self.at).map_or(0, |(at, _)| *at)
    }

    fn advance(&mut self) -> (usize, Token) {
        let taken = self.tokens.get(self.at).cloned();
        self.at += 1;
        taken.unwrap_or((0, Token::End))
    }

    fn is(&self, op: &str) -> bool {
        matches!(self.peek(), Token::Op(found) if *found == op)
    }

    fn take(&mut self, op: &str) -> Option<usize> {
        self.is(op).then(|| self.advance().0)
    }

    fn expect(&mut self, op: &str) -> Parsed<usize> {
        if let Some(at) = self.take(op) {
            return Ok(at);
        }
        let found = self.shown();
        self.fail(format!(
            "Syntax error: mismatched input '{found}' expecting '{op}'"
        ))
    }

    fn shown(&self) -> String {
        match self.peek() {
            Token::Ident(name) | Token::Quoted(name) => name.to_string(),
            Token::Int(n) => n.to_string(),
            Token::Uint(n) => format!("{n}u"),
            Token::Double(n) => n.to_string(),
            Token::String(text) => format!("{text:?}"),
            Token::Bytes(_) => "bytes".to_string(),
            Token::Op(op) => (*op).to_string(),
            Token::End => "<EOF>".to_string(),
        }
    }

    fn fail<T>(&mut self, message: impl Into<String>) -> Parsed<T> {
        let at = self.place();
        self.fail_at(at, message)
    }

    fn fail_at<T>(&mut self, at: usize, message: impl Into<String>) -> Parsed<T> {
        self.issues.push(Issue {
            at,
            message: message.into(),
        });
        Err(Failed)
    }

    fn deeper<T>(&mut self, parse: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        if self.depth >= MAX_DEPTH {
            return self.fail(format!("expression recursion limit exceeded: {MAX_DEPTH}"));
        }
        self.depth += 1;
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }

    fn expression(&mut self) -> Parsed<Expr> {
        self.deeper(|parser| {
            let mut expr = parser.or()?;
            if let Some(at) = parser.take("?") {
                let then = parser.or()?;
                parser.expect(":")?;
                let otherwise = parser.expression()?;
                expr = call(at, "_?_:_", vec![expr, then, otherwise]);
            }
            if expr.height > MAX_HEIGHT {
                return parser.fail_at(
                    expr.at,
                    format!("expression recursion limit exceeded: {MAX_HEIGHT}"),
                );
            }
            Ok(expr)
        })
    }

    /// Long chains of `&&` and `||` are balanced, so that they do not nest deeply.
    fn chain(&mut self, op: &str, name: &str, next: fn(&mut Self) -> Parsed<Expr>) -> Parsed<Expr> {
        let mut terms = vec![next(self)?];
        let mut places = Vec::new();
        while let Some(at) = self.take(op) {
            places.push(at);
            terms.push(next(self)?);
        }
        Ok(balance(
            name,
            &mut terms.into_iter().map(Some).collect::<Vec<_>>(),
            &places,
        ))
    }

    fn or(&mut self) -> Parsed<Expr> {
        self.chain("||", "_||_", Self::and)
    }

    fn and(&mut self) -> Parsed<Expr> {
        self.chain("&&", "_&&_", Self::relation)
    }

    fn relation(&mut self) -> Parsed<Expr> {
        self.binary(0)
    }

    /// Operators that bind at least as `tight`: relations, sums, products.
    fn binary(&mut self, tight: usize) -> Parsed<Expr> {
        const OPERATORS: [(&str, &str, usize); 12] = [
            ("==", "_==_", 0),
            ("!=", "_!=_", 0),
            ("<=", "_<=_", 0),
            (">=", "_>=_", 0),
            ("<", "_<_", 0),
            (">", "_>_", 0),
            ("in", "@in", 0),
            ("+", "_+_", 1),
            ("-", "_-_", 1),
            ("*", "_*_", 2),
            ("/", "_/_", 2),
            ("%", "_%_", 2),
        ];
        let mut left = self.unary()?;
        let mut steps = 0;
        loop {
            let found = OPERATORS
                .iter()
                .find(|(op, _, level)| *level >= tight && self.is(op));
            let Some((_, name, level)) = found else {
                return Ok(left);
            };
            steps += 1;
            if steps > MAX_HEIGHT {
                return self.fail(format!("expression recursion limit exceeded: {MAX_HEIGHT}"));
            }
            let (at, _) = self.advance();
            let right = self.binary(level + 1)?;
            left = call(at, name, vec![left, right]);
        }
    }

    fn unary(&mut self) -> Parsed<Expr> {
        let start = self.place();
        for (op, name) in [("!", "!_"), ("-", "-_")] {
            let mut count = 0;
            while self.take(op).is_some() {
                count += 1;
            }
            if count == 0 {
                continue;
            }
            // The lowest number has no positive counterpart: the sign belongs to the literal.
            if op == "-" && count % 2 == 1 {
                let literal = match self.peek() {
                    Token::Int(n) if *n == 1 << 63 => Some(Literal::Int(i64::MIN)),
                    Token::Int(n) => i64::try_from(*n).ok().map(|n| Literal::Int(-n)),
                    Token::Double(n) => Some(Literal::Double(-n)),
                    _ => None,
                };
                if let Some(literal) = literal {
                    self.advance();
                    let operand = Expr::new(start, Kind::Literal(literal));
                    return self.members(operand);
                }
            }
            let operand = self.member()?;
            return Ok(if count % 2 == 0 {
                operand
            } else {
                call(start, name, vec![operand])
            });
        }
        self.member()
    }

    fn member(&mut self) -> Parsed<Expr> {
        let operand = self.primary()?;
        self.members(operand)
    }

    fn members(&mut self, mut operand: Expr) -> Parsed<Expr> {
        let mut steps = 0;
        loop {
            steps += 1;
            if steps > MAX_HEIGHT {
                return self.fail(format!("expression recursion limit exceeded: {MAX_DEPTH}"));
            }
            if let Some(dot) = self.take(".") {
                let optional = self.take("?").is_some();
                let (at, field, quoted) = match self.advance() {
                    (at, Token::Ident(name)) => (at, name, false),
                    (at, Token::Quoted(name)) => (at, name, true),
                    // `in` is a word of its own, and no member's name.
                    (at, _) => {
                        self.at -= 1;
                        let found = self.shown();
                        return self.fail_at(
                            at,
                            format!(
                                "Syntax error: mismatched input '{found}' expecting IDENTIFIER"
                            ),
                        );
                    }
                };
                if matches!(&*field, "true" | "false" | "null") && !quoted {
                    return self.fail_at(
                        at,
                        format!("Syntax error: mismatched input '{field}' expecting IDENTIFIER"),
                    );
                }
                if !optional && self.is("(") && !quoted {
                    let (open, _) = self.advance();
                    let args = self.arguments(")")?;
                    operand = self.method(open, operand, field, args)?;
                } else {
                    operand = Expr::new(
                        dot,
                        Kind::Select {
                            operand: Box::new(operand),
                            field,
                            test: false,
                            optional,
                        },
                    );
                }
            } else if let Some(at) = self.take("[") {
                let name = match self.take("?") {
                    Some(_) => "_[?_]",
                    None => "_[_]",
                };
                let index = self.expression()?;
                self.expect("]")?;
                operand = call(at, name, vec![operand, index]);
            } else if self.is("{") && message_name(&operand).is_some() {
                let name = message_name(&operand).unwrap_or_default();
                let (at, _) = self.advance();
                let fields = self.fields()?;
                operand = Expr::new(at, Kind::Struct(name.into(), fields));
            } else {
                return Ok(operand);
            }
        }
    }

    fn arguments(&mut self, close: &str) -> Parsed<Vec<Expr>> {
        let mut args = Vec::new();
        if self.take(close).is_some() {
            return Ok(args);
        }
        loop {
            args.push(self.expression()?);
            if self.take(",").is_none() {
                self.expect(close)?;
                return Ok(args);
            }
        }
    }

    fn fields(&mut self) -> Parsed<Vec<(Arc<str>, Expr, bool)>> {
        let mut fields = Vec::new();
        while self.take("}").is_none() {
            let optional = self.take("?").is_some();
            let name = match self.advance() {
                (_, Token::Ident(name) | Token::Quoted(name)) => name,
                (at, _) => {
                    self.at -= 1;
                    let found = self.shown();
                    return self.fail_at(
                        at,
                        format!("Syntax error: mismatched input '{found}' expecting IDENTIFIER"),
                    );
                }
            };
            self.expect(":")?;
            fields.push((name, self.expression()?, optional));
            if self.take(",").is_none() {
                self.expect("}")?;
                break;
            }
        }
        Ok(fields)
    }

    fn primary(&mut self) -> Parsed<Expr> {
        let (at, token) = self.advance();
        let literal = |literal| Ok(Expr::new(at, Kind::Literal(literal)));
        match token {
            Token::Int(n) => match i64::try_from(n) {
                Ok(n) => literal(Literal::Int(n)),
                Err(_) => self.fail_at(at, "Syntax error: invalid int literal"),
            },
            Token::Uint(n) => literal(Literal::Uint(n)),
            Token::Double(n) => literal(Literal::Double(n)),
            Token::String(text) => literal(Literal::String(text)),
            Token::Bytes(bytes) => literal(Literal::Bytes(bytes)),
            Token::Ident(name) => match &*name {
                "true" => literal(Literal::Bool(true)),
                "false" => literal(Literal::Bool(false)),
                "null" => literal(Literal::Null),
                _ => self.name(at, name),
            },
            Token::Op(".") => match self.advance() {
                (_, Token::Ident(name)) => self.name(at, name),
                _ => self.fail_at(at, "Syntax error: mismatched input '.'"),
            },
            Token::Op("(") => {
                let inner = self.expression()?;
                self.expect(")")?;
                Ok(inner)
            }
            Token::Op("[") => {
                let mut items = Vec::new();
                while self.take("]").is_none() {
                    let optional = self.take("?").is_some();
                    items.push((self.expression()?, optional));
                    if self.take(",").is_none() {
                        self.expect("]")?;
                        break;
                    }
                }
                Ok(Expr::new(at, Kind::List(items)))
            }
            Token::Op("{") => {
                let mut entries = Vec::new();
                while self.take("}").is_none() {
                    let optional = self.take("?").is_some();
                    let key = self.expression()?;
                    self.expect(":")?;
                    entries.push((key, self.expression()?, optional));
                    if self.take(",").is_none() {
                        self.expect("}")?;
                        break;
                    }
                }
                Ok(Expr::new(at, Kind::Map(entries)))
            }
            _ => {
                self.at -= 1;
                let found = self.shown();
                self.fail_at(
                    at,
                    format!(
                        "Syntax error: mismatched input '{found}' expecting {{'[', '{{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}}"
                    ),
                )
            }
        }
    }

    fn name(&mut self, at: usize, name: Arc<str>) -> Parsed<Expr> {
        if RESERVED.contains(&&*name) {
            return self.fail_at(at, format!("Syntax error: reserved identifier: {name}"));
        }
        if !self.is("(") {
            return Ok(Expr::new(at, Kind::Ident(name)));
        }
        let (open, _) = self.advance();
        let mut args = self.arguments(")")?;
        if &*name == "has" && args.len() == 1 {
            let arg = args.remove(0);
            return match arg.kind {
                Kind::Select {
                    operand,
                    field,
                    optional,
                    ..
                } if !optional => Ok(Expr::new(
                    open,
                    Kind::Select {
                        operand,
                        field,
                        test: true,
                        optional,
                    },
                )),
                _ => self.fail_at(arg.at, "invalid argument to has() macro"),
            };
        }
        Ok(call(open, &name, args))
    }

    /// A method, or a macro that looks like one.
    fn method(
        &mut self,
        at: usize,
        target: Expr,
        name: Arc<str>,
        mut args: Vec<Expr>,
    ) -> Parsed<Expr> {
        let count = args.len();
        let plain = match (&*name, count) {
            ("all" | "exists" | "exists_one" | "existsOne" | "filter", 2) => true,
            ("map", 2 | 3) | ("optMap" | "optFlatMap", 2) | ("sortBy", 2) => true,
            _ => false,
        };
        let two = match (&*name, count) {
            ("all" | "exists" | "exists_one" | "existsOne", 3) => true,
            ("transformList" | "transformMap" | "transformMapEntry", 3 | 4) => true,
            _ => false,
        };
        if !plain && !two {
            return Ok(Expr::new(
                at,
                Kind::Call {
                    target: Some(Box::new(target)),
                    name,
                    args,
                    function: None,
                },
            ));
        }
        let var = self.variable(&args[0])?;
        let second = match two {
            true => Some(self.variable(&args[1])?),
            false => None,
        };
        let mut rest = args.split_off(if two { 2 } else { 1 });
        let Some(body) = rest.pop() else {
            return self.fail_at(at, "Syntax error: missing macro argument");
        };
        let filter = rest.pop();
        if matches!(&*name, "optMap" | "optFlatMap") {
            return Ok(Expr::new(
                at,
                Kind::OptMap {
                    operand: Box::new(target),
                    var,
                    body: Box::new(body),
                    flat: &*name == "optFlatMap",
                },
            ));
        }
        let step = match &*name {
            "all" => Step::All(body),
            "exists" => Step::Exists(body),
            "filter" => Step::Filter(body),
            "map" | "transformList" => Step::Map(filter, body),
            "transformMap" => Step::TransformMap(filter, body),
            "transformMapEntry" => Step::TransformMapEntry(filter, body),
            "sortBy" => Step::SortBy(body),
            _ => Step::ExistsOne(body),
        };
        Ok(Expr::new(
            at,
            Kind::Fold(Box::new(Fold {
                range: target,
                var,
                second,
                step,
            })),
        ))
    }

    fn variable(&mut self, expr: &Expr) -> Parsed<Arc<str>> {
        match &expr.kind {
            Kind::Ident(name) => Ok(name.clone()),
            _ => self.fail_at(expr.at, "argument must be a simple name"),
        }
    }
}

/// `a.b.C` as the name of a message.
fn message_name(expr: &Expr) -> Option<String> {
    match &expr.kind {
        Kind::Ident(name) => Some(name.to_string()),
        Kind::Select {
            operand,
            field,
            test: false,
            optional: false,
        } => Some(format!("{}.{field}", message_name(operand)?)),
        _ => None,
    }
}

fn balance(name: &str, terms: &mut [Option<Expr>], places: &[usize]) -> Expr {
    if let [term] = terms {
        if let Some(term) = term.take() {
            return term;
        }
    }
    let middle = terms.len() / 2;
    let (left, right) = terms.split_at_mut(middle);
    let at = places.get(middle.saturating_sub(1)).copied().unwrap_or(0);
    let left_places = &places[..middle.saturating_sub(1)];
    let right_places = places.get(middle..).unwrap_or_default();
    let left = balance(name, left, left_places);
    let right = balance(name, right, right_places);
    call(at, name, vec![left, right])
}
