//! [`ApiServer`]: assembles storage, registry, access control and admission into one server, and hands out its two
//! faces, the TLS listener and the in-process service.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use keelson_machinery::catalog::Catalog;
use keelson_machinery::schema::Schema;
use keelson_machinery::status::ApiError;
use keelson_store::Store;
use tokio_util::sync::CancellationToken;

use crate::admission::policy::{self, PolicyPlugins};
use crate::admission::resource_quota::ResourceQuota;
use crate::admission::resource_quota::status::StoredQuotas;
use crate::admission::webhook::{self, WebhookMetrics, Webhooks};
use crate::admission::{self, Plugin};
use crate::aggregation::{self, Aggregation};
use crate::authn::review::OpenIdDocuments;
use crate::authn::token_request::TokenIssuer;
use crate::authn::{Authentication, ConfigError};
use crate::authz::node::NodeAuthorizer;
use crate::authz::rbac::Rbac;
use crate::authz::{AlwaysAllow, AlwaysDeny, Masters, Union};
use crate::bootstrap::{self, ClusterFacts};
use crate::cache::caches::Caches;
use crate::config::{AuthorizationMode, Config};
use crate::extensions;
use crate::flow_control::{self, FlowControl};
use crate::health::Health;
use crate::loopback;
use crate::metrics::Metrics;
use crate::objects::Objects;
use crate::openapi::OpenApi;
use crate::registry::core::allocator::Allocator;
use crate::registry::store::Storage;
use crate::registry::{Registry, UnknownType, strategies};
use crate::streaming::Outward;

/// Why a server could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The type table and the catalog do not fit together.
    #[error(transparent)]
    Types(#[from] UnknownType),
    /// What is said about credentials cannot be used.
    #[error(transparent)]
    Authentication(#[from] ConfigError),
    /// The serving certificate or its key cannot be used.
    #[error("the serving certificate: {0}")]
    Serving(String),
    /// A part of the configuration that makes no sense.
    #[error("{0}")]
    Config(String),
    /// The certificates towards kubelets cannot be used.
    #[error("the kubelet client certificate: {0}")]
    KubeletClient(#[from] crate::streaming::tls::TlsError),
    /// The objects that every cluster has could not be made.
    #[error("the objects of the system: {0}")]
    System(String),
}

/// Everything that a request may need.
pub struct Server {
    /// The configuration.
    pub config: Config,
    /// Where objects are.
    pub storage: Storage,
    /// Which resources are served.
    pub registry: Arc<Registry>,
    /// Documents of the API, built when asked for.
    pub openapi: Arc<OpenApi>,
    /// Counters.
    pub metrics: Metrics,
    /// Health checks.
    pub health: Health,
    /// Bounds on concurrency.
    pub flow_control: Arc<FlowControl>,
    /// Cancelled when the server is to end its streams.
    pub closing: CancellationToken,
    /// How kubelets, pods and services are reached.
    pub outward: Outward,
    /// What other API servers serve.
    pub aggregation: Arc<Aggregation>,
    pub(crate) provider: Arc<rustls::crypto::CryptoProvider>,
    authentication: Authentication,
    authorizer: Union,
    admission: Vec<Arc<dyn Plugin>>,
    token_issuer: Option<TokenIssuer>,
    openid: Option<OpenIdDocuments>,
}

impl Server {
    /// The authenticators.
    pub fn authentication(&self) -> &Authentication {
        &self.authentication
    }

    /// The authorizers.
    pub fn authorizer(&self) -> &Union {
        &self.authorizer
    }

    /// The admission plugins, in order.
    pub fn admission(&self) -> &[Arc<dyn Plugin>] {
        &self.admission
    }

    /// Who signs service-account tokens; `None` when the server has no key for it.
    pub fn token_issuer(&self) -> Option<&TokenIssuer> {
        self.token_issuer.as_ref()
    }

    /// The discovery documents of the token issuer.
    pub fn openid(&self) -> Option<&OpenIdDocuments> {
        self.openid.as_ref()
    }

    /// `address:port` under which clients outside find the server.
    pub fn external_address(&self) -> String {
        let port = self.config.secure_port;
        match self.config.advertise_address {
            Some(std::net::IpAddr::V6(address)) => format!("[{address}]:{port}"),
            Some(address) => format!("{address}:{port}"),
            None => format!("localhost:{port}"),
        }
    }
}

/// A running server. Cheap to clone.
#[derive(Clone)]
pub struct ApiServer {
    pub(crate) server: Arc<Server>,
}

impl ApiServer {
    /// Starts a server on a store: reads nothing it does not need, makes the objects that every cluster has, and is
    /// ready to serve when it returns.
    pub async fn start(config: Config, store: Arc<dyn Store>) -> Result<ApiServer, StartError> {
        let closing = CancellationToken::new();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let settings = strategies::Settings {
            services: Arc::new(Allocator::new(
                config.service_cidrs.clone(),
                config.node_ports,
                config.clock.clone(),
            )),
            event_ttl_seconds: config.event_ttl.as_secs(),
        };
        let registry = Arc::new(Registry::new(
            Catalog::builtin(),
            Schema::builtin(),
            |group, resource| strategies::lookup(group, resource, &settings),
        )?);
        let caches = Caches::new(store.clone(), registry.clone());
        let objects = Objects(caches.clone());
        let storage = Storage {
            engine: store,
            caches,
            clock: config.clock.clone(),
        };
        let authentication = Authentication::new(
            config.authentication.clone(),
            objects.clone(),
            config.clock.clone(),
            provider.clone(),
        )?;
        let (authorizer, rbac) = authorizer(&config, &objects, &closing);
        let token_issuer = token_issuer(&config, &authentication, &objects)?;
        let openid = openid_documents(&config, &authentication);
        let quota: Arc<dyn Plugin> = Arc::new(ResourceQuota::new(
            objects.clone(),
            Arc::new(StoredQuotas {
                storage: storage.clone(),
                registry: registry.clone(),
            }),
            config.quota_limited_resources.clone(),
            config.clock.clone(),
        ));
        let metrics = Metrics::default();
        let webhooks = Webhooks {
            objects: objects.clone(),
            registry: registry.clone(),
            authorizer: Arc::new(authorizer.clone()),
            provider: provider.clone(),
            clock: config.clock.clone(),
            metrics: metrics.register(WebhookMetrics::new),
        };
        let policies = PolicyPlugins {
            objects: objects.clone(),
            registry: registry.clone(),
            authorizer: Arc::new(authorizer.clone()),
            metrics: webhooks.metrics.clone(),
        };
        let mutating_policies: Arc<dyn Plugin> = Arc::new(policy::mutating::Mutating::start(
            policies.clone(),
            closing.clone(),
        ));
        let validating_policies: Arc<dyn Plugin> = Arc::new(policy::validating::Validating::start(
            policies,
            closing.clone(),
        ));
        let mutating: Arc<dyn Plugin> =
            Arc::new(webhook::Mutating::start(webhooks.clone(), closing.clone()));
        let validating: Arc<dyn Plugin> =
            Arc::new(webhook::Validating::start(webhooks, closing.clone()));
        let admission = admission::plugins(
            &admission::Dependencies {
                objects: objects.clone(),
                authorizer: Arc::new(authorizer.clone()),
                rbac: rbac.clone(),
                clock: config.clock.clone(),
            },
            &config.enable_admission_plugins,
            &config.disable_admission_plugins,
            vec![
                quota,
                mutating_policies,
                validating_policies,
                mutating,
                validating,
            ],
        )
        .map_err(|error| StartError::Config(error.to_string()))?;
        let aggregation = Arc::new(Aggregation::new(
            objects.clone(),
            provider.clone(),
            config.proxy_client.clone(),
        ));
        let mut health = Health::default();
        let started = health.add("poststarthook/bootstrap-system-objects", true);
        let server = Arc::new(Server {
            flow_control: FlowControl::new(
                config
                    .max_requests_in_flight
                    .saturating_add(config.max_mutating_requests_in_flight),
            ),
            storage,
            registry,
            openapi: Arc::new(OpenApi::new(crate::discovery::GIT_VERSION)),
            metrics,
            health,
            closing,
            outward: Outward::new(&config.kubelet, &provider)?,
            aggregation: aggregation.clone(),
            provider,
            authentication,
            authorizer,
            admission,
            token_issuer,
            openid,
            config,
        });
        let services = objects.list("", "services", None).await;
        let services = services.map_err(|e| StartError::System(e.message))?;
        settings.services.load(services.iter().map(|s| &**s));
        let facts = cluster_facts(&server.config)?;
        make_system_objects(&objects, &server, &facts).await?;
        aggregation.follow(server.closing.clone()).await;
        start_aggregation(&server, &objects);
        configure_flow_control(&server, &objects).await?;
        tokio::spawn(flow_control::keep(
            server.flow_control.clone(),
            objects.clone(),
            Arc::new(loopback::Loopback(server.clone())),
            server.config.clock.clone(),
            server.closing.clone(),
        ));
        if let Some(rbac) = rbac {
            rbac.synced().await;
            tokio::spawn(bootstrap::follow_aggregation(
                objects,
                Arc::new(loopback::Loopback(server.clone())),
                server.closing.clone(),
            ));
        }
        serve_custom_resources(&server).await?;
        tokio::spawn(policy::type_check::run(
            Objects(server.storage.caches.clone()),
            Arc::new(loopback::Loopback(server.clone())),
            server.closing.clone(),
        ));
        started.store(true, Ordering::Release);
        Ok(ApiServer { server })
    }

    /// Ends all streams and stops background work. Requests under way are finished by whoever serves them.
    pub fn close(&self) {
        self.server.closing.cancel();
        self.server.storage.caches.close();
    }
}

/// The first request finds the levels that are stored.
async fn configure_flow_control(server: &Server, objects: &Objects) -> Result<(), StartError> {
    let failed = |error: ApiError| StartError::System(error.message);
    let schemas = objects
        .list(flow_control::GROUP, flow_control::SCHEMAS, None)
        .await
        .map_err(failed)?;
    let levels = objects
        .list(flow_control::GROUP, flow_control::LEVELS, None)
        .await
        .map_err(failed)?;
    server.flow_control.configure(
        schemas.iter().map(|object| &**object),
        levels.iter().map(|object| &**object),
    );
    Ok(())
}

/// Registers what this server serves, and watches over what others do.
fn start_aggregation(server: &Arc<Server>, objects: &Objects) {
    let writer = Arc::new(loopback::Loopback(server.clone()));
    let groups = server.registry.table().catalog().groups();
    tokio::spawn(aggregation::register::keep(
        objects.clone(),
        groups,
        writer.clone(),
        server.closing.clone(),
    ));
    tokio::spawn(aggregation::available::watch(
        server.aggregation.clone(),
        writer,
        server.config.clock.clone(),
        server.closing.clone(),
    ));
}

/// How long the caches may take to be filled at a start, before it is given up.
const START_LIMIT: std::time::Duration = std::time::Duration::from_secs(60);

/// Makes the objects that every cluster has. A large store takes a while to be read; until then reads are refused and
/// the whole is tried again, which does no harm: it only adds what is missing.
async fn make_system_objects(
    objects: &Objects,
    server: &Arc<Server>,
    facts: &bootstrap::ClusterFacts,
) -> Result<(), StartError> {
    let deadline = tokio::time::Instant::now() + START_LIMIT;
    loop {
        let made = bootstrap::run(objects, &loopback::Loopback(server.clone()), facts).await;
        match made {
            Ok(_) => return Ok(()),
            Err(error) if error.code == 429 && tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
            Err(error) => return Err(StartError::System(error.message)),
        }
    }
}

/// Follows the definitions of custom resources, and waits until those that exist are served.
async fn serve_custom_resources(server: &Arc<Server>) -> Result<(), StartError> {
    let (synced, mut ready) = tokio::sync::watch::channel(false);
    let webhooks = extensions::webhook::Webhooks::new(
        Objects(server.storage.caches.clone()),
        server.provider.clone(),
        server.storage.clock.clone(),
    );
    tokio::spawn(extensions::controller::run(
        server.clone(),
        webhooks,
        synced,
    ));
    let ready = tokio::time::timeout(START_LIMIT, ready.wait_for(|synced| *synced));
    match ready.await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(StartError::System(
            "the definitions of custom resources could not be read".to_string(),
        )),
    }
}

fn authorizer(
    config: &Config,
    objects: &Objects,
    closing: &CancellationToken,
) -> (Union, Option<Arc<Rbac>>) {
    let mut authorizer = Union::default().with(Arc::new(Masters));
    let mut rbac = None;
    for mode in &config.authorization {
        authorizer = match mode {
            AuthorizationMode::Rbac => {
                let started = Rbac::start(objects.clone(), closing.clone());
                rbac = Some(started.clone());
                authorizer.with_rules(started)
            }
            AuthorizationMode::Node => authorizer.with(NodeAuthorizer::start(
                objects.clone(),
                bootstrap::policy::node_rules(),
                closing.clone(),
            )),
            AuthorizationMode::AlwaysAllow => authorizer.with_rules(Arc::new(AlwaysAllow)),
            AuthorizationMode::AlwaysDeny => authorizer.with(Arc::new(AlwaysDeny)),
        };
    }
    (authorizer, rbac)
}

fn token_issuer(
    config: &Config,
    authentication: &Authentication,
    objects: &Objects,
) -> Result<Option<TokenIssuer>, StartError> {
    let Some(pem) = &config.service_account_signing_key else {
        return Ok(None);
    };
    let Some(issuer) = config.authentication.service_account_issuers.first() else {
        return Err(StartError::Config(
            "a service-account signing key needs a service-account issuer".to_string(),
        ));
    };
    Ok(Some(TokenIssuer {
        key: crate::pki::keys::SigningKey::from_pem(pem).map_err(ConfigError::Key)?,
        issuer: issuer.clone(),
        api_audiences: authentication.api_audiences().to_vec(),
        max_expiration: 0,
        extend_expiration: true,
        objects: objects.clone(),
        clock: config.clock.clone(),
    }))
}

/// What the objects of the system say about this cluster.
fn cluster_facts(config: &Config) -> Result<ClusterFacts, StartError> {
    let first = config
        .service_cidrs
        .first()
        .ok_or_else(|| StartError::Config("no range of service addresses".to_string()))?;
    let service_address = first.hosts().next().ok_or_else(|| {
        StartError::Config(format!("the range of service addresses {first} is empty"))
    })?;
    Ok(ClusterFacts {
        service_cidrs: config
            .service_cidrs
            .iter()
            .map(ToString::to_string)
            .collect(),
        service_address,
        advertise_address: config.advertise_address,
        secure_port: config.secure_port,
        client_ca_pem: config.authentication.client_ca_pem.clone(),
        request_header: config.authentication.request_header.clone(),
    })
}

/// What clients of the issuer may discover; an issuer that cannot be discovered is no error, as upstream.
fn openid_documents(config: &Config, authentication: &Authentication) -> Option<OpenIdDocuments> {
    let issuer = config.authentication.service_account_issuers.first()?;
    let jwks_uri = match (&config.jwks_uri, config.advertise_address) {
        (Some(uri), _) => uri.clone(),
        (None, Some(address)) => {
            let address = std::net::SocketAddr::new(address, config.secure_port);
            format!("https://{address}/openid/v1/jwks")
        }
        (None, None) => return None,
    };
    match OpenIdDocuments::new(issuer, &jwks_uri, authentication.service_account_keys()) {
        Ok(documents) => Some(documents),
        Err(error) => {
            tracing::warn!(%error, "tokens of this issuer cannot be checked by discovery");
            None
        }
    }
}
