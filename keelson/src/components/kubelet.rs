//! `keelson kubelet`: the kubelet alone; it reads upstream's flags and configuration file itself.

use keelson_runtime::client;

use super::{init_logging, shutdown_signal};

/// Upstream's flags, passed through.
#[derive(Clone, Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub struct Flags {
    /// Flags of the kubelet; an unknown one is refused by name
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    flags: Vec<String>,
}

/// Runs until a signal ends it; containers keep running.
///
/// # Errors
/// A flag, file or kubeconfig that cannot be used.
pub async fn run(flags: Flags) -> anyhow::Result<()> {
    let (config, verbosity) = keelson_kubelet::Config::from_args(flags.flags, &super::host_name())?;
    init_logging(if verbosity >= 4 { "debug" } else { "info" });
    let client = match &config.kubeconfig {
        Some(path) => Some(client::from_kubeconfig(path, "kubelet").await?),
        None => None,
    };
    keelson_kubelet::run(config, client, shutdown_signal()?).await
}
