//! `keelson kube-controller-manager`: the controllers alone, by upstream's flags.

use std::path::PathBuf;

use anyhow::{Context, bail};
use ipnet::IpNet;
use keelson_controllers::config::SigningKey;
use keelson_controllers::{Clients, Config};
use keelson_machinery::clock::Clock;
use keelson_runtime::client;
use keelson_runtime::metrics::Metrics;

use super::{Controller, Logging, shutdown_signal};

/// Upstream's flags, as far as they are supported. All others are refused by name.
#[derive(Clone, Debug, clap::Args)]
pub struct Flags {
    /// How to reach the API server
    #[arg(long)]
    kubeconfig: PathBuf,
    /// Which controllers to run: `*` for the default ones, `name` for one more, `-name` for one less
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "*",
        allow_hyphen_values = true
    )]
    controllers: Vec<String>,
    /// Key that service-account tokens are signed with; tokens are issued by the API server, so it is only read
    #[arg(long)]
    service_account_private_key_file: Option<PathBuf>,
    /// Authority that pods are told to trust
    #[arg(long)]
    root_ca_file: Option<PathBuf>,
    /// Authority that signs certificate requests
    #[arg(long, requires = "cluster_signing_key_file")]
    cluster_signing_cert_file: Option<PathBuf>,
    /// Its key
    #[arg(long, requires = "cluster_signing_cert_file")]
    cluster_signing_key_file: Option<PathBuf>,
    /// Each controller acts as its own service account; only possible where the kubeconfig's user may impersonate them
    #[arg(long, num_args = 0..=1, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set)]
    use_service_account_credentials: bool,
    /// Address ranges of Pods
    #[arg(long, value_delimiter = ',')]
    cluster_cidr: Vec<IpNet>,
    /// Give each node a part of --cluster-cidr
    #[arg(long, num_args = 0..=1, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set)]
    allocate_node_cidrs: bool,
    /// Address ranges of Services
    #[arg(long, value_delimiter = ',')]
    service_cluster_ip_range: Vec<IpNet>,
    #[command(flatten)]
    controller: Controller,
    /// Port of health and metrics; 0 for none
    #[arg(long, default_value_t = 10257)]
    secure_port: u16,
    #[command(flatten)]
    logging: Logging,
}

/// Runs until a signal ends it.
///
/// # Errors
/// A file that cannot be used; an unknown controller; a leadership that was lost.
pub async fn run(flags: Flags) -> anyhow::Result<()> {
    flags.logging.init();
    let clock = Clock::system();
    let shutdown = shutdown_signal()?;
    let metrics = Metrics::new();
    let config = config(&flags, clock.clone(), metrics.clone())?;
    let client = client::from_kubeconfig(&flags.kubeconfig, "kube-controller-manager").await?;
    flags
        .controller
        .serve(flags.secure_port, &client, &metrics, &shutdown)
        .await?;
    let clients = Clients::single(client.clone());
    flags
        .controller
        .lead(
            "kube-controller-manager",
            client,
            clock,
            &metrics,
            shutdown,
            |leading| async move { Ok(keelson_controllers::run(config, clients, leading).await?) },
        )
        .await
}

fn config(flags: &Flags, clock: Clock, metrics: Metrics) -> anyhow::Result<Config> {
    let read = |path: &PathBuf| {
        std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
    };
    if let Some(key) = &flags.service_account_private_key_file {
        read(key)?;
    }
    if flags.allocate_node_cidrs && flags.cluster_cidr.is_empty() {
        bail!("--allocate-node-cidrs needs --cluster-cidr");
    }
    let mut config = Config::new(clock, metrics);
    config.controllers = flags.controllers.clone();
    config.root_ca_pem = flags.root_ca_file.as_ref().map(read).transpose()?;
    if let (Some(certificate), Some(key)) = (
        &flags.cluster_signing_cert_file,
        &flags.cluster_signing_key_file,
    ) {
        config.signing = Some(SigningKey {
            certificate_pem: read(certificate)?,
            key_pem: read(key)?,
        });
    }
    if flags.allocate_node_cidrs {
        config.cluster_cidrs = flags.cluster_cidr.clone();
    }
    config.service_cidrs = flags.service_cluster_ip_range.clone();
    Ok(config)
}
