//! The Endpoints controller: one object per Service with a selector, for clients that do not know slices.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_runtime::ObjectKey;
use keelson_runtime::controller::{Action, Controller};
use keelson_runtime::informer::{Event, Informer};
use keelson_runtime::workqueue::WorkQueue;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client};

use super::{
    HEADLESS, Port, addresses, families, follow_pods, hostname, inherited_labels, is_endpoint,
    is_headless, pod_reference, ports, publishes_not_ready, selector, selects,
};
use crate::common::pods::{is_ready, node_name};
use crate::common::{annotations, enqueue_all, labels, name};
use crate::error::{
    ignore_not_found, is_already_exists, is_conflict, is_namespace_terminating, is_not_found,
};
use crate::{Context, Error};

const ACCOUNT: &str = "endpoint-controller";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// Addresses in one object; what is beyond is left out (`maxCapacity`).
const MOST: usize = 1000;

#[derive(Debug, PartialEq)]
enum Plan {
    Nothing,
    Create(Endpoints),
    Replace(Endpoints),
}

fn plan(service: &Service, pods: &[Arc<Pod>], current: Option<&Endpoints>) -> Plan {
    let family = families(service)[0];
    let mut groups: BTreeMap<Vec<Port>, (Vec<EndpointAddress>, Vec<EndpointAddress>)> =
        BTreeMap::new();
    let mut counted = 0;
    let mut over = false;
    // The ready ones first, so that a cut does not take them.
    let mut members: Vec<_> = pods
        .iter()
        .filter(|p| is_endpoint(p, publishes_not_ready(service)))
        .collect();
    members.sort_by_key(|p| (!is_ready(p), p.metadata.name.clone()));
    for pod in members {
        let Some(ip) = addresses(pod, family).into_iter().next() else {
            continue;
        };
        let ports = ports(service, pod);
        let portless = service
            .spec
            .as_ref()
            .is_none_or(|s| s.ports.as_ref().is_none_or(|p| p.is_empty()));
        if ports.is_empty() && !portless {
            continue;
        }
        if counted == MOST {
            over = true;
            break;
        }
        counted += 1;
        let address = EndpointAddress {
            ip,
            hostname: hostname(service, pod),
            node_name: Some(node_name(pod).to_owned()).filter(|n| !n.is_empty()),
            target_ref: Some(pod_reference(pod)),
        };
        let group = groups.entry(ports).or_default();
        if publishes_not_ready(service) || is_ready(pod) {
            group.0.push(address);
        } else {
            group.1.push(address);
        }
    }
    let subsets: Vec<_> = groups
        .into_iter()
        .map(|(ports, (mut ready, mut not_ready))| {
            ready.sort_by(|a, b| a.ip.cmp(&b.ip));
            not_ready.sort_by(|a, b| a.ip.cmp(&b.ip));
            EndpointSubset {
                addresses: (!ready.is_empty()).then_some(ready),
                not_ready_addresses: (!not_ready.is_empty()).then_some(not_ready),
                ports: (!ports.is_empty()).then(|| {
                    ports
                        .into_iter()
                        .map(|p| EndpointPort {
                            name: Some(p.name).filter(|n| !n.is_empty()),
                            port: p.port,
                            protocol: Some(p.protocol),
                            app_protocol: p.app_protocol,
                        })
                        .collect()
                }),
            }
        })
        .collect();
    let mut wanted_labels = inherited_labels(service);
    if !is_headless(service) {
        wanted_labels.remove(HEADLESS);
    }
    wanted_labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    let mut new = current.cloned().unwrap_or_else(|| Endpoints {
        metadata: ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            ..Default::default()
        },
        ..Default::default()
    });
    new.subsets = (!subsets.is_empty()).then_some(subsets);
    new.metadata.labels = Some(wanted_labels);
    let mut notes = annotations(&new.metadata).clone();
    if over {
        notes.insert(OVER_CAPACITY.to_owned(), "truncated".to_owned());
    } else {
        notes.remove(OVER_CAPACITY);
    }
    new.metadata.annotations = (!notes.is_empty()).then_some(notes);
    match current {
        None => Plan::Create(new),
        Some(old)
            if old.subsets.as_deref().unwrap_or_default()
                == new.subsets.as_deref().unwrap_or_default()
                && labels(&old.metadata) == labels(&new.metadata)
                && annotations(&old.metadata) == annotations(&new.metadata) =>
        {
            Plan::Nothing
        }
        Some(_) => Plan::Replace(new),
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
    let endpoints = ctx.informers.informer::<Endpoints>();
    let queue = WorkQueue::new("endpoint", &ctx.metrics);
    enqueue_all(&services, &queue);
    follow_pods(&pods, &services, &queue);
    endpoints.on_event({
        let queue = queue.clone();
        move |event| {
            // What is deleted or left over belongs to a Service of the same name, or to none.
            if matches!(event, Event::Deleted { .. } | Event::Added { .. }) {
                queue.add(ObjectKey::of(&event.object().metadata));
            }
        }
    });
    for synced in [
        services.wait_synced().await,
        pods.wait_synced().await,
        endpoints.wait_synced().await,
    ] {
        if !synced {
            return Ok(());
        }
    }
    Controller::new("endpoints-controller", queue)
        .workers(5)
        .max_retries(15)
        .run(ctx.shutdown.clone(), move |key: ObjectKey| {
            let (client, services, pods, endpoints) = (
                client.clone(),
                services.clone(),
                pods.clone(),
                endpoints.clone(),
            );
            async move { reconcile(&client, &services, &pods, &endpoints, &key).await }
        })
        .await;
    Ok(())
}

async fn reconcile(
    client: &Client,
    services: &Informer<Service>,
    pods: &Informer<Pod>,
    endpoints: &Informer<Endpoints>,
    key: &ObjectKey,
) -> Result<Action, Error> {
    let api: Api<Endpoints> = Api::namespaced(client.clone(), &key.namespace);
    let current = endpoints.store().get(key);
    let Some(service) = services.store().get(key) else {
        // Only what we made: Endpoints without a Service may be somebody's own (a leader's lock, an address list).
        let ours = current.is_some_and(|e| {
            labels(&e.metadata).get(MANAGED_BY).map(String::as_str) == Some(MANAGER)
        });
        if ours {
            ignore_not_found(api.delete(&key.name, &DeleteParams::default()).await)?;
        }
        return Ok(Action::Done);
    };
    if selector(&service).is_none() {
        return Ok(Action::Done);
    }
    let members: Vec<_> = pods
        .store()
        .list_namespace(&key.namespace)
        .into_iter()
        .filter(|p| selects(&service, labels(&p.metadata)))
        .collect();
    let result = match plan(&service, &members, current.as_deref()) {
        Plan::Nothing => return Ok(Action::Done),
        Plan::Create(new) => api.create(&PostParams::default(), &new).await,
        Plan::Replace(new) => {
            api.replace(name(&new.metadata), &PostParams::default(), &new)
                .await
        }
    };
    match result {
        Ok(_) => Ok(Action::Done),
        Err(error) if is_namespace_terminating(&error) => Ok(Action::Done),
        Err(error) if is_conflict(&error) || is_not_found(&error) || is_already_exists(&error) => {
            Ok(Action::Retry)
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ready_and_not_ready_apart_and_stable() {
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "ns"},
            "spec": {"selector": {"app": "web"}, "ipFamilies": ["IPv4"], "ports": [{"port": 80}]},
        }))
        .unwrap();
        let pod = |n: u8, ready: bool| -> Arc<Pod> {
            Arc::new(serde_json::from_value(json!({
                "metadata": {"name": format!("p{n}"), "namespace": "ns", "uid": format!("u{n}")},
                "spec": {"containers": []},
                "status": {"podIP": format!("10.1.0.{n}"), "conditions": [{"type": "Ready", "status": if ready {"True"} else {"False"}}]},
            })).unwrap())
        };
        let pods = [pod(2, true), pod(1, true), pod(3, false)];
        let Plan::Create(made) = plan(&service, &pods, None) else {
            panic!("not created")
        };
        let subset = &made.subsets.as_ref().unwrap()[0];
        let ips = |a: &Option<Vec<EndpointAddress>>| {
            a.iter().flatten().map(|a| a.ip.clone()).collect::<Vec<_>>()
        };
        assert_eq!(ips(&subset.addresses), ["10.1.0.1", "10.1.0.2"]);
        assert_eq!(ips(&subset.not_ready_addresses), ["10.1.0.3"]);
        assert_eq!(plan(&service, &pods, Some(&made)), Plan::Nothing);
        assert!(
            matches!(plan(&service, &[], Some(&made)), Plan::Replace(e) if e.subsets.is_none())
        );
    }
}
