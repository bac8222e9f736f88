//! A priority level at work: who runs, who waits in which queue, who is next (upstream
//! `k8s.io/apiserver/pkg/util/flowcontrol/fairqueuing`). A state machine without I/O; time is told in seconds.
//!
//! Requests of a flow are dealt to a few of the level's queues (shuffle sharding): a flow that floods the server fills its
//! own hand of queues, and hardly any other flow has the same hand. Between queues time is shared fairly: each has a
//! virtual start for its next request, the lowest goes first, and a request moves it on by the time that it takes.

use std::collections::VecDeque;

use super::settings::{LevelSpec, Queuing};

/// How long a request is taken to run until it is known (upstream's initial estimate of the service time).
const GUESS: f64 = 0.003;

/// How many may run in a level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seats {
    /// The level's own part.
    pub nominal: usize,
    /// How much of it others may use.
    pub lendable: usize,
    /// The most that it may ever use.
    pub most: usize,
}

/// The parts of `total` for each of the levels, in their order (upstream `updateBoundsLocked`).
pub fn share<'a>(total: usize, levels: impl Iterator<Item = &'a LevelSpec> + Clone) -> Vec<Seats> {
    let sum: u64 = levels.clone().map(|level| level.shares).sum();
    let number = |value: f64| value.clamp(0.0, 1e9) as usize;
    levels
        .map(|level| {
            let part = level.shares as f64 / sum.max(1) as f64;
            let nominal = number((total as f64 * part).ceil());
            let percent = |of: u64| number((nominal as f64 * of as f64 / 100.0).round());
            let most = match level.borrowing {
                None => total,
                Some(percentage) => (nominal + percent(percentage)).min(total),
            };
            Seats {
                nominal,
                lendable: percent(level.lendable),
                most: most.max(nominal),
            }
        })
        .collect()
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<u64>,
    running: usize,
    /// The virtual time at which its next request starts.
    start: f64,
}

/// What became of a request that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// It waits in this queue; [`Level::next`] says when it may run.
    Waits(usize),
    /// Its queue is full.
    QueueFull,
    /// The level has no queues.
    NoQueues,
}

/// A priority level.
#[derive(Debug)]
pub struct Level {
    /// How many may run.
    pub seats: Seats,
    /// How many do.
    pub running: usize,
    /// How many wait.
    pub waiting: usize,
    queuing: Option<Queuing>,
    queues: Vec<Queue>,
    virtual_time: f64,
    at: f64,
    last: usize,
}

impl Level {
    /// With nobody in it.
    pub fn new(queuing: Option<Queuing>, seats: Seats, now: f64) -> Level {
        let mut level = Level {
            seats,
            running: 0,
            waiting: 0,
            queuing: None,
            queues: Vec::new(),
            virtual_time: 0.0,
            at: now,
            last: 0,
        };
        level.reconfigure(queuing, seats);
        level
    }

    /// New numbers. Queues that are no longer dealt to are served until they are empty.
    pub fn reconfigure(&mut self, queuing: Option<Queuing>, seats: Seats) {
        self.seats = seats;
        self.queuing = queuing;
        let wanted = queuing.map_or(0, |queuing| queuing.queues);
        while self.queues.len() < wanted {
            self.queues.push(Queue::default());
        }
        while self.queues.len() > wanted
            && self
                .queues
                .last()
                .is_some_and(|queue| queue.waiting.is_empty() && queue.running == 0)
        {
            self.queues.pop();
        }
    }

    /// Seats beyond its own part that the level uses.
    pub fn borrowed(&self) -> usize {
        self.running.saturating_sub(self.seats.nominal)
    }

    /// Seats of its part that others may use now.
    pub fn lent(&self) -> usize {
        self.seats
            .lendable
            .min(self.seats.nominal.saturating_sub(self.running))
    }

    /// Whether one more may run, with so many seats to be borrowed. A level without a part of its own still serves
    /// one request at a time.
    pub fn has_seat(&self, to_borrow: usize) -> bool {
        self.running < self.seats.nominal.max(1)
            || (to_borrow > 0 && self.running < self.seats.most)
    }

    /// Someone runs without having waited.
    pub fn start(&mut self) {
        self.running += 1;
    }

    /// A request of the flow with this hash has to wait.
    pub fn arrive(&mut self, id: u64, hash: u64, now: f64) -> Arrival {
        let Some(queuing) = self.queuing else {
            return Arrival::NoQueues;
        };
        self.advance(now);
        // Of the hand, the queue with the least to do.
        let hand = deal(hash, queuing.queues, queuing.hand);
        let load = |index: &usize| {
            let queue = &self.queues[*index];
            (queue.waiting.len() + queue.running, *index)
        };
        let Some(index) = hand.into_iter().min_by_key(load) else {
            return Arrival::NoQueues;
        };
        let virtual_time = self.virtual_time;
        let queue = &mut self.queues[index];
        if queue.waiting.len() >= queuing.length {
            return Arrival::QueueFull;
        }
        if queue.waiting.is_empty() && queue.running == 0 {
            // An idle queue saves nothing up.
            queue.start = queue.start.max(virtual_time);
        }
        queue.waiting.push_back(id);
        self.waiting += 1;
        Arrival::Waits(index)
    }

    /// Who may run now and from which queue, if there is a seat. It counts as running from now on.
    pub fn next(&mut self, to_borrow: usize, now: f64) -> Option<(u64, usize)> {
        if self.waiting == 0 || !self.has_seat(to_borrow) {
            return None;
        }
        self.advance(now);
        let count = self.queues.len();
        // Round robin among those that are equally due.
        let index = (1..=count)
            .map(|step| (self.last + step) % count)
            .filter(|index| !self.queues[*index].waiting.is_empty())
            .min_by(|a, b| self.queues[*a].start.total_cmp(&self.queues[*b].start))?;
        self.last = index;
        let queue = &mut self.queues[index];
        let id = queue.waiting.pop_front()?;
        queue.start += GUESS;
        queue.running += 1;
        self.waiting -= 1;
        self.running += 1;
        Some((id, index))
    }

    /// Someone waits no longer; `false` if it did not.
    pub fn leave(&mut self, id: u64, queue: usize) -> bool {
        let Some(queue) = self.queues.get_mut(queue) else {
            return false;
        };
        let before = queue.waiting.len();
        queue.waiting.retain(|waiting| *waiting != id);
        let left = queue.waiting.len() < before;
        self.waiting -= usize::from(left);
        left
    }

    /// A request that ran for so long, from this queue if it had waited, is done.
    pub fn finish(&mut self, queue: Option<usize>, took: f64, now: f64) {
        self.advance(now);
        self.running = self.running.saturating_sub(1);
        if let Some(queue) = queue.and_then(|index| self.queues.get_mut(index)) {
            queue.running = queue.running.saturating_sub(1);
            queue.start += took - GUESS;
        }
    }

    /// Virtual time goes on as fast as each of the busy queues is served.
    fn advance(&mut self, now: f64) {
        let passed = (now - self.at).max(0.0);
        self.at = now;
        let busy = self
            .queues
            .iter()
            .filter(|queue| !queue.waiting.is_empty() || queue.running > 0)
            .count();
        if busy > 0 {
            let served = self.running.min(self.seats.nominal.max(1));
            self.virtual_time += passed * served as f64 / busy as f64;
        }
    }
}

/// The hand of queues that a flow is dealt, by its hash (upstream `shufflesharding.Dealer`).
pub fn deal(mut hash: u64, queues: usize, hand: usize) -> Vec<usize> {
    let mut dealt: Vec<usize> = Vec::with_capacity(hand);
    for drawn in 0..hand.min(queues) {
        let left = (queues - drawn) as u64;
        let mut card = usize::try_from(hash % left).unwrap_or_default();
        hash /= left;
        // Cards are numbered without those dealt before.
        let mut sorted = dealt.clone();
        sorted.sort_unstable();
        for before in sorted {
            if card >= before {
                card += 1;
            }
        }
        dealt.push(card);
    }
    dealt
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(shares: u64, lendable: u64, borrowing: Option<u64>) -> LevelSpec {
        LevelSpec {
            uid: String::new(),
            exempt: false,
            shares,
            lendable,
            borrowing,
            queuing: None,
        }
    }

    #[test]
    fn concurrency_is_shared_out() {
        let levels = [
            spec(0, 0, None),
            spec(30, 33, None),
            spec(40, 25, Some(50)),
            spec(5, 0, Some(0)),
        ];
        let seats = |nominal, lendable, most| Seats {
            nominal,
            lendable,
            most,
        };
        assert_eq!(
            share(600, levels.iter()),
            [
                seats(0, 0, 600),
                seats(240, 79, 600),
                seats(320, 80, 480),
                seats(40, 0, 40)
            ]
        );
    }

    #[test]
    fn hands_are_dealt_evenly() {
        let mut count = [0; 8];
        for hash in 0..8 * 7 * 6 {
            let hand = deal(hash, 8, 3);
            let distinct: std::collections::BTreeSet<_> = hand.iter().collect();
            assert_eq!(distinct.len(), 3);
            hand.iter().for_each(|queue| count[*queue] += 1);
        }
        assert_eq!(count, [8 * 7 * 6 * 3 / 8; 8]);
        assert_eq!(deal(u64::MAX, 2, 8).len(), 2);
    }

    const QUEUES: Option<Queuing> = Some(Queuing {
        queues: 2,
        hand: 1,
        length: 3,
    });

    fn level(nominal: usize) -> Level {
        let seats = Seats {
            nominal,
            lendable: 0,
            most: 100,
        };
        Level::new(QUEUES, seats, 0.0)
    }

    #[test]
    fn a_flood_does_not_keep_others_waiting() {
        let mut level = level(1);
        level.start();
        // Hash 0 goes to queue 0, hash 1 to queue 1.
        for id in 0..3 {
            assert_eq!(level.arrive(id, 0, 0.0), Arrival::Waits(0));
        }
        assert_eq!(level.arrive(3, 0, 0.0), Arrival::QueueFull);
        assert_eq!(level.arrive(10, 1, 0.0), Arrival::Waits(1));
        assert_eq!(level.next(0, 0.0), None);
        let mut order = Vec::new();
        let (mut now, mut queue) = (0.0, None);
        for _ in 0..4 {
            now += 1.0;
            level.finish(queue, 1.0, now);
            let (id, from) = level.next(0, now).expect("one waits");
            order.push(id);
            queue = Some(from);
        }
        // The one of the quiet flow is not last.
        assert!(
            order.iter().position(|id| *id == 10).expect("ran") <= 1,
            "{order:?}"
        );
        assert_eq!((level.running, level.waiting), (1, 0));
    }

    #[test]
    fn long_requests_count_for_what_they_take() {
        let mut level = level(1);
        level.start();
        for id in [0, 1] {
            level.arrive(id, 0, 0.0);
            level.arrive(10 + id, 1, 0.0);
        }
        level.finish(None, 0.0, 0.0);
        let (first, queue) = level.next(0, 0.0).expect("one");
        // It takes long; the other queue then gets both of its short ones through.
        level.finish(Some(queue), 5.0, 5.0);
        let mut order = vec![first];
        let mut now = 5.0;
        while let Some((id, queue)) = level.next(0, now) {
            order.push(id);
            now += 0.01;
            level.finish(Some(queue), 0.01, now);
        }
        let other = if first < 10 { [10, 11] } else { [0, 1] };
        assert_eq!(order[1..3], other, "{order:?}");
    }

    #[test]
    fn seats_are_lent_and_borrowed() {
        let mut busy = level(2);
        let mut lender = Level::new(
            None,
            Seats {
                nominal: 4,
                lendable: 3,
                most: 4,
            },
            0.0,
        );
        busy.start();
        busy.start();
        assert!(!busy.has_seat(0));
        assert!(busy.has_seat(lender.lent()));
        busy.start();
        assert_eq!((busy.borrowed(), lender.lent()), (1, 3));
        lender.start();
        lender.start();
        assert_eq!(lender.lent(), 2);
        lender.start();
        lender.start();
        assert_eq!((lender.lent(), lender.has_seat(1)), (0, false));
        assert_eq!(lender.arrive(1, 1, 0.0), Arrival::NoQueues);
    }

    #[test]
    fn who_gives_up_is_not_called() {
        let mut level = level(1);
        level.start();
        level.arrive(1, 0, 0.0);
        level.arrive(2, 0, 0.0);
        assert!(level.leave(1, 0));
        assert!(!level.leave(1, 0));
        assert!(!level.leave(1, 9));
        level.finish(None, 0.1, 0.1);
        assert_eq!(level.next(0, 0.1), Some((2, 0)));
        // Fewer queues: those in use stay until they are empty.
        level.reconfigure(None, level.seats);
        assert_eq!(level.arrive(3, 0, 0.2), Arrival::NoQueues);
        level.finish(Some(0), 0.1, 0.3);
        assert_eq!(level.running, 0);
    }
}
