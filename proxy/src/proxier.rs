//! Keeps the kernel in line with services and endpoints: takes in changes, and writes what they come to.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use crate::conntrack;
use crate::model::{Endpoint, Protocol, ServiceModel, SliceModel, merge};
use crate::nft::Family;
use crate::nft::batch::{Batch, ask_for_chain};
use crate::nft::socket::{Netfilter, NetlinkError};
use crate::rules::{Environment, Wanted, frame, service_port};
use crate::shadow::{Owner, Shadow};

/// The chain that is asked for to see whether a table is still there.
const PROBED_CHAIN: &str = "nat-prerouting";

/// A service whose local endpoints are asked for by load balancers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// How many ready endpoints are on this node.
    pub local_endpoints: usize,
}

struct Table {
    family: Family,
    shadow: Shadow,
    rebuild: bool,
}

/// The state.
pub struct Proxier {
    socket: Netfilter,
    /// The tables' name.
    name: String,
    sequence: u32,
    environment: Environment,
    tables: Vec<Table>,
    services: HashMap<String, ServiceModel>,
    slices: HashMap<(String, Family), BTreeMap<String, SliceModel>>,
    slice_of: HashMap<String, (String, Family)>,
    dirty: BTreeSet<String>,
    /// Whether connections over UDP may lead to endpoints that are gone.
    check_conntrack: bool,
}

impl Proxier {
    /// Begins with nothing known of the kernel's tables of this name. The network namespace is that of the calling thread.
    pub fn open(
        table: &str,
        families: &[Family],
        environment: Environment,
    ) -> Result<Self, NetlinkError> {
        Ok(Proxier {
            socket: Netfilter::open()?,
            name: table.to_owned(),
            sequence: 1,
            environment,
            tables: families
                .iter()
                .map(|family| Table {
                    family: *family,
                    shadow: Shadow::new(*family, table),
                    rebuild: true,
                })
                .collect(),
            services: HashMap::new(),
            slices: HashMap::new(),
            slice_of: HashMap::new(),
            dirty: BTreeSet::new(),
            check_conntrack: true,
        })
    }

    /// What the rules depend on beside services changed.
    pub fn set_environment(&mut self, environment: Environment) {
        if environment != self.environment {
            self.environment = environment;
            self.rebuild();
        }
    }

    /// What the rules depend on beside services.
    pub fn environment(&self) -> &Environment {
        &self.environment
    }

    /// Everything is to be written anew at the next sync.
    pub fn rebuild(&mut self) {
        for table in &mut self.tables {
            table.rebuild = true;
        }
    }

    /// A service was added or changed, or is gone or none of ours (`None`). `key` is `namespace/name`.
    pub fn set_service(&mut self, key: &str, service: Option<ServiceModel>) {
        if self.services.get(key) == service.as_ref() {
            return;
        }
        match service {
            Some(service) => self.services.insert(key.to_owned(), service),
            None => self.services.remove(key),
        };
        self.dirty.insert(key.to_owned());
    }

    /// A slice was added or changed, or is gone (`None`). `slice` is its `namespace/name`.
    pub fn set_slice(&mut self, slice: &str, model: Option<(String, Family, SliceModel)>) {
        let home = model
            .as_ref()
            .map(|(service, family, _)| (service.clone(), *family));
        if let Some(old) = self.slice_of.get(slice).cloned()
            && Some(&old) != home.as_ref()
        {
            if let Some(slices) = self.slices.get_mut(&old) {
                slices.remove(slice);
                if slices.is_empty() {
                    self.slices.remove(&old);
                }
            }
            self.slice_of.remove(slice);
            self.dirty.insert(old.0);
        }
        let (Some((service, family, model)), Some(home)) = (model, home) else {
            return;
        };
        self.slice_of.insert(slice.to_owned(), home);
        let slices = self.slices.entry((service.clone(), family)).or_default();
        if slices.get(slice) != Some(&model) {
            slices.insert(slice.to_owned(), model);
            self.dirty.insert(service);
        }
    }

    /// The known services' and slices' keys, for comparing with a fresh list.
    pub fn keys(&self) -> (HashSet<String>, HashSet<String>) {
        (
            self.services.keys().cloned().collect(),
            self.slice_of.keys().cloned().collect(),
        )
    }

    /// Whether there is anything to write.
    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty() || self.tables.iter().any(|t| t.rebuild)
    }

    fn endpoints(
        &self,
        service: &str,
        family: Family,
        port: &str,
        protocol: Protocol,
    ) -> Vec<Endpoint> {
        let slices = self.slices.get(&(service.to_owned(), family));
        merge(
            slices.into_iter().flat_map(BTreeMap::values),
            port,
            protocol,
        )
    }

    /// What the service's ports shall add to a family's table.
    fn wanted(&self, key: &str, family: Family) -> Vec<(Owner, Wanted)> {
        let Some(service) = self.services.get(key) else {
            return Vec::new();
        };
        service
            .ports
            .iter()
            .filter_map(|port| {
                let endpoints = self.endpoints(key, family, &port.name, port.protocol);
                let wanted = service_port(&self.environment, family, service, port, &endpoints)?;
                Some((
                    (
                        key.to_owned(),
                        format!("{}/{}", port.protocol.name(), port.name),
                    ),
                    wanted,
                ))
            })
            .collect()
    }

    /// Writes what has changed. After an error the next call writes everything anew.
    pub fn sync(&mut self) -> Result<(), NetlinkError> {
        let dirty = std::mem::take(&mut self.dirty);
        let mut result = Ok(());
        for at in 0..self.tables.len() {
            let family = self.tables[at].family;
            let outcome = if self.tables[at].rebuild {
                let parts: HashMap<Owner, Wanted> = self
                    .services
                    .keys()
                    .flat_map(|key| self.wanted(key, family))
                    .collect();
                let frame = frame(&self.environment, family);
                let batch = self.tables[at].shadow.rebuild(&frame, parts, self.sequence);
                self.check_conntrack = true;
                self.commit(batch)
            } else {
                let changes = self.changes(&self.tables[at].shadow, &dirty, family);
                self.check_conntrack |= changes
                    .iter()
                    .any(|((_, port), _)| port.starts_with("udp/"));
                let batch = self.tables[at].shadow.update(changes, self.sequence);
                self.commit(batch)
            };
            self.tables[at].rebuild = outcome.is_err();
            result = result.and(outcome);
        }
        if result.is_ok() && std::mem::take(&mut self.check_conntrack) {
            self.clean_conntrack();
        }
        result
    }

    fn changes(
        &self,
        shadow: &Shadow,
        dirty: &BTreeSet<String>,
        family: Family,
    ) -> Vec<(Owner, Option<Wanted>)> {
        let mut changes = Vec::new();
        for key in dirty {
            let wanted = self.wanted(key, family);
            for owner in shadow.owners_of(key) {
                if !wanted.iter().any(|(o, _)| *o == owner) {
                    changes.push((owner, None));
                }
            }
            changes.extend(
                wanted
                    .into_iter()
                    .filter(|(owner, part)| shadow.part(owner) != Some(part))
                    .map(|(owner, part)| (owner, Some(part))),
            );
        }
        changes
    }

    fn commit(&mut self, batch: Batch) -> Result<(), NetlinkError> {
        if batch.is_empty() {
            return Ok(());
        }
        let first = self.sequence;
        let (bytes, answered) = batch.finish();
        self.sequence = answered.wrapping_add(2);
        self.socket.commit(&bytes, first, answered)
    }

    /// Finds out whether someone deleted a table (`nft flush ruleset` does), and if so has it written anew at the next sync.
    pub fn verify(&mut self) -> Result<(), NetlinkError> {
        for table in self.tables.iter_mut().filter(|t| !t.rebuild) {
            let sequence = self.sequence;
            self.sequence = self.sequence.wrapping_add(1);
            let request = ask_for_chain(table.family, &self.name, PROBED_CHAIN, sequence);
            match self.socket.request(&request, sequence) {
                Ok(()) => {}
                Err(error) if error.is(rustix::io::Errno::NOENT) => {
                    tracing::warn!(table = self.name, "the table is gone; writing it anew");
                    table.rebuild = true;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Deletes chains that are left over from earlier changes; returns whether some are still left.
    pub fn delete_stale(&mut self) -> bool {
        let mut left = false;
        for at in 0..self.tables.len() {
            if self.tables[at].rebuild || !self.tables[at].shadow.has_stale() {
                continue;
            }
            let batch = self.tables[at].shadow.delete_stale(self.sequence);
            match self.commit(batch) {
                Ok(()) => self.tables[at].shadow.deleted(),
                Err(error) => {
                    tracing::debug!(%error, "left-over chains are still in use");
                    left = true;
                }
            }
        }
        left
    }

    /// Whether there are left-over chains.
    pub fn has_stale(&self) -> bool {
        self.tables.iter().any(|t| t.shadow.has_stale())
    }

    /// Services whose local endpoints load balancers ask for, by port.
    pub fn health_checks(&self) -> BTreeMap<u16, HealthCheck> {
        self.services
            .iter()
            .filter(|(_, service)| service.health_check_port != 0)
            .map(|(key, service)| {
                let slices = Family::ALL
                    .iter()
                    .filter_map(|f| self.slices.get(&(key.clone(), *f)));
                let local: HashSet<IpAddr> = slices
                    .flat_map(BTreeMap::values)
                    .flat_map(BTreeMap::values)
                    .flatten()
                    .filter(|e| e.local && e.ready)
                    .map(|e| e.ip)
                    .collect();
                let check = HealthCheck {
                    namespace: service.namespace.clone(),
                    name: service.name.clone(),
                    local_endpoints: local.len(),
                };
                (service.health_check_port, check)
            })
            .collect()
    }

    /// How many service ports have endpoints but none on this node where they need one: internal and external.
    pub fn without_local_endpoints(&self) -> (usize, usize) {
        let parts = || self.tables.iter().flat_map(|t| t.shadow.parts());
        (
            parts().filter(|p| p.no_local_internal).count(),
            parts().filter(|p| p.no_local_external).count(),
        )
    }

    /// How many services are known.
    pub fn service_count(&self) -> usize {
        self.services.len()
    }

    /// Ends connections over UDP that lead to endpoints which do not serve any more: clients that keep sending would
    /// never be sent to another one.
    fn clean_conntrack(&mut self) {
        let mut frontends = conntrack::Frontends::default();
        for (key, service) in &self.services {
            for port in service.ports.iter().filter(|p| p.protocol == Protocol::Udp) {
                for family in Family::ALL {
                    let serving: HashSet<(IpAddr, u16)> = self
                        .endpoints(key, family, &port.name, port.protocol)
                        .iter()
                        .filter(|e| e.serving)
                        .map(|e| (e.ip, e.port))
                        .collect();
                    // Without any there is nowhere better to go.
                    if serving.is_empty() {
                        continue;
                    }
                    let ips = service.cluster_ips.iter().chain(&service.external_ips);
                    for ip in ips
                        .chain(&service.load_balancer_ips)
                        .filter(|ip| Family::of(**ip) == family)
                    {
                        frontends
                            .addresses
                            .insert((*ip, port.port), serving.clone());
                    }
                    if port.node_port != 0 {
                        frontends
                            .node_ports
                            .entry(port.node_port)
                            .or_default()
                            .extend(serving.iter().copied());
                    }
                }
            }
        }
        if frontends.addresses.is_empty() {
            return;
        }
        for table in &self.tables {
            match conntrack::clean(&self.socket, table.family, &frontends, &mut self.sequence) {
                Ok(0) => {}
                Ok(count) => tracing::info!(
                    count,
                    family = table.family.name(),
                    "stale connections ended"
                ),
                Err(error) => tracing::warn!(%error, "cannot look for stale connections"),
            }
        }
    }
}

/// Deletes the tables of this name, where there are any; the network namespace is that of the calling thread.
pub fn cleanup(table: &str) -> Result<(), NetlinkError> {
    let socket = Netfilter::open()?;
    for family in Family::ALL {
        let mut batch = Batch::new(family, table, 1);
        batch.add_table();
        batch.delete_table();
        let (bytes, answered) = batch.finish();
        match socket.commit(&bytes, 1, answered) {
            // A kernel without the family has no such table.
            Err(error)
                if error.is(rustix::io::Errno::OPNOTSUPP)
                    || error.is(rustix::io::Errno::AFNOSUPPORT) => {}
            other => other?,
        }
    }
    Ok(())
}
