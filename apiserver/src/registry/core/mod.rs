//! Strategies of the core group.

pub mod allocator;
pub mod claim;
pub mod event;
pub mod limit_range;
pub mod namespace;
pub mod node;
pub mod pod;
pub mod replication_controller;
pub mod service;
pub mod service_account;
pub mod volume;
