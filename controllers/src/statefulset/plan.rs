//! Which pods of a StatefulSet come and go next. No I/O.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::common::pod_control::pod_from_template;
use crate::common::pods::{is_available, is_deleting, is_ready, is_terminal, phase};
use crate::common::{controller_reference, labels, name};

/// Label of pods: the name of their revision.
pub const REVISION: &str = "controller-revision-hash";
/// Label of pods: their own name.
const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
/// Label of pods: their ordinal.
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// A step towards the wish.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Make the pod of this ordinal, after its claims, by the current revision or by the updated one.
    Create {
        /// Which.
        ordinal: i32,
        /// Whether below the partition, where the old template still holds.
        current: bool,
    },
    /// Delete a pod.
    Delete(Arc<Pod>),
    /// Make what claims a pending pod lacks.
    Claims(Arc<Pod>),
    /// Give a pod back the labels that say who it is.
    Identify(Arc<Pod>),
}

/// Steps and the status that goes with them.
#[derive(Debug)]
pub struct Plan {
    /// In order; a failing one ends the round.
    pub steps: Vec<Step>,
    /// To be written.
    pub status: StatefulSetStatus,
}

/// How many pods.
pub fn replicas(set: &StatefulSet) -> i32 {
    set.spec
        .as_ref()
        .and_then(|spec| spec.replicas)
        .unwrap_or(1)
}

fn start(set: &StatefulSet) -> i32 {
    let ordinals = set.spec.as_ref().and_then(|spec| spec.ordinals.as_ref());
    ordinals.and_then(|ordinals| ordinals.start).unwrap_or(0)
}

/// Seconds until a ready pod counts as available.
pub fn min_ready(set: &StatefulSet) -> i32 {
    let spec = set.spec.as_ref();
    spec.and_then(|spec| spec.min_ready_seconds).unwrap_or(0)
}

/// The ordinal that a pod's name ends in, when the rest of it is the set's name.
pub fn ordinal(set: &StatefulSet, pod: &Pod) -> Option<i32> {
    let (parent, number) = name(&pod.metadata).rsplit_once('-')?;
    let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    (parent == name(&set.metadata) && digits)
        .then(|| number.parse().ok())
        .flatten()
}

/// Whether an ordinal is one that the set wants.
pub fn in_range(set: &StatefulSet, ordinal: i32) -> bool {
    (start(set)..start(set).saturating_add(replicas(set))).contains(&ordinal)
}

/// `<template>-<set>-<ordinal>`.
pub fn claim_name(set: &StatefulSet, template: &PersistentVolumeClaim, ordinal: i32) -> String {
    format!(
        "{}-{}-{ordinal}",
        name(&template.metadata),
        name(&set.metadata)
    )
}

/// The claim templates.
pub fn claim_templates(set: &StatefulSet) -> &[PersistentVolumeClaim] {
    let spec = set.spec.as_ref();
    spec.and_then(|spec| spec.volume_claim_templates.as_deref())
        .unwrap_or_default()
}

/// The claims of one ordinal (upstream `getPersistentVolumeClaims`).
pub fn claims(set: &StatefulSet, ordinal: i32) -> Vec<PersistentVolumeClaim> {
    let selected = set
        .spec
        .as_ref()
        .and_then(|spec| spec.selector.match_labels.clone());
    let made = claim_templates(set).iter().map(|template| {
        let mut claim = template.clone();
        claim.metadata.name = Some(claim_name(set, template, ordinal));
        claim.metadata.namespace = set.metadata.namespace.clone();
        let own = claim.metadata.labels.get_or_insert_default();
        own.extend(selected.clone().unwrap_or_default());
        claim.status = None;
        claim
    });
    made.collect()
}

fn identity(pod_name: &str, ordinal: i32) -> BTreeMap<String, String> {
    BTreeMap::from([
        (POD_NAME.to_owned(), pod_name.to_owned()),
        (POD_INDEX.to_owned(), ordinal.to_string()),
    ])
}

/// The labels that a pod of the set lacks.
pub fn missing_identity(set: &StatefulSet, pod: &Pod) -> BTreeMap<String, String> {
    let Some(ordinal) = ordinal(set, pod) else {
        return BTreeMap::new();
    };
    let pod_name = name(&pod.metadata);
    let have = labels(&pod.metadata);
    if have.get(POD_NAME).is_some_and(|own| own == pod_name) {
        return BTreeMap::new();
    }
    identity(pod_name, ordinal)
}

/// The pod of an ordinal (upstream `newStatefulSetPod`).
pub fn pod(set: &StatefulSet, template: &PodTemplateSpec, revision: &str, ordinal: i32) -> Pod {
    let own = name(&set.metadata);
    let mut pod = pod_from_template(template, own, controller_reference(set));
    let pod_name = format!("{own}-{ordinal}");
    pod.metadata.generate_name = None;
    pod.metadata.name = Some(pod_name.clone());
    let added = pod.metadata.labels.get_or_insert_default();
    added.extend(identity(&pod_name, ordinal));
    added.insert(REVISION.to_owned(), revision.to_owned());
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(pod_name);
    spec.subdomain = set.spec.as_ref().and_then(|spec| spec.service_name.clone());
    let mut volumes: Vec<Volume> = claim_templates(set)
        .iter()
        .map(|claim| Volume {
            name: name(&claim.metadata).to_owned(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim_name(set, claim, ordinal),
                read_only: None,
            }),
            ..Volume::default()
        })
        .collect();
    let others = spec.volumes.take().unwrap_or_default();
    let claimed = |name: &str| {
        claim_templates(set)
            .iter()
            .any(|c| c.metadata.name.as_deref() == Some(name))
    };
    volumes.extend(others.into_iter().filter(|volume| !claimed(&volume.name)));
    spec.volumes = Some(volumes).filter(|volumes| !volumes.is_empty());
    pod
}

fn runs_ready(pod: &Pod) -> bool {
    phase(pod) == "Running" && is_ready(pod)
}

/// Partition and the most that may be down, for a rolling update; `None` for OnDelete.
fn rolling(set: &StatefulSet) -> Option<(usize, usize)> {
    let strategy = set
        .spec
        .as_ref()
        .and_then(|spec| spec.update_strategy.as_ref());
    if strategy.and_then(|s| s.type_.as_deref()) == Some("OnDelete") {
        return None;
    }
    let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
    let partition = rolling.and_then(|rolling| rolling.partition).unwrap_or(0);
    let most = match rolling.and_then(|rolling| rolling.max_unavailable.as_ref()) {
        None => 1,
        Some(IntOrString::Int(number)) => i64::from(*number),
        Some(IntOrString::String(text)) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            percent.saturating_mul(i64::from(replicas(set))) / 100
        }
    };
    let size = |number: i64| usize::try_from(number).unwrap_or(0);
    Some((size(i64::from(partition)), size(most).max(1)))
}

/// Upstream `updateStatefulSet`. `pods` are those that the set owns; `current` and `update` name revisions.
pub fn plan(
    set: &StatefulSet,
    current: &str,
    update: &str,
    pods: &[Arc<Pod>],
    now: Timestamp,
) -> Plan {
    let status = status(set, current, update, pods, now);
    if set.metadata.deletion_timestamp.is_some() {
        return Plan {
            steps: Vec::new(),
            status,
        };
    }
    let mut status = status;
    let policy = set
        .spec
        .as_ref()
        .and_then(|spec| spec.pod_management_policy.as_deref());
    let ordered = policy != Some("Parallel");
    let (steps, settled) = invariants(set, pods, ordered, now);
    let mut steps = steps;
    if settled && let Some((partition, most)) = rolling(set) {
        let slots = slots(set, pods);
        let down = slots
            .iter()
            .filter(|(_, pod)| pod.as_ref().is_none_or(|pod| is_down(set, pod, now)))
            .count();
        let old = slots
            .iter()
            .skip(partition)
            .rev()
            .filter_map(|(_, pod)| pod.clone())
            .filter(|pod| {
                !is_deleting(pod)
                    && labels(&pod.metadata)
                        .get(REVISION)
                        .is_none_or(|r| r != update)
            })
            .take(most.saturating_sub(down));
        for pod in old {
            if labels(&pod.metadata)
                .get(REVISION)
                .is_some_and(|r| r == current)
            {
                status.current_replicas = status.current_replicas.map(|count| (count - 1).max(0));
            }
            steps.push(Step::Delete(pod));
        }
    }
    let wanted = Some(replicas(set));
    if rolling(set).is_some()
        && status.updated_replicas == wanted
        && status.ready_replicas == wanted
        && Some(status.replicas) == wanted
    {
        status.current_replicas = status.updated_replicas;
        status.current_revision = status.update_revision.clone();
    }
    Plan { steps, status }
}

fn is_down(set: &StatefulSet, pod: &Pod, now: Timestamp) -> bool {
    !is_available(pod, min_ready(set), now) || is_deleting(pod)
}

fn slots(set: &StatefulSet, pods: &[Arc<Pod>]) -> Vec<(i32, Option<Arc<Pod>>)> {
    let find = |wanted: i32| {
        pods.iter()
            .find(|pod| ordinal(set, pod) == Some(wanted))
            .cloned()
    };
    (0..replicas(set).max(0))
        .map(|index| start(set).saturating_add(index))
        .map(|wanted| (wanted, find(wanted)))
        .collect()
}

/// The wanted pods there and well, the others gone. Also says whether a rolling update may begin.
fn invariants(
    set: &StatefulSet,
    pods: &[Arc<Pod>],
    ordered: bool,
    now: Timestamp,
) -> (Vec<Step>, bool) {
    let mut steps = Vec::new();
    let partition = rolling(set).map_or(0, |(partition, _)| {
        i32::try_from(partition).unwrap_or(i32::MAX)
    });
    let slots = slots(set, pods);
    for (number, slot) in &slots {
        let Some(pod) = slot else {
            let current = *number < start(set).saturating_add(partition);
            steps.push(Step::Create {
                ordinal: *number,
                current,
            });
            if ordered {
                return (steps, false);
            }
            continue;
        };
        if is_terminal(pod) {
            if !is_deleting(pod) {
                steps.push(Step::Delete(pod.clone()));
            }
            if ordered {
                return (steps, false);
            }
            continue;
        }
        if phase(pod) == "Pending" && !claim_templates(set).is_empty() {
            steps.push(Step::Claims(pod.clone()));
        }
        let well = !is_deleting(pod) && runs_ready(pod) && is_available(pod, min_ready(set), now);
        if ordered && !well {
            return (steps, false);
        }
        if !missing_identity(set, pod).is_empty() {
            steps.push(Step::Identify(pod.clone()));
        }
    }
    let mut condemned: Vec<(i32, &Arc<Pod>)> = pods
        .iter()
        .filter_map(|pod| Some((ordinal(set, pod)?, pod)))
        .filter(|(number, _)| !in_range(set, *number))
        .collect();
    condemned.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
    // In order, a pod that is down goes only when it is the first one down.
    let first_down = slots
        .iter()
        .filter_map(|(_, pod)| pod.as_ref())
        .chain(condemned.iter().rev().map(|(_, pod)| *pod))
        .find(|pod| is_down(set, pod, now))
        .map(|pod| name(&pod.metadata));
    for (_, pod) in condemned {
        let well = runs_ready(pod) && is_available(pod, min_ready(set), now);
        if is_deleting(pod) {
            if ordered {
                return (steps, false);
            }
            continue;
        }
        if ordered && !well && first_down != Some(name(&pod.metadata)) {
            return (steps, false);
        }
        steps.push(Step::Delete(pod.clone()));
        if ordered {
            return (steps, false);
        }
    }
    (steps, true)
}

fn status(
    set: &StatefulSet,
    current: &str,
    update: &str,
    pods: &[Arc<Pod>],
    now: Timestamp,
) -> StatefulSetStatus {
    let count = |test: &dyn Fn(&Pod) -> bool| {
        let known = pods.iter().filter(|pod| ordinal(set, pod).is_some());
        i32::try_from(known.filter(|pod| test(pod)).count()).unwrap_or(i32::MAX)
    };
    let of = |revision: &str| {
        let have = |pod: &Pod| {
            !is_deleting(pod)
                && labels(&pod.metadata)
                    .get(REVISION)
                    .is_some_and(|r| r == revision)
        };
        count(&have)
    };
    let mut status = set.status.clone().unwrap_or_default();
    status.observed_generation = set.metadata.generation;
    status.current_revision = Some(current.to_owned());
    status.update_revision = Some(update.to_owned());
    status.collision_count = Some(status.collision_count.unwrap_or(0));
    status.replicas = count(&|_| true);
    status.ready_replicas = Some(count(&runs_ready));
    status.available_replicas = Some(count(&|pod| {
        runs_ready(pod) && is_available(pod, min_ready(set), now)
    }));
    status.current_replicas = Some(of(current));
    status.updated_replicas = Some(of(update));
    status
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn set(replicas: i32, spec: serde_json::Value) -> StatefulSet {
        let mut all = json!({
            "replicas": replicas,
            "selector": {},
            "serviceName": "s",
            "template": {"spec": {"containers": []}},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
        });
        for (key, value) in spec.as_object().unwrap() {
            all[key] = value.clone();
        }
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "ns"}, "spec": all}))
            .unwrap()
    }

    /// `0 new ready|pending|failed [gone]`
    fn pods(text: &str) -> Vec<Arc<Pod>> {
        text.split(',')
            .map(str::trim)
            .filter(|text| !text.is_empty())
            .map(|text| {
                let words: Vec<&str> = text.split(' ').collect();
                let own = format!("web-{}", words[0]);
                let (phase, ready) = match words[2] {
                    "ready" => ("Running", "True"),
                    "running" => ("Running", "False"),
                    "failed" => ("Failed", "False"),
                    _ => ("Pending", "False"),
                };
                let gone = words.get(3).map(|_| "2023-01-01T00:00:00Z");
                Arc::new(
                    serde_json::from_value(json!({
                        "metadata": {"name": own, "labels": {POD_NAME: own, REVISION: words[1]},
                                     "deletionTimestamp": gone},
                        "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready}]},
                    }))
                    .unwrap(),
                )
            })
            .collect()
    }

    #[test]
    fn pods_come_and_go_in_order() {
        let none = json!({});
        let parallel = json!({"podManagementPolicy": "Parallel"});
        let partition =
            json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 1}}});
        let two = json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 2}}});
        let on_delete = json!({"updateStrategy": {"type": "OnDelete"}});
        let shifted = json!({"ordinals": {"start": 5}});
        let cases = [
            (3, &none, "", "+0"),
            (3, &none, "0 new pending", ""),
            (3, &none, "0 new ready", "+1"),
            (3, &none, "0 new ready, 1 new ready gone", ""),
            (2, &none, "0 new failed, 1 new ready", "-0"),
            (2, &shifted, "5 new ready", "+6"),
            (2, &shifted, "4 new ready, 5 new ready, 6 new ready", "-4"),
            (3, &parallel, "1 new pending", "+0 +2"),
            // Down from the top, one at a time; not while one below is down.
            (1, &none, "0 new ready, 1 new ready, 2 new ready", "-2"),
            (1, &none, "0 new running, 1 new ready, 2 new ready", ""),
            (1, &none, "0 new ready, 1 new running, 2 new ready", "-2"),
            (1, &none, "0 new ready, 1 new running, 2 new running", ""),
            (1, &none, "0 new ready, 1 new ready, 2 new ready gone", ""),
            (
                1,
                &parallel,
                "0 new ready, 1 new ready, 2 new ready",
                "-2 -1",
            ),
            // Updates from the top.
            (3, &none, "0 old ready, 1 old ready, 2 old ready", "-2"),
            (3, &none, "0 old ready, 1 old ready, 2 new running", ""),
            (3, &none, "0 old ready, 1 old ready, 2 new ready", "-1"),
            (3, &partition, "0 old ready, 1 new ready, 2 new ready", ""),
            (3, &partition, "1 new ready, 2 new ready", "+0old"),
            (3, &two, "0 old ready, 1 old ready, 2 old ready", "-2 -1"),
            (3, &on_delete, "0 old ready, 1 old ready, 2 old ready", ""),
        ];
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        for (count, spec, have, expected) in cases {
            let plan = plan(&set(count, spec.clone()), "old", "new", &pods(have), now);
            let said: Vec<String> = plan
                .steps
                .iter()
                .map(|step| match step {
                    Step::Create { ordinal, current } => {
                        format!("+{ordinal}{}", if *current { "old" } else { "" })
                    }
                    Step::Delete(pod) => {
                        format!("-{}", name(&pod.metadata).trim_start_matches("web-"))
                    }
                    Step::Claims(_) => "claims".to_owned(),
                    Step::Identify(_) => "identify".to_owned(),
                })
                .collect();
            assert_eq!(said.join(" "), expected, "{count} {spec} {have}");
        }
    }

    #[test]
    fn a_finished_update_becomes_the_current_revision() {
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let of = |have: &str| {
            let status = plan(&set(2, json!({})), "old", "new", &pods(have), now).status;
            (
                status.current_revision.unwrap(),
                status.current_replicas,
                status.updated_replicas,
            )
        };
        assert_eq!(
            of("0 old ready, 1 new ready"),
            ("old".to_owned(), Some(0), Some(1))
        );
        assert_eq!(
            of("0 new ready, 1 new ready"),
            ("new".to_owned(), Some(2), Some(2))
        );
    }

    #[test]
    fn a_pod_knows_its_name_and_claims() {
        let set = set(
            1,
            json!({"volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}]}),
        );
        let made = pod(&set, &PodTemplateSpec::default(), "r1", 3);
        let spec = made.spec.clone().unwrap();
        assert_eq!(spec.hostname.as_deref(), Some("web-3"));
        assert_eq!(spec.subdomain.as_deref(), Some("s"));
        let volume = &spec.volumes.unwrap()[0];
        let claimed = volume.persistent_volume_claim.as_ref().unwrap();
        assert_eq!(claimed.claim_name, "data-web-3");
        assert_eq!(
            claims(&set, 3)[0].metadata.name.as_deref(),
            Some("data-web-3")
        );
        assert_eq!(ordinal(&set, &made), Some(3));
        assert!(missing_identity(&set, &made).is_empty());
    }
}
