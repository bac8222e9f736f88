//! Pods against levels, and what namespaces and controllers hear of it.

use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::request::{RequestInfo, UserInfo};
use crate::testing::Memory;

const GOOD: &str = r#"{"securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
    "containers": [{"name": "c", "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}]}"#;

/// The hardened Pod with one more change.
fn pod(change: impl FnOnce(&mut Value)) -> Value {
    let mut spec: Value = serde_json::from_str(GOOD).expect("json");
    change(&mut spec);
    json!({"metadata": {"name": "p", "namespace": "a"}, "spec": spec})
}

#[test]
fn levels() {
    let c = |field: &'static str, to: Value| {
        move |spec: &mut Value| spec["containers"][0]["securityContext"][field] = to
    };
    let latest = u32::MAX;
    let cases: Vec<(Value, Level, u32, &str)> = vec![
        (pod(|_| ()), Level::Restricted, latest, ""),
        (
            json!({"spec": {"containers": [{"name": "c"}]}}),
            Level::Baseline,
            latest,
            "",
        ),
        (
            json!({"spec": {"containers": [{"name": "c"}]}}),
            Level::Restricted,
            latest,
            "allowPrivilegeEscalation != false (container \"c\" must set securityContext.allowPrivilegeEscalation=false), \
             unrestricted capabilities (container \"c\" must set securityContext.capabilities.drop=[\"ALL\"]), \
             runAsNonRoot != true (pod or container \"c\" must set securityContext.runAsNonRoot=true), \
             seccompProfile (pod or container \"c\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")",
        ),
        (
            pod(c("privileged", true.into())),
            Level::Baseline,
            latest,
            "privileged (container \"c\" must not set securityContext.privileged=true)",
        ),
        (
            pod(|s| s["hostPID"] = true.into()),
            Level::Baseline,
            latest,
            "host namespaces (hostPID=true)",
        ),
        (
            pod(|s| s["volumes"] = json!([{"name": "v", "hostPath": {"path": "/"}}])),
            Level::Baseline,
            latest,
            "hostPath volumes (volume \"v\")",
        ),
        (
            pod(
                |s| s["volumes"] = json!([{"name": "v", "hostPath": {"path": "/"}}, {"name": "n", "nfs": {}}, {"name": "e", "emptyDir": {}}]),
            ),
            Level::Restricted,
            latest,
            "restricted volume types (volumes \"v\", \"n\" use restricted volume types \"hostPath\", \"nfs\")",
        ),
        (
            pod(|s| s["containers"][0]["ports"] = json!([{"hostPort": 80}, {"hostPort": 443}])),
            Level::Baseline,
            latest,
            "hostPort (container \"c\" uses hostPorts 443, 80)",
        ),
        (
            pod(c(
                "capabilities",
                json!({"add": ["NET_ADMIN", "CHOWN"], "drop": ["ALL"]}),
            )),
            Level::Baseline,
            latest,
            "non-default capabilities (container \"c\" must not include \"NET_ADMIN\" in securityContext.capabilities.add)",
        ),
        (
            pod(c(
                "capabilities",
                json!({"add": ["CHOWN", "NET_BIND_SERVICE"], "drop": ["ALL"]}),
            )),
            Level::Restricted,
            latest,
            "unrestricted capabilities (container \"c\" must not include \"CHOWN\" in securityContext.capabilities.add)",
        ),
        (
            pod(c("procMount", "Unmasked".into())),
            Level::Baseline,
            latest,
            "procMount (container \"c\" must not set securityContext.procMount to \"Unmasked\")",
        ),
        (
            pod(|s| {
                s["containers"][0]["securityContext"]["procMount"] = "Unmasked".into();
                s["hostUsers"] = false.into();
            }),
            Level::Baseline,
            latest,
            "",
        ),
        (
            pod(|s| {
                s["containers"][0]["securityContext"]["procMount"] = "Unmasked".into();
                s["hostUsers"] = false.into();
            }),
            Level::Baseline,
            34,
            "procMount (container \"c\" must not set securityContext.procMount to \"Unmasked\")",
        ),
        (
            pod(c("seLinuxOptions", json!({"type": "spc_t", "user": "u"}))),
            Level::Baseline,
            latest,
            "seLinuxOptions (container \"c\" set forbidden securityContext.seLinuxOptions: type \"spc_t\"; user may not be set)",
        ),
        (
            pod(|s| s["securityContext"]["seccompProfile"]["type"] = "Unconfined".into()),
            Level::Baseline,
            latest,
            "seccompProfile (pod must not set securityContext.seccompProfile.type to \"Unconfined\")",
        ),
        (
            pod(|s| {
                s["securityContext"]["sysctls"] =
                    json!([{"name": "net.ipv4.tcp_rmem"}, {"name": "kernel.msgmax"}])
            }),
            Level::Baseline,
            latest,
            "forbidden sysctls (kernel.msgmax)",
        ),
        (
            pod(|s| s["securityContext"]["sysctls"] = json!([{"name": "net.ipv4.tcp_rmem"}])),
            Level::Baseline,
            31,
            "forbidden sysctls (net.ipv4.tcp_rmem)",
        ),
        (
            pod(|s| s["securityContext"]["runAsUser"] = 0.into()),
            Level::Restricted,
            latest,
            "runAsUser=0 (pod must not set runAsUser=0)",
        ),
        (
            pod(|s| s["securityContext"]["runAsUser"] = 0.into()),
            Level::Restricted,
            22,
            "",
        ),
        (
            pod(c("runAsNonRoot", false.into())),
            Level::Restricted,
            latest,
            "runAsNonRoot != true (container \"c\" must not set securityContext.runAsNonRoot=false)",
        ),
        (
            pod(|s| s["containers"][0]["livenessProbe"] = json!({"httpGet": {"host": "10.0.0.1"}})),
            Level::Baseline,
            latest,
            "probe or lifecycle host (container \"c\" uses probe or lifecycle host \"10.0.0.1\")",
        ),
        (
            pod(|s| s["containers"][0]["livenessProbe"] = json!({"httpGet": {"host": "10.0.0.1"}})),
            Level::Baseline,
            33,
            "",
        ),
        (
            pod(c("appArmorProfile", json!({"type": "Unconfined"}))),
            Level::Baseline,
            latest,
            "forbidden AppArmor profile (container \"c\" must not set AppArmor profile type to \"Unconfined\")",
        ),
        (
            pod(|s| s["securityContext"]["windowsOptions"] = json!({"hostProcess": true})),
            Level::Baseline,
            latest,
            "hostProcess (pod must not set securityContext.windowsOptions.hostProcess=true)",
        ),
    ];
    for (pod, level, minor, expected) in cases {
        assert_eq!(
            describe(&violations(&Subject { pod: &pod, minor }, level)),
            expected,
            "{level:?} {pod}"
        );
    }
}

fn request(operation: Operation, group: &str, resource: &str, object: Value) -> AdmissionRequest {
    let info = RequestInfo {
        is_resource: true,
        group: group.into(),
        resource: resource.into(),
        namespace: "a".into(),
        ..RequestInfo::default()
    };
    AdmissionRequest {
        operation,
        request: info,
        kind: String::new(),
        user: UserInfo::default(),
        object: Some(object),
        old_object: None,
        options: Value::Null,
        dry_run: false,
        warnings: Vec::new(),
        kind_group: String::new(),
        kind_version: String::new(),
        annotations: Default::default(),
        reinvocation: Default::default(),
    }
}

fn namespace(labels: Value) -> Value {
    let labels: serde_json::Map<String, Value> = labels
        .as_object()
        .expect("map")
        .iter()
        .map(|(key, value)| (format!("pod-security.kubernetes.io/{key}"), value.clone()))
        .collect();
    json!({"metadata": {"name": "a", "labels": labels}})
}

#[tokio::test]
async fn namespaces_decide() {
    let memory = Memory::default();
    let plugin = PodSecurity {
        objects: memory.objects(),
    };
    let privileged = || pod(|spec| spec["hostPID"] = true.into());
    let ask = async |labels: Value, group: &str, resource: &str, object: Value| {
        memory.put("", "namespaces", namespace(labels));
        let mut request = request(Operation::Create, group, resource, object);
        plugin
            .validate(&mut request)
            .await
            .map(|()| request.warnings)
            .map_err(|error| error.message)
    };
    assert_eq!(ask(json!({}), "", "pods", privileged()).await, Ok(vec![]));
    let refusal = "pods \"p\" is forbidden: violates PodSecurity \"baseline:latest\": host namespaces (hostPID=true)";
    assert_eq!(
        ask(json!({"enforce": "baseline"}), "", "pods", privileged()).await,
        Err(refusal.into())
    );
    let warning = |level: &str| {
        vec![format!(
            "would violate PodSecurity \"{level}\": host namespaces (hostPID=true)"
        )]
    };
    assert_eq!(
        ask(
            json!({"warn": "baseline", "warn-version": "v1.30"}),
            "",
            "pods",
            privileged()
        )
        .await,
        Ok(warning("baseline:v1.30"))
    );
    assert!(
        ask(
            json!({"enforce": "nonsense"}),
            "",
            "pods",
            json!({"spec": {"containers": [{"name": "c"}]}})
        )
        .await
        .is_err(),
        "what cannot be read is strict"
    );
    let deployment = || json!({"metadata": {"name": "d"}, "spec": {"template": privileged()}});
    assert_eq!(
        ask(
            json!({"enforce": "baseline"}),
            "apps",
            "deployments",
            deployment()
        )
        .await,
        Ok(warning("baseline:latest"))
    );
    let cron = json!({"spec": {"jobTemplate": {"spec": {"template": privileged()}}}});
    assert_eq!(
        ask(
            json!({"enforce": "baseline", "warn": "privileged"}),
            "batch",
            "cronjobs",
            cron
        )
        .await,
        Ok(vec![])
    );

    memory.put("", "namespaces", namespace(json!({"enforce": "baseline"})));
    let mut update = request(Operation::Update, "", "pods", privileged());
    update.old_object = Some(Arc::new(privileged()));
    plugin
        .validate(&mut update)
        .await
        .expect("nothing that matters changed");
    update.object = Some(pod(|spec| {
        spec["hostPID"] = true.into();
        spec["containers"][0]["image"] = "new".into();
    }));
    plugin
        .validate(&mut update)
        .await
        .expect_err("a new image is looked at");
}

#[tokio::test]
async fn namespace_labels() {
    let memory = Memory::default();
    let plugin = PodSecurity {
        objects: memory.objects(),
    };
    for name in ["p2", "p1"] {
        let mut pod = pod(|spec| spec["hostPID"] = true.into());
        pod["metadata"]["name"] = name.into();
        memory.put("", "pods", pod);
    }
    let error = plugin
        .validate(&mut request(
            Operation::Create,
            "",
            "namespaces",
            namespace(json!({"enforce": "x", "warn-version": "v1.01"})),
        ))
        .await
        .expect_err("bad labels");
    assert_eq!(error.code, 422);
    assert!(error.message.contains("metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \"x\": must be one of privileged, baseline, restricted"), "{error}");
    assert!(
        error.message.contains("must be \"latest\" or \"v1.x\""),
        "{error}"
    );
    let mut update = request(
        Operation::Update,
        "",
        "namespaces",
        namespace(json!({"enforce": "baseline"})),
    );
    update.old_object = Some(Arc::new(namespace(json!({}))));
    plugin.validate(&mut update).await.expect("allowed");
    assert_eq!(
        update.warnings,
        [
            "existing pods in namespace \"a\" violate the new PodSecurity enforce level \"baseline:latest\"",
            "p1 (and 1 other pod): host namespaces"
        ]
    );
}
