//! The serving certificate, which may be exchanged on disk while the kubelet runs (upstream:
//! `ReloadKubeletServerCertificateFile`). The files are looked at when a peer connects; open connections keep theirs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, Result};
use parking_lot::Mutex;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tracing::{info, warn};

/// What tells one version of a file from the next: when it was written, and how long it is.
type Version = (SystemTime, u64);

/// A certificate and its key, as two files hold them.
#[derive(Debug)]
pub struct ServingCertificate {
    certificate: PathBuf,
    key: PathBuf,
    provider: Arc<CryptoProvider>,
    loaded: Mutex<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    versions: [Version; 2],
    pair: Arc<CertifiedKey>,
}

impl ServingCertificate {
    /// Reads the files.
    ///
    /// # Errors
    /// When they cannot be read, or do not belong together.
    pub fn open(certificate: &Path, key: &Path, provider: Arc<CryptoProvider>) -> Result<Self> {
        let loaded = load(certificate, key, &provider)?;
        Ok(ServingCertificate {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            provider,
            loaded: Mutex::new(loaded),
        })
    }

    /// The pair on disk, read again if the files have changed. While they do not belong together (one is written after the
    /// other) or cannot be read, the pair from before stays.
    pub fn current(&self) -> Arc<CertifiedKey> {
        let mut loaded = self.loaded.lock();
        match versions(&self.certificate, &self.key) {
            Ok(found) if found == loaded.versions => {}
            Ok(_) => match load(&self.certificate, &self.key, &self.provider) {
                Ok(new) => {
                    info!(file = %self.certificate.display(), "serving with a new certificate");
                    *loaded = new;
                }
                Err(error) => {
                    warn!(error = format!("{error:#}"), "the new serving certificate");
                }
            },
            Err(error) => warn!(error = format!("{error:#}"), "the serving certificate"),
        }
        loaded.pair.clone()
    }
}

impl ResolvesServerCert for ServingCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

fn versions(certificate: &Path, key: &Path) -> Result<[Version; 2]> {
    let version = |path: &Path| -> Result<Version> {
        let named = || format!("reading {}", path.display());
        let meta = std::fs::metadata(path).with_context(named)?;
        Ok((meta.modified().with_context(named)?, meta.len()))
    };
    Ok([version(certificate)?, version(key)?])
}

fn load(certificate: &Path, key: &Path, provider: &CryptoProvider) -> Result<Loaded> {
    // Before the content: what is written in between is then found at the next look.
    let versions = versions(certificate, key)?;
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(|i| i.collect::<Result<Vec<_>, _>>())
        .with_context(|| format!("reading {}", certificate.display()))?;
    let private =
        PrivateKeyDer::from_pem_file(key).with_context(|| format!("reading {}", key.display()))?;
    // Checks that the two belong together, too.
    let pair = CertifiedKey::from_der(chain, private, provider)
        .with_context(|| format!("{} and {}", certificate.display(), key.display()))?;
    Ok(Loaded {
        versions,
        pair: Arc::new(pair),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_that_changes_on_disk_is_served_once_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (certificate, key) = (dir.path().join("c"), dir.path().join("k"));
        let make = |name: &str| {
            let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
            (made.cert.pem(), made.signing_key.serialize_pem())
        };
        let provider = || Arc::new(rustls::crypto::ring::default_provider());
        let open = || ServingCertificate::open(&certificate, &key, provider());
        assert!(open().is_err(), "no files");

        let (first, second) = (make("first"), make("second.longer"));
        std::fs::write(&certificate, &first.0).unwrap();
        std::fs::write(&key, &second.1).unwrap();
        assert!(open().is_err(), "the key of another certificate");
        std::fs::write(&key, &first.1).unwrap();
        let serving = open().unwrap();
        let before = serving.current();
        assert!(Arc::ptr_eq(&before, &serving.current()));

        // Lengths differ, so that the test does not hang on how finely the file system counts time.
        let comment = |pem: &str| format!("# new\n{pem}");
        std::fs::write(&key, comment(&second.1)).unwrap();
        assert_eq!(serving.current().cert, before.cert, "half of a pair");
        std::fs::write(&certificate, comment(&second.0)).unwrap();
        let after = serving.current();
        assert_ne!(after.cert, before.cert);
        std::fs::remove_file(&key).unwrap();
        assert_eq!(serving.current().cert, after.cert, "no file");
    }
}
