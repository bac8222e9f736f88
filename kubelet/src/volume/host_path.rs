//! hostPath volumes: the checks by type.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

/// Checks that `path` is what `kind` says, making it where the kind says so.
pub fn check(path: &Path, kind: &str) -> Result<(), String> {
    let show = path.display();
    match kind {
        "" => return Ok(()),
        "DirectoryOrCreate" if !path.exists() => {
            return make_dir(path).map_err(|e| e.to_string());
        }
        "FileOrCreate" if !path.exists() => {
            return fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(path)
                .and_then(|_| fs::set_permissions(path, fs::Permissions::from_mode(0o644)))
                .map_err(|e| e.to_string());
        }
        _ => {}
    }
    let t = match fs::metadata(path) {
        Ok(m) => m.file_type(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(match kind {
                "Directory" => format!("hostPath type check failed: {show} is not a directory"),
                "File" => format!("hostPath type check failed: {show} is not a file"),
                "Socket" => format!("hostPath type check failed: {show} is not a socket file"),
                "CharDevice" => {
                    format!("hostPath type check failed: {show} is not a character device")
                }
                "BlockDevice" => {
                    format!("hostPath type check failed: {show} is not a block device")
                }
                _ => format!("hostPath type check failed: {show} does not exist"),
            });
        }
        Err(e) => return Err(e.to_string()),
    };
    let (ok, what) = match kind {
        "Directory" | "DirectoryOrCreate" => (t.is_dir(), "a directory"),
        "File" | "FileOrCreate" => (t.is_file(), "a file"),
        "Socket" => (t.is_socket(), "a socket file"),
        "CharDevice" => (t.is_char_device(), "a character device"),
        "BlockDevice" => (t.is_block_device(), "a block device"),
        other => return Err(format!("{other} is an invalid volume type")),
    };
    if ok {
        Ok(())
    } else {
        Err(format!("hostPath type check failed: {show} is not {what}"))
    }
}

fn make_dir(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}
