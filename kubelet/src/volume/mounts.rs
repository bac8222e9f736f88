//! Mounting, and asking what is mounted.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

/// Undoes the octal escapes of `/proc/self/mountinfo`.
fn unescape(s: &str) -> String {
    let bytes = s.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        if bytes[i] == b'\\'
            && let Some(code) = s
                .get(i + 1..i + 4)
                .and_then(|o| u8::from_str_radix(o, 8).ok())
        {
            out.push(code);
            i += 4;
        } else {
            out.push(bytes[i]);
            i += 1;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// `path` without links and relative parts, as the kernel lists mounts; what of its end does not exist stays as it is.
pub fn real_path(path: &Path) -> io::Result<PathBuf> {
    let absolute = std::path::absolute(path)?;
    let mut rest = Vec::new();
    let mut at = absolute.as_path();
    loop {
        match at.canonicalize() {
            Ok(real) => return Ok(rest.into_iter().rev().fold(real, |p, part| p.join(part))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        let (Some(parent), Some(name)) = (at.parent(), at.file_name()) else {
            return Ok(absolute);
        };
        rest.push(name);
        at = parent;
    }
}

/// All mount points at or below `root`, the deepest and latest first: the order in which they can be unmounted. `root` may lead
/// through links; the mount points never do.
pub fn below(root: &Path) -> io::Result<Vec<PathBuf>> {
    let root = real_path(root)?;
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let mut found: Vec<PathBuf> = table
        .lines()
        .filter_map(|l| l.split(' ').nth(4))
        .map(|p| PathBuf::from(unescape(p)))
        .filter(|p| p.starts_with(&root))
        .collect();
    found.reverse();
    found.sort_by_key(|p| std::cmp::Reverse(p.components().count()));
    Ok(found)
}

/// Whether something is mounted exactly at `path`.
pub fn is_mounted(path: &Path) -> io::Result<bool> {
    let path = real_path(path)?;
    Ok(below(&path)?.contains(&path))
}

/// Mounts a memory file system at `path`, of at most `size` bytes if given.
pub fn tmpfs(path: &Path, size: Option<i64>) -> io::Result<()> {
    let options = match size {
        Some(n) if n > 0 => format!("size={n}"),
        _ => String::new(),
    };
    let options = std::ffi::CString::new(options).map_err(io::Error::other)?;
    rustix::mount::mount(
        "tmpfs",
        path,
        "tmpfs",
        MountFlags::empty(),
        options.as_c_str(),
    )?;
    Ok(())
}

/// Unmounts everything at and below `root`.
pub fn unmount_all(root: &Path) -> io::Result<()> {
    for path in below(root)? {
        match rustix::mount::unmount(&path, UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(rustix::io::Errno::BUSY) => {
                rustix::mount::unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?
            }
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Opens `path` below `root`, following links only as far as they stay below.
fn open_below(root: &Path, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let dir = rustix::fs::open(
        root,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    Ok(rustix::fs::openat2(
        &dir,
        path,
        flags | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS,
    )?)
}

/// Makes the directories of `path` below `root` that are missing, never leaving `root`.
pub fn make_dirs_below(root: &Path, path: &Path, mode: u32) -> io::Result<()> {
    let mut done = PathBuf::new();
    for part in path.components() {
        let parent = if done.as_os_str().is_empty() {
            rustix::fs::open(
                root,
                OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )?
        } else {
            open_below(root, &done, OFlags::PATH | OFlags::DIRECTORY)?
        };
        let name = Path::new(part.as_os_str());
        match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o700)) {
            Ok(()) => {
                // The process's umask must not narrow the mode.
                let made = rustix::fs::openat(
                    &parent,
                    name,
                    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                    Mode::empty(),
                )?;
                rustix::fs::fchmod(&made, Mode::from_raw_mode(mode))?;
                let owner = rustix::fs::fstat(&parent)?;
                rustix::fs::fchown(&made, None, Some(rustix::fs::Gid::from_raw(owner.st_gid)))?;
            }
            Err(rustix::io::Errno::EXIST) => {}
            Err(e) => return Err(e.into()),
        }
        done.push(part);
    }
    Ok(())
}

/// Whether `path` exists below `root`, without leaving it.
pub fn exists_below(root: &Path, path: &Path) -> io::Result<bool> {
    match open_below(root, path, OFlags::PATH) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// Bind-mounts `path` below `root` to `target`. The source is held open, so that it cannot be swapped for a link
/// to elsewhere between the check and the mount.
pub fn bind_below(root: &Path, path: &Path, target: &Path) -> io::Result<()> {
    let source = open_below(root, path, OFlags::PATH)?;
    let is_dir = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&source)?.st_mode).is_dir();
    if is_mounted(target)? {
        unmount_all(target)?;
    }
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    if is_dir {
        fs::create_dir_all(target)?;
    } else {
        fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(target)?;
    }
    let through = format!("/proc/self/fd/{}", source.as_fd().as_raw_fd());
    rustix::mount::mount_bind(through.as_str(), target)?;
    Ok(())
}

/// Makes mounts at `path` and below visible to containers that ask for it.
pub fn make_shared(path: &Path) -> io::Result<()> {
    rustix::mount::mount_change(
        path,
        MountPropagationFlags::SHARED | MountPropagationFlags::REC,
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_unescaped() {
        for (escaped, plain) in [
            ("/a", "/a"),
            (r"/a\040b", "/a b"),
            (r"/a\134b", r"/a\b"),
            (r"/a\0", r"/a\0"),
            (r"\040", " "),
        ] {
            assert_eq!(unescape(escaped), plain);
        }
    }

    #[test]
    fn mounts_are_found_through_links() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        fs::create_dir_all(dir.join("real/pods/p")).unwrap();
        std::os::unix::fs::symlink(dir.join("real"), dir.join("link")).unwrap();
        let cases = [
            ("link/pods/p", "real/pods/p"),
            ("link/pods/new/deeper", "real/pods/new/deeper"),
            ("real/../link/x", "real/x"),
        ];
        for (path, want) in cases {
            assert_eq!(
                real_path(&dir.join(path)).unwrap(),
                dir.join(want),
                "{path}"
            );
        }
        let volume = dir.join("link/pods/p");
        if tmpfs(&volume, None).is_err() {
            println!("skipped: mounting needs root");
            return;
        }
        let found = (is_mounted(&volume), below(&dir.join("link")));
        unmount_all(&dir.join("link")).unwrap();
        assert!(found.0.unwrap());
        assert_eq!(found.1.unwrap(), [dir.join("real/pods/p")]);
        assert!(!is_mounted(&volume).unwrap());
    }
}
