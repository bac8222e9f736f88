//! Service addresses and node ports: who has which, and which one is next. State in memory, rebuilt at start from the
//! stored Services, the only source of truth.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use keelson_machinery::clock::Clock;
use keelson_machinery::meta;
use keelson_machinery::value::{self, Value};
use parking_lot::Mutex;

/// Why an address or port was not given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocationError {
    /// Somebody else has the address.
    #[error("provided IP is already allocated")]
    AddressTaken,
    /// The address belongs to no range.
    #[error(
        "the provided IP ({address}) is not in the valid range. The range of valid IPs is {range}"
    )]
    AddressOutOfRange {
        /// The address.
        address: IpAddr,
        /// The range of its family.
        range: String,
    },
    /// Somebody else has the port.
    #[error("provided port is already allocated")]
    PortTaken,
    /// The port is out of range.
    #[error("provided port is not in the valid range. The range of valid ports is {0}-{1}")]
    PortOutOfRange(u16, u16),
    /// Nothing is free.
    #[error("range is full")]
    Full,
}

/// What one Service holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Cluster addresses.
    pub addresses: Vec<IpAddr>,
    /// Node ports, the one of the health check included.
    pub ports: Vec<u16>,
}

impl Held {
    /// What a stored Service holds.
    pub fn of(service: &Value) -> Held {
        let mut held = Held::default();
        if value::str_or_empty(service, &["spec", "type"]) != "ExternalName" {
            held.addresses = value::items(service, &["spec", "clusterIPs"])
                .iter()
                .chain(value::get(service, &["spec", "clusterIP"]))
                .filter_map(Value::as_str)
                .filter_map(|text| text.parse().ok())
                .collect();
            held.addresses.sort();
            held.addresses.dedup();
        }
        let port = |number: &Value| number.as_u64().and_then(|n| u16::try_from(n).ok());
        held.ports = value::items(service, &["spec", "ports"])
            .iter()
            .filter_map(|p| p.get("nodePort"))
            .chain(value::get(service, &["spec", "healthCheckNodePort"]))
            .filter_map(port)
            .filter(|port| *port != 0)
            .collect();
        held.ports.sort_unstable();
        held.ports.dedup();
        held
    }
}

#[derive(Default)]
struct State {
    addresses: Claims<IpAddr>,
    ports: Claims<u16>,
}

/// Who has what, and by how many claims. Writes of one Service may run at the same time: each that takes something
/// has a claim of its own, so that one which loses gives back its own and not that of the one which won.
struct Claims<K>(HashMap<K, (Arc<str>, u32)>);

impl<K> Default for Claims<K> {
    fn default() -> Self {
        Claims(HashMap::new())
    }
}

impl<K: Eq + Hash> Claims<K> {
    fn is_free(&self, key: &K) -> bool {
        !self.0.contains_key(key)
    }

    /// Adds a claim; `false` when somebody else has it.
    fn take(&mut self, key: K, owner: &Arc<str>) -> bool {
        let (holder, claims) = self.0.entry(key).or_insert_with(|| (owner.clone(), 0));
        if holder != owner {
            return false;
        }
        *claims += 1;
        true
    }

    /// Gives back a claim; the last one frees it.
    fn release(&mut self, key: &K, owner: &Arc<str>) {
        let Some((holder, claims)) = self.0.get_mut(key) else {
            return;
        };
        if holder != owner {
            return;
        }
        *claims -= 1;
        if *claims == 0 {
            self.0.remove(key);
        }
    }
}

/// The addresses and ports of a cluster.
pub struct Allocator {
    ranges: Vec<IpNet>,
    ports: (u16, u16),
    clock: Clock,
    state: Mutex<State>,
}

/// The uid, by which the allocator knows a Service: one of the same name that comes after it is another owner.
pub fn owner_of(service: &Value) -> Arc<str> {
    meta::uid(service).into()
}

impl Allocator {
    /// Nothing allocated yet. `ranges` holds at most one range of each family, the default one first; both ends of
    /// `ports` are included.
    pub fn new(ranges: Vec<IpNet>, ports: (u16, u16), clock: Clock) -> Allocator {
        Allocator {
            ranges,
            ports,
            clock,
            state: Mutex::default(),
        }
    }

    /// Takes over what stored Services hold.
    pub fn load<'a>(&self, services: impl IntoIterator<Item = &'a Value>) {
        let mut state = self.state.lock();
        for service in services {
            let owner = owner_of(service);
            let held = Held::of(service);
            for address in held.addresses {
                state.addresses.take(address, &owner);
            }
            for port in held.ports {
                state.ports.take(port, &owner);
            }
        }
    }

    /// The families of the ranges, the default one first.
    pub fn families(&self) -> Vec<&'static str> {
        self.ranges.iter().map(|r| family(r.addr())).collect()
    }

    /// Takes a certain address. Taking what one has already is no error, and is to be given back once more.
    pub fn take_address(&self, owner: &Arc<str>, address: IpAddr) -> Result<(), AllocationError> {
        let range = self
            .ranges
            .iter()
            .find(|r| family(r.addr()) == family(address));
        if !range.is_some_and(|range| is_usable(range, address)) {
            return Err(AllocationError::AddressOutOfRange {
                address,
                range: range.map(ToString::to_string).unwrap_or_default(),
            });
        }
        match self.state.lock().addresses.take(address, owner) {
            true => Ok(()),
            false => Err(AllocationError::AddressTaken),
        }
    }

    /// Takes a free address of a family. The lower part of the range, meant for explicit requests, comes last
    /// (upstream KEP-3070).
    pub fn next_address(&self, owner: &Arc<str>, wanted: &str) -> Result<IpAddr, AllocationError> {
        let range = self
            .ranges
            .iter()
            .find(|r| family(r.addr()) == wanted)
            .ok_or(AllocationError::Full)?;
        let size = usable(range);
        let reserved = (size / 16).clamp(16, 256).min(size);
        let mut state = self.state.lock();
        let free = |state: &State, index: u64| {
            let address = nth(range, index)?;
            state.addresses.is_free(&address).then_some(address)
        };
        let found = self
            .scan(size - reserved)
            .map(|index| index + reserved)
            .chain(self.scan(reserved))
            .find_map(|index| free(&state, index))
            .ok_or(AllocationError::Full)?;
        state.addresses.take(found, owner);
        Ok(found)
    }

    /// Takes a certain node port. Taking what one has already is no error, and is to be given back once more.
    pub fn take_port(&self, owner: &Arc<str>, port: u16) -> Result<(), AllocationError> {
        let (low, high) = self.ports;
        if !(low..=high).contains(&port) {
            return Err(AllocationError::PortOutOfRange(low, high));
        }
        match self.state.lock().ports.take(port, owner) {
            true => Ok(()),
            false => Err(AllocationError::PortTaken),
        }
    }

    /// Takes a free node port.
    pub fn next_port(&self, owner: &Arc<str>) -> Result<u16, AllocationError> {
        let (low, high) = self.ports;
        let size = u64::from(high - low) + 1;
        // Upstream keeps a static band at the low end, too (KEP-3668).
        let reserved = (size / 32).clamp(16, 128).min(size);
        let mut state = self.state.lock();
        let found = self
            .scan(size - reserved)
            .map(|index| index + reserved)
            .chain(self.scan(reserved))
            .filter_map(|index| u16::try_from(u64::from(low) + index).ok())
            .find(|port| state.ports.is_free(port))
            .ok_or(AllocationError::Full)?;
        state.ports.take(found, owner);
        Ok(found)
    }

    /// Gives back a claim of `owner` to each of `held`.
    pub fn release(&self, owner: &Arc<str>, held: &Held) {
        let mut state = self.state.lock();
        for address in &held.addresses {
            state.addresses.release(address, owner);
        }
        for port in &held.ports {
            state.ports.release(port, owner);
        }
    }

    /// The indexes below `size`, once around from a random one.
    fn scan(&self, size: u64) -> impl Iterator<Item = u64> + use<> {
        let mut random = [0u8; 8];
        self.clock.fill_random(&mut random);
        let start = u64::from_le_bytes(random).checked_rem(size).unwrap_or(0);
        (0..size).map(move |step| (start + step) % size)
    }
}

/// `IPv4` or `IPv6`.
pub fn family(address: IpAddr) -> &'static str {
    match address {
        IpAddr::V4(_) => "IPv4",
        IpAddr::V6(_) => "IPv6",
    }
}

/// How many addresses of a range may be given: not the network's own, nor an IPv4 broadcast address.
fn usable(range: &IpNet) -> u64 {
    let bits = u32::from(range.max_prefix_len() - range.prefix_len());
    // No cluster has more Services than this; the rest of a large IPv6 range stays unused, as upstream's 2^20 limit.
    let all = 1u64 << bits.min(20);
    match range {
        IpNet::V4(_) => all.saturating_sub(2),
        IpNet::V6(_) => all - 1,
    }
}

/// The usable address with this index, counted from 0.
fn nth(range: &IpNet, index: u64) -> Option<IpAddr> {
    Some(match range {
        IpNet::V4(net) => {
            let base = u32::from(net.network());
            IpAddr::V4(Ipv4Addr::from(
                base.checked_add(u32::try_from(index).ok()? + 1)?,
            ))
        }
        IpNet::V6(net) => {
            let base = u128::from(net.network());
            IpAddr::V6(Ipv6Addr::from(base.checked_add(u128::from(index) + 1)?))
        }
    })
}

fn is_usable(range: &IpNet, address: IpAddr) -> bool {
    let broadcast = match range {
        IpNet::V4(net) => IpAddr::V4(net.broadcast()) == address,
        IpNet::V6(_) => false,
    };
    range.contains(&address) && range.network() != address && !broadcast
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::HandClock;
    use serde_json::json;

    fn allocator(range: &str, ports: (u16, u16)) -> Allocator {
        Allocator::new(
            vec![range.parse().unwrap()],
            ports,
            HandClock::new().clock(),
        )
    }

    #[test]
    fn every_address_and_port_is_given_once() {
        let all = allocator("10.96.0.0/28", (30_000, 30_004));
        let owner: Arc<str> = "default/a".into();
        let mut seen = std::collections::HashSet::new();
        while let Ok(address) = all.next_address(&owner, "IPv4") {
            assert!(seen.insert(address), "{address} was given twice");
        }
        assert_eq!(seen.len(), 14);
        assert_eq!(all.next_address(&owner, "IPv6"), Err(AllocationError::Full));
        let mut ports = std::collections::HashSet::new();
        while let Ok(port) = all.next_port(&owner) {
            assert!(ports.insert(port));
        }
        assert_eq!(ports.len(), 5);
    }

    #[test]
    fn requests_for_certain_ones() {
        let all = allocator("10.96.0.0/24", (30_000, 30_010));
        let (a, b): (Arc<str>, Arc<str>) = ("uid-a".into(), "uid-b".into());
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        all.load(
            [&json!({"metadata": {"name": "a", "uid": "uid-a"}, "spec": {
            "type": "NodePort", "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"],
            "ports": [{"port": 80, "nodePort": 30005}]}})],
        );
        assert_eq!(all.take_address(&a, address("10.96.0.7")), Ok(()));
        assert_eq!(
            all.take_address(&b, address("10.96.0.7")),
            Err(AllocationError::AddressTaken)
        );
        for outside in ["10.96.0.0", "10.96.0.255", "10.97.0.1"] {
            assert_eq!(
                all.take_address(&b, address(outside))
                    .unwrap_err()
                    .to_string(),
                format!(
                    "the provided IP ({outside}) is not in the valid range. The range of valid IPs is 10.96.0.0/24"
                )
            );
        }
        assert_eq!(all.take_port(&b, 30_005), Err(AllocationError::PortTaken));
        assert_eq!(
            all.take_port(&b, 80).unwrap_err().to_string(),
            "provided port is not in the valid range. The range of valid ports is 30000-30010"
        );
        // Only the owner can give back.
        let held = Held {
            addresses: vec![address("10.96.0.7")],
            ports: vec![30_005],
        };
        all.release(&b, &held);
        assert_eq!(all.take_port(&b, 30_005), Err(AllocationError::PortTaken));
        // One claim from the stored Service, and for the address one more from above: as when a second write of the
        // same Service takes it, and loses.
        all.release(&a, &held);
        assert_eq!(
            all.take_address(&b, address("10.96.0.7")),
            Err(AllocationError::AddressTaken)
        );
        all.release(&a, &held);
        assert_eq!(all.take_port(&b, 30_005), Ok(()));
        assert_eq!(all.take_address(&b, address("10.96.0.7")), Ok(()));
    }
}
