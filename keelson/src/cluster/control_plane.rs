//! The control plane in one process: store, API server, controllers, scheduler. They meet only at the API: each
//! component acts as its own user, over the in-process service instead of a socket.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::Context;
use http::header::{HeaderValue, USER_AGENT};
use ipnet::IpNet;
use keelson_apiserver::authn::AuthenticationConfig;
use keelson_apiserver::authn::x509::RequestHeaderConfig;
use keelson_apiserver::config::{AuthorizationMode, Config, KubeletClientConfig, PemPair};
use keelson_apiserver::pki::{self, Credential, Pki};
use keelson_apiserver::request::UserInfo;
use keelson_apiserver::server::ApiServer;
use keelson_controllers::config::SigningKey;
use keelson_machinery::clock::Clock;
use keelson_runtime::client;
use keelson_runtime::metrics::Metrics;
use kube::Client;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::joining::{self, NodeConfig};
use super::state::State;
use crate::components::apiserver::{EtcdFlags, open_store};

/// The user agent of all controllers.
const CONTROLLER_MANAGER: &str = "kube-controller-manager";

/// What a control plane is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Folder of keys and store.
    pub data_dir: PathBuf,
    /// An external store, if it names servers; else the embedded one below `data_dir`.
    pub etcd: EtcdFlags,
    /// Address to listen on.
    pub bind_address: IpAddr,
    /// Port to listen on.
    pub secure_port: u16,
    /// Address under which pods and nodes reach the API server.
    pub advertise_address: IpAddr,
    /// Further names that the serving certificate covers.
    pub names: Vec<String>,
    /// Address range of Services.
    pub service_cidr: IpNet,
    /// Address range of Pods.
    pub pod_cidr: IpNet,
}

/// A started control plane.
pub struct ControlPlane {
    /// The API server, for components in the same process.
    pub server: ApiServer,
    /// Keys and certificates.
    pub pki: Pki,
    tasks: JoinSet<anyhow::Result<()>>,
}

/// Starts everything; the API server is ready and listens when this returns.
///
/// # Errors
/// A folder that cannot be written, a port that is taken, a damaged store.
pub async fn start(
    options: &Options,
    clock: Clock,
    shutdown: &CancellationToken,
) -> anyhow::Result<ControlPlane> {
    let address = SocketAddr::new(options.bind_address, options.secure_port);
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("listening on {address}"))?;
    let pki = Pki::open(
        &options.data_dir.join("pki"),
        &server_names(options)?,
        &clock,
    )?;
    let store = open_store(
        &options.etcd,
        Some(options.data_dir.as_path()),
        clock.clone(),
    )?;
    let server = ApiServer::start(server_config(options, &pki, clock.clone()), store).await?;

    let mut tasks = JoinSet::new();
    let (serving, stop) = (server.clone(), shutdown.clone());
    tasks.spawn(async move {
        serving
            .serve(listener, stop)
            .await
            .context("the API server")
    });
    let admin = client_as(&server, administrator(), "keelson");
    let node_config = NodeConfig {
        pod_cidr: options.pod_cidr,
        cluster_dns: State::service_address(&options.service_cidr, 10)?,
    };
    let url = format!(
        "https://{}",
        SocketAddr::new(options.advertise_address, options.secure_port)
    );
    joining::offer(
        &admin,
        &options.data_dir,
        &url,
        pki.ca_pem(),
        &node_config,
        &clock,
    )
    .await
    .context("what nodes need to join")?;
    write_admin_kubeconfig(options, &pki)?;

    let scheduler =
        keelson_scheduler::Config::new(clock.clone(), &instance(), &mut Registry::default());
    let (client, stop) = (
        client_as(
            &server,
            component("system:kube-scheduler"),
            "kube-scheduler",
        ),
        shutdown.clone(),
    );
    tasks.spawn(async move {
        keelson_scheduler::run(scheduler, client, stop)
            .await
            .context("the scheduler")
    });

    let controllers = controllers_config(options, &pki, clock)?;
    let own = server.clone();
    let clients = keelson_controllers::Clients::new(
        client_as(
            &server,
            component("system:kube-controller-manager"),
            CONTROLLER_MANAGER,
        ),
        move |name| {
            client_as(
                &own,
                service_account("kube-system", name),
                CONTROLLER_MANAGER,
            )
        },
    );
    let stop = shutdown.clone();
    tasks.spawn(async move {
        keelson_controllers::run(controllers, clients, stop)
            .await
            .context("the controllers")
    });
    Ok(ControlPlane { server, pki, tasks })
}

impl ControlPlane {
    /// Waits for the first part that ends; before shutdown that is an error.
    ///
    /// # Errors
    /// Why a part failed.
    pub async fn wait(&mut self, shutdown: &CancellationToken) -> anyhow::Result<()> {
        while let Some(ended) = self.tasks.join_next().await {
            ended.context("a part of the control plane panicked")??;
            if !shutdown.is_cancelled() {
                anyhow::bail!("a part of the control plane ended by itself");
            }
        }
        Ok(())
    }
}

/// A client that acts as `user` through the in-process service. `component` is the user agent, and so the manager of
/// the fields that it writes: upstream's name of the component.
pub fn client_as(server: &ApiServer, user: UserInfo, component: &'static str) -> Client {
    let agent = HeaderValue::from_static(component);
    let service = server.in_process_service(user).map_request(
        move |mut request: http::Request<kube::client::Body>| {
            request.headers_mut().insert(USER_AGENT, agent.clone());
            request
        },
    );
    client::from_in_process(service)
}

/// The identity of a component of the control plane.
pub fn component(name: &str) -> UserInfo {
    UserInfo {
        name: name.to_owned(),
        groups: vec!["system:authenticated".to_owned()],
        ..UserInfo::default()
    }
}

/// The identity of a service account.
pub fn service_account(namespace: &str, name: &str) -> UserInfo {
    UserInfo {
        name: format!("system:serviceaccount:{namespace}:{name}"),
        groups: vec![
            "system:serviceaccounts".to_owned(),
            format!("system:serviceaccounts:{namespace}"),
            "system:authenticated".to_owned(),
        ],
        ..UserInfo::default()
    }
}

/// The identity that sets the cluster up.
pub fn administrator() -> UserInfo {
    UserInfo {
        name: "system:keelson".to_owned(),
        groups: vec![
            "system:masters".to_owned(),
            "system:authenticated".to_owned(),
        ],
        ..UserInfo::default()
    }
}

/// The identity of a kubelet.
pub fn node(name: &str) -> UserInfo {
    UserInfo {
        name: format!("system:node:{name}"),
        groups: vec!["system:nodes".to_owned(), "system:authenticated".to_owned()],
        ..UserInfo::default()
    }
}

fn instance() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

fn server_names(options: &Options) -> anyhow::Result<Vec<String>> {
    let domain = super::CLUSTER_DOMAIN;
    let mut names: Vec<String> = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "localhost",
    ]
    .map(str::to_owned)
    .to_vec();
    names.push(format!("kubernetes.default.svc.{domain}"));
    names.push(State::service_address(&options.service_cidr, 1)?.to_string());
    names.extend([
        "127.0.0.1".to_owned(),
        options.advertise_address.to_string(),
    ]);
    if !options.bind_address.is_unspecified() {
        names.push(options.bind_address.to_string());
    }
    names.extend(options.names.iter().cloned());
    names.sort();
    names.dedup();
    Ok(names)
}

fn server_config(options: &Options, pki: &Pki, clock: Clock) -> Config {
    let pair = |pair: &pki::KeyPair| PemPair {
        certificate: pair.certificate_pem.clone(),
        key: pair.key_pem.clone(),
    };
    let mut config = Config::new(pair(&pki.apiserver), clock);
    config.authentication = AuthenticationConfig {
        client_ca_pem: Some(pki.ca_pem().to_owned()),
        request_header: Some(RequestHeaderConfig::standard(
            pki.front_proxy_ca_pem(),
            vec!["front-proxy-client".to_owned()],
        )),
        service_account_key_pems: vec![pki.service_account_public_pem().to_owned()],
        service_account_issuers: vec![format!(
            "https://kubernetes.default.svc.{}",
            super::CLUSTER_DOMAIN
        )],
        bootstrap_tokens: true,
        anonymous: true,
        ..AuthenticationConfig::default()
    };
    config.authorization = vec![AuthorizationMode::Node, AuthorizationMode::Rbac];
    // The Node authorizer lets nodes write by name only; this plugin sees what they write.
    config.enable_admission_plugins = vec!["NodeRestriction".to_owned()];
    config.service_account_signing_key = Some(pki.service_account_key_pem().to_owned());
    config.service_cidrs = vec![options.service_cidr];
    config.advertise_address = Some(options.advertise_address);
    config.secure_port = options.secure_port;
    config.kubelet = KubeletClientConfig {
        client: Some(pair(&pki.kubelet_client)),
        certificate_authority: Some(pki.ca_pem().to_owned()),
        preferred_address_types: vec!["InternalIP".to_owned(), "Hostname".to_owned()],
    };
    config.proxy_client = Some(pair(&pki.front_proxy_client));
    config
}

fn controllers_config(
    options: &Options,
    pki: &Pki,
    clock: Clock,
) -> anyhow::Result<keelson_controllers::Config> {
    let mut config = keelson_controllers::Config::new(clock, Metrics::new());
    config.cluster_cidrs = vec![options.pod_cidr];
    config.service_cidrs = vec![options.service_cidr];
    config.root_ca_pem = Some(pki.ca_pem().to_owned());
    let key = pki.dir().join("ca.key");
    config.signing = Some(SigningKey {
        certificate_pem: pki.ca_pem().to_owned(),
        key_pem: std::fs::read_to_string(&key)
            .with_context(|| format!("reading {}", key.display()))?,
    });
    // Off upstream, where an installer asks for the first two, and people approve what kubelets serve with.
    config.controllers.extend(
        [
            "bootstrapsigner",
            "tokencleaner",
            "kubelet-serving-approver",
        ]
        .map(str::to_owned),
    );
    Ok(config)
}

/// Written when the server listens, so that whoever finds the file can use it.
fn write_admin_kubeconfig(options: &Options, pki: &Pki) -> anyhow::Result<()> {
    let host = match options.bind_address {
        any if any.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
        address => address,
    };
    let server = format!("https://{}", SocketAddr::new(host, options.secure_port));
    let credential = Credential::Certificate {
        certificate_pem: &pki.admin.certificate_pem,
        key_pem: &pki.admin.key_pem,
    };
    let text = pki::kubeconfig(
        "keelson",
        &server,
        pki.ca_pem(),
        "kubernetes-admin",
        &credential,
    );
    write_private(&options.data_dir.join("admin.kubeconfig"), &text)
}

/// Writes a file that only its owner may read, whole or not at all.
///
/// # Errors
/// When the disk refuses.
pub fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let temporary = path.with_extension("tmp");
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(text.as_bytes())?;
        std::fs::rename(&temporary, path)
    };
    write().with_context(|| format!("writing {}", path.display()))
}
