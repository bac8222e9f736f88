//! A container's log as a stream of bytes, with the options of `kubectl logs`. A log that is followed goes on in the
//! next file after rotation, and ends when the container has ended.

use std::collections::HashMap;
use std::io::{self, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use jiff::{SignedDuration, Timestamp};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::mpsc;

use super::logs;
use crate::cri::{ContainerState, Runtime};

/// How often a followed file is looked at.
const POLL: Duration = Duration::from_millis(100);
/// How often it is asked whether the container still runs.
const STATE_POLL: u32 = 5;
/// How much is read at once.
const CHUNK: usize = 64 << 10;

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// Go on as the log grows.
    pub follow: bool,
    /// The run before this one.
    pub previous: bool,
    /// Put the time before each line.
    pub timestamps: bool,
    /// Nothing from before.
    pub since: Option<Timestamp>,
    /// Only so many records of the end.
    pub tail: Option<u64>,
    /// Only so many bytes.
    pub limit: Option<u64>,
    /// `stdout` or `stderr` only.
    pub stream: Option<&'static str>,
}

impl LogOptions {
    /// Reads a request's query (`PodLogOptions`).
    pub fn from_query(q: &HashMap<String, String>, now: Timestamp) -> Result<Self, String> {
        let get = |k: &str| q.get(k).map(String::as_str).filter(|v| !v.is_empty());
        let flag = |k: &str| match get(k) {
            None => Ok(q.contains_key(k)),
            Some("true" | "1" | "t" | "T" | "True" | "TRUE") => Ok(true),
            Some("false" | "0" | "f" | "F" | "False" | "FALSE") => Ok(false),
            Some(v) => Err(format!("invalid {k}: {v:?}")),
        };
        let number = |k: &str| {
            get(k)
                .map(|v| v.parse::<u64>().map_err(|_| format!("invalid {k}: {v:?}")))
                .transpose()
        };
        let tail = match get("tailLines") {
            Some("all") => None,
            _ => number("tailLines")?,
        };
        let since = match (number("sinceSeconds")?, get("sinceTime")) {
            (Some(s), _) => {
                let s = i64::try_from(s).map_err(|_| "invalid sinceSeconds".to_owned())?;
                now.checked_sub(SignedDuration::from_secs(s)).ok()
            }
            (None, Some(t)) => Some(t.parse().map_err(|_| format!("invalid sinceTime: {t:?}"))?),
            (None, None) => None,
        };
        let stream = match get("stream") {
            None | Some("All") => None,
            Some("Stdout") => Some("stdout"),
            Some("Stderr") => Some("stderr"),
            Some(v) => return Err(format!("invalid stream: {v:?}")),
        };
        Ok(LogOptions {
            follow: flag("follow")?,
            previous: flag("previous")?,
            timestamps: flag("timestamps")?,
            since,
            tail,
            limit: number("limitBytes")?,
            stream,
        })
    }
}

/// Where the last `lines` records of a file begin.
async fn tail_start(file: &mut File, lines: u64) -> io::Result<u64> {
    let size = file.metadata().await?.len();
    if lines == 0 {
        return Ok(size);
    }
    let (mut at, mut found) = (size, 0u64);
    let mut buffer = vec![0u8; CHUNK];
    while at > 0 {
        let n = at.min(CHUNK as u64);
        at -= n;
        file.seek(SeekFrom::Start(at)).await?;
        let part = &mut buffer[..n as usize];
        file.read_exact(part).await?;
        for (i, b) in part.iter().enumerate().rev() {
            if *b == b'\n' {
                // The line end at the very end belongs to the last record.
                if at + i as u64 + 1 == size {
                    continue;
                }
                found += 1;
                if found == lines {
                    return Ok(at + i as u64 + 1);
                }
            }
        }
    }
    Ok(0)
}

/// Opens the log of the container `id` at `path`.
pub async fn open(
    runtime: Arc<dyn Runtime>,
    id: String,
    path: PathBuf,
    options: LogOptions,
) -> io::Result<impl Stream<Item = io::Result<Bytes>> + use<>> {
    let mut file = File::open(&path).await?;
    let start = match options.tail {
        Some(n) => tail_start(&mut file, n).await?,
        None => 0,
    };
    file.seek(SeekFrom::Start(start)).await?;
    let (tx, rx) = mpsc::channel(16);
    tokio::spawn(async move {
        let reader = Reader {
            runtime,
            id,
            path,
            options,
            out: tx.clone(),
            pending: Vec::new(),
            line_begins: true,
            written: 0,
        };
        if let Err(e) = reader.run(file).await {
            // Nobody listens any more, or they hear what went wrong.
            let _ = tx.send(Err(e)).await;
        }
    });
    Ok(tokio_stream::wrappers::ReceiverStream::new(rx))
}

struct Reader {
    runtime: Arc<dyn Runtime>,
    id: String,
    path: PathBuf,
    options: LogOptions,
    out: mpsc::Sender<io::Result<Bytes>>,
    /// An incomplete record.
    pending: Vec<u8>,
    line_begins: bool,
    written: u64,
}

impl Reader {
    async fn run(mut self, mut file: File) -> io::Result<()> {
        let mut buffer = vec![0u8; CHUNK];
        let mut ended = !self.options.follow;
        let mut idle = 0u32;
        loop {
            let n = file.read(&mut buffer).await?;
            if n > 0 {
                idle = 0;
                if !self.take(&buffer[..n]).await? {
                    return Ok(());
                }
                continue;
            }
            if ended {
                // A record that was cut off in the middle is still shown.
                let rest = std::mem::take(&mut self.pending);
                if !rest.is_empty() {
                    self.records(&[rest.as_slice(), b"\n"].concat()).await?;
                }
                return Ok(());
            }
            if let Some(next) = self.rotated(&file).await? {
                file = next;
                continue;
            }
            idle += 1;
            if idle.is_multiple_of(STATE_POLL) {
                // One more reading after the end catches what was written meanwhile.
                ended = match self.runtime.container_status(&self.id).await {
                    Ok(s) => s.state != ContainerState::Running as i32,
                    Err(e) => e.is_not_found(),
                };
                if ended {
                    continue;
                }
            }
            tokio::select! {
                () = tokio::time::sleep(POLL) => {}
                () = self.out.closed() => return Ok(()),
            }
        }
    }

    /// The next file, if this one was rotated away.
    async fn rotated(&self, file: &File) -> io::Result<Option<File>> {
        let here = match tokio::fs::metadata(&self.path).await {
            Ok(m) => m,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        if here.ino() == file.metadata().await?.ino() {
            return Ok(None);
        }
        File::open(&self.path).await.map(Some)
    }

    /// Takes what was read; returns whether to go on.
    async fn take(&mut self, data: &[u8]) -> io::Result<bool> {
        self.pending.extend_from_slice(data);
        let Some(end) = self.pending.iter().rposition(|b| *b == b'\n') else {
            return Ok(true);
        };
        let rest = self.pending.split_off(end + 1);
        let whole = std::mem::replace(&mut self.pending, rest);
        self.records(&whole).await
    }

    async fn records(&mut self, whole: &[u8]) -> io::Result<bool> {
        let mut out = Vec::with_capacity(whole.len());
        for line in whole.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
            let Some(r) = logs::parse(line) else { continue };
            if self.options.stream.is_some_and(|s| s != r.stream) {
                continue;
            }
            if let (Some(since), Some(t)) = (self.options.since, r.timestamp())
                && t < since
            {
                continue;
            }
            if self.options.timestamps && self.line_begins {
                out.extend_from_slice(r.time.as_bytes());
                out.push(b' ');
            }
            out.extend_from_slice(r.text);
            if !r.partial {
                out.push(b'\n');
            }
            self.line_begins = !r.partial;
        }
        let mut go_on = true;
        if let Some(limit) = self.options.limit {
            let left = limit.saturating_sub(self.written);
            if out.len() as u64 >= left {
                out.truncate(left as usize);
                go_on = false;
            }
        }
        self.written += out.len() as u64;
        if !out.is_empty() && self.out.send(Ok(Bytes::from(out))).await.is_err() {
            return Ok(false);
        }
        Ok(go_on)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn tails() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "a\nbb\nccc\n").unwrap();
        let mut f = File::open(file.path()).await.unwrap();
        for (lines, want) in [(0, 9), (1, 5), (2, 2), (3, 0), (9, 0)] {
            assert_eq!(tail_start(&mut f, lines).await.unwrap(), want, "{lines}");
        }
    }

    #[test]
    fn options() {
        let now = Timestamp::from_second(1000).unwrap();
        let read = |q: &str| LogOptions::from_query(&super::super::routes::query(q), now);
        let o = read("follow=true&tailLines=5&sinceSeconds=10&stream=Stderr").unwrap();
        assert_eq!(
            (o.follow, o.tail, o.stream),
            (true, Some(5), Some("stderr"))
        );
        assert_eq!(o.since, Timestamp::from_second(990).ok());
        for bad in [
            "tailLines=-1",
            "follow=maybe",
            "sinceTime=x",
            "limitBytes=x",
            "stream=x",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
