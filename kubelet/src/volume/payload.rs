//! The files of configMap, secret, downwardAPI and projected volumes.

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, ProjectedVolumeSource, Secret,
};

use super::atomic::{File, Payload};
use super::token::Tokens;
use crate::fields::{self, NodeFacts};
use crate::objects::Objects;
use crate::podutil;

/// What payloads are made from.
pub struct Sources<'a> {
    /// ConfigMaps and Secrets.
    pub objects: &'a Objects,
    /// Service-account tokens.
    pub tokens: &'a Tokens,
    /// The node.
    pub node: &'a NodeFacts,
    /// The pod.
    pub pod: &'a Pod,
    /// Its addresses.
    pub pod_ips: &'a [String],
}

const DEFAULT_MODE: i32 = 0o644;

fn put(p: &mut Payload, path: &str, data: Vec<u8>, mode: i32, owner: Option<u32>) {
    p.insert(
        path.to_owned(),
        File {
            data,
            mode: mode as u32 & 0o7777,
            owner,
        },
    );
}

/// Puts keys of an object into files: those of `items`, or all under their own names.
fn keys(
    p: &mut Payload,
    entries: Vec<(String, Vec<u8>)>,
    items: &Option<Vec<KeyToPath>>,
    mode: i32,
    optional: bool,
    missing: &str,
) -> Result<(), String> {
    let Some(items) = items.as_ref().filter(|i| !i.is_empty()) else {
        for (k, v) in entries {
            put(p, &k, v, mode, None);
        }
        return Ok(());
    };
    for item in items {
        match entries.iter().find(|(k, _)| *k == item.key) {
            Some((_, v)) => put(p, &item.path, v.clone(), item.mode.unwrap_or(mode), None),
            None if optional => {}
            None => return Err(missing.to_owned()),
        }
    }
    Ok(())
}

fn config_map_entries(m: &ConfigMap) -> Vec<(String, Vec<u8>)> {
    let text = m
        .data
        .iter()
        .flatten()
        .map(|(k, v)| (k.clone(), v.clone().into_bytes()));
    let binary = m
        .binary_data
        .iter()
        .flatten()
        .map(|(k, v): (_, &ByteString)| (k.clone(), v.0.clone()));
    text.chain(binary).collect()
}

fn secret_entries(s: &Secret) -> Vec<(String, Vec<u8>)> {
    s.data
        .iter()
        .flatten()
        .map(|(k, v)| (k.clone(), v.0.clone()))
        .collect()
}

impl Sources<'_> {
    /// The files of a ConfigMap.
    pub async fn config_map(
        &self,
        p: &mut Payload,
        name: &str,
        items: &Option<Vec<KeyToPath>>,
        mode: Option<i32>,
        optional: bool,
    ) -> Result<(), String> {
        let (uid, ns) = (podutil::uid(self.pod), podutil::namespace(self.pod));
        let map = match self.objects.config_map(uid, ns, name).await {
            Ok(m) => m,
            Err(e) if e.is_not_found() && optional => return Ok(()),
            Err(e) => return Err(e.to_string()),
        };
        let missing = format!(
            "configmap references non-existent config key: {}",
            first_missing(items, &config_map_entries(&map))
        );
        keys(
            p,
            config_map_entries(&map),
            items,
            mode.unwrap_or(DEFAULT_MODE),
            optional,
            &missing,
        )
    }

    /// The files of a Secret.
    pub async fn secret(
        &self,
        p: &mut Payload,
        name: &str,
        items: &Option<Vec<KeyToPath>>,
        mode: Option<i32>,
        optional: bool,
    ) -> Result<(), String> {
        let (uid, ns) = (podutil::uid(self.pod), podutil::namespace(self.pod));
        let secret = match self.objects.secret(uid, ns, name).await {
            Ok(s) => s,
            Err(e) if e.is_not_found() && optional => return Ok(()),
            Err(e) => return Err(e.to_string()),
        };
        keys(
            p,
            secret_entries(&secret),
            items,
            mode.unwrap_or(DEFAULT_MODE),
            optional,
            &format!(
                "references non-existent secret key: {}",
                first_missing(items, &secret_entries(&secret))
            ),
        )
    }

    /// The files of the downward API.
    pub fn downward(
        &self,
        p: &mut Payload,
        items: &Option<Vec<DownwardAPIVolumeFile>>,
        mode: Option<i32>,
    ) -> Result<(), String> {
        for item in items.iter().flatten() {
            let text = if let Some(f) = &item.field_ref {
                fields::field(f, self.pod, self.node, self.pod_ips)?
            } else if let Some(f) = &item.resource_field_ref {
                let name = f.container_name.as_deref().unwrap_or_default();
                let c = podutil::find_container(self.pod, name)
                    .ok_or_else(|| format!("container {name} not found"))?;
                fields::resource(f, &c, self.node)?
            } else {
                continue;
            };
            put(
                p,
                &item.path,
                text.into_bytes(),
                item.mode.or(mode).unwrap_or(DEFAULT_MODE),
                None,
            );
        }
        Ok(())
    }

    /// The files of a projected volume.
    pub async fn projected(&self, v: &ProjectedVolumeSource) -> Result<Payload, String> {
        let mut p = Payload::new();
        let mode = v.default_mode;
        for source in v.sources.iter().flatten() {
            if let Some(s) = &source.config_map {
                self.config_map(&mut p, &s.name, &s.items, mode, s.optional == Some(true))
                    .await?;
            } else if let Some(s) = &source.secret {
                self.secret(&mut p, &s.name, &s.items, mode, s.optional == Some(true))
                    .await?;
            } else if let Some(s) = &source.downward_api {
                self.downward(&mut p, &s.items, mode)?;
            } else if let Some(s) = &source.service_account_token {
                let token = self
                    .tokens
                    .get(
                        self.pod,
                        s.audience.as_deref().unwrap_or_default(),
                        s.expiration_seconds.unwrap_or(3600),
                    )
                    .await?;
                let owner = common_user(self.pod);
                let group = podutil::spec(self.pod)
                    .security_context
                    .as_ref()
                    .and_then(|s| s.fs_group);
                let mode = if owner.is_some() || group.is_some() {
                    0o600
                } else {
                    mode.unwrap_or(DEFAULT_MODE)
                };
                put(&mut p, &s.path, token.into_bytes(), mode, owner);
            } else {
                return Err("a projected volume source is not supported".to_owned());
            }
        }
        Ok(p)
    }
}

fn first_missing(items: &Option<Vec<KeyToPath>>, entries: &[(String, Vec<u8>)]) -> String {
    items
        .iter()
        .flatten()
        .find(|i| !entries.iter().any(|(k, _)| *k == i.key))
        .map(|i| i.key.clone())
        .unwrap_or_default()
}

/// The one user that all containers run as, to whom tokens then belong (upstream `getFsUser`).
fn common_user(pod: &Pod) -> Option<u32> {
    let of_pod = podutil::spec(pod)
        .security_context
        .as_ref()
        .and_then(|s| s.run_as_user);
    let mut user = None;
    for c in podutil::init_containers(pod)
        .iter()
        .chain(podutil::containers(pod))
    {
        let own = c
            .security_context
            .as_ref()
            .and_then(|s| s.run_as_user)
            .or(of_pod)?;
        if user.is_some_and(|u| u != own) {
            return None;
        }
        user = Some(own);
    }
    user.and_then(|u| u32::try_from(u).ok())
}
