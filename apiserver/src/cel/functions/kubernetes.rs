//! Quantities, versions and named formats.

use std::any::Any;
use std::cmp::Ordering;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use keelson_machinery::meta::names;
use keelson_machinery::quantity::{Format as Scale, Quantity};

use super::super::error::EvalError;
use super::super::eval::Scope;
use super::super::types::Type;
use super::super::value::{Opaque, Value};
use super::network::opaque_type;
use super::{Row, opaque, text};

type Result<'a> = std::result::Result<Value<'a>, EvalError>;

/// Names of the types.
pub const QUANTITY: &str = "kubernetes.Quantity";
pub const SEMVER: &str = "kubernetes.Semver";
pub const FORMAT: &str = "kubernetes.NamedFormat";

const COMPARED: &[&str] = &["quantity.(quantity) -> bool", "semver.(semver) -> bool"];
const NUMBER: &[&str] = &["semver.() -> int"];
const FORMAT_NAMED: &[&str] = &["() -> format"];
const SUM: &[&str] = &[
    "quantity.(quantity) -> quantity",
    "quantity.(int) -> quantity",
];

/// The functions.
pub const ROWS: &[Row] = &[
    ("quantity", &["(string) -> quantity"], quantity),
    ("isQuantity", &["(string) -> bool"], is_quantity),
    ("sign", &["quantity.() -> int"], sign),
    ("isGreaterThan", COMPARED, is_greater),
    ("isLessThan", COMPARED, is_less),
    (
        "compareTo",
        &["quantity.(quantity) -> int", "semver.(semver) -> int"],
        compare_to,
    ),
    ("asApproximateFloat", &["quantity.() -> double"], as_float),
    ("asInteger", &["quantity.() -> int"], as_integer),
    ("isInteger", &["quantity.() -> bool"], is_integer),
    ("add", SUM, add),
    ("sub", SUM, sub),
    (
        "semver",
        &["(string) -> semver", "(string, bool) -> semver"],
        semver,
    ),
    (
        "isSemver",
        &["(string) -> bool", "(string, bool) -> bool"],
        is_semver,
    ),
    ("major", NUMBER, major),
    ("minor", NUMBER, minor),
    ("patch", NUMBER, patch),
    (
        "validate",
        &["format.(string) -> optional(list(string))"],
        validate,
    ),
    (
        "format.named",
        &["(string) -> optional(format)"],
        format_named,
    ),
    ("format.dns1123Label", FORMAT_NAMED, |_, _| {
        known("dns1123Label")
    }),
    ("format.dns1123Subdomain", FORMAT_NAMED, |_, _| {
        known("dns1123Subdomain")
    }),
    ("format.dns1035Label", FORMAT_NAMED, |_, _| {
        known("dns1035Label")
    }),
    ("format.qualifiedName", FORMAT_NAMED, |_, _| {
        known("qualifiedName")
    }),
    ("format.dns1123LabelPrefix", FORMAT_NAMED, |_, _| {
        known("dns1123LabelPrefix")
    }),
    ("format.dns1123SubdomainPrefix", FORMAT_NAMED, |_, _| {
        known("dns1123SubdomainPrefix")
    }),
    ("format.dns1035LabelPrefix", FORMAT_NAMED, |_, _| {
        known("dns1035LabelPrefix")
    }),
    ("format.labelValue", FORMAT_NAMED, |_, _| {
        known("labelValue")
    }),
    ("format.uri", FORMAT_NAMED, |_, _| known("uri")),
    ("format.uuid", FORMAT_NAMED, |_, _| known("uuid")),
    ("format.byte", FORMAT_NAMED, |_, _| known("byte")),
    ("format.date", FORMAT_NAMED, |_, _| known("date")),
    ("format.datetime", FORMAT_NAMED, |_, _| known("datetime")),
];

fn none<'a>() -> Result<'a> {
    Err(EvalError::no_such_overload())
}

struct Amount(Quantity);

impl PartialEq for Amount {
    fn eq(&self, other: &Self) -> bool {
        self.0.cmp(&other.0) == Ordering::Equal
    }
}

opaque_type!(Amount, QUANTITY);

fn quantity<'a>(scope: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let [given] = args else { return none() };
    let given = text(given)?;
    scope.charge_text(given.len(), 10)?;
    match Quantity::parse(given) {
        Ok(quantity) => Ok(Value::opaque(Amount(quantity))),
        Err(error) => Err(EvalError::message(error.to_string())),
    }
}

fn is_quantity<'a>(scope: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let [given] = args else { return none() };
    let given = text(given)?;
    scope.charge_text(given.len(), 10)?;
    Ok(Value::Bool(Quantity::parse(given).is_ok()))
}

fn amount(args: &[Value<'_>]) -> std::result::Result<Quantity, EvalError> {
    let first = args.first().ok_or_else(EvalError::no_such_overload)?;
    Ok(opaque::<Amount>(first)?.0)
}

fn sign<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    Ok(Value::Int(amount(args)?.sign().into()))
}

/// The order of two quantities or versions.
fn order(args: &[Value<'_>]) -> std::result::Result<Ordering, EvalError> {
    let [a, b] = args else {
        return Err(EvalError::no_such_overload());
    };
    if let Ok(a) = opaque::<Amount>(a) {
        return Ok(a.0.cmp(&opaque::<Amount>(b)?.0));
    }
    Ok(opaque::<Version>(a)?.cmp(opaque::<Version>(b)?))
}

fn is_greater<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    Ok(Value::Bool(order(args)?.is_gt()))
}

fn is_less<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    Ok(Value::Bool(order(args)?.is_lt()))
}

fn compare_to<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    Ok(Value::Int(order(args)? as i64))
}

fn as_float<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    Ok(Value::Double(amount(args)?.to_f64()))
}

fn as_integer<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    match amount(args)?.as_i64() {
        Some(n) => Ok(Value::Int(n)),
        None => Err(EvalError::message("cannot convert value to integer")),
    }
}

fn is_integer<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    Ok(Value::Bool(amount(args)?.as_i64().is_some()))
}

/// The second term of a sum.
fn term(args: &[Value<'_>]) -> std::result::Result<Quantity, EvalError> {
    match args.get(1) {
        Some(Value::Int(n)) => Ok(Quantity::new(*n, Scale::DecimalExponent)),
        Some(other) => Ok(opaque::<Amount>(other)?.0),
        None => Err(EvalError::no_such_overload()),
    }
}

fn add<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let mut sum = amount(args)?;
    sum.add(term(args)?);
    Ok(Value::opaque(Amount(sum)))
}

fn sub<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let mut difference = amount(args)?;
    difference.sub(term(args)?);
    Ok(Value::opaque(Amount(difference)))
}

/// A version after semver.org 2.0.0; what follows `+` does not count.
#[derive(Debug, PartialEq, Eq)]
struct Version {
    numbers: [u64; 3],
    pre: Vec<String>,
}

opaque_type!(Version, SEMVER);

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        let part = |a: &String, b: &String| match (a.parse::<u64>(), b.parse::<u64>()) {
            (Ok(a), Ok(b)) => a.cmp(&b),
            (Ok(_), Err(_)) => Ordering::Less,
            (Err(_), Ok(_)) => Ordering::Greater,
            (Err(_), Err(_)) => a.cmp(b),
        };
        self.numbers.cmp(&other.numbers).then_with(|| {
            // Without anything before it, a release is the later one.
            match (self.pre.is_empty(), other.pre.is_empty()) {
                (true, true) => Ordering::Equal,
                (true, false) => Ordering::Greater,
                (false, true) => Ordering::Less,
                (false, false) => self
                    .pre
                    .iter()
                    .zip(&other.pre)
                    .map(|(a, b)| part(a, b))
                    .find(|order| order.is_ne())
                    .unwrap_or_else(|| self.pre.len().cmp(&other.pre.len())),
            }
        })
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Version {
    fn parse(text: &str) -> std::result::Result<Version, String> {
        if text.is_empty() {
            return Err("Version string empty".to_string());
        }
        let parts: Vec<&str> = text.splitn(3, '.').collect();
        let [major, minor, rest] = parts.as_slice() else {
            return Err("No Major.Minor.Patch elements found".to_string());
        };
        let number = |what: &str, digits: &str| -> std::result::Result<u64, String> {
            if digits.is_empty() || !digits.chars().all(|c| c.is_ascii_digit()) {
                return Err(format!(
                    "Invalid character(s) found in {what} number {digits:?}"
                ));
            }
            if digits.len() > 1 && digits.starts_with('0') {
                return Err(format!(
                    "{} number must not contain leading zeroes {digits:?}",
                    what.chars()
                        .next()
                        .map_or(String::new(), |c| c.to_uppercase().to_string())
                        + &what[1..]
                ));
            }
            digits
                .parse()
                .map_err(|_| format!("strconv.ParseUint: parsing {digits:?}: value out of range"))
        };
        let (rest, build) = rest
            .split_once('+')
            .map_or((*rest, None), |(a, b)| (a, Some(b)));
        let (patch, pre) = rest
            .split_once('-')
            .map_or((rest, None), |(a, b)| (a, Some(b)));
        let numbers = [
            number("major", major)?,
            number("minor", minor)?,
            number("patch", patch)?,
        ];
        let words = |given: Option<&str>, what: &str| -> std::result::Result<Vec<String>, String> {
            let Some(given) = given else {
                return Ok(Vec::new());
            };
            given
                .split('.')
                .map(|word| {
                    if word.is_empty() {
                        return Err(format!("{what} is empty"));
                    }
                    if !word.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
                        return Err(format!("Invalid character(s) found in {what} {word:?}"));
                    }
                    let numeric = word.chars().all(|c| c.is_ascii_digit());
                    if what == "prerelease" && numeric && word.len() > 1 && word.starts_with('0') {
                        return Err(format!(
                            "Numeric PreRelease version must not contain leading zeroes {word:?}"
                        ));
                    }
                    Ok(word.to_string())
                })
                .collect()
        };
        words(build, "build meta data")?;
        Ok(Version {
            numbers,
            pre: words(pre, "prerelease")?,
        })
    }

    /// Without a leading `v` and leading zeroes, and with what is missing (upstream `normalizeAndParse`).
    fn parse_loosely(text: &str) -> std::result::Result<Version, String> {
        let text = text.strip_prefix('v').unwrap_or(text);
        let mut parts: Vec<String> = text
            .splitn(3, '.')
            .map(|part| {
                if part.len() <= 1 {
                    return part.to_string();
                }
                let trimmed = part.trim_start_matches('0');
                match trimmed.starts_with(|c: char| c.is_ascii_digit()) {
                    true => trimmed.to_string(),
                    false => format!("0{trimmed}"),
                }
            })
            .collect();
        if parts.len() < 3 {
            if parts.last().is_some_and(|last| last.contains(['+', '-'])) {
                return Err("short version cannot contain PreRelease/Build meta data".to_string());
            }
            parts.resize(3, "0".to_string());
        }
        Version::parse(&parts.join("."))
    }

    fn of(
        scope: &mut Scope<'_, '_>,
        args: &[Value<'_>],
    ) -> std::result::Result<std::result::Result<Version, String>, EvalError> {
        let (given, loosely) = match args {
            [given] => (text(given)?, false),
            [given, Value::Bool(loosely)] => (text(given)?, *loosely),
            _ => return Err(EvalError::no_such_overload()),
        };
        scope.charge_text(given.len(), 10)?;
        Ok(match loosely {
            true => Version::parse_loosely(given),
            false => Version::parse(given),
        })
    }
}

fn semver<'a>(scope: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    Version::of(scope, args)?
        .map(Value::opaque)
        .map_err(EvalError::Message)
}

fn is_semver<'a>(scope: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    Ok(Value::Bool(Version::of(scope, args)?.is_ok()))
}

fn number<'a>(args: &[Value<'a>], index: usize) -> Result<'a> {
    let [version] = args else { return none() };
    let number = opaque::<Version>(version)?.numbers[index];
    i64::try_from(number)
        .map(Value::Int)
        .map_err(|_| EvalError::message("integer overflow"))
}

fn major<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    number(args, 0)
}

fn minor<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    number(args, 1)
}

fn patch<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    number(args, 2)
}

/// A named format.
#[derive(PartialEq)]
struct Format(&'static str);

opaque_type!(Format, FORMAT);

const FORMATS: [&str; 13] = [
    "dns1123Label",
    "dns1123Subdomain",
    "dns1035Label",
    "qualifiedName",
    "dns1123LabelPrefix",
    "dns1123SubdomainPrefix",
    "dns1035LabelPrefix",
    "labelValue",
    "uri",
    "uuid",
    "byte",
    "date",
    "datetime",
];

fn known<'a>(name: &'static str) -> Result<'a> {
    Ok(Value::opaque(Format(name)))
}

fn format_named<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let [name] = args else { return none() };
    let name = text(name)?;
    Ok(match FORMATS.iter().find(|known| **known == name) {
        Some(name) => Value::some(Value::opaque(Format(name))),
        None => Value::Optional(None),
    })
}

impl Format {
    fn check(&self, text: &str) -> Vec<String> {
        let unless = |fits: bool, words: &str| match fits {
            true => Vec::new(),
            false => vec![words.to_string()],
        };
        match self.0 {
            "dns1123Label" => names::name_is_dns_label(text, false),
            "dns1123Subdomain" => names::name_is_dns_subdomain(text, false),
            "dns1035Label" => names::dns1035_label(text),
            "qualifiedName" => names::qualified_name(text),
            "dns1123LabelPrefix" => names::name_is_dns_label(text, true),
            "dns1123SubdomainPrefix" => names::name_is_dns_subdomain(text, true),
            // A prefix may end with a dash.
            "dns1035LabelPrefix" => match text.strip_suffix('-') {
                Some(before) => names::dns1035_label(&format!("{before}a")),
                None => names::dns1035_label(text),
            },
            "labelValue" => names::label_value(text),
            "uri" => unless(
                text.starts_with('/')
                    || text
                        .parse::<http::Uri>()
                        .is_ok_and(|u| u.scheme().is_some()),
                "invalid URI for request",
            ),
            "uuid" => unless(is_uuid(text), "does not match the UUID format"),
            "byte" => unless(STANDARD.decode(text).is_ok(), "invalid base64"),
            "date" => unless(
                text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok(),
                "invalid date",
            ),
            "datetime" => unless(text.parse::<jiff::Timestamp>().is_ok(), "invalid datetime"),
            _ => Vec::new(),
        }
    }
}

fn is_uuid(text: &str) -> bool {
    let digits: Vec<char> = text.chars().filter(|c| *c != '-').collect();
    let groups: Vec<usize> = text.split('-').map(str::len).collect();
    digits.len() == 32
        && digits.iter().all(char::is_ascii_hexdigit)
        && matches!(groups.as_slice(), [32] | [8, 4, 4, 4, 12])
}

fn validate<'a>(scope: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let [format, given] = args else { return none() };
    let (format, given) = (opaque::<Format>(format)?, text(given)?);
    scope.charge_text(given.len(), 1)?;
    let found = format.check(given);
    Ok(match found.is_empty() {
        true => Value::Optional(None),
        false => Value::some(Value::list(found.into_iter().map(Value::text).collect())),
    })
}
