//! Gives a volume to the pod's `fsGroup` (upstream `volume.SetVolumeOwnership`).

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::Path;

/// Gives all below `path` to `group`: readable, writable unless `read_only`, and directories pass the group on.
/// Links are given, not followed.
pub fn give_to_group(path: &Path, group: u32, read_only: bool) -> io::Result<()> {
    let meta = fs::symlink_metadata(path)?;
    if meta.gid() != group {
        lchown(path, None, Some(group))?;
    }
    if meta.file_type().is_symlink() {
        return Ok(());
    }
    let mut add = if read_only { 0o440 } else { 0o660 };
    if meta.is_dir() {
        add |= 0o2110;
    }
    let mode = meta.mode() & 0o7777;
    // A change of owner clears the set-group bit, so that the mode comes last.
    if meta.gid() != group || mode & add != add {
        fs::set_permissions(path, fs::Permissions::from_mode(mode | add))?;
    }
    if meta.is_dir() {
        for entry in fs::read_dir(path)? {
            give_to_group(&entry?.path(), group, read_only)?;
        }
    }
    Ok(())
}

/// Whether the top of a volume is as [`give_to_group`] leaves it; then `fsGroupChangePolicy: OnRootMismatch` spares
/// the rest.
pub fn top_matches(path: &Path, group: u32) -> io::Result<bool> {
    let meta = fs::metadata(path)?;
    Ok(meta.gid() == group && meta.mode() & 0o2770 == 0o2770)
}
