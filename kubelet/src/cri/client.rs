//! The CRI v1 client: gRPC over the runtime's unix socket.

use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use http::uri::PathAndQuery;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

use super::*;

/// gRPC's default of 4 MB is too small for a node full of containers; upstream's `maxMsgSize`.
const MAX_MESSAGE: usize = 16 << 20;
/// Upstream's default `runtimeRequestTimeout`.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(120);
/// An image may be large and a registry slow; upstream sets no limit, we set a generous one.
const PULL_TIMEOUT: Duration = Duration::from_secs(3600);

/// A connection to a runtime's CRI endpoint. It reconnects by itself.
#[derive(Clone)]
pub struct CriClient {
    channel: Channel,
    timeout: Duration,
}

/// Why a CRI endpoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// Only unix sockets are supported.
    #[error("container runtime endpoint {0:?} is not a unix socket (unix:///path)")]
    NotUnix(String),
    /// The path is not fit for a URI.
    #[error("container runtime endpoint {0:?}: {1}")]
    Invalid(String, tonic::transport::Error),
}

impl CriClient {
    /// A client of `endpoint`, which is `unix:///path` or a plain absolute path. Nothing is connected yet.
    pub fn new(endpoint: &str, timeout: Duration) -> Result<Self, EndpointError> {
        let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
        if !path.starts_with('/') {
            return Err(EndpointError::NotUnix(endpoint.to_owned()));
        }
        let path = path.to_owned();
        let timeout = if timeout.is_zero() {
            DEFAULT_TIMEOUT
        } else {
            timeout
        };
        // The URI only fills the :authority header, for which grpc-go accepts any host.
        let channel = Endpoint::from_static("http://localhost")
            .connect_timeout(Duration::from_secs(3))
            .connect_with_connector_lazy(tower::service_fn(move |_: http::Uri| {
                let path = path.clone();
                async move {
                    tokio::net::UnixStream::connect(path)
                        .await
                        .map(hyper_util::rt::TokioIo::new)
                }
            }));
        Ok(CriClient { channel, timeout })
    }

    fn grpc(&self) -> Grpc<Channel> {
        Grpc::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }

    async fn call<Req, Resp>(
        &self,
        path: &'static str,
        request: Req,
        timeout: Duration,
    ) -> CriResult<Resp>
    where
        Req: prost::Message + Send + Sync + 'static,
        Resp: prost::Message + Default + Send + Sync + 'static,
    {
        let work = async {
            let mut grpc = self.grpc();
            grpc.ready().await.map_err(|e| CriError {
                code: tonic::Code::Unavailable,
                message: format!("connection error: {}", root_cause(&e)),
            })?;
            let mut request = tonic::Request::new(request);
            request.set_timeout(timeout);
            let response = grpc
                .unary(
                    request,
                    PathAndQuery::from_static(path),
                    ProstCodec::<Req, Resp>::default(),
                )
                .await?;
            Ok(response.into_inner())
        };
        // The deadline travels with the call; this guard covers a runtime that ignores it.
        match tokio::time::timeout(timeout + Duration::from_secs(1), work).await {
            Ok(r) => r,
            Err(_) => Err(CriError {
                code: tonic::Code::DeadlineExceeded,
                message: "context deadline exceeded".to_owned(),
            }),
        }
    }
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut e = error;
    while let Some(source) = e.source() {
        e = source;
    }
    e.to_string()
}

fn missing(what: &str) -> CriError {
    CriError {
        code: tonic::Code::Internal,
        message: format!("the runtime returned no {what}"),
    }
}

macro_rules! runtime {
    ($name:literal) => {
        concat!("/runtime.v1.RuntimeService/", $name)
    };
}
macro_rules! image {
    ($name:literal) => {
        concat!("/runtime.v1.ImageService/", $name)
    };
}

#[async_trait]
impl Runtime for CriClient {
    async fn version(&self) -> CriResult<VersionResponse> {
        let request = VersionRequest {
            version: "0.1.0".to_owned(),
        };
        self.call(runtime!("Version"), request, self.timeout).await
    }

    async fn status(&self, verbose: bool) -> CriResult<StatusResponse> {
        let request = StatusRequest { verbose };
        self.call(runtime!("Status"), request, self.timeout).await
    }

    async fn run_pod_sandbox(
        &self,
        config: PodSandboxConfig,
        runtime_handler: &str,
    ) -> CriResult<String> {
        let request = RunPodSandboxRequest {
            config: Some(config),
            runtime_handler: runtime_handler.to_owned(),
        };
        // Twice the timeout, as upstream: the network plugin may take its time.
        let response: RunPodSandboxResponse = self
            .call(runtime!("RunPodSandbox"), request, self.timeout * 2)
            .await?;
        if response.pod_sandbox_id.is_empty() {
            return Err(missing("sandbox id"));
        }
        Ok(response.pod_sandbox_id)
    }

    async fn stop_pod_sandbox(&self, id: &str) -> CriResult<()> {
        let request = StopPodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        };
        let _: StopPodSandboxResponse = self
            .call(runtime!("StopPodSandbox"), request, self.timeout)
            .await?;
        Ok(())
    }

    async fn remove_pod_sandbox(&self, id: &str) -> CriResult<()> {
        let request = RemovePodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        };
        let _: RemovePodSandboxResponse = self
            .call(runtime!("RemovePodSandbox"), request, self.timeout)
            .await?;
        Ok(())
    }

    async fn pod_sandbox_status(&self, id: &str) -> CriResult<PodSandboxStatus> {
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: id.to_owned(),
            verbose: false,
        };
        let response: PodSandboxStatusResponse = self
            .call(runtime!("PodSandboxStatus"), request, self.timeout)
            .await?;
        response.status.ok_or_else(|| missing("sandbox status"))
    }

    async fn list_pod_sandbox(&self, filter: PodSandboxFilter) -> CriResult<Vec<PodSandbox>> {
        let request = ListPodSandboxRequest {
            filter: Some(filter),
        };
        let response: ListPodSandboxResponse = self
            .call(runtime!("ListPodSandbox"), request, self.timeout)
            .await?;
        Ok(response.items)
    }

    async fn create_container(
        &self,
        sandbox_id: &str,
        config: ContainerConfig,
        sandbox: PodSandboxConfig,
    ) -> CriResult<String> {
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox_id.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox),
        };
        let response: CreateContainerResponse = self
            .call(runtime!("CreateContainer"), request, self.timeout)
            .await?;
        if response.container_id.is_empty() {
            return Err(missing("container id"));
        }
        Ok(response.container_id)
    }

    async fn start_container(&self, id: &str) -> CriResult<()> {
        let request = StartContainerRequest {
            container_id: id.to_owned(),
        };
        let _: StartContainerResponse = self
            .call(runtime!("StartContainer"), request, self.timeout)
            .await?;
        Ok(())
    }

    async fn stop_container(&self, id: &str, grace: Duration) -> CriResult<()> {
        let request = StopContainerRequest {
            container_id: id.to_owned(),
            timeout: i64::try_from(grace.as_secs()).unwrap_or(i64::MAX),
        };
        // The call lasts as long as the container takes to stop.
        let deadline = self.timeout.saturating_add(grace);
        let _: StopContainerResponse = self
            .call(runtime!("StopContainer"), request, deadline)
            .await?;
        Ok(())
    }

    async fn remove_container(&self, id: &str) -> CriResult<()> {
        let request = RemoveContainerRequest {
            container_id: id.to_owned(),
        };
        let _: RemoveContainerResponse = self
            .call(runtime!("RemoveContainer"), request, self.timeout)
            .await?;
        Ok(())
    }

    async fn list_containers(&self, filter: ContainerFilter) -> CriResult<Vec<Container>> {
        let request = ListContainersRequest {
            filter: Some(filter),
        };
        let response: ListContainersResponse = self
            .call(runtime!("ListContainers"), request, self.timeout)
            .await?;
        Ok(response.containers)
    }

    async fn container_status(&self, id: &str) -> CriResult<ContainerStatus> {
        let request = ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose: false,
        };
        let response: ContainerStatusResponse = self
            .call(runtime!("ContainerStatus"), request, self.timeout)
            .await?;
        response.status.ok_or_else(|| missing("container status"))
    }

    async fn update_container_resources(
        &self,
        id: &str,
        linux: LinuxContainerResources,
    ) -> CriResult<()> {
        let request = UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(linux),
            ..Default::default()
        };
        let _: UpdateContainerResourcesResponse = self
            .call(runtime!("UpdateContainerResources"), request, self.timeout)
            .await?;
        Ok(())
    }

    async fn reopen_container_log(&self, id: &str) -> CriResult<()> {
        let request = ReopenContainerLogRequest {
            container_id: id.to_owned(),
        };
        let _: ReopenContainerLogResponse = self
            .call(runtime!("ReopenContainerLog"), request, self.timeout)
            .await?;
        Ok(())
    }

    async fn exec_sync(
        &self,
        id: &str,
        cmd: Vec<String>,
        timeout: Duration,
    ) -> CriResult<ExecSyncResponse> {
        let request = ExecSyncRequest {
            container_id: id.to_owned(),
            cmd,
            timeout: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        };
        // The runtime ends the command at `timeout`; the call gets the default on top of it.
        let deadline = if timeout.is_zero() {
            PULL_TIMEOUT
        } else {
            timeout.saturating_add(self.timeout)
        };
        self.call(runtime!("ExecSync"), request, deadline).await
    }

    async fn exec(&self, request: ExecRequest) -> CriResult<String> {
        let response: ExecResponse = self.call(runtime!("Exec"), request, self.timeout).await?;
        Ok(response.url)
    }

    async fn attach(&self, request: AttachRequest) -> CriResult<String> {
        let response: AttachResponse = self.call(runtime!("Attach"), request, self.timeout).await?;
        Ok(response.url)
    }

    async fn port_forward(&self, request: PortForwardRequest) -> CriResult<String> {
        let response: PortForwardResponse = self
            .call(runtime!("PortForward"), request, self.timeout)
            .await?;
        Ok(response.url)
    }

    async fn list_container_stats(
        &self,
        filter: ContainerStatsFilter,
    ) -> CriResult<Vec<ContainerStats>> {
        let request = ListContainerStatsRequest {
            filter: Some(filter),
        };
        let response: ListContainerStatsResponse = self
            .call(runtime!("ListContainerStats"), request, self.timeout)
            .await?;
        Ok(response.stats)
    }

    async fn list_pod_sandbox_stats(
        &self,
        filter: PodSandboxStatsFilter,
    ) -> CriResult<Vec<PodSandboxStats>> {
        let request = ListPodSandboxStatsRequest {
            filter: Some(filter),
        };
        let response: ListPodSandboxStatsResponse = self
            .call(runtime!("ListPodSandboxStats"), request, self.timeout)
            .await?;
        Ok(response.stats)
    }

    async fn update_runtime_config(&self, pod_cidr: &str) -> CriResult<()> {
        let request = UpdateRuntimeConfigRequest {
            runtime_config: Some(RuntimeConfig {
                network_config: Some(NetworkConfig {
                    pod_cidr: pod_cidr.to_owned(),
                }),
            }),
        };
        let _: UpdateRuntimeConfigResponse = self
            .call(runtime!("UpdateRuntimeConfig"), request, self.timeout)
            .await?;
        Ok(())
    }

    async fn container_events(
        &self,
    ) -> CriResult<BoxStream<'static, CriResult<ContainerEventResponse>>> {
        let mut grpc = self.grpc();
        grpc.ready().await.map_err(|e| CriError {
            code: tonic::Code::Unavailable,
            message: root_cause(&e),
        })?;
        let stream = grpc
            .server_streaming(
                tonic::Request::new(GetEventsRequest {}),
                PathAndQuery::from_static(runtime!("GetContainerEvents")),
                ProstCodec::<GetEventsRequest, ContainerEventResponse>::default(),
            )
            .await?
            .into_inner();
        Ok(stream.map(|item| item.map_err(CriError::from)).boxed())
    }

    async fn runtime_config(&self) -> CriResult<RuntimeConfigResponse> {
        let request = RuntimeConfigRequest {};
        self.call(runtime!("RuntimeConfig"), request, self.timeout)
            .await
    }

    async fn list_images(&self) -> CriResult<Vec<Image>> {
        let request = ListImagesRequest { filter: None };
        let response: ListImagesResponse = self
            .call(image!("ListImages"), request, self.timeout)
            .await?;
        Ok(response.images)
    }

    async fn image_status(&self, image: ImageSpec) -> CriResult<Option<Image>> {
        let request = ImageStatusRequest {
            image: Some(image),
            verbose: false,
        };
        let response: ImageStatusResponse = self
            .call(image!("ImageStatus"), request, self.timeout)
            .await?;
        Ok(response.image)
    }

    async fn pull_image(
        &self,
        image: ImageSpec,
        auth: Option<AuthConfig>,
        sandbox: Option<PodSandboxConfig>,
    ) -> CriResult<String> {
        let request = PullImageRequest {
            image: Some(image),
            auth,
            sandbox_config: sandbox,
        };
        let response: PullImageResponse = self
            .call(image!("PullImage"), request, PULL_TIMEOUT)
            .await?;
        if response.image_ref.is_empty() {
            return Err(missing("image reference"));
        }
        Ok(response.image_ref)
    }

    async fn remove_image(&self, image: ImageSpec) -> CriResult<()> {
        let request = RemoveImageRequest { image: Some(image) };
        let _: RemoveImageResponse = self
            .call(image!("RemoveImage"), request, self.timeout)
            .await?;
        Ok(())
    }

    async fn image_fs_info(&self) -> CriResult<ImageFsInfoResponse> {
        let request = ImageFsInfoRequest {};
        self.call(image!("ImageFsInfo"), request, self.timeout)
            .await
    }
}
