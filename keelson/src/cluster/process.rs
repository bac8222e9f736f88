//! Detached processes and their pid files. A pid file also holds the process's start time, so that a recycled
//! pid is never taken for ours.

use std::fs::{self, File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

/// Start time of a process in clock ticks since boot (field 22 of `/proc/PID/stat`), or `None` when it is gone.
pub fn start_ticks(pid: u32) -> Option<u64> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The start time in a `/proc/PID/stat` (proc(5)). `None` for a zombie, but only once no other thread is left: until the
/// last one has gone, a killed process still holds its ports, locks and files.
fn parse_stat(stat: &str) -> Option<u64> {
    // The command name is in parentheses and may itself contain spaces and parentheses.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let (state, threads, start) = (fields.first()?, fields.get(17)?, fields.get(19)?);
    if matches!(*state, "Z" | "X") && threads.parse::<u32>().ok()? <= 1 {
        return None;
    }
    start.parse().ok()
}

/// Resident memory of a process in KiB.
pub fn resident_kib(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

/// Seconds since a process started.
pub fn age_seconds(pid: u32) -> Option<u64> {
    let ticks = start_ticks(pid)?;
    let uptime: f64 = fs::read_to_string("/proc/uptime")
        .ok()?
        .split_whitespace()
        .next()?
        .parse()
        .ok()?;
    let started = ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
    Some((uptime - started).max(0.0) as u64)
}

/// The containerd shims that belong to the containerd on `socket`; they hold containers and outlive containerd.
///
/// # Errors
/// When `/proc` cannot be listed.
pub fn shims(socket: &Path) -> anyhow::Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("listing /proc")? {
        let Some(pid) = entry
            .ok()
            .and_then(|e| e.file_name().to_str()?.parse::<u32>().ok())
        else {
            continue;
        };
        // Unreadable: the process ended meanwhile.
        let Ok(cmdline) = fs::read(format!("/proc/{pid}/cmdline")) else {
            continue;
        };
        let words: Vec<&[u8]> = cmdline.split(|b| *b == 0).collect();
        let is_shim = words
            .first()
            .is_some_and(|program| program.ends_with(b"containerd-shim-runc-v2"));
        let ours = words
            .windows(2)
            .any(|pair| pair[0] == b"-address" && pair[1] == socket.as_os_str().as_encoded_bytes());
        if is_shim && ours {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Records `pid` with its start time.
///
/// # Errors
/// When the file cannot be written.
pub fn record(pid_file: &Path, pid: u32) -> anyhow::Result<()> {
    let ticks = start_ticks(pid).with_context(|| format!("process {pid} ended at once"))?;
    fs::write(pid_file, format!("{pid} {ticks}\n"))
        .with_context(|| format!("writing {}", pid_file.display()))
}

/// The pid in the file, if that very process still runs.
///
/// # Errors
/// When the file exists but cannot be read or understood.
pub fn find_running(pid_file: &Path) -> anyhow::Result<Option<u32>> {
    let text = match fs::read_to_string(pid_file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("reading {}", pid_file.display())),
    };
    let mut words = text.split_whitespace();
    let parsed = (|| {
        Some((
            words.next()?.parse::<u32>().ok()?,
            words.next()?.parse::<u64>().ok()?,
        ))
    })();
    let Some((pid, ticks)) = parsed else {
        // Cut short by a crash while it was written: the process never got as far as being used.
        return Ok(None);
    };
    Ok((start_ticks(pid) == Some(ticks)).then_some(pid))
}

/// Starts a process in a session of its own with its output appended to `log`, and records it.
///
/// # Errors
/// When the program is missing or the files cannot be written.
pub fn spawn_detached(mut command: Command, log: &Path, pid_file: &Path) -> anyhow::Result<u32> {
    let name = command.get_program().to_string_lossy().into_owned();
    let out: File = OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("opening {}", log.display()))?;
    command
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out);
    // SAFETY: setsid is async-signal-safe, and nothing else runs between fork and exec.
    unsafe {
        command.pre_exec(|| rustix::process::setsid().map(|_| ()).map_err(Into::into));
    }
    let child = command
        .spawn()
        .with_context(|| format!("starting {name}"))?;
    let pid = child.id();
    // Reaped by whoever adopts it; while we live, a thread does, so that it never lingers as a zombie.
    std::thread::Builder::new()
        .name(format!("wait-{pid}"))
        .spawn(move || {
            let mut child = child;
            let _ = child.wait();
        })?;
    record(pid_file, pid)?;
    Ok(pid)
}

/// Sends SIGTERM, waits up to `grace`, then SIGKILL; returns when the process is gone.
///
/// # Errors
/// When it survives even SIGKILL for 10 s.
pub async fn stop(pid: u32, grace: Duration) -> anyhow::Result<()> {
    let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        bail!("{pid} is no pid")
    };
    let ticks = start_ticks(pid);
    let gone = || start_ticks(pid) != ticks || test_kill_process(raw).is_err();
    if ticks.is_none() {
        return Ok(());
    }
    for (signal, limit) in [
        (Signal::TERM, grace),
        (Signal::KILL, Duration::from_secs(10)),
    ] {
        if gone() {
            return Ok(());
        }
        match kill_process(raw, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error).with_context(|| format!("signalling process {pid}")),
        }
        let deadline = tokio::time::Instant::now() + limit;
        while tokio::time::Instant::now() < deadline {
            if gone() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    bail!("process {pid} does not end")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_killed_process_is_there_until_its_last_thread_has_gone() {
        let stat = |state: &str, threads: u32| {
            format!(
                "7 (a (b) c) {state} 1 7 7 0 -1 4228356 0 0 0 0 1 2 0 0 20 0 {threads} 0 4711 0 0"
            )
        };
        assert_eq!(parse_stat(&stat("S", 9)), Some(4711));
        assert_eq!(parse_stat(&stat("Z", 9)), Some(4711));
        assert_eq!(parse_stat(&stat("Z", 1)), None);
        assert_eq!(parse_stat("7 (x"), None);
    }

    #[test]
    fn only_the_recorded_process_counts_as_running() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        assert_eq!(find_running(&file).unwrap(), None);
        let me = std::process::id();
        record(&file, me).unwrap();
        assert_eq!(find_running(&file).unwrap(), Some(me));
        // Same pid, other start time: another process that got the number later.
        fs::write(&file, format!("{me} 1")).unwrap();
        assert_eq!(find_running(&file).unwrap(), None);
        fs::write(&file, "12").unwrap();
        assert_eq!(find_running(&file).unwrap(), None);
    }
}
