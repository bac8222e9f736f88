//! The cgroups of pods: `<root>/kubepods[/burstable|/besteffort]/pod<uid>`, on cgroup v1 and v2 with plain
//! directories (the `cgroupfs` driver; upstream `pkg/kubelet/cm`).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

use crate::podutil;
use crate::resources::{self, Qos};

/// The file-system type of cgroup v2.
const CGROUP2_MAGIC: u32 = 0x6367_7270;

/// What a pod's cgroup allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// CPU shares as of cgroup v1.
    pub cpu_shares: i64,
    /// Quota and period in microseconds.
    pub cpu_quota: Option<(i64, i64)>,
    /// Bytes.
    pub memory: Option<i64>,
    /// Processes.
    pub pids: Option<i64>,
}

impl Limits {
    /// The wider of both in each respect, for the time in which a pod's containers go from one to the other.
    pub fn or_wider(&self, other: &Limits) -> Limits {
        fn wider<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
            Some(a?.max(b?))
        }
        Limits {
            cpu_shares: self.cpu_shares.max(other.cpu_shares),
            cpu_quota: wider(self.cpu_quota, other.cpu_quota),
            memory: wider(self.memory, other.memory),
            pids: wider(self.pids, other.pids),
        }
    }
}

/// The limits of a pod as a whole (upstream `ResourceConfigForPod`): a limit only counts if all containers have one.
pub fn pod_limits(pod: &Pod, cfs: Option<i64>, pids: i64) -> Limits {
    let all_have = |name: &str| {
        let of_pod = podutil::spec(pod).resources.as_ref();
        resources::limit(of_pod, name).is_some()
            || podutil::containers(pod)
                .iter()
                .chain(podutil::init_containers(pod))
                .all(|c| resources::limit(c.resources.as_ref(), name).is_some_and(|n| n > 0))
    };
    let request = resources::pod_total(pod, "cpu", resources::request);
    let limit = resources::pod_total(pod, "cpu", resources::limit);
    let mut out = Limits {
        pids: (pids > 0).then_some(pids),
        ..Limits::default()
    };
    if resources::qos(pod) == Qos::BestEffort {
        out.cpu_shares = resources::MIN_SHARES;
        return out;
    }
    out.cpu_shares = resources::milli_to_shares(if request == 0 && all_have("cpu") {
        limit
    } else {
        request
    });
    if let Some(period) = cfs.filter(|_| all_have("cpu")) {
        out.cpu_quota = Some((resources::milli_to_quota(limit, period), period));
    }
    if all_have("memory") {
        out.memory = Some(resources::pod_total(pod, "memory", resources::limit));
    }
    out
}

/// The cgroups of all pods of the node.
#[derive(Clone, Debug)]
pub struct Cgroups {
    /// The hierarchies; one on cgroup v2.
    hierarchies: Vec<PathBuf>,
    /// The v2 tree of a hybrid machine: without controllers, but runtimes make their groups in it all the same.
    unified: Option<PathBuf>,
    v2: bool,
    /// Relative to each hierarchy, such as `kn1/kubepods`.
    root: PathBuf,
}

impl Cgroups {
    /// Finds out what the machine has. `root` is the configured `cgroupRoot`.
    pub fn detect(root: &str) -> io::Result<Self> {
        Self::at(Path::new("/sys/fs/cgroup"), root)
    }

    fn at(mount: &Path, root: &str) -> io::Result<Self> {
        let v2 = rustix::fs::statfs(mount)?.f_type as u32 == CGROUP2_MAGIC;
        let mut hierarchies = Vec::new();
        let mut unified = None;
        if v2 {
            hierarchies.push(mount.to_path_buf());
        } else {
            for e in fs::read_dir(mount)? {
                let path = e?.path();
                if path.file_name().is_some_and(|n| n == "unified") {
                    unified = Some(path);
                    continue;
                }
                if !path.is_dir() {
                    continue;
                }
                let path = path.canonicalize()?;
                if path.join("cgroup.procs").exists() && !hierarchies.contains(&path) {
                    hierarchies.push(path);
                }
            }
        }
        if hierarchies.is_empty() {
            return Err(io::Error::other(format!(
                "no cgroup hierarchy is mounted below {}",
                mount.display()
            )));
        }
        hierarchies.sort();
        Ok(Cgroups {
            hierarchies,
            unified,
            v2,
            root: Path::new(root.trim_matches('/')).join("kubepods"),
        })
    }

    /// Whether the machine is on cgroup v2.
    pub fn is_v2(&self) -> bool {
        self.v2
    }

    fn qos_dir(&self, qos: Qos) -> PathBuf {
        match qos {
            Qos::Guaranteed => self.root.clone(),
            Qos::Burstable => self.root.join("burstable"),
            Qos::BestEffort => self.root.join("besteffort"),
        }
    }

    fn pod_dir(&self, pod: &Pod) -> PathBuf {
        self.qos_dir(resources::qos(pod))
            .join(format!("pod{}", podutil::uid(pod)))
    }

    /// The pod's cgroup as the runtime is told.
    pub fn parent(&self, pod: &Pod) -> String {
        format!("/{}", self.pod_dir(pod).display())
    }

    /// Makes the cgroups that hold all pods.
    pub fn prepare(&self, capacity_milli_cpu: i64) -> io::Result<()> {
        self.create(
            &self.root,
            &Limits {
                cpu_shares: resources::milli_to_shares(capacity_milli_cpu),
                ..Limits::default()
            },
        )?;
        for qos in [Qos::Burstable, Qos::BestEffort] {
            self.create(
                &self.qos_dir(qos),
                &Limits {
                    cpu_shares: resources::MIN_SHARES,
                    ..Limits::default()
                },
            )?;
        }
        Ok(())
    }

    /// Sets the share of all burstable pods together, in milli-cores asked for.
    pub fn set_burstable(&self, request_milli: i64) -> io::Result<()> {
        let shares = resources::milli_to_shares(request_milli);
        self.apply(
            &self.qos_dir(Qos::Burstable),
            &Limits {
                cpu_shares: shares,
                ..Limits::default()
            },
        )
    }

    /// Whether the pod's cgroup exists everywhere.
    pub fn exists(&self, pod: &Pod) -> bool {
        let dir = self.pod_dir(pod);
        self.hierarchies.iter().all(|h| h.join(&dir).is_dir())
    }

    /// Makes the pod's cgroup.
    pub fn create_pod(&self, pod: &Pod, limits: &Limits) -> io::Result<()> {
        self.create(&self.pod_dir(pod), limits)
    }

    /// Gives a pod that runs other limits.
    pub fn resize_pod(&self, pod: &Pod, limits: &Limits) -> io::Result<()> {
        self.apply(&self.pod_dir(pod), limits)
    }

    /// How much memory a container of the pod uses; `None` where its cgroup is not below the pod's.
    pub fn memory_usage(&self, pod: &Pod, container: &str) -> Option<i64> {
        let file = if self.v2 {
            "memory.current"
        } else {
            "memory.usage_in_bytes"
        };
        self.hierarchies.iter().find_map(|h| {
            let path = h.join(self.pod_dir(pod)).join(container).join(file);
            fs::read_to_string(path).ok()?.trim().parse().ok()
        })
    }

    /// Removes the cgroup of the pod `uid`, wherever it is, with whatever still runs in it.
    pub async fn remove_pod(&self, uid: &str) -> io::Result<()> {
        for qos in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
            for h in self.hierarchies.iter().chain(&self.unified) {
                let dir = h.join(self.qos_dir(qos)).join(format!("pod{uid}"));
                if dir.is_dir() {
                    remove_tree(&dir).await?;
                }
            }
        }
        Ok(())
    }

    /// The uids of all pods that have a cgroup.
    pub fn known_pods(&self) -> io::Result<Vec<String>> {
        let mut out = Vec::new();
        for qos in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
            for h in &self.hierarchies {
                let entries = match fs::read_dir(h.join(self.qos_dir(qos))) {
                    Ok(e) => e,
                    Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                    Err(e) => return Err(e),
                };
                for e in entries {
                    if let Some(uid) = e?.file_name().to_str().and_then(|n| n.strip_prefix("pod")) {
                        out.push(uid.to_owned());
                    }
                }
            }
        }
        out.sort();
        out.dedup();
        Ok(out)
    }

    fn create(&self, dir: &Path, limits: &Limits) -> io::Result<()> {
        for h in &self.hierarchies {
            let mut at = h.clone();
            for part in dir.components() {
                if self.v2 {
                    enable_controllers(&at)?;
                }
                let parent = at.clone();
                at.push(part);
                match fs::create_dir(&at) {
                    Ok(()) => inherit_cpuset(&parent, &at)?,
                    Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                    Err(e) => return Err(e),
                }
            }
        }
        self.apply(dir, limits)
    }

    fn apply(&self, dir: &Path, l: &Limits) -> io::Result<()> {
        for h in &self.hierarchies {
            let at = h.join(dir);
            // A file that is not there belongs to a controller of another hierarchy.
            let set = |file: &str, value: String| match at.join(file) {
                f if f.exists() => fs::write(&f, &value).map_err(|e| {
                    io::Error::new(
                        e.kind(),
                        format!("writing {value:?} to {}: {e}", f.display()),
                    )
                }),
                _ => Ok(()),
            };
            if self.v2 {
                // The kernel's weights are 1..10000 where shares are 2..262144 (KEP-2254).
                set(
                    "cpu.weight",
                    (1 + ((l.cpu_shares - 2) * 9999) / 262_142).to_string(),
                )?;
                if let Some((quota, period)) = l.cpu_quota {
                    set("cpu.max", format!("{quota} {period}"))?;
                }
                if let Some(m) = l.memory {
                    set("memory.max", m.to_string())?;
                }
            } else {
                set("cpu.shares", l.cpu_shares.to_string())?;
                if let Some((quota, period)) = l.cpu_quota {
                    set("cpu.cfs_period_us", period.to_string())?;
                    set("cpu.cfs_quota_us", quota.to_string())?;
                }
                if let Some(m) = l.memory {
                    set("memory.limit_in_bytes", m.to_string())?;
                }
            }
            if let Some(n) = l.pids {
                set("pids.max", n.to_string())?;
            }
        }
        Ok(())
    }
}

/// On cgroup v1 a new cpuset is empty, and nothing can run in it until it is filled.
fn inherit_cpuset(parent: &Path, child: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let (from, to) = (parent.join(file), child.join(file));
        if !from.exists() || !to.exists() {
            continue;
        }
        if fs::read_to_string(&to)?.trim().is_empty() {
            let value = fs::read_to_string(&from)?;
            if !value.trim().is_empty() {
                fs::write(&to, value.trim())?;
            }
        }
    }
    Ok(())
}

/// On cgroup v2 children only have the controllers that their parent passes on.
fn enable_controllers(dir: &Path) -> io::Result<()> {
    let available = fs::read_to_string(dir.join("cgroup.controllers"))?;
    for c in available.split_whitespace() {
        // One that cannot be passed on (in use by a realtime task, say) shall not keep the others back.
        if let Err(error) = fs::write(dir.join("cgroup.subtree_control"), format!("+{c}")) {
            tracing::debug!(%error, controller = c, dir = %dir.display(), "a cgroup controller cannot be enabled");
        }
    }
    Ok(())
}

async fn remove_tree(dir: &Path) -> io::Result<()> {
    for attempt in 0..20 {
        match remove_once(dir) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) if attempt == 19 => return Err(e),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    Ok(())
}

fn remove_once(dir: &Path) -> io::Result<()> {
    for e in fs::read_dir(dir)? {
        let e = e?;
        if e.file_type()?.is_dir() {
            remove_once(&e.path())?;
        }
    }
    for pid in fs::read_to_string(dir.join("cgroup.procs"))?.lines() {
        if let Some(pid) = pid
            .trim()
            .parse()
            .ok()
            .and_then(rustix::process::Pid::from_raw)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    fs::remove_dir(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_pods() {
        let check = |containers: &str, want: Limits| {
            let pod: Pod =
                serde_yaml_ng::from_str(&format!("spec: {{containers: {containers}}}")).unwrap();
            assert_eq!(pod_limits(&pod, Some(100_000), -1), want, "{containers}");
        };
        check(
            "[{name: a}]",
            Limits {
                cpu_shares: 2,
                ..Limits::default()
            },
        );
        check(
            "[{name: a, resources: {limits: {cpu: 500m, memory: 64Mi}, requests: {cpu: 250m}}}]",
            Limits {
                cpu_shares: 256,
                cpu_quota: Some((50_000, 100_000)),
                memory: Some(64 << 20),
                pids: None,
            },
        );
        check(
            "[{name: a, resources: {limits: {cpu: 500m}, requests: {cpu: 500m}}}, {name: b}]",
            Limits {
                cpu_shares: 512,
                ..Limits::default()
            },
        );
    }
}
