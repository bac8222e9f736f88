//! The pod network of one node: CNI configuration for the standard plugins, forwarding, and the node's own address.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, bail};
use futures::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::address::{AddressAttribute, AddressScope};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags};
use rtnetlink::packet_route::route::RouteAttribute;
use serde_json::json;

use crate::cluster::layout::Layout;

const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

/// Name of the bridge that pods of this cluster hang on; at most 15 bytes, as the kernel wants.
pub fn bridge_name(layout: &Layout) -> String {
    format!("kln-{}", layout.tag())
}

/// Name of the dataplane's nftables table, one per cluster.
pub fn table_name(layout: &Layout) -> String {
    format!("keelson-{}", layout.tag())
}

/// Writes the CNI configuration for this node's part of the pod range, atomically, so that containerd never reads half of it.
///
/// Masquerading is left to the dataplane (`ipMasq` would run iptables for every pod).
///
/// # Errors
/// When the file cannot be written.
pub fn write_cni_config(layout: &Layout, pod_cidr: &IpNet) -> anyhow::Result<()> {
    let default_route = if pod_cidr.addr().is_ipv4() {
        "0.0.0.0/0"
    } else {
        "::/0"
    };
    let config = json!({
        "cniVersion": "1.0.0",
        "name": "keelson",
        "plugins": [
            {
                "type": "bridge",
                "bridge": bridge_name(layout),
                "isGateway": true,
                "ipMasq": false,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": layout.cni_state(),
                    "ranges": [[{ "subnet": pod_cidr.trunc().to_string() }]],
                    "routes": [{ "dst": default_route }],
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true }, "snat": true },
        ],
    });
    let path = layout.cni_conf().join("10-keelson.conflist");
    let temporary = layout.cni_conf().join(".10-keelson.tmp");
    fs::write(&temporary, serde_json::to_vec_pretty(&config)?)
        .and_then(|()| fs::rename(&temporary, &path))
        .with_context(|| format!("writing {}", path.display()))
}

/// Turns IPv4 forwarding on and returns the value from before.
///
/// # Errors
/// When `/proc/sys` cannot be read or written.
pub fn enable_forwarding() -> anyhow::Result<String> {
    let before = fs::read_to_string(IP_FORWARD)
        .with_context(|| format!("reading {IP_FORWARD}"))?
        .trim()
        .to_owned();
    if before != "1" {
        fs::write(IP_FORWARD, "1").with_context(|| format!("writing {IP_FORWARD}"))?;
    }
    Ok(before)
}

/// Puts IPv4 forwarding back.
///
/// # Errors
/// When `/proc/sys` cannot be written.
pub fn restore_forwarding(before: &str) -> anyhow::Result<()> {
    fs::write(IP_FORWARD, before).with_context(|| format!("writing {IP_FORWARD}"))
}

/// The machine's address for the cluster: that of the link with the default route, as upstream chooses it; without a
/// default route, the first global address of a link that is up.
///
/// # Errors
/// When the machine has no address but loopback.
pub async fn node_address() -> anyhow::Result<IpAddr> {
    let (connection, handle, _) =
        rtnetlink::new_connection().context("opening a netlink socket")?;
    let driver = tokio::spawn(connection);
    let found = find_node_address(&handle).await;
    driver.abort();
    match found? {
        Some(address) => Ok(address),
        None => bail!(
            "this machine has no network address but loopback; give one to a link, or name one with --node-ip"
        ),
    }
}

async fn find_node_address(handle: &rtnetlink::Handle) -> anyhow::Result<Option<IpAddr>> {
    let mut default_link = None;
    let mut routes = handle
        .route()
        .get(RouteMessageBuilder::<Ipv4Addr>::new().build())
        .execute();
    while let Some(route) = routes.try_next().await.context("listing routes")? {
        if route.header.destination_prefix_length == 0 {
            default_link = route.attributes.iter().find_map(|a| {
                if let RouteAttribute::Oif(index) = a {
                    Some(*index)
                } else {
                    None
                }
            });
            if default_link.is_some() {
                break;
            }
        }
    }
    let mut usable = Vec::new();
    let mut links = handle.link().get().execute();
    while let Some(link) = links.try_next().await.context("listing links")? {
        let bridge_of_pods = link.attributes.iter().any(|a| matches!(a, LinkAttribute::IfName(name) if name.starts_with("kln-") || name.starts_with("cni")));
        if link.header.flags.contains(LinkFlags::Up)
            && !link.header.flags.contains(LinkFlags::Loopback)
            && !bridge_of_pods
        {
            usable.push(link.header.index);
        }
    }
    let mut first = None;
    let mut addresses = handle.address().get().execute();
    while let Some(address) = addresses.try_next().await.context("listing addresses")? {
        if address.header.scope != AddressScope::Universe || !usable.contains(&address.header.index)
        {
            continue;
        }
        let ip = address.attributes.iter().find_map(|a| {
            if let AddressAttribute::Address(ip) = a {
                Some(*ip)
            } else {
                None
            }
        });
        if let Some(ip @ IpAddr::V4(_)) = ip {
            if Some(address.header.index) == default_link {
                return Ok(Some(ip));
            }
            first.get_or_insert(ip);
        }
    }
    Ok(first)
}

/// Deletes the pods' bridge, if it is there.
///
/// # Errors
/// When the kernel refuses.
pub async fn delete_bridge(layout: &Layout) -> anyhow::Result<()> {
    delete_link(&bridge_name(layout)).await
}

/// Deletes a link, if it is there.
///
/// # Errors
/// When the kernel refuses.
pub async fn delete_link(name: &str) -> anyhow::Result<()> {
    let (connection, handle, _) =
        rtnetlink::new_connection().context("opening a netlink socket")?;
    let driver = tokio::spawn(connection);
    let result = async {
        match link_index(&handle, name).await? {
            Some(index) => handle
                .link()
                .del(index)
                .execute()
                .await
                .with_context(|| format!("deleting link {name}")),
            None => Ok(()),
        }
    }
    .await;
    driver.abort();
    result
}

/// The kernel's number of a link, if it is there.
///
/// # Errors
/// When the kernel cannot be asked.
pub async fn link_index(handle: &rtnetlink::Handle, name: &str) -> anyhow::Result<Option<u32>> {
    let mut links = handle.link().get().match_name(name.to_owned()).execute();
    match links.try_next().await {
        Ok(link) => Ok(link.map(|link| link.header.index)),
        Err(rtnetlink::Error::NetlinkError(message))
            if message.raw_code() == -rustix::io::Errno::NODEV.raw_os_error() =>
        {
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| format!("looking for link {name}")),
    }
}
