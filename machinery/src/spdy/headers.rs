//! Header blocks: name and value pairs, compressed with one zlib stream per direction and connection.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};

use super::Error;
use super::dictionary::dictionary;

/// Header names (lower case) and their values.
pub type Headers = BTreeMap<String, Vec<String>>;

/// A header block larger than this after decompression is an attack.
const MAX_BLOCK: usize = 1024 * 1024;

pub(super) struct Compressor(Compress);

impl Compressor {
    pub(super) fn new() -> Self {
        let mut zlib = Compress::new(Compression::default(), true);
        zlib.set_dictionary(&dictionary())
            .expect("a fresh zlib stream takes a dictionary");
        Compressor(zlib)
    }

    /// The compressed block; flushed, so that the peer can read it without what comes later.
    pub(super) fn write(&mut self, headers: &Headers) -> Vec<u8> {
        let mut plain = Vec::new();
        plain.put_u32(headers.len() as u32);
        for (name, values) in headers {
            put_text(&mut plain, &name.to_ascii_lowercase());
            put_text(&mut plain, &values.join("\0"));
        }
        let mut block = Vec::new();
        let start = self.0.total_in();
        loop {
            block.reserve(plain.len() / 2 + 64);
            let rest = &plain[(self.0.total_in() - start) as usize..];
            self.0
                .compress_vec(rest, &mut block, FlushCompress::Sync)
                .expect("compressing in memory does not fail");
            // Room left over means that everything was taken and flushed.
            if block.len() < block.capacity() {
                return block;
            }
        }
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.put_u32(text.len() as u32);
    out.put_slice(text.as_bytes());
}

pub(super) struct Decompressor(Decompress);

impl Decompressor {
    pub(super) fn new() -> Self {
        Decompressor(Decompress::new(true))
    }

    pub(super) fn read(&mut self, block: &[u8]) -> Result<Headers, Error> {
        let plain = self.inflate(block)?;
        parse(&plain)
    }

    fn inflate(&mut self, block: &[u8]) -> Result<Vec<u8>, Error> {
        let mut plain = Vec::new();
        let start = self.0.total_in();
        loop {
            if plain.len() > MAX_BLOCK {
                return Err(Error::Headers("too large"));
            }
            plain.reserve(4096);
            let rest = &block[(self.0.total_in() - start) as usize..];
            let before = plain.len();
            match self
                .0
                .decompress_vec(rest, &mut plain, FlushDecompress::Sync)
            {
                Ok(_) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0
                        .set_dictionary(&dictionary())
                        .map_err(|_| Error::Headers("another dictionary"))?;
                    continue;
                }
                Err(_) => return Err(Error::Headers("not zlib")),
            }
            let all_taken = (self.0.total_in() - start) as usize == block.len();
            if all_taken && plain.len() < plain.capacity() {
                return Ok(plain);
            }
            if !all_taken && plain.len() == before {
                return Err(Error::Headers("data after the end"));
            }
        }
    }
}

fn parse(mut plain: &[u8]) -> Result<Headers, Error> {
    let mut headers = Headers::new();
    let count = plain
        .try_get_u32()
        .map_err(|_| Error::Headers("cut short"))?;
    for _ in 0..count {
        let name = take_text(&mut plain)?;
        let value = take_text(&mut plain)?;
        if headers
            .insert(name, value.split('\0').map(str::to_owned).collect())
            .is_some()
        {
            return Err(Error::Headers("a name stands twice"));
        }
    }
    Ok(headers)
}

fn take_text(plain: &mut &[u8]) -> Result<String, Error> {
    let length = plain
        .try_get_u32()
        .map_err(|_| Error::Headers("cut short"))? as usize;
    let (text, rest) = plain
        .split_at_checked(length)
        .ok_or(Error::Headers("cut short"))?;
    *plain = rest;
    String::from_utf8(text.to_vec()).map_err(|_| Error::Headers("not text"))
}
