//! `keelson kube-apiserver`: the API server alone, by upstream's flags.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use ipnet::IpNet;
use keelson_apiserver::authn::AuthenticationConfig;
use keelson_apiserver::authn::x509::RequestHeaderConfig;
use keelson_apiserver::config::{AuthorizationMode, Config, KubeletClientConfig, PemPair};
use keelson_apiserver::server::ApiServer;
use keelson_machinery::clock::Clock;
use keelson_store::Store;
use keelson_store::embedded::Embedded;
use keelson_store::etcd::{self, Etcd};
use tokio::net::TcpListener;

use super::shutdown_signal;

/// Upstream's flags, as far as they are supported. All others are refused by name.
#[derive(Clone, Debug, clap::Args)]
pub struct Flags {
    #[command(flatten)]
    etcd: EtcdFlags,
    /// Folder of the embedded store
    #[arg(long, conflicts_with = "etcd_servers")]
    data_dir: Option<PathBuf>,
    /// Address to listen on
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED))]
    bind_address: IpAddr,
    /// Port to listen on
    #[arg(long, default_value_t = 6443)]
    secure_port: u16,
    /// Address under which the cluster reaches this server
    #[arg(long)]
    advertise_address: Option<IpAddr>,
    /// Serving certificate, PEM
    #[arg(long)]
    tls_cert_file: PathBuf,
    /// Key of the serving certificate, PEM
    #[arg(long)]
    tls_private_key_file: PathBuf,
    /// Authority of client certificates, PEM
    #[arg(long)]
    client_ca_file: Option<PathBuf>,
    /// Certificate towards kubelets
    #[arg(long, requires = "kubelet_client_key")]
    kubelet_client_certificate: Option<PathBuf>,
    /// Its key
    #[arg(long, requires = "kubelet_client_certificate")]
    kubelet_client_key: Option<PathBuf>,
    /// Authority of kubelets' serving certificates
    #[arg(long)]
    kubelet_certificate_authority: Option<PathBuf>,
    /// Which of a node's addresses to use, by preference
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "Hostname,InternalDNS,InternalIP,ExternalDNS,ExternalIP"
    )]
    kubelet_preferred_address_types: Vec<String>,
    /// Authority of front proxies
    #[arg(long)]
    requestheader_client_ca_file: Option<PathBuf>,
    /// Common names that may act as front proxy; empty: any of that authority
    #[arg(long, value_delimiter = ',')]
    requestheader_allowed_names: Vec<String>,
    /// Headers that carry the user name
    #[arg(long, value_delimiter = ',', default_value = "X-Remote-User")]
    requestheader_username_headers: Vec<String>,
    /// Headers that carry the groups
    #[arg(long, value_delimiter = ',', default_value = "X-Remote-Group")]
    requestheader_group_headers: Vec<String>,
    /// Prefixes of headers that carry further facts
    #[arg(long, value_delimiter = ',', default_value = "X-Remote-Extra-")]
    requestheader_extra_headers_prefix: Vec<String>,
    /// Keys that verify service-account tokens; may be given several times
    #[arg(long)]
    service_account_key_file: Vec<PathBuf>,
    /// Key that signs service-account tokens
    #[arg(long)]
    service_account_signing_key_file: Option<PathBuf>,
    /// Issuer of service-account tokens; the first one signs
    #[arg(long)]
    service_account_issuer: Vec<String>,
    /// Where the issuer's keys are found
    #[arg(long)]
    service_account_jwks_uri: Option<String>,
    /// Audiences that this server is
    #[arg(long, value_delimiter = ',')]
    api_audiences: Vec<String>,
    /// Authorizers, in order: RBAC, Node, AlwaysAllow, AlwaysDeny
    #[arg(long, value_delimiter = ',', default_value = "Node,RBAC")]
    authorization_mode: Vec<String>,
    /// Admission plugins beyond the default ones
    #[arg(long, value_delimiter = ',')]
    enable_admission_plugins: Vec<String>,
    /// Admission plugins to leave out
    #[arg(long, value_delimiter = ',')]
    disable_admission_plugins: Vec<String>,
    /// Certificate towards aggregated API servers, which tells them that this server may speak for users
    #[arg(long, requires = "proxy_client_key_file")]
    proxy_client_cert_file: Option<PathBuf>,
    /// Its key
    #[arg(long, requires = "proxy_client_cert_file")]
    proxy_client_key_file: Option<PathBuf>,
    /// Address ranges of Services
    #[arg(long, value_delimiter = ',', default_value = "10.0.0.0/24")]
    service_cluster_ip_range: Vec<IpNet>,
    /// Port range of Services of type NodePort
    #[arg(long, default_value = "30000-32767")]
    service_node_port_range: String,
    /// Accept anonymous requests
    #[arg(long, num_args = 0..=1, default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    anonymous_auth: bool,
    /// Accept bootstrap tokens
    #[arg(long, num_args = 0..=1, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set)]
    enable_bootstrap_token_auth: bool,
    /// Tokens and their users, CSV
    #[arg(long)]
    token_auth_file: Option<PathBuf>,
    /// Privileged containers are allowed; kept for upstream's sake, only `true` is supported
    #[arg(long, num_args = 0..=1, default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    allow_privileged: bool,
    #[command(flatten)]
    logging: super::Logging,
}

/// Upstream's flags about etcd.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct EtcdFlags {
    /// The etcd servers that hold the objects, scheme://host:port [default: the embedded store in the data directory]
    #[arg(long, value_delimiter = ',')]
    etcd_servers: Vec<String>,
    /// Authority of the etcd servers' certificates, PEM
    #[arg(long)]
    etcd_cafile: Option<PathBuf>,
    /// Certificate towards the etcd servers, PEM
    #[arg(long, requires = "etcd_keyfile")]
    etcd_certfile: Option<PathBuf>,
    /// Its key
    #[arg(long, requires = "etcd_certfile")]
    etcd_keyfile: Option<PathBuf>,
    /// What all keys begin with; only upstream's default is supported
    #[arg(long, default_value = "/registry")]
    etcd_prefix: String,
}

impl EtcdFlags {
    /// Whether etcd holds the objects.
    pub fn is_used(&self) -> bool {
        !self.etcd_servers.is_empty()
    }

    fn options(&self) -> anyhow::Result<etcd::Options> {
        if self.etcd_prefix.trim_matches('/') != "registry" {
            bail!(
                "--etcd-prefix: {:?} is not supported; keys begin with /registry",
                self.etcd_prefix
            );
        }
        let read = |path: &PathBuf| {
            std::fs::read(path).with_context(|| format!("reading {}", path.display()))
        };
        let mut options = etcd::Options::new(self.etcd_servers.clone());
        let secure = self
            .etcd_servers
            .iter()
            .any(|server| server.starts_with("https://"));
        options.tls = match (&self.etcd_cafile, &self.etcd_certfile, &self.etcd_keyfile) {
            (Some(ca), certificate, key) => Some(etcd::Tls {
                ca: read(ca)?,
                identity: match (certificate, key) {
                    (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
                    _ => None,
                },
            }),
            (None, None, None) if !secure => None,
            _ => bail!("--etcd-servers with https needs --etcd-cafile"),
        };
        Ok(options)
    }
}

/// Runs until a signal ends it.
///
/// # Errors
/// What is wrong with a flag or file, by its name.
pub async fn run(flags: Flags) -> anyhow::Result<()> {
    flags.logging.init();
    let clock = Clock::system();
    let config = config(&flags, clock.clone())?;
    let store = open_store(&flags.etcd, flags.data_dir.as_deref(), clock)?;
    let server = ApiServer::start(config, store).await?;
    let address = SocketAddr::new(flags.bind_address, flags.secure_port);
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("listening on {address}"))?;
    server.serve(listener, shutdown_signal()?).await?;
    Ok(())
}

/// Opens the store that the flags name.
///
/// # Errors
/// When neither is named, or it cannot be opened.
pub fn open_store(
    etcd: &EtcdFlags,
    data_dir: Option<&Path>,
    clock: Clock,
) -> anyhow::Result<Arc<dyn Store>> {
    match (etcd.is_used(), data_dir) {
        (true, _) => {
            let store = Etcd::open(etcd.options()?).context("--etcd-servers")?;
            Ok(store)
        }
        (false, Some(dir)) => {
            std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
            let path = dir.join("store.redb");
            let options = keelson_store::embedded::Options::new(clock);
            Ok(Embedded::open(&path, options)
                .with_context(|| format!("opening {}", path.display()))?)
        }
        (false, None) => bail!(
            "one of --etcd-servers and --data-dir is needed: where are the objects to be stored?"
        ),
    }
}

fn config(flags: &Flags, clock: Clock) -> anyhow::Result<Config> {
    let read = |path: &PathBuf| {
        std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
    };
    if !flags.allow_privileged {
        bail!(
            "--allow-privileged=false is not supported; use Pod Security admission to keep privileged pods out"
        );
    }
    let serving = PemPair {
        certificate: read(&flags.tls_cert_file)?,
        key: read(&flags.tls_private_key_file)?,
    };
    let mut config = Config::new(serving, clock);
    let request_header = match &flags.requestheader_client_ca_file {
        None => None,
        Some(path) => Some(RequestHeaderConfig {
            client_ca_pem: read(path)?,
            allowed_names: flags.requestheader_allowed_names.clone(),
            username_headers: flags.requestheader_username_headers.clone(),
            group_headers: flags.requestheader_group_headers.clone(),
            extra_header_prefixes: flags.requestheader_extra_headers_prefix.clone(),
            ..RequestHeaderConfig::standard(String::new(), Vec::new())
        }),
    };
    config.authentication = AuthenticationConfig {
        client_ca_pem: flags.client_ca_file.as_ref().map(read).transpose()?,
        request_header,
        service_account_key_pems: flags
            .service_account_key_file
            .iter()
            .map(read)
            .collect::<Result<_, _>>()?,
        service_account_issuers: flags.service_account_issuer.clone(),
        api_audiences: flags.api_audiences.clone(),
        token_file: flags.token_auth_file.as_ref().map(read).transpose()?,
        bootstrap_tokens: flags.enable_bootstrap_token_auth,
        anonymous: flags.anonymous_auth,
    };
    config.authorization = flags
        .authorization_mode
        .iter()
        .map(|mode| authorization_mode(mode))
        .collect::<Result<_, _>>()?;
    config.service_account_signing_key = flags
        .service_account_signing_key_file
        .as_ref()
        .map(read)
        .transpose()?;
    config.jwks_uri = flags.service_account_jwks_uri.clone();
    config.service_cidrs = flags.service_cluster_ip_range.clone();
    config.node_ports = node_ports(&flags.service_node_port_range)?;
    config.advertise_address = flags
        .advertise_address
        .or(Some(flags.bind_address).filter(|a| !a.is_unspecified()));
    config.secure_port = flags.secure_port;
    let client = match (&flags.kubelet_client_certificate, &flags.kubelet_client_key) {
        (Some(certificate), Some(key)) => Some(PemPair {
            certificate: read(certificate)?,
            key: read(key)?,
        }),
        _ => None,
    };
    config.kubelet = KubeletClientConfig {
        client,
        certificate_authority: flags
            .kubelet_certificate_authority
            .as_ref()
            .map(read)
            .transpose()?,
        preferred_address_types: flags.kubelet_preferred_address_types.clone(),
    };
    config.proxy_client = match (&flags.proxy_client_cert_file, &flags.proxy_client_key_file) {
        (Some(certificate), Some(key)) => Some(PemPair {
            certificate: read(certificate)?,
            key: read(key)?,
        }),
        _ => None,
    };
    config.enable_admission_plugins = flags.enable_admission_plugins.clone();
    config.disable_admission_plugins = flags.disable_admission_plugins.clone();
    Ok(config)
}

fn authorization_mode(mode: &str) -> anyhow::Result<AuthorizationMode> {
    match mode {
        "RBAC" => Ok(AuthorizationMode::Rbac),
        "Node" => Ok(AuthorizationMode::Node),
        "AlwaysAllow" => Ok(AuthorizationMode::AlwaysAllow),
        "AlwaysDeny" => Ok(AuthorizationMode::AlwaysDeny),
        other => bail!(
            "--authorization-mode: {other:?} is not supported; known are RBAC, Node, AlwaysAllow, AlwaysDeny"
        ),
    }
}

fn node_ports(range: &str) -> anyhow::Result<(u16, u16)> {
    let parsed = range
        .split_once('-')
        .and_then(|(low, high)| Some((low.parse().ok()?, high.parse().ok()?)));
    match parsed {
        Some((low, high)) if low <= high && low > 0 => Ok((low, high)),
        _ => bail!("--service-node-port-range: {range:?} is not of the form LOW-HIGH"),
    }
}
