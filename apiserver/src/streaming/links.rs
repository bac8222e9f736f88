//! Links of pages behind a proxy: those that lead back to the page's own host must go through the proxy again.
//!
//! Upstream: `k8s.io/apimachinery/pkg/util/proxy.Transport`. Values are changed in place; the rest of a page stays as it
//! came, byte for byte.

use std::io::{Read, Write};

use bytes::{Bytes, BytesMut};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use futures::{StreamExt, stream};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use http_body_util::BodyExt;

use crate::body::{BoxError, Response, ResponseBody, full, streamed};

/// Larger pages are passed on as they are: they would have to be held in memory whole.
const MOST: usize = 8 * 1024 * 1024;

/// Who may read an answer is this server's to say, not the backend's.
const CORS: [HeaderName; 4] = [
    header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
    header::ACCESS_CONTROL_ALLOW_HEADERS,
    header::ACCESS_CONTROL_ALLOW_METHODS,
    header::ACCESS_CONTROL_ALLOW_ORIGIN,
];

/// Elements and those of their attributes that hold a URL.
const ATTRIBUTES: &[(&str, &[&str])] = &[
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["src", "usemap", "formaction"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("video", &["poster", "src"]),
];

/// Elements whose content is text, whatever it looks like.
const RAW_TEXT: [&str; 4] = ["script", "style", "textarea", "title"];

/// Where a page comes from and how it is reached.
#[derive(Clone, Debug)]
pub struct Way {
    /// The path of the proxy, `/api/v1/namespaces/NS/pods/NAME/proxy`.
    pub prefix: String,
    /// Host and port of the backend.
    pub backend: String,
    /// The host that the client asked for.
    pub asked: String,
}

impl Way {
    /// The URL that leads to `url` through the proxy; none when it can stay.
    fn through(&self, url: &str) -> Option<String> {
        let (scheme, rest) = match url.find("://") {
            Some(end) if url[..end].bytes().all(|b| b.is_ascii_alphanumeric()) => {
                (&url[..end + 1], &url[end + 1..])
            }
            _ => ("", url),
        };
        let (host, path) = match rest.strip_prefix("//") {
            Some(rest) => {
                let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
                (&rest[..end], &rest[end..])
            }
            None => ("", rest),
        };
        let foreign = !host.is_empty() && host != self.backend && host != self.asked;
        if foreign || !path.starts_with('/') {
            return None;
        }
        // The client's own host leads here already.
        let origin = if !host.is_empty() && host == self.asked {
            format!("{scheme}//{host}")
        } else {
            String::new()
        };
        let prefix = if path.starts_with(&self.prefix) {
            ""
        } else {
            self.prefix.as_str()
        };
        let new = format!("{origin}{prefix}{path}");
        (new != url).then_some(new)
    }
}

/// The answer with its links and headers as a client of the proxy needs them.
///
/// # Errors
/// When the page breaks off.
pub async fn rewrite(response: Response, way: &Way) -> Result<Response, BoxError> {
    let (mut parts, body) = response.into_parts();
    for name in &CORS {
        parts.headers.remove(name);
    }
    let location = parts.headers.get(header::LOCATION);
    if let Some(location) = location.and_then(|v| v.to_str().ok()) {
        if let Some(new) = way.through(location)
            && let Ok(new) = HeaderValue::from_str(&new)
        {
            parts.headers.insert(header::LOCATION, new);
        }
        return Ok(Response::from_parts(parts, body));
    }
    let Some(gzip) = page(&parts.headers) else {
        return Ok(Response::from_parts(parts, body));
    };
    let (page, rest) = read(body).await?;
    let body = match rest {
        None => {
            let page = if gzip {
                gzipped(&page, way)?
            } else {
                links(&page, way)
            };
            parts.headers.remove(header::CONTENT_LENGTH);
            full(page)
        }
        Some(rest) => {
            let first = stream::iter([Ok(Bytes::from(page))]);
            streamed(first.chain(rest.into_data_stream()))
        }
    };
    Ok(Response::from_parts(parts, body))
}

/// Whether an answer is a page whose links can be read, and then whether it is compressed.
fn page(headers: &HeaderMap) -> Option<bool> {
    let text = |name| {
        headers
            .get(name)
            .and_then(|v: &HeaderValue| v.to_str().ok())
    };
    let kind = text(header::CONTENT_TYPE)?.split(';').next()?.trim();
    let length = text(header::CONTENT_LENGTH).and_then(|v| v.parse::<usize>().ok());
    if kind != "text/html" || length.is_some_and(|length| length > MOST) {
        return None;
    }
    match text(header::CONTENT_ENCODING).unwrap_or_default() {
        "" => Some(false),
        "gzip" => Some(true),
        _ => None,
    }
}

/// The whole page, or its beginning and the rest of it when it is too large.
async fn read(mut body: ResponseBody) -> Result<(Vec<u8>, Option<ResponseBody>), BoxError> {
    let mut page = BytesMut::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            page.extend_from_slice(&data);
        }
        if page.len() > MOST {
            return Ok((page.to_vec(), Some(body)));
        }
    }
    Ok((page.to_vec(), None))
}

fn gzipped(page: &[u8], way: &Way) -> Result<Vec<u8>, BoxError> {
    let mut plain = Vec::new();
    let most = MOST as u64 + 1;
    GzDecoder::new(page).take(most).read_to_end(&mut plain)?;
    if plain.len() > MOST {
        return Ok(page.to_vec());
    }
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(&links(&plain, way))?;
    Ok(encoder.finish()?)
}

/// The page with the URLs of its tags led through the proxy.
fn links(page: &[u8], way: &Way) -> Vec<u8> {
    let mut out = Vec::with_capacity(page.len() + 256);
    let mut done = 0;
    let mut at = 0;
    while let Some(open) = find(page, at, b"<") {
        let next = page.get(open + 1).copied().unwrap_or_default();
        if page[open..].starts_with(b"<!--") {
            at = find(page, open + 4, b"-->").map_or(page.len(), |end| end + 3);
            continue;
        }
        if !next.is_ascii_alphabetic() {
            at = open + 1;
            continue;
        }
        let tag = Tag::read(page, open + 1);
        for (name, from, to) in &tag.attributes {
            let Ok(value) = std::str::from_utf8(&page[*from..*to]) else {
                continue;
            };
            if holds_url(&tag.name, name)
                && let Some(new) = way.through(value)
            {
                out.extend_from_slice(&page[done..*from]);
                out.extend_from_slice(new.as_bytes());
                done = *to;
            }
        }
        at = tag.end;
        if RAW_TEXT.contains(&tag.name.as_str()) {
            at = end_of_raw_text(page, at, &tag.name);
        }
    }
    out.extend_from_slice(&page[done..]);
    out
}

fn holds_url(tag: &str, attribute: &str) -> bool {
    let mut rows = ATTRIBUTES.iter().filter(|(name, _)| *name == tag);
    rows.any(|(_, attributes)| attributes.contains(&attribute))
}

fn find(page: &[u8], from: usize, what: &[u8]) -> Option<usize> {
    let rest = page.get(from..)?;
    rest.windows(what.len())
        .position(|w| w == what)
        .map(|at| from + at)
}

fn end_of_raw_text(page: &[u8], from: usize, name: &str) -> usize {
    let mut at = from;
    while let Some(close) = find(page, at, b"</") {
        let rest = &page[close + 2..];
        if rest.len() >= name.len() && rest[..name.len()].eq_ignore_ascii_case(name.as_bytes()) {
            return close;
        }
        at = close + 2;
    }
    page.len()
}

/// A start tag: its name, its attributes with where their values stand, and where it ends.
struct Tag {
    name: String,
    attributes: Vec<(String, usize, usize)>,
    end: usize,
}

impl Tag {
    fn read(page: &[u8], from: usize) -> Self {
        let lower =
            |from: usize, to: usize| String::from_utf8_lossy(&page[from..to]).to_ascii_lowercase();
        let skip = |from: usize, what: fn(u8) -> bool| {
            let rest = page[from..].iter();
            from + rest.take_while(|b| what(**b)).count()
        };
        let blank: fn(u8) -> bool = |b| b.is_ascii_whitespace() || b == b'/';
        let word: fn(u8) -> bool = |b| !b.is_ascii_whitespace() && !matches!(b, b'/' | b'>' | b'=');
        let mut at = skip(from, word);
        let mut tag = Tag {
            name: lower(from, at),
            attributes: Vec::new(),
            end: page.len(),
        };
        loop {
            at = skip(at, blank);
            match page.get(at) {
                None => return tag,
                Some(b'>') => {
                    tag.end = at + 1;
                    return tag;
                }
                // A stray sign is a part of the name that follows.
                Some(_) => {}
            }
            let start = at;
            at = skip(at + 1, word);
            let name = lower(start, at);
            let sign = skip(at, |b| b.is_ascii_whitespace());
            if page.get(sign) != Some(&b'=') {
                continue;
            }
            at = skip(sign + 1, |b| b.is_ascii_whitespace());
            let (start, end, after) = match page.get(at) {
                Some(quote @ (b'"' | b'\'')) => {
                    let end = find(page, at + 1, std::slice::from_ref(quote));
                    let end = end.unwrap_or(page.len());
                    (at + 1, end, (end + 1).min(page.len()))
                }
                _ => {
                    let end = skip(at, |b| !b.is_ascii_whitespace() && b != b'>');
                    (at, end, end)
                }
            };
            tag.attributes.push((name, start, end));
            at = after;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way() -> Way {
        Way {
            prefix: "/api/v1/namespaces/d/pods/p/proxy".into(),
            backend: "10.0.0.1:80".into(),
            asked: "cluster:6443".into(),
        }
    }

    #[test]
    fn urls_of_the_pages_host_lead_through_the_proxy() {
        const P: &str = "/api/v1/namespaces/d/pods/p/proxy";
        for (url, want) in [
            ("/x?y=/z#a", Some(format!("{P}/x?y=/z#a"))),
            ("x/y", None),
            ("../x", None),
            ("#a", None),
            ("", None),
            ("http://10.0.0.1:80/x", Some(format!("{P}/x"))),
            ("//10.0.0.1:80/x", Some(format!("{P}/x"))),
            ("http://10.0.0.1:80", None),
            ("http://elsewhere/x", None),
            (
                "https://cluster:6443/x",
                Some(format!("https://cluster:6443{P}/x")),
            ),
            ("mailto:a@b", None),
            (&format!("{P}/x"), None),
        ] {
            assert_eq!(way().through(url), want, "{url}");
        }
    }

    #[test]
    fn pages_keep_all_but_their_links() {
        const P: &str = "/api/v1/namespaces/d/pods/p/proxy";
        for (page, want) in [
            (
                r#"<a href="/rewriteme">test</a>"#,
                format!(r#"<a href="{P}/rewriteme">test</a>"#),
            ),
            (
                "<IMG alt='/a' SRC='/b'/><p href=/c>",
                format!("<IMG alt='/a' SRC='{P}/b'/><p href=/c>"),
            ),
            (
                r#"<script src=/a>"<a href='/b'>"</script><a href=/c>"#,
                format!(r#"<script src={P}/a>"<a href='/b'>"</script><a href={P}/c>"#),
            ),
            (
                r#"<!-- <a href="/a"> --> 1 < 2 <a href="/b"#,
                format!(r#"<!-- <a href="/a"> --> 1 < 2 <a href="{P}/b"#),
            ),
            ("<a <a href", "<a <a href".into()),
            ("<a = = >", "<a = = >".into()),
        ] {
            let new = links(page.as_bytes(), &way());
            assert_eq!(String::from_utf8(new).unwrap(), want);
        }
    }
}
