//! The API server: one generic path from a request to the store and back, for every resource.
//!
//! `serve` (TLS, h1/h2) -> `filters` (request info, authn, authz) -> `verbs` -> codec -> defaulting ->
//! mutating admission -> registry strategy -> validating admission -> store -> cache -> watchers.

pub mod admission;
pub mod authn;
pub mod authz;
pub mod bootstrap;
pub mod cache;
pub mod objects;
pub mod pki;
pub mod reader;
pub mod request;
pub mod table;
#[cfg(test)]
mod testing;
