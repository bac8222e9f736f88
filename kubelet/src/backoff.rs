//! Exponential waits by key (client-go `flowcontrol.Backoff`).

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;

#[derive(Clone, Copy, Debug)]
struct Entry {
    wait: Duration,
    updated: Timestamp,
}

/// Waits that double from `first` to `max`, and start anew after twice `max` without an update.
#[derive(Debug)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    entries: Mutex<HashMap<String, Entry>>,
}

fn elapsed(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or(Duration::ZERO)
}

impl Backoff {
    /// Waits from `first`, doubling up to `max`.
    pub fn new(first: Duration, max: Duration) -> Self {
        Backoff {
            first,
            max,
            entries: Mutex::new(HashMap::new()),
        }
    }

    /// Notes one more failure of `key`, which happened at `event`, and returns the wait that follows.
    pub fn next(&self, key: &str, event: Timestamp, now: Timestamp) -> Duration {
        let mut entries = self.entries.lock();
        let wait = match entries.get(key) {
            Some(e) if !self.expired_at(event, e.updated) => (e.wait * 2).min(self.max),
            _ => self.first,
        };
        entries.insert(key.to_owned(), Entry { wait, updated: now });
        wait
    }

    /// The wait that is left for `key` at `now` when it is counted from `since` (such as the end of the last run),
    /// together with the whole wait.
    pub fn remaining_since(
        &self,
        key: &str,
        since: Timestamp,
        now: Timestamp,
    ) -> Option<(Duration, Duration)> {
        let entries = self.entries.lock();
        let e = entries.get(key)?;
        if self.expired_at(since, e.updated) {
            return None;
        }
        let gone = elapsed(since, now);
        (gone < e.wait).then(|| (e.wait - gone, e.wait))
    }

    /// The wait that is left for `key` at `now`, counted from its last failure.
    pub fn remaining(&self, key: &str, now: Timestamp) -> Option<Duration> {
        let entries = self.entries.lock();
        let e = entries.get(key)?;
        let gone = elapsed(e.updated, now);
        (gone < e.wait).then(|| e.wait - gone)
    }

    /// Forgets `key`.
    pub fn reset(&self, key: &str) {
        self.entries.lock().remove(key);
    }

    /// Forgets every key that starts with `prefix`: those of a pod that is gone.
    pub fn forget_prefix(&self, prefix: &str) {
        self.entries.lock().retain(|k, _| !k.starts_with(prefix));
    }

    fn expired_at(&self, event: Timestamp, updated: Timestamp) -> bool {
        elapsed(updated, event) > self.max * 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_caps_and_resets() {
        let b = Backoff::new(Duration::from_secs(10), Duration::from_secs(300));
        let at = |s: i64| Timestamp::from_second(1_000_000 + s).unwrap();
        let mut now = 0;
        for want in [10, 20, 40, 80, 160, 300, 300] {
            assert_eq!(b.next("k", at(now), at(now)).as_secs(), want);
            assert_eq!(
                b.remaining("k", at(now + 1)).map(|d| d.as_secs()),
                Some(want - 1)
            );
            assert_eq!(b.remaining("k", at(now + want as i64)), None);
            now += 300;
        }
        // A run that ended long after the last failure is not held back, and the count starts anew.
        assert_eq!(b.remaining_since("k", at(now + 700), at(now + 701)), None);
        assert_eq!(b.next("k", at(now + 700), at(now + 701)).as_secs(), 10);
        assert_eq!(b.remaining("other", at(0)), None);
    }
}
