//! What a cluster of several nodes was made with, and where it lies on disk. Decisions only: no kernel, no process.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};

use crate::cluster::control_plane::write_private;
use crate::cluster::layout::Layout;
use crate::cluster::state::State;

/// Where clusters live unless told otherwise; one folder each.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/keelson-clusters";
/// The port of the API server, on the address of the node that runs it.
pub const API_PORT: u16 = 6443;
/// Where the subnets of clusters are taken from, one /24 each.
const POOL: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 200, 0, 0), 16);
/// Node addresses start behind this one; the first of the subnet is the bridge's.
const FIRST_NODE: u32 = 10;
/// As many as a subnet has room for.
pub const MAX_NODES: u32 = 200;

/// The fixed properties of a cluster, and what is cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// The cluster's name.
    pub name: String,
    /// Addresses of the nodes and of the bridge.
    pub subnet: Ipv4Net,
    /// Address range of Services.
    pub service_cidr: IpNet,
    /// Address range of Pods.
    pub pod_cidr: IpNet,
    /// Further runtime handlers of every node, for RuntimeClasses.
    pub runtime_handlers: Vec<String>,
    /// The nodes, the control plane's first.
    pub nodes: Vec<Node>,
    /// Pairs of nodes that do not hear each other, each pair in the order of its names.
    pub cuts: BTreeSet<(String, String)>,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Node {
    /// Its name, which is also its host name.
    pub name: String,
    /// Its address.
    pub ip: Ipv4Addr,
    /// Whether it also runs the control plane.
    pub control_plane: bool,
}

impl Node {
    /// Its link-layer address: always the same, so that a node that was off is known to its neighbours at once.
    pub fn mac(&self) -> [u8; 6] {
        let [a, b, c, d] = self.ip.octets();
        // 02: locally administered.
        [0x02, 0x6b, a, b, c, d]
    }
}

impl Spec {
    /// A cluster of `count` nodes.
    ///
    /// # Errors
    /// When there are too many or none, or the ranges do not fit.
    pub fn new(
        name: &str,
        subnet: Ipv4Net,
        count: u32,
        service_cidr: IpNet,
        pod_cidr: IpNet,
        runtime_handlers: Vec<String>,
    ) -> anyhow::Result<Self> {
        check_name(name)?;
        if !(1..=MAX_NODES).contains(&count) {
            bail!("--nodes: a cluster has 1 to {MAX_NODES} nodes, not {count}");
        }
        State::service_address(&service_cidr, 10)?;
        for range in [service_cidr, pod_cidr] {
            let subnet = IpNet::V4(subnet);
            if range.contains(&subnet) || subnet.contains(&range) {
                bail!("{range} overlaps with the nodes' subnet {subnet}");
            }
        }
        let base = u32::from(subnet.network());
        let nodes = (1..=count)
            .map(|number| Node {
                name: format!("node-{number}"),
                ip: Ipv4Addr::from(base + FIRST_NODE + number),
                control_plane: number == 1,
            })
            .collect();
        Ok(Spec {
            name: name.to_owned(),
            subnet,
            service_cidr: service_cidr.trunc(),
            pod_cidr: pod_cidr.trunc(),
            runtime_handlers,
            nodes,
            cuts: BTreeSet::new(),
        })
    }

    /// The bridge's address.
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.subnet.network()) + 1)
    }

    /// The node of that name, with its number from 1.
    ///
    /// # Errors
    /// When there is none; the message names those that exist.
    pub fn node(&self, name: &str) -> anyhow::Result<(usize, &Node)> {
        let found = self.nodes.iter().position(|node| node.name == name);
        let index = found.with_context(|| {
            format!(
                "cluster {} has no node {name}: it has node-1 to node-{}",
                self.name,
                self.nodes.len()
            )
        })?;
        Ok((index + 1, &self.nodes[index]))
    }

    /// The node that runs the control plane.
    ///
    /// # Errors
    /// When the file was changed so that there is none.
    pub fn control_plane(&self) -> anyhow::Result<&Node> {
        let found = self.nodes.iter().find(|node| node.control_plane);
        found.with_context(|| format!("cluster {} has no control plane", self.name))
    }

    /// URL of the API server.
    ///
    /// # Errors
    /// As [`Self::control_plane`].
    pub fn server(&self) -> anyhow::Result<String> {
        Ok(format!("https://{}:{API_PORT}", self.control_plane()?.ip))
    }

    /// What the process that holds control plane and first node is started with.
    ///
    /// # Errors
    /// When the Service range is too small.
    pub fn state(&self, node: &Node) -> anyhow::Result<State> {
        Ok(State {
            node_name: node.name.clone(),
            node_ip: IpAddr::V4(node.ip),
            bind_address: IpAddr::V4(node.ip),
            secure_port: API_PORT,
            kubelet_port: 10250,
            service_cidr: self.service_cidr,
            pod_cidr: self.pod_cidr,
            cluster_dns: State::service_address(&self.service_cidr, 10)?,
            runtime_handlers: self.runtime_handlers.clone(),
            ip_forward_before: None,
        })
    }

    /// The nodes that `node` does not hear.
    pub fn unheard_by(&self, node: &str) -> Vec<&Node> {
        let other = |(a, b): &(String, String)| match (a == node, b == node) {
            (true, _) => Some(b.clone()),
            (_, true) => Some(a.clone()),
            _ => None,
        };
        let names: BTreeSet<String> = self.cuts.iter().filter_map(other).collect();
        let unheard = |node: &&Node| names.contains(&node.name);
        self.nodes.iter().filter(unheard).collect()
    }
}

/// A pair of node names as it stands in [`Spec::cuts`].
///
/// # Errors
/// When both are the same.
pub fn pair(a: &str, b: &str) -> anyhow::Result<(String, String)> {
    if a == b {
        bail!("a node cannot be cut from itself");
    }
    Ok((a.min(b).to_owned(), a.max(b).to_owned()))
}

/// Names become folders and stand in messages.
fn check_name(name: &str) -> anyhow::Result<()> {
    let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let edge = |c: Option<char>| c.is_some_and(|c| c != '-');
    if name.len() > 30
        || !name.chars().all(letters)
        || !edge(name.chars().next())
        || !edge(name.chars().last())
    {
        bail!(
            "{name:?} is no name for a cluster: up to 30 lower-case letters, digits and '-', the first and last no '-'"
        );
    }
    Ok(())
}

/// A /24 of the pool that none of `taken` lies in. Where the search begins depends on `seed`, so that clusters made at the
/// same time hardly ever meet.
///
/// # Errors
/// When all are taken.
pub fn free_subnet(seed: u8, taken: &[Ipv4Net]) -> anyhow::Result<Ipv4Net> {
    let base = u32::from(POOL.network());
    (0..=255u8)
        .map(|step| base + (u32::from(seed.wrapping_add(step)) << 8))
        .filter_map(|network| Ipv4Net::new(Ipv4Addr::from(network), 24).ok())
        .find(|subnet| {
            let overlaps =
                |other: &Ipv4Net| other.contains(subnet) || subnet.contains(&other.network());
            !taken.iter().any(overlaps)
        })
        .with_context(|| format!("no free subnet is left in {POOL}"))
}

/// The folder of one cluster.
#[derive(Clone, Debug)]
pub struct Folder {
    root: PathBuf,
}

impl Folder {
    /// The folder of cluster `name` below `data_dir`. Creates nothing.
    ///
    /// # Errors
    /// When the name cannot be one, or the path is too long for the sockets below it.
    pub fn new(data_dir: &Path, name: &str) -> anyhow::Result<Self> {
        check_name(name)?;
        let root = Layout::new(&data_dir.join(name))?.root().to_owned();
        let folder = Folder { root };
        folder.node(&format!("node-{MAX_NODES}"))?;
        Ok(folder)
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where one node keeps everything.
    ///
    /// # Errors
    /// As [`Layout::new`].
    pub fn node(&self, name: &str) -> anyhow::Result<Layout> {
        Layout::new(&self.root.join(name))
    }

    /// Link to the administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.root.join("admin.kubeconfig")
    }

    /// Held by the command that works on the cluster.
    pub fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    fn spec(&self) -> PathBuf {
        self.root.join("cluster.json")
    }

    /// Name of the bridge: at most 15 bytes, one per cluster.
    ///
    /// # Errors
    /// As [`Layout::new`].
    pub fn bridge(&self) -> anyhow::Result<String> {
        Ok(format!("klb-{}", self.tag()?))
    }

    /// Name of the bridge's end of a node's link.
    ///
    /// # Errors
    /// As [`Layout::new`].
    pub fn port(&self, number: usize) -> anyhow::Result<String> {
        Ok(format!("kl{}-{number}", self.tag()?))
    }

    fn tag(&self) -> anyhow::Result<String> {
        Ok(Layout::new(&self.root)?.tag())
    }

    /// Where [`free_subnet`] begins for this cluster.
    ///
    /// # Errors
    /// As [`Layout::new`].
    pub fn seed(&self) -> anyhow::Result<u8> {
        let tag = self.tag()?;
        u8::from_str_radix(&tag[..2], 16).context("a tag is hexadecimal")
    }

    /// Reads what the cluster was made with; `None` where there is no cluster.
    ///
    /// # Errors
    /// When the file cannot be read or understood.
    pub fn load(&self) -> anyhow::Result<Option<Spec>> {
        let path = self.spec();
        match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map(Some).with_context(|| {
                format!(
                    "{} is not what `keelson cluster create` wrote",
                    path.display()
                )
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }

    /// Writes it, whole or not at all.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn save(&self, spec: &Spec) -> anyhow::Result<()> {
        write_private(&self.spec(), &serde_json::to_string_pretty(spec)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(count: u32) -> anyhow::Result<Spec> {
        Spec::new(
            "t",
            "10.200.7.0/24".parse()?,
            count,
            "10.96.0.0/16".parse()?,
            "10.244.0.0/16".parse()?,
            Vec::new(),
        )
    }

    #[test]
    fn nodes_are_numbered_and_the_first_has_the_control_plane() {
        let three = spec(3).unwrap();
        let got: Vec<String> = three
            .nodes
            .iter()
            .map(|node| format!("{} {} {}", node.name, node.ip, node.control_plane))
            .collect();
        assert_eq!(
            got,
            [
                "node-1 10.200.7.11 true",
                "node-2 10.200.7.12 false",
                "node-3 10.200.7.13 false"
            ]
        );
        assert_eq!(three.server().unwrap(), "https://10.200.7.11:6443");
        assert_eq!(three.gateway().to_string(), "10.200.7.1");
        assert!(three.node("node-4").is_err());
        for count in [0, MAX_NODES + 1] {
            assert!(spec(count).is_err(), "{count}");
        }
    }

    #[test]
    fn names_that_could_leave_the_folder_are_refused() {
        for (name, good) in [
            ("a", true),
            ("two-nodes-2", true),
            ("", false),
            ("..", false),
            ("a/b", false),
            ("-a", false),
            ("a-", false),
            ("A", false),
            ("a23456789012345678901234567890x", false),
        ] {
            let folder = Folder::new(Path::new("/var/lib/k"), name);
            assert_eq!(folder.is_ok(), good, "{name:?}");
        }
    }

    #[test]
    fn subnets_keep_out_of_each_others_way() {
        let taken = |nets: &[&str]| -> Vec<Ipv4Net> {
            nets.iter().map(|net| net.parse().unwrap()).collect()
        };
        for (seed, others, want) in [
            (7, taken(&[]), Some("10.200.7.0/24")),
            (7, taken(&["10.200.7.1/32"]), Some("10.200.8.0/24")),
            (
                255,
                taken(&["10.200.255.0/24", "10.200.0.0/23"]),
                Some("10.200.2.0/24"),
            ),
            (0, taken(&["10.0.0.0/8"]), None),
            (0, taken(&["192.168.0.0/16"]), Some("10.200.0.0/24")),
        ] {
            let got = free_subnet(seed, &others).ok().map(|net| net.to_string());
            assert_eq!(got.as_deref(), want, "{seed} {others:?}");
        }
    }

    #[test]
    fn a_cut_goes_both_ways() {
        let mut spec = spec(3).unwrap();
        spec.cuts.insert(pair("node-3", "node-1").unwrap());
        let unheard = |node: &str| -> Vec<String> {
            let nodes = spec.unheard_by(node);
            nodes.iter().map(|node| node.name.clone()).collect()
        };
        assert_eq!(unheard("node-1"), ["node-3"]);
        assert_eq!(unheard("node-3"), ["node-1"]);
        assert!(unheard("node-2").is_empty());
        assert!(pair("a", "a").is_err());
    }
}
