//! Label selectors, as text (`a=b,c in (d,e),!f`) and as `metav1.LabelSelector` objects.

use std::fmt;

use crate::meta::names;
use crate::meta::validate::{validate_label_name, validate_labels};
use crate::status::field::{self, FieldError, Path};
use crate::text;
use crate::value::{self, Object, Value};

/// How a requirement relates a label to its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the names are upstream's and say it all
pub enum Operator {
    In,
    NotIn,
    Equals,
    DoubleEquals,
    NotEquals,
    GreaterThan,
    LessThan,
    Exists,
    DoesNotExist,
}

const BINARY: &str = "in, notin, =, ==, !=, gt, lt";

/// One condition of a label selector.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LabelRequirement {
    /// The label's key.
    pub key: String,
    /// The relation.
    pub operator: Operator,
    /// The values; sorted and without repetition when they come from text.
    pub values: Vec<String>,
}

/// What is wrong with a selector's text or object; the message is upstream's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// The text has a token where another should stand.
    #[error("found '{found}', expected: {expected}")]
    Unexpected {
        /// What stands there.
        found: String,
        /// What should.
        expected: &'static str,
    },
    /// As above, in the one place where upstream's message has no comma.
    #[error("found '{0}' expected: '('")]
    NoParenthesis(String),
    /// A requirement cannot be read.
    #[error("unable to parse requirement: {0}")]
    Requirement(Box<LabelError>),
    /// Key or values break their rules.
    #[error("{0}")]
    Invalid(String),
    /// An object's operator is none of In, NotIn, Exists, DoesNotExist.
    #[error("{} is not a valid label selector operator", text::quote(.0))]
    Operator(String),
}

fn unexpected(found: impl Into<String>, expected: &'static str) -> LabelError {
    LabelError::Unexpected {
        found: found.into(),
        expected,
    }
}

impl LabelRequirement {
    /// A requirement, checked (upstream `labels.NewRequirement`).
    pub fn new(
        key: impl Into<String>,
        operator: Operator,
        values: Vec<String>,
    ) -> Result<Self, LabelError> {
        let key = key.into();
        let path = Path::root();
        let values_path = path.child("values");
        let mut errors = Vec::new();
        errors.extend(check_key(&key, &path.child("key")));
        let mut count = |ok: bool, detail: &str| {
            if !ok {
                let list = Value::from(values.clone());
                errors.push(FieldError::invalid(&values_path, list, detail));
            }
        };
        match operator {
            Operator::In | Operator::NotIn => count(
                !values.is_empty(),
                "for 'in', 'notin' operators, values set can't be empty",
            ),
            Operator::Equals | Operator::DoubleEquals | Operator::NotEquals => count(
                values.len() == 1,
                "exact-match compatibility requires one single value",
            ),
            Operator::Exists | Operator::DoesNotExist => count(
                values.is_empty(),
                "values set must be empty for exists and does not exist",
            ),
            Operator::GreaterThan | Operator::LessThan => {
                count(
                    values.len() == 1,
                    "for 'Gt', 'Lt' operators, exactly one value is required",
                );
                for (i, value) in values.iter().enumerate() {
                    if value.parse::<i64>().is_err() {
                        errors.push(FieldError::invalid(
                            &values_path.index(i),
                            value.as_str(),
                            "for 'Gt', 'Lt' operators, the value must be an integer",
                        ));
                    }
                }
            }
        }
        for (i, value) in values.iter().enumerate() {
            let broken = names::label_value(value);
            if !broken.is_empty() {
                errors.push(FieldError::invalid(
                    &values_path.index(i).key(&key),
                    value.as_str(),
                    broken.join("; "),
                ));
            }
        }
        match field::aggregate(&errors) {
            Some(message) => Err(LabelError::Invalid(message)),
            None => Ok(LabelRequirement {
                key,
                operator,
                values,
            }),
        }
    }

    /// Whether an object whose label of this key is `label` fits.
    pub fn matches(&self, label: Option<&str>) -> bool {
        let listed = |label: &str| self.values.iter().any(|value| value == label);
        match self.operator {
            Operator::In | Operator::Equals | Operator::DoubleEquals => label.is_some_and(listed),
            Operator::NotIn | Operator::NotEquals => !label.is_some_and(listed),
            Operator::Exists => label.is_some(),
            Operator::DoesNotExist => label.is_none(),
            Operator::GreaterThan | Operator::LessThan => {
                let number = |text: &str| text.parse::<i64>().ok();
                let Some(label) = label.and_then(number) else {
                    return false;
                };
                let Some(bound) = self.values.first().and_then(|value| number(value)) else {
                    return false;
                };
                match self.operator {
                    Operator::GreaterThan => label > bound,
                    _ => label < bound,
                }
            }
        }
    }
}

impl fmt::Display for LabelRequirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut values: Vec<&str> = self.values.iter().map(String::as_str).collect();
        values.sort_unstable();
        let values = values.join(",");
        let key = &self.key;
        match self.operator {
            Operator::In => write!(f, "{key} in ({values})"),
            Operator::NotIn => write!(f, "{key} notin ({values})"),
            Operator::Equals => write!(f, "{key}={values}"),
            Operator::DoubleEquals => write!(f, "{key}=={values}"),
            Operator::NotEquals => write!(f, "{key}!={values}"),
            Operator::GreaterThan => write!(f, "{key}>{values}"),
            Operator::LessThan => write!(f, "{key}<{values}"),
            Operator::Exists => f.write_str(key),
            Operator::DoesNotExist => write!(f, "!{key}"),
        }
    }
}

/// A conjunction of requirements, or the selector of nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LabelSelector {
    /// `None` selects nothing.
    requirements: Option<Vec<LabelRequirement>>,
}

impl Default for LabelSelector {
    fn default() -> Self {
        Self::everything()
    }
}

impl LabelSelector {
    /// Selects every object.
    pub fn everything() -> Self {
        LabelSelector {
            requirements: Some(Vec::new()),
        }
    }

    /// Selects no object.
    pub fn nothing() -> Self {
        LabelSelector { requirements: None }
    }

    /// Selects the objects that meet all `requirements`.
    pub fn all_of(mut requirements: Vec<LabelRequirement>) -> Self {
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        LabelSelector {
            requirements: Some(requirements),
        }
    }

    /// Selects the objects that carry all `labels`, unchecked (upstream `SelectorFromSet`): the `selector` of a
    /// Service or ReplicationController. None or no labels select everything.
    pub fn from_set(labels: Option<&Object>) -> Self {
        let requirements = labels
            .into_iter()
            .flatten()
            .map(|(key, value)| LabelRequirement {
                key: key.clone(),
                operator: Operator::Equals,
                values: vec![value.as_str().unwrap_or_default().to_owned()],
            });
        Self::all_of(requirements.collect())
    }

    /// Reads the text form (upstream `labels.Parse`).
    pub fn parse(text: &str) -> Result<Self, LabelError> {
        Ok(Self::all_of(Parser::new(text).parse()?))
    }

    /// Reads a `metav1.LabelSelector`: none selects nothing, an empty one everything
    /// (upstream `LabelSelectorAsSelector`).
    pub fn from_value(selector: Option<&Value>) -> Result<Self, LabelError> {
        let Some(selector) = selector.filter(|selector| !selector.is_null()) else {
            return Ok(Self::nothing());
        };
        let mut requirements = Vec::new();
        for (key, value) in value::get_object(selector, &["matchLabels"])
            .into_iter()
            .flatten()
        {
            let value = value.as_str().unwrap_or_default().to_owned();
            requirements.push(LabelRequirement::new(key, Operator::Equals, vec![value])?);
        }
        for expression in value::items(selector, &["matchExpressions"]) {
            let operator = match value::str_or_empty(expression, &["operator"]) {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => return Err(LabelError::Operator(other.to_owned())),
            };
            let key = value::str_or_empty(expression, &["key"]);
            requirements.push(LabelRequirement::new(key, operator, strings(expression))?);
        }
        Ok(Self::all_of(requirements))
    }

    /// Whether an object with these labels is selected.
    pub fn matches(&self, labels: Option<&Object>) -> bool {
        self.matches_by(|key| labels?.get(key)?.as_str())
    }

    /// Whether an object whose labels `lookup` knows is selected.
    pub fn matches_by<'a>(&self, lookup: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.requirements.as_ref().is_some_and(|requirements| {
            requirements
                .iter()
                .all(|requirement| requirement.matches(lookup(&requirement.key)))
        })
    }

    /// Whether it selects every object.
    pub fn is_everything(&self) -> bool {
        self.requirements.as_ref().is_some_and(Vec::is_empty)
    }

    /// Whether it selects no object whatever its labels.
    pub fn is_nothing(&self) -> bool {
        self.requirements.is_none()
    }

    /// The requirements, sorted by key; none also for the selector of nothing.
    pub fn requirements(&self) -> &[LabelRequirement] {
        self.requirements.as_deref().unwrap_or_default()
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, requirement) in self.requirements().iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            requirement.fmt(f)?;
        }
        Ok(())
    }
}

fn strings(expression: &Value) -> Vec<String> {
    value::items(expression, &["values"])
        .iter()
        .map(|value| value.as_str().unwrap_or_default().to_owned())
        .collect()
}

fn check_key(key: &str, path: &Path) -> Option<FieldError> {
    let broken = names::qualified_name(key);
    (!broken.is_empty()).then(|| FieldError::invalid(path, key, broken.join("; ")))
}

/// Checks a `metav1.LabelSelector` in an object (upstream `ValidateLabelSelector`). `allow_invalid_values` spares
/// the values, for objects stored before they were checked.
pub fn validate_label_selector(
    selector: &Value,
    allow_invalid_values: bool,
    path: &Path,
) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if let Some(labels) = value::get_object(selector, &["matchLabels"]) {
        errors.extend(validate_labels(labels, &path.child("matchLabels")));
    }
    let path = path.child("matchExpressions");
    for (i, expression) in value::items(selector, &["matchExpressions"])
        .iter()
        .enumerate()
    {
        let path = path.index(i);
        let values = strings(expression);
        match value::str_or_empty(expression, &["operator"]) {
            "In" | "NotIn" if values.is_empty() => errors.push(FieldError::required(
                &path.child("values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            )),
            "Exists" | "DoesNotExist" if !values.is_empty() => errors.push(FieldError::forbidden(
                &path.child("values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.push(FieldError::invalid(
                &path.child("operator"),
                other,
                "not a valid selector operator",
            )),
        }
        let key = value::str_or_empty(expression, &["key"]);
        errors.extend(validate_label_name(key, &path.child("key")));
        if !allow_invalid_values {
            for (j, value) in values.iter().enumerate() {
                for message in names::label_value(value) {
                    let path = path.child("values").index(j);
                    errors.push(FieldError::invalid(&path, value.as_str(), message));
                }
            }
        }
    }
    errors
}

#[derive(Clone, Copy, PartialEq)]
enum Token {
    End,
    Open,
    Close,
    Comma,
    Not,
    Word,
    Operator(Operator),
}

/// A recursive-descent parser over the tokens; `in` and `notin` are words wherever no operator can stand.
struct Parser<'a> {
    tokens: Vec<(Token, &'a str)>,
    at: usize,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Self {
        Parser {
            tokens: tokens(text),
            at: 0,
        }
    }

    fn peek_operator(&self) -> (Token, &'a str) {
        self.tokens
            .get(self.at)
            .copied()
            .unwrap_or((Token::End, ""))
    }

    fn peek(&self) -> (Token, &'a str) {
        match self.peek_operator() {
            (Token::Operator(Operator::In | Operator::NotIn), word) => (Token::Word, word),
            other => other,
        }
    }

    fn next(&mut self) -> (Token, &'a str) {
        let token = self.peek();
        self.at += 1;
        token
    }

    fn parse(&mut self) -> Result<Vec<LabelRequirement>, LabelError> {
        let mut requirements = Vec::new();
        loop {
            match self.peek() {
                (Token::Word | Token::Not, _) => {
                    let requirement = self
                        .requirement()
                        .map_err(|error| LabelError::Requirement(Box::new(error)))?;
                    requirements.push(requirement);
                    match self.next() {
                        (Token::End, _) => return Ok(requirements),
                        (Token::Comma, _) => match self.peek() {
                            (Token::Word | Token::Not, _) => {}
                            (_, found) => return Err(unexpected(found, "identifier after ','")),
                        },
                        (_, found) => return Err(unexpected(found, "',' or 'end of string'")),
                    }
                }
                (Token::End, _) => return Ok(requirements),
                (_, found) => {
                    return Err(unexpected(found, "!, identifier, or 'end of string'"));
                }
            }
        }
    }

    fn requirement(&mut self) -> Result<LabelRequirement, LabelError> {
        let mut token = self.next();
        let negated = token.0 == Token::Not;
        if negated {
            token = self.next();
        }
        let (Token::Word, key) = token else {
            return Err(unexpected(token.1, "identifier"));
        };
        if let Some(error) = check_key(key, &Path::root()) {
            return Err(LabelError::Invalid(error.to_string()));
        }
        if negated {
            return LabelRequirement::new(key, Operator::DoesNotExist, Vec::new());
        }
        if matches!(self.peek().0, Token::End | Token::Comma) {
            return LabelRequirement::new(key, Operator::Exists, Vec::new());
        }
        let (token, found) = self.peek_operator();
        self.at += 1;
        let Token::Operator(operator) = token else {
            return Err(unexpected(found, BINARY));
        };
        let mut values = match operator {
            Operator::In | Operator::NotIn => self.values()?,
            _ => self.exact_value()?,
        };
        values.sort_unstable();
        values.dedup();
        let values = values.into_iter().map(str::to_owned).collect();
        LabelRequirement::new(key, operator, values)
    }

    fn values(&mut self) -> Result<Vec<&'a str>, LabelError> {
        let (token, found) = self.next();
        if token != Token::Open {
            return Err(LabelError::NoParenthesis(found.to_owned()));
        }
        match self.peek() {
            (Token::Close, _) => {
                self.next();
                Ok(vec![""])
            }
            (Token::Word | Token::Comma, first) => {
                let values = self.list()?;
                match self.next() {
                    (Token::Close, _) => Ok(values),
                    _ => Err(unexpected(first, "')'")),
                }
            }
            (_, found) => Err(unexpected(found, "',', ')' or identifier")),
        }
    }

    fn list(&mut self) -> Result<Vec<&'a str>, LabelError> {
        let mut values = Vec::new();
        loop {
            match self.next() {
                (Token::Word, word) => {
                    values.push(word);
                    match self.peek() {
                        (Token::Comma, _) => {}
                        (Token::Close, _) => return Ok(values),
                        (_, found) => return Err(unexpected(found, "',' or ')'")),
                    }
                }
                (Token::Comma, _) => {
                    if values.is_empty() {
                        values.push("");
                    }
                    match self.peek().0 {
                        Token::Close => {
                            values.push("");
                            return Ok(values);
                        }
                        Token::Comma => values.push(""),
                        _ => {}
                    }
                }
                (_, found) => return Err(unexpected(found, "',', or identifier")),
            }
        }
    }

    fn exact_value(&mut self) -> Result<Vec<&'a str>, LabelError> {
        if matches!(self.peek().0, Token::End | Token::Comma) {
            return Ok(vec![""]);
        }
        match self.next() {
            (Token::Word, word) => Ok(vec![word]),
            (_, found) => Err(unexpected(found, "identifier")),
        }
    }
}

fn tokens(text: &str) -> Vec<(Token, &str)> {
    let is_space = |c: char| matches!(c, ' ' | '\t' | '\r' | '\n');
    let is_symbol = |c: char| matches!(c, '=' | '!' | '(' | ')' | ',' | '>' | '<');
    let mut tokens = Vec::new();
    // Upstream's lexer takes a NUL byte for the end.
    let mut rest = text.split('\0').next().unwrap_or_default();
    loop {
        rest = rest.trim_start_matches(is_space);
        let Some(first) = rest.chars().next() else {
            tokens.push((Token::End, ""));
            return tokens;
        };
        let (token, len) = if is_symbol(first) {
            match (first, rest.as_bytes().get(1)) {
                ('=', Some(b'=')) => (Token::Operator(Operator::DoubleEquals), 2),
                ('!', Some(b'=')) => (Token::Operator(Operator::NotEquals), 2),
                ('=', _) => (Token::Operator(Operator::Equals), 1),
                ('!', _) => (Token::Not, 1),
                ('(', _) => (Token::Open, 1),
                (')', _) => (Token::Close, 1),
                (',', _) => (Token::Comma, 1),
                ('>', _) => (Token::Operator(Operator::GreaterThan), 1),
                _ => (Token::Operator(Operator::LessThan), 1),
            }
        } else {
            let len = rest
                .find(|c| is_symbol(c) || is_space(c))
                .unwrap_or(rest.len());
            let token = match &rest[..len] {
                "in" => Token::Operator(Operator::In),
                "notin" => Token::Operator(Operator::NotIn),
                _ => Token::Word,
            };
            (token, len)
        };
        let (word, after) = rest.split_at(len);
        tokens.push((token, word));
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn texts() {
        for (text, want) in [
            ("", ""),
            ("x=a,y=b,z=c", "x=a,y=b,z=c"),
            ("b==c , a != d", "a!=d,b==c"),
            ("x in (b,a,a)", "x in (a,b)"),
            ("x in ()", "x in ()"),
            ("x in (,a)", "x in (,a)"),
            ("x in (a,,b,)", "x in (,a,b)"),
            ("x notin (in,notin)", "x notin (in,notin)"),
            ("!x,y", "!x,y"),
            ("in=notin", "in=notin"),
            ("x=", "x="),
            ("x>1,z<-3".trim_end_matches(",z<-3"), "x>1"),
            ("a/b=c", "a/b=c"),
        ] {
            let selector = LabelSelector::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(selector.to_string(), want, "{text}");
        }
        for (text, want) in [
            ("x=a,", "found '', expected: identifier after ','"),
            (
                "=a",
                "found '=', expected: !, identifier, or 'end of string'",
            ),
            (
                "x y",
                "unable to parse requirement: found 'y', expected: in, notin, =, ==, !=, gt, lt",
            ),
            (
                "x in a",
                "unable to parse requirement: found 'a' expected: '('",
            ),
            (
                "x in (a",
                "unable to parse requirement: found '', expected: ',' or ')'",
            ),
            ("x=a=b", "found '=', expected: ',' or 'end of string'"),
            ("!x=a", "found '=', expected: ',' or 'end of string'"),
            (
                "x==(",
                "unable to parse requirement: found '(', expected: identifier",
            ),
            ("x=a b", "found 'b', expected: ',' or 'end of string'"),
            (
                "x>a",
                "unable to parse requirement: values[0]: Invalid value: \"a\": for 'Gt', 'Lt' operators, the value must be an integer",
            ),
            (
                "x=-",
                "unable to parse requirement: values[0][x]: Invalid value: \"-\": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')",
            ),
            (
                "-x",
                "unable to parse requirement: <nil>: Invalid value: \"-x\": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')",
            ),
        ] {
            let error = LabelSelector::parse(text).expect_err(text).to_string();
            assert_eq!(error, want, "{text}");
        }
    }

    #[test]
    fn matching() {
        let labels = json!({"a": "1", "b": "x"});
        let labels = labels.as_object();
        for (text, want) in [
            ("", true),
            ("a=1", true),
            ("a!=1", false),
            ("c!=1", true),
            ("c notin (1)", true),
            ("a in (1,2),b", true),
            ("!c", true),
            ("!a", false),
            ("a>0", true),
            ("a<1", false),
            ("b>0", false),
            ("c=", false),
        ] {
            let selector = LabelSelector::parse(text).expect(text);
            assert_eq!(selector.matches(labels), want, "{text}");
        }
    }

    #[test]
    fn objects() {
        let labels = json!({"a": "1"});
        for (selector, want) in [
            (None, Ok(false)),
            (Some(json!({})), Ok(true)),
            (Some(json!({"matchLabels": {"a": "1"}})), Ok(true)),
            (
                Some(
                    json!({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}),
                ),
                Ok(false),
            ),
            (
                Some(json!({"matchExpressions": [{"key": "a", "operator": "Is"}]})),
                Err("\"Is\" is not a valid label selector operator"),
            ),
            (
                Some(json!({"matchExpressions": [{"key": "a", "operator": "In"}]})),
                Err(
                    "values: Invalid value: []: for 'in', 'notin' operators, values set can't be empty",
                ),
            ),
        ] {
            let got = LabelSelector::from_value(selector.as_ref())
                .map(|selector| selector.matches(labels.as_object()))
                .map_err(|error| error.to_string());
            assert_eq!(got, want.map_err(str::to_owned));
        }
        let errors = validate_label_selector(
            &json!({"matchLabels": {"a": "-"}, "matchExpressions": [{"key": "", "operator": "Exists", "values": ["x"]}]}),
            false,
            &Path::new("spec").child("selector"),
        );
        assert_eq!(errors.len(), 4, "{errors:?}");
    }
}
