//! JSON paths as kubectl and printer columns write them (upstream `client-go/util/jsonpath`), without the templates
//! around them: members, indexes, slices, wildcards, unions, filters, recursive descent.

use std::cmp::Ordering;

use crate::value::Value;

/// A parsed path.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonPath(Vec<Step>);

/// Why a text is no path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadPath(String);

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Member(String),
    Wildcard,
    Descend,
    /// From, to, by.
    Slice(Option<i64>, Option<i64>, i64),
    Index(i64),
    Union(Vec<JsonPath>),
    Filter(Operand, Option<(Comparison, Operand)>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Clone, Debug, PartialEq)]
enum Operand {
    Path(JsonPath),
    Literal(Value),
}

/// Deeper nesting than any sensible path has.
const MAX_DEPTH: usize = 16;

impl JsonPath {
    /// Parses `.spec.items[0].name`, with or without a `$` in front.
    pub fn parse(text: &str) -> Result<JsonPath, BadPath> {
        Parser { rest: text }.path(0)
    }

    /// What stands at the path, in order; nothing where members are missing. An error when an index is out of range
    /// or a step does not fit the value.
    pub fn find<'a>(&self, value: &'a Value) -> Result<Vec<&'a Value>, BadPath> {
        let mut present = vec![value];
        for step in &self.0 {
            let mut next = Vec::new();
            for value in present {
                step.walk(value, &mut next)?;
            }
            present = next;
        }
        Ok(present)
    }
}

impl Step {
    fn walk<'a>(&self, value: &'a Value, out: &mut Vec<&'a Value>) -> Result<(), BadPath> {
        match self {
            Step::Member(name) => out.extend(value.get(name.as_str())),
            Step::Wildcard => match value {
                Value::Array(items) => out.extend(items),
                Value::Object(members) => out.extend(members.values()),
                _ => {}
            },
            Step::Descend => descend(value, out),
            Step::Index(index) => {
                let Some(items) = items(value)? else {
                    return Ok(());
                };
                let length = i64::try_from(items.len()).unwrap_or(i64::MAX);
                let at = if *index < 0 { index + length } else { *index };
                match usize::try_from(at).ok().and_then(|at| items.get(at)) {
                    Some(item) => out.push(item),
                    None => {
                        return Err(BadPath(format!(
                            "array index out of bounds: index {index}, length {length}"
                        )));
                    }
                }
            }
            Step::Slice(from, to, by) => {
                let Some(items) = items(value)? else {
                    return Ok(());
                };
                let length = i64::try_from(items.len()).unwrap_or(i64::MAX);
                let place = |at: i64| if at < 0 { at + length } else { at };
                let from = place(from.unwrap_or(0)).clamp(0, length);
                let to = place(to.unwrap_or(length)).clamp(0, length);
                let by = usize::try_from(*by).unwrap_or(1).max(1);
                if let (Ok(from), Ok(to)) = (usize::try_from(from), usize::try_from(to))
                    && from < to
                {
                    out.extend(items[from..to].iter().step_by(by));
                }
            }
            Step::Union(paths) => {
                for path in paths {
                    out.extend(path.find(value)?);
                }
            }
            Step::Filter(left, rest) => {
                let Some(items) = items(value)? else {
                    return Ok(());
                };
                for item in items {
                    if holds(left, rest.as_ref(), item)? {
                        out.push(item);
                    }
                }
            }
        }
        Ok(())
    }
}

fn items(value: &Value) -> Result<Option<&Vec<Value>>, BadPath> {
    match value {
        Value::Null => Ok(None),
        Value::Array(items) => Ok(Some(items)),
        _ => Err(BadPath("value is not array or slice".to_string())),
    }
}

fn descend<'a>(value: &'a Value, out: &mut Vec<&'a Value>) {
    out.push(value);
    match value {
        Value::Array(items) => items.iter().for_each(|item| descend(item, out)),
        Value::Object(members) => members.values().for_each(|member| descend(member, out)),
        _ => {}
    }
}

impl Operand {
    fn values<'a>(&'a self, item: &'a Value) -> Result<Vec<&'a Value>, BadPath> {
        match self {
            Operand::Path(path) => path.find(item),
            Operand::Literal(value) => Ok(vec![value]),
        }
    }
}

fn holds(
    left: &Operand,
    rest: Option<&(Comparison, Operand)>,
    item: &Value,
) -> Result<bool, BadPath> {
    let left = left.values(item)?;
    let Some((comparison, right)) = rest else {
        return Ok(!left.is_empty());
    };
    let right = right.values(item)?;
    let ([left], [right]) = (&left[..], &right[..]) else {
        if left.len() > 1 || right.len() > 1 {
            return Err(BadPath("can only compare one element at a time".into()));
        }
        return Ok(false);
    };
    let order = match (left, right) {
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
        (Value::Number(a), Value::Number(b)) => a
            .as_f64()
            .zip(b.as_f64())
            .and_then(|(a, b)| a.partial_cmp(&b)),
        (a, b) if a == b => Some(Ordering::Equal),
        _ => None,
    };
    Ok(match comparison {
        Comparison::Equal => order == Some(Ordering::Equal),
        Comparison::NotEqual => order != Some(Ordering::Equal),
        Comparison::Less => order == Some(Ordering::Less),
        Comparison::LessOrEqual => order.is_some_and(Ordering::is_le),
        Comparison::Greater => order == Some(Ordering::Greater),
        Comparison::GreaterOrEqual => order.is_some_and(Ordering::is_ge),
    })
}

struct Parser<'a> {
    rest: &'a str,
}

/// Where a member's name ends.
const ENDS: &[char] = &['.', '[', ']', ' ', '=', '!', '<', '>', ')', ',', '\t', '\n'];

impl Parser<'_> {
    fn eat(&mut self, token: &str) -> bool {
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    /// The path up to the end, or to what cannot belong to one.
    fn path(mut self, depth: usize) -> Result<JsonPath, BadPath> {
        let path = self.steps(depth)?;
        if self.rest.is_empty() {
            Ok(path)
        } else {
            Err(BadPath(format!("unrecognized character {:?}", self.rest)))
        }
    }

    fn steps(&mut self, depth: usize) -> Result<JsonPath, BadPath> {
        if depth > MAX_DEPTH {
            return Err(BadPath("nested too deep".to_string()));
        }
        let mut steps = Vec::new();
        let _ = self.eat("$") || self.eat("@");
        loop {
            if self.eat("..") {
                steps.push(Step::Descend);
                if !self.rest.starts_with('[') {
                    self.member(&mut steps)?;
                }
            } else if self.eat(".") {
                if self.rest.is_empty() || self.rest.starts_with('[') {
                    // `.` alone is the object; `.[0]` an index of it.
                    continue;
                }
                self.member(&mut steps)?;
            } else if self.eat("[") {
                let step = self.bracket(depth)?;
                steps.push(step);
            } else {
                return Ok(JsonPath(steps));
            }
        }
    }

    fn member(&mut self, steps: &mut Vec<Step>) -> Result<(), BadPath> {
        let mut name = String::new();
        let mut chars = self.rest.char_indices();
        let mut end = self.rest.len();
        while let Some((at, c)) = chars.next() {
            if c == '\\' {
                if let Some((_, escaped)) = chars.next() {
                    name.push(escaped);
                }
            } else if ENDS.contains(&c) {
                end = at;
                break;
            } else {
                name.push(c);
            }
        }
        self.rest = &self.rest[end..];
        steps.push(match name.as_str() {
            "" => return Err(BadPath("incomplete path".to_string())),
            "*" => Step::Wildcard,
            _ => Step::Member(name),
        });
        Ok(())
    }

    fn close(&mut self, token: &str) -> Result<(), BadPath> {
        self.space();
        if self.eat(token) {
            Ok(())
        } else {
            Err(BadPath("unterminated array".to_string()))
        }
    }

    fn bracket(&mut self, depth: usize) -> Result<Step, BadPath> {
        self.space();
        if self.eat("?(") {
            let step = self.filter(depth)?;
            self.close(")")?;
            self.close("]")?;
            return Ok(step);
        }
        let mut parts = Vec::new();
        loop {
            self.space();
            if self.eat("*") {
                parts.push(Step::Wildcard);
            } else if self.rest.starts_with(['\'', '"']) {
                parts.push(Step::Member(self.quoted()?));
            } else if self.rest.starts_with(['.', '@', '$']) {
                let path = self.steps(depth + 1)?;
                parts.push(Step::Union(vec![path]));
            } else {
                parts.push(self.range()?);
            }
            self.space();
            if !self.eat(",") {
                break;
            }
        }
        self.close("]")?;
        if parts.len() == 1
            && let Some(only) = parts.pop()
        {
            return Ok(only);
        }
        let paths = parts.into_iter().map(|part| JsonPath(vec![part]));
        Ok(Step::Union(paths.collect()))
    }

    fn number(&mut self) -> Result<Option<i64>, BadPath> {
        self.space();
        let digits = self.rest.strip_prefix('-').unwrap_or(self.rest);
        let digits = digits.len()
            - digits
                .trim_start_matches(|c: char| c.is_ascii_digit())
                .len();
        let sign = usize::from(self.rest.starts_with('-'));
        if digits == 0 {
            return Ok(None);
        }
        let (number, rest) = self.rest.split_at(sign + digits);
        self.rest = rest;
        let bad = |_| BadPath(format!("invalid array index {number}"));
        number.parse().map(Some).map_err(bad)
    }

    fn range(&mut self) -> Result<Step, BadPath> {
        let from = self.number()?;
        self.space();
        if !self.eat(":") {
            let bad = || BadPath(format!("invalid array index {:?}", self.rest));
            return from.map(Step::Index).ok_or_else(bad);
        }
        let to = self.number()?;
        self.space();
        let by = if self.eat(":") { self.number()? } else { None };
        match by.unwrap_or(1) {
            by if by > 0 => Ok(Step::Slice(from, to, by)),
            _ => Err(BadPath("step must be > 0".to_string())),
        }
    }

    fn quoted(&mut self) -> Result<String, BadPath> {
        let mut chars = self.rest.char_indices();
        let mut text = String::new();
        let quote = chars.next().map(|(_, c)| c);
        while let Some((at, c)) = chars.next() {
            if Some(c) == quote {
                self.rest = &self.rest[at + c.len_utf8()..];
                return Ok(text);
            }
            if c == '\\' {
                if let Some((_, escaped)) = chars.next() {
                    text.push(escaped);
                }
            } else {
                text.push(c);
            }
        }
        Err(BadPath("unterminated quoted string".to_string()))
    }

    fn filter(&mut self, depth: usize) -> Result<Step, BadPath> {
        let left = self.operand(depth)?;
        self.space();
        let comparison = [
            ("==", Comparison::Equal),
            ("!=", Comparison::NotEqual),
            ("<=", Comparison::LessOrEqual),
            (">=", Comparison::GreaterOrEqual),
            ("<", Comparison::Less),
            (">", Comparison::Greater),
        ]
        .into_iter()
        .find(|(token, _)| self.eat(token));
        let rest = match comparison {
            Some((_, comparison)) => Some((comparison, self.operand(depth)?)),
            None => None,
        };
        Ok(Step::Filter(left, rest))
    }

    fn operand(&mut self, depth: usize) -> Result<Operand, BadPath> {
        self.space();
        if self.rest.starts_with(['\'', '"']) {
            return Ok(Operand::Literal(self.quoted()?.into()));
        }
        if self.rest.starts_with(['@', '$', '.']) {
            return Ok(Operand::Path(self.steps(depth + 1)?));
        }
        let end = self
            .rest
            .find([' ', ')', '=', '!', '<', '>'])
            .unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        match serde_json::from_str::<Value>(word) {
            Ok(literal) => {
                self.rest = rest;
                Ok(Operand::Literal(literal))
            }
            Err(_) => Err(BadPath(format!("unrecognized identifier {word}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn finds_what_stands_there() {
        let object = json!({
            "spec": {"a": 1, "list": [{"n": "x", "v": 1}, {"n": "y", "v": 2}], "a.b": true},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]}
        });
        for (path, wanted) in [
            (".spec.a", json!([1])),
            ("$.spec.a", json!([1])),
            (".spec.none.of.this", json!([])),
            (".spec.list[0].n", json!(["x"])),
            (".spec.list[-1].n", json!(["y"])),
            (".spec.list[*].n", json!(["x", "y"])),
            (".spec.list[0:1].n", json!(["x"])),
            (".spec['a.b']", json!([true])),
            (r".spec.a\.b", json!([true])),
            (".spec['a','a.b']", json!([1, true])),
            (
                r#".status.conditions[?(@.type=="Ready")].status"#,
                json!(["True"]),
            ),
            (".spec.list[?(@.v > 1)].n", json!(["y"])),
            (".spec.list[?(@.w)].n", json!([])),
            ("..n", json!(["x", "y"])),
        ] {
            let found = JsonPath::parse(path).unwrap();
            let found = found.find(&object).unwrap();
            assert_eq!(json!(found), wanted, "{path}");
        }
        assert!(
            JsonPath::parse(".spec.list[5]")
                .unwrap()
                .find(&object)
                .is_err()
        );
        for bad in [".spec[", ".spec..", ".a[x]", ".a[?(@.b==)]", ".a['b"] {
            assert!(JsonPath::parse(bad).is_err(), "{bad}");
        }
    }
}
