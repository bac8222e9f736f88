//! Defaults of pods and of pod templates (upstream `pkg/apis/core/v1/defaults.go`).

use keelson_machinery::value::{self, Value};
use serde_json::json;

use crate::registry::defaults::{for_items, put, put_number};

/// Defaults of a whole pod (`SetObjectDefaults_Pod`).
pub fn pod(pod: &mut Value) {
    for list in ["containers", "initContainers"] {
        for_items(pod, &["spec", list], requests_from_limits);
    }
    put(pod, &["spec", "enableServiceLinks"], true);
    spec(pod, &["spec"]);
    host_ports(pod);
}

/// Defaults of the pod spec at `path`, as templates have them too.
pub fn spec(object: &mut Value, path: &[&str]) {
    let Some(spec) = value::get_mut(object, path).filter(|spec| spec.is_object()) else {
        return;
    };
    put(spec, &["dnsPolicy"], "ClusterFirst");
    put(spec, &["restartPolicy"], "Always");
    put(spec, &["securityContext"], json!({}));
    put(spec, &["terminationGracePeriodSeconds"], 30);
    put(spec, &["schedulerName"], "default-scheduler");
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for_items(spec, &[list], container);
    }
    for_items(spec, &["volumes"], volume);
    if value::get_bool(spec, &["hostNetwork"]) == Some(true) {
        for list in ["containers", "initContainers"] {
            for_items(spec, &[list], host_ports_of);
        }
    }
}

/// Defaults of the pod template at `spec.template`.
pub fn template(object: &mut Value) {
    spec(object, &["spec", "template", "spec"]);
}

fn host_ports(pod: &mut Value) {
    if value::get_bool(pod, &["spec", "hostNetwork"]) == Some(true) {
        for list in ["containers", "initContainers"] {
            for_items(pod, &["spec", list], host_ports_of);
        }
    }
}

fn host_ports_of(container: &mut Value) {
    for_items(container, &["ports"], |port| {
        if let Some(number) = value::get_i64(port, &["containerPort"]) {
            put_number(port, &["hostPort"], number);
        }
    });
}

/// What is limited but not requested is requested.
fn requests_from_limits(container: &mut Value) {
    let Some(limits) = value::get_object(container, &["resources", "limits"]).cloned() else {
        return;
    };
    for (name, amount) in limits {
        if value::get(container, &["resources", "requests", &name]).is_none() {
            value::set(container, &["resources", "requests", &name], amount);
        }
    }
}

fn container(container: &mut Value) {
    let policy = match tag(value::str_or_empty(container, &["image"])) {
        "latest" => "Always",
        _ => "IfNotPresent",
    };
    put(container, &["imagePullPolicy"], policy);
    put(
        container,
        &["terminationMessagePath"],
        "/dev/termination-log",
    );
    put(container, &["terminationMessagePolicy"], "File");
    for_items(container, &["ports"], |port| {
        put(port, &["protocol"], "TCP")
    });
    for_items(container, &["env"], |variable| {
        if value::get(variable, &["valueFrom", "fieldRef"]).is_some() {
            put(variable, &["valueFrom", "fieldRef", "apiVersion"], "v1");
        }
    });
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(found) = value::get_mut(container, &[name]).filter(|p| p.is_object()) {
            probe(found);
        }
    }
    for name in ["postStart", "preStop"] {
        if let Some(handler) = value::get_mut(container, &["lifecycle", name]) {
            http_get(handler);
        }
    }
}

/// The tag of an image reference; `latest` when it names neither tag nor digest.
fn tag(image: &str) -> &str {
    if image.contains('@') {
        return "";
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    last.split_once(':').map_or("latest", |(_, tag)| tag)
}

fn probe(probe: &mut Value) {
    put_number(probe, &["timeoutSeconds"], 1);
    put_number(probe, &["periodSeconds"], 10);
    put_number(probe, &["successThreshold"], 1);
    put_number(probe, &["failureThreshold"], 3);
    http_get(probe);
    if value::get(probe, &["grpc"]).is_some() && value::get(probe, &["grpc", "service"]).is_none() {
        value::set(probe, &["grpc", "service"], "");
    }
}

fn http_get(handler: &mut Value) {
    if value::get(handler, &["httpGet"]).is_some() {
        put(handler, &["httpGet", "path"], "/");
        put(handler, &["httpGet", "scheme"], "HTTP");
    }
}

/// The mode of files in volumes: 0644.
const FILE_MODE: i64 = 0o644;

fn volume(volume: &mut Value) {
    let sources = volume.as_object().map_or(0, |members| {
        members.keys().filter(|name| *name != "name").count()
    });
    if sources == 0 {
        value::set(volume, &["emptyDir"], json!({}));
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if value::get(volume, &[source]).is_some() {
            put(volume, &[source, "defaultMode"], FILE_MODE);
        }
    }
    if value::get(volume, &["hostPath"]).is_some()
        && value::get(volume, &["hostPath", "type"]).is_none()
    {
        value::set(volume, &["hostPath", "type"], "");
    }
    let field_refs = |item: &mut Value| {
        if value::get(item, &["fieldRef"]).is_some() {
            put(item, &["fieldRef", "apiVersion"], "v1");
        }
    };
    for_items(volume, &["downwardAPI", "items"], field_refs);
    for_items(volume, &["projected", "sources"], |source| {
        if value::get(source, &["serviceAccountToken"]).is_some() {
            put(source, &["serviceAccountToken", "expirationSeconds"], 3600);
        }
        for_items(source, &["downwardAPI", "items"], field_refs);
    });
    if value::get(volume, &["ephemeral", "volumeClaimTemplate", "spec"]).is_some() {
        put(
            volume,
            &["ephemeral", "volumeClaimTemplate", "spec", "volumeMode"],
            "Filesystem",
        );
    }
    for (source, field, default) in [
        ("iscsi", "iscsiInterface", "default"),
        ("rbd", "pool", "rbd"),
        ("rbd", "user", "admin"),
        ("rbd", "keyring", "/etc/ceph/keyring"),
        ("scaleIO", "storageMode", "ThinProvisioned"),
        ("scaleIO", "fsType", "xfs"),
        ("azureDisk", "cachingMode", "ReadWrite"),
        ("azureDisk", "kind", "Shared"),
        ("azureDisk", "fsType", "ext4"),
    ] {
        if value::get(volume, &[source]).is_some() {
            put(volume, &[source, field], default);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_of_images() {
        for (image, wanted) in [
            ("nginx", "latest"),
            ("nginx:1", "1"),
            ("host:5000/nginx", "latest"),
            ("host:5000/nginx:2", "2"),
            ("nginx@sha256:0", ""),
        ] {
            assert_eq!(tag(image), wanted, "{image}");
        }
    }

    #[test]
    fn defaulting_twice_is_defaulting_once() {
        let mut once = json!({"spec": {"hostNetwork": true, "containers": [{
            "name": "c", "image": "i:1", "ports": [{"containerPort": 80}],
            "resources": {"limits": {"cpu": "1"}},
            "livenessProbe": {"httpGet": {"port": 80}}}],
            "volumes": [{"name": "v"}, {"name": "s", "secret": {"secretName": "x"}}]}});
        pod(&mut once);
        let mut twice = once.clone();
        pod(&mut twice);
        assert_eq!(once, twice);
        let container = &once["spec"]["containers"][0];
        assert_eq!(container["imagePullPolicy"], "IfNotPresent");
        assert_eq!(container["ports"][0]["hostPort"], 80);
        assert_eq!(container["resources"]["requests"]["cpu"], "1");
        assert_eq!(container["livenessProbe"]["failureThreshold"], 3);
        assert_eq!(once["spec"]["volumes"][0]["emptyDir"], json!({}));
        assert_eq!(once["spec"]["volumes"][1]["secret"]["defaultMode"], 420);
    }
}
