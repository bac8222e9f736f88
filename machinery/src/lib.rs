//! API machinery without I/O: the type table, object values, codecs, patches, selectors, quantities,
//! `Status` errors and the resource catalog. Knows nothing of HTTP, storage or tokio.

pub mod apply;
pub mod catalog;
pub mod clock;
pub mod codec;
pub mod int_or_string;
pub mod jsonpath;
pub mod meta;
pub mod patch;
pub mod quantity;
pub mod schema;
pub mod selector;
pub mod spdy;
pub mod status;
pub mod structural;
pub mod text;
pub mod time;
pub mod value;
