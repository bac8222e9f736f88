//! What may change in a pod (upstream `ValidatePodUpdate`, `ValidatePodEphemeralContainersUpdate`).

use keelson_machinery::status::field::{FieldError, Path};
use keelson_machinery::value::{self, Value};

use super::Found;

/// What upstream tells clients that change anything else.
const FIXED: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)\n";

/// Checks a change of a pod or of one of its subresources.
pub fn changes(subresource: &str, pod: &Value, old: &Value, found: &mut Found) {
    match subresource {
        "" => update(pod, old, found),
        "ephemeralcontainers" => ephemeral_containers(pod, old, found),
        _ => {}
    }
}

fn spec_items<'a>(pod: &'a Value, list: &str) -> &'a [Value] {
    value::items(pod, &["spec", list])
}

fn update(pod: &Value, old: &Value, found: &mut Found) {
    let spec = Path::new("spec");
    for list in ["containers", "initContainers"] {
        if spec_items(pod, list).len() != spec_items(old, list).len() {
            found.push(FieldError::forbidden(
                &spec.child(list),
                "pod updates may not add or remove containers",
            ));
            return;
        }
    }
    let deadline = |pod: &Value| value::get_i64(pod, &["spec", "activeDeadlineSeconds"]);
    let path = spec.child("activeDeadlineSeconds");
    match (deadline(pod), deadline(old)) {
        (Some(new), Some(old)) if old < new => {
            found.push(FieldError::invalid(
                &path,
                new,
                "must be less than or equal to previous value",
            ));
            return;
        }
        (None, Some(_)) => found.push(FieldError::invalid(
            &path,
            Value::Null,
            "must not update from a positive integer to nil value",
        )),
        _ => {}
    }
    tolerations(pod, old, found);
    gates(pod, old, found);
    let gated = !spec_items(old, "schedulingGates").is_empty();
    if !value::semantic_eq(Some(&allowed(pod, old, gated)), value::get(pod, &["spec"])) {
        found.push(FieldError::forbidden(&spec, FIXED));
    }
}

/// Existing tolerations stay, but for how long they tolerate.
fn tolerations(pod: &Value, old: &Value, found: &mut Found) {
    let without_seconds = |toleration: &Value| {
        let mut toleration = toleration.clone();
        value::remove(&mut toleration, &["tolerationSeconds"]);
        toleration
    };
    let new: Vec<Value> = spec_items(pod, "tolerations")
        .iter()
        .map(without_seconds)
        .collect();
    let kept = spec_items(old, "tolerations")
        .iter()
        .all(|toleration| new.contains(&without_seconds(toleration)));
    if !kept {
        found.push(FieldError::forbidden(
            &Path::new("spec").child("tolerations"),
            "existing toleration can not be modified except its tolerationSeconds",
        ));
    }
}

fn gates(pod: &Value, old: &Value, found: &mut Found) {
    let before = spec_items(old, "schedulingGates");
    for (index, gate) in spec_items(pod, "schedulingGates").iter().enumerate() {
        if !before
            .iter()
            .any(|other| other.get("name") == gate.get("name"))
        {
            let name = value::str_or_empty(gate, &["name"]);
            found.push(FieldError::forbidden(
                &Path::new("spec")
                    .child("schedulingGates")
                    .index(index)
                    .child("name"),
                format!("only deletion is allowed, but found new scheduling gate '{name}'"),
            ));
        }
    }
}

/// The old spec with every change of the new one that is allowed.
fn allowed(pod: &Value, old: &Value, gated: bool) -> Value {
    let mut spec = value::get(old, &["spec"]).cloned().unwrap_or(Value::Null);
    let mut take = |path: &[&str]| {
        let full: Vec<&str> = std::iter::once("spec")
            .chain(path.iter().copied())
            .collect();
        match value::get(pod, &full).cloned() {
            Some(new) => {
                value::set(&mut spec, path, new);
            }
            None => {
                value::remove(&mut spec, path);
            }
        }
    };
    take(&["activeDeadlineSeconds"]);
    take(&["tolerations"]);
    take(&["schedulingGates"]);
    let grace = ["spec", "terminationGracePeriodSeconds"];
    if value::get_i64(old, &grace).is_some_and(|seconds| seconds < 0)
        && value::get_i64(pod, &grace) == Some(1)
    {
        take(&["terminationGracePeriodSeconds"]);
    }
    if gated {
        // Where the pod goes may be narrowed until it is let go.
        if narrows(pod, old) {
            take(&["nodeSelector"]);
        }
        take(&["affinity", "nodeAffinity"]);
        if value::get_object(&spec, &["affinity"]).is_some_and(|affinity| affinity.is_empty()) {
            value::remove(&mut spec, &["affinity"]);
        }
    }
    for list in ["containers", "initContainers"] {
        let new = spec_items(pod, list);
        if let Some(containers) = value::get_mut(&mut spec, &[list]).and_then(Value::as_array_mut) {
            for (container, new) in containers.iter_mut().zip(new) {
                if let Some(image) = value::get(new, &["image"]).cloned() {
                    value::set(container, &["image"], image);
                }
            }
        }
    }
    spec
}

fn narrows(pod: &Value, old: &Value) -> bool {
    let selector = |pod| value::get_object(pod, &["spec", "nodeSelector"]);
    selector(old)
        .into_iter()
        .flatten()
        .all(|(key, value)| selector(pod).and_then(|new| new.get(key)) == Some(value))
}

fn ephemeral_containers(pod: &Value, old: &Value, found: &mut Found) {
    let path = Path::new("spec").child("ephemeralContainers");
    for container in spec_items(old, "ephemeralContainers") {
        let name = value::str_or_empty(container, &["name"]);
        let now = spec_items(pod, "ephemeralContainers")
            .iter()
            .find(|other| other.get("name") == container.get("name"));
        let what = match now {
            None => "removed",
            Some(now) if now != container => "changed",
            Some(_) => continue,
        };
        found.push(FieldError::forbidden(
            &path,
            format!("existing ephemeral containers {name:?} may not be {what}\n"),
        ));
    }
}
