//! The gRPC health check (`grpc.health.v1.Health/Check`).

use std::time::Duration;

use http::uri::PathAndQuery;
use prost::Message;
use tonic_prost::ProstCodec;

use super::run::{Answer, host_port};
use crate::config::format_go_duration;

#[derive(Clone, PartialEq, Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// Asks the health service at `host:port` about `service`.
pub async fn check(host: &str, port: u16, service: &str, timeout: Duration) -> Answer {
    let address = host_port(host, port);
    let shown = format_go_duration(timeout);
    let deadline = tokio::time::Instant::now() + timeout;
    let endpoint = match tonic::transport::Endpoint::from_shared(format!("http://{address}")) {
        Ok(e) => e,
        Err(e) => return Answer::Error(e.to_string()),
    };
    let endpoint = match endpoint.user_agent("kube-probe/1.36") {
        Ok(e) => e,
        Err(e) => return Answer::Error(e.to_string()),
    };
    // Like grpc-go's blocking dial, a refused connection is tried again until the time is up.
    let channel = loop {
        match tokio::time::timeout_at(deadline, endpoint.connect()).await {
            Ok(Ok(c)) => break c,
            Ok(Err(_)) if tokio::time::Instant::now() + Duration::from_millis(200) < deadline => {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            Ok(Err(_)) | Err(_) => {
                return Answer::Failure(format!(
                    "timeout: failed to connect service {address:?} within {shown}: context deadline exceeded"
                ));
            }
        }
    };
    let mut grpc = tonic::client::Grpc::new(channel);
    let call = async {
        grpc.ready()
            .await
            .map_err(|e| tonic::Status::unavailable(e.to_string()))?;
        grpc.unary(
            tonic::Request::new(HealthCheckRequest {
                service: service.to_owned(),
            }),
            PathAndQuery::from_static("/grpc.health.v1.Health/Check"),
            ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default(),
        )
        .await
    };
    match tokio::time::timeout_at(deadline, call).await {
        Err(_) => Answer::Failure(format!(
            "timeout: health rpc did not complete within {shown}"
        )),
        Ok(Err(s)) if s.code() == tonic::Code::Unimplemented => Answer::Failure(format!(
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {}",
            s.message()
        )),
        Ok(Err(s)) if s.code() == tonic::Code::DeadlineExceeded => Answer::Failure(format!(
            "timeout: health rpc did not complete within {shown}"
        )),
        Ok(Err(s)) => Answer::Failure(format!(
            "error: health rpc probe failed: rpc error: code = {:?} desc = {}",
            s.code(),
            s.message()
        )),
        Ok(Ok(r)) => match r.into_inner().status {
            1 => Answer::Success,
            0 => Answer::Failure("service unhealthy (responded with \"UNKNOWN\")".to_owned()),
            2 => Answer::Failure("service unhealthy (responded with \"NOT_SERVING\")".to_owned()),
            3 => {
                Answer::Failure("service unhealthy (responded with \"SERVICE_UNKNOWN\")".to_owned())
            }
            n => Answer::Failure(format!("service unhealthy (responded with \"{n}\")")),
        },
    }
}
