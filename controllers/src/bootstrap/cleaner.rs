//! Deletes bootstrap tokens when they have ended (upstream `tokencleaner.go`).

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use keelson_runtime::controller::{Action, Controller};
use keelson_runtime::workqueue::WorkQueue;
use kube::api::{DeleteParams, Preconditions};
use kube::{Api, ResourceExt};

use crate::error::{is_conflict, is_not_found};
use crate::{Context, Error, synced};

/// Runs until shutdown.
///
/// # Errors
/// None: what fails is tried again.
pub async fn run(context: Context) -> anyhow::Result<()> {
    let tokens = super::tokens(&context, "token-cleaner");
    let queue = WorkQueue::new("token_cleaner", &context.metrics);
    tokens.on_event({
        let queue = queue.clone();
        move |event| queue.add(event.object().name_any())
    });
    synced!(tokens);
    let api: Api<Secret> = Api::namespaced(context.client("token-cleaner"), super::NAMESPACE);
    let clock = context.clock.clone();
    Controller::new("token-cleaner-controller", queue)
        .run(context.shutdown.clone(), move |name: String| {
            let secret = tokens.store().get_parts(super::NAMESPACE, &name);
            let (api, now) = (api.clone(), clock.now());
            async move {
                let Some(secret) = secret else {
                    return Ok::<_, Error>(Action::Done);
                };
                match left(&secret, now) {
                    None => Ok(Action::Done),
                    Some(Duration::ZERO) => {
                        let params = DeleteParams {
                            preconditions: Some(Preconditions {
                                uid: secret.metadata.uid.clone(),
                                resource_version: None,
                            }),
                            ..Default::default()
                        };
                        match api.delete(&name, &params).await {
                            Ok(_) => Ok(Action::Done),
                            Err(error) if is_not_found(&error) || is_conflict(&error) => {
                                Ok(Action::Done)
                            }
                            Err(error) => Err(error.into()),
                        }
                    }
                    Some(left) => Ok(Action::RequeueAfter(left)),
                }
            }
        })
        .await;
    Ok(())
}

/// How long the token has to live; zero when it has ended, or when its end cannot be read. `None`: for ever.
fn left(secret: &Secret, now: Timestamp) -> Option<Duration> {
    if secret.type_.as_deref() != Some(super::TYPE) {
        return None;
    }
    match super::end(secret) {
        Ok(None) => None,
        Ok(Some(end)) => Some(Duration::try_from(end.duration_since(now)).unwrap_or_default()),
        Err(_) => Some(Duration::ZERO),
    }
}
