//! Content negotiation and bodies: from headers to a form, from bytes to objects and back.

pub mod body;
pub mod negotiate;

pub use self::negotiate::{Convert, Format, Output};
