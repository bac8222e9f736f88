//! The `keelson` binary: every component of a Kubernetes cluster, and the commands that run one.

mod cluster;
mod components;
mod node;
mod pause;

use clap::{Parser, Subcommand};

/// Kubernetes v1.36 in one binary
#[derive(Parser)]
#[command(name = "keelson", version, about, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a cluster on this machine, or find the one that runs
    Up(cluster::up::Options),
    /// Stop the cluster
    Down(cluster::down::Options),
    /// Run the control plane in the foreground: API server, controllers, scheduler
    Server(components::server::Flags),
    /// Make this machine a node of a cluster whose control plane runs elsewhere
    Agent(components::agent::Flags),
    /// Run the API server alone, by upstream's flags
    KubeApiserver(components::apiserver::Flags),
    /// Run the controllers alone, by upstream's flags
    KubeControllerManager(components::controller_manager::Flags),
    /// Run the scheduler alone, by upstream's flags
    KubeScheduler(components::scheduler::Flags),
    /// Run the kubelet alone, by upstream's flags
    Kubelet(components::kubelet::Flags),
    /// Run the dataplane alone, by upstream's flags
    KubeProxy(components::proxy::Flags),
    /// Import images into the cluster
    Images(components::images::Flags),
    /// Run an upstream e2e.test binary against the cluster
    Conformance(components::conformance::Flags),
    /// Run cluster DNS
    Dns(components::dns::Flags),
    /// Control plane and node in one process; started by `up`
    #[command(hide = true)]
    RunCluster(cluster::run::Options),
    /// Show what runs, since when, with what memory
    Status(cluster::status::Options),
    /// The process that holds a pod's namespaces (PID 1 of sandboxes)
    #[command(hide = true)]
    Pause,
}

fn main() {
    // Before anything else: a sandbox's PID 1 must stay tiny.
    if std::env::args_os()
        .nth(1)
        .is_some_and(|command| command == "pause")
    {
        std::process::exit(pause::run());
    }
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("keelson: cannot start the runtime: {error}");
            std::process::exit(1);
        }
    };
    if let Err(error) = runtime.block_on(run(cli.command)) {
        eprintln!("keelson: {error:#}");
        std::process::exit(1);
    }
}

async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Up(options) => cluster::up::run(options).await,
        Command::Down(options) => cluster::down::run(options).await,
        Command::RunCluster(options) => cluster::run::run(options).await,
        Command::KubeControllerManager(flags) => components::controller_manager::run(flags).await,
        Command::KubeProxy(flags) => components::proxy::run(flags).await,
        Command::Images(flags) => components::images::run(flags).await,
        Command::Conformance(flags) => components::conformance::run(flags).await,
        Command::KubeScheduler(flags) => components::scheduler::run(flags).await,
        Command::Kubelet(flags) => components::kubelet::run(flags).await,
        Command::Dns(flags) => components::dns::run(flags).await,
        Command::Server(flags) => components::server::run(flags).await,
        Command::Agent(flags) => components::agent::run(flags).await,
        Command::KubeApiserver(flags) => components::apiserver::run(flags).await,
        Command::Status(options) => cluster::status::run(options).await,
        Command::Pause => std::process::exit(pause::run()),
    }
}
