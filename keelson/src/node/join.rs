//! How a machine becomes a node: it finds the cluster's authority, checks it with the pin, asks for certificates with
//! the token, and keeps them for the next start.
//!
//! The authority is fetched without any check and believed only if its key has the pinned hash or, for a token without
//! one, if it is signed with the token; the token is first sent over a connection that is checked with the authority. A certificate is renewed in the last fifth of its life by the node
//! itself, without the token.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestSpec,
};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_apiserver::pki::{self, Credential};
use keelson_controllers::bootstrap::signer::detached_jws;
use keelson_machinery::clock::Clock;
use keelson_runtime::client;
use kube::api::PostParams;
use kube::config::Kubeconfig;
use kube::{Api, Client};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::token::{CaHash, JoinToken};
use crate::cluster::control_plane::write_private;
use crate::cluster::joining::CLUSTER_INFO;
use crate::cluster::layout::Layout;

/// How long one request may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long a request for a certificate may stay unanswered. Approval is automatic and takes a fraction of a second, but
/// a control plane may just be starting.
const APPROVAL: Duration = Duration::from_secs(60);

/// What a node is called, and where its control plane is.
#[derive(Clone, Debug)]
pub struct Options {
    /// URL of the API server.
    pub server: String,
    /// The node's name.
    pub name: String,
    /// Its address.
    pub ip: IpAddr,
    /// Needed where no usable certificate was kept from an earlier start.
    pub token: Option<JoinToken>,
}

/// The files of a node that has joined.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The node's kubeconfig, with its certificate and key.
    pub kubeconfig: PathBuf,
    /// The cluster's authority.
    pub ca: PathBuf,
    /// The kubelet's serving certificate and key.
    pub serving: (PathBuf, PathBuf),
    /// When one of the certificates should be renewed.
    pub renew_at: Timestamp,
}

/// Joins, or finds what an earlier start has left and renews what needs it.
///
/// # Errors
/// One sentence: an unreachable server, another authority than the pinned one, a refused token, no answer to a request.
pub async fn join(layout: &Layout, options: &Options, clock: &Clock) -> anyhow::Result<Identity> {
    let kubeconfig = layout.root().join("node.kubeconfig");
    let ca = layout.pki().join("ca.crt");
    let serving = (
        layout.pki().join("kubelet-serving.crt"),
        layout.pki().join("kubelet-serving.key"),
    );
    let user = format!("system:node:{}", options.name);
    let now = clock.now();

    let mut kept = kept_client(&kubeconfig, options, &user)?.filter(|life| life.lasts(now));
    if kept.is_some() && options.token.is_some() && is_refused(&kubeconfig).await? {
        tracing::warn!("the server does not know the certificate of the last start; joining anew");
        kept = None;
    }
    let client_life = match kept {
        Some(life) if now < life.renew_at() => life,
        Some(life) => {
            tracing::info!("renewing the node's certificate");
            let ca_pem = std::fs::read_to_string(&ca)
                .with_context(|| format!("reading {}", ca.display()))?;
            let client = client::from_kubeconfig(&kubeconfig, USER_AGENT).await?;
            or_kept(
                ask_for_client(&client, options, &ca_pem, &kubeconfig, &user).await,
                Some(life),
            )?
        }
        None => {
            let Some(token) = &options.token else {
                bail!(
                    "there is no usable certificate in {}: give the token of the cluster with --token or --token-file",
                    layout.root().display()
                );
            };
            let ca_pem = find_authority(options, token).await?;
            std::fs::write(&ca, &ca_pem).with_context(|| format!("writing {}", ca.display()))?;
            let client = token_client(options, &ca_pem, token)?;
            ask_for_client(&client, options, &ca_pem, &kubeconfig, &user).await?
        }
    };
    let serving_life = match kept_serving(&serving, options, &user)?.filter(|life| life.lasts(now))
    {
        Some(life) if now < life.renew_at() => life,
        kept => {
            let client = client::from_kubeconfig(&kubeconfig, USER_AGENT).await?;
            or_kept(
                ask_for_serving(&client, options, &serving, &user).await,
                kept,
            )?
        }
    };
    Ok(Identity {
        kubeconfig,
        ca,
        serving,
        renew_at: client_life.renew_at().min(serving_life.renew_at()),
    })
}

const USER_AGENT: &str = "keelson-agent";

/// A renewal that fails is no reason not to start while the old certificate lasts.
fn or_kept(renewed: anyhow::Result<Life>, kept: Option<Life>) -> anyhow::Result<Life> {
    match (renewed, kept) {
        (Err(error), Some(life)) => {
            tracing::warn!(
                error = format!("{error:#}"),
                "the certificate was not renewed; trying again later"
            );
            Ok(life)
        }
        (renewed, _) => renewed,
    }
}

/// From when to when a certificate counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Life {
    begin: i64,
    end: i64,
}

impl Life {
    fn of(certificate: &X509Certificate<'_>) -> Self {
        Life {
            begin: certificate.validity().not_before.timestamp(),
            end: certificate.validity().not_after.timestamp(),
        }
    }

    fn lasts(self, now: Timestamp) -> bool {
        (self.begin..self.end).contains(&now.as_second())
    }

    /// After four fifths.
    fn renew_at(self) -> Timestamp {
        let at = self.end - (self.end - self.begin) / 5;
        Timestamp::from_second(at).unwrap_or(Timestamp::MIN)
    }
}

/// The life of the certificate in the kubeconfig, if it is for this node and this server.
fn kept_client(path: &Path, options: &Options, user: &str) -> anyhow::Result<Option<Life>> {
    if !path.exists() {
        return Ok(None);
    }
    let file =
        Kubeconfig::read_from(path).with_context(|| format!("reading {}", path.display()))?;
    let same_server = file.clusters.iter().any(|named| {
        named
            .cluster
            .as_ref()
            .and_then(|cluster| cluster.server.as_deref())
            == Some(options.server.as_str())
    });
    let pem = file
        .auth_infos
        .first()
        .and_then(|named| named.auth_info.as_ref()?.client_certificate_data.clone())
        .and_then(|data| STANDARD.decode(data).ok());
    Ok(match pem {
        Some(pem) if same_server => life_of(&pem, |certificate| common_name(certificate) == user),
        _ => None,
    })
}

/// The life of the serving certificate on disk, if it is for this node and its address and belongs to the key.
fn kept_serving(
    (certificate, key): &(PathBuf, PathBuf),
    options: &Options,
    user: &str,
) -> anyhow::Result<Option<Life>> {
    if !certificate.exists() || !key.exists() {
        return Ok(None);
    }
    let pem =
        std::fs::read(certificate).with_context(|| format!("reading {}", certificate.display()))?;
    let key = std::fs::read_to_string(key).with_context(|| format!("reading {}", key.display()))?;
    let Ok(key) = KeyPair::from_pem(&key) else {
        return Ok(None);
    };
    let address = match options.ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    Ok(life_of(&pem, |certificate| {
        let names = certificate.subject_alternative_name().ok().flatten();
        common_name(certificate) == user
            && rcgen::PublicKeyData::subject_public_key_info(&key) == certificate.public_key().raw
            && names.is_some_and(|names| {
                names
                    .value
                    .general_names
                    .iter()
                    .any(|name| matches!(name, GeneralName::IPAddress(ip) if *ip == address))
            })
    }))
}

fn life_of(pem: &[u8], wanted: impl Fn(&X509Certificate<'_>) -> bool) -> Option<Life> {
    let (_, block) = x509_parser::pem::parse_x509_pem(pem).ok()?;
    let (_, certificate) = X509Certificate::from_der(&block.contents).ok()?;
    wanted(&certificate).then(|| Life::of(&certificate))
}

fn common_name<'a>(certificate: &'a X509Certificate<'_>) -> &'a str {
    certificate
        .subject()
        .iter_common_name()
        .next()
        .and_then(|name| name.as_str().ok())
        .unwrap_or_default()
}

/// Whether the server answers a kept certificate with "unauthorized", or is another one. A server that cannot be reached
/// has refused nothing: a node starts without its control plane.
async fn is_refused(kubeconfig: &Path) -> anyhow::Result<bool> {
    let mut config = client::kubeconfig(kubeconfig, USER_AGENT).await?;
    config.connect_timeout = Some(TIMEOUT);
    config.read_timeout = Some(TIMEOUT);
    let client = Client::try_from(config).context("the kept certificate")?;
    Ok(match client.apiserver_version().await {
        Ok(_) => false,
        Err(kube::Error::Api(status)) => status.code == 401,
        Err(error) => is_tls(&error),
    })
}

/// Whether a connection came about, and its TLS did not.
fn is_tls(error: &kube::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(one) = cause {
        if one.is::<rustls::Error>() {
            return true;
        }
        // An `io::Error` hides what it wraps from `source`.
        if let Some(io) = one.downcast_ref::<std::io::Error>()
            && io
                .get_ref()
                .is_some_and(|inner| inner.is::<rustls::Error>())
        {
            return true;
        }
        cause = one.source();
    }
    false
}

/// The authority's certificate, PEM, as the server tells it to anybody, checked with the pin or the token.
async fn find_authority(options: &Options, token: &JoinToken) -> anyhow::Result<String> {
    let mut config = config(options)?;
    config.accept_invalid_certs = true;
    let client = Client::try_from(config).context("preparing the connection")?;
    let maps: Api<ConfigMap> = Api::namespaced(client, "kube-public");
    let map = maps
        .get(CLUSTER_INFO)
        .await
        .map_err(|error| explain(error, options))?;
    let data = map.data.unwrap_or_default();
    let text = data.get("kubeconfig").map(String::as_str);
    let ca = text
        .and_then(|text| Kubeconfig::from_yaml(text).ok())
        .and_then(|file| file.clusters.into_iter().next()?.cluster)
        .and_then(|cluster| cluster.certificate_authority_data)
        .and_then(|data| String::from_utf8(STANDARD.decode(data).ok()?).ok())
        .with_context(|| {
            format!(
                "{} does not say what its CA is (ConfigMap kube-public/{CLUSTER_INFO})",
                options.server
            )
        })?;
    let Some(pin) = &token.pin else {
        // As kubeadm: only who knows the token can have signed with it. Weaker than the pin, since others know it too.
        let signed = data.get(&format!("jws-kubeconfig-{}", token.id()));
        let expected = text.map(|text| detached_jws(text, token.id(), token.secret()));
        if signed.is_none() || signed != expected.as_ref() {
            bail!(
                "{} does not prove to know the token: the token is wrong or expired, or it is another cluster",
                options.server
            );
        }
        return Ok(ca);
    };
    let hash = CaHash::of_pem(ca.as_bytes())?;
    if hash != *pin {
        bail!(
            "{} has a CA with the hash {hash}, and not the expected {pin}: it is another cluster, or somebody is in between; nothing was sent",
            options.server
        );
    }
    Ok(ca)
}

fn config(options: &Options) -> anyhow::Result<kube::Config> {
    let uri = options
        .server
        .parse::<http::Uri>()
        .ok()
        .filter(|uri| uri.scheme_str() == Some("https") && uri.host().is_some());
    let Some(uri) = uri else {
        bail!(
            "--server: {:?} is not of the form https://host:port",
            options.server
        );
    };
    let mut config = kube::Config::new(uri);
    config.connect_timeout = Some(TIMEOUT);
    config.read_timeout = Some(TIMEOUT);
    Ok(config)
}

fn token_client(options: &Options, ca_pem: &str, token: &JoinToken) -> anyhow::Result<Client> {
    let (_, block) =
        x509_parser::pem::parse_x509_pem(ca_pem.as_bytes()).context("the authority is not PEM")?;
    let mut config = config(options)?;
    config.root_cert = Some(vec![block.contents]);
    config.auth_info.token = Some(token.bearer().into());
    Client::try_from(config).context("preparing the connection")
}

/// What went wrong with a request, in one sentence.
fn explain(error: kube::Error, options: &Options) -> anyhow::Error {
    let server = &options.server;
    match error {
        kube::Error::Api(status) if status.code == 401 => anyhow::anyhow!(
            "the API server at {server} does not accept the credentials: the token is wrong, expired or deleted"
        ),
        kube::Error::Api(status) => {
            anyhow::anyhow!("the API server at {server} refuses: {}", status.message)
        }
        error if is_tls(&error) => anyhow::anyhow!(
            "the API server at {server} does not prove to be of the expected cluster: {}",
            root_cause(&error)
        ),
        error => anyhow::anyhow!(
            "the API server at {server} cannot be reached: {}",
            root_cause(&error)
        ),
    }
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut last: &dyn std::error::Error = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

async fn ask_for_client(
    client: &Client,
    options: &Options,
    ca_pem: &str,
    kubeconfig: &Path,
    user: &str,
) -> anyhow::Result<Life> {
    let key = KeyPair::generate().context("making a key")?;
    let signer = "kubernetes.io/kube-apiserver-client-kubelet";
    let pem = ask(
        client,
        options,
        signer,
        "client auth",
        user,
        Vec::new(),
        &key,
    )
    .await?;
    let credential = Credential::Certificate {
        certificate_pem: &pem,
        key_pem: &key.serialize_pem(),
    };
    let text = pki::kubeconfig("keelson", &options.server, ca_pem, user, &credential);
    write_private(kubeconfig, &text)?;
    life_of(pem.as_bytes(), |_| true).context("the server's answer is not a certificate")
}

async fn ask_for_serving(
    client: &Client,
    options: &Options,
    (certificate, key_path): &(PathBuf, PathBuf),
    user: &str,
) -> anyhow::Result<Life> {
    let key = KeyPair::generate().context("making a key")?;
    let names = vec![options.name.clone(), options.ip.to_string()];
    let signer = "kubernetes.io/kubelet-serving";
    let pem = ask(client, options, signer, "server auth", user, names, &key).await?;
    write_private(key_path, &key.serialize_pem())?;
    write_private(certificate, &pem)?;
    life_of(pem.as_bytes(), |_| true).context("the server's answer is not a certificate")
}

/// Posts a request for a certificate and waits for it.
async fn ask(
    client: &Client,
    options: &Options,
    signer: &str,
    usage: &str,
    user: &str,
    names: Vec<String>,
    key: &KeyPair,
) -> anyhow::Result<String> {
    let mut params = CertificateParams::new(names).context("the names of the certificate")?;
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(DnType::CommonName, user);
    let pem = params
        .serialize_request(key)
        .and_then(|request| request.pem())
        .context("making the certificate request")?;
    let request = CertificateSigningRequest {
        metadata: ObjectMeta {
            generate_name: Some("csr-".to_owned()),
            ..Default::default()
        },
        spec: CertificateSigningRequestSpec {
            request: ByteString(pem.into_bytes()),
            signer_name: signer.to_owned(),
            usages: Some(vec!["digital signature".to_owned(), usage.to_owned()]),
            ..Default::default()
        },
        ..Default::default()
    };
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let made = api
        .create(&PostParams::default(), &request)
        .await
        .map_err(|error| explain(error, options))?;
    let name = made.metadata.name.unwrap_or_default();
    let deadline = tokio::time::Instant::now() + APPROVAL;
    loop {
        let status = api
            .get(&name)
            .await
            .map_err(|error| explain(error, options))?
            .status
            .unwrap_or_default();
        if let Some(certificate) = status.certificate.filter(|pem| !pem.0.is_empty()) {
            return String::from_utf8(certificate.0).context("the server's answer is not PEM");
        }
        let refusal = status
            .conditions
            .iter()
            .flatten()
            .find(|condition| matches!(condition.type_.as_str(), "Denied" | "Failed"));
        if let Some(refusal) = refusal {
            bail!(
                "the certificate request {name} was refused: {}",
                refusal.message.as_deref().unwrap_or("without a reason")
            );
        }
        if tokio::time::Instant::now() >= deadline {
            bail!(
                "nobody approved the certificate request {name} ({signer}) within {} s: look at it with kubectl describe csr {name}",
                APPROVAL.as_secs()
            );
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
