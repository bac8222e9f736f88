//! Images: whether to pull, with which credentials, and how long to wait after a failure (upstream `images`).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod, Secret};
use keelson_machinery::clock::Clock;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::backoff::Backoff;
use crate::config::format_go_duration;
use crate::cri::{self, Runtime};
use crate::events::{Recorder, Severity};
use crate::podutil;

pub mod keyring;
pub mod reference;

use keyring::Keyring;

/// For so long `ErrImagePull` is shown before it becomes `ImagePullBackOff`.
const ERROR_SHOWN: Duration = Duration::from_secs(2);

/// Why a container cannot start: the reason and message of its `waiting` state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Such as `ErrImagePull`.
    pub reason: &'static str,
    /// The details.
    pub message: String,
    /// When it is worth another try; at once if absent.
    pub retry: Option<Duration>,
}

impl Failure {
    /// A failure without a wait of its own.
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Failure {
            reason,
            message: message.into(),
            retry: None,
        }
    }
}

/// The images of the node.
pub struct Images {
    runtime: Arc<dyn Runtime>,
    recorder: Recorder,
    clock: Clock,
    backoff: Backoff,
    previous: Mutex<HashMap<String, String>>,
    /// How many pulls may run at once.
    pulls: Option<Semaphore>,
}

impl Images {
    /// Images of `runtime`, with at most `parallel` pulls at once.
    pub fn new(
        runtime: Arc<dyn Runtime>,
        recorder: Recorder,
        clock: Clock,
        parallel: Option<usize>,
    ) -> Self {
        Images {
            runtime,
            recorder,
            clock,
            backoff: Backoff::new(Duration::from_secs(10), Duration::from_secs(300)),
            previous: Mutex::new(HashMap::new()),
            pulls: parallel.map(Semaphore::new),
        }
    }

    /// Forgets the failures of a pod.
    pub fn forget(&self, uid: &str) {
        let prefix = format!("{uid}_");
        self.backoff.forget_prefix(&prefix);
        self.previous.lock().retain(|k, _| !k.starts_with(&prefix));
    }

    /// Makes sure that the container's image is here; returns the reference to create the container with.
    pub async fn ensure(
        &self,
        pod: &Pod,
        c: &Container,
        secrets: &[Arc<Secret>],
        sandbox: &cri::PodSandboxConfig,
    ) -> Result<String, Failure> {
        let requested = c.image.as_deref().unwrap_or_default();
        let event = |severity, reason, message: String| {
            self.recorder
                .container(pod, &c.name, severity, reason, message)
        };
        let image = match reference::with_default_tag(requested) {
            Ok(i) => i,
            Err(e) => {
                let message = format!("Failed to apply default image tag {requested:?}: {e}");
                event(Severity::Warning, "InspectFailed", message.clone());
                return Err(Failure::new("InvalidImageName", message));
            }
        };
        let spec = cri::ImageSpec {
            image: image.clone(),
            annotations: podutil::map(&pod.metadata.annotations),
            ..Default::default()
        };
        let default_policy = if image.ends_with(":latest") {
            "Always"
        } else {
            "IfNotPresent"
        };
        let policy = c
            .image_pull_policy
            .as_deref()
            .filter(|p| !p.is_empty())
            .unwrap_or(default_policy);
        if policy != "Always" {
            match self.runtime.image_status(spec.clone()).await {
                Ok(Some(found)) => {
                    event(
                        Severity::Normal,
                        "Pulled",
                        format!(
                            "Container image {requested:?} already present on machine and can be accessed by the pod"
                        ),
                    );
                    return Ok(found.id);
                }
                Ok(None) if policy == "Never" => {
                    let message = format!(
                        "Container image {requested:?} is not present with pull policy of Never"
                    );
                    event(Severity::Warning, "ErrImageNeverPull", message.clone());
                    return Err(Failure::new("ErrImageNeverPull", message));
                }
                Ok(None) => {}
                Err(e) => {
                    let message = format!("Failed to inspect image {image:?}: {e}");
                    event(Severity::Warning, "InspectFailed", message.clone());
                    return Err(Failure::new("ImageInspectError", message));
                }
            }
        }
        self.pull(pod, c, requested, spec, secrets, sandbox).await
    }

    async fn pull(
        &self,
        pod: &Pod,
        c: &Container,
        requested: &str,
        spec: cri::ImageSpec,
        secrets: &[Arc<Secret>],
        sandbox: &cri::PodSandboxConfig,
    ) -> Result<String, Failure> {
        let event = |severity, reason, message: String| {
            self.recorder
                .container(pod, &c.name, severity, reason, message)
        };
        let key = format!("{}_{requested}", podutil::uid(pod));
        if let Some(left) = self.backoff.remaining(&key, self.clock.now()) {
            let mut message = format!("Back-off pulling image {requested:?}");
            event(Severity::Normal, "BackOff", message.clone());
            if let Some(previous) = self.previous.lock().get(&key) {
                message = format!("{message}: {previous}");
            }
            return Err(Failure {
                reason: "ImagePullBackOff",
                message,
                retry: Some(left),
            });
        }
        self.previous.lock().remove(&key);
        event(
            Severity::Normal,
            "Pulling",
            format!("Pulling image {requested:?}"),
        );
        let asked = self.clock.now();
        let _turn = match &self.pulls {
            // The semaphore is never closed.
            Some(s) => s.acquire().await.ok(),
            None => None,
        };
        let began = self.clock.now();
        let credentials = match reference::parse(&spec.image) {
            Ok(r) => Keyring::new(secrets.iter().map(AsRef::as_ref)).lookup(&r),
            Err(_) => Vec::new(),
        };
        let mut result = Err(None);
        if credentials.is_empty() {
            result = self
                .runtime
                .pull_image(spec.clone(), None, Some(sandbox.clone()))
                .await
                .map_err(Some);
        }
        for auth in credentials {
            result = self
                .runtime
                .pull_image(spec.clone(), Some(auth), Some(sandbox.clone()))
                .await
                .map_err(Some);
            if result.is_ok() {
                break;
            }
        }
        match result {
            Ok(image_ref) => {
                let now = self.clock.now();
                let size = match self.runtime.image_status(spec).await {
                    Ok(Some(i)) => i.size,
                    Ok(None) | Err(_) => 0,
                };
                let took = |from: jiff::Timestamp| {
                    let ms = now.duration_since(from).as_millis().max(0);
                    format_go_duration(Duration::from_millis(u64::try_from(ms).unwrap_or(0)))
                };
                event(
                    Severity::Normal,
                    "Pulled",
                    format!(
                        "Successfully pulled image {requested:?} in {} ({} including waiting). Image size: {size} bytes.",
                        took(began),
                        took(asked)
                    ),
                );
                self.backoff.reset(&key);
                Ok(image_ref)
            }
            Err(e) => {
                let detail =
                    e.map_or_else(|| "no credentials worked".to_owned(), |e| e.to_string());
                event(
                    Severity::Warning,
                    "Failed",
                    format!("Failed to pull image {requested:?}: {detail}"),
                );
                let now = self.clock.now();
                let wait = self.backoff.next(&key, now, now);
                self.previous
                    .lock()
                    .insert(key, format!("ErrImagePull: {detail}"));
                Err(Failure {
                    reason: "ErrImagePull",
                    message: detail,
                    retry: Some(wait.min(ERROR_SHOWN)),
                })
            }
        }
    }

    /// The user that the image runs as by itself.
    pub async fn user(&self, image: &str) -> Result<crate::container::security::ImageUser, String> {
        let spec = cri::ImageSpec {
            image: image.to_owned(),
            ..Default::default()
        };
        match self.runtime.image_status(spec).await {
            Ok(Some(i)) => Ok(crate::container::security::ImageUser {
                // An image that names nobody runs as root.
                uid: i
                    .uid
                    .map(|u| u.value)
                    .or_else(|| i.username.is_empty().then_some(0)),
                name: i.username,
            }),
            Ok(None) => Err(format!("image {image:?} not found")),
            Err(e) => Err(e.to_string()),
        }
    }
}
