//! Content negotiation and bodies: from headers to a form, from bytes to objects and back.

pub mod body;
mod definition;
pub mod negotiate;
pub mod storage;

pub use self::negotiate::{Convert, Format, Output};
