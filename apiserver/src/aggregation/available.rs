//! Whether what an APIService names is there and answers (upstream `kube-aggregator/pkg/controllers/status`).
//!
//! What a Service and its endpoints say is decided by [`before_asking`]; the rest is asking. [`watch`] does both whenever
//! one of them changes and every half minute, writes the condition, and lets what the server says of itself be read.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::{BoxStream, FuturesUnordered};
use http::Method;
use jiff::Timestamp;
use keelson_machinery::clock::Clock;
use keelson_machinery::meta::{self, GroupResource};
use keelson_machinery::time;
use keelson_machinery::value::{self, Value};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::remote::{self, Remote};
use super::{Aggregation, ApiService, GROUP, RESOURCE, Target, proxy};
use crate::loopback::Loopback;
use crate::reader::Change;

/// How often a server is asked that was there when last asked.
const RESYNC: Duration = Duration::from_secs(30);
/// The first and the longest wait after a failure.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(30));
/// How often what a server says of itself is read again.
const REFRESH: Duration = Duration::from_secs(60);
/// How many endpoints of a service are asked at once; one that answers is enough.
const ASKED: usize = 5;

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// `True`, `False` or `Unknown`.
    pub status: &'static str,
    /// One word.
    pub reason: &'static str,
    /// In words for people.
    pub message: String,
}

impl Verdict {
    fn no(reason: &'static str, message: String) -> Verdict {
        Verdict {
            status: "False",
            reason,
            message,
        }
    }

    /// Of an APIService that this server serves.
    pub fn local() -> Verdict {
        Verdict {
            status: "True",
            reason: "Local",
            message: "Local APIServices are always available".to_owned(),
        }
    }

    fn passed() -> Verdict {
        Verdict {
            status: "True",
            reason: "Passed",
            message: "all checks passed".to_owned(),
        }
    }
}

/// The `Available` condition.
pub fn condition(object: &Value) -> Option<&Value> {
    value::items(object, &["status", "conditions"])
        .iter()
        .find(|condition| value::get_str(condition, &["type"]) == Some("Available"))
}

/// Puts in the verdict; `false` when the object says so already.
pub fn set_condition(object: &mut Value, verdict: &Verdict, now: Timestamp) -> bool {
    let old = condition(object);
    let text = |field| old.map_or("", |old| value::str_or_empty(old, &[field]));
    if text("status") == verdict.status
        && text("reason") == verdict.reason
        && text("message") == verdict.message
    {
        return false;
    }
    let since = if text("status") == verdict.status {
        text("lastTransitionTime").to_owned()
    } else {
        time::format(now)
    };
    let new = json!({
        "type": "Available",
        "status": verdict.status,
        "lastTransitionTime": since,
        "reason": verdict.reason,
        "message": verdict.message,
    });
    let mut conditions: Vec<Value> = value::items(object, &["status", "conditions"]).to_vec();
    let old = conditions
        .iter_mut()
        .find(|condition| value::get_str(condition, &["type"]) == Some("Available"));
    match old {
        Some(old) => *old = new,
        None => conditions.push(new),
    }
    value::set(object, &["status", "conditions"], conditions);
    true
}

/// What stands against asking the server at all.
pub fn before_asking(
    target: &Target,
    service: Option<&Value>,
    slices: &[Arc<Value>],
) -> Result<(), Verdict> {
    let (name, namespace, port) = (&target.name, &target.namespace, target.port);
    let Some(service) = service else {
        return Err(Verdict::no(
            "ServiceNotFound",
            format!("service/{name} in {namespace:?} is not present"),
        ));
    };
    if value::get_str(service, &["spec", "type"]) != Some("ClusterIP") {
        return Ok(());
    }
    let Some(port_name) = crate::streaming::target::service_port_name(service, port) else {
        return Err(Verdict::no(
            "ServicePortError",
            format!("service/{name} in {namespace:?} is not listening on port {port}"),
        ));
    };
    let mut slices = slices
        .iter()
        .filter(|slice| service_of(slice) == Some((namespace.as_str(), name.as_str())))
        .peekable();
    if slices.peek().is_none() {
        return Err(Verdict::no(
            "EndpointsNotFound",
            format!("cannot find endpointslices for service/{name} in {namespace:?}"),
        ));
    }
    let serves = |slice: &Value| {
        let ready = value::items(slice, &["endpoints"])
            .iter()
            .any(|endpoint| value::get_bool(endpoint, &["conditions", "ready"]) != Some(false));
        ready
            && value::items(slice, &["ports"]).iter().any(|port| {
                value::str_or_empty(port, &["name"]) == port_name
                    && value::get(port, &["port"]).is_some()
            })
    };
    if !slices.any(|slice| serves(slice)) {
        return Err(Verdict::no(
            "MissingEndpoints",
            format!(
                "endpointslices for service/{name} in {namespace:?} have no addresses with port name {port_name:?}"
            ),
        ));
    }
    Ok(())
}

/// The service that an endpoint slice belongs to.
fn service_of(slice: &Value) -> Option<(&str, &str)> {
    let label = value::get_str(slice, &["metadata", "labels", "kubernetes.io/service-name"])?;
    Some((meta::namespace(slice), label))
}

/// What is known of the check of one APIService.
struct Check {
    due: Instant,
    failures: u32,
    running: bool,
    /// Something changed while the check ran.
    again: bool,
    /// Which state is checked; what a server says of itself is read again with every new one.
    state: String,
    read: Option<Instant>,
}

/// A check that has ended.
struct Ended {
    name: String,
    verdict: Verdict,
    said: Option<Remote>,
}

/// Keeps conditions as they should be, until `shutdown`.
pub async fn watch(
    aggregation: Arc<Aggregation>,
    writer: Arc<Loopback>,
    clock: Clock,
    shutdown: CancellationToken,
) {
    let mut changed = aggregation.changed.subscribe();
    changed.mark_changed();
    let mut checks: HashMap<String, Check> = HashMap::new();
    let mut running: JoinSet<Ended> = JoinSet::new();
    // Services and endpoints are followed from the first APIService with a service on.
    let mut backends: Option<BoxStream<'static, (usize, Change)>> = None;
    loop {
        let next = checks
            .values()
            .filter(|check| !check.running)
            .map(|check| check.due)
            .min();
        let wake = async {
            match next {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let backend = async {
            match &mut backends {
                Some(stream) => stream.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            Ok(()) = changed.changed() => {
                let table = aggregation.table();
                refresh(&aggregation, &writer, &clock, &table, &mut checks).await;
                if backends.is_none() && !checks.is_empty() {
                    backends = Some(follow_backends(&aggregation));
                }
            }
            Some((which, change)) = backend => {
                mark(&aggregation, which, &change, &mut checks);
            }
            Some(ended) = running.join_next() => match ended {
                Ok(ended) => settle(&aggregation, &writer, &clock, ended, &mut checks).await,
                Err(error) => {
                    tracing::error!(%error, "a check of an APIService failed");
                    // Which one is not known: all are looked at again.
                    for check in checks.values_mut() {
                        check.running = false;
                    }
                }
            },
            () = wake => {}
        }
        let now = Instant::now();
        let table = aggregation.table();
        for service in table.values().filter(|service| service.target.is_some()) {
            let Some(check) = checks.get_mut(&service.name) else {
                continue;
            };
            if check.running || check.due > now {
                continue;
            }
            check.running = true;
            check.again = false;
            let read = check
                .read
                .is_none_or(|at| now.duration_since(at) >= REFRESH);
            let (aggregation, service) = (aggregation.clone(), service.clone());
            running.spawn(async move { examine(&aggregation, &service, read).await });
        }
    }
}

/// Services, then their endpoint slices.
fn follow_backends(aggregation: &Aggregation) -> BoxStream<'static, (usize, Change)> {
    let stream = |index: usize, group: &str, resource: &str| {
        let at = GroupResource::new(group, resource);
        let changes = aggregation.objects.0.changes(&at);
        changes.map(move |change| (index, change)).boxed()
    };
    futures::stream::select(
        stream(0, "", "services"),
        stream(1, "discovery.k8s.io", "endpointslices"),
    )
    .boxed()
}

/// Takes up new APIServices, drops those that are gone, and marks this server's own as available.
async fn refresh(
    aggregation: &Aggregation,
    writer: &Loopback,
    clock: &Clock,
    table: &super::Table,
    checks: &mut HashMap<String, Check>,
) {
    let now = Instant::now();
    let mut remote = BTreeSet::new();
    for service in table.values() {
        let Some(target) = &service.target else {
            if !service.available {
                write(aggregation, writer, clock, &service.name, &Verdict::local()).await;
            }
            continue;
        };
        remote.insert(service.name.as_str());
        // The spec and the uid tell one state from another; our own writes of the status do not.
        let state = format!(
            "{} {}",
            meta::uid(&target.object),
            value::get(&target.object, &["spec"]).unwrap_or(&Value::Null)
        );
        match checks.get_mut(&service.name) {
            Some(check) if check.state == state => {}
            Some(check) => {
                check.state = state;
                check.due = now;
                check.again = check.running;
                check.read = None;
            }
            None => {
                let check = Check {
                    due: now,
                    failures: 0,
                    running: false,
                    again: false,
                    state,
                    read: None,
                };
                checks.insert(service.name.clone(), check);
            }
        }
    }
    checks.retain(|name, _| remote.contains(name.as_str()));
}

/// Has those APIServices checked whose service or endpoints changed.
fn mark(
    aggregation: &Aggregation,
    which: usize,
    change: &Change,
    checks: &mut HashMap<String, Check>,
) {
    let (Change::Applied(object) | Change::Deleted(object)) = change else {
        return;
    };
    let named = if which == 0 {
        Some((meta::namespace(object), meta::name(object)))
    } else {
        service_of(object)
    };
    let table = aggregation.table();
    for service in table.values() {
        let Some(target) = &service.target else {
            continue;
        };
        if named != Some((target.namespace.as_str(), target.name.as_str())) {
            continue;
        }
        if let Some(check) = checks.get_mut(&service.name) {
            check.due = Instant::now();
            check.again = check.running;
        }
    }
}

/// Looks at the service, asks the server, and reads what it says of itself if that is due.
async fn examine(aggregation: &Aggregation, service: &ApiService, read: bool) -> Ended {
    let (verdict, backend) = match check(aggregation, service).await {
        Ok(backend) => (Verdict::passed(), Some(backend)),
        Err(verdict) => (verdict, None),
    };
    let said = match backend {
        Some(backend) if read => {
            match remote::fetch(&backend, &service.group, &service.version).await {
                Ok(said) => Some(said),
                Err(why) => {
                    tracing::debug!(name = service.name, why, "discovery of an aggregated API");
                    None
                }
            }
        }
        _ => None,
    };
    Ended {
        name: service.name.clone(),
        verdict,
        said,
    }
}

async fn check(
    aggregation: &Aggregation,
    service: &ApiService,
) -> Result<crate::streaming::backend::Backend, Verdict> {
    let Some(target) = &service.target else {
        return Err(Verdict::local());
    };
    let objects = &aggregation.objects;
    let (name, namespace) = (&target.name, &target.namespace);
    let unknown = |reason: &'static str, why: String| Verdict {
        status: "Unknown",
        reason,
        message: format!("service/{name} in {namespace:?} cannot be checked due to: {why}"),
    };
    let found = objects
        .find("", "services", namespace, name)
        .await
        .map_err(|error| unknown("ServiceAccessError", error.message))?;
    let slices = objects
        .list("discovery.k8s.io", "endpointslices", Some(namespace))
        .await
        .map_err(|error| unknown("EndpointsAccessError", error.message))?;
    before_asking(target, found.as_deref(), &slices)?;

    let failed = |why: String| Verdict::no("FailedDiscoveryCheck", why);
    let tls = target.tls.as_ref().map_err(|why| failed(why.clone()))?;
    let endpoints = proxy::resolve(objects, target).await.map_err(failed)?;
    let path = remote::discovery_path(&service.group, &service.version);
    let mut asked: FuturesUnordered<_> = endpoints
        .into_iter()
        .take(ASKED)
        .map(|(host, port)| {
            let backend = proxy::backend(target, host, port, tls);
            let path = &path;
            async move {
                let url = remote::url(&backend, path);
                let why = match remote::ask(&backend, path, "application/json").await {
                    Ok(answer) if answer.status.is_success() => return Ok(backend),
                    Ok(answer) => {
                        format!("bad status from {url}: {}", answer.status.as_u16())
                    }
                    Err(why) => format!("Get {url:?}: {why}"),
                };
                Err(format!("failing or missing response from {url}: {why}"))
            }
        })
        .collect();
    let mut last = String::new();
    while let Some(answer) = asked.next().await {
        match answer {
            Ok(backend) => return Ok(backend),
            Err(why) => last = why,
        }
    }
    Err(failed(last))
}

/// Writes down how a check ended, and when to check again.
async fn settle(
    aggregation: &Aggregation,
    writer: &Loopback,
    clock: &Clock,
    ended: Ended,
    checks: &mut HashMap<String, Check>,
) {
    let Ended {
        name,
        verdict,
        said,
    } = ended;
    let Some(check) = checks.get_mut(&name) else {
        return;
    };
    let now = Instant::now();
    check.running = false;
    let passed = verdict.status == "True";
    let wait = if check.again {
        Duration::ZERO
    } else if passed {
        RESYNC
    } else {
        BACKOFF
            .1
            .min(BACKOFF.0 * 2u32.saturating_pow(check.failures.min(16)))
    };
    check.failures = if passed {
        0
    } else {
        check.failures.saturating_add(1)
    };
    check.due = now + wait;
    let service = aggregation
        .table()
        .values()
        .find(|service| service.name == name)
        .cloned();
    let Some(service) = service else {
        return;
    };
    let key = (service.group.clone(), service.version.clone());
    match said {
        Some(said) => {
            check.read = Some(now);
            aggregation.remember(key, said);
        }
        None if !passed || check.read.is_none() => {
            // What it said before is still the best that is known.
            check.read = None;
            let before = aggregation.remotes().get(&key).cloned();
            if before.as_ref().is_none_or(|before| before.current) {
                let before = before
                    .map(|before| Remote::clone(&before))
                    .unwrap_or_default();
                let stale = Remote {
                    current: false,
                    ..before
                };
                aggregation.remember(key, stale);
            }
        }
        None => {}
    }
    write(aggregation, writer, clock, &name, &verdict).await;
}

/// Writes a condition where it is not so yet. Another writer's change brings the next check.
async fn write(
    aggregation: &Aggregation,
    writer: &Loopback,
    clock: &Clock,
    name: &str,
    verdict: &Verdict,
) {
    let stored = match aggregation.objects.find(GROUP, RESOURCE, "", name).await {
        Ok(Some(stored)) => stored,
        Ok(None) => return,
        Err(error) => {
            tracing::warn!(name, error = error.message, "an APIService cannot be read");
            return;
        }
    };
    let mut object = Value::clone(&stored);
    if !set_condition(&mut object, verdict, clock.now()) {
        return;
    }
    let path = format!("/apis/{GROUP}/v1/{RESOURCE}/{name}/status");
    match writer.request(Method::PUT, &path, Some(&object)).await {
        Ok(_) => {}
        Err(error) if error.is_conflict() || error.is_not_found() => {}
        Err(error) => {
            tracing::warn!(
                name,
                error = error.message,
                "the condition of an APIService"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> Target {
        Target {
            namespace: "n".to_owned(),
            name: "s".to_owned(),
            port: 7443,
            tls: Err(String::new()),
            object: Arc::default(),
        }
    }

    #[test]
    fn what_stands_against_asking() {
        let service = |kind: &str, port: u16| {
            json!({"metadata": {"name": "s", "namespace": "n"},
                "spec": {"type": kind, "ports": [{"name": "https", "port": port}]}})
        };
        let slice = |of: &str, port: &str, ready: Option<bool>| {
            Arc::new(
                json!({"metadata": {"namespace": "n", "labels": {"kubernetes.io/service-name": of}},
                "ports": [{"name": port, "port": 443}], "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": ready}}]}),
            )
        };
        let good = slice("s", "https", Some(true));
        let missing =
            "endpointslices for service/s in \"n\" have no addresses with port name \"https\"";
        let cases = [
            (
                None,
                vec![good.clone()],
                Some(("ServiceNotFound", "service/s in \"n\" is not present")),
            ),
            (Some(service("ExternalName", 1)), vec![], None),
            (
                Some(service("ClusterIP", 443)),
                vec![good.clone()],
                Some((
                    "ServicePortError",
                    "service/s in \"n\" is not listening on port 7443",
                )),
            ),
            (
                Some(service("ClusterIP", 7443)),
                vec![slice("other", "https", Some(true))],
                Some((
                    "EndpointsNotFound",
                    "cannot find endpointslices for service/s in \"n\"",
                )),
            ),
            (
                Some(service("ClusterIP", 7443)),
                vec![slice("s", "http", Some(true))],
                Some(("MissingEndpoints", missing)),
            ),
            (
                Some(service("ClusterIP", 7443)),
                vec![slice("s", "https", Some(false))],
                Some(("MissingEndpoints", missing)),
            ),
            (
                Some(service("ClusterIP", 7443)),
                vec![slice("s", "https", None)],
                None,
            ),
            (
                Some(service("ClusterIP", 7443)),
                vec![slice("s", "http", None), good],
                None,
            ),
        ];
        for (service, slices, expected) in cases {
            let found = before_asking(&target(), service.as_ref(), &slices).err();
            let found = found
                .as_ref()
                .map(|verdict| (verdict.reason, verdict.message.as_str()));
            assert_eq!(found, expected, "{service:?} {slices:?}");
        }
    }

    #[test]
    fn conditions_remember_since_when() {
        let at = |text: &str| text.parse::<Timestamp>().expect("a time");
        let mut object = json!({"status": {"conditions": [{"type": "Other"}]}});
        let no = |why: &str| Verdict::no("FailedDiscoveryCheck", why.to_owned());
        let steps = [
            (
                no("a"),
                "2024-01-01T00:00:00Z",
                true,
                "2024-01-01T00:00:00Z",
            ),
            (
                no("a"),
                "2024-01-02T00:00:00Z",
                false,
                "2024-01-01T00:00:00Z",
            ),
            (
                no("b"),
                "2024-01-03T00:00:00Z",
                true,
                "2024-01-01T00:00:00Z",
            ),
            (
                Verdict::passed(),
                "2024-01-04T00:00:00Z",
                true,
                "2024-01-04T00:00:00Z",
            ),
        ];
        for (verdict, now, changes, since) in steps {
            assert_eq!(
                set_condition(&mut object, &verdict, at(now)),
                changes,
                "{now}"
            );
            let condition = condition(&object).expect("a condition");
            assert_eq!(condition["lastTransitionTime"], since, "{now}");
            assert_eq!(condition["message"], verdict.message, "{now}");
        }
        assert_eq!(value::items(&object, &["status", "conditions"]).len(), 2);
    }
}
