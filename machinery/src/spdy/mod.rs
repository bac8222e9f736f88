//! SPDY/3.1 framing without I/O, as far as exec, attach and port-forward use it: between kubelet and container
//! runtime, and with clients older than the WebSocket protocols.
//!
//! Only framing: which streams exist and what they carry is up to the caller. As in the reference implementation
//! that Kubernetes uses (moby/spdystream), there is no flow control beyond the connection's own.
//!
//! Source: SPDY Protocol, Draft 3.1 (The Chromium Projects).

mod dictionary;
mod headers;

use bytes::{Buf, BufMut, Bytes, BytesMut};

pub use headers::Headers;
use headers::{Compressor, Decompressor};

/// The version in control frames.
const VERSION: u16 = 3;
/// Control frames longer than this are refused: headers of streams are a few dozen bytes.
const MAX_CONTROL_LENGTH: usize = 256 * 1024;
/// Data frames longer than this are refused, so that one peer cannot make us hold 16 MB per stream.
const MAX_DATA_LENGTH: usize = 1024 * 1024;

/// Number of a stream; odd ones are the connecting side's.
pub type StreamId = u32;

/// One frame. Kinds that have no meaning here (SETTINGS, WINDOW_UPDATE, CREDENTIAL) are dropped when read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Opens a stream.
    SynStream {
        /// Its number.
        id: StreamId,
        /// Header names are lower case on the wire.
        headers: Headers,
        /// The sender will send no data.
        fin: bool,
    },
    /// Accepts a stream.
    SynReply {
        /// Its number.
        id: StreamId,
        /// Headers of the answer.
        headers: Headers,
        /// The sender will send no data.
        fin: bool,
    },
    /// Ends a stream in both directions.
    Reset {
        /// Its number.
        id: StreamId,
        /// Why (draft 3.1, section 2.6.3); 5 is CANCEL.
        status: u32,
    },
    /// To be sent back by the other side.
    Ping(u32),
    /// No new streams please.
    GoAway {
        /// The last stream that was accepted.
        last: StreamId,
    },
    /// Further headers of a stream.
    Headers {
        /// Its number.
        id: StreamId,
        /// The headers.
        headers: Headers,
        /// The sender will send no more data.
        fin: bool,
    },
    /// Bytes of a stream.
    Data {
        /// Its number.
        id: StreamId,
        /// The bytes; may be empty when `fin` is set.
        data: Bytes,
        /// The sender will send no more data.
        fin: bool,
    },
}

/// The peer does not speak SPDY/3.1 as it should; the connection is of no more use.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// Another protocol version.
    #[error("SPDY version {0} is not 3")]
    Version(u16),
    /// A frame beyond the bounds.
    #[error("a SPDY frame of {0} bytes is too long")]
    TooLong(usize),
    /// A frame too short for its kind.
    #[error("a SPDY frame of type {0} is cut short")]
    Short(u16),
    /// A header block that does not decompress or parse, or is too large when it does.
    #[error("a SPDY header block is broken: {0}")]
    Headers(&'static str),
}

/// One side of a connection: parses what arrives and writes what is sent. Header compression makes both directions
/// stateful, so frames must pass in order.
pub struct Codec {
    compressor: Compressor,
    decompressor: Decompressor,
}

impl Default for Codec {
    fn default() -> Self {
        Self::new()
    }
}

impl Codec {
    /// A fresh connection.
    pub fn new() -> Self {
        Codec {
            compressor: Compressor::new(),
            decompressor: Decompressor::new(),
        }
    }

    /// Takes the next frame off `input`, or returns `None` when more bytes are needed.
    ///
    /// # Errors
    /// When the peer breaks the protocol; the codec must not be used afterwards.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, Error> {
        while let Some(head) = input.get(..8) {
            let word = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
            let flags = head[4];
            let length = u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize;
            let control = word & 0x8000_0000 != 0;
            if length
                > if control {
                    MAX_CONTROL_LENGTH
                } else {
                    MAX_DATA_LENGTH
                }
            {
                return Err(Error::TooLong(length));
            }
            if input.len() < 8 + length {
                return Ok(None);
            }
            input.advance(8);
            let payload = input.split_to(length).freeze();
            let fin = flags & 1 != 0;
            if !control {
                return Ok(Some(Frame::Data {
                    id: word & 0x7fff_ffff,
                    data: payload,
                    fin,
                }));
            }
            let version = (word >> 16) as u16 & 0x7fff;
            if version != VERSION {
                return Err(Error::Version(version));
            }
            if let Some(frame) = self.control((word & 0xffff) as u16, payload, fin)? {
                return Ok(Some(frame));
            }
        }
        Ok(None)
    }

    fn control(
        &mut self,
        kind: u16,
        mut payload: Bytes,
        fin: bool,
    ) -> Result<Option<Frame>, Error> {
        let mut word =
            || -> Result<u32, Error> { payload.try_get_u32().map_err(|_| Error::Short(kind)) };
        Ok(Some(match kind {
            1 => {
                let id = word()? & 0x7fff_ffff;
                let _associated = word()?;
                payload.try_get_u16().map_err(|_| Error::Short(kind))?; // priority and credential slot
                Frame::SynStream {
                    id,
                    headers: self.decompressor.read(&payload)?,
                    fin,
                }
            }
            2 => {
                let id = word()? & 0x7fff_ffff;
                Frame::SynReply {
                    id,
                    headers: self.decompressor.read(&payload)?,
                    fin,
                }
            }
            3 => Frame::Reset {
                id: word()? & 0x7fff_ffff,
                status: word()?,
            },
            6 => Frame::Ping(word()?),
            7 => Frame::GoAway {
                last: word()? & 0x7fff_ffff,
            },
            8 => {
                let id = word()? & 0x7fff_ffff;
                Frame::Headers {
                    id,
                    headers: self.decompressor.read(&payload)?,
                    fin,
                }
            }
            _ => return Ok(None),
        }))
    }

    /// Appends a frame to `output`. Data longer than a frame may hold is split.
    pub fn encode(&mut self, frame: &Frame, output: &mut BytesMut) {
        match frame {
            Frame::SynStream { id, headers, fin } => {
                let block = self.compressor.write(headers);
                control(output, 1, *fin, 10 + block.len());
                output.put_u32(*id);
                output.put_u32(0);
                output.put_u16(0);
                output.put_slice(&block);
            }
            Frame::SynReply { id, headers, fin } => {
                self.with_headers(output, 2, *id, headers, *fin)
            }
            Frame::Headers { id, headers, fin } => self.with_headers(output, 8, *id, headers, *fin),
            Frame::Reset { id, status } => {
                control(output, 3, false, 8);
                output.put_u32(*id);
                output.put_u32(*status);
            }
            Frame::Ping(id) => {
                control(output, 6, false, 4);
                output.put_u32(*id);
            }
            Frame::GoAway { last } => {
                control(output, 7, false, 8);
                output.put_u32(*last);
                output.put_u32(0);
            }
            Frame::Data { id, data, fin } => {
                let mut rest = data.clone();
                loop {
                    let part = rest.split_to(rest.len().min(MAX_DATA_LENGTH));
                    let last = rest.is_empty();
                    output.put_u32(id & 0x7fff_ffff);
                    output.put_u32(u32::from(*fin && last) << 24 | part.len() as u32);
                    output.put_slice(&part);
                    if last {
                        break;
                    }
                }
            }
        }
    }

    fn with_headers(
        &mut self,
        output: &mut BytesMut,
        kind: u16,
        id: StreamId,
        headers: &Headers,
        fin: bool,
    ) {
        let block = self.compressor.write(headers);
        control(output, kind, fin, 4 + block.len());
        output.put_u32(id);
        output.put_slice(&block);
    }
}

fn control(output: &mut BytesMut, kind: u16, fin: bool, length: usize) {
    output.put_u16(0x8000 | VERSION);
    output.put_u16(kind);
    output.put_u32(u32::from(fin) << 24 | length as u32);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers() -> impl Strategy<Value = Headers> {
        proptest::collection::btree_map(
            "[a-z-]{1,12}",
            proptest::collection::vec("[ -~]{1,20}", 1..3),
            0..4,
        )
    }

    fn frame() -> impl Strategy<Value = Frame> {
        let id = 1..0x7fff_ffffu32;
        prop_oneof![
            (id.clone(), headers(), any::<bool>())
                .prop_map(|(id, headers, fin)| Frame::SynStream { id, headers, fin }),
            (id.clone(), headers(), any::<bool>()).prop_map(|(id, headers, fin)| Frame::SynReply {
                id,
                headers,
                fin
            }),
            (id.clone(), headers(), any::<bool>()).prop_map(|(id, headers, fin)| Frame::Headers {
                id,
                headers,
                fin
            }),
            (id.clone(), any::<u32>()).prop_map(|(id, status)| Frame::Reset { id, status }),
            any::<u32>().prop_map(Frame::Ping),
            id.clone().prop_map(|last| Frame::GoAway { last }),
            (
                id,
                proptest::collection::vec(any::<u8>(), 0..300),
                any::<bool>()
            )
                .prop_map(|(id, data, fin)| Frame::Data {
                    id,
                    data: data.into(),
                    fin
                }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_however_it_is_cut(frames in proptest::collection::vec(frame(), 1..12), cut in 1usize..40) {
            let (mut writer, mut reader) = (Codec::new(), Codec::new());
            let mut wire = BytesMut::new();
            frames.iter().for_each(|frame| writer.encode(frame, &mut wire));
            let (mut input, mut read) = (BytesMut::new(), Vec::new());
            for part in wire.chunks(cut) {
                input.extend_from_slice(part);
                while let Some(frame) = reader.decode(&mut input).unwrap() {
                    read.push(frame);
                }
            }
            prop_assert_eq!(read, frames);
        }

        #[test]
        fn noise_is_an_error_or_a_wait_never_a_crash(noise in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut input = BytesMut::from(noise.as_slice());
            let mut codec = Codec::new();
            while let Ok(Some(_)) = codec.decode(&mut input) {}
        }
    }

    #[test]
    fn long_data_is_split_and_only_the_last_part_ends_the_stream() {
        let mut codec = Codec::new();
        let mut wire = BytesMut::new();
        codec.encode(
            &Frame::Data {
                id: 1,
                data: vec![7; MAX_DATA_LENGTH + 5].into(),
                fin: true,
            },
            &mut wire,
        );
        let mut parts = Vec::new();
        while let Some(Frame::Data { data, fin, .. }) = codec.decode(&mut wire).unwrap() {
            parts.push((data.len(), fin));
        }
        assert_eq!(parts, [(MAX_DATA_LENGTH, false), (5, true)]);
    }

    #[test]
    fn hostile_frames_are_refused() {
        for (bytes, want) in [
            (vec![0x80, 2, 0, 1, 0, 0, 0, 0], Error::Version(2)),
            (
                vec![0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff],
                Error::TooLong(0xff_ffff),
            ),
            (
                vec![0, 0, 0, 1, 0, 0xff, 0xff, 0xff],
                Error::TooLong(0xff_ffff),
            ),
            (vec![0x80, 3, 0, 3, 0, 0, 0, 2, 0, 0], Error::Short(3)),
        ] {
            assert_eq!(
                Codec::new().decode(&mut BytesMut::from(bytes.as_slice())),
                Err(want)
            );
        }
    }

    #[test]
    fn a_header_block_that_blows_up_is_refused() {
        // Ten megabytes of one letter in a value compress to a few kilobytes.
        let mut wire = BytesMut::new();
        let bomb = Headers::from([("a".to_owned(), vec!["x".repeat(10_000_000)])]);
        Codec::new().encode(
            &Frame::SynReply {
                id: 1,
                headers: bomb,
                fin: false,
            },
            &mut wire,
        );
        assert!(matches!(
            Codec::new().decode(&mut wire),
            Err(Error::Headers(_))
        ));
    }
}
