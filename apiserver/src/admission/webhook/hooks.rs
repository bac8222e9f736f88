//! The webhooks that are configured, followed from the store: what a request sees is one immutable list.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use keelson_machinery::meta::{self, GroupResource};
use keelson_machinery::status::ApiError;
use keelson_machinery::value::{self, Value};
use parking_lot::Mutex;
use rustls::crypto::CryptoProvider;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::client::{ClientError, HookClient};
use super::matching::{Rule, Selector, selector};
use crate::admission::AdmissionRequest;
use crate::admission::policy::conditions::{Conditions, webhook_environment};
use crate::objects::{self, Objects};
use crate::reader::Change;

/// How long a request waits for the configurations to be read at a start (upstream's `WaitForReady`: 10 s).
const READY_LIMIT: Duration = Duration::from_secs(10);
/// A webhook's default time limit, in seconds.
const DEFAULT_TIMEOUT: u64 = 10;

/// One webhook of a configuration.
pub struct Hook {
    /// Configuration, name and how many of that name came before: unique at any moment.
    pub uid: String,
    /// Name of the configuration.
    pub configuration: String,
    /// Name of the webhook.
    pub name: String,
    /// What it wants to see.
    pub rules: Vec<Rule>,
    /// Whether other versions of the resources count (`matchPolicy: Equivalent`).
    pub equivalent: bool,
    /// Of which namespaces.
    pub namespace_selector: Selector,
    /// With which labels.
    pub object_selector: Selector,
    /// What is asked of each request before the call.
    pub conditions: Conditions,
    /// Whether failed calls are ignored.
    pub ignore_failures: bool,
    /// `sideEffects`; empty when unset.
    pub side_effects: String,
    /// How long a call may take.
    pub timeout: Duration,
    /// The versions of reviews that it reads, by preference.
    pub review_versions: Vec<String>,
    /// Whether it wants to be called again (`reinvocationPolicy: IfNeeded`).
    pub reinvoke: bool,
    client_config: Value,
    client: Result<HookClient, String>,
}

impl Hook {
    /// How to call it.
    pub fn client(&self) -> Result<&HookClient, ClientError> {
        self.client
            .as_ref()
            .map_err(|why| ClientError::Config(why.clone()))
    }

    fn read(
        configuration: &str,
        uid: String,
        hook: &Value,
        client: Option<Result<HookClient, String>>,
        connect: impl FnOnce(&Value) -> Result<HookClient, String>,
    ) -> Hook {
        let text = |member: &str| value::str_or_empty(hook, &[member]).to_string();
        let client_config = hook.get("clientConfig").cloned().unwrap_or(Value::Null);
        let seconds = value::get_i64(hook, &["timeoutSeconds"])
            .and_then(|seconds| u64::try_from(seconds).ok())
            .unwrap_or(DEFAULT_TIMEOUT);
        Hook {
            uid,
            configuration: configuration.to_string(),
            name: text("name"),
            rules: Rule::read_all(value::items(hook, &["rules"])),
            equivalent: text("matchPolicy") != "Exact",
            namespace_selector: selector(hook.get("namespaceSelector")),
            object_selector: selector(hook.get("objectSelector")),
            conditions: Conditions::compile(
                value::items(hook, &["matchConditions"]),
                &webhook_environment(),
            ),
            ignore_failures: text("failurePolicy") == "Ignore",
            side_effects: text("sideEffects"),
            timeout: Duration::from_secs(seconds),
            review_versions: value::items(hook, &["admissionReviewVersions"])
                .iter()
                .filter_map(Value::as_str)
                .map(str::to_string)
                .collect(),
            reinvoke: text("reinvocationPolicy") == "IfNeeded",
            client: client.unwrap_or_else(|| connect(&client_config)),
            client_config,
        }
    }
}

/// What is needed to make clients.
#[derive(Clone)]
pub struct Connections {
    /// For Services and their endpoints.
    pub objects: Objects,
    /// Cryptography.
    pub provider: Arc<CryptoProvider>,
}

/// All webhooks of one kind of configuration, in upstream's order: by configuration name, then as they stand there.
pub struct Hooks {
    current: ArcSwap<Vec<Arc<Hook>>>,
    synced: watch::Receiver<bool>,
}

impl Hooks {
    /// Follows `resource` (`mutatingwebhookconfigurations`, `validatingwebhookconfigurations`).
    pub fn follow(
        resource: &str,
        connections: Connections,
        shutdown: CancellationToken,
    ) -> Arc<Hooks> {
        let (sender, synced) = watch::channel(false);
        let hooks = Arc::new(Hooks {
            current: ArcSwap::default(),
            synced,
        });
        let resource = GroupResource::new("admissionregistration.k8s.io", resource);
        let target = hooks.clone();
        let mut known = Known {
            connections: connections.clone(),
            configurations: BTreeMap::new(),
        };
        let objects = connections.objects;
        tokio::spawn(async move {
            let apply = move |_, change| {
                known.apply(change);
                let all = known.configurations.values().flatten().cloned().collect();
                target.current.store(Arc::new(all));
            };
            objects::follow(objects, vec![resource], sender, shutdown, apply).await;
        });
        hooks
    }

    /// The webhooks at this moment.
    ///
    /// # Errors
    /// 403 when they are not known yet.
    pub async fn current(
        &self,
        request: &AdmissionRequest,
    ) -> Result<Arc<Vec<Arc<Hook>>>, ApiError> {
        if !*self.synced.borrow() {
            let mut synced = self.synced.clone();
            let ready = tokio::time::timeout(READY_LIMIT, synced.wait_for(|synced| *synced)).await;
            if !matches!(ready, Ok(Ok(_))) {
                return Err(request.forbidden("not yet ready to handle request"));
            }
        }
        Ok(self.current.load_full())
    }
}

struct Known {
    connections: Connections,
    configurations: BTreeMap<String, Vec<Arc<Hook>>>,
}

impl Known {
    fn apply(&mut self, change: Change) {
        match change {
            Change::Applied(object) => {
                let name = meta::name(&object).to_string();
                let before = self.configurations.remove(&name).unwrap_or_default();
                let hooks = self.read(&name, &object, before);
                self.configurations.insert(name, hooks);
            }
            Change::Deleted(object) => {
                self.configurations.remove(meta::name(&object));
            }
            Change::Synced => {}
        }
    }

    fn read(&self, name: &str, object: &Value, before: Vec<Arc<Hook>>) -> Vec<Arc<Hook>> {
        // Open connections outlive changes of everything but where they lead, unless a call still holds the old hook.
        let kept: Mutex<Vec<Hook>> =
            Mutex::new(before.into_iter().filter_map(Arc::into_inner).collect());
        let mut names: HashMap<&str, usize> = HashMap::new();
        value::items(object, &["webhooks"])
            .iter()
            .map(|hook| {
                let of = value::str_or_empty(hook, &["name"]);
                let count = names.entry(of).or_default();
                let uid = format!("{name}/{of}/{count}");
                *count += 1;
                let mut kept = kept.lock();
                let same = kept
                    .iter()
                    .position(|old| Some(&old.client_config) == hook.get("clientConfig"));
                let client = same.map(|at| kept.swap_remove(at).client);
                Arc::new(Hook::read(name, uid, hook, client, |config| {
                    let Connections { objects, provider } = &self.connections;
                    HookClient::new(config, objects, provider).map_err(|error| match error {
                        ClientError::Config(why) => why,
                        call => call.to_string(),
                    })
                }))
            })
            .collect()
    }
}
