//! A queue of keys with client-go's guarantees (`k8s.io/client-go/util/workqueue`):
//!
//! - a key that is waiting is queued once, however often it is added;
//! - a key is never worked on twice at once: added while it is being worked on, it comes again after [`done`](WorkQueue::done);
//! - [`add_after`](WorkQueue::add_after) keeps only the earliest time of a waiting key;
//! - [`add_rate_limited`](WorkQueue::add_rate_limited) waits exponentially longer per failure of that key, and never less
//!   than an overall token bucket allows.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::metrics::{Metrics, QueueMetrics};

/// How long failures make a key wait.
#[derive(Clone, Copy, Debug)]
pub struct RateLimit {
    /// The wait after the first failure of a key; doubled by each further one.
    pub base: Duration,
    /// The longest wait of a key.
    pub most: Duration,
    /// Overall rate of rate-limited adds, per second; 0 for no limit.
    pub rate: f64,
    /// How many may go at once before the rate counts.
    pub burst: f64,
}

/// Upstream `DefaultTypedControllerRateLimiter`: 5 ms to 1000 s per key, 10 per second with a burst of 100 overall.
impl Default for RateLimit {
    fn default() -> Self {
        RateLimit {
            base: Duration::from_millis(5),
            most: Duration::from_secs(1000),
            rate: 10.0,
            burst: 100.0,
        }
    }
}

/// See the module's documentation. Shared by `Arc`.
pub struct WorkQueue<K> {
    name: String,
    limit: RateLimit,
    state: Mutex<State<K>>,
    wake: Notify,
    metrics: Option<QueueMetrics>,
}

struct State<K> {
    ready: VecDeque<K>,
    /// Waiting to be worked on, with the time since when: in `ready`, or added again while processing.
    dirty: HashMap<K, Instant>,
    processing: HashMap<K, Instant>,
    delayed: BinaryHeap<Reverse<(Instant, u64)>>,
    delayed_keys: HashMap<u64, K>,
    delayed_at: HashMap<K, (Instant, u64)>,
    sequence: u64,
    failures: HashMap<K, u32>,
    bucket: Bucket,
    stopped: bool,
}

/// A token bucket that may be overdrawn: each draw is told how long to wait (golang.org/x/time/rate `Reserve`).
#[derive(Default)]
struct Bucket {
    tokens: f64,
    at: Option<Instant>,
}

impl Bucket {
    fn draw(&mut self, limit: &RateLimit, now: Instant) -> Duration {
        if limit.rate <= 0.0 {
            return Duration::ZERO;
        }
        let tokens = match self.at {
            None => limit.burst,
            Some(at) => {
                (self.tokens + now.duration_since(at).as_secs_f64() * limit.rate).min(limit.burst)
            }
        };
        self.at = Some(now);
        self.tokens = tokens - 1.0;
        if self.tokens >= 0.0 {
            Duration::ZERO
        } else {
            Duration::from_secs_f64(-self.tokens / limit.rate)
        }
    }
}

impl<K: Eq + Hash + Clone + Send + 'static> WorkQueue<K> {
    /// A queue with upstream's default rate limit, measured under `name` in `metrics`.
    pub fn new(name: impl Into<String>, metrics: &Metrics) -> Arc<Self> {
        Self::with_limit(name, RateLimit::default(), metrics)
    }

    /// A queue with a rate limit of the caller's.
    pub fn with_limit(name: impl Into<String>, limit: RateLimit, metrics: &Metrics) -> Arc<Self> {
        let name = name.into();
        let queue = Arc::new(WorkQueue {
            metrics: Some(metrics.queue(&name)),
            name,
            limit,
            state: Mutex::new(State {
                ready: VecDeque::new(),
                dirty: HashMap::new(),
                processing: HashMap::new(),
                delayed: BinaryHeap::new(),
                delayed_keys: HashMap::new(),
                delayed_at: HashMap::new(),
                sequence: 0,
                failures: HashMap::new(),
                bucket: Bucket::default(),
                stopped: false,
            }),
            wake: Notify::new(),
        });
        let weak = Arc::downgrade(&queue);
        metrics.before_scrape(Box::new(move || match weak.upgrade() {
            Some(queue) => {
                queue.measure_unfinished();
                true
            }
            None => false,
        }));
        queue
    }

    /// The name it is measured under.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Asks for `key` to be worked on. Nothing happens when it already waits, or when the queue is shut down.
    pub fn add(&self, key: K) {
        let mut state = self.state.lock();
        self.add_locked(&mut state, key, Instant::now());
    }

    fn add_locked(&self, state: &mut State<K>, key: K, now: Instant) {
        if state.stopped || state.dirty.contains_key(&key) {
            return;
        }
        if let Some(m) = &self.metrics {
            m.adds.inc();
        }
        state.dirty.insert(key.clone(), now);
        if !state.processing.contains_key(&key) {
            state.ready.push_back(key);
            if let Some(m) = &self.metrics {
                m.depth.set(state.ready.len() as i64);
            }
            self.wake.notify_one();
        }
    }

    /// Asks for `key` after `wait`. A key that already waits for a time keeps the earlier one.
    pub fn add_after(&self, key: K, wait: Duration) {
        let mut state = self.state.lock();
        if state.stopped {
            return;
        }
        if let Some(m) = &self.metrics {
            m.retries.inc();
        }
        let now = Instant::now();
        if wait.is_zero() {
            return self.add_locked(&mut state, key, now);
        }
        let at = now + wait;
        if let Some((known, sequence)) = state.delayed_at.get(&key).copied() {
            if known <= at {
                return;
            }
            // The later entry stays in the heap and is skipped when its sequence is no longer known.
            state.delayed_keys.remove(&sequence);
        }
        state.sequence += 1;
        let sequence = state.sequence;
        state.delayed.push(Reverse((at, sequence)));
        state.delayed_keys.insert(sequence, key.clone());
        state.delayed_at.insert(key, (at, sequence));
        self.wake.notify_one();
    }

    /// Asks for `key` after the wait that its failures so far, and the overall bucket, call for. Counts one failure.
    pub fn add_rate_limited(&self, key: K) {
        let wait = {
            let mut state = self.state.lock();
            let failures = state.failures.entry(key.clone()).or_insert(0);
            let factor = 2f64.powi((*failures).min(60) as i32);
            *failures = failures.saturating_add(1);
            let own = (self.limit.base.as_secs_f64() * factor).min(self.limit.most.as_secs_f64());
            let shared = state.bucket.draw(&self.limit, Instant::now());
            Duration::from_secs_f64(own).max(shared)
        };
        self.add_after(key, wait);
    }

    /// How many failures of `key` are counted since it was last forgotten.
    pub fn num_requeues(&self, key: &K) -> u32 {
        self.state.lock().failures.get(key).copied().unwrap_or(0)
    }

    /// Forgets the failures of `key`. Call it when a key succeeded or is given up.
    pub fn forget(&self, key: &K) {
        self.state.lock().failures.remove(key);
    }

    /// The next key to work on, or `None` once the queue is shut down and drained. [`done`](WorkQueue::done) must follow.
    pub async fn get(&self) -> Option<K> {
        loop {
            // Registered before the look, so that an add between look and wait is not missed.
            let woken = self.wake.notified();
            let next = {
                let mut state = self.state.lock();
                let now = Instant::now();
                self.promote(&mut state, now);
                if let Some(key) = state.ready.pop_front() {
                    let since = state.dirty.remove(&key);
                    state.processing.insert(key.clone(), now);
                    if let Some(m) = &self.metrics {
                        m.depth.set(state.ready.len() as i64);
                        if let Some(since) = since {
                            m.queue_duration.observe((now - since).as_secs_f64());
                        }
                    }
                    if !state.ready.is_empty() || !state.delayed.is_empty() {
                        // Another worker takes over the watch on the rest.
                        self.wake.notify_one();
                    }
                    return Some(key);
                }
                if state.stopped {
                    self.wake.notify_one();
                    return None;
                }
                state.delayed.peek().map(|Reverse((at, _))| *at)
            };
            match next {
                Some(at) => {
                    tokio::select! { () = woken => {}, () = tokio::time::sleep_until(at) => {} }
                }
                None => woken.await,
            }
        }
    }

    /// Moves what is due from the delayed to the ready.
    fn promote(&self, state: &mut State<K>, now: Instant) {
        while let Some(Reverse((at, sequence))) = state.delayed.peek().copied() {
            if at > now {
                break;
            }
            state.delayed.pop();
            if let Some(key) = state.delayed_keys.remove(&sequence) {
                state.delayed_at.remove(&key);
                self.add_locked(state, key, now);
            }
        }
    }

    /// Ends the work on `key`; if it was added meanwhile, it is ready again.
    pub fn done(&self, key: &K) {
        let mut state = self.state.lock();
        let begun = state.processing.remove(key);
        if let (Some(m), Some(begun)) = (&self.metrics, begun) {
            m.work_duration.observe(begun.elapsed().as_secs_f64());
        }
        if begun.is_some() && state.dirty.contains_key(key) {
            state.ready.push_back(key.clone());
            if let Some(m) = &self.metrics {
                m.depth.set(state.ready.len() as i64);
            }
            self.wake.notify_one();
        }
    }

    /// How many keys are ready. Delayed ones and those being worked on do not count.
    pub fn len(&self) -> usize {
        self.state.lock().ready.len()
    }

    /// Whether no key is ready.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes nothing more in; workers get what is ready, then `None`. Delayed keys are dropped.
    pub fn shut_down(&self) {
        let mut state = self.state.lock();
        state.stopped = true;
        state.delayed.clear();
        state.delayed_keys.clear();
        state.delayed_at.clear();
        drop(state);
        self.wake.notify_waiters();
        self.wake.notify_one();
    }

    fn measure_unfinished(&self) {
        let Some(m) = &self.metrics else { return };
        let state = self.state.lock();
        let now = Instant::now();
        let ages = state
            .processing
            .values()
            .map(|begun| (now - *begun).as_secs_f64());
        let (sum, longest) = ages.fold((0.0, 0f64), |(sum, longest), age| {
            (sum + age, longest.max(age))
        });
        m.unfinished.set(sum);
        m.longest.set(longest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue() -> Arc<WorkQueue<&'static str>> {
        WorkQueue::new("test", &Metrics::new())
    }

    #[tokio::test(start_paused = true)]
    async fn one_key_is_queued_once_and_worked_on_once() {
        let q = queue();
        q.add("a");
        q.add("a");
        assert_eq!(q.len(), 1);
        assert_eq!(q.get().await, Some("a"));
        q.add("a");
        assert_eq!(q.len(), 0, "not ready while it is worked on");
        q.done(&"a");
        assert_eq!(q.get().await, Some("a"));
        q.done(&"a");
        assert_eq!(q.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn delayed_keys_keep_the_earliest_time() {
        let q = queue();
        let begun = Instant::now();
        q.add_after("a", Duration::from_secs(10));
        q.add_after("a", Duration::from_secs(2));
        q.add_after("a", Duration::from_secs(5));
        assert_eq!(q.get().await, Some("a"));
        assert_eq!(begun.elapsed().as_secs(), 2);
        q.done(&"a");
        let rest = tokio::time::timeout(Duration::from_secs(60), q.get()).await;
        assert!(rest.is_err(), "the later times are gone: {rest:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn failures_wait_longer_and_are_forgotten() {
        let q = queue();
        for millis in [5u128, 10, 20, 40] {
            let begun = Instant::now();
            q.add_rate_limited("a");
            assert_eq!(q.get().await, Some("a"));
            assert_eq!(begun.elapsed().as_millis(), millis);
            q.done(&"a");
        }
        assert_eq!(q.num_requeues(&"a"), 4);
        q.forget(&"a");
        assert_eq!(q.num_requeues(&"a"), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_bucket_holds_back_many_keys() {
        let q: Arc<WorkQueue<u32>> = WorkQueue::new("test", &Metrics::new());
        let begun = Instant::now();
        for key in 0..120 {
            q.add_rate_limited(key);
        }
        for _ in 0..120 {
            let key = q.get().await.unwrap();
            q.done(&key);
        }
        // 100 at once, then 10 each second.
        assert!((1900..2100).contains(&begun.elapsed().as_millis()));
    }

    #[tokio::test(start_paused = true)]
    async fn every_worker_sees_the_end() {
        let q = queue();
        q.add("a");
        let workers: Vec<_> = (0..4)
            .map(|_| {
                let q = q.clone();
                tokio::spawn(async move {
                    let mut got = 0;
                    while let Some(key) = q.get().await {
                        got += 1;
                        q.done(&key);
                    }
                    got
                })
            })
            .collect();
        tokio::task::yield_now().await;
        q.shut_down();
        let mut sum = 0;
        for worker in workers {
            sum += worker.await.unwrap();
        }
        assert_eq!(sum, 1);
    }
}
