//! What a verdict is taken for, and where a Service leads.

use keelson_machinery::value::Value;
use serde_json::json;

use super::resolve::resolve;
use super::review::{decode, denied};
use crate::testing::Memory;

#[test]
fn answers_are_checked() {
    let review = |response: Value| json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response});
    let said = |mutating: bool, review: &Value| {
        decode("v1", "u", mutating, review.to_string().as_bytes())
            .err()
            .unwrap_or_default()
    };
    for (mutating, review, wanted) in [
        (true, review(json!({"uid": "u", "allowed": true})), ""),
        (
            true,
            json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1"}),
            "webhook response was absent",
        ),
        (
            true,
            review(json!({"allowed": true})),
            "expected response.uid=\"u\", got \"\"",
        ),
        (
            true,
            json!({"response": {"uid": "u"}}),
            "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got /, Kind=",
        ),
        (
            true,
            review(json!({"uid": "u", "patchType": "JSONPatch"})),
            "webhook returned response.patchType but not response.patch",
        ),
        (
            true,
            review(json!({"uid": "u", "patch": "W10=", "patchType": ""})),
            "webhook returned invalid response.patchType of \"\"",
        ),
        (
            false,
            review(json!({"uid": "u", "patch": "W10="})),
            "validating webhook may not return response.patch",
        ),
        (
            false,
            review(json!({"uid": "u", "patchType": "JSONPatch"})),
            "validating webhook may not return response.patchType",
        ),
    ] {
        assert_eq!(said(mutating, &review), wanted, "{review}");
    }
    // The old version is not checked, and needs no type for a patch.
    let old = json!({"response": {"uid": "x", "allowed": true, "patch": "W10="}});
    let verdict = decode("v1beta1", "u", true, old.to_string().as_bytes()).expect("a verdict");
    assert_eq!(verdict.patch_type, "JSONPatch");
}

#[test]
fn refusals_explain_themselves() {
    for (result, code, message) in [
        (
            json!(null),
            400,
            "admission webhook \"w\" denied the request without explanation",
        ),
        (
            json!({"code": 200, "reason": "Forbidden"}),
            400,
            "admission webhook \"w\" denied the request: Forbidden",
        ),
        (
            json!({"code": 418, "message": "m", "reason": "r"}),
            418,
            "admission webhook \"w\" denied the request: m",
        ),
    ] {
        let error = denied("w", (!result.is_null()).then_some(&result));
        assert_eq!((error.code, error.message.as_str()), (code, message));
    }
}

#[tokio::test]
async fn services_lead_to_ready_endpoints() {
    let memory = Memory::default();
    let service = |name: &str, spec: Value| {
        memory.put(
            "",
            "services",
            json!({"metadata": {"name": name, "namespace": "n"}, "spec": spec}),
        );
    };
    service(
        "s",
        json!({"type": "ClusterIP", "ipFamilies": ["IPv4"], "ports": [{"name": "a", "port": 443}, {"name": "b", "port": 80}]}),
    );
    service("empty", json!({"ports": [{"port": 443}]}));
    service("elsewhere", json!({"type": "ExternalName"}));
    let slice = |name: &str, family: &str, endpoints: Value| {
        memory.put("discovery.k8s.io", "endpointslices", json!({
            "metadata": {"name": name, "namespace": "n", "labels": {"kubernetes.io/service-name": "s"}},
            "addressType": family, "ports": [{"name": "a", "port": 8443}], "endpoints": endpoints}));
    };
    slice("1", "IPv6", json!([{"addresses": ["fd00::1"]}]));
    slice(
        "2",
        "IPv4",
        json!([{"addresses": ["10.0.0.1"], "conditions": {"ready": false}}, {"addresses": ["10.0.0.2"], "conditions": {"ready": true}}, {"addresses": ["10.0.0.3"]}]),
    );
    for (name, port, pick, wanted) in [
        ("s", 443, 0, "10.0.0.2:8443"),
        ("s", 443, 1, "10.0.0.3:8443"),
        ("s", 80, 0, "no endpoints available for service \"s\""),
        ("s", 1, 0, "no service port 1 found for service \"s\""),
        (
            "empty",
            443,
            0,
            "no endpoints available for service \"empty\"",
        ),
        ("none", 443, 0, "service \"none\" not found"),
        (
            "elsewhere",
            443,
            0,
            "Internal error occurred: unsupported service type \"ExternalName\"",
        ),
    ] {
        let got = resolve(&memory.objects(), "n", name, port, pick).await;
        let got = got.map_or_else(|e| e.message, |(address, port)| format!("{address}:{port}"));
        assert_eq!(got, wanted);
    }
}
