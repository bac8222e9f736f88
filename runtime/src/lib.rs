//! What every API client of ours shares. The components (scheduler, controllers, kubelet, proxy, DNS) meet only at the
//! API, and this crate is how they reach it:
//!
//! - [`client`]: a `kube::Client` from a kubeconfig file or over an in-process service, with a user agent;
//! - [`informer`]: one list and watch per resource and process, a store of `Arc`'d objects, indexes and handlers;
//! - [`workqueue`]: keys to work on, never one key twice at once, delayed and rate limited;
//! - [`controller`]: workers on a queue, with panics caught and retries counted;
//! - [`events`]: an event recorder that folds repeats together;
//! - [`leader_election`]: one active process among many, by a Lease;
//! - [`metrics`] and [`serving`]: what `/metrics`, `/healthz`, `/livez` and `/readyz` answer.
//!
//! Nothing here opens storage or knows of a particular resource.

pub mod backoff;
pub mod client;
pub mod controller;
pub mod events;
pub mod informer;
pub mod key;
pub mod leader_election;
pub mod metrics;
pub mod serving;
pub mod store;
pub mod workqueue;
mod zero_times;

pub use key::ObjectKey;
