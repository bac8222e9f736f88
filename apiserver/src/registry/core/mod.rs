//! Strategies of the core group.

pub mod allocator;
pub mod event;
pub mod more;
pub mod namespace;
pub mod pod;
pub mod pod_defaults;
pub mod service;
