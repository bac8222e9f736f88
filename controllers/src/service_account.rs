//! The `default` ServiceAccount of every namespace (upstream `serviceaccounts_controller.go`).

use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_runtime::ObjectKey;
use keelson_runtime::controller::{Action, Controller};
use keelson_runtime::informer::Event;
use keelson_runtime::workqueue::WorkQueue;
use kube::Api;
use kube::api::PostParams;

use crate::error::{is_already_exists, is_namespace_terminating, is_not_found};
use crate::{Context, Error};

const DEFAULT: &str = "default";

/// Whether the account has to be made.
fn wanted(namespace: Option<&Namespace>, exists: bool) -> bool {
    let active = namespace.is_some_and(|n| {
        n.metadata.deletion_timestamp.is_none()
            && n.status.as_ref().and_then(|s| s.phase.as_deref()) != Some("Terminating")
    });
    active && !exists
}

/// Runs until shutdown.
///
/// # Errors
/// None: what fails is tried again.
pub async fn run(ctx: Context) -> anyhow::Result<()> {
    let client = ctx.client("service-account-controller");
    let namespaces = ctx.informers.informer::<Namespace>();
    let accounts = ctx.informers.informer::<ServiceAccount>();
    let queue = WorkQueue::new("serviceaccount", &ctx.metrics);
    crate::common::enqueue_all(&namespaces, &queue);
    accounts.on_event({
        let queue = queue.clone();
        move |event| {
            if let Event::Deleted { object } = event
                && object.metadata.name.as_deref() == Some(DEFAULT)
            {
                queue.add(ObjectKey::cluster(
                    object.metadata.namespace.clone().unwrap_or_default(),
                ));
            }
        }
    });
    if !(namespaces.wait_synced().await && accounts.wait_synced().await) {
        return Ok(());
    }
    Controller::new("serviceaccount-controller", queue)
        .run(ctx.shutdown.clone(), move |key: ObjectKey| {
            let namespace = namespaces.store().get(&key);
            let exists = accounts.store().get_parts(&key.name, DEFAULT).is_some();
            let api: Api<ServiceAccount> = Api::namespaced(client.clone(), &key.name);
            async move {
                if !wanted(namespace.as_deref(), exists) {
                    return Ok::<_, Error>(Action::Done);
                }
                let account = ServiceAccount {
                    metadata: ObjectMeta {
                        name: Some(DEFAULT.to_owned()),
                        ..Default::default()
                    },
                    ..Default::default()
                };
                match api.create(&PostParams::default(), &account).await {
                    Ok(_) => Ok(Action::Done),
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
