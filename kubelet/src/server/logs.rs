//! Containers' logs in the CRI format: `<RFC 3339 nano> <stdout|stderr> <P|F>[:...] <text>`, where `P` is a part of
//! a line that goes on (upstream `pkg/kubelet/kuberuntime/logs`).

use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use jiff::Timestamp;

/// One record of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// The time as written.
    pub time: &'a str,
    /// `stdout` or `stderr`.
    pub stream: &'a str,
    /// Whether the line goes on in the next record.
    pub partial: bool,
    /// The text, without a line end.
    pub text: &'a [u8],
}

impl Record<'_> {
    /// When it was written.
    pub fn timestamp(&self) -> Option<Timestamp> {
        self.time.parse().ok()
    }
}

/// Reads one record (a line without its end); `None` if it is none.
pub fn parse(line: &[u8]) -> Option<Record<'_>> {
    let mut rest = line;
    let mut word = || {
        let at = rest.iter().position(|b| *b == b' ')?;
        let (w, r) = rest.split_at(at);
        rest = &r[1..];
        std::str::from_utf8(w).ok()
    };
    let time = word()?;
    let stream = word()?;
    let tag = match word() {
        Some(t) => t,
        // An empty text may lack its separating space.
        None => {
            let t = std::str::from_utf8(rest).ok()?;
            rest = &[];
            t
        }
    };
    if stream != "stdout" && stream != "stderr" {
        return None;
    }
    let partial = tag.split(':').next() == Some("P");
    Some(Record {
        time,
        stream,
        partial,
        text: rest,
    })
}

/// The end of a log as plain text: at most so many lines, and so many bytes.
pub fn last_lines(path: &Path, lines: usize, bytes: u64) -> io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let size = file.metadata()?.len();
    // Every record has a prefix of some forty bytes; reading more than is shown makes up for it.
    let start = size.saturating_sub(bytes * 8 + 4096);
    file.seek(SeekFrom::Start(start))?;
    let mut data = Vec::new();
    file.take(bytes * 8 + 4096).read_to_end(&mut data)?;
    let mut records: Vec<&[u8]> = data.split(|b| *b == b'\n').collect();
    if start > 0 && !records.is_empty() {
        records.remove(0);
    }
    let mut text: Vec<u8> = Vec::new();
    for r in records.into_iter().filter_map(parse) {
        text.extend_from_slice(r.text);
        if !r.partial {
            text.push(b'\n');
        }
    }
    let from = {
        let body = text.strip_suffix(b"\n").unwrap_or(&text);
        let mut found = 0;
        body.iter()
            .rposition(|b| {
                found += usize::from(*b == b'\n');
                found == lines
            })
            .map_or(0, |at| at + 1)
    };
    let tail = &text[from..];
    let limit = usize::try_from(bytes).unwrap_or(usize::MAX);
    let tail = &tail[tail.len().saturating_sub(limit)..];
    Ok(String::from_utf8_lossy(tail).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_and_tails() {
        let r = parse(b"2016-10-06T00:17:09.669794202Z stdout F hello world").unwrap();
        assert_eq!(
            (r.stream, r.partial, r.text),
            ("stdout", false, &b"hello world"[..])
        );
        assert!(r.timestamp().is_some());
        assert!(
            parse(b"2016-10-06T00:17:09Z stderr P:x part")
                .unwrap()
                .partial
        );
        assert_eq!(parse(b"2016-10-06T00:17:09Z stderr F").unwrap().text, b"");
        for bad in [&b""[..], b"x", b"2016 stdin F x"] {
            assert_eq!(parse(bad), None);
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        let line = |t: &str, s: &str| format!("2016-10-06T00:17:09Z stdout {t} {s}\n");
        std::fs::write(
            file.path(),
            [
                line("F", "one"),
                line("P", "tw"),
                line("F", "o"),
                line("F", "three"),
            ]
            .concat(),
        )
        .unwrap();
        for (lines, bytes, want) in [
            (80, 2048, "one\ntwo\nthree\n"),
            (2, 2048, "two\nthree\n"),
            (80, 4, "ree\n"),
        ] {
            assert_eq!(last_lines(file.path(), lines, bytes).unwrap(), want);
        }
    }
}
