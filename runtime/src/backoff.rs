//! Growing waits between retries, with jitter so that many clients do not return at once.

use std::time::Duration;

use keelson_machinery::clock::Clock;

/// Exponential wait with jitter. Each [`next`](Backoff::next) is the base, doubled up to the cap, plus up to the same again
/// at random (upstream `wait.Backoff` with factor 2 and jitter 1).
#[derive(Debug)]
pub struct Backoff {
    clock: Clock,
    initial: Duration,
    cap: Duration,
    current: Duration,
}

impl Backoff {
    /// Starts at `initial`, never passes `cap` before jitter.
    pub fn new(clock: Clock, initial: Duration, cap: Duration) -> Self {
        Backoff {
            clock,
            initial,
            cap,
            current: initial,
        }
    }

    /// What client-go's reflector uses between failed lists and watches: 800 ms to 30 s.
    pub fn reflector(clock: Clock) -> Self {
        Backoff::new(clock, Duration::from_millis(800), Duration::from_secs(30))
    }

    /// The next wait.
    pub fn next_wait(&mut self) -> Duration {
        let base = self.current;
        self.current = (self.current * 2).min(self.cap);
        base + jitter(&self.clock, base)
    }

    /// After a success: begin again at the initial wait.
    pub fn reset(&mut self) {
        self.current = self.initial;
    }
}

/// A random part of `most`, evenly spread.
pub fn jitter(clock: &Clock, most: Duration) -> Duration {
    let mut bytes = [0u8; 4];
    clock.fill_random(&mut bytes);
    most.mul_f64(f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_the_cap_and_restarts() {
        let mut b = Backoff::new(
            Clock::system(),
            Duration::from_secs(1),
            Duration::from_secs(4),
        );
        for base in [1u64, 2, 4, 4] {
            let wait = b.next_wait();
            assert!(
                wait >= Duration::from_secs(base) && wait <= Duration::from_secs(2 * base),
                "{wait:?}"
            );
        }
        b.reset();
        assert!(b.next_wait() <= Duration::from_secs(2));
    }
}
