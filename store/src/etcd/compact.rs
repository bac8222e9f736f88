//! Compaction of etcd's history, which etcd leaves to its users. All API servers on one etcd take part, upstream's
//! included, by its agreement: a key `compact_rev_key` whose version counts the rounds and whose value is the revision
//! of the last one; who moves it on from the version it knows compacts to the revision it saw a round ago.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::proto::{self, Compare, RangeRequest, RequestOp, Target};
use super::{COMPACT, Shared, TXN, client, header, wire};
use crate::{Error, Revision};

const KEY: Bytes = Bytes::from_static(b"compact_rev_key");

/// Compacts for ever, every `interval`.
pub(super) async fn run(shared: Arc<Shared>, interval: Duration) {
    // What is known: the round, and the newest revision when it began.
    let (mut version, mut seen) = (0, 0);
    loop {
        tokio::time::sleep(interval).await;
        match round(&shared, version, seen).await {
            Ok((next, revision)) => (version, seen) = (next, revision),
            Err(error) => tracing::warn!(%error, "etcd's history was not compacted"),
        }
    }
}

/// One round. Returns the version of the key after it and the newest revision.
pub(super) async fn round(
    shared: &Shared,
    version: i64,
    seen: Revision,
) -> Result<(i64, Revision), Error> {
    let op = |request| RequestOp {
        request: Some(request),
    };
    let request = proto::TxnRequest {
        compare: vec![Compare {
            target: proto::TARGET_VERSION,
            key: KEY,
            target_union: Some(Target::Version(version)),
        }],
        success: vec![op(proto::Request::Put(proto::PutRequest {
            key: KEY,
            value: Bytes::from(seen.to_string()),
            lease: 0,
        }))],
        failure: vec![op(proto::Request::Range(RangeRequest {
            key: KEY,
            ..RangeRequest::default()
        }))],
    };
    let answer: proto::TxnResponse = shared
        .client
        .call(TXN, request)
        .await
        .map_err(client::error)?;
    let now = header(&answer.header);
    if !answer.succeeded {
        // Somebody else did this round.
        let found = answer.responses.into_iter().find_map(|op| op.response);
        let version = match found {
            Some(proto::Response::Range(range)) => range.kvs.first().map_or(0, |kv| kv.version),
            None => 0,
        };
        return Ok((version, now));
    }
    if seen > 0 {
        let request = proto::CompactionRequest {
            revision: wire(seen),
        };
        let answer: Result<proto::CompactionResponse, _> =
            shared.client.call(COMPACT, request).await;
        match answer {
            // Somebody compacted further already.
            Err(status) if status.code() == tonic::Code::OutOfRange => {}
            other => {
                other.map_err(client::error)?;
            }
        }
    }
    Ok((version + 1, now))
}
