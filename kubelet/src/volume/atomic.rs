//! Writes a set of files so that readers see either all of the old or all of the new (upstream `AtomicWriter`):
//! files are written into a fresh directory, the link `..data` is swapped to it, and visible names are links through
//! `..data`.
//!
//! ```text
//! <volume>/..2026_11_21_05_30_00.123456789/{a,dir/b}
//! <volume>/..data -> ..2026_11_21_05_30_00.123456789
//! <volume>/a      -> ..data/a
//! <volume>/dir    -> ..data/dir
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Component, Path, PathBuf};

use super::ownership;

/// One file of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Its content.
    pub data: Vec<u8>,
    /// Its mode.
    pub mode: u32,
    /// Its owner, if not root.
    pub owner: Option<u32>,
}

/// All files of a volume by relative path.
pub type Payload = BTreeMap<String, File>;

const DATA: &str = "..data";
const NEW_DATA: &str = "..data_tmp";

/// Whether a path may be written: relative, and never upwards.
pub fn check_path(path: &str) -> Result<(), String> {
    let p = Path::new(path);
    if path.is_empty() || path.len() > 4096 {
        return Err(format!(
            "invalid path: must not be empty or longer than 4096: {path:?}"
        ));
    }
    if p.is_absolute() {
        return Err(format!("invalid path: must be relative path: {path}"));
    }
    if p.components()
        .any(|c| !matches!(c, Component::Normal(_) | Component::CurDir))
    {
        return Err(format!("invalid path: must not contain '..': {path}"));
    }
    if path.starts_with("..") {
        return Err(format!("invalid path: must not start with '..': {path}"));
    }
    Ok(())
}

/// Makes `dir` hold exactly `payload`; `stamp` names the new generation. With a `group`, its members may read
/// (and the files belong to it). Returns whether anything was written.
pub fn write(dir: &Path, payload: &Payload, stamp: &str, group: Option<u32>) -> io::Result<bool> {
    for path in payload.keys() {
        check_path(path).map_err(io::Error::other)?;
    }
    let data = dir.join(DATA);
    let old = match fs::read_link(&data) {
        Ok(target) => Some(dir.join(target)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(e),
    };
    if let Some(old) = &old
        && same(old, payload, group)?
    {
        // A kubelet that was killed after the swap may not have come to the names.
        if let Some(generation) = old.file_name().and_then(|n| n.to_str()) {
            show(dir, payload, generation)?;
        }
        return Ok(false);
    }
    let generation = format!("..{stamp}");
    let new = dir.join(&generation);
    fs::create_dir(&new)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755))?;
    for (path, file) in payload {
        let target = new.join(path);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&target, &file.data)?;
        fs::set_permissions(&target, fs::Permissions::from_mode(file.mode))?;
        if let Some(owner) = file.owner {
            chown(&target, Some(owner), None)?;
        }
    }
    if let Some(group) = group {
        ownership::give_to_group(&new, group, true)?;
    }
    let swap = dir.join(NEW_DATA);
    match fs::remove_file(&swap) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    symlink(&generation, &swap)?;
    fs::rename(&swap, &data)?;

    show(dir, payload, &generation)?;
    Ok(true)
}

/// Makes the visible names those of `payload`, and deletes what is left of older generations.
fn show(dir: &Path, payload: &Payload, generation: &str) -> io::Result<()> {
    let wanted: BTreeSet<&str> = payload
        .keys()
        .filter_map(|p| p.split('/').find(|c| !c.is_empty() && *c != "."))
        .collect();
    for name in &wanted {
        let link = dir.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(name), &link)?;
        }
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if name == DATA || name == generation || wanted.contains(name) {
            continue;
        }
        // What is left are links to files that are no more, and older generations.
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Whether the generation in `dir` holds exactly `payload`.
fn same(dir: &Path, payload: &Payload, group: Option<u32>) -> io::Result<bool> {
    let mut found = Vec::new();
    collect(dir, &PathBuf::new(), &mut found)?;
    if found.len() != payload.len() {
        return Ok(false);
    }
    for path in found {
        let Some(file) = path.to_str().and_then(|p| payload.get(p)) else {
            return Ok(false);
        };
        let target = dir.join(&path);
        // With a group, the mode was widened after writing; then only the content counts.
        let mode = fs::metadata(&target)?.permissions().mode() & 0o777;
        if (group.is_none() && mode != file.mode & 0o777) || fs::read(&target)? != file.data {
            return Ok(false);
        }
    }
    Ok(true)
}

fn collect(root: &Path, below: &Path, out: &mut Vec<PathBuf>) -> io::Result<()> {
    let entries = match fs::read_dir(root.join(below)) {
        Ok(e) => e,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    for entry in entries {
        let entry = entry?;
        let path = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            collect(root, &path, out)?;
        } else {
            out.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations() {
        let dir = tempfile::tempdir().unwrap();
        let payload = |files: &[(&str, &str)]| -> Payload {
            files
                .iter()
                .map(|(p, d)| {
                    (
                        (*p).to_owned(),
                        File {
                            data: d.as_bytes().to_vec(),
                            mode: 0o644,
                            owner: None,
                        },
                    )
                })
                .collect()
        };
        let check = |stamp: &str, files: &[(&str, &str)], changed: bool, gone: &[&str]| {
            assert_eq!(
                write(dir.path(), &payload(files), stamp, None).unwrap(),
                changed,
                "{stamp}"
            );
            for (p, d) in files {
                assert_eq!(
                    fs::read_to_string(dir.path().join(p)).unwrap(),
                    *d,
                    "{stamp} {p}"
                );
            }
            for p in gone {
                assert!(
                    fs::symlink_metadata(dir.path().join(p)).is_err(),
                    "{stamp} {p}"
                );
            }
        };
        check("1", &[("a", "1"), ("d/b", "2")], true, &[]);
        check("2", &[("a", "1"), ("d/b", "2")], false, &["..2"]);
        // Killed between the swap and the names.
        fs::remove_file(dir.path().join("a")).unwrap();
        fs::create_dir(dir.path().join("..0")).unwrap();
        check("2", &[("a", "1"), ("d/b", "2")], false, &["..2", "..0"]);
        check("3", &[("a", "9"), ("d/c", "2")], true, &["..1", "d/b"]);
        check("4", &[], true, &["a", "d", "..3"]);
        for bad in ["", "/a", "../a", "a/../../b", "..a"] {
            assert!(
                write(dir.path(), &payload(&[(bad, "x")]), "5", None).is_err(),
                "{bad}"
            );
        }
    }
}
