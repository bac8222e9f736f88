//! Files that appear whole or not at all, readable by their owner only where they hold a key.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::PkiError;

/// The largest file that is read here; a certificate chain is a few KiB.
const MAX_FILE: u64 = 1 << 20;

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> PkiError + '_ {
    move |source| PkiError::Io {
        path: path.to_owned(),
        source,
    }
}

/// Makes `dir` and its parents, `dir` itself closed to others.
pub(super) fn create_private_dir(dir: &Path) -> Result<(), PkiError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(io(dir))
}

/// The file's text; `None` when there is no such file.
pub(super) fn read(path: &Path) -> Result<Option<String>, PkiError> {
    let length = match fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(path)(error)),
    };
    if length > MAX_FILE {
        return Err(PkiError::Damaged {
            path: path.to_owned(),
            problem: format!("is larger than {MAX_FILE} bytes"),
        });
    }
    fs::read_to_string(path).map(Some).map_err(io(path))
}

/// Files to be written together.
#[derive(Default)]
pub(super) struct Pending(Vec<(PathBuf, String, bool)>);

impl Pending {
    /// Plans a file; `secret` ones get mode 0600, others 0644.
    pub(super) fn add(&mut self, path: PathBuf, content: String, secret: bool) {
        self.0.push((path, content, secret));
    }

    /// Writes all, each durably and by rename. The files go out at once, so that they share the disk's flushes.
    pub(super) fn write(self) -> Result<(), PkiError> {
        let Some(dir) = self
            .0
            .first()
            .and_then(|(path, _, _)| path.parent())
            .map(Path::to_owned)
        else {
            return Ok(());
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = self
                .0
                .iter()
                .map(|(path, content, secret)| {
                    scope.spawn(move || write_one(path, content, *secret))
                })
                .collect();
            threads
                .into_iter()
                .try_for_each(|thread| match thread.join() {
                    Ok(result) => result,
                    Err(panic) => std::panic::resume_unwind(panic),
                })
        })?;
        // The names themselves must survive a power loss too.
        File::open(&dir)
            .and_then(|d| d.sync_all())
            .map_err(io(&dir))
    }
}

fn write_one(path: &Path, content: &str, secret: bool) -> Result<(), PkiError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    // A left-over of a crash may have other permissions than this file must have.
    match fs::remove_file(&temporary) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(io(&temporary)(error)),
    }
    let mode = if secret { 0o600 } else { 0o644 };
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)
        .map_err(io(&temporary))?;
    file.write_all(content.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(io(&temporary))?;
    fs::rename(&temporary, path).map_err(io(path))
}
