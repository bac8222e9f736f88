//! Port-forward for WebSocket clients: the client's SPDY connection travels inside binary messages and is unpacked
//! here, untouched. Upstream: `k8s.io/apiserver/pkg/util/proxy.TunnelingHandler`, KEP-4006.

use bytes::{Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use http::HeaderMap;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use keelson_machinery::status::ApiError;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::Message;

use super::backend::Backend;
use super::websocket::{self, Socket};
use crate::body::Response;

/// How tunnelled protocols are marked.
const PREFIX: &str = "SPDY/3.1+";
/// Only Kubernetes' own protocols are tunnelled.
const SUFFIX: &str = ".k8s.io";

/// The SPDY subprotocols that a client wants tunnelled.
pub fn protocols(headers: &HeaderMap) -> Vec<String> {
    let offered = websocket::subprotocols(headers).into_iter();
    offered
        .filter_map(|p| p.strip_prefix(PREFIX))
        .filter(|p| p.ends_with(SUFFIX))
        .map(str::to_owned)
        .collect()
}

/// Connects to the kubelet, answers the handshake, and carries the tunnel on in a task of its own.
///
/// # Errors
/// The kubelet's refusal, or 400 for a broken handshake.
pub async fn serve(
    headers: &HeaderMap,
    upgrade: OnUpgrade,
    backend: &Backend,
    path_and_query: &str,
) -> Result<Response, ApiError> {
    let offered = protocols(headers);
    let offered: Vec<&str> = offered.iter().map(String::as_str).collect();
    if offered.is_empty() {
        return Err(ApiError::bad_request(
            "unable to upgrade: no tunneling spdy protocols provided",
        ));
    }
    let (io, chosen) = backend.spdy(path_and_query, &offered).await?;
    let response = websocket::accept(headers, &format!("{PREFIX}{chosen}"))?;
    tokio::spawn(async move {
        match websocket::open(upgrade).await {
            Ok(socket) => carry(socket, io).await,
            Err(error) => tracing::debug!(%error, "a client left during its upgrade"),
        }
    });
    Ok(response)
}

async fn carry(socket: Socket, io: TokioIo<hyper::upgrade::Upgraded>) {
    let (mut reader, mut writer) = tokio::io::split(io);
    let (mut to_client, mut from_client) = socket.split();
    let inward = async {
        while let Some(Ok(message)) = from_client.next().await {
            match message {
                Message::Binary(data) => {
                    if writer.write_all(&data).await.is_err() || writer.flush().await.is_err() {
                        return;
                    }
                }
                Message::Close(_) => return,
                _ => {}
            }
        }
    };
    let outward = async {
        let mut buffer = BytesMut::with_capacity(32 * 1024);
        while let Ok(length) = reader.read_buf(&mut buffer).await {
            let data: Bytes = buffer.split().freeze();
            if length == 0 || to_client.send(Message::Binary(data)).await.is_err() {
                break;
            }
            buffer.reserve(32 * 1024);
        }
        // Nobody may be left to hear it.
        let closing = Message::Close(Some(websocket::normal_closure()));
        let _ = to_client.send(closing).await;
    };
    tokio::select! {
        () = inward => {}
        () = outward => {}
    }
}
