//! exec and attach for WebSocket clients: `v5.channel.k8s.io` on the client's side, SPDY with `v4.channel.k8s.io`
//! on the kubelet's. Version 5 adds to 4 what WebSocket lacks: a way to say that stdin has ended.
//!
//! Upstream: `k8s.io/apiserver/pkg/util/proxy.StreamTranslatorHandler`; the protocol is KEP-4006.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use http::HeaderMap;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use keelson_machinery::spdy::{Codec, Frame, StreamId};
use keelson_machinery::status::{self, ApiError};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use super::backend::Backend;
use super::websocket::{self, Socket};
use crate::body::Response;

/// The subprotocol that is translated.
pub const PROTOCOL: &str = "v5.channel.k8s.io";
/// The SPDY subprotocol towards the kubelet; older ones cannot carry an exit code.
const SPDY_PROTOCOL: &str = "v4.channel.k8s.io";
/// A session in which nothing moves for this long is ended (upstream `defaultIdleConnectionTimeout`).
const IDLE: Duration = Duration::from_secs(4 * 3600);
/// The final status must be out by then (upstream `writeErrorDeadline`).
const FINAL_WRITE: Duration = Duration::from_secs(10);
/// Frames waiting to be written to the kubelet.
const QUEUE: usize = 32;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// Which streams the client asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Streams {
    /// The client sends input.
    pub stdin: bool,
    /// The client wants output.
    pub stdout: bool,
    /// The client wants error output; never with a terminal.
    pub stderr: bool,
    /// There is a terminal, whose size may change.
    pub tty: bool,
}

impl Streams {
    /// Channel numbers and stream types in the order in which upstream's client opens them.
    fn channels(self) -> Vec<(u8, &'static str)> {
        let wanted = [
            (true, ERROR, "error"),
            (self.stdin, STDIN, "stdin"),
            (self.stdout, STDOUT, "stdout"),
            (self.stderr && !self.tty, STDERR, "stderr"),
            (self.tty, RESIZE, "resize"),
        ];
        wanted
            .into_iter()
            .filter(|(on, ..)| *on)
            .map(|(_, channel, kind)| (channel, kind))
            .collect()
    }
}

/// Answers the handshake and carries the session on in a task of its own.
///
/// # Errors
/// 400 for a broken handshake. What goes wrong later is told in the session's error channel.
pub fn serve(
    headers: &HeaderMap,
    upgrade: OnUpgrade,
    backend: Backend,
    path_and_query: String,
    streams: Streams,
) -> Result<Response, ApiError> {
    let response = websocket::accept(headers, PROTOCOL)?;
    tokio::spawn(async move {
        let socket = match websocket::open(upgrade).await {
            Ok(socket) => socket,
            Err(error) => return tracing::debug!(%error, "a client left during its upgrade"),
        };
        session(socket, &backend, &path_and_query, streams).await;
    });
    Ok(response)
}

async fn session(mut socket: Socket, backend: &Backend, path_and_query: &str, streams: Streams) {
    // An empty message on the lowest channel that writes tells the client that the connection stands.
    let first = if streams.stdout {
        STDOUT
    } else if streams.stderr {
        STDERR
    } else {
        ERROR
    };
    if socket
        .send(Message::Binary(Bytes::from(vec![first])))
        .await
        .is_err()
    {
        return;
    }
    let outcome = match backend.spdy(path_and_query, &[SPDY_PROTOCOL]).await {
        Ok((io, protocol)) if protocol == SPDY_PROTOCOL => {
            translate(&mut socket, io, streams).await
        }
        Ok(_) => Outcome::Failed(ApiError::internal(
            "the kubelet does not speak v4.channel.k8s.io",
        )),
        Err(error) => Outcome::Failed(error),
    };
    let status = match outcome {
        Outcome::ClientGone => return,
        // Nothing on the error stream means success (upstream `errorDecoderV4`).
        Outcome::Finished(status) if status.is_empty() => encode(&status::success(None)),
        Outcome::Finished(status) => status,
        Outcome::Failed(error) => encode(&error.to_value()),
    };
    let mut message = BytesMut::with_capacity(status.len() + 1);
    message.extend_from_slice(&[ERROR]);
    message.extend_from_slice(&status);
    let end = async {
        socket.send(Message::Binary(message.freeze())).await?;
        // Without a code the client takes the end for a failure.
        socket.close(Some(websocket::normal_closure())).await
    };
    match timeout(FINAL_WRITE, end).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a client left before its status"),
        Err(_) => tracing::debug!("a client did not take its status"),
    }
}

fn encode(status: &keelson_machinery::value::Value) -> Bytes {
    Bytes::from(status.to_string())
}

/// How a session ended.
enum Outcome {
    /// With this on the error stream.
    Finished(Bytes),
    /// The connection to the kubelet broke.
    Failed(ApiError),
    /// Nobody is left to tell.
    ClientGone,
}

async fn translate(socket: &mut Socket, io: TokioIo<Upgraded>, streams: Streams) -> Outcome {
    let (reader, writer) = tokio::io::split(io);
    let (frames, queue) = mpsc::channel(QUEUE);
    let writing = tokio::spawn(write_frames(writer, queue));
    let outcome = pump(socket, reader, frames, streams).await;
    // The queue's sender is gone: the writer ends after what is queued, or is stuck on a dead peer.
    writing.abort();
    outcome
}

async fn write_frames(
    mut writer: WriteHalf<TokioIo<Upgraded>>,
    mut queue: mpsc::Receiver<Frame>,
) -> std::io::Result<()> {
    let mut codec = Codec::new();
    let mut buffer = BytesMut::new();
    while let Some(frame) = queue.recv().await {
        codec.encode(&frame, &mut buffer);
        // What else is ready goes out in the same write.
        while buffer.len() < 64 * 1024 {
            match queue.try_recv() {
                Ok(frame) => codec.encode(&frame, &mut buffer),
                Err(_) => break,
            }
        }
        writer.write_all(&buffer).await?;
        writer.flush().await?;
        buffer.clear();
    }
    Ok(())
}

/// Moves data both ways until output and error stream have ended.
async fn pump(
    socket: &mut Socket,
    reader: ReadHalf<TokioIo<Upgraded>>,
    frames: mpsc::Sender<Frame>,
    streams: Streams,
) -> Outcome {
    let channels = streams.channels();
    // The connecting side's streams have odd numbers.
    let ids: BTreeMap<u8, StreamId> = channels
        .iter()
        .enumerate()
        .map(|(i, (channel, _))| (*channel, 2 * i as StreamId + 1))
        .collect();
    for (channel, kind) in &channels {
        let headers = BTreeMap::from([("streamtype".to_owned(), vec![(*kind).to_owned()])]);
        if frames
            .send(Frame::SynStream {
                id: ids[channel],
                headers,
                fin: false,
            })
            .await
            .is_err()
        {
            return Outcome::Failed(ApiError::internal("the connection to the kubelet broke"));
        }
    }
    let (to_client, from_client) = socket.split();
    tokio::select! {
        outcome = client_to_kubelet(from_client, &frames, &ids) => outcome,
        outcome = kubelet_to_client(reader, to_client, &frames, &ids) => outcome,
    }
}

async fn client_to_kubelet<S>(
    mut from_client: S,
    frames: &mpsc::Sender<Frame>,
    ids: &BTreeMap<u8, StreamId>,
) -> Outcome
where
    S: StreamExt<Item = Result<Message, tokio_tungstenite::tungstenite::Error>> + Unpin,
{
    loop {
        let data = match timeout(IDLE, from_client.next()).await {
            Ok(Some(Ok(Message::Binary(data)))) => data,
            Ok(Some(Ok(Message::Close(_)))) | Ok(None) | Ok(Some(Err(_))) => {
                return Outcome::ClientGone;
            }
            // Pings are answered by the library; text is not part of the protocol.
            Ok(Some(Ok(_))) => continue,
            Err(_) => {
                return Outcome::Failed(ApiError::internal("the session was idle for too long"));
            }
        };
        let Some(frame) = frame_of(data, ids) else {
            continue;
        };
        if frames.send(frame).await.is_err() {
            // The writer failed; what the kubelet still says decides the outcome.
            std::future::pending::<()>().await;
        }
    }
}

/// What a client's message means; `None` for channels that the client may not write.
fn frame_of(mut data: Bytes, ids: &BTreeMap<u8, StreamId>) -> Option<Frame> {
    if data.is_empty() {
        return None;
    }
    let channel = data.split_to(1)[0];
    match channel {
        STDIN | RESIZE => Some(Frame::Data {
            id: *ids.get(&channel)?,
            data,
            fin: false,
        }),
        CLOSE if data.as_ref() == [STDIN] => Some(Frame::Data {
            id: *ids.get(&STDIN)?,
            data: Bytes::new(),
            fin: true,
        }),
        _ => None,
    }
}

async fn kubelet_to_client<S>(
    mut reader: ReadHalf<TokioIo<Upgraded>>,
    mut to_client: S,
    frames: &mpsc::Sender<Frame>,
    ids: &BTreeMap<u8, StreamId>,
) -> Outcome
where
    S: SinkExt<Message> + Unpin,
{
    /// More than any Status needs.
    const MAX_STATUS: usize = 1024 * 1024;
    let channel_of: BTreeMap<StreamId, u8> =
        ids.iter().map(|(channel, id)| (*id, *channel)).collect();
    let mut open: Vec<u8> = [STDOUT, STDERR, ERROR]
        .into_iter()
        .filter(|c| ids.contains_key(c))
        .collect();
    let mut codec = Codec::new();
    let mut input = BytesMut::with_capacity(64 * 1024);
    let mut status = BytesMut::new();
    loop {
        let frame = match codec.decode(&mut input) {
            Ok(Some(frame)) => frame,
            Ok(None) => match reader.read_buf(&mut input).await {
                Ok(0) | Err(_) if open == [ERROR] && !status.is_empty() => {
                    return Outcome::Finished(status.freeze());
                }
                Ok(0) => {
                    return Outcome::Failed(ApiError::internal(
                        "the kubelet closed the connection before the command ended",
                    ));
                }
                Ok(_) => continue,
                Err(error) => {
                    return Outcome::Failed(ApiError::internal(format!(
                        "reading from the kubelet: {error}"
                    )));
                }
            },
            Err(error) => return Outcome::Failed(ApiError::internal(error)),
        };
        let (id, data, fin) = match frame {
            Frame::Data { id, data, fin } => (id, data, fin),
            Frame::SynReply { id, fin, .. } | Frame::Headers { id, fin, .. } => {
                (id, Bytes::new(), fin)
            }
            Frame::Reset { id, .. } => (id, Bytes::new(), true),
            Frame::Ping(id) => {
                // Dropped when the queue is full: the peer's next one will find room.
                let _ = frames.try_send(Frame::Ping(id));
                continue;
            }
            Frame::SynStream { id, .. } => {
                let _ = frames.try_send(Frame::Reset { id, status: 3 });
                continue;
            }
            Frame::GoAway { .. } => continue,
        };
        let Some(channel) = channel_of.get(&id).copied() else {
            continue;
        };
        match channel {
            ERROR if status.len() + data.len() > MAX_STATUS => {
                return Outcome::Failed(ApiError::internal("the error stream is too long"));
            }
            ERROR => status.extend_from_slice(&data),
            _ if data.is_empty() => {}
            _ => {
                let mut message = BytesMut::with_capacity(data.len() + 1);
                message.extend_from_slice(&[channel]);
                message.extend_from_slice(&data);
                if to_client
                    .send(Message::Binary(message.freeze()))
                    .await
                    .is_err()
                {
                    return Outcome::ClientGone;
                }
            }
        }
        if fin {
            open.retain(|c| *c != channel);
            if open.is_empty() {
                return Outcome::Finished(status.freeze());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_messages_become_frames() {
        let ids = BTreeMap::from([(ERROR, 1), (STDIN, 3), (STDOUT, 5)]);
        let data = |id, data: &'static [u8], fin| {
            Some(Frame::Data {
                id,
                data: Bytes::from_static(data),
                fin,
            })
        };
        let cases: [(&'static [u8], Option<Frame>); 7] = [
            (b"\x00abc", data(3, b"abc", false)),
            (b"\x00", data(3, b"", false)),
            (b"\xff\x00", data(3, b"", true)),
            (b"\xff\x01", None),
            (b"\x04{\"Width\":80}", None), // no terminal was asked for
            (b"\x01x", None),
            (b"", None),
        ];
        for (message, want) in cases {
            assert_eq!(
                frame_of(Bytes::from_static(message), &ids),
                want,
                "{message:?}"
            );
        }
    }
}
