//! The container runtime interface: the messages, the [`Runtime`] trait that the rest of the kubelet talks to,
//! and the gRPC client that implements it.

use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;

pub mod client;
pub mod enums;
pub mod messages;
pub mod node_messages;

pub use client::CriClient;
pub use enums::*;
pub use messages::*;
pub use node_messages::*;

/// A failed call to the runtime: the gRPC status, reduced to what decisions are made on.
#[derive(Debug, Clone, thiserror::Error)]
#[error("rpc error: code = {code:?} desc = {message}")]
pub struct CriError {
    /// The gRPC code.
    pub code: tonic::Code,
    /// The runtime's description, without the code.
    pub message: String,
}

impl CriError {
    /// Whether the object in question does not exist (any more).
    pub fn is_not_found(&self) -> bool {
        self.code == tonic::Code::NotFound
    }

    /// Whether the runtime does not know the call.
    pub fn is_unimplemented(&self) -> bool {
        self.code == tonic::Code::Unimplemented
    }
}

impl From<tonic::Status> for CriError {
    fn from(s: tonic::Status) -> Self {
        CriError {
            code: s.code(),
            message: s.message().to_owned(),
        }
    }
}

/// What every call to the runtime returns.
pub type CriResult<T> = Result<T, CriError>;

/// A container runtime. Each method is one CRI v1 call under its own name; a call has a deadline, and a
/// timeout is reported as `DeadlineExceeded`. The runtime is the only memory of what runs: nothing of it is kept here.
#[async_trait]
pub trait Runtime: Send + Sync {
    /// `Version`.
    async fn version(&self) -> CriResult<VersionResponse>;
    /// `Status`; `verbose` adds runtime-specific details in `info`.
    async fn status(&self, verbose: bool) -> CriResult<StatusResponse>;
    /// `RunPodSandbox`; returns the sandbox's id.
    async fn run_pod_sandbox(
        &self,
        config: PodSandboxConfig,
        runtime_handler: &str,
    ) -> CriResult<String>;
    /// `StopPodSandbox`. Stopping twice is no error.
    async fn stop_pod_sandbox(&self, id: &str) -> CriResult<()>;
    /// `RemovePodSandbox`. Removing twice is no error.
    async fn remove_pod_sandbox(&self, id: &str) -> CriResult<()>;
    /// `PodSandboxStatus`.
    async fn pod_sandbox_status(&self, id: &str) -> CriResult<PodSandboxStatus>;
    /// `ListPodSandbox`.
    async fn list_pod_sandbox(&self, filter: PodSandboxFilter) -> CriResult<Vec<PodSandbox>>;
    /// `CreateContainer`; returns the container's id.
    async fn create_container(
        &self,
        sandbox_id: &str,
        config: ContainerConfig,
        sandbox: PodSandboxConfig,
    ) -> CriResult<String>;
    /// `StartContainer`.
    async fn start_container(&self, id: &str) -> CriResult<()>;
    /// `StopContainer`: SIGTERM (or the image's stop signal), then SIGKILL after `grace`.
    async fn stop_container(&self, id: &str, grace: Duration) -> CriResult<()>;
    /// `RemoveContainer`. Removing twice is no error.
    async fn remove_container(&self, id: &str) -> CriResult<()>;
    /// `ListContainers`.
    async fn list_containers(&self, filter: ContainerFilter) -> CriResult<Vec<Container>>;
    /// `ContainerStatus`.
    async fn container_status(&self, id: &str) -> CriResult<ContainerStatus>;
    /// `UpdateContainerResources`.
    async fn update_container_resources(
        &self,
        id: &str,
        linux: LinuxContainerResources,
    ) -> CriResult<()>;
    /// `ReopenContainerLog`, after the file was rotated away.
    async fn reopen_container_log(&self, id: &str) -> CriResult<()>;
    /// `ExecSync`; a zero `timeout` means none.
    async fn exec_sync(
        &self,
        id: &str,
        cmd: Vec<String>,
        timeout: Duration,
    ) -> CriResult<ExecSyncResponse>;
    /// `Exec`; returns the runtime's streaming URL.
    async fn exec(&self, request: ExecRequest) -> CriResult<String>;
    /// `Attach`; returns the runtime's streaming URL.
    async fn attach(&self, request: AttachRequest) -> CriResult<String>;
    /// `PortForward`; returns the runtime's streaming URL.
    async fn port_forward(&self, request: PortForwardRequest) -> CriResult<String>;
    /// `ListContainerStats`.
    async fn list_container_stats(
        &self,
        filter: ContainerStatsFilter,
    ) -> CriResult<Vec<ContainerStats>>;
    /// `ListPodSandboxStats`.
    async fn list_pod_sandbox_stats(
        &self,
        filter: PodSandboxStatsFilter,
    ) -> CriResult<Vec<PodSandboxStats>>;
    /// `UpdateRuntimeConfig`: tells the runtime the node's pod CIDR.
    async fn update_runtime_config(&self, pod_cidr: &str) -> CriResult<()>;
    /// `GetContainerEvents`. Runtimes before CRI events answer `Unimplemented`, at the call or as the first item.
    async fn container_events(
        &self,
    ) -> CriResult<BoxStream<'static, CriResult<ContainerEventResponse>>>;
    /// `RuntimeConfig`: the runtime's cgroup driver, where it tells.
    async fn runtime_config(&self) -> CriResult<RuntimeConfigResponse>;
    /// `ListImages`.
    async fn list_images(&self) -> CriResult<Vec<Image>>;
    /// `ImageStatus`; `None` if the image is not here.
    async fn image_status(&self, image: ImageSpec) -> CriResult<Option<Image>>;
    /// `PullImage`; returns the image's reference for `CreateContainer`.
    async fn pull_image(
        &self,
        image: ImageSpec,
        auth: Option<AuthConfig>,
        sandbox: Option<PodSandboxConfig>,
    ) -> CriResult<String>;
    /// `RemoveImage`.
    async fn remove_image(&self, image: ImageSpec) -> CriResult<()>;
    /// `ImageFsInfo`.
    async fn image_fs_info(&self) -> CriResult<ImageFsInfoResponse>;
}
