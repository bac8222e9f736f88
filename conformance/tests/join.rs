//! A second machine joins a cluster with `keelson agent`, runs pods that reach those of the first, and comes back.

use anyhow::{Context, ensure};
use keelson_conformance::testbed::{Cluster, Machine, Programs, run_with_input};
use serde_json::json;

const SERVER: &str = "https://10.88.0.10:6443";
const IMAGE: &str = "test.local/web:v1";

#[test]
fn a_machine_joins_and_its_pods_reach_the_others() {
    let Some(programs) = Programs::find() else {
        return;
    };
    let cluster = Cluster::up(&programs, "join").unwrap();
    let machine = Machine::beside(&cluster).unwrap();
    if let Err(error) = refusals(&cluster, &machine).and_then(|()| life(&cluster, &machine)) {
        panic!("{error:#}\nagent:\n{}", machine.log());
    }
}

/// Each wrong start ends by itself, with a sentence that says why.
fn refusals(cluster: &Cluster, machine: &Machine) -> anyhow::Result<()> {
    let token = std::fs::read_to_string(cluster.data_dir().join("agent-token"))?;
    let (bare, pin) = token
        .trim()
        .split_once('@')
        .context("no pin in the token")?;
    let (id, _) = bare.split_once('.').context("no bootstrap token")?;
    let wrong_secret = format!("{id}.0000000000000000");
    let other_ca = format!("{bare}@sha256:{}", "0".repeat(64));
    let cases = [
        (
            SERVER,
            format!("{wrong_secret}@{pin}"),
            "the token is wrong",
        ),
        (SERVER, wrong_secret, "does not prove to know the token"),
        (SERVER, other_ca, "not the expected sha256:0000"),
        (
            SERVER,
            "nonsense".to_owned(),
            "the token is not of the form",
        ),
        ("https://10.88.0.10:1", token.clone(), "cannot be reached"),
    ];
    for (server, token, expected) in cases {
        let data_dir = machine.data_dir().with_file_name("refused");
        let output = machine
            .keelson(&["agent", "--server", server, "--token", &token, "--data-dir"])
            .arg(&data_dir)
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            !output.status.success() && said.contains(expected),
            "{expected}: {said}"
        );
    }
    Ok(())
}

fn life(cluster: &Cluster, machine: &Machine) -> anyhow::Result<()> {
    let token = cluster.data_dir().join("agent-token");
    let token = token.to_str().context("a path that is no text")?;
    let agent = machine.agent(&[
        "--server",
        SERVER,
        "--token-file",
        token,
        "--node-name",
        "node-2",
    ])?;
    ready(cluster, "node-2")?;
    cluster.import_busybox(IMAGE, &[("www/index.html", "one\n")])?;
    machine.import_busybox(IMAGE, &[("www/index.html", "two\n")])?;
    let pod = |name: &str, node: &str| {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "web"}},
            "spec": {"nodeName": node, "terminationGracePeriodSeconds": 0, "containers": [{
                "name": "web", "image": IMAGE, "imagePullPolicy": "Never",
                "command": ["sh", "-c", "echo started; exec httpd -f -p 80 -h /www"],
            }]},
        })
    };
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "two"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]},
    });
    for object in [pod("a", "node-1"), pod("b", "node-2"), service] {
        run_with_input(
            &mut cluster.kubectl_command("create -f -"),
            object.to_string().as_bytes(),
        )?;
    }
    cluster.kubectl("wait pod/a pod/b --for=condition=Ready --timeout=60s")?;
    let address =
        |name: &str| cluster.kubectl(&format!("get pod {name} -o jsonpath={{.status.podIP}}"));
    let (a, b) = (address("a")?, address("b")?);
    for (from, to, answer) in [("a", &b, "two\n"), ("b", &a, "one\n")] {
        cluster.wait(&format!("an answer from {to} to pod {from}"), 30, || {
            let got = fetch(cluster, from, to)?;
            ensure!(got == answer, "{got:?}");
            Ok(Some(()))
        })?;
    }
    cluster.wait("the Service from the joined node", 30, || {
        let page = fetch(cluster, "b", "two.default.svc.cluster.local")?;
        Ok((page == "one\n" || page == "two\n").then_some(()))
    })?;
    ensure!(cluster.kubectl("logs b")?.contains("started"));

    // Without the token, by what it kept; the pod runs on meanwhile.
    drop(agent);
    let before =
        cluster.kubectl("get pod b -o jsonpath={.status.containerStatuses[0].containerID}")?;
    let _agent = machine.agent(&["--server", SERVER, "--node-name", "node-2"])?;
    cluster.kubectl("delete pod a --wait=true")?;
    cluster.wait("the joined node's kubelet", 60, || {
        cluster.kubectl("logs b").map(Some)
    })?;
    ready(cluster, "node-2")?;
    let after =
        cluster.kubectl("get pod b -o jsonpath={.status.containerStatuses[0].containerID}")?;
    ensure!(before == after, "{before} became {after}");
    let requests = cluster.kubectl("get csr -o name")?;
    ensure!(
        requests.lines().count() == 2,
        "a restart asks for nothing: {requests}"
    );
    Ok(())
}

/// The page at port 80 of `host`, fetched from within a pod. By hand, because the wget of Debian's static busybox crashes.
fn fetch(cluster: &Cluster, pod: &str, host: &str) -> anyhow::Result<String> {
    let script = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 3 {host} 80 | tail -n 1");
    cluster.kubectl_args(&["exec", pod, "--", "sh", "-c", &script])
}

fn ready(cluster: &Cluster, node: &str) -> anyhow::Result<()> {
    cluster.wait(&format!("node {node} to be ready"), 90, || {
        let status = cluster.kubectl(&format!(
            "get node {node} -o jsonpath={{.status.conditions[?(@.type==\"Ready\")].status}}"
        ))?;
        Ok((status == "True").then_some(()))
    })
}
