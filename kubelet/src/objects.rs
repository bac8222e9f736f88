//! ConfigMaps, Secrets and Services that pods of this node refer to. A pod's first look at an object asks the API,
//! so that it is never older than the pod; afterwards a watch keeps it current and wakes the pods that use it.

use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use kube::api::Api;
use kube::runtime::{WatchStreamExt, watcher};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tracing::warn;

/// Why an object cannot be had.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ObjectError {
    /// It does not exist.
    #[error("{kind} {name:?} not found")]
    NotFound {
        /// The kind, in lower case.
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// The API said something else.
    #[error("{0}")]
    Api(String),
    /// There is no API to ask.
    #[error("no API server is configured")]
    NoClient,
}

impl ObjectError {
    /// Whether the object does not exist, which is no error where it is optional.
    pub fn is_not_found(&self) -> bool {
        matches!(self, ObjectError::NotFound { .. })
    }
}

type Wake = Arc<dyn Fn(&str) + Send + Sync>;
type Key = (String, String);

struct Entry<K> {
    users: HashSet<String>,
    value: Option<Arc<K>>,
    /// Whether the watch is up, so that `value` can be trusted.
    live: bool,
    task: tokio::task::AbortHandle,
}

struct Kept<K> {
    kind: &'static str,
    client: Option<kube::Client>,
    entries: Arc<Mutex<HashMap<Key, Entry<K>>>>,
    wake: Wake,
}

impl<K> Kept<K>
where
    K: kube::Resource<Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static,
    K::DynamicType: Default,
{
    async fn get(&self, uid: &str, namespace: &str, name: &str) -> Result<Arc<K>, ObjectError> {
        let client = self.client.clone().ok_or(ObjectError::NoClient)?;
        let key = (namespace.to_owned(), name.to_owned());
        let missing = || ObjectError::NotFound {
            kind: self.kind,
            name: name.to_owned(),
        };
        if let Some(e) = self.entries.lock().get(&key)
            && e.live
            && e.users.contains(uid)
        {
            return e.value.clone().ok_or_else(missing);
        }
        let api: Api<K> = Api::namespaced(client, namespace);
        let found = match tokio::time::timeout(Duration::from_secs(10), api.get_opt(name)).await {
            Ok(Ok(found)) => found.map(Arc::new),
            Ok(Err(kube::Error::Api(e))) => return Err(ObjectError::Api(e.message.clone())),
            Ok(Err(e)) => return Err(ObjectError::Api(e.to_string())),
            Err(_) => {
                return Err(ObjectError::Api(
                    "the API server did not answer in time".to_owned(),
                ));
            }
        };
        let mut entries = self.entries.lock();
        let e = entries.entry(key.clone()).or_insert_with(|| {
            let task = tokio::spawn(follow(api, key, self.entries.clone(), self.wake.clone()));
            Entry {
                users: HashSet::new(),
                value: None,
                live: false,
                task: task.abort_handle(),
            }
        });
        e.users.insert(uid.to_owned());
        // The watch may have got further than our reading by now; a newer reading replaces an older value.
        if !e.live || is_newer(found.as_deref(), e.value.as_deref()) {
            e.value = found.clone();
        }
        match found {
            // What the API says is gone is gone, though the watch has not said so yet.
            None => Err(missing()),
            Some(found) => Ok(e.value.clone().unwrap_or(found)),
        }
    }

    fn forget(&self, uid: &str) {
        self.entries.lock().retain(|_, e| {
            e.users.remove(uid);
            if e.users.is_empty() {
                e.task.abort();
            }
            !e.users.is_empty()
        });
    }
}

fn version<K: kube::Resource>(o: &K) -> u64 {
    o.meta()
        .resource_version
        .as_deref()
        .and_then(|v| v.parse().ok())
        .unwrap_or(0)
}

fn is_newer<K: kube::Resource>(a: Option<&K>, b: Option<&K>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => version(a) > version(b),
        (Some(_), None) => true,
        (None, _) => false,
    }
}

async fn follow<K>(api: Api<K>, key: Key, entries: Arc<Mutex<HashMap<Key, Entry<K>>>>, wake: Wake)
where
    K: kube::Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let config = watcher::Config::default().fields(&format!("metadata.name={}", key.1));
    let mut events = std::pin::pin!(watcher(api, config).default_backoff());
    let mut initial: Option<Arc<K>> = None;
    while let Some(event) = events.next().await {
        let update = |value: Option<Arc<K>>| {
            let mut entries = entries.lock();
            let Some(e) = entries.get_mut(&key) else {
                return;
            };
            let changed = match (&e.value, &value) {
                (Some(a), Some(b)) => version(&**a) != version(&**b),
                (None, None) => false,
                _ => true,
            };
            e.value = value;
            e.live = true;
            let users: Vec<String> = if changed {
                e.users.iter().cloned().collect()
            } else {
                Vec::new()
            };
            drop(entries);
            users.iter().for_each(|uid| wake(uid));
        };
        match event {
            Ok(watcher::Event::Init) => initial = None,
            Ok(watcher::Event::InitApply(o)) => initial = Some(Arc::new(o)),
            Ok(watcher::Event::InitDone) => update(initial.take()),
            Ok(watcher::Event::Apply(o)) => update(Some(Arc::new(o))),
            Ok(watcher::Event::Delete(_)) => update(None),
            Err(error) => {
                warn!(namespace = %key.0, name = %key.1, %error, "watching an object failed");
                if let Some(e) = entries.lock().get_mut(&key) {
                    e.live = false;
                }
            }
        }
    }
}

/// The objects of all pods of the node.
pub struct Objects {
    config_maps: Kept<ConfigMap>,
    secrets: Kept<Secret>,
    services: Mutex<HashMap<Key, Arc<Service>>>,
    services_synced: watch::Sender<bool>,
    client: Option<kube::Client>,
}

impl Objects {
    /// An empty cache; `wake` is called with the uid of each pod of which an object changed.
    pub fn new(client: Option<kube::Client>, wake: Wake) -> Arc<Self> {
        Arc::new(Objects {
            config_maps: Kept {
                kind: "configmap",
                client: client.clone(),
                entries: Default::default(),
                wake: wake.clone(),
            },
            secrets: Kept {
                kind: "secret",
                client: client.clone(),
                entries: Default::default(),
                wake,
            },
            services: Mutex::new(HashMap::new()),
            services_synced: watch::Sender::new(false),
            client,
        })
    }

    /// A ConfigMap for the pod `uid`.
    pub async fn config_map(
        &self,
        uid: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Arc<ConfigMap>, ObjectError> {
        self.config_maps.get(uid, namespace, name).await
    }

    /// A Secret for the pod `uid`.
    pub async fn secret(
        &self,
        uid: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Arc<Secret>, ObjectError> {
        self.secrets.get(uid, namespace, name).await
    }

    /// Ends what is only kept for the pod `uid`.
    pub fn forget(&self, uid: &str) {
        self.config_maps.forget(uid);
        self.secrets.forget(uid);
    }

    /// The services of a namespace, and `default/kubernetes`, once they were read at least once.
    pub fn services(&self, namespace: &str) -> Option<Vec<Arc<Service>>> {
        if !*self.services_synced.borrow() {
            return None;
        }
        let mut found: Vec<_> = self
            .services
            .lock()
            .iter()
            .filter(|((ns, name), _)| ns == namespace || (ns == "default" && name == "kubernetes"))
            .map(|(k, s)| (k.clone(), s.clone()))
            .collect();
        found.sort_by(|a, b| a.0.cmp(&b.0));
        Some(found.into_iter().map(|(_, s)| s).collect())
    }

    /// Follows all services for as long as it is polled.
    pub async fn follow_services(&self) {
        let Some(client) = self.client.clone() else {
            return;
        };
        let api: Api<Service> = Api::all(client);
        let mut events = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
        let mut initial = HashMap::new();
        let key = |s: &Service| {
            (
                s.metadata.namespace.clone().unwrap_or_default(),
                s.metadata.name.clone().unwrap_or_default(),
            )
        };
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Init) => initial.clear(),
                Ok(watcher::Event::InitApply(s)) => {
                    initial.insert(key(&s), Arc::new(s));
                }
                Ok(watcher::Event::InitDone) => {
                    *self.services.lock() = std::mem::take(&mut initial);
                    self.services_synced.send_replace(true);
                }
                Ok(watcher::Event::Apply(s)) => {
                    self.services.lock().insert(key(&s), Arc::new(s));
                }
                Ok(watcher::Event::Delete(s)) => {
                    self.services.lock().remove(&key(&s));
                }
                Err(error) => warn!(%error, "watching services failed"),
            }
        }
    }
}
