//! Cron schedules as robfig/cron reads them (`ParseStandard`): five fields or a descriptor. No I/O.

use std::time::Duration;

use jiff::civil::Time;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Span, Timestamp, Zoned};
use keelson_machinery::time::parse_duration;
use thiserror::Error;

/// A schedule that cannot be read.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{0}")]
pub struct ParseError(String);

fn error<T>(text: impl Into<String>) -> Result<T, ParseError> {
    Err(ParseError(text.into()))
}

/// When something is due.
#[derive(Clone, Debug, PartialEq)]
pub enum Schedule {
    /// At the times that the fields name.
    Fields(Fields),
    /// Again after this time (`@every`), in whole seconds.
    Every(Duration),
}

/// One bit per value.
#[derive(Clone, Debug, PartialEq)]
pub struct Fields {
    minute: u64,
    hour: u64,
    day: u64,
    month: u64,
    weekday: u64,
    any_day: bool,
    any_weekday: bool,
}

struct Bounds {
    least: u32,
    most: u32,
    names: &'static [&'static str],
}

const MINUTES: Bounds = Bounds {
    least: 0,
    most: 59,
    names: &[],
};
const HOURS: Bounds = Bounds {
    least: 0,
    most: 23,
    names: &[],
};
const DAYS: Bounds = Bounds {
    least: 1,
    most: 31,
    names: &[],
};
const MONTHS: Bounds = Bounds {
    least: 1,
    most: 12,
    names: &[
        "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
    ],
};
const WEEKDAYS: Bounds = Bounds {
    least: 0,
    most: 6,
    names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"],
};

impl Bounds {
    fn value(&self, text: &str) -> Result<u32, ParseError> {
        let lower = text.to_ascii_lowercase();
        if let Some(index) = self.names.iter().position(|name| *name == lower) {
            return Ok(self.least + u32::try_from(index).unwrap_or(0));
        }
        text.parse()
            .or_else(|_| error(format!("failed to parse int from {text}")))
    }

    /// The bits of a field, and whether it was given as any value.
    fn field(&self, text: &str) -> Result<(u64, bool), ParseError> {
        let (mut bits, mut any) = (0, false);
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (more, star) = self.range(part)?;
            bits |= more;
            any |= star;
        }
        Ok((bits, any))
    }

    /// `*`, `a`, `a-b`, each with an optional `/step`.
    fn range(&self, text: &str) -> Result<(u64, bool), ParseError> {
        let (range, step) = match text.split('/').collect::<Vec<_>>()[..] {
            [range] => (range, None),
            [range, step] => (range, Some(step)),
            _ => return error(format!("too many slashes: {text}")),
        };
        let (first, last, mut any) = match range.split('-').collect::<Vec<_>>()[..] {
            ["*" | "?"] => (self.least, self.most, true),
            // A single value with a step runs to the end.
            [one] => {
                let first = self.value(one)?;
                (first, if step.is_some() { self.most } else { first }, false)
            }
            [first, last] => (self.value(first)?, self.value(last)?, false),
            _ => return error(format!("too many hyphens: {text}")),
        };
        let step = match step {
            None => 1,
            Some(step) => step
                .parse::<u32>()
                .or_else(|_| error(format!("failed to parse int from {step}")))?,
        };
        if step > 1 {
            any = false;
        }
        if first < self.least {
            return error(format!(
                "beginning of range ({first}) below minimum ({}): {text}",
                self.least
            ));
        }
        if last > self.most {
            return error(format!(
                "end of range ({last}) above maximum ({}): {text}",
                self.most
            ));
        }
        if first > last {
            return error(format!(
                "beginning of range ({first}) beyond end of range ({last}): {text}"
            ));
        }
        if step == 0 {
            return error(format!("step of range should be a positive number: {text}"));
        }
        let bits = (first..=last)
            .step_by(usize::try_from(step).unwrap_or(usize::MAX))
            .fold(0u64, |bits, value| bits | 1 << value);
        Ok((bits, any))
    }
}

/// Go's duration text, such as `1h30m`; whole seconds, at least one.
fn every(text: &str) -> Option<Duration> {
    let nanos = u64::try_from(parse_duration(text).ok()?).ok()?;
    Some(Duration::from_secs((nanos / 1_000_000_000).max(1)))
}

impl Schedule {
    /// Reads a schedule without a time zone.
    ///
    /// # Errors
    /// Says what is wrong, as robfig/cron says it.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        if text.is_empty() {
            return error("empty spec string");
        }
        if let Some(duration) = text.strip_prefix("@every ") {
            return every(duration).map(Schedule::Every).map_or_else(
                || {
                    error(format!(
                        "failed to parse duration {text}: time: invalid duration {duration:?}"
                    ))
                },
                Ok,
            );
        }
        let text = match text {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            other if other.starts_with('@') => {
                return error(format!("unrecognized descriptor: {other}"));
            }
            other => other,
        };
        let words: Vec<&str> = text.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = words[..] else {
            return error(format!(
                "expected exactly 5 fields, found {}: [{}]",
                words.len(),
                words.join(" ")
            ));
        };
        let (day, any_day) = DAYS.field(day)?;
        let (weekday, any_weekday) = WEEKDAYS.field(weekday)?;
        Ok(Schedule::Fields(Fields {
            minute: MINUTES.field(minute)?.0,
            hour: HOURS.field(hour)?.0,
            day,
            month: MONTHS.field(month)?.0,
            weekday,
            any_day,
            any_weekday,
        }))
    }

    /// The first time after `after`; `None` when there is none within five years.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        match self {
            Schedule::Every(wait) => {
                let wait = SignedDuration::try_from(*wait).ok()?;
                let whole = Timestamp::from_second(after.as_second()).ok()?;
                whole.checked_add(wait).ok()
            }
            Schedule::Fields(fields) => fields.next(after, zone),
        }
    }
}

fn has(bits: u64, value: i8) -> bool {
    u32::try_from(value).is_ok_and(|value| bits & (1 << value) != 0)
}

impl Fields {
    fn day_matches(&self, at: &Zoned) -> bool {
        let day = has(self.day, at.day());
        let weekday = has(self.weekday, at.weekday().to_sunday_zero_offset());
        if self.any_day || self.any_weekday {
            day && weekday
        } else {
            day || weekday
        }
    }

    fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let hours = |at: &Zoned| i64::from(at.minute()) * 60 + i64::from(at.second());
        let mut at = Timestamp::from_second(after.as_second() + 1)
            .ok()?
            .to_zoned(zone.clone());
        let last_year = at.year() + 5;
        // Each round skips to the start of the next month, day, hour or minute, so that there are few.
        while at.year() <= last_year {
            if !has(self.month, at.month()) {
                let first = at
                    .date()
                    .first_of_month()
                    .checked_add(Span::new().months(1))
                    .ok()?;
                at = first.to_zoned(zone.clone()).ok()?;
            } else if !self.day_matches(&at) {
                let next = at.date().tomorrow().ok()?.to_datetime(Time::midnight());
                at = next.to_zoned(zone.clone()).ok()?;
            } else if !has(self.hour, at.hour()) {
                at = shift(&at, 3600 - hours(&at))?;
            } else if !has(self.minute, at.minute()) || at.second() != 0 {
                at = shift(&at, 60 - i64::from(at.second()))?;
            } else {
                return Some(at.timestamp());
            }
        }
        None
    }
}

fn shift(at: &Zoned, seconds: i64) -> Option<Zoned> {
    at.checked_add(SignedDuration::from_secs(seconds)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_time_is_found() {
        let cases = [
            (
                "* * * * *",
                "2024-01-01T00:00:00Z",
                Some("2024-01-01T00:01:00Z"),
            ),
            (
                "*/15 * * * *",
                "2024-01-01T00:44:59Z",
                Some("2024-01-01T00:45:00Z"),
            ),
            (
                "0 0 29 2 *",
                "2023-03-01T00:00:00Z",
                Some("2024-02-29T00:00:00Z"),
            ),
            ("0 0 31 2 *", "2024-01-01T00:00:00Z", None),
            (
                "30 6-16/4 * * 1-5",
                "2024-01-05T14:31:00Z",
                Some("2024-01-08T06:30:00Z"),
            ),
            // Day of month or day of week, when both are given.
            (
                "0 0 13 * fri",
                "2024-09-01T00:00:00Z",
                Some("2024-09-06T00:00:00Z"),
            ),
            (
                "0 0 13 * *",
                "2024-09-01T00:00:00Z",
                Some("2024-09-13T00:00:00Z"),
            ),
            (
                "5/20 8,20 * JAN,dec ?",
                "2024-02-01T00:00:00Z",
                Some("2024-12-01T08:05:00Z"),
            ),
            (
                "@hourly",
                "2024-01-01T00:00:00Z",
                Some("2024-01-01T01:00:00Z"),
            ),
            (
                "@yearly",
                "2024-01-01T00:00:00Z",
                Some("2025-01-01T00:00:00Z"),
            ),
            (
                "@every 1h30m",
                "2024-01-01T00:00:00.5Z",
                Some("2024-01-01T01:30:00Z"),
            ),
        ];
        for (text, after, expected) in cases {
            let schedule = Schedule::parse(text).unwrap();
            let next = schedule.next(after.parse().unwrap(), &TimeZone::UTC);
            assert_eq!(
                next.map(|t| t.to_string()).as_deref(),
                expected,
                "{text} after {after}"
            );
        }
        // 9 o'clock there.
        let zone = TimeZone::fixed(jiff::tz::offset(-5));
        let nine = Schedule::parse("0 9 * * *").unwrap();
        let next = nine.next("2024-01-01T00:00:00Z".parse().unwrap(), &zone);
        assert_eq!(
            next.map(|t| t.to_string()).as_deref(),
            Some("2024-01-01T14:00:00Z")
        );
    }

    #[test]
    fn bad_schedules_are_refused_with_a_reason() {
        let cases = [
            ("", "empty spec string"),
            ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("* * * * 7", "end of range (7) above maximum (6): 7"),
            (
                "5-3 * * * *",
                "beginning of range (5) beyond end of range (3): 5-3",
            ),
            (
                "*/0 * * * *",
                "step of range should be a positive number: */0",
            ),
            ("1/2/3 * * * *", "too many slashes: 1/2/3"),
            ("1-2-3 * * * *", "too many hyphens: 1-2-3"),
            ("x * * * *", "failed to parse int from x"),
            ("@never", "unrecognized descriptor: @never"),
        ];
        for (text, expected) in cases {
            assert_eq!(
                Schedule::parse(text),
                Err(ParseError(expected.to_owned())),
                "{text}"
            );
        }
        assert!(Schedule::parse("@every soon").is_err());
    }
}
