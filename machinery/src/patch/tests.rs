//! Patches as data: document, patch, and what becomes of them.

use serde_json::json;

use super::*;
use crate::schema::Schema;

fn texts(result: Result<Value, PatchError>) -> Result<Value, String> {
    result.map_err(|error| error.to_string())
}

#[test]
fn json_patches() {
    let document = json!({"a": {"b": [1, 2, 3]}, "s": "x", "k/~": 1, "n": null});
    for (patch, want) in [
        (
            json!([{"op": "add", "path": "/a/b/-", "value": 4}]),
            Ok(json!([1, 2, 3, 4])),
        ),
        (
            json!([{"op": "add", "path": "/a/b/0", "value": 0}]),
            Ok(json!([0, 1, 2, 3])),
        ),
        (
            json!([{"op": "add", "path": "/a/b/-1", "value": 4}]),
            Ok(json!([1, 2, 3, 4])),
        ),
        (
            json!([{"op": "remove", "path": "/a/b/-1"}]),
            Ok(json!([1, 2])),
        ),
        (
            json!([{"op": "replace", "path": "/a/b/1", "value": 9}]),
            Ok(json!([1, 9, 3])),
        ),
        (
            json!([{"op": "move", "from": "/a/b/0", "path": "/a/b/2"}]),
            Ok(json!([2, 3, 1])),
        ),
        (
            json!([{"op": "copy", "from": "/a/b/0", "path": "/a/b/0"}]),
            Ok(json!([1, 1, 2, 3])),
        ),
        (
            json!([{"op": "test", "path": "/s", "value": "x"}, {"op": "test", "path": "/n", "value": null}, {"op": "test", "path": "/k~1~0", "value": 1}]),
            Ok(json!([1, 2, 3])),
        ),
        (
            json!([{"op": "test", "path": "/absent", "value": null}]),
            Ok(json!([1, 2, 3])),
        ),
        (
            json!([{"op": "replace", "path": "/a/new", "value": 1}]),
            Ok(json!([1, 2, 3])),
        ),
        (json!(null), Ok(json!([1, 2, 3]))),
        (
            json!({}),
            Err(
                "error decoding patch: json: cannot unmarshal object into Go value of type []handlers.jsonPatchOp",
            ),
        ),
        (
            json!([1]),
            Err(
                "error decoding patch: json: cannot unmarshal number into Go value of type handlers.jsonPatchOp",
            ),
        ),
        (
            json!([{"op": "add", "path": 1}]),
            Err(
                "error decoding patch: json: cannot unmarshal number into Go struct field jsonPatchOp.path of type string",
            ),
        ),
        (json!([{}]), Err("Unexpected kind: unknown")),
        (
            json!([{"op": "add"}]),
            Err("add operation failed to decode path: missing value"),
        ),
        (
            json!([{"op": "replace"}]),
            Err(
                "replace operation failed to decode path: operation missing path field: missing value",
            ),
        ),
        (
            json!([{"op": "add", "path": "/x/y", "value": 1}]),
            Err("add operation does not apply: doc is missing path: \"/x/y\": missing value"),
        ),
        (
            json!([{"op": "remove", "path": "/x"}]),
            Err(
                "error in remove for path: '/x': Unable to remove nonexistent key: x: missing value",
            ),
        ),
        (
            json!([{"op": "replace", "path": "/a/b/3", "value": 1}]),
            Err("replace operation does not apply: doc is missing key: /a/b/3: missing value"),
        ),
        (
            json!([{"op": "add", "path": "/a/b/9", "value": 1}]),
            Err(
                "error in add for path: '/a/b/9': Unable to access invalid index: 9: invalid index referenced",
            ),
        ),
        (
            json!([{"op": "add", "path": "/a/b/x", "value": 1}]),
            Err(
                "error in add for path: '/a/b/x': value was not a proper array index: 'x': strconv.Atoi: parsing \"x\": invalid syntax",
            ),
        ),
        (
            json!([{"op": "test", "path": "/s", "value": 1}]),
            Err("testing value /s failed: test failed"),
        ),
        (
            json!([{"op": "move", "path": "/s"}]),
            Err(
                "move operation failed to decode from: operation, missing from field: missing value",
            ),
        ),
    ] {
        let got = texts(json_patch(document.clone(), &patch)).map(|v| v["a"]["b"].clone());
        assert_eq!(got, want.map_err(str::to_owned), "{patch}");
    }
    assert_eq!(
        json_patch_strict_errors(&json!([{"op": "add", "path": "/a", "x": 1}])),
        ["json patch unknown field \"[0].x\""]
    );
}

#[test]
fn json_patches_are_bounded() {
    let many = Value::Array(vec![json!({"op": "test", "path": ""}); MAX_OPERATIONS + 1]);
    assert_eq!(
        texts(json_patch(json!({}), &many)),
        Err("The allowed maximum operations in a JSON patch is 10000, got 10001".to_owned())
    );
    let nest = vec![json!({"op": "copy", "from": "/a", "path": "/a/a"}); 200];
    assert_eq!(
        texts(json_patch(json!({"a": {}}), &Value::Array(nest))),
        Err("error while adding value during copy: exceeded max depth".to_owned())
    );
    let big = vec![json!({"op": "copy", "from": "/a", "path": "/b"}); 4];
    assert_eq!(
        texts(json_patch(json!({"a": "x".repeat(1 << 20)}), &Value::Array(big))),
        Err("Unable to complete the copy, the accumulated size increase of copy is 3145734, exceeding the limit 3145728".to_owned())
    );
}

#[test]
fn merge_patches() {
    for (document, patch, want) in [
        (
            json!({"a": {"b": 1, "c": 2}}),
            json!({"a": {"b": null, "d": {"e": null}}}),
            Ok(json!({"a": {"c": 2, "d": {}}})),
        ),
        (
            json!({"a": [1]}),
            json!({"a": {"x": null, "y": [null, {"z": null}]}}),
            Ok(json!({"a": {"y": [null, {}]}})),
        ),
        (
            json!({"a": {"b": 1}}),
            json!({"a": [1]}),
            Ok(json!({"a": [1]})),
        ),
        (
            json!({}),
            json!([]),
            Err(
                "error decoding patch: json: cannot unmarshal array into Go value of type map[string]interface {}",
            ),
        ),
        (json!({}), json!(null), Err("Invalid JSON Patch")),
    ] {
        assert_eq!(
            texts(merge_patch(document, &patch)),
            want.map_err(str::to_owned)
        );
    }
}

fn pod(document: Value, patch: Value) -> Result<Value, String> {
    let schema = Schema::builtin()
        .lookup("io.k8s.api.core.v1.PodSpec")
        .expect("PodSpec");
    texts(strategic_merge_patch(document, patch, schema))
}

#[test]
fn strategic_patches() {
    let c = |names: &[&str]| -> Value {
        names
            .iter()
            .map(|n| json!({"name": n, "image": n}))
            .collect()
    };
    for (document, patch, want) in [
        // Items merge by their key; new ones are appended.
        (
            json!({"containers": c(&["a", "b"])}),
            json!({"containers": [{"name": "b", "image": "B"}, {"name": "c"}]}),
            Ok(
                json!({"containers": [{"name": "a", "image": "a"}, {"name": "b", "image": "B"}, {"name": "c"}]}),
            ),
        ),
        // An item is deleted, the rest stays.
        (
            json!({"containers": c(&["a", "b"])}),
            json!({"containers": [{"name": "a", "$patch": "delete"}]}),
            Ok(json!({"containers": c(&["b"])})),
        ),
        // A whole list is replaced.
        (
            json!({"containers": c(&["a", "b"])}),
            json!({"containers": [{"$patch": "replace"}, {"name": "z"}]}),
            Ok(json!({"containers": [{"name": "z"}]})),
        ),
        // Lists without a merge strategy are replaced.
        (
            json!({"tolerations": [{"key": "a"}]}),
            json!({"tolerations": [{"key": "b"}]}),
            Ok(json!({"tolerations": [{"key": "b"}]})),
        ),
        // Objects: merge, replace, delete, null.
        (
            json!({"securityContext": {"runAsUser": 1, "fsGroup": 2}}),
            json!({"securityContext": {"fsGroup": null, "runAsGroup": 3}}),
            Ok(json!({"securityContext": {"runAsUser": 1, "runAsGroup": 3}})),
        ),
        (
            json!({"securityContext": {"runAsUser": 1}}),
            json!({"securityContext": {"$patch": "replace", "fsGroup": 2}}),
            Ok(json!({"securityContext": {"fsGroup": 2}})),
        ),
        (
            json!({"securityContext": {"runAsUser": 1}}),
            json!({"securityContext": {"$patch": "delete"}}),
            Ok(json!({"securityContext": {}})),
        ),
        (
            json!({"nodeSelector": {"a": "1", "b": "2"}}),
            json!({"nodeSelector": {"a": null, "c": "3"}}),
            Ok(json!({"nodeSelector": {"b": "2", "c": "3"}})),
        ),
        // Order: named items follow the directive, the server's own keep their place before what followed them.
        (
            json!({"containers": c(&["s", "a", "b"])}),
            json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}], "containers": [{"name": "b", "image": "B"}]}),
            Ok(
                json!({"containers": [{"name": "s", "image": "s"}, {"name": "b", "image": "B"}, {"name": "a", "image": "a"}]}),
            ),
        ),
        (
            json!({"containers": c(&["a"])}),
            json!({"$setElementOrder/containers": [{"name": "a"}], "containers": [{"name": "b"}]}),
            Err(
                "The order in patch list:\n[map[name:b]]\n doesn't match $setElementOrder list:\n[map[name:a]]\n",
            ),
        ),
        (
            json!({}),
            json!({"$setElementOrder/containers": []}),
            Ok(json!({})),
        ),
        // retainKeys clears what it does not name.
        (
            json!({"volumes": [{"name": "v", "emptyDir": {}}]}),
            json!({"volumes": [{"$retainKeys": ["name", "hostPath"], "name": "v", "hostPath": {"path": "/x"}}]}),
            Ok(json!({"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]})),
        ),
        (
            json!({"volumes": [{"name": "v"}]}),
            json!({"volumes": [{"$retainKeys": ["hostPath"], "name": "v"}]}),
            Err("invalid patch format of retainKeys"),
        ),
        // What is new carries no directives and no nulls.
        (
            json!({}),
            json!({"containers": [{"name": "a", "command": null}, {"name": "b", "$patch": "delete"}]}),
            Ok(json!({"containers": [{"name": "a"}]})),
        ),
        (
            json!({"containers": c(&["a"])}),
            json!({"containers": [{"image": "x"}]}),
            Err("map: map[image:x] does not contain declared merge key: name"),
        ),
        (
            json!({"containers": c(&["a"])}),
            json!({"containers": [{"name": "a", "$patch": "burn"}]}),
            Err("unknown patch type: burn in map: map[$patch:burn name:a]"),
        ),
        (
            json!({"containers": c(&["a"])}),
            json!({"containers": ["a"]}),
            Err("list element types are not identical: [[map[image:a name:a]] [a]]"),
        ),
        (
            json!({"bogus": {"a": 1}}),
            json!({"bogus": {"a": 2}}),
            Err("unable to find api field in struct PodSpec for the json field \"bogus\""),
        ),
    ] {
        assert_eq!(
            pod(document, patch.clone()),
            want.map_err(str::to_owned),
            "{patch}"
        );
    }
}

#[test]
fn strategic_patches_of_scalars() {
    let schema = Schema::builtin()
        .lookup("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta")
        .expect("ObjectMeta");
    for (old, patch, want) in [
        (
            json!(["a", "b"]),
            json!({"finalizers": ["c", "a"]}),
            json!(["c", "a", "b"]),
        ),
        (
            json!(["a", "b"]),
            json!({"$deleteFromPrimitiveList/finalizers": ["a", "z"]}),
            json!(["b"]),
        ),
        (
            json!(["a", "b"]),
            json!({"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"], "$setElementOrder/finalizers": ["c", "b"]}),
            json!(["c", "b"]),
        ),
    ] {
        let got = texts(strategic_merge_patch(
            json!({"finalizers": old}),
            patch.clone(),
            schema,
        ));
        assert_eq!(got.map(|v| v["finalizers"].clone()), Ok(want), "{patch}");
    }
}

/// What `kubectl apply` sends for a Deployment whose image changed while something else scaled it.
#[test]
fn three_way_patch_of_kubectl() {
    let schema = Schema::builtin()
        .lookup("io.k8s.api.apps.v1.Deployment")
        .expect("Deployment");
    let live = json!({"metadata": {"annotations": {"deployment.kubernetes.io/revision": "1"}}, "spec": {"replicas": 5,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%"}},
        "template": {"spec": {"containers": [{"name": "web", "image": "web:1", "imagePullPolicy": "Always",
            "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}], "ports": [{"containerPort": 80, "protocol": "TCP"}]}]}}}});
    let patch = json!({"metadata": {"annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"}},
        "spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"},
            "template": {"spec": {"$setElementOrder/containers": [{"name": "web"}], "containers": [{"name": "web", "image": "web:2",
                "$setElementOrder/env": [{"name": "B"}, {"name": "C"}],
                "env": [{"name": "C", "value": "3"}, {"name": "A", "$patch": "delete"}]}]}}}});
    let got = texts(strategic_merge_patch(live, patch, schema)).expect("applies");
    assert_eq!(
        got,
        json!({"metadata": {"annotations": {"deployment.kubernetes.io/revision": "1", "kubectl.kubernetes.io/last-applied-configuration": "{}"}},
            "spec": {"replicas": 5, "strategy": {"type": "Recreate"},
                "template": {"spec": {"containers": [{"name": "web", "image": "web:2", "imagePullPolicy": "Always",
                    "env": [{"name": "B", "value": "2"}, {"name": "C", "value": "3"}], "ports": [{"containerPort": 80, "protocol": "TCP"}]}]}}}})
    );
}

proptest::proptest! {
    /// Applying a merge patch twice is applying it once.
    #[test]
    fn merge_patch_is_idempotent(a in proptest::collection::btree_map("[ab]", 0u8..3, 0..3), b in proptest::collection::btree_map("[ab]", proptest::option::of(0u8..3), 0..3)) {
        let (document, patch) = (json!({"x": a}), json!({"x": b}));
        let once = merge_patch(document, &patch).expect("object");
        proptest::prop_assert_eq!(merge_patch(once.clone(), &patch).expect("object"), once);
    }
}
