//! Containers: how they are described to the runtime, started and ended.

pub mod config;
pub mod env;
pub mod expand;
pub mod hooks;
pub mod kill;
pub mod labels;
pub mod resize;
pub mod security;
pub mod start;
