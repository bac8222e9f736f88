//! LimitRanger: defaults and bounds for the resources of Pods and claims (`plugin/pkg/admission/limitranger`).

use std::collections::BTreeMap;

use async_trait::async_trait;
use keelson_machinery::meta;
use keelson_machinery::quantity::Quantity;
use keelson_machinery::status::ApiError;
use keelson_machinery::value::{self, Value};

use super::{AdmissionRequest, Operation, Plugin};
use crate::objects::Objects;

/// The annotation that tells what was filled in.
const ANNOTATION: &str = "kubernetes.io/limit-ranger";

/// The plugin.
pub(super) struct LimitRanger {
    pub(super) objects: Objects,
}

/// A resource list.
pub(super) type Resources = BTreeMap<String, Quantity>;

/// A resource list from its wire form; what is malformed was refused by validation.
pub(super) fn resources(list: Option<&Value>) -> Resources {
    let entries = list.and_then(Value::as_object).into_iter().flatten();
    entries
        .filter_map(|(name, text)| Some((name.clone(), Quantity::parse(text.as_str()?).ok()?)))
        .collect()
}

fn add(to: &mut Resources, more: &Resources) {
    for (name, quantity) in more {
        match to.get_mut(name) {
            Some(sum) => sum.add(*quantity),
            None => drop(to.insert(name.clone(), *quantity)),
        }
    }
}

fn raise(to: &mut Resources, other: &Resources) {
    for (name, quantity) in other {
        let entry = to.entry(name.clone()).or_insert(*quantity);
        if *quantity > *entry {
            *entry = *quantity;
        }
    }
}

/// What a Pod's containers need in all, each as `of` says: regular ones and sidecars together, or the greediest init
/// container with the sidecars before it.
pub(super) fn together(pod: &Value, of: impl Fn(&Value) -> Resources) -> Resources {
    let mut total = Resources::new();
    for container in value::items(pod, &["spec", "containers"]) {
        add(&mut total, &of(container));
    }
    let (mut sidecars, mut init) = (Resources::new(), Resources::new());
    for container in value::items(pod, &["spec", "initContainers"]) {
        let own = of(container);
        if value::get_str(container, &["restartPolicy"]) == Some("Always") {
            add(&mut total, &own);
            add(&mut sidecars, &own);
            raise(&mut init, &sidecars);
        } else {
            let mut together = own;
            add(&mut together, &sidecars);
            raise(&mut init, &together);
        }
    }
    raise(&mut total, &init);
    total
}

/// What a Pod needs in all (`which`: `requests` or `limits`), overhead not counted.
pub(super) fn pod_resources(pod: &Value, which: &str) -> Resources {
    let mut total = together(pod, |container| {
        resources(value::get(container, &["resources", which]))
    });
    for (name, quantity) in resources(value::get(pod, &["spec", "resources", which])) {
        if matches!(name.as_str(), "cpu" | "memory") || name.starts_with("hugepages-") {
            total.insert(name, quantity);
        }
    }
    total
}

fn supports(request: &AdmissionRequest) -> bool {
    match request.operation {
        Operation::Create => {
            request.is("", "pods", "") || request.is("", "persistentvolumeclaims", "")
        }
        Operation::Update => {
            request.is("", "pods", "resize") || request.is("", "persistentvolumeclaims", "")
        }
        Operation::Delete | Operation::Connect => false,
    }
}

fn going_away(request: &AdmissionRequest) -> bool {
    request
        .old_object
        .as_deref()
        .is_some_and(|old| meta::deletion_timestamp(old).is_some())
}

#[async_trait]
impl Plugin for LimitRanger {
    fn name(&self) -> &'static str {
        "LimitRanger"
    }

    async fn admit(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        if !supports(request) || going_away(request) || request.request.resource != "pods" {
            return Ok(());
        }
        let ranges = self
            .objects
            .list("", "limitranges", Some(&request.request.namespace))
            .await?;
        if let Some(pod) = &mut request.object {
            for range in &ranges {
                fill_in(range, pod);
            }
        }
        Ok(())
    }

    async fn validate(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        if !supports(request) || going_away(request) {
            return Ok(());
        }
        let Some(object) = &request.object else {
            return Ok(());
        };
        for range in self
            .objects
            .list("", "limitranges", Some(&request.request.namespace))
            .await?
        {
            let mut errors = if request.request.resource == "pods" {
                check_pod(&range, object)
            } else {
                check_claim(&range, object)
            };
            errors.dedup();
            match errors.as_slice() {
                [] => {}
                [one] => return Err(request.forbidden(one)),
                many => return Err(request.forbidden(format!("[{}]", many.join(", ")))),
            }
        }
        Ok(())
    }
}

/// Gives containers the defaults that they leave open (`PodMutateLimitFunc`).
fn fill_in(range: &Value, pod: &mut Value) {
    let mut defaults: [(&str, &str, BTreeMap<String, Value>); 2] = [
        ("requests", "request", BTreeMap::new()),
        ("limits", "limit", BTreeMap::new()),
    ];
    for limit in value::items(range, &["spec", "limits"])
        .iter()
        .filter(|limit| value::get_str(limit, &["type"]) == Some("Container"))
    {
        for (index, field) in ["defaultRequest", "default"].into_iter().enumerate() {
            let entries = value::get_object(limit, &[field]).into_iter().flatten();
            defaults[index]
                .2
                .extend(entries.map(|(name, quantity)| (name.clone(), quantity.clone())));
        }
    }
    let mut told: Vec<String> = Vec::new();
    for (list, word) in [
        ("containers", "container"),
        ("initContainers", "init container"),
    ] {
        let Some(containers) = value::get_mut(pod, &["spec", list]).and_then(Value::as_array_mut)
        else {
            continue;
        };
        for container in containers {
            for (field, what, wanted) in &defaults {
                let missing: Vec<_> = wanted
                    .iter()
                    .filter(|(name, _)| {
                        value::get(container, &["resources", field, name]).is_none()
                    })
                    .collect();
                if missing.is_empty() {
                    continue;
                }
                let names: Vec<&str> = missing.iter().map(|(name, _)| name.as_str()).collect();
                told.push(format!(
                    "{} {what} for {word} {}",
                    names.join(", "),
                    value::str_or_empty(container, &["name"])
                ));
                for (name, quantity) in missing {
                    value::set(container, &["resources", field, name], quantity.clone());
                }
            }
        }
    }
    if !told.is_empty() {
        value::set(
            pod,
            &["metadata", "annotations", ANNOTATION],
            format!("LimitRanger plugin set: {}", told.join("; ")),
        );
    }
}

fn check_pod(range: &Value, pod: &Value) -> Vec<String> {
    let mut errors = Vec::new();
    for limit in value::items(range, &["spec", "limits"]) {
        match value::str_or_empty(limit, &["type"]) {
            "Container" => {
                for container in ["containers", "initContainers"]
                    .iter()
                    .flat_map(|list| value::items(pod, &["spec", list]))
                {
                    let of = |which| resources(value::get(container, &["resources", which]));
                    check(
                        limit,
                        "Container",
                        &of("requests"),
                        &of("limits"),
                        &mut errors,
                    );
                }
            }
            "Pod" => check(
                limit,
                "Pod",
                &pod_resources(pod, "requests"),
                &pod_resources(pod, "limits"),
                &mut errors,
            ),
            _ => {}
        }
    }
    errors
}

fn check_claim(range: &Value, claim: &Value) -> Vec<String> {
    let mut errors = Vec::new();
    let requests = resources(value::get(claim, &["spec", "resources", "requests"]));
    for limit in value::items(range, &["spec", "limits"]) {
        let kind = value::str_or_empty(limit, &["type"]);
        if kind != "PersistentVolumeClaim" {
            continue;
        }
        for (name, bound) in &resources(value::get(limit, &["min"])) {
            errors.extend(below(kind, name, bound, &requests, &Resources::new()));
        }
        for (name, bound) in &resources(value::get(limit, &["max"])) {
            let prefix = format!("maximum {name} usage per {kind} is {bound}");
            match requests.get(name) {
                None => errors.push(format!("{prefix}.  No request is specified")),
                Some(request) if request > bound => {
                    errors.push(format!("{prefix}, but request is {request}"))
                }
                Some(_) => {}
            }
        }
    }
    errors
}

fn check(
    limit: &Value,
    kind: &str,
    requests: &Resources,
    limits: &Resources,
    errors: &mut Vec<String>,
) {
    for (name, bound) in &resources(value::get(limit, &["min"])) {
        errors.extend(below(kind, name, bound, requests, limits));
    }
    for (name, bound) in &resources(value::get(limit, &["max"])) {
        errors.extend(above(kind, name, bound, requests, limits));
    }
    for (name, bound) in &resources(value::get(limit, &["maxLimitRequestRatio"])) {
        errors.extend(ratio(kind, name, bound, requests, limits));
    }
}

/// `minConstraint`.
fn below(
    kind: &str,
    name: &str,
    bound: &Quantity,
    requests: &Resources,
    limits: &Resources,
) -> Option<String> {
    let prefix = format!("minimum {name} usage per {kind} is {bound}");
    match (requests.get(name), limits.get(name)) {
        (None, _) => Some(format!("{prefix}.  No request is specified")),
        (Some(request), _) if request < bound => {
            Some(format!("{prefix}, but request is {request}"))
        }
        (_, Some(limit)) if limit < bound => Some(format!("{prefix}, but limit is {limit}")),
        _ => None,
    }
}

/// `maxConstraint`.
fn above(
    kind: &str,
    name: &str,
    bound: &Quantity,
    requests: &Resources,
    limits: &Resources,
) -> Option<String> {
    let prefix = format!("maximum {name} usage per {kind} is {bound}");
    match (requests.get(name), limits.get(name)) {
        (_, None) => Some(format!("{prefix}.  No limit is specified")),
        (_, Some(limit)) if limit > bound => Some(format!("{prefix}, but limit is {limit}")),
        (Some(request), _) if request > bound => {
            Some(format!("{prefix}, but request is {request}"))
        }
        _ => None,
    }
}

/// `limitRequestRatioConstraint`.
fn ratio(
    kind: &str,
    name: &str,
    bound: &Quantity,
    requests: &Resources,
    limits: &Resources,
) -> Option<String> {
    let prefix = format!("{name} max limit to request ratio per {kind} is {bound}");
    let some = |list: &Resources| {
        list.get(name)
            .filter(|quantity| !quantity.is_zero())
            .map(Quantity::to_f64)
    };
    match (some(requests), some(limits)) {
        (None, _) => Some(format!(
            "{prefix}, but no request is specified or request is 0"
        )),
        (_, None) => Some(format!("{prefix}, but no limit is specified or limit is 0")),
        (Some(request), Some(limit)) if limit / request > bound.to_f64() => Some(format!(
            "{prefix}, but provided ratio is {:.6}",
            limit / request
        )),
        _ => None,
    }
}
