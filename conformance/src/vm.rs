//! A virtual machine for what this machine's kernel lacks (cgroup v2's controllers, IPVS): Debian's cloud kernel under
//! qemu, emulated in software, with an initramfs made of this machine's own programs and a shell script that runs as
//! its first process. It has no disk and no network but its own loopback and the links the script makes.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use cpio::newc::{Builder, ModeFileType, trailer};

use crate::testbed::Background;

/// Kernel modules that are taken along: those for networks, container file systems, and what they depend on.
const MODULES: [&str; 6] = [
    "kernel/net",
    "kernel/drivers/net",
    "kernel/fs/overlayfs",
    "kernel/lib",
    "kernel/crypto",
    "kernel/arch",
];

/// First process. runc moves containers' roots by pivot_root(2), which the initial file system does not allow, so all
/// moves to a tmpfs first.
const INIT: &str = r#"#!/bin/sh
mount -t proc proc /proc
mount -t tmpfs -o size=80%,mode=755 root /newroot
cp -a /bin /sbin /usr /lib /lib64 /etc /root /vm-main /newroot/
mkdir /newroot/proc /newroot/sys /newroot/dev /newroot/tmp /newroot/run /newroot/var
umount /proc
exec switch_root /newroot /vm-main
"#;

/// What the script finds: the usual file systems, cgroup v2 alone, and a default route that leads nowhere.
const MAIN: &str = r#"#!/bin/sh
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts; mount -t tmpfs shm /dev/shm; mount -t tmpfs run /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
hostname vm
modprobe overlay
ip link set lo up
ip link add uplink type veth peer name uplink-peer
ip addr add 10.88.0.10/24 dev uplink
ip link set uplink up; ip link set uplink-peer up
ip route add default dev uplink
sh -eux /root/script
echo "vm: script ended with $?"
poweroff -f
"#;

/// A machine that has not been started.
pub struct Vm {
    kernel: PathBuf,
    initramfs: BufWriter<File>,
    dir: tempfile::TempDir,
    known: BTreeSet<PathBuf>,
    inode: u32,
}

impl Vm {
    /// A machine with the kernel in `kernel` (as `make vm` unpacks it), its modules, busybox and `ip`.
    ///
    /// # Errors
    /// When one of them is missing.
    pub fn new(kernel: &Path) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let initramfs = BufWriter::new(File::create(dir.path().join("initramfs"))?);
        let mut vm = Vm {
            kernel: kernel.join("vmlinuz"),
            initramfs,
            dir,
            known: BTreeSet::new(),
            inode: 0,
        };
        for dir in [
            "/proc",
            "/newroot",
            "/sbin",
            "/lib64",
            "/usr/bin",
            "/usr/sbin",
        ] {
            vm.directory(Path::new(dir))?;
        }
        vm.file("/init", INIT.as_bytes(), 0o755)?;
        vm.file("/vm-main", MAIN.as_bytes(), 0o755)?;
        vm.file("/etc/hosts", b"127.0.0.1 localhost\n", 0o644)?;
        vm.file("/etc/resolv.conf", b"nameserver 10.88.0.10\n", 0o644)?;
        vm.file("/etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n", 0o644)?;
        vm.program("/bin/busybox", "/bin/busybox")?;
        let ip = ["/usr/sbin/ip", "/sbin/ip", "/bin/ip"]
            .into_iter()
            .find(|path| Path::new(path).exists())
            .context("iproute2 is not installed")?;
        vm.program(ip, "/bin/ip")?;
        let names = Command::new("/bin/busybox").arg("--list").output()?;
        for name in String::from_utf8(names.stdout)?.lines() {
            vm.link(&format!("/bin/{name}"), "/bin/busybox")?;
        }
        vm.link("/sbin/modprobe", "/bin/busybox")?;
        vm.modules(&kernel.join("lib/modules"))?;
        Ok(vm)
    }

    /// Adds a file with the given permissions, and the folders above it.
    ///
    /// # Errors
    /// When the archive cannot be written.
    pub fn file(&mut self, path: &str, content: &[u8], mode: u32) -> anyhow::Result<()> {
        self.entry(Path::new(path), ModeFileType::Regular, mode, content)
    }

    /// Adds a program of this machine under the name `to`, with the libraries that it loads.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn program(&mut self, from: impl AsRef<Path>, to: &str) -> anyhow::Result<()> {
        let from = from.as_ref();
        let content = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
        self.file(to, &content, 0o755)?;
        // A static program has none, and ldd says so by failing.
        let libraries = Command::new("ldd").arg(from).output()?;
        for library in String::from_utf8_lossy(&libraries.stdout)
            .split_whitespace()
            .filter(|word| word.starts_with('/'))
        {
            self.file(library, &fs::read(library)?, 0o755)?;
        }
        Ok(())
    }

    /// Boots, runs `script` by `sh -eu` as root, and returns all that the console said.
    ///
    /// # Errors
    /// When qemu cannot be started, the script fails or takes longer than `limit`; with the console's text.
    pub fn run(mut self, script: &str, limit: Duration) -> anyhow::Result<String> {
        self.file("/root/script", script.as_bytes(), 0o755)?;
        trailer(&mut self.initramfs)?;
        self.initramfs.flush()?;
        let console = self.dir.path().join("console");
        let child = Command::new("qemu-system-x86_64")
            .args(
                "-accel tcg,thread=multi -smp 2 -m 3072 -nodefaults -display none -no-reboot"
                    .split(' '),
            )
            .args(["-append", "console=ttyS0 panic=-1 quiet"])
            .arg("-kernel")
            .arg(&self.kernel)
            .arg("-initrd")
            .arg(self.dir.path().join("initramfs"))
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .stdin(Stdio::null())
            .spawn()
            .context("starting qemu-system-x86_64")?;
        let mut machine = Background(child);
        #[allow(clippy::disallowed_methods, reason = "waits for a real machine")]
        let now = Instant::now;
        let deadline = now() + limit;
        let said =
            || String::from_utf8_lossy(&fs::read(&console).unwrap_or_default()).replace('\r', "");
        while machine.0.try_wait()?.is_none() {
            if now() > deadline {
                bail!(
                    "the machine did not end within {limit:?}; it said:\n{}",
                    said()
                );
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let said = said();
        ensure!(
            said.contains("vm: script ended with 0\n"),
            "the script failed in the machine:\n{said}"
        );
        Ok(said)
    }

    fn modules(&mut self, of: &Path) -> anyhow::Result<()> {
        let version = fs::read_dir(of)
            .with_context(|| format!("{}: run `make vm`", of.display()))?
            .next()
            .context("no kernel version")??
            .path();
        let to = Path::new("/lib/modules").join(version.file_name().context("no name")?);
        for file in fs::read_dir(&version)? {
            let file = file?;
            if file.file_type()?.is_file() {
                let name = to.join(file.file_name());
                self.entry(&name, ModeFileType::Regular, 0o644, &fs::read(file.path())?)?;
            }
        }
        for part in MODULES {
            self.tree(&version.join(part), &to.join(part))?;
        }
        Ok(())
    }

    fn tree(&mut self, from: &Path, to: &Path) -> anyhow::Result<()> {
        for entry in fs::read_dir(from).with_context(|| format!("reading {}", from.display()))? {
            let (entry, target) = entry.map(|entry| (entry.path(), to.join(entry.file_name())))?;
            if entry.is_dir() {
                self.tree(&entry, &target)?;
            } else {
                self.entry(&target, ModeFileType::Regular, 0o644, &fs::read(&entry)?)?;
            }
        }
        Ok(())
    }

    fn link(&mut self, path: &str, to: &str) -> anyhow::Result<()> {
        self.entry(Path::new(path), ModeFileType::Symlink, 0o777, to.as_bytes())
    }

    fn directory(&mut self, path: &Path) -> anyhow::Result<()> {
        self.entry(path, ModeFileType::Directory, 0o755, &[])
    }

    /// Writes one entry, folders above it first; what is there already stays.
    fn entry(
        &mut self,
        path: &Path,
        kind: ModeFileType,
        mode: u32,
        content: &[u8],
    ) -> anyhow::Result<()> {
        if !self.known.insert(path.to_owned()) {
            return Ok(());
        }
        if let Some(parent) = path.parent().filter(|parent| *parent != Path::new("/")) {
            self.directory(parent)?;
        }
        self.inode += 1;
        let name = path.strip_prefix("/").unwrap_or(path).display().to_string();
        let size = u32::try_from(content.len()).with_context(|| format!("{name} is too large"))?;
        let mut writer = Builder::new(&name)
            .ino(self.inode)
            .mode(mode)
            .set_mode_file_type(kind)
            .write(&mut self.initramfs, size);
        writer.write_all(content)?;
        writer.finish()?;
        Ok(())
    }
}
