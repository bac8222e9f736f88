//! `keelson cluster`: clusters of several nodes on one machine, without a container engine around them.
//!
//! A node is a "machine": a PID 1 of ours in network, mount, UTS, IPC and process namespaces of its own, on one bridge with
//! the others. In it runs what runs on a real machine: on the first what `keelson up` starts, on the others `keelson agent`.
//! The namespaces exist by PID 1 alone, so that its end is the machine's end, and nothing of it is left in the kernel but its
//! cgroups and its end of a link.

pub mod commands;
pub mod links;
pub mod machine;
pub mod spec;
