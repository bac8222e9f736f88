//! Approves the serving certificates of kubelets. Upstream leaves that to people; a cluster that keelson runs turns this
//! controller on, so that `kubectl logs` and `exec` reach the nodes that joined it, over TLS that is checked.
//!
//! The policy: the requester is the node that the certificate names, may `create` the subresource `selfnodeserver` of
//! certificate requests, and asks for its own name and for addresses that are nobody else's: of no other node, not of the
//! API server, not of the Service range, and not a loopback or unspecified one. A node could claim any free address in
//! its status as well; what it must not get is a certificate by which it could answer for another server.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use keelson_runtime::controller::Action;
use kube::ResourceExt;

use super::request::{KUBELET_SERVING, Request};
use super::{approve, is_decided, may_create, usages};
use crate::{Context, Error, synced};

/// The service account that approves.
const CLIENT: &str = "kubelet-serving-approver";
const MESSAGE: &str = "Auto approving self kubelet serving certificate after SubjectAccessReview and a check of its names.";

/// Runs until shutdown.
///
/// # Errors
/// None: what fails is tried again.
pub async fn run(context: Context) -> anyhow::Result<()> {
    let client = context.client(CLIENT);
    let nodes = context.informers.informer::<Node>();
    let slices = context.informers.informer::<EndpointSlice>();
    synced!(nodes, slices);
    let ranges = context.config.service_cidrs.clone();
    super::follow(
        context,
        "csrapproving_kubelet_serving",
        move |request: Arc<CertificateSigningRequest>| {
            let (client, nodes, slices, ranges) = (
                client.clone(),
                nodes.clone(),
                slices.clone(),
                ranges.clone(),
            );
            async move {
                if is_decided(&request) || request.spec.signer_name != KUBELET_SERVING {
                    return Ok(Action::Done);
                }
                let parsed = Request::parse(&request.spec.request.0).map_err(|error| {
                    Error::Object(format!("csr {}: {error}", request.name_any()))
                })?;
                let taken = taken(&parsed, &nodes.store().list(), &slices.store().list());
                if let Err(why) = check(&request, &parsed, &taken, &ranges) {
                    tracing::info!(csr = request.name_any(), why, "not approved by itself");
                    return Ok(Action::Done);
                }
                if may_create(&client, &request, "selfnodeserver").await? {
                    approve(&client, &request, MESSAGE).await
                } else {
                    Ok(Action::Retry)
                }
            }
        },
    )
    .await
}

/// Addresses of others: all nodes but the one that asks, and the API server.
fn taken(parsed: &Request, nodes: &[Arc<Node>], slices: &[Arc<EndpointSlice>]) -> BTreeSet<IpAddr> {
    let of_nodes = nodes
        .iter()
        .filter(|node| parsed.common_name != format!("system:node:{}", node.name_any()))
        .filter_map(|node| node.status.as_ref()?.addresses.as_ref())
        .flatten()
        .map(|address| address.address.as_str());
    let of_servers = slices
        .iter()
        .filter(|slice| {
            slice.metadata.namespace.as_deref() == Some("default")
                && slice
                    .labels()
                    .get("kubernetes.io/service-name")
                    .map(String::as_str)
                    == Some("kubernetes")
        })
        .flat_map(|slice| slice.endpoints.iter().flatten())
        .flat_map(|endpoint| endpoint.addresses.iter())
        .map(String::as_str);
    of_nodes
        .chain(of_servers)
        .filter_map(|text| text.parse().ok())
        .collect()
}

fn check(
    request: &CertificateSigningRequest,
    parsed: &Request,
    taken: &BTreeSet<IpAddr>,
    ranges: &[IpNet],
) -> Result<(), String> {
    parsed.check_kubelet_serving(&usages(request))?;
    if request.spec.username.as_deref() != Some(parsed.common_name.as_str()) {
        return Err("the requester is not the node that is named".to_owned());
    }
    let name = parsed.common_name.trim_start_matches("system:node:");
    if let Some(other) = parsed.dns_names.iter().find(|dns| *dns != name) {
        return Err(format!("{other} is not the node's name"));
    }
    let not_own = |address: &&IpAddr| {
        address.is_loopback()
            || address.is_unspecified()
            || address.is_multicast()
            || taken.contains(*address)
            || ranges.iter().any(|range| range.contains(*address))
    };
    match parsed.addresses.iter().find(not_own) {
        Some(address) => Err(format!("{address} is not an address of the node's own")),
        None => Ok(()),
    }
}
