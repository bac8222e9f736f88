//! kill -9 at any time loses no acknowledged commit: a child process commits and reports each acknowledgement through
//! a pipe, the parent kills it in the middle, opens its database and compares, many times over on the same database.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use keelson_machinery::clock::Clock;
use keelson_store::embedded::{Embedded, Options};
use keelson_store::{Commit, Expect, Range, Revision, Store, WatchItem};

/// Set for the child: the database to write to.
const CHILD: &str = "KEELSON_STORE_CRASH_CHILD";
/// Commits in flight at a time in the child.
const WRITERS: usize = 16;
/// Keys each of them changes in turn.
const KEYS: usize = 5;
/// How often the child is killed, and after how many acknowledgements.
const KILLS: [usize; 12] = [1, 400, 3, 50, 900, 17, 120, 2, 333, 70, 5, 640];

fn open(path: &Path) -> Arc<Embedded> {
    Embedded::open(path, Options::new(Clock::system())).expect("the database opens")
}

/// Not a test of its own: what the child process runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Ok(path) = std::env::var(CHILD) else {
        return;
    };
    let store = open(Path::new(&path));
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        let store = store.clone();
        writers.push(tokio::spawn(async move {
            for n in 0.. {
                let key = format!("/crash/{writer}-{}", n % KEYS);
                let (present, _) = store.get(&key, None).await.expect("get");
                // Now and then a key is deleted.
                let delete = present.is_some() && n % 7 == 6;
                let value = format!("{writer} {n} {}", "x".repeat(n * 37 % 3500));
                let commit = Commit {
                    expect: present
                        .map_or(Expect::Absent, |kv| Expect::ModRevision(kv.mod_revision)),
                    value: (!delete).then(|| Bytes::from(value.clone())),
                    key: key.clone(),
                    ttl_seconds: None,
                };
                let revision = store.commit(commit).await.expect("commit");
                let value = if delete { "-" } else { &value };
                // One write per line, shorter than PIPE_BUF: the pipe keeps it whole.
                let line = format!("ack\t{revision}\t{key}\t{value}\n");
                if std::io::stdout().write_all(line.as_bytes()).is_err() {
                    return;
                }
            }
        }));
    }
    for writer in writers {
        writer.await.expect("writer");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_commit_is_lost() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("db");
    let this = std::env::current_exe().expect("this program");
    // Per key, the newest acknowledged revision and value ("-": deleted).
    let mut acknowledged: BTreeMap<String, (Revision, String)> = BTreeMap::new();
    for (round, kill_after) in KILLS.into_iter().enumerate() {
        let mut child = Command::new(&this)
            .args(["--exact", "child", "--nocapture"])
            .env(CHILD, &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the child starts");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let mut count = 0;
        // What was acknowledged before the kill may still be in the pipe after it: read to the end.
        for line in lines {
            let line = line.expect("a line");
            let mut fields = line.split('\t');
            let (Some("ack"), Some(revision), Some(key), Some(value)) =
                (fields.next(), fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            let revision: Revision = revision.parse().expect("a revision");
            let newest = acknowledged.entry(key.to_owned()).or_default();
            if newest.0 < revision {
                *newest = (revision, value.to_owned());
            }
            count += 1;
            if count == kill_after {
                child.kill().expect("kill");
            }
        }
        child.wait().expect("wait");
        assert!(
            count >= kill_after,
            "round {round}: the child ended after {count} commits"
        );

        let store = open(&path);
        let revision = store.revision().await.expect("revision");
        for (key, (at, value)) in &acknowledged {
            let (there, _) = store.get(key, None).await.expect("get");
            let newer = there.as_ref().is_some_and(|kv| kv.mod_revision > *at);
            // Commits that were on disk but not acknowledged may show; a newer delete shows in the log only.
            if newer || *at == 0 {
                continue;
            }
            let same = match &there {
                Some(kv) => kv.mod_revision == *at && kv.value == value.as_bytes(),
                None => value == "-" || deleted_after(&store, key, *at).await,
            };
            assert!(
                same,
                "round {round}: {key} acknowledged at {at} is lost; there is {there:?}"
            );
            assert!(revision >= *at);
        }
        // The history is whole: every revision up to the newest is in the log, once.
        let mut watch = store
            .watch(Range::prefix("/crash/"), 1)
            .await
            .expect("watch");
        let mut next: Revision = 2;
        while next <= revision {
            match futures::StreamExt::next(&mut watch.items).await {
                Some(Ok(WatchItem::Events(events))) => {
                    for event in events {
                        assert_eq!(event.revision, next, "round {round}");
                        next += 1;
                    }
                }
                Some(Ok(WatchItem::Progress(_))) => {}
                other => panic!("round {round}: {other:?}"),
            }
        }
    }
}

/// Whether the log shows a deletion of `key` after `at`.
async fn deleted_after(store: &Arc<Embedded>, key: &str, at: Revision) -> bool {
    let mut watch = store
        .watch(Range::prefix("/crash/"), at)
        .await
        .expect("watch");
    loop {
        match futures::StreamExt::next(&mut watch.items).await {
            Some(Ok(WatchItem::Events(events))) => {
                if events.iter().any(|e| e.key == key && e.current.is_none()) {
                    return true;
                }
            }
            Some(Ok(WatchItem::Progress(_))) | Some(Err(_)) | None => return false,
        }
    }
}
