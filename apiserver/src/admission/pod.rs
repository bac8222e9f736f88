//! Priority, DefaultTolerationSeconds and RuntimeClass: what Pods take over from classes and defaults
//! (`plugin/pkg/admission/{priority,defaulttolerationseconds,runtimeclass}`).

use std::sync::Arc;

use async_trait::async_trait;
use keelson_machinery::meta;
use keelson_machinery::quantity::Quantity;
use keelson_machinery::status::ApiError;
use keelson_machinery::text::quote;
use keelson_machinery::value::{self, Value};
use serde_json::json;

use super::service_account::push;
use super::{AdmissionRequest, Operation, Plugin};
use crate::objects::Objects;

/// Priority.
pub(super) struct Priority {
    pub(super) objects: Objects,
}

/// What a class says.
struct Resolved {
    name: String,
    priority: i64,
    preemption: Option<String>,
}

impl Resolved {
    fn of(class: &Value) -> Self {
        Resolved {
            name: meta::name(class).to_owned(),
            priority: value::get_i64(class, &["value"]).unwrap_or_default(),
            preemption: value::get_str(class, &["preemptionPolicy"]).map(str::to_owned),
        }
    }
}

impl Priority {
    /// The class that is marked as default; the lowest, should several have slipped in.
    async fn default_class(&self) -> Result<Option<Arc<Value>>, ApiError> {
        let classes = self
            .objects
            .list("scheduling.k8s.io", "priorityclasses", None)
            .await?;
        let marked = classes
            .into_iter()
            .filter(|class| value::get_bool(class, &["globalDefault"]) == Some(true));
        Ok(marked.min_by_key(|class| value::get_i64(class, &["value"])))
    }

    async fn resolve(&self, request: &AdmissionRequest, name: &str) -> Result<Resolved, ApiError> {
        if name.is_empty() {
            let class = self.default_class().await?;
            return Ok(class.map_or_else(
                || Resolved {
                    name: String::new(),
                    priority: 0,
                    preemption: Some("PreemptLowerPriority".into()),
                },
                |class| Resolved::of(&class),
            ));
        }
        let class = self
            .objects
            .find("scheduling.k8s.io", "priorityclasses", "", name)
            .await?;
        class.map(|class| Resolved::of(&class)).ok_or_else(|| {
            request.forbidden(format!("no PriorityClass with name {name} was found"))
        })
    }
}

#[async_trait]
impl Plugin for Priority {
    fn name(&self) -> &'static str {
        "Priority"
    }

    async fn admit(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        if !request.is("", "pods", "") {
            return Ok(());
        }
        let Some(pod) = &request.object else {
            return Ok(());
        };
        match request.operation {
            Operation::Create => {
                let resolved = self
                    .resolve(
                        request,
                        value::str_or_empty(pod, &["spec", "priorityClassName"]),
                    )
                    .await?;
                if let Some(given) = value::get_i64(pod, &["spec", "priority"])
                    .filter(|given| *given != resolved.priority)
                {
                    return Err(request.forbidden(format!(
                        "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {} from the given PriorityClass name",
                        resolved.priority
                    )));
                }
                let given = value::get_str(pod, &["spec", "preemptionPolicy"]);
                if let (Some(given), Some(computed)) = (given, &resolved.preemption)
                    && given != computed
                {
                    return Err(request.forbidden(format!(
                        "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission controller computed {computed} from the given PriorityClass name"
                    )));
                }
                if let Some(pod) = &mut request.object {
                    if !resolved.name.is_empty() {
                        value::set(pod, &["spec", "priorityClassName"], resolved.name);
                    }
                    value::set(pod, &["spec", "priority"], resolved.priority);
                    if let Some(preemption) = resolved.preemption {
                        value::set(pod, &["spec", "preemptionPolicy"], preemption);
                    }
                }
            }
            Operation::Update => {
                // What was worked out at creation stays, for clients that leave it out.
                let (Some(pod), Some(old)) = (&mut request.object, &request.old_object) else {
                    return Ok(());
                };
                for field in ["priority", "preemptionPolicy"] {
                    if value::get(pod, &["spec", field]).is_none()
                        && let Some(kept) = value::get(old, &["spec", field])
                    {
                        value::set(pod, &["spec", field], kept.clone());
                    }
                }
            }
            Operation::Delete | Operation::Connect => {}
        }
        Ok(())
    }

    async fn validate(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        if !request.is("scheduling.k8s.io", "priorityclasses", "")
            || !matches!(request.operation, Operation::Create | Operation::Update)
        {
            return Ok(());
        }
        let Some(class) = &request.object else {
            return Ok(());
        };
        if value::get_bool(class, &["globalDefault"]) == Some(true)
            && let Some(default) = self.default_class().await?
            && (request.operation == Operation::Create || meta::name(&default) != meta::name(class))
        {
            return Err(request.forbidden(format!(
                "PriorityClass {} is already marked as default. Only one default can exist",
                meta::name(&default)
            )));
        }
        Ok(())
    }
}

/// DefaultTolerationSeconds: Pods stay a while on a node that fails.
pub(super) struct DefaultTolerationSeconds {
    pub(super) not_ready: i64,
    pub(super) unreachable: i64,
}

#[async_trait]
impl Plugin for DefaultTolerationSeconds {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }

    async fn admit(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        if !request.is("", "pods", "")
            || !matches!(request.operation, Operation::Create | Operation::Update)
        {
            return Ok(());
        }
        let Some(pod) = &mut request.object else {
            return Ok(());
        };
        let missing: Vec<(&str, i64)> = [
            ("node.kubernetes.io/not-ready", self.not_ready),
            ("node.kubernetes.io/unreachable", self.unreachable),
        ]
        .into_iter()
        .filter(|(key, _)| {
            !value::items(pod, &["spec", "tolerations"])
                .iter()
                .any(|toleration| {
                    let text = |field: &str| value::str_or_empty(toleration, &[field]);
                    (text("key") == *key || text("key").is_empty())
                        && matches!(text("effect"), "" | "NoExecute")
                })
        })
        .collect();
        for (key, seconds) in missing {
            let toleration = json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds});
            push(pod, &["spec", "tolerations"], toleration);
        }
        Ok(())
    }
}

/// RuntimeClass: overhead and scheduling that come with a runtime.
pub(super) struct RuntimeClass {
    pub(super) objects: Objects,
}

impl RuntimeClass {
    async fn class(&self, request: &AdmissionRequest) -> Result<Option<Arc<Value>>, ApiError> {
        let Some(name) = request
            .object
            .as_ref()
            .and_then(|pod| value::get_str(pod, &["spec", "runtimeClassName"]))
        else {
            return Ok(None);
        };
        let class = self
            .objects
            .find("node.k8s.io", "runtimeclasses", "", name)
            .await?;
        class.map(Some).ok_or_else(|| {
            request.forbidden(format!(
                "pod rejected: RuntimeClass {} not found",
                quote(name)
            ))
        })
    }
}

#[async_trait]
impl Plugin for RuntimeClass {
    fn name(&self) -> &'static str {
        "RuntimeClass"
    }

    async fn admit(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        if request.operation != Operation::Create || !request.is("", "pods", "") {
            return Ok(());
        }
        let Some(class) = self.class(request).await? else {
            return Ok(());
        };
        let Some(mut pod) = request.object.take() else {
            return Ok(());
        };
        let result = take_over(&class, &mut pod);
        request.object = Some(pod);
        result.map_err(|why| request.forbidden(why))
    }

    async fn validate(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        if request.operation != Operation::Create || !request.is("", "pods", "") {
            return Ok(());
        }
        let class = self.class(request).await?;
        let Some(pod) = &request.object else {
            return Ok(());
        };
        let overhead = value::get(pod, &["spec", "overhead"]);
        match class.as_ref().and_then(|class| value::get(class, &["overhead"])) {
            Some(wanted) if same_quantities(value::get(wanted, &["podFixed"]), overhead) => Ok(()),
            Some(_) => Err(request.forbidden(MISMATCH)),
            None if overhead.is_some() => Err(request.forbidden("pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead")),
            None => Ok(()),
        }
    }
}

const MISMATCH: &str = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";

fn take_over(class: &Value, pod: &mut Value) -> Result<(), String> {
    if let Some(fixed) = value::get(class, &["overhead", "podFixed"]) {
        let own = value::get(pod, &["spec", "overhead"]);
        if own.is_some_and(|own| !value::is_empty(own)) && !same_quantities(Some(fixed), own) {
            return Err(MISMATCH.into());
        }
        value::set(pod, &["spec", "overhead"], fixed.clone());
    }
    for (key, wanted) in value::get_object(class, &["scheduling", "nodeSelector"])
        .into_iter()
        .flatten()
    {
        match value::get(pod, &["spec", "nodeSelector", key]) {
            Some(own) if own != wanted => {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                return Err(format!(
                    "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                    text(wanted),
                    text(own)
                ));
            }
            Some(_) => {}
            None => drop(value::set(
                pod,
                &["spec", "nodeSelector", key],
                wanted.clone(),
            )),
        }
    }
    let more = value::items(class, &["scheduling", "tolerations"]);
    if !more.is_empty() {
        let merged = merge_tolerations(value::items(pod, &["spec", "tolerations"]), more);
        value::set(pod, &["spec", "tolerations"], merged);
    }
    Ok(())
}

/// Equal as resource lists: `1` and `1000m` are the same.
fn same_quantities(a: Option<&Value>, b: Option<&Value>) -> bool {
    let list = |value: Option<&Value>| {
        let entries = value.and_then(Value::as_object).into_iter().flatten();
        let parsed = entries.map(|(name, text)| {
            (
                name.clone(),
                text.as_str().and_then(|text| Quantity::parse(text).ok()),
            )
        });
        parsed.collect::<std::collections::BTreeMap<_, _>>()
    };
    list(a) == list(b)
}

/// `tolerations.MergeTolerations`: each that another does not already include.
fn merge_tolerations(first: &[Value], second: &[Value]) -> Vec<Value> {
    let all: Vec<&Value> = first.iter().chain(second).collect();
    let mut merged: Vec<Value> = Vec::new();
    for (index, one) in all.iter().enumerate() {
        let covered = merged.iter().any(|other| includes(other, one))
            || all[index + 1..]
                .iter()
                .any(|other| other != one && includes(other, one));
        if !covered {
            merged.push((*one).clone());
        }
    }
    merged
}

/// Whether `a` tolerates all that `b` does.
fn includes(a: &Value, b: &Value) -> bool {
    if a == b {
        return true;
    }
    let text = |toleration: &'static str| {
        move |value: &Value| value::str_or_empty(value, &[toleration]).to_owned()
    };
    let (key, operator, effect, wanted) =
        (text("key"), text("operator"), text("effect"), text("value"));
    if key(b) != key(a) && !(key(a).is_empty() && operator(a) == "Exists") {
        return false;
    }
    if effect(b) != effect(a) && !effect(a).is_empty() {
        return false;
    }
    let seconds = |value: &Value| value::get_i64(value, &["tolerationSeconds"]);
    if effect(a) == "NoExecute"
        && let Some(limit) = seconds(a)
        && seconds(b).is_none_or(|other| other > limit)
    {
        return false;
    }
    match operator(a).as_str() {
        "Equal" | "" => matches!(operator(b).as_str(), "Equal") && wanted(a) == wanted(b),
        "Exists" => true,
        _ => false,
    }
}
