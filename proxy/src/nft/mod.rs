//! nf_tables over netlink: a small model of tables, chains, sets and rules, its encoding, and the socket.
//!
//! [`expr`] is what rules are made of, [`batch`] encodes changes into one atomic transaction, [`socket`] hands
//! transactions to the kernel and reads the verdict, [`wire`] has the attribute encoding that all share.

pub mod batch;
pub mod expr;
pub mod socket;
pub mod wire;

use std::net::IpAddr;

/// An IP family; each has a table of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Family; 2] = [Family::V4, Family::V6];

    /// The netfilter protocol number, which is also the address family's.
    pub fn number(self) -> u8 {
        match self {
            Family::V4 => 2,
            Family::V6 => 10,
        }
    }

    /// The family of an address.
    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// The length of an address in bytes.
    pub fn address_len(self) -> usize {
        match self {
            Family::V4 => 4,
            Family::V6 => 16,
        }
    }

    /// How the API and metrics call it.
    pub fn name(self) -> &'static str {
        match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        }
    }
}

/// The bytes of an address as they stand in a packet.
pub fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}
