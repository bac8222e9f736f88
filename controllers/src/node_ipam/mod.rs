//! Gives each Node its ranges of pod addresses (upstream `pkg/controller/nodeipam/ipam` with the RangeAllocator).
//!
//! What is given lies in the nodes alone: the allocator is rebuilt from them at start. A node keeps what was picked for it
//! while the write is uncertain, so that a retry asks for the same.

mod ranges;

use std::sync::Arc;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::{Node, ObjectReference};
use keelson_runtime::controller::{Action, Controller};
use keelson_runtime::events::Recorder;
use keelson_runtime::workqueue::WorkQueue;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use parking_lot::Mutex;
use serde_json::json;
use thiserror::Error;

pub use ranges::{Allocator, RangeError, Ranges};

use crate::{Context, synced};

/// Upstream `cidrUpdateWorkers`.
const WORKERS: usize = 30;

#[derive(Debug, Error)]
enum SyncError {
    #[error("failed to allocate cidr from cluster cidr: {0}")]
    Allocate(#[from] RangeError),
    #[error("writing the node: {0}")]
    Write(#[from] kube::Error),
}

/// Runs until the context's shutdown. Does nothing without `cluster_cidrs`.
///
/// # Errors
/// Ranges that no node can get a part of.
pub async fn run(context: Context) -> anyhow::Result<()> {
    let config = context.config.clone();
    if config.cluster_cidrs.is_empty() {
        context.shutdown.cancelled().await;
        return Ok(());
    }
    let mut allocator = Allocator::new(
        &config.cluster_cidrs,
        config.node_mask_ipv4,
        config.node_mask_ipv6,
    )
    .context("the ranges of pod addresses")?;
    allocator.exclude(&config.service_cidrs);

    let nodes = context.informers.informer::<Node>();
    let client = context.client("node-controller");
    let recorder = context.recorder(&client, "cidrAllocator");
    synced!(nodes);
    for node in nodes.store().list() {
        observe(&mut allocator, &node);
    }

    let queue = WorkQueue::new("cidrallocator_node", &context.metrics);
    let adds = queue.clone();
    nodes.on_event(move |event| adds.add(event.object().name_any()));
    let allocator = Arc::new(Mutex::new(allocator));
    let api: Api<Node> = Api::all(client);
    let again = queue.clone();
    Controller::new("node-ipam-controller", queue)
        .workers(WORKERS)
        .run(context.shutdown.clone(), move |name| {
            let (allocator, api, recorder) = (allocator.clone(), api.clone(), recorder.clone());
            let (nodes, again) = (nodes.clone(), again.clone());
            async move {
                match nodes.store().get_parts("", &name) {
                    Some(node) => sync(&allocator, &api, &recorder, &node).await,
                    None => {
                        if allocator.lock().release(&name) {
                            // Whoever found nothing left may find something now.
                            for node in nodes.store().list() {
                                if pod_cidrs(&node).is_empty() {
                                    again.add(node.name_any());
                                }
                            }
                        }
                        Ok(Action::Done)
                    }
                }
            }
        })
        .await;
    Ok(())
}

fn pod_cidrs(node: &Node) -> &[String] {
    node.spec
        .as_ref()
        .and_then(|spec| spec.pod_cidrs.as_deref())
        .unwrap_or_default()
}

fn observe(allocator: &mut Allocator, node: &Node) {
    let cidrs = pod_cidrs(node);
    if cidrs.is_empty() {
        return;
    }
    if let Err(error) = allocator.observe(&node.name_any(), cidrs) {
        tracing::error!(node = node.name_any(), %error, "a node has pod ranges outside of the cluster's");
    }
}

async fn sync(
    allocator: &Mutex<Allocator>,
    api: &Api<Node>,
    recorder: &Recorder,
    node: &Node,
) -> Result<Action, SyncError> {
    if !pod_cidrs(node).is_empty() {
        observe(&mut allocator.lock(), node);
        return Ok(Action::Done);
    }
    if node.metadata.deletion_timestamp.is_some() {
        return Ok(Action::Done);
    }
    let name = node.name_any();
    let assigned = allocator.lock().assign(&name);
    let cidrs: Vec<String> = match assigned {
        Ok(cidrs) => cidrs.iter().map(ToString::to_string).collect(),
        Err(error) => {
            record(recorder, node, "CIDRNotAvailable");
            return Err(error.into());
        }
    };
    let patch = json!({"spec": {"podCIDR": cidrs.first(), "podCIDRs": cidrs}});
    let written = api
        .patch_metadata(&name, &PatchParams::default(), &Patch::Strategic(patch))
        .await;
    match written {
        Ok(_) => Ok(Action::Done),
        // Gone meanwhile; its deletion releases the ranges.
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Action::Done),
        Err(error) => {
            record(recorder, node, "CIDRAssignmentFailed");
            Err(error.into())
        }
    }
}

/// Upstream `RecordNodeStatusChange`.
fn record(recorder: &Recorder, node: &Node, status: &str) {
    let regarding = ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Node".to_owned()),
        name: node.metadata.name.clone(),
        uid: node.metadata.uid.clone(),
        ..ObjectReference::default()
    };
    recorder.normal(
        &regarding,
        status,
        format!("Node {} status is now: {status}", node.name_any()),
    );
}
