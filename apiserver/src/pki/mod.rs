//! The cluster's keys and certificates: made at first start below one folder, used again on later starts,
//! and issued anew when they near their end or no longer say what is asked of them.
//!
//! The folder has kubeadm's file names (`ca.crt`, `ca.key`, `front-proxy-ca.*`, `sa.key`, `sa.pub`, `apiserver.*`,
//! ...), so that upstream's components and tools find their way in it. All keys are ECDSA P-256: making one takes
//! microseconds, where an RSA key takes a good part of a second. Keys from outside may be RSA (see [`keys`]).
//!
//! A crash at any point leaves a folder that the next start completes: every file appears whole or not at all, the
//! keys of the authorities are durable before anything is signed with them, and a leaf that does not match its key
//! or its authority is simply issued again. A damaged authority is an error, never silently replaced.

mod files;
mod issue;
pub mod keys;
mod kubeconfig;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use keelson_machinery::clock::Clock;

pub use issue::Usage;
pub use kubeconfig::{Credential, kubeconfig};

use files::Pending;
use issue::{Authority, Leaf};

/// How long authorities live, in days (kubeadm: `CACertificateValidityPeriod`, 10 years).
const AUTHORITY_DAYS: u64 = 3650;
/// How long leaf certificates live, in days (kubeadm: `CertificateValidityPeriod`, 1 year).
const LEAF_DAYS: u64 = 365;
/// A leaf that ends within this many days is issued anew at start: a quarter of its life.
const RENEW_DAYS: u64 = 90;

/// What can go wrong with the folder of keys.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file is there and does not hold what it should.
    #[error("{path}: {problem}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A key or certificate could not be made.
    #[error("cannot make the certificate for {what}: {source}")]
    Issue {
        /// Whose certificate.
        what: String,
        /// What the certificate library said.
        source: rcgen::Error,
    },
}

/// A certificate with its key, on disk and in memory.
#[derive(Clone)]
pub struct KeyPair {
    /// Where the certificate is.
    pub certificate_path: PathBuf,
    /// Where the key is.
    pub key_path: PathBuf,
    /// The certificate, PEM.
    pub certificate_pem: String,
    /// The key, PKCS#8 PEM.
    pub key_pem: String,
}

impl std::fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The key itself must never reach a log.
        f.debug_struct("KeyPair")
            .field("certificate_path", &self.certificate_path)
            .finish_non_exhaustive()
    }
}

/// The folder of keys, opened.
pub struct Pki {
    dir: PathBuf,
    clock: Clock,
    ca: Authority,
    /// Serving certificate of the API server.
    pub apiserver: KeyPair,
    /// The API server's own certificate towards kubelets.
    pub kubelet_client: KeyPair,
    /// The API server's own certificate towards aggregated API servers.
    pub front_proxy_client: KeyPair,
    /// The administrator's certificate (`system:masters`).
    pub admin: KeyPair,
    ca_pem: String,
    front_proxy_ca_pem: String,
    service_account_key_pem: String,
    service_account_public_pem: String,
}

impl Pki {
    /// Opens the folder `dir`, making what is missing. `server_names` are the host names and addresses that the API
    /// server's certificate must cover; a change of them issues that certificate anew.
    ///
    /// Blocks on the disk (a handful of small durable writes at first start).
    pub fn open(dir: &Path, server_names: &[String], clock: &Clock) -> Result<Self, PkiError> {
        files::create_private_dir(dir)?;
        // The authorities' keys and the service-account key first: whatever is signed below must never outlive them.
        let mut first = Pending::default();
        let ca_key = issue::load_or_make_key(dir, "ca", &mut first)?;
        let front_key = issue::load_or_make_key(dir, "front-proxy-ca", &mut first)?;
        let sa_key = files::read(&dir.join("sa.key"))?;
        let sa_key = match sa_key {
            Some(pem) => pem,
            None => {
                let key = issue::make_key("service accounts")?;
                first.add(dir.join("sa.key"), key.serialize_pem(), true);
                key.serialize_pem()
            }
        };
        first.write()?;

        let mut rest = Pending::default();
        let sa_public =
            keys::public_pem_of_private(&sa_key).map_err(|problem| PkiError::Damaged {
                path: dir.join("sa.key"),
                problem: problem.to_string(),
            })?;
        if files::read(&dir.join("sa.pub"))?.as_deref() != Some(&sa_public) {
            rest.add(dir.join("sa.pub"), sa_public.clone(), false);
        }
        let ca = Authority::load_or_make(dir, "ca", "kubernetes", ca_key, clock, &mut rest)?;
        let front = Authority::load_or_make(
            dir,
            "front-proxy-ca",
            "front-proxy-ca",
            front_key,
            clock,
            &mut rest,
        )?;

        let mut leaf = |authority: &Authority, leaf: Leaf<'_>| {
            issue::load_or_issue(dir, authority, &leaf, clock, &mut rest)
        };
        let masters = Some("system:masters");
        let apiserver = leaf(
            &ca,
            Leaf {
                file: "apiserver",
                common_name: "kube-apiserver",
                organization: None,
                names: server_names,
                usage: Usage::Server,
            },
        )?;
        let kubelet_client = leaf(
            &ca,
            Leaf {
                file: "apiserver-kubelet-client",
                common_name: "kube-apiserver-kubelet-client",
                organization: masters,
                names: &[],
                usage: Usage::Client,
            },
        )?;
        let front_proxy_client = leaf(
            &front,
            Leaf {
                file: "front-proxy-client",
                common_name: "front-proxy-client",
                organization: None,
                names: &[],
                usage: Usage::Client,
            },
        )?;
        let admin = leaf(
            &ca,
            Leaf {
                file: "admin",
                common_name: "kubernetes-admin",
                organization: masters,
                names: &[],
                usage: Usage::Client,
            },
        )?;
        rest.write()?;

        Ok(Pki {
            dir: dir.to_owned(),
            clock: clock.clone(),
            ca_pem: ca.pem.clone(),
            front_proxy_ca_pem: front.pem.clone(),
            ca,
            apiserver,
            kubelet_client,
            front_proxy_client,
            admin,
            service_account_key_pem: sa_key,
            service_account_public_pem: sa_public,
        })
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The cluster authority's certificate, PEM: what clients trust, and what client certificates are checked with.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The front-proxy authority's certificate, PEM: who may speak for others in `X-Remote-*` headers.
    pub fn front_proxy_ca_pem(&self) -> &str {
        &self.front_proxy_ca_pem
    }

    /// The key that signs service-account tokens, PEM.
    pub fn service_account_key_pem(&self) -> &str {
        &self.service_account_key_pem
    }

    /// The public half of [`Self::service_account_key_pem`].
    pub fn service_account_public_pem(&self) -> &str {
        &self.service_account_public_pem
    }

    /// A client certificate of the cluster authority, kept as `<file>.crt` and `<file>.key`: the user `common_name`
    /// in the group `organization`.
    pub fn client(
        &self,
        file: &str,
        common_name: &str,
        organization: Option<&str>,
    ) -> Result<KeyPair, PkiError> {
        self.issue(Leaf {
            file,
            common_name,
            organization,
            names: &[],
            usage: Usage::Client,
        })
    }

    /// A serving certificate of the cluster authority for `names` (host names and addresses).
    pub fn serving(
        &self,
        file: &str,
        common_name: &str,
        organization: Option<&str>,
        names: &[String],
    ) -> Result<KeyPair, PkiError> {
        self.issue(Leaf {
            file,
            common_name,
            organization,
            names,
            usage: Usage::Server,
        })
    }

    /// `system:kube-controller-manager`.
    pub fn controller_manager(&self) -> Result<KeyPair, PkiError> {
        self.client("controller-manager", "system:kube-controller-manager", None)
    }

    /// `system:kube-scheduler`.
    pub fn scheduler(&self) -> Result<KeyPair, PkiError> {
        self.client("scheduler", "system:kube-scheduler", None)
    }

    /// `system:kube-proxy`.
    pub fn proxy(&self) -> Result<KeyPair, PkiError> {
        self.client("kube-proxy", "system:kube-proxy", None)
    }

    /// `system:node:<node>` in `system:nodes`: the kubelet's own certificate.
    pub fn node_client(&self, node: &str) -> Result<KeyPair, PkiError> {
        self.client(
            &format!("node-{node}"),
            &format!("system:node:{node}"),
            Some("system:nodes"),
        )
    }

    /// The kubelet's serving certificate.
    pub fn node_serving(&self, node: &str, names: &[String]) -> Result<KeyPair, PkiError> {
        self.serving(
            &format!("node-{node}-serving"),
            &format!("system:node:{node}"),
            Some("system:nodes"),
            names,
        )
    }

    fn issue(&self, leaf: Leaf<'_>) -> Result<KeyPair, PkiError> {
        let mut pending = Pending::default();
        let pair = issue::load_or_issue(&self.dir, &self.ca, &leaf, &self.clock, &mut pending)?;
        pending.write()?;
        Ok(pair)
    }
}
