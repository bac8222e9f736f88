//! Which nodes a daemon belongs on (upstream `NodeShouldRunDaemonPod`).

use k8s_openapi::api::core::v1::{
    Affinity, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod,
    PodSpec, Toleration,
};

use crate::common::pods::tolerates;
use crate::common::{labels, name};

/// What every daemon tolerates (`AddOrUpdateDaemonPodTolerations`): it runs where nothing else can.
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];

/// Adds the daemon's tolerations to a pod.
pub fn add_tolerations(spec: &mut PodSpec) {
    let network = ("node.kubernetes.io/network-unavailable", "NoSchedule");
    let host_network = spec.host_network.unwrap_or(false);
    let tolerations = spec.tolerations.get_or_insert_default();
    for (key, effect) in TOLERATED.into_iter().chain(host_network.then_some(network)) {
        let new = Toleration {
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some(effect.to_owned()),
            ..Default::default()
        };
        if !tolerations.contains(&new) {
            tolerations.push(new);
        }
    }
}

/// Binds a pod to a node by required affinity on its name, whatever node terms it had
/// (`ReplaceDaemonSetPodNodeNameNodeAffinity`); the scheduler then places it.
pub fn pin(spec: &mut PodSpec, node: &str) {
    let term = NodeSelectorTerm {
        match_fields: Some(vec![NodeSelectorRequirement {
            key: "metadata.name".to_owned(),
            operator: "In".to_owned(),
            values: Some(vec![node.to_owned()]),
        }]),
        ..Default::default()
    };
    spec.affinity
        .get_or_insert_with(Affinity::default)
        .node_affinity
        .get_or_insert_with(NodeAffinity::default)
        .required_during_scheduling_ignored_during_execution = Some(NodeSelector {
        node_selector_terms: vec![term],
    });
}

/// The node a daemon's pod is meant for, bound or not yet.
pub fn target(pod: &Pod) -> Option<&str> {
    let spec = pod.spec.as_ref()?;
    if let Some(node) = spec.node_name.as_deref().filter(|n| !n.is_empty()) {
        return Some(node);
    }
    let terms = &spec
        .affinity
        .as_ref()?
        .node_affinity
        .as_ref()?
        .required_during_scheduling_ignored_during_execution
        .as_ref()?
        .node_selector_terms;
    terms.iter().find_map(|term| {
        term.match_fields.iter().flatten().find_map(|field| {
            let one = field.values.as_deref().unwrap_or_default();
            (field.key == "metadata.name" && field.operator == "In" && one.len() == 1)
                .then(|| one[0].as_str())
        })
    })
}

/// Whether a daemon belongs on a node, and whether one that is there may stay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fit {
    /// A new one may come.
    pub run: bool,
    /// One that is there may stay.
    pub stay: bool,
}

/// Judges a node for a pod of this template (with the daemon's tolerations already added).
pub fn fit(spec: &PodSpec, node: &Node) -> Fit {
    let no = Fit {
        run: false,
        stay: false,
    };
    let named = spec.node_name.as_deref().filter(|n| !n.is_empty());
    if named.is_some_and(|n| n != name(&node.metadata)) || !matches_node(spec, node) {
        return no;
    }
    let taints: Vec<_> = node
        .spec
        .iter()
        .flat_map(|s| s.taints.iter().flatten())
        .collect();
    let tolerated = |effects: &[&str]| {
        taints
            .iter()
            .filter(|t| effects.contains(&t.effect.as_str()))
            .all(|taint| {
                spec.tolerations
                    .iter()
                    .flatten()
                    .any(|t| tolerates(t, taint))
            })
    };
    if tolerated(&["NoSchedule", "NoExecute"]) {
        Fit {
            run: true,
            stay: true,
        }
    } else {
        // What already runs is only sent away by NoExecute.
        Fit {
            run: false,
            stay: tolerated(&["NoExecute"]),
        }
    }
}

fn matches_node(spec: &PodSpec, node: &Node) -> bool {
    let have = labels(&node.metadata);
    let selected = spec
        .node_selector
        .iter()
        .flatten()
        .all(|(k, v)| have.get(k) == Some(v));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|n| {
            n.required_during_scheduling_ignored_during_execution
                .as_ref()
        });
    selected
        && required.is_none_or(|required| {
            required
                .node_selector_terms
                .iter()
                .any(|term| matches_term(term, node))
        })
}

fn matches_term(term: &NodeSelectorTerm, node: &Node) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    // An empty term matches nothing.
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let have = labels(&node.metadata);
    expressions
        .iter()
        .all(|r| matches_requirement(r, have.get(&r.key).map(String::as_str)))
        && fields
            .iter()
            .all(|r| r.key == "metadata.name" && matches_requirement(r, Some(name(&node.metadata))))
}

fn matches_requirement(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let holds = |v: &str| values.iter().any(|w| w == v);
    let number = |text: &str| text.parse::<i64>().ok();
    let bound = values.first().and_then(|v| number(v));
    match requirement.operator.as_str() {
        "In" => value.is_some_and(holds),
        "NotIn" => value.is_none_or(|v| !holds(v)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => matches!((value.and_then(number), bound), (Some(v), Some(b)) if v > b),
        "Lt" => matches!((value.and_then(number), bound), (Some(v), Some(b)) if v < b),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Taint;
    use serde_json::json;

    #[test]
    fn where_daemons_run_and_stay() {
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": "n1", "labels": {"disk": "ssd", "cores": "8"}},
            "spec": {"taints": [{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]},
        }))
        .unwrap();
        let affinity = |key: &str, op: &str, values: serde_json::Value| {
            json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
                {"nodeSelectorTerms": [{"matchExpressions": [{"key": key, "operator": op, "values": values}]}]}}}})
        };
        let taint = |effect: &str| {
            let mut node = node.clone();
            let taints = node.spec.as_mut().unwrap().taints.as_mut().unwrap();
            taints.push(Taint {
                key: "gpu".into(),
                effect: effect.into(),
                ..Default::default()
            });
            node
        };
        for (spec, node, run, stay) in [
            (json!({}), node.clone(), true, true),
            (
                json!({"nodeSelector": {"disk": "hdd"}}),
                node.clone(),
                false,
                false,
            ),
            (json!({"nodeName": "n2"}), node.clone(), false, false),
            (
                affinity("cores", "Gt", json!(["4"])),
                node.clone(),
                true,
                true,
            ),
            (
                affinity("cores", "Lt", json!(["4"])),
                node.clone(),
                false,
                false,
            ),
            (
                affinity("zone", "NotIn", json!(["a"])),
                node.clone(),
                true,
                true,
            ),
            (json!({}), taint("NoSchedule"), false, true),
            (json!({}), taint("NoExecute"), false, false),
            (
                json!({"tolerations": [{"operator": "Exists"}]}),
                taint("NoExecute"),
                true,
                true,
            ),
        ] {
            let mut value = json!({"containers": []});
            value
                .as_object_mut()
                .unwrap()
                .extend(spec.as_object().unwrap().clone());
            let mut spec: PodSpec = serde_json::from_value(value.clone()).unwrap();
            add_tolerations(&mut spec);
            assert_eq!(fit(&spec, &node), Fit { run, stay }, "{value}");
            pin(&mut spec, "n1");
            let pod = Pod {
                spec: Some(PodSpec {
                    node_name: None,
                    ..spec
                }),
                ..Default::default()
            };
            assert_eq!(target(&pod), Some("n1"));
        }
    }
}
