//! The status of pods: how it is computed, and how it reaches the API.

pub mod conditions;
pub mod generate;
pub mod manager;
#[cfg(test)]
mod tests;

pub use generate::{Inputs, StartFailures, generate};
pub use manager::StatusManager;
