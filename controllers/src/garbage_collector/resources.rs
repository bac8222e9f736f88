//! The resources that the collector watches: everything that discovery names as deletable, custom ones included.

use std::collections::HashMap;
use std::sync::Arc;

use kube::Client;
use kube::core::GroupVersionKind;
use kube::discovery::{ApiCapabilities, ApiResource, Discovery, Scope};

/// One resource by one of its versions.
#[derive(Clone, Debug)]
pub struct Resource {
    /// How it is addressed.
    pub api: ApiResource,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
}

/// What is served now.
#[derive(Clone, Debug, Default)]
pub struct Resources {
    by_kind: HashMap<(String, String), Resource>,
    /// What to watch, by group and resource name.
    pub watched: HashMap<(String, String), Resource>,
}

impl Resources {
    /// Asks the server.
    ///
    /// # Errors
    /// When discovery fails; a group whose server does not answer is left out by the server itself.
    pub async fn discover(client: &Client) -> kube::Result<Arc<Self>> {
        let discovery = Discovery::new(client.clone()).run_aggregated().await?;
        let mut found = Resources::default();
        for group in discovery.groups() {
            for version in group.versions() {
                for (api, capabilities) in group.versioned_resources(version) {
                    found.add(&api, &capabilities);
                }
            }
            for (api, capabilities) in group.resources_by_stability() {
                if watchable(&api, &capabilities) {
                    let key = (api.group.clone(), api.plural.clone());
                    let namespaced = capabilities.scope == Scope::Namespaced;
                    found.watched.insert(key, Resource { api, namespaced });
                }
            }
        }
        Ok(Arc::new(found))
    }

    fn add(&mut self, api: &ApiResource, capabilities: &ApiCapabilities) {
        if !capabilities.supports_operation("get") {
            return;
        }
        self.by_kind
            .entry((api.api_version.clone(), api.kind.clone()))
            .or_insert_with(|| Resource {
                api: api.clone(),
                namespaced: capabilities.scope == Scope::Namespaced,
            });
    }

    /// What a reference means.
    pub fn of_kind(&self, api_version: &str, kind: &str) -> Option<&Resource> {
        self.by_kind.get(&(api_version.to_owned(), kind.to_owned()))
    }
}

/// Upstream `GetDeletableResources` and `DefaultIgnoredResources`.
fn watchable(api: &ApiResource, capabilities: &ApiCapabilities) -> bool {
    let gvk = GroupVersionKind::gvk(&api.group, &api.version, &api.kind);
    let ignored = gvk.kind == "Event" && (gvk.group.is_empty() || gvk.group == "events.k8s.io");
    !ignored
        && ["delete", "list", "watch"]
            .iter()
            .all(|verb| capabilities.supports_operation(verb))
}
