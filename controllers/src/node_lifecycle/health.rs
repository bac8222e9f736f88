//! Whether nodes are alive, and what follows for them: conditions, taints, and how fast a zone's nodes may be tainted.
//! No I/O.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// Taint of a node whose Ready condition is False.
pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
/// Taint of a node whose Ready condition is Unknown.
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// Taint of a cordoned node.
pub const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Condition, status, taint (upstream `nodeConditionToTaintKeyStatusMap`).
const CONDITION_TAINTS: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    (
        "MemoryPressure",
        "True",
        "node.kubernetes.io/memory-pressure",
    ),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    (
        "NetworkUnavailable",
        "True",
        "node.kubernetes.io/network-unavailable",
    ),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
];

/// Conditions that the kubelet alone posts.
const KUBELET_CONDITIONS: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// A node's conditions.
pub fn conditions(node: &Node) -> &[NodeCondition] {
    node.status
        .as_ref()
        .and_then(|status| status.conditions.as_deref())
        .unwrap_or_default()
}

/// A node's taints.
pub fn taints(node: &Node) -> &[Taint] {
    node.spec
        .as_ref()
        .and_then(|spec| spec.taints.as_deref())
        .unwrap_or_default()
}

/// The status of a node's Ready condition.
pub fn ready(conditions: &[NodeCondition]) -> Option<&NodeCondition> {
    conditions
        .iter()
        .find(|condition| condition.type_ == "Ready")
}

/// Whether a node has a taint of that key and effect.
pub fn has_taint(node: &Node, key: &str, effect: &str) -> bool {
    taints(node)
        .iter()
        .any(|taint| taint.key == key && taint.effect == effect)
}

/// Which `NoSchedule` taints to add and which to remove (upstream `doNoScheduleTaintingPass`).
pub fn no_schedule_changes(node: &Node) -> (Vec<&'static str>, Vec<&'static str>) {
    let mut wanted: Vec<&'static str> = CONDITION_TAINTS
        .iter()
        .filter(|(kind, status, _)| {
            conditions(node)
                .iter()
                .any(|condition| condition.type_ == *kind && condition.status == *status)
        })
        .map(|(_, _, key)| *key)
        .collect();
    let cordoned = node
        .spec
        .as_ref()
        .is_some_and(|spec| spec.unschedulable == Some(true));
    if cordoned {
        wanted.push(UNSCHEDULABLE);
    }
    let ours = CONDITION_TAINTS
        .iter()
        .map(|(_, _, key)| *key)
        .chain([UNSCHEDULABLE]);
    let has = |key: &str| has_taint(node, key, "NoSchedule");
    let remove = ours
        .filter(|key| has(key) && !wanted.contains(key))
        .collect();
    wanted.retain(|key| !has(key));
    (wanted, remove)
}

/// What was last heard of a node.
#[derive(Clone, Debug, PartialEq)]
pub struct Health {
    /// Conditions as last seen: heartbeat of Ready, if there was one.
    heartbeat: Option<Option<Timestamp>>,
    /// The newest renewal of its lease.
    renewed: Option<Timestamp>,
    /// When the last sign of life was seen, by our clock.
    probe: Timestamp,
}

impl Health {
    /// Counts as heard of now, so that it gets a new grace period.
    pub fn refresh(&mut self, now: Timestamp) {
        self.probe = now;
    }

    /// What is known after looking again (upstream `tryUpdateNodeHealth`, its first half).
    pub fn observe(
        old: Option<&Health>,
        node: &Node,
        renewed: Option<Timestamp>,
        now: Timestamp,
    ) -> Health {
        let heartbeat =
            ready(conditions(node)).map(|c| c.last_heartbeat_time.as_ref().map(|time| time.0));
        let created = node.metadata.creation_timestamp.as_ref().map(|t| t.0);
        let mut health = match old {
            None => Health {
                heartbeat,
                renewed: None,
                // Before its first status a node is as old as its object.
                probe: if heartbeat.is_some() {
                    now
                } else {
                    created.unwrap_or(now)
                },
            },
            Some(old) if heartbeat.is_some() && old.heartbeat != heartbeat => Health {
                heartbeat,
                renewed: old.renewed,
                probe: now,
            },
            Some(old) => Health {
                heartbeat,
                ..old.clone()
            },
        };
        if renewed.is_some() && health.renewed < renewed {
            health.renewed = renewed;
            health.probe = now;
        }
        health
    }

    /// The conditions of a node that has been silent for too long; `None` when nothing changes.
    pub fn overdue(
        &self,
        node: &Node,
        grace: Duration,
        startup_grace: Duration,
        now: Timestamp,
    ) -> Option<Vec<NodeCondition>> {
        let grace = if ready(conditions(node)).is_some() {
            grace
        } else {
            startup_grace
        };
        let silent = now.duration_since(self.probe);
        if silent.is_negative() || silent.unsigned_abs() <= grace {
            return None;
        }
        let mut changed = conditions(node).to_vec();
        for kind in KUBELET_CONDITIONS {
            match changed.iter_mut().find(|condition| condition.type_ == kind) {
                None => changed.push(NodeCondition {
                    type_: kind.to_owned(),
                    status: "Unknown".to_owned(),
                    reason: Some("NodeStatusNeverUpdated".to_owned()),
                    message: Some("Kubelet never posted node status.".to_owned()),
                    last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                    last_transition_time: Some(Time(now)),
                }),
                Some(condition) if condition.status != "Unknown" => {
                    condition.status = "Unknown".to_owned();
                    condition.reason = Some("NodeStatusUnknown".to_owned());
                    condition.message = Some("Kubelet stopped posting node status.".to_owned());
                    condition.last_transition_time = Some(Time(now));
                }
                Some(_) => {}
            }
        }
        (changed != conditions(node)).then_some(changed)
    }
}

/// How a zone's nodes are (upstream `ZoneState`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZoneState {
    /// Not judged yet.
    Initial,
    /// Most are ready.
    Normal,
    /// Many are not.
    Partial,
    /// None is ready.
    Full,
}

/// Upstream `ComputeZoneState`.
pub fn zone_state(ready: usize, not_ready: usize, threshold: f64) -> ZoneState {
    if ready == 0 && not_ready > 0 {
        ZoneState::Full
    } else if not_ready > 2 && not_ready as f64 / (not_ready + ready) as f64 >= threshold {
        ZoneState::Partial
    } else {
        ZoneState::Normal
    }
}

/// The zone of a node: region and zone labels; empty without any (upstream `GetZoneKey`).
pub fn zone_key(node: &Node) -> String {
    let labels = node.metadata.labels.as_ref();
    let label = |new: &str, old: &str| {
        labels
            .and_then(|labels| labels.get(new).or_else(|| labels.get(old)))
            .cloned()
            .unwrap_or_default()
    };
    let region = label(
        "topology.kubernetes.io/region",
        "failure-domain.beta.kubernetes.io/region",
    );
    let zone = label(
        "topology.kubernetes.io/zone",
        "failure-domain.beta.kubernetes.io/zone",
    );
    if region.is_empty() && zone.is_empty() {
        String::new()
    } else {
        format!("{region}:\0:{zone}")
    }
}

/// Rates of tainting.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Nodes per second in a healthy zone.
    pub healthy: f64,
    /// Nodes per second in a large unhealthy zone.
    pub unhealthy: f64,
    /// A zone of at most so many nodes is not large.
    pub large: usize,
    /// Share of unready nodes that makes a zone unhealthy.
    pub threshold: f64,
}

#[derive(Debug)]
struct Zone {
    state: ZoneState,
    rate: f64,
    /// A bucket of one token.
    tokens: f64,
    filled: Timestamp,
    pending: VecDeque<String>,
}

/// What a change of the zones means for all nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disruption {
    /// Go on.
    None,
    /// No node answers: more likely it is us. All eviction taints are taken off, and none is put on.
    Entered,
    /// Some node answers again: all get a new grace period.
    Left,
}

/// All zones and the nodes that wait there for their `NoExecute` taint.
#[derive(Debug)]
pub struct Zones {
    rates: Rates,
    zones: HashMap<String, Zone>,
}

impl Zones {
    /// No zone seen yet.
    pub fn new(rates: Rates) -> Self {
        Zones {
            rates,
            zones: HashMap::new(),
        }
    }

    fn zone(&mut self, key: &str, now: Timestamp) -> &mut Zone {
        let rate = self.rates.healthy;
        self.zones.entry(key.to_owned()).or_insert_with(|| Zone {
            state: ZoneState::Initial,
            rate,
            tokens: 1.0,
            filled: now,
            pending: VecDeque::new(),
        })
    }

    /// A node is to be tainted in its turn.
    pub fn add(&mut self, zone: &str, node: &str, now: Timestamp) {
        let zone = self.zone(zone, now);
        if !zone.pending.iter().any(|waiting| waiting == node) {
            zone.pending.push_back(node.to_owned());
        }
    }

    /// A node is well, or gone.
    pub fn remove(&mut self, node: &str) {
        for zone in self.zones.values_mut() {
            zone.pending.retain(|waiting| waiting != node);
        }
    }

    /// The nodes whose turn it is.
    pub fn due(&mut self, now: Timestamp) -> Vec<String> {
        let mut due = Vec::new();
        for zone in self.zones.values_mut() {
            let passed = now.duration_since(zone.filled).as_secs_f64().max(0.0);
            zone.tokens = (zone.tokens + passed * zone.rate).min(1.0);
            zone.filled = now;
            if zone.rate > 0.0
                && zone.tokens >= 1.0
                && let Some(node) = zone.pending.pop_front()
            {
                zone.tokens -= 1.0;
                due.push(node);
            }
        }
        due
    }

    /// Whether some node waits in a zone that may taint.
    pub fn is_waiting(&self) -> bool {
        self.zones
            .values()
            .any(|zone| zone.rate > 0.0 && !zone.pending.is_empty())
    }

    /// Takes in how many nodes of each zone are ready and how many are not (upstream `handleDisruption`).
    pub fn judge(
        &mut self,
        counts: &BTreeMap<String, (usize, usize)>,
        now: Timestamp,
    ) -> Disruption {
        let rates = self.rates;
        let states: BTreeMap<&String, ZoneState> = counts
            .iter()
            .map(|(key, (ready, not))| (key, zone_state(*ready, *not, rates.threshold)))
            .collect();
        for key in counts.keys() {
            self.zone(key, now);
        }
        self.zones.retain(|key, _| counts.contains_key(key));
        let all_are_full = states.values().all(|state| *state == ZoneState::Full);
        let all_were_full = self
            .zones
            .values()
            .all(|zone| zone.state == ZoneState::Full);
        if all_are_full && all_were_full {
            return Disruption::None;
        }
        for (key, zone) in &mut self.zones {
            let Some(state) = states.get(key) else {
                continue;
            };
            let size = counts.get(key).map_or(0, |(ready, not)| ready + not);
            zone.state = *state;
            zone.rate = match state {
                _ if all_are_full => 0.0,
                ZoneState::Partial if size > rates.large => rates.unhealthy,
                ZoneState::Partial => 0.0,
                ZoneState::Initial | ZoneState::Normal | ZoneState::Full => rates.healthy,
            };
        }
        if all_are_full {
            self.zones
                .values_mut()
                .for_each(|zone| zone.pending.clear());
            Disruption::Entered
        } else if all_were_full {
            Disruption::Left
        } else {
            Disruption::None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).unwrap()
    }

    fn node(ready: Option<(&str, i64)>, taints: &[(&str, &str)], cordoned: bool) -> Node {
        let conditions: Vec<_> = ready
            .iter()
            .map(|(status, beat)| {
                json!({"type": "Ready", "status": status, "lastHeartbeatTime": at(*beat).to_string()})
            })
            .collect();
        let taints: Vec<_> = taints
            .iter()
            .map(|(key, effect)| json!({"key": key, "effect": effect}))
            .collect();
        serde_json::from_value(json!({
            "metadata": {"name": "n", "creationTimestamp": at(0).to_string()},
            "spec": {"taints": taints, "unschedulable": cordoned},
            "status": {"conditions": conditions},
        }))
        .unwrap()
    }

    #[test]
    fn conditions_become_no_schedule_taints() {
        let no = "NoSchedule";
        let cases: [(Node, &[&str], &[&str]); 5] = [
            (node(Some(("True", 0)), &[], false), &[], &[]),
            (
                node(Some(("False", 0)), &[(UNREACHABLE, no)], false),
                &[NOT_READY],
                &[UNREACHABLE],
            ),
            (
                node(Some(("Unknown", 0)), &[(UNREACHABLE, no)], true),
                &[UNSCHEDULABLE],
                &[],
            ),
            (
                node(
                    Some(("True", 0)),
                    &[(NOT_READY, no), (UNSCHEDULABLE, no), ("mine", no)],
                    false,
                ),
                &[],
                &[NOT_READY, UNSCHEDULABLE],
            ),
            (
                node(Some(("False", 0)), &[(NOT_READY, "NoExecute")], false),
                &[NOT_READY],
                &[],
            ),
        ];
        for (node, add, remove) in cases {
            assert_eq!(
                no_schedule_changes(&node),
                (add.to_vec(), remove.to_vec()),
                "{node:?}"
            );
        }
    }

    #[test]
    fn a_silent_node_becomes_unknown_after_its_grace() {
        // Observations: at, Ready heartbeat, lease renewal; then the time of judging and the reason expected.
        type Seen = (i64, Option<i64>, Option<i64>);
        let cases: [(&[Seen], i64, Option<&str>); 7] = [
            (&[(0, Some(0), None)], 50, None),
            (&[(0, Some(0), None)], 51, Some("NodeStatusUnknown")),
            (&[(0, Some(0), None), (30, Some(29), None)], 80, None),
            (&[(0, Some(0), Some(1)), (40, Some(0), Some(39))], 90, None),
            (
                &[(0, Some(0), Some(1)), (40, Some(0), Some(1))],
                51,
                Some("NodeStatusUnknown"),
            ),
            (&[(10, None, None)], 60, None),
            (&[(10, None, None)], 61, Some("NodeStatusNeverUpdated")),
        ];
        for (seen, judged, expected) in cases {
            let mut health = None;
            let mut last = node(None, &[], false);
            for (time, beat, lease) in seen {
                last = node(beat.map(|beat| ("True", beat)), &[], false);
                health = Some(Health::observe(
                    health.as_ref(),
                    &last,
                    lease.map(at),
                    at(*time),
                ));
            }
            let seconds = Duration::from_secs;
            let changed = health
                .unwrap()
                .overdue(&last, seconds(50), seconds(60), at(judged));
            let reason = changed
                .as_ref()
                .and_then(|list| ready(list)?.reason.clone());
            assert_eq!(reason.as_deref(), expected, "{seen:?} at {judged}");
            assert!(changed.is_none_or(|list| list.len() == 4));
        }
    }

    #[test]
    fn zones_taint_one_by_one_and_stop_when_all_is_lost() {
        let rates = Rates {
            healthy: 0.1,
            unhealthy: 0.01,
            large: 50,
            threshold: 0.55,
        };
        let counts = |list: &[(&str, usize, usize)]| -> BTreeMap<String, (usize, usize)> {
            list.iter()
                .map(|(zone, ready, not)| ((*zone).to_owned(), (*ready, *not)))
                .collect()
        };
        let mut zones = Zones::new(rates);
        for name in ["a", "b", "a"] {
            zones.add("z", name, at(0));
        }
        assert_eq!(
            zones.judge(&counts(&[("z", 3, 2)]), at(0)),
            Disruption::None
        );
        assert_eq!(zones.due(at(0)), ["a"]);
        assert!(zones.due(at(5)).is_empty());
        assert_eq!(zones.due(at(11)), ["b"]);
        // A small zone that is mostly gone stops; another zone goes on.
        zones.add("z", "c", at(20));
        zones.add("y", "d", at(20));
        assert_eq!(
            zones.judge(&counts(&[("z", 1, 4), ("y", 1, 1)]), at(20)),
            Disruption::None
        );
        assert_eq!(zones.due(at(40)), ["d"]);
        // All gone, once; then back.
        assert_eq!(
            zones.judge(&counts(&[("z", 0, 5), ("y", 0, 2)]), at(50)),
            Disruption::Entered
        );
        assert_eq!(
            zones.judge(&counts(&[("z", 0, 5), ("y", 0, 2)]), at(55)),
            Disruption::None
        );
        assert!(!zones.is_waiting() && zones.due(at(60)).is_empty());
        assert_eq!(
            zones.judge(&counts(&[("z", 0, 5), ("y", 2, 0)]), at(65)),
            Disruption::Left
        );
        zones.add("z", "c", at(65));
        assert_eq!(zones.due(at(80)), ["c"]);
    }
}
