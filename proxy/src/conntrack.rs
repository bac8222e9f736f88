//! Connection tracking over netlink (ctnetlink): finding and ending connections over UDP that lead to endpoints which are gone.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use crate::nft::Family;
use crate::nft::socket::{Netfilter, NetlinkError};
use crate::nft::wire::{Buffer, attribute};

/// The netfilter subsystem of connection tracking.
const SUBSYSTEM: u16 = 1;
const GET: u16 = SUBSYSTEM << 8 | 1;
const DELETE: u16 = SUBSYSTEM << 8 | 2;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;

const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const UDP: u8 = 17;

/// Where services over UDP are reached, and the endpoints that serve there.
#[derive(Debug, Default)]
pub struct Frontends {
    /// By address and port.
    pub addresses: HashMap<(IpAddr, u16), HashSet<(IpAddr, u16)>>,
    /// By node port, on any address.
    pub node_ports: HashMap<u16, HashSet<(IpAddr, u16)>>,
}

/// One direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tuple {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    source_port: u16,
    destination_port: u16,
}

impl Tuple {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let (ip, protocol) = (attribute(bytes, 1)?, attribute(bytes, 2)?);
        let address = |v4: u16, v6: u16| -> Option<IpAddr> {
            match (attribute(ip, v4), attribute(ip, v6)) {
                (Some(bytes), _) => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
                (None, Some(bytes)) => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
                (None, None) => None,
            }
        };
        let port = |kind: u16| {
            Some(u16::from_be_bytes(
                attribute(protocol, kind)?.try_into().ok()?,
            ))
        };
        Some(Tuple {
            source: address(1, 3)?,
            destination: address(2, 4)?,
            protocol: *attribute(protocol, 1)?.first()?,
            source_port: port(2)?,
            destination_port: port(3)?,
        })
    }
}

impl Frontends {
    /// Whether a connection went to a service and was led to an endpoint that does not serve it.
    fn is_stale(&self, original: &Tuple, reply: &Tuple) -> bool {
        if original.protocol != UDP {
            return false;
        }
        let endpoint = (reply.source, reply.source_port);
        let by_address = self
            .addresses
            .get(&(original.destination, original.destination_port));
        // A node port is one on any address; but one that was led nowhere is a connection to something else.
        let led_elsewhere = reply.source != original.destination;
        let by_node_port = self
            .node_ports
            .get(&original.destination_port)
            .filter(|_| led_elsewhere);
        by_address
            .or(by_node_port)
            .is_some_and(|serving| !serving.contains(&endpoint))
    }
}

/// Ends stale connections of a family; returns how many.
pub fn clean(
    socket: &Netfilter,
    family: Family,
    frontends: &Frontends,
    sequence: &mut u32,
) -> Result<usize, NetlinkError> {
    let mut request = Buffer::default();
    let open = request.begin_message(GET, REQUEST | DUMP, *sequence, family.number(), 0);
    *sequence = sequence.wrapping_add(1);
    request.end_message(open);

    let mut stale: Vec<Vec<(u16, Vec<u8>)>> = Vec::new();
    let dumped = socket.dump(request.bytes(), |payload| {
        let Some(attributes) = payload.get(4..) else {
            return;
        };
        let tuple = |kind| Some(Tuple::parse(attribute(attributes, kind)?)).flatten();
        if let (Some(original), Some(reply)) = (tuple(TUPLE_ORIGINAL), tuple(TUPLE_REPLY))
            && frontends.is_stale(&original, &reply)
        {
            let kept = [TUPLE_ORIGINAL, ZONE, ID];
            stale.push(
                kept.iter()
                    .filter_map(|k| Some((*k, attribute(attributes, *k)?.to_vec())))
                    .collect(),
            );
        }
    });
    match dumped {
        // The table changed under way: what was found is right, what was missed is found next time.
        Err(NetlinkError::Io(error)) if error.kind() == std::io::ErrorKind::Interrupted => {}
        other => other?,
    }
    let count = stale.len();
    for attributes in stale {
        let mut request = Buffer::default();
        let open = request.begin_message(DELETE, REQUEST | ACK, *sequence, family.number(), 0);
        for (kind, value) in attributes {
            const NESTED: u16 = 1 << 15;
            let kind = if kind == TUPLE_ORIGINAL {
                kind | NESTED
            } else {
                kind
            };
            request.bytes_attr(kind, &value);
        }
        request.end_message(open);
        let number = *sequence;
        *sequence = sequence.wrapping_add(1);
        match socket.request(request.bytes(), number) {
            // It ended by itself.
            Err(error) if error.is(rustix::io::Errno::NOENT) => {}
            other => other?,
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_connections_are_stale() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let serving = HashSet::from([(ip("10.244.0.1"), 53)]);
        let frontends = Frontends {
            addresses: HashMap::from([((ip("10.96.0.10"), 53), serving.clone())]),
            node_ports: HashMap::from([(30053, serving)]),
        };
        for (name, to, port, protocol, from, want) in [
            ("serving", "10.96.0.10", 53, UDP, "10.244.0.1", false),
            ("gone", "10.96.0.10", 53, UDP, "10.244.0.2", true),
            (
                "not led anywhere",
                "10.96.0.10",
                53,
                UDP,
                "10.96.0.10",
                true,
            ),
            ("another port", "10.96.0.10", 54, UDP, "10.244.0.2", false),
            ("TCP", "10.96.0.10", 53, 6, "10.244.0.2", false),
            (
                "node port, gone",
                "192.0.2.1",
                30053,
                UDP,
                "10.244.0.2",
                true,
            ),
            (
                "someone else's port of that number",
                "192.0.2.9",
                30053,
                UDP,
                "192.0.2.9",
                false,
            ),
        ] {
            let client = ip("10.244.0.9");
            let original = Tuple {
                source: client,
                destination: ip(to),
                protocol,
                source_port: 999,
                destination_port: port,
            };
            let reply = Tuple {
                source: ip(from),
                destination: client,
                protocol,
                source_port: 53,
                destination_port: 999,
            };
            assert_eq!(frontends.is_stale(&original, &reply), want, "{name}");
        }
    }
}
