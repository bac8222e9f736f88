//! kill -9 of everything in the middle of writes, again and again: what was acknowledged is there afterwards, and
//! containers never noticed.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use anyhow::{Context, ensure};
use keelson_conformance::testbed::{Background, Cluster, Programs};
use serde_json::json;

/// How often everything is killed.
const KILLS: usize = 20;
/// Creates under way in each round.
const CREATES: usize = 1000;

#[test]
fn acknowledged_objects_and_running_containers_survive_kill_9() {
    let Some(programs) = Programs::find() else {
        return;
    };
    let cluster = Cluster::up(&programs, "crash").unwrap();
    survive(&cluster).unwrap();
}

fn survive(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.import_busybox("test.local/web:v1", &[])?;
    cluster.apply(&[json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "witness", "namespace": "default"},
        "spec": {"containers": [{"name": "c", "image": "test.local/web:v1", "command": ["sh", "-c", "date +%s; sleep 36000"]}]},
    })])?;
    cluster.kubectl("wait --for=condition=Ready pod/witness --timeout=60s")?;
    let identity = || {
        cluster.kubectl("get pod witness -o jsonpath={.status.containerStatuses[0].containerID}/{.status.containerStatuses[0].restartCount}")
    };
    let before = identity()?;

    let mut acknowledged: BTreeSet<String> = BTreeSet::new();
    for round in 0..KILLS {
        let (count, prefix) = (CREATES.to_string(), format!("r{round}"));
        let mut creates = Background(
            cluster
                .bench(&["creates", "--count", &count, "--prefix", &prefix])?
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()?,
        );
        let lines = BufReader::new(creates.0.stdout.take().context("no output")?).lines();
        // Another moment in each round, from the first write to the last.
        let moment = round * CREATES / KILLS;
        for (i, line) in lines.enumerate() {
            // After the kill the rest of what was acknowledged before it still comes through the pipe.
            let Ok(line) = line else { break };
            acknowledged.insert(line);
            if i == moment {
                cluster.kill_everything()?;
            }
        }
        cluster
            .start()
            .with_context(|| format!("starting after kill {}", round + 1))?;
        let there = cluster.kubectl("get configmaps -o name")?;
        let there: BTreeSet<&str> = there
            .lines()
            .filter_map(|line| line.strip_prefix("configmap/"))
            .collect();
        let lost: Vec<&String> = acknowledged
            .iter()
            .filter(|name| !there.contains(name.as_str()))
            .collect();
        ensure!(
            lost.is_empty(),
            "after kill {}: {} acknowledged objects are lost: {lost:?}",
            round + 1,
            lost.len()
        );
        ensure!(
            identity()? == before,
            "after kill {}: the container was {before}, and is {}",
            round + 1,
            identity()?
        );
    }
    println!(
        "{KILLS} kills, {} acknowledged creates, none lost; the container kept running",
        acknowledged.len()
    );
    ensure!(
        acknowledged.len() > KILLS,
        "the kills came before any write"
    );
    Ok(())
}
