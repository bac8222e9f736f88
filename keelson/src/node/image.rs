//! The system image: an OCI archive with one layer that holds this very binary. It serves as the sandbox (pause)
//! image and runs cluster DNS, so that a cluster comes up with no registry and no internet.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, bail};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Repository of the image; the tag names the binary's content.
const REPOSITORY: &str = "keelson.local/system";

/// The binary that images are made from.
pub struct SystemImage {
    binary: Vec<u8>,
    reference: String,
}

impl SystemImage {
    /// Reads the running executable.
    ///
    /// # Errors
    /// When it cannot be read, or is dynamically linked: in an image with nothing else in it such a binary cannot start.
    pub fn from_current_exe() -> anyhow::Result<Self> {
        let path = std::env::current_exe().context("finding this program's file")?;
        let binary = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        if is_dynamic(&binary)
            .with_context(|| format!("reading {} as an ELF file", path.display()))?
        {
            bail!(
                "{} is dynamically linked, so it cannot serve as a container image; build it with `make build`",
                path.display()
            );
        }
        let digest = Sha256::digest(&binary);
        let tag: String = digest.iter().take(6).map(|b| format!("{b:02x}")).collect();
        Ok(SystemImage {
            binary,
            reference: format!("{REPOSITORY}:{tag}"),
        })
    }

    /// Image reference; changes with the binary, so that a new version is rolled out by itself.
    pub fn reference(&self) -> &str {
        &self.reference
    }

    /// Writes the OCI archive (image-spec v1.1 layout, as `ctr images import` reads it).
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_archive(&self, to: &Path) -> anyhow::Result<()> {
        let layer = self.layer()?;
        let layer_digest = digest(&layer);
        let config = serde_json::to_vec(&json!({
            "architecture": go_arch()?,
            "os": "linux",
            "config": { "Entrypoint": ["/keelson"], "Cmd": ["pause"], "Env": ["PATH=/"], "WorkingDir": "/" },
            "rootfs": { "type": "layers", "diff_ids": [layer_digest] },
            "history": [{ "created_by": "keelson" }],
        }))?;
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
        }))?;
        let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
        entry["annotations"] = json!({ "io.containerd.image.name": self.reference, "org.opencontainers.image.ref.name": self.reference });
        let index = serde_json::to_vec(
            &json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry] }),
        )?;

        let file = fs::File::create(to).with_context(|| format!("creating {}", to.display()))?;
        let mut archive = tar::Builder::new(std::io::BufWriter::new(file));
        append(
            &mut archive,
            "oci-layout",
            0o644,
            br#"{"imageLayoutVersion":"1.0.0"}"#,
        )?;
        append(&mut archive, "index.json", 0o644, &index)?;
        for blob in [&manifest, &config, &layer] {
            let name = digest(blob).replacen(':', "/", 1);
            append(&mut archive, &format!("blobs/{name}"), 0o644, blob)?;
        }
        archive
            .into_inner()?
            .flush()
            .with_context(|| format!("writing {}", to.display()))
    }

    fn layer(&self) -> anyhow::Result<Vec<u8>> {
        let mut layer = tar::Builder::new(Vec::with_capacity(self.binary.len() + 8192));
        for (dir, mode) in [("etc/", 0o755), ("tmp/", 0o1777)] {
            let mut header = header(mode, 0);
            header.set_entry_type(tar::EntryType::Directory);
            layer.append_data(&mut header, dir, std::io::empty())?;
        }
        append(
            &mut layer,
            "etc/passwd",
            0o644,
            b"root:x:0:0:root:/:/keelson\nnobody:x:65534:65534:nobody:/:/keelson\n",
        )?;
        append(&mut layer, "keelson", 0o755, &self.binary)?;
        layer.into_inner().context("building the image layer")
    }
}

fn header(mode: u32, size: usize) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_size(size as u64);
    // Fixed times and owners: the same binary always gives the same image.
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn append<W: Write>(
    archive: &mut tar::Builder<W>,
    name: &str,
    mode: u32,
    content: &[u8],
) -> anyhow::Result<()> {
    archive
        .append_data(&mut header(mode, content.len()), name, content)
        .with_context(|| format!("adding {name} to the image"))
}

fn digest(content: &[u8]) -> String {
    let hex: String = Sha256::digest(content)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    format!("sha256:{hex}")
}

fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": digest(content), "size": content.len() })
}

fn go_arch() -> anyhow::Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => bail!("no image platform is known for the architecture {other}"),
    }
}

/// Whether a 64-bit little-endian ELF file asks for a dynamic loader (has a PT_INTERP segment).
fn is_dynamic(elf: &[u8]) -> anyhow::Result<bool> {
    const PT_INTERP: u32 = 3;
    let bytes = |at: usize, len: usize| {
        at.checked_add(len)
            .and_then(|end| elf.get(at..end))
            .context("the file is cut short")
    };
    if bytes(0, 6)? != b"\x7fELF\x02\x01" {
        bail!("not a 64-bit little-endian ELF file");
    }
    let table = u64::from_le_bytes(bytes(32, 8)?.try_into()?) as usize;
    let entry = u16::from_le_bytes(bytes(54, 2)?.try_into()?) as usize;
    let count = u16::from_le_bytes(bytes(56, 2)?.try_into()?) as usize;
    for i in 0..count {
        if u32::from_le_bytes(bytes(table + i * entry, 4)?.try_into()?) == PT_INTERP {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_binaries_are_refused_not_indexed() {
        assert!(is_dynamic(b"").is_err());
        assert!(is_dynamic(b"#!/bin/sh\nexit 0").is_err());
        assert!(is_dynamic(b"\x7fELF\x02\x01").is_err());
        // The test program itself: linked by default rules, so dynamic.
        assert!(is_dynamic(&fs::read(std::env::current_exe().unwrap()).unwrap()).unwrap());
    }

    #[test]
    fn the_archive_is_an_oci_layout_whose_digests_hold() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image.tar");
        let image = SystemImage {
            binary: b"binary".to_vec(),
            reference: "keelson.local/system:test".into(),
        };
        image.write_archive(&path).unwrap();
        let mut blobs = std::collections::BTreeMap::new();
        for entry in tar::Archive::new(fs::File::open(&path).unwrap())
            .entries()
            .unwrap()
        {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
            blobs.insert(entry.path().unwrap().display().to_string(), content);
        }
        let index: Value = serde_json::from_slice(&blobs["index.json"]).unwrap();
        let blob = |d: &Value| {
            let content = &blobs[&format!(
                "blobs/{}",
                d["digest"].as_str().unwrap().replacen(':', "/", 1)
            )];
            assert_eq!(d["digest"], digest(content));
            assert_eq!(d["size"], content.len());
            content.clone()
        };
        let manifest: Value = serde_json::from_slice(&blob(&index["manifests"][0])).unwrap();
        let config: Value = serde_json::from_slice(&blob(&manifest["config"])).unwrap();
        let layer = blob(&manifest["layers"][0]);
        assert_eq!(config["rootfs"]["diff_ids"][0], digest(&layer));
    }
}
