//! Strategies of the core group.

pub mod allocator;
pub mod event;
pub mod namespace;
pub mod pod;
pub mod service;
