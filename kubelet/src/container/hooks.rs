//! Lifecycle hooks (upstream `pkg/kubelet/lifecycle/handlers.go`).

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod};

use crate::cri::Runtime;
use crate::podutil;
use crate::probe::{http, run};

/// A hook over the network takes no longer than this.
const HTTP_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// Runs a hook to its end.
pub async fn run(
    runtime: &dyn Runtime,
    pod: &Pod,
    container: &Container,
    id: &str,
    pod_ip: &str,
    hook: &LifecycleHandler,
) -> Result<(), String> {
    let whose = format!(
        "for Container {:?} in Pod {:?} failed",
        container.name,
        podutil::describe(pod)
    );
    if let Some(exec) = &hook.exec {
        let command = exec.command.clone().unwrap_or_default();
        let shown = command.join(" ");
        return match runtime.exec_sync(id, command, Duration::ZERO).await {
            Ok(r) if r.exit_code == 0 => Ok(()),
            Ok(r) => {
                let mut output = r.stdout;
                output.extend(r.stderr);
                Err(format!(
                    "Exec lifecycle hook ([{shown}]) {whose} - error: command '{shown}' exited with {}: {}, message: {:?}",
                    r.exit_code,
                    String::from_utf8_lossy(&output),
                    String::from_utf8_lossy(&output)
                ))
            }
            Err(e) => Err(format!(
                "Exec lifecycle hook ([{shown}]) {whose} - error: {e}, message: \"\""
            )),
        };
    }
    if let Some(get) = &hook.http_get {
        let path = get.path.as_deref().unwrap_or_default();
        let result = match http::Target::new(get, container, pod_ip) {
            Ok(target) => http::get(&target, "kube-lifecycle/1.36", HTTP_TIMEOUT).await,
            Err(e) => Err(e),
        };
        return result
            .map(drop)
            .map_err(|e| format!("HTTP lifecycle hook ({path}) {whose} - error: {e}"));
    }
    if let Some(sleep) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(
            u64::try_from(sleep.seconds).unwrap_or(0),
        ))
        .await;
        return Ok(());
    }
    if let Some(tcp) = &hook.tcp_socket {
        let host = tcp
            .host
            .as_deref()
            .filter(|h| !h.is_empty())
            .unwrap_or(pod_ip);
        let port = podutil::resolve_port(&tcp.port, container)?;
        return run::dial(host, port, Duration::from_secs(30))
            .await
            .map(drop);
    }
    Err("Cannot run handler: invalid handler".to_owned())
}
