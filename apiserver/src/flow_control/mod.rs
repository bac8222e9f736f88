//! Priority and fairness: no kind of client keeps the others from being served (upstream
//! `k8s.io/apiserver/pkg/util/flowcontrol`).
//!
//! A request belongs to a FlowSchema and so to a priority level ([`settings`]), which has a part of the server's
//! concurrency and queues for what must wait ([`queues`]). [`FlowControl::enter`] waits for its turn. What a level does not
//! use others may borrow, as far as it is lendable; it gets it back with the next request that it has.
//!
//! Where upstream adjusts limits every ten seconds by the demand it saw, seats are borrowed one by one at the moment they
//! are free. A lender that comes back does not wait for them: until the borrowers are done, the server runs more requests
//! than its limit, by at most what is lendable.

pub mod defaults;
pub mod queues;
pub mod settings;
mod upkeep;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use keelson_machinery::value::Value;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;
use tokio::time::Instant;

use self::queues::{Arrival, Level, share};
use self::settings::{CATCH_ALL, Schema, Settings};
use crate::request::{RequestInfo, UserInfo};

pub use self::upkeep::keep;

/// The group of both kinds.
pub const GROUP: &str = "flowcontrol.apiserver.k8s.io";
/// FlowSchemas.
pub const SCHEMAS: &str = "flowschemas";
/// PriorityLevelConfigurations.
pub const LEVELS: &str = "prioritylevelconfigurations";

/// How long a request waits for its turn before it is refused (upstream: a quarter of the request timeout).
const WAIT: Duration = Duration::from_secs(15);

/// See the module's documentation. Shared by `Arc`.
pub struct FlowControl {
    /// How many requests run at the same time, all levels together.
    total: usize,
    settings: ArcSwap<Settings>,
    state: Mutex<State>,
    started: Instant,
}

#[derive(Default)]
struct State {
    levels: BTreeMap<String, Work>,
    /// Those that wait, by number.
    waiting: HashMap<u64, oneshot::Sender<usize>>,
    next: u64,
    /// By schema, level and reason.
    refused: BTreeMap<(String, String, &'static str), u64>,
    /// By schema and level.
    dispatched: BTreeMap<(String, String), u64>,
}

struct Work {
    level: Level,
    exempt: bool,
    /// Its configuration is gone; it ends with its last request.
    leaving: bool,
}

/// Where a request belongs, as response headers tell it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classified {
    /// Of the FlowSchema.
    pub schema_uid: String,
    /// Of the PriorityLevelConfiguration.
    pub level_uid: String,
}

/// A request that runs; ends when dropped.
pub struct Ticket {
    control: Arc<FlowControl>,
    level: String,
    queue: Option<usize>,
    since: Instant,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let took = self.since.elapsed().as_secs_f64();
        self.control.finish(&self.level, self.queue, took);
    }
}

/// One that waits; gives up its place when dropped.
struct Waiting {
    control: Arc<FlowControl>,
    level: String,
    queue: usize,
    id: u64,
    done: bool,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let mut state = self.control.state.lock();
        let left = state
            .levels
            .get_mut(&self.level)
            .is_some_and(|work| work.level.leave(self.id, self.queue));
        state.waiting.remove(&self.id);
        if !left {
            // It was called at the same moment.
            drop(state);
            self.control.finish(&self.level, Some(self.queue), 0.0);
        }
    }
}

impl FlowControl {
    /// For so many requests at the same time. Until the stored configuration is read, the mandatory one counts.
    pub fn new(total: usize) -> Arc<FlowControl> {
        let control = FlowControl {
            total: total.max(1),
            settings: ArcSwap::default(),
            state: Mutex::default(),
            started: Instant::now(),
        };
        control.configure([].iter(), [].iter());
        Arc::new(control)
    }

    /// From now on these FlowSchemas and PriorityLevelConfigurations count.
    pub fn configure<'a>(
        &self,
        schemas: impl Iterator<Item = &'a Value>,
        levels: impl Iterator<Item = &'a Value>,
    ) {
        let settings = Settings::read(schemas, levels);
        let now = self.now();
        let seats = share(self.total, settings.levels().values());
        let mut state = self.state.lock();
        for ((name, spec), seats) in settings.levels().iter().zip(seats) {
            match state.levels.get_mut(name) {
                Some(work) => {
                    work.level.reconfigure(spec.queuing, seats);
                    (work.exempt, work.leaving) = (spec.exempt, false);
                }
                None => {
                    let work = Work {
                        level: Level::new(spec.queuing, seats, now),
                        exempt: spec.exempt,
                        leaving: false,
                    };
                    state.levels.insert(name.clone(), work);
                }
            }
        }
        state.levels.retain(|name, work| {
            work.leaving |= !settings.levels().contains_key(name);
            !work.leaving || work.level.running + work.level.waiting > 0
        });
        self.settings.store(Arc::new(settings));
        self.call_next(&mut state);
    }

    fn now(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// Waits for the request's turn. With it comes where it belongs; no ticket means that it is refused.
    pub async fn enter(
        self: &Arc<Self>,
        user: &UserInfo,
        info: &RequestInfo,
    ) -> (Classified, Option<Ticket>) {
        let settings = self.settings.load_full();
        let Some(schema) = settings.classify(user, info) else {
            // There is always one.
            let unknown = Classified {
                schema_uid: String::new(),
                level_uid: String::new(),
            };
            return (unknown, None);
        };
        let spec = settings.levels().get(&schema.level);
        let classified = Classified {
            schema_uid: schema.uid.clone(),
            level_uid: spec.map(|spec| spec.uid.clone()).unwrap_or_default(),
        };
        let flow = schema.distinguish(user, info);
        let (mut waiting, called) = match self.ask(schema, flow) {
            Ok(Ok(ticket)) => return (classified, Some(ticket)),
            Ok(Err(waiting)) => waiting,
            Err(_reason) => return (classified, None),
        };
        match tokio::time::timeout(WAIT, called).await {
            Ok(Ok(queue)) => {
                waiting.done = true;
                let ticket = Ticket {
                    control: self.clone(),
                    level: waiting.level.clone(),
                    queue: Some(queue),
                    since: Instant::now(),
                };
                (classified, Some(ticket))
            }
            Ok(Err(_)) | Err(_) => {
                drop(waiting);
                self.refuse(&mut self.state.lock(), schema, "time-out");
                (classified, None)
            }
        }
    }

    /// A ticket, a place in a queue, or why there is none.
    #[allow(clippy::type_complexity)]
    fn ask(
        self: &Arc<Self>,
        schema: &Schema,
        flow: &str,
    ) -> Result<Result<Ticket, (Waiting, oneshot::Receiver<usize>)>, &'static str> {
        let mut state = self.state.lock();
        // A level that just went: its requests belong nowhere else.
        let name = if state.levels.contains_key(&schema.level) {
            schema.level.as_str()
        } else {
            CATCH_ALL
        };
        let to_borrow = to_borrow(&state, name);
        let id = state.next;
        let now = self.now();
        let Some(work) = state.levels.get_mut(name) else {
            return Err("concurrency-limit");
        };
        if work.exempt || (work.level.waiting == 0 && work.level.has_seat(to_borrow)) {
            work.level.start();
            self.count(&mut state, schema);
            return Ok(Ok(Ticket {
                control: self.clone(),
                level: name.to_owned(),
                queue: None,
                since: Instant::now(),
            }));
        }
        let reason = match work.level.arrive(id, hash(&schema.name, flow), now) {
            Arrival::Waits(queue) => {
                let (caller, called) = oneshot::channel();
                state.next += 1;
                state.waiting.insert(id, caller);
                self.count(&mut state, schema);
                self.call_next(&mut state);
                let waiting = Waiting {
                    control: self.clone(),
                    level: name.to_owned(),
                    queue,
                    id,
                    done: false,
                };
                return Ok(Err((waiting, called)));
            }
            Arrival::QueueFull => "queue-full",
            Arrival::NoQueues => "concurrency-limit",
        };
        self.refuse(&mut state, schema, reason);
        Err(reason)
    }

    fn count(&self, state: &mut State, schema: &Schema) {
        let key = (schema.name.clone(), schema.level.clone());
        *state.dispatched.entry(key).or_default() += 1;
    }

    fn refuse(&self, state: &mut State, schema: &Schema, reason: &'static str) {
        let key = (schema.name.clone(), schema.level.clone(), reason);
        *state.refused.entry(key).or_default() += 1;
    }

    fn finish(&self, level: &str, queue: Option<usize>, took: f64) {
        let now = self.now();
        let mut state = self.state.lock();
        if let Some(work) = state.levels.get_mut(level) {
            work.level.finish(queue, took, now);
            if work.leaving && work.level.running + work.level.waiting == 0 {
                state.levels.remove(level);
            }
        }
        self.call_next(&mut state);
    }

    /// Calls all who may run now.
    fn call_next(&self, state: &mut State) {
        let now = self.now();
        if state.waiting.is_empty() {
            return;
        }
        let names: Vec<String> = state
            .levels
            .iter()
            .filter(|(_, work)| work.level.waiting > 0)
            .map(|(name, _)| name.clone())
            .collect();
        for name in names {
            loop {
                let to_borrow = to_borrow(state, &name);
                let Some(work) = state.levels.get_mut(&name) else {
                    break;
                };
                let Some((id, queue)) = work.level.next(to_borrow, now) else {
                    break;
                };
                // One that went away at this moment gives its seat back itself.
                if let Some(caller) = state.waiting.remove(&id) {
                    let _ = caller.send(queue);
                }
            }
        }
    }

    /// Upstream's metrics about all this, in Prometheus' text form.
    pub fn render(&self) -> String {
        let state = self.state.lock();
        let mut out = String::new();
        let mut metric = |name: &str, kind: &str, help: &str, rows: Vec<(String, u64)>| {
            let full = format!("apiserver_flowcontrol_{name}");
            out += &format!("# HELP {full} {help}\n# TYPE {full} {kind}\n");
            for (labels, value) in rows {
                out += &format!("{full}{{{labels}}} {value}\n");
            }
        };
        let of_level = |value: fn(&Work) -> usize| -> Vec<(String, u64)> {
            let rows = state.levels.iter();
            rows.map(|(name, work)| (format!("priority_level={name:?}"), value(work) as u64))
                .collect()
        };
        metric(
            "dispatched_requests_total",
            "counter",
            "Number of requests executed by API Priority and Fairness subsystem",
            state
                .dispatched
                .iter()
                .map(|((schema, level), count)| {
                    (
                        format!("flow_schema={schema:?},priority_level={level:?}"),
                        *count,
                    )
                })
                .collect(),
        );
        metric(
            "rejected_requests_total",
            "counter",
            "Number of requests rejected by API Priority and Fairness subsystem",
            state
                .refused
                .iter()
                .map(|((schema, level, reason), count)| {
                    let labels = format!(
                        "flow_schema={schema:?},priority_level={level:?},reason={reason:?}"
                    );
                    (labels, *count)
                })
                .collect(),
        );
        metric(
            "current_inqueue_requests",
            "gauge",
            "Number of requests currently pending in queues of the API Priority and Fairness subsystem",
            of_level(|work| work.level.waiting),
        );
        metric(
            "current_executing_requests",
            "gauge",
            "Number of requests in initial (for a WATCH) or any (for a non-WATCH) execution stage in the API Priority and Fairness subsystem",
            of_level(|work| work.level.running),
        );
        metric(
            "nominal_limit_seats",
            "gauge",
            "Nominal number of execution seats configured for each priority level",
            of_level(|work| work.level.seats.nominal),
        );
        out
    }
}

/// How many seats a level may borrow from others now.
fn to_borrow(state: &State, name: &str) -> usize {
    let others = || {
        let all = state.levels.iter();
        all.filter(move |(other, work)| *other != name && !work.exempt)
            .map(|(_, work)| &work.level)
    };
    let own = state
        .levels
        .get(name)
        .map_or(0, |work| work.level.borrowed());
    let lent: usize = others().map(Level::lent).sum();
    let borrowed: usize = others().map(Level::borrowed).sum::<usize>() + own;
    lent.saturating_sub(borrowed)
}

/// Of a flow, for dealing queues to it (upstream `hashFlowID`).
fn hash(schema: &str, flow: &str) -> u64 {
    let mut hasher = Sha256::new();
    hasher.update(schema);
    hasher.update([0]);
    hasher.update(flow);
    let digest = hasher.finalize();
    let mut first = [0u8; 8];
    first.copy_from_slice(&digest[..8]);
    u64::from_le_bytes(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn user(name: &str, group: &str) -> UserInfo {
        UserInfo {
            name: name.to_owned(),
            groups: vec![group.to_owned(), "system:authenticated".to_owned()],
            ..UserInfo::default()
        }
    }

    fn pods() -> RequestInfo {
        RequestInfo {
            is_resource: true,
            verb: "list".to_owned(),
            resource: "pods".to_owned(),
            namespace: "n".to_owned(),
            ..RequestInfo::default()
        }
    }

    /// Everybody in one level with this response to its limit.
    fn one_level(total: usize, response: Value) -> Arc<FlowControl> {
        let level = json!({"metadata": {"name": "one", "uid": "of level"}, "spec": {"type": "Limited", "limited":
            {"nominalConcurrencyShares": 1000, "lendablePercent": 0, "limitResponse": response}}});
        let schema = json!({"metadata": {"name": "all", "uid": "of schema"}, "spec": {"matchingPrecedence": 5,
            "priorityLevelConfiguration": {"name": "one"}, "distinguisherMethod": {"type": "ByUser"},
            "rules": [{"subjects": [{"kind": "Group", "group": {"name": "*"}}],
                "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"]}]}]}});
        let control = FlowControl::new(total);
        control.configure([schema].iter(), [level].iter());
        control
    }

    #[tokio::test(start_paused = true)]
    async fn who_finds_no_seat_waits_or_is_refused() {
        let control = one_level(
            1,
            json!({"type": "Queue", "queuing": {"queues": 1, "handSize": 1, "queueLengthLimit": 2}}),
        );
        let (classified, first) = control.enter(&user("a", ""), &pods()).await;
        assert_eq!(
            (
                classified.schema_uid.as_str(),
                classified.level_uid.as_str()
            ),
            ("of schema", "of level")
        );
        assert!(first.is_some());
        // Masters never wait.
        assert!(
            control
                .enter(&user("m", "system:masters"), &pods())
                .await
                .1
                .is_some()
        );
        let enter = |name: &'static str| {
            let control = control.clone();
            tokio::spawn(async move { control.enter(&user(name, ""), &pods()).await.1 })
        };
        let (second, third) = (enter("b"), enter("c"));
        tokio::task::yield_now().await;
        let before = Instant::now();
        assert!(control.enter(&user("d", ""), &pods()).await.1.is_none());
        assert_eq!(before.elapsed(), Duration::ZERO);
        drop(first);
        let second = second.await.expect("no panic");
        assert!(second.is_some());
        // Nobody ends in time for the third.
        assert!(third.await.expect("no panic").is_none());
        assert_eq!(before.elapsed(), WAIT);
        // One that goes away while it waits takes no seat with it.
        let fourth = enter("e");
        tokio::task::yield_now().await;
        fourth.abort();
        assert!(fourth.await.is_err());
        drop(second);
        assert!(control.enter(&user("f", ""), &pods()).await.1.is_some());
        let metrics = control.render();
        for line in [
            "rejected_requests_total{flow_schema=\"all\",priority_level=\"one\",reason=\"queue-full\"} 1",
            "rejected_requests_total{flow_schema=\"all\",priority_level=\"one\",reason=\"time-out\"} 1",
            "current_executing_requests{priority_level=\"one\"} 0",
            "current_inqueue_requests{priority_level=\"one\"} 0",
        ] {
            assert!(metrics.contains(line), "{line}: {metrics}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_level_without_queues_refuses_at_once_and_ends_with_its_last_request() {
        let control = one_level(1, json!({"type": "Reject"}));
        let first = control.enter(&user("a", ""), &pods()).await.1;
        assert!(first.is_some());
        assert!(control.enter(&user("b", ""), &pods()).await.1.is_none());
        // Its configuration goes: the next request is taken by the level of last resort.
        control.configure([].iter(), [].iter());
        assert!(control.state.lock().levels.contains_key("one"));
        assert!(control.enter(&user("b", ""), &pods()).await.1.is_some());
        drop(first);
        assert!(!control.state.lock().levels.contains_key("one"));
    }

    #[tokio::test(start_paused = true)]
    async fn default_levels_borrow_what_is_free() {
        let control = FlowControl::new(100);
        let (schemas, levels) = (defaults::schemas(), defaults::levels());
        control.configure(schemas.iter(), levels.iter());
        let info = pods();
        let mut tickets = Vec::new();
        let account = user("system:serviceaccount:n:x", "system:serviceaccounts");
        // Its part, and what the others lend.
        let most = 41 + 4 + 4 + 9 + 5;
        for _ in 0..most {
            let (_, ticket) =
                tokio::time::timeout(Duration::from_millis(1), control.enter(&account, &info))
                    .await
                    .expect("a seat");
            tickets.push(ticket.expect("a ticket"));
        }
        let one_more =
            tokio::time::timeout(Duration::from_millis(1), control.enter(&account, &info));
        assert!(one_more.await.is_err(), "{}", control.render());
        // Those whose seats are lent are served all the same.
        let node = user("system:node:n", "system:nodes");
        assert!(control.enter(&node, &info).await.1.is_some());
    }
}
