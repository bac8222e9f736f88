//! Emptying a namespace that is being deleted, then letting it go (upstream `namespace/deletion`).
//!
//! Pods go first, and everything else only once they are gone, so that what protects them (network policies, service
//! accounts) outlives them. The `kubernetes` finalizer is taken off when nothing is left in any resource that discovery
//! knows, custom ones included; a group that cannot be asked keeps the namespace.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition, NamespaceStatus, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use keelson_runtime::ObjectKey;
use keelson_runtime::controller::{Action, Controller};
use keelson_runtime::informer::Event;
use keelson_runtime::workqueue::{RateLimit, WorkQueue};
use kube::api::{DeleteParams, ListParams, PostParams, PropagationPolicy};
use kube::core::DynamicObject;
use kube::{Api, Client};

use crate::common::pod_control::reason;
use crate::discovery::{Found, discover};
use crate::error::{is_code, is_not_found};
use crate::{Context, Error};

const FINALIZER: &str = "kubernetes";
/// While content remains it is looked at this often; the end of the last pod is noticed at once.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What one pass found out.
#[derive(Debug, Default)]
struct Pass {
    discovery: Vec<String>,
    failures: Vec<String>,
    /// By `resource.group`.
    remaining: BTreeMap<String, usize>,
    /// By finalizer.
    finalizers: BTreeMap<String, usize>,
}

impl Pass {
    fn is_clean(&self) -> bool {
        self.discovery.is_empty() && self.failures.is_empty() && self.remaining.is_empty()
    }
}

/// The conditions after a pass: what is wrong where something is, else the word that it is not.
fn conditions(old: &[NamespaceCondition], pass: &Pass, now: Timestamp) -> Vec<NamespaceCondition> {
    let list = |items: &BTreeMap<String, usize>, word: &str| {
        let items: Vec<_> = items
            .iter()
            .map(|(what, n)| format!("{what} {word} {n} resource instances"))
            .collect();
        items.join(", ")
    };
    let mut failures = pass.failures.clone();
    failures.sort();
    let wanted = [
        (
            "NamespaceDeletionDiscoveryFailure",
            (!pass.discovery.is_empty()).then(|| {
                (
                    "DiscoveryFailed",
                    format!(
                        "Discovery failed for some groups, {} failing: unable to retrieve the complete list of server APIs: {}",
                        pass.discovery.len(),
                        pass.discovery.join(", ")
                    ),
                )
            }),
            ("ResourcesDiscovered", "All resources successfully discovered"),
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            None,
            (
                "ParsedGroupVersions",
                "All legacy kube types successfully parsed",
            ),
        ),
        (
            "NamespaceDeletionContentFailure",
            (!failures.is_empty()).then(|| {
                (
                    "ContentDeletionFailed",
                    format!(
                        "Failed to delete all resource types, {} remaining: {}",
                        failures.len(),
                        failures.join(", ")
                    ),
                )
            }),
            (
                "ContentDeleted",
                "All content successfully deleted, may be waiting on finalization",
            ),
        ),
        (
            "NamespaceContentRemaining",
            (!pass.remaining.is_empty()).then(|| {
                (
                    "SomeResourcesRemain",
                    format!(
                        "Some resources are remaining: {}",
                        list(&pass.remaining, "has")
                    ),
                )
            }),
            ("ContentRemoved", "All content successfully removed"),
        ),
        (
            "NamespaceFinalizersRemaining",
            (!pass.finalizers.is_empty()).then(|| {
                (
                    "SomeFinalizersRemain",
                    format!(
                        "Some content in the namespace has finalizers remaining: {}",
                        list(&pass.finalizers, "in")
                    ),
                )
            }),
            (
                "ContentHasNoFinalizers",
                "All content-preserving finalizers finished",
            ),
        ),
    ];
    let mut conditions = old.to_vec();
    for (kind, trouble, (fine, fine_text)) in wanted {
        let (status, reason, message) = match trouble {
            Some((reason, message)) => ("True", reason, message),
            None => ("False", fine, fine_text.to_owned()),
        };
        let new = NamespaceCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_transition_time: Some(Time(now)),
        };
        match conditions.iter_mut().find(|c| c.type_ == kind) {
            None => conditions.push(new),
            Some(old) => {
                let since = if old.status == new.status {
                    old.last_transition_time.clone()
                } else {
                    new.last_transition_time.clone()
                };
                *old = NamespaceCondition {
                    last_transition_time: since,
                    ..new
                };
            }
        }
    }
    conditions
}

/// Runs until shutdown.
///
/// # Errors
/// None: what fails is tried again.
pub async fn run(ctx: Context) -> anyhow::Result<()> {
    let client = ctx.client("namespace-controller");
    let namespaces = ctx.informers.informer::<Namespace>();
    let pods = ctx.informers.informer::<Pod>();
    let limit = RateLimit {
        most: Duration::from_secs(60),
        ..Default::default()
    };
    let queue = WorkQueue::with_limit("namespace", limit, &ctx.metrics);
    namespaces.on_event({
        let queue = queue.clone();
        move |event| {
            let meta = &event.object().metadata;
            if meta.deletion_timestamp.is_some() && !matches!(event, Event::Deleted { .. }) {
                queue.add(ObjectKey::of(meta));
            }
        }
    });
    pods.on_event({
        let (queue, namespaces) = (queue.clone(), namespaces.clone());
        move |event| {
            if let Event::Deleted { object } = event {
                let space = object.metadata.namespace.as_deref().unwrap_or_default();
                let leaving = namespaces
                    .store()
                    .get_parts("", space)
                    .is_some_and(|n| n.metadata.deletion_timestamp.is_some());
                if leaving {
                    // Not at once for each of thousands: the next pass sees them all.
                    queue.add_after(ObjectKey::cluster(space), Duration::from_millis(50));
                }
            }
        }
    });
    if !(namespaces.wait_synced().await && pods.wait_synced().await) {
        return Ok(());
    }
    let clock = ctx.clock.clone();
    Controller::new("namespace-controller", queue)
        .workers(10)
        .run(ctx.shutdown.clone(), move |key: ObjectKey| {
            let (client, clock) = (client.clone(), clock.clone());
            async move { reconcile(&client, &key.name, clock.now()).await }
        })
        .await;
    Ok(())
}

async fn reconcile(client: &Client, name: &str, now: Timestamp) -> Result<Action, Error> {
    let api: Api<Namespace> = Api::all(client.clone());
    let Some(mut namespace) = api.get_opt(name).await? else {
        return Ok(Action::Done);
    };
    if namespace.metadata.deletion_timestamp.is_none() {
        return Ok(Action::Done);
    }
    let finalizers = namespace
        .spec
        .as_ref()
        .and_then(|s| s.finalizers.clone())
        .unwrap_or_default();
    if !finalizers.iter().any(|f| f == FINALIZER) {
        return Ok(Action::Done);
    }
    let mut status = namespace.status.clone().unwrap_or_default();
    if status.phase.as_deref() != Some("Terminating") {
        status.phase = Some("Terminating".to_owned());
        namespace.status = Some(status.clone());
        namespace = match api
            .replace_status(name, &PostParams::default(), &namespace)
            .await
        {
            Ok(namespace) => namespace,
            Err(error) if is_not_found(&error) => return Ok(Action::Done),
            Err(error) if is_code(&error, 409) => return Ok(Action::Retry),
            Err(error) => return Err(error.into()),
        };
    }
    let pass = empty(client, name).await?;
    let old = status.conditions.clone().unwrap_or_default();
    let new = conditions(&old, &pass, now);
    if new != old && !(pass.is_clean() && old.is_empty()) {
        namespace.status = Some(NamespaceStatus {
            conditions: Some(new),
            ..namespace.status.clone().unwrap_or_default()
        });
        namespace = match api
            .replace_status(name, &PostParams::default(), &namespace)
            .await
        {
            Ok(namespace) => namespace,
            Err(error) if is_not_found(&error) => return Ok(Action::Done),
            Err(error) if is_code(&error, 409) => return Ok(Action::Retry),
            Err(error) => return Err(error.into()),
        };
    }
    let troubles: Vec<_> = pass
        .discovery
        .iter()
        .chain(&pass.failures)
        .cloned()
        .collect();
    if !troubles.is_empty() {
        return Err(Error::Object(troubles.join(", ")));
    }
    if !pass.remaining.is_empty() {
        return Ok(Action::RequeueAfter(LOOK_AGAIN));
    }
    finalize(client, namespace).await
}

/// Takes our finalizer off; the server then removes the namespace if no other is left.
async fn finalize(client: &Client, mut namespace: Namespace) -> Result<Action, Error> {
    let name = namespace.metadata.name.clone().unwrap_or_default();
    if let Some(finalizers) = namespace.spec.as_mut().and_then(|s| s.finalizers.as_mut()) {
        finalizers.retain(|f| f != FINALIZER);
    }
    let body = serde_json::to_vec(&namespace).map_err(kube::Error::SerdeError)?;
    let request = http::Request::put(format!("/api/v1/namespaces/{name}/finalize"))
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(body)
        .map_err(kube::Error::HttpError)?;
    match client.request::<Namespace>(request).await {
        Ok(_) => Ok(Action::Done),
        Err(error) if is_not_found(&error) => Ok(Action::Done),
        Err(error) if is_code(&error, 409) => Ok(Action::Retry),
        Err(error) => Err(error.into()),
    }
}

/// One pass over everything in the namespace.
async fn empty(client: &Client, space: &str) -> Result<Pass, Error> {
    let (found, failed) = discover(client).await?;
    let mut pass = Pass {
        discovery: failed,
        ..Default::default()
    };
    let deletable: Vec<_> = found
        .into_iter()
        .filter(|f| f.namespaced && f.can("delete"))
        .collect();
    let (pods, others): (Vec<_>, Vec<_>) = deletable
        .into_iter()
        .partition(|f| f.resource.group.is_empty() && f.resource.plural == "pods");
    for resource in &pods {
        empty_resource(client, space, resource, &mut pass).await;
    }
    if !pass.remaining.is_empty() || !pass.failures.is_empty() {
        return Ok(pass);
    }
    for resource in &others {
        empty_resource(client, space, resource, &mut pass).await;
    }
    Ok(pass)
}

async fn empty_resource(client: &Client, space: &str, found: &Found, pass: &mut Pass) {
    if !found.can("list") {
        return;
    }
    match delete_all(client, space, found).await {
        Ok(remaining) if remaining.is_empty() => {}
        Ok(remaining) => {
            pass.remaining.insert(found.title(), remaining.len());
            for finalizer in remaining.into_iter().flatten() {
                *pass.finalizers.entry(finalizer).or_default() += 1;
            }
        }
        // Gone since discovery, or not to be listed.
        Err(error) if is_not_found(&error) || is_code(&error, 405) => {}
        Err(error) => pass.failures.push(format!(
            "failed to delete {}: {}",
            found.title(),
            reason(&error)
        )),
    }
}

/// Deletes all objects of a resource; answers the finalizers of each that is still there.
async fn delete_all(client: &Client, space: &str, found: &Found) -> kube::Result<Vec<Vec<String>>> {
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), space, &found.resource);
    let before = api.list_metadata(&ListParams::default()).await?;
    if before.items.is_empty() {
        return Ok(Vec::new());
    }
    let params = DeleteParams {
        propagation_policy: Some(PropagationPolicy::Background),
        ..Default::default()
    };
    // What is on its way out already needs no second order.
    let fresh = || {
        before
            .items
            .iter()
            .filter(|o| o.metadata.deletion_timestamp.is_none())
    };
    if fresh().next().is_some() {
        if found.can("deletecollection") {
            api.delete_collection(&params, &ListParams::default())
                .await?;
        } else {
            for object in fresh() {
                let name = object.metadata.name.as_deref().unwrap_or_default();
                match api.delete(name, &params).await {
                    Ok(_) => {}
                    Err(error) if is_not_found(&error) => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }
    let after = api.list_metadata(&ListParams::default()).await?;
    Ok(after
        .items
        .into_iter()
        .map(|o| o.metadata.finalizers.unwrap_or_default())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_say_what_remains_and_later_that_nothing_does() {
        let at = |s| Timestamp::from_second(s).unwrap();
        let pass = Pass {
            remaining: [("pods.".to_string(), 2)].into(),
            finalizers: [("example.com/hold".to_string(), 1)].into(),
            ..Default::default()
        };
        let first = conditions(&[], &pass, at(1));
        let get = |list: &[NamespaceCondition], kind: &str| {
            let c = list.iter().find(|c| c.type_ == kind).unwrap().clone();
            (
                c.status,
                c.message.unwrap(),
                c.last_transition_time.unwrap().0.as_second(),
            )
        };
        assert_eq!(first.len(), 5);
        assert_eq!(
            get(&first, "NamespaceContentRemaining"),
            (
                "True".into(),
                "Some resources are remaining: pods. has 2 resource instances".into(),
                1
            )
        );
        assert_eq!(
            get(&first, "NamespaceFinalizersRemaining").1,
            "Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances"
        );
        let second = conditions(&first, &Pass::default(), at(2));
        assert_eq!(
            get(&second, "NamespaceContentRemaining"),
            ("False".into(), "All content successfully removed".into(), 2)
        );
        assert_eq!(get(&second, "NamespaceDeletionContentFailure").2, 1);
        assert_eq!(conditions(&second, &Pass::default(), at(3)), second);
    }
}
