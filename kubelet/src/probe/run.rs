//! One question to a container, by the means its probe names.

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Probe};

use super::{grpc, http};
use crate::config::format_go_duration;
use crate::container::expand;
use crate::cri::Runtime;
use crate::podutil;

/// At most this much of a command's output is kept.
const MAX_OUTPUT: usize = 10 * 1024;

/// What came of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Yes.
    Success,
    /// Yes, with a remark.
    Warning(String),
    /// No, and why.
    Failure(String),
    /// It could not be asked.
    Error(String),
}

/// Asks once.
pub async fn run(
    runtime: &dyn Runtime,
    probe: &Probe,
    container: &Container,
    id: &str,
    pod_ip: &str,
) -> Answer {
    let timeout = Duration::from_secs(probe.timeout_seconds.unwrap_or(1).max(1) as u64);
    if let Some(exec) = &probe.exec {
        let command =
            expand::command_static(exec.command.as_deref().unwrap_or_default(), container);
        return exec_probe(runtime, id, command, timeout).await;
    }
    if let Some(get) = &probe.http_get {
        let request = match http::Target::new(get, container, pod_ip) {
            Ok(t) => t,
            Err(e) => return Answer::Error(e),
        };
        return match http::get(&request, "kube-probe/1.36", timeout).await {
            Err(e) => Answer::Failure(e),
            Ok(r) if r.redirect_stopped => Answer::Warning(format!(
                "Probe terminated redirects, Response body: {}",
                r.body
            )),
            Ok(r) if (200..400).contains(&r.code) => Answer::Success,
            Ok(r) => Answer::Failure(format!("HTTP probe failed with statuscode: {}", r.code)),
        };
    }
    if let Some(tcp) = &probe.tcp_socket {
        let port = match podutil::resolve_port(&tcp.port, container) {
            Ok(p) => p,
            Err(e) => return Answer::Error(e),
        };
        let host = tcp
            .host
            .as_deref()
            .filter(|h| !h.is_empty())
            .unwrap_or(pod_ip);
        return match dial(host, port, timeout).await {
            Ok(_) => Answer::Success,
            Err(e) => Answer::Failure(e),
        };
    }
    if let Some(g) = &probe.grpc {
        let Ok(port) = u16::try_from(g.port) else {
            return Answer::Error(format!("invalid port number: {}", g.port));
        };
        return grpc::check(
            pod_ip,
            port,
            g.service.as_deref().unwrap_or_default(),
            timeout,
        )
        .await;
    }
    Answer::Error(format!("missing probe handler for {}", container.name))
}

async fn exec_probe(
    runtime: &dyn Runtime,
    id: &str,
    command: Vec<String>,
    timeout: Duration,
) -> Answer {
    let shown = command.join(" ");
    match runtime.exec_sync(id, command, timeout).await {
        Ok(r) if r.exit_code == 0 => Answer::Success,
        Ok(r) => {
            let mut output = r.stdout;
            output.extend(r.stderr);
            output.truncate(MAX_OUTPUT);
            Answer::Failure(String::from_utf8_lossy(&output).into_owned())
        }
        Err(e) if e.code == tonic::Code::DeadlineExceeded => Answer::Failure(format!(
            "command timed out: {shown:?} timed out after {}",
            format_go_duration(timeout)
        )),
        Err(e) => Answer::Error(e.to_string()),
    }
}

/// A host and port as Go joins them.
pub fn host_port(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// Connects, with errors worded as Go's dialer words them.
pub async fn dial(
    host: &str,
    port: u16,
    timeout: Duration,
) -> Result<tokio::net::TcpStream, String> {
    let shown = host_port(host, port);
    let connect = async {
        match host.parse::<IpAddr>() {
            Ok(ip) => tokio::net::TcpStream::connect((ip, port)).await,
            Err(_) => tokio::net::TcpStream::connect((host, port)).await,
        }
    };
    match tokio::time::timeout(timeout, connect).await {
        Ok(Ok(stream)) => {
            // A reset at the end keeps the node's ports from piling up in TIME_WAIT, as upstream's ProbeDialer.
            let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::from_secs(1)));
            Ok(stream)
        }
        Ok(Err(e)) => Err(format!("dial tcp {shown}: connect: {}", go_error(&e))),
        Err(_) => Err(format!("dial tcp {shown}: i/o timeout")),
    }
}

fn go_error(e: &std::io::Error) -> String {
    match e.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        std::io::ErrorKind::HostUnreachable => "no route to host".to_owned(),
        std::io::ErrorKind::NetworkUnreachable => "network is unreachable".to_owned(),
        std::io::ErrorKind::ConnectionReset => "connection reset by peer".to_owned(),
        std::io::ErrorKind::TimedOut => "connection timed out".to_owned(),
        _ => e.to_string(),
    }
}
