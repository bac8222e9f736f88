//! `keelson server`: the control plane in the foreground.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use anyhow::Context;
use ipnet::IpNet;
use keelson_machinery::clock::Clock;

use super::shutdown_signal;
use crate::cluster::control_plane;
use crate::node::network;

/// The command line of `server`.
#[derive(Clone, Debug, clap::Args)]
pub struct Flags {
    /// Folder that holds keys, objects and admin.kubeconfig
    #[arg(long, default_value = crate::cluster::DEFAULT_DATA_DIR)]
    data_dir: PathBuf,
    /// Address to listen on
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED))]
    bind_address: IpAddr,
    /// Port to listen on
    #[arg(long, default_value_t = 6443)]
    secure_port: u16,
    /// Address under which pods and nodes reach the API server [default: the bind address, or that of the link with the default route]
    #[arg(long)]
    advertise_address: Option<IpAddr>,
    #[command(flatten)]
    etcd: super::apiserver::EtcdFlags,
    /// Address range of Services
    #[arg(long, default_value = "10.96.0.0/16")]
    service_cidr: IpNet,
    /// Address range of Pods
    #[arg(long, default_value = "10.244.0.0/16")]
    pod_cidr: IpNet,
    #[command(flatten)]
    logging: super::Logging,
}

/// Runs until a signal ends it.
///
/// # Errors
/// A port that is taken, a folder that cannot be written, a damaged store.
pub async fn run(flags: Flags) -> anyhow::Result<()> {
    flags.logging.init();
    let advertise_address = match flags.advertise_address {
        Some(address) => address,
        None if !flags.bind_address.is_unspecified() => flags.bind_address,
        None => network::node_address().await?,
    };
    std::fs::create_dir_all(&flags.data_dir)
        .with_context(|| format!("creating {}", flags.data_dir.display()))?;
    let options = control_plane::Options {
        data_dir: flags.data_dir,
        etcd: flags.etcd,
        bind_address: flags.bind_address,
        secure_port: flags.secure_port,
        advertise_address,
        names: Vec::new(),
        service_cidr: flags.service_cidr,
        pod_cidr: flags.pod_cidr,
    };
    let shutdown = shutdown_signal()?;
    let mut control_plane = control_plane::start(&options, Clock::system(), &shutdown).await?;
    control_plane.wait(&shutdown).await
}
