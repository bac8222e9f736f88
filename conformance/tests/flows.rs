//! What a user does with a cluster on the first day, with an unmodified kubectl, on real containers.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;

use anyhow::{Context, bail, ensure};
use keelson_conformance::testbed::{Background, Cluster, Programs, run_with_input};
use serde_json::json;

const V1: &str = "test.local/web:v1";
const V2: &str = "test.local/web:v2";

#[test]
fn a_first_day_with_kubectl() {
    let Some(programs) = Programs::find() else {
        return;
    };
    let cluster = Cluster::up(&programs, "flows").unwrap();
    for (what, flow) in [
        ("images", images as fn(&Cluster) -> anyhow::Result<()>),
        ("deployment and services", deployment_and_services),
        ("scale and roll out", scale_and_roll_out),
        ("job and daemonset", job_and_daemonset),
        ("logs", logs),
        ("exec and cp", exec_and_copy),
        ("port-forward", port_forward),
        ("run with stdin", run_with_stdin),
        ("live configmap", live_configmap),
        ("namespace deletion", namespace_deletion),
    ] {
        let result = flow(&cluster);
        println!("{} {what}", if result.is_ok() { "ok  " } else { "FAIL" });
        result.with_context(|| what.to_owned()).unwrap();
    }
}

/// The page at port 80 of `host`, fetched from within a pod. By hand, because the wget of Debian's static busybox crashes.
fn fetch(cluster: &Cluster, host: &str) -> anyhow::Result<String> {
    let script = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 3 {host} 80 | tail -n 1");
    cluster.kubectl_args(&["-n", "day", "exec", "client", "--", "sh", "-c", &script])
}

fn images(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.import_busybox(V1, &[("www/index.html", "version one\n")])?;
    cluster.import_busybox(V2, &[("www/index.html", "version two\n")])?;
    // What is no archive is refused, and says so.
    let broken = cluster.scratch().join("broken.tar");
    std::fs::write(&broken, "not an archive")?;
    let refused = cluster
        .keelson(&["images", "import", "--data-dir"])
        .arg(cluster.data_dir())
        .arg(&broken)
        .output()?;
    ensure!(!refused.status.success(), "a broken archive was accepted");
    cluster.kubectl("create namespace day")?;
    Ok(())
}

fn deployment_and_services(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.apply(&[json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "day"},
        "spec": {
            "replicas": 3, "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"terminationGracePeriodSeconds": 1, "containers": [{
                    "name": "web", "image": V1, "command": ["httpd", "-f", "-p", "8080", "-h", "/www"],
                    "ports": [{"containerPort": 8080}], "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1},
                }]},
            },
        },
    })])?;
    cluster.kubectl("-n day rollout status deployment/web --timeout=120s")?;
    cluster.kubectl("-n day expose deployment web --port=80 --target-port=8080 --type=NodePort")?;
    let cluster_ip = cluster.kubectl("-n day get service web -o jsonpath={.spec.clusterIP}")?;
    let node_port =
        cluster.kubectl("-n day get service web -o jsonpath={.spec.ports[0].nodePort}")?;

    cluster.apply(&[json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "client", "namespace": "day"},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "client", "image": V1, "command": ["sleep", "3600"]}]},
    })])?;
    cluster.kubectl("-n day wait --for=condition=Ready pod/client --timeout=60s")?;
    for target in [cluster_ip.as_str(), "web", "web.day.svc.cluster.local"] {
        cluster.wait(&format!("http://{target} from a pod"), 30, || {
            let page = fetch(cluster, target)?;
            Ok((page == "version one\n").then_some(()))
        })?;
    }
    cluster.wait("the node port from the node", 30, || {
        let url = format!("http://10.88.0.10:{node_port}");
        let page = cluster
            .inside("curl")
            .args(["-s", "-m", "2", &url])
            .output()?;
        Ok((page.stdout == b"version one\n").then_some(()))
    })
}

fn scale_and_roll_out(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.kubectl("-n day scale deployment web --replicas=5")?;
    cluster.kubectl("-n day rollout status deployment/web --timeout=60s")?;
    let pods = cluster.kubectl("-n day get pods -l app=web -o name")?;
    ensure!(pods.lines().count() == 5, "5 pods expected:\n{pods}");
    let page = || fetch(cluster, "web");
    for (command, want) in [
        (
            "set image deployment/web web=test.local/web:v2",
            "version two\n",
        ),
        ("rollout undo deployment/web", "version one\n"),
    ] {
        cluster.kubectl(&format!("-n day {command}"))?;
        cluster.kubectl("-n day rollout status deployment/web --timeout=120s")?;
        cluster.wait(&format!("{want:?} after {command}"), 30, || {
            Ok((page()? == want).then_some(()))
        })?;
    }
    let history = cluster.kubectl("-n day rollout history deployment/web")?;
    ensure!(
        history.contains("2") && history.contains("3"),
        "revisions 2 and 3 expected:\n{history}"
    );
    Ok(())
}

fn job_and_daemonset(cluster: &Cluster) -> anyhow::Result<()> {
    let pod = |command: [&str; 3]| json!({"terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": V1, "command": command}]});
    let mut job = pod(["sh", "-c", "echo done by $HOSTNAME"]);
    job["restartPolicy"] = json!("Never");
    cluster.apply(&[
        json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "once", "namespace": "day"},
            "spec": {"completions": 3, "parallelism": 2, "template": {"spec": job}}}),
        json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "every", "namespace": "day"},
            "spec": {"selector": {"matchLabels": {"app": "every"}}, "template": {"metadata": {"labels": {"app": "every"}}, "spec": pod(["sh", "-c", "sleep 3600"])}}}),
    ])?;
    cluster.kubectl("-n day wait --for=condition=Complete job/once --timeout=120s")?;
    let succeeded = cluster.kubectl("-n day get job once -o jsonpath={.status.succeeded}")?;
    ensure!(succeeded == "3", "3 completions expected, not {succeeded}");
    cluster.kubectl("-n day rollout status daemonset/every --timeout=60s")?;
    Ok(())
}

fn logs(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.apply(&[json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "talker", "namespace": "day"},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": V1, "command": ["sh", "-c", "for i in $(seq 1 1000); do echo line $i; sleep 0.2; done"]}]},
    })])?;
    cluster.kubectl("-n day wait --for=condition=Ready pod/talker --timeout=60s")?;
    let mut follow = Background(
        cluster
            .kubectl_command("-n day logs -f talker")
            .stdout(Stdio::piped())
            .spawn()?,
    );
    let mut lines = BufReader::new(follow.0.stdout.take().context("no output")?).lines();
    for i in 1..=8 {
        let line = lines.next().context("the log ended")??;
        ensure!(
            line == format!("line {i}"),
            "line {i} expected, not {line:?}"
        );
    }
    let tail = cluster.kubectl("-n day logs talker --tail=1")?;
    ensure!(tail.lines().count() == 1, "one line expected:\n{tail}");
    let stamped = cluster.kubectl("-n day logs talker --timestamps --limit-bytes=40")?;
    ensure!(
        stamped.len() <= 40 && stamped.starts_with("20"),
        "40 bytes with a time expected: {stamped:?}"
    );
    Ok(())
}

fn exec_and_copy(cluster: &Cluster) -> anyhow::Result<()> {
    // A terminal needs a terminal: script(1) gives kubectl one.
    let mut script = cluster.inside("script");
    let kubectl = cluster.kubectl_command("");
    let program = kubectl
        .get_args()
        .nth(1)
        .context("no kubectl")?
        .to_string_lossy()
        .into_owned();
    script.args([
        "-qec",
        &format!("{program} -n day exec -it client -- sh -c 'tty; echo size:; exit 7'"),
        "/dev/null",
    ]);
    let output = script.stdin(Stdio::null()).output()?;
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(shown.contains("/dev/pts/"), "a terminal expected: {shown}");
    ensure!(
        output.status.code() == Some(7),
        "the exit code 7 expected, not {:?}: {shown}",
        output.status
    );

    // stdin's end reaches the container: cat ends by itself.
    let megabyte = vec![b'x'; 1_000_000];
    let echoed = run_with_input(
        &mut cluster.kubectl_command("-n day exec -i client -- cat"),
        &megabyte,
    )?;
    ensure!(
        echoed.len() == megabyte.len(),
        "{} bytes came back of {}",
        echoed.len(),
        megabyte.len()
    );

    let there = cluster.scratch().join("there");
    let back = cluster.scratch().join("back");
    std::fs::write(&there, &megabyte)?;
    cluster.kubectl(&format!("-n day cp {} client:/tmp/copied", there.display()))?;
    cluster.kubectl(&format!("-n day cp client:/tmp/copied {}", back.display()))?;
    ensure!(std::fs::read(&back)? == megabyte, "the copy differs");
    Ok(())
}

fn port_forward(cluster: &Cluster) -> anyhow::Result<()> {
    let mut forward = Background(
        cluster
            .kubectl_command("-n day port-forward service/web 18080:80")
            .stdout(Stdio::piped())
            .spawn()?,
    );
    let mut first = String::new();
    BufReader::new(forward.0.stdout.as_mut().context("no output")?).read_line(&mut first)?;
    ensure!(first.contains("Forwarding from"), "{first}");
    for _ in 0..3 {
        let page = cluster
            .inside("curl")
            .args(["-s", "-m", "5", "http://127.0.0.1:18080/"])
            .output()?;
        ensure!(
            page.stdout == b"version one\n",
            "{:?}",
            String::from_utf8_lossy(&page.stdout)
        );
    }
    Ok(())
}

fn run_with_stdin(cluster: &Cluster) -> anyhow::Result<()> {
    let mut command = cluster.kubectl_command(
        "-n day run sum --rm -i --quiet --restart=Never --image=test.local/web:v1 -- sh -c",
    );
    command.arg("n=0; while read x; do n=$((n+x)); done; echo sum $n");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    child
        .stdin
        .take()
        .context("no stdin")?
        .write_all(b"1\n2\n39\n")?;
    let mut output = String::new();
    child
        .stdout
        .take()
        .context("no stdout")?
        .read_to_string(&mut output)?;
    ensure!(child.wait()?.success(), "kubectl run failed: {output}");
    ensure!(output.contains("sum 42"), "{output}");
    Ok(())
}

fn live_configmap(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.kubectl("-n day create configmap settings --from-literal=colour=red")?;
    cluster.apply(&[json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "reader", "namespace": "day"},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": V1, "command": ["sleep", "3600"], "volumeMounts": [{"name": "settings", "mountPath": "/settings"}]}],
            "volumes": [{"name": "settings", "configMap": {"name": "settings"}}],
        },
    })])?;
    cluster.kubectl("-n day wait --for=condition=Ready pod/reader --timeout=60s")?;
    let colour = || cluster.kubectl("-n day exec reader -- cat /settings/colour");
    if colour()? != "red" {
        bail!("the first value is missing");
    }
    cluster.kubectl_args(&[
        "-n",
        "day",
        "patch",
        "configmap",
        "settings",
        "-p",
        r#"{"data":{"colour":"blue"}}"#,
    ])?;
    cluster.wait("the file to change", 90, || {
        Ok((colour()? == "blue").then_some(()))
    })
}

fn namespace_deletion(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.kubectl("delete namespace day --timeout=120s")?;
    let left = cluster.kubectl("get namespaces day --ignore-not-found -o name")?;
    ensure!(left.is_empty(), "{left}");
    // Pods are gone from the node too, not only from the API.
    let socket = cluster.data_dir().join("containerd/containerd.sock");
    cluster.wait("the containers to be gone", 60, || {
        let tasks = cluster
            .inside("ctr")
            .arg("-a")
            .arg(&socket)
            .args(["-n", "k8s.io", "containers", "list", "-q"])
            .output()?;
        let dns_only = String::from_utf8_lossy(&tasks.stdout).lines().count() <= 2;
        Ok(dns_only.then_some(()))
    })
}
