//! What one machine contributes to a cluster: containerd, images, the pod network.

pub mod agent;
pub mod cgroup;
pub mod containerd;
pub mod image;
pub mod join;
pub mod network;
pub mod renewal;
pub mod routes;
pub mod runtime;
pub mod token;
