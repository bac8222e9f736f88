//! Proof from outside: end-to-end tests on a real cluster, the runner for upstream's e2e suite, benchmarks.
//! Uses the public API only, by way of programs that a user has too.

pub mod client;
pub mod e2e;
pub mod testbed;
pub mod vm;
