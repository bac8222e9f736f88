//! An answer's bytes as WebSocket messages, for clients such as browsers that cannot read a stream (upstream
//! `wsstream.Reader`): one way, what the client sends is not looked at.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::HeaderMap;
use http_body_util::BodyExt;
use hyper::upgrade::OnUpgrade;
use keelson_machinery::status::ApiError;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::websocket::{self, Socket};
use crate::body::{Response, ResponseBody};

/// The bytes as they are.
const BINARY: &str = "binary.k8s.io";
/// The bytes as base64 in text messages.
const BASE64: &str = "base64.binary.k8s.io";

/// The subprotocol for a client: the first it offers that is spoken here, none when it offers none.
///
/// # Errors
/// 400 when it offers only others.
fn choose(offered: &[&str]) -> Result<&'static str, ApiError> {
    if offered.is_empty() {
        return Ok("");
    }
    let spoken = |p: &&str| [BINARY, BASE64].into_iter().find(|known| known == p);
    offered
        .iter()
        .find_map(spoken)
        .ok_or_else(|| ApiError::bad_request("requested protocol(s) are not supported"))
}

/// Answers the handshake and sends the body on in a task of its own.
///
/// # Errors
/// 400 for a broken handshake or unknown subprotocols.
pub fn serve(
    headers: &HeaderMap,
    upgrade: OnUpgrade,
    body: ResponseBody,
) -> Result<Response, ApiError> {
    let protocol = choose(&websocket::subprotocols(headers))?;
    let response = websocket::accept(headers, protocol)?;
    tokio::spawn(async move {
        let socket = match websocket::open(upgrade).await {
            Ok(socket) => socket,
            Err(error) => return tracing::debug!(%error, "a client left during its upgrade"),
        };
        if let Err(error) = copy(socket, body, protocol == BASE64).await {
            tracing::debug!(%error, "a client left before the end of its stream");
        }
    });
    Ok(response)
}

fn message(bytes: Bytes, base64: bool) -> Message {
    if base64 {
        Message::text(STANDARD.encode(bytes))
    } else {
        Message::Binary(bytes)
    }
}

async fn copy(socket: Socket, mut body: ResponseBody, base64: bool) -> Result<(), Error> {
    let (mut to_client, mut from_client) = socket.split();
    // An empty message tells the client that the connection stands.
    to_client.send(message(Bytes::new(), base64)).await?;
    loop {
        tokio::select! {
            frame = body.frame() => match frame {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        to_client.send(message(data, base64)).await?;
                    }
                }
                Some(Err(error)) => {
                    tracing::debug!(%error, "a stream for a WebSocket broke off");
                    break;
                }
                None => break,
            },
            received = from_client.next() => match received {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error),
                None => return Ok(()),
            },
        }
    }
    to_client
        .send(Message::Close(Some(websocket::normal_closure())))
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subprotocols_are_chosen_as_offered() {
        for (offered, want) in [
            (&[][..], Some("")),
            (&["binary.k8s.io"], Some(BINARY)),
            (
                &["v9", "base64.binary.k8s.io", "binary.k8s.io"],
                Some(BASE64),
            ),
            (&["v5.channel.k8s.io"], None),
        ] {
            assert_eq!(choose(offered).ok(), want, "{offered:?}");
        }
    }
}
