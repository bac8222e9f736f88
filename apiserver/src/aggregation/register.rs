//! APIServices for what this server itself serves (upstream `kube-aggregator/pkg/controllers/autoregister` and
//! `controlplane/controller/crdregistration`): for its own group versions once at start, for those of custom resources
//! whenever these change.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use http::Method;
use keelson_machinery::catalog::Group;
use keelson_machinery::meta::{self, GroupResource};
use keelson_machinery::status::ApiError;
use keelson_machinery::value::{self, Value};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{GROUP, RESOURCE, priority};
use crate::loopback::Loopback;
use crate::objects::Objects;
use crate::reader::Change;

/// Marks what is kept here, and how.
const LABEL: &str = "kube-aggregator.kubernetes.io/automanaged";
/// Kept as it should be at each start.
const ON_START: &str = "onstart";
/// Kept as it should be at all times.
const ALWAYS: &str = "true";
/// Changes that come close together are answered together.
const QUIET: Duration = Duration::from_millis(20);
/// How long to wait after a write that failed.
const RETRY: Duration = Duration::from_secs(1);
/// How many writes are under way at once.
const CONCURRENT: usize = 16;

/// A write that is to happen.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// A new APIService.
    Create(Value),
    /// One with another spec.
    Update(Value),
    /// One that nobody serves any more: its name and uid.
    Delete(String, String),
}

fn api_service(group: &str, version: &str, priorities: (i64, i64), kept: &str) -> Value {
    json!({
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": format!("{version}.{group}"), "labels": {LABEL: kept}},
        "spec": {
            "group": group,
            "groupPriorityMinimum": priorities.0,
            "version": version,
            "versionPriority": priorities.1,
        },
    })
}

/// Of this server's own group versions. The group of APIServices itself needs none.
pub fn own(groups: &[Group]) -> Vec<Value> {
    let mut wanted = Vec::new();
    for group in groups.iter().filter(|group| group.name != GROUP) {
        for version in &group.versions {
            if let Some(priorities) = priority::own(&group.name, version) {
                wanted.push(api_service(&group.name, version, priorities, ON_START));
            }
        }
    }
    wanted
}

/// Of group versions of custom resources.
pub fn custom<'a>(versions: impl IntoIterator<Item = &'a (String, String)>) -> Vec<Value> {
    let all: BTreeSet<&(String, String)> = versions.into_iter().collect();
    all.into_iter()
        .filter(|(group, version)| priority::own(group, version).is_none())
        .map(|(group, version)| api_service(group, version, priority::CUSTOM, ALWAYS))
        .collect()
}

/// What is to be written. With `at_start`, what is only kept then counts too.
pub fn plan(wanted: &[Value], current: &[Arc<Value>], at_start: bool) -> Vec<Step> {
    fn kept(object: &Value) -> &str {
        value::str_or_empty(object, &["metadata", "labels", LABEL])
    }
    let now = |kept: &str| kept == ALWAYS || (kept == ON_START && at_start);
    let mut steps = Vec::new();
    for wanted in wanted.iter().filter(|wanted| now(kept(wanted))) {
        let stored = current
            .iter()
            .find(|one| meta::name(one) == meta::name(wanted));
        match stored {
            None => steps.push(Step::Create(wanted.clone())),
            // Somebody else's now.
            Some(stored) if !now(kept(stored)) => {}
            Some(stored) => {
                let same = value::semantic_eq(
                    value::get(stored, &["spec"]),
                    value::get(wanted, &["spec"]),
                );
                if !same {
                    let mut next = Value::clone(stored);
                    next["spec"] = wanted["spec"].clone();
                    steps.push(Step::Update(next));
                }
            }
        }
    }
    for stored in current.iter().filter(|stored| now(kept(stored))) {
        if !wanted
            .iter()
            .any(|one| meta::name(one) == meta::name(stored))
        {
            let (name, uid) = (meta::name(stored), meta::uid(stored));
            steps.push(Step::Delete(name.to_owned(), uid.to_owned()));
        }
    }
    steps
}

/// Keeps APIServices until `shutdown`.
pub async fn keep(
    objects: Objects,
    groups: Vec<Group>,
    writer: Arc<Loopback>,
    shutdown: CancellationToken,
) {
    let stream =
        |group: &str, resource: &str| objects.0.changes(&GroupResource::new(group, resource));
    let mut changes = futures::stream::select(
        stream(GROUP, RESOURCE).map(|change| (false, change)),
        stream("apiextensions.k8s.io", "customresourcedefinitions").map(|change| (true, change)),
    );
    // Group versions by the name of their definition.
    let mut served: HashMap<String, Vec<(String, String)>> = HashMap::new();
    let mut synced = [false, false];
    let (mut dirty, mut at_start) = (true, true);
    let mut wait = QUIET;
    loop {
        let wait_now = if synced == [true, true] && dirty {
            wait
        } else {
            Duration::MAX
        };
        let next = tokio::time::timeout(wait_now, changes.next());
        match shutdown.run_until_cancelled(next).await {
            None | Some(Ok(None)) => return,
            Some(Ok(Some((of_definitions, change)))) => {
                match change {
                    Change::Synced => synced[usize::from(of_definitions)] = true,
                    Change::Applied(object) if of_definitions => {
                        served.insert(meta::name(&object).to_owned(), versions(&object));
                    }
                    Change::Deleted(object) if of_definitions => {
                        served.remove(meta::name(&object));
                    }
                    Change::Applied(_) | Change::Deleted(_) => {}
                }
                dirty = true;
            }
            Some(Err(_quiet)) => {
                let mut wanted = custom(served.values().flatten());
                wanted.extend(own(&groups));
                match write_all(&objects, &writer, &wanted, at_start).await {
                    Ok(()) => {
                        (dirty, at_start, wait) = (false, false, QUIET);
                    }
                    Err(error) => {
                        tracing::warn!(error = error.message, "APIServices cannot be registered");
                        wait = RETRY;
                    }
                }
            }
        }
    }
}

/// The group versions of a definition that are served.
fn versions(definition: &Value) -> Vec<(String, String)> {
    let group = value::str_or_empty(definition, &["spec", "group"]);
    value::items(definition, &["spec", "versions"])
        .iter()
        .filter(|version| value::get_bool(version, &["served"]) == Some(true))
        .filter_map(|version| value::get_str(version, &["name"]))
        .map(|version| (group.to_owned(), version.to_owned()))
        .collect()
}

async fn write_all(
    objects: &Objects,
    writer: &Loopback,
    wanted: &[Value],
    at_start: bool,
) -> Result<(), ApiError> {
    let current = objects.list(GROUP, RESOURCE, None).await?;
    let steps = plan(wanted, &current, at_start);
    let path = format!("/apis/{GROUP}/v1/{RESOURCE}");
    let written: Vec<Result<Value, ApiError>> = futures::stream::iter(steps)
        .map(|step| {
            let path = &path;
            async move {
                match step {
                    Step::Create(object) => writer.request(Method::POST, path, Some(&object)).await,
                    Step::Update(object) => {
                        let path = format!("{path}/{}", meta::name(&object));
                        writer.request(Method::PUT, &path, Some(&object)).await
                    }
                    Step::Delete(name, uid) => {
                        let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": uid}});
                        writer
                            .request(Method::DELETE, &format!("{path}/{name}"), Some(&options))
                            .await
                    }
                }
            }
        })
        .buffer_unordered(CONCURRENT)
        .collect()
        .await;
    for result in written {
        match result {
            Ok(_) => {}
            // Somebody was faster; their change is on its way here and will be answered.
            Err(error)
                if error.is_conflict() || error.is_already_exists() || error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_kept_here_is_written() {
        let stored = |group: &str, version: &str, kept: &str, priority: i64| {
            let mut object = api_service(group, version, (priority, 1), kept);
            object["metadata"]["uid"] = format!("uid of {group}").into();
            Arc::new(object)
        };
        let wanted = [
            api_service("own", "v1", (5, 1), ON_START),
            api_service("new", "v1", (5, 1), ON_START),
            api_service("custom", "v1", (5, 1), ALWAYS),
            api_service("taken", "v1", (5, 1), ALWAYS),
        ];
        let current = [
            stored("own", "v1", ON_START, 4),
            stored("custom", "v1", ALWAYS, 4),
            stored("taken", "v1", "", 4),
            stored("gone", "v1", ALWAYS, 4),
            stored("old", "v1", ON_START, 4),
            stored("theirs", "v1", "", 4),
        ];
        let show = |at_start: bool| -> Vec<String> {
            let steps = plan(&wanted, &current, at_start);
            let show = |step: &Step| match step {
                Step::Create(object) => format!("create {}", meta::name(object)),
                Step::Update(object) => {
                    format!(
                        "update {} to {}",
                        meta::name(object),
                        object["spec"]["groupPriorityMinimum"]
                    )
                }
                Step::Delete(name, uid) => format!("delete {name} if {uid}"),
            };
            steps.iter().map(show).collect()
        };
        assert_eq!(
            show(true),
            [
                "update v1.own to 5",
                "create v1.new",
                "update v1.custom to 5",
                "delete v1.gone if uid of gone",
                "delete v1.old if uid of old",
            ]
        );
        assert_eq!(
            show(false),
            ["update v1.custom to 5", "delete v1.gone if uid of gone"]
        );
    }

    #[test]
    fn every_group_version_has_its_place() {
        let groups = keelson_machinery::catalog::Catalog::builtin().groups();
        let names: BTreeSet<String> = own(&groups)
            .iter()
            .map(|object| meta::name(object).to_owned())
            .collect();
        for group in groups.iter().filter(|group| group.name != GROUP) {
            for version in &group.versions {
                let name = format!("{version}.{}", group.name);
                assert!(names.contains(&name), "{name} has no priority");
            }
        }
        assert!(names.contains("v1."));
    }
}
