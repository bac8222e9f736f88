//! The roles and bindings that every cluster has (`plugin/pkg/auth/authorizer/rbac/bootstrappolicy`), from `policy.txt`.
//!
//! The file is lines. `<Kind> [<namespace>/]<name>` begins an object; `+x` gives it the label
//! `rbac.authorization.k8s.io/x: "true"`, `=x` makes it gather the rules of all roles with that label, `> <Kind> <name>`
//! is what a binding points to. Below, indented: rules as `<groups> <resources> [@<name>...] : <verbs>` (groups joined
//! by commas, `core` for the core group) or `url <paths> : <verbs>`; subjects as `<Kind> [<namespace>/]<name>`.

use keelson_machinery::value::Value;
use serde_json::json;

use crate::authz::rbac::GROUP;
use crate::authz::rules::Rule;

const POLICY: &str = include_str!("policy.txt");

/// All objects, in their wire form. The order is fixed: roles before the bindings that point to them.
pub fn objects() -> Vec<Value> {
    parse(POLICY)
}

/// The rules of `system:node`, which the Node authorizer applies to resources it does not look at one by one.
pub fn node_rules() -> Vec<Rule> {
    let objects = objects();
    let role = objects.iter().find(|object| {
        object["kind"] == "ClusterRole" && object["metadata"]["name"] == "system:node"
    });
    role.map(Rule::all_of).unwrap_or_default()
}

/// The plural resource of a kind of this group.
pub fn resource(kind: &str) -> &'static str {
    match kind {
        "Role" => "roles",
        "ClusterRole" => "clusterroles",
        "RoleBinding" => "rolebindings",
        _ => "clusterrolebindings",
    }
}

fn parse(text: &str) -> Vec<Value> {
    let mut objects: Vec<Value> = Vec::new();
    for line in text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        match (line.strip_prefix("  "), objects.last_mut()) {
            (Some(rest), Some(object)) => add(object, rest),
            _ => objects.push(begin(line)),
        }
    }
    objects
}

fn begin(line: &str) -> Value {
    let (head, role) = line
        .split_once(" > ")
        .map_or((line, None), |(head, role)| (head, Some(role)));
    let mut words = head.split(' ');
    let (kind, name) = (
        words.next().unwrap_or_default(),
        words.next().unwrap_or_default(),
    );
    let mut object = json!({
        "apiVersion": format!("{GROUP}/v1"),
        "kind": kind,
        "metadata": {
            "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
            "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        },
    });
    // A slash belongs to a namespaced object's name only: some cluster roles have one in theirs.
    match name.split_once('/') {
        Some((namespace, name)) if matches!(kind, "Role" | "RoleBinding") => {
            object["metadata"]["namespace"] = namespace.into();
            object["metadata"]["name"] = name.into();
        }
        _ => object["metadata"]["name"] = name.into(),
    }
    for word in words {
        let label = format!("{GROUP}/{}", &word[1..]);
        if word.starts_with('+') {
            object["metadata"]["labels"][label] = "true".into();
        } else {
            push(
                &mut object["aggregationRule"]["clusterRoleSelectors"],
                json!({"matchLabels": {label: "true"}}),
            );
        }
    }
    match role.and_then(|role| role.split_once(' ')) {
        Some((kind, name)) => {
            object["roleRef"] = json!({"apiGroup": GROUP, "kind": kind, "name": name})
        }
        None => object["rules"] = Value::Null,
    }
    object
}

fn add(object: &mut Value, line: &str) {
    let Some((what, verbs)) = line.split_once(" : ") else {
        let (kind, name) = line.split_once(' ').unwrap_or((line, ""));
        let subject = match (kind, name.split_once('/')) {
            ("ServiceAccount", Some((namespace, name))) => {
                json!({"kind": kind, "namespace": namespace, "name": name})
            }
            _ => json!({"apiGroup": GROUP, "kind": kind, "name": name}),
        };
        return push(&mut object["subjects"], subject);
    };
    let owned =
        |list: &[&str]| -> Vec<String> { list.iter().map(|word| (*word).to_owned()).collect() };
    let verbs = verbs.split(' ').map(str::to_owned).collect();
    let words: Vec<&str> = what.split(' ').collect();
    let (first, rest) = words
        .split_first()
        .map_or(("", &[][..]), |(first, rest)| (*first, rest));
    let rule = if first == "url" {
        Rule {
            verbs,
            non_resource_urls: owned(rest),
            ..Rule::default()
        }
    } else {
        let (names, resources): (Vec<&str>, Vec<&str>) =
            rest.iter().partition(|word| word.starts_with('@'));
        Rule {
            verbs,
            api_groups: first
                .split(',')
                .map(|group| {
                    if group == "core" {
                        String::new()
                    } else {
                        group.to_owned()
                    }
                })
                .collect(),
            resources: owned(&resources),
            resource_names: names.iter().map(|name| name[1..].to_owned()).collect(),
            non_resource_urls: Vec::new(),
        }
    };
    push(&mut object["rules"], rule.to_value());
}

fn push(list: &mut Value, item: Value) {
    match list {
        Value::Array(items) => items.push(item),
        _ => *list = Value::Array(vec![item]),
    }
}
