//! The scheduling framework: extension points as traits, and the profile that runs them in order.
//!
//! A plugin's `PreFilter` and `PreScore` return the state of the cycle as a value of its own that then filters or scores
//! nodes; upstream passes such states through an untyped `CycleState`. Nothing here does I/O: what a plugin wants done
//! (a binding, evictions) is returned as data.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::event::{ClusterEvent, EventMask};
use crate::node::NodeInfo;
use crate::pod::{PendingPod, PodInfo};
use crate::snapshot::Snapshot;

/// The highest score of a node (`MaxNodeScore`).
pub const MAX_NODE_SCORE: i64 = 100;

/// Whether removing pods could make a rejected node fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// Other pods are in the way: preemption may help.
    Unschedulable,
    /// The node itself does not suit: preemption cannot help.
    UnschedulableAndUnresolvable,
}

/// Why a node, or all nodes, were rejected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// Whether preemption may help.
    pub code: Code,
    /// What the user is told; several where a node lacks several things.
    pub reasons: Vec<std::borrow::Cow<'static, str>>,
}

impl Rejection {
    /// Rejected because of what the node is.
    pub fn unresolvable(reason: &'static str) -> Self {
        Rejection {
            code: Code::UnschedulableAndUnresolvable,
            reasons: vec![reason.into()],
        }
    }

    /// Rejected because of the pods on it.
    pub fn unschedulable(reason: &'static str) -> Self {
        Rejection {
            code: Code::Unschedulable,
            reasons: vec![reason.into()],
        }
    }
}

/// What `PreFilter` found out about a pod.
pub enum PreFilter<'s> {
    /// The plugin has nothing to say of any node.
    Skip,
    /// Each node must pass the filter.
    Run(Box<dyn NodeFilter + 's>),
    /// Only these nodes can pass, and they must pass the filter too.
    RunOn(Box<dyn NodeFilter + 's>, BTreeSet<String>),
    /// No node can pass.
    Reject(Rejection),
}

/// A filter for one pod.
pub trait NodeFilter: Send {
    /// Whether the pod may run on the node.
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection>;
    /// Takes into account that `pod` came to `node` (`PreFilterExtensions.AddPod`).
    fn add_pod(&mut self, _pod: &PodInfo, _node: &NodeInfo) {}
    /// Takes into account that `pod` left `node` (`PreFilterExtensions.RemovePod`).
    fn remove_pod(&mut self, _pod: &PodInfo, _node: &NodeInfo) {}
    /// A copy whose changes do not show here.
    fn boxed_clone<'a>(&self) -> Box<dyn NodeFilter + 'a>
    where
        Self: 'a;
}

/// A scorer for one pod.
pub trait NodeScorer: Send {
    /// How well the node suits; any range when [`NodeScorer::normalize`] brings it to 0..=[`MAX_NODE_SCORE`].
    fn score(&self, node: &NodeInfo) -> i64;
    /// Brings the scores of all nodes into range.
    fn normalize(&self, _nodes: &[&NodeInfo], _scores: &mut [i64]) {}
}

/// What all plugins have.
pub trait Plugin: Send + Sync {
    /// The name in configuration, metrics and logs.
    fn name(&self) -> &'static str;
    /// The events that may make a pod schedulable that this plugin rejected (`EventsToRegister`).
    fn events(&self) -> EventMask {
        EventMask::NONE
    }
    /// Whether this one event, of a registered kind, may make `pod` schedulable (`QueueingHintFn`).
    fn hint(&self, _pod: &PendingPod, _event: &ClusterEvent<'_>) -> bool {
        true
    }
}

/// Decides whether a pod may enter the queue at all.
pub trait PreEnqueuePlugin: Plugin {
    /// `Err` keeps the pod out until an event registered by the plugin lets it in.
    fn pre_enqueue(&self, pod: &PendingPod) -> Result<(), Rejection>;
}

/// Rules nodes out.
pub trait FilterPlugin: Plugin {
    /// Looks at the pod once before nodes are tried.
    fn pre_filter<'s>(&self, snapshot: &'s Snapshot, pod: &'s PendingPod) -> PreFilter<'s>;
}

/// Ranks the nodes that are left.
pub trait ScorePlugin: Plugin {
    /// Looks at the pod and the feasible nodes once; `None` when all nodes would score alike.
    fn pre_score<'s>(
        &self,
        snapshot: &'s Snapshot,
        pod: &'s PendingPod,
        feasible: &[&'s NodeInfo],
    ) -> Option<Box<dyn NodeScorer + 's>>;
}

/// Runs when no node passed.
pub trait PostFilterPlugin: Plugin {
    /// Looks for a way to make room.
    fn post_filter(&self, cycle: &FailedCycle<'_>) -> PostFilter;
}

/// A cycle in which no node passed.
pub struct FailedCycle<'a> {
    /// The state it ran on.
    pub snapshot: &'a Snapshot,
    /// The profile it ran with.
    pub framework: &'a Framework,
    /// The pod.
    pub pod: &'a PendingPod,
    /// Pods nominated to nodes.
    pub nominator: &'a crate::nominator::Nominator,
    /// What each node said.
    pub diagnosis: &'a Diagnosis,
    /// A random number, for where to begin.
    pub seed: u64,
}

/// What `PostFilter` came to.
#[derive(Debug, Clone, PartialEq)]
pub enum PostFilter {
    /// Nothing done; the pod's nomination stays as it is.
    Unchanged(String),
    /// Nothing can be done; the pod's nomination is cleared.
    Hopeless(String),
    /// These pods must go so that the pod fits on the node.
    Preempt {
        /// The node.
        node: Arc<str>,
        /// Who must go, the most important first.
        victims: Vec<Arc<PodInfo>>,
    },
}

/// Takes hold of things outside the node for an assumed pod.
pub trait ReservePlugin: Plugin {
    /// Called once the pod is assumed; `Err` sends it back.
    fn reserve(&mut self, pod: &PodInfo, node: &str) -> Result<(), Rejection>;
    /// Undoes [`ReservePlugin::reserve`]; called for every failure after it, and must not fail.
    fn unreserve(&mut self, pod: &PodInfo, node: &str);
}

/// The set of plugins by index in [`Framework::names`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PluginSet(u64);

impl PluginSet {
    /// Adds a plugin.
    pub fn insert(&mut self, index: usize) {
        self.0 |= 1 << index;
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The members.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..64).filter(move |i| self.0 & (1 << i) != 0)
    }
}

/// What the nodes said when none passed.
#[derive(Debug, Clone, Default)]
pub struct Diagnosis {
    /// The nodes that were tried, by index, and why they were rejected.
    pub rejected: Vec<(usize, Rejection)>,
    /// What stands for nodes that were not tried.
    pub absent: Option<Rejection>,
    /// Set when `PreFilter` rejected all nodes at once.
    pub pre_filter_message: Option<String>,
    /// What `PostFilter` said.
    pub post_filter_message: String,
    /// Who rejected.
    pub plugins: PluginSet,
}

/// A profile: plugins in order with weights (`framework.Framework`).
pub struct Framework {
    /// `schedulerName` of the pods that it places.
    pub scheduler_name: String,
    /// Which share of nodes is looked at; 0 adapts to the size of the cluster.
    pub percentage_of_nodes_to_score: u32,
    plugins: Vec<Arc<dyn Plugin>>,
    pre_enqueue: Vec<(usize, Arc<dyn PreEnqueuePlugin>)>,
    filters: Vec<(usize, Arc<dyn FilterPlugin>)>,
    scores: Vec<(i64, Arc<dyn ScorePlugin>)>,
    post_filters: Vec<(usize, Arc<dyn PostFilterPlugin>)>,
}

impl Framework {
    /// A profile without plugins.
    pub fn new(scheduler_name: &str) -> Self {
        Framework {
            scheduler_name: scheduler_name.to_owned(),
            percentage_of_nodes_to_score: 0,
            plugins: Vec::new(),
            pre_enqueue: Vec::new(),
            filters: Vec::new(),
            scores: Vec::new(),
            post_filters: Vec::new(),
        }
    }

    fn register(&mut self, plugin: Arc<dyn Plugin>) -> usize {
        if let Some(at) = self.plugins.iter().position(|p| p.name() == plugin.name()) {
            return at;
        }
        self.plugins.push(plugin);
        self.plugins.len() - 1
    }

    /// Adds a plugin that guards the queue.
    pub fn pre_enqueue(mut self, plugin: Arc<impl PreEnqueuePlugin + 'static>) -> Self {
        let index = self.register(plugin.clone());
        self.pre_enqueue.push((index, plugin));
        self
    }

    /// Adds a filter behind those already there.
    pub fn filter(mut self, plugin: Arc<impl FilterPlugin + 'static>) -> Self {
        let index = self.register(plugin.clone());
        self.filters.push((index, plugin));
        self
    }

    /// Adds a scorer whose scores count `weight` times.
    pub fn score(mut self, weight: i64, plugin: Arc<impl ScorePlugin + 'static>) -> Self {
        self.register(plugin.clone());
        self.scores.push((weight, plugin));
        self
    }

    /// Adds a plugin that runs when no node passed.
    pub fn post_filter(mut self, plugin: Arc<impl PostFilterPlugin + 'static>) -> Self {
        let index = self.register(plugin.clone());
        self.post_filters.push((index, plugin));
        self
    }

    /// The names of a set of plugins.
    pub fn names(&self, set: PluginSet) -> Vec<&'static str> {
        set.iter()
            .filter_map(|i| self.plugins.get(i))
            .map(|p| p.name())
            .collect()
    }

    /// Whether the pod may enter the queue; `Err` with who keeps it out.
    pub fn run_pre_enqueue(&self, pod: &PendingPod) -> Result<(), (PluginSet, Rejection)> {
        for (index, plugin) in &self.pre_enqueue {
            plugin.pre_enqueue(pod).map_err(|rejection| {
                let mut set = PluginSet::default();
                set.insert(*index);
                (set, rejection)
            })?;
        }
        Ok(())
    }

    /// Whether an event may make a pod schedulable that `rejected_by` rejected.
    pub fn worth_retrying(
        &self,
        pod: &PendingPod,
        rejected_by: PluginSet,
        event: &ClusterEvent<'_>,
    ) -> bool {
        // A pod that no plugin rejected failed for another reason, which any event may have changed.
        rejected_by.is_empty()
            || rejected_by
                .iter()
                .filter_map(|i| self.plugins.get(i))
                .any(|p| p.events().contains(event.kind()) && p.hint(pod, event))
    }

    /// Runs `PreFilter` of all filters. `Err` when one rejected all nodes.
    pub fn run_pre_filter<'s>(
        &self,
        snapshot: &'s Snapshot,
        pod: &'s PendingPod,
    ) -> Result<Filters<'s>, Diagnosis> {
        let mut filters = Filters {
            active: Vec::new(),
            only: None,
            only_by: PluginSet::default(),
        };
        for (index, plugin) in &self.filters {
            match plugin.pre_filter(snapshot, pod) {
                PreFilter::Skip => {}
                PreFilter::Run(filter) => filters.active.push((*index, filter)),
                PreFilter::RunOn(filter, names) => {
                    filters.active.push((*index, filter));
                    filters.only_by.insert(*index);
                    filters.only = Some(match filters.only.take() {
                        None => names,
                        Some(seen) => seen.intersection(&names).cloned().collect(),
                    });
                    if filters.only.as_ref().is_some_and(BTreeSet::is_empty) {
                        let mut message = format!(
                            "node(s) didn't satisfy plugin(s) {} simultaneously",
                            bracketed(&self.names(filters.only_by))
                        );
                        if filters.only_by.iter().count() == 1 {
                            message = format!("node(s) didn't satisfy plugin {}", plugin.name());
                        }
                        return Err(Diagnosis {
                            absent: Some(Rejection {
                                code: Code::UnschedulableAndUnresolvable,
                                reasons: vec![message.clone().into()],
                            }),
                            pre_filter_message: Some(message),
                            plugins: filters.only_by,
                            ..Diagnosis::default()
                        });
                    }
                }
                PreFilter::Reject(rejection) => {
                    let mut plugins = PluginSet::default();
                    plugins.insert(*index);
                    return Err(Diagnosis {
                        pre_filter_message: Some(rejection.reasons.join(", ")),
                        absent: Some(rejection),
                        plugins,
                        ..Diagnosis::default()
                    });
                }
            }
        }
        Ok(filters)
    }

    /// Scores the feasible nodes: the weighted sum of all scorers, in the nodes' order.
    pub fn run_score(
        &self,
        snapshot: &Snapshot,
        pod: &PendingPod,
        feasible: &[&NodeInfo],
    ) -> Vec<i64> {
        let mut totals = vec![0i64; feasible.len()];
        let mut scores = vec![0i64; feasible.len()];
        for (weight, plugin) in &self.scores {
            let Some(scorer) = plugin.pre_score(snapshot, pod, feasible) else {
                continue;
            };
            for (score, node) in scores.iter_mut().zip(feasible) {
                *score = scorer.score(node);
            }
            scorer.normalize(feasible, &mut scores);
            for (total, score) in totals.iter_mut().zip(&scores) {
                *total += weight * score;
            }
        }
        totals
    }

    /// Runs `PostFilter` until one plugin finds something to do.
    pub fn run_post_filter(&self, cycle: &FailedCycle<'_>) -> Option<PostFilter> {
        let mut last = None;
        for (_, plugin) in &self.post_filters {
            let result = plugin.post_filter(cycle);
            let done = matches!(result, PostFilter::Preempt { .. });
            last = Some(result);
            if done {
                break;
            }
        }
        last
    }
}

/// The plugins' names as Go prints a list of strings.
pub fn bracketed(names: &[&str]) -> String {
    let mut sorted = names.to_vec();
    sorted.sort_unstable();
    format!("[{}]", sorted.join(" "))
}

/// The filters that have something to say of one pod.
pub struct Filters<'s> {
    active: Vec<(usize, Box<dyn NodeFilter + 's>)>,
    /// When set, only these nodes can pass.
    pub only: Option<BTreeSet<String>>,
    /// Who confined the nodes.
    pub only_by: PluginSet,
}

impl<'s> Filters<'s> {
    /// Whether the pod may run on the node; the first filter to reject decides.
    pub fn run(&self, node: &NodeInfo) -> Result<(), (usize, Rejection)> {
        for (index, filter) in &self.active {
            filter
                .filter(node)
                .map_err(|rejection| (*index, rejection))?;
        }
        Ok(())
    }

    /// Like [`Filters::run`], and the node must also do when the pods nominated to it with at least the pod's priority
    /// have come (`RunFilterPluginsWithNominatedPods`). Both must hold: nominated pods may never come, and the pod must
    /// not depend on them.
    pub fn run_with_nominated(
        &self,
        pod: &PendingPod,
        node: &NodeInfo,
        nominator: &crate::nominator::Nominator,
    ) -> Result<(), (usize, Rejection)> {
        let nominated = nominator.on_node(&node.name, &pod.info);
        if !nominated.is_empty() {
            let mut crowded = node.clone();
            let mut filters = self.duplicate();
            for other in nominated {
                crowded.add_pod(other.clone());
                filters.add_pod(&other, &crowded);
            }
            filters.run(&crowded)?;
        }
        self.run(node)
    }

    /// Takes into account that a pod came to a node.
    pub fn add_pod(&mut self, pod: &PodInfo, node: &NodeInfo) {
        for (_, filter) in &mut self.active {
            filter.add_pod(pod, node);
        }
    }

    /// Takes into account that a pod left a node.
    pub fn remove_pod(&mut self, pod: &PodInfo, node: &NodeInfo) {
        for (_, filter) in &mut self.active {
            filter.remove_pod(pod, node);
        }
    }

    /// A copy whose changes do not show here.
    pub fn duplicate(&self) -> Filters<'s> {
        Filters {
            active: self
                .active
                .iter()
                .map(|(i, f)| (*i, f.boxed_clone()))
                .collect(),
            only: self.only.clone(),
            only_by: self.only_by,
        }
    }
}
