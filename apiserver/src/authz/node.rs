//! What kubelets may do (`plugin/pkg/auth/authorizer/node`): fixed rules, and for Secrets, ConfigMaps, claims and the
//! like only those that a Pod bound to the node refers to. A kubelet that falls into wrong hands opens what its own
//! Pods see, and no more.
//!
//! What Pods, volumes and attachments refer to is kept as counts per object and node, so that a question is one
//! lookup, however many Pods refer to the object.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use async_trait::async_trait;
use keelson_machinery::meta;
use keelson_machinery::selector::FieldSelector;
use keelson_machinery::value::{self, Value};
use parking_lot::RwLock;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::rules::Rule;
use super::{Attributes, Authorizer, Decision, ResolvedRules, RuleResolver};
use crate::objects::{Objects, follow};
use crate::reader::{Change, GroupResource};
use crate::request::{RequestInfo, UserInfo};

/// The node a user is the kubelet of (`nodeidentifier.NodeIdentity`). `Some("")`: a node that does not say which.
pub fn node_identity(user: &UserInfo) -> Option<&str> {
    let in_group = user.groups.iter().any(|group| group == "system:nodes");
    user.name.strip_prefix("system:node:").filter(|_| in_group)
}

/// What a Pod may refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reference {
    /// The Pod itself.
    Pod,
    /// A Secret: as volume, in the environment, or to pull images with.
    Secret,
    /// A ConfigMap: as volume or in the environment.
    ConfigMap,
    /// A PersistentVolumeClaim, made for an ephemeral volume included.
    Claim,
    /// Its ServiceAccount.
    ServiceAccount,
    /// A ResourceClaim.
    ResourceClaim,
}

type Name = (String, String);

/// A Pod's node and what it refers to.
struct PodRefs {
    node: String,
    refs: Vec<(Reference, String)>,
}

/// Who refers to what.
#[derive(Default)]
struct Graph {
    pods: HashMap<Name, PodRefs>,
    /// How many Pods of each node refer to an object.
    counts: HashMap<(Reference, Name), HashMap<String, usize>>,
    /// The claim of each bound volume, and the Secrets that kubelets need for it.
    volumes: HashMap<String, (Name, Vec<Name>)>,
    /// The volumes that need a Secret.
    volumes_of_secret: HashMap<Name, BTreeSet<String>>,
    attachments: HashMap<String, String>,
    slices: HashMap<String, String>,
}

const RESOURCES: [(&str, &str); 4] = [
    ("", "pods"),
    ("", "persistentvolumes"),
    ("storage.k8s.io", "volumeattachments"),
    ("resource.k8s.io", "resourceslices"),
];

fn key(object: &Value) -> Name {
    (
        meta::namespace(object).to_owned(),
        meta::name(object).to_owned(),
    )
}

impl Graph {
    fn apply(&mut self, index: usize, change: Change) {
        match (RESOURCES[index].1, change) {
            ("pods", Change::Applied(pod)) => self.set_pod(&pod),
            ("pods", Change::Deleted(pod)) => self.remove_pod(&key(&pod)),
            ("persistentvolumes", Change::Applied(volume)) => self.set_volume(&volume),
            ("persistentvolumes", Change::Deleted(volume)) => {
                self.remove_volume(meta::name(&volume))
            }
            ("volumeattachments", change) => set_node(&mut self.attachments, change),
            (_, change) => set_node(&mut self.slices, change),
        }
    }

    fn set_pod(&mut self, pod: &Value) {
        let at = key(pod);
        let node = value::str_or_empty(pod, &["spec", "nodeName"]);
        if node.is_empty() {
            self.remove_pod(&at);
            return;
        }
        let mut refs = vec![(Reference::Pod, at.1.clone())];
        // A mirror Pod is made by the node itself: it must not open anything.
        if meta::annotation(pod, "kubernetes.io/config.mirror").is_none() {
            pod_references(pod, &mut |kind, name| refs.push((kind, name.to_owned())));
        }
        // Most changes are of the status, and change nothing here.
        if self
            .pods
            .get(&at)
            .is_some_and(|known| known.node == node && known.refs == refs)
        {
            return;
        }
        self.remove_pod(&at);
        for (kind, name) in &refs {
            *self
                .counts
                .entry((*kind, (at.0.clone(), name.clone())))
                .or_default()
                .entry(node.to_owned())
                .or_default() += 1;
        }
        self.pods.insert(
            at,
            PodRefs {
                node: node.to_owned(),
                refs,
            },
        );
    }

    fn remove_pod(&mut self, at: &Name) {
        let Some(pod) = self.pods.remove(at) else {
            return;
        };
        for (kind, name) in pod.refs {
            let entry = (kind, (at.0.clone(), name));
            let Some(nodes) = self.counts.get_mut(&entry) else {
                continue;
            };
            if let Some(count) = nodes.get_mut(&pod.node) {
                *count -= 1;
                if *count == 0 {
                    nodes.remove(&pod.node);
                }
            }
            if nodes.is_empty() {
                self.counts.remove(&entry);
            }
        }
    }

    fn set_volume(&mut self, volume: &Value) {
        let name = meta::name(volume).to_owned();
        self.remove_volume(&name);
        let Some(claim) = value::get(volume, &["spec", "claimRef"]) else {
            return;
        };
        let text = |field: &str| value::str_or_empty(claim, &[field]).to_owned();
        let claim = (text("namespace"), text("name"));
        let secrets = volume_secrets(volume, &claim.0);
        for secret in &secrets {
            self.volumes_of_secret
                .entry(secret.clone())
                .or_default()
                .insert(name.clone());
        }
        self.volumes.insert(name, (claim, secrets));
    }

    fn remove_volume(&mut self, name: &str) {
        let Some((_, secrets)) = self.volumes.remove(name) else {
            return;
        };
        for secret in secrets {
            if let Some(volumes) = self.volumes_of_secret.get_mut(&secret) {
                volumes.remove(name);
                if volumes.is_empty() {
                    self.volumes_of_secret.remove(&secret);
                }
            }
        }
    }

    fn refers(&self, node: &str, kind: Reference, namespace: &str, name: &str) -> bool {
        let counted = |kind, at: &Name| {
            self.counts
                .get(&(kind, at.clone()))
                .is_some_and(|nodes| nodes.contains_key(node))
        };
        let at = (namespace.to_owned(), name.to_owned());
        counted(kind, &at)
            || (kind == Reference::Secret
                && self.volumes_of_secret.get(&at).is_some_and(|volumes| {
                    volumes.iter().any(|volume| self.has_volume(node, volume))
                }))
    }

    fn has_volume(&self, node: &str, name: &str) -> bool {
        self.volumes
            .get(name)
            .is_some_and(|(claim, _)| self.refers(node, Reference::Claim, &claim.0, &claim.1))
    }
}

fn set_node(table: &mut HashMap<String, String>, change: Change) {
    match change {
        Change::Applied(object) => {
            let node = value::str_or_empty(&object, &["spec", "nodeName"]);
            table.insert(meta::name(&object).to_owned(), node.to_owned());
        }
        Change::Deleted(object) => drop(table.remove(meta::name(&object))),
        Change::Synced => {}
    }
}

/// Everything that a Pod's kubelet must read (`VisitPodSecretNames`, `VisitPodConfigmapNames` and the rest of `AddPod`).
pub fn pod_references(pod: &Value, visit: &mut impl FnMut(Reference, &str)) {
    let mut some = |kind, at: &Value, path: &[&str]| {
        if let Some(name) = value::get_str(at, path).filter(|name| !name.is_empty()) {
            visit(kind, name);
        }
    };
    let spec = |field: &str| value::items(pod, &["spec", field]);
    some(
        Reference::ServiceAccount,
        pod,
        &["spec", "serviceAccountName"],
    );
    for reference in spec("imagePullSecrets") {
        some(Reference::Secret, reference, &["name"]);
    }
    for container in ["containers", "initContainers", "ephemeralContainers"]
        .into_iter()
        .flat_map(spec)
    {
        for source in value::items(container, &["envFrom"]) {
            some(Reference::Secret, source, &["secretRef", "name"]);
            some(Reference::ConfigMap, source, &["configMapRef", "name"]);
        }
        for variable in value::items(container, &["env"]) {
            some(
                Reference::Secret,
                variable,
                &["valueFrom", "secretKeyRef", "name"],
            );
            some(
                Reference::ConfigMap,
                variable,
                &["valueFrom", "configMapKeyRef", "name"],
            );
        }
    }
    for volume in spec("volumes") {
        some(Reference::Secret, volume, &["secret", "secretName"]);
        some(Reference::Secret, volume, &["azureFile", "secretName"]);
        some(
            Reference::Secret,
            volume,
            &["csi", "nodePublishSecretRef", "name"],
        );
        for source in [
            "cephfs",
            "cinder",
            "flexVolume",
            "rbd",
            "scaleIO",
            "iscsi",
            "storageos",
        ] {
            some(Reference::Secret, volume, &[source, "secretRef", "name"]);
        }
        some(Reference::ConfigMap, volume, &["configMap", "name"]);
        for source in value::items(volume, &["projected", "sources"]) {
            some(Reference::Secret, source, &["secret", "name"]);
            some(Reference::ConfigMap, source, &["configMap", "name"]);
        }
        some(
            Reference::Claim,
            volume,
            &["persistentVolumeClaim", "claimName"],
        );
        if value::get(volume, &["ephemeral"]).is_some() {
            let claim = format!(
                "{}-{}",
                meta::name(pod),
                value::str_or_empty(volume, &["name"])
            );
            some(Reference::Claim, &Value::String(claim), &[]);
        }
    }
    let statuses = value::items(pod, &["status", "resourceClaimStatuses"]);
    for claim in spec("resourceClaims") {
        some(Reference::ResourceClaim, claim, &["resourceClaimName"]);
        // Claims made from a template get their name from the status.
        let made = statuses
            .iter()
            .filter(|status| value::get_str(status, &["name"]) == value::get_str(claim, &["name"]));
        made.for_each(|status| some(Reference::ResourceClaim, status, &["resourceClaimName"]));
    }
    some(
        Reference::ResourceClaim,
        pod,
        &["status", "extendedResourceClaimStatus", "resourceClaimName"],
    );
}

/// The Secrets of a volume that kubelets may see (`VisitPVSecretNames`).
fn volume_secrets(volume: &Value, claim_namespace: &str) -> Vec<Name> {
    let mut secrets = Vec::new();
    let mut add = |namespace: &str, name: &str| {
        if !name.is_empty() {
            let namespace = if namespace.is_empty() {
                claim_namespace
            } else {
                namespace
            };
            secrets.push((namespace.to_owned(), name.to_owned()));
        }
    };
    let text = |path: &[&str]| value::str_or_empty(volume, &[&["spec"], path].concat()).to_owned();
    add(
        &text(&["azureFile", "secretNamespace"]),
        &text(&["azureFile", "secretName"]),
    );
    for source in [
        "cephfs",
        "cinder",
        "flexVolume",
        "rbd",
        "scaleIO",
        "iscsi",
        "storageos",
    ] {
        add(
            &text(&[source, "secretRef", "namespace"]),
            &text(&[source, "secretRef", "name"]),
        );
    }
    for reference in [
        "nodePublishSecretRef",
        "nodeStageSecretRef",
        "nodeExpandSecretRef",
    ] {
        add(
            &text(&["csi", reference, "namespace"]),
            &text(&["csi", reference, "name"]),
        );
    }
    secrets
}

/// The Node authorizer.
pub struct NodeAuthorizer {
    graph: RwLock<Graph>,
    /// What every node may do with resources that are not looked at one by one.
    rules: Vec<Rule>,
    synced: watch::Receiver<bool>,
}

impl NodeAuthorizer {
    /// Begins to follow Pods, volumes, attachments and slices. `rules`: those of the role `system:node`
    /// ([`crate::bootstrap::policy::node_rules`]).
    pub fn start(objects: Objects, rules: Vec<Rule>, shutdown: CancellationToken) -> Arc<Self> {
        let (sender, synced) = watch::channel(false);
        let authorizer = Arc::new(NodeAuthorizer {
            graph: RwLock::default(),
            rules,
            synced,
        });
        let resources = RESOURCES
            .iter()
            .map(|(group, resource)| GroupResource::new(*group, *resource))
            .collect();
        let target = authorizer.clone();
        tokio::spawn(follow(
            objects,
            resources,
            sender,
            shutdown,
            move |index, change| target.graph.write().apply(index, change),
        ));
        authorizer
    }

    /// Returns once the present objects are known; `false` when they never will be (shutdown).
    pub async fn synced(&self) -> bool {
        self.synced.clone().wait_for(|synced| *synced).await.is_ok()
    }

    fn decide(&self, node: &str, request: &RequestInfo) -> Result<(), String> {
        if request.is_resource {
            match (request.group.as_str(), request.resource.as_str()) {
                ("", "secrets") => return self.read_one(node, Reference::Secret, request),
                ("", "configmaps") => return self.read_one(node, Reference::ConfigMap, request),
                ("", "persistentvolumeclaims") if request.subresource == "status" => {
                    return match request.verb.as_str() {
                        "update" | "patch" => self.related(node, request, |graph| {
                            graph.refers(node, Reference::Claim, &request.namespace, &request.name)
                        }),
                        _ => no("can only get/update/patch this type"),
                    };
                }
                ("", "persistentvolumeclaims") => {
                    return self.get_one(node, request, |graph| {
                        graph.refers(node, Reference::Claim, &request.namespace, &request.name)
                    });
                }
                ("", "persistentvolumes") => {
                    return self
                        .get_one(node, request, |graph| graph.has_volume(node, &request.name));
                }
                ("resource.k8s.io", "resourceclaims") => {
                    return self.get_one(node, request, |graph| {
                        graph.refers(
                            node,
                            Reference::ResourceClaim,
                            &request.namespace,
                            &request.name,
                        )
                    });
                }
                ("storage.k8s.io", "volumeattachments") => {
                    return self.get_one(node, request, |graph| {
                        graph
                            .attachments
                            .get(&request.name)
                            .is_some_and(|on| on == node)
                    });
                }
                ("", "serviceaccounts") => return self.service_account(node, request),
                ("coordination.k8s.io", "leases") => return lease(node, request),
                ("storage.k8s.io", "csinodes") => return csi_node(node, request),
                ("resource.k8s.io", "resourceslices") => return self.slice(node, request),
                ("", "nodes") => return own_node(node, request),
                ("", "pods") => return self.pod(node, request),
                ("certificates.k8s.io", "podcertificaterequests") => return no(""),
                _ => {}
            }
        }
        if self.rules.iter().any(|rule| rule.allows(request)) {
            Ok(())
        } else {
            no("")
        }
    }

    fn related(
        &self,
        node: &str,
        request: &RequestInfo,
        holds: impl FnOnce(&Graph) -> bool,
    ) -> Result<(), String> {
        if request.name.is_empty() {
            return no("No Object name found");
        }
        if holds(&self.graph.read()) {
            Ok(())
        } else {
            no(&format!(
                "no relationship found between node '{node}' and this object"
            ))
        }
    }

    fn get_one(
        &self,
        node: &str,
        request: &RequestInfo,
        holds: impl FnOnce(&Graph) -> bool,
    ) -> Result<(), String> {
        if request.verb != "get" {
            return no("can only get individual resources of this type");
        }
        if !request.subresource.is_empty() {
            return no("cannot get subresource");
        }
        self.related(node, request, holds)
    }

    fn read_one(&self, node: &str, kind: Reference, request: &RequestInfo) -> Result<(), String> {
        if !matches!(request.verb.as_str(), "get" | "list" | "watch") {
            return no("can only read resources of this type");
        }
        if !request.subresource.is_empty() {
            return no("cannot read subresource");
        }
        if request.namespace.is_empty() {
            return no("can only read namespaced object of this type");
        }
        self.related(node, request, |graph| {
            graph.refers(node, kind, &request.namespace, &request.name)
        })
    }

    fn service_account(&self, node: &str, request: &RequestInfo) -> Result<(), String> {
        if request.verb == "get" && request.subresource.is_empty() {
            return self.read_one(node, Reference::ServiceAccount, request);
        }
        if request.verb != "create" || request.name.is_empty() {
            return no("can only create tokens for individual service accounts");
        }
        if request.subresource != "token" {
            return no("can only create token subresource of serviceaccount");
        }
        self.related(node, request, |graph| {
            graph.refers(
                node,
                Reference::ServiceAccount,
                &request.namespace,
                &request.name,
            )
        })
    }

    fn slice(&self, node: &str, request: &RequestInfo) -> Result<(), String> {
        if !request.subresource.is_empty() {
            return no("cannot authorize ResourceSlice subresources");
        }
        match request.verb.as_str() {
            // The NodeRestriction plugin sees the object and checks whose it is.
            "create" => Ok(()),
            "get" | "update" | "patch" | "delete" => self.related(node, request, |graph| {
                graph.slices.get(&request.name).is_some_and(|of| of == node)
            }),
            "watch" | "list" | "deletecollection" if selects(request, "spec.nodeName", node) => {
                Ok(())
            }
            "watch" | "list" | "deletecollection" => no(
                "can only list/watch/deletecollection resourceslices with nodeName field selector",
            ),
            _ => no(
                "only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, delete, deletecollection",
            ),
        }
    }

    fn pod(&self, node: &str, request: &RequestInfo) -> Result<(), String> {
        let known =
            |graph: &Graph| graph.refers(node, Reference::Pod, &request.namespace, &request.name);
        match (request.subresource.as_str(), request.verb.as_str()) {
            ("", "get") => self.get_one(node, request, known),
            ("", "list" | "watch") if selects(request, "spec.nodeName", node) => Ok(()),
            ("", "list" | "watch") if !request.name.is_empty() => {
                self.related(node, request, known)
            }
            ("", "list" | "watch") => {
                no("can only list/watch pods with spec.nodeName field selector")
            }
            // Mirror Pods, and the state of Pods; the NodeRestriction plugin checks whose.
            ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => {
                Ok(())
            }
            _ => no(""),
        }
    }
}

fn no(why: &str) -> Result<(), String> {
    Err(why.to_owned())
}

/// Whether the request's field selector demands `field=value` among other things. Read by the parser that the list
/// itself is answered with: what looks like a term may be a part of another one's value.
fn selects(request: &RequestInfo, field: &str, value: &str) -> bool {
    FieldSelector::parse(&request.field_selector)
        .is_ok_and(|selector| selector.exact(field) == Some(value))
}

fn own_verbs(request: &RequestInfo) -> bool {
    matches!(
        request.verb.as_str(),
        "get" | "create" | "update" | "patch" | "delete"
    )
}

fn lease(node: &str, request: &RequestInfo) -> Result<(), String> {
    if !own_verbs(request) {
        return no("can only get, create, update, patch, or delete a node lease");
    }
    if request.namespace != "kube-node-lease" {
        return no("can only access leases in the \"kube-node-lease\" system namespace");
    }
    // A create's name is not known yet; the NodeRestriction plugin checks it.
    if request.verb != "create" && request.name != node {
        return no("can only access node lease with the same name as the requesting node");
    }
    Ok(())
}

fn csi_node(node: &str, request: &RequestInfo) -> Result<(), String> {
    if !own_verbs(request) {
        return no("can only get, create, update, patch, or delete a CSINode");
    }
    if !request.subresource.is_empty() {
        return no("cannot authorize CSINode subresources");
    }
    if request.verb != "create" && request.name != node {
        return no("can only access CSINode with the same name as the requesting node");
    }
    Ok(())
}

fn own_node(node: &str, request: &RequestInfo) -> Result<(), String> {
    match (request.subresource.as_str(), request.verb.as_str()) {
        // The NodeRestriction plugin checks that it is the node's own.
        ("", "create" | "update" | "patch") | ("status", "update" | "patch") => Ok(()),
        ("", "get" | "list" | "watch") => match request.name.as_str() {
            own if own == node => Ok(()),
            "" => no(&format!(
                "node '{node}' cannot read all nodes, only its own Node object"
            )),
            other => no(&format!(
                "node '{node}' cannot read '{other}', only its own Node object"
            )),
        },
        _ => no(""),
    }
}

#[async_trait]
impl Authorizer for NodeAuthorizer {
    async fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        match node_identity(attributes.user) {
            None => Decision::NoOpinion(String::new()),
            Some("") => {
                Decision::NoOpinion(format!("unknown node for user {:?}", attributes.user.name))
            }
            Some(node) => match self.decide(node, attributes.request) {
                Ok(()) => Decision::Allow(String::new()),
                Err(reason) => Decision::NoOpinion(reason),
            },
        }
    }
}

impl RuleResolver for NodeAuthorizer {
    fn resolve(&self, user: &UserInfo, _: &str) -> ResolvedRules {
        match node_identity(user) {
            Some(_) => ResolvedRules {
                incomplete: true,
                errors: vec!["node authorizer does not support user rule resolution".into()],
                ..ResolvedRules::default()
            },
            None => ResolvedRules::default(),
        }
    }
}
