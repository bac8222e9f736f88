//! Requests against quotas, as data.

use keelson_machinery::status::ApiError;
use serde_json::{Value, json};

use super::check::{Asked, Quota, Refusal, check};
use super::usage::Evaluator;
use super::*;

fn asked(resource: &str, new: &Value, old: Option<&Value>) -> Asked {
    let (resource, group) = resource.split_once('.').unwrap_or((resource, ""));
    let evaluator = Evaluator::of(group, resource).expect("counted");
    let now = "2024-01-01T00:00:00Z".parse().expect("a time");
    Asked {
        operation: match old {
            Some(_) => Operation::Update,
            None => Operation::Create,
        },
        group: group.to_owned(),
        resource: resource.to_owned(),
        subresource: String::new(),
        new: evaluator.measure(new, now),
        old: old.map(|old| evaluator.measure(old, now)),
        evaluator,
        dry_run: false,
    }
}

fn quota(hard: Value, used: Value, spec: Value) -> Quota {
    Quota::from_value(
        &json!({"metadata": {"name": "q", "resourceVersion": "1"}, "spec": spec,
        "status": {"hard": hard, "used": used}}),
    )
}

/// `charged: name=amount,...`, or why not.
fn outcome(quotas: &[Quota], asked: &Asked, limited: &[LimitedResource]) -> String {
    match check(quotas, asked, limited) {
        Err(Refusal::Forbidden(why)) => why,
        Err(Refusal::Error(error)) => error.message,
        Ok(charges) => {
            let of_one = |cost: &crate::admission::limit_ranger::Resources| {
                let parts: Vec<String> = cost.iter().map(|(n, q)| format!("{n}={q}")).collect();
                parts.join(",")
            };
            let all: Vec<String> = charges.values().map(of_one).collect();
            format!("charged: {}", all.join("; "))
        }
    }
}

#[test]
fn requests_are_charged_or_refused() {
    let pod = |cpu: &str, memory: &str| {
        json!({"spec": {"containers": [{"name": "c", "resources": {
            "requests": {"cpu": cpu, "memory": memory}, "limits": {"cpu": cpu, "memory": memory}}}]}})
    };
    let bare = json!({"spec": {"containers": [{"name": "b"}, {"name": "a"}], "initContainers": [{"name": "i"}]}});
    let whole =
        json!({"spec": {"resources": {"requests": {"cpu": "2"}}, "containers": [{"name": "a"}]}});
    let service = |kind: &str| json!({"spec": {"type": kind, "ports": [{"port": 1}, {"port": 2}]}});
    let claim = json!({"spec": {"storageClassName": "gold", "resources": {"requests": {"storage": "1500m"}}}});
    let gpus = json!({"spec": {"containers": [{"name": "c", "resources": {
        "requests": {"example.com/gpu": "2"}, "limits": {"example.com/gpu": "2"}}}]}});
    let devices = json!({"spec": {"devices": {"requests": [
        {"name": "a", "exactly": {"deviceClassName": "g", "allocationMode": "ExactCount", "count": 2}},
        {"name": "b", "firstAvailable": [
            {"deviceClassName": "g", "allocationMode": "ExactCount", "count": 1},
            {"deviceClassName": "g", "allocationMode": "ExactCount", "count": 3}]}]}}});
    let none = json!({});
    let cases = [
        (
            "pods",
            &pod("1", "1Gi"),
            None,
            json!({"pods": "3", "cpu": "2", "limits.memory": "4Gi"}),
            json!({"pods": "1", "cpu": "500m", "limits.memory": "1Gi"}),
            &none,
            "charged: cpu=1,limits.memory=1Gi,pods=1",
        ),
        (
            "pods",
            &pod("2", "1Gi"),
            None,
            json!({"pods": "1", "cpu": "2", "memory": "1Gi"}),
            json!({"pods": "1", "cpu": "500m", "memory": "0"}),
            &none,
            "exceeded quota: q, requested: cpu=2,pods=1, used: cpu=500m,pods=1, limited: cpu=2,pods=1",
        ),
        // Full to the last one.
        (
            "pods",
            &pod("1500m", "1Gi"),
            None,
            json!({"cpu": "2"}),
            json!({"cpu": "500m"}),
            &none,
            "charged: cpu=1500m",
        ),
        (
            "pods",
            &bare,
            None,
            json!({"requests.memory": "1Gi", "limits.cpu": "1"}),
            json!({"requests.memory": "0", "limits.cpu": "0"}),
            &none,
            "failed quota: q: must specify limits.cpu for: a,b,i; requests.memory for: a,b,i",
        ),
        (
            "pods",
            &whole,
            None,
            json!({"cpu": "3", "limits.cpu": "3"}),
            json!({"cpu": "0", "limits.cpu": "0"}),
            &none,
            "charged: cpu=2",
        ),
        (
            "pods",
            &bare,
            None,
            json!({"pods": "3", "count/pods": "3"}),
            json!({"pods": "1"}),
            &none,
            "status unknown for quota: q, resources: count/pods,pods",
        ),
        (
            "pods",
            &gpus,
            None,
            json!({"requests.example.com/gpu": "3"}),
            json!({"requests.example.com/gpu": "2"}),
            &none,
            "exceeded quota: q, requested: requests.example.com/gpu=2, used: requests.example.com/gpu=2, limited: requests.example.com/gpu=3",
        ),
        // What a quota does not cover costs it nothing.
        (
            "pods",
            &bare,
            None,
            json!({"pods": "0"}),
            json!({"pods": "0"}),
            &json!({"scopes": ["Terminating"]}),
            "charged: ",
        ),
        (
            "pods",
            &bare,
            None,
            json!({"pods": "0"}),
            json!({"pods": "0"}),
            &json!({"scopes": ["BestEffort", "NotTerminating"]}),
            "exceeded quota: q, requested: pods=1, used: pods=0, limited: pods=0",
        ),
        (
            "pods",
            &bare,
            None,
            json!({"services": "0"}),
            json!({"services": "0"}),
            &none,
            "charged: ",
        ),
        // A pod that comes into a scope by a change.
        (
            "pods",
            &json!({"spec": {"activeDeadlineSeconds": 5, "containers": []}}),
            Some(&json!({"spec": {"containers": []}})),
            json!({"pods": "1"}),
            json!({"pods": "0"}),
            &json!({"scopes": ["Terminating"]}),
            "charged: pods=1",
        ),
        (
            "services",
            &service("NodePort"),
            Some(&service("ClusterIP")),
            json!({"services": "1", "services.nodeports": "2"}),
            json!({"services": "1", "services.nodeports": "0"}),
            &none,
            "charged: services.nodeports=2",
        ),
        (
            "services",
            &service("LoadBalancer"),
            Some(&service("NodePort")),
            json!({"services.nodeports": "1", "services.loadbalancers": "0"}),
            json!({"services.nodeports": "1", "services.loadbalancers": "0"}),
            &none,
            "exceeded quota: q, requested: services.loadbalancers=1, used: services.loadbalancers=0, limited: services.loadbalancers=0",
        ),
        // Nothing more than before, though over the limit by now.
        (
            "services",
            &service("NodePort"),
            Some(&service("NodePort")),
            json!({"services.nodeports": "1"}),
            json!({"services.nodeports": "2"}),
            &none,
            "charged: ",
        ),
        (
            "persistentvolumeclaims",
            &claim,
            None,
            json!({"requests.storage": "10", "gold.storageclass.storage.k8s.io/requests.storage": "1",
            "silver.storageclass.storage.k8s.io/persistentvolumeclaims": "0"}),
            json!({"requests.storage": "0", "gold.storageclass.storage.k8s.io/requests.storage": "0",
            "silver.storageclass.storage.k8s.io/persistentvolumeclaims": "0"}),
            &none,
            "exceeded quota: q, requested: gold.storageclass.storage.k8s.io/requests.storage=2, used: gold.storageclass.storage.k8s.io/requests.storage=0, limited: gold.storageclass.storage.k8s.io/requests.storage=1",
        ),
        (
            "secrets",
            &none,
            None,
            json!({"secrets": "2", "count/secrets": "1"}),
            json!({"secrets": "1", "count/secrets": "1"}),
            &none,
            "exceeded quota: q, requested: count/secrets=1, used: count/secrets=1, limited: count/secrets=1",
        ),
        (
            "widgets.example.com",
            &none,
            None,
            json!({"count/widgets.example.com": "2"}),
            json!({"count/widgets.example.com": "1"}),
            &none,
            "charged: count/widgets.example.com=1",
        ),
        (
            "resourceclaims.resource.k8s.io",
            &devices,
            None,
            json!({"g.deviceclass.resource.k8s.io/devices": "9"}),
            json!({"g.deviceclass.resource.k8s.io/devices": "1"}),
            &none,
            "charged: g.deviceclass.resource.k8s.io/devices=5",
        ),
    ];
    for (resource, new, old, hard, used, spec, expected) in cases {
        let quotas = [quota(hard.clone(), used, spec.clone())];
        let found = outcome(&quotas, &asked(resource, new, old), &[]);
        assert_eq!(found, expected, "{resource} {new} under {hard} {spec}");
    }
}

#[test]
fn priority_classes_choose_quotas() {
    let pod = |class: &str| json!({"spec": {"priorityClassName": class, "containers": []}});
    let select = |operator: &str, values: &[&str]| {
        json!({"scopeSelector": {"matchExpressions": [
            {"scopeName": "PriorityClass", "operator": operator, "values": values}]}})
    };
    let cases = [
        (select("In", &["high"]), "high", true),
        (select("In", &["low", "mid"]), "high", false),
        (select("NotIn", &["low"]), "", true),
        (select("NotIn", &["low"]), "low", false),
        (select("Exists", &[]), "", false),
        (select("DoesNotExist", &[]), "", true),
        (json!({"scopes": ["PriorityClass"]}), "high", true),
        (
            json!({"scopes": ["CrossNamespacePodAffinity"]}),
            "high",
            false,
        ),
    ];
    for (spec, class, covered) in cases {
        let quotas = [quota(
            json!({"pods": "1"}),
            json!({"pods": "0"}),
            spec.clone(),
        )];
        let expected = if covered {
            "charged: pods=1"
        } else {
            "charged: "
        };
        let found = outcome(&quotas, &asked("pods", &pod(class), None), &[]);
        assert_eq!(found, expected, "{class} under {spec}");
    }
}

#[test]
fn what_is_limited_by_default_needs_a_quota() {
    let limited = LimitedResource::all(&json!({"limitedResources": [
        {"resource": "persistentvolumeclaims", "matchContains": ["requests.storage"]},
        {"resource": "pods", "matchScopes": [{"scopeName": "PriorityClass", "operator": "In", "values": ["high"]}]}]}));
    let claim = json!({"spec": {"resources": {"requests": {"storage": "1Gi"}}}});
    let pod = json!({"spec": {"priorityClassName": "high", "containers": []}});
    let storage = [quota(
        json!({"requests.storage": "2Gi"}),
        json!({"requests.storage": "0"}),
        json!({}),
    )];
    let high = [quota(
        json!({"pods": "2"}),
        json!({"pods": "0"}),
        json!({"scopeSelector": {"matchExpressions": [
        {"scopeName": "PriorityClass", "operator": "In", "values": ["high"]}]}}),
    )];
    let cases: [(&str, &Value, &[Quota], &str); 5] = [
        (
            "persistentvolumeclaims",
            &claim,
            &[],
            "insufficient quota to consume: requests.storage",
        ),
        (
            "persistentvolumeclaims",
            &claim,
            &storage,
            "charged: requests.storage=1Gi",
        ),
        (
            "pods",
            &pod,
            &[],
            "insufficient quota to match these scopes: [{PriorityClass In [high]}]",
        ),
        ("pods", &pod, &high, "charged: pods=1"),
        ("secrets", &json!({}), &[], "charged: "),
    ];
    for (resource, object, quotas, expected) in cases {
        assert_eq!(
            outcome(quotas, &asked(resource, object, None), &limited),
            expected,
            "{resource}"
        );
    }
}

/// Quotas in memory, whose status somebody else changes too.
struct Contended {
    memory: crate::testing::Memory,
    revision: std::sync::atomic::AtomicU64,
}

#[async_trait]
impl QuotaStatus for Contended {
    async fn set_used(
        &self,
        namespace: &str,
        name: &str,
        resource_version: &str,
        used: Vec<(String, String)>,
    ) -> Result<(), ApiError> {
        use keelson_machinery::meta::{self, GroupResource};
        let objects = self.memory.objects();
        let mut quota = objects
            .get("", "resourcequotas", namespace, name)
            .await?
            .as_ref()
            .clone();
        let revision = self
            .revision
            .fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let lost = revision % 3 == 0;
        if lost {
            // Somebody else was here.
            meta::set(&mut quota, "resourceVersion", format!("{}", revision + 100));
        }
        let conflict = ApiError::optimistic_lock(&GroupResource::new("", "resourcequotas"), name);
        if !lost {
            if meta::resource_version(&quota) != resource_version {
                return Err(conflict);
            }
            for (resource, amount) in used {
                value::set(&mut quota, &["status", "used", &resource], amount);
            }
            meta::set(&mut quota, "resourceVersion", format!("{}", revision + 100));
        }
        self.memory.put("", "resourcequotas", quota);
        tokio::task::yield_now().await;
        if lost { Err(conflict) } else { Ok(()) }
    }
}

#[tokio::test]
async fn requests_at_once_never_exceed() {
    let memory = crate::testing::Memory::default();
    memory.put(
        "",
        "resourcequotas",
        json!({"metadata": {"name": "q", "namespace": "n", "resourceVersion": "1"},
        "status": {"hard": {"count/configmaps": "10"}, "used": {"count/configmaps": "0"}}}),
    );
    let status = Contended {
        memory: memory.clone(),
        revision: 0.into(),
    };
    let clock = crate::testing::HandClock::new().clock();
    let plugin = Arc::new(ResourceQuota::new(
        memory.objects(),
        Arc::new(status),
        Vec::new(),
        clock,
    ));
    let ask = |dry_run: bool| {
        let mut one = asked("configmaps", &json!({}), None);
        one.dry_run = dry_run;
        one
    };
    let tasks: Vec<_> = (0..40)
        .map(|number| {
            let (plugin, one) = (plugin.clone(), ask(number % 10 == 9));
            tokio::spawn(async move { plugin.charge("n", one).await.is_ok() })
        })
        .collect();
    let mut real = 0;
    for (number, task) in tasks.into_iter().enumerate() {
        if task.await.expect("no panic") && number % 10 != 9 {
            real += 1;
        }
    }
    let stored = memory
        .objects()
        .get("", "resourcequotas", "n", "q")
        .await
        .expect("a quota");
    assert_eq!(
        value::get_str(&stored, &["status", "used", "count/configmaps"]),
        Some("10")
    );
    assert_eq!(real, 10);
    assert!(plugin.lanes.lock().is_empty());
}
