//! What nodes may write (`plugin/pkg/admission/noderestriction`), and the taint that new nodes begin with
//! (`plugin/pkg/admission/nodetaint`). The Node authorizer decides by names; this plugin sees the objects.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use keelson_machinery::meta;
use keelson_machinery::status::ApiError;
use keelson_machinery::text::quote;
use keelson_machinery::value::{self, Value};
use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject;
use serde_json::json;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use super::service_account::{MIRROR, push};
use super::{AdmissionRequest, Operation, Plugin};
use crate::authz::node::{Reference, node_identity, pod_references};
use crate::authz::{Attributes, Authorizer, Decision};
use crate::objects::Objects;
use crate::request::RequestInfo;

/// NodeRestriction.
pub(super) struct NodeRestriction {
    pub(super) objects: Objects,
    pub(super) authorizer: Arc<dyn Authorizer>,
}

/// A refusal in words, or an error that is passed on as it is.
enum Refusal {
    Because(String),
    Error(ApiError),
}

impl From<String> for Refusal {
    fn from(why: String) -> Self {
        Refusal::Because(why)
    }
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Refusal::Error(error)
    }
}

fn no<T>(why: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Because(why.into()))
}

#[async_trait]
impl Plugin for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }

    async fn admit(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        let Some(node) = node_identity(&request.user) else {
            return Ok(());
        };
        if request.operation == Operation::Connect {
            return Ok(());
        }
        if node.is_empty() {
            return Err(request.forbidden(format!(
                "could not determine node from user {}",
                quote(&request.user.name)
            )));
        }
        let info = &request.request;
        let result = match (
            info.group.as_str(),
            info.resource.as_str(),
            info.subresource.as_str(),
        ) {
            ("", "pods", "") => self.pod(node, request).await,
            ("", "pods", "status") => pod_status(node, request),
            ("", "pods", "eviction") => self.eviction(node, request).await,
            ("", "pods", other) => no(format!(
                "unexpected pod subresource {}, only 'status' and 'eviction' are allowed",
                quote(other)
            )),
            ("", "nodes", _) => own_node(node, request),
            ("", "persistentvolumeclaims", "status") => claim_status(node, request),
            ("", "persistentvolumeclaims", _) => no("may only update PVC status"),
            ("", "serviceaccounts", "token") => self.token(node, request).await,
            ("coordination.k8s.io", "leases", _) => lease(node, request),
            ("storage.k8s.io", "csinodes", _) => own_name(
                node,
                request,
                "can only access CSINode with the same name as the requesting node",
            ),
            ("resource.k8s.io", "resourceslices", _) => slice(node, request),
            ("certificates.k8s.io", "certificatesigningrequests", _) => {
                signing_request(node, request)
            }
            _ => Ok(()),
        };
        result.map_err(|refusal| match refusal {
            Refusal::Because(why) => request.forbidden(why),
            Refusal::Error(error) => error,
        })
    }
}

fn object(request: &AdmissionRequest) -> Result<&Value, Refusal> {
    request
        .object
        .as_ref()
        .ok_or_else(|| Refusal::Because("the request has no object".into()))
}

fn old_object(request: &AdmissionRequest) -> Result<&Value, Refusal> {
    request
        .old_object
        .as_deref()
        .ok_or_else(|| Refusal::Because("the request has no stored object".into()))
}

fn node_name(pod: &Value) -> &str {
    value::str_or_empty(pod, &["spec", "nodeName"])
}

impl NodeRestriction {
    async fn pod(&self, node: &str, request: &AdmissionRequest) -> Result<(), Refusal> {
        match request.operation {
            Operation::Create => self.mirror_pod(node, object(request)?).await,
            Operation::Delete => {
                let pod = self
                    .objects
                    .get(
                        "",
                        "pods",
                        &request.request.namespace,
                        &request.request.name,
                    )
                    .await?;
                if node_name(&pod) != node {
                    return no(format!(
                        "node {} can only delete pods with spec.nodeName set to itself",
                        quote(node)
                    ));
                }
                Ok(())
            }
            other => no(format!(
                "unexpected operation {}, node {} can only create and delete mirror pods",
                quote(other.as_str()),
                quote(node)
            )),
        }
    }

    async fn mirror_pod(&self, node: &str, pod: &Value) -> Result<(), Refusal> {
        let quoted = quote(node);
        if meta::annotation(pod, MIRROR).is_none() {
            return no(format!(
                "pod does not have {} annotation, node {quoted} can only create mirror pods",
                quote(MIRROR)
            ));
        }
        if node_name(pod) != node {
            return no(format!(
                "node {quoted} can only create pods with spec.nodeName set to itself"
            ));
        }
        let owners = value::items(pod, &["metadata", "ownerReferences"]);
        let owner = match owners {
            [] => {
                return no(format!(
                    "node {quoted} can only create pods with an owner reference set to itself"
                ));
            }
            [owner] => owner,
            _ => {
                return no(format!(
                    "node {quoted} can only create pods with a single owner reference set to itself"
                ));
            }
        };
        let text = |field: &str| value::str_or_empty(owner, &[field]);
        if (text("apiVersion"), text("kind"), text("name")) != ("v1", "Node", node) {
            return no(format!(
                "node {quoted} can only create pods with an owner reference set to itself"
            ));
        }
        if value::get_bool(owner, &["controller"]) != Some(true) {
            return no(format!(
                "node {quoted} can only create pods with a controller owner reference set to itself"
            ));
        }
        if value::get_bool(owner, &["blockOwnerDeletion"]) == Some(true) {
            return no(format!(
                "node {quoted} must not set blockOwnerDeletion on an owner reference"
            ));
        }
        let stored = self.objects.get("", "nodes", "", node).await?;
        if text("uid") != meta::uid(&stored) {
            return no(format!(
                "node {node} UID mismatch: expected {} got {}",
                text("uid"),
                meta::uid(&stored)
            ));
        }
        match api_reference(pod) {
            Some(resource) => no(format!(
                "node {quoted} can not create pods that reference {resource}"
            )),
            None => Ok(()),
        }
    }

    async fn eviction(&self, node: &str, request: &AdmissionRequest) -> Result<(), Refusal> {
        if request.operation != Operation::Create {
            return no(format!(
                "unexpected operation {}",
                request.operation.as_str()
            ));
        }
        let name = Some(request.request.name.as_str())
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| request.object.as_ref().map_or("", meta::name));
        if name.is_empty() {
            return no("could not determine pod from request data");
        }
        let pod = self
            .objects
            .get("", "pods", &request.request.namespace, name)
            .await?;
        if node_name(&pod) != node {
            return no(format!(
                "node {node} can only evict pods with spec.nodeName set to itself"
            ));
        }
        Ok(())
    }

    /// A node gets tokens only for Pods that run on it, and only for audiences that the Pod names.
    async fn token(&self, node: &str, request: &AdmissionRequest) -> Result<(), Refusal> {
        if request.operation != Operation::Create {
            return Ok(());
        }
        let spec = object(request)?;
        let text = |field: &str| value::str_or_empty(spec, &["spec", "boundObjectRef", field]);
        if (text("apiVersion"), text("kind")) != ("v1", "Pod") || text("name").is_empty() {
            return no("node requested token not bound to a pod");
        }
        if text("uid").is_empty() {
            return no("node requested token with a pod binding without a uid");
        }
        let pod = self
            .objects
            .get("", "pods", &request.request.namespace, text("name"))
            .await?;
        if text("uid") != meta::uid(&pod) {
            return no(format!(
                "the UID in the bound object reference ({}) does not match the UID in record. The object might have been deleted and then recreated",
                text("uid")
            ));
        }
        if node_name(&pod) != node {
            return no("node requested token bound to a pod scheduled on a different node");
        }
        let audience = match value::items(spec, &["spec", "audiences"]) {
            [] => "",
            [one] => one.as_str().unwrap_or_default(),
            _ => return no("node may only request 0 or 1 audiences"),
        };
        if self.pod_names_audience(&pod, audience).await? {
            return Ok(());
        }
        let ask = RequestInfo {
            is_resource: true,
            verb: "request-serviceaccounts-token-audience".into(),
            version: "v1".into(),
            namespace: request.request.namespace.clone(),
            resource: audience.to_owned(),
            name: request.request.name.clone(),
            ..RequestInfo::default()
        };
        match self
            .authorizer
            .authorize(&Attributes {
                user: &request.user,
                request: &ask,
            })
            .await
        {
            Decision::Allow(_) => Ok(()),
            _ => no(format!(
                "audience {} not found in pod spec volume, {} is not authorized to request tokens for this audience",
                quote(audience),
                request.user.name
            )),
        }
    }

    async fn pod_names_audience(&self, pod: &Value, audience: &str) -> Result<bool, ApiError> {
        let namespace = meta::namespace(pod);
        for volume in value::items(pod, &["spec", "volumes"]) {
            let projected = value::items(volume, &["projected", "sources"])
                .iter()
                .filter_map(|source| value::get(source, &["serviceAccountToken"]));
            if projected
                .into_iter()
                .any(|token| value::str_or_empty(token, &["audience"]) == audience)
            {
                return Ok(true);
            }
            let claim = match (
                value::get_str(volume, &["persistentVolumeClaim", "claimName"]),
                value::get(volume, &["ephemeral"]),
            ) {
                (Some(claim), _) => Some(claim.to_owned()),
                (None, Some(_)) => Some(format!(
                    "{}-{}",
                    meta::name(pod),
                    value::str_or_empty(volume, &["name"])
                )),
                (None, None) => None,
            };
            let driver = match claim {
                Some(claim) => self.driver_of_claim(namespace, &claim).await?,
                None => value::get_str(volume, &["csi", "driver"]).map(str::to_owned),
            };
            if let Some(driver) = driver
                && let Some(driver) = self
                    .objects
                    .find("storage.k8s.io", "csidrivers", "", &driver)
                    .await?
                && value::items(&driver, &["spec", "tokenRequests"])
                    .iter()
                    .any(|token| value::str_or_empty(token, &["audience"]) == audience)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn driver_of_claim(
        &self,
        namespace: &str,
        claim: &str,
    ) -> Result<Option<String>, ApiError> {
        let Some(claim) = self
            .objects
            .find("", "persistentvolumeclaims", namespace, claim)
            .await?
        else {
            return Ok(None);
        };
        let Some(volume) = value::get_str(&claim, &["spec", "volumeName"]) else {
            return Ok(None);
        };
        let volume = self
            .objects
            .find("", "persistentvolumes", "", volume)
            .await?;
        Ok(volume.and_then(|volume| {
            value::get_str(&volume, &["spec", "csi", "driver"]).map(str::to_owned)
        }))
    }
}

/// What of the API a Pod refers to, in words (`podutil.HasAPIObjectReference`).
fn api_reference(pod: &Value) -> Option<&'static str> {
    if !value::str_or_empty(pod, &["spec", "serviceAccountName"]).is_empty() {
        return Some("serviceaccounts");
    }
    let mut found: BTreeSet<&'static str> = BTreeSet::new();
    pod_references(pod, &mut |kind, _| match kind {
        Reference::Secret => drop(found.insert("secrets")),
        Reference::ConfigMap => drop(found.insert("configmaps")),
        _ => {}
    });
    for resource in ["secrets", "configmaps"] {
        if found.contains(resource) {
            return Some(resource);
        }
    }
    if !value::items(pod, &["spec", "resourceClaims"]).is_empty() {
        return Some("resourceclaims");
    }
    value::items(pod, &["spec", "volumes"])
        .iter()
        .find_map(|volume| {
            let has = |source: &str| value::get(volume, &[source]).is_some();
            let projects = |source: &str| {
                value::items(volume, &["projected", "sources"])
                    .iter()
                    .any(|one| value::get(one, &[source]).is_some())
            };
            [
                (has("csi"), "csidrivers (via CSI volumes)"),
                (has("glusterfs"), "endpoints (via glusterFS volumes)"),
                (has("persistentVolumeClaim"), "persistentvolumeclaims"),
                (
                    has("ephemeral"),
                    "persistentvolumeclaims (via ephemeral volumes)",
                ),
                (has("azureFile"), "secrets (via azureFile volumes)"),
                (
                    projects("serviceAccountToken"),
                    "serviceaccounts (via projected volumes)",
                ),
                (projects("clusterTrustBundle"), "clustertrustbundles"),
                (projects("podCertificate"), "podcertificates"),
            ]
            .into_iter()
            .find_map(|(found, words)| found.then_some(words))
        })
}

fn pod_status(node: &str, request: &AdmissionRequest) -> Result<(), Refusal> {
    if request.operation != Operation::Update {
        return no(format!(
            "unexpected operation {}",
            quote(request.operation.as_str())
        ));
    }
    let (old, new) = (old_object(request)?, object(request)?);
    let quoted = quote(node);
    if node_name(old) != node {
        return no(format!(
            "node {quoted} can only update pod status for pods with spec.nodeName set to itself"
        ));
    }
    let same = |path: &[&str]| value::semantic_eq(value::get(old, path), value::get(new, path));
    if !same(&["metadata", "labels"]) {
        return no(format!(
            "node {quoted} cannot update labels through pod status"
        ));
    }
    if !same(&["status", "resourceClaimStatuses"]) {
        return no(format!(
            "node {quoted} cannot update resource claim statues"
        ));
    }
    if !same(&["status", "extendedResourceClaimStatus"]) {
        return no(format!(
            "node {quoted} cannot update extended resource claim status"
        ));
    }
    Ok(())
}

fn claim_status(node: &str, request: &AdmissionRequest) -> Result<(), Refusal> {
    if request.operation != Operation::Update {
        return no(format!(
            "unexpected operation {}",
            quote(request.operation.as_str())
        ));
    }
    let rest = |claim: &Value| {
        let mut claim = claim.clone();
        for field in [
            "capacity",
            "conditions",
            "allocatedResourceStatuses",
            "allocatedResources",
        ] {
            value::remove(&mut claim, &["status", field]);
        }
        for field in ["resourceVersion", "managedFields"] {
            meta::remove(&mut claim, field);
        }
        claim
    };
    if !value::semantic_eq(
        Some(&rest(old_object(request)?)),
        Some(&rest(object(request)?)),
    ) {
        return no(format!(
            "node {} is not allowed to update fields other than status.quantity and status.conditions",
            quote(node)
        ));
    }
    Ok(())
}

fn own_node(node: &str, request: &AdmissionRequest) -> Result<(), Refusal> {
    let quoted = quote(node);
    // A create names its object in the body.
    let name = Some(request.request.name.as_str())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| request.object.as_ref().map_or("", meta::name));
    if name != node {
        return no(format!(
            "node {quoted} is not allowed to modify node {}",
            quote(name)
        ));
    }
    let config = ["spec", "configSource"];
    match request.operation {
        Operation::Create => {
            let new = object(request)?;
            if value::get(new, &config).is_some() {
                return no(format!(
                    "node {quoted} is not allowed to create pods with a non-nil configSource"
                ));
            }
            let forbidden = forbidden_labels(&changed_labels(new, &Value::Null));
            if !forbidden.is_empty() {
                return no(format!(
                    "node {quoted} is not allowed to set the following labels: {}",
                    forbidden.join(", ")
                ));
            }
        }
        Operation::Update => {
            let (old, new) = (old_object(request)?, object(request)?);
            let same =
                |path: &[&str]| value::semantic_eq(value::get(old, path), value::get(new, path));
            if value::get(new, &config).is_some() && !same(&config) {
                return no(format!(
                    "node {quoted} is not allowed to update configSource to a new non-nil configSource"
                ));
            }
            if !same(&["spec", "taints"]) {
                return no(format!("node {quoted} is not allowed to modify taints"));
            }
            if !same(&["metadata", "ownerReferences"]) {
                return no(format!(
                    "node {quoted} is not allowed to modify ownerReferences"
                ));
            }
            let forbidden = forbidden_labels(&changed_labels(new, old));
            if !forbidden.is_empty() {
                return no(format!(
                    "is not allowed to modify labels: {}",
                    forbidden.join(", ")
                ));
            }
        }
        Operation::Delete | Operation::Connect => {}
    }
    Ok(())
}

/// Keys of labels that differ, sorted.
fn changed_labels<'a>(new: &'a Value, old: &'a Value) -> BTreeSet<&'a str> {
    let (new, old) = (meta::labels(new), meta::labels(old));
    let differs = |key: &str| {
        new.and_then(|labels| labels.get(key)) != old.and_then(|labels| labels.get(key))
    };
    new.into_iter()
        .chain(old)
        .flat_map(|labels| labels.keys())
        .map(String::as_str)
        .filter(|key| differs(key))
        .collect()
}

/// Labels by which a node could draw Pods to itself that are not meant for it.
fn forbidden_labels<'a>(changed: &BTreeSet<&'a str>) -> Vec<&'a str> {
    let below = |namespace: &str, domain: &str| {
        namespace == domain || namespace.ends_with(&format!(".{domain}"))
    };
    let forbidden = |key: &&str| {
        let namespace = key.split_once('/').map_or("", |(namespace, _)| namespace);
        let kubernetes = below(namespace, "kubernetes.io") || below(namespace, "k8s.io");
        below(namespace, "node-restriction.kubernetes.io")
            || (kubernetes && !kubelet_label(key, namespace))
    };
    changed.iter().copied().filter(forbidden).collect()
}

/// Labels of Kubernetes' own that a kubelet may set on its node (`kubeletapis.IsKubeletLabel`).
fn kubelet_label(key: &str, namespace: &str) -> bool {
    const LABELS: [&str; 11] = [
        "kubernetes.io/hostname",
        "topology.kubernetes.io/zone",
        "topology.kubernetes.io/region",
        "failure-domain.beta.kubernetes.io/zone",
        "failure-domain.beta.kubernetes.io/region",
        "beta.kubernetes.io/instance-type",
        "node.kubernetes.io/instance-type",
        "kubernetes.io/os",
        "kubernetes.io/arch",
        "beta.kubernetes.io/os",
        "beta.kubernetes.io/arch",
    ];
    let below = |domain: &str| namespace == domain || namespace.ends_with(&format!(".{domain}"));
    LABELS.contains(&key) || below("kubelet.kubernetes.io") || below("node.kubernetes.io")
}

fn lease(node: &str, request: &AdmissionRequest) -> Result<(), Refusal> {
    if request.request.namespace != "kube-node-lease" {
        return no("can only access leases in the \"kube-node-lease\" system namespace");
    }
    own_name(
        node,
        request,
        "can only access node lease with the same name as the requesting node",
    )
}

fn own_name(node: &str, request: &AdmissionRequest, why: &str) -> Result<(), Refusal> {
    let name = if request.operation == Operation::Create {
        request.object.as_ref().map_or("", meta::name)
    } else {
        request.request.name.as_str()
    };
    if name == node { Ok(()) } else { no(why) }
}

fn slice(node: &str, request: &AdmissionRequest) -> Result<(), Refusal> {
    let (slice, word) = match request.operation {
        Operation::Create => (object(request)?, "create"),
        Operation::Delete => (old_object(request)?, "delete"),
        Operation::Update | Operation::Connect => return Ok(()),
    };
    if node_name(slice) == node {
        Ok(())
    } else {
        no(format!(
            "can only {word} ResourceSlice with the same NodeName as the requesting node"
        ))
    }
}

fn signing_request(node: &str, request: &AdmissionRequest) -> Result<(), Refusal> {
    if request.operation != Operation::Create {
        return Ok(());
    }
    let csr = object(request)?;
    let signer = value::str_or_empty(csr, &["spec", "signerName"]);
    if !matches!(
        signer,
        "kubernetes.io/kubelet-serving" | "kubernetes.io/kube-apiserver-client-kubelet"
    ) {
        return Ok(());
    }
    let subject = csr_subject(csr).map_err(|error| format!("unable to parse csr: {error}"))?;
    if subject.common_name != format!("system:node:{node}") {
        return no(format!(
            "can only create a node CSR with CN=system:node:{node}"
        ));
    }
    Ok(())
}

/// Whom a certificate signing request is for.
pub(super) struct CsrSubject {
    pub(super) common_name: String,
    pub(super) organizations: Vec<String>,
}

/// The subject of the PKCS#10 request in `spec.request` of a CertificateSigningRequest.
pub(super) fn csr_subject(csr: &Value) -> Result<CsrSubject, String> {
    let pem = STANDARD
        .decode(value::str_or_empty(csr, &["spec", "request"]))
        .map_err(|error| error.to_string())?;
    let der = CertificateSigningRequestDer::from_pem_slice(&pem)
        .map_err(|_| "PEM block type must be CERTIFICATE REQUEST".to_owned())?;
    let (_, parsed) =
        X509CertificationRequest::from_der(&der).map_err(|error| error.to_string())?;
    let subject = &parsed.certification_request_info.subject;
    let text = |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| {
        attribute
            .as_str()
            .map(str::to_owned)
            .map_err(|error| error.to_string())
    };
    Ok(CsrSubject {
        common_name: subject
            .iter_common_name()
            .last()
            .map(text)
            .transpose()?
            .unwrap_or_default(),
        organizations: subject
            .iter_organization()
            .map(text)
            .collect::<Result<_, _>>()?,
    })
}

/// TaintNodesByCondition: a new node takes no Pods until it was seen to be ready.
pub(super) struct TaintNodesByCondition;

#[async_trait]
impl Plugin for TaintNodesByCondition {
    fn name(&self) -> &'static str {
        "TaintNodesByCondition"
    }

    async fn admit(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        const NOT_READY: &str = "node.kubernetes.io/not-ready";
        if request.operation != Operation::Create || !request.is("", "nodes", "") {
            return Ok(());
        }
        let Some(node) = &mut request.object else {
            return Ok(());
        };
        let there = value::items(node, &["spec", "taints"]).iter().any(|taint| {
            value::get_str(taint, &["key"]) == Some(NOT_READY)
                && value::get_str(taint, &["effect"]) == Some("NoSchedule")
        });
        if !there {
            push(
                node,
                &["spec", "taints"],
                json!({"key": NOT_READY, "effect": "NoSchedule"}),
            );
        }
        Ok(())
    }
}
