//! A disk that is full or read-only: writes are refused in words, reads go on, nothing acknowledged is lost, and writes
//! are taken again once there is room.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use keelson_conformance::testbed::{Background, Programs};

/// Size of the disk: room for the store's own reserve and a few objects.
const SIZE: &str = "24m";

#[test]
fn a_full_disk_refuses_writes_and_loses_nothing() {
    let Some(programs) = Programs::find() else {
        return;
    };
    let disk = Disk::mount().unwrap();
    fill_up(&programs, &disk).unwrap();
}

fn fill_up(programs: &Programs, disk: &Disk) -> anyhow::Result<()> {
    let port = free_port()?;
    let blob = disk.dir.path().join("blob");
    fs::write(&blob, "x".repeat(900_000))?;
    let server = serve(programs, &disk.mount, port)?;
    let kubectl = |args: &[&str]| -> anyhow::Result<Output> {
        Ok(Command::new(programs.kubectl())
            .env("KUBECONFIG", disk.mount.join("d/admin.kubeconfig"))
            .args(args)
            .output()?)
    };
    let there = || -> anyhow::Result<BTreeSet<String>> {
        let out = kubectl(&["get", "configmaps", "-o", "name"])?;
        ensure!(out.status.success(), "a read fails: {out:?}");
        Ok(String::from_utf8(out.stdout)?
            .lines()
            .map(String::from)
            .collect())
    };

    let from_file = format!("--from-file={}", blob.display());
    let mut acknowledged = BTreeSet::new();
    let refusal = loop {
        let name = format!("big-{}", acknowledged.len());
        let out = kubectl(&["create", "configmap", &name, &from_file])?;
        if !out.status.success() {
            break String::from_utf8(out.stderr)?;
        }
        acknowledged.insert(format!("configmap/{name}"));
        ensure!(acknowledged.len() < 100, "the disk of {SIZE} never fills");
    };
    ensure!(
        !acknowledged.is_empty(),
        "nothing was stored at all: {refusal}"
    );
    ensure!(
        refusal.contains("the store takes no writes") && refusal.contains("is full"),
        "the refusal does not say why: {refusal}"
    );
    ensure!(acknowledged.is_subset(&there()?), "lost while full");

    disk.remount("size=96m")?;
    let out = kubectl(&["create", "configmap", "after", &from_file])?;
    ensure!(
        out.status.success(),
        "there is room again, and a write is refused: {out:?}"
    );
    acknowledged.insert("configmap/after".to_owned());

    drop(server);
    disk.remount("ro")?;
    let out = programs
        .keelson(&["server", "--bind-address", "127.0.0.1"])
        .args(["--secure-port", &port.to_string(), "--data-dir"])
        .arg(disk.mount.join("d"))
        .output()?;
    let said = String::from_utf8(out.stderr)?;
    ensure!(
        !out.status.success() && said.contains("Read-only file system"),
        "a server on a read-only disk says: {said}"
    );

    disk.remount("rw")?;
    let _server = serve(programs, &disk.mount, port)?;
    ensure!(acknowledged.is_subset(&there()?), "lost over a restart");
    Ok(())
}

/// A port of the loopback address that nobody has just now.
fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// A small file system of its own, unmounted when dropped.
struct Disk {
    dir: tempfile::TempDir,
    mount: PathBuf,
}

impl Disk {
    fn mount() -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let mount = dir.path().join("disk");
        fs::create_dir(&mount)?;
        let disk = Disk { dir, mount };
        disk.run(Command::new("mount").args([
            "-t",
            "tmpfs",
            "-o",
            &format!("size={SIZE}"),
            "keelson-test",
        ]))?;
        Ok(disk)
    }

    fn remount(&self, how: &str) -> anyhow::Result<()> {
        self.run(Command::new("mount").args(["-o", &format!("remount,{how}")]))
    }

    fn run(&self, command: &mut Command) -> anyhow::Result<()> {
        let out = command.arg(&self.mount).output()?;
        ensure!(
            out.status.success(),
            "{command:?}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        Ok(())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = self.run(&mut Command::new("umount")) {
            eprintln!("left mounted: {error:#}");
        }
    }
}

/// `keelson server`, ready.
fn serve(programs: &Programs, disk: &Path, port: u16) -> anyhow::Result<Background> {
    let data_dir = disk.join("d");
    let child = programs
        .keelson(&["server", "--bind-address", "127.0.0.1"])
        .args(["--secure-port", &port.to_string(), "--data-dir"])
        .arg(&data_dir)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("starting keelson server")?;
    let server = Background(child);
    for _ in 0..300 {
        let ready = Command::new(programs.kubectl())
            .env("KUBECONFIG", data_dir.join("admin.kubeconfig"))
            .args(["get", "--raw", "/readyz"])
            .output()?;
        if ready.stdout == b"ok" {
            return Ok(server);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    bail!("the server was not ready within 30 s")
}
