//! The embedded engine: one redb file, one writer thread that groups concurrent commits into one durable transaction,
//! readers on snapshots, and an event log from which a watch can start at any kept revision, also after a restart.
//!
//! - `layout`: tables, records, and reads at a snapshot.
//! - `writer`: the thread that owns all writing: commits, expiry, compaction, recovery after a failed write.
//! - `fanout`: the queues of running watches.
//! - `medium`: the file below, and the question whether it takes writes.
//!
//! Invariants: only the writer thread opens write transactions. A commit is acknowledged after its transaction is on
//! disk and its event is in the queues of all watchers concerned, in this order. Readers never wait for the writer,
//! except while a database whose medium failed is opened anew.

mod fanout;
mod layout;
mod medium;
#[cfg(test)]
mod tests;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::{self, BoxStream, StreamExt};
use keelson_machinery::clock::Clock;
use parking_lot::{Mutex, RwLock};
use redb::{Database, ReadableDatabase};
use tokio::sync::{Semaphore, oneshot};

use crate::{Commit, Error, KeyValue, Page, Range, Revision, Store, Watch, WatchItem};
use fanout::{Fanout, QueueLimits, Registration};
use layout::{Snapshot, failed};
use writer::{Request, Writer};

/// How the engine behaves. The defaults suit a control plane.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where time comes from (expiry, age of history).
    pub clock: Clock,
    /// Bytes of database pages kept in memory, at most.
    pub cache_bytes: usize,
    /// History older than this is forgotten (upstream's `--etcd-compaction-interval`, 5 minutes).
    pub history_age: Duration,
    /// History larger than this many bytes is forgotten, oldest first, before it comes of age.
    pub history_bytes: u64,
    /// Commits that may wait for the writer; further ones wait to be queued.
    pub queue: usize,
    /// Events that may wait for one watcher before it is dropped.
    pub watch_queue_events: usize,
    /// Bytes of events that may wait for one watcher before it is dropped.
    pub watch_queue_bytes: usize,
    /// Writes are refused while the file system has fewer free bytes than this (and the room a batch may need), so
    /// that a full disk is noticed before a transaction fails half-way.
    pub min_free_bytes: u64,
}

impl Options {
    /// The defaults, with the given clock.
    pub fn new(clock: Clock) -> Self {
        Options {
            clock,
            cache_bytes: 8 << 20,
            history_age: Duration::from_secs(300),
            history_bytes: 64 << 20,
            queue: 1024,
            watch_queue_events: 16384,
            watch_queue_bytes: 64 << 20,
            min_free_bytes: 16 << 20,
        }
    }
}

/// Why a database could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("the database {path} is in use by another process")]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// The file is not a database, or damaged beyond repair.
    #[error("the database {path} is damaged and cannot be opened: {reason}")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The file was written by a version with another format.
    #[error("the database {path} has format {found}; this version reads format {known}")]
    Format {
        /// The file.
        path: PathBuf,
        /// The format of the file.
        found: u64,
        /// The format known here.
        known: u64,
    },
    /// The file cannot be read or written (permissions, read-only or full disk).
    #[error("the database {path} cannot be opened: {reason}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        reason: String,
    },
}

/// What the writer and the readers share.
struct Shared {
    /// `None` while the writer opens it anew after the medium failed.
    db: RwLock<Option<Arc<Database>>>,
    fanout: Arc<Fanout>,
}

impl Shared {
    /// The present snapshot.
    fn snapshot(&self) -> Result<Snapshot, Error> {
        let db = self.db.read().clone();
        let db = db.ok_or_else(|| {
            Error::Failed("the database is being opened anew after a failed write".to_owned())
        })?;
        Snapshot::new(db.begin_read().map_err(failed)?, db)
    }
}

/// The embedded store.
pub struct Embedded {
    shared: Arc<Shared>,
    requests: mpsc::Sender<Request>,
    /// Bounds the requests in flight; a permit travels with each.
    room: Arc<Semaphore>,
    writer: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl Embedded {
    /// Opens the database at `path`, or makes it (its directory too). Takes an exclusive lock on the file.
    /// Blocks: after a crash the file is checked, which takes about a second per few hundred megabytes.
    pub fn open(path: impl AsRef<Path>, options: Options) -> Result<Arc<Self>, OpenError> {
        let medium = medium::Medium::new(path.as_ref().to_owned(), options.cache_bytes);
        Self::open_on(medium, options)
    }

    fn open_on(medium: medium::Medium, options: Options) -> Result<Arc<Self>, OpenError> {
        let (db, position) = medium.open()?;
        let limits = QueueLimits {
            events: options.watch_queue_events.max(1),
            bytes: options.watch_queue_bytes,
        };
        let shared = Arc::new(Shared {
            db: RwLock::new(Some(Arc::new(db))),
            fanout: Arc::new(Fanout::new(position.revision, limits)),
        });
        let room = Arc::new(Semaphore::new(options.queue.max(1)));
        let (requests, queue) = mpsc::channel();
        let path = medium.path().to_owned();
        let writer = Writer::new(shared.clone(), medium, options, position, queue);
        let thread = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run())
            .map_err(|e| OpenError::Io {
                path,
                reason: e.to_string(),
            })?;
        Ok(Arc::new(Embedded {
            shared,
            requests,
            room,
            writer: Mutex::new(Some(thread)),
        }))
    }

    /// Hands a request to the writer and waits for its answer.
    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> writer::Work,
    ) -> Result<T, Error> {
        let stopped = || Error::Failed("the store was closed".to_owned());
        let permit = self.room.clone().acquire_owned().await;
        let permit = permit.map_err(|_| stopped())?;
        let (answer, answered) = oneshot::channel();
        let request = Request::Work(request(answer), permit);
        self.requests.send(request).map_err(|_| stopped())?;
        // The writer answers every request it takes; without an answer it died with the outcome unknown.
        answered.await.unwrap_or_else(|_| Err(stopped()))
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(Snapshot) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        blocking(self.shared.clone(), read).await
    }
}

/// Runs a read that may take long or touch the disk much where it does not hold up the runtime.
async fn blocking<T: Send + 'static>(
    shared: Arc<Shared>,
    read: impl FnOnce(Snapshot) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(move || read(shared.snapshot()?))
        .await
        .unwrap_or_else(|e| Err(failed(e)))
}

impl Drop for Embedded {
    /// Writes what is queued, then closes the file cleanly (so that the next start need not check it).
    fn drop(&mut self) {
        // The writer may be gone already; then there is nothing to wait for.
        let _ = self.requests.send(Request::Stop);
        if let Some(thread) = self.writer.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the store's writer thread panicked");
        }
        self.shared.fanout.close();
        // The last of the readers that are still at it closes the file.
        drop(self.shared.db.write().take());
    }
}

#[async_trait]
impl Store for Embedded {
    async fn get(
        &self,
        key: &str,
        at: Option<Revision>,
    ) -> Result<(Option<KeyValue>, Revision), Error> {
        // A few pages, nearly always in memory: cheaper than the way to another thread and back.
        self.shared.snapshot()?.get(key, at)
    }

    async fn list(&self, range: Range, at: Option<Revision>, limit: usize) -> Result<Page, Error> {
        self.read(move |snapshot| snapshot.list(&range, at, limit))
            .await
    }

    async fn commit(&self, commit: Commit) -> Result<Revision, Error> {
        if commit.key.is_empty() || commit.key.contains('\0') || commit.key.len() > MAX_KEY {
            return Err(Error::Failed(format!(
                "a key must have 1 to {MAX_KEY} bytes and no NUL: {:?}",
                commit.key.chars().take(80).collect::<String>()
            )));
        }
        self.ask(|answer| writer::Work::Commit(commit, answer))
            .await
    }

    async fn watch(&self, range: Range, after: Revision) -> Result<Watch, Error> {
        // Registered first, looked up second: what is committed in between is in the queue.
        let (registration, live_after) = self.shared.fanout.register(range.clone(), after);
        let snapshot = self.shared.snapshot()?;
        if after > snapshot.revision {
            return Err(Error::Future {
                requested: after,
                current: snapshot.revision,
            });
        }
        snapshot.kept(after)?;
        let progress = registration.queue.clone();
        let items = watch_items(self.shared.clone(), range, after, live_after, registration);
        Ok(Watch { items, progress })
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.ask(|answer| writer::Work::Compact(revision, answer))
            .await
    }

    async fn revision(&self) -> Result<Revision, Error> {
        Ok(self.shared.fanout.published())
    }
}

/// Longest key, in bytes. redb's pages are 4 KiB; the longest keys of objects (two 253-byte names and a prefix) are far
/// below.
const MAX_KEY: usize = 2048;

/// Log rows and bytes of values read from the log in one go when a watch catches up.
const REPLAY_ROWS: usize = 4096;
const REPLAY_BYTES: usize = 1 << 20;

/// First the log from `after` to `live_after`, then the queue.
fn watch_items(
    shared: Arc<Shared>,
    range: Range,
    after: Revision,
    live_after: Revision,
    registration: Registration,
) -> BoxStream<'static, Result<WatchItem, Error>> {
    let replay = stream::unfold(Some(after), move |at| {
        let (shared, range) = (shared.clone(), range.clone());
        async move {
            let at = at?;
            if at >= live_after {
                // Says that the past is complete, for those who wait for a revision in it.
                let done = (after < live_after).then_some(Ok(WatchItem::Progress(live_after)));
                return Some((done, None));
            }
            let read = blocking(shared, move |snapshot| {
                snapshot.replay(&range, at, live_after, REPLAY_ROWS, REPLAY_BYTES)
            });
            match read.await {
                Ok((events, reached)) => {
                    let item = (!events.is_empty()).then_some(Ok(WatchItem::Events(events)));
                    Some((item, Some(reached)))
                }
                Err(error) => Some((Some(Err(error)), None)),
            }
        }
    })
    .filter_map(futures::future::ready);
    let live = stream::poll_fn(move |cx| registration.poll(cx));
    // An error is the last item.
    replay
        .chain(live)
        .scan(false, |failed, item| {
            let ended = std::mem::replace(failed, item.is_err());
            futures::future::ready((!ended).then_some(item))
        })
        .fuse()
        .boxed()
}
