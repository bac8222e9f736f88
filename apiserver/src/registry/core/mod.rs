//! Strategies of the core group.

pub mod namespace;
pub mod pod;
pub mod service;
