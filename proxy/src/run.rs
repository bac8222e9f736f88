//! The loop between the API and the kernel.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use keelson_machinery::clock::Clock;
use keelson_runtime::events::{Form, Recorder};
use keelson_runtime::informer::{Event, Informer, InformerConfig};
use keelson_runtime::metrics::Metrics as Registered;
use keelson_runtime::serving::{Endpoints, serve};
use kube::{Api, Client, Resource, ResourceExt};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::{Detection, Settings};
use crate::health::{Health, HealthChecks};
use crate::metrics::{Metrics, PolicyLabels};
use crate::model::{ServiceModel, SliceModel, slice_from_api};
use crate::nft::Family;
use crate::proxier::Proxier;
use crate::rules::{Environment, LocalDetection};
use crate::sysctl;
use crate::topology::Place;

/// Changes within this time are written together.
const GATHER: Duration = Duration::from_millis(20);
/// Left-over chains are deleted this long after they were left, by when older kernels let go of them.
const STALE_DELAY: Duration = Duration::from_secs(2);
/// Between attempts when the kernel refuses, doubling up to the sync period.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// What selects the services that this proxy is for.
const LABELS: &str = "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name";

/// How the proxy runs.
#[derive(Clone)]
pub struct Config {
    /// What is configured.
    pub settings: Settings,
    /// The node's name.
    pub node_name: String,
    /// The name of the tables. Clusters that share a kernel's network namespace need different ones.
    pub table: String,
    /// Pods' addresses: what they send to elsewhere gets the node's address. Empty where the pod network sees to it.
    pub masquerade_egress: Vec<IpNet>,
    /// Time and randomness.
    pub clock: Clock,
    /// Where metrics are kept.
    pub metrics: Registered,
}

impl Config {
    /// With the usual table's name.
    pub fn new(settings: Settings, node_name: &str, clock: Clock) -> Self {
        Config {
            settings,
            node_name: node_name.to_owned(),
            table: "keelson-proxy".to_owned(),
            masquerade_egress: Vec::new(),
            clock,
            metrics: Registered::new(),
        }
    }
}

/// What has changed in the API and is not taken in yet; one entry per object, so that it is bounded by their number.
#[derive(Default)]
struct Pending {
    services: HashMap<String, Option<ServiceModel>>,
    slices: HashMap<String, Option<(String, Family, SliceModel)>>,
    node: Option<Option<Arc<Node>>>,
    service_cidrs: HashMap<String, Vec<IpNet>>,
    service_cidrs_changed: bool,
}

/// Runs the proxy until `shutdown`. The rules stay: connections go on while the proxy is away.
///
/// # Errors
/// When an address cannot be listened on, or the kernel has no nf_tables.
pub async fn run(
    config: Config,
    client: Client,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let settings = &config.settings;
    sysctl::apply(&settings.conntrack);
    let families = available_families();
    let health = Health::new(config.clock.clone(), 2 * settings.sync_period, &families);
    let stop = shutdown.child_token();
    let _stop_with_us = stop.clone().drop_guard();
    if let Some(address) = settings.healthz {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("healthz on {address}"))?;
        tokio::spawn(serve(listener, None, health.endpoints(), stop.clone()));
    }
    if let Some(address) = settings.metrics {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("metrics on {address}"))?;
        let mode = Arc::new(|_| {
            use futures::FutureExt;
            let body = http_body_util::Full::new(bytes::Bytes::from_static(b"nftables"));
            futures::future::ready(http::Response::new(body)).boxed()
        });
        let endpoints = Endpoints::new()
            .metrics(config.metrics.clone())
            .path("/proxyMode", mode);
        tokio::spawn(serve(listener, None, endpoints, stop.clone()));
    }
    let host = config.node_name.as_str();
    let recorder = Recorder::new(
        client.clone(),
        config.clock.clone(),
        Form::EventsV1,
        "kube-proxy",
        host,
        stop.clone(),
    );

    let pending = Arc::new(Mutex::new(Pending::default()));
    let notify = Arc::new(Notify::new());
    let synced = watch(&config, &client, &pending, &notify, &stop);

    let environment = environment(&config, None, Vec::new());
    let table = config.table.clone();
    let proxier =
        tokio::task::spawn_blocking(move || Proxier::open(&table, &families, environment))
            .await??;
    let driver = Driver {
        metrics: Metrics::new(&config.metrics),
        checks: HealthChecks::new(health.clone(), host, recorder),
        health,
        proxier: Some(proxier),
        pending,
        node: None,
        service_cidrs: HashMap::new(),
        retry: None,
        stale_at: None,
        config,
    };
    tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        result = driver.run(synced, notify) => result,
    }
}

/// IPv4, and IPv6 where the kernel has it.
fn available_families() -> Vec<Family> {
    let has_v6 = std::path::Path::new("/proc/net/if_inet6").exists();
    Family::ALL
        .into_iter()
        .filter(|f| *f == Family::V4 || has_v6)
        .collect()
}

/// The informers whose first lists are waited for.
struct Synced {
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    node: Informer<Node>,
    service_cidrs: Informer<ServiceCIDR>,
}

fn key<K: Resource>(object: &K) -> String {
    match object.namespace() {
        Some(namespace) => format!("{namespace}/{}", object.name_any()),
        None => object.name_any(),
    }
}

/// The object, unless the event says that it is gone.
fn present<K>(event: &Event<K>) -> Option<&Arc<K>> {
    match event {
        Event::Added { object, .. } | Event::Updated { new: object, .. } => Some(object),
        Event::Deleted { .. } => None,
    }
}

fn watch(
    config: &Config,
    client: &Client,
    pending: &Arc<Mutex<Pending>>,
    notify: &Arc<Notify>,
    stop: &CancellationToken,
) -> Synced {
    let (clock, stop) = (config.clock.clone(), stop.clone());
    let selected = || LABELS.to_owned();
    let services = Informer::start(
        Api::<Service>::all(client.clone()),
        InformerConfig {
            labels: selected(),
            ..InformerConfig::default()
        },
        clock.clone(),
        stop.clone(),
    );
    let (to, wake) = (pending.clone(), notify.clone());
    services.on_event(move |event| {
        let model = present(event).and_then(|s| ServiceModel::from_api(s));
        to.lock().services.insert(key(&**event.object()), model);
        wake.notify_one();
    });

    let slices = Informer::start(
        Api::<EndpointSlice>::all(client.clone()),
        InformerConfig {
            labels: selected(),
            ..InformerConfig::default()
        },
        clock.clone(),
        stop.clone(),
    );
    let (to, wake, node_name) = (pending.clone(), notify.clone(), config.node_name.clone());
    slices.on_event(move |event| {
        let model = present(event).and_then(|s| slice_from_api(s, &node_name));
        to.lock().slices.insert(key(&**event.object()), model);
        wake.notify_one();
    });

    let node = Informer::start(
        Api::<Node>::all(client.clone()),
        InformerConfig {
            fields: format!("metadata.name={}", config.node_name),
            ..InformerConfig::default()
        },
        clock.clone(),
        stop.clone(),
    );
    let (to, wake) = (pending.clone(), notify.clone());
    node.on_event(move |event| {
        to.lock().node = Some(present(event).cloned());
        wake.notify_one();
    });

    let service_cidrs = Informer::start(
        Api::<ServiceCIDR>::all(client.clone()),
        InformerConfig::default(),
        clock,
        stop,
    );
    let (to, wake) = (pending.clone(), notify.clone());
    service_cidrs.on_event(move |event| {
        let ranges = present(event)
            .and_then(|c| c.spec.as_ref()?.cidrs.clone())
            .unwrap_or_default();
        let ranges = ranges.iter().filter_map(|text| text.parse().ok()).collect();
        let mut pending = to.lock();
        pending.service_cidrs.insert(key(&**event.object()), ranges);
        pending.service_cidrs_changed = true;
        wake.notify_one();
    });
    Synced {
        services,
        slices,
        node,
        service_cidrs,
    }
}

/// What the rules depend on beside services, from configuration and the node.
fn environment(config: &Config, node: Option<&Node>, service_cidrs: Vec<IpNet>) -> Environment {
    let settings = &config.settings;
    let zone = node
        .and_then(|n| {
            n.metadata
                .labels
                .as_ref()?
                .get("topology.kubernetes.io/zone")
        })
        .cloned();
    let local_detection = match &settings.detection {
        Detection::Known(detection) => detection.clone(),
        Detection::NodeCidr => {
            let ranges: Vec<IpNet> = node
                .and_then(|n| n.spec.as_ref())
                .and_then(|s| s.pod_cidrs.as_ref())
                .into_iter()
                .flatten()
                .filter_map(|text| text.parse().ok())
                .collect();
            if ranges.is_empty() {
                LocalDetection::None
            } else {
                LocalDetection::ClusterCidr(ranges)
            }
        }
    };
    Environment {
        place: Place {
            node: config.node_name.clone(),
            zone: zone.unwrap_or_default(),
        },
        node_ips: node_ips(settings.bind_address, node),
        node_port_addresses: settings.node_port_addresses.clone(),
        local_detection,
        service_cidrs,
        masquerade_all: settings.masquerade_all,
        masquerade_egress: config.masquerade_egress.clone(),
        masquerade_mark: settings.masquerade_mark,
    }
}

/// The node's address per family: internal before external ones (`GetNodeHostIPs`); a bind address that is one wins.
fn node_ips(bind_address: IpAddr, node: Option<&Node>) -> Vec<IpAddr> {
    let addresses = node
        .and_then(|n| n.status.as_ref())
        .and_then(|s| s.addresses.as_deref())
        .unwrap_or_default();
    let mut ips: Vec<IpAddr> = Vec::new();
    if !bind_address.is_unspecified() {
        ips.push(bind_address);
    }
    for kind in ["InternalIP", "ExternalIP"] {
        for ip in addresses
            .iter()
            .filter(|a| a.type_ == kind)
            .filter_map(|a| a.address.parse::<IpAddr>().ok())
        {
            if !ips.iter().any(|known| Family::of(*known) == Family::of(ip)) {
                ips.push(ip);
            }
        }
    }
    ips
}

/// Whether load balancers may send traffic here (`NodeEligible`).
fn is_eligible(node: Option<&Node>) -> bool {
    node.is_some_and(|node| {
        let taints = node.spec.as_ref().and_then(|s| s.taints.as_ref());
        node.metadata.deletion_timestamp.is_none()
            && !taints
                .into_iter()
                .flatten()
                .any(|t| t.key == "ToBeDeletedByClusterAutoscaler")
    })
}

struct Driver {
    config: Config,
    metrics: Metrics,
    health: Health,
    checks: HealthChecks,
    /// Away only while it writes.
    proxier: Option<Proxier>,
    pending: Arc<Mutex<Pending>>,
    node: Option<Arc<Node>>,
    service_cidrs: HashMap<String, Vec<IpNet>>,
    /// When to try again after a failure, and how long was waited before.
    retry: Option<(Instant, Duration)>,
    stale_at: Option<Instant>,
}

impl Driver {
    async fn run(mut self, synced: Synced, notify: Arc<Notify>) -> anyhow::Result<()> {
        // Before everything is known, rules would cut off services that have endpoints.
        synced.services.wait_synced().await;
        synced.slices.wait_synced().await;
        synced.node.wait_synced().await;
        synced.service_cidrs.wait_synced().await;
        let mut verify_at = Instant::now() + self.config.settings.sync_period;
        loop {
            let begun = Instant::now();
            self.take_in();
            if verify_at <= begun {
                verify_at = begun + self.config.settings.sync_period;
                if let Err(error) = self.blocking(Proxier::verify).await? {
                    tracing::warn!(%error, "cannot look whether the rules are there");
                }
            }
            let due = self.retry.is_none_or(|(at, _)| at <= begun);
            if due && self.proxier.as_ref().is_some_and(Proxier::is_dirty) {
                self.write().await?;
            } else if self.retry.is_none() {
                // What changed makes no difference to the rules.
                self.health.updated();
            }
            if self.stale_at.is_some_and(|at| at <= Instant::now()) {
                self.delete_stale().await?;
            }
            let retry_at = self.retry.map(|(at, _)| at);
            let timer = retry_at.into_iter().chain(self.stale_at).min();
            let timer = timer.map_or(verify_at, |at| at.min(verify_at));
            tokio::select! {
                () = notify.notified() => {
                    let now = self.config.clock.now();
                    self.health.queued();
                    self.metrics.last_queued.set(now.as_millisecond() as f64 / 1000.0);
                    let pause = self.config.settings.min_sync_period.unwrap_or(GATHER).max(GATHER);
                    tokio::time::sleep_until((begun + pause).max(Instant::now() + GATHER)).await;
                }
                () = tokio::time::sleep_until(timer) => {}
            }
        }
    }

    /// Takes in what has changed in the API.
    fn take_in(&mut self) {
        let Some(proxier) = &mut self.proxier else {
            return;
        };
        let pending = {
            let mut pending = self.pending.lock();
            let service_cidrs = pending.service_cidrs.clone();
            std::mem::replace(
                &mut *pending,
                Pending {
                    service_cidrs,
                    ..Pending::default()
                },
            )
        };
        for (key, service) in pending.services {
            proxier.set_service(&key, service);
        }
        for (key, slice) in pending.slices {
            proxier.set_slice(&key, slice);
        }
        if pending.node.is_none() && !pending.service_cidrs_changed {
            return;
        }
        if let Some(node) = pending.node {
            self.health.set_node_eligible(is_eligible(node.as_deref()));
            self.node = node.or(self.node.take());
        }
        self.service_cidrs = pending.service_cidrs;
        let mut ranges: Vec<IpNet> = self.service_cidrs.values().flatten().copied().collect();
        ranges.sort_unstable();
        ranges.dedup();
        proxier.set_environment(environment(&self.config, self.node.as_deref(), ranges));
    }

    /// Lets the proxier work where blocking does no harm.
    async fn blocking<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Proxier) -> T + Send + 'static,
    ) -> anyhow::Result<T> {
        let mut proxier = self
            .proxier
            .take()
            .context("the dataplane was lost in a failure")?;
        let (proxier, result) = tokio::task::spawn_blocking(move || {
            let result = work(&mut proxier);
            (proxier, result)
        })
        .await?;
        self.proxier = Some(proxier);
        Ok(result)
    }

    async fn write(&mut self) -> anyhow::Result<()> {
        let begun = Instant::now();
        let result = self.blocking(Proxier::sync).await?;
        self.metrics
            .sync_seconds
            .observe(begun.elapsed().as_secs_f64());
        match result {
            Ok(()) => {
                self.retry = None;
                self.health.updated();
                self.metrics
                    .last_synced
                    .set(self.config.clock.now().as_millisecond() as f64 / 1000.0);
            }
            Err(error) => {
                self.metrics.failures.inc();
                let wait = self.retry.map_or(FIRST_RETRY, |(_, last)| {
                    (last * 2).min(self.config.settings.sync_period)
                });
                tracing::error!(%error, retry_in = ?wait, "cannot write the service rules");
                self.retry = Some((Instant::now() + wait, wait));
            }
        }
        let Some(proxier) = &self.proxier else {
            return Ok(());
        };
        if proxier.has_stale() {
            self.stale_at.get_or_insert(Instant::now() + STALE_DELAY);
        }
        let (internal, external) = proxier.without_local_endpoints();
        for (traffic_policy, count) in [("internal", internal), ("external", external)] {
            self.metrics
                .without_local
                .get_or_create(&PolicyLabels { traffic_policy })
                .set(count as i64);
        }
        let (checks, ips) = (
            proxier.health_checks(),
            proxier.environment().node_ips.clone(),
        );
        self.checks.set(checks, &ips).await;
        Ok(())
    }

    async fn delete_stale(&mut self) -> anyhow::Result<()> {
        let left = self.blocking(Proxier::delete_stale).await?;
        self.stale_at = left.then(|| Instant::now() + STALE_DELAY);
        Ok(())
    }
}
