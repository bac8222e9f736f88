//! The wires: a bridge on the machine itself, and for each node a link of which one end is `eth0` in the node's namespace.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, bail};
use futures::TryStreamExt;
use ipnet::Ipv4Net;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourState};
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::spec::{Node, Spec};
use crate::node::network::link_index;

/// A link-layer address that nobody has: what is sent to it is lost, as on a wire that is cut.
const NOBODY: [u8; 6] = [0x02, 0x6b, 0, 0, 0, 0];
/// A node's own name for its link.
const NODE_LINK: &str = "eth0";

/// A netlink socket in some network namespace.
pub struct Wires {
    handle: Handle,
    driver: tokio::task::JoinHandle<()>,
}

impl Drop for Wires {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Wires {
    /// In the namespace of this process.
    ///
    /// # Errors
    /// When there is no netlink.
    pub fn here() -> anyhow::Result<Self> {
        let (connection, handle, _) =
            rtnetlink::new_connection().context("opening a netlink socket")?;
        let driver = tokio::spawn(connection);
        Ok(Wires { handle, driver })
    }

    /// In the namespace of process `pid`. A socket belongs to the namespace of the thread that opened it, for good, so a
    /// thread of its own enters the namespace, opens it, and ends.
    ///
    /// # Errors
    /// When the process is gone or the namespace cannot be entered.
    pub fn of(pid: u32) -> anyhow::Result<Self> {
        let path = format!("/proc/{pid}/ns/net");
        let namespace = std::fs::File::open(&path).with_context(|| format!("opening {path}"))?;
        let runtime = tokio::runtime::Handle::current();
        let open = move || -> anyhow::Result<Self> {
            use std::os::fd::AsFd;
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .with_context(|| format!("entering {path}"))?;
            let _inside = runtime.enter();
            Self::here()
        };
        match std::thread::spawn(open).join() {
            Ok(opened) => opened,
            Err(_) => bail!("the thread that opens a netlink socket panicked"),
        }
    }

    async fn index(&self, name: &str) -> anyhow::Result<u32> {
        let found = link_index(&self.handle, name).await?;
        found.with_context(|| format!("there is no link {name}"))
    }

    /// All IPv4 networks that this namespace has an address in.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub async fn networks(&self) -> anyhow::Result<Vec<Ipv4Net>> {
        let mut found = Vec::new();
        let mut addresses = self.handle.address().get().execute();
        while let Some(message) = addresses.try_next().await.context("listing addresses")? {
            let address = message.attributes.iter().find_map(|a| match a {
                AddressAttribute::Address(IpAddr::V4(ip)) => Some(*ip),
                _ => None,
            });
            let net = address.and_then(|ip| Ipv4Net::new(ip, message.header.prefix_len).ok());
            found.extend(net.map(|net| net.trunc()));
        }
        Ok(found)
    }

    /// Makes the bridge, or finds it.
    ///
    /// # Errors
    /// What the kernel refused.
    pub async fn ensure_bridge(&self, name: &str, spec: &Spec) -> anyhow::Result<()> {
        if link_index(&self.handle, name).await?.is_none() {
            let bridge = LinkBridge::new(name).build();
            let made = self.handle.link().add(bridge).execute().await;
            made.with_context(|| format!("making the bridge {name}"))?;
        }
        let index = self.index(name).await?;
        self.address(index, spec.gateway(), spec.subnet.prefix_len())
            .await?;
        self.up(index).await.with_context(|| name.to_owned())
    }

    async fn address(&self, link: u32, ip: Ipv4Addr, prefix: u8) -> anyhow::Result<()> {
        let request = self.handle.address().add(link, IpAddr::V4(ip), prefix);
        let set = request.replace().execute().await;
        set.with_context(|| format!("giving a link the address {ip}/{prefix}"))
    }

    async fn up(&self, link: u32) -> anyhow::Result<()> {
        let message = LinkUnspec::new_with_index(link).up().build();
        let set = self.handle.link().set(message).execute().await;
        set.context("setting a link up")
    }

    /// Deletes a link, if it is there.
    ///
    /// # Errors
    /// What the kernel refused.
    pub async fn delete(&self, name: &str) -> anyhow::Result<()> {
        let Some(index) = link_index(&self.handle, name).await? else {
            return Ok(());
        };
        match self.handle.link().del(index).execute().await {
            // Gone meanwhile, with the namespace of its other end.
            Err(rtnetlink::Error::NetlinkError(message))
                if message.raw_code() == -rustix::io::Errno::NODEV.raw_os_error() =>
            {
                Ok(())
            }
            result => result.with_context(|| format!("deleting link {name}")),
        }
    }

    /// Makes a node's link, one end on the bridge, and moves the other into the namespace of `pid`.
    ///
    /// # Errors
    /// What the kernel refused.
    pub async fn plug(
        &self,
        bridge: &str,
        port: &str,
        node: &Node,
        pid: u32,
    ) -> anyhow::Result<()> {
        // Left over from a node that came to its end a moment ago.
        self.delete(port).await?;
        let inner = format!("{port}n");
        let link = LinkVeth::new(port, &inner).build();
        let made = self.handle.link().add(link).execute().await;
        made.with_context(|| format!("making the link {port}"))?;
        let named = LinkUnspec::new_with_index(self.index(&inner).await?)
            .address(node.mac().to_vec())
            .build();
        let set = self.handle.link().set(named).execute().await;
        set.with_context(|| format!("the link-layer address of {inner}"))?;
        let moved = LinkUnspec::new_with_index(self.index(&inner).await?)
            .name(NODE_LINK)
            .setns_by_pid(pid)
            .build();
        let set = self.handle.link().set(moved).execute().await;
        set.with_context(|| format!("moving {inner} to process {pid}"))?;
        let plugged = LinkUnspec::new_with_index(self.index(port).await?)
            .controller(self.index(bridge).await?)
            .up()
            .build();
        let set = self.handle.link().set(plugged).execute().await;
        set.with_context(|| format!("plugging {port} into {bridge}"))
    }

    /// In a node: its addresses, and the route to Services. Nothing else leads out: a packet for an address that is neither
    /// node nor pod nor Service is answered with "unreachable" instead of being lost.
    ///
    /// # Errors
    /// What the kernel refused.
    pub async fn configure_node(&self, spec: &Spec, node: &Node) -> anyhow::Result<()> {
        self.up(self.index("lo").await?).await?;
        let link = self.index(NODE_LINK).await?;
        self.address(link, node.ip, spec.subnet.prefix_len())
            .await?;
        self.up(link).await?;
        // The dataplane rewrites the destination only after the kernel has found some route for it.
        let services = spec.service_cidr;
        let route = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(services.addr(), services.prefix_len())
            .and_then(|route| route.gateway(IpAddr::V4(spec.gateway())))
            .with_context(|| format!("the route to {services}"))?
            .build();
        let set = self.handle.route().add(route).replace().execute().await;
        set.with_context(|| format!("setting the route to {services}"))?;
        for other in spec.unheard_by(&node.name) {
            self.cut(other).await?;
        }
        Ok(())
    }

    /// In a node: sends nothing to another node any more, nor to the pods behind it.
    ///
    /// # Errors
    /// What the kernel refused.
    pub async fn cut(&self, other: &Node) -> anyhow::Result<()> {
        let link = self.index(NODE_LINK).await?;
        let request = self.handle.neighbours().add(link, IpAddr::V4(other.ip));
        let request = request
            .state(NeighbourState::Permanent)
            .link_layer_address(&NOBODY);
        let set = request.replace().execute().await;
        set.with_context(|| format!("cutting {}", other.name))
    }

    /// In a node: takes [`Self::cut`] back.
    ///
    /// # Errors
    /// What the kernel refused.
    pub async fn heal(&self, other: &Node) -> anyhow::Result<()> {
        let request = self.handle.neighbours().get();
        let mut neighbours = request.set_address_family(AddressFamily::Inet).execute();
        let mut found = None;
        while let Some(message) = neighbours.try_next().await.context("listing neighbours")? {
            let is_other = message.attributes.iter().any(|a| {
                matches!(a, NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) if *ip == other.ip)
            });
            if is_other && message.header.state == NeighbourState::Permanent {
                found = Some(message);
            }
        }
        let Some(message) = found else { return Ok(()) };
        let deleted = self.handle.neighbours().del(message).execute().await;
        deleted.with_context(|| format!("healing {}", other.name))
    }
}
