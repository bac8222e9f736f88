//! What a pod's containers see of names and hosts: hostname, hosts file and resolver settings.

pub mod dns;
pub mod hosts;
