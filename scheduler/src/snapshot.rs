//! The state that plugins decide on: nodes with their pods, namespaces, and indexes kept beside them.
//!
//! One task owns the snapshot and changes it between decisions, so nothing is copied per pod: while a decision runs it is
//! only borrowed. What would otherwise make a decision walk every pod is kept as an index that follows each change:
//! how many pods per node match a selector ([`Snapshot::count_matching`]), and which value of a label each node
//! carries as a small number ([`Snapshot::topology`]).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use parking_lot::Mutex;

use crate::labels::{Labels, Selector};
use crate::node::{NodeInfo, NodeSpec};
use crate::pod::{AffinityTerm, PodInfo};
use crate::storage::Storage;

/// How many selectors are counted at most; the least recently asked for is dropped.
const MAX_COUNTED: usize = 64;
/// How many label keys are numbered at most.
const MAX_TOPOLOGIES: usize = 32;
/// What a required affinity term of a placed pod weighs for a pod that it means (`HardPodAffinityWeight`'s default).
pub const HARD_POD_AFFINITY_WEIGHT: i64 = 1;
/// Stands in [`Topology::value_of`] for a node without the label.
pub const NO_VALUE: u32 = u32::MAX;

/// Which value of one label each node carries, as a number.
#[derive(Debug, Default)]
pub struct Topology {
    /// By node index: the number of its value or [`NO_VALUE`].
    pub value_of: Vec<u32>,
    /// How many values there are.
    pub values: usize,
}

/// Which pods a count is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PodPredicate {
    /// All of these terms must mean the pod (their topology keys play no part).
    pub terms: Vec<AffinityTerm>,
    /// Whether terminating pods are left out.
    pub skip_terminating: bool,
}

impl PodPredicate {
    /// The running pods of one namespace that a selector selects.
    pub fn in_namespace(namespace: &str, selector: Selector) -> Self {
        let term = AffinityTerm {
            namespaces: BTreeSet::from([namespace.to_owned()]),
            namespace_selector: Selector::Nothing,
            selector,
            topology_key: String::new(),
        };
        PodPredicate {
            terms: vec![term],
            skip_terminating: true,
        }
    }

    /// The pods that all of `terms` mean, terminating ones included.
    pub fn all_of(terms: &[AffinityTerm]) -> Self {
        let terms = terms
            .iter()
            .map(|t| AffinityTerm {
                topology_key: String::new(),
                ..t.clone()
            })
            .collect();
        PodPredicate {
            terms,
            skip_terminating: false,
        }
    }

    fn matches(&self, pod: &PodInfo, namespaces: &HashMap<String, Labels>) -> bool {
        if self.skip_terminating && pod.terminating {
            return false;
        }
        let none = Labels::new();
        let labels = namespaces.get(&pod.namespace).unwrap_or(&none);
        self.terms.iter().all(|t| t.matches(pod, labels))
    }
}

#[derive(Debug)]
struct Counted {
    predicate: PodPredicate,
    per_node: Arc<Vec<u32>>,
    last_used: u64,
}

#[derive(Debug, Default)]
struct Derived {
    clock: u64,
    counted: Vec<Counted>,
    topologies: HashMap<String, Arc<Topology>>,
}

/// What selects a pod's fellows when it brings no spread constraints of its own (`helper.DefaultSelector`).
#[derive(Debug, Default)]
pub struct SelectorSources {
    /// Services: namespace, then name, then selector.
    pub services: HashMap<String, BTreeMap<String, Labels>>,
    /// Replication controllers, replica sets and stateful sets by (kind, namespace, name).
    pub owners: HashMap<(&'static str, String, String), Selector>,
}

/// Everything a decision may look at.
#[derive(Debug, Default)]
pub struct Snapshot {
    slots: Vec<NodeInfo>,
    free: Vec<usize>,
    by_name: HashMap<Arc<str>, usize>,
    order: Vec<usize>,
    order_stale: bool,
    namespaces: HashMap<String, Labels>,
    images: HashMap<String, HashMap<usize, i64>>,
    anti_terms: HashMap<AffinityTerm, HashMap<usize, i64>>,
    score_terms: HashMap<AffinityTerm, HashMap<usize, (i64, usize)>>,
    soft_tainted: BTreeSet<usize>,
    /// Services and workloads, for the default spreading.
    pub sources: SelectorSources,
    /// Claims, volumes and classes.
    pub storage: Storage,
    /// Disruption budgets by `namespace/name`.
    pub budgets: BTreeMap<String, PodDisruptionBudget>,
    derived: Mutex<Derived>,
}

impl Snapshot {
    /// How many nodes the API knows.
    pub fn node_count(&self) -> usize {
        self.order.len()
    }

    /// The nodes in the order in which they are tried: zones take turns (`nodeTree.list`).
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = &NodeInfo> {
        self.order.iter().map(|i| &self.slots[*i])
    }

    /// The `position`-th node in that order.
    pub fn node_at(&self, position: usize) -> &NodeInfo {
        &self.slots[self.order[position]]
    }

    /// A node by its index.
    pub fn node(&self, index: usize) -> &NodeInfo {
        &self.slots[index]
    }

    /// One more than the highest node index.
    pub fn index_bound(&self) -> usize {
        self.slots.len()
    }

    /// A node that the API knows, by name.
    pub fn node_by_name(&self, name: &str) -> Option<&NodeInfo> {
        let node = &self.slots[*self.by_name.get(name)?];
        node.spec.is_some().then_some(node)
    }

    /// The names of all nodes that the API knows.
    pub fn node_names(&self) -> impl Iterator<Item = &str> {
        self.slots
            .iter()
            .filter(|n| n.spec.is_some())
            .map(|n| &*n.name)
    }

    /// The names of all namespaces.
    pub fn namespace_names(&self) -> impl Iterator<Item = &str> {
        self.namespaces.keys().map(String::as_str)
    }

    /// The labels of a namespace; none when it is not known.
    pub fn namespace_labels(&self, namespace: &str) -> &Labels {
        static NONE: Labels = Labels::new();
        self.namespaces.get(namespace).unwrap_or(&NONE)
    }

    /// The nodes that hold an image, with its size in bytes.
    pub fn image(&self, name: &str) -> Option<&HashMap<usize, i64>> {
        self.images.get(name)
    }

    /// The distinct required anti-affinity terms of placed pods: how many pods on which node have each.
    pub fn required_anti_terms(&self) -> &HashMap<AffinityTerm, HashMap<usize, i64>> {
        &self.anti_terms
    }

    /// The distinct terms by which placed pods attract (required and preferred affinity) or repel (preferred
    /// anti-affinity) others: by node the sum of weights, a required term weighing [`HARD_POD_AFFINITY_WEIGHT`],
    /// and the number of terms.
    pub fn scoring_terms(&self) -> &HashMap<AffinityTerm, HashMap<usize, (i64, usize)>> {
        &self.score_terms
    }

    /// Whether any node has a `PreferNoSchedule` taint.
    pub fn any_soft_taints(&self) -> bool {
        !self.soft_tainted.is_empty()
    }

    /// Which value of the label `key` each node carries.
    pub fn topology(&self, key: &str) -> Arc<Topology> {
        let mut derived = self.derived.lock();
        if let Some(topology) = derived.topologies.get(key) {
            return topology.clone();
        }
        let mut numbers: HashMap<&str, u32> = HashMap::new();
        let mut value_of = vec![NO_VALUE; self.slots.len()];
        for node in self.nodes() {
            if let Some(value) = node.label(key) {
                let next = u32::try_from(numbers.len()).unwrap_or(NO_VALUE);
                value_of[node.index] = *numbers.entry(value).or_insert(next);
            }
        }
        let topology = Arc::new(Topology {
            value_of,
            values: numbers.len(),
        });
        if derived.topologies.len() >= MAX_TOPOLOGIES {
            derived.topologies.clear();
        }
        derived.topologies.insert(key.to_owned(), topology.clone());
        topology
    }

    /// By node index: how many of the node's pods a predicate means. The first call for a predicate walks all pods;
    /// afterwards the counts follow each change.
    pub fn count_matching(&self, predicate: &PodPredicate) -> Arc<Vec<u32>> {
        let mut derived = self.derived.lock();
        derived.clock += 1;
        let now = derived.clock;
        if let Some(counted) = derived
            .counted
            .iter_mut()
            .find(|c| c.predicate == *predicate)
        {
            counted.last_used = now;
            return counted.per_node.clone();
        }
        let mut per_node = vec![0u32; self.slots.len()];
        for (node, count) in self.slots.iter().zip(&mut per_node) {
            *count = node
                .pods
                .iter()
                .filter(|p| predicate.matches(p, &self.namespaces))
                .count() as u32;
        }
        if derived.counted.len() >= MAX_COUNTED
            && let Some(oldest) =
                (0..derived.counted.len()).min_by_key(|i| derived.counted[*i].last_used)
        {
            derived.counted.swap_remove(oldest);
        }
        let per_node = Arc::new(per_node);
        derived.counted.push(Counted {
            predicate: predicate.clone(),
            per_node: per_node.clone(),
            last_used: now,
        });
        per_node
    }

    /// Whether `predicate` means `pod`.
    pub fn means(&self, predicate: &PodPredicate, pod: &PodInfo) -> bool {
        predicate.matches(pod, &self.namespaces)
    }

    // ---- changes, made between decisions ----

    /// Brings the order of nodes up to date after nodes came, went or changed zone. To be called before a decision.
    pub fn refresh_order(&mut self) {
        if !std::mem::take(&mut self.order_stale) {
            return;
        }
        let mut zones: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        let mut known: Vec<&NodeInfo> = self.slots.iter().filter(|n| n.spec.is_some()).collect();
        known.sort_by(|a, b| a.name.cmp(&b.name));
        let total = known.len();
        for node in known {
            zones
                .entry(node.spec().zone())
                .or_default()
                .push(node.index);
        }
        let zones: Vec<Vec<usize>> = zones.into_values().collect();
        let longest = zones.iter().map(Vec::len).max().unwrap_or(0);
        let mut order = Vec::with_capacity(total);
        for round in 0..longest {
            order.extend(zones.iter().filter_map(|zone| zone.get(round)));
        }
        self.order = order;
    }

    fn slot(&mut self, name: &str) -> usize {
        if let Some(index) = self.by_name.get(name) {
            return *index;
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(NodeInfo::default());
            self.slots.len() - 1
        });
        let node = NodeInfo::new(index, name);
        self.by_name.insert(node.name.clone(), index);
        self.slots[index] = node;
        let bound = self.slots.len();
        let derived = self.derived.get_mut();
        derived.topologies.clear();
        for counted in &mut derived.counted {
            Arc::make_mut(&mut counted.per_node).resize(bound, 0);
        }
        index
    }

    fn release_if_unused(&mut self, index: usize) {
        let node = &self.slots[index];
        if node.spec.is_none() && node.pods.is_empty() {
            self.by_name.remove(&node.name);
            self.slots[index] = NodeInfo::new(index, "");
            self.free.push(index);
        }
    }

    /// Takes in what the API says of a node; returns what it said before.
    pub fn set_node(&mut self, name: &str, spec: NodeSpec) -> Option<NodeSpec> {
        let index = self.slot(name);
        let old = self.slots[index].spec.take();
        if old.as_ref().is_none_or(|o| o.labels != spec.labels) {
            self.order_stale |= old.as_ref().is_none_or(|o| o.zone() != spec.zone());
            self.derived.get_mut().topologies.clear();
        }
        if old.as_ref().is_none_or(|o| o.images != spec.images) {
            self.index_images(index, old.as_ref(), Some(&spec));
        }
        let node = &mut self.slots[index];
        node.set_spec(spec);
        if node.has_soft_taints {
            self.soft_tainted.insert(index);
        } else {
            self.soft_tainted.remove(&index);
        }
        old
    }

    /// Forgets what the API said of a node. Its pods stay counted until they are removed in their turn.
    pub fn remove_node(&mut self, name: &str) -> Option<NodeSpec> {
        let index = *self.by_name.get(name)?;
        let old = self.slots[index].spec.take()?;
        self.index_images(index, Some(&old), None);
        self.soft_tainted.remove(&index);
        self.order_stale = true;
        self.derived.get_mut().topologies.clear();
        self.release_if_unused(index);
        Some(old)
    }

    fn index_images(&mut self, index: usize, old: Option<&NodeSpec>, new: Option<&NodeSpec>) {
        for (name, _) in old.into_iter().flat_map(|o| &o.images) {
            if let Some(nodes) = self.images.get_mut(name) {
                nodes.remove(&index);
                if nodes.is_empty() {
                    self.images.remove(name);
                }
            }
        }
        for (name, size) in new.into_iter().flat_map(|n| &n.images) {
            self.images
                .entry(name.clone())
                .or_default()
                .insert(index, *size);
        }
    }

    /// Counts a pod in on its node (which may not be known yet) and returns the node's index.
    pub fn add_pod(&mut self, node: &str, pod: Arc<PodInfo>) -> usize {
        let index = self.slot(node);
        self.count(index, &pod, 1);
        self.index_terms(index, &pod, 1);
        self.slots[index].add_pod(pod);
        index
    }

    /// Counts a pod out.
    pub fn remove_pod(&mut self, index: usize, uid: &str) {
        if let Some(pod) = self.slots[index].remove_pod(uid) {
            self.count(index, &pod, -1);
            self.index_terms(index, &pod, -1);
            self.release_if_unused(index);
        }
    }

    fn count(&mut self, index: usize, pod: &PodInfo, sign: i32) {
        let namespaces = &self.namespaces;
        for counted in &mut self.derived.get_mut().counted {
            if counted.predicate.matches(pod, namespaces) {
                let count = &mut Arc::make_mut(&mut counted.per_node)[index];
                *count = count.wrapping_add_signed(sign);
            }
        }
    }

    fn index_terms(&mut self, index: usize, pod: &PodInfo, sign: i64) {
        for term in &pod.required_anti_affinity {
            let nodes = entry(&mut self.anti_terms, term);
            let count = nodes.entry(index).or_default();
            *count += sign;
            if *count == 0 {
                nodes.remove(&index);
            }
            if nodes.is_empty() {
                self.anti_terms.remove(term);
            }
        }
        let required = pod
            .required_affinity
            .iter()
            .map(|t| (HARD_POD_AFFINITY_WEIGHT, t));
        let preferred = pod.preferred_affinity.iter().map(|(w, t)| (*w, t));
        let repelled = pod.preferred_anti_affinity.iter().map(|(w, t)| (-w, t));
        for (weight, term) in required.chain(preferred).chain(repelled) {
            let nodes = entry(&mut self.score_terms, term);
            let (sum, count) = nodes.entry(index).or_default();
            *sum += sign * weight;
            *count = count.wrapping_add_signed(sign as isize);
            if *count == 0 {
                nodes.remove(&index);
            }
            if nodes.is_empty() {
                self.score_terms.remove(term);
            }
        }
    }

    /// Takes in a namespace's labels; returns whether they changed.
    pub fn set_namespace(&mut self, name: &str, labels: Labels) -> bool {
        if self.namespaces.get(name) == Some(&labels) {
            return false;
        }
        self.namespaces.insert(name.to_owned(), labels);
        self.derived.get_mut().counted.clear();
        true
    }

    /// Forgets a namespace.
    pub fn remove_namespace(&mut self, name: &str) {
        if self.namespaces.remove(name).is_some() {
            self.derived.get_mut().counted.clear();
        }
    }
}

/// The entry of `term`.
fn entry<'m, V: Default>(map: &'m mut HashMap<AffinityTerm, V>, term: &AffinityTerm) -> &'m mut V {
    map.entry(term.clone()).or_default()
}
