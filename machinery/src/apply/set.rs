//! Sets of paths (upstream `fieldpath.Set`) and their JSON form `FieldsV1`.
//!
//! `{"f:spec":{"f:replicas":{},"f:ports":{"k:{\"port\":80}":{".":{}}}}}` holds `.spec.replicas` and
//! `.spec.ports[port=80]`: a step without members below it is in the set, one with members only if `.` is there.

use std::collections::BTreeMap;

use super::path::PathElement;
use crate::value::{Object, Value};

/// What a set says about one step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// The path that ends here is in the set.
    pub member: bool,
    /// The paths that go on.
    pub children: Set,
}

impl Node {
    /// Whether neither the path nor anything below it is in the set.
    pub fn is_empty(&self) -> bool {
        !self.member && self.children.is_empty()
    }
}

/// A set of paths. Nodes that hold nothing are never kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set(BTreeMap<PathElement, Node>);

impl Set {
    /// The set of these paths of member names.
    pub fn of_fields(paths: &[&[&'static str]]) -> Set {
        let mut set = Set::default();
        for path in paths {
            let path: Vec<PathElement> =
                path.iter().map(|name| PathElement::field(*name)).collect();
            set.insert(&path);
        }
        set
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The first steps.
    pub fn iter(&self) -> impl Iterator<Item = (&PathElement, &Node)> {
        self.0.iter()
    }

    /// What is known of a first step.
    pub fn get(&self, step: &PathElement) -> Option<&Node> {
        self.0.get(step)
    }

    /// Adds what a node holds.
    pub fn put(&mut self, step: PathElement, node: Node) {
        if node.is_empty() {
            return;
        }
        match self.0.entry(step) {
            std::collections::btree_map::Entry::Vacant(slot) => {
                slot.insert(node);
            }
            std::collections::btree_map::Entry::Occupied(mut slot) => {
                let there = slot.get_mut();
                there.member |= node.member;
                there.children = there.children.union(&node.children);
            }
        }
    }

    /// Adds a path.
    pub fn insert(&mut self, path: &[PathElement]) {
        let Some((last, way)) = path.split_last() else {
            return;
        };
        let mut at = self;
        for step in way {
            at = &mut at.0.entry(step.clone()).or_default().children;
        }
        at.0.entry(last.clone()).or_default().member = true;
    }

    /// Whether a path is in the set.
    pub fn has(&self, path: &[PathElement]) -> bool {
        let Some((last, way)) = path.split_last() else {
            return false;
        };
        let mut at = self;
        for step in way {
            match at.0.get(step) {
                Some(node) => at = &node.children,
                None => return false,
            }
        }
        at.0.get(last).is_some_and(|node| node.member)
    }

    /// Paths in either.
    pub fn union(&self, other: &Set) -> Set {
        let mut out = self.clone();
        for (step, node) in &other.0 {
            out.put(step.clone(), node.clone());
        }
        out
    }

    /// Paths in both.
    pub fn intersection(&self, other: &Set) -> Set {
        let mut out = Set::default();
        for (step, node) in &self.0 {
            if let Some(there) = other.0.get(step) {
                let both = Node {
                    member: node.member && there.member,
                    children: node.children.intersection(&there.children),
                };
                out.put(step.clone(), both);
            }
        }
        out
    }

    /// Paths in this one only.
    pub fn difference(&self, other: &Set) -> Set {
        self.without(other, false)
    }

    /// Paths in this one that neither are in the other nor begin with a path in it.
    pub fn recursive_difference(&self, other: &Set) -> Set {
        self.without(other, true)
    }

    fn without(&self, other: &Set, recursive: bool) -> Set {
        if other.is_empty() {
            return self.clone();
        }
        let mut out = Set::default();
        for (step, node) in &self.0 {
            match other.0.get(step) {
                None => {
                    out.0.insert(step.clone(), node.clone());
                }
                Some(there) if recursive && there.member => {}
                Some(there) => out.put(
                    step.clone(),
                    Node {
                        member: node.member && !there.member,
                        children: node.children.without(&there.children, recursive),
                    },
                ),
            }
        }
        out
    }

    /// All paths, in upstream's order: those that end at a level come before those that go on.
    pub fn paths(&self) -> Vec<Vec<PathElement>> {
        fn walk(set: &Set, prefix: &mut Vec<PathElement>, out: &mut Vec<Vec<PathElement>>) {
            for (step, node) in &set.0 {
                if node.member {
                    prefix.push(step.clone());
                    out.push(prefix.clone());
                    prefix.pop();
                }
            }
            for (step, node) in &set.0 {
                prefix.push(step.clone());
                walk(&node.children, prefix, out);
                prefix.pop();
            }
        }
        let mut out = Vec::new();
        walk(self, &mut Vec::new(), &mut out);
        out
    }

    /// The `FieldsV1` form.
    pub fn to_fields(&self) -> Value {
        fn object(set: &Set, dot: bool) -> Value {
            let mut out = Object::new();
            if dot && !set.is_empty() {
                out.insert(".".to_string(), Value::Object(Object::new()));
            }
            for (step, node) in &set.0 {
                out.insert(step.to_key(), object(&node.children, node.member));
            }
            Value::Object(out)
        }
        object(self, false)
    }

    /// Reads a `FieldsV1`.
    pub fn from_fields(fields: &Value) -> Result<Set, String> {
        fn node(fields: &Value) -> Result<Node, String> {
            let object = fields
                .as_object()
                .ok_or_else(|| "a set of fields must be an object".to_string())?;
            let mut out = Node::default();
            for (key, below) in object {
                if key == "." {
                    out.member = true;
                } else if let Some(step) = PathElement::from_key(key)? {
                    out.children.put(step, node(below)?);
                }
            }
            out.member |= out.children.is_empty();
            Ok(out)
        }
        Ok(node(fields)?.children)
    }
}
