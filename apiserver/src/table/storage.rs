//! Cells of volumes, storage classes and devices.

use keelson_machinery::meta;
use keelson_machinery::value::Value;

use super::cell::{Context, at, condition, int, items, join, text};
use super::since;

/// The short forms of access modes, in upstream's order (`GetAccessModesAsString`).
fn access_modes(modes: &[Value]) -> String {
    [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ]
    .into_iter()
    .filter(|(mode, _)| modes.iter().any(|given| given == mode))
    .map(|(_, short)| short)
    .collect::<Vec<_>>()
    .join(",")
}

pub(super) fn spec_access_modes(volume: &Value, _: &Context) -> Value {
    access_modes(items(volume, "spec.accessModes")).into()
}

pub(super) fn bound_access_modes(claim: &Value, _: &Context) -> Value {
    match text(claim, "spec.volumeName") {
        "" => "".into(),
        _ => access_modes(items(claim, "status.accessModes")).into(),
    }
}

pub(super) fn bound_capacity(claim: &Value, _: &Context) -> Value {
    match (
        text(claim, "spec.volumeName"),
        text(claim, "status.capacity.storage"),
    ) {
        ("", _) => "".into(),
        (_, "") => "0".into(),
        (_, size) => size.into(),
    }
}

pub(super) fn phase(volume: &Value, _: &Context) -> Value {
    match meta::deletion_timestamp(volume) {
        Some(_) => "Terminating".into(),
        None => text(volume, "status.phase").into(),
    }
}

pub(super) fn claim(volume: &Value, _: &Context) -> Value {
    match at(volume, "spec.claimRef") {
        Some(claim) => format!("{}/{}", text(claim, "namespace"), text(claim, "name")).into(),
        None => "".into(),
    }
}

pub(super) fn class(volume: &Value, _: &Context) -> Value {
    // The annotation is older than the field and wins.
    meta::annotation(volume, "volume.beta.kubernetes.io/storage-class")
        .unwrap_or_else(|| text(volume, "spec.storageClassName"))
        .into()
}

pub(super) fn class_name(class: &Value, _: &Context) -> Value {
    let name = meta::name(class);
    let default = [
        "storageclass.kubernetes.io/is-default-class",
        "storageclass.beta.kubernetes.io/is-default-class",
    ]
    .iter()
    .any(|key| meta::annotation(class, key) == Some("true"));
    match default {
        true => format!("{name} (default)").into(),
        false => name.into(),
    }
}

pub(super) fn token_requests(driver: &Value, _: &Context) -> Value {
    match at(driver, "spec.tokenRequests").and_then(Value::as_array) {
        Some(requests) => join(requests, "audience").into(),
        None => "<unset>".into(),
    }
}

pub(super) fn claim_state(claim: &Value, _: &Context) -> Value {
    let deleted = meta::deletion_timestamp(claim).is_some();
    let allocated = at(claim, "status.allocation").is_some();
    let reserved = allocated && !items(claim, "status.reservedFor").is_empty();
    [
        ("deleted", deleted),
        ("pending", !allocated && !deleted),
        ("allocated", allocated),
        ("reserved", reserved),
    ]
    .into_iter()
    .filter_map(|(state, holds)| holds.then_some(state))
    .collect::<Vec<_>>()
    .join(",")
    .into()
}

/// The outcome of a ResourcePoolStatusRequest: the first condition that holds of the two that end it.
fn pool_outcome(request: &Value) -> Option<&Value> {
    items(request, "status.conditions")
        .iter()
        .find(|c| matches!(text(c, "type"), "Complete" | "Failed") && text(c, "status") == "True")
}

fn pools(request: &Value) -> Option<&[Value]> {
    let failed = pool_outcome(request).is_some_and(|c| text(c, "type") == "Failed");
    (at(request, "status").is_some() && !failed).then(|| items(request, "status.pools"))
}

pub(super) fn pool_devices(request: &Value, field: &str) -> Value {
    match pools(request) {
        Some(pools) => {
            let sum: i64 = pools.iter().map(|pool| int(pool, field)).sum();
            sum.to_string().into()
        }
        None => "-".into(),
    }
}

pub(super) fn pool_errors(request: &Value, _: &Context) -> Value {
    match pools(request) {
        Some(pools) => pools
            .iter()
            .filter(|pool| at(pool, "validationError").is_some())
            .count()
            .to_string()
            .into(),
        None => "-".into(),
    }
}

pub(super) fn pool_status(request: &Value, _: &Context) -> Value {
    let Some(outcome) = pool_outcome(request) else {
        return "Pending".into();
    };
    let shown = items(request, "status.pools").len() as i64;
    let all = int(request, "status.poolCount");
    match text(outcome, "type") {
        "Complete" if all > shown => format!("Complete ({shown}/{all} pools)").into(),
        kind => kind.into(),
    }
}

pub(super) fn pool_completed(request: &Value, context: &Context) -> Value {
    let complete = condition(request, "status.conditions", "Complete");
    match complete.filter(|c| text(c, "status") == "True") {
        Some(condition) if pool_outcome(request) == Some(condition) => {
            since(Some(text(condition, "lastTransitionTime")), context.now).into()
        }
        _ => "<none>".into(),
    }
}
