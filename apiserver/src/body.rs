//! Body types: what the server takes and gives, over a socket and within the process.

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;

/// Any error.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A request body from anywhere.
pub type RequestBody = UnsyncBoxBody<Bytes, BoxError>;

/// A response body.
pub type ResponseBody = UnsyncBoxBody<Bytes, BoxError>;

/// A response.
pub type Response = http::Response<ResponseBody>;

/// A body of known bytes.
pub fn full(bytes: impl Into<Bytes>) -> ResponseBody {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// A body that is sent as it comes.
pub fn streamed(
    chunks: impl futures::Stream<Item = Result<Bytes, BoxError>> + Send + 'static,
) -> ResponseBody {
    use futures::TryStreamExt;
    StreamBody::new(chunks.map_ok(Frame::data)).boxed_unsync()
}

/// Erases the type of a request body.
pub fn request_body<B>(body: B) -> RequestBody
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    body.map_err(Into::into).boxed_unsync()
}
