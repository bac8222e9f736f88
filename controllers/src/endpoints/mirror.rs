//! The EndpointSlice mirroring controller: Endpoints that people write for a Service without a selector, as slices, since
//! dataplanes and DNS read only those (upstream `endpointslicemirroring`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_runtime::ObjectKey;
use keelson_runtime::controller::{Action, Controller};
use keelson_runtime::events::{Recorder, reference};
use keelson_runtime::informer::{Event, Informer};
use keelson_runtime::workqueue::{RateLimit, WorkQueue};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client};

use super::slices::{MANAGED_BY, SERVICE_NAME, slice_ports, wire_ports};
use super::unseen::{UNSEEN_FOR, Unseen};
use super::{Port, made_of};
use crate::common::{Labels, annotations, controller_reference, enqueue_all, labels, name, owners};
use crate::error::{ignore_not_found, is_conflict, is_namespace_terminating, is_not_found};
use crate::{Context, Error, synced};

const ACCOUNT: &str = "endpointslicemirroring-controller";
const COMPONENT: &str = "endpoint-slice-mirroring-controller";
/// The value of the managed-by label of our slices.
const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
/// On Endpoints that somebody mirrors by himself.
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// On Endpoints that are only a lock.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Annotations that are about the Endpoints object itself and not copied.
const OWN: [&str; 2] = [
    "endpoints.kubernetes.io/last-change-trigger-time",
    "kubectl.kubernetes.io/last-applied-configuration",
];
/// Addresses that are mirrored of one subset (`--mirroring-max-endpoints-per-subset`).
const MOST: usize = 1000;

/// The intended writes for one Endpoints object.
#[derive(Debug, Default, PartialEq)]
struct Plan {
    create: Vec<EndpointSlice>,
    update: Vec<EndpointSlice>,
    delete: Vec<String>,
    /// Addresses that are none.
    invalid: usize,
    /// Addresses beyond [`MOST`].
    surplus: usize,
}

/// Whether these Endpoints are meant to be mirrored at all.
fn is_mirrored(endpoints: &Endpoints) -> bool {
    labels(&endpoints.metadata).get(SKIP).map(String::as_str) != Some("true")
        && !annotations(&endpoints.metadata).contains_key(LEADER)
}

fn port(p: &EndpointPort) -> Port {
    Port {
        name: p.name.clone().unwrap_or_default(),
        port: p.port,
        protocol: p.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
        app_protocol: p.app_protocol.clone(),
    }
}

/// What tells addresses apart: the address, and the uid of what it means.
type AddressKey = (String, String);
/// Addresses with whether they are ready.
type Members = BTreeMap<AddressKey, bool>;

/// The addresses by ports, in a form that does not depend on how they were spread over subsets: ports that the same
/// addresses have are together, an address that is both ready and not is not (upstream `RepackSubsets`).
fn repack(endpoints: &Endpoints) -> (Vec<(Vec<Port>, Members)>, Addresses<'_>) {
    let mut known: Addresses<'_> = BTreeMap::new();
    let mut by_port: BTreeMap<Option<Port>, Members> = BTreeMap::new();
    for subset in endpoints.subsets.iter().flatten() {
        let mut ports: BTreeSet<Option<Port>> = subset
            .ports
            .iter()
            .flatten()
            .map(|p| Some(port(p)))
            .collect();
        if ports.is_empty() {
            ports.insert(None);
        }
        let ready = subset.addresses.iter().flatten().map(|a| (a, true));
        let not_ready = subset.not_ready_addresses.iter().flatten();
        for (address, ready) in ready.chain(not_ready.map(|a| (a, false))) {
            let uid = address.target_ref.as_ref().and_then(|r| r.uid.clone());
            let key = (address.ip.clone(), uid.unwrap_or_default());
            known.entry(key.clone()).or_insert(address);
            for port in &ports {
                let members = by_port.entry(port.clone()).or_default();
                *members.entry(key.clone()).or_insert(true) &= ready;
            }
        }
    }
    let mut groups: BTreeMap<Members, Vec<Port>> = BTreeMap::new();
    for (port, members) in by_port {
        groups.entry(members).or_default().extend(port);
    }
    let groups = groups.into_iter().map(|(members, ports)| (ports, members));
    (groups.collect(), known)
}

/// Each address as it was first written.
type Addresses<'a> = BTreeMap<AddressKey, &'a EndpointAddress>;

fn endpoint(address: &EndpointAddress, ip: IpAddr, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![ip.to_string()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            ..EndpointConditions::default()
        }),
        target_ref: address.target_ref.clone(),
        node_name: address.node_name.clone(),
        hostname: address.hostname.clone().filter(|h| !h.is_empty()),
        ..Endpoint::default()
    }
}

fn copied_annotations(endpoints: &Endpoints) -> Labels {
    let mut notes = annotations(&endpoints.metadata).clone();
    notes.retain(|key, _| !OWN.contains(&key.as_str()));
    notes
}

fn slice_labels(endpoints: &Endpoints) -> Labels {
    let mut own = labels(&endpoints.metadata).clone();
    own.insert(
        SERVICE_NAME.to_owned(),
        name(&endpoints.metadata).to_owned(),
    );
    own.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    own
}

/// A slice with these endpoints; without a name yet.
fn new_slice(
    endpoints: &Endpoints,
    family: &str,
    ports: &[Port],
    members: Vec<Endpoint>,
) -> EndpointSlice {
    let notes = copied_annotations(endpoints);
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", name(&endpoints.metadata))),
            namespace: endpoints.metadata.namespace.clone(),
            labels: Some(slice_labels(endpoints)),
            annotations: (!notes.is_empty()).then_some(notes),
            owner_references: Some(vec![controller_reference(endpoints)]),
            ..ObjectMeta::default()
        },
        address_type: family.to_owned(),
        ports: wire_ports(ports),
        endpoints: Some(members),
    }
}

/// Whether a slice says already what it should.
fn is_current(slice: &EndpointSlice, wanted: &EndpointSlice) -> bool {
    let sorted = |slice: &EndpointSlice| {
        let mut all = slice.endpoints.clone().unwrap_or_default();
        // Order means nothing; addresses within one family and port set are unique but for their target.
        all.sort_by_key(|e| {
            let target = e.target_ref.as_ref().and_then(|r| r.uid.clone());
            (e.addresses.clone(), target)
        });
        all
    };
    sorted(slice) == sorted(wanted)
        && labels(&slice.metadata) == labels(&wanted.metadata)
        && annotations(&slice.metadata) == annotations(&wanted.metadata)
        && owners(&slice.metadata) == owners(&wanted.metadata)
}

/// Compares what should be with our slices that are.
fn plan(endpoints: &Endpoints, slices: &[Arc<EndpointSlice>]) -> Plan {
    let mut plan = Plan::default();
    let mut existing: BTreeMap<(&str, Vec<Port>), Vec<&Arc<EndpointSlice>>> = BTreeMap::new();
    for slice in slices {
        existing
            .entry((slice.address_type.as_str(), slice_ports(slice)))
            .or_default()
            .push(slice);
    }
    let (groups, known) = repack(endpoints);
    let mut create: Vec<EndpointSlice> = Vec::new();
    let mut spare: Vec<&Arc<EndpointSlice>> = Vec::new();
    for (ports, members) in groups {
        let mut by_family: BTreeMap<&str, Vec<Endpoint>> = BTreeMap::new();
        let mut count = 0;
        // The ready ones first, so that a cut does not take them.
        let ready = members.iter().filter(|(_, ready)| **ready);
        let order = ready.chain(members.iter().filter(|(_, ready)| !**ready));
        for (key, ready) in order {
            let Some(address) = known.get(key) else {
                continue;
            };
            let Ok(ip) = address.ip.parse::<IpAddr>() else {
                plan.invalid += 1;
                continue;
            };
            if count == MOST {
                plan.surplus += 1;
                continue;
            }
            count += 1;
            let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
            by_family
                .entry(family)
                .or_default()
                .push(endpoint(address, ip, *ready));
        }
        for (family, members) in by_family {
            let wanted = new_slice(endpoints, family, &ports, members);
            let have = existing.remove(&(family, slice_ports(&wanted)));
            let Some((first, rest)) = have.as_deref().and_then(|h| h.split_first()) else {
                create.push(wanted);
                continue;
            };
            spare.extend(rest);
            if !is_current(first, &wanted) {
                plan.update.push(named(wanted, first));
            }
        }
    }
    spare.extend(existing.into_values().flatten());
    // A slice that would go serves for one that would come: every watcher sees one change instead of two.
    for wanted in create {
        let fits = |old: &&Arc<EndpointSlice>| old.address_type == wanted.address_type;
        match spare.iter().position(fits) {
            Some(at) => plan.update.push(named(wanted, spare.remove(at))),
            None => plan.create.push(wanted),
        }
    }
    plan.delete = spare
        .iter()
        .map(|slice| name(&slice.metadata).to_owned())
        .collect();
    plan
}

/// The wanted slice in the place of an old one, provided that nobody has written that meanwhile.
fn named(mut wanted: EndpointSlice, old: &EndpointSlice) -> EndpointSlice {
    wanted.metadata.generate_name = None;
    wanted.metadata.name = old.metadata.name.clone();
    wanted.metadata.uid = old.metadata.uid.clone();
    wanted.metadata.resource_version = old.metadata.resource_version.clone();
    wanted
}

/// Runs until shutdown.
///
/// # Errors
/// None: what fails is tried again.
pub async fn run(ctx: Context) -> anyhow::Result<()> {
    let client = ctx.client(ACCOUNT);
    let services = ctx.informers.informer::<Service>();
    let endpoints = ctx.informers.informer::<Endpoints>();
    let slices = ctx.informers.informer::<EndpointSlice>();
    let limit = RateLimit {
        base: Duration::from_secs(1),
        most: Duration::from_secs(100),
        ..RateLimit::default()
    };
    let queue = WorkQueue::with_limit("endpoint_slice_mirroring", limit, &ctx.metrics);
    let unseen = Arc::new(Unseen::default());
    slices.store().add_index("mirrored", |slice| {
        made_of(slice, MANAGER)
            .iter()
            .map(ObjectKey::to_string)
            .collect()
    });
    // A Service counts by whether it has a selector.
    services.on_event({
        let queue = queue.clone();
        move |event| {
            let has = |s: &Service| s.spec.as_ref().is_some_and(|s| s.selector.is_some());
            if !matches!(event, Event::Updated { old, new } if has(old) == has(new)) {
                queue.add(ObjectKey::of(&event.object().metadata));
            }
        }
    });
    enqueue_all(&endpoints, &queue);
    slices.on_event({
        let (queue, unseen) = (queue.clone(), unseen.clone());
        move |event| {
            let slice = event.object();
            if let Event::Updated { old, .. } = event
                && let Some(key) = made_of(old, MANAGER)
            {
                queue.add(key);
            }
            let Some(key) = made_of(slice, MANAGER) else {
                return;
            };
            unseen.saw(&key, slice, matches!(event, Event::Deleted { .. }));
            queue.add(key);
        }
    });
    synced!(services, endpoints, slices);
    let worker = Arc::new(Worker {
        recorder: ctx.recorder(&client, COMPONENT),
        client,
        services,
        endpoints,
        slices,
        unseen,
    });
    Controller::new(COMPONENT, queue)
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
    recorder: Recorder,
    services: Informer<Service>,
    endpoints: Informer<Endpoints>,
    slices: Informer<EndpointSlice>,
    unseen: Arc<Unseen>,
}

impl Worker {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Error> {
        let slices: Vec<_> = self
            .slices
            .store()
            .by_index("mirrored", &key.to_string())
            .into_iter()
            .filter(|s| s.metadata.deletion_timestamp.is_none())
            .collect();
        // Without an own selector the endpoints are what somebody wrote.
        let by_hand = |s: &Arc<Service>| s.spec.as_ref().is_none_or(|s| s.selector.is_none());
        let service = self.services.store().get(key).filter(by_hand);
        let endpoints = self.endpoints.store().get(key).filter(|e| is_mirrored(e));
        let result = match (service, endpoints) {
            (Some(_), Some(endpoints)) => {
                if self.unseen.waits(key) {
                    // What is not seen yet wakes this key when it is; the time is for what never will be.
                    return Ok(Action::RequeueAfter(UNSEEN_FOR));
                }
                let plan = plan(&endpoints, &slices);
                self.tell(&endpoints, &plan);
                self.apply(key, &endpoints, plan).await
            }
            _ => {
                self.unseen.forget(key);
                let delete = slices.iter().map(|s| name(&s.metadata).to_owned());
                self.delete(key, delete.collect()).await
            }
        };
        match result {
            Ok(()) => Ok(Action::Done),
            Err(Error::Api(error)) if is_namespace_terminating(&error) => Ok(Action::Done),
            Err(Error::Api(error)) if is_conflict(&error) || is_not_found(&error) => {
                Ok(Action::Retry)
            }
            Err(error) => Err(error),
        }
    }

    fn tell(&self, endpoints: &Endpoints, plan: &Plan) {
        if plan.create.is_empty() && plan.update.is_empty() {
            return;
        }
        let about = reference(endpoints);
        if plan.invalid > 0 {
            let text = format!(
                "Skipped {} invalid IP addresses when mirroring to EndpointSlices",
                plan.invalid
            );
            self.recorder.warning(&about, "InvalidIPAddress", text);
        }
        if plan.surplus > 0 {
            let text = format!(
                "A max of {MOST} addresses can be mirrored to EndpointSlices per Endpoints subset. {} addresses were skipped",
                plan.invalid + plan.surplus
            );
            self.recorder
                .warning(&about, "TooManyAddressesToMirror", text);
        }
    }

    async fn apply(&self, key: &ObjectKey, endpoints: &Endpoints, plan: Plan) -> Result<(), Error> {
        let api: Api<EndpointSlice> = Api::namespaced(self.client.clone(), &key.namespace);
        let post = PostParams::default();
        let going = endpoints.metadata.deletion_timestamp.is_some();
        for slice in plan.create.iter().filter(|_| !going) {
            let made = api.create(&post, slice).await?;
            self.unseen.wrote(key, &made, self.slices.store());
        }
        for slice in &plan.update {
            let changed = api.replace(name(&slice.metadata), &post, slice).await?;
            self.unseen.wrote(key, &changed, self.slices.store());
        }
        self.delete(key, plan.delete).await
    }

    async fn delete(&self, key: &ObjectKey, slices: Vec<String>) -> Result<(), Error> {
        let api: Api<EndpointSlice> = Api::namespaced(self.client.clone(), &key.namespace);
        for slice in slices {
            ignore_not_found(api.delete(&slice, &DeleteParams::default()).await)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn endpoints(subsets: Value) -> Endpoints {
        serde_json::from_value(json!({
            "metadata": {"name": "db", "namespace": "ns", "uid": "e", "labels": {"team": "a"},
                "annotations": {OWN[0]: "x", "note": "kept"}},
            "subsets": subsets,
        }))
        .unwrap()
    }

    /// Slices in short: `[name ]family ports addresses`, those not ready with a `!`.
    fn show(slices: &[EndpointSlice]) -> Vec<String> {
        let mut shown: Vec<String> = slices
            .iter()
            .map(|s| {
                let ports: Vec<_> = slice_ports(s)
                    .iter()
                    .map(|p| format!("{}{}", p.name, p.port))
                    .collect();
                let members = s.endpoints.iter().flatten().map(|e| {
                    let ready = e.conditions.as_ref().and_then(|c| c.ready) == Some(true);
                    format!("{}{}", e.addresses[0], if ready { "" } else { "!" })
                });
                let own = s
                    .metadata
                    .name
                    .as_deref()
                    .map_or(String::new(), |n| format!("{n} "));
                let members: Vec<_> = members.collect();
                format!(
                    "{own}{} {} {}",
                    s.address_type,
                    ports.join(","),
                    members.join(",")
                )
            })
            .collect();
        shown.sort();
        shown
    }

    fn check(
        subsets: Value,
        have: &[Arc<EndpointSlice>],
        create: &[&str],
        update: &[&str],
        delete: &[&str],
    ) -> Plan {
        let plan = plan(&endpoints(subsets.clone()), have);
        assert_eq!(show(&plan.create), create, "created for {subsets}");
        assert_eq!(show(&plan.update), update, "updated for {subsets}");
        assert_eq!(plan.delete, delete, "deleted for {subsets}");
        plan
    }

    fn stored(slices: Vec<EndpointSlice>) -> Vec<Arc<EndpointSlice>> {
        let named = slices.into_iter().enumerate().map(|(i, mut s)| {
            s.metadata.name = Some(format!("s{i}"));
            s.metadata.resource_version = Some("7".into());
            Arc::new(s)
        });
        named.collect()
    }

    #[test]
    fn custom_endpoints_become_slices() {
        let one = json!([{"addresses": [{"ip": "10.1.2.3"}], "ports": [{"port": 80}]}]);
        let first = check(one.clone(), &[], &["IPv4 80 10.1.2.3"], &[], &[]);
        let made = &first.create[0];
        assert_eq!(made.ports.as_ref().unwrap()[0].name.as_deref(), Some(""));
        assert_eq!(made.metadata.generate_name.as_deref(), Some("db-"));
        assert_eq!(
            json!(made.metadata.labels),
            json!({"team": "a", SERVICE_NAME: "db", MANAGED_BY: MANAGER})
        );
        assert_eq!(json!(made.metadata.annotations), json!({"note": "kept"}));
        assert_eq!(owners(&made.metadata)[0].kind, "Endpoints");
        let have = stored(first.create);
        check(one, &have, &[], &[], &[]);
        let other = json!([{"addresses": [{"ip": "10.2.3.4"}], "ports": [{"port": 80}]}]);
        let moved = check(other, &have, &[], &["s0 IPv4 80 10.2.3.4"], &[]);
        // Written only over what was read.
        assert_eq!(
            moved.update[0].metadata.resource_version.as_deref(),
            Some("7")
        );
        check(json!([]), &have, &[], &[], &["s0"]);
    }

    #[test]
    fn families_ports_and_readiness() {
        // One address in two subsets has both ports; not ready wins over ready; a text that is no address is told.
        let subsets = json!([
            {"addresses": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}, {"ip": "nowhere"}], "ports": [{"name": "a", "port": 1}]},
            {"addresses": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}, {"ip": "nowhere"}], "ports": [{"name": "b", "port": 2}]},
            {"notReadyAddresses": [{"ip": "10.0.0.9"}]},
        ]);
        let wanted = [
            "IPv4  10.0.0.9!",
            "IPv4 a1,b2 10.0.0.1",
            "IPv6 a1,b2 fd00::1",
        ];
        let plan = check(subsets, &[], &wanted, &[], &[]);
        assert_eq!(plan.invalid, 1);
        let both = json!([{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 1}]},
            {"notReadyAddresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 1}]}]);
        check(both, &[], &["IPv4 1 10.0.0.1!"], &[], &[]);
        // A slice of other ports serves for the new one; its family cannot change.
        let have = stored(plan.create);
        let changed = json!([{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 3}]}]);
        let plan = self::plan(&endpoints(changed), &have);
        assert_eq!(show(&plan.create), Vec::<String>::new());
        assert_eq!((plan.update.len(), plan.delete.len()), (1, 2));
        assert_eq!(plan.update[0].address_type, "IPv4");
    }

    #[test]
    fn locks_and_own_mirrors_are_left_alone() {
        let mut e = endpoints(json!([]));
        assert!(is_mirrored(&e));
        let notes = e.metadata.annotations.get_or_insert_default();
        notes.insert(LEADER.into(), "{}".into());
        assert!(!is_mirrored(&e));
        let mut e = endpoints(json!([]));
        let own = e.metadata.labels.get_or_insert_default();
        own.insert(SKIP.into(), "true".into());
        assert!(!is_mirrored(&e));
        let own = e.metadata.labels.get_or_insert_default();
        own.insert(SKIP.into(), "false".into());
        assert!(is_mirrored(&e));
    }
}
