//! What stands in the database file: the tables, their record formats, and reads of them at a snapshot.
//!
//! | table | key | record |
//! | --- | --- | --- |
//! | `state` | key | create revision, mod revision, expiry second (0: none), value: the present state |
//! | `history` | key, NUL, mod revision | create revision, revision that ended it, value: states that are past |
//! | `log` | revision | deleted?, mod revision of the state before (0: none), key |
//! | `expiry` | second, key | nothing: which keys to delete when |
//! | `meta` | name | format, newest revision, revision compacted to, bytes in `history` |
//!
//! A value is written once when it comes, and once more when it is superseded and moves to `history`. Each `log` row
//! ended exactly one past state, so compaction takes rows from the front of `log` and drops that state with each:
//! the work is the same for every change and can be cut into steps of any size.
//!
//! Example: a key is created at 5, updated at 8. `state`: (5, 8, new). `history`: (5, ended 8, old) under key,5.
//! `log`: 5 -> (none, key), 8 -> (5, key). The state at 6 is the history row with 5 <= 6 < 8.

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use redb::{Database, ReadTransaction, TableDefinition};

use crate::{Error, Event, KeyValue, Page, Range, Revision};

pub(super) const STATE: TableDefinition<&str, &[u8]> = TableDefinition::new("state");
pub(super) const HISTORY: TableDefinition<&[u8], &[u8]> = TableDefinition::new("history");
pub(super) const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
pub(super) const EXPIRY: TableDefinition<&[u8], ()> = TableDefinition::new("expiry");
pub(super) const META: TableDefinition<&str, u64> = TableDefinition::new("meta");

/// Rows of `META`.
pub(super) const FORMAT: &str = "format";
pub(super) const REVISION: &str = "revision";
pub(super) const COMPACTED: &str = "compacted";
pub(super) const HISTORY_BYTES: &str = "history_bytes";

/// The format this code reads and writes.
pub(super) const FORMAT_VERSION: u64 = 1;

/// What a `history` row and its `log` row take beyond key and value, roughly; for the size bound.
pub(super) const HISTORY_ROW_OVERHEAD: u64 = 64;

fn u64_at(record: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(record.get(at..at + 8)?.try_into().ok()?))
}

fn damaged(table: &str) -> Error {
    Error::Failed(format!("a record of table {table} is too short"))
}

/// A row of `state`.
pub(super) struct StateRow<'a> {
    pub create: Revision,
    pub modified: Revision,
    /// Unix second at which the key goes; 0: never.
    pub expires: u64,
    pub value: &'a [u8],
}

impl<'a> StateRow<'a> {
    pub fn decode(record: &'a [u8]) -> Result<Self, Error> {
        let row = || {
            Some(StateRow {
                create: u64_at(record, 0)?,
                modified: u64_at(record, 8)?,
                expires: u64_at(record, 16)?,
                value: record.get(24..)?,
            })
        };
        row().ok_or_else(|| damaged("state"))
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(&self.create.to_le_bytes());
        out.extend_from_slice(&self.modified.to_le_bytes());
        out.extend_from_slice(&self.expires.to_le_bytes());
        out.extend_from_slice(self.value);
    }

    pub fn to_key_value(&self, key: &str) -> KeyValue {
        KeyValue {
            key: key.to_owned(),
            value: Bytes::copy_from_slice(self.value),
            create_revision: self.create,
            mod_revision: self.modified,
        }
    }
}

/// A row of `history`.
pub(super) struct HistoryRow<'a> {
    pub create: Revision,
    /// Revision of the change that ended this state.
    pub until: Revision,
    pub value: &'a [u8],
}

impl<'a> HistoryRow<'a> {
    pub fn decode(record: &'a [u8]) -> Result<Self, Error> {
        let row = || {
            Some(HistoryRow {
                create: u64_at(record, 0)?,
                until: u64_at(record, 8)?,
                value: record.get(16..)?,
            })
        };
        row().ok_or_else(|| damaged("history"))
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(&self.create.to_le_bytes());
        out.extend_from_slice(&self.until.to_le_bytes());
        out.extend_from_slice(self.value);
    }
}

/// Key of a `history` row. NUL sorts before every character of a key, so rows are in key order.
pub(super) fn history_key(key: &str, modified: Revision, out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(key.as_bytes());
    out.push(0);
    out.extend_from_slice(&modified.to_be_bytes());
}

fn split_history_key(raw: &[u8]) -> Result<(&str, Revision), Error> {
    let split = || {
        let at = raw.len().checked_sub(9)?;
        let modified = u64::from_be_bytes(raw.get(at + 1..)?.try_into().ok()?);
        Some((std::str::from_utf8(&raw[..at]).ok()?, modified))
    };
    split().ok_or_else(|| damaged("history"))
}

/// A row of `log`.
pub(super) struct LogRow<'a> {
    pub deleted: bool,
    /// Mod revision of the state before; 0 when the key did not exist.
    pub previous: Revision,
    pub key: &'a str,
}

impl<'a> LogRow<'a> {
    pub fn decode(record: &'a [u8]) -> Result<Self, Error> {
        let row = || {
            Some(LogRow {
                deleted: *record.first()? != 0,
                previous: u64_at(record, 1)?,
                key: std::str::from_utf8(record.get(9..)?).ok()?,
            })
        };
        row().ok_or_else(|| damaged("log"))
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        out.clear();
        out.push(u8::from(self.deleted));
        out.extend_from_slice(&self.previous.to_le_bytes());
        out.extend_from_slice(self.key.as_bytes());
    }
}

/// Key of an `expiry` row.
pub(super) fn expiry_key(second: u64, key: &str, out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(&second.to_be_bytes());
    out.extend_from_slice(key.as_bytes());
}

/// The key in an `expiry` row.
pub(super) fn expiring_key(raw: &[u8]) -> Result<&str, Error> {
    raw.get(8..)
        .and_then(|key| std::str::from_utf8(key).ok())
        .ok_or_else(|| damaged("expiry"))
}

/// Any failure of the database while reading; nothing was being written.
pub(super) fn failed(error: impl std::fmt::Display) -> Error {
    Error::Failed(error.to_string())
}

/// An immutable view of the database.
pub(super) struct Snapshot {
    txn: ReadTransaction,
    /// Kept so that who replaces a failed database knows when its readers are done. After `txn`: dropped after it.
    _db: Arc<Database>,
    /// Newest revision in the view.
    pub revision: Revision,
    /// Oldest revision that can be read.
    pub compacted: Revision,
}

impl Snapshot {
    pub fn new(txn: ReadTransaction, db: Arc<Database>) -> Result<Self, Error> {
        let meta = txn.open_table(META).map_err(failed)?;
        let number = |name| -> Result<u64, Error> {
            Ok(meta.get(name).map_err(failed)?.map_or(0, |v| v.value()))
        };
        let (revision, compacted) = (number(REVISION)?, number(COMPACTED)?);
        Ok(Snapshot {
            txn,
            _db: db,
            revision,
            compacted,
        })
    }

    /// The revision to read at; errors when it is not kept.
    fn resolve(&self, at: Option<Revision>) -> Result<Revision, Error> {
        let at = at.unwrap_or(self.revision);
        if at > self.revision {
            return Err(Error::Future {
                requested: at,
                current: self.revision,
            });
        }
        self.kept(at)?;
        Ok(at)
    }

    /// Whether history from `revision` on is still there.
    pub fn kept(&self, revision: Revision) -> Result<(), Error> {
        if revision < self.compacted {
            return Err(Error::Compacted {
                requested: revision,
                oldest: self.compacted,
            });
        }
        Ok(())
    }

    pub fn get(
        &self,
        key: &str,
        at: Option<Revision>,
    ) -> Result<(Option<KeyValue>, Revision), Error> {
        let at = self.resolve(at)?;
        let state = self.txn.open_table(STATE).map_err(failed)?;
        if let Some(record) = state.get(key).map_err(failed)? {
            let row = StateRow::decode(record.value())?;
            if row.modified <= at {
                return Ok((Some(row.to_key_value(key)), at));
            }
        }
        if at == self.revision {
            return Ok((None, at));
        }
        let history = self.txn.open_table(HISTORY).map_err(failed)?;
        let (mut low, mut high) = (Vec::new(), Vec::new());
        history_key(key, 0, &mut low);
        history_key(key, at, &mut high);
        let newest = history
            .range::<&[u8]>(low.as_slice()..=high.as_slice())
            .map_err(failed)?
            .next_back();
        let Some(newest) = newest else {
            return Ok((None, at));
        };
        let (raw, record) = newest.map_err(failed)?;
        let row = HistoryRow::decode(record.value())?;
        let (_, modified) = split_history_key(raw.value())?;
        let found = (row.until > at).then(|| KeyValue {
            key: key.to_owned(),
            value: Bytes::copy_from_slice(row.value),
            create_revision: row.create,
            mod_revision: modified,
        });
        Ok((found, at))
    }

    pub fn list(&self, range: &Range, at: Option<Revision>, limit: usize) -> Result<Page, Error> {
        let at = self.resolve(at)?;
        let limit = if limit == 0 { usize::MAX } else { limit };
        let mut page = Page {
            items: Vec::new(),
            revision: at,
            remaining: 0,
        };
        let mut take = |key: &str, value: &[u8], create: Revision, modified: Revision| {
            if page.items.len() < limit {
                page.items.push(KeyValue {
                    key: key.to_owned(),
                    value: Bytes::copy_from_slice(value),
                    create_revision: create,
                    mod_revision: modified,
                });
            } else {
                page.remaining += 1;
            }
        };
        let state = self.txn.open_table(STATE).map_err(failed)?;
        let start = range.start.as_ref().map(String::as_str);
        let end = match &range.end {
            Some(end) => Bound::Excluded(end.as_str()),
            None => Bound::Unbounded,
        };
        if is_empty(&start, &end) {
            return Ok(page);
        }
        let mut present = state.range::<&str>((start, end)).map_err(failed)?;

        if at == self.revision {
            for row in present {
                let (key, record) = row.map_err(failed)?;
                let row = StateRow::decode(record.value())?;
                take(key.value(), row.value, row.create, row.modified);
            }
            return Ok(page);
        }

        // At an old revision a key is in `state` (not changed since) or in `history` (changed since), never in both:
        // merge the two in key order.
        let history = self.txn.open_table(HISTORY).map_err(failed)?;
        let low = match &range.start {
            Bound::Included(start) => Bound::Included(first_row_from(start)),
            Bound::Excluded(start) => Bound::Included(first_row_after(start)),
            Bound::Unbounded => Bound::Unbounded,
        };
        let high = match &range.end {
            Some(end) => Bound::Excluded(first_row_from(end)),
            None => Bound::Unbounded,
        };
        let bounds = (
            low.as_ref().map(Vec::as_slice),
            high.as_ref().map(Vec::as_slice),
        );
        let mut past = history.range::<&[u8]>(bounds).map_err(failed)?;
        let mut next_past = || -> Result<Option<_>, Error> {
            for row in past.by_ref() {
                let (raw, record) = row.map_err(failed)?;
                let (key, modified) = split_history_key(raw.value())?;
                let row = HistoryRow::decode(record.value())?;
                if modified <= at && at < row.until {
                    return Ok(Some((key.to_owned(), modified, record)));
                }
            }
            Ok(None)
        };
        let mut next_present = || -> Result<Option<_>, Error> {
            for row in present.by_ref() {
                let (key, record) = row.map_err(failed)?;
                if StateRow::decode(record.value())?.modified <= at {
                    return Ok(Some((key.value().to_owned(), record)));
                }
            }
            Ok(None)
        };
        let (mut a, mut b) = (next_present()?, next_past()?);
        loop {
            let present_first = match (&a, &b) {
                (None, None) => return Ok(page),
                (Some(_), None) => true,
                (None, Some(_)) => false,
                (Some((x, _)), Some((y, _, _))) => x < y,
            };
            if present_first {
                if let Some((key, record)) = a.take() {
                    let row = StateRow::decode(record.value())?;
                    take(&key, row.value, row.create, row.modified);
                }
                a = next_present()?;
            } else {
                if let Some((key, modified, record)) = b.take() {
                    let row = HistoryRow::decode(record.value())?;
                    take(&key, row.value, row.create, modified);
                }
                b = next_past()?;
            }
        }
    }

    /// Changes in `range` after `after` up to `until`, oldest first, at most about `max_rows` log rows and `max_bytes`
    /// of values. Also returns the revision up to which it has looked.
    pub fn replay(
        &self,
        range: &Range,
        after: Revision,
        until: Revision,
        max_rows: usize,
        max_bytes: usize,
    ) -> Result<(Vec<Event>, Revision), Error> {
        self.kept(after)?;
        let log = self.txn.open_table(LOG).map_err(failed)?;
        let state = self.txn.open_table(STATE).map_err(failed)?;
        let history = self.txn.open_table(HISTORY).map_err(failed)?;
        let mut raw_key = Vec::new();
        let mut past = |key: &str, modified: Revision| -> Result<KeyValue, Error> {
            history_key(key, modified, &mut raw_key);
            let record = history
                .get(raw_key.as_slice())
                .map_err(failed)?
                .ok_or_else(|| {
                    Error::Failed(format!(
                        "{key} at revision {modified} is not in the history"
                    ))
                })?;
            let row = HistoryRow::decode(record.value())?;
            Ok(KeyValue {
                key: key.to_owned(),
                value: Bytes::copy_from_slice(row.value),
                create_revision: row.create,
                mod_revision: modified,
            })
        };
        let (mut events, mut bytes, mut rows) = (Vec::new(), 0, 0);
        if after >= until {
            return Ok((events, until));
        }
        for row in log.range(after + 1..=until).map_err(failed)? {
            let (revision, record) = row.map_err(failed)?;
            let revision = revision.value();
            let row = LogRow::decode(record.value())?;
            rows += 1;
            if range.contains(row.key) {
                let current = if row.deleted {
                    None
                } else {
                    let now = state.get(row.key).map_err(failed)?;
                    let now = match &now {
                        Some(record) => {
                            let now = StateRow::decode(record.value())?;
                            (now.modified == revision).then(|| now.to_key_value(row.key))
                        }
                        None => None,
                    };
                    Some(match now {
                        Some(now) => now,
                        None => past(row.key, revision)?,
                    })
                };
                let previous = match row.previous {
                    0 => None,
                    modified => Some(past(row.key, modified)?),
                };
                let event = Event {
                    key: row.key.to_owned(),
                    current,
                    previous,
                    revision,
                };
                bytes += event_bytes(&event);
                events.push(event);
            }
            if rows >= max_rows || bytes >= max_bytes {
                return Ok((events, revision));
            }
        }
        Ok((events, until))
    }
}

/// What an event holds on to.
pub(super) fn event_bytes(event: &Event) -> usize {
    let held = |kv: &Option<KeyValue>| kv.as_ref().map_or(0, |kv| kv.key.len() + kv.value.len());
    event.key.len() + held(&event.current) + held(&event.previous)
}

/// Where the `history` rows of `key` and all keys behind it begin. A bound may hold NUL, as that of the next page does
/// (`last` NUL); keys never do, so what is not before such a bound is behind its part before the NUL.
fn first_row_from(key: &str) -> Vec<u8> {
    match key.split_once('\0') {
        None => key.as_bytes().to_vec(),
        Some((before, _)) => first_row_after(before),
    }
}

/// Where the `history` rows of the keys behind `key` begin: its own begin with key, 0x00.
fn first_row_after(key: &str) -> Vec<u8> {
    let key = key.split('\0').next().unwrap_or(key);
    [key.as_bytes(), &[1]].concat()
}

/// Whether the bounds leave nothing, which redb's ranges take for an error of the caller.
fn is_empty(start: &Bound<&str>, end: &Bound<&str>) -> bool {
    match (start, end) {
        (Bound::Included(s) | Bound::Excluded(s), Bound::Excluded(e)) => s >= e,
        _ => false,
    }
}
