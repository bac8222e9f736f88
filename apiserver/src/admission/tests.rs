//! What each plugin makes of requests. Time is paused: the plugins that wait for objects wait in no time.

mod nodes;

use std::sync::Arc;

use keelson_machinery::value;
use serde_json::json;

use super::*;
use crate::authz::AlwaysAllow;
use crate::authz::rbac::Rbac;
use crate::testing::{HandClock, Memory};

/// A server's plugins over objects in memory. Rules: Users named `signer` may do everything with signers.
fn world(memory: &Memory, enable: &[&str]) -> Vec<Arc<dyn Plugin>> {
    let rules = json!([{"verbs": ["*"], "apiGroups": ["certificates.k8s.io"], "resources": ["signers"], "resourceNames": ["example.com/*"]}]);
    let role = json!({"kind": "ClusterRole", "metadata": {"name": "signer"}, "rules": rules});
    let binding = json!({"kind": "ClusterRoleBinding", "metadata": {"name": "signer"},
        "roleRef": {"kind": "ClusterRole", "name": "signer"}, "subjects": [{"kind": "User", "name": "signer"}]});
    let rbac = Arc::new(Rbac::fixed([&role, &binding]));
    let dependencies = Dependencies {
        objects: memory.objects(),
        authorizer: rbac,
        rbac: None,
        clock: HandClock::new().clock(),
    };
    let enable: Vec<String> = enable.iter().map(|name| (*name).to_owned()).collect();
    plugins(&dependencies, &enable, &[], Vec::new()).expect("plugins")
}

/// `verb group/resource[/subresource] [namespace] [name]`.
fn request(text: &str, object: Value) -> AdmissionRequest {
    let words: Vec<&str> = text.split(' ').collect();
    let word = |index: usize| {
        words
            .get(index)
            .filter(|word| **word != "-")
            .map(|word| (*word).to_owned())
            .unwrap_or_default()
    };
    let path = word(1);
    let mut parts = path.split('/').map(str::to_owned);
    let group = parts.next().unwrap_or_default();
    let operation = match words[0] {
        "create" => Operation::Create,
        "update" => Operation::Update,
        "delete" => Operation::Delete,
        other => panic!("{other}"),
    };
    let info = RequestInfo {
        is_resource: true,
        verb: word(0),
        group: if group == "core" {
            String::new()
        } else {
            group
        },
        resource: parts.next().unwrap_or_default(),
        subresource: parts.next().unwrap_or_default(),
        namespace: word(2),
        name: word(3),
        ..RequestInfo::default()
    };
    AdmissionRequest {
        operation,
        request: info,
        kind: String::new(),
        kind_group: String::new(),
        kind_version: String::new(),
        user: UserInfo {
            name: "ann".into(),
            ..UserInfo::default()
        },
        object: (!object.is_null()).then_some(object),
        old_object: None,
        options: Value::Null,
        dry_run: false,
        warnings: Vec::new(),
        annotations: BTreeMap::new(),
        reinvocation: Reinvocation::default(),
    }
}

/// Both rounds, as a server runs them; the object as it would be stored.
async fn run(
    plugins: &[Arc<dyn Plugin>],
    request: &mut AdmissionRequest,
) -> Result<Value, ApiError> {
    for plugin in plugins {
        plugin.admit(request).await?;
    }
    for plugin in plugins {
        plugin.validate(request).await?;
    }
    Ok(request.object.clone().unwrap_or_default())
}

fn base() -> Memory {
    let memory = Memory::default();
    memory.put(
        "",
        "namespaces",
        json!({"metadata": {"name": "a"}, "status": {"phase": "Active"}}),
    );
    memory.put(
        "",
        "namespaces",
        json!({"metadata": {"name": "dying"}, "status": {"phase": "Terminating"}}),
    );
    for namespace in ["a", "dying"] {
        memory.put(
            "",
            "serviceaccounts",
            json!({"metadata": {"namespace": namespace, "name": "default"}}),
        );
    }
    memory
}

fn pod(spec: Value) -> Value {
    json!({"metadata": {"name": "p"}, "spec": spec})
}

async fn refused(memory: &Memory, text: &str, object: Value) -> ApiError {
    run(&world(memory, &[]), &mut request(text, object))
        .await
        .expect_err(text)
}

#[tokio::test(start_paused = true)]
async fn namespaces() {
    let memory = base();
    let config = || json!({"metadata": {"name": "c"}});
    run(
        &world(&memory, &[]),
        &mut request("create core/configmaps a", config()),
    )
    .await
    .expect("an active namespace");
    run(
        &world(&memory, &[]),
        &mut request("update core/configmaps dying c", config()),
    )
    .await
    .expect("updates go on in a dying one");
    run(
        &world(&memory, &[]),
        &mut request("delete core/configmaps gone c", Value::Null),
    )
    .await
    .expect("deletes go on anywhere");
    run(
        &world(&memory, &[]),
        &mut request(
            "create authorization.k8s.io/localsubjectaccessreviews gone",
            json!({}),
        ),
    )
    .await
    .expect("reviews tell nothing");
    let error = refused(&memory, "create core/configmaps gone", config()).await;
    assert_eq!(
        (error.code, error.message.as_str()),
        (404, "namespaces \"gone\" not found")
    );
    let error = refused(&memory, "create core/configmaps dying", config()).await;
    assert_eq!(error.code, 403);
    assert_eq!(
        error.message,
        "configmaps \"c\" is forbidden: unable to create new content in namespace dying because it is being terminated"
    );
    let cause = &error.details.as_ref().expect("details").causes[0];
    assert_eq!(
        (cause.reason.as_str(), cause.field.as_str()),
        ("NamespaceTerminating", "metadata.namespace")
    );
    let error = refused(
        &memory,
        "delete core/namespaces kube-system kube-system",
        Value::Null,
    )
    .await;
    assert_eq!(
        error.message,
        "namespaces \"kube-system\" is forbidden: this namespace may not be deleted"
    );
}

#[tokio::test(start_paused = true)]
async fn a_plain_pod_gets_its_defaults() {
    let memory = base();
    let spec = json!({"containers": [{"name": "c"}], "initContainers": [{"name": "i", "volumeMounts": [{"name": "own", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}]}]});
    let stored = run(
        &world(&memory, &[]),
        &mut request("create core/pods a", pod(spec)),
    )
    .await
    .expect("admitted");
    let spec = &stored["spec"];
    assert_eq!(
        (
            spec["serviceAccountName"].as_str(),
            spec["serviceAccount"].as_str()
        ),
        (Some("default"), Some("default"))
    );
    assert_eq!(
        (spec["priority"].as_i64(), spec["preemptionPolicy"].as_str()),
        (Some(0), Some("PreemptLowerPriority"))
    );
    assert!(spec.get("priorityClassName").is_none());
    let tolerations: Vec<&str> = value::items(spec, &["tolerations"])
        .iter()
        .filter_map(|t| t["key"].as_str())
        .collect();
    assert_eq!(
        tolerations,
        [
            "node.kubernetes.io/not-ready",
            "node.kubernetes.io/unreachable"
        ]
    );
    let volume = &spec["volumes"][0];
    let name = volume["name"].as_str().expect("name");
    assert!(
        name.starts_with("kube-api-access-") && name.len() == "kube-api-access-".len() + 5,
        "{name}"
    );
    assert_eq!(
        volume["projected"]["sources"][0],
        json!({"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}})
    );
    assert_eq!(
        spec["containers"][0]["volumeMounts"],
        json!([{"name": name, "readOnly": true, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}])
    );
    assert_eq!(
        value::items(spec, &["initContainers"])[0]["volumeMounts"]
            .as_array()
            .map(Vec::len),
        Some(1),
        "its own mount stays alone"
    );
}

#[tokio::test(start_paused = true)]
async fn service_accounts() {
    let memory = base();
    memory.put("", "serviceaccounts", json!({"metadata": {"namespace": "a", "name": "quiet"}, "automountServiceAccountToken": false, "imagePullSecrets": [{"name": "pull"}]}));
    memory.put(
        "",
        "serviceaccounts",
        json!({"metadata": {"namespace": "a", "name": "strict", "annotations": {"kubernetes.io/enforce-mountable-secrets": "true"}}, "secrets": [{"name": "mine"}]}),
    );
    let plugins = world(&memory, &[]);
    let admit =
        async |spec: Value| run(&plugins, &mut request("create core/pods a", pod(spec))).await;
    let stored = admit(json!({"serviceAccountName": "quiet", "containers": [{"name": "c"}]}))
        .await
        .expect("admitted");
    assert!(stored["spec"].get("volumes").is_none());
    assert_eq!(
        stored["spec"]["imagePullSecrets"],
        json!([{"name": "pull"}])
    );
    let stored = admit(json!({"serviceAccountName": "quiet", "automountServiceAccountToken": true, "containers": [{"name": "c"}]})).await.expect("admitted");
    assert_eq!(
        value::items(&stored, &["spec", "volumes"]).len(),
        1,
        "the pod's wish wins"
    );
    let error = admit(json!({"serviceAccountName": "nobody"}))
        .await
        .expect_err("no such account");
    assert_eq!(
        error.message,
        "pods \"p\" is forbidden: error looking up service account a/nobody: serviceaccount \"nobody\" not found"
    );
    admit(json!({"serviceAccountName": "strict", "volumes": [{"name": "v", "secret": {"secretName": "mine"}}]})).await.expect("a named secret");
    let error = admit(json!({"serviceAccountName": "strict", "volumes": [{"name": "v", "secret": {"secretName": "other"}}]})).await.expect_err("another secret");
    assert!(error.message.contains("volume with secret.secretName=\"other\" is not allowed because service account strict does not reference that secret"), "{error}");
    let mirror = |spec: Value| json!({"metadata": {"name": "p", "annotations": {"kubernetes.io/config.mirror": "x"}}, "spec": spec});
    let stored = run(
        &plugins,
        &mut request(
            "create core/pods a",
            mirror(json!({"containers": [{"name": "c"}]})),
        ),
    )
    .await
    .expect("a mirror pod");
    assert!(stored["spec"].get("serviceAccountName").is_none());
    let error = run(
        &plugins,
        &mut request(
            "create core/pods a",
            mirror(json!({"serviceAccountName": "default"})),
        ),
    )
    .await
    .expect_err("refused");
    assert!(
        error
            .message
            .ends_with("a mirror pod may not reference service accounts")
    );
}

#[tokio::test(start_paused = true)]
async fn priorities() {
    let memory = base();
    let class = |name: &str, value: i64, default: bool| json!({"metadata": {"name": name}, "value": value, "globalDefault": default, "preemptionPolicy": "Never"});
    memory.put(
        "scheduling.k8s.io",
        "priorityclasses",
        class("high", 1000, false),
    );
    let admit = async |spec: Value| {
        run(
            &world(&memory, &[]),
            &mut request("create core/pods a", pod(spec)),
        )
        .await
    };
    let stored = admit(json!({"priorityClassName": "high"}))
        .await
        .expect("admitted");
    assert_eq!(
        (
            stored["spec"]["priority"].as_i64(),
            stored["spec"]["preemptionPolicy"].as_str()
        ),
        (Some(1000), Some("Never"))
    );
    let error = admit(json!({"priorityClassName": "none"}))
        .await
        .expect_err("no such class");
    assert_eq!(
        error.message,
        "pods \"p\" is forbidden: no PriorityClass with name none was found"
    );
    let error = admit(json!({"priorityClassName": "high", "priority": 5}))
        .await
        .expect_err("another number");
    assert!(error.message.contains("the integer value of priority (5) must not be provided in pod spec; priority admission controller computed 1000"));
    memory.put(
        "scheduling.k8s.io",
        "priorityclasses",
        class("usual", 7, true),
    );
    let stored = admit(json!({})).await.expect("admitted");
    assert_eq!(
        (
            stored["spec"]["priority"].as_i64(),
            stored["spec"]["priorityClassName"].as_str()
        ),
        (Some(7), Some("usual"))
    );
    let error = refused(
        &memory,
        "create scheduling.k8s.io/priorityclasses",
        class("second", 8, true),
    )
    .await;
    assert!(
        error.message.ends_with(
            "PriorityClass usual is already marked as default. Only one default can exist"
        )
    );
    run(
        &world(&memory, &[]),
        &mut request(
            "update scheduling.k8s.io/priorityclasses - usual",
            class("usual", 7, true),
        ),
    )
    .await
    .expect("itself");
    let mut update = request("update core/pods a p", pod(json!({})));
    update.old_object = Some(Arc::new(pod(
        json!({"priority": 9, "preemptionPolicy": "Never"}),
    )));
    assert_eq!(
        run(&world(&memory, &[]), &mut update)
            .await
            .expect("admitted")["spec"]["priority"],
        9
    );
}

#[tokio::test(start_paused = true)]
async fn limit_ranges() {
    let memory = base();
    memory.put(
        "",
        "limitranges",
        json!({"metadata": {"namespace": "a", "name": "l"}, "spec": {"limits": [
            {"type": "Container", "default": {"cpu": "1", "memory": "1Gi"}, "defaultRequest": {"cpu": "500m"}, "max": {"cpu": "2"}, "min": {"cpu": "100m"}, "maxLimitRequestRatio": {"cpu": "4"}},
            {"type": "Pod", "max": {"cpu": "3"}},
            {"type": "PersistentVolumeClaim", "min": {"storage": "1Gi"}, "max": {"storage": "2Gi"}}]}}),
    );
    let plugins = world(&memory, &[]);
    let admit = async |resources: &[Value]| {
        let containers: Vec<Value> = resources
            .iter()
            .enumerate()
            .map(|(i, r)| json!({"name": format!("c{i}"), "resources": r}))
            .collect();
        run(
            &plugins,
            &mut request("create core/pods a", pod(json!({"containers": containers}))),
        )
        .await
    };
    let stored = admit(&[json!({})]).await.expect("defaults");
    assert_eq!(
        stored["spec"]["containers"][0]["resources"],
        json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}})
    );
    assert_eq!(
        stored["metadata"]["annotations"]["kubernetes.io/limit-ranger"],
        "LimitRanger plugin set: cpu request for container c0; cpu, memory limit for container c0"
    );
    let cases = [
        (
            vec![json!({"requests": {"cpu": "50m"}, "limits": {"cpu": "200m"}})],
            "minimum cpu usage per Container is 100m, but request is 50m",
        ),
        (
            vec![json!({"requests": {"cpu": "1"}, "limits": {"cpu": "3"}})],
            "maximum cpu usage per Container is 2, but limit is 3",
        ),
        (
            vec![json!({"requests": {"cpu": "200m"}, "limits": {"cpu": "1"}})],
            "cpu max limit to request ratio per Container is 4, but provided ratio is 5.000000",
        ),
        (
            vec![json!({"requests": {"cpu": "1"}, "limits": {"cpu": "2"}}); 2],
            "maximum cpu usage per Pod is 3, but limit is 4",
        ),
    ];
    for (resources, expected) in cases {
        let error = admit(&resources).await.expect_err(expected);
        assert_eq!(
            (error.code, error.message.contains(expected)),
            (403, true),
            "{error}"
        );
    }
    let claim = |size: &str| json!({"metadata": {"name": "c"}, "spec": {"resources": {"requests": {"storage": size}}}});
    run(
        &plugins,
        &mut request("create core/persistentvolumeclaims a", claim("1Gi")),
    )
    .await
    .expect("within");
    for (size, expected) in [
        (
            "512Mi",
            "minimum storage usage per PersistentVolumeClaim is 1Gi, but request is 512Mi",
        ),
        (
            "3Gi",
            "maximum storage usage per PersistentVolumeClaim is 2Gi, but request is 3Gi",
        ),
    ] {
        let error = run(
            &plugins,
            &mut request("create core/persistentvolumeclaims a", claim(size)),
        )
        .await
        .expect_err(expected);
        assert!(error.message.ends_with(expected), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn storage_and_ingress_classes() {
    let memory = base();
    let class = |name: &str, at: &str, default: &str, grows: bool| json!({"metadata": {"name": name, "creationTimestamp": at, "annotations": {"storageclass.kubernetes.io/is-default-class": default}}, "allowVolumeExpansion": grows});
    memory.put(
        "storage.k8s.io",
        "storageclasses",
        class("old", "2026-01-01T00:00:00Z", "true", false),
    );
    memory.put(
        "storage.k8s.io",
        "storageclasses",
        class("new", "2026-02-01T00:00:00Z", "true", true),
    );
    memory.put(
        "storage.k8s.io",
        "storageclasses",
        class("none", "2026-03-01T00:00:00Z", "false", true),
    );
    let plugins = world(&memory, &[]);
    let claim = |class: Value, size: &str| json!({"metadata": {"name": "c"}, "spec": {"storageClassName": class, "resources": {"requests": {"storage": size}}}});
    let stored = run(
        &plugins,
        &mut request(
            "create core/persistentvolumeclaims a",
            claim(Value::Null, "1Gi"),
        ),
    )
    .await
    .expect("admitted");
    assert_eq!(stored["spec"]["storageClassName"], "new");
    assert_eq!(
        stored["metadata"]["finalizers"],
        json!(["kubernetes.io/pvc-protection"])
    );
    let stored = run(
        &plugins,
        &mut request(
            "create core/persistentvolumeclaims a",
            claim("".into(), "1Gi"),
        ),
    )
    .await
    .expect("admitted");
    assert_eq!(
        stored["spec"]["storageClassName"], "",
        "no class is a choice"
    );
    for (class, phase, expected) in [
        ("new", "Bound", None),
        ("new", "Pending", Some("Only bound")),
        ("old", "Bound", Some("must support resize")),
        ("", "Bound", Some("must support resize")),
    ] {
        let mut update = request(
            "update core/persistentvolumeclaims a c",
            claim(class.into(), "2Gi"),
        );
        let mut old = claim(class.into(), "1Gi");
        old["status"]["phase"] = phase.into();
        update.old_object = Some(Arc::new(old));
        match (run(&plugins, &mut update).await, expected) {
            (Ok(_), None) => {}
            (Err(error), Some(expected)) => assert!(error.message.contains(expected), "{error}"),
            (result, expected) => panic!("{class} {phase}: {result:?}, expected {expected:?}"),
        }
    }
    memory.put("networking.k8s.io", "ingressclasses", json!({"metadata": {"name": "web", "annotations": {"ingressclass.kubernetes.io/is-default-class": "true"}}}));
    let stored = run(
        &plugins,
        &mut request(
            "create networking.k8s.io/ingresses a",
            json!({"metadata": {"name": "i"}, "spec": {}}),
        ),
    )
    .await
    .expect("admitted");
    assert_eq!(stored["spec"]["ingressClassName"], "web");
}

#[tokio::test(start_paused = true)]
async fn runtime_classes() {
    let memory = base();
    memory.put(
        "node.k8s.io",
        "runtimeclasses",
        json!({"metadata": {"name": "vm"}, "overhead": {"podFixed": {"cpu": "250m"}},
            "scheduling": {"nodeSelector": {"vm": "yes"}, "tolerations": [{"key": "vm", "operator": "Exists"}]}}),
    );
    let admit = async |spec: Value| {
        run(
            &world(&memory, &[]),
            &mut request("create core/pods a", pod(spec)),
        )
        .await
    };
    let stored = admit(json!({"runtimeClassName": "vm", "nodeSelector": {"x": "y"}, "tolerations": [{"key": "vm", "operator": "Equal", "value": "1"}]})).await.expect("admitted");
    assert_eq!(stored["spec"]["overhead"], json!({"cpu": "250m"}));
    assert_eq!(
        stored["spec"]["nodeSelector"],
        json!({"vm": "yes", "x": "y"})
    );
    let keys: Vec<&str> = value::items(&stored, &["spec", "tolerations"])
        .iter()
        .filter_map(|t| t["operator"].as_str())
        .collect();
    assert_eq!(
        keys,
        ["Exists", "Exists", "Exists"],
        "the wider toleration stands for both"
    );
    let cases = [
        (
            json!({"runtimeClassName": "none"}),
            "pod rejected: RuntimeClass \"none\" not found",
        ),
        (
            json!({"runtimeClassName": "vm", "nodeSelector": {"vm": "no"}}),
            "conflict: runtimeClass.scheduling.nodeSelector[vm] = yes; pod.spec.nodeSelector[vm] = no",
        ),
        (
            json!({"runtimeClassName": "vm", "overhead": {"cpu": "1"}}),
            "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead",
        ),
        (
            json!({"overhead": {"cpu": "1"}}),
            "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead",
        ),
    ];
    for (spec, expected) in cases {
        let error = admit(spec).await.expect_err(expected);
        assert!(error.message.ends_with(expected), "{error}");
    }
    admit(json!({"runtimeClassName": "vm", "overhead": {"cpu": "0.25"}}))
        .await
        .expect("the same quantity in other words");
}

#[test]
fn plugin_lists() {
    let memory = base();
    let dependencies = Dependencies {
        objects: memory.objects(),
        authorizer: Arc::new(AlwaysAllow),
        rbac: None,
        clock: HandClock::new().clock(),
    };
    let list = |enable: &[&str], disable: &[&str]| {
        let owned = |names: &[&str]| {
            names
                .iter()
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>()
        };
        plugins(&dependencies, &owned(enable), &owned(disable), Vec::new())
            .map(|list| list.iter().map(|plugin| plugin.name()).collect::<Vec<_>>())
    };
    let names = list(&["NodeRestriction", "ResourceQuota"], &["Priority"]).expect("plugins");
    assert_eq!(
        &names[..4],
        [
            "NamespaceLifecycle",
            "LimitRanger",
            "ServiceAccount",
            "NodeRestriction"
        ]
    );
    assert!(!names.contains(&"Priority"));
    assert!(
        !list(&[], &[])
            .expect("plugins")
            .contains(&"NodeRestriction"),
        "off by default"
    );
    let errors = [
        (
            list(&["Nope"], &[]),
            "admission-control plugin \"Nope\" is unknown",
        ),
        (
            list(&["AlwaysPullImages"], &[]),
            "admission plugin \"AlwaysPullImages\" is not supported",
        ),
        (
            list(&["Priority"], &["Priority"]),
            "Priority in enable-admission-plugins and disable-admission-plugins overlapped",
        ),
    ];
    for (result, expected) in errors {
        assert_eq!(result.expect_err(expected).to_string(), expected);
    }
}
