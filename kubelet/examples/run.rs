//! Runs the kubelet alone, with upstream's flags.
use anyhow::Result;
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (config, _) = keelson_kubelet::Config::from_args(std::env::args().skip(1), "node")?;
    let client = match &config.kubeconfig {
        None => None,
        Some(path) => {
            let k = kube::config::Kubeconfig::read_from(path)?;
            let c = kube::Config::from_custom_kubeconfig(k, &Default::default()).await?;
            Some(kube::Client::try_from(c)?)
        }
    };
    let stop = CancellationToken::new();
    let s = stop.clone();
    tokio::spawn(async move {
        let mut term =
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
        tokio::select! { _ = tokio::signal::ctrl_c() => {}, _ = term.recv() => {} }
        s.cancel();
    });
    keelson_kubelet::run(config, client, stop).await
}
