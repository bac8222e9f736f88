//! What `up` and `down` show: one line for each step, with the time it took.

use std::io::Write;
use std::time::Duration;

use tokio::time::Instant;

/// Prints steps as they finish.
pub struct Steps {
    start: Instant,
    last: Instant,
}

impl Steps {
    /// Starts the clock.
    pub fn new() -> Self {
        let now = Instant::now();
        Steps {
            start: now,
            last: now,
        }
    }

    /// Reports a finished step; its time runs from the step before.
    pub fn done(&mut self, what: &str) {
        let now = Instant::now();
        println!("  {:>7}  {what}", seconds(now - self.last));
        // Shown at once even when the output is a pipe; if nobody reads it any more, the work still goes on.
        let _ = std::io::stdout().flush();
        self.last = now;
    }

    /// Time since the first step began.
    pub fn total(&self) -> Duration {
        self.start.elapsed()
    }
}

/// A duration as people read it: `0.12 s`.
pub fn seconds(duration: Duration) -> String {
    format!("{:.2} s", duration.as_secs_f64())
}
