//! Which events are new, which repeat one that is there, and which are spam. No I/O.
//!
//! Core events go through three steps, as in client-go `EventCorrelator`: an object that causes too many is muted (25 at once,
//! then one per 5 minutes); more than 10 different messages for the same reason within 10 minutes become one "combined
//! from similar events"; the same message again only raises the count of the first.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Event as CoreEvent, ObjectReference};
use k8s_openapi::api::events::v1::{Event as SeriesEvent, EventSeries};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

/// Entries remembered per step (client-go `maxLruCacheEntries`).
const MEMORY: usize = 4096;
/// Different messages before they are combined (client-go `defaultAggregateMaxEvents`).
const MOST_SIMILAR: usize = 10;
/// How long similar messages count together (client-go `defaultAggregateIntervalInSeconds`).
const SIMILAR_FOR: SignedDuration = SignedDuration::from_secs(600);
/// Events of one object at once (client-go `defaultSpamBurst`).
const BURST: f64 = 25.0;
/// And per second after that (client-go `defaultSpamQPS`).
const RATE: f64 = 1.0 / 300.0;
/// A series without a repeat for this long is over (client-go `finishTime`).
const SERIES_OVER: SignedDuration = SignedDuration::from_secs(360);

/// A map that forgets the longest unused quarter when it is full.
#[derive(Debug)]
struct Recent<K, V> {
    entries: HashMap<K, (u64, V)>,
    tick: u64,
}

impl<K, V> Default for Recent<K, V> {
    fn default() -> Self {
        Recent {
            entries: HashMap::new(),
            tick: 0,
        }
    }
}

impl<K: Eq + Hash, V> Recent<K, V> {
    fn entry(&mut self, key: K, new: impl FnOnce() -> V) -> &mut V {
        self.tick += 1;
        if self.entries.len() >= MEMORY && !self.entries.contains_key(&key) {
            let mut uses: Vec<u64> = self.entries.values().map(|(used, _)| *used).collect();
            uses.sort_unstable();
            let limit = uses[MEMORY / 4];
            self.entries.retain(|_, (used, _)| *used > limit);
        }
        let slot = self.entries.entry(key).or_insert_with(|| (0, new()));
        slot.0 = self.tick;
        &mut slot.1
    }
}

/// What identifies an object in events.
type ObjectId = [String; 5];

fn object_id(reference: &ObjectReference) -> ObjectId {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    [
        text(&reference.kind),
        text(&reference.namespace),
        text(&reference.name),
        text(&reference.uid),
        text(&reference.api_version),
    ]
}

/// What to do about a core event.
#[derive(Debug)]
pub enum CoreWrite {
    /// Nothing: too many.
    Drop,
    /// Create it.
    Create(CoreEvent),
    /// It repeats a stored one, whose name it now carries: write its count, time and message.
    Count(CoreEvent),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Similar {
    object: ObjectId,
    source: String,
    kind: String,
    reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Same {
    similar: Similar,
    message: String,
    field_path: String,
}

#[derive(Debug)]
struct Messages {
    seen: HashSet<String>,
    last: Timestamp,
}

#[derive(Debug)]
struct Known {
    count: i32,
    first: Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>,
    name: String,
}

#[derive(Debug)]
struct Allowance {
    tokens: f64,
    at: Timestamp,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct CoreCorrelator {
    spam: Recent<(ObjectId, String), Allowance>,
    similar: Recent<Similar, Messages>,
    known: Recent<Same, Option<Known>>,
}

fn similar_of(event: &CoreEvent) -> Similar {
    let source = event.source.as_ref();
    Similar {
        object: object_id(&event.involved_object),
        source: format!(
            "{}/{}",
            source
                .and_then(|s| s.component.as_deref())
                .unwrap_or_default(),
            source.and_then(|s| s.host.as_deref()).unwrap_or_default()
        ),
        kind: event.type_.clone().unwrap_or_default(),
        reason: event.reason.clone().unwrap_or_default(),
    }
}

fn same_of(event: &CoreEvent, similar: Similar) -> Same {
    Same {
        similar,
        message: event.message.clone().unwrap_or_default(),
        field_path: event.involved_object.field_path.clone().unwrap_or_default(),
    }
}

impl CoreCorrelator {
    /// Takes in one event and says what to write.
    pub fn observe(&mut self, mut event: CoreEvent, now: Timestamp) -> CoreWrite {
        let similar = similar_of(&event);
        let allowance = self
            .spam
            .entry((similar.object.clone(), similar.source.clone()), || {
                Allowance {
                    tokens: BURST,
                    at: now,
                }
            });
        let passed = now.duration_since(allowance.at).as_secs_f64().max(0.0);
        allowance.tokens = (allowance.tokens + passed * RATE).min(BURST);
        allowance.at = now;
        if allowance.tokens < 1.0 {
            return CoreWrite::Drop;
        }
        allowance.tokens -= 1.0;

        let message = event.message.clone().unwrap_or_default();
        let messages = self.similar.entry(similar.clone(), || Messages {
            seen: HashSet::new(),
            last: now,
        });
        if now.duration_since(messages.last) > SIMILAR_FOR {
            messages.seen.clear();
        }
        messages.last = now;
        messages.seen.insert(message.clone());
        let same = if messages.seen.len() < MOST_SIMILAR {
            same_of(&event, similar)
        } else {
            // One stands for all: keep the memory of messages small.
            if messages.seen.len() > MOST_SIMILAR {
                messages.seen.remove(&message);
            }
            event.message = Some(format!("(combined from similar events): {message}"));
            Same {
                similar,
                message: String::new(),
                field_path: String::new(),
            }
        };
        let known = self.known.entry(same, || None);
        match known {
            Some(known) => {
                known.count = known.count.saturating_add(1);
                event.count = Some(known.count);
                event.first_timestamp = known.first.clone();
                event.metadata.name = Some(known.name.clone());
                CoreWrite::Count(event)
            }
            None => {
                *known = Some(Known {
                    count: 1,
                    first: event.first_timestamp.clone(),
                    name: event.metadata.name.clone().unwrap_or_default(),
                });
                CoreWrite::Create(event)
            }
        }
    }

    /// Remembers what the server made of a created event.
    pub fn stored(&mut self, event: &CoreEvent) {
        let same = same_of(event, similar_of(event));
        if let Some(known) = self.known.entry(same, || None) {
            known.name = event.metadata.name.clone().unwrap_or_default();
            known.count = event.count.unwrap_or(1);
        }
    }
}

/// What to do about an `events.k8s.io` event.
#[derive(Debug)]
pub enum SeriesWrite {
    /// Nothing yet: it is counted, and written when the series ends.
    Nothing,
    /// Create it.
    Create(Box<SeriesEvent>),
    /// Write the series of a stored event.
    Series(Box<SeriesEvent>),
}

/// Folds isomorphic events into a series (client-go `eventBroadcasterImpl`).
#[derive(Debug, Default)]
pub struct SeriesCorrelator {
    known: Recent<SeriesKey, Option<SeriesEvent>>,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct SeriesKey {
    kind: String,
    action: String,
    reason: String,
    controller: String,
    instance: String,
    regarding: Option<ObjectId>,
    related: Option<ObjectId>,
}

impl SeriesCorrelator {
    /// Takes in one event and says what to write.
    pub fn observe(&mut self, event: SeriesEvent, now: Timestamp) -> SeriesWrite {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let key = SeriesKey {
            kind: text(&event.type_),
            action: text(&event.action),
            reason: text(&event.reason),
            controller: text(&event.reporting_controller),
            instance: text(&event.reporting_instance),
            regarding: event.regarding.as_ref().map(object_id),
            related: event.related.as_ref().map(object_id),
        };
        let slot = self.known.entry(key, || None);
        match slot {
            None => {
                *slot = Some(event.clone());
                SeriesWrite::Create(Box::new(event))
            }
            Some(known) => match &mut known.series {
                Some(series) => {
                    series.count = series.count.saturating_add(1);
                    series.last_observed_time = MicroTime(now);
                    SeriesWrite::Nothing
                }
                none => {
                    *none = Some(EventSeries {
                        count: 2,
                        last_observed_time: MicroTime(now),
                    });
                    SeriesWrite::Series(Box::new(known.clone()))
                }
            },
        }
    }

    /// Ends what did not repeat for a while: series are written a last time.
    pub fn finish(&mut self, now: Timestamp) -> Vec<SeriesWrite> {
        let mut writes = Vec::new();
        self.known.entries.retain(|_, (_, slot)| {
            let Some(event) = slot else { return false };
            let last = match &event.series {
                Some(series) => Some(series.last_observed_time.0),
                None => event.event_time.as_ref().map(|t| t.0),
            };
            let over = last.is_none_or(|last| now.duration_since(last) > SERIES_OVER);
            if over && event.series.is_some() {
                writes.push(SeriesWrite::Series(Box::new(event.clone())));
            }
            !over
        });
        writes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str, message: &str) -> CoreEvent {
        let mut event = CoreEvent::default();
        event.metadata.name = Some(name.into());
        event.involved_object.name = Some("pod".into());
        event.reason = Some("Failed".into());
        event.message = Some(message.into());
        event.count = Some(1);
        event
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    #[test]
    fn repeats_are_counted_on_the_first() {
        let mut c = CoreCorrelator::default();
        assert!(matches!(
            c.observe(event("e1", "m"), at(0)),
            CoreWrite::Create(_)
        ));
        let CoreWrite::Count(second) = c.observe(event("e2", "m"), at(1)) else {
            panic!("not folded")
        };
        assert_eq!(
            (second.metadata.name.as_deref(), second.count),
            (Some("e1"), Some(2))
        );
        assert!(matches!(
            c.observe(event("e3", "other"), at(2)),
            CoreWrite::Create(_)
        ));
    }

    #[test]
    fn many_messages_are_combined_and_spam_is_muted() {
        let mut c = CoreCorrelator::default();
        let mut created = 0;
        let mut combined = 0;
        let mut dropped = 0;
        for i in 0..40 {
            match c.observe(event(&format!("e{i}"), &format!("m{i}")), at(0)) {
                CoreWrite::Create(_) => created += 1,
                CoreWrite::Count(event) => {
                    combined += 1;
                    assert!(
                        event
                            .message
                            .unwrap()
                            .starts_with("(combined from similar events): ")
                    );
                }
                CoreWrite::Drop => dropped += 1,
            }
        }
        // Nine of their own and the combined one; the other 15 of the burst of 25 only count.
        assert_eq!((created, combined, dropped), (10, 15, 15));
        assert!(
            !matches!(c.observe(event("late", "m"), at(301)), CoreWrite::Drop),
            "one more per 5 minutes"
        );
    }

    #[test]
    fn a_series_is_written_at_its_second_event_and_its_end() {
        let mut c = SeriesCorrelator::default();
        let event = SeriesEvent {
            reason: Some("FailedScheduling".into()),
            event_time: Some(MicroTime(at(0))),
            ..Default::default()
        };
        assert!(matches!(
            c.observe(event.clone(), at(0)),
            SeriesWrite::Create(_)
        ));
        assert!(matches!(
            c.observe(event.clone(), at(1)),
            SeriesWrite::Series(_)
        ));
        assert!(matches!(
            c.observe(event.clone(), at(2)),
            SeriesWrite::Nothing
        ));
        assert!(c.finish(at(60)).is_empty());
        let end = c.finish(at(400));
        let [SeriesWrite::Series(last)] = &end[..] else {
            panic!("{end:?}")
        };
        assert_eq!(last.series.as_ref().unwrap().count, 3);
        assert!(matches!(c.observe(event, at(401)), SeriesWrite::Create(_)));
    }
}
