//! What a change costs and touches, without a kernel.

use std::collections::HashMap;

use keelson_proxy::model::{Endpoint, ServiceModel};
use keelson_proxy::nft::Family;
use keelson_proxy::nft::batch::Batch;
use keelson_proxy::nft::wire::{attribute, messages};
use keelson_proxy::rules::{
    Environment, LocalDetection, NodePortAddresses, Wanted, frame, service_port,
};
use keelson_proxy::shadow::{Owner, Shadow};
use keelson_proxy::topology::Place;
use serde_json::json;

fn environment() -> Environment {
    Environment {
        place: Place::default(),
        node_ips: vec!["192.0.2.1".parse().unwrap()],
        node_port_addresses: NodePortAddresses::Primary,
        local_detection: LocalDetection::None,
        service_cidrs: Vec::new(),
        masquerade_all: false,
        masquerade_egress: Vec::new(),
        masquerade_mark: 1 << 14,
    }
}

/// The parts of service number `i`, which has two ports and so many endpoints.
fn parts(i: u32, affinity: &str, endpoints: u8) -> Vec<(Owner, Wanted)> {
    let service = json!({
        "metadata": {"namespace": "ns", "name": format!("s{i}")},
        "spec": {"clusterIP": format!("10.96.{}.{}", i / 250, i % 250), "sessionAffinity": affinity, "type": "NodePort",
                 "ports": [{"name": "a", "port": 80, "nodePort": 30000}, {"name": "b", "port": 81}]}});
    let service = ServiceModel::from_api(&serde_json::from_value(service).unwrap()).unwrap();
    let endpoints: Vec<Endpoint> = (1..=endpoints)
        .map(|n| Endpoint {
            ip: [10, 244, 0, n].into(),
            port: 8080,
            ready: true,
            serving: true,
            terminating: false,
            local: true,
            zone_hints: Default::default(),
            node_hints: Default::default(),
        })
        .collect();
    let of_port = |port| service_port(&environment(), Family::V4, &service, port, &endpoints);
    service
        .ports
        .iter()
        .map(|port| {
            (
                (format!("ns/s{i}"), format!("tcp/{}", port.name)),
                of_port(port).unwrap(),
            )
        })
        .collect()
}

fn shadow(services: u32) -> Shadow {
    let mut shadow = Shadow::new(Family::V4, "t");
    let all: HashMap<_, _> = (0..services).flat_map(|i| parts(i, "None", 3)).collect();
    shadow.rebuild(&frame(&environment(), Family::V4), all, 1);
    shadow
}

fn update(shadow: &mut Shadow, parts: Vec<(Owner, Wanted)>) -> Batch {
    shadow.update(
        parts
            .into_iter()
            .map(|(owner, part)| (owner, Some(part)))
            .collect(),
        1,
    )
}

/// The messages as `operation set-or-chain`, each once, in order of first appearance.
fn show(batch: Batch) -> String {
    let (bytes, _) = batch.finish();
    let mut seen: Vec<String> = Vec::new();
    for message in messages(&bytes) {
        let operation = match message.kind & 0xff {
            3 => "chain+",
            5 => "chain-",
            6 => "rule+",
            8 => "rules-",
            9 => "set+",
            11 => "set-",
            12 => "element+",
            14 => "element-",
            _ => continue,
        };
        let name = |kind| attribute(&message.payload[4..], kind).map(String::from_utf8_lossy);
        // The name of a chain stands elsewhere than that of a set.
        let name = if operation.starts_with("chain") {
            name(3)
        } else {
            name(2)
        }
        .unwrap_or_default();
        let name = name
            .trim_end_matches('\0')
            .split('-')
            .next()
            .unwrap_or_default()
            .to_owned();
        let line = format!("{operation}{name}");
        // Maps without a name belong to the rule that follows them.
        if !name.starts_with("__") && seen.last() != Some(&line) {
            seen.push(line);
        }
    }
    seen.join(" ")
}

#[test]
fn a_change_costs_the_same_among_few_and_many() {
    let cost = |services| {
        update(&mut shadow(services), parts(5, "None", 2))
            .finish()
            .0
            .len()
    };
    assert_eq!(cost(10), cost(2000));
    assert!(update(&mut shadow(10), parts(5, "None", 3)).is_empty());
}

#[test]
fn what_changes_touch() {
    // Endpoints alone: the chains' rules, and who may reach itself; both ports share the endpoints but not the chains.
    let mut held = shadow(10);
    assert_eq!(
        show(update(&mut held, parts(5, "None", 1))),
        "rules-service rule+service"
    );
    // None left: chains go, and the addresses move to where they are refused.
    assert_eq!(
        show(update(&mut held, parts(5, "None", 0))),
        "element-service rules-external rules-service element+no"
    );
    assert!(held.has_stale());
    assert_eq!(show(held.delete_stale(1)), "chain-external chain-service");
    // Back again before the chains were deleted.
    assert_eq!(
        show(update(&mut held, parts(5, "None", 1))),
        "element-no chain+external chain+service rule+external rule+service element+service"
    );
    assert!(!held.has_stale());
    // A longer memory makes the sets anew, and with them the rules that name them.
    let with_affinity = show(update(&mut held, parts(5, "ClientIP", 1)));
    assert_eq!(
        with_affinity,
        "rules-service chain+endpoint set+affinity chain+endpoint set+affinity rule+endpoint rule+service rule+endpoint rule+service"
    );
    // One of two ports goes: what the other one shares stays.
    let (gone, _) = parts(5, "ClientIP", 1).remove(1);
    let without = show(held.update(vec![(gone, None)], 1));
    assert_eq!(
        without,
        "element-service rules-endpoint rules-service set-affinity"
    );
}
