//! The policy against the facts, and what a start writes.

use std::collections::{BTreeMap, HashMap};

use keelson_machinery::value;
use parking_lot::Mutex;
use serde_json::json;

use super::*;
use crate::authz::rbac::GROUP;
use crate::testing::Memory;

fn facts() -> ClusterFacts {
    ClusterFacts {
        service_cidrs: vec!["10.96.0.0/16".into()],
        service_address: "10.96.0.1".parse().expect("address"),
        advertise_address: "192.0.2.1".parse().ok(),
        secure_port: 6443,
        client_ca_pem: Some("CA".into()),
        request_header: None,
    }
}

fn by_name(objects: impl IntoIterator<Item = Value>) -> BTreeMap<String, Value> {
    let key = |object: &Value| {
        format!(
            "{} {}/{}",
            object["kind"],
            meta::namespace(object),
            meta::name(object)
        )
    };
    objects
        .into_iter()
        .map(|object| (key(&object), object))
        .collect()
}

#[test]
fn policy_matches_the_facts() {
    let shared = std::env::var("KEELSON_SHARED")
        .unwrap_or_else(|_| format!("{}/../../shared", env!("CARGO_MANIFEST_DIR")));
    let folder = std::path::Path::new(&shared).join("facts/v1.36/rbac");
    if !folder.is_dir() {
        println!("skipped: no facts at {}", folder.display());
        return;
    }
    let mut expected = Vec::new();
    for file in [
        "cluster-roles",
        "controller-roles",
        "namespace-roles",
        "cluster-role-bindings",
        "controller-role-bindings",
        "namespace-role-bindings",
    ] {
        let text = std::fs::read_to_string(folder.join(format!("{file}.yaml"))).expect("facts");
        let list: Value = serde_yaml_ng::from_str(&text).expect("yaml");
        expected.extend(value::items(&list, &["items"]).to_vec());
    }
    // Field order within rules is no matter; null and absent are one.
    let normal = |mut object: Value| {
        if object.get("rules").is_some_and(Value::is_null)
            || object.get("rules").is_none() && object.get("roleRef").is_none()
        {
            object["rules"] = json!([]);
        }
        object
    };
    let (ours, theirs) = (
        by_name(policy::objects().into_iter().map(normal)),
        by_name(expected.into_iter().map(normal)),
    );
    assert_eq!(
        ours.keys().collect::<Vec<_>>(),
        theirs.keys().collect::<Vec<_>>()
    );
    for (name, theirs) in theirs {
        assert_eq!(ours[&name], theirs, "{name}");
    }
}

/// Writes into memory; refuses what is there already, as a server does.
struct MemoryWriter(Memory, Mutex<Vec<String>>);

#[async_trait]
impl ObjectWriter for MemoryWriter {
    async fn write(&self, write: Write) -> Result<(), ApiError> {
        let (at, object, verb) = match write {
            Write::Create(at, object) => (at, object, "create"),
            Write::Update(at, object) => (at, object, "update"),
        };
        self.1
            .lock()
            .push(format!("{verb} {} {}", at.resource, meta::name(&object)));
        let exists = self
            .0
            .objects()
            .find(
                &at.group,
                &at.resource,
                meta::namespace(&object),
                meta::name(&object),
            )
            .await?
            .is_some();
        if exists && verb == "create" {
            return Err(ApiError::already_exists(&at, meta::name(&object)));
        }
        self.0.put(&at.group, &at.resource, object);
        Ok(())
    }
}

#[tokio::test]
async fn a_start_writes_what_is_missing_and_no_more() {
    let memory = Memory::default();
    let writer = MemoryWriter(memory.clone(), Mutex::default());
    let objects = memory.objects();
    run(&objects, &writer, &facts()).await.expect("first start");
    let first = std::mem::take(&mut *writer.1.lock());
    assert!(first.contains(&"create namespaces kube-system".into()));
    assert!(first.contains(&"create services kubernetes".into()));
    assert!(first.contains(&"create priorityclasses system-node-critical".into()));
    assert_eq!(
        first
            .iter()
            .filter(|line| line.contains(" clusterroles "))
            .count(),
        policy::objects()
            .iter()
            .filter(|o| o["kind"] == "ClusterRole")
            .count()
    );

    run(&objects, &writer, &facts())
        .await
        .expect("second start");
    assert_eq!(*writer.1.lock(), Vec::<String>::new(), "nothing to do");

    // What was added stays, what was taken away comes back, what opted out is left alone.
    let change = async |name: &str, edit: fn(&mut Value)| {
        let mut role = objects
            .get(GROUP, "clusterroles", "", name)
            .await
            .expect("role")
            .as_ref()
            .clone();
        edit(&mut role);
        memory.put(GROUP, "clusterroles", role);
    };
    change(
        "system:basic-user",
        |role| role["rules"] = json!([{"verbs": ["get"], "apiGroups": ["x"], "resources": ["y"]}]),
    )
    .await;
    change("system:discovery", |role| {
        role["rules"] = json!([]);
        role["metadata"]["annotations"]["rbac.authorization.kubernetes.io/autoupdate"] =
            "false".into();
    })
    .await;
    memory.put(
        GROUP,
        "clusterroles",
        json!({"kind": "ClusterRole", "metadata": {"name": "mine", "labels": {"rbac.authorization.k8s.io/aggregate-to-view": "true"}},
            "rules": [{"verbs": ["get"], "apiGroups": ["mine.io"], "resources": ["things"]}]}),
    );
    let moved = ClusterFacts {
        advertise_address: "192.0.2.9".parse().ok(),
        ..facts()
    };
    run(&objects, &writer, &moved).await.expect("third start");
    let mut third = std::mem::take(&mut *writer.1.lock());
    third.sort();
    let expected = ["admin", "edit", "system:basic-user", "view"]
        .map(|name| format!("update clusterroles {name}"))
        .to_vec();
    let expected = [
        expected,
        vec![
            "update endpoints kubernetes".into(),
            "update endpointslices kubernetes".into(),
        ],
    ]
    .concat();
    assert_eq!(third, expected);
    let role = objects
        .get(GROUP, "clusterroles", "", "system:basic-user")
        .await
        .expect("role");
    assert_eq!(role["rules"][0]["resources"], json!(["y"]), "kept");
    assert!(value::items(&role, &["rules"]).len() > 1, "restored");
    for name in ["view", "edit", "admin"] {
        let role = objects
            .get(GROUP, "clusterroles", "", name)
            .await
            .expect("role");
        assert!(
            value::items(&role, &["rules"])
                .iter()
                .any(|rule| rule["apiGroups"] == json!(["mine.io"])),
            "{name} gathers it"
        );
    }
}

#[test]
fn aggregation_takes_each_rule_once() {
    let role = |name: &str, label: &str, rule: &str| {
        let mut labels = serde_json::Map::new();
        labels.insert(label.into(), "true".into());
        json!({"metadata": {"name": name, "labels": labels}, "rules": [{"verbs": [rule]}]})
    };
    let all = [
        role("b", "x", "get"),
        role("a", "x", "list"),
        role("c", "x", "get"),
        role("d", "other", "watch"),
    ];
    let gathers = json!({"metadata": {"name": "z"}, "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"x": "true"}}]}});
    let rules = aggregate(&gathers, all.iter()).expect("aggregated");
    assert_eq!(
        rules,
        [json!({"verbs": ["list"]}), json!({"verbs": ["get"]})]
    );
    assert_eq!(aggregate(&all[0], all.iter()), None);
    let empty = HashMap::from([("clusterroles", Vec::new())]);
    let writes = rbac::reconcile(&empty);
    let admin = writes.iter().find_map(|write| match write {
        Write::Create(_, object) if meta::name(object) == "admin" => Some(object),
        _ => None,
    });
    assert!(
        value::items(admin.expect("admin"), &["rules"]).len() > 10,
        "gathered at first start"
    );
}

#[tokio::test(start_paused = true)]
async fn aggregated_roles_follow_what_they_gather() {
    let memory = Memory::default();
    let writer = Arc::new(MemoryWriter(memory.clone(), Mutex::default()));
    let objects = memory.objects();
    run(&objects, writer.as_ref(), &facts())
        .await
        .expect("start");
    let shutdown = tokio_util::sync::CancellationToken::new();
    let task = tokio::spawn(follow_aggregation(
        objects.clone(),
        writer,
        shutdown.clone(),
    ));
    let mine = |rules: Value| json!({"metadata": {"name": "mine", "labels": {"rbac.authorization.k8s.io/aggregate-to-view": "true"}}, "rules": rules});
    let gathers = async |group: &str| {
        // Time is paused: this returns when everything else has come to rest.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let role = objects
            .get(GROUP, "clusterroles", "", "admin")
            .await
            .expect("role");
        value::items(&role, &["rules"])
            .iter()
            .any(|rule| rule["apiGroups"] == json!([group]))
    };
    memory.put(
        GROUP,
        "clusterroles",
        mine(json!([{"verbs": ["get"], "apiGroups": ["mine.io"], "resources": ["things"]}])),
    );
    assert!(gathers("mine.io").await);
    memory.put(
        GROUP,
        "clusterroles",
        mine(json!([{"verbs": ["get"], "apiGroups": ["yours.io"], "resources": ["things"]}])),
    );
    assert!(gathers("yours.io").await && !gathers("mine.io").await);
    memory.delete(GROUP, "clusterroles", "", "mine");
    assert!(!gathers("yours.io").await);
    shutdown.cancel();
    task.await.expect("ends");
}
