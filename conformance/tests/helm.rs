//! `helm create` and the life of that chart, with an unmodified helm.

use anyhow::ensure;
use keelson_conformance::testbed::{Cluster, Programs};

#[test]
fn a_chart_is_installed_upgraded_rolled_back_and_uninstalled() {
    let Some(programs) = Programs::find() else {
        return;
    };
    let cluster = Cluster::up(&programs, "helm").unwrap();
    life_of_a_chart(&cluster).unwrap();
}

fn life_of_a_chart(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.import_busybox("test.local/web:v1", &[("www/index.html", "version one\n")])?;
    let chart = cluster.scratch().join("shop");
    cluster.helm(&format!("create {}", chart.display()))?;
    // The chart's own image is not to be had here; everything else stays as helm made it.
    let values = cluster.scratch().join("values.yaml");
    std::fs::write(
        &values,
        "image: {repository: test.local/web, tag: v1}\nservice: {port: 80}\n",
    )?;
    let template = chart.join("templates/deployment.yaml");
    let text = std::fs::read_to_string(&template)?;
    std::fs::write(
        &template,
        text.replace(
            "          ports:",
            "          command: [httpd, -f, -p, \"80\", -h, /www]\n          ports:",
        ),
    )?;

    let common = format!(
        "{} -f {} --wait --timeout 120s",
        chart.display(),
        values.display()
    );
    cluster.helm(&format!("install shop {common}"))?;
    ensure!(cluster.kubectl("get deployment shop -o jsonpath={.status.readyReplicas}")? == "1");
    cluster.helm(&format!("upgrade shop {common} --set replicaCount=2"))?;
    ensure!(cluster.kubectl("get deployment shop -o jsonpath={.status.readyReplicas}")? == "2");
    cluster.helm("rollback shop 1 --wait --timeout 120s")?;
    ensure!(cluster.kubectl("get deployment shop -o jsonpath={.spec.replicas}")? == "1");
    let history = cluster.helm("history shop")?;
    ensure!(history.contains("Rollback to 1"), "{history}");
    cluster.helm("uninstall shop --wait --timeout 120s")?;
    let left = cluster.kubectl(
        "get deployments,services,serviceaccounts -l app.kubernetes.io/instance=shop -o name",
    )?;
    ensure!(left.is_empty(), "{left}");
    Ok(())
}
