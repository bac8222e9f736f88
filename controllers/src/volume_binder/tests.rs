//! Claims and volumes as data, and what becomes of them.

use super::matching::claim_class;
use super::*;
use serde_json::{Value, json};

fn merge(to: &mut Value, from: Value) {
    match (to, from) {
        (Value::Object(to), Value::Object(from)) => {
            for (key, value) in from {
                merge(to.entry(key).or_insert(Value::Null), value);
            }
        }
        (to, from) => *to = from,
    }
}

fn pv(own: &str, size: &str, extra: Value) -> Arc<PersistentVolume> {
    let mut value = json!({"metadata": {"name": own}, "status": {"phase": "Available"},
        "spec": {"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"], "storageClassName": "slow",
            "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": "/x"}}});
    merge(&mut value, extra);
    Arc::new(serde_json::from_value(value).unwrap())
}

fn pvc(extra: Value) -> PersistentVolumeClaim {
    let mut value = json!({"metadata": {"name": "c", "namespace": "ns", "uid": "u"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "slow",
            "resources": {"requests": {"storage": "2Gi"}}}});
    merge(&mut value, extra);
    serde_json::from_value(value).unwrap()
}

fn classes() -> Vec<Arc<StorageClass>> {
    let class = |own: &str, provisioner: &str, extra: Value| {
        let mut value = json!({"metadata": {"name": own}, "provisioner": provisioner});
        merge(&mut value, extra);
        Arc::new(serde_json::from_value(value).unwrap())
    };
    let default = json!({"metadata": {"annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}});
    vec![
        class("slow", "kubernetes.io/no-provisioner", json!({})),
        class("fast", "example.com/disk", default),
        class(
            "local",
            "kubernetes.io/no-provisioner",
            json!({"volumeBindingMode": "WaitForFirstConsumer"}),
        ),
    ]
}

/// A step in short.
fn show(step: ClaimStep) -> String {
    match step {
        ClaimStep::Phase(phase, None) => phase.to_owned(),
        ClaimStep::Phase(phase, Some((_, reason, _))) => format!("{phase} {reason}"),
        ClaimStep::Bind(volume) => format!("bind {}", name(&volume.metadata)),
        ClaimStep::AssignClass(class) => format!("class {class}"),
        ClaimStep::Provision { provisioner, .. } => format!("provision {provisioner}"),
    }
}

fn check(claim: Value, volumes: &[Arc<PersistentVolume>], want: &str) {
    let claim = pvc(claim);
    let got = show(plan::claim(&claim, volumes, &classes()).unwrap());
    assert_eq!(got, want, "{claim:?}");
}

#[test]
fn the_smallest_volume_that_fits() {
    let held = json!({"spec": {"claimRef": {"namespace": "ns", "name": "other", "uid": "x"}}});
    let volumes = [
        pv(
            "large",
            "9Gi",
            json!({"metadata": {"labels": {"disk": "ssd"}}}),
        ),
        pv("right", "3Gi", json!({})),
        pv("small", "1Gi", json!({})),
        pv("held", "2Gi", held),
        pv(
            "other-class",
            "2Gi",
            json!({"spec": {"storageClassName": "fast"}}),
        ),
        pv("block", "2Gi", json!({"spec": {"volumeMode": "Block"}})),
        pv(
            "going",
            "2Gi",
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
        ),
        pv("released", "2Gi", json!({"status": {"phase": "Released"}})),
    ];
    check(json!({}), &volumes, "bind right");
    let selector = json!({"spec": {"selector": {"matchLabels": {"disk": "ssd"}}}});
    check(selector, &volumes, "bind large");
    check(
        json!({"spec": {"volumeMode": "Block"}}),
        &volumes,
        "bind block",
    );
    check(
        json!({"spec": {"accessModes": ["ReadWriteMany"]}}),
        &volumes,
        "Pending ProvisioningFailed",
    );
    // The older way to name a class.
    let annotated =
        json!({"metadata": {"annotations": {"volume.beta.kubernetes.io/storage-class": "fast"}}});
    assert_eq!(claim_class(&pvc(annotated.clone())), "fast");
    check(annotated, &volumes, "bind other-class");
    let mut promised = volumes.to_vec();
    let to_us =
        json!({"spec": {"storageClassName": "none", "claimRef": {"namespace": "ns", "name": "c"}}});
    promised.push(pv("promised", "100Gi", to_us));
    check(json!({}), &promised, "bind promised");
}

#[test]
fn claims_without_a_volume() {
    let class = |c: Value| json!({"spec": {"storageClassName": c}});
    check(class(json!("")), &[], "Pending FailedBinding");
    check(class(json!(null)), &[], "class fast");
    check(class(json!("fast")), &[], "provision example.com/disk");
    check(class(json!("missing")), &[], "Pending ProvisioningFailed");
    check(class(json!("local")), &[], "Pending WaitForFirstConsumer");
    // What fits is left to the scheduler until a pod comes.
    let local = [pv(
        "disk",
        "5Gi",
        json!({"spec": {"storageClassName": "local"}}),
    )];
    check(
        class(json!("local")),
        &local,
        "Pending WaitForFirstConsumer",
    );
    let promise = json!({"spec": {"storageClassName": "local", "claimRef": {"namespace": "ns", "name": "c", "uid": "u"}}});
    check(
        class(json!("local")),
        &[pv("disk", "5Gi", promise)],
        "bind disk",
    );
}

#[test]
fn claims_that_name_their_volume() {
    let claim = json!({"spec": {"volumeName": "v"}});
    check(claim.clone(), &[], "Pending");
    check(claim.clone(), &[pv("v", "2Gi", json!({}))], "bind v");
    check(
        claim.clone(),
        &[pv("v", "1Gi", json!({}))],
        "Pending VolumeMismatch",
    );
    let to =
        |uid: &str| json!({"spec": {"claimRef": {"namespace": "ns", "name": "c", "uid": uid}}});
    check(claim.clone(), &[pv("v", "2Gi", to("u"))], "bind v");
    check(
        claim.clone(),
        &[pv("v", "2Gi", to("earlier"))],
        "Pending FailedBinding",
    );
    let mut complete = claim;
    merge(
        &mut complete,
        json!({"metadata": {"annotations": {plan::BIND_COMPLETED: "yes"}}}),
    );
    check(complete.clone(), &[], "Lost ClaimLost");
    check(
        complete.clone(),
        &[pv("v", "2Gi", to("earlier"))],
        "Lost ClaimMisbound",
    );
    check(complete, &[pv("v", "2Gi", to("u"))], "bind v");
}

#[test]
fn a_binding_is_written_once() {
    let (claim, volume) = (pvc(json!({})), pv("v", "2Gi", json!({})));
    let promised = plan::promised_to(&volume, &claim).unwrap();
    let r = claim_ref(&promised).unwrap();
    assert_eq!(
        (r.name.as_deref(), r.uid.as_deref()),
        (Some("c"), Some("u"))
    );
    assert!(annotations(&promised.metadata).contains_key(plan::BOUND_BY_CONTROLLER));
    assert_eq!(plan::promised_to(&promised, &claim), None);
    let with = plan::claim_with(&claim, &promised).unwrap();
    assert_eq!(plan::volume_name(&with), "v");
    let keys: Vec<_> = annotations(&with.metadata)
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(keys, [plan::BIND_COMPLETED, plan::BOUND_BY_CONTROLLER]);
    assert_eq!(plan::claim_with(&with, &promised), None);
    let bound = plan::claim_bound(&with, &promised).unwrap();
    assert_eq!(
        json!(bound.status),
        json!({"phase": "Bound", "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "2Gi"}})
    );
    assert_eq!(plan::claim_bound(&bound, &promised), None);
    // What its maker promised stays promised when it is let go; what we took does not.
    assert_eq!(claim_ref(&plan::unbound(&promised)), None);
    let by_maker = pv(
        "v",
        "2Gi",
        json!({"spec": {"claimRef": {"namespace": "ns", "name": "c", "uid": "u"}}}),
    );
    let free = plan::unbound(&by_maker);
    assert_eq!(claim_ref(&free).and_then(|r| r.uid.clone()), None);
    assert_eq!(
        claim_ref(&free).and_then(|r| r.name.clone()).as_deref(),
        Some("c")
    );
}

#[test]
fn volumes_and_their_holders() {
    let to = |extra: Value| {
        let mut value = json!({"spec": {"claimRef": {"namespace": "ns", "name": "c", "uid": "u"}}});
        merge(&mut value, extra);
        pv("v", "2Gi", value)
    };
    let check = |volume: &PersistentVolume, claim: Option<Value>, want: VolumeStep| {
        let claim = claim.map(pvc);
        let holder = claim.as_ref().map_or(Holder::Gone, Holder::Here);
        assert_eq!(plan::volume(volume, holder), want, "{volume:?}");
    };
    check(
        &pv("v", "2Gi", json!({})),
        None,
        VolumeStep::Phase("Available"),
    );
    let promised = pv(
        "v",
        "2Gi",
        json!({"spec": {"claimRef": {"namespace": "ns", "name": "c"}}}),
    );
    check(&promised, None, VolumeStep::Phase("Available"));
    let named = |own: &str| Some(json!({"spec": {"volumeName": own}}));
    check(&to(json!({})), named("v"), VolumeStep::Phase("Bound"));
    check(&to(json!({})), Some(json!({})), VolumeStep::LookAtClaim);
    check(
        &to(json!({"spec": {"volumeMode": "Block"}})),
        Some(json!({})),
        VolumeStep::Mismatch,
    );
    check(&to(json!({})), named("other"), VolumeStep::Unbind);
    check(&to(json!({})), None, VolumeStep::Release(Reclaim::Keep));
    let delete = json!({"spec": {"persistentVolumeReclaimPolicy": "Delete"}});
    let VolumeStep::Release(Reclaim::Fail(note)) = plan::volume(&to(delete.clone()), Holder::Gone)
    else {
        panic!("nobody can delete it");
    };
    assert_eq!(note.1, "VolumeFailedDelete");
    let mut provisioned = delete;
    merge(
        &mut provisioned,
        json!({"metadata": {"annotations": {plan::PROVISIONED_BY: "example.com/disk"}}}),
    );
    check(&to(provisioned), None, VolumeStep::Release(Reclaim::Keep));
}
