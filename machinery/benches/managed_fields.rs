//! What field ownership costs a write: microseconds to track a create, a patch and an apply of a realistic pod.
//!
//! `cargo bench -p keelson-machinery --bench managed_fields`

use std::hint::black_box;
use std::time::{Duration, Instant};

use keelson_machinery::apply::{self, Set, Write};
use keelson_machinery::schema::{Schema, apply_defaults, normalize};
use keelson_machinery::value::{self, Value};
use serde_json::json;

/// Long enough that the clock's own cost is lost in it.
const SPAN: Duration = Duration::from_secs(1);

fn pod() -> Value {
    let env: Vec<Value> = (0..12)
        .map(|n| json!({"name": format!("VAR_{n}"), "value": format!("value-{n}-of-the-pod")}))
        .collect();
    let container = |name: &str| {
        json!({
            "name": name,
            "image": format!("registry.example.com/team/{name}:v1.2.3"),
            "args": ["--listen=:8080", "--level=info"],
            "env": env,
            "ports": [{"name": "http", "containerPort": 8080}],
            "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"cpu": "1", "memory": "512Mi"}},
            "livenessProbe": {"httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 10},
            "volumeMounts": [{"name": "config", "mountPath": "/etc/config"}, {"name": "data", "mountPath": "/data"}],
        })
    };
    json!({
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": {"name": "p", "namespace": "default", "labels": {"app": "a", "tier": "web"}},
        "spec": {
            "containers": [container("main"), container("side")],
            "volumes": [{"name": "config", "configMap": {"name": "c"}}, {"name": "data", "emptyDir": {}}],
            "nodeSelector": {"disk": "ssd"},
        },
    })
}

/// Prints the mean time of one run of `work`.
#[allow(clippy::disallowed_methods)] // The one thing here that asks for the time.
fn measure(name: &str, mut work: impl FnMut()) {
    let start = Instant::now();
    let mut runs = 0_u32;
    while start.elapsed() < SPAN {
        work();
        runs += 1;
    }
    let each = start.elapsed() / runs.max(1);
    println!("{name}: {:.1} us", each.as_nanos() as f64 / 1000.0);
}

fn main() {
    let Some(of) = Schema::builtin().lookup("io.k8s.api.core.v1.Pod") else {
        eprintln!("the type table has no Pod");
        return;
    };
    let ignored = Set::of_fields(&[&["status"]]);
    let write = |manager: &'static str| Write {
        object_type: of,
        api_version: "v1",
        subresource: "",
        manager,
        ignored: &ignored,
        now: "2026-01-01T00:00:00Z",
    };
    let mut new = pod();
    apply_defaults(&mut new, of);
    normalize(&mut new, of);
    let zero = apply::zero_object(of);

    let copy = || black_box(new.clone());
    measure("copy of the pod (part of the figures below)", || {
        black_box(copy());
    });
    measure("create", || {
        let mut object = copy();
        apply::track(&zero, &mut object, &write("create"));
        black_box(object);
    });
    let mut stored = new.clone();
    apply::track(&zero, &mut stored, &write("create"));
    value::set(&mut stored, &["metadata", "uid"], "u");
    measure("patch of a label", || {
        let mut object = stored.clone();
        value::set(&mut object, &["metadata", "labels", "x"], "y");
        apply::track(&stored, &mut object, &write("patch"));
        black_box(object);
    });
    let config = pod();
    measure("apply of the same pod", || {
        let applied = apply::apply(&stored, &config, &write("apply"), true);
        black_box(applied.is_ok());
    });
}
