//! What the machine is and has.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::Path;

/// Facts that do not change while the kubelet runs.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// Processors that are online.
    pub cores: i64,
    /// Bytes of memory.
    pub memory: i64,
    /// `/etc/machine-id`.
    pub machine_id: String,
    /// The firmware's identifier.
    pub system_uuid: String,
    /// Of this boot.
    pub boot_id: String,
    /// `uname -r`.
    pub kernel: String,
    /// The operating system by name.
    pub os_image: String,
    /// Go's name of the architecture.
    pub arch: &'static str,
}

fn read(path: &str) -> String {
    fs::read_to_string(path)
        .map(|s| s.trim().to_owned())
        .unwrap_or_default()
}

/// A value of `/proc/meminfo` in bytes.
pub fn meminfo(key: &str) -> io::Result<i64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    text.lines()
        .find_map(|l| {
            l.strip_prefix(key)?
                .strip_prefix(':')?
                .split_whitespace()
                .next()?
                .parse::<i64>()
                .ok()
        })
        .map(|kib| kib * 1024)
        .ok_or_else(|| io::Error::other(format!("/proc/meminfo has no {key}")))
}

/// How many numbers a list such as `0-3,5` names.
fn count_list(list: &str) -> i64 {
    list.split(',')
        .filter_map(|r| {
            let (a, b) = r.split_once('-').unwrap_or((r, r));
            Some(b.trim().parse::<i64>().ok()? - a.trim().parse::<i64>().ok()? + 1)
        })
        .sum()
}

/// Reads the machine's facts.
pub fn machine() -> io::Result<Machine> {
    let online = count_list(&read("/sys/devices/system/cpu/online"));
    let cores = if online > 0 {
        online
    } else {
        std::thread::available_parallelism()?.get() as i64
    };
    let os_release = read("/etc/os-release");
    let os_image = os_release
        .lines()
        .find_map(|l| l.strip_prefix("PRETTY_NAME="))
        .map_or_else(|| "Linux".to_owned(), |v| v.trim_matches('"').to_owned());
    Ok(Machine {
        cores,
        memory: meminfo("MemTotal")?,
        machine_id: read("/etc/machine-id"),
        system_uuid: read("/sys/class/dmi/id/product_uuid"),
        boot_id: read("/proc/sys/kernel/random/boot_id"),
        kernel: read("/proc/sys/kernel/osrelease"),
        os_image,
        arch: match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        },
    })
}

/// How many processes and threads the kernel allows, and how many there are.
pub fn threads() -> io::Result<(i64, i64)> {
    let number = |path: &str| -> io::Result<i64> {
        let text = fs::read_to_string(path)?;
        text.trim()
            .parse()
            .map_err(|_| io::Error::other(format!("{path} holds no number")))
    };
    let most = number("/proc/sys/kernel/pid_max")?.min(number("/proc/sys/kernel/threads-max")?);
    let load = fs::read_to_string("/proc/loadavg")?;
    Ok((most, threads_of(&load)?))
}

/// All threads, of `running/all` in `/proc/loadavg`.
fn threads_of(load: &str) -> io::Result<i64> {
    load.split_whitespace()
        .nth(3)
        .and_then(|f| f.split_once('/')?.1.parse().ok())
        .ok_or_else(|| io::Error::other("/proc/loadavg has no count of threads"))
}

/// A file system's size.
#[derive(Clone, Copy, Debug, Default)]
pub struct FsUsage {
    /// All bytes.
    pub capacity: i64,
    /// Bytes that are free for use.
    pub available: i64,
    /// All inodes.
    pub inodes: i64,
    /// Inodes that are free.
    pub inodes_free: i64,
}

/// The size of the file system that `path` is on.
pub fn fs_usage(path: &Path) -> io::Result<FsUsage> {
    let s = rustix::fs::statvfs(path)?;
    let bytes = |blocks: u64| i64::try_from(blocks.saturating_mul(s.f_frsize)).unwrap_or(i64::MAX);
    let count = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    Ok(FsUsage {
        capacity: bytes(s.f_blocks),
        available: bytes(s.f_bavail),
        inodes: count(s.f_files),
        inodes_free: count(s.f_ffree),
    })
}

/// The address that this machine would use towards others; without a route, any that is not of the machine alone.
pub fn own_address() -> Option<IpAddr> {
    // Connecting a datagram socket sends nothing; it only looks up the route (192.0.2.1 is nobody's).
    let routed = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
        .and_then(|s| {
            s.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
            s.local_addr()
        })
        .map(|a| a.ip())
        .ok()
        .filter(|ip| !ip.is_unspecified() && !ip.is_loopback());
    routed.or_else(|| {
        let table = fs::read_to_string("/proc/net/fib_trie").ok()?;
        let mut last = None;
        for line in table.lines() {
            if let Some(ip) = line.trim().strip_prefix("|-- ") {
                last = ip.parse::<Ipv4Addr>().ok();
            } else if line.contains("/32 host LOCAL")
                && let Some(ip) = last
                && !ip.is_loopback()
            {
                return Some(IpAddr::V4(ip));
            }
        }
        None
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn lists() {
        for (list, n) in [("0", 1), ("0-3", 4), ("0-1,4,6-7", 5), ("", 0)] {
            assert_eq!(super::count_list(list), n, "{list}");
        }
        assert!(super::machine().unwrap().memory > 0);
    }

    #[test]
    fn threads_are_counted() {
        assert_eq!(
            super::threads_of("0.20 0.18 0.12 1/807 11206\n").unwrap(),
            807
        );
        assert!(super::threads_of("0.20 0.18").is_err());
        let (most, all) = super::threads().unwrap();
        assert!(all > 0 && most > all, "{most} {all}");
    }
}
