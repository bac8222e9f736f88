//! Netlink messages and attributes as bytes: lengths in host order, netfilter's integers in network order, all padded to four bytes.

/// An attribute that holds attributes (`NLA_F_NESTED`).
const NESTED: u16 = 1 << 15;
/// The part of an attribute's type that is its number.
const TYPE_MASK: u16 = 0x3fff;
/// The length of `nlmsghdr`.
pub const HEADER: usize = 16;
/// The length of `nlmsghdr` and `nfgenmsg` together.
pub const NF_HEADER: usize = HEADER + 4;

/// Messages under construction.
#[derive(Debug, Default, Clone)]
pub struct Buffer {
    bytes: Vec<u8>,
}

/// Where an open message or attribute begins.
#[derive(Debug)]
#[must_use]
pub struct Open(usize);

impl Buffer {
    /// The bytes so far.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How many bytes there are so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Begins a netfilter message (`nlmsghdr` and `nfgenmsg`).
    pub fn begin_message(
        &mut self,
        kind: u16,
        flags: u16,
        sequence: u32,
        family: u8,
        resource: u16,
    ) -> Open {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.bytes.push(family);
        self.bytes.push(0);
        self.bytes.extend_from_slice(&resource.to_be_bytes());
        Open(at)
    }

    /// Ends a message.
    pub fn end_message(&mut self, open: Open) {
        let len = (self.bytes.len() - open.0) as u32;
        self.bytes[open.0..open.0 + 4].copy_from_slice(&len.to_ne_bytes());
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// Adds an attribute.
    pub fn bytes_attr(&mut self, kind: u16, value: &[u8]) {
        self.bytes
            .extend_from_slice(&((value.len() + 4) as u16).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
    }

    /// Adds a string, with its final zero.
    pub fn str_attr(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes_attr(kind, &bytes);
    }

    /// Adds a 32-bit number.
    pub fn u32_attr(&mut self, kind: u16, value: u32) {
        self.bytes_attr(kind, &value.to_be_bytes());
    }

    /// Adds a 64-bit number.
    pub fn u64_attr(&mut self, kind: u16, value: u64) {
        self.bytes_attr(kind, &value.to_be_bytes());
    }

    /// Adds an attribute that holds what `fill` adds.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Buffer)) {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&0u16.to_ne_bytes());
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        fill(self);
        let len = (self.bytes.len() - at) as u16;
        self.bytes[at..at + 2].copy_from_slice(&len.to_ne_bytes());
    }
}

/// The attributes in `bytes` as (number, value); ends at the first malformed one.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & TYPE_MASK;
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The value of the first attribute with this number.
pub fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes)
        .find(|(k, _)| *k == kind)
        .map(|(_, value)| value)
}

/// One message of a reply.
#[derive(Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_flags`.
    pub flags: u16,
    /// `nlmsg_seq`.
    pub sequence: u32,
    /// What follows the header.
    pub payload: &'a [u8],
}

/// The messages in a datagram; ends at the first malformed one.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let len = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
        let message = Message {
            kind: u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?),
            flags: u16::from_ne_bytes(bytes.get(6..8)?.try_into().ok()?),
            sequence: u32::from_ne_bytes(bytes.get(8..12)?.try_into().ok()?),
            payload: bytes.get(HEADER..len)?,
        };
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let mut buffer = Buffer::default();
        let open = buffer.begin_message(7, 1, 42, 2, 10);
        buffer.str_attr(1, "abc");
        buffer.nest(2, |b| b.u32_attr(3, 5));
        buffer.end_message(open);
        let all: Vec<_> = messages(buffer.bytes()).collect();
        assert_eq!((all.len(), all[0].kind, all[0].sequence), (1, 7, 42));
        let body = &all[0].payload[4..];
        assert_eq!(attribute(body, 1), Some(&b"abc\0"[..]));
        assert_eq!(
            attribute(attribute(body, 2).unwrap(), 3),
            Some(&[0, 0, 0, 5][..])
        );
    }

    #[test]
    fn malformed_input_ends_quietly() {
        for bytes in [
            &[][..],
            &[1],
            &[255, 255, 1, 0],
            &[3, 0, 1, 0],
            &[0, 0, 1, 0, 9, 9],
        ] {
            assert_eq!(attributes(bytes).count(), 0, "{bytes:?}");
        }
        for bytes in [
            &[0u8; 3][..],
            &[0; 16],
            &[255; 16],
            &[15, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ] {
            assert_eq!(messages(bytes).count(), 0, "{bytes:?}");
        }
    }
}
