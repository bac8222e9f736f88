//! Starting one container: image, configuration, creation, start, postStart hook (upstream `startContainer`).

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod, Secret};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::config::{self, Parts};
use super::{env, hooks, kill};
use crate::cri;
use crate::events::Severity;
use crate::image::Failure;
use crate::pod::observed::{Observed, RunState, Seen};
use crate::pod::plan::KillReason;
use crate::podutil;
use crate::shared::Shared;
use crate::volume::{Mounts, container_mounts};

/// What containers of one sync have in common.
pub struct Context<'a> {
    /// The kubelet.
    pub shared: &'a Shared,
    /// The pod.
    pub pod: &'a Pod,
    /// What ran before.
    pub observed: &'a Observed,
    /// The sandbox to start in.
    pub sandbox_id: &'a str,
    /// Its configuration.
    pub sandbox: &'a cri::PodSandboxConfig,
    /// Its addresses.
    pub pod_ips: &'a [String],
    /// The pod's volumes.
    pub volumes: &'a Mounts,
    /// Its pull secrets.
    pub secrets: &'a [Arc<Secret>],
    /// The pod is to end: slow work is given up. Calls that make something are never given up in the middle, since
    /// a runtime may lose track of what it was making.
    pub stop: &'a CancellationToken,
}

impl Context<'_> {
    /// Starts `c` and answers its id. `target` names the container whose processes an ephemeral container wants to see.
    pub async fn start(&self, c: &Container, target: Option<&str>) -> Result<String, Failure> {
        let (shared, pod) = (self.shared, self.pod);
        let failed = |reason: &'static str, message: String| {
            shared.recorder.container(
                pod,
                &c.name,
                Severity::Warning,
                "Failed",
                format!("Error: {message}"),
            );
            Failure::new(reason, message)
        };
        let given_up = || Failure::new("ContainerCreating", "the pod is being ended");
        let ensured = tokio::select! {
            r = shared.images.ensure(pod, c, self.secrets, self.sandbox) => r,
            () = self.stop.cancelled() => return Err(given_up()),
        };
        let image_ref = match ensured {
            Ok(r) => r,
            Err(f) => {
                shared.recorder.container(
                    pod,
                    &c.name,
                    Severity::Warning,
                    "Failed",
                    format!("Error: {}", f.reason),
                );
                return Err(f);
            }
        };
        let images = tokio::select! {
            r = self.image_volumes(c) => r?,
            () = self.stop.cancelled() => return Err(given_up()),
        };
        let restart_count = self.restart_count(c);
        let config_error = |m| failed("CreateContainerConfigError", m);
        let target = match target.filter(|t| !t.is_empty()) {
            None => None,
            Some(name) => match self.observed.latest(name) {
                Some(s) if s.state == RunState::Running => Some(s.id.clone()),
                Some(s) => {
                    return Err(config_error(format!(
                        "unable to find target container {} running: state {:?}",
                        name, s.state
                    )));
                }
                None => {
                    return Err(config_error(format!(
                        "unable to find target container {name}"
                    )));
                }
            },
        };
        let node = shared.node.read().clone();
        let env = env::environment(&shared.objects, &node, pod, c, self.pod_ips)
            .await
            .map_err(config_error)?;
        let run_id: String = shared.clock.uuid().chars().take(8).collect();
        let pod_dir = shared.config.pod_dir(podutil::uid(pod));
        let mounts = container_mounts::make(
            &container_mounts::Inputs {
                pod_dir: &pod_dir,
                volumes: self.volumes,
                images: &images,
                env: &env,
                pod_ips: self.pod_ips,
                cluster_domain: &shared.settings.dns.domain,
                run_id: &run_id,
            },
            pod,
            c,
        )
        .map_err(config_error)?;
        let image_user = shared.images.user(&image_ref).await.map_err(config_error)?;
        let parts = Parts {
            restart_count,
            image_ref,
            image_user,
            env,
            mounts,
            target,
        };
        let config = config::container(&shared.settings, pod, c, parts).map_err(config_error)?;
        let log_dir = Path::new(&self.sandbox.log_directory).join(&c.name);
        std::fs::create_dir_all(&log_dir).map_err(|e| {
            config_error(format!(
                "create container log directory for container {} failed: {e}",
                c.name
            ))
        })?;
        let log_path = Path::new(&self.sandbox.log_directory).join(&config.log_path);

        let id = shared
            .runtime
            .create_container(self.sandbox_id, config, self.sandbox.clone())
            .await
            .map_err(|e| failed("CreateContainerError", e.message))?;
        shared.recorder.container(
            pod,
            &c.name,
            Severity::Normal,
            "Created",
            "Container created",
        );
        shared
            .runtime
            .start_container(&id)
            .await
            .map_err(|e| failed("RunContainerError", e.message))?;
        shared.recorder.container(
            pod,
            &c.name,
            Severity::Normal,
            "Started",
            "Container started",
        );
        info!(pod = %podutil::describe(pod), container = %c.name, id = %id, restart_count, "started a container");
        self.link_log(c, &id, &log_path);

        if let Some(hook) = c.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()) {
            let pod_ip = self.pod_ips.first().map(String::as_str).unwrap_or_default();
            let ran = tokio::select! {
                r = hooks::run(&*shared.runtime, pod, c, &id, pod_ip, hook) => r,
                () = self.stop.cancelled() => return Err(given_up()),
            };
            if let Err(message) = ran {
                warn!(container = %c.name, %message, "a postStart hook failed");
                shared.recorder.container(
                    pod,
                    &c.name,
                    Severity::Warning,
                    "FailedPostStartHook",
                    "PostStartHook failed",
                );
                let seen = just_started(c, &id, self.sandbox_id);
                if let Err(error) = kill::container(
                    shared,
                    pod,
                    &seen,
                    pod_ip,
                    "FailedPostStartHook",
                    KillReason::FailedPostStartHook,
                )
                .await
                {
                    warn!(container = %c.name, %error, "could not end a container whose hook failed");
                }
                return Err(Failure::new("PostStartHookError", message));
            }
        }
        Ok(id)
    }

    /// The images that the container mounts as volumes, by the volumes' names; made sure to be here like its own.
    async fn image_volumes(
        &self,
        c: &Container,
    ) -> Result<HashMap<String, cri::ImageSpec>, Failure> {
        let mut images = HashMap::new();
        for v in podutil::spec(self.pod).volumes.iter().flatten() {
            let mounted = c.volume_mounts.iter().flatten().any(|m| m.name == v.name);
            let Some(source) = v.image.as_ref().filter(|_| mounted) else {
                continue;
            };
            let stand_in = Container {
                name: c.name.clone(),
                image: source.reference.clone(),
                image_pull_policy: source.pull_policy.clone(),
                ..Container::default()
            };
            let image = self
                .shared
                .images
                .ensure(self.pod, &stand_in, self.secrets, self.sandbox)
                .await?;
            let spec = cri::ImageSpec {
                image,
                user_specified_image: source.reference.clone().unwrap_or_default(),
                annotations: podutil::map(&self.pod.metadata.annotations),
                ..Default::default()
            };
            images.insert(v.name.clone(), spec);
        }
        Ok(images)
    }

    /// One more than the last run. A runtime that has forgotten the runs (after a reboot) leaves their logs.
    fn restart_count(&self, c: &Container) -> u32 {
        if let Some(s) = self.observed.latest(&c.name) {
            return u32::try_from(s.restart_count)
                .unwrap_or(0)
                .saturating_add(1);
        }
        let dir = Path::new(&self.sandbox.log_directory).join(&c.name);
        let Ok(entries) = std::fs::read_dir(dir) else {
            return 0;
        };
        entries
            .filter_map(|e| e.ok()?.file_name().into_string().ok())
            .filter_map(|n| n.split_once(".log")?.0.parse::<u32>().ok())
            .map(|n| n.saturating_add(1))
            .max()
            .unwrap_or(0)
    }

    /// The legacy link to the log, for log collectors.
    fn link_log(&self, c: &Container, id: &str, log_path: &Path) {
        let Some(dir) = &self.shared.config.container_logs_dir else {
            return;
        };
        if !log_path.exists() {
            return;
        }
        let name = format!(
            "{}_{}_{}-{id}.log",
            podutil::name(self.pod),
            podutil::namespace(self.pod),
            c.name
        );
        let result = std::fs::create_dir_all(dir)
            .and_then(|()| std::os::unix::fs::symlink(log_path, dir.join(name)));
        if let Err(error) = result
            && error.kind() != std::io::ErrorKind::AlreadyExists
        {
            warn!(container = %c.name, %error, "could not link a container's log");
        }
    }
}

fn just_started(c: &Container, id: &str, sandbox_id: &str) -> Seen {
    Seen {
        id: id.to_owned(),
        name: c.name.clone(),
        sandbox_id: sandbox_id.to_owned(),
        state: RunState::Running,
        created_at: None,
        started_at: None,
        finished_at: None,
        exit_code: 0,
        reason: String::new(),
        message: String::new(),
        image: String::new(),
        image_ref: String::new(),
        restart_count: 0,
        hash: String::new(),
        user: None,
        annotations: Default::default(),
    }
}
