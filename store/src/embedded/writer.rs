//! The one thread that writes: it drains the queue of commits into one durable transaction, publishes its events and
//! only then acknowledges. Expiry of keys and compaction ride along in small steps.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use bytes::Bytes;
use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, Table};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::layout::{self, HistoryRow, LogRow, StateRow};
use super::medium::{Medium, Position};
use super::{OpenError, Options, Shared};
use crate::{Commit, Error, Event, Expect, KeyValue, Range, Revision};

/// What the writer is asked to do.
pub(super) enum Work {
    Commit(Commit, oneshot::Sender<Result<Revision, Error>>),
    Compact(Revision, oneshot::Sender<Result<(), Error>>),
}

/// A message to the writer.
pub(super) enum Request {
    /// Work, and the permit that gave it room in the queue.
    Work(Work, OwnedSemaphorePermit),
    /// Finish what was queued before and end.
    Stop,
}

/// Most commits in one transaction. More would not make the disk faster, but the first of them wait longer.
const MAX_BATCH: usize = 512;
/// Most bytes of values in one transaction, unless a single commit has more.
const MAX_BATCH_BYTES: usize = 8 << 20;
/// How often the writer looks for expired keys and old history when nothing else wakes it.
const TICK: Duration = Duration::from_secs(1);
/// Keys that expire in one transaction.
const EXPIRE_STEP: usize = 256;
/// History rows dropped in one transaction beside commits: twice what the commits add, so that a backlog shrinks.
const TRIM_STEP: usize = 64;
/// The same when there are no commits.
const TRIM_STEP_IDLE: usize = 512;
/// How often the pair (time, revision) is noted, in seconds; history lives at most this much longer than asked.
const SAMPLE_SECONDS: i64 = 10;
/// How long reopening waits for readers of the failed database to finish.
const READERS_GRACE: Duration = Duration::from_secs(10);

/// The state of the writer thread.
pub(super) struct Writer {
    shared: Arc<Shared>,
    medium: Medium,
    options: Options,
    queue: Receiver<Request>,
    /// Where the last transaction left the database.
    position: Position,
    /// (second, newest revision then), oldest first.
    samples: VecDeque<(i64, Revision)>,
    /// Revision that history may be compacted to; ahead of `position.compacted` until a transaction takes it over.
    compact_to: Revision,
    last_second: i64,
    /// Whether compacted history is still in the file.
    trimming: bool,
    /// Whether the last attempt to write was refused; so that the log tells it once.
    refusing: bool,
}

/// The answer to one piece of work, ready to be sent.
enum Answer {
    Commit(Result<Revision, Error>),
    Compact(Result<(), Error>),
}

/// What a transaction has done, or would have done.
struct Outcome {
    answers: Vec<Answer>,
    events: Vec<Event>,
    position: Position,
    trimming: bool,
    /// More keys are due to expire.
    expiring: bool,
}

/// A transaction that failed.
struct Failure {
    error: redb::Error,
    /// What it would have done, if it failed only in the very end, so that it may have been done.
    planned: Option<Box<Outcome>>,
}

impl<E: Into<redb::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure {
            error: error.into(),
            planned: None,
        }
    }
}

impl Writer {
    pub fn new(
        shared: Arc<Shared>,
        medium: Medium,
        options: Options,
        position: Position,
        queue: Receiver<Request>,
    ) -> Self {
        Writer {
            shared,
            medium,
            options,
            queue,
            compact_to: position.compacted,
            position,
            samples: VecDeque::new(),
            last_second: 0,
            // Perhaps there is some left from before; the first look will tell.
            trimming: true,
            refusing: false,
        }
    }

    pub fn run(mut self) {
        let mut idle_work = false;
        loop {
            let wait = if idle_work { Duration::ZERO } else { TICK };
            let mut next = match self.queue.recv_timeout(wait) {
                Ok(request) => Some(request),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let (mut batch, mut permits) = (Vec::new(), Vec::new());
            let (mut bytes, mut stop) = (0, false);
            while let Some(request) = next {
                match request {
                    Request::Stop => {
                        stop = true;
                        break;
                    }
                    Request::Work(work, permit) => {
                        bytes += match &work {
                            Work::Commit(commit, _) => {
                                commit.key.len() + commit.value.as_ref().map_or(0, Bytes::len)
                            }
                            Work::Compact(..) => 0,
                        };
                        batch.push(work);
                        permits.push(permit);
                    }
                }
                if batch.len() >= MAX_BATCH || bytes >= MAX_BATCH_BYTES {
                    break;
                }
                next = self.queue.try_recv().ok();
            }
            // A flaw, here or in redb, must not leave a store that answers reads and takes no writes for ever.
            let turned = catch_unwind(AssertUnwindSafe(|| self.turn(batch, bytes)));
            idle_work = turned.unwrap_or_else(|_panic| self.start_over()) && !stop;
            drop(permits);
            if stop {
                return;
            }
        }
    }

    /// After a panic: whoever waited has been told that the outcome is unknown; what stands in the file counts.
    fn start_over(&mut self) -> bool {
        tracing::error!("the store's writer panicked; opening the database anew");
        self.refusing = true;
        let opened = catch_unwind(AssertUnwindSafe(|| self.reopen().map(drop)));
        if let Ok(Err(error)) = opened {
            tracing::error!(%error, "the database could not be opened; it is tried again");
        }
        false
    }

    /// Does one batch and the housekeeping that is due. Returns whether there is more housekeeping to do right away.
    fn turn(&mut self, batch: Vec<Work>, bytes: usize) -> bool {
        let now = self.options.clock.now().as_second();
        let ticked = now != self.last_second;
        if ticked {
            self.last_second = now;
            self.note_age(now);
        }
        let db = self.shared.db.read().clone();
        let db = match db {
            Some(db) => db,
            None if ticked => match self.reopen() {
                Ok(db) => db,
                Err(error) => {
                    refuse(batch, &error.to_string());
                    return false;
                }
            },
            None => {
                refuse(
                    batch,
                    "the database is being opened anew after a failed write",
                );
                return false;
            }
        };
        let expire = ticked && has_expired(&db, now);
        let compact = self.compact_to > self.position.compacted
            || self.position.history_bytes > self.options.history_bytes;
        if batch.is_empty() && !expire && !compact && !self.trimming {
            return false;
        }
        // Twice the values (the old one moves to the history), and the pages on the way to them.
        let needed = self.options.min_free_bytes + 2 * bytes as u64 + 16384 * batch.len() as u64;
        if self.options.min_free_bytes > 0
            && let Some(reason) = self.medium.refusal(needed)
        {
            if !std::mem::replace(&mut self.refusing, true) {
                tracing::error!(%reason, "the store takes no writes");
            }
            refuse(batch, &reason);
            return false;
        }

        match self.transact(&db, &batch, expire, now) {
            Ok(outcome) => {
                if std::mem::replace(&mut self.refusing, false) {
                    tracing::info!("the store takes writes again");
                }
                self.finish(batch, outcome)
            }
            Err(failure) => {
                drop(db);
                self.recover(batch, failure);
                false
            }
        }
    }

    /// Notes which revision is how old, and what has come of age.
    fn note_age(&mut self, now: i64) {
        let due = self
            .samples
            .back()
            .is_none_or(|(at, _)| now - at >= SAMPLE_SECONDS || now < *at);
        if due {
            self.samples.push_back((now, self.position.revision));
        }
        let age = i64::try_from(self.options.history_age.as_secs()).unwrap_or(i64::MAX);
        while let Some((at, revision)) = self.samples.front().copied()
            && now.saturating_sub(at) >= age
        {
            self.compact_to = self.compact_to.max(revision);
            self.samples.pop_front();
        }
    }

    /// Publishes what was committed and answers.
    fn finish(&mut self, batch: Vec<Work>, outcome: Outcome) -> bool {
        self.position = outcome.position;
        self.compact_to = self.compact_to.max(self.position.compacted);
        self.trimming = outcome.trimming;
        self.shared
            .fanout
            .publish(&outcome.events, outcome.position.revision);
        for (work, answer) in batch.into_iter().zip(outcome.answers) {
            // Whoever asked may have gone away; the work is done all the same.
            match (work, answer) {
                (Work::Commit(_, to), Answer::Commit(answer)) => drop(to.send(answer)),
                (Work::Compact(_, to), Answer::Compact(answer)) => drop(to.send(answer)),
                (Work::Commit(..), Answer::Compact(_)) | (Work::Compact(..), Answer::Commit(_)) => {
                    tracing::error!("an answer of the store's writer has lost its question");
                }
            }
        }
        if outcome.expiring {
            // Look again at once, not with the next second.
            self.last_second = 0;
        }
        outcome.trimming || outcome.expiring
    }

    /// After a failed transaction: opens the database anew, finds out whether the transaction is in it, and answers.
    fn recover(&mut self, batch: Vec<Work>, failure: Failure) {
        tracing::error!(error = %failure.error, "a transaction of the store failed; opening the database anew");
        self.refusing = true;
        let before = self.position.revision;
        let reason = failure.error.to_string();
        match (self.reopen(), failure.planned) {
            // Not in it: redb switches to a transaction with its last write, so nothing is half-applied.
            (Ok(_), _) if self.position.revision == before => refuse(batch, &reason),
            // In it, and now known to be on disk.
            (Ok(_), Some(planned)) if self.position.revision == planned.position.revision => {
                // The events are published already, from the log.
                let planned = Outcome {
                    events: Vec::new(),
                    ..*planned
                };
                self.finish(batch, planned);
            }
            (Ok(_) | Err(_), None) => refuse(batch, &reason),
            (Ok(_) | Err(_), Some(_)) => {
                for work in batch {
                    let unknown =
                        Error::Failed(format!("whether it was written is unknown: {reason}"));
                    match work {
                        Work::Commit(_, to) => drop(to.send(Err(unknown))),
                        Work::Compact(_, to) => drop(to.send(Err(unknown))),
                    }
                }
            }
        }
    }

    /// Closes the database, opens it again, makes sure that what it holds is on disk, and publishes what is not yet.
    fn reopen(&mut self) -> Result<Arc<Database>, OpenError> {
        let broken = |reason: String| OpenError::Io {
            path: self.medium.path().to_owned(),
            reason,
        };
        let old = self.shared.db.write().take();
        if let Some(mut old) = old {
            let (pause, mut left) = (Duration::from_millis(5), READERS_GRACE);
            loop {
                match Arc::try_unwrap(old) {
                    Ok(db) => {
                        drop(db);
                        break;
                    }
                    Err(shared) if left.is_zero() => {
                        *self.shared.db.write() = Some(shared);
                        return Err(broken("readers hold on to the failed database".to_owned()));
                    }
                    Err(shared) => old = shared,
                }
                std::thread::sleep(pause);
                left = left.saturating_sub(pause);
            }
        }
        let (db, position) = self.medium.open()?;
        let db = Arc::new(db);
        let confirm = || -> Result<(), redb::Error> {
            let txn = db.begin_write()?;
            txn.open_table(layout::META)?
                .insert(layout::REVISION, position.revision)?;
            txn.commit()?;
            Ok(())
        };
        confirm().map_err(|e| broken(e.to_string()))?;
        // What was committed, but not published because the outcome was unknown.
        let everything = Range {
            start: std::ops::Bound::Unbounded,
            end: None,
        };
        let mut published = self.shared.fanout.published();
        while published < position.revision {
            let (events, reached) = db
                .begin_read()
                .map_err(|e| broken(e.to_string()))
                .and_then(|txn| {
                    layout::Snapshot::new(txn, db.clone())
                        .and_then(|snapshot| {
                            snapshot.replay(
                                &everything,
                                published,
                                position.revision,
                                1024,
                                1 << 20,
                            )
                        })
                        .map_err(|e| broken(e.to_string()))
                })?;
            self.shared.fanout.publish(&events, reached);
            published = reached;
        }
        self.position = position;
        self.trimming = true;
        *self.shared.db.write() = Some(db.clone());
        Ok(db)
    }

    /// One transaction: the batch, some expired keys, some trimming.
    fn transact(
        &self,
        db: &Database,
        batch: &[Work],
        expire: bool,
        now: i64,
    ) -> Result<Outcome, Failure> {
        let now = u64::try_from(now).unwrap_or(0);
        let txn = db.begin_write()?;
        let mut tables = Tables {
            state: txn.open_table(layout::STATE)?,
            history: txn.open_table(layout::HISTORY)?,
            log: txn.open_table(layout::LOG)?,
            expiry: txn.open_table(layout::EXPIRY)?,
            position: self.position,
            events: Vec::new(),
            scratch: Vec::new(),
        };
        let mut compact_to = self.compact_to;
        let mut answers = Vec::with_capacity(batch.len());
        for work in batch {
            answers.push(match work {
                Work::Commit(commit, _) => Answer::Commit(tables.commit(commit, now)?),
                Work::Compact(revision, _) => {
                    Answer::Compact(if *revision > tables.position.revision {
                        Err(Error::Future {
                            requested: *revision,
                            current: tables.position.revision,
                        })
                    } else if *revision <= compact_to {
                        Err(Error::Compacted {
                            requested: *revision,
                            oldest: compact_to,
                        })
                    } else {
                        compact_to = *revision;
                        Ok(())
                    })
                }
            });
        }
        let mut expired = 0;
        if expire {
            expired = tables.expire(now)?;
        }
        let compacted = tables.position.compacted.max(compact_to);
        let mut dirty = !tables.events.is_empty() || expired > 0;
        // A compaction that drops nothing need not be remembered by itself, except when somebody asked for it.
        dirty |= compact_to > self.compact_to;
        tables.position.compacted = compacted;
        let step = match tables.events.len() {
            0 => TRIM_STEP_IDLE,
            n => TRIM_STEP + 2 * n,
        };
        let (trimmed, trimming) = tables.trim(step, self.options.history_bytes)?;
        dirty |= trimmed > 0;

        let (position, events) = tables.close();
        let outcome = Outcome {
            answers,
            events,
            position,
            trimming,
            expiring: expired >= EXPIRE_STEP,
        };
        if !dirty {
            txn.abort()?;
            return Ok(outcome);
        }
        {
            let mut meta = txn.open_table(layout::META)?;
            meta.insert(layout::REVISION, position.revision)?;
            meta.insert(layout::COMPACTED, position.compacted)?;
            meta.insert(layout::HISTORY_BYTES, position.history_bytes)?;
        }
        self.medium.watch_header();
        match txn.commit() {
            Ok(()) => Ok(outcome),
            Err(error) => Err(Failure {
                error: error.into(),
                planned: self.medium.header_written().then(|| Box::new(outcome)),
            }),
        }
    }
}

/// The open tables of one transaction, and what it has done so far.
struct Tables<'t> {
    state: Table<'t, &'static str, &'static [u8]>,
    history: Table<'t, &'static [u8], &'static [u8]>,
    log: Table<'t, u64, &'static [u8]>,
    expiry: Table<'t, &'static [u8], ()>,
    position: Position,
    events: Vec<Event>,
    scratch: Vec<u8>,
}

/// A present state, copied out of the table.
struct Present {
    kv: KeyValue,
    expires: u64,
}

fn damaged(error: Error) -> redb::Error {
    redb::Error::Corrupted(error.to_string())
}

impl Tables<'_> {
    /// Closes the tables, which the transaction's end waits for.
    fn close(self) -> (Position, Vec<Event>) {
        (self.position, self.events)
    }

    fn present(&self, key: &str) -> Result<Option<Present>, redb::Error> {
        let Some(record) = self.state.get(key)? else {
            return Ok(None);
        };
        let row = StateRow::decode(record.value()).map_err(damaged)?;
        Ok(Some(Present {
            kv: row.to_key_value(key),
            expires: row.expires,
        }))
    }

    /// Applies one commit to the state that the earlier ones of the batch have left.
    fn commit(
        &mut self,
        commit: &Commit,
        now: u64,
    ) -> Result<Result<Revision, Error>, redb::Error> {
        let present = self.present(&commit.key)?;
        let holds = match (&commit.expect, &present) {
            (Expect::Absent, None) => commit.value.is_some(),
            (Expect::ModRevision(expected), Some(present)) => present.kv.mod_revision == *expected,
            (Expect::Absent, Some(_)) | (Expect::ModRevision(_), None) => false,
        };
        if !holds {
            let current = present.map(|p| p.kv);
            return Ok(Err(Error::Conflict { current }));
        }
        // Rounded up: a key lives at least as long as asked.
        let expires = match commit.ttl_seconds {
            Some(ttl) if commit.value.is_some() => now.saturating_add(ttl).saturating_add(1),
            _ => 0,
        };
        self.apply(&commit.key, commit.value.clone(), expires, present)
            .map(Ok)
    }

    /// Writes a change whose guard holds.
    fn apply(
        &mut self,
        key: &str,
        value: Option<Bytes>,
        expires: u64,
        present: Option<Present>,
    ) -> Result<Revision, redb::Error> {
        let revision = self.position.revision + 1;
        let scratch = &mut self.scratch;
        let mut record = Vec::new();
        let log = LogRow {
            deleted: value.is_none(),
            previous: present.as_ref().map_or(0, |p| p.kv.mod_revision),
            key,
        };
        log.encode(&mut record);
        self.log.insert(revision, record.as_slice())?;
        self.position.history_bytes +=
            row_bytes(key, present.as_ref().map_or(0, |p| p.kv.value.len()));

        if let Some(present) = &present {
            layout::history_key(key, present.kv.mod_revision, scratch);
            let row = HistoryRow {
                create: present.kv.create_revision,
                until: revision,
                value: &present.kv.value,
            };
            row.encode(&mut record);
            self.history.insert(scratch.as_slice(), record.as_slice())?;
            if present.expires != 0 {
                layout::expiry_key(present.expires, key, scratch);
                self.expiry.remove(scratch.as_slice())?;
            }
        }
        let current = match value {
            Some(value) => {
                let create = present.as_ref().map_or(revision, |p| p.kv.create_revision);
                let row = StateRow {
                    create,
                    modified: revision,
                    expires,
                    value: &value,
                };
                row.encode(&mut record);
                self.state.insert(key, record.as_slice())?;
                if expires != 0 {
                    layout::expiry_key(expires, key, scratch);
                    self.expiry.insert(scratch.as_slice(), ())?;
                }
                Some(KeyValue {
                    key: key.to_owned(),
                    value,
                    create_revision: create,
                    mod_revision: revision,
                })
            }
            None => {
                self.state.remove(key)?;
                None
            }
        };
        self.position.revision = revision;
        self.events.push(Event {
            key: key.to_owned(),
            current,
            previous: present.map(|p| p.kv),
            revision,
        });
        Ok(revision)
    }

    /// Deletes keys whose time has come. Returns how many rows were due, at most a step.
    fn expire(&mut self, now: u64) -> Result<usize, redb::Error> {
        let end = (now + 1).to_be_bytes();
        let mut due = Vec::new();
        for row in self
            .expiry
            .range::<&[u8]>(..end.as_slice())?
            .take(EXPIRE_STEP)
        {
            due.push(row?.0.value().to_vec());
        }
        for raw in &due {
            self.expiry.remove(raw.as_slice())?;
            let key = layout::expiring_key(raw).map_err(damaged)?.to_owned();
            if let Some(mut present) = self.present(&key)? {
                // The row is gone already.
                present.expires = 0;
                self.apply(&key, None, 0, Some(present))?;
            }
        }
        Ok(due.len())
    }

    /// Drops history up to the compacted revision, and beyond while it is larger than `max_bytes`; at most `step`
    /// rows. Returns how many were dropped and whether more are left to drop.
    fn trim(&mut self, step: usize, max_bytes: u64) -> Result<(usize, bool), redb::Error> {
        for trimmed in 0..=step {
            let Some((revision, record)) = self.log.first()? else {
                self.position.history_bytes = 0;
                return Ok((trimmed, false));
            };
            let first = revision.value();
            let wanted =
                first <= self.position.compacted || self.position.history_bytes > max_bytes;
            if !wanted {
                return Ok((trimmed, false));
            }
            if trimmed == step {
                return Ok((trimmed, true));
            }
            let row = LogRow::decode(record.value()).map_err(damaged)?;
            let mut value_len = 0;
            if row.previous != 0 {
                layout::history_key(row.key, row.previous, &mut self.scratch);
                if let Some(old) = self.history.remove(self.scratch.as_slice())? {
                    let old = HistoryRow::decode(old.value()).map_err(damaged)?;
                    value_len = old.value.len();
                }
            }
            let freed = row_bytes(row.key, value_len);
            drop((revision, record));
            self.log.remove(first)?;
            self.position.history_bytes = self.position.history_bytes.saturating_sub(freed);
            self.position.compacted = self.position.compacted.max(first);
        }
        Ok((step, true))
    }
}

/// What one change adds to the history.
fn row_bytes(key: &str, old_value: usize) -> u64 {
    layout::HISTORY_ROW_OVERHEAD + 2 * key.len() as u64 + old_value as u64
}

/// Whether some key's time has come. A failed look is left to the next transaction to report.
fn has_expired(db: &Database, now: i64) -> bool {
    let look = || -> Result<bool, redb::Error> {
        let txn = db.begin_read()?;
        let expiry = txn.open_table(layout::EXPIRY)?;
        if expiry.is_empty()? {
            return Ok(false);
        }
        let end = u64::try_from(now)
            .unwrap_or(0)
            .saturating_add(1)
            .to_be_bytes();
        Ok(expiry.range::<&[u8]>(..end.as_slice())?.next().is_some())
    };
    look().unwrap_or(false)
}

/// Answers that nothing was changed, and why.
fn refuse(batch: Vec<Work>, reason: &str) {
    for work in batch {
        let refused = Error::Unwritable(reason.to_owned());
        match work {
            Work::Commit(_, to) => drop(to.send(Err(refused))),
            Work::Compact(_, to) => drop(to.send(Err(refused))),
        }
    }
}
