//! Routes to the pods of other nodes, for nodes of one subnet: each node's part of the pod range lies behind its address.
//! The routes carry a protocol number of keelson's, so that those of nodes that are gone are known and taken away.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures::TryStreamExt;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use keelson_machinery::clock::Clock;
use keelson_runtime::informer::{Informer, InformerConfig};
use kube::{Api, Client, ResourceExt};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol,
};
use rtnetlink::{Handle, RouteMessageBuilder};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Marks the routes as ours. Free in `/etc/iproute2/rt_protos`.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(75);
/// How often the kernel's routes are compared with the wanted ones though no node changed: somebody may have set a link
/// down and up, which loses them.
const RECHECK: Duration = Duration::from_secs(30);

/// Destination to next hop.
type Routes = BTreeMap<IpNet, IpAddr>;

/// Keeps the routes as the nodes want them until `shutdown`; they stay when it ends, as pods do.
///
/// # Errors
/// When there is no netlink.
pub async fn run(
    pod_cidr: IpNet,
    node: &str,
    client: Client,
    clock: Clock,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let nodes: Informer<Node> = Informer::start(
        Api::all(client),
        InformerConfig::default(),
        clock,
        shutdown.child_token(),
    );
    let changed = Arc::new(Notify::new());
    nodes.on_event({
        let changed = changed.clone();
        move |_| changed.notify_one()
    });
    if !nodes.wait_synced().await {
        return Ok(());
    }
    let (connection, handle, _) =
        rtnetlink::new_connection().context("opening a netlink socket")?;
    let driver = tokio::spawn(connection);
    loop {
        let wanted = plan(pod_cidr, node, &nodes.store().list());
        if let Err(error) = apply(&handle, pod_cidr, &wanted).await {
            tracing::warn!(error = format!("{error:#}"), "routes to other nodes");
        }
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = changed.notified() => {}
            () = tokio::time::sleep(RECHECK) => {}
        }
    }
    driver.abort();
    Ok(())
}

/// Takes away all routes of this module's below `pod_cidr`.
///
/// # Errors
/// What the kernel refused.
pub async fn remove(pod_cidr: IpNet) -> anyhow::Result<()> {
    let (connection, handle, _) =
        rtnetlink::new_connection().context("opening a netlink socket")?;
    let driver = tokio::spawn(connection);
    let result = apply(&handle, pod_cidr, &Routes::new()).await;
    driver.abort();
    result
}

/// The routes that node `own` needs. A node without an address, or with our own (two nodes in one network namespace), has
/// none; ranges outside of `pod_cidr` are nobody's to route.
fn plan(pod_cidr: IpNet, own: &str, nodes: &[Arc<Node>]) -> Routes {
    let addresses = |node: &Node| -> Vec<IpAddr> {
        let status = node.status.as_ref();
        status
            .and_then(|status| status.addresses.as_deref())
            .unwrap_or_default()
            .iter()
            .filter(|address| address.type_ == "InternalIP")
            .filter_map(|address| address.address.parse().ok())
            .collect()
    };
    let mine: Vec<IpAddr> = nodes
        .iter()
        .filter(|node| node.name_any() == own)
        .flat_map(|node| addresses(node))
        .collect();
    let mut routes = Routes::new();
    for node in nodes.iter().filter(|node| node.name_any() != own) {
        let spec = node.spec.as_ref();
        let ranges = spec.and_then(|spec| spec.pod_cidrs.as_deref());
        let hops = addresses(node);
        for range in ranges.unwrap_or_default() {
            let Ok(range) = range.parse::<IpNet>() else {
                continue;
            };
            let hop = hops
                .iter()
                .find(|hop| hop.is_ipv4() == range.addr().is_ipv4());
            if let Some(hop) = hop.filter(|hop| pod_cidr.contains(&range) && !mine.contains(hop)) {
                routes.insert(range.trunc(), *hop);
            }
        }
    }
    routes
}

async fn apply(handle: &Handle, pod_cidr: IpNet, wanted: &Routes) -> anyhow::Result<()> {
    let found = list(handle, pod_cidr).await?;
    for (range, (hop, message)) in &found {
        if !wanted.contains_key(range) {
            handle
                .route()
                .del(message.clone())
                .execute()
                .await
                .with_context(|| format!("deleting the route to {range} by {hop:?}"))?;
            tracing::info!(%range, "route deleted");
        }
    }
    // One next hop that cannot be reached must not keep the others from being used.
    let mut failed = Ok(());
    for (range, hop) in wanted {
        if found
            .get(range)
            .is_some_and(|(there, _)| there.as_ref() == Some(hop))
        {
            continue;
        }
        let message = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(range.addr(), range.prefix_len())
            .and_then(|builder| builder.gateway(*hop))
            .with_context(|| format!("the route to {range} by {hop}"))?
            .protocol(PROTOCOL)
            .build();
        match handle.route().add(message).replace().execute().await {
            Ok(()) => tracing::info!(%range, %hop, "route set"),
            Err(error) => {
                failed = Err(error).with_context(|| {
                    format!("setting the route to {range} by {hop} (is that node in this subnet?)")
                });
            }
        }
    }
    failed
}

/// Our routes below `pod_cidr`, as the kernel has them.
async fn list(
    handle: &Handle,
    pod_cidr: IpNet,
) -> anyhow::Result<BTreeMap<IpNet, (Option<IpAddr>, RouteMessage)>> {
    let query = if pod_cidr.addr().is_ipv4() {
        RouteMessageBuilder::<Ipv4Addr>::new().build()
    } else {
        RouteMessageBuilder::<Ipv6Addr>::new().build()
    };
    let mut routes = handle.route().get(query).execute();
    let mut found = BTreeMap::new();
    while let Some(route) = routes.try_next().await.context("listing routes")? {
        if route.header.protocol != PROTOCOL || route.header.table != RouteHeader::RT_TABLE_MAIN {
            continue;
        }
        let address = |wanted: fn(&RouteAttribute) -> Option<&RouteAddress>| {
            route
                .attributes
                .iter()
                .find_map(wanted)
                .and_then(|address| match address {
                    RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
                    RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
                    _ => None,
                })
        };
        let destination = address(|a| match a {
            RouteAttribute::Destination(to) => Some(to),
            _ => None,
        });
        let hop = address(|a| match a {
            RouteAttribute::Gateway(by) => Some(by),
            _ => None,
        });
        let range =
            destination.and_then(|to| IpNet::new(to, route.header.destination_prefix_length).ok());
        if let Some(range) = range.filter(|range| pod_cidr.contains(range)) {
            found.insert(range, (hop, route));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_other_node_of_the_subnet_gets_a_route() {
        let node = |name: &str, address: &str, range: &str| {
            let value = serde_json::json!({
                "metadata": {"name": name},
                "spec": {"podCIDR": range, "podCIDRs": [range]},
                "status": {"addresses": [{"type": "Hostname", "address": name}, {"type": "InternalIP", "address": address}]},
            });
            Arc::new(serde_json::from_value::<Node>(value).unwrap())
        };
        let nodes = [
            node("a", "192.168.0.1", "10.244.0.0/24"),
            node("b", "192.168.0.2", "10.244.1.0/24"),
            node("same-address", "192.168.0.1", "10.244.2.0/24"),
            node("elsewhere", "192.168.0.4", "10.9.0.0/24"),
            node("nonsense", "192.168.0.5", "many"),
            node("other-family", "fd00::1", "10.244.3.0/24"),
        ];
        let cases = [
            ("a", vec!["10.244.1.0/24 192.168.0.2"]),
            (
                "b",
                vec!["10.244.0.0/24 192.168.0.1", "10.244.2.0/24 192.168.0.1"],
            ),
        ];
        for (own, expected) in cases {
            let got: Vec<String> = plan("10.244.0.0/16".parse().unwrap(), own, &nodes)
                .iter()
                .map(|(range, hop)| format!("{range} {hop}"))
                .collect();
            assert_eq!(got, expected, "{own}");
        }
    }
}
