//! Plans of what to do with the parts of an object by their types: tables name types, and a plan finds the way from a
//! root type to all of them, past everything else.

use std::collections::HashMap;
use std::sync::Arc;

use keelson_machinery::schema::{Field, Kind, Type};
use parking_lot::RwLock;

/// What to do below a root type.
pub struct Plan<A> {
    /// The root is the first.
    pub nodes: Vec<Node<A>>,
}

/// What to do with a value of one type.
pub struct Node<A> {
    /// What the tables say of the type itself.
    pub actions: Option<A>,
    /// Members below which something is to be done, with their nodes.
    pub children: Vec<(&'static Field, usize)>,
}

impl<A> Plan<A> {
    /// The plan of a root; `own` says what is to be done with a type.
    pub fn new(root: &'static Type, own: impl Fn(&'static Type) -> Option<A>) -> Plan<A> {
        // All types below the root, each once; types may contain themselves.
        let mut types = vec![root];
        let mut index: HashMap<&'static str, usize> = HashMap::from([(root.name(), 0)]);
        let mut below: Vec<Vec<(&'static Field, usize)>> = Vec::new();
        let mut next = 0;
        while let Some(of) = types.get(next).copied() {
            next += 1;
            let mut members = Vec::new();
            for field in of.fields().iter().copied() {
                if let Kind::Message(inner) = field.kind {
                    let at = *index.entry(inner.name()).or_insert_with(|| {
                        types.push(inner);
                        types.len() - 1
                    });
                    members.push((field, at));
                }
            }
            below.push(members);
        }
        let actions: Vec<Option<A>> = types.iter().map(|of| own(of)).collect();
        // What leads to a type with something to do has something to do.
        let mut busy: Vec<bool> = actions.iter().map(Option::is_some).collect();
        loop {
            let mut grown = false;
            for (at, members) in below.iter().enumerate() {
                if !busy[at] && members.iter().any(|(_, inner)| busy[*inner]) {
                    busy[at] = true;
                    grown = true;
                }
            }
            if !grown {
                break;
            }
        }
        let nodes = actions
            .into_iter()
            .zip(below)
            .map(|(actions, mut children)| {
                children.retain(|(_, inner)| busy[*inner]);
                Node { actions, children }
            })
            .collect();
        Plan { nodes }
    }
}

/// The plans of root types; each is made at the first object of its type.
pub struct Plans<A> {
    own: fn(&'static Type) -> Option<A>,
    made: RwLock<HashMap<&'static str, Arc<Plan<A>>>>,
}

impl<A> Plans<A> {
    /// No plans yet.
    pub fn new(own: fn(&'static Type) -> Option<A>) -> Plans<A> {
        Plans {
            own,
            made: RwLock::default(),
        }
    }

    /// The plan of a root type.
    pub fn of(&self, root: &'static Type) -> Arc<Plan<A>> {
        if let Some(plan) = self.made.read().get(root.name()) {
            return plan.clone();
        }
        let plan = Arc::new(Plan::new(root, self.own));
        self.made.write().insert(root.name(), plan.clone());
        plan
    }
}

/// The name by which tables call a type: `core.v1.Pod`.
pub fn short_name(of: &'static Type) -> &'static str {
    let name = of.name();
    name.strip_prefix("io.k8s.api.")
        .or_else(|| name.strip_prefix("io.k8s."))
        .unwrap_or(name)
}
