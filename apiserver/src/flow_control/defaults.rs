//! The FlowSchemas and PriorityLevelConfigurations that every cluster has (upstream
//! `k8s.io/apiserver/pkg/apis/flowcontrol/bootstrap`), and what must be written for them to be there. Two of each are
//! mandatory: they are always as they are here. The others are as here unless somebody turned their upkeep off.

use std::sync::Arc;

use keelson_machinery::meta::{self, GroupResource};
use keelson_machinery::value::{self, Value};
use serde_json::json;

use super::{GROUP, LEVELS, SCHEMAS};
use crate::bootstrap::Write;

/// Whether the spec follows what a release brings.
const UPKEEP: &str = "apf.kubernetes.io/autoupdate-spec";
const API_VERSION: &str = "flowcontrol.apiserver.k8s.io/v1";

fn object(kind: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": API_VERSION, "kind": kind,
        "metadata": {"name": name, "annotations": {UPKEEP: "true"}}, "spec": spec})
}

fn level(name: &str, limited: Value) -> Value {
    let spec = json!({"type": "Limited", "limited": limited});
    object("PriorityLevelConfiguration", name, spec)
}

fn queued(name: &str, shares: u32, lendable: u32, queues: u32, hand: u32) -> Value {
    let limited = json!({"nominalConcurrencyShares": shares, "lendablePercent": lendable, "limitResponse":
        {"type": "Queue", "queuing": {"queues": queues, "handSize": hand, "queueLengthLimit": 50}}});
    level(name, limited)
}

fn exempt_level() -> Value {
    let spec =
        json!({"type": "Exempt", "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0}});
    object("PriorityLevelConfiguration", "exempt", spec)
}

fn catch_all_level() -> Value {
    let limited = json!({"nominalConcurrencyShares": 5, "lendablePercent": 0, "limitResponse": {"type": "Reject"}});
    level("catch-all", limited)
}

/// The levels that must be, by name.
pub fn mandatory_levels() -> [(&'static str, Value); 2] {
    [("catch-all", catch_all_level()), ("exempt", exempt_level())]
}

/// All levels.
pub fn levels() -> Vec<Value> {
    vec![
        exempt_level(),
        catch_all_level(),
        queued("system", 30, 33, 64, 6),
        queued("node-high", 40, 25, 64, 6),
        queued("leader-election", 10, 0, 16, 4),
        queued("workload-high", 40, 50, 128, 6),
        queued("workload-low", 100, 90, 128, 6),
        queued("global-default", 20, 50, 128, 6),
    ]
}

fn schema(name: &str, level: &str, precedence: u32, by: Option<&str>, rule: Value) -> Value {
    let mut spec = json!({"priorityLevelConfiguration": {"name": level}, "matchingPrecedence": precedence, "rules": [rule]});
    if let Some(by) = by {
        spec["distinguisherMethod"] = json!({"type": by});
    }
    object("FlowSchema", name, spec)
}

fn groups(names: &[&str]) -> Vec<Value> {
    let of = |name: &&str| json!({"kind": "Group", "group": {"name": name}});
    names.iter().map(of).collect()
}

fn users(names: &[&str]) -> Vec<Value> {
    let of = |name: &&str| json!({"kind": "User", "user": {"name": name}});
    names.iter().map(of).collect()
}

fn system_accounts() -> Value {
    json!({"kind": "ServiceAccount", "serviceAccount": {"name": "*", "namespace": "kube-system"}})
}

fn resources(verbs: &[&str], group: &str, resources: &[&str], cluster: bool) -> Value {
    let mut rule =
        json!({"verbs": verbs, "apiGroups": [group], "resources": resources, "namespaces": ["*"]});
    if cluster {
        rule["clusterScope"] = true.into();
    }
    rule
}

/// Everything, for these subjects.
fn everything(subjects: Vec<Value>) -> Value {
    json!({
        "subjects": subjects,
        "resourceRules": [resources(&["*"], "*", &["*"], true)],
        "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
    })
}

/// Everybody.
fn anybody() -> Vec<Value> {
    groups(&["system:unauthenticated", "system:authenticated"])
}

const BY_USER: Option<&str> = Some("ByUser");
const BY_NAMESPACE: Option<&str> = Some("ByNamespace");

/// The schemas that must be, by name.
pub fn mandatory_schemas() -> [(&'static str, Value); 2] {
    let masters = everything(groups(&["system:masters"]));
    [
        ("exempt", schema("exempt", "exempt", 1, None, masters)),
        (
            "catch-all",
            schema(
                "catch-all",
                "catch-all",
                10000,
                BY_USER,
                everything(anybody()),
            ),
        ),
    ]
}

/// All schemas.
pub fn schemas() -> Vec<Value> {
    let mut leaders = users(&["system:kube-controller-manager", "system:kube-scheduler"]);
    leaders.push(system_accounts());
    let of_controllers = everything(users(&["system:kube-controller-manager"]));
    let of_scheduler = everything(users(&["system:kube-scheduler"]));
    let of_nodes = everything(groups(&["system:nodes"]));
    let of_accounts = everything(groups(&["system:serviceaccounts"]));
    let of_system = everything(vec![system_accounts()]);
    let leases = |verbs: &[&str]| resources(verbs, "coordination.k8s.io", &["leases"], false);
    let probes = json!({"subjects": anybody(), "nonResourceRules":
        [{"verbs": ["get"], "nonResourceURLs": ["/healthz", "/readyz", "/livez"]}]});
    let elections =
        json!({"subjects": leaders, "resourceRules": [leases(&["get", "create", "update"])]});
    let heartbeats = json!({"subjects": groups(&["system:nodes"]), "resourceRules":
        [resources(&["*"], "", &["nodes", "nodes/status"], true), leases(&["*"])]});
    let mut all: Vec<Value> = mandatory_schemas()
        .into_iter()
        .map(|(_, schema)| schema)
        .collect();
    all.extend([
        schema("system-nodes", "system", 500, BY_USER, of_nodes),
        schema("system-node-high", "node-high", 400, BY_USER, heartbeats),
        schema("probes", "exempt", 2, None, probes),
        schema(
            "system-leader-election",
            "leader-election",
            100,
            BY_USER,
            elections,
        ),
        schema(
            "kube-controller-manager",
            "workload-high",
            800,
            BY_NAMESPACE,
            of_controllers,
        ),
        schema(
            "kube-scheduler",
            "workload-high",
            800,
            BY_NAMESPACE,
            of_scheduler,
        ),
        schema(
            "kube-system-service-accounts",
            "workload-high",
            900,
            BY_NAMESPACE,
            of_system,
        ),
        schema(
            "service-accounts",
            "workload-low",
            9000,
            BY_USER,
            of_accounts,
        ),
        schema(
            "global-default",
            "global-default",
            9900,
            BY_USER,
            everything(anybody()),
        ),
    ]);
    all
}

/// What must be written for all of them to be there.
pub fn plan(schemas_now: &[Arc<Value>], levels_now: &[Arc<Value>]) -> Vec<Write> {
    let mut writes = Vec::new();
    // Levels first: a schema without one leads nowhere.
    for (resource, wanted, now) in [
        (LEVELS, levels(), levels_now),
        (SCHEMAS, schemas(), schemas_now),
    ] {
        let at = || GroupResource::new(GROUP, resource);
        for wanted in wanted {
            match crate::bootstrap::find(now, &wanted) {
                None => writes.push(Write::Create(at(), wanted)),
                Some(stored) => {
                    writes.extend(update(stored, &wanted).map(|next| Write::Update(at(), next)));
                }
            }
        }
    }
    writes
}

fn update(stored: &Value, wanted: &Value) -> Option<Value> {
    let name = meta::name(wanted);
    let mark = meta::annotation(stored, UPKEEP);
    // Of the exempt level, administrators may change how much it takes; all else of it cannot be changed anyway.
    let theirs = name == "exempt" && value::get(wanted, &["spec", "exempt"]).is_some();
    let mandatory = matches!(name, "exempt" | "catch-all") && !theirs;
    let upkeep = mandatory
        || match mark {
            Some("true") => true,
            Some("false") => false,
            // An older server, or a person, made it: as long as nobody changed it, it follows.
            _ => meta::generation(stored) == 1,
        };
    let mut next = stored.clone();
    let mark = if upkeep { "true" } else { "false" };
    value::set(&mut next, &["metadata", "annotations", UPKEEP], mark);
    let same = value::semantic_eq(value::get(stored, &["spec"]), value::get(wanted, &["spec"]));
    if upkeep && !same {
        next["spec"] = wanted["spec"].clone();
    }
    (next != *stored).then_some(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_took_over_is_written() {
        assert_eq!(plan(&[], &[]).len(), 8 + 11);
        let stored =
            |all: Vec<Value>| -> Vec<Arc<Value>> { all.into_iter().map(Arc::new).collect() };
        let all_levels = stored(levels());
        assert_eq!(plan(&stored(schemas()), &all_levels), []);
        // Spec, annotation, generation, and whether that is undone.
        let cases = [
            ("global-default", Some("true"), 2, Some("true")),
            ("global-default", Some("false"), 2, None),
            ("global-default", None, 1, Some("true")),
            ("global-default", None, 3, Some("false")),
            ("catch-all", Some("false"), 2, Some("true")),
        ];
        for (name, upkeep, generation, expected) in cases {
            let mut changed = schemas();
            for schema in changed
                .iter_mut()
                .filter(|schema| meta::name(schema) == name)
            {
                schema["spec"]["matchingPrecedence"] = 77.into();
                schema["metadata"] = json!({"name": name, "generation": generation});
                if let Some(upkeep) = upkeep {
                    schema["metadata"]["annotations"] = json!({UPKEEP: upkeep});
                }
            }
            let writes = plan(&stored(changed), &all_levels);
            let found = match writes.as_slice() {
                [] => None,
                [Write::Update(_, next)] => {
                    let undone = next["spec"]["matchingPrecedence"] != 77;
                    let mark = meta::annotation(next, UPKEEP);
                    assert_eq!(undone, mark == Some("true"), "{name} {upkeep:?}");
                    mark
                }
                other => panic!("{other:?}"),
            };
            assert_eq!(found, expected, "{name} {upkeep:?} {generation}");
        }
    }
}
