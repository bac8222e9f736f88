//! The preset zlib dictionary of SPDY/3 (draft 3.1, section 2.6.10.1).

/// Words that stand in the dictionary behind their length.
const COUNTED: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age allow authorization \
    cache-control connection content-base content-encoding content-language content-length content-location content-md5 content-range content-type date \
    etag expect expires from host if-match if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma \
    proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade user-agent vary via warning \
    www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie keep-alive origin";

/// Text that follows without lengths.
const PLAIN: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
    203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not Found\
    500 Internal Server Error501 Not Implemented503 Service Unavailable\
    Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT\
    chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,public\
    privatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

/// The dictionary's bytes.
pub(super) fn dictionary() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1423);
    for word in COUNTED.split_whitespace() {
        bytes.extend((word.len() as u32).to_be_bytes());
        // The one entry with a space in it.
        bytes.extend(word.replace('_', " ").bytes());
    }
    bytes.extend(PLAIN.bytes());
    bytes
}

#[cfg(test)]
mod tests {
    /// Length and Adler-32 checksum are what a peer's zlib stream names the dictionary by.
    #[test]
    fn the_dictionary_is_the_one_that_peers_use() {
        let bytes = super::dictionary();
        assert_eq!(bytes.len(), 1423);
        let (a, b) = bytes.iter().fold((1u32, 0u32), |(a, b), byte| {
            let a = (a + u32::from(*byte)) % 65521;
            (a, (b + a) % 65521)
        });
        assert_eq!(b << 16 | a, 0xe3c6_a7c2);
    }
}
