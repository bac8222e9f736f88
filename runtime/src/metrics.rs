//! The metrics of a process: one registry, the families that every component shares (`workqueue_*`, leader election), and
//! the text that `/metrics` answers.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// The content type of [`Metrics::text`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";

/// A floating-point gauge.
pub type FloatGauge = Gauge<f64, AtomicU64>;

/// The `name` label of the shared families.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Named {
    name: String,
}

type NamedHistogram = Family<Named, Histogram, fn() -> Histogram>;

/// A handle to the process's metrics; clones share them.
#[derive(Clone)]
pub struct Metrics {
    shared: Arc<Shared>,
}

/// Called before each scrape; false when it is to be dropped.
type Hook = Box<dyn Fn() -> bool + Send + Sync>;

struct Shared {
    registry: Mutex<Registry>,
    hooks: Mutex<Vec<Hook>>,
    depth: Family<Named, Gauge>,
    adds: Family<Named, Counter>,
    retries: Family<Named, Counter>,
    queue_duration: NamedHistogram,
    work_duration: NamedHistogram,
    unfinished: Family<Named, FloatGauge>,
    longest: Family<Named, FloatGauge>,
    leader: Family<Named, Gauge>,
}

/// The metrics of one work queue.
#[derive(Clone)]
pub(crate) struct QueueMetrics {
    pub depth: Gauge,
    pub adds: Counter,
    pub retries: Counter,
    pub queue_duration: Histogram,
    pub work_duration: Histogram,
    pub unfinished: FloatGauge,
    pub longest: FloatGauge,
}

fn queue_histogram() -> Histogram {
    // Upstream: prometheus.ExponentialBuckets(10e-9, 10, 12).
    Histogram::new((0..12).map(|i| 10e-9 * 10f64.powi(i)))
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// A registry with the shared families in it.
    pub fn new() -> Self {
        let shared = Shared {
            registry: Mutex::new(Registry::default()),
            hooks: Mutex::default(),
            depth: Family::default(),
            adds: Family::default(),
            retries: Family::default(),
            queue_duration: Family::new_with_constructor(queue_histogram),
            work_duration: Family::new_with_constructor(queue_histogram),
            unfinished: Family::default(),
            longest: Family::default(),
            leader: Family::default(),
        };
        {
            let mut r = shared.registry.lock();
            r.register(
                "workqueue_depth",
                "Current depth of workqueue",
                shared.depth.clone(),
            );
            r.register(
                "workqueue_adds",
                "Total number of adds handled by workqueue",
                shared.adds.clone(),
            );
            r.register(
                "workqueue_retries",
                "Total number of retries handled by workqueue",
                shared.retries.clone(),
            );
            r.register(
                "workqueue_queue_duration_seconds",
                "How long in seconds an item stays in workqueue before being requested",
                shared.queue_duration.clone(),
            );
            r.register(
                "workqueue_work_duration_seconds",
                "How long in seconds processing an item from workqueue takes",
                shared.work_duration.clone(),
            );
            r.register(
                "workqueue_unfinished_work_seconds",
                "Seconds of work in progress that work_duration does not cover yet",
                shared.unfinished.clone(),
            );
            r.register(
                "workqueue_longest_running_processor_seconds",
                "How many seconds the longest running processor for workqueue has been running",
                shared.longest.clone(),
            );
            r.register(
                "leader_election_master_status",
                "Whether the reporting system holds the lease: 0 is backup, 1 is master",
                shared.leader.clone(),
            );
        }
        Metrics {
            shared: Arc::new(shared),
        }
    }

    /// Lets the caller register metrics of its own. A counter is registered without its `_total`.
    pub fn register(&self, register: impl FnOnce(&mut Registry)) {
        register(&mut self.shared.registry.lock());
    }

    /// Calls `hook` before each scrape, until it answers false.
    pub fn before_scrape(&self, hook: Hook) {
        self.shared.hooks.lock().push(hook);
    }

    pub(crate) fn queue(&self, name: &str) -> QueueMetrics {
        let label = Named {
            name: name.to_owned(),
        };
        let s = &self.shared;
        QueueMetrics {
            depth: s.depth.get_or_create_owned(&label),
            adds: s.adds.get_or_create_owned(&label),
            retries: s.retries.get_or_create_owned(&label),
            queue_duration: s.queue_duration.get_or_create_owned(&label),
            work_duration: s.work_duration.get_or_create_owned(&label),
            unfinished: s.unfinished.get_or_create_owned(&label),
            longest: s.longest.get_or_create_owned(&label),
        }
    }

    pub(crate) fn leader(&self, name: &str) -> Gauge {
        self.shared.leader.get_or_create_owned(&Named {
            name: name.to_owned(),
        })
    }

    /// Everything in the Prometheus text format, version 0.0.4.
    ///
    /// # Errors
    /// When a metric cannot write itself.
    pub fn text(&self) -> Result<String, fmt::Error> {
        self.shared.hooks.lock().retain(|hook| hook());
        let mut open = String::new();
        prometheus_client::encoding::text::encode(&mut open, &self.shared.registry.lock())?;
        Ok(classic(&open))
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

/// The classic text form of an OpenMetrics text: a counter's family is named as its sample (`x_total`), and there is
/// neither a unit nor an end mark. Upstream's scrapers read the classic form.
fn classic(open: &str) -> String {
    let mut text = String::with_capacity(open.len());
    let mut help: Option<(&str, &str)> = None;
    for line in open.lines() {
        if line == "# EOF" || line.starts_with("# UNIT ") {
            continue;
        }
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
            continue;
        }
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or((rest, "untyped"));
            let total = if kind == "counter" { "_total" } else { "" };
            if let Some((_, words)) = help.take() {
                text.push_str(&format!("# HELP {name}{total} {words}\n"));
            }
            let kind = if kind == "unknown" { "untyped" } else { kind };
            text.push_str(&format!("# TYPE {name}{total} {kind}\n"));
            continue;
        }
        text.push_str(line);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_named_as_their_samples() {
        let metrics = Metrics::new();
        metrics.queue("pods").adds.inc();
        let text = metrics.text().unwrap();
        for line in [
            "# TYPE workqueue_adds_total counter",
            "workqueue_adds_total{name=\"pods\"} 1",
            "# TYPE workqueue_depth gauge",
            "workqueue_depth{name=\"pods\"} 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
        assert!(!text.contains("# EOF"));
    }
}
