//! The service proxy: makes services' addresses lead to their endpoints, by nftables, written over netlink.
//!
//! [`model`] takes out of the API objects what matters, [`topology`] chooses endpoints, [`rules`] makes rules of both (a
//! pure function), [`shadow`] knows what the kernel holds and finds the difference, [`nft`] encodes and sends it, and
//! [`proxier`] ties these together.
//!
//! Invariants: only [`nft::socket`] talks to the kernel's netfilter; the kernel sees a change whole or not at all; the cost of
//! a change does not grow with the number of services.

pub mod config;
pub mod conntrack;
pub mod flags;
pub mod health;
pub mod metrics;
pub mod model;
pub mod nft;
pub mod proxier;
pub mod rules;
pub mod run;
pub mod shadow;
pub mod sysctl;
pub mod topology;

pub use config::{KubeProxyConfiguration, Settings};
pub use proxier::cleanup;
pub use run::{Config, run};
