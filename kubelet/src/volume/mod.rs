//! A pod's volumes: made before its containers start, kept current while it runs, taken away when it has ended.
//! The layout below the pod's directory is upstream's, so that either kubelet finds the other's.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Pod, Volume};
use keelson_machinery::clock::Clock;

use crate::fields::NodeFacts;
use crate::objects::Objects;
use crate::podutil;
use crate::resources;

pub mod atomic;
pub mod claim;
pub mod container_mounts;
pub mod host_path;
pub mod mounts;
pub mod ownership;
pub mod payload;
pub mod token;

use atomic::Payload;
use claim::{Backing, Claims, claim_name};
use payload::Sources;
use token::Tokens;

/// A volume that is ready for containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// Where it is on the node.
    pub path: PathBuf,
    /// Whether containers may not write whatever they ask for.
    pub read_only: bool,
}

/// The volumes of a pod by name.
pub type Mounts = HashMap<String, Mounted>;

/// A volume that cannot be made ready.
#[derive(Clone, Debug, thiserror::Error)]
#[error("MountVolume.SetUp failed for volume {volume:?} : {message}")]
pub struct MountError {
    /// Its name in the pod.
    pub volume: String,
    /// Why.
    pub message: String,
}

/// The volumes of the node's pods.
pub struct Volumes {
    pods_dir: PathBuf,
    objects: Arc<Objects>,
    tokens: Tokens,
    claims: Claims,
    clock: Clock,
}

impl Volumes {
    /// Volumes below `pods_dir`.
    pub fn new(
        pods_dir: PathBuf,
        objects: Arc<Objects>,
        client: Option<kube::Client>,
        clock: Clock,
    ) -> Self {
        Volumes {
            pods_dir,
            objects,
            tokens: Tokens::new(client.clone(), clock.clone()),
            claims: Claims::new(client),
            clock,
        }
    }

    fn dir(&self, uid: &str, plugin: &str, name: &str) -> PathBuf {
        self.pods_dir
            .join(uid)
            .join("volumes")
            .join(plugin)
            .join(name)
    }

    /// Makes all volumes of the pod ready, or brings them up to date. All are tried; what failed is told beside what
    /// did not.
    pub async fn set_up(
        &self,
        pod: &Pod,
        node: &NodeFacts,
        pod_ips: &[String],
    ) -> (Mounts, Vec<MountError>) {
        let mut mounts = Mounts::new();
        let mut errors = Vec::new();
        let volumes = podutil::spec(pod).volumes.iter().flatten();
        // The runtime mounts images itself, when a container is made.
        for v in volumes.filter(|v| v.image.is_none()) {
            match self.set_up_one(pod, v, node, pod_ips).await {
                Ok(m) => {
                    mounts.insert(v.name.clone(), m);
                }
                Err(message) => errors.push(MountError {
                    volume: v.name.clone(),
                    message,
                }),
            }
        }
        (mounts, errors)
    }

    async fn set_up_one(
        &self,
        pod: &Pod,
        v: &Volume,
        node: &NodeFacts,
        pod_ips: &[String],
    ) -> Result<Mounted, String> {
        let uid = podutil::uid(pod);
        let sources = Sources {
            objects: &self.objects,
            tokens: &self.tokens,
            node,
            pod,
            pod_ips,
        };
        let optional = |o: Option<bool>| o == Some(true);
        let mut files = Payload::new();
        let (plugin, memory) = if let Some(s) = &v.config_map {
            sources
                .config_map(
                    &mut files,
                    &s.name,
                    &s.items,
                    s.default_mode,
                    optional(s.optional),
                )
                .await?;
            ("kubernetes.io~configmap", false)
        } else if let Some(s) = &v.secret {
            let name = s.secret_name.as_deref().unwrap_or_default();
            sources
                .secret(
                    &mut files,
                    name,
                    &s.items,
                    s.default_mode,
                    optional(s.optional),
                )
                .await?;
            ("kubernetes.io~secret", true)
        } else if let Some(s) = &v.downward_api {
            sources.downward(&mut files, &s.items, s.default_mode)?;
            ("kubernetes.io~downward-api", true)
        } else if let Some(s) = &v.projected {
            files = sources.projected(s).await?;
            ("kubernetes.io~projected", true)
        } else if let Some(s) = &v.empty_dir {
            let dir = self.dir(uid, "kubernetes.io~empty-dir", &v.name);
            let (s, group, policy) = (s.clone(), fs_group(pod), change_policy(pod));
            return blocking(move || {
                empty_dir(&dir, &s, group, policy).map(|()| Mounted {
                    path: dir,
                    read_only: false,
                })
            })
            .await;
        } else if let Some(s) = &v.host_path {
            let path = PathBuf::from(&s.path);
            let kind = s.type_.clone().unwrap_or_default();
            return blocking(move || {
                host_path::check(&path, &kind)
                    .map(|()| Mounted {
                        path,
                        read_only: false,
                    })
                    .map_err(io::Error::other)
            })
            .await;
        } else if let Some(name) = claim_name(pod, v) {
            let backing = self.claims.resolve(pod, v, &name).await?;
            let (group, on_mismatch) = (fs_group(pod), change_policy(pod));
            return blocking(move || own_backing(backing, group, on_mismatch)).await;
        } else {
            return Err(format!(
                "the volume type {:?} is not supported by this kubelet",
                volume_type(v)
            ));
        };
        let dir = self.dir(uid, plugin, &v.name);
        let stamp = self
            .clock
            .now()
            .strftime("%Y_%m_%d_%H_%M_%S.%9f")
            .to_string();
        let group = fs_group(pod);
        blocking(move || {
            wrapped_dir(&dir, memory)?;
            atomic::write(&dir, &files, &stamp, group)?;
            Ok(Mounted {
                path: dir,
                read_only: true,
            })
        })
        .await
    }

    /// Unmounts and deletes the volumes of a pod that has ended, with all else in its directory but the directory
    /// of its plugins.
    pub async fn tear_down(&self, uid: &str) -> Result<(), String> {
        self.tokens.forget(uid);
        self.claims.forget(uid);
        let pod_dir = self.pods_dir.join(uid);
        blocking(move || {
            let dirs = ["volumes", "volume-subpaths"].map(|below| pod_dir.join(below));
            mounts::unmount_all(&pod_dir)?;
            remove_unmounted(&pod_dir, &dirs)
        })
        .await
    }

    /// Deletes the directory of a pod that is gone; refuses while anything is mounted in it, so that nothing of
    /// somebody else's is ever deleted.
    pub async fn remove_pod_dir(&self, uid: &str) -> Result<(), String> {
        if uid.is_empty() || uid.contains('/') || uid.starts_with('.') {
            return Err(format!("{uid:?} is not the uid of a pod"));
        }
        let pod_dir = self.pods_dir.join(uid);
        blocking(move || {
            mounts::unmount_all(&pod_dir)?;
            remove_unmounted(&pod_dir, std::slice::from_ref(&pod_dir))
        })
        .await
    }

    /// The uids of all pods that have a directory.
    pub fn known_pods(&self) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(&self.pods_dir) {
            Ok(e) => e,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        let mut out = Vec::new();
        for e in entries {
            if let Ok(name) = e?.file_name().into_string() {
                out.push(name);
            }
        }
        Ok(out)
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, String> {
    match tokio::task::spawn_blocking(work).await {
        Ok(r) => r.map_err(|e| e.to_string()),
        Err(e) => Err(e.to_string()),
    }
}

/// Deletes `dirs`, which are parts of `pod_dir`; nothing at all while anything is mounted there: behind a mount is what belongs to
/// somebody else, such as the node's directory that a sub-path binds.
fn remove_unmounted(pod_dir: &Path, dirs: &[PathBuf]) -> io::Result<()> {
    if let Some(mounted) = mounts::below(pod_dir)?.first() {
        return Err(io::Error::other(format!(
            "something is still mounted below the pod's directory: {}",
            mounted.display()
        )));
    }
    for dir in dirs {
        match fs::remove_dir_all(dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            r => r?,
        }
    }
    Ok(())
}

fn fs_group(pod: &Pod) -> Option<u32> {
    podutil::spec(pod)
        .security_context
        .as_ref()
        .and_then(|s| s.fs_group)
        .and_then(|g| u32::try_from(g).ok())
}

/// Whether ownership is only changed where the top of the volume does not match.
fn change_policy(pod: &Pod) -> bool {
    podutil::spec(pod)
        .security_context
        .as_ref()
        .and_then(|s| s.fs_group_change_policy.as_deref())
        == Some("OnRootMismatch")
}

/// The directory of a volume of files, in memory for what shall not reach the disk.
fn wrapped_dir(dir: &Path, memory: bool) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    if memory && !mounts::is_mounted(dir)? {
        mounts::tmpfs(dir, None)?;
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(0o777))
}

fn empty_dir(
    dir: &Path,
    s: &EmptyDirVolumeSource,
    group: Option<u32>,
    on_mismatch: bool,
) -> io::Result<()> {
    let fresh = !dir.exists();
    fs::create_dir_all(dir)?;
    match s.medium.as_deref().unwrap_or_default() {
        "" => {}
        "Memory" => {
            if !mounts::is_mounted(dir)? {
                mounts::tmpfs(dir, s.size_limit.as_ref().map(resources::value))?;
            }
        }
        other => {
            return Err(io::Error::other(format!(
                "unknown storage medium {other:?}"
            )));
        }
    }
    if fresh || fs::metadata(dir)?.permissions().mode() & 0o777 != 0o777 {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o777))?;
    }
    if let Some(group) = group
        && (fresh || !on_mismatch)
        && !ownership::top_matches(dir, group)?
    {
        ownership::give_to_group(dir, group, false)?;
    }
    Ok(())
}

/// What is behind a claim, given to the pod's group where it is the pod's to own.
fn own_backing(backing: Backing, group: Option<u32>, on_mismatch: bool) -> io::Result<Mounted> {
    let read_only = backing.read_only;
    if let Some(group) = group.filter(|_| backing.owned && !read_only)
        && !(on_mismatch && ownership::top_matches(&backing.path, group)?)
    {
        ownership::give_to_group(&backing.path, group, read_only)?;
    }
    Ok(Mounted {
        path: backing.path,
        read_only,
    })
}

/// The name of the volume's source field.
fn volume_type(v: &Volume) -> String {
    let Ok(serde_json::Value::Object(fields)) = serde_json::to_value(v) else {
        return String::new();
    };
    fields
        .keys()
        .find(|k| *k != "name")
        .cloned()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mounted_is_never_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let pod_dir = dir.path().join("uid");
        let bound = pod_dir.join("volume-subpaths/v/c/0");
        fs::create_dir_all(&bound).unwrap();
        let whole = std::slice::from_ref(&pod_dir);
        if mounts::tmpfs(&bound, None).is_err() {
            println!("skipped: mounting needs root");
            return;
        }
        fs::write(bound.join("precious"), "x").unwrap();
        let refused = remove_unmounted(&pod_dir, whole).unwrap_err().to_string();
        let kept = fs::read_to_string(bound.join("precious"));
        mounts::unmount_all(&pod_dir).unwrap();
        assert!(refused.contains("volume-subpaths/v/c/0"), "{refused}");
        assert_eq!(kept.unwrap(), "x");
        remove_unmounted(&pod_dir, whole).unwrap();
        assert!(!pod_dir.exists());
    }
}
