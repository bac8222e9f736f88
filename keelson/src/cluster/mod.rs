//! The life of a cluster on this machine: `up`, `down`, `status`, and what they leave on disk.

pub mod addons;
pub mod control_plane;
pub mod down;
pub mod joining;
pub mod layout;
pub mod process;
pub mod run;
pub mod state;
pub mod status;
pub mod steps;
pub mod up;

/// Where a cluster lives unless told otherwise.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/keelson";
/// The DNS domain of Services and Pods.
pub const CLUSTER_DOMAIN: &str = "cluster.local";
