//! Watches on etcd. Each is one stream, kept up by a task: when etcd was away, it goes on behind the last revision it
//! delivered, and its consumer notices nothing but the silence.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::proto::{
    self, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchRequestUnion, WatchResponse,
};
use super::{Shared, bounds, client, header, key_value, revision, wire};
use crate::{Error, Event, Range, Revision, Watch, WatchItem, WatchProgress};

/// Items that may wait for the consumer; then the stream is not read on, and etcd holds back the rest.
const QUEUE: usize = 64;
/// Pauses between attempts to go on, from the first to the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Starts a watch of `range` behind `after`.
pub(super) fn start(shared: Arc<Shared>, range: &Range, after: Revision) -> Watch {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let progress = Arc::new(Progress {
        shared: shared.clone(),
        wanted: Notify::new(),
    });
    let (key, range_end) = bounds(range);
    let watcher = Watcher {
        shared,
        create: WatchCreateRequest {
            key,
            range_end,
            start_revision: 0,
            progress_notify: true,
            prev_kv: true,
            fragment: true,
        },
        progress: progress.clone(),
        reached: after,
        sender,
    };
    // Ends by itself when the consumer drops the receiver.
    tokio::spawn(watcher.run());
    Watch {
        items: ReceiverStream::new(receiver).boxed(),
        progress,
    }
}

struct Progress {
    shared: Arc<Shared>,
    wanted: Notify,
}

#[async_trait]
impl WatchProgress for Progress {
    async fn freshness(&self) -> Result<Revision, Error> {
        let revision = self.shared.revision().await?;
        self.wanted.notify_one();
        Ok(revision)
    }

    fn request(&self) {
        self.wanted.notify_one();
    }
}

/// Why one stream ended.
enum Ended {
    /// The watch is over: the consumer is gone, or has been told an error.
    Over,
    /// etcd is away; the watch goes on when it is back.
    Lost(String),
}

struct Watcher {
    shared: Arc<Shared>,
    create: WatchCreateRequest,
    progress: Arc<Progress>,
    /// Everything up to here has been delivered.
    reached: Revision,
    sender: mpsc::Sender<Result<WatchItem, Error>>,
}

impl Watcher {
    async fn run(mut self) {
        let mut pause = BACKOFF.0;
        loop {
            let before = self.reached;
            let ended = self.stream().await;
            let Ended::Lost(reason) = ended else {
                return;
            };
            if self.reached > before {
                pause = BACKOFF.0;
            }
            tracing::warn!(%reason, "a watch of etcd was interrupted");
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.sender.closed() => return,
            }
            pause = (pause * 2).min(BACKOFF.1);
        }
    }

    /// One stream, from its creation to its end.
    async fn stream(&mut self) -> Ended {
        let (requests, outgoing) = mpsc::channel(4);
        let create = WatchCreateRequest {
            start_revision: wire(self.reached + 1),
            ..self.create.clone()
        };
        let create = request(WatchRequestUnion::Create(create));
        if requests.send(create).await.is_err() {
            return Ended::Lost("its requests were not taken".to_owned());
        }
        let client = &self.shared.client;
        let mut answers = match client.watch(ReceiverStream::new(outgoing)).await {
            Ok(answers) => answers,
            Err(status) => return lost(&status),
        };
        // Parts of an answer that came in pieces.
        let mut parts: Vec<proto::Event> = Vec::new();
        loop {
            let answer = tokio::select! {
                answer = answers.next() => answer,
                () = self.sender.closed() => return Ended::Over,
                () = self.progress.wanted.notified() => {
                    // A full queue has requests in it already.
                    let ask = request(WatchRequestUnion::Progress(WatchProgressRequest {}));
                    let _ = requests.try_send(ask);
                    continue;
                }
            };
            let answer = match answer {
                Some(Ok(answer)) => answer,
                Some(Err(status)) => return lost(&status),
                None => return Ended::Lost("etcd closed the stream".to_owned()),
            };
            if answer.canceled {
                return self.canceled(answer).await;
            }
            let newest = header(&answer.header);
            let fragment = answer.fragment;
            let quiet = answer.events.is_empty() && parts.is_empty();
            parts.extend(answer.events);
            if fragment || answer.created {
                continue;
            }
            let item = if quiet {
                // Progress. Before the watch has caught up, its answers do not say that nothing is to come; etcd sends
                // none until then.
                self.reached = self.reached.max(newest);
                Ok(WatchItem::Progress(self.reached))
            } else {
                match events(std::mem::take(&mut parts)) {
                    Ok(events) => {
                        let newest = events.last().map_or(0, |e| e.revision);
                        self.reached = self.reached.max(newest);
                        Ok(WatchItem::Events(events))
                    }
                    Err(error) => Err(error),
                }
            };
            let failed = item.is_err();
            if self.sender.send(item).await.is_err() || failed {
                return Ended::Over;
            }
        }
    }

    /// etcd has ended the watch.
    async fn canceled(&self, answer: WatchResponse) -> Ended {
        if answer.compact_revision == 0 {
            // Such as when it lost its leader.
            return Ended::Lost(answer.cancel_reason);
        }
        let compacted = Error::Compacted {
            requested: self.reached,
            oldest: revision(answer.compact_revision),
        };
        // Without a consumer there is nobody to tell.
        let _ = self.sender.send(Err(compacted)).await;
        Ended::Over
    }
}

fn request(union: WatchRequestUnion) -> WatchRequest {
    WatchRequest {
        request_union: Some(union),
    }
}

fn lost(status: &Status) -> Ended {
    match client::error(status.clone()) {
        Error::Failed(reason) | Error::Unwritable(reason) => Ended::Lost(reason),
        other => Ended::Lost(other.to_string()),
    }
}

fn events(parts: Vec<proto::Event>) -> Result<Vec<Event>, Error> {
    let mut events = Vec::with_capacity(parts.len());
    for part in parts {
        let Some(kv) = part.kv else {
            return Err(Error::Failed(
                "etcd sent an event without its key".to_owned(),
            ));
        };
        let previous = part.prev_kv.map(key_value).transpose()?;
        let kv = key_value(kv)?;
        // Missing when the state before was compacted meanwhile. Such a deletion would look like nothing at all, such
        // a change like a new key: the consumer has to begin anew.
        let created = part.kind != proto::EVENT_DELETE && kv.create_revision == kv.mod_revision;
        if previous.is_none() && !created {
            return Err(Error::Failed(format!(
                "etcd sent a change of {} without the state before",
                kv.key
            )));
        }
        events.push(Event {
            key: kv.key.clone(),
            revision: kv.mod_revision,
            current: (part.kind != proto::EVENT_DELETE).then_some(kv),
            previous,
        });
    }
    Ok(events)
}
