//! Workers on a queue: the loop that all controllers share.
//!
//! A reconcile is given a key and looks the world up itself (level-triggered). What it answers decides when the key comes
//! again. A panic is caught, counted as a failure of that key, and the other keys and controllers go on.

use std::any::Any;
use std::fmt::{Debug, Display};
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use keelson_machinery::clock::Clock;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::workqueue::WorkQueue;

/// What becomes of a key after a reconcile that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing until the next change; past failures are forgotten.
    Done,
    /// Again after this time; past failures are forgotten.
    RequeueAfter(Duration),
    /// Again with the wait of a failure, without an error: another writer was faster, or something is not there yet.
    Retry,
}

/// N workers on one queue.
pub struct Controller<K> {
    name: String,
    queue: Arc<WorkQueue<K>>,
    workers: usize,
    max_retries: Option<u32>,
}

impl<K> Controller<K>
where
    K: Eq + Hash + Clone + Debug + Send + Sync + 'static,
{
    /// One worker and no limit on retries, until said otherwise.
    pub fn new(name: impl Into<String>, queue: Arc<WorkQueue<K>>) -> Self {
        Controller {
            name: name.into(),
            queue,
            workers: 1,
            max_retries: None,
        }
    }

    /// How many keys are worked on at once (upstream `--concurrent-*-syncs`). At least one.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers.max(1);
        self
    }

    /// After this many failures in a row a key is dropped until the next change (upstream `maxRetries`).
    pub fn max_retries(mut self, retries: u32) -> Self {
        self.max_retries = Some(retries);
        self
    }

    /// Works until `shutdown`; then the running reconciles end and it returns.
    pub async fn run<F, Fut, E>(self, shutdown: CancellationToken, reconcile: F)
    where
        F: Fn(K) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Action, E>> + Send,
        E: Display + Send + 'static,
    {
        let this = Arc::new(self);
        let reconcile = Arc::new(reconcile);
        let mut workers = JoinSet::new();
        for _ in 0..this.workers {
            let this = this.clone();
            let reconcile = reconcile.clone();
            workers.spawn(async move {
                while let Some(key) = this.queue.get().await {
                    let result = AssertUnwindSafe(async { reconcile(key.clone()).await })
                        .catch_unwind()
                        .await;
                    this.settle(&key, result);
                    this.queue.done(&key);
                }
            });
        }
        shutdown.cancelled().await;
        this.queue.shut_down();
        while workers.join_next().await.is_some() {}
    }

    fn settle<E: Display>(&self, key: &K, result: Result<Result<Action, E>, Box<dyn Any + Send>>) {
        let reason = match result {
            Ok(Ok(Action::Done)) => return self.queue.forget(key),
            Ok(Ok(Action::RequeueAfter(wait))) => {
                self.queue.forget(key);
                return self.queue.add_after(key.clone(), wait);
            }
            Ok(Ok(Action::Retry)) => return self.queue.add_rate_limited(key.clone()),
            Ok(Err(error)) => format!("{error:#}"),
            Err(panic) => {
                let text = panic_text(&*panic);
                tracing::error!(controller = self.name, ?key, "panic: {text}");
                format!("panic: {text}")
            }
        };
        if self
            .max_retries
            .is_some_and(|most| self.queue.num_requeues(key) >= most)
        {
            tracing::warn!(
                controller = self.name,
                ?key,
                reason,
                "dropped out of the queue"
            );
            self.queue.forget(key);
        } else {
            tracing::debug!(controller = self.name, ?key, reason, "trying again");
            self.queue.add_rate_limited(key.clone());
        }
    }
}

/// Keeps `start` running: when it panics or fails it is started again, after a wait that grows from 1 s to a minute. Returns
/// when it ends well or on `shutdown`.
pub async fn supervise<F, Fut, E>(name: &str, clock: Clock, shutdown: CancellationToken, start: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = Result<(), E>>,
    E: Display,
{
    let mut backoff = Backoff::new(clock, Duration::from_secs(1), Duration::from_secs(60));
    while !shutdown.is_cancelled() {
        let begun = tokio::time::Instant::now();
        let reason = match AssertUnwindSafe(async { start().await })
            .catch_unwind()
            .await
        {
            Ok(Ok(())) => return,
            Ok(Err(error)) => format!("{error:#}"),
            Err(panic) => format!("panic: {}", panic_text(&*panic)),
        };
        if begun.elapsed() > Duration::from_secs(300) {
            backoff.reset();
        }
        let wait = backoff.next_wait();
        tracing::error!(name, reason, ?wait, "restarting");
        let _ = shutdown.run_until_cancelled(tokio::time::sleep(wait)).await;
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no message)")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use parking_lot::Mutex;

    #[tokio::test(start_paused = true)]
    async fn a_panic_is_a_failure_of_its_key_alone() {
        let queue = WorkQueue::new("test", &Metrics::new());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let stop = CancellationToken::new();
        queue.add("bad");
        queue.add("good");
        let task = tokio::spawn(Controller::new("test", queue.clone()).max_retries(2).run(
            stop.clone(),
            {
                let (seen, stop) = (seen.clone(), stop.clone());
                move |key: &'static str| {
                    seen.lock().push(key);
                    let bad = seen.lock().iter().filter(|k| **k == "bad").count();
                    let stop = stop.clone();
                    async move {
                        if bad == 3 {
                            stop.cancel();
                        }
                        assert!(key != "bad", "as meant");
                        Ok::<_, String>(Action::Done)
                    }
                }
            },
        ));
        task.await.unwrap();
        assert_eq!(*seen.lock(), ["bad", "good", "bad", "bad"]);
        assert_eq!(queue.num_requeues(&"bad"), 0, "given up");
    }
}
