//! What the kernel holds of one family's table, and the transaction that brings it from there to what is wanted.
//!
//! A service port's part is compared with what was wanted of it before, so that the cost of a change does not depend on
//! how many services there are. Elements that several ports want (a cluster address, an endpoint reaching itself) have several
//! owners and go with the last.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::nft::Family;
use crate::nft::batch::{Batch, Field, Set};
use crate::nft::expr::{Expr, Rule, Verdict};
use crate::rules::{Frame, Wanted};

/// Which service port something belongs to: `namespace/name` of the service, protocol and name of the port.
pub type Owner = (String, String);

type Element = (&'static str, Vec<u8>);
/// Elements to add, by set.
type Additions<'a> = BTreeMap<&'a str, Vec<(&'a [u8], Option<&'a Verdict>)>>;

/// The shadow.
#[derive(Debug)]
pub struct Shadow {
    family: Family,
    table: String,
    parts: HashMap<Owner, Wanted>,
    /// The ports that each service has parts for.
    ports: HashMap<String, BTreeSet<String>>,
    elements: HashMap<Element, BTreeMap<Owner, Option<Verdict>>>,
    /// Chains that nothing wants any more. They are empty; older kernels refuse to delete them right away.
    stale: BTreeSet<String>,
}

impl Shadow {
    /// Of a table of which nothing is known.
    pub fn new(family: Family, table: &str) -> Self {
        Shadow {
            family,
            table: table.to_owned(),
            parts: HashMap::new(),
            ports: HashMap::new(),
            elements: HashMap::new(),
            stale: BTreeSet::new(),
        }
    }

    /// The transaction that replaces whatever the kernel holds by the frame and all parts.
    pub fn rebuild(
        &mut self,
        frame: &Frame,
        parts: HashMap<Owner, Wanted>,
        sequence: u32,
    ) -> Batch {
        self.parts = parts;
        self.stale.clear();
        self.elements.clear();
        self.ports.clear();
        for (owner, part) in &self.parts {
            self.ports
                .entry(owner.0.clone())
                .or_default()
                .insert(owner.1.clone());
            for (element, verdict) in &part.elements {
                self.elements
                    .entry(element.clone())
                    .or_default()
                    .insert(owner.clone(), verdict.clone());
            }
        }
        let mut batch = Batch::new(self.family, &self.table, sequence);
        // Adding first makes deleting safe whether or not the table is there.
        batch.add_table();
        batch.delete_table();
        batch.add_table();
        for (name, set) in &frame.sets {
            batch.add_set(name, set);
        }
        for chain in &frame.chains {
            batch.add_chain(chain.name, chain.hook.as_ref());
        }
        let mut wanted: Vec<&Wanted> = self.parts.values().collect();
        // The same input gives the same transaction.
        wanted.sort_by(|a, b| a.chains.keys().next().cmp(&b.chains.keys().next()));
        for part in &wanted {
            add_containers(&mut batch, part.chains.keys(), &part.affinity_sets);
        }
        for chain in &frame.chains {
            for rule in &chain.rules {
                batch.add_rule(chain.name, rule);
            }
        }
        for part in &wanted {
            for (chain, rules) in &part.chains {
                add_rules(&mut batch, chain, rules);
            }
        }
        let mut by_set: Additions<'_> = BTreeMap::new();
        for ((set, key), verdict) in &frame.elements {
            by_set.entry(set).or_default().push((key, verdict.as_ref()));
        }
        for ((set, key), owners) in &self.elements {
            if let Some(verdict) = owners.values().next() {
                by_set.entry(set).or_default().push((key, verdict.as_ref()));
            }
        }
        for (set, elements) in by_set {
            batch.add_elements(set, elements);
        }
        batch
    }

    /// The transaction that brings the given parts (`None` takes one away) from what they were to what they shall be.
    /// The shadow counts it as done: when the kernel refuses, only [`Shadow::rebuild`] helps.
    pub fn update(&mut self, changes: Vec<(Owner, Option<Wanted>)>, sequence: u32) -> Batch {
        let mut batch = Batch::new(self.family, &self.table, sequence);
        let empty = Wanted::default();
        let before: Vec<Wanted> = changes
            .iter()
            .map(|(owner, _)| self.parts.remove(owner).unwrap_or_default())
            .collect();
        let after: Vec<&Wanted> = changes
            .iter()
            .map(|(_, part)| part.as_ref().unwrap_or(&empty))
            .collect();

        // Elements: first all owners are brought up to date, then each element is compared once.
        let mut touched: BTreeMap<Element, Option<Option<Verdict>>> = BTreeMap::new();
        let note = |elements: &HashMap<Element, BTreeMap<Owner, Option<Verdict>>>,
                    touched: &mut BTreeMap<Element, Option<Option<Verdict>>>,
                    element: &Element| {
            if !touched.contains_key(element) {
                let held = elements
                    .get(element)
                    .and_then(|owners| owners.values().next())
                    .cloned();
                touched.insert(element.clone(), held);
            }
        };
        for (((owner, _), old), new) in changes.iter().zip(&before).zip(&after) {
            for element in old
                .elements
                .keys()
                .filter(|e| !new.elements.contains_key(*e))
            {
                note(&self.elements, &mut touched, element);
                if let Some(owners) = self.elements.get_mut(element) {
                    owners.remove(owner);
                    if owners.is_empty() {
                        self.elements.remove(element);
                    }
                }
            }
            for (element, verdict) in &new.elements {
                if old.elements.get(element) != Some(verdict) {
                    note(&self.elements, &mut touched, element);
                    let owners = self.elements.entry(element.clone()).or_default();
                    owners.insert(owner.clone(), verdict.clone());
                }
            }
        }
        let mut gone: BTreeMap<&str, Vec<&[u8]>> = BTreeMap::new();
        let mut come: Additions<'_> = BTreeMap::new();
        for (element, held) in &touched {
            let wanted = self
                .elements
                .get(element)
                .and_then(|owners| owners.values().next());
            if held.as_ref() == wanted {
                continue;
            }
            if held.is_some() {
                gone.entry(element.0).or_default().push(&element.1);
            }
            if let Some(verdict) = wanted {
                come.entry(element.0)
                    .or_default()
                    .push((&element.1, verdict.as_ref()));
            }
        }

        // In an order in which nothing is led to before it is there, or deleted while it is led to.
        for (set, keys) in gone {
            batch.delete_elements(set, keys);
        }
        for (old, new) in before.iter().zip(&after) {
            for (chain, rules) in &old.chains {
                if is_rewritten(chain, rules, old, new) {
                    batch.flush_chain(chain);
                }
                if !new.chains.contains_key(chain) {
                    self.stale.insert(chain.clone());
                }
            }
        }
        for (old, new) in before.iter().zip(&after) {
            for (set, timeout) in &old.affinity_sets {
                if new.affinity_sets.get(set) != Some(timeout) {
                    batch.delete_set(set);
                }
            }
        }
        for (old, new) in before.iter().zip(&after) {
            let chains = new.chains.keys().filter(|c| !old.chains.contains_key(*c));
            let sets = new
                .affinity_sets
                .iter()
                .filter(|(set, timeout)| old.affinity_sets.get(*set) != Some(timeout))
                .map(|(set, timeout)| (set.clone(), *timeout))
                .collect();
            add_containers(&mut batch, chains, &sets);
            for chain in new.chains.keys() {
                self.stale.remove(chain);
            }
        }
        for (old, new) in before.iter().zip(&after) {
            for (chain, rules) in &new.chains {
                if old
                    .chains
                    .get(chain)
                    .is_none_or(|before| is_rewritten(chain, before, old, new))
                {
                    add_rules(&mut batch, chain, rules);
                }
            }
        }
        for (set, elements) in come {
            batch.add_elements(set, elements);
        }
        for (owner, part) in changes {
            let ports = self.ports.entry(owner.0.clone()).or_default();
            match part {
                Some(part) => {
                    ports.insert(owner.1.clone());
                    self.parts.insert(owner, part);
                }
                None => {
                    ports.remove(&owner.1);
                    if ports.is_empty() {
                        self.ports.remove(&owner.0);
                    }
                }
            }
        }
        batch
    }

    /// The transaction that deletes chains that nothing wants any more. When the kernel finds one still in use, it
    /// may be tried again later; [`Shadow::deleted`] tells that it worked.
    pub fn delete_stale(&self, sequence: u32) -> Batch {
        let mut batch = Batch::new(self.family, &self.table, sequence);
        for chain in &self.stale {
            batch.delete_chain(chain);
        }
        batch
    }

    /// The stale chains are gone.
    pub fn deleted(&mut self) {
        self.stale.clear();
    }

    /// Whether there are chains to be deleted.
    pub fn has_stale(&self) -> bool {
        !self.stale.is_empty()
    }

    /// What is wanted of a service port at present.
    pub fn part(&self, owner: &Owner) -> Option<&Wanted> {
        self.parts.get(owner)
    }

    /// The parts that a service has.
    pub fn owners_of(&self, service: &str) -> Vec<Owner> {
        let ports = self.ports.get(service).into_iter().flatten();
        ports
            .map(|port| (service.to_owned(), port.clone()))
            .collect()
    }

    /// All parts.
    pub fn parts(&self) -> impl Iterator<Item = &Wanted> {
        self.parts.values()
    }
}

/// Whether a chain's rules must be written anew: they differ, or they name a set that is made anew.
fn is_rewritten(chain: &str, rules: &[Rule], old: &Wanted, new: &Wanted) -> bool {
    new.chains.get(chain).is_none_or(|wanted| wanted != rules)
        || rules.iter().flat_map(|r| &r.exprs).any(|expr| match expr {
            Expr::Lookup(set, _) | Expr::Remember(set, _) => {
                old.affinity_sets.get(set) != new.affinity_sets.get(set)
            }
            _ => false,
        })
}

fn add_containers<'a>(
    batch: &mut Batch,
    chains: impl Iterator<Item = &'a String>,
    affinity_sets: &BTreeMap<String, u64>,
) {
    for chain in chains {
        batch.add_chain(chain, None);
    }
    for (set, timeout) in affinity_sets {
        batch.add_set(
            set,
            &Set {
                key: &[Field::Address],
                verdicts: false,
                timeout_ms: Some(*timeout),
            },
        );
    }
}

fn add_rules(batch: &mut Batch, chain: &str, rules: &[Rule]) {
    for rule in rules {
        batch.add_rule(chain, rule);
    }
}
