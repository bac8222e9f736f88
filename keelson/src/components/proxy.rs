//! `keelson kube-proxy`: the service proxy alone; it reads upstream's flags and configuration file itself.

use anyhow::Context;
use keelson_machinery::clock::Clock;
use keelson_proxy::flags::Command;
use keelson_runtime::client;

use super::{init_logging, shutdown_signal};

/// Upstream's flags, passed through.
#[derive(Clone, Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub struct Flags {
    /// Flags of the proxy; an unknown one is refused by name
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    flags: Vec<String>,
}

/// Runs until a signal ends it; the rules stay.
///
/// # Errors
/// A flag, file or kubeconfig that cannot be used; a kernel without nf_tables.
pub async fn run(flags: Flags) -> anyhow::Result<()> {
    let command = Command::parse(flags.flags, &super::host_name(), Clock::system())?;
    init_logging(if command.verbosity >= 4 {
        "debug"
    } else {
        "info"
    });
    if command.cleanup {
        return keelson_proxy::cleanup(&command.config.table).context("removing the rules");
    }
    let kubeconfig = command
        .kubeconfig
        .context("--kubeconfig, or clientConnection.kubeconfig in the file, is needed")?;
    let client = client::from_kubeconfig(&kubeconfig, "kube-proxy").await?;
    keelson_proxy::run(command.config, client, shutdown_signal()?).await
}
