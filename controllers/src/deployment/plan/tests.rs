//! A rollout played out on data: plan, write, let the sets catch up, plan again.

use super::*;
use serde_json::json;

fn now() -> Timestamp {
    "2026-01-01T00:10:00Z".parse().unwrap()
}

fn deployment(image: &str, replicas: i32, strategy: serde_json::Value) -> Deployment {
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "ns", "uid": "d", "generation": 1},
        "spec": {"replicas": replicas, "strategy": strategy, "progressDeadlineSeconds": 600,
            "revisionHistoryLimit": 1, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": image}]}}},
    }))
    .unwrap()
}

/// A cluster of one Deployment, in which every pod is available as soon as it exists.
struct World {
    deployment: Deployment,
    sets: Vec<Arc<ReplicaSet>>,
    clock: i64,
}

impl World {
    fn new(deployment: Deployment) -> Self {
        World {
            deployment,
            sets: Vec::new(),
            clock: 0,
        }
    }

    /// One pass; says how the sets stand as `spec/available` per image.
    fn step(&mut self) -> Vec<String> {
        self.clock += 1;
        let plan = plan(&self.deployment, &self.sets, &[], now());
        for write in plan.writes {
            match write {
                Write::Create(mut set) => {
                    set.metadata.uid = Some(set.metadata.name.clone().unwrap());
                    set.metadata.creation_timestamp =
                        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
                            Timestamp::from_second(self.clock).unwrap(),
                        ));
                    self.sets.push(Arc::new(set));
                }
                Write::Update { set, .. } => {
                    let at = self
                        .sets
                        .iter()
                        .position(|s| s.metadata.name == set.metadata.name)
                        .unwrap();
                    self.sets[at] = Arc::new(set);
                }
                Write::Delete(name) => self
                    .sets
                    .retain(|s| s.metadata.name.as_ref() != Some(&name)),
                Write::Annotate(notes) => self.deployment.metadata.annotations = Some(notes),
                Write::RolledBack {
                    template,
                    annotations,
                    ..
                } => {
                    self.deployment.metadata.annotations = Some(annotations);
                    if let Some(template) = template {
                        self.deployment.spec.as_mut().unwrap().template = *template;
                    }
                }
            }
        }
        if let Some(status) = plan.status {
            self.deployment.status = Some(status);
        }
        let picture = self
            .sets
            .iter()
            .map(|s| {
                let image = s
                    .spec
                    .as_ref()
                    .unwrap()
                    .template
                    .as_ref()
                    .unwrap()
                    .spec
                    .as_ref()
                    .unwrap()
                    .containers[0]
                    .image
                    .clone()
                    .unwrap();
                format!("{image}:{}", replicas(s))
            })
            .collect();
        // The sets' controller catches up.
        self.sets = self
            .sets
            .iter()
            .map(|s| {
                let mut s = (**s).clone();
                let n = replicas(&s);
                let status = s.status.get_or_insert_default();
                status.replicas = n;
                status.ready_replicas = Some(n);
                status.available_replicas = Some(n);
                Arc::new(s)
            })
            .collect();
        picture
    }

    fn settle(&mut self) {
        for _ in 0..50 {
            let before = (self.deployment.clone(), self.sets.clone());
            self.step();
            if before == (self.deployment.clone(), self.sets.clone()) {
                return;
            }
        }
        panic!("no rest after 50 passes: {:?}", self.step());
    }

    fn reason(&self, kind: &str) -> String {
        let status = self.deployment.status.as_ref().unwrap();
        status::condition(status, kind)
            .and_then(|c| c.reason.clone())
            .unwrap_or_default()
    }

    fn set_image(&mut self, image: &str) {
        let spec = self.deployment.spec.as_mut().unwrap();
        spec.template.spec.as_mut().unwrap().containers[0].image = Some(image.into());
        *self.deployment.metadata.generation.as_mut().unwrap() += 1;
    }
}

#[test]
fn first_rollout() {
    let mut world = World::new(deployment("v1", 3, json!({"type": "RollingUpdate"})));
    assert_eq!(world.step(), ["v1:3"]);
    assert_eq!(world.reason("Progressing"), "NewReplicaSetCreated");
    assert_eq!(world.reason("Available"), "MinimumReplicasUnavailable");
    world.settle();
    assert_eq!(world.reason("Progressing"), "NewReplicaSetAvailable");
    assert_eq!(world.reason("Available"), "MinimumReplicasAvailable");
    assert_eq!(annotations(&world.deployment.metadata)[REVISION], "1");
    let set = &world.sets[0];
    let hash = &set.metadata.labels.as_ref().unwrap()[HASH];
    assert_eq!(name(&set.metadata), format!("web-{hash}"));
}

#[test]
fn rolling_keeps_within_the_fenceposts_and_undo_reuses_the_old_set() {
    let strategy =
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}});
    let mut world = World::new(deployment("v1", 4, strategy));
    world.settle();
    world.set_image("v2");
    for _ in 0..30 {
        let picture = world.step();
        let total: i32 = picture
            .iter()
            .map(|p| p.rsplit(':').next().unwrap().parse::<i32>().unwrap())
            .sum();
        assert!((3..=5).contains(&total), "{picture:?}");
    }
    assert_eq!(world.step(), ["v1:0", "v2:4"]);
    assert_eq!(annotations(&world.deployment.metadata)[REVISION], "2");
    // `kubectl rollout undo` writes the old template back.
    world.set_image("v1");
    world.settle();
    assert_eq!(world.step(), ["v1:4", "v2:0"]);
    assert_eq!(annotations(&world.deployment.metadata)[REVISION], "3");
    assert_eq!(
        annotations(&world.sets[0].metadata)[super::super::revisions::HISTORY],
        "1"
    );
    // The history limit is 1: a third template drops the oldest.
    world.set_image("v3");
    world.settle();
    assert_eq!(world.step(), ["v1:0", "v3:4"]);
}

#[test]
fn recreate_goes_down_before_it_goes_up() {
    let mut world = World::new(deployment("v1", 2, json!({"type": "Recreate"})));
    world.settle();
    world.set_image("v2");
    assert_eq!(world.step(), ["v1:0"]);
    assert_eq!(world.step(), ["v1:0", "v2:2"]);
    world.settle();
    assert_eq!(world.reason("Progressing"), "NewReplicaSetAvailable");
}

#[test]
fn scaling_pausing_and_the_deadline() {
    let mut world = World::new(deployment("v1", 2, json!({})));
    world.settle();
    world.deployment.spec.as_mut().unwrap().replicas = Some(5);
    world.settle();
    assert_eq!(world.step(), ["v1:5"]);
    world.deployment.spec.as_mut().unwrap().paused = Some(true);
    world.set_image("v2");
    world.settle();
    assert_eq!(world.step(), ["v1:5"], "paused: no new set");
    assert_eq!(world.reason("Progressing"), "DeploymentPaused");
    world.deployment.spec.as_mut().unwrap().paused = None;
    world.step();
    assert_eq!(world.reason("Progressing"), "NewReplicaSetCreated");
    // Nothing comes up for longer than the deadline.
    let sets: Vec<_> = world
        .sets
        .iter()
        .map(|s| {
            let mut s = (**s).clone();
            s.status = None;
            Arc::new(s)
        })
        .collect();
    let late = now() + Duration::from_secs(601);
    let mut deployment = world.deployment.clone();
    deployment.status = plan(&deployment, &sets, &[], now())
        .status
        .or(deployment.status);
    let status = plan(&deployment, &sets, &[], late).status.unwrap();
    let progress = status::condition(&status, "Progressing").unwrap();
    assert_eq!(
        (progress.status.as_str(), progress.reason.as_deref()),
        ("False", Some("ProgressDeadlineExceeded"))
    );
}

#[test]
fn a_scaled_up_number_of_old_unavailable_pods_does_not_block() {
    let mut world = World::new(deployment("v1", 3, json!({})));
    world.settle();
    world.set_image("bad");
    world.step();
    // The new pod never gets up; v1 keeps all three, since nothing may be unavailable.
    world.sets = world
        .sets
        .iter()
        .map(|s| {
            let mut s = (**s).clone();
            if replicas(&s) == 1 {
                s.status.as_mut().unwrap().available_replicas = Some(0);
            }
            Arc::new(s)
        })
        .collect();
    assert_eq!(
        plan(&world.deployment, &world.sets, &[], now())
            .writes
            .len(),
        0
    );
}
