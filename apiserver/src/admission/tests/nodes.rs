//! What nodes may write, and whose certificates may be asked for and signed.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::*;

fn csr(signer: &str, organization: &str, name: &str) -> Value {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(rcgen::DnType::OrganizationName, organization);
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, name);
    let key = rcgen::KeyPair::generate().expect("key");
    let pem = params
        .serialize_request(&key)
        .expect("request")
        .pem()
        .expect("pem");
    json!({"metadata": {"name": "r"}, "spec": {"signerName": signer, "request": STANDARD.encode(pem)}})
}

#[tokio::test(start_paused = true)]
async fn certificates() {
    let memory = base();
    let plugins = world(&memory, &[]);
    let update = async |user: &str, subresource: &str, signer: &str, status: Value| {
        let mut request = request(
            &format!("update certificates.k8s.io/certificatesigningrequests/{subresource} - r"),
            json!({"metadata": {"name": "r"}, "status": status}),
        );
        request.old_object = Some(Arc::new(
            json!({"spec": {"signerName": signer}, "status": {}}),
        ));
        request.user.name = user.into();
        run(&plugins, &mut request)
            .await
            .map(drop)
            .map_err(|error| error.message)
    };
    let signed = json!({"certificate": "x"});
    update("signer", "approval", "example.com/a", json!({}))
        .await
        .expect("allowed for the domain");
    update("signer", "status", "example.com/a", signed.clone())
        .await
        .expect("allowed for the domain");
    update("ann", "status", "example.com/a", json!({}))
        .await
        .expect("nothing is signed");
    let error = update("ann", "approval", "example.com/a", json!({}))
        .await
        .expect_err("not allowed");
    assert!(
        error.ends_with("user not permitted to approve requests with signerName \"example.com/a\""),
        "{error}"
    );
    let error = update("signer", "status", "other.com/a", signed)
        .await
        .expect_err("not allowed");
    assert!(
        error.ends_with("user not permitted to sign requests with signerName \"other.com/a\""),
        "{error}"
    );
    let create = async |csr: Value| {
        run(
            &plugins,
            &mut request("create certificates.k8s.io/certificatesigningrequests", csr),
        )
        .await
        .map(drop)
    };
    let client = "kubernetes.io/kube-apiserver-client";
    create(csr(client, "devs", "x"))
        .await
        .expect("a plain group");
    create(csr("example.com/a", "system:masters", "x"))
        .await
        .expect("another signer");
    let error = create(csr(client, "system:masters", "x"))
        .await
        .expect_err("masters");
    assert!(error.message.ends_with(
        "use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed"
    ));
}

#[tokio::test(start_paused = true)]
async fn nodes() {
    let memory = base();
    memory.put(
        "",
        "nodes",
        json!({"metadata": {"name": "n1", "uid": "u1"}}),
    );
    memory.put("", "pods", json!({"metadata": {"namespace": "a", "name": "mine", "uid": "p1"}, "spec": {"nodeName": "n1", "volumes": [
        {"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}, {"serviceAccountToken": {"audience": "vault"}}]}}]}}));
    memory.put("", "pods", json!({"metadata": {"namespace": "a", "name": "other", "uid": "p2"}, "spec": {"nodeName": "n2"}}));
    let plugins = world(&memory, &["NodeRestriction"]);
    let owner = json!([{"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "u1", "controller": true}]);
    let mirror = |spec: Value| json!({"metadata": {"name": "p", "annotations": {"kubernetes.io/config.mirror": "x"}, "ownerReferences": owner}, "spec": spec});
    let labelled = |key: &str| json!({"metadata": {"name": "n1", "labels": {key: "x"}}});
    let token = |pod: &str, uid: &str, audiences: Value| json!({"spec": {"audiences": audiences, "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uid}}});
    let lease = |name: &str| json!({"metadata": {"name": name}});
    memory.put(
        "",
        "namespaces",
        json!({"metadata": {"name": "kube-node-lease"}}),
    );
    let cases: Vec<(&str, Value, Value, Option<&str>)> = vec![
        (
            "create core/pods a",
            mirror(json!({"nodeName": "n1"})),
            Value::Null,
            None,
        ),
        (
            "create core/pods a",
            mirror(json!({"nodeName": "n2"})),
            Value::Null,
            Some("can only create pods with spec.nodeName set to itself"),
        ),
        (
            "create core/pods a",
            mirror(
                json!({"nodeName": "n1", "volumes": [{"persistentVolumeClaim": {"claimName": "c"}}]}),
            ),
            Value::Null,
            Some("can not create pods that reference persistentvolumeclaims"),
        ),
        (
            "create core/pods a",
            pod(json!({"nodeName": "n1"})),
            Value::Null,
            Some("can only create mirror pods"),
        ),
        ("delete core/pods a mine", Value::Null, Value::Null, None),
        (
            "delete core/pods a other",
            Value::Null,
            Value::Null,
            Some("can only delete pods with spec.nodeName set to itself"),
        ),
        (
            "update core/pods a mine",
            pod(json!({})),
            pod(json!({})),
            Some("can only create and delete mirror pods"),
        ),
        (
            "update core/pods/status a mine",
            pod(json!({"nodeName": "n1"})),
            pod(json!({"nodeName": "n1"})),
            None,
        ),
        (
            "update core/pods/status a other",
            pod(json!({"nodeName": "n2"})),
            pod(json!({"nodeName": "n2"})),
            Some("can only update pod status for pods with spec.nodeName set to itself"),
        ),
        (
            "update core/pods/status a mine",
            json!({"metadata": {"labels": {"x": "y"}}}),
            pod(json!({"nodeName": "n1"})),
            Some("cannot update labels through pod status"),
        ),
        (
            "create core/pods/eviction a other",
            json!({}),
            Value::Null,
            Some("can only evict pods with spec.nodeName set to itself"),
        ),
        (
            "create core/pods/binding a mine",
            json!({}),
            Value::Null,
            Some("unexpected pod subresource \"binding\""),
        ),
        (
            "create core/nodes - n1",
            labelled("kubernetes.io/hostname"),
            Value::Null,
            None,
        ),
        (
            "create core/nodes - n1",
            labelled("mine.io/x"),
            Value::Null,
            None,
        ),
        (
            "create core/nodes - n1",
            labelled("node.kubernetes.io/x"),
            Value::Null,
            None,
        ),
        (
            "create core/nodes - n1",
            labelled("node-role.kubernetes.io/master"),
            Value::Null,
            Some("is not allowed to set the following labels: node-role.kubernetes.io/master"),
        ),
        (
            "create core/nodes - n1",
            labelled("a.node-restriction.kubernetes.io/x"),
            Value::Null,
            Some("is not allowed to set the following labels"),
        ),
        (
            "create core/nodes - n2",
            json!({"metadata": {"name": "n2"}}),
            Value::Null,
            Some("node \"n1\" is not allowed to modify node \"n2\""),
        ),
        (
            "update core/nodes - n1",
            json!({"spec": {"taints": [{"key": "x"}]}}),
            json!({}),
            Some("is not allowed to modify taints"),
        ),
        (
            "update core/nodes/status - n1",
            json!({"status": {}}),
            json!({}),
            None,
        ),
        (
            "create core/serviceaccounts/token a default",
            token("mine", "p1", json!([])),
            Value::Null,
            None,
        ),
        (
            "create core/serviceaccounts/token a default",
            token("mine", "p1", json!(["vault"])),
            Value::Null,
            None,
        ),
        (
            "create core/serviceaccounts/token a default",
            token("mine", "p1", json!(["bank"])),
            Value::Null,
            Some("audience \"bank\" not found in pod spec volume"),
        ),
        (
            "create core/serviceaccounts/token a default",
            token("mine", "old", json!([])),
            Value::Null,
            Some("does not match the UID in record"),
        ),
        (
            "create core/serviceaccounts/token a default",
            token("other", "p2", json!([])),
            Value::Null,
            Some("bound to a pod scheduled on a different node"),
        ),
        (
            "create core/serviceaccounts/token a default",
            json!({"spec": {}}),
            Value::Null,
            Some("node requested token not bound to a pod"),
        ),
        (
            "create coordination.k8s.io/leases kube-node-lease",
            lease("n1"),
            Value::Null,
            None,
        ),
        (
            "create coordination.k8s.io/leases kube-node-lease",
            lease("n2"),
            Value::Null,
            Some("can only access node lease with the same name as the requesting node"),
        ),
        (
            "create storage.k8s.io/csinodes",
            lease("n2"),
            Value::Null,
            Some("can only access CSINode with the same name"),
        ),
        (
            "create certificates.k8s.io/certificatesigningrequests",
            csr(
                "kubernetes.io/kubelet-serving",
                "system:nodes",
                "system:node:n1",
            ),
            Value::Null,
            None,
        ),
        (
            "create certificates.k8s.io/certificatesigningrequests",
            csr(
                "kubernetes.io/kubelet-serving",
                "system:nodes",
                "system:node:n2",
            ),
            Value::Null,
            Some("can only create a node CSR with CN=system:node:n1"),
        ),
    ];
    for (text, object, old, expected) in cases {
        let mut request = request(text, object);
        request.old_object = (!old.is_null()).then(|| Arc::new(old));
        request.user = UserInfo {
            name: "system:node:n1".into(),
            groups: vec!["system:nodes".into()],
            ..UserInfo::default()
        };
        match (run(&plugins, &mut request).await, expected) {
            (Ok(_), None) => {}
            (Err(error), Some(expected)) => {
                assert!(error.message.contains(expected), "{text}: {error}")
            }
            (result, expected) => panic!("{text}: {result:?}, expected {expected:?}"),
        }
    }
    let stored = run(
        &plugins,
        &mut request(
            "create core/nodes",
            json!({"metadata": {"name": "n9", "labels": {"node-role.kubernetes.io/x": ""}}}),
        ),
    )
    .await
    .expect("an administrator");
    assert_eq!(
        stored["spec"]["taints"],
        json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}])
    );
}
