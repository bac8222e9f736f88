//! The core of the cache, without a runtime, against a model of it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use keelson_store::Revision;
use proptest::prelude::*;

use super::super::core::{Core, Sink, page};
use super::super::entry::Builder;
use super::super::entry::tests::things;
use super::super::token::Token;
use super::super::types::*;
use super::super::window::Limits;
use super::{note, stored};

/// What a watcher got, as text: kind, key, revision.
#[derive(Clone, Default)]
struct Notes {
    taken: Rc<RefCell<Vec<String>>>,
    /// How many more are taken.
    room: Rc<RefCell<usize>>,
}

impl Sink for Notes {
    fn offer(&self, delivery: Delivery) -> bool {
        let mut room = self.room.borrow_mut();
        if *room == 0 {
            return false;
        }
        *room -= 1;
        self.taken.borrow_mut().push(note(&delivery));
        true
    }
}

/// One change of the random history: which key, deleted or not, its label and its node.
type Step = (usize, bool, u8, u8);

const KEYS: [&str; 6] = ["a/x", "a/y", "a-b/x", "b/x", "b/y", "c/x"];

fn selections() -> Vec<(&'static str, Selection)> {
    let labelled: Predicate = Arc::new(|entry| entry.facts().label("l") == Some("1"));
    let base = Selection::all;
    let some = |s: &str| Some(s.to_owned());
    vec![
        ("all", base()),
        ("namespace", Selection::namespace("a")),
        (
            "label",
            Selection {
                predicate: Some(labelled.clone()),
                ..base()
            },
        ),
        (
            "namespace and label",
            Selection {
                namespace: some("b"),
                predicate: Some(labelled),
                ..base()
            },
        ),
        (
            "one object",
            Selection {
                namespace: some("a"),
                name: some("x"),
                ..base()
            },
        ),
        (
            "a name anywhere",
            Selection {
                name: some("x"),
                ..base()
            },
        ),
        (
            "node",
            Selection {
                indexed: some("1"),
                ..base()
            },
        ),
        (
            "node in a namespace",
            Selection {
                indexed: some("1"),
                namespace: some("b"),
                ..base()
            },
        ),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any history: every watcher, whenever it starts and whatever it selects, gets what comparing the state before
    /// and after each change says it should; every revision in the window lists as it was; and a watcher that starts
    /// late gets the same as one that was there.
    #[test]
    fn the_core_agrees_with_a_model(
        steps in prop::collection::vec((0..KEYS.len(), prop::bool::weighted(0.3), 0..2u8, 0..3u8), 1..200),
        limit in 1usize..5,
    ) {
        let builder = Builder::new(things());
        let limits = Limits { events: 100, ..Limits::default() };
        let mut core: Core<Notes> = Core::new(limits, builder.indexed());
        core.reset(Vec::new(), 10);
        let selections = selections();
        let mut live = Vec::new();
        for (_, selection) in &selections {
            let notes = Notes { room: Rc::new(RefCell::new(usize::MAX)), ..Notes::default() };
            let (_, past) = core.subscribe(Arc::new(selection.clone()), 10, notes.clone());
            prop_assert!(past.is_ok_and(|p| p.is_empty()));
            live.push(notes);
        }
        // Revisions are those of the whole store: there are gaps.
        let mut states: Vec<(Revision, BTreeMap<String, Arc<Entry>>)> = vec![(10, BTreeMap::new())];
        let mut expected: Vec<Vec<(Revision, String)>> = vec![Vec::new(); selections.len()];
        for (n, (key, delete, label, node)) in steps.iter().copied().enumerate() {
            let step: Step = (key, delete, label, node);
            let revision = states.last().unwrap().0 + 1 + (n as u64 % 3);
            let mut state = states.last().unwrap().1.clone();
            let key = KEYS[step.0];
            let previous = state.get(key).cloned();
            if step.1 && previous.is_none() {
                continue;
            }
            let current = (!step.1).then(|| builder.entry(&stored(key, revision, label, node, n as u64)).unwrap());
            match &current {
                Some(current) => state.insert(key.to_owned(), current.clone()),
                None => state.remove(key),
            };
            core.apply(key, current.clone(), revision, n as u64);
            states.push((revision, state));
            for ((_, selection), expected) in selections.iter().zip(&mut expected) {
                let matches = |e: &Option<Arc<Entry>>| e.as_ref().is_some_and(|e| selection.matches(e, builder.indexed()));
                let n_of = |e: &Option<Arc<Entry>>| e.as_ref().unwrap().value().unwrap()["n"].clone();
                let line = match (matches(&previous), matches(&current)) {
                    (false, false) => continue,
                    (false, true) => format!("ADDED {key} {revision} {}", n_of(&current)),
                    (true, true) => format!("MODIFIED {key} {revision} {}", n_of(&current)),
                    (true, false) => format!("DELETED {key} {revision} {}", n_of(&previous)),
                };
                expected.push((revision, line));
            }
        }
        for (((name, selection), notes), expected) in selections.iter().zip(&live).zip(&expected) {
            let lines: Vec<_> = expected.iter().map(|(_, l)| l.clone()).collect();
            prop_assert_eq!(&*notes.taken.borrow(), &lines, "{}", name);
            // Late watchers: from each revision.
            for (after, _) in states.iter().step_by(9) {
                let (id, past) = core.subscribe(Arc::new(selection.clone()), *after, Notes::default());
                core.unsubscribe(id);
                let lines: Vec<_> = expected.iter().filter(|(r, _)| r > after).map(|(_, l)| l.clone()).collect();
                match past {
                    Ok(past) => prop_assert_eq!(past.iter().map(note).collect::<Vec<_>>(), lines),
                    Err(_) => prop_assert!(core.at(*after).is_none()),
                }
            }
        }
        // Lists, whole and paged, at every revision the window knows, and at those between.
        let newest = states.last().unwrap().0;
        let mut known = 0;
        for at in 10..=newest {
            let state = &states.iter().rev().find(|(r, _)| *r <= at).unwrap().1;
            let Some(snapshot) = core.at(at) else { continue };
            known += 1;
            for (name, selection) in &selections {
                let wanted: Vec<_> = state.values().filter(|e| selection.matches(e, builder.indexed())).map(|e| (e.key().to_owned(), e.revision())).collect();
                let all = page(&snapshot, selection, builder.indexed(), 0, None);
                let view = |items: &[Arc<Entry>]| items.iter().map(|e| (e.key().to_owned(), e.revision())).collect::<Vec<_>>();
                prop_assert_eq!(view(&all.items), wanted.clone(), "{} at {}", name, at);
                prop_assert!(all.next.is_none());
                let (mut got, mut start) = (Vec::new(), None::<String>);
                loop {
                    let part = page(&snapshot, selection, builder.indexed(), limit, start.as_deref());
                    prop_assert!(part.items.len() <= limit);
                    got.extend(view(&part.items));
                    if let Some(remaining) = part.remaining {
                        prop_assert_eq!(remaining as usize, wanted.len() - got.len());
                    }
                    match part.next {
                        None => break,
                        Some(next) => start = Some(Token::decode(&next).unwrap().start),
                    }
                }
                prop_assert_eq!(got, wanted, "{} at {} in pages of {}", name, at, limit);
            }
        }
        prop_assert!(known > 0 && core.at(newest + 1).is_none());
        if states.len() > 300 {
            prop_assert!(core.at(10).is_none(), "the window is bounded");
        }
    }
}

#[test]
fn the_window_forgets_by_size_and_age() {
    let builder = Builder::new(things());
    for (limits, kept_at_least, kept_at_most) in [
        (
            Limits {
                events: 200,
                ..Limits::default()
            },
            137,
            200,
        ),
        (
            Limits {
                bytes: 64 * 1024,
                ..Limits::default()
            },
            1,
            200,
        ),
        (
            Limits {
                age_ms: 100,
                ..Limits::default()
            },
            1,
            170,
        ),
    ] {
        let mut core: Core<Notes> = Core::new(limits, None);
        core.reset(Vec::new(), 1);
        for revision in 2..=1000 {
            let entry = builder
                .entry(&stored("a/x", revision, 0, 0, revision))
                .unwrap();
            core.apply("a/x", Some(entry), revision, revision);
        }
        let kept = (1..=1000).filter(|r| core.at(*r).is_some()).count();
        assert!(
            (kept_at_least..=kept_at_most).contains(&kept),
            "{limits:?} keeps {kept}"
        );
        // With time the rest goes too; the present stays.
        core.trim(10_000_000);
        assert!(core.at(999).is_none());
        assert_eq!(core.at(1000).unwrap().objects.len(), 1);
    }
}

#[test]
fn slow_watchers_end_and_others_go_on() {
    let builder = Builder::new(things());
    let mut core: Core<Notes> = Core::new(Limits::default(), None);
    core.reset(Vec::new(), 1);
    let watcher = |room| Notes {
        room: Rc::new(RefCell::new(room)),
        ..Notes::default()
    };
    let (slow, quick) = (watcher(3), watcher(100));
    for notes in [&slow, &quick] {
        let (_, past) = core.subscribe(Arc::new(Selection::all()), 1, notes.clone());
        assert!(past.is_ok_and(|p| p.is_empty()));
    }
    for revision in 2..=11 {
        let entry = builder.entry(&stored("a/x", revision, 0, 0, 0)).unwrap();
        core.apply("a/x", Some(entry), revision, 0);
    }
    assert_eq!(slow.taken.borrow().len(), 3);
    assert_eq!(quick.taken.borrow().len(), 10);
    assert_eq!(core.watcher_count(), 1);
}
