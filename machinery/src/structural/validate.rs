//! Whether values are of a schema, with upstream's words (`kube-openapi/pkg/validation/validate`, and
//! `apiextensions-apiserver/pkg/apiserver/validation`). On updates, what did not change is not objected to.

use super::correlate::{OldItems, old_member};
use super::format::is_of_format;
use super::{Additional, Checks, SchemaType, Structural};
use crate::status::field::{FieldError, MAX_FINDINGS, MAX_PATH, Path};
use crate::text::quote;
use crate::value::{Object, Value};

/// Checks a new value. `at` is where it stands; findings below an empty path name the fields themselves.
pub fn validate(schema: &Structural, value: &Value, at: &Path) -> Vec<FieldError> {
    let result = Run::default().node(schema, value, None, "");
    result.findings(at)
}

/// Checks a value that replaces `old`: parts that are as they were raise no objections.
pub fn validate_update(
    schema: &Structural,
    value: &Value,
    old: Option<&Value>,
    at: &Path,
) -> Vec<FieldError> {
    let result = Run { ratchet: true }.node(schema, value, Some(old), "");
    result.findings(at)
}

/// One objection.
struct Objection {
    /// The whole text, by which repetitions are found.
    text: String,
    /// Where, when it is about one field.
    name: Option<String>,
    kind: Kind,
}

/// What kind of field error an objection becomes.
enum Kind {
    Required,
    Enum(Value, Vec<String>),
    TooLong(i64),
    TooMany(i64, i64),
    Type(Value),
    Invalid(Value),
}

/// Findings about a value, and how much of it was fine: of several alternatives the best one is reported.
#[derive(Default)]
struct Outcome {
    objections: Vec<Objection>,
    matched: usize,
}

impl Outcome {
    fn is_valid(&self) -> bool {
        self.objections.is_empty()
    }

    fn add(&mut self, objection: Objection) {
        // Each is compared with all: more than are told are not gathered.
        if self.objections.len() < MAX_FINDINGS
            && !self.objections.iter().any(|o| o.text == objection.text)
        {
            self.objections.push(objection);
        }
    }

    fn merge(&mut self, other: Outcome) {
        for objection in other.objections {
            self.add(objection);
        }
        self.matched += other.matched;
    }

    fn field(&mut self, path: &str, text: String, kind: Kind) {
        self.add(Objection {
            text,
            name: Some(path.to_string()),
            kind,
        });
    }

    /// An objection to the whole object.
    fn whole(&mut self, text: String) {
        self.add(Objection {
            text,
            name: None,
            kind: Kind::Invalid(Value::from("")),
        });
    }

    fn findings(self, at: &Path) -> Vec<FieldError> {
        let mut found: Vec<FieldError> = self
            .objections
            .into_iter()
            .map(|objection| {
                let path = match objection.name.as_deref() {
                    Some(name) if !name.is_empty() && name != "." => {
                        at.child(name.strip_prefix('.').unwrap_or(name))
                    }
                    _ => at.clone(),
                };
                match objection.kind {
                    Kind::Required => FieldError::required(&path, ""),
                    Kind::Enum(value, allowed) => FieldError::not_supported(&path, value, &allowed),
                    Kind::TooLong(max) => {
                        FieldError::too_long(&path, usize::try_from(max).unwrap_or(0))
                    }
                    Kind::TooMany(actual, max) => FieldError::too_many(
                        &path,
                        usize::try_from(actual).unwrap_or(0),
                        usize::try_from(max).unwrap_or(0),
                    ),
                    Kind::Type(value) => FieldError::type_invalid(&path, value, objection.text),
                    Kind::Invalid(value) => FieldError::invalid(&path, value, objection.text),
                }
            })
            .collect();
        // Upstream walks maps in random order; the reader is better served by a fixed one.
        found.sort_by(|a, b| a.field.cmp(&b.field));
        found
    }
}

#[derive(Clone, Copy, Default)]
struct Run {
    ratchet: bool,
}

/// A path with one more step, as long as it is not too long.
fn step(path: &str, before: &str, name: &str, after: &str) -> String {
    if path.len() + name.len() > MAX_PATH {
        return path.to_owned();
    }
    [path, before, name, after].concat()
}

/// The old value of a node, when there is one to compare with at all.
type Old<'a> = Option<Option<&'a Value>>;

impl Run {
    fn node(self, schema: &Structural, value: &Value, old: Old<'_>, path: &str) -> Outcome {
        let outcome = self.check(schema, value, old.flatten(), path);
        if self.ratchet && !outcome.is_valid() && old.flatten() == Some(value) {
            return Outcome {
                objections: Vec::new(),
                matched: outcome.matched,
            };
        }
        outcome
    }

    fn check(self, schema: &Structural, value: &Value, old: Option<&Value>, path: &str) -> Outcome {
        let mut out = Outcome::default();
        let nothing = Checks::default();
        let checks = schema.checks.as_deref().unwrap_or(&nothing);
        if value.is_null() {
            check_type(schema, checks, value, path, &mut out);
            check_enum(checks, value, path, &mut out);
            return out;
        }
        if schema.kind != SchemaType::Any || schema.int_or_string || checks.format.is_some() {
            check_type(schema, checks, value, path, &mut out);
            out.matched += 1;
        }
        self.junctors(checks, value, old, path, &mut out);
        out.matched += 1;
        match value {
            Value::String(text) => {
                check_text(checks, text, path, &mut out);
                out.matched += 1;
            }
            Value::Number(_) => {
                check_number(schema, checks, value, path, &mut out);
                out.matched += 2;
            }
            Value::Array(items) => {
                self.items(schema, checks, items, old, path, &mut out);
                out.matched += 2;
            }
            _ => {}
        }
        check_enum(checks, value, path, &mut out);
        out.matched += 1;
        if let Value::Object(members) = value {
            self.members(schema, checks, members, old, path, &mut out);
            out.matched += 1;
        }
        out.matched += 1;
        out
    }

    fn junctors(
        self,
        checks: &Checks,
        value: &Value,
        old: Option<&Value>,
        path: &str,
        out: &mut Outcome,
    ) {
        if !checks.any_of.is_empty() {
            let mut best: Option<Outcome> = None;
            let mut fits = None;
            for schema in &checks.any_of {
                let result = self.check(schema, value, old, path);
                if result.is_valid() {
                    fits = Some(result);
                    break;
                }
                if best.as_ref().is_none_or(|b| result.matched > b.matched) {
                    best = Some(result);
                }
            }
            match fits {
                Some(result) => out.merge(result),
                None => {
                    out.whole(format!(
                        "{} must validate at least one schema (anyOf)",
                        quote(path)
                    ));
                    if let Some(best) = best {
                        out.merge(best);
                    }
                }
            }
        }
        if !checks.one_of.is_empty() {
            let mut best: Option<Outcome> = None;
            let mut first: Option<Outcome> = None;
            let mut valid = 0;
            for schema in &checks.one_of {
                let result = self.check(schema, value, old, path);
                if result.is_valid() {
                    valid += 1;
                    best = None;
                    first.get_or_insert(result);
                } else if valid == 0 && best.as_ref().is_none_or(|b| result.matched > b.matched) {
                    best = Some(result);
                }
            }
            if valid == 1 {
                if let Some(first) = first {
                    out.merge(first);
                }
            } else {
                let why = match valid {
                    0 => "Found none valid".to_string(),
                    n => format!("Found {n} valid alternatives"),
                };
                out.whole(format!(
                    "{} must validate one and only one schema (oneOf). {why}",
                    quote(path)
                ));
                if let Some(best) = best {
                    out.merge(best);
                }
            }
        }
        if !checks.all_of.is_empty() {
            let mut valid = 0;
            for schema in &checks.all_of {
                let result = self.check(schema, value, old, path);
                valid += usize::from(result.is_valid());
                out.merge(result);
            }
            if valid != checks.all_of.len() {
                let none = if valid == 0 { ". None validated" } else { "" };
                out.whole(format!(
                    "{} must validate all the schemas (allOf){none}",
                    quote(path)
                ));
            }
        }
        if let Some(not) = &checks.not
            && self.check(not, value, old, path).is_valid()
        {
            out.whole(format!(
                "{} must not validate the schema (not)",
                quote(path)
            ));
        }
        out.matched += 1;
    }

    fn items(
        self,
        schema: &Structural,
        checks: &Checks,
        items: &[Value],
        old: Option<&Value>,
        path: &str,
        out: &mut Outcome,
    ) {
        if let Some(below) = &schema.items {
            let before = self.ratchet.then(|| OldItems::new(schema, old)).flatten();
            for (index, item) in items.iter().enumerate() {
                let before = before.as_ref().map(|items| items.of(item));
                let before = before.filter(Option::is_some);
                let path = step(path, "[", &index.to_string(), "]");
                out.merge(self.node(below, item, before, &path));
            }
        }
        let size = i64::try_from(items.len()).unwrap_or(i64::MAX);
        if let Some(min) = checks.min_items.filter(|min| size < *min) {
            out.field(
                path,
                format!("{path} in body should have at least {min} items"),
                Kind::Invalid(size.into()),
            );
        }
        if let Some(max) = checks.max_items.filter(|max| size > *max) {
            out.field(
                path,
                format!("{path} in body should have at most {max} items"),
                Kind::TooMany(size, max),
            );
        }
        if checks.unique_items && (1..items.len()).any(|at| items[..at].contains(&items[at])) {
            out.field(
                path,
                format!("{path} in body shouldn't contain duplicates"),
                Kind::Invalid("".into()),
            );
        }
    }

    fn members(
        self,
        schema: &Structural,
        checks: &Checks,
        members: &Object,
        old: Option<&Value>,
        path: &str,
        out: &mut Outcome,
    ) {
        let count = i64::try_from(members.len()).unwrap_or(i64::MAX);
        if let Some(min) = checks.min_properties.filter(|min| count < *min) {
            out.field(
                path,
                format!("{path} in body should have at least {min} properties"),
                Kind::Invalid(count.into()),
            );
        }
        if let Some(max) = checks.max_properties.filter(|max| count > *max) {
            out.field(
                path,
                format!("{path} in body should have at most {max} properties"),
                Kind::TooMany(count, max),
            );
        }
        for (name, member) in members {
            let known = schema.properties.get(name.as_str());
            let below = match (known, &schema.additional) {
                (Some(property), _) => property,
                (None, Some(Additional::Schema(schema))) => schema,
                (None, Some(Additional::Allowed(false))) => {
                    out.field(
                        path,
                        format!("{path}.{name} in body is a forbidden property"),
                        Kind::Invalid(name.as_str().into()),
                    );
                    continue;
                }
                (None, _) => continue,
            };
            // The root's kind and apiVersion are not what was stored; they are never compared.
            let fixed = path.is_empty() && matches!(name.as_str(), "kind" | "apiVersion");
            let before = (self.ratchet && !fixed)
                .then(|| old_member(schema, old, name))
                .filter(Option::is_some);
            let below_path = if known.is_some() && path.is_empty() {
                step("", "", name, "")
            } else {
                step(path, ".", name, "")
            };
            out.merge(self.node(below, member, before, &below_path));
        }
        for name in &checks.required {
            if !members.contains_key(&**name) {
                let at = format!("{path}.{name}");
                out.field(&at, format!("{at} in body is required"), Kind::Required);
            }
        }
    }
}

/// Name and format that upstream infers from a decoded value.
fn type_of(value: &Value) -> (&'static str, &'static str) {
    match value {
        Value::Null => ("null", ""),
        Value::Bool(_) => ("boolean", ""),
        Value::Number(number) if number.is_i64() => ("integer", "int64"),
        Value::Number(_) => ("number", "float64"),
        Value::String(_) => ("string", ""),
        Value::Array(_) => ("array", ""),
        Value::Object(_) => ("object", ""),
    }
}

fn is_whole(value: &Value) -> bool {
    value
        .as_f64()
        .is_some_and(|number| number.fract() == 0.0 && number.abs() < 9_007_199_254_740_992.0)
}

fn check_type(schema: &Structural, checks: &Checks, value: &Value, path: &str, out: &mut Outcome) {
    let wanted: &[&str] = match (schema.int_or_string, schema.kind) {
        (true, _) => &["integer", "string"],
        (false, SchemaType::Any) => &[],
        (false, SchemaType::Object) => &["object"],
        (false, SchemaType::Array) => &["array"],
        (false, SchemaType::String) => &["string"],
        (false, SchemaType::Integer) => &["integer"],
        (false, SchemaType::Number) => &["number"],
        (false, SchemaType::Boolean) => &["boolean"],
    };
    let (found, found_format) = type_of(value);
    let refuse = |out: &mut Outcome, wanted: &str, found: &str| {
        out.field(
            path,
            format!("{path} in body must be of type {wanted}: {}", quote(found)),
            Kind::Type(found.into()),
        );
    };
    if value.is_null() {
        if wanted.is_empty() || schema.nullable {
            out.matched += 1;
        } else {
            refuse(out, &wanted.join(","), "null");
        }
        return;
    }
    let format = checks.format.as_deref().unwrap_or_default();
    let texts_or_lists = value.is_string() || value.is_array();
    let fits = wanted.contains(&found)
        || (found == "number" && wanted.contains(&"integer") && is_whole(value))
        || (found == "integer" && wanted.contains(&"number"));
    if !texts_or_lists && !format.is_empty() && !fits && found_format != format {
        refuse(out, format, found_format);
        return;
    }
    let numeric = wanted.contains(&"number") || wanted.contains(&"integer");
    if !numeric && !format.is_empty() && texts_or_lists {
        out.matched += 1;
        return;
    }
    if !fits && !(wanted.is_empty() && format.is_empty()) {
        refuse(out, &wanted.join(","), found);
        return;
    }
    out.matched += 1;
}

fn check_enum(checks: &Checks, value: &Value, path: &str, out: &mut Outcome) {
    if checks.allowed.is_empty() {
        return;
    }
    let same = |allowed: &Value| {
        !allowed.is_null()
            && (allowed == value
                || (allowed.is_number() && value.is_number() && allowed.as_f64() == value.as_f64()))
    };
    if checks.allowed.iter().any(same) {
        return;
    }
    let allowed: Vec<String> = checks
        .allowed
        .iter()
        .map(|allowed| match allowed {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        })
        .collect();
    out.field(
        path,
        format!("{path} in body should be one of [{}]", allowed.join(" ")),
        // Go prints the absence of a value as text.
        Kind::Enum(
            if value.is_null() {
                "null".into()
            } else {
                value.clone()
            },
            allowed,
        ),
    );
}

fn check_text(checks: &Checks, text: &str, path: &str, out: &mut Outcome) {
    let length = i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
    let too_long = checks.max_length.filter(|max| length > *max);
    let too_short = checks.min_length.filter(|min| length < *min);
    if let Some(max) = too_long {
        out.field(
            path,
            format!("{path} in body should be at most {max} chars long"),
            Kind::TooLong(max),
        );
    } else if let Some(min) = too_short {
        out.field(
            path,
            format!("{path} in body should be at least {min} chars long"),
            Kind::Invalid(text.into()),
        );
    } else if let Some(pattern) = &checks.pattern {
        let wanted = match pattern.is_match(text) {
            Ok(true) => None,
            Ok(false) => Some(pattern.text().to_string()),
            Err(why) => Some(format!("{}, but pattern is invalid: {why}", pattern.text())),
        };
        if let Some(wanted) = wanted {
            out.field(
                path,
                format!("{path} in body should match '{wanted}'"),
                Kind::Invalid(text.into()),
            );
        }
    }
    if let Some(format) = &checks.format
        && !matches!(&**format, "int32" | "int64" | "float" | "double")
    {
        if !is_of_format(format, text) {
            out.field(
                path,
                format!("{path} in body must be of type {format}: {}", quote(text)),
                Kind::Type(text.into()),
            );
        }
        out.matched += 1;
    }
}

/// A float as Go's `%v` prints it.
fn go_float(number: f64) -> String {
    let size = number.abs();
    if size != 0.0 && !(1e-4..1e21).contains(&size) {
        let text = format!("{number:e}");
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, digits) = match exponent.strip_prefix('-') {
            Some(digits) => ('-', digits),
            None => ('+', exponent),
        };
        return format!("{mantissa}e{sign}{digits:0>2}");
    }
    format!("{number}")
}

fn check_number(
    schema: &Structural,
    checks: &Checks,
    value: &Value,
    path: &str,
    out: &mut Outcome,
) {
    let whole = value.as_i64();
    let number = value.as_f64().unwrap_or(0.0);
    let format = checks.format.as_deref().unwrap_or_default();
    if !schema.int_or_string {
        let outside = match (schema.kind, format) {
            (SchemaType::Integer, "int32") => whole.is_none_or(|n| i32::try_from(n).is_err()),
            (SchemaType::Integer, _) => whole.is_none() && !is_whole(value),
            (SchemaType::Number, "float") => number.abs() > f64::from(f32::MAX),
            _ => false,
        };
        if outside {
            let kind = schema.kind.name();
            let format = if format.is_empty() {
                "(default format)".to_string()
            } else {
                format!("with format {format}")
            };
            out.whole(format!(
                "Checked value must be of type {kind} {format} in {path}"
            ));
        }
    }
    if let Some(factor) = checks.multiple_of {
        let fits = match whole {
            Some(whole) => factor as i64 > 0 && whole % (factor as i64) == 0,
            None => factor > 0.0 && (number / factor).fract() == 0.0,
        };
        if !fits {
            let shown = match whole {
                Some(_) => (factor as i64).to_string(),
                None => go_float(factor),
            };
            out.field(
                path,
                format!("{path} in body should be a multiple of {shown}"),
                Kind::Invalid(value.clone()),
            );
        }
    }
    let bound = |bound: f64| match whole {
        Some(_) => (bound as i64).to_string(),
        None => go_float(bound),
    };
    let order = |bound: f64| match whole {
        Some(whole) => whole.cmp(&(bound as i64)),
        None => number.total_cmp(&bound),
    };
    if let Some((min, exclusive)) = checks.minimum {
        let order = order(min);
        if order.is_lt() || (exclusive && order.is_eq()) {
            let words = if exclusive {
                "greater than"
            } else {
                "greater than or equal to"
            };
            out.field(
                path,
                format!("{path} in body should be {words} {}", bound(min)),
                Kind::Invalid(value.clone()),
            );
        }
    }
    if let Some((max, exclusive)) = checks.maximum {
        let order = order(max);
        if order.is_gt() || (exclusive && order.is_eq()) {
            let words = if exclusive {
                "less than"
            } else {
                "less than or equal to"
            };
            out.field(
                path,
                format!("{path} in body should be {words} {}", bound(max)),
                Kind::Invalid(value.clone()),
            );
        }
    }
}
