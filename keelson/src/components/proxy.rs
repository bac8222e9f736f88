//! `keelson kube-proxy`: the dataplane alone, by upstream's flags.

use std::path::PathBuf;

use anyhow::Context;
use keelson_machinery::clock::Clock;
use keelson_proxy::KubeProxyConfiguration;

use super::{Logging, shutdown_signal};

/// Upstream's flags, as far as they are supported. All others are refused by name.
#[derive(Clone, Debug, clap::Args)]
pub struct Flags {
    /// KubeProxyConfiguration v1alpha1
    #[arg(long)]
    config: PathBuf,
    /// Node name, over that of the file
    #[arg(long)]
    hostname_override: Option<String>,
    /// How to reach the API server, over that of the file
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    #[command(flatten)]
    logging: Logging,
}

/// Runs until a signal ends it; the rules stay.
///
/// # Errors
/// A file that cannot be used, by the field at fault.
pub async fn run(flags: Flags) -> anyhow::Result<()> {
    flags.logging.init();
    let named = || format!("{}", flags.config.display());
    let text = std::fs::read_to_string(&flags.config).with_context(named)?;
    let file = KubeProxyConfiguration::parse(&text).with_context(named)?;
    let settings = file.resolve().with_context(named)?;
    let kubeconfig = flags
        .kubeconfig
        .unwrap_or_else(|| PathBuf::from(&file.client_connection.kubeconfig));
    if kubeconfig.as_os_str().is_empty() {
        anyhow::bail!(
            "neither --kubeconfig nor clientConnection.kubeconfig says how to reach the API server"
        );
    }
    let client = keelson_runtime::client::from_kubeconfig(&kubeconfig, "kube-proxy").await?;
    let node = flags
        .hostname_override
        .or_else(|| settings.node_name.clone())
        .unwrap_or_else(super::host_name);
    let config = keelson_proxy::Config::new(settings, &node, Clock::system());
    keelson_proxy::run(config, client, shutdown_signal()?).await
}
