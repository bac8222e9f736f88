//! `keelson status`: what runs, since when, with what memory.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::ListParams;

use super::layout::Layout;
use super::process;
use super::up;

/// The command line of `status`.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Folder that holds everything of the cluster
    #[arg(long, default_value = super::DEFAULT_DATA_DIR)]
    pub data_dir: PathBuf,
}

/// Shows the state; the exit code is 3 when the cluster is down, as with `systemctl status`.
///
/// # Errors
/// When files of the data directory cannot be read.
pub async fn run(options: Options) -> anyhow::Result<()> {
    if !print(&Layout::new(&options.data_dir)?).await? {
        std::process::exit(3);
    }
    Ok(())
}

/// Prints the state of the cluster in `layout`. Returns whether it is up.
///
/// # Errors
/// When files of the data directory cannot be read.
pub async fn print(layout: &Layout) -> anyhow::Result<bool> {
    let cluster = process::find_running(&layout.pid_file())?;
    let containerd = process::find_running(&layout.containerd_pid_file())?;
    println!(
        "{:<12} {:>8}  {:>10}  {:>9}",
        "PROCESS", "PID", "SINCE", "MEMORY"
    );
    for (name, pid) in [("keelson", cluster), ("containerd", containerd)] {
        match pid {
            Some(pid) => println!(
                "{name:<12} {pid:>8}  {:>10}  {:>9}",
                since(pid),
                memory(process::resident_kib(pid))
            ),
            None => println!("{name:<12} {:>8}", "-"),
        }
    }
    let shims = process::shims(&layout.containerd_socket())?;
    if !shims.is_empty() {
        let total = shims
            .iter()
            .filter_map(|pid| process::resident_kib(*pid))
            .sum();
        println!(
            "{:<12} {:>8}  {:>10}  {:>9}",
            "shims",
            format!("{}x", shims.len()),
            "",
            memory(Some(total))
        );
    }
    let Some(_) = cluster else {
        println!("\nThe cluster in {} is down.", layout.root().display());
        return Ok(false);
    };
    let client = up::client(&layout.admin_kubeconfig()).await?;
    match up::readyz(&client).await {
        Ok(()) => println!("\nAPI server   ready"),
        Err(error) => {
            println!("\nAPI server   not ready: {error:#}");
            return Ok(true);
        }
    }
    for node in Api::<Node>::all(client.clone())
        .list(&ListParams::default())
        .await?
    {
        let ready = node
            .status
            .and_then(|s| s.conditions)
            .unwrap_or_default()
            .into_iter()
            .find(|c| c.type_ == "Ready");
        let (word, why) = match ready {
            Some(c) if c.status == "True" => ("Ready", String::new()),
            Some(c) => ("NotReady", format!(": {}", c.message.unwrap_or_default())),
            None => ("NotReady", String::from(": no status yet")),
        };
        println!(
            "node         {} {word}{why}",
            node.metadata.name.unwrap_or_default()
        );
    }
    let pods = Api::<Pod>::all(client).list(&ListParams::default()).await?;
    let running = pods
        .iter()
        .filter(|pod| pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running"))
        .count();
    println!("pods         {running} running of {}", pods.items.len());
    Ok(true)
}

fn memory(kib: Option<u64>) -> String {
    kib.map_or_else(
        || String::from("?"),
        |kib| format!("{:.1} MB", kib as f64 * 1024.0 / 1e6),
    )
}

fn since(pid: u32) -> String {
    let Some(seconds) = process::age_seconds(pid) else {
        return String::from("?");
    };
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}
