//! A job played out on data: plan, write, let pods run, plan again.

use super::*;
use serde_json::{Value, json};

struct World {
    job: Job,
    pods: Vec<Arc<Pod>>,
    now: Timestamp,
    events: Vec<String>,
}

impl World {
    fn new(spec: Value) -> Self {
        let mut job: Job = serde_json::from_value(json!({
            "metadata": {"name": "j", "namespace": "ns", "uid": "job"},
            "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c"}]}}},
        }))
        .unwrap();
        let mut value = serde_json::to_value(&job).unwrap();
        for (key, field) in spec.as_object().unwrap() {
            value["spec"][key] = field.clone();
        }
        job = serde_json::from_value(value).unwrap();
        World {
            job,
            pods: Vec::new(),
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
            events: Vec::new(),
        }
    }

    fn step(&mut self) {
        let plan = plan(&self.job, &self.pods, true, self.now);
        if let Some(status) = plan.status {
            self.job.status = Some(status);
        }
        self.events
            .extend(plan.events.into_iter().map(|(_, reason, _)| reason));
        for pod in plan.release {
            self.change(name(&pod.metadata), |p| p.metadata.finalizers = None);
        }
        for pod in plan.delete {
            let gone = name(&pod.metadata).to_owned();
            let now = self.now;
            self.change(&gone, |p| {
                p.metadata.deletion_timestamp = Some(Time(now));
                p.status.get_or_insert_default().phase = Some("Failed".into());
            });
        }
        for mut pod in plan.create {
            let own = format!(
                "{}{}",
                pod.metadata.generate_name.clone().unwrap(),
                self.pods.len()
            );
            pod.metadata.uid = Some(own.clone());
            pod.metadata.name = Some(own);
            pod.metadata.namespace = Some("ns".into());
            pod.status.get_or_insert_default().phase = Some("Running".into());
            self.pods.push(Arc::new(pod));
        }
        // A pod that is being deleted and held by nothing is gone.
        self.pods.retain(|p| !(is_deleting(p) && !is_held(p)));
    }

    fn settle(&mut self) {
        for _ in 0..12 {
            self.step();
        }
    }

    fn change(&mut self, own: &str, change: impl FnOnce(&mut Pod)) {
        if let Some(pod) = self.pods.iter_mut().find(|p| name(&p.metadata) == own) {
            change(Arc::make_mut(pod));
        }
    }

    /// The first active pod (of that index, if one is given) ends.
    fn end(&mut self, index: Option<i32>, code: i32) {
        let own = self
            .pods
            .iter()
            .find(|p| is_active(p) && (index.is_none() || indexes::of(p) == index))
            .map(|p| name(&p.metadata).to_owned())
            .expect("no active pod");
        let now = self.now;
        self.change(&own, |p| {
            p.status = serde_json::from_value(json!({
                "phase": if code == 0 { "Succeeded" } else { "Failed" },
                "containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                    "state": {"terminated": {"exitCode": code, "finishedAt": now.to_string()}}}],
            })).unwrap();
        });
    }

    fn active(&self) -> usize {
        self.pods.iter().filter(|p| is_active(p)).count()
    }

    fn status(&self) -> &JobStatus {
        self.job.status.as_ref().unwrap()
    }

    fn reason(&self, kind: &str) -> Option<String> {
        condition(self.status(), kind).and_then(|c| c.reason.clone())
    }
}

#[test]
fn runs_to_completion_and_counts_each_pod_once() {
    let mut world = World::new(json!({"completions": 3, "parallelism": 2, "backoffLimit": 6}));
    world.settle();
    assert_eq!(world.active(), 2);
    world.end(None, 0);
    world.settle();
    assert_eq!((world.active(), world.status().succeeded), (2, Some(1)));
    world.end(None, 0);
    world.end(None, 0);
    world.step();
    assert_eq!(
        world.reason("SuccessCriteriaMet").as_deref(),
        Some("CompletionsReached")
    );
    assert_eq!(world.reason("Complete"), None, "not before all are counted");
    world.settle();
    assert_eq!(
        world.reason("Complete").as_deref(),
        Some("CompletionsReached")
    );
    assert_eq!(world.status().succeeded, Some(3));
    assert!(world.status().completion_time.is_some());
    assert_eq!(world.events, ["Completed"]);
    assert!(world.pods.iter().all(|p| !is_held(p)));
}

#[test]
fn failures_back_off_then_end_the_job() {
    let mut world = World::new(json!({"completions": 1, "parallelism": 1, "backoffLimit": 1}));
    world.settle();
    world.end(None, 1);
    world.settle();
    assert_eq!(world.active(), 0, "waits before it tries again");
    world.now += Duration::from_secs(10);
    world.settle();
    assert_eq!(world.active(), 1);
    world.end(None, 1);
    world.settle();
    assert_eq!(
        world.reason("Failed").as_deref(),
        Some("BackoffLimitExceeded")
    );
    assert_eq!((world.status().failed, world.active()), (Some(2), 0));
}

#[test]
fn a_pod_that_its_node_refused_is_replaced() {
    let mut world = World::new(json!({"completions": 1, "parallelism": 1, "backoffLimit": 3}));
    world.settle();
    let own = name(&world.pods[0].metadata).to_owned();
    let made = world.now;
    world.change(&own, |p| {
        p.metadata.creation_timestamp = Some(Time(made));
        p.status =
            serde_json::from_value(json!({"phase": "Failed", "reason": "OutOfcpu"})).unwrap();
    });
    world.settle();
    assert_eq!(world.active(), 0);
    world.now += Duration::from_secs(10);
    world.settle();
    assert_eq!(world.active(), 1, "its end is not put off for ever");
}

#[test]
fn an_index_that_fails_makes_no_other_wait() {
    let mut world = World::new(
        json!({"completions": 3, "parallelism": 2, "completionMode": "Indexed",
        "backoffLimitPerIndex": 5}),
    );
    world.settle();
    world.end(Some(0), 1);
    world.end(Some(1), 0);
    world.settle();
    let indexes = |w: &World| -> Vec<_> {
        let active = w.pods.iter().filter(|p| is_active(p));
        active.filter_map(|p| indexes::of(p)).collect()
    };
    assert_eq!(indexes(&world), [2]);
    world.now += Duration::from_secs(10);
    world.settle();
    assert_eq!(indexes(&world), [2, 0]);
    // The second failure of an index costs twice as much.
    world.end(Some(0), 1);
    world.now += Duration::from_secs(10);
    world.settle();
    assert_eq!(indexes(&world), [2]);
    world.now += Duration::from_secs(10);
    world.settle();
    assert_eq!(indexes(&world), [2, 0]);
}

#[test]
fn deadline_suspension_and_resumption() {
    let mut world = World::new(
        json!({"completions": 2, "parallelism": 2, "activeDeadlineSeconds": 60, "suspend": true}),
    );
    world.settle();
    assert_eq!(
        (world.active(), world.reason("Suspended").as_deref()),
        (0, Some("JobSuspended"))
    );
    assert!(world.status().start_time.is_none());
    world.job.spec.as_mut().unwrap().suspend = Some(false);
    world.settle();
    assert_eq!((world.active(), world.reason("Suspended")), (2, None));
    world.now += Duration::from_secs(60);
    world.settle();
    assert_eq!(world.reason("Failed").as_deref(), Some("DeadlineExceeded"));
    assert_eq!((world.active(), world.status().failed), (0, Some(2)));
    assert_eq!(world.events, ["Suspended", "Resumed", "DeadlineExceeded"]);
}

#[test]
fn indexes_complete_fail_and_satisfy_policies() {
    let indexed = json!({"completions": 4, "parallelism": 4, "completionMode": "Indexed", "backoffLimit": 100,
        "backoffLimitPerIndex": 0});
    let mut world = World::new(indexed.clone());
    world.settle();
    assert_eq!(
        world.pods[2].spec.as_ref().unwrap().hostname.as_deref(),
        Some("j-2")
    );
    for index in [0, 1, 3] {
        world.end(Some(index), 0);
    }
    world.end(Some(2), 1);
    world.settle();
    assert_eq!(world.status().completed_indexes.as_deref(), Some("0,1,3"));
    assert_eq!(world.status().failed_indexes.as_deref(), Some("2"));
    assert_eq!(world.reason("Failed").as_deref(), Some("FailedIndexes"));

    let mut early = indexed.clone();
    early["successPolicy"] = json!({"rules": [{"succeededIndexes": "1-2", "succeededCount": 1}]});
    let mut world = World::new(early);
    world.settle();
    world.end(Some(2), 0);
    world.settle();
    assert_eq!(world.reason("Complete").as_deref(), Some("SuccessPolicy"));
    assert_eq!(world.active(), 0);
}

#[test]
fn failure_policies() {
    let rule = |action: &str| {
        json!({"completions": 1, "parallelism": 1, "backoffLimit": 0, "podFailurePolicy": {"rules": [
        {"action": action, "onExitCodes": {"operator": "In", "values": [42]}}]}})
    };
    let mut world = World::new(rule("FailJob"));
    world.settle();
    world.end(None, 42);
    world.settle();
    assert_eq!(world.reason("Failed").as_deref(), Some("PodFailurePolicy"));
    let message = condition(world.status(), "Failed")
        .unwrap()
        .message
        .clone()
        .unwrap();
    assert!(
        message.starts_with("Container c for pod ns/j-")
            && message.ends_with("failed with exit code 42 matching FailJob rule at index 0"),
        "{message}"
    );

    let mut world = World::new(rule("Ignore"));
    world.settle();
    world.end(None, 42);
    world.settle();
    assert_eq!((world.active(), world.status().failed), (1, Some(0)));
    world.end(None, 1);
    world.settle();
    assert_eq!(
        world.reason("Failed").as_deref(),
        Some("BackoffLimitExceeded")
    );
}
