//! `keelson-bench`: the figures in the README, measured on the machine it runs on.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use futures::{StreamExt, TryStreamExt};
use keelson_conformance::client::Client;
use tokio::time::{Instant, sleep};

/// Measures a keelson binary
#[derive(Parser)]
#[command(name = "keelson-bench")]
struct Cli {
    /// The binary to measure
    #[arg(long, env = "KEELSON_BIN", default_value = "keelson")]
    keelson: PathBuf,
    #[command(subcommand)]
    command: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// Seconds from `keelson server` to /readyz, and resident memory at rest
    Start {
        /// How often; the median counts
        #[arg(long, default_value_t = 5)]
        runs: usize,
        /// Seconds to rest before memory is read
        #[arg(long, default_value_t = 20)]
        rest: u64,
    },
    /// Create ConfigMaps of 1 KB as fast as they are acknowledged, printing each acknowledged name
    Creates {
        /// The cluster
        #[arg(long, env = "KUBECONFIG")]
        kubeconfig: PathBuf,
        /// How many
        #[arg(long, default_value_t = 1000)]
        count: usize,
        /// How many at a time
        #[arg(long, default_value_t = 32)]
        at_once: usize,
        /// Names begin with this
        #[arg(long, default_value = "bench")]
        prefix: String,
    },
    /// Seconds from `keelson up` to a first Pod of the user's own Running (root; makes and purges a cluster of its own)
    FirstPod {
        /// Folder for the cluster; must not exist
        #[arg(long, default_value = "/tmp/keelson-bench-cluster")]
        data_dir: PathBuf,
        /// Further arguments for `keelson up`
        #[arg(last = true)]
        up: Vec<String>,
    },
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    match cli.command {
        Bench::Start { runs, rest } => start(&cli.keelson, runs, Duration::from_secs(rest)).await,
        Bench::Creates {
            kubeconfig,
            count,
            at_once,
            prefix,
        } => creates(&kubeconfig, count, at_once, &prefix).await,
        Bench::FirstPod { data_dir, up } => first_pod(&cli.keelson, &data_dir, &up).await,
    }
}

/// Ends the process when the measurement ends, however it ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Already gone is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn start(keelson: &Path, runs: usize, rest: Duration) -> anyhow::Result<()> {
    let mut first = Vec::new();
    let mut again = Vec::new();
    let mut resident = 0;
    for run in 0..runs.max(1) {
        let dir = tempfile::tempdir()?;
        first.push(time_to_ready(keelson, dir.path(), None).await?.0);
        let wait = (run + 1 == runs.max(1)).then_some(rest);
        let (seconds, kib) = time_to_ready(keelson, dir.path(), wait).await?;
        again.push(seconds);
        resident = kib;
    }
    println!(
        "server to /readyz, new data directory   {:>7.3} s (median of {})",
        median(&mut first),
        first.len()
    );
    println!(
        "server to /readyz, existing data        {:>7.3} s (median of {})",
        median(&mut again),
        again.len()
    );
    println!(
        "resident memory after {:>3} s at rest     {:>7.1} MB",
        rest.as_secs(),
        resident as f64 * 1024.0 / 1e6
    );
    Ok(())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Starts `keelson server` and returns the seconds until `/readyz`, and its resident KiB after a rest.
async fn time_to_ready(
    keelson: &Path,
    dir: &Path,
    rest: Option<Duration>,
) -> anyhow::Result<(f64, u64)> {
    let port = free_port()?;
    let log = std::fs::File::create(dir.join("bench.log"))?;
    let begin = Instant::now();
    let child = Command::new(keelson)
        .args([
            "server",
            "--bind-address",
            "127.0.0.1",
            "--advertise-address",
            "127.0.0.1",
            "--secure-port",
            &port.to_string(),
            "--data-dir",
        ])
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .with_context(|| format!("starting {}", keelson.display()))?;
    let mut child = Running(child);
    let kubeconfig = dir.join("admin.kubeconfig");
    let fresh = !kubeconfig.exists();
    loop {
        if let Some(status) = child.0.try_wait()? {
            bail!(
                "keelson server ended ({status}): {}",
                std::fs::read_to_string(dir.join("bench.log"))?
            );
        }
        // On a second start the file of the first one is there, with the old port.
        let ready = match std::fs::read_to_string(&kubeconfig) {
            Ok(text) if fresh || text.contains(&format!(":{port}")) => {
                Client::from_kubeconfig(&kubeconfig)?.is_ready().await
            }
            _ => false,
        };
        if ready {
            break;
        }
        if begin.elapsed() > Duration::from_secs(30) {
            bail!(
                "not ready after 30 s: {}",
                std::fs::read_to_string(dir.join("bench.log"))?
            );
        }
        sleep(Duration::from_millis(2)).await;
    }
    let seconds = begin.elapsed().as_secs_f64();
    if let Some(rest) = rest {
        sleep(rest).await;
    }
    let resident = resident_kib(child.0.id())?;
    Ok((seconds, resident))
}

async fn creates(
    kubeconfig: &Path,
    count: usize,
    at_once: usize,
    prefix: &str,
) -> anyhow::Result<()> {
    let client = Client::from_kubeconfig(kubeconfig)?;
    let begin = Instant::now();
    let requests = (0..count).map(|i| {
        let (client, name) = (client.clone(), format!("{prefix}-{i}"));
        async move {
            let object = serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"text": "x".repeat(1024)}});
            let (status, body) = client.send(http::Method::POST, "/api/v1/namespaces/default/configmaps", "application/json", object.to_string()).await?;
            if status != http::StatusCode::CREATED {
                bail!("{name}: {status}: {}", String::from_utf8_lossy(&body));
            }
            // Whole lines at once: whoever reads them may be counting on each.
            println!("{name}");
            Ok(())
        }
    });
    futures::stream::iter(requests)
        .buffer_unordered(at_once.max(1))
        .try_collect::<()>()
        .await?;
    let seconds = begin.elapsed().as_secs_f64();
    eprintln!(
        "{count} creates, {at_once} at a time: {seconds:.2} s, {:.0}/s",
        count as f64 / seconds
    );
    Ok(())
}

fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?
        .local_addr()?
        .port())
}

fn resident_kib(pid: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .context("no VmRSS line")?;
    Ok(line
        .split_whitespace()
        .next()
        .context("an empty VmRSS line")?
        .parse()?)
}

async fn first_pod(keelson: &Path, data_dir: &Path, up: &[String]) -> anyhow::Result<()> {
    if data_dir.exists() {
        bail!("{} exists; name a folder that does not", data_dir.display());
    }
    let begin = Instant::now();
    let result = measure_first_pod(keelson, data_dir, up, begin).await;
    let down = Command::new(keelson)
        .args(["down", "--purge", "--data-dir"])
        .arg(data_dir)
        .stdout(Stdio::null())
        .status()?;
    let (ready, running) = result?;
    if !down.success() {
        bail!("keelson down failed ({down})");
    }
    println!("up to node and DNS Ready                {ready:>7.2} s");
    println!("up to first Pod of the user's Running   {running:>7.2} s");
    Ok(())
}

async fn measure_first_pod(
    keelson: &Path,
    data_dir: &Path,
    up: &[String],
    begin: Instant,
) -> anyhow::Result<(f64, f64)> {
    let status = Command::new(keelson)
        .arg("up")
        .arg("--data-dir")
        .arg(data_dir)
        .args(up)
        .stdout(Stdio::null())
        .status()?;
    if !status.success() {
        bail!("keelson up failed ({status})");
    }
    let ready = begin.elapsed().as_secs_f64();
    let client = Client::from_kubeconfig(&data_dir.join("admin.kubeconfig"))?;
    // The one image that every cluster has is the system image.
    let dns = client
        .get("/apis/apps/v1/namespaces/kube-system/deployments/coredns")
        .await?;
    let image = &dns["spec"]["template"]["spec"]["containers"][0]["image"];
    let pod = serde_json::json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "first"},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "pause", "image": image, "args": ["pause"]}]},
    });
    // A namespace's service account is made by a controller; until then pods are refused.
    while client
        .get("/api/v1/namespaces/default/serviceaccounts/default")
        .await
        .is_err()
    {
        sleep(Duration::from_millis(5)).await;
    }
    let (status, body) = client
        .send(
            http::Method::POST,
            "/api/v1/namespaces/default/pods",
            "application/json",
            pod.to_string(),
        )
        .await?;
    if status != http::StatusCode::CREATED {
        bail!(
            "creating the pod: {status}: {}",
            String::from_utf8_lossy(&body)
        );
    }
    while client.get("/api/v1/namespaces/default/pods/first").await?["status"]["phase"] != "Running"
    {
        if begin.elapsed() > Duration::from_secs(120) {
            bail!("the pod is not Running after 120 s");
        }
        sleep(Duration::from_millis(5)).await;
    }
    Ok((ready, begin.elapsed().as_secs_f64()))
}
