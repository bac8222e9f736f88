//! The server side of a WebSocket handshake (RFC 6455), for clients that upgrade.

use http::{HeaderMap, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use keelson_machinery::status::ApiError;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Utf8Bytes;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use crate::body::{Response, full};

/// Messages larger than this end the connection; clients send some 32 KB at a time.
const MAX_MESSAGE: usize = 4 * 1024 * 1024;

/// An upgraded connection.
pub type Socket = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

/// "Normal closure" (RFC 6455, section 7.4.1): the session is over as it should be.
pub fn normal_closure() -> CloseFrame {
    CloseFrame {
        code: CloseCode::Normal,
        reason: Utf8Bytes::default(),
    }
}

/// Whether a request asks for a WebSocket.
pub fn is_websocket(headers: &HeaderMap) -> bool {
    has_token(headers, header::CONNECTION, "upgrade")
        && has_token(headers, header::UPGRADE, "websocket")
}

/// Whether a request asks for any upgrade.
pub fn is_upgrade(headers: &HeaderMap) -> bool {
    has_token(headers, header::CONNECTION, "upgrade")
}

/// The subprotocols a client offers, by its preference.
pub fn subprotocols(headers: &HeaderMap) -> Vec<&str> {
    let values = headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|v| v.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|p| !p.is_empty())
        .collect()
}

fn has_token(headers: &HeaderMap, name: header::HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|v| v.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .any(|part| part.trim().eq_ignore_ascii_case(token))
}

/// The `101 Switching Protocols` answer with the chosen subprotocol; empty for a client that offered none.
///
/// # Errors
/// 400 when the handshake is not one.
pub fn accept(headers: &HeaderMap, protocol: &str) -> Result<Response, ApiError> {
    let bad = || ApiError::bad_request("unable to upgrade: not a WebSocket handshake");
    if headers
        .get(header::SEC_WEBSOCKET_VERSION)
        .is_none_or(|v| v != "13")
    {
        return Err(bad());
    }
    let key = headers.get(header::SEC_WEBSOCKET_KEY).ok_or_else(bad)?;
    let mut response = http::Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(
            header::SEC_WEBSOCKET_ACCEPT,
            derive_accept_key(key.as_bytes()),
        );
    if !protocol.is_empty() {
        response = response.header(header::SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    response.body(full("")).map_err(ApiError::internal)
}

/// The socket, once the answer has been sent.
///
/// # Errors
/// When the client went away.
pub async fn open(upgrade: OnUpgrade) -> Result<Socket, hyper::Error> {
    let io = TokioIo::new(upgrade.await?);
    let config = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE));
    Ok(WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await)
}
