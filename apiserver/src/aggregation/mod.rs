//! API aggregation: group versions that another server serves, found by their APIService (upstream
//! `k8s.io/kube-aggregator`).
//!
//! [`Aggregation`] follows the APIServices and keeps a [`Table`] of them, which requests read without a lock. A request
//! for a group version with a service is authorized like any other and then passed on by [`proxy`]; everything else never
//! notices. [`register`] keeps APIServices for what this server itself serves, [`available`] watches over the other
//! servers and keeps what they say of themselves ([`remote`]), of which discovery and OpenAPI are made.

pub mod available;
pub mod priority;
pub mod proxy;
pub mod register;
pub mod remote;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arc_swap::ArcSwap;
use base64::Engine as _;
use keelson_machinery::catalog::Group;
use keelson_machinery::meta::{self, GroupResource};
use keelson_machinery::value::{self, Value};
use rustls::crypto::CryptoProvider;
use tokio_util::sync::CancellationToken;

use self::remote::Remote;
use crate::config::PemPair;
use crate::objects::{Objects, follow};
use crate::reader::Change;

/// The group of APIServices.
pub const GROUP: &str = "apiregistration.k8s.io";
/// Their resource.
pub const RESOURCE: &str = "apiservices";

/// A server behind a Service.
pub struct Target {
    /// Namespace of the Service.
    pub namespace: String,
    /// Name of the Service.
    pub name: String,
    /// Port of the Service.
    pub port: u16,
    /// How to speak to it, or why that cannot be.
    pub tls: Result<Arc<rustls::ClientConfig>, String>,
    /// The APIService as it is stored.
    pub object: Arc<Value>,
}

/// An APIService.
pub struct ApiService {
    /// `<version>.<group>`.
    pub name: String,
    /// `spec.group`; empty for the core group.
    pub group: String,
    /// `spec.version`.
    pub version: String,
    /// Where the group stands among groups: the largest of its versions counts.
    pub group_priority: i64,
    /// Where the version stands in its group.
    pub version_priority: i64,
    /// Who serves it; `None`: this server.
    pub target: Option<Target>,
    /// Whether it is to be asked.
    pub available: bool,
}

/// All APIServices at one moment, by group and version.
pub type Table = BTreeMap<(String, String), Arc<ApiService>>;

/// What is known of other servers, by group and version.
pub type Remotes = HashMap<(String, String), Arc<Remote>>;

/// See the module's documentation.
pub struct Aggregation {
    objects: Objects,
    provider: Arc<CryptoProvider>,
    /// By which this server proves that it may speak for users (`--proxy-client-cert-file`).
    client: Option<PemPair>,
    table: ArcSwap<Table>,
    remotes: ArcSwap<Remotes>,
    /// Counts changes of the table.
    changed: tokio::sync::watch::Sender<u64>,
}

impl Aggregation {
    /// Nothing is known yet; [`Aggregation::follow`] finds out.
    pub fn new(objects: Objects, provider: Arc<CryptoProvider>, client: Option<PemPair>) -> Self {
        Aggregation {
            objects,
            provider,
            client,
            table: ArcSwap::default(),
            remotes: ArcSwap::default(),
            changed: tokio::sync::watch::Sender::new(0),
        }
    }

    /// The APIServices at this moment.
    pub fn table(&self) -> Arc<Table> {
        self.table.load_full()
    }

    /// What other servers said of themselves.
    pub fn remotes(&self) -> Arc<Remotes> {
        self.remotes.load_full()
    }

    /// The APIService of a group version that another server serves.
    pub fn route(&self, group: &str, version: &str) -> Option<Arc<ApiService>> {
        let table = self.table.load();
        // Most clusters have none: no key is made for nothing.
        if !table.values().any(|service| service.target.is_some()) {
            return None;
        }
        table
            .get(&(group.to_owned(), version.to_owned()))
            .filter(|service| service.target.is_some())
            .cloned()
    }

    /// `local` groups and those of other servers, in the order of discovery.
    pub fn groups(&self, local: Vec<Group>) -> Vec<Group> {
        priority::merge(local, &self.table.load())
    }

    /// Keeps the table as the stored APIServices are, until `shutdown`. Returns when they have been read once.
    pub async fn follow(self: &Arc<Self>, shutdown: CancellationToken) {
        let (synced, mut ready) = tokio::sync::watch::channel(false);
        let me = self.clone();
        let objects = self.objects.clone();
        let resources = vec![GroupResource::new(GROUP, RESOURCE)];
        tokio::spawn(async move {
            follow(objects, resources, synced, shutdown, |_, change| {
                me.apply(change)
            })
            .await;
        });
        // An error means that the server is going down.
        let _ = ready.wait_for(|ready| *ready).await;
    }

    fn apply(&self, change: Change) {
        let (object, gone) = match change {
            Change::Applied(object) => (object, false),
            Change::Deleted(object) => (object, true),
            Change::Synced => return,
        };
        let service = Arc::new(self.read(&object));
        let key = (service.group.clone(), service.version.clone());
        let mut table = Table::clone(&self.table.load());
        if gone {
            table.remove(&key);
            self.forget(&key);
        } else {
            if service.target.is_none() {
                self.forget(&key);
            }
            table.insert(key, service);
        }
        self.table.store(Arc::new(table));
        self.changed.send_modify(|count| *count += 1);
    }

    /// An APIService as it is stored.
    fn read(&self, object: &Arc<Value>) -> ApiService {
        let text = |path: &[&str]| value::str_or_empty(object, path).to_owned();
        let number = |path: &[&str]| value::get_i64(object, path).unwrap_or_default();
        let target = value::get(object, &["spec", "service"]).map(|service| Target {
            namespace: value::str_or_empty(service, &["namespace"]).to_owned(),
            name: value::str_or_empty(service, &["name"]).to_owned(),
            port: value::get_i64(service, &["port"])
                .and_then(|port| u16::try_from(port).ok())
                .unwrap_or(443),
            tls: self.tls(object),
            object: object.clone(),
        });
        ApiService {
            name: meta::name(object).to_owned(),
            group: text(&["spec", "group"]),
            version: text(&["spec", "version"]),
            group_priority: number(&["spec", "groupPriorityMinimum"]),
            version_priority: number(&["spec", "versionPriority"]),
            target,
            available: available::condition(object)
                .is_some_and(|condition| value::get_str(condition, &["status"]) == Some("True")),
        }
    }

    fn tls(&self, object: &Value) -> Result<Arc<rustls::ClientConfig>, String> {
        let bundle = value::str_or_empty(object, &["spec", "caBundle"]);
        let bundle = base64::engine::general_purpose::STANDARD
            .decode(bundle)
            .map_err(|error| format!("caBundle: {error}"))?;
        let insecure = value::get_bool(object, &["spec", "insecureSkipTLSVerify"]) == Some(true);
        let trust = match (insecure, bundle.is_empty()) {
            (true, _) => crate::streaming::tls::Trust::Any,
            (false, true) => crate::streaming::tls::Trust::System,
            (false, false) => crate::streaming::tls::Trust::Authorities(&bundle),
        };
        crate::streaming::tls::client(trust, self.client.as_ref(), &self.provider)
            .map_err(|error| error.to_string())
    }

    /// Remembers what a server said of a group version.
    fn remember(&self, key: (String, String), remote: Remote) {
        let remote = Arc::new(remote);
        self.remotes.rcu(|remotes| {
            let mut remotes = Remotes::clone(remotes);
            remotes.insert(key.clone(), remote.clone());
            remotes
        });
    }

    fn forget(&self, key: &(String, String)) {
        if self.remotes.load().contains_key(key) {
            self.remotes.rcu(|remotes| {
                let mut remotes = Remotes::clone(remotes);
                remotes.remove(key);
                remotes
            });
        }
    }
}
