//! Parts of moments and spans of time.

use jiff::tz::{Offset, TimeZone};
use jiff::{Timestamp, Zoned};

use super::super::error::EvalError;
use super::super::eval::Scope;
use super::super::value::Value;
use super::{Row, text};

type Result<'a> = std::result::Result<Value<'a>, EvalError>;

const PART: &[&str] = &["timestamp.() -> int", "timestamp.(string) -> int"];
const PART_OF_BOTH: &[&str] = &[
    "timestamp.() -> int",
    "timestamp.(string) -> int",
    "duration.() -> int",
];

/// The functions.
pub const ROWS: &[Row] = &[
    ("getFullYear", PART, full_year),
    ("getMonth", PART, month),
    ("getDate", PART, date),
    ("getDayOfMonth", PART, day_of_month),
    ("getDayOfWeek", PART, day_of_week),
    ("getDayOfYear", PART, day_of_year),
    ("getHours", PART_OF_BOTH, hours),
    ("getMinutes", PART_OF_BOTH, minutes),
    ("getSeconds", PART_OF_BOTH, seconds),
    ("getMilliseconds", PART_OF_BOTH, milliseconds),
];

/// A zone by its name: `UTC`, or an offset as in `+05:30`. Zones with rules need a database that the server does not
/// carry.
fn zone(name: &str) -> std::result::Result<TimeZone, EvalError> {
    if matches!(name, "" | "UTC" | "Z") {
        return Ok(TimeZone::UTC);
    }
    let unknown = || EvalError::message(format!("unknown time zone {name}"));
    let (sign, digits) = match name.as_bytes().first() {
        Some(b'-') => (-1, &name[1..]),
        Some(b'+') => (1, &name[1..]),
        _ => (1, name),
    };
    let (hours, minutes) = digits.split_once(':').ok_or_else(unknown)?;
    let hours: i32 = hours.parse().map_err(|_| unknown())?;
    let minutes: i32 = minutes.parse().map_err(|_| unknown())?;
    if !(0..=23).contains(&hours) || !(0..=59).contains(&minutes) {
        return Err(unknown());
    }
    Offset::from_seconds(sign * (hours * 3600 + minutes * 60))
        .map(TimeZone::fixed)
        .map_err(|_| unknown())
}

fn part<'a>(
    args: &[Value<'a>],
    of_moment: fn(&Zoned) -> i64,
    nanos_per_unit: i64,
    within: i64,
) -> Result<'a> {
    let at = |at: &Timestamp, zone: TimeZone| Ok(Value::Int(of_moment(&at.to_zoned(zone))));
    match args {
        [Value::Timestamp(moment)] => at(moment, TimeZone::UTC),
        [Value::Timestamp(moment), name] => at(moment, zone(text(name)?)?),
        [Value::Duration(nanos)] if nanos_per_unit > 0 => {
            let units = nanos / nanos_per_unit;
            Ok(Value::Int(if within > 0 { units % within } else { units }))
        }
        _ => Err(EvalError::no_such_overload()),
    }
}

fn full_year<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    part(args, |at| at.year().into(), 0, 0)
}

fn month<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    part(args, |at| i64::from(at.month()) - 1, 0, 0)
}

fn date<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    part(args, |at| at.day().into(), 0, 0)
}

fn day_of_month<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    part(args, |at| i64::from(at.day()) - 1, 0, 0)
}

fn day_of_week<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    part(args, |at| at.weekday().to_sunday_zero_offset().into(), 0, 0)
}

fn day_of_year<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    part(args, |at| i64::from(at.day_of_year()) - 1, 0, 0)
}

fn hours<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    part(args, |at| at.hour().into(), 3_600_000_000_000, 0)
}

fn minutes<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    part(args, |at| at.minute().into(), 60_000_000_000, 0)
}

fn seconds<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    part(args, |at| at.second().into(), 1_000_000_000, 0)
}

fn milliseconds<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    part(args, |at| at.millisecond().into(), 1_000_000, 1_000)
}
