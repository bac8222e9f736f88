//! Who owns whom, as the informers tell it. No I/O: a change goes in, what is to be looked at comes out.
//!
//! The graph is only a hint about where to look. Nothing is deleted on its word: the collector asks the server first.

use std::collections::{HashMap, HashSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

/// Finalizer of a deletion that waits for dependents.
pub const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of a deletion that leaves dependents behind.
pub const ORPHAN: &str = "orphan";

/// The identity of an object, unique over time.
pub type Uid = String;

/// Where an object is found.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Group and version that the graph watches it by.
    pub api_version: String,
    /// Kind.
    pub kind: String,
    /// Namespace; empty for cluster-scoped objects.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Unique identifier.
    pub uid: Uid,
}

/// Upstream `objectReference.String`.
impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "[{}/{}, namespace: {}, name: {}, uid: {}]",
            self.api_version, self.kind, self.namespace, self.name, self.uid
        )
    }
}

/// One object that exists.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Where it is found.
    pub identity: Identity,
    /// Its owner references.
    pub owners: Vec<OwnerReference>,
    /// Whether it is on its way out.
    pub being_deleted: bool,
    /// Whether it is on its way out and waits for its dependents.
    pub deleting_dependents: bool,
    /// Whether it is on its way out and its dependents are to be set free.
    pub orphaning: bool,
}

impl Node {
    /// A node from an object's metadata; `None` without a uid.
    pub fn of(api_version: &str, kind: &str, meta: &ObjectMeta) -> Option<Self> {
        let finalizers = meta.finalizers.as_deref().unwrap_or_default();
        let being_deleted = meta.deletion_timestamp.is_some();
        let has = |name: &str| being_deleted && finalizers.iter().any(|f| f == name);
        Some(Node {
            identity: Identity {
                api_version: api_version.to_owned(),
                kind: kind.to_owned(),
                namespace: meta.namespace.clone().unwrap_or_default(),
                name: meta.name.clone()?,
                uid: meta.uid.clone().filter(|uid| !uid.is_empty())?,
            },
            owners: meta.owner_references.clone().unwrap_or_default(),
            being_deleted,
            deleting_dependents: has(FOREGROUND),
            orphaning: has(ORPHAN),
        })
    }

    fn refers_to(&self, uid: &str) -> Option<&OwnerReference> {
        self.owners.iter().find(|owner| owner.uid == uid)
    }

    /// Whether its reference to `uid` blocks the deletion of that owner.
    pub fn blocks(&self, uid: &str) -> bool {
        self.refers_to(uid)
            .is_some_and(|owner| owner.block_owner_deletion == Some(true))
    }
}

/// What a change makes worth a look.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Look {
    /// Whether this object must go (upstream `attemptToDelete`).
    Delete(Uid),
    /// This object's dependents are to be set free (upstream `attemptToOrphan`).
    Orphan(Uid),
    /// This object names an owner that is not where the reference says: dependent, owner.
    Invalid(Uid, Uid),
}

/// The graph of all objects that can be deleted.
#[derive(Debug, Default)]
pub struct Graph {
    nodes: HashMap<Uid, Node>,
    /// By owner, whether that owner was seen or not.
    dependents: HashMap<Uid, HashSet<Uid>>,
}

/// Whether a reference made in `namespace` means this object (upstream `ownerReferenceMatchesCoordinates`; the version
/// may differ, since an object is watched by one version only).
fn means(reference: &OwnerReference, namespace: &str, owner: &Identity) -> bool {
    let group = |api_version: &str| {
        api_version
            .split_once('/')
            .map_or(String::new(), |(group, _)| group.to_owned())
    };
    reference.kind == owner.kind
        && reference.name == owner.name
        && group(&reference.api_version) == group(&owner.api_version)
        && (owner.namespace.is_empty() || owner.namespace == namespace)
}

impl Graph {
    /// The node of an object.
    pub fn get(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    /// Those that refer to an object.
    pub fn dependents(&self, uid: &str) -> Vec<&Node> {
        self.dependents
            .get(uid)
            .into_iter()
            .flatten()
            .filter_map(|dependent| self.nodes.get(dependent))
            .collect()
    }

    /// How many objects are known.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Whether every owner of an object was seen where the reference says, and none of them is waiting for it: then
    /// nothing needs to be asked.
    pub fn is_settled(&self, node: &Node) -> bool {
        node.owners.iter().all(|owner| {
            self.nodes.get(&owner.uid).is_some_and(|seen| {
                !seen.deleting_dependents && means(owner, &node.identity.namespace, &seen.identity)
            })
        })
    }

    /// Whether some owner was never seen: it may come and go unseen, so the object must be looked at again.
    pub fn has_unseen_owner(&self, node: &Node) -> bool {
        node.owners
            .iter()
            .any(|owner| !self.nodes.contains_key(&owner.uid))
    }

    /// An object was added or has changed.
    pub fn upsert(&mut self, node: Node) -> Vec<Look> {
        let uid = node.identity.uid.clone();
        let mut looks = Vec::new();
        let old = self.nodes.insert(uid.clone(), node.clone());
        let old_owners: &[OwnerReference] = old.as_ref().map_or(&[], |old| &old.owners);
        for gone in old_owners {
            let now = node.refers_to(&gone.uid);
            if now.is_none()
                && let Some(dependents) = self.dependents.get_mut(&gone.uid)
            {
                dependents.remove(&uid);
                if dependents.is_empty() {
                    self.dependents.remove(&gone.uid);
                }
            }
            let unblocked = gone.block_owner_deletion == Some(true)
                && now.is_none_or(|now| now.block_owner_deletion != Some(true));
            if unblocked
                && self
                    .nodes
                    .get(&gone.uid)
                    .is_some_and(|owner| owner.deleting_dependents)
            {
                looks.push(Look::Delete(gone.uid.clone()));
            }
        }
        for owner in &node.owners {
            let known = old_owners.iter().any(|old| old.uid == owner.uid);
            if known {
                continue;
            }
            self.dependents
                .entry(owner.uid.clone())
                .or_default()
                .insert(uid.clone());
            match self.nodes.get(&owner.uid) {
                None => looks.push(Look::Delete(uid.clone())),
                Some(seen) => {
                    if !means(owner, &node.identity.namespace, &seen.identity) {
                        looks.push(Look::Invalid(uid.clone(), owner.uid.clone()));
                        looks.push(Look::Delete(uid.clone()));
                    } else if seen.deleting_dependents {
                        looks.push(Look::Delete(owner.uid.clone()));
                    }
                }
            }
        }
        if old.is_none() {
            for dependent in self.dependents(&uid) {
                let reference = dependent.refers_to(&uid);
                if reference
                    .is_some_and(|r| !means(r, &dependent.identity.namespace, &node.identity))
                {
                    let dependent = dependent.identity.uid.clone();
                    looks.push(Look::Invalid(dependent.clone(), uid.clone()));
                    looks.push(Look::Delete(dependent));
                }
            }
        }
        if node.orphaning && !old.as_ref().is_some_and(|old| old.orphaning) {
            looks.push(Look::Orphan(uid.clone()));
        }
        if node.deleting_dependents && !old.as_ref().is_some_and(|old| old.deleting_dependents) {
            let dependents = self.dependents(&uid);
            looks.extend(
                dependents
                    .into_iter()
                    .map(|dependent| Look::Delete(dependent.identity.uid.clone())),
            );
            looks.push(Look::Delete(uid));
        }
        looks.sort();
        looks.dedup();
        looks
    }

    /// An object is gone.
    pub fn remove(&mut self, uid: &str) -> Vec<Look> {
        let Some(node) = self.nodes.remove(uid) else {
            return Vec::new();
        };
        let mut looks = Vec::new();
        for owner in &node.owners {
            if let Some(dependents) = self.dependents.get_mut(&owner.uid) {
                dependents.remove(uid);
                if dependents.is_empty() {
                    self.dependents.remove(&owner.uid);
                }
            }
            if self
                .nodes
                .get(&owner.uid)
                .is_some_and(|owner| owner.deleting_dependents)
            {
                looks.push(Look::Delete(owner.uid.clone()));
            }
        }
        let dependents = self.dependents(uid);
        looks.extend(
            dependents
                .into_iter()
                .map(|dependent| Look::Delete(dependent.identity.uid.clone())),
        );
        looks.sort();
        looks.dedup();
        looks
    }

    /// The resource is no longer served: its objects are forgotten, and those that they owned are looked at.
    pub fn remove_kind(&mut self, api_version: &str, kind: &str) -> Vec<Look> {
        let gone: Vec<Uid> = self
            .nodes
            .values()
            .filter(|node| node.identity.api_version == api_version && node.identity.kind == kind)
            .map(|node| node.identity.uid.clone())
            .collect();
        gone.iter().flat_map(|uid| self.remove(uid)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(text: &str) -> Node {
        // kind/namespace/uid [flags] <- owner-kind/uid[!] ...
        let (head, owners) = text.split_once("<-").unwrap_or((text, ""));
        let mut words = head.split_whitespace();
        let parts: Vec<&str> = words.next().unwrap().split('/').collect();
        let flags: Vec<&str> = words.collect();
        Node {
            identity: Identity {
                api_version: "v1".into(),
                kind: parts[0].into(),
                namespace: parts[1].into(),
                name: parts[2].into(),
                uid: parts[2].into(),
            },
            owners: owners
                .split_whitespace()
                .map(|text| {
                    let (kind, uid) = text.split_once('/').unwrap();
                    OwnerReference {
                        api_version: "v1".into(),
                        kind: kind.into(),
                        name: uid.trim_end_matches('!').into(),
                        uid: uid.trim_end_matches('!').into(),
                        controller: None,
                        block_owner_deletion: Some(uid.ends_with('!')),
                    }
                })
                .collect(),
            being_deleted: !flags.is_empty(),
            deleting_dependents: flags.contains(&"foreground"),
            orphaning: flags.contains(&"orphan"),
        }
    }

    fn play(script: &str) -> String {
        let mut graph = Graph::default();
        let mut out = Vec::new();
        for line in script.lines().map(str::trim).filter(|l| !l.is_empty()) {
            let looks = match line.strip_prefix("gone ") {
                Some(uid) => graph.remove(uid),
                None => graph.upsert(node(line)),
            };
            let looks: Vec<String> = looks
                .into_iter()
                .map(|look| match look {
                    Look::Delete(uid) => uid,
                    Look::Orphan(uid) => format!("orphan:{uid}"),
                    Look::Invalid(uid, owner) => format!("invalid:{uid}->{owner}"),
                })
                .collect();
            out.push(looks.join(" "));
        }
        out.join("|")
    }

    #[test]
    fn changes_name_what_is_worth_a_look() {
        let cases = [
            // Background: the owner goes, its dependents are looked at.
            ("RS/ns/rs\nPod/ns/p <- RS/rs\ngone rs", "||p"),
            // A dependent that comes before its owner is looked at, and is settled later.
            ("Pod/ns/p <- RS/rs\nRS/ns/rs\ngone rs", "p||p"),
            // Foreground: dependents first, then the owner again as each goes.
            (
                "RS/ns/rs\nPod/ns/p <- RS/rs!\nRS/ns/rs foreground\ngone p",
                "||p rs|rs",
            ),
            // A reference that stops blocking frees the waiting owner.
            (
                "RS/ns/rs foreground\nPod/ns/p <- RS/rs!\nPod/ns/p <- RS/rs",
                "rs|rs|rs",
            ),
            // Orphan once.
            ("RS/ns/rs\nRS/ns/rs orphan\nRS/ns/rs orphan", "|orphan:rs|"),
            // An owner in another namespace, seen before or after.
            ("RS/other/rs\nPod/ns/p <- RS/rs", "|p invalid:p->rs"),
            ("Pod/ns/p <- RS/rs\nRS/other/rs", "p|p invalid:p->rs"),
            // A cluster-scoped owner is reached from any namespace; another kind is not meant.
            ("Node//n\nPod/ns/p <- Node/n", "|"),
            ("Node//n\nPod/ns/p <- RS/n", "|p invalid:p->n"),
            // A removed reference no longer counts.
            ("RS/ns/rs\nPod/ns/p <- RS/rs\nPod/ns/p\ngone rs", "|||"),
        ];
        for (script, expected) in cases {
            assert_eq!(play(script), expected, "{script}");
        }
    }
}
