//! What an object costs a ResourceQuota, and what a quota's scopes may ask of it (upstream
//! `pkg/quota/v1/evaluator/core` and `k8s.io/apiserver/pkg/quota/v1/generic`). No I/O.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use keelson_machinery::meta;
use keelson_machinery::quantity::{Format, Quantity};
use keelson_machinery::value::{self, Value};

use crate::admission::limit_ranger::{Resources, resources, together};
use crate::admission::{AdmissionRequest, Operation};
use crate::registry::core::pod::qos_class;

/// Resources that are stored by nobody, and events, are not counted (upstream `DefaultIgnoredResources`).
const IGNORED: [(&str, &str); 10] = [
    ("", "bindings"),
    ("", "componentstatuses"),
    ("", "events"),
    ("authentication.k8s.io", "selfsubjectreviews"),
    ("authentication.k8s.io", "tokenreviews"),
    ("authorization.k8s.io", "localsubjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectrulesreviews"),
    ("authorization.k8s.io", "subjectaccessreviews"),
    ("events.k8s.io", "events"),
];

/// Counted under their own names too (upstream `legacyObjectCountAliases`).
const ALIASES: [&str; 4] = [
    "configmaps",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
];

/// What a quota counts of pods by name (upstream `podResources`).
const POD_NAMES: [&str; 11] = [
    "count/pods",
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
];

/// Of these a pod must say what it needs once a quota counts them (upstream `validationSet`), with the list and the
/// resource of a container in which they stand.
const REQUIRED: [(&str, &str, &str); 6] = [
    ("cpu", "requests", "cpu"),
    ("memory", "requests", "memory"),
    ("requests.cpu", "requests", "cpu"),
    ("requests.memory", "requests", "memory"),
    ("limits.cpu", "limits", "cpu"),
    ("limits.memory", "limits", "memory"),
];

const CLASS_SUFFIX: &str = ".storageclass.storage.k8s.io/";
const DEVICES_SUFFIX: &str = ".deviceclass.resource.k8s.io/devices";
/// The most devices that a claim can get, which is what a request for all of them may cost
/// (upstream `AllocationResultsMaxSize`).
const MAX_DEVICES: i64 = 32;

fn number(count: usize) -> Quantity {
    Quantity::new(i64::try_from(count).unwrap_or(i64::MAX), Format::DecimalSi)
}

/// How objects of a resource are counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Evaluator {
    /// By what they request and limit.
    Pod,
    /// With node ports and load balancers.
    Service,
    /// With the storage they request, by class.
    Claim,
    /// With the devices they request, by class.
    ResourceClaim,
    /// One by one, under these names.
    Count(Vec<String>),
}

impl Evaluator {
    /// For a resource; `None` when it is not counted.
    pub(super) fn of(group: &str, resource: &str) -> Option<Evaluator> {
        if IGNORED.contains(&(group, resource)) {
            return None;
        }
        Some(match (group, resource) {
            ("", "pods") => Evaluator::Pod,
            ("", "services") => Evaluator::Service,
            ("", "persistentvolumeclaims") => Evaluator::Claim,
            ("resource.k8s.io", "resourceclaims") => Evaluator::ResourceClaim,
            ("", _) => {
                let mut names = vec![format!("count/{resource}")];
                if ALIASES.contains(&resource) {
                    names.push(resource.to_owned());
                }
                Evaluator::Count(names)
            }
            _ => Evaluator::Count(vec![format!("count/{resource}.{group}")]),
        })
    }

    /// Whether the request may change what a quota counts.
    pub(super) fn handles(&self, request: &AdmissionRequest) -> bool {
        let (create, update) = (
            request.operation == Operation::Create,
            request.operation == Operation::Update,
        );
        let (new, old) = (request.object.as_ref(), request.old_object.as_deref());
        match (self, request.request.subresource.as_str()) {
            (Evaluator::Pod, "") if update => match (new, old) {
                (Some(new), Some(old)) => terminating(new) != terminating(old),
                _ => false,
            },
            (Evaluator::Pod, "resize") => update,
            (Evaluator::Claim, "status") => match (new, old) {
                (Some(new), Some(old)) => {
                    let granted = |claim: &Value| {
                        resources(value::get(claim, &["status", "allocatedResources"]))
                    };
                    granted(new) != granted(old)
                        || attributes_classes(new) != attributes_classes(old)
                }
                _ => false,
            },
            (Evaluator::Service | Evaluator::Claim | Evaluator::ResourceClaim, "") => {
                create || update
            }
            (_, "") => create,
            _ => false,
        }
    }

    /// Whether a hard limit of this name is about such objects.
    pub(super) fn counts(&self, name: &str) -> bool {
        match self {
            Evaluator::Pod => {
                POD_NAMES.contains(&name)
                    || name.starts_with("hugepages-")
                    || name.starts_with("requests.hugepages-")
                    || is_extended_for_quota(name)
            }
            Evaluator::Service => matches!(
                name,
                "count/services" | "services" | "services.nodeports" | "services.loadbalancers"
            ),
            Evaluator::Claim => {
                let of_class = |what: &str| {
                    name.strip_suffix(what)
                        .is_some_and(|class| class.ends_with(CLASS_SUFFIX))
                };
                matches!(
                    name,
                    "count/persistentvolumeclaims" | "persistentvolumeclaims" | "requests.storage"
                ) || of_class("persistentvolumeclaims")
                    || of_class("requests.storage")
            }
            Evaluator::ResourceClaim => {
                name == "count/resourceclaims.resource.k8s.io" || name.ends_with(DEVICES_SUFFIX)
            }
            Evaluator::Count(names) => names.iter().any(|known| known == name),
        }
    }

    /// What the object costs and what scopes see of it.
    pub(super) fn measure(&self, object: &Value, now: Timestamp) -> Measured {
        match self {
            Evaluator::Pod => Measured {
                usage: of_pod(object, now),
                scopes: Scopes::of_pod(object),
                missing: missing(object),
            },
            Evaluator::Service => Measured::of(of_service(object), Scopes::None),
            Evaluator::Claim => {
                Measured::of(of_claim(object), Scopes::Claim(attributes_classes(object)))
            }
            Evaluator::ResourceClaim => Measured::of(of_resource_claim(object), Scopes::None),
            Evaluator::Count(names) => {
                let usage = names.iter().map(|name| (name.clone(), number(1))).collect();
                Measured::of(usage, Scopes::None)
            }
        }
    }
}

/// An extended resource as quotas name it (upstream `isExtendedResourceNameForQuota`).
fn is_extended_for_quota(name: &str) -> bool {
    let native = !name.contains('/') || name.contains("kubernetes.io/");
    (!native || name.starts_with("requests.deviceclass.resource.kubernetes.io/"))
        && name.starts_with("requests.")
}

/// A resource of containers that quotas count as `requests.<name>` (upstream `IsDRAExtendedResourceName`).
fn is_extended(name: &str) -> bool {
    name.starts_with("deviceclass.resource.kubernetes.io/")
        || (name.contains('/')
            && !name.contains("kubernetes.io/")
            && !name.starts_with("requests.")
            && meta::names::qualified_name(&format!("requests.{name}")).is_empty())
}

/// What a quota wants to know of an object.
#[derive(Clone, Debug, Default)]
pub(super) struct Measured {
    /// What it costs.
    pub(super) usage: Resources,
    /// What scopes see of it.
    pub(super) scopes: Scopes,
    /// Names that a pod's containers say nothing of, with those containers.
    pub(super) missing: BTreeMap<&'static str, BTreeSet<String>>,
}

impl Measured {
    fn of(usage: Resources, scopes: Scopes) -> Measured {
        Measured {
            usage,
            scopes,
            missing: BTreeMap::new(),
        }
    }
}

/// What scopes see of an object.
#[derive(Clone, Debug, Default)]
pub(super) enum Scopes {
    /// No scope matches.
    #[default]
    None,
    /// A pod.
    Pod {
        terminating: bool,
        best_effort: bool,
        class: Option<String>,
        crosses_namespaces: bool,
    },
    /// A claim, by its VolumeAttributesClasses.
    Claim(BTreeSet<String>),
}

/// A scope that a quota or the server's configuration asks for (`v1.ScopedResourceSelectorRequirement`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Requirement {
    pub(super) scope: String,
    pub(super) operator: String,
    pub(super) values: Vec<String>,
}

impl Requirement {
    pub(super) fn from_value(given: &Value) -> Requirement {
        let text = |field| value::str_or_empty(given, &[field]).to_owned();
        Requirement {
            scope: text("scopeName"),
            operator: text("operator"),
            values: value::items(given, &["values"])
                .iter()
                .filter_map(|one| one.as_str().map(str::to_owned))
                .collect(),
        }
    }

    /// As `labels.Selector` would match a set that has one of `present` under the scope's name.
    fn selects<'a>(&self, mut present: impl Iterator<Item = &'a str> + Clone) -> bool {
        let none = present.clone().next().is_none();
        let listed = |one: &str| self.values.iter().any(|value| value == one);
        match self.operator.as_str() {
            "In" => present.any(listed),
            "NotIn" => none || present.any(|one| !listed(one)),
            "Exists" => !none,
            "DoesNotExist" => none,
            _ => false,
        }
    }
}

impl Scopes {
    fn of_pod(pod: &Value) -> Scopes {
        let class = value::str_or_empty(pod, &["spec", "priorityClassName"]);
        Scopes::Pod {
            terminating: terminating(pod),
            best_effort: match value::str_or_empty(pod, &["status", "qosClass"]) {
                "" => qos_class(pod) == "BestEffort",
                known => known == "BestEffort",
            },
            class: (!class.is_empty()).then(|| class.to_owned()),
            crosses_namespaces: crosses_namespaces(pod),
        }
    }

    /// Whether the object is in the scope.
    pub(super) fn matches(&self, wanted: &Requirement) -> bool {
        match (self, wanted.scope.as_str()) {
            (Scopes::Pod { terminating, .. }, "Terminating") => *terminating,
            (Scopes::Pod { terminating, .. }, "NotTerminating") => !terminating,
            (Scopes::Pod { best_effort, .. }, "BestEffort") => *best_effort,
            (Scopes::Pod { best_effort, .. }, "NotBestEffort") => !best_effort,
            (Scopes::Pod { class, .. }, "PriorityClass") => {
                wanted.selects(class.as_deref().into_iter())
            }
            (
                Scopes::Pod {
                    crosses_namespaces, ..
                },
                "CrossNamespacePodAffinity",
            ) => *crosses_namespaces,
            (Scopes::Claim(classes), "VolumeAttributesClass") => {
                wanted.selects(classes.iter().map(String::as_str))
            }
            _ => false,
        }
    }
}

fn terminating(pod: &Value) -> bool {
    value::get_i64(pod, &["spec", "activeDeadlineSeconds"]).is_some_and(|seconds| seconds >= 0)
}

fn crosses_namespaces(pod: &Value) -> bool {
    let crosses = |term: &Value| {
        !value::items(term, &["namespaces"]).is_empty()
            || value::get(term, &["namespaceSelector"]).is_some()
    };
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let terms = |list: &str| value::items(pod, &["spec", "affinity", kind, list]);
        terms("requiredDuringSchedulingIgnoredDuringExecution")
            .iter()
            .any(crosses)
            || terms("preferredDuringSchedulingIgnoredDuringExecution")
                .iter()
                .filter_map(|weighted| value::get(weighted, &["podAffinityTerm"]))
                .any(crosses)
    })
}

/// A resource that can be set for a pod as a whole.
fn is_pod_level(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || name.starts_with("hugepages-")
}

fn pod_level(pod: &Value, which: &str) -> Resources {
    let mut given = resources(value::get(pod, &["spec", "resources", which]));
    given.retain(|name, _| is_pod_level(name));
    given
}

/// Names of [`REQUIRED`] that containers leave open. With resources of the pod as a whole, containers need not say.
fn missing(pod: &Value) -> BTreeMap<&'static str, BTreeSet<String>> {
    let mut missing: BTreeMap<&'static str, BTreeSet<String>> = BTreeMap::new();
    if !pod_level(pod, "requests").is_empty() || !pod_level(pod, "limits").is_empty() {
        return missing;
    }
    for container in ["containers", "initContainers"]
        .iter()
        .flat_map(|list| value::items(pod, &["spec", list]))
    {
        for (name, list, resource) in REQUIRED {
            if value::get(container, &["resources", list, resource]).is_none() {
                let named = value::str_or_empty(container, &["name"]).to_owned();
                missing.entry(name).or_default().insert(named);
            }
        }
    }
    missing
}

fn raise(to: &mut Resources, other: Resources) {
    for (name, quantity) in other {
        let entry = to.entry(name).or_insert(quantity);
        if quantity > *entry {
            *entry = quantity;
        }
    }
}

/// What a container needs while a resize of it is under way: the most of what is asked, granted and in effect
/// (upstream `determineEffectiveRequests` and `determineEffectiveLimits`).
fn effective(pod: &Value, container: &Value, which: &str) -> Resources {
    let asked = resources(value::get(container, &["resources", which]));
    let name = value::str_or_empty(container, &["name"]);
    let status = ["containerStatuses", "initContainerStatuses"]
        .iter()
        .flat_map(|list| value::items(pod, &["status", list]))
        .find(|status| value::str_or_empty(status, &["name"]) == name)
        .filter(|status| value::get(status, &["resources"]).is_some());
    let Some(status) = status else {
        return asked;
    };
    let infeasible = value::items(pod, &["status", "conditions"])
        .iter()
        .find(|condition| value::get_str(condition, &["type"]) == Some("PodResizePending"))
        .is_some_and(|condition| value::get_str(condition, &["reason"]) == Some("Infeasible"));
    let mut needed = resources(value::get(status, &["resources", which]));
    if which == "requests" {
        raise(
            &mut needed,
            resources(value::get(status, &["allocatedResources"])),
        );
    }
    if !infeasible {
        raise(&mut needed, asked);
    }
    needed
}

/// Whether a pod still takes resources: not once it has ended, or should have been gone (upstream `QuotaV1Pod`).
fn takes_resources(pod: &Value, now: Timestamp) -> bool {
    if matches!(
        value::str_or_empty(pod, &["status", "phase"]),
        "Failed" | "Succeeded"
    ) {
        return false;
    }
    let grace = meta::deletion_grace_period_seconds(pod);
    let gone: Option<Timestamp> = meta::deletion_timestamp(pod).and_then(|text| text.parse().ok());
    match (gone, grace) {
        (Some(gone), Some(grace)) => gone
            .checked_add(SignedDuration::from_secs(grace))
            .map_or(true, |end| now <= end),
        _ => true,
    }
}

fn add(to: &mut Resources, name: impl Into<String>, quantity: Quantity) {
    to.entry(name.into())
        .and_modify(|sum| sum.add(quantity))
        .or_insert(quantity);
}

/// The cost of a pod (upstream `PodUsageFunc`).
fn of_pod(pod: &Value, now: Timestamp) -> Resources {
    let mut usage = Resources::from([("count/pods".to_owned(), number(1))]);
    if !takes_resources(pod, now) {
        return usage;
    }
    add(&mut usage, "pods", number(1));
    let overhead = resources(value::get(pod, &["spec", "overhead"]));
    let mut requests = together(pod, |container| effective(pod, container, "requests"));
    requests.extend(pod_level(pod, "requests"));
    for (name, quantity) in &overhead {
        add(&mut requests, name.as_str(), *quantity);
    }
    for (name, quantity) in requests {
        match name.as_str() {
            "cpu" | "memory" | "ephemeral-storage" => {
                usage.insert(format!("requests.{name}"), quantity);
                usage.insert(name, quantity);
            }
            _ if name.starts_with("hugepages-") => {
                usage.insert(format!("requests.{name}"), quantity);
                usage.insert(name, quantity);
            }
            _ if is_extended(&name) => {
                usage.insert(format!("requests.{name}"), quantity);
            }
            _ => {}
        }
    }
    let mut limits = together(pod, |container| effective(pod, container, "limits"));
    limits.extend(pod_level(pod, "limits"));
    for (name, mut quantity) in limits {
        // Overhead makes no limit where there is none.
        if let Some(more) = overhead.get(&name) {
            quantity.add(*more);
        }
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
            usage.insert(format!("limits.{name}"), quantity);
        }
    }
    usage
}

fn of_service(service: &Value) -> Resources {
    let ports = value::items(service, &["spec", "ports"]);
    let assigned = ports
        .iter()
        .filter(|port| value::get_i64(port, &["nodePort"]).is_some_and(|number| number != 0))
        .count();
    // Node ports are allocated after admission: the intent counts.
    let (node_ports, balancers) = match value::str_or_empty(service, &["spec", "type"]) {
        "NodePort" => (ports.len(), 0),
        "LoadBalancer"
            if value::get_bool(service, &["spec", "allocateLoadBalancerNodePorts"])
                == Some(false) =>
        {
            (assigned, 1)
        }
        "LoadBalancer" => (ports.len(), 1),
        _ => (0, 0),
    };
    Resources::from([
        ("count/services".to_owned(), number(1)),
        ("services".to_owned(), number(1)),
        ("services.nodeports".to_owned(), number(node_ports)),
        ("services.loadbalancers".to_owned(), number(balancers)),
    ])
}

fn of_claim(claim: &Value) -> Resources {
    let mut usage = Resources::from([
        ("count/persistentvolumeclaims".to_owned(), number(1)),
        ("persistentvolumeclaims".to_owned(), number(1)),
    ]);
    let class = meta::annotation(claim, "volume.beta.kubernetes.io/storage-class")
        .or_else(|| value::get_str(claim, &["spec", "storageClassName"]))
        .filter(|class| !class.is_empty());
    let storage = |path: &[&str]| resources(value::get(claim, path)).remove("storage");
    // What was granted counts when it is more, as after a failed expansion.
    let requested = storage(&["spec", "resources", "requests"]);
    let wanted = requested.map(|requested| {
        let granted = storage(&["status", "allocatedResources"]);
        let mut most = granted.map_or(requested, |granted| requested.max(granted));
        most.round_up_to(0);
        most
    });
    if let Some(wanted) = wanted {
        usage.insert("requests.storage".to_owned(), wanted);
    }
    if let Some(class) = class {
        usage.insert(
            format!("{class}{CLASS_SUFFIX}persistentvolumeclaims"),
            number(1),
        );
        if let Some(wanted) = wanted {
            usage.insert(format!("{class}{CLASS_SUFFIX}requests.storage"), wanted);
        }
    }
    usage
}

/// The VolumeAttributesClasses that a claim has, wants, or is on the way to.
fn attributes_classes(claim: &Value) -> BTreeSet<String> {
    [
        &["spec", "volumeAttributesClassName"][..],
        &["status", "currentVolumeAttributesClassName"],
        &[
            "status",
            "modifyVolumeStatus",
            "targetVolumeAttributesClassName",
        ],
    ]
    .iter()
    .filter_map(|path| value::get_str(claim, path))
    .filter(|class| !class.is_empty())
    .map(str::to_owned)
    .collect()
}

fn of_resource_claim(claim: &Value) -> Resources {
    let devices = |request: &Value| match value::str_or_empty(request, &["allocationMode"]) {
        "ExactCount" => value::get_i64(request, &["count"]).unwrap_or(0),
        "All" => MAX_DEVICES,
        _ => 0,
    };
    let class = |request: &Value| {
        let class = value::str_or_empty(request, &["deviceClassName"]);
        format!("{class}{DEVICES_SUFFIX}")
    };
    let mut usage =
        Resources::from([("count/resourceclaims.resource.k8s.io".to_owned(), number(1))]);
    for request in value::items(claim, &["spec", "devices", "requests"]) {
        // Of alternatives, the dearest of each class counts.
        let mut most: BTreeMap<String, i64> = BTreeMap::new();
        let alternatives = value::items(request, &["firstAvailable"]);
        let chosen = match alternatives {
            [] => value::get(request, &["exactly"]).into_iter().collect(),
            some => some.iter().collect::<Vec<_>>(),
        };
        for one in chosen {
            let known = most.entry(class(one)).or_default();
            *known = (*known).max(devices(one));
        }
        for (name, count) in most {
            add(&mut usage, name, Quantity::new(count, Format::DecimalSi));
        }
    }
    usage
}
