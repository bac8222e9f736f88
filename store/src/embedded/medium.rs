//! The file the database lies in: opening it with errors that say what to do, and asking beforehand whether it takes
//! writes.

use std::fs::OpenOptions;
use std::io;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use redb::backends::FileBackend;
use redb::{BackendError, Database, DatabaseError, ReadableDatabase, StorageBackend, StorageError};

use super::OpenError;
use super::layout;
use crate::Revision;

/// Where the database stands, as its `meta` table says.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Position {
    pub revision: Revision,
    pub compacted: Revision,
    pub history_bytes: u64,
}

/// A database file that can be opened, and opened again.
pub(super) struct Medium {
    path: PathBuf,
    cache_bytes: usize,
    header_written: Arc<AtomicBool>,
    #[cfg(test)]
    pub faults: Arc<faults::Faults>,
}

impl Medium {
    pub fn new(path: PathBuf, cache_bytes: usize) -> Self {
        Medium {
            path,
            cache_bytes,
            header_written: Arc::default(),
            #[cfg(test)]
            faults: Default::default(),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the database and makes its tables if it is new.
    pub fn open(&self) -> Result<(Database, Position), OpenError> {
        // redb reports damage as errors, but its authors do not promise that no damaged file makes it panic.
        catch_unwind(AssertUnwindSafe(|| self.open_unguarded())).unwrap_or_else(|_| {
            Err(OpenError::Corrupt {
                path: self.path.clone(),
                reason: "its pages contradict each other".to_owned(),
            })
        })
    }

    fn open_unguarded(&self) -> Result<(Database, Position), OpenError> {
        let io = |e: io::Error| OpenError::Io {
            path: self.path.clone(),
            reason: e.to_string(),
        };
        if let Some(dir) = self.path.parent()
            && !dir.as_os_str().is_empty()
        {
            std::fs::create_dir_all(dir).map_err(io)?;
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&self.path)
            .map_err(io)?;
        let backend = FileBackend::new(file).map_err(|e| self.database_error(e))?;
        let path = self.path.clone();
        let db = Database::builder()
            .set_cache_size(self.cache_bytes)
            .set_repair_callback(move |session| {
                let percent = (session.progress() * 100.0) as u32;
                tracing::info!(path = %path.display(), percent, "checking the database after an unclean stop");
            })
            .create_with_backend(self.wrap(backend))
            .map_err(|e| self.database_error(e))?;
        let position = self.prepare(&db)?;
        Ok((db, position))
    }

    /// Reads where the database stands; makes the tables of a new one.
    fn prepare(&self, db: &Database) -> Result<Position, OpenError> {
        let corrupt = |e: redb::Error| self.redb_error(e);
        let read = || -> Result<Option<(u64, Position)>, redb::Error> {
            let txn = db.begin_read()?;
            let meta = match txn.open_table(layout::META) {
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
                other => other?,
            };
            let number =
                |name| -> Result<u64, redb::Error> { Ok(meta.get(name)?.map_or(0, |v| v.value())) };
            let position = Position {
                revision: number(layout::REVISION)?,
                compacted: number(layout::COMPACTED)?,
                history_bytes: number(layout::HISTORY_BYTES)?,
            };
            Ok(Some((number(layout::FORMAT)?, position)))
        };
        match read().map_err(corrupt)? {
            Some((layout::FORMAT_VERSION, position)) => Ok(position),
            Some((found, _)) => Err(OpenError::Format {
                path: self.path.clone(),
                found,
                known: layout::FORMAT_VERSION,
            }),
            None => {
                let create = || -> Result<(), redb::Error> {
                    let txn = db.begin_write()?;
                    txn.open_table(layout::STATE)?;
                    txn.open_table(layout::HISTORY)?;
                    txn.open_table(layout::LOG)?;
                    txn.open_table(layout::EXPIRY)?;
                    // Revision 1 is the empty store, as in etcd: lists of it have a resourceVersion that is not 0.
                    let mut meta = txn.open_table(layout::META)?;
                    meta.insert(layout::FORMAT, layout::FORMAT_VERSION)?;
                    meta.insert(layout::REVISION, FIRST_REVISION)?;
                    drop(meta);
                    txn.commit()?;
                    Ok(())
                };
                create().map_err(corrupt)?;
                self.sync_names().map_err(|e| OpenError::Io {
                    path: self.path.clone(),
                    reason: e.to_string(),
                })?;
                Ok(Position {
                    revision: FIRST_REVISION,
                    ..Position::default()
                })
            }
        }
    }

    /// The names of a new file and its directory have to survive a power loss too, not only the contents.
    fn sync_names(&self) -> io::Result<()> {
        let path = std::path::absolute(&self.path)?;
        for dir in path.ancestors().skip(1).take(2) {
            std::fs::File::open(dir)?.sync_all()?;
        }
        Ok(())
    }

    fn database_error(&self, error: DatabaseError) -> OpenError {
        let path = self.path.clone();
        match error {
            DatabaseError::DatabaseAlreadyOpen => OpenError::Locked { path },
            DatabaseError::Storage(StorageError::Io(e))
                if !matches!(
                    e.kind(),
                    io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
                ) =>
            {
                OpenError::Io {
                    path,
                    reason: e.to_string(),
                }
            }
            other => OpenError::Corrupt {
                path,
                reason: other.to_string(),
            },
        }
    }

    fn redb_error(&self, error: redb::Error) -> OpenError {
        let path = self.path.clone();
        match error {
            redb::Error::Io(e) => OpenError::Io {
                path,
                reason: e.to_string(),
            },
            other => OpenError::Corrupt {
                path,
                reason: other.to_string(),
            },
        }
    }

    /// Why the medium would refuse a write that needs `bytes` of new room, if it would.
    pub fn refusal(&self, bytes: u64) -> Option<String> {
        let fs = match rustix::fs::statvfs(&self.path) {
            Ok(fs) => fs,
            Err(e) => return Some(format!("{}: {e}", self.path.display())),
        };
        if fs.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
            return Some(format!(
                "the file system of {} is read-only",
                self.path.display()
            ));
        }
        let free = fs.f_bavail.saturating_mul(fs.f_frsize);
        (free < bytes).then(|| {
            format!(
                "the file system of {} is full: {} KiB free, {} KiB needed",
                self.path.display(),
                free >> 10,
                bytes.div_ceil(1024)
            )
        })
    }

    /// Forgets whether the header was written; called before a commit.
    pub fn watch_header(&self) {
        self.header_written.store(false, Ordering::SeqCst);
    }

    /// Whether the header may have been written since, which is what makes a transaction the newest one: a commit that
    /// failed before is not in the file.
    pub fn header_written(&self) -> bool {
        self.header_written.load(Ordering::SeqCst)
    }

    fn wrap(&self, inner: FileBackend) -> Tracked {
        Tracked {
            inner,
            header: Mutex::default(),
            header_written: self.header_written.clone(),
            #[cfg(test)]
            faults: self.faults.clone(),
        }
    }
}

/// The revision of a store in which nothing ever happened.
const FIRST_REVISION: Revision = 1;

/// The header stands in front, on a page of its own.
const HEADER_BYTES: u64 = 4096;

/// The file as redb sees it, except that the header is written after everything else, just before the sync: whatever
/// fails before leaves the transaction out of the file for certain.
#[derive(Debug)]
struct Tracked {
    inner: FileBackend,
    /// Header bytes that wait for the sync: offset and contents, in the order of writing.
    header: Mutex<Vec<(u64, Vec<u8>)>>,
    header_written: Arc<AtomicBool>,
    #[cfg(test)]
    faults: Arc<faults::Faults>,
}

impl Tracked {
    fn put(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        #[cfg(test)]
        self.faults.write(data.len())?;
        self.inner.write(offset, data)
    }

    fn put_header(&self) -> io::Result<()> {
        let mut header = self.header.lock();
        for (offset, data) in header.drain(..) {
            self.header_written.store(true, Ordering::SeqCst);
            self.put(offset, &data)?;
        }
        Ok(())
    }
}

impl StorageBackend for Tracked {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if offset < HEADER_BYTES {
            self.put_header()?;
        }
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.put_header()?;
        #[cfg(test)]
        self.faults.sync()?;
        self.inner.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if offset < HEADER_BYTES {
            self.header.lock().push((offset, data.to_vec()));
            return Ok(());
        }
        self.put(offset, data)
            .inspect_err(|_| self.header.lock().clear())
    }

    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.inner.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.query_lock_range(start, end)
    }
}

/// Failures on demand.
#[cfg(test)]
pub(super) mod faults {
    use std::io;
    use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

    /// What is to fail.
    #[derive(Debug, Default)]
    pub struct Faults {
        /// Once `full` is set, only this many more bytes can be written.
        pub room: AtomicI64,
        /// Whether `room` counts.
        pub full: AtomicBool,
        /// Whether syncing fails (after the data reached the file).
        pub sync: AtomicBool,
        /// Whether writing panics, as a flaw would.
        pub flaw: AtomicBool,
    }

    impl Faults {
        pub fn sync(&self) -> io::Result<()> {
            match self.sync.load(Ordering::SeqCst) {
                true => Err(io::ErrorKind::StorageFull.into()),
                false => Ok(()),
            }
        }

        pub fn write(&self, len: usize) -> io::Result<()> {
            assert!(!self.flaw.load(Ordering::SeqCst), "a flaw in writing");
            let len = len as i64;
            let full = self.full.load(Ordering::SeqCst)
                && self.room.fetch_sub(len, Ordering::SeqCst) < len;
            match full {
                true => Err(io::ErrorKind::StorageFull.into()),
                false => Ok(()),
            }
        }
    }
}
