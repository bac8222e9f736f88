//! The scheduler: finds a node for each pod that has none, and binds it there.
//!
//! [`scheduler::Scheduler`] is the whole of it as a state machine without I/O: pods, nodes and the rest are fed to it, and
//! it returns what is to be written. [`run`] feeds it from the API and does the writing. Within, [`queue`] decides whose turn
//! it is, [`algorithm`] runs the [`framework`] with the [`plugins`] over a [`snapshot`], and [`cache`] keeps that snapshot.
//!
//! Invariants: it writes only bindings, pod status, events, evictions for preemption and promises of volumes; a decision costs the
//! same however many pods are placed already.

pub mod algorithm;
pub mod cache;
pub mod event;
pub mod feed;
pub mod framework;
pub mod labels;
pub mod metrics;
pub mod node;
pub mod nominator;
pub mod plugins;
pub mod pod;
pub mod queue;
pub mod resources;
pub mod run;
pub mod scheduler;
pub mod snapshot;
pub mod storage;
pub mod writer;

pub use run::{Config, run};
