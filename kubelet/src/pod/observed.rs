//! What the runtime says about one pod, at one moment. The runtime is the truth: every decision starts from a
//! fresh reading, so that a restarted kubelet carries on where the last one stopped.

use std::collections::BTreeMap;
use std::path::Path;

use jiff::Timestamp;

use crate::container::labels;
use crate::cri::{self, CriResult, Runtime};
use crate::server::logs;

/// Upstream `kubecontainer.MaxContainerTerminationMessageLength`.
const MAX_MESSAGE: u64 = 4096;
/// Upstream `kubecontainer.MaxContainerTerminationMessageLogLength`.
const MAX_LOG_MESSAGE: u64 = 2048;
/// Upstream `kubecontainer.MaxContainerTerminationMessageLogLines`.
const MAX_LOG_LINES: usize = 80;

/// The state of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    /// Made but not started.
    Created,
    /// Running.
    Running,
    /// Ended.
    Exited,
    /// The runtime does not know.
    Unknown,
}

/// A container as the runtime has it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The runtime's id, without the runtime's name.
    pub id: String,
    /// The container's name in the pod.
    pub name: String,
    /// The sandbox it belongs to.
    pub sandbox_id: String,
    /// Its state.
    pub state: RunState,
    /// When it was made.
    pub created_at: Option<Timestamp>,
    /// When it started.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// Its exit code, once it has ended.
    pub exit_code: i32,
    /// Why it ended, such as `Completed`, `Error` or `OOMKilled`.
    pub reason: String,
    /// The runtime's message and the termination message.
    pub message: String,
    /// The image by name.
    pub image: String,
    /// The image by digest.
    pub image_ref: String,
    /// How often it was restarted before.
    pub restart_count: i32,
    /// The fingerprint of its definition when it was made.
    pub hash: String,
    /// The user it runs as.
    pub user: Option<cri::LinuxContainerUser>,
    /// All annotations, see [`labels::remembered`].
    pub annotations: BTreeMap<String, String>,
}

/// A sandbox as the runtime has it.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// The runtime's id.
    pub id: String,
    /// The how-manieth sandbox of the pod this is.
    pub attempt: u32,
    /// Whether it is ready.
    pub ready: bool,
    /// When it was made.
    pub created_at: i64,
    /// Whether it uses the node's network.
    pub host_network: bool,
    /// Its addresses.
    pub ips: Vec<String>,
}

/// All that the runtime has of a pod; both lists with the newest first.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// The sandboxes.
    pub sandboxes: Vec<Sandbox>,
    /// The containers, of all sandboxes.
    pub containers: Vec<Seen>,
}

impl Observed {
    /// The newest container of that name.
    pub fn latest(&self, name: &str) -> Option<&Seen> {
        self.containers.iter().find(|c| c.name == name)
    }

    /// The containers that run or may run.
    pub fn running(&self) -> impl Iterator<Item = &Seen> {
        self.containers
            .iter()
            .filter(|c| matches!(c.state, RunState::Running | RunState::Unknown))
    }

    /// The pod's addresses: those of the newest sandbox, if it is ready.
    pub fn ips(&self) -> &[String] {
        match self.sandboxes.first() {
            Some(s) if s.ready => &s.ips,
            _ => &[],
        }
    }
}

fn nanos(n: i64) -> Option<Timestamp> {
    (n != 0)
        .then(|| Timestamp::from_nanosecond(i128::from(n)).ok())
        .flatten()
}

/// Reads all that the runtime has of the pod `uid`. What disappears between listing and reading is left out.
pub async fn observe(runtime: &dyn Runtime, uid: &str) -> CriResult<Observed> {
    let selector: BTreeMap<String, String> = [(labels::POD_UID.to_owned(), uid.to_owned())].into();
    let sandboxes = runtime
        .list_pod_sandbox(cri::PodSandboxFilter {
            label_selector: selector.clone(),
            ..Default::default()
        })
        .await?;
    let containers = runtime
        .list_containers(cri::ContainerFilter {
            label_selector: selector,
            ..Default::default()
        })
        .await?;
    let mut out = Observed::default();
    for s in sandboxes {
        match runtime.pod_sandbox_status(&s.id).await {
            Ok(status) => out.sandboxes.push(convert_sandbox(status)),
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e),
        }
    }
    for c in containers {
        match runtime.container_status(&c.id).await {
            Ok(status) => out
                .containers
                .push(convert_container(status, c.pod_sandbox_id)),
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e),
        }
    }
    out.sandboxes
        .sort_by_key(|s| std::cmp::Reverse(s.created_at));
    out.containers
        .sort_by_key(|c| std::cmp::Reverse(c.created_at));
    Ok(out)
}

fn convert_sandbox(s: cri::PodSandboxStatus) -> Sandbox {
    let network = s
        .linux
        .as_ref()
        .and_then(|l| l.namespaces.as_ref())
        .and_then(|n| n.options.as_ref())
        .map_or(cri::NamespaceMode::Pod as i32, |o| o.network);
    let mut ips = Vec::new();
    if let Some(n) = s.network {
        ips.extend((!n.ip.is_empty()).then_some(n.ip));
        ips.extend(n.additional_ips.into_iter().map(|p| p.ip));
    }
    Sandbox {
        id: s.id,
        attempt: s.metadata.map_or(0, |m| m.attempt),
        ready: s.state == cri::PodSandboxState::Ready as i32,
        created_at: s.created_at,
        host_network: network == cri::NamespaceMode::Node as i32,
        ips,
    }
}

fn convert_container(s: cri::ContainerStatus, sandbox_id: String) -> Seen {
    let state = match cri::ContainerState::try_from(s.state) {
        Ok(cri::ContainerState::Created) => RunState::Created,
        Ok(cri::ContainerState::Running) => RunState::Running,
        Ok(cri::ContainerState::Exited) => RunState::Exited,
        Ok(cri::ContainerState::Unknown) | Err(_) => RunState::Unknown,
    };
    let mut message = s.message.clone();
    if state == RunState::Exited {
        let own = termination_message(&s);
        if !own.is_empty() {
            if !message.is_empty() {
                message.push_str(": ");
            }
            message.push_str(&own);
        }
    }
    Seen {
        name: s
            .labels
            .get(labels::CONTAINER_NAME)
            .cloned()
            .or_else(|| s.metadata.as_ref().map(|m| m.name.clone()))
            .unwrap_or_default(),
        sandbox_id,
        state,
        created_at: nanos(s.created_at),
        started_at: nanos(s.started_at),
        finished_at: nanos(s.finished_at),
        exit_code: s.exit_code,
        reason: s.reason,
        message,
        image: s.image.map(|i| i.image).unwrap_or_default(),
        image_ref: s.image_ref,
        restart_count: s
            .annotations
            .get(labels::RESTART_COUNT)
            .and_then(|v| v.parse().ok())
            .unwrap_or(0),
        hash: s.annotations.get(labels::HASH).cloned().unwrap_or_default(),
        user: s.user.and_then(|u| u.linux),
        annotations: s.annotations,
        id: s.id,
    }
}

/// What the container left behind as its last word: its termination file, or the end of its log where the policy
/// says so and it failed without writing one.
fn termination_message(s: &cri::ContainerStatus) -> String {
    let fallback = s
        .annotations
        .get(labels::MESSAGE_POLICY)
        .map(String::as_str)
        == Some("FallbackToLogsOnError")
        && s.exit_code != 0;
    let path = s
        .annotations
        .get(labels::MESSAGE_PATH)
        .map(String::as_str)
        .unwrap_or_default();
    if !path.is_empty()
        && let Some(mount) = s.mounts.iter().find(|m| m.container_path == path)
    {
        match tail(Path::new(&mount.host_path), MAX_MESSAGE) {
            Ok(text) if !text.is_empty() => return text,
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return format!("Error on reading termination log {}: {e}", mount.host_path),
        }
    }
    if !fallback {
        return String::new();
    }
    match logs::last_lines(Path::new(&s.log_path), MAX_LOG_LINES, MAX_LOG_MESSAGE) {
        Ok(text) => text,
        Err(e) => format!("Error reading termination message from logs: {e}"),
    }
}

/// The last `max` bytes of a file.
fn tail(path: &Path, max: u64) -> std::io::Result<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = std::fs::File::open(path)?;
    let size = file.metadata()?.len();
    if size > max {
        file.seek(SeekFrom::Start(size - max))?;
    }
    let mut bytes = Vec::new();
    file.take(max).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
