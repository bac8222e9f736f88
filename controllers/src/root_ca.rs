//! The cluster's CA in every namespace, as ConfigMap `kube-root-ca.crt` (upstream `rootcacertpublisher/publisher.go`).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_runtime::ObjectKey;
use keelson_runtime::controller::{Action, Controller};
use keelson_runtime::informer::{Informer, InformerConfig};
use keelson_runtime::workqueue::WorkQueue;
use kube::Api;
use kube::api::PostParams;

use crate::common::annotations;
use crate::error::{is_already_exists, is_namespace_terminating, is_not_found};
use crate::{Context, Error};

const NAME: &str = "kube-root-ca.crt";
const DESCRIPTION: &str = "kubernetes.io/description";
const DESCRIPTION_TEXT: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. \
     No other usage is guaranteed across distributions of Kubernetes clusters.";

#[derive(Debug, PartialEq)]
enum Plan {
    Nothing,
    Create(ConfigMap),
    Replace(ConfigMap),
}

/// What to write for a namespace, given its map.
fn plan(namespace: Option<&Namespace>, map: Option<&ConfigMap>, ca: &str) -> Plan {
    let active = namespace.is_some_and(|n| {
        n.metadata.deletion_timestamp.is_none()
            && n.status.as_ref().and_then(|s| s.phase.as_deref()) != Some("Terminating")
    });
    if !active {
        return Plan::Nothing;
    }
    let data = BTreeMap::from([("ca.crt".to_owned(), ca.to_owned())]);
    match map {
        None => Plan::Create(ConfigMap {
            metadata: ObjectMeta {
                name: Some(NAME.to_owned()),
                annotations: Some([(DESCRIPTION.to_owned(), DESCRIPTION_TEXT.to_owned())].into()),
                ..Default::default()
            },
            data: Some(data),
            ..Default::default()
        }),
        Some(map) => {
            let described = annotations(&map.metadata)
                .get(DESCRIPTION)
                .is_some_and(|d| !d.is_empty());
            if map.data.as_ref() == Some(&data) && described {
                return Plan::Nothing;
            }
            let mut map = map.clone();
            map.data = Some(data);
            map.metadata
                .annotations
                .get_or_insert_default()
                .insert(DESCRIPTION.to_owned(), DESCRIPTION_TEXT.to_owned());
            Plan::Replace(map)
        }
    }
}

/// Runs until shutdown. Without a CA there is nothing to publish.
///
/// # Errors
/// None: what fails is tried again.
pub async fn run(ctx: Context) -> anyhow::Result<()> {
    let Some(ca) = ctx.config.root_ca_pem.clone() else {
        ctx.shutdown.cancelled().await;
        return Ok(());
    };
    let client = ctx.client("root-ca-cert-publisher");
    let namespaces = ctx.informers.informer::<Namespace>();
    // Only the maps of this name: no other ConfigMap of the cluster is held in memory.
    let maps: Informer<ConfigMap> = Informer::start(
        Api::all(ctx.reader()),
        InformerConfig {
            fields: format!("metadata.name={NAME}"),
            ..Default::default()
        },
        ctx.clock.clone(),
        ctx.shutdown.child_token(),
    );
    let queue = WorkQueue::new("root_ca_cert_publisher", &ctx.metrics);
    crate::common::enqueue_all(&namespaces, &queue);
    maps.on_event({
        let queue = queue.clone();
        move |event| {
            let meta = &event.object().metadata;
            queue.add(ObjectKey::cluster(
                meta.namespace.clone().unwrap_or_default(),
            ));
        }
    });
    if !(namespaces.wait_synced().await && maps.wait_synced().await) {
        return Ok(());
    }
    Controller::new("root-ca-certificate-publisher-controller", queue)
        .run(ctx.shutdown.clone(), move |key: ObjectKey| {
            let namespace = namespaces.store().get(&key);
            let map = maps.store().get_parts(&key.name, NAME);
            let plan = plan(namespace.as_deref(), map.as_deref(), &ca);
            let api: Api<ConfigMap> = Api::namespaced(client.clone(), &key.name);
            async move {
                let result = match plan {
                    Plan::Nothing => return Ok(Action::Done),
                    Plan::Create(map) => api.create(&PostParams::default(), &map).await,
                    Plan::Replace(map) => api.replace(NAME, &PostParams::default(), &map).await,
                };
                match result {
                    Ok(_) => Ok::<_, Error>(Action::Done),
                    Err(e)
                        if is_already_exists(&e)
                            || is_not_found(&e)
                            || is_namespace_terminating(&e) =>
                    {
                        Ok(Action::Done)
                    }
                    Err(e) => Err(e.into()),
                }
            }
        })
        .await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::NamespaceStatus;

    #[test]
    fn published_once_and_repaired() {
        let mut namespace = Namespace::default();
        namespace.status = Some(NamespaceStatus {
            phase: Some("Active".into()),
            ..Default::default()
        });
        let Plan::Create(made) = plan(Some(&namespace), None, "CA") else {
            panic!("not created")
        };
        assert_eq!(plan(Some(&namespace), Some(&made), "CA"), Plan::Nothing);
        assert!(matches!(
            plan(Some(&namespace), Some(&made), "OTHER"),
            Plan::Replace(_)
        ));
        namespace.status.as_mut().unwrap().phase = Some("Terminating".into());
        assert_eq!(plan(Some(&namespace), None, "CA"), Plan::Nothing);
        assert_eq!(plan(None, None, "CA"), Plan::Nothing);
    }
}
