//! The API server: one generic path from a request to the store and back, for every resource.
//!
//! `serve` (TLS, h1/h2) -> `filters` (request info, authn, authz) -> `verbs` -> codec -> defaulting ->
//! mutating admission -> registry strategy -> validating admission -> store -> cache -> watchers.

pub mod admission;
pub mod aggregation;
pub mod authn;
pub mod authz;
pub mod body;
pub mod bootstrap;
pub mod cache;
pub mod cel;
pub mod codec;
pub mod config;
pub mod discovery;
pub mod extensions;
pub mod filters;
pub mod flow_control;
pub mod health;
pub mod loopback;
pub mod metrics;
pub mod objects;
pub mod openapi;
pub mod pki;
pub mod reader;
pub mod registry;
pub mod request;
pub mod routes;
pub mod serve;
pub mod server;
pub mod streaming;
pub mod subresources;
pub mod table;
#[cfg(test)]
mod testing;
pub mod verbs;

pub use config::Config;
pub use server::ApiServer;
