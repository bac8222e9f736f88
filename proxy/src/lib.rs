//! The service proxy: makes services' addresses lead to their endpoints, by nftables, written over netlink.
//!
//! [`model`] takes out of the API objects what matters, [`topology`] chooses endpoints, [`rules`] makes rules of both (a
//! pure function), [`shadow`] knows what the kernel holds and finds the difference, [`nft`] encodes and sends it, and
//! [`proxier`] ties these together.
//!
//! Invariants: only [`nft::socket`] talks to the kernel's netfilter; the kernel sees a change whole or not at all; the cost of
//! a change does not grow with the number of services.

pub mod conntrack;
pub mod model;
pub mod nft;
pub mod proxier;
pub mod rules;
pub mod shadow;
pub mod topology;
