//! Who may what with the default roles, on nodes, and when granting to others.

use std::sync::Arc;

use keelson_machinery::value::Value;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::escalation::EscalationCheck;
use super::node::NodeAuthorizer;
use super::rbac::{GROUP, Rbac};
use super::review::{ReviewKind, access_review, rules_review};
use super::*;
use crate::admission::{AdmissionRequest, Operation, Plugin};
use crate::bootstrap::policy;
use crate::testing::Memory;

fn user(name: &str, groups: &[&str]) -> UserInfo {
    let groups = groups.iter().map(|group| (*group).to_owned()).collect();
    UserInfo {
        name: name.into(),
        groups,
        ..UserInfo::default()
    }
}

/// `verb group/resource[/subresource] [namespace] [name]`, `-` for an empty part; or `verb /path`.
fn request(text: &str) -> RequestInfo {
    let words: Vec<&str> = text.split(' ').collect();
    let word = |index: usize| {
        words
            .get(index)
            .filter(|word| **word != "-")
            .map(|word| (*word).to_owned())
            .unwrap_or_default()
    };
    if word(1).starts_with('/') {
        return RequestInfo {
            verb: word(0),
            path: word(1),
            ..RequestInfo::default()
        };
    }
    let path = word(1);
    let mut parts = path.split('/').map(str::to_owned);
    let group = parts.next().unwrap_or_default();
    RequestInfo {
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
        field_selector: word(4),
        ..RequestInfo::default()
    }
}

fn with_policy(more: &[Value]) -> Rbac {
    let mut objects = policy::objects();
    // `admin` gathers what `edit` gathers of `view`: three rounds settle them.
    for _ in 0..3 {
        let roles = objects.clone();
        for object in &mut objects {
            if let Some(rules) = crate::bootstrap::aggregate(object, roles.iter()) {
                object["rules"] = Value::Array(rules);
            }
        }
    }
    Rbac::fixed(objects.iter().chain(more))
}

fn binding(kind: &str, name: &str, namespace: &str, role: &str, subjects: Value) -> Value {
    let role_kind = if role.starts_with("role:") {
        "Role"
    } else {
        "ClusterRole"
    };
    json!({"kind": kind, "metadata": {"name": name, "namespace": namespace}, "subjects": subjects,
        "roleRef": {"apiGroup": GROUP, "kind": role_kind, "name": role.trim_start_matches("role:")}})
}

#[tokio::test]
async fn the_default_roles() {
    let users = json!([{"kind": "User", "name": "ed"}]);
    let rbac = Arc::new(with_policy(&[
        binding("RoleBinding", "ed", "a", "edit", users.clone()),
        binding(
            "RoleBinding",
            "vi",
            "a",
            "view",
            json!([{"kind": "Group", "name": "viewers"}]),
        ),
        binding(
            "RoleBinding",
            "ad",
            "a",
            "admin",
            json!([{"kind": "ServiceAccount", "name": "boss"}]),
        ),
        binding(
            "ClusterRoleBinding",
            "lost",
            "",
            "nowhere",
            json!([{"kind": "User", "name": "lost"}]),
        ),
        json!({"kind": "Role", "metadata": {"name": "one", "namespace": "a"}, "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["s1"]}]}),
        binding(
            "RoleBinding",
            "one",
            "a",
            "role:one",
            json!([{"kind": "User", "name": "uno"}]),
        ),
    ]));
    let union = Union::default().with(Arc::new(Masters)).with_rules(rbac);
    let auth = "system:authenticated";
    let cases = [
        (
            user("system:anonymous", &["system:unauthenticated"]),
            "get /healthz",
            true,
        ),
        (
            user("system:anonymous", &["system:unauthenticated"]),
            "get /livez",
            true,
        ),
        (
            user("system:anonymous", &["system:unauthenticated"]),
            "get /version",
            true,
        ),
        (
            user("system:anonymous", &["system:unauthenticated"]),
            "get /api",
            false,
        ),
        (
            user("system:anonymous", &["system:unauthenticated"]),
            "get /metrics",
            false,
        ),
        (
            user("system:anonymous", &["system:unauthenticated"]),
            "list core/pods a",
            false,
        ),
        (user("ann", &[auth]), "get /apis/apps", true),
        (user("ann", &[auth]), "get /openapi/v3", true),
        (
            user("ann", &[auth]),
            "create authorization.k8s.io/selfsubjectaccessreviews",
            true,
        ),
        (user("ann", &[auth]), "list core/pods a", false),
        (
            user("root", &["system:masters"]),
            "delete core/nodes - n1",
            true,
        ),
        (user("ed", &[auth]), "create core/pods a", true),
        (user("ed", &[auth]), "create core/pods b", false),
        (user("ed", &[auth]), "get core/pods/log a p", true),
        (
            user("ed", &[auth]),
            "patch apps/deployments/scale a d",
            true,
        ),
        (
            user("ed", &[auth]),
            "create rbac.authorization.k8s.io/roles a",
            false,
        ),
        (user("ed", &[auth]), "create core/nodes", false),
        (user("v", &["viewers"]), "watch core/configmaps a", true),
        (user("v", &["viewers"]), "get core/secrets a s", false),
        (user("v", &["viewers"]), "create core/pods/exec a p", false),
        (
            user("system:serviceaccount:a:boss", &[auth]),
            "create rbac.authorization.k8s.io/rolebindings a",
            true,
        ),
        (
            user("system:serviceaccount:b:boss", &[auth]),
            "create rbac.authorization.k8s.io/rolebindings a",
            false,
        ),
        (user("uno", &[]), "get core/secrets a s1", true),
        (user("uno", &[]), "get core/secrets a s2", false),
        (user("uno", &[]), "list core/secrets a", false),
        (
            user("system:kube-scheduler", &[auth]),
            "create core/pods/binding a p",
            true,
        ),
        (
            user("system:kube-scheduler", &[auth]),
            "delete core/nodes - n",
            false,
        ),
        (
            user("system:kube-scheduler", &[auth]),
            "update coordination.k8s.io/leases kube-system kube-scheduler",
            true,
        ),
        (
            user("system:kube-controller-manager", &[auth]),
            "create core/serviceaccounts/token kube-system x",
            true,
        ),
        (
            user(
                "system:serviceaccount:kube-system:namespace-controller",
                &[auth],
            ),
            "deletecollection any.io/things a",
            true,
        ),
        (
            user("system:kube-proxy", &[auth]),
            "watch discovery.k8s.io/endpointslices",
            true,
        ),
        (
            user("system:node:n1", &["system:nodes", auth]),
            "list core/pods",
            false,
        ),
        (
            user(
                "system:serviceaccount:a:x",
                &["system:serviceaccounts", auth],
            ),
            "get /openid/v1/jwks",
            true,
        ),
    ];
    for (user, text, expected) in cases {
        let request = request(text);
        let decision = union
            .authorize(&Attributes {
                user: &user,
                request: &request,
            })
            .await;
        assert_eq!(
            matches!(decision, Decision::Allow(_)),
            expected,
            "{} {text}: {decision:?}",
            user.name
        );
    }
    let (lost, list) = (user("lost", &[]), request("list core/pods y"));
    let attributes = Attributes {
        user: &lost,
        request: &list,
    };
    let Decision::NoOpinion(reason) = union.authorize(&attributes).await else {
        panic!("refused")
    };
    let error = forbidden(&attributes, &reason);
    assert_eq!(
        error.message,
        "pods is forbidden: User \"lost\" cannot list resource \"pods\" in API group \"\" in the namespace \"y\": \
         RBAC: clusterrole.rbac.authorization.k8s.io \"nowhere\" not found"
    );
    let allowed = union
        .authorize(&Attributes {
            user: &user("ed", &[]),
            request: &request("get core/pods a p"),
        })
        .await;
    assert_eq!(
        allowed,
        Decision::Allow(
            "RBAC: allowed by RoleBinding \"ed/a\" of ClusterRole \"edit\" to User \"ed\"".into()
        )
    );
}

#[test]
fn refusals_in_words() {
    let ann = user("ann<b>", &[]);
    let cases = [
        (
            "list core/pods y",
            "pods is forbidden: User \"ann&lt;b&gt;\" cannot list resource \"pods\" in API group \"\" in the namespace \"y\"",
        ),
        (
            "get core/nodes - n1",
            "nodes \"n1\" is forbidden: User \"ann&lt;b&gt;\" cannot get resource \"nodes\" in API group \"\" at the cluster scope",
        ),
        (
            "create apps/deployments/scale y d",
            "deployments.apps \"d\" is forbidden: User \"ann&lt;b&gt;\" cannot create resource \"deployments/scale\" in API group \"apps\" in the namespace \"y\"",
        ),
        (
            "get /metrics",
            "forbidden: User \"ann&lt;b&gt;\" cannot get path \"/metrics\"",
        ),
    ];
    for (text, expected) in cases {
        let error = forbidden(
            &Attributes {
                user: &ann,
                request: &request(text),
            },
            "",
        );
        assert_eq!((error.code, error.message.as_str()), (403, expected));
    }
}

#[tokio::test]
async fn bindings_are_followed_as_they_change() {
    let memory = Memory::default();
    memory.put(GROUP, "clusterroles", json!({"metadata": {"name": "r"}, "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]}));
    let shutdown = CancellationToken::new();
    let rbac = Rbac::start(memory.objects(), shutdown.clone());
    assert!(rbac.synced().await);
    let ann = user("ann", &["g"]);
    let allowed = async |rbac: &Rbac| {
        // The follower runs on this thread; let it take in what was sent.
        for _ in 0..16 {
            tokio::task::yield_now().await;
        }
        matches!(
            rbac.authorize(&Attributes {
                user: &ann,
                request: &request("get core/pods a p")
            })
            .await,
            Decision::Allow(_)
        )
    };
    assert!(!allowed(&rbac).await);
    memory.put(
        GROUP,
        "rolebindings",
        binding(
            "RoleBinding",
            "b",
            "a",
            "r",
            json!([{"kind": "Group", "name": "g"}, {"kind": "User", "name": "ann"}]),
        ),
    );
    assert!(allowed(&rbac).await);
    memory.put(
        GROUP,
        "rolebindings",
        binding(
            "RoleBinding",
            "b",
            "a",
            "r",
            json!([{"kind": "Group", "name": "other"}]),
        ),
    );
    assert!(!allowed(&rbac).await);
    memory.put(
        GROUP,
        "rolebindings",
        binding(
            "RoleBinding",
            "b",
            "a",
            "r",
            json!([{"kind": "User", "name": "ann"}]),
        ),
    );
    assert!(allowed(&rbac).await);
    memory.put(
        GROUP,
        "clusterroles",
        json!({"metadata": {"name": "r"}, "rules": []}),
    );
    assert!(!allowed(&rbac).await);
    memory.delete(GROUP, "rolebindings", "a", "b");
    assert!(!allowed(&rbac).await);
    shutdown.cancel();
}

#[tokio::test]
async fn nodes_see_what_their_pods_need() {
    let memory = Memory::default();
    memory.put(
        "",
        "pods",
        json!({"metadata": {"namespace": "a", "name": "p1"}, "spec": {
            "nodeName": "n1", "serviceAccountName": "robot", "imagePullSecrets": [{"name": "pull"}],
            "containers": [{"envFrom": [{"configMapRef": {"name": "env"}}], "env": [{"valueFrom": {"secretKeyRef": {"name": "key"}}}]}],
            "volumes": [{"name": "v", "secret": {"secretName": "vol"}}, {"name": "c", "persistentVolumeClaim": {"claimName": "claim"}},
                {"name": "e", "ephemeral": {}}, {"name": "p", "projected": {"sources": [{"configMap": {"name": "kube-root-ca.crt"}}]}}]}}),
    );
    memory.put("", "pods", json!({"metadata": {"namespace": "a", "name": "p2"}, "spec": {"nodeName": "n2", "serviceAccountName": "other"}}));
    memory.put("", "pods", json!({"metadata": {"namespace": "a", "name": "waits"}, "spec": {"imagePullSecrets": [{"name": "later"}]}}));
    memory.put(
        "",
        "pods",
        json!({"metadata": {"namespace": "a", "name": "mirror", "annotations": {"kubernetes.io/config.mirror": "x"}}, "spec": {"nodeName": "n1", "imagePullSecrets": [{"name": "stolen"}]}}),
    );
    memory.put(
        "",
        "persistentvolumes",
        json!({"metadata": {"name": "pv"}, "spec": {"claimRef": {"namespace": "a", "name": "claim"}, "csi": {"nodeStageSecretRef": {"namespace": "csi", "name": "stage"}, "controllerPublishSecretRef": {"namespace": "csi", "name": "controller"}}}}),
    );
    memory.put(
        "storage.k8s.io",
        "volumeattachments",
        json!({"metadata": {"name": "va"}, "spec": {"nodeName": "n1"}}),
    );
    let shutdown = CancellationToken::new();
    let authorizer =
        NodeAuthorizer::start(memory.objects(), policy::node_rules(), shutdown.clone());
    assert!(authorizer.synced().await);
    let node = user("system:node:n1", &["system:nodes"]);
    let allowed = async |text: &str| {
        matches!(
            authorizer
                .authorize(&Attributes {
                    user: &node,
                    request: &request(text)
                })
                .await,
            Decision::Allow(_)
        )
    };
    let cases = [
        ("get core/secrets a pull", true),
        ("get core/secrets a key", true),
        ("watch core/secrets a vol", true),
        ("get core/secrets b vol", false),
        ("get core/secrets a later", false),
        ("get core/secrets a stolen", false),
        ("list core/secrets a", false),
        ("delete core/secrets a vol", false),
        ("get core/secrets csi stage", true),
        ("get core/secrets csi controller", false),
        ("get core/configmaps a env", true),
        ("get core/configmaps a kube-root-ca.crt", true),
        ("get core/persistentvolumeclaims a claim", true),
        ("get core/persistentvolumeclaims a p1-e", true),
        ("patch core/persistentvolumeclaims/status a claim", true),
        ("get core/persistentvolumes - pv", true),
        ("list core/persistentvolumes", false),
        ("get storage.k8s.io/volumeattachments - va", true),
        ("create core/serviceaccounts/token a robot", true),
        ("create core/serviceaccounts/token a other", false),
        ("get core/serviceaccounts a robot", true),
        ("get core/nodes - n1", true),
        ("get core/nodes - n2", false),
        ("list core/nodes", false),
        ("patch core/nodes/status - n1", true),
        ("get core/pods a p1", true),
        ("get core/pods a p2", false),
        ("list core/pods - - spec.nodeName=n1", true),
        ("watch core/pods - - spec.nodeName=n2", false),
        // A part of another term's value is no term.
        (
            r"list core/pods - - metadata.name!=x\,spec.nodeName=n1",
            false,
        ),
        ("list core/pods", false),
        ("create core/pods a", true),
        ("patch core/pods/status a p2", true),
        ("update coordination.k8s.io/leases kube-node-lease n1", true),
        (
            "update coordination.k8s.io/leases kube-node-lease n2",
            false,
        ),
        ("update coordination.k8s.io/leases kube-system n1", false),
        ("get storage.k8s.io/csinodes - n1", true),
        ("create core/events a", true),
        ("watch core/services", true),
        (
            "create certificates.k8s.io/certificatesigningrequests",
            true,
        ),
        ("create authentication.k8s.io/tokenreviews", true),
        ("delete core/services a x", false),
    ];
    for (text, expected) in cases {
        assert_eq!(allowed(text).await, expected, "{text}");
    }
    memory.delete("", "pods", "a", "p1");
    for _ in 0..16 {
        tokio::task::yield_now().await;
    }
    for text in [
        "get core/secrets a vol",
        "get core/secrets csi stage",
        "get core/persistentvolumes - pv",
        "create core/serviceaccounts/token a robot",
    ] {
        assert!(!allowed(text).await, "{text}, after the Pod is gone");
    }
    let stranger = user("system:node:n1", &[]);
    let decision = authorizer
        .authorize(&Attributes {
            user: &stranger,
            request: &request("get core/nodes - n1"),
        })
        .await;
    assert_eq!(
        decision,
        Decision::NoOpinion(String::new()),
        "the name without the group"
    );
    shutdown.cancel();
}

#[tokio::test]
async fn nobody_grants_what_they_lack() {
    let rbac = Arc::new(with_policy(&[
        binding(
            "RoleBinding",
            "ad",
            "a",
            "admin",
            json!([{"kind": "User", "name": "ad"}]),
        ),
        json!({"kind": "ClusterRole", "metadata": {"name": "binder"}, "rules": [{"verbs": ["bind"], "apiGroups": [GROUP], "resources": ["clusterroles"], "resourceNames": ["cluster-admin"]}]}),
        binding(
            "ClusterRoleBinding",
            "binder",
            "",
            "binder",
            json!([{"kind": "User", "name": "binder"}]),
        ),
        json!({"kind": "ClusterRole", "metadata": {"name": "escalator"}, "rules": [{"verbs": ["escalate"], "apiGroups": [GROUP], "resources": ["*"]}]}),
        binding(
            "ClusterRoleBinding",
            "escalator",
            "",
            "escalator",
            json!([{"kind": "User", "name": "escalator"}]),
        ),
    ]));
    let check = EscalationCheck {
        rbac: rbac.clone(),
        authorizer: rbac,
    };
    let role = |rules: Value| json!({"metadata": {"name": "r"}, "rules": rules});
    let pods = json!([{"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods"]}]);
    let nodes = json!([{"verbs": ["get", "list"], "apiGroups": [""], "resources": ["nodes"]}]);
    let cases = [
        (
            "ad",
            "create rbac.authorization.k8s.io/roles a r",
            role(pods.clone()),
            None,
        ),
        (
            "ad",
            "create rbac.authorization.k8s.io/roles b r",
            role(pods.clone()),
            Some("{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"get\" \"list\"]}"),
        ),
        (
            "ad",
            "create rbac.authorization.k8s.io/roles a r",
            role(nodes.clone()),
            Some("{APIGroups:[\"\"], Resources:[\"nodes\"], Verbs:[\"get\" \"list\"]}"),
        ),
        (
            "escalator",
            "create rbac.authorization.k8s.io/roles a r",
            role(nodes.clone()),
            None,
        ),
        (
            "ad",
            "create rbac.authorization.k8s.io/rolebindings a r",
            binding("RoleBinding", "r", "a", "view", json!([])),
            None,
        ),
        (
            "ad",
            "create rbac.authorization.k8s.io/rolebindings a r",
            binding("RoleBinding", "r", "a", "cluster-admin", json!([])),
            Some("APIGroups:[\"*\"]"),
        ),
        (
            "binder",
            "create rbac.authorization.k8s.io/clusterrolebindings - r",
            binding("ClusterRoleBinding", "r", "", "cluster-admin", json!([])),
            None,
        ),
        (
            "binder",
            "create rbac.authorization.k8s.io/clusterrolebindings - r",
            binding("ClusterRoleBinding", "r", "", "edit", json!([])),
            Some("not currently held"),
        ),
        (
            "ad",
            "create rbac.authorization.k8s.io/rolebindings a r",
            binding("RoleBinding", "r", "a", "none", json!([])),
            Some("clusterrole.rbac.authorization.k8s.io \"none\" not found"),
        ),
        (
            "ad",
            "create rbac.authorization.k8s.io/clusterroles - r",
            json!({"metadata": {"name": "r"}, "aggregationRule": {"clusterRoleSelectors": [{}]}}),
            Some("must have cluster-admin privileges to use the aggregationRule"),
        ),
    ];
    for (name, text, object, refusal) in cases {
        let mut admission = AdmissionRequest {
            operation: Operation::Create,
            request: request(text),
            kind: String::new(),
            user: user(name, &[]),
            object: Some(object),
            old_object: None,
            options: Value::Null,
            dry_run: false,
            warnings: Vec::new(),
            kind_group: String::new(),
            kind_version: String::new(),
            annotations: Default::default(),
            reinvocation: Default::default(),
        };
        let result = check.admit(&mut admission).await;
        match (result, refusal) {
            (Ok(()), None) => {}
            (Err(error), Some(expected)) => {
                assert!(error.message.contains(expected), "{name} {text}: {error}")
            }
            (result, refusal) => panic!("{name} {text}: {result:?}, expected {refusal:?}"),
        }
        admission.user = user(name, &["system:masters"]);
        check
            .admit(&mut admission)
            .await
            .expect("masters may do anything");
    }
}

#[tokio::test]
async fn reviews() {
    let rbac = with_policy(&[binding(
        "RoleBinding",
        "ed",
        "a",
        "edit",
        json!([{"kind": "User", "name": "ed"}]),
    )]);
    let me = user("me", &["system:authenticated"]);
    let resource = json!({"verb": "create", "resource": "pods", "namespace": "a"});
    let run = async |kind, spec: Value, namespace: &str| {
        access_review(
            kind,
            json!({"kind": "SubjectAccessReview", "metadata": {}, "spec": spec}),
            &me,
            namespace,
            &rbac,
        )
        .await
    };
    let review = run(
        ReviewKind::Subject,
        json!({"user": "ed", "resourceAttributes": resource}),
        "",
    )
    .await
    .expect("answered");
    assert_eq!(review["status"]["allowed"], true);
    let review = run(
        ReviewKind::SelfSubject,
        json!({"resourceAttributes": resource}),
        "",
    )
    .await
    .expect("answered");
    assert_eq!(review["status"], json!({"allowed": false}));
    let review = run(
        ReviewKind::SelfSubject,
        json!({"nonResourceAttributes": {"verb": "get", "path": "/api"}}),
        "",
    )
    .await
    .expect("answered");
    assert_eq!(review["status"]["allowed"], true);
    let bad = [
        (
            ReviewKind::Subject,
            json!({"resourceAttributes": resource}),
            "",
            "at least one of user or group must be specified",
        ),
        (
            ReviewKind::SelfSubject,
            json!({}),
            "",
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        ),
        (
            ReviewKind::Local,
            json!({"user": "ed", "resourceAttributes": resource}),
            "b",
            "must match metadata.namespace",
        ),
    ];
    for (kind, spec, namespace, expected) in bad {
        let error = run(kind, spec, namespace).await.expect_err(expected);
        assert_eq!(error.code, 422);
        assert!(error.message.contains(expected), "{error}");
    }
    let review = rules_review(json!({"spec": {"namespace": "a"}}), &me, &rbac).expect("answered");
    assert!(
        review["status"]["resourceRules"]
            .as_array()
            .expect("rules")
            .iter()
            .any(|rule| rule["resources"] == json!(["selfsubjectreviews"]))
    );
    assert_eq!(
        rules_review(json!({"spec": {}}), &me, &rbac)
            .expect_err("no namespace")
            .code,
        400
    );
}
