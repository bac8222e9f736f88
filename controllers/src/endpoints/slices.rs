//! The EndpointSlice controller. Endpoints with the same ports share slices of at most 100; a change touches as few
//! slices as it can, since every slice that is written goes to every node.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_runtime::ObjectKey;
use keelson_runtime::controller::{Action, Controller};
use keelson_runtime::events::reference;
use keelson_runtime::informer::{Event, Informer};
use keelson_runtime::workqueue::{RateLimit, WorkQueue};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client};

use super::unseen::{UNSEEN_FOR, Unseen};
use super::{
    Port, addresses, families, follow_pods, hostname, inherited_labels, is_endpoint, made_of,
    pod_reference, ports, publishes_not_ready, selector, selects,
};
use crate::common::pods::{is_deleting, is_ready, node_name};
use crate::common::{controller_reference, enqueue_all, labels, name, namespace, uid};
use crate::error::{ignore_not_found, is_conflict, is_namespace_terminating, is_not_found};
use crate::{Context, Error};

const ACCOUNT: &str = "endpointslice-controller";
pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub(super) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
const ZONE: &str = "topology.kubernetes.io/zone";
/// Endpoints in one slice (`--max-endpoints-per-slice`).
const MOST: usize = 100;

/// The intended writes for a Service.
#[derive(Debug, Default)]
struct Plan {
    create: Vec<EndpointSlice>,
    update: Vec<EndpointSlice>,
    delete: Vec<String>,
}

/// What tells endpoints apart: the pod behind it, and its addresses.
fn identity(endpoint: &Endpoint) -> (String, Vec<String>) {
    let uid = endpoint
        .target_ref
        .as_ref()
        .and_then(|r| r.uid.clone())
        .unwrap_or_default();
    (uid, endpoint.addresses.clone())
}

fn endpoint(service: &Service, pod: &Pod, family: &str, zone: Option<String>) -> Endpoint {
    let serving = is_ready(pod);
    let terminating = is_deleting(pod);
    Endpoint {
        addresses: addresses(pod, family),
        conditions: Some(EndpointConditions {
            ready: Some(publishes_not_ready(service) || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        target_ref: Some(pod_reference(pod)),
        node_name: Some(node_name(pod).to_owned()).filter(|n| !n.is_empty()),
        hostname: hostname(service, pod),
        zone,
        ..Default::default()
    }
}

pub(super) fn wire_ports(ports: &[Port]) -> Option<Vec<EndpointPort>> {
    (!ports.is_empty()).then(|| {
        ports
            .iter()
            .map(|p| EndpointPort {
                name: Some(p.name.clone()),
                port: Some(p.port),
                protocol: Some(p.protocol.clone()),
                app_protocol: p.app_protocol.clone(),
            })
            .collect()
    })
}

pub(super) fn slice_ports(slice: &EndpointSlice) -> Vec<Port> {
    let mut ports: Vec<_> = slice
        .ports
        .iter()
        .flatten()
        .map(|p| Port {
            name: p.name.clone().unwrap_or_default(),
            port: p.port.unwrap_or(0),
            protocol: p.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
            app_protocol: p.app_protocol.clone(),
        })
        .collect();
    ports.sort();
    ports
}

fn new_slice(
    service: &Service,
    family: &str,
    ports: &[Port],
    endpoints: Vec<Endpoint>,
) -> EndpointSlice {
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", name(&service.metadata))),
            namespace: service.metadata.namespace.clone(),
            labels: Some(slice_labels(service)),
            owner_references: Some(vec![controller_reference(service)]),
            ..Default::default()
        },
        address_type: family.to_owned(),
        ports: wire_ports(ports),
        endpoints: Some(endpoints),
    }
}

fn slice_labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = inherited_labels(service);
    labels.insert(SERVICE_NAME.to_owned(), name(&service.metadata).to_owned());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    labels
}

/// Compares what should be with the slices that are. `zone` maps node names to zones.
fn plan(
    service: &Service,
    pods: &[Arc<Pod>],
    slices: &[Arc<EndpointSlice>],
    zone: impl Fn(&str) -> Option<String>,
) -> Plan {
    let mut plan = Plan::default();
    let families = families(service);
    for slice in slices {
        if !families.contains(&slice.address_type.as_str()) {
            plan.delete.push(name(&slice.metadata).to_owned());
        }
    }
    for family in families {
        let mut groups: BTreeMap<Vec<Port>, Vec<Endpoint>> = BTreeMap::new();
        for pod in pods.iter().filter(|p| is_endpoint(p, true)) {
            let endpoint = endpoint(service, pod, family, zone(node_name(pod)));
            if !endpoint.addresses.is_empty() {
                groups
                    .entry(ports(service, pod))
                    .or_default()
                    .push(endpoint);
            }
        }
        let mut existing: BTreeMap<Vec<Port>, Vec<&Arc<EndpointSlice>>> = BTreeMap::new();
        for slice in slices.iter().filter(|s| s.address_type == family) {
            existing.entry(slice_ports(slice)).or_default().push(slice);
        }
        if groups.is_empty() {
            // One slice without endpoints tells consumers that the Service is known and has none.
            groups.insert(Vec::new(), Vec::new());
        }
        let mut stale = Vec::new();
        for (ports, slices) in &existing {
            if !groups.contains_key(ports) {
                stale.extend(slices.iter().map(|s| name(&s.metadata).to_owned()));
            }
        }
        for (ports, endpoints) in groups {
            let have = existing.remove(&ports).unwrap_or_default();
            plan_group(service, family, &ports, endpoints, &have, &mut plan);
        }
        plan.delete.extend(stale);
    }
    plan
}

fn plan_group(
    service: &Service,
    family: &str,
    ports: &[Port],
    wanted: Vec<Endpoint>,
    have: &[&Arc<EndpointSlice>],
    plan: &mut Plan,
) {
    let placeholder = wanted.is_empty();
    let order: Vec<_> = wanted.iter().map(identity).collect();
    let mut wanted: HashMap<_, _> = order.iter().cloned().zip(wanted).collect();
    let labels_wanted = slice_labels(service);
    struct Draft<'a> {
        old: &'a EndpointSlice,
        endpoints: Vec<Endpoint>,
        changed: bool,
    }
    let mut drafts: Vec<_> = have
        .iter()
        .map(|slice| {
            let old = slice.endpoints.as_deref().unwrap_or_default();
            let endpoints: Vec<_> = old
                .iter()
                .filter_map(|e| wanted.remove(&identity(e)))
                .collect();
            let owned = crate::common::controller_of(&slice.metadata)
                .is_some_and(|o| o.uid == uid(&service.metadata));
            Draft {
                changed: endpoints != old || labels(&slice.metadata) != &labels_wanted || !owned,
                endpoints,
                old: slice,
            }
        })
        .collect();
    let mut left: Vec<_> = order.iter().filter_map(|id| wanted.remove(id)).collect();
    // First into slices that are written anyway, the fullest first.
    drafts.sort_by_key(|d| (!d.changed, std::cmp::Reverse(d.endpoints.len())));
    for draft in drafts.iter_mut().filter(|d| d.changed) {
        let room = MOST.saturating_sub(draft.endpoints.len()).min(left.len());
        draft.endpoints.extend(left.drain(..room));
    }
    // Then, if one untouched slice takes all the rest, into that; else into new ones.
    if !left.is_empty()
        && left.len() < MOST
        && let Some(draft) = drafts
            .iter_mut()
            .filter(|d| !d.changed && d.endpoints.len() + left.len() <= MOST)
            .max_by_key(|d| d.endpoints.len())
    {
        draft.endpoints.append(&mut left);
        draft.changed = true;
    }
    while !left.is_empty() {
        let rest = left.split_off(left.len().min(MOST));
        plan.create.push(new_slice(service, family, ports, left));
        left = rest;
    }
    let mut kept_placeholder = false;
    for draft in drafts {
        if draft.endpoints.is_empty() && (!placeholder || kept_placeholder) {
            plan.delete.push(name(&draft.old.metadata).to_owned());
            continue;
        }
        kept_placeholder = true;
        if draft.changed {
            let mut slice = draft.old.clone();
            slice.endpoints = Some(draft.endpoints);
            slice.metadata.labels = Some(labels_wanted.clone());
            slice.metadata.owner_references = Some(vec![controller_reference(service)]);
            plan.update.push(slice);
        }
    }
    if placeholder && !kept_placeholder {
        plan.create
            .push(new_slice(service, family, ports, Vec::new()));
    }
}

/// Runs until shutdown.
///
/// # Errors
/// None: what fails is tried again.
pub async fn run(ctx: Context) -> anyhow::Result<()> {
    let client = ctx.client(ACCOUNT);
    let services = ctx.informers.informer::<Service>();
    let pods = ctx.informers.informer::<Pod>();
    let nodes = ctx.informers.informer::<Node>();
    let slices = ctx.informers.informer::<EndpointSlice>();
    let limit = RateLimit {
        base: Duration::from_secs(1),
        most: Duration::from_secs(100),
        ..Default::default()
    };
    let queue = WorkQueue::with_limit("endpoint_slice", limit, &ctx.metrics);
    let unseen = Arc::new(Unseen::default());
    slices.store().add_index("service", |slice| {
        made_of(slice, MANAGER)
            .iter()
            .map(ObjectKey::to_string)
            .collect()
    });
    enqueue_all(&services, &queue);
    follow_pods(&pods, &services, &queue);
    slices.on_event({
        let (queue, unseen) = (queue.clone(), unseen.clone());
        move |event| {
            let slice = event.object();
            let Some(key) = made_of(slice, MANAGER) else {
                return;
            };
            unseen.saw(&key, slice, matches!(event, Event::Deleted { .. }));
            queue.add(key);
        }
    });
    nodes.on_event({
        let (queue, pods, services) = (queue.clone(), pods.clone(), services.clone());
        move |event| {
            // A node's zone is all that counts, and it hardly ever changes.
            let Event::Updated { old, new } = event else {
                return;
            };
            if labels(&old.metadata).get(ZONE) != labels(&new.metadata).get(ZONE) {
                for pod in pods.store().list() {
                    if node_name(&pod) == name(&new.metadata) {
                        for service in services.store().list_namespace(namespace(&pod.metadata)) {
                            if selects(&service, labels(&pod.metadata)) {
                                queue.add(ObjectKey::of(&service.metadata));
                            }
                        }
                    }
                }
            }
        }
    });
    for synced in [
        services.wait_synced().await,
        pods.wait_synced().await,
        nodes.wait_synced().await,
        slices.wait_synced().await,
    ] {
        if !synced {
            return Ok(());
        }
    }
    let worker = Arc::new(Worker {
        recorder: ctx.recorder(&client, "endpoint-slice-controller"),
        client,
        services,
        pods,
        nodes,
        slices,
        unseen,
    });
    Controller::new(ACCOUNT, queue)
        .workers(5)
        .max_retries(15)
        .run(ctx.shutdown.clone(), move |key: ObjectKey| {
            let worker = worker.clone();
            async move { worker.reconcile(&key).await }
        })
        .await;
    Ok(())
}

struct Worker {
    client: Client,
    recorder: keelson_runtime::events::Recorder,
    services: Informer<Service>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    slices: Informer<EndpointSlice>,
    unseen: Arc<Unseen>,
}

impl Worker {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Error> {
        let Some(service) = self.services.store().get(key) else {
            // The slices go with their owner, by the garbage collector.
            self.unseen.forget(key);
            return Ok(Action::Done);
        };
        if selector(&service).is_none() || service.metadata.deletion_timestamp.is_some() {
            return Ok(Action::Done);
        }
        if self.unseen.waits(key) {
            // What is not seen yet wakes this key when it is; the time is for what never will be.
            return Ok(Action::RequeueAfter(UNSEEN_FOR));
        }
        let pods: Vec<_> = self
            .pods
            .store()
            .list_namespace(&key.namespace)
            .into_iter()
            .filter(|p| selects(&service, labels(&p.metadata)))
            .collect();
        let slices: Vec<_> = self
            .slices
            .store()
            .by_index("service", &key.to_string())
            .into_iter()
            .filter(|s| s.metadata.deletion_timestamp.is_none())
            .collect();
        let zone = |node: &str| {
            let node = self.nodes.store().get_parts("", node)?;
            labels(&node.metadata).get(ZONE).cloned()
        };
        let plan = plan(&service, &pods, &slices, zone);
        match self.apply(key, plan).await {
            Ok(()) => Ok(Action::Done),
            Err(error) if is_namespace_terminating(&error) => Ok(Action::Done),
            Err(error) if is_conflict(&error) || is_not_found(&error) => Ok(Action::Retry),
            Err(error) => {
                let text = format!(
                    "Error updating Endpoint Slices for Service {key}: {}",
                    crate::common::pod_control::reason(&error)
                );
                self.recorder
                    .warning(&reference(&*service), "FailedToUpdateEndpointSlices", text);
                Err(error.into())
            }
        }
    }

    async fn apply(&self, key: &ObjectKey, plan: Plan) -> kube::Result<()> {
        let api: Api<EndpointSlice> = Api::namespaced(self.client.clone(), &key.namespace);
        let post = PostParams::default();
        // New endpoints first, so that a Service is never without any that it could have.
        for slice in &plan.create {
            let made = api.create(&post, slice).await?;
            self.unseen.wrote(key, &made, self.slices.store());
        }
        for slice in &plan.update {
            let changed = api.replace(name(&slice.metadata), &post, slice).await?;
            self.unseen.wrote(key, &changed, self.slices.store());
        }
        for slice in &plan.delete {
            match ignore_not_found(api.delete(slice, &DeleteParams::default()).await) {
                Ok(()) => {}
                Err(Error::Api(error)) => return Err(error),
                Err(error) => tracing::warn!(%error, "deleting a slice"),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(extra: serde_json::Value) -> Service {
        let mut value = json!({
            "metadata": {"name": "web", "namespace": "ns", "uid": "s", "labels": {"team": "a"}},
            "spec": {"selector": {"app": "web"}, "ipFamilies": ["IPv4"], "clusterIP": "10.0.0.1",
                "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
        });
        json_merge(&mut value, extra);
        serde_json::from_value(value).unwrap()
    }

    fn json_merge(to: &mut serde_json::Value, from: serde_json::Value) {
        match (to, from) {
            (serde_json::Value::Object(to), serde_json::Value::Object(from)) => {
                for (k, v) in from {
                    json_merge(to.entry(k).or_insert(json!(null)), v);
                }
            }
            (to, from) => *to = from,
        }
    }

    fn pod(n: usize, ready: bool) -> Arc<Pod> {
        Arc::new(serde_json::from_value(json!({
            "metadata": {"name": format!("p{n}"), "namespace": "ns", "uid": format!("u{n}"), "labels": {"app": "web"}},
            "spec": {"nodeName": "n1", "containers": []},
            "status": {"phase": "Running", "podIP": format!("10.1.{}.{}", n / 250, n % 250), "podIPs": [{"ip": format!("10.1.{}.{}", n / 250, n % 250)}],
                "conditions": [{"type": "Ready", "status": if ready {"True"} else {"False"}}]},
        })).unwrap())
    }

    fn stored(plan: Plan, old: &[Arc<EndpointSlice>]) -> Vec<Arc<EndpointSlice>> {
        let mut all: Vec<_> = old
            .iter()
            .filter(|s| !plan.delete.contains(&name(&s.metadata).to_owned()))
            .cloned()
            .collect();
        for slice in plan.update {
            let at = all
                .iter()
                .position(|s| s.metadata.name == slice.metadata.name)
                .unwrap();
            all[at] = Arc::new(slice);
        }
        for (i, mut slice) in plan.create.into_iter().enumerate() {
            slice.metadata.name = Some(format!("web-{}-{i}", all.len()));
            all.push(Arc::new(slice));
        }
        all
    }

    #[test]
    fn slices_are_filled_and_barely_touched() {
        let service = service(json!({}));
        let no_zone = |_: &str| None;
        let mut pods: Vec<_> = (0..250).map(|n| pod(n, true)).collect();
        let first = plan(&service, &pods, &[], no_zone);
        assert_eq!(
            first
                .create
                .iter()
                .map(|s| s.endpoints.as_ref().unwrap().len())
                .collect::<Vec<_>>(),
            [100, 100, 50]
        );
        let slices = stored(first, &[]);
        let again = plan(&service, &pods, &slices, no_zone);
        assert!(
            again.create.is_empty() && again.update.is_empty() && again.delete.is_empty(),
            "{again:?}"
        );
        pods[5] = pod(5, false);
        pods.push(pod(300, true));
        let second = plan(&service, &pods, &slices, no_zone);
        // The slice of pod 5 is full; the new pod fits into the last.
        assert_eq!(
            (
                second.create.len(),
                second.update.len(),
                second.delete.len()
            ),
            (0, 2, 0)
        );
        let slices = stored(second, &slices);
        let none = plan(&service, &[], &slices, no_zone);
        assert_eq!(
            (none.create.len(), none.update.len(), none.delete.len()),
            (1, 0, 3)
        );
    }

    #[test]
    fn conditions_follow_the_pod() {
        let mut leaving = (*pod(1, true)).clone();
        leaving.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
                "2026-01-01T00:00:00Z".parse().unwrap(),
            ));
        let of = |pod: &Pod, service: &Service| {
            let c = endpoint(service, pod, "IPv4", None).conditions.unwrap();
            (c.ready.unwrap(), c.serving.unwrap(), c.terminating.unwrap())
        };
        let plain = service(json!({}));
        let eager = service(json!({"spec": {"publishNotReadyAddresses": true}}));
        assert_eq!(of(&pod(1, true), &plain), (true, true, false));
        assert_eq!(of(&pod(1, false), &plain), (false, false, false));
        assert_eq!(of(&leaving, &plain), (false, true, true));
        assert_eq!(of(&pod(1, false), &eager), (true, false, false));
    }
}
