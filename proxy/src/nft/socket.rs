//! The netlink socket to netfilter: transactions in, verdicts out, and dumps.

use std::io;

use netlink_sys::{Socket, SocketAddr, protocols};

use super::wire::{self, HEADER, messages};

const ERROR: u16 = 2;
const DONE: u16 = 3;
const INTERRUPTED: u16 = 0x10;
/// Room for one datagram; the kernel sends at most 32 KiB at once.
const RECEIVE: usize = 64 * 1024;
/// What is asked of the kernel for its answers.
const RECEIVE_BUFFER: usize = 4 * 1024 * 1024;

/// Why the kernel did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The socket failed.
    #[error("netlink: {0}")]
    Io(#[from] io::Error),
    /// The kernel refused a message.
    #[error("the kernel refused message {message} of the transaction: {source}{detail}")]
    Refused {
        /// Which message, counted from the first.
        message: u32,
        /// What it said.
        source: io::Error,
        /// Its own words, where it found any.
        detail: String,
    },
    /// No answer came.
    #[error("the kernel did not answer")]
    NoAnswer,
}

impl NetlinkError {
    /// Whether the kernel refused with this error number.
    pub fn is(&self, errno: rustix::io::Errno) -> bool {
        matches!(self, NetlinkError::Refused { source, .. } if source.raw_os_error() == Some(errno.raw_os_error()))
    }
}

/// A socket. Calls block for as long as the kernel takes, which for large transactions can be a second.
pub struct Netfilter {
    socket: Socket,
}

impl Netfilter {
    /// Opens one in the calling thread's network namespace.
    pub fn open() -> Result<Self, NetlinkError> {
        let mut socket = Socket::new(protocols::NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Not essential: shorter answers, with words.
        let _ = socket.set_cap_ack(true);
        let _ = socket.set_ext_ack(true);
        let fd = &socket;
        if rustix::net::sockopt::set_socket_recv_buffer_size_force(fd, RECEIVE_BUFFER).is_err() {
            let _ = rustix::net::sockopt::set_socket_recv_buffer_size(fd, RECEIVE_BUFFER);
        }
        Ok(Netfilter { socket })
    }

    /// Sends a transaction and waits for the verdict on it. `first` is the number of its first message, `answered` that
    /// of the one that is acknowledged.
    pub fn commit(
        &self,
        transaction: &[u8],
        first: u32,
        answered: u32,
    ) -> Result<(), NetlinkError> {
        // A transaction must arrive as one datagram, however large.
        let room = transaction.len().next_power_of_two().max(64 * 1024);
        if rustix::net::sockopt::set_socket_send_buffer_size_force(&self.socket, room).is_err() {
            rustix::net::sockopt::set_socket_send_buffer_size(&self.socket, room)
                .map_err(io::Error::from)?;
        }
        self.socket.send(transaction, 0)?;
        // All answers are there once the send returns.
        let mut refused: Option<NetlinkError> = None;
        let mut done = false;
        while let Some(answer) = self.receive_now()? {
            for message in messages(&answer).filter(|m| m.kind == ERROR) {
                let relative = message.sequence.wrapping_sub(first);
                match error_of(&message) {
                    None => done |= message.sequence == answered,
                    Some((source, detail)) => {
                        // The first is the cause; what follows mostly follows from it.
                        refused.get_or_insert(NetlinkError::Refused {
                            message: relative,
                            source,
                            detail,
                        });
                    }
                }
            }
        }
        match refused {
            Some(error) => Err(error),
            None if done => Ok(()),
            None => Err(NetlinkError::NoAnswer),
        }
    }

    fn receive_now(&self) -> Result<Option<Vec<u8>>, NetlinkError> {
        self.socket.set_non_blocking(true)?;
        let mut buffer = bytes::BytesMut::with_capacity(RECEIVE);
        match self.socket.recv(&mut buffer, 0) {
            Ok(_) => Ok(Some(buffer.to_vec())),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Some(Vec::new())),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends a request and waits for its acknowledgement.
    pub fn request(&self, message: &[u8], sequence: u32) -> Result<(), NetlinkError> {
        self.commit(message, sequence, sequence)
    }

    /// Sends a dump request and hands over the payload of each message. A dump that changed under way is
    /// told as `Err` with [`io::ErrorKind::Interrupted`] after everything was handed over.
    pub fn dump(&self, message: &[u8], mut each: impl FnMut(&[u8])) -> Result<(), NetlinkError> {
        self.socket.set_non_blocking(false)?;
        self.socket.send(message, 0)?;
        let mut torn = false;
        loop {
            let mut buffer = bytes::BytesMut::with_capacity(RECEIVE);
            self.socket.recv(&mut buffer, 0)?;
            for message in messages(&buffer) {
                torn |= message.flags & INTERRUPTED != 0;
                match message.kind {
                    ERROR => match error_of(&message) {
                        None => {}
                        Some((source, detail)) => {
                            return Err(NetlinkError::Refused {
                                message: 0,
                                source,
                                detail,
                            });
                        }
                    },
                    DONE if torn => return Err(io::Error::from(io::ErrorKind::Interrupted).into()),
                    DONE => return Ok(()),
                    _ => each(message.payload),
                }
            }
        }
    }
}

/// What an error message says; `None` for an acknowledgement.
fn error_of(message: &wire::Message<'_>) -> Option<(io::Error, String)> {
    let code = i32::from_ne_bytes(message.payload.get(..4)?.try_into().ok()?);
    if code == 0 {
        return None;
    }
    // Extended acknowledgement: after the echoed header come attributes, of which 1 is a text.
    let detail = message
        .payload
        .get(4 + HEADER..)
        .and_then(|attributes| wire::attribute(attributes, 1))
        .map(|text| format!(": {}", String::from_utf8_lossy(text).trim_end_matches('\0')))
        .unwrap_or_default();
    Some((io::Error::from_raw_os_error(code.saturating_neg()), detail))
}
