//! What Pods on a node take over from it, and what the node must be able to do (`plugin/pkg/admission/{podtopologylabels,
//! podresize,nodedeclaredfeatures}`).

use std::sync::Arc;

use async_trait::async_trait;
use keelson_machinery::meta;
use keelson_machinery::quantity::{Format, Quantity};
use keelson_machinery::status::{ApiError, Cause};
use keelson_machinery::text::quote;
use keelson_machinery::value::{self, Value};

use super::limit_ranger::{pod_resources, resources};
use super::{AdmissionRequest, Operation, Plugin};
use crate::objects::Objects;

/// Labels of a node that its Pods get too.
const TOPOLOGY: [&str; 2] = [
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];

/// PodTopologyLabels: a Pod learns its zone and region when it is bound.
pub(super) struct PodTopologyLabels {
    pub(super) objects: Objects,
}

#[async_trait]
impl Plugin for PodTopologyLabels {
    fn name(&self) -> &'static str {
        "PodTopologyLabels"
    }

    async fn admit(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        if request.operation != Operation::Create {
            return Ok(());
        }
        let Some(object) = &mut request.object else {
            return Ok(());
        };
        let info = &request.request;
        let pods = info.group.is_empty() && info.resource == "pods";
        let node = match info.subresource.as_str() {
            "" if pods => value::str_or_empty(object, &["spec", "nodeName"]),
            "binding" if pods && value::get_str(object, &["target", "kind"]) == Some("Node") => {
                value::str_or_empty(object, &["target", "name"])
            }
            _ => return Ok(()),
        };
        if node.is_empty() {
            return Ok(());
        }
        let Some(node) = self.objects.find("", "nodes", "", node).await? else {
            return Ok(());
        };
        for label in TOPOLOGY {
            if let Some(place) = value::get(&node, &["metadata", "labels", label]) {
                value::set(object, &["metadata", "labels", label], place.clone());
            }
        }
        Ok(())
    }
}

/// The Pod of an update that changes the spec of one on a node, before and after.
fn changed_on_node<'a>(
    request: &'a AdmissionRequest,
    subresources: &[&str],
) -> Option<(&'a Value, &'a Value)> {
    let info = &request.request;
    let is_update = request.operation == Operation::Update
        && info.group.is_empty()
        && info.resource == "pods"
        && subresources.contains(&info.subresource.as_str());
    let (new, old) = (request.object.as_ref()?, request.old_object.as_deref()?);
    let bound = !value::str_or_empty(new, &["spec", "nodeName"]).is_empty();
    // The generation grows with every change of the spec.
    (is_update && bound && meta::generation(new) != meta::generation(old)).then_some((new, old))
}

async fn node_of(
    objects: &Objects,
    request: &AdmissionRequest,
    pod: &Value,
) -> Result<Arc<Value>, ApiError> {
    let name = value::str_or_empty(pod, &["spec", "nodeName"]);
    let found = objects.find("", "nodes", "", name).await?;
    found.ok_or_else(|| request.forbidden(format!("node {} not found", quote(name))))
}

/// PodResizeValidator: a Pod may not grow beyond what its node has in all.
pub(super) struct PodResizeValidator {
    pub(super) objects: Objects,
}

#[async_trait]
impl Plugin for PodResizeValidator {
    fn name(&self) -> &'static str {
        "PodResizeValidator"
    }

    async fn validate(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        let Some((pod, _)) = changed_on_node(request, &["resize"]) else {
            return Ok(());
        };
        let node = node_of(&self.objects, request, pod).await?;
        match resize(pod, &node) {
            Ok(()) => Ok(()),
            Err((reason, why)) => {
                let mut error = request.forbidden(why);
                let details = error.details.get_or_insert_default();
                details.causes.push(Cause {
                    reason: reason.to_owned(),
                    ..Cause::default()
                });
                Err(error)
            }
        }
    }
}

/// Whether the node could ever hold the Pod, or the type of the cause and the reason why not.
fn resize(pod: &Value, node: &Value) -> Result<(), (&'static str, String)> {
    let system = value::get_str(node, &["metadata", "labels", "kubernetes.io/os"]);
    if let Some(other) = system.filter(|system| *system != "linux") {
        return Err((
            "UnsupportedPlatform",
            format!(
                "pod resize is only supported on linux nodes, node {} is {}",
                quote(meta::name(node)),
                quote(other)
            ),
        ));
    }
    let mut wanted = pod_resources(pod, "requests");
    for (name, more) in resources(value::get(pod, &["spec", "overhead"])) {
        wanted
            .entry(name)
            .and_modify(|sum| sum.add(more))
            .or_insert(more);
    }
    let has = resources(value::get(node, &["status", "allocatable"]));
    let mut short = Vec::new();
    for name in ["cpu", "memory"] {
        let amount = |list: &super::limit_ranger::Resources| {
            let zero = Quantity::new(0, Format::DecimalSi);
            list.get(name).copied().unwrap_or(zero)
        };
        let (wanted, has) = (amount(&wanted), amount(&has));
        if wanted > has {
            let number = |quantity: Quantity| match name {
                "cpu" => quantity.milli_value(),
                _ => quantity.value(),
            };
            short.push(format!(
                "{name}, requested: {}, allocatable: {}",
                number(wanted),
                number(has)
            ));
        }
    }
    if short.is_empty() {
        return Ok(());
    }
    Err((
        "NodeCapacity",
        format!(
            "node didn't have enough allocatable resources: {}",
            short.join("; ")
        ),
    ))
}

/// NodeDeclaredFeatureValidator: a change that only some kubelets can carry out needs a node that says it can.
pub(super) struct NodeDeclaredFeatureValidator {
    pub(super) objects: Objects,
}

#[async_trait]
impl Plugin for NodeDeclaredFeatureValidator {
    fn name(&self) -> &'static str {
        "NodeDeclaredFeatureValidator"
    }

    async fn validate(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        let Some((new, old)) = changed_on_node(request, &["", "resize"]) else {
            return Ok(());
        };
        let mut needed = features_for(new, old);
        if needed.is_empty() {
            return Ok(());
        }
        let node = node_of(&self.objects, request, new).await?;
        let declared = value::items(&node, &["status", "declaredFeatures"]);
        needed.retain(|feature| !declared.iter().any(|one| one.as_str() == Some(feature)));
        if needed.is_empty() {
            return Ok(());
        }
        Err(request.forbidden(format!(
            "pod update requires features {} which are not available on node {}",
            needed.join(", "),
            quote(meta::name(&node))
        )))
    }
}

/// What a node must declare for the change (upstream's `InferForUpdate` of all declared features).
fn features_for(new: &Value, old: &Value) -> Vec<&'static str> {
    let mut needed = Vec::new();
    let whole = |pod: &Value| value::get(pod, &["spec", "resources"]).cloned();
    let (before, after) = (whole(old), whole(new));
    if !value::semantic_eq(before.as_ref(), after.as_ref()) {
        needed.push("InPlacePodLevelResourcesVerticalScaling");
    }
    let init = |pod| value::items(pod, &["spec", "initContainers"]).iter();
    let resized = init(old).zip(init(new)).any(|(before, after)| {
        value::get_str(before, &["restartPolicy"]) != Some("Always")
            && !value::semantic_eq(
                value::get(before, &["resources"]),
                value::get(after, &["resources"]),
            )
    });
    if resized {
        needed.push("InPlacePodVerticalScalingInitContainers");
    }
    needed
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn resizes_fit_the_node_or_say_why_not() {
        let pod = |cpu: &str, memory: &str| {
            json!({"spec": {"overhead": {"cpu": "100m"}, "containers": [
                {"name": "c", "resources": {"requests": {"cpu": cpu, "memory": memory}}}]}})
        };
        let node = |os: &str| {
            json!({"metadata": {"name": "n", "labels": {"kubernetes.io/os": os}},
                "status": {"allocatable": {"cpu": "2", "memory": "1Gi"}}})
        };
        let cases = [
            ("1900m", "1Gi", "linux", None),
            (
                "2",
                "2Gi",
                "linux",
                Some(
                    "node didn't have enough allocatable resources: cpu, requested: 2100, allocatable: 2000; \
                     memory, requested: 2147483648, allocatable: 1073741824",
                ),
            ),
            (
                "1",
                "1Gi",
                "windows",
                Some("pod resize is only supported on linux nodes, node \"n\" is \"windows\""),
            ),
        ];
        for (cpu, memory, os, expected) in cases {
            let found = resize(&pod(cpu, memory), &node(os)).err();
            let found = found.as_ref().map(|(_, why)| why.as_str());
            assert_eq!(found, expected, "{cpu} {memory} {os}");
        }
    }

    #[test]
    fn changes_that_need_a_feature() {
        let init = |policy: Option<&str>, cpu: &str| {
            json!({"spec": {"initContainers": [{"name": "i", "restartPolicy": policy,
                "resources": {"requests": {"cpu": cpu}}}]}})
        };
        let whole = |cpu: &str| json!({"spec": {"resources": {"requests": {"cpu": cpu}}}});
        let cases = [
            (
                init(None, "1"),
                init(None, "2"),
                vec!["InPlacePodVerticalScalingInitContainers"],
            ),
            (init(Some("Always"), "1"), init(Some("Always"), "2"), vec![]),
            (
                whole("1"),
                whole("2"),
                vec!["InPlacePodLevelResourcesVerticalScaling"],
            ),
            (whole("1"), whole("1"), vec![]),
        ];
        for (old, new, expected) in cases {
            assert_eq!(features_for(&new, &old), expected, "{old} {new}");
        }
    }
}
