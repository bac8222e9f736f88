//! What an object costs a ResourceQuota (upstream `pkg/quota/v1/evaluator/core`). No I/O.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{
    Container, ContainerStatus, PersistentVolumeClaim, Pod, PodSpec, ResourceQuotaSpec,
    ScopedResourceSelectorRequirement, Service,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as WireQuantity;
use keelson_machinery::quantity::{Format, Quantity};

use crate::common::pods::is_terminal;

/// Amounts by resource name.
pub type Amounts = BTreeMap<String, Quantity>;

fn one() -> Quantity {
    Quantity::new(1, Format::DecimalSi)
}

fn add(amounts: &mut Amounts, name: impl Into<String>, amount: Quantity) {
    amounts
        .entry(name.into())
        .and_modify(|sum| sum.add(amount))
        .or_insert(amount);
}

/// Adds all of `more`.
pub fn add_all(amounts: &mut Amounts, more: Amounts) {
    for (name, amount) in more {
        add(amounts, name, amount);
    }
}

/// The API's form of amounts; a text that is no quantity is left out (the API does not let it in).
pub fn parse(wire: Option<&BTreeMap<String, WireQuantity>>) -> Amounts {
    let given = wire.into_iter().flatten();
    given
        .filter_map(|(name, text)| Some((name.clone(), Quantity::parse(&text.0).ok()?)))
        .collect()
}

/// Amounts as the API has them.
pub fn wire(amounts: &Amounts) -> BTreeMap<String, WireQuantity> {
    let given = amounts.iter();
    given
        .map(|(name, amount)| (name.clone(), WireQuantity(amount.to_string())))
        .collect()
}

fn most(into: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        let known = into.entry(name.clone()).or_insert(*amount);
        if amount > known {
            *known = *amount;
        }
    }
}

/// The sum over a pod's containers of what `of` gives: regular ones and sidecars run together, other init containers one by
/// one before them. Without overhead.
fn together(spec: &PodSpec, of: impl Fn(&Container) -> Amounts) -> Amounts {
    let mut running = Amounts::new();
    let (mut sidecars, mut starting) = (Amounts::new(), Amounts::new());
    for container in &spec.containers {
        add_all(&mut running, of(container));
    }
    for container in spec.init_containers.iter().flatten() {
        let mut needs = of(container);
        if container.restart_policy.as_deref() == Some("Always") {
            add_all(&mut running, needs.clone());
            add_all(&mut sidecars, needs);
            most(&mut starting, &sidecars);
        } else {
            add_all(&mut needs, sidecars.clone());
            most(&mut starting, &needs);
        }
    }
    most(&mut running, &starting);
    running
}

fn requests(container: &Container) -> Amounts {
    let resources = container.resources.as_ref();
    // What is limited and not requested is requested as limited; the API defaults it so.
    let mut amounts = parse(resources.and_then(|r| r.limits.as_ref()));
    amounts.extend(parse(resources.and_then(|r| r.requests.as_ref())));
    amounts
}

fn limits(container: &Container) -> Amounts {
    parse(container.resources.as_ref().and_then(|r| r.limits.as_ref()))
}

/// Whether a pod still takes resources: not once it has ended, or should have been gone (upstream `QuotaV1Pod`).
fn takes_resources(pod: &Pod, now: Timestamp) -> bool {
    let meta = &pod.metadata;
    let grace = SignedDuration::from_secs(meta.deletion_grace_period_seconds.unwrap_or(0));
    let overdue = meta
        .deletion_timestamp
        .as_ref()
        .is_some_and(|gone| gone.0.checked_add(grace).is_ok_and(|end| now > end));
    !is_terminal(pod) && !overdue
}

/// The status of a container that says what it has.
fn status_of<'a>(pod: &'a Pod, container: &Container) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let all = status.container_statuses.iter().flatten();
    all.chain(status.init_container_statuses.iter().flatten())
        .find(|one| one.name == container.name && one.resources.is_some())
}

/// Whether a resize was asked for that the node cannot do.
fn is_infeasible(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_deref());
    conditions
        .unwrap_or_default()
        .iter()
        .find(|condition| condition.type_ == "PodResizePending")
        .is_some_and(|condition| condition.reason.as_deref() == Some("Infeasible"))
}

/// Of the resources of a pod as a whole, those that can be set so.
fn pod_level(list: Option<&BTreeMap<String, WireQuantity>>) -> Amounts {
    let mut given = parse(list);
    given.retain(|name, _| {
        matches!(name.as_str(), "cpu" | "memory") || name.starts_with("hugepages-")
    });
    given
}

/// The cost of a pod.
pub fn of_pod(pod: &Pod, now: Timestamp) -> Amounts {
    let mut amounts = Amounts::from([("count/pods".to_owned(), one())]);
    let Some(spec) = pod.spec.as_ref().filter(|_| takes_resources(pod, now)) else {
        return amounts;
    };
    add(&mut amounts, "pods", one());
    // As component-helpers `PodRequests` and `PodLimits`: overhead adds to a limit only where there is one.
    let overhead = parse(spec.overhead.as_ref());
    let effective = |container: &Container| {
        let asked = requests(container);
        let Some(status) = status_of(pod, container) else {
            return asked;
        };
        let mut needed = parse(status.resources.as_ref().and_then(|r| r.requests.as_ref()));
        most(&mut needed, &parse(status.allocated_resources.as_ref()));
        if !is_infeasible(pod) {
            most(&mut needed, &asked);
        }
        needed
    };
    let mut requested = together(spec, effective);
    requested.extend(pod_level(
        spec.resources.as_ref().and_then(|r| r.requests.as_ref()),
    ));
    add_all(&mut requested, overhead.clone());
    for (name, amount) in requested {
        let native = matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage");
        if native || name.starts_with("hugepages-") {
            add(&mut amounts, name.clone(), amount);
        }
        add(&mut amounts, format!("requests.{name}"), amount);
    }
    let effective = |container: &Container| {
        let asked = limits(container);
        let Some(status) = status_of(pod, container) else {
            return asked;
        };
        let mut granted = parse(status.resources.as_ref().and_then(|r| r.limits.as_ref()));
        if !is_infeasible(pod) {
            most(&mut granted, &asked);
        }
        granted
    };
    let mut limited = together(spec, effective);
    limited.extend(pod_level(
        spec.resources.as_ref().and_then(|r| r.limits.as_ref()),
    ));
    for (name, mut amount) in limited {
        if let Some(more) = overhead.get(&name) {
            amount.add(*more);
        }
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
            add(&mut amounts, format!("limits.{name}"), amount);
        }
    }
    amounts
}

/// The cost of a Service.
pub fn of_service(service: &Service) -> Amounts {
    let spec = service.spec.as_ref();
    let ports = spec
        .and_then(|spec| spec.ports.as_deref())
        .unwrap_or_default();
    let assigned = ports
        .iter()
        .filter(|port| port.node_port.is_some_and(|n| n != 0))
        .count();
    let (node_ports, balancers) = match spec.and_then(|spec| spec.type_.as_deref()) {
        Some("NodePort") => (ports.len(), 0),
        Some("LoadBalancer")
            if spec.and_then(|spec| spec.allocate_load_balancer_node_ports) == Some(false) =>
        {
            (assigned, 1)
        }
        Some("LoadBalancer") => (ports.len(), 1),
        _ => (0, 0),
    };
    let number =
        |count: usize| Quantity::new(i64::try_from(count).unwrap_or(i64::MAX), Format::DecimalSi);
    Amounts::from([
        ("count/services".to_owned(), one()),
        ("services".to_owned(), one()),
        ("services.nodeports".to_owned(), number(node_ports)),
        ("services.loadbalancers".to_owned(), number(balancers)),
    ])
}

/// The cost of a claim.
pub fn of_claim(claim: &PersistentVolumeClaim) -> Amounts {
    let spec = claim.spec.as_ref();
    let requested = spec.and_then(|spec| spec.resources.as_ref()?.requests.as_ref());
    let storage = parse(requested).remove("storage");
    // What was granted counts when it is more, as after a failed expansion.
    let granted = claim
        .status
        .as_ref()
        .and_then(|status| status.allocated_resources.as_ref());
    let granted = parse(granted).remove("storage");
    let storage = storage.map(|asked| {
        let mut most = granted.map_or(asked, |granted| asked.max(granted));
        most.round_up_to(0);
        most
    });
    let mut amounts = Amounts::from([
        ("count/persistentvolumeclaims".to_owned(), one()),
        ("persistentvolumeclaims".to_owned(), one()),
    ]);
    let annotated = claim.metadata.annotations.as_ref();
    let class = annotated
        .and_then(|a| a.get("volume.beta.kubernetes.io/storage-class").cloned())
        .or_else(|| spec.and_then(|spec| spec.storage_class_name.clone()))
        .filter(|class| !class.is_empty());
    let prefix = class.map(|class| format!("{class}.storageclass.storage.k8s.io/"));
    if let Some(prefix) = &prefix {
        add(
            &mut amounts,
            format!("{prefix}persistentvolumeclaims"),
            one(),
        );
    }
    if let Some(storage) = storage {
        add(&mut amounts, "requests.storage", storage);
        if let Some(prefix) = prefix {
            add(&mut amounts, format!("{prefix}requests.storage"), storage);
        }
    }
    amounts
}

/// The VolumeAttributesClasses that a claim has, wants, or is on the way to.
pub fn attributes_classes(claim: &PersistentVolumeClaim) -> Vec<&str> {
    let spec = claim.spec.as_ref();
    let status = claim.status.as_ref();
    let given = [
        spec.and_then(|spec| spec.volume_attributes_class_name.as_deref()),
        status.and_then(|status| status.current_volume_attributes_class_name.as_deref()),
        status.and_then(|status| {
            let modify = status.modify_volume_status.as_ref()?;
            modify.target_volume_attributes_class_name.as_deref()
        }),
    ];
    let mut classes: Vec<&str> = given
        .into_iter()
        .flatten()
        .filter(|class| !class.is_empty())
        .collect();
    classes.sort_unstable();
    classes.dedup();
    classes
}

/// Whether a quota is only about some objects.
pub fn is_scoped(quota: &ResourceQuotaSpec) -> bool {
    quota.scopes.iter().flatten().next().is_some() || selected(quota).next().is_some()
}

fn selected(quota: &ResourceQuotaSpec) -> impl Iterator<Item = &ScopedResourceSelectorRequirement> {
    let selector = quota.scope_selector.iter();
    selector.flat_map(|selector| selector.match_expressions.iter().flatten())
}

/// Whether a quota covers a claim (upstream `pvcMatchesScopeFunc`).
pub fn covers_claim(quota: &ResourceQuotaSpec, claim: &PersistentVolumeClaim) -> bool {
    let scope = |name: &str| name == "VolumeAttributesClass";
    let classes = attributes_classes(claim);
    let plain = quota.scopes.iter().flatten();
    plain.clone().all(|name| scope(name) && !classes.is_empty())
        && selected(quota).all(|wanted| {
            let values = wanted.values.as_deref().unwrap_or_default();
            let listed = |class: &&str| values.iter().any(|value| value == class);
            scope(&wanted.scope_name)
                && match wanted.operator.as_str() {
                    "In" => classes.iter().any(listed),
                    "NotIn" => classes.is_empty() || !classes.iter().all(listed),
                    "Exists" => !classes.is_empty(),
                    "DoesNotExist" => classes.is_empty(),
                    _ => false,
                }
        })
}

/// Whether a hard limit's name is one that pods, Services or claims are counted under (upstream `MatchingResources`).
pub fn is_counted(name: &str) -> bool {
    const NAMES: [&str; 16] = [
        "count/persistentvolumeclaims",
        "count/pods",
        "count/services",
        "cpu",
        "ephemeral-storage",
        "limits.cpu",
        "limits.ephemeral-storage",
        "limits.memory",
        "memory",
        "persistentvolumeclaims",
        "pods",
        "requests.cpu",
        "requests.ephemeral-storage",
        "requests.memory",
        "requests.storage",
        "services",
    ];
    let extended = name.contains('/') && !name.contains("kubernetes.io/");
    NAMES.contains(&name)
        || matches!(name, "services.nodeports" | "services.loadbalancers")
        || name.starts_with("hugepages-")
        || name.starts_with("requests.hugepages-")
        || (name.starts_with("requests.")
            && (extended || name.starts_with("requests.deviceclass.resource.kubernetes.io/")))
        || name.ends_with(".storageclass.storage.k8s.io/persistentvolumeclaims")
        || name.ends_with(".storageclass.storage.k8s.io/requests.storage")
}

/// Whether a quota covers a pod (upstream `podMatchesScopeFunc`).
pub fn covers(quota: &ResourceQuotaSpec, pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else {
        return false;
    };
    quota
        .scopes
        .iter()
        .flatten()
        .all(|scope| in_scope(scope, None, spec))
        && selected(quota)
            .all(|requirement| in_scope(&requirement.scope_name, Some(requirement), spec))
}

fn in_scope(
    scope: &str,
    requirement: Option<&ScopedResourceSelectorRequirement>,
    spec: &PodSpec,
) -> bool {
    match scope {
        "Terminating" => spec
            .active_deadline_seconds
            .is_some_and(|seconds| seconds >= 0),
        "NotTerminating" => spec.active_deadline_seconds.is_none(),
        "BestEffort" => is_best_effort(spec),
        "NotBestEffort" => !is_best_effort(spec),
        "CrossNamespacePodAffinity" => crosses_namespaces(spec),
        "PriorityClass" => {
            let class = spec
                .priority_class_name
                .as_deref()
                .filter(|class| !class.is_empty());
            let Some(requirement) = requirement else {
                return class.is_some();
            };
            let values = requirement.values.as_deref().unwrap_or_default();
            let listed = class.is_some_and(|class| values.iter().any(|value| value == class));
            match requirement.operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => class.is_some(),
                "DoesNotExist" => class.is_none(),
                _ => false,
            }
        }
        _ => false,
    }
}

fn is_best_effort(spec: &PodSpec) -> bool {
    let all = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten());
    !all.into_iter().any(|container| {
        let needs = requests(container);
        ["cpu", "memory"]
            .iter()
            .any(|name| needs.get(*name).is_some_and(|amount| !amount.is_zero()))
    })
}

fn crosses_namespaces(spec: &PodSpec) -> bool {
    let affinity = spec.affinity.as_ref();
    let near = affinity.and_then(|affinity| affinity.pod_affinity.as_ref());
    let far = affinity.and_then(|affinity| affinity.pod_anti_affinity.as_ref());
    let required = near
        .and_then(|near| {
            near.required_during_scheduling_ignored_during_execution
                .as_ref()
        })
        .into_iter()
        .chain(far.and_then(|far| {
            far.required_during_scheduling_ignored_during_execution
                .as_ref()
        }))
        .flatten();
    let preferred = near
        .and_then(|near| {
            near.preferred_during_scheduling_ignored_during_execution
                .as_ref()
        })
        .into_iter()
        .chain(far.and_then(|far| {
            far.preferred_during_scheduling_ignored_during_execution
                .as_ref()
        }))
        .flatten()
        .map(|weighted| &weighted.pod_affinity_term);
    required.chain(preferred).any(|term| {
        term.namespace_selector.is_some()
            || term
                .namespaces
                .as_ref()
                .is_some_and(|list| !list.is_empty())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn show(amounts: &Amounts) -> String {
        let texts: Vec<String> = amounts
            .iter()
            .map(|(name, amount)| format!("{name}={amount}"))
            .collect();
        texts.join(" ")
    }

    #[test]
    fn pods_cost_what_they_may_use() {
        let now: Timestamp = "2024-01-01T00:00:00Z".parse().unwrap();
        let container = |cpu: &str| json!({"name": "c", "resources": {"requests": {"cpu": cpu}}});
        let cases = [
            (
                json!({"spec": {"containers": [{"name": "c", "resources": {
                    "requests": {"cpu": "100m", "memory": "1Gi"}, "limits": {"cpu": "1", "example.com/gpu": "2"}}}]}}),
                "count/pods=1 cpu=100m limits.cpu=1 memory=1Gi pods=1 requests.cpu=100m requests.example.com/gpu=2 requests.memory=1Gi",
            ),
            // Init containers run before; a sidecar beside.
            (
                json!({"spec": {"containers": [container("1")], "initContainers": [container("3")]}}),
                "count/pods=1 cpu=3 pods=1 requests.cpu=3",
            ),
            (
                json!({"spec": {"containers": [container("1")], "overhead": {"cpu": "250m"}, "initContainers": [
                    {"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "2"}}}, container("500m")]}}),
                "count/pods=1 cpu=3250m pods=1 requests.cpu=3250m",
            ),
            (
                json!({"spec": {"containers": [container("1")]}, "status": {"phase": "Succeeded"}}),
                "count/pods=1",
            ),
            (
                json!({"metadata": {"deletionTimestamp": "2023-12-31T00:00:00Z", "deletionGracePeriodSeconds": 30},
                    "spec": {"containers": [container("1")]}}),
                "count/pods=1",
            ),
        ];
        for (pod, expected) in cases {
            let parsed: Pod = serde_json::from_value(pod.clone()).unwrap();
            assert_eq!(show(&of_pod(&parsed, now)), expected, "{pod}");
        }
    }

    #[test]
    fn services_and_claims_cost_what_they_take() {
        let service = |spec| of_service(&serde_json::from_value(json!({"spec": spec})).unwrap());
        let two = json!([{"port": 1}, {"port": 2, "nodePort": 30000}]);
        let cases = [
            (json!({"type": "ClusterIP", "ports": two}), "0", "0"),
            (json!({"type": "NodePort", "ports": two}), "2", "0"),
            (json!({"type": "LoadBalancer", "ports": two}), "2", "1"),
            (
                json!({"type": "LoadBalancer", "ports": two, "allocateLoadBalancerNodePorts": false}),
                "1",
                "1",
            ),
        ];
        for (spec, node_ports, balancers) in cases {
            let cost = service(spec.clone());
            assert_eq!(cost["services.nodeports"].to_string(), node_ports, "{spec}");
            assert_eq!(
                cost["services.loadbalancers"].to_string(),
                balancers,
                "{spec}"
            );
        }
        let claim: PersistentVolumeClaim = serde_json::from_value(json!({
            "spec": {"storageClassName": "fast", "resources": {"requests": {"storage": "2Gi"}}}}))
        .unwrap();
        assert_eq!(
            show(&of_claim(&claim)),
            "count/persistentvolumeclaims=1 fast.storageclass.storage.k8s.io/persistentvolumeclaims=1 \
             fast.storageclass.storage.k8s.io/requests.storage=2Gi persistentvolumeclaims=1 requests.storage=2Gi"
        );
    }

    #[test]
    fn scopes_choose_pods() {
        let plain = json!({"containers": [{"name": "c"}]});
        let cpu = json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]});
        let timed = json!({"containers": [], "activeDeadlineSeconds": 5});
        let high = json!({"containers": [], "priorityClassName": "high"});
        let near = json!({"containers": [], "affinity": {"podAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "x", "namespaces": ["a"]}]}}});
        let select = |op: &str, values: &[&str]| {
            json!({"scopeSelector": {"matchExpressions": [
                {"scopeName": "PriorityClass", "operator": op, "values": values}]}})
        };
        let cases = [
            (json!({}), &plain, true),
            (json!({"scopes": ["BestEffort"]}), &plain, true),
            (json!({"scopes": ["BestEffort"]}), &cpu, false),
            (
                json!({"scopes": ["NotBestEffort", "NotTerminating"]}),
                &cpu,
                true,
            ),
            (
                json!({"scopes": ["NotBestEffort", "Terminating"]}),
                &cpu,
                false,
            ),
            (json!({"scopes": ["Terminating"]}), &timed, true),
            (json!({"scopes": ["PriorityClass"]}), &plain, false),
            (select("In", &["high"]), &high, true),
            (select("In", &["low"]), &high, false),
            (select("NotIn", &["low"]), &plain, true),
            (select("Exists", &[]), &high, true),
            (select("DoesNotExist", &[]), &high, false),
            (
                json!({"scopes": ["CrossNamespacePodAffinity"]}),
                &near,
                true,
            ),
            (
                json!({"scopes": ["CrossNamespacePodAffinity"]}),
                &plain,
                false,
            ),
        ];
        for (quota, spec, expected) in cases {
            let parsed: ResourceQuotaSpec = serde_json::from_value(quota.clone()).unwrap();
            let pod: Pod = serde_json::from_value(json!({"spec": spec})).unwrap();
            assert_eq!(covers(&parsed, &pod), expected, "{quota} {spec}");
        }
    }
}
