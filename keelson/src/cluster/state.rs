//! What a cluster was made with. Written once by the first `up`; later starts read it back, so that a cluster keeps
//! its addresses and names whatever the next command line says.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, bail};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// The fixed properties of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct State {
    /// Name of the node that `up` runs.
    pub node_name: String,
    /// Address of the node, announced to pods and other nodes.
    pub node_ip: IpAddr,
    /// Address the API server listens on.
    pub bind_address: IpAddr,
    /// Port the API server listens on.
    pub secure_port: u16,
    /// Port of the kubelet's HTTPS API.
    pub kubelet_port: u16,
    /// Address range of Services.
    pub service_cidr: IpNet,
    /// Address range of Pods; each node gets a part of it.
    pub pod_cidr: IpNet,
    /// Address of the DNS Service.
    pub cluster_dns: IpAddr,
    /// Further runtime handlers of the node, for RuntimeClasses.
    #[serde(default)]
    pub runtime_handlers: Vec<String>,
    /// Value of `net.ipv4.ip_forward` before the first start, put back by `down --purge`.
    pub ip_forward_before: Option<String>,
}

impl State {
    /// The `n`-th address of the Service range; upstream gives the first to the API server and, by custom, the
    /// tenth to DNS.
    ///
    /// # Errors
    /// When the range is too small.
    pub fn service_address(range: &IpNet, n: u128) -> anyhow::Result<IpAddr> {
        let address = match range.network() {
            IpAddr::V4(base) => IpAddr::V4(
                u32::try_from(u128::from(u32::from(base)) + n)
                    .map(Into::into)
                    .with_context(|| format!("{range} is too small"))?,
            ),
            IpAddr::V6(base) => IpAddr::V6(
                u128::from(base)
                    .checked_add(n)
                    .with_context(|| format!("{range} is too small"))?
                    .into(),
            ),
        };
        if !range.contains(&address) {
            bail!("the Service range {range} is too small: it has no address number {n}");
        }
        Ok(address)
    }

    /// Reads the file; `None` when no cluster was made here yet.
    ///
    /// # Errors
    /// When it cannot be read or understood.
    pub fn load(path: &Path) -> anyhow::Result<Option<State>> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        serde_json::from_slice(&text)
            .map(Some)
            .with_context(|| format!("{} is not what `keelson up` wrote", path.display()))
    }

    /// Writes the file atomically and durably.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn save(&self, path: &Path) -> anyhow::Result<()> {
        let temporary = path.with_extension("tmp");
        let write = || -> std::io::Result<()> {
            let mut file = fs::File::create(&temporary)?;
            serde_json::to_writer_pretty(&mut file, self)?;
            file.sync_all()?;
            fs::rename(&temporary, path)
        };
        write().with_context(|| format!("writing {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_addresses_are_counted_within_the_range() {
        for (range, n, want) in [
            ("10.96.0.0/16", 1, Some("10.96.0.1")),
            ("10.96.0.0/16", 10, Some("10.96.0.10")),
            ("fd00::/112", 10, Some("fd00::a")),
            ("10.0.0.0/30", 10, None),
            ("255.255.255.248/29", 10, None),
        ] {
            let got = State::service_address(&range.parse().unwrap(), n)
                .ok()
                .map(|a| a.to_string());
            assert_eq!(got.as_deref(), want, "{range} + {n}");
        }
    }
}
