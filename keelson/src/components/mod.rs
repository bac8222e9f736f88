//! Each component as a command of its own, under its upstream name and with upstream's flags.

pub mod apiserver;
pub mod server;

use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Flags about logs that every component has.
#[derive(Clone, Debug, clap::Args)]
pub struct Logging {
    /// Verbosity, as upstream counts it: 4 and above is debug
    #[arg(short = 'v', long = "v", default_value_t = 0)]
    verbosity: u8,
}

impl Logging {
    /// Sends logs to standard error; `KEELSON_LOG` overrides the level (as `tracing`'s directives).
    pub fn init(&self) {
        let level = match self.verbosity {
            0..=3 => "info",
            4..=5 => "debug",
            _ => "trace",
        };
        init_logging(level);
    }
}

/// Sends logs of `level` and above to standard error.
pub fn init_logging(level: &str) {
    let filter = EnvFilter::try_from_env("KEELSON_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
}

/// Cancelled by SIGTERM or SIGINT.
///
/// # Errors
/// When signals cannot be listened to.
pub fn shutdown_signal() -> std::io::Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let token = CancellationToken::new();
    let cancel = token.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        cancel.cancel();
    });
    Ok(token)
}
