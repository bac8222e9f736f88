//! Where a cluster keeps its files. Everything lies below one data directory, so that several clusters can
//! live on one machine and `down --purge` knows what to delete.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use sha2::{Digest, Sha256};

/// The data directory of one cluster and the paths below it.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The layout below `data_dir`, made absolute and free of links. Creates nothing.
    ///
    /// # Errors
    /// When the path cannot be made absolute, is the file system root, or is so long that a unix socket below it
    /// would not fit into the kernel's 108 bytes.
    pub fn new(data_dir: &Path) -> anyhow::Result<Self> {
        // Without links: the kernel lists mounts by their real paths, and what cannot be found cannot be unmounted.
        let root = keelson_kubelet::volume::mounts::real_path(data_dir)
            .with_context(|| format!("data directory {}", data_dir.display()))?;
        if root.parent().is_none() {
            bail!("the data directory cannot be the file system root");
        }
        let layout = Layout { root };
        let socket = layout.containerd_socket();
        // containerd appends ".ttrpc" to its socket's name; sun_path holds 107 bytes and a NUL.
        if socket.as_os_str().len() + ".ttrpc".len() > 107 {
            bail!(
                "data directory {} is too long: a unix socket's path below it would exceed 107 bytes; choose a shorter one",
                layout.root.display()
            );
        }
        Ok(layout)
    }

    /// The data directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Six hexadecimal digits that tell this cluster's kernel objects (links, tables, cgroups) from those of
    /// another data directory on the same machine.
    pub fn tag(&self) -> String {
        let digest = Sha256::digest(self.root.as_os_str().as_encoded_bytes());
        digest.iter().take(3).map(|b| format!("{b:02x}")).collect()
    }

    /// Certificates and keys.
    pub fn pki(&self) -> PathBuf {
        self.root.join("pki")
    }

    /// The administrator's kubeconfig.
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.root.join("admin.kubeconfig")
    }

    /// What the running cluster was started with; see [`super::state::State`].
    pub fn state(&self) -> PathBuf {
        self.root.join("cluster.json")
    }

    /// What a node that joined another machine's cluster was told; see [`crate::components::agent::AgentState`].
    pub fn agent_state(&self) -> PathBuf {
        self.root.join("agent.json")
    }

    /// A lock held by the running cluster process, so that two never share a data directory.
    pub fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// Pid file of the process that holds control plane and node.
    pub fn pid_file(&self) -> PathBuf {
        self.root.join("keelson.pid")
    }

    /// Pid file of containerd.
    pub fn containerd_pid_file(&self) -> PathBuf {
        self.root.join("containerd/containerd.pid")
    }

    /// Log files of the processes, one each.
    pub fn log(&self, process: &str) -> PathBuf {
        self.root.join("log").join(format!("{process}.log"))
    }

    /// Container logs, laid out as in upstream's `/var/log/pods`.
    pub fn pod_logs(&self) -> PathBuf {
        self.root.join("log/pods")
    }

    /// The kubelet's root directory.
    pub fn kubelet(&self) -> PathBuf {
        self.root.join("kubelet")
    }

    /// containerd's persistent root.
    pub fn containerd_root(&self) -> PathBuf {
        self.root.join("containerd/root")
    }

    /// containerd's run-time state.
    pub fn containerd_state(&self) -> PathBuf {
        self.root.join("containerd/state")
    }

    /// containerd's configuration file.
    pub fn containerd_config(&self) -> PathBuf {
        self.root.join("containerd/config.toml")
    }

    /// Registry host configuration (`hosts.toml` files).
    pub fn containerd_certs(&self) -> PathBuf {
        self.root.join("containerd/certs.d")
    }

    /// containerd's socket, which also speaks CRI.
    pub fn containerd_socket(&self) -> PathBuf {
        self.root.join("containerd/containerd.sock")
    }

    /// CNI configuration files.
    pub fn cni_conf(&self) -> PathBuf {
        self.root.join("cni/net.d")
    }

    /// CNI plugins' own state (address leases).
    pub fn cni_state(&self) -> PathBuf {
        self.root.join("cni/state")
    }

    /// All directories that a starting cluster creates.
    pub fn directories(&self) -> Vec<PathBuf> {
        vec![
            self.pki(),
            self.root.join("log"),
            self.pod_logs(),
            self.kubelet(),
            self.containerd_root(),
            self.containerd_state(),
            self.containerd_certs(),
            self.cni_conf(),
            self.cni_state(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_directory_is_checked_before_use() {
        for (path, complaint) in [
            ("/", Some("file system root")),
            (&*format!("/{}", "x".repeat(100)), Some("too long")),
            ("/var/lib/keelson", None),
        ] {
            match (Layout::new(Path::new(path)), complaint) {
                (Ok(_), None) => {}
                (Err(error), Some(part)) => {
                    assert!(error.to_string().contains(part), "{path}: {error}")
                }
                (got, want) => panic!("{path}: got {got:?}, want {want:?}"),
            }
        }
    }

    #[test]
    fn a_data_directory_behind_a_link_is_known_by_its_real_path() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap().join("disk");
        std::fs::create_dir(&real).unwrap();
        let link = dir.path().join("keelson");
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let layout = Layout::new(&link).unwrap();
        assert_eq!(layout.root(), real);
        // The same before anything is there as after.
        let new = link.join("clusters/a");
        assert_eq!(Layout::new(&new).unwrap().root(), real.join("clusters/a"));
    }

    #[test]
    fn clusters_in_different_directories_have_different_tags() {
        let tag = |p: &str| Layout::new(Path::new(p)).unwrap().tag();
        assert_eq!(tag("/tmp/a").len(), 6);
        assert_ne!(tag("/tmp/a"), tag("/tmp/b"));
    }
}
