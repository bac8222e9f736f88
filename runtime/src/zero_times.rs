//! Times that are not set, where the generated types demand one.
//!
//! Go writes an unset `metav1.Time` that has no `omitempty` as `null`, and API servers keep and serve it: a condition
//! without `lastTransitionTime`, an event series without `lastObservedTime`. The types of `k8s-openapi` refuse both, and
//! one such object would end every list and watch of its kind. So answers are read with Go's zero time in its place.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::HeaderValue;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http_body::{Body, Frame};

/// The fields that are required and may be unset, as servers write them: without blanks.
const UNSET: [&[u8]; 2] = [b"\"lastTransitionTime\":null", b"\"lastObservedTime\":null"];
const NULL: &[u8] = b":null";
/// Go's zero time, which it reads back as unset.
const ZERO: &[u8] = b":\"0001-01-01T00:00:00Z\"";

/// A response whose JSON holds the zero time for each unset time of the fields above; anything else is as it came.
pub(crate) fn filled_in<B>(response: http::Response<B>) -> http::Response<ZeroTimes<B>> {
    let is_json = |kind: &HeaderValue| kind.as_bytes().starts_with(b"application/json");
    let active = response.headers().get(CONTENT_TYPE).is_some_and(is_json);
    let (mut parts, body) = response.into_parts();
    if active {
        parts.headers.remove(CONTENT_LENGTH);
    }
    let body = ZeroTimes {
        inner: Box::pin(body),
        active,
        held: Bytes::new(),
    };
    http::Response::from_parts(parts, body)
}

/// See [`filled_in`]. Frames are passed on as they come; only an end that may be the beginning of a match is held back.
pub(crate) struct ZeroTimes<B> {
    inner: Pin<Box<B>>,
    active: bool,
    held: Bytes,
}

impl<B: Body<Data = Bytes>> Body for ZeroTimes<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        loop {
            let frame = ready!(self.inner.as_mut().poll_frame(cx));
            if !self.active {
                return Poll::Ready(frame);
            }
            let data = match frame {
                None if self.held.is_empty() => return Poll::Ready(None),
                None => {
                    let rest = std::mem::take(&mut self.held);
                    return Poll::Ready(Some(Ok(Frame::data(rest))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => data,
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
            };
            let (out, held) = fill_in(std::mem::take(&mut self.held), data);
            self.held = held;
            if !out.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(out))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_empty() && self.inner.is_end_stream()
    }
}

/// What can be passed on of `held` and `data`, and what must wait for more.
fn fill_in(held: Bytes, data: Bytes) -> (Bytes, Bytes) {
    let mut data = if held.is_empty() {
        data
    } else {
        let mut joined = BytesMut::with_capacity(held.len() + data.len());
        joined.extend_from_slice(&held);
        joined.extend_from_slice(&data);
        joined.freeze()
    };
    let partial = |needle: &[u8]| {
        (1..needle.len())
            .rev()
            .find(|len| data.ends_with(&needle[..*len]))
    };
    let keep = UNSET.iter().filter_map(|n| partial(n)).max().unwrap_or(0);
    let held = data.split_off(data.len() - keep);
    let mut out = BytesMut::new();
    let mut done = 0;
    for at in 0..data.len().saturating_sub(NULL.len() - 1) {
        if data[at] != b':' || !data[at..].starts_with(NULL) {
            continue;
        }
        let end = at + NULL.len();
        if UNSET.iter().any(|needle| data[..end].ends_with(needle)) {
            out.extend_from_slice(&data[done..at]);
            out.extend_from_slice(ZERO);
            done = end;
        }
    }
    if done == 0 {
        return (data, held);
    }
    out.extend_from_slice(&data[done..]);
    (out.freeze(), held)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt, StreamBody};

    /// Reads `text`, cut into frames of `size` bytes.
    fn read(kind: &'static str, text: &str, size: usize) -> String {
        let frames: Vec<Result<_, std::convert::Infallible>> = text
            .as_bytes()
            .chunks(size)
            .map(|part| Ok(Frame::data(Bytes::copy_from_slice(part))))
            .collect();
        let mut response = http::Response::new(StreamBody::new(tokio_stream::iter(frames)));
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        let read = filled_in(response).into_body().collect();
        let bytes = futures::executor::block_on(read).unwrap().to_bytes();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[test]
    fn unset_times_are_read_as_the_zero_time() {
        const ZERO: &str = r#""0001-01-01T00:00:00Z""#;
        for (text, want) in [
            (
                r#"{"a":[{"lastTransitionTime":null,"x":null},{"lastTransitionTime":null}]}"#,
                format!(
                    r#"{{"a":[{{"lastTransitionTime":{ZERO},"x":null}},{{"lastTransitionTime":{ZERO}}}]}}"#
                ),
            ),
            (
                r#"{"series":{"lastObservedTime":null}}"#,
                format!(r#"{{"series":{{"lastObservedTime":{ZERO}}}}}"#),
            ),
            (
                r#"{"deletionTimestamp":null}"#,
                r#"{"deletionTimestamp":null}"#.into(),
            ),
            // The same inside of a string.
            (
                r#"{"a":"{\"lastTransitionTime\":null}"}"#,
                r#"{"a":"{\"lastTransitionTime\":null}"}"#.into(),
            ),
            // A body that ends within.
            (
                r#"{"lastTransitionTime":nul"#,
                r#"{"lastTransitionTime":nul"#.into(),
            ),
        ] {
            for size in [1, 2, 7, 1000] {
                assert_eq!(
                    read("application/json", text, size),
                    want,
                    "frames of {size}"
                );
            }
            assert_eq!(read("text/plain", text, 7), text);
        }
    }
}
