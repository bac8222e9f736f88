//! Dev entry: a server on an embedded store in a directory.
use keelson_apiserver::{ApiServer, Config, config::PemPair, pki::Pki};
use keelson_machinery::clock::Clock;
use keelson_store::embedded::{Embedded, Options};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() {
    tracing_subscriber_init();
    let dir = std::path::PathBuf::from(std::env::args().nth(1).expect("dir"));
    let port: u16 = std::env::args()
        .nth(2)
        .and_then(|p| p.parse().ok())
        .unwrap_or(7443);
    let t0 = tokio::time::Instant::now();
    std::fs::create_dir_all(&dir).unwrap();
    let clock = Clock::system();
    let pki = Pki::open(
        &dir.join("pki"),
        &["127.0.0.1".into(), "localhost".into()],
        &clock,
    )
    .unwrap();
    println!("pki {:?}", t0.elapsed());
    let mut config = Config::new(
        PemPair {
            certificate: pki.apiserver.certificate_pem.clone(),
            key: pki.apiserver.key_pem.clone(),
        },
        clock.clone(),
    );
    config.authentication.client_ca_pem = Some(pki.ca_pem().to_string());
    config.authentication.service_account_key_pems =
        vec![pki.service_account_public_pem().to_string()];
    config.authentication.service_account_issuers =
        vec!["https://kubernetes.default.svc.cluster.local".into()];
    config.service_account_signing_key = Some(pki.service_account_key_pem().to_string());
    config.advertise_address = Some("127.0.0.1".parse().unwrap());
    config.secure_port = port;
    let store = Embedded::open(dir.join("store"), Options::new(clock)).unwrap();
    println!("store {:?}", t0.elapsed());
    let api = ApiServer::start(config, store as Arc<dyn keelson_store::Store>)
        .await
        .unwrap();
    println!("started {:?}", t0.elapsed());
    let kc = keelson_apiserver::pki::kubeconfig(
        "keelson",
        &format!("https://127.0.0.1:{port}"),
        pki.ca_pem(),
        "admin",
        &keelson_apiserver::pki::Credential::Certificate {
            certificate_pem: &pki.admin.certificate_pem,
            key_pem: &pki.admin.key_pem,
        },
    );
    std::fs::write(dir.join("admin.kubeconfig"), kc).unwrap();
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port))
        .await
        .unwrap();
    println!("ready {:?}", t0.elapsed());
    let shutdown = CancellationToken::new();
    let s2 = shutdown.clone();
    tokio::spawn(async move {
        tokio::signal::ctrl_c().await.ok();
        s2.cancel();
    });
    api.serve(listener, shutdown).await.unwrap();
}
fn tracing_subscriber_init() {}
