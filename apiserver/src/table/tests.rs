//! Objects as data, and the cells that they show.

use keelson_machinery::catalog::Catalog;

use super::*;

const NOW: &str = "2024-01-10T00:00:00Z";

fn resource(group: &str, name: &str) -> &'static Resource {
    Catalog::builtin()
        .rows()
        .iter()
        .find(|row| row.group == group && row.resource == name)
        .unwrap_or_else(|| panic!("no {name} in {group}"))
}

fn table(group: &str, name: &str, object: &Value) -> Value {
    let now = time::parse(NOW).expect("valid");
    of_object(
        resource(group, name),
        None,
        object,
        now,
        &Options::default(),
    )
}

fn check(group: &str, name: &str, object: Value, want: Value) {
    let got = table(group, name, &object);
    assert_eq!(got["rows"][0]["cells"], want, "{name}: {object}");
}

#[test]
fn every_printer_has_a_cell_for_each_column() {
    for (group, name, printer) in printers::all() {
        resource(group, name);
        let columns = printer_columns(printer).count();
        let cells = printer.cells.len();
        // Upstream prints one cell too many here.
        let extra = usize::from(*name == "ipaddresses");
        assert_eq!(cells, columns + extra, "{group}/{name}");
    }
}

#[test]
fn the_table_around_the_rows() {
    let object = json!({"metadata": {"name": "a", "resourceVersion": "7", "creationTimestamp": "2024-01-09T00:00:00Z"}});
    assert_eq!(
        table("", "serviceaccounts", &object),
        json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {"resourceVersion": "7"},
            "columnDefinitions": [
                {"name": "Name", "type": "string", "format": "name", "description": "", "priority": 0},
                {"name": "Age", "type": "string", "format": "", "description": "", "priority": 0}],
            "rows": [{"cells": ["a", "24h"], "object": {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]}}]})
    );
    let row = resource("rbac.authorization.k8s.io", "roles");
    let options = Options {
        include: IncludeObject::Object,
        no_headers: true,
        api_version: "meta.k8s.io/v1beta1",
    };
    let list: Object = serde_json::from_value(
        json!({"resourceVersion": "9", "continue": "", "remainingItemCount": 3}),
    )
    .expect("object");
    let now = time::parse(NOW).expect("valid");
    let got = of_list(row, None, [&object], list, now, &options);
    assert_eq!(
        got["metadata"],
        json!({"resourceVersion": "9", "remainingItemCount": 3})
    );
    assert_eq!(got["columnDefinitions"], Value::Null);
    assert_eq!(
        got["rows"][0]["cells"],
        json!(["a", "2024-01-09T00:00:00Z"])
    );
    assert_eq!(got["rows"][0]["object"]["kind"], "Role");
    assert_eq!(
        IncludeObject::parse(Some("All"))
            .expect_err("unknown")
            .message,
        "Unable to convert to Table as requested: includeObject: Invalid value: \"All\": must be 'Metadata', 'Object', 'None', or empty"
    );
}

/// Name, ready, status and restarts of a pod, and whether its row is marked as completed.
fn check_pod(pod: Value, want: [&str; 3], completed: bool) {
    let got = table("", "pods", &pod);
    let cells = &got["rows"][0]["cells"];
    let got_cells = [&cells[1], &cells[2], &cells[3]].map(|c| c.as_str().unwrap_or_default());
    assert_eq!(got_cells, want, "{pod}");
    assert_eq!(
        got["rows"][0].get("conditions").is_some(),
        completed,
        "{pod}"
    );
}

#[test]
fn pods() {
    let two = json!([{"name": "a"}, {"name": "b"}]);
    let running = json!({"name": "a", "ready": true, "state": {"running": {}}});
    let waiting = |reason: &str| json!({"name": "a", "restartCount": 4, "state": {"waiting": {"reason": reason}}, "lastState": {"terminated": {"finishedAt": "2024-01-09T23:55:00Z"}}});
    let done = |code: i64, reason: &str| json!({"name": "a", "state": {"terminated": {"exitCode": code, "reason": reason}}});
    let status = |phase: &str, containers: Vec<Value>| json!({"phase": phase, "containerStatuses": containers});
    let ready = json!([{"type": "Ready", "status": "True"}]);

    check_pod(
        json!({"spec": {"containers": two}, "status": status("Pending", vec![])}),
        ["0/2", "Pending", "0"],
        false,
    );
    check_pod(
        json!({"spec": {"containers": two}, "status": status("Running", vec![running.clone(), running.clone()])}),
        ["2/2", "Running", "0"],
        false,
    );
    check_pod(
        json!({"spec": {"containers": two}, "status": status("Running", vec![running.clone(), waiting("CrashLoopBackOff")])}),
        ["1/2", "CrashLoopBackOff", "4 (5m ago)"],
        false,
    );
    check_pod(
        json!({"spec": {"containers": two}, "status": status("Succeeded", vec![done(0, "Completed"), done(0, "Completed")])}),
        ["0/2", "Completed", "0"],
        true,
    );
    check_pod(
        json!({"spec": {"containers": two}, "status": status("Failed", vec![done(1, ""), done(0, "Completed")])}),
        ["0/2", "ExitCode:1", "0"],
        true,
    );
    check_pod(
        json!({"spec": {"containers": two}, "status": {"phase": "Running", "conditions": ready, "containerStatuses": [done(0, "Completed"), running]}}),
        ["1/2", "Running", "0"],
        false,
    );
    check_pod(
        json!({"spec": {"containers": two}, "status": {"phase": "Running", "containerStatuses": [done(0, "Completed"), running]}}),
        ["1/2", "NotReady", "0"],
        false,
    );
    check_pod(
        json!({"metadata": {"deletionTimestamp": NOW}, "spec": {"containers": two}, "status": status("Running", vec![running.clone()])}),
        ["1/2", "Terminating", "0"],
        false,
    );
    check_pod(
        json!({"metadata": {"deletionTimestamp": NOW}, "spec": {"containers": two}, "status": {"phase": "Running", "reason": "NodeLost"}}),
        ["0/2", "Unknown", "0"],
        false,
    );
    check_pod(
        json!({"spec": {"containers": two}, "status": {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]}}),
        ["0/2", "SchedulingGated", "0"],
        false,
    );
    check_pod(
        json!({"spec": {"containers": two}, "status": {"phase": "Failed", "reason": "Evicted"}}),
        ["0/2", "Evicted", "0"],
        true,
    );

    let inits = json!([{"name": "i1"}, {"name": "s", "restartPolicy": "Always"}]);
    let with_inits = |statuses: Value| json!({"spec": {"containers": two, "initContainers": inits}, "status": {"phase": "Pending", "initContainerStatuses": statuses}});
    check_pod(
        with_inits(json!([{"name": "i1", "state": {"running": {}}}])),
        ["0/3", "Init:0/2", "0"],
        false,
    );
    check_pod(
        with_inits(
            json!([{"name": "i1", "restartCount": 2, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]),
        ),
        ["0/3", "Init:CrashLoopBackOff", "2"],
        false,
    );
    check_pod(
        with_inits(json!([{"name": "i1", "state": {"terminated": {"exitCode": 3}}}])),
        ["0/3", "Init:ExitCode:3", "0"],
        false,
    );
    check_pod(
        with_inits(json!([{"name": "i1", "state": {"terminated": {"exitCode": 1, "signal": 9}}}])),
        ["0/3", "Init:Signal:9", "0"],
        false,
    );
    check_pod(
        with_inits(
            json!([{"name": "i1", "state": {"terminated": {"exitCode": 0}}}, {"name": "s", "started": true, "ready": true, "restartCount": 1, "state": {"running": {}}}]),
        ),
        ["1/3", "Pending", "1"],
        false,
    );

    let wide = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n", "readinessGates": [{"conditionType": "x"}, {"conditionType": "y"}]},
        "status": {"podIPs": [{"ip": "10.0.0.1"}], "conditions": [{"type": "y", "status": "True"}]}});
    check(
        "",
        "pods",
        wide,
        json!([
            "p",
            "0/0",
            "",
            "0",
            "<unknown>",
            "10.0.0.1",
            "n",
            "<none>",
            "1/2"
        ]),
    );
}

#[test]
fn workloads() {
    let template = json!({"spec": {"containers": [{"name": "a", "image": "x:1"}, {"name": "b", "image": "y"}], "nodeSelector": {"z": "1", "a": "2"}}});
    let selector = json!({"matchLabels": {"app": "web"}, "matchExpressions": [{"key": "tier", "operator": "In", "values": ["b", "a"]}]});
    let made = json!({"name": "w", "creationTimestamp": "2024-01-09T23:00:00Z"});
    check(
        "apps",
        "deployments",
        json!({"metadata": made, "spec": {"replicas": 3, "template": template, "selector": selector}, "status": {"readyReplicas": 1, "updatedReplicas": 2}}),
        json!([
            "w",
            "1/3",
            2,
            0,
            "60m",
            "a,b",
            "x:1,y",
            "app=web,tier in (a,b)"
        ]),
    );
    check(
        "apps",
        "daemonsets",
        json!({"metadata": made, "spec": {"template": template, "selector": {}}, "status": {"desiredNumberScheduled": 2}}),
        json!([
            "w", 2, 0, 0, 0, 0, "a=2,z=1", "60m", "a,b", "x:1,y", "<none>"
        ]),
    );
    check(
        "apps",
        "controllerrevisions",
        json!({"metadata": {"name": "w", "ownerReferences": [{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "controller": true}]}, "revision": 4}),
        json!(["w", "daemonset.apps/d", 4, "<unknown>"]),
    );
    check(
        "batch",
        "jobs",
        json!({"metadata": made, "spec": {"parallelism": 3, "template": template}, "status": {"succeeded": 1, "startTime": "2024-01-09T23:59:30Z"}}),
        json!([
            "w", "Running", "1/1 of 3", "30s", "60m", "a,b", "x:1,y", "<none>"
        ]),
    );
    check(
        "batch",
        "jobs",
        json!({"metadata": made, "spec": {"completions": 2}, "status": {"conditions": [{"type": "Complete", "status": "True"}], "startTime": "2024-01-09T23:00:00Z", "completionTime": "2024-01-09T23:00:05Z"}}),
        json!(["w", "Complete", "0/2", "5s", "60m", "", "", "<none>"]),
    );
    check(
        "batch",
        "cronjobs",
        json!({"metadata": made, "spec": {"schedule": "* * * * *", "suspend": false}, "status": {"active": [{}]}}),
        json!([
            "w",
            "* * * * *",
            "<none>",
            "False",
            1,
            "<none>",
            "60m",
            "",
            "",
            "<none>"
        ]),
    );
    let metrics = json!([{"type": "Resource", "resource": {"name": "cpu", "target": {"averageUtilization": 80}}}, {"type": "Pods", "pods": {"target": {"averageValue": "100m"}}}, {"type": "External", "external": {"target": {"value": "3"}}}]);
    check(
        "autoscaling",
        "horizontalpodautoscalers",
        json!({"metadata": made, "spec": {"scaleTargetRef": {"kind": "Deployment", "name": "web"}, "maxReplicas": 5, "metrics": metrics}, "status": {"currentMetrics": [{"resource": {"current": {"averageUtilization": 12}}}]}}),
        json!([
            "w",
            "Deployment/web",
            "cpu: 12%/80%, <unknown>/100m + 1 more...",
            "<unset>",
            5,
            0,
            "60m"
        ]),
    );
    check(
        "policy",
        "poddisruptionbudgets",
        json!({"metadata": made, "spec": {"maxUnavailable": "25%", "minAvailable": 1}}),
        json!(["w", "1", "25%", 0, "60m"]),
    );
}

#[test]
fn networking() {
    let service = |spec: Value, ingress: Value| json!({"metadata": {"name": "s"}, "spec": spec, "status": {"loadBalancer": {"ingress": ingress}}});
    let ports = json!([{"port": 80, "protocol": "TCP"}, {"port": 443, "nodePort": 30443, "protocol": "TCP"}]);
    for (spec, ingress, ip, external) in [
        (
            json!({"type": "ClusterIP", "clusterIPs": ["None"], "ports": ports}),
            json!([]),
            "None",
            "<none>",
        ),
        (
            json!({"type": "LoadBalancer", "clusterIPs": ["10.96.0.1"], "ports": ports}),
            json!([]),
            "10.96.0.1",
            "<pending>",
        ),
        (
            json!({"type": "LoadBalancer", "externalIPs": ["9.9.9.9"], "ports": ports}),
            json!([{"ip": "2.2.2.2"}, {"hostname": "1.example"}]),
            "<none>",
            "1.example,2.2.2.2,9.9.9.9",
        ),
        (
            json!({"type": "ExternalName", "externalName": "x.example", "ports": ports}),
            json!([]),
            "<none>",
            "x.example",
        ),
        (
            json!({"type": "NodePort", "externalIPs": ["9.9.9.9", "8.8.8.8"], "ports": ports}),
            json!([]),
            "<none>",
            "9.9.9.9,8.8.8.8",
        ),
    ] {
        let kind = spec["type"].clone();
        check(
            "",
            "services",
            service(spec, ingress),
            json!([
                "s",
                kind,
                ip,
                external,
                "80/TCP,443:30443/TCP",
                "<unknown>",
                "<none>"
            ]),
        );
    }
    let addresses = json!([{"ip": "1.1.1.1"}, {"ip": "::1"}]);
    check(
        "",
        "endpoints",
        json!({"metadata": {"name": "e"}, "subsets": [{"addresses": addresses, "ports": [{"port": 80}, {"port": 81}]}]}),
        json!([
            "e",
            "1.1.1.1:80,[::1]:80,1.1.1.1:81 + 1 more...",
            "<unknown>"
        ]),
    );
    check(
        "",
        "endpoints",
        json!({"metadata": {"name": "e"}}),
        json!(["e", "<none>", "<unknown>"]),
    );
    check(
        "discovery.k8s.io",
        "endpointslices",
        json!({"metadata": {"name": "e"}, "addressType": "IPv4", "ports": [{"name": "x"}, {}], "endpoints": []}),
        json!(["e", "IPv4", "x,*", "<unset>", "<unknown>"]),
    );
    check(
        "networking.k8s.io",
        "ingresses",
        json!({"metadata": {"name": "i"}, "spec": {"tls": [{}], "rules": [{"host": "a"}, {}, {"host": "b"}, {"host": "c"}, {"host": "d"}]}}),
        json!([
            "i",
            "<none>",
            "a,b,c + 2 more...",
            "",
            "80, 443",
            "<unknown>"
        ]),
    );
    check(
        "networking.k8s.io",
        "ipaddresses",
        json!({"metadata": {"name": "10.0.0.1"}, "spec": {"parentRef": {"resource": "services", "namespace": "d", "name": "k"}}}),
        json!(["10.0.0.1", "services/d/k", "<unknown>"]),
    );
}

#[test]
fn configuration() {
    check(
        "",
        "nodes",
        json!({"metadata": {"name": "n", "labels": {"node-role.kubernetes.io/worker": "", "kubernetes.io/role": "edge"}}, "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "Unknown"}], "addresses": [{"type": "InternalIP", "address": "10.0.0.2"}],
                "nodeInfo": {"kubeletVersion": "v1.36.2", "osImage": "Debian", "kernelVersion": "6.1", "architecture": "amd64"}}}),
        json!([
            "n",
            "NotReady,SchedulingDisabled",
            "edge,worker",
            "<unknown>",
            "v1.36.2",
            "10.0.0.2",
            "<none>",
            "Debian",
            "6.1 (amd64)",
            "<unknown>"
        ]),
    );
    let core = json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "p", "fieldPath": "spec"}, "type": "Normal", "reason": "Pulled", "message": " hi\n",
        "firstTimestamp": "2024-01-09T23:59:00Z", "lastTimestamp": "2024-01-09T23:59:30Z", "count": 3, "source": {"component": "kubelet", "host": "n"}});
    check(
        "",
        "events",
        core,
        json!([
            "30s",
            "Normal",
            "Pulled",
            "pod/p",
            "spec",
            "kubelet, n",
            "hi",
            "60s",
            3,
            "e"
        ]),
    );
    let new = json!({"metadata": {"name": "e"}, "regarding": {"kind": "Pod", "name": "p"}, "type": "Warning", "reason": "Failed", "note": "no", "eventTime": "2024-01-09T23:59:00.000001Z", "reportingController": "sched"});
    check(
        "events.k8s.io",
        "events",
        new,
        json!([
            "59s", "Warning", "Failed", "pod/p", "", "sched", "no", "59s", 1, "e"
        ]),
    );
    check(
        "",
        "resourcequotas",
        json!({"metadata": {"name": "q"}, "status": {"hard": {"pods": "2", "limits.cpu": "4", "cpu": "1"}, "used": {"pods": "1"}}}),
        json!(["q", "cpu: 0/1, pods: 1/2", "limits.cpu: 0/4", "<unknown>"]),
    );
    check(
        "rbac.authorization.k8s.io",
        "rolebindings",
        json!({"metadata": {"name": "b"}, "roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "User", "name": "u"}, {"kind": "User", "name": "v"}, {"kind": "ServiceAccount", "namespace": "n", "name": "s"}]}),
        json!(["b", "Role/r", "<unknown>", "u, v", "", "n/s"]),
    );
    check(
        "",
        "persistentvolumeclaims",
        json!({"metadata": {"name": "c"}, "spec": {"volumeName": "v", "storageClassName": "fast", "volumeMode": "Filesystem"}, "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany", "ReadWriteOnce"]}}),
        json!([
            "c",
            "Bound",
            "v",
            "1Gi",
            "RWO,RWX",
            "fast",
            "<unset>",
            "<unknown>",
            "Filesystem"
        ]),
    );
    check(
        "storage.k8s.io",
        "storageclasses",
        json!({"metadata": {"name": "fast", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}, "provisioner": "x"}),
        json!([
            "fast (default)",
            "x",
            "Delete",
            "Immediate",
            false,
            "<unknown>"
        ]),
    );
    check(
        "certificates.k8s.io",
        "certificatesigningrequests",
        json!({"metadata": {"name": "c"}, "spec": {"signerName": "s", "username": "u", "expirationSeconds": 3600}, "status": {"certificate": "eA==", "conditions": [{"type": "Approved"}]}}),
        json!(["c", "<unknown>", "s", "u", "60m", "Approved,Issued"]),
    );
    check(
        "apiregistration.k8s.io",
        "apiservices",
        json!({"metadata": {"name": "v1.x"}, "spec": {"service": {"namespace": "n", "name": "s"}}, "status": {"conditions": [{"type": "Available", "status": "False", "reason": "Gone"}]}}),
        json!(["v1.x", "n/s", "False (Gone)", "<unknown>"]),
    );
    check(
        "flowcontrol.apiserver.k8s.io",
        "prioritylevelconfigurations",
        json!({"metadata": {"name": "p"}, "spec": {"type": "Exempt"}}),
        json!([
            "p",
            "Exempt",
            "<none>",
            "<none>",
            "<none>",
            "<none>",
            "<unknown>"
        ]),
    );
}
