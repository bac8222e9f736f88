//! The kernel's connection tracking settings that upstream's proxy sets. Failing to set one does not stop the proxy: in a network namespace
//! of its own it may not.

use std::path::Path;
use std::time::Duration;

use crate::config::ConntrackSettings;

/// What is to be set: path below `/proc/sys` and value.
pub fn wanted(settings: &ConntrackSettings, cores: usize) -> Vec<(&'static str, u64)> {
    let mut all = Vec::new();
    let max = match settings.max_per_core {
        0 => 0,
        per_core => (u64::from(per_core) * cores as u64).max(u64::from(settings.min)),
    };
    let seconds = |duration: Duration| duration.as_secs();
    for (path, value) in [
        ("net/netfilter/nf_conntrack_max", max),
        (
            "net/netfilter/nf_conntrack_tcp_timeout_established",
            seconds(settings.tcp_established),
        ),
        (
            "net/netfilter/nf_conntrack_tcp_timeout_close_wait",
            seconds(settings.tcp_close_wait),
        ),
        (
            "net/netfilter/nf_conntrack_tcp_be_liberal",
            u64::from(settings.tcp_be_liberal),
        ),
        (
            "net/netfilter/nf_conntrack_udp_timeout",
            seconds(settings.udp),
        ),
        (
            "net/netfilter/nf_conntrack_udp_timeout_stream",
            seconds(settings.udp_stream),
        ),
    ] {
        if value > 0 {
            all.push((path, value));
        }
    }
    all
}

/// Sets what differs; what cannot be set is told in the log.
pub fn apply(settings: &ConntrackSettings) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    for (path, value) in wanted(settings, cores) {
        let file = Path::new("/proc/sys").join(path);
        let current = std::fs::read_to_string(&file)
            .ok()
            .and_then(|text| text.trim().parse::<u64>().ok());
        if current == Some(value) {
            continue;
        }
        if let Err(error) = std::fs::write(&file, value.to_string()) {
            tracing::warn!(setting = path, value, %error, "cannot set; going on without");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_larger_maximum_counts_and_zero_sets_nothing() {
        let none = ConntrackSettings {
            max_per_core: 0,
            min: 0,
            tcp_established: Duration::ZERO,
            tcp_close_wait: Duration::ZERO,
            tcp_be_liberal: false,
            udp: Duration::ZERO,
            udp_stream: Duration::ZERO,
        };
        assert_eq!(wanted(&none, 4), []);
        for (per_core, min, want) in [(32768, 131072, 131072), (65536, 131072, 262144)] {
            let settings = ConntrackSettings {
                max_per_core: per_core,
                min,
                ..none.clone()
            };
            assert_eq!(
                wanted(&settings, 4),
                [("net/netfilter/nf_conntrack_max", want)]
            );
        }
    }
}
