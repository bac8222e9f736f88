//! The kubelet's own server.

pub mod logs;
