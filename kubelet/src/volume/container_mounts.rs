//! The mounts of one container: its volumes with sub-paths, its hosts file and its termination file
//! (upstream `makeMounts`).

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path};

use k8s_openapi::api::core::v1::{Container, Pod};

use super::{Mounts, mounts};
use crate::container::expand;
use crate::cri;
use crate::network::hosts;
use crate::podutil;

/// What mounts depend on besides the pod.
pub struct Inputs<'a> {
    /// The pod's directory.
    pub pod_dir: &'a Path,
    /// The pod's volumes.
    pub volumes: &'a Mounts,
    /// The pod's volumes that are images, by name, as far as this container mounts them.
    pub images: &'a HashMap<String, cri::ImageSpec>,
    /// The container's environment, for `subPathExpr`.
    pub env: &'a [(String, String)],
    /// The pod's addresses.
    pub pod_ips: &'a [String],
    /// The cluster's domain.
    pub cluster_domain: &'a str,
    /// A name for this run of the container's termination file.
    pub run_id: &'a str,
}

/// Whether a path stays below its start.
fn check_no_backsteps(path: &str) -> Result<(), String> {
    if Path::new(path)
        .components()
        .any(|c| matches!(c, Component::ParentDir))
    {
        return Err("must not contain '..'".to_owned());
    }
    Ok(())
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/{path}")
    }
}

/// Makes the mounts of `c`; bind mounts and files of the pod's directory are made on the way.
pub fn make(i: &Inputs<'_>, pod: &Pod, c: &Container) -> Result<Vec<cri::Mount>, String> {
    let mut out = Vec::new();
    let mut own_hosts = false;
    for (index, m) in c.volume_mounts.iter().flatten().enumerate() {
        own_hosts |= m.mount_path == "/etc/hosts";
        let sub_path = match m.sub_path_expr.as_deref().filter(|s| !s.is_empty()) {
            Some(e) => expand::expand_strict(e, |n| {
                i.env.iter().find(|(k, _)| k == n).map(|(_, v)| v.as_str())
            })?,
            None => m.sub_path.clone().unwrap_or_default(),
        };
        if let Some(image) = i.images.get(&m.name) {
            out.push(cri::Mount {
                container_path: absolute(&m.mount_path),
                readonly: true,
                image: Some(image.clone()),
                image_sub_path: sub_path,
                ..Default::default()
            });
            continue;
        }
        let volume = i.volumes.get(&m.name).ok_or_else(|| {
            format!(
                "cannot find volume {:?} to mount into container {:?}",
                m.name, c.name
            )
        })?;
        let mut host_path = volume.path.clone();
        if !sub_path.is_empty() {
            if sub_path.starts_with('/') {
                return Err(format!(
                    "error SubPath `{sub_path}` must not be an absolute path"
                ));
            }
            check_no_backsteps(&sub_path)
                .map_err(|e| format!("unable to provision SubPath `{sub_path}`: {e}"))?;
            let below = Path::new(&sub_path);
            // Details stay in the log: they could tell about the node's files.
            let failed = |what: &str, e: io::Error| {
                tracing::error!(error = %e, volume = %m.name, container = %c.name, what);
                format!(
                    "failed to {what} for volumeMount {:?} of container {:?}",
                    m.name, c.name
                )
            };
            if !mounts::exists_below(&volume.path, below)
                .map_err(|e| failed("prepare subPath", e))?
            {
                let mode = fs::metadata(&volume.path)
                    .map_err(|e| failed("create subPath directory", e))?
                    .permissions()
                    .mode();
                mounts::make_dirs_below(&volume.path, below, mode & 0o7777)
                    .map_err(|e| failed("create subPath directory", e))?;
            }
            let target = i
                .pod_dir
                .join("volume-subpaths")
                .join(&m.name)
                .join(&c.name)
                .join(index.to_string());
            mounts::bind_below(&volume.path, below, &target)
                .map_err(|e| failed("prepare subPath", e))?;
            host_path = target;
        } else if !host_path.exists() {
            // An untyped hostPath: the runtime would make it too, this makes it the same with every runtime.
            fs::create_dir_all(&host_path).map_err(|e| e.to_string())?;
        }
        let propagation = match m.mount_propagation.as_deref() {
            None | Some("None") => cri::MountPropagation::Private,
            Some("HostToContainer") => cri::MountPropagation::HostToContainer,
            Some("Bidirectional") => cri::MountPropagation::Bidirectional,
            Some(other) => return Err(format!("invalid MountPropagation mode: {other:?}")),
        };
        let read_only = m.read_only == Some(true);
        match m.recursive_read_only.as_deref() {
            None | Some("Disabled" | "IfPossible") => {}
            Some(_) => {
                return Err(format!(
                    "failed to resolve recursive read-only mode: volume {:?} requested recursive read-only mode, but it is not supported by the runtime",
                    m.name
                ));
            }
        }
        out.push(cri::Mount {
            container_path: absolute(&m.mount_path),
            host_path: host_path.to_string_lossy().into_owned(),
            readonly: read_only || volume.read_only,
            propagation: propagation as i32,
            ..Default::default()
        });
    }
    let host_network = podutil::is_host_network(pod);
    if !own_hosts && (host_network || !i.pod_ips.is_empty()) {
        let path = i.pod_dir.join("etc-hosts");
        let aliases = podutil::spec(pod)
            .host_aliases
            .as_deref()
            .unwrap_or_default();
        let text = if host_network {
            hosts::host_network_file(
                &fs::read_to_string("/etc/hosts").map_err(|e| e.to_string())?,
                aliases,
            )
        } else {
            let (name, domain) = hosts::name_and_domain(pod, i.cluster_domain)?;
            hosts::pod_file(i.pod_ips, &name, &domain, aliases)
        };
        write_file(&path, text.as_bytes(), 0o644).map_err(|e| e.to_string())?;
        out.push(cri::Mount {
            container_path: "/etc/hosts".to_owned(),
            host_path: path.to_string_lossy().into_owned(),
            ..Default::default()
        });
    }
    if let Some(message_path) = c
        .termination_message_path
        .as_deref()
        .filter(|p| !p.is_empty())
    {
        let dir = i.pod_dir.join("containers").join(&c.name);
        let path = dir.join(i.run_id);
        fs::create_dir_all(&dir)
            .and_then(|()| write_file(&path, b"", 0o666))
            .map_err(|e| e.to_string())?;
        out.push(cri::Mount {
            container_path: message_path.to_owned(),
            host_path: path.to_string_lossy().into_owned(),
            ..Default::default()
        });
    }
    Ok(out)
}

/// Writes a file with exactly that mode, in place: it may be mounted already.
fn write_file(path: &Path, data: &[u8], mode: u32) -> io::Result<()> {
    fs::write(path, data)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}
