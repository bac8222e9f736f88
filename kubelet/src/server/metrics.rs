//! The kubelet's metrics in Prometheus' text format. All are computed when they are asked for.

use std::fmt::Write;

use super::Server;
use super::stats::{self, Usage};
use crate::cri;
use crate::node::machine;

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn escape(s: &str) -> String {
    s.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

/// `/metrics`: the kubelet's own.
pub async fn kubelet(server: &Server) -> Result<String, String> {
    let runtime = &server.shared.runtime;
    let sandboxes = runtime
        .list_pod_sandbox(cri::PodSandboxFilter::default())
        .await
        .map_err(|e| e.to_string())?;
    let containers = runtime
        .list_containers(cri::ContainerFilter::default())
        .await
        .map_err(|e| e.to_string())?;
    let ready = cri::PodSandboxState::Ready as i32;
    let mut out = String::new();
    head(
        &mut out,
        "kubelet_node_name",
        "gauge",
        "[ALPHA] The node's name. The count is always 1.",
    );
    let _ = writeln!(
        out,
        "kubelet_node_name{{node=\"{}\"}} 1",
        escape(&server.shared.config.node_name)
    );
    head(
        &mut out,
        "kubelet_running_pods",
        "gauge",
        "[BETA] Number of pods that have a running pod sandbox",
    );
    let _ = writeln!(
        out,
        "kubelet_running_pods {}",
        sandboxes.iter().filter(|s| s.state == ready).count()
    );
    head(
        &mut out,
        "kubelet_running_containers",
        "gauge",
        "[BETA] Number of containers currently running",
    );
    for (label, state) in [
        ("created", cri::ContainerState::Created),
        ("exited", cri::ContainerState::Exited),
        ("running", cri::ContainerState::Running),
        ("unknown", cri::ContainerState::Unknown),
    ] {
        let n = containers
            .iter()
            .filter(|c| c.state == state as i32)
            .count();
        let _ = writeln!(
            out,
            "kubelet_running_containers{{container_state=\"{label}\"}} {n}"
        );
    }
    head(
        &mut out,
        "kubelet_desired_pods",
        "gauge",
        "[ALPHA] The number of pods the kubelet is being instructed to run.",
    );
    let _ = writeln!(out, "kubelet_desired_pods {}", server.manager.pods().len());
    process(&mut out);
    Ok(out)
}

fn process(out: &mut String) {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else {
        return;
    };
    let kib = |key: &str| {
        status.lines().find_map(|l| {
            l.strip_prefix(key)?
                .trim_start_matches(':')
                .split_whitespace()
                .next()?
                .parse::<u64>()
                .ok()
        })
    };
    if let Some(n) = kib("VmRSS") {
        head(
            out,
            "process_resident_memory_bytes",
            "gauge",
            "Resident memory size in bytes.",
        );
        let _ = writeln!(out, "process_resident_memory_bytes {}", n * 1024);
    }
}

fn by_container(
    out: &mut String,
    all: &[Usage],
    name: &str,
    kind: &str,
    help: &str,
    of: impl Fn(&Usage) -> Option<f64>,
) {
    head(out, name, kind, help);
    for u in all.iter().filter(|u| !u.container.is_empty()) {
        if let Some(v) = of(u) {
            let _ = writeln!(
                out,
                "{name}{{container=\"{}\",namespace=\"{}\",pod=\"{}\"}} {v} {}",
                escape(&u.container),
                escape(&u.namespace),
                escape(&u.pod),
                u.at / 1_000_000
            );
        }
    }
}

fn by_pod(
    out: &mut String,
    all: &[Usage],
    name: &str,
    kind: &str,
    help: &str,
    of: impl Fn(&Usage) -> Option<f64>,
) {
    head(out, name, kind, help);
    let mut pods: std::collections::BTreeMap<(&str, &str), (f64, i64)> = Default::default();
    for u in all.iter().filter(|u| !u.container.is_empty()) {
        let e = pods.entry((&u.namespace, &u.pod)).or_default();
        e.0 += of(u).unwrap_or(0.0);
        e.1 = e.1.max(u.at);
    }
    for ((namespace, pod), (v, at)) in pods {
        let _ = writeln!(
            out,
            "{name}{{namespace=\"{}\",pod=\"{}\"}} {v} {}",
            escape(namespace),
            escape(pod),
            at / 1_000_000
        );
    }
}

fn seconds(u: &Usage) -> Option<f64> {
    u.cpu.map(|n| n as f64 / 1e9)
}

fn working_set(u: &Usage) -> Option<f64> {
    u.working_set.map(|n| n as f64)
}

/// `/metrics/resource`: what the metrics server reads.
pub async fn resource(server: &Server) -> Result<String, String> {
    let all = stats::usages(server).await?;
    let mut out = String::new();
    by_container(
        &mut out,
        &all,
        "container_cpu_usage_seconds_total",
        "counter",
        "[STABLE] Cumulative cpu time consumed by the container in core-seconds",
        seconds,
    );
    by_container(
        &mut out,
        &all,
        "container_memory_working_set_bytes",
        "gauge",
        "[STABLE] Current working set of the container in bytes",
        working_set,
    );
    let now = server.shared.clock.now().as_millisecond();
    if let Some(cpu) = stats::node_cpu() {
        head(
            &mut out,
            "node_cpu_usage_seconds_total",
            "counter",
            "[STABLE] Cumulative cpu time consumed by the node in core-seconds",
        );
        let _ = writeln!(
            out,
            "node_cpu_usage_seconds_total {} {now}",
            cpu as f64 / 1e9
        );
    }
    if let (Ok(total), Ok(available)) = (
        machine::meminfo("MemTotal"),
        machine::meminfo("MemAvailable"),
    ) {
        head(
            &mut out,
            "node_memory_working_set_bytes",
            "gauge",
            "[STABLE] Current working set of the node in bytes",
        );
        let _ = writeln!(
            out,
            "node_memory_working_set_bytes {} {now}",
            total - available
        );
    }
    by_pod(
        &mut out,
        &all,
        "pod_cpu_usage_seconds_total",
        "counter",
        "[STABLE] Cumulative cpu time consumed by the pod in core-seconds",
        seconds,
    );
    by_pod(
        &mut out,
        &all,
        "pod_memory_working_set_bytes",
        "gauge",
        "[STABLE] Current working set of the pod in bytes",
        working_set,
    );
    head(
        &mut out,
        "resource_scrape_error",
        "gauge",
        "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise",
    );
    let _ = writeln!(out, "resource_scrape_error 0");
    Ok(out)
}

/// `/metrics/cadvisor`: the container figures under cAdvisor's names.
pub async fn cadvisor(server: &Server) -> Result<String, String> {
    let all = stats::usages(server).await?;
    let mut out = String::new();
    by_container(
        &mut out,
        &all,
        "container_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed in seconds.",
        seconds,
    );
    by_container(
        &mut out,
        &all,
        "container_memory_working_set_bytes",
        "gauge",
        "Current working set in bytes.",
        working_set,
    );
    by_container(
        &mut out,
        &all,
        "container_memory_usage_bytes",
        "gauge",
        "Current memory usage in bytes, including all memory regardless of when it was accessed",
        |u| u.memory.map(|n| n as f64),
    );
    by_container(
        &mut out,
        &all,
        "container_memory_rss",
        "gauge",
        "Size of RSS in bytes.",
        |u| u.rss.map(|n| n as f64),
    );
    Ok(out)
}
