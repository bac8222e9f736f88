//! Where pods come from: the API server, and a directory of manifests whose pods are shown in the API by mirrors.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, Toleration};
use keelson_machinery::clock::Clock;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use kube::runtime::{WatchStreamExt, watcher};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::manager::Manager;
use crate::podutil;
use crate::shared::Shared;

/// Follows the pods that the API has for this node.
pub async fn api(
    shared: Arc<Shared>,
    manager: Arc<Manager>,
    mirrors: Arc<Mirrors>,
    shutdown: CancellationToken,
) {
    let Some(client) = shared.client.clone() else {
        return;
    };
    let api: Api<Pod> = Api::all(client);
    let config =
        watcher::Config::default().fields(&format!("spec.nodeName={}", shared.config.node_name));
    let mut events = std::pin::pin!(watcher(api, config).default_backoff());
    let mut known: HashSet<String> = HashSet::new();
    let mut listed: Vec<Pod> = Vec::new();
    loop {
        let event = tokio::select! {
            () = shutdown.cancelled() => return,
            e = events.next() => match e {
                Some(e) => e,
                None => return,
            },
        };
        match event {
            Ok(watcher::Event::Init) => listed.clear(),
            Ok(watcher::Event::InitApply(p)) => listed.push(p),
            Ok(watcher::Event::InitDone) => {
                let now: HashSet<String> =
                    listed.iter().map(|p| podutil::uid(p).to_owned()).collect();
                // The oldest first: they hold their place when not all fit.
                listed.sort_by_key(|p| p.metadata.creation_timestamp.as_ref().map(|t| t.0));
                for p in listed.drain(..) {
                    apply(&manager, &mirrors, p);
                }
                for gone in known.difference(&now) {
                    manager.remove(gone);
                    mirrors.removed(gone);
                }
                known = now;
                manager.api_is_ready();
            }
            Ok(watcher::Event::Apply(p)) => {
                known.insert(podutil::uid(&p).to_owned());
                apply(&manager, &mirrors, p);
            }
            Ok(watcher::Event::Delete(p)) => {
                known.remove(podutil::uid(&p));
                manager.remove(podutil::uid(&p));
                mirrors.removed(podutil::uid(&p));
            }
            Err(error) => warn!(%error, "watching the node's pods failed"),
        }
    }
}

fn apply(manager: &Arc<Manager>, mirrors: &Mirrors, mut pod: Pod) {
    if podutil::is_mirror(&pod) {
        mirrors.seen(&pod);
        return;
    }
    // What a user may have written there means nothing coming from the API.
    if let Some(a) = &mut pod.metadata.annotations {
        a.remove(podutil::CONFIG_SOURCE);
    }
    manager.apply(pod);
}

/// The API objects that show static pods.
pub struct Mirrors {
    shared: Arc<Shared>,
    /// By namespace and name.
    seen: Mutex<HashMap<(String, String), Mirror>>,
}

/// A mirror as the API has it.
#[derive(Clone)]
struct Mirror {
    uid: String,
    /// The fingerprint of the static pod that it shows.
    hash: String,
    /// Somebody deletes it; that does nothing to the static pod, which gets a new mirror.
    deleting: bool,
}

impl Mirrors {
    /// No mirrors yet.
    pub fn new(shared: Arc<Shared>) -> Arc<Self> {
        Arc::new(Mirrors {
            shared,
            seen: Mutex::new(HashMap::new()),
        })
    }

    fn seen(&self, mirror: &Pod) {
        let hash = podutil::annotation(mirror, podutil::CONFIG_MIRROR)
            .unwrap_or_default()
            .to_owned();
        self.shared.status.set_mirror(&hash, podutil::uid(mirror));
        let seen = Mirror {
            uid: podutil::uid(mirror).to_owned(),
            hash,
            deleting: mirror.metadata.deletion_timestamp.is_some(),
        };
        let key = (
            podutil::namespace(mirror).to_owned(),
            podutil::name(mirror).to_owned(),
        );
        self.seen.lock().insert(key, seen);
    }

    fn removed(&self, uid: &str) {
        self.seen.lock().retain(|_, m| m.uid != uid);
    }

    /// Brings the mirrors in line with the static pods `wanted`.
    async fn reconcile(&self, wanted: &[Arc<Pod>]) {
        let Some(client) = self.shared.client.clone() else {
            return;
        };
        let key = |p: &Pod| {
            (
                podutil::namespace(p).to_owned(),
                podutil::name(p).to_owned(),
            )
        };
        let seen = self.seen.lock().clone();
        for ((namespace, name), m) in &seen {
            let fits = !m.deleting
                && wanted.iter().any(|p| {
                    key(p) == (namespace.clone(), name.clone()) && podutil::uid(p) == m.hash
                });
            if fits {
                continue;
            }
            let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
            let params = DeleteParams {
                grace_period_seconds: Some(0),
                preconditions: Some(Preconditions {
                    uid: Some(m.uid.clone()),
                    resource_version: None,
                }),
                ..DeleteParams::default()
            };
            match api.delete(name, &params).await {
                Ok(_) => {}
                Err(kube::Error::Api(e)) if e.code == 404 || e.code == 409 => {}
                Err(error) => warn!(%namespace, %name, %error, "could not delete a mirror pod"),
            }
        }
        for p in wanted.iter().filter(|p| !seen.contains_key(&key(p))) {
            let mut mirror = (**p).clone();
            mirror.metadata.uid = None;
            mirror.metadata.resource_version = None;
            let hash = podutil::uid(p).to_owned();
            mirror
                .metadata
                .annotations
                .get_or_insert_default()
                .insert(podutil::CONFIG_MIRROR.to_owned(), hash);
            mirror.status = None;
            let api: Api<Pod> = Api::namespaced(client.clone(), podutil::namespace(p));
            match api.create(&PostParams::default(), &mirror).await {
                Ok(made) => self.seen(&made),
                Err(kube::Error::Api(e)) if e.code == 409 => {}
                Err(error) => {
                    warn!(pod = %podutil::name(p), %error, "could not create a mirror pod")
                }
            }
        }
    }
}

/// Reads the directory of static pods now and again.
pub async fn files(
    shared: Arc<Shared>,
    manager: Arc<Manager>,
    mirrors: Arc<Mirrors>,
    shutdown: CancellationToken,
) {
    let Some(dir) = shared.config.file.static_pod_path.clone() else {
        return;
    };
    // Inotify would be quicker by seconds; reading a handful of files is simple and cannot miss anything.
    let period = shared
        .config
        .file
        .file_check_frequency
        .0
        .min(Duration::from_secs(2))
        .max(Duration::from_millis(200));
    let mut known: HashMap<String, Arc<Pod>> = HashMap::new();
    loop {
        match read_dir(&dir, &shared.config.node_name, &shared.clock) {
            Ok(pods) => {
                let now: HashMap<String, Arc<Pod>> = pods
                    .into_iter()
                    .map(|p| (podutil::uid(&p).to_owned(), Arc::new(p)))
                    .collect();
                for uid in known.keys().filter(|u| !now.contains_key(*u)) {
                    manager.remove(uid);
                }
                for (uid, pod) in &now {
                    // Unchanged text is the same pod: the first reading stays.
                    if !known.contains_key(uid) {
                        info!(pod = %podutil::describe(pod), "a static pod");
                        manager.apply((**pod).clone());
                    }
                }
                known = now;
                manager.static_is_ready();
                mirrors
                    .reconcile(&known.values().cloned().collect::<Vec<_>>())
                    .await;
            }
            Err(error) => warn!(dir = %dir.display(), %error, "could not read the static pods"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(period) => {}
        }
    }
}

/// Reads all manifests. A file that cannot be read as a pod is told and left out; the others are not held up by it.
fn read_dir(dir: &Path, node: &str, clock: &Clock) -> std::io::Result<Vec<Pod>> {
    let mut out = Vec::new();
    let entries = match std::fs::read_dir(dir) {
        Ok(e) => e,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(out),
        Err(e) => return Err(e),
    };
    for entry in entries {
        let path = entry?.path();
        let hidden = path
            .file_name()
            .is_none_or(|n| n.to_string_lossy().starts_with('.'));
        if hidden || !path.is_file() {
            continue;
        }
        let pod = std::fs::read(&path)
            .map_err(|e| e.to_string())
            .and_then(|text| static_pod(&text, &path.to_string_lossy(), node, clock.now()));
        match pod {
            Ok(p) => out.push(p),
            Err(error) => warn!(path = %path.display(), %error, "a static pod cannot be read"),
        }
    }
    Ok(out)
}

/// Makes a static pod from its manifest: its uid is the fingerprint of the manifest, its name carries the node's
/// (upstream `config.applyDefaults`).
fn static_pod(text: &[u8], path: &str, node: &str, now: Timestamp) -> Result<Pod, String> {
    let mut pod: Pod = serde_yaml_ng::from_slice(text).map_err(|e| e.to_string())?;
    let name = pod
        .metadata
        .name
        .clone()
        .filter(|n| !n.is_empty())
        .ok_or("the pod has no name")?;
    let spec = pod.spec.as_mut().ok_or("the pod has no spec")?;
    if spec.containers.is_empty() {
        return Err("the pod has no containers".to_owned());
    }
    let mut h = Sha256::new();
    h.update(b"host:");
    h.update(node.as_bytes());
    h.update(b"file:");
    h.update(path.as_bytes());
    h.update(text);
    let uid: String = h.finalize()[..16]
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    spec.node_name = Some(node.to_owned());
    spec.restart_policy
        .get_or_insert_with(|| "Always".to_owned());
    spec.dns_policy
        .get_or_insert_with(|| "ClusterFirst".to_owned());
    spec.termination_grace_period_seconds.get_or_insert(30);
    spec.enable_service_links.get_or_insert(true);
    spec.tolerations.get_or_insert_default().push(Toleration {
        operator: Some("Exists".to_owned()),
        effect: Some("NoExecute".to_owned()),
        ..Toleration::default()
    });
    let fill = |c: &mut Container| {
        c.termination_message_path
            .get_or_insert_with(|| "/dev/termination-log".to_owned());
        c.termination_message_policy
            .get_or_insert_with(|| "File".to_owned());
        // A limit without a request is a request as well.
        if let Some(r) = &mut c.resources
            && let Some(limits) = r.limits.clone()
        {
            let requests = r.requests.get_or_insert_default();
            for (k, v) in limits {
                requests.entry(k).or_insert(v);
            }
        }
    };
    spec.containers.iter_mut().for_each(fill);
    spec.init_containers.iter_mut().flatten().for_each(fill);
    pod.metadata.name = Some(format!("{name}-{node}").to_lowercase());
    pod.metadata
        .namespace
        .get_or_insert_with(|| "default".to_owned());
    pod.metadata.uid = Some(uid.clone());
    pod.metadata.creation_timestamp = None;
    let a = pod.metadata.annotations.get_or_insert_default();
    a.insert(podutil::CONFIG_HASH.to_owned(), uid);
    a.insert(podutil::CONFIG_SOURCE.to_owned(), "file".to_owned());
    a.insert(podutil::CONFIG_SEEN.to_owned(), now.to_string());
    Ok(pod)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests() {
        let at = Timestamp::from_second(0).unwrap();
        let good = b"apiVersion: v1\nkind: Pod\nmetadata: {name: Web}\nspec: {containers: [{name: c, image: i}]}\n";
        let a = static_pod(good, "/m/a.yaml", "n1", at).unwrap();
        assert_eq!(
            (
                podutil::name(&a),
                podutil::namespace(&a),
                podutil::is_static(&a)
            ),
            ("web-n1", "default", true)
        );
        assert_eq!(
            a.metadata.uid,
            static_pod(good, "/m/a.yaml", "n1", at)
                .unwrap()
                .metadata
                .uid
        );
        assert_ne!(
            a.metadata.uid,
            static_pod(good, "/m/b.yaml", "n1", at)
                .unwrap()
                .metadata
                .uid
        );
        for bad in [
            &b"{"[..],
            b"metadata: {name: x}",
            b"metadata: {}\nspec: {containers: [{name: c}]}",
            b"metadata: {name: x}\nspec: {containers: []}",
        ] {
            assert!(static_pod(bad, "/m/a.yaml", "n1", at).is_err());
        }
    }
}
