//! `PrioritySort`: higher priority first, then who waits longer.

use tokio::time::Instant;

/// Orders waiting pods; the smallest is scheduled first. The last part keeps equal pods apart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SortKey {
    descending_priority: std::cmp::Reverse<i32>,
    since: Instant,
    sequence: u64,
}

impl SortKey {
    /// The key of a pod that came to the queue at `since` as the `sequence`-th.
    pub fn new(priority: i32, since: Instant, sequence: u64) -> Self {
        SortKey {
            descending_priority: std::cmp::Reverse(priority),
            since,
            sequence,
        }
    }
}
