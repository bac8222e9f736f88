//! Pods: where they come from, what is to be done about them, and the workers that do it.

pub mod admission;
pub mod gc;
pub mod manager;
pub mod observed;
pub mod plan;
pub mod pleg;
pub mod resize;
pub mod source;
pub mod sync;
pub mod worker;
