//! A real cluster for a test: `keelson up` inside a network namespace of the test's own, so that neither its ports nor
//! its rules meet anybody else's; purged when the test ends, however it ends.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Where the test's programs are; found once per test.
#[derive(Clone, Debug)]
pub struct Programs {
    keelson: PathBuf,
    kubectl: PathBuf,
    helm: PathBuf,
}

impl Programs {
    /// From `KEELSON_BIN` and `KEELSON_TOOLS`, which `make test` sets. `None`, with the reason printed, where a real cluster
    /// cannot be run.
    pub fn find() -> Option<Self> {
        let found = (|| {
            if !rustix::process::geteuid().is_root() {
                return Err("not root");
            }
            let keelson = PathBuf::from(
                std::env::var_os("KEELSON_BIN")
                    .ok_or("KEELSON_BIN is not set (make test sets it)")?,
            );
            let tools = PathBuf::from(
                std::env::var_os("KEELSON_TOOLS")
                    .ok_or("KEELSON_TOOLS is not set (make test sets it)")?,
            );
            Ok(Programs {
                keelson,
                kubectl: tools.join("kubectl"),
                helm: tools.join("helm"),
            })
        })();
        found
            .map_err(|why| println!("SKIPPED: needs a real cluster: {why}"))
            .ok()
    }

    /// The keelson binary, for tests that need no whole cluster.
    pub fn keelson(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.keelson);
        command.args(args);
        command
    }

    /// The kernel for virtual machines that `make vm` unpacks beside the tools.
    pub fn kernel(&self) -> PathBuf {
        self.kubectl.with_file_name("vm")
    }

    /// Where the keelson binary is.
    pub fn binary(&self) -> &Path {
        &self.keelson
    }

    /// Where kubectl is.
    pub fn kubectl(&self) -> &Path {
        &self.kubectl
    }
}

/// A running cluster.
pub struct Cluster {
    programs: Programs,
    namespace: String,
    dir: PathBuf,
}

impl Cluster {
    /// Brings a cluster up. `name` tells the clusters of one test run apart.
    ///
    /// # Errors
    /// With what `keelson up` said, and the end of its logs.
    pub fn up(programs: &Programs, name: &str) -> anyhow::Result<Self> {
        let id = format!("kt-{name}-{}", std::process::id());
        let cluster = Cluster {
            programs: programs.clone(),
            namespace: id.clone(),
            dir: PathBuf::from(format!("/tmp/{id}")),
        };
        fs::create_dir_all(&cluster.dir)?;
        run(Command::new("ip").args(["netns", "add", &id]))?;
        // One link with an address: what the node is reached by. Nothing leads out of this namespace.
        for args in [
            "link set lo up",
            "link add uplink type veth peer name uplink-peer",
            "addr add 10.88.0.10/24 dev uplink",
            "link set uplink up",
            "link set uplink-peer up",
            "route add default dev uplink",
        ] {
            run(Command::new("ip").args(["-n", &id]).args(args.split(' ')))?;
        }
        cluster.start()?;
        Ok(cluster)
    }

    /// `keelson up` on what is there.
    ///
    /// # Errors
    /// As [`Cluster::up`].
    pub fn start(&self) -> anyhow::Result<()> {
        let up = self
            .inside(&self.programs.keelson)
            .args(["up", "--node-name", "node-1", "--data-dir"])
            .arg(self.data_dir())
            .output()?;
        if !up.status.success() {
            let log =
                fs::read_to_string(self.data_dir().join("log/keelson.log")).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            bail!(
                "keelson up failed:\n{}{}\nlog, newest first:\n{}",
                text(&up.stdout),
                text(&up.stderr),
                tail.join("\n")
            );
        }
        print!("{}", text(&up.stdout));
        Ok(())
    }

    /// Kills control plane, node and containerd at once, as a crash of the machine's userland would; containers' shims stay.
    ///
    /// # Errors
    /// When a pid file cannot be read.
    pub fn kill_everything(&self) -> anyhow::Result<()> {
        for file in ["keelson.pid", "containerd/containerd.pid"] {
            let path = self.data_dir().join(file);
            let text =
                fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            let pid: i32 = text
                .split_whitespace()
                .next()
                .context("an empty pid file")?
                .parse()?;
            let pid = rustix::process::Pid::from_raw(pid).context("no pid")?;
            match rustix::process::kill_process(pid, rustix::process::Signal::KILL) {
                // Not up again since the last kill: as dead as can be.
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(error) => return Err(error).with_context(|| format!("killing {file}")),
            }
        }
        Ok(())
    }

    /// The benchmark program, inside the cluster's network namespace.
    ///
    /// # Errors
    /// When `KEELSON_BENCH` does not say where it is.
    pub fn bench(&self, args: &[&str]) -> anyhow::Result<Command> {
        let program = std::env::var_os("KEELSON_BENCH")
            .context("KEELSON_BENCH is not set (make test sets it)")?;
        let mut command = self.inside(program);
        command.args(args);
        Ok(command)
    }

    /// The cluster's folder.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("d")
    }

    /// A folder for files of the test.
    pub fn scratch(&self) -> &Path {
        &self.dir
    }

    /// A command inside the cluster's network namespace.
    pub fn inside(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        // Not `ip netns exec`, which mounts a /sys of its own, without cgroups.
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.namespace))
            .arg(program);
        command.env("KUBECONFIG", self.data_dir().join("admin.kubeconfig"));
        command
    }

    /// The keelson binary.
    pub fn keelson(&self, args: &[&str]) -> Command {
        let mut command = self.inside(&self.programs.keelson);
        command.args(args);
        command
    }

    /// A kubectl command line, split at blanks.
    pub fn kubectl_command(&self, line: &str) -> Command {
        let mut command = self.inside(&self.programs.kubectl);
        command.args(line.split_whitespace());
        command
    }

    /// Runs kubectl and returns its output.
    ///
    /// # Errors
    /// With what kubectl said.
    pub fn kubectl(&self, line: &str) -> anyhow::Result<String> {
        run(&mut self.kubectl_command(line))
    }

    /// Runs kubectl with arguments that may hold blanks.
    ///
    /// # Errors
    /// With what kubectl said.
    pub fn kubectl_args(&self, args: &[&str]) -> anyhow::Result<String> {
        run(self.kubectl_command("").args(args))
    }

    /// Runs helm.
    ///
    /// # Errors
    /// With what helm said.
    pub fn helm(&self, line: &str) -> anyhow::Result<String> {
        let mut command = self.inside(&self.programs.helm);
        command
            .args(line.split_whitespace())
            .env("HELM_CACHE_HOME", self.dir.join("helm"))
            .env("HELM_CONFIG_HOME", self.dir.join("helm"));
        command.env("HELM_DATA_HOME", self.dir.join("helm"));
        run(&mut command)
    }

    /// `kubectl apply -f -` of objects.
    ///
    /// # Errors
    /// With what kubectl said.
    pub fn apply(&self, objects: &[Value]) -> anyhow::Result<String> {
        // JSON is YAML, so documents can follow each other.
        let documents: Vec<String> = objects.iter().map(Value::to_string).collect();
        run_with_input(
            &mut self.kubectl_command("apply -f -"),
            documents.join("\n---\n").as_bytes(),
        )
    }

    /// Imports a docker archive made of busybox-static and the given files.
    ///
    /// # Errors
    /// When busybox-static is missing or the import fails.
    pub fn import_busybox(&self, image: &str, files: &[(&str, &str)]) -> anyhow::Result<()> {
        let archive = self
            .dir
            .join(format!("{}.tar", image.replace(['/', ':'], "_")));
        write_busybox_archive(&archive, image, files)?;
        let data_dir = self.data_dir();
        run(self
            .keelson(&["images", "import", "--data-dir"])
            .arg(data_dir)
            .arg(&archive))?;
        Ok(())
    }

    /// Waits until `condition` returns something.
    ///
    /// # Errors
    /// After `seconds`, with what was waited for and the last error.
    pub fn wait<T>(
        &self,
        what: &str,
        seconds: u64,
        condition: impl FnMut() -> anyhow::Result<Option<T>>,
    ) -> anyhow::Result<T> {
        wait(what, seconds, condition).with_context(|| {
            self.kubectl("get all,events --all-namespaces")
                .unwrap_or_else(|e| e.to_string())
        })
    }
}

/// Waits until `condition` returns something.
///
/// # Errors
/// After `seconds`, with what was waited for and the last error.
pub fn wait<T>(
    what: &str,
    seconds: u64,
    mut condition: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let deadline = now() + Duration::from_secs(seconds);
    loop {
        let last = match condition() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if now() > deadline {
            let why = last.map(|e| format!(": {e:#}")).unwrap_or_default();
            bail!("waited {seconds} s for {what}{why}");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Clusters of several nodes (`keelson cluster`), inside a network namespace of the test's own.
pub struct Clusters {
    programs: Programs,
    namespace: String,
    dir: PathBuf,
}

impl Clusters {
    /// A place for clusters; there is none in it yet.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn new(programs: &Programs, name: &str) -> anyhow::Result<Self> {
        let namespace = format!("kt-{name}-{}", std::process::id());
        let clusters = Clusters {
            programs: programs.clone(),
            dir: PathBuf::from(format!("/tmp/{namespace}")),
            namespace,
        };
        fs::create_dir_all(&clusters.dir)?;
        run(Command::new("ip").args(["netns", "add", &clusters.namespace]))?;
        run(Command::new("ip").args(["-n", &clusters.namespace, "link", "set", "lo", "up"]))?;
        Ok(clusters)
    }

    /// The folder of all clusters.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("d")
    }

    /// A command in the namespace that the nodes' bridges are in.
    pub fn inside(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.namespace))
            .arg(program);
        command
    }

    /// `keelson cluster` with these words.
    ///
    /// # Errors
    /// With what it said.
    pub fn cluster(&self, line: &str) -> anyhow::Result<String> {
        run(self
            .inside(&self.programs.keelson)
            .arg("cluster")
            .args(line.split_whitespace())
            .arg("--data-dir")
            .arg(self.data_dir()))
    }

    /// kubectl for one of the clusters.
    pub fn kubectl_command(&self, cluster: &str, args: &[&str]) -> Command {
        let mut command = self.inside(&self.programs.kubectl);
        let kubeconfig = self.data_dir().join(cluster).join("admin.kubeconfig");
        command.env("KUBECONFIG", kubeconfig).args(args);
        command
    }

    /// Runs kubectl for one of the clusters.
    ///
    /// # Errors
    /// With what it said.
    pub fn kubectl(&self, cluster: &str, line: &str) -> anyhow::Result<String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        run(&mut self.kubectl_command(cluster, &words))
    }

    /// Imports an image made of busybox-static and the given files on all nodes of a cluster.
    ///
    /// # Errors
    /// As [`Cluster::import_busybox`].
    pub fn import_busybox(
        &self,
        cluster: &str,
        image: &str,
        files: &[(&str, &str)],
    ) -> anyhow::Result<()> {
        let archive = self.dir.join("busybox.tar");
        write_busybox_archive(&archive, image, files)?;
        self.cluster(&format!("import {cluster} {}", archive.display()))?;
        Ok(())
    }
}

impl Drop for Clusters {
    fn drop(&mut self) {
        if std::thread::panicking() && std::env::var_os("KEELSON_KEEP").is_some() {
            eprintln!("kept: {}, {}", self.namespace, self.dir.display());
            return;
        }
        let mut down = Ok(());
        for entry in fs::read_dir(self.data_dir())
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = entry.file_name().to_string_lossy().into_owned();
            down = down.and(self.cluster(&format!("delete {name}")).map(drop));
        }
        clear(down, &self.namespace, &self.dir);
    }
}

/// A second machine beside a cluster: a network namespace of its own on the other end of the cluster's link.
pub struct Machine {
    programs: Programs,
    namespace: String,
    dir: PathBuf,
}

impl Machine {
    /// Makes the machine; nothing runs on it yet. A cluster's link has room for one.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn beside(cluster: &Cluster) -> anyhow::Result<Self> {
        let namespace = format!("{}-b", cluster.namespace);
        let machine = Machine {
            programs: cluster.programs.clone(),
            dir: PathBuf::from(format!("/tmp/{namespace}")),
            namespace,
        };
        fs::create_dir_all(&machine.dir)?;
        let ip = |line: &str| run(Command::new("ip").args(line.split(' ')));
        let (here, there) = (&cluster.namespace, &machine.namespace);
        ip(&format!("netns add {there}"))?;
        ip(&format!("-n {here} link set uplink-peer netns {there}"))?;
        for line in [
            "link set lo up",
            "addr add 10.88.0.11/24 dev uplink-peer",
            "link set uplink-peer up",
            "route add default dev uplink-peer",
        ] {
            ip(&format!("-n {there} {line}"))?;
        }
        Ok(machine)
    }

    /// A keelson command on this machine; give it [`Self::data_dir`] where it takes one.
    pub fn keelson(&self, args: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.namespace))
            .arg(&self.programs.keelson)
            .args(args);
        command
    }

    /// The folder of the node.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("d")
    }

    /// `keelson agent` in the background, its log in the machine's folder.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn agent(&self, args: &[&str]) -> anyhow::Result<Background> {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("agent.log"))?;
        let child = self
            .keelson(&["agent", "--data-dir"])
            .arg(self.data_dir())
            .args(args)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        Ok(Background(child))
    }

    /// What the agents of this machine have logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("agent.log")).unwrap_or_default()
    }

    /// As [`Cluster::import_busybox`], for this machine.
    ///
    /// # Errors
    /// As [`Cluster::import_busybox`].
    pub fn import_busybox(&self, image: &str, files: &[(&str, &str)]) -> anyhow::Result<()> {
        let archive = self.dir.join("busybox.tar");
        write_busybox_archive(&archive, image, files)?;
        run(self
            .keelson(&["images", "import", "--data-dir"])
            .arg(self.data_dir())
            .arg(&archive))?;
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() && std::env::var_os("KEELSON_KEEP").is_some() {
            eprintln!("kept: {}, {}", self.namespace, self.dir.display());
            return;
        }
        let data_dir = self.data_dir();
        let down = if data_dir.join("agent.json").exists() {
            let mut command = self.keelson(&["down", "--purge", "--data-dir"]);
            run(command.arg(data_dir)).map(drop)
        } else {
            Ok(())
        };
        clear(down, &self.namespace, &self.dir);
    }
}

#[allow(clippy::disallowed_methods)] // a test waits in real time
fn now() -> Instant {
    Instant::now()
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() && std::env::var_os("KEELSON_KEEP").is_some() {
            eprintln!(
                "kept: network namespace {}, folder {}",
                self.namespace,
                self.dir.display()
            );
            return;
        }
        let data_dir = self.data_dir();
        let mut command = self.keelson(&["down", "--purge", "--data-dir"]);
        let down = run(command.arg(data_dir)).map(drop);
        clear(down, &self.namespace, &self.dir);
    }
}

/// Deletes what a test's machines were made of, once they are `down`. Where they are not, something may still be
/// mounted below the folder, and deleting that would reach into what is mounted.
fn clear(down: anyhow::Result<()>, namespace: &str, dir: &Path) {
    if let Err(error) = down {
        eprintln!(
            "not down, so {namespace} and {} stay: {error:#}",
            dir.display()
        );
        return;
    }
    if let Err(error) = run(Command::new("ip").args(["netns", "del", namespace])) {
        eprintln!("{error:#}");
    }
    if let Err(error) = fs::remove_dir_all(dir) {
        eprintln!("{}: {error}", dir.display());
    }
}

/// Ends a background command when it goes out of scope.
pub struct Background(pub Child);

impl Drop for Background {
    fn drop(&mut self) {
        // Already ended is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a command to its end and returns its standard output.
///
/// # Errors
/// When it cannot be run or fails, with both its outputs.
pub fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{command:?}"))?;
    finished(command, &output)
}

/// As [`run`], with something on standard input.
///
/// # Errors
/// As [`run`].
pub fn run_with_input(command: &mut Command, input: &[u8]) -> anyhow::Result<String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{command:?}"))?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output()?;
    // A command that ends without reading its input is judged by its status.
    let _ = writer.join();
    finished(command, &output)
}

fn finished(command: &Command, output: &Output) -> anyhow::Result<String> {
    if !output.status.success() {
        let words: Vec<String> = command
            .get_args()
            .map(|a| a.to_string_lossy().into_owned())
            .collect();
        bail!(
            "{}: {}\n{}{}",
            words.join(" "),
            output.status,
            text(&output.stdout),
            text(&output.stderr)
        );
    }
    Ok(text(&output.stdout))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A docker archive (`docker save`'s form): one layer with busybox, its usual names, and the given files.
///
/// # Errors
/// When busybox-static is missing or the archive cannot be written.
pub fn write_busybox_archive(to: &Path, image: &str, files: &[(&str, &str)]) -> anyhow::Result<()> {
    let busybox = fs::read("/bin/busybox").context("busybox-static is not installed")?;
    let mut layer = tar::Builder::new(Vec::new());
    for dir in ["bin/", "etc/", "tmp/", "www/", "root/"] {
        let mut header = header(if dir == "tmp/" { 0o1777 } else { 0o755 }, 0);
        header.set_entry_type(tar::EntryType::Directory);
        layer.append_data(&mut header, dir, std::io::empty())?;
    }
    layer.append_data(
        &mut header(0o755, busybox.len()),
        "bin/busybox",
        busybox.as_slice(),
    )?;
    for name in "sh cat echo sleep ls tar nc tail httpd nslookup id env true false kill date head stat grep seq mkdir touch rm tty printf".split(' ') {
        let mut header = header(0o777, 0);
        header.set_entry_type(tar::EntryType::Symlink);
        layer.append_link(&mut header, format!("bin/{name}"), "busybox")?;
    }
    let passwd = [
        ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
        ("etc/group", "root:x:0:\n"),
    ];
    for (name, content) in passwd.iter().chain(files) {
        layer.append_data(&mut header(0o644, content.len()), name, content.as_bytes())?;
    }
    let layer = layer.into_inner()?;
    let digest = hex(&layer);
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }, "os": "linux",
        "config": { "Cmd": ["sh"], "Env": ["PATH=/bin"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
    })
    .to_string();
    let config_name = format!("{}.json", hex(config.as_bytes()));
    let manifest = json!([{ "Config": config_name, "RepoTags": [image], "Layers": [format!("{digest}/layer.tar")] }]).to_string();
    let mut archive = tar::Builder::new(fs::File::create(to)?);
    for (name, content) in [
        (config_name.as_str(), config.as_bytes()),
        (&format!("{digest}/layer.tar"), &layer),
        ("manifest.json", manifest.as_bytes()),
    ] {
        archive.append_data(&mut header(0o644, content.len()), name, content)?;
    }
    archive.into_inner()?.flush()?;
    Ok(())
}

fn header(mode: u32, size: usize) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_size(size as u64);
    header.set_mtime(0);
    header
}

fn hex(content: &[u8]) -> String {
    Sha256::digest(content)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_down_is_not_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("d");
        fs::create_dir(&folder).unwrap();
        clear(Err(anyhow::anyhow!("busy")), "kt-none", &folder);
        assert!(folder.exists());
        clear(Ok(()), "kt-none", &folder);
        assert!(!folder.exists());
    }
}
