//! What resources the server has, custom ones included: for controllers that act on all of them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResource;
use kube::Client;
use kube::discovery::ApiResource;

use crate::Error;

/// One resource in the version its group prefers.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// How to address it.
    pub resource: ApiResource,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// What it can do.
    pub verbs: Vec<String>,
}

impl Found {
    /// Whether it can do that.
    pub fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }

    /// `resource.group`, as conditions name it.
    pub fn title(&self) -> String {
        format!("{}.{}", self.resource.plural, self.resource.group)
    }
}

/// All resources, and the groups that could not be asked (client-go `ServerPreferredResources`): a failing aggregated API
/// must not hide the rest, nor may it be taken for empty.
///
/// # Errors
/// When the list of groups itself cannot be had.
pub async fn discover(client: &Client) -> Result<(Vec<Found>, Vec<String>), Error> {
    let mut found = Vec::new();
    let mut failed = Vec::new();
    match client.list_core_api_resources("v1").await {
        Ok(list) => add(&mut found, "", "v1", list.resources),
        Err(error) => failed.push(format!("v1: {error}")),
    }
    for group in client.list_api_groups().await?.groups {
        let preferred = group
            .preferred_version
            .as_ref()
            .map(|v| v.version.clone())
            .unwrap_or_default();
        let mut versions: Vec<_> = group.versions.iter().map(|v| v.version.as_str()).collect();
        versions.sort_by_key(|v| *v != preferred);
        for version in versions {
            let api_version = format!("{}/{version}", group.name);
            match client.list_api_group_resources(&api_version).await {
                Ok(list) => add(&mut found, &group.name, version, list.resources),
                // A group that went away since the list of groups.
                Err(error) if crate::error::is_not_found(&error) => {}
                Err(error) => failed.push(format!("{api_version}: {error}")),
            }
        }
    }
    Ok((found, failed))
}

fn add(found: &mut Vec<Found>, group: &str, version: &str, resources: Vec<APIResource>) {
    for resource in resources {
        if resource.name.contains('/') {
            continue;
        }
        if found
            .iter()
            .any(|f| f.resource.group == group && f.resource.plural == resource.name)
        {
            continue;
        }
        found.push(Found {
            resource: ApiResource {
                group: group.to_owned(),
                version: version.to_owned(),
                api_version: if group.is_empty() {
                    version.to_owned()
                } else {
                    format!("{group}/{version}")
                },
                kind: resource.kind,
                plural: resource.name,
            },
            namespaced: resource.namespaced,
            verbs: resource.verbs,
        });
    }
}
