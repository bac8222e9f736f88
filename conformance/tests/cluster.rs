//! `keelson cluster`: nodes on one machine that reach each other's pods, are cut and healed, stop and start, and of which
//! nothing is left in the end.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use keelson_conformance::testbed::{Clusters, Programs, run_with_input, wait};
use serde_json::json;

const IMAGE: &str = "test.local/node:v1";

#[test]
fn nodes_on_one_machine() {
    let Some(programs) = Programs::find() else {
        return;
    };
    let clusters = Clusters::new(&programs, "nodes").unwrap();
    if let Err(error) = flow(&clusters) {
        panic!("{error:#}\n{}", logs(&clusters));
    }
}

fn flow(clusters: &Clusters) -> anyhow::Result<()> {
    let refused = |line: &str, why: &str| -> anyhow::Result<()> {
        let said = clusters.cluster(line).err().map(|error| error.to_string());
        let fits = said.as_ref().is_some_and(|said| said.contains(why));
        ensure!(fits, "{line}: {said:?}, not {why:?}");
        Ok(())
    };
    refused("create ../a", "no name for a cluster")?;
    refused("create a --nodes 0", "1 to 200 nodes")?;
    refused("stop a", "there is no cluster a")?;
    print!(
        "{}",
        clusters.cluster("create a --nodes 2 --runtime-handler other")?
    );
    refused("create a", "there is a cluster a already")?;
    refused("stop a node-3", "has no node node-3")?;
    clusters.cluster("create b")?;

    pods_reach_each_other(clusters)?;
    let fetch_b = || fetch(clusters, "a", "http-b");
    clusters.cluster("cut a node-2 node-1")?;
    ensure!(fetch_b().is_err(), "an answer through a wire that is cut");
    clusters.cluster("heal a node-1 node-2")?;
    wait("the healed wire", 10, || fetch_b().map(Some))?;

    let before = restarts(clusters)?;
    clusters.cluster("stop a node-2")?;
    ensure!(fetch_b().is_err(), "an answer from a node that is off");
    ensure!(clusters.cluster("list")?.contains("off"));
    clusters.cluster("start a node-2")?;
    wait("the pod of the restarted node", 60, || fetch_b().map(Some))?;
    ensure!(
        restarts(clusters)? > before,
        "the pod came through a power cut"
    );

    let left = Traces::of(clusters, "a")?;
    ensure!(
        left.processes.len() > 6 && !left.cgroups.is_empty(),
        "{left:?}"
    );
    clusters.cluster("delete a")?;
    left.are_gone()?;
    ensure!(clusters.kubectl("b", "get --raw /readyz")? == "ok");
    let left = Traces::of(clusters, "b")?;
    clusters.cluster("delete b")?;
    left.are_gone()?;
    let mut ip = clusters.inside("ip");
    let links = String::from_utf8(ip.args(["-o", "link"]).output()?.stdout)?;
    ensure!(links.lines().count() == 1, "{links}");
    Ok(())
}

fn pods_reach_each_other(clusters: &Clusters) -> anyhow::Result<()> {
    clusters.import_busybox("a", IMAGE, &[("www/index.html", "hello\n")])?;
    let pod = |name: &str, node: &str, more: serde_json::Value| {
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
            "spec": {"nodeName": node, "terminationGracePeriodSeconds": 0, "containers": [{
                "name": "web", "image": IMAGE, "imagePullPolicy": "Never", "command": ["httpd", "-f", "-p", "80", "-h", "/www"],
            }]},
        });
        if let (Some(spec), Some(more)) = (pod["spec"].as_object_mut(), more.as_object()) {
            spec.extend(more.clone());
        }
        pod
    };
    let service = |name: &str, app: &str| {
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"type": "NodePort", "selector": {"app": app}, "ports": [{"port": 80}]},
        })
    };
    let class = json!({
        "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "other"}, "handler": "other",
    });
    for object in [
        class,
        pod("a", "node-1", json!({})),
        pod("b", "node-2", json!({"runtimeClassName": "other"})),
        service("http-a", "a"),
        service("http-b", "b"),
    ] {
        let mut create = clusters.kubectl_command("a", &["create", "-f", "-"]);
        run_with_input(&mut create, object.to_string().as_bytes())?;
    }
    clusters.kubectl("a", "wait pod/a pod/b --for=condition=Ready --timeout=60s")?;
    for (from, to) in [("a", "b"), ("b", "a")] {
        let ip = clusters.kubectl("a", &format!("get pod {to} -o jsonpath={{.status.podIP}}"))?;
        for host in [ip, format!("http-{to}")] {
            wait(&format!("{host} from {from}"), 20, || {
                fetch(clusters, from, &host).map(Some)
            })?;
        }
    }
    ensure!(clusters.kubectl("a", "exec b -- id")?.contains("uid=0"));
    // From outside of the nodes, as a person at the machine would.
    let port = clusters.kubectl(
        "a",
        "get service http-b -o jsonpath={.spec.ports[0].nodePort}",
    )?;
    let path = "jsonpath={.items[*].status.addresses[?(@.type==\"InternalIP\")].address}";
    let nodes = clusters.kubectl("a", &format!("get nodes -o {path}"))?;
    ensure!(nodes.split_whitespace().count() == 2, "{nodes}");
    for node in nodes.split_whitespace() {
        wait(&format!("node port {node}:{port}"), 20, || {
            let mut nc = clusters.inside("/bin/busybox");
            let page = run_with_input(
                nc.args(["nc", "-w", "2", node, &port]),
                b"GET / HTTP/1.0\r\n\r\n",
            )?;
            Ok(page.contains("hello").then_some(()))
        })?;
    }
    Ok(())
}

/// The page at port 80 of `host`, fetched from within a pod.
fn fetch(clusters: &Clusters, pod: &str, host: &str) -> anyhow::Result<()> {
    let script = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 2 {host} 80 | grep -q hello");
    let args = ["exec", pod, "--", "sh", "-c", &script];
    let status = clusters.kubectl_command("a", &args).output()?.status;
    ensure!(status.success(), "no page from {host}");
    Ok(())
}

fn restarts(clusters: &Clusters) -> anyhow::Result<u32> {
    let path = "jsonpath={.status.containerStatuses[0].restartCount}";
    let count = clusters.kubectl("a", &format!("get pod b -o {path}"))?;
    count
        .parse()
        .with_context(|| format!("restarts: {count:?}"))
}

/// What a running cluster has in the kernel and on disk.
#[derive(Debug)]
struct Traces {
    folder: PathBuf,
    processes: BTreeSet<u32>,
    cgroups: BTreeSet<PathBuf>,
}

impl Traces {
    /// The processes below PID 1 of each node of a cluster, and the cgroups of keelson's that they are in.
    fn of(clusters: &Clusters, cluster: &str) -> anyhow::Result<Self> {
        let list = clusters.cluster("list")?;
        let of_cluster = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            (words.first() == Some(&cluster)).then(|| words.get(4)?.parse::<u32>().ok())?
        };
        let mut processes: BTreeSet<u32> = list.lines().filter_map(of_cluster).collect();
        ensure!(!processes.is_empty(), "no node of {cluster} runs:\n{list}");
        let parents = parents()?;
        loop {
            let children = parents
                .iter()
                .filter(|(_, parent)| processes.contains(parent))
                .map(|(child, _)| *child);
            let more: BTreeSet<u32> = children.filter(|pid| !processes.contains(pid)).collect();
            if more.is_empty() {
                break;
            }
            processes.extend(more);
        }
        let roots = roots_of_cgroups()?;
        let mut cgroups = BTreeSet::new();
        for pid in &processes {
            let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            let names = text.lines().filter_map(|line| {
                let name = line.splitn(3, ':').nth(2)?.split('/').nth(1)?;
                name.starts_with("keelson-").then(|| name.to_owned())
            });
            for name in names {
                cgroups.extend(roots.iter().map(|root| root.join(&name)));
            }
        }
        Ok(Traces {
            folder: clusters.data_dir().join(cluster),
            processes,
            cgroups,
        })
    }

    fn are_gone(&self) -> anyhow::Result<()> {
        ensure!(!self.folder.exists(), "{}", self.folder.display());
        for pid in &self.processes {
            // One that has ended may wait for its parent, the machine's own PID 1, to take note.
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let state = stat
                .rsplit_once(')')
                .map_or("", |(_, rest)| rest.trim_start());
            ensure!(state.is_empty() || state.starts_with('Z'), "left: {stat}");
        }
        for cgroup in &self.cgroups {
            ensure!(!cgroup.exists(), "{} is left", cgroup.display());
        }
        let mounts = std::fs::read_to_string("/proc/self/mounts")?;
        let folder = self.folder.to_string_lossy();
        ensure!(!mounts.contains(&*folder), "mounts are left:\n{mounts}");
        Ok(())
    }
}

/// Each process with its parent.
fn parents() -> anyhow::Result<Vec<(u32, u32)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // Gone meanwhile, if it cannot be read.
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let parent = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        found.extend(parent.map(|parent| (pid, parent)));
    }
    Ok(found)
}

fn roots_of_cgroups() -> anyhow::Result<Vec<PathBuf>> {
    let mut found = vec![PathBuf::from("/sys/fs/cgroup")];
    for entry in std::fs::read_dir("/sys/fs/cgroup")? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// The end of every log of every node.
fn logs(clusters: &Clusters) -> String {
    let mut text = String::new();
    for cluster in ["a", "b"] {
        for node in ["node-1", "node-2"] {
            for log in ["machine", "keelson"] {
                let path = clusters
                    .data_dir()
                    .join(format!("{cluster}/{node}/log/{log}.log"));
                let Ok(content) = std::fs::read_to_string(&path) else {
                    continue;
                };
                let lines: Vec<&str> = content.lines().collect();
                let tail = lines[lines.len().saturating_sub(30)..].join("\n");
                text += &format!("--- {}\n{tail}\n", path.display());
            }
        }
    }
    text
}
