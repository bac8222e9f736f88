//! `keelson kube-scheduler`: the scheduler alone, by upstream's flags.

use std::path::PathBuf;

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
    #[command(flatten)]
    controller: Controller,
    /// Port of health and metrics; 0 for none
    #[arg(long, default_value_t = 10259)]
    secure_port: u16,
    #[command(flatten)]
    logging: Logging,
}

/// Runs until a signal ends it.
///
/// # Errors
/// A kubeconfig that cannot be used; a leadership that was lost.
pub async fn run(flags: Flags) -> anyhow::Result<()> {
    flags.logging.init();
    let clock = Clock::system();
    let client = client::from_kubeconfig(&flags.kubeconfig, "kube-scheduler").await?;
    let shutdown = shutdown_signal()?;
    let metrics = Metrics::new();
    let mut config = None;
    metrics.register(|registry| {
        config = Some(keelson_scheduler::Config::new(
            clock.clone(),
            &super::host_name(),
            registry,
        ))
    });
    let Some(config) = config else {
        anyhow::bail!("the metrics registry was not available")
    };
    flags
        .controller
        .serve(flags.secure_port, &client, &metrics, &shutdown)
        .await?;
    let scheduling = client.clone();
    flags
        .controller
        .lead(
            "kube-scheduler",
            client,
            clock,
            &metrics,
            shutdown,
            |leading| keelson_scheduler::run(config, scheduling, leading),
        )
        .await
}
