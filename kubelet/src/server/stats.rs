//! `/stats/summary`: what pods and the node use (upstream `stats/v1alpha1`).

use std::collections::HashMap;

use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use super::Server;
use crate::container::labels;
use crate::cri;
use crate::node::machine;
use crate::podutil;

/// Remembers CPU readings, to tell the rate between two.
#[derive(Default)]
pub struct Stats {
    last: Mutex<HashMap<String, (i64, u64)>>,
}

/// How many readings are remembered.
const REMEMBERED: usize = 8192;

fn time(nanos: i64) -> Value {
    match Timestamp::from_nanosecond(i128::from(nanos)) {
        Ok(t) => json!(podutil::time(t)),
        Err(_) => Value::Null,
    }
}

/// One container's figures as the runtime gives them.
#[derive(Clone, Debug, Default)]
pub struct Usage {
    /// The pod's uid.
    pub uid: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The container's name.
    pub container: String,
    /// When it was read, in nanoseconds.
    pub at: i64,
    /// CPU time since its start, in nanoseconds.
    pub cpu: Option<u64>,
    /// Bytes in use that cannot be given back at once.
    pub working_set: Option<u64>,
    /// All bytes in use.
    pub memory: Option<u64>,
    /// Bytes that are not of files.
    pub rss: Option<u64>,
    /// Bytes of its writable layer.
    pub disk: Option<u64>,
}

/// The figures of all running containers.
pub async fn usages(server: &Server) -> Result<Vec<Usage>, String> {
    let all = server
        .shared
        .runtime
        .list_container_stats(cri::ContainerStatsFilter::default())
        .await
        .map_err(|e| format!("failed to list container stats: {e}"))?;
    Ok(all
        .into_iter()
        .filter_map(|s| {
            let a = s.attributes?;
            let label = |k: &str| a.labels.get(k).cloned().unwrap_or_default();
            let of = |v: Option<cri::UInt64Value>| v.map(|v| v.value);
            let (cpu, memory) = (s.cpu, s.memory);
            Some(Usage {
                uid: label(labels::POD_UID),
                namespace: label(labels::POD_NAMESPACE),
                pod: label(labels::POD_NAME),
                container: label(labels::CONTAINER_NAME),
                at: cpu.as_ref().map_or(0, |c| c.timestamp),
                cpu: cpu.and_then(|c| of(c.usage_core_nano_seconds)),
                working_set: memory
                    .as_ref()
                    .and_then(|m| of(m.working_set_bytes.clone())),
                memory: memory.as_ref().and_then(|m| of(m.usage_bytes.clone())),
                rss: memory.as_ref().and_then(|m| of(m.rss_bytes.clone())),
                disk: s.writable_layer.and_then(|w| of(w.used_bytes)),
            })
        })
        .collect())
}

/// CPU time of the whole machine in nanoseconds.
pub fn node_cpu() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/stat").ok()?;
    let fields: Vec<u64> = text
        .lines()
        .next()?
        .split_whitespace()
        .skip(1)
        .filter_map(|f| f.parse().ok())
        .collect();
    // user, nice, system, idle, iowait, irq, softirq, steal; in hundredths of a second.
    let busy: u64 = [0, 1, 2, 5, 6, 7]
        .iter()
        .filter_map(|i| fields.get(*i))
        .sum();
    Some(busy * 10_000_000)
}

impl Stats {
    /// The rate in nano-cores since the last reading of `key`.
    fn rate(&self, key: &str, at: i64, cpu: u64) -> Option<u64> {
        let mut last = self.last.lock();
        if last.len() > REMEMBERED {
            last.clear();
        }
        let before = last.insert(key.to_owned(), (at, cpu))?;
        let span = u64::try_from(at - before.0).ok().filter(|s| *s > 0)?;
        Some(
            u64::try_from(
                u128::from(cpu.checked_sub(before.1)?) * 1_000_000_000 / u128::from(span),
            )
            .unwrap_or(0),
        )
    }

    fn cpu(&self, key: &str, at: i64, cpu: Option<u64>) -> Value {
        let mut m = Map::new();
        m.insert("time".into(), time(at));
        if let Some(c) = cpu {
            m.insert(
                "usageNanoCores".into(),
                json!(self.rate(key, at, c).unwrap_or(0)),
            );
            m.insert("usageCoreNanoSeconds".into(), json!(c));
        }
        Value::Object(m)
    }

    /// The summary of the node and its pods.
    pub async fn summary(&self, server: &Server, brief: bool) -> Result<Value, String> {
        let usages = usages(server).await?;
        let now = i64::try_from(server.shared.clock.now().as_nanosecond()).unwrap_or(0);
        let memory = |u: &Usage| {
            json!({"time": time(u.at), "workingSetBytes": u.working_set.unwrap_or(0),
                "usageBytes": u.memory.or(u.working_set).unwrap_or(0), "rssBytes": u.rss.unwrap_or(0)})
        };
        let fs = |u: machine::FsUsage, used: Option<u64>| {
            json!({"time": time(now), "availableBytes": u.available, "capacityBytes": u.capacity,
                "usedBytes": used.map_or(u.capacity - u.available, |n| i64::try_from(n).unwrap_or(0)),
                "inodesFree": u.inodes_free, "inodes": u.inodes, "inodesUsed": u.inodes - u.inodes_free})
        };
        let root = machine::fs_usage(&server.shared.config.root_dir).map_err(|e| e.to_string())?;
        let mut pods = Vec::new();
        for pod in server.manager.pods() {
            let uid = podutil::uid(&pod);
            let of_pod: Vec<&Usage> = usages
                .iter()
                .filter(|u| u.uid == uid && !u.container.is_empty())
                .collect();
            let status = server.shared.status.get(uid).unwrap_or_default();
            let start = status.start_time.clone();
            let mut containers = Vec::new();
            for u in &of_pod {
                let started = status
                    .container_statuses
                    .iter()
                    .flatten()
                    .chain(status.init_container_statuses.iter().flatten())
                    .find(|c| c.name == u.container)
                    .and_then(|c| c.state.as_ref()?.running.as_ref()?.started_at.clone());
                let mut c = json!({"name": u.container, "startTime": started,
                    "cpu": self.cpu(&format!("{uid}/{}", u.container), u.at, u.cpu), "memory": memory(u)});
                if !brief {
                    c["rootfs"] = fs(root, u.disk);
                    c["logs"] = fs(root, Some(0));
                }
                containers.push(c);
            }
            let at = of_pod.iter().map(|u| u.at).max().unwrap_or(now);
            let sum =
                |f: fn(&Usage) -> Option<u64>| -> u64 { of_pod.iter().filter_map(|u| f(u)).sum() };
            let total = Usage {
                at,
                working_set: Some(sum(|u| u.working_set)),
                memory: Some(sum(|u| u.memory)),
                rss: Some(sum(|u| u.rss)),
                ..Usage::default()
            };
            let mut p = json!({
                "podRef": {"name": podutil::name(&pod), "namespace": podutil::namespace(&pod), "uid": uid},
                "startTime": start,
                "containers": containers,
                "cpu": self.cpu(uid, at, Some(sum(|u| u.cpu))),
                "memory": memory(&total),
            });
            if !brief {
                p["ephemeral-storage"] = fs(root, Some(sum(|u| u.disk)));
            }
            pods.push(p);
        }
        let available = machine::meminfo("MemAvailable").map_err(|e| e.to_string())?;
        let total = machine::meminfo("MemTotal").map_err(|e| e.to_string())?;
        let free = machine::meminfo("MemFree").map_err(|e| e.to_string())?;
        let boot = std::fs::read_to_string("/proc/stat")
            .ok()
            .and_then(|t| {
                t.lines()
                    .find_map(|l| l.strip_prefix("btime ")?.trim().parse::<i64>().ok())
            })
            .unwrap_or(0);
        let mut node = json!({
            "nodeName": server.shared.config.node_name,
            "startTime": time(boot.saturating_mul(1_000_000_000)),
            "systemContainers": [],
            "cpu": self.cpu("", now, node_cpu()),
            "memory": {"time": time(now), "availableBytes": available, "usageBytes": total - free,
                "workingSetBytes": total - available},
        });
        if !brief {
            node["fs"] = fs(root, None);
            node["runtime"] = json!({"imageFs": fs(root, None), "containerFs": fs(root, None)});
        }
        Ok(json!({"node": node, "pods": pods}))
    }
}
