//! Which run of a CronJob is due, and when to look again. No I/O.

use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::CronJob;

use super::cron::Schedule;

/// Added to the time of the next look, against clocks that differ a little (upstream `nextScheduleDelta`).
const MARGIN: Duration = Duration::from_millis(100);
/// More missed runs than this are told of.
const MANY: i64 = 100;

/// What the schedule says now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Due {
    /// The newest run that should have been started, if there is one.
    pub run: Option<Timestamp>,
    /// Whether so many runs were missed that something is wrong.
    pub many_missed: bool,
    /// From when on was looked.
    since: Timestamp,
    missed: bool,
}

/// Upstream `mostRecentScheduleTime`. With `deadline`, runs that are too late to start do not count.
pub fn due(
    cron: &CronJob,
    schedule: &Schedule,
    zone: &TimeZone,
    now: Timestamp,
    deadline: bool,
) -> Result<Due, &'static str> {
    let created = cron.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let last = cron
        .status
        .as_ref()
        .and_then(|status| status.last_schedule_time.as_ref());
    let mut since = last.map(|time| time.0).or(created).unwrap_or(now);
    if deadline
        && let Some(seconds) = cron.spec.starting_deadline_seconds
        && let Ok(earliest) = now.checked_sub(SignedDuration::from_secs(seconds))
    {
        since = since.max(earliest);
    }
    let nothing = Due {
        run: None,
        many_missed: false,
        since,
        missed: false,
    };
    let unsound = "time difference between two schedules is less than 1 second";
    let Some(first) = schedule.next(since, zone) else {
        return Err(unsound);
    };
    if now < first {
        return Ok(nothing);
    }
    let second = schedule.next(first, zone).ok_or(unsound)?;
    if now < second {
        return Ok(Due {
            run: Some(first),
            ..nothing
        });
    }
    let between = second.duration_since(first).as_secs();
    if between < 1 {
        return Err(unsound);
    }
    let count = now.duration_since(first).as_secs() / between + 1;
    // Only the end of the gap is walked; the rest is estimated.
    let near = SignedDuration::from_secs((count - 2).saturating_mul(between));
    let mut run = None;
    let mut at = schedule.next(first.checked_add(near).map_err(|_| unsound)?, zone);
    while let Some(time) = at.filter(|time| *time <= now) {
        run = Some(time);
        at = schedule.next(time, zone);
    }
    Ok(Due {
        run,
        many_missed: count > MANY,
        since,
        missed: true,
    })
}

/// How long until the next run (upstream `nextScheduleTimeDuration`).
pub fn wait(
    cron: &CronJob,
    schedule: &Schedule,
    zone: &TimeZone,
    now: Timestamp,
) -> Option<Duration> {
    let from = match due(cron, schedule, zone, now, false) {
        Ok(Due { run: Some(run), .. }) => run,
        Ok(Due {
            since,
            missed: false,
            ..
        }) => since,
        Ok(_) | Err(_) => now,
    };
    let next = schedule.next(from, zone)?;
    let left = next.duration_since(now);
    let left = if left.is_negative() {
        Duration::ZERO
    } else {
        left.unsigned_abs()
    };
    Some(left + MARGIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_newest_missed_run_is_due() {
        let day = "2024-01-01T";
        // Last run, deadline, now; the run that is due, whether many were missed, seconds to the next.
        let cases = [
            (None, None, "00:04:59Z", None, false, 1),
            (None, None, "00:05:01Z", Some("00:05:00Z"), false, 299),
            (Some("00:05:00Z"), None, "00:05:01Z", None, false, 299),
            (
                Some("00:05:00Z"),
                None,
                "00:21:00Z",
                Some("00:20:00Z"),
                false,
                240,
            ),
            (
                Some("00:05:00Z"),
                None,
                "12:01:00Z",
                Some("12:00:00Z"),
                true,
                240,
            ),
            (Some("00:05:00Z"), Some(30), "12:01:00Z", None, false, 240),
            (
                Some("00:05:00Z"),
                Some(90),
                "12:01:00Z",
                Some("12:00:00Z"),
                false,
                240,
            ),
        ];
        for (last, deadline, now, expected, many, seconds) in cases {
            let full = |time: &str| format!("{day}{time}");
            let cron: CronJob = serde_json::from_value(json!({
                "metadata": {"creationTimestamp": full("00:01:00Z")},
                "spec": {"schedule": "", "jobTemplate": {}, "startingDeadlineSeconds": deadline},
                "status": {"lastScheduleTime": last.map(full)},
            }))
            .unwrap();
            let schedule = Schedule::parse("*/5 * * * *").unwrap();
            let now: Timestamp = full(now).parse().unwrap();
            let found = due(&cron, &schedule, &TimeZone::UTC, now, true).unwrap();
            let run = found.run.map(|run| run.to_string());
            assert_eq!(run, expected.map(full), "{last:?} {deadline:?} {now}");
            assert_eq!(found.many_missed, many, "{last:?} {deadline:?} {now}");
            let left = wait(&cron, &schedule, &TimeZone::UTC, now).unwrap();
            assert_eq!(
                left,
                Duration::from_secs(seconds) + MARGIN,
                "{last:?} {now}"
            );
        }
        let never = Schedule::parse("0 0 31 2 *").unwrap();
        let cron: CronJob = serde_json::from_value(
            json!({"metadata": {}, "spec": {"schedule": "", "jobTemplate": {}}}),
        )
        .unwrap();
        let now: Timestamp = "2024-01-01T00:00:00Z".parse().unwrap();
        assert!(due(&cron, &never, &TimeZone::UTC, now, true).is_err());
    }
}
